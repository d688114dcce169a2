"""The keeper of credentials under any clock: read in time, and never lost."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from kubetls.credentials.anchors import TrustAnchors
from kubetls.credentials.config import Generation
from kubetls.credentials.keeper import (
    EXPIRED_SECONDS,
    REREAD_SECONDS,
    CredentialKeeper,
)
from kubetls.credentials.token import BoundToken
from kubetls.errors import CredentialMissing
from tests.credential_files import jwt

ANCHORS = TrustAnchors((b"der",))


class Source:
    """A file that the kubelet writes, and that can go away."""

    def __init__(self, token: str) -> None:
        self.token = token
        self.broken = False
        self.reads: list[bool] = []

    def read(self, *, fresh: bool = False) -> Generation:
        self.reads.append(fresh)
        if self.broken:
            raise CredentialMissing("/token", "gone")
        return Generation(ANCHORS, BoundToken(self.token))


class Refresh(RuleBasedStateMachine):
    """Two clocks, a source, and requests at any moment."""

    def __init__(self) -> None:
        super().__init__()
        self.monotonic = 1000.0
        self.wall = 1_700_000_000.0
        self.serial = 0
        self.source = Source(self.new_token(600))
        self.keeper = CredentialKeeper(
            self.source, lambda: self.monotonic, lambda: self.wall
        )
        self.read_at = self.monotonic
        self.good = {self.source.token}

    def new_token(self, seconds: float) -> str:
        self.serial += 1
        return jwt(exp=int(self.wall + seconds), jti=self.serial)

    @rule(seconds=st.sampled_from([0.0, 0.5, 1.0, 10.0, 49.9, 50.0, 600.0]))
    def time_passes(self, seconds: float) -> None:
        self.monotonic += seconds
        self.wall += seconds

    @rule(seconds=st.sampled_from([-1e9, -3600.0, -1.0, 1.0, 3600.0, 1e9]))
    def the_clock_is_set(self, seconds: float) -> None:
        """Only the wall clock jumps."""
        self.wall = max(0.0, self.wall + seconds)

    @rule(seconds=st.sampled_from([-10.0, 1.0, 600.0, 1e8]))
    def the_kubelet_writes(self, seconds: float) -> None:
        self.source.token = self.new_token(seconds)
        self.good.add(self.source.token)

    @rule(broken=st.booleans())
    def the_file_goes_or_comes(self, broken: bool) -> None:
        self.source.broken = broken

    @rule()
    def a_request_is_made(self) -> None:
        """Read if the last reading is too old, and only then."""
        before = len(self.source.reads)
        expires = self.keeper.generation.token.expires_at
        age = self.monotonic - self.read_at
        due = age >= REREAD_SECONDS or (age >= EXPIRED_SECONDS and self.wall >= expires)
        used = self.keeper.current().token.reveal()
        assert len(self.source.reads) - before == due
        if due:
            self.read_at = self.monotonic
            assert self.source.broken or used == self.source.token
        assert used in self.good

    @rule()
    def the_server_refuses(self) -> None:
        """401: read at once; a second one for the same generation reads nothing."""
        refused = self.keeper.generation
        before = len(self.source.reads)
        fresh = self.keeper.renew(refused)
        assert self.source.reads[before:] == [True]
        self.read_at = self.monotonic
        if fresh is not refused:
            assert self.keeper.renew(refused) is fresh
            assert len(self.source.reads) == before + 1
        assert self.source.broken or fresh.token.reveal() == self.source.token

    @invariant()
    def something_good_is_there(self) -> None:
        assert self.keeper.generation.token.reveal() in self.good


Refresh.TestCase.settings = settings(max_examples=80, stateful_step_count=30)
TestRefresh = Refresh.TestCase
