"""Who else might be followed, beside whom the index names: from what is known anyway, without a model and a scan.

A nominator names accounts and decides nothing: what it names is looked up in the index with the question's own
exclusions and filters, as the index's hits are, and one learned score ranks all of them (`whole`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import islice, zip_longest
from typing import Final, NamedTuple, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from kithstream.streams.serve.facts import Facts, Hops, Numbers

FOLLOWEES: Final = 30  # newest followees gone out from
FOLLOWERS: Final = 32  # newest followers


class About(msgspec.Struct, frozen=True, array_like=True):
    """The account that asks, as pairs with it are ranked."""

    # With the times since which they are, microseconds: the newest, newest first; behind them, if they are no more than
    # `whole.SCANNED` in all, the newest others whom it does not follow back.
    followers: Sequence[tuple[int, str]]
    followees: Sequence[str]  # the newest, newest first
    degrees: tuple[int, int, int]  # followers, followees, followees that follow back
    last: float  # seconds since it did something, +inf if never
    engaged: Sequence[tuple[str, float]]  # whom it engaged with lately, and how many seconds ago
    language: int  # code, 0 if unknown
    known_for: int  # community, -1 if none
    interests: Sequence[tuple[int, float]]  # communities, largest first


class Around(NamedTuple):
    """The account that asks, as nominators see it. Good while the facts' lock is held."""

    followers: Sequence[str]
    followees: Numbers
    hops: tuple[Hops, Hops, Hops]  # co-followed, followed by followees, followed by followers
    languages: Collection[int]  # those that candidates are to have: its own, or those it asks for
    interests: Sequence[tuple[int, float]]  # communities, largest first
    hidden: Collection[str]  # whom no answer may hold; told to spare places


class Nominator(Protocol):
    """Names accounts for one that asks."""

    def nominate(self, around: Around, k: int) -> Sequence[str]:
        """At most `k` accounts, best first, none of them hidden; the facts' lock is held."""
        ...


class Popular:
    """Whoever is followed most lately, by several half-lives in turn: of its languages, and of all."""

    def __init__(self, facts: Facts) -> None:
        self._facts = facts

    def nominate(self, around: Around, k: int) -> Sequence[str]:
        tops = [top for language in sorted(around.languages) for top in self._facts.most(language)]
        lists = [top.shown(around.hidden) for top in (*tops, *self._facts.popular)]
        return _first(_in_turn(lists, k), k)


class TwoHop:
    """Whom those follow that follow what the account follows; then whom its followees follow, and its followers.

    Over its newest 30 followees x, the newest 32 followers y of each x, and the newest 20 followees z of each y: z
    gains 1 / sqrt(1 + number of followees of y) (`streams.yardsticks.TwoHop`, whose lists are a little longer).
    """

    def __init__(self, facts: Facts) -> None:
        self._facts = facts

    def nominate(self, around: Around, k: int) -> Sequence[str]:
        most = k + len(around.hidden)
        return _first(_in_turn((_shown(self._best(hops, most), around.hidden) for hops in around.hops), k), k)

    def _best(self, hops: Hops, most: int) -> Iterator[str]:
        """The candidates that gained most; of equals, whoever was met first."""
        numbers, gained = hops
        listed = self._facts.listed(numbers)
        numbers, gained = numbers[listed], gained[listed]
        if len(numbers) > most:
            least = np.partition(gained, len(gained) - most)[len(gained) - most]
            numbers, gained = numbers[gained >= least], gained[gained >= least]
        names = self._facts.names
        return (names[number] for number in numbers[np.argsort(-gained, kind="stable")].tolist())


class Reciprocal:
    """Whoever follows the account and is not followed by it, newest first (`About.followers` says how many)."""

    def nominate(self, around: Around, k: int) -> Sequence[str]:
        return _first(_shown(around.followers, around.hidden), k)


class Communities:
    """Whoever is known best in the communities of the account's interest."""

    def __init__(self, facts: Facts) -> None:
        self._facts = facts

    def nominate(self, around: Around, k: int) -> Sequence[str]:
        tops = [
            self._facts.community[number] for number, _ in around.interests if number in self._facts.community
        ]
        return _first(_in_turn((top.shown(around.hidden) for top in tops), k), k)


def made(names: Iterable[str], facts: Facts) -> dict[str, Nominator]:
    """The nominators of these names, in this order."""
    known: dict[str, Nominator] = {
        "popular": Popular(facts),
        "two_hop": TwoHop(facts),
        "reciprocal": Reciprocal(),
        "communities": Communities(facts),
    }
    return {name: known[name] for name in names}


def match(
    interests: Sequence[tuple[int, float]], communities: NDArray[np.int32], weights: NDArray[np.float32]
) -> NDArray[np.float64]:
    """(n,) Interest in communities times what n candidates' audiences are of them, both (n, communities)."""
    total = np.zeros(len(communities))
    for number, weight in interests:
        total += weight * np.where(communities == number, weights, 0.0).sum(axis=1)
    return total


def _shown(names: Iterable[str], hidden: Collection[str]) -> Iterator[str]:
    return (name for name in names if name not in hidden)


def _in_turn(lists: Iterable[Iterable[str]], k: int) -> Iterator[str]:
    """The first of each, the second of each, and so on, of the first `k` of each."""
    turns = zip_longest(*(islice(one, k) for one in lists))
    return (name for turn in turns for name in turn if name is not None)


def _first(names: Iterable[str], k: int) -> list[str]:
    found: dict[str, None] = {}
    for name in names:
        found[name] = None
        if len(found) == k:
            break
    return list(found)
