"""What encoding could cost at least: the dense products of the producer tower at their shapes, and a roof for any.

Accounts are a simulated world's after some of its events, encoded as the runtime does: rows read from the stores,
features made of them, the tower over blocks of 64. The tower is mostly look-ups and sums of rows; the two products of
matrices that are in it are the limit here, and beside them stands what one thread reaches on large ones.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from itertools import chain

import torch
import torch.nn.functional as F

from bench.distance import Distance, pairs
from kithstream.models.encode import encode_producers, one_thread
from kithstream.models.features import BLOCK, QUALITY, SKETCH, producer_features
from kithstream.models.model import Model
from kithstream.models.tower import VIEWS
from kithstream.streams.config import EngineConfig
from kithstream.streams.engine.engine import Engine, Record
from kithstream.streams.events import wire
from kithstream.streams.simulate import simulate
from kithstream.streams.state.memory import MemoryStore
from kithstream.streams.state.reader import Reader
from kithstream.streams.world import SimulationConfig

ENCODED = 2048  # accounts of a run
SIDE = 1024  # of the square matrices of the roof


def roof(times: int = 5) -> float:
    """Return GFLOP/s of a large product of float32 matrices on one thread."""
    a, b = torch.rand(SIDE, SIDE), torch.rand(SIDE, SIDE)
    best = 0.0
    for _ in range(times):
        began = time.thread_time()
        a @ b
        best = max(best, 2 * SIDE**3 / (time.thread_time() - began) / 1e9)
    return best


def folded(accounts: int, events: int, seed: int) -> tuple[Engine, list[str], int]:
    """Return an engine in memory after a world's events, its accounts, and the time of the last event."""
    engine = Engine([MemoryStore() for _ in range(3)], EngineConfig(row_cache=accounts), salt=bytes(16))
    ends = [0, 0, 0]
    for batch in simulate(SimulationConfig(seed=seed, accounts=accounts), events):
        parts: list[list[Record]] = [[], [], []]
        now = max(event["time"] for event in batch)
        for event in batch:
            raw = wire.encode(wire.Event(**event))
            parts[engine.route[event["actor"]]].append(Record(now, raw))
        for number, records in enumerate(parts):
            if records:
                engine.apply(number, records, ends[number])
                ends[number] += len(records)
        engine.exchange()
    engine.settle()
    everyone = sorted(chain.from_iterable(partition.listable() for partition in engine.partitions))
    return engine, everyone, engine.watermark


def measure(given: argparse.Namespace) -> list[Distance]:
    """Return reading, features and tower, microseconds of CPU an account."""
    with one_thread():
        return _measured(given)


def _measured(given: argparse.Namespace) -> list[Distance]:
    accounts = min(given.accounts, 20_000)
    engine, everyone, now = folded(accounts, 6 * accounts, given.seed)
    some = everyone[:ENCODED]
    model = Model.day_zero(given.seed)
    reader = Reader(engine, accounts)
    rows = reader.read(some, now)
    features = producer_features(rows, model.ids)
    sketch_out = model.tower.config.id_dim
    shapes = ((len(QUALITY), len(VIEWS)), (SKETCH, sketch_out))
    inputs = [torch.rand(BLOCK, wide) for wide, _ in shapes]
    weights = [torch.rand(narrow, wide) for wide, narrow in shapes]

    def each(work: Callable[[], object]) -> Callable[[int], float]:
        def run(_: int) -> float:
            began = time.process_time()
            work()
            return (time.process_time() - began) / len(some) * 1e6

        return run

    def products() -> None:
        with torch.inference_mode():
            for _ in range(0, len(some), BLOCK):
                for left, right in zip(inputs, weights, strict=True):
                    F.linear(left, right)

    def read() -> None:
        reader.forget(some)
        reader.read(some, now)

    def encode() -> None:
        read()
        model.encode_producers(rows)

    def tower() -> None:
        encode_producers(model.tower, model.ids.tables, features)

    flop = 2 * sum(wide * narrow for wide, narrow in shapes)
    sizes = {"accounts": accounts, "encoded": len(some)}
    beside = {"roof_gflop_per_second": round(roof(), 1), "flop_per_account": float(flop)}

    def distance(what: str, ours: Callable[[], object]) -> Distance:
        ours()
        mine, theirs = pairs(each(ours), each(products), given.runs)
        limit = "its two products of matrices at their shapes, alone"
        return Distance(
            "tower",
            "tower",
            what,
            f"torch {torch.__version__}",
            limit,
            "us_per_account",
            "cost",
            mine,
            theirs,
            sizes,
            limit_beside=beside,
        )

    found = [
        distance("producer tower, of features", tower),
        distance("producers encoded, from stores in memory to vectors", encode),
    ]
    engine.close()
    return found
