"""When a request is sent again, decided by a table and nothing else.

    what happened                               any method   GET, HEAD   others that
                                                                         cannot double
    429 with Retry-After (not executed)         yes          yes         yes
    429 without                                 no           yes         no
    500, 503, 504 with Retry-After              no           yes         yes
    500, 503, 504 without                       no           yes         no
    no connection, nothing sent                 yes          yes         yes
    connection lost after sending               no           yes         yes

"Cannot double" are PUT with a resourceVersion and DELETE with a UID: done twice, the
second is refused. The decision is pure: clock and randomness are arguments.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from kubetls.client.limits import is_number
from kubetls.errors import (
    ApiError,
    ApiTimeout,
    ConfigError,
    ConnectionFailed,
    InternalError,
    KubeTLSError,
    ReadTimeout,
    ServerTimeout,
    ServiceUnavailable,
    TooManyRequests,
    TransportError,
)

_SERVER: Final = (InternalError, ServerTimeout, ServiceUnavailable, ApiTimeout)


@dataclass(frozen=True, slots=True, kw_only=True)
class Retries:
    """How often and how long a request is repeated.

    Attributes:
        attempts: Repetitions after the first try; 0 switches them off.
        budget: Seconds that all waiting together may take.
        backoff: First wait in seconds; it doubles each time, with full jitter.
        backoff_max: Longest single wait that is ours.
        retry_after_max: Longest wait a server may ask for; beyond, the error is raised.

    Raises:
        ConfigError: One is no number, or negative.
    """

    attempts: int = 5
    budget: float = 120.0
    backoff: float = 0.8
    backoff_max: float = 30.0
    retry_after_max: float = 60.0

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            if not is_number(value) or value < 0:
                raise ConfigError(f"Retries.{name}", "a number, 0 or more")


def require_retries(value: object) -> None:
    """Refuse what is no policy.

    Raises:
        ConfigError: It is none; a number would fail with the first failure.
    """
    if not isinstance(value, Retries):
        raise ConfigError("retries", "must be kubetls.Retries(attempts=...)")


def wait_before_retry(
    policy: Retries,
    error: KubeTLSError,
    *,
    method: str,
    safe_to_double: bool,
    attempt: int,
    waited: float,
    random: float,
) -> float | None:
    """Return the seconds to wait before the next try, None to give up.

    Args:
        policy: The limits.
        error: What ended this try.
        method: HTTP method.
        safe_to_double: The request carries a precondition that makes a second
            execution fail.
        attempt: Tries made so far, from 1.
        waited: Seconds waited so far.
        random: Uniform in [0, 1), for the jitter.
    """
    reads = method in {"GET", "HEAD"}
    if attempt > policy.attempts or not _may_repeat(
        error, reads=reads, safe=safe_to_double
    ):
        return None
    asked = error.retry_after if isinstance(error, ApiError) else None
    if asked is not None and asked > policy.retry_after_max:
        return None
    ours = doubled(policy.backoff, attempt - 1, policy.backoff_max) * random
    # The longer of both, and never all clients at the same moment.
    wait = ours if asked is None else max(asked + ours * 0.1, ours)
    return wait if waited + wait <= policy.budget else None


def _may_repeat(error: KubeTLSError, *, reads: bool, safe: bool) -> bool:
    if isinstance(error, TooManyRequests):
        return reads or error.retry_after is not None
    if isinstance(error, _SERVER):
        return reads or (safe and error.retry_after is not None)
    if isinstance(error, ReadTimeout):
        return False
    if isinstance(error, ConnectionFailed):
        return not error.sent or reads or safe
    return isinstance(error, TransportError) and not error.sent and reads


def doubled(first: float, times: int, most: float) -> float:
    """Return a back-off: the first pause, doubled some times, and no longer than most.

    However often: after a thousand doublings there is no such number any more.
    """
    return min(most, first * 2.0 ** min(times, 100))
