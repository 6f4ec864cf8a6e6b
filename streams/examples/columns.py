"""Examples in columns: Parquet files in row groups of bounded size, vectors as lists of fixed size.

Accounts are written by name, so that the reader gives them rows of its own; nobody is the empty string.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from kithstream.models.directions import COMMUNITY_DIM, LANGUAGE_DIM
from kithstream.models.features import (
    AVOIDED,
    DENSE,
    ENGAGED,
    FOLLOWEES,
    FOLLOWERS,
    POOLED_FOLLOWEES,
    PSI,
    QUALITY,
    SCHEMA,
    SKETCH,
    TABLES,
    UNRECIPROCATED,
    ConsumerFeatures,
    ProducerFeatures,
    RowIndex,
)
from kithstream.models.ids import NOBODY
from kithstream.streams.errors import UnusableSource
from kithstream.streams.examples.batches import POSITIVE, CandidateBatch, ExampleBatch

GROUP: Final = 4096  # rows of a row group: what is held at once
_HASH, _SCHEMA = b"kithstream.schema_hash", b"kithstream.schema"

Names = Sequence[str | None]
_T = TypeVar("_T", ConsumerFeatures, ProducerFeatures)
_S = TypeVar("_S", bound=np.generic)


class _Field(NamedTuple):
    """One field of features: how long its rows are (0: a single value), and what it holds."""

    width: int
    kind: str  # of numpy, or `account`


CONSUMER: Final[Mapping[str, _Field]] = {
    "rows": _Field(0, "account"),
    "psi": _Field(len(PSI), "float32"),
    "unreciprocated": _Field(UNRECIPROCATED, "account"),
    "unreciprocated_ages": _Field(UNRECIPROCATED, "int32"),
    "followers": _Field(FOLLOWERS, "account"),
    "followees": _Field(FOLLOWEES, "account"),
    "followee_ages": _Field(FOLLOWEES, "int32"),
    "engaged": _Field(ENGAGED, "account"),
    "engaged_families": _Field(ENGAGED, "int32"),
    "engaged_ages": _Field(ENGAGED, "int32"),
    "avoided": _Field(AVOIDED, "account"),
    "avoided_families": _Field(AVOIDED, "int32"),
    "avoided_ages": _Field(AVOIDED, "int32"),
    "avoided_communities": _Field(AVOIDED, "int32"),
    "known_for": _Field(0, "int32"),
    "languages": _Field(0, "int32"),
    "countries": _Field(0, "int32"),
    "interests": _Field(COMMUNITY_DIM, "float32"),
    "following": _Field(SKETCH, "float32"),
}
PRODUCER: Final[Mapping[str, _Field]] = {
    "rows": _Field(0, "account"),
    "dense": _Field(len(DENSE), "float32"),
    "quality": _Field(len(QUALITY), "float32"),
    "buckets": _Field(len(TABLES), "int32"),
    "followers": _Field(FOLLOWERS, "account"),
    "followees": _Field(POOLED_FOLLOWEES, "account"),
    "places": _Field(LANGUAGE_DIM, "float32"),
    "communities": _Field(COMMUNITY_DIM, "float32"),
    "sketches": _Field(2 * SKETCH, "float32"),
}
_KINDS: Final[Mapping[str, type[np.generic]]] = {"float32": np.float32, "int32": np.int32}
_EXAMPLE: Final = {
    "kind": "string",
    "signal": "string",
    "label": "int8",
    "time": "int64",
    "round": "int64",
    "as_of": "int64",
    "partition": "int32",
    "offset": "int64",
    "encoded": "bool",
}
_CANDIDATE: Final = {"round": "int64", "as_of": "int64", "gone": "bool"}


def examples_schema() -> pa.Schema:
    """Return the columns of examples: the consumer's begin with `consumer`, the target's with `target`."""
    return _schema(_EXAMPLE, {"consumer": CONSUMER, "target": PRODUCER})


def candidates_schema() -> pa.Schema:
    """Return the columns of candidates: all of them begin with `target`."""
    return _schema(_CANDIDATE, {"target": PRODUCER})


def example_columns(batch: ExampleBatch, names: Names) -> pa.Table:
    """Return examples as a table; `names` are the accounts of rows."""
    plain = (
        batch.kinds,
        batch.signals,
        batch.labels,
        batch.times,
        batch.rounds,
        batch.as_of,
        batch.partitions,
        batch.offsets,
        batch.encoded,
    )
    columns = [pa.array(values) for values in plain]
    columns += _columns(batch.consumers, CONSUMER, names) + _columns(batch.producers, PRODUCER, names)
    return pa.table(columns, schema=examples_schema())


def candidate_columns(batch: CandidateBatch, names: Names) -> pa.Table:
    """Return candidates as a table; `names` are the accounts of rows."""
    columns = [pa.array(values) for values in (batch.rounds, batch.as_of, batch.gone)]
    return pa.table(columns + _columns(batch.producers, PRODUCER, names), schema=candidates_schema())


def read_examples(file: Path, index: RowIndex) -> Iterator[ExampleBatch]:
    """Yield the examples of a file, a row group at a time; raises UnusableSource."""
    for group in _groups(file, examples_schema()):
        plain = {name: group.column(name) for name in _EXAMPLE}
        yield ExampleBatch(
            kinds=plain["kind"].to_pylist(),
            signals=plain["signal"].to_pylist(),
            labels=_values(plain["label"], np.int8),
            times=_values(plain["time"], np.int64),
            rounds=_values(plain["round"], np.int64),
            as_of=_values(plain["as_of"], np.int64),
            partitions=_values(plain["partition"], np.int32),
            offsets=_values(plain["offset"], np.int64),
            encoded=_values(plain["encoded"], np.bool_),
            consumers=_features(ConsumerFeatures, group, "consumer", CONSUMER, index),
            producers=_features(ProducerFeatures, group, "target", PRODUCER, index),
        )


def read_candidates(file: Path, index: RowIndex) -> Iterator[CandidateBatch]:
    """Yield the candidates of a file, a row group at a time; raises UnusableSource."""
    for group in _groups(file, candidates_schema()):
        yield CandidateBatch(
            rounds=_values(group.column("round"), np.int64),
            as_of=_values(group.column("as_of"), np.int64),
            gone=_values(group.column("gone"), np.bool_),
            producers=_features(ProducerFeatures, group, "target", PRODUCER, index),
        )


def positive_times(file: Path) -> NDArray[np.int64]:
    """Return the times of a file's positives, microseconds, in their order; raises UnusableSource."""
    found = [np.zeros(0, np.int64)]
    for group in _groups(file, examples_schema(), ["kind", "time"]):
        positive = np.array([kind == POSITIVE for kind in group.column("kind").to_pylist()], np.bool_)
        found.append(_values(group.column("time"), np.int64)[positive])
    return np.concatenate(found)


