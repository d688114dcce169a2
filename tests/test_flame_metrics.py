"""What Prometheus sees of a pool: counted from events, read from its status."""

from __future__ import annotations

import gc
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest

import flame_backend as flame
from flame_backend.errors import BootError, BootTimeout, RunnerLost
from flame_backend.events import CallDone, CallInfo, GrowEnd, RunnerEnded, Shrink

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


def value(registry: CollectorRegistry, name: str, **labels: str) -> float | None:
    """Return a sample, None when there is none."""
    found: float | None = registry.get_sample_value(name, {"pool": "p"} | labels)
    return found


def until(what: object, expected: object) -> None:
    """Wait until something is as expected: events come in a thread of their own."""
    assert callable(what)
    deadline = time.monotonic() + 5
    while what() != expected:
        assert time.monotonic() < deadline, (what(), expected)
        time.sleep(0.01)


class Odd(Exception):
    """Not rebuilt in the parent, which is told of it by a RemoteError."""


def fail(kind: type[Exception]) -> None:
    raise kind("no")


def test_calls_and_runners_of_a_pool_are_counted(registry: CollectorRegistry) -> None:
    """Results, the function's own exceptions, boots, ends; and what there is now."""
    metrics = flame.Metrics(registry)
    with flame.Pool("p", max=2, backend=flame.LocalBackend(), on_event=metrics) as pool:
        metrics.watch(pool)
        for number in range(3):
            pool.call(abs, number)
        with pytest.raises(KeyError):
            pool.call(fail, KeyError)
        with pytest.raises(flame.RemoteError):
            pool.call(fail, Odd)
        until(lambda: value(registry, "flame_calls_total", outcome="ok"), 3)
        until(lambda: value(registry, "flame_calls_total", outcome="raised"), 2)
        # Counted first, timed a moment later.
        until(lambda: value(registry, "flame_call_run_seconds_count"), 5)
        assert 5 == value(registry, "flame_call_queued_seconds_count")
        assert 1 == value(registry, "flame_boots_total", outcome="ok")
        assert 1 == value(registry, "flame_boot_seconds_count")
        assert 2 == value(registry, "flame_runners_max")
        assert 1 == value(registry, "flame_runners", state="idle")
        assert 0 == value(registry, "flame_runners", state="busy")
        assert 0 == value(registry, "flame_calls_waiting")
        assert 1 == value(registry, "flame_slots_idle")
    until(lambda: value(registry, "flame_runners_ended_total", reason="closed"), 1)
    assert b'flame_boot_seconds_bucket{le="+Inf",pool="p"} 1.0' in generate_latest(
        registry
    )


def test_failures_are_labelled_by_class_and_cause(registry: CollectorRegistry) -> None:
    """Names of ours and of the cluster's causes, never a text of the app's."""
    metrics = flame.Metrics(registry)
    lost = RunnerLost("r", "OOMKilled", "exit code 137")
    call = CallInfo(id=1, queued_s=2.0)
    for event in (
        CallDone(pool="p", call=call, error=lost),
        GrowEnd(pool="p", runner="r", error=BootTimeout("r", "pull", "slow")),
        RunnerEnded(pool="p", runner="r", error=lost),
        Shrink(pool="p", runner="s", reason="idle"),
    ):
        metrics(event)
    assert 1 == value(registry, "flame_calls_total", outcome="RunnerLost")
    assert 1 == value(registry, "flame_boots_total", outcome="BootTimeout")
    assert 1 == value(registry, "flame_runners_ended_total", reason="OOMKilled")
    assert 1 == value(registry, "flame_runners_ended_total", reason="idle")
    assert 2 == value(registry, "flame_call_queued_seconds_sum")
    # A call that met no runner took no time on one, and a failed boot has no duration.
    assert None is value(registry, "flame_call_run_seconds_count")
    assert None is value(registry, "flame_boot_seconds_count")


def test_boot_that_the_pool_gives_up_is_no_failure(registry: CollectorRegistry) -> None:
    """A pool that shrinks or ends while it grows must wake nobody up."""
    metrics = flame.Metrics(registry)
    error = BootError("r", "start", "the pool gave it up (closed)")
    metrics(GrowEnd(pool="p", runner="r", error=error, given_up="closed"))
    assert 1 == value(registry, "flame_boots_total", outcome="given_up")
    assert None is value(registry, "flame_boots_total", outcome="BootError")


def test_page_has_every_metric_and_its_alerts_know_the_outcomes(
    registry: CollectorRegistry,
) -> None:
    """What docs/metrics.md names is registered, and nothing besides."""
    flame.Metrics(registry)
    page = (ROOT / "docs" / "metrics.md").read_text("utf-8")
    table = "".join(line for line in page.splitlines() if line.startswith("| `"))
    made = {
        family.name + ("_total" * (family.type == "counter"))
        for family in registry.collect()
    }
    assert made == set(re.findall(r"`(flame_\w+)`", table))
    for name in re.findall(r"\((flame_\w+)\{", page):
        assert name in made
    assert 'outcome!~"ok|given_up"' in page


def test_pool_that_nobody_holds_is_not_kept(registry: CollectorRegistry) -> None:
    """A gauge of it goes with it."""
    metrics = flame.Metrics(registry)
    pool = flame.Pool("p", max=1, backend=flame.InlineBackend())
    metrics.watch(pool)
    assert 1 == value(registry, "flame_runners_max")
    pool.shutdown()
    del pool
    gc.collect()
    assert None is value(registry, "flame_runners_max")


def test_pools_without_metrics_load_nothing_of_it() -> None:
    """The package is optional, and what it costs is paid by its users alone."""
    code = (
        "import sys, flame_backend as flame\n"
        "with flame.Pool('p', max=1, backend=flame.InlineBackend()) as pool:\n"
        "    pool.call(abs, -1)\n"
        "print(sorted(n for n in sys.modules if 'prometheus' in n or 'metrics' in n))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert "[]\n" == done.stdout


def test_missing_package_is_said_with_its_remedy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One that works whether or not this distribution came from an index."""
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(flame.ConfigurationError, match="pip install prometheus-client"):
        flame.Metrics()
