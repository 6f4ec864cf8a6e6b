"""What a query may return, and the plan that finds it at the least cost: pure functions of counts."""

from __future__ import annotations

from collections.abc import Collection, Set
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from kithstream.index.score import Doubles, Floats, checked_query


class Request(NamedTuple):
    """A checked query."""

    query: Floats  # (dim,)
    wide: Doubles  # (dim,) the same
    norm: float
    k: int
    exclude: Set[str]
    allow: frozenset[str] | None
    labels: frozenset[int] | None

    @classmethod
    def of(
        cls,
        vector: ArrayLike,
        k: int,
        dim: int,
        exclude: Collection[str],
        allow: Collection[str] | None,
        labels: Collection[int] | None,
    ) -> Request:
        if isinstance(k, bool) or not isinstance(k, int | np.integer):
            raise TypeError(f"k is an integer, not {k!r}")
        if k < 1:
            raise ValueError(f"k is at least 1, not {k}")
        for name, ids in (("exclude", exclude), ("allow", allow)):
            if isinstance(ids, str):
                raise TypeError(f"{name} is a collection of ids, not one string: {ids!r}")
        query, norm = checked_query(vector, dim)
        return cls(
            query,
            query.astype(np.float64),
            norm,
            int(k),
            exclude if isinstance(exclude, Set) else frozenset(exclude),  # a large one is not copied
            None if allow is None else frozenset(allow).difference(exclude),
            None if labels is None else frozenset(map(int, labels)),
        )


class Counts(NamedTuple):
    """What the planner knows before it looks at a vector."""

    alive: int
    cold: int  # alive rows that only the graph nominates
    known: int  # vectors in the graph, with the dead and the ones that are hot again
    excluded: int  # excluded rows among the cold
    bands: int  # graphs to ask, each for all neighbours
    wanted: int  # alive rows with a wanted label; `alive` without a label filter
    scan: int  # rows of floats that a scan costs as much as


class Rules(NamedTuple):
    """Where the plans' costs cross; see `IndexConfig`."""

    exact_rows: int
    rows_per_fetch: int
    ef: int
    overfetch: float

    def broader(self, times: float) -> Rules:
        """The same with so many times the neighbours asked for."""
        if times == 1.0:
            return self
        return self._replace(ef=int(self.ef * times), overfetch=self.overfetch * times)


class Plan(NamedTuple):
    """How to find the answer; `fetch` neighbours are asked of the graph."""

    name: Literal["exact", "graph", "fallback"]
    fetch: int = 0


def choose(k: int, counts: Counts, rules: Rules) -> Plan:
    """The first plan: a scan while it is cheap, else the graph with room for everything that will be dropped.

    >>> rules = Rules(exact_rows=20_000, rows_per_fetch=75, ef=256, overfetch=1.5)
    >>> choose(200, Counts(alive=5_000, cold=0, known=0, excluded=0, bands=1, wanted=5_000, scan=5_000), rules)
    Plan(name='exact', fetch=0)
    >>> choose(200, Counts(1_000_000, 900_000, 900_000, 500, 4, 1_000_000, 1_000_000), rules)
    Plan(name='graph', fetch=800)
    >>> choose(200, Counts(100_000, 90_000, 90_000, 5_000, 4, 100_000, 100_000), rules)
    Plan(name='exact', fetch=0)
    """
    if counts.known == 0 or counts.wanted == 0 or counts.scan <= rules.exact_rows:
        return Plan("exact")
    useful = max(1, counts.cold) / counts.known * counts.wanted / counts.alive
    fetch = max(rules.ef, int((rules.overfetch * k + counts.excluded) / useful))
    return _within(fetch, counts.bands, counts, rules, "exact")


def widen(plan: Plan, counts: Counts, rules: Rules) -> Plan:
    """The next plan when the graph gave too few: twice the neighbours, or the scan once that is dearer."""
    if plan.fetch >= counts.known:
        return Plan("fallback")
    return _within(2 * plan.fetch, 1, counts, rules, "fallback")


def _within(fetch: int, bands: int, counts: Counts, rules: Rules, scan: Literal["exact", "fallback"]) -> Plan:
    if fetch * bands * rules.rows_per_fetch > counts.scan:
        return Plan(scan)
    return Plan("graph", min(fetch, counts.known))
