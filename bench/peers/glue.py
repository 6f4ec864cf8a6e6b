"""Publish to visible at a fixed rate: Bytewax and usearch put together by hand, beside a kithstream worker.

Both get the same events from the same publisher on a fixed plan, after the same first part, and encode with the same
tower at day zero. Times run from when an event was due. For kithstream, events of a probe published beside are asked
for over HTTP with their token: the time holds the request and an answer of candidates. For the glue the clock stops
in its process when the call that puts the vectors into the index returns, for every event: nobody asks, so its figure
is the lower one. `mean in the process` is nearer to like for like: of all events, for kithstream from the broker's
append until an answer would show it, by its own histogram. The glue's state is in memory and counts duplicates;
kithstream's is on disk and exact.
"""

from __future__ import annotations

import random
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from bench import results
from bench.kafka import cluster, cpu_of, settle, simulated, started, told
from bench.peers import progress
from bench.peers.environment import environment, python
from bench.peers.ingest import ACCOUNTS, PARTITIONS, tenant
from bench.peers.table import OURS, compared
from kithstream.streams.clients import EventPublisher
from kithstream.streams.config import KafkaConfig
from kithstream.streams.kafka.names import topics

GLUE = "bytewax + usearch"
NAMES = (OURS, GLUE)
TIMED = "timed-"
COLUMNS = {
    "visible_p50_ms": "visible p50 ms",
    "visible_p99_ms": "visible p99 ms",
    "visible_max_ms": "max ms",
    "mean_in_process_ms": "mean in the process ms",
    "timed": "events timed",
    "never_visible": "never visible",
    "cores": "cores used",
    "load_late_ms": "load late ms",
}
DOES = {
    OURS: "exact fold on disk, tower, live index; timed over HTTP with an answer of candidates",
    GLUE: "decayed counts in memory, the same tower, vectors in usearch; timed in the process, no question",
}
TURNS = 100  # a second at which events are published


def times(seconds: Sequence[float]) -> dict[str, float]:
    """What is told of them, in milliseconds."""
    if not seconds:
        return {"timed": 0}
    array = np.array(seconds) * 1000
    return {
        "visible_p50_ms": round(float(np.percentile(array, 50)), 2),
        "visible_p99_ms": round(float(np.percentile(array, 99)), 2),
        "visible_max_ms": round(float(array.max()), 2),
        "timed": len(array),
    }


