"""The live yardsticks: rules of a few lines that a model has to beat.

All three are told every new follow once, in the order of the stream, and answer "whom should this account
follow?" from what they were told so far. Accounts are dense integers from 0; times are microseconds and
half-lives seconds, as in `models/features.py`. Accounts of equal score stand in the order of their number,
except for `TwoHop` (see there), so that every answer is a function of the stream alone.

Decayed counts are held as log2(count) + last / half-life. Between two events of an account that number stays
as it is, however much time goes by, and its order is the order of the decayed counts: nothing is refreshed
at a query and nothing underflows, as 2^(-age / half-life) would after some 1,000 half-lives.
"""

from __future__ import annotations

import math
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

# Half-lives tried, in seconds: 10 min, 1 h, 3 h, 6 h, 1 d, 7 d, 30 d, none.
GRID: Final[tuple[float, ...]] = (600.0, 3600.0, 10800.0, 21600.0, 86400.0, 604800.0, 2592000.0, math.inf)

SECOND: Final = 1_000_000  # microseconds
NEVER: Final = -math.inf  # the score of an account that was never counted
KEPT: Final = 1024  # accounts that a `Ranking` has in reach without scanning all


class Yardstick(Protocol):
    """What replays need to know of a rule."""

    def observe(self, source: int, target: int, time: int) -> None:
        """Takes one new follow; a pair that is told twice counts twice."""

    def candidates(self, source: int, k: int, now: int) -> list[int]:
        """Answers at most `k` accounts, best first, without `source` and the accounts it follows."""


class Ranking:
    """Decayed counts of accounts, ready to name the highest.

    A key never falls, so the accounts that can be among the highest `KEPT` are kept at hand: those whose key
    reached the lowest of the highest `KEPT` of some earlier moment. `top` is exact for every `k`.
    """

    def __init__(self, half_life: float) -> None:
        if not half_life > 0:
            raise ValueError(f"half_life is {half_life}, it must be positive (seconds)")
        self.half_life = half_life
        self.keys = np.full(0, NEVER)  # (capacity,) log2(decayed count) + last / half-life
        self._scale = 1 / (half_life * SECOND)
        self._near: set[int] = set()
        self._threshold = NEVER

    def add(self, account: int, time: int) -> None:
        """Counts one event of the account."""
        if account >= len(self.keys):
            grown = np.full(max(1024, 2 * len(self.keys), account + 1), NEVER)
            grown[: len(self.keys)] = self.keys
            self.keys = grown
        old, new = float(self.keys[account]), time * self._scale
        low, high = (old, new) if old < new else (new, old)
        key = high if low == NEVER else high + math.log2(1 + 2 ** max(low - high, -1000.0))
        self.keys[account] = key
        if key >= self._threshold:
            self._near.add(account)
            if len(self._near) > 4 * KEPT:
                self._narrow()

    def level(self, now: int) -> float:
        """What to subtract from keys to have log2(decayed count) at `now`."""
        return now * self._scale

    def top(self, k: int) -> NDArray[np.int64]:
        """Returns the `k` counted accounts of highest key, highest first."""
        pool = (
            np.fromiter(self._near, np.int64, len(self._near))
            if k <= KEPT
            else np.flatnonzero(self.keys > NEVER)
        )
        return highest(pool, self.keys[pool], k)

    def _narrow(self) -> None:
        pool = np.fromiter(self._near, np.int64, len(self._near))
        kept = highest(pool, self.keys[pool], KEPT)
        self._threshold = float(self.keys[kept[-1]])
        self._near = set(pool[self.keys[pool] >= self._threshold].tolist())


class DecayedPopularity:
    """Whoever is followed most lately: a count of new followers that halves every `half_life` seconds."""

    def __init__(self, half_life: float) -> None:
        self.followed: dict[int, list[int]] = {}
        self.popularity = Ranking(half_life)

    def observe(self, source: int, target: int, time: int) -> None:
        self.followed.setdefault(source, []).append(target)
        self.popularity.add(target, time)

    def candidates(self, source: int, k: int, now: int) -> list[int]:
        excluded = {source, *self.followed.get(source, ())}
        best = self.popularity.top(k + len(excluded)).tolist()
        return [account for account in best if account not in excluded][:k]


