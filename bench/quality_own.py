"""kithstream in the comparison: the embedded chain over a stream, asked for its towers alone and for the whole."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kithstream.streams.clock import StreamClock
from kithstream.streams.config import Config, EngineConfig, IndexSection, ModelConfig
from kithstream.streams.errors import Unanswerable
from kithstream.streams.events.record import Record
from kithstream.streams.prequential import MISSED, K, Pairs, border
from kithstream.streams.replay import interleave
from kithstream.streams.serve.embedded import Embedded
from kithstream.streams.serve.ranking import Ranker

TOWERS, WHOLE = "towers", "whole"
EVERYTHING: Final = 10**9  # accounts up to which an answer is an exact scan: all


class Passed(NamedTuple):
    """One pass of the chain."""

    positions: dict[str, list[int]]
    milliseconds: dict[str, list[float]]
    seconds: float  # without the questions
    refused: int  # dead letters


def run(
    known: Pairs,
    events: Sequence[Record],
    numbers: NDArray[np.int64],
    tests: NDArray[np.int64],
    seed: int,
    *,
    kinds: Sequence[str] = (TOWERS, WHOLE),
    learn: bool = True,
    freeze: bool = False,
) -> Passed:
    """Folds events in their order and asks for each test before it is told; `numbers` are those of the pairs' events.

    One partition, the whole corpus scanned. `freeze` ends all learning at 80 % of the pairs.
    """
    config = Config(
        engine=EngineConfig(partitions=1, row_cache=400_000),
        index=IndexSection(exact_rows=EVERYTHING, background=False),
        model=ModelConfig(learn=learn, seed=seed),
    )
    wanted = {int(numbers[row]): row for row in tests.tolist()}
    frozen = int(numbers[border(known)]) if freeze else None
    positions: dict[str, list[int]] = {kind: [] for kind in kinds}
    took: dict[str, list[float]] = {kind: [] for kind in kinds}
    clock = StreamClock()
    with (
        tempfile.TemporaryDirectory(prefix="kithstream-quality-") as folder,
        Embedded(Path(folder), config, clock=clock) as live,
    ):
        chain = live.chain
        alone = Ranker(
            live.engine, chain.vectors.reader, chain.exclusions, chain.model, chain.index, config.ranking
        )

        def towers(account: str) -> list[str]:
            with chain.reading():
                asking = alone.read(account, live.as_of)
            return list(chain.index.query(asking.vector, K, exclude=asking.exclude).ids)

        def whole(account: str) -> list[str]:
            return [one.account for one in live.candidates(account, K, reasons=0).candidates]

        askers = {TOWERS: towers, WHOLE: whole}

        def ask(event: int) -> None:
            if event == frozen:
                chain.trainer = None
            if (row := wanted.get(event)) is None:
                return
            clock.advance(int(known.time[row]))
            source, target = known.accounts[known.source[row]], known.accounts[known.target[row]]
            for kind in kinds:
                began = time.perf_counter()
                try:
                    answer = askers[kind](source)
                except Unanswerable:
                    answer = []
                took[kind].append((time.perf_counter() - began) * 1e3)
                positions[kind].append(answer.index(target) if target in answer else MISSED)

        stops = wanted.keys() if frozen is None else {*wanted, frozen}
        replayed = interleave(live, clock, events, stops, ask)
    return Passed(positions, took, replayed.seconds, replayed.refused)
