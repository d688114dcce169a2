"""Lay one manifest over another as kubectl's strategic merge does, with None deleting.

Mappings are merged key by key, the lists below item by item, every other list is
replaced. Pure: what was passed in is never changed, and nothing of it is shared.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from flame_backend.errors import ManifestError

if TYPE_CHECKING:
    from collections.abc import Iterator

MERGE_KEYS: Final = {
    "containers": "name",
    "initContainers": "name",
    "env": "name",
    "volumes": "name",
    "volumeMounts": "mountPath",
    "volumeDevices": "devicePath",
    "imagePullSecrets": "name",
    "hostAliases": "ip",
}
"""Lists that are merged item by item, and what tells their items apart."""

# An item of these has one source (value or valueFrom, secret or configMap): another
# one replaces it. kubectl calls it retainKeys.
_WHOLE: Final = frozenset({"env", "volumes"})

# Mappings whose keys are the user's words: a label may be called env.
_WORDS: Final = frozenset(
    {"labels", "annotations", "matchLabels", "nodeSelector", "volumeAttributes"}
)

DIRECTIVE: Final = "$patch"
"""kubectl's own word: `$patch: delete` in an item takes it out of its list."""

DEPTH: Final = 64
"""Deeper than any pod is; a mapping that holds itself ends here."""

VALUES: Final = 1_000_000
"""More than any list of pods has; a few aliases of YAML can stand for billions."""


def plain(value: Any, where: str) -> Any:
    """Return a copy of what JSON can say.

    Args:
        value: The user's mapping, list or scalar.
        where: Its path, for errors.

    Raises:
        ManifestError: Something in it has no JSON; names its path.
    """
    return _plain(value, where, DEPTH, itertools.count(1))


def _plain(value: Any, where: str, depth: int, count: Iterator[int]) -> Any:
    if depth < 0:
        raise ManifestError(where, f"is nested more than {DEPTH} levels deep")
    if next(count) > VALUES:
        raise ManifestError(where, f"is the {VALUES}th value, and not the last")
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise ManifestError(where, f"the key {key!r} is no text; quote it")
        return {
            key: _plain(inner, f"{where}.{key}", depth - 1, count)
            for key, inner in value.items()
        }
    if isinstance(value, list | tuple):
        return [
            _plain(inner, f"{where}[{number}]", depth - 1, count)
            for number, inner in enumerate(value)
        ]
    if isinstance(value, float) and not math.isfinite(value):
        raise ManifestError(where, f"{value} is no number in JSON")
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ManifestError(where, "is a number of more than 64 bits")
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise ManifestError(
        where, f"a {type(value).__name__} has no JSON; write it as text"
    )


def merged(base: Any, patch: Any, where: str, field: str = "") -> Any:
    """Return base with the patch laid over it; both come from `plain`.

    Args:
        base: What is there; None when nothing is.
        patch: What the user wants; None in a mapping deletes.
        where: Path of the patch, for errors.
        field: What it is the value of; "" for the whole.

    Raises:
        ManifestError: The patch has another shape than what it changes.
    """
    if not isinstance(patch, dict):
        if isinstance(base, dict):
            raise ManifestError(where, "must be a mapping")
        return patch
    if DIRECTIVE in patch:
        reason = "is for items of lists; None deletes a field"
        raise ManifestError(f"{where}.{DIRECTIVE}", reason)
    result = dict(base) if isinstance(base, dict) else {}
    for key, value in patch.items():
        place = f"{where}.{key}"
        if value is None:
            result.pop(key, None)
        elif key in MERGE_KEYS and field not in _WORDS:
            result[key] = _merged_list(result.get(key) or [], value, key, place)
        else:
            result[key] = merged(result.get(key), value, place, key)
    return result


def _merged_list(base: list[Any], patch: Any, field: str, where: str) -> list[Any]:
    """Merge by key; what is there keeps its place, as $(VAR) looks back only."""
    if not isinstance(patch, list):
        raise ManifestError(where, "must be a list")
    key = MERGE_KEYS[field]
    result = {item[key]: item for item in base}
    said: set[str] = set()
    for number, item in enumerate(patch):
        if not isinstance(item, dict) or not isinstance(item.get(key), str):
            raise ManifestError(f"{where}[{number}]", f"needs a {key}")
        name, place = item[key], f"{where}[{item[key]}]"
        # Of variables the last one counts, everywhere in Kubernetes.
        if name in said and field != "env":
            raise ManifestError(place, "stands twice")
        if _deletes(item, key, field, place):
            # Another of that name may follow, and has nothing of the old one then.
            result.pop(name, None)
            continue
        said.add(name)
        if field in _WHOLE:
            result[name] = merged(None, item, place)
        else:
            result[name] = merged(result.get(name), item, place)
    return list(result.values())


def _deletes(item: dict[str, Any], key: str, field: str, where: str) -> bool:
    if DIRECTIVE in item:
        if item[DIRECTIVE] != "delete":
            raise ManifestError(f"{where}.{DIRECTIVE}", "only delete is known")
        return True
    said = [value for name, value in item.items() if name != key]
    # {name: X, value: null} is how one would write it; as a variable it means nothing.
    return field in _WHOLE and bool(said) and all(value is None for value in said)
