import doctest

import numpy as np
import pytest
import torch

from kithstream.models import losses
from kithstream.models.losses import (
    cosine_distance,
    cross_entropy,
    in_batch_softmax,
    sampled_softmax,
    triplet,
    weighted_mean,
)


def test_sampled_softmax_equals_its_formula() -> None:
    rng = np.random.default_rng(0)
    positive, negatives = rng.normal(size=3), rng.normal(size=(3, 5))
    log_q, negatives_log_q = rng.normal(size=3), rng.normal(size=5)
    negatives[1, 2] = -np.inf
    own, others = np.exp(positive - log_q), np.exp(negatives - negatives_log_q)
    expected = -np.log(own / (own + others.sum(axis=1)))
    found = sampled_softmax(*map(torch.from_numpy, (positive, log_q, negatives, negatives_log_q)))
    np.testing.assert_allclose(found.numpy(), expected)


def test_the_correction_makes_a_sample_stand_for_the_whole() -> None:
    """With every other candidate drawn m times with its own probability, the sum estimates the softmax."""
    rng = np.random.default_rng(1)
    scores = torch.from_numpy(rng.normal(size=50))
    shares = rng.dirichlet(np.ones(49))
    drawn = rng.choice(np.arange(1, 50), 20000, p=shares)
    exact = -torch.log_softmax(scores, 0)[0]
    expected_counts = torch.from_numpy(np.log(20000 * shares[drawn - 1]))
    estimate = sampled_softmax(
        scores[:1], torch.zeros(1, dtype=torch.float64), scores[drawn].unsqueeze(0), expected_counts
    )
    assert estimate.item() == pytest.approx(exact.item(), abs=0.05)  # sampling error of 20,000 draws


def test_cross_entropy_equals_its_formula() -> None:
    x, y = torch.tensor([-2.0, 0.0, 3.0]), torch.tensor([0.0, 1.0, 1.0])
    s = torch.sigmoid(x)
    expected = -(y * s.log() + (1 - y) * (1 - s).log())
    torch.testing.assert_close(cross_entropy(x, y), expected)


def test_a_temperature_divides_similarities() -> None:
    x, y = torch.tensor([-0.2, 0.3]), torch.tensor([0.0, 1.0])
    torch.testing.assert_close(cross_entropy(x, y, 0.1), cross_entropy(x * 10, y))
    followed = cross_entropy(torch.ones(1), torch.ones(1))
    assert followed.item() == pytest.approx(np.log(1 + np.exp(-1)))  # a cosine of 1 still costs 0.31


def test_gradients_of_cross_entropy_pull_by_the_error() -> None:
    x = torch.tensor([0.4, 0.4], requires_grad=True)
    cross_entropy(x, torch.tensor([1.0, 0.0]), 0.5).sum().backward()
    s = 1 / (1 + np.exp(-0.8))
    np.testing.assert_allclose(x.grad, [(s - 1) / 0.5, s / 0.5], rtol=1e-6)


def test_in_batch_softmax_by_hand() -> None:
    """Two follows of popular account 0 and one of account 1; the first two are no negatives of each other."""
    scores = torch.tensor([[2.0, 2.0, 1.0], [0.0, 0.0, 3.0], [1.0, 1.0, 1.0]], dtype=torch.float64)
    log_q = torch.log(torch.tensor([2.0, 2.0, 1.0], dtype=torch.float64))
    same = torch.tensor([[True, True, False], [True, True, False], [False, False, True]])
    found = in_batch_softmax(scores, log_q, same)
    e = np.exp
    by_hand = [
        -np.log(e(2) / 2 / (e(2) / 2 + e(1))),
        -np.log(e(0) / 2 / (e(0) / 2 + e(3))),
        -np.log(e(1) / (e(1) + e(1) / 2 + e(1) / 2)),
    ]
    np.testing.assert_allclose(found, by_hand)


def test_gradients_of_in_batch_softmax_are_shares_less_the_target() -> None:
    scores = torch.zeros((2, 2), dtype=torch.float64, requires_grad=True)
    log_q = torch.log(torch.tensor([3.0, 1.0], dtype=torch.float64))
    in_batch_softmax(scores, log_q, torch.zeros((2, 2), dtype=torch.bool)).sum().backward()
    np.testing.assert_allclose(scores.grad, [[1 / 4 - 1, 3 / 4], [1 / 4, 3 / 4 - 1]])


def test_cosine_distance_by_hand() -> None:
    found = cosine_distance(torch.tensor([[3.0, 0.0]]), torch.tensor([[1.0, 0.0], [0, 2], [-5, 0], [0, 0]]))
    torch.testing.assert_close(found, torch.tensor([[0.0, 1.0, 2.0, 1.0]]))


def test_gradients_of_a_triplet_stop_at_the_margin() -> None:
    positive = torch.tensor([[0.5]], requires_grad=True)
    negatives = torch.tensor(
        [[0.6, 0.8, 0.4]], requires_grad=True
    )  # inside, beyond, nearer than the positive
    losses = triplet(positive, negatives, margin=0.2)
    torch.testing.assert_close(losses, torch.tensor([[0.1, 0.0, 0.3]]))
    losses.sum().backward()
    assert positive.grad is not None
    assert positive.grad.tolist() == [[2.0]]
    assert negatives.grad is not None
    assert negatives.grad.tolist() == [[-1.0, 0.0, -1.0]]


def test_a_weighted_mean_divides_by_entries() -> None:
    losses = torch.tensor([[1.0, 2.0, torch.inf], [3.0, 4.0, 5.0]])
    used = torch.tensor([[True, True, False], [False, True, False]])
    weights = torch.tensor([2.0, 0.5, 9.0])
    assert weighted_mean(losses, weights, used).item() == pytest.approx((2 + 1 + 2) / 3)
    assert weighted_mean(losses, weights, torch.zeros_like(used)).item() == 0.0


def test_triplet_is_zero_beyond_the_margin() -> None:
    found = triplet(torch.tensor([0.1, 0.1]), torch.tensor([0.5, 0.2]), margin=0.25)
    torch.testing.assert_close(found, torch.tensor([0.0, 0.15]))


def test_the_printed_example_holds() -> None:
    assert doctest.testmod(losses).failed == 0
