"""Admission: who may be a runner of this pool.

A runner that we posted, and nobody else, once: the claims of its token are verified
offline against the cluster's keys, the pod is looked up live, and only the last step
changes anything. Whatever fails, the peer learns nothing but that the link closed.

What a stranger can make us do is in this order: parse 16 KiB of JSON, check one
signature, and no more. Waiting and asking the API server begin with a token that the
cluster signed for a pod of the expected name.
"""

from __future__ import annotations

import hmac
import logging
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NoReturn

import kubetls
from flame_backend.backends.kubernetes.keys import Keys
from flame_backend.backends.kubernetes.tokens import (
    ClockSkew,
    ExpectedClaims,
    check_review,
    key_id,
    strict_json,
    verified_claims,
)
from flame_backend.errors import LinkUnauthenticated
from flame_backend.runner.parent import PROTOCOL_VERSION

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from flame_backend.backends.kubernetes.keys import Cluster

logger = logging.getLogger("flame_backend.admission")

UID_SECONDS: Final = 5.0
"""How long a HELLO that overtook the answer to our POST waits for it, and one that
overtook its kubelet's report for its pod's address."""

ADDRESS_POLL_SECONDS: Final = 0.2

REVIEWS_PATH: Final = "/apis/authentication.k8s.io/v1/tokenreviews"

_HELLO_KEYS: Final = frozenset({"v", "package", "runner", "python", "pid", "token"})
_PROOF_KEYS: Final = frozenset({"v", "runner", "token"})


@dataclass(slots=True)
class Pending:
    """A runner that was posted and has not connected.

    Attributes:
        audience: Of its token.
        path: Of its pod.
        service_account: Of its pod.
        uid: Of its pod, from our POST; None until that is answered.
        connected: True from its admission on, for ever.
        trouble: Why it was refused, where its token was its own or could not be
            judged; "" when it was not.
    """

    audience: str
    path: str
    service_account: str
    uid: str | None = None
    connected: bool = False
    trouble: str = ""


