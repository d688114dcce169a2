"""Calls that wait for a slot: first come, first served, each with its own limit."""

from __future__ import annotations

import heapq
from collections import OrderedDict


class Waiting:
    """A queue with deadlines; every operation is O(1), or O(log n) in deadlines.

    Attributes:
        calls: The calls that wait, in order, with the limit behind their deadline.
            Its truth is asked for with every call, so it is an attribute.
    """

    def __init__(self) -> None:
        self.calls: OrderedDict[int, float] = OrderedDict()
        self._deadlines: list[tuple[float, int]] = []

    def __len__(self) -> int:
        return len(self.calls)

    def add(
        self, call: int, limit: float, deadline: float | None, *, first: bool
    ) -> None:
        """Queue a call.

        Args:
            call: Its number.
            limit: Seconds it may wait, for the error.
            deadline: When it stops waiting; None for never.
            first: Before all others.
        """
        self.calls[call] = limit
        if first:
            self.calls.move_to_end(call, last=False)
        if deadline is None:
            return
        # Those of calls that found a slot go in time, or in bulk.
        if len(self._deadlines) > 1024 + 2 * len(self.calls):
            self._deadlines = [d for d in self._deadlines if d[1] in self.calls]
            heapq.heapify(self._deadlines)
        heapq.heappush(self._deadlines, (deadline, call))

    def pop(self) -> int:
        """Take out the call that goes first."""
        return self.calls.popitem(last=False)[0]

    def remove(self, call: int) -> bool:
        """Take out a call; False when it does not wait."""
        return self.calls.pop(call, None) is not None

    def expired(self, now: float) -> list[tuple[int, float]]:
        """Take out the calls whose deadline has come; return them with their limits."""
        found = []
        while self._deadlines and self._deadlines[0][0] <= now:
            _, call = heapq.heappop(self._deadlines)
            limit = self.calls.pop(call, None)
            if limit is not None:
                found.append((call, limit))
        return found

    def next_deadline(self) -> float | None:
        """Return the earliest deadline of a call that still waits."""
        while self._deadlines and self._deadlines[0][1] not in self.calls:
            heapq.heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else None

    def clear(self) -> list[int]:
        """Take out all calls, in order."""
        found = list(self.calls)
        self.calls.clear()
        self._deadlines.clear()
        return found
