"""Ours and the hand rule over the same tests of a stream, and the command line of the benches that compare them."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from bench.freshness_value import FILES
from bench.machine import machine
from bench.quality_own import TOWERS, WHOLE, run
from kithstream.__main__ import ready
from kithstream.streams import prequential
from kithstream.streams.events.record import Record
from kithstream.streams.prequential import Pairs, recalled
from kithstream.streams.yardsticks import GRID, HandRule

RULE: Final = "hand rule"


class Compared(NamedTuple):
    """What each way won."""

    won: Mapping[str, NDArray[np.float64]]  # (n,) of each test, by `TOWERS`, `WHOLE` and `RULE`
    half_lives: str  # of the rule: those that do best on rows 64 to 80 %
    seconds: float  # of our pass


def compare(known: Pairs, events: Sequence[Record], tests: NDArray[np.int64], seed: int) -> Compared:
    """Ask the whole, the towers alone and the hand rule for each test just before it is told."""
    passed = run(known, events, known.event, tests, seed)
    places = {name: np.array(passed.positions[name]) for name in (TOWERS, WHOLE)}
    rules = {f"{pop:g} {act:g}": partial(HandRule, pop, act) for pop in GRID for act in GRID}
    best = prequential.choose(rules, known, seed).name
    places[RULE] = prequential.replay(rules[best](), known, tests)
    return Compared({name: recalled(where) for name, where in places.items()}, best, passed.seconds)


def arguments(doc: str | None) -> argparse.ArgumentParser:
    """Which streams, and how much of them."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("streams", nargs="+", choices=(*FILES, "simulator"))
    parser.add_argument("--data", type=Path, help="Folder of the streams' files.")
    parser.add_argument("--events", type=int, default=0, help="First events of a stream alone.")
    parser.add_argument(
        "--repeats", action="store_true", help="Ours hears what comes after a first pair, too."
    )
    parser.add_argument("--accounts", type=int, default=1000, help="Of the simulator.")
    parser.add_argument("--seed", type=int, default=0)
    return parser


def tell(
    bench: str, given: argparse.Namespace, measure: Callable[[str, argparse.Namespace], dict[str, object]]
) -> None:
    """Measure each stream and print."""
    ready()
    torch.set_num_threads(1)
    for stream in given.streams:
        told = {"bench": bench, "machine": machine(), "seed": given.seed, **measure(stream, given)}
        print(msgspec.json.encode(told).decode(), flush=True)
