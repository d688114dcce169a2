"""The forms of a call, what their futures know, and how they are tried again."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import logging
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import flame_backend as flame
from flame_backend.events import CallDone, Event
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator


def own_pid(_: object = None) -> int:
    return os.getpid()


def mark_and_sleep(path: str) -> None:
    Path(path).write_text(str(os.getpid()))
    time.sleep(60)


def fail_until(path: str, tries: int, how: str) -> int:
    """Count its runs in a file; fail in the first ones."""
    with Path(path).open("a") as file:
        file.write("x")
    runs = len(Path(path).read_text())
    if runs < tries:
        if how == "crash":
            os.kill(os.getpid(), signal.SIGKILL)
        raise ConnectionError(runs)
    return runs


def raise_interrupt() -> None:
    raise KeyboardInterrupt


def gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


@pytest.fixture(scope="module")
def pool() -> Iterator[flame.Pool]:
    """Lend a pool of two runners to all tests of this module."""
    with flame.Pool("forms", max=2, backend=flame.LocalBackend()) as made:
        yield made


# ---------------------------------------------------------------------- forms


def test_acall_awaits_the_result(pool: flame.Pool) -> None:
    """Beside others, in one loop."""

    async def main() -> list[int]:
        return await asyncio.gather(*(pool.acall(abs, -n) for n in range(5)))

    assert [0, 1, 2, 3, 4] == asyncio.run(main())


def test_cancelled_task_kills_its_call(pool: flame.Pool, tmp_path: Path) -> None:
    """The process is gone, the task is cancelled, the next call works."""
    mark = tmp_path / "mark"

    async def main() -> None:
        task = asyncio.create_task(pool.acall(mark_and_sleep, str(mark)))
        while not (mark.exists() and mark.read_text()):  # noqa: ASYNC110 - a file
            await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    until(lambda: gone(int(mark.read_text())))
    assert 1 == pool.call(abs, -1)


def test_asyncio_takes_the_pool_as_its_executor(pool: flame.Pool) -> None:
    """run_in_executor asks for an Executor and gets one."""

    async def main() -> int:
        return await asyncio.get_running_loop().run_in_executor(pool, own_pid)

    assert os.getpid() != asyncio.run(main())


def test_standard_library_waits_for_its_futures(pool: flame.Pool) -> None:
    """as_completed and wait, with a future that is cancelled among them."""
    futures = [pool.submit(abs, -n) for n in range(4)] + [pool.submit(time.sleep, 60)]
    until(futures[-1].running)
    futures[-1].cancel()
    done, pending = concurrent.futures.wait(futures, 20)
    assert (5, 0) == (len(done), len(pending))
    assert 5 == len(list(concurrent.futures.as_completed(futures, 20)))


def test_cast_returns_at_once_and_logs_its_failure(
    pool: flame.Pool, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """Nobody collects it, so the log has the reason."""
    pool.cast(Path.touch, tmp_path / "made")
    until((tmp_path / "made").exists)
    with caplog.at_level(logging.ERROR, "flame_backend.pool.forms"):
        pool.cast(divmod, 1, 0)
        until(lambda: bool(caplog.records))
        pool.cast(abs, threading.Lock())  # type: ignore[arg-type]
        until(lambda: len(caplog.records) == 2)
    assert "ZeroDivisionError" in caplog.text
    assert "argument 1" in caplog.text


def test_cast_reaches_on_event() -> None:
    """Its failure as any other call's."""
    events: list[Event] = []
    backend = flame.LocalBackend()
    with flame.Pool("cast", max=1, on_event=events.append, backend=backend) as pool:
        pool.cast(divmod, 1, 0)
    found = [event for event in events if isinstance(event, CallDone)]
    assert [ZeroDivisionError] == [type(event.error) for event in found]


