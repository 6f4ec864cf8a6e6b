from __future__ import annotations

import hnswlib
import numpy as np
import pytest

from kithstream.index.errors import SnapshotRefused
from kithstream.index.graph import Graph, Shape, appended, limits_of, read_file, read_files


def shape(dim=8, bound=3.0, capacity=1000):
    return Shape(dim, (bound,), (capacity,), links=8, ef_construction=50, seed=1)


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
    near = graph.search(0, query, 300)
    assert near.slots.tolist() == best.tolist()
    assert near.floor == -np.inf
    few = graph.search(0, query, 20)
    assert few.slots[:5].tolist() == best[:5].tolist()
    assert few.floor == pytest.approx(float(rows[few.slots[-1] - 1000] @ query), abs=1e-4)


def test_all_vectors_are_as_long_as_the_bound(rng):
    rows = appended(short_rows(rng, 50), 3.0)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 3.0, rtol=1e-6)


def test_unreachable_neighbours_are_admitted(rng):
    graph = Graph(shape(capacity=40)._replace(links=2, ef_construction=2))
    graph.add(np.repeat(short_rows(rng, 1), 40, axis=0), np.arange(40))
    found = graph.search(0, np.ones(8, np.float32), 40)
    assert found is None or len(found.slots) == 40


def test_an_empty_graph_nominates_nothing():
    near = Graph(shape()).search(0, np.ones(8, np.float32), 10)
    assert near.slots.tolist() == []


def test_a_saved_graph_is_read_without_hnswlib(rng, tmp_path):
    graph, rows, slots = Graph(shape()), short_rows(rng, 200), rng.permutation(900)[:200]
    graph.add(rows, slots)
    graph.save(tmp_path)
    stored = read_files(tmp_path, shape())
    order = np.argsort(stored.slots)
    assert stored.slots[order].tolist() == sorted(slots.tolist())
    assert stored.vectors[order].tobytes() == rows[np.argsort(slots)].tobytes()
    assert 4 < stored.degree <= 16
    again = Graph(shape(), tmp_path)
    query = rng.normal(size=8).astype(np.float32)
    assert again.search(0, query, 50).slots.tolist() == graph.search(0, query, 50).slots.tolist()


def test_another_file_is_refused(rng, tmp_path):
    graph = Graph(shape())
    graph.add(short_rows(rng, 20), np.arange(20))
    path = tmp_path / "graph-0.bin"
    graph.save(tmp_path)
    with pytest.raises(SnapshotRefused, match=r"graph-0\.bin is no graph of 9 dimensions"):
        read_file(path, 9)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(SnapshotRefused, match=r"graph-0\.bin is no graph of 8 dimensions"):
        read_file(path, 8)
    path.write_bytes(b"short")
    with pytest.raises(SnapshotRefused, match=r"graph-0\.bin is truncated"):
        read_file(path, 8)


def test_rows_are_in_the_band_of_their_norm(rng):
    rows = short_rows(rng, 400)
    limits = limits_of(np.linalg.norm(rows, axis=1).astype(float), 3.3, 3, 1.15)
    graph = Graph(shape()._replace(limits=limits, capacities=(300,) * 3))
    graph.add(rows, np.arange(400))
    assert graph.sizes == [200, 100, 100]
    assert graph.labels().tolist() == list(range(400))
    query = rng.normal(size=8).astype(np.float32)
    for band in range(3):
        lengths = np.linalg.norm(rows, axis=1)
        inside = np.flatnonzero((lengths <= limits[band]) & (lengths > ((0, *limits)[band])))
        best = inside[np.argsort(-(rows[inside] @ query))]
        assert graph.search(band, query, 200).slots.tolist() == best.tolist()


def test_a_row_that_changes_its_band_has_moved_and_is_found_in_the_other(rng):
    graph = Graph(shape()._replace(limits=(1.0, 3.0), capacities=(50, 50)))
    row = np.full((1, 8), 0.35, np.float32)  # norm .99
    longer = row * np.float32(1.02)  # norm 1.01
    graph.add(row, np.array([7]))
    assert not graph.moved(row * np.float32(1.005), row, 0.01).any()
    assert graph.moved(longer, row, 0.01).all()
    graph.add(longer, np.array([7]))
    assert graph.sizes == [1, 1]
    assert graph.labels().tolist() == [7]
    assert graph.sound()


def test_room_is_counted_by_band():
    graph = Graph(shape()._replace(limits=(1.0, 30.0), capacities=(50, 2)))
    assert graph.fits(np.full((50, 8), 0.1, np.float32))
    assert graph.fits(np.full((2, 8), 5.0, np.float32))
    assert not graph.fits(np.full((3, 8), 5.0, np.float32))
