"""Events as JSON lines: one object a line, from a file, a gzipped file or standard input (`-`)."""

from __future__ import annotations

from collections.abc import Iterator
from os import PathLike, fspath

import msgspec

from kithstream.streams.events.record import Record
from kithstream.streams.sources.lines import BadRow, lines


def read(path: str | PathLike[str]) -> Iterator[Record]:
    """Yields the events as they stand, in the file's order.

    Field types are checked here; whether a signal is known and its fields belong together is the wire's to
    say. Unknown fields are dropped.
    """
    decode = msgspec.json.Decoder(Record).decode
    name = fspath(path)
    for number, line in lines(path):
        try:
            yield decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise BadRow(name, number, "event", line.decode(errors="replace"), str(error)) from error


def read_raw(path: str | PathLike[str]) -> Iterator[bytes]:
    """Yields the lines undecoded, for a publisher that hands them on; blank lines are skipped."""
    for _, line in lines(path):
        yield line