def test_map_goes_through_options(pool: flame.Pool) -> None:
    """A view of a pool has every form of a call."""
    quick = pool.options(timeout=1)
    assert [1, 2] == list(quick.map(abs, [-1, -2]))
    with pytest.raises(flame.CallTimeout):
        list(quick.map(time.sleep, [60]))


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("timeout", float("inf")),
        ("timeout", "2"),
        ("chunksize", "2"),
        ("chunksize", 1.5),
        ("chunksize", 0),
        ("chunksize", 2**64),
        ("buffersize", "2"),
        ("buffersize", 0),
    ],
)
def test_bad_option_of_map_is_refused_by_name(option: str, value: Any) -> None:
    """Before any input is taken."""
    rows = iter([1, 2])
    with flame.Pool("m", max=1, backend=flame.InlineBackend()) as pool:
        with pytest.raises(flame.ConfigurationError, match=f"{option}: "):
            pool.map(abs, rows, return_exceptions=True, **{option: value})
        assert [1, 2] == list(pool.map(abs, rows, timeout=60))


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("timeout", [0.2, 0, -1])
def test_map_that_is_late_says_so(
    pool: flame.Pool, timeout: float, ordered: bool
) -> None:
    """With its limit; one that is over at once is as for every executor's map."""
    results = pool.map(time.sleep, [60], timeout=timeout, ordered=ordered)
    with pytest.raises(TimeoutError, match=rf"within {timeout:g} s"):
        next(results)


def test_text_of_a_pool_says_which_it_is() -> None:
    """Its name, its size and where its runners come from; of its views as well."""
    pool = flame.Pool("a", max=1, max_concurrency=3, backend=flame.InlineBackend())
    assert "<flame_backend.Pool a, at most 1 runner, InlineBackend>" == repr(pool)
    pool.resize(max=8)
    told = "<flame_backend.Pool a, at most 8 runners, InlineBackend>"
    assert told == repr(pool)
    assert f"<View of {told}>" == repr(pool.options(timeout=1))
    pool.shutdown()
    assert told == repr(pool)


def test_view_keeps_its_pool() -> None:
    """Nobody else holds it, and it is not shut down meanwhile."""
    view = flame.Pool("view", max=1, backend=flame.InlineBackend()).options(timeout=5)
    gc.collect()
    assert 1 == view.call(abs, -1)


def test_dropped_pool_ends_its_runners() -> None:
    """A pool that nobody holds any more is shut down, after its calls."""
    pool = flame.Pool("dropped", max=1, backend=flame.LocalBackend())
    pid = pool.call(own_pid)
    future = pool.submit(time.sleep, 0.3)
    del pool
    gc.collect()
    assert future.result(10) is None
    until(lambda: gone(pid))


# ---------------------------------------------------------------------- cancelling


def test_cancel_of_a_running_call_kills_it(pool: flame.Pool, tmp_path: Path) -> None:
    """True at once, waiters are told, the process goes, its slot comes back."""
    mark = tmp_path / "mark"
    called: list[flame.FlameFuture[None]] = []
    future = pool.submit(mark_and_sleep, str(mark))
    future.add_done_callback(called.append)  # type: ignore[arg-type]
    until(lambda: mark.exists() and bool(mark.read_text()))
    assert "running" == future.phase
    assert future.running()
    assert "state=running" in repr(future)
    assert future.cancel()
    assert (True, True, [future]) == (future.cancelled(), future.done(), called)
    assert future.cancel(), "as often as one likes"
    with pytest.raises(concurrent.futures.CancelledError):
        future.result(0)
    until(lambda: gone(int(mark.read_text())))
    assert [1, 2, 3] == list(pool.map(abs, [-1, -2, -3]))


def test_cancel_of_a_waiting_call_removes_it(pool: flame.Pool, tmp_path: Path) -> None:
    """It never runs."""
    busy = [pool.submit(time.sleep, 1.0) for _ in range(2)]
    until(lambda: all(future.running() for future in busy))
    future = pool.submit(Path.touch, tmp_path / "never")
    assert "queued" == future.phase
    assert future.cancel()
    concurrent.futures.wait(busy)
    pool.call(abs, -1)
    assert not (tmp_path / "never").exists()


