"""What fitting to examples of the first 80 % is worth, beside the model that learned there online, by hand.

    python -m bench.fit
    python -m bench.fit --accounts 2000 --events 40000 --seed 1

Every model is frozen where the tests begin (`prequential.py`): recall and NDCG at 20 of the last fifth of first pairs,
each asked just before it is told, by the product's own path. `once` is one epoch over everything, which must be the
online model in every bit; `epochs` holds the last tenth of the positives back and stops by it; `tuned` learns from
ignored impressions behind that; `targets` does the same from a folder without encodings of candidates. Prints one JSON
object.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from bench.machine import machine
from kithstream.streams import prequential
from kithstream.streams.clock import StreamClock
from kithstream.streams.config import Config, EngineConfig, ExamplesConfig, IndexSection, ModelConfig
from kithstream.streams.errors import Unanswerable
from kithstream.streams.events.record import Record
from kithstream.streams.examples.fit import FitConfig, fit
from kithstream.streams.examples.passes import Made, make
from kithstream.streams.examples.sources import FileSource
from kithstream.streams.replay import BATCH
from kithstream.streams.serve.embedded import ALL, Embedded
from kithstream.streams.simulate import simulate
from kithstream.streams.training import Timed, train
from kithstream.streams.world import SimulationConfig

CONFIG: Final = Config(
    engine=EngineConfig(partitions=1, batch_events=BATCH, row_cache=400_000),
    index=IndexSection(exact_rows=1_000_000_000, background=False),
)
replace = msgspec.structs.replace


def head(events: Sequence[Record]) -> int:
    """Return how many events come before the tests."""
    pairs = prequential.first_pairs(events)
    border, met = prequential.border(pairs), set[tuple[str, str]]()
    for place, event in enumerate(events):
        if event["signal"] == "follow" and event["actor"] != event["target"]:
            met.add((event["actor"], event["target"]))
            if len(met) > border:
                return place
    return len(events)


def asked(
    folder: Path, model: ModelConfig, events: Sequence[Record], limit: int, seed: int
) -> dict[str, object]:
    """Return what a frozen model reaches on the tests."""
    pairs = prequential.first_pairs(events)
    wanted = set(prequential.choose_tests(pairs, seed, limit).tolist())
    positions: list[int] = []
    clock, waiting, met, row = StreamClock(), list[Record](), set[tuple[str, str]](), 0
    with Embedded(folder, replace(CONFIG, model=replace(model, learn=False)), clock=clock) as live:

        def fold() -> None:
            if waiting:
                clock.advance(max(event["time"] for event in waiting))
                live.publish(waiting)
                live.pump(aged=ALL)
                waiting.clear()

        for event in events:
            pair = event["actor"], event.get("target", "")
            if event["signal"] == "follow" and pair[0] != pair[1] and pair not in met:
                met.add(pair)
                if row in wanted:
                    fold()
                    clock.advance(event["time"])
                    positions.append(position(live, *pair))
                row += 1
            waiting.append(event)
            if len(waiting) >= BATCH:
                fold()
    found = np.array(positions)
    recall, ndcg = (
        prequential.estimate(of(found), seed) for of in (prequential.recalled, prequential.gained)
    )
    return {
        "recall_at_20": [round(value, 4) for value in recall],
        "ndcg_at_20": [round(value, 4) for value in ndcg],
    }


def position(live: Embedded, account: str, target: str) -> int:
    try:
        answer = live.candidates(account, prequential.K, reasons=0)
    except Unanswerable:
        return prequential.MISSED
    names = [candidate.account for candidate in answer.candidates]
    return names.index(target) if target in names else prequential.MISSED


def parameters() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--accounts", type=int, default=2000)
    parser.add_argument("--events", type=int, default=40_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--limit", type=int, default=1500, help="tests")
    return parser.parse_args()


def main() -> None:
    given = parameters()
    world = SimulationConfig(seed=given.seed, accounts=given.accounts)
    events = list(chain.from_iterable(simulate(world, given.events)))
    before = events[: head(events)]
    encode = msgspec.json.Encoder().encode
    with tempfile.TemporaryDirectory(prefix="kithstream-bench-") as place:
        folder = Path(place)
        told: dict[str, dict[str, object]] = {}

        def measure(name: str, model: ModelConfig, made: Callable[[], object]) -> None:
            began = time.perf_counter()
            done = made()
            seconds = round(time.perf_counter() - began, 1)
            told[name] = asked(folder / f"{name}.live", model, events, given.limit, given.seed)
            told[name] |= {"seconds": seconds}
            if isinstance(done, msgspec.Struct):
                told[name] |= {
                    k: v for k, v in msgspec.structs.asdict(done).items() if k not in ("out", "seconds")
                }

        def examples(name: str, *, candidates: bool) -> Made:
            config = replace(CONFIG, examples=ExamplesConfig(candidates=candidates))
            return make(FileSource("simulated", 1, lambda: before), folder / name, config)

        def fitted(name: str, of: str, config: FitConfig) -> None:
            out = folder / f"{name}.safetensors"
            measure(name, ModelConfig(path=str(out)), lambda: fit(folder / of, out, CONFIG.model, config))

        made = {name: examples(name, candidates=name == "all") for name in ("all", "alone")}
        measure("day_zero", ModelConfig(), lambda: None)
        online = folder / "online.safetensors"
        measure(
            "online",
            ModelConfig(path=str(online)),
            lambda: train((Timed(event["time"], encode(event)) for event in before), online, CONFIG),
        )
        fitted("once", "all", FitConfig(epochs=1, held=0.0, tune=False))
        fitted("epochs", "all", FitConfig(epochs=given.epochs, tune=False))
        fitted("tuned", "all", FitConfig(epochs=given.epochs))
        fitted("targets", "alone", FitConfig(epochs=given.epochs, tune=False))
        sizes = {name: sum(f.stat().st_size for f in (folder / name).glob("*.parquet")) for name in made}
    result = {
        "bench": "fit",
        "machine": machine(),
        **vars(given),
        "before": len(before),
        "examples": {
            name: msgspec.structs.asdict(one) | {"bytes": sizes[name]} for name, one in made.items()
        },
        "models": told,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
