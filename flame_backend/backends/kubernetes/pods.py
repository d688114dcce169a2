"""Runner pods at the API server: made once, found again, deleted by UID.

A POST may arrive without its answer. Names are ours and each pod carries a nonce of
its own POST, so that the same request can be sent again and what it made be told from
anybody else's pod of that name.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

import kubetls
from flame_backend.backends.kubernetes.leftovers import may_be_swept
from flame_backend.backends.kubernetes.manifest import LABEL
from flame_backend.backends.kubernetes.pod_template import RUNNER_CONTAINER
from flame_backend.backends.kubernetes.refusals import INSTANCE, TOKEN_VOLUME

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Iterator

logger = logging.getLogger("flame_backend.kubernetes")

NONCE: Final = f"{LABEL}/nonce"

LOG_LINES: Final = 20
LOG_BYTES: Final = 1024 * 1024

LOG_TIMEOUT: Final = kubetls.Timeout(connect=2.0, read=5.0)
"""The kubelet of a dead node never answers, and others wait for the worker."""

LOG_RETRIES: Final = kubetls.Retries(attempts=1)
"""One that is down refuses connections, which the API server tells as its own error."""

KUBELET_TIMEOUT: Final = kubetls.Timeout(connect=2.0, read=2.0)

# The request may have been carried out: whoever sent it must look.
_UNSURE: Final = (
    kubetls.AlreadyExists,
    kubetls.ApiTimeout,
    kubetls.InternalError,
    kubetls.ServerTimeout,
    kubetls.TransportError,
)


class PodsFull(Exception):
    """max_pods runner pods of this pod exist."""


class Pods:
    """The runner pods of one pool, and those of its siblings in the same pod.

    Args:
        session: Talks to the API server.
        namespace: Theirs and the parent's.
        instance: The pool object's identity.
        parent: UID of the parent's pod.
        max_pods: Most runner pods of all processes of the parent's pod; None for any.
    """

    def __init__(
        self,
        session: kubetls.Session,
        namespace: str,
        instance: str,
        parent: str,
        max_pods: int | None = None,
    ) -> None:
        self._session = session
        self._namespace = namespace
        self._instance = instance
        self._audience = audience_prefix(parent)
        self._max_pods = max_pods
        self._logs = True
        self.path = kubetls.path("v1", "pods", namespace=namespace)
        self.selector = f"{INSTANCE}={instance}"

    def create(self, pod: dict[str, Any]) -> str:
        """POST a pod and return its UID; the same pod may be posted again.

        Raises:
            PodsFull: There is no room for it.
            KubeTLSError: It was refused, or nobody knows.
        """
        self._check_room()
        name = pod["metadata"]["name"]
        nonce = pod["metadata"]["annotations"][NONCE]
        try:
            made = self._session.post(self.path, pod, {"fieldValidation": "Strict"})
        except _UNSURE:
            uid = self.find(name, nonce)
            if uid is None:
                raise
        else:
            uid = str(made["metadata"]["uid"])
        self._check_room(uid)
        return uid

    def find(self, name: str, nonce: str) -> str | None:
        """Return the UID of the pod that a POST made, None when it made none."""
        try:
            metadata = self.get(name)["metadata"]
        except kubetls.NotFound:
            return None
        annotations = metadata.get("annotations") or {}
        return str(metadata["uid"]) if annotations.get(NONCE) == nonce else None

    def get(self, name: str) -> dict[str, Any]:
        """Return a pod."""
        return self._session.get(f"{self.path}/{name}")

    def delete(self, name: str, uid: str, grace: int) -> None:
        """Delete this very pod; one that is gone, or another of its name, is fine."""
        try:
            self._session.delete(f"{self.path}/{name}", uid=uid, grace=grace)
        except kubetls.NotFound:
            return
        except kubetls.Conflict:
            # Not every conflict is about the UID.
            if self._is_there(name, uid):
                raise

    def _is_there(self, name: str, uid: str) -> bool:
        try:
            return bool(self.get(name)["metadata"]["uid"] == uid)
        except kubetls.NotFound:
            return False

    def all(self) -> dict[str, str]:
        """Return the pool's runner pods that there are: name by UID."""
        found = self._session.list(self.path, labels=self.selector)
        metadata = (pod["metadata"] for pod in found if self.is_ours(pod))
        return {str(item["uid"]): str(item["name"]) for item in metadata}

    def last_output(self, name: str) -> str:
        """Return the end of a runner's log; "" where it cannot be read."""
        if not self._logs:
            return ""
        query = {"container": RUNNER_CONTAINER, "tailLines": LOG_LINES}
        query["limitBytes"] = LOG_BYTES
        try:
            found = self._session.request(
                "GET",
                f"{self.path}/{name}/log",
                query=query,
                timeout=LOG_TIMEOUT,
                retries=LOG_RETRIES,
            )
            return found.data.decode(errors="replace").strip()
        except kubetls.Forbidden:
            self._logs = False  # pods/log is an optional right
            return ""
        except kubetls.KubeTLSError:
            return ""

    def kubelet_answers(self, name: str) -> bool:
        """Ask a pod's kubelet for its log; False when no answer comes.

        True as well where logs may not be read: nothing is known then.
        """
        if not self._logs:
            return True
        query = {"container": RUNNER_CONTAINER, "tailLines": 1}
        try:
            self._session.request(
                "GET", f"{self.path}/{name}/log", query=query, timeout=KUBELET_TIMEOUT
            )
        except (kubetls.BadRequest, kubetls.Forbidden, kubetls.NotFound):
            return True
        except kubetls.KubeTLSError:
            return False
        return True

    def sweep(self, now: dt.datetime) -> None:
        """Delete what earlier processes of this pod left: ended and stale ones.

        Not those that a sibling keeps for a look (keep_failed), for as long as it does.
        Running ones are never touched: they may be a sibling process' runners, and
        end by themselves when their parent is gone.
        """
        try:
            for pod in self._siblings():
                metadata = pod["metadata"]
                mine = metadata["labels"].get(INSTANCE) == self._instance
                if not mine and may_be_swept(pod, now):
                    self.delete(metadata["name"], metadata["uid"], 0)
        except kubetls.KubeTLSError as error:
            logger.info("sweep: %s", error)

    def _siblings(self) -> Iterator[dict[str, Any]]:
        """Yield runner pods of all processes of the parent's pod, told by audience."""
        for pod in self._session.list(self.path, labels=f"{LABEL}/pool"):
            if self.is_ours(pod):
                yield pod

    def is_ours(self, pod: dict[str, Any]) -> bool:
        """Say whether a pod was made as a runner of this parent's pod.

        Labels can be put on any pod, and nobody shall have us delete it for that; the
        audience of its token is part of what it was made with.
        """
        return _audience(pod).startswith(self._audience)

    def _check_room(self, uid: str | None = None) -> None:
        """Refuse a pod beyond max_pods.

        Processes cannot see each other: two may find the same room. So each looks
        again when its pod is made, and withdraws when there are too many by then.

        Raises:
            PodsFull: There is no room; nothing is left of a pod that was made.
        """
        if self._max_pods is None:
            return
        alive = {
            str(pod["metadata"]["uid"]): str(pod["metadata"]["name"])
            for pod in self._siblings()
            if _is_alive(pod)
        }
        if uid is None and len(alive) >= self._max_pods:
            raise PodsFull
        if uid in alive and len(alive) > self._max_pods:
            self.delete(alive[uid], uid, 0)
            raise PodsFull


def audience_prefix(parent: str) -> str:
    """Return how the audiences of all runners of a pod begin.

    Args:
        parent: UID of the parent's pod.
    """
    return f"{LABEL}/{parent}/"


def _is_alive(pod: dict[str, Any]) -> bool:
    return (pod.get("status") or {}).get("phase") not in {"Failed", "Succeeded"}


def _audience(pod: dict[str, Any]) -> str:
    for volume in (pod.get("spec") or {}).get("volumes") or ():
        if volume.get("name") == TOKEN_VOLUME:
            for source in (volume.get("projected") or {}).get("sources") or ():
                token = source.get("serviceAccountToken") or {}
                return str(token.get("audience") or "")
    return ""
