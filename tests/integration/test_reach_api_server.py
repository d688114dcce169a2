"""kubetls and a real API server: reached by each identity, refused without it.

Each way to name the server is tried with the certificate that carries the identity and
with one that lacks exactly that entry; then nothing may reach the API server's audit
log.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

import kubetls
from tests.cluster.binaries import KUBERNETES
from tests.cluster.cluster import BuiltCluster, Cluster, control_planes

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.cluster.control_plane import ControlPlane
    from tests.integration.space import Space

VERSION = f"v{KUBERNETES}"
MARK = "identity-test"


def open_session(
    plane: ControlPlane, host: str, folder: Path, agent: str
) -> kubetls.Session:
    """Open a session by a kubeconfig that names the server this way."""
    path = folder / "kubeconfig"
    path.write_text(plane.kubeconfig(host))
    return kubetls.session(kubetls.kubeconfig(path), user_agent=agent)


def requests_of(entries: list[dict[str, object]], agent: str) -> list[object]:
    """Return the audited requests of one user agent."""
    return [
        entry["requestURI"]
        for entry in entries
        if str(entry.get("userAgent", "")).startswith(agent)
    ]


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_server_is_reached_by_an_identity_it_presents(
    control_plane: ControlPlane, tmp_path: Path, host: str
) -> None:
    """A session works by IPv4, IPv6 and name, and the audit log shows it."""
    agent = f"{MARK}-{host}"
    with open_session(control_plane, host, tmp_path, agent) as session:
        assert VERSION == session.get("/version")["gitVersion"]
        session.get("/api/v1/namespaces/default")
    assert requests_of(control_plane.audit_entries(), agent)


@pytest.fixture
def lacking(
    control_plane: ControlPlane, request: pytest.FixtureRequest
) -> Iterator[str]:
    """Give the API server a certificate that lacks one identity, for one test."""
    host: str = request.param
    complete = control_plane.authority.serving()
    control_plane.restart_apiserver(control_plane.authority.serving(without=host))
    yield host
    control_plane.restart_apiserver(complete)


@pytest.mark.parametrize("lacking", ["127.0.0.1", "::1", "localhost"], indirect=True)
def test_server_is_refused_without_exactly_that_identity(
    control_plane: ControlPlane, tmp_path: Path, lacking: str
) -> None:
    """All other identities are presented; the session sends nothing."""
    agent = f"{MARK}-lacking-{lacking}"
    session = open_session(control_plane, lacking, tmp_path, agent)
    with pytest.raises(kubetls.IdentityMismatch) as caught:
        session.get("/version")
    assert lacking == caught.value.reference
    assert any("kubernetes.default" in text for text in caught.value.presented)
    assert [] == requests_of(control_plane.audit_entries(), agent)


def test_verbs_on_a_real_server(control_plane: ControlPlane, tmp_path: Path) -> None:
    """Create, read, change, list, watch and delete, with typed errors between."""
    with open_session(control_plane, "127.0.0.1", tmp_path, "verbs") as session:
        maps = kubetls.path("v1", "configmaps", namespace="default")
        one = kubetls.path("v1", "configmaps", "verbs", namespace="default")
        body = {"metadata": {"name": "verbs", "labels": {"t": "v"}}, "data": {"a": "1"}}
        made = session.post(maps, body)
        with pytest.raises(kubetls.AlreadyExists):
            session.post(maps, body)
        changed = session.patch(one, {"data": {"a": "2"}})
        assert {"a": "2"} == changed["data"]
        with pytest.raises(kubetls.Conflict):
            session.put(one, made)
        listing = session.list(maps, labels="t=v", limit=1)
        assert ["ConfigMap"] == [item["kind"] for item in listing]
        with session.watch(maps, listing.resource_version, labels="t=v") as watch:
            with pytest.raises(kubetls.Conflict):
                session.delete(one, uid="00000000-0000-0000-0000-000000000000")
            session.delete(one, uid=made["metadata"]["uid"])
            assert "DELETED" == next(watch).type
        with pytest.raises(kubetls.NotFound) as caught:
            session.get(one)
        assert caught.value.audit_id


def test_unknown_fields_are_warned_of_or_refused(
    control_plane: ControlPlane, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The server's default is a warning, which is logged; Strict is a refusal."""
    with open_session(control_plane, "127.0.0.1", tmp_path, "fields") as session:
        maps = kubetls.path("v1", "configmaps", namespace="default")
        body = {"metadata": {"name": "fields"}, "date": {"typed": "wrong"}}
        session.post(maps, body, dry_run=True)
        assert any("date" in text for text in caplog.messages)
        with pytest.raises(kubetls.BadRequest, match="date"):
            session.post(maps, body, dry_run=True, field_validation="Strict")


def test_apply_update_and_wait_on_a_real_server(
    control_plane: ControlPlane, tmp_path: Path
) -> None:
    """Server-side apply by kind, ownership of fields, the conflict loop, deletion."""
    with open_session(control_plane, "127.0.0.1", tmp_path, "apply") as session:
        wanted = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "applied"},
            "data": {"a": "1"},
        }
        path = kubetls.path("v1", "configmaps", "applied", namespace="default")
        session.apply(wanted, "one")
        with pytest.raises(kubetls.Conflict):
            session.apply(wanted | {"data": {"a": "2"}}, "two")
        session.apply(wanted | {"data": {"a": "2"}}, "two", force=True)
        stored = session.update(path, lambda item: item["data"].update(b="3"))
        assert {"a": "2", "b": "3"} == stored["data"]
        session.delete(path, uid=stored["metadata"]["uid"])
        assert session.wait(path, "delete", timeout=10) is None


