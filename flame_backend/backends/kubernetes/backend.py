"""Runners as pods: posted from the parent's own manifest, watched, deleted.

The parent is a pod itself, as runners dial its address. Pods get names that we choose,
so a POST can be repeated; they belong to the parent's pod, so the cluster removes them
with it; and they are deleted by UID on every path. Nothing secret is in a pod's spec.

Here the parts are put together: what a runner goes through is in lifecycle.
"""

from __future__ import annotations

import datetime as dt
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from flame_backend.backends.base import KILL_GRACE_SECONDS, RunnerInfo
from flame_backend.backends.hub import Hub
from flame_backend.backends.kubernetes.admission import Admission, Pending
from flame_backend.backends.kubernetes.disposal import Disposal
from flame_backend.backends.kubernetes.identity import identity_of
from flame_backend.backends.kubernetes.lease import Lease, lease_for
from flame_backend.backends.kubernetes.lifecycle import Lifecycle
from flame_backend.backends.kubernetes.listener import Listener
from flame_backend.backends.kubernetes.manifest import (
    TOKEN_PATH,
    RunnerOptions,
    runner_pod,
)
from flame_backend.backends.kubernetes.monitor import PodEvents
from flame_backend.backends.kubernetes.own_pod import addresses_of, own_pod
from flame_backend.backends.kubernetes.pods import Pods, audience_prefix
from flame_backend.backends.kubernetes.shared import join, leave
from flame_backend.backends.kubernetes.workers import Workers
from flame_backend.backends.welcome import version_skew
from flame_backend.errors import (
    AppImportError,
    ConfigurationError,
    LinkUnauthenticated,
    VersionSkew,
)
from flame_backend.runner.parent import Parent

if TYPE_CHECKING:
    import ssl
    from collections.abc import Mapping, Sequence

    import kubetls
    from flame_backend.backends.base import PoolSpec, Sink, SlotEnd
    from flame_backend.backends.kubernetes.manifest import Hardening, Manifest
    from flame_backend.backends.kubernetes.pod_template import Inherit
    from flame_backend.backends.output import Output
    from flame_backend.wire.link import Link


FAILSAFE_SECONDS: Final = (20.0, 40.0)
"""A runner gives its parent so long to welcome it: half of boot_timeout within these.
A runner whose parent died is to be gone within a minute, whenever it was posted."""

SWEEP_SECONDS: Final = (0.0, 15.0, 45.0, 90.0)
"""When earlier processes' pods are looked for. Runners of one that was killed a moment
ago are still running at the start; they end when their link does, or their patience
with a parent that does not answer, or with one that says nothing."""