class Admission:
    """Decides about first frames; thread-safe.

    Args:
        cluster: The API server.
        namespace: Of the runners.
        review: Have the API server review each token, too (TokenReview; needs a
            right of the whole cluster).
        enforce_address: Refuse peers that do not dial from their pod's address.
            Otherwise that is logged: networks may translate addresses.
        clock: Seconds since the epoch.
        uid_seconds: How long to wait for the answer to a POST, and for an address.
    """

    def __init__(
        self,
        cluster: Cluster,
        namespace: str,
        *,
        review: bool = False,
        enforce_address: bool = False,
        clock: Callable[[], float] = time.time,
        uid_seconds: float = UID_SECONDS,
    ) -> None:
        self._cluster = cluster
        self._namespace = namespace
        self._review = review
        self._enforce_address = enforce_address
        self._clock = clock
        self._uid_seconds = uid_seconds
        self._keys = Keys(cluster)
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._pending: dict[str, Pending] = {}
        self._used: dict[str, float] = {}
        self._accounts: dict[str, str] = {}

    # ------------------------------------------------------------------ expectations

    def expect(self, runner: str, pending: Pending) -> None:
        """Expect a runner; before its POST, so that no HELLO can come too early."""
        with self._lock:
            self._pending[runner] = pending

    def posted(self, runner: str, uid: str) -> None:
        """The POST was answered with this UID."""
        with self._lock:
            if runner in self._pending:
                self._pending[runner].uid = uid
            self._changed.notify_all()

    def forget(self, runner: str) -> None:
        """The runner is no longer expected."""
        with self._lock:
            self._pending.pop(runner, None)
            self._changed.notify_all()

    def trouble(self, runner: str) -> str:
        """Return why the runner itself was refused, "" when it was not."""
        with self._lock:
            found = self._pending.get(runner)
            return "" if found is None else found.trouble

    # ------------------------------------------------------------------ the decision

    def admit(
        self, hello: bytes, addresses: frozenset[str], take: Callable[[], bool]
    ) -> tuple[str, dict[str, Any]]:
        """Decide about a HELLO.

        Args:
            hello: Body of the first frame, at most 16 KiB.
            addresses: Addresses of the peer.
            take: Takes the connection out of its listener's hands, as part of the
                last step; False when it was cut meanwhile.

        Returns:
            The runner's name and the facts of its HELLO.

        Raises:
            LinkUnauthenticated: With the step that failed, for our own log only.
            KubeTLSError: The API server could not be asked.
        """
        facts = _facts(hello)
        runner: str = facts["runner"]
        pending = self._expected(runner)
        token: str = facts.pop("token")
        try:
            claims = self._judged(token, runner, pending, addresses)
        except kubetls.KubeTLSError as error:
            # A right that this account lacks, an API server that is away: the runner
            # only says that it was refused.
            pending.trouble = f"its token could not be judged: {error}"
            raise
        self._connect(runner, pending, claims, take)
        return runner, facts

    def _judged(
        self, token: str, runner: str, pending: Pending, addresses: frozenset[str]
    ) -> dict[str, Any]:
        """Return the claims of a token that proves its bearer to be the runner."""
        claims = self._verified(token, runner, pending)
        uid = self._await_uid(runner, pending)
        if not hmac.compare_digest(str(claims["kubernetes.io"]["pod"]["uid"]), uid):
            _refuse("pod.uid")
        self._look_up(claims, pending, addresses)
        if self._review:
            self._ask_for_review(token, runner, pending)
        return claims

    def _expected(self, runner: str) -> Pending:
        with self._lock:
            found = self._pending.get(runner)
        if found is None or found.connected:
            _refuse("no runner of this name is expected")
        return found

    def _verified(self, token: str, runner: str, pending: Pending) -> dict[str, Any]:
        issuer = self._keys.issuer(key_id(token))
        expected = self._claims_of(runner, pending, issuer.name)
        try:
            return verified_claims(token, issuer.jwks, expected, self._clock())
        except ClockSkew as error:
            pending.trouble = str(error)
            logger.warning("%s: %s", runner, error)
            raise

    def _claims_of(self, runner: str, pending: Pending, issuer: str) -> ExpectedClaims:
        return ExpectedClaims(
            issuer=issuer,
            audience=pending.audience,
            namespace=self._namespace,
            service_account=pending.service_account,
            pod=runner,
            uid=pending.uid,
        )

    def _await_uid(self, runner: str, pending: Pending) -> str:
        with self._lock:
            self._changed.wait_for(
                lambda: pending.uid or self._pending.get(runner) is not pending,
                self._uid_seconds,
            )
            if pending.uid is None:
                _refuse("its POST has not been answered")
            return pending.uid

    def _look_up(
        self, claims: Mapping[str, Any], pending: Pending, addresses: frozenset[str]
    ) -> None:
        """Ask the API server for the pod: offline checks know no deletion."""
        pod = self._pod(pending)
        metadata, spec, status = pod["metadata"], pod["spec"], pod.get("status") or {}
        if not hmac.compare_digest(str(metadata.get("uid")), str(pending.uid)):
            _refuse("another pod has the name now")
        if metadata.get("deletionTimestamp"):
            _refuse("its pod is being deleted")
        if status.get("phase") not in {"Pending", "Running"}:
            _refuse("its pod has ended")
        if spec.get("serviceAccountName") != pending.service_account:
            _refuse("its pod runs as another account")
        node = claims["kubernetes.io"].get("node")
        if node is not None and _name(node) != spec.get("nodeName"):
            _refuse("its token is for another node")
        known = _addresses(pod)
        if self._enforce_address and not known & addresses:
            reason = "it dials from an address that is not its pod's"
            pending.trouble = f"{reason} (enforce_address)"
            _refuse(reason)
        if known and not known & addresses:
            logger.info("%s dials from another address than its pod's", pending.path)

    def _pod(self, pending: Pending) -> dict[str, Any]:
        """Get the pod; with its address, which comes a moment later, if that counts."""
        deadline = time.monotonic() + self._uid_seconds
        pod = self._cluster.get(pending.path)
        while (
            self._enforce_address
            and not _addresses(pod)
            and time.monotonic() < deadline
        ):
            time.sleep(ADDRESS_POLL_SECONDS)
            pod = self._cluster.get(pending.path)
        return pod

    def _ask_for_review(self, token: str, runner: str, pending: Pending) -> None:
        body = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": token, "audiences": [pending.audience]},
        }
        found = self._cluster.post(REVIEWS_PATH, body)
        check_review(found.get("status"), self._claims_of(runner, pending, ""))

    def _connect(
        self,
        runner: str,
        pending: Pending,
        claims: Mapping[str, Any],
        take: Callable[[], bool],
    ) -> None:
        """Compare and set: the one step that changes state."""
        token_id = claims.get("jti")
        account = str(claims["kubernetes.io"]["serviceaccount"].get("uid"))
        now = self._clock()
        with self._lock:
            if pending.connected or self._pending.get(runner) is not pending:
                _refuse("a second connection")
            if self._accounts.get(pending.service_account, account) != account:
                _refuse("its account was deleted and made again")
            self._used = {key: end for key, end in self._used.items() if end > now}
            if isinstance(token_id, str) and token_id in self._used:
                _refuse("a token that was used before")
            if not take():
                _refuse("its connection was cut meanwhile")
            if isinstance(token_id, str):
                self._used[token_id] = float(claims["exp"])
            self._accounts[pending.service_account] = account
            pending.connected = True
            pending.trouble = ""  # is over; what ends it later has other causes


def _facts(hello: bytes) -> dict[str, Any]:
    try:
        facts = strict_json(hello)
    except (ValueError, RecursionError):
        _refuse("a HELLO that is no JSON object")
    # Of another version it may have other facts; who it is must be proved all the same,
    # and then the boot can end with what is wrong.
    skewed = type(facts.get("v")) is int and facts["v"] != PROTOCOL_VERSION
    wrong = not facts.keys() >= _PROOF_KEYS if skewed else facts.keys() != _HELLO_KEYS
    if wrong or type(facts["v"]) is not int:
        _refuse("a HELLO with other facts than it has")
    if not isinstance(facts["runner"], str) or not isinstance(facts["token"], str):
        _refuse("a HELLO with facts of another kind")
    return facts


def _addresses(pod: Mapping[str, Any]) -> set[str]:
    entries = (pod.get("status") or {}).get("podIPs") or ()
    return {str(entry.get("ip")) for entry in entries}


def _name(node: object) -> object:
    return node.get("name") if isinstance(node, dict) else node


def _refuse(reason: str) -> NoReturn:
    raise LinkUnauthenticated(reason)
