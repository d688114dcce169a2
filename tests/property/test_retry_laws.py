"""Laws of the retry decision, for all errors, methods and histories."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

import kubetls
from flame_backend.backends.kubernetes.pace import AGAIN_MAX_SECONDS, pause_before
from kubetls.client.retry import Retries, wait_before_retry
from kubetls.client.status import api_error
from kubetls.client.updating import CONFLICT_MAX_SECONDS, pause_after

SERVER = "https://api.example:443"
METHODS = st.sampled_from(["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"])


@st.composite
def api_errors(draw: st.DrawFn) -> kubetls.ApiError:
    status = draw(
        st.sampled_from([400, 401, 403, 404, 409, 410, 422, 429, 500, 503, 504])
    )
    after = draw(st.none() | st.integers(0, 200))
    headers = {} if after is None else {"Retry-After": str(after)}
    return api_error(status, headers, b"{}", method="GET", path="/", now=0.0)


errors = st.one_of(
    api_errors(),
    st.builds(kubetls.ConnectTimeout, st.just(SERVER), st.just("no")),
    st.builds(kubetls.ConnectionFailed, st.just(SERVER), st.just("no"), st.booleans()),
    st.builds(kubetls.ReadTimeout, st.just(SERVER), st.just("no"), st.booleans()),
    st.builds(kubetls.ProtocolError, st.just(SERVER), st.just("no"), st.booleans()),
    st.just(kubetls.IdentityMismatch("api.example", "DNS", (), 0)),
    st.just(kubetls.ChainRefused("api.example", 20, "no")),
    st.just(kubetls.MalformedCertificate("no")),
)
policies = st.builds(
    Retries,
    attempts=st.integers(0, 8),
    budget=st.floats(0, 300),
    backoff=st.floats(0, 10),
    backoff_max=st.floats(0, 60),
    retry_after_max=st.floats(0, 120),
)
history = {
    "attempt": st.integers(1, 12),
    "waited": st.floats(0, 400),
    "random": st.floats(0, 1, exclude_max=True),
}


@given(policy=policies, error=errors, method=METHODS, safe=st.booleans(), **history)
def test_a_wait_is_within_every_limit(
    policy: Retries,
    error: kubetls.KubeTLSError,
    method: str,
    safe: bool,
    attempt: int,
    waited: float,
    random: float,
) -> None:
    """Attempts, budget and the server's wish; a refused server is not asked."""
    wait = wait_before_retry(
        policy,
        error,
        method=method,
        safe_to_double=safe,
        attempt=attempt,
        waited=waited,
        random=random,
    )
    if wait is None:
        return
    assert attempt <= policy.attempts
    assert 0 <= wait
    assert waited + wait <= policy.budget
    asked = getattr(error, "retry_after", None)
    assert asked is None or asked <= wait <= asked + policy.backoff_max
    assert not isinstance(
        error,
        kubetls.IdentityMismatch | kubetls.ChainRefused | kubetls.CertificateError,
    )


@given(
    after=st.integers(0, 60),
    attempt=st.integers(1, 5),
    random=st.floats(0.01, 1, exclude_max=True),
)
def test_the_longer_wait_counts(after: int, attempt: int, random: float) -> None:
    """The server's or ours: a Retry-After of 0 is no leave to hammer."""
    headers = {"Retry-After": str(after)}
    refused = api_error(429, headers, b"{}", method="POST", path="/", now=0.0)
    wait = wait_before_retry(
        Retries(),
        refused,
        method="POST",
        safe_to_double=False,
        attempt=attempt,
        waited=0.0,
        random=random,
    )
    assert wait is not None
    assert wait >= 0.8 * 2 ** (attempt - 1) * random
    assert wait > after


def test_the_number_of_tries_has_no_bound_but_the_policys() -> None:
    """After thousands of them the wait is the longest one that is ours."""
    wait = wait_before_retry(
        Retries(attempts=10_000, budget=1e9),
        kubetls.ConnectionFailed("server", "refused", False),
        method="GET",
        safe_to_double=False,
        attempt=9_999,
        waited=0.0,
        random=0.5,
    )
    assert 15.0 == wait


@given(error=errors, method=METHODS, **history)
def test_a_write_that_may_have_happened_is_not_sent_again(
    error: kubetls.KubeTLSError,
    method: str,
    attempt: int,
    waited: float,
    random: float,
) -> None:
    """Unless it cannot happen twice, or the server said that it did not."""
    wait = wait_before_retry(
        Retries(attempts=99, budget=1e9, retry_after_max=1e9),
        error,
        method=method,
        safe_to_double=False,
        attempt=attempt,
        waited=waited,
        random=random,
    )
    executed = not (
        (isinstance(error, kubetls.TooManyRequests) and error.retry_after is not None)
        or (isinstance(error, kubetls.TransportError) and not error.sent)
    )
    if method not in {"GET", "HEAD"} and executed:
        assert wait is None


@given(policy=policies, error=errors, method=METHODS, **history)
def test_a_guard_never_makes_it_less_willing(
    policy: Retries,
    error: kubetls.KubeTLSError,
    method: str,
    attempt: int,
    waited: float,
    random: float,
) -> None:
    """What is sent again without a precondition is sent again with one."""

    def wait(safe: bool) -> float | None:
        return wait_before_retry(
            policy,
            error,
            method=method,
            safe_to_double=safe,
            attempt=attempt,
            waited=waited,
            random=random,
        )

    if wait(False) is not None:
        assert wait(True) is not None


@given(attempt=st.integers(1, 100_000), random=st.floats(0, 1, exclude_max=True))
def test_pauses_of_updates_and_boots_stay_short(attempt: int, random: float) -> None:
    """However often it was tried: neither hours, nor a number too large for one."""
    assert 0 < pause_after(attempt, random) <= 2 * CONFLICT_MAX_SECONDS
    assert 0 < pause_before(attempt, None, random) <= AGAIN_MAX_SECONDS
