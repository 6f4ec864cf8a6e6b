"""The topic of a model's steps: weights and changed id vectors, compacted, so that the whole of it is the model.

A step is published as one record for each changed account, then one for the weights, which makes it valid: a reader
applies nothing before it. After a compaction a reader misses old records whose accounts come again further on; it
ends at the same model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from struct import Struct
from typing import Final

import msgspec

from kithstream.models.delta import Delta, DeltaError
from kithstream.models.model import Model

STEP: Final = b"\0step"  # key of the weights: no account holds a NUL
_run = Struct(">Q")

Record = tuple[bytes, bytes | None]  # key, value


class Step(msgspec.Struct, frozen=True, array_like=True):
    """The weights as of a step (msgpack). They close the records of accounts before them."""

    run: int  # of the trainer: one that was replaced goes on with a lower one, and is not heard
    schema: str
    step: int
    offset: int  # records of the training log that are in it
    as_of: int  # microseconds, of the newest example
    weights: dict[str, bytes]
    ranker: bytes  # `Ranker.packed`
    ranker_schema: str


_pack = msgspec.msgpack.Encoder().encode
_step = msgspec.msgpack.Decoder(Step).decode


def records(delta: Delta, run: int, offset: int, as_of: int) -> Iterator[Record]:
    """Yield what to publish of a delta, the weights last."""
    for account in delta.expired:
        if account not in delta.accounts:
            yield account.encode(), None
    size = len(delta.target) // max(len(delta.accounts), 1)
    head = _run.pack(run)
    for at, account in enumerate(delta.accounts):
        part = slice(at * size, (at + 1) * size)
        yield account.encode(), head + delta.target[part] + delta.source[part]
    yield (
        STEP,
        _pack(
            Step(
                run,
                delta.schema_hash,
                delta.step,
                offset,
                as_of,
                delta.weights,
                delta.ranker,
                delta.ranker_hash,
            )
        ),
    )


class Follower:
    """Keeps a model at the newest published step. Whoever reads the model beside it holds a lock for `apply`."""

    def __init__(self, model: Model) -> None:
        self.run = 0  # the greatest that was heard
        self.step = model.step
        self.offset = 0  # of the training log, that the model stands for
        self.as_of = 0
        self.unusable = 0  # records that are none of ours
        self.at = 0  # of the topic, to be read next
        self._model = model
        self._waiting: dict[str, bytes | None] = {}
        self._ready: list[Delta] = []

    def feed(self, pairs: Iterable[tuple[bytes | None, bytes | None]]) -> bool:
        """Take records in their order; True if `apply` has something to do."""
        size = 8 * self._model.ids.dim
        for key, value in pairs:
            if key is None:
                self.unusable += 1
            elif key == STEP:
                self._close(value)
            elif value is None:
                self._waiting[key.decode(errors="replace")] = None
            elif len(value) != _run.size + size:
                self.unusable += 1
            elif _run.unpack_from(value)[0] >= self.run:
                self._waiting[key.decode(errors="replace")] = value[_run.size :]
        return bool(self._ready)

    def apply(self) -> int:
        """Move the model to the newest step that is whole; return it."""
        for delta in self._ready:
            step = self._model.step
            self._model.apply(msgspec.structs.replace(delta, since=step))
        self._ready.clear()
        return self._model.step

    def _close(self, value: bytes | None) -> None:
        try:
            found = _step(value or b"")
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            self.unusable += 1
            return
        waiting, self._waiting = self._waiting, {}
        if found.run < self.run:
            return
        kept = {name: raw for name, raw in waiting.items() if raw is not None}
        half = 4 * self._model.ids.dim
        delta = Delta(
            lineage=self._model.lineage,
            schema_hash=found.schema,
            since=self._model.step,
            step=found.step,
            weights=found.weights,
            accounts=tuple(kept),
            target=b"".join(raw[:half] for raw in kept.values()),
            source=b"".join(raw[half:] for raw in kept.values()),
            ranker=found.ranker,
            ranker_hash=found.ranker_schema,
            expired=tuple(name for name, raw in waiting.items() if raw is None),
        )
        try:
            self._model.fits(delta)
        except DeltaError:
            self.unusable += 1  # of a trainer of another build, or of nobody: the model stays as it is
            return
        self._ready.append(delta)
        self.run, self.step = found.run, found.step
        self.offset, self.as_of = found.offset, found.as_of
