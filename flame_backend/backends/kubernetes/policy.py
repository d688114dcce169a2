"""The admission policy: what an app's account may make of "create pods".

Who may create pods may mount any Secret and use any account of the namespace. This
ValidatingAdmissionPolicy (Kubernetes 1.30) takes that away from the app's account and
leaves it its runners. Pure: names in, objects out. Rule 18 of the security review.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from flame_backend.backends.kubernetes.refusals import LABEL
from flame_backend.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ALLOWED_KINDS: Final = (
    "secret",
    "claim",
    "pull-secret",
    "audience",
    "init-container",
)
"""What an operator may let through: objects by name, an init container by its image, a
cloud's identity token (injected by its webhook before the policy looks) by audience."""

_API: Final = "admissionregistration.k8s.io/v1"

# Kubernetes' words in CEL; all containers of a pod, of whichever kind.
_CONTAINERS: Final = (
    "object.spec.containers + "
    "(has(object.spec.initContainers) ? object.spec.initContainers : [])"
)
_VOLUMES: Final = "has(object.spec.volumes) ? object.spec.volumes : []"


class Rule(NamedTuple):
    """One thing that must hold of a pod that the account creates."""

    name: str
    message: str
    expression: str


def create_rules(account: str, allow: Mapping[str, Sequence[str]]) -> list[Rule]:
    """Return the rules for new pods, each for one way out of being a runner.

    Args:
        account: The service account that runners have.
        allow: What else is let through, by kind.
    """
    secret, claim = _listed(allow, "secret"), _listed(allow, "claim")
    pull, images = _listed(allow, "pull-secret"), _listed(allow, "init-container")
    audience = _listed(allow, "audience")
    token = f"'{LABEL}/'"
    return [
        Rule(
            "label",
            f"a runner has the label {LABEL}/pool",
            f"has(object.metadata.labels) && '{LABEL}/pool' in object.metadata.labels",
        ),
        Rule(
            "account",
            f"a runner's service account is {account}",
            f"has(object.spec.serviceAccountName) && "
            f"object.spec.serviceAccountName == {_text(account)}",
        ),
        Rule(
            "api-token",
            "a runner has no token for the API: automountServiceAccountToken is false",
            "has(object.spec.automountServiceAccountToken) && "
            "!object.spec.automountServiceAccountToken",
        ),
        Rule(
            "restart",
            "a runner is never restarted: restartPolicy is Never",
            "object.spec.restartPolicy == 'Never'",
        ),
        Rule(
            "node",
            "a runner goes through the scheduler: nodeName is not set",
            "!has(object.spec.nodeName) || object.spec.nodeName == ''",
        ),
        Rule(
            "host",
            "a runner has no namespace of its node: hostNetwork, hostPID, hostIPC",
            "!(has(object.spec.hostNetwork) && object.spec.hostNetwork) && "
            "!(has(object.spec.hostPID) && object.spec.hostPID) && "
            "!(has(object.spec.hostIPC) && object.spec.hostIPC)",
        ),
        Rule(
            "priority",
            "a runner does not outrank the cluster's own pods: priorityClassName",
            "!has(object.spec.priorityClassName) || "
            "!object.spec.priorityClassName.startsWith('system-')",
        ),
        Rule(
            "privileged",
            "no container of a runner is privileged",
            "variables.containers.all(c, !has(c.securityContext) || "
            "!has(c.securityContext.privileged) || !c.securityContext.privileged)",
        ),
        Rule(
            "host-port",
            "no container of a runner takes a port of its node: hostPort",
            "variables.containers.all(c, !has(c.ports) || c.ports.all(p, "
            "!has(p.hostPort) || p.hostPort == 0))",
        ),
        Rule(
            "volumes",
            "a runner's volumes are emptyDir, configMap, downwardAPI, projected, or a "
            "claim or Secret that the policy lists",
            "variables.volumes.all(v, has(v.emptyDir) || has(v.configMap) || "
            "has(v.downwardAPI) || has(v.projected) || "
            "(has(v.persistentVolumeClaim) && "
            f"v.persistentVolumeClaim.claimName in {claim}) || "
            f"(has(v.secret) && v.secret.secretName in {secret}))",
        ),
        Rule(
            "projected",
            "a projected volume holds configMap, downwardAPI, a Secret that the policy "
            f"lists, or a token whose audience begins with {LABEL}/ or is listed",
            "variables.volumes.all(v, !has(v.projected) || "
            "!has(v.projected.sources) || v.projected.sources.all(s, "
            "has(s.configMap) || has(s.downwardAPI) || "
            f"(has(s.secret) && s.secret.name in {secret}) || "
            "(has(s.serviceAccountToken) && has(s.serviceAccountToken.audience) && "
            f"(s.serviceAccountToken.audience.startsWith({token}) || "
            f"s.serviceAccountToken.audience in {audience}))))",
        ),
        Rule(
            "env-secret",
            "env takes no Secret that the policy does not list",
            "variables.containers.all(c, !has(c.env) || c.env.all(e, "
            "!has(e.valueFrom) || !has(e.valueFrom.secretKeyRef) || "
            f"e.valueFrom.secretKeyRef.name in {secret}))",
        ),
        Rule(
            "env-from-secret",
            "envFrom takes no Secret that the policy does not list",
            "variables.containers.all(c, !has(c.envFrom) || c.envFrom.all(e, "
            f"!has(e.secretRef) || e.secretRef.name in {secret}))",
        ),
        Rule(
            "pull-secret",
            "imagePullSecrets names none that the policy does not list",
            "!has(object.spec.imagePullSecrets) || "
            f"object.spec.imagePullSecrets.all(s, s.name in {pull})",
        ),
        Rule(
            "init-container",
            "initContainers run no image that the policy does not list",
            "!has(object.spec.initContainers) || "
            f"object.spec.initContainers.all(c, c.image in {images})",
        ),
    ]


