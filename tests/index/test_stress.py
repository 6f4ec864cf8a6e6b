"""Readers beside a writer, a merger and rebuilds: bounded by operations, judged by what all wrote down."""

from __future__ import annotations

import sys
import threading
from itertools import count

import numpy as np
import pytest

from kithstream.index import exact, table
from kithstream.index.codes import quicker
from kithstream.index.config import IndexConfig
from kithstream.index.exact import ExactIndex
from kithstream.index.live import LiveIndex
from kithstream.index.score import score

DIM, NAMES, WRITES, READERS, ANSWERS = 48, [f"{number:04d}" for number in range(1200)], 350, 2, 40


@pytest.fixture
def quick_switches():
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # threads take turns within an operation
    yield
    sys.setswitchinterval(interval)


def live():
    return LiveIndex(
        IndexConfig(
            dim=DIM, capacity=16, exact_rows=0, rows_per_fetch=0, hot_capacity=256, rebuild_process=False
        )
    )


def of_codes():
    return LiveIndex(IndexConfig(dim=DIM, capacity=16, coded_from=1))


@pytest.mark.usefixtures("quick_switches")
@pytest.mark.parametrize("make", [live, of_codes, lambda: ExactIndex(DIM)], ids=["live", "of codes", "exact"])
def test_every_score_was_true_during_the_call(make, monkeypatch):
    quicker(DIM)  # the first product imports torch
    monkeypatch.setattr(table, "quicker", lambda dim: True)
    monkeypatch.setattr(exact, "WORTH", 1)
    index, clock, errors = make(), count(), []
    versions = {name: [] for name in NAMES}  # (begun, done, vector or None)
    answers = []  # (begun, done, query, excluded, hits)
    stop = threading.Event()

    def store(names, vectors):
        begun = next(clock)
        if vectors is None:
            index.delete(names)
        else:
            index.upsert(names, vectors)
        done = next(clock)
        for at, name in enumerate(names):
            versions[name].append((begun, done, None if vectors is None else vectors[at]))

    def write():
        rng = np.random.default_rng(1)
        for number in count():
            if number >= WRITES and (len(answers) > ANSWERS or stop.is_set()):
                return
            names = [NAMES[at] for at in rng.choice(len(NAMES), int(rng.integers(1, 12)), replace=False)]
            if number % 5 == 4:
                store(names, None)
            else:
                store(names, rng.normal(size=(len(names), DIM)).astype(np.float32))

    def churn():
        while not stop.is_set():
            index.merge(64)
            if index.stats().merges % 16 == 0:
                index.rebuild()

    def read(seed):
        rng = np.random.default_rng(seed)
        while not stop.is_set():
            query = rng.normal(size=DIM).astype(np.float32)
            excluded = frozenset(rng.choice(NAMES, int(rng.choice([20, 700]))).tolist())  # looked up, or not
            begun = next(clock)
            hits = index.query(query, 50, exclude=excluded)
            answers.append((begun, next(clock), query, excluded, hits))

    def guarded(work, *arguments):
        try:
            work(*arguments)
        except BaseException as error:
            errors.append(error)
            stop.set()

    store(NAMES, np.random.default_rng(0).normal(size=(len(NAMES), DIM)).astype(np.float32))
    if isinstance(index, LiveIndex):
        index.merge()
    threads = [threading.Thread(target=guarded, args=(read, 100 + seed)) for seed in range(READERS)]
    if isinstance(index, LiveIndex) and not index.config.exact_rows:  # else there is nothing to merge
        threads.append(threading.Thread(target=guarded, args=(churn,)))
    for thread in threads:
        thread.start()
    guarded(write)
    stop.set()
    for thread in threads:
        thread.join(60)
    assert not errors, errors
    assert len(answers) > ANSWERS
    for answer in answers:
        judge(answer, versions)
    last = {name: told[-1][2] for name, told in versions.items() if told[-1][2] is not None}
    query = np.random.default_rng(2).normal(size=DIM).astype(np.float32)
    scores = score(np.array(list(last.values())), query.astype(np.float64))
    assert index.query(query, 50).scores.tolist() == np.sort(scores)[::-1][:50].tolist()
    if isinstance(index, LiveIndex) and not index.config.exact_rows:
        assert index.stats().merges > 3
        assert index.check(0, np.random.default_rng(0)).sound


def judge(answer, versions):
    begun, done, query, excluded, hits = answer
    assert len(hits.ids) == len(set(hits.ids)) == 50
    assert not excluded & set(hits.ids)
    assert (np.diff(hits.scores) <= 0).all()
    for name, given in zip(hits.ids, hits.scores, strict=True):
        history = versions[name]
        ends = [later[1] for later in history[1:]] + [np.inf]  # a version may be read until the next is done
        held = [
            vector
            for (start, _, vector), end in zip(history, ends, strict=True)
            if vector is not None and start < done and end > begun
        ]
        true = score(np.array(held, np.float32).reshape(-1, DIM), query.astype(np.float64))
        assert given in true, f"{name} never had the score {given} between {begun} and {done}"
