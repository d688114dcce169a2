"""What an answer holds, where a server may write anything: mappings, or none. Pure.

Custom resources and aggregated servers have shapes of their own.
"""

from __future__ import annotations

from typing import Any


def mapping(holder: dict[str, Any], field: str) -> dict[str, Any]:
    """Return the mapping in a field; {} where there is none, or another shape."""
    found = holder.get(field)
    return found if isinstance(found, dict) else {}


def mappings(holder: dict[str, Any], field: str) -> list[dict[str, Any]]:
    """Return the mappings that a field lists; what is none is passed over."""
    found = holder.get(field)
    entries = found if isinstance(found, list) else []
    return [entry for entry in entries if isinstance(entry, dict)]
