"""What makes a pod a certain runner of a pool. Pure."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from flame_backend.backends.kubernetes.manifest import RunnerIdentity

if TYPE_CHECKING:
    from flame_backend.backends.base import PoolSpec

GRACE_MARGIN_SECONDS: Final = 5


def identity_of(
    spec: PoolSpec,
    process: str,
    runner: str,
    audience: str = "",
    variable: str = "",
    keep_failed: float = 0.0,
) -> RunnerIdentity:
    """Return what makes a pod this runner of a pool.

    Args:
        spec: The pool's.
        process: Identity of the process whose pools are watched together.
        runner: Its name.
        audience: Of its token.
        variable: Text of FLAME_PARENT.
        keep_failed: Seconds for which its pod is kept when it has failed.
    """
    boots = spec.boot_timeout + spec.scale_up_timeout
    grace = math.ceil(spec.shutdown_timeout) + GRACE_MARGIN_SECONDS
    life = spec.max_lifetime
    return RunnerIdentity(
        name=runner,
        pool=spec.name,
        instance=spec.instance,
        process=process,
        audience=audience,
        parent_variable=variable,
        # Siblings sweep what is Pending for longer than it can be in time.
        boot_timeout=boots,
        grace=grace,
        keep_failed=keep_failed,
        # The cluster counts from before the image is pulled, the pool from the
        # moment a runner serves; the pool is to be the first.
        max_lifetime=None if life is None else boots + life + grace,
    )
