"""The pool on local processes: results, failures, faults, and nothing left behind."""

from __future__ import annotations

import concurrent.futures
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import flame_backend as flame

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True)
class Point:
    """A result type of the app."""

    x: int
    y: int


class ThumbnailError(Exception):
    """An exception of the app with a constructor of its own."""

    def __init__(self, path: str, code: int) -> None:
        super().__init__(path, code)
        self.path = path


def descendants(pid: int) -> set[int]:
    """Return all processes below one."""
    found: set[int] = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[1]) == pid:
                found |= {int(entry.name)} | descendants(int(entry.name))
    return found


@pytest.fixture
def pool() -> Iterator[flame.Pool]:
    """Lend a pool of two runners; nothing of it is left afterwards."""
    before = descendants(os.getpid())
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    with flame.Pool(
        "test",
        max=2,
        backend=flame.LocalBackend(),
        result_types=(Point, ThumbnailError),
    ) as made:
        yield made
    assert before == descendants(os.getpid())
    assert descriptors == len(list(Path("/proc/self/fd").iterdir()))
    assert not [t for t in threading.enumerate() if t.name.startswith("flame")]


def square(number: int) -> int:
    return number * number


def fail(error: Exception) -> None:
    raise error


def slow_square(number: int) -> tuple[int, int]:
    time.sleep(0.02)
    return number * number, os.getpid()


def own_pid(_: object = None) -> int:
    return os.getpid()


def write_file(path: str) -> None:
    Path(path).write_text(str(os.getpid()))
    time.sleep(60)


def test_call_returns_the_result(pool: flame.Pool) -> None:
    """A function of an importable module runs in another process."""
    assert 81 == pool.call(square, 9)
    assert os.getpid() != pool.call(own_pid)


def test_lambda_and_closure_travel_by_value(pool: flame.Pool) -> None:
    """What cannot be imported is sent itself."""
    base = 40
    assert 42 == pool.call(lambda more: base + more, 2)


def test_slot_is_reused_call_after_call(pool: flame.Pool) -> None:
    """Calls in a row run in one process."""
    assert 1 == len({pool.call(own_pid) for _ in range(5)})


def test_map_keeps_order_over_all_runners(pool: flame.Pool) -> None:
    """Results come in the order of the inputs, from both runners."""
    found = list(pool.map(slow_square, range(50)))
    assert [n * n for n in range(50)] == [value for value, _ in found]
    assert 2 == len({pid for _, pid in found})


def test_map_pulls_its_input_lazily(pool: flame.Pool) -> None:
    """An endless input is no problem."""
    pulled: list[int] = []

    def numbers() -> Iterator[int]:
        for number in range(10**9):
            pulled.append(number)
            yield number

    results = pool.map(square, numbers(), buffersize=4)
    assert [0, 1, 4] == [next(results) for _ in range(3)]
    assert 10 > len(pulled)
    results.close()  # type: ignore[attr-defined]


def test_map_returns_exceptions_in_their_place(pool: flame.Pool) -> None:
    """One bad input does not end the others."""
    found = list(pool.map(int, ["1", "x", "3"], return_exceptions=True))
    assert [1, 3] == [found[0], found[2]]
    assert isinstance(found[1], ValueError)


def test_result_types_come_back_as_themselves(pool: flame.Pool) -> None:
    """Dataclasses of the app, nested in plain data."""
    assert {"at": [Point(1, 2)]} == pool.call(lambda: {"at": [Point(1, 2)]})


@pytest.mark.parametrize(
    "error",
    [ValueError("x", 3), KeyError("k"), FileNotFoundError(2, "no", "/f")],
    ids=lambda error: type(error).__name__,
)
def test_builtin_exception_comes_back_as_itself(
    pool: flame.Pool, error: Exception
) -> None:
    """With its arguments, and the runner's traceback as cause."""
    with pytest.raises(type(error)) as caught:
        pool.call(fail, error)
    assert error.args == caught.value.args
    assert isinstance(caught.value.__cause__, flame.RemoteError)
    assert "in fail" in str(caught.value.__cause__)


