"""Tokens: how far into each partition's log an answer must have come. Text, since clients only hand them back."""

from __future__ import annotations

from collections.abc import Mapping


def write(ends: Mapping[int, int]) -> str:
    """Return the token for partitions and the offset after the last record that counts.

    >>> write({2: 17, 0: 4})
    '0:4,2:17'
    """
    return ",".join(f"{number}:{end}" for number, end in sorted(ends.items()))


def read(token: str, partitions: int) -> dict[int, int]:
    """Return what `write` was given; raises ValueError naming the token for anything else."""
    ends: dict[int, int] = {}
    for part in token.split(",") if token else ():
        number, colon, end = part.partition(":")
        if not (colon and number.isascii() and number.isdecimal() and end.isascii() and end.isdecimal()):
            raise ValueError(f"token is {token[:80]!r}, expected partition:offset,...")
        if int(number) >= partitions or len(end) > 18:
            raise ValueError(f"token is {token[:80]!r}, there are {partitions} partitions")
        ends[int(number)] = int(end)
    return ends


def join(one: str, other: str, partitions: int) -> str:
    """Return the token that waits for both."""
    ends = read(one, partitions)
    for number, end in read(other, partitions).items():
        ends[number] = max(end, ends.get(number, 0))
    return write(ends)
