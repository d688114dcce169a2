"""Last lines of calls, kept in the parent: each runner's its own, none without end."""

from __future__ import annotations

import json
import logging
import socket
import time

from flame_backend.backends.base import PoolSpec
from flame_backend.backends.hub import Hub
from flame_backend.backends.output import (
    BURST_CHARACTERS,
    CALLS,
    CHARACTERS_PER_SECOND,
    LINE_CHARACTERS,
    TAIL_CHARACTERS,
    Output,
)
from flame_backend.wire.frames import Kind, pack_frame


def test_runner_that_names_anothers_call_writes_into_nobodys_lines() -> None:
    """A compromised agent says what it likes; it is not believed about others."""
    hub = Hub(PoolSpec(name="tails", instance="i"), None)  # type: ignore[arg-type]
    ends = {name: socket.socketpair() for name in ("honest", "liar")}
    for name, (ours, _) in ends.items():
        hub.adopt(name, ours, passes=False)

    def say(name: str, runner: str, text: str) -> None:
        line = {"runner": runner, "slot": 0, "call": 7, "text": text}
        ends[name][1].sendall(pack_frame(Kind.LOG, json.dumps(line).encode()))
        deadline = time.monotonic() + 5
        while text not in hub.output.tail(name, 7) and time.monotonic() < deadline:
            time.sleep(0.01)

    say("honest", "honest", "true\n")
    say("liar", "honest", "false\n")
    assert hub.output.tail("honest", 7) == "true\n"
    assert hub.output.tail("liar", 7) == "false\n"
    hub.close()
    for _, theirs in ends.values():
        theirs.close()


def test_runner_that_names_calls_without_end_pushes_out_its_own() -> None:
    """What others have said stays."""
    output = Output("p")
    output.take("honest", 1, "kept\n")
    for call in range(2 * CALLS):
        output.take("liar", call + 1, "x")
    assert output.tail("honest", 1) == "kept\n"
    assert output.tail("liar", 1) == ""
    assert output.tail("liar", 2 * CALLS) == "x"
    held = sum(bool(output.tail("liar", call + 1)) for call in range(2 * CALLS))
    assert held == CALLS - 1


def test_runners_that_come_and_go_leave_no_more_than_so_many_calls() -> None:
    """Elastic pools have new names every minute."""
    output = Output("p")
    for number in range(3 * CALLS):
        output.take(f"r-{number}", number + 1, "x")
    held = [n for n in range(3 * CALLS) if output.tail(f"r-{n}", n + 1)]
    assert held == list(range(2 * CALLS, 3 * CALLS))


def test_last_lines_are_the_last_ones() -> None:
    """In one piece or in many."""
    output = Output("p")
    for number in range(TAIL_CHARACTERS):
        output.take("r", 1, f"{number}\n")
    assert output.tail("r", 1).endswith(f"{TAIL_CHARACTERS - 1}\n")
    assert len(output.tail("r", 1)) == TAIL_CHARACTERS


class _Count(logging.Handler):
    """Counts records."""

    def __init__(self) -> None:
        super().__init__()
        self.found = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Count one."""
        self.found += record.getMessage() == "liar: "


def test_empty_lines_are_no_way_around_the_limit() -> None:
    """Each is a record; a million of them held up the hub for seconds."""
    logger, count = logging.getLogger("flame_backend.runner.empty"), _Count()
    logger.addHandler(count)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    output = Output("empty")
    began = time.monotonic()
    for _ in range(BURST_CHARACTERS // 16_000):
        output.take("liar", 0, "\n" * 16_000)
    room = BURST_CHARACTERS + CHARACTERS_PER_SECOND * (time.monotonic() - began)
    assert 0 < count.found <= room / LINE_CHARACTERS
    logger.removeHandler(count)
