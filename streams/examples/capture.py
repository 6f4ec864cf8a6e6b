"""A stream folded once more, and what can be learned of it: the chain of the runtime without towers and index.

A round is what `Embedded.pump` does, in its order, so that a trainer that reads what a round returns, in that order,
ends where one ends that learned on the way.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

import msgspec
import numpy as np

from kithstream.models.ages import TICK
from kithstream.models.features import (
    ConsumerFeatures,
    ProducerFeatures,
    Rows,
    consumer_features,
    producer_features,
)
from kithstream.models.ids import IdVectors
from kithstream.models.model import Producers
from kithstream.models.producers import ProducerTable
from kithstream.streams.communities.known import KnownFor
from kithstream.streams.config import Config, ExamplesConfig
from kithstream.streams.engine.actors import Record
from kithstream.streams.engine.engine import Engine
from kithstream.streams.events.signals import BY_NAME, SIGNALS, Group, Kind
from kithstream.streams.events.wire import Event
from kithstream.streams.examples.batches import (
    ENGAGED,
    IGNORED,
    POSITIVE,
    CandidateBatch,
    ExampleBatch,
    joined,
    some,
)
from kithstream.streams.examples.impressions import Block, Closed, Engagement, Impressions, Shown, block_of
from kithstream.streams.serve.vectors import Vectors, every_account
from kithstream.streams.state import ledger
from kithstream.streams.state.protocol import Column, Store

FOLLOW: Final = "follow"
IMPRESSION: Final = "impression"
ALL: Final = 1 << 30  # no bound on what is encoded again
# What may be a positive example, and what closes an impression as engaged.
ENGAGING: Final = tuple(s.name for s in SIGNALS if s.group in (Group.FOLLOW, Group.ENGAGE))

_NO_VECTORS: Final = np.zeros((0, 0), np.float32)


class Polled(NamedTuple):
    """A record and where it lies: its partition and its offset there."""

    partition: int
    offset: int
    record: Record


class Captured(NamedTuple):
    """What a round gave, in the order in which it is to be learned."""

    examples: ExampleBatch | None
    candidates: Sequence[CandidateBatch]


class Counts(msgspec.Struct):
    """What went through, and what became of it."""

    events: int = 0
    refused: int = 0  # dead letters
    strays: int = 0  # records in another partition than their actor's: a copy of each lies in its own
    positive: int = 0
    engaged: int = 0
    ignored: int = 0
    candidates: int = 0  # encodings
    forgotten: int = 0  # deleted accounts
    warming: int = 0  # what would be an example, but some partition had heard of what was still to come


class _Deed(NamedTuple):
    """An event of a poll that may become an example, or close one."""

    event: Event
    offset: int
    place: int  # among the captured features, -1 if they are not needed
    once: bytes  # key of an occurrence in the ledger, empty for a state edge


class _Noted(NamedTuple):
    """What was seen of a poll before it was folded."""

    deeds: Sequence[_Deed]
    consumers: ConsumerFeatures | None
    retracted: frozenset[tuple[str, str]]  # actor, event id
    newest: int  # time of the newest captured event, microseconds


class _Part(NamedTuple):
    """Examples of one partition's share of a round."""

    kinds: list[str]
    signals: list[str]
    times: list[int]
    offsets: list[int]
    partition: int
    block: Block
    as_of: int


def positive_signals(config: ExamplesConfig) -> tuple[str, ...]:
    """Return what makes a positive example; raises ValueError for a name that cannot."""
    names = tuple(name.strip() for name in config.signals.split(",") if name.strip())
    for name in names:
        if name not in ENGAGING:
            raise ValueError(f"examples.signals has {name!r}, expected some of {', '.join(ENGAGING)}")
    return names


