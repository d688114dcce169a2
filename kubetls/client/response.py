"""One HTTP response: its body read with limits, and never mistaken for complete."""

from __future__ import annotations

import http.client
import re
from typing import TYPE_CHECKING, Any, Final, Self

import urllib3.exceptions

from kubetls.errors import (
    ConnectionFailed,
    ConnectTimeout,
    KubeTLSError,
    ProtocolError,
    ReadTimeout,
)
from kubetls.identity.names import escaped

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from urllib3 import BaseHTTPResponse

BODY_BYTES: Final = 512 * 1024 * 1024
"""Cap for a body that is read whole; a list page of 500 large objects has megabytes."""

CHUNK_BYTES: Final = 64 * 1024

# RFC 9110 section 8.6, as wide as a length can be meant; not int()'s grammar.
_LENGTH: Final = re.compile(r"[0-9]{1,18}\Z")


class Response:
    """Status, headers and body of an exchange.

    Attributes:
        status: HTTP status code.
        headers: Response headers; lookups ignore case.
        server: URL of the server, for errors.
    """

    def __init__(self, raw: BaseHTTPResponse, server: str) -> None:
        self._raw = raw
        self.server = server
        self._body: bytes | None = None
        self.status = raw.status
        self.headers: Mapping[str, str] = raw.headers

    @property
    def data(self) -> bytes:
        """The body, read whole, once.

        Raises:
            ProtocolError: Too large, compressed, or not framed by a Content-Length or
                by chunks, so that a cut could not be told from the end.
            ConnectionFailed: The connection ended inside the body.
            ReadTimeout: The server stopped sending.
        """
        if self._body is None:
            self._require_framing()
            parts: list[bytes] = []
            size = 0
            # Large reads: layers above TLS cost as much as TLS when it is read in bits.
            for part in self._parts(lambda: self._raw.read(BODY_BYTES + 1)):
                size += len(part)
                if size > BODY_BYTES:
                    self.close()
                    reason = f"the body is larger than {BODY_BYTES} bytes"
                    raise ProtocolError(self.server, reason, True)
                parts.append(part)
            self._body = b"".join(parts)
        return self._body

    def json(self) -> Any:
        """Return the body as JSON.

        Raises:
            ProtocolError: The body is no JSON.
        """
        from kubetls.client.decoding import NotDecoded, value_of

        try:
            return value_of(self.data)
        except NotDecoded as error:
            reason = f"the body of a {self.status} response is no JSON ({error})"
        raise ProtocolError(self.server, reason, True)

    def stream(self) -> Iterator[bytes]:
        """Yield the body as it arrives; ends only at its proper end.

        Raises:
            TransportError: As `data`.
        """
        self._require_framing()
        return self._parts(lambda: self._raw.read1(CHUNK_BYTES))

    def _parts(self, read: Callable[[], bytes]) -> Iterator[bytes]:
        failure: Exception | None = None
        try:
            while part := read():
                yield part
        except Exception as error:  # noqa: BLE001 - translated below, outside this block
            failure = translated(error, self.server, sent=True)
        if failure is not None:
            self.close()
            raise failure
        self._raw.release_conn()

    def _require_framing(self) -> None:
        if self.status in {204, 304}:
            return
        coding = self.headers.get("Transfer-Encoding")
        length = self.headers.get("Content-Length")
        # Exactly one of them, and of the strict form. What http.client takes for no
        # length it reads to the end of the connection, and a cut is such an end.
        told = _LENGTH.match(length or "") is not None
        if coding is not None:
            told = length is None and coding.lower() == "chunked"
        if not told:
            self.close()
            reason = "no single Content-Length nor chunks; its end could not be told"
            raise ProtocolError(self.server, f"a body with {reason}", True)
        if self.headers.get("Content-Encoding", "identity") != "identity":
            self.close()
            reason = "a compressed body, which was not asked for"
            raise ProtocolError(self.server, reason, True)

    def close(self) -> None:
        """Close the response's connection. Idempotent."""
        self._raw.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Response {self.status} from {self.server}>"


def translated(error: Exception, server: str, *, sent: bool) -> Exception:
    """Turn what urllib3, http.client or a socket raised into an error of ours.

    What is neither theirs nor Python's own was raised by a signal handler (a task's
    time limit) and stays what it is.

    The result is raised outside the except block that caught the original: the frames
    of a failed send hold the request's header, and the token in it.
    """
    if isinstance(error, KubeTLSError) or _is_foreign(error):
        error.__traceback__ = None
        error.__context__ = None
        return error
    if isinstance(error, urllib3.exceptions.NewConnectionError):
        return ConnectionFailed(server, f"no connection ({_cause(error)})")
    if isinstance(error, urllib3.exceptions.ConnectTimeoutError):
        return ConnectTimeout(server, "not connected within the connect timeout")
    if isinstance(error, urllib3.exceptions.ReadTimeoutError | TimeoutError):
        return ReadTimeout(server, "nothing was sent within the read timeout", sent)
    if isinstance(error, _BROKEN) and not _breaks_http(_last(error)):
        return ConnectionFailed(server, f"the connection broke ({_cause(error)})", sent)
    return ProtocolError(server, f"not HTTP as we speak it ({_cause(error)})", sent)


def _is_foreign(error: Exception) -> bool:
    theirs = (urllib3.exceptions.HTTPError, http.client.HTTPException, OSError)
    return not isinstance(error, theirs) and type(error).__module__ != "builtins"


_BROKEN: Final = (
    urllib3.exceptions.ProtocolError,
    urllib3.exceptions.SSLError,
    OSError,
)


def _breaks_http(cause: object) -> bool:
    """Tell whether it is a header too long or too large, or no HTTP at all."""
    cut = OSError | http.client.IncompleteRead
    return isinstance(cause, http.client.HTTPException) and not isinstance(cause, cut)


def _cause(error: Exception) -> str:
    text = str(_last(error) or type(error).__name__)
    return escaped(text.rsplit(">: ", 1)[-1], 200)


def _last(error: Exception) -> object:
    """Return what urllib3 wrapped, or the text."""
    return error.args[-1] if error.args else None
