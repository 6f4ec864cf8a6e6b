"""A folder of examples: files in columns, and a manifest that says which of them count and where the pass stands.

What the manifest does not name is left over of a pass that was killed, and is removed by the next one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, Generic, NamedTuple, TypeVar

import msgspec
import numpy as np

from kithstream.models.features import SCHEMA, RowIndex
from kithstream.streams.errors import UnusableSource
from kithstream.streams.examples.batches import CandidateBatch, ExampleBatch, cut, join
from kithstream.streams.examples.capture import Captured, Counts
from kithstream.streams.examples.columns import (
    ColumnWriter,
    Names,
    candidate_columns,
    candidates_schema,
    example_columns,
    examples_schema,
    read_candidates,
    read_examples,
)
from kithstream.streams.manifest import flush

MANIFEST: Final = "manifest.json"
STATE: Final = "state"
FORMAT: Final = 1
_END: Final = 1 << 62  # behind every round
_B = TypeVar("_B", ExampleBatch, CandidateBatch)


class Part(msgspec.Struct, frozen=True):
    """Two files of the same rounds: examples, and candidates as they were encoded."""

    number: int
    examples: int  # rows
    candidates: int  # rows; without any there is no such file
    rounds: int  # the last round in it

    @property
    def examples_file(self) -> str:
        return f"{self.number:06d}.examples.parquet"

    @property
    def candidates_file(self) -> str:
        return f"{self.number:06d}.candidates.parquet"


class Manifest(msgspec.Struct, frozen=True):
    """What a folder holds, and where the pass that writes it stands."""

    schema_hash: str
    made_of: Mapping[str, str]  # the source and the settings: going on with others is refused
    parts: tuple[Part, ...] = ()
    positions: Mapping[int, int] = {}  # by partition: its log below this offset is in the parts
    events: int = 0  # read of the source
    round: int = 0
    counts: Counts = msgspec.field(default_factory=Counts)
    waiting: int = 0  # impressions whose window has not passed
    dropped: int = 0  # impressions of which it is not told how they ended
    late: int = 0  # impressions that came when their window had passed
    retracted: int = 0  # impressions
    unremembered: int = 0  # engagements
    format: int = FORMAT


class Round(NamedTuple):
    """What one poll gave, in the order in which it is learned: first examples, then candidates."""

    number: int
    examples: ExampleBatch | None
    candidates: CandidateBatch | None


def load(path: Path) -> Manifest:
    """Read a folder's manifest; raises UnusableSource if there is none, or one of another schema or format."""
    file = path / MANIFEST
    try:
        found = msgspec.json.decode(file.read_bytes(), type=Manifest)
    except (OSError, msgspec.DecodeError) as error:
        raise UnusableSource(f"{path} holds no examples: {file.name} cannot be read ({error})") from error
    if found.format != FORMAT:
        raise UnusableSource(f"{file}: format is {found.format}, this build reads {FORMAT}")
    if found.schema_hash != SCHEMA.hash:
        raise UnusableSource(
            f"{file}: schema_hash is {found.schema_hash}, this build has {SCHEMA.hash}; make the examples anew"
        )
    return found


def store(path: Path, manifest: Manifest) -> None:
    """Replace a folder's manifest: a reader sees the old one or the new one."""
    aside = path / f"{MANIFEST}.writing"
    with open(aside, "wb") as file:
        file.write(msgspec.json.format(msgspec.json.encode(manifest), indent=1) + b"\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path / MANIFEST)
    flush(path)


def sweep(path: Path, manifest: Manifest) -> None:
    """Remove the files that the manifest does not name."""
    named = {name for part in manifest.parts for name in (part.examples_file, part.candidates_file)}
    for pattern in ("*.parquet", "*.writing"):
        for file in path.glob(pattern):
            if file.name not in named:
                file.unlink()


class PartWriter:
    """Writes the next part of a folder."""

    def __init__(self, path: Path, number: int) -> None:
        self._path = path
        self._number = number
        name = Part(number, 0, 0, 0)
        self._examples = ColumnWriter(path / name.examples_file, examples_schema())
        self._candidates = ColumnWriter(path / name.candidates_file, candidates_schema())

    @property
    def rows(self) -> int:
        return self._examples.rows + self._candidates.rows

    def write(self, captured: Captured, names: Names) -> None:
        """Take what a round gave; `names` are the accounts of its rows."""
        if captured.examples is not None:
            self._examples.write(example_columns(captured.examples, names))
        for batch in captured.candidates:
            self._candidates.write(candidate_columns(batch, names))

    def close(self, last: int) -> Part:
        """Let the files appear, up to a round; return what the manifest says of them."""
        part = Part(self._number, self._examples.rows, self._candidates.rows, last)
        self._examples.close()
        self._candidates.close()
        for name in (part.examples_file, part.candidates_file):
            flush(self._path / name)
        flush(self._path)
        return part

    def abandon(self) -> None:
        """Leave nothing of the part."""
        self._examples.abandon()
        self._candidates.abandon()


def examples(path: Path, index: RowIndex) -> Iterator[ExampleBatch]:
    """Yield the examples of a folder in their order, a row group at a time; raises UnusableSource.

    `index` gives the rows that the features name: `model.ids`, whose vectors they are to be read with.
    """
    for part in load(path).parts:
        yield from read_examples(path / part.examples_file, index)


def rounds(path: Path, part: Part, index: RowIndex) -> Iterator[Round]:
    """Yield the rounds of one part in their order; raises UnusableSource. Two row groups are held at a time.

    Rows are asked of `index` when they are needed: who reads may forget accounts that are gone in between.
    """
    of_examples = _Runs(read_examples(path / part.examples_file, index))
    of_candidates = _Runs(read_candidates(path / part.candidates_file, index))
    while (number := min(of_examples.next, of_candidates.next)) < _END:
        met, encoded = of_examples.take(number), of_candidates.take(number)
        yield Round(number, join(met) if met else None, join(encoded) if encoded else None)


class _Runs(Generic[_B]):
    """Batches cut into their rounds."""

    def __init__(self, batches: Iterator[_B]) -> None:
        self._batches: Iterator[_B] = batches
        self._batch: _B | None = next(batches, None)

    @property
    def next(self) -> int:
        """The round of the next row, `_END` if there is none."""
        return _END if self._batch is None else int(self._batch.rounds[0])

    def take(self, number: int) -> list[_B]:
        """Return what there is of a round, if it is the next one."""
        found: list[_B] = []
        while (batch := self._batch) is not None and batch.rounds[0] == number:
            end = int(np.searchsorted(batch.rounds, number, side="right"))
            found.append(cut(batch, slice(0, end)))
            whole = end == len(batch.rounds)
            self._batch = next(self._batches, None) if whole else cut(batch, slice(end, None))
        return found
