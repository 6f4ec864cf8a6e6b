"""The promises as executable definitions.

`expected` recomputes in batch, from the published log alone, what the ledgers, rows, neighbour lists and sketches
must hold at rest; `held` reads the same out of an engine. Nothing here calls the folds it judges.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from msgspec import msgpack
from msgspec.structs import replace

from kithstream.streams.engine.engine import Engine
from kithstream.streams.events.signals import BY_NAME, SIGNALS, UNDO_OF, Group, Kind
from kithstream.streams.events.wire import Event
from kithstream.streams.state.protocol import Column

MINUTE, HOUR, DAY = 60_000_000, 3_600_000_000, 86_400_000_000
READ = 32
_READ = {"ENGAGED": 12, "AVOIDED": 8, "SHOWN": 96}  # entries of the lists of newest that must be exact

Edge = tuple[str, str, str, str]  # actor, family, target, item
Cells = dict[tuple[str, str, int], int]  # (family, kind, place) -> count


@dataclass
class State:
    """What must be equal, in plain values."""

    edges: dict[Edge, int] = field(default_factory=dict)  # present state edges and their time
    transposed: dict[Edge, int] = field(default_factory=dict)  # the same, read from the in-ledgers
    occurrences: Counter[tuple[str, str, str, str, int]] = field(default_factory=Counter)
    heard: Counter[tuple[str, str, str, str, int]] = field(default_factory=Counter)
    rows_out: dict[str, Cells] = field(default_factory=dict)
    rows_in: dict[str, Cells] = field(default_factory=dict)
    followers: dict[str, list[str]] = field(default_factory=dict)
    followees: dict[str, list[str]] = field(default_factory=dict)
    sketches: dict[str, list[int]] = field(default_factory=dict)
    following: dict[str, list[int]] = field(default_factory=dict)  # the sketches of followees
    newest: dict[tuple[str, str], list[str]] = field(
        default_factory=dict
    )  # (account, list) -> letter and target
    interests: dict[str, dict[int, int]] = field(default_factory=dict)  # followees by community
    carried: dict[tuple[str, str], dict[int, int]] = field(
        default_factory=dict
    )  # T on the edges at the targets
    audiences: dict[str, dict[int, int]] = field(default_factory=dict)  # sums of what followers carry


def expected(
    events: Iterable[Event],
    watermark: int,
    known: Mapping[str, int] | None = None,
    *,
    most: int = 50,
    newest: int = 2000,
    reach: int | None = None,
    salt: bytes = b"",
) -> State:
    """Return the state that a log of usable events means, in whatever order they came.

    `known` is the version of communities that is read, `most` and `newest` the bounds of an interest. `reach` takes
    the place of every signal's own that is not 0; no event is older than 128 days.

    `salt` is that of the engine, under which the names of address books are hashed.
    """
    events = list(events)
    deleted = {e.actor for e in events if e.signal == "account_delete"}
    retracted = {(e.actor, e.retracts) for e in events if e.signal == "retract" and e.actor not in deleted}
    edges: dict[Edge, tuple[bool, int, bool, int]] = {}
    once: dict[tuple[int, str, str, str, str, str], tuple[bool, int, int]] = {}
    language: dict[str, tuple[tuple[bool, int, int], str]] = {}
    country: dict[str, tuple[tuple[bool, int, int], str]] = {}
    begin = {actor: _consent([e for e in events if e.actor == actor]) for actor in {e.actor for e in events}}
    for e in events:
        private = e.signal in ("address_book", "address_book_remove")
        if e.actor in deleted or (e.target in deleted and not private):
            continue
        rank, crc = e.source == "server", zlib.crc32(e.id.encode())
        if e.signal == "profile":
            for where, said in ((language, e.language), (country, e.country)):
                stamp = (rank, e.time, crc)
                if said is not None and (e.actor not in where or stamp > where[e.actor][0]):
                    where[e.actor] = stamp, said
        undo = e.signal in UNDO_OF
        signal = UNDO_OF.get(e.signal) or BY_NAME.get(e.signal)
        if signal is None or (e.actor, e.id) in retracted:
            continue
        if private:
            if e.time < begin[e.actor]:
                continue
            e = replace(e, target=hashlib.blake2b(e.target.encode(), digest_size=16, key=salt).hexdigest())
        if signal.kind is Kind.STATE:
            edge = e.actor, signal.name, e.target, e.item if signal.item else ""
            edges[edge] = max(edges.get(edge, (False, -1, False, -1)), (rank, e.time, undo, crc))
        trace = (
            BY_NAME[e.signal] if undo and signal.trace else signal if signal.kind is Kind.OCCURRENCE else None
        )
        if trace is not None:
            item = e.item if trace.kind is not Kind.STATE and not undo else e.item if signal.item else ""
            key = e.time // DAY, e.actor, e.id, trace.name, e.target, item
            once[key] = max(once.get(key, (False, -1, -1)), (rank, e.time, crc))
    state = State()
    for edge, (_, time, undo, _) in edges.items():
        if not undo:
            state.edges[edge] = time
            if edge[1] != "address_book":
                state.transposed[edge] = time
    for (_, actor, event_id, name, target, _), (_, time, _) in once.items():
        state.occurrences[actor, event_id, name, target, time] += 1
    state.heard = Counter(state.occurrences)
    counted = [(a, t, f, time) for (a, f, t, _), time in state.edges.items()]
    counted += [(a, t, f, time) for (a, _, f, t, time) in state.occurrences]
    counts = [(state.rows_out, actor, name, time) for actor, _, name, time in counted]
    withheld = _withheld(counted, reach)
    heard = [(a, t, f, time) for a, t, f, time in counted if (a, t, f, time // DAY) not in withheld]
    counts += [
        (state.rows_in, target, name, time) for target, name, time in _capped(heard) if name != "address_book"
    ]  # nobody is told
    for rows, owner, name, time in counts:
        cells = rows.setdefault(owner, {})
        for cell in _cells(name, time, watermark):
            cells[cell] = cells.get(cell, 0) + 1
    done: dict[tuple[str, str], list[tuple[int, str]]] = defaultdict(list)
    for actor, target, name, time in counted:
        if (kind := BY_NAME[name].newest) is not None:
            done[actor, kind.name].append((-time, f"{chr(65 + BY_NAME[name].family)}{target}"))
    state.newest = {key: [other for _, other in sorted(e)[: _READ[key[1]]]] for key, e in done.items()}
    follows = {(a, t): time for (a, f, t, _), time in state.edges.items() if f == "follow"}
    gained: dict[str, list[tuple[int, str]]] = defaultdict(list)
    made: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for (actor, target), time in follows.items():
        made[actor].append((-time, target))
        gained[target].append((-time, actor))
        row = state.rows_in.setdefault(target, {})
        counts_there = (actor, target, "follow", time // DAY) not in withheld
        if (target, actor) in follows:
            cell = "follow", "mutual", 0
            row[cell] = row.get(cell, 0) + 1
        if counts_there and (actor in language or actor in country):
            for kind, where in (("language", language), ("country", country)):
                said = where[actor][1].split("-")[0] if actor in where else ""
                cell = "follow", kind, _code(said)
                row[cell] = row.get(cell, 0) + 1
        for where, owner, other in ((state.sketches, target, actor), (state.following, actor, target)):
            if where is state.sketches and not counts_there:
                continue
            where[owner] = (np.array(where.get(owner, [0] * 16)) + _vector(other)).tolist()
    state.rows_in = {account: cells for account, cells in state.rows_in.items() if cells}
    state.followers = {account: [o for _, o in sorted(e)[:READ]] for account, e in gained.items()}
    state.followees = {account: [o for _, o in sorted(e)[:READ]] for account, e in made.items()}
    for actor, own in made.items():
        counted = [target for _, target in sorted(own)[:newest]]
        counts = (
            Counter(known[target] for target in counted if target in (known or {})) if known else Counter()
        )
        if counts:
            state.interests[actor] = dict(counts)
        levels = {c: 2 ** max(j for j in range(60) if 2**j <= k) for c, k in counts.items() if k >= 2}
        told = dict(sorted(levels.items(), key=lambda item: (-item[1], item[0]))[:most])
        for target in counted if told else ():
            if (actor, target, "follow", follows[actor, target] // DAY) in withheld:
                continue
            state.carried[actor, target] = told
            audience = state.audiences.setdefault(target, {})
            for community, weight in told.items():
                audience[community] = audience.get(community, 0) + weight
    return state


def _consent(events: Iterable[Event]) -> float:
    """The time from which on an account's address book counts, as its profile events say; inf for never.

    A withdrawal takes away all up to its time. A consent stands against withdrawals that are lesser by the
    conflict rule and earlier; it reaches back to the day before it.
    """
    said = [((e.source == "server", e.time, zlib.crc32(e.id.encode())), e.contacts) for e in events]
    refused = [stamp for stamp, contacts in said if contacts is False]
    withdrawn = max((time for _, time, _ in refused), default=-1)
    days = [
        stamp[1] // DAY
        for stamp, contacts in said
        if contacts is True and stamp[1] > withdrawn and all(stamp > other for other in refused)
    ]
    return max(withdrawn + 1, (min(days) - 1) * DAY) if days else float("inf")


def held(engine: Engine) -> State:
    """Return the state that an engine's stores hold, decoded with `struct` alone."""
    state = State()
    watermark = engine.watermark
    for partition in engine.partitions:
        scan = partition.store.scan
        meta = dict(scan(Column.META, b""))
        read = meta.get(b"slot", b"")
        tag = bytes.fromhex(_version(meta[b"V" + read]))[:4] if read else b""
        for key, value in scan(Column.OUT, b""):
            if (time := _since(value)) >= 0:
                actor, letter_target, item = key.decode().split("\0")
                state.edges[actor, SIGNALS[ord(letter_target[0]) - 65].name, letter_target[1:], item] = time
        for key, value in scan(Column.IN, b""):
            if (time := _since(value)) >= 0:
                target, letter_actor, item = key.decode().split("\0")
                state.transposed[letter_actor[1:], SIGNALS[ord(letter_actor[0]) - 65].name, target, item] = (
                    time
                )
                if letter_actor[0] == "A" and tag and (told := _shares(value).get(tag)):
                    state.carried[letter_actor[1:], target] = told
        for key, value in scan(Column.SAID, b""):
            actor, event_id, letter_target, _ = key[4:].decode().split("\0")
            signal = SIGNALS[ord(letter_target[0]) - 65]
            if signal.kind is Kind.OCCURRENCE and (time := _since(value)) >= 0:
                state.occurrences[actor, event_id, signal.name, letter_target[1:], time] += 1
        for key, value in scan(Column.HEARD, b""):
            if key[0] & 0x80:  # what an actor adds to a target on a day
                continue
            target, letter_actor, _, event_id = key[4:].decode().split("\0")
            if (time := _since(value)) >= 0:
                name = SIGNALS[ord(letter_actor[0]) - 65].name
                state.heard[letter_actor[1:], event_id, name, target, time] += 1
        for key, value in scan(Column.ROWS, b""):
            account = key[1:].decode()
            if key[:1] in (b"u", b"x"):
                assert key[1:2] == read or b"V" + key[1:2] in meta, "a row of a version that nobody holds"
                if key[1:2] != read:
                    continue
                cells = {
                    number >> 40: number & (1 << 40) - 1 for (number,) in struct.iter_unpack(">Q", value)
                }
                (state.interests if key[:1] == b"u" else state.audiences)[account[1:]] = cells
            elif key[:1] in (b"i", b"o"):
                if cells := _row(value, watermark):
                    (state.rows_in if key[:1] == b"i" else state.rows_out)[account] = cells
            elif key[:1] in (b"s", b"t"):
                where = state.sketches if key[:1] == b"s" else state.following
                where[account] = list(struct.unpack("<16q", value))
        for letter, where in ((b"f", state.followers), (b"g", state.followees)):
            keys = [key for key, _ in scan(Column.ROWS, letter)]
            for key, recent in partition.load_recents(keys).items():
                if recent.entries:
                    where[key[1:].decode()] = [other for _, other in recent.entries[:READ]]
        for letter, name in ((b"e", "ENGAGED"), (b"a", "AVOIDED"), (b"v", "SHOWN")):
            keys = [key for key, _ in scan(Column.ROWS, letter)]
            for key, recent in partition.load_recents(keys).items():
                if recent.entries:
                    state.newest[key[1:].decode(), name] = [
                        other for _, other in recent.entries[: _READ[name]]
                    ]
    return state


