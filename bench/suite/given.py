"""What a part of the suite is given, and how it tells what it measured."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bench import results
from bench.results import Size, Stage

MIX = "full mix of a simulated world"


class Given(NamedTuple):
    """How a part runs, and where its lines go."""

    part: str
    stage: Stage
    results: Path
    quick: bool = False  # small sizes: to see that it runs, not to be told of
    big: bool = False  # the sizes that take tens of minutes as well
    seed: int = 0

    def size(self, full: int, quick: int) -> int:
        """Choose a size."""
        return quick if self.quick else full

    @property
    def command(self) -> str:
        """What makes these lines again."""
        words = ["python -m bench.performance run --only", self.part]
        words += ["--quick"] * self.quick + ["--big"] * self.big + [f"--seed {self.seed}"] * (self.seed != 0)
        return " ".join(words)

    def record(
        self,
        what: str,
        figures: Mapping[str, float | Sequence[float]],
        *,
        sizes: Mapping[str, Size] | None = None,
        mix: str = "",
        bar: str = "",
        note: str = "",
    ) -> None:
        """Write one line of this part, and say it."""
        made = results.append(
            bench=self.part,
            stage=self.stage,
            what=what,
            figures=figures,
            command=self.command,
            sizes=sizes,
            mix=mix,
            seed=self.seed,
            bar=bar,
            note=note,
            path=self.results,
        )
        told = ", ".join(f"{name} {one.median:g}" for name, one in made.figures.items())
        print(f"  {what} {dict(sizes or {})}: {told}", file=sys.stderr, flush=True)


def percentiles(
    seconds: Sequence[float], unit: str = "ms", shares: Sequence[float] = (50, 95, 99)
) -> dict[str, float]:
    """Percentiles and the most of times in seconds, in milliseconds (`ms`) or microseconds (`us`)."""
    if not len(seconds):
        raise ValueError("percentiles of no times")
    array = np.asarray(seconds) * {"ms": 1e3, "us": 1e6}[unit]
    told = {f"p{share:g}_{unit}": float(np.percentile(array, share)) for share in shares}
    return {**told, f"max_{unit}": float(array.max())}


def windows(rows: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
    """Turn the figures of several windows or runs into one list a figure; those that all of them have."""
    common = [name for name in rows[0] if all(name in row for row in rows)]
    return {name: [float(row[name]) for row in rows] for name in common}
