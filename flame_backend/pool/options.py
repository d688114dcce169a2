"""Options of a pool: their meaning, their defaults, and what is refused."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

from flame_backend.backends.base import (
    BOOT_TIMEOUT_SECONDS,
    MAX_PAYLOAD_BYTES,
    MAX_RESULT_BYTES,
    SCALE_UP_TIMEOUT_SECONDS,
    SHUTDOWN_TIMEOUT_SECONDS,
    PoolSpec,
)
from flame_backend.errors import ConfigurationError
from flame_backend.pool.commands import Sizing
from flame_backend.pool.initializing import run_initializer
from flame_backend.wire.functions import dump_call

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from flame_backend.backends.base import Backend

T = TypeVar("T")

BOOT_TIMEOUT: Final = BOOT_TIMEOUT_SECONDS
SCALE_UP_TIMEOUT: Final = SCALE_UP_TIMEOUT_SECONDS
SHUTDOWN_TIMEOUT: Final = SHUTDOWN_TIMEOUT_SECONDS
IDLE_SHUTDOWN_AFTER: Final = 30.0
RUNNERS: Final = 100_000
"""Far beyond what one process can talk to; catches seconds given for a count."""

LONGEST_SECONDS: Final = 1e9
"""Thirty years; what waits for ten times as long fails with an OverflowError."""

BACKEND_VARIABLE: Final = "FLAME_BACKEND"
CONCURRENCY: Final = 1024
BODY_BYTES: Final = 2**32 - 1

# The name becomes part of pod names and a label's value (RFC 1123 label).
_NAME: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,38}[a-z0-9])?\Z")


def require_name(name: object, option: str) -> None:
    """Check the name of a pool.

    Raises:
        ConfigurationError: Names the option and its rule.
    """
    if not isinstance(name, str) or not _NAME.match(name):
        reason = "1 to 40 lower-case letters, digits and inner hyphens (a DNS label)"
        raise ConfigurationError(option, reason)


def pool_spec(  # noqa: PLR0913 - one argument for each option
    name: str,
    *,
    max_concurrency: int,
    boot_timeout: float,
    scale_up_timeout: float,
    max_lifetime: float | None,
    shutdown_timeout: float,
    results: Literal["data", "pickle"],
    result_types: Sequence[type],
    max_result: int,
    max_payload: int,
    preload: Sequence[str],
    on_boot: Callable[[], object] | None,
) -> PoolSpec:
    """Check a pool's options and return what backends and runners need of them.

    Raises:
        ConfigurationError: Names the option and its rule.
    """
    require_name(name, "name")
    _count("max_concurrency", max_concurrency, CONCURRENCY)
    _seconds("boot_timeout", boot_timeout)
    _seconds("scale_up_timeout", scale_up_timeout, zero=True)
    limit_seconds("max_lifetime", max_lifetime)
    _seconds("shutdown_timeout", shutdown_timeout)
    # The length of a frame's body is a field of 32 bits.
    _count("max_result", max_result, BODY_BYTES)
    _count("max_payload", max_payload, BODY_BYTES)
    if results not in ("data", "pickle"):
        raise ConfigurationError("results", 'must be "data" or "pickle"')
    result_types = _listed("result_types", result_types, "classes")
    for kind in result_types:
        if not isinstance(kind, type):
            raise ConfigurationError("result_types", f"{kind!r} is no class")
    preload = _listed("preload", preload, "module names")
    if not all(isinstance(module, str) for module in preload):
        raise ConfigurationError("preload", "a list of module names")
    if on_boot is not None and not callable(on_boot):
        raise ConfigurationError("on_boot", "a function without arguments")
    return PoolSpec(
        name=name,
        instance=fresh_instance(),
        slots=max_concurrency,
        boot_timeout=boot_timeout,
        scale_up_timeout=scale_up_timeout,
        max_lifetime=max_lifetime,
        shutdown_timeout=shutdown_timeout,
        results=results,
        result_types=result_types,
        max_result=max_result,
        max_payload=max_payload,
        preload=preload,
        on_boot=on_boot,
    )


def pool_sizing(  # noqa: PLR0913 - one argument for each option
    spec: PoolSpec,
    *,
    max_runners: int,
    min_runners: int,
    buffer: int,
    idle_shutdown_after: float | None,
    min_idle_shutdown_after: float | None,
    single_use: bool,
    max_queue: int | None,
    placement: Literal["least_loaded", "pack"],
    max_tasks_per_child: int | None,
) -> Sizing:
    """Check the options about a pool's size and return them.

    Raises:
        ConfigurationError: Names the option and its rule.
    """
    _count("max", max_runners, RUNNERS)
    if type(min_runners) is not int or not 0 <= min_runners <= max_runners:
        raise ConfigurationError("min", "a whole number of runners, 0 to max")
    if type(buffer) is not int or not 0 <= buffer <= max_runners * spec.slots:
        raise ConfigurationError("buffer", "a whole number of slots, 0 to all of them")
    limit_seconds("idle_shutdown_after", idle_shutdown_after)
    limit_seconds("min_idle_shutdown_after", min_idle_shutdown_after)
    if single_use and spec.slots > 1:
        raise ConfigurationError("single_use", "one call at a time: max_concurrency=1")
    for option, value in [
        ("max_queue", max_queue),
        ("max_tasks_per_child", max_tasks_per_child),
    ]:
        if value is not None:
            _count(option, value, BODY_BYTES)
    if placement not in ("least_loaded", "pack"):
        raise ConfigurationError("placement", 'must be "least_loaded" or "pack"')
    return Sizing(
        max=max_runners,
        min=min_runners,
        slots=spec.slots,
        buffer=buffer,
        idle_after=idle_shutdown_after,
        min_idle_after=min_idle_shutdown_after,
        single_use=bool(single_use),
        max_queue=max_queue,
        placement=placement,
        max_lifetime=spec.max_lifetime,
        max_tasks=max_tasks_per_child,
    )


def initializer_request(
    initializer: Callable[..., object] | None, initargs: tuple[Any, ...], spec: PoolSpec
) -> list[bytes] | None:
    """Return the request that each slot serves first; None for none.

    Raises:
        ConfigurationError: It is no function, or its arguments are no tuple.
        NotSerializable: It cannot be sent.
    """
    if initializer is None:
        return None
    if not callable(initializer):
        raise ConfigurationError("initializer", "a function")
    if not isinstance(initargs, tuple | list):
        raise ConfigurationError("initargs", "a tuple")
    given = initializer, tuple(initargs)
    return dump_call(run_initializer, given, {}, limit=spec.max_payload)


def fresh_instance() -> str:
    """Return the identity of a new pool object."""
    return secrets.token_hex(8)


def limit_seconds(option: str, seconds: float | None) -> float | None:
    """Check a limit in seconds; None is no limit.

    Raises:
        ConfigurationError: It is no number above 0.
    """
    if seconds is not None:
        _seconds(option, seconds)
    return seconds


def _seconds(option: str, value: float, *, zero: bool = False) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigurationError(option, "a number of seconds")
    if not (0 < value <= LONGEST_SECONDS or (zero and value == 0)):
        least = "0 or more" if zero else "more than 0"
        raise ConfigurationError(option, f"seconds, {least} and not endless")


def _listed(option: str, values: Iterable[T], what: str) -> tuple[T, ...]:
    """Return the members of an option that holds several, gone through once."""
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise ConfigurationError(option, f"a list of {what}")
    return tuple(values)


def _count(option: str, value: int, most: int) -> None:
    if type(value) is not int or not 0 < value <= most:
        raise ConfigurationError(option, f"a whole number, 1 to {most}")


def chosen_backend(given: Backend | None) -> Backend:
    """Return the backend that a pool was given, or the one for where it is.

    Raises:
        ConfigurationError: It is none.
    """
    if given is None:
        return default_backend()
    if isinstance(given, type) or not hasattr(given, "open_slot"):
        reason = f"{given!r} is no backend; flame_backend.LocalBackend() makes one"
        raise ConfigurationError("backend", reason)
    return given


def default_backend() -> Backend:
    """Choose: $FLAME_BACKEND, else pods when this is one, else local processes.

    Raises:
        ConfigurationError: $FLAME_BACKEND names none.
    """
    chosen = os.environ.get(BACKEND_VARIABLE)
    if not chosen:
        in_pod = bool(os.environ.get("KUBERNETES_SERVICE_HOST"))
        chosen = "kubernetes" if in_pod else "local"
    if chosen == "kubernetes":
        from flame_backend.backends.kubernetes.backend import KubernetesBackend

        return KubernetesBackend()
    if chosen == "local":
        from flame_backend.backends.local import LocalBackend

        return LocalBackend()
    if chosen == "inline":
        from flame_backend.backends.inline import InlineBackend

        return InlineBackend()
    reason = f"{chosen!r} is no backend; local, inline and kubernetes are"
    raise ConfigurationError(f"${BACKEND_VARIABLE}", reason)


MAX_PAYLOAD: Final = MAX_PAYLOAD_BYTES
MAX_RESULT: Final = MAX_RESULT_BYTES
