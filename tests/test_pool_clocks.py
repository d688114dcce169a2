"""The clocks of a pool, as its options give them to the backend."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

import flame_backend as flame
from flame_backend.backends.kubernetes.identity import identity_of

if TYPE_CHECKING:
    from flame_backend.backends.base import PoolSpec, Sink
    from flame_backend.backends.kubernetes.manifest import RunnerIdentity


class Told(flame.InlineBackend):
    """Keeps what the pool tells a backend."""

    spec: PoolSpec

    def open(self, spec: PoolSpec, sink: Sink) -> None:
        super().open(spec, sink)
        self.spec = spec


def told(**options: Any) -> PoolSpec:
    backend = Told()
    with flame.Pool("clocks", max=1, backend=backend, **options) as pool:
        pool.call(abs, -1)
    return backend.spec


def identity(**options: Any) -> RunnerIdentity:
    """Return what the manifest of such a pool's runner is made of."""
    return identity_of(told(**options), "beef", "r")


def test_backend_is_told_every_clock() -> None:
    """As given, and by default 15 minutes for a node or an image and no lifetime."""
    spec = told(scale_up_timeout=7, max_lifetime=3600.0)
    assert (7, 3600.0) == (spec.scale_up_timeout, spec.max_lifetime)
    spec = told()
    assert (900.0, None) == (spec.scale_up_timeout, spec.max_lifetime)
    assert 0 == told(scale_up_timeout=0).scale_up_timeout


def test_cluster_ends_a_runner_later_than_its_pool_would() -> None:
    """It counts from before the image is pulled, and knows nothing of calls."""
    made = identity(
        boot_timeout=60,
        scale_up_timeout=300,
        max_lifetime=3600,
        shutdown_timeout=24.5,
    )
    assert 360 == made.boot_timeout
    assert 30 == made.grace
    assert 60 + 300 + 3600 + 30 == made.max_lifetime


def test_cluster_sets_no_deadline_that_nobody_asked_for() -> None:
    """Without max_lifetime a runner lives as long as its pool wants it."""
    assert identity().max_lifetime is None


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("scale_up_timeout", -1.0),
        ("scale_up_timeout", float("inf")),
        ("scale_up_timeout", None),
        ("max_lifetime", 0.0),
        ("max_lifetime", "1h"),
    ],
)
def test_impossible_limit_is_refused(option: str, value: Any) -> None:
    """By the constructor, with the option's name."""
    with pytest.raises(flame.ConfigurationError, match=option):
        flame.Pool("x", max=1, backend=flame.InlineBackend(), **{option: value})
