"""What kubelets and kubectl write, for the tests of credentials."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any

import trustme
import yaml

if TYPE_CHECKING:
    from pathlib import Path

AUTHORITY = trustme.CA(key_type=trustme.KeyType.ECDSA)
OTHER_AUTHORITY = trustme.CA(key_type=trustme.KeyType.ECDSA)
CA_PEM = AUTHORITY.cert_pem.bytes()
OTHER_CA_PEM = OTHER_AUTHORITY.cert_pem.bytes()
_SERVER = AUTHORITY.issue_cert("10.96.0.1", key_type=trustme.KeyType.ECDSA)
SERVER_PEM = _SERVER.cert_chain_pems[0].bytes()
KEY_PEM = _SERVER.private_key_pem.bytes()

ENVIRON = {
    "KUBERNETES_SERVICE_HOST": "10.96.0.1",
    "KUBERNETES_SERVICE_PORT": "443",
    "KUBERNETES_SERVICE_PORT_HTTPS": "6443",
}


def encoded(value: bytes) -> str:
    """Return unpadded base64url, as JWTs have it."""
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()


def jwt(marker: str = "SECRET", **claims: Any) -> str:
    """Return a token of the right form whose signature part holds a marker."""
    head = encoded(json.dumps({"alg": "RS256"}).encode())
    return f"{head}.{encoded(json.dumps(claims).encode())}.{marker}"


def write_plain(folder: Path, **files: bytes | None) -> Path:
    """Write a volume as a plain directory; None leaves a file out."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {"token": jwt().encode(), "ca.crt": CA_PEM, "namespace": b"team-a"}
    content |= {name.replace("_", "."): data for name, data in files.items()}  # type: ignore[misc]
    for name, data in content.items():
        if data is not None:
            (folder / name).write_bytes(data)
    return folder


def publish(volume: Path, generation: str, **files: bytes | None) -> Path:
    """Publish one generation as the kubelet does; return its directory."""
    directory = write_plain(volume / f"..{generation}", **files)
    link = volume / "..data_tmp"
    link.symlink_to(directory.name)
    link.replace(volume / "..data")
    for name in ("token", "ca.crt", "namespace"):
        if not (volume / name).is_symlink():
            (volume / name).symlink_to(f"..data/{name}")
    return directory


def document(**changes: Any) -> dict[str, Any]:
    """Return a kubeconfig; `cluster`, `user`, `context` are merged in, None drops."""
    cluster = {
        "server": "https://127.0.0.1:6443",
        "certificate-authority-data": base64.b64encode(CA_PEM).decode(),
    }
    parts = {
        "cluster": cluster | changes.pop("cluster", {}),
        "user": {"token": "opaque-SECRET"} | changes.pop("user", {}),
        "context": {"cluster": "kind", "user": "ann", "namespace": "team-a"}
        | changes.pop("context", {}),
    }
    names = {"cluster": "kind", "user": "ann", "context": "dev"}
    whole: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "dev",
    }
    for part, fields in parts.items():
        kept = {key: value for key, value in fields.items() if value is not None}
        whole[f"{part}s"] = [{"name": names[part], part: kept}]
    return whole | changes


def write_kubeconfig(file: Path, **changes: Any) -> Path:
    """Write `document(**changes)` as YAML."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(document(**changes)), encoding="utf-8")
    return file
