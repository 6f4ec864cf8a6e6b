"""An existing follow graph, read in column batches for a bulk load: Parquet, CSV or JSON lines.

Columns are `source` and `target` (or `follower` and `followee`, or `actor` and `target`), and `time` if it is
known. CSV has a header line and may be gzipped, as may JSON lines. Rows stand in the file's order and are not
deduplicated; accounts that follow themselves are left in, so that row numbers count every row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from hashlib import blake2b
from os import SEEK_END, PathLike, fspath
from typing import Final, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet
from numpy.typing import NDArray

from kithstream.streams.sources.lines import BadRow, lines

SOURCES: Final = ("source", "follower", "actor")
TARGETS: Final = ("target", "followee")
MAX_ID_BYTES: Final = 128
ENDS: Final = 1 << 20  # bytes of a file's beginning and end that its fingerprint reads
LATEST: Final = 4_102_444_800_000_000  # microseconds: the year 2100


class EdgeBatch(NamedTuple):
    """Some rows of the graph; the next batch begins at `first_row + len(source)`."""

    first_row: int  # from 0, counted through the whole file
    source: list[str]
    target: list[str]
    time_us: NDArray[np.int64]  # (n,) microseconds since the epoch


class Columns(NamedTuple):
    """The same, as Arrow columns with nothing checked: null or unfit accounts, and times out of range."""

    first_row: int
    source: pa.Array  # strings
    target: pa.Array
    time_us: NDArray[np.int64]  # (n,) microseconds since the epoch; -1 is none, beyond LATEST is too late


def read(
    path: str | PathLike[str],
    first_row: int = 0,
    batch_rows: int = 65_536,
    microseconds: int = 1,
    default_time: int = 0,
) -> Iterator[EdgeBatch]:
    """Yields the graph from row `first_row` on; the file's ending says its format.

    `microseconds` is the length of one unit of whole-number times (1,000,000 for seconds); timestamp columns
    bring their own. Without a time column every edge gets `default_time` (microseconds). CSV comes in blocks
    of bytes, so `batch_rows` bounds Parquet and JSON lines only.
    """
    name = fspath(path)
    tables, what = _tables(name, first_row, batch_rows, microseconds)
    for table in tables:
        shift = first_row + (2 if what == "line" else 1)  # to the number a person would count
        yield EdgeBatch(
            first_row,
            _accounts(table, 0, name, shift, what),
            _accounts(table, 1, name, shift, what),
            _times(table, name, shift, what, microseconds, default_time),
        )
        first_row += table.num_rows


def read_columns(
    path: str | PathLike[str],
    first_row: int = 0,
    batch_rows: int = 65_536,
    microseconds: int = 1,
    default_time: int = 0,
    form: str | None = None,
) -> Iterator[Columns]:
    """`read` for a caller that checks the rows itself and goes on behind a bad one.

    `form` is parquet, csv or jsonl; without it, the file's ending says.
    """
    name = fspath(path)
    tables, what = _tables(name, first_row, batch_rows, microseconds, form)
    for table in tables:
        shift = first_row + (2 if what == "line" else 1)
        source, target = (_strings(table, column, name).combine_chunks() for column in (0, 1))
        times = _times(table, name, shift, what, microseconds, default_time, check=False)
        yield Columns(first_row, source, target, times)
        first_row += table.num_rows


def fingerprint(path: str | PathLike[str]) -> bytes:
    """Returns 16 bytes that tell files apart: a hash of the size and of both ends."""
    with open(path, "rb") as file:
        size = file.seek(0, SEEK_END)
        digest = blake2b(str(size).encode(), digest_size=16)
        for at in (0, max(size - ENDS, 0)):
            file.seek(at)
            digest.update(file.read(ENDS))
    return digest.digest()


def _tables(
    name: str, first_row: int, batch_rows: int, microseconds: int, form: str | None = None
) -> tuple[Iterator[pa.Table], str]:
    """The file's rows from one on, and what its rows are called."""
    if first_row < 0 or batch_rows < 1 or microseconds < 1:
        raise ValueError(
            f"first_row is {first_row}, batch_rows {batch_rows}, microseconds {microseconds}:"
            " at least 0, 1 and 1 are due"
        )
    bare = f".{form}" if form else name.removesuffix(".gz")
    if bare.endswith(".parquet"):
        return _parquet(name, first_row, batch_rows), "row"
    if bare.endswith(".csv"):
        return _csv(name, first_row), "line"
    if bare.endswith((".jsonl", ".ndjson")):
        return _json_lines(name, first_row, batch_rows), "row"
    raise ValueError(f"path is {name!r}, a name ending in .parquet, .csv or .jsonl is due")


def columns(names: Sequence[str], path: str) -> list[str]:
    """Returns which of the names hold source, target and, if there is one, time.

    >>> columns(["followee", "follower", "since"], "graph.csv")
    ['follower', 'followee']
    """
    source = next((name for name in SOURCES if name in names), None)
    target = next((name for name in TARGETS if name in names), None)
    if source is None or target is None:
        raise ValueError(f"{path}: columns are {list(names)}, one of {SOURCES} and one of {TARGETS} are due")
    return [source, target, *(["time"] if "time" in names else [])]


