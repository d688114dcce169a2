"""Calls, boots and payloads of a local pool, beside the least that could do the same.

    python benchmarks/pool.py [--seconds 10]

All latencies are ratios of medians from alternating blocks of one run, the caller on
one CPU and all workers on another: absolute times drift, these do not.
"""

from __future__ import annotations

import argparse
import os
import pickle
import socket
import statistics
import struct
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from typing import TYPE_CHECKING

import flame_backend as flame

if TYPE_CHECKING:
    from collections.abc import Callable

LENGTH = struct.Struct("!I")
BLOCK_SECONDS = 0.05
PAYLOAD = 64 * 1024 * 1024

FLOOR = """
import socket, ssl, sys
with socket.create_connection(('127.0.0.1', int(sys.argv[1]))) as s:
    s.sendall(b'x')
"""


def nothing() -> None:
    """Do nothing, on a runner."""


def length(data: bytes) -> int:
    """Take a large argument."""
    return len(data)


# ---------------------------------------------------------------------- the floor


def receive(sock: socket.socket) -> object:
    """Read one framed pickle."""
    size = LENGTH.unpack(sock.recv(4, socket.MSG_WAITALL))[0]
    return pickle.loads(sock.recv(size, socket.MSG_WAITALL))


def send(sock: socket.socket, value: object) -> None:
    """Write one framed pickle."""
    data = pickle.dumps(value)
    sock.sendall(LENGTH.pack(len(data)) + data)


def bare_loop(worker: int) -> tuple[Callable[[], object], int]:
    """Fork an echo over a socketpair; return one round trip and the child's pid."""
    ours, theirs = socket.socketpair()
    child = os.fork()
    if child == 0:
        os.sched_setaffinity(0, {worker})
        ours.close()
        try:
            while True:
                function, arguments = receive(theirs)  # type: ignore[misc]
                send(theirs, function(*arguments))
        finally:
            os._exit(0)
    theirs.close()

    def call() -> object:
        send(ours, (nothing, ()))
        return receive(ours)

    return call, child


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


# ---------------------------------------------------------------------- measures


def block(call: Callable[[], object]) -> float:
    """Return the median microseconds of calls for a little while."""
    found, ends = [], time.perf_counter() + BLOCK_SECONDS
    while (began := time.perf_counter()) < ends:
        call()
        found.append(1e6 * (time.perf_counter() - began))
    return statistics.median(found)


def latency(seconds: float) -> dict[str, tuple[float, float]]:
    """Return each contender's ratio to the bare loop, and the spread of it."""
    mine, workers = sorted(os.sched_getaffinity(0))[:2]
    bare, child = bare_loop(workers)
    with (
        flame.Pool("bench", max=1, backend=flame.LocalBackend()) as pool,
        ProcessPoolExecutor(1) as standard,
    ):
        calls: dict[str, Callable[[], object]] = {
            "bare socketpair loop": bare,
            "flame, LocalBackend": lambda: pool.call(nothing),
            "ProcessPoolExecutor": lambda: standard.submit(nothing).result(),
        }
        for call in calls.values():
            call()
        pin_children(workers)
        os.sched_setaffinity(0, {mine})
        ratios: dict[str, list[float]] = {name: [] for name in calls}
        ends = time.perf_counter() + seconds
        while time.perf_counter() < ends:
            unit = block(bare)
            for name, call in calls.items():
                ratios[name].append(block(call) / unit)
    os.kill(child, 9)
    os.waitpid(child, 0)
    os.sched_setaffinity(0, {mine, workers})
    return {
        name: (statistics.median(found), statistics.quantiles(found, n=10)[8])
        for name, found in ratios.items()
    }


def boot(rounds: int = 7) -> dict[str, float]:
    """Return the time from nothing to a first result, over the floor."""
    flame_ratios, standard_ratios = [], []
    for _ in range(rounds):
        began = time.perf_counter()
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = str(listener.getsockname()[1])
            with subprocess.Popen([sys.executable, "-c", FLOOR, port]):
                listener.accept()[0].recv(1)
                floor = time.perf_counter() - began
        began = time.perf_counter()
        with flame.Pool("boot", max=1, backend=flame.LocalBackend()) as pool:
            pool.call(nothing)
            flame_ratios.append((time.perf_counter() - began) / floor)
        began = time.perf_counter()
        program = (
            "import time; from concurrent.futures import ProcessPoolExecutor as P; "
            "import multiprocessing as m; m.set_start_method('spawn'); "
            "t = time.perf_counter(); p = P(1); p.submit(abs, 1).result(); "
            "print(time.perf_counter() - t); p.shutdown()"
        )
        told = subprocess.check_output([sys.executable, "-c", program], text=True)
        standard_ratios.append(float(told) / floor)
    return {
        "flame, LocalBackend": statistics.median(flame_ratios),
        "ProcessPoolExecutor, spawn": statistics.median(standard_ratios),
    }


def payload(rounds: int = 7) -> dict[str, float]:
    """Return the throughput of a 64 MiB argument over a bare sendall of it."""
    data = bytes(PAYLOAD)
    ours, theirs = socket.socketpair()
    child = os.fork()
    if child == 0:
        ours.close()
        target = bytearray(PAYLOAD)
        while theirs.recv_into(target, PAYLOAD, socket.MSG_WAITALL):
            target = bytearray(PAYLOAD)
            theirs.sendall(b"x")
        os._exit(0)
    theirs.close()
    found: dict[str, list[float]] = {"flame": [], "standard": []}
    with (
        flame.Pool("load", max=1, backend=flame.LocalBackend()) as pool,
        ProcessPoolExecutor(1) as standard,
    ):
        pool.call(length, b"")
        standard.submit(length, b"").result()
        for _ in range(rounds):
            spent = []
            for call in (
                lambda: (ours.sendall(data), ours.recv(1)),
                lambda: pool.call(length, data),
                lambda: standard.submit(length, data).result(),
            ):
                began = time.perf_counter()
                call()
                spent.append(time.perf_counter() - began)
            found["flame"].append(spent[0] / spent[1])
            found["standard"].append(spent[0] / spent[2])
    ours.close()
    os.waitpid(child, 0)
    return {
        "flame, LocalBackend": statistics.median(found["flame"]),
        "ProcessPoolExecutor": statistics.median(found["standard"]),
    }


def main() -> None:
    """Measure and print one table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--seconds", type=float, default=10.0)
    options = parser.parse_args()
    print("warm no-op call, median: x the bare socketpair loop (goal 1.5)")
    for name, (ratio, high) in latency(options.seconds).items():
        print(f"  {name:<28}{ratio:8.2f}   (nine of ten blocks below {high:.2f})")
    print("cold start to first result: x python + ssl + socket + call back (goal 1.5)")
    for name, ratio in boot().items():
        print(f"  {name:<28}{ratio:8.2f}")
    print("64 MiB argument: throughput over a bare sendall of it (goal 0.85)")
    for name, ratio in payload().items():
        print(f"  {name:<28}{ratio:8.2f}")


if __name__ == "__main__":
    main()
