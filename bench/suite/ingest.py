"""Ingest: decoding, both ledgers, exchange, rows and store, alone and together; embedded and through Kafka."""

from __future__ import annotations

import argparse
import statistics
import tempfile
from itertools import islice
from pathlib import Path

import msgspec

from bench import fold as folding
from bench import load as loading
from bench import signals
from bench.suite import steps
from bench.suite.given import MIX, Given

RUNS = 5


def _fold(given: Given, accounts: int, edges: int, events: int) -> list[float]:
    """Events per CPU second of five parts of one run."""
    words = ["--accounts", accounts, "--events", events, "--edges", edges, "--seed", given.seed]
    told = folding.measure(folding.arguments().parse_args([*map(str, words)]))
    parts = told["parts"]
    assert isinstance(parts, list)
    return parts


def fold(given: Given) -> None:
    """Events folded per CPU second, embedded: both ledgers and rows in RocksDB with its log on."""
    accounts, edges = given.size(100_000, 3000), given.size(2_000_000, 20_000)
    events = given.size(300_000, 60_000)
    rates = _fold(given, accounts, edges, events)
    given.record(
        "fold, everything",
        {"events_per_cpu_second": rates, "us_per_event": [1e6 / rate for rate in rates]},
        sizes={"accounts": accounts, "edges": edges, "events": events, "batch": 2000, "partitions": 3},
        mix=MIX,
        bar="fold",
    )


def fold_sizes(given: Given) -> None:
    """The same at other sizes of the state; with --big at 1M accounts and 20M edges, as a factor of the cost."""
    sizes = [(10_000, 1_000_000), (100_000, 1_000_000), (100_000, 2_000_000)]
    if given.quick:
        sizes = [(2000, 10_000), (2000, 20_000)]
    events = given.size(200_000, 40_000)
    usual = 0.0
    for accounts, edges in sizes + [(1_000_000, 2_000_000), (1_000_000, 20_000_000)] * given.big:
        rates = _fold(given, accounts, edges, events)
        cost = {"events_per_cpu_second": rates, "us_per_event": [1e6 / rate for rate in rates]}
        largest = (accounts, edges) == (1_000_000, 20_000_000)
        if (accounts, edges) == (100_000, 2_000_000):
            usual = statistics.median(rates)
        if largest:
            cost["times_dearer"] = [usual / rate for rate in rates]
        given.record(
            "fold, everything",
            cost,
            sizes={"accounts": accounts, "edges": edges, "events": events},
            mix=MIX,
            bar="fold_large" if largest else "",
        )


def fold_steps(given: Given) -> None:
    """Where the CPU of an event goes, step by step: within the whole, and decoding, exchange and store alone."""
    accounts, edges = given.size(100_000, 3000), given.size(500_000, 10_000)
    events, batch = given.size(300_000, 20_000), given.size(2000, 200)
    sizes = {"accounts": accounts, "edges": edges, "events": events, "batch": batch}
    found = steps.measure(accounts, edges, events, given.seed, batch)
    for what, each in (("together", found.together), ("alone", found.alone)):
        for step, costs in each.items():
            given.record(what, {"us_per_event": costs}, sizes={"step": step, **sizes}, mix=MIX)


def store_bytes(given: Given) -> None:
    """Bytes of a state edge in the ledger of either side after compaction, short ids and ids of 36 characters."""
    edges = given.size(200_000, 5000)
    asked = argparse.Namespace(
        seed=given.seed, accounts=given.size(100_000, 2000), batch=2000, few=50, edges=edges, only=[]
    )
    with tempfile.TemporaryDirectory(prefix="kithstream-bench-") as folder:
        for kind, named in (("short", signals.short_name), ("long", signals.long_name)):
            told = signals.edges(Path(folder) / kind, asked, named)
            for signal in ("follow", "like"):
                by_column = told[signal]
                assert isinstance(by_column, dict)
                given.record(
                    f"{signal}, {kind} ids",
                    {
                        "bytes_per_edge_and_side": max(by_column["out"], by_column["in"]),
                        "out_bytes": by_column["out"],
                        "in_bytes": by_column["in"],
                    },
                    sizes={"edges": edges, "id_characters": float(str(told["id_characters"]))},
                    bar=f"store_{kind}" if signal == "follow" else "",
                )


def bulk_load(given: Given) -> None:
    """A graph from Parquet into RocksDB: edges a second, CPU and bytes an edge; with --big 20M edges as well."""
    sizes = [(given.size(100_000, 2000), given.size(2_000_000, 20_000))]
    for accounts, edges in sizes + [(1_000_000, 20_000_000)] * given.big:
        words = ["--accounts", accounts, "--edges", edges, "--seed", given.seed]
        told = loading.measure(loading.arguments().parse_args([*map(str, words)]))
        names = ("edges_per_s", "cpu_us_per_edge", "bytes_per_edge", "peak_rss_mb")
        given.record(
            "bulk load", {name: told[name] for name in names}, sizes={"accounts": accounts, "edges": edges}
        )


def kafka_throughput(given: Given) -> None:
    """Events a second end to end through a real Kafka: published, folded, exchanged, encoded, in the index."""
    from bench import kafka

    events, partitions = given.size(200_000, 5000), 4
    encoded = [*map(msgspec.json.encode, islice(kafka.simulated(given.seed), events))]
    rows = []
    for _ in range(given.size(RUNS, 1)):
        told = kafka.throughput(encoded, 1, partitions)
        if not told["state_equals_embedded"]:
            raise RuntimeError("the state at the end differs from that of the stages run in one process")
        (worker,) = told["workers"]  # type: ignore[misc]
        spent = sum(worker.values())
        rows.append((told["events_per_second"], events / spent, told["published_per_second"]))
    whole, cpu, published = zip(*rows, strict=True)
    given.record(
        "one worker, until everything is visible",
        {"events_per_second": whole, "events_per_cpu_second": cpu, "published_per_second": published},
        sizes={"accounts": 20_000, "events": events, "partitions": partitions, "workers": 1},
        mix=MIX,
        bar="kafka",
        note="Broker, publisher and worker share the machine's cores; the state was compared with that of the two "
        "stages run in one process.",
    )
