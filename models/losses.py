"""Losses, as pure functions of scores."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def sampled_softmax(
    positive: Tensor,  # (n,) scores of what was followed
    positive_log_q: Tensor,  # (n,) log of its expected count in the candidate set
    negatives: Tensor,  # (n, m) scores; -inf where there is none
    negatives_log_q: Tensor,  # (m,) or (n, m)
) -> Tensor:
    """(n,) losses -ln softmax(score - ln E[count])[positive] over the positive and the sampled negatives.

    Jean et al. 2015 (arXiv:1412.2007); the correction for streams: Yi et al., RecSys 2019, section 3.
    """
    first = (positive - positive_log_q).unsqueeze(1)
    logits = torch.cat((first, negatives - negatives_log_q), dim=1)
    return torch.logsumexp(logits, dim=1) - first.squeeze(1)


def in_batch_softmax(
    scores: Tensor,  # (n, n) of each row's account with the target of each row
    log_q: Tensor,  # (n,) log of the targets' expected counts in such a batch
    excluded: Tensor,  # (n, n) bool: what is no negative of a row, as a target that it follows too
) -> Tensor:
    """(n,) losses of `sampled_softmax` with the other targets of the batch as negatives.

    Yi et al., RecSys 2019, section 3. What is excluded on the diagonal stays: it is the positive.
    """
    own = torch.eye(len(scores), dtype=torch.bool, device=scores.device)
    negatives = scores.masked_fill(excluded | own, -torch.inf)
    return sampled_softmax(scores.diagonal(), log_q, negatives, log_q)


def cross_entropy(similarity: Tensor, followed: Tensor, temperature: float = 1.0) -> Tensor:
    """Losses -y ln s(x) - (1 - y) ln(1 - s(x)), s the logistic function, x the pair's similarity / temperature.

    The cross-entropy arm of the IRS 2020 who-to-follow paper. A cosine lies within -1 and 1, where s stays
    between 0.27 and 0.73: without a temperature well below 1 no pair is ever told apart.
    """
    return F.binary_cross_entropy_with_logits(similarity / temperature, followed, reduction="none")


def cosine_distance(consumers: Tensor, producers: Tensor) -> Tensor:
    """(n, m) distances 1 - cos of rows (n, dim) and rows (m, dim): 0 to 2; 1 from a row of zeros."""
    return 1.0 - F.normalize(consumers, dim=-1) @ F.normalize(producers, dim=-1).T


def triplet(positive: Tensor, negative: Tensor, margin: float) -> Tensor:
    """Losses max(0, d+ - d- + margin) on distances. Schroff et al. 2015 (arXiv:1503.03832), equation 3.

    >>> triplet(torch.tensor([0.2]), torch.tensor([0.5]), margin=0.5)
    tensor([0.2000])
    """
    return (positive - negative + margin).clamp(min=0.0)


def weighted_mean(losses: Tensor, weights: Tensor, used: Tensor) -> Tensor:
    """Mean of weighted losses (n, m) over the entries that are used (n, m) bool; 0 if none is.

    The divisor is the number of entries, not their weights' sum: weights of mean 1 leave the rate alone.
    """
    total = (losses * weights).masked_fill(~used, 0.0).sum()
    return total / used.sum().clamp(min=1)
