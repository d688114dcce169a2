"""Runners as pods: posted from the parent's own manifest, watched, deleted.

The parent is a pod itself, as runners dial its address. Pods get names that we choose,
so a POST can be repeated; they belong to the parent's pod, so the cluster removes them
with it; and they are deleted by UID on every path. Nothing secret is in a pod's spec.
"""

from __future__ import annotations

import concurrent.futures
import logging
import os
import socket
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import kubetls
from flame_backend.backends.base import RunnerInfo
from flame_backend.backends.hub import Hub, version_skew
from flame_backend.backends.kubernetes import causes
from flame_backend.backends.kubernetes.admission import Admission, Pending
from flame_backend.backends.kubernetes.listener import Listener
from flame_backend.backends.kubernetes.manifest import (
    LABEL,
    TOKEN_PATH,
    RunnerIdentity,
    RunnerOptions,
    runner_pod,
)
from flame_backend.backends.kubernetes.monitor import Monitor
from flame_backend.errors import (
    AppImportError,
    BootDenied,
    BootError,
    BootTimeout,
    ConfigurationError,
    FlameError,
    LinkUnauthenticated,
    QuotaExceeded,
    VersionSkew,
)
from flame_backend.runner.parent import Parent

if TYPE_CHECKING:
    import ssl
    from collections.abc import Mapping

    from flame_backend.backends.base import PoolSpec, Sink
    from flame_backend.backends.kubernetes.manifest import Manifest
    from flame_backend.wire.link import Link

logger = logging.getLogger("flame_backend.kubernetes")

CAUSE_SECONDS: Final = 4.0
"""How long a lost runner's pod is given to show why; callers wait 5 s."""

GONE_SECONDS: Final = 40.0
"""How long close() waits for pods to be gone, above their grace period."""

GRACE_MARGIN_SECONDS: Final = 5


class _Boot:
    """One runner from its boot to its end."""

    __slots__ = (
        "deadline", "ended", "fatal_since", "name", "pod", "ready", "started",
        "timer", "uid",
    )  # fmt: skip

    def __init__(self, name: str, deadline: float) -> None:
        self.name = name
        self.started = time.monotonic()
        self.deadline = deadline
        self.uid: str | None = None
        self.pod: dict[str, Any] | None = None
        self.ready = False
        self.ended = False
        self.fatal_since: float | None = None
        self.timer: threading.Timer | None = None


