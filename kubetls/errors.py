"""Every error kubetls raises, in one tree under `KubeTLSError`.

The type says who has to act: the caller (`InvalidReference`, also a ValueError), the
person who configured the environment (`ConfigError`, `CredentialError`), the owner of
the server's certificate (`CertificateError`, `IdentityMismatch`, `ChainRefused`), the
network (`TransportError`) or the API server (`ApiError`).

Rules kept by all classes: attributes carry data and go positionally to the base class,
the text is built on demand and is one useful line, errors survive pickling, and no
token, key, header or body ever becomes part of one. Imports nothing of ours.
"""

from __future__ import annotations

from typing import Any, ClassVar


class KubeTLSError(Exception):
    """Root of every error of this package."""

    def __init__(self, *args: Any) -> None:
        # Not super(): OSError, a base of the timeout classes, would take the second
        # to fifth argument for errno, strerror and file names and drop them.
        BaseException.__init__(self, *args)

    def __reduce__(self) -> tuple[Any, ...]:
        """Rebuild from class, arguments and attributes."""
        return _rebuild, (type(self), self.args), self.__dict__ or None


def _rebuild(cls: type[KubeTLSError], args: tuple[Any, ...]) -> KubeTLSError:
    error = cls.__new__(cls, *args)
    error.args = args
    cls.__init__(error, *args)
    return error


# ------------------------------------------------------------------ configuration


class ConfigError(KubeTLSError, ValueError):
    """A setting (environment variable, kubeconfig entry, argument) breaks a rule.

    Attributes:
        source: The variable, file or field that is wrong.
        reason: The rule it breaks and what to do; never the value of a secret.
    """

    def __init__(self, source: str, reason: str) -> None:
        super().__init__(source, reason)
        self.source = source
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.source}: {self.reason}"


class NotInCluster(ConfigError):
    """This process has no in-cluster environment (KUBERNETES_SERVICE_HOST is unset)."""


class KubeconfigError(ConfigError):
    """A kubeconfig file or one of its entries cannot be used."""


class InsecureConfigRefused(ConfigError):
    """A configuration asks for a weaker server check than this package ever does."""


class ContextRefused(ConfigError):
    """The TLS context was replaced, weakened or extended by other code."""


class CredentialError(KubeTLSError):
    """A credential file or value breaks a rule.

    Attributes:
        path: The file or setting, never its content.
        reason: The rule it breaks.
    """

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class CredentialMissing(CredentialError):
    """The file or setting is not there or cannot be read."""


class CredentialEmpty(CredentialError):
    """The file or setting is there and holds nothing."""


class CredentialMalformed(CredentialError):
    """The content does not follow its grammar."""


class ExecPluginError(CredentialError):
    """A kubeconfig's credential plugin failed.

    Attributes:
        install_hint: What the kubeconfig says to install, or None.
    """

    def __init__(self, path: str, reason: str, install_hint: str | None = None) -> None:
        super().__init__(path, reason)
        self.args = (path, reason, install_hint)
        self.install_hint = install_hint

    def __str__(self) -> str:
        hint = f" ({self.install_hint})" if self.install_hint else ""
        return f"{self.path}: {self.reason}{hint}"


# ------------------------------------------------------------------ identity


class InvalidReference(KubeTLSError, ValueError):
    """The reference identifier is neither a legal DNS name nor a legal IP address.

    Attributes:
        reference: The refused text, escaped and shortened.
        reason: The grammar rule it breaks and what to pass instead.
    """

    def __init__(self, reference: str, reason: str) -> None:
        super().__init__(reference, reason)
        self.reference = reference
        self.reason = reason

    def __str__(self) -> str:
        return f"invalid reference identifier {self.reference!r}: {self.reason}"


