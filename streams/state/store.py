"""The store on RocksDB, through rocksdict: one database a partition, one write batch a poll batch.

Another process may read it beside its writer, as a RocksDB secondary instance.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple, cast

from rocksdict import (
    AccessType,
    BlockBasedOptions,
    Cache,
    Checkpoint,
    DBCompressionType,
    IngestExternalFileOptions,
    Options,
    Rdict,
    RdictIter,
    ReadOptions,
    SstFileWriter,
    WriteBatch,
    WriteOptions,
)

from kithstream.streams.config import StoreConfig
from kithstream.streams.errors import StoreRefused
from kithstream.streams.state.protocol import Changes, Column, Dropped, reaching

ATTEMPTS: Final = 100  # to catch up with a writer that flushes meanwhile


class _Columns:
    """What can be read of an open database."""

    def __init__(self, path: Path, config: StoreConfig, access: AccessType) -> None:
        self._path = path
        cache = Cache.new_hyper_clock_cache(config.cache_bytes, 4096)
        self._options = {c.value: self._tuned(_options(config, cache, c)) for c in Column}
        self._open(access)

    def _tuned(self, options: Options) -> Options:
        return options

    def _open(self, access: AccessType) -> None:
        try:
            self._db = Rdict(
                str(self._path),
                self._options[Column.META.value],
                column_families=self._options,
                access_type=access,
            )
        except Exception as error:
            raise StoreRefused(f"store {self._path} cannot be opened: {error}") from error
        self._columns = {c: self._db.get_column_family(c.value) for c in Column}

    def get(self, column: Column, keys: Sequence[bytes]) -> list[bytes | None]:
        if not keys:
            return []
        return cast(list[bytes | None], self._columns[column].get(list(keys)))

    def scan(self, column: Column, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        return self.scan_from(column, prefix, b"")

    def scan_from(self, column: Column, prefix: bytes, begin: bytes) -> Iterator[tuple[bytes, bytes]]:
        key = max(prefix, begin)
        # Without a bound a scan looks for the next key behind its own, over everything that was deleted there.
        bound = _below(_end(prefix))  # must outlive the iterator, which holds no reference to it
        pairs = self._columns[column].items(from_key=key, read_opt=bound)
        for key, value in cast(Iterator[tuple[bytes, bytes]], pairs):  # raw mode holds bytes alone
            yield key, value
        self._check_end(column, key, prefix)

    def scan_each(
        self, column: Column, prefixes: Iterable[bytes], begin: bytes = b""
    ) -> Iterator[tuple[bytes, bytes]]:
        wanted = list(reaching(prefixes, begin))
        ends = list(map(_end, wanted))
        bound = _below(max(ends) if ends and all(ends) else b"")
        rest = self._columns[column].iter(bound)  # one for all: making it costs more than a seek
        for prefix in wanted:
            rest.seek(max(prefix, begin))
            while rest.valid() and (key := rest.key()).startswith(prefix):
                yield key, rest.value()
                rest.next()
            if not rest.valid():
                self._check(rest)

    def _check_end(self, column: Column, last: bytes, prefix: bytes) -> None:
        """Raise StoreRefused if a scan that came to no other key stopped at one that cannot be read.

        An iterator of rocksdict ends at a damaged block as it ends behind the last key.
        """
        bound = _below(_end(prefix))
        rest = self._columns[column].iter(bound)
        rest.seek(last)
        if rest.valid() and rest.key() == last:
            rest.next()
        self._check(rest)

    def _check(self, rest: RdictIter) -> None:
        """Raise StoreRefused if an iterator stopped at what cannot be read."""
        try:
            rest.status()
        except Exception as error:
            raise StoreRefused(f"store {self._path} is damaged: {error}") from error

    def verify(self) -> None:
        """Read everything, so that every checksum is compared; raises StoreRefused where one does not hold."""
        for column in Column:
            for _ in self.scan(column, b""):
                pass

    def close(self) -> None:
        """Release the files; nothing can be read afterwards."""
        _close(self._db, self._columns)
        del self._db, self._columns  # handles keep the lock file


class _Files(NamedTuple):
    """What a writer's directory tells of it."""

    log: str  # the log that it writes to
    size: int  # of that log
    manifests: tuple[tuple[str, int], ...]  # what it has said of its files: names and sizes


