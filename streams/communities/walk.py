"""Communities of producers by a Metropolis-Hastings walk, as in SimClusters' KnownFor (Satuluri et al. 2020, 4.1).

A producer v likes a community c the better the more of its neighbours are in it, and the fewer members that are
none: with tp neighbours of total weight tw among |c| members, n producers, degree d and total weight W of v,

    L(c) = 10 tw + (n - |c| - (d - tp)) W / d

v proposes argmax of L(c) + Gumbel(0, 1) over the communities of its neighbours and an empty one, its own left
out, and moves with probability min(1, exp((L(new) - L(old)) / heat)). The heat falls from epoch to epoch until
fewer than one producer in a hundred moves.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

import msgspec
import numpy as np

from kithstream.streams.communities.graph import Numbers, ProducerGraph, Weights, spans

PARTS: Final = 64  # of an epoch: producers of a part move at once, on what they saw before it


class WalkConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How long and how hot the walk is; heat and likings are in weights of a mean edge."""

    attraction: float = 10.0  # of a neighbour, as many times the repulsion of a member that is none
    heat: float = 10.0  # at first, of a walk that starts with everybody alone
    warm_heat: float = 2.0  # at first, of a walk that starts with an earlier version: scaleCoeff .5
    cooling: float = 0.8  # of the heat in each epoch
    settled: float = 0.01  # share of moves below which it ends
    epochs: int = 60  # at most


class Walked(NamedTuple):
    """Where the producers ended up."""

    community: Numbers  # (p,) a producer may be alone; the numbers have gaps
    epochs: int
    moved: float  # share of producers in the last epoch


class _State(NamedTuple):
    community: Numbers  # (p,)
    sizes: Numbers  # by community
    weights: Weights  # (e,) a mean edge has 1
    means: Weights  # (p,) W / d


def walk(
    graph: ProducerGraph,
    draw: np.random.Generator,
    config: WalkConfig,
    start: Numbers | None = None,
    on_epoch: Callable[[int, float], None] = lambda epoch, moved: None,
) -> Walked:
    """Return communities; `start` (p,) has those of an earlier version, -1 where there is none.

    Producers without neighbours stay where they are. The same seed gives the same communities.
    """
    n = len(graph.producers)
    community = np.full(n, -1, np.int64) if start is None else start.astype(np.int64)
    strangers = np.flatnonzero(community < 0)
    community[strangers] = community.max(initial=-1) + 1 + np.arange(len(strangers))
    heat = config.heat if start is None else config.warm_heat
    degrees = graph.degrees
    weights = graph.weights / (graph.weights.mean() if len(graph.weights) else 1.0)
    totals = np.bincount(graph.rows(), weights, n)
    # As many empty communities as there are producers are always left.
    sizes = np.bincount(community, minlength=int(community.max(initial=-1)) + 1 + 2 * n)
    state = _State(community, sizes, weights, totals / np.maximum(degrees, 1))
    movable = np.flatnonzero(degrees)
    epoch, moved = 0, 0.0
    while epoch < config.epochs and len(movable):
        parts = np.array_split(draw.permutation(movable), min(PARTS, len(movable)))
        moved = sum(_move(graph, state, part, draw, config.attraction, heat) for part in parts) / len(movable)
        epoch += 1
        heat *= config.cooling
        on_epoch(epoch, moved)
        if moved < config.settled:
            break
    return Walked(community, epoch, moved)


def _move(
    graph: ProducerGraph,
    state: _State,
    part: Numbers,  # (b,) producers with neighbours
    draw: np.random.Generator,
    attraction: float,
    heat: float,
) -> int:
    """Let some producers move; return how many did."""
    community, sizes = state.community, state.sizes
    b = len(part)
    degree = graph.degrees[part]
    entries = spans(graph.starts[part], degree)
    own = community[part]
    paired = np.flatnonzero(sizes[own] > 1)  # who is alone gains nothing by being alone elsewhere
    empty = np.flatnonzero(sizes == 0)[: len(paired)]
    row = np.concatenate([np.repeat(np.arange(b), degree), np.arange(b), paired])
    place = np.concatenate([community[graph.neighbours[entries]], own, empty])
    neighbour = np.arange(len(row)) < len(entries)
    weight = np.zeros(len(row))
    weight[: len(entries)] = state.weights[entries]
    order = np.lexsort((place, row))
    key = (row * len(sizes) + place)[order]
    begin = np.flatnonzero(np.diff(key, prepend=-1))
    row, place = row[order][begin], place[order][begin]  # (k,) one for each candidate
    tp = np.add.reduceat(neighbour[order].astype(np.int64), begin)
    tw = np.add.reduceat(weight[order], begin)
    mine = place == own[row]
    # n - d is the same for all candidates of v, and left out.
    liking = attraction * tw - (sizes[place] - mine - tp) * state.means[part][row]
    drawn = np.where(mine, -np.inf, liking + draw.gumbel(size=len(liking)))
    best = np.lexsort((drawn, row))[np.searchsorted(row, np.arange(b), side="right") - 1]
    gain = liking[best] - liking[mine]
    going = np.log(draw.random(b)) * heat < gain
    goal = place[best][going]
    np.subtract.at(sizes, own[going], 1)
    np.add.at(sizes, goal, 1)
    community[part[going]] = goal
    return int(going.sum())
