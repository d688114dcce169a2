"""Runners that began together do not end together."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from flame_backend.pool.commands import Boot, End, Sizing
from flame_backend.pool.machine import Machine
from flame_backend.pool.roster import LIFE_SPREAD, Roster

NOW = 1000.0
ROUNDING = 1e-6


def served(roster: Roster, numbers: range, now: float) -> None:
    """Have runners of these numbers serve from one moment on."""
    for number in numbers:
        roster.add(str(number), now)
        roster.serve(roster.runners[str(number)], now)


@given(
    earlier=st.integers(0, 300),
    count=st.integers(2, 200),
    life=st.floats(1.0, 1e6),
)
def test_lives_that_begin_together_end_apart(
    earlier: int, count: int, life: float
) -> None:
    """Within the last tenth, no two much closer than if they were spread evenly."""
    roster = Roster(Sizing(max=1000, max_lifetime=life))
    served(roster, range(earlier), NOW)
    for runner in list(roster.living()):
        roster.remove(runner)
    assert not roster.ageing
    served(roster, range(earlier, earlier + count), NOW)
    ends = [moment - NOW for moment, _ in roster.ageing]
    assert ends == sorted(ends)
    assert ends[0] >= (1 - LIFE_SPREAD) * life - ROUNDING
    assert ends[-1] <= life + ROUNDING
    apart = min(after - before for before, after in itertools.pairwise(ends))
    assert apart >= 0.3 * LIFE_SPREAD * life / count - ROUNDING


@given(
    lives=st.lists(st.tuples(st.floats(0, 500), st.booleans()), min_size=1, max_size=30)
)
def test_ends_are_those_of_the_runners_that_serve(
    lives: list[tuple[float, bool]],
) -> None:
    """In order, whenever they began and whoever has left since."""
    roster = Roster(Sizing(max=100, max_lifetime=100.0))
    for number, (pause, _) in enumerate(lives):
        served(roster, range(number, number + 1), NOW + pause)
    for number, (_, leaves) in enumerate(lives):
        if leaves:
            roster.retire(roster.runners[str(number)], "resized")
    assert roster.ageing == sorted(
        (moment, name) for name, moment in roster.serving.items()
    )


def test_pool_of_one_age_is_replaced_one_by_one() -> None:
    """Eight runners that were ready at once: eight moments, one runner at each."""
    suffixes = itertools.count()
    sizing = Sizing(min=8, max=16, max_lifetime=3600.0, idle_after=None)
    machine = Machine("p", sizing, lambda: str(next(suffixes)), lambda: 0.5)
    first = {found.runner for found in machine.start(NOW) if isinstance(found, Boot)}
    for runner in first:
        machine.ready(runner)
        machine.slot_opened(runner, 0, NOW)
    ended: list[set[str]] = []
    while (moment := machine.next_tick()) is not None and moment <= NOW + 3600.0:
        found = [each for each in machine.tick(moment) if isinstance(each, End)]
        ended.append({each.runner for each in found})
    assert [1] * 8 == [len(names) for names in ended]
    assert first == set().union(*ended)
