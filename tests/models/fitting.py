"""A small training that can be killed: `python fitting.py FILE N` dies when it is told of the Nth step."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

from kithstream.models.contrast import Contrasts, SamplingConfig, Triplets
from kithstream.models.fit import FitConfig, Fitted, Progress, fit
from kithstream.models.negatives import Follows

CONSUMERS, ACCOUNTS, TASTES = 60, 24, 4
CONFIG = FitConfig(rate=0.01, epochs=6, patience=2, seed=1, save_steps=3)


class Towers(nn.Module):
    """A vector for each row, with dropout: a training draws random numbers."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        rng = torch.Generator().manual_seed(seed)
        self.c = nn.Parameter(torch.randn((CONSUMERS, 8), generator=rng) * 0.1)
        self.p = nn.Parameter(torch.randn((ACCOUNTS, 8), generator=rng) * 0.1)
        self.dropout = nn.Dropout(0.1)

    def consumers(self, rows: torch.Tensor) -> torch.Tensor:
        return nn.functional.normalize(self.dropout(self.c[rows]), dim=1)

    def producers(self, rows: torch.Tensor) -> torch.Tensor:
        return nn.functional.normalize(self.dropout(self.p[rows]), dim=1)


def follows(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Accounts and consumers have one of four tastes; of four follows three are of one's own taste."""
    rng = np.random.default_rng(seed)
    consumers = np.repeat(np.arange(CONSUMERS), 6)
    own = rng.integers(0, ACCOUNTS // TASTES, len(consumers)) * TASTES + consumers % TASTES
    return consumers, np.where(rng.random(len(consumers)) < 0.75, own, rng.integers(0, ACCOUNTS, len(own)))


def batches() -> Contrasts:
    consumers, accounts = follows()
    known = Follows.of(consumers, accounts, CONSUMERS)
    followers = np.bincount(accounts, minlength=ACCOUNTS)
    return Contrasts((consumers, accounts), known, followers, SamplingConfig(uniform=0.5), 32, seed=2)


def in_taste(towers: Towers) -> float:
    """The share of consumers whose first account has their taste."""
    consumers, accounts = (torch.arange(n, device=towers.c.device) for n in (CONSUMERS, ACCOUNTS))
    scores = towers.consumers(consumers) @ towers.producers(accounts).T
    return float((scores.argmax(dim=1) % TASTES == consumers % TASTES).float().mean())


def train(path: Path | None, die_at: int = -1, device: str = "cpu") -> tuple[Towers, Fitted]:
    """The training, whole or as far as it comes."""
    towers = Towers()
    told: list[Progress] = []

    def on_progress(progress: Progress) -> None:
        told.append(progress)
        if len(told) == die_at:
            os.kill(os.getpid(), signal.SIGKILL)

    fitted = fit(
        towers,
        Triplets(),
        batches(),
        CONFIG,
        validate=in_taste,
        device=device,
        on_progress=on_progress,
        path=path,
        task="tastes",
    )
    return towers, fitted


if __name__ == "__main__":
    torch.set_num_threads(1)
    train(Path(sys.argv[1]), int(sys.argv[2]))
