"""What an evaluation says, as values that cannot tell half of it.

The lesson of the IRS 2020 who-to-follow paper (section 6.1, Table 1): a model may rank what an earlier model served
very well, and recommend badly from the whole corpus; metrics on served negatives alone would have chosen it. So here
they do not exist alone. `Served` extends `Nearest`: AUC on random negatives, language mismatch of the first candidate
and the correlation of popularity with what is really recommended are required fields of the same value, and must be
numbers. What is built otherwise, or read back otherwise, is refused; `to_json` and `from_json` check all rows again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from kithstream.models.evaluate import Interval

VERSION: Final = 1  # of the JSON


class Nearest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="nearest"):
    """What the lists from the whole corpus are like, and how they stand against accounts drawn at random."""

    random_auc: float  # the followed account against accounts drawn at random, over all questions together
    random_auc_per_user: Interval  # unweighted mean over asking accounts
    random_pairs: int  # scored accounts drawn at random
    mismatch_at_1: float | None  # share of first candidates of another language; None where `labelled` is 0
    labelled: int  # answers whose asking account and first candidate both told a language
    prpc: float  # Pearson over candidates of followers and the share of lists that hold them
    spearman: float  # the same of ranks
    coverage: float  # share of candidates in any list
    gini: float  # of the share of lists that hold them

    def __post_init__(self) -> None:
        for name in ("random_auc", "prpc", "spearman", "coverage", "gini"):
            _finite(name, getattr(self, name))
        _finite_interval("random_auc_per_user", self.random_auc_per_user)
        if (self.mismatch_at_1 is None) != (self.labelled == 0):
            raise ValueError(f"mismatch_at_1 is {self.mismatch_at_1}, of {self.labelled} labelled answers")
        if self.mismatch_at_1 is not None:
            _finite("mismatch_at_1", self.mismatch_at_1)


class Served(Nearest, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="served"):
    """The same, and beside it how impressions that were engaged with stand against those that were ignored."""

    served_auc: float  # over all impressions together
    served_auc_per_user: Interval  # unweighted mean over accounts with both kinds
    users: int  # accounts with both kinds
    engaged: int  # scored impressions that were engaged with within the window
    ignored: int
    unscored: int  # impressions of accounts that the method would not show, left out

    def __post_init__(self) -> None:
        super().__post_init__()
        _finite("served_auc", self.served_auc)
        _finite_interval("served_auc_per_user", self.served_auc_per_user)


class Row(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One method on all questions or on a part of them."""

    method: str
    part: str
    questions: int
    recall: Mapping[int, Interval]  # by k
    ndcg: Mapping[int, Interval]
    measured: Served | Nearest | None  # None where the nearest-neighbour metrics are not defined
    withheld: str  # why served metrics are not in the row; empty where they are

    def __post_init__(self) -> None:
        if isinstance(self.measured, Served) == bool(self.withheld):
            raise ValueError(
                f"withheld is {self.withheld!r}, a row without served metrics says why, others do not"
            )


class Report(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything about one pass over one stream."""

    version: int
    stream: str  # name of the file
    seed: int
    ks: Sequence[int]
    tests: int  # follows asked for
    slates: int
    unfinished: int  # slates left out since the stream ends within their window
    window_seconds: float
    others: int  # accounts drawn beside each follow
    accounts: int
    candidates: int  # accounts over which exposure is measured
    torso_followers: int  # an account with more is in the torso
    head_followers: int  # and with more than that in the head
    age_borders: tuple[float, float]  # seconds: ages of asking accounts between the thirds
    events: int
    refused: int
    learned: int
    seconds: float  # of folding, without questions
    lineage: str  # of the model at the end
    step: int
    chosen: Mapping[str, str]  # settings of the yardsticks, from the part before the questions
    rows: Sequence[Row]

    def __post_init__(self) -> None:
        if self.version != VERSION:
            raise ValueError(f"version is {self.version}, this program writes {VERSION}")


def checked(report: Report) -> Report:
    """Return the report, built anew from its values; raises ValueError if it holds what may not be told."""
    return msgspec.convert(msgspec.to_builtins(report, str_keys=True), Report, strict=False)


def to_json(report: Report) -> bytes:
    """Return a report as JSON; raises ValueError if it holds what may not be told."""
    return msgspec.json.encode(checked(report))


def from_json(raw: bytes) -> Report:
    """Read a report; raises ValueError if it is none, or holds served metrics without the others."""
    return msgspec.json.decode(raw, type=Report)


def _finite(name: str, value: float) -> None:
    if not math.isfinite(value):
        raise ValueError(f"{name} is {value}, a number is due")


def _finite_interval(name: str, interval: Interval) -> None:
    for bound, value in zip(interval._fields, interval, strict=True):
        _finite(f"{name}.{bound}", value)
