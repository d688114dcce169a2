"""Admission as a state machine: whoever comes in whatever order, two laws hold.

At most one connection of each expectation is admitted; and nobody is admitted without
every claim right, a living pod of our own POST, and a connection that still stands.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

import kubetls
from flame_backend.backends.kubernetes.admission import Admission, Pending
from flame_backend.backends.kubernetes.keys import DISCOVERY_PATH, JWKS_PATH
from flame_backend.errors import LinkUnauthenticated
from tests.issuer import EXPECTED, JWKS, NOW, WRONG_CLAIMS, claims, forged, sign

if TYPE_CHECKING:
    from collections.abc import Mapping

RUNNERS = ("a", "b", "c")
FORGED = sorted(forged())
WRONG = sorted(WRONG_CLAIMS)


@dataclass
class Expected:
    """The model of one expectation."""

    uid: str
    posted: bool = False
    admitted: int = 0


@dataclass
class Pod:
    """The model of one pod at the API server."""

    uid: str
    deleted: bool = False
    phase: str = "Running"


@dataclass
class World:
    """The API server."""

    pods: dict[str, Pod] = field(default_factory=dict)
    away: bool = False

    def get(self, path: str) -> dict[str, Any]:
        if self.away:
            raise kubetls.ServiceUnavailable(503, "ServiceUnavailable", "away")
        if path in {JWKS_PATH, DISCOVERY_PATH}:
            return JWKS if path == JWKS_PATH else {"issuer": EXPECTED.issuer}
        found = self.pods.get(path)
        if found is None:
            raise kubetls.NotFound(404, "NotFound", "none")
        metadata = {"uid": found.uid}
        if found.deleted:
            metadata["deletionTimestamp"] = "2026-03-01T10:00:00Z"
        return {
            "metadata": metadata,
            "spec": {"serviceAccountName": "app", "nodeName": "node"},
            "status": {"phase": found.phase},
        }

    def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        raise AssertionError(path, body)


def token_claims(runner: str, uid: str, jti: str) -> dict[str, Any]:
    """Return the claims of a runner's own token."""
    found = claims(jti=jti, aud=[f"audience/{runner}"])
    found["kubernetes.io"] = found["kubernetes.io"] | {
        "pod": {"name": runner, "uid": uid}
    }
    return found


class AdmissionMachine(RuleBasedStateMachine):
    """Runners, thieves and forgers, an API server that comes and goes."""

    @initialize()
    def begin(self) -> None:
        self.world = World()
        self.judge = Admission(self.world, "apps", clock=lambda: NOW, uid_seconds=0.0)
        # Keys are fetched again at once: time does not pass here.
        self.judge._keys._clock = lambda: 0.0
        self.expected: dict[str, Expected] = {}
        self.spent: set[str] = set()
        self.count = 0

    @rule(runner=st.sampled_from(RUNNERS))
    def expect(self, runner: str) -> None:
        self.count += 1
        uid = f"uid-{self.count}"
        pending = Pending(
            audience=f"audience/{runner}", path=f"/{runner}", service_account="app"
        )
        self.judge.expect(runner, pending)
        self.expected[runner] = Expected(uid)
        self.world.pods[f"/{runner}"] = Pod(uid)

    @rule(runner=st.sampled_from(RUNNERS))
    def posted(self, runner: str) -> None:
        found = self.expected.get(runner)
        if found is not None:
            self.judge.posted(runner, found.uid)
            found.posted = True

    @rule(runner=st.sampled_from(RUNNERS))
    def forget(self, runner: str) -> None:
        self.judge.forget(runner)
        self.expected.pop(runner, None)

    @rule(
        runner=st.sampled_from(RUNNERS),
        change=st.sampled_from(["gone", "deleted", "Failed", "Succeeded", "replaced"]),
    )
    def pod_ends(self, runner: str, change: str) -> None:
        pod = self.world.pods.get(f"/{runner}")
        if pod is None:
            return
        if change == "gone":
            del self.world.pods[f"/{runner}"]
        elif change == "deleted":
            pod.deleted = True
        elif change == "replaced":
            self.count += 1
            self.world.pods[f"/{runner}"] = Pod(f"uid-{self.count}")
        else:
            pod.phase = change

    @rule(away=st.booleans())
    def api_server(self, away: bool) -> None:
        self.world.away = away
        self.judge._keys._failed_at = float("-inf")

    @rule(
        shown=st.sampled_from(RUNNERS),
        owner=st.sampled_from(RUNNERS),
        jti=st.sampled_from(["1", "2", "3", "4"]),
        cut=st.booleans(),
    )
    def token_is_shown(self, shown: str, owner: str, jti: str, cut: bool) -> None:
        """A token of some runner's pod is presented under some runner's name."""
        pod = self.world.pods.get(f"/{owner}")
        uid = pod.uid if pod else "uid-0"
        jti = f"{owner}-{uid}-{jti}"
        expected = self.expected.get(shown)
        allowed = (
            expected is not None
            and shown == owner
            and expected.posted
            and expected.uid == uid
            and pod is not None
            and not pod.deleted
            and pod.phase == "Running"
            and jti not in self.spent
            and expected.admitted == 0
            and not self.world.away
            and not cut
        )
        token = sign(token_claims(owner, uid, jti))
        admitted = self._present(shown, token, cut=cut)
        assert allowed == admitted
        if admitted:
            assert expected is not None
            expected.admitted += 1
            self.spent.add(jti)

    @rule(runner=st.sampled_from(RUNNERS), name=st.sampled_from(WRONG))
    def wrong_claim_is_shown(self, runner: str, name: str) -> None:
        expected = self.expected.get(runner)
        right = token_claims(runner, expected.uid if expected else "uid-0", "wrong")
        wrong = right | WRONG_CLAIMS[name]
        token = sign({key: value for key, value in wrong.items() if value is not None})
        assert not self._present(runner, token)

    @rule(runner=st.sampled_from(RUNNERS), name=st.sampled_from(FORGED))
    def forgery_is_shown(self, runner: str, name: str) -> None:
        assert not self._present(runner, forged()[name])

    def _present(self, runner: str, token: str, *, cut: bool = False) -> bool:
        facts = {"v": 1, "runner": runner, "python": "p", "pid": 1, "token": token}
        facts["package"] = "0.1.0"
        body = json.dumps(facts).encode()
        try:
            self.judge.admit(body, frozenset(), lambda: not cut)
        except (LinkUnauthenticated, kubetls.KubeTLSError):
            return False
        return True

    @invariant()
    def nobody_twice(self) -> None:
        assert all(found.admitted <= 1 for found in self.expected.values())


TestAdmission = AdmissionMachine.TestCase