def _parquet(path: str, first_row: int, batch_rows: int) -> Iterator[pa.Table]:
    with pa.parquet.ParquetFile(path) as file:
        wanted = columns(file.schema_arrow.names, path)
        left = first_row
        for group in range(file.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            if left >= rows:
                left -= rows
                continue
            for batch in file.iter_batches(batch_rows, row_groups=[group], columns=wanted):
                kept = batch.slice(left)
                left = max(0, left - batch.num_rows)
                if kept.num_rows:
                    yield pa.Table.from_batches([kept]).select(wanted)


def _csv(path: str, first_row: int) -> Iterator[pa.Table]:
    header = next((line.decode("utf-8-sig") for _, line in lines(path)), "")
    wanted = columns([name.strip(' "') for name in header.split(",")], path)
    bad: list[pa.csv.InvalidRow] = []

    def refuse(row: pa.csv.InvalidRow) -> str:
        bad.append(row)
        return "error"

    try:
        with pa.csv.open_csv(
            path,
            read_options=pa.csv.ReadOptions(use_threads=False, skip_rows_after_names=first_row),
            parse_options=pa.csv.ParseOptions(invalid_row_handler=refuse),
            convert_options=pa.csv.ConvertOptions(
                include_columns=wanted, column_types=dict.fromkeys(wanted, pa.string())
            ),
        ) as reader:
            for batch in reader:
                if batch.num_rows:
                    yield pa.Table.from_batches([batch])
    except pa.ArrowInvalid as error:
        if not bad:
            raise ValueError(f"{path}: {error}") from error
        row = bad[0]
        reason = f"{row.expected_columns} columns are due"
        raise BadRow(path, row.number or 0, "row", row.text, reason) from error
    except StopIteration:
        return


def _json_lines(path: str, first_row: int, batch_rows: int) -> Iterator[pa.Table]:
    decode = msgspec.json.Decoder(dict[str, str | int | float | bool | None]).decode
    wanted: list[str] = []
    cells: list[list[str | int | float | bool | None]] = []
    for row, (number, line) in enumerate(lines(path)):
        if row < first_row:
            continue
        try:
            record = decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise BadRow(path, number, "row", line.decode(errors="replace"), str(error)) from error
        wanted = wanted or columns(list(record), path)
        for name in wanted:
            if not isinstance(record.get(name), int if name == "time" else str):
                due = "a whole number is due" if name == "time" else "a string is due"
                raise BadRow(path, number, name, record.get(name), due)
        cells.append([record[name] for name in wanted])
        if len(cells) == batch_rows:
            yield pa.table(list(zip(*cells, strict=True)), names=wanted)
            cells = []
    if cells:
        yield pa.table(list(zip(*cells, strict=True)), names=wanted)


def _strings(table: pa.Table, column: int, path: str) -> pa.ChunkedArray:
    name, values = table.column_names[column], table.column(column)
    if not (pa.types.is_string(values.type) or pa.types.is_large_string(values.type)):
        plain = pa.types.is_integer(values.type) or pa.types.is_dictionary(values.type)
        if not plain:
            raise ValueError(f"{path}: {name} has type {values.type}, strings or whole numbers are due")
        values = values.cast(pa.string())
    return values


def _accounts(table: pa.Table, column: int, path: str, shift: int, what: str) -> list[str]:
    name, values = table.column_names[column], _strings(table, column, path)
    length = pc.fill_null(pc.binary_length(values), 0)
    wrong = pc.or_(pc.less(length, 1), pc.greater(length, MAX_ID_BYTES))
    if pc.any(wrong).as_py() or pc.any(pc.match_substring(values, "\0")).as_py():
        texts: list[str | None] = values.to_pylist()
        for row, text in enumerate(texts):
            if not text or len(text.encode()) > MAX_ID_BYTES or "\0" in text:
                reason = f"an account has 1 to {MAX_ID_BYTES} bytes and no NUL"
                raise BadRow(path, shift + row, name, text, reason, what)
    accounts: list[str] = values.to_pylist()
    return accounts


def _times(
    table: pa.Table,
    path: str,
    shift: int,
    what: str,
    microseconds: int,
    default_time: int,
    *,
    check: bool = True,
) -> NDArray[np.int64]:
    if table.num_columns < 3:
        return np.full(table.num_rows, default_time, np.int64)
    values = table.column(2)
    if pa.types.is_timestamp(values.type):
        values, microseconds = values.cast(pa.timestamp("us"), safe=False).cast(pa.int64()), 1
    elif pa.types.is_string(values.type):
        values = _whole_numbers(values, path, shift, what)
    elif not pa.types.is_integer(values.type):
        raise ValueError(f"{path}: time has type {values.type}, whole numbers or timestamps are due")
    if not check:
        known = pc.fill_null(values, -1).to_numpy().astype(np.int64)
        return np.asarray(np.clip(known, -1, LATEST // microseconds + 1) * microseconds)
    wrong = pc.or_(pc.less(values, 0), pc.greater(values, LATEST // microseconds))
    wrong = pc.fill_null(wrong, True)
    if pc.any(wrong).as_py():
        row = pc.index(wrong, True).as_py()
        reason = f"units of {microseconds} us since 1970, before 2100, are due"
        raise BadRow(path, shift + row, "time", values[row].as_py(), reason, what)
    return np.asarray(values.to_numpy().astype(np.int64) * microseconds)


def _whole_numbers(values: pa.ChunkedArray, path: str, shift: int, what: str) -> pa.ChunkedArray:
    try:
        return values.cast(pa.int64())
    except pa.ArrowInvalid:
        digits = pc.fill_null(pc.match_substring_regex(values, r"^-?[0-9]{1,18}$"), False)
        row = max(pc.index(digits, False).as_py(), 0)
        raise BadRow(path, shift + row, "time", values[row].as_py(), "a whole number is due", what) from None
