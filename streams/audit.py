"""What is left of an account under a directory: everything is decoded and searched, not only where it should be.

Reads beside a running process and changes nothing. Of a deleted account the salted hash may be left, and what the
logs of events hold until their retention is over; anything else is a leftover.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec
from safetensors import SafetensorError, safe_open

from kithstream.streams.communities.known import hash_of
from kithstream.streams.config import Config, StoreConfig
from kithstream.streams.engine import frames
from kithstream.streams.engine.changed import CHANGED
from kithstream.streams.engine.log import ROLLED, records, segments
from kithstream.streams.engine.partition import (
    BOOK,
    DELETED,
    FOLLOWEES,
    FOLLOWERS,
    JOB,
    LEAVING,
    OUTBOX,
    PROFILE,
    RETRACTED,
    ROW_IN,
    ROW_OUT,
    SALT,
    SKETCH,
    fingerprint,
)
from kithstream.streams.errors import StoreRefused
from kithstream.streams.examples.columns import naming
from kithstream.streams.state import contacts, recent
from kithstream.streams.state.ledger import HOUR
from kithstream.streams.state.protocol import Column
from kithstream.streams.state.store import RocksReplica

STORE: Final = StoreConfig(cache_bytes=8 << 20, write_buffer_bytes=1 << 20)
_NUMBERS: Final = frozenset((ROW_IN, ROW_OUT, SKETCH, PROFILE))  # rows whose values name nobody
_LISTS: Final = frozenset((FOLLOWERS, FOLLOWEES))
_WORD: Final = rb"[0-9A-Za-z_.@-]"


class Finding(msgspec.Struct, frozen=True):
    """One place that holds the account, or its hash."""

    place: str
    found: int
    why: str
    until: str
    allowed: bool  # of a deleted account, too


class Audit(msgspec.Struct, frozen=True):
    """All places that were searched and hold something, and what was searched."""

    account: str
    deleted: bool
    findings: Sequence[Finding]
    searched: Mapping[str, int]  # keys, records and files, by what they are
    notes: Sequence[str]

    @property
    def leftovers(self) -> list[Finding]:
        """What must not be there if the account was deleted."""
        return [finding for finding in self.findings if self.deleted and not finding.allowed]


class _Event(msgspec.Struct):
    """The names in a record of the log."""

    actor: str = ""
    target: str = ""
    id: str = ""


def audit(account: str, path: Path, also: Sequence[Path], config: Config) -> Audit:
    """Search a runtime's directory, and other directories, for an account.

    Raises StoreRefused where a store cannot be read, and for a directory that is none of a runtime.
    """
    search = _Search(account, config)
    live = sorted(folder for folder in (path / "state").glob("*") if _is_store(folder))
    if not live:
        raise StoreRefused(f"{path} holds no stores of a runtime: state/0 is missing")
    search.directory(path, live)
    for other in also:
        search.directory(other, [])
    if config.model.path and Path(config.model.path).is_file():
        search.file(Path(config.model.path), Path(config.model.path).name)
    return search.result()


def mention(account: str) -> re.Pattern[bytes]:
    """Return what finds an account's name as a whole word, or as a string of msgpack."""
    name = re.escape(account.encode())
    return re.compile(rb"(?:(?<!" + _WORD + rb")|(?<=\xd9[\x00-\xff]))" + name + rb"(?!" + _WORD + rb")")


