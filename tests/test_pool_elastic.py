"""How a pool grows, shrinks, gives up and comes back; on local processes."""

from __future__ import annotations

import concurrent.futures
import os
import signal
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import flame_backend as flame
from flame_backend.events import (
    CallDone,
    Event,
    GrowEnd,
    GrowStart,
    RunnerEnded,
    Shrink,
)
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def own_pid(_: object = None) -> int:
    return os.getpid()


def hold(path: str) -> int:
    """Run until a file is gone."""
    Path(path + ".on").touch()
    while Path(path).exists():
        time.sleep(0.01)
    return os.getpid()


def take_note(path: str, error: Exception | None = None) -> object:
    """Initialize: leave a note in the process and in a file, or fail."""
    with Path(path).open("a") as file:
        file.write(f"{os.getpid()}\n")
    if error is not None:
        raise error
    os.environ["NOTED"] = str(os.getpid())
    return object()


def noted() -> bool:
    return os.environ.get("NOTED") == str(os.getpid())


def slow_to_boot(tmp_path: Path, seconds: float) -> dict[str, Any]:
    """Return options of a pool whose app takes that long to load."""
    text = f"import time; time.sleep({seconds})"
    (tmp_path / "slow_module.py").write_text(text)
    backend = flame.LocalBackend(env={"PYTHONPATH": str(tmp_path)})
    return {"backend": backend, "preload": ["slow_module"]}


@pytest.fixture
def make() -> Iterator[Callable[..., flame.Pool]]:
    """Make pools; nothing of them is left afterwards."""
    pools = []

    def made(**options: Any) -> flame.Pool:
        options.setdefault("backend", flame.LocalBackend())
        pools.append(flame.Pool("elastic", **options))
        return pools[-1]

    yield made
    for pool in pools:
        pool.drain(5)
    assert not [t for t in threading.enumerate() if t.name.startswith("flame")]


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """Lend a file that calls of `hold` run as long as."""
    path = tmp_path / "gate"
    path.touch()
    return path


def test_min_boots_at_once_and_stays(make: Callable[..., flame.Pool]) -> None:
    """In the background, before any call; idling does not end them."""
    pool = make(min=2, max=3, idle_shutdown_after=0.2)
    until(lambda: pool.status().ready == 2)
    time.sleep(0.6)
    assert 2 == pool.status().ready


def test_surplus_runners_end_when_idle(
    make: Callable[..., flame.Pool], gate: Path
) -> None:
    """Down to min, on time, while those that work stay."""
    pool = make(min=1, max=3, idle_shutdown_after=0.5)
    held = pool.submit(hold, str(gate))
    concurrent.futures.wait([pool.submit(time.sleep, 0.3) for _ in range(2)])
    until(lambda: len(pool.status().runners) == 1)
    assert not held.done()
    gate.unlink()
    assert held.result(10)
    assert 1 == pool.call(abs, -1)


def test_idle_pool_has_no_process_and_comes_back(
    make: Callable[..., flame.Pool],
) -> None:
    """Idle to nothing is the point of it all."""
    pool = make(max=2, idle_shutdown_after=0.3)
    first = pool.call(own_pid)
    until(lambda: not pool.status().runners)
    until(lambda: not Path(f"/proc/{first}").exists())
    assert first != pool.call(own_pid)


def test_all_runners_sleep_after_min_idle(make: Callable[..., flame.Pool]) -> None:
    """And min is back with the next call."""
    pool = make(min=2, max=2, min_idle_shutdown_after=1.0)
    pool.wait_ready(20)
    until(lambda: not pool.status().runners)
    time.sleep(0.3)
    assert not pool.status().runners
    pool.call(abs, -1)
    until(lambda: pool.status().ready == 2)


def test_used_runner_does_not_go_idle(make: Callable[..., flame.Pool]) -> None:
    """Its clock starts anew with each call."""
    pool = make(max=1, idle_shutdown_after=2.0)
    pids = set()
    for _ in range(6):
        pids.add(pool.call(own_pid))
        time.sleep(0.5)
    assert 1 == len(pids)


