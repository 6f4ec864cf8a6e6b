"""Approximate answers are measured against the scan; what they hold is exact."""

from __future__ import annotations

import numpy as np
import pytest

from kithstream.index.config import IndexConfig
from kithstream.index.exact import ExactIndex
from kithstream.index.live import LiveIndex

N, DIM, K = 6000, 32, 200


def clustered(rng):
    centres = rng.normal(size=(100, DIM))
    rows = centres[rng.integers(0, 100, N)] + 0.5 * rng.normal(size=(N, DIM))
    queries = centres[rng.integers(0, 100, 40)] + 0.5 * rng.normal(size=(40, DIM))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True), queries


def unequal_norms(rng):
    rows, queries = clustered(rng)
    return rows * np.clip(rng.lognormal(0, 0.7, (N, 1)), 0.1, 8.0), queries


@pytest.mark.parametrize("corpus", [clustered, unequal_norms])
def test_recall_against_the_scan_in_every_stage(corpus, rng):
    rows, queries = (array.astype(np.float32) for array in corpus(rng))
    config = IndexConfig(
        dim=DIM, exact_rows=0, rows_per_fetch=0, recall_wanted=0.0, hot_capacity=1024, rebuild_process=False
    )
    index, oracle = LiveIndex(config), ExactIndex(DIM)
    names = [f"{number}" for number in range(N)]
    for each in (index, oracle):
        each.upsert(names, rows)
    index.merge()
    measured = {"built": recall(index, oracle, queries, names[:300])}
    order = rng.permutation(N)[:1200]
    moved = rows[order] + 0.2 * rows[rng.permutation(N)[:1200]]
    for start in range(0, 1200, 50):
        part = order[start : start + 50]
        for each in (index, oracle):
            each.upsert([names[at] for at in part], moved[start : start + 50])
    index.merge(1024)
    measured["moved"] = recall(index, oracle, queries, names[:300])
    for each in (index, oracle):
        each.delete(names[::5])
    measured["a fifth dead"] = recall(index, oracle, queries, names[:300])
    index.rebuild()
    measured["rebuilt"] = recall(index, oracle, queries, names[:300])
    assert min(measured.values()) >= 0.99, measured


def recall(index, oracle, queries, exclude):
    found = 0.0
    for query in queries:
        hits, want = index.query(query, K, exclude=exclude), oracle.query(query, K, exclude=exclude)
        assert hits.plan == "graph"
        assert len(hits.ids) == K
        assert not set(hits.ids) & set(exclude)
        assert hits.scores.tobytes() == oracle.scores(query, hits.ids).tobytes()
        found += len(set(hits.ids) & set(want.ids)) / K
    return found / len(queries)
