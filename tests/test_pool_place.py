"""Placements: long-lived processes on runners, from their start to every end."""

from __future__ import annotations

import math
import os
import pickle
import signal
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import flame_backend as flame
from flame_backend.events import CallDone, Event
from tests.tls_backend import TlsBackend
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


# ---------------------------------------------------------------------- targets


def serve(path: str, how: str = "") -> None:
    """Leave the process' number in a file, and stay."""
    if how == "graceful":
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    if how == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    Path(path + ".part").write_text(str(os.getpid()))
    Path(path + ".part").rename(path)
    try:
        while True:
            time.sleep(0.05)
    finally:
        # Only SIGTERM with a handler leads here.
        time.sleep(0.5)
        Path(path + ".closed").touch()


def end_by(number: int) -> None:
    os.kill(os.getpid(), number)


def give_what_cannot_travel() -> threading.Lock:
    return threading.Lock()


def raise_on_term(path: str) -> None:
    """Fail at the end."""

    def fail(*_: object) -> None:
        raise ValueError("the books do not add up")

    signal.signal(signal.SIGTERM, fail)
    serve(path)


def own_pid() -> int:
    return os.getpid()


# ---------------------------------------------------------------------- fixtures


@pytest.fixture
def events() -> list[Event]:
    return []


@pytest.fixture
def make(events: list[Event]) -> Iterator[Callable[..., flame.Pool]]:
    """Make pools; nothing of them is left afterwards."""
    pools = []

    def made(**options: Any) -> flame.Pool:
        options = {
            "max": 1,
            "backend": flame.LocalBackend(),
            "on_event": events.append,
            **options,
        }
        pools.append(flame.Pool("place", **options))
        return pools[-1]

    yield made
    for pool in pools:
        pool.drain(5)
    assert not [t for t in threading.enumerate() if t.name.startswith("flame")]


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "pid")


def pid_of(path: str) -> int:
    until(Path(path).exists)
    return int(Path(path).read_text())


# ---------------------------------------------------------------------- life


def test_placement_holds_one_slot_beside_calls(
    make: Callable[..., flame.Pool], path: str
) -> None:
    """Calls go to the other slots, and wait where there is none."""
    pool = make(max_concurrency=2)
    placed = pool.place(serve, path)
    pid = pid_of(path)
    assert (True, "running", None) == (placed.alive, placed.phase, placed.exitcode)
    assert not placed.join(0.1)
    assert pid != pool.call(own_pid)
    second = pool.place(time.sleep, 60)
    until(lambda: second.phase == "running")
    with pytest.raises(flame.CallTimeout, match="queue"):
        pool.options(queue_timeout=0.2).call(own_pid)
    assert 2 == pool.status().running
    second.stop()
    assert pool.call(own_pid)
    assert placed.alive
    assert placed.call.runner == pool.status().runners[0].name
    assert placed.call.runner in repr(placed)


def test_target_that_returns_ends_its_placement(
    make: Callable[..., flame.Pool],
) -> None:
    """Its result is dropped, its slot is free, its process is not used again."""
    pool = make()
    before = pool.call(own_pid)
    placed = pool.place(give_what_cannot_travel)
    assert placed.join(20)
    assert (False, "done", 0) == (placed.alive, placed.phase, placed.exitcode)
    assert gone(before)
    assert placed.join()
    placed.stop()
    assert before != pool.call(own_pid)
    assert "exitcode=0" in repr(placed)


def test_target_that_raises_is_told_by_join(
    make: Callable[..., flame.Pool], events: list[Event]
) -> None:
    """As often as it is asked, as itself, with the remote traceback."""
    placed = make().place(divmod, 1, 0)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError) as caught:
            placed.join(20)
        assert isinstance(caught.value.__cause__, flame.RemoteError)
    assert 1 == placed.exitcode
    until(lambda: any(isinstance(event, CallDone) for event in events))
    done = next(event for event in events if isinstance(event, CallDone))
    assert isinstance(done.error, ZeroDivisionError)


