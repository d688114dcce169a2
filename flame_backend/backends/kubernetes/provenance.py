"""Where each field of a runner's pod came from. Pure.

A pod is built in stages; a field came from the first stage after which it has the
value it has in the end, and kept it. Items of named lists are told apart by name, so
that a reordering is no change.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flame_backend.backends.kubernetes.merging import MERGE_KEYS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


def leaves(value: Any, path: str = "", field: str = "") -> Iterator[tuple[str, Any]]:
    """Yield path and value of everything that holds nothing else."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            plain = key.replace("-", "").isalnum()
            step = f".{key}" if plain and path else key if plain else f"[{key}]"
            yield from leaves(inner, path + step, key)
    elif isinstance(value, list) and value:
        key = MERGE_KEYS.get(field, "")
        for number, inner in enumerate(value):
            named = inner.get(key, number) if isinstance(inner, dict) else number
            yield from leaves(inner, f"{path}[{named}]")
    else:
        yield path, value


def origins(stages: Sequence[tuple[str, dict[str, Any]]]) -> dict[str, tuple[str, Any]]:
    """Return the stage and value of every leaf of the last stage, in its order.

    Args:
        stages: What was done, and the pod after it.
    """
    found: dict[str, tuple[str, Any]] = {}
    for name, pod in stages:
        now = dict(leaves(pod))
        found = {
            path: found[path]
            if path in found and _same(found[path][1], value)
            else (name, value)
            for path, value in now.items()
        }
    return found


def _same(one: Any, other: Any) -> bool:
    # To Python, 1 == True and 0 == False.
    return type(one) is type(other) and bool(one == other)


def left_behind(
    parent: dict[str, Any], container: str, pod: dict[str, Any]
) -> list[str]:
    """Return what the parent's spec has and the runner's has not, by field.

    Args:
        parent: The parent's pod.
        container: Name of its container that runners copy.
        pod: The runner's.
    """
    spec, runner = pod["spec"], pod["spec"]["containers"][0]
    missing = [f"spec.{field}" for field in parent["spec"] if field not in spec]
    beside = {item["name"] for item in spec.get("initContainers") or ()}
    for field in ("containers", "initContainers"):
        for item in parent["spec"].get(field) or ():
            where = f"spec.{field}[{item['name']}]"
            if item["name"] == container and field == "containers":
                missing += [f"{where}.{name}" for name in item if name not in runner]
            elif item["name"] not in beside:
                missing.append(where)
    volumes = {volume["name"] for volume in spec.get("volumes") or ()}
    missing += [
        f"spec.volumes[{volume['name']}]"
        for volume in parent["spec"].get("volumes") or ()
        if volume["name"] not in volumes
    ]
    # What was overwritten stands in the listing itself.
    missing += [
        f"metadata.labels[{label}]"
        for label in parent["metadata"].get("labels") or {}
        if label not in pod["metadata"]["labels"]
    ]
    return missing
