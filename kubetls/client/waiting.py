"""Wait until one object is as wanted, seen through a watch and never by polling."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote

from kubetls.client.limits import waiting_seconds
from kubetls.client.shapes import mapping, mappings
from kubetls.errors import ConfigError, WaitTimeout
from kubetls.identity.names import escaped

if TYPE_CHECKING:
    from collections.abc import Callable

    from kubetls.client.list_watch import ListWatch

    Condition = Callable[[dict[str, Any] | None], bool]

_CONDITION: Final = re.compile(r"condition=(?P<type>[^=]+)(?:=(?P<status>[^=]+))?\Z")


def field_of_name(segment: str) -> str:
    """Return the field selector for the last segment of an object's path.

    Names of roles may hold what ends a term in a selector; "a,metadata.name!=a" is one
    name, not two terms.

    Raises:
        ConfigError: There is none.
    """
    if not segment:
        raise ConfigError("path", "ends in a slash and names no object")
    return "metadata.name=" + re.sub(r"([\\,=])", r"\\\1", unquote(segment))


def condition(until: Condition | str) -> Condition:
    """Return a predicate on the object, which is None while there is none.

    Args:
        until: A predicate, or, as for `kubectl wait`, "condition=TYPE" (True),
            "condition=TYPE=STATUS", "create" or "delete".

    Raises:
        ConfigError: Another text.
    """
    if callable(until):
        return until
    if until == "delete":
        return lambda item: item is None
    if until == "create":
        return lambda item: item is not None
    found = _CONDITION.match(until)
    if found is None:
        reason = 'a predicate, "condition=TYPE[=STATUS]", "create" or "delete"'
        raise ConfigError("until", reason)
    kind, status = found["type"], found["status"] or "True"
    return lambda item: item is not None and _has(item, kind, status)


def _has(item: dict[str, Any], kind: str, status: str) -> bool:
    """Tell whether a condition has a status that is not older than the object."""
    generation = mapping(item, "metadata").get("generation")
    for entry in _conditions(item):
        if entry.get("type") != kind or entry.get("status") != status:
            continue
        observed = entry.get("observedGeneration")
        if not isinstance(observed, int) or not isinstance(generation, int):
            return True
        if observed >= generation:
            return True
    return False


def _conditions(item: dict[str, Any]) -> list[dict[str, Any]]:
    return mappings(mapping(item, "status"), "conditions")


def wait_for(
    watch: ListWatch, path: str, until: Condition | str, timeout: float
) -> dict[str, Any] | None:
    """Follow a watch of one object until it is as wanted.

    Returns:
        The object; None when it is as wanted by not being there.

    Raises:
        WaitTimeout: It was not within `timeout` seconds.
    """
    wanted = condition(until)
    ends = time.monotonic() + waiting_seconds(timeout)
    last: dict[str, Any] | None = None
    synced = False
    with watch:
        while (left := ends - time.monotonic()) > 0:
            event = watch.next(left)
            if event is None:
                break
            if event.type == "SYNCED":
                synced = True
            else:
                last = None if event.type == "DELETED" else event.object
            # Before the first full list, not seen is not the same as not there.
            if (last is not None or synced) and wanted(last):
                return last
    text = until if isinstance(until, str) else getattr(until, "__name__", "predicate")
    raise WaitTimeout(path, escaped(text, 100), timeout, _seen(last, synced=synced))


def _seen(item: dict[str, Any] | None, *, synced: bool) -> str:
    if item is None:
        return "there is no such object" if synced else "no answer came"
    status = mapping(item, "status")
    conditions = [
        f"{entry.get('type')}={entry.get('status')}" for entry in _conditions(item)
    ]
    shown = [str(status["phase"])] if "phase" in status else []
    return escaped(", ".join(shown + conditions) or "it is there", 300)