def test_list_watch_survives_a_restart(
    control_plane: ControlPlane, tmp_path: Path
) -> None:
    """A list_watch shows what changed while the API server was away."""
    with open_session(control_plane, "127.0.0.1", tmp_path, "survivor") as session:
        maps = kubetls.path("v1", "configmaps", namespace="kube-public")
        with session.list_watch(maps, labels="t=s") as watch:
            assert "SYNCED" == next(watch).type
            control_plane.restart_apiserver()
            session.post(maps, {"metadata": {"name": "s", "labels": {"t": "s"}}})
            added = next(event for event in watch if event.type == "ADDED")
            assert "s" == added.object["metadata"]["name"]
            assert [("kube-public", "s")] == list(watch.objects)


def test_unauthorized_token_is_told_apart_from_forbidden(
    control_plane: ControlPlane, tmp_path: Path
) -> None:
    """A bad token is 401, a good one without rights is 403; neither is shown."""
    path = tmp_path / "kubeconfig"
    token = control_plane.token("powerless")
    path.write_text(control_plane.kubeconfig(token=token))
    with kubetls.session(kubetls.kubeconfig(path)) as session:
        with pytest.raises(kubetls.Forbidden) as caught:
            session.get("/api/v1/secrets")
        assert session.token_expires_at
        assert token not in repr(caught.value) + str(caught.value) + repr(session)
    path.write_text(control_plane.kubeconfig(token=token[:-4] + "AAAA"))
    with (
        kubetls.session(kubetls.kubeconfig(path)) as session,
        pytest.raises(kubetls.Unauthorized),
    ):
        session.get("/api/v1/secrets")


IN_POD = """
import kubetls
s = kubetls.session()
print(repr(s))
print(s.get('/version')['gitVersion'])
"""

BY_NAME = """
import os
import kubetls
environ = dict(os.environ, KUBERNETES_SERVICE_HOST='kubernetes.default.svc')
s = kubetls.session(kubetls.in_cluster(environ=environ))
print(s.get('/version')['gitVersion'])
"""

WRONG_NAME = """
import os
import kubetls
environ = dict(os.environ, KUBERNETES_SERVICE_HOST='api.elsewhere.example')
s = kubetls.session(kubetls.in_cluster(environ=environ), user_agent='wrong-name')
try:
    s.get('/version')
except kubetls.IdentityMismatch as error:
    print(error.reference, error.presented_count)
"""

ALIASES = [
    {
        "ip": "10.96.0.1",
        "hostnames": ["kubernetes.default.svc", "api.elsewhere.example"],
    }
]


@pytest.mark.cluster
def test_pod_reaches_the_service_address(space: Space) -> None:
    """In a pod, with its own credentials, by the address of the service."""
    text = space.run(IN_POD)
    assert "in-cluster" in text
    assert text.splitlines()[-1].startswith("v1.")


@pytest.mark.cluster
def test_pod_reaches_the_server_by_name(space: Space) -> None:
    """By DNS name, which is in the certificate."""
    assert space.run(BY_NAME, hostAliases=ALIASES).startswith("v1.")


@pytest.mark.cluster
def test_pod_refuses_a_name_that_is_not_presented(
    space: Space, cluster: Cluster
) -> None:
    """The same server under a name it does not present gets no request."""
    text = space.run(WRONG_NAME, hostAliases=ALIASES)
    assert "api.elsewhere.example" in text
    if isinstance(cluster, BuiltCluster):
        seen = [
            entry
            for entry in cluster.audit_entries()
            if str(entry.get("userAgent", "")).startswith("wrong-name")
        ]
        assert [] == seen, json.dumps(seen)[:500]


LACKING = """
import os
import kubetls
environ = dict(os.environ, KUBERNETES_SERVICE_HOST='WANTED')
s = kubetls.session(kubetls.in_cluster(environ=environ), user_agent='AGENT')
try:
    s.get('/version')
except kubetls.IdentityMismatch as error:
    print('refused', error.reference, error.presented_count)
"""


@pytest.mark.cluster
@pytest.mark.parametrize("host", ["10.96.0.1", "kubernetes.default.svc"])
def test_pod_refuses_the_server_without_exactly_that_identity(
    space: Space, cluster: Cluster, host: str
) -> None:
    """With its own credentials, by service address and name: no request arrives."""
    plane = control_planes.get(cluster.name)
    if plane is None:
        pytest.skip("a cluster that is not ours keeps its certificate")
    agent = f"pod-lacking-{host}"
    also = (plane.node_address,)
    complete = plane.authority.serving(also=also)
    plane.restart_apiserver(plane.authority.serving(without=host, also=also))
    try:
        program = LACKING.replace("WANTED", host).replace("AGENT", agent)
        text = space.run(program, hostAliases=ALIASES)
        seen = requests_of(plane.audit_entries(), agent)
    finally:
        plane.restart_apiserver(complete)
    assert text.startswith(f"refused {host} ")
    assert [] == seen


def test_one_line_works_by_the_environment(
    control_plane: ControlPlane, tmp_path: Path
) -> None:
    """The README's first line, outside a cluster, with $KUBECONFIG."""
    path = tmp_path / "kubeconfig"
    path.write_text(control_plane.kubeconfig())
    line = (
        "import kubetls; s = kubetls.session(); print(s.get('/version')['gitVersion'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", line],
        env=os.environ | {"KUBECONFIG": str(path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"{VERSION}\n" == done.stdout
