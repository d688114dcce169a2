"""Load a client certificate whose private key never lies on a disk in the clear."""

from __future__ import annotations

import os
import ssl
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from kubetls.errors import CredentialMalformed

if TYPE_CHECKING:
    from kubetls.credentials.config import ClientCertificate


def load_client_certificate(
    context: ssl.SSLContext, certificate: ClientCertificate
) -> None:
    """Load chain and key; the key is on no disk in the clear.

    `load_cert_chain` takes paths only. The key goes through memory that has a path
    (memfd), encrypted for the moment all the same; elsewhere through a 0600 file.
    """
    from cryptography.hazmat.primitives import serialization

    password = os.urandom(32).hex().encode()
    try:
        key = serialization.load_pem_private_key(certificate.key_pem, None)
        sealed = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(password),
        )
    except (ValueError, TypeError):
        reason = "not an unencrypted PEM private key"
        raise CredentialMalformed("client-key", reason) from None
    failure = None
    descriptor, path = _memory_file()
    try:
        with os.fdopen(descriptor, "wb", closefd=False) as file:
            file.write(certificate.certificate_pem.rstrip() + b"\n" + sealed)
        context.load_cert_chain(path, password=password)
    except ssl.SSLError as error:
        failure = f"chain and key do not load or fit ({error.reason})"
    finally:
        os.close(descriptor)
        if not path.startswith("/proc/"):
            Path(path).unlink()
    if failure is not None:
        raise CredentialMalformed("client-certificate", failure)


def _memory_file() -> tuple[int, str]:
    if hasattr(os, "memfd_create") and Path("/proc/self/fd").is_dir():
        descriptor = os.memfd_create("kubetls")
        return descriptor, f"/proc/self/fd/{descriptor}"
    return tempfile.mkstemp(prefix="kubetls-")
