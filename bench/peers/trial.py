"""One vector index measured in a process of its own, round by round as its parent asks.

Not a command of its own: `python -m bench.peers index` starts it, writes one JSON line to its input for each thing
to be done, and reads one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from bench.peers.engines import STEP, Engine, Floats, Numbers, best, engine

BATCH = 16  # rows of one upsert of the writer
PATIENCE = 10.0  # seconds after which an upsert counts as never seen


def units(rng: np.random.Generator, rows: int, dim: int, centres: Floats) -> Floats:
    """(rows, dim) unit vectors around centres that lie in 24 dimensions, lifted by one fixed matrix."""
    lift = np.random.default_rng(24).normal(size=(24, dim)) / 24**0.5
    inner = centres[rng.integers(0, len(centres), rows)] + 0.6 * rng.normal(size=(rows, 24))
    outer = np.tanh(inner @ lift)
    return np.asarray(outer / np.linalg.norm(outer, axis=1, keepdims=True), np.float32)


def percentiles(seconds: list[float], name: str) -> dict[str, float]:
    """The median and the 99th percentile, microseconds; nothing where nothing was measured."""
    if not seconds:
        return {}
    return {f"{name}_p{p}_us": round(float(np.percentile(seconds, p)) * 1e6, 1) for p in (50, 99)}


class Trial:
    """An index, the vectors that it must hold, and what is asked of it."""

    def __init__(self, subject: Engine, rows: int, dim: int, seed: int, far: bool) -> None:
        self._subject = subject
        self._rng = np.random.default_rng(seed)
        self._centres = self._rng.normal(size=(max(20, rows // 200), 24)).astype(np.float32)
        self._far = far
        self._dim = dim
        self.table = self.sample(rows)

    def sample(self, rows: int) -> Floats:
        return units(self._rng, rows, self._dim, self._centres)

    def build(self) -> dict[str, Any]:
        """Put everything in."""
        began, cpu = time.perf_counter(), time.process_time()
        for start in range(0, len(self.table), STEP):
            rows = np.arange(start, min(start + STEP, len(self.table)), dtype=np.int64)
            self._subject.upsert(rows, self.table[rows])
        self._subject.ready()
        return {
            "build_s": round(time.perf_counter() - began, 2),
            "build_cpu_s": round(time.process_time() - cpu, 2),
        }

    def round(self, asked: int, probes: int, ks: list[int], rate: int, seconds: float) -> dict[str, Any]:
        """Everything once: queries at rest, upserts until seen, queries beside a writer, recall before and after."""
        found: dict[str, Any] = {}
        for k in ks:
            found |= percentiles(self.queries(asked, k, seconds), f"query_{k}")
            found[f"recall_at_{k}"] = self.recall(k)
        found |= self.visible(probes, seconds)
        found |= self.beside(rate, seconds, ks)
        for k in ks:
            found[f"recall_at_{k}_after"] = self.recall(k)
        return found

    def queries(self, asked: int, k: int, seconds: float) -> list[float]:
        """Queries one after the other, at most for so many seconds."""
        spent: list[float] = []
        until = time.perf_counter() + seconds
        for vector in self.sample(asked):
            began = time.perf_counter()
            self._subject.query(vector, k)
            spent.append(time.perf_counter() - began)
            if time.perf_counter() > until:
                break
        return spent

    def recall(self, k: int, asked: int = 40) -> float:
        """The mean share of the k best that is found."""
        shares = []
        for vector in self.sample(asked):
            got = self._subject.rows(self._subject.query(vector, k))
            shares.append(len(set(got) & set(best(self.table, vector, k).tolist())) / k)
        return round(float(np.mean(shares)), 4)

    def visible(self, probes: int, seconds: float) -> dict[str, Any]:
        """Rows that jump to another place, one at a time, each asked for until a query finds it there."""
        returned: list[float] = []
        seen: list[float] = []
        late = never = 0
        until = time.perf_counter() + 2 * seconds
        for vector in self.sample(probes):
            row = self._rng.integers(0, len(self.table), 1)
            began = time.perf_counter()
            self._subject.upsert(row, vector[None])
            returned.append(time.perf_counter() - began)
            self.table[row] = vector
            tries = 0
            while True:
                answer = self._subject.query(vector, 20)
                now = time.perf_counter()
                tries += 1
                if int(row[0]) in self._subject.rows(answer):
                    seen.append(now - began)
                    break
                if now > began + PATIENCE:
                    never += 1
                    break
            late += tries > 1
            if time.perf_counter() > until:
                break
        return {
            **percentiles(returned, "upsert_returned"),
            **percentiles(seen, "upsert_seen"),
            "upserts": len(returned),
            "not_seen_at_once": late,
            "never_seen": never,
        }

    def beside(self, rate: int, seconds: float, ks: list[int]) -> dict[str, Any]:
        """Queries one after the other while `rate` rows a second are due to be written."""
        spent: dict[int, list[float]] = {k: [] for k in ks}
        vectors = self.sample(256)
        cpu, began, turn = time.process_time(), time.perf_counter(), 0
        with self._writer(rate) as written:
            while time.perf_counter() < began + seconds:
                k = ks[turn % len(ks)]
                asked = time.perf_counter()
                self._subject.query(vectors[turn % len(vectors)], k)
                spent[k].append(time.perf_counter() - asked)
                turn += 1
            lasted = time.perf_counter() - began
            done = len(written) * BATCH
        found: dict[str, Any] = {
            "written_per_s": round(done / lasted),
            "queries_per_s": round(turn / lasted),
            "cpu_share": round((time.process_time() - cpu) / lasted, 2),
            **percentiles(written, "due_to_written"),
        }
        for k, times in spent.items():
            found |= percentiles(times, f"query_{k}_beside")
        return found

    @contextmanager
    def _writer(self, rate: int) -> Iterator[list[float]]:
        """A thread that writes on a fixed plan; yields how long after its due time each batch was in."""
        stop, spent = threading.Event(), [0.0][:0]
        rng = np.random.default_rng(self._rng.integers(1 << 32))
        failed: list[BaseException] = []

        def write() -> None:
            begin, turn = time.perf_counter(), 0
            try:
                while not stop.wait(max(0.0, begin + turn * BATCH / rate - time.perf_counter())):
                    rows = rng.choice(len(self.table), BATCH, replace=False)
                    moved = self._moved(rng, rows)
                    self._subject.upsert(rows, moved)
                    self.table[rows] = moved
                    spent.append(time.perf_counter() - begin - turn * BATCH / rate)
                    turn += 1
            except BaseException as error:
                failed.append(error)

        thread = threading.Thread(target=write)
        thread.start()
        try:
            yield spent
        finally:
            stop.set()
            thread.join()
        if failed:
            raise failed[0]

    def _moved(self, rng: np.random.Generator, rows: Numbers) -> Floats:
        if self._far:
            return units(rng, len(rows), self._dim, self._centres)
        noise = rng.normal(size=(len(rows), self._dim)) * 0.05 / self._dim**0.5
        moved = self.table[rows] + noise
        return np.asarray(moved / np.linalg.norm(moved, axis=1, keepdims=True), np.float32)


def main() -> None:
    """Obey the parent until its end closes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("engine")
    parser.add_argument("--rows", type=int, required=True)
    parser.add_argument("--dim", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--far", action="store_true")
    given = parser.parse_args()
    sys.setswitchinterval(5e-4)  # as kithstream's retrieval process sets it; for all alike
    out = os.fdopen(os.dup(1), "w")  # what libraries print goes to the log
    os.dup2(2, 1)
    subject = engine(given.engine)(given.rows, given.dim, given.folder)
    trial = Trial(subject, given.rows, given.dim, given.seed, given.far)
    for line in sys.stdin:
        order = json.loads(line)
        answer = getattr(trial, order.pop("do"))(**order)
        answer["version"] = getattr(subject, "version", "")
        print(json.dumps(answer), file=out, flush=True)
    subject.close()


if __name__ == "__main__":
    main()
