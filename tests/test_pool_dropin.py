"""Programs written for ProcessPoolExecutor, with only the constructor changed.

Each script runs as a program of its own on both executors; what it prints, how it ends
and how long it takes must agree.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import NamedTuple

import pytest

import flame_backend as flame

CONSTRUCTORS = {
    "standard": """
        from concurrent.futures import ProcessPoolExecutor
        def executor(**options):
            return ProcessPoolExecutor(max_workers=4, **options)
    """,
    "flame": """
        import flame_backend
        def executor(**options):
            backend = flame_backend.LocalBackend()
            return flame_backend.Pool("dropin", max=4, backend=backend, **options)
    """,
}

PROGRAMS = {
    "globals that an initializer and calls set": """
        import os
        model = None
        seen = {}
        class Counter:
            def __init__(self):
                self.times = 0
            def count(self):
                self.times += 1
                return self.times
        counter = Counter()
        def load(name):
            global model
            model = name.upper()
        def known():
            return model
        def work(n):
            times = counter.count()
            seen[n] = times
            return (os.getpid(), times), known(), len(seen)
        if __name__ == "__main__":
            with executor(initializer=load, initargs=("weights",)) as pool:
                last = {}
                for (pid, times), name, sees in pool.map(work, range(40)):
                    assert name == "WEIGHTS" and sees == times
                    assert times == last.get(pid, 0) + 1
                    last[pid] = times
                print(sum(last.values()), model, counter.times, seen)
    """,
    "map with chunks, in order, over several inputs": """
        def add(a, b):
            return a + b
        if __name__ == "__main__":
            with executor() as pool:
                print(list(pool.map(add, range(50), range(100, 150), chunksize=7)))
                print(list(pool.map(abs, [])))
    """,
    "as_completed and wait": """
        import concurrent.futures as cf
        def work(n):
            return n * n
        if __name__ == "__main__":
            with executor() as pool:
                futures = {pool.submit(work, n): n for n in range(20)}
                for future in cf.as_completed(futures):
                    assert future.result() == futures[future] ** 2
                done, pending = cf.wait(futures, timeout=5)
                print(len(done), len(pending))
                first = [pool.submit(work, 1), pool.submit(work, 2)]
                done, _ = cf.wait(first, return_when=cf.FIRST_COMPLETED)
                print(len(done) >= 1)
    """,
    "exceptions with their type, arguments and notes": """
        def work(n):
            if n == 3:
                raise ValueError("three", n)
            return n
        if __name__ == "__main__":
            with executor() as pool:
                future = pool.submit(work, 3)
                print(type(future.exception()), future.exception().args)
                try:
                    for number in pool.map(work, range(6)):
                        print(number)
                except ValueError as error:
                    print(error.args, "in work" in str(error.__cause__))
                print(pool.submit(work, 4).result())
    """,
    "callbacks": """
        def work(n):
            return n
        if __name__ == "__main__":
            found = []
            with executor() as pool:
                for n in range(5):
                    future = pool.submit(work, n)
                    future.add_done_callback(lambda f: found.append(f.result()))
            print(sorted(found))
    """,
    "timeout of result and of map": """
        import concurrent.futures as cf, time
        def work(seconds):
            time.sleep(seconds)
            return seconds
        if __name__ == "__main__":
            with executor() as pool:
                future = pool.submit(work, 1.0)
                try:
                    future.result(timeout=0.1)
                except cf.TimeoutError:
                    print("late", future.result())
                try:
                    list(pool.map(work, [0, 1.0], timeout=0.3))
                except TimeoutError:
                    print("late map")
    """,
    "shutdown that cancels what waits": """
        import time
        def work(n):
            time.sleep(0.5)
            return n
        if __name__ == "__main__":
            pool = executor()
            futures = [pool.submit(work, n) for n in range(40)]
            while not futures[0].done():
                time.sleep(0.01)
            pool.shutdown(wait=True, cancel_futures=True)
            states = [f.cancelled() for f in futures]
            print(all(f.done() for f in futures), states[0], states[-1])
            print(states == sorted(states), futures[0].result())
            try:
                pool.submit(work, 1)
            except RuntimeError:
                print("closed")
    """,
    "exit without shutdown": """
        import time
        def work(n):
            time.sleep(0.3)
            print("ran", flush=True)
        if __name__ == "__main__":
            pool = executor()
            pool.submit(work, 1)
    """,
    "shutdown in atexit": """
        import atexit
        def work(n):
            return n + 1
        if __name__ == "__main__":
            pool = executor()
            print(pool.submit(work, 1).result())
            atexit.register(pool.shutdown)
    """,
    "shutdown that does not wait": """
        def work(n):
            import time
            time.sleep(0.3)
            return n
        if __name__ == "__main__":
            pool = executor()
            future = pool.submit(work, 5)
            pool.shutdown(wait=False)
            print(future.result())
    """,
    "classes and closures of the main script": """
        import dataclasses, functools
        @dataclasses.dataclass
        class Job:
            n: int
            def run(self, factor):
                return self.n * factor
        def times(factor, job):
            return job.run(factor)
        if __name__ == "__main__":
            with executor() as pool:
                print(pool.submit(Job(3).run, 4).result())
                print(list(pool.map(functools.partial(times, 2), [Job(1), Job(2)])))
    """,
    "state of a module lasts": """
        import os, stateful
        if __name__ == "__main__":
            with executor() as pool:
                found = list(pool.map(stateful.work, range(40)))
                pids = {pid for pid, _ in found}
                total = sum(max(c for p, c in found if p == pid) for pid in pids)
                print(1 <= len(pids) <= 4, total, os.getpid() in pids)
    """,
    "initializer with its arguments": """
        import os, stateful
        def begin(text):
            os.environ["BEGUN"] = text
        def read(_):
            return os.environ["BEGUN"]
        if __name__ == "__main__":
            with executor(initializer=begin, initargs=("yes",)) as pool:
                print(set(pool.map(read, range(20), chunksize=3)))
            with executor(initializer=stateful.begin, initargs=(100,)) as pool:
                print(min(count for _, count in pool.map(stateful.work, range(20))))
    """,
    "asyncio": """
        import asyncio
        def work(n):
            return n * 2
        async def main(pool):
            loop = asyncio.get_running_loop()
            calls = [loop.run_in_executor(pool, work, n) for n in range(5)]
            print(await asyncio.gather(*calls))
        if __name__ == "__main__":
            with executor() as pool:
                asyncio.run(main(pool))
    """,
    "exception in the with block": """
        def work(n):
            return n
        if __name__ == "__main__":
            try:
                with executor() as pool:
                    pool.submit(work, 1)
                    raise KeyError("of the program")
            except KeyError as error:
                print(error)
    """,
    "max_tasks_per_child": """
        import os, sys
        def work(_):
            return os.getpid()
        if __name__ == "__main__":
            options = {}
            if "Process" in executor.__code__.co_names[0]:
                import multiprocessing
                options["mp_context"] = multiprocessing.get_context("spawn")
            with executor(max_tasks_per_child=2, **options) as pool:
                pids = [pool.submit(work, n).result() for n in range(12)]
            print(max(pids.count(pid) for pid in pids))
    """,
}


STATEFUL = """
import os
count = 0
def begin(number):
    global count
    count = number
