"""What an index is to the rest: a `Queryable` for readers, a `Writable` for the one writer, and the values
they exchange."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple, Protocol

from kithstream.index.ranks import Ranks
from kithstream.index.score import Floats, Labels


class Hits(NamedTuple):
    """An answer: ids by descending score, equal scores by ascending id.

    It holds for the state at `revision`: every write that had returned a revision up to it is in it.
    """

    ids: list[str]
    scores: Floats  # (len(ids),)
    plan: str  # exact, allowed, graph or fallback (the graph starved, a scan answered)
    revision: int
    short: str | None  # why fewer than k came


class IndexStats(NamedTuple):
    """Counts of rows and of what was done since the index was made."""

    alive: int
    hot: int  # alive rows in the exact segment
    cold: int  # alive rows that only the graph nominates
    dead: int  # deleted rows that a graph still holds
    revision: int
    bytes: int  # arrays and graphs, estimated; without Python's strings
    bound: float  # largest norm that the graph can hold; 0 without a graph
    above: int  # hot rows whose norm is above the bound: they stay exact until a rebuild
    merges: int
    merging: float  # seconds spent in them
    rebuilds: int
    rebuilding: float  # seconds spent in them; reads and writes go on meanwhile
    raised: int  # rebuilds that raised the bound
    written: int  # rows written into the graphs by merges
    skipped: int  # rows that cooled without a graph write, since they had hardly moved
    waited: int  # upserts that found the hot tier full and merged it themselves
    breadth: float  # times the neighbours that the settings ask of the graph, for the sake of recall


class Queryable(Protocol):
    """An index as readers see it; all of it is safe beside the writer."""

    def query(
        self,
        vector: Floats,
        k: int,
        *,
        exclude: Collection[str] = (),
        allow: Collection[str] | None = None,
        labels: Collection[int] | None = None,
    ) -> Hits:
        """The k best by dot product; `exclude` wins over `allow`, unknown ids in either are ignored."""
        ...

    def scan(
        self,
        vector: Floats,
        k: int,
        *,
        exclude: Collection[str] = (),
        allow: Collection[str] | None = None,
        labels: Collection[int] | None = None,
    ) -> Hits:
        """`query` by a pass over all rows, whatever that costs: the same ids however the index was merged."""
        ...

    def compare(
        self,
        vector: Floats,
        k: int,
        *,
        exclude: Collection[str] = (),
        allow: Collection[str] | None = None,
        labels: Collection[int] | None = None,
    ) -> float | None:
        """The share of a scan's ids that `query` finds, None if there are none. A live index learns from it."""
        ...

    def scores(self, vector: Floats, ids: Sequence[str]) -> Floats:
        """The score of each id, NaN for an unknown one."""
        ...

    def ranks(
        self,
        vectors: Floats,
        pairs: Sequence[tuple[int, str]],
        *,
        exclude: Collection[str] = (),
        allow: Collection[str] | None = None,
        labels: Collection[int] | None = None,
    ) -> Ranks:
        """Where ids stand for queries among everything allowed, in the order of `query`; exact under every plan.

        `vectors` is (q, dim); a pair names the row of one and an id, which need not be allowed itself. Costs a
        pass over all rows for all pairs together.
        """
        ...

    def vector(self, name: str) -> Floats:
        """A copy of the vector; `KeyError` for an unknown id."""
        ...

    def sequence(self, name: str) -> int:
        """What the last upsert gave as `sequence`; `KeyError` for an unknown id."""
        ...

    def ids(self) -> list[str]:
        """All ids, in no order."""
        ...

    def stats(self) -> IndexStats:
        """Counts, for metrics and tests."""
        ...

    def __len__(self) -> int: ...

    def __contains__(self, name: object) -> bool: ...


class Writable(Protocol):
    """An index as its writer sees it; calls from several threads take turns."""

    def upsert(
        self, ids: Sequence[str], vectors: Floats, *, labels: Labels | None = None, sequence: int = 0
    ) -> int:
        """Store vectors (n, dim); they are in every answer from the returned revision on, which is at once.

        An id may repeat: the last one wins. All rows are checked before the first is written. Writes count
        in the order of the calls; `sequence` is kept beside the row and compared with nothing. Without
        `labels` a row has label 0.
        """
        ...

    def delete(self, ids: Sequence[str]) -> int:
        """Forget ids; they are in no answer from the returned revision on. Unknown ids are ignored."""
        ...