def test_exception_of_the_app_comes_back_as_itself(pool: flame.Pool) -> None:
    """Classes in result_types are rebuilt without their constructor."""
    with pytest.raises(ThumbnailError) as caught:
        pool.call(fail, ThumbnailError("/a", 3))
    assert ("/a", ("/a", 3)) == (caught.value.path, caught.value.args)


class ExitsWhenPickled(Exception):
    """Ends the program that pickles it."""

    def __reduce__(self) -> Any:
        sys.exit(3)


def fail_in_pickling() -> None:
    raise ExitsWhenPickled


def test_runner_that_pickles_survives_what_it_pickles() -> None:
    """An error goes as text then, and what a result can't be is said of the result."""
    backend = flame.LocalBackend()
    with flame.Pool("x", max=1, backend=backend, results="pickle") as pool:
        pid = pool.call(os.getpid)
        with pytest.raises(flame.RemoteError, match="ExitsWhenPickled"):
            pool.call(fail_in_pickling)
        with pytest.raises(flame.ResultNotSerializable, match="result cannot be"):
            pool.call(threading.Lock)
        assert pid == pool.call(os.getpid)


@pytest.mark.parametrize("call", ["sys.exit(3)", "raise KeyboardInterrupt"])
def test_exception_that_would_steer_the_parent_is_told(
    pool: flame.Pool, call: str
) -> None:
    """SystemExit and KeyboardInterrupt are RemoteErrors, and the slot lives on."""
    pid = pool.call(own_pid)
    with pytest.raises(flame.RemoteError):
        pool.call(exec, f"import sys; {call}")
    assert pid == pool.call(own_pid)


def test_unknown_result_is_refused_by_name(pool: flame.Pool) -> None:
    """The error says which type sits where, and what to do."""
    with pytest.raises(flame.FlameError, match=r"result\['a'\]\[1\].*results="):
        pool.call(eval, "{'a': [1, object()]}")


def test_unsendable_argument_is_refused_here(pool: flame.Pool) -> None:
    """Before anything is sent, with the path to the offender."""
    with pytest.raises(flame.NotSerializable, match="argument 1"):
        pool.call(square, threading.Lock())  # type: ignore[arg-type]


def test_too_large_request_and_result_are_refused() -> None:
    """Both limits name themselves."""
    with flame.Pool(
        "small",
        max=1,
        max_payload=10_000,
        max_result=1000,
        backend=flame.LocalBackend(),
    ) as pool:
        with pytest.raises(flame.PayloadTooLarge, match="max_payload"):
            pool.call(len, b"x" * 20_000)
        with pytest.raises(flame.FlameError, match="max_result"):
            pool.call(eval, "'x' * 5000")
        assert 4 == pool.call(square, 2)


def test_large_buffers_travel_both_ways(pool: flame.Pool) -> None:
    """Megabytes there and back, exactly."""
    data = os.urandom(8 * 1024 * 1024)
    assert data == pool.call(bytes, data)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("os._exit(3)", (3, None)),
        ("os.kill(os.getpid(), 9)", (None, 9)),
        ("ctypes.string_at(0)", (None, 11)),
    ],
)
def test_crashed_slot_is_told_and_replaced(
    pool: flame.Pool, code: str, expected: tuple[int | None, int | None]
) -> None:
    """The caller learns how the process ended; the next call works."""
    with pytest.raises(flame.CallCrashed) as caught:
        pool.call(exec, f"import os, ctypes; {code}")
    assert expected == (caught.value.exit_code, caught.value.signal)
    assert 4 == pool.call(square, 2)


