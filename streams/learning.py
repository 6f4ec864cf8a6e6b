"""The training log: what was encoded and who was followed, in one order, and the trainer that reads it.

A model is a function of this log. How a consumer batches it does not matter, a follow that comes again counts once, and
a trainer that goes on from its checkpoint ends in the same bytes as one that never stopped.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, NamedTuple, Self

import msgspec
import numpy as np

from kithstream.models import checkpoint, named
from kithstream.models.encode import encode_consumers
from kithstream.models.features import (
    SCHEMA,
    ConsumerFeatures,
    ProducerFeatures,
    Rows,
    concatenate,
    consumer_features,
)
from kithstream.models.ids import IdVectors
from kithstream.models.model import Model
from kithstream.models.named import Named
from kithstream.models.ranker import Ranked
from kithstream.models.train import Examples, OnlineTrainer, TrainerConfig
from kithstream.streams.config import RankingConfig
from kithstream.streams.engine.actors import Change
from kithstream.streams.events.wire import Event
from kithstream.streams.looking import Asked, Looker, Told
from kithstream.streams.serve.exclusions import FOLLOW
from kithstream.streams.serve.facts import Neighbours
from kithstream.streams.state.ledger import DAY
from kithstream.streams.state.reader import Reader

_OFFSET: Final = "log.offset"
_FOLDED: Final = "log.folded"


class Encoded(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Candidates as they were encoded; training reads them like this until the next record of them."""

    as_of: int  # microseconds
    producers: Named
    accounts: Sequence[str] = ()  # n, and what pairs with them are ranked by, where they are
    told: Told | None = None


