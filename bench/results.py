"""What was measured, one JSON line a measurement, in `docs/performance.jsonl`; `bench.performance` makes a page of it.

append(
    bench="limits", stage="ingest", what="batched writes of a fold's own keys", kind="limit", by="rocksdict 0.3.29",
    figures={"events_per_cpu_second": [91_000, 92_000, 90_500], "p99_ms": 3.2},
    sizes={"accounts": 100_000, "edges": 2_000_000}, mix="full mix of a simulated world", seed=0,
    bar="fold", command="python -m bench.limits --only store",
)
"""

from __future__ import annotations

import statistics
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal, get_args

import msgspec

from bench.bars import BARS
from bench.machine import machine

ROOT: Final = Path(__file__).parents[1]
PATH: Final = ROOT / "docs" / "performance.jsonl"

Stage = Literal["ingest", "freshness", "retrieval", "index", "tower", "recovery", "memory"]
Kind = Literal["ours", "limit", "peer"]
STAGES: Final[tuple[Stage, ...]] = get_args(Stage)
Size = int | float | str


class Figure(msgspec.Struct, frozen=True, omit_defaults=True):
    """A value, or the median of several runs with the least and the most."""

    median: float
    min: float | None = None
    max: float | None = None
    runs: int = 1


class Measurement(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """One line of the file."""

    bench: str
    stage: Stage
    what: str
    kind: Kind
    by: str  # whose: kithstream, or a library with its version
    figures: dict[str, Figure]  # units are in the names: p99_ms, events_per_cpu_second
    machine: str
    date: str
    commit: str
    command: str
    sizes: dict[str, Size] = {}
    mix: str = ""
    seed: int | None = None
    bar: str = ""
    note: str = ""

    @property
    def key(self) -> tuple[str, ...]:
        """What a later measurement of the same replaces."""
        return (
            self.bench,
            self.what,
            self.kind,
            self.by,
            *(f"{k}={v}" for k, v in sorted(self.sizes.items())),
        )


def figure(values: float | Sequence[float]) -> Figure:
    """Sum up runs; a lone value stays as it is."""
    if isinstance(values, (int, float)):
        return Figure(_short(values))
    if not values:
        raise ValueError("a figure of no runs")
    return Figure(_short(statistics.median(values)), _short(min(values)), _short(max(values)), len(values))


def append(
    *,
    bench: str,
    stage: Stage,
    what: str,
    figures: Mapping[str, float | Sequence[float]],
    command: str,
    kind: Kind = "ours",
    by: str = "kithstream",
    sizes: Mapping[str, Size] | None = None,
    mix: str = "",
    seed: int | None = None,
    bar: str = "",
    note: str = "",
    path: Path | None = None,
) -> Measurement:
    """Write a line with this machine, date and commit at the end of the file; return what was written.

    `figures` are numbers, or one number a run, of which median, least and most are kept. `bar` is a key of
    `bench.bars.BARS`, one of whose figures must be there, under its name. Raises ValueError where something is not so.
    """
    if stage not in STAGES:
        raise ValueError(f"stage is {stage!r}, none of {', '.join(STAGES)}")
    if bar and bar not in BARS:
        raise ValueError(f"bar is {bar!r}, none of {', '.join(BARS)}")
    if bar and not {condition.figure for condition in BARS[bar].conditions} & set(figures):
        wanted = ", ".join(condition.figure for condition in BARS[bar].conditions)
        raise ValueError(f"figures are {', '.join(figures)}, bar {bar!r} is of {wanted}")
    made = Measurement(
        bench=bench,
        stage=stage,
        what=what,
        kind=kind,
        by=by,
        figures={name: figure(values) for name, values in figures.items()},
        machine=machine(),
        date=datetime.now(UTC).date().isoformat(),
        commit=commit(),
        command=command,
        sizes=dict(sizes or {}),
        mix=mix,
        seed=seed,
        bar=bar,
        note=note,
    )
    with (path or PATH).open("ab") as file:
        file.write(msgspec.json.encode(made) + b"\n")
    return made


def read(path: Path | None = None) -> list[Measurement]:
    """Return the newest line of each measurement, in the order in which each was first measured.

    Raises msgspec.ValidationError with the number of the line that is none.
    """
    found: dict[tuple[str, ...], Measurement] = {}
    for number, line in enumerate((path or PATH).read_bytes().splitlines(), 1):
        try:
            one = msgspec.json.decode(line, type=Measurement)
        except msgspec.DecodeError as error:
            raise msgspec.ValidationError(f"line {number}: {error}") from error
        found[one.key] = one
    return list(found.values())


def commit() -> str:
    """Return the commit of this tree, with a plus where the code differs from it; empty outside of a repository."""
    try:
        name = _git("rev-parse", "--short", "HEAD")
        changed = _git("status", "--porcelain", "--untracked-files=no", "--", ":!docs")
    except (OSError, subprocess.CalledProcessError):
        return ""
    return f"{name}+" if changed else name


def _git(*words: str) -> str:
    told = subprocess.run(["git", *words], cwd=ROOT, check=True, capture_output=True, text=True)
    return told.stdout.strip()


def _short(value: float) -> float:
    """Four significant digits, whole numbers whole."""
    return int(value) if value == int(value) else float(f"{value:.4g}") if abs(value) < 1000 else round(value)