@pytest.mark.parametrize("code", [3, "it is over"])
def test_exit_with_a_code_is_told_by_join(
    make: Callable[..., flame.Pool], code: object
) -> None:
    """As the interpreter would leave with it; the text is printed."""
    placed = make().place(sys.exit, code)
    with pytest.raises(flame.CallCrashed) as caught:
        placed.join(20)
    expected = 3 if code == 3 else 1
    assert (expected, expected) == (placed.exitcode, caught.value.exit_code)
    if code != 3:
        assert "it is over\n" == placed.call.log_tail
    assert placed.exitcode == pickle.loads(pickle.dumps(caught.value)).exit_code


def test_exit_without_a_code_is_no_failure(make: Callable[..., flame.Pool]) -> None:
    """As of a program."""
    placed = make().place(sys.exit)
    assert placed.join(20)
    assert 0 == placed.exitcode


def test_killed_child_is_told_by_join(
    make: Callable[..., flame.Pool], path: str
) -> None:
    """By its signal; runner and pool live on."""
    pool = make()
    placed = pool.place(serve, path)
    os.kill(pid_of(path), signal.SIGKILL)
    with pytest.raises(flame.CallCrashed) as caught:
        placed.join(20)
    assert (-9, 9) == (placed.exitcode, caught.value.signal)
    assert caught.value.call.runner == pool.status().runners[0].name
    assert pool.call(own_pid)


# ---------------------------------------------------------------------- stop


def test_stop_ends_the_process_without_a_failure(
    make: Callable[..., flame.Pool], path: str, events: list[Event]
) -> None:
    """Gone when it returns; the exit code says how."""
    pool = make()
    placed = pool.place(serve, path)
    pid = pid_of(path)
    placed.stop()
    assert gone(pid)
    assert (False, -15, True) == (placed.alive, placed.exitcode, placed.join())
    assert pool.call(own_pid)
    until(lambda: any(isinstance(event, CallDone) for event in events))
    done = [event for event in events if isinstance(event, CallDone)]
    assert [None] == [event.error for event in done][:1]


def test_stop_gives_time_to_end_well(
    make: Callable[..., flame.Pool], path: str
) -> None:
    """A target that handles SIGTERM returns when it is ready."""
    pool = make()
    placed = pool.place(serve, path, "graceful")
    pid = pid_of(path)
    placed.stop(timeout=20)
    assert gone(pid)
    assert Path(path + ".closed").exists()
    assert (0, True) == (placed.exitcode, placed.join())
    # No matter how much of its time was left.
    assert pid != pool.options(queue_timeout=15).call(own_pid)


@pytest.mark.parametrize("seconds", [float("inf"), 1e30])
def test_stop_may_wait_for_ever(
    make: Callable[..., flame.Pool], path: str, seconds: float
) -> None:
    """It costs the runner nothing, nor the others that share its zygote."""
    pool = make(max_concurrency=2)
    other = pool.submit(time.sleep, 2)
    placed = pool.place(serve, path, "graceful")
    pid_of(path)
    placed.stop(timeout=seconds)
    assert 0 == placed.exitcode
    assert other.result(20) is None


def test_join_may_wait_for_ever(make: Callable[..., flame.Pool]) -> None:
    """Also by a number that no clock can count to."""
    pool = make(max=2)
    for seconds in (math.inf, 1e300):
        assert pool.place(time.sleep, 0.1).join(seconds)


def test_stop_does_not_hide_what_the_target_raised(
    make: Callable[..., flame.Pool], path: str
) -> None:
    """Its end was asked for, its failure was not."""
    placed = make().place(raise_on_term, path)
    pid_of(path)
    placed.stop()
    assert 1 == placed.exitcode
    with pytest.raises(ValueError, match="books"):
        placed.join()


