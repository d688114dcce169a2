"""What goes wrong on demand: a queue of faults, each for one request."""

from __future__ import annotations

import threading
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens to one request.

    Attributes:
        status: Answered instead of the request's own; 0 for the request's own.
        reason: Status.reason of that answer.
        retry_after: Seconds in its Retry-After.
        warning: Text of a Warning header.
        stall: Seconds before the answer begins.
        slow: Seconds over which its body is spread.
        cut_after: Bytes of the body after which the connection is cut.
        method: Only for requests with this method.
        path: Only for requests whose path begins so.
    """

    status: int = 0
    reason: str = ""
    retry_after: float | None = None
    warning: str | None = None
    stall: float = 0.0
    slow: float = 0.0
    cut_after: int | None = None
    method: str | None = None
    path: str = ""

    def concerns(self, method: str, path: str) -> bool:
        """Tell whether it is for this request."""
        return self.method in {None, method} and path.startswith(self.path)


class Faults:
    """Faults to come, in the order they were asked for; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: list[Fault] = []

    def add(self, fault: Fault, times: int = 1) -> None:
        """Expect a fault for that many requests."""
        with self._lock:
            self._waiting += [fault] * times

    def take(self, method: str, path: str) -> Fault:
        """Return the first that concerns a request, and forget it."""
        with self._lock:
            for index, fault in enumerate(self._waiting):
                if fault.concerns(method, path):
                    return self._waiting.pop(index)
        return Fault()