def naming(file: Path, account: str) -> int:
    """Return in how many rows of any Parquet file an account is named, as a value or in a list.

    Raises UnusableSource for a file that cannot be read.
    """
    count = 0
    try:
        with pq.ParquetFile(file) as opened:
            for group in opened.iter_batches(batch_size=GROUP):
                named = np.zeros(len(group), np.bool_)
                for column in group.columns:
                    named[_rows_with(column, account)] = True
                count += int(named.sum())
    except (pa.ArrowInvalid, OSError) as error:
        raise UnusableSource(f"{file} cannot be read as Parquet: {error}") from error
    return count


class ColumnWriter:
    """Writes one file, a whole row group at a time, aside until it is closed."""

    def __init__(self, file: Path, schema: pa.Schema) -> None:
        self.rows = 0
        self._file = file
        self._schema = schema
        self._aside = file.with_name(f"{file.name}.writing")
        self._waiting: list[pa.Table] = []
        self._waits = 0
        # The statistics of account names would be a copy of some of them in the footer, and are asked by nobody.
        self._writer = pq.ParquetWriter(
            self._aside, schema, compression="zstd", compression_level=1, write_statistics=["round", "time"]
        )

    def write(self, table: pa.Table) -> None:
        """Take rows."""
        self.rows += len(table)
        self._waiting.append(table)
        self._waits += len(table)
        if self._waits >= GROUP:
            whole = pa.concat_tables(self._waiting)
            last = self._waits - self._waits % GROUP
            self._writer.write_table(whole.slice(0, last), row_group_size=GROUP)
            rest = whole.slice(last)
            self._waiting, self._waits = [rest], len(rest)

    def close(self) -> None:
        """Write what waits, and let the file appear under its name."""
        if self._waits:
            self._writer.write_table(pa.concat_tables(self._waiting), row_group_size=GROUP)
        self._writer.close()
        self._aside.rename(self._file)

    def abandon(self) -> None:
        """Leave nothing of the file."""
        self._writer.close()
        self._aside.unlink(missing_ok=True)


