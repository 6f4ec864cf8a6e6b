"""An account's interest in communities: how many of those it follows are known for each, in levels.

SimClusters' InterestedIn (Satuluri et al. 2020, section 4.2) is U = A V with A the follows and V the known-for
matrix. With 0/1 entries U is whole numbers. Two accounts of a community are asked for at least, and the count is
rounded down to a power of two: an interest then changes O(log k) times while k follows are made, and so often only
is it told to those that are followed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

MOST: Final = 50  # communities of one account
NEWEST: Final = 2000  # follows of one account that count, and that carry its interest


def thresholded(counts: Mapping[int, int]) -> list[tuple[int, int]]:
    """Return (community, T) in the order of communities: T(k) = 0 for k < 2, else 2^floor(log2 k).

    At most `MOST` entries; the larger T stays, then the smaller community.

    >>> thresholded({7: 1, 5: 3, 2: 2, 9: 8})
    [(2, 2), (5, 2), (9, 8)]
    """
    entries = [(community, 1 << count.bit_length() - 1) for community, count in counts.items() if count > 1]
    if len(entries) > MOST:
        entries.sort(key=lambda entry: (-entry[1], entry[0]))
        del entries[MOST:]
    entries.sort()
    return entries