@pytest.mark.parametrize("timeouts", [[0.5], [60.0, 0.5]])
def test_stop_kills_what_does_not_end(
    make: Callable[..., flame.Pool], path: str, timeouts: list[float]
) -> None:
    """After its time; a second stop may be less patient than the first."""
    placed = make().place(serve, path, "stubborn")
    pid = pid_of(path)
    began = time.monotonic()
    *patient, last = timeouts
    stops = [threading.Thread(target=placed.stop, args=[t]) for t in patient]
    for stop in stops:
        stop.start()
        time.sleep(0.2)
    placed.stop(last)
    for stop in stops:
        stop.join()
    assert 0.5 <= time.monotonic() - began < 20
    assert gone(pid)
    assert (-9, True) == (placed.exitcode, placed.join())


def test_stop_while_it_waits_means_that_it_never_begins(
    make: Callable[..., flame.Pool], path: str
) -> None:
    """Neither its runner's boot nor a slot is waited for."""
    pool = make()
    first = pool.place(time.sleep, 60)
    placed = pool.place(serve, path)
    assert (True, "queued") == (placed.alive, placed.phase)
    placed.stop()
    assert (False, None, True) == (placed.alive, placed.exitcode, placed.join())
    first.stop()
    assert pool.call(own_pid)
    assert not Path(path).exists()
    assert "no runner yet" in repr(placed)


def test_stop_while_it_starts_leaves_nothing(
    make: Callable[..., flame.Pool], path: str
) -> None:
    """Whatever moment it hits."""
    pool = make(max=2)
    for delay in (0.0, 0.05, 0.1, 0.3, 0.31, 0.32):
        placed = pool.place(serve, path)
        time.sleep(delay)
        placed.stop()
        assert not placed.alive
        assert placed.join()
    assert pool.call(own_pid)
    until(lambda: pool.status().running == 0)
    if Path(path).exists():
        assert gone(int(Path(path).read_text()))


# ---------------------------------------------------------------------- other ends


def test_end_of_the_pool_stops_placements_after_calls(
    make: Callable[..., flame.Pool], path: str
) -> None:
    """Calls that run may need them; then they have time to end well."""
    pool = make(max=2)
    placed = pool.place(serve, path, "graceful")
    pid_of(path)
    call = pool.submit(time.sleep, 2.0)
    until(call.running)
    threading.Timer(0.3, lambda: alive.append(placed.alive)).start()
    alive: list[bool] = []
    pool.shutdown()
    assert call.done()
    assert [True] == alive
    assert Path(path + ".closed").exists()
    assert (0, True) == (placed.exitcode, placed.join(0))


def test_end_of_the_pool_does_not_wait_for_what_placements_block(
    make: Callable[..., flame.Pool], path: str
) -> None:
    """A call that waits for their slot gets it; a placement that waits does not."""
    pool = make()
    first = pool.place(serve, path)
    pid_of(path)
    call = pool.submit(own_pid)
    waiting = pool.place(time.sleep, 60)
    pool.shutdown()
    assert call.result(0)
    assert -15 == first.exitcode
    with pytest.raises(flame.PoolClosed, match="before it began"):
        waiting.join(0)
    assert waiting.exitcode is None


def test_drain_leaves_no_placement(make: Callable[..., flame.Pool], path: str) -> None:
    """Not even one that does not want to go."""
    pool = make()
    placed = pool.place(serve, path, "stubborn")
    pid = pid_of(path)
    assert not pool.drain(0.3)
    assert gone(pid)
    assert not placed.alive


def test_collected_pool_lives_as_long_as_its_placements_are_held(path: str) -> None:
    """Then its end ends them."""
    placed = flame.Pool("place", max=1, backend=flame.LocalBackend()).place(serve, path)
    pid = pid_of(path)
    time.sleep(0.3)
    assert placed.alive
    del placed
    until(lambda: gone(pid))
    until(lambda: not [t for t in threading.enumerate() if t.name.startswith("flame")])


