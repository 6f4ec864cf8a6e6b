"""What each measurement is held against: the bars of performance, for two cores and 100,000 accounts unless said."""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

Sense = Literal["at least", "at most"]


class Condition(NamedTuple):
    """One figure of a measurement, and the value it has to reach."""

    figure: str
    sense: Sense
    value: float

    def met(self, reached: float) -> bool:
        """Tell whether a value reaches the bar."""
        return reached >= self.value if self.sense == "at least" else reached <= self.value

    def better(self, one: float, other: float) -> bool:
        """Tell whether one value is better than another."""
        return one > other if self.sense == "at least" else one < other


class Bar(NamedTuple):
    """What is measured, and the conditions on its figures."""

    what: str
    conditions: tuple[Condition, ...]


def _bar(what: str, *conditions: tuple[str, Sense, float]) -> Bar:
    return Bar(what, tuple(Condition(*condition) for condition in conditions))


BARS: Final[dict[str, Bar]] = {
    "fold": _bar(
        "fold embedded, both ledgers and rows in RocksDB with its log on, full mix, batch 2,000, 2M edges before",
        ("events_per_cpu_second", "at least", 45_000),
    ),
    "fold_large": _bar("the same at 1M accounts and 20M edges", ("times_dearer", "at most", 1.5)),
    "store_short": _bar("store after compaction, short ids", ("bytes_per_edge_and_side", "at most", 48)),
    "store_long": _bar(
        "store after compaction, ids of 36 characters", ("bytes_per_edge_and_side", "at most", 96)
    ),
    "kafka": _bar(
        "Kafka end to end, broker and publisher on the same two cores, flat lag",
        ("events_per_second", "at least", 15_000),
        ("times_plain_faust", "at least", 5),
    ),
    "visible_1k": _bar("publish to visible at 1,000 events/s", ("p99_ms", "at most", 50)),
    "visible_5k": _bar("publish to visible at 5,000 events/s", ("p99_ms", "at most", 150)),
    "upsert": _bar("upsert to visible in the index", ("p50_us", "at most", 20), ("p99_us", "at most", 100)),
    "core_idle": _bar(
        "retrieval core, k = 200, idle",
        ("recall_at_200", "at least", 0.99),
        ("p50_us", "at most", 600),
        ("p99_us", "at most", 2000),
    ),
    "core_loaded": _bar(
        "retrieval core, k = 200, under 5,000 small-drift events/s",
        ("p50_times_idle", "at most", 1.25),
        ("p99_us", "at most", 3000),
    ),
    "core_million": _bar(
        "retrieval core, k = 200, 1M accounts",
        ("recall_at_200", "at least", 0.99),
        ("p50_us", "at most", 2000),
    ),
    "http_300": _bar("HTTP query at 300/s", ("p99_ms", "at most", 5)),
    "http_most": _bar("HTTP queries on one core", ("per_second", "at least", 1500)),
    "stream_100": _bar("stream request-reply at 100/s", ("p99_ms", "at most", 25)),
    "recall_own": _bar(
        "recall against exact on the tower's own vectors, Higgs, 290k accounts",
        ("recall_at_200", "at least", 0.99),
        ("p50_us", "at most", 1500),
    ),
    "recall_own_million": _bar(
        "recall against exact on the tower's own vectors, simulator, 1M accounts",
        ("recall_at_200", "at least", 0.99),
        ("p50_us", "at most", 1500),
    ),
    "churn": _bar(
        "recall after 10x churn, live and after the automatic rebuild",
        ("recall_at_200", "at least", 0.985),
        ("recall_at_200_rebuilt", "at least", 0.99),
    ),
    "restore": _bar("restore, 100k vectors and 5M edges, ready from own disk", ("seconds", "at most", 10)),
    "memory": _bar(
        "memory per indexed account beside the state cache's bound", ("bytes_per_account", "at most", 1536)
    ),
}