class RocksReplica(_Columns):
    """What another process has written to its store, as of the last `catch_up`. Takes no lock, writes nothing there.

    Between two calls of `catch_up` nothing moves. Not safe for threads while it catches up.

    RocksDB's own catching up can tear a state. It reads the manifest, and the logs of writes after it: a log that
    was flushed and deleted in between is in neither, while later writes are seen. So it is done again until the
    manifest stood still. And what was read of a log hides what the writer flushed of the same log since, until
    the column is written again (facebook/rocksdb#15051). So the store is opened anew whenever the manifest changed:
    a log may wait for its flush long after the writer has gone on to the next, so names of logs tell too little.

    A directory that took the place of the one that was opened is another store, whose writes would be laid over those
    of the first: it is refused.

    Of each log of writes RocksDB makes one memtable a column, however little is in it, and keeps them until the column
    is flushed. So they begin small here, and the writer bounds its logs (`store.wal_bytes`): a column that is seldom
    written would hold them back, each time to be read again.
    """

    def __init__(self, path: Path, own: Path, config: StoreConfig) -> None:
        """Open a store that is there; raises StoreRefused if it cannot be read.

        `own` is a directory of this process alone, for what RocksDB logs.
        """
        self.opened = 1  # times
        self._path = path
        self._own = own
        self._inode = _inode(path)
        self._seen = self._files()
        super().__init__(path, config, self._access())
        self.catch_up()

    def catch_up(self) -> bool:
        """See what was written since; all columns as of one write. False if nothing was.

        Raises StoreRefused if it cannot be read.
        """
        failure: Exception | None = None
        for _ in range(ATTEMPTS):
            before, seen = self._files(), self._seen
            if before == seen and failure is None:
                return False
            try:
                if before.manifests != seen.manifests or failure is not None:
                    self._reopen()
                else:
                    self._db.try_catch_up_with_primary()
            except Exception as error:  # a file went between its naming and its opening
                failure = error
                continue
            failure = None
            if self._files().manifests == before.manifests:
                self._seen = before
                return True
        raise StoreRefused(f"store {self._path} cannot be followed: {failure or 'it changes all the time'}")

    def close(self) -> None:
        """Release the files; nothing can be read afterwards."""
        super().close()
        shutil.rmtree(self._own, ignore_errors=True)

    def _tuned(self, options: Options) -> Options:
        options.set_memtable_prefix_bloom_ratio(0.0)
        options.set_memtable_whole_key_filtering(False)
        options.set_arena_block_size(64 << 10)
        return options

    def _reopen(self) -> None:
        before = self._db, self._columns
        self.opened += 1
        self._open(self._access())
        _close(*before)
        shutil.rmtree(self._own / str(self.opened - 1), ignore_errors=True)

    def _access(self) -> AccessType:
        own = self._own / str(self.opened)
        own.mkdir(parents=True, exist_ok=True)
        return AccessType.secondary(str(own))

    def _files(self) -> _Files:
        logs, manifests = [("", 0)], list[tuple[str, int]]()
        try:
            names = os.listdir(self._path)
        except OSError as error:
            raise StoreRefused(f"store {self._path} cannot be read: {error}") from error
        for name in names:
            found = logs if name.endswith(".log") else manifests if name.startswith("MANIFEST-") else None
            if found is not None:
                with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
                    found.append((name, os.stat(self._path / name).st_size))
        if _inode(self._path) != self._inode:  # asked last: what was read above is of one directory
            raise StoreRefused(f"store {self._path} was replaced while it was read")
        return _Files(*max(logs, key=lambda log: (len(log[0]), log[0])), tuple(sorted(manifests)))


def _inode(path: Path) -> int:
    try:
        return os.stat(path).st_ino
    except OSError as error:
        raise StoreRefused(f"store {path} cannot be read: {error}") from error


