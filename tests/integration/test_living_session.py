"""Sessions that live: rotation, restarts, compaction and long lists, for real."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import kubetls
from tests.cluster.manifests import account as account_objects
from tests.cluster.pki import Authority
from tests.integration.apiserver import await_role, session_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.cluster.control_plane import ControlPlane
    from tests.integration.space import Space

ROOT = Path(__file__).resolve().parent.parent.parent
ACCOUNT = "living"


def opened(plane: ControlPlane, folder: Path, namespace: str) -> kubetls.Session:
    """Open a session as admin, with a namespace of its own."""
    with suppress(Exception):
        plane.kubectl("create", "namespace", namespace)
    path = folder / "kubeconfig"
    path.write_text(plane.kubeconfig(namespace=namespace))
    return kubetls.session(kubetls.kubeconfig(path))


def made(session: kubetls.Session, maps: str, names: list[str]) -> None:
    """Create ConfigMaps, many at a time."""

    def make(name: str) -> None:
        session.post(maps, {"metadata": {"name": name}, "data": {"v": "0"}})

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(make, names))


def names_on(plane: ControlPlane, namespace: str) -> set[str]:
    """Return what the independent client sees."""
    text = plane.kubectl("get", "configmaps", "-n", namespace, "-o", "name")
    return {line.partition("/")[2] for line in text.split()} - {"kube-root-ca.crt"}


def test_a_list_of_3000_is_one_snapshot_while_objects_go(
    control_plane: ControlPlane, tmp_path: Path
) -> None:
    """Pages of 100 with deletes going on: each object once, none invented."""
    with opened(control_plane, tmp_path, "listed") as session:
        maps = kubetls.path("v1", "configmaps", namespace="listed")
        names = [f"m{number:04d}" for number in range(3000)]
        made(session, maps, names)
        listing = session.list(maps, limit=100)
        seen = [next(listing)["metadata"]["name"]]
        gone = names[1::2]
        deleting = threading.Thread(
            target=lambda: [session.delete(f"{maps}/{name}") for name in gone]
        )
        deleting.start()
        seen += [item["metadata"]["name"] for item in listing]
        deleting.join()
        assert Counter(names) == Counter(seen)
        left = [item["metadata"]["name"] for item in session.list(maps)]
        assert sorted(set(names) - set(gone)) == sorted(left)


def test_a_watch_ends_with_what_the_server_has(
    control_plane: ControlPlane, tmp_path: Path
) -> None:
    """Through a restart, and through compaction with a restart, which is a 410."""
    with opened(control_plane, tmp_path, "through") as session:
        maps = kubetls.path("v1", "configmaps", namespace="through")
        made(session, maps, [f"a{number}" for number in range(20)])
        with session.list_watch(maps) as watch:
            follower = threading.Thread(target=lambda: [None for _ in watch])
            follower.start()
            await_objects(watch, {f"a{number}" for number in range(20)})
            control_plane.restart_apiserver()
            session.delete(f"{maps}/a0")
            control_plane.stop_apiserver()
            control_plane.start_apiserver()
            # Changes that the watch does not see while it is away, and no history.
            made(session, maps, ["b0", "b1"])
            session.delete(f"{maps}/a1")
            control_plane.compact()
            control_plane.restart_apiserver()
            session.delete(f"{maps}/b0")
            await_objects(watch, names_on(control_plane, "through"))
            watch.stop()
            follower.join(20)
            assert not follower.is_alive()


def test_a_real_server_sends_initial_events(
    control_plane: ControlPlane, tmp_path: Path
) -> None:
    """What exists comes from the watch, marked at its end, and then the changes."""
    with opened(control_plane, tmp_path, "initial") as session:
        maps = kubetls.path("v1", "configmaps", namespace="initial")
        made(session, maps, ["x", "y"])
        with session.list_watch(maps, send_initial_events=True) as watch:
            seen = []
            while (event := watch.next(10)) and event.type != "SYNCED":
                seen.append(event.object["metadata"]["name"])
            assert {"x", "y"} <= set(seen)
            assert watch._streams  # it was not refused
            session.delete(f"{maps}/x")
            last = watch.next(10)
            assert last is not None
            assert ("DELETED", "x") == (last.type, last.object["metadata"]["name"])


def await_objects(watch: kubetls.ListWatch, names: set[str]) -> None:
    """Wait until a watch has exactly these objects."""
    deadline = time.monotonic() + 60
    while {name for _, name in list(watch.objects)} - {"kube-root-ca.crt"} != names:
        assert time.monotonic() < deadline, sorted(watch.objects)
        time.sleep(0.05)


def test_a_410_of_a_real_server_is_expired(
    control_plane: ControlPlane, tmp_path: Path
) -> None:
    """A version from before the compaction, after a restart."""
    with opened(control_plane, tmp_path, "expired") as session:
        maps = kubetls.path("v1", "configmaps", namespace="expired")
        made(session, maps, ["x"])
        version = session.get(maps)["metadata"]["resourceVersion"]
        session.patch(f"{maps}/x", {"data": {"v": "1"}})
        control_plane.compact()
        control_plane.restart_apiserver()
        with session.watch(maps, version) as watch, pytest.raises(kubetls.Expired):
            watch.next(30)


class Mount:
    """A service-account volume as the kubelet publishes it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._count = 0

    def publish(self, **files: str) -> None:
        """Publish a generation by renaming `..data`."""
        self._count += 1
        generation = self.folder / f"..{self._count}"
        generation.mkdir(parents=True)
        for name, text in files.items():
            (generation / name.replace("_", ".")).write_text(text)
        link = self.folder / "..data_tmp"
        link.symlink_to(generation.name)
        link.rename(self.folder / "..data")


