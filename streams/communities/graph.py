"""Which producers have an audience in common: SimClusters' producer-producer graph.

Two producers are as near as the cosine of their sets of followers, |F_p & F_q| / sqrt(|F_p| |F_q|) (Satuluri et
al. 2020, section 4.1). Each keeps its strongest neighbours, and an edge is there if either end keeps it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.int64]
Weights = NDArray[np.float64]

BOUND: Final = 4_000_000  # pairs counted at once: about 200 MB


class GraphConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which producers and edges there are."""

    min_followers: int = 3  # of a producer
    min_common: int = 1  # followers that both ends of an edge have
    neighbours: int = 100  # strongest ones that a producer keeps


class ProducerGraph(NamedTuple):
    """A symmetric graph over p producers in rows: row i is `neighbours[starts[i]:starts[i + 1]]`, ascending."""

    producers: Numbers  # (p,) numbers of accounts, ascending
    starts: Numbers  # (p + 1,)
    neighbours: Numbers  # (e,) places in `producers`; each edge stands in both rows
    weights: Weights  # (e,) above 0, at most 1

    @property
    def degrees(self) -> Numbers:
        """Number of neighbours, (p,)."""
        return np.diff(self.starts)

    def rows(self) -> Numbers:
        """Return the row of each entry, (e,)."""
        return np.repeat(np.arange(len(self.producers)), self.degrees)


def producer_graph(
    source: Numbers, target: Numbers, config: GraphConfig, bound: int = BOUND
) -> ProducerGraph:
    """Return the graph of the targets of a follow graph of different pairs; `bound` holds its memory.

    The cost is the sum of squares of how many producers each account follows.
    """
    if config.min_followers < 1 or config.neighbours < 1 or config.min_common < 1:
        raise ValueError(
            f"min_followers is {config.min_followers}, min_common {config.min_common}, neighbours "
            f"{config.neighbours}: at least 1 each is due"
        )
    followers = np.bincount(target, minlength=1) if len(target) else np.zeros(0, np.int64)
    producers = np.flatnonzero(followers >= config.min_followers)
    place = np.full(len(followers), -1, np.int64)
    place[producers] = np.arange(len(producers))
    kept = place[target] >= 0
    source, target = source[kept], place[target[kept]]
    parts = [
        _strongest(*rows, config.neighbours)
        for rows in _cosines(source, target, len(producers), config, bound)
    ]
    first, second, weight = (
        np.concatenate([np.zeros(0), *(part[column] for part in parts)]) for column in range(3)
    )
    return symmetric(producers, first.astype(np.int64), second.astype(np.int64), weight)


def symmetric(producers: Numbers, first: Numbers, second: Numbers, weight: Weights) -> ProducerGraph:
    """Return the graph with each edge in both directions once; an edge that comes twice has one weight."""
    n = max(len(producers), 1)
    pair, at = np.unique(np.concatenate([first * n + second, second * n + first]), return_index=True)
    starts = np.searchsorted(pair // n, np.arange(len(producers) + 1))
    return ProducerGraph(producers, starts, pair % n, np.concatenate([weight, weight])[at])


def _cosines(
    source: Numbers, target: Numbers, n: int, config: GraphConfig, bound: int
) -> Iterator[tuple[Numbers, Numbers, Weights]]:
    """Yield rows of cosines: first producer, second producer, cosine; a row is not split."""
    by_source = np.argsort(source, kind="stable")
    followed = target[by_source]  # producers by follower
    begin, end = (np.searchsorted(source[by_source], source, side=side) for side in ("left", "right"))
    by_target = np.argsort(target, kind="stable")
    begin, length = (
        begin[by_target],
        (end - begin)[by_target],
    )  # each follow of a producer: the follower's list
    starts = np.searchsorted(target[by_target], np.arange(n + 1))
    size = np.diff(starts)
    work = np.concatenate([[0], np.cumsum(length)])  # pairs before each follow
    row = 0
    while row < n:
        last = int(np.searchsorted(work[starts], work[starts[row]] + bound, side="right")) - 1
        if last <= row:  # a row of more than `bound` pairs
            last = row + 1
            counts = np.zeros(n, np.int64)
            at = starts[row]
            while at < starts[last]:
                until = max(int(np.searchsorted(work, work[at] + bound, side="right")) - 1, at + 1)
                until = min(until, int(starts[last]))
                counts += np.bincount(followed[spans(begin[at:until], length[at:until])], minlength=n)
                at = until
            second = np.flatnonzero(counts)
            first, common = np.full(len(second), row), counts[second]
        else:
            part = slice(starts[row], starts[last])
            near = followed[spans(begin[part], length[part])]
            own = np.repeat(np.repeat(np.arange(row, last), size[row:last]), length[part])
            pair, common = np.unique(own * n + near, return_counts=True)
            first, second = pair // n, pair % n
        kept = (first != second) & (common >= config.min_common)
        first, second, common = first[kept], second[kept], common[kept]
        # One root of the product, so that both directions have the same bits.
        yield first, second, common / np.sqrt((size[first] * size[second]).astype(np.float64))
        row = last


def spans(begin: Numbers, length: Numbers) -> Numbers:
    """Return the numbers of several ranges, one after the other.

    >>> spans(np.array([5, 0]), np.array([2, 3])).tolist()
    [5, 6, 0, 1, 2]
    """
    shift = begin - np.cumsum(length) + length
    return np.arange(int(length.sum())) + np.repeat(shift, length)


def _strongest(
    first: Numbers, second: Numbers, weight: Weights, most: int
) -> tuple[Numbers, Numbers, Weights]:
    """The heaviest edges of each row; at equal weights the smaller number."""
    order = np.lexsort((second, -weight, first))
    first = first[order]
    kept = np.arange(len(first)) - np.searchsorted(first, first) < most
    return first[kept], second[order][kept], weight[order][kept]
