"""Hostile result bodies, each at most the default max_result, and what they cost.

Run as `python tests/wire_bombs.py stall NAME` or `... stack NAME` by tests that watch
a whole interpreter.
"""

from __future__ import annotations

import random
import sys
import threading
import time
from typing import TYPE_CHECKING, Final

import ormsgpack

from flame_backend.backends.base import MAX_RESULT_BYTES
from flame_backend.errors import MalformedFrame
from flame_backend.wire.decoding import decode
from flame_backend.wire.tags import CHUNKED, CONTAINER_COUNT, COUNT, LINK, Tag

if TYPE_CHECKING:
    from collections.abc import Callable

ROOM: Final = MAX_RESULT_BYTES - 64
HASH_MODULUS: Final = 2**61 - 1


def chunked(documents: list[bytes], last: object) -> bytes:
    """Build a body of several documents."""
    lengths = b"".join(LINK.pack(len(part)) for part in documents)
    head = COUNT.pack(CHUNKED, len(documents))
    return head + lengths + b"".join(documents) + ormsgpack.packb(last)


def linked(tag: int, content: object) -> bytes:
    """Build a body that is one extension with this content."""
    return chunked([ormsgpack.packb(content)], link(tag))


def link(tag: int, number: int = 0) -> ormsgpack.Ext:
    """Build an extension that refers to a document."""
    return ormsgpack.Ext(tag, LINK.pack(number))


def repeated(item: bytes, count: int | None = None) -> bytes:
    """Build a list of the same thing as often as it fits."""
    count = ROOM // len(item) if count is None else count
    return b"\xdd" + count.to_bytes(4, "big") + item * count


def equal_hashes(count: int = 60_000) -> list[object]:
    """Return ints of one hash, as a runner would send them."""
    return [
        ormsgpack.Ext(Tag.BIG_INT, (HASH_MODULUS * n).to_bytes(16, "big"))
        for n in range(2**40, 2**40 + count)
    ]


def mostly_equal_hashes() -> list[object]:
    """Return one part of distinct ints and three of one hash."""
    return [*range(15_000), *equal_hashes(45_000)]


def chained(bits: int = 15, count: int = 3000) -> list[int]:
    """Return ints of distinct hashes, the last of which probe along the others.

    The others take the slots that a dict of 2**bits slots tries one after another
    (i, 5i+1, ...); the last ones start among them, and follow them to the end.
    """
    mask = (1 << bits) - 1
    chain, slot = [], 1
    for _ in range(int(mask * 0.45)):
        chain.append(slot)
        slot = (5 * slot + 1) & mask
    taken, early = set(chain), set(chain[: len(chain) // 2])
    source = random.Random(1)
    chosen = set[int]()
    while len(chosen) < count:
        value = source.getrandbits(10) << bits | source.choice(chain)
        slot, rest = value & mask, value
        while rest and slot in taken:
            rest >>= 5
            slot = (5 * slot + rest + 1) & mask
        if not rest and slot in early:
            chosen.add(value)
    return chain + sorted(chosen - taken)


BOMBS: Final[dict[str, Callable[[], bytes]]] = {
    "empty lists": lambda: repeated(b"\x90"),
    "empty dicts": lambda: repeated(b"\x80"),
    "as many lists as may be": lambda: repeated(b"\x90", CONTAINER_COUNT - 1),
    "as many dicts as may be, the rest text": lambda: (
        b"\x92"
        + repeated(b"\x81\xa0\xc0", CONTAINER_COUNT - 3)
        + repeated(b"\xa1x", (ROOM - 3 * CONTAINER_COUNT) // 2)
    ),
    "small ints": lambda: repeated(b"\x01"),
    "short texts": lambda: repeated(b"\xa1x"),
    "empty texts as extensions": lambda: repeated(b"\xc7\x00" + bytes([Tag.TEXT])),
    "many documents": lambda: chunked([b"\x90"] * 100_000, 1),
    "set of one hash": lambda: linked(Tag.SET, equal_hashes()),
    "set of few hashes": lambda: linked(Tag.SET, mostly_equal_hashes()),
    "dict of one hash": lambda: linked(Tag.PAIRS, [equal_hashes(), [0] * 60_000]),
    "dict of chained hashes": lambda: linked(
        Tag.PAIRS, [chained(), [0] * len(chained())]
    ),
}

DEEP: Final[dict[str, Callable[[], bytes]]] = {
    "lists": lambda: b"\x91" * 100_000 + b"\xc0",
    "dicts": lambda: b"\x81\xa0" * 100_000 + b"\xc0",
    "lists in a document": lambda: chunked(
        [b"\x91" * 1021 + b"\xc0"], [link(Tag.TUPLE)]
    ),
    "extension at the bottom": lambda: chunked(
        [b"\x90"], None
    )[:-1] + b"\x91" * 1020 + ormsgpack.packb(link(Tag.TUPLE)),
}  # fmt: skip


def largest_gap(work: Callable[[], object]) -> float:
    """Return for how many seconds another thread stood still at most meanwhile.

    Seconds of this process's own CPU: other processes of the machine do not count.
    """
    gaps, ended = [0.0], threading.Event()

    def tick() -> None:
        last = time.process_time()
        while not ended.wait(0.001):
            now = time.process_time()
            gaps.append(now - last)
            last = now

    thread = threading.Thread(target=tick)
    thread.start()
    work()
    ended.set()
    thread.join()
    return max(gaps)


def outcome(body: bytes) -> str:
    """Decode, drop, and tell how it ended."""
    try:
        decode(body)
    except MalformedFrame as error:
        return f"refused: {error}"
    return "decoded"


def main(what: str, name: str) -> None:
    """Print how a body ended, and how long others stood still."""
    told: list[str] = []
    if what == "stall":
        body = BOMBS[name]()
        gap = largest_gap(lambda: told.append(outcome(body)))
        print(f"{gap:.3f} {told[0]}")
        return
    deep = DEEP[name]()
    threading.stack_size(128 * 1024)
    thread = threading.Thread(target=lambda: told.append(outcome(deep)))
    thread.start()
    thread.join()
    print(told[0], threading.stack_size())


if __name__ == "__main__":
    main(*sys.argv[1:])
