from __future__ import annotations

import gzip
import io
import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from kithstream.streams.events.record import Record
from kithstream.streams.sources import bitcoin, graph, higgs, jsonl, pairs
from kithstream.streams.sources.lines import BadRow

HIGGS = """\
1 2 1341100972 MT
1 2 1341100973 RT
1 2 1341100973 RE
3 3 1341100974 RT
2 1 1341100975 RE
"""
BITCOIN = """\
from,to,feature,time
6,2,4,1289241911.72836
6,5,-2,1289241941.53378
6,5,3,1289241942
6,5,1,1289241943
"""


def written(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    data = text.encode()
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return path


@pytest.mark.parametrize("name", ["h.txt", "h.txt.gz"])
def test_higgs_maps_kinds_after_the_first_of_a_pair(tmp_path: Path, name: str) -> None:
    source = higgs.read(written(tmp_path, name, HIGGS))
    events = list(source)
    assert [(e["id"], e["signal"], e["actor"], e["target"]) for e in events] == [
        ("higgs:1", "follow", "1", "2"),
        ("higgs:2", "like", "1", "2"),
        ("higgs:3", "reply", "1", "2"),
        ("higgs:5", "follow", "2", "1"),
    ]
    assert [e.get("item") for e in events] == [None, "higgs:2", None, None]
    assert events[0]["time"] == 1341100972_000_000
    assert source.selfs == 1
    assert list(source) == events


def test_without_repeats_a_pair_is_read_once(tmp_path: Path) -> None:
    source = higgs.read(written(tmp_path, "h.txt", HIGGS), repeats=False)
    assert [event["id"] for event in source] == ["higgs:1", "higgs:5"]
    assert (source.selfs, source.repeated) == (1, 2)


def test_a_negative_rating_is_a_block_and_never_a_follow(tmp_path: Path) -> None:
    events = list(bitcoin.read(written(tmp_path, "b.csv.gz", BITCOIN)))
    assert [event["signal"] for event in events] == ["follow", "block", "follow", "like"]
    assert events[0]["time"] == 1289241911_728360
    assert events[0]["id"] == "bitcoin:2"


def test_a_header_is_optional(tmp_path: Path) -> None:
    body = BITCOIN.partition("\n")[2]
    first = next(iter(bitcoin.read(written(tmp_path, "b.csv", body))))
    assert first["id"] == "bitcoin:1"


def test_likes_of_one_pair_are_about_different_items(tmp_path: Path) -> None:
    events = list(pairs.read(written(tmp_path, "p.txt", "a b 1\na b 2\na b 3\n")))
    assert [event["signal"] for event in events] == ["follow", "like", "like"]
    assert len({event.get("item") for event in events}) == 3


@pytest.mark.parametrize(
    ("read", "text", "message"),
    [
        (higgs.read, "1 2 3 RT\n1 2 x RT\n", r"f\.txt, line 2: time is 'x'"),
        (higgs.read, "1 2 3 XX\n", r"f\.txt, line 1: kind is 'XX', one of RT MT RE"),
        (higgs.read, "1 2 3\n", r"f\.txt, line 1: row is '1 2 3', 4 fields are due"),
        (bitcoin.read, "h\n\n1,2,0,5\n", r"f\.txt, line 3: rating is '0'"),
        (bitcoin.read, "h\n1,2,+x,5\n", r"f\.txt, line 2: rating is '\+x'"),
        (bitcoin.read, "h\n1,,1,5\n", r"f\.txt, line 2: to is ''"),
        (bitcoin.read, "h\n1,2,1,nan\n", r"f\.txt, line 2: time is 'nan'"),
        (bitcoin.read, "h\n1,2,1,inf\n", r"f\.txt, line 2: time is 'inf'"),
        (pairs.read, "1 2 -3\n", r"f\.txt, line 1: time is '-3'"),
        (pairs.read, "1 2 99999999999\n", r"f\.txt, line 1: time is '99999999999'"),
        (pairs.read, f"{'x' * 129} 2 3\n", r"f\.txt, line 1: source is 'xxx"),
        (pairs.read, "1 2 9\n1 3 8\n", r"f\.txt, line 2: time is 8000000, .* not sorted"),
        (jsonl.read, '{"id": 1}\n', r"f\.txt, line 1: event is .*Expected `str`, got `int`"),
        (jsonl.read, "\n{\n", r"f\.txt, line 2: event is '{'"),
    ],
)
def test_a_bad_row_is_named(
    tmp_path: Path, read: Callable[[Path], Iterable[Record]], text: str, message: str
) -> None:
    with pytest.raises(BadRow, match=message):
        list(read(written(tmp_path, "f.txt", text)))


def test_text_that_is_no_utf8_is_named(tmp_path: Path) -> None:
    (tmp_path / "f.txt").write_bytes(b"1 \xff 3\n")
    with pytest.raises(BadRow, match=r"line 1: row is .*UTF-8"):
        list(pairs.read(tmp_path / "f.txt"))


def test_a_cut_gzip_file_is_named(tmp_path: Path) -> None:
    whole = gzip.compress(b"".join(b"a b %d\n" % number for number in range(5000)))
    (tmp_path / "f.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadRow, match=r"f\.gz, line [0-9]+: gzip is .*cut or damaged"):
        list(pairs.read(tmp_path / "f.gz"))


EVENT = {"id": "e", "signal": "like", "actor": "a", "target": "b", "time": 5, "item": "i", "value": 2.5}


@pytest.mark.parametrize("name", ["e.jsonl", "e.jsonl.gz"])
def test_json_lines_come_as_they_are(tmp_path: Path, name: str) -> None:
    path = written(tmp_path, name, json.dumps(EVENT) + "\n\n" + json.dumps(EVENT))
    assert list(jsonl.read(path)) == [EVENT, EVENT]
    assert [msgspec.json.decode(line) for line in jsonl.read_raw(path)] == [EVENT, EVENT]


def test_a_dash_is_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    class Input:
        buffer = io.BytesIO(json.dumps(EVENT).encode())

    monkeypatch.setattr(sys, "stdin", Input())
    assert list(jsonl.read("-")) == [EVENT]


ROWS = [(f"u{number}", f"v{number}", 1000 + number) for number in range(10)]


def graph_file(folder: Path, ending: str) -> Path:
    path = folder / f"g{ending}"
    names = ["follower", "followee", "time"]
    if ending == ".parquet":
        table = pa.table([pa.array(column) for column in zip(*ROWS, strict=True)], names=names)
        pyarrow.parquet.write_table(table, path, row_group_size=4)
        return path
    if ending.startswith(".csv"):
        text = "\n".join([",".join(names), *(f"{a},{b},{c}" for a, b, c in ROWS)])
    else:
        text = "\n".join(json.dumps(dict(zip(names, row, strict=True))) for row in ROWS)
    return written(folder, f"g{ending}", text)


@pytest.mark.parametrize("ending", [".parquet", ".csv", ".csv.gz", ".jsonl", ".jsonl.gz"])
@pytest.mark.parametrize("first_row", [0, 1, 4, 5, 9, 10, 11])
def test_a_graph_is_read_on_from_any_row(tmp_path: Path, ending: str, first_row: int) -> None:
    batches = list(graph.read(graph_file(tmp_path, ending), first_row, batch_rows=3, microseconds=1000))
    rows = [
        (source, target, time // 1000)
        for batch in batches
        for source, target, time in zip(batch.source, batch.target, batch.time_us.tolist(), strict=True)
    ]
    assert rows == ROWS[first_row:]
    assert all(len(batch.source) for batch in batches)
    if batches:
        starts = [batch.first_row for batch in batches]
        assert starts == [first_row, *np.cumsum([len(batch.source) for batch in batches[:-1]]) + first_row]


def test_a_graph_may_have_numbers_for_names_stamps_and_other_columns(tmp_path: Path) -> None:
    stamps = pa.array([1_000_001, 2_000_000], pa.timestamp("us"))
    table = pa.table({"weight": [0.5, 1.0], "target": [7, 8], "time": stamps, "source": [1, 2]})
    pyarrow.parquet.write_table(table, tmp_path / "g.parquet")
    (batch,) = graph.read(tmp_path / "g.parquet", microseconds=1000)
    assert (batch.source, batch.target, batch.time_us.tolist()) == (
        ["1", "2"],
        ["7", "8"],
        [1000001, 2000000],
    )


def test_a_graph_without_times_gets_one(tmp_path: Path) -> None:
    path = written(tmp_path, "g.csv", "actor,target\na,b\n")
    (batch,) = graph.read(path, default_time=77)
    assert batch.time_us.tolist() == [77]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("g.csv", "source,target\na,b\n,c\n", r"g\.csv, line 3: source is '', an account"),
        ("g.csv", "source,target\na,b\na,b,c\n", r"g\.csv, line 3: row is 'a,b,c', 2 columns"),
        ("g.csv", "source,target,time\na,b,1\na,b,x\n", r"g\.csv, line 3: time is 'x', a whole number"),
        ("g.csv", "source,target,time\na,b,-1\n", r"g\.csv, line 2: time is -1, units"),
        ("g.csv", "source,targets\na,b\n", r"columns are \['source', 'targets'\]"),
        ("g.jsonl", '{"source":"a","target":3}\n', r"g\.jsonl, line 1: target is 3, a string"),
        ("g.jsonl", '{"source":"a","target":"b"}\n{"source":"","target":"b"}', r"row 2: source is ''"),
        ("g.jsonl", "x\n", r"g\.jsonl, line 1: row is 'x'"),
        ("g.txt", "", r"a name ending in"),
    ],
)
def test_a_bad_graph_row_is_named(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        list(graph.read(written(tmp_path, name, text)))
