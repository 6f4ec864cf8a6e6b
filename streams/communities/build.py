"""A version of communities made from a follow graph, offline: near producers, a walk over them, frozen norms."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import NamedTuple, TypedDict

import msgspec
import numpy as np
from numpy.typing import NDArray

from kithstream.streams.communities.assignment import NONE, connected, modularity, numbered
from kithstream.streams.communities.follows import Follows
from kithstream.streams.communities.graph import GraphConfig, Numbers, producer_graph
from kithstream.streams.communities.interest import MOST
from kithstream.streams.communities.known import KnownFor
from kithstream.streams.communities.walk import WalkConfig, walk

OnEpoch = Callable[[int, float], None]  # epochs so far, share of producers that moved in the last


class BuildConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a version is made."""

    graph: GraphConfig = GraphConfig()
    walk: WalkConfig = WalkConfig()
    seed: int = 0


class Built(NamedTuple):
    """A version, and what it was made of."""

    known: KnownFor
    accounts: int
    edges: int  # different follows
    producers: int  # accounts with followers enough
    near: int  # pairs of producers that have an edge
    communities: int
    members: int  # accounts that are known for one
    modularity: float
    epochs: int
    seconds: float


def build(
    follows: Follows,
    config: BuildConfig,
    warm: KnownFor | None = None,
    on_epoch: OnEpoch = lambda epoch, moved: None,
) -> Built:
    """Return a version; `warm` is an earlier one, whose communities keep their numbers where they live on.

    Equal follows and settings give equal bytes.
    """
    started = perf_counter()
    graph = producer_graph(follows.source, follows.target, config.graph)
    names = [follows.accounts[at] for at in graph.producers.tolist()]
    before = None if warm is None else warm.of(names).astype(np.int64)
    draw = np.random.Generator(np.random.PCG64(config.seed))
    walked = walk(graph, draw, config.walk, before, on_epoch)
    community = numbered(connected(graph, walked.community), before)
    members = np.flatnonzero(community >= 0)
    everyone = np.full(len(follows.accounts), NONE)
    everyone[graph.producers] = community
    lengths = norms(follows.source, everyone[follows.target], int(community.max(initial=NONE)) + 1)
    known = {names[at]: int(community[at]) for at in members.tolist()}
    return Built(
        KnownFor.of_accounts(known, lengths),
        len(follows.accounts),
        follows.read,
        len(graph.producers),
        len(graph.neighbours) // 2,
        len(np.unique(community[members])),
        len(members),
        modularity(graph, community),
        walked.epochs,
        perf_counter() - started,
    )


class Shown(TypedDict):
    """A community of a version."""

    community: int
    members: int
    norm: float


class Described(TypedDict):
    """What a file of communities holds."""

    version: str
    communities: int  # that have members
    members: int
    median_size: float
    largest: list[Shown]  # by members, then by number


def described(known: KnownFor, largest: int) -> Described:
    """Return counts of a version, and the `largest` communities of it."""
    sizes = np.bincount(known.communities, minlength=known.count)
    alive = np.flatnonzero(sizes)
    order = alive[np.argsort(-sizes[alive], kind="stable")][:largest]
    return Described(
        version=known.version,
        communities=len(alive),
        members=len(known),
        median_size=float(np.median(sizes[alive])) if len(alive) else 0.0,
        largest=[
            Shown(community=at, members=int(sizes[at]), norm=float(known.norms[at])) for at in order.tolist()
        ],
    )


def norms(source: Numbers, community: Numbers, count: int) -> NDArray[np.float32]:
    """Return the length of each community's column of interests, (count,); 0 where nobody has any.

    `community` (m,) is that of each follow's target, -1 for none; `source` (m,) may come in any order. The
    column holds T of `interest.thresholded` for every account, so its square is a whole number.
    """
    _, column, t = interests(source, community, count)
    return np.sqrt(np.bincount(column, t * t, minlength=count)).astype(np.float32)


def interests(source: Numbers, community: Numbers, count: int) -> tuple[Numbers, Numbers, Numbers]:
    """Return account, community and T of all accounts, by account and community: `thresholded` of each."""
    known = community >= 0
    width = max(count, 1)
    cell, followed = np.unique(source[known] * width + community[known], return_counts=True)
    cell, followed = cell[followed >= 2], followed[followed >= 2]
    # frexp gives the exponent of two above: 2^(e - 1) <= k < 2^e.
    t = np.left_shift(1, np.frexp(followed)[1].astype(np.int64) - 1)
    order = np.lexsort((cell, -t, cell // width))
    owner = cell[order] // width
    kept = np.sort(order[np.arange(len(owner)) - np.searchsorted(owner, owner) < MOST])
    return cell[kept] // width, cell[kept] % width, t[kept]