def test_buffer_keeps_spare_slots_while_calls_run(
    make: Callable[..., flame.Pool], gate: Path
) -> None:
    """One call runs, another runner is ready for the next one."""
    pool = make(max=4, buffer=1, idle_shutdown_after=0.5)
    held = pool.submit(hold, str(gate))
    until(held.running)
    until(lambda: pool.status().idle_slots == 1)
    time.sleep(0.8)
    assert (2, 1) == (pool.status().ready, pool.status().idle_slots)
    gate.unlink()
    held.result(10)
    until(lambda: not pool.status().runners)


def test_single_use_runner_serves_one_call(make: Callable[..., flame.Pool]) -> None:
    """Each call has a process of its own, and min is refilled."""
    pool = make(min=1, max=2, single_use=True)
    assert 4 == len({pool.call(own_pid) for _ in range(4)})
    until(lambda: pool.status().ready == 1)


def test_output_of_a_single_use_call_is_not_cut(
    make: Callable[..., flame.Pool], capfd: pytest.CaptureFixture[str]
) -> None:
    """The process flushes after it has answered; ending it must not come between."""
    pool = make(max=1, single_use=True)
    for number in range(5):
        pool.call(print, f"line {number}")
    pool.shutdown()
    text = capfd.readouterr().out
    assert [True] * 5 == [f"line {number}\n" in text for number in range(5)]


def test_slot_is_renewed_after_its_tasks(make: Callable[..., flame.Pool]) -> None:
    """max_tasks_per_child calls for each process, none lost."""
    pool = make(max=1, max_tasks_per_child=2)
    pids = [pool.call(own_pid) for _ in range(6)]
    assert [2, 2, 2] == [pids.count(pid) for pid in dict.fromkeys(pids)]


def test_old_runner_is_replaced(make: Callable[..., flame.Pool]) -> None:
    """After max_lifetime, with a fresh process."""
    pool = make(min=1, max=1, max_lifetime=1.0)
    first = pool.call(own_pid)
    until(lambda: pool.call(own_pid) != first)


def test_old_runner_is_replaced_without_harm_to_its_calls(
    make: Callable[..., flame.Pool], gate: Path
) -> None:
    """It drains beside its successor, and ends with its last call."""
    events: list[Event] = []
    pool = make(min=1, max=2, max_lifetime=0.5, on_event=events.append)
    held = pool.submit(hold, str(gate))
    until(lambda: any(r.state == "draining" for r in pool.status().runners))
    assert not held.done()
    # A young one serves meanwhile.
    assert pool.call(own_pid)
    gate.unlink()
    assert held.result(10) != pool.call(own_pid)
    until(lambda: held.call.runner not in str(pool.status()))

    def reasons() -> set[str]:
        ends = [event for event in events if isinstance(event, Shrink)]
        return {end.reason for end in ends if end.runner == held.call.runner}

    # Events come in a thread of their own.
    until(lambda: "lifetime" in reasons())


def test_boot_that_takes_long_is_not_old(
    make: Callable[..., flame.Pool], tmp_path: Path
) -> None:
    """A life begins when a runner serves; boots have clocks of their own."""
    events: list[Event] = []
    slow = slow_to_boot(tmp_path, 1.0)
    pool = make(max=1, max_lifetime=0.4, on_event=events.append, **slow)
    assert 1 == pool.call(abs, -1)
    until(lambda: len(events) >= 2)
    assert [GrowStart, GrowEnd] == [type(event) for event in events[:2]]


