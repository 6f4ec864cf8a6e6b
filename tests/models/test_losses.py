import doctest

import numpy as np
import pytest
import torch

from kithstream.models import losses
from kithstream.models.losses import cross_entropy, sampled_softmax, triplet


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


def test_triplet_is_zero_beyond_the_margin() -> None:
    found = triplet(torch.tensor([0.1, 0.1]), torch.tensor([0.5, 0.2]), margin=0.25)
    torch.testing.assert_close(found, torch.tensor([0.0, 0.15]))


def test_the_printed_example_holds() -> None:
    assert doctest.testmod(losses).failed == 0