class KubernetesBackend:
    """Runs runners as pods of this pod's namespace.

    Args:
        manifest: What differs from this pod: a dict, YAML text, or a callback that
            gets the parent's pod and its app container. None in it deletes a field.
        env: Variables added to the runner's; None deletes an inherited one.
        resources: Replaces the container's resources.
        container: The container to copy, when this pod has several.
        session: A session to use; None opens one in-cluster.
        service_account: Account of the runners; None for this pod's own. Its API
            token is not mounted either way.
        port: Port to listen on for runners; 0 for a free one.
        owner_reference: Let the cluster remove runners with this pod.
    """

    def __init__(
        self,
        manifest: Manifest | None = None,
        *,
        env: Mapping[str, str | None] | None = None,
        resources: Mapping[str, Any] | None = None,
        container: str | None = None,
        session: kubetls.Session | None = None,
        service_account: str | None = None,
        port: int = 0,
        owner_reference: bool = True,
    ) -> None:
        self._options = RunnerOptions(
            manifest=manifest,
            env=dict(env or {}),
            resources=resources,
            container=container,
            service_account=service_account,
            owner_reference=owner_reference,
        )
        self._given_session = session
        self._port = port
        self._lock = threading.Lock()
        self._boots: dict[str, _Boot] = {}
        self._listener: Listener | None = None
        self._closed = False

    # ------------------------------------------------------------------ Backend

    def open(self, spec: PoolSpec, sink: Sink) -> None:
        """Find this pod, listen, watch, and sweep what earlier processes left.

        Raises:
            ConfigurationError: This process is not in a pod, or may not read it.
        """
        self._spec = spec
        self._sink = sink
        self._closed = False
        self._session = self._given_session or _session()
        try:
            self._open(spec)
        except BaseException:
            if self._given_session is None:
                self._session.close()
            raise

    def _open(self, spec: PoolSpec) -> None:
        self._parent_pod = _own_pod(self._session)
        self._namespace = self._parent_pod["metadata"]["namespace"]
        self._pods = kubetls.path("v1", "pods", namespace=self._namespace)
        addresses = tuple(
            entry["ip"] for entry in self._parent_pod["status"].get("podIPs") or ()
        )
        if not addresses:
            raise ConfigurationError("backend", "this pod has no address yet")
        # A manifest that cannot work is the caller's to hear of, before any pod.
        runner_pod(self._parent_pod, self._options, self._identity("check", "", ""))
        self._admission = Admission(self._session, self._namespace)
        self._hub = Hub(spec, self)
        self._listener = Listener(
            addresses,
            self._port,
            self._admission,
            self._runner_connected,
            self._slot_connected,
        )
        self._addresses = addresses
        self._workers = concurrent.futures.ThreadPoolExecutor(8, "flame-kubernetes")
        selector = f"{LABEL}/instance={spec.instance}"
        self._monitor = Monitor(self._session, self._pods, selector, self._pod_changed)
        self._workers.submit(self._sweep)

    def boot(self, runner: str) -> None:
        """Post a pod."""
        boot = _Boot(runner, time.monotonic() + self._spec.boot_timeout)
        with self._lock:
            self._boots[runner] = boot
        boot.timer = threading.Timer(
            self._spec.boot_timeout, self._boot_timed_out, [boot]
        )
        boot.timer.daemon = True
        boot.timer.start()
        self._workers.submit(self._post, boot)

    def open_slot(self, runner: str, slot: int) -> None:
        """Have the runner start another process."""
        self._hub.open_slot(runner, runner, slot)

    def kill_slot(self, runner: str, slot: int) -> None:
        """Have the runner end a slot's process."""
        self._hub.kill_slot(runner, runner, slot)

    def end(self, runner: str, grace: float = 0.0) -> None:
        """End a runner and delete its pod."""
        boot = self._take(runner)
        if boot is not None:
            self._hub.shut_down(runner, grace)
            self._workers.submit(self._delete, boot)

    def close(self, grace: float) -> None:
        """End all runners; returns when their pods are gone."""
        with self._lock:
            if self._closed or self._listener is None:
                return
            self._closed = True
            boots = list(self._boots.values())
            listener, self._listener = self._listener, None
        listener.close()
        for boot in boots:
            self._take(boot.name)
            self._hub.shut_down(boot.name, grace)
        # Posts that are under way end first: each deletes what it made.
        self._workers.shutdown(wait=True)
        self._monitor.stop()
        for boot in boots:
            self._delete(boot)
        self._await_gone(boots, grace)
        self._hub.close()
        if self._given_session is None:
            self._session.close()

    def after_fork(self) -> None:
        """In a forked child: forget the parent's runners, and close its copies."""
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.after_fork()
            self._hub.after_fork()
        self._lock = threading.Lock()
        self._boots = {}
        self._closed = False

    def describe(self) -> dict[str, Any]:
        """Return facts for status()."""
        if self._listener is None:
            return {"kind": "kubernetes"}
        return {
            "kind": "kubernetes",
            "namespace": self._namespace,
            "parent": self._parent_pod["metadata"]["name"],
            "address": f"{self._addresses[0]}:{self._listener.port}",
        }

    # ------------------------------------------------------------------ boot

    def _identity(self, runner: str, audience: str, variable: str) -> RunnerIdentity:
        grace = int(self._spec.shutdown_timeout) + GRACE_MARGIN_SECONDS
        return RunnerIdentity(
            name=runner,
            pool=self._spec.name,
            instance=self._spec.instance,
            audience=audience,
            parent_variable=variable,
            boot_timeout=self._spec.boot_timeout,
            grace=grace,
        )

    def _post(self, boot: _Boot) -> None:
        """Create the pod; in a worker."""
        try:
            pod = self._runner_manifest(boot.name)
            uid = self._created(boot.name, pod)
        except kubetls.KubeTLSError as error:
            self._fail(boot, _create_error(boot.name, error))
        except FlameError as error:
            self._fail(boot, BootDenied(boot.name, "create", str(error)))
        else:
            boot.uid = uid
            self._admission.posted(boot.name, uid)
            if boot.ended:
                self._delete(boot)

    def _runner_manifest(self, runner: str) -> dict[str, Any]:
        assert self._listener is not None  # open() comes before boot()
        audience = f"flame-backend/{self._parent_pod['metadata']['uid']}/{runner}"
        parent = Parent(
            pool=self._spec.name,
            runner=runner,
            transport="tls",
            addresses=self._addresses,
            port=self._listener.port,
            certificate=self._listener.certificate,
            token_path=TOKEN_PATH,
            failsafe=max(20.0, self._spec.boot_timeout / 2),
        )
        identity = self._identity(runner, audience, parent.encoded())
        pod = runner_pod(self._parent_pod, self._options, identity)
        pending = Pending(
            audience=audience,
            path=f"{self._pods}/{runner}",
            service_account=pod["spec"].get("serviceAccountName") or "default",
        )
        self._admission.expect(runner, pending)
        return pod

    def _created(self, runner: str, pod: dict[str, Any]) -> str:
        """POST a pod and return its UID; a lost answer is looked up by name."""
        query = {"fieldValidation": "Strict"}
        try:
            made = self._session.post(self._pods, pod, query)
        except (kubetls.AlreadyExists, kubetls.TransportError):
            # Either our POST arrived and its answer did not, or the name is taken.
            made = self._session.get(f"{self._pods}/{runner}")
            labels = made["metadata"].get("labels") or {}
            if labels.get(f"{LABEL}/instance") != self._spec.instance:
                raise
        return str(made["metadata"]["uid"])

    def _fail(self, boot: _Boot, error: BootError) -> None:
        """End a boot once, with its cause, and delete what it made."""
        if self._take(boot.name) is None:
            return
        self._hub.drop(boot.name)
        self._delete(boot)
        self._sink.boot_failed(boot.name, error)

    def _take(self, runner: str) -> _Boot | None:
        """Take a runner out of the books; None when it is not in them."""
        with self._lock:
            boot = self._boots.pop(runner, None)
            if boot is None:
                return None
            boot.ended = True
        if boot.timer is not None:
            boot.timer.cancel()
        self._admission.forget(runner)
        return boot

    def _boot_timed_out(self, boot: _Boot) -> None:
        limit = self._spec.boot_timeout
        waiting = causes.waiting_for(boot.pod) if boot.pod else None
        if boot.ready:
            return
        if waiting is not None and waiting.kind is not BootError:
            error = waiting.kind(boot.name, waiting.phase, waiting.reason)
        else:
            phase = waiting.phase if waiting else "connect"
            what = waiting.reason if waiting else "it runs and has not connected"
            error = BootTimeout(boot.name, phase, f"not ready in {limit:g} s: {what}")
        self._fail(boot, error)

    # ------------------------------------------------------------------ pods

    def _pod_changed(self, name: str, pod: dict[str, Any] | None) -> None:
        """Hear of a pod; in the monitor's thread."""
        with self._lock:
            boot = self._boots.get(name)
        if boot is None:
            return
        if pod is None:
            if not boot.ready:
                reason = "its pod was deleted"
                self._workers.submit(self._fail, boot, BootError(name, "start", reason))
            return
        boot.pod = pod
        if boot.ready:
            return
        ended = causes.ended_boot(name, pod)
        if ended is not None:
            self._workers.submit(self._fail, boot, ended)
            return
        self._follow_boot(boot, pod)

    def _follow_boot(self, boot: _Boot, pod: dict[str, Any]) -> None:
        waiting = causes.waiting_for(pod)
        if waiting is None:
            boot.fatal_since = None
            return
        self._sink.phase(boot.name, waiting.phase, waiting.reason)
        if waiting.fatal_after is None:
            boot.fatal_since = None
        elif boot.fatal_since is None:
            boot.fatal_since = time.monotonic()
            check = threading.Timer(waiting.fatal_after, self._still_fatal, [boot])
            check.daemon = True
            check.start()

    def _still_fatal(self, boot: _Boot) -> None:
        waiting = causes.waiting_for(boot.pod) if boot.pod else None
        if boot.ready or waiting is None or waiting.fatal_after is None:
            return
        self._fail(boot, waiting.kind(boot.name, waiting.phase, waiting.reason))

    def _delete(self, boot: _Boot) -> None:
        """Delete a runner's pod by UID; a pod that is gone is fine."""
        if boot.uid is None:
            return
        path = f"{self._pods}/{boot.name}"
        with suppress(kubetls.NotFound, kubetls.Conflict):
            try:
                self._session.delete(path, uid=boot.uid, grace=1)
            except kubetls.KubeTLSError as error:
                if isinstance(error, kubetls.NotFound | kubetls.Conflict):
                    raise
                logger.warning("runner pod %s was not deleted: %s", boot.name, error)

    def _await_gone(self, boots: list[_Boot], grace: float) -> None:
        deadline = time.monotonic() + grace + GONE_SECONDS
        left = [boot for boot in boots if boot.uid is not None]
        while left and time.monotonic() < deadline:
            left = [boot for boot in left if self._exists(boot)]
            if left:
                time.sleep(0.2)
        for boot in left:
            logger.warning("runner pod %s is still there", boot.name)

    def _exists(self, boot: _Boot) -> bool:
        try:
            pod = self._session.get(f"{self._pods}/{boot.name}")
        except kubetls.NotFound:
            return False
        except kubetls.KubeTLSError:
            return True
        return bool(pod["metadata"]["uid"] == boot.uid)

    def _sweep(self) -> None:
        """Delete what earlier processes of this pod left: ended and stale pods.

        Running ones are never touched: they may be a sibling process' runners, and
        end by themselves when their parent is gone.
        """
        own = self._parent_pod["metadata"]["uid"]
        try:
            for pod in self._session.list(self._pods, labels=f"{LABEL}/pool"):
                owners = pod["metadata"].get("ownerReferences") or ()
                ours = any(owner.get("uid") == own for owner in owners)
                ended = pod.get("status", {}).get("phase") in {"Failed", "Succeeded"}
                mine = pod["metadata"]["labels"].get(f"{LABEL}/instance")
                if ours and ended and mine != self._spec.instance:
                    name, uid = pod["metadata"]["name"], pod["metadata"]["uid"]
                    self._session.delete(f"{self._pods}/{name}", uid=uid)
        except kubetls.KubeTLSError as error:
            logger.info("sweep: %s", error)

    # ------------------------------------------------------------------ connections

    def _runner_connected(
        self, runner: str, sock: ssl.SSLSocket, facts: dict[str, object]
    ) -> None:
        with self._lock:
            boot = self._boots.get(runner)
        if boot is None:
            msg = "its boot was given up"
            raise LinkUnauthenticated(msg)
        skew = version_skew(facts)
        if skew is not None:
            self._workers.submit(self._fail, boot, VersionSkew(runner, "connect", skew))
            raise LinkUnauthenticated(skew)
        self._hub.adopt(runner, sock, passes=False)

    def _slot_connected(self, ticket: bytes, sock: ssl.SSLSocket) -> None:
        if not self._hub.slot_connected(ticket, sock):
            msg = "no such ticket, or an old one"
            raise LinkUnauthenticated(msg)

    # ------------------------------------------------------------------ hub events

    def agent_ready(self, agent: str, phases: list[tuple[str, float]]) -> None:
        """The runner is ready: report it and open its slots."""
        with self._lock:
            boot = self._boots.get(agent)
            if boot is None:
                return
            boot.ready = True
        if boot.timer is not None:
            boot.timer.cancel()
        node = str(((boot.pod or {}).get("spec") or {}).get("nodeName") or "")
        took = time.monotonic() - boot.started
        self._sink.ready(
            RunnerInfo(runner=agent, node=node, boot_seconds=took, phases=tuple(phases))
        )
        for slot in range(self._spec.slots):
            self._hub.open_slot(agent, agent, slot)

    def agent_failed(self, agent: str, phase: str, reason: str, log: str) -> None:
        """The app did not load on the runner."""
        with self._lock:
            boot = self._boots.get(agent)
        if boot is not None:
            error = AppImportError(agent, phase, reason, log)
            self._workers.submit(self._fail, boot, error)

    def agent_draining(self, agent: str, reason: str) -> None:
        """The kubelet ends the pod: its calls may finish, no more go there."""
        self._sink.draining(agent, reason)

    def agent_gone(self, agent: str, reason: str, *, expected: bool) -> None:
        """The control link ended; find out why in a worker."""
        del expected
        with self._lock:
            boot = self._boots.get(agent)
        if boot is not None and not self._closed:
            self._workers.submit(self._lost, boot, reason)

    def _lost(self, boot: _Boot, reason: str) -> None:
        """Give the pod's status a moment to say why, then report and delete."""
        deadline = time.monotonic() + CAUSE_SECONDS
        error = causes.loss(boot.name, boot.pod, reason)
        while error.reason == "Unknown" and time.monotonic() < deadline:
            time.sleep(0.2)
            error = causes.loss(boot.name, boot.pod, reason)
        if not boot.ready:
            self._fail(boot, BootError(boot.name, "import", str(error.detail)))
        elif self._take(boot.name) is not None:
            self._sink.lost(boot.name, error)
            self._delete(boot)

    def slot_opened(self, runner: str, slot: int, link: Link) -> None:
        """Pass it on."""
        self._sink.slot_opened(runner, slot, link)

    def slot_ended(
        self, runner: str, slot: int, exit_code: int | None, signal: int | None
    ) -> None:
        """Pass it on."""
        self._sink.slot_ended(runner, slot, exit_code, signal)


