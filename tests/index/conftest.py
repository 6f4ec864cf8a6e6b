"""Indexes to test, each of them `Queryable` and `Writable`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import pytest

from kithstream.index.config import IndexConfig
from kithstream.index.exact import ExactIndex
from kithstream.index.live import LiveIndex
from kithstream.index.protocol import Queryable, Writable
from kithstream.index.score import Floats, Labels


class Index(Queryable, Writable, Protocol):
    """What the contract is about."""


class Cooled(LiveIndex):
    """A live index whose rows are all cold before anyone asks."""

    def upsert(
        self, ids: Sequence[str], vectors: Floats, *, labels: Labels | None = None, sequence: int = 0
    ) -> int:
        revision = super().upsert(ids, vectors, labels=labels, sequence=sequence)
        self.merge(self.config.hot_capacity)
        return revision


def graph_only(dim: int, **settings: float) -> IndexConfig:
    """A configuration that never scans for cost, with a hot tier that overflows at once."""
    few = {"hot_capacity": 8, "capacity": 2, "exact_rows": 0, "rows_per_fetch": 0, "rebuild_process": False}
    return IndexConfig(dim=dim, **{**few, **settings})  # type: ignore[arg-type]  # ints and floats by name


MAKERS: dict[str, Callable[[int], Index]] = {
    "exact": lambda dim: ExactIndex(dim, capacity=2),
    "live": lambda dim: LiveIndex(IndexConfig(dim=dim)),
    "hot": lambda dim: LiveIndex(graph_only(dim)),
    "cold": lambda dim: Cooled(graph_only(dim)),
}


@pytest.fixture(params=list(MAKERS))
def make(request: pytest.FixtureRequest) -> Callable[[int], Index]:
    return MAKERS[request.param]


@pytest.fixture
def config() -> Callable[..., IndexConfig]:
    return graph_only


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(11)
