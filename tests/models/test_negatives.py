import doctest

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kithstream.models import negatives
from kithstream.models.negatives import (
    Correction,
    Follows,
    frequent,
    hard,
    mixed,
    normalised,
    uniform,
    window,
)

CORPUS, DRAWS = 20, 4000
PAIRS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 9)), max_size=40)


def far_off(counts: np.ndarray, expected: np.ndarray) -> bool:
    """Whether counts differ from their expectation by more than 4.5 standard errors; seeds are fixed."""
    return bool((np.abs(counts - expected) > 4.5 * np.sqrt(np.maximum(expected, 1))).any())


def test_uniform_pools_are_uniform() -> None:
    rng = np.random.default_rng(0)
    pool = uniform(CORPUS, 50_000, rng)
    assert pool.expected.tolist() == [2500.0] * 50_000
    counts = np.bincount(pool.accounts, minlength=CORPUS)
    assert not far_off(counts, np.full(CORPUS, 2500.0))
    assert far_off(np.roll(counts, 1) * np.arange(CORPUS), np.full(CORPUS, 2500.0))


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_a_mixed_pool_holds_what_it_expects(share: float) -> None:
    rng = np.random.default_rng(1)
    shares = np.arange(CORPUS) / np.arange(CORPUS).sum()
    counts, told = np.zeros(CORPUS), np.zeros(CORPUS)
    for _ in range(DRAWS):
        batch = rng.choice(CORPUS, 32, p=shares)
        pool = mixed(batch, CORPUS, 16, share, shares, rng)
        assert len(pool.accounts) == 16
        np.add.at(counts, pool.accounts, 1)
        told[pool.accounts] = pool.expected
    expected = 16 * (share / CORPUS + (1 - share) * shares)
    assert not far_off(counts, expected * DRAWS)
    np.testing.assert_allclose(told[counts > 0], expected[counts > 0])


def test_a_whole_batch_is_its_own_pool() -> None:
    targets = np.array([3, 1, 3, 2])
    shares = np.bincount(targets, minlength=5) / 4
    pool = frequent(targets, 4, shares, np.random.default_rng(0))
    assert pool.accounts.tolist() == [3, 1, 3, 2]
    assert pool.expected.tolist() == [2, 1, 2, 1]
    part = frequent(targets, 3, shares, np.random.default_rng(0)).accounts.tolist()
    assert all(part.count(account) <= [3, 1, 3, 2].count(account) for account in part)


def test_pools_are_functions_of_their_generator() -> None:
    def draw(seed: int) -> list[int]:
        shares = np.full(CORPUS, 1 / CORPUS)
        rng = np.random.default_rng(seed)
        return mixed(np.arange(8), CORPUS, 6, 0.5, shares, rng).accounts.tolist()

    assert draw(3) == draw(3) != draw(4)


@given(st.integers(1, 12), st.integers(1, 12), st.data())
def test_each_row_reads_its_number_of_columns_and_columns_serve_alike(
    rows: int, columns: int, data: st.DataObject
) -> None:
    ratio = data.draw(st.integers(1, columns))
    found = window(rows, columns, ratio)
    assert found.sum(axis=1).tolist() == [ratio] * rows
    assert np.ptp(window(columns, columns, ratio).sum(axis=0)) == 0
    if ratio < columns == rows:
        assert not found.diagonal().any()  # a batch that is its own pool: not its own target


@given(PAIRS, st.lists(st.integers(0, 4), min_size=1, max_size=6), st.lists(st.integers(0, 9), max_size=12))
def test_whom_a_consumer_follows_is_found(
    pairs: list[tuple[int, int]], consumers: list[int], accounts: list[int]
) -> None:
    known = np.array(pairs, np.int64).reshape(-1, 2)
    follows = Follows.of(known[:, 0], known[:, 1], 5)
    found = follows.among(np.array(consumers), np.array(accounts, np.int64))
    assert found.tolist() == [[(c, a) in pairs for a in accounts] for c in consumers]


def test_hard_negatives_are_the_highest_below_the_cut() -> None:
    scores = torch.tensor([[0.9, 0.1, 0.5, 0.7], [0.2, 0.8, 0.3, 0.4]])
    used = torch.tensor([[True, True, True, True], [True, False, True, False]])
    assert hard(scores, used, keep=2, skip=1).tolist() == [
        [False, False, True, True],
        [True, False, False, False],
    ]
    assert hard(scores, used, keep=9).equal(used)
    assert not hard(scores, used, keep=2, skip=9).any()


@given(st.lists(st.integers(0, 10**6), min_size=2, max_size=30), st.floats(1e-3, 1e9))
def test_weights_have_mean_one_over_what_is_drawn(followers: list[int], t: float) -> None:
    counts = np.array(followers)
    shares = (counts + 1) / (counts + 1).sum()
    weights = Correction(t=t).weights(counts, shares)
    assert shares @ weights == pytest.approx(1.0)
    assert weights.max() / weights.min() <= 2.0 + 1e-9


def test_the_correction_vanishes_at_both_ends() -> None:
    followers = np.array([1, 10, 100, 1000])
    shares = followers / followers.sum()
    for t in (1e-6, np.inf):
        np.testing.assert_allclose(Correction(t=t).weights(followers, shares), 1.0)
    middle = Correction(t=100.0).weights(followers, shares)
    assert (np.diff(middle) < 0).all()
    assert middle[0] / middle[-1] == pytest.approx((0.5 + 0.5 * np.exp(-0.01)) / (0.5 + 0.5 * np.exp(-10)))


def test_a_quantile_is_its_follower_count() -> None:
    followers = np.arange(101)
    shares = np.full(101, 1 / 101)
    np.testing.assert_array_equal(
        Correction(quantile=0.9).weights(followers, shares), Correction(t=90.0).weights(followers, shares)
    )
    assert normalised(np.array([1.0, 3.0]), np.array([0.5, 0.5])).tolist() == [0.5, 1.5]


def test_what_does_not_fit_is_refused() -> None:
    rng, shares = np.random.default_rng(0), np.full(4, 0.25)
    for made, told in (
        (lambda: Correction(), "one of them"),
        (lambda: Correction(t=1.0, quantile=0.5), "one of them"),
        (lambda: Correction(t=0.0), "t is 0.0"),
        (lambda: Correction(quantile=1.5), "quantile is 1.5"),
        (lambda: negatives.popularity_weights(np.ones(2), -1.0), "t is -1.0"),
        (lambda: frequent(np.arange(3), 4, shares, rng), "count is 4"),
        (lambda: mixed(np.arange(3), 4, 2, 1.5, shares, rng), "share is 1.5"),
        (lambda: window(2, 3, 4), "ratio is 4"),
    ):
        with pytest.raises(ValueError, match=told):
            made()


def test_the_printed_examples_hold() -> None:
    assert doctest.testmod(negatives).failed == 0
