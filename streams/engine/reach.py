"""What an actor's days have come to: the levels of those beyond the reach of their signal, told to the targets.

A day of an actor and a family has an entry here once it went beyond its reach, and keeps it: what dates from such a
day carries a revision, and whether it counts (`communities.carried`). How many there are says the actor's own row.
The level is decided event by event, in the order of the log, and moves the actor's revision behind the event; what
dates from the day is sent again in the background.

Events about accounts that were deleted are refused, but a run that did not know of the deletion yet may have had
them, and gone beyond the reach with them. So the refused of a day are counted: it is sent with a revision as soon as
they could have made a level, whatever level it has without them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from struct import Struct
from typing import Final, NamedTuple

import msgspec

from kithstream.streams.communities.carried import NO_CODES, WITHHELD
from kithstream.streams.engine.frames import Frame
from kithstream.streams.engine.interests import Interests
from kithstream.streams.engine.partition import BEYOND, LEVEL, ROW_OUT, Batch, Partition
from kithstream.streams.events.signals import Kind as KindOfSignal
from kithstream.streams.events.signals import by_family
from kithstream.streams.state import counters, ledger
from kithstream.streams.state.counters import Kind
from kithstream.streams.state.ledger import DAY, day_prefix, heard_of, held_days, since
from kithstream.streams.state.protocol import Column
from kithstream.streams.state.reach import is_withheld, level

_FOLLOW: Final = 0
_UNREACHED: Final = -1  # the level of a day that is told nobody
_STATES: Final = tuple(signal.kind is KindOfSignal.STATE for signal in by_family())
_job = Struct(">BI")  # family, day; the actor's name behind

At = tuple[str, int, int]  # (actor, family, day since 1970)


class Step(NamedTuple):
    """What an event at an offset made of an edge or occurrence; times in microseconds, -1 for absent."""

    actor: str
    family: int
    before: int
    after: int
    offset: int


class Refused(NamedTuple):
    """What an event about a deleted account would have added to."""

    actor: str
    target: str
    family: int
    day: int
    offset: int


class Reach:
    """The days of a partition's actors; levels are moved when a batch's rows are folded."""

    def __init__(self, partition: Partition, interests: Interests) -> None:
        self._partition = partition
        self._interests = interests

    def move(self, steps: Sequence[Step], batch: Batch) -> Collection[str]:
        """Bring what events did into the levels, in the order of the log; return the actors who have another one.

        What the batch tells of them was made with the old ones, and is to be told again: a run with other batches
        may tell something else under the same revision, and the greater one must be the same in all.
        """
        moved = self._moved(steps, batch)
        for actor, offset in moved.items():
            self._interests.carry(actor, offset, batch)
        return moved

    def void(self, steps: Sequence[Step], lost: Iterable[tuple[str, str]], batch: Batch) -> None:
        """Take out what was about deleted accounts, at no offset; `lost` are (actor, target), follows excepted."""
        moved = set(self._moved(steps, batch))
        for actor, target in lost:
            if self._lost(actor, target, batch) and self._reached(actor):
                moved.add(actor)
                self._send_others(actor, batch)
        for actor in sorted(moved):
            self._interests.count(actor, batch)

    def refused(self, refused: Iterable[Refused], batch: Batch) -> None:
        """Count events about deleted accounts that were kept out of an actor's days."""
        partition = self._partition
        for actor, target, family, day, offset in refused:
            if partition.is_deleted(actor):  # by an event behind it
                continue
            at = actor, family, day
            known, kept_out = self._entry(at)
            self._put(at, known, kept_out + 1, batch)
            lost = family != _FOLLOW and self._lost(actor, target, batch)
            if lost:
                self._send_others(actor, batch)
            if self._noted(at, self._count(at), batch) or (lost and self._reached(actor)):
                self._interests.carry(actor, offset, batch)

    def loaded(self, over: Iterable[At], accounts: Iterable[str] | None, batch: Batch) -> None:
        """Find the levels of days of follows that were loaded; `accounts` had some loaded, None stands for all.

        What they had told is sent again: the load may have told it without a level.
        """
        partition = self._partition
        moved = {at[0] for at in over if self._noted(at, self._count(at), batch)}
        names = partition.beyond.keys() if accounts is None else partition.beyond.keys() & set(accounts)
        for actor in names:
            for family, day in list(_days(partition.beyond[actor])):
                at = actor, family, day
                if family == _FOLLOW and day > self._oldest:
                    self._noted(at, self._count(at), batch)
                if family == _FOLLOW and self._entry(at)[0] != _UNREACHED:
                    self._send_day(at, batch)
                    moved.add(actor)
        for actor in sorted(moved):
            self._interests.count(actor, batch)

    def told(self, carried: bytes, actor: str, family: int, time: int, target: str) -> bytes:
        """Return what an edge or occurrence since `time` carries, that would else carry `carried`; -1 is absent."""
        if time < 0:
            return carried
        known = self._partition.beyond[actor].get(_key(family, time // DAY), _NEW)[0]
        if known == _UNREACHED:
            return carried
        withheld = is_withheld(known, actor, target)
        if family == _FOLLOW and not withheld:
            return carried
        carrier = self._partition.load_carriers([actor])[actor]
        revision = carrier.revision() if family == _FOLLOW else carrier.revision_of_others()
        return revision + (WITHHELD if withheld else NO_CODES)

    def delete(self, account: str, batch: Batch) -> None:
        """Forget an account's days."""
        partition, name = self._partition, account.encode()
        if partition.beyond.pop(account, None) is not None:
            batch.changes[Column.META][BEYOND + name] = None
        for job in [job for job in partition.levels if job[_job.size :] == name]:
            self._done(job, batch)

    def work(self, most: int, batch: Batch, out: dict[int, Frame], route: Mapping[str, int]) -> int:
        """Send again at most so many of the entries of days whose level moved; return how many were read."""
        partition, left = self._partition, most
        for job, cursor in list(partition.levels.items()):
            if left <= 0:
                break
            family, day = _job.unpack_from(job)
            account = job[_job.size :]
            for key, value in self._entries(account, family, day, cursor):
                if left <= 0:
                    partition.levels[job] = batch.changes[Column.META][LEVEL + job] = key
                    break
                left -= 1
                if (time := since(value)) < 0 or time // DAY != day:
                    continue
                self.send(account.decode(), family, key, value, out, route)
            else:
                self._done(job, batch)
        return most - left

    def _entries(self, account: bytes, family: int, day: int, cursor: bytes) -> Iterator[tuple[bytes, bytes]]:
        """What may date from the day, in the order of the keys."""
        scan, letter = self._partition.store.scan_from, ledger.LETTERS[family]
        if _STATES[family]:
            yield from scan(Column.OUT, account + b"\0" + letter, cursor)
        elif day in held_days(self._partition.watermark):
            for key, value in scan(Column.SAID, day_prefix(day) + account + b"\0", cursor):
                if key.split(b"\0")[-2][:1] == letter:
                    yield key, value

    def send(
        self,
        actor: str,
        family: int,
        key: bytes,
        value: bytes,
        out: dict[int, Frame],
        route: Mapping[str, int],
    ) -> None:
        """Tell the target of an entry of the actor's ledger."""
        partition, time = self._partition, since(value)
        letter_target, item = key.split(b"\0")[-2:]
        target = letter_target[1:].decode()
        carried = b""
        if family == _FOLLOW:
            carried = partition.contributions([actor])[actor].on(time, target)
        state = value[: ledger.EPOCH + ledger.STAMP] + self.told(carried, actor, family, time, target)
        frame = out.setdefault(route[target], Frame(partition.watermark))
        if _STATES[family]:
            in_key = b"%b\0%c%b\0%b" % (letter_target[1:], letter_target[0], actor.encode(), item)
            frame.states += (in_key, state)
        else:
            frame.heard += (heard_of(key), state)

    def _moved(self, steps: Sequence[Step], batch: Batch) -> dict[str, int]:
        """Move the levels; return the actors who have another one, each with the offset of the last change."""
        reach, old = self._partition.reach, self._oldest
        moves = [
            ((actor, family, day), by, offset)
            for actor, family, before, after, offset in steps
            if reach[family] and before // DAY != after // DAY
            for time, by in ((before, -1), (after, 1))
            if time >= 0 and (day := time // DAY) > old
        ]
        counts: dict[At, int] = {}  # at first as they were before the batch
        for at, by, _ in moves:
            counts[at] = (counts[at] if at in counts else self._count(at)) - by
        changed: dict[str, int] = {}
        for at, by, offset in moves:
            counts[at] += by
            if self._noted(at, counts[at], batch):
                changed[at[0]] = offset
        return changed

    @property
    def _oldest(self) -> int:
        """The newest day whose levels move no more."""
        return oldest(self._partition.watermark)

    def _count(self, at: At) -> int:
        """How many the actor's row has of a day."""
        key = ROW_OUT + at[0].encode()
        return counters.count_of(self._partition.load_rows([key])[key], _cells[at[1:]])

    def _noted(self, at: At, count: int, batch: Batch) -> bool:
        """Note how many a day has; True if its level is another one, and is to be told."""
        known, kept_out = self._entry(at)
        reach = self._partition.reach[at[1]]
        if known == _UNREACHED and count + kept_out <= reach:
            return False
        if (now := level(count, reach)) == known:
            return False
        self._put(at, now, kept_out, batch)
        self._send_day(at, batch)
        return True

    def _entry(self, at: At) -> tuple[int, int]:
        return self._partition.beyond.get(at[0], {}).get(_key(*at[1:]), _NEW)

    def _put(self, at: At, now: int, kept_out: int, batch: Batch) -> None:
        partition, actor = self._partition, at[0]
        days = partition.beyond.setdefault(actor, {})
        days[_key(*at[1:])] = now, kept_out
        held = held_days(partition.watermark).start
        for family, day in list(_days(days)):  # nothing of these can be sent or refused any more
            if day < held and (not _STATES[family] or days[_key(family, day)][0] == _UNREACHED):
                del days[_key(family, day)]
        batch.changes[Column.META][BEYOND + actor.encode()] = msgspec.msgpack.encode(days)

    def _reached(self, actor: str) -> bool:
        """True if something that the actor did carries whether it counts."""
        return any(known != _UNREACHED for known, _ in self._partition.beyond.get(actor, {}).values())

    def _lost(self, actor: str, target: str, batch: Batch) -> bool:
        """Take note that somebody the actor acted on was deleted; False if that was known."""
        partition = self._partition
        carrier = partition.load_carriers([actor])[actor]
        new = carrier.lose(partition.fingerprint(target))
        if new:
            self._interests.keep(actor, carrier, batch)
        return new

    def _send_others(self, actor: str, batch: Batch) -> None:
        """Put all days down to be sent again but those of follows."""
        for key, (known, _) in self._partition.beyond.get(actor, {}).items():
            family, day = _of(key)
            if known != _UNREACHED and family != _FOLLOW:
                self._send_day((actor, family, day), batch)

    def _send_day(self, at: At, batch: Batch) -> None:
        """Put a day down to be sent again, from the first."""
        job = _job.pack(*at[1:]) + at[0].encode()
        self._partition.levels[job] = batch.changes[Column.META][LEVEL + job] = b""

    def _done(self, job: bytes, batch: Batch) -> None:
        del self._partition.levels[job]
        batch.changes[Column.META][LEVEL + job] = None


def oldest(watermark: int) -> int:
    """Return the newest day whose levels move no more at a watermark; day 0 stands for follows without a time."""
    return max(watermark // DAY - counters.DAYS_READ, 0)


_NEW: Final = _UNREACHED, 0
_DAY_BITS: Final = 24


def _key(family: int, day: int) -> int:
    return family << _DAY_BITS | day


def _of(key: int) -> tuple[int, int]:
    return key >> _DAY_BITS, key & (1 << _DAY_BITS) - 1


def _days(days: Iterable[int]) -> Iterator[tuple[int, int]]:
    return map(_of, days)


class _DayCells(dict[tuple[int, int], bytes]):
    """(family, day) to the cell that counts it; a cache that is dropped when it is full."""

    def __missing__(self, at: tuple[int, int]) -> bytes:
        if len(self) > 20_000:
            self.clear()
        name = self[at] = counters.cell(at[0], Kind.DAY, at[1])
        return name


_cells: Final = _DayCells()
