import doctest
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kithstream.models import exposure as module
from kithstream.models.exposure import coverage, exposure, gini, mismatch, prpc, spearman

LISTS = st.integers(1, 4).flatmap(
    lambda k: st.lists(st.lists(st.integers(-1, 6), min_size=k, max_size=k), min_size=1, max_size=12)
)
NUMBERS = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=2, max_size=20)


@given(LISTS)
def test_exposure_counts_users_and_coverage_accounts(lists: list[list[int]]) -> None:
    array = np.array(lists, np.int64)
    expected = [sum(account in row for row in lists) / len(lists) for account in range(7)]
    assert exposure(array, 7).tolist() == pytest.approx(expected)
    assert coverage(array, 7) == pytest.approx(sum(share > 0 for share in expected) / 7)


@given(NUMBERS)
def test_prpc_is_pearsons(pairs: list[tuple[int, int]]) -> None:
    x, y = np.array(pairs, float).T
    flat = len(set(x)) == 1 or len(set(y)) == 1
    assert prpc(x, y) == pytest.approx(0.0 if flat else np.corrcoef(x, y)[0, 1], abs=1e-9)


@given(NUMBERS)
def test_spearman_is_prpc_of_mean_ranks(pairs: list[tuple[int, int]]) -> None:
    def ranks(values: list[int]) -> list[float]:
        return [sum(o < v for o in values) + (sum(o == v for o in values) + 1) / 2 for v in values]

    x, y = ([pair[side] for pair in pairs] for side in (0, 1))
    found = spearman(np.array(x), np.array(y, float))
    assert found == pytest.approx(prpc(np.array(ranks(x)), np.array(ranks(y))))


def test_equal_shares_that_rounding_tells_apart_do_not_correlate() -> None:
    shares = np.full(5, 0.1)
    shares[3] = 0.1 + 1e-17 + 2e-17
    assert prpc(np.arange(5), shares * 3) == 0.0
    assert prpc(np.arange(1), np.ones(1)) == 0.0


def test_nobody_shown_counts() -> None:
    """Among those that are shown the more popular are shown less; with the rest it is the other way round."""
    followers, shown = np.array([0, 0, 0, 0, 10, 11]), np.array([0.0, 0.0, 0.0, 0.0, 0.6, 0.4])
    assert prpc(followers[4:], shown[4:]) == -1.0
    assert prpc(followers, shown) > 0.9


@given(st.lists(st.integers(0, 20), min_size=1, max_size=15))
def test_gini_is_half_the_mean_difference(values: list[int]) -> None:
    mean = sum(values) / len(values)
    differences = sum(abs(a - b) for a in values for b in values) / len(values) ** 2
    expected = differences / (2 * mean) if mean else 0.0
    found = gini(np.array(values, float))
    assert found == pytest.approx(expected, abs=1e-12)
    assert 0.0 <= found < 1.0


def test_mismatch_leaves_out_what_is_unknown() -> None:
    top, own = np.array([0, 1, 2, -1, 3]), np.array([0, 2, -1, 1, 3])
    assert mismatch(top, own) == pytest.approx(1 / 3)
    assert math.isnan(mismatch(np.array([-1]), np.array([0])))


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="-2 to 1"):
        exposure(np.array([[-2, 1]]), 3)
    with pytest.raises(ValueError, match="0 to 3, -1 to 2 are due"):
        coverage(np.array([[0, 3]]), 3)
    with pytest.raises(ValueError, match="users, k"):
        exposure(np.array([0]), 3)
    with pytest.raises(ValueError, match="exposure is -1"):
        gini(np.array([-1.0, 1.0]))
    with pytest.raises(ValueError, match="one length"):
        prpc(np.zeros(2), np.zeros(3))
    with pytest.raises(ValueError, match="one shape"):
        mismatch(np.zeros(2, np.int64), np.zeros(3, np.int64))


def test_the_printed_examples_hold() -> None:
    assert doctest.testmod(module).failed == 0