@pytest.mark.parametrize("victim", ["agent", "zygote"])
def test_lost_runner_is_told_and_replaced(pool: flame.Pool, victim: str) -> None:
    """SIGKILL of agent or zygote in the middle of a call ends in RunnerLost."""
    pool.call(square, 1)
    agent = pool.status().backend["agent_pid"]
    children = [pid for pid in descendants(os.getpid()) if parent_of(pid) == agent]
    target = agent if victim == "agent" else children[0]
    future = pool.submit(time.sleep, 60)
    time.sleep(0.3)
    os.kill(target, signal.SIGKILL)
    with pytest.raises((flame.RunnerLost, flame.CallCrashed)) as caught:
        future.result(20)
    assert caught.value.call.runner.startswith("test-")
    assert 4 == pool.call(square, 2)


def parent_of(pid: int) -> int:
    text = Path(f"/proc/{pid}/stat").read_text()
    return int(text.rpartition(")")[2].split()[1])


def test_run_timeout_kills_the_call(pool: flame.Pool) -> None:
    """The process is gone, the caller told, the next call works."""
    with pytest.raises(flame.CallTimeout) as caught:
        pool.options(timeout=0.3).call(time.sleep, 60)
    assert ("run", True) == (caught.value.phase, isinstance(caught.value, TimeoutError))
    assert 4 == pool.call(square, 2)


def test_timeout_holds_against_a_call_that_ignores_signals(pool: flame.Pool) -> None:
    """SIGTERM is followed by SIGKILL."""
    code = "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(60)"
    with pytest.raises(flame.CallTimeout):
        pool.options(timeout=0.2).call(exec, code)
    assert 4 == pool.call(square, 2)


def test_queue_timeout_is_its_own_clock(pool: flame.Pool) -> None:
    """A call that finds no slot in time has not run."""
    busy = [pool.submit(time.sleep, 3) for _ in range(2)]
    while not all(future.running() for future in busy):
        time.sleep(0.01)
    with pytest.raises(flame.CallTimeout) as caught:
        pool.options(queue_timeout=0.2).call(square, 2)
    assert "queue" == caught.value.phase
    concurrent.futures.wait(busy)


def test_future_knows_its_call(pool: flame.Pool) -> None:
    """Runner, host and times are on the future."""
    future = pool.submit(square, 3)
    assert 9 == future.result()
    assert "done" == future.phase
    assert future.call.runner.startswith("test-")
    assert 0 < future.call.run_s


def test_many_threads_share_a_pool(pool: flame.Pool) -> None:
    """Each caller gets its own result."""
    with concurrent.futures.ThreadPoolExecutor(16) as threads:
        found = list(threads.map(lambda n: pool.call(square, n), range(300)))
    assert [n * n for n in range(300)] == found


def test_import_error_of_the_app_fails_the_boot_with_its_traceback() -> None:
    """At once, for every waiting caller, with the module's name."""
    with (
        flame.Pool(
            "broken", max=1, preload=["no_such_module"], backend=flame.LocalBackend()
        ) as pool,
        pytest.raises(flame.AppImportError, match="no_such_module"),
    ):
        pool.call(square, 1)


def test_missing_interpreter_is_refused() -> None:
    """At the first call, with the path that does not exist."""
    backend = flame.LocalBackend(python="/nonexistent/python")
    with (
        flame.Pool("missing", max=1, backend=backend) as pool,
        pytest.raises(flame.ConfigurationError, match="/nonexistent/python"),
    ):
        pool.call(square, 1)


def test_backend_serves_one_pool_at_a_time() -> None:
    """A second one is refused, where its calls and those of the first would hang."""
    backend = flame.LocalBackend()
    with flame.Pool("first", max=1, backend=backend) as first:
        assert first.call(square, 2) == 4
        with (
            flame.Pool("second", max=1, backend=backend) as second,
            pytest.raises(flame.ConfigurationError, match="another pool"),
        ):
            second.call(square, 3)
        assert first.call(square, 3) == 9
    with flame.Pool("third", max=1, backend=backend) as third:
        assert third.call(square, 4) == 16


