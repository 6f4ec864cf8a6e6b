"""Examples as Parquet: what is written is read back, and what was written for others is refused."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.models.worlds import some_rows

from kithstream.models.features import SCHEMA, consumer_features, producer_features
from kithstream.models.ids import IdVectors
from kithstream.streams.errors import UnusableSource
from kithstream.streams.examples import columns
from kithstream.streams.examples.batches import KINDS, ExampleBatch, join
from kithstream.streams.examples.columns import (
    ColumnWriter,
    example_columns,
    examples_schema,
    read_candidates,
    read_examples,
)


def some_examples(n: int, ids: IdVectors, seed: int = 0) -> ExampleBatch:
    rows = some_rows(n, seed=seed, languages=(0, 1))
    return ExampleBatch(
        kinds=[KINDS[at % 3] for at in range(n)],
        signals=["follow"] * n,
        labels=np.arange(n, dtype=np.int8) % 2,
        times=np.arange(n) + seed,
        rounds=np.arange(n) // 7,
        as_of=np.arange(n) * 2,
        partitions=np.arange(n, dtype=np.int32) % 3,
        offsets=np.arange(n) * 5,
        encoded=np.arange(n) % 4 > 0,
        consumers=consumer_features(rows, ids),
        producers=producer_features(rows, ids),
    )


def by_name(batch: ExampleBatch, ids: IdVectors) -> list[object]:
    """The values of a batch, with rows of accounts as names."""
    found: list[object] = [list(batch.kinds), list(batch.signals), *(a.tolist() for a in batch[2:9])]
    for fields, features in ((columns.CONSUMER, batch.consumers), (columns.PRODUCER, batch.producers)):
        for (_, field), array in zip(fields.items(), features, strict=True):
            account = field.kind == "account"
            found.append([ids.name(row) for row in array.ravel().tolist()] if account else array.tolist())
    return found


def write(file: Path, batches: list[ExampleBatch], ids: IdVectors) -> None:
    writer = ColumnWriter(file, examples_schema())
    for batch in batches:
        writer.write(example_columns(batch, ids.names))
    assert not file.exists()  # it appears whole
    writer.close()


def test_what_is_written_is_read_back_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "GROUP", 16)
    ids, others = IdVectors(0, 0, 0, 0.0), IdVectors(0, 0, 0, 0.0)
    others.rows_of(["somebody", "else"])  # rows are the reader's own
    batches = [some_examples(n, ids, seed=n) for n in (5, 30, 1, 17)]
    write(tmp_path / "a.parquet", batches, ids)
    read = list(read_examples(tmp_path / "a.parquet", others))
    assert [len(batch.kinds) for batch in read] == [16, 16, 16, 5]
    assert by_name(join(read), others) == by_name(join(batches), ids)
    assert {a.dtype for a in read[0].consumers} == {a.dtype for a in batches[0].consumers}
    with pq.ParquetFile(tmp_path / "a.parquet") as file:
        assert [file.metadata.row_group(at).num_rows for at in range(file.num_row_groups)] == [16, 16, 16, 5]
        assert (
            msgspec.json.decode(file.schema_arrow.metadata[b"kithstream.schema"], type=type(SCHEMA)) == SCHEMA
        )
        assert file.schema_arrow.field("consumer_psi").type == pa.list_(
            pa.field("element", pa.float32(), nullable=False), len(SCHEMA.psi)
        )


def test_rows_that_name_an_account_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "GROUP", 16)
    ids = IdVectors(0, 0, 0, 0.0)
    batch = some_examples(40, ids)
    write(tmp_path / "a.parquet", [batch], ids)
    for account in ("a7", "a250", "nobody"):
        (row,) = ids.rows_of([account]).tolist()
        fields = [(columns.CONSUMER, batch.consumers), (columns.PRODUCER, batch.producers)]
        named = [
            (array == row).reshape(40, -1).any(axis=1)
            for which, features in fields
            for field, array in zip(which.values(), features, strict=True)
            if field.kind == "account"
        ]
        assert columns.naming(tmp_path / "a.parquet", account) == int(np.any(named, axis=0).sum())
    ragged = pa.table({"who": [["a", "b"], None, ["b"]], "one": ["x", "a", None]})
    pq.write_table(ragged, tmp_path / "b.parquet")
    assert [columns.naming(tmp_path / "b.parquet", name) for name in "abxz"] == [2, 2, 1, 0]


def test_equal_rows_give_equal_bytes(tmp_path: Path) -> None:
    for name, cut in (("a", (20,)), ("b", (3, 17))):
        ids = IdVectors(0, 0, 0, 0.0)
        whole = some_examples(20, ids)
        parts, first = [], 0
        for size in cut:
            parts.append(example_columns(whole, ids.names).slice(first, size))
            first += size
        writer = ColumnWriter(tmp_path / name, examples_schema())
        for part in parts:
            writer.write(part)
        writer.close()
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_another_schema_is_refused(tmp_path: Path) -> None:
    ids = IdVectors(0, 0, 0, 0.0)
    file = tmp_path / "a.parquet"
    write(file, [some_examples(3, ids)], ids)
    table = pq.read_table(file)
    pq.write_table(table.replace_schema_metadata({b"kithstream.schema_hash": b"0123456789abcdef"}), file)
    with pytest.raises(UnusableSource, match=f"schema 0123456789abcdef, this build has {SCHEMA.hash}"):
        next(read_examples(file, ids))
    pq.write_table(table.drop_columns("label"), file)
    with pytest.raises(UnusableSource, match="has other columns"):
        next(read_examples(file, ids))
    file.write_bytes(b"PAR1 and nothing")
    with pytest.raises(UnusableSource, match=r"a\.parquet cannot be read as Parquet"):
        next(read_candidates(file, ids))