def test_cancel_of_a_done_call_does_nothing(pool: flame.Pool) -> None:
    """False, and the result stays."""
    future = pool.submit(abs, -7)
    assert 7 == future.result(10)
    assert not future.cancel()
    assert ("done", 7) == (future.phase, future.result(0))


def test_cancels_of_many_threads_agree(pool: flame.Pool) -> None:
    """Whatever the moment, a call is either done or cancelled, and the slot usable."""
    for number in range(40):
        future = pool.submit(time.sleep, 0.0005 * (number % 5))
        with concurrent.futures.ThreadPoolExecutor(4) as threads:
            answers = list(threads.map(lambda _, f=future: f.cancel(), range(4)))
        concurrent.futures.wait([future], 20)
        assert future.done()
        assert {future.cancelled()} == set(answers) or not future.cancelled()
    assert [0, 1, 2, 3] == list(pool.map(abs, range(4)))


def test_unlinked_call_outlives_its_caller(pool: flame.Pool, tmp_path: Path) -> None:
    """Cancelling does not end it while it runs."""
    free = pool.options(link=False)
    future = free.submit(time.sleep, 1.5)
    until(future.running)
    assert not future.cancel()
    assert future.result(10) is None
    assert 3 == free.call(abs, -3)


SCRIPT = """
    import sys, threading, time, signal, os
    import flame_backend as flame

    def work(path):
        open(path + ".on", "w").close()
        time.sleep(2)
        open(path, "w").close()

    if __name__ == "__main__":
        pool = flame.Pool("link", max=1, backend=flame.LocalBackend())
        def interrupt():
            while not os.path.exists(sys.argv[1] + ".on"):
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGINT)
        threading.Thread(target=interrupt).start()
        try:
            pool.options(link=sys.argv[2] == "link").call(work, sys.argv[1])
        except KeyboardInterrupt:
            pool.shutdown()
            print("interrupted", os.path.exists(sys.argv[1]))
"""