def test_agent_that_ends_gets_no_boots_when_it_speaks_again() -> None:
    """It was told to end, then stopped, then went on: boots there would time out."""
    backend = flame.LocalBackend()
    with flame.Pool("ending", max=2, backend=backend) as pool:
        assert pool.call(square, 2) == 4
        pid = pool.status().backend["agent_pid"]
        backend.agent_draining("local-1", "SIGTERM")
        for silent in (True, False):
            backend.agent_silent("local-1", silent=silent)
        assert pool.call(square, 3) == 9
        assert pool.status().backend["agent_pid"] not in {pid, None}


def test_closed_pool_takes_no_call() -> None:
    """It says so, also as RuntimeError like every executor."""
    pool = flame.Pool("closed", max=1, backend=flame.LocalBackend())
    pool.shutdown()
    for use in (pool.call, pool.submit):
        with pytest.raises(flame.PoolClosed) as caught:
            use(square, 1)
        assert isinstance(caught.value, RuntimeError)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("name", "Not A Label"),
        ("max", 0),
        ("max_concurrency", 0),
        ("results", "yaml"),
        ("results", []),
        ("result_types", ["text"]),
        ("result_types", ValueError),
        ("preload", "module"),
        ("preload", None),
        ("boot_timeout", 0),
        ("shutdown_timeout", 1e10),
    ],
)
def test_bad_option_is_refused_by_name(option: str, value: object) -> None:
    """ConfigurationError names the option; an unknown one is a TypeError."""
    options: dict[str, object] = {"name": "x", "max": 1, option: value}
    name = options.pop("name")
    with pytest.raises(flame.ConfigurationError, match=option):
        flame.Pool(name, backend=flame.LocalBackend(), **options)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        flame.Pool("x", max=1, no_such_option=1)  # type: ignore[call-arg]


def test_options_that_list_things_may_be_generators() -> None:
    """They are gone through once, so that nothing of them is lost on the way."""
    options: dict[str, Any] = {"result_types": (kind for kind in [Point])}
    with flame.Pool("x", max=1, backend=flame.InlineBackend(), **options) as pool:
        assert pool.call(Point, 1, 2) == Point(1, 2)
    options = {"preload": (name for name in ["no_such_module"])}
    with (
        flame.Pool("x", max=1, backend=flame.InlineBackend(), **options) as pool,
        pytest.raises(flame.AppImportError, match="no_such_module"),
    ):
        pool.call(square, 1)


@pytest.mark.parametrize("backend", ["local", flame.LocalBackend])
def test_what_is_no_backend_is_refused_at_once(backend: Any) -> None:
    """Its name, or the class, is not one."""
    with pytest.raises(flame.ConfigurationError, match=r"LocalBackend\(\)"):
        flame.Pool("x", max=1, backend=backend)


def test_variables_of_runners_are_text() -> None:
    """A number is refused by the variable's name."""
    env: Any = {"WORKERS": 3}
    with pytest.raises(flame.ConfigurationError, match="WORKERS"):
        flame.LocalBackend(env=env)


def test_runner_has_no_flame_variables_and_knows_its_parent(pool: flame.Pool) -> None:
    """Programs that user code starts must not take themselves for runners."""
    assert [] == pool.call(
        eval, "[n for n in __import__('os').environ if 'FLAME' in n]"
    )
    assert "test" == pool.call(eval, "__import__('flame_backend').parent().pool")
    assert flame.parent() is None


def test_parent_is_known_by_its_facts() -> None:
    """What two calls are told is equal: it was one and the same who started both."""
    local = flame.LocalBackend()
    with flame.Pool("facts", max=1, backend=local, results="pickle") as pool:
        first, second = pool.call(flame.parent), pool.call(flame.parent)
    assert first == second
    assert {first: "facts"} == {second: second.pool}
    assert first != flame.Parent("facts", "another", first.transport)


