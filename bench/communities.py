"""Ways to find communities against each other, by hand: `python -m bench.communities --data FOLDER`.

The first four fifths of a stream's follows make a version; the others are what is to be found. An account's
interests times the producers' embeddings nominate twenty accounts it did not follow (SimClusters: interests
U[u, c] / |U[:, c]|, embedding E[p, c] = sum over the followers u of p of U[u, c] / |U[:, c]|, over sqrt(|F_p|)); recall
is the share of its later follows among them, of accounts that both were there before. The simulator's truth is each
account's main community. Louvain is networkx's (BSD). igraph and leidenalg (GPL) are compared if they happen to be
installed; the package needs neither.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

import networkx
import numpy as np
from numpy.typing import NDArray

from bench.machine import machine
from kithstream.streams.communities.assignment import NONE, connected, modularity, numbered
from kithstream.streams.communities.build import interests, norms
from kithstream.streams.communities.follows import Arcs, Follows
from kithstream.streams.communities.follows import numbered as of_arcs
from kithstream.streams.communities.graph import GraphConfig, ProducerGraph, producer_graph, spans
from kithstream.streams.communities.walk import WalkConfig, walk
from kithstream.streams.prequential import SHARE, Pairs, first_pairs
from kithstream.streams.simulate import SimulationConfig, World, simulate
from kithstream.streams.sources import bitcoin, higgs

try:
    import igraph
    import leidenalg
except ModuleNotFoundError:
    igraph = leidenalg = None

K: Final = 20  # accounts nominated
Method = Callable[[ProducerGraph, int], NDArray]  # graph and seed to communities (p,)


class Split(NamedTuple):
    """A stream cut in two, accounts numbered alike."""

    before: Follows
    source: NDArray  # (h,) of later follows, both ends seen before
    target: NDArray
    truth: NDArray | None  # (n,) community of each account


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder of the real streams; without, the simulator alone")
    parser.add_argument("--streams", nargs="+", default=["simulator", "bitcoin-otc", "higgs"])
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--accounts", type=int, default=10_000, help="of the simulated world")
    parser.add_argument("--events", type=int, default=600_000, help="of the simulated world")
    parser.add_argument("--queries", type=int, default=2000, help="accounts asked for")
    parser.add_argument("--min-followers", type=int, default=GraphConfig().min_followers)
    parser.add_argument("--min-common", type=int, default=GraphConfig().min_common)
    parser.add_argument("--neighbours", type=int, default=GraphConfig().neighbours)
    parser.add_argument(
        "--validate", action="store_true", help="inside the first four fifths, to choose settings"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    given = parser.parse_args()
    print(json.dumps({"bench": "communities", "machine": machine()}))
    config = GraphConfig(given.min_followers, given.min_common, given.neighbours)
    for stream in given.streams:
        if stream != "simulator" and given.data is None:
            continue
        pairs, truth = STREAMS[stream](given)
        if given.validate:
            pairs = pairs.head(int(len(pairs.source) * SHARE))
        split = cut(pairs, truth)
        began = time.perf_counter()
        graph = producer_graph(split.before.source, split.before.target, config)
        size = {
            "stream": stream,
            "accounts": len(split.before.accounts),
            "follows": len(split.before.source),
            "producers": len(graph.producers),
            "near": len(graph.neighbours) // 2,
            "graph_seconds": round(time.perf_counter() - began, 2),
            "heldout": len(split.source),
            "popular_recall": round(popular(split, given.queries), 4),
        }
        print(json.dumps(size), flush=True)
        for name in given.methods:
            if name.startswith("leiden") and leidenalg is None:
                continue
            for seed in given.seeds:
                began = time.perf_counter()
                community = METHODS[name](graph, seed)
                seconds = time.perf_counter() - began
                community = numbered(connected(graph, community))
                row = {"stream": stream, "method": name, "seed": seed, "seconds": round(seconds, 2)}
                print(json.dumps(row | judged(split, graph, community, given.queries)), flush=True)


# -- methods -------------------------------------------------------------------------------------------------


def walked(config: WalkConfig) -> Method:
    return lambda graph, seed: walk(graph, np.random.default_rng(seed), config).community


def louvain(resolution: float) -> Method:
    def found(graph: ProducerGraph, seed: int) -> NDArray:
        once = graph.rows() < graph.neighbours
        edges = zip(
            graph.rows()[once].tolist(),
            graph.neighbours[once].tolist(),
            graph.weights[once].tolist(),
            strict=True,
        )
        made = networkx.Graph()
        made.add_nodes_from(range(len(graph.producers)))
        made.add_weighted_edges_from(edges)
        parts = networkx.community.louvain_communities(made, resolution=resolution, seed=seed)
        community = np.full(len(graph.producers), NONE)
        for number, part in enumerate(parts):
            community[list(part)] = number
        return community

    return found


def leiden(quality: str, **settings: float) -> Method:
    def found(graph: ProducerGraph, seed: int) -> NDArray:
        once = graph.rows() < graph.neighbours
        edges = np.stack([graph.rows()[once], graph.neighbours[once]], 1)
        made = igraph.Graph(len(graph.producers), edges)
        parts = leidenalg.find_partition(
            made, getattr(leidenalg, quality), weights=graph.weights[once].tolist(), seed=seed, **settings
        )
        return np.array(parts.membership)

    return found


METHODS: Final[dict[str, Method]] = {
    "modularity": walked(WalkConfig()),
    "simclusters": walked(WalkConfig(liking="simclusters")),
    "louvain": louvain(1.0),
    "louvain-2": louvain(2.0),
    "louvain-4": louvain(4.0),
    "leiden": leiden("ModularityVertexPartition"),
    "leiden-2": leiden("RBConfigurationVertexPartition", resolution_parameter=2.0),
}


# -- streams -------------------------------------------------------------------------------------------------


def simulated(given: argparse.Namespace) -> tuple[Pairs, NDArray]:
    config = SimulationConfig(accounts=given.accounts, seed=0)
    events = itertools.chain.from_iterable(simulate(config, given.events))
    return first_pairs(events), World.build(config).member[:, 0]


def cut(pairs: Pairs, truth: NDArray | None) -> Split:
    """First pairs to what is known and what is to be found; `truth` is by the number in an account's name."""
    end = int(len(pairs.source) * SHARE)
    before = of_arcs(pairs.accounts, Arcs(pairs.source[:end], pairs.target[:end], pairs.time[:end]))
    place = {account: at for at, account in enumerate(before.accounts)}
    number = np.array([place[account] for account in pairs.accounts])
    source, target = number[pairs.source[end:]], number[pairs.target[end:]]
    n = len(before.accounts)
    asks, asked = (np.bincount(ends, minlength=n) > 0 for ends in (before.source, before.target))
    known = asks[source] & asked[target]
    if truth is not None:
        truth = truth[[World.number(account) for account in before.accounts]]
    return Split(before, source[known], target[known], truth)


