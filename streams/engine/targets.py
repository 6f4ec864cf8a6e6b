"""The second stage: states of edges into the in-ledger of their target. The greatest bytes win, so order is free."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

from kithstream.streams.communities.carried import CODES, WITHHELD
from kithstream.streams.engine import frames
from kithstream.streams.engine.audiences import Audiences
from kithstream.streams.engine.frames import Frame
from kithstream.streams.engine.interests import Interests
from kithstream.streams.engine.partition import (
    DELETED,
    EDGES,
    FOLLOWEES,
    FOLLOWERS,
    FOLLOWING,
    HEARD,
    ROW_IN,
    ROW_OUT,
    SKETCH,
    Batch,
    Partition,
)
from kithstream.streams.engine.reach import Reach, Step
from kithstream.streams.engine.routing import Route
from kithstream.streams.events.signals import SIGNALS
from kithstream.streams.events.signals import Kind as KindOfSignal
from kithstream.streams.state import counters
from kithstream.streams.state.counters import Kind
from kithstream.streams.state.ledger import EPOCH, STAMP, day_prefix, held_days, said_of, since
from kithstream.streams.state.protocol import Column

_FOLLOW: Final = 0
_FOLLOW_LETTER: Final = 65 + _FOLLOW
_STATE: Final = EPOCH + STAMP  # bytes of an occurrence's value that carries nothing
_CODES: Final = slice(EPOCH + STAMP + CODES.start, EPOCH + STAMP + CODES.stop)


class Heard(NamedTuple):
    """What a batch of frames did in its targets' partition."""

    touched: set[str]
    changes: list[tuple[str, str, int, bool]]  # (target, actor, family, present): presence that changed


