"""What the trainer takes, by hand: examples a second from a training log, its size, memory, checkpoint and publication.

    python -m bench.trainer
    python -m bench.trainer --accounts 5000 --events 50000

A simulated world is folded by the embedded runtime without learning; what workers would write into the training log is
written meanwhile. Then a trainer reads it from its first record, in this process: whole-process CPU, one thread. A
publication is the records of one delta; a checkpoint is the file. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path

import numpy as np
import torch

from bench.machine import machine
from kithstream.__main__ import ready
from kithstream.models.features import ProducerFeatures, Rows
from kithstream.models.model import Model, Producers
from kithstream.models.train import OnlineTrainer, TrainerConfig
from kithstream.streams import learning
from kithstream.streams.clock import StreamClock
from kithstream.streams.config import Config, ModelConfig
from kithstream.streams.events.record import Record
from kithstream.streams.kafka.outlet import TAUGHT
from kithstream.streams.kafka.steps import records
from kithstream.streams.learning import Learner
from kithstream.streams.serve.embedded import Embedded
from kithstream.streams.simulate import simulate
from kithstream.streams.world import SimulationConfig


def the_log(folder: Path, given: argparse.Namespace) -> list[bytes]:
    """What workers would write."""
    found: list[bytes] = []
    clock = StreamClock()
    with Embedded(folder, Config(model=ModelConfig(learn=False)), clock=clock) as live:
        made = live.chain
        ids, sink = made.model.ids, made.vectors._sink
        write = sink.write

        def told(rows: Rows, encoded: Producers, tick: int) -> None:
            for first in range(0, len(rows.accounts), TAUGHT):
                part = ProducerFeatures._make(values[first : first + TAUGHT] for values in encoded.features)
                found.append(learning.encoded(tick * 60_000_000, part, ids))
            write(rows, encoded, tick)

        sink.write = told  # type: ignore[method-assign]
        offset = 0
        for events in batches(given):
            clock.advance(max(event["time"] for event in events))
            live.publish(events)
            asked = [event for event in events if event["signal"] == "follow"]
            rows = made._reader.read(
                [e["actor"] for e in asked], [e["time"] for e in asked], unreciprocated=True
            )
            features = made.model.consumer_features(rows)
            captured = learning.Captured(
                features,
                rows.accounts,
                [e["target"] for e in asked],
                range(offset, offset + len(asked)),
                clock(),
                rows,
            )
            offset += len(asked)
            live.catch_up()
            if asked:
                found.append(learning.followed(0, captured, ids))
    return found


def batches(given: argparse.Namespace) -> Iterator[list[Record]]:
    """The world's events, 500 at a time."""
    world = chain.from_iterable(
        simulate(SimulationConfig(accounts=given.accounts, seed=given.seed), given.events)
    )
    while call := list(islice(world, 500)):
        yield call


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--accounts", type=int, default=20_000)
    parser.add_argument("--events", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    ready()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="kithstream-bench-") as folder:
        log = the_log(Path(folder) / "runtime", given)
        trainer = OnlineTrainer(Model.day_zero(0), TrainerConfig(), np.random.Generator(np.random.PCG64(0)))
        learner = Learner(trainer, 1, example_batch=64, idle_days=365)
        began, cpu, trained = time.perf_counter(), time.process_time(), 0
        for offset, raw in enumerate(log):
            trained += learner.take(offset, raw).trained
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
        began = time.perf_counter()
        published = list(records(trainer.delta(), 1, learner.offset, 0))
        publishing = time.perf_counter() - began
        began = time.perf_counter()
        learner.save(Path(folder) / "checkpoint")
        saving = time.perf_counter() - began
        size = (Path(folder) / "checkpoint").stat().st_size
    print(
        json.dumps(
            {
                "bench": "trainer",
                "machine": machine(),
                "accounts": given.accounts,
                "events": given.events,
                "seed": given.seed,
                "records": len(log),
                "log_bytes": sum(map(len, log)),
                "examples": trained,
                "examples_per_cpu_second": round(trained / cpu),
                "seconds": round(seconds, 2),
                "steps": learner.model.step,
                "accounts_known": len(learner.model.ids),
                "whole_publication": {
                    "bytes": sum(len(v or b"") for _, v in published),
                    "s": round(publishing, 3),
                },
                "checkpoint": {"bytes": size, "s": round(saving, 3)},
                "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
            }
        )
    )


if __name__ == "__main__":
    main()
