from __future__ import annotations

import networkx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from kithstream.streams.communities.assignment import connected, modularity, numbered
from kithstream.streams.communities.graph import ProducerGraph, symmetric

N = 12
EDGES = st.dictionaries(
    st.tuples(st.integers(0, N - 1), st.integers(0, N - 1)).filter(lambda e: e[0] < e[1]),
    st.integers(1, 16).map(lambda w: w / 16),
    min_size=1,
)
COMMUNITIES = st.lists(st.integers(-1, 4), min_size=N, max_size=N).map(np.array)


def graph_of(edges: dict[tuple[int, int], float]) -> ProducerGraph:
    first, second = np.array(list(edges)).T
    return symmetric(np.arange(N), first, second, np.array(list(edges.values())))


def as_networkx(edges: dict[tuple[int, int], float]) -> networkx.Graph:
    graph = networkx.Graph()
    graph.add_nodes_from(range(N))
    graph.add_weighted_edges_from((a, b, weight) for (a, b), weight in edges.items())
    return graph


def sets(community: NDArray[np.int64]) -> set[frozenset[int]]:
    return {frozenset(np.flatnonzero(community == c).tolist()) for c in set(community.tolist()) - {-1}}


@given(EDGES, COMMUNITIES)
def test_communities_are_cut_into_connected_parts_of_two_and_more(
    edges: dict[tuple[int, int], float], community: NDArray[np.int64]
) -> None:
    parts = {
        frozenset(part)
        for members in sets(community)
        for part in networkx.connected_components(as_networkx(edges).subgraph(members))
        if len(part) >= 2
    }
    assert sets(connected(graph_of(edges), community)) == parts


@given(EDGES, COMMUNITIES)
def test_modularity_is_the_known_one(
    edges: dict[tuple[int, int], float], community: NDArray[np.int64]
) -> None:
    parts = [*sets(community), *({v} for v in np.flatnonzero(community < 0).tolist())]
    known = networkx.community.modularity(as_networkx(edges), parts)
    assert modularity(graph_of(edges), community) == pytest.approx(
        known, abs=1e-9
    )  # float sums in other orders


@given(COMMUNITIES, st.none() | COMMUNITIES)
def test_numbers_name_the_same_communities_and_the_largest_overlap_keeps_its_own(
    community: NDArray[np.int64], before: NDArray[np.int64] | None
) -> None:
    found = numbered(community, before)
    assert sets(found) == sets(community)
    assert ((found < 0) == (community < 0)).all()
    numbers = sorted(set(found.tolist()) - {-1})
    if before is None:
        assert numbers == list(range(len(numbers)))
        sizes = np.bincount(found[found >= 0])
        assert (np.diff(sizes) <= 0).all()
        return
    both = (community >= 0) & (before >= 0)
    if not both.any():
        return
    pair, count = np.unique(np.stack([before[both], community[both]]), axis=1, return_counts=True)
    earlier, mine = pair[:, np.argmax(count)]
    if (count == count.max()).sum() == 1:
        assert (found[community == mine] == earlier).all()
    assert (numbered(found, found) == found).all()


def test_a_community_that_is_split_leaves_its_number_to_the_larger_part() -> None:
    before = np.array([5, 5, 5, 5, 5, 2, 2, -1, -1])
    community = np.array([8, 8, 7, 7, 7, 1, 1, 3, 3])
    assert numbered(community, before).tolist() == [1, 1, 5, 5, 5, 2, 2, 0, 0]
