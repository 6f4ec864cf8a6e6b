"""What a richer ranker would be worth: the linear one beside a hidden layer, by share of the follows learned, by hand.

    python -m bench.ranker_lab bitcoin college --data FOLDER
    python -m bench.ranker_lab simulator --accounts 1000 --events 40000 --shares 1

One pass of a stream writes down what its ranker would learn from, every follow of it, and who would be ranked at each
test of `bench.quality` just before it is told. Over that record each ranker learns and answers in the order of the
stream: the service's (`linear`), and the same with a hidden layer of rectified units beside it (`layer`), each of
`--shares` of the follows. recall@20 and NDCG@20, CPU microseconds of learning one and of scoring one pool. One JSON
object a stream.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from bench.compared import arguments, tell
from bench.freshness_value import events_of
from bench.quality_own import EVERYTHING
from kithstream.models.ranker import DENSE, PAIRS, TABLES, PairFeatures, Ranked, Ranker, Weights
from kithstream.streams import prequential
from kithstream.streams.clock import StreamClock
from kithstream.streams.config import Config, EngineConfig, IndexSection, RankingConfig
from kithstream.streams.errors import Unanswerable
from kithstream.streams.events.record import Record
from kithstream.streams.prequential import MISSED, Pairs
from kithstream.streams.replay import interleave
from kithstream.streams.serve.embedded import Embedded
from kithstream.streams.serve.ranking import Encoded

BATCH: Final = 10  # examples of one step
BUCKETS: Final = sum(size for _, size in TABLES)


class Learns(Protocol):
    """What is tried."""

    def observe(self, examples: Sequence[Ranked]) -> object: ...

    def score(self, pool: Ranked) -> NDArray[np.float64]: ...


class Linear(Ranker):
    """The service's."""

    def score(self, pool: Ranked) -> NDArray[np.float64]:  # (n,)
        """The towers' score and what is added."""
        return pool.scores + self.weights.extra(pool.features)


class Layer:
    """The linear score and weights times rectified units of everything that it reads; Adagrad, as the linear one."""

    def __init__(self, units: int = 32, seed: int = 0, rate: float = 0.05, inner: float = 0.02) -> None:
        draw = np.random.default_rng(seed)
        self.arrays = [
            np.zeros(len(DENSE)),
            np.zeros(BUCKETS),
            np.zeros(units),
            draw.normal(0.0, len(DENSE) ** -0.5, (len(DENSE), units)),
            draw.normal(0.0, 0.1, (BUCKETS, units)),
            np.zeros(units),
        ]
        self.rates = [rate, rate, rate, inner, inner, inner]
        self.squares = [np.full_like(array, 0.1) for array in self.arrays]

    def _units(self, features: PairFeatures) -> NDArray[np.float64]:  # (n, units)
        _, _, _, dense, tables, bias = self.arrays
        found: NDArray[np.float64] = features.dense @ dense + tables[features.buckets].sum(axis=1) + bias
        return np.maximum(found, 0.0)

    def score(self, pool: Ranked) -> NDArray[np.float64]:  # (n,)
        """The towers' score and what is added."""
        return self._scored(pool, self._units(pool.features))

    def _scored(self, pool: Ranked, units: NDArray[np.float64]) -> NDArray[np.float64]:  # (n,)
        linear = Weights(self.arrays[0], self.arrays[1]).extra(pool.features)
        return pool.scores + linear + units @ self.arrays[2]

    def observe(self, examples: Sequence[Ranked]) -> None:
        """One step."""
        sums = [np.zeros_like(array) for array in self.arrays]
        for one in examples:
            units = self._units(one.features)
            logits = self._scored(one, units)
            shares = np.exp(logits - logits.max())
            shares /= shares.sum()
            shares[one.chosen] -= 1.0
            back = shares[:, None] * self.arrays[2] * (units > 0.0)
            at, width = one.features.buckets.ravel(), len(TABLES)
            sums[0] += one.features.dense.T @ shares
            sums[1] += np.bincount(at, np.repeat(shares, width), BUCKETS)
            sums[2] += units.T @ shares
            sums[3] += one.features.dense.T @ back
            np.add.at(sums[4], at, np.repeat(back, width, axis=0))
            sums[5] += back.sum(axis=0)
        for array, squares, gradient, rate in zip(self.arrays, self.squares, sums, self.rates, strict=True):
            gradient += 1e-4 * len(examples) * array
            squares += gradient * gradient
            array -= rate * gradient / np.sqrt(squares)


