"""The control plane of the tests: it starts fast, listens on both loopbacks, audits."""

from __future__ import annotations

import http.client
import json
import os
import signal
import ssl
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.cluster.binaries import CONTROL_PLANE, ClusterUnavailable, programs
from tests.cluster.cluster import user_cluster
from tests.cluster.control_plane import ControlPlane
from tests.cluster.remains import recorded, start_time

if TYPE_CHECKING:
    from tests.cluster.pki import Pair

pytestmark = pytest.mark.control_plane
ROOT = Path(__file__).resolve().parents[2]


def _get(plane: ControlPlane, host: str, path: str) -> tuple[int, str]:
    context = ssl.create_default_context(cadata=(plane.root / "ca.crt").read_text())
    context.load_cert_chain(plane.root / "admin.crt", plane.root / "admin.key")
    connection = http.client.HTTPSConnection(host, plane.port, context=context)
    with closing(connection):
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_api_server_answers_on_both_loopbacks(
    control_plane: ControlPlane, host: str
) -> None:
    """The same certificate serves each address and the name."""
    assert (200, "ok") == _get(control_plane, host, "/readyz")


def test_api_server_is_the_release_that_was_built(control_plane: ControlPlane) -> None:
    """The version is stamped into the build."""
    version = json.loads(_get(control_plane, "::1", "/version")[1])
    assert "v1.36.3" == version["gitVersion"]


def test_request_is_in_the_audit_log(control_plane: ControlPlane) -> None:
    """What was served was recorded, with its user."""
    _get(control_plane, "127.0.0.1", "/api/v1/namespaces/default/pods?labelSelector=q")
    users = [
        entry["user"]["username"]
        for entry in control_plane.audit_entries()
        if entry["requestURI"].endswith("pods?labelSelector=q")
    ]
    assert ["admin"] == users


def test_token_of_an_account_is_accepted(control_plane: ControlPlane) -> None:
    """TokenRequest works, and the token is the account's."""
    token = control_plane.token("visitor")
    context = ssl.create_default_context(
        cadata=(control_plane.root / "ca.crt").read_text()
    )
    connection = http.client.HTTPSConnection(
        "127.0.0.1", control_plane.port, context=context
    )
    with closing(connection):
        path = "/api/v1/namespaces/default/pods"
        connection.request("GET", path, headers={"Authorization": f"Bearer {token}"})
        answer = json.loads(connection.getresponse().read())
    assert (403, True) == (
        answer["code"],
        "system:serviceaccount:default:visitor" in answer["message"],
    )


def test_users_cluster_needs_the_label(
    control_plane: ControlPlane, tmp_path: Path
) -> None:
    """Tests run in a user's namespace only when it carries the label."""
    control_plane.kubectl("create", "namespace", "theirs")
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(control_plane.kubeconfig(namespace="theirs"))
    with pytest.raises(ClusterUnavailable, match="kubectl label namespace theirs"):
        user_cluster(str(kubeconfig))
    control_plane.kubectl("label", "namespace", "theirs", "kubetls-test=allowed")
    assert "theirs" == user_cluster(str(kubeconfig)).only_namespace


def test_swapped_certificate_is_served_and_state_stays(tmp_path: Path) -> None:
    """A restart with a certificate lacking one address keeps what etcd holds."""
    programs(CONTROL_PLANE)
    started = time.monotonic()
    with ControlPlane(tmp_path / "plane") as plane:
        # Seconds, also on a busy machine: a test may have a control plane of its own.
        assert 20 > time.monotonic() - started
        plane.kubectl("create", "configmap", "kept")
        without: Pair = plane.authority.serving(without="127.0.0.1")
        plane.restart_apiserver(without)
        with pytest.raises(ssl.SSLCertVerificationError, match="IP address mismatch"):
            _get(plane, "127.0.0.1", "/readyz")
        assert (200, "ok") == _get(plane, "::1", "/readyz")
        assert "kept" in plane.kubectl("get", "configmap", "kept", "-o", "name")


def test_killed_owner_leaves_nothing(tmp_path: Path) -> None:
    """After kill -9 of the owner the guard ends the programs and removes the keys."""
    folder = tmp_path / "plane"
    source = (
        "import sys, time, pathlib\n"
        "from tests.cluster.control_plane import ControlPlane\n"
        "with ControlPlane(pathlib.Path(sys.argv[1])):\n"
        "    print('ready', flush=True)\n"
        "    time.sleep(300)\n"
    )
    command = [sys.executable, "-c", source, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as owner:
        assert owner.stdout is not None
        assert b"ready\n" == owner.stdout.readline()
        began = {pid: start_time(pid) for pid in recorded(folder)}
        assert 2 == len(began)
        assert None not in began.values()
        os.kill(owner.pid, signal.SIGKILL)
    deadline = time.monotonic() + 60
    while folder.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not folder.exists()
    # A number of theirs may be another's by now.
    assert [] == [pid for pid in began if began[pid] == start_time(pid)]
