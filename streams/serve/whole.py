"""The whole: candidates of the index and of the nominators, ranked by one learned score of towers and pairs."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kithstream.models.features import HALF_LIVES, IN, OUT, Rows
from kithstream.models.ranker import SOURCES, Asker, PairFeatures, Pairs, Weights, pair_features
from kithstream.streams.config import RankingConfig
from kithstream.streams.engine.partition import FOLLOWEES as FOLLOWEE_LIST
from kithstream.streams.engine.partition import FOLLOWERS as FOLLOWER_LIST
from kithstream.streams.engine.partition import ROW_OUT
from kithstream.streams.engine.shard import Readable
from kithstream.streams.serve import facts, nominators
from kithstream.streams.serve.facts import Facts, Hops, Neighbours
from kithstream.streams.serve.nominators import About, Around, match
from kithstream.streams.state import counters, ledger, recent
from kithstream.streams.state.counters import Kind
from kithstream.streams.state.protocol import Column
from kithstream.streams.state.reader import not_followed
from kithstream.streams.state.recent import Entry

SCANNED: Final = 256  # followers of an account at most where all are looked at for whom it does not follow
LOOKED_UP: Final = 64  # of them at a time
_FOLLOWEES_TOTAL: Final = counters.cell(0, Kind.TOTAL, 0)  # of the row of what an account did
_TOWERS: Final = SOURCES.index("towers")
_POPULAR: Final = SOURCES.index("popular")
_WEEK: Final = HALF_LIVES.index(7 * 86400.0)
_ELSEWHERE: Final = 32.0  # above any log of followers
_NO_HOPS: Final = Hops(np.zeros(0, np.int32), np.zeros(0))


class Pool(NamedTuple):
    """Everybody who is ranked for one account."""

    names: Sequence[str]  # n
    scores: NDArray[np.float32]  # (n,) of the towers
    places: NDArray[np.int64]  # (n,) among the index's hits; their number for all others
    sources: NDArray[np.bool_]  # (n, len(SOURCES))


class Nominated(NamedTuple):
    """Who was named beside the index, and what was found on the way."""

    sources: Mapping[str, Sequence[int]]  # by account: places in SOURCES
    hops: tuple[Hops, Hops, Hops]


class Whole:
    """Names candidates for an account and tells the ranker about pairs. Any thread may ask."""

    def __init__(self, facts: Facts, config: RankingConfig) -> None:
        self.facts = facts
        self.config = config
        self.nominators = nominators.made(config.nominators, facts)

    def nominate(self, about: About, languages: Collection[int], hidden: Collection[str]) -> Nominated:
        """Name accounts for one that asks."""
        held = self.facts
        with held.lock:
            followees = _known(held, about.followees)
            newest = about.followers[: nominators.FOLLOWERS]  # beyond them are only some
            followers = _known(held, [name for _, name in newest])
            hops = held.co_followed(followees), held.followed_by(followees), held.followed_by(followers)
            told = Around(
                [name for _, name in about.followers],
                followees,
                hops,
                _spoken(about, languages),
                about.interests,
                hidden,
            )
            sources: dict[str, list[int]] = {}
            for source, nominator in self.nominators.items():
                for name in nominator.nominate(told, self.config.nominated):
                    sources.setdefault(name, []).append(SOURCES.index(source))
        return Nominated(sources, hops)

    def most_followed(
        self, about: About, k: int, languages: Collection[int], hidden: Collection[str]
    ) -> Nominated:
        """Name whom an account of which nothing is known is shown: the most followed of its languages, and of all."""
        held = self.facts
        with held.lock:
            tops = [top for language in sorted(_spoken(about, languages)) for top in held.most(language)]
            lists = [top.best(k, hidden) for top in (*tops, *held.popular)]
        named = {name: (_POPULAR,) for best in lists for name in best}
        return Nominated(named, (_NO_HOPS,) * 3)

    def followed(
        self, names: Sequence[str], about: About, languages: Collection[int], as_of: int
    ) -> list[float]:
        """The score of each account for one of which nothing is known: log(1 + new followers), half-life 7 days.

        Those of other languages come behind all of its own.
        """
        held = self.facts
        with held.lock:
            seen = held.seen(held.numbers_of(names), as_of)
        scores = np.log1p(seen.counts[:, IN, _WEEK])
        if spoken := _spoken(about, languages):
            scores -= np.where(np.isin(seen.languages, list(spoken)), 0.0, _ELSEWHERE)
        found: list[float] = scores.astype(np.float32).tolist()
        return found

    def features(self, pool: Pool, about: About, hops: tuple[Hops, Hops, Hops], as_of: int) -> PairFeatures:
        """What the ranker reads of a pool, as of a time in microseconds."""
        held = self.facts
        with held.lock:
            numbers = held.numbers_of(pool.names)
            seen = held.seen(numbers, as_of)
            counted = [held.gained(one, numbers) for one in hops]
            counted.append(held.common_followers(_known(held, about.followees), numbers))
        n = len(pool.names)
        since = {name: max(as_of - time, 0) / 1e6 for time, name in about.followers}
        latest: dict[str, float] = {}
        often: dict[str, int] = {}
        for name, age in about.engaged:
            latest[name] = min(age, latest.get(name, np.inf))
            often[name] = often.get(name, 0) + 1
        return pair_features(
            Pairs(
                asker=Asker(*about.degrees, about.last),
                scores=pool.scores,
                places=pool.places,
                sources=pool.sources,
                counts=seen.counts,
                engaged_counts=seen.engaged_counts,
                ages=seen.ages,
                degrees=seen.degrees,
                hops=np.stack(counted, axis=1),
                follows_you=np.fromiter((since.get(name, np.inf) for name in pool.names), np.float64, n),
                engaged=np.fromiter((latest.get(name, np.inf) for name in pool.names), np.float64, n),
                engagements=np.fromiter((often.get(name, 0) for name in pool.names), np.int64, n),
                community=match(about.interests, seen.communities, seen.weights),
                known_for=(seen.known_for == about.known_for) & (seen.known_for >= 0),
                language=(seen.languages == about.language) & (seen.languages > 0),
            )
        )

    def scored(
        self,
        weights: Weights,
        pool: Pool,
        about: About,
        hops: tuple[Hops, Hops, Hops],
        as_of: int,
    ) -> list[float]:
        """The one score of each of a pool: a logit, as the towers' is."""
        extra = weights.extra(self.features(pool, about, hops, as_of))
        whole: list[float] = (pool.scores + extra).astype(np.float32).tolist()
        return whole


