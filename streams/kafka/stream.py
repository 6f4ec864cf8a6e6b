"""The stream process between Faust and the brokers: owned partitions, folded, exchanged, encoded, published.

engagements -> out-ledger -> frames on `edges` -> in-ledger -> rows -> towers -> `producer-vectors`

Faust's agents hand in fetches; nothing here knows Faust. Everything that is awaited under the lock is a broker's
acknowledgement, so that a partition is never given away with half of a batch done.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

import msgspec

from kithstream.models.model import Model
from kithstream.streams import learning, manifest
from kithstream.streams.communities import folder
from kithstream.streams.config import Config
from kithstream.streams.engine.actors import Acted, DeadLetter, Decoded, Record
from kithstream.streams.engine.partition import APPLIED, LAYOUT, UPGRADED, Partition
from kithstream.streams.engine.shard import Shard, Shards
from kithstream.streams.engine.targets import Heard
from kithstream.streams.errors import GapInLog, InvalidEvent, StoreRefused, Unreachable
from kithstream.streams.events import wire as events
from kithstream.streams.events.signals import CONTROLS, SIGNALS
from kithstream.streams.kafka import dead_letters, wire
from kithstream.streams.kafka.checkpoints import Checkpoints
from kithstream.streams.kafka.names import Topics
from kithstream.streams.kafka.outlet import Outlet, Pairs
from kithstream.streams.kafka.producer import Producer
from kithstream.streams.kafka.steps import Follower
from kithstream.streams.kafka.topics import Ends
from kithstream.streams.kafka.transport import Fetch
from kithstream.streams.looking import Asking
from kithstream.streams.serve.vectors import Vectors
from kithstream.streams.state.protocol import Column
from kithstream.streams.state.reader import Reader
from kithstream.streams.state.store import RocksStore

_log = logging.getLogger(__name__)
_pack = msgspec.msgpack.Encoder().encode

HELD: Final = 30.0  # seconds at most that a partition which was taken over is folded without publishing
REPLAYED: Final = 50_000  # records that are rather replayed than a checkpoint copied
WORD: Final = 0.002  # seconds from a write to the word of it
_EXCLUDING: Final = frozenset(signal.family for signal in SIGNALS if signal.excludes)
_TOPIC: Final = b"topic:"  # META, then a topic's name: the id of the one that the state was folded from
_GENERATION: Final = b"generation"  # META: the greatest that vectors were published under
_ACCOUNT_SIGNALS: Final = frozenset(CONTROLS) - {"retract"}


def _unheard(_: float) -> None:
    pass


class _Hold(NamedTuple):
    """What a partition that was taken over has to catch up with before its vectors are published."""

    engagements: int
    edges: int
    until: float  # monotonic


def _unknown(_: Sequence[str]) -> Mapping[str, str]:
    return {}


class Answering(Protocol):
    """The retrieval process as the stream process sees it."""

    def tell(self, message: wire.ToRetrieval) -> None:
        """Put a message on its way."""
        ...

    async def release(self, number: int) -> None:
        """Return once nothing of a partition's store is held open there."""
        ...


class Came(Protocol):
    """What is read of a record beside its bytes."""

    @property
    def timestamp(self) -> int: ...  # milliseconds

    @property
    def key(self) -> bytes | None: ...


class Controlled(NamedTuple):
    """The same of a record that Faust has unpacked."""

    timestamp: int
    key: bytes | None


class Counts(NamedTuple):
    """What has happened since the process started."""

    records: int
    accepted: int
    moved: int
    dead: Mapping[str, int]  # by reason
    vectors: int
    missing: int  # fetches thrown away, since something before them was missing


