"""A scan of codes has a slow twin, the scan of floats: the same answers, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kithstream.index import codes, exact, table
from kithstream.index.codes import PENDING, Codes, coded
from kithstream.index.config import IndexConfig
from kithstream.index.exact import ExactIndex
from kithstream.index.live import LiveIndex
from kithstream.index.score import LARGEST_NORM, kth_largest, nominate, norms, tolerance

SHAPES = st.sampled_from(("normal", "clustered", "aside", "grown", "equal", "tiny", "huge"))


def drawn(shape: str, n: int, dim: int, rng: np.random.Generator) -> np.ndarray:
    rows = rng.normal(size=(n, dim))
    if shape == "clustered":
        rows = rng.normal(size=(7, dim))[rng.integers(0, 7, n)] + 0.05 * rows
    elif shape == "aside":
        rows[:, 0] += 40.0
    elif shape == "grown":
        rows *= np.exp(3.0 * rng.normal(size=(n, 1)))
    elif shape == "equal":
        rows = rows[rng.integers(0, min(5, n), n)]
    elif shape == "tiny":
        rows *= 1e-41  # subnormal as float32
    elif shape == "huge":
        rows *= 0.1 * LARGEST_NORM / np.sqrt(dim)
    return rows.astype(np.float32)


@pytest.fixture
def always(monkeypatch):
    """Codes on any machine, for any number of nominees, of every row that was told; for a new centre few at a time."""
    monkeypatch.setattr(table, "quicker", lambda dim: True)
    monkeypatch.setattr(exact, "WORTH", 1)
    monkeypatch.setattr(codes, "RECODED", 40)


def nominated(held, query, norm, k, allowed, error):
    least, most, slack = held.bounds(query.astype(np.float64), norm, allowed, error)
    return nominate(least, k, slack, most)


@settings(max_examples=150, deadline=None)
@given(SHAPES, SHAPES, st.integers(1, 40), st.integers(2, 400), st.integers(1, 60), st.integers(0, 2**32))
def test_codes_nominate_all_that_floats_do(shape, asked, dim, n, k, seed):
    rng = np.random.default_rng(seed)
    rows, query = drawn(shape, n, dim, rng), drawn(asked, 1, dim, rng)[0]
    if not query.any():
        query[0] = 1.0
    held, allowed = Codes(n, dim), rng.random(n) < 0.9
    held.fit(np.flatnonzero(rng.random(n) < 0.6), rows)
    held.code(np.flatnonzero(rng.random(n) < 0.2), rows)
    lengths = norms(rows)
    norm = float(norms(query[None, :])[0])
    error = tolerance(dim, norm, float(lengths.max()))
    products = rows @ query
    products[~allowed] = -np.inf
    found = nominated(held, query, norm, k, allowed.copy(), error)
    assert set(nominate(products, k, error)) <= set(found)
    assert allowed[found].all()


def test_what_a_query_is_rounded_by_counts():
    rows = np.array([[1.0, 0.0], [0.9, 100.0]], np.float32)
    query = np.array([1.0, 0.003], np.float32)  # coded as (127, 0)
    held = Codes(2, 2)
    held.code(np.arange(2), rows)
    assert nominated(held, query, 1.00001, 1, np.ones(2, np.bool_), 1e-5).tolist() == [0, 1]


@pytest.mark.usefixtures("always")
def test_a_query_too_small_to_be_coded_is_answered(rng):
    rows = drawn("normal", 300, 8, rng)
    query = np.array([1e-45, 0, 0, 0, 0, 0, 0, 0], np.float32)  # a 127th of it is zero
    index, twin = LiveIndex(IndexConfig(dim=8, coded_from=1)), ExactIndex(8)
    for one in (index, twin):
        one.upsert([f"{n}" for n in range(300)], rows)
    assert index.query(query, 10).ids == twin.query(query, 10).ids


@settings(max_examples=100, deadline=None)
@given(SHAPES, st.integers(1, 80), st.integers(0, 2**32))
def test_what_a_code_is_off_by_is_told(shape, dim, seed):
    rows = drawn(shape, 50, dim, np.random.default_rng(seed))
    held, grains, slips, lengths = coded(rows.astype(np.float64))
    back = held.astype(np.longdouble) * grains.astype(np.longdouble)[:, None]
    apart = rows.astype(np.longdouble) - back
    assert (np.sqrt((apart * apart).sum(axis=1)) <= slips).all()
    assert (np.sqrt((back * back).sum(axis=1)) <= lengths + 1e-30).all()
    assert held.min() >= -127  # -128 has no opposite


@pytest.mark.parametrize("shape", ["normal", "aside", "grown"])
def test_few_are_nominated(rng, shape):
    rows = drawn(shape, 20_000, 144, rng)
    query = rng.normal(size=144).astype(np.float32)
    held = Codes(len(rows), 144)
    held.fit(np.arange(len(rows)), rows)
    norm = float(np.linalg.norm(query))
    error = tolerance(144, norm, float(norms(rows).max()))
    found = nominated(held, query, norm, 200, np.ones(len(rows), np.bool_), error)
    assert 200 <= len(found) < 1_000


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 3000), st.integers(1, 40), st.integers(0, 2**32), st.booleans())
def test_the_kth_largest_is_that_of_all(n, k, seed, coarse):
    rng = np.random.default_rng(seed)
    values = rng.normal(size=n).astype(np.float32)
    if coarse:
        values = np.round(values)
    values[rng.random(n) < rng.random()] = -np.inf
    if n >= k:
        assert kth_largest(values, k) == np.sort(values)[n - k]


def test_the_kth_largest_of_values_that_a_sample_misses():
    values = np.zeros(10_000, np.float32)
    values[1::500] = np.arange(20)  # no multiple of any stride
    assert kth_largest(values, 5) == 15.0


@pytest.mark.usefixtures("always")
@settings(max_examples=40, deadline=None)
@given(SHAPES, st.integers(1, 24), st.integers(1, 50), st.integers(0, 2**32))
def test_answers_are_those_of_the_scan_of_floats(shape, dim, k, seed):
    rng = np.random.default_rng(seed)
    index, twin = LiveIndex(IndexConfig(dim=dim, capacity=4, coded_from=1)), ExactIndex(dim)
    names = [f"{number}" for number in range(600)]
    for _ in range(6):
        some = rng.choice(names, 250, replace=False).tolist()
        rows = drawn(shape, len(some), dim, rng)
        rows[~rows.any(axis=1), 0] = 1.0
        labels = rng.integers(0, 3, len(some)).astype(np.int32)
        gone = rng.choice(names, 30, replace=False).tolist()
        for one in (index, twin):
            one.upsert(some, rows, labels=labels)
            one.delete(gone)
        query = drawn(shape, 1, dim, rng)[0]
        query[0] += 1.0
        without = frozenset(rng.choice(names, 40).tolist())
        for wanted in (None, {1, 2}):
            ours = index.query(query, k, exclude=without, labels=wanted)
            theirs = twin.query(query, k, exclude=without, labels=wanted)
            assert ours.ids == theirs.ids
            assert ours.scores.tobytes() == theirs.scores.tobytes()


@pytest.mark.usefixtures("always")
def test_codes_are_read(rng, monkeypatch):
    """The answers of this file are those of codes: without them a scan would answer as well."""
    index = LiveIndex(IndexConfig(dim=8, coded_from=1))
    index.upsert([f"{n}" for n in range(3 * PENDING)], rng.normal(size=(3 * PENDING, 8)).astype(np.float32))
    asked = []
    real = codes.products
    monkeypatch.setattr(codes, "products", lambda *given: asked.append(1) or real(*given))
    index.query(np.ones(8, np.float32), 5)
    assert asked == [1]
    assert (index._table.codes.slips[: 3 * PENDING] < 1.0).all()
    assert index.stats().bytes > LiveIndex(IndexConfig(dim=8, coded_from=0)).stats().bytes


@pytest.mark.usefixtures("always")
def test_what_is_coded_during_a_query_is_not_lost(rng, monkeypatch):
    """A row's old code is multiplied, then the row is coded: by the slip that was read before, it is nominated."""
    index = LiveIndex(IndexConfig(dim=8, coded_from=1))
    names = [f"{n}" for n in range(4 * PENDING)]
    rows = rng.normal(size=(len(names), 8)).astype(np.float32)
    rows[9] = -1.0  # as far from what is asked as its next vector is near
    index.upsert(names, rows)
    index.upsert(["9"], 100.0 * np.ones((1, 8), np.float32))  # waits to be coded
    held, real = index._table.codes, codes.products

    def slowly(*given):
        real(*given)
        held.code(np.array([index._table.slot("9")]), index._table.view.vectors)

    monkeypatch.setattr(codes, "products", slowly)
    assert index.query(np.ones(8, np.float32), 5).ids[0] == "9"