def work(_):
    global count
    count += 1
    return os.getpid(), count
"""


class Outcome(NamedTuple):
    """How a program ended."""

    code: int
    output: str


def program(folder: Path, kind: str, text: str) -> Path:
    script = folder / f"{kind}.py"
    (folder / "stateful.py").write_text(STATEFUL)
    parts = [CONSTRUCTORS[kind], text]
    script.write_text("\n".join(textwrap.dedent(part) for part in parts))
    return script


@pytest.mark.parametrize("name", PROGRAMS)
def test_program_does_the_same_on_both(tmp_path: Path, name: str) -> None:
    """Output and exit code, and no warning on standard error."""
    outcomes = {}
    for kind in CONSTRUCTORS:
        script = program(tmp_path, kind, PROGRAMS[name])
        done = subprocess.run(
            [sys.executable, "-W", "error", script],
            check=False,
            capture_output=True,
            text=True,
            timeout=60,
        )
        if kind == "flame":  # the standard one races with its own exit now and then
            assert not done.stderr, done.stderr
        outcomes[kind] = Outcome(done.returncode, done.stdout)
    assert outcomes["flame"].output
    assert outcomes["standard"] == outcomes["flame"]


INTERRUPTED = """
    import sys, time
    def work(path):
        open(path, "w").close()
        time.sleep(30)
    if __name__ == "__main__":
        with executor() as pool:
            futures = [pool.submit(work, sys.argv[1] + str(n)) for n in range(8)]
            futures[0].result()
"""


def test_ctrl_c_ends_a_program_with_its_workers(tmp_path: Path) -> None:
    """As a terminal sends it, to the whole group: one KeyboardInterrupt, at once.

    The standard pool goes on with the calls that wait, which is not worth copying.
    """
    script = program(tmp_path, "flame", INTERRUPTED)
    mark = tmp_path / "mark"
    with subprocess.Popen(
        [sys.executable, script, mark],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as parent:
        deadline = time.monotonic() + 30
        while not all(Path(f"{mark}{n}").exists() for n in range(4)):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        started = time.monotonic()
        os.killpg(parent.pid, signal.SIGINT)
        _, errors = parent.communicate(timeout=25)
    assert 5 > time.monotonic() - started
    assert -signal.SIGINT == parent.returncode
    assert "KeyboardInterrupt" in errors
    assert not list(tmp_path.glob("mark4"))


def crash_late() -> None:
    time.sleep(0.3)
    os.kill(os.getpid(), signal.SIGKILL)


def test_crash_during_shutdown_is_told_as_a_crash() -> None:
    """The end of the pool waits for calls, so it is not what ended them."""
    for _ in range(3):
        pool = flame.Pool("dropin", max=2, backend=flame.LocalBackend())
        futures = [pool.submit(crash_late) for _ in range(2)]
        pool.shutdown(wait=True)
        kinds = [type(future.exception(0)) for future in futures]
        assert [flame.CallCrashed] * 2 == kinds