def unknown(about: About) -> bool:
    """Whether nothing is known of an account but what it says of itself."""
    return not (any(about.degrees) or about.followers or about.followees or about.engaged or about.interests)


def about(partition: Readable, rows: Rows, at: int = 0) -> About:
    """Return what is told of one of the accounts that were read, which lives in the partition."""
    name = rows.accounts[at].encode()
    keys = FOLLOWER_LIST + name, FOLLOWEE_LIST + name
    lists = partition.load_recents(keys)
    followers, followees = (lists[key].entries for key in keys)
    numbers, weights = rows.interests[at].tolist(), rows.interest_weights[at].tolist()
    followed_by, follows, mutual = rows.degrees[at].tolist()
    named = followers[: nominators.FOLLOWERS]
    if mutual < followed_by and len(named) < followed_by <= SCANNED:
        named = named + _waiting(partition, rows.accounts[at], named)
    return About(
        [(-time, other) for time, other in named],
        [other for _, other in followees[: nominators.FOLLOWEES]],
        (followed_by, follows, mutual),
        float(rows.last[at, OUT]),
        list(zip(rows.engaged[at], rows.engaged_ages[at].tolist(), strict=False)),
        int(rows.languages[at]),
        int(rows.known_for[at]),
        [(number, weight) for number, weight in zip(numbers, weights, strict=True) if number >= 0],
    )


def _waiting(partition: Readable, account: str, newest: Sequence[Entry]) -> list[Entry]:
    """The newest of those followers of an account whom it does not follow back, beyond its newest followers."""
    prefix, known = ledger.follows_of(account), set(newest)
    present = recent.present(prefix, partition.store.scan(Column.IN, prefix))
    older = sorted(entry for entry in present if entry not in known)
    found: list[Entry] = []
    for first in range(0, len(older), LOOKED_UP):
        found += not_followed(partition, account, older[first : first + LOOKED_UP])
        if len(found) >= nominators.FOLLOWERS:
            break
    return found[: nominators.FOLLOWERS]


def neighbours(partition: Readable, accounts: Sequence[str]) -> Neighbours:
    """Read the newest neighbours of accounts of a partition, as facts hold them."""
    names = [account.encode() for account in accounts]
    lists = partition.load_recents(
        [letter + name for name in names for letter in (FOLLOWER_LIST, FOLLOWEE_LIST)]
    )
    rows = partition.load_rows([ROW_OUT + name for name in names])
    return Neighbours(
        [[other for _, other in lists[FOLLOWER_LIST + name].entries[: facts.FOLLOWERS]] for name in names],
        [[other for _, other in lists[FOLLOWEE_LIST + name].entries[: facts.FOLLOWEES]] for name in names],
        [counters.count_of(rows[ROW_OUT + name], _FOLLOWEES_TOTAL) for name in names],
    )


def pooled(scored: Sequence[tuple[str, float]], hits: int, nominated: Mapping[str, Sequence[int]]) -> Pool:
    """A pool of accounts with the towers' scores, of whom the first are the index's hits, best first."""
    scores = np.array([score for _, score in scored], np.float32)
    sources = np.zeros((len(scored), len(SOURCES)), np.bool_)
    sources[:hits, _TOWERS] = True
    for at, (name, _) in enumerate(scored):
        if name in nominated:
            sources[at, nominated[name]] = True
    places = np.arange(len(scored))
    places[hits:] = np.searchsorted(-scores[:hits], -scores[hits:])
    return Pool([name for name, _ in scored], scores, places, sources)


def _spoken(about: About, languages: Collection[int]) -> Collection[int]:
    """The languages that are asked for, or else the account's own."""
    return languages or ({about.language} if about.language else ())


def _known(held: Facts, names: Sequence[str]) -> NDArray[np.int32]:
    numbers = held.numbers_of(names)
    return numbers[numbers > 0]
