"""The first stage: events into the out-ledger of their actor, changed edges out to their targets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from struct import Struct
from typing import Final, NamedTuple
from zlib import crc32

from kithstream.streams.engine.book import Book, Entry
from kithstream.streams.engine.deletion import Deletions, ranges
from kithstream.streams.engine.frames import Frame
from kithstream.streams.engine.interests import Interests, Move
from kithstream.streams.engine.partition import (
    FOLLOWEES,
    FOLLOWING,
    JOB,
    PROFILE,
    RETRACTED,
    ROW_OUT,
    Batch,
    Partition,
)
from kithstream.streams.engine.reach import Reach, Refused, Step
from kithstream.streams.errors import InvalidEvent
from kithstream.streams.events import wire
from kithstream.streams.events.signals import SIGNALS, Kind, Signal, by_family
from kithstream.streams.events.wire import Event
from kithstream.streams.state import contacts, ledger, profiles
from kithstream.streams.state.consent import NEVER
from kithstream.streams.state.ledger import DAY, HORIZON, heard_of, since
from kithstream.streams.state.profiles import Profile
from kithstream.streams.state.protocol import Column


class Record(NamedTuple):
    """One record of the log: when it was appended (microseconds), and its bytes."""

    appended: int
    raw: bytes


class DeadLetter(NamedTuple):
    """A record that could not be used, and why."""

    offset: int
    reason: str
    detail: str
    raw: bytes


class Change(NamedTuple):
    """An edge whose presence or time changed; times in microseconds, -1 for absent."""

    actor: str
    target: str
    family: int
    before: int
    after: int


class Decoded(NamedTuple):
    """The usable events of a poll batch, and the rest."""

    events: list[Event]
    dead: list[DeadLetter]
    moved: list[tuple[int, Record, int]]  # (offset, record, its own partition) of those in the wrong one
    offsets: list[int]  # of the events
    refused: list[tuple[Event, int]]  # (event about a deleted account, offset)


class Acted(NamedTuple):
    """What a batch did in its actors' partition."""

    touched: set[str]  # accounts whose row or visibility changed
    changes: list[Change]  # of state edges
    dead: list[DeadLetter]
    accepted: int
    times: list[int]  # event times of the accepted, microseconds


class _Plan(NamedTuple):
    """How an event of one name is folded."""

    edge: int  # family of the state edge it decides, -1 for none
    letter: str
    undo: int
    said: int  # family under which the event itself is kept
    said_letter: str
    counted: bool  # the event itself is an occurrence
    item: bool
    private: bool


# With stamp, key in SAID, key in OUT or nothing, offset.
_Work = tuple[Event, _Plan, bytes, bytes, bytes, int]
_FOLLOW: Final = 0
_pack = Struct(">QI").pack
_day = Struct(">I").pack


def _plans(signals: Sequence[Signal]) -> dict[str, _Plan]:
    plans: dict[str, _Plan] = {}
    by_name = {signal.name: signal for signal in signals}
    for signal in signals:
        letter = chr(65 + signal.family)
        state = signal.kind is Kind.STATE
        occurrence = _Plan(-1, letter, 0, signal.family, letter, True, True, False)
        state_edge = _Plan(
            signal.family, letter, 0, signal.family, letter, False, signal.item, signal.private
        )
        plans.setdefault(
            signal.name, state_edge if state else occurrence
        )  # an undo with a trace stays an undo
        if signal.undo is not None:
            trace = by_name[signal.undo] if signal.trace else signal
            plans[signal.undo] = _Plan(
                signal.family,
                letter,
                1,
                trace.family,
                chr(65 + trace.family),
                signal.trace,
                signal.item,
                signal.private,
            )
    return plans


_PLANS: Final = _plans(SIGNALS)
_PRIVATE: Final = frozenset(name for name, plan in _PLANS.items() if plan.private)
_REACHES: Final = tuple(bool(signal.reach) for signal in by_family())
_UNDONE_BY: Final = {plan.said: plan.edge for plan in _PLANS.values() if plan.undo and plan.counted}


