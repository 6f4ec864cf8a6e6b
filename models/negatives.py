"""Pools of negatives for training off line: whom the accounts of a batch are told apart from.

A pool is shared by the rows of a batch. Uniform pools hold mostly unpopular accounts, so a model learns to
show popular ones to everybody; pools by frequency (the batch's own targets) take popularity out. Weights on
popular negatives stand between the two. The IRS 2020 who-to-follow paper, section 5.3.
"""

from __future__ import annotations

from typing import NamedTuple, Self

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]


class Pool(NamedTuple):
    """Drawn accounts, with the expected count of each in such a pool."""

    accounts: Ints  # (m,)
    expected: Floats  # (m,)


def uniform(corpus: int, count: int, rng: np.random.Generator) -> Pool:
    """`count` of the accounts 0 to corpus - 1, each as likely, with replacement."""
    return Pool(rng.integers(0, corpus, count), np.full(count, count / corpus))


def frequent(targets: Ints, count: int, shares: Floats, rng: np.random.Generator) -> Pool:
    """`count` of the batch's targets, without replacement; all of them, in their order, if they are as many.

    `shares` is (corpus,), the share that each account has among all targets.
    """
    if count > len(targets):
        raise ValueError(f"count is {count}, the batch has {len(targets)} targets")
    whole = count == len(targets)
    accounts = targets if whole else targets[rng.permutation(len(targets))[:count]]
    return Pool(accounts, count * shares[accounts])


def mixed(
    targets: Ints, corpus: int, count: int, share: float, shares: Floats, rng: np.random.Generator
) -> Pool:
    """`share` of the pool uniform, the rest by frequency, these first."""
    if not 0.0 <= share <= 1.0:
        raise ValueError(f"share is {share}, 0 to 1 is due")
    blind = round(count * share)
    seen = frequent(targets, count - blind, shares, rng)
    accounts = np.concatenate((seen.accounts, uniform(corpus, blind, rng).accounts))
    return Pool(accounts, (count - blind) * shares[accounts] + blind / corpus)


def window(rows: int, columns: int, ratio: int) -> Mask:
    """(rows, columns) with `ratio` of the columns for each row: those after its own number, in a circle.

    So rows have few negatives each and not all the same ones.

    >>> window(3, 4, 2).astype(int).tolist()
    [[0, 1, 1, 0], [0, 0, 1, 1], [1, 0, 0, 1]]
    """
    if not 0 < ratio <= columns:
        raise ValueError(f"ratio is {ratio}, 1 to {columns} is due")
    ahead = (np.arange(columns) - np.arange(rows)[:, None] - 1) % columns
    return ahead < ratio


def hard(scores: Tensor, used: Tensor, keep: int, skip: int = 0) -> Tensor:
    """(n, m) bool: of the used entries of each row, `keep` with the highest scores after the `skip` highest.

    The very highest are often accounts that would have been followed, had they been seen. Fewer where a row
    has fewer.
    """
    width = scores.shape[1]
    ranked = scores.masked_fill(~used, -torch.inf).argsort(dim=1, descending=True, stable=True)
    chosen = torch.zeros_like(used)
    chosen.scatter_(1, ranked[:, min(skip, width) : min(skip + keep, width)], True)
    return chosen & used


class Follows:
    """Whom each consumer follows, for leaving them out of its negatives."""

    def __init__(self, starts: Ints, accounts: Ints) -> None:
        self.starts = starts  # (consumers + 1,)
        self.accounts = accounts  # (follows,) by consumer

    @classmethod
    def of(cls, consumers: Ints, accounts: Ints, count: int) -> Self:
        """Of pairs in any order, for `count` consumers."""
        order = np.argsort(consumers, kind="stable")
        starts = np.zeros(count + 1, np.int64)
        np.cumsum(np.bincount(consumers, minlength=count), out=starts[1:])
        return cls(starts, accounts[order])

    def among(self, consumers: Ints, accounts: Ints) -> Mask:
        """(n, m) whether the consumer of a row follows the account of a column."""
        columns, inverse = np.unique(accounts, return_inverse=True)
        found = np.zeros((len(consumers), len(columns)), np.bool_)
        lengths = self.starts[consumers + 1] - self.starts[consumers]
        rows = np.repeat(np.arange(len(consumers)), lengths)
        within = np.arange(len(rows)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        followed = self.accounts[self.starts[consumers][rows] + within]
        places = np.searchsorted(columns, followed)
        there = places < len(columns)
        there[there] = columns[places[there]] == followed[there]
        found[rows[there], places[there]] = True
        return found[:, inverse]


class Correction(msgspec.Struct, frozen=True):
    """The popularity t of the weights 0.5 + 0.5 exp(-followers / t).

    t: in followers.
    quantile: t is this quantile of the corpus's follower counts instead. The same t is a strong correction in
        one corpus and none in another: at both ends all weights are equal.
    """

    t: float | None = None
    quantile: float | None = None

    def __post_init__(self) -> None:
        if (self.t is None) == (self.quantile is None):
            raise ValueError(f"t is {self.t} and quantile {self.quantile}, one of them is due")
        if self.t is not None and not self.t > 0:
            raise ValueError(f"t is {self.t}, more than 0 is due")
        if self.quantile is not None and not 0.0 <= self.quantile <= 1.0:
            raise ValueError(f"quantile is {self.quantile}, 0 to 1 is due")

    def weights(self, followers: NDArray[np.number], shares: Floats) -> Floats:
        """(corpus,) weights of negatives with mean 1 over what is drawn with `shares` (corpus,)."""
        t = self.t if self.t is not None else float(np.quantile(followers, self.quantile or 0.0))
        return normalised(popularity_weights(followers, max(t, np.finfo(float).tiny)), shares)


def popularity_weights(followers: NDArray[np.number], t: float) -> Floats:
    """(corpus,) 0.5 + 0.5 exp(-followers / t): section 5.3 of the paper.

    >>> popularity_weights(np.array([0, 2500, 10000]), 2500).round(3).tolist()
    [1.0, 0.684, 0.509]
    """
    if not t > 0:
        raise ValueError(f"t is {t}, more than 0 is due")
    with np.errstate(over="ignore"):  # of followers / t: exp(-inf) is 0, as it should be
        return 0.5 + 0.5 * np.exp(-np.asarray(followers, np.float64) / t)


def normalised(weights: Floats, shares: Floats) -> Floats:
    """Weights with mean 1 over what is drawn with `shares`: else t would also scale the learning rate."""
    scale: np.float64 = shares.sum() / (shares @ weights)
    return weights * scale
