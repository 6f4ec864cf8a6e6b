"""What goes over the topics beside events and frames, and between the two processes of a worker.

JSON where a product reads or writes it, msgpack where only workers do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from kithstream.streams.config import Config
from kithstream.streams.serve.answers import Answer, Candidate, Explain, Level

MOVED: Final = "kithstream-moved"  # header of a record that was brought to its own partition
PROGRESS: Final = b"\0progress"  # key of a partition's progress among its vectors: no account holds a NUL


class Request(msgspec.Struct, frozen=True, omit_defaults=True):
    """A question over the stream (JSON). Its record's key is the account, its partition the account's."""

    id: str  # the reply names it
    account: str
    reply_topic: str
    reply_partition: int
    k: int = 20
    after: str = ""  # a token: of EventPublisher, of HTTP, or joined of several
    level: Level = "vectors"
    exclude: Sequence[str] = ()
    allow: Sequence[str] | None = None
    languages: Sequence[str] = ()
    reasons: int = 20
    explain: Explain = "short"
    deadline_ms: float = 1000.0  # from the record's timestamp; later nobody waits for the reply


class Address(msgspec.Struct, frozen=True):
    """Where the reply to a request goes: what is read of one that cannot be read as a whole."""

    id: str
    reply_topic: str
    reply_partition: int
    deadline_ms: float = 1000.0


class Failure(msgspec.Struct, frozen=True):
    """Why a question has no answer: a code to branch on, a sentence to read.

    Codes: `not_yet` (ask again), `gone`, `deactivated`, `invalid` (fix the request), `unavailable` (the
    partition is being moved; ask again), `internal`.
    """

    error: str
    message: str


class Reply(msgspec.Struct, frozen=True, omit_defaults=True):
    """An answer over the stream (JSON): exactly one of `answer` and `failure`."""

    id: str
    answer: Answer | None = None
    failure: Failure | None = None


class Pushed(msgspec.Struct, frozen=True):
    """A fresh list for an account (JSON), true as of its time. A record without value withdraws it."""

    account: str
    candidates: Sequence[Candidate]
    as_of: int  # microseconds
    valid_until: int  # microseconds; not to be shown later
    model: str
    step: int
    token: str  # everything published up to here is in the list


class DeadLetter(msgspec.Struct, frozen=True):
    """A record that could not be used (JSON); `dead_letters.letter` makes it."""

    reason: str
    detail: str
    topic: str
    partition: int
    offset: int
    time: int  # microseconds: when it was appended
    record: str  # base64 of its bytes, or of the first of them
    size: int = -1  # bytes of the record; -1 where that was not told
    key: str | None = None  # base64 of its key; None where it has none, or a very long one


class Owner(msgspec.Struct, frozen=True):
    """Who answers for a partition (JSON); the key is the partition's number in decimal."""

    url: str  # empty while nobody does
    generation: int  # of the group; a lower one is out of date
    worker: str


class Vector(msgspec.Struct, array_like=True, gc=False):
    """A producer vector with the public facts that reasons and pairs are made of (msgpack).

    Without a vector it is a dead record: the account is no candidate. If somebody's two-hop paths lead through it all
    the same, the record holds its neighbours and stays; else a tombstone follows it for the compaction, and tells a
    reader nothing more, since a tombstone could not carry a generation.
    """

    generation: int  # of the group, as its owner knew it: a lower one after a higher is a zombie's
    tick: int  # minutes since 1970
    step: int  # of the model
    label: int  # language code
    day: int  # days since 1970
    gained: int  # followers of that day
    followers: list[str]  # the newest
    vector: bytes  # float32, little endian; empty: the account is no candidate any more
    followees: list[str] = []  # the newest; this and the rest are told where pairs are ranked
    following: int = 0  # accounts that it follows
    marks: bytes = b""  # `marks.pack`
    deleted: bool = False  # nobody is to hold its name any more


class Progress(msgspec.Struct, array_like=True, gc=False):
    """How far a partition's vectors have come (msgpack): its owner writes one after the vectors it stands for."""

    generation: int
    applied: int  # engagements of this partition below this offset are in its rows
    heard: list[int]  # by source partition: its engagements below this offset are in rows and vectors here
    appended: int = (
        0  # when the newest of these was appended, microseconds; 0 where its owner did not see that
    )
    watermark: int = 0  # newest event time, microseconds
    whole: bool = False  # every account has a vector of this lineage


# -- between the processes of a worker: length-prefixed msgpack over a socket pair ---------------------------


class Hello(msgspec.Struct, tag=True, array_like=True):
    """Stream to retrieval, before anything else: the settings, who asks, and the lineage of the settings."""

    config: Config
    worker: str
    base: str


class Opened(msgspec.Struct, tag=True, array_like=True):
    """Stream to retrieval: this worker owns a partition, whose store lies at `path`."""

    partition: int
    path: str
    generation: int


class Closing(msgspec.Struct, tag=True, array_like=True):
    """Stream to retrieval: let go of a partition's store, then say Closed."""

    partition: int


class Standing(msgspec.Struct, tag=True, array_like=True):
    """Stream to retrieval: how folding stands."""

    rebalancing: bool
    caught_up: bool  # what was published before the last assignment is folded, and its vectors published
    behind: int  # records published and not folded


class Written(msgspec.Struct, tag=True, array_like=True):
    """Stream to retrieval: stores that were written to since the last such word."""

    partitions: list[int]


class Changed(msgspec.Struct, tag=True, array_like=True):
    """Stream to retrieval: accounts of a partition that acted, and those whose exclusions changed."""

    partition: int
    accounts: list[str]
    urgent: list[str]


class Asked(msgspec.Struct, tag=True, array_like=True):
    """Stream to retrieval: requests that the query agent read, each (record's timestamp in ms, value)."""

    partition: int
    requests: list[tuple[int, bytes]]


class Exposed(msgspec.Struct, tag=True, array_like=True):
    """Stream to retrieval: the stream process's metrics as Prometheus reads them."""

    text: bytes


class Closed(msgspec.Struct, tag=True, array_like=True):
    """Retrieval to stream: nothing of the partition's store is held open any more."""

    partition: int


class Serving(msgspec.Struct, tag=True, array_like=True):
    """Retrieval to stream: HTTP takes connections under this URL."""

    url: str


class Switched(msgspec.Struct, tag=True, array_like=True):
    """Retrieval to stream: answers are made of this lineage from now on."""

    lineage: str


class Stale(msgspec.Struct, tag=True, array_like=True):
    """Retrieval to stream: a zombie's vector lies over these accounts' own; encode them again."""

    partition: int
    accounts: list[str]
    generation: int  # the greatest that the partition's vectors were seen with


ToRetrieval = Hello | Written | Opened | Closing | Standing | Changed | Asked | Exposed
ToStream = Closed | Serving | Stale | Switched
