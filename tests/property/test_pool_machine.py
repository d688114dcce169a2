"""The pool machine against a model that is told of every event and every command.

The model knows what a world of runners looks like and nothing of how the machine
decides; it checks that each command makes sense there, and that the laws of the
machine's docstring hold after every step. Clock, names and chance are the test's.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from flame_backend.errors import (
    AppImportError,
    BootError,
    BootTimeout,
    CallTimeout,
    PoolClosed,
    PoolSaturated,
    RunnerLost,
)
from flame_backend.pool.commands import (
    Assign,
    Boot,
    Command,
    End,
    Fail,
    OpenSlot,
    Renew,
    Sizing,
)
from flame_backend.pool.machine import Machine
from flame_backend.pool.roster import LIFE_SPREAD

if TYPE_CHECKING:
    from flame_backend.pool.roster import Runner

sizings = st.builds(
    lambda smallest, more, **rest: Sizing(min=smallest, max=smallest + more, **rest),
    st.integers(0, 2),
    st.integers(1, 3),
    slots=st.integers(1, 3),
    buffer=st.sampled_from([0, 0, 1, 2]),
    idle_after=st.sampled_from([None, 5.0, 30.0]),
    min_idle_after=st.sampled_from([None, 60.0]),
    single_use=st.just(False),
    max_queue=st.sampled_from([None, None, 3]),
    placement=st.sampled_from(["least_loaded", "pack"]),
    max_lifetime=st.sampled_from([None, None, 200.0]),
    max_tasks=st.sampled_from([None, None, 1, 3]),
)
single = st.builds(
    lambda smallest, more: Sizing(min=smallest, max=smallest + more, single_use=True),
    st.integers(0, 2),
    st.integers(1, 3),
)


ROUNDING = 1e-6
"""Seconds; sums of floats."""


class PoolMachine(RuleBasedStateMachine):
    """Calls come and go, runners boot, fail, lose slots and vanish, time passes."""

    @initialize(sizing=st.one_of(sizings, sizings, single), spread=st.floats(0, 1))
    def begin(self, sizing: Sizing, spread: float) -> None:
        suffixes = itertools.count()
        self.sizing = sizing
        self.machine = Machine("p", sizing, lambda: str(next(suffixes)), lambda: spread)
        self.now = 1000.0
        self.calls = itertools.count(1)
        self.waiting: list[int] = []
        self.deadlines: dict[int, float] = {}
        self.running: dict[tuple[str, int], int] = {}
        self.ended: list[int] = []
        self.names: set[str] = set()
        self.booting: set[str] = set()
        self.ready: set[str] = set()
        self.leaving: set[str] = set()
        self.suspects: set[str] = set()
        self.served: set[str] = set()
        self.since: dict[str, float] = {}
        self.opening: set[tuple[str, int]] = set()
        self.renewing: set[tuple[str, int]] = set()
        self.idle: set[tuple[str, int]] = set()
        self.carry_out(self.machine.start(self.now))

    # ------------------------------------------------------------------ the world

    def carry_out(self, commands: list[Command] | None) -> None:
        """Do what the machine commands, if it can be done."""
        for command in commands or []:
            match command:
                case Assign(call, runner, slot):
                    assert call == self.waiting.pop(0), "first come, first served"
                    self.idle.remove((runner, slot))
                    assert (runner, slot) not in self.running
                    assert runner not in self.leaving
                    assert runner not in self.suspects, "it may be gone"
                    self.running[runner, slot] = call
                case Boot(runner):
                    assert len(self.alive | self.leaving) < self.machine.growth.max
                    assert runner not in self.names, "names are used once"
                    if self.machine.growth.breaker.failures:
                        assert self.alive <= self.served, "one probe at a time"
                    self.names.add(runner)
                    self.booting.add(runner)
                case OpenSlot(runner, slot):
                    assert runner in self.ready
                    assert (runner, slot) not in self.opening | self.idle
                    self.opening.add((runner, slot))
                case Renew(runner, slot):
                    self.idle.remove((runner, slot))
                    self.renewing.add((runner, slot))
                case Fail(call, error):
                    assert not isinstance(error, PoolClosed) or self.machine.closed
                    self.waiting.remove(call)
                    self.ended.append(call)
                case End(runner, reason):
                    self.end(runner, reason)

    def end(self, runner: str, reason: str) -> None:
        """A runner goes: with calls on it only when it is broken or all is over."""
        assert runner in self.alive | self.leaving
        held = [key for key in self.running if key[0] == runner]
        assert not held or reason in {"failed", "closed"}
        if reason == "idle":
            assert not self.waiting, "it could have served"
            asleep = self.machine.growth.asleep
            assert asleep or len(self.alive) > self.machine.growth.min
        if reason == "unneeded":
            self.unneeded(runner)
        if reason == "lifetime":
            shortest = (1 - LIFE_SPREAD) * self.sizing.max_lifetime
            assert self.age(runner) >= shortest - ROUNDING
        self.forget(runner)

    def unneeded(self, runner: str) -> None:
        """A boot that is given up leaves enough for those who wait, and for min."""
        assert runner not in self.served
        left = self.alive - {runner}
        busy = [key for key in self.running if key[0] in left]
        assert len(left) * self.sizing.slots - len(busy) >= len(self.waiting)
        assert self.machine.growth.asleep or len(left) >= self.machine.growth.min

    def forget(self, runner: str) -> None:
        for names in (self.booting, self.ready, self.leaving, self.suspects):
            names.discard(runner)
        for key in [key for key in self.running if key[0] == runner]:
            self.ended.append(self.running.pop(key))
        for slots in (self.opening, self.idle, self.renewing):
            slots -= {key for key in slots if key[0] == runner}

    def serve(self, runner: str) -> None:
        self.served.add(runner)
        self.since.setdefault(runner, self.now)

    def age(self, runner: str) -> float:
        """Return for how long a runner has served; a boot has no age."""
        return self.now - self.since.get(runner, self.now)

    @property
    def usable(self) -> set[tuple[str, int]]:
        """Slots that a call may go to at once."""
        return {key for key in self.idle if key[0] not in self.suspects}

    @property
    def alive(self) -> set[str]:
        return self.booting | self.ready

    def pick(self, data: Any, found: Any) -> Any:
        return data.draw(st.sampled_from(sorted(found)))

    # ------------------------------------------------------------------ calls

    @rule(patience=st.sampled_from([None, 1.0, 50.0]))
    def submit(self, patience: float | None) -> None:
        call = next(self.calls)
        full = len(self.waiting)
        self.waiting.append(call)
        deadline = None if patience is None else self.now + patience
        commands = self.machine.submit(call, self.now, deadline, patience or 0.0)
        if deadline is not None:
            self.deadlines[call] = deadline
        for command in commands:
            if isinstance(command, Fail) and isinstance(command.error, PoolSaturated):
                assert full >= (self.sizing.max_queue or 0)
        if commands and isinstance(commands[0], Assign):
            # It goes to an idle slot, so nobody was waiting.
            assert not full
        self.carry_out(commands)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def finish(self, data: Any) -> None:
        key = self.pick(data, self.running)
        self.ended.append(self.running.pop(key))
        self.idle.add(key)
        if self.sizing.single_use or key[0] in self.leaving:
            self.idle.remove(key)
        self.carry_out(self.machine.finished(*key, self.now))

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def could_not_start(self, data: Any) -> None:
        """The slot died before the call was sent: it waits again, before the others."""
        key = self.pick(data, self.running)
        call = self.running.pop(key)
        self.waiting.insert(0, call)
        deadline = self.deadlines.get(call)
        self.carry_out(self.machine.submit(call, self.now, deadline, 1.0, again=True))
        self.carry_out(self.machine.slot_ended(*key, self.now))

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def cancel(self, data: Any) -> None:
        call = self.pick(data, self.waiting)
        assert self.machine.cancel(call, self.now)
        assert not self.machine.cancel(call, self.now)
        self.waiting.remove(call)
        self.ended.append(call)

    # ------------------------------------------------------------------ runners

    @precondition(lambda self: self.booting)
    @rule(data=st.data())
    def boot(self, data: Any) -> None:
        runner = self.pick(data, self.booting)
        self.booting.remove(runner)
        self.ready.add(runner)
        assert [] == self.machine.ready(runner)
        self.opening |= {(runner, slot) for slot in range(self.sizing.slots)}

    @precondition(lambda self: self.booting)
    @rule()
    def boot_all(self) -> None:
        """As it should be, and more often than not is."""
        for runner in sorted(self.booting):
            self.booting.remove(runner)
            self.ready.add(runner)
            self.machine.ready(runner)
            for slot in range(self.sizing.slots):
                self.idle.add((runner, slot))
                self.serve(runner)
                self.carry_out(self.machine.slot_opened(runner, slot, self.now))

    @rule(count=st.integers(2, 6))
    def submit_several(self, count: int) -> None:
        for _ in range(count):
            self.submit(None)

    @precondition(lambda self: self.opening)
    @rule(data=st.data())
    def open_slot(self, data: Any) -> None:
        key = self.pick(data, self.opening)
        self.opening.remove(key)
        if key[0] not in self.leaving:
            self.idle.add(key)
            self.serve(key[0])
        commands = self.machine.slot_opened(*key, self.now)
        assert (commands is None) == (key[0] in self.leaving)
        self.carry_out(commands)

    @precondition(lambda self: self.booting)
    @rule(data=st.data(), kind=st.sampled_from([BootTimeout, AppImportError]))
    def boot_fails(self, data: Any, kind: type[BootError]) -> None:
        runner = self.pick(data, self.booting)
        self.forget(runner)
        error = kind(runner, "pull", "no")
        self.carry_out(self.machine.boot_failed(runner, error, self.now))
        if kind is AppImportError and not self.served & self.ready:
            assert not self.waiting, "the next boot would fail, too"
            if self.now < self.machine.growth.breaker.retry_at:
                self.submit(None)
                assert not self.waiting, "told at once during the pause"

    @precondition(lambda self: self.opening or self.idle or self.running)
    @rule(data=st.data())
    def slot_ends(self, data: Any) -> None:
        key = self.pick(data, self.opening | self.idle | set(self.running))
        self.opening.discard(key)
        self.idle.discard(key)
        if key in self.running:
            self.ended.append(self.running.pop(key))
        self.carry_out(self.machine.slot_ended(*key, self.now))

    @precondition(lambda self: self.renewing)
    @rule(data=st.data())
    def worn_slot_ends(self, data: Any) -> None:
        key = self.pick(data, self.renewing)
        self.renewing.remove(key)
        commands = self.machine.slot_ended(*key, self.now)
        assert [] == commands or OpenSlot(*key) == commands[0]
        self.carry_out(commands)

    @precondition(lambda self: self.renewing)
    @rule(data=st.data())
    def worn_slot_is_said_to_open(self, data: Any) -> None:
        """By the process that is on its way out: calls must not go there."""
        key = self.pick(data, self.renewing)
        assert self.machine.slot_opened(*key, self.now) is None

    @precondition(lambda self: self.ready | self.leaving)
    @rule(data=st.data())
    def lose(self, data: Any) -> None:
        runner = self.pick(data, self.ready | self.leaving)
        self.forget(runner)
        error = RunnerLost(runner, "OOMKilled", "exit code 137")
        self.carry_out(self.machine.lost(runner, error, self.now))

    @precondition(lambda self: self.ready)
    @rule(data=st.data())
    def told_to_end(self, data: Any) -> None:
        runner = self.pick(data, self.ready)
        self.carry_out(self.machine.draining(runner, self.now))
        self.follow_retirements()

    @precondition(lambda self: self.ready - self.suspects)
    @rule(data=st.data())
    def falls_silent(self, data: Any) -> None:
        runner = self.pick(data, self.ready - self.suspects)
        self.suspects.add(runner)
        self.carry_out(self.machine.suspected(runner, self.now))
        assert [] == self.machine.suspected(runner, self.now)

    @precondition(lambda self: self.suspects)
    @rule(data=st.data())
    def speaks_again(self, data: Any) -> None:
        runner = self.pick(data, self.suspects)
        self.suspects.remove(runner)
        self.carry_out(self.machine.heard(runner, self.now))
        assert [] == self.machine.heard(runner, self.now)

    def follow_retirements(self) -> None:
        """Take over which runners drain; the machine may choose them."""
        for found in self.machine.roster.runners.values():
            if found.draining and found.name not in self.leaving:
                assert found.running, "it would have been ended at once"
                self.ready.remove(found.name)
                self.leaving.add(found.name)
                self.suspects.discard(found.name)
                self.idle -= {key for key in self.idle if key[0] == found.name}

    # ------------------------------------------------------------------ size and time

    @rule(smallest=st.integers(0, 3), more=st.integers(1, 3))
    def resize(self, smallest: int, more: int) -> None:
        self.carry_out(self.machine.resize(smallest, smallest + more, self.now))
        self.follow_retirements()
        assert len(self.alive) <= smallest + more
        if not self.machine.growth.breaker.failures and len(self.leaving) <= more:
            assert len(self.alive) >= smallest

    @rule(runners=st.integers(1, 3))
    def warm(self, runners: int) -> None:
        self.carry_out(self.machine.warm(runners, self.now))

    @rule()
    def cool(self) -> None:
        self.machine.cool(self.now)

    @precondition(lambda self: self.sizing.idle_after and not self.running)
    @rule()
    def demand_goes(self) -> None:
        """Boots that nobody waits for are not kept for longer than idle runners."""
        for call in list(self.waiting):
            assert self.machine.cancel(call, self.now)
            self.ended.append(call)
        self.waiting.clear()
        self.now += self.sizing.idle_after or 0.0
        self.tick()
        kept = max(self.machine.growth.min, self.machine.growth.warming)
        assert self.alive <= self.served or len(self.alive) <= kept

    @rule(seconds=st.sampled_from([0.1, 1.0, 10.0, 70.0, 300.0]))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.tick()

    @rule()
    def wake_as_asked(self) -> None:
        """The moment that the machine asks for is one at which it acts."""
        moment = self.machine.next_tick()
        if moment is None:
            return
        self.now = max(self.now, moment)
        assert self.tick(), "woken for nothing"

    def tick(self) -> list[Command]:
        commands = self.machine.tick(self.now)
        # Retired with calls on it: no command, but the moment has been used.
        before = set(self.leaving)
        late = {call for call, at in self.deadlines.items() if at <= self.now}
        late &= set(self.waiting)
        for command in commands:
            if isinstance(command, Fail) and isinstance(command.error, CallTimeout):
                late.remove(command.call)
        assert not late, "a call waits beyond its deadline"
        self.carry_out(commands)
        self.follow_retirements()
        if self.sizing.max_lifetime is not None:
            old = [
                name
                for name in self.ready
                if self.age(name) >= self.sizing.max_lifetime
            ]
            assert not old, "calls go to a runner that has lived long enough"
        return commands or [End(name, "") for name in self.leaving - before]

    # ------------------------------------------------------------------ laws

    @invariant()
    def machine_and_model_agree(self) -> None:
        machine = self.machine
        assert machine.waiting == len(self.waiting)
        assert set(machine.roster.runners) == self.alive | self.leaving
        assert {
            (found.name, slot): call
            for found in machine.roster.runners.values()
            for slot, call in found.running.items()
        } == self.running
        assert {
            (found.name, slot)
            for found in machine.roster.runners.values()
            for slot in found.idle
        } == self.idle

    @invariant()
    def counts_are_what_is_there(self) -> None:
        roster = self.machine.roster
        living: list[Runner] = list(roster.living())
        assert roster.alive == len(living) == len(self.alive)
        assert roster.busy == sum(len(found.running) for found in living)
        assert roster.idle == len(self.usable)
        assert set(roster.suspects) == self.suspects
        resting = {found.name for found in living if found.name in roster.resting}
        assert resting == set(roster.resting)
        assert not [name for name in resting if roster.runners[name].running]
        for found in living:
            if found.idle and not found.running:
                assert found.name in resting

    @invariant()
    def no_call_is_lost_or_doubled(self) -> None:
        seen = [*self.waiting, *self.running.values(), *self.ended]
        assert len(seen) == len(set(seen))
        assert set(seen) == set(range(1, len(seen) + 1))

    @invariant()
    def pool_sleeps_only_while_nobody_calls(self) -> None:
        if self.machine.growth.asleep:
            assert not self.waiting
            assert not self.running

    @invariant()
    def spare_slots_are_kept_while_calls_run(self) -> None:
        roster = self.machine.roster
        grows = (
            not self.machine.growth.breaker.failures
            and len(roster) < self.machine.growth.max
        )
        if roster.busy and grows:
            coming = len(self.alive) * self.sizing.slots - roster.busy
            coming -= len(self.idle) - len(self.usable)
            assert coming >= self.sizing.buffer + len(self.waiting)

    @invariant()
    def nobody_waits_in_vain(self) -> None:
        if not self.waiting:
            return
        assert not self.usable, "a slot is idle while a call waits"
        if not self.alive:
            under_way = self.leaving or self.machine.next_tick() is not None
            assert under_way, "nothing will ever serve it"

    def teardown(self) -> None:
        """In a world where all goes well every call ends; then the pool closes."""
        if not hasattr(self, "machine"):
            return
        self.go_well()
        assert not self.waiting
        assert not self.running
        if not self.machine.growth.breaker.failures and not self.machine.growth.asleep:
            assert len(self.alive) >= self.machine.growth.min
        self.shrink()
        self.submit(None)
        self.carry_out(self.machine.close())
        assert not self.waiting
        assert not self.alive | self.leaving
        assert [] == self.machine.close()
        assert [Fail] == [type(c) for c in self.machine.submit(10**6, self.now)]
        assert self.machine.next_tick() is None

    def go_well(self) -> None:
        for runner in list(self.suspects):
            self.suspects.remove(runner)
            self.carry_out(self.machine.heard(runner, self.now))
        for _ in range(10_000):
            if self.booting:
                runner = min(self.booting)
                self.booting.remove(runner)
                self.ready.add(runner)
                self.machine.ready(runner)
                self.opening |= {(runner, slot) for slot in range(self.sizing.slots)}
            elif self.opening - {key for key in self.opening if key[0] in self.leaving}:
                self.open_next()
            elif self.renewing:
                key = self.renewing.pop()
                self.carry_out(self.machine.slot_ended(*key, self.now))
            elif self.running:
                self.finish_next()
            elif self.waiting:
                moment = self.machine.next_tick()
                assert moment is not None
                self.now = max(self.now, moment)
                self.tick()
            else:
                return
        raise AssertionError("it never comes to rest")

    def open_next(self) -> None:
        key = next(key for key in self.opening if key[0] not in self.leaving)
        self.opening.remove(key)
        self.idle.add(key)
        self.serve(key[0])
        self.carry_out(self.machine.slot_opened(*key, self.now))

    def finish_next(self) -> None:
        key = next(iter(self.running))
        self.ended.append(self.running.pop(key))
        if not (self.sizing.single_use or key[0] in self.leaving):
            self.idle.add(key)
        self.carry_out(self.machine.finished(*key, self.now))

    def shrink(self) -> None:
        """Left alone, it has its smallest size in time."""
        if self.sizing.idle_after is None or self.sizing.max_lifetime is not None:
            return
        self.machine.cool(self.now)
        self.now += self.sizing.idle_after
        self.tick()
        self.go_well()
        self.now += self.sizing.idle_after
        self.tick()
        assert len(self.alive) <= self.machine.growth.min


PoolMachine.TestCase.settings = settings(
    settings.default,
    stateful_step_count=40,
    max_examples=4 * settings.default.max_examples,
)
TestPoolMachine = PoolMachine.TestCase


def test_slot_that_is_renewed_takes_calls_with_its_next_process_only() -> None:
    """A report about the process that is on its way out opens nothing."""
    machine = Machine("p", Sizing(max=1, max_tasks=1), lambda: "0", lambda: 0.0)
    machine.submit(1, 0.0)
    machine.ready("p-0")
    machine.slot_opened("p-0", 0, 1.0)
    machine.submit(2, 1.0)
    assert [Renew("p-0", 0)] == machine.finished("p-0", 0, 2.0)
    assert machine.slot_opened("p-0", 0, 2.5) is None
    assert [OpenSlot("p-0", 0)] == machine.slot_ended("p-0", 0, 3.0)
    assert [Assign(2, "p-0", 0)] == machine.slot_opened("p-0", 0, 4.0)


def test_boot_that_fails_after_another_succeeded_is_tried_again() -> None:
    """Found by the machine above: it began before a failure that was forgotten."""
    suffixes = itertools.count()
    sizing = Sizing(min=3, max=3, idle_after=None)
    machine = Machine("p", sizing, lambda: str(next(suffixes)), lambda: 0.0)
    assert [Boot("p-0"), Boot("p-1"), Boot("p-2")] == machine.start(0.0)
    machine.boot_failed("p-0", BootTimeout("p-0", "pull", "no"), 1.0)
    machine.ready("p-1")
    assert [Boot("p-3")] == machine.slot_opened("p-1", 0, 1.5)
    machine.ready("p-3")
    assert [] == machine.slot_opened("p-3", 0, 1.6)
    assert [] == machine.boot_failed("p-2", BootTimeout("p-2", "pull", "no"), 2.0)
    assert 3.0 == machine.next_tick()
    assert [Boot("p-4")] == machine.tick(3.0)


def one_runner(**rest: Any) -> Machine:
    """Return a pool of one runner with two slots that runs call 1 on one of them."""
    suffixes = itertools.count()
    sizing = Sizing(min=1, slots=2, idle_after=None, **rest)
    machine = Machine("p", sizing, lambda: str(next(suffixes)), lambda: 0.0)
    machine.start(0.0)
    machine.ready("p-0")
    machine.slot_opened("p-0", 0, 1.0)
    machine.slot_opened("p-0", 1, 1.0)
    assert [Assign(1, "p-0", 1)] == machine.submit(1, 1.0)
    return machine


def test_suspect_runner_gets_no_call_until_it_speaks() -> None:
    """Not on its idle slot, not on one whose call ends, and not by being kept."""
    machine = one_runner(max=1)
    assert [] == machine.suspected("p-0", 2.0)
    assert "suspect" == machine.roster.runners["p-0"].state
    assert not machine.would_reuse("p-0")
    assert [] == machine.finished("p-0", 1, 3.0)
    assert [] == machine.submit(2, 3.0)
    assert [] == machine.submit(3, 3.0)
    found = machine.heard("p-0", 4.0)
    assert [2, 3] == [command.call for command in found if type(command) is Assign]
    assert "busy" == machine.roster.runners["p-0"].state


def test_who_waits_for_a_suspect_runner_gets_another_one() -> None:
    """If there may be one more; it takes its place when it is lost, too."""
    machine = one_runner(max=2)
    assert [] == machine.suspected("p-0", 2.0)
    assert [Boot("p-1")] == machine.submit(2, 3.0)
    assert [] == machine.submit(3, 3.0)
    error = RunnerLost("p-0", "NodeLost", "silent for 30 s")
    assert [] == machine.lost("p-0", error, 30.0)
    machine.ready("p-1")
    assert [Assign(2, "p-1", 0)] == machine.slot_opened("p-1", 0, 31.0)
