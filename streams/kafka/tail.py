"""All producer vectors of a lineage into the live index, and how far each partition's have come."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, NamedTuple

import msgspec
import numpy as np

from kithstream.index.live import LiveIndex
from kithstream.models.features import FOLLOWERS
from kithstream.streams.events.wire import ID_BYTES, LATEST
from kithstream.streams.kafka.wire import PROGRESS, Progress, Vector
from kithstream.streams.serve.facts import Facts, Neighbours
from kithstream.streams.serve.marks import SIZE, unpack
from kithstream.streams.state.ledger import DAY
from kithstream.streams.state.reader import Glance

_vector = msgspec.msgpack.Decoder(Vector).decode
_progress = msgspec.msgpack.Decoder(Progress).decode
_seen = msgspec.msgpack.Decoder(tuple[int, int, int, list[str]]).decode
_known = msgspec.msgpack.Decoder(
    tuple[list[int], list[Progress | None], dict[str, bytes], list[list[str]]]
).decode
_pack = msgspec.msgpack.Encoder().encode

_GREATEST: Final = 1 << 62
_LABELS: Final = (1 << 31) - 1
_DAYS: Final = LATEST // DAY
_NEIGHBOURS: Final = 64  # more than any owner tells
WRITTEN: Final = 512  # accounts whose facts are written while questions wait
Record = tuple[int, bytes | None, bytes | None]  # partition, key, value


class Fed(NamedTuple):
    """What a batch did."""

    upserted: int
    deleted: int
    unusable: int  # records that are none of ours
    stale: Mapping[
        int, Sequence[str]
    ]  # by partition that a lower generation wrote to: accounts over whose vectors a zombie's lie in the topic
    reached: Sequence[Progress]  # that stands for records newer than the process that wrote it


class Tail:
    """Feeds the index, and the facts that pairs are ranked by. One feeder; everything else may be asked beside it.

    `restarts` counts the times that a partition's progress was given up, since a new owner writes: an answer from
    before and after such a time is of no state.
    """

    def __init__(self, index: LiveIndex, partitions: int, facts: Facts | None = None) -> None:
        """Without `facts` nobody ranks pairs."""
        self.facts = facts
        self._index = index
        self._dim = index.config.dim
        self.restarts = 0
        self._lock = threading.Lock()
        self._generations = [0] * partitions
        self._progress: list[Progress | None] = [None] * partitions
        self._seen: dict[str, bytes] = {}  # packed: day, gained, label, followers
        self._stale: list[dict[str, None]] = [{} for _ in range(partitions)]

    def feed(self, records: Iterable[Record]) -> Fed:
        """Bring records into the index, each partition's in their order."""
        latest: dict[str, Vector] = {}
        progress: dict[int, Progress] = {}
        stale: dict[int, list[str]] = {}
        unusable = 0

        def current(number: int, generation: int) -> bool:
            if generation > self._generations[number]:
                self._generations[number] = generation
                if self._progress[number] is not None:
                    # The new owner may begin at an older state: what was reached says nothing until it tells.
                    self._progress[number] = None
                    self.restarts += 1
                progress.pop(number, None)
            return generation >= self._generations[number]

        for number, key, value in records:
            if key is None or value is None:
                continue  # the tombstone behind a dead record
            try:
                if key == PROGRESS:
                    came = _progress(value)
                    if len(came.heard) != len(self._progress) or not _within(
                        came.generation, came.applied, came.appended, came.watermark, *came.heard
                    ):
                        unusable += 1
                    elif current(number, came.generation):
                        progress[number] = came
                    else:  # an owner that does not know how far generations have come would never be heard
                        stale.setdefault(number, [])
                    continue
                vector, account = _vector(value), key.decode()
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                unusable += 1
                continue
            if not self._usable(account, vector):
                unusable += 1
            elif current(number, vector.generation):
                latest[account] = vector
                self._stale[number].pop(account, None)
            else:
                stale.setdefault(number, []).append(account)
                self._stale[number][account] = None
        upserted, deleted = self._write(latest)
        with self._lock:
            for number, came in progress.items():
                self._progress[number] = came
        reached = [came for came in progress.values() if came.appended]
        return Fed(upserted, deleted, unusable, stale, reached)

    def copied(self) -> Callable[[], bytes]:
        """Copy what is known beside the index and the facts, while nothing is fed; return what packs it."""
        known = (
            list(self._generations),
            list(self._progress),
            dict(self._seen),
            [list(accounts) for accounts in self._stale],
        )
        return lambda: _pack(known)

    def restore(self, packed: bytes) -> None:
        """Take over what `copied` packed; for one that was fed nothing. Raises ValueError."""
        generations, progress, seen, stale = _known(packed)
        if not len(generations) == len(progress) == len(stale) == len(self._progress):
            raise ValueError(f"{len(generations)} partitions, expected {len(self._progress)}")
        self._generations, self._progress, self._seen = generations, progress, seen
        self._stale = [dict.fromkeys(accounts) for accounts in stale]

    def _usable(self, account: str, vector: Vector) -> bool:
        """True for what an owner may have written: anything else would end the process that reads it, for ever."""
        return (
            0 < len(account.encode()) <= ID_BYTES
            and "\0" not in account
            and len(vector.vector) in (0, 4 * self._dim)
            and len(vector.marks) <= SIZE
            and _within(vector.generation, vector.tick, vector.step, abs(vector.gained), vector.following)
            and 0 <= vector.label <= _LABELS
            and 0 <= vector.day <= _DAYS
            and len(vector.followers) <= _NEIGHBOURS
            and len(vector.followees) <= _NEIGHBOURS
            and bool(np.isfinite(np.frombuffer(vector.vector, "<f4")).all())
        )

    def _write(self, latest: Mapping[str, Vector]) -> tuple[int, int]:
        dead = [account for account, vector in latest.items() if not vector.vector]
        if dead:
            self._index.delete(dead)
            for account in dead:
                self._seen.pop(account, None)
        live = {account: vector for account, vector in latest.items() if vector.vector}
        if self.facts is not None:
            accounts = list(latest)
            for first in range(0, len(accounts), WRITTEN):
                part = accounts[first : first + WRITTEN]
                _tell(self.facts, {account: latest[account] for account in part})
        if live:
            joined = b"".join(vector.vector for vector in live.values())
            vectors = np.frombuffer(joined, "<f4").reshape(-1, self._dim)
            labels = np.array([vector.label for vector in live.values()], np.int32)
            ticks = max(vector.tick for vector in live.values())
            self._index.upsert(list(live), vectors, labels=labels, sequence=ticks)
            for account, v in live.items():
                self._seen[account] = _pack((v.day, v.gained, v.label, v.followers[:FOLLOWERS]))
        return len(live), len(dead)

    def generation(self, number: int) -> int:
        """Return the greatest generation that a partition's records came with."""
        return self._generations[number]

    def stale(self, number: int) -> list[str]:
        """Return the accounts of a partition over whose vectors a zombie's lie in the topic."""
        return list(self._stale[number])

    def includes(self, ends: Mapping[int, int]) -> bool:
        """True if the vectors of every partition stand for a token."""
        if not ends:
            return True
        progress = list(self._progress)
        return all(
            came is not None and all(came.heard[source] >= end for source, end in ends.items())
            for came in progress
        ) and all(_applied(progress[number]) >= end for number, end in ends.items())

    @property
    def whole(self) -> bool:
        """True if every partition's owner says that all of its accounts have a vector here."""
        return all(came is not None and came.whole for came in list(self._progress))

    @property
    def token(self) -> dict[int, int]:
        """The greatest token that `includes` holds for."""
        progress = [came for came in list(self._progress) if came is not None]
        if len(progress) < len(self._progress):
            return {}
        return {
            number: min(came.applied, *(other.heard[number] for other in progress))
            for number, came in enumerate(progress)
        }

    def glances(self, accounts: Sequence[str], as_of: int) -> list[Glance]:
        """Return of each account what reasons are made of."""
        today = as_of // DAY
        found = []
        for account in accounts:
            packed = self._seen.get(account)
            if packed is None:
                found.append(Glance((), 0, 0))
                continue
            day, gained, label, followers = _seen(packed)
            found.append(Glance(followers, gained if day == today else 0, label))
        return found


def _tell(facts: Facts, told: Mapping[str, Vector]) -> None:
    """Bring what records tell into the facts."""
    facts.drop(account for account, vector in told.items() if not vector.vector)
    facts.forget(account for account, vector in told.items() if vector.deleted)
    marked = {account: vector.marks for account, vector in told.items() if vector.marks}
    if marked:
        facts.take(list(marked), unpack(list(marked.values())))
    near = {account: vector for account, vector in told.items() if vector.followers or vector.followees}
    facts.unlink(account for account in told if account not in near)
    if near:
        facts.link(
            list(near),
            Neighbours(
                [vector.followers for vector in near.values()],
                [vector.followees for vector in near.values()],
                [vector.following for vector in near.values()],
            ),
        )


def _within(*numbers: int) -> bool:
    """True for counts, offsets and times that fit into what they are kept in."""
    return all(0 <= number < _GREATEST for number in numbers)


def _applied(progress: Progress | None) -> int:
    return 0 if progress is None else progress.applied
