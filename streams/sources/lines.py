"""Lines of a text file, plain, gzipped or from standard input, with an error that says where."""

from __future__ import annotations

import gzip
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike, fspath
from typing import BinaryIO, cast


class BadRow(ValueError):
    """A row of a file cannot be used; says the file, the row's number from 1, the field and its value.

    In text files the number is the line's; `what` says what is counted.
    """

    def __init__(
        self, path: str, number: int, field: str, value: object, reason: str, what: str = "line"
    ) -> None:
        self.path, self.number, self.field, self.value, self.reason = path, number, field, value, reason
        shown = repr(value)
        if len(shown) > 80:
            shown = shown[:77] + "..."
        super().__init__(f"{path}, {what} {number}: {field} is {shown}, {reason}")


@contextmanager
def opened(path: str | PathLike[str]) -> Iterator[BinaryIO]:
    """Opens a file for reading bytes: `-` is standard input, a gzipped file is told by its first bytes."""
    name = fspath(path)
    if name == "-":
        yield sys.stdin.buffer
        return
    with open(name, "rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        if zipped:
            with gzip.open(file) as inside:
                yield cast(BinaryIO, inside)
        else:
            yield file


def lines(path: str | PathLike[str]) -> Iterator[tuple[int, bytes]]:
    """Yields each line that is not blank with its number from 1, without white space at its ends."""
    number = 0
    with opened(path) as file:
        try:
            for number, line in enumerate(file, 1):
                stripped = line.strip()
                if stripped:
                    yield number, stripped
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise BadRow(
                fspath(path), number + 1, "gzip", str(error), "the file is cut or damaged"
            ) from error