@pytest.mark.usefixtures("always")
def test_what_is_written_and_coded_during_a_query_is_read_again(rng, monkeypatch):
    index = LiveIndex(IndexConfig(dim=8, capacity=4, coded_from=1))
    names = [f"{n}" for n in range(4 * PENDING)]
    rows = rng.normal(size=(len(names), 8)).astype(np.float32)
    index.upsert(names, rows)
    real, left = codes.products, [1]

    def beside(*given):
        real(*given)
        if left and left.pop():
            for name in names[: 2 * PENDING]:  # one by one, as a stream does
                index.upsert([name], 50.0 * rows[:1] / np.linalg.norm(rows[0]))
            index.upsert(["new"], 100.0 * np.ones((1, 8), np.float32))

    monkeypatch.setattr(codes, "products", beside)
    hits = index.query(np.ones(8, np.float32), 5)
    monkeypatch.setattr(codes, "products", real)
    assert hits.ids[0] == "new"
    assert hits.ids == index.query(np.ones(8, np.float32), 5).ids


@pytest.mark.usefixtures("always")
def test_the_centre_follows_the_rows_and_readers_keep_theirs(rng):
    index = LiveIndex(IndexConfig(dim=16, capacity=4, coded_from=1))
    rows = drawn("aside", 9 * PENDING, 16, rng)
    before = index._table.codes
    for first in range(0, len(rows), PENDING // 2):
        part = rows[first : first + PENDING // 2]
        index.upsert([f"{first + at}" for at in range(len(part))], part)
    held = index._table.codes
    assert held is not before
    assert (before.slips > 1.0).all()
    assert (held.slips[: 8 * PENDING] < 0.2).all()  # of rows 40 long, some 4 from their centre


@pytest.mark.usefixtures("always")
def test_no_write_waits_until_all_rows_are_coded_anew(rng, monkeypatch):
    index, twin = LiveIndex(IndexConfig(dim=8, capacity=4, coded_from=1)), ExactIndex(8)
    real, sizes, seen = Codes.code, [], {}
    monkeypatch.setattr(Codes, "code", lambda *given: sizes.append(len(given[1])) or real(*given))
    # Each with one of those before it, further and further from the centre.
    for number in range(20 * PENDING):
        names = [f"{number}", f"{int(rng.integers(number + 1))}"]
        rows = (rng.normal(size=(2, 8)) + 0.001 * number).astype(np.float32)
        for one in (index, twin):
            one.upsert(names, rows)
        seen[id(index._table.codes)] = index._table.codes
        if number % 97 == 0:
            query = rng.normal(size=8).astype(np.float32)
            assert index.query(query, 20).ids == twin.query(query, 20).ids
    assert len(seen) > 4
    assert max(sizes) <= PENDING + codes.RECODED


def test_a_scan_of_codes_costs_a_quarter(rng, monkeypatch):
    monkeypatch.setattr(table, "quicker", lambda dim: True)
    rows = rng.normal(size=(1000, 4)).astype(np.float32)
    costs = {}
    for coded_from in (0, 10, 500, 2000):
        index = LiveIndex(IndexConfig(dim=4, exact_rows=300, coded_from=coded_from, rebuild_process=False))
        index.upsert([f"{n}" for n in range(1000)], rows)
        costs[coded_from] = index._table.cost
        index.merge()
        assert (index.stats().cold > 0) == (costs[coded_from] > 300)  # there is a graph
    assert costs == {0: 1000, 10: 250, 500: 500, 2000: 1000}


@pytest.mark.usefixtures("always")
def test_a_restored_index_is_coded(rng, tmp_path):
    config = IndexConfig(dim=8, coded_from=1)
    index = LiveIndex(config)
    names = [f"{n}" for n in range(700)]
    index.upsert(names, rng.normal(size=(700, 8)).astype(np.float32))
    index.delete(names[:50])
    index.save(tmp_path, {})
    again, _ = LiveIndex.restore(tmp_path, config)
    assert (again._table.codes.slips[50:700] < 1.0).all()
    query = rng.normal(size=8).astype(np.float32)
    assert again.query(query, 20).ids == index.query(query, 20).ids


def test_a_machine_without_the_product_scans_floats(monkeypatch, rng):
    codes.quicker.cache_clear()

    def overflow(rows, query, out):
        out[:] = rows.astype(np.int16) @ query.astype(np.int16)

    monkeypatch.setattr(codes, "products", overflow)
    assert not codes.quicker(64)  # sums overflow
    codes.quicker.cache_clear()

    def none(rows, query, out):
        raise RuntimeError("no such product")

    monkeypatch.setattr(codes, "products", none)
    assert not codes.quicker(64)
    index = LiveIndex(IndexConfig(dim=64, coded_from=1))
    assert index._table.codes is None
    index.upsert(["a"], np.ones((1, 64), np.float32))
    assert index.query(np.ones(64, np.float32), 1).ids == ["a"]
    codes.quicker.cache_clear()