@contextmanager
def loaded(session: kubetls.Session) -> Iterator[list[BaseException]]:
    """Have eight threads send requests as fast as they can; collect what fails."""
    stop = threading.Event()
    failures: list[BaseException] = []

    def ask() -> None:
        while not stop.is_set():
            try:
                session.get("/api/v1/namespaces/default")
            except BaseException as error:
                failures.append(error)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    try:
        yield failures
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def mounted(plane: ControlPlane, mount: Mount, ca: str, token: str) -> kubetls.Session:
    """Open a session by the mount, as in a pod."""
    mount.publish(token=token, ca_crt=ca, namespace="default")
    environ = {
        "KUBERNETES_SERVICE_HOST": "127.0.0.1",
        "KUBERNETES_SERVICE_PORT": str(plane.port),
    }
    # One idle connection for eight threads: most requests make a connection anew.
    return kubetls.session(kubetls.in_cluster(mount.folder, environ), pool_size=1)


@pytest.fixture
def account(control_plane: ControlPlane, tmp_path: Path) -> str:
    """Lend the token of an account that may read; another one each time."""
    token = control_plane.token(ACCOUNT)
    with suppress(Exception):
        control_plane.kubectl(
            "create", "clusterrolebinding", ACCOUNT, "--clusterrole=cluster-admin",
            f"--serviceaccount=default:{ACCOUNT}",
        )  # fmt: skip
    with session_of(control_plane, tmp_path, "default", ACCOUNT) as session:
        await_role(session, "default")
    return token


def test_ca_rotation_under_load_fails_no_request(
    control_plane: ControlPlane, tmp_path: Path, account: str
) -> None:
    """New CA appended, certificate swapped, old CA taken out; eight threads ask."""
    mount = Mount(tmp_path / "mount")
    old = control_plane.authority.certificate.decode()
    successor = Authority("kubernetes-2")
    new = successor.certificate.decode()
    with mounted(control_plane, mount, old, account) as session:
        try:
            with loaded(session) as failures:
                time.sleep(0.5)
                mount.publish(token=account, ca_crt=old + new, namespace="default")
                control_plane.present(successor.serving())
                time.sleep(0.5)
                mount.publish(token=account, ca_crt=new, namespace="default")
                # The next reading is due within 50 s; a new session reads at once.
                with mounted(control_plane, mount, new, account) as fresh:
                    fresh.get("/version")
                time.sleep(0.5)
            assert [] == failures
        finally:
            control_plane.present(control_plane.authority.serving())