STREAMS: Final[dict[str, Callable[[argparse.Namespace], tuple[Pairs, NDArray | None]]]] = {
    "simulator": simulated,
    "bitcoin-otc": lambda given: (first_pairs(bitcoin.read(given.data / "soc-sign-bitcoinotc.csv.gz")), None),
    "higgs": lambda given: (first_pairs(higgs.read(given.data / "higgs-activity_time.txt.gz")), None),
}


# -- judging -------------------------------------------------------------------------------------------------


def judged(split: Split, graph: ProducerGraph, community: NDArray, queries: int) -> dict[str, object]:
    sizes = np.bincount(community[community >= 0])
    n = len(split.before.accounts)
    everyone = np.full(n, NONE)
    everyone[graph.producers] = community
    dot, cosine, answered = recalls(split, everyone, len(sizes), queries)
    row: dict[str, object] = {
        "modularity": round(modularity(graph, community), 4),
        "communities": len(sizes),
        "members": int(sizes.sum()),
        "sizes": np.percentile(sizes, [10, 50, 90, 100]).astype(int).tolist() if len(sizes) else [],
        "recall_dot": round(dot, 4),
        "recall_cosine": round(cosine, 4),
        "answered": round(answered, 3),
    }
    if split.truth is not None:
        found, true = community[community >= 0], split.truth[graph.producers[community >= 0]]
        row |= {"nmi": round(nmi(found, true), 4), "purity": round(purity(found, true), 4)}
    return row


