"""Which pod a parent is: found by name and by host name, and waited for."""

from __future__ import annotations

import socket
import threading
from typing import TYPE_CHECKING, Any

import pytest

import kubetls
from flame_backend.backends.kubernetes import own_pod as module
from flame_backend.backends.kubernetes.own_pod import addresses_of, own_pod
from kubetls import testing

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[testing.Server]:
    """Lend an API server to a process without POD_* variables, called web."""
    for name in ("POD_NAME", "POD_NAMESPACE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(socket, "gethostname", lambda: "web")
    with testing.server() as found:
        yield found


def pod(*addresses: str, name: str = "web") -> dict[str, Any]:
    """Return a pod as its kubelet reports it."""
    status = {"phase": "Running", "podIPs": [{"ip": ip} for ip in addresses]}
    found = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}}
    return {**found, "status": status}


def own(server: testing.Server) -> dict[str, Any]:
    """Find the own pod."""
    with kubetls.session(server.config) as session:
        return own_pod(session)


@pytest.mark.parametrize("told", ["variable", "host name", "address"])
def test_address_of_a_pod_that_has_just_started_is_waited_for(
    server: testing.Server, monkeypatch: pytest.MonkeyPatch, told: str
) -> None:
    """An app is up before its kubelet has reported where."""
    if told == "variable":
        monkeypatch.setenv("POD_NAME", "web")
    if told == "address":
        monkeypatch.setattr(socket, "gethostname", lambda: "another")
    server.put(pod())
    later = threading.Timer(0.5, lambda: server.put(pod("127.0.0.1")))
    later.start()
    assert ("127.0.0.1",) == addresses_of(own(server))
    later.join()


def test_pod_that_has_the_host_name_and_no_address_is_not_waited_for_long(
    server: testing.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is somebody else's; then the address of this machine says which."""
    monkeypatch.setattr(module, "ADDRESS_SECONDS", 0.3)
    server.put(pod())
    server.put(pod("127.0.0.1", name="other"))
    assert "other" == own(server)["metadata"]["name"]
