"""Memory and disk of an embedded runtime by account and by edge, by hand.

    python -m bench.memory
    python -m bench.memory --accounts 10000 --degree 20

For every size two processes: one loads a graph in bulk (as `kithstream load` does) and compacts the stores, one opens
what was left, answers some questions, and tells how much its resident memory grew since before it opened a runtime.
`parts` is what can be told apart in it: arrays, tensors and Python objects reached from each part, whatever was
counted in an earlier one left out; `rest` is RocksDB (caches, tables' indexes and filters), hnswlib's graphs and what
allocators hold. An edge's share is the growth from one degree to twice the degree at `--accounts-of-edges`.
Prints one JSON object.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, Final

import numpy as np

from bench.load import write_graph
from bench.machine import machine
from bench.machine import resident as held

SKIPPED: Final = (type, ModuleType, FunctionType)


def resident() -> int:
    """Return this process's resident bytes, after giving back what can be given back."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    return held()


def reached(roots: Iterable[object], seen: set[int]) -> int:
    """Return the bytes of everything that is reached from some objects and was not seen; marks it as seen."""
    import torch

    total = 0
    waiting = list(roots)
    while waiting:
        one = waiting.pop()
        if id(one) in seen or isinstance(one, SKIPPED):
            continue
        seen.add(id(one))
        if isinstance(one, np.ndarray):
            total += sys.getsizeof(one)  # of a view without what it looks at
            waiting += [one.base] if one.base is not None else []
        elif isinstance(one, torch.Tensor):
            storage = one.untyped_storage()
            if storage.data_ptr() not in seen:
                seen.add(storage.data_ptr())
                total += storage.nbytes()
        else:
            total += sys.getsizeof(one)
            fields = getattr(type(one), "__struct_fields__", ())  # msgspec hides them from the collector
            waiting += [getattr(one, name) for name in fields]
        waiting += gc.get_referents(one)
    return total


def parts(live: Any) -> Iterator[tuple[str, list[object]]]:
    """Yield parts of a runtime with the objects that they are reached from; each sees what those before left."""
    chain = live.chain
    yield "shared", [live.config, live.engine.route, live.clock]
    yield "index", [chain.index]
    yield "model", [chain.model]
    if chain.trainer is not None:
        yield "trainer", [chain.trainer]
    for partition in live.engine.partitions:
        yield "row_caches", [partition.rows, partition.recents, partition.profiles]
    yield "reader", [chain.vectors.reader]
    yield "ageing_and_dirty", [chain.vectors.ageing, chain.vectors.dirty]
    yield "exclusions", [chain.exclusions]
    yield "other", [live]


def load(folder: Path, graph: Path) -> dict[str, object]:
    """Load a graph into a runtime; return what its stores hold."""
    import kithstream

    with kithstream.open(folder, start=False) as live:
        loaded = live.load(graph)
        live.engine.settle()
        columns: dict[str, int] = {}
        for partition in live.engine.partitions:
            partition.store.compact()
            for column, handle in partition.store._columns.items():
                size = handle.property_int_value("rocksdb.live-sst-files-size") or 0
                columns[column.value] = columns.get(column.value, 0) + size
        accounts = sum(len(partition.accounts()) for partition in live.engine.partitions)
    return {"edges": loaded.changed, "accounts": accounts, "columns": columns}


def measure(folder: Path, questions: int, accounts: int) -> dict[str, object]:
    """Open a runtime and ask; return how this process grew, and what of it can be told apart."""
    import kithstream

    with (
        tempfile.TemporaryDirectory() as empty,
        kithstream.open(empty, start=False) as small,  # what any runtime takes: libraries, threads
    ):
        small.publish([{"signal": "follow", "actor": "a", "target": "b"}])
        small.candidates("c", after=small.end)
    before = resident()
    with kithstream.open(folder, start=False) as live:
        opened = resident()
        for number in range(questions):
            live.candidates(f"account{number * accounts // questions:07d}")
        asked = resident()
        seen: set[int] = set()
        told: dict[str, int] = {}
        for name, roots in parts(live):
            told[name] = told.get(name, 0) + reached(roots, seen)
        indexed = len(live.chain.index)
    return {
        "before": before,
        "opened": opened - before,
        "asked": asked - before,
        "indexed": indexed,
        "parts": told,
    }


def apart(*words: str) -> Any:
    """Run a step as a process of its own; return what it prints."""
    done = subprocess.run([sys.executable, "-m", "bench.memory", *words], stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def size(accounts: int, degree: int, questions: int, seed: int) -> dict[str, Any]:
    """Return what a graph of one size takes."""
    with tempfile.TemporaryDirectory(prefix="kithstream-bench-") as name:
        graph, folder = Path(name) / "graph.parquet", Path(name) / "runtime"
        write_graph(graph, accounts * degree, accounts, seed)
        stored = apart("--step", "load", "--folder", str(folder), "--graph", str(graph))
        given = ("--questions", str(questions), "--accounts", str(accounts))
        held = apart("--step", "measure", "--folder", str(folder), *given)
    known, edges, columns = stored["accounts"], stored["edges"], stored["columns"]
    told = held["parts"]
    return {
        "accounts": known,
        "edges": edges,
        "rss_mb": round(held["asked"] / 2**20, 1),
        "rss_opened_mb": round(held["opened"] / 2**20, 1),
        "rss_bytes_per_account": round(held["asked"] / known),
        "parts_bytes_per_account": {name: round(value / known) for name, value in told.items()},
        "rest_bytes_per_account": round((held["asked"] - sum(told.values())) / known),
        "store_bytes_per_account": round(columns["rows"] / known, 1),
        "store_bytes_per_edge": {name: round(columns[name] / edges, 1) for name in ("out", "in")},
        "store_bytes_per_edge_in_all": round(sum(columns.values()) / edges, 1),
        "before_mb": round(held["before"] / 2**20, 1),
    }


def main() -> None:
    """Measure each size and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--accounts", type=int, action="append", help="Repeatable; by default 10000, 50000, 100000."
    )
    parser.add_argument("--degree", type=int, default=20, help="Mean number of followees.")
    parser.add_argument(
        "--accounts-of-edges", type=int, default=50_000, help="Where an edge's share is taken."
    )
    parser.add_argument("--questions", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--step", choices=("load", "measure"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--graph", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.step == "load":
        print(json.dumps(load(given.folder, given.graph)))
        return
    if given.step == "measure":
        print(json.dumps(measure(given.folder, given.questions, given.accounts[0])))
        return
    sizes = given.accounts or [10_000, 50_000, 100_000]
    rows = []
    for accounts in sizes:
        rows.append(size(accounts, given.degree, given.questions, given.seed))
        print(rows[-1], file=sys.stderr)
    result: dict[str, object] = {"sizes": rows}
    if given.accounts_of_edges:
        few = size(given.accounts_of_edges, given.degree, given.questions, given.seed)
        many = size(given.accounts_of_edges, 2 * given.degree, given.questions, given.seed)
        grown = (many["rss_mb"] - few["rss_mb"]) * 2**20
        result["rss_bytes_per_further_edge"] = round(grown / (many["edges"] - few["edges"]), 1)
    settings = {key: getattr(given, key) for key in ("degree", "accounts_of_edges", "questions", "seed")}
    print(json.dumps({"bench": "memory", "machine": machine(), **settings, **result}))


if __name__ == "__main__":
    main()