class CertificateError(KubeTLSError):
    """The server's certificate is refused as a whole.

    Attributes:
        reason: What is wrong with it (RFC 5280 section where one applies).
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return f"certificate refused: {self.reason}"


class MalformedCertificate(CertificateError):
    """Broken or non-canonical DER, or a subjectAltName that breaks RFC 5280."""


class IdentityMismatch(KubeTLSError):
    """The certificate is sound and presents no identifier that matches the reference.

    Derives from plain Exception, not from ssl.SSLError or OSError: HTTP libraries
    repeat requests after those, and a refused server must not be asked again.

    Attributes:
        reference: Canonical text of the reference identifier.
        kind: "DNS" or "IP".
        presented: The first presented identifiers, escaped and shortened.
        presented_count: How many the certificate presents in all.
    """

    def __init__(
        self,
        reference: str,
        kind: str,
        presented: tuple[str, ...],
        presented_count: int,
    ) -> None:
        super().__init__(reference, kind, presented, presented_count)
        self.reference = reference
        self.kind = kind
        self.presented = presented
        self.presented_count = presented_count

    def __str__(self) -> str:
        shown = ", ".join(self.presented) or "no identifiers at all"
        more = self.presented_count - len(self.presented)
        tail = f" and {more} more" if more > 0 else ""
        entry = "iPAddress" if self.kind == "IP" else "dNSName"
        return (
            f"the server's certificate is not valid for {self.kind} {self.reference}: "
            f"it presents {shown}{tail}; issue it with a matching {entry} entry, "
            "or set tls-server-name to a name that it presents"
        )


class ChainRefused(KubeTLSError):
    """OpenSSL refused the certification path (anchor, dates, usage, or its name check).

    Attributes:
        reference: Canonical text of the reference identifier.
        openssl_code: X509_V_ERR_* number, 0 when the handshake failed otherwise.
        reason: OpenSSL's words.
        presented: The first presented identifiers when the certificate was seen.
    """

    def __init__(
        self,
        reference: str,
        openssl_code: int,
        reason: str,
        presented: tuple[str, ...] = (),
    ) -> None:
        super().__init__(reference, openssl_code, reason, presented)
        self.reference = reference
        self.openssl_code = openssl_code
        self.reason = reason
        self.presented = presented

    def __str__(self) -> str:
        seen = f"; it presents {', '.join(self.presented)}" if self.presented else ""
        return (
            f"TLS to {self.reference} refused: {self.reason} "
            f"(OpenSSL verify code {self.openssl_code}){seen}"
        )


# ------------------------------------------------------------------ transport


class TransportError(KubeTLSError):
    """No usable response came from the server.

    Attributes:
        server: Scheme, host and port that were asked.
        reason: What happened, and in which phase.
        sent: True when request bytes may have reached the server.
    """

    def __init__(self, server: str, reason: str, sent: bool = False) -> None:
        super().__init__(server, reason, sent)
        self.server = server
        self.reason = reason
        self.sent = sent

    def __str__(self) -> str:
        return f"{self.server}: {self.reason}"


class ConnectTimeout(TransportError, TimeoutError):
    """TCP or TLS was not established within the connect timeout."""


class ReadTimeout(TransportError, TimeoutError):
    """The server sent nothing within the read timeout."""


class ConnectionFailed(TransportError):
    """The connection was refused, reset, or ended before the response was complete."""


class ProtocolError(TransportError):
    """The response breaks HTTP or one of our limits (framing, size, depth)."""


class UnexpectedRedirect(TransportError):
    """The server answered with a redirect; credentials are never carried along."""


class WatchClosed(TransportError):
    """A watch or log stream ended abnormally."""


class WaitTimeout(KubeTLSError, TimeoutError):
    """An object was not as wanted in time.

    Attributes:
        path: The object's path.
        until: What was waited for.
        seconds: How long.
        seen: What it was when the time was up.
    """

    def __init__(self, path: str, until: str, seconds: float, seen: str) -> None:
        super().__init__(path, until, seconds, seen)
        self.path = path
        self.until = until
        self.seconds = seconds
        self.seen = seen

    def __str__(self) -> str:
        return f"{self.path}: not {self.until} within {self.seconds:g} s; {self.seen}"


# ------------------------------------------------------------------ API


class ApiError(KubeTLSError):
    """The API server answered with an error Status.

    Attributes:
        status: HTTP status code.
        reason: Status.reason, or the reason that the code stands for.
        message: Status.message, shortened to 2 KiB.
        method: HTTP method of the request.
        path: Path of the request, without the query.
        details: Status.details as a plain dict.
        retry_after: Seconds the server asked us to wait, or None.
        audit_id: The server's Audit-Id header, or None.
        flow_schema_uid, priority_level_uid: Headers X-Kubernetes-PF-*-UID, or None.
    """

    default_reason: ClassVar[str] = "Unknown"

    def __init_subclass__(cls) -> None:
        """Name the reason after the class (NotFound; ApiTimeout: Timeout)."""
        cls.default_reason = cls.__name__.removeprefix("Api")

    def __init__(
        self,
        status: int,
        reason: str,
        message: str,
        method: str = "",
        path: str = "",
        details: dict[str, Any] | None = None,
        retry_after: float | None = None,
        audit_id: str | None = None,
        flow_schema_uid: str | None = None,
        priority_level_uid: str | None = None,
    ) -> None:
        super().__init__(status, reason, message, method, path, details)
        self.status = status
        self.reason = reason
        self.message = message
        self.method = method
        self.path = path
        self.details = details or {}
        self.retry_after = retry_after
        self.audit_id = audit_id
        self.flow_schema_uid = flow_schema_uid
        self.priority_level_uid = priority_level_uid

    @property
    def causes(self) -> tuple[dict[str, Any], ...]:
        """Status.details.causes: one entry for each field that was refused."""
        causes = self.details.get("causes") or ()
        return tuple(cause for cause in causes if isinstance(cause, dict))

    def __str__(self) -> str:
        where = f"{self.method} {self.path}: " if self.path else ""
        return f"{where}{self.status} {self.reason}: {self.message}"


class BadRequest(ApiError):
    """400: the request is malformed."""


class Unauthorized(ApiError):
    """401: not authenticated; the token is missing, expired or not accepted."""


class Forbidden(ApiError):
    """403: authenticated, and not allowed; RBAC names the missing verb and resource."""


class NotFound(ApiError):
    """404: no such object or resource."""


class MethodNotAllowed(ApiError):
    """405: the resource does not support this method."""


class AlreadyExists(ApiError):
    """409 on creation: an object of this name is there."""


class Conflict(ApiError):
    """409 on change: the object changed meanwhile, or a precondition failed."""


class Expired(ApiError):
    """410: the resource version or continue token is too old; list again."""


class RequestEntityTooLarge(ApiError):
    """413: the body is larger than the server takes."""


class UnsupportedMediaType(ApiError):
    """415: the server does not take this content type."""


class Invalid(ApiError):
    """422: the object breaks its schema or a validation; see `causes`."""


class TooManyRequests(ApiError):
    """429: the server sheds load; `retry_after` says for how long."""


class InternalError(ApiError):
    """500: the server failed."""


class ServerTimeout(ApiError):
    """500 or 504 with reason ServerTimeout: the server could not do it in time."""


class ServiceUnavailable(ApiError):
    """503: the server is not ready or is going away."""


class ApiTimeout(ApiError, TimeoutError):
    """504 with reason Timeout: the request did not finish within the server's limit."""