class Targets:
    """Folds the frames sent to a partition."""

    def __init__(self, partition: Partition, route: Route) -> None:
        self._partition = partition
        self._route = route
        self._interests = Interests(partition)
        self._reach = Reach(partition, self._interests)
        self._audiences = Audiences(partition)

    def apply(self, received: Sequence[Frame], next_offset: int = 0) -> Heard:
        """Fold frames and write them as one. Repeats and older states change nothing.

        `next_offset` is where the topic of frames is read on after these; a runtime without one gives none.
        """
        partition = self._partition
        batch = Batch(partition)
        replies: dict[int, Frame] = {}
        meta = batch.changes[Column.META]
        if next_offset > partition.edges:
            partition.edges = next_offset
            meta[EDGES] = next_offset.to_bytes(8, "big")
        for frame in received:
            partition.advance(frame.watermark)
            partition.told = max(partition.told, frame.appended)
            if partition.hear(frame.source, frame.upto):
                meta[HEARD + frame.source.to_bytes(4, "big")] = frame.upto.to_bytes(8, "big")
            for fingerprint in frame.deleted:
                partition.bury(fingerprint)
                if fingerprint not in partition.departed:
                    meta[DELETED + fingerprint] = b""
        changed: list[tuple[str, str, int, bool]] = []
        self._states(received, batch, replies, changed)
        self._occurrences(received, batch, replies)
        batch.fold_pairs()
        batch.fold_rows(ROW_IN)
        batch.fold_recents(FOLLOWERS, Column.IN)
        batch.fold_sketches(SKETCH)
        self._audiences.fold(batch)
        batch.send(replies)
        batch.write()
        touched = batch.touched
        if any(frame.void or frame.unsaid for frame in received):
            touched = touched | self._void(received)
        return Heard(touched, changed)

    def _states(
        self,
        received: Sequence[Frame],
        batch: Batch,
        replies: dict[int, Frame],
        changed: list[tuple[str, str, int, bool]],
    ) -> None:
        partition = self._partition
        known, deleted = partition.fingerprints, partition.deleted
        states = _greatest(frame.states for frame in received)
        flips: list[tuple[str, str, int]] = []
        staged = batch.changes[Column.IN]
        stored = partition.store.get(Column.IN, list(states))
        for (key, new), old in zip(states.items(), stored, strict=True):
            if old is not None and new <= old:
                continue
            target_bytes, letter_actor, item = key.split(b"\0")
            target, actor, family = target_bytes.decode(), letter_actor[1:].decode(), letter_actor[0] - 65
            _check(family, new)
            if deleted and known[actor] in deleted:
                new = frames.GONE
            if deleted and known[target] in deleted:
                if new != frames.GONE:
                    out_key = b"%b\0%c%b\0%b" % (letter_actor[1:], letter_actor[0], target_bytes, item)
                    self._reply(replies, actor, target).void.append(out_key)
                continue
            staged[key] = new if new != frames.GONE else None  # the salted hash keeps it out from here on
            before, after = since(old), since(new)
            # What counts: nothing of an edge that is withheld.
            was = old if old is not None and before >= 0 and old[_CODES] != WITHHELD else b""
            now = new if after >= 0 and new[_CODES] != WITHHELD else b""
            counted, counts = before if was else -1, after if now else -1
            if counted != counts:
                batch.got(target, family, counted, counts, actor)
            if (before >= 0) != (after >= 0):
                changed.append((target, actor, family, after >= 0))
            if family != _FOLLOW:
                continue
            self._audience(batch, target_bytes, was, now)
            self._audiences.move(key, target_bytes, was, now)
            if (counted >= 0) != (counts >= 0):
                batch.sketched.append((target, actor, 1 if now else -1))
            if before != after:
                batch.recents.append((target, before, after, actor))
            if (before >= 0) != (after >= 0):
                flips.append((target, actor, 1 if after >= 0 else -1))
        batch.fold_mutual(flips, Column.OUT)

    def _audience(self, batch: Batch, target: bytes, old: bytes, new: bytes) -> None:
        """Move a follower from the language and country it was counted in to those it carries."""
        was, now = old[_CODES], new[_CODES]
        if was == now:
            return
        row_key = ROW_IN + target
        for carried, by in ((was, -1), (now, 1)):
            if any(carried):  # zeros: nothing was told
                for kind, place in ((Kind.LANGUAGE, carried[:2]), (Kind.COUNTRY, carried[2:])):
                    batch.cell(row_key, counters.cell(_FOLLOW, kind, int.from_bytes(place, "big")), by)

    def _occurrences(self, received: Sequence[Frame], batch: Batch, replies: dict[int, Frame]) -> None:
        partition = self._partition
        known, deleted = partition.fingerprints, partition.deleted
        heard = _greatest(frame.heard for frame in received)
        staged = batch.changes[Column.HEARD]
        stored = partition.store.get(Column.HEARD, list(heard))
        oldest = day_prefix(held_days(partition.watermark).start)
        for (key, new), old in zip(heard.items(), stored, strict=True):
            if old is not None and new <= old:
                continue
            target_bytes, letter_actor, _, _ = key[4:].split(b"\0")
            target, actor = target_bytes.decode(), letter_actor[1:].decode()
            _check(letter_actor[0] - 65, new)
            if deleted and known[actor] in deleted:
                new = frames.GONE
            if deleted and known[target] in deleted:
                if new != frames.GONE:
                    self._reply(replies, actor, target).unsaid.append(said_of(key))
                continue
            if len(new) > _STATE and key[: len(oldest)] < oldest:
                continue  # a level that comes when the day has left the ledger changes nothing
            staged[key] = new if new != frames.GONE else None
            counted = -1 if old is None or old[_CODES] == WITHHELD else since(old)
            counts = -1 if new[_CODES] == WITHHELD else since(new)
            if counted != counts:
                batch.got(target, letter_actor[0] - 65, counted, counts, actor)

    def work(self) -> int:
        """Take some of the in-ledger into audiences that are being filled; 0 when nothing is left."""
        partition = self._partition
        if all(slot.record.into is None for slot in partition.slots):
            return 0
        batch = Batch(partition)
        left = self._audiences.fill(batch, partition.config.job_edges)
        batch.write()
        partition.reworked |= batch.touched
        return partition.config.job_edges - left + 1

    def _reply(self, replies: dict[int, Frame], actor: str, deleted: str) -> Frame:
        frame = replies.setdefault(self._route[actor], Frame(self._partition.watermark))
        frame.deleted.append(self._partition.fingerprint(deleted))
        return frame

    def _void(self, received: Sequence[Frame]) -> set[str]:
        """Drop what this partition's actors hold about targets that were deleted.

        Of actors that are deleted themselves the rows are gone, and stay so.
        """
        partition = self._partition
        batch = Batch(partition)
        void = list(dict.fromkeys(key for frame in received for key in frame.void))
        said_about: dict[bytes, set[bytes]] = {}  # actor -> targets
        followees: list[tuple[str, str, int]] = []
        others: list[tuple[str, str]] = []  # (actor, target)
        steps: list[Step] = []
        for key, value in zip(void, partition.store.get(Column.OUT, void), strict=True):
            actor, letter_target, _ = key.split(b"\0")
            said_about.setdefault(actor, set()).add(letter_target[1:])
            if value is None:
                continue
            batch.changes[Column.OUT][key] = None
            if partition.is_deleted(name := actor.decode()):
                continue
            before, family, target = since(value), letter_target[0] - 65, letter_target[1:].decode()
            if family == _FOLLOW:
                followees.append((name, target, -1 if before >= 0 else 0))
            elif partition.reach[family]:
                others.append((name, target))
            if before >= 0:
                steps.append(Step(name, family, before, -1, partition.applied))
                batch.made(name, family, before, -1, target)
                if family == _FOLLOW:
                    batch.recents.append((name, before, -1, target))
                    batch.sketched.append((name, target, -1))
                    batch.fold_mutual([(name, target, -1)], Column.IN)
        for actor, targets in said_about.items():
            batch.changes[Column.SAID].update((key, None) for key in self._said(actor, targets))
        unsaid = list(dict.fromkeys(key for frame in received for key in frame.unsaid))
        for key, value in zip(unsaid, partition.store.get(Column.SAID, unsaid), strict=True):
            if value is None:
                continue
            actor, _, letter_target, _ = key[4:].split(b"\0")
            batch.changes[Column.SAID][key] = None
            if not partition.is_deleted(name := actor.decode()):
                before, family, target = since(value), letter_target[0] - 65, letter_target[1:].decode()
                batch.made(name, family, before, -1, target)
                if partition.reach[family]:
                    others.append((name, target))
                    steps.append(Step(name, family, before, -1, partition.applied))
        self._interests.void(followees, batch)
        batch.fold_rows(ROW_OUT)
        self._reach.void(steps, others, batch)
        batch.fold_recents(FOLLOWEES, Column.OUT)
        batch.fold_newest()
        batch.fold_sketches(FOLLOWING)
        batch.write()
        return batch.touched

    def _said(self, actor: bytes, targets: set[bytes]) -> Iterator[bytes]:
        """The keys of an actor's events about targets that decide a state; its occurrences are told one by one."""
        for day in held_days(self._partition.watermark):
            for key, _ in self._partition.store.scan(Column.SAID, day_prefix(day) + actor + b"\0"):
                letter_target = key.split(b"\0")[-2]
                if (
                    letter_target[1:] in targets
                    and SIGNALS[letter_target[0] - 65].kind is not KindOfSignal.OCCURRENCE
                ):
                    yield key


def _check(family: int, state: bytes) -> None:
    """Refuse what no actors stage wrote; raises ValueError."""
    if not 0 <= family < len(SIGNALS):
        raise ValueError(f"family is {family}, there are {len(SIGNALS)}")
    if len(state) < _STATE and len(state) != EPOCH:  # an epoch alone: all that was said was taken back
        raise ValueError(f"a state has {len(state)} bytes, expected {EPOCH}, or {_STATE} and more")


def _greatest(lists: Iterable[Sequence[bytes]]) -> dict[bytes, bytes]:
    """The greatest value of each key in lists that alternate key and value."""
    found: dict[bytes, bytes] = {}
    for pairs in map(iter, lists):
        for key, value in zip(pairs, pairs, strict=True):
            if (held := found.get(key)) is None or value > held:
                found[key] = value
    return found
