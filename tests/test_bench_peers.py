"""What the comparison with peers works out: their fold, ratios, what is visible, what was counted twice."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bench import results
from bench.peers import glue, index, ingest, progress, table, trial
from bench.peers.engines import Exact, Hnswlib, Kithstream, best
from bench.peers.features import Account, rows_of
from bench.peers.fold import HALF_LIFE, RECORDS, errors, expected, fold

from kithstream.models.features import IN, OUT
from kithstream.models.model import Model

WEEK = int(HALF_LIFE)
HOUR = 3_600_000_000


# -- the fold of the stream applications ---------------------------------------------------------------------


def test_a_counter_halves_in_a_half_life_and_an_undo_takes_one_away() -> None:
    state = fold(fold(None, "follow", 0), "like", WEEK)
    assert state == [WEEK, 0.5, 1.0, 0.0, 0.0, 2]
    assert fold(state, "unlike", WEEK)[2] == 0.0
    assert fold(state, "mute", WEEK)[4] == 1.0


def test_a_late_event_counts_decayed_and_changes_no_time() -> None:
    state = fold(fold(None, "block", WEEK), "block", 0)
    assert state == [WEEK, 0.0, 0.0, 1.5, 0.0, 2]


def test_folding_leaves_the_state_before_it_alone() -> None:
    state = fold(None, "follow", 5)
    fold(state, "follow", 5)
    assert state[RECORDS] == 1


def test_what_is_counted_twice_and_what_is_lost_do_not_cancel() -> None:
    did, met = expected(
        [
            {"actor": "a", "target": "b"},
            {"actor": "a", "target": "c"},
            {"actor": "a"},
        ]
    )
    assert (did, met) == ({"a": 2}, {"b": 1, "c": 1})
    assert errors(met, {"b": 3}) == (2, 1)
    assert errors(met, {"b": 1, "c": 1, "d": 1}) == (1, 0)


def test_keys_of_changelogs_name_accounts() -> None:
    assert [ingest.account(key) for key in (b"u1", b'"u1"', b'u1|"state"')] == ["u1"] * 3


def test_sides_are_counted_as_the_applications_fold_them() -> None:
    assert ingest.sides([b'{"actor":"a","target":"b"}', b'{"actor":"a"}']) == {"did": 2, "met": 1}


def test_progress_is_read_as_it_was_noted(tmp_path: Path) -> None:
    path = tmp_path / "progress"
    assert progress.read(path) == ({}, {})
    one = progress.Progress(path)
    one.note("did", "t", 3, 41)
    one.note("did", "t", 3, 42)
    one.start()
    end = time.monotonic() + 20
    while not path.exists() and time.monotonic() < end:
        time.sleep(0.01)
    assert progress.read(path) == ({"did": 2}, {"t:3": 43})


# -- the table -----------------------------------------------------------------------------------------------


def test_a_ratio_is_the_median_of_pairs_of_the_same_round() -> None:
    rounds = {"kithstream": [{"x": 1}, {"x": 10}, {"x": 100}], "peer": [{"x": 2}, {"x": 30}, {"x": 400}]}
    assert table.ratio(rounds, "peer", "x") == 3
    assert table.ratio(rounds, "peer", "y") is None
    assert table.ratio({"peer": rounds["peer"]}, "peer", "x") is None


def test_medians_are_of_the_rounds_that_have_a_figure() -> None:
    assert table.medians([{"x": 1, "v": "1.0"}, {"x": 3}, {"y": 7}]) == {"x": 2, "y": 7}


def test_the_table_has_a_line_a_peer() -> None:
    rounds = {"kithstream": [{"x": 2000}], "peer": [{"x": 1000}, {"z": 1}]}
    told = {"kithstream": ("1", "all"), "peer": ("2", "less")}
    lines = table.compared(rounds, told, {"x": "x/s", "z": "z"}, ("x",)).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0] == ["peer", "version", "what it does", "x/s", "z", "x/s / ours"]
    assert cells[2:] == [
        ["kithstream", "1", "all", "2,000", "-", "1"],
        ["peer", "2", "less", "1,000", "1", "0.5"],
    ]


# -- vector indexes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 20, 200, 3000, 3001])
def test_the_oracle_is_a_full_sort(k: int) -> None:
    rng = np.random.default_rng(k)
    rows, vector = rng.normal(size=(3000, 8)).astype(np.float32), rng.normal(size=8).astype(np.float32)
    assert best(rows, vector, k).tolist() == np.argsort(-(rows @ vector), kind="stable")[:k].tolist()


@pytest.mark.parametrize("kind", [Kithstream, Exact, Hnswlib])
def test_an_index_finds_what_was_written_last(kind: type[Any], tmp_path: Path) -> None:
    subject = kind(300, 16, tmp_path)
    one = trial.Trial(subject, 300, 16, seed=3, far=True)
    try:
        one.build()
        found = one.round(asked=5, probes=5, ks=[20, 200], rate=1000, seconds=0.2)
        assert len(one.table) == 300
        assert (found["upserts"], found["not_seen_at_once"], found["never_seen"]) == (5, 0, 0)
        assert found["written_per_s"] > 0
        for name in ("recall_at_20", "recall_at_200", "recall_at_20_after", "recall_at_200_after"):
            assert found[name] > 0.95
        assert found["upsert_returned_p50_us"] <= found["upsert_seen_p50_us"]
    finally:
        subject.close()


class Deaf(Exact):
    """An index that takes nothing after it was built."""

    _deaf = False

    def ready(self) -> None:
        self._deaf = True

    def upsert(self, rows: Any, vectors: Any) -> None:
        if not self._deaf:
            super().upsert(rows, vectors)


def test_an_index_that_does_not_take_an_upsert_is_seen_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "PATIENCE", 0.02)
    one = trial.Trial(Deaf(400, 16, tmp_path), 400, 16, seed=0, far=True)
    one.build()
    found = one.visible(probes=10, seconds=5.0)
    assert (
        found["not_seen_at_once"] >= found["never_seen"] >= 8
    )  # a row may lie beside where it would jump to
    assert found["upserts"] == 10
    one.beside(rate=20_000, seconds=0.3, ks=[20])
    assert one.recall(200) < 0.95


def test_vectors_are_of_unit_length_and_the_same_for_every_index(tmp_path: Path) -> None:
    one, other = (trial.Trial(kind(50, 24, tmp_path), 50, 24, 7, False) for kind in (Exact, Hnswlib))
    assert np.array_equal(one.table, other.table)
    assert np.allclose(np.linalg.norm(one.table, axis=1), 1, atol=1e-5)


def test_a_failing_writer_fails_the_round(tmp_path: Path) -> None:
    class Broken(Exact):
        def upsert(self, rows: Any, vectors: Any) -> None:
            raise RuntimeError("no")

    one = trial.Trial(Broken(50, 8, tmp_path), 50, 8, 0, False)
    with pytest.raises(RuntimeError, match="no"):
        one.beside(1000, 0.1, [5])


@pytest.mark.parametrize(("late", "visible"), [(0, 1.0), (1, 5.0)])
def test_results_say_when_an_upsert_is_visible(tmp_path: Path, late: int, visible: float) -> None:
    names = ["upsert_returned_p50_us", "upsert_returned_p99_us", "query_200_p50_us", "query_200_p99_us"]
    one = {**dict.fromkeys(names, 1.0), "recall_at_200": 1.0, "not_seen_at_once": late, "version": "1"}
    one |= {"upsert_seen_p50_us": 5.0, "upsert_seen_p99_us": 5.0}
    sizes = index.Sizes(100_000, 8, 0, 1, 1, 1, 1, 1.0, False)
    path = tmp_path / "results.jsonl"
    index.append({"kithstream": [one], "hnswlib": [one], "numpy": [one]}, sizes, "x", path)
    lines = results.read(path)
    assert [(one.kind, one.by) for one in lines[::3]] == [
        ("ours", "kithstream"),
        ("peer", "hnswlib 1"),
        ("limit", "numpy 1"),
    ]
    barred = [one for one in lines if one.bar == "upsert"]
    assert [one.by for one in barred] == ["hnswlib 1"]
    assert barred[0].figures["p99_us"].median == visible


def test_results_of_ingest_hold_the_ratio_of_pairs(tmp_path: Path) -> None:
    def run(rate: float) -> dict[str, Any]:
        return {"events_per_second": rate, "version": "1"}

    killed = {"counted_twice": 3, "lost": 0, "version": "1"}
    rounds = {"kithstream": [run(10), run(30), killed], "faust": [run(5), run(3), killed]}
    ingest.append(rounds, 8, 0, "x", tmp_path / "results.jsonl")
    ours, theirs = results.read(tmp_path / "results.jsonl")
    assert ours.figures["times_plain_faust"] == results.Figure(6, 2, 10, 2)
    assert theirs.by == "faust 1"
    assert theirs.figures["counted_twice"].median == 3


# -- glue ----------------------------------------------------------------------------------------------------


def deeds(account: Account, given: Sequence[tuple[int, str, str, int]]) -> None:
    for direction, signal, other, at in given:
        account.fold(direction, signal, other, at)


def test_glue_counts_decay_by_their_half_lives_and_are_undone() -> None:
    account = Account(HOUR)
    deeds(account, [(IN, "follow", "b", HOUR), (OUT, "like", "c", HOUR), (OUT, "block", "d", HOUR)])
    deeds(account, [(OUT, "impression", "e", HOUR)])
    row = rows_of(["a"], [account], 2 * HOUR).counts[0]
    assert row[IN, 0].tolist() == pytest.approx(
        [2**-6, 0.5, 2 ** (-1 / 6), 2 ** (-1 / 24), 0.995883, 0.999037, 1], abs=1e-6
    )
    assert row[OUT, 1, 6] == row[OUT, 2, 6] == 1
    deeds(account, [(IN, "unfollow", "b", HOUR), (OUT, "unlike", "c", HOUR), (OUT, "unblock", "d", HOUR)])
    assert not rows_of(["a"], [account], HOUR).counts.any()
    deeds(
        account, [(IN, "follow", "b", 2 * HOUR), (IN, "follow", "c", 3 * HOUR), (IN, "follow", "d", 2 * HOUR)]
    )
    assert rows_of(["a"], [account], 3 * HOUR).counts[0, IN, 0, 1] == 0.5 + 1 + 0.5


def test_glue_knows_its_newest_neighbours_and_degrees() -> None:
    account = Account(HOUR)
    deeds(account, [(IN, "follow", f"b{turn}", (turn + 1) * HOUR) for turn in range(12)])
    deeds(account, [(OUT, "follow", "x", HOUR), (OUT, "follow", "y", HOUR), (OUT, "unfollow", "x", 2 * HOUR)])
    rows = rows_of(["a"], [account], 12 * HOUR)
    assert rows.followers == [[f"b{turn}" for turn in range(11, 1, -1)]]
    assert rows.follower_ages[0, :2].tolist() == [0, 3600]
    assert rows.followees == [["y"]]
    assert rows.degrees.tolist() == [[12, 1, 0]]
    assert rows.last.tolist() == [[0, 36_000]]


def test_the_tower_takes_what_the_glue_keeps() -> None:
    liked, blank = Account(HOUR), Account(HOUR)
    deeds(liked, [(IN, "follow", "b", HOUR)] * 3)
    vectors = Model.day_zero(0).encode_producers(rows_of(["a", "z"], [liked, blank], HOUR)).vectors
    assert np.isfinite(vectors).all()
    assert not np.allclose(vectors[0], vectors[1])


def test_times_are_told_in_milliseconds() -> None:
    told = glue.times([0.001] * 99 + [1.0])
    assert (told["visible_p50_ms"], told["visible_max_ms"], told["timed"]) == (1, 1000, 100)
    assert 1 < told["visible_p99_ms"] < 1000
    assert glue.times([]) == {"timed": 0}
    json.dumps(told)
