"""What an app's account needs to run runners, and what keeps it to that.

Pure: names in, Kubernetes objects out. `flame-backend init` prints them, deploy/ holds
them for the example app, and a test compares both with what the code really asks for.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from flame_backend.backends.kubernetes.policy import admission_policy
from flame_backend.backends.kubernetes.refusals import LABEL
from flame_backend.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

NAME: Final = "flame-parent"
"""First word of the name of the Role and its binding; the account follows."""

# RFC 1123 subdomain.
_OBJECT_NAME: Final = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?\Z")

_RBAC: Final = "rbac.authorization.k8s.io"

POD_VERBS: Final = ("create", "get", "list", "watch", "delete")

RULES: Final[tuple[dict[str, Any], ...]] = (
    {"apiGroups": [""], "resources": ["pods"], "verbs": list(POD_VERBS)},
)
"""Without these there is no runner."""

DIAGNOSIS_RULES: Final[tuple[dict[str, Any], ...]] = (
    {"apiGroups": [""], "resources": ["pods/log"], "verbs": ["get"]},
    {"apiGroups": [""], "resources": ["events"], "verbs": ["list"]},
)
"""Without these errors say less: no last output, no reason of a stuck volume."""

LEASE_RULES: Final[tuple[dict[str, Any], ...]] = (
    {
        "apiGroups": ["coordination.k8s.io"],
        "resources": ["leases"],
        "verbs": ["create", "list", "patch", "delete"],
    },
)
"""With runners in a namespace of their own: what owns them there."""

SELF_RULES: Final[tuple[dict[str, Any], ...]] = (
    {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list"]},
)
"""And in the app's: a parent finds its own pod."""

RUNNERS: Final = {"matchExpressions": [{"key": f"{LABEL}/pool", "operator": "Exists"}]}
"""Selects every runner of a namespace. Anybody who creates pods can forge it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """Whose access it is and how far it goes.

    Attributes:
        account: The app's service account; it exists already.
        namespace: Where the app lives; None leaves it to `kubectl -n`.
        runner_namespace: Where its runners live; None for the app's own namespace.
        runner_account: An account to make for runners; None for the app's own.
        parent_labels: Labels of the app's pods, for network policies.
        port: The port parents listen on; None for any.
        lock_egress: Runners reach their parents and names only.
        policy: Add the admission policy.
        allow: What the policy lets runners have, by kind: secret, claim, pull-secret,
            audience, init-container (by image).
        diagnosis: Let errors carry events and logs.
    """

    account: str
    namespace: str | None = None
    runner_namespace: str | None = None
    runner_account: str | None = None
    parent_labels: Mapping[str, str] | None = None
    port: int | None = None
    lock_egress: bool = False
    policy: bool = False
    allow: Mapping[str, Sequence[str]] | None = None
    diagnosis: bool = True


def access_objects(access: Access) -> list[dict[str, Any]]:
    """Return everything to apply, in that order.

    Raises:
        ConfigurationError: Options that need another one.
    """
    _check_names(access)
    elsewhere = access.runner_namespace is not None
    if elsewhere and not (access.namespace and access.runner_account):
        reason = "runners there need an account of theirs: give -n and --runner-account"
        raise ConfigurationError("--runner-namespace", reason)
    made = [role(access), role_binding(access)]
    if elsewhere:
        made += _own_pods(access)
    if access.runner_account:
        made.append(runner_account(access))
    made += network_policies(access)
    if access.policy:
        if not access.namespace:
            reason = "the policy names the account's namespace: give --namespace"
            raise ConfigurationError("--policy", reason)
        made += admission_policy(
            access.namespace,
            access.account,
            access.runner_account or access.account,
            access.allow or {},
            access.runner_namespace,
        )
    elif access.allow:
        raise ConfigurationError("--allow", "says what --policy lets through: give it")
    return made


def _check_names(access: Access) -> None:
    """Refuse what names nothing, as a variable that a script has not set."""
    for option, name in (
        ("--service-account", access.account),
        ("--namespace", access.namespace),
        ("--runner-namespace", access.runner_namespace),
        ("--runner-account", access.runner_account),
    ):
        if name is not None and not _OBJECT_NAME.match(name):
            raise ConfigurationError(option, f"{name!r} is no name of an object")


def role(access: Access) -> dict[str, Any]:
    """Return the rights of a parent: pods of its own namespace, and to see why."""
    rules = RULES + (DIAGNOSIS_RULES if access.diagnosis else ())
    if access.runner_namespace:
        rules += LEASE_RULES
    return _role(_among_runners(access, _own_name(access, NAME)), rules)


def role_binding(access: Access) -> dict[str, Any]:
    """Return the binding of the role to the app's account."""
    return _binding(access, _among_runners(access, _own_name(access, NAME)))


