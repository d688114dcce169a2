"""Laws of frames: however they are split the same, however broken refused."""

from __future__ import annotations

import itertools
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flame_backend.errors import MalformedFrame
from flame_backend.wire.frames import (
    HEADER,
    FrameDecoder,
    Kind,
    Limits,
    pack_frame,
    pack_head,
)

LIMITS = Limits(4096, 4, 16384)

frames = st.tuples(
    st.sampled_from(Kind),
    st.integers(0, 2**64 - 1),
    st.binary(max_size=64),
    st.lists(st.binary(max_size=64), max_size=3),
)


def packed(frame: tuple[Kind, int, bytes, list[bytes]]) -> bytes:
    """Return a frame's bytes."""
    kind, call, body, segments = frame
    head = pack_head(kind, call, len(body), [len(part) for part in segments])
    return head + body + b"".join(segments)


@given(st.lists(frames, max_size=5), st.lists(st.integers(0, 600), max_size=8))
def test_any_split_gives_the_same_frames(
    sent: list[tuple[Kind, int, bytes, list[bytes]]], cuts: list[int]
) -> None:
    """Frames come out as they went in, wherever the stream was cut on the way."""
    data = b"".join(map(packed, sent))
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    decoder = FrameDecoder(LIMITS)
    found = []
    for start, end in itertools.pairwise(places):
        found += decoder.feed(data[start:end])
    assert sent == [(f.kind, f.call_id, f.body, list(f.segments)) for f in found]
    assert 0 == decoder.pending_bytes


@given(frames, st.data())
def test_truncated_frame_is_no_frame(
    frame: tuple[Kind, int, bytes, list[bytes]], data: st.DataObject
) -> None:
    """Every proper prefix gives nothing, and keeps waiting."""
    whole = packed(frame)
    cut = data.draw(st.integers(0, len(whole) - 1))
    assert [] == FrameDecoder(LIMITS).feed(whole[:cut])


@given(st.binary(max_size=200))
def test_any_bytes_give_frames_or_our_error(data: bytes) -> None:
    """Nothing else comes out, and a broken decoder stays broken."""
    decoder = FrameDecoder(LIMITS)
    try:
        decoder.feed(data)
    except MalformedFrame:
        with pytest.raises(MalformedFrame):
            decoder.feed(pack_frame(Kind.PING))


@given(frames, st.integers(0, 15), st.integers(0, 7))
def test_flipped_header_bit_never_passes_a_limit(
    frame: tuple[Kind, int, bytes, list[bytes]], octet: int, bit: int
) -> None:
    """A header with one bit flipped is refused, waits, or stays within the limits."""
    data = bytearray(packed(frame))
    data[octet] ^= 1 << bit
    try:
        found = FrameDecoder(LIMITS).feed(data)
    except MalformedFrame:
        return
    for got in found:
        assert LIMITS.body_bytes >= len(got.body)
        assert LIMITS.segment_count >= len(got.segments)


@pytest.mark.parametrize(
    "header",
    [
        HEADER.pack(Kind.RESULT, 0, 0, 2**32 - 1, 1),
        HEADER.pack(Kind.RESULT, 0, 65535, 0, 1),
        HEADER.pack(Kind.RESULT, 0, 1, 0, 1) + (2**63).to_bytes(8, "big"),
        HEADER.pack(99, 0, 0, 0, 1),
        HEADER.pack(Kind.RESULT, 1, 0, 0, 1),
    ],
    ids=["body", "segments", "segment length", "kind", "flags"],
)
def test_lying_header_is_refused_before_memory_is_taken(header: bytes) -> None:
    """A length of gigabytes costs its sender the link and us nothing."""
    tracemalloc.start()
    try:
        with pytest.raises(MalformedFrame):
            FrameDecoder(LIMITS).feed(header)
        assert 100_000 > tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