class _Search:
    """Counts by place, as the search goes on."""

    def __init__(self, account: str, config: Config) -> None:
        self._account = account
        self._name = account.encode()
        self._config = config
        self._mention = mention(account)
        self._findings: list[Finding] = []
        self._searched: Counter[str] = Counter()
        self._unfinished: list[str] = []
        self._deleted = False

    def result(self) -> Audit:
        notes = [
            "the runtime stores no dead letters; on Kafka they are in the topic dead-letters for 14 days",
            "files of the stores may hold what was written over until RocksDB rewrites them: the account's own "
            "keys when its deletion is finished, others' rows that named it as the store is written to",
        ]
        notes += [f"{place} is being written and cannot be searched yet" for place in self._unfinished]
        return Audit(self._account, self._deleted, self._findings, dict(self._searched), notes)

    def directory(self, path: Path, live: Sequence[Path]) -> None:
        """Search stores, logs and files under a directory; those of `live` are the runtime's own."""
        stores = [folder for folder in sorted({path, *path.rglob("*")}) if _is_store(folder)]
        for folder in stores:
            self._store(folder, str(folder.relative_to(path)), copy=folder not in live)
        inside = set(stores)
        logs: dict[Path, None] = {}
        for file in sorted(path.rglob("*")):
            if not file.is_file() or inside.intersection(file.parents):
                continue
            if file.suffix == ".log" and file.stem.isdecimal():
                logs[file.parent] = None
            else:
                self.file(file, str(file.relative_to(path)))
        for folder in logs:
            self._log(folder, str(folder.relative_to(path)))

    # -- stores ----------------------------------------------------------------------------------------------

    def _store(self, folder: Path, place: str, *, copy: bool) -> None:
        with tempfile.TemporaryDirectory(prefix="kithstream-audit-") as own:
            store = RocksReplica(folder, Path(own), STORE)
            try:
                (salt,) = store.get(Column.META, [SALT])
                hashed = fingerprint(self._name, salt or b"")
                found: Counter[tuple[str, str, bool]] = Counter()
                for column in Column:
                    for key, value in store.scan(column, b""):
                        self._searched["keys of stores"] += 1
                        for why, until, allowed in self._pair(column, key, value, hashed):
                            found[why, until, allowed] += 1
                            if not copy and why == _TOMBSTONE:
                                self._deleted = True
            finally:
                store.close()
        for (why, until, allowed), count in found.items():
            if copy and not allowed:
                why, until = f"in a copy made before it was deleted, or of a living account: {why}", _COPY
            if why == _HASHED:
                count = 1  # in how many address books is nobody's business
            self._findings.append(Finding(place, count, why, until, allowed))

    def _pair(
        self, column: Column, key: bytes, value: bytes, hashed: bytes
    ) -> Iterator[tuple[str, str, bool]]:
        """Yield of what a key and its value hold: why, until when, and whether that may stay."""
        name = self._name
        match column:
            case Column.OUT | Column.IN | Column.SAID | Column.HEARD:
                day = 4 if column in (Column.SAID, Column.HEARD) else 0
                parts = key[day:].split(b"\0")
                lettered = 2 if column is Column.SAID else 1
                other = parts[lettered]
                horizon = _HORIZON if day else _WHILE
                if other[0] in contacts.LETTERS and other[1:] == hashed.hex().encode():
                    yield _HASHED, _PURGED, True
                if name in (parts[0], other[1:]) or name in parts:
                    yield f"column {column.value}: an edge or event names it", horizon, False
                elif self._mention.search(key[day:]):
                    yield f"column {column.value}: an id of an event mentions it", horizon, False
            case Column.ROWS:
                letter = key[:1]
                if key[1:] == name:
                    yield f"a row of its own, letter {letter.decode()}", _WHILE, False
                if letter in _LISTS:
                    if any(other == self._account for _, other in recent.load(value).entries):
                        yield "a list of neighbours names it", _WHILE, False
                elif letter not in _NUMBERS and self._mentions(value):
                    yield f"a row of others names it, letter {letter.decode()}", _WHILE, False
            case Column.META:
                yield from self._meta(key, value, hashed)

    def _meta(self, key: bytes, value: bytes, hashed: bytes) -> Iterator[tuple[str, str, bool]]:
        name, letter = self._name, key[:1]
        if letter == DELETED and len(key) == 17:
            if key[1:] == hashed:
                yield _TOMBSTONE, "for ever: it keeps late events out", True
            return
        if letter in (LEAVING, JOB, BOOK) and key[1:] == name:
            what = {
                LEAVING: "it is being deleted",
                JOB: "follows are sent again",
                BOOK: "its contacts are read",
            }
            yield f"background work: {what[letter]}", "until that is done", False
        elif letter == RETRACTED and (key[5:].split(b"\0")[0] == name or self._mention.search(key[5:])):
            yield "a retraction mark names it", _HORIZON, False
        elif letter == OUTBOX and len(key) == 13:
            frame = frames.decode(value)
            keys = [*frame.states[::2], *frame.void]
            keys += [key[4:] for key in (*frame.heard[::2], *frame.unsaid)]
            if any(name in (part, part[1:]) for key in keys for part in key.split(b"\0")):
                yield "a frame to another partition names it", "until it is delivered", False
        elif letter == CHANGED and len(key) > 5 and key[5:] == name:
            yield "its rows changed since the last snapshot of the index", _SNAPSHOT, False
        elif self._mentions(value) or self._mention.search(key[1:]) or key[1:] == name:
            yield f"META {key[:8]!r} names it", "until vectors and progress are published", False

    def _mentions(self, value: bytes) -> bool:
        """True if a value that may be packed names the account."""
        if self._name not in value:
            return False
        try:
            return _named(msgspec.msgpack.decode(value), self._account) or bool(self._mention.search(value))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return True  # unreadable, and the bytes are in it

    # -- logs and files --------------------------------------------------------------------------------------

    def _log(self, folder: Path, place: str) -> None:
        decode = msgspec.json.Decoder(_Event).decode
        count = newest = 0
        for segment in segments(folder):
            for record in records(segment):
                self._searched["records of logs"] += 1
                try:
                    event = decode(record.raw)
                    found = self._account in (event.actor, event.target)
                except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                    found = False
                if found or (self._name in record.raw and self._mention.search(record.raw)):
                    count, newest = count + 1, max(newest, record.appended)
        if count:
            last = newest + int(self._config.engine.retention_hours * HOUR) + ROLLED + HOUR
            until = f"{_moment(last)} if the runtime runs then (engine.retention_hours)"
            self._findings.append(Finding(place, count, "events in the log name it", until, True))

    def file(self, file: Path, place: str) -> None:
        """Search one file that is no store and no log."""
        self._searched["files"] += 1
        if file.name.removesuffix(".tmp").removesuffix(".writing").endswith(".safetensors"):
            self._tensors(file, place)
        elif file.name.endswith(".parquet"):
            count = naming(file, self._account)
            if count:
                why = "rows of training examples name it"
                until = "until they are removed: what is written of a deleted account stays"
                self._findings.append(Finding(place, count, why, until, False))
        elif file.name.endswith(".parquet.writing"):
            self._unfinished.append(place)
        elif file.name == "ids.json":
            names = Counter(json.loads(file.read_bytes()))
            if names[self._account]:
                why = "a snapshot of the index holds its vector and name"
                self._findings.append(Finding(place, 1, why, _SNAPSHOT, False))
        elif file.name == "tail.msgpack":
            if self._mentions(file.read_bytes()):
                why = "a snapshot of the index holds reasons that name it"
                self._findings.append(Finding(place, 1, why, _SNAPSHOT, False))
        else:
            with file.open("rb") as lines:
                count = sum(1 for line in lines if self._name in line and self._mention.search(line))
            if count:
                self._findings.append(Finding(place, count, "lines of a file mention it", _FILE, False))

    def _tensors(self, file: Path, place: str) -> None:
        try:
            with safe_open(file, "np") as saved:
                keys = set(saved.keys())
                for part, why, until in _TENSORS:
                    if {f"{part}.names", f"{part}.ends"} <= keys:
                        names = saved.get_tensor(f"{part}.names").tobytes()
                        ends = saved.get_tensor(f"{part}.ends").tolist()
                        if any(names[a:b] == self._name for a, b in zip([0, *ends[:-1]], ends, strict=True)):
                            self._findings.append(Finding(place, 1, why, until, False))
                if "hashes" in keys and hash_of(self._account) in saved.get_tensor("hashes").tolist():
                    why = "communities know its hash, not its name"
                    self._findings.append(Finding(place, 1, why, "until the next version", True))
        except (SafetensorError, OSError) as error:
            raise StoreRefused(f"{file} cannot be searched: {error}") from error


