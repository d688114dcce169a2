"""flame-backend render: the pod that a runner would be, and why."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from flame_backend.backends.kubernetes.pod_template import app_container
from flame_backend.backends.kubernetes.provenance import left_behind, origins
from flame_backend.cli import output
from flame_backend.cli.cluster import add_cluster_options, open_session
from flame_backend.cli.runners import (
    add_parent_options,
    add_runner_options,
    parent_pod,
    sample_stages,
)

if TYPE_CHECKING:
    import argparse

VALUE_CHARACTERS: Final = 60

HELP = "print the pod that a runner would be"
DESCRIPTION = """\
Print the pod that KubernetesBackend would post, as YAML: the parent's pod, changed by
your options, with the runner's own fields last. Nothing is created.
"""
EPILOG = """\
examples:
  flame-backend render --parent deployment.yaml --explain
  flame-backend render --pod web-5d9 -n shop --hardening restricted
  flame-backend render --parent app.yaml --runner-namespace shop-runners \\
      --service-account runner --inherit image
  flame-backend render --parent app.yaml --manifest gpu.yaml --env LOG=debug --env OLD-
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    parser.add_argument(
        "--explain",
        action="store_true",
        help="one line for each field: where it came from, and what stays behind",
    )
    add_parent_options(parser)
    add_runner_options(parser)
    add_cluster_options(parser)


def run(args: argparse.Namespace) -> int:
    """Print the pod."""
    if args.parent is not None:
        parent = parent_pod(args, None)
    else:
        with open_session(args) as session:
            parent = parent_pod(args, session)
    steps = sample_stages(args, parent)
    pod = _ordered(steps[-1][1])
    if args.explain:
        app = app_container(parent, args.container)["name"]
        _explain(origins(steps), left_behind(parent, app, pod), pod, as_json=args.json)
    elif args.json:
        output.as_json(pod)
    else:
        output.as_yaml([pod])
    return 0


def _explain(
    found: dict[str, tuple[str, Any]],
    missing: list[str],
    pod: dict[str, Any],
    *,
    as_json: bool,
) -> None:
    if as_json:
        told = {path: stage for path, (stage, _) in found.items()}
        output.as_json({"pod": pod, "origins": told, "left_behind": missing})
        return
    rows = [
        (stage, path, _shown(value))
        for path, (stage, value) in found.items()
        # What an item of a list is called by stands in its path already.
        if not path.endswith((f"[{value}].name", f"[{value}].mountPath"))
    ]
    rows += [("left behind", path, "") for path in missing]
    output.table(("FROM", "FIELD", "VALUE"), rows)


def _shown(value: Any) -> str:
    if isinstance(value, str) and value:
        return (
            value
            if len(value) <= VALUE_CHARACTERS
            else f"{value[:VALUE_CHARACTERS]}..."
        )
    return json.dumps(value)


def _ordered(pod: dict[str, Any]) -> dict[str, Any]:
    """Return the same pod, its fields in the order people write them in."""
    first = ("apiVersion", "kind", "name", "image", "command", "args", "env", "labels")

    def sorted_by_habit(value: dict[str, Any]) -> dict[str, Any]:
        head = {key: value[key] for key in first if key in value}
        return head | {k: v for k, v in value.items() if k not in head}

    pod = sorted_by_habit(pod)
    pod["metadata"] = sorted_by_habit(pod["metadata"])
    pod["spec"] = dict(pod["spec"])
    for field in ("initContainers", "containers"):
        if pod["spec"].get(field):
            listed = [sorted_by_habit(item) for item in pod["spec"].pop(field)]
            pod["spec"] = {field: listed, **pod["spec"]}
    return pod
