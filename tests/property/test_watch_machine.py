"""A list_watch against a server that does everything to it: nothing lost, none twice.

Objects come, change and go; the stream is cut, ended, refused and expired at any
moment. What the watch has handed out, applied in order to an empty collection, is at
the end exactly what the server has, and versions of an object only rise.
"""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

import kubetls
from kubetls import testing
from kubetls.client import stream

MAPS = kubetls.path("v1", "configmaps", namespace="default")
NAMES = st.sampled_from(["a", "b", "c", "d"])
QUICK = kubetls.Retries(attempts=3, backoff=0.001, backoff_max=0.002)


def config_map(name: str, value: int) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name},
        "data": {"value": str(value)},
    }


class Watching(RuleBasedStateMachine):
    """One server, one list_watch, and the collection that its events make."""

    streams = False

    def __init__(self) -> None:
        super().__init__()
        self.pauses = stream.BACKOFF_SECONDS, stream.BACKOFF_MAX_SECONDS
        # They are not what is tested here: dozens of refusals may wait in a row.
        stream.BACKOFF_SECONDS, stream.BACKOFF_MAX_SECONDS = 0.002, 0.02
        self.server = testing.server()
        self.session = kubetls.session(self.server.config, retries=QUICK)
        self.watch = self.session.list_watch(MAPS, send_initial_events=self.streams)
        self.events: dict[str, tuple[str, int]] = {}
        self.serial = 0

    def teardown(self) -> None:
        self.watch.stop()
        self.session.close()
        self.server.stop()
        stream.BACKOFF_SECONDS, stream.BACKOFF_MAX_SECONDS = self.pauses

    @rule(name=NAMES)
    def put(self, name: str) -> None:
        self.serial += 1
        self.server.put(config_map(name, self.serial))

    @rule(name=NAMES)
    def delete(self, name: str) -> None:
        if name in self.on_server():
            self.server.delete(config_map(name, 0))

    @rule()
    def cut(self) -> None:
        self.server.cut()

    @rule()
    def end(self) -> None:
        self.server.end_watches()

    @rule()
    def expire(self) -> None:
        self.server.expire()

    @rule(status=st.sampled_from([429, 500, 503, 504]), times=st.integers(1, 6))
    def refuse(self, status: int, times: int) -> None:
        self.server.fail_next(status, times=times, retry_after=0)

    @rule(after=st.integers(0, 400))
    def cut_inside(self, after: int) -> None:
        """The next answer ends in the middle, in a list as in an event."""
        self.server.cut_next(after)
        self.server.cut()

    @rule(count=st.integers(1, 5))
    def read(self, count: int) -> None:
        for _ in range(count):
            event = self.watch.next(0.02)
            if event is None:
                return
            self.take(event)

    def take(self, event: kubetls.Event) -> None:
        """Apply an event; it must fit what was handed out before."""
        if event.type == "SYNCED":
            return
        metadata = event.object["metadata"]
        name, version = metadata["name"], int(metadata["resourceVersion"])
        known = self.events.get(name)
        if event.type == "ADDED":
            assert known is None, "added twice"
        else:
            assert known is not None, f"{event.type} of what was never added"
            assert version >= known[1], "an older version came later"
            if event.type == "MODIFIED":
                assert version > known[1], "the same change twice"
        if event.type == "DELETED":
            del self.events[name]
        else:
            self.events[name] = (metadata["uid"], version)

    def on_server(self) -> dict[str, tuple[str, int]]:
        return {
            item["metadata"]["name"]: (
                item["metadata"]["uid"],
                int(item["metadata"]["resourceVersion"]),
            )
            for item in self.server.objects("v1", "ConfigMap")
        }

    @invariant()
    def objects_are_what_events_say(self) -> None:
        kept = {
            name: (item["metadata"]["uid"], int(item["metadata"]["resourceVersion"]))
            for (_, name), item in list(self.watch.objects.items())
        }
        # The helper thread may be one event ahead of what was handed out.
        assert len(kept.items() ^ self.events.items()) <= 2

    @rule()
    def settle(self) -> None:
        """Left alone, it ends with exactly what the server has."""
        for _ in range(400):
            if self.events == self.on_server():
                return
            event = self.watch.next(0.05)
            if event is not None:
                self.take(event)
        raise AssertionError((self.events, self.on_server()))


class Streaming(Watching):
    """The same, with what exists from the watch itself."""

    streams = True


Streaming.TestCase.settings = settings(max_examples=25, stateful_step_count=25)
TestStreaming = Streaming.TestCase

Watching.TestCase.settings = settings(max_examples=25, stateful_step_count=25)
TestWatching = Watching.TestCase