_TOMBSTONE: Final = "the salted hash of a deleted account"
_HASHED: Final = "address books of others hold its salted hash; how many is not told"
_PURGED: Final = "until their owners remove it, withdraw their consent or are deleted"
_WHILE: Final = "while the account lives; at most seconds after its deletion"
_HORIZON: Final = "7 to 9 days after the event; at most seconds after its deletion"
_COPY: Final = "until this copy is removed"
_MODEL: Final = (
    "until it is saved again (model.save_seconds), or its runtime is closed; a copy until it is removed"
)
_SNAPSHOT: Final = "until the next snapshot (index.snapshot_seconds), or the runtime is closed"
_TENSORS: Final = (  # names in safetensors: of which arrays, what they are, until when they stay
    ("ids", "a model holds its learned vectors", _MODEL),
    ("facts", "a snapshot of the index holds what it is ranked by", _SNAPSHOT),
    ("ageing", "a snapshot of the index tells when its vector is due", _SNAPSHOT),
)
_FILE: Final = "until the file is removed"


def _is_store(folder: Path) -> bool:
    """True for a directory that RocksDB wrote."""
    return folder.is_dir() and (folder / "CURRENT").is_file() and any(folder.glob("MANIFEST-*"))


def _named(value: object, account: str) -> bool:
    """True if a decoded value holds the account as a string or as bytes."""
    if isinstance(value, str | bytes):
        return value == (account if isinstance(value, str) else account.encode())
    inner: Iterable[object] = ()
    if isinstance(value, dict):
        inner = (*value, *value.values())
    elif isinstance(value, list):
        inner = value
    return any(_named(one, account) for one in inner)


def _moment(at: int) -> str:
    return datetime.fromtimestamp(at / 1e6, UTC).strftime("%Y-%m-%d %H:%M UTC")


def written(found: Audit) -> Iterator[str]:
    """Yield the lines that a person reads."""
    state = "deleted" if found.deleted else "not deleted"
    yield f"{found.account}: {state}"
    for finding in sorted(found.findings, key=lambda f: (f.allowed, f.place)):
        mark = " " if not found.deleted else "ok" if finding.allowed else "!!"
        yield f"  {mark:<2}  {finding.place:<24} {finding.found:>8,}  {finding.why}"
        yield f"      {'':<24} {'':>8}  {finding.until}"
    searched = ", ".join(f"{count:,} {what}" for what, count in found.searched.items())
    yield f"  searched: {searched}"
    yield from (f"  note: {note}" for note in found.notes)
    if found.deleted:
        left = len(found.leftovers)
        yield f"  {left} leftovers" if left else "  nothing is left but what may be"
