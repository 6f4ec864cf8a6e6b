"""The values of a question and its answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

MOST: int = 1000  # largest k

# What `after` waits for. `state`: the account's own rows and exclusions; `vectors`: those of every candidate too.
Level = Literal["vectors", "state"]


class Question(msgspec.Struct, frozen=True):
    """Whom should this account follow? `after` is a token that publishing returned."""

    account: str
    k: int = 20
    after: str = ""
    exclude: Sequence[str] = ()
    allow: Sequence[str] | None = None
    languages: Sequence[str] = ()  # BCP 47; only candidates of these languages
    reasons: int = 20  # how many of the first candidates come with reasons
    level: Level = "vectors"


class Candidate(msgspec.Struct, frozen=True):
    """One account to follow; a higher score is better, comparable within one answer."""

    account: str
    score: float
    reasons: Sequence[str] = ()


class Answer(msgspec.Struct, frozen=True):
    """Candidates, best first, and what they are answered from."""

    account: str
    candidates: Sequence[Candidate]
    as_of: int  # microseconds; all state applied until then is in it
    model: str  # lineage of the towers
    step: int  # of training
    tick: int  # minutes since 1970: the time of the newest vectors
    token: str  # everything published up to here is in the answer
    plan: str  # how the index answered
    short: str | None = None  # why fewer than k came