class RocksStore(_Columns):
    """A partition's state on disk. Its write-ahead log makes a returned write survive kill -9."""

    def __init__(self, path: Path, config: StoreConfig) -> None:
        """Open or create; raises StoreRefused if another process holds it or the files are unusable."""
        path.mkdir(parents=True, exist_ok=True)
        super().__init__(path, config, AccessType.read_write())
        self._handles = {c: self._db.get_column_family_handle(c.value) for c in Column}
        self._write = WriteOptions()
        self._write.sync = config.sync

    def write(self, changes: Changes, dropped: Sequence[Dropped] = ()) -> None:
        batch = WriteBatch(raw_mode=True)
        for drop in dropped:
            batch.delete_range(drop.begin, drop.end, self._handles[drop.column])
        put, delete = batch.put, batch.delete
        for column, pairs in changes.items():
            batch.set_default_column_family(
                self._handles[column]
            )  # a third of what a handle at each put costs
            for key in sorted(pairs):  # sorted puts cost the memtable a quarter less
                value = pairs[key]
                if value is None:
                    delete(key)
                else:
                    put(key, value)
        self._db.write(batch, self._write)

    def ingest(self, column: Column, pairs: Sequence[tuple[bytes, bytes]]) -> None:
        if not pairs:
            return
        # The file is durable at once, the log of writes only when synced: no power loss may reorder them.
        self._db.flush_wal(True)
        folder = self._path / "ingest"
        folder.mkdir(exist_ok=True)
        file = str(folder / f"{column.value}.sst")
        writer = SstFileWriter(self._options[column.value])
        writer.open(file)
        for key, value in pairs:
            writer[key] = value
        writer.finish()
        move = IngestExternalFileOptions()
        move.set_move_files(True)
        self._columns[column].ingest_external_file([file], move)

    def checkpoint(self, path: Path) -> None:
        try:
            Checkpoint(self._db).create_checkpoint(str(path))
        except Exception as error:  # a full disk among others; rocksdict has no type for it
            raise OSError(f"store {self._path} cannot be copied to {path}: {error}") from error

    def compact(self, ranges: Sequence[Dropped] | None = None) -> None:
        """Rewrite files, so that what was deleted or written over in these ranges is in none of them.

        None is everything. Files that reach into a range are rewritten whole.
        """
        if ranges is None:
            for whole in self._columns.values():
                whole.flush()
                whole.compact_range(None, None)
            return
        for column in {drop.column for drop in ranges}:
            self._columns[column].flush()
        for drop in ranges:
            self._columns[drop.column].compact_range(drop.begin, drop.end)

    def close(self) -> None:
        """Release the files; the store is not usable afterwards."""
        del self._handles  # they keep the lock file
        super().close()


def _end(prefix: bytes) -> bytes:
    """The first key behind those that begin with a prefix; nothing where there is none."""
    short = prefix.rstrip(b"\xff")
    return short[:-1] + bytes((short[-1] + 1,)) if short else b""


def _below(end: bytes) -> ReadOptions | None:
    """What keeps an iterator before a key; None for no key."""
    if not end:
        return None
    options = ReadOptions()
    options.set_iterate_upper_bound(end)
    return options


def _close(database: Rdict, columns: Mapping[Column, Rdict]) -> None:
    for column in columns.values():
        column.close()
    database.close()


def _options(config: StoreConfig, cache: Cache, column: Column) -> Options:
    options = Options(raw_mode=True)
    options.create_if_missing(True)
    options.create_missing_column_families(True)
    table = BlockBasedOptions()
    table.set_block_size(4096)
    table.set_format_version(5)
    table.set_bloom_filter(10, False)
    table.set_block_cache(cache)
    table.set_cache_index_and_filter_blocks(False)
    table.set_pin_l0_filter_and_index_blocks_in_cache(True)
    options.set_block_based_table_factory(table)
    # Rows are read and rewritten all the time: packing them costs more than it saves.
    packed = DBCompressionType.none() if column is Column.ROWS else DBCompressionType.lz4()
    options.set_compression_type(packed)
    options.set_bottommost_compression_type(packed)
    options.set_write_buffer_size(config.write_buffer_bytes if column is not Column.META else 8 << 20)
    options.set_max_write_buffer_number(3)
    options.set_max_total_wal_size(config.wal_bytes)
    options.set_level_compaction_dynamic_level_bytes(True)
    # The largest single win for keys that are mostly new: a miss in the memtable is answered by its filter.
    options.set_memtable_prefix_bloom_ratio(0.1)
    options.set_memtable_whole_key_filtering(True)
    options.set_max_background_jobs(2)
    options.set_bytes_per_sync(1 << 20)
    options.set_max_file_opening_threads(1)  # catching up would start sixteen each time
    options.set_max_open_files(-1)  # a replica keeps reading files that the store has let go of
    return options