def _session() -> kubetls.Session:
    try:
        return kubetls.session(kubetls.in_cluster(), user_agent="flame-backend/0.1.0")
    except kubetls.NotInCluster as error:
        reason = (
            "KubernetesBackend works inside a pod only, as runners must reach this "
            "process; use LocalBackend here"
        )
        raise ConfigurationError("backend", reason) from error


def _own_pod(session: kubetls.Session) -> dict[str, Any]:
    """Find the pod this process runs in."""
    namespace = os.environ.get("POD_NAMESPACE") or session.namespace
    name = os.environ.get("POD_NAME") or socket.gethostname()
    try:
        return session.get(kubetls.path("v1", "pods", name, namespace=namespace))
    except kubetls.NotFound as error:
        reason = (
            f"there is no pod {name} in {namespace}; set POD_NAME and POD_NAMESPACE "
            "by the downward API"
        )
        raise ConfigurationError("backend", reason) from error
    except kubetls.Forbidden as error:
        reason = f"this pod's account may not read it: {error.message}"
        raise ConfigurationError("backend", reason) from error


def _create_error(runner: str, error: kubetls.KubeTLSError) -> BootError:
    if isinstance(error, kubetls.Forbidden) and "exceeded quota" in error.message:
        return QuotaExceeded(runner, "create", error.message)
    refused = (
        kubetls.Forbidden,
        kubetls.Invalid,
        kubetls.BadRequest,
        kubetls.NotFound,
        kubetls.Unauthorized,
    )
    if isinstance(error, refused):
        return BootDenied(runner, "create", error.message)
    return BootError(runner, "create", str(error))
