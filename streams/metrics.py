"""What is counted and measured, on a registry that is passed in; names end in their unit.

A round from log to index is taken in one call, the times of its records as one array; nothing is looked up
per event.
"""

from __future__ import annotations

import threading
from collections import Counter as Tally
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from kithstream.index.breadth import DEPTH
from kithstream.streams.events.stamp import wall_clock
from kithstream.streams.serve.served import LISTS, RECALLS, TOP

if TYPE_CHECKING:
    from kithstream.index.protocol import IndexStats
    from kithstream.streams.kafka.retrieval import Retrieval
    from kithstream.streams.kafka.stream import Stream
    from kithstream.streams.kafka.trainer import Trainer
    from kithstream.streams.serve.embedded import Embedded, Pumped
    from kithstream.streams.serve.facts import Facts
    from kithstream.streams.serve.served import Served

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST
REASONS: Final = (
    "oversize",
    "malformed",
    "wrong_type",
    "unknown_signal",
    "missing",
    "bad_id",
    "self_edge",
    "future",
    "out_of_range",
    "too_late",
    "deleted",
)
SECONDS: Final = (
    0.0001,
    0.00025,
    0.0005,
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
)
DIRTY: Final = "Accounts that changed and are not encoded yet."
LONG: Final = (*SECONDS, 30.0, 60.0, 300.0, 3600.0)  # a backlog becomes visible late


class Spread(Collector):
    """A histogram that takes arrays: one call for a batch, whatever its size."""

    def __init__(self, name: str, text: str, bounds: Sequence[float]) -> None:
        self._name, self._text = name, text
        self._bounds = np.asarray(bounds, np.float64)
        self._counts = np.zeros(len(bounds) + 1, np.int64)
        self._sum = 0.0
        self._lock = threading.Lock()

    def observe(self, values: ArrayLike) -> None:
        """Count each value in the first bucket whose bound it does not exceed."""
        array = np.asarray(values, np.float64)
        places = np.searchsorted(self._bounds, array, side="left")
        counts = np.bincount(places, minlength=len(self._counts))
        with self._lock:
            self._counts += counts
            self._sum += float(array.sum())

    def describe(self) -> Iterable[Metric]:
        """The name alone."""
        return [HistogramMetricFamily(self._name, self._text)]

    def collect(self) -> Iterable[Metric]:
        """The buckets, cumulative."""
        with self._lock:
            below, total = np.cumsum(self._counts).tolist(), self._sum
        names = [*(repr(float(bound)) for bound in self._bounds), "+Inf"]
        return [
            HistogramMetricFamily(
                self._name, self._text, buckets=list(zip(names, below, strict=True)), sum_value=total
            )
        ]


class ServeMetrics:
    """What an HTTP server and the index behind it count. `clock` is what append times are compared with."""

    def __init__(self, registry: CollectorRegistry, *, clock: Callable[[], int] = wall_clock) -> None:
        self._registry = registry
        self._clock = clock
        self._upserted = Counter(
            "kithstream_vectors_upserted_total", "Vectors written into the index.", registry=registry
        ).inc
        self._freshness = Spread(
            "kithstream_freshness_seconds", "From a record's append to its being visible in answers.", LONG
        )
        self._event_freshness = Spread(
            "kithstream_event_freshness_seconds",
            "From an event's own time to its being visible in answers.",
            LONG,
        )
        registry.register(self._freshness)
        registry.register(self._event_freshness)
        self._query = Histogram(
            "kithstream_query_seconds",
            "One answer, without its wait for a token and for a thread.",
            buckets=SECONDS,
            registry=registry,
        )
        self._wait = Histogram(
            "kithstream_wait_seconds",
            "The wait of a question for its token's state.",
            buckets=SECONDS,
            registry=registry,
        )
        self._http = Histogram(
            "kithstream_http_request_seconds",
            "One HTTP request, from its headers to its last byte.",
            ["route", "status"],
            buckets=SECONDS,
            registry=registry,
        )
        self._observed: dict[tuple[str, int], Callable[[float], None]] = {}

    def visible(self, upserted: int, appended: Sequence[int], times: Sequence[int]) -> None:
        """Take note of vectors, and of when what they stand for was appended and came about (microseconds)."""
        if upserted:
            self._upserted(upserted)
        if appended:
            now = self._clock()
            self._freshness.observe((now - np.asarray(appended, np.int64)) / 1e6)
            self._event_freshness.observe(np.maximum(now - np.asarray(times, np.int64), 0) / 1e6)

    def queried(self, seconds: float) -> None:
        """Take note of one answer."""
        self._query.observe(seconds)

    def waited(self, seconds: float) -> None:
        """Take note of one wait for a token."""
        self._wait.observe(seconds)

    def requested(self, route: str, status: int, seconds: float) -> None:
        """Take note of one HTTP request; `route` is one of a small set, never a path."""
        observe = self._observed.get((route, status))
        if observe is None:
            observe = self._observed[route, status] = self._http.labels(route, str(status)).observe
        observe(seconds)

    def watch_worker(self, retrieval: Retrieval) -> None:
        """Read a retrieval process' gauges whenever the registry is read."""
        self._registry.register(_WorkerGauges(retrieval))
        self._registry.register(
            _OfServed(
                retrieval.answered,
                lambda: None if retrieval.served is None else retrieval.served.tail.facts,
            )
        )

    def text(self) -> bytes:
        """Return everything as Prometheus reads it; its content type is `CONTENT_TYPE`."""
        return generate_latest(self._registry)


