"""Faults made from outside: killed containers, links that swallow or refuse packets.

Everything happens in a pod's own network namespace or to a process of a pod: on the
built node those are in reach, on a user's cluster they are not.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from contextlib import ExitStack, contextmanager
from subprocess import DEVNULL, PIPE, Popen
from typing import TYPE_CHECKING, Any, Self

import pytest

from tests.cluster.cluster import BuiltCluster, control_planes, run

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.cluster.control_plane import ControlPlane
    from tests.integration.space import Space

LEDGER_PORT = 9000

# One connection for each line; it is answered when the line is in the log.
_LEDGER = f"""
import socket, time
with socket.create_server(('', {LEDGER_PORT}), backlog=512) as listener:
    while True:
        peer, _ = listener.accept()
        with peer:
            peer.settimeout(10)
            try:
                text = peer.recv(200).decode().strip()
                print(f'{{time.time():.2f}} {{text}}', flush=True)
                peer.sendall(b'.')
            except OSError:
                pass
"""

MARK = f"""
def mark(*words):
    'Write a line into the ledger, which outlives parents and runners.'
    with socket.create_connection((os.environ['LEDGER'], {LEDGER_PORT}), 30) as sock:
        sock.sendall(' '.join(map(str, words)).encode())
        sock.recv(1)
"""
"""For programs of parents: calls that use it say from outside what became of them."""


class Ledger:
    """A pod that writes down what others tell it, in one order."""

    def __init__(self, space: Space) -> None:
        self._space = space
        space.start(_LEDGER, "ledger")
        space.await_phase("ledger", ("Running",), 60)
        self.address = address(space, "ledger")

    def entries(self) -> list[tuple[float, list[str]]]:
        """Return the lines so far, split, with the host's clock."""
        text = self._space.kubectl("logs", "ledger")
        found = [line.split() for line in text.splitlines()]
        return [(float(words[0]), words[1:]) for words in found if words[1:]]

    def lines(self, first: str = "") -> list[list[str]]:
        """Return the lines so far, split; only those that begin with a word."""
        return [words for _, words in self.entries() if first in {"", words[0]}]

    def await_lines(self, first: str, count: int, seconds: float = 60) -> None:
        """Wait until so many lines begin with a word."""
        deadline = time.monotonic() + seconds
        while len(found := self.lines(first)) < count:
            if time.monotonic() > deadline:
                text = self._space.kubectl("logs", "app", "--ignore-errors")
                pytest.fail(f"{len(found)} of {count} x {first!r}\n{text[-3000:]}")
            time.sleep(0.3)


class Timeline:
    """What a watch of the namespace's pods told, event by event.

    Args:
        space: The namespace.
        file: Where a line for each change is left, if anywhere.
    """

    def __init__(self, space: Space, file: Path | None = None) -> None:
        self.events: list[tuple[float, str, dict[str, Any]]] = []
        self._file = file
        words = ("-n", space.name, "get", "pods", "--watch", "--output-watch-events")
        command = space.cluster.kubectl_command(*words, "-o", "json")
        self._watch = Popen(command, stdout=PIPE, stderr=DEVNULL, text=True)
        self._thread = threading.Thread(target=self._read)

    def __enter__(self) -> Self:
        self._began = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *failure: object) -> None:
        self._watch.terminate()
        self._watch.wait()
        self._thread.join()
        if self._file is not None:
            self._file.write_text("".join(f"{line}\n" for line in self.lines()))

    def _read(self) -> None:
        assert self._watch.stdout is not None
        with self._watch.stdout as stdout:
            for line in stdout:
                event = json.loads(line)
                moment = time.monotonic() - self._began
                self.events.append((moment, event["type"], event["object"]))

    def lines(self) -> list[str]:
        """Return a line for each change that a person would call one."""
        found, seen = [], dict[str, str]()
        for moment, kind, pod in list(self.events):
            name, state = pod["metadata"]["name"], shown(kind, pod)
            if seen.get(name) != state:
                seen[name] = state
                found.append(f"{moment:7.2f} s  {kind:<9}{name:<34}{state}")
        return found

    def most(self, phase: str) -> int:
        """Return how many runners were in a phase at the same time, at most."""
        now, most = set[str](), 0
        for _, kind, pod in list(self.events):
            if is_runner(pod):
                name = pod["metadata"]["name"]
                there = kind != "DELETED" and pod["status"].get("phase") == phase
                now = now | {name} if there else now - {name}
                most = max(most, len(now))
        return most

    def runners(self) -> dict[str, list[tuple[float, str, dict[str, Any]]]]:
        """Return the events of each runner pod."""
        found: dict[str, list[tuple[float, str, dict[str, Any]]]] = {}
        for event in list(self.events):
            if is_runner(event[2]):
                found.setdefault(event[2]["metadata"]["name"], []).append(event)
        return found

    def await_gone(self, seconds: float = 30) -> None:
        """Wait until the watch has told of the end of each runner.

        It is told later than the API server tells whoever asks it.
        """
        deadline = time.monotonic() + seconds
        while any("DELETED" != told[-1][1] for told in self.runners().values()):
            if time.monotonic() > deadline:
                pytest.fail("\n".join(self.lines()))
            time.sleep(0.1)

    def exit_codes(self, name: str) -> set[int]:
        """Return the exit codes of a pod's first container that were seen."""
        found = set()
        for _, _, pod in list(self.events):
            for status in pod["status"].get("containerStatuses") or ():
                ended = status["state"].get("terminated")
                if ended and pod["metadata"]["name"] == name:
                    found.add(int(ended["exitCode"]))
        return found


