"""Fixtures of the real API server and the real cluster, each started once.

Where one cannot be had, its tests skip loudly with what is missing; in CI that is a
failure, and so it is for kind when that was asked for. The control plane runs
unprivileged on loopback; the cluster has a node.
"""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from typing import TYPE_CHECKING, NoReturn

import pytest

from tests.cluster.binaries import ClusterUnavailable
from tests.cluster.cluster import (
    Cluster,
    await_namespace,
    kind_is_asked_for,
    private_cluster,
)
from tests.cluster.control_plane import ControlPlane
from tests.cluster.kind import require_tools
from tests.cluster.manifests import account
from tests.integration.space import Space

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "cluster: needs a cluster with a node (root)")
    config.addinivalue_line("markers", "control_plane: needs etcd and kube-apiserver")
    if kind_is_asked_for():
        try:
            require_tools()
        except ClusterUnavailable as error:
            raise pytest.UsageError(str(error)) from None


def _missing(what: str, error: ClusterUnavailable) -> NoReturn:
    if os.environ.get("CI") == "true":
        pytest.fail(f"{what} is missing, and in CI that is a failure: {error}")
    pytest.skip(f"{what} is missing: {error}")


@pytest.fixture(scope="session")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """Lend a real API server on 127.0.0.1 and [::1]."""
    try:
        plane = ControlPlane(tmp_path_factory.mktemp("plane") / "cluster")
        plane.__enter__()
    except ClusterUnavailable as error:
        _missing("a control plane", error)
    try:
        yield plane
    finally:
        plane.stop()


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Lend a real cluster with a node."""
    lent = private_cluster()
    try:
        found = lent.__enter__()
    except ClusterUnavailable as error:
        if kind_is_asked_for():
            pytest.exit(f"no kind cluster: {error}", returncode=1)
        _missing("a cluster with a node", error)
    try:
        yield found
    finally:
        lent.__exit__(None, None, None)


@pytest.fixture(scope="session")
def image(cluster: Cluster) -> str:
    """Return the image with Python and our packages."""
    if cluster.image is None:
        pytest.skip("pods need an image with our packages: set KUBETLS_TEST_IMAGE")
    return cluster.image


@pytest.fixture
def namespace(cluster: Cluster) -> Iterator[Callable[[], str]]:
    """Lend a maker of namespaces that are deleted at the end of the test.

    On a user's cluster it returns the one namespace that permits tests.
    """
    made: list[str] = []

    def make() -> str:
        if cluster.only_namespace is not None:
            return cluster.only_namespace
        name = f"test-{secrets.token_hex(4)}"
        cluster.kubectl("create", "namespace", name)
        made.append(name)
        await_namespace(cluster, name)
        return name

    yield make
    for name in made:
        with suppress(ClusterUnavailable):
            cluster.kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture
def space(
    cluster: Cluster, image: str, namespace: Callable[[], str]
) -> Iterator[Space]:
    """Lend a fresh namespace that has a parent's account."""
    made = Space(cluster, namespace())
    assert image == cluster.image
    made.apply(*account())
    yield made
    with suppress(ClusterUnavailable):
        made.kubectl(
            "delete", "pods", "--all", "--grace-period=0", "--force", "--wait=false"
        )
