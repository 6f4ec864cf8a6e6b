"""What only the live index does: cooling, back-pressure, bounds, rebuilds, planning."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from kithstream.index.config import IndexConfig
from kithstream.index.errors import MergerStopped, RebuildFailed
from kithstream.index.exact import ExactIndex
from kithstream.index.live import LiveIndex
from kithstream.index.rebuild import build, cheaper
from kithstream.index.table import RING


def names(count, start=0):
    return [f"{number:05d}" for number in range(start, start + count)]


@pytest.fixture
def cooled(config, rng):
    """200 rows, all of them in the graph, beside the oracle."""
    index, oracle = LiveIndex(config(8, hot_capacity=64, epsilon=0.01)), ExactIndex(8)
    vectors = rng.normal(size=(200, 8)).astype(np.float32)
    for each in (index, oracle):
        each.upsert(names(200), vectors)
    index.merge(1000)
    assert index.stats().hot == 0
    return index, oracle, vectors


def same(index, oracle, query, k=20, **filters):
    got, want = index.query(query, k, **filters), oracle.query(query, k, **filters)
    return got.ids == want.ids and got.scores.tobytes() == want.scores.tobytes()


def test_until_the_first_merge_everything_is_scanned(config, rng):
    index = LiveIndex(config(4))
    index.upsert(names(100), rng.normal(size=(100, 4)).astype(np.float32))
    assert index.query(np.ones(4, np.float32), 5).plan == "exact"
    assert index.reasons() == ("first",)
    assert index.merge().rebuilt
    assert index.query(np.ones(4, np.float32), 5).plan == "graph"
    assert index.stats().cold == 100


def test_a_small_corpus_has_no_graph(rng):
    index = LiveIndex(IndexConfig(dim=4))
    index.upsert(names(100), rng.normal(size=(100, 4)).astype(np.float32))
    assert not index.merge().rebuilt
    assert index.stats().bound == 0
    assert index.reasons() == ()


def test_a_changed_row_is_hot_and_its_old_place_in_the_graph_is_ignored(cooled, rng):
    index, oracle, vectors = cooled
    for each in (index, oracle):
        each.upsert(names(10), -3 * vectors[:10])
    assert index.stats().hot == 10
    assert index.stats().cold == 190
    for _ in range(20):
        assert same(index, oracle, rng.normal(size=8).astype(np.float32))


def test_a_row_that_hardly_moved_cools_without_a_graph_write(cooled, rng):
    index, oracle, vectors = cooled
    near = vectors[:20] * np.float32(1.001)
    for each in (index, oracle):
        each.upsert(names(20), near)
    merged = index.merge(1000)
    assert (merged.cooled, merged.written, merged.skipped) == (20, 0, 20)
    query = near[3]
    assert same(index, oracle, query)
    assert index.scores(query, [names(20)[3]]).tobytes() == oracle.scores(query, [names(20)[3]]).tobytes()


def test_small_moves_add_up_to_a_graph_write(cooled):
    index, _, vectors = cooled
    step = np.roll(vectors[:1], 1, axis=1) * np.float32(0.05)
    written = []
    for number in range(1, 8):
        index.upsert(names(1), vectors[:1] + step * number)
        written.append(index.merge(1000).written)
    assert 1 <= sum(written) < 7


def test_a_full_hot_tier_makes_the_writer_merge(config, rng):
    index, oracle = LiveIndex(config(8, hot_capacity=16)), ExactIndex(8)
    for number in range(60):
        rows = rng.normal(size=(10, 8)).astype(np.float32)
        for each in (index, oracle):
            each.upsert(names(10, number * 10), rows)
        if number == 0:
            index.merge()
        assert index.stats().hot <= 16
    stats = index.stats()
    assert stats.waited > 10
    assert stats.alive == 600
    for _ in range(10):
        assert same(index, oracle, rng.normal(size=8).astype(np.float32), 600)


@pytest.mark.parametrize("bound", [0.0, 1.0])
def test_a_norm_above_the_bound_is_never_wrong(config, rng, bound):
    index, oracle = LiveIndex(config(8, hot_capacity=64, bound=bound)), ExactIndex(8)
    vectors = rng.normal(size=(300, 8)).astype(np.float32)
    for each in (index, oracle):
        each.upsert(names(300), vectors)
    index.merge(1000)
    first = index.stats().bound
    for each in (index, oracle):
        each.upsert(names(5), vectors[:5] * 50)
    assert index.merge(1000).cooled == 0
    assert index.stats().above == 5
    for _ in range(10):
        assert same(index, oracle, rng.normal(size=8).astype(np.float32))
    index.rebuild(1000)
    stats = index.stats()
    assert stats.bound > first
    assert (stats.raised, stats.above, stats.hot) == (1, 0, 0)
    for _ in range(10):
        assert same(index, oracle, rng.normal(size=8).astype(np.float32))


def test_a_hot_tier_full_of_rows_above_the_bound_raises_it(config, rng):
    index, oracle = LiveIndex(config(8, hot_capacity=8)), ExactIndex(8)
    vectors = rng.normal(size=(100, 8)).astype(np.float32)
    index.upsert(names(100), vectors)
    index.merge(1000)
    for scale in (10, 100, 1000):
        index.upsert(names(100), vectors * np.float32(scale))
    oracle.upsert(names(100), vectors * np.float32(1000))
    assert index.stats().raised >= 3
    assert same(index, oracle, vectors[0], 100)


def test_dead_rows_ask_for_a_rebuild_that_frees_their_slots(cooled, rng):
    index, oracle, _ = cooled
    for each in (index, oracle):
        each.delete(names(80))
    assert index.stats().dead == 80
    assert index.reasons() == ("dead",)
    assert same(index, oracle, rng.normal(size=8).astype(np.float32), 120)
    rebuilt = index.rebuild()
    assert (rebuilt.rows, rebuilt.freed) == (120, 80)
    assert index.stats().dead == 0
    assert index.reasons() == ()
    used = index._table.used
    index.upsert(names(50, 1000), rng.normal(size=(50, 8)).astype(np.float32))
    assert index._table.used == used


def test_many_moves_ask_for_a_rebuild(cooled, rng):
    index, _, _ = cooled
    for start in range(0, 80, 2):
        index.upsert(names(2, start), rng.normal(size=(2, 8)).astype(np.float32))
        assert not index.merge(1000).rebuilt
    assert index.reasons() == ("moved",)


def test_the_graphs_grow_by_a_rebuild(config, rng):
    index = LiveIndex(config(8, hot_capacity=8, growth=1.0))
    index.upsert(names(20), rng.normal(size=(20, 8)).astype(np.float32))
    index.merge()
    for start in range(20, 120, 4):
        index.upsert(names(4, start), rng.normal(size=(4, 8)).astype(np.float32))
    stats = index.stats()
    assert stats.rebuilds > 2
    assert stats.alive == 120
    assert index.check(10, rng).sound


def test_the_audit_sees_a_lost_label(cooled, rng):
    index, _, vectors = cooled
    assert index.check(20, rng).sound
    index._idle.add(vectors[:1], np.array([777]))
    checked = index.check(20, rng)
    assert not checked.sound
    assert checked.reasons == ("labels",)
    index.rebuild()
    assert index.check(20, rng).sound
    assert index.reasons() == ()


def test_a_check_sees_lost_recall(cooled, rng):
    index, _, _ = cooled
    assert index.check(20, rng, k=10).recall == 1.0
    slots = np.arange(200)
    for graph in (index._served.graph, index._idle):
        graph.add(rng.normal(size=(200, 8)).astype(np.float32), slots)  # not where the vectors are
    narrow = LiveIndex(
        IndexConfig(dim=8, exact_rows=0, rows_per_fetch=0, recall_wanted=0.0, ef=10, overfetch=1.0)
    )
    narrow.upsert(names(200), np.array([index.vector(name) for name in names(200)]))
    narrow.rebuild(process=False)
    narrow._served, narrow._idle = index._served, index._idle
    checked = narrow.check(20, rng, k=10)
    assert checked.recall < 0.9
    assert "recall" in checked.reasons


def test_labels_and_exclusions_that_starve_the_graph_are_scanned(rng):
    config = IndexConfig(
        dim=8, hot_capacity=64, exact_rows=0, rows_per_fetch=4, ef=16, overfetch=1.0, rebuild_process=False
    )
    index, oracle = LiveIndex(config), ExactIndex(8)
    vectors = rng.normal(size=(2000, 8)).astype(np.float32)
    codes = (np.arange(2000) % 100 == 0).astype(np.int32)
    for each in (index, oracle):
        each.upsert(names(2000), vectors, labels=codes)
    index.merge()
    query = vectors[5]
    assert index.query(query, 10).plan == "graph"
    near = oracle.query(query, 1500).ids
    rare = index.query(query, 10, labels=[1])
    assert rare.plan == "exact"
    assert rare.ids == oracle.query(query, 10, labels=[1]).ids
    for each in (index, oracle):
        each.delete(near[:1200])
    starved = index.query(query, 10)
    assert starved.plan == "fallback"
    assert starved.ids == oracle.query(query, 10).ids
    few = index.query(query, 10, allow=near[1190:1210])
    assert few.plan == "allowed"
    assert few.ids == near[1200:1210]


def test_merges_during_a_rebuild_are_in_the_new_graphs(cooled, rng, tmp_path):
    index, oracle, _ = cooled
    job = index._capture(0)
    moved = rng.normal(size=(30, 8)).astype(np.float32)
    for each in (index, oracle):
        each.upsert(names(30, 190), moved)
        each.delete(names(20))
    assert index.merge(1000).written == 30
    build(tmp_path, job.shape, job.vectors, job.slots, process=False)
    index._install(job, tmp_path)
    assert index.check(10, rng).sound
    assert index.stats().hot == 0
    for _ in range(10):
        assert same(index, oracle, rng.normal(size=8).astype(np.float32), 220)


def test_a_merge_beside_a_build_waits_for_it_and_does_not_build_again(config, rng, tmp_path):
    index = LiveIndex(config(8, hot_capacity=64))
    index.upsert(names(50), rng.normal(size=(50, 8)).astype(np.float32))
    merged = []
    merger = threading.Thread(target=lambda: merged.append(index.merge()), daemon=True)
    with index._rebuilding:
        job = index._capture(None)
        index.upsert(names(40, 100), rng.normal(size=(40, 8)).astype(np.float32))
        merger.start()
        build(tmp_path, job.shape, job.vectors, job.slots, process=False)
        with index._merging:
            index._install(job, tmp_path)
    merger.join(30)
    assert [each.rebuilt for each in merged] == [False]
    assert index.stats().rebuilds == 1
    assert index.check(10, rng).sound


def test_another_process_builds_the_same_graph(cooled, rng):
    index, oracle, _ = cooled
    here = index.rebuild(process=False)
    query = rng.normal(size=8).astype(np.float32)
    found = index._served.graph.search(0, query, 30).slots.tolist()
    there = index.rebuild(process=True)
    assert here == there
    assert index._served.graph.search(0, query, 30).slots.tolist() == found
    assert same(index, oracle, query)


def test_a_failed_rebuild_leaves_everything_as_it_was(cooled, rng, monkeypatch):
    index, oracle, vectors = cooled
    for each in (index, oracle):
        each.delete(names(10))
        each.upsert(names(5, 20), vectors[:5])
    before = index.stats()
    monkeypatch.setattr("sys.executable", "/bin/false")
    with pytest.raises(RebuildFailed, match="status 1: nothing on stderr"):
        index.rebuild(process=True)
    assert index.stats() == before
    assert index.check(10, rng).sound
    assert same(index, oracle, vectors[0])


def test_a_failed_first_build_leaves_the_scan(config, rng, monkeypatch):
    index = LiveIndex(config(4, rebuild_process=True))
    index.upsert(names(50), rng.normal(size=(50, 4)).astype(np.float32))
    monkeypatch.setattr("sys.executable", "/bin/false")
    with pytest.raises(RebuildFailed):
        index.merge()
    index.upsert(names(50, 50), rng.normal(size=(50, 4)).astype(np.float32))
    assert index.query(np.ones(4, np.float32), 100).short is None


def test_a_rebuild_is_cheaper_when_much_moved():
    assert not cheaper(known=1000, fresh=100, moved=0)
    assert not cheaper(known=1000, fresh=0, moved=100)
    assert cheaper(known=1000, fresh=0, moved=130)


def test_the_background_merger_builds_and_cools(config, rng):
    published = threading.Event()

    class Told(LiveIndex):
        def _leave(self, rows, stamps):
            super()._leave(rows, stamps)
            published.set()

    with Told(config(8, hot_capacity=32, exact_rows=10)) as index:
        index.upsert(names(50), rng.normal(size=(50, 8)).astype(np.float32))
        assert published.wait(30)
        published.clear()
        index.upsert(names(28), rng.normal(size=(28, 8)).astype(np.float32))
        assert published.wait(30)
    assert index.stats().rebuilds >= 1
    assert index.check(10, rng).sound


def test_a_merger_that_starts_late_builds_what_was_written_before(config, rng):
    """Without a write after it."""
    built = threading.Event()

    class Told(LiveIndex):
        def _publish(self, graph):
            super()._publish(graph)
            built.set()

    index = Told(config(8, hot_capacity=32, exact_rows=10))
    index.upsert(names(200), rng.normal(size=(200, 8)).astype(np.float32))
    assert index.stats().rebuilds == 0
    with index:
        assert built.wait(30)
    assert index.stats().rebuilds == 1


def test_a_dead_merger_is_reported_to_the_writer(config, rng, monkeypatch):
    index = LiveIndex(config(8, hot_capacity=200, exact_rows=10, rebuild_process=True))
    monkeypatch.setattr("sys.executable", "/bin/false")
    index.start()
    index.upsert(names(50), rng.normal(size=(50, 8)).astype(np.float32))
    index._thread.join(30)
    with pytest.raises(MergerStopped, match="the background merger stopped") as caught:
        index.upsert(names(1), np.ones((1, 8), np.float32))
    assert isinstance(caught.value.__cause__, RebuildFailed)
    index.close()


def test_a_merge_waits_for_readers_of_the_old_graph(cooled):
    index, _, vectors = cooled
    held = index._served
    index.upsert(names(1), -vectors[:1])
    merger = threading.Thread(target=index.merge, args=(10,), daemon=True)
    merger.start()
    while index._served is held:
        pass
    assert len(held.graph) == 200
    assert index.stats().hot == 1, "the row stays hot while a reader holds a graph that misses it"
    assert merger.is_alive()
    del held
    merger.join(30)
    assert not merger.is_alive()
    assert index.stats().hot == 0


class Interrupted(LiveIndex):
    """Something happens between nomination and answer, once."""

    meanwhile = None
    searches = 0

    def _find(self, request):
        found = super()._find(request)
        self.searches += 1
        if self.meanwhile is not None:
            self.meanwhile, happens = None, self.meanwhile
            happens()
        return found


@pytest.fixture
def interrupted(config, rng):
    index, oracle = Interrupted(config(8, hot_capacity=64, recall_wanted=0.0)), ExactIndex(8)
    vectors = rng.normal(size=(200, 8)).astype(np.float32)
    for each in (index, oracle):
        each.upsert(names(200), vectors)
    index.merge(1000)
    return index, oracle, vectors


def test_what_changes_during_a_query_is_read_again(interrupted):
    index, oracle, vectors = interrupted
    query = vectors[0]
    best = oracle.query(query, 8).ids

    def meanwhile():
        for each in (index, oracle):
            each.delete([best[1]])
            each.upsert([best[2]], -vectors[:1])
            each.upsert(["arrived", "excluded"], np.stack([query * 2, query * 3]))

    index.meanwhile = meanwhile
    hits = index.query(query, 5, exclude=["excluded"])
    want = oracle.query(query, 5, exclude=["excluded"])
    assert hits.ids == want.ids == ["arrived", best[0], best[3], best[4], best[5]]
    assert hits.scores.tobytes() == want.scores.tobytes()
    assert index.searches == 1


def test_a_slot_that_changes_hands_during_a_query_is_judged_by_its_new_id(config):
    index = Interrupted(config(2))
    index.upsert(["a", "b"], np.array([[2, 0], [1, 0]], np.float32))

    def meanwhile():
        index.delete(["a"])
        index.upsert(["excluded"], np.array([[3, 0]], np.float32))

    index.meanwhile = meanwhile
    assert index.query(np.array([1, 0], np.float32), 2, exclude=["excluded"]).ids == ["b"]


def test_only_allowed_and_wanted_arrivals_are_taken(config):
    index = Interrupted(config(2))
    index.upsert(["a"], np.array([[1, 0]], np.float32), labels=np.array([1], np.int32))
    arrivals = np.array([[2, 0], [3, 0], [4, 0]], np.float32)

    def meanwhile():
        index.upsert(["b", "c", "d"], arrivals, labels=np.array([1, 2, 1], np.int32))

    index.meanwhile = meanwhile
    hits = index.query(np.array([1, 0], np.float32), 9, allow=["a", "b", "c"], labels=[1])
    assert hits.ids == ["b", "a"]


def test_a_query_starts_again_when_its_nominees_are_gone(interrupted, rng):
    index, oracle, vectors = interrupted
    more = [f"more-{number}" for number in range(2000)]
    rows = rng.normal(size=(2000, 8)).astype(np.float32)
    for each in (index, oracle):
        each.upsert(more, rows)
    index.merge(1000)
    query = vectors[0]
    gone = oracle.query(query, 1900).ids

    def meanwhile():
        for each in (index, oracle):
            each.delete(gone)

    index.meanwhile = meanwhile
    hits, want = index.query(query, 3), oracle.query(query, 3)
    assert index.searches == 2
    assert len(hits.ids) == 3
    assert hits.ids == want.ids


def test_a_query_that_the_ring_left_behind_starts_again(config, rng):
    index = Interrupted(config(2, hot_capacity=1 << 17, exact_rows=1 << 20))
    index.upsert(["a"], np.ones((1, 2), np.float32))

    def meanwhile():
        index.upsert(names(RING + 1), np.ones((RING + 1, 2), np.float32))
        index.upsert(["best"], np.full((1, 2), 2, np.float32))

    index.meanwhile = meanwhile
    assert index.query(np.ones(2, np.float32), 1).ids == ["best"]
    assert index.searches == 2


@pytest.mark.parametrize(
    "settings",
    [
        {"dim": 0},
        {"hot_capacity": 0},
        {"epsilon": -1},
        {"headroom": 0.5},
        {"cool_to": 0.8},
        {"bound": float("nan")},
    ],
)
def test_senseless_settings_are_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        IndexConfig(**{"dim": 4, **settings})
