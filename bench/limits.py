"""The physical or library limit of each stage, measured the same way, and how far we are from it.

    python -m bench.limits
    python -m bench.limits --only fold --accounts 20000 --events 60000
    python -m bench.limits --json

Ours and the limit are measured in turn in one run; a ratio is the median of the pairs' ratios, 1 is at the limit.

- `fold`: reads and writes of a fold replayed into a bare RocksDB; its records decoded by msgspec alone.
- `index`: the product of matrix and query that an exact scan is, of floats and of codes; hnswlib in place.
- `tower`: the producer tower's products of matrices.
- `http`: the same uvicorn and starlette with an empty answer, as quick as it can and at a rate.
- `kafka`: the clients alone, sending and fetching; a question that is sent back at once.
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before numpy: one thread, as a worker serves

import argparse
import json
import sys
from collections.abc import Callable, Iterable
from importlib import import_module
from pathlib import Path

import msgspec

from bench import results
from bench.distance import Distance, record, table
from bench.machine import machine

PARTS = ("fold", "index", "tower", "http", "kafka")
Measure = Callable[[argparse.Namespace], Iterable[Distance]]


def main() -> None:
    """Measure the parts asked for and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=PARTS, action="append", help="Repeatable; by default all.")
    parser.add_argument("--accounts", type=int, default=100_000)
    parser.add_argument("--events", type=int, default=600_000)
    parser.add_argument(
        "--rows", type=int, action="append", help="Of scans; repeatable, by default 37000, 100000, 290000."
    )
    parser.add_argument(
        "--coded-rows", type=int, action="append", help="Of scans of codes, by default 100000, 1000000."
    )
    parser.add_argument("--graph-rows", type=int, default=100_000)
    parser.add_argument("--build-rows", type=int, default=10_000)
    parser.add_argument("--http-events", type=int, default=20_000)
    parser.add_argument("--http-requests", type=int, default=5000)
    parser.add_argument("--kafka-events", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=10.0, help="Of questions at a rate, a run.")
    parser.add_argument("--runs", type=int, default=5, help="Pairs of each.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--append", action="store_true", help="Also append to docs/performance.jsonl.")
    parser.add_argument("--to", type=Path, help="Append to this file instead.")
    parser.add_argument("--json", action="store_true", help="One JSON line a measurement instead of a table.")
    given = parser.parse_args()
    rows = "".join(f" --rows {count}" for count in given.rows or ())
    rows += "".join(f" --coded-rows {count}" for count in given.coded_rows or ())
    given.rows = given.rows or [37_000, 100_000, 290_000]
    given.coded_rows = given.coded_rows or [100_000, 1_000_000]
    command = f"python -m bench.limits{rows}" + "".join(
        f" --{name.replace('_', '-')} {getattr(given, name)}"
        for name in (
            "accounts",
            "events",
            "graph_rows",
            "build_rows",
            "http_events",
            "http_requests",
            "kafka_events",
            "seconds",
            "runs",
            "seed",
        )
        if getattr(given, name) != parser.get_default(name)
    )
    print(f"{machine()}, seed {given.seed}", file=sys.stderr)
    found: list[Distance] = []
    for name in given.only or PARTS:
        measure: Measure = import_module(f"bench.limits_{name}").measure
        for one in measure(given):
            found.append(one)
            if given.append or given.to:
                record(one, command, given.seed, lambda **line: results.append(**line, path=given.to))
            if given.json:
                told = {**msgspec.to_builtins(one), "ratio": one.ratio, "machine": machine()}
                print(json.dumps({**told, "command": command, "seed": given.seed}), flush=True)
    if not given.json:
        print(table(found, command))


if __name__ == "__main__":
    main()
