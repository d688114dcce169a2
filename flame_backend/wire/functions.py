"""Functions and their arguments on the way to a runner.

Parent to runner is trusted: running the parent's code is what a runner is for. Plain
pickle carries functions of importable modules by reference; whatever names `__main__`,
and lambdas, go by value through cloudpickle (`main_script`).

Large `bytes` are written as they are: the pickler hands them to a collector that keeps
the object, and the runner reads them from the link straight into their final place.
"""

from __future__ import annotations

import io
import pickle
from typing import TYPE_CHECKING, Any, Final

from flame_backend.errors import NotSerializable, PayloadTooLarge

if TYPE_CHECKING:
    from collections.abc import Callable

    from flame_backend.wire.link import Body

PROTOCOL: Final = 5
_MAIN: Final = b"__main__"


class _Collector:
    """A pickler's file that keeps large buffers as the objects they are."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.size = 0

    def write(self, data: Any) -> int:
        # C pickle writes a large bytes object by itself, unframed; anything else
        # (frames, memory it will reuse) is small and copied.
        part = data if type(data) is bytes else bytes(data)
        self.parts.append(part)
        self.size += len(part)
        return len(part)

    def mentions_main(self) -> bool:
        """Tell whether something is pickled by reference to the main script."""
        return any(_MAIN in part for part in self.parts if len(part) < 1024 * 1024)


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
    try:
        collected = _pickled((function, args, kwargs))
    except Exception as error:
        from flame_backend.wire.complaints import call_complaint

        told = call_complaint(function, args, kwargs, error, _can_be_sent)
        raise NotSerializable(told) from error
    if collected.size > limit:
        raise PayloadTooLarge("request", collected.size, limit)
    return collected.parts


def dump_object(value: object) -> bytes:
    """Pickle something for a runner, main script's classes and functions by value.

    Raises:
        NotSerializable: It cannot be sent.
    """
    try:
        return b"".join(_pickled(value).parts)
    except Exception as error:
        msg = f"{type(value).__name__} cannot be sent to a runner: {error}"
        raise NotSerializable(msg) from error


def _pickled(value: object) -> _Collector:
    collected = _Collector()
    try:
        pickle.Pickler(collected, PROTOCOL).dump(value)
        if not collected.mentions_main():
            return collected
    except (pickle.PicklingError, AttributeError, TypeError):
        pass
    from flame_backend.wire import main_script

    collected = _Collector()
    main_script.Pickler(collected, PROTOCOL).dump(value)
    return collected


def load_call(
    body: bytes | Body,
) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
    """Unpickle a call; on the runner, from its parent."""
    function, args, kwargs = load_object(body)
    return function, args, kwargs


def load_object(body: bytes | Body) -> Any:
    """Unpickle something from the peer that this process obeys."""
    source: Any = io.BytesIO(body) if isinstance(body, bytes) else body
    return pickle.Unpickler(source).load()  # noqa: S301 - the parent's code runs here by design


def _can_be_sent(value: object) -> bool:
    try:
        _pickled(value)
    except Exception:  # noqa: BLE001 - whatever a user's __reduce__ raises
        return False
    return True
