"""A runner's life: every boot ends once, every loss has a cause, no pod is forgotten.

Pods here are a table with scripted answers: what is shown is the order of things.
Real ones are in tests/integration.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

import kubetls
from flame_backend.backends.kubernetes import disposal, lifecycle
from flame_backend.backends.kubernetes.disposal import Disposal
from flame_backend.backends.kubernetes.lifecycle import Lifecycle
from flame_backend.backends.kubernetes.pace import CREATES_PER_SECOND
from flame_backend.backends.kubernetes.pods import NONCE, PodsFull
from flame_backend.errors import (
    AppImportError,
    AuthRefused,
    BootDenied,
    BootTimeout,
    ImagePullError,
    ManifestError,
    QuotaExceeded,
    RunnerLost,
)
from tests.runner_pods import READY, ended, pod, waits

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

QUOTA = kubetls.Forbidden(403, "Forbidden", "exceeded quota: q, requested: pods=1")
BUSY = kubetls.TooManyRequests(429, "TooManyRequests", "later")
AWAY = kubetls.ConnectionFailed("10.0.0.1:443", "refused", False)
UNRIGHTFUL = kubetls.Forbidden(403, "Forbidden", 'cannot create resource "pods"')
DENIED = kubetls.Forbidden(403, "Forbidden", 'violates PodSecurity "restricted"')


class Table:
    """The pods, with scripted answers to POSTs; also events, admission and manifest."""

    allowed = True

    def __init__(self) -> None:
        self.answers: list[Exception] = []
        self.there: dict[str, tuple[str, str]] = {}
        self.posts = 0
        self.deleted: list[str] = []
        self.expected: dict[str, str] = {}
        self.hold = threading.Event()
        self.hold.set()
        self.entered = threading.Event()
        self.known: dict[str, Any] = {}
        self.kubelets = True
        self.graces: list[int] = []

    def manifest(self, name: str) -> dict[str, Any]:
        if name == "bad":
            raise ManifestError("manifest.spec", "no")
        if name == "odd":
            raise OverflowError("too large")
        return {"metadata": {"name": name, "annotations": {}}}

    def create(self, found: dict[str, Any]) -> str:
        self.posts += 1
        self.entered.set()
        self.hold.wait(10)
        if self.answers:
            raise self.answers.pop(0)
        name = found["metadata"]["name"]
        self.there[name] = (f"uid-{name}", found["metadata"]["annotations"][NONCE])
        return f"uid-{name}"

    def find(self, name: str, nonce: str) -> str | None:
        uid, own = self.there.get(name, ("", ""))
        return uid if own == nonce and uid else None

    def get(self, name: str) -> dict[str, Any]:
        if name not in self.known:
            raise AWAY
        return self.known[name]  # type: ignore[no-any-return]

    def kubelet_answers(self, _name: str) -> bool:
        return self.kubelets

    def all(self) -> dict[str, str]:
        return {uid: name for name, (uid, _) in self.there.items()}

    def delete(self, name: str, uid: str, grace: int) -> None:
        self.deleted.append(uid)
        self.graces.append(grace)
        if self.kubelets or grace == 0:
            self.there.pop(name, None)

    def is_ours(self, found: dict[str, Any]) -> bool:
        return not found["metadata"]["name"].startswith("foreign")

    def last_output(self, _name: str) -> str:
        return "its last words"

    def of(self, _uids: object) -> dict[str, Any]:
        return {}

    def posted(self, name: str, uid: str) -> None:
        self.expected[name] = uid

    def trouble(self, name: str) -> str:
        return "compare the clocks" if name == "skewed" else ""

    def forget(self, name: str) -> None:
        self.expected.pop(name, None)


class Clockwork:
    """Workers and the hub's moments, by threads of the test's own."""

    def __init__(self) -> None:
        self._timers: list[threading.Timer] = []
        self.dropped: list[str] = []

    def after(self, seconds: float, step: Callable[[], None]) -> None:
        timer = threading.Timer(max(0.0, seconds), step)
        timer.daemon = True
        self._timers.append(timer)
        timer.start()

    def work(self, step: Callable[[], None]) -> None:
        self.after(0, step)

    def drop(self, name: str) -> None:
        self.dropped.append(name)

    def close(self) -> None:
        for timer in list(self._timers):
            timer.cancel()
            timer.join()


class Sink:
    """What the pool heard."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, Exception]] = []
        self.phases: list[str] = []

    def boot_failed(self, runner: str, error: Exception) -> None:
        self.heard.append((runner, error))

    lost = boot_failed

    def phase(self, _runner: str, phase: str, _detail: str) -> None:
        self.phases.append(phase)


