"""Sessions with the tests' API server, as admin and as accounts of a namespace."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import kubetls

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cluster.control_plane import ControlPlane

# Where no controller manager runs, a namespace has no account by itself.
ACCOUNTS = ("default", "web")


def session_of(
    plane: ControlPlane, folder: Path, namespace: str, account: str | None = None
) -> kubetls.Session:
    """Open a session as admin, or as an account of the namespace."""
    token = plane.token(account, namespace) if account else None
    file = folder / f"{namespace}-{account}.kubeconfig"
    file.write_text(plane.kubeconfig(token=token, namespace=namespace))
    return kubetls.session(kubetls.kubeconfig(str(file)))


def make_namespace(plane: ControlPlane, name: str, *labels: str) -> None:
    """Make a namespace with its accounts."""
    plane.kubectl("create", "namespace", name)
    if labels:
        plane.kubectl("label", "namespace", name, *labels)
    for account in ACCOUNTS:
        plane.kubectl("create", "serviceaccount", account, "-n", name)


def await_role(session: kubetls.Session, namespace: str, seconds: float = 10) -> None:
    """Wait until the authorizer knows a new Role."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            session.get(kubetls.path("v1", "pods", namespace=namespace))
        except kubetls.Forbidden:
            assert time.monotonic() < deadline, "the Role is not in force"
            time.sleep(0.1)
        else:
            return
