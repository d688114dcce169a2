"""What calls print, in the parent: the pool's logger, and the last lines of each call.

Untrusted input: the text is clean when it comes here, and a runner that floods the
parent is cut off, whatever its own agent should have left out.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from typing import Final

from flame_backend.wire.bucket import Bucket

TAIL_CHARACTERS: Final = 4096
BURST_CHARACTERS: Final = 1024 * 1024
CHARACTERS_PER_SECOND: Final = 256 * 1024.0
"""What a few agents that keep to their own limit may send together."""

LINE_CHARACTERS: Final = 16
"""What a line counts for besides its text: an empty one is a record of the log as well,
and takes the hub's time, while other links wait. Short lines of one honest agent, ten
characters each, still have room."""

CALLS: Final = 1024
"""Calls whose last lines are kept."""


class Output:
    """The output of one pool's calls. Fed by one thread, read by any.

    Args:
        pool: The pool's name.
    """

    def __init__(self, pool: str) -> None:
        self._logger = logging.getLogger(f"flame_backend.runner.{pool}")
        # By runner: what one says of another's call is nobody's.
        self._tails: dict[str, OrderedDict[int, str]] = {}
        self._kept = 0
        self._allowed = Bucket(BURST_CHARACTERS, CHARACTERS_PER_SECOND)

    def take(self, runner: str, call: int, text: str) -> None:
        """Log what a call printed; 0 is what no call of a caller did."""
        if call:
            self._keep(runner, call, text)
        if not self._logger.isEnabledFor(logging.INFO):
            return
        facts = {"flame_runner": runner, "flame_call": call}
        where = f"call {call} on {runner}" if call else runner
        lines = text.splitlines()
        size = len(text) + LINE_CHARACTERS * len(lines)
        if not self._allowed.take(size, time.monotonic()):
            return
        for line in lines:
            self._logger.info("%s: %s", where, line, extra=facts)

    def _keep(self, runner: str, call: int, text: str) -> None:
        """Keep the last lines of a call; who has most of them makes room for others."""
        tails = self._tails.setdefault(runner, OrderedDict())
        self._kept += call not in tails
        tails[call] = (tails.pop(call, "") + text)[-TAIL_CHARACTERS:]
        if self._kept > CALLS:
            most = max(self._tails, key=lambda name: len(self._tails[name]))
            self._tails[most].popitem(last=False)
            self._kept -= 1
            if not self._tails[most]:
                del self._tails[most]

    def tail(self, runner: str, call: int) -> str:
        """Return the last lines of a call as its runner told them, "" for none."""
        tails = self._tails.get(runner)
        return "" if tails is None else tails.get(call, "")
