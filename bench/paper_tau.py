"""Experiment E1, the paper's Figure 3: a classifier trained on what an earlier one scored above tau.

All pairs of the log are positives, as many uniform pairs are negatives, and users are split 80 to 20. Users of the
test part are unknown to training, so their vectors cannot be learned: in the simulated world they are features; of
MovieLens a half of everybody's ratings makes the user's vector, by singular vectors of the training users' halves,
and the other half is classified.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bench.paper_world import Ints, Mask, World
from kithstream.models.evaluate import roc_auc
from kithstream.models.fit import FitConfig, fit
from kithstream.models.losses import cross_entropy

TAUS: Final = (0.0, 0.2, 0.4, 0.6, 0.8)
DIM: Final = 16  # of MovieLens's vectors
Features = NDArray[np.float32]


class Classified(msgspec.Struct, frozen=True):
    """What a classifier is worth on a set of pairs; the set has both classes."""

    auc: float
    ap: float
    accuracy: float
    positives: float  # share of the set


class Tau(msgspec.Struct, frozen=True):
    """One threshold on one seed. tau = -1 stands for the unbiased classifier."""

    data: str
    seed: int
    tau: float
    biased: Classified
    full: Classified


class Labelled(NamedTuple):
    """A batch of pairs."""

    features: Tensor  # (n, features) float32
    labels: Tensor  # (n,) float32

    def to(self, device: torch.device) -> Labelled:
        """The same on a device."""
        return Labelled(*(tensor.to(device) for tensor in self))


class Rows(NamedTuple):
    """Pairs in memory, as batches."""

    features: Features
    labels: Mask
    seed: int
    size: int = 512

    def part(self, mask: Mask) -> Rows:
        """Some of the rows."""
        return self._replace(features=self.features[mask], labels=self.labels[mask])

    def epoch(self, number: int, start: int) -> Iterator[Labelled]:
        """The batches of an epoch from one on; the last one may be small."""
        order = np.random.default_rng((self.seed, number)).permutation(len(self.labels))
        for first in range(start * self.size, len(order), self.size):
            rows = order[first : first + self.size]
            yield Labelled(
                torch.from_numpy(self.features[rows]),
                torch.from_numpy(self.labels[rows].astype(np.float32)),
            )


class Classifier(nn.Module):
    """One hidden layer."""

    def __init__(self, width: int, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            self.layers = nn.Sequential(nn.Linear(width, 32), nn.ReLU(), nn.Linear(32, 1))

    def forward(self, features: Tensor) -> Tensor:
        """(n,) log odds."""
        logits: Tensor = self.layers(features).squeeze(1)
        return logits


def classifier(rows: Rows) -> Classifier:
    """Trained on rows."""
    made = Classifier(rows.features.shape[1], rows.seed)
    config = FitConfig(rate=0.003, epochs=6, patience=0, seed=rows.seed)
    fit(made, lambda model, batch: cross_entropy(model(batch.features), batch.labels).mean(), rows, config)
    return made


def chances(made: Classifier, rows: Rows) -> NDArray[np.float64]:
    """(n,) probabilities."""
    with torch.inference_mode():
        return torch.sigmoid(made(torch.from_numpy(rows.features))).double().numpy()


def classified(found: NDArray[np.float64], labels: Mask) -> Classified:
    """Measures probabilities."""
    if labels.all() or not labels.any():
        raise ValueError(f"all of {len(labels)} labels are {labels[:1]}, both classes are due")
    order = np.argsort(-found, kind="stable")
    hits = labels[order]
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    return Classified(
        roc_auc(found, labels),
        float(precision[hits].mean()),
        float(((found > 0.5) == labels).mean()),
        float(labels.mean()),
    )


def biased(data: str, train: Rows, test: Rows) -> Iterator[Tau]:
    """The unbiased classifier, then one for each threshold on its scores."""
    first = classifier(train)
    of_train, of_test = chances(first, train), chances(first, test)
    whole = classified(of_test, test.labels)
    yield Tau(data, train.seed, -1.0, whole, whole)
    for tau in TAUS:
        made = classifier(train.part(of_train > tau))
        found, inside = chances(made, test), of_test > tau
        yield Tau(
            data,
            train.seed,
            tau,
            classified(found[inside], test.labels[inside]),
            classified(found, test.labels),
        )


def in_world(world: World, seed: int) -> Iterator[Tau]:
    """On all follows of a simulated world."""
    users = np.concatenate((world.follows.users, world.next_follows.users))
    accounts = np.concatenate((world.follows.accounts, world.next_follows.accounts))
    return _split("simulated", users, accounts, world.user_features, world.account_features, seed)


def in_movies(folder: Path, seed: int) -> Iterator[Tau]:
    """On MovieLens 100k, as `ml-100k.inter` with users and movies in the first two columns."""
    table = np.loadtxt(folder / "ml-100k.inter", dtype=np.int64, skiprows=1, usecols=(0, 1))
    users, movies = (np.unique(column, return_inverse=True)[1] for column in table.T)
    rng = np.random.default_rng(seed)
    shown = rng.random(len(users)) < 0.5
    seen = np.zeros((users.max() + 1, movies.max() + 1))
    seen[users[shown], movies[shown]] = 1.0
    training = _training(len(seen), seed)
    scaled = seen / np.sqrt(np.maximum(seen[training].sum(axis=0), 1.0))
    _, _, axes = np.linalg.svd(scaled[training], full_matrices=False)
    of_movies = axes[:DIM].T  # (movies, DIM)
    of_users = scaled @ of_movies
    counts = np.log1p(seen[training].sum(axis=0))
    standard = [_standard(of_users), np.column_stack((_standard(of_movies), _standard(counts[:, None])))]
    user_rows, movie_rows = (rows.astype(np.float32) for rows in standard)
    return _split("MovieLens 100k", users[~shown], movies[~shown], user_rows, movie_rows, seed)


def _standard(columns: NDArray[np.float64]) -> NDArray[np.float64]:
    scaled: NDArray[np.float64] = (columns - columns.mean(axis=0)) / columns.std(axis=0)
    return scaled


def _training(users: int, seed: int) -> Mask:
    """(users,) which are in the training part."""
    return np.random.default_rng((seed, 1)).random(users) < 0.8


def _split(
    data: str, users: Ints, accounts: Ints, of_users: Features, of_accounts: Features, seed: int
) -> Iterator[Tau]:
    rng = np.random.default_rng((seed, 2))
    n = len(users)
    users = np.concatenate((users, rng.integers(0, len(of_users), n)))
    accounts = np.concatenate((accounts, rng.integers(0, len(of_accounts), n)))
    shared = of_users.shape[1]
    features = np.column_stack(
        (of_users[users], of_accounts[accounts], of_users[users] * of_accounts[accounts, :shared])
    )
    rows = Rows(features, np.arange(2 * n) < n, seed)
    training = _training(len(of_users), seed)[users]
    return biased(data, rows.part(training), rows.part(~training))
