"""One partition's state between batches: its store, and read caches that are written through every batch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from hashlib import blake2b
from itertools import islice
from typing import Final, Generic, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from kithstream.streams.communities import carried
from kithstream.streams.communities.carried import Carrier, Contribution, is_withheld, share
from kithstream.streams.communities.cells import read
from kithstream.streams.communities.known import KnownFor
from kithstream.streams.config import EngineConfig
from kithstream.streams.engine import frames, slots
from kithstream.streams.engine.changed import Changed
from kithstream.streams.engine.frames import Frame
from kithstream.streams.engine.slots import NOBODY, Limits, Slot
from kithstream.streams.errors import WrongLayout
from kithstream.streams.events.signals import SIGNALS, Newest, by_family
from kithstream.streams.events.signals import Kind as SignalKind
from kithstream.streams.state import contacts, counters, ledger, pairs, profiles, recent, sketches
from kithstream.streams.state.counters import Kind
from kithstream.streams.state.ledger import DAY, MINUTE
from kithstream.streams.state.profiles import Profile
from kithstream.streams.state.protocol import Column, Dropped, Store
from kithstream.streams.state.reach import REACH
from kithstream.streams.state.recent import NEIGHBOURS, Recent, Size

FORMAT: Final = (
    3  # since then a store may name a snapshot of the index: an older build would change rows unmarked
)
UPGRADED: Final = 2  # the format that is brought up to it when a store is opened

# Keys of the column ROWS: a letter, then the account.
ROW_IN, ROW_OUT, FOLLOWERS, FOLLOWEES, SKETCH, PROFILE = b"i", b"o", b"f", b"g", b"s", b"p"
CARRIER = b"r"  # the revision of what follows carry; interests and audiences are in `slots`
FOLLOWING = b"t"  # the sketch of the followees
ROW_LETTERS: Final[tuple[bytes, ...]] = (
    ROW_IN,
    ROW_OUT,
    FOLLOWERS,
    FOLLOWEES,
    SKETCH,
    FOLLOWING,
    PROFILE,
    CARRIER,
    *(kind.value for kind in Newest),
    *(letter + digit for letter in (slots.INTEREST, slots.AUDIENCE) for digit in slots.DIGITS),
)  # all of them: deletion and the audit read it
# Keys of the column META.
APPLIED, WATERMARK, LAYOUT, SALT = b"applied", b"watermark", b"layout", b"salt"
OUTBOX, DELETED, RETRACTED, JOB, RECOUNT = b"O", b"X", b"R", b"J", b"U"
HEARD, EDGES, DIRTY = b"H", b"edges", b"Y"  # progress by source; next offset of frames; changed accounts
BEYOND, LEVEL = b"N", b"W"  # days beyond the reach, by actor; those to be sent again: behind which key
LEAVING, BOOK = b"Z", b"B"  # accounts being deleted; address books to be gone over: behind which key
READ_AT_ONCE: Final = 4096  # rows
DEPARTED: Final = (
    b"\1"  # the value of a tombstone that an event of this partition's log made; others are told
)
LOADED, UNDERIVED = b"L", b"D"  # rows taken from a source; rows to derive again, behind which account

_FOLLOW: Final = 0
_MUTUAL: Final = counters.cell(_FOLLOW, Kind.MUTUAL, 0)
PAIRS: Final = 1 << 31  # added to the day in keys of HEARD: what an actor adds to a target on that day
SIZES: Final = {  # of the lists of newest; an impression is read to see what was shown and ignored
    Newest.ENGAGED: Size(12, 20),
    Newest.AVOIDED: Size(8, 12),
    Newest.SHOWN: Size(96, 128),
}
NEWEST_OF: Final = tuple(signal.newest for signal in by_family())
_CAPS: Final = tuple(signal.cap for signal in by_family())
_NO_BOUND: Final = 1 << 62
_UNBOUNDED: Final = (_NO_BOUND,) * len(_CAPS)
_V = TypeVar("_V")


class ReadCache(Generic[_V]):
    """A bounded cache in two generations: a hit costs one look-up and no bookkeeping."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._hot: dict[bytes, _V] = {}
        self._cold: dict[bytes, _V] = {}

    def get(self, key: bytes) -> _V | None:
        value = self._hot.get(key)
        return self._warmed(key) if value is None else value

    def find(self, keys: Iterable[bytes]) -> tuple[dict[bytes, _V], list[bytes]]:
        """Return what is remembered of keys, and the other keys; both in the order of the keys."""
        found: dict[bytes, _V] = {}
        missing = []
        hot = self._hot.get
        for key in keys:
            value = hot(key)
            if value is None:
                value = self._warmed(key)
                if value is None:
                    missing.append(key)
                    continue
                hot = self._hot.get  # the generations may have moved on
            found[key] = value
        return found, missing

    def _warmed(self, key: bytes) -> _V | None:
        value = self._cold.get(key)
        if value is not None:
            self.put(key, value)
        return value

    def put(self, key: bytes, value: _V) -> None:
        self._hot[key] = value
        if len(self._hot) >= self._size:
            self._hot, self._cold = {}, self._hot

    def drop(self, key: bytes) -> None:
        self._hot.pop(key, None)
        self._cold.pop(key, None)


