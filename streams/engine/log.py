"""The embedded log: one append-only file sequence a partition, what the topic `engagements` is on Kafka.

A record is length, checksum, append time and bytes. A write reaches the operating system before it returns, so
kill -9 loses nothing; a torn tail (power loss) is cut off when the log is opened.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from pathlib import Path
from struct import Struct
from types import TracebackType
from typing import Final, Self
from zlib import crc32

from kithstream.streams.engine.actors import Record
from kithstream.streams.errors import GapInLog

SEGMENT: Final = 64 << 20  # bytes after which a new file begins
ROLLED: Final = 86_400_000_000  # microseconds after which one begins anyway, so that old records can go
_head = Struct("<IIq")  # length, crc32 of time and bytes, append time


class Log:
    """Records with consecutive offsets. One appender; reading goes on beside it."""

    def __init__(self, path: Path) -> None:
        """Open or create the directory; cuts a torn tail."""
        path.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._firsts = sorted(int(file.stem) for file in path.glob("*.log")) or [0]
        self._next, size = self._recover(self._firsts[-1])
        self._file = open(self._name(self._firsts[-1]), "ab")  # noqa: SIM115 (held open)
        self._size = size
        self._reader: tuple[int, int, int] | None = None  # offset, segment, byte position

    @property
    def first(self) -> int:
        """The oldest offset that can still be read."""
        return self._firsts[0]

    @property
    def end(self) -> int:
        """The offset that the next record gets."""
        return self._next

    def append(self, records: Iterable[Record]) -> int:
        """Append records; return the offset of the first one."""
        first = end = self._next
        parts = []
        for appended, raw in records:
            checked = crc32(raw, appended & 0xFFFFFFFF)
            parts.append(_head.pack(len(raw), checked, appended))
            parts.append(raw)
            end += 1
        data = b"".join(parts)
        self._file.write(data)
        self._file.flush()
        self._size += len(data)
        if self._size >= SEGMENT:
            self._begin(end)
        self._next = end  # last: a reader beside takes what is below for written
        return first

    def read(self, offset: int, limit: int) -> list[Record]:
        """Return up to `limit` records from an offset on; raises GapInLog if the log begins later."""
        if offset < self.first:
            raise GapInLog(f"the log begins at offset {self.first}, the state ends at {offset}")
        limit = min(limit, self._next - offset)
        if limit <= 0:
            return []
        segment, position, at = self._seek(offset)
        found: list[Record] = []
        while len(found) < limit:
            with open(self._name(self._firsts[segment]), "rb") as file:
                file.seek(position)
                last = self._firsts[segment + 1] if segment + 1 < len(self._firsts) else self._next
                while at < last and len(found) < limit:
                    length, _, appended = _head.unpack(file.read(_head.size))
                    raw = file.read(length)
                    if at >= offset:
                        found.append(Record(appended, raw))
                    at += 1
                position = file.tell()
            if at == last and segment + 1 < len(self._firsts):
                segment, position = segment + 1, 0
        self._reader = at, segment, position
        return found

    def roll(self, now: int) -> bool:
        """Begin a new file if the newest one began a day ago, by append times; true if it did. For the appender."""
        first = self._appended(self._firsts[-1])
        if first is None or first > now - ROLLED:
            return False
        self._begin(self._next)
        return True

    def _begin(self, first: int) -> None:
        self._file.close()
        self._file = open(self._name(first), "ab")  # noqa: SIM115 (held open)
        self._firsts.append(first)
        self._size = 0

    def _appended(self, first: int) -> int | None:
        """When a file's first record was appended, None if it has none."""
        with open(self._name(first), "rb") as file:
            head = file.read(_head.size)
        return _head.unpack(head)[2] if len(head) == _head.size else None

    def drop_before(self, offset: int, appended: int) -> int:
        """Delete whole files whose records are below `offset` and older than a time; return how many."""
        dropped = 0
        while len(self._firsts) > 1 and self._firsts[1] <= offset:
            newer = self._appended(self._firsts[1])  # not older than the newest of the file before
            if newer is None:
                newer = max(record.appended for record in records(self._name(self._firsts[0])))
            if newer >= appended:
                break
            self._name(self._firsts.pop(0)).unlink()
            self._reader = None
            dropped += 1
        return dropped

    def sync(self) -> None:
        """Wait until everything appended is on the disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Release the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _name(self, first: int) -> Path:
        return self._path / f"{first:020d}.log"

    def _seek(self, offset: int) -> tuple[int, int, int]:
        """Segment, byte position and offset from which to read towards `offset`."""
        if self._reader is not None and self._reader[0] <= offset:
            at, segment, position = self._reader
            if segment + 1 >= len(self._firsts) or offset < self._firsts[segment + 1]:
                return segment, position, at
        segment = bisect_right(self._firsts, offset) - 1
        return segment, 0, self._firsts[segment]

    def _recover(self, first: int) -> tuple[int, int]:
        """Offset after the last whole record of a file, and its size after cutting what follows."""
        name = self._name(first)
        if not name.exists():
            return first, 0
        data = name.read_bytes()
        at, count = 0, 0
        while at + _head.size <= len(data):
            length, checked, appended = _head.unpack_from(data, at)
            raw = data[at + _head.size : at + _head.size + length]
            if len(raw) < length or crc32(raw, appended & 0xFFFFFFFF) != checked:
                break
            at += _head.size + length
            count += 1
        if at < len(data):
            os.truncate(name, at)
        return first + count, at


def segments(path: Path) -> list[Path]:
    """Return a log's files, oldest first; the name of each is the offset of its first record."""
    return sorted(path.glob("*.log"))


def records(segment: Path) -> Iterator[Record]:
    """Yield the whole records of one file. Changes nothing, so another process may hold the log open."""
    data = segment.read_bytes()
    at = 0
    while at + _head.size <= len(data):
        length, checked, appended = _head.unpack_from(data, at)
        raw = data[at + _head.size : at + _head.size + length]
        if len(raw) < length or crc32(raw, appended & 0xFFFFFFFF) != checked:
            return
        yield Record(appended, raw)
        at += _head.size + length
