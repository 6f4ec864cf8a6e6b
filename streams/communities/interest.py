"""What an account is interested in: the communities that at least two of the accounts it follows are known for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

MOST: Final = 50  # communities of an account
NEWEST: Final = 2000  # followees that count, the newest of an account


def thresholded(counts: Mapping[int, int]) -> list[tuple[int, int]]:
    """Return (community, T) by community, at most `MOST`: the larger T first in, then the smaller number.

    `counts` says how many followees are known for each community. T(k) is 0 for k < 2, else the greatest power
    of two that is at most k, so that it changes seldom while k grows. SimClusters' InterestedIn keeps 50 and
    wants two distinct accounts (Satuluri et al. 2020, section 4.2).

    >>> thresholded({7: 9, 3: 1, 5: 3})
    [(5, 2), (7, 8)]
    """
    kept = [(-(1 << k.bit_length() - 1), community) for community, k in counts.items() if k >= 2]
    kept.sort()
    return sorted((community, -t) for t, community in kept[:MOST])
