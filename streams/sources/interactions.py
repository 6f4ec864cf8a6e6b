"""Files of timed interactions between two accounts, read as follows and what comes after them.

The first row of a pair is a `follow`; later rows of the pair are what their kind says, or `like` where the
format knows no kinds. Rows of an account with itself are dropped and counted. Files must be sorted by time:
a row that is older than the one before is refused, since sorting would need the whole file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal, InvalidOperation
from os import PathLike, fspath
from typing import Final, NamedTuple

from kithstream.streams.events.record import Record
from kithstream.streams.sources.lines import BadRow, lines

MAX_ID_BYTES: Final = 128
MAX_SECONDS: Final = 4_102_444_800  # the year 2100


class Field(ValueError):
    """A field of a row cannot be read."""

    def __init__(self, name: str, value: object, reason: str) -> None:
        super().__init__(f"{name} is {value!r}, {reason}")
        self.name, self.value, self.reason = name, value, reason


class Interaction(NamedTuple):
    """What a format reads from one row."""

    actor: str
    target: str
    time: int  # microseconds since the epoch
    signal: str = "like"  # what the row is unless it is the first of its pair
    follows: bool = True  # whether it is a follow where it is the first of its pair


class Format(NamedTuple):
    """How one kind of file is read."""

    name: str  # the first part of event ids
    columns: Sequence[str]
    separator: str | None  # None: white space
    parse: Callable[[Sequence[str]], Interaction]
    header: bool = False  # whether line 1 may name the columns: it does if it has no digit


class Interactions:
    """The events of one file, in its order; iterating again reads it again.

    Holds every pair it met, a few hundred bytes each. With `repeats` false, rows of a pair that came before
    are dropped. `selfs` and `repeated` count the rows dropped by the newest iteration.
    """

    def __init__(self, path: str | PathLike[str], form: Format, repeats: bool = True) -> None:
        self.path = fspath(path)
        self.form = form
        self.repeats = repeats
        self.selfs = 0
        self.repeated = 0

    def __iter__(self) -> Iterator[Record]:
        self.selfs = self.repeated = 0
        followed: dict[tuple[str, str], bool] = {}  # of every pair met, whether it is followed
        newest = -1
        for number, row in self._rows():
            if row.time < newest:
                raise BadRow(self.path, number, "time", row.time, f"the row before has {newest}: not sorted")
            newest = row.time
            if row.actor == row.target:
                self.selfs += 1
                continue
            pair = (row.actor, row.target)
            if pair in followed and not self.repeats:
                self.repeated += 1
                continue
            known = followed.get(pair, False)
            first = row.follows and not known
            followed[pair] = known or first
            yield self._event(number, row, "follow" if first else row.signal)

    def _rows(self) -> Iterator[tuple[int, Interaction]]:
        columns, separator, parse = self.form.columns, self.form.separator, self.form.parse
        for number, line in lines(self.path):
            if self.form.header and number == 1 and line.translate(None, b"0123456789") == line:
                continue
            try:
                fields = line.decode().split(separator)
                if len(fields) != len(columns):
                    raise Field("row", line.decode(), f"{len(columns)} fields are due: {' '.join(columns)}")
                row = parse(fields)
            except UnicodeDecodeError as error:
                raise BadRow(self.path, number, "row", line, "it is not UTF-8") from error
            except Field as error:
                raise BadRow(self.path, number, error.name, error.value, error.reason) from error
            yield number, row

    def _event(self, number: int, row: Interaction, signal: str) -> Record:
        name = f"{self.form.name}:{number}"
        event = Record(id=name, signal=signal, actor=row.actor, target=row.target, time=row.time)
        if signal == "like":
            event["item"] = name  # every row is about something else, so likes do not fall together
        return event


def account(name: str, text: str) -> str:
    """Returns the text if it can name an account, else raises `Field`."""
    if not 1 <= len(text.encode()) <= MAX_ID_BYTES or "\0" in text:
        raise Field(name, text, f"an account has 1 to {MAX_ID_BYTES} bytes and no NUL")
    return text


def seconds(name: str, text: str) -> int:
    """Returns seconds since the epoch, whole or with decimals, as microseconds."""
    try:
        value = int(text) * 1_000_000 if text.isdecimal() else int(Decimal(text) * 1_000_000)
    except (InvalidOperation, OverflowError, ValueError):
        raise Field(name, text, "seconds since 1970 are due") from None
    if not 0 <= value <= MAX_SECONDS * 1_000_000:
        raise Field(name, text, "seconds since 1970, before 2100, are due")
    return value
