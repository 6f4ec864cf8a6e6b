"""Any sequence of writes, merges, rebuilds and restarts answers as a dict of vectors would."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kithstream.index.config import IndexConfig
from kithstream.index.live import LiveIndex
from kithstream.index.score import score

DIM = 4
IDS = st.sampled_from([f"account-{number}" for number in range(24)])
PART = st.sampled_from([-1.0, -0.5, 0.0, 0.25, 0.5, 1.0, 3.0])  # few values: many ties and small moves
VECTOR = st.lists(PART, min_size=DIM, max_size=DIM).filter(any)
SCALE = st.sampled_from([1.0, 1.0, 1.0, 1.004, 0.01, 40.0])  # within epsilon, tiny, above the bound
LABELS = st.integers(0, 2)


class LiveAgainstDict(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.config = IndexConfig(
            dim=DIM,
            capacity=1,
            exact_rows=0,
            rows_per_fetch=0,
            hot_capacity=5,
            growth=1.0,
            links=8,
            band_ratio=1.0,
            rebuild_process=False,
        )
        self.index = LiveIndex(self.config)
        self.model = {}
        self.revision = 0

    @rule(
        rows=st.lists(st.tuples(IDS, VECTOR, SCALE, LABELS), min_size=1, max_size=8),
        sequence=st.integers(0, 99),
    )
    def upsert(self, rows, sequence):
        vectors = np.array([np.array(vector) * scale for _, vector, scale, _ in rows], np.float32)
        labels = np.array([label for *_, label in rows], np.int32)
        revision = self.index.upsert([name for name, *_ in rows], vectors, labels=labels, sequence=sequence)
        assert revision > self.revision
        self.revision = revision
        for at, (name, *_, label) in enumerate(rows):
            self.model[name] = (vectors[at], label, sequence)

    @rule(names=st.lists(IDS, min_size=1, max_size=6))
    def delete(self, names):
        self.revision = self.index.delete(names)
        for name in names:
            self.model.pop(name, None)

    @rule(rows=st.none() | st.integers(0, 6))
    def merge(self, rows):
        self.index.merge(rows)

    @rule(rows=st.none() | st.integers(0, 6))
    def rebuild(self, rows):
        self.index.rebuild(rows)
        if rows is None or rows == 0:
            assert self.index.stats().dead == 0

    @rule()
    def restart(self):
        with tempfile.TemporaryDirectory() as directory:
            self.index.save(Path(directory), {"revision": self.revision})
            self.index, metadata = LiveIndex.restore(Path(directory), self.config)
        assert metadata == {"revision": self.revision}
        self.revision = 0

    @rule(
        query=VECTOR,
        k=st.integers(1, 30),
        exclude=st.frozensets(IDS, max_size=8),
        allow=st.none() | st.frozensets(IDS, max_size=12),
        labels=st.none() | st.frozensets(LABELS, max_size=2),
    )
    def query(self, query, k, exclude, allow, labels):
        vector = np.array(query, np.float32)
        hits = self.index.query(vector, k, exclude=exclude, allow=allow, labels=labels)
        allowed = [
            name
            for name, (_, label, _) in self.model.items()
            if name not in exclude
            and (allow is None or name in allow)
            and (labels is None or label in labels)
        ]
        rows = np.array([self.model[name][0] for name in allowed], np.float32).reshape(-1, DIM)
        scores = score(rows, vector.astype(np.float64))
        best = sorted(zip((-scores).tolist(), allowed, strict=True))[:k]
        assert hits.ids == [name for _, name in best]
        assert hits.scores.tolist() == [-negative for negative, _ in best]
        assert (hits.short is None) == (len(allowed) >= k)
        assert hits.revision >= self.revision

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def read(self, data):
        name = data.draw(st.sampled_from(sorted(self.model)))
        vector, _, sequence = self.model[name]
        assert self.index.vector(name).tobytes() == vector.tobytes()
        assert self.index.sequence(name) == sequence

    @invariant()
    def the_same_ids_are_known(self):
        assert sorted(self.index.ids()) == sorted(self.model)
        assert len(self.index) == len(self.model)
        stats = self.index.stats()
        assert stats.hot <= 5
        assert stats.hot + stats.cold in (0, len(self.model))

    @invariant()
    def the_graphs_hold_the_slots_that_they_should(self):
        assert self.index.check(0, np.random.default_rng(0)).sound


LiveAgainstDict.TestCase.settings = settings(
    max_examples=20, stateful_step_count=30, suppress_health_check=[HealthCheck.too_slow]
)
TestLiveAgainstDict = LiveAgainstDict.TestCase
