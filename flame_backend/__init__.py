"""FLAME for Python: wrap any call in a pool and it runs on a runner.

    import flame_backend as flame

    with flame.Pool("thumbs", max=4) as pool:
        print(pool.call(sum, [1, 2, 3]))

A runner is a pod made from this pod's own manifest, or, on one machine, a local
process. Every public name is listed in `__all__` and loaded when it is first used.
"""

from __future__ import annotations

import importlib

from flame_backend.version import VERSION

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

    from flame_backend import events as events
    from flame_backend.backends.inline import InlineBackend
    from flame_backend.backends.kubernetes.backend import KubernetesBackend
    from flame_backend.backends.local import LocalBackend
    from flame_backend.errors import (
        AppImportError,
        AuthRefused,
        BootDenied,
        BootError,
        BootTimeout,
        CallCancelled,
        CallCrashed,
        CallError,
        CallTimeout,
        ConfigurationError,
        ContainerConfigError,
        FlameError,
        ImagePullError,
        LinkClosed,
        LinkError,
        LinkUnauthenticated,
        MalformedFrame,
        ManifestError,
        NestedCallError,
        NotSerializable,
        ParentError,
        PayloadTooLarge,
        PoolClosed,
        PoolError,
        PoolSaturated,
        QuotaExceeded,
        RemoteError,
        ResultNotSerializable,
        RunnerLost,
        Unschedulable,
        VersionSkew,
    )
    from flame_backend.events import CallInfo
    from flame_backend.metrics import Metrics
    from flame_backend.pool.calls import FlameFuture
    from flame_backend.pool.executor import Pool
    from flame_backend.pool.placement import Placement
    from flame_backend.pool.retrying import Retry
    from flame_backend.pool.status import PoolStatus, RunnerStatus
    from flame_backend.runner.parent import Parent, parent
    from flame_backend.runner.progress import progress

_HOMES: Final = {
    "flame_backend.backends.kubernetes.backend": ("KubernetesBackend",),
    "flame_backend.backends.inline": ("InlineBackend",),
    "flame_backend.backends.local": ("LocalBackend",),
    "flame_backend.events": ("CallInfo",),
    "flame_backend.metrics": ("Metrics",),
    "flame_backend.pool.calls": ("FlameFuture",),
    "flame_backend.pool.executor": ("Pool",),
    "flame_backend.pool.placement": ("Placement",),
    "flame_backend.pool.retrying": ("Retry",),
    "flame_backend.pool.status": ("PoolStatus", "RunnerStatus"),
    "flame_backend.runner.parent": ("Parent", "parent"),
    "flame_backend.runner.progress": ("progress",),
}
_HOME_OF: Final = {name: home for home, names in _HOMES.items() for name in names}

__version__ = VERSION

__all__ = [
    "AppImportError",
    "AuthRefused",
    "BootDenied",
    "BootError",
    "BootTimeout",
    "CallCancelled",
    "CallCrashed",
    "CallError",
    "CallInfo",
    "CallTimeout",
    "ConfigurationError",
    "ContainerConfigError",
    "FlameError",
    "FlameFuture",
    "ImagePullError",
    "InlineBackend",
    "KubernetesBackend",
    "LinkClosed",
    "LinkError",
    "LinkUnauthenticated",
    "LocalBackend",
    "MalformedFrame",
    "ManifestError",
    "Metrics",
    "NestedCallError",
    "NotSerializable",
    "Parent",
    "ParentError",
    "PayloadTooLarge",
    "Placement",
    "Pool",
    "PoolClosed",
    "PoolError",
    "PoolSaturated",
    "PoolStatus",
    "QuotaExceeded",
    "RemoteError",
    "ResultNotSerializable",
    "Retry",
    "RunnerLost",
    "RunnerStatus",
    "Unschedulable",
    "VersionSkew",
    "parent",
    "progress",
]


def __getattr__(name: str) -> Any:
    if name == "events":  # what on_event is called with
        return importlib.import_module("flame_backend.events")
    if name not in __all__:
        msg = f"module 'flame_backend' has no attribute {name!r}"
        raise AttributeError(msg)
    home = _HOME_OF.get(name, "flame_backend.errors")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
