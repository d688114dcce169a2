"""Calls that do their worst: each ends in its typed outcome, and the next one works."""

from __future__ import annotations

import ctypes
import gc
import os
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Never

import pytest

import flame_backend as flame

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SLEEP = "import time; time.sleep(120)"


class OddError(Exception):
    """Takes other arguments than it keeps."""

    def __init__(self, path: str, *, code: int) -> None:
        super().__init__(f"{path}: {code}")


class UnpicklableError(Exception):
    """Holds what no pickle takes, and says so badly."""

    def __init__(self) -> None:
        super().__init__(threading.Lock())

    def __reduce__(self) -> Never:
        raise RuntimeError

    def __str__(self) -> Never:
        raise RuntimeError


def segfault() -> None:
    ctypes.string_at(0)


def limited(more: int) -> None:
    """Let this process have so many bytes more than it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + more
    resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))


def allocate_at_once() -> int:
    limited(64 << 20)
    return len(bytearray(1 << 40))


def allocate_in_small_pieces() -> None:
    limited(64 << 20)
    kept: list[Any] = []
    while True:
        kept = [kept, [None]]


def spin_in_c() -> object:
    """Hold the interpreter's lock for years."""
    return re.match(r"(a+)+$", "a" * 64 + "b")


def spin_deaf() -> object:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    return spin_in_c()


def leave_children() -> str:
    """Start a child, a daemon in a session of its own, and a plain fork."""
    subprocess.Popen([sys.executable, "-c", SLEEP])
    subprocess.Popen([sys.executable, "-c", SLEEP], start_new_session=True)
    if os.fork() == 0:
        time.sleep(120)
        os._exit(0)
    return "left"


def come_back_twice() -> str:
    """Return in the parent and in a forked child."""
    os.fork()
    return "twice"


def die_beside_a_daemon() -> None:
    """Exit while a process of another session holds copies of every descriptor."""
    if os.fork() == 0:
        os.setsid()
        time.sleep(120)
    os._exit(5)


def raise_unpicklable() -> None:
    raise UnpicklableError


def raise_odd() -> None:
    raise OddError("/a", code=3)


def generator() -> Iterator[int]:
    yield from range(3)


def read_stdin() -> str:
    return sys.stdin.read() + input_or_end() + os.read(0, 10).decode()


def input_or_end() -> str:
    try:
        return input()
    except EOFError:
        return "end"


def close_everything() -> None:
    os.closerange(0, 4096)


def close_streams() -> str:
    sys.stdout.close()
    sys.stderr.close()
    return "closed"


def kill_the_agent() -> None:
    zygote = os.getppid()
    text = Path(f"/proc/{zygote}/stat").read_text()
    os.kill(int(text.rpartition(")")[2].split()[1]), signal.SIGKILL)
    time.sleep(120)


def kill_the_zygote() -> None:
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(120)


def kill_the_group() -> None:
    os.killpg(0, signal.SIGKILL)


def stop_itself() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def recurse() -> None:
    recurse()


def replace_itself() -> None:
    os.execv(sys.executable, [sys.executable, "-c", "raise SystemExit(7)"])


def leave_a_thread() -> str:
    """Leave a thread that never ends, and isn't a daemon."""
    threading.Thread(target=time.sleep, args=(120,)).start()
    return "left"


class Case(NamedTuple):
    """A call, and what comes of it: a value, or an error that says something."""

    function: Callable[..., Any]
    args: tuple[Any, ...] = ()
    value: object = None
    error: type[BaseException] | tuple[type[BaseException], ...] | None = None
    match: str | None = None
    timeout: float | None = 60.0


CASES = [
    Case(segfault, error=flame.CallCrashed, match="SIGSEGV|signal 11"),
    Case(os._exit, (3,), error=flame.CallCrashed, match="code 3"),
    Case(os.abort, error=flame.CallCrashed, match="SIGABRT|signal 6"),
    Case(replace_itself, error=flame.CallCrashed),
    Case(kill_the_group, error=flame.CallCrashed, match="SIGKILL|signal 9"),
    Case(die_beside_a_daemon, error=flame.CallCrashed, match="code 5"),
    Case(close_everything, error=flame.CallCrashed),
    Case(allocate_at_once, error=MemoryError),
    # CPython 3.12 and 3.13 may not survive it; the next call works either way.
    Case(allocate_in_small_pieces, error=(MemoryError, flame.CallCrashed)),
    Case(recurse, error=RecursionError),
    Case(spin_in_c, error=flame.CallTimeout, timeout=0.5),
    Case(spin_deaf, error=flame.CallTimeout, timeout=0.5),
    Case(stop_itself, error=flame.CallTimeout, timeout=0.5),
    Case(leave_children, value="left"),
    Case(leave_a_thread, value="left"),
    Case(come_back_twice, value="twice"),
    Case(raise_unpicklable, error=flame.RemoteError, match="UnpicklableError"),
    Case(raise_odd, error=flame.RemoteError, match="OddError: /a: 3"),
    Case(generator, error=flame.ResultNotSerializable, match="generator"),
    Case(read_stdin, value="end"),
    Case(close_streams, value="closed"),
    Case(sys.exit, (4,), error=flame.RemoteError, match="SystemExit: 4"),
    Case(kill_the_agent, error=flame.RunnerLost, match="signal 9"),
    Case(kill_the_zygote, error=flame.RunnerLost),
]