class Metrics(ServeMetrics):
    """The same and what a runtime that folds by itself counts."""

    def __init__(self, registry: CollectorRegistry, *, clock: Callable[[], int] = wall_clock) -> None:
        super().__init__(registry, clock=clock)
        records = Counter(
            "kithstream_records_total", "Records folded, by outcome.", ["outcome"], registry=registry
        )
        self._accepted = records.labels("accepted").inc
        self._refused = records.labels("dead").inc
        letters = Counter(
            "kithstream_dead_letters_total",
            "Records that could not be used, by reason.",
            ["reason"],
            registry=registry,
        )
        self._letters = {reason: letters.labels(reason).inc for reason in (*REASONS, "other")}
        self._learned = Counter(
            "kithstream_follows_learned_total", "Follows that the towers were trained on.", registry=registry
        ).inc
        self._folding, self._encoding = _rounds(registry)

    def pumped(self, pumped: Pumped) -> None:
        """Take note of one round from log to index; fits `Embedded.on_pumped`."""
        if pumped.records:
            self._accepted(pumped.accepted)
            self._folding.observe(pumped.folding)
        if pumped.dead:
            self._refused(len(pumped.dead))
            for reason, count in Tally(letter.reason for letter in pumped.dead).items():
                self._letters.get(reason, self._letters["other"])(count)
        if pumped.learned:
            self._learned(pumped.learned)
        if pumped.upserted:
            self._encoding.observe(pumped.encoding)
        self.visible(pumped.upserted, pumped.appended, pumped.times)

    def watch(self, live: Embedded) -> None:
        """Read a runtime's gauges whenever the registry is read."""
        self._registry.register(_Gauges(live))
        self._registry.register(
            _OfServed(live.served, lambda: None if live.chain.whole is None else live.chain.whole.facts)
        )


@contextmanager
def of_trainer(trainer: Trainer, port: int) -> Iterator[None]:
    """Serve what a trainer says of itself on a port of the loopback; on none if `port` is 0."""
    if not port:
        yield
        return
    registry = CollectorRegistry()
    for name, text, read in (
        ("step", "Step of the model.", lambda: trainer.learner.model.step),
        ("behind_records", "Records of the training log not learned from.", lambda: trainer.behind),
        ("loss", "Mean loss of the examples learned from last.", lambda: trainer.loss),
        ("accounts", "Accounts with learned vectors.", lambda: len(trainer.learner.model.ids)),
        ("examples", "Follows learned from since the start.", lambda: trainer.examples),
        ("published_records", "Records of steps since the start.", lambda: trainer.published),
        ("unusable_records", "Records of the log passed over since the start.", lambda: trainer.unusable),
    ):
        Gauge(f"kithstream_trainer_{name}", text, registry=registry).set_function(read)
    server, thread = start_http_server(port, "127.0.0.1", registry)
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _rounds(registry: CollectorRegistry) -> tuple[Histogram, Histogram]:
    folding = Histogram(
        "kithstream_fold_seconds",
        "One round of the two stages, if it had records.",
        buckets=SECONDS,
        registry=registry,
    )
    encoding = Histogram(
        "kithstream_encode_seconds",
        "One round of towers and index, if it wrote vectors.",
        buckets=SECONDS,
        registry=registry,
    )
    return folding, encoding


