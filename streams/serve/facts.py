"""What nominators and the ranker read of accounts: arrays by account, written where vectors are written.

Candidates are held as `marks`, which need no refreshing; neighbour lists hold numbers of accounts in place of names.
About 550 bytes and a name for every account that is known; the number of one that was deleted is given to nobody else.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kithstream.models import checkpoint
from kithstream.models.checkpoint import Array, Checkpoint
from kithstream.models.features import HALF_LIVES, IN, Rows
from kithstream.streams.serve.marks import COMMUNITIES, DAY, SCALE, Marks, marks
from kithstream.streams.serve.tops import NEVER, Top

FOLLOWERS: Final = 32  # newest followers held of an account: as many as the state keeps exact under undo
FOLLOWEES: Final = 20  # newest followees held of an account
POPULAR: Final = (1, 3, 4)  # half-lives by which the most followed are kept: 1 h, 1 d, 7 d
_KEPT: Final = 256  # of the most followed, overall and of each language and community
_NOBODY: Final = 0

Numbers = NDArray[np.int32]


class Neighbours(NamedTuple):
    """The newest neighbours of accounts, newest first; names beyond those that are held are left out."""

    followers: Sequence[Sequence[str]]  # n x <= FOLLOWERS
    followees: Sequence[Sequence[str]]  # n x <= FOLLOWEES
    degrees: Sequence[int]  # n: accounts that it follows


class Seen(NamedTuple):
    """What n candidates are like at a time."""

    counts: NDArray[np.float64]  # (n, 2, 7) follows in and out, decayed
    engaged_counts: NDArray[np.float64]  # (n, 2) engagements in and out at 1 d
    ages: NDArray[np.float64]  # (n, 3) seconds: since the last event in, the last out, the first
    degrees: NDArray[np.int64]  # (n, 3)
    languages: NDArray[np.int32]  # (n,)
    known_for: NDArray[np.int32]  # (n,)
    communities: NDArray[np.int32]  # (n, COMMUNITIES)
    weights: NDArray[np.float32]  # (n, COMMUNITIES)
    listed: NDArray[np.bool_]  # (n,) False for one that is nobody's candidate


class Hops(NamedTuple):
    """Accounts two steps away with what they gained, in the order in which they are met."""

    numbers: Numbers
    gained: NDArray[np.float64]


class Facts:
    """Facts by number of an account, 0 is nobody. Whoever reads holds the lock: numbers and arrays belong together."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.names: list[str] = [""]
        self.popular = [Top(_KEPT, partial(self._everyone, half_life)) for half_life in POPULAR]
        self.popular_of: dict[int, list[Top]] = {}  # by language
        self.community: dict[int, Top] = {}
        self._numbers: dict[str, int] = {}
        self._allocate(1024)

    # -- writing ---------------------------------------------------------------------------------------------

    def write(self, rows: Rows) -> None:
        """Take over what candidates were encoded from."""
        self.take(rows.accounts, marks(rows))

    def take(self, accounts: Sequence[str], told: Marks) -> None:
        """Take over what is told of candidates."""
        with self.lock:
            at = self._numbered(accounts)
            self._list(at, accounts, told)
            self._keys[at] = told.follows
            self._engaged[at] = told.engaged
            self._times[at] = told.times
            self._degrees[at] = told.degrees
            self._languages[at] = told.languages
            self._known_for[at] = told.known_for
            self._communities[at] = told.communities
            self._weights[at] = told.weights
            self._listed[at] = True

    def link(self, accounts: Sequence[str], neighbours: Neighbours) -> None:
        """Take over the newest neighbours of accounts."""
        with self.lock:
            at = self._numbered(accounts)
            self._followers[at] = self._padded(neighbours.followers, FOLLOWERS)
            self._followees[at] = self._padded(neighbours.followees, FOLLOWEES)
            self._weight[at] = 1.0 / np.sqrt(1.0 + np.array(neighbours.degrees, np.float64))

    def unlink(self, accounts: Iterable[str]) -> None:
        """Take note that accounts have no neighbours."""
        with self.lock:
            at = self.numbers_of(accounts)
            self._followers[at] = self._followees[at] = _NOBODY
            self._weight[at] = 1.0

    def drop(self, accounts: Iterable[str]) -> None:
        """Take note that accounts are nobody's candidates any more."""
        with self.lock:
            for name in accounts:
                if (at := self._numbers.get(name)) is not None and self._listed[at]:
                    self._unlist(name, at)

    def forget(self, accounts: Iterable[str]) -> None:
        """Forget accounts, and their names."""
        with self.lock:
            gone = [self._numbers.pop(name) for name in accounts if name in self._numbers]
            for at in gone:
                if self._listed[at]:
                    self._unlist(self.names[at], at)
                self.names[at] = ""
                self._followers[at] = self._followees[at] = _NOBODY
            if gone:
                for table in (self._followers, self._followees):
                    table[np.isin(table, gone)] = _NOBODY

    # -- reading ---------------------------------------------------------------------------------------------

    def numbers_of(self, accounts: Iterable[str]) -> Numbers:
        """(n,) Numbers of accounts, 0 for one that is not known."""
        get = self._numbers.get
        return np.array([get(name, _NOBODY) for name in accounts], np.int32)

    def listed(self, numbers: Numbers) -> NDArray[np.bool_]:
        """Which are candidates."""
        return self._listed[numbers]

    def seen(self, numbers: Numbers, as_of: int) -> Seen:
        """What accounts are like at a time in microseconds."""
        now = as_of / 1e6
        counts = np.exp2(self._keys[numbers] - now * SCALE)
        engaged = np.exp2(self._engaged[numbers] - now * SCALE[DAY])
        return Seen(
            counts,
            engaged,
            np.maximum(now - self._times[numbers], 0.0),
            self._degrees[numbers],
            self._languages[numbers],
            self._known_for[numbers],
            self._communities[numbers],
            self._weights[numbers],
            self._listed[numbers],
        )

    def co_followed(self, followees: Numbers) -> Hops:
        """Whom the followers of an account's followees follow: each of them gains 1 / sqrt(1 + followees) of those."""
        between = self._followers[followees].ravel()
        between = between[between != _NOBODY]
        reached = self._followees[between]
        weights = np.broadcast_to(self._weight[between][:, None], reached.shape)
        there = reached != _NOBODY
        return self._summed(reached[there], weights[there])

    def followed_by(self, accounts: Numbers) -> Hops:
        """Whom accounts follow: each gains 1 by each."""
        reached = self._followees[accounts].ravel()
        reached = reached[reached != _NOBODY]
        return self._summed(reached, np.ones(len(reached)))

    def gained(self, hops: Hops, numbers: Numbers) -> NDArray[np.float64]:
        """(n,) What accounts gained."""
        self._scratch[hops.numbers] = hops.gained
        found: NDArray[np.float64] = self._scratch[numbers]
        self._scratch[hops.numbers] = 0.0
        return found

    def common_followers(self, followees: Numbers, numbers: Numbers) -> NDArray[np.float64]:
        """(n,) How many of an account's followees are among the newest followers of each account."""
        self._scratch[followees] = 1.0
        self._scratch[_NOBODY] = 0.0
        found: NDArray[np.float64] = self._scratch[self._followers[numbers]].sum(axis=1)
        self._scratch[followees] = 0.0
        return found

    def most(self, language: int) -> list[Top]:
        """The most followed of a language, by half-life; none for a language that nobody has."""
        return self.popular_of.get(language, []) if language else []

    # -- keeping ---------------------------------------------------------------------------------------------

    def candidates(self) -> list[str]:
        """Every candidate, in the order of their numbers."""
        return self._named(np.flatnonzero(self._listed))

    def languages(self, accounts: Sequence[str]) -> Numbers:
        """(n,) Languages of accounts, 0 if unknown."""
        return self._languages[self.numbers_of(accounts)]

    def exposed(self, shown: Iterable[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(n,) and (n,) Followers of every candidate, and how often it is among those that were shown."""
        times = np.bincount(self.numbers_of(shown), minlength=len(self._listed))[: len(self._listed)]
        return self._degrees[self._listed, 0], times[self._listed]

    def arrays(self) -> dict[str, Array]:
        """Content by name, for a checkpoint."""
        return self.capture()()

    def capture(self) -> Callable[[], dict[str, Array]]:
        """Copy the content as it is; return what makes `arrays` of the copy, later and in any thread."""
        with self.lock:
            names = list(self.names)
            copied = {f"facts.{name[1:]}": getattr(self, name)[: len(names)].copy() for name in _TABLES}

        def arrays() -> dict[str, Array]:
            packed, ends = checkpoint.packed(names)
            return {"facts.names": packed, "facts.ends": ends, **copied}

        return arrays

    def restore(self, saved: Checkpoint) -> None:
        """Take over the content of a checkpoint; for facts without any. Raises CheckpointError."""
        raw = saved.array("facts.names", (-1,), np.uint8).tobytes()
        ends = saved.array("facts.ends", (-1,), np.int64).tolist()
        self.names = [raw[a:b].decode() for a, b in pairwise([0, *ends])]
        self._numbers = {name: number for number, name in enumerate(self.names) if name}
        used = len(self.names)
        self._allocate(max(used, 1024))
        for name in _TABLES:
            table = getattr(self, name)
            table[:used] = saved.array(f"facts.{name[1:]}", (used, *table.shape[1:]), table.dtype.type)
        at = np.flatnonzero(self._listed).astype(np.int32)
        told = Marks(
            self._keys[at],
            self._engaged[at],
            self._times[at],
            self._degrees[at],
            self._languages[at],
            self._known_for[at],
            self._communities[at],
            self._weights[at],
        )
        self._list(at, self._named(at), told)

    # -- inside ----------------------------------------------------------------------------------------------

    def _summed(self, reached: Numbers, weights: NDArray[np.float64]) -> Hops:
        if not len(reached):
            return Hops(np.zeros(0, np.int32), np.zeros(0))
        places = np.arange(len(reached), dtype=np.int32)
        self._first[reached[::-1]] = places[::-1]  # of a repeated one the first place stays
        numbers = reached[self._first[reached] == places]
        np.add.at(self._scratch, reached, weights)
        gained = self._scratch[numbers]
        self._scratch[numbers] = 0.0
        return Hops(numbers, gained)

    def _list(self, at: Numbers, accounts: Sequence[str], told: Marks) -> None:
        """Move accounts in the lists of the most followed, overall, of their language and communities."""
        keys, languages = told.follows[:, IN, POPULAR].tolist(), told.languages.tolist()
        before = self._languages[at].tolist()
        for name, of, language, old in zip(accounts, keys, languages, before, strict=True):
            for top, key in zip(self.popular, of, strict=True):
                top.put(name, key)
            if old and old != language:
                for top in self.popular_of[old]:
                    top.put(name, NEVER)
            if language:
                if language not in self.popular_of:
                    self.popular_of[language] = [
                        Top(_KEPT, partial(self._everyone, half_life, language)) for half_life in POPULAR
                    ]
                for top, key in zip(self.popular_of[language], of, strict=True):
                    top.put(name, key)
        old_ones, new_ones = self._communities[at], told.communities
        some = np.flatnonzero((old_ones >= 0).any(axis=1) | (new_ones >= 0).any(axis=1))
        for place in some.tolist():
            name = accounts[place]
            entries = dict(zip(new_ones[place].tolist(), told.weights[place].tolist(), strict=True))
            for community in {*old_ones[place].tolist(), *entries} - {-1}:
                if community not in self.community:
                    self.community[community] = Top(_KEPT, partial(self._members, community))
                self.community[community].put(name, entries.get(community, NEVER))

    def _unlist(self, name: str, at: int) -> None:
        language = int(self._languages[at])
        tops = [*self.popular, *(self.popular_of[language] if language else ())]
        tops += [self.community[c] for c in set(self._communities[at].tolist()) - {-1}]
        for top in tops:
            top.put(name, NEVER)
        self._listed[at] = False
        self._languages[at] = 0
        self._communities[at] = -1

    def _everyone(self, half_life: int, language: int = 0) -> list[tuple[str, float]]:
        """Every candidate, or those of a language, with its key of a half-life."""
        chosen = self._listed & (self._languages == language) if language else self._listed
        at = np.flatnonzero(chosen)
        return list(zip(self._named(at), self._keys[at, IN, half_life].tolist(), strict=True))

    def _members(self, community: int) -> list[tuple[str, float]]:
        """Every candidate of whose audience a community is a part, with its weight."""
        at, place = np.nonzero((self._communities == community) & self._listed[:, None])
        return list(zip(self._named(at), self._weights[at, place].tolist(), strict=True))

    def _named(self, numbers: NDArray[np.integer[Any]]) -> list[str]:
        return [self.names[number] for number in numbers.tolist()]

    def _padded(self, lists: Sequence[Sequence[str]], width: int) -> Numbers:
        lengths = np.fromiter(map(len, lists), np.int64, len(lists))
        padded = np.zeros((len(lists), width), np.int32)
        padded[np.arange(width) < lengths[:, None]] = self._numbered(
            [name for part in lists for name in part]
        )
        return padded

    def _numbered(self, accounts: Sequence[str]) -> Numbers:
        numbers, names = self._numbers, self.names
        for name in accounts:
            if name not in numbers:
                numbers[name] = len(names)
                names.append(name)
        if len(names) > len(self._listed):
            self._grow(len(names))
        return np.array([numbers[name] for name in accounts], np.int32)

    def _allocate(self, capacity: int) -> None:
        self._keys = np.full((capacity, 2, len(HALF_LIVES)), NEVER)
        self._engaged = np.full((capacity, 2), NEVER)
        self._times = np.full((capacity, 3), NEVER)  # seconds since 1970
        self._degrees = np.zeros((capacity, 3), np.int64)
        self._languages = np.zeros(capacity, np.int32)
        self._known_for = np.full(capacity, -1, np.int32)
        self._communities = np.full((capacity, COMMUNITIES), -1, np.int32)
        self._weights = np.zeros((capacity, COMMUNITIES), np.float32)
        self._listed = np.zeros(capacity, np.bool_)
        self._followers = np.zeros((capacity, FOLLOWERS), np.int32)
        self._followees = np.zeros((capacity, FOLLOWEES), np.int32)
        self._weight = np.ones(capacity)
        self._scratch = np.zeros(capacity)
        self._first = np.zeros(capacity, np.int32)

    def _grow(self, needed: int) -> None:
        old = dict(vars(self))
        used = len(self._listed)
        self._allocate(max(needed, 2 * used))
        for name in _TABLES:
            getattr(self, name)[:used] = old[name]


_TABLES: Final = (
    "_keys",
    "_engaged",
    "_times",
    "_degrees",
    "_languages",
    "_known_for",
    "_communities",
    "_weights",
    "_listed",
    "_followers",
    "_followees",
    "_weight",
)
