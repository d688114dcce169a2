"""Which pod this process runs in: by the downward API, by host name, by address."""

from __future__ import annotations

import os
import socket
import time
from typing import Any, Final

import kubetls
from flame_backend.errors import ConfigurationError

ADDRESS_SECONDS: Final = 10.0
"""A kubelet reports a pod's address a second or so after its containers started."""

POLL_SECONDS: Final = 0.2
LIST_SECONDS: Final = 1.0


def in_cluster_session(user_agent: str) -> kubetls.Session:
    """Open a session of this pod's account.

    Raises:
        ConfigurationError: This process is not in a pod.
    """
    try:
        # Repetitions are ours to make: they end with the boot that they are for.
        retries = kubetls.Retries(attempts=1)
        return kubetls.session(
            kubetls.in_cluster(), user_agent=user_agent, retries=retries
        )
    except kubetls.NotInCluster as error:
        reason = (
            "KubernetesBackend works inside a pod only, as runners must reach this "
            "process; use LocalBackend here"
        )
        raise ConfigurationError("backend", reason) from error


def own_pod(session: kubetls.Session) -> dict[str, Any]:
    """Find the pod this process runs in.

    By POD_NAME, else by its host name, else the only pod of the namespace that has an
    address of this machine: a host name may be the user's or the node's. Waits for
    the address of a pod that has just started.

    Raises:
        ConfigurationError: There is none, or it may not be read.
    """
    namespace = os.environ.get("POD_NAMESPACE") or session.namespace
    name = os.environ.get("POD_NAME")
    try:
        if name:
            return _with_address(session, namespace, name)
        return _by_host_name(session, namespace) or _by_address(session, namespace)
    except kubetls.NotFound as error:
        reason = f"there is no pod {name} in {namespace}, though POD_NAME says so"
        raise ConfigurationError("backend", reason) from error
    except kubetls.Forbidden as error:
        reason = f"this pod's account may not read it: {error.message}"
        raise ConfigurationError("backend", reason) from error


def addresses_of(pod: dict[str, Any]) -> tuple[str, ...]:
    """Return the addresses of a pod."""
    status = pod.get("status") or {}
    return tuple(entry["ip"] for entry in status.get("podIPs") or ())


def _with_address(
    session: kubetls.Session, namespace: str, name: str
) -> dict[str, Any]:
    """Return a pod, with its address if that comes in time."""
    path = kubetls.path("v1", "pods", name, namespace=namespace)
    deadline = time.monotonic() + ADDRESS_SECONDS
    found = session.get(path)
    while not addresses_of(found) and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
        found = session.get(path)
    return found


def _by_host_name(session: kubetls.Session, namespace: str) -> dict[str, Any] | None:
    try:
        found = _with_address(session, namespace, socket.gethostname())
    except (kubetls.NotFound, kubetls.ConfigError):
        return None
    # Somebody else's pod may be called as this one's hostname field says.
    return found if any(map(is_local, addresses_of(found))) else None


def _by_address(session: kubetls.Session, namespace: str) -> dict[str, Any]:
    deadline = time.monotonic() + ADDRESS_SECONDS
    found = _local_pods(session, namespace)
    while not found and time.monotonic() < deadline:
        time.sleep(LIST_SECONDS)
        found = _local_pods(session, namespace)
    if len(found) == 1:
        return found[0]
    what = "no pod has" if not found else "several pods have"
    reason = (
        f"in {namespace} {what} an address of this machine; set POD_NAME and "
        "POD_NAMESPACE by the downward API"
    )
    raise ConfigurationError("backend", reason)


def _local_pods(session: kubetls.Session, namespace: str) -> list[dict[str, Any]]:
    """Return the pods that run and have an address of this machine."""
    pods = session.list(kubetls.path("v1", "pods", namespace=namespace))
    running = (pod for pod in pods if pod["status"].get("phase") == "Running")
    return [pod for pod in running if any(map(is_local, addresses_of(pod)))]


def is_local(address: str) -> bool:
    """Say whether an address is one of this machine's: only those can be bound."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True
