"""Time to a useful model from an empty start: recall@20 along a stream, beside the best hand rule.

    python -m bench.useful bitcoin college --data FOLDER
    python -m bench.useful simulator --accounts 1000 --events 40000
    python -m bench.useful higgs --data FOLDER --events 60000 --tests 100

An empty runtime is told a stream and learns. The first pairs of it are cut into `--windows` of equal numbers; of each
window up to `--tests` first follows whose both accounts came up before are asked for just before they are told: by the
whole, by the towers alone, and by the hand rule (`yardsticks.HandRule`), which needs no learning and has the
half-lives that do best on rows 64 to 80 %. Useful is a model from the window on from which its mean over the rest of
the stream, and over that window, is above the rule's.
One JSON object a stream.
"""

from __future__ import annotations

import argparse
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bench.compared import RULE, arguments, compare, tell
from bench.freshness_value import events_of
from bench.quality_own import TOWERS, WHOLE
from kithstream.streams import prequential
from kithstream.streams.prequential import Pairs


class Window(NamedTuple):
    """A part of the pairs, and how many of its tests each way won."""

    pairs: int  # told before its end
    days: float  # of the stream, to its end
    tests: int
    recall: dict[str, float]


def chosen(known: Pairs, windows: int, most: int, seed: int) -> list[NDArray[np.int64]]:
    """Return the rows to ask in each window, ascending: of those whose both accounts came up in an earlier row."""
    rows = np.arange(len(known.source))
    first = np.full(len(known.accounts), len(rows))
    for column in (known.source, known.target):
        np.minimum.at(first, column, rows)
    came = (first[known.source] < rows) & (first[known.target] < rows)
    draw = np.random.default_rng(seed)
    found = []
    for part in np.array_split(rows, windows):
        some = part[came[part]]
        found.append(np.sort(draw.choice(some, min(most, len(some)), replace=False)))
    return found


def useful_from(ours: list[NDArray[np.float64]], rule: list[NDArray[np.float64]]) -> int | None:
    """Return the first window in which and after which ours wins more of the tests; None if there is none."""
    for at in range(len(ours)):
        rest = np.concatenate(ours[at:]).mean() - np.concatenate(rule[at:]).mean()
        if len(ours[at]) and rest > 0 and ours[at].mean() > rule[at].mean():
            return at
    return None


def measure(stream: str, given: argparse.Namespace) -> dict[str, object]:
    """Return what each way wins along a stream, and from where on ours are useful."""
    events = events_of(stream, given, repeats=given.repeats)
    known = prequential.first_pairs(events)
    parts = chosen(known, given.windows, given.tests, given.seed)
    tests = np.concatenate(parts)
    found = compare(known, events, tests, given.seed)
    ends = np.cumsum([len(part) for part in parts])[:-1]
    won = {name: np.split(hits, ends) for name, hits in found.won.items()}
    begin = int(known.time.min())
    windows = [
        Window(
            int(part[-1]) + 1,
            round((int(known.time[part[-1]]) - begin) / 86_400e6, 2),
            len(asked),
            {name: round(float(won[name][at].mean()), 4) for name in won} if len(asked) else {},
        )
        for at, (part, asked) in enumerate(
            zip(np.array_split(np.arange(len(known.source)), given.windows), parts, strict=True)
        )
    ]
    return {
        "stream": stream,
        "pairs": len(known.source),
        "accounts": len(known.accounts),
        "half_lives": found.half_lives,
        "useful_after_pairs": {
            name: _pairs(useful_from(won[name], won[RULE]), windows) for name in (TOWERS, WHOLE)
        },
        "seconds": round(found.seconds, 1),
        "windows": [one._asdict() for one in windows],
    }


def _pairs(window: int | None, windows: list[Window]) -> int | None:
    """The pairs told before a window."""
    return None if window is None else windows[window - 1].pairs if window else 0


def main() -> None:
    """Measure each stream and print."""
    parser = arguments(__doc__)
    parser.add_argument("--windows", type=int, default=20)
    parser.add_argument("--tests", type=int, default=200, help="Asked for in each window at most.")
    tell("useful", parser.parse_args(), measure)


if __name__ == "__main__":
    main()