def fingerprint(account: bytes, salt: bytes) -> bytes:
    """Return the salted hash under which a deleted account, or a contact, is remembered."""
    return blake2b(account, digest_size=16, key=salt).digest()


class Fingerprints(dict[str, bytes]):
    """Account to the salted hash under which it is remembered when it was deleted, for the accounts met lately."""

    def __init__(self, salt: bytes, remembered: int = 200_000) -> None:
        super().__init__()
        self._salt = salt
        self._remembered = remembered

    def __missing__(self, account: str) -> bytes:
        if len(self) >= self._remembered:
            self.clear()
        made = self[account] = fingerprint(account.encode(), self._salt)
        return made


class Partition:
    """State of the accounts with murmur2(id) mod P = number; one writer at a time."""

    def __init__(
        self,
        store: Store,
        number: int,
        partitions: int,
        config: EngineConfig,
        *,
        salt: bytes,
        marks: bool = False,
        versions: Mapping[str, KnownFor] | None = None,
        limits: Limits | None = None,
    ) -> None:
        """Take over a store; raises WrongLayout if it was made for another place.

        With `marks` every batch also writes which accounts it changed, until `unmark` says their vectors are out.
        `versions` are the communities at hand, by version; the store lets go of others.
        """
        self.store = store
        self.number = number
        self.partitions = partitions
        self.config = config
        stored, applied, watermark, old_salt = store.get(Column.META, [LAYOUT, APPLIED, WATERMARK, SALT])
        layout = f"{FORMAT} {number}/{partitions}".encode()
        if stored is None:
            store.write({Column.META: {LAYOUT: layout, SALT: salt}})
        elif stored != layout:
            _check_layout(stored.decode(errors="replace"), number, partitions)
            store.write({Column.META: {LAYOUT: layout}})
        self.salt = old_salt or salt
        self.applied = int.from_bytes(applied, "big") if applied else 0  # the next offset of the log
        self.watermark = (
            int.from_bytes(watermark, "big") if watermark else 0
        )  # newest event time, microseconds
        self.heard = dict.fromkeys(range(partitions), 0)  # by source: its log below this offset is told here
        for key, value in store.scan(Column.META, HEARD):
            self.heard[int.from_bytes(key[1:], "big")] = int.from_bytes(value, "big")
        (edges,) = store.get(Column.META, [EDGES])
        self.edges = int.from_bytes(edges, "big") if edges else 0  # the next offset of the frames' topic
        self.appended = 0  # when the newest record met since opening was appended, microseconds
        self.told = 0  # the same of what frames told
        self.marks = marks
        self.marked = dict(store.scan(Column.META, DIRTY)) if marks else {}
        self.changed = Changed(store)
        self._next_mark = 1 + max((int.from_bytes(key[1:], "big") for key in self.marked), default=0)
        self.rows: ReadCache[bytearray] = ReadCache(config.row_cache)
        self.recents: ReadCache[Recent] = ReadCache(config.row_cache)
        self.profiles: ReadCache[Profile] = ReadCache(config.row_cache)
        self.outbox = {
            int.from_bytes(key[1:9], "big"): (int.from_bytes(key[9:], "big"), value)
            for key, value in store.scan(Column.META, OUTBOX)
        }
        self.next_frame = max(self.outbox, default=self.applied << 20) + 1
        self.said = [-1] * partitions  # by destination: what frames of this process say everything below of
        self.acknowledged: list[bytes] = []  # outbox keys to delete with the next batch
        self.fingerprints = Fingerprints(self.salt)
        tombstones = {key[1:]: value for key, value in store.scan(Column.META, DELETED)}
        self.deleted = set(tombstones)
        self.departed = {fingerprint for fingerprint, by in tombstones.items() if by == DEPARTED}
        self.retracted = {  # actor NUL event id -> day of the retraction
            key[5:]: int.from_bytes(key[1:5], "big") for key, _ in store.scan(Column.META, RETRACTED)
        }
        self.expired: list[Dropped] = []  # ranges beyond the horizon, to drop with the next batch
        self.jobs = {key[1:].decode(): value for key, value in store.scan(Column.META, JOB)}
        self.leaving = {key[1:].decode(): value for key, value in store.scan(Column.META, LEAVING)}
        self.books = {key[1:].decode(): value for key, value in store.scan(Column.META, BOOK)}
        self.reworked: set[str] = set()  # accounts whose rows background work changed since then
        self.left: list[str] = []  # accounts whose deletion was finished since somebody took note
        self.uncompacted: list[str] = []  # and those that the store's files may still hold
        self.recounts = {key[1:].decode(): None for key, _ in store.scan(Column.META, RECOUNT)}
        self.limits = limits or Limits()
        most = self.limits.reach
        self.reach = REACH if most is None else tuple(reach and most for reach in REACH)  # by family
        self.half_reach = tuple(reach // 2 if reach else _NO_BOUND for reach in self.reach)
        decode = msgspec.msgpack.Decoder(dict[int, tuple[int, int]]).decode
        self.beyond = {key[1:].decode(): decode(value) for key, value in store.scan(Column.META, BEYOND)}
        self.levels = {key[1:]: value for key, value in store.scan(Column.META, LEVEL)}
        self.carriers: ReadCache[Carrier] = ReadCache(config.row_cache)
        self._shares: ReadCache[bytes] = ReadCache(config.row_cache)  # by the keys of interests
        self.slots: list[Slot] = []
        self.read_slot = NOBODY
        self._load_slots(versions or {})
        self._filling = set(self.jobs) if self.unread is not None else set[str]()

    @property
    def working(self) -> bool:
        """True if background work waits."""
        if self.jobs or self.levels or self.leaving or self.books or self.recounts:
            return True
        return not all(slot.counted for slot in self.slots)

    def contacts(self, account: str) -> set[bytes]:
        """Return the fingerprints of whom the account's address book names; none without its consent."""
        begin = self.profile(account).contacts_begin
        pairs = (p for prefix in contacts.prefixes(account) for p in self.store.scan(Column.OUT, prefix))
        return set(contacts.present(pairs, begin)) if begin is not None else set()

    def deleted_of(self, accounts: Collection[str]) -> set[str]:
        """Return those of the accounts that were deleted."""
        return {account for account in accounts if self.is_deleted(account)} if self.deleted else set()

    def fingerprint(self, account: str) -> bytes:
        """Return the salted hash under which a deleted account is remembered."""
        return self.fingerprints[account]

    def is_deleted(self, account: str) -> bool:
        """True if the account was deleted; its late events are kept out."""
        return bool(self.deleted) and self.fingerprints[account] in self.deleted

    def bury(self, fingerprint: bytes) -> None:
        """Remember that an account was deleted, by its salted hash."""
        self.deleted.add(fingerprint)

    def profile(self, account: str) -> Profile:
        """Return the account's profile; an empty one if it never told."""
        return self.load_profiles([account])[account]

    def accounts(self) -> set[str]:
        """Return every account with a row or a profile here."""
        return self._having(ROW_IN, ROW_OUT, PROFILE)

    def listable(self) -> set[str]:
        """Return the accounts that may be candidates: all others have nothing that would list them."""
        return self._having(ROW_IN, PROFILE)

    def ages(self, minute: int) -> tuple[list[str], NDArray[np.float64]]:
        """Return the accounts that may be candidates, and how many seconds ago the newest event was that the counters
        of each tell of: as of a minute since 1970, infinite if they tell of none.
        """
        newest = dict.fromkeys(self._having(PROFILE), np.inf)
        for letter in (ROW_IN, ROW_OUT):
            scan = self.store.scan(Column.ROWS, letter)
            while part := list(islice(scan, READ_AT_ONCE)):
                rows, minutes = [row for _, row in part], np.full(len(part), minute)
                ages = counters.decayed(rows, minutes, (np.inf,)).newest
                for (key, _), age in zip(part, ages.tolist(), strict=True):
                    account = key[1:].decode()
                    if letter == ROW_IN or account in newest:
                        newest[account] = min(newest.get(account, np.inf), age)
        return list(newest), np.fromiter(newest.values(), np.float64, len(newest))

    def _having(self, *letters: bytes) -> set[str]:
        scan = self.store.scan
        return {key[1:].decode() for letter in letters for key, _ in scan(Column.ROWS, letter)}

    def hear(self, source: int, upto: int) -> bool:
        """Take note that frames told everything of a source's log below an offset; False if that was known."""
        if upto <= self.heard.get(source, 0):
            return False
        self.heard[source] = upto
        return True

    def mark(self, accounts: Collection[str]) -> tuple[bytes, bytes]:
        """Return the pair of META that remembers changed accounts until `unmark`."""
        key = DIRTY + self._next_mark.to_bytes(8, "big")
        self._next_mark += 1
        value = self.marked[key] = msgspec.msgpack.encode(list(accounts))
        return key, value

    def dirty(self) -> set[str]:
        """Return the accounts that are marked."""
        decode = msgspec.msgpack.Decoder(list[str]).decode
        return {account for value in self.marked.values() for account in decode(value)}

    def unmark(self, keys: Iterable[bytes]) -> None:
        """Forget marks, by their keys; the next batch deletes them."""
        for key in keys:
            if self.marked.pop(key, None) is not None:
                self.acknowledged.append(key)

    def forget_acknowledged(self) -> None:
        """Delete the frames that were acknowledged since the last batch, without waiting for the next."""
        if self.acknowledged:
            self.store.write({Column.META: dict.fromkeys(self.acknowledged)})
            self.acknowledged.clear()

    def advance(self, watermark: int) -> None:
        """Move the newest event time, never back; entries of days beyond the horizon go with a write."""
        if watermark <= self.watermark:
            return
        if watermark // DAY != self.watermark // DAY:
            oldest = ledger.held_days(watermark).start
            self.expired = [
                Dropped(Column.SAID, ledger.day_prefix(0), ledger.day_prefix(oldest)),
                Dropped(Column.HEARD, ledger.day_prefix(0), ledger.day_prefix(oldest)),
                Dropped(Column.HEARD, ledger.day_prefix(PAIRS), ledger.day_prefix(PAIRS | oldest)),
                Dropped(Column.META, RETRACTED + ledger.day_prefix(0), RETRACTED + ledger.day_prefix(oldest)),
            ]
            self.retracted = {name: day for name, day in self.retracted.items() if day >= oldest}
        self.watermark = watermark

    def forget(self) -> None:
        """Empty the caches of rows and neighbour lists: the store was written beside them."""
        self.rows = ReadCache(self.config.row_cache)
        self.recents = ReadCache(self.config.row_cache)
        self.carriers = ReadCache(self.config.row_cache)
        self._shares = ReadCache(self.config.row_cache)

    def load_rows(self, keys: Iterable[bytes]) -> dict[bytes, bytearray]:
        """Return rows by their keys in ROWS, empty ones where there is none."""
        return _load(keys, self.rows, self.store, _row)

    def load_recents(self, keys: Iterable[bytes]) -> dict[bytes, Recent]:
        """Return lists of recent neighbours by their keys in ROWS."""
        return _load(keys, self.recents, self.store, recent.load)

    def follows(self, account: str) -> bool:
        """True if the account follows somebody; what a batch under way adds does not count."""
        key = FOLLOWEES + account.encode()
        return bool(self.load_recents([key])[key].entries)

    def load_profiles(self, accounts: Iterable[str]) -> dict[str, Profile]:
        """Return profiles by account."""
        keys = {PROFILE + account.encode(): account for account in accounts}
        found = _load(keys, self.profiles, self.store, profiles.load)
        return {keys[key]: profile for key, profile in found.items()}

    # -- communities -----------------------------------------------------------------------------------------

    def _load_slots(self, versions: Mapping[str, KnownFor]) -> None:
        store = self.store
        stored = store.get(Column.META, [slots.SLOT + digit for digit in slots.DIGITS])
        (read_slot,) = store.get(Column.META, [slots.READ])
        found = [slots.load(number, value, versions) for number, value in enumerate(stored)]
        self.slots = [slot for slot in found if slot is not None]
        self.read_slot = int(read_slot) if read_slot and found[int(read_slot)] is not None else NOBODY
        for number, value in enumerate(stored):
            if value is not None and found[number] is None:
                self._empty(number)

    def _empty(self, number: int) -> None:
        """Let go of a slot and its rows; what follows still carry of it is left out when they are sent next."""
        meta: dict[bytes, bytes | None] = {slots.SLOT + slots.DIGITS[number]: None}
        if number == self.read_slot:
            self.read_slot, meta[slots.READ] = NOBODY, None
        self.slots = [slot for slot in self.slots if slot.number != number]
        self.store.write({Column.META: meta}, slots.rows_of(number))
        self.forget()

    @property
    def communities(self) -> Slot | None:
        """The slot that is read."""
        return next((slot for slot in self.slots if slot.number == self.read_slot), None)

    @property
    def unread(self) -> Slot | None:
        """The slot that is to be read when it is filled."""
        newest = max(self.slots, key=lambda slot: slot.record.turn, default=None)
        return None if newest is None or newest.number == self.read_slot else newest

    @property
    def filled(self) -> bool:
        """True if every slot holds everything of this partition, and all of it was sent."""
        return all(slot.counted for slot in self.slots) and not self._filling and not self.recounts

    def adopt(self, known: KnownFor, turn: int) -> bool:
        """Begin to fill a slot with a version; False if it is held already.

        Where both slots are taken, the one that is not read gives way.
        """
        if any(slot.known.version == known.version for slot in self.slots):
            return False
        if len(self.slots) == len(slots.DIGITS):
            others = [slot for slot in self.slots if slot.number != self.read_slot]
            self._empty(min(others, key=lambda slot: slot.record.turn).number)
        number = 1 if any(slot.number == 0 for slot in self.slots) else 0
        slot = Slot(number, known, slots.Record(known.version, turn))
        if any(other.tag == slot.tag for other in self.slots):
            raise ValueError(
                f"version is {known.version}, and the version in use begins with the same digits"
            )
        self.slots.append(slot)
        self.store.write({Column.META: {slot.key: slot.dump()}})
        self._filling.clear()
        return True

    def switch(self) -> None:
        """Read the slot that was filled, and let go of the other one."""
        slot = self.unread
        if slot is None:
            return
        self.read_slot = slot.number
        self.store.write({Column.META: {slots.READ: slots.DIGITS[slot.number]}})
        for other in [other for other in self.slots if other is not slot]:
            self._empty(other.number)

    def recount(self, accounts: Iterable[bytes] | None) -> None:
        """Put accounts, or everyone, down to be counted anew: the ledgers were written beside their interests."""
        meta: dict[bytes, bytes | None] = {}
        if not self.slots:
            return
        if accounts is None:
            for slot in self.slots:
                slot.record.out = b""
                meta[slot.key] = slot.dump()
        else:
            for name in accounts:
                self.recounts[name.decode()] = None
                meta[RECOUNT + name] = b""
        self.store.write({Column.META: meta})

    def resend(self, account: str, batch: Batch, *, filling: bool = False) -> None:
        """Put an account's follows down to be sent again, from the first."""
        self.jobs[account] = batch.changes[Column.META][JOB + account.encode()] = b""
        if filling:
            self._filling.add(account)

    def resent(self, account: str, batch: Batch) -> None:
        """Take note that the follows of an account are sent."""
        if self.jobs.pop(account, None) is not None:
            batch.changes[Column.META][JOB + account.encode()] = None
        self._filling.discard(account)

    def load_carriers(self, accounts: Iterable[str]) -> dict[str, Carrier]:
        """Return what the revisions of accounts are made of."""
        keys = {CARRIER + account.encode(): account for account in accounts}
        found = _load(keys, self.carriers, self.store, carried.load)
        return {keys[key]: carrier for key, carrier in found.items()}

    def contributions(self, accounts: Collection[str]) -> dict[str, Contribution]:
        """Return what the follows of accounts carry at the moment."""
        carriers, profiled = self.load_carriers(accounts), self.load_profiles(accounts)
        shares = dict.fromkeys(accounts, b"")
        for slot in self.slots:
            keys = {slot.interest + account.encode(): account for account in accounts}
            missing = []
            for key, account in keys.items():
                known = self._shares.get(key)
                if known is None:
                    missing.append(key)
                else:
                    shares[account] += known
            for key, row in self.load_rows(missing).items():
                made = share(slot.tag, read(row), self.limits.most) if row else b""
                self._shares.put(key, made)
                shares[keys[key]] += made
        return {a: Contribution.of(carriers[a], profiled[a].codes(), shares[a]) for a in accounts}

    def put_row(self, key: bytes, row: bytes, batch: Batch) -> None:
        """Put a row of communities in the place of what was there."""
        self.load_rows([key])[key][:] = row
        self._shares.drop(key)
        batch.changes[Column.ROWS][key] = row or None


def _load(
    keys: Iterable[bytes], cache: ReadCache[_V], store: Store, load: Callable[[bytes | None], _V]
) -> dict[bytes, _V]:
    values, missing = cache.find(keys)
    if missing:
        for key, stored in zip(missing, store.get(Column.ROWS, missing), strict=True):
            values[key] = value = load(stored)
            cache.put(key, value)
    return values


def _row(stored: bytes | None) -> bytearray:
    return bytearray(stored or b"")


class Batch:
    """Everything one batch changes in a partition, until it is written as one."""

    def __init__(self, partition: Partition) -> None:
        self.partition = partition
        self.changes: dict[Column, dict[bytes, bytes | None]] = {column: {} for column in Column}
        self.counts: dict[tuple[str, int, int], int] = {}  # (account, family, minute) -> change
        self.cells: dict[tuple[bytes, bytes], int] = {}  # (row key, cell) -> change
        self.recents: list[tuple[str, int, int, str]] = []  # (account, time before, time after, other)
        self.sketched: list[tuple[str, str, int]] = []  # (account, other, +1 or -1)
        # As `recents`, by the list; the other with its letter.
        self.listed: dict[Newest, list[tuple[str, int, int, str]]] = {}
        # (day, target, family, actor) -> changes (minute of the day, by)
        self.pairs: dict[tuple[int, str, int, str], list[tuple[int, int]]] = {}
        self.touched: set[str] = set()  # accounts whose rows changed
        self.busy: set[str] = set()  # actors with more than half a reach of something of a batch, of any day
        self.dropped: list[Dropped] = []

    def edge(self, account: str, family: int, before: int, after: int) -> None:
        """Count that an edge's or occurrence's time went from `before` to `after`; -1 is absent."""
        counts = self.counts
        if before >= 0:
            at = account, family, before // MINUTE
            counts[at] = counts.get(at, 0) - 1
        if after >= 0:
            at = account, family, after // MINUTE
            counts[at] = counts.get(at, 0) + 1

    def made(self, actor: str, family: int, before: int, after: int, target: str) -> None:
        """Count an actor's edge or occurrence in its own row, and list it among its newest."""
        self.edge(actor, family, before, after)
        kind = NEWEST_OF[family]
        if kind is not None:
            change = actor, before, after, f"{chr(65 + family)}{target}"
            self.listed.setdefault(kind, []).append(change)

    def got(self, target: str, family: int, before: int, after: int, actor: str) -> None:
        """Count an edge or occurrence in its target's row, up to the signal's cap for one actor and day.

        Times are -1 also for what is withheld.
        """
        if not _CAPS[family]:
            self.edge(target, family, before, after)
            return
        for time, by in ((before, -1), (after, 1)):
            if time >= 0:
                day, minute = divmod(time // MINUTE, pairs.DAY_MINUTES)
                self.pairs.setdefault((day, target, family, actor), []).append((minute, by))

    def fold_pairs(self) -> None:
        """Bring what actors add to targets into the counts, each up to its cap."""
        oldest = ledger.held_days(self.partition.watermark).start
        staged, counts = self.changes[Column.HEARD], self.counts
        keys = {at: pair_key(*at) for at in self.pairs if at[0] >= oldest}
        stored = dict(zip(keys, self.partition.store.get(Column.HEARD, list(keys.values())), strict=True))
        for at, changes in self.pairs.items():
            day, target, family, _ = at
            key = keys.get(at)
            if key is not None and stored[at] is None and len(changes) == 1 and changes[0][1] == 1:
                (minute, _) = changes[
                    0
                ]  # the first of its actor, target and day, and no signal has a cap below one
                staged[key] = pairs.first(minute)
                place = target, family, day * pairs.DAY_MINUTES + minute
                counts[place] = counts.get(place, 0) + 1
                continue
            cap, first = _CAPS[family], day * pairs.DAY_MINUTES
            before = pairs.load(stored[at]) if key is not None else self._pair(*at)
            after = pairs.moved(before, changes)
            if key is not None:
                staged[key] = pairs.dump(after)
            was, now = pairs.counted(before, cap), pairs.counted(after, cap)
            for minute in was.keys() | now.keys():
                if by := now.get(minute, 0) - was.get(minute, 0):
                    place = target, family, first + minute
                    counts[place] = counts.get(place, 0) + by

    def _pair(self, day: int, target: str, family: int, actor: str) -> dict[int, int]:
        """What the in-ledger holds of a pair on a day beyond the horizon, where state edges alone can still move."""
        prefix = f"{target}\0{chr(65 + family)}{actor}\0".encode()
        values = (value for _, value in self.partition.store.scan(Column.IN, prefix))
        times = [ledger.since(value) for value in values if not is_withheld(value)]
        return pairs.moved(
            {}, [(t // MINUTE % pairs.DAY_MINUTES, 1) for t in times if t >= 0 and t // DAY == day]
        )

    def cell(self, row_key: bytes, name: bytes, by: int) -> None:
        """Add to a cell that is no time bucket."""
        self.cells[row_key, name] = self.cells.get((row_key, name), 0) + by

    def fold_rows(self, row_prefix: bytes) -> None:
        """Bring the counts and cells into the rows of one direction."""
        partition = self.partition
        now_minute = partition.watermark // MINUTE
        keys = {account: row_prefix + account.encode() for account, _, _ in self.counts}
        rows = partition.load_rows({*keys.values(), *(key for key, _ in self.cells)})
        count_at, bump_first = counters.count_at, counters.bump_first
        bounds = partition.half_reach if row_prefix == ROW_OUT else _UNBOUNDED
        for (account, family, minute), by in self.counts.items():
            if by:
                if count_at(rows[keys[account]], family, minute, by, now_minute) > bounds[family]:
                    self.busy.add(account)
            elif bounds[family] < _NO_BOUND:
                self.busy.add(account)  # one went, another came
        for (key, name), by in self.cells.items():
            if by:
                bump_first(rows[key], name, by)
        staged = self.changes[Column.ROWS]
        for key, row in rows.items():
            if len(row) > 2048 and len(row) % 512 == 0:
                row[:] = counters.prune(row, now_minute)
            staged[key] = bytes(row) if row else None
        self.touched.update(keys)
        self.touched.update(key[1:].decode() for key, _ in self.cells)

    def fold_recents(self, list_prefix: bytes, column: Column) -> None:
        """Bring the changed follows into the neighbour lists of one direction."""
        self._fold_list(list_prefix, self.recents, NEIGHBOURS, partial(self._present, column))

    def fold_newest(self) -> None:
        """Bring what actors did into their lists of newest."""
        for kind, changes in self.listed.items():
            self._fold_list(kind.value, changes, SIZES[kind], partial(self._done, kind))

    def _fold_list(
        self,
        list_prefix: bytes,
        changes: Sequence[tuple[str, int, int, str]],
        size: Size,
        again_from: Callable[[str], list[recent.Entry]],
    ) -> None:
        if not changes:
            return
        partition = self.partition
        keys = {account: list_prefix + account.encode() for account, _, _, _ in changes}
        lists = partition.load_recents(keys.values())
        again = set()
        for account, before, after, other in changes:
            known = lists[keys[account]]
            if before >= 0 and known.remove(before, other, size.read):
                again.add(account)
            if after >= 0:
                known.add(after, other, size.capacity)
        for account in again:
            known = lists[keys[account]]
            made = recent.newest(again_from(account), size.capacity)
            known.entries, known.complete = made.entries, made.complete
        staged = self.changes[Column.ROWS]
        for key, known in lists.items():
            staged[key] = recent.dump(known)
        self.touched.update(keys)

    def _present(self, column: Column, account: str) -> list[recent.Entry]:
        """The account's present follows as this batch leaves them."""
        prefix = ledger.follows_of(account)
        return list(recent.present(prefix, self._left(column, prefix)))

    def _done(self, kind: Newest, account: str) -> list[recent.Entry]:
        """What an account did of a kind, as this batch leaves its ledger."""
        found: list[recent.Entry] = []
        families = [signal for signal in SIGNALS if signal.newest is kind]
        for signal in families:
            if signal.kind is SignalKind.STATE:
                prefix = f"{account}\0{chr(65 + signal.family)}".encode()
                for key, value in self._left(Column.OUT, prefix):
                    if (time := ledger.since(value)) >= 0:
                        found.append((-time, key[len(account.encode()) + 1 :].split(b"\0")[0].decode()))
        once = {65 + signal.family for signal in families if signal.kind is SignalKind.OCCURRENCE}
        if not once:
            return found
        for day in ledger.held_days(self.partition.watermark):
            for key, value in self._left(Column.SAID, ledger.day_prefix(day) + account.encode() + b"\0"):
                letter_target = key[4:].split(b"\0")[2]
                if letter_target[0] in once and (time := ledger.since(value)) >= 0:
                    found.append((-time, letter_target.decode()))
        return found

    def _left(self, column: Column, prefix: bytes) -> Iterator[tuple[bytes, bytes | None]]:
        """The pairs of a prefix as this batch leaves them."""
        left: dict[bytes, bytes | None] = dict(self.partition.store.scan(column, prefix))
        left.update((k, v) for k, v in self.changes[column].items() if k.startswith(prefix))
        return iter(left.items())

    def fold_sketches(self, letter: bytes) -> None:
        """Bring gained and lost neighbours of one direction into their accounts' sketches."""
        if not self.sketched:
            return
        places: dict[str, int] = {}
        changes = [
            (places.setdefault(account, len(places)), other, by) for account, other, by in self.sketched
        ]
        keys = [letter + account.encode() for account in places]
        sums = sketches.fold(self.partition.store.get(Column.ROWS, keys), changes)
        self.changes[Column.ROWS].update((key, one or None) for key, one in zip(keys, sums, strict=True))

    def fold_mutual(self, flips: list[tuple[str, str, int]], other_column: Column) -> None:
        """Count follows that are returned; flips are (account, other, +1 or -1) of one direction's ledger."""
        if not flips:
            return
        keys = [ledger.edge_key(account, _FOLLOW, other, "") for account, other, _ in flips]
        for (account, _, by), value in zip(flips, self.partition.store.get(other_column, keys), strict=True):
            if ledger.since(value) >= 0:
                self.cell(ROW_IN + account.encode(), _MUTUAL, by)

    def send(self, out: Mapping[int, Frame]) -> None:
        """Put frames into the outbox, by destination; they wait there until they are acknowledged."""
        partition, meta = self.partition, self.changes[Column.META]
        for destination, frame in out.items():
            number = partition.next_frame
            partition.next_frame += 1
            frame.source, frame.upto, frame.appended = partition.number, partition.applied, partition.appended
            raw = frames.encode(frame)
            meta[outbox_key(number, destination)] = raw
            partition.outbox[number] = destination, raw
            partition.said[destination] = partition.applied

    def write(self) -> None:
        """Write everything as one; after it nothing lives only in memory."""
        partition = self.partition
        meta = self.changes[Column.META]
        meta[APPLIED] = partition.applied.to_bytes(8, "big")
        meta[WATERMARK] = partition.watermark.to_bytes(8, "big")
        for key in partition.acknowledged:
            meta[key] = None
        if partition.marks and self.touched:
            key, value = partition.mark(self.touched)
            meta[key] = value
        partition.changed.mark(self.touched, meta)
        partition.store.write(self.changes, self.dropped)
        partition.acknowledged.clear()


def _check_layout(stored: str, number: int, partitions: int) -> None:
    """Return if a store of another layout is one that this build brings up to its own; raises WrongLayout."""
    form, _, place = stored.partition(" ")
    if form not in (str(FORMAT), str(UPGRADED)):
        newer = form.isdecimal() and int(form) > FORMAT
        cure = "open it with the build that wrote it" if newer else "load or replay it anew"
        raise WrongLayout(
            f"the store has format {form}, this build reads {FORMAT} and upgrades {UPGRADED}; {cure}"
        )
    if place != f"{number}/{partitions}":
        raise WrongLayout(f"the store is of partition {place}, not {number}/{partitions}")


def pair_key(day: int, target: str, family: int, actor: str) -> bytes:
    """Return the key of HEARD under which lies what an actor adds to a target on a day, of one family."""
    return ledger.day_prefix(PAIRS | day) + f"{target}\0{chr(65 + family)}{actor}".encode()


def outbox_key(number: int, destination: int) -> bytes:
    """Return the key under which a frame waits for its destination partition."""
    return OUTBOX + number.to_bytes(8, "big") + destination.to_bytes(4, "big")
