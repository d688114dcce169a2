"""Bodies made to exhaust memory, stack or CPU cost their sender, not the parent."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from pathlib import Path

import ormsgpack
import pytest

from flame_backend.errors import MalformedFrame, ResultNotSerializable
from flame_backend.wire import hashing
from flame_backend.wire.decoding import decode
from flame_backend.wire.hashing import collide
from flame_backend.wire.tags import (
    CONTAINER_COUNT,
    EXT_DEPTH,
    Tag,
    has_more_containers,
)
from flame_backend.wire.values import encode
from tests import wire_bombs

STALL_SECONDS = 2.5
"""The rule says one, and 0.8 was measured; a machine may be slow. Without rules they
take 3.3 to 27 seconds."""

MEMORY_FACTOR = 90
"""Dicts of one empty dict need 88 octets for one of the body."""


def run(what: str, name: str) -> str:
    """Return what a fresh interpreter says about a body."""
    script = Path(wire_bombs.__file__)
    done = subprocess.run(
        [sys.executable, str(script), what, name],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (0, "") == (done.returncode, done.stderr)
    return done.stdout.strip()


@pytest.mark.parametrize("name", wire_bombs.DEEP)
def test_deep_body_spares_a_thread_of_128_kibibytes(name: str) -> None:
    """It is decoded elsewhere; the app's setting of the size stays."""
    told = run("stack", name)
    assert told.startswith(("decoded", "refused"))
    assert told.endswith(f" {128 * 1024}")


@pytest.mark.parametrize("name", wire_bombs.BOMBS)
def test_largest_body_never_stalls_other_threads(name: str) -> None:
    """Whatever a runner sends within max_result, other threads go on."""
    gap, _, told = run("stall", name).partition(" ")
    assert STALL_SECONDS > float(gap), told


def tuples(depth: int, innermost: bytes) -> bytes:
    """Build tuples inside tuples, with a document of these bytes in the first."""
    links = [wire_bombs.link(Tag.TUPLE, number) for number in range(depth - 1)]
    documents = [innermost, *(ormsgpack.packb([link]) for link in links)]
    return wire_bombs.chunked(documents, wire_bombs.link(Tag.TUPLE, depth - 1))


@pytest.mark.parametrize("depth", [1, EXT_DEPTH])
def test_memory_does_not_grow_with_nesting(depth: int) -> None:
    """It is bounded by the body, whatever stands in what."""
    body = tuples(depth, wire_bombs.repeated(b"\x81\xa0\x80", 100_000))
    tracemalloc.start()
    try:
        decode(body)
        assert MEMORY_FACTOR * len(body) > tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_every_octet_is_decoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What all decoders together are handed is no more than the body."""
    handed: list[int] = []
    unpack = ormsgpack.unpackb

    def counted(data: bytes, **options: object) -> object:
        handed.append(len(data))
        return unpack(data, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("flame_backend.wire.decoding.ormsgpack.unpackb", counted)
    value: object = list(range(1000))
    for _ in range(EXT_DEPTH - 1):
        value = (value, {1, 2})
    body = encode(value).body
    decode(body)
    assert len(body) >= sum(handed)


def test_containers_beyond_the_limit_are_refused_on_both_ends() -> None:
    """Empty lists as many as fit would hold the interpreter for seconds."""
    rows: list[list[int]] = [[]] * CONTAINER_COUNT
    with pytest.raises(ResultNotSerializable, match="numpy arrays"):
        encode(rows)
    with pytest.raises(MalformedFrame, match="more lists"):
        decode(wire_bombs.repeated(b"\x90", CONTAINER_COUNT))
    assert CONTAINER_COUNT - 1 == len(decode(encode(rows[1:]).body))


@pytest.mark.parametrize(
    ("value", "count"),
    [
        ([[], {}, [[]]], 5),
        (["\u4e80" * 40] * 9, 1),
        ([b"\x90" * n for n in (1, 255, 256, 70_000)], 1),
        ([2**n for n in range(63)] + [-(2**n) for n in range(63)], 1),
        ([0.1, None, True, {"\u0080": []}], 3),
        (["\u0090" * n for n in (1, 40, 300, 70_000)], 1),
        ([ormsgpack.Ext(1, b"\x90" * n) for n in (1, 2, 4, 8, 16, 300, 70_000)], 1),
        ([[0] * 20] * 20 + [dict.fromkeys(map(str, range(20)), 0)], 22),
    ],
    ids=["nested", "text", "bytes", "ints", "mixed", "long text", "ext", "long heads"],
)
def test_containers_are_counted_exactly(value: object, count: int) -> None:
    """By their heads, not by octets in text that look like heads."""
    body = ormsgpack.packb(value)
    assert has_more_containers(body, count - 1)
    assert not has_more_containers(body, count)


ORDINARY: dict[str, list[object]] = {
    "ids": list(range(10**6, 10**6 + 40_000)),
    "ids with gaps": list(range(0, 40_000 * 4096, 4096)),
    "negative": list(range(-20_000, 20_000)),
    "floats": [n / 7 for n in range(40_000)],
    "powers of two": [2.0**n for n in range(-1000, 1000)],
    "pairs": [(n % 200, n // 200) for n in range(40_000)],
    "texts": [str(n) for n in range(40_000)],
    "large ints": [n**11 for n in range(40_000)],
}


@pytest.mark.parametrize("in_set", [True, False], ids=["set", "dict"])
@pytest.mark.parametrize("members", ORDINARY.values(), ids=ORDINARY.keys())
def test_ordinary_members_are_no_attack(members: list[object], in_set: bool) -> None:
    """What programs put into sets and keys, around and beyond the rehearsed size."""
    assert not collide(members, in_set=in_set)
    assert not collide(members[: hashing.SOME], in_set=in_set)


@pytest.mark.parametrize(
    "count", [hashing.FEW + hashing.SAME_HASH, 5000, hashing.SOME + 1, 60_000]
)
@pytest.mark.parametrize("in_set", [True, False], ids=["set", "dict"])
def test_equal_hashes_are_an_attack(count: int, in_set: bool) -> None:
    """Whether they are few enough to be counted or are rehearsed."""
    members = [wire_bombs.HASH_MODULUS * n for n in range(1, count + 1)]
    assert collide(members, in_set=in_set)
    assert collide([*range(count // 3), *members], in_set=in_set)


def test_chain_of_distinct_hashes_is_an_attack() -> None:
    """All hashes differ, and each member probes thousands of slots."""
    members = wire_bombs.chained()
    assert len(set(map(hash, members))) == len(members)
    assert collide(members, in_set=False)