class _WorkerGauges(Collector):
    """What a retrieval process says of itself when it is asked."""

    def __init__(self, retrieval: Retrieval) -> None:
        self._retrieval = retrieval

    def describe(self) -> Iterable[Metric]:
        return []

    def collect(self) -> Iterable[Metric]:
        retrieval = self._retrieval
        if (served := retrieval.served) is not None:
            yield from _of_index(served.index.stats())
            info = GaugeMetricFamily(
                "kithstream_lineage_step", "Step of the model that answers.", labels=["lineage"]
            )
            info.add_metric([served.lineage], served.model.step)
            yield info
        for name, text, value in (
            (
                "kithstream_replica_behind_records",
                "Vectors published and not in this index.",
                retrieval.behind,
            ),
            (
                "kithstream_worker_owned_partitions",
                "Partitions that this worker answers for.",
                len(retrieval.reading.numbers),
            ),
            (
                "kithstream_worker_rebalancing",
                "1 while partitions are being moved.",
                int(retrieval.standing.rebalancing),
            ),
            (
                "kithstream_worker_ready",
                "1 if questions are answered as they should be.",
                int(retrieval.readiness().ready),
            ),
            ("kithstream_pushes_waiting", "Accounts that a fresh list is due for.", len(retrieval.pushes)),
        ):
            yield GaugeMetricFamily(name, text, value)
        for name, text, value in (
            ("kithstream_pushed", "Fresh lists pushed.", retrieval.pushed),
            (
                "kithstream_pushes_passed_over",
                "Accounts not taken in, since too many waited.",
                retrieval.pushes.passed_over,
            ),
            (
                "kithstream_requests_dropped",
                "Requests over the stream that could not be replied to.",
                retrieval.dropped,
            ),
            ("kithstream_unusable_vectors", "Records of vectors that are none.", retrieval.unusable),
            (
                "kithstream_snapshots_refused",
                "Snapshots of the index not gone on from: all vectors were read.",
                retrieval.snapshots_refused,
            ),
            (
                "kithstream_snapshots_saved",
                "Snapshots of the index written.",
                sum(feed.saved for feed in retrieval.feeds.values()),
            ),
            (
                "kithstream_snapshots_failed",
                "Snapshots of the index that the disk refused.",
                sum(feed.failed for feed in retrieval.feeds.values()),
            ),
            (
                "kithstream_replica_read_records",
                "Vectors read of their topics.",
                sum(feed.read for feed in retrieval.feeds.values()),
            ),
        ):
            yield CounterMetricFamily(name, text, value)


def _of_index(stats: IndexStats) -> Iterator[Metric]:
    rows = GaugeMetricFamily(
        "kithstream_index_rows", "Accounts of the index, by where they are.", labels=["tier"]
    )
    for tier in ("alive", "hot", "cold", "dead"):
        rows.add_metric([tier], getattr(stats, tier))
    yield rows
    yield GaugeMetricFamily("kithstream_index_bytes", "Memory of arrays and graphs.", stats.bytes)
    yield GaugeMetricFamily(
        "kithstream_index_breadth_ratio",
        "Neighbours asked of the graphs for the sake of recall, over those of the settings.",
        stats.breadth,
    )
    yield CounterMetricFamily(
        "kithstream_index_merges", "Merges of cooled rows into the graphs.", stats.merges
    )
    yield CounterMetricFamily("kithstream_index_rebuilds", "Rebuilds of the graphs.", stats.rebuilds)
    for name, text, seconds in (
        ("kithstream_index_merge_seconds", "Time spent in merges.", stats.merging),
        ("kithstream_index_rebuild_seconds", "Time spent in rebuilds, beside reads.", stats.rebuilding),
    ):
        yield CounterMetricFamily(name, text, seconds)
    yield CounterMetricFamily(
        "kithstream_index_full_waits", "Upserts that found the hot tier full.", stats.waited
    )


