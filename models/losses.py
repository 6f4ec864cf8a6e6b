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


def cross_entropy(similarity: Tensor, followed: Tensor) -> Tensor:
    """(n,) losses -y ln s(x) - (1 - y) ln(1 - s(x)), s the logistic function, x the pair's similarity.

    The cross-entropy arm of the IRS 2020 who-to-follow paper.
    """
    return F.binary_cross_entropy_with_logits(similarity, followed, reduction="none")


def triplet(positive: Tensor, negative: Tensor, margin: float) -> Tensor:
    """(n,) losses max(0, d+ - d- + margin) on distances. Schroff et al. 2015 (arXiv:1503.03832), equation 3.

    >>> triplet(torch.tensor([0.2]), torch.tensor([0.5]), margin=0.5)
    tensor([0.2000])
    """
    return (positive - negative + margin).clamp(min=0.0)