def listening(pid: int) -> set[str]:
    """Return the sockets of a process that take connections, by inode."""
    found = set()
    for name in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:]:
            fields = line.split()
            found |= {fields[9]} if fields[3] == "0A" else set()
    for line in Path(f"/proc/{pid}/net/unix").read_text().splitlines()[1:]:
        fields = line.split()
        found |= {fields[6]} if fields[3] == "00010000" else set()
    held = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        try:
            held.add(descriptor.readlink().name.removeprefix("socket:[").rstrip("]"))
        except FileNotFoundError:
            continue
    return found & held


def test_nothing_listens_for_local_runners() -> None:
    """No port and no named socket: a stranger on this machine has nothing to dial."""
    with socket.create_server(("127.0.0.1", 0)):
        before = listening(os.getpid())
        assert before, "a socket that listens is seen"
        others = descendants(os.getpid())
        with flame.Pool("deaf", max=1, backend=flame.LocalBackend()) as pool:
            assert 1 == pool.call(abs, -1)
            processes = descendants(os.getpid()) - others
            assert len(processes) >= 3
            assert [set()] * len(processes) == [listening(pid) for pid in processes]
            assert before == listening(os.getpid())


def test_pool_inside_a_runner_is_refused(pool: flame.Pool) -> None:
    """Runners of runners are a fork bomb."""
    code = "__import__('flame_backend').Pool('n', max=1).call(abs, 1)"
    with pytest.raises(flame.RemoteError, match="NestedCallError"):
        pool.call(eval, code)


SCRIPT = """
    import os, sys, time
    import flame_backend as flame

    def work(path):
        open(path, "w").write(str(os.getpid()))
        time.sleep(60)

    if __name__ == "__main__":
        pool = flame.Pool("killed", max=2, backend=flame.LocalBackend())
        futures = [pool.submit(work, sys.argv[1] + str(n)) for n in range(2)]
        {after}
        futures[0].result()
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("after", ["pass", "os.fork() or time.sleep(60)"])
def test_killed_parent_leaves_no_process(
    tmp_path: Path, number: signal.Signals, after: str
) -> None:
    """However the parent ends, also after it forked, its runners are gone in 5 s."""
    script = tmp_path / "app.py"
    script.write_text(textwrap.dedent(SCRIPT).format(after=after))
    marks = [tmp_path / f"mark{n}" for n in range(2)]
    parent = subprocess.Popen(
        [sys.executable, script, tmp_path / "mark"], stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 20
    while not all(mark.exists() and mark.read_text() for mark in marks):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    pids = [int(mark.read_text()) for mark in marks]
    below = descendants(parent.pid)
    assert set(pids) <= below
    parent.send_signal(number)
    parent.wait(20)
    deadline = time.monotonic() + 5
    while left := [pid for pid in pids if Path(f"/proc/{pid}").exists()]:
        assert time.monotonic() < deadline, left
        time.sleep(0.05)
    for pid in below - set(pids):
        if Path(f"/proc/{pid}/cmdline").exists() and "app.py" in Path(
            f"/proc/{pid}/cmdline"
        ).read_text(errors="replace"):
            os.kill(pid, signal.SIGKILL)  # the child that the test had it fork


def test_runner_loads_nothing_heavy_before_hello() -> None:
    """The agent starts with the standard library and our small modules only."""
    code = (
        "import sys, flame_backend.runner.__main__, flame_backend.runner.agent\n"
        "print(*sorted({n.partition('.')[0] for n in sys.modules}))"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True
    )
    heavy = {
        "asyncio", "cloudpickle", "cryptography", "kubetls", "logging", "msgspec",
        "ormsgpack", "pickle", "ssl", "urllib3", "yaml",
    }  # fmt: skip
    assert set() == heavy & set(done.stdout.split())
