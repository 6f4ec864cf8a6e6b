from __future__ import annotations

import hnswlib
import numpy as np
import pytest

from kithstream.index.errors import SnapshotRefused
from kithstream.index.graph import Graph, Shape, appended, read_file


def shape(dim=8, bound=3.0, capacity=1000):
    return Shape(dim, bound, capacity, links=8, ef_construction=50, seed=1)


def short_rows(rng, count, dim=8):
    rows = rng.normal(size=(count, dim)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True) * rng.uniform(0.1, 3.0, (count, 1)).astype("f")


def test_replacing_deleted_labels_in_a_batch_loses_labels():
    """Why `Graph` never deletes or replaces: this is hnswlib 0.8."""
    rows = np.random.default_rng(0).normal(size=(1000, 8)).astype(np.float32)
    index = hnswlib.Index("l2", 8)
    index.init_index(2000, allow_replace_deleted=True)
    index.add_items(rows, np.arange(1000), num_threads=1)
    for label in range(100):
        index.mark_deleted(label)
    index.add_items(rows[:100] + 1, np.arange(100), replace_deleted=True, num_threads=1)
    assert len(index.get_ids_list()) < 1000


def test_moving_the_same_slots_loses_none(rng):
    graph = Graph(shape())
    rows = short_rows(rng, 500)
    graph.add(rows, np.arange(500))
    for _ in range(3):
        graph.add(short_rows(rng, 300), rng.permutation(500)[:300])
    assert graph.labels().tolist() == list(range(500))
    assert len(graph) == 500


def test_the_largest_product_is_the_nearest(rng):
    graph, rows = Graph(shape()), short_rows(rng, 300)
    graph.add(rows, np.arange(300) + 1000)
    query = rng.normal(size=8).astype(np.float32)
    best = np.argsort(-(rows @ query)) + 1000
    near = graph.search(query, 300)
    assert near.slots.tolist() == best.tolist()
    assert near.floor == -np.inf
    few = graph.search(query, 20)
    assert few.slots[:5].tolist() == best[:5].tolist()
    assert few.floor == pytest.approx(float(rows[few.slots[-1] - 1000] @ query), abs=1e-4)


def test_all_vectors_are_as_long_as_the_bound(rng):
    rows = appended(short_rows(rng, 50), 3.0)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 3.0, rtol=1e-6)


def test_unreachable_neighbours_are_admitted(rng):
    graph = Graph(shape(capacity=40)._replace(links=2, ef_construction=2))
    graph.add(np.repeat(short_rows(rng, 1), 40, axis=0), np.arange(40))
    found = graph.search(np.ones(8, np.float32), 40)
    assert found is None or len(found.slots) == 40


def test_an_empty_graph_nominates_nothing():
    near = Graph(shape()).search(np.ones(8, np.float32), 10)
    assert near.slots.tolist() == []


def test_a_saved_graph_is_read_without_hnswlib(rng, tmp_path):
    graph, rows, slots = Graph(shape()), short_rows(rng, 200), rng.permutation(900)[:200]
    graph.add(rows, slots)
    graph.save(tmp_path / "graph.bin")
    stored = read_file(tmp_path / "graph.bin", 8)
    order = np.argsort(stored.slots)
    assert stored.slots[order].tolist() == sorted(slots.tolist())
    assert stored.vectors[order].tobytes() == rows[np.argsort(slots)].tobytes()
    assert 4 < stored.degree <= 16
    again = Graph(shape(), tmp_path / "graph.bin")
    query = rng.normal(size=8).astype(np.float32)
    assert again.search(query, 50).slots.tolist() == graph.search(query, 50).slots.tolist()


def test_another_file_is_refused(rng, tmp_path):
    graph = Graph(shape())
    graph.add(short_rows(rng, 20), np.arange(20))
    path = tmp_path / "graph.bin"
    graph.save(path)
    with pytest.raises(SnapshotRefused, match=r"graph\.bin is no graph of 9 dimensions"):
        read_file(path, 9)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(SnapshotRefused, match=r"graph\.bin is no graph of 8 dimensions"):
        read_file(path, 8)
    path.write_bytes(b"short")
    with pytest.raises(SnapshotRefused, match=r"graph\.bin is truncated"):
        read_file(path, 8)
