"""Who started this runner: FLAME_PARENT, a closed schema of public data.

Whoever may set a runner's environment chooses its parent; what keeps that honest is
the pin and the token, not this variable. So it is parsed strictly, to fail with words
instead of failing later, and holds no secret.
"""

from __future__ import annotations

import json
import os

from flame_backend.errors import ParentError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

VARIABLE: Final = "FLAME_PARENT"
VARIABLE_BYTES: Final = 4096
PROTOCOL_VERSION: Final = 1

PYTHONPATH_VARIABLE: Final = "FLAME_PYTHONPATH"
"""What PYTHONPATH was before the backend added this package's own folder."""

FAILSAFE_SECONDS: Final = 20.0
"""A runner that no parent welcomes within this time ends itself."""

ADDRESSES: Final = 8
"""A pod has one address of each family; a generous bound on dials."""

_PEM: Final = "-----BEGIN CERTIFICATE-----"


class Parent:
    """The process that owns this runner.

    Attributes:
        pool: Name of the pool.
        runner: Name of this runner; of the agent when it hosts several.
        transport: "fd" (inherited descriptor) or "tls" (dialled).
        fd: Descriptor of the control link, for "fd".
        pid: The parent's process, for "fd"; the agent ends with it.
        addresses: The parent's addresses, for "tls".
        port: The parent's port.
        certificate: The parent's certificate, PEM; the pin.
        token_path: File of the token that proves who this runner is.
        failsafe: Seconds without a parent after which the runner ends.
    """

    # Written out: dataclasses would import inspect, ast and dis before HELLO.
    def __init__(  # noqa: PLR0913 - the fields of the schema
        self,
        pool: str,
        runner: str,
        transport: str,
        *,
        fd: int = -1,
        pid: int = 0,
        addresses: tuple[str, ...] = (),
        port: int = 0,
        certificate: str = "",
        token_path: str = "",
        failsafe: float = FAILSAFE_SECONDS,
    ) -> None:
        self.pool: Final = pool
        self.runner: Final = runner
        self.transport: Final = transport
        self.fd: Final = fd
        self.pid: Final = pid
        self.addresses: Final = addresses
        self.port: Final = port
        self.certificate: Final = certificate
        self.token_path: Final = token_path
        self.failsafe: Final = failsafe

    def __eq__(self, other: object) -> bool:
        """Tell whether another has the same facts, as a copy from a runner has."""
        return isinstance(other, Parent) and vars(self) == vars(other)

    def __hash__(self) -> int:
        """Return the same for the same facts."""
        return hash(tuple(vars(self).values()))

    def __repr__(self) -> str:
        """Return the call that makes it."""
        facts = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
        return f"Parent({facts})"

    def encoded(self) -> str:
        """Return the variable's text."""
        facts: dict[str, Any] = {"v": PROTOCOL_VERSION}
        facts |= vars(self)
        return json.dumps(facts, separators=(",", ":"))


_remembered: Parent | None = None


def parent() -> Parent | None:
    """Return who started this runner; None in every other process."""
    return _remembered


def remember(found: Parent) -> None:
    """Keep the parent in memory; its variables leave the environment.

    Programs started by user code must not take themselves for runners, nor find
    another PYTHONPATH than the app's.
    """
    global _remembered  # noqa: PLW0603 - one process, one parent
    _remembered = found
    path = os.environ.get(PYTHONPATH_VARIABLE)
    if path:
        os.environ["PYTHONPATH"] = path
    elif path is not None:
        os.environ.pop("PYTHONPATH", None)
    for name in [name for name in os.environ if name.startswith("FLAME_")]:
        del os.environ[name]


def parse_parent(text: str) -> Parent:
    """Parse FLAME_PARENT.

    Raises:
        ParentError: It is malformed; names the field and the rule, not the content.
    """
    if len(text.encode("utf-8", "replace")) > VARIABLE_BYTES:
        msg = f"{VARIABLE} is longer than {VARIABLE_BYTES} bytes"
        raise ParentError(msg)
    try:
        facts = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError):
        msg = f"{VARIABLE} is no JSON object, or names a field twice"
        raise ParentError(msg) from None
    if not isinstance(facts, dict):
        msg = f"{VARIABLE} is no JSON object"
        raise ParentError(msg)
    version = facts.pop("v", None)
    if version != PROTOCOL_VERSION or type(version) is not int:
        msg = f"{VARIABLE}: v must be {PROTOCOL_VERSION}, the version of this runner"
        raise ParentError(msg)
    for name in facts:
        if name not in _RULES:
            msg = (
                f"{VARIABLE} has a field that version {PROTOCOL_VERSION} does not know"
            )
            raise ParentError(msg)
    return _checked(facts)


def is_of_another_version(text: str) -> bool:
    """Say whether a FLAME_PARENT that was refused is another version's."""
    try:
        version = json.loads(text).get("v")
    except (AttributeError, ValueError, RecursionError):
        return False
    return type(version) is int and version != PROTOCOL_VERSION


def _checked(facts: dict[str, Any]) -> Parent:
    transport = facts.get("transport")
    needed = _NEEDED.get(transport) if isinstance(transport, str) else None
    if needed is None:
        msg = f"{VARIABLE}: transport must be fd or tls"
        raise ParentError(msg)
    for name in needed:
        if name not in facts:
            msg = f"{VARIABLE}: {name} is missing"
            raise ParentError(msg)
    for name, value in facts.items():
        # A field that this transport does not need may hold its default.
        if name in needed and not _RULES[name][1](value):
            msg = f"{VARIABLE}: {name} must be {_RULES[name][0]}"
            raise ParentError(msg)
    known = {name: facts[name] for name in needed}
    if "addresses" in known:
        known["addresses"] = tuple(known["addresses"])
    known["failsafe"] = float(known["failsafe"])
    return Parent(**known)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError
    return found


def _text(value: Any) -> bool:
    return type(value) is str and 0 < len(value) <= 253 and value.isprintable()


def _number(value: Any, low: float, high: float) -> bool:
    return type(value) in {int, float} and low <= value <= high


def _addresses(value: Any) -> bool:
    return (
        type(value) is list and 0 < len(value) <= ADDRESSES and all(map(_text, value))
    )


_RULES: Final = {
    "pool": ("a name", _text),
    "runner": ("a name", _text),
    "transport": ("fd or tls", lambda value: value in {"fd", "tls"}),
    "fd": ("a descriptor", lambda v: type(v) is int and 0 <= v < 2**31),
    "pid": ("a process", lambda v: type(v) is int and 0 < v < 2**31),
    "addresses": (f"1 to {ADDRESSES} addresses", _addresses),
    "port": ("1 to 65535", lambda v: type(v) is int and 0 < v < 65536),
    "certificate": ("a PEM certificate", lambda v: type(v) is str and _PEM in v),
    "token_path": ("an absolute path", lambda v: _text(v) and v[0] == "/"),
    "failsafe": ("1 to 86400 seconds", lambda v: _number(v, 1, 86_400)),
}
_COMMON: Final = ("pool", "runner", "transport", "failsafe")
_NEEDED: Final = {
    "fd": (*_COMMON, "fd", "pid"),
    "tls": (*_COMMON, "addresses", "port", "certificate", "token_path"),
}
