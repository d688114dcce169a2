"""What a call printed last is known where its end is told."""

from __future__ import annotations

import copy
import os
import pickle
import signal
import time
from typing import TYPE_CHECKING

import pytest

import flame_backend as flame
from flame_backend.events import CallDone, Event
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator


def say(text: str, seconds: float = 0.0, number: int = 0) -> None:
    print(text, flush=True)
    time.sleep(seconds)
    if number:
        os.kill(os.getpid(), number)


@pytest.fixture
def events() -> list[Event]:
    return []


@pytest.fixture
def pool(events: list[Event]) -> Iterator[flame.Pool]:
    """Lend a pool of one runner."""
    backend = flame.LocalBackend()
    with flame.Pool("tails", max=1, backend=backend, on_event=events.append) as made:
        yield made


def test_lost_runner_leaves_the_last_lines_of_its_calls(pool: flame.Pool) -> None:
    """On the error and on its call; not in the text, which goes to other logs."""
    future = pool.submit(say, "the last words", 60)
    until(lambda: "the last words" in future.call.log_tail)
    os.kill(pool.status().backend["agent_pid"], signal.SIGKILL)
    error = future.exception(10)
    assert isinstance(error, flame.RunnerLost)
    assert "the last words\n" == error.log_tail == error.call.log_tail
    assert "the last words" not in str(error)
    for back in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert error.log_tail == back.log_tail == back.call.log_tail


def test_crash_leaves_the_last_lines_of_its_call(pool: flame.Pool) -> None:
    """They come before the end of its process does."""
    with pytest.raises(flame.CallCrashed) as caught:
        pool.call(say, "before the crash", number=signal.SIGKILL)
    assert "before the crash\n" == caught.value.call.log_tail


def test_timeout_leaves_the_last_lines_of_its_call(pool: flame.Pool) -> None:
    """The place to look at when a call takes too long."""
    with pytest.raises(flame.CallTimeout) as caught:
        pool.options(timeout=4).call(say, "step 3", 60)
    assert "step 3\n" == caught.value.call.log_tail


def test_call_that_ends_well_has_last_lines(
    pool: flame.Pool, events: list[Event]
) -> None:
    """As soon as they have arrived; beside those of other calls."""
    first, second = pool.submit(say, "one", 0.3), pool.submit(say, "two", 0.3)
    until(lambda: (first.call.log_tail, second.call.log_tail) == ("one\n", "two\n"))
    second.result(10)
    assert "" == pool.submit(abs, -1).call.log_tail
    until(lambda: len([e for e in events if isinstance(e, CallDone)]) == 3)
    done = [event for event in events if isinstance(event, CallDone)]
    assert "one\n" == done[0].call.log_tail


def test_last_lines_are_bounded_and_safe_to_print(pool: flame.Pool) -> None:
    """4096 characters, and nothing that moves a terminal's cursor."""
    future = pool.submit(say, "x" * 200_000 + "\x1b[2J end")
    future.result(10)
    until(lambda: "end" in future.call.log_tail)
    assert 4096 >= len(future.call.log_tail)
    assert future.call.log_tail.endswith("\\x1b[2J end\n")


def test_inline_call_prints_where_it_runs(capsys: pytest.CaptureFixture[str]) -> None:
    """There is no output to keep."""
    with flame.Pool("tails", max=1, backend=flame.InlineBackend()) as pool:
        future = pool.submit(say, "here")
        future.result(5)
    assert ("", "here\n") == (future.call.log_tail, capsys.readouterr().out)


def test_last_lines_outlive_the_pool() -> None:
    """Futures are looked at later."""
    with flame.Pool("tails", max=1, backend=flame.LocalBackend()) as pool:
        future = pool.submit(say, "kept", 0.3)
    assert "kept\n" == future.call.log_tail
