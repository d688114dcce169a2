"""When a call may be tried again: what never started, and what the app allows."""

from __future__ import annotations

import math
from dataclasses import dataclass

from flame_backend.backoff import doubled
from flame_backend.errors import BootError, ConfigurationError, RunnerLost


@dataclass(frozen=True, slots=True)
class Retry:
    """Try a call again, at a caller's own wish.

    A call that could not be sent goes to another runner without any of this. A `Retry`
    adds calls for which no runner could be had, and, with `on`, calls that may have
    run: name errors there only when the function can run twice without harm.

    Attributes:
        times: Most tries after the first.
        on: Exceptions after which a call that may have started is tried again, such as
            `RunnerLost`, `CallCrashed`, or what the function itself raises.
        delay: Seconds before the second try; twice as many before each further one.
        max_delay: Most seconds before a try.
    """

    times: int = 1
    on: tuple[type[BaseException], ...] = ()
    delay: float = 1.0
    max_delay: float = 60.0

    def __post_init__(self) -> None:
        if type(self.times) is not int or self.times < 0:
            raise ConfigurationError("retries", "a whole number of tries, 0 or more")
        # A list would fail when it is asked about the first error.
        if type(self.on) is not tuple or not all(map(_is_exception, self.on)):
            raise ConfigurationError("retries", "on: a tuple of exception classes")
        for seconds in (self.delay, self.max_delay):
            if not isinstance(seconds, int | float) or not 0 <= seconds < math.inf:
                rule = "delays are seconds, 0 or more and not endless"
                raise ConfigurationError("retries", rule)

    def pause(self, error: BaseException, tries: int) -> float | None:
        """Return the seconds to wait before another try, None for no other try.

        Args:
            error: How the last try ended.
            tries: How often it has been tried again already.
        """
        if tries >= self.times:
            return None
        unstarted = isinstance(error, BootError) or (
            isinstance(error, RunnerLost) and not error.started
        )
        if not unstarted and not isinstance(error, self.on):
            return None
        return doubled(self.delay, tries, self.max_delay)


def _is_exception(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, Exception)


def retry_policy(retries: int | Retry) -> Retry | None:
    """Return the policy that the option `retries` stands for; None for none.

    Raises:
        ConfigurationError: It stands for none.
    """
    policy = retries if isinstance(retries, Retry) else Retry(retries)
    return policy if policy.times else None
