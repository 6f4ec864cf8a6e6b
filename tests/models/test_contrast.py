import numpy as np
import pytest
import torch
from torch import nn

from kithstream.models.contrast import (
    Contrast,
    Contrasts,
    CrossEntropy,
    Engagement,
    SamplingConfig,
    Served,
    Servings,
    Softmax,
    Triplets,
)
from kithstream.models.losses import in_batch_softmax, sampled_softmax
from kithstream.models.negatives import Correction, Follows

CONSUMERS, ACCOUNTS = 30, 12
RNG = np.random.default_rng(0)
FOLLOWS = (np.repeat(np.arange(CONSUMERS), 4), RNG.integers(0, ACCOUNTS, 4 * CONSUMERS))
FOLLOWERS = np.bincount(FOLLOWS[1], minlength=ACCOUNTS)
KNOWN = Follows.of(*FOLLOWS, CONSUMERS)


class Tables(nn.Module):
    """A vector for each row."""

    def __init__(self) -> None:
        super().__init__()
        rng = torch.Generator().manual_seed(0)
        self.c = nn.Parameter(torch.randn((CONSUMERS, 4), generator=rng))
        self.p = nn.Parameter(torch.randn((ACCOUNTS, 4), generator=rng))

    def consumers(self, rows: torch.Tensor) -> torch.Tensor:
        return nn.functional.normalize(self.c[rows], dim=1)

    def producers(self, rows: torch.Tensor) -> torch.Tensor:
        return nn.functional.normalize(self.p[rows], dim=1)


def batches(config: SamplingConfig, seed: int = 0) -> Contrasts:
    return Contrasts(FOLLOWS, KNOWN, FOLLOWERS, config, 16, seed)