class World:
    """A life cycle and everything around it."""

    def __init__(self, keep_failed: float = 0.0) -> None:
        self.table, self.clock, self.sink = Table(), Clockwork(), Sink()
        parts: Any = (self.table, self.table)
        pods: Any = self.table
        self.disposal = Disposal(pods, self.clock.work, self.clock.after)
        around: Any = (self.disposal, self.sink, self.table, self.clock)
        self.life = Lifecycle(
            *parts,
            *around,
            manifest=self.table.manifest,
            work=self.clock.work,
            keep_failed=keep_failed,
        )

    def boot(self, name: str = "p-1", seconds: float = 30.0) -> None:
        self.life.boot(name, seconds, 0.0)

    def ready(self, name: str = "p-1") -> None:
        """Have a runner boot and connect."""
        self.boot(name)
        self.until(lambda: name in self.table.expected)
        self.life.admitted(name)
        assert self.life.ready(name) is not None
        self.changed({"running": {}}, READY, phase="Running", name=name)

    def changed(self, *args: Any, name: str = "p-1", **status: Any) -> None:
        """Report a pod's change."""
        found = pod(*args, **status)
        found["metadata"] |= {"name": name, "uid": f"uid-{name}"}
        self.life.pod_changed(name, found, False)

    def until(self, what: Callable[[], object], seconds: float = 5) -> None:
        deadline = time.monotonic() + seconds
        while not what():
            assert time.monotonic() < deadline, (self.sink.heard, self.table.deleted)
            time.sleep(0.005)

    def end_of(self, name: str = "p-1") -> Exception:
        """Wait for what the pool hears of a runner, once."""
        self.until(lambda: self.sink.heard)
        time.sleep(0.05)
        ((found, error),) = self.sink.heard
        assert name == found
        assert self.life.find(name) is None
        assert name not in self.table.expected
        return error


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setattr(lifecycle, "pause_before", lambda *_: 0.01)
    found = World()
    yield found
    found.clock.close()


@pytest.mark.parametrize("refusal", [QUOTA, BUSY, AWAY, PodsFull()])
def test_refused_post_is_made_again_while_callers_wait(
    world: World, refusal: Exception
) -> None:
    """Quota, 429, an outage, max_pods: nobody is failed when room comes in time."""
    world.table.answers = [refusal] * 3
    world.boot()
    world.until(lambda: world.table.expected.get("p-1") == "uid-p-1")
    assert 4 == world.table.posts
    assert [] == world.sink.heard
    assert ["create"] == world.sink.phases


@pytest.mark.parametrize(
    ("refusal", "kind"), [(QUOTA, QuotaExceeded), (AWAY, BootTimeout)]
)
def test_post_that_is_refused_all_the_time_ends_with_its_cause(
    world: World, refusal: Exception, kind: type[Exception]
) -> None:
    """When the boot's time is over, and not before."""
    world.table.answers = [refusal] * 10_000
    began = time.monotonic()
    world.boot(seconds=0.3)
    error = world.end_of()
    assert time.monotonic() - began >= 0.3
    assert kind is type(error)
    assert str(getattr(refusal, "message", "refused")) in str(error)
    posts = world.table.posts
    time.sleep(0.1)
    assert posts == world.table.posts


