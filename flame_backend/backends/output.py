"""What calls print, in the parent: the pool's logger, and the last lines of each call.

Untrusted input: the text is clean when it comes here, and a runner that floods the
parent is cut off, whatever its own agent should have left out.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from typing import Final

TAIL_CHARACTERS: Final = 4096
BURST_CHARACTERS: Final = 1024 * 1024
CHARACTERS_PER_SECOND: Final = 256 * 1024.0
"""What a few agents that keep to their own limit may send together."""

CALLS: Final = 1024
"""Calls whose last lines are kept; the oldest go first."""


class Output:
    """The output of one pool's calls. Fed by one thread, read by any.

    Args:
        pool: The pool's name.
    """

    def __init__(self, pool: str) -> None:
        self._logger = logging.getLogger(f"flame_backend.runner.{pool}")
        self._tails: OrderedDict[int, str] = OrderedDict()
        self._allowed = float(BURST_CHARACTERS)
        self._at = 0.0

    def take(self, runner: str, call: int, text: str) -> None:
        """Log what a call printed; 0 is what no call of a caller did."""
        if call:
            tail = self._tails.pop(call, "") + text
            self._tails[call] = tail[-TAIL_CHARACTERS:]
            while len(self._tails) > CALLS:
                self._tails.popitem(last=False)
        if not self._logger.isEnabledFor(logging.INFO) or not self._may_log(len(text)):
            return
        facts = {"flame_runner": runner, "flame_call": call}
        where = f"call {call} on {runner}" if call else runner
        for line in text.splitlines():
            self._logger.info("%s: %s", where, line, extra=facts)

    def _may_log(self, size: int) -> bool:
        now = time.monotonic()
        earned = (now - self._at) * CHARACTERS_PER_SECOND
        self._allowed, self._at = min(BURST_CHARACTERS, self._allowed + earned), now
        if self._allowed < size:
            return False
        self._allowed -= size
        return True

    def tail(self, call: int) -> str:
        """Return the last lines of a call, "" when it printed none."""
        return self._tails.get(call, "")
