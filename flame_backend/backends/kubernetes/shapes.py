"""The shapes of what is looked into: mappings, lists, texts. Pure.

Of a pod from the API they are certain; a manifest and a file are written by people.
"""

from __future__ import annotations

from typing import Any, Final

from flame_backend.errors import ManifestError

# A mapping of what it may hold, a list of one shape, or `str` for a text that is there.
_CONTEXT: Final = {
    "appArmorProfile": {},
    "capabilities": {"add": [str]},
    "seLinuxOptions": {},
    "seccompProfile": {},
    "sysctls": [{}],
    "windowsOptions": {},
}
RESOURCES: Final = {"claims": [{"name": str}]}
LOOKED_INTO: Final = {
    "securityContext": _CONTEXT,
    "ports": [{}],
    "resources": RESOURCES,
    "resourceClaims": [{"name": str}],
}
"""What is looked into, of a pod's spec or a container."""

_CONTAINER: Final = LOOKED_INTO | {
    "name": str,
    "image": str,
    "env": [{"name": str, "valueFrom": {"fieldRef": {}}}],
    "volumeMounts": [{"name": str, "mountPath": str}],
    "volumeDevices": [{"name": str, "devicePath": str}],
}
_NAMED: Final = [{"name": str}]
PARENT: Final = {
    "metadata": {"name": str, "uid": str, "labels": {}},
    "spec": LOOKED_INTO
    | {
        "containers": [_CONTAINER],
        "initContainers": [_CONTAINER],
        "volumes": [{"name": str, "projected": {"sources": [{}]}}],
        "imagePullSecrets": [{}],  # without a name, the API only warns of them
        "hostAliases": [{"ip": str}],
    },
    "status": {"containerStatuses": _NAMED, "podIPs": [{"ip": str}]},
}
"""What is taken from the parent's pod."""


def check_shape(value: Any, shape: Any, where: str) -> None:
    """Check that a value is of a shape; what is absent or None is, but for texts.

    Raises:
        ManifestError: Names the first field that is not.
    """
    if shape is str:
        if not isinstance(value, str) or not value:
            raise ManifestError(where, "must be text")
    elif value is None:
        return
    elif isinstance(shape, list):
        if not isinstance(value, list):
            raise ManifestError(where, "must be a list")
        for number, item in enumerate(value):
            place = f"{where}[{number}]"
            if item is None:
                raise ManifestError(place, "must not be null")
            check_shape(item, shape[0], place)
    else:
        if not isinstance(value, dict):
            raise ManifestError(where, "must be a mapping")
        for field, inner in shape.items():
            check_shape(value.get(field), inner, f"{where}.{field}")