def test_a_certificate_whose_ca_was_just_published_is_reached(
    control_plane: ControlPlane, tmp_path: Path, account: str
) -> None:
    """Without an overlap: the refused path makes the session read the CA again."""
    mount = Mount(tmp_path / "mount")
    successor = Authority("kubernetes-3")
    old = control_plane.authority.certificate.decode()
    with mounted(control_plane, mount, old, account) as session:
        try:
            control_plane.present(successor.serving())
            mount.publish(
                token=account,
                ca_crt=successor.certificate.decode(),
                namespace="default",
            )
            session.get("/version")
        finally:
            control_plane.present(control_plane.authority.serving())


def test_a_token_that_ends_is_replaced_without_a_failure(
    control_plane: ControlPlane, tmp_path: Path, account: str
) -> None:
    """The account is made anew, so that its tokens are refused at once."""
    mount = Mount(tmp_path / "mount")
    ca = control_plane.authority.certificate.decode()
    with mounted(control_plane, mount, ca, account) as session:
        session.get("/api/v1/namespaces/default")
        control_plane.kubectl("delete", "serviceaccount", ACCOUNT)
        mount.publish(
            token=control_plane.token(ACCOUNT), ca_crt=ca, namespace="default"
        )
        deadline = time.monotonic() + 30
        # The server may take the old token a little longer (its cache).
        while time.monotonic() < deadline:
            session.get("/api/v1/namespaces/default")
            if session.token_expires_at:
                break


# ---------------------------------------------------------------------- controller


@pytest.mark.parametrize("outages", [2])
def test_the_controller_keeps_in_step_through_outages(
    control_plane: ControlPlane, tmp_path: Path, outages: int
) -> None:
    """A minute of changing pods, the API server stopped twice in the middle of it."""
    with opened(control_plane, tmp_path, "roster") as session:
        environ = os.environ | {"KUBECONFIG": str(tmp_path / "kubeconfig")}
        program = [sys.executable, str(ROOT / "examples" / "controller.py")]
        subprocess.run([*program, "--install"], env=environ, check=True)
        with suppress(kubetls.AlreadyExists):
            session.post(
                kubetls.path("v1", "serviceaccounts", namespace="roster"),
                {"metadata": {"name": "default"}},
            )
        rosters = kubetls.path("example.com/v1", "rosters", namespace="roster")
        roster = {
            "apiVersion": "example.com/v1",
            "kind": "Roster",
            "metadata": {"name": "web"},
            "spec": {"labels": {"app": "web"}, "configMap": "web-pods"},
        }
        session.post(rosters, roster)
        controllers = [
            subprocess.Popen(
                [*program, "--lease-seconds=5"],
                env=environ,
                stderr=subprocess.PIPE,
                text=True,
            )
            for _ in range(2)
        ]
        try:
            expected: set[str] = set()
            for number in range(12):
                expected.add(make_pod(session, f"p{number}"))
                if number % 3 == 2:
                    name = f"p{number - 1}"
                    path = kubetls.path("v1", "pods", name, namespace="roster")
                    session.delete(path, grace=0)
                    expected.discard(name)
                if number in {4, 8}:
                    control_plane.stop_apiserver()
                    time.sleep(3)
                    control_plane.start_apiserver()
                time.sleep(2)
            await_roster(session, expected)
            web = session.wait(
                f"{rosters}/web",
                lambda item: (
                    bool(item) and item.get("status", {}).get("pods") == len(expected)
                ),
                timeout=30,
            )
            assert web is not None
        finally:
            texts = [ended(process) for process in controllers]
        assert all("Traceback" not in text for text in texts), texts
        assert any("leading" in text for text in texts), texts