class Capture:
    """Folds polls, and returns what there is to learn of each. One thread."""

    def __init__(
        self, stores: Sequence[Store], config: Config, *, salt: bytes, versions: Mapping[str, KnownFor]
    ) -> None:
        """Take over stores, which must be at rest; raises ValueError for `examples.signals` that cannot be."""
        self.engine = Engine(stores, config.engine, salt=salt, versions=versions)
        self.ids = IdVectors(0, 0, 0, 0.0)  # rows of accounts, and nothing learned of them
        self.producers = ProducerTable()
        self.counts = Counts()
        self.round = 0
        self.as_of = 0  # microseconds: the newest append time
        window = round(config.examples.window * 1_000_000)
        self.impressions = [Impressions(window, config.examples.open_impressions) for _ in stores]
        self.listed: set[str] = set()  # accounts whose vectors an index would hold
        self.vectors = Vectors(self.engine, _Features(self.ids), config.model, self)
        self._positive = frozenset(positive_signals(config.examples))
        self._keeps_candidates = config.examples.candidates
        self._encoded: list[CandidateBatch] = []
        # A checkpoint of one partition may know of another's log what lies behind that one's checkpoint.
        self._known = [max(p.heard.get(n, 0) for p in self.engine.partitions) for n in range(len(stores))]
        self._leaving: list[str] = []  # deleted, and named by what the last round returned

    def begin(self, as_of: int) -> Captured:
        """Encode every account of stores that are not empty, as a runtime does when it opens."""
        self.as_of = max(self.as_of, as_of)
        self._touch(self.engine.settle().touched)
        self.vectors.rebuild(self.as_of)
        return self._captured([])

    def release(self) -> None:
        """Let go of the rows of deleted accounts; batches that were returned before no longer tell who is who."""
        leaving, self._leaving = self._leaving, []
        self.ids.forget(leaving)

    def fold(self, polled: Sequence[Polled]) -> Captured:
        """Fold a poll and bring the state to rest. What was returned before must have been written down."""
        self.release()
        self.as_of = max(self.as_of, max(one.record.appended for one in polled))
        self.round += 1
        warming = any(p.applied < self._known[p.number] for p in self.engine.partitions)
        parts: list[_Part] = []
        for number in range(len(self.engine.partitions)):
            share = [one for one in polled if one.partition == number]
            if share:
                parts += self._fold(number, share)
        if warming:
            self.counts.warming += sum(len(part.kinds) for part in parts)
            parts = []
        engine = self.engine
        self.counts.events += len(polled)
        self._settle()
        while engine.waiting() or engine.working:
            self._settle()
        engine.compact()
        return self._captured(parts)

    # -- vectors' sink -----------------------------------------------------------------------------------------

    def write(self, rows: Rows, encoded: Producers, tick: int) -> None:
        """Take candidates as they are encoded."""
        self.producers.write(encoded.features)
        self.listed.update(rows.accounts)
        self.counts.candidates += len(rows.accounts)
        if self._keeps_candidates:
            self._encoded.append(self._candidates(encoded.features, gone=False))

    def delete(self, accounts: Sequence[str]) -> None:
        """Take note that accounts are nobody's candidates any more; what they were last is kept, as a trainer does."""
        self.listed.difference_update(accounts)

    def __contains__(self, account: object) -> bool:
        return account in self.listed

    # -- the two stages ----------------------------------------------------------------------------------------

    def _fold(self, number: int, share: Sequence[Polled]) -> Iterator[_Part]:
        """Fold one partition's share of a poll; yield its positives, then what it closed."""
        engine = self.engine
        partition, impressions = engine.partitions[number], self.impressions[number]
        watermark = partition.watermark
        shown: list[Shown] = []
        engaged: list[Engagement] = []
        retracted: set[tuple[str, str]] = set()
        positives: list[_Part] = []
        for run in self._runs(number, share):
            noted: list[_Noted] = []
            held: dict[bytes, bytes | None] = {}

            def before(
                events: Sequence[Event],
                run: Sequence[Polled] = run,
                noted: list[_Noted] = noted,
                held: dict[bytes, bytes | None] = held,
            ) -> None:
                noted.append(self._note(events, run))
                keys = [deed.once for deed in noted[0].deeds if deed.once]
                held.update(zip(keys, partition.store.get(Column.SAID, keys), strict=True))

            acted = engine.apply(number, [one.record for one in run], run[0].offset, before)
            self._touch(acted.touched)
            self.counts.refused += len(acted.dead)
            if not noted:
                continue
            after = dict(zip(held, partition.store.get(Column.SAID, list(held)), strict=True))
            said = {k for k in held if ledger.since(held[k]) < 0 <= ledger.since(after[k])}
            came = {(c.actor, c.target, c.family) for c in acted.changes if c.before < 0 <= c.after}
            deeds = _really(noted[0].deeds, said, came)
            retracted |= noted[0].retracted
            engaged += [
                Engagement(d.event.time, d.offset, d.event.actor, d.event.target, d.event.signal)
                for d in deeds
                if d.event.signal in _ENGAGING
            ]
            if noted[0].consumers is not None:
                positives += self._positives(number, deeds, noted[0])
                shown += self._shown(deeds, noted[0].consumers)
        closed = impressions.poll(shown, engaged, retracted, watermark, partition.watermark)
        yield from positives
        if closed:
            yield _closed(number, closed, self.as_of)

    def _runs(self, number: int, share: Sequence[Polled]) -> Iterator[list[Polled]]:
        """Yield records with consecutive offsets; those of other partitions' actors are left out."""
        run: list[Polled] = []
        for one in share:
            actor = _who(one.record.raw)
            if actor is not None and self.engine.route[actor.actor] != number:
                self.counts.strays += 1
                continue
            if run and one.offset != run[-1].offset + 1:
                yield run
                run = []
            run.append(one)
        if run:
            yield run

    def _note(self, events: Sequence[Event], run: Sequence[Polled]) -> _Noted:
        """What must be known of a poll's events while the rows are still as they were."""
        deeds: list[_Deed] = []
        actors: list[str] = []
        times: list[int] = []
        newest = 0
        for event, offset in zip(events, _offsets(events, run), strict=True):
            name = event.signal
            if name not in _ENGAGING and name != IMPRESSION:
                continue
            place = -1
            if name in self._positive or name == IMPRESSION:
                place = len(actors)
                actors.append(event.actor)
                times.append(event.time)
            if name in self._positive:
                newest = max(newest, event.time)
            deeds.append(_Deed(event, offset, place, _once(event)))
        retracted = frozenset((e.actor, e.retracts) for e in events if e.signal == "retract")
        features = None
        if actors:
            rows = self.vectors.reader.read(actors, times, unreciprocated=True)
            features = consumer_features(rows, self.ids)
        return _Noted(deeds, features, retracted, newest)

    def _positives(self, number: int, deeds: Sequence[_Deed], noted: _Noted) -> Iterator[_Part]:
        kept = [deed for deed in deeds if deed.event.signal in self._positive]
        if kept:
            assert noted.consumers is not None
            yield _Part(
                kinds=[POSITIVE] * len(kept),
                signals=[deed.event.signal for deed in kept],
                times=[deed.event.time for deed in kept],
                offsets=[deed.offset for deed in kept],
                partition=number,
                block=self._block(kept, noted.consumers),
                as_of=noted.newest,
            )

    def _shown(self, deeds: Sequence[_Deed], consumers: ConsumerFeatures) -> list[Shown]:
        kept = [deed for deed in deeds if deed.event.signal == IMPRESSION]
        if not kept:
            return []
        block = self._block(kept, consumers)
        return [
            Shown(d.event.time, d.offset, d.event.actor, d.event.target, d.event.id, block, place)
            for place, d in enumerate(kept)
        ]

    def _block(self, deeds: Sequence[_Deed], consumers: ConsumerFeatures) -> Block:
        """Features of the actors before the poll, and of the targets as they were last encoded."""
        targets = self.ids.rows_of([deed.event.target for deed in deeds])
        return Block(
            some(consumers, np.array([deed.place for deed in deeds])),
            self.producers.read(targets),
            self.producers.written(targets).tolist(),
        )

    def _settle(self) -> None:
        """Exchange, work, forget and encode, as `Embedded.pump` does behind its actors' stage."""
        engine = self.engine
        self._touch(engine.exchange().touched)
        read = engine.communities
        if engine.work():
            self._touch(engine.exchange().touched)
        if engine.communities != read:
            self.vectors.reader.forget(every_account(engine))
            self.vectors.rebuild(self.as_of)
        self._forget(engine.take_left())
        self.vectors.flush(self.as_of, ALL)

    def _touch(self, accounts: Iterable[str]) -> None:
        self.vectors.touch(accounts)

    def _forget(self, accounts: Sequence[str]) -> None:
        if not accounts:
            return
        self.counts.forgotten += len(accounts)
        gone = self.ids.rows_of(accounts)
        if self._keeps_candidates:
            self._encoded.append(self._candidates(ProducerTable().read(gone), gone=True))
        for impressions in self.impressions:
            impressions.forget(accounts, gone.tolist())
        self.producers.drop(gone)
        self._leaving += accounts

    # -- what is handed on -------------------------------------------------------------------------------------

    def _candidates(self, features: ProducerFeatures, *, gone: bool) -> CandidateBatch:
        n = len(features.rows)
        return CandidateBatch(
            rounds=np.full(n, self.round),
            as_of=np.full(n, self.vectors.tick * TICK),
            gone=np.full(n, gone),
            producers=features,
        )

    def _captured(self, parts: Sequence[_Part]) -> Captured:
        encoded, self._encoded = self._encoded, []
        if not parts:
            return Captured(None, encoded)
        learned = max((part.as_of for part in parts if POSITIVE in part.kinds), default=0)
        kinds = [kind for part in parts for kind in part.kinds]
        counts = self.counts
        counts.positive += kinds.count(POSITIVE)
        counts.engaged += kinds.count(ENGAGED)
        counts.ignored += kinds.count(IGNORED)
        batch = ExampleBatch(
            kinds=kinds,
            signals=[signal for part in parts for signal in part.signals],
            labels=np.array([kind != IGNORED for kind in kinds], np.int8),
            times=np.array([time for part in parts for time in part.times], np.int64),
            rounds=np.full(len(kinds), self.round),
            as_of=np.concatenate(
                [np.full(len(p.kinds), learned if POSITIVE in p.kinds else p.as_of) for p in parts]
            ),
            partitions=np.concatenate([np.full(len(p.kinds), p.partition, np.int32) for p in parts]),
            offsets=np.array([offset for part in parts for offset in part.offsets], np.int64),
            encoded=np.array([seen for part in parts for seen in part.block.encoded], np.bool_),
            consumers=joined([part.block.consumers for part in parts]),
            producers=joined([part.block.producers for part in parts]),
        )
        return Captured(batch, encoded)


