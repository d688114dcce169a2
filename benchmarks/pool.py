"""Calls, boots, payloads and idle cost of a pool, beside the least that could do it.

    python benchmarks/pool.py [--seconds 10] [--svg docs/benchmarks.svg]

Every figure is a ratio to a bare program of the same run, in alternating blocks, the
caller on one CPU and all workers on another: absolute times drift, these do not. Where
others use the machine too, the quietest tenth of the blocks counts on both sides, and
of boots and payloads the fastest.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from floors import Sink, Zygote, socketpair_loop, start, tls_loop
from idle import link_kib, wakeups
from peers import PEERS, installed
from plot import svg
from work import length, nothing

import flame_backend as flame
from flame_backend.backends.kubernetes.pin import listener_identity

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from tests.tls_backend import TlsBackend

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

BLOCK_SECONDS = 0.03
PEER_BLOCK_SECONDS = 0.25
"""ray gives its worker back between blocks: a block's first call takes 60 ms."""
WARM_SECONDS = 1.0
PAYLOAD = 64 * 1024 * 1024
BURST = 2000


class Row(NamedTuple):
    """One line of the table.

    Attributes:
        what: What was measured, against what.
        found: The ratio, or the number.
        goal: The goal; 0 for a peer's figure, which has none.
        low: Less is better.
        note: More about it.
    """

    what: str
    found: float
    goal: float
    low: bool = True
    note: str = ""

    @property
    def reached(self) -> bool:
        """Tell whether the goal is reached, as far as the table shows."""
        found = round(self.found, 2)
        return found <= self.goal if self.low else found >= self.goal


# ---------------------------------------------------------------------- latency


