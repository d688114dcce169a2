"""Options of the commands that make a runner's pod, as a backend would be given."""

from __future__ import annotations

import importlib
import secrets
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from flame_backend.backends.base import PoolSpec
from flame_backend.backends.kubernetes.identity import identity_of
from flame_backend.backends.kubernetes.lease import owner_reference, require_account
from flame_backend.backends.kubernetes.manifest import RunnerOptions, stages
from flame_backend.backends.kubernetes.pods import audience_prefix
from flame_backend.backends.kubernetes.yaml_text import parsed
from flame_backend.cli.cluster import (
    in_pod,
    parent_from_cluster,
    parent_from_file,
    read_text,
)
from flame_backend.errors import ConfigurationError
from flame_backend.pool.options import require_name

if TYPE_CHECKING:
    import argparse

    import kubetls
    from flame_backend.backends.kubernetes.manifest import RunnerIdentity


def add_parent_options(parser: argparse.ArgumentParser) -> None:
    """Add what says which pod the parent is."""
    group = parser.add_argument_group("parent")
    group.add_argument(
        "--pod", metavar="NAME", help="the app's pod (default: the one this runs in)"
    )
    group.add_argument(
        "--parent",
        metavar="FILE",
        help="take it from a file instead: a pod or a Deployment, YAML or JSON; "
        "- reads standard input",
    )


def add_runner_options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of KubernetesBackend, under their own names."""
    group = parser.add_argument_group("runner, as KubernetesBackend takes it")
    group.add_argument("--pool", default="pool", help="name of the pool")
    group.add_argument("--container", metavar="NAME", help="the parent's app container")
    group.add_argument(
        "--manifest",
        metavar="FILE|MODULE:NAME",
        help="what differs from the parent: YAML, or a dict, text or function of yours",
    )
    group.add_argument(
        "--env",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a variable; NAME- takes an inherited one out (may be repeated)",
    )
    group.add_argument("--resources", metavar="YAML", help='"limits: {cpu: 2}"')
    group.add_argument("--service-account", metavar="NAME", help="of the runners")
    group.add_argument(
        "--runner-namespace",
        metavar="NAME",
        help="namespace=: runners live there; needs --service-account",
    )
    group.add_argument("--inherit", choices=("app", "image"), default="app")
    group.add_argument(
        "--hardening", choices=("inherit", "restricted"), default="inherit"
    )
    group.add_argument(
        "--sidecar",
        action="append",
        default=[],
        metavar="NAME",
        help="a container of the parent that comes along (may be repeated)",
    )
    group.add_argument("--no-owner-reference", action="store_true")
    group.add_argument(
        "--python",
        metavar="PATH",
        help="the image's interpreter (default: this one in a pod, else python3)",
    )


def runner_options(args: argparse.Namespace) -> RunnerOptions:
    """Return the options of a backend.

    Raises:
        ConfigurationError: Names the option that is wrong.
    """
    return RunnerOptions(
        manifest=_manifest(args.manifest),
        env=_env(args.env),
        resources=_resources(args.resources),
        container=args.container,
        service_account=args.service_account,
        owner_reference=not args.no_owner_reference,
        inherit=args.inherit,
        hardening=args.hardening,
        sidecars=tuple(args.sidecar),
        python=args.python or (None if in_pod() else "python3"),
    )


def sample_pod(args: argparse.Namespace, parent: dict[str, Any]) -> dict[str, Any]:
    """Return the pod of a runner that is never started.

    Raises:
        ConfigurationError: The options do not make one.
    """
    return sample_stages(args, parent)[-1][1]


def sample_stages(
    args: argparse.Namespace, parent: dict[str, Any]
) -> list[tuple[str, dict[str, Any]]]:
    """Return the steps in which it is made, each with what there is by then.

    Raises:
        ConfigurationError: The options do not make one.
    """
    options, identity = runner_options(args), _identity(args.pool, parent)
    namespace = args.runner_namespace
    elsewhere = namespace not in {None, parent["metadata"].get("namespace")}
    if elsewhere:
        require_account(namespace, options)
        identity = replace(identity, owner=owner_reference(identity.instance, _NO_UID))
    steps = stages(parent, options, identity)
    if elsewhere:
        steps[-1][1]["metadata"]["namespace"] = namespace
    return steps


_NO_UID: Final = "00000000-0000-0000-0000-000000000000"
"""Of a Lease that is made when the pool opens."""


def _identity(pool: str, parent: dict[str, Any]) -> RunnerIdentity:
    """Return what a pool with default options would say."""
    require_name(pool, "--pool")
    instance = secrets.token_hex(8)
    name = f"{pool}-{instance[:8]}"
    return identity_of(
        PoolSpec(name=pool, instance=instance),
        process=secrets.token_hex(8),
        runner=name,
        audience=f"{audience_prefix(parent['metadata']['uid'])}{name}",
        variable="(public facts about the parent, set when the runner boots)",
    )


def parent_pod(
    args: argparse.Namespace, session: kubetls.Session | None
) -> dict[str, Any]:
    """Get the parent's pod from where the options say.

    Raises:
        ConfigurationError: It cannot be told or read.
    """
    if args.parent is not None:
        return parent_from_file(args.parent, args.namespace)
    assert session is not None  # opened whenever no file is given
    return parent_from_cluster(session, args.pod)


def _env(words: list[str]) -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if equals:
            found[name] = value
        elif word.endswith("-"):
            found[word[:-1]] = None
        else:
            raise ConfigurationError("--env", f"{word!r}: write NAME=VALUE or NAME-")
    return found


def _resources(text: str | None) -> dict[str, Any] | None:
    if text is None:
        return None
    found = parsed(text, "--resources")
    if len(found) != 1 or not isinstance(found[0], dict):
        raise ConfigurationError("--resources", 'a mapping: "limits: {memory: 2Gi}"')
    return found[0]


def _manifest(word: str | None) -> Any:
    if word is None:
        return None
    path = Path(word)
    if word == "-" or path.exists() or ":" not in word:
        return read_text(word)
    return imported(word, "--manifest")


def imported(word: str, option: str) -> Any:
    """Import MODULE:NAME, from the working folder as well, as `python -m` does.

    Raises:
        ConfigurationError: There is no such thing, or its module does not load.
    """
    module, _, name = word.partition(":")
    if not module or not name:
        raise ConfigurationError(option, f"{word!r}: write MODULE:NAME")
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise ConfigurationError(option, f"{word}: {error}") from error
    except (Exception, SystemExit) as error:
        # The module's own code ran: whatever it raises is what is wrong with it.
        text = str(error).partition("\nTraceback ")[0]
        reason = f"{word}: {type(error).__name__}: {text}"
        raise ConfigurationError(option, reason) from error
    return found
