"""What a cluster put into the parent's pod: its tokens, and what belongs to them.

A runner gets one token, ours. Everything that gives the parent an identity is left
behind; the webhooks that injected it inject it again, for the runner's own account.
Rule 19 of the security review.
"""

from __future__ import annotations

from typing import Any, Final

_API_FOLDER: Final = "/var/run/secrets/kubernetes.io/serviceaccount"
_API_VOLUME: Final = "kube-api-access-"

# A second injection of the same name would make the pod invalid.
_INJECTED_VOLUMES: Final = frozenset({"vault-secrets"})

# Variables injected beside a token's volume that hold no path into it. Which of them
# the app set itself cannot be told, and the webhooks never replace one that is there.
_COMPANIONS: Final = {
    "aws-iam-token": ("AWS_ROLE_ARN", "AWS_STS_REGIONAL_ENDPOINTS"),
    "eks-pod-identity-token": ("AWS_CONTAINER_CREDENTIALS_FULL_URI",),
    "azure-identity-token": (
        "AZURE_CLIENT_ID",
        "AZURE_TENANT_ID",
        "AZURE_AUTHORITY_HOST",
    ),
}


def strip_injected(spec: dict[str, Any], containers: list[dict[str, Any]]) -> None:
    """Take tokens out of a copied pod, with the mounts and variables that lead there.

    Args:
        spec: Ours to change; its volumes are looked through.
        containers: Ours to change; mounts and variables are looked through.
    """
    dropped = _drop_volumes(spec, _api_volumes(containers))
    variables = {name for volume in dropped for name in _COMPANIONS.get(volume, ())}
    for container in containers:
        mounts = container.get("volumeMounts") or []
        folders = [m["mountPath"] for m in mounts if m["name"] in dropped]
        container["volumeMounts"] = [m for m in mounts if m["name"] not in dropped]
        container["env"] = [
            entry
            for entry in container.get("env") or ()
            if entry["name"] not in variables
            and not _leads_into(str(entry.get("value") or ""), folders)
        ]


def _api_volumes(containers: list[dict[str, Any]]) -> set[str]:
    """Return volumes mounted where API tokens are; before 1.22 those were Secrets."""
    return {
        mount["name"]
        for container in containers
        for mount in container.get("volumeMounts") or ()
        if mount["mountPath"].rstrip("/") == _API_FOLDER
    }


def _drop_volumes(spec: dict[str, Any], more: set[str]) -> set[str]:
    dropped: set[str] = set()
    kept = []
    for volume in spec.get("volumes") or ():
        name = volume["name"]
        sources = (volume.get("projected") or {}).get("sources")
        left = [item for item in sources or () if "serviceAccountToken" not in item]
        empty = bool(sources) and not left
        if empty or name.startswith(_API_VOLUME) or name in _INJECTED_VOLUMES | more:
            dropped.add(name)
            continue
        if sources is not None:
            volume["projected"]["sources"] = left
        kept.append(volume)
    spec["volumes"] = kept
    return dropped


def _leads_into(value: str, folders: list[str]) -> bool:
    roots = [folder.rstrip("/") for folder in folders]
    return any(value == root or value.startswith(f"{root}/") for root in roots)