def pin_children(cpu: int) -> None:
    """Put every process below this one on a CPU."""
    found = subprocess.run(
        ["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True
    )
    parents = dict(map(str.split, found.stdout.splitlines()))
    for pid in parents:
        at = pid
        while at in parents and at != str(os.getpid()):
            at = parents[at]
        if at == str(os.getpid()) and pid != at:
            try:
                os.sched_setaffinity(int(pid), {cpu})
            except ProcessLookupError:
                continue


def block(call: Callable[[], object], span: float) -> float:
    """Return the median microseconds of calls for a little while."""
    found, ends = [], time.perf_counter() + span
    while (began := time.perf_counter()) < ends:
        call()
        found.append(1e6 * (time.perf_counter() - began))
    return statistics.median(found)


def quiet(found: list[float]) -> float:
    """Return the first decile."""
    return sorted(found)[len(found) // 10]


def compared(
    calls: dict[str, Callable[[], object]],
    seconds: float,
    span: float = BLOCK_SECONDS,
) -> dict[str, tuple[float, float, float]]:
    """Return each contender's ratio to the first one, of quiet blocks and of all.

    The third is its microseconds in quiet blocks.
    """
    for call in calls.values():
        ends = time.perf_counter() + WARM_SECONDS
        for _ in range(200):
            call()
            if time.perf_counter() > ends:
                break
    mine, workers = sorted(os.sched_getaffinity(0))[:2]
    pin_children(workers)
    os.sched_setaffinity(0, {mine})
    found: dict[str, list[float]] = {name: [] for name in calls}
    ends = time.perf_counter() + seconds
    while time.perf_counter() < ends:
        for name, call in calls.items():
            found[name].append(block(call, span))
    os.sched_setaffinity(0, {mine, workers})
    unit = next(iter(found.values()))
    return {
        name: (
            quiet(blocks) / quiet(unit),
            statistics.median(a / b for a, b in zip(blocks, unit, strict=True)),
            quiet(blocks),
        )
        for name, blocks in found.items()
    }


def local_latency(seconds: float) -> Iterator[Row]:
    """A warm call of a no-op on a local pool."""
    bare, child = socketpair_loop()
    with (
        flame.Pool("bench", max=1, backend=flame.LocalBackend()) as pool,
        ProcessPoolExecutor(1) as standard,
    ):
        calls: dict[str, Callable[[], object]] = {
            "bare": bare,
            "flame": lambda: pool.call(nothing),
            "standard": lambda: standard.submit(nothing).result(),
        }
        found = compared(calls, seconds)
    end(child)
    ratio, middle, micros = found["flame"]
    note = f"{micros:.0f} us; {middle:.2f} in all blocks"
    yield Row("warm call / bare socketpair loop", ratio, 1.5, note=note)
    peer = found["standard"][0]
    note = f"which takes {peer:.2f} of the bare loop"
    faster = peer / ratio
    yield Row("ProcessPoolExecutor / warm call", faster, 4.0, low=False, note=note)


def peer_latency(seconds: float) -> Iterator[Row]:
    """The same by others, where they are installed.

    One at a time beside ours: some keep CPUs busy while they are idle. In longer
    blocks, as some are slow to begin one.
    """
    for name, begin in PEERS.items():
        with (
            installed(name, begin) as peer,
            flame.Pool("bench", max=1, backend=flame.LocalBackend()) as pool,
        ):
            if peer is None:
                continue
            calls: dict[str, Callable[[], object]] = {
                "flame": lambda: pool.call(nothing),
                peer.title: peer.call,
            }
            found = compared(calls, seconds, PEER_BLOCK_SECONDS)
        ratio, _, micros = found[peer.title]
        note = f"{micros:.0f} us"
        yield Row(f"{peer.title} / warm call", ratio, 0, low=False, note=note)


def tls_latency(seconds: float) -> Iterator[Row]:
    """The same over TLS on loopback, as with pods."""
    certificate, context = listener_identity(("127.0.0.1",))
    bare, child = tls_loop(certificate, context)
    with flame.Pool("bench", max=1, backend=TlsBackend()) as pool:
        calls: dict[str, Callable[[], object]] = {
            "bare": bare,
            "flame": lambda: pool.call(nothing),
        }
        found = compared(calls, seconds)
    end(child)
    ratio, middle, micros = found["flame"]
    note = f"{micros:.0f} us; {middle:.2f} in all blocks"
    yield Row("warm call over TLS / bare TLS 1.3 loop", ratio, 1.15, note=note)


def end(child: int) -> None:
    """End a bare loop."""
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def burst(rounds: int = 5) -> Iterator[Row]:
    """Submit many calls at once and collect them."""
    ratios = []
    with (
        flame.Pool("burst", max=2, min=2, backend=flame.LocalBackend()) as pool,
        ProcessPoolExecutor(2) as standard,
    ):
        pool.wait_ready(30)
        for _ in range(rounds):
            spent = []
            for each in (pool, standard):
                began = time.perf_counter()
                for future in [each.submit(nothing) for _ in range(BURST)]:
                    future.result()
                spent.append(time.perf_counter() - began)
            ratios.append(spent[1] / spent[0])
    found = statistics.median(ratios)
    note = f"{BURST} calls submitted, then collected; two workers"
    yield Row("burst: calls/s / ProcessPoolExecutor", found, 0, low=False, note=note)


# ---------------------------------------------------------------------- boot


def boot(rounds: int) -> Iterator[Row]:
    """From nothing to a first result."""
    floor, ours, standard = [], [], []
    program = (
        "import time; from concurrent.futures import ProcessPoolExecutor as P; "
        "import multiprocessing as m; m.set_start_method('spawn'); "
        "t = time.perf_counter(); p = P(1); p.submit(abs, 1).result(); "
        "print(time.perf_counter() - t); p.shutdown()"
    )
    for _ in range(rounds):
        floor.append(start())
        began = time.perf_counter()
        with flame.Pool("boot", max=1, backend=flame.LocalBackend()) as pool:
            pool.call(nothing)
            ours.append(time.perf_counter() - began)
        told = subprocess.check_output([sys.executable, "-c", program], text=True)
        standard.append(float(told))
    found = min(ours) / min(floor)
    note = f"{1e3 * min(ours):.0f} ms, the bare start {1e3 * min(floor):.0f}"
    yield Row("cold start to first result / bare start", found, 1.5, note=note)
    peer = min(standard) / min(floor)
    yield Row("ProcessPoolExecutor (spawn) / bare start", peer, 0)


def further(rounds: int) -> Iterator[Row]:
    """A slot more, forked from the zygote: its first call."""
    zygote = Zygote()
    zygote.call()
    floor, ours = [], []
    with flame.Pool(
        "further", max=1, single_use=True, backend=flame.LocalBackend()
    ) as pool:
        for _ in range(3):
            pool.call(nothing)
        for _ in range(rounds):
            floor.append(zygote.call())
            began = time.perf_counter()
            pool.call(nothing)
            ours.append(time.perf_counter() - began)
            time.sleep(0.02)  # the old process goes beside the measure
    end(zygote.pid)
    found = min(ours) / min(floor)
    note = f"{1e3 * min(ours):.1f} ms, the bare fork {1e3 * min(floor):.1f}"
    yield Row("further slot and its call / bare zygote fork", found, 2.0, note=note)


# ---------------------------------------------------------------------- payload


def payload(rounds: int) -> Iterator[Row]:
    """A large argument, and the memory it takes where it is sent."""
    data = bytes(PAYLOAD)
    sink = Sink()
    spent: list[list[float]] = [[], [], []]
    with (
        flame.Pool("load", max=1, backend=flame.LocalBackend()) as pool,
        ProcessPoolExecutor(1) as standard,
    ):
        calls: list[Callable[[], object]] = [
            lambda: sink.send(data),
            lambda: pool.call(length, data),
            lambda: standard.submit(length, data).result(),
        ]
        for _ in range(rounds):
            for call, times in zip(calls, spent, strict=True):
                began = time.perf_counter()
                call()
                times.append(time.perf_counter() - began)
        Path("/proc/self/clear_refs").write_text("5")
        before = peak_kib()
        pool.call(length, data)
        extra = 1024 * (peak_kib() - before) / PAYLOAD
    sink.close()
    bare, ours, peer = map(min, spent)
    goal = {"low": False, "note": f"{PAYLOAD / ours / 1e6:.0f} MB/s"}
    yield Row("64 MiB argument: throughput / bare sendall", bare / ours, 0.85, **goal)
    yield Row("ProcessPoolExecutor / bare sendall", bare / peer, 0, low=False)
    yield Row("64 MiB argument: sender's extra peak / payload", extra, 0.1)


def peak_kib() -> int:
    """Return the largest resident size since it was last reset."""
    text = Path("/proc/self/status").read_text(encoding="ascii")
    return int(text.partition("VmHWM:")[2].split()[0])


# ---------------------------------------------------------------------- all


def idle() -> Iterator[Row]:
    """What costs nothing should cost nothing."""
    count, beats = wakeups(8, 10.0)
    note = f"8 runners, 10 s; heartbeats take {beats} of those there were at most"
    yield Row("idle: wake-ups of the parent", count, 0, note=note)
    note = "1 000 runners over TLS 1.3; no thread each"
    yield Row("idle link: KiB in the parent", link_kib(1000), 40, note=note)


def rows(seconds: float) -> Iterator[Row]:
    """Measure everything."""
    yield from local_latency(seconds)
    yield from tls_latency(seconds)
    yield from burst()
    yield from boot(20)
    yield from further(40)
    yield from payload(9)
    yield from idle()
    # Last: they leave threads and modules behind, which every fork pays for.
    yield from peer_latency(seconds / 2)


def main() -> None:
    """Measure, print one table, and draw it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--svg", type=Path)
    options = parser.parse_args()
    found = []
    print(f"{'':<50}{'found':>8}  goal")
    for row in rows(options.seconds):
        found.append(row)
        sign = "<=" if row.low else ">="
        has_goal = row.goal or row.what.startswith("idle")
        goal = f"{sign} {row.goal:g}" if has_goal else ""
        verdict = ("yes" if row.reached else "NO") if has_goal else ""
        line = f"{row.what:<50}{row.found:>8.2f}  {goal:<8}{verdict:<5}{row.note}"
        print(line.rstrip(), flush=True)
    if options.svg:
        options.svg.write_text(svg(found), encoding="utf-8")


if __name__ == "__main__":
    main()