class _Features:
    """Stands where a model does: features, and no vectors of them."""

    def __init__(self, ids: IdVectors) -> None:
        self._ids = ids

    def encode_producers(self, rows: Rows) -> Producers:
        return Producers(_NO_VECTORS, 0, producer_features(rows, self._ids))


class _Who(msgspec.Struct):
    """As much of an event as tells where it belongs."""

    id: str
    actor: str


_decode: Final = msgspec.json.Decoder(_Who).decode
_ENGAGING: Final = frozenset(ENGAGING)


def _who(raw: bytes) -> _Who | None:
    """None for a record that is no event: the engine says why."""
    try:
        return _decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _offsets(events: Sequence[Event], run: Sequence[Polled]) -> Iterator[int]:
    """The offsets of events, which are the records of a run in their order without those that were refused."""
    records = iter(run)
    for event in events:
        for one in records:
            who = _who(one.record.raw)
            if who is not None and (who.id, who.actor) == (event.id, event.actor):
                yield one.offset
                break


def _once(event: Event) -> bytes:
    """The key under which an event's id is in the ledger; empty for a follow, whose edge alone decides."""
    if event.signal == FOLLOW:
        return b""
    signal = BY_NAME[event.signal]
    item = event.item if signal.item or signal.kind is Kind.OCCURRENCE else ""
    day = event.time // ledger.DAY
    return ledger.once_key(day, event.actor, event.id, signal.family, event.target, item)


def _really(deeds: Sequence[_Deed], said: set[bytes], came: set[tuple[str, str, int]]) -> list[_Deed]:
    """Those that changed what is known: edges that came about, occurrences that were not there before."""
    found: list[_Deed] = []
    for deed in deeds:
        signal = BY_NAME[deed.event.signal]
        if deed.once:
            if deed.once not in said:
                continue
            said.discard(deed.once)  # the same event again
        edge = deed.event.actor, deed.event.target, signal.family
        if signal.kind is Kind.OCCURRENCE or edge in came:
            found.append(deed)
            if not signal.item:
                came.discard(edge)  # followed again in one batch: it came about once
    return found


def _closed(number: int, closed: Sequence[Closed], as_of: int) -> _Part:
    shown = [one.shown for one in closed]
    return _Part(
        kinds=[ENGAGED if one.signal else IGNORED for one in closed],
        signals=[one.signal or IMPRESSION for one in closed],
        times=[one.time for one in shown],
        offsets=[one.offset for one in shown],
        partition=number,
        block=block_of(shown),
        as_of=as_of,
    )