def test_boot_that_nobody_waits_for_is_given_up(
    make: Callable[..., flame.Pool], tmp_path: Path
) -> None:
    """Its callers timed out or cancelled; what comes of it is told as of any boot."""
    events: list[Event] = []
    slow = slow_to_boot(tmp_path, 20.0)
    pool = make(max=3, idle_shutdown_after=0.3, on_event=events.append, **slow)
    futures = [pool.submit(abs, -n) for n in range(2)]
    with pytest.raises(flame.CallTimeout):
        pool.options(queue_timeout=0.1).call(abs, -1)
    assert 3 == pool.status().booting
    until(lambda: pool.status().booting == 2, 5)
    assert [True, True] == [future.cancel() for future in futures]
    until(lambda: not pool.status().runners, 5)
    pool.shutdown()
    ends = [event for event in events if isinstance(event, GrowEnd)]
    assert 3 == len(ends)
    assert all("unneeded" in str(end.error) for end in ends)
    assert {"unneeded"} == {end.given_up for end in ends}
    assert not [event for event in events if isinstance(event, Shrink)]


def test_boot_goes_on_for_whoever_comes_next(
    make: Callable[..., flame.Pool], tmp_path: Path
) -> None:
    """Callers more impatient than the boot takes would never be served otherwise."""
    pool = make(max=1, idle_shutdown_after=5, **slow_to_boot(tmp_path, 1.0))
    impatient = pool.options(queue_timeout=0.2)

    def served() -> bool:
        try:
            return impatient.call(abs, -1) == 1
        except flame.CallTimeout:
            return False

    assert not served()
    first = pool.status().runners[0].name
    until(served)
    assert [first] == [found.name for found in pool.status().runners]


def test_queue_is_bounded(make: Callable[..., flame.Pool], gate: Path) -> None:
    """One call more than max_queue is refused, at once and by name."""
    pool = make(max=1, max_queue=2)
    futures = [pool.submit(hold, str(gate))]
    until(futures[0].running)
    futures += [pool.submit(hold, str(gate)) for _ in range(2)]
    with pytest.raises(flame.PoolSaturated, match="max_queue"):
        pool.call(abs, -1)
    with pytest.raises(flame.PoolSaturated):
        pool.submit(abs, -1).result(5)
    gate.unlink()
    concurrent.futures.wait(futures)
    assert 1 == pool.call(abs, -1)


def test_resize_grows_and_shrinks(make: Callable[..., flame.Pool], gate: Path) -> None:
    """Up at once; down as calls end, without losing one."""
    pool = make(max=1)
    futures = [pool.submit(hold, str(gate)) for _ in range(3)]
    until(lambda: pool.status().running == 1)
    pool.resize(max=3)
    until(lambda: pool.status().running == 3)
    pool.resize(max=1)
    assert 2 == sum(found.state == "draining" for found in pool.status().runners)
    gate.unlink()
    assert 3 == len({future.result(10) for future in futures})
    until(lambda: len(pool.status().runners) == 1)
    pool.resize(min=2, max=2)
    until(lambda: pool.status().ready == 2)


@pytest.mark.parametrize(
    "sizes", [{"min": 5}, {"max": 0}, {"min": -1}, {"max": "3"}, {"max": 100_001}]
)
def test_impossible_size_is_refused(
    make: Callable[..., flame.Pool], sizes: dict[str, Any]
) -> None:
    """And changes nothing."""
    pool = make(max=2)
    with pytest.raises(flame.ConfigurationError, match="min <= max"):
        pool.resize(**sizes)
    assert (0, 2) == (pool.status().min, pool.status().max)


def test_lost_runner_is_replaced_up_to_min(make: Callable[..., flame.Pool]) -> None:
    """Without any call that would ask for it."""
    events: list[Event] = []
    pool = make(min=2, max=2, on_event=events.append)
    pool.wait_ready(20)
    os.kill(pool.status().backend["agent_pid"], signal.SIGKILL)
    until(lambda: sum(isinstance(event, RunnerEnded) for event in events) == 2)
    until(lambda: pool.status().ready == 2)


