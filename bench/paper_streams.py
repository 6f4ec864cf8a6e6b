"""Experiments E4 to E6 on public streams: first follows, the last fifth held out. No impressions, no truth."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np

from bench.paper_measure import Row, Towers, known_of, neighbours, scores
from bench.paper_sampling import Budget, Objective, corrections, poolings
from bench.paper_world import Log
from bench.yardsticks import STREAMS
from kithstream.models.contrast import Contrasts, SamplingConfig, Triplets
from kithstream.models.fit import FitConfig, fit
from kithstream.streams.prequential import SHARE, first_pairs

CORE: Final = 5  # follows that a user, and an account, has in the training part
POOLINGS: Final = ("uniform", "in batch", "in batch, follows left out")
MOST: Final = 100_000  # pairs of a stream, the first ones


def core(stream: str, folder: Path) -> tuple[Log, Log, int, int]:
    """Training and held-out follows among users and accounts with enough of them, and how many those are."""
    file, read, _ = STREAMS[stream]
    pairs = first_pairs(read(folder / file)).head(MOST)
    cut = round(len(pairs.source) * SHARE)
    size = len(pairs.accounts)
    often = [np.bincount(side[:cut], minlength=size) >= CORE for side in (pairs.source, pairs.target)]
    numbers = [np.cumsum(kept) - 1 for kept in often]
    inside = often[0][pairs.source] & often[1][pairs.target]
    users, accounts = numbers[0][pairs.source], numbers[1][pairs.target]
    early = np.arange(len(users)) < cut
    logs = [
        Log(users[rows], accounts[rows], np.ones(int(rows.sum()), np.bool_))
        for rows in (inside & early, inside & ~early)
    ]
    return logs[0], logs[1], int(often[0].sum()), int(often[1].sum())


def in_stream(stream: str, folder: Path, seed: int, budget: Budget) -> Iterator[Row]:
    """All arms of E4 to E6. Towers read ids, and of accounts the number of followers."""
    train, held_out, users, accounts = core(stream, folder)
    followers = np.bincount(train.accounts, minlength=accounts)
    popularity = np.log1p(followers)[:, None]
    features = ((popularity - popularity.mean()) / popularity.std()).astype(np.float32)
    known = known_of(train, users)

    def row(arm: str, objective: Objective, sampling: SamplingConfig) -> Row:
        towers = Towers(np.zeros((users, 1), np.float32), features, seed)
        batches = Contrasts(
            (train.users, train.accounts), known, followers, sampling, budget.follow_size, seed
        )
        config = FitConfig(budget.follow_rate, budget.follow_epochs, patience=0, seed=seed)
        fit(towers, objective, batches, config)
        nearest = neighbours(scores(towers), followers, train, held_out, seed)
        return Row(f"{stream} {arm}", seed, nearest, None)

    for name, (objective, sampling) in poolings(budget.follow_size).items():
        if name in POOLINGS:
            yield row(f"E4 {name}", objective, sampling)
    for name, correction in corrections(followers).items():
        yield row(f"E6 {name}", Triplets(), SamplingConfig(correction=correction, known=True))