def agree(
    engine: Engine,
    events: Iterable[Event],
    known: Mapping[str, int] | None = None,
    *,
    most: int = 50,
    newest: int = 2000,
    reach: int | None = None,
) -> None:
    """Assert that an engine at rest holds exactly what its log means."""
    salt = engine.partitions[0].salt
    want = expected(events, engine.watermark, known, most=most, newest=newest, reach=reach, salt=salt)
    have = held(engine)
    for name in State.__dataclass_fields__:
        assert getattr(have, name) == getattr(want, name), name


def _withheld(counted: list[tuple[str, str, str, int]], reach: int | None) -> set[tuple[str, str, str, int]]:
    """(actor, target, family, day) of what does not count: an actor has more of a family and day than its reach."""
    days = Counter((actor, name, time // DAY) for actor, _, name, time in counted)
    found = set()
    for actor, target, name, time in counted:
        most, there = BY_NAME[name].reach and (reach or BY_NAME[name].reach), days[actor, name, time // DAY]
        keep = 1  # of so many targets one counts
        while most and there > most * keep:
            keep *= 2
        digest = hashlib.blake2b(f"{actor}\0{target}".encode(), digest_size=4).digest()
        if struct.unpack(">I", digest)[0] % keep:
            found.add((actor, target, name, time // DAY))
    return found


def _capped(counted: list[tuple[str, str, str, int]]) -> list[tuple[str, str, int]]:
    """(target, family, time) of what counts for targets: of an actor and a day the first few alone."""
    days: dict[tuple[str, str, str, int], list[int]] = defaultdict(list)
    for actor, target, name, time in counted:
        days[actor, target, name, time // DAY].append(time)
    return [
        (target, name, time)
        for (_, target, name, _), times in days.items()
        for time in sorted(times)[: BY_NAME[name].cap or None]
    ]


def _cells(name: str, time: int, watermark: int) -> list[tuple[str, str, int]]:
    """The cells an event counts in, those that a reader at the watermark may still read."""
    cells = [(name, "total", 0)]
    if watermark // MINUTE - time // MINUTE < 240:
        group = next(other.name for other in SIGNALS if other.group is BY_NAME[name].group)
        if BY_NAME[name].group is not Group.SILENT:
            cells.append((group, "minute", time // MINUTE % (1 << 24)))
        if (
            BY_NAME[name].group is not Group.FOLLOW
            and watermark // (10 * MINUTE) - time // (10 * MINUTE) < 24
        ):
            cells.append((name, "ten", time // (10 * MINUTE)))
    if watermark // HOUR - time // HOUR < 48:
        cells.append((name, "hour", time // HOUR))
    if watermark // DAY - time // DAY < 128:
        cells.append((name, "day", time // DAY))
    return cells


def _row(value: bytes, watermark: int) -> Cells:
    kinds = ("minute", "hour", "day", "total", "mutual", "language", "country", "ten")
    cells: Cells = {}
    for number, count in struct.iter_unpack("<Ii", value):
        family, kind, place = number >> 27, kinds[number >> 24 & 7], number & 0xFFFFFF
        readable = {
            "minute": (watermark // MINUTE - place) % (1 << 24) < 240,
            "ten": watermark // (10 * MINUTE) - place < 24,
            "hour": watermark // HOUR - place < 48,
            "day": watermark // DAY - place < 128,
        }
        if readable.get(kind, True):
            assert (family, kind, place) not in cells, "a cell twice"
            cells[SIGNALS[family].name, kind, place] = count
    return cells


def _version(record: bytes) -> str:
    version: str = msgpack.decode(record)[0]
    return version


def _shares(value: bytes) -> dict[bytes, dict[int, int]]:
    """The interests that an in-edge carries, by the version's tag."""
    shares, at = {}, 14 + 8 + 4
    while at < len(value):
        tag, count = value[at : at + 4], value[at + 4]
        words = struct.unpack_from(f">{count}I", value, at + 5)
        shares[tag] = {word >> 5: 1 << (word & 31) for word in words}
        at += 5 + 4 * count
    return shares


def _since(value: bytes) -> int:
    if len(value) < 14:
        return -1
    (head,) = struct.unpack_from(">Q", value, 2)
    return -1 if head & 1 else head >> 1 & (1 << 62) - 1


def _vector(account: str) -> np.ndarray:
    return np.frombuffer(hashlib.blake2b(account.encode(), digest_size=16).digest(), np.int8).astype(np.int64)


def _code(letters: str) -> int:
    number = 0
    for letter in letters[:3].lower():
        number = number * 27 + ord(letter) - 96
    return number
