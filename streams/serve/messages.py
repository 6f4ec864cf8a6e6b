"""What goes over HTTP beside events and answers: the query's parameters, replies, problems."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Final
from urllib.parse import unquote_to_bytes

import msgspec
from msgspec import UNSET, Meta, UnsetType

from kithstream.streams.events import wire
from kithstream.streams.events.wire import ID_BYTES
from kithstream.streams.serve import tokens
from kithstream.streams.serve.answers import FULLY, MOST, Explain, Level, Question

Id = Annotated[str, Meta(min_length=1, max_length=ID_BYTES, pattern="^[^\\u0000]*$")]
Ids = Annotated[Sequence[Id], Meta(max_length=MOST)]


class Asked(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The query of a request for candidates. Lists are made by repeating the parameter."""

    k: Annotated[int, Meta(ge=1, le=MOST, description="How many candidates at most.")] = 20
    after: Annotated[
        str,
        Meta(description="A token that publishing returned: the answer includes its events, or is a 409."),
    ] = ""
    exclude: Annotated[Ids, Meta(description="Accounts that must not be in the answer. Repeatable.")] = ()
    allow: Annotated[
        Ids | UnsetType, Meta(description="The only accounts that may be in the answer. Repeatable.")
    ] = UNSET
    language: Annotated[
        Sequence[Annotated[str, Meta(max_length=35, pattern="^[A-Za-z]{2,3}(?![^-])")]],
        Meta(max_length=100, description="BCP 47; only candidates of these languages. Repeatable."),
    ] = ()
    level: Annotated[
        Level,
        Meta(
            description="What `after` waits for: the vectors of all candidates too, or the account's own state alone "
            "(its follows, blocks on both sides): sooner on a cluster, the same in one process."
        ),
    ] = "vectors"
    reasons: Annotated[
        int, Meta(ge=0, le=MOST, description="How many of the first candidates come with reasons.")
    ] = 20
    explain: Annotated[
        Explain,
        Meta(
            description=f"`full` tells for each of the first {FULLY} candidates which of the account's own public "
            "signals carry it, each by what would be without it."
        ),
    ] = "short"
    deadline_ms: Annotated[
        Annotated[float, Meta(ge=0)] | UnsetType,
        Meta(description="Longest wait for the state of `after`, in milliseconds."),
    ] = UNSET


_ID: Final = f"1 to {ID_BYTES} bytes without NUL"
_TAG: Final = "a BCP 47 tag such as en or pt-BR"
REPEATABLE: Final = ("exclude", "allow", "language")


class Accepted(msgspec.Struct, frozen=True):
    """All events are in the log. The token stands for them: hand it back as `after` to read them."""

    token: str
    accepted: int


class Refusal(msgspec.Struct, frozen=True):
    """Why one event cannot be used."""

    index: int  # of the event in the request, from 0
    reason: str
    field: str
    value: str  # shortened
    expected: str


class Refused(msgspec.Struct, frozen=True):
    """No event of the request was taken; the first of those that cannot be used."""

    error: str
    message: str
    refused: Sequence[Refusal]
    total: int  # how many cannot be used


class Problem(msgspec.Struct, frozen=True):
    """What went wrong: a code to branch on, a sentence to read."""

    error: str
    message: str


class BadParameter(msgspec.Struct, frozen=True):
    """A parameter of the path or the query that cannot be used."""

    error: str
    message: str
    parameter: str
    value: str  # shortened
    expected: str


class Health(msgspec.Struct, frozen=True):
    """The process is alive and folds."""

    status: str


class Ready(msgspec.Struct, frozen=True):
    """Everything published before the start is visible; `behind` records are not visible yet."""

    status: str
    behind: int


class NotReady(msgspec.Struct, frozen=True):
    """Something published before the start is not visible yet, like `behind` records in all."""

    error: str
    message: str
    behind: int


class WrongParameter(ValueError):
    """A parameter with its value and what is expected instead."""

    def __init__(self, parameter: str, value: str, expected: str) -> None:
        super().__init__(f"{parameter} is {value[:80]!r}, expected {expected}")
        self.parameter = parameter
        self.value = value[:80]
        self.expected = expected


def question(account: str, asked: Asked) -> Question:
    """Return the question that a checked query asks."""
    allow = None if asked.allow is UNSET else asked.allow
    return Question(
        account,
        asked.k,
        asked.after,
        asked.exclude,
        allow,
        asked.language,
        asked.reasons,
        asked.level,
        asked.explain,
    )


def read_account(path: bytes, prefix: str) -> str:
    """Return the account after a prefix of a path that is still percent-encoded; raises WrongParameter."""
    account = _text("account", path).removeprefix(prefix)
    _check_id("account", account)
    return account


def read_query(raw: bytes, *, longest_ms: float, partitions: int) -> Asked:
    """Return the parameters of a query string; raises WrongParameter naming the first that cannot be used."""
    given: dict[str, list[str]] = {}
    for pair in raw.split(b"&"):
        if pair:
            before, _, after = pair.replace(b"+", b" ").partition(b"=")
            key = _text("query", before)
            given.setdefault(key, []).append(_text(key[:80], after))
    for name, values in given.items():
        if name not in Asked.__struct_fields__:
            raise WrongParameter(name[:80], values[0], f"one of {', '.join(Asked.__struct_fields__)}")
        if name not in REPEATABLE and len(values) > 1:
            raise WrongParameter(name, values[1], "the parameter once")
    plain = {name: values if name in REPEATABLE else values[0] for name, values in given.items()}
    try:
        asked = msgspec.convert(plain, Asked, strict=False)
    except msgspec.ValidationError as error:
        raise _explained(error, given, longest_ms) from None
    for name in ("exclude", "allow"):
        for account in given.get(name, ()):
            _check_id(name, account)
    for tag in asked.language:
        if not wire.is_language(tag):
            raise WrongParameter("language", tag, _TAG)
    if asked.deadline_ms is not UNSET and not asked.deadline_ms <= longest_ms:
        raise WrongParameter("deadline_ms", given["deadline_ms"][0], f"0 to {longest_ms:g}")
    try:
        tokens.read(asked.after, partitions)
    except ValueError:
        raise WrongParameter("after", asked.after, "a token of this server") from None
    return asked


def _text(name: str, raw: bytes) -> str:
    try:
        return unquote_to_bytes(raw).decode()
    except UnicodeDecodeError:
        raise WrongParameter(name, raw.decode("latin-1"), "percent-encoded UTF-8") from None


def _check_id(name: str, value: str) -> None:
    if not 0 < len(value.encode()) <= ID_BYTES or "\0" in value:
        raise WrongParameter(name, value, _ID)


def _explained(
    error: msgspec.ValidationError, given: dict[str, list[str]], longest_ms: float
) -> WrongParameter:
    path = str(error).partition(" - at `$.")[2]
    name, _, place = path.rstrip("`]").partition("[")
    values = given[name]
    if name in REPEATABLE and not place:
        return WrongParameter(name, f"{len(values)} times", "fewer")
    value = values[int(place)] if place else values[0]
    expected = {
        "k": f"1 to {MOST}",
        "reasons": f"0 to {MOST}",
        "deadline_ms": f"0 to {longest_ms:g}",
        "language": _TAG,
        "level": "vectors or state",
        "explain": "short or full",
    }
    return WrongParameter(name, value, expected.get(name, _ID))