def admission_policy(
    namespace: str,
    account: str,
    runner_account: str,
    allow: Mapping[str, Sequence[str]],
    runner_namespace: str | None = None,
) -> list[dict[str, Any]]:
    """Return the policy for one account, and its binding to the runners' namespace.

    Raises:
        ConfigurationError: An unknown kind is to be let through.
    """
    for kind in allow:
        if kind not in ALLOWED_KINDS:
            reason = f"{kind!r} is no kind; {', '.join(ALLOWED_KINDS)} are"
            raise ConfigurationError("--allow", reason)
    metadata = {"name": f"{LABEL}.{namespace}.{account}"}
    return [
        {
            "apiVersion": _API,
            "kind": "ValidatingAdmissionPolicy",
            "metadata": metadata,
            "spec": _spec(namespace, account, create_rules(runner_account, allow)),
        },
        {
            "apiVersion": _API,
            "kind": "ValidatingAdmissionPolicyBinding",
            "metadata": dict(metadata),
            "spec": {
                "policyName": metadata["name"],
                "validationActions": ["Deny"],
                "matchResources": {
                    "namespaceSelector": {
                        "matchLabels": {
                            "kubernetes.io/metadata.name": runner_namespace or namespace
                        }
                    }
                },
            },
        },
    ]


def _spec(namespace: str, account: str, rules: list[Rule]) -> dict[str, Any]:
    user = f"system:serviceaccount:{namespace}:{account}"
    matched = {
        "apiGroups": [""],
        "apiVersions": ["v1"],
        "operations": ["CREATE", "DELETE"],
        "resources": ["pods"],
    }
    # Of a deleted pod there is no object, of a created one no oldObject.
    validations = [
        {
            "expression": f"request.operation == 'DELETE' || ({rule.expression})",
            "message": f"{rule.name}: {rule.message}",
        }
        for rule in rules
    ]
    deleted = (
        "request.operation == 'CREATE' || (has(oldObject.metadata.labels) && "
        f"'{LABEL}/pool' in oldObject.metadata.labels)"
    )
    message = "delete: the account deletes runners and nothing else"
    validations.append({"expression": deleted, "message": message})
    return {
        "failurePolicy": "Fail",
        "matchConstraints": {"resourceRules": [matched]},
        "matchConditions": [
            {
                "name": "parent",
                "expression": f"request.userInfo.username == {_text(user)}",
            }
        ],
        "variables": [
            {"name": "containers", "expression": _on_create(_CONTAINERS)},
            {"name": "volumes", "expression": _on_create(_VOLUMES)},
        ],
        "validations": validations,
    }


def _on_create(expression: str) -> str:
    return f"request.operation == 'DELETE' ? [] : ({expression})"


def _listed(allow: Mapping[str, Sequence[str]], kind: str) -> str:
    return f"[{', '.join(_text(name) for name in allow.get(kind, ()))}]"


def _text(value: str) -> str:
    """Return a string of CEL; its escapes are JSON's, but for the surrogates."""
    if any(ord(char) > 0x7E or ord(char) < 0x20 for char in value):
        raise ConfigurationError("--allow", f"{value!r} is no name of an object")
    return json.dumps(value)
