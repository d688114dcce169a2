"""Container logs as lines; a cut is an error, an end is the end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from kubetls.client.lines import text_lines
from kubetls.client.paths import path
from kubetls.errors import TransportError, WatchClosed

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from kubetls.client.watch import OpenStream

LINE_BYTES: Final = 16 * 1024 * 1024
"""A line longer than this is handed out in parts, so that memory stays bounded."""

READ_SECONDS: Final = 60.0


def log_lines(
    open_stream: OpenStream,
    namespace: str,
    pod: str,
    options: Mapping[str, object],
    *,
    follow: bool,
) -> Iterator[bytes]:
    """Yield lines; the request is made by the first one that is asked for.

    A followed log may be silent for hours, so it has no read timeout: TCP keepalive
    finds a dead peer.
    """
    target = path("v1", "pods", pod, namespace=namespace, subresource="log")
    timeout = None if follow else READ_SECONDS
    with open_stream(target, options, read_timeout=timeout) as response:
        try:
            yield from text_lines(response, LINE_BYTES)
        except TransportError as error:
            reason = f"the log stream was cut ({error.reason})"
            raise WatchClosed(error.server, reason, True) from error