class Actors:
    """Folds a partition's part of the log, in order."""

    def __init__(self, partition: Partition, route: Mapping[str, int]) -> None:
        self._partition = partition
        self._route = route
        self._book = Book(partition)
        self._deletions = Deletions(partition, route)
        self._interests = Interests(partition)
        self._reach = Reach(partition, self._interests)

    def decode(self, records: Sequence[Record], offsets: Iterable[int]) -> Decoded:
        """Return the usable events of a poll batch, dead letters and strays; moves the watermark."""
        partition, route, here = self._partition, self._route, self._partition.number
        events: list[Event] = []
        dead: list[DeadLetter] = []
        moved: list[tuple[int, Record, int]] = []
        kept: list[int] = []
        kept_out: list[tuple[Event, int]] = []
        watermark = partition.watermark
        leaving: set[str] = set()  # whom an event of this batch deletes
        for offset, record in zip(offsets, records, strict=False):
            appended, raw = record
            try:
                event = wire.decode(raw, now=appended)
            except InvalidEvent as refused:
                dead.append(DeadLetter(offset, refused.reason, str(refused), raw))
                continue
            if (place := route[event.actor]) != here:
                moved.append((offset, record, place))
                continue
            if event.time > watermark:
                watermark = event.time
            elif event.time < watermark - HORIZON:
                detail = f"time is {event.time}, expected at least {watermark - HORIZON}"
                dead.append(DeadLetter(offset, "too_late", detail, raw))
                continue
            if (partition.deleted or leaving) and self._kept_out(event, leaving):
                dead.append(DeadLetter(offset, "deleted", "the account was deleted", b""))
                actor = event.actor
                if event.signal in _PLANS and actor not in leaving and not partition.is_deleted(actor):
                    kept_out.append((event, offset))
                continue
            if event.signal == "account_delete":
                leaving.add(event.actor)
            events.append(event)
            kept.append(offset)
        partition.advance(watermark)
        if records:
            partition.appended = max(partition.appended, records[-1].appended)
        return Decoded(events, dead, moved, kept, kept_out)

    def _kept_out(self, event: Event, leaving: set[str]) -> bool:
        """True if the event is about a deleted account, or of one that this log deleted before.

        Others tell of deletions, too: a partition that comes back from an older copy may hear of its own account's
        before its log comes to it, and must fold what stands before it all the same. Address books hold hashes,
        which stay.
        """
        partition, actor, target = self._partition, event.actor, event.target
        known, deleted = partition.fingerprints, partition.deleted
        if not leaving and not (
            deleted and (known[actor] in deleted or (target and known[target] in deleted))
        ):
            return False
        if actor in leaving or (
            partition.is_deleted(actor) and partition.fingerprint(actor) in partition.departed
        ):
            return True
        return bool(
            target and event.signal not in _PRIVATE and (target in leaving or partition.is_deleted(target))
        )

    def apply(self, decoded: Decoded, next_offset: int) -> Acted:
        """Fold decoded events and write them as one, so that the store's offset becomes `next_offset`.

        An event that needs to read the ledger as it stands (retract, delete) closes the batch before it.
        """
        events, offsets = decoded.events, decoded.offsets
        touched: set[str] = set()
        changes: list[Change] = []
        start = 0
        applied = self._partition.applied
        expired, self._partition.expired = self._partition.expired, []  # none goes before all is folded
        for place, event in enumerate(events):
            if event.signal in ("retract", "account_delete"):
                # Events before it are folded but the offset stays: a crash in between repeats them, to no effect.
                if place > start:
                    self._fold(events[start:place], offsets[start:place], applied, touched, changes)
                if event.signal == "retract":
                    self._retract(event, offsets[place], touched, changes)
                else:
                    self._delete(event, touched)
                start = place + 1
        self._partition.expired = expired
        self._fold(events[start:], offsets[start:], next_offset, touched, changes, decoded.refused)
        return Acted(touched, changes, [], len(events), [event.time for event in events])

    def _fold(
        self,
        events: Sequence[Event],
        offsets: Sequence[int],
        next_offset: int,
        touched: set[str],
        changed: list[Change],
        refused: Sequence[tuple[Event, int]] = (),
    ) -> None:
        partition = self._partition
        batch = Batch(partition)
        edges: dict[bytes, bytes | None] = {}
        said: dict[bytes, bytes | None] = {}
        work: list[_Work] = []
        moves: list[Move] = []
        retracted = partition.retracted
        told = [event.actor for event in events if event.signal not in _PLANS]
        if told:  # into the caches at once: one by one they would cost a read each
            partition.load_profiles(told)
            partition.load_carriers(told)
            partition.load_recents([FOLLOWEES + account.encode() for account in told])
        private: list[Entry] = []
        consents: set[str] = set()  # accounts whose address book counts from another time on
        for event, offset in zip(events, offsets, strict=True):
            plan = _PLANS.get(event.signal)
            if plan is None:
                if self._profile(event, offset, batch):
                    consents.add(event.actor)
                continue
            actor, target, time = event.actor, event.target, event.time
            item = event.item if plan.item else ""
            event_id = event.id
            if retracted and f"{actor}\0{event_id}".encode() in retracted:
                continue
            stamp = _pack((event.source == "server") << 63 | time << 1 | plan.undo, crc32(event_id.encode()))
            if plan.private:
                private.append(Entry(partition, event, plan.edge, stamp))
                continue
            said_key = _day(time // DAY) + f"{actor}\0{event_id}\0{plan.said_letter}{target}\0{item}".encode()
            edge_key = f"{actor}\0{plan.letter}{target}\0{item}".encode() if plan.edge >= 0 else b""
            work.append((event, plan, stamp, said_key, edge_key, offset))
            said[said_key] = None
            if edge_key:
                edges[edge_key] = None
        store = partition.store
        edges.update(zip(edges, store.get(Column.OUT, list(edges)), strict=True))
        said.update(zip(said, store.get(Column.SAID, list(said)), strict=True))
        first_edges: dict[bytes, tuple[bytes | None, Event, int]] = {}
        first_said: dict[bytes, tuple[bytes | None, Event, int]] = {}
        floor = partition.watermark - HORIZON
        trail: list[bytes | None] = []  # what each event left: its edge, or its own entry; None for a repeat
        watched = _busiest(events, min(partition.half_reach))
        for event, plan, stamp, said_key, edge_key, offset in work:
            entry = ledger.NO_EDGE + (_undone(stamp) if plan.undo and plan.counted else stamp)
            held = said[said_key]
            if held is not None and entry <= held:
                trail.append(None)
                continue  # the same event again, or stamped earlier: one id counts once
            if said_key not in first_said:
                first_said[said_key] = held, event, plan.said if plan.counted else -1
            said[said_key] = entry
            new = entry
            if edge_key:
                old = edges[edge_key]
                if old is not None and held is not None:  # the same event, stamped anew
                    before = held[ledger.EPOCH :]
                    old = ledger.take_out(old, _as_undo(before) if plan.undo else before)
                new = ledger.add(old, stamp, floor)
                if edge_key not in first_edges:
                    first_edges[edge_key] = edges[edge_key], event, plan.edge
                else:
                    watched.add(event.actor)
                if plan.edge == _FOLLOW:
                    _note(moves, event, edges[edge_key], new, offset)
                edges[edge_key] = new
            trail.append(new)
        if refused:
            self._kept_away(refused, batch)
        self._interests.move(moves, batch)
        out: dict[int, Frame] = {}
        self._state_changes(first_edges, edges, batch, out, changed)
        self._occurrence_changes(first_said, said, batch, out)
        if private:
            self._book.fold(private, batch)
        for account in sorted(consents):
            self._book.reconsider(account, batch)
        batch.fold_rows(ROW_OUT)
        watched |= batch.busy
        if partition.beyond:
            watched |= partition.beyond.keys() & {event.actor for event in events}
        if watched:
            steps = list(_steps(work, trail, watched, first_edges, first_said))
            self._levels(steps, first_edges, edges, first_said, said, batch, out)
        self._finish(batch, out, next_offset)
        touched.update(batch.touched)

    def _levels(
        self,
        steps: Sequence[Step],
        first_edges: Mapping[bytes, tuple[bytes | None, Event, int]],
        edges: Mapping[bytes, bytes | None],
        first_said: Mapping[bytes, tuple[bytes | None, Event, int]],
        said: Mapping[bytes, bytes | None],
        batch: Batch,
        out: dict[int, Frame],
    ) -> None:
        """Bring a batch into the levels of its actors; what it told of those that moved is told again."""
        moved = self._reach.move(steps, batch)
        for first, left in ((first_edges, edges), (first_said, said)) if moved else ():
            for key, (_, event, family) in first.items():
                value = left[key]
                if family >= 0 and event.actor in moved and value is not None and since(value) >= 0:
                    self._reach.send(event.actor, family, key, value, out, self._route)

    def _kept_away(self, refused: Sequence[tuple[Event, int]], batch: Batch) -> None:
        """Take note of events about deleted accounts that another run may have folded."""
        follows: list[tuple[str, str, int]] = []
        reached: list[Refused] = []
        for event, offset in refused:
            plan, actor, target = _PLANS[event.signal], event.actor, event.target
            if plan.edge == _FOLLOW:
                follows.append((actor, target, offset))
            for family in (plan.edge, plan.said if plan.counted else -1):
                if family >= 0 and _REACHES[family]:
                    reached.append(Refused(actor, target, family, event.time // DAY, offset))
        self._reach.refused(reached, batch)
        self._interests.refused(follows, batch)

    def _state_changes(
        self,
        first: Mapping[bytes, tuple[bytes | None, Event, int]],
        edges: Mapping[bytes, bytes | None],
        batch: Batch,
        out: dict[int, Frame],
        changed: list[Change],
    ) -> None:
        partition, route = self._partition, self._route
        staged = batch.changes[Column.OUT]
        flips: list[tuple[str, str, int]] = []
        followers = {event.actor for _, event, family in first.values() if family == _FOLLOW}
        carried = partition.contributions(followers)
        beyond = partition.beyond
        for key, (old, event, family) in first.items():
            new = edges[key]
            assert new is not None
            staged[key] = new
            actor, target = event.actor, event.target
            if old is not None and old[:14] == new[:14]:
                continue  # a lesser stamp: the edge's state is as it was
            before, after = since(old), since(new)
            item = key.rsplit(b"\0", 1)[1]
            in_key = b"%b\0%c%b\0%b" % (target.encode(), 65 + family, actor.encode(), item)
            place = route[target]
            frame = out.get(place)
            if frame is None:
                frame = out[place] = Frame(partition.watermark)
            told = carried[actor].on(after, target) if family == _FOLLOW else b""
            if actor in beyond:
                told = self._reach.told(told, actor, family, after, target)
            frame.states += (in_key, new[:14] + told)
            if before == after:
                # An unfollow of somebody who was not followed: that one is not recommended again either.
                if family == _FOLLOW:
                    changed.append(Change(actor, target, family, before, after))
                continue
            batch.made(actor, family, before, after, target)
            changed.append(Change(actor, target, family, before, after))
            if family == _FOLLOW:
                batch.recents.append((actor, before, after, target))
                if (before >= 0) != (after >= 0):
                    flips.append((actor, target, 1 if after >= 0 else -1))
                    batch.sketched.append(flips[-1])
        batch.fold_mutual(flips, Column.IN)

    def _taken_out(
        self,
        first: Mapping[bytes, tuple[bytes | None, Event, int]],
        edges: Mapping[bytes, bytes | None],
        offset: int,
        batch: Batch,
        out: dict[int, Frame],
        changed: list[Change],
    ) -> None:
        """Fold what is left of edges out of which stamps were taken, by what stands at an offset of the log."""
        moves: list[Move] = []
        for key, (old, about, family) in first.items():
            if family == _FOLLOW:
                _note(moves, about, old, edges[key], offset)
        self._interests.move(moves, batch)
        self._state_changes(first, edges, batch, out, changed)

    def _occurrence_changes(
        self,
        first: Mapping[bytes, tuple[bytes | None, Event, int]],
        said: Mapping[bytes, bytes | None],
        batch: Batch,
        out: dict[int, Frame],
    ) -> None:
        route, watermark, beyond = self._route, self._partition.watermark, self._partition.beyond
        staged = batch.changes[Column.SAID]
        for key, (old, event, family) in first.items():
            new = said[key]
            assert new is not None
            staged[key] = new
            if family < 0:
                continue
            actor, target = event.actor, event.target
            batch.made(actor, family, since(old), since(new), target)
            place = route[target]
            frame = out.get(place)
            if frame is None:
                frame = out[place] = Frame(watermark)
            if actor in beyond:
                new += self._reach.told(b"", actor, family, since(new), target)
            frame.heard += (heard_of(key), new)

    def _finish(self, batch: Batch, out: Mapping[int, Frame], next_offset: int) -> None:
        """Fold the lists and sketches, put the frames into the outbox, and write."""
        partition = self._partition
        batch.fold_recents(FOLLOWEES, Column.OUT)
        batch.fold_newest()
        batch.fold_sketches(FOLLOWING)
        partition.applied = next_offset
        batch.send(out)
        batch.dropped = partition.expired
        batch.write()
        partition.expired = []

    def _profile(self, event: Event, offset: int, batch: Batch) -> bool:
        """Take in what an account says of itself; True if other entries of its address book count now."""
        partition = self._partition
        account = event.actor
        profile = partition.profile(account)
        covered = _covered(profile)
        if profiles.apply(profile, event):
            self._interests.changed(account, offset, batch)
        batch.changes[Column.ROWS][PROFILE + account.encode()] = profiles.dump(profile)
        batch.touched.add(account)
        return _covered(profile) != covered

    def _retract(self, event: Event, offset: int, touched: set[str], changed: list[Change]) -> None:
        """Take back every trace of one event, and keep its id out if it is still to come."""
        partition = self._partition
        store = partition.store
        name = f"{event.actor}\0{event.retracts}".encode()
        if name in partition.retracted:
            return
        batch = Batch(partition)
        edges: dict[bytes, bytes | None] = {}
        said: dict[bytes, bytes | None] = {}
        first_edges: dict[bytes, tuple[bytes | None, Event, int]] = {}
        first_said: dict[bytes, tuple[bytes | None, Event, int]] = {}
        days = ledger.held_days(partition.watermark)
        prefixes = [ledger.day_prefix(day) + name + b"\0" for day in days]
        for key, entry in store.scan_each(Column.SAID, prefixes):
            letter_target, item = key[4 + len(name) + 1 :].split(b"\0")
            target, said_family = letter_target[1:].decode(), letter_target[0] - 65
            stamp = entry[ledger.EPOCH :]
            if said_family in contacts.FAMILIES:
                self._book.take_back(key, entry, batch)
                continue
            if not stamp:
                continue
            about = Event(event.id, "", event.actor, event.time, target=target, item=item.decode())
            counted = SIGNALS[said_family].kind is Kind.OCCURRENCE
            family = _UNDONE_BY.get(said_family, -1) if counted else said_family
            if counted:
                first_said[key] = entry, about, said_family
                said[key] = b"\0\1"
            if family < 0:
                continue
            edge_key = b"%b\0%c%b\0%b" % (event.actor.encode(), 65 + family, letter_target[1:], item)
            old = edges[edge_key] if edge_key in edges else store.get(Column.OUT, [edge_key])[0]
            if old is not None:
                first_edges.setdefault(edge_key, (old, about, family))
                edges[edge_key] = ledger.take_out(old, _as_undo(stamp) if counted else stamp)
        out: dict[int, Frame] = {}
        self._taken_out(first_edges, edges, offset, batch, out, changed)
        self._occurrence_changes(first_said, said, batch, out)
        partition.retracted[name] = event.time // DAY
        batch.changes[Column.META][RETRACTED + _day(event.time // DAY) + name] = b""
        batch.fold_rows(ROW_OUT)
        steps = [
            Step(about.actor, family, since(old), since(left[key]), offset)
            for first, left in ((first_edges, edges), (first_said, said))
            for key, (old, about, family) in first.items()
        ]
        self._levels(steps, first_edges, edges, first_said, said, batch, out)
        self._finish(batch, out, partition.applied)
        touched.update(batch.touched)

    def without(self, edges: Iterable[bytes], said: Iterable[bytes]) -> set[str]:
        """Fold as if nobody had ever done these, whatever their age; return the accounts whose rows changed.

        `edges` are keys of OUT, `said` keys of occurrences in SAID. No other partition is told: for a copy of the
        state that is thrown away.
        """
        store = self._partition.store
        batch = Batch(self._partition)
        left: dict[bytes, bytes | None] = {}
        unsaid: dict[bytes, bytes | None] = {}
        first_edges: dict[bytes, tuple[bytes | None, Event, int]] = {}
        first_said: dict[bytes, tuple[bytes | None, Event, int]] = {}
        wanted = list(edges)
        for key, value in zip(wanted, store.get(Column.OUT, wanted), strict=True):
            if value is None:
                continue
            actor, letter_target, item = key.decode().split("\0")
            about = Event("", "", actor, 0, target=letter_target[1:], item=item)
            first_edges[key] = value, about, ord(letter_target[0]) - 65
            left[key] = ledger.NO_EDGE
        wanted = list(said)
        for key, entry in zip(wanted, store.get(Column.SAID, wanted), strict=True):
            if entry is None:
                continue
            actor, _, letter_target, item = key[4:].decode().split("\0")
            about = Event("", "", actor, 0, target=letter_target[1:], item=item)
            first_said[key] = entry, about, ord(letter_target[0]) - 65
            unsaid[key] = b"\0\1"
        out: dict[int, Frame] = {}
        self._taken_out(first_edges, left, self._partition.applied, batch, out, [])
        self._occurrence_changes(first_said, unsaid, batch, out)
        batch.fold_rows(ROW_OUT)
        self._finish(batch, {}, self._partition.applied)
        return batch.touched

    def _delete(self, event: Event, touched: set[str]) -> None:
        """Delete an account: hidden and kept out from this batch on, its edges go in the background."""
        batch = Batch(self._partition)
        out: dict[int, Frame] = {}
        self._deletions.begin(event.actor, batch, out)
        self._interests.delete(event.actor, batch)
        self._reach.delete(event.actor, batch)
        batch.fold_rows(ROW_OUT)
        self._finish(batch, out, self._partition.applied)
        touched.update(batch.touched)

    def work(self) -> int:
        """Do a bounded piece of background work; return its edges, one more if something was done at all.

        In this order: removing deleted accounts, going over address books, counting interests anew, re-sending
        follows of accounts that carry something else, and days of which more or less counts.
        """
        partition = self._partition
        most = partition.config.job_edges
        if not partition.working:
            return 0
        batch = Batch(partition)
        out: dict[int, Frame] = {}
        removed, finished = self._deletions.work(most, batch, out)
        left = most - removed
        if left > 0:
            left -= self._book.work(left, batch)
        if left > 0:
            left = self._interests.recount(batch, left)
        if left > 0:
            left -= self._send_again(left, batch, out)
        if left > 0:
            left -= self._reach.work(left, batch, out, self._route)
        batch.fold_rows(ROW_OUT)
        self._finish(batch, out, partition.applied)
        partition.reworked |= batch.touched
        partition.left += finished
        partition.uncompacted += finished
        return most - left + 1

    def compact(self) -> int:
        """Rewrite the files that may still hold accounts whose deletion is finished; return how many accounts.

        Takes about a second for each in a large store; other threads may read and write meanwhile.
        """
        waiting, self._partition.uncompacted = self._partition.uncompacted, []
        if waiting:
            self._partition.store.compact(
                [r for account in waiting for r in ranges(self._partition, account)]
            )
        return len(waiting)

    def _send_again(self, most: int, batch: Batch, out: dict[int, Frame]) -> int:
        """Re-send at most so many follows of accounts whose carried attributes changed; return how many."""
        partition = self._partition
        left = most
        for account, cursor in list(partition.jobs.items()):
            if left <= 0:
                break
            carried = partition.contributions([account])[account]
            prefix = f"{account}\0{chr(65 + _FOLLOW)}".encode()
            for key, value in partition.store.scan_from(Column.OUT, prefix, cursor):
                if left <= 0:
                    partition.jobs[account] = batch.changes[Column.META][JOB + account.encode()] = key
                    break
                left -= 1
                if (time := since(value)) < 0:
                    continue
                target = key[len(prefix) : -1]
                in_key = b"%b\0%c%b\0" % (target, 65 + _FOLLOW, account.encode())
                place = self._route[name := target.decode()]
                told = carried.on(time, name)
                if account in partition.beyond:
                    told = self._reach.told(told, account, _FOLLOW, time, name)
                state = value[:14] + told
                out.setdefault(place, Frame(partition.watermark)).states += (in_key, state)
            else:
                partition.resent(account, batch)
        return most - left


def _covered(profile: Profile) -> tuple[int | None, int]:
    """Which entries of an address book count, and which must go."""
    return profile.contacts_begin, profile.consent.withdrawn if profile.consent else NEVER


def _note(moves: list[Move], event: Event, old: bytes | None, new: bytes | None, offset: int) -> None:
    """Note what an event made of a follow, if anything."""
    before, after = since(old), since(new)
    if before != after:
        moves.append(Move(event.actor, event.target, (after >= 0) - (before >= 0), offset))


def _busiest(events: Sequence[Event], most: int) -> set[str]:
    """Return the actors of more than so many of the events."""
    if len(events) <= most:
        return set()
    return {actor for actor, count in Counter([event.actor for event in events]).items() if count > most}


def _steps(
    work: Iterable[_Work],
    trail: Iterable[bytes | None],
    watched: Collection[str],
    first_edges: Mapping[bytes, tuple[bytes | None, Event, int]],
    first_said: Mapping[bytes, tuple[bytes | None, Event, int]],
) -> Iterator[Step]:
    """Yield what the events of watched actors did, one by one."""
    latest: dict[bytes, bytes | None] = {}
    for (event, plan, _, said_key, edge_key, offset), new in zip(work, trail, strict=True):
        if new is None or event.actor not in watched:
            continue
        if edge_key:
            old = latest[edge_key] if edge_key in latest else first_edges[edge_key][0]
            latest[edge_key] = new
            yield Step(event.actor, plan.edge, since(old), since(new), offset)
        if plan.counted and said_key not in latest:
            latest[said_key] = None
            if first_said[said_key][0] is None:
                yield Step(event.actor, plan.said, -1, event.time, offset)


def _undone(stamp: bytes) -> bytes:
    """The stamp of an undo's own trace: present since the undo's time."""
    return stamp[:7] + bytes([stamp[7] & 0xFE]) + stamp[8:]


def _as_undo(stamp: bytes) -> bytes:
    """The inverse of `_undone`."""
    return stamp[:7] + bytes([stamp[7] | 1]) + stamp[8:]
