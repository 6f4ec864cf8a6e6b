"""Measures the yardsticks on three public streams, by hand: `python bench/yardsticks.py --data FOLDER`.

Prints one JSON object a line: for each stream the three rules with half-lives chosen on the validation
slice, and decayed popularity at the fixed half-life of earlier measurements (3 h on Higgs, else 30 d).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

import msgspec

from kithstream.streams import prequential
from kithstream.streams.events.record import Record
from kithstream.streams.prequential import Pairs
from kithstream.streams.sources import bitcoin, higgs, pairs
from kithstream.streams.yardsticks import GRID, DecayedPopularity, HandRule, TwoHop, Yardstick

NAMES: Final = ("10min", "1h", "3h", "6h", "1d", "7d", "30d", "inf")
HOUR, DAY = 3600.0, 86400.0

STREAMS: Final[dict[str, tuple[str, Callable[[Path], Iterable[Record]], float]]] = {
    "bitcoin-otc": ("soc-sign-bitcoinotc.csv.gz", bitcoin.read, 30 * DAY),
    "college-msg": ("CollegeMsg.txt.gz", pairs.read, 30 * DAY),
    "higgs": ("higgs-activity_time.txt.gz", higgs.read, 3 * HOUR),
}


def popularity(half_life: float) -> Callable[[], Yardstick]:
    """Returns the maker of one setting."""
    return lambda: DecayedPopularity(half_life)


def hand_rule(pop_half_life: float, activity_half_life: float) -> Callable[[], Yardstick]:
    """Returns the maker of one setting."""
    return lambda: HandRule(pop_half_life, activity_half_life)


def report(stream: str, rule: str, setting: str, make: Callable[[], Yardstick], known: Pairs) -> None:
    """Measures one rule and prints it."""
    began = time.perf_counter()
    outcome = prequential.measure(make(), known)
    row = {
        "stream": stream,
        "accounts": len(known.accounts),
        "pairs": len(known.source),
        "queries": outcome.queries,
        "rule": rule,
        "setting": setting,
        "recall@20": [round(number, 4) for number in outcome.recall],
        "ndcg@20": [round(number, 4) for number in outcome.ndcg],
        "seconds": round(time.perf_counter() - began, 1),
    }
    print(msgspec.json.encode(row).decode(), flush=True)


def run(stream: str, folder: Path, with_hand_rule: bool) -> None:
    """Measures the rules on one stream."""
    file, read, fixed = STREAMS[stream]
    known = prequential.first_pairs(read(folder / file))
    report(stream, "decayed_popularity", f"fixed {fixed:.0f} s", popularity(fixed), known)
    settings = dict(zip(NAMES, map(popularity, GRID), strict=True))
    best = prequential.choose(settings, known).name
    report(stream, "decayed_popularity", best, settings[best], known)
    report(stream, "two_hop", "", TwoHop, known)
    if with_hand_rule:
        rules = {
            f"{a}/{b}": hand_rule(x, y)
            for a, x in zip(NAMES, GRID, strict=True)
            for b, y in zip(NAMES, GRID, strict=True)
        }
        best = prequential.choose(rules, known).name
        report(stream, "hand_rule", best, rules[best], known)


def main() -> None:
    """Reads the arguments and measures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--streams", nargs="+", choices=STREAMS, default=list(STREAMS))
    parser.add_argument("--no-hand-rule", action="store_true", help="leave out its grid of 64 settings")
    options = parser.parse_args()
    for stream in options.streams:
        run(stream, options.data, not options.no_hand_rule)


if __name__ == "__main__":
    main()
