"""Options of a pool: their meaning, their defaults, and what is refused."""

from __future__ import annotations

import os
import re
import secrets
from typing import TYPE_CHECKING, Final, Literal

from flame_backend.backends.base import MAX_PAYLOAD_BYTES, MAX_RESULT_BYTES, PoolSpec
from flame_backend.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flame_backend.backends.base import Backend

BOOT_TIMEOUT: Final = 120.0
SHUTDOWN_TIMEOUT: Final = 25.0
BACKEND_VARIABLE: Final = "FLAME_BACKEND"

# The name becomes part of pod names and a label's value (RFC 1123 label).
_NAME: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,38}[a-z0-9])?\Z")


def pool_spec(  # noqa: PLR0913 - one argument for each option
    name: str,
    *,
    max_concurrency: int,
    boot_timeout: float,
    shutdown_timeout: float,
    results: Literal["data", "pickle"],
    result_types: Sequence[type],
    max_result: int,
    max_payload: int,
    preload: Sequence[str],
) -> PoolSpec:
    """Check a pool's options and return what backends and runners need of them.

    Raises:
        ConfigurationError: Names the option and its rule.
    """
    if not _NAME.match(name):
        reason = "1 to 40 lower-case letters, digits and inner hyphens (a DNS label)"
        raise ConfigurationError("name", reason)
    _positive("max_concurrency", max_concurrency)
    _positive("boot_timeout", boot_timeout)
    _positive("max_result", max_result)
    _positive("max_payload", max_payload)
    if shutdown_timeout < 0:
        raise ConfigurationError("shutdown_timeout", "seconds, 0 or more")
    if results not in {"data", "pickle"}:
        raise ConfigurationError("results", 'must be "data" or "pickle"')
    for kind in result_types:
        if not isinstance(kind, type):
            raise ConfigurationError("result_types", f"{kind!r} is no class")
    return PoolSpec(
        name=name,
        instance=secrets.token_hex(8),
        slots=max_concurrency,
        boot_timeout=boot_timeout,
        shutdown_timeout=shutdown_timeout,
        results=results,
        result_types=tuple(result_types),
        max_result=max_result,
        max_payload=max_payload,
        preload=tuple(preload),
    )


def _positive(option: str, value: float) -> None:
    if not value > 0:
        raise ConfigurationError(option, "must be more than 0")


def default_backend() -> Backend:
    """Choose: $FLAME_BACKEND, else pods when this is one, else local processes.

    Raises:
        ConfigurationError: $FLAME_BACKEND names none.
    """
    chosen = os.environ.get(BACKEND_VARIABLE)
    if chosen is None:
        in_pod = "KUBERNETES_SERVICE_HOST" in os.environ
        chosen = "kubernetes" if in_pod else "local"
    if chosen == "kubernetes":
        from flame_backend.backends.kubernetes.backend import KubernetesBackend

        return KubernetesBackend()
    if chosen == "local":
        from flame_backend.backends.local import LocalBackend

        return LocalBackend()
    reason = f"{chosen!r} is no backend; local and kubernetes are"
    raise ConfigurationError(f"${BACKEND_VARIABLE}", reason)


MAX_PAYLOAD: Final = MAX_PAYLOAD_BYTES
MAX_RESULT: Final = MAX_RESULT_BYTES
