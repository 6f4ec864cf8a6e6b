"""How far from the asker next follows lie, and who finds which of them, by hand.

    python -m bench.paths bitcoin college --data FOLDER
    python -m bench.paths simulator --accounts 1000 --events 40000

The tests of `bench.quality`: up to `--tests` first follows of the last fifth whose both accounts came up before, asked
for just before they are told. By what lies between the asker and whom it follows: the other follows it already
(`follows back`), they have a neighbour in common whichever way (`two steps`), or neither (`far`). Of each part its
share of the tests and recall@20 of the hand rule, of the towers alone and of the whole; and what the whole would need
to find of all but the first part for 1.15 times the rule's recall. One JSON object a stream.
"""

from __future__ import annotations

import argparse
from typing import Final

import numpy as np
from numpy.typing import NDArray

from bench.compared import RULE, arguments, compare, tell
from bench.freshness_value import events_of
from bench.quality_own import WHOLE
from kithstream.streams import prequential
from kithstream.streams.prequential import Pairs

PARTS: Final = ("follows back", "two steps", "far")
BAR: Final = 1.15


def distances(known: Pairs, tests: NDArray[np.int64]) -> NDArray[np.int64]:  # (n,)
    """Return the place in `PARTS` of each test, by the pairs before it."""
    wanted = set(tests.tolist())
    near: list[set[int]] = [set() for _ in known.accounts]
    told: set[tuple[int, int]] = set()
    found = {}
    for row, (source, target) in enumerate(zip(known.source.tolist(), known.target.tolist(), strict=True)):
        if row in wanted:
            back, common = (target, source) in told, not near[source].isdisjoint(near[target])
            found[row] = 0 if back else 1 if common else 2
        told.add((source, target))
        near[source].add(target)
        near[target].add(source)
    return np.array([found[row] for row in tests.tolist()])


def measure(stream: str, given: argparse.Namespace) -> dict[str, object]:
    """Return what each way finds of each part of a stream's tests."""
    events = events_of(stream, given, repeats=given.repeats)
    known = prequential.first_pairs(events)
    tests = prequential.choose_tests(known, given.seed, given.tests)
    won = compare(known, events, tests, given.seed).won
    part = distances(known, tests)
    parts = {}
    for at, name in enumerate(PARTS):
        here = part == at
        recall = {way: round(float(hits[here].mean()), 3) for way, hits in won.items()} if here.any() else {}
        parts[name] = {"share": round(float(here.mean()), 3), "recall": recall}
    rest = part > 0
    short = BAR * won[RULE].sum() - won[WHOLE][~rest].sum()
    return {
        "stream": stream,
        "tests": len(tests),
        "recall": {way: round(float(hits.mean()), 3) for way, hits in won.items()},
        "parts": parts,
        "of_the_rest": {
            "found": round(float(won[WHOLE][rest].mean()), 3),
            "needed": round(float(short / rest.sum()), 3),
        },
    }


def main() -> None:
    """Measure each stream and print."""
    parser = arguments(__doc__)
    parser.add_argument("--tests", type=int, default=3000)
    tell("paths", parser.parse_args(), measure)


if __name__ == "__main__":
    main()