class KubernetesBackend:
    """Runs runners as pods of this pod's namespace.

    Args:
        manifest: What differs from this pod: a dict, YAML text, or a callback that
            gets the parent's pod and its app container. None in it deletes a field.
        env: Variables added to the runner's; None deletes an inherited one.
        resources: Replaces the container's resources.
        container: The container to copy, when this pod has several.
        session: A session to use; None opens one in-cluster.
        namespace: Where runners live, when that is not this pod's own: one without
            Secrets, so that the right to create pods there opens nothing. They need
            a `service_account` of that namespace, and a Lease there owns them.
        service_account: Account of the runners; None for this pod's own. Its API
            token is not mounted either way.
        inherit: "app" for a copy of the app: environment, volumes, resources,
            security context, placement; "image" for its image and account only.
        hardening: "inherit" keeps the app's security settings and adds defaults where
            it has none; "restricted" makes runners fit the profile of that name.
        sidecars: Containers of this pod that come along and end with the runner.
        python: The runners' interpreter; None for this process' own, which is right
            for the same image.
        max_pods: Most runner pods of all pools and processes of this pod together;
            boots beyond it wait for room.
        port: Port to listen on for runners; 0 for a free one. A range is for several
            processes of one pod: each takes the first that is free.
        keep_failed: Seconds for which the pods of failed boots and lost runners are
            kept, for kubectl describe; until the pool closes at the latest.
        owner_reference: Let the cluster remove runners with this pod.
        token_review: Have the API server review the tokens of runners, besides the
            checks that are made here. Needs create on tokenreviews, a right that only
            a ClusterRole gives.
        enforce_address: Refuse runners that dial from another address than their
            pod's. Off, it is logged: meshes and address translation change it.
    """

    def __init__(  # noqa: PLR0913 - one argument for each option
        self,
        manifest: Manifest | None = None,
        *,
        env: Mapping[str, str | None] | None = None,
        resources: Mapping[str, Any] | None = None,
        container: str | None = None,
        session: kubetls.Session | None = None,
        namespace: str | None = None,
        service_account: str | None = None,
        inherit: Inherit = "app",
        hardening: Hardening = "inherit",
        sidecars: Sequence[str] = (),
        python: str | None = None,
        max_pods: int | None = None,
        port: int | range = 0,
        keep_failed: float = 0.0,
        owner_reference: bool = True,
        token_review: bool = False,
        enforce_address: bool = False,
    ) -> None:
        self._options = RunnerOptions(
            manifest=manifest,
            env=dict(env or {}),
            resources=resources,
            container=container,
            service_account=service_account,
            owner_reference=owner_reference,
            inherit=inherit,
            hardening=hardening,
            sidecars=tuple(sidecars),
            python=python,
        )
        self._given_session = session
        if namespace == "":
            raise ConfigurationError("namespace", "a name, or None for this pod's own")
        self._given_namespace = namespace
        self._lease: Lease | None = None
        if max_pods is not None and (type(max_pods) is not int or max_pods < 1):
            raise ConfigurationError("max_pods", "a whole number of pods, 1 or more")
        self._max_pods = max_pods
        self._ports = port if isinstance(port, range) else range(port, port + 1)
        if not self._ports or min(self._ports) < 0 or max(self._ports) > 65535:
            raise ConfigurationError("port", "0 to 65535, or a range of ports")
        if not 0 <= keep_failed < float("inf"):
            raise ConfigurationError("keep_failed", "seconds, 0 or more")
        self._keep_failed = keep_failed
        self._token_review = token_review
        self._enforce_address = enforce_address
        self._lock = threading.Lock()
        self._listener: Listener | None = None
        # Also asked when the pool has ended.
        self._output: Output | None = None
        self._closed = False

    # ------------------------------------------------------------------ Backend

    def open(self, spec: PoolSpec, sink: Sink) -> None:
        """Find this pod, listen, watch, and sweep what earlier processes left.

        Raises:
            ConfigurationError: This process is not in a pod, or may not read it; or
                it serves another pool.
        """
        if self._listener is not None:
            reason = "this KubernetesBackend serves another pool; make one more"
            raise ConfigurationError("backend", reason)
        self._spec = spec
        self._sink = sink
        self._closed = False
        self._shared = join(self._given_session)
        self._session = self._shared.session
        try:
            self._find_parent()
            self._start()
        except BaseException:
            self._leave()
            raise

    def _find_parent(self) -> None:
        self._parent_pod = own_pod(self._session)
        metadata = self._parent_pod["metadata"]
        self._namespace = self._given_namespace or metadata["namespace"]
        self._parent_uid = metadata["uid"]
        self._addresses = addresses_of(self._parent_pod)
        if not self._addresses:
            raise ConfigurationError("backend", "this pod has no address yet")
        # A manifest that cannot work is the caller's to hear of, before any pod.
        runner_pod(
            self._parent_pod,
            self._options,
            identity_of(self._spec, self._shared.process, "check"),
        )
        instance, options = self._spec.instance, self._options
        self._lease = lease_for(
            self._session, self._namespace, metadata, instance, options
        )

    def _start(self) -> None:
        spec, session = self._spec, self._session
        self._admission = Admission(
            session,
            self._namespace,
            review=self._token_review,
            enforce_address=self._enforce_address,
        )
        self._hub = Hub(spec, self)
        self._output = self._hub.output
        self._workers = Workers()
        self._pods = Pods(
            session, self._namespace, spec.instance, self._parent_uid, self._max_pods
        )
        self._disposal = Disposal(self._pods, self._workers.do, self._hub.after)
        self._lifecycle = Lifecycle(
            self._pods,
            PodEvents(session, self._namespace),
            self._disposal,
            self._sink,
            self._admission,
            self._hub,
            manifest=self._runner_manifest,
            work=self._workers.do,
            keep_failed=self._keep_failed,
        )
        try:
            self._listener = Listener(
                self._addresses,
                self._ports,
                self._admission,
                self._runner_connected,
                self._slot_connected,
                reserved=self._lifecycle.addresses,
            )
        except BaseException:
            self._hub.close()
            raise
        changed = self._lifecycle.pod_changed
        self._shared.follow(self._pods.path, spec.instance, changed)
        last = SWEEP_SECONDS[-1]
        for seconds in (
            *SWEEP_SECONDS,
            self._failsafe + last,
            self._keep_failed + last,
        ):
            self._hub.after(seconds, lambda: self._workers.do(self._sweep))
        if self._lease is not None:
            self._lease.keep(self._workers.do, self._hub.after)

    def _sweep(self) -> None:
        now = dt.datetime.now(dt.UTC)
        self._pods.sweep(now)
        if self._lease is not None:
            self._lease.sweep(now)

    def _leave(self) -> None:
        """Give back what `open` took; nothing that it owned is left by then."""
        lease, self._lease = self._lease, None
        if lease is not None:
            lease.release()
        leave(self._shared)

    @property
    def _failsafe(self) -> float:
        """Seconds after which a runner that no parent welcomes ends itself."""
        least, most = FAILSAFE_SECONDS
        return min(most, max(least, self._spec.boot_timeout / 2))

    def boot(self, runner: str) -> None:
        """Post a pod."""
        spec = self._spec
        self._lifecycle.boot(runner, spec.boot_timeout, spec.scale_up_timeout)

    def open_slot(self, runner: str, slot: int) -> None:
        """Have the runner start another process."""
        self._hub.open_slot(runner, runner, slot)

    def kill_slot(
        self, runner: str, slot: int, grace: float = KILL_GRACE_SECONDS
    ) -> None:
        """Have the runner end a slot's process."""
        self._hub.kill_slot(runner, runner, slot, grace)

    def end(self, runner: str, grace: float = 0.0) -> None:
        """End a runner and delete its pod."""
        if self._lifecycle.end(runner, grace):
            self._hub.shut_down(runner, grace)

    def close(self, grace: float) -> None:
        """End all runners; returns when their pods are gone."""
        with self._lock:
            listener, self._listener = self._listener, None
            if listener is None:
                return
            self._closed = True
        listener.close()
        for runner in self._lifecycle.names():
            self.end(runner, grace)
        # Posts that are under way end first: each deletes what it made.
        self._workers.close()
        self._shared.unfollow(self._pods.path, self._spec.instance)
        self._disposal.close(grace)
        self._hub.close()
        self._leave()

    def after_fork(self) -> None:
        """In a forked child: forget the parent's runners, and close its copies."""
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.after_fork()
            self._hub.after_fork()
        self._lock = threading.Lock()
        self._lease = None
        self._closed = False

    def log_tail(self, runner: str, call: int) -> str:
        """Return the last lines that a call printed, as far as they have arrived."""
        return "" if self._output is None else self._output.tail(runner, call)

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

    # ------------------------------------------------------------------ manifest

    def _runner_manifest(self, runner: str) -> dict[str, Any]:
        """Make a runner's pod, and expect the runner from now on."""
        assert self._listener is not None  # open() comes before boot()
        audience = f"{audience_prefix(self._parent_uid)}{runner}"
        parent = Parent(
            pool=self._spec.name,
            runner=runner,
            transport="tls",
            addresses=self._addresses,
            port=self._listener.port,
            certificate=self._listener.certificate,
            token_path=TOKEN_PATH,
            failsafe=self._failsafe,
        )
        variable = parent.encoded()
        process = self._shared.process
        identity = identity_of(
            self._spec, process, runner, audience, variable, self._keep_failed
        )
        if self._lease is not None:
            identity = replace(identity, owner=self._lease.reference)
        pod = runner_pod(self._parent_pod, self._options, identity)
        pending = Pending(
            audience=audience,
            path=f"{self._pods.path}/{runner}",
            service_account=pod["spec"].get("serviceAccountName") or "default",
        )
        self._admission.expect(runner, pending)
        return pod

    # ------------------------------------------------------------------ connections

    def _runner_connected(
        self, runner: str, sock: ssl.SSLSocket, facts: dict[str, object]
    ) -> None:
        found = self._lifecycle.admitted(runner)
        if found is None:
            msg = "its boot was given up"
            raise LinkUnauthenticated(msg)
        skew = version_skew(facts)
        if skew is not None:
            self._lifecycle.fail(found, VersionSkew(runner, "connect", skew))
            raise LinkUnauthenticated(skew)
        self._hub.adopt(runner, sock, passes=False)

    def _slot_connected(self, ticket: bytes, sock: ssl.SSLSocket) -> None:
        if not self._hub.slot_connected(ticket, sock):
            msg = "no such ticket, or an old one"
            raise LinkUnauthenticated(msg)

    # ------------------------------------------------------------------ hub events

    def agent_ready(self, agent: str, phases: list[tuple[str, float]]) -> None:
        """The runner is ready: report it and open its slots."""
        runner = self._lifecycle.ready(agent)
        if runner is None:
            return
        now = time.monotonic()
        self._sink.ready(
            RunnerInfo(
                runner=agent,
                node=runner.node,
                boot_seconds=now - runner.started,
                phases=(*runner.durations(now), *phases),
            )
        )
        for slot in range(self._spec.slots):
            self._hub.open_slot(agent, agent, slot)

    def agent_failed(self, agent: str, phase: str, reason: str, log: str) -> None:
        """The app did not load on the runner."""
        runner = self._lifecycle.find(agent)
        if runner is not None:
            self._lifecycle.fail(runner, AppImportError(agent, phase, reason, log))

    def agent_draining(self, agent: str, reason: str) -> None:
        """The kubelet ends the pod: its calls may finish, no more go there."""
        self._sink.draining(agent, reason)

    def agent_silent(self, agent: str, *, silent: bool) -> None:
        """Pass it on: calls go elsewhere meanwhile."""
        self._sink.suspect(agent, silent=silent)

    def agent_gone(self, agent: str, reason: str, *, expected: bool) -> None:
        """The control link ended; its pod will say why."""
        del expected
        if not self._closed:
            self._lifecycle.gone(agent, reason)

    def slot_opened(self, runner: str, slot: int, link: Link) -> None:
        """Pass it on."""
        self._sink.slot_opened(runner, slot, link)

    def slot_ended(self, end: SlotEnd) -> None:
        """Pass it on."""
        self._sink.slot_ended(end)
