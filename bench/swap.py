"""Another lineage takes over under questions, on a real Kafka of this machine, by hand, and is rolled back.

    python -m bench.swap
    python -m bench.swap --rate 500 --accounts 20000 --events 60000 --workers 1

Open-loop questions over HTTP at a fixed rate, from before the publication until after the rollback has taken place. The
other lineage has another architecture (120 dimensions), so that its vectors cannot meet those of the first in a score:
a mixed answer would be an error. Of each answer its status, lineage and time from when it was due are kept; `mixed`
counts answers that name another lineage than the worker's before and after it in the order of their arrival, beyond the
one change of each swap. Broker, workers and load share the machine's cores. Prints one JSON object; times in ms.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from itertools import groupby
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from bench.kafka import answered, cluster, everything, started
from bench.machine import machine
from bench.server import Connections, every
from kithstream.models.model import Model
from kithstream.streams.clients import EventPublisher
from kithstream.streams.config import Config, EngineConfig, KafkaConfig
from kithstream.streams.events.stamp import wall_clock
from kithstream.streams.kafka import registry
from kithstream.streams.simulate import simulate
from kithstream.streams.world import SimulationConfig

DIM: Final = 120
GONE: Final = (404, 410)  # what is said of accounts that are deactivated or deleted in this world
SETTLED: Final = 3.0  # seconds asked on before and after each swap
PATIENCE: Final = 600.0  # seconds for a swap


class Named(msgspec.Struct):
    model: str


class Asked:
    """What one worker answered: when it was due, how long it took (ms), status, lineage."""

    def __init__(self) -> None:
        self.rows: list[tuple[float, float, int, str]] = []

    def lineage(self) -> str:
        """Of the newest answer."""
        return self.rows[-1][3] if self.rows else ""


async def ask(port: int, rate: float, accounts: int, asked: Asked, ended: asyncio.Event, seed: int) -> None:
    """Ask one worker at a rate until told to end."""
    rng, client, decode = random.Random(seed), Connections(port), msgspec.json.Decoder(Named).decode

    async def one(_: int, due: float) -> None:
        status, body = await client.ask("GET", f"/v1/candidates/u{rng.randrange(accounts)}?k=20")
        lineage = decode(body).model if status == 200 else ""
        asked.rows.append((due, (time.perf_counter() - due) * 1000, status, lineage))

    while not ended.is_set():
        await every(rate, 1.0, one)


async def turn(
    kafka: KafkaConfig, partitions: int, ports: list[int], given: argparse.Namespace
) -> dict[str, object]:
    """Publish another lineage, wait for it, roll it back, wait again; ask all the while."""
    config = Config(kafka=kafka, engine=EngineConfig(partitions=partitions))
    asked, ended = [Asked() for _ in ports], asyncio.Event()
    tasks = [
        asyncio.create_task(ask(port, given.rate / len(ports), given.accounts, one, ended, given.seed + n))
        for n, (port, one) in enumerate(zip(ports, asked, strict=True))
    ]
    took: dict[str, float] = {}

    async def served(lineage: str, what: str) -> None:
        began = time.perf_counter()
        while not all(one.lineage() == lineage for one in asked):
            assert time.perf_counter() - began < PATIENCE, f"{what} did not come about"
            await asyncio.sleep(0.02)
        took[what] = round(time.perf_counter() - began, 2)

    with tempfile.TemporaryDirectory(prefix="kithstream-bench-") as folder:
        path = Path(folder) / "other.safetensors"
        Model.day_zero(5, dim=DIM, lineage="00").save(path)
        await asyncio.sleep(SETTLED)
        swapped = time.perf_counter()
        current = await asyncio.to_thread(registry.publish, config, path, wall_clock)
        await served(current.lineage, "swap_s")
        await asyncio.sleep(SETTLED)
        back = await asyncio.to_thread(registry.point, config, "", wall_clock)
        await served(back.lineage, "rollback_s")
        await asyncio.sleep(SETTLED)
    ended.set()
    await asyncio.gather(*tasks)
    rows = sorted(row for one in asked for row in one.rows)
    before = [row[1] for row in rows if row[0] < swapped]
    during = [row[1] for row in rows if row[0] >= swapped]
    changes = [
        [name for name, _ in groupby(row[3] for row in sorted(one.rows, key=arrived) if row[2] == 200)]
        for one in asked
    ]
    return {
        **took,
        "asked": len(rows),
        "statuses": dict(Counter(row[2] for row in rows)),
        "failures": sum(row[2] not in (200, *GONE) for row in rows),
        "mixed": sum(max(len(one) - 3, 0) for one in changes),
        "idle_ms": spread(before),
        "during_ms": spread(during),
    }


def arrived(row: tuple[float, float, int, str]) -> float:
    """When an answer came."""
    return row[0] + row[1] / 1000


def spread(values: list[float]) -> dict[str, float]:
    """Return percentiles."""
    return {f"p{p}": round(float(np.percentile(values, p)), 1) for p in (50, 95, 99)}


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rate", type=float, default=500.0, help="Questions a second, over all workers.")
    parser.add_argument("--accounts", type=int, default=20_000)
    parser.add_argument("--events", type=int, default=60_000)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--partitions", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with ExitStack() as stack:
        kafka = cluster(stack, given.partitions)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kithstream-bench-")))
        running = started(stack, kafka, folder, given.partitions, given.workers)
        world = SimulationConfig(accounts=given.accounts, seed=given.seed)
        with EventPublisher(kafka, linger=0.005) as publisher:
            for batch in simulate(world, given.events):
                publisher.send(batch)
            publisher.flush()
        token = everything(kafka, given.partitions)
        for worker in running:
            answered(worker, token, PATIENCE)
        found = asyncio.run(turn(kafka, given.partitions, [worker.port for worker in running], given))
    settings = {
        name: getattr(given, name) for name in ("rate", "accounts", "events", "workers", "partitions", "seed")
    }
    print(json.dumps({"bench": "swap", "machine": machine(), **settings, **found}))


if __name__ == "__main__":
    main()
