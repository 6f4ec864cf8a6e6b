from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from kithstream.streams.communities.follows import Follows
from kithstream.streams.communities.graph import GraphConfig, ProducerGraph, producer_graph, symmetric
from kithstream.streams.communities.walk import Liking, WalkConfig, Walked, walk

LIKINGS: tuple[Liking, ...] = ("modularity", "simclusters")


def graph_of(follows: Follows) -> ProducerGraph:
    return producer_graph(follows.source, follows.target, GraphConfig())


def walked(
    graph: ProducerGraph, seed: int = 0, start: NDArray[np.int64] | None = None, **rest: object
) -> Walked:
    return walk(graph, np.random.default_rng(seed), WalkConfig(**rest), start)  # type: ignore[arg-type]


def groups(follows: Follows, graph: ProducerGraph) -> NDArray[np.int64]:
    return np.array([int(follows.accounts[at][1:]) % 8 for at in graph.producers])


def same(a: NDArray[np.int64], b: NDArray[np.int64]) -> bool:
    """True if both are one partition under other numbers."""
    return len(set(zip(a.tolist(), b.tolist(), strict=True))) == len(set(a.tolist())) == len(set(b.tolist()))


@pytest.mark.parametrize("liking", LIKINGS)
@pytest.mark.parametrize("seed", range(3))
def test_a_planted_partition_is_found(planted: Follows, liking: Liking, seed: int) -> None:
    graph = graph_of(planted)
    found = walked(graph, seed, liking=liking)
    assert same(found.community, groups(planted, graph))
    assert found.moved < WalkConfig().settled


def test_the_same_seed_gives_the_same_communities(planted: Follows) -> None:
    graph = graph_of(planted)
    first, again, other = (walked(graph, seed, epochs=2).community.tolist() for seed in (3, 3, 4))
    assert first == again != other


@pytest.mark.parametrize("liking", LIKINGS)
def test_a_warm_start_keeps_numbers_and_takes_newcomers_in(planted: Follows, liking: Liking) -> None:
    graph = graph_of(planted)
    truth = groups(planted, graph)
    earlier = truth + 30
    earlier[::9] = -1
    assert (walked(graph, start=earlier, liking=liking).community == truth + 30).all()


def test_a_group_of_newcomers_gets_a_number_that_nobody_had(planted: Follows) -> None:
    graph = graph_of(planted)
    truth = groups(planted, graph)
    earlier = np.where(truth == 3, -1, truth)
    found = walked(graph, start=earlier).community
    assert (found[truth != 3] == truth[truth != 3]).all()
    (number,) = set(found[truth == 3].tolist())
    assert number not in earlier


def test_the_walk_ends_when_nobody_moves_or_its_epochs_are_over(planted: Follows) -> None:
    graph = graph_of(planted)
    told: list[tuple[int, float]] = []
    found = walk(
        graph, np.random.default_rng(0), WalkConfig(), None, lambda epoch, moved: told.append((epoch, moved))
    )
    assert [epoch for epoch, _ in told] == list(range(1, found.epochs + 1))
    assert all(moved >= WalkConfig().settled for _, moved in told[:-1])
    assert told[-1] == (found.epochs, found.moved)
    assert walked(graph, epochs=3, settled=0.0).epochs == 3


def test_a_producer_without_neighbours_stays_where_it_is() -> None:
    edge = symmetric(np.arange(3), np.array([0]), np.array([1]), np.array([0.5]))
    assert walked(edge, start=np.array([4, 4, 4])).community[2] == 4
    lonely = symmetric(np.arange(2), *(np.zeros(0, np.int64),) * 2, np.zeros(0))
    found = walked(lonely)
    assert (found.community.tolist(), found.epochs) == ([0, 1], 0)


def plain(
    graph: ProducerGraph, draw: np.random.Generator, config: WalkConfig, start: NDArray[np.int64]
) -> NDArray[np.int64]:
    """The walk of the module's formulas, one producer after the other, drawing the same numbers."""
    n = len(graph.producers)
    weights = np.zeros((n, n))
    weights[graph.rows(), graph.neighbours] = graph.weights / graph.weights.mean()
    total = weights.sum(1)
    community = start.copy()

    def liking(v: int, c: int) -> float:
        members = [u for u in range(n) if u != v and community[u] == c]
        tw, tp = weights[v, members].sum(), np.count_nonzero(weights[v, members])
        d = np.count_nonzero(weights[v])
        if config.liking == "simclusters":
            return float(10 * tw + (n - len(members) - (d - tp)) * total[v] / d)
        return float(10 * (tw - config.resolution * total[v] * total[members].sum() / total.sum()))

    heat = config.warm_heat
    for _ in range(config.epochs):
        for v in draw.permutation(np.flatnonzero(graph.degrees)).tolist():
            own = int(community[v])
            places = {own, *community[weights[v] > 0].tolist()}
            if (community == own).sum() > 1:
                places.add(next(c for c in range(3 * n) if c not in community))
            ranked = sorted(places)
            noise = draw.gumbel(size=len(ranked)).tolist()
            likes = {c: liking(v, c) for c in ranked}
            proposed = max((likes[c] + noise[at], c) for at, c in enumerate(ranked) if c != own)[1]
            if np.log(draw.random()) < (likes[proposed] - likes[own]) / heat:
                community[v] = proposed
        heat *= config.cooling
    return community


@given(
    st.sets(st.tuples(st.integers(0, 11), st.integers(0, 11)).filter(lambda e: e[0] < e[1]), min_size=8),
    st.lists(st.integers(0, 5), min_size=12, max_size=12).map(np.array),
    st.sampled_from(LIKINGS),
    st.sampled_from([0.1, 2.0, 50.0]),
    st.integers(0, 1000),
)
def test_the_walk_is_that_of_its_formulas(
    pairs: set[tuple[int, int]], start: NDArray[np.int64], liking: Liking, heat: float, seed: int
) -> None:
    first, second = np.array(sorted(pairs)).T
    weights = np.random.default_rng(seed).random(len(first)) + 0.1
    graph = symmetric(np.arange(12), first, second, weights)
    # Of twelve producers each part is one, so that nobody moves on what is out of date.
    config = WalkConfig(liking=liking, warm_heat=heat, epochs=3, settled=0.0)
    found = walk(graph, np.random.default_rng(seed), config, start)
    assert found.community.tolist() == plain(graph, np.random.default_rng(seed), config, start).tolist()


def test_an_unknown_liking_is_refused(planted: Follows) -> None:
    with pytest.raises(ValueError, match="liking is 'none'"):
        walked(graph_of(planted), liking="none")
