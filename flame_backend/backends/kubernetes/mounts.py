"""Volumes, devices and who uses them, after the user has had a say. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from flame_backend.backends.kubernetes.merging import DIRECTIVE, MERGE_KEYS
from flame_backend.errors import ManifestError

if TYPE_CHECKING:
    from collections.abc import Iterator

_FIELDS: Final = ("volumeMounts", "volumeDevices")


def settle_volumes(
    spec: dict[str, Any], user: dict[str, Any], parent: dict[str, Any]
) -> None:
    """Keep the volumes that are mounted and the mounts that have a volume.

    A volume that was taken out takes its inherited mounts along; one that nothing
    mounts would still be attached, and may be one that a webhook adds again.

    Args:
        spec: The pod's, ours to change.
        user: The manifest's spec.
        parent: The parent's spec. What a callback was given and hands back is no
            wish: the mount of a token that is left behind is left behind with it.

    Raises:
        ManifestError: The manifest itself mounts what there is not.
    """
    mounted = {entry["name"] for *_, entry in _mounts(spec) if "name" in entry}
    there = [v for v in spec.get("volumes") or () if v["name"] in mounted]
    spec["volumes"] = there
    known = {volume["name"] for volume in there}
    said = {
        _place(where, field, entry)
        for where, field, entry in _mounts(user)
        if DIRECTIVE not in entry
    }
    theirs = {
        (entry["name"], entry[MERGE_KEYS[field]]) for _, field, entry in _mounts(parent)
    }
    for where, container in _containers(spec):
        for field in _FIELDS:
            entries = container.get(field)
            if entries is None:
                continue
            container[field] = [e for e in entries if e.get("name") in known]
            for entry in entries:
                name, path = entry.get("name"), entry[MERGE_KEYS[field]]
                place = _place(where, field, entry)
                if name not in known and place in said and (name, path) not in theirs:
                    reason = f"there is no volume {name!r}"
                    raise ManifestError(f"manifest.spec.{place}", reason)


def settle_claims(spec: dict[str, Any]) -> None:
    """Leave devices behind that no container asks for; each pod would get one."""
    claimed = {
        claim["name"]
        for _, container in _containers(spec)
        for claim in (container.get("resources") or {}).get("claims") or ()
    }
    claims = spec.pop("resourceClaims", None) or ()
    kept = [claim for claim in claims if claim["name"] in claimed]
    if kept:
        spec["resourceClaims"] = kept


def _mounts(spec: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield each mount with its container and field."""
    for where, container in _containers(spec):
        for field in _FIELDS:
            for entry in container.get(field) or ():
                yield where, field, entry


def _place(where: str, field: str, entry: dict[str, Any]) -> str:
    return f"{where}.{field}[{entry[MERGE_KEYS[field]]}]"


def _containers(spec: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for field in ("initContainers", "containers"):
        for container in spec.get(field) or ():
            yield f"{field}[{container['name']}]", container
