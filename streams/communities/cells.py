"""Rows of (community, number): packed cells of eight bytes, in the order of communities, none at zero.

A cell is a big-endian word: the community in the upper 24 bits, the number in the lower 40. The same changes in
any order leave the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from struct import Struct
from typing import Final

_NUMBER_BITS: Final = 40
_NUMBER: Final = (1 << _NUMBER_BITS) - 1
_cells = Struct(">Q").iter_unpack


def read(row: bytes | bytearray) -> dict[int, int]:
    """Return the numbers of a row by community.

    >>> read(dump({3: 1, 2: 5}))
    {2: 5, 3: 1}
    """
    return {cell >> _NUMBER_BITS: cell & _NUMBER for (cell,) in _cells(row)}


def dump(numbers: Mapping[int, int]) -> bytes:
    """Return the row of numbers by community; those below one are left out."""
    cells = [c << _NUMBER_BITS | n for c, n in sorted(numbers.items()) if n > 0]
    return Struct(f">{len(cells)}Q").pack(*cells)


def moved(row: bytes | bytearray, by: Mapping[int, int]) -> bytes:
    """Return the row with changes added."""
    numbers = read(row)
    for community, change in by.items():
        numbers[community] = numbers.get(community, 0) + change
    return dump(numbers)