def _own_pods(access: Access) -> list[dict[str, Any]]:
    """Return what a parent may do at home when its runners are elsewhere."""
    metadata = _metadata(access, _own_name(access, f"{NAME}-self"))
    return [_role(metadata, SELF_RULES), _binding(access, dict(metadata))]


def _role(
    metadata: dict[str, Any], rules: Sequence[Mapping[str, Sequence[str]]]
) -> dict[str, Any]:
    return {
        "apiVersion": f"{_RBAC}/v1",
        "kind": "Role",
        "metadata": metadata,
        "rules": [{key: list(value) for key, value in rule.items()} for rule in rules],
    }


def _binding(access: Access, metadata: dict[str, Any]) -> dict[str, Any]:
    subject = {"kind": "ServiceAccount", "name": access.account}
    if access.namespace:
        subject["namespace"] = access.namespace
    return {
        "apiVersion": f"{_RBAC}/v1",
        "kind": "RoleBinding",
        "metadata": metadata,
        "roleRef": {"apiGroup": _RBAC, "kind": "Role", "name": metadata["name"]},
        "subjects": [subject],
    }


def runner_account(access: Access) -> dict[str, Any]:
    """Return an account without any right, and without a token for the API."""
    assert access.runner_account is not None
    return {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": _among_runners(access, access.runner_account),
        "automountServiceAccountToken": False,
    }


def network_policies(access: Access) -> list[dict[str, Any]]:
    """Return the network policies: a second line, for clusters that enforce them.

    Runners dial and never listen. A policy for parents admits runners; for pods that
    no other policy selects it also shuts everything else out, so it is made only
    when the app's labels are given.
    """
    made = [
        _network_policy(
            _among_runners(access, "flame-runner-ingress"),
            RUNNERS,
            policyTypes=["Ingress"],
        )
    ]
    if access.parent_labels:
        parents = {"matchLabels": dict(access.parent_labels)}
        peers = _peers(RUNNERS, access.runner_namespace)
        ingress = [{"from": [peers], **_ports(access)}]
        made.append(
            _network_policy(
                _metadata(access, _own_name(access, f"{NAME}-ingress")),
                parents,
                policyTypes=["Ingress"],
                ingress=ingress,
            )
        )
    if access.lock_egress:
        made.append(_egress(access))
    return made


def _egress(access: Access) -> dict[str, Any]:
    if not access.parent_labels:
        reason = "runners must reach their parents: give --parent-label"
        raise ConfigurationError("--lock-egress", reason)
    parents = {"matchLabels": dict(access.parent_labels)}
    names = [{"protocol": protocol, "port": 53} for protocol in ("UDP", "TCP")]
    home = access.namespace if access.runner_namespace else None
    return _network_policy(
        _among_runners(access, _own_name(access, "flame-runner-egress")),
        RUNNERS,
        policyTypes=["Egress"],
        egress=[{"to": [_peers(parents, home)], **_ports(access)}, {"ports": names}],
    )


def _peers(pods: dict[str, Any], namespace: str | None) -> dict[str, Any]:
    """Return pods of a namespace, or of the policy's own."""
    if namespace is None:
        return {"podSelector": pods}
    names = {"matchLabels": {"kubernetes.io/metadata.name": namespace}}
    return {"namespaceSelector": names, "podSelector": pods}


def _ports(access: Access) -> dict[str, Any]:
    if access.port is None:
        return {}
    return {"ports": [{"protocol": "TCP", "port": access.port}]}


def _network_policy(
    metadata: dict[str, Any], pods: dict[str, Any], **spec: Any
) -> dict[str, Any]:
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": metadata,
        "spec": {"podSelector": pods, **spec},
    }


def _own_name(access: Access, name: str) -> str:
    """Return a name for what is this account's alone.

    `kubectl apply` of the same for another app of the namespace would replace it, and
    take its rights from the first one.
    """
    home = f"{access.namespace}." if access.runner_namespace else ""
    return f"{name}.{home}{access.account}"


def _among_runners(access: Access, name: str) -> dict[str, Any]:
    if access.runner_namespace:
        return {"name": name, "namespace": access.runner_namespace}
    return _metadata(access, name)


def _metadata(access: Access, name: str) -> dict[str, Any]:
    if access.namespace:
        return {"name": name, "namespace": access.namespace}
    return {"name": name}