def same(a: tuple[torch.Tensor, ...], b: tuple[torch.Tensor, ...]) -> bool:
    return all(x.equal(y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("config", [SamplingConfig(), SamplingConfig(pool=20, uniform=1.0, ratio=3)])
def test_an_epoch_can_be_entered_anywhere(config: SamplingConfig) -> None:
    whole = list(batches(config).epoch(3, 0))
    later = list(batches(config).epoch(3, 5))
    assert len(whole) == len(FOLLOWS[0]) // 16 == 7
    assert all(same(a, b) for a, b in zip(whole[5:], later, strict=True))
    assert not same(whole[0], next(batches(config).epoch(4, 0)))
    assert not same(whole[0], next(batches(config, seed=1).epoch(3, 0)))


def test_an_epoch_reads_every_follow_once_but_the_rest_of_a_batch() -> None:
    pairs = [
        pair
        for batch in batches(SamplingConfig()).epoch(0, 0)
        for pair in zip(batch.consumers.tolist(), batch.targets.tolist(), strict=True)
    ]
    left = list(zip(*(side.tolist() for side in FOLLOWS), strict=True))
    for pair in pairs:
        left.remove(pair)
    assert len(left) == len(FOLLOWS[0]) % 16


@pytest.mark.parametrize("uniform", [0.0, 0.5])
def test_a_batch_says_of_its_pool_what_is_so(uniform: float) -> None:
    config = SamplingConfig(uniform=uniform, ratio=5, correction=Correction(quantile=0.5))
    batch = next(batches(config).epoch(0, 0))
    followed = {(c, a) for c, a in zip(*(side.tolist() for side in FOLLOWS), strict=True)}
    for row, consumer in enumerate(batch.consumers.tolist()):
        used = batch.used[row].nonzero().ravel().tolist()
        assert len(used) <= 5
        assert not any((consumer, int(batch.pool[column])) in followed for column in used)
    shares = FOLLOWERS / FOLLOWERS.sum()
    blind = round(16 * uniform)
    expected = np.log(blind / ACCOUNTS + (16 - blind) * shares)
    np.testing.assert_allclose(batch.log_q, expected[batch.pool], rtol=1e-5)
    np.testing.assert_allclose(batch.target_log_q, expected[batch.targets], rtol=1e-5)
    drawn = blind / 16 / ACCOUNTS + (1 - blind / 16) * shares
    assert drawn @ batches(config).weights == pytest.approx(1.0)
    np.testing.assert_allclose(batch.weights, batches(config).weights[batch.pool], rtol=1e-6)


def test_follows_stay_among_the_negatives_where_asked() -> None:
    batch = next(batches(SamplingConfig(known=True)).epoch(0, 0))
    assert batch.used.equal(batch.pool != batch.targets.unsqueeze(1))


def hand() -> Contrast:
    return Contrast(
        consumers=torch.tensor([0, 1]),
        targets=torch.tensor([2, 3]),
        target_log_q=torch.tensor([0.5, -0.5]),
        pool=torch.tensor([3, 4, 5]),
        log_q=torch.tensor([-0.5, 0.1, 0.2]),
        weights=torch.tensor([0.5, 1.0, 1.5]),
        used=torch.tensor([[True, True, False], [False, True, True]]),
    )


def test_objectives_equal_their_sums() -> None:
    towers, batch = Tables(), hand()
    q, p = towers.consumers(torch.arange(CONSUMERS)), towers.producers(torch.arange(ACCOUNTS))
    s = (q @ p.T).tolist()
    pairs = [
        (0, 2, 3, 0.5),
        (0, 2, 4, 1.0),
        (1, 3, 4, 1.0),
        (1, 3, 5, 1.5),
    ]  # consumer, target, other, weight
    expected = sum(w * max(0.0, s[c][n] - s[c][t] + 0.3) for c, t, n, w in pairs) / 4
    assert Triplets(margin=0.3)(towers, batch).item() == pytest.approx(expected, rel=1e-5)

    def pointwise(x: float) -> float:
        return float(np.log1p(np.exp(-x / 0.2)))

    expected = sum(w * pointwise(-s[c][n]) for c, _, n, w in pairs) + pointwise(s[0][2]) + pointwise(s[1][3])
    assert CrossEntropy(0.2)(towers, batch).item() == pytest.approx(expected / 6, rel=1e-5)

    scores = (q[:2] @ p[batch.pool].T / 0.2).masked_fill(~batch.used, -torch.inf)
    positive = torch.tensor([s[0][2], s[1][3]]) / 0.2
    corrected = sampled_softmax(positive, batch.target_log_q, scores, batch.log_q).mean()
    assert Softmax(0.2)(towers, batch).item() == pytest.approx(corrected.item(), rel=1e-5)
    plain = sampled_softmax(positive, torch.zeros(2), scores, torch.zeros(3)).mean()
    assert Softmax(0.2, corrected=False)(towers, batch).item() == pytest.approx(plain.item(), rel=1e-5)


def test_a_batch_that_is_its_own_pool_is_the_in_batch_softmax() -> None:
    towers, batch = Tables(), next(batches(SamplingConfig()).epoch(0, 0))
    assert batch.pool.equal(batch.targets)
    scores = towers.consumers(batch.consumers) @ towers.producers(batch.targets).T
    expected = in_batch_softmax(scores / 0.1, batch.log_q, ~batch.used).mean()
    assert Softmax(0.1)(towers, batch).item() == pytest.approx(expected.item(), rel=1e-5)


def test_hard_triplets_are_the_worst_ones() -> None:
    towers, batch = Tables(), next(batches(SamplingConfig(pool=12, uniform=1.0)).epoch(0, 0))
    all_of, worst = Triplets(margin=0.2)(towers, batch), Triplets(margin=0.2, keep=1)(towers, batch)
    second = Triplets(margin=0.2, keep=1, skip=1)(towers, batch)
    assert worst > second > 0
    assert worst > all_of


def test_served_pairs_keep_what_became_of_them() -> None:
    engaged = FOLLOWS[1] % 3 == 0
    served = Servings(*FOLLOWS, engaged, 16, 0)
    truth = dict(zip(zip(*(side.tolist() for side in FOLLOWS), strict=True), engaged.tolist(), strict=True))
    found = list(served.epoch(1, 0))
    assert len(found) == 7
    for batch in found:
        for consumer, account, told in zip(*(tensor.tolist() for tensor in batch), strict=True):
            assert truth[consumer, account] == bool(told)
    towers, batch = Tables(), Served(torch.tensor([0]), torch.tensor([2]), torch.ones(1))
    s = (towers.consumers(batch.consumers)[0] @ towers.producers(batch.accounts)[0]).item()
    assert Engagement(0.5)(towers, batch).item() == pytest.approx(np.log1p(np.exp(-s / 0.5)), rel=1e-5)
