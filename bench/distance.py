"""How far something of ours is from a limit: both measured in turn in one run, and the ratio of the two."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import msgspec

from bench import results

Sense = Literal["cost", "rate"]


class Distance(msgspec.Struct, frozen=True):
    """One stage beside its limit. `ours` and `limits` are one value a pair, in one unit; units are in `figure`."""

    part: str  # of `python -m bench.limits --only`
    stage: results.Stage
    what: str
    by: str  # whose the limit is: a library with its version, or what it is a part of
    limit: str  # what is measured as the limit, in words
    figure: str  # us_per_event, gflop_per_second
    sense: Sense  # whether less or more is better
    ours: Sequence[float]
    limits: Sequence[float]
    sizes: dict[str, results.Size] = {}
    mix: str = ""
    beside: dict[str, float] = {}  # what a speed is not told without, such as a recall
    limit_beside: dict[str, float] = {}
    bar: str = ""  # of `bench.bars` that the limit is a limit of
    note: str = ""

    def __post_init__(self) -> None:
        if len(self.ours) != len(self.limits) or not self.ours:
            raise ValueError(f"{self.what}: {len(self.ours)} runs of ours, {len(self.limits)} of the limit")

    @property
    def ratios(self) -> list[float]:
        """Of each pair, how many times as far as the limit goes: 1 is at the limit."""
        both = zip(self.ours, self.limits, strict=True)
        return [one / other if self.sense == "cost" else other / one for one, other in both]

    @property
    def ratio(self) -> float:
        """The median of the pairs."""
        return statistics.median(self.ratios)


def pairs(
    ours: Callable[[int], float], limit: Callable[[int], float], runs: int
) -> tuple[list[float], list[float]]:
    """Measure in turn, the one that begins alternating; a run is told its number."""
    mine: list[float] = []
    theirs: list[float] = []
    for number in range(runs):
        order = ((mine, ours), (theirs, limit)) if number % 2 == 0 else ((theirs, limit), (mine, ours))
        for found, measure in order:
            found.append(measure(number))
    return mine, theirs


def table(distances: Iterable[Distance], command: str) -> str:
    """Return a Markdown table of medians and of the medians of the pairs' ratios."""
    rows = ["| stage | ours | limit | what the limit is | ratio | command |", "|---|---|---|---|---|---|"]
    for one in distances:
        ours, limit = (_told(values, one.figure) for values in (one.ours, one.limits))
        ours += "".join(f", {name} {value:g}" for name, value in one.beside.items())
        limit += "".join(f", {name} {value:g}" for name, value in one.limit_beside.items())
        what = f"{one.what} ({', '.join(f'{value} {name}' for name, value in one.sizes.items())})"
        rows.append(
            f"| {what} | {ours} | {limit} | {one.by}: {one.limit} | {one.ratio:.3g} | "
            f"`{command} --only {one.part}` |"
        )
    return "\n".join(rows)


def record(one: Distance, command: str, seed: int, append: Callable[..., object] = results.append) -> None:
    """Append both sides to the file of results, ours with its distance."""
    told = f"{command} --only {one.part}"
    common = {"bench": "limits", "stage": one.stage, "command": told, "mix": one.mix, "seed": seed}
    append(
        **common,
        what=one.what,
        sizes=one.sizes,
        figures={one.figure: list(one.ours), "times_the_limit": one.ratios, **one.beside},
        note=one.note,
    )
    append(
        **common,
        what=one.what,
        sizes=one.sizes,
        kind="limit",
        by=one.by,
        figures={one.figure: list(one.limits), **one.limit_beside},
        bar=one.bar,
        note=one.limit,
    )


def _told(values: Sequence[float], figure: str) -> str:
    return f"{statistics.median(values):,.4g} {figure}"
