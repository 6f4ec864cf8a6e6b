"""Why a candidate is shown: what would be had the account not done one thing, for each thing that it did in public.

The counterfactual is made by the engine's own fold over a copy of the account's state, so it is exact by
construction: the rows and the vector are, bit for bit, those of a runtime in which the events were retracted. What
differs is the account's own row alone. Candidates keep their vectors and the account its present exclusions: whoever
was followed does not become a candidate by being unfollowed in thought.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from itertools import islice
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kithstream.index.protocol import Queryable
from kithstream.models.features import Rows
from kithstream.streams.config import EngineConfig
from kithstream.streams.engine.counterfactual import Counterfactual, Variants
from kithstream.streams.engine.deeds import Deed, deeds
from kithstream.streams.engine.shard import Reads
from kithstream.streams.serve.answers import Because
from kithstream.streams.state.reader import Reader

CONSIDERED: Final = 64  # newest public deeds that are taken out in turn
_SMALL: Final = 64  # rows that a thought remembers


class Group(NamedTuple):
    """Everything considered that an account did about another one: one reason."""

    other: str
    deeds: Sequence[Deed]  # newest first


class Thought(NamedTuple):
    """The account as it is, and without each group of its deeds in turn."""

    groups: Sequence[Group]  # n
    rows: Rows  # of 1 + n accounts, each the same one


class Allowed(NamedTuple):
    """Who is ranked: as a question to the index says it."""

    exclude: Collection[str]
    allow: Collection[str] | None = None
    labels: Collection[int] | None = None


class Standing(NamedTuple):
    """Where a candidate stands, and what carries it."""

    score: float
    rank: int
    because: Sequence[Because]


class Thinking:
    """Reads an account as it would be. One thread at a time, as its partitions are read."""

    def __init__(self, reads: Reads, reader: Reader) -> None:
        self._reads = reads
        self._reader = reader
        self._kept: dict[int, Counterfactual] = {}

    def read(self, account: str, as_of: int, unnamed: Collection[str]) -> Thought:
        """Return the account without each of its newest public deeds, by whom they were about.

        Nothing about accounts that are unnamed or were deleted is considered. The caller sees to it that all of it is
        of one state.
        """
        number = self._reads.route[account]
        partition, made = self._reads.at(number), self._partition(number)
        silent: dict[str, bool] = dict.fromkeys(unnamed, True)

        def may_be_named(other: str) -> bool:
            if other not in silent:
                silent[other] = partition.is_deleted(other)
            return not silent[other]

        groups: dict[str, list[Deed]] = {}
        for deed in deeds(made.partition, account, CONSIDERED, may_be_named):
            groups.setdefault(deed.other, []).append(deed)
        states = [made.without(group) for group in ([], *groups.values())]
        variants = Variants(account, states, number, made.known)
        rows = self._reader.over(variants).read(variants.names, as_of, unreciprocated=True)
        return Thought(
            [Group(*pair) for pair in groups.items()], rows._replace(accounts=[account] * len(states))
        )

    def _partition(self, number: int) -> Counterfactual:
        readable, route = self._reads.at(number), self._reads.route
        known = None if readable.communities is None else readable.communities.known
        kept = self._kept.get(number)
        if kept is None or kept.below is not readable.store or kept.known is not known:
            config = EngineConfig(partitions=route.partitions, row_cache=_SMALL)
            kept = self._kept[number] = Counterfactual(readable.store, number, route, config, known)
        kept.refresh()
        return kept


def standings(
    index: Queryable,
    groups: Sequence[Group],
    vectors: NDArray[np.float32],
    candidates: Sequence[str],
    allowed: Allowed,
    most: int,
) -> list[Standing | None]:
    """Return where candidates stand, each with at most `most` reasons; None for one that is in the index no more.

    `vectors` is (1 + n, dim): the account as it is, then without each group. Takes no lock. Costs a score for each
    group and candidate, and one pass over the index for the ranks of those that are told.
    """
    scores = np.stack([index.scores(vector, candidates) for vector in vectors]).astype(np.float64)
    change = scores[0] - scores[1:]  # (n, c)
    told: list[list[int]] = []  # of each candidate: the vectors that are told of it, its own first
    for at in range(len(candidates)):
        order = np.argsort(-change[:, at], kind="stable")  # newest first where nothing tells them apart
        told.append([0, *[1 + group for group in order.tolist() if change[group, at] != 0.0][:most]])
    needed = sorted({place for places in told for place in places})
    row = {place: at for at, place in enumerate(needed)}
    ranks = index.ranks(
        vectors[needed],
        [(row[place], name) for name, places in zip(candidates, told, strict=True) for place in places],
        exclude=allowed.exclude,
        allow=allowed.allow,
        labels=allowed.labels,
    )
    pairs = iter(zip(ranks.scores.tolist(), ranks.ranks.tolist(), strict=True))
    return [_standing([groups[place - 1] for place in places[1:]], pairs) for places in told]


def _standing(groups: Sequence[Group], pairs: Iterator[tuple[float, int]]) -> Standing | None:
    """One candidate's standing, from its own pair and one for each group."""
    score, rank = next(pairs)
    because = [
        _because(group, without, place, score, rank)
        for group, (without, place) in zip(groups, islice(pairs, len(groups)), strict=True)
    ]
    if not rank:
        return None
    because.sort(key=lambda reason: -reason.score_change)  # the index may have moved on since the choice
    return Standing(score, rank, because)


def _because(group: Group, without: float, place: int, score: float, rank: int) -> Because:
    signals = Counter(deed.signal for deed in group.deeds)
    return Because(group.other, signals, group.deeds[0].time, without, place, score - without, place - rank)