def test_wait_ready_returns_with_the_last_runner(
    make: Callable[..., flame.Pool],
) -> None:
    """Min of them, or one; and that one may go idle later."""
    pool = make(min=2, max=2)
    pool.wait_ready(20)
    assert 2 == pool.status().ready
    warmed = make(max=2, idle_shutdown_after=1.0)
    warmed.wait_ready(20)
    assert 1 == warmed.status().ready
    until(lambda: not warmed.status().runners)


def test_wait_ready_says_why_not(make: Callable[..., flame.Pool]) -> None:
    """The last boot's error, and a time that ran out."""
    with pytest.raises(flame.AppImportError, match="no_such_module"):
        make(min=1, max=1, preload=["no_such_module"]).wait_ready(20)
    with pytest.raises(flame.BootTimeout, match="0 of 1 runners"):
        make(max=1).wait_ready(0.001)


def test_failed_boot_is_logged(
    make: Callable[..., flame.Pool], caplog: pytest.LogCaptureFixture
) -> None:
    """With min runners there may be no caller who hears of it."""
    make(min=1, max=1, preload=["no_such_module"])
    until(lambda: "no_such_module" in caplog.text)


@pytest.mark.parametrize(
    ("initializer", "given", "told"),
    [(divmod, (1, 0), "ZeroDivisionError"), (os._exit, (3,), "3 of its processes")],
)
def test_initializer_that_fails_is_logged_once(
    make: Callable[..., flame.Pool],
    caplog: pytest.LogCaptureFixture,
    initializer: Callable[..., object],
    given: tuple[Any, ...],
    told: str,
) -> None:
    """As any boot that failed, though nobody calls."""
    make(min=1, max=1, initializer=initializer, initargs=given)
    until(lambda: told in caplog.text)
    # Each names its runner.
    logged = [text for text in caplog.messages if "did not boot" in text]
    assert len(set(logged)) == len(logged)


def open_once(path: str) -> None:
    """Let the first slot be, and end all others."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        os._exit(3)


def test_runner_that_is_given_up_while_it_runs_a_call_is_logged(
    make: Callable[..., flame.Pool], caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """When it gets no new calls, not when its last one is over, or never."""
    path = str(tmp_path / "first")
    pool = make(max=1, max_concurrency=2, initializer=open_once, initargs=(path,))
    future = pool.submit(time.sleep, 60)
    until(lambda: "3 of its processes" in caplog.text)
    assert not future.done()
    future.cancel()


def test_breaker_tells_callers_at_once(make: Callable[..., flame.Pool]) -> None:
    """During the pause a caller gets the last boot's error, and no boot is tried."""
    events: list[Event] = []
    pool = make(max=1, preload=["no_such_module"], on_event=events.append)
    with pytest.raises(flame.AppImportError) as first:
        pool.call(abs, -1)
    started = time.monotonic()
    with pytest.raises(flame.AppImportError) as second:
        pool.call(abs, -1)
    assert 1 > time.monotonic() - started
    assert first.value.runner == second.value.runner
    assert first.value is not second.value
    assert "no_such_module" in str(pool.status())
    until(lambda: len(events) >= 4)
    assert 1 == sum(isinstance(event, GrowStart) for event in events)


def test_breaker_tries_again_after_the_pause(
    make: Callable[..., flame.Pool], tmp_path: Path
) -> None:
    """What was broken may have been mended."""
    module = tmp_path / "mended_module.py"
    backend = flame.LocalBackend(env={"PYTHONPATH": str(tmp_path)})
    pool = make(max=1, preload=["mended_module"], backend=backend)
    with pytest.raises(flame.AppImportError):
        pool.call(abs, -1)
    module.write_text("")

    def works() -> bool:
        try:
            return pool.call(abs, -1) == 1
        except flame.AppImportError:
            return False

    until(works)
    assert 0 == pool.status().boot_failures


