"""Members of sets and keys of dicts that were chosen to collide. Pure.

Hashes of numbers, and of tuples of numbers, are not randomized, so whoever chooses
them chooses where they stand in the table; filling it is one C call that holds the
interpreter. Equal hashes are the simple way: 60 000 multiples of 2**61-1 take 27 s.
The other way has distinct hashes that probe along one chain of occupied slots; 32 000
members take 1 s. So large tables are rehearsed first, with the probing of CPython's
dicts and sets, in bytecode that lets other threads run.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

FEW: Final = 64
"""Members that cannot cost much, whatever they are."""

SOME: Final = 16 * 1024
"""Members whose worst chain takes 0.3 s; from here on tables are rehearsed."""

SAME_HASH: Final = 256
"""Members of one hash. Powers of two share 61 hashes among all floats."""

PROBES: Final = 32
"""Probes for each member, on average, a run along neighbours taken for one. Hashes
that look random need less than two, multiples of 2**32 need 15."""

_BITS: Final = 64
_LINEAR: Final = 9
_TURN: Final = 5


def collide(members: Sequence[Any], *, in_set: bool) -> bool:
    """Tell whether a set, or a dict, of these would be slow to build.

    Raises:
        TypeError: A member that cannot be hashed.
    """
    if len(members) <= FEW:
        return False
    hashes = [hash(member) for member in members]
    if len(hashes) <= SOME:
        distinct = len(set(hashes))
        return distinct < len(hashes) and max(Counter(hashes).values()) > SAME_HASH
    # A growing table is filled anew at every size; a dict has at most two thirds of
    # it taken, a set less, and is at most eight times as large as its members.
    for bits in range(SOME.bit_length() - 1, (8 * len(hashes)).bit_length() + 1):
        taken = hashes[: 2 * (1 << bits) // 3]
        if _walks_long(taken, bits, _LINEAR if in_set else 0):
            return True
    return False


def _walks_long(hashes: list[int], bits: int, linear: int) -> bool:
    """Fill a table of 2**bits slots; tell whether that takes too many probes."""
    mask = (1 << bits) - 1
    taken = bytearray(mask + 1)
    left = PROBES * len(hashes)
    for value in hashes:
        slot = value & mask
        if taken[slot]:
            perturb = value % (1 << _BITS)
            near = linear if slot + linear <= mask else 0
            while (free := taken.find(0, slot, slot + near + 1)) < 0:
                left -= 1
                if left < 0:
                    return True
                perturb >>= _TURN
                slot = (5 * slot + perturb + 1) & mask
                near = linear if slot + linear <= mask else 0
            slot = free
        taken[slot] = 1
    return False