class Others(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Accounts that are nobody's candidates, with their newest neighbours, where pairs are ranked."""

    accounts: Sequence[str]
    near: Neighbours


class Followed(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Follows that came about, oldest first: who asked, as seen before the follow, and whom it chose."""

    as_of: int  # microseconds
    partition: int
    offsets: Sequence[int]  # n, of the events in the partition's engagements
    consumers: Named  # n
    targets: Sequence[str]  # n
    asked: Sequence[Asked | None] = ()  # n, of those from which the ranker learns, where it does


class Forgotten(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Accounts that were deleted."""

    accounts: Sequence[str]


Logged = Encoded | Others | Followed | Forgotten
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Logged).decode


class Captured(NamedTuple):
    """Accounts that are about to follow somebody, as they are before they do."""

    consumers: ConsumerFeatures  # n
    actors: Sequence[str]  # n
    targets: Sequence[str]  # n
    offsets: Sequence[int]  # n
    as_of: int  # microseconds
    rows: Rows  # what the features were made of
    looked: Sequence[Ranked | None] = ()  # n, who would have been ranked before the follow, for some of them
    asked: Sequence[Asked | None] = ()  # n, what that is found by, where it is not looked for at once

    def only(self, kept: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> Captured:
        """Return the examples that are marked; rows stay those of the whole batch."""
        at = np.flatnonzero(kept).tolist()
        return Captured(
            ConsumerFeatures._make(values[kept] for values in self.consumers),
            [self.actors[i] for i in at],
            [self.targets[i] for i in at],
            [self.offsets[i] for i in at],
            self.as_of,
            self.rows,
            [self.looked[i] for i in at] if self.looked else (),
            [self.asked[i] for i in at] if self.asked else (),
        )


class Learned(NamedTuple):
    """What a record did."""

    trained: int = 0
    loss: float = 0.0  # summed over the trained
    unusable: str = ""  # why the record was passed over


def capture(
    reader: Reader, ids: IdVectors, events: Sequence[Event], offsets: Sequence[int]
) -> Captured | None:
    """Return what the accounts that follow somebody look like before they do; None if nobody does."""
    follows = [(event, at) for event, at in zip(events, offsets, strict=True) if event.signal == "follow"]
    if not follows:
        return None
    actors, times = [e.actor for e, _ in follows], [e.time for e, _ in follows]
    rows = reader.read(actors, times, unreciprocated=True)
    features = consumer_features(rows, ids)
    targets, places = [e.target for e, _ in follows], [at for _, at in follows]
    return Captured(features, actors, targets, places, max(times), rows)


def came_about(captured: Iterable[Captured], changes: Iterable[Change]) -> list[Captured]:
    """Return of each batch the follows that changed something, each pair once; batches without any are left out."""
    came = {(c.actor, c.target) for c in changes if c.family == FOLLOW and c.before < 0 <= c.after}
    found = []
    for batch in captured:
        kept = np.zeros(len(batch.actors), np.bool_)
        for at, pair in enumerate(zip(batch.actors, batch.targets, strict=True)):
            if pair in came:
                came.remove(pair)
                kept[at] = True
        if kept.any():
            found.append(batch.only(kept))
    return found


def followed(partition: int, batch: Captured, ids: IdVectors) -> bytes:
    """Return the record of follows that came about."""
    packed = named.pack(batch.consumers, ids)
    return _encode(Followed(batch.as_of, partition, list(batch.offsets), packed, batch.targets, batch.asked))


def encoded(
    as_of: int,
    features: ProducerFeatures,
    ids: IdVectors,
    accounts: Sequence[str] = (),
    told: Told | None = None,
) -> bytes:
    """Return the record of candidates that were encoded."""
    return _encode(Encoded(as_of, named.pack(features, ids), accounts, told))


def others(accounts: Sequence[str], near: Neighbours) -> bytes:
    """Return the record of accounts that are nobody's candidates."""
    return _encode(Others(accounts, near))


def forgotten(accounts: Sequence[str]) -> bytes:
    """Return the record of accounts that were deleted."""
    return _encode(Forgotten(accounts))


class Learner:
    """A trainer that reads the log. `offset` is the next record; records must come in their order."""

    def __init__(
        self,
        trainer: OnlineTrainer,
        partitions: int,
        *,
        example_batch: int,
        idle_days: int,
        ranking: RankingConfig | None = None,
    ) -> None:
        """An account that was neither encoded nor in an example for `idle_days` loses what was learned of it.

        Without `ranking`, or where that has no ranker, the towers alone learn.
        """
        self.trainer = trainer
        model = trainer.model
        self.looker: Looker | None = None
        if ranking is not None and ranking.ranker:
            self.looker = Looker(ranking, model.dim, model.norm_bound)
        self.offset = 0
        self._folded = np.zeros(partitions, np.int64)  # follows of a partition below this offset were learned
        self._size = example_batch
        self._idle = idle_days * DAY
        self._swept = 0  # day of the last sweep

    @property
    def model(self) -> Model:
        """The model as it stands after `offset`."""
        return self.trainer.model

    def take(self, offset: int, raw: bytes) -> Learned:
        """Learn from a record; one that cannot be used is passed over and says why."""
        self.offset = offset + 1
        try:
            record = _decode(raw)
            if isinstance(record, Followed):
                return self._follow(record)
            if isinstance(record, Encoded):
                features = named.producers(record.producers, self.model.ids)
                told = record.told
                if self.looker is not None and told is not None and told.lineage == self.model.lineage:
                    self.looker.take(record.accounts, told)
                self.trainer.encoded(features, record.as_of)
            elif isinstance(record, Others):
                if self.looker is not None:
                    self.looker.others(record.accounts, record.near)
            else:
                self.trainer.forget(record.accounts)
                if self.looker is not None:
                    self.looker.forget(record.accounts)
            return Learned()
        except (ValueError, OverflowError, RecursionError) as error:  # NamedError, msgspec's are ValueErrors
            return Learned(unusable=str(error))

    def _follow(self, record: Followed) -> Learned:
        if not 0 <= record.partition < len(self._folded):
            return Learned(unusable=f"partition is {record.partition}, there are {len(self._folded)}")
        features = named.consumers(record.consumers, self.model.ids)
        if not len(features.rows) == len(record.targets) == len(record.offsets) > 0 or len(
            record.asked
        ) not in (0, len(record.targets)):
            return Learned(unusable=f"{len(features.rows)} accounts follow {len(record.targets)}")
        offsets = np.array(record.offsets, np.int64)
        new = np.flatnonzero(
            offsets >= self._folded[record.partition]
        )  # the rest was told by whoever folded it first
        self._folded[record.partition] = max(self._folded[record.partition], int(offsets.max()) + 1)
        trained, loss = 0, 0.0
        for first in range(0, len(new), self._size):
            part = new[first : first + self._size]
            consumers = ConsumerFeatures._make(values[part] for values in features)
            targets = [record.targets[at] for at in part.tolist()]
            ranked = self._look(record, part.tolist(), consumers)
            result = self.trainer.observe(Examples(consumers, targets, record.as_of), ranked=ranked)
            trained += result.trained
            loss += result.loss * result.trained if result.trained else 0.0
        self._sweep(record.as_of)
        return Learned(trained, loss)

    def _look(self, record: Followed, part: Sequence[int], consumers: ConsumerFeatures) -> list[Ranked]:
        """For some of the follows, everybody who would have been ranked before it."""
        if self.looker is None or not record.asked:
            return []
        asked = [(place, at) for place, at in enumerate(part) if record.asked[at] is not None]
        if not asked:
            return []
        places = [place for place, _ in asked]
        model = self.model
        some = ConsumerFeatures._make(values[places] for values in consumers)
        vectors = encode_consumers(model.tower, model.ids.tables, some)
        found = []
        for vector, (_, at) in zip(vectors, asked, strict=True):
            one = record.asked[at]
            assert one is not None
            ranked = self.looker.look(one, vector, record.targets[at])
            if ranked is not None:
                found.append(ranked)
        return found

    def _sweep(self, as_of: int) -> None:
        """Once a day of the log, forget who is idle."""
        if as_of // DAY > self._swept:
            self._swept = as_of // DAY
            self.trainer.expire(as_of - self._idle)

    def save(self, path: Path) -> None:
        """Write everything that is needed to go on, with the place in the log, as one file."""
        place = np.array([self.offset, self._swept], np.int64)
        facts = {} if self.looker is None else self.looker.arrays()
        self.trainer.save(path, {_OFFSET: place, _FOLDED: self._folded, **facts})

    @classmethod
    def load(
        cls,
        path: Path,
        partitions: int,
        config: TrainerConfig,
        *,
        example_batch: int,
        idle_days: int,
        ranking: RankingConfig | None = None,
    ) -> Self:
        """Go on from what `save` wrote; raises CheckpointError for a file that is none.

        One that was written without the ranker learning knows no candidates until they are encoded again.
        """
        saved = checkpoint.read(path, SCHEMA.hash)
        trainer = OnlineTrainer.restored(saved, path, config)
        learner = cls(trainer, partitions, example_batch=example_batch, idle_days=idle_days, ranking=ranking)
        learner.offset, learner._swept = saved.array(_OFFSET, (2,), np.int64).tolist()
        learner._folded = np.array(saved.array(_FOLDED, (partitions,), np.int64))
        if learner.looker is not None and "facts.names" in saved.arrays:
            learner.looker.restore(saved)
        return learner


def join(batches: Sequence[Captured]) -> ConsumerFeatures:
    """Return the consumers of several batches, one after the other."""
    return concatenate([batch.consumers for batch in batches])
