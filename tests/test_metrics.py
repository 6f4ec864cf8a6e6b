"""Metrics: what a round leaves behind, what a runtime says when asked, and that names end in their unit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

import kithstream
from kithstream.streams.engine.actors import DeadLetter
from kithstream.streams.metrics import LONG, REASONS, Metrics, Spread
from kithstream.streams.serve.embedded import Pumped

NOW = 1_800_000_000_000_000


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


def pumped(
    *appended: int, dead: tuple[str, ...] = (), learned: int = 0, upserted: int = 0, encoding: float = 0.5
) -> Pumped:
    letters = [DeadLetter(0, reason, "", b"") for reason in dead]
    accepted = len(appended) - len(dead)
    times = [at - 60_000_000 for at in appended[:accepted]]  # each event a minute older than its append
    return Pumped(len(appended), accepted, letters, learned, upserted, appended, times, 0.25, encoding)


def test_a_round_is_counted(registry: CollectorRegistry) -> None:
    metrics = Metrics(registry, clock=lambda: NOW)
    metrics.pumped(pumped(NOW - 1000, NOW - 2_000_000, NOW, dead=("future",), learned=1, upserted=4))
    value = registry.get_sample_value
    assert value("kithstream_records_total", {"outcome": "accepted"}) == 2
    assert value("kithstream_records_total", {"outcome": "dead"}) == 1
    assert value("kithstream_dead_letters_total", {"reason": "future"}) == 1
    assert value("kithstream_dead_letters_total", {"reason": "missing"}) == 0
    assert value("kithstream_follows_learned_total") == 1
    assert value("kithstream_vectors_upserted_total") == 4
    assert value("kithstream_fold_seconds_sum") == 0.25
    assert value("kithstream_encode_seconds_sum") == 0.5
    assert value("kithstream_freshness_seconds_count") == 3
    assert value("kithstream_freshness_seconds_sum") == pytest.approx(2.001)
    assert value("kithstream_freshness_seconds_bucket", {"le": "0.001"}) == 2
    assert value("kithstream_freshness_seconds_bucket", {"le": "2.5"}) == 3
    assert value("kithstream_event_freshness_seconds_count") == 2
    assert value("kithstream_event_freshness_seconds_sum") == pytest.approx(122.001)


def test_an_idle_round_measures_nothing(registry: CollectorRegistry) -> None:
    Metrics(registry).pumped(pumped())
    assert registry.get_sample_value("kithstream_fold_seconds_count") == 0
    assert registry.get_sample_value("kithstream_encode_seconds_count") == 0
    assert registry.get_sample_value("kithstream_freshness_seconds_count") == 0


def test_ageing_without_records_is_encoding_alone(registry: CollectorRegistry) -> None:
    Metrics(registry).pumped(pumped(upserted=3))
    assert registry.get_sample_value("kithstream_fold_seconds_count") == 0
    assert registry.get_sample_value("kithstream_encode_seconds_count") == 1


def test_a_reason_nobody_knows_is_counted_as_other(registry: CollectorRegistry) -> None:
    Metrics(registry).pumped(pumped(NOW, NOW, dead=("odd", "odder")))
    assert registry.get_sample_value("kithstream_dead_letters_total", {"reason": "other"}) == 2


def test_every_reason_of_the_engine_is_known() -> None:
    folder = Path(kithstream.__file__).parent / "streams"
    text = "".join((folder / name).read_text() for name in ("events/wire.py", "engine/actors.py"))
    assert all(f'"{reason}"' in text for reason in REASONS)


def test_requests_and_questions_are_measured(registry: CollectorRegistry) -> None:
    metrics = Metrics(registry)
    metrics.requested("/docs", 200, 0.002)
    metrics.requested("/docs", 200, 0.002)
    metrics.requested("/docs", 401, 0.001)
    metrics.queried(0.004)
    metrics.waited(0.3)
    value = registry.get_sample_value
    assert value("kithstream_http_request_seconds_count", {"route": "/docs", "status": "200"}) == 2
    assert value("kithstream_http_request_seconds_count", {"route": "/docs", "status": "401"}) == 1
    assert value("kithstream_query_seconds_sum") == 0.004
    assert value("kithstream_wait_seconds_sum") == 0.3


@given(st.lists(st.floats(-1, 1e5) | st.sampled_from(LONG)))
def test_an_array_counts_like_its_values_one_by_one(values: list[float]) -> None:
    registry = CollectorRegistry()
    spread = Spread("spread_seconds", "Text.", LONG)
    registry.register(spread)
    spread.observe(values)
    for bound in LONG:
        count = registry.get_sample_value("spread_seconds_bucket", {"le": repr(bound)})
        assert count == np.count_nonzero(np.array(values) <= bound)
    assert registry.get_sample_value("spread_seconds_count") == len(values)
    assert registry.get_sample_value("spread_seconds_sum") == pytest.approx(np.sum(values), abs=1e-6)


def test_a_runtime_is_read_when_asked(registry: CollectorRegistry, tmp_path: Path) -> None:
    value = registry.get_sample_value
    metrics = Metrics(registry)
    with kithstream.open(tmp_path, start=False) as live:
        live.on_pumped = metrics.pumped
        metrics.watch(live)
        live.publish([{"signal": "follow", "actor": "ann", "target": "bob"}])
        live.publish([{"signal": "follow", "actor": "cyd", "target": "bob"}])
        assert value("kithstream_behind_records") == 2
        assert value("kithstream_index_rows", {"tier": "alive"}) == 0
        live.catch_up()
        assert value("kithstream_behind_records") == 0
        assert value("kithstream_index_rows", {"tier": "alive"}) == 1
        assert value("kithstream_index_rows", {"tier": "hot"}) == 0
        assert value("kithstream_index_rows", {"tier": "cold"}) == 0
        assert value("kithstream_index_merges_total") == 0
        assert value("kithstream_model_step") == live.chain.model.step > 0
        assert value("kithstream_folding_up") == 1
        assert value("kithstream_freshness_seconds_count") == 2
        lags = [value("kithstream_watermark_lag_seconds", {"partition": str(number)}) for number in range(3)]
        assert all(lag is None or 0 <= lag < 60 for lag in lags)
        assert any(lag is not None for lag in lags)
        assert b"kithstream_index_bytes" in metrics.text()


def test_names_end_in_their_unit(registry: CollectorRegistry, tmp_path: Path) -> None:
    metrics = Metrics(registry)
    with kithstream.open(tmp_path, start=False) as live:
        metrics.watch(live)
        names = {(family.name, family.type) for family in registry.collect()}
    units = ("_seconds", "_bytes", "_records", "_rows", "_step", "_up", "_ratio", "_accounts")
    assert all(kind == "counter" or name.endswith(units) for name, kind in names)


def test_two_runtimes_have_two_registries() -> None:
    one, other = CollectorRegistry(), CollectorRegistry()
    Metrics(one).pumped(pumped(NOW))
    Metrics(other)
    assert other.get_sample_value("kithstream_records_total", {"outcome": "accepted"}) == 0
