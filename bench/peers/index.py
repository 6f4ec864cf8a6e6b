"""Upsert to visible and query latency of vector indexes over the same vectors, in turns.

Each index is built in a process of its own, with one thread for whatever brings a pool; then they are measured in
turns, round after round, so that what else the machine does meets all of them. The vectors are unit vectors around
centres, the same for all. The recall of each stands beside its times, against an exact scan of what was last written.
Queries go one after another; the writer keeps to a plan, and its batches are timed from when they were due. One
that cannot keep to it falls behind for as long as the part lasts: then read `rows/s written`, not how late it was.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple, Self

from bench import results
from bench.peers.engines import ENGINES, engine
from bench.peers.environment import ROOT, environment, python
from bench.peers.table import OURS, compared, number

OWN = ("kithstream", "numpy", "hnswlib")  # run by the interpreter that runs this
COLUMNS = {  # all times in microseconds
    "upsert_returned_p50_us": "upsert p50",
    "upsert_returned_p99_us": "upsert p99",
    "upsert_seen_p50_us": "seen p50",
    "upsert_seen_p99_us": "seen p99",
    "not_seen_at_once": "not seen at once",
    "query_20_p50_us": "k=20 p50",
    "query_20_p99_us": "k=20 p99",
    "recall_at_20": "recall@20",
    "query_200_p50_us": "k=200 p50",
    "query_200_p99_us": "k=200 p99",
    "recall_at_200": "recall@200",
    "written_per_s": "rows/s written",
    "due_to_written_p50_us": "due to written p50",
    "due_to_written_p99_us": "due to written p99",
    "query_200_beside_p50_us": "k=200 beside p50",
    "query_200_beside_p99_us": "k=200 beside p99",
    "recall_at_200_after": "recall@200 after",
    "build_s": "build s",
}
ORACLE = "numpy"  # exact, not a peer
BARRED = 100_000  # rows at which the bars are
RATIOS = ("upsert_seen_p50_us", "query_200_p50_us", "query_200_beside_p99_us")


class Sizes(NamedTuple):
    """How much is measured."""

    rows: int
    dim: int
    seed: int
    rounds: int
    queries: int
    upserts: int
    rate: int
    seconds: float
    far: bool  # the writer's rows jump; otherwise they move by about 5 % of their length


class Process:
    """One index in a process of its own."""

    def __init__(self, name: str, sizes: Sizes, folder: Path) -> None:
        self.name, self._sizes, self._folder = name, sizes, folder
        self._folder.mkdir()

    def __enter__(self) -> Self:
        sizes = self._sizes
        given = ["--rows", sizes.rows, "--dim", sizes.dim, "--seed", sizes.seed, "--folder", self._folder]
        if sizes.far:
            given.append("--far")
        with open(self._folder / "log", "wb") as log:
            self._process = subprocess.Popen(
                [python(self.name not in OWN), "-m", "bench.peers.trial", self.name, *map(str, given)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=ROOT,
                env=environment(),
            )
        return self

    def ask(self, do: str, **given: object) -> dict[str, Any]:
        """Have it do something and return what it found; RuntimeError with the end of its log if it ends instead."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **given}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            said = (self._folder / "log").read_text(errors="replace").strip().splitlines()
            raise RuntimeError(f"{self.name} ended: {' / '.join(said[-3:])}")
        found: dict[str, Any] = json.loads(line)
        return found

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.close()
            self._process.wait(20)
        except (subprocess.TimeoutExpired, BrokenPipeError):
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


def measure(
    names: Sequence[str], sizes: Sizes, ks: Sequence[int], say: Any
) -> dict[str, list[dict[str, Any]]]:
    """Build each, then measure all in turns; one that cannot go on is said and left out from there."""
    rounds: dict[str, list[dict[str, Any]]] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kithstream-peers-")))
        running: dict[str, Process] = {}
        built: dict[str, dict[str, Any]] = {}
        for number, name in enumerate(names):
            process = stack.enter_context(Process(name, sizes, folder / str(number)))
            try:
                built[name] = process.ask("build")
            except RuntimeError as why:
                say(str(why))
                continue
            say(f"{name} {built[name]}")
            running[name], rounds[name] = process, []
        order = {
            "asked": sizes.queries,
            "probes": sizes.upserts,
            "ks": list(ks),
            "rate": sizes.rate,
            "seconds": sizes.seconds,
        }
        for turn in range(sizes.rounds):
            for name, process in list(running.items()):
                try:
                    found = process.ask("round", **order)
                except RuntimeError as why:
                    say(str(why))
                    del running[name]
                    continue
                rounds[name].append({**built[name], **found})
                say(f"round {turn + 1}, {name}: {found}")
    return {name: found for name, found in rounds.items() if found}


def show(rounds: dict[str, list[dict[str, Any]]], sizes: Sizes) -> str:
    """Both tables: what is kept in memory, and what is on disk before it is told to be written."""
    parts = []
    for kept in ("memory", "disk"):
        names = [name for name in rounds if engine(name).kept == kept or name == OURS]
        told = {name: (rounds[name][0]["version"], engine(name).does) for name in names}
        chosen = {name: rounds[name] for name in names}
        parts += [f"\nKept in {kept}" + (" (kithstream for comparison)" if kept == "disk" else ""), ""]
        parts.append(compared(chosen, told, COLUMNS, RATIOS))
    return "\n".join(parts)


def append(rounds: dict[str, list[dict[str, Any]]], sizes: Sizes, command: str, path: Path | None) -> None:
    """Lines in the results: all figures of each index, and for the bars upserts and queries at rest by themselves.

    An upsert is visible when the call returns, if every probe was seen by the first query; else when it was seen.
    """
    for name, found in rounds.items():
        does = engine(name)
        figures = {key: [one[key] for one in found] for key in found[0] if number(found[0][key])}
        at_once = not any(one["not_seen_at_once"] for one in found)
        visible = "upsert_returned" if at_once else "upsert_seen"
        upsert = {f"p{p}_us": figures[f"{visible}_p{p}_us"] for p in (50, 99)}
        idle = {f"p{p}_us": figures[f"query_200_p{p}_us"] for p in (50, 99)}
        idle["recall_at_200"] = figures["recall_at_200"]
        peer = name not in (OURS, ORACLE) and sizes.rows == BARRED
        way = "jump" if sizes.far else "drift"
        for what, bar, these in (
            (f"vector index beside a writer, rows {way}", "", figures),
            ("upsert of one row to visible", "upsert", upsert),
            ("query, k = 200, at rest", "core_idle", idle),
        ):
            results.append(
                bench="peers",
                stage="retrieval" if bar == "core_idle" else "index",
                what=what,
                kind="ours" if name == OURS else "limit" if name == ORACLE else "peer",
                by=name if name == OURS else f"{name} {found[0]['version']}",
                figures=these,
                command=command,
                sizes={"accounts": sizes.rows, "dim": sizes.dim, "rate": sizes.rate},
                mix="unit vectors around centres",
                seed=sizes.seed,
                bar=bar if peer else "",
                note=f"{does.does}; kept in {does.kept}",
                path=path,
            )


NAMES = tuple(one.name for one in ENGINES)