def test_denied_post_fails_at_once(world: World) -> None:
    """It is not tried again."""
    world.table.answers = [DENIED]
    world.boot()
    assert BootDenied is type(world.end_of())
    assert 1 == world.table.posts


def test_refused_right_after_an_outage_is_asked_for_again(world: World) -> None:
    """A server that has just started has not read the roles it judges by."""
    world.table.answers = [AWAY, UNRIGHTFUL]
    world.boot()
    world.until(lambda: world.table.expected.get("p-1") == "uid-p-1")
    assert [] == world.sink.heard


@pytest.mark.parametrize("answers", [[UNRIGHTFUL], [AWAY, DENIED]])
def test_refused_right_without_outage_and_refused_pod_fail(
    world: World, answers: list[Exception]
) -> None:
    """Nothing that time alone would change."""
    world.table.answers = [*answers]
    world.boot()
    assert BootDenied is type(world.end_of())
    assert len(answers) == world.table.posts


def test_manifest_that_cannot_be_made_fails_the_boot(world: World) -> None:
    """A callback's error is the caller's to hear of."""
    world.boot("bad")
    assert "manifest.spec" in str(world.end_of("bad"))
    assert 0 == world.table.posts


def test_whatever_keeps_a_pod_from_being_posted_fails_the_boot(world: World) -> None:
    """At once and with words, instead of a boot of which nothing is heard."""
    world.boot("odd")
    error = world.end_of("odd")
    assert isinstance(error, BootDenied)
    assert "OverflowError: too large" in str(error)


def test_boot_given_up_while_its_post_is_under_way_leaves_no_pod(
    world: World,
) -> None:
    """The pod is deleted when the answer comes."""
    world.table.hold.clear()
    world.boot()
    assert world.table.entered.wait(5)
    assert world.life.end("p-1", 0.0)
    world.table.hold.set()
    world.until(lambda: world.table.deleted == ["uid-p-1"])
    assert [] == world.sink.heard


