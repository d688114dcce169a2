"""When callers are told that boots fail, and when they are kept waiting."""

from __future__ import annotations

import itertools
import pickle

import pytest

import flame_backend as flame
from flame_backend import errors
from flame_backend.pool.breaker import Breaker
from flame_backend.pool.commands import Assign, Boot, End, Fail, OpenSlot, Sizing
from flame_backend.pool.machine import Machine

FINAL = {
    "AppImportError",  # the same code fails again
    "AuthRefused",  # whoever it is, it is not our runner
    "BootDenied",  # RBAC, admission, validation
    "ContainerConfigError",  # a Secret, a key or a command that is not there
    "ImagePullError",  # after the kubelet's own tries
    "VersionSkew",  # the image has another Python
}
"""What the next boot would meet again: callers are told at once."""

PASSING = {
    "BootError",  # it crashed, or the API server was away
    "BootTimeout",  # a slow node, a slow registry
    "QuotaExceeded",  # room comes when another pod goes
    "Unschedulable",  # room comes when another pod goes, or a node
}
"""What may be over with the next boot: callers are told after three in a row."""


def machine(**sizes: int) -> Machine:
    suffixes = itertools.count()
    sizing = Sizing(**{"max": 2, **sizes})
    return Machine("p", sizing, lambda: str(next(suffixes)), lambda: 0.0)


def boot_errors() -> set[str]:
    found = {"BootError"}
    for kind in vars(errors).values():
        if isinstance(kind, type) and issubclass(kind, errors.BootError):
            found.add(kind.__name__)
    return found


def test_every_boot_error_is_either_final_or_passing() -> None:
    """A new class has to be put in one of the two tables."""
    assert boot_errors() == FINAL | PASSING
    assert not FINAL & PASSING


@pytest.mark.parametrize(
    ("detail", "told"), [("", "its output says why"), ("no descriptors", "no desc")]
)
def test_runner_whose_slots_do_not_open_is_given_up_with_what_is_known(
    detail: str, told: str
) -> None:
    """Three in a row; the error says of the last one what its backend knows."""
    made = machine()
    made.submit(1, 0.0)
    for now in (1.0, 2.0):
        assert [OpenSlot("p-0", 0)] == made.slot_ended("p-0", 0, now, detail)
    assert [End("p-0", "failed")] == made.slot_ended("p-0", 0, 3.0, detail)
    assert f"in a row did not connect; {told}" in str(made.growth.breaker.last)


def test_runner_one_of_whose_slots_does_not_open_keeps_the_call_of_another() -> None:
    """It gets no new ones, and goes with the last that runs there."""
    made = machine(max=1, slots=2)
    made.submit(1, 0.0)
    made.ready("p-0")
    assert [Assign(1, "p-0", 0)] == made.slot_opened("p-0", 0, 0.5)
    for now in (1.0, 2.0):
        assert [OpenSlot("p-0", 1)] == made.slot_ended("p-0", 1, now)
    assert [] == made.slot_ended("p-0", 1, 3.0)
    made.submit(2, 3.5)
    assert End("p-0", "failed") in made.finished("p-0", 0, 4.0)


@pytest.mark.parametrize("name", sorted(FINAL))
def test_final_error_reaches_callers_with_the_first_boot(name: str) -> None:
    """Those that wait, and those that come during the pause; then one boot tries."""
    made = machine()
    error = getattr(errors, name)("p-0", "start", "no")
    assert [Boot("p-0")] == made.submit(1, 0.0)
    assert [Fail(1, error)] == made.boot_failed("p-0", error, 1.0)
    assert [Fail(2, error)] == made.submit(2, 1.5)
    assert [Boot("p-1")] == made.submit(3, 2.5)


@pytest.mark.parametrize("name", sorted(PASSING))
def test_passing_error_reaches_callers_after_three_boots(name: str) -> None:
    """Each after a longer pause, and with the last one's words."""
    made = machine()
    kind = getattr(errors, name)
    made.submit(1, 0.0)
    now = 0.0
    for number in range(2):
        assert [] == made.boot_failed(f"p-{number}", kind("p", "start", "no"), now)
        moment = made.next_tick()
        assert moment is not None
        now = moment
        assert [Boot(f"p-{number + 1}")] == made.tick(now)
    last = kind("p", "start", "the last")
    assert 3.0 == now
    assert [Fail(1, last)] == made.boot_failed("p-2", last, now)


def test_pool_that_serves_keeps_its_callers() -> None:
    """A runner more cannot be had: calls wait for those that are there."""
    made = machine()
    made.submit(1, 0.0)
    made.ready("p-0")
    assert [Assign(1, "p-0", 0)] == made.slot_opened("p-0", 0, 0.5)
    assert [Boot("p-1")] == made.submit(2, 1.0)
    assert [] == made.boot_failed("p-1", flame.BootDenied("p-1", "create", "no"), 2.0)
    assert [] == made.submit(3, 2.5)
    assert [Assign(2, "p-0", 0)] == made.finished("p-0", 0, 3.0)


def test_failures_under_way_together_count_once() -> None:
    """Ten boots that meet one outage are not ten reasons to give up."""
    made = machine(min=2)
    made.start(0.0)
    for number in range(2):
        error = flame.BootTimeout(f"p-{number}", "start", "no")
        made.boot_failed(f"p-{number}", error, 5.0)
    assert 1 == made.growth.breaker.failures


def test_fatal_failure_is_counted_even_beside_others() -> None:
    """It opens the breaker, whatever failed together with it."""
    breaker = Breaker(lambda: 0.0)
    breaker.failed(flame.BootTimeout("a", "start", "no"), 0.0, 5.0)
    breaker.failed(flame.BootDenied("b", "create", "no"), 0.0, 6.0)
    assert (True, 2) == (breaker.open, breaker.failures)


def test_callers_get_an_error_that_survives_a_process() -> None:
    """As it goes through queues of app servers."""
    error = flame.Unschedulable("p-0", "schedule", "0/3 nodes are available", "log")
    back = pickle.loads(pickle.dumps(error))
    assert (str(error), "log") == (str(back), back.log_tail)