@pytest.mark.parametrize(("link", "finished"), [("link", "False"), ("free", "True")])
def test_interrupted_caller_ends_its_call_when_linked(
    tmp_path: Path, link: str, finished: str
) -> None:
    """Ctrl-C in `call` kills the call, or leaves it to finish."""
    script = tmp_path / "app.py"
    script.write_text(textwrap.dedent(SCRIPT))
    done = subprocess.run(
        [sys.executable, script, tmp_path / "made", link],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert f"interrupted {finished}\n" == done.stdout, done.stderr


# ---------------------------------------------------------------------- facts


def test_call_info_is_on_futures_and_errors(pool: flame.Pool) -> None:
    """Runner, host, tries and times."""
    future = pool.submit(time.sleep, 0.2)
    future.result(10)
    facts = future.call
    assert facts.runner.startswith("forms-")
    assert facts.node
    assert 1 == facts.attempt
    assert 0.2 <= facts.run_s < 10
    assert 0 < facts.boot_s
    with pytest.raises(flame.CallCrashed) as caught:
        pool.call(os._exit, 3)
    assert caught.value.call.runner.startswith("forms-")
    assert facts.id < caught.value.call.id


def test_queued_seconds_are_those_before_the_start(pool: flame.Pool) -> None:
    """Time in the queue is not time of the run."""
    busy = [pool.submit(time.sleep, 1) for _ in range(2)]
    future = pool.submit(abs, -1)
    concurrent.futures.wait([*busy, future])
    assert 0.2 < future.call.queued_s
    assert future.call.queued_s > future.call.run_s


# ---------------------------------------------------------------------- retries


@pytest.mark.parametrize("form", ["call", "submit"])
@pytest.mark.parametrize(
    ("how", "on"), [("crash", (flame.CallCrashed,)), ("raise", (ConnectionError,))]
)
def test_retry_tries_again_what_it_names(
    pool: flame.Pool, tmp_path: Path, form: str, how: str, on: tuple[Any, ...]
) -> None:
    """At least once is the app's choice, error by error."""
    retry = flame.Retry(times=3, on=on, delay=0.05)
    view = pool.options(retries=retry)
    path = str(tmp_path / "runs")
    if form == "call":
        assert 3 == view.call(fail_until, path, 3, how)
    else:
        future = view.submit(fail_until, path, 3, how)
        assert 3 == future.result(20)
        assert 3 == future.call.attempt


def test_retry_gives_up_after_its_times(pool: flame.Pool, tmp_path: Path) -> None:
    """With the last error."""
    retry = flame.Retry(times=1, on=(ConnectionError,), delay=0.01)
    with pytest.raises(ConnectionError) as caught:
        pool.options(retries=retry).call(fail_until, str(tmp_path / "r"), 9, "raise")
    assert (2,) == caught.value.args


@pytest.mark.parametrize("form", ["call", "submit"])
def test_retry_goes_on_for_thousands_of_tries(inline: flame.Pool, form: str) -> None:
    """Its pause stays a number; an error there would leave the call without answer."""
    retry = flame.Retry(times=1100, on=(ConnectionError,), delay=0)

    def fail() -> None:
        raise ConnectionError

    view = inline.options(retries=retry)
    with pytest.raises(ConnectionError):
        view.call(fail) if form == "call" else view.submit(fail).result(30)


@pytest.mark.parametrize("retries", [0, 5])
def test_started_call_runs_once_without_a_word(
    pool: flame.Pool, tmp_path: Path, retries: int
) -> None:
    """A number of retries does not count for calls that may have run."""
    path = tmp_path / "runs"
    with pytest.raises(flame.CallCrashed):
        pool.options(retries=retries).call(fail_until, str(path), 9, "crash")
    assert "x" == path.read_text()


def test_retries_cover_boots_that_fail(tmp_path: Path) -> None:
    """The call never started, so a number is enough."""
    module = tmp_path / "late_module.py"
    backend = flame.LocalBackend(env={"PYTHONPATH": str(tmp_path)})
    with flame.Pool(
        "retries", max=1, preload=["late_module"], retries=5, backend=backend
    ) as pool:
        future = pool.submit(abs, -1)
        until(lambda: pool.status().boot_failures > 0)
        module.write_text("")
        assert 1 == future.result(30)
        assert 1 < future.call.attempt


def test_waiting_retry_can_be_cancelled_and_ends_with_the_pool(tmp_path: Path) -> None:
    """The pause before a try is no time in which nobody answers."""
    retry = flame.Retry(times=1, on=(ConnectionError,), delay=60.0)
    backend = flame.LocalBackend()
    pool = flame.Pool("pause", max=1, retries=retry, backend=backend)
    paths = [tmp_path / "a", tmp_path / "b"]
    first, second = (pool.submit(fail_until, str(p), 9, "raise") for p in paths)
    until(lambda: all(path.exists() for path in paths))
    until(lambda: pool.status().running == 0)
    assert first.cancel()
    assert not pool.drain(0.1)
    with pytest.raises(flame.PoolClosed):
        second.result(5)


@pytest.mark.parametrize("retries", [-1, "3", True])
def test_bad_retries_are_refused(retries: Any) -> None:
    """By the option's name."""
    with pytest.raises(flame.ConfigurationError, match="retries"):
        flame.Pool("x", max=1, retries=retries, backend=flame.LocalBackend())
    with pytest.raises(flame.ConfigurationError, match="retries"):
        flame.Retry(on=(3,))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "options",
    [
        {"on": [ConnectionError]},
        {"on": ConnectionError},
        {"delay": float("nan")},
        {"delay": "1"},
        {"max_delay": float("inf")},
    ],
)
def test_retry_that_would_fail_later_is_refused(options: dict[str, Any]) -> None:
    """Not with the first error, which would leave its call without an answer."""
    with pytest.raises(flame.ConfigurationError, match="retries"):
        flame.Retry(**options)