def test_initializer_runs_once_in_each_process(
    make: Callable[..., flame.Pool], tmp_path: Path
) -> None:
    """Before its first call, also in the process that follows a crash."""
    notes = tmp_path / "notes"
    pool = make(min=2, max=2, initializer=take_note, initargs=(str(notes),))
    pool.wait_ready(20)
    assert 2 == len(set(notes.read_text().split()))
    assert all(pool.call(noted) for _ in range(4))
    with pytest.raises(flame.CallCrashed):
        pool.call(os._exit, 3)
    assert all(future.result(20) for future in [pool.submit(noted) for _ in range(4)])
    until(lambda: pool.status().idle_slots == 2)
    assert 3 == len(notes.read_text().split())


def test_initializer_that_raises_fails_the_boot(
    make: Callable[..., flame.Pool], tmp_path: Path
) -> None:
    """Callers are told at once, with its words and traceback; nothing is left."""
    given = (str(tmp_path / "notes"), ValueError("no model"))
    pool = make(max=1, initializer=take_note, initargs=given)
    with pytest.raises(flame.AppImportError, match="ValueError: no model") as caught:
        pool.call(abs, -1)
    assert ("init", True) == (caught.value.phase, "take_note" in caught.value.log_tail)
    assert not pool.status().runners


def test_initializer_that_kills_its_process_fails_the_boot(
    make: Callable[..., flame.Pool],
) -> None:
    """Three processes of a runner in a row, then the callers hear of it."""
    pool = make(max=1, initializer=os._exit, initargs=(3,), queue_timeout=60)
    with pytest.raises(flame.BootError, match="in a row"):
        pool.call(abs, -1)


def test_initializer_that_hangs_fails_the_boot(
    make: Callable[..., flame.Pool],
) -> None:
    """Callers do not wait for it longer than for what hangs in an import."""
    options = {"initializer": time.sleep, "initargs": (600,), "boot_timeout": 0.5}
    pool = make(max=1, queue_timeout=60, **options)
    with pytest.raises(flame.BootTimeout, match=r"0\.5 s for the initializer"):
        pool.call(abs, -1)
    assert not pool.status().runners


def test_initializer_that_hangs_does_not_hold_up_the_end(
    make: Callable[..., flame.Pool],
) -> None:
    """Its process is ended with the pool."""
    pool = make(max=1, initializer=time.sleep, initargs=(60,))
    future = pool.submit(abs, -1)
    until(lambda: pool.status().ready == 1)
    assert not pool.drain(0.2)
    with pytest.raises(flame.PoolClosed):
        future.result(5)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"initializer": 3}, flame.ConfigurationError),
        ({"initializer": print, "initargs": 3}, flame.ConfigurationError),
        ({"initializer": threading.Lock().acquire}, flame.NotSerializable),
    ],
)
def test_bad_initializer_is_refused_at_once(
    options: dict[str, Any], error: type[Exception]
) -> None:
    """By the constructor, not by the first call."""
    with pytest.raises(error):
        flame.Pool("x", max=1, backend=flame.LocalBackend(), **options)


def test_drain_lets_calls_finish(make: Callable[..., flame.Pool], gate: Path) -> None:
    """Within its time; then nothing is taken any more."""
    pool = make(max=1)
    future = pool.submit(hold, str(gate))
    until(future.running)
    threading.Timer(0.3, gate.unlink).start()
    assert pool.drain(10)
    assert future.result(0)
    assert pool.status().closed
    with pytest.raises(flame.PoolClosed):
        pool.call(abs, -1)


def test_drain_ends_what_takes_too_long(
    make: Callable[..., flame.Pool], gate: Path
) -> None:
    """It says that it did, and nothing is left."""
    pool = make(max=1)
    future = pool.submit(hold, str(gate))
    until(future.running)
    assert not pool.drain(0.2)
    with pytest.raises(flame.CallCancelled):
        future.result(5)


