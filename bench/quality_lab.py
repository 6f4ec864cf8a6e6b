"""Next-follow prediction on real event streams: day-zero, online, and frozen at 80 %.

    python bench/quality_lab.py btc college --data ../shared/data

Protocol: first pairs only (repeats and, for Bitcoin, negative ratings dropped); the last 20 % of them with
both ends seen before are the test, at most 3,000 sampled; k=20, asked before the event is applied; followed
accounts and the asker removed; exact scan of the stored vectors. One pass, learning online. The state is a
light one in memory that fills `Rows` as the store does, as far as follows fill it: counts in minute, hour and
day cells, decayed at read from the middle of the cell; neighbours; sketches of followers and followees.
"""

from __future__ import annotations

import argparse
import gzip
import heapq
import json
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from kithstream.models.ages import next_tick
from kithstream.models.evaluate import bootstrap, ndcg_at, recall_at
from kithstream.models.features import (
    AGGREGATES,
    FAMILY,
    FOLLOWEES,
    FOLLOWERS,
    HALF_LIVES,
    SKETCH,
    UNRECIPROCATED,
    Rows,
    blank,
)
from kithstream.models.lineage import DIM
from kithstream.models.model import Model
from kithstream.models.train import Examples, OnlineTrainer, TrainerConfig
from kithstream.streams.state import sketches

K = 20
BATCH = 64
MINUTES, HOURS = 180, 48
UNRECIPROCATED_KEPT = 24
FILES = {
    "btc": "soc-sign-bitcoinotc.csv.gz",
    "college": "CollegeMsg.txt.gz",
    "higgs": "higgs-activity_time.txt.gz",
}


class Stream(NamedTuple):
    """First pairs in time order, accounts numbered by first appearance."""

    source: NDArray[np.int64]
    target: NDArray[np.int64]
    seconds: NDArray[np.int64]
    accounts: int


def read(name: str, folder: Path, limit: int | None = None) -> Stream:
    """The first pairs of a stream, or the first `limit` of them."""
    rows = []
    with gzip.open(folder / FILES[name], "rt") as file:
        for line in file:
            part = line.replace(",", " ").split()
            if name == "btc":
                if not part[0].isdigit() or int(part[2]) <= 0:
                    continue
                rows.append((int(part[0]), int(part[1]), int(float(part[3]))))
            else:
                rows.append((int(part[0]), int(part[1]), int(part[2])))
    raw = np.array([r for r in rows if r[0] != r[1]], np.int64)
    raw = raw[np.argsort(raw[:, 2], kind="stable")]
    pairs = raw[:, 0] * (raw[:, :2].max() + 1) + raw[:, 1]
    first = np.sort(np.unique(pairs, return_index=True)[1])
    raw = raw[first][:limit]
    ids = np.unique(raw[:, :2], return_inverse=True)[1].reshape(-1, 2)
    return Stream(ids[:, 0], ids[:, 1], raw[:, 2], int(ids.max()) + 1)


def test_events(stream: Stream, begin: float, end: float, limit: int) -> NDArray[np.int64]:
    """Events of a slice whose source followed, and whose target was followed, before the slice began."""
    n = len(stream.source)
    a, b = int(n * begin), int(n * end)
    source_seen = np.zeros(stream.accounts, np.bool_)
    target_seen = np.zeros(stream.accounts, np.bool_)
    source_seen[stream.source[:a]] = True
    target_seen[stream.target[:a]] = True
    fit = np.arange(a, b)[source_seen[stream.source[a:b]] & target_seen[stream.target[a:b]]]
    return np.sort(np.random.default_rng(0).choice(fit, min(limit, len(fit)), replace=False))


