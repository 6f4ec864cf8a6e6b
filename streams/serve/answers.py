"""The values of a question and its answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType

from kithstream.streams.events.wire import ID_BYTES, is_language

MOST: int = 1000  # largest k

# What `after` waits for. `state`: the account's own rows and exclusions; `vectors`: those of every candidate too.
Level = Literal["vectors", "state"]

# How an answer is explained. `short`: a few words for each candidate; `full`: the first few candidates also tell which
# of the account's own public signals carry them.
Explain = Literal["short", "full"]
FULLY: int = 5  # candidates that a full answer explains at most
BECAUSES: int = 5  # signals told of each of them at most


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
    explain: Explain = "short"


class Because(msgspec.Struct, frozen=True):
    """What the account did about another one, in public, and what it does for a candidate.

    Everything is told at one moment of the index: had the account never done this and nothing else were different.
    The account whose follow is taken away stays out of the ranking, so that ranks can be compared.
    """

    account: str  # whom it was about
    signals: Mapping[str, int]  # how often, by signal
    newest: int  # microseconds
    score: float  # of the candidate without it
    rank: int  # of the candidate without it, from 1, among all allowed candidates
    score_change: float  # score with it less score without it: what it carries
    rank_change: int  # places that the candidate gains by it


class Candidate(msgspec.Struct, frozen=True):
    """One account to follow; a higher score is better, comparable within one answer."""

    account: str
    score: float
    reasons: Sequence[str] = ()
    because: Sequence[Because] | UnsetType = UNSET  # only where it was asked for, most carrying first
    sources: Sequence[str] | UnsetType = (
        UNSET  # who named it, beside that and where more than the towers rank
    )


class Explanation(msgspec.Struct, frozen=True):
    """Why an account is shown a candidate, by what would be without each thing that the account did in public.

    Score, rank and reasons are there for accounts that are shown. The newest deeds are considered, by the account
    that they were about; those that change nothing are not told. Nothing private is: no private signal of anybody,
    nobody who is muted, blocked or reported in either direction. So scores and ranks are those of the towers: what an
    answer takes off for what was shown and ignored, or not of interest, is not in them.
    """

    account: str
    candidate: str
    shown: bool  # it is among the allowed candidates, at `rank`
    hidden: str | None  # why it is not shown, where it is not
    rank: int | None  # from 1, among all allowed candidates
    score: float | None
    because: Sequence[Because]  # most carrying first; one that carries against it has a negative change
    considered: int  # deeds that were taken out in turn
    as_of: int  # microseconds; all state applied until then is in it
    model: str  # lineage of the towers
    step: int  # of training
    tick: int  # minutes since 1970: the time of the newest vectors
    token: str  # everything published up to here is in it


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


def check(question: Question) -> None:
    """Raise ValueError unless the question can be answered; its token is read by whoever knows the partitions."""
    if not 1 <= question.k <= MOST:
        raise ValueError(f"k is {question.k}, expected 1 to {MOST}")
    check_id("account", question.account)
    if question.explain not in ("short", "full"):
        raise ValueError(f"explain is {question.explain!r}, expected short or full")
    for tag in question.languages:
        if not is_language(tag):
            raise ValueError(f"languages has {tag[:80]!r}, expected BCP 47 tags")


def check_id(field: str, account: str) -> None:
    """Raise ValueError unless this can be an account's id."""
    if not 0 < len(account.encode("utf-8", "replace")) <= ID_BYTES or "\0" in account:
        raise ValueError(f"{field} is {account[:80]!r}, expected 1 to {ID_BYTES} bytes without NUL")
