"""One lineage's way out of the stream process: whose vector is due, its encoding, the topic it goes to."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from kithstream.models.ages import TICK
from kithstream.models.features import ProducerFeatures, Rows
from kithstream.models.model import Model, Producers
from kithstream.streams import learning
from kithstream.streams.config import ModelConfig
from kithstream.streams.engine.partition import Partition
from kithstream.streams.engine.shard import Shards
from kithstream.streams.kafka import wire
from kithstream.streams.kafka.names import steps, vectors
from kithstream.streams.kafka.steps import Follower
from kithstream.streams.looking import Told
from kithstream.streams.serve.facts import Neighbours
from kithstream.streams.serve.marks import marks, pack
from kithstream.streams.serve.vectors import Vectors, beside, newest
from kithstream.streams.serve.whole import neighbours
from kithstream.streams.state.ledger import DAY
from kithstream.streams.state.protocol import Column

SLICE: Final = 1024  # accounts encoded at a time
TAUGHT: Final = 64  # encoded accounts of one record of the training log
_WHOLE: Final = b"lineage:"  # META, then the lineage: the vectors of every account were published
_VECTORS: Final = b"\1"  # the value of that: alone
_FACTS: Final = b"\2"  # with what pairs are ranked by
_AGED: Final = b"aged:"  # META, then the lineage: the tick until which its vectors have aged, and their topic
_aged = msgspec.msgpack.Decoder(tuple[int, str]).decode
_pack = msgspec.msgpack.Encoder().encode
Pairs = list[tuple[bytes, bytes | None]]


def _link(vector: wire.Vector, near: Neighbours, at: int) -> None:
    vector.followers, vector.followees = list(near.followers[at]), list(near.followees[at])
    vector.following = near.degrees[at]


class Outlet:
    """Encodes what changed and what has aged with one model. Used under the stream's lock."""

    def __init__(
        self,
        model: Model,
        follower: Follower,
        shards: Shards,
        config: ModelConfig,
        prefix: str,
        generations: Mapping[int, int],
        clock: Callable[[], int],
        *,
        pairs: bool,
    ) -> None:
        """`generations` are the group's by partition, as they stand at each encoding; `pairs` tells whether readers
        rank pairs."""
        self.model = model
        self.follower = follower
        self.topic = vectors(prefix, model.lineage)
        self.steps = steps(prefix, model.lineage)
        self.vectors = Vectors(shards, model, config, self)
        self.fresh: dict[int, tuple[int, list[int], bool]] = {}  # by partition: the progress published last
        self.identity = ""  # the topic's id as far as it is known: one that is another holds no vectors
        self._adopting: dict[int, set[str]] = {}  # by partition: accounts whose vector is not out yet
        self._aged: dict[int, int] = {}  # by partition: the tick until which its store knows of
        self.drained = 0  # the tick until which everything that has aged is encoded, 0 while something is not
        self._facts = pairs
        self._learn = config.learn
        self._shards = shards
        self._generations = generations
        self._clock = clock
        self._pairs: dict[int, Pairs] = {}
        self._lessons: list[bytes] = []

    @property
    def lineage(self) -> str:
        return self.model.lineage

    @property
    def adopting(self) -> int:
        """Accounts that this lineage has no vector of yet."""
        return sum(map(len, self._adopting.values()))

    def open(self, partition: Partition) -> None:
        """Take over a partition: its marked accounts are due, the others when they have aged, or all at once if
        this lineage never was in it or nobody knows how far they have aged."""
        due = self.vectors
        due.advance(self._clock())
        dirty = partition.dirty()
        told, raw = partition.store.get(Column.META, [self._key, self._key_of_aged])
        whole = told == _FACTS or (told is not None and not self._facts)
        aged, identity = (0, "") if raw is None else _aged(raw)
        if whole and aged and identity == self.identity:
            self.drained, self._aged[partition.number] = 0, aged
            accounts, ages = partition.ages(due.tick)
            due.ageing.resume(dict(zip(accounts, newest(due.tick, ages), strict=True)), min(aged, due.tick))
        else:
            # Paths lead through those, too, that are nobody's candidates.
            everyone = partition.listable() if whole or not self._facts else partition.accounts()
            if not whole:
                self._adopting[partition.number] = everyone
            self.begin_anew(partition, everyone)
        due.ageing.adopt(dirty, due.tick)
        due.touch(dirty)

    def begin_anew(self, partition: Partition, everyone: Iterable[str]) -> None:
        """Let all of a partition be due at once, whoever published what of it."""
        self.drained = 0
        self._aged.pop(partition.number, None)
        partition.store.write({Column.META: {self._key_of_aged: None}})
        self.vectors.ageing.adopt(everyone, self.vectors.tick)

    def close(self, number: int) -> None:
        """Let go of a partition."""
        self.fresh.pop(number, None)
        self._adopting.pop(number, None)
        self._aged.pop(number, None)
        self.vectors.forget_others()

    def whole(self, number: int) -> bool:
        """True if every account of a partition has a published vector of this lineage."""
        return number not in self._adopting

    def encode(self, most_aged: int, held: Collection[int] = ()) -> tuple[list[str], bool]:
        """Encode what is due; return those accounts, and whether more have aged than were taken.

        What changed in partitions that are held stays due, and so does what has aged while any is. Beside what changed
        it is no more of what has aged than of that, but for a few.
        """
        due, route = self.vectors, self._shards.route
        changed = {account for account in due.dirty if not held or route[account] not in held}
        due.dirty -= changed
        if changed:
            most_aged = beside(len(changed), most_aged)
        old = [] if held else due.ageing.due(due.tick, most_aged)
        dirty, aged = sorted(changed), [account for account in old if account not in changed]
        full = len(dirty) // SLICE * SLICE
        for first in range(0, full, SLICE):
            due.encode(dirty[first : first + SLICE])
        due.encode(dirty[full:], aged)  # together: a batch of few costs much of one of many
        if self._facts:
            self._others([account for account in (*dirty, *aged) if account not in due.ageing])
        more = len(old) == most_aged
        if not more and not held:
            self.drained = due.tick
        return [*dirty, *aged], more

    def published(self, encoded: Iterable[str]) -> None:
        """Take note that vectors are out; write down when every account of a partition has one."""
        gone = set(encoded) if self._adopting else set()
        for number, left in list(self._adopting.items()):
            left -= gone
            if not left:
                del self._adopting[number]
                value = _FACTS if self._facts else _VECTORS
                self._shards[number].partition.store.write({Column.META: {self._key: value}})

    def aged(self, partition: Partition, tick: int) -> None:
        """Take note that the brokers have all of a partition that had aged by a tick; write it down once a tick."""
        number = partition.number
        shard = self._shards.get(number)
        if shard is None or shard.partition is not partition:  # given away meanwhile
            return
        if (
            tick
            and tick == self.drained
            and self.identity
            and self.whole(number)
            and tick != self._aged.get(number)
        ):
            self._aged[number] = tick
            partition.store.write({Column.META: {self._key_of_aged: _pack((tick, self.identity))}})

    def end(self) -> None:
        """Forget in the stores that this lineage was whole: nothing of it is published from now on."""
        for partition in self._shards.here():
            partition.store.write({Column.META: {self._key: None, self._key_of_aged: None}})

    @property
    def _key(self) -> bytes:
        return _WHOLE + self.lineage.encode()

    @property
    def _key_of_aged(self) -> bytes:
        return _AGED + self.lineage.encode()

    # -- the sink of its vectors -----------------------------------------------------------------------------

    def write(self, rows: Rows, encoded: Producers, tick: int) -> None:
        now = self._clock()
        glances = self.vectors.reader.glance(rows.accounts, now)
        raw = encoded.vectors.astype("<f4", copy=False)
        labels, route = rows.languages.tolist(), self._shards.route
        marked, near = self._told(rows)
        for at, (account, seen) in enumerate(zip(rows.accounts, glances, strict=True)):
            number = route[account]
            vector = wire.Vector(
                self._generations[number],
                tick,
                encoded.step,
                labels[at],
                now // DAY,
                seen.gained,
                list(seen.followers),
                raw[at].tobytes(),
            )
            if near is not None:
                vector.marks = marked[at]
                _link(vector, near, at)
            self._pairs.setdefault(number, []).append((account.encode(), _pack(vector)))
        if self._learn:
            self._teach(rows, encoded, tick, raw, marked, near)

    def _teach(
        self,
        rows: Rows,
        encoded: Producers,
        tick: int,
        raw: NDArray[np.float32],
        marked: Sequence[bytes],
        near: Neighbours | None,
    ) -> None:
        """Note what the training log is told of candidates that were encoded."""
        features = encoded.features
        for first in range(0, len(features.rows), TAUGHT):
            some = slice(first, first + TAUGHT)
            part = ProducerFeatures._make(values[some] for values in features)
            told = None
            if near is not None:
                of_some = Neighbours._make(values[some] for values in near)
                told = Told(self.lineage, raw[some].tobytes(), marked[some], of_some)
            accounts = rows.accounts[some] if told is not None else ()
            self._lessons.append(learning.encoded(tick * TICK, part, self.model.ids, accounts, told))

    def _told(self, rows: Rows) -> tuple[Sequence[bytes], Neighbours | None]:
        """What pairs with candidates are ranked by, if readers rank pairs."""
        return (pack(marks(rows)), self._neighbours(rows.accounts)) if self._facts else ((), None)

    def delete(self, accounts: Sequence[str]) -> None:
        for account in accounts:
            self._withdraw(account)

    def _others(self, accounts: Sequence[str]) -> None:
        """Tell the neighbours of accounts that are nobody's candidates; withdraw those that have none."""
        near = self._neighbours(accounts)
        for at, account in enumerate(accounts):
            number = self._shards.route[account]
            if self._shards[number].partition.is_deleted(account) or not (
                near.followers[at] or near.followees[at]
            ):
                self._withdraw(account)
            else:
                dead = self._dead(number)
                _link(dead, near, at)
                self._pairs.setdefault(number, []).append((account.encode(), _pack(dead)))
        for first in range(0, len(accounts) if self._learn else 0, TAUGHT):
            some = slice(first, first + TAUGHT)
            part = Neighbours._make(values[some] for values in near)
            self._lessons.append(learning.others(accounts[some], part))

    def _withdraw(self, account: str) -> None:
        number, key = self._shards.route[account], account.encode()
        dead = self._dead(number)
        dead.deleted = self._shards[number].partition.is_deleted(account)
        self._pairs.setdefault(number, []).extend(((key, _pack(dead)), (key, None)))

    def _dead(self, number: int) -> wire.Vector:
        return wire.Vector(self._generations[number], self.vectors.tick, self.model.step, 0, 0, 0, [], b"")

    def _neighbours(self, accounts: Sequence[str]) -> Neighbours:
        by_partition: dict[int, list[str]] = {}
        for account in accounts:
            by_partition.setdefault(self._shards.route[account], []).append(account)
        found: dict[str, tuple[Sequence[str], Sequence[str], int]] = {}
        for number, those in by_partition.items():
            found.update(
                zip(those, zip(*neighbours(self._shards[number].partition, those), strict=True), strict=True)
            )
        near = [found[account] for account in accounts]
        return Neighbours([one[0] for one in near], [one[1] for one in near], [one[2] for one in near])

    def __contains__(self, account: object) -> bool:
        return account in self.vectors.ageing

    def take(self) -> tuple[dict[int, Pairs], list[bytes]]:
        """Return what was encoded since, by partition, and what the training log is told of it."""
        pairs, self._pairs = self._pairs, {}
        lessons, self._lessons = self._lessons, []
        return pairs, lessons
