"""Batches of pairs, and what towers are trained to say of them.

Two kinds: follows told apart from a pool of drawn accounts, and served pairs with what became of them. A batch
is a function of the pairs, the seed, and its place; nothing is carried from one to the next, so training can go
on anywhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kithstream.models import negatives
from kithstream.models.losses import cross_entropy, sampled_softmax, triplet, weighted_mean
from kithstream.models.negatives import Correction, Floats, Follows, Ints


class TwoTowers(Protocol):
    """Whatever turns row numbers into vectors whose inner product is the score."""

    def consumers(self, rows: Tensor) -> Tensor:
        """(n, dim) of rows (n,)."""
        ...

    def producers(self, rows: Tensor) -> Tensor:
        """(m, dim) of rows (m,)."""
        ...


class Contrast(NamedTuple):
    """Follows, and a pool of accounts that most rows do not follow."""

    consumers: Tensor  # (n,) int64
    targets: Tensor  # (n,) int64
    target_log_q: Tensor  # (n,) float32, log of the targets' expected counts in the pool
    pool: Tensor  # (m,) int64
    log_q: Tensor  # (m,) float32
    weights: Tensor  # (m,) float32, mean 1 over what is drawn
    used: Tensor  # (n, m) bool: the pool's account is a negative of the row

    def to(self, device: torch.device) -> Contrast:
        """The same on a device."""
        return Contrast(*(tensor.to(device, non_blocking=True) for tensor in self))


class Served(NamedTuple):
    """Pairs that were shown, and whether they were engaged with."""

    consumers: Tensor  # (n,) int64
    accounts: Tensor  # (n,) int64
    engaged: Tensor  # (n,) float32, 0 or 1

    def to(self, device: torch.device) -> Served:
        """The same on a device."""
        return Served(*(tensor.to(device, non_blocking=True) for tensor in self))


class SamplingConfig(msgspec.Struct, frozen=True):
    """How a batch of follows gets its negatives.

    pool: accounts drawn for a batch; 0 stands for as many as the batch has rows.
    uniform: share of the pool that is uniform over the corpus; the rest are targets of the batch.
    ratio: negatives of a row, 0 for the whole pool.
    correction: weights by the negatives' popularity; None for equal ones.
    known: whether whom a consumer follows is among its negatives where drawn, as in the paper, and only the row's
        own target is not. Left out of a pool by frequency, follows bring popularity back: the popular are left out
        most often.
    """

    pool: int = 0
    uniform: float = 0.0
    ratio: int = 0
    correction: Correction | None = None
    known: bool = False


class Contrasts:
    """Batches of follows. Cut to whole batches."""

    def __init__(
        self,
        follows: tuple[Ints, Ints],  # (n,) consumers, (n,) accounts
        known: Follows,
        followers: NDArray[np.number],  # (corpus,) popularity that the correction reads
        config: SamplingConfig,
        size: int,
        seed: int,
    ) -> None:
        self.follows = follows
        self.known = known
        self.config = config
        self.size = min(size, len(follows[0]))
        self.seed = seed
        self.corpus = len(followers)
        counts = np.bincount(follows[1], minlength=self.corpus)
        self.shares: Floats = counts / max(1, counts.sum())
        drawn = config.uniform / self.corpus + (1 - config.uniform) * self.shares
        self.weights: Floats = (
            config.correction.weights(followers, drawn) if config.correction else np.ones(self.corpus)
        )

    def epoch(self, number: int, start: int) -> Iterator[Contrast]:
        """The batches of an epoch from one on."""
        consumers, targets = self.follows
        for place, rows in _batches(len(consumers), self.size, self.seed, number, start):
            rng = np.random.default_rng((self.seed, number, place))
            yield self._batch(consumers[rows], targets[rows], rng)

    def _batch(self, consumers: Ints, targets: Ints, rng: np.random.Generator) -> Contrast:
        config, count = self.config, self.config.pool or len(targets)
        pool = negatives.mixed(targets, self.corpus, count, config.uniform, self.shares, rng)
        used = pool.accounts != targets[:, None]
        if not config.known:
            used &= ~self.known.among(consumers, pool.accounts)
        if config.ratio:
            used &= negatives.window(len(targets), count, config.ratio)
        blind = round(count * config.uniform)
        expected = (count - blind) * self.shares[targets] + blind / self.corpus
        return Contrast(
            torch.from_numpy(consumers),
            torch.from_numpy(targets),
            torch.from_numpy(np.log(expected).astype(np.float32)),
            torch.from_numpy(pool.accounts),
            torch.from_numpy(np.log(pool.expected).astype(np.float32)),
            torch.from_numpy(self.weights[pool.accounts].astype(np.float32)),
            torch.from_numpy(used),
        )


class Servings:
    """Batches of served pairs. Cut to whole batches."""

    def __init__(self, consumers: Ints, accounts: Ints, engaged: NDArray[np.bool_], size: int, seed: int):
        self.consumers = consumers
        self.accounts = accounts
        self.engaged = engaged
        self.size = min(size, len(consumers))
        self.seed = seed

    def epoch(self, number: int, start: int) -> Iterator[Served]:
        """The batches of an epoch from one on."""
        for _, rows in _batches(len(self.consumers), self.size, self.seed, number, start):
            yield Served(
                torch.from_numpy(self.consumers[rows]),
                torch.from_numpy(self.accounts[rows]),
                torch.from_numpy(self.engaged[rows].astype(np.float32)),
            )


class Triplets(msgspec.Struct, frozen=True):
    """Triplet loss on cosine distance, of vectors of unit length, or on the negative inner product of others.

    margin: alpha of the paper's equation 1.
    keep: of each row's negatives only so many, those that score highest; 0 for all.
    skip: after leaving out so many of the very highest.
    """

    margin: float = 0.2
    keep: int = 0
    skip: int = 0

    def __call__(self, towers: TwoTowers, batch: Contrast) -> Tensor:
        positive, scores = _scores(towers, batch)
        used = batch.used
        if self.keep:
            used = negatives.hard(scores.detach(), used, self.keep, self.skip)
        losses = triplet(1.0 - positive.unsqueeze(1), 1.0 - scores, self.margin)
        return weighted_mean(losses, batch.weights, used)


class CrossEntropy(msgspec.Struct, frozen=True):
    """Cross entropy over each follow and its negatives, every pair counting once."""

    temperature: float = 0.1

    def __call__(self, towers: TwoTowers, batch: Contrast) -> Tensor:
        positive, scores = _scores(towers, batch)
        follows = cross_entropy(positive, torch.ones_like(positive), self.temperature)
        others = cross_entropy(scores, torch.zeros_like(scores), self.temperature)
        others = (others * batch.weights).masked_fill(~batch.used, 0.0)
        return (follows.sum() + others.sum()) / (len(follows) + batch.used.sum())


class Softmax(msgspec.Struct, frozen=True):
    """Softmax over each follow and its negatives.

    corrected: whether scores are corrected for how often each account is drawn (log Q).
    """

    temperature: float = 0.1
    corrected: bool = True

    def __call__(self, towers: TwoTowers, batch: Contrast) -> Tensor:
        positive, scores = _scores(towers, batch)
        scores = (scores / self.temperature).masked_fill(~batch.used, -torch.inf)
        target_log_q, log_q = batch.target_log_q, batch.log_q
        if not self.corrected:
            target_log_q, log_q = torch.zeros_like(target_log_q), torch.zeros_like(log_q)
        return sampled_softmax(positive / self.temperature, target_log_q, scores, log_q).mean()


class Engagement(msgspec.Struct, frozen=True):
    """Cross entropy on served pairs: what was shown and not engaged with is an implicit negative."""

    temperature: float = 0.1

    def __call__(self, towers: TwoTowers, batch: Served) -> Tensor:
        similarity = (towers.consumers(batch.consumers) * towers.producers(batch.accounts)).sum(dim=1)
        return cross_entropy(similarity, batch.engaged, self.temperature).mean()


def _scores(towers: TwoTowers, batch: Contrast) -> tuple[Tensor, Tensor]:
    """(n,) of each row with its target, (n, m) with the pool."""
    vectors = towers.consumers(batch.consumers)
    both = towers.producers(torch.cat((batch.targets, batch.pool)))
    targets, pool = both[: len(batch.targets)], both[len(batch.targets) :]
    return (vectors * targets).sum(dim=1), vectors @ pool.T


def _batches(n: int, size: int, seed: int, epoch: int, start: int) -> Iterator[tuple[int, Ints]]:
    """Place and rows of each batch of an epoch, from one on."""
    order = np.random.default_rng((seed, epoch)).permutation(n)
    for place in range(start, n // size if size else 0):
        yield place, order[place * size : (place + 1) * size]
