"""Functions and their arguments on the way to a runner.

Parent to runner is trusted: running the parent's code is what a runner is for. Plain
pickle carries functions of importable modules by reference; whatever names `__main__`,
and lambdas, go by value through cloudpickle (`main_script`).

Large `bytes` are written as they are: the pickler hands them to a collector that keeps
the object, and the runner reads them from the link straight into their final place.
"""

from __future__ import annotations

import pickle
from types import FunctionType

from flame_backend.errors import NotSerializable, PayloadTooLarge

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Final

    from flame_backend.wire.link import Body

PROTOCOL: Final = 5
_MAIN: Final = b"__main__"

_NUMBERS: Final = frozenset((type(None), bool, int, float))
_TEXTS: Final = frozenset((str, bytes))
_SMALL: Final = 4096
"""Up to here a copy costs less than a file to write to."""


class _Parts(list[bytes]):
    """A pickler's file that keeps large buffers as the objects they are.

    C pickle writes a large bytes object by itself, unframed, and everything small in
    frames. Nothing of this class runs as Python code.
    """

    __slots__ = ()
    write = list.append


def dump_call(
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    limit: int,
) -> list[bytes]:
    """Pickle a call.

    Args:
        function: What to run.
        args: Positional arguments.
        kwargs: Keyword arguments.
        limit: Largest request in bytes (max_payload).

    Returns:
        The parts of the request's body, in order.

    Raises:
        NotSerializable: Names the argument that cannot be sent.
        PayloadTooLarge: The request is larger than the limit; nothing was sent.
    """
    # Bound methods and partials bring along what they hold.
    if type(function) is FunctionType and not kwargs and (not args or _are_small(args)):
        try:
            data = pickle.dumps((function, args, kwargs), PROTOCOL)
        except Exception:  # noqa: BLE001, S110 - tried once more, and told, below
            pass
        else:
            if _MAIN not in data and len(data) <= limit:
                return [data]
    try:
        parts = _pickled((function, args, kwargs))
    except Exception as error:
        from flame_backend.wire.complaints import call_complaint

        told = call_complaint(function, args, kwargs, error, _can_be_sent)
        raise NotSerializable(told) from error
    size = sum(map(len, parts))
    if size > limit:
        raise PayloadTooLarge("request", size, limit)
    return parts


def dump_object(value: object) -> bytes:
    """Pickle something for a runner, main script's classes and functions by value.

    Raises:
        NotSerializable: It cannot be sent.
    """
    try:
        return b"".join(_pickled(value))
    except Exception as error:
        msg = f"{type(value).__name__} cannot be sent to a runner: {error}"
        raise NotSerializable(msg) from error


def _pickled(value: object) -> list[bytes]:
    """Pickle by reference where that serves, else with the main script's by value."""
    try:
        parts = _collected(pickle.Pickler, value)
        if not _mentions_main(parts):
            return parts
    except (pickle.PicklingError, AttributeError, TypeError):
        pass
    from flame_backend.wire import main_script

    return _collected(main_script.Pickler, value)


def _collected(kind: Callable[..., pickle.Pickler], value: object) -> list[bytes]:
    """Return what a pickler writes, large bytes uncopied."""
    parts = _Parts()
    pickler = kind(parts, PROTOCOL)
    pickler.dump(value)
    if len(parts) == 1:
        return parts
    # Anything but bytes is memory that may change, or end with the pickler.
    return [part if type(part) is bytes else bytes(part) for part in parts]


def _are_small(args: tuple[Any, ...]) -> bool:
    """Tell whether arguments are certain to hold nothing large."""
    for arg in args:
        kind = type(arg)
        if kind not in _NUMBERS and (kind not in _TEXTS or len(arg) > _SMALL):
            return False
    return True


def _mentions_main(parts: list[bytes]) -> bool:
    """Tell whether something is pickled by reference to the main script."""
    return any(_MAIN in part for part in parts if len(part) < 1024 * 1024)


def load_object(body: bytes | Body) -> Any:
    """Unpickle something from the peer that this process obeys."""
    if isinstance(body, bytes):
        return pickle.loads(body)  # noqa: S301 - the parent's code runs here by design
    return pickle.Unpickler(body).load()  # noqa: S301 - as above


def _can_be_sent(value: object) -> bool:
    try:
        _pickled(value)
    except Exception:  # noqa: BLE001 - whatever a user's __reduce__ raises
        return False
    return True
