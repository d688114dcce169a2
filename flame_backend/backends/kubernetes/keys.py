"""The cluster's issuer and its keys: fetched once for all, and again when keys turn."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

from flame_backend.errors import LinkUnauthenticated

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

KEYS_SECONDS: Final = 3600.0
REFRESH_SECONDS: Final = 60.0
"""An unknown key id refreshes the keys at most this often: anybody can send one."""

FAILED_SECONDS: Final = 1.0
"""After a fetch that failed, nobody tries for so long."""

# Fixed: the address of a key set in the discovery document is never dialled.
JWKS_PATH: Final = "/openid/v1/jwks"
DISCOVERY_PATH: Final = "/.well-known/openid-configuration"


class Cluster(Protocol):
    """The part of a session that admission needs."""

    def get(self, path: str) -> dict[str, Any]:
        """Return an object."""
        ...

    def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Create an object."""
        ...


@dataclass(frozen=True, slots=True)
class Issuer:
    """Who signs tokens.

    Attributes:
        name: The claim `iss`, byte for byte.
        jwks: Its key set.
    """

    name: str
    jwks: Mapping[str, Any]

    def knows(self, kid: str) -> bool:
        """Say whether a key of this id is in the set."""
        return any(
            isinstance(key, dict) and key.get("kid") == kid for key in self.jwks["keys"]
        )


class Keys:
    """The issuer as last fetched; thread-safe.

    Args:
        cluster: Where to fetch it.
        clock: Monotonic seconds.
    """

    def __init__(
        self, cluster: Cluster, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._cluster = cluster
        self._clock = clock
        # Held while one thread fetches: the others of a boot storm wait for it.
        self._fetching = threading.Lock()
        self._issuer: Issuer | None = None
        self._fetched_at = float("-inf")
        self._failed_at = float("-inf")

    def issuer(self, kid: str) -> Issuer:
        """Return the issuer, fetched again when it is old or lacks the key.

        Raises:
            LinkUnauthenticated: It could not be had.
            KubeTLSError: The API server's answer to this very fetch.
        """
        found = self._fresh(kid)
        if found is not None:
            return found
        with self._fetching:
            found = self._fresh(kid)
            if found is not None:
                return found
            if self._clock() - self._failed_at < FAILED_SECONDS:
                msg = "the cluster's keys could not be fetched a moment ago"
                raise LinkUnauthenticated(msg)
            return self._fetch()

    def _fresh(self, kid: str) -> Issuer | None:
        found = self._issuer
        if found is None:
            return None
        age = self._clock() - self._fetched_at
        return (
            found
            if age < (KEYS_SECONDS if found.knows(kid) else REFRESH_SECONDS)
            else None
        )

    def _fetch(self) -> Issuer:
        try:
            found = self._asked()
        except BaseException:
            # From its end on: it may have taken a minute, while others waited for it.
            self._failed_at = self._clock()
            raise
        self._issuer = found
        self._fetched_at = self._clock()
        return found

    def _asked(self) -> Issuer:
        jwks = self._cluster.get(JWKS_PATH)
        name = self._cluster.get(DISCOVERY_PATH).get("issuer")
        if not isinstance(name, str) or not isinstance(jwks.get("keys"), list):
            msg = "the cluster's issuer discovery has no issuer or no keys"
            raise LinkUnauthenticated(msg)
        return Issuer(name, jwks)