def _schema(plain: Mapping[str, str], sides: Mapping[str, Mapping[str, _Field]]) -> pa.Schema:
    fields = [pa.field(name, _type(_Field(0, kind)), nullable=False) for name, kind in plain.items()]
    for side, features in sides.items():
        fields += [
            pa.field(_name(side, name), _type(field), nullable=False) for name, field in features.items()
        ]
    metadata = {_HASH: SCHEMA.hash.encode(), _SCHEMA: msgspec.json.encode(SCHEMA)}
    return pa.schema(fields, metadata=metadata)


def _name(side: str, field: str) -> str:
    return side if field == "rows" else f"{side}_{field}"


def _type(field: _Field) -> pa.DataType:
    kind = pa.string() if field.kind == "account" else pa.type_for_alias(field.kind)
    return pa.list_(pa.field("element", kind, nullable=False), field.width) if field.width else kind


def _columns(
    features: ConsumerFeatures | ProducerFeatures, fields: Mapping[str, _Field], names: Names
) -> list[pa.Array]:
    columns = []
    for (name, field), values in zip(fields.items(), features, strict=True):
        assert values.shape[1:] == ((field.width,) if field.width else ()), (name, values.shape)
        flat = values.ravel()
        if field.kind == "account":
            # rows to distinct names first: a name is repeated in many lists
            rows, places = np.unique(flat, return_inverse=True)
            distinct = pa.array([names[row] or "" for row in rows.tolist()], pa.string())
            array = distinct.take(pa.array(places)) if len(flat) else distinct
        else:
            array = pa.array(flat, pa.type_for_alias(field.kind))
        columns.append(pa.FixedSizeListArray.from_arrays(array, type=_type(field)) if field.width else array)
    return columns


def _features(
    kind: type[_T], group: pa.RecordBatch, side: str, fields: Mapping[str, _Field], index: RowIndex
) -> _T:
    arrays = []
    for name, field in fields.items():
        column = group.column(_name(side, name))
        flat = column.flatten() if field.width else column
        values = _rows(flat, index) if field.kind == "account" else _values(flat, _KINDS[field.kind])
        arrays.append(values.reshape(-1, field.width) if field.width else values)
    return kind._make(arrays)


def _rows(accounts: pa.Array, index: RowIndex) -> NDArray[np.int32]:
    coded = accounts.dictionary_encode()
    distinct = coded.dictionary.to_pylist()
    known = [name for name in distinct if name]
    rows = np.full(len(distinct), NOBODY, np.int32)
    rows[[bool(name) for name in distinct]] = index.rows_of(known) if known else []
    found: NDArray[np.int32] = rows[coded.indices.to_numpy()]
    return found


def _rows_with(column: pa.Array, account: str) -> NDArray[np.int64]:
    """The rows of a column in which a string is the account."""
    parents = np.arange(len(column))
    while pa.types.is_nested(column.type) and not pa.types.is_struct(column.type):
        parents = parents[_values(pc.list_parent_indices(column), np.int64)]
        column = column.flatten()
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        return parents[:0]
    return parents[_values(pc.fill_null(pc.equal(column, account), False), np.bool_)]


def _values(column: pa.Array, kind: type[_S]) -> NDArray[_S]:
    values: NDArray[_S] = column.to_numpy(zero_copy_only=False).astype(kind, copy=False)
    return values


def _groups(file: Path, schema: pa.Schema, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    try:
        with pq.ParquetFile(file) as opened:
            found = (opened.schema_arrow.metadata or {}).get(_HASH, b"").decode()
            if found != SCHEMA.hash:
                raise UnusableSource(
                    f"{file} was written for schema {found or 'of nothing known'}, this build has {SCHEMA.hash}"
                )
            if not opened.schema_arrow.equals(schema):
                raise UnusableSource(f"{file} has other columns than examples of schema {SCHEMA.hash}")
            yield from opened.iter_batches(batch_size=GROUP, columns=columns)
    except (pa.ArrowInvalid, OSError) as error:
        raise UnusableSource(f"{file} cannot be read as Parquet: {error}") from error
