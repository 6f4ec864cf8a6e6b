"""Measures of quality, as pure functions of ranks, scores and labels."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Interval(NamedTuple):
    """A mean with the bounds of its bootstrap interval."""

    mean: float
    low: float
    high: float


def recall_at(ranks: NDArray[np.int64], k: int) -> NDArray[np.float64]:
    """1 where the one relevant account is among the first k. Ranks start at 0; -1 is not found."""
    return ((ranks >= 0) & (ranks < k)).astype(np.float64)


def ndcg_at(ranks: NDArray[np.int64], k: int) -> NDArray[np.float64]:
    """Normalised discounted gain of one relevant account: 1 / log2(rank + 2) among the first k, else 0."""
    found = (ranks >= 0) & (ranks < k)
    return np.where(found, 1.0 / np.log2(np.where(found, ranks, 0) + 2.0), 0.0)


def reciprocal_rank(ranks: NDArray[np.int64]) -> NDArray[np.float64]:
    """1 / (rank + 1), 0 where not found."""
    return np.where(ranks >= 0, 1.0 / (np.where(ranks >= 0, ranks, 0) + 1.0), 0.0)


def bootstrap(
    values: NDArray[np.float64], rng: np.random.Generator, draws: int = 1000, level: float = 0.95
) -> Interval:
    """The mean of values and its percentile interval over resampled sets."""
    if len(values) == 0:
        raise ValueError("values is empty, it has no mean")
    means = np.array([values[rng.integers(0, len(values), len(values))].mean() for _ in range(draws)])
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(values.mean()), float(low), float(high))


def bootstrap_columns(
    values: NDArray[np.float64], rng: np.random.Generator, draws: int = 1000, level: float = 0.95
) -> list[Interval]:
    """The mean of every column of values (n, m) and its interval; all columns are resampled together."""
    if len(values) == 0:
        raise ValueError("values is empty, it has no mean")
    n = len(values)
    weights = rng.multinomial(n, np.full(n, 1 / n), draws)  # (draws, n) how often each row is drawn
    bounds = np.quantile(weights @ values / n, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return [Interval(*three) for three in zip(values.mean(0).tolist(), *bounds.tolist(), strict=True)]


def roc_auc(scores: NDArray[np.float64], labels: NDArray[np.bool_]) -> float:
    """The share of (positive, negative) pairs in the right order; a tie counts half. NaN without pairs.

    >>> roc_auc(np.array([0.9, 0.5, 0.5]), np.array([True, True, False]))
    0.75
    """
    positives = int(labels.sum())
    negatives = len(labels) - positives
    if positives == 0 or negatives == 0:
        return float("nan")
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2.0)[place]  # mean rank of a tie, from 1
    return float((ranks[labels].sum() - positives * (positives + 1) / 2.0) / (positives * negatives))


class PerUser(NamedTuple):
    """Mean of the users' own measures, and the share of users that had one."""

    mean: float
    coverage: float


def roc_auc_each(
    users: NDArray[np.int64], scores: NDArray[np.float64], labels: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Each user's own measure, by ascending user; NaN for one without a positive or without a negative."""
    order = np.argsort(users, kind="stable")
    starts = np.flatnonzero(np.diff(users[order])) + 1
    return np.array([roc_auc(scores[part], labels[part]) for part in np.split(order, starts) if len(part)])


def roc_auc_per_user(
    users: NDArray[np.int64], scores: NDArray[np.float64], labels: NDArray[np.bool_]
) -> PerUser:
    """Unweighted mean over users that have a positive and a negative; NaN if there is none."""
    each = roc_auc_each(users, scores, labels)
    measured = each[~np.isnan(each)]
    if not len(measured):
        return PerUser(float("nan"), 0.0)
    return PerUser(float(np.mean(measured)), len(measured) / len(each))
