"""Faust with the batching transport, two members, rebalances and kill -9, on a real broker."""

from __future__ import annotations

from pathlib import Path

from ordeal import ordeal

from kithstream.streams.kafka.local import LocalKafka


def test_sums_are_exact_whoever_comes_goes_or_dies(broker: LocalKafka, tmp_path: Path) -> None:
    outcome = ordeal(broker.servers, tmp_path, rebalances=10, events=60_000)
    assert outcome.found == outcome.expected
    assert sum(outcome.expected.values()) > 200_000
    assert outcome.kills == 2
