"""Lines out of a body that arrives in parts; memory and time bounded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kubetls.errors import ConnectionFailed, ProtocolError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kubetls.client.response import Response


def whole_lines(response: Response, limit: int) -> Iterator[bytes]:
    """Yield lines without their newlines; each one whole.

    Raises:
        ProtocolError: A line has more than `limit` bytes.
        ConnectionFailed: The body ended inside a line: a cut, whatever the framing
            says.
        TransportError: As `Response.stream`.
    """
    for line, complete in _split(response, limit):
        if not complete:
            if len(line) > limit:
                raise ProtocolError(response.server, f"a line over {limit} bytes", True)
            reason = "the body ended inside a line"
            raise ConnectionFailed(response.server, reason, True)
        yield line


def text_lines(response: Response, limit: int) -> Iterator[bytes]:
    """Yield lines without their newlines; one over `limit` bytes comes in parts.

    Raises:
        TransportError: As `Response.stream`.
    """
    for line, _ in _split(response, limit):
        yield line


def _split(response: Response, limit: int) -> Iterator[tuple[bytes, bool]]:
    """Yield lines, and of each whether its newline was there."""
    parts: list[bytes] = []
    size = 0
    for data in response.stream():
        first, *more = data.split(b"\n")
        # Joined once, when its end is there: a long line arrives in many parts.
        parts.append(first)
        size += len(first)
        if more:
            yield b"".join(parts), True
            for line in more[:-1]:
                yield line, True
            parts, size = [more[-1]], len(more[-1])
        if size > limit:
            yield b"".join(parts), False
            parts, size = [], 0
    if size:
        yield b"".join(parts), False
