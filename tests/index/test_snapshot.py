from __future__ import annotations

import json
import signal
import subprocess
import sys

import numpy as np
import pytest

from kithstream.index.errors import SnapshotRefused
from kithstream.index.exact import ExactIndex
from kithstream.index.live import LiveIndex
from kithstream.index.snapshot import snapshots
from kithstream.index.table import VectorTable

FILES = [
    "meta.json",
    "ids.json",
    "vectors.npy",
    "sequences.npy",
    "labels.npy",
    "alive.npy",
    "hot.npy",
    "graph-0.bin",
]


@pytest.fixture
def saved(config, rng, tmp_path):
    """An index with hot, cold, dead and odd rows, saved once."""
    index, oracle = LiveIndex(config(8, hot_capacity=32)), ExactIndex(8)
    names = [f"{number}" for number in range(150)] + ["line\nbreak", "\x00", "\ud800", "größe"]
    vectors = rng.normal(size=(154, 8)).astype(np.float32)
    codes = rng.integers(0, 3, 154).astype(np.int32)
    for each in (index, oracle):
        each.upsert(names[:100], vectors[:100], labels=codes[:100], sequence=7)
    index.merge(1000)
    for each in (index, oracle):
        each.upsert(names[100:], vectors[100:], labels=codes[100:], sequence=8)
        each.delete(names[:20])
    saved = index.save(tmp_path, {"offset": 12, "model": "step-9"})
    return index, oracle, saved, tmp_path


def test_a_restored_index_answers_the_same(saved, rng):
    index, oracle, _, directory = saved
    restored, metadata = LiveIndex.restore(directory, index.config)
    assert metadata == {"offset": 12, "model": "step-9"}
    assert sorted(restored.ids()) == sorted(oracle.ids())
    stats, before = restored.stats(), index.stats()
    assert (stats.alive, stats.hot, stats.cold, stats.dead) == (
        before.alive,
        before.hot,
        before.cold,
        before.dead,
    )
    assert restored.check(20, rng).sound
    for _ in range(20):
        query = rng.normal(size=8).astype(np.float32)
        got, want = restored.query(query, 30, labels=[0, 2]), oracle.query(query, 30, labels=[0, 2])
        assert got.ids == want.ids
        assert got.scores.tobytes() == want.scores.tobytes()
    assert restored.sequence("größe") == 8
    assert restored._hot.by_age().tolist() == index._hot.by_age().tolist()


def test_a_restored_index_goes_on(saved, rng):
    index, oracle, _, directory = saved
    restored, _ = LiveIndex.restore(directory, index.config)
    rows = rng.normal(size=(60, 8)).astype(np.float32)
    names = [f"{number}" for number in range(60)]
    for each in (restored, oracle):
        each.upsert(names, rows)
    restored.merge(1000)
    restored.rebuild()
    query = rng.normal(size=8).astype(np.float32)
    assert restored.query(query, 200).ids == oracle.query(query, 200).ids
    assert restored.check(20, rng).sound


def test_a_snapshot_does_not_tell_who_is_dead(config, rng, tmp_path):
    """A graph holds their slots until it is rebuilt; a restored index gives those to nobody, and goes on."""
    index, oracle = LiveIndex(config(8, hot_capacity=32)), ExactIndex(8)
    names = [f"name{number}" for number in range(100)]
    rows = rng.normal(size=(100, 8)).astype(np.float32)
    for each in (index, oracle):
        each.upsert(names, rows)
    index.merge(1000)
    for each in (index, oracle):
        each.delete(names[:10])
    saved = index.save(tmp_path, {})
    assert not set(json.loads((saved.path / "ids.json").read_text())) & set(names[:10])
    assert not np.load(saved.path / "vectors.npy")[:10].any()
    restored, _ = LiveIndex.restore(tmp_path, index.config)
    assert restored.stats().dead == 10
    assert restored.check(20, rng).sound
    rows = rng.normal(size=(30, 8)).astype(np.float32)
    for each in (restored, oracle):
        each.upsert([*names[:5], *(f"new{number}" for number in range(25))], rows)
    restored.merge(1000)
    for _ in range(2):
        query = rng.normal(size=8).astype(np.float32)
        assert restored.query(query, 200).ids == oracle.query(query, 200).ids
        assert restored.check(20, rng).sound
        restored.rebuild()
        assert restored.stats().dead == 0


