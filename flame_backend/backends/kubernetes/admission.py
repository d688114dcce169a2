"""Admission: who may be a runner of this pool.

A runner that we posted, and nobody else, once: the claims of its token are verified
offline against the cluster's keys, the pod is looked up live, and only the last step
changes anything. Whatever fails, the peer learns nothing but that the link closed.
"""

from __future__ import annotations

import hmac
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NoReturn, Protocol

from flame_backend.backends.kubernetes.tokens import (
    ExpectedClaims,
    key_id,
    strict_json,
    verified_claims,
)
from flame_backend.errors import LinkUnauthenticated

if TYPE_CHECKING:
    from collections.abc import Mapping

UID_SECONDS: Final = 5.0
"""How long a HELLO that overtook the answer to our POST waits for it."""

KEYS_SECONDS: Final = 3600.0
REFRESH_SECONDS: Final = 60.0
"""An unknown key id refreshes the keys at most this often."""

_HELLO_KEYS: Final = frozenset({"v", "runner", "python", "pid", "token"})

JWKS_PATH: Final = "/openid/v1/jwks"
DISCOVERY_PATH: Final = "/.well-known/openid-configuration"


class Cluster(Protocol):
    """The part of a session that admission needs."""

    def get(self, path: str) -> dict[str, Any]:
        """Return an object."""
        ...


@dataclass(slots=True)
class Pending:
    """A runner that was posted and has not connected.

    Attributes:
        audience: Of its token.
        path: Of its pod.
        service_account: Of its pod.
        uid: Of its pod, from our POST; None until that is answered.
        connected: True from its admission on, for ever.
    """

    audience: str
    path: str
    service_account: str
    uid: str | None = None
    connected: bool = False


class Admission:
    """Decides about first frames; thread-safe."""

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        self._cluster = cluster
        self._namespace = namespace
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._pending: dict[str, Pending] = {}
        self._used: dict[str, float] = {}
        self._keys: dict[str, Any] = {}
        self._keys_at = float("-inf")
        self._issuer = ""

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

    # ------------------------------------------------------------------ the decision

    def admit(
        self, hello: bytes, addresses: frozenset[str]
    ) -> tuple[str, dict[str, Any]]:
        """Decide about a HELLO.

        Args:
            hello: Body of the first frame, at most 16 KiB.
            addresses: Addresses of the peer.

        Returns:
            The runner's name and the facts of its HELLO.

        Raises:
            LinkUnauthenticated: With the step that failed, for our own log only.
        """
        facts = _facts(hello)
        runner = str(facts["runner"])
        pending = self._await_uid(runner)
        token = str(facts.pop("token"))
        claims = self._verified(token, runner, pending)
        self._look_up(claims, pending, addresses)
        self._connect(runner, pending, claims)
        return runner, facts

    def _await_uid(self, runner: str) -> Pending:
        with self._lock:
            found = self._pending.get(runner)
            if found is None or found.connected:
                msg = "no runner of this name is expected"
                raise LinkUnauthenticated(msg)
            self._changed.wait_for(
                lambda: found.uid or self._pending.get(runner) is not found,
                UID_SECONDS,
            )
            if found.uid is None:
                msg = "its POST has not been answered"
                raise LinkUnauthenticated(msg)
            return found

    def _verified(self, token: str, runner: str, pending: Pending) -> dict[str, Any]:
        keys = self._keys_with(key_id(token))
        expected = ExpectedClaims(
            issuer=self._issuer,
            audience=pending.audience,
            namespace=self._namespace,
            service_account=pending.service_account,
            pod=runner,
            uid=pending.uid or "",
        )
        return verified_claims(token, keys, expected, time.time())

    def _keys_with(self, kid: str) -> dict[str, Any]:
        """Return the key set, fetched again when it is old or lacks the key.

        The paths are fixed: a key set's address from the discovery document is
        never dialled.
        """
        now = time.monotonic()
        with self._lock:
            age = now - self._keys_at
            known = any(key.get("kid") == kid for key in self._keys.get("keys", ()))
            if age < (KEYS_SECONDS if known else REFRESH_SECONDS):
                return self._keys
            self._keys_at = now
        keys = self._cluster.get(JWKS_PATH)
        issuer = self._cluster.get(DISCOVERY_PATH).get("issuer")
        if not isinstance(issuer, str) or not isinstance(keys.get("keys"), list):
            msg = "the cluster's issuer discovery has no issuer or no keys"
            raise LinkUnauthenticated(msg)
        with self._lock:
            self._keys, self._issuer = keys, issuer
        return keys

    def _look_up(
        self,
        claims: Mapping[str, Any],
        pending: Pending,
        addresses: frozenset[str],
    ) -> None:
        """Ask the API server for the pod: offline checks know no deletion."""
        pod = self._cluster.get(pending.path)
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
        if isinstance(node, dict) and node.get("name") != spec.get("nodeName"):
            _refuse("its token is for another node")
        known = {entry.get("ip") for entry in status.get("podIPs") or ()}
        if known and not known & addresses:
            _refuse("it dials from an address that is not its pod's")

    def _connect(
        self, runner: str, pending: Pending, claims: Mapping[str, Any]
    ) -> None:
        """Compare and set: the one step that changes state."""
        token_id = claims.get("jti")
        now = time.time()
        with self._lock:
            if pending.connected or self._pending.get(runner) is not pending:
                _refuse("a second connection")
            self._used = {key: end for key, end in self._used.items() if end > now}
            if isinstance(token_id, str):
                if token_id in self._used:
                    _refuse("a token that was used before")
                self._used[token_id] = float(claims["exp"])
            pending.connected = True


def _facts(hello: bytes) -> dict[str, Any]:
    try:
        facts = strict_json(hello)
    except (ValueError, RecursionError):
        _refuse("a HELLO that is no JSON object")
    if set(facts) != _HELLO_KEYS or facts["v"] != 1:
        _refuse("a HELLO with other facts than it has")
    if not isinstance(facts["runner"], str) or not isinstance(facts["token"], str):
        _refuse("a HELLO with facts of another kind")
    return facts


def _refuse(reason: str) -> NoReturn:
    raise LinkUnauthenticated(reason)
