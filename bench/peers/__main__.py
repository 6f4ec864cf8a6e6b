"""Peers beside kithstream: same work, one run, pairs.

    python -m bench.peers setup                      # once: var/peers-venv, pinned versions
    python -m bench.peers index --rows 100000 --dim 144
    python -m bench.peers ingest --events 60000 --killed 20000
    python -m bench.peers glue --rate 1000 --seconds 30

Each prints one table a kind and, with --append, adds lines to docs/performance.jsonl; --append FILE to another file.
What cannot be had on a machine is said, and its line is not there.
"""

from __future__ import annotations

import argparse
import json
import shlex
import signal
import sys
from pathlib import Path
from typing import Any

from bench import results
from bench.machine import machine, say
from bench.peers import environment, glue, index, ingest


def _index(given: argparse.Namespace, command: str) -> dict[str, Any]:
    sizes = index.Sizes(
        given.rows,
        given.dim,
        given.seed,
        given.rounds,
        given.queries,
        given.upserts,
        given.rate,
        given.seconds,
        given.far,
    )
    names = given.only or index.NAMES
    rounds = index.measure(names, sizes, (20, 200), say)
    print(index.show(rounds, sizes))
    if given.append is not None:
        index.append(rounds, sizes, command, given.append)
    return {**sizes._asdict(), "rounds_of": rounds, "missing": [n for n in names if n not in rounds]}


def _ingest(given: argparse.Namespace, command: str) -> dict[str, Any]:
    names = given.only or ingest.NAMES
    rounds = ingest.measure(names, given.events, given.killed, given.rounds, given.seed, given.patience, say)
    print(ingest.show(rounds))
    if given.append is not None:
        ingest.append(rounds, given.events, given.seed, command, given.append)
    return {"events": given.events, "killed": given.killed, "seed": given.seed, "rounds_of": rounds}


def _glue(given: argparse.Namespace, command: str) -> dict[str, Any]:
    names = given.only or glue.NAMES
    rounds = glue.measure(names, given.rate, given.seconds, given.warm, given.rounds, given.seed, say)
    print(glue.show(rounds))
    if given.append is not None:
        glue.append(rounds, given.rate, given.seed, command, given.append)
    return {"rate": given.rate, "seconds": given.seconds, "seed": given.seed, "rounds_of": rounds}


def main() -> None:
    """Run one of the comparisons."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="what", required=True)
    commands.add_parser("setup", help="Make var/peers-venv.")
    each = argparse.ArgumentParser(add_help=False)
    each.add_argument("--json", action="store_true", help="One JSON object at the end, every round in it.")
    each.add_argument("--append", nargs="?", type=Path, const=results.PATH, help="Add to the results.")
    each.add_argument("--seed", type=int, default=0)
    each.add_argument("--rounds", type=int, default=5)
    each.add_argument("--only", action="append", help="One of the peers; repeatable.")
    vectors = commands.add_parser("index", parents=[each], help="Vector indexes.")
    vectors.add_argument("--rows", type=int, default=100_000)
    vectors.add_argument("--dim", type=int, default=144)
    vectors.add_argument("--queries", type=int, default=300, help="Of each k and round.")
    vectors.add_argument("--upserts", type=int, default=200, help="Of one row, each round.")
    vectors.add_argument("--rate", type=int, default=1000, help="Rows a second of the writer.")
    vectors.add_argument("--seconds", type=float, default=3.0, help="Longest part of a round.")
    vectors.add_argument("--far", action="store_true", help="The writer's rows jump instead of drifting.")
    stream = commands.add_parser("ingest", parents=[each], help="Applications over Kafka.")
    stream.add_argument("--events", type=int, default=60_000)
    stream.add_argument("--killed", type=int, default=20_000, help="Events of the run with a kill; 0: none.")
    stream.add_argument("--patience", type=float, default=300.0, help="Seconds for a run.")
    together = commands.add_parser("glue", parents=[each], help="Publish to visible, beside glue.")
    together.add_argument("--rate", type=int, default=1000, help="Events a second.")
    together.add_argument("--seconds", type=float, default=20.0)
    together.add_argument("--warm", type=int, default=20_000, help="Events before.")
    given = parser.parse_args()
    if given.what == "setup":
        environment.setup()
        return
    if environment.missing():
        parser.error("python -m bench.peers setup comes first")
    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit(143)
    )  # processes that were started are ended on the way out
    command = shlex.join(["python", "-m", "bench.peers", *sys.argv[1:]])
    say(machine())
    found = {"index": _index, "ingest": _ingest, "glue": _glue}[given.what](given, command)
    if given.json:
        print(json.dumps({"what": given.what, "command": command, "machine": machine(), **found}))


if __name__ == "__main__":
    main()
