"""A Lease that owns the runners of another namespace, where this pod cannot.

An owner must live in the namespace of what it owns. So a parent whose runners live in a
namespace of their own makes a Lease there, and the cluster removes the runners' pods
with it. The Lease says who holds it; a parent that starts later deletes those whose
holder is no more, and with them what was left.
"""

from __future__ import annotations

import datetime as dt
import logging
from typing import TYPE_CHECKING, Any, Final

import kubetls
from flame_backend.backends.kubernetes.refusals import INSTANCE, LABEL, MANAGED_BY
from flame_backend.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from flame_backend.backends.kubernetes.manifest import RunnerOptions

logger = logging.getLogger("flame_backend.kubernetes")

API: Final = "coordination.k8s.io/v1"

LEASE_SECONDS: Final = 3600
"""A holder that cannot be looked up is taken for gone after so long; far above what an
outage of the API server, or clocks that differ, may take."""

RENEW_SECONDS: Final = 300.0


class Lease:
    """The Lease of one pool.

    Args:
        session: Talks to the API server.
        namespace: The runners'.
        parent: Metadata of this process' own pod, in another namespace.
        instance: The pool object's identity.
    """

    def __init__(
        self,
        session: kubetls.Session,
        namespace: str,
        parent: Mapping[str, Any],
        instance: str,
    ) -> None:
        self._session = session
        self._path = kubetls.path(API, "leases", namespace=namespace)
        self._name = _name_of(instance)
        self._instance = instance
        self._home = str(parent["namespace"])
        self._holder = "/".join((self._home, parent["name"], parent["uid"]))
        self._labels = {MANAGED_BY: LABEL, INSTANCE: instance}
        self._uid = ""

    @property
    def reference(self) -> dict[str, Any]:
        """Owner reference for the runners' pods."""
        return owner_reference(self._instance, self._uid)

    def acquire(self) -> None:
        """Make the Lease.

        Raises:
            ConfigurationError: It was refused, or nobody answers.
        """
        spec = {"holderIdentity": self._holder, "leaseDurationSeconds": LEASE_SECONDS}
        body = {
            "apiVersion": API,
            "kind": "Lease",
            "metadata": {"name": self._name, "labels": self._labels},
            "spec": spec | {"renewTime": _now()},
        }
        try:
            made = self._session.post(self._path, body)
        except kubetls.KubeTLSError as error:
            reason = (
                f"the Lease that owns runners there cannot be made: {error}; the "
                "rights are printed by flame-backend init --runner-namespace"
            )
            raise ConfigurationError("namespace", reason) from error
        self._uid = str(made["metadata"]["uid"])

    def renew(self) -> None:
        """Say that the holder lives."""
        try:
            renewal = {"spec": {"renewTime": _now()}}
            self._session.patch(f"{self._path}/{self._name}", renewal)
        except kubetls.KubeTLSError as error:
            # The next one may do; who deleted it has ended the runners with it.
            logger.warning("lease %s is not renewed: %s", self._name, error)

    def keep(
        self,
        work: Callable[[Callable[[], None]], None],
        later: Callable[[float, Callable[[], None]], None],
    ) -> None:
        """Renew it from now on.

        Args:
            work: Runs a step in some thread that may block.
            later: Runs a step after some seconds, in a thread that may not.
        """

        def renew() -> None:
            work(self.renew)
            later(RENEW_SECONDS, renew)

        later(RENEW_SECONDS, renew)

    def release(self) -> None:
        """Delete the Lease; the cluster removes what it still owns."""
        try:
            self._session.delete(f"{self._path}/{self._name}", uid=self._uid)
        except (kubetls.NotFound, kubetls.Conflict):
            return
        except kubetls.KubeTLSError as error:
            logger.warning("lease %s is left, and expires: %s", self._name, error)

    def sweep(self, now: dt.datetime) -> None:
        """Delete the Leases of parents that are no more."""
        try:
            for found in self._session.list(self._path, labels=INSTANCE):
                metadata = found["metadata"]
                if metadata["name"] != self._name and self._is_dead(found, now):
                    path = f"{self._path}/{metadata['name']}"
                    self._session.delete(path, uid=metadata["uid"])
        except kubetls.KubeTLSError as error:
            logger.info("sweep of leases: %s", error)

    def _is_dead(self, lease: dict[str, Any], now: dt.datetime) -> bool:
        spec = lease.get("spec") or {}
        home, _, holder = str(spec.get("holderIdentity") or "").partition("/")
        name, _, uid = holder.partition("/")
        if home == self._home and name and uid:
            return self._is_gone(name, uid)
        if not spec.get("renewTime"):
            return False  # it is none of ours, and says nothing of its holder
        silent = now - dt.datetime.fromisoformat(spec["renewTime"])
        return silent > dt.timedelta(seconds=LEASE_SECONDS)

    def _is_gone(self, name: str, uid: str) -> bool:
        """Say whether a pod of this one's namespace is no more, or has ended."""
        try:
            path = kubetls.path("v1", "pods", name, namespace=self._home)
            pod = self._session.get(path)
        except kubetls.NotFound:
            return True
        ended = pod["status"].get("phase") in {"Failed", "Succeeded"}
        return ended or bool(pod["metadata"]["uid"] != uid)


def lease_for(
    session: kubetls.Session,
    namespace: str,
    parent: Mapping[str, Any],
    instance: str,
    options: RunnerOptions,
) -> Lease | None:
    """Make the Lease of a pool whose runners live elsewhere; None where none is needed.

    Args:
        session: Talks to the API server.
        namespace: The runners'.
        parent: Metadata of this process' own pod.
        instance: The pool object's identity.
        options: The user's.

    Raises:
        ConfigurationError: It cannot be made, or runners have no account there.
    """
    if namespace == parent["namespace"]:
        return None
    require_account(namespace, options)
    if not options.owner_reference:
        return None
    lease = Lease(session, namespace, parent, instance)
    lease.acquire()
    return lease


def require_account(namespace: str, options: RunnerOptions) -> None:
    """See that runners of another namespace have an account there.

    Raises:
        ConfigurationError: None is named.
    """
    if not options.service_account:
        reason = f"name one of namespace {namespace}: this pod's own is not there"
        raise ConfigurationError("service_account", reason)


def owner_reference(instance: str, uid: str) -> dict[str, Any]:
    """Return the owner reference of a pool's runners to its Lease."""
    owner = {"apiVersion": API, "kind": "Lease", "name": _name_of(instance)}
    return owner | {"uid": uid, "controller": True}


def _name_of(instance: str) -> str:
    return f"{LABEL}-{instance}"


def _now() -> str:
    """Return the time as MicroTime has it."""
    return dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
