"""Pools as Prometheus metrics; optional, by the package prometheus-client.

What has happened is counted from a pool's events, in the pool's own thread for them;
what there is at the moment is read from its status when it is scraped. A pool without
metrics pays for neither.
"""

from __future__ import annotations

import threading
import weakref
from typing import TYPE_CHECKING, Any, Final

from flame_backend.errors import ConfigurationError, FlameError, RemoteError
from flame_backend.events import CallDone, GrowEnd, RunnerEnded, Shrink

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from prometheus_client import CollectorRegistry
    from prometheus_client.core import GaugeMetricFamily

    from flame_backend.events import Event
    from flame_backend.pool.executor import Pool

CALL_SECONDS: Final = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000)
BOOT_SECONDS: Final = (0.03, 0.1, 0.3, 1, 2, 3, 5, 10, 20, 30, 60, 120, 300, 600)

_GAUGES: Final = {
    "flame_runners_max": "Most runners the pool may have.",
    "flame_runners": "Runners there are, by their state.",
    "flame_slots_idle": "Slots that could take a call at once.",
    "flame_calls_running": "Calls that run.",
    "flame_calls_waiting": "Calls that wait for a slot.",
    "flame_boot_failures": "Failed boots in a row.",
}
_STATES: Final = ("booting", "idle", "busy", "suspect", "draining")


class Metrics:
    """Metrics of one pool or several, told apart by the label `pool`.

        metrics = flame.Metrics()
        pool = flame.Pool("thumbs", max=4, on_event=metrics)
        metrics.watch(pool)

    Args:
        registry: Where they are registered; None for prometheus-client's default.

    Raises:
        ConfigurationError: prometheus-client is not installed.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        try:
            from prometheus_client import REGISTRY, Counter, Histogram
        except ImportError as error:
            reason = "needs the package: pip install prometheus-client"
            raise ConfigurationError("Metrics", reason) from error
        registry = REGISTRY if registry is None else registry
        self._lock = threading.Lock()
        self._pools: weakref.WeakSet[Pool] = weakref.WeakSet()

        def counter(name: str, text: str, label: str) -> Any:
            return Counter(name, text, ("pool", label), registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Any:
            return Histogram(name, text, ("pool",), buckets=buckets, registry=registry)

        self._calls = counter("flame_calls", "Calls that are over.", "outcome")
        self._boots = counter("flame_boots", "Boots that are over.", "outcome")
        self._ends = counter(
            "flame_runners_ended", "Runners that have ended, by reason.", "reason"
        )
        self._queued = histogram(
            "flame_call_queued_seconds", "What calls waited for a slot.", CALL_SECONDS
        )
        self._ran = histogram(
            "flame_call_run_seconds", "What calls took on their runner.", CALL_SECONDS
        )
        self._booted = histogram(
            "flame_boot_seconds", "What boots took that came to an end.", BOOT_SECONDS
        )
        registry.register(self)

    def watch(self, pool: Pool) -> None:
        """Tell a pool's state when scraped, for as long as there is the pool."""
        with self._lock:
            self._pools.add(pool)

    def __call__(self, event: Event) -> None:
        """Count an event; what a pool's `on_event` takes."""
        pool = event.pool
        if isinstance(event, CallDone):
            self._calls.labels(pool, _outcome(event.error)).inc()
            self._queued.labels(pool).observe(event.call.queued_s)
            if event.call.runner:
                self._ran.labels(pool).observe(event.call.run_s)
        elif isinstance(event, GrowEnd):
            # A pool that shrinks or ends while it grows is no cluster that fails.
            outcome = "given_up" if event.given_up else _outcome(event.error)
            self._boots.labels(pool, outcome).inc()
            if event.error is None:
                self._booted.labels(pool).observe(event.seconds)
        elif isinstance(event, Shrink):
            self._ends.labels(pool, event.reason).inc()
        elif isinstance(event, RunnerEnded):
            self._ends.labels(pool, event.error.reason).inc()

    # ------------------------------------------------------------------ the registry's

    def describe(self) -> Iterable[GaugeMetricFamily]:
        """Say what `collect` yields; no pool is asked for that."""
        return self._families().values()

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield what there is in the pools that are watched."""
        families = self._families()
        with self._lock:
            pools = list(self._pools)
        for pool in pools:
            found = pool.status()
            for name, value in {
                "flame_runners_max": found.max,
                "flame_slots_idle": found.idle_slots,
                "flame_calls_running": found.running,
                "flame_calls_waiting": found.waiting,
                "flame_boot_failures": found.boot_failures,
            }.items():
                families[name].add_metric([found.name], value)
            states = [runner.state for runner in found.runners]
            for state in _STATES:
                count = states.count(state)
                families["flame_runners"].add_metric([found.name, state], count)
        yield from families.values()

    @staticmethod
    def _families() -> dict[str, GaugeMetricFamily]:
        from prometheus_client.core import GaugeMetricFamily

        labels = {"flame_runners": ["pool", "state"]}
        return {
            name: GaugeMetricFamily(name, text, labels=labels.get(name, ["pool"]))
            for name, text in _GAUGES.items()
        }


def _outcome(error: BaseException | None) -> str:
    """Return the label of an outcome: few words, none of them the app's own."""
    if error is None:
        return "ok"
    ours = isinstance(error, FlameError) and not isinstance(error, RemoteError)
    return type(error).__name__ if ours else "raised"
