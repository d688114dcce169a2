"""Low-level TLS and Kubernetes client toolkit.

    import kubetls

    with kubetls.session() as s:
        print(s.get("/version")["gitVersion"])

Every public name is listed in `__all__` and loaded when it is first used (PEP 562):
importing the package costs next to nothing, and the decoders of certificates are
loaded with the first certificate. Nothing outside `__all__` is public.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from kubetls import testing as testing
    from kubetls.client.limits import Timeout
    from kubetls.client.list_watch import ListWatch
    from kubetls.client.paths import path
    from kubetls.client.response import Response
    from kubetls.client.retry import Retries
    from kubetls.client.session import Session, session
    from kubetls.client.stream import Event
    from kubetls.client.watch import Watch
    from kubetls.credentials.config import Config
    from kubetls.credentials.incluster import in_cluster
    from kubetls.credentials.kubeconfig import kubeconfig
    from kubetls.errors import (
        AlreadyExists,
        ApiError,
        ApiTimeout,
        BadRequest,
        CertificateError,
        ChainRefused,
        ConfigError,
        Conflict,
        ConnectionFailed,
        ConnectTimeout,
        ContextRefused,
        CredentialEmpty,
        CredentialError,
        CredentialMalformed,
        CredentialMissing,
        ExecPluginError,
        Expired,
        Forbidden,
        IdentityMismatch,
        InsecureConfigRefused,
        InternalError,
        Invalid,
        InvalidReference,
        KubeconfigError,
        KubeTLSError,
        MalformedCertificate,
        MethodNotAllowed,
        NotFound,
        NotInCluster,
        ProtocolError,
        ReadTimeout,
        RequestEntityTooLarge,
        ServerTimeout,
        ServiceUnavailable,
        TooManyRequests,
        TransportError,
        Unauthorized,
        UnexpectedRedirect,
        UnsupportedMediaType,
        WaitTimeout,
        WatchClosed,
    )
    from kubetls.identity.explain import Explanation, explain_identity
    from kubetls.identity.names import DnsId, IpId, reference_identifier
    from kubetls.identity.san import PresentedIdentifiers, presented_identifiers
    from kubetls.identity.verify import VerifiedIdentity, verify_identity

_HOMES: Final = {
    "kubetls.client.limits": ("Timeout",),
    "kubetls.client.paths": ("path",),
    "kubetls.client.response": ("Response",),
    "kubetls.client.retry": ("Retries",),
    "kubetls.client.session": ("Session", "session"),
    "kubetls.client.list_watch": ("ListWatch",),
    "kubetls.client.stream": ("Event",),
    "kubetls.client.watch": ("Watch",),
    "kubetls.credentials.config": ("Config",),
    "kubetls.credentials.incluster": ("in_cluster",),
    "kubetls.credentials.kubeconfig": ("kubeconfig",),
    "kubetls.identity.explain": ("Explanation", "explain_identity"),
    "kubetls.identity.names": ("DnsId", "IpId", "reference_identifier"),
    "kubetls.identity.san": ("PresentedIdentifiers", "presented_identifiers"),
    "kubetls.identity.verify": ("VerifiedIdentity", "verify_identity"),
}
_HOME_OF: Final = {name: home for home, names in _HOMES.items() for name in names}

__version__ = "0.1.0"

__all__ = [
    "AlreadyExists",
    "ApiError",
    "ApiTimeout",
    "BadRequest",
    "CertificateError",
    "ChainRefused",
    "Config",
    "ConfigError",
    "Conflict",
    "ConnectTimeout",
    "ConnectionFailed",
    "ContextRefused",
    "CredentialEmpty",
    "CredentialError",
    "CredentialMalformed",
    "CredentialMissing",
    "DnsId",
    "Event",
    "ExecPluginError",
    "Expired",
    "Explanation",
    "Forbidden",
    "IdentityMismatch",
    "InsecureConfigRefused",
    "InternalError",
    "Invalid",
    "InvalidReference",
    "IpId",
    "KubeTLSError",
    "KubeconfigError",
    "ListWatch",
    "MalformedCertificate",
    "MethodNotAllowed",
    "NotFound",
    "NotInCluster",
    "PresentedIdentifiers",
    "ProtocolError",
    "ReadTimeout",
    "RequestEntityTooLarge",
    "Response",
    "Retries",
    "ServerTimeout",
    "ServiceUnavailable",
    "Session",
    "Timeout",
    "TooManyRequests",
    "TransportError",
    "Unauthorized",
    "UnexpectedRedirect",
    "UnsupportedMediaType",
    "VerifiedIdentity",
    "WaitTimeout",
    "Watch",
    "WatchClosed",
    "explain_identity",
    "in_cluster",
    "kubeconfig",
    "path",
    "presented_identifiers",
    "reference_identifier",
    "session",
    "verify_identity",
]


def __getattr__(name: str) -> Any:
    if name == "testing":
        # Not in __all__: `import *` would load the certificate maker.
        return importlib.import_module("kubetls.testing")
    if name not in __all__:
        msg = f"module 'kubetls' has no attribute {name!r}"
        raise AttributeError(msg)
    home = _HOME_OF.get(name, "kubetls.errors")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
