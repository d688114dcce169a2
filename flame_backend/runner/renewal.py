"""A slot that was handed a call of a module that has changed starts afresh with it."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from functools import partial

from flame_backend.runner.chunks import run_chunk
from flame_backend.runner.fresh import replace_process
from flame_backend.runner.output import running
from flame_backend.runner.placed import run_placed
from flame_backend.wire.functions import dump_object

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

    from flame_backend.runner.fresh import Origin
    from flame_backend.runner.stamps import Stamps
    from flame_backend.wire.link import Link

LOOK_SECONDS: Final = 0.0002
"""A look costs 2 us; calls that follow on each other's heels share one."""


class Renewal:
    """Watches over what one slot runs.

    Args:
        origin: Of this process.
        stamps: Of the modules it was forked with.
        link: Of the slot; the new program goes on with it.
    """

    def __init__(self, origin: Origin, stamps: Stamps, link: Link) -> None:
        self._origin = origin
        self._stamps = stamps
        self._link = link
        self._look_at = 0.0
        self.initializer: bytes | None = None

    def mind(
        self, call_id: int, body: Any, call: tuple[Any, tuple[Any, ...], dict[str, Any]]
    ) -> None:
        """Start afresh with a call when its function's module has changed."""
        now = time.monotonic()
        if now < self._look_at:
            return
        self._look_at = now + LOOK_SECONDS
        wrapped = call[0] is run_chunk or call[0] is run_placed
        function = call[1][0] if wrapped else call[0]
        while isinstance(function, partial):
            function = function.func
        if self._stamps.changed(getattr(function, "__module__", None)):
            # A large body was read from the link as it was loaded.
            given = body if type(body) is bytes else dump_object(call)
            self._start_afresh(call_id, given)

    def mind_failure(self, call_id: int, body: Any) -> None:
        """Start afresh with a call that names what only a changed module has."""
        if type(body) is bytes and self._stamps.any_changed():
            self._start_afresh(call_id, body)

    def _start_afresh(self, call_id: int, body: bytes) -> None:
        for stream in (sys.stdout, sys.stderr):
            with suppress(Exception):
                stream.flush()
        kept = [self._link.fileno(), *running.given]
        facts = {
            "descriptor": self._link.fileno(),
            "max_payload": self._link.limits.body_bytes,
            "initializer": self.initializer if call_id else None,
            "call_id": call_id,
            "body": body,
            "output": running.given,
        }
        replace_process(self._origin, "call", facts, kept)