def test_boot_given_up_before_its_next_post_is_not_posted(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Demand has gone while it waited for room."""
    monkeypatch.setattr(lifecycle, "pause_before", lambda *_: 0.1)
    world.table.answers = [QUOTA] * 100
    world.boot()
    world.until(lambda: world.table.posts == 1)
    assert world.life.end("p-1", 0.0)
    time.sleep(0.3)
    assert world.table.posts <= 2
    assert [] == world.sink.heard


def test_image_that_is_never_pulled_ends_the_boot(world: World) -> None:
    """By the pod's status, long before the boot's time; its pod is deleted."""
    world.boot()
    world.until(lambda: "p-1" in world.table.expected)
    world.changed(waits("ErrImageNeverPull", "not present"))
    assert ImagePullError is type(world.end_of())
    world.until(lambda: world.table.deleted == ["uid-p-1"])


def test_refused_token_of_the_runners_own_is_told(world: World) -> None:
    """Its callers learn what is wrong with the clocks, not that it was refused."""
    world.boot("skewed")
    world.until(lambda: "skewed" in world.table.expected)
    world.changed(ended(11), phase="Failed", name="skewed")
    error = world.end_of("skewed")
    assert isinstance(error, AuthRefused)
    assert "; compare the clocks" in error.reason


def test_pod_that_ends_in_its_boot_says_why(world: World) -> None:
    """With exit code and last output."""
    world.boot()
    world.until(lambda: "p-1" in world.table.expected)
    world.changed(ended(3, message="disk full"), phase="Failed")
    error = world.end_of()
    assert "Crashed: exit code 3" in str(error)
    assert "its last words" in str(error)


def test_admitted_runner_is_judged_by_what_it_says(world: World) -> None:
    """A status that comes late does not set its clock back."""
    world.boot(seconds=1.0)
    world.until(lambda: "p-1" in world.table.expected)
    world.life.admitted("p-1")
    world.changed(waits("ContainerCreating"))
    error = world.end_of()
    assert "the app is being loaded" in str(error)


def test_runner_that_is_ready_in_the_last_moment_is_kept(world: World) -> None:
    """Its output is read for the error of a boot that then is none."""
    read = threading.Event()

    def last_output(name: str) -> str:
        world.life.ready(name)
        read.set()
        return ""

    world.table.last_output = last_output  # type: ignore[method-assign]
    world.boot(seconds=0.2)
    world.life.admitted("p-1")
    assert read.wait(5)
    time.sleep(0.1)
    assert [] == world.sink.heard
    assert world.life.find("p-1") is not None


def test_change_of_another_pod_of_the_name_is_ignored(world: World) -> None:
    """UIDs count, not names."""
    world.boot()
    world.until(lambda: "p-1" in world.table.expected)
    other = pod(ended(137, "OOMKilled"), metadata={"name": "p-1", "uid": "other"})
    world.life.pod_changed("p-1", other, False)
    time.sleep(0.05)
    assert [] == world.sink.heard


def test_loss_waits_for_the_pods_word(world: World) -> None:
    """The link ends first, the kubelet's report comes a moment later."""
    world.ready()
    world.life.gone("p-1", "the control link ended")
    time.sleep(0.05)
    assert [] == world.sink.heard
    world.changed(ended(137, "OOMKilled"), phase="Failed")
    world.changed(ended(137, "OOMKilled"), phase="Failed")
    error = world.end_of()
    assert isinstance(error, RunnerLost)
    assert ("OOMKilled", 137, 9) == (error.reason, error.exit_code, error.signal)
    world.until(lambda: world.table.deleted == ["uid-p-1"])


def test_report_before_the_link_ends_is_remembered(world: World) -> None:
    """A draining pod has its calls until its link ends."""
    world.ready()
    world.changed(
        {"running": {}},
        metadata={"deletionTimestamp": "2026-03-01T10:00:50Z"},
        phase="Running",
    )
    time.sleep(0.05)
    assert [] == world.sink.heard
    world.life.gone("p-1", "its zygote ended")
    error = world.end_of()
    assert isinstance(error, RunnerLost)
    assert "Deleted" == error.reason


def test_pod_that_vanished_was_deleted(world: World) -> None:
    """A forced deletion leaves no status to read."""
    world.ready()
    world.life.pod_changed(
        "p-1", pod({"running": {}}, metadata={"uid": "uid-p-1"}), True
    )
    world.life.gone("p-1", "silent for 30 s")
    error = world.end_of()
    assert isinstance(error, RunnerLost)
    assert "Deleted" == error.reason


def test_loss_that_nobody_explains_is_told_in_time(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The API server is away: Unknown, with what was seen on the link."""
    monkeypatch.setattr(lifecycle, "CAUSE_SECONDS", 0.2)
    monkeypatch.setattr(lifecycle, "LOOK_SECONDS", 0.1)
    world.ready()
    world.life.gone("p-1", "its zygote ended with signal 9")
    error = world.end_of()
    assert isinstance(error, RunnerLost)
    assert ("Unknown", "its zygote ended with signal 9") == (error.reason, error.detail)


def test_loss_beside_a_kubelet_that_is_silent_is_the_nodes(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its pod shows as running, and would for most of a minute."""
    monkeypatch.setattr(lifecycle, "CAUSE_SECONDS", 1.0)
    monkeypatch.setattr(lifecycle, "LOOK_SECONDS", 0.05)
    world.ready()
    world.table.kubelets = False
    running = pod({"running": {}}, READY, phase="Running", metadata={"uid": "uid-p-1"})
    world.table.known["p-1"] = running
    world.life.gone("p-1", "nothing heard for 30 s")
    error = world.end_of()
    assert isinstance(error, RunnerLost)
    assert "NodeLost" == error.reason
    assert error.detail.endswith(" does not answer; nothing heard for 30 s")


def test_pod_of_a_node_that_is_gone_is_removed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody confirms its end: after a while its object goes without."""
    monkeypatch.setattr(disposal, "FORCE_SECONDS", -0.9)
    world.ready()
    world.table.kubelets = False
    world.life.end("p-1", 0.0)
    world.until(lambda: not world.table.there)
    assert [1, 0] == world.table.graces


def test_pod_that_has_gone_is_not_removed_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The watch has told of its end: no further request."""
    monkeypatch.setattr(disposal, "FORCE_SECONDS", 0.0)
    world.ready()
    world.life.end("p-1", 0.0)
    world.until(lambda: world.disposal._asked)
    world.life.pod_changed("p-1", pod(metadata={"uid": "uid-p-1"}), True)
    time.sleep(1.2)
    assert [1] == world.table.graces


def test_close_leaves_no_pod_of_a_node_that_is_gone(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has waited as long as it does for any."""
    monkeypatch.setattr(disposal, "GONE_SECONDS", 0.3)
    world.ready()
    world.table.kubelets = False
    world.disposal.close(0.0)
    assert [1, 0] == world.table.graces
    assert not world.table.there


def test_loss_that_the_watch_does_not_tell_is_looked_up(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One GET, while there is time."""
    monkeypatch.setattr(lifecycle, "LOOK_SECONDS", 0.05)
    world.ready()
    world.table.known["p-1"] = pod(ended(139), metadata={"uid": "uid-p-1"})
    world.life.gone("p-1", "the control link ended")
    error = world.end_of()
    assert isinstance(error, RunnerLost)
    assert ("Crashed", 11) == (error.reason, error.signal)
    assert "the control link ended" in error.detail


def test_stray_pod_of_a_lost_answer_is_deleted(world: World) -> None:
    """The watch shows it, and nobody waits for it; labels alone delete no pod."""
    world.changed({"running": {}}, phase="Running", name="foreign")
    world.changed({"running": {}}, phase="Running", name="stray")
    world.until(lambda: world.table.deleted == ["uid-stray"])


def test_failed_pod_is_kept_and_not_taken_for_a_stray(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """keep_failed: its further changes delete nothing."""
    world = World(keep_failed=1.5)
    try:
        world.boot()
        world.until(lambda: "p-1" in world.table.expected)
        world.changed(waits("ErrImageNeverPull"))
        world.end_of()
        world.changed(waits("ErrImageNeverPull"))
        time.sleep(0.1)
        assert [] == world.table.deleted
        world.until(lambda: world.table.deleted == ["uid-p-1"])
    finally:
        world.clock.close()


def test_phases_of_a_boot_add_up(world: World) -> None:
    """Create, pull, start, each with its seconds, up to the app's own."""
    world.boot()
    world.until(lambda: "p-1" in world.table.expected)
    runner = world.life.find("p-1")
    assert runner is not None
    time.sleep(0.02)
    world.changed(waits("ErrImagePull"))
    world.changed(waits("ImagePullBackOff"))
    time.sleep(0.02)
    world.changed({"running": {}}, phase="Running")
    time.sleep(0.02)
    world.life.admitted("p-1")
    time.sleep(0.02)
    now = time.monotonic()
    found = runner.durations(now)
    assert ["create", "pull", "connect"] == [phase for phase, _ in found]
    assert min(seconds for _, seconds in found) >= 0.02
    assert sum(seconds for _, seconds in found) <= now - runner.started - 0.02


def test_storm_of_boots_is_posted_at_a_pace(world: World) -> None:
    """Forty at once: thirty go, ten follow."""
    began = time.monotonic()
    for number in range(40):
        world.boot(f"p-{number}")
    world.until(lambda: world.table.posts == 40)
    assert time.monotonic() - began > 10 / CREATES_PER_SECOND - 0.05


def test_app_that_fails_to_load_again_is_a_lost_runner(world: World) -> None:
    """Calls run there: as a boot that failed they would hear nothing of it."""
    world.ready()
    runner = world.life.find("p-1")
    assert runner is not None
    world.life.fail(runner, AppImportError("p-1", "import", "no module x"))
    error = world.end_of()
    assert isinstance(error, RunnerLost)
    assert error.reason == "Crashed"
    assert "no module x" in str(error)