def test_an_index_without_a_graph_is_saved(config, rng, tmp_path):
    index = LiveIndex(config(4))
    index.upsert(["a", "b"], rng.normal(size=(2, 4)).astype(np.float32))
    index.delete(["a"])
    index.save(tmp_path, {})
    restored, metadata = LiveIndex.restore(tmp_path, index.config)
    assert metadata == {}
    assert restored.ids() == ["b"]
    restored.upsert(["c", "d"], rng.normal(size=(2, 4)).astype(np.float32))
    assert restored._table.used == 3


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", ["truncate", "flip", "remove", "append"])
def test_a_damaged_file_is_refused_by_name(saved, file, damage):
    index, _, done, directory = saved
    path = done.path / file
    content = bytearray(path.read_bytes())
    if damage == "remove":
        path.unlink()
    else:
        if damage == "truncate":
            content = content[:-1]
        elif damage == "append":
            content += b" "
        else:
            content[len(content) // 2] ^= 1
        path.write_bytes(content)
    with pytest.raises(SnapshotRefused, match=file.replace(".", r"\.")):
        LiveIndex.restore(directory, index.config)


@pytest.mark.parametrize("content", [b"", b"00000009-nothing", b"\xff\xfe", b"../" * 3, None])
def test_a_damaged_pointer_is_refused(saved, content):
    index, _, _, directory = saved
    pointer = directory / "CURRENT"
    pointer.unlink() if content is None else pointer.write_bytes(content)
    with pytest.raises(SnapshotRefused, match="CURRENT"):
        LiveIndex.restore(directory, index.config)


def test_another_dimension_is_refused(saved, config):
    *_, directory = saved
    with pytest.raises(SnapshotRefused, match=r"dim is 9, vectors\.npy has 8"):
        LiveIndex.restore(directory, config(9))


def test_two_snapshots_are_kept_and_the_older_can_be_asked_for(saved, rng):
    index, _, first, directory = saved
    index.upsert(["second"], np.ones((1, 8), np.float32))
    second = index.save(directory, {"offset": 13})
    assert snapshots(directory) == [first.path, second.path]
    index.upsert(["third"], np.ones((1, 8), np.float32))
    third = index.save(directory, {"offset": 14})
    assert snapshots(directory) == [second.path, third.path]
    older, metadata = LiveIndex.restore(directory, index.config, second.path.name)
    assert metadata == {"offset": 13}
    assert "second" in older
    assert "third" not in older


def test_what_a_killed_save_left_is_ignored_and_removed(saved):
    index, _, done, directory = saved
    for left in ("tmp-00000002", "tmp-00000005"):
        (directory / left).mkdir()
        (directory / left / "vectors.npy").write_bytes(b"half")
    unpointed = directory / f"00000002-{'0' * 32}"
    unpointed.mkdir()
    assert LiveIndex.restore(directory, index.config)[1]["offset"] == 12
    again = index.save(directory, {"offset": 15})
    assert not list(directory.glob("tmp-*"))
    assert LiveIndex.restore(directory, index.config)[1]["offset"] == 15
    assert again.path != done.path


def test_a_process_killed_while_saving_leaves_a_whole_snapshot(config, tmp_path):
    program = """
import sys, numpy as np
from pathlib import Path
from kithstream.index.config import IndexConfig
from kithstream.index.live import LiveIndex
rng = np.random.default_rng(0)
index = LiveIndex(IndexConfig(dim=8, exact_rows=0, rebuild_process=False))
index.upsert([str(n) for n in range(500)], rng.normal(size=(500, 8)).astype(np.float32))
index.merge(500)
for number in range(10_000):
    index.save(Path(sys.argv[1]), {"number": number})
    print(number, flush=True)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    with process:
        for line in process.stdout:
            if line.strip() == "5":
                process.send_signal(signal.SIGKILL)
                break
        last = [int(line) for line in process.stdout] or [5]
    restored, metadata = LiveIndex.restore(tmp_path, config(8))
    assert metadata["number"] >= last[-1]
    assert len(restored) == 500


def test_metadata_is_words_and_numbers(saved):
    index, _, _, directory = saved
    with pytest.raises(TypeError, match="metadata is str to str or int"):
        index.save(directory, {"offsets": [1, 2]})
    with pytest.raises(ValueError, match="keep is at least 1, not 0"):
        index.save(directory, {}, keep=0)


def test_a_save_beside_a_writer_is_of_one_revision(config, tmp_path):
    """Rows that change while the bulk is copied are copied again."""
    index = LiveIndex(config(2))

    class Busy(VectorTable):
        meanwhile = True

        def since(self, mark):
            if self.meanwhile:
                self.meanwhile = False
                index.upsert(["b"], np.full((1, 2), 5, np.float32))
                index.delete(["c"])
            return super().since(mark)

    index._table = Busy(2)
    index.upsert(["a", "b", "c"], np.ones((3, 2), np.float32))
    index.save(tmp_path, {})
    restored, _ = LiveIndex.restore(tmp_path, index.config)
    assert sorted(restored.ids()) == ["a", "b"]
    assert restored.vector("b").tolist() == [5, 5]