def test_lost_runner_is_told_by_join(
    make: Callable[..., flame.Pool], path: str
) -> None:
    """With the runner's cause; the process is gone, the pool boots another runner."""
    pool = make()
    placed = pool.place(serve, path)
    pid = pid_of(path)
    os.kill(pool.status().backend["agent_pid"], signal.SIGKILL)
    with pytest.raises(flame.RunnerLost) as caught:
        placed.join(20)
    assert (None, "Crashed") == (placed.exitcode, caught.value.reason)
    until(lambda: gone(pid))
    assert pool.call(own_pid)


def test_runner_that_is_told_to_end_lets_its_placements_end_well(
    make: Callable[..., flame.Pool], path: str
) -> None:
    """They get SIGTERM with the runner, not SIGKILL when its time is over."""
    pool = make()
    placed = pool.place(serve, path, "graceful")
    pid_of(path)
    os.kill(pool.status().backend["agent_pid"], signal.SIGTERM)
    assert placed.join(20)
    assert Path(path + ".closed").exists()
    assert 0 == placed.exitcode


def test_runner_that_is_told_to_end_is_the_cause(
    make: Callable[..., flame.Pool], path: str
) -> None:
    """Nobody stopped a placement that did not handle it."""
    pool = make()
    placed = pool.place(serve, path)
    pid_of(path)
    os.kill(pool.status().backend["agent_pid"], signal.SIGTERM)
    with pytest.raises(flame.RunnerLost, match="Drained") as caught:
        placed.join(20)
    assert (-15, True) == (placed.exitcode, caught.value.started)


def test_single_use_runner_ends_with_its_placement(
    make: Callable[..., flame.Pool],
) -> None:
    """It has served its one call."""
    pool = make(single_use=True)
    placed = pool.place(own_pid)
    assert placed.join(20)
    until(lambda: placed.call.runner not in str(pool.status()))
    assert pool.call(own_pid)


# ---------------------------------------------------------------------- refusals


def test_boot_that_fails_is_told_by_join(make: Callable[..., flame.Pool]) -> None:
    """It never began."""
    placed = make(preload=["no_such_module"]).place(own_pid)
    with pytest.raises(flame.AppImportError):
        placed.join(20)
    assert placed.exitcode is None


def test_queue_timeout_is_told_by_join(make: Callable[..., flame.Pool]) -> None:
    """The clock of calls; `timeout` is none of a placement's."""
    pool = make(timeout=0.2)
    first = pool.place(time.sleep, 60)
    with pytest.raises(flame.CallTimeout, match="queue"):
        pool.options(queue_timeout=1.0).place(own_pid).join(20)
    assert first.alive


def test_what_cannot_be_sent_is_refused_at_once(
    make: Callable[..., flame.Pool],
) -> None:
    """By `place`, in terms of the target and its arguments."""
    with pytest.raises(flame.NotSerializable, match="lock"):
        make().place(print, threading.Lock())


def test_closed_pool_places_nothing(make: Callable[..., flame.Pool]) -> None:
    """As it takes no calls."""
    pool = make()
    pool.shutdown()
    with pytest.raises(flame.PoolClosed):
        pool.place(own_pid)


def test_inline_backend_places_nothing(make: Callable[..., flame.Pool]) -> None:
    """A process that can be stopped is what it does not have."""
    pool = make(backend=flame.InlineBackend())
    with pytest.raises(flame.ConfigurationError, match="LocalBackend"):
        pool.place(own_pid)
    assert 1 == pool.call(abs, -1)


def test_placement_over_tls_is_the_same(
    make: Callable[..., flame.Pool], path: str
) -> None:
    """The links that pods have."""
    pool = make(backend=TlsBackend())
    placed = pool.place(serve, path, "graceful")
    pid = pid_of(path)
    assert not placed.join(0.1)
    placed.stop(20)
    assert Path(path + ".closed").exists()
    assert 0 == placed.exitcode
    assert pid != pool.call(own_pid)
    killed = pool.place(end_by, signal.SIGKILL)
    with pytest.raises(flame.CallCrashed):
        killed.join(20)
    assert -9 == killed.exitcode
