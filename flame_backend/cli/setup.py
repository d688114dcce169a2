"""flame-backend init: what a cluster needs, for `kubectl apply -f -`."""

from __future__ import annotations

import argparse
from typing import Final

from flame_backend.backends.kubernetes.access import Access, access_objects
from flame_backend.backends.kubernetes.policy import ALLOWED_KINDS
from flame_backend.cli import output
from flame_backend.errors import ConfigurationError

HELP = "print Role, RoleBinding and policies for kubectl apply"
DESCRIPTION = """\
Print what an app's service account needs to run runners in its namespace: a Role for
pods and its binding, network policies, and with --policy an admission policy
that lets this account create runners and nothing else. Nothing is applied.
"""
EPILOG = """\
examples:
  flame-backend init --service-account web -n shop | kubectl apply -f -
  flame-backend init --service-account web -n shop --policy --allow secret=web-env
  flame-backend init --service-account web -n shop --runner-namespace shop-runners \\
      --runner-account runner                 # a namespace that holds nothing else
  flame-backend init --service-account web -n shop --policy \\
      --allow audience=sts.amazonaws.com      # where a webhook injects cloud identities

The admission policy and its binding are cluster-scoped: to apply them takes an
administrator, the rest what `edit` rights on Roles need.
"""

PORTS: Final = 65535


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    parser.add_argument("--service-account", metavar="NAME", required=True)
    parser.add_argument("-n", "--namespace", help="default: what kubectl -n says")
    parser.add_argument(
        "--runner-namespace",
        metavar="NAME",
        help="runners live there, for namespace=; needs -n and --runner-account",
    )
    parser.add_argument(
        "--runner-account",
        metavar="NAME",
        help="also print an account without rights, for service_account=",
    )
    parser.add_argument(
        "--no-diagnosis",
        action="store_true",
        help="leave out pods/log and events; errors then say less",
    )
    group = parser.add_argument_group("network policies")
    group.add_argument(
        "--parent-label",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="of the app's pods: admit runners to them; they must have a policy for "
        "their other traffic (may be repeated)",
    )
    group.add_argument("--port", type=_port, help="KubernetesBackend(port=...)")
    group.add_argument(
        "--lock-egress",
        action="store_true",
        help="runners reach their parents and DNS only",
    )
    group = parser.add_argument_group("admission policy (Kubernetes 1.30)")
    group.add_argument("--policy", action="store_true", help="print it; needs -n")
    group.add_argument(
        "--allow",
        action="append",
        default=[],
        metavar="KIND=NAME",
        help=f"what runners may have: {', '.join(ALLOWED_KINDS)}, the last by its "
        "image (may be repeated)",
    )


def run(args: argparse.Namespace) -> int:
    """Print the objects."""
    allow: dict[str, list[str]] = {}
    for kind, name in (_pair(word, "--allow") for word in args.allow):
        allow.setdefault(kind, []).append(name)
    access = Access(
        account=args.service_account,
        namespace=args.namespace,
        runner_namespace=args.runner_namespace,
        runner_account=args.runner_account,
        parent_labels=dict(_pair(word, "--parent-label") for word in args.parent_label),
        port=args.port,
        lock_egress=args.lock_egress,
        policy=args.policy,
        allow=allow,
        diagnosis=not args.no_diagnosis,
    )
    objects = access_objects(access)
    if args.json:
        output.as_json({"apiVersion": "v1", "kind": "List", "items": objects})
    else:
        output.as_yaml(objects)
    return 0


def _pair(word: str, option: str) -> tuple[str, str]:
    key, equals, value = word.partition("=")
    if not (key and equals and value):
        raise ConfigurationError(option, f"{word!r}: write it with = in the middle")
    return key, value


def _port(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) <= PORTS:
        raise argparse.ArgumentTypeError(f"1 to {PORTS}, not {text!r}")
    return int(text)
