"""Each line of the second table of docs/process-pool.md, seen on both executors."""

from __future__ import annotations

import concurrent.futures
import gc
import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import flame_backend as flame

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Plain:
    """Neither data nor known to the codec."""


class OwnError(Exception):
    """Of the app."""


def make_plain(_: object = None) -> Plain:
    return Plain()


def raise_own() -> None:
    raise OwnError("of the app")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fail_at_start() -> None:
    raise ValueError("no model")


def put(queue: Any, value: int) -> int:
    queue.put(value)
    return value


def take_lock(lock: Any) -> None:
    with lock:
        pass


def use_a_pool() -> int:
    with flame.Pool("inner", max=1, backend=flame.LocalBackend()) as pool:
        return pool.call(abs, -1)


@pytest.fixture(scope="module")
def pool() -> Iterator[flame.Pool]:
    """Lend a pool of two runners."""
    with flame.Pool("differ", max=2, backend=flame.LocalBackend()) as made:
        yield made


@pytest.fixture
def standard() -> Iterator[concurrent.futures.ProcessPoolExecutor]:
    """Lend the standard library's executor of two workers."""
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as made:
        yield made


def test_constructor_wants_a_name_and_a_size() -> None:
    """And knows no context."""
    make: Callable[..., flame.Pool] = flame.Pool
    for options in ({}, {"max": 2, "mp_context": None}, {"max_workers": 2}):
        with pytest.raises(TypeError):
            make("differ", **options)
    with pytest.raises(ValueError, match="max"):
        make("differ", max=0)


def test_results_are_data_unless_asked_otherwise(
    pool: flame.Pool, standard: concurrent.futures.Executor
) -> None:
    """The refusal names the way out."""
    assert isinstance(standard.submit(make_plain).result(20), Plain)
    with pytest.raises(flame.ResultNotSerializable, match='results="pickle"'):
        pool.call(make_plain)
    backend = flame.LocalBackend()
    with flame.Pool("differ", max=1, results="pickle", backend=backend) as other:
        assert isinstance(other.call(make_plain), Plain)


def test_exceptions_of_the_app_are_told_unless_known(
    pool: flame.Pool, standard: concurrent.futures.Executor
) -> None:
    """With name, text and traceback; as themselves when they are in result_types."""
    assert isinstance(standard.submit(raise_own).exception(20), OwnError)
    with pytest.raises(flame.RemoteError, match="of the app") as caught:
        pool.call(raise_own)
    assert caught.value.type_name.endswith("OwnError")
    assert "in raise_own" in caught.value.traceback_text
    backend = flame.LocalBackend()
    with flame.Pool("differ", max=1, result_types=[OwnError], backend=backend) as knows:
        assert isinstance(knows.submit(raise_own).exception(20), OwnError)


def test_crash_costs_one_call(
    pool: flame.Pool, standard: concurrent.futures.Executor
) -> None:
    """Others go on, and so does the pool."""
    with pytest.raises(BrokenProcessPool):
        standard.submit(die).result(20)
    with pytest.raises(BrokenProcessPool):
        standard.submit(abs, -1)
    other = pool.submit(time.sleep, 0.5)
    with pytest.raises(flame.CallCrashed):
        pool.submit(die).result(20)
    assert other.result(20) is None
    assert 1 == pool.submit(abs, -1).result(20)


def test_initializer_that_raises_does_not_break_the_pool_for_good(
    tmp_path: Path,
) -> None:
    """Callers hear why; it is tried again after a pause."""
    flag = tmp_path / "flag"
    backend = flame.LocalBackend()
    with flame.Pool(
        "differ", max=1, initializer=Path.unlink, initargs=(flag,), backend=backend
    ) as pool:
        error = pool.submit(abs, -1).exception(20)
        assert isinstance(error, flame.AppImportError)
        assert "FileNotFoundError" in str(error)
        flag.touch()
        deadline = time.monotonic() + 20
        while pool.submit(abs, -1).exception(20) is not None:
            assert time.monotonic() < deadline
            time.sleep(0.1)


def test_exit_in_a_call_does_not_end_its_caller(
    pool: flame.Pool, standard: concurrent.futures.Executor
) -> None:
    """It is told, by name."""
    with pytest.raises(SystemExit):
        standard.submit(sys.exit, 3).result(20)
    with pytest.raises(flame.RemoteError, match="SystemExit"):
        pool.submit(sys.exit, 3).result(20)


def test_running_call_can_be_cancelled(
    pool: flame.Pool, standard: concurrent.futures.Executor
) -> None:
    """Unless link=False says that it is to finish."""
    for executor, cancels in (
        (standard, False),
        (pool, True),
        (pool.options(link=False), False),
    ):
        future = executor.submit(time.sleep, 1.0)
        while not future.running():
            time.sleep(0.01)
        assert cancels == future.cancel()
        concurrent.futures.wait([future])