def asked(split: Split, queries: int) -> Iterator[tuple[int, NDArray, NDArray]]:
    """Accounts, whom they follow, and whom they will follow: a sample of those who will."""
    askers = np.unique(split.source)
    askers = np.random.default_rng(0).permutation(askers)[:queries]
    for u in askers.tolist():
        begin, end = np.searchsorted(split.before.source, [u, u + 1])
        yield u, split.before.target[begin:end], split.target[split.source == u]


def recalls(split: Split, community: NDArray, count: int, queries: int) -> tuple[float, float, float]:
    """Recall at 20 by dot product and by cosine, and the share of accounts that get any answer."""
    follows = split.before
    n = len(follows.accounts)
    of_target = community[follows.target]
    lengths = np.maximum(norms(follows.source, of_target, count), 1.0).astype(np.float64)
    account, column, t = interests(follows.source, of_target, count)
    value = t / lengths[column]
    starts = np.searchsorted(account, np.arange(n + 1))
    length = np.diff(starts)[follows.source]
    entries = spans(starts[follows.source], length)
    width = max(count, 1)
    cell, at = np.unique(np.repeat(follows.target, length) * width + column[entries], return_inverse=True)
    producer, topic = cell // width, cell % width
    audience = np.bincount(follows.target, minlength=n)
    embedding = np.bincount(at, value[entries], len(cell)) / np.sqrt(audience[producer])
    size = np.sqrt(np.bincount(producer, embedding**2, n))
    order = np.argsort(topic, kind="stable")
    producer, topic, embedding = producer[order], topic[order], embedding[order]
    begin = np.searchsorted(topic, np.arange(count + 1))
    hits, wanted, answered, asking = np.zeros(2), 0, 0, 0
    for u, followed, later in asked(split, queries):
        asking += 1
        wanted += len(later)
        mine = slice(starts[u], starts[u + 1])
        places = spans(begin[column[mine]], begin[column[mine] + 1] - begin[column[mine]])
        if not len(places):
            continue
        weight = np.repeat(value[mine], begin[column[mine] + 1] - begin[column[mine]])
        scores = np.bincount(producer[places], weight * embedding[places], n)
        scores[followed] = scores[u] = 0
        answered += bool(scores.any())
        for which, ranked in enumerate((scores, scores / np.maximum(size, 1e-12))):
            hits[which] += np.isin(later, best(ranked)).sum()
    return float(hits[0] / wanted), float(hits[1] / wanted), answered / asking


def popular(split: Split, queries: int) -> float:
    """Recall at 20 of the accounts with most followers: what needs no communities."""
    audience = np.bincount(split.before.target, minlength=len(split.before.accounts)).astype(float)
    hits = wanted = 0
    for u, followed, later in asked(split, queries):
        scores = audience.copy()
        scores[followed] = scores[u] = 0
        hits += int(np.isin(later, best(scores)).sum())
        wanted += len(later)
    return hits / max(wanted, 1)


def best(scores: NDArray) -> NDArray:
    top = np.argpartition(-scores, min(K, len(scores) - 1))[:K]
    return top[scores[top] > 0]


def nmi(found: NDArray, true: NDArray) -> float:
    """Mutual information over the mean of both entropies, 0 to 1."""
    table = np.zeros((found.max() + 1, true.max() + 1))
    np.add.at(table, (found, true), 1 / len(found))

    def entropy(shares: NDArray) -> float:
        return float(-(shares[shares > 0] * np.log(shares[shares > 0])).sum())

    first, second = entropy(table.sum(1)), entropy(table.sum(0))
    return (first + second - entropy(table.ravel())) / max((first + second) / 2, 1e-12)


def purity(found: NDArray, true: NDArray) -> float:
    """Share of accounts whose true community is the most frequent one among those found with them."""
    table = np.zeros((found.max() + 1, true.max() + 1))
    np.add.at(table, (found, true), 1)
    return float(table.max(1).sum() / len(found))


if __name__ == "__main__":
    main()