def is_runner(pod: dict[str, Any]) -> bool:
    """Say whether a pod is a runner."""
    return "flame-backend/pool" in (pod["metadata"].get("labels") or {})


def shown(kind: str, pod: dict[str, Any]) -> str:
    """Return a pod's state as kubectl's STATUS column has it, nearly."""
    if kind == "DELETED":
        return "gone"
    status = pod["status"]
    for container in status.get("containerStatuses") or ():
        ended = container["state"].get("terminated")
        if ended:
            return f"{status['phase']} (exit code {ended['exitCode']})"
        waiting = container["state"].get("waiting")
        if waiting:
            return f"{status['phase']} ({waiting['reason']})"
    phase: str = status.get("phase", "?")
    return "Terminating" if pod["metadata"].get("deletionTimestamp") else phase


# ---------------------------------------------------------------- out of the cluster


def built(space: Space) -> BuiltCluster:
    """Return the node that belongs to the tests; skip where it is the user's."""
    if not isinstance(space.cluster, BuiltCluster):
        pytest.skip("nodes of a user's cluster are not touched")
    return space.cluster


def plane_of(space: Space) -> ControlPlane:
    """Return the control plane that may be stopped; skip where it is the user's."""
    if built(space).name not in control_planes:
        pytest.skip("the API server of a user's cluster is not stopped")
    return control_planes[built(space).name]


def address(space: Space, pod: str) -> str:
    """Return a pod's address."""
    return space.kubectl("get", "pod", pod, "-o", "jsonpath={.status.podIP}")


def process(space: Space, pod: str, seconds: float = 20) -> int:
    """Return the host's process id of a pod's first container.

    A runner may be at work a while before its kubelet has reported it.
    """
    node = built(space)
    path = "jsonpath={.status.containerStatuses[0].containerID}"
    words = (node.ctr, "--address", node.socket, "--namespace", "k8s.io", "tasks", "ls")
    deadline = time.monotonic() + seconds
    while True:
        identity = space.kubectl("get", "pod", pod, "-o", path).rpartition("/")[2]
        for line in run(list(words)).splitlines():
            found = line.split()
            if identity and found[0] == identity:
                return int(found[1])
        if time.monotonic() > deadline:
            told = space.kubectl("get", "pod", pod, "-o", "yaml")
            pytest.fail(f"the node runs no container of {pod}\n{told[-3000:]}")
        time.sleep(0.2)


def kill(space: Space, pod: str, number: int = signal.SIGKILL) -> None:
    """Send the first process of a pod a signal, past the kubelet."""
    os.kill(process(space, pod), number)


@contextmanager
def network(space: Space, pod: str) -> Iterator[str]:
    """Lend the path of a pod's network namespace, which stays as long, pod or not."""
    held = os.open(f"/proc/{process(space, pod)}/ns/net", os.O_RDONLY)
    try:
        yield f"/proc/{os.getpid()}/fd/{held}"
    finally:
        os.close(held)


@contextmanager
def rules(where: str, rule: str) -> Iterator[None]:
    """Have a rule of iptables in a network namespace, and nowhere else."""
    command = ["nsenter", f"--net={where}", "--", "iptables", "-w"]
    run([*command, "-I", *rule.split()])
    try:
        yield
    finally:
        run([*command, "-D", *rule.split()])


@contextmanager
def holes(space: Space, sources: dict[str, str]) -> Iterator[None]:
    """Have what comes from an address get lost on arrival, pod by pod."""
    with ExitStack() as stack:
        where = {pod: stack.enter_context(network(space, pod)) for pod in sources}
        for pod, source in sources.items():
            stack.enter_context(rules(where[pod], f"INPUT -s {source} -j DROP"))
        yield


@contextmanager
def resets(space: Space, one: str, other: str) -> Iterator[None]:
    """Have every packet between two pods answered with a reset of its connection."""
    # Resets themselves pass, or the sender would not hear of them.
    answer = "-p tcp ! --tcp-flags RST RST -j REJECT --reject-with tcp-reset"
    with ExitStack() as stack:
        # All is looked up before: a runner may end with the first reset.
        sides = [
            (stack.enter_context(network(space, pod)), address(space, peer))
            for pod, peer in ((one, other), (other, one))
        ]
        for where, source in sides:
            stack.enter_context(rules(where, f"INPUT -s {source} {answer}"))
        yield
