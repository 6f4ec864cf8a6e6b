"""The values of a question and its answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

from kithstream.streams.events.wire import ID_BYTES, is_language

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


def check(question: Question) -> None:
    """Raise ValueError unless the question can be answered; its token is read by whoever knows the partitions."""
    if not 1 <= question.k <= MOST:
        raise ValueError(f"k is {question.k}, expected 1 to {MOST}")
    account = question.account
    if not 0 < len(account.encode("utf-8", "replace")) <= ID_BYTES or "\0" in account:
        raise ValueError(f"account is {account[:80]!r}, expected 1 to {ID_BYTES} bytes without NUL")
    for tag in question.languages:
        if not is_language(tag):
            raise ValueError(f"languages has {tag[:80]!r}, expected BCP 47 tags")