class _OfServed(Collector):
    """What answers are like; how they spread is counted when it is read."""

    def __init__(self, served: Served, facts: Callable[[], Facts | None]) -> None:
        self._served, self._facts = served, facts
        self._recall = Spread(
            "kithstream_shadow_recall_ratio",
            f"Recall of the {DEPTH} best of the graph against an exact scan, of sampled answers.",
            (*RECALLS, 1.0),
        )
        served.compared = lambda recall: self._recall.observe([recall])

    def describe(self) -> Iterable[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        served = self._served
        answers = CounterMetricFamily(
            "kithstream_answers",
            "Answers, by plan of the index and by what ranked.",
            labels=["plan", "ranked_by"],
        )
        for (plan, by), count in sorted(served.answers.copy().items()):
            answers.add_metric([plan, by], count)
        yield answers
        first = CounterMetricFamily(
            "kithstream_first_candidates",
            "Answers, by the language of the first candidate beside the account's own.",
            labels=["language"],
        )
        for language, count in sorted(served.first.copy().items()):
            first.add_metric([language], count)
        yield first
        yield CounterMetricFamily(
            "kithstream_short_answers", "Answers with fewer candidates than asked for.", served.short
        )
        if (facts := self._facts()) is not None:
            spread = served.exposure(facts)
            for name, text, value in (
                (
                    "kithstream_popularity_correlation_ratio",
                    f"Pearson's, of followers and times among the first {TOP} of the newest answers (PRPC).",
                    spread.correlation,
                ),
                (
                    "kithstream_shown_accounts",
                    f"Accounts among the first {TOP} of the newest {LISTS} answers.",
                    spread.shown,
                ),
            ):
                yield GaugeMetricFamily(name, text, value)
        yield from self._recall.collect()


class _Gauges(Collector):
    """What a runtime says of itself when it is asked."""

    def __init__(self, live: Embedded) -> None:
        self._live = live

    def describe(self) -> Iterable[Metric]:
        return []

    def collect(self) -> Iterable[Metric]:
        live = self._live
        yield GaugeMetricFamily(
            "kithstream_behind_records", "Records published and not visible yet.", live.behind
        )
        yield GaugeMetricFamily("kithstream_dirty_rows", DIRTY, len(live.chain.vectors.dirty))
        yield from _of_index(live.chain.index.stats())
        lag = GaugeMetricFamily(
            "kithstream_watermark_lag_seconds",
            "Time of day less the newest event time, by partition.",
            labels=["partition"],
        )
        now = live.as_of
        for partition in live.engine.partitions:
            if partition.watermark > 0:
                lag.add_metric([str(partition.number)], (now - partition.watermark) / 1e6)
        yield lag
        yield GaugeMetricFamily(
            "kithstream_model_step", "Training steps of the towers.", live.chain.model.step
        )
        kept = live.snapshots
        for name, text, value in (
            (
                "kithstream_snapshots_saved",
                "Snapshots of the index written since the runtime was opened.",
                kept.saved,
            ),
            ("kithstream_snapshots_failed", "Saves that the disk refused since then.", kept.failed),
            (
                "kithstream_snapshots_refused",
                "Snapshots refused when it was opened: every account was encoded.",
                kept.refused,
            ),
        ):
            yield CounterMetricFamily(name, text, value)
        yield GaugeMetricFamily(
            "kithstream_recovery_seconds",
            "From open stores to an index that is whole.",
            live.recovery.seconds,
        )
        yield GaugeMetricFamily(
            "kithstream_recovery_encoded_rows", "Vectors encoded for that.", live.recovery.encoded
        )
        yield GaugeMetricFamily("kithstream_folding_up", "0 if the folding thread died.", not live.failed)


def fresh() -> Metrics:
    """Return metrics on a registry of their own."""
    return Metrics(CollectorRegistry())


class StreamMetrics:
    """What the stream process of a worker tells; its retrieval process shows it beside its own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._current: _Standing | None = None
        self._folding, self._encoding = _rounds(self._registry)
        self._registry.register(self)

    def folded(self, seconds: float) -> None:
        """Take note of one fetch through a stage."""
        self._folding.observe(seconds)

    def flushed(self, seconds: float) -> None:
        """Take note of one flush of vectors."""
        self._encoding.observe(seconds)

    def text(self, stream: Stream, restarts: int) -> bytes:
        """Return everything as Prometheus reads it."""
        self._current = _Standing(stream, restarts)
        return generate_latest(self._registry)

    def describe(self) -> Iterable[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        if self._current is None:
            return
        stream, restarts = self._current
        counts = stream.counts
        records = CounterMetricFamily("kithstream_records", "Records folded, by outcome.", labels=["outcome"])
        records.add_metric(["accepted"], counts.accepted)
        records.add_metric(["dead"], sum(counts.dead.values()))
        yield records
        yield CounterMetricFamily(
            "kithstream_moved_records", "Records brought to their own partition.", counts.moved
        )
        dead = CounterMetricFamily(
            "kithstream_dead_letters", "Records that could not be used.", labels=["reason"]
        )
        for reason, count in sorted(counts.dead.items()):
            dead.add_metric([reason], count)
        yield dead
        yield CounterMetricFamily(
            "kithstream_vectors_published", "Vectors written to their topic.", counts.vectors
        )
        yield CounterMetricFamily(
            "kithstream_missing_fetches",
            "Fetches read again, since something before them was missing.",
            counts.missing,
        )
        yield CounterMetricFamily(
            "kithstream_retrieval_restarts", "Deaths of the retrieval process.", restarts
        )
        yield GaugeMetricFamily("kithstream_dirty_rows", DIRTY, stream.dirty)
        yield GaugeMetricFamily(
            "kithstream_outbox_frames", "Frames that no broker acknowledged.", stream.outbox
        )
        yield GaugeMetricFamily(
            "kithstream_resending_accounts",
            "Accounts whose follows are still to be sent again.",
            stream.resending,
        )
        yield GaugeMetricFamily(
            "kithstream_assigned_behind_records",
            "Records that were there at the last assignment and are not folded yet.",
            stream.behind,
        )


class _Standing(NamedTuple):
    stream: Stream
    restarts: int


def of_serving() -> ServeMetrics:
    """Return the metrics of a process that answers, on a registry of their own."""
    return ServeMetrics(CollectorRegistry())