@pytest.mark.parametrize(("placement", "busy"), [("pack", 1), ("least_loaded", 2)])
def test_placement_fills_or_spreads(
    make: Callable[..., flame.Pool], gate: Path, placement: str, busy: int
) -> None:
    """Two calls on two runners of two slots."""
    pool = make(min=2, max=2, max_concurrency=2, placement=placement)
    pool.wait_ready(20)
    until(lambda: pool.status().idle_slots == 4)
    futures = [pool.submit(hold, str(gate)) for _ in range(2)]
    until(lambda: pool.status().running == 2)
    assert busy == sum(found.state == "busy" for found in pool.status().runners)
    gate.unlink()
    concurrent.futures.wait(futures)


def test_events_tell_the_life_of_a_pool(make: Callable[..., flame.Pool]) -> None:
    """In order, in one thread, and a callback that raises harms nobody."""
    events: list[Event] = []
    threads: set[str] = set()

    def on_event(event: Event) -> None:
        events.append(event)
        threads.add(threading.current_thread().name)
        raise ValueError("of the app")

    pool = make(max=1, on_event=on_event)
    pool.call(abs, -1)
    with pytest.raises(ZeroDivisionError):
        pool.call(divmod, 1, 0)
    pool.shutdown()
    assert [GrowStart, GrowEnd, CallDone, CallDone, Shrink] == [*map(type, events)]
    assert {"flame-events-elastic"} == threads
    done = [event for event in events if isinstance(event, CallDone)]
    assert [None, ZeroDivisionError] == [d.error and type(d.error) for d in done]
    assert [1, 2] == [d.call.id for d in done]


def test_status_prints_as_a_table(make: Callable[..., flame.Pool]) -> None:
    """One line for the pool, one for each runner."""
    pool = make(min=1, max=2)
    assert "elastic" in str(pool.status())
    pool.wait_ready(20)
    head, line = str(pool.status()).splitlines()
    assert "pool elastic (local): 1 of 1..2 runners" in head
    assert pool.status().runners[0].name in line
    assert "idle      0 of 1 slots busy" in line


def test_status_of_many_runners_is_one_line_for_each(
    make: Callable[..., flame.Pool], gate: Path
) -> None:
    """Aligned; it says what they run, what is placed there, and why they end."""
    pool = make(min=8, max=8, max_concurrency=2)
    pool.wait_ready(30)
    until(lambda: pool.status().idle_slots == 16)
    placed = pool.place(hold, str(gate))
    futures = [pool.submit(hold, str(gate)) for _ in range(11)]
    until(lambda: pool.status().running == 12)
    head, *lines = str(pool.status()).splitlines()
    assert "8 of 8..8 runners, 12 calls run, 0 wait, 4 slots idle" in head
    assert 8 == len(lines)
    assert 1 == len({line.index(" slots busy") for line in lines})
    where = next(r for r in pool.status().runners if r.name == placed.call.runner)
    assert (1, "") == (where.placed, where.reason)
    assert 1 == sum("1 placed" in line for line in lines)
    pool.resize(min=1, max=6)
    reasons = sorted(r.reason for r in pool.status().runners if r.reason)
    assert ["resized", "resized"] == reasons
    assert 2 == str(pool.status()).count("ends: resized")
    gate.unlink()
    concurrent.futures.wait(futures)
    assert placed.join(10)


def test_idle_pool_wakes_nobody(make: Callable[..., flame.Pool]) -> None:
    """At its smallest size nothing in this process runs but heartbeats."""
    others = {task.name for task in Path("/proc/self/task").iterdir()}
    pool = make(min=2, max=4, idle_shutdown_after=0.2)
    pool.wait_ready(20)
    pool.call(abs, -1)
    time.sleep(0.8)
    before = switches(others)
    time.sleep(2.0)
    assert 4 >= switches(others) - before


def switches(others: set[str]) -> int:
    """Return how often threads of this process, others aside, went to sleep."""
    total = 0
    for task in Path("/proc/self/task").iterdir():
        if task.name not in others:
            text = (task / "status").read_text()
            total += int(text.partition("\nvoluntary_ctxt_switches:")[2].split()[0])
    return total
