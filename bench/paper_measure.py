"""The towers of the reproduction, and what is measured of scores.

What is measured on served pairs stands in one row with what is measured on nearest neighbours: a `Row` cannot be
made without the latter, and its cells are told together. This is the paper's main lesson (6.1.1).
"""

from __future__ import annotations

from typing import Final

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bench.paper_world import Log, World
from kithstream.models.evaluate import roc_auc, roc_auc_per_user
from kithstream.models.exposure import coverage, exposure, gini, mismatch, prpc, spearman
from kithstream.models.negatives import Follows

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

TOP: Final = 5  # accounts of a list, as in the paper's popularity correlation
DEEP: Final = 20  # accounts of a list for recall


class Towers(nn.Module):
    """An id vector and features through one hidden layer, on either side; vectors of unit length."""

    consumer_features: Tensor
    producer_features: Tensor

    def __init__(
        self, users: NDArray[np.float32], accounts: NDArray[np.float32], seed: int, dim: int = 32
    ) -> None:
        super().__init__()
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            self.consumer_ids, self.producer_ids = (nn.Embedding(len(rows), 16) for rows in (users, accounts))
            for table in (self.consumer_ids, self.producer_ids):
                nn.init.normal_(table.weight, std=0.1)
            self.consumer, self.producer = (
                nn.Sequential(nn.Linear(16 + rows.shape[1], 48), nn.GELU(), nn.Linear(48, dim))
                for rows in (users, accounts)
            )
        self.register_buffer("consumer_features", torch.from_numpy(users), persistent=False)
        self.register_buffer("producer_features", torch.from_numpy(accounts), persistent=False)

    def consumers(self, rows: Tensor) -> Tensor:
        """(n, dim) of users."""
        read = torch.cat((self.consumer_ids(rows), self.consumer_features[rows]), dim=1)
        return nn.functional.normalize(self.consumer(read), dim=1)

    def producers(self, rows: Tensor) -> Tensor:
        """(m, dim) of accounts."""
        read = torch.cat((self.producer_ids(rows), self.producer_features[rows]), dim=1)
        return nn.functional.normalize(self.producer(read), dim=1)


def scores(towers: Towers, users: Ints | None = None) -> Floats:
    """(users, accounts) of all users, or of some."""
    towers.eval()
    device = towers.consumer_features.device
    some = torch.arange(len(towers.consumer_features)) if users is None else torch.from_numpy(users)
    with torch.inference_mode():
        accounts = torch.arange(len(towers.producer_features), device=device)
        both = towers.consumers(some.to(device)) @ towers.producers(accounts).T
        return both.double().cpu().numpy()


class Served(msgspec.Struct, frozen=True):
    """Measured on held-out impressions: what was not engaged with is negative."""

    auc: float
    per_user_auc: float
    users: float  # share of users that have a per-user value


class Nearest(msgspec.Struct, frozen=True, kw_only=True):
    """Measured on the accounts that score highest for each user, among all. None where nobody knows."""

    mismatch: float | None = None  # of the first account's language
    prpc: float  # of followers and the share of users that have the account among five
    prpc_log: float
    spearman: float
    coverage: float
    gini: float
    truth: float | None = None  # mean p[i, j] of five
    truth_deep: float | None = None  # of twenty, what was engaged with in training left out
    recall: float  # of held-out follows in twenty, known follows left out
    recall_served: float | None = (
        None  # of held-out engaged impressions in twenty, those of training left out
    )
    follow_auc: float  # of held-out follows against accounts drawn blindly


class Row(msgspec.Struct, frozen=True):
    """One arm on one seed."""

    arm: str
    seed: int
    nearest: Nearest
    served: Served | None  # None where there is no log of impressions


def measure(world: World, arm: str, seed: int, found: Floats) -> Row:
    """Measures scores (users, accounts)."""
    test = world.test_served
    per_user = roc_auc_per_user(test.users, found[test.users, test.accounts], test.engaged)
    served = Served(roc_auc(found[test.users, test.accounts], test.engaged), per_user.mean, per_user.coverage)
    first = first_of(found, TOP)
    engaged = world.served.part(world.served.engaged)
    done = found.copy()
    done[engaged.users, engaged.accounts] = -np.inf
    fresh = first_of(done, DEEP)
    users = np.arange(len(found))[:, None]
    hits = world.test_served.part(world.test_served.engaged)
    nearest = msgspec.structs.replace(
        neighbours(found, world.followers, world.follows, world.next_follows, seed),
        mismatch=mismatch(world.account_language[first[:, 0]], world.user_language),
        truth=float(world.chance[users, first].mean()),
        truth_deep=float(world.chance[users, fresh].mean()),
        recall_served=recall(fresh, hits),
    )
    return Row(arm, seed, nearest, served)


def neighbours(found: Floats, followers: Ints, known: Log, held_out: Log, seed: int) -> Nearest:
    """What scores, followers and follows alone tell. Rows of `found` are the users that the logs number."""
    first = first_of(found, TOP)
    shares = exposure(first, len(followers))
    hidden = found.copy()
    hidden[known.users, known.accounts] = -np.inf
    blind = np.random.default_rng(seed).integers(0, found.shape[1], len(held_out.users))
    own = found[held_out.users, held_out.accounts]
    pairs = np.concatenate((own, found[held_out.users, blind]))
    return Nearest(
        prpc=prpc(followers, shares),
        prpc_log=prpc(np.log1p(followers), shares),
        spearman=spearman(followers, shares),
        coverage=coverage(first, len(followers)),
        gini=gini(shares),
        recall=recall(first_of(hidden, DEEP), held_out),
        follow_auc=roc_auc(pairs, np.arange(len(pairs)) < len(own)),
    )


def recall(lists: Ints, wanted: Log) -> float:
    """The share of wanted pairs that lists hold."""
    return float((lists[wanted.users] == wanted.accounts[:, None]).any(axis=1).mean())


def first_of(found: Floats, k: int) -> Ints:
    """(users, k) accounts with the highest scores, the highest first."""
    part = np.argpartition(-found, k, axis=1)[:, :k]
    order = np.argsort(-np.take_along_axis(found, part, axis=1), axis=1, kind="stable")
    return np.take_along_axis(part, order, axis=1)


def known_of(log: Log, users: int) -> Follows:
    """Pairs of a log as what users already have."""
    return Follows.of(log.users, log.accounts, users)
