"""The performance suite: `python -m bench.performance run`, and the page of what it found: `page`.

    python -m bench.performance list
    python -m bench.performance run                       (make bench; hours)
    python -m bench.performance run --only fold,upsert
    python -m bench.performance run --quick --results /tmp/trial.jsonl
    python -m bench.performance page                      docs/performance.md and its pictures

Each part is a process of its own. What it measures is appended to `docs/performance.jsonl`, of which the page is
generated; the newest line of each measurement counts. `--quick` takes small sizes, to see that a part runs: it needs
`--results`, so that no trial gets into the page. `--big` adds the sizes that take tens of minutes.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Final

from bench import performance_page, results
from bench.machine import machine
from bench.results import STAGES
from bench.suite.given import Given

MODULES: Final = {stage: f"bench.suite.{stage}" for stage in STAGES}
# By stage: each is a function of that name in the stage's module.
PARTS: Final = {
    "ingest": ("fold", "fold_sizes", "fold_steps", "store_bytes", "bulk_load", "kafka_throughput"),
    "index": ("upsert",),
}
STAGE_OF: Final = {part: stage for stage in STAGES for part in PARTS.get(stage, ())}


def main(words: Sequence[str] | None = None) -> int:
    """Run what is asked for; the number of parts that failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="the parts with what they measure")
    for name in ("run", "part"):
        command = commands.add_parser(name)
        command.add_argument("--only", default="", help="parts or stages, separated by commas")
        command.add_argument("--quick", action="store_true")
        command.add_argument("--big", action="store_true")
        command.add_argument("--seed", type=int, default=0)
        command.add_argument("--results", type=Path, default=results.PATH)
    page = commands.add_parser("page")
    page.add_argument("--results", type=Path, default=results.PATH)
    page.add_argument("--out", type=Path, default=results.PATH.parent)
    given = parser.parse_args(words)
    if given.command == "page":
        performance_page.write(results.read(given.results), given.out)
        return 0
    if given.command == "list":
        for part, stage in STAGE_OF.items():
            print(f"{stage:<10} {part:<18} {told(part)}")
        return 0
    if given.quick and given.results == results.PATH:
        parser.error("--quick needs --results: trials are not told of")
    try:
        chosen = choose(given.only)
    except ValueError as error:
        parser.error(str(error))
    if given.command == "part":
        (part,) = chosen
        measure(Given(part, STAGE_OF[part], given.results, quick=given.quick, big=given.big, seed=given.seed))
        return 0
    return run(chosen, given)


def choose(only: str) -> list[str]:
    """Return the parts that are named, by themselves or by their stage; all if none is."""
    wanted = [name for name in only.split(",") if name]
    unknown = [name for name in wanted if name not in STAGE_OF and name not in PARTS]
    if unknown:
        raise ValueError(f"only is {', '.join(unknown)}, none of {', '.join([*PARTS, *STAGE_OF])}")
    return [part for part, stage in STAGE_OF.items() if not wanted or {part, stage} & set(wanted)]


def run(parts: Sequence[str], given: argparse.Namespace) -> int:
    """Run parts one after the other, each as a process; return how many failed."""
    print(machine(), file=sys.stderr)
    failed = []
    for number, part in enumerate(parts, 1):
        print(f"{number} of {len(parts)}: {part}: {told(part)}", file=sys.stderr, flush=True)
        words = ["--only", part, "--seed", str(given.seed), "--results", str(given.results)]
        words += ["--quick"] * given.quick + ["--big"] * given.big
        began = time.perf_counter()
        done = subprocess.run([sys.executable, "-m", "bench.performance", "part", *words], check=False)
        took = time.perf_counter() - began
        print(f"  {part}: {took:.0f} s", file=sys.stderr, flush=True)
        if done.returncode:
            failed.append(part)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return len(failed)


def measure(given: Given) -> None:
    """Run one part in this process."""
    getattr(import_module(MODULES[given.stage]), given.part)(given)


def told(part: str) -> str:
    """What a part says of itself."""
    function = getattr(import_module(MODULES[STAGE_OF[part]]), part)
    return (function.__doc__ or "").splitlines()[0]


if __name__ == "__main__":
    sys.exit(main())