class Recorder(Ranker):
    """Learns, and keeps what it learned from."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[Ranked] = []

    def observe(self, examples: Sequence[Ranked]) -> float:
        """One step."""
        self.kept.extend(examples)
        return super().observe(examples)


class Written(NamedTuple):
    """What a pass wrote down, in the order of the stream."""

    examples: list[Ranked]
    tests: list[
        tuple[int, Ranked | None]
    ]  # examples before it, and who would be ranked, if the target is there


def recorded(known: Pairs, events: Sequence[Record], tests: NDArray[np.int64]) -> Written:
    """Pass over a stream, learning of every follow."""
    config = Config(
        engine=EngineConfig(partitions=1, row_cache=400_000),
        index=IndexSection(exact_rows=EVERYTHING, background=False),
        ranking=RankingConfig(train_share=1.0, train_most=1 << 30),
    )
    wanted = {int(known.event[row]): int(row) for row in tests}
    clock, found = StreamClock(), list[tuple[int, Ranked | None]]()
    with (
        tempfile.TemporaryDirectory(prefix="kithstream-lab-") as folder,
        Embedded(Path(folder), config, clock=clock) as live,
    ):
        chain = live.chain
        ranker = chain.model.ranker = Recorder()

        def ask(event: int) -> None:
            row = wanted[event]
            clock.advance(int(known.time[row]))
            source, target = known.accounts[known.source[row]], known.accounts[known.target[row]]
            try:
                rows = chain.inspect(source, live.as_of)
            except Unanswerable:
                found.append((len(ranker.kept), None))
                return
            read = Encoded(rows, chain.model.encode_consumers(rows).vectors, chain.model.step)
            with chain.reading():
                pool = chain._ranker.example(read, target, live.as_of)
            found.append((len(ranker.kept), pool))

        interleave(live, clock, events, wanted.keys(), ask)
    return Written(ranker.kept, found)


def tried(record: Written, ranker: Learns, share: float, seed: int) -> dict[str, float]:
    """Learn from a share of the examples and answer, in the order of the stream."""
    drawn = np.random.default_rng(seed).random(len(record.examples)) < share
    waiting: list[Ranked] = []
    positions = np.full(len(record.tests), MISSED)
    done, learning, scoring = 0, 0.0, 0.0
    for number, (before, pool) in enumerate(record.tests):
        began = time.thread_time()
        for at in range(done, before):
            if drawn[at]:
                waiting.append(record.examples[at])
            if len(waiting) == BATCH:
                ranker.observe(waiting)
                waiting = []
        done, learning = before, learning + time.thread_time() - began
        if pool is not None:
            began = time.thread_time()
            scores = ranker.score(pool)
            scoring += time.thread_time() - began
            positions[number] = int((scores > scores[pool.chosen]).sum())
    positions[positions >= prequential.K] = MISSED
    return {
        "recall_at_20": round(float(prequential.recalled(positions).mean()), 4),
        "ndcg_at_20": round(float(prequential.gained(positions).mean()), 4),
        "learning_us": round(learning / max(1, int(drawn[:done].sum())) * 1e6, 1),
        "scoring_us": round(scoring / max(1, len(record.tests)) * 1e6, 1),
    }


def measure(stream: str, given: argparse.Namespace) -> dict[str, object]:
    """Return what each ranker reaches on a stream."""
    events = events_of(stream, given, repeats=given.repeats)
    known = prequential.first_pairs(events)
    record = recorded(known, events, prequential.choose_tests(known, given.seed, given.tests))
    reached = {
        f"{name}, {share:g} of the follows": tried(record, make(), share, given.seed)
        for share in given.shares
        for name, make in (("linear", Linear), ("layer", lambda: Layer(given.units, given.seed)))
    }
    return {
        "stream": stream,
        "schema": PAIRS.hash,
        "examples": len(record.examples),
        "tests": len(record.tests),
        "reached": reached,
    }


def main() -> None:
    """Measure each stream and print."""
    parser = arguments(__doc__)
    parser.add_argument("--tests", type=int, default=3000)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.2, 1.0])
    parser.add_argument("--units", type=int, default=32)
    tell("ranker_lab", parser.parse_args(), measure)


if __name__ == "__main__":
    main()