def paced(
    publisher: EventPublisher, events: Sequence[dict[str, Any]], rate: int
) -> tuple[list[float], float]:
    """Publish on the plan; return when each event was due, by the monotonic clock, and the latest start."""
    each = rate // TURNS
    begin, late, due = time.monotonic() + 0.1, 0.0, [0.0][:0]
    for turn in range(len(events) // each):
        at = begin + turn / TURNS
        while (left := at - time.monotonic()) > 0:
            time.sleep(left)
        late = max(late, time.monotonic() - at)
        publisher.send(events[turn * each : (turn + 1) * each])
        due += [at] * each
    publisher.flush()
    return due, late


def own(
    kafka: KafkaConfig, folder: Path, warm: Sequence[Any], events: Sequence[Any], rate: int
) -> dict[str, Any]:
    """A worker of ours; ten probes a second beside."""
    with ExitStack() as stack:
        (worker,) = started(stack, kafka, folder, PARTITIONS, 1)
        publisher = stack.enter_context(EventPublisher(kafka))
        publisher.publish(warm)
        settle(publisher, [worker])
        spent: list[float] = []
        failed = [0]
        stop = threading.Event()

        def probe() -> None:
            rng = random.Random(0)
            begin, turn = time.monotonic(), 0
            while not stop.wait(max(0.0, begin + turn / 10 - time.monotonic())):
                due = begin + turn / 10
                name = f"probe{turn}"
                token = publisher.publish(
                    [{"signal": "follow", "actor": name, "target": f"u{rng.randrange(1000)}"}]
                )
                status, _ = worker.get(f"/v1/candidates/{name}?after={token}&level=vectors&k=200")
                if status == 200:
                    spent.append(time.monotonic() - due)
                else:
                    failed[0] += 1
                turn = max(turn + 1, int((time.monotonic() - begin) * 10))

        thread = threading.Thread(target=probe)
        freshness = [told(worker, f"kithstream_freshness_seconds_{name}") for name in ("sum", "count")]
        before, began = cpu_of(worker.pid) + cpu_of(worker.retrieval), time.monotonic()
        thread.start()
        _, late = paced(publisher, events, rate)
        used = cpu_of(worker.pid) + cpu_of(worker.retrieval) - before
        cores = used / (time.monotonic() - began)
        stop.set()
        thread.join()
        settle(publisher, [worker])
        total, count = (
            told(worker, f"kithstream_freshness_seconds_{name}") - before
            for name, before in zip(("sum", "count"), freshness, strict=True)
        )
        worker.stop()
    return {
        **times(spent),
        "mean_in_process_ms": round(1000 * total / count, 2),
        "never_visible": failed[0],
        "cores": round(cores, 2),
        "load_late_ms": round(late * 1000, 1),
    }


def glued(
    kafka: KafkaConfig, folder: Path, warm: Sequence[Any], events: Sequence[Any], rate: int
) -> dict[str, Any]:
    """The glue; every event with a target is timed."""
    folder.mkdir(parents=True)
    topic = topics(kafka.prefix).engagements
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(
            [
                python(True),
                "-m",
                "bench.peers.glue_app",
                *("--servers", kafka.servers),
                *("--topic", topic),
                *("--folder", str(folder)),
            ],
            stdout=log,
            stderr=log,
            cwd=folder,
            env=environment(),
        )
    try:
        with EventPublisher(kafka) as publisher:
            publisher.publish(warm)
            sides = sum("target" in event for event in warm)
            _until(
                process, folder, lambda: sum(progress.read(folder / "progress").folded.values()) >= 2 * sides
            )
            before, began = cpu_of(process.pid), time.monotonic()
            due, late = paced(publisher, events, rate)
            cores = (cpu_of(process.pid) - before) / (time.monotonic() - began)
            wanted = {event["id"]: at for event, at in zip(events, due, strict=False) if "target" in event}

            def seen() -> dict[str, float]:
                lines = (folder / "visible").read_text().splitlines()
                return {
                    name: float(at) for name, at in (line.split() for line in lines if line.count(" ") == 1)
                }

            with suppress(TimeoutError):  # what is not seen by then is counted below
                _until(process, folder, lambda: len(wanted.keys() & seen().keys()) == len(wanted))
            visible = seen()
    finally:
        process.kill()
        process.wait()
    spent = [visible[name] - at for name, at in wanted.items() if name in visible]
    return {
        **times(spent),
        "mean_in_process_ms": round(1000 * sum(spent) / max(1, len(spent)), 2),
        "never_visible": len(wanted.keys() - visible.keys()),
        "cores": round(cores, 2),
        "load_late_ms": round(late * 1000, 1),
        "versions": (folder / "versions").read_text(),
    }


def _until(process: subprocess.Popen[bytes], folder: Path, holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 90
    while not holds():
        if (status := process.poll()) is not None:
            said = (folder / "log").read_text(errors="replace").strip().splitlines()
            raise RuntimeError(f"the glue ended with {status}: {' / '.join(said[-4:])}")
        if time.monotonic() > end:
            raise TimeoutError(f"the glue did not come so far in 90 s: {progress.read(folder / 'progress')}")
        time.sleep(0.05)  # between two looks at a file


def measure(
    names: Sequence[str],
    rate: int,
    seconds: float,
    warm: int,
    rounds: int,
    seed: int,
    say: Callable[[object], None],
) -> dict[str, list[dict[str, Any]]]:
    """Both in turns. Events carry no time of their own: the publisher stamps them with the present."""
    if rate % TURNS:
        raise ValueError(f"rate is {rate}, expected a multiple of {TURNS}")
    world = [
        {field: value for field, value in event.items() if field != "time"}
        for event in islice(simulated(seed), warm + int(rate * seconds))
    ]
    # An id of its own for each, also for what the world publishes twice: a duplicate is an event to be timed here.
    timed = [{**event, "id": f"{TIMED}{number}"} for number, event in enumerate(world[warm:])]
    found: dict[str, list[dict[str, Any]]] = {}
    with ExitStack() as stack:
        shared = cluster(stack, PARTITIONS)
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kithstream-peers-")))
        for turn in range(rounds):
            for name in names:
                label = f"{'kithstream' if name == OURS else 'glue'}-{turn}"
                kafka = tenant(shared, f"{label}.")
                run = (own if name == OURS else glued)(kafka, scratch / label, world[:warm], timed, rate)
                say(f"{label}: {run}")
                found.setdefault(name, []).append(run)
    return found


def show(rounds: dict[str, list[dict[str, Any]]]) -> str:
    """The table."""
    words = {name: (found[0].get("versions", "0.1.0"), DOES[name]) for name, found in rounds.items()}
    return compared(rounds, words, COLUMNS, ("visible_p50_ms", "visible_p99_ms", "cores"))


def append(
    rounds: dict[str, list[dict[str, Any]]], rate: int, seed: int, command: str, path: Path | None
) -> None:
    """A line in the results for each."""
    for name, found in rounds.items():
        figures = {key: [one[key] for one in found] for key in COLUMNS if all(key in one for one in found)}
        peer = name != OURS
        if "visible_p99_ms" in figures:
            figures["p99_ms"] = figures["visible_p99_ms"]
        results.append(
            bench="peers",
            stage="freshness",
            what=f"publish to visible at {rate} events/s, put together by hand and not",
            kind="peer" if peer else "ours",
            by=str(found[0]["versions"]) if peer else OURS,
            figures=figures,
            command=command,
            sizes={"accounts": ACCOUNTS, "rate": rate},
            mix="full mix of a simulated world",
            seed=seed,
            bar="visible_1k" if peer and rate == 1000 and "p99_ms" in figures else "",
            note=DOES[name],
            path=path,
        )