def below(pid: int) -> set[int]:
    """Return all processes below one."""
    found: set[int] = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[1]) == pid:
                found |= {int(entry.name)} | below(int(entry.name))
    return found


def marked(text: str) -> list[int]:
    """Return the processes whose environment holds this text."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                environment = (entry / "environ").read_bytes()
            except OSError:
                continue
            if text.encode() in environment:
                found.append(int(entry.name))
    return found


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[flame.Pool]:
    """Lend a pool of one runner; no process or descriptor of it is left afterwards.

    Its processes are known by a variable of their environment, wherever they hang.
    """
    gc.collect()  # nothing of an earlier test is closed meanwhile
    open_before, below_before = descriptors(), below(os.getpid())
    backend = flame.LocalBackend(env={"HOSTILE_TEST": str(tmp_path)})
    with flame.Pool("hostile", max=1, backend=backend) as made:
        yield made
        assert marked(f"HOSTILE_TEST={tmp_path}")
    assert [] == marked(f"HOSTILE_TEST={tmp_path}")
    assert below_before == below(os.getpid())
    assert descriptors() == open_before


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.function.__name__)
def test_worst_call_ends_in_its_outcome_and_the_next_one_works(
    pool: flame.Pool, case: Case
) -> None:
    """In time, typed, and without a trace in the processes that serve the next call."""
    assert 3 == pool.call(len, "abc")
    began = time.monotonic()
    view = pool.options(timeout=case.timeout)
    if case.error is None:
        assert case.value == view.call(case.function, *case.args)
    else:
        with pytest.raises(case.error, match=case.match):
            view.call(case.function, *case.args)
    assert time.monotonic() < began + 20
    for _ in range(2):
        assert 4 == pool.call(len, "abcd")


@pytest.mark.parametrize("results", ["data", "pickle"])
@pytest.mark.parametrize("function", [raise_unpicklable, raise_odd])
def test_strange_exception_hangs_nothing_in_either_codec(
    function: Callable[[], None], results: Any
) -> None:
    """Pickle mode proves that an exception comes back before it sends it."""
    with flame.Pool(
        "strange", max=1, results=results, backend=flame.LocalBackend()
    ) as pool:
        with pytest.raises(flame.RemoteError):
            pool.options(timeout=30).call(function)
        assert 4 == pool.call(len, "abcd")


def leave_and_sleep() -> None:
    leave_children()
    time.sleep(120)


@pytest.mark.parametrize("how", ["killed", "idle"])
def test_children_of_a_call_end_with_its_slot(tmp_path: Path, how: str) -> None:
    """Those in sessions of their own too, while the pool lives on."""
    backend = flame.LocalBackend(env={"HOSTILE_TEST": str(tmp_path)})
    variable = f"HOSTILE_TEST={tmp_path}"
    deadline = time.monotonic() + 20
    with flame.Pool("leaving", max=1, idle_shutdown_after=2, backend=backend) as pool:
        if how == "killed":
            with pytest.raises(flame.CallTimeout):
                pool.options(timeout=0.5).call(leave_and_sleep)
        else:
            pool.call(leave_children)
            # Programs that have just begun show no environment for a moment.
            while 6 != len(left := marked(variable)):
                assert time.monotonic() < deadline, left
        # Agent and zygote stay for the next runner.
        while 2 != len(left := marked(variable)):
            assert time.monotonic() < deadline, left
            time.sleep(0.05)
        assert 4 == pool.call(len, "abcd")


def print_much() -> str:
    for _ in range(100):
        print("x" * 1_000_000)
        print("y" * 100, file=sys.stderr)
    return "printed"


def test_hundred_megabytes_of_output_hold_up_nothing(tmp_path: Path) -> None:
    """All of it reaches the parent's standard output, and the call its result."""
    kept = os.dup(1)
    target = os.open(tmp_path / "output", os.O_WRONLY | os.O_CREAT)
    os.dup2(target, 1)
    try:
        with flame.Pool("loud", max=1, backend=flame.LocalBackend()) as pool:
            assert "printed" == pool.options(timeout=60).call(print_much)
            assert 4 == pool.call(len, "abcd")
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(target)
    assert 100 * 1_000_001 == (tmp_path / "output").stat().st_size
