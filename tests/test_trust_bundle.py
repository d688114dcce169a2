"""Bundles of several anchors, and the operating system's store, in real handshakes.

OpenSSL sorts its store by subject with the first search in it, and reads a folder of
anchors one by one: neither is somebody else's change of the locked context.
"""

from __future__ import annotations

import itertools
import subprocess
from typing import TYPE_CHECKING

import pytest

import kubetls
from kubetls.credentials.anchors import SYSTEM_ANCHORS, TrustAnchors, parse_anchors
from kubetls.credentials.config import Config, Generation
from kubetls.credentials.endpoint import Endpoint
from kubetls.errors import CredentialMissing
from kubetls.identity.names import reference_identifier
from kubetls.transport.context import locked_context
from tests.cluster.pki import Authority
from tests.servers import Server, answer

if TYPE_CHECKING:
    from pathlib import Path

AUTHORITIES = {name: Authority(name) for name in ("alpha", "beta", "gamma")}
TWINS = Authority("kubernetes"), Authority("kubernetes")
ORDERS = list(itertools.permutations(AUTHORITIES))
REFERENCE = reference_identifier("127.0.0.1")


class Source:
    """Fixed anchors, and nothing to send."""

    def __init__(self, anchors: TrustAnchors) -> None:
        self.generation = Generation(anchors, None)

    def read(self, *, fresh: bool = False) -> Generation:
        return self.generation


def fetch(anchors: TrustAnchors, signer: Authority, folder: Path) -> None:
    """Get something from a server of this signer, three times."""
    pair = signer.issue("api", addresses=("127.0.0.1",))
    # Each answer ends its connection, so each request is a handshake.
    with Server(pair, folder, [answer({"gitVersion": "v0.0.0"}, "X-Cut: 1")]) as server:
        endpoint = Endpoint(REFERENCE, server.port)
        config = Config(endpoint, Source(anchors), "default", "test")
        with kubetls.session(config, retries=kubetls.Retries(attempts=0)) as session:
            for _ in range(3):
                assert session.get("/version") == {"gitVersion": "v0.0.0"}
        assert server.handshakes == 3


@pytest.mark.parametrize("order", ORDERS, ids="-".join)
def test_order_of_a_bundle_does_not_matter(
    order: tuple[str, ...], tmp_path: Path
) -> None:
    """Every signer of a bundle is accepted, however the bundle is sorted.

    Found by C2SP/x509-limbo, rfc5280::unknown-critical-extension-unrelated-root.
    """
    pem = b"".join(AUTHORITIES[name].certificate for name in order)
    anchors = parse_anchors(pem, "ca.crt")
    for signer in AUTHORITIES.values():
        fetch(anchors, signer, tmp_path)


@pytest.mark.parametrize("signer", TWINS, ids=("old", "new"))
def test_anchors_of_one_name_do_not_hide_each_other(
    signer: Authority, tmp_path: Path
) -> None:
    """A CA that was made anew keeps its name; both halves of the overlap count."""
    pem = b"".join(authority.certificate for authority in TWINS)
    fetch(parse_anchors(pem, "ca.crt"), signer, tmp_path)


def hashed_folder(folder: Path) -> None:
    """Lay out anchors as /etc/ssl/certs has them."""
    folder.mkdir()
    for name, authority in AUTHORITIES.items():
        file = folder / f"{name}.pem"
        file.write_bytes(authority.certificate)
        command = ["openssl", "x509", "-noout", "-subject_hash", "-in", str(file)]
        run = subprocess.run(command, capture_output=True, text=True, check=True)
        (folder / f"{run.stdout.strip()}.0").symlink_to(file.name)


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_system_store_is_read_at_once(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its many anchors are usable, and a folder is not read lazily behind the lock."""
    folder = tmp_path / "certs"
    hashed_folder(folder)
    bundle = tmp_path / "bundle.pem"
    bundle.write_bytes(b"".join(a.certificate for a in AUTHORITIES.values()))
    absent = str(tmp_path / "absent")
    named = {"SSL_CERT_FILE": absent, "SSL_CERT_DIR": absent}
    named |= {
        "file": {"SSL_CERT_FILE": str(bundle)},
        "folder": {"SSL_CERT_DIR": str(folder)},
    }[kind]
    for variable, value in named.items():
        monkeypatch.setenv(variable, value)
    for signer in AUTHORITIES.values():
        fetch(SYSTEM_ANCHORS, signer, tmp_path)


def test_system_without_a_store_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An image without ca-certificates says so, instead of refusing every server."""
    for variable in ("SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.setenv(variable, str(tmp_path / "absent"))
    with pytest.raises(CredentialMissing, match="operating system's store"):
        locked_context(SYSTEM_ANCHORS, REFERENCE)