class Lists:
    """Growing neighbour lists of all accounts, as prefixes of the finished ones."""

    def __init__(self, owner: NDArray[np.int64], other: NDArray[np.int64], at: NDArray[np.int64], n: int):
        order = np.argsort(owner, kind="stable")
        self.other, self.at = other[order], at[order].astype(np.float64)
        self.start = np.searchsorted(owner[order], np.arange(n))
        self.length = np.zeros(n, np.int64)

    def newest(
        self, accounts: NDArray[np.int64], width: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """(n, width) others and times, newest first, -1 and -inf where there are fewer."""
        back = np.arange(width)
        there = back < self.length[accounts][:, None]
        place = np.where(there, (self.start + self.length)[accounts][:, None] - 1 - back, 0)
        return np.where(there, self.other[place], -1), np.where(there, self.at[place], -np.inf)


class State:
    """What the store would hold, for first follows only."""

    def __init__(self, stream: Stream) -> None:
        n = stream.accounts
        self.names = [str(i) for i in range(n)]
        self.followers = Lists(stream.target, stream.source, stream.seconds, n)
        self.followees = Lists(stream.source, stream.target, stream.seconds, n)
        self.days = int(min(128, (stream.seconds[-1] - stream.seconds[0]) // 86400 + 3))
        self.cells = np.zeros((n, 2, MINUTES + HOURS + self.days), np.uint16)
        self.last = np.full((n, 2), -np.inf)
        self.first = np.full(n, np.inf)
        self.mutual = np.zeros(n, np.int64)
        self.follows: list[set[int]] = [set() for _ in range(n)]
        self.unreciprocated: list[dict[int, int]] = [{} for _ in range(n)]  # oldest first
        self.projections = sketches.vectors([name.encode() for name in self.names])
        self.audience = np.zeros((n, SKETCH), np.int64)
        self.following = np.zeros((n, SKETCH), np.int64)
        self.touched: list[deque[tuple[int, int, int]]] = [deque(), deque(), deque()]

    def apply(self, a: int, b: int, t: int) -> None:
        for level, (seconds, size, start) in enumerate(self._levels()):
            bucket = t // seconds
            touched = self.touched[level]
            while touched and touched[0][0] <= bucket - size:
                old, account, way = touched.popleft()
                self.cells[account, way, start + old % size] = 0
            for account, way in ((b, 0), (a, 1)):
                self.cells[account, way, start + bucket % size] += 1
                touched.append((bucket, account, way))
        self.audience[b] += self.projections[a]
        self.following[a] += self.projections[b]
        self.followers.length[b] += 1
        self.followees.length[a] += 1
        self.last[b, 0] = self.last[a, 1] = t
        self.first[a] = min(self.first[a], t)
        self.first[b] = min(self.first[b], t)
        self.follows[a].add(b)
        if a in self.follows[b]:
            self.mutual[a] += 1
            self.mutual[b] += 1
            self.unreciprocated[a].pop(b, None)
        else:
            waiting = self.unreciprocated[b]
            waiting[a] = t
            if len(waiting) > UNRECIPROCATED_KEPT:
                del waiting[next(iter(waiting))]

    def rows(self, accounts: NDArray[np.int64], now: int) -> Rows:
        n = len(accounts)
        cells = self.cells[accounts].astype(np.float32)
        counts = np.zeros((n, 2, 3, len(HALF_LIVES)), np.float32)
        flat = cells.reshape(2 * n, -1)
        counts[:, :, 0] = (flat @ self._weights(now, HALF_LIVES)).reshape(n, 2, -1)
        more = dict(blank(n))
        families = more["families"]
        assert isinstance(families, np.ndarray)
        families[:, :, FAMILY["follow"]] = (flat @ self._weights(now, AGGREGATES)).reshape(n, 2, -1)
        families[:, 0, FAMILY["follow"], -1] = self.followers.length[accounts]
        families[:, 1, FAMILY["follow"], -1] = self.followees.length[accounts]
        more["audience"], more["following"] = self.audience[accounts], self.following[accounts]
        counts[:, 0, 0, -1] = self.followers.length[accounts]
        counts[:, 1, 0, -1] = self.followees.length[accounts]
        followers, follower_at = self.followers.newest(accounts, FOLLOWERS)
        followees, followee_at = self.followees.newest(accounts, FOLLOWEES)
        waiting = [
            list(self.unreciprocated[a].items())[: -UNRECIPROCATED - 1 : -1] for a in accounts.tolist()
        ]
        waiting_at = np.full((n, UNRECIPROCATED), -np.inf)
        for i, items in enumerate(waiting):
            waiting_at[i, : len(items)] = [at for _, at in items]
        degrees = np.column_stack(
            (self.followers.length[accounts], self.followees.length[accounts], self.mutual[accounts])
        )
        names = self.names
        return Rows(
            accounts=[names[a] for a in accounts.tolist()],
            as_of=now * 1_000_000,
            counts=counts,
            last=np.maximum(now - self._coarse(self.last[accounts], now), 0.0),
            first=np.maximum(now - np.minimum(self._coarse(self.first[accounts], now), now), 0.0),
            degrees=degrees,
            followers=[
                [names[x] for x in row[:length]]
                for row, length in zip(followers.tolist(), degrees[:, 0].tolist(), strict=True)
            ],
            follower_ages=now - follower_at,
            followees=[
                [names[x] for x in row[:length]]
                for row, length in zip(followees.tolist(), degrees[:, 1].tolist(), strict=True)
            ],
            followee_ages=now - followee_at,
            unreciprocated=[[names[x] for x, _ in items] for items in waiting],
            unreciprocated_ages=now - waiting_at,
            languages=np.zeros(n, np.int32),
            **more,
        )

    def _levels(self) -> tuple[tuple[int, int, int], ...]:
        return ((60, MINUTES, 0), (3600, HOURS, MINUTES), (86400, self.days, MINUTES + HOURS))

    def _coarse(self, at: NDArray[np.float64], now: int) -> NDArray[np.float64]:
        """Times as the cells that would hold them know them."""
        size = np.where(
            at >= 3600 * (now // 3600 - 2), 60.0, np.where(at >= 86400 * (now // 86400 - 1), 3600.0, 86400.0)
        )
        return np.floor(at / size) * size + size / 2

    def _weights(self, now: int, half_lives: tuple[float, ...]) -> NDArray[np.float32]:
        """(cells, half-lives) what one event in a cell is worth; each time is read from one level only."""
        minute, hour, day = now // 60, now // 3600, now // 86400
        ranges = (
            np.arange(60 * (hour - 2), minute + 1),
            np.arange(24 * (day - 1), hour - 2),
            np.arange(day - self.days + 1, day - 1),
        )
        weights = np.zeros((MINUTES + HOURS + self.days, len(half_lives)), np.float32)
        for (seconds, size, start), buckets in zip(self._levels(), ranges, strict=True):
            ages = np.maximum(now - (buckets + 0.5) * seconds, 0.0)
            weights[start + buckets % size] = np.exp2(-ages[:, None] / np.array(half_lives))
        return weights


class Outcome(NamedTuple):
    ranks: NDArray[np.int64]
    spent: dict[str, float]
    counts: dict[str, int]
    loss: float


def replay(
    stream: Stream,
    queries: NDArray[np.int64],
    end: int,
    model: Model,
    trainer: OnlineTrainer,
    train_until: int,
    ratio: float,
    hold: Callable[[Stream], State] = State,
) -> Outcome:
    """One pass over the events before `end`, training on those before `train_until`."""
    state = hold(stream)
    vectors = np.zeros((stream.accounts, model.dim), np.float32)
    alive = np.zeros(stream.accounts, np.bool_)
    changed: dict[int, int] = {}
    due: dict[int, list[tuple[int, int]]] = {}
    ticks: list[int] = []
    asked = set(queries.tolist())
    ranks: list[int] = []
    spent = dict.fromkeys(("state", "encode", "train", "consumer", "scan"), 0.0)
    counts = dict.fromkeys(("encodes", "encode_calls", "steps", "trained", "skipped"), 0)
    losses: list[float] = []
    clock = time.perf_counter

    def encode(accounts: list[int], tick: int) -> None:
        who = np.array(accounts, np.int64)
        for start in range(0, len(who), 1024):
            part = who[start : start + 1024]
            a = clock()
            rows = state.rows(part, tick * 60)
            b = clock()
            encoded = model.encode_producers(rows)
            vectors[part] = encoded.vectors
            trainer.producers.write(encoded.features)
            spent["state"] += b - a
            spent["encode"] += clock() - b
            counts["encodes"] += len(part)
            counts["encode_calls"] += 1
        alive[who] = True
        for account in accounts:
            at = next_tick(changed[account], tick, ratio)
            if at not in due:
                due[at] = []
                heapq.heappush(ticks, at)
            due[at].append((account, changed[account]))

    def flush(batch: list[int]) -> None:
        if not batch:
            return
        now = int(stream.seconds[batch[-1]])
        if batch[0] < train_until:
            a = clock()
            rows = state.rows(stream.source[batch], now)
            b = clock()
            features = model.consumer_features(rows)
            c = clock()
            targets = [state.names[v] for v in stream.target[batch].tolist()]
            result = trainer.observe(Examples(features, targets, now * 1_000_000))
            d = clock()
            spent["state"] += b - a
            spent["consumer"] += c - b
            spent["train"] += d - c
            counts["steps"] += 1
            counts["trained"] += result.trained
            counts["skipped"] += result.skipped
            losses.append(result.loss)
        a = clock()
        for i in batch:
            state.apply(int(stream.source[i]), int(stream.target[i]), int(stream.seconds[i]))
        spent["state"] += clock() - a
        tick = now // 60
        ends = dict.fromkeys(x for i in batch for x in (int(stream.source[i]), int(stream.target[i])))
        changed.update(dict.fromkeys(ends, tick))
        encode(list(ends), tick)

    batch: list[int] = []
    sources: set[int] = set()
    for i in range(end):
        u, t = int(stream.source[i]), int(stream.seconds[i])
        tick = t // 60
        if batch and (
            len(batch) == BATCH or i in asked or u in sources or tick != stream.seconds[batch[-1]] // 60
        ):
            flush(batch)
            batch, sources = [], set()
        if ticks and ticks[0] <= tick and not batch:
            old: dict[int, None] = {}
            while ticks and ticks[0] <= tick:
                for account, since in due.pop(heapq.heappop(ticks)):
                    if changed[account] == since:
                        old[account] = None
            encode(list(old), tick)
        if i in asked:
            a = clock()
            rows = state.rows(np.array([u]), t)
            b = clock()
            q = model.encode_consumers(rows).vectors[0]
            c = clock()
            scores = vectors @ q
            scores[~alive] = -np.inf
            scores[list(state.follows[u])] = -np.inf
            scores[u] = -np.inf
            wanted = scores[int(stream.target[i])]
            # A tie counts against us.
            rank = int((scores > wanted).sum() + (scores == wanted).sum() - 1) if wanted > -np.inf else -1
            ranks.append(rank)
            spent["state"] += b - a
            spent["consumer"] += c - b
            spent["scan"] += clock() - c
        batch.append(i)
        sources.add(u)
    found = np.array(ranks, np.int64)
    return Outcome(found, spent, counts, float(np.nanmean(losses)) if losses else float("nan"))


def report(name: str, arm: str, outcome: Outcome, events: int, seconds: float) -> None:
    recall = bootstrap(recall_at(outcome.ranks, K), np.random.default_rng(0))
    ndcg = bootstrap(ndcg_at(outcome.ranks, K), np.random.default_rng(0))
    line = {
        "stream": name,
        "arm": arm,
        "recall@20": [round(x, 4) for x in recall],
        "ndcg@20": [round(x, 4) for x in ndcg],
        "recall@200": round(float(recall_at(outcome.ranks, 200).mean()), 4),
        "queries": len(outcome.ranks),
        "events": events,
        "seconds": round(seconds, 1),
        "us_per_event": {k: round(v / events * 1e6, 1) for k, v in outcome.spent.items()},
        "encodes_per_event": round(outcome.counts["encodes"] / events, 1),
        "us_per_encode": round(outcome.spent["encode"] / max(1, outcome.counts["encodes"]) * 1e6, 2),
        "us_per_example": round(outcome.spent["train"] / max(1, outcome.counts["trained"]) * 1e6, 1),
        "examples_per_step": round(outcome.counts["trained"] / max(1, outcome.counts["steps"]), 1),
        "loss": round(outcome.loss, 4),
    }
    print(json.dumps(line), flush=True)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("streams", nargs="+", choices=sorted(FILES))
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--arms", nargs="+", default=["day-zero", "online", "frozen"])
    parser.add_argument("--ratio", type=float, default=2.0, help="of geometric ageing")
    parser.add_argument("--validate", action="store_true", help="ask on the 64 to 80 %% slice, stop there")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dim", type=int, default=DIM)
    parser.add_argument("--limit", type=int, help="first pairs read of each stream; all by default")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    for name in options.streams:
        stream = read(name, options.data, options.limit)
        n = len(stream.source)
        begin, stop = (0.64, 0.8) if options.validate else (0.8, 1.0)
        queries = test_events(stream, begin, stop, 1500 if options.validate else 3000)
        end = int(n * stop)
        for arm in options.arms:
            model = Model.day_zero(seed=options.seed, dim=options.dim)
            rng = np.random.Generator(np.random.PCG64(options.seed))
            trainer = OnlineTrainer(model, TrainerConfig(), rng)
            until = {"day-zero": 0, "online": end, "frozen": int(n * begin)}[arm]
            began = time.perf_counter()
            outcome = replay(stream, queries, end, model, trainer, until, options.ratio)
            report(name, arm, outcome, end, time.perf_counter() - began)


if __name__ == "__main__":
    main(sys.argv[1:])
