"""What the towers read: raw quantities of accounts, and the features made of them.

`Rows` is the seam to the state: the state fills it, this module alone turns it into features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

# Half-lives of the decayed counts in seconds: 10 min, 1 h, 6 h, 1 d, 7 d, 30 d, none.
HALF_LIVES: Final[tuple[float, ...]] = (600.0, 3600.0, 21600.0, 86400.0, 604800.0, 2592000.0, float("inf"))
GROUPS: Final[tuple[str, ...]] = ("follow", "engage", "negative")
FOLLOWERS: Final = 10  # newest followers read
FOLLOWEES: Final = 15  # newest followees read
UNRECIPROCATED: Final = 8  # newest followers read whom the account does not follow

IN: Final = 0  # direction axis: what others did to the account
OUT: Final = 1  # direction axis: what the account did


class Rows(NamedTuple):
    """State of n accounts as of one time, before any feature is made of it.

    Neighbour lists are newest first and at most as long as the constants above; ages are seconds, padded
    with +inf to a fixed width. Everything is an exact function of the present edges and of `as_of`.
    """

    accounts: Sequence[str]  # n
    as_of: int  # microseconds
    counts: NDArray[np.float32]  # (n, 2, 3, 7): direction, group, half-life; decayed
    last: NDArray[np.float64]  # (n, 2) seconds since the newest event of a direction, +inf if none
    first: NDArray[np.float64]  # (n,) seconds since the oldest event known, 0 if none
    degrees: NDArray[np.int64]  # (n, 3): followers, followees, followees that follow back
    followers: Sequence[Sequence[str]]  # n x <= FOLLOWERS
    follower_ages: NDArray[np.float64]  # (n, FOLLOWERS)
    followees: Sequence[Sequence[str]]  # n x <= FOLLOWEES
    followee_ages: NDArray[np.float64]  # (n, FOLLOWEES)
    unreciprocated: Sequence[Sequence[str]]  # n x <= UNRECIPROCATED
    unreciprocated_ages: NDArray[np.float64]  # (n, UNRECIPROCATED)
    languages: NDArray[np.int32]  # (n,) code, 0 if unknown