class TwoHop:
    """Whom the accounts follow that follow what the account follows.

    Over its newest 30 followees x, the newest 50 followers y of each x, and the newest 20 followees z of each
    y: z gains 1 / sqrt(1 + number of followees of y). The account itself is one of the y, which changes
    nothing: it adds to accounts that it follows. Equal scores stand in the order in which they are met.
    """

    followees, followers, reach = 30, 50, 20

    def __init__(self) -> None:
        self.followed: dict[int, list[int]] = {}
        self.followers_of: dict[int, list[int]] = {}

    def observe(self, source: int, target: int, time: int) -> None:
        self.followed.setdefault(source, []).append(target)
        self.followers_of.setdefault(target, []).append(source)

    def candidates(self, source: int, k: int, now: int) -> list[int]:
        followed = self.followed.get(source, [])
        met: list[int] = []
        sizes: list[int] = []
        weights: list[float] = []
        for x in followed[-self.followees :]:
            for y in self.followers_of[x][-self.followers :]:
                theirs = self.followed[y]
                met += theirs[-self.reach :]
                sizes.append(min(self.reach, len(theirs)))
                weights.append(1 / (1 + len(theirs)) ** 0.5)
        if not met:
            return []
        accounts, first, inverse = np.unique(np.array(met, np.int64), return_index=True, return_inverse=True)
        scores = np.bincount(inverse, np.repeat(weights, sizes))
        excluded = {source, *followed}
        order = np.lexsort((first, -scores))[: k + len(excluded)]
        return [account for account in accounts[order].tolist() if account not in excluded][:k]


class HandRule:
    """Follow back first, then whoever is followed or acts most lately.

    The accounts that follow `source` without being followed by it, newest first; after them the highest of
    max(log decayed new followers, log decayed own follows), each with a half-life of its own, in seconds.
    """

    def __init__(self, pop_half_life: float, activity_half_life: float) -> None:
        self.followed: dict[int, list[int]] = {}
        self.followers_of: dict[int, list[int]] = {}
        self.popularity = Ranking(pop_half_life)
        self.activity = Ranking(activity_half_life)

    def observe(self, source: int, target: int, time: int) -> None:
        self.followed.setdefault(source, []).append(target)
        self.followers_of.setdefault(target, []).append(source)
        self.popularity.add(target, time)
        self.activity.add(source, time)

    def candidates(self, source: int, k: int, now: int) -> list[int]:
        excluded = {source, *self.followed.get(source, ())}
        answer: list[int] = []
        for follower in reversed(self.followers_of.get(source, [])):
            if len(answer) == k:
                return answer
            if follower not in excluded:
                excluded.add(follower)
                answer.append(follower)
        missing = k - len(answer)
        best = self._warmest(missing + len(excluded), now).tolist()
        return answer + [account for account in best if account not in excluded][:missing]

    def _warmest(self, k: int, now: int) -> NDArray[np.int64]:
        # Whoever is among the highest k of the maximum is among the highest k of one of the two.
        pool = np.union1d(self.popularity.top(k), self.activity.top(k))
        warmth = np.maximum(
            _read(self.popularity.keys, pool) - self.popularity.level(now),
            _read(self.activity.keys, pool) - self.activity.level(now),
        )
        return highest(pool, warmth, k)


def highest(accounts: NDArray[np.int64], scores: NDArray[np.float64], k: int) -> NDArray[np.int64]:
    """Returns the `k` accounts of highest score, highest first, the lower number first among equals.

    >>> highest(np.array([7, 3, 5]), np.array([1.0, 1.0, 2.0]), 2).tolist()
    [5, 3]
    """
    if k <= 0:
        return np.zeros(0, np.int64)
    if k < len(accounts):
        edge = np.partition(scores, len(scores) - k)[len(scores) - k]
        inside = scores >= edge
        accounts, scores = accounts[inside], scores[inside]
    return accounts[np.lexsort((accounts, -scores))][:k]


def _read(keys: NDArray[np.float64], accounts: NDArray[np.int64]) -> NDArray[np.float64]:
    known = accounts < len(keys)
    return np.where(known, keys[np.where(known, accounts, 0)], NEVER)