def test_controller_without_rights_says_so_and_fails(
    control_plane: ControlPlane, tmp_path: Path
) -> None:
    """One line for what it may not follow, and no exit code of an end in order."""
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(
        control_plane.kubeconfig(token=control_plane.token("rightless"))
    )
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "controller.py")],
        env=os.environ | {"KUBECONFIG": str(kubeconfig)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert 1 == done.returncode, done.stderr
    assert "cannot be followed: " in done.stderr
    assert "Traceback" not in done.stderr


def ended(process: subprocess.Popen[str]) -> str:
    """End a controller as Kubernetes does, and return its log."""
    process.terminate()
    text = process.communicate(timeout=30)[1]
    assert process.returncode == 0, text
    return text


def make_pod(session: kubetls.Session, name: str) -> str:
    container = {"name": "c", "image": "none.example/none:1"}
    session.post(
        kubetls.path("v1", "pods", namespace="roster"),
        {
            "metadata": {"name": name, "labels": {"app": "web"}},
            "spec": {"containers": [container], "automountServiceAccountToken": False},
        },
    )
    return name


def await_roster(session: kubetls.Session, expected: set[str]) -> None:
    """Wait until the ConfigMap names exactly these pods."""

    def holds(item: dict[str, Any] | None) -> bool:
        text = (item or {}).get("data", {}).get("pods", "")
        return set(text.split()) == expected

    path = kubetls.path("v1", "configmaps", "web-pods", namespace="roster")
    session.wait(path, holds, timeout=60)


# ---------------------------------------------------------------------- in a pod

ROTATED = """
import json, os, pathlib, time
import kubetls

mount = pathlib.Path('/tmp/mount')
source = pathlib.Path('/var/run/own')

def publish(count, token):
    folder = mount / f'..{count}'
    folder.mkdir(parents=True)
    (folder / 'token').write_text(token)
    (folder / 'ca.crt').write_text((source / 'ca.crt').read_text())
    (mount / 'next').symlink_to(folder.name)
    (mount / 'next').rename(mount / '..data')

publish(1, (source / 'token').read_text())
namespace, account = os.environ['POD_NAMESPACE'], os.environ['ACCOUNT']
path = kubetls.path('v1', 'serviceaccounts', account, namespace=namespace,
                    subresource='token')
with kubetls.session(kubetls.in_cluster(mount)) as s:
    before = s.token_expires_at
    bound = {'kind': 'Pod', 'apiVersion': 'v1', 'name': os.environ['POD_NAME']}
    time.sleep(2)  # or both would end in the same second
    spec = {'expirationSeconds': 600, 'boundObjectRef': bound}
    publish(2, s.post(path, {'spec': spec})['status']['token'])
    ends = time.monotonic() + 70
    while s.token_expires_at == before and time.monotonic() < ends:
        s.get('/version')
        time.sleep(0.2)
    print(json.dumps([before, s.token_expires_at]))
"""

LIVING = """
import json, time
import kubetls

seen = set()
with kubetls.session(kubetls.in_cluster('/var/run/own')) as s:
    ends = time.monotonic() + 700
    while time.monotonic() < ends:
        s.get('/version')
        seen.add(s.token_expires_at)
        time.sleep(0.5)
print(json.dumps(sorted(seen)))
"""

# What the kubelet itself projects, with the shortest life a token may have.
OWN = {
    "name": "own",
    "projected": {
        "sources": [
            {"serviceAccountToken": {"path": "token", "expirationSeconds": 600}},
            {
                "configMap": {
                    "name": "kube-root-ca.crt",
                    "items": [{"key": "ca.crt", "path": "ca.crt"}],
                }
            },
        ]
    },
}


@pytest.mark.cluster
def test_a_pods_session_follows_a_new_generation(space: Space) -> None:
    """Within 50 s of its publication, without one failed request."""
    rule = {
        "apiGroups": [""],
        "resources": ["serviceaccounts/token"],
        "verbs": ["create"],
    }
    space.apply(*account_objects("rotated", [rule]))
    text = space.run(
        ROTATED,
        account_name="rotated",
        env={"ACCOUNT": "rotated"},
        volumes=[OWN],
        mounts=[{"name": "own", "mountPath": "/var/run/own"}],
    )
    before, after = json.loads(text.splitlines()[-1])
    assert after > before


@pytest.mark.cluster
@pytest.mark.slow
def test_a_pods_session_lives_through_the_kubelets_rotation(space: Space) -> None:
    """Tokens of 600 s, renewed by the kubelet at 80 % of that; extension is off."""
    text = space.run(
        LIVING,
        seconds=800,
        volumes=[OWN],
        mounts=[{"name": "own", "mountPath": "/var/run/own"}],
    )
    assert len(json.loads(text.splitlines()[-1])) >= 2
