"""What to do about what OpenSSL and the API server refuse. Pure."""

from __future__ import annotations

from typing import Final

from kubetls.errors import (
    ApiError,
    ChainRefused,
    ConnectTimeout,
    Forbidden,
    KubeTLSError,
    NotFound,
    ProtocolError,
    TransportError,
    Unauthorized,
    UnexpectedRedirect,
)

_OTHER_CA: Final = (
    "the CA bundle does not hold the authority behind this server: it is another "
    "cluster's, or was rotated; take it anew (kubectl config view --raw --minify on a "
    "machine that works; in a pod, ConfigMap kube-root-ca.crt)"
)
_RENEW: Final = (
    "renew the server's certificate (kubeadm certs renew apiserver), or set this "
    "machine's clock if it is wrong"
)

# X509_V_ERR_* numbers of OpenSSL's x509_vfy.h.
_REMEDIES: Final = {
    2: _OTHER_CA,
    7: _OTHER_CA,
    9: _RENEW,
    10: _RENEW,
    18: _OTHER_CA,
    19: _OTHER_CA,
    20: _OTHER_CA,
    21: _OTHER_CA,
    24: "the issuing certificate is no CA: issue it with basicConstraints CA:TRUE",
    26: "issue the server's certificate with extendedKeyUsage serverAuth",
    66: "the key is too short: issue the certificate with 2048 bits RSA or P-256",
    67: "the issuer's key is too short: 2048 bits RSA or P-256",
    68: "the signature's digest is too weak: issue the certificate with SHA-256",
}


def chain_remedy(error: ChainRefused) -> str:
    """Return what to do about a certification path that OpenSSL refused."""
    if not error.openssl_code:
        return "the handshake failed in TLS itself: protocol version or cipher"
    return _REMEDIES.get(error.openssl_code, "have the server's certificate reissued")


_OTHER_CREDENTIAL: Final = (
    "the server does not accept the credential: expired, revoked, of another cluster, "
    "or its pod is gone; get a new one"
)
_NO_API_SERVER: Final = (
    "what answers is no API server: see the server's URL, and for proxies in between"
)
_REQUEST_REMEDIES: Final = (
    (Unauthorized, _OTHER_CREDENTIAL),
    (Forbidden, "grant the missing verb by a Role and a RoleBinding"),
    (NotFound, "the server is older than Kubernetes 1.28, or is no API server"),
    (ApiError, "the server is in trouble: see its own log"),
    (ConnectTimeout, "a firewall or a NetworkPolicy drops what is sent there"),
    (ProtocolError, _NO_API_SERVER),
    (UnexpectedRedirect, _NO_API_SERVER),
    (TransportError, "something between here and there ends connections"),
)


def request_remedy(error: KubeTLSError) -> str:
    """Return what to do about a request that failed, "" when the error says it."""
    found = (text for kind, text in _REQUEST_REMEDIES if isinstance(error, kind))
    return next(found, "")
