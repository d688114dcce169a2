"""Who started this runner: FLAME_PARENT, a closed schema of public data."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, fields
from typing import Any, Final

from flame_backend.errors import ParentError

VARIABLE: Final = "FLAME_PARENT"
VARIABLE_BYTES: Final = 4096
PROTOCOL_VERSION: Final = 1

FAILSAFE_SECONDS: Final = 20.0
"""A runner that no parent welcomes within this time ends itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parent:
    """The process that owns this runner.

    Attributes:
        pool: Name of the pool.
        runner: Name of this runner.
        transport: "fd" (inherited descriptor) or "tls" (dialled).
        fd: Descriptor of the control link, for "fd".
        addresses: The parent's addresses, for "tls".
        port: The parent's port.
        certificate: The parent's certificate, PEM; the pin.
        token_path: File of the token that proves who this runner is.
        failsafe: Seconds without a parent after which the runner ends.
    """

    pool: str
    runner: str
    transport: str
    fd: int = -1
    addresses: tuple[str, ...] = ()
    port: int = 0
    certificate: str = ""
    token_path: str = ""
    failsafe: float = FAILSAFE_SECONDS

    def encoded(self) -> str:
        """Return the variable's text."""
        facts: dict[str, Any] = {"v": PROTOCOL_VERSION}
        facts |= {field.name: getattr(self, field.name) for field in fields(self)}
        return json.dumps(facts, separators=(",", ":"))


_remembered: Parent | None = None


def parent() -> Parent | None:
    """Return who started this runner; None in every other process."""
    return _remembered


def remember(found: Parent) -> None:
    """Keep the parent in memory; its variable leaves the environment.

    Programs started by user code must not take themselves for runners.
    """
    global _remembered  # noqa: PLW0603 - one process, one parent
    _remembered = found
    for name in [name for name in os.environ if name.startswith("FLAME_")]:
        del os.environ[name]


def parse_parent(text: str) -> Parent:
    """Parse FLAME_PARENT.

    Raises:
        ParentError: It is malformed; names the rule, not the content.
    """
    if len(text.encode("utf-8", "replace")) > VARIABLE_BYTES:
        msg = f"{VARIABLE} is longer than {VARIABLE_BYTES} bytes"
        raise ParentError(msg)
    try:
        facts = json.loads(text)
        version = facts.pop("v")
        facts["addresses"] = tuple(facts.get("addresses", ()))
        found = Parent(**facts)
    except (ValueError, KeyError, TypeError, AttributeError):
        msg = f"{VARIABLE} is not what a parent of this version writes"
        raise ParentError(msg) from None
    if version != PROTOCOL_VERSION:
        msg = f"{VARIABLE} has version {version}, this runner speaks {PROTOCOL_VERSION}"
        raise ParentError(msg)
    for field in fields(Parent):
        value, default = getattr(found, field.name), field.default
        expected = type(default) if isinstance(default, int | float) else None
        if expected is not None and not isinstance(value, int | float):
            msg = f"{VARIABLE}: {field.name} must be a number"
            raise ParentError(msg)
    if found.transport not in {"fd", "tls"}:
        msg = f"{VARIABLE}: transport must be fd or tls"
        raise ParentError(msg)
    return found
