from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kithstream.streams.communities.graph import GraphConfig, ProducerGraph, producer_graph

PAIRS = st.sets(st.tuples(st.integers(0, 12), st.integers(0, 12)), max_size=80)


def made(pairs: set[tuple[int, int]], config: GraphConfig, bound: int = 1000) -> ProducerGraph:
    table = np.array(sorted(pairs), np.int64).reshape(-1, 2)
    order = np.random.default_rng(len(pairs)).permutation(len(table))  # the order of follows means nothing
    return producer_graph(table[order, 0], table[order, 1], config, bound)


def edges(graph: ProducerGraph) -> dict[tuple[int, int], float]:
    first, second = graph.producers[graph.rows()], graph.producers[graph.neighbours]
    return dict(zip(zip(first.tolist(), second.tolist(), strict=True), graph.weights.tolist(), strict=True))


def by_definition(pairs: set[tuple[int, int]], config: GraphConfig) -> dict[tuple[int, int], float]:
    """Cosines of follower sets, the strongest of either end, in sets and loops."""
    audience: dict[int, set[int]] = {}
    for source, target in pairs:
        audience.setdefault(target, set()).add(source)
    producers = {p: f for p, f in audience.items() if len(f) >= config.min_followers}
    near: dict[int, list[tuple[float, int]]] = {p: [] for p in producers}
    for a, b in combinations(sorted(producers), 2):
        common = len(producers[a] & producers[b])
        if common >= config.min_common:
            cosine = common / np.sqrt(len(producers[a]) * len(producers[b]))
            near[a].append((-cosine, b))
            near[b].append((-cosine, a))
    found = {}
    for a, ranked in near.items():
        for weight, b in sorted(ranked)[: config.neighbours]:
            found[a, b] = found[b, a] = float(-weight)
    return found


@given(
    PAIRS,
    st.builds(
        GraphConfig,
        min_followers=st.integers(1, 4),
        min_common=st.integers(1, 3),
        neighbours=st.integers(1, 5),
    ),
    st.sampled_from([1, 7, 1000]),
)
def test_the_graph_is_the_cosine_of_follower_sets(
    pairs: set[tuple[int, int]], config: GraphConfig, bound: int
) -> None:
    graph = made(pairs, config, bound)
    assert edges(graph) == by_definition(pairs, config)
    audience = np.bincount([target for _, target in pairs], minlength=13)
    assert graph.producers.tolist() == np.flatnonzero(audience >= config.min_followers).tolist()


@given(PAIRS)
def test_the_graph_is_symmetric_and_its_rows_ascend(pairs: set[tuple[int, int]]) -> None:
    graph = made(pairs, GraphConfig(1, neighbours=2))
    found = edges(graph)
    assert len(found) == len(graph.neighbours)
    assert all(found[b, a] == weight and a != b for (a, b), weight in found.items())
    key = graph.rows() * 100 + graph.neighbours
    assert (np.diff(key) > 0).all()


def test_nobody_with_followers_enough_is_an_empty_graph() -> None:
    graph = made({(1, 2)}, GraphConfig(2))
    assert (len(graph.producers), len(graph.neighbours), graph.starts.tolist()) == (0, 0, [0])
    nothing = made(set(), GraphConfig())
    assert len(nothing.producers) == 0


@pytest.mark.parametrize("config", [GraphConfig(0), GraphConfig(neighbours=0), GraphConfig(min_common=0)])
def test_settings_below_one_are_refused(config: GraphConfig) -> None:
    with pytest.raises(ValueError, match="at least 1 each is due"):
        made({(1, 2)}, config)
