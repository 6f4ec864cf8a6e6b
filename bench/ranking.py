"""What one learned score over towers and nominators is worth beside the towers alone, by hand, in one pass of a stream.

    python -m bench.ranking FILE --format bitcoin|pairs|higgs [--slice validation|test] [--most 100000]

Every tested follow is asked for twice at one state just before it is applied: ranked by the whole and by the towers
alone (the ranker takes no part in their training). `--slice validation` reads the first four fifths of the pairs and
tests the last fifth of those (rows 64 to 80 %): what is tuned is tuned there. recall@20 and NDCG@20 with 95 %
bootstrap intervals, the paired difference, CPU time of reading who asks and of either ranking. One JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before numpy: as a server has it

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from bench.machine import machine
from bench.serving import percentiles
from kithstream.__main__ import ready
from kithstream.streams import prequential
from kithstream.streams.clock import StreamClock
from kithstream.streams.config import Config, EngineConfig, IndexSection, RankingConfig
from kithstream.streams.errors import Unanswerable
from kithstream.streams.events.record import Record
from kithstream.streams.prequential import MISSED, SHARE, K
from kithstream.streams.replay import BATCH
from kithstream.streams.serve.answers import Question
from kithstream.streams.serve.embedded import ALL, Embedded
from kithstream.streams.serve.ranking import Asking
from kithstream.streams.sources import bitcoin, higgs, pairs

READERS = {"bitcoin": bitcoin.read, "pairs": pairs.read, "higgs": higgs.read}


def cut(events: Iterator[Record], most: int) -> Iterator[Record]:
    """Yield events up to so many first pairs."""
    met: set[tuple[str, str]] = set()
    for event in events:
        if event["signal"] == "follow" and event["actor"] != event["target"]:
            met.add((event["actor"], event["target"]))
            if len(met) > most:
                return
        yield event


def position(live: Embedded, asking: Asking, source: str, target: str) -> tuple[int, float]:
    """Where the target stands in the answer from what was read, and the CPU seconds that ranking took."""
    chain, as_of = live.chain, live.as_of
    began = time.thread_time()
    ranked = chain._ranker.rank(
        Question(source, K, reasons=0), asking, as_of, chain.tick, chain._glances, lambda _: set()
    )
    took = time.thread_time() - began
    names = [candidate.account for candidate in ranked.candidates]
    return names.index(target) if target in names else MISSED, took


def measured(positions: NDArray[np.int64], seed: int) -> Mapping[str, object]:
    values = {"recall": prequential.recalled(positions), "ndcg": prequential.gained(positions)}
    told: dict[str, object] = {}
    for name, value in values.items():
        mean, low, high = prequential.estimate(value, seed)
        told[f"{name}_at_20"] = round(mean, 4)
        told[f"{name}_at_20_interval"] = [round(low, 4), round(high, 4)]
    return told


def paired(ours: NDArray[np.float64], theirs: NDArray[np.float64], seed: int) -> list[float]:
    """Mean difference with its interval."""
    return [round(float(value), 4) for value in prequential.estimate(ours - theirs, seed)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file")
    parser.add_argument("--format", choices=sorted(READERS), required=True)
    parser.add_argument("--slice", choices=("validation", "test"), default="test")
    parser.add_argument("--most", type=int, default=1 << 40, help="First pairs read.")
    parser.add_argument("--repeats", action="store_true", help="Read what comes after a first pair, too.")
    parser.add_argument("--limit", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--nominators", nargs="*", default=RankingConfig().nominators)
    parser.add_argument("--share", type=float, default=RankingConfig().train_share)
    given = parser.parse_args()
    ready()
    torch.set_num_threads(1)
    events = list(cut(iter(READERS[given.format](given.file, given.repeats)), given.most))
    known = prequential.first_pairs(events)
    if given.slice == "validation":
        events = list(cut(iter(events), int(len(known.source) * SHARE)))
        known = prequential.first_pairs(events)
    tests = prequential.choose_tests(known, given.seed, given.limit)
    wanted = {int(row): number for number, row in enumerate(tests)}
    section = {"nominators": given.nominators, "train_share": given.share}
    ranking = msgspec.convert(section, RankingConfig)
    config = Config(  # as `kithstream replay --evaluate` has it
        engine=EngineConfig(partitions=1, row_cache=400_000),
        index=IndexSection(exact_rows=1_000_000_000, background=False),
        ranking=ranking,
    )
    clock = StreamClock()
    positions = {name: np.full(len(tests), MISSED) for name in ("whole", "towers")}
    took: dict[str, list[float]] = {"whole": [], "towers": [], "read": []}
    met: set[tuple[str, str]] = set()
    began, row, waiting = time.perf_counter(), 0, list[Record]()
    with tempfile.TemporaryDirectory() as folder, Embedded(Path(folder), config, clock=clock) as live:
        chain = live.chain

        def fold() -> None:
            if waiting:
                clock.now = max(clock.now, max(event["time"] for event in waiting))
                live.publish(waiting)
                live.pump(aged=ALL)
                waiting.clear()

        for event in events:
            pair = event["actor"], event["target"]
            if event["signal"] == "follow" and pair not in met:
                met.add(pair)
                if (number := wanted.get(row)) is not None:
                    fold()
                    clock.now = max(clock.now, event["time"])
                    try:
                        asked = time.thread_time()
                        asking = chain._ranker.read(pair[0], live.as_of)
                        took["read"].append(time.thread_time() - asked)
                    except Unanswerable:
                        row += 1
                        continue
                    alone = asking._replace(weights=None, exclude=set(asking.exclude))
                    for name, how in (("towers", alone), ("whole", asking)):
                        positions[name][number], seconds = position(live, how, *pair)
                        took[name].append(seconds)
                row += 1
            waiting.append(event)
            if len(waiting) >= BATCH:
                fold()
        fold()
        ranker = chain.model.ranker
        result = {
            "bench": "ranking",
            "machine": machine(),
            "given": vars(given),
            "accounts": len(known.accounts),
            "queries": len(tests),
            "examples": ranker.examples,
            "gain": round(ranker.gain, 4),
            "ready": ranker.ready,
            **{name: measured(found, given.seed) for name, found in positions.items()},
            "recall_difference": paired(
                prequential.recalled(positions["whole"]),
                prequential.recalled(positions["towers"]),
                given.seed,
            ),
            "ndcg_difference": paired(
                prequential.gained(positions["whole"]), prequential.gained(positions["towers"]), given.seed
            ),
            "cpu_milliseconds": {name: percentiles(of) for name, of in took.items()},
            "seconds": round(time.perf_counter() - began, 1),
        }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
