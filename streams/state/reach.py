"""How much one actor moves in all: of a signal and a day at most about `Signal.reach` of what it did count for others.

Let n be how many edges or events of the family an actor has that date from one UTC day. Up to the reach all of them
count for their targets. Beyond it the day has a level, that goes up whenever n doubles, and of level L those count
whose actor and target have a hash with L zero bits at its end: between half the reach and the reach, whatever n is.
Which, is a function of what is there, not of how it came; an undo lowers n, and the level with it. A level moves
once in a doubling, so that few edges have to be sent again: about two for each that there is.

The rest is withheld: it stands as an edge (it excludes, it is in lists of newest, it makes a follow mutual, and it is
in its actor's own row), but nothing that is summed at the target has it: no counter, no histogram or sketch of an
audience, no community.

A level moves no more when the day is out of reach: for occurrences when they leave the ledger, for edges when the
day's cell is not read any more (`counters.DAYS_READ`). What is left of the day then stays as it was. So follows
that are loaded without a time, or are older than that, are never withheld.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Final

from kithstream.streams.events.signals import by_family

REACH: Final = tuple(signal.reach for signal in by_family())


def level(count: int, reach: int) -> int:
    """Return the level of a day on which so many are there; 0 where all count.

    >>> [level(count, 500) for count in (500, 501, 1000, 1001, 2000, 2001, 20_000)]
    [0, 1, 1, 2, 2, 3, 6]
    """
    return ((count - 1) // reach).bit_length() if count > reach > 0 else 0


def is_withheld(level: int, actor: str, target: str) -> bool:
    """True if what an actor did to a target does not count at a level of its day.

    >>> sum(not is_withheld(level(20_000, 500), "ann", f"u{n}") for n in range(20_000))
    301
    """
    # Not a crc: its low bits run in patterns over names that are counted up.
    digest = blake2b(f"{actor}\0{target}".encode(), digest_size=4).digest()
    return bool(int.from_bytes(digest, "big") & (1 << level) - 1)
