"""The day-zero model: the same towers with weights set by hand. Useful before any training."""

from __future__ import annotations

from typing import Final

import torch

from kithstream.models.features import DENSE, PSI
from kithstream.models.tower import Tower

# What a consumer makes of each feature of a candidate, whoever the consumer is.
VIEW: Final[dict[str, float]] = {
    "follow_in_86400s": 0.6,
    "follow_in_604800s": 0.6,
    "follow_in_ever": 0.6,
    "follow_out_3600s": 0.6,
    "follow_out_86400s": 0.6,
    "age_in": -0.5,
    "age_out": -1.5,
    "engage_in_604800s": 0.3,
    "negative_in_604800s": -0.6,
    "bias": 1.0,
}
RECIPROCITY: Final = 6.0  # the newest who follows and is not followed back
RECIPROCITY_STEP: Final = 0.3  # less for each one before
RECIPROCITY_AGE: Final = 0.15  # less for each doubling of its age in minutes
LANGUAGE: Final = 1.0


def set_day_zero(tower: Tower) -> None:
    """Overwrites the tower's weights."""
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter.zero_()
        for name, weight in VIEW.items():
            tower.attention[DENSE.index(name), PSI.index("one")] = weight
        tower.position.copy_(RECIPROCITY - RECIPROCITY_STEP * torch.arange(len(tower.position)))
        tower.age.copy_(-RECIPROCITY_AGE * torch.arange(len(tower.age)))
        tower.pooling.fill_(0.5)
        tower.language.fill_(LANGUAGE)