class Stream:
    """The partitions that this worker owns. One event loop; `lock` is held for a fetch, a flush, a hand-over."""

    def __init__(
        self,
        config: Config,
        names: Topics,
        model: Model,
        follower: Follower,
        producer: Producer,
        answering: Answering,
        *,
        worker: str,
        salt: bytes,
        clock: Callable[[], int],
        offsets: Callable[[str, Collection[int]], Awaitable[Ends]],
        identities: Callable[[Sequence[str]], Mapping[str, str]] = _unknown,
        folded: Callable[[float], None] = _unheard,
        flushed: Callable[[float], None] = _unheard,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`follower` keeps `model`; `folded` and `flushed` hear how many seconds a fetch and a flush took.

        `identities` asks the brokers for the ids of topics: one that was created anew under its name is another.
        """
        self.shards = Shards(config.engine.partitions, config.engine)
        self.lock = asyncio.Lock()
        self._publishing = asyncio.Lock()  # held by one flush; taken before `lock`
        self._generations: dict[int, int] = {}  # by partition, as vectors carry it
        self.rebalancing = True
        self._config = config
        self._names = names
        self._producer = producer
        self._answering = answering
        self._worker = worker
        self._salt = salt
        self._clock = clock
        self._offsets = offsets
        self._identities = identities
        self._folded = folded
        self._flushed = flushed
        self._monotonic = monotonic
        self._learn = config.model.learn
        self._asking = Asking(self.shards, config.ranking, config.model.seed)
        self.outlets: list[
            Outlet
        ] = []  # the lineage that is served, and one that is being filled or was served
        self.add(model, follower)
        data = Path(config.worker.data)
        self._versions, self._served = folder.served(data / folder.NAME, config.engine.communities)
        checkpoints = config.worker.checkpoints
        self._checkpoints = Checkpoints(
            Path(checkpoints) if checkpoints else None, config.worker.checkpoints_kept
        )
        self._checkpointed: dict[int, float] = {}
        self._sent: dict[int, int] = {}  # by partition: frames up to this number are on their way
        self._targets: dict[
            int, tuple[int, int]
        ] = {}  # what was there when it was assigned: engagements, edges
        self._held: dict[int, _Hold] = {}  # partitions whose vectors are not published yet
        self._written: set[int] = set()
        self._due = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._records = self._accepted = self._moved = self._published = self._missing = 0
        self._dead: dict[str, int] = {}

    # -- ownership -------------------------------------------------------------------------------------------

    async def assigned(self, numbers: Collection[int], generation: int) -> None:
        """Own exactly these partitions from now on; raises StoreRefused rather than lose anything."""
        async with self._publishing, self.lock:
            for number in sorted(set(self.shards) - set(numbers)):
                await self._close(number)
            new = sorted(set(numbers) - set(self.shards))
            engagements = await self._offsets(self._names.engagements, numbers)
            edges = await self._offsets(self._names.edges, numbers)
            identities = await self.identify()
            for number in new:
                self._open(number, engagements, edges)
            self._recognise(numbers, identities)
            self._targets = {n: (engagements.end[n], edges.end[n]) for n in numbers}
            until = self._monotonic() + HELD
            self._held |= {n: _Hold(engagements.end[n], edges.end[n], until) for n in new}
            for outlet in self.outlets:
                outlet.fresh.clear()
            for number, shard in sorted(self.shards.items()):
                path = str(self._path(number).absolute())
                self._generations[number] = _raised(shard.partition, generation)
                self._answering.tell(wire.Opened(number, path, self._generations[number]))
                await self._send_frames(shard, everyone=True)
            self.rebalancing = False
            self._due.set()
        self.tell_standing()

    async def revoked(self) -> None:
        """Finish what is under way: the partitions may be another worker's once this returns."""
        self.rebalancing = True
        self.tell_standing()
        async with self._publishing, self.lock:
            try:
                await asyncio.wait_for(self._producer.settle(), self._config.worker.session_seconds)
            except TimeoutError:
                _log.warning("partitions are given away before the brokers acknowledged all that was sent")

    async def close(self) -> None:
        """Publish what is due, make checkpoints, let go of everything."""
        await self.flush()
        async with self._publishing, self.lock:
            await self._producer.settle()
            for number in sorted(self.shards):
                await self._save(self.shards[number].partition)
                await self._close(number)

    def position(self, topic: str, number: int) -> int | None:
        """Return the offset that a partition's state reaches to; None if it is not here."""
        shard = self.shards.get(number)
        if shard is None:
            return None
        return shard.partition.applied if topic == self._names.engagements else shard.partition.edges

    def _path(self, number: int) -> Path:
        return Path(self._config.worker.data) / "state" / str(number)

    def _open(self, number: int, engagements: Ends, edges: Ends) -> None:
        path = self._path(number)
        store = self._store(number, path, engagements.first[number])
        try:
            partition = Partition(
                store,
                number,
                self.shards.route.partitions,
                self._config.engine,
                salt=self._salt,
                marks=True,
                versions=self._versions,
            )
            self._check(partition, engagements, edges)
            if self._served is not None:
                partition.adopt(self._served, 1 + max((s.record.turn for s in partition.slots), default=0))
        except BaseException:
            store.close()
            raise
        self.shards[number] = Shard(partition, self.shards.route)
        self._sent[number] = -1
        self._checkpointed[number] = time.monotonic()
        for outlet in self.outlets:
            outlet.open(partition)
        _log.info("partition %d opened at offset %d", number, partition.applied)

    def _store(self, number: int, path: Path, first: int) -> RocksStore:
        """Open the own store, unless a checkpoint spares much replaying or is all that the topic reaches back to."""
        if path.exists():
            store = RocksStore(path, self._config.store)
            (stored,) = store.get(Column.META, [APPLIED])
            applied = int.from_bytes(stored or b"", "big")
            ahead = max((found.applied - applied for found in self._checkpoints.of(number)), default=0)
            if ahead < (1 if applied < first else REPLAYED):
                return store
            store.close()
            _log.info("partition %d: the own store ends at offset %d, a checkpoint is newer", number, applied)
            aside = path.with_name(f"{path.name}.older")
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)
            restored = self._restored(number, path)
            if restored is not None:
                shutil.rmtree(aside, ignore_errors=True)
                return restored
            aside.rename(path)
            return RocksStore(path, self._config.store)
        return self._restored(number, path) or RocksStore(path, self._config.store)

    def _restored(self, number: int, path: Path) -> RocksStore | None:
        """Bring the newest checkpoint that is whole; None if there is none."""
        for found in self._checkpoints.of(number):
            store = None
            try:
                checked = self._checkpoints.restore(found, path)
                store = RocksStore(path, self._config.store)
                if not checked:
                    _refuse_unchecked(store)
                    store.verify()  # a damaged block would be found when it is read, after older copies are gone
            except (OSError, StoreRefused) as error:
                _log.error("checkpoint %s cannot be used: %s", found.path, error)
                if store is not None:
                    with contextlib.suppress(Exception):  # what is damaged cannot be flushed
                        store.close()
                shutil.rmtree(path, ignore_errors=True)
                continue
            _log.info("partition %d restored from %s", number, found.path)
            return store
        return None

    def _check(self, partition: Partition, engagements: Ends, edges: Ends) -> None:
        number = partition.number
        empty = not partition.applied and not partition.edges
        for topic, ends, at in (
            (self._names.engagements, engagements, partition.applied),
            (self._names.edges, edges, partition.edges),
        ):
            first, end = ends.first[number], ends.end[number]
            if at > end:
                raise StoreRefused(
                    f"partition {number}: the state ends at offset {at}, {topic} at {end}; the topic has lost records"
                )
            if at < first and not (empty and self._config.worker.accept_gap):
                raise GapInLog(
                    f"partition {number}: the state ends at offset {at}, {topic} begins at {first}; restore a "
                    f"checkpoint, or begin with what is left by -o worker.accept_gap=true"
                )
        if empty and self._config.worker.accept_gap:
            partition.applied, partition.edges = engagements.first[number], edges.first[number]

    async def identify(self) -> Mapping[str, str]:
        """Return the ids of the topics as far as the brokers tell them; the outlets take note of theirs."""
        topics = [self._names.engagements, self._names.edges, *(outlet.topic for outlet in self.outlets)]
        try:
            identities = await asyncio.to_thread(self._identities, topics)
        except Unreachable as error:
            _log.warning("the topics' ids are not known: %s", error)
            return {}
        for outlet in self.outlets:  # what is published since may lie in another topic of that name
            outlet.identity = outlet.identity or identities.get(outlet.topic, "")
        return identities

    def _recognise(self, numbers: Iterable[int], identities: Mapping[str, str]) -> None:
        """Raise StoreRefused unless the topics are those that the states were folded from."""
        for number in numbers:
            store = self.shards[number].partition.store
            for topic in (self._names.engagements, self._names.edges):
                identity = identities.get(topic)
                if identity is None:
                    continue
                (known,) = store.get(Column.META, [_TOPIC + topic.encode()])
                if known is None:
                    store.write({Column.META: {_TOPIC + topic.encode(): identity.encode()}})
                elif known != identity.encode():
                    raise StoreRefused(
                        f"partition {number}: {topic} was created anew: its id is {identity}, the state is of "
                        f"{known.decode()}; begin with all topics created anew, without states and checkpoints"
                    )

    async def _close(self, number: int) -> None:
        # Not here any more before it is let go of: a word of zombies that comes meanwhile would open it once more.
        partition = self.shards.pop(number).partition
        await self._answering.release(number)
        partition.forget_acknowledged()
        for kept in (self._sent, self._checkpointed, self._held):
            kept.pop(number, None)
        for outlet in self.outlets:
            outlet.close(number)
        partition.store.close()
        _log.info("partition %d closed at offset %d", number, partition.applied)

    # -- folding ---------------------------------------------------------------------------------------------

    async def act(self, number: int, fetch: Fetch) -> int | None:
        """Fold engagements; return the offset to read on from if something before the fetch is missing."""
        await self._room.wait()
        async with self.lock:
            shard = self.shards.get(number)
            if shard is None:
                return None
            partition = shard.partition
            if fetch.begins > partition.applied:
                self._missing += 1
                return partition.applied
            if fetch.ends < partition.applied:
                self._recognise([number], await self.identify())
            kept = [record for record in fetch.records if record.offset >= partition.applied]
            decoded = shard.decode(
                [Record(record.timestamp * 1000, record.value or b"") for record in kept],
                [record.offset for record in kept],
            )
            dead = list(decoded.dead)
            waiting = []
            if decoded.moved:
                waiting += await self._move(number, kept, decoded.moved, dead)
            waiting += await self._bury(self._names.engagements, number, dead, {r.offset: r for r in kept})
            if waiting:
                await asyncio.gather(*waiting)  # nothing accepted is lost: first there, then passed over here
            began = time.perf_counter()
            before = self._capture(decoded)
            acted = shard.act(decoded, max(fetch.ends, partition.applied))
            self._folded(time.perf_counter() - began)
            if before is not None:
                await self._teach(number, before, acted)
            self._records += len(kept)
            self._accepted += acted.accepted
            self._touch(acted.touched)
            await self._send_frames(shard)
            self._tell_written(number)
            self._tell_changed(number, acted)
        self._due.set()
        self._make_room()
        return None

    def _capture(self, decoded: Decoded) -> learning.Captured | None:
        """What those who are about to follow somebody look like; None where nothing is learned."""
        if not self._learn:
            return None
        served = self.outlets[0]
        reader = served.vectors.reader
        captured = learning.capture(reader, served.model.ids, decoded.events, decoded.offsets)
        if captured is None or not self._config.ranking.ranker:
            return captured
        follows = [(event.id, event.time) for event in decoded.events if event.signal == "follow"]
        return captured._replace(asked=self._asking.read(reader, captured.rows, follows))

    async def _teach(self, number: int, before: learning.Captured, acted: Acted) -> None:
        """Bring follows that came about into the training log. A process that dies right here loses them for it."""
        for batch in learning.came_about([before], acted.changes):
            raw = learning.followed(number, batch, self.outlets[0].model.ids)
            await self._producer.send(self._names.training, 0, raw)

    async def hear(self, number: int, fetch: Fetch) -> int | None:
        """Fold frames; return the offset to read on from if something before the fetch is missing."""
        async with self.lock:
            shard = self.shards.get(number)
            if shard is None:
                return None
            partition = shard.partition
            if fetch.begins > partition.edges:
                self._missing += 1
                return partition.edges
            if fetch.ends < partition.edges:
                self._recognise([number], await self.identify())
            kept = [record for record in fetch.records if record.offset >= partition.edges]
            began = time.perf_counter()
            try:
                heard = shard.hear([record.value or b"" for record in kept], fetch.ends)
            except ValueError:
                heard = await self._hear_apart(shard, kept, fetch.ends)
            self._folded(time.perf_counter() - began)
            self._touch(heard.touched)
            await self._send_frames(shard)
            self._tell_written(number)
            self._tell_heard(number, heard)
        self._due.set()
        self._make_room()
        return None

    async def _hear_apart(self, shard: Shard, kept: Sequence[Any], ends: int) -> Heard:
        """The slow path beside a frame that is none: it becomes a dead letter, the others are folded."""
        sound, letters = [], []
        for record in kept:
            try:
                shard.check(record.value or b"")
            except ValueError as error:
                letters.append((record, error))
            else:
                sound.append(record)
        await self._bury_frames(
            shard, letters
        )  # all at once: nothing is passed over before the brokers have them
        with contextlib.suppress(ValueError):
            return shard.hear([record.value or b"" for record in sound], ends)
        total = Heard(set(), [])  # one that can be read, but not be folded
        for record in sound:
            try:
                heard = shard.hear([record.value or b""], record.offset + 1)
            except ValueError as error:
                await self._bury_frames(shard, [(record, error)])
                continue
            total.touched.update(heard.touched)
            total.changes.extend(heard.changes)
        shard.hear([], ends)
        return total

    async def _bury_frames(self, shard: Shard, letters: Collection[tuple[Any, ValueError]]) -> None:
        records = {record.offset: record for record, _ in letters}
        dead = [
            DeadLetter(record.offset, "malformed_frame", str(error), record.value or b"")
            for record, error in letters
        ]
        await asyncio.gather(*await self._bury(self._names.edges, shard.partition.number, dead, records))

    async def control(self, number: int, offset: int, timestamp: int, raw: bytes) -> None:
        """Bring what may be said of an account into its own engagements, in their order; return when it is there."""
        appended = timestamp * 1000
        try:
            event = events.decode(raw, now=appended)
            if event.signal not in _ACCOUNT_SIGNALS:
                raise InvalidEvent(
                    "unknown_signal", "signal", event.signal, ", ".join(sorted(_ACCOUNT_SIGNALS))
                )
        except InvalidEvent as refused:
            letter = DeadLetter(offset, refused.reason, str(refused), raw)
            await asyncio.gather(
                *await self._bury(
                    self._names.control, number, [letter], {offset: Controlled(timestamp, None)}
                )
            )
            return
        place = self.shards.route[event.actor]
        await (await self._producer.send(self._names.engagements, place, raw, key=event.actor.encode()))

    def ask(self, number: int, requests: list[tuple[int, bytes]]) -> None:
        """Hand questions on to where they are answered."""
        self._answering.tell(wire.Asked(number, requests))

    async def _move(
        self,
        number: int,
        kept: Sequence[Any],
        moved: Iterable[tuple[int, Record, int]],
        dead: list[DeadLetter],
    ) -> list[asyncio.Future[object]]:
        """Publish strays to their own partition, once; those that were moved before are dead letters."""
        by_offset = {record.offset: record for record in kept}
        waiting = []
        for offset, record, place in moved:
            headers = by_offset[offset].headers
            if any(name == wire.MOVED for name, _ in headers):
                detail = f"partition is {number}, expected {place}: moved once and still astray"
                dead.append(DeadLetter(offset, "wrong_partition", detail, record.raw))
                continue
            self._moved += 1
            was = f"{number}:{offset}".encode()
            waiting.append(
                await self._producer.send(
                    self._names.engagements,
                    place,
                    record.raw,
                    key=by_offset[offset].key,
                    headers=[*headers, (wire.MOVED, was)],
                )
            )
        return waiting

    async def _bury(
        self, topic: str, number: int, dead: Iterable[DeadLetter], came: Mapping[int, Came]
    ) -> list[asyncio.Future[object]]:
        waiting = []
        for letter in dead:
            self._dead[letter.reason] = self._dead.get(letter.reason, 0) + 1
            record = dead_letters.letter(
                letter.reason,
                letter.detail,
                topic,
                number,
                letter.offset,
                came[letter.offset].timestamp * 1000,
                letter.raw,
                key=came[letter.offset].key,
                kept=dead_letters.KEPT if topic == self._names.edges else events.EVENT_BYTES,
            )
            waiting.append(await self._producer.send(self._names.dead_letters, number, record))
        return waiting

    async def _send_frames(self, shard: Shard, *, everyone: bool = False) -> None:
        """Send the frames that are not on their way, then tell those destinations how far this has come whose frames
        do not say so: of a batch that is folded in parts, the last part's frames alone do."""
        partition = shard.partition
        number, sent = partition.number, self._sent[partition.number]
        for frame in shard.waiting():
            if frame.number <= sent:
                continue
            self._sent[number] = frame.number
            await self._producer.send(
                self._names.edges,
                frame.destination,
                frame.raw,
                acknowledged=lambda frame=frame: self._acknowledge(shard, frame),  # type: ignore[misc]
            )
        raw = b""
        for destination, said in enumerate(partition.said):
            if said < partition.applied or everyone:
                raw = raw or shard.told()
                partition.said[destination] = partition.applied
                await self._producer.send(self._names.edges, destination, raw)

    def _acknowledge(self, shard: Shard, frame: Any) -> None:
        shard.acknowledge(frame)
        self._make_room()

    def _make_room(self) -> None:
        """Folding waits while too much is due: changed accounts, or frames that the brokers do not have."""
        section = self._config.worker
        waiting = sum(len(partition.outbox) for partition in self.shards.here())
        if len(self._vectors.dirty) > section.dirty_rows or waiting > section.outbox_frames:
            self._room.clear()
        else:
            self._room.set()

    # -- vectors ---------------------------------------------------------------------------------------------

    async def flushing(self) -> None:
        """Publish vectors as they become due, for ever."""
        section = self._config.worker
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._due.wait(), 1.0)  # without events the vectors still age
            self._due.clear()
            began = time.perf_counter()
            await self.flush()
            async with self.lock:
                await self.work()
            self._make_room()
            took = time.perf_counter() - began
            self._flushed(took)
            # Under load a flush takes longer and so comes less often: more changes of an account fall into one.
            await asyncio.sleep(max(section.flush_milliseconds / 1000, took))

    async def flush(self) -> None:
        """Encode and publish what changed and some of what has aged, then how far that goes.

        Folding goes on while the vectors are on their way. A partition that was taken over may begin at an older
        state than the one whose vectors are out: it waits until it has caught up, though not for ever.
        """
        async with self._publishing:
            async with self.lock:
                if self.rebalancing:
                    return
                self._release()
                outlets = list(self.outlets)
                shards = [
                    (number, shard) for number, shard in self.shards.items() if number not in self._held
                ]
                marks = {number: list(shard.partition.marked) for number, shard in shards}
                reached = {
                    number: (shard.partition.applied, list(shard.partition.heard.values()))
                    for number, shard in shards
                }
                encoded = []
                for outlet in outlets:
                    outlet.vectors.advance(self._clock())
                    # In a thread: beside it questions are handed on.
                    encode = partial(outlet.encode, self._config.model.aged_rows, self._held)
                    encoded.append(await asyncio.to_thread(encode))
                if any(more for _, more in encoded):
                    self._due.set()
                out = [outlet.take() for outlet in outlets]
                drained = [outlet.drained for outlet in outlets]
            for _, lessons in out:  # vectors are of their own lineage
                for lesson in lessons:
                    await self._producer.send(self._names.training, 0, lesson)
            await asyncio.gather(
                *(self._publish(shard, outlets, out, drained, reached[n], marks[n]) for n, shard in shards)
            )
            for outlet, (accounts, _) in zip(outlets, encoded, strict=True):
                outlet.published(accounts)

    def _release(self) -> None:
        """Let the vectors of those partitions out that have caught up, or have been at it for long.

        All of them if more has changed than may wait: a flush holds the lock for as long as it encodes.
        """
        now = self._monotonic()
        many = len(self._vectors.dirty) > self._config.worker.dirty_rows
        for number, hold in list(self._held.items()):
            partition = self.shards[number].partition
            behind = partition.applied < hold.engagements or partition.edges < hold.edges
            if many or not behind or now >= hold.until:
                del self._held[number]

    async def _publish(
        self,
        shard: Shard,
        outlets: Sequence[Outlet],
        out: Sequence[tuple[Mapping[int, Pairs], object]],
        drained: Sequence[int],
        reached: tuple[int, list[int]],
        marks: list[bytes],
    ) -> None:
        """Publish a partition's vectors of every lineage; when the brokers have all of them its marks go."""
        partition = shard.partition
        number = partition.number
        left = len(outlets)

        def acknowledged(outlet: Outlet, tick: int) -> None:
            nonlocal left
            left -= 1
            if not left:
                partition.unmark(marks)
            outlet.aged(partition, tick)

        for outlet, (pairs_of, _), tick in zip(outlets, out, drained, strict=True):
            pairs = list(pairs_of.get(number, ()))
            whole = outlet.whole(number)
            if outlet.fresh.get(number) != (*reached, whole):
                outlet.fresh[number] = *reached, whole
                progress = wire.Progress(
                    self._generations[number],
                    *reached,
                    partition.told,
                    partition.watermark,
                    whole,
                )
                pairs.append((wire.PROGRESS, _pack(progress)))
            if not pairs:
                left -= 1
                continue
            self._published += len(pairs)
            told = partial(acknowledged, outlet, tick)
            await self._producer.send_all(outlet.topic, number, pairs, acknowledged=told)

    async def work(self) -> None:
        """Some background work: edges sent again, a checkpoint."""
        for number, shard in self.shards.items():
            if shard.partition.working and shard.work():
                await self._send_frames(shard)
                self._touch(shard.partition.reworked)
                shard.partition.reworked.clear()
                self._due.set()
            await self._forget(shard.partition)
            if shard.partition.uncompacted:
                await asyncio.to_thread(shard.compact)
            if time.monotonic() - self._checkpointed[number] >= self._config.worker.checkpoint_seconds:
                await self._save(shard.partition)

        self._switch()

    async def _forget(self, partition: Partition) -> None:
        """Let the model forget accounts whose deletion is finished, here and where it is learned."""
        left = list(partition.left)
        if left:
            partition.left.clear()
            for outlet in self.outlets:
                outlet.model.ids.forget(left)
            if self._learn:
                await self._producer.send(self._names.training, 0, learning.forgotten(left))

    # -- lineages --------------------------------------------------------------------------------------------

    async def step(self, follower: Follower) -> None:
        """Move a model to its newest step; vectors follow as they are encoded."""
        async with self.lock:
            await asyncio.to_thread(follower.apply)

    def add(self, model: Model, follower: Follower) -> Outlet:
        """Publish the vectors of another lineage as well; all of it is encoded in the background, bit by bit."""
        outlet = Outlet(
            model,
            follower,
            self.shards,
            self._config.model,
            self._config.kafka.prefix,
            self._generations,
            self._clock,
            pairs=self._config.ranking.ranker,
        )
        for partition in self.shards.here():
            outlet.open(partition)
        self.outlets.append(outlet)
        return outlet

    async def serve(self, lineage: str) -> None:
        """Take a lineage for the one that is served: what is learned is what it sees."""
        async with self._publishing, self.lock:
            self.outlets.sort(key=lambda outlet: outlet.lineage != lineage)

    async def drop(self, lineage: str) -> None:
        """Publish nothing of a lineage any more."""
        async with self._publishing, self.lock:
            for outlet in [one for one in self.outlets if one.lineage == lineage]:
                outlet.end()
                self.outlets.remove(outlet)

    @property
    def _vectors(self) -> Vectors:
        return self.outlets[0].vectors

    def _touch(self, accounts: Collection[str]) -> None:
        for outlet in self.outlets:
            outlet.vectors.touch(accounts)

    # -- communities -----------------------------------------------------------------------------------------

    def _switch(self) -> None:
        """Read another version of communities once it is whole in every partition that is here."""
        partitions = list(self.shards.here())
        if not any(p.unread is not None for p in partitions) or not all(p.filled for p in partitions):
            return
        for partition in partitions:
            partition.switch()
            self._touch(partition.listable())
            if partition.communities is not None:
                version = partition.communities.known.version
                _log.info("partition %d reads communities %s", partition.number, version)
        self._due.set()

    async def _save(self, partition: Partition) -> None:
        self._checkpointed[partition.number] = time.monotonic()
        try:
            await asyncio.to_thread(self._checkpoints.save, partition, self._worker)
        except OSError as error:
            _log.error("no checkpoint of partition %d: %s", partition.number, error)

    def stale(self, message: wire.Stale) -> None:
        """Publish progress once more, and encode accounts again over whose vectors a zombie's lie.

        If the topic knows a greater generation than this worker's (the brokers forgot the group, and the store
        is an older one), this worker's is raised above it: otherwise it would be taken for the zombie for ever.
        """
        number = message.partition
        shard = self.shards.get(number)
        if shard is None:
            return
        if message.generation > self._generations[number]:
            self._generations[number] = _raised(shard.partition, message.generation + 1)
            path = str(self._path(number).absolute())
            self._answering.tell(wire.Opened(number, path, self._generations[number]))
            for outlet in self.outlets:
                outlet.begin_anew(shard.partition, shard.partition.listable())
        mine = [name for name in message.accounts if self.shards.route[name] == number]
        for outlet in self.outlets:
            # A zombie's progress may lie over this worker's, and would after a compaction.
            outlet.fresh.pop(number, None)
            # Those that are no candidates get their dead record.
            outlet.vectors.ageing.adopt(mine, outlet.vectors.tick)
        self._touch(mine)
        self._due.set()

    # -- what others are told --------------------------------------------------------------------------------

    def _tell_written(self, number: int) -> None:
        if not self._written:
            asyncio.get_running_loop().call_later(WORD, self._tell_all_written)
        self._written.add(number)

    def _tell_all_written(self) -> None:
        self._answering.tell(wire.Written(sorted(self._written)))
        self._written.clear()

    def _tell_changed(self, number: int, acted: Acted) -> None:
        # What was there at the assignment was pushed by whoever owned the partition when it came.
        replayed = self.shards[number].partition.applied <= self._targets[number][0]
        if self._config.worker.push_rate > 0 and acted.touched and not replayed:
            urgent = {change.actor for change in acted.changes if change.family in _EXCLUDING}
            urgent |= self.shards[number].partition.deleted_of(acted.touched)  # their lists are withdrawn
            self._answering.tell(wire.Changed(number, sorted(acted.touched - urgent), sorted(urgent)))

    def _tell_heard(self, number: int, heard: Heard) -> None:
        urgent = {target for target, _, family, _ in heard.changes if family in _EXCLUDING}
        replayed = self.shards[number].partition.edges <= self._targets[number][1]
        if self._config.worker.push_rate > 0 and urgent and not replayed:
            self._answering.tell(wire.Changed(number, [], sorted(urgent)))

    def tell_standing(self) -> None:
        """Tell the retrieval process how folding stands."""
        self._answering.tell(wire.Standing(self.rebalancing, self.caught_up, self.behind))

    @property
    def caught_up(self) -> bool:
        """True if what was there at the last assignment is folded, and its vectors are published."""
        served = self.outlets[0]
        if self.rebalancing or served.adopting:
            return False
        for number, (engagements, edges) in self._targets.items():
            if number not in self.shards:
                return False
            partition = self.shards[number].partition
            fresh = served.fresh.get(number)
            if (
                partition.applied < engagements
                or partition.edges < edges
                or fresh is None
                or fresh[0] < engagements
            ):
                return False
        return True

    @property
    def behind(self) -> int:
        """Records that were there at the last assignment and are not folded yet."""
        return sum(
            max(engagements - self.shards[number].partition.applied, 0)
            for number, (engagements, _) in self._targets.items()
            if number in self.shards
        )

    @property
    def counts(self) -> Counts:
        """What has happened since the process started."""
        return Counts(
            self._records, self._accepted, self._moved, dict(self._dead), self._published, self._missing
        )

    @property
    def resending(self) -> int:
        """Accounts whose follows are still to be sent again, since what they carry has changed."""
        return sum(len(partition.jobs) for partition in self.shards.here())

    @property
    def dirty(self) -> int:
        """Accounts that changed and are not encoded yet."""
        return len(self._vectors.dirty)

    @property
    def outbox(self) -> int:
        """Frames that no broker has acknowledged."""
        return sum(len(partition.outbox) for partition in self.shards.here())

    @property
    def reader(self) -> Reader:
        """Reads the rows of the partitions that are here."""
        return self._vectors.reader

    @property
    def tick(self) -> int:
        """The tick of the newest vectors."""
        return self._vectors.tick

    @property
    def listed(self) -> Collection[str]:
        """Accounts that are candidates as far as this process knows."""
        return self._vectors.ageing


def _refuse_unchecked(store: RocksStore) -> None:
    """Close and refuse a store that came without checksums, unless a build wrote it that wrote none."""
    (layout,) = store.get(Column.META, [LAYOUT])
    if layout is not None and not layout.startswith(f"{UPGRADED} ".encode()):
        store.close()
        raise StoreRefused(f"{manifest.NAME} is missing")


def _raised(partition: Partition, generation: int) -> int:
    """The group's generation, or more where the group was forgotten meanwhile and counts from one again."""
    (stored,) = partition.store.get(Column.META, [_GENERATION])
    raised = max(generation, int.from_bytes(stored or b"", "big") + 1)
    partition.store.write({Column.META: {_GENERATION: raised.to_bytes(8, "big")}})
    return raised
