"""The day-zero model: the same towers with weights set by hand. Useful before any training."""

from __future__ import annotations

from typing import Final

import torch

from kithstream.models.features import AGES, DENSE, FAMILY, PSI, QUALITY
from kithstream.models.tower import VIEWS, Tower

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
# What is added to that by a consumer of whom little is known (see `PSI`): fame and language tell more, and that
# somebody acts tells less, than to one whose habits are known. Chosen on the simulator (`bench/cold.py`, seed 3).
NEWCOMER: Final[dict[str, dict[str, float]]] = {
    "out_empty": {
        "follow_in_ever": 1.2,
        "follow_in_604800s": 0.6,
        "age_out": 1.2,
        "follow_out_3600s": -0.5,
        "follow_out_86400s": -0.5,
    },
    "near_zero": {
        "follow_in_ever": 0.8,
        "age_out": 1.0,
        "follow_out_3600s": -0.4,
        "follow_out_86400s": -0.4,
    },
}
# What it makes of each view of a candidate's quality, and by what the columns of `QUALITY` begin that make the view
# up; they weigh alike, and those that begin with a minus count against it.
QUALITIES: Final[dict[str, tuple[float, tuple[str, ...]]]] = {
    "rejection": (-0.8, ("mute_rate", "block_rate", "report_rate", "not_interested_rate")),
    "regret": (-0.4, ("unfollow_rate", "unlike_in")),
    "warmth": (
        0.4,
        ("like_in_86400s", "repost_in_86400s", "reply_in_86400s", "quote_in_86400s", "click_in_86400s"),
    ),
    "esteem": (
        0.3,
        (
            "repost_in_4320000s",
            "reply_in_4320000s",
            "share_in_4320000s",
            "bookmark_in_4320000s",
            "address_book_in",
        ),
    ),
    "audience": (0.2, ("own_language_share", "community_peak", "-language_entropy")),
    "exposure": (-0.1, ("impression_in",)),
}
RECIPROCITY: Final = 6.0  # the newest who follows and is not followed back
RECIPROCITY_STEP: Final = 0.3  # less for each one before
RECIPROCITY_AGE: Final = 0.15  # less for each doubling of its age in minutes
LANGUAGE: Final = 1.0
STRANGER: Final = 4.0  # more of its own language for whoever follows nobody
BEGINNER: Final = 2.0  # and for whoever has done little
# One engagement with the candidate, by its kind: what it costs to do, as rankers of feeds weigh it (recsys.md 4.1).
ENGAGED: Final[dict[str, float]] = {
    "reply": 1.2,
    "repost": 1.0,
    "quote": 1.0,
    "like": 0.7,
    "share": 0.7,
    "bookmark": 0.7,
    "click": 0.25,
    "video_watch": 0.25,
    "notification_open": 0.25,
    "notification_tab_click": 0.15,
}
AVOIDED: Final[dict[str, float]] = {
    "report": -6.0,
    "block": -6.0,
    "mute": -4.0,
    "not_interested": -3.0,
    "unfollow": -2.0,
}
ENGAGED_HALVES: Final = 10  # buckets of age after which an engagement counts half: 2^10 minutes is 17 hours
DISTASTE: Final = 0.15  # of what falls on the account itself falls on the community it is known for
COUNTRY: Final = 0.5
INTEREST: Final = 2.0
PEERS: Final = 0.5  # others of what it is known for itself
SKETCHED: Final = 0.3  # an account whom the candidate's first followers are followed by
SKETCHED_OF_FOLLOWEES: Final = 0.03  # one whom the candidate follows as well


def set_day_zero(tower: Tower) -> None:
    """Overwrites the tower's weights."""
    one = PSI.index("one")
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter.zero_()
        for name, weight in VIEW.items():
            tower.attention[DENSE.index(name), one] = weight
        for who, table in NEWCOMER.items():
            for name, weight in table.items():
                tower.attention[DENSE.index(name), PSI.index(who)] = weight
        for view, (weight, prefixes) in QUALITIES.items():
            row = VIEWS.index(view)
            tower.demand[row, one] = weight
            for prefix in prefixes:
                columns = [i for i, name in enumerate(QUALITY) if name.startswith(prefix.lstrip("-"))]
                sign = -1.0 if prefix.startswith("-") else 1.0
                tower.quality[row, columns] = sign / (len(prefixes) * len(columns)) ** 0.5
        tower.position.copy_(RECIPROCITY - RECIPROCITY_STEP * torch.arange(len(tower.position)))
        tower.age.copy_(-RECIPROCITY_AGE * torch.arange(len(tower.age)))
        left = 1.0 / (1.0 + torch.arange(AGES) / ENGAGED_HALVES)
        for weights, table in ((tower.engaged_family, ENGAGED), (tower.avoided_family, AVOIDED)):
            for name, weight in table.items():
                weights[FAMILY[name]] = weight
        tower.engaged_age.copy_(left)
        tower.avoided_age.copy_(left)
        tower.pooling.fill_(0.5)
        tower.language[one] = LANGUAGE
        tower.language[PSI.index("out_empty")] = STRANGER
        tower.language[PSI.index("near_zero")] = BEGINNER
        tower.country.fill_(COUNTRY)
        tower.community.copy_(torch.tensor([INTEREST, PEERS, DISTASTE]))
        tower.sketch.copy_(torch.tensor([SKETCHED, SKETCHED_OF_FOLLOWEES, SKETCHED]) ** 0.5)
