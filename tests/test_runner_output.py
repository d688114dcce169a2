"""What calls print: on the parent's streams, in a log, and as a call's last lines."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

import flame_backend as flame
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LOGGER = "flame_backend.runner.output"


@pytest.fixture
def backend() -> flame.LocalBackend:
    """Lend a backend."""
    return flame.LocalBackend()


@pytest.fixture
def pool(backend: flame.LocalBackend) -> Iterator[flame.Pool]:
    """Lend a pool of one runner."""
    with flame.Pool("output", max=1, backend=backend) as made:
        yield made


def say(text: str, then: str = "") -> str:
    print(text)
    print(f"{text} aside", file=sys.stderr)
    exec(then)
    return text


def say_by_program(text: str) -> None:
    subprocess.run([sys.executable, "-c", f"print({text!r})"], check=True)


def say_much() -> str:
    for number in range(300_000):
        print(f"line {number}")
    return "said"


def say_without_end() -> None:
    print("no newline", end="", flush=True)
    time.sleep(3.0)


def lines(caplog: pytest.LogCaptureFixture) -> list[tuple[int, str]]:
    """Return call ids and texts of what was logged."""
    found = [record for record in caplog.records if record.name == LOGGER]
    facts: list[tuple[Any, Any]] = [
        (record.__dict__["flame_call"], record.getMessage().partition(": ")[2])
        for record in found
    ]
    return facts


def test_output_is_logged_with_the_id_of_its_call(
    pool: flame.Pool, caplog: pytest.LogCaptureFixture
) -> None:
    """Each line once, of calls on each other's heels too, programs included."""
    caplog.set_level(logging.INFO, LOGGER)
    expected = set()
    for number in range(30):
        future = pool.submit(say, f"text {number}")
        future.result(20)
        expected |= {
            (future.call.id, f"text {number}"),
            (future.call.id, f"text {number} aside"),
        }
    program = pool.submit(say_by_program, "of a program")
    program.result(20)
    expected.add((program.call.id, "of a program"))
    until(lambda: len(lines(caplog)) >= len(expected), 10)
    assert expected == set(lines(caplog))
    assert len(expected) == len(lines(caplog))


def test_output_reaches_the_standard_streams(
    pool: flame.Pool, capfd: pytest.CaptureFixture[str]
) -> None:
    """Of the parent, each its own, as if there were no runner between."""
    pool.call(say, "plain")
    pool.shutdown()
    assert ("plain\n", "plain aside\n") == tuple(capfd.readouterr())


@pytest.mark.parametrize(
    "end",
    ["os._exit(3)", "ctypes.string_at(0)", "os.kill(os.getpid(), 9)"],
)
def test_last_lines_of_a_crash_are_known_with_the_crash(
    pool: flame.Pool, backend: flame.LocalBackend, end: str
) -> None:
    """No newline or flush needed; they arrive before the end of the slot does."""
    with pytest.raises(flame.CallCrashed) as caught:
        pool.call(say, "before the crash", f"import ctypes, os; {end}")
    until(lambda: "before the crash aside" in caught.value.call.log_tail, 10)
    assert "before the crash\n" in caught.value.call.log_tail


def test_flood_leaves_the_first_and_the_last_lines(
    pool: flame.Pool, backend: flame.LocalBackend, caplog: pytest.LogCaptureFixture
) -> None:
    """Some hundred KiB are logged, the bytes between are counted, calls go on."""
    caplog.set_level(logging.INFO, LOGGER)
    future = pool.submit(say_much)
    assert "said" == future.result(60)
    until(lambda: future.call.log_tail.endswith("line 299999\n"), 10)
    # The last lines of the call are kept a moment before they are logged.
    until(lambda: "line 299999" in [text for _, text in lines(caplog)[-1:]], 10)
    texts = [text for _, text in lines(caplog)]
    assert "line 0" == texts[0]
    assert any("bytes left out" in text for text in texts)
    assert sum(map(len, texts)) < 2_000_000
    assert 3 == pool.call(len, "abc")


def test_line_without_end_is_told_while_the_call_runs(
    pool: flame.Pool, backend: flame.LocalBackend
) -> None:
    """A prompt or a row of dots does not wait for its newline forever."""
    future = pool.submit(say_without_end)
    until(lambda: future.call.log_tail == "no newline", 10)
    assert not future.done()
    future.result(20)


def test_control_characters_are_escaped(
    pool: flame.Pool, caplog: pytest.LogCaptureFixture
) -> None:
    """A runner's text cannot steer a terminal."""
    caplog.set_level(logging.INFO, LOGGER)
    pool.call(say, "\x1b[2J\x07")
    until(lambda: len(lines(caplog)) == 2, 10)
    assert r"\x1b[2J\x07" in {text for _, text in lines(caplog)}


def test_bytes_that_look_like_a_mark_are_output(
    pool: flame.Pool, capfd: pytest.CaptureFixture[str]
) -> None:
    """Zeros pass, in any cut."""
    for size in (1, 2, 3, 7, 4000, 9000):
        pool.call(os.write, 1, b"\0" * size + b"|")
    pool.shutdown()
    assert "\0" * 13013 == capfd.readouterr().out.replace("|", "")


BLOCKED = """
import flame_backend as flame, sys, time

def flood():
    for _ in range(1000):
        print("x" * 1000)

if __name__ == "__main__":
    with flame.Pool("blocked", max=1, backend=flame.LocalBackend()) as pool:
        assert 3 == pool.call(len, "abc")
        try:
            pool.options(timeout=1).call(flood)
        except flame.CallTimeout:
            print("timeout", file=sys.stderr)
        assert 4 == pool.call(len, "abcd")
        print("next", file=sys.stderr)
"""


def test_stream_that_takes_nothing_stops_the_call_and_not_the_agent(
    tmp_path: Path,
) -> None:
    """Its timeout still ends it, the next call works, and so does the end."""
    script = tmp_path / "app.py"
    script.write_text(BLOCKED)
    with subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as app:
        assert app.stderr is not None
        assert [b"timeout\n", b"next\n"] == app.stderr.readlines()[:2]
        assert 0 == app.wait(30)
