"""Recovery and start-up: from the start of a process to an answer that includes everything published."""

from __future__ import annotations

import argparse
import time
from typing import Any, Final

from bench import recovery as recovering
from bench.served import Served
from bench.suite.given import Given, windows

OWN: Final = "own disk, from the snapshot"
WAYS: Final = {
    "embedded": {
        "own_disk": OWN,
        "own_disk_encoded": "own disk, everybody encoded",
        "checkpoint_and_log": "from a checkpoint and the log",
        "empty_disk": "empty disk, from a backup",
    },
    "kafka": {
        "own_disk": OWN,
        "empty_disk": "empty disk: checkpoints, log, the topic of vectors",
        "retrieval_process": "retrieval process alone",
        "retrieval_process_without_snapshot": "retrieval process alone, without a snapshot",
    },
}


def restore(given: Given) -> None:
    """Kill -9 to ready, embedded: own disk, everybody encoded, from a checkpoint, from a backup."""
    _record(given, "embedded", given.size(100_000, 1000), given.size(5_000_000, 5000))


def restore_kafka(given: Given) -> None:
    """Kill -9 to ready of a worker on a real Kafka: own disk, empty disk, the retrieval process alone."""
    _record(given, "kafka", given.size(100_000, 500), given.size(1_000_000, 2000))


def _record(given: Given, where: str, accounts: int, edges: int) -> None:
    asked = argparse.Namespace(
        accounts=accounts, edges=edges, tail=given.size(1000, 50), rested=24.0, times=given.size(5, 1)
    )
    found: dict[str, Any] = getattr(recovering, where)(asked)
    for way, what in WAYS[where].items():
        figures = windows(found[way])
        seconds = figures.pop("ready_seconds")
        given.record(
            f"{where}, {what}",
            {"seconds": seconds, **figures},
            sizes={"accounts": accounts, "edges": edges, "tail": asked.tail},
            bar="restore" if (where, way) == ("embedded", "own_disk") else "",
        )


def start_up(given: Given) -> None:
    """`kithstream serve` over an empty runtime: from its start until /readyz says so."""
    seconds = []
    for _ in range(given.size(5, 1)):
        began = time.perf_counter()
        with Served() as served:
            while served.reply("/readyz")[0] != 200:
                time.sleep(0.005)
            seconds.append(time.perf_counter() - began)
    given.record("start of a server, nothing stored", {"seconds": seconds})
