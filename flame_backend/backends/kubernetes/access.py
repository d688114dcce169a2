"""What an app's account needs to run runners, and what keeps it to that.

Pure: names in, Kubernetes objects out. `flame-backend init` prints them, deploy/ holds
them for the example app, and a test compares both with what the code really asks for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from flame_backend.backends.kubernetes.policy import admission_policy
from flame_backend.backends.kubernetes.refusals import LABEL
from flame_backend.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

NAME: Final = "flame-parent"
"""Name of the Role and its binding."""

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

RUNNERS: Final = {"matchExpressions": [{"key": f"{LABEL}/pool", "operator": "Exists"}]}
"""Selects every runner of a namespace. Anybody who creates pods can forge it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """Whose access it is and how far it goes.

    Attributes:
        account: The app's service account; it exists already.
        namespace: Where the app lives; None leaves it to `kubectl -n`.
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
    made = [role(access), role_binding(access)]
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
        )
    elif access.allow:
        raise ConfigurationError("--allow", "says what --policy lets through: give it")
    return made


def role(access: Access) -> dict[str, Any]:
    """Return the rights of a parent: pods of its own namespace, and to see why."""
    rules = RULES + (DIAGNOSIS_RULES if access.diagnosis else ())
    return {
        "apiVersion": f"{_RBAC}/v1",
        "kind": "Role",
        "metadata": _metadata(access, NAME),
        "rules": [{key: list(value) for key, value in rule.items()} for rule in rules],
    }


def role_binding(access: Access) -> dict[str, Any]:
    """Return the binding of the role to the app's account."""
    subject = {"kind": "ServiceAccount", "name": access.account}
    if access.namespace:
        subject["namespace"] = access.namespace
    return {
        "apiVersion": f"{_RBAC}/v1",
        "kind": "RoleBinding",
        "metadata": _metadata(access, NAME),
        "roleRef": {"apiGroup": _RBAC, "kind": "Role", "name": NAME},
        "subjects": [subject],
    }


def runner_account(access: Access) -> dict[str, Any]:
    """Return an account without any right, and without a token for the API."""
    assert access.runner_account is not None
    return {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": _metadata(access, access.runner_account),
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
            access, "flame-runner-ingress", RUNNERS, policyTypes=["Ingress"]
        )
    ]
    if access.parent_labels:
        parents = {"matchLabels": dict(access.parent_labels)}
        ingress = [{"from": [{"podSelector": RUNNERS}], **_ports(access)}]
        made.append(
            _network_policy(
                access,
                "flame-parent-ingress",
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
    return _network_policy(
        access,
        "flame-runner-egress",
        RUNNERS,
        policyTypes=["Egress"],
        egress=[{"to": [{"podSelector": parents}], **_ports(access)}, {"ports": names}],
    )


def _ports(access: Access) -> dict[str, Any]:
    if access.port is None:
        return {}
    return {"ports": [{"protocol": "TCP", "port": access.port}]}


def _network_policy(
    access: Access, name: str, pods: dict[str, Any], **spec: Any
) -> dict[str, Any]:
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": _metadata(access, name),
        "spec": {"podSelector": pods, **spec},
    }


def _metadata(access: Access, name: str) -> dict[str, Any]:
    if access.namespace:
        return {"name": name, "namespace": access.namespace}
    return {"name": name}
