"""Communities of producers by an annealed Metropolis-Hastings walk, as SimClusters makes KnownFor.

A producer v, of degree d and total weight W, proposes argmax of L(c) + Gumbel(0, 1) over the communities c of its
neighbours and an empty one, its own left out, and moves with probability min(1, exp((L(new) - L(old)) / heat)).
The heat falls from epoch to epoch until fewer than one producer in a hundred moves (Satuluri et al. 2020, section
4.1). Say that tp neighbours of total weight tw are in c, |c| members in all, and n producers in the graph. L is

    simclusters   10 tw + (n - |c| - (d - tp)) W / d: near ones in, others out, so that communities are dense
    modularity    10 (tw - resolution * W * total(c) / total): nearer than by chance (Reichardt and Bornholdt 2006)

where total(c) adds up W over the members of c, v left out, and total over all producers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal, NamedTuple

import msgspec
import numpy as np

from kithstream.streams.communities.graph import Numbers, ProducerGraph, Weights, spans

PARTS: Final = 64  # of an epoch: producers of a part move at once, on what they saw before it
ATTRACTION: Final = 10.0  # of weight

Liking = Literal["modularity", "simclusters"]


class WalkConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What producers like, and how long and how hot the walk is; a mean edge weighs 1."""

    liking: Liking = "modularity"
    resolution: float = 2.0  # of modularity: the greater, the more communities
    heat: float = 100.0  # at first, of a walk that starts with everybody alone
    warm_heat: float = 2.0  # at first, of a walk that starts with an earlier version
    cooling: float = 0.8  # of the heat in each epoch
    settled: float = 0.01  # share of moves below which it ends
    epochs: int = 60  # at most


class Walked(NamedTuple):
    """Where the producers ended up."""

    community: Numbers  # (p,) a producer may be alone; the numbers have gaps
    epochs: int
    moved: float  # share of producers in the last epoch


class _Likings(NamedTuple):
    """L(c) = sum of the worths of v's entries in c, minus the mass of c without v times the aversion of v."""

    worth: Weights  # (e,)
    mass: Weights  # (p,)
    aversion: Weights  # (p,)


class _State(NamedTuple):
    """What moves; changed in place."""

    community: Numbers  # (p,)
    sizes: Numbers  # by community
    masses: Weights  # by community


def walk(
    graph: ProducerGraph,
    draw: np.random.Generator,
    config: WalkConfig,
    start: Numbers | None = None,
    on_epoch: Callable[[int, float], None] = lambda epoch, moved: None,
) -> Walked:
    """Return communities; `start` (p,) has those of an earlier version, -1 where there is none.

    Producers that are new begin alone, in empty communities. Those without neighbours stay where they are. The
    same seed gives the same communities.
    """
    n = len(graph.producers)
    community = np.full(n, -1, np.int64) if start is None else start.astype(np.int64)
    strangers = np.flatnonzero(community < 0)
    first = int(community.max(initial=-1)) + 1
    community[strangers] = first + np.arange(len(strangers))
    heat = config.heat if start is None else config.warm_heat
    likings = _likings(graph, config)
    width = first + 2 * n  # so that there is an empty one for everybody at all times
    movable = np.flatnonzero(graph.degrees)
    epoch, moved = 0, 0.0
    while epoch < config.epochs and len(movable):
        state = _State(
            community,
            np.bincount(community, minlength=width),
            np.bincount(community, likings.mass, width).astype(
                np.float64
            ),  # anew, so that rounding does not add up
        )
        parts = np.array_split(draw.permutation(movable), min(PARTS, len(movable)))
        moved = sum(_move(graph, likings, state, part, draw, heat) for part in parts) / len(movable)
        epoch += 1
        heat *= config.cooling
        on_epoch(epoch, moved)
        if moved < config.settled:
            break
    return Walked(community, epoch, moved)


def _likings(graph: ProducerGraph, config: WalkConfig) -> _Likings:
    n, rows = len(graph.producers), graph.rows()
    weights = graph.weights / (graph.weights.mean() if len(rows) else 1.0)
    totals = np.bincount(rows, weights, n).astype(np.float64)
    match config.liking:
        case "modularity":
            whole = max(float(totals.sum()), 1.0)
            aversion = ATTRACTION * config.resolution * totals / whole
            return _Likings(ATTRACTION * weights, totals, aversion)
        case "simclusters":
            # (n - d) W / d is the same for all candidates of v, and left out.
            means = totals / np.maximum(graph.degrees, 1)
            return _Likings(ATTRACTION * weights + means[rows], np.ones(n), means)
    raise ValueError(f"liking is {config.liking!r}, modularity or simclusters is due")


def _move(
    graph: ProducerGraph,
    likings: _Likings,
    state: _State,
    part: Numbers,  # (b,) producers with neighbours
    draw: np.random.Generator,
    heat: float,
) -> int:
    """Let some producers move; return how many did."""
    community, sizes, masses = state
    b = len(part)
    degree = graph.degrees[part]
    entries = spans(graph.starts[part], degree)
    own = community[part]
    paired = np.flatnonzero(sizes[own] > 1)  # who is alone gains nothing by being alone elsewhere
    empty = np.flatnonzero(sizes == 0)[: len(paired)]
    row = np.concatenate([np.repeat(np.arange(b), degree), np.arange(b), paired])
    place = np.concatenate([community[graph.neighbours[entries]], own, empty])
    worth = np.concatenate([likings.worth[entries], np.zeros(b + len(paired))])
    order = np.lexsort((place, row))
    row, place = row[order], place[order]
    begin = np.flatnonzero(np.diff(row * len(sizes) + place, prepend=-1))
    row, place = row[begin], place[begin]  # (k,) one for each candidate
    mine = place == own[row]
    others = masses[place] - mine * likings.mass[part][row]
    liking = np.add.reduceat(worth[order], begin) - others * likings.aversion[part][row]
    drawn = np.where(mine, -np.inf, liking + draw.gumbel(size=len(liking)))
    best = np.lexsort((drawn, row))[np.searchsorted(row, np.arange(b), side="right") - 1]
    going = np.log(draw.random(b)) * heat < liking[best] - liking[mine]
    mover, goal = part[going], place[best][going]
    for counted, amount in ((sizes, np.ones(len(mover), np.int64)), (masses, likings.mass[mover])):
        np.subtract.at(counted, own[going], amount)
        np.add.at(counted, goal, amount)
    community[mover] = goal
    return len(mover)
