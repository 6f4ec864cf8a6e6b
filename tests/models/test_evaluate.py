import doctest
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kithstream.models import evaluate
from kithstream.models.evaluate import (
    bootstrap,
    bootstrap_columns,
    ndcg_at,
    recall_at,
    reciprocal_rank,
    roc_auc,
    roc_auc_each,
    roc_auc_per_user,
)

PAIRS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5), st.booleans()), min_size=1, max_size=40)


def by_pairs(scores: list[int], labels: list[bool]) -> float:
    wins = [
        1.0 if p > n else 0.5 if p == n else 0.0
        for p, good in zip(scores, labels, strict=True)
        if good
        for n, other in zip(scores, labels, strict=True)
        if not other
    ]
    return sum(wins) / len(wins) if wins else math.nan


@given(PAIRS)
def test_auc_equals_counting_pairs(pairs: list[tuple[int, int, bool]]) -> None:
    scores, labels = [p[1] for p in pairs], [p[2] for p in pairs]
    expected = by_pairs(scores, labels)
    found = roc_auc(np.array(scores, float), np.array(labels))
    assert found == pytest.approx(expected, nan_ok=True)


@given(PAIRS)
def test_auc_per_user_is_the_mean_of_users_that_have_one(pairs: list[tuple[int, int, bool]]) -> None:
    users, scores, labels = (np.array(column) for column in zip(*pairs, strict=True))
    each = [
        by_pairs([p[1] for p in pairs if p[0] == user], [p[2] for p in pairs if p[0] == user])
        for user in sorted({p[0] for p in pairs})
    ]
    measured = [auc for auc in each if not math.isnan(auc)]
    found = roc_auc_per_user(users, scores.astype(float), labels)
    assert found.coverage == pytest.approx(len(measured) / len(each))
    assert roc_auc_each(users, scores.astype(float), labels) == pytest.approx(each, nan_ok=True)
    assert found.mean == pytest.approx(np.mean(measured) if measured else math.nan, nan_ok=True)


def test_ranks_become_measures() -> None:
    ranks = np.array([0, 2, 19, 20, -1])
    assert recall_at(ranks, 20).tolist() == [1, 1, 1, 0, 0]
    assert ndcg_at(ranks, 20).tolist() == pytest.approx([1, 0.5, 1 / math.log2(21), 0, 0])
    assert reciprocal_rank(ranks).tolist() == pytest.approx([1, 1 / 3, 1 / 20, 1 / 21, 0])


def test_the_interval_is_that_of_a_mean() -> None:
    values = (np.random.default_rng(0).random(2000) < 0.3).astype(float)
    interval = bootstrap(values, np.random.default_rng(1))
    assert interval == bootstrap(values, np.random.default_rng(1))
    half = 1.96 * values.std() / math.sqrt(2000)
    assert interval.low == pytest.approx(interval.mean - half, abs=0.003)  # of 1,000 draws
    assert interval.high == pytest.approx(interval.mean + half, abs=0.003)
    with pytest.raises(ValueError, match="empty"):
        bootstrap(np.zeros(0), np.random.default_rng(0))


def test_columns_are_resampled_together_and_as_one_is() -> None:
    draw = np.random.default_rng(0)
    values = (draw.random((2000, 2)) < [0.3, 0.6]).astype(float)
    values = np.column_stack([values, values[:, 0] + values[:, 1]])
    first, second, both = bootstrap_columns(values, np.random.default_rng(1), draws=5000)
    alone = bootstrap(values[:, 0], np.random.default_rng(1), draws=5000)
    assert first.mean == alone.mean
    assert first[1:] == pytest.approx(alone[1:], abs=0.002)  # of 5,000 draws each
    assert both.mean == pytest.approx(first.mean + second.mean)
    wide = math.hypot(first.high - first.low, second.high - second.low)  # the columns are independent
    assert both.high - both.low == pytest.approx(wide, rel=0.1)
    with pytest.raises(ValueError, match="empty"):
        bootstrap_columns(np.zeros((0, 2)), draw)


def test_the_printed_example_holds() -> None:
    assert doctest.testmod(evaluate).failed == 0
