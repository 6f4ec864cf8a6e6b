"""The index's section of the configuration."""

from __future__ import annotations

import msgspec

from kithstream.index.exclude import Rules


class IndexConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Sizes and thresholds of a live index.

    dim               dimensions of a vector
    capacity          rows allocated at the start; the table doubles beyond
    exact_rows        rows of floats; a corpus of which a scan costs no more is scanned and has no graph
    rows_per_fetch    rows of floats that are scanned in the time the graph takes for one neighbour; 0: never
                      scan for cost
    coded_from        rows; from this size on a scan reads 8 bits a dimension first, on a machine that is some
                      four times quicker so, with the same answers; 0: floats alone
    hot_capacity      rows of the exact segment of recently changed accounts
    cool_above        share of hot_capacity; the background merger starts when more is in use
    cool_to           share of hot_capacity that stays hot after a merge or rebuild
    links             links of an element (M of the literature); the lowest level has twice as many
    ef_construction   breadth of the search that places an element
    ef                neighbours asked of the graph at least, which is the breadth of a query's search
    overfetch         neighbours asked per wanted hit: a graph misses some, and rows moved since it saw them
    bands             graphs at most, by norm; 1: never split
    band_ratio        norms at least so far apart, as a factor, for a band of their own
    epsilon           squared distance over twice the squared norm (for unit vectors: 1 - cosine) that a row
                      may have moved from where the graph holds it without a new graph write
    bound             largest norm of the lineage's vectors; 0: measured whenever a graph is built
    headroom          factor on a measured bound
    growth            vectors a built graph has room for, per vector in it; beside them there is room for the
                      hot tier
    dead_share        share of dead vectors in the graph that asks for a rebuild
    moved_share       share of vectors written again since the build that asks for a rebuild
    above_share       share of hot_capacity that is above the bound, which asks for a rebuild
    recall_wanted     share of exact answers that a graph is to find: while comparisons show less it is asked for
                      more neighbours; 0: never for more
    recall_floor      shadow recall in a `check` below which it asks for a rebuild
    degree_floor      mean degree over the degree when built below which a `check` asks for a rebuild
    rebuild_process   whether the merger builds a graph in another process: slower by two copies, but readers
                      keep their pace
    seed              of the graph's level draws
    """

    dim: int
    capacity: int = 1024
    exact_rows: int = 250_000
    rows_per_fetch: int = 100
    coded_from: int = 16_384
    hot_capacity: int = 32_768
    cool_above: float = 0.75
    cool_to: float = 0.5
    links: int = 16
    ef_construction: int = 200
    ef: int = 1000
    overfetch: float = 10.0
    bands: int = 6
    band_ratio: float = 1.5
    epsilon: float = 0.01
    bound: float = 0.0
    headroom: float = 1.1
    growth: float = 1.5
    dead_share: float = 0.25
    moved_share: float = 0.25
    above_share: float = 0.125
    recall_wanted: float = 0.99
    recall_floor: float = 0.98
    degree_floor: float = 0.8
    rebuild_process: bool = True
    seed: int = 100

    def __post_init__(self) -> None:
        for name in ("dim", "capacity", "hot_capacity", "bands", "links", "ef_construction", "ef"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is at least 1, not {getattr(self, name)}")
        for name in ("exact_rows", "rows_per_fetch", "coded_from", "epsilon", "bound"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is at least 0, not {getattr(self, name)}")
        for name in ("overfetch", "band_ratio", "headroom", "growth"):
            if not getattr(self, name) >= 1:
                raise ValueError(f"{name} is at least 1, not {getattr(self, name)}")
        if not 0 <= self.cool_to < self.cool_above <= 1:
            raise ValueError(
                f"cool_to {self.cool_to} is below cool_above {self.cool_above}, both within 0 to 1"
            )

    @property
    def rules(self) -> Rules:
        """The planner's part."""
        return Rules(self.exact_rows, self.rows_per_fetch, self.ef, self.overfetch)

    @property
    def hot_stays(self) -> int:
        """Rows that stay hot after a merge."""
        return int(self.hot_capacity * self.cool_to)
