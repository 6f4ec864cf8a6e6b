"""Many excluded ids: the best are asked for their names instead of all ids for their rows, with the same answer."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kithstream.index import exact, table
from kithstream.index.config import IndexConfig
from kithstream.index.exact import FEWER, MARGIN, ExactIndex
from kithstream.index.live import LiveIndex
from kithstream.index.score import score

DIM = 8
NAMES = [f"{number}" for number in range(1200)]


@pytest.fixture(params=["floats", "codes", "codes that nominate too many"])
def make(request, monkeypatch):
    monkeypatch.setattr(table, "quicker", lambda dim: True)
    monkeypatch.setattr(exact, "WORTH", 10**9 if "many" in request.param else 1)
    coded = request.param != "floats"
    return lambda: LiveIndex(IndexConfig(dim=DIM, coded_from=1)) if coded else ExactIndex(DIM)


def best_of(vectors, query, allowed, k):
    scores = score(vectors, query.astype(np.float64))
    return sorted(
        (at for at in range(len(NAMES)) if NAMES[at] in allowed), key=lambda at: (-scores[at], NAMES[at])
    )[:k]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    k=st.integers(1, 60),
    among_best=st.integers(0, 1200),
    others=st.integers(0, 1200),
    equal=st.booleans(),
    labels=st.sampled_from([None, {1}]),
    seed=st.integers(0, 2**32),
)
def test_the_answer_is_that_of_sorting_all(make, k, among_best, others, equal, labels, seed):
    rng = np.random.default_rng(seed)
    index, vectors = make(), rng.normal(size=(len(NAMES), DIM)).astype(np.float32)
    if equal:
        vectors = vectors[rng.integers(0, 30, len(NAMES))]
    kinds = rng.integers(0, 3, len(NAMES)).astype(np.int32)
    index.upsert(NAMES, vectors, labels=kinds)
    gone = rng.choice(NAMES, 20, replace=False).tolist()
    index.delete(gone)
    query = rng.normal(size=DIM).astype(np.float32)
    first = best_of(vectors, query, set(NAMES), among_best)
    exclude = {NAMES[at] for at in first} | set(rng.choice(NAMES, others).tolist()) | {"unknown"}
    allowed = set(NAMES) - exclude - set(gone)
    if labels is not None:
        allowed = {name for name in allowed if kinds[int(name)] in labels}
    hits = index.query(query, k, exclude=exclude, labels=labels)
    assert hits.ids == [NAMES[at] for at in best_of(vectors, query, allowed, k)]
    assert (hits.short is None) == (len(allowed) >= k)


@pytest.mark.parametrize(("excluded", "lookups"), [(400, 400), (800, 0)])
def test_the_fewer_are_looked_up(make, rng, monkeypatch, excluded, lookups):
    """Excluded ids while they are fewer than the nominees; beyond, whoever is not near the best costs nothing."""
    index, vectors = make(), rng.normal(size=(len(NAMES), DIM)).astype(np.float32)
    index.upsert(NAMES, vectors)
    query = rng.normal(size=DIM).astype(np.float32)
    worst_first = best_of(vectors, query, set(NAMES), len(NAMES))[::-1]
    asked = []
    slots_of = table.VectorTable.slots_of
    monkeypatch.setattr(
        table.VectorTable, "slots_of", lambda self, ids: asked.append(len(ids)) or slots_of(self, ids)
    )
    assert 400 < FEWER * (50 + MARGIN) < 800
    index.query(query, 50, exclude={NAMES[at] for at in worst_first[:excluded]})
    assert sum(asked) == lookups
