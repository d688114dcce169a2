"""Many threads, one pool, and processes that are killed at random moments."""

from __future__ import annotations

import concurrent.futures
import os
import random
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import flame_backend as flame

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flame_backend.pool.forms import Forms

CALLS = int(os.environ.get("FLAME_STRESS_CALLS", "3000"))
THREADS = 16


def work(folder: str, number: int) -> int:
    """Leave a mark for each run, so that a second one is seen."""
    descriptor = os.open(
        f"{folder}/{os.getpid()}", os.O_CREAT | os.O_APPEND | os.O_RDWR
    )
    os.write(descriptor, b"%d\n" % number)
    os.close(descriptor)
    if number % 50 == 0:
        time.sleep(0.05)
    return number * 3


def below(pid: int) -> dict[int, int]:
    """Return the processes below one, with their depth."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                text = (entry / "stat").read_text()
                parents[int(entry.name)] = int(text.rpartition(")")[2].split()[1])
    depths = {pid: 0}
    while fresh := {p: depths[q] + 1 for p, q in parents.items() if q in depths} | {}:
        if fresh.keys() <= depths.keys():
            break
        depths |= fresh
    del depths[pid]
    return depths


def killer(over: threading.Event, kills: list[int], chance: random.Random) -> None:
    """Kill slots often, zygotes at times, agents now and then."""
    while not over.wait(chance.uniform(0.02, 0.2)):
        depth = chance.choices([3, 2, 1], [12, 2, 1])[0]
        victims = [pid for pid, found in below(os.getpid()).items() if found == depth]
        if victims:
            with suppress(ProcessLookupError):
                os.kill(chance.choice(victims), signal.SIGKILL)
                kills.append(depth)


def attempts(pool: Forms, folder: str, numbers: range) -> Iterator[type]:
    """Make calls; yield how each ended."""
    for number in numbers:
        try:
            found = (
                pool.call(work, folder, number)
                if number % 2
                else pool.submit(work, folder, number).result(60)
            )
        except (flame.RunnerLost, flame.CallCrashed, flame.BootError) as error:
            assert error.call is not None
            yield type(error)
        else:
            assert number * 3 == found
            yield int


def test_no_call_is_lost_doubled_or_mixed_up(tmp_path: Path) -> None:
    """Right value or typed error for each, at most one run, and nothing left."""
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    over, kills = threading.Event(), list[int]()
    with flame.Pool("stress", max=4, backend=flame.LocalBackend()) as pool:
        thread = threading.Thread(target=killer, args=[over, kills, random.Random(7)])
        thread.start()
        share = CALLS // THREADS
        with concurrent.futures.ThreadPoolExecutor(THREADS) as threads:
            ends = [
                threads.submit(
                    list,
                    attempts(pool, str(tmp_path), range(n * share, n * share + share)),
                )
                for n in range(THREADS)
            ]
        over.set()
        thread.join()
        outcomes = [kind for end in ends for kind in end.result()]
        # The last boots may have been killed one after the other; and what was killed
        # last may take a call along that came before anybody noticed.
        patient = pool.options(
            retries=flame.Retry(times=5, on=(flame.BootError,), delay=0.5)
        )
        late = range(1_000_001, 1_000_021, 2)
        assert int in attempts(patient, str(tmp_path), late)
        assert 0 == pool.status().running == pool.status().waiting
    assert share * THREADS == len(outcomes)
    assert kills
    # Boots that are killed in a row are told to all who wait, and to all who come
    # during the pause after that: none of those calls has begun.
    begun = [kind for kind in outcomes if not issubclass(kind, flame.BootError)]
    assert len(kills) * 8 >= sum(kind is not int for kind in begun)
    assert begun == outcomes or {1, 2} & set(kills)
    runs = [line for file in tmp_path.iterdir() for line in file.read_text().split()]
    assert len(runs) == len(set(runs)), "a call ran twice"
    assert not below(os.getpid())
    assert len(list(Path("/proc/self/fd").iterdir())) == descriptors
    assert not [t for t in threading.enumerate() if t.name.startswith("flame")]