def test_shutdown_that_cancels_leaves_no_waiting_call_to_run() -> None:
    """Not even those that would have been next."""
    pool = flame.Pool("differ", max=1, backend=flame.LocalBackend())
    running = pool.submit(time.sleep, 1.5)
    while not running.running():
        time.sleep(0.01)
    waiting = [pool.submit(abs, -n) for n in range(5)]
    pool.shutdown(cancel_futures=True)
    assert running.result(0) is None
    assert all(future.cancelled() for future in waiting)


def test_map_takes_its_input_as_it_goes(pool: flame.Pool) -> None:
    """So it may be endless."""
    results = pool.map(abs, itertools.count(-3))
    assert [3, 2, 1, 0, 1] == list(itertools.islice(results, 5))


def test_what_cannot_be_sent_is_named_on_the_future(
    pool: flame.Pool, standard: concurrent.futures.Executor
) -> None:
    """By the path to it."""
    assert isinstance(standard.submit(id, threading.Lock()).exception(20), TypeError)
    error = pool.submit(id, {"app": [threading.Lock()]}).exception(20)
    assert isinstance(error, flame.NotSerializable)
    assert isinstance(error, TypeError)
    assert "['app'][0]" in str(error)


def test_lock_is_not_inherited() -> None:
    """The constructor says so, not the first call."""
    lock = multiprocessing.get_context("spawn").Lock()
    with pytest.raises(flame.NotSerializable):
        flame.Pool(
            "differ",
            max=1,
            initializer=take_lock,
            initargs=(lock,),
            backend=flame.LocalBackend(),
        )


def test_managers_proxies_are_arguments_as_any() -> None:
    """Local processes are of the parent's family, as multiprocessing has it."""
    with multiprocessing.get_context("spawn").Manager() as manager:
        queue = manager.Queue()
        with flame.Pool("differ", max=2, backend=flame.LocalBackend()) as pool:
            assert [1, 2] == [pool.call(put, queue, number) for number in (1, 2)]
        assert {1, 2} == {queue.get(timeout=5), queue.get(timeout=5)}


SCRIPT = """
    import flame_backend as flame
    factor = 3
    def scaled(number):
        return factor * number
    print("the main script runs")
    with flame.Pool("differ", max=2, backend=flame.LocalBackend()) as pool:
        factor = 4
        print(pool.submit(scaled, 2).result(), pool.submit(lambda: factor).result())
"""


def test_main_script_is_not_run_again(tmp_path: Path) -> None:
    """It needs no guard, and its functions come with the globals they name."""
    script = tmp_path / "app.py"
    script.write_text(textwrap.dedent(SCRIPT))
    done = subprocess.run(
        [sys.executable, script],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "the main script runs\n8 4\n" == done.stdout, done.stderr


def test_pool_in_a_worker_is_refused(pool: flame.Pool) -> None:
    """By name."""
    with pytest.raises(flame.RemoteError, match="NestedCallError"):
        pool.call(use_a_pool)


def test_idle_processes_end_and_come_back() -> None:
    """None would keep them."""
    for seconds, stays in ((0.3, False), (None, True)):
        backend = flame.LocalBackend()
        with flame.Pool(
            "differ", max=1, idle_shutdown_after=seconds, backend=backend
        ) as pool:
            first = pool.call(os.getpid)
            time.sleep(1.5)
            assert stays == (first == pool.call(os.getpid))


def test_exit_of_the_interpreter_does_not_wait_for_ever(tmp_path: Path) -> None:
    """Only for shutdown_timeout."""
    script = tmp_path / "app.py"
    script.write_text(
        textwrap.dedent(
            """
            import time
            import flame_backend as flame
            backend = flame.LocalBackend()
            pool = flame.Pool("differ", max=1, shutdown_timeout=0.5, backend=backend)
            future = pool.submit(time.sleep, 600)
            while not future.running():
                time.sleep(0.01)
            """
        )
    )
    began = time.monotonic()
    subprocess.run([sys.executable, script], timeout=60, check=True)
    assert time.monotonic() - began < 30


def test_number_of_workers_is_told_as_executors_have_it(pool: flame.Pool) -> None:
    """Dask and others size their batches by it."""
    assert 2 == pool._max_workers
    with flame.Pool("differ", max=3, max_concurrency=4) as other:
        assert 12 == other._max_workers


@pytest.mark.parametrize("chunksize", [1, 3])
def test_map_keeps_no_result_alive(chunksize: int) -> None:
    """As in the standard library: what the caller lets go is gone."""
    backend = flame.LocalBackend()
    with flame.Pool("differ", max=1, results="pickle", backend=backend) as pool:
        results = pool.map(make_plain, range(6), chunksize=chunksize)
        for result in results:
            seen = weakref.ref(result)
            del result
            gc.collect()
            assert seen() is None