# ---------------------------------------------------------------------- inline


@pytest.fixture
def inline() -> Iterator[flame.Pool]:
    """Lend a pool without processes."""
    with flame.Pool("inline", max=2, backend=flame.InlineBackend()) as made:
        yield made


def test_inline_call_runs_in_this_thread(inline: flame.Pool) -> None:
    """So that mocks, breakpoints and transactions of a test hold."""
    here = threading.get_ident()
    assert here == inline.call(threading.get_ident)
    assert os.getpid() == inline.submit(own_pid).result(5)
    assert [0, 1, 2] == list(inline.map(abs, range(3)))


def test_inline_arguments_and_results_are_copies(inline: flame.Pool) -> None:
    """As they would be behind a wire."""
    given = [1]
    inline.call(given.append, 2)
    assert [1] == given
    assert given is not inline.call(list, given)


@pytest.mark.parametrize(
    ("code", "error", "text"),
    [
        ("object()", flame.ResultNotSerializable, "object"),
        ("'x' * 2**25", flame.PayloadTooLarge, "max_result"),
        ("1 / 0", ZeroDivisionError, "division"),
        ("__import__('sys').exit(3)", flame.RemoteError, "SystemExit"),
    ],
)
def test_inline_errors_are_those_of_a_runner(
    inline: flame.Pool, pool: flame.Pool, code: str, error: type[Exception], text: str
) -> None:
    """Type and text, from both backends."""
    for found in (inline, pool):
        with pytest.raises(error, match=text):
            found.call(eval, code)
        with pytest.raises(flame.NotSerializable, match="argument 1"):
            found.call(print, threading.Lock())


def test_ctrl_c_in_an_inline_call_is_the_callers(inline: flame.Pool) -> None:
    """As everywhere in this thread; the pool goes on."""
    with pytest.raises(KeyboardInterrupt):
        inline.call(signal.raise_signal, signal.SIGINT)
    assert 1 == inline.call(abs, -1)
    with pytest.raises(flame.RemoteError, match="KeyboardInterrupt"):
        inline.submit(raise_interrupt).result(5)


def test_inline_call_may_not_use_a_pool(inline: flame.Pool) -> None:
    """What a runner would refuse is refused, in its own words."""
    text = (
        "__import__('flame_backend').Pool('n', max=1, "
        "backend=__import__('flame_backend').InlineBackend()).call(abs, 1)"
    )
    with pytest.raises(flame.RemoteError, match="NestedCallError"):
        inline.call(eval, text)
    assert 1 == inline.call(abs, -1)


def test_inline_timeout_is_told_when_the_call_is_over(inline: flame.Pool) -> None:
    """Nobody can kill a thread; the caller still gets the error it is to handle."""
    with pytest.raises(flame.CallTimeout):
        inline.options(timeout=0.1).call(time.sleep, 0.3)
    assert 1 == inline.call(abs, -1)


def test_inline_pool_sizes_like_any_other() -> None:
    """single_use, renewals and idling are the pool's, not the backend's."""
    for options in ({"single_use": True}, {"max_tasks_per_child": 1}):
        backend = flame.InlineBackend()
        with flame.Pool("sizes", max=1, backend=backend, **options) as pool:  # type: ignore[arg-type]
            assert [1, 1, 1] == [pool.call(abs, -1) for _ in range(3)]


def test_environment_chooses_the_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """FLAME_BACKEND wins over the place; an unknown one is refused by name."""
    for kind in ("inline", "local"):
        monkeypatch.setenv("FLAME_BACKEND", kind)
        with flame.Pool("chosen", max=1) as pool:
            pool.call(abs, -1)
            assert kind == pool.status().backend["kind"]
    monkeypatch.setenv("FLAME_BACKEND", "cloud")
    with pytest.raises(flame.ConfigurationError, match="FLAME_BACKEND"):
        flame.Pool("chosen", max=1)
