"""What `bench.limits` works out: pairs, ratios, and that a replay into bare databases is the fold's own work."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
from bench import distance, limits_fold, limits_http, limits_index, limits_tower, results
from bench.distance import Distance

from kithstream.models.model import Model
from kithstream.streams.state.protocol import Column

SMALL = argparse.Namespace(
    seed=0, runs=1, rows=[600], coded_rows=[600], graph_rows=600, build_rows=300, accounts=300
)


def made(sense: distance.Sense = "cost", **others: object) -> Distance:
    return Distance(
        "fold",
        "ingest",
        "a fold",
        "bare 1.0",
        "nothing",
        "us",
        sense,
        [20.0, 30.0, 90.0],
        [10.0, 10.0, 10.0],
        **others,
    )  # type: ignore[arg-type]


def test_a_ratio_is_the_median_of_the_pairs() -> None:
    assert made().ratio == 3.0
    assert made("rate").ratio == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match="a fold: 3 runs of ours, 1 of the limit"):
        Distance("fold", "ingest", "a fold", "bare 1.0", "nothing", "us", "cost", [1.0, 2.0, 3.0], [1.0])


def test_pairs_take_turns_at_beginning() -> None:
    order: list[str] = []

    def one(name: str, number: int) -> float:
        order.append(f"{name}{number}")
        return float(number)

    found = distance.pairs(lambda n: one("a", n), lambda n: one("b", n), 3)
    assert order == ["a0", "b0", "b1", "a1", "a2", "b2"]
    assert found == ([0.0, 1.0, 2.0], [0.0, 1.0, 2.0])


def test_the_table_tells_sizes_medians_and_command() -> None:
    told = distance.table([made(sizes={"rows": 5}, beside={"recall": 0.99})], "python -m bench.limits")
    row = told.splitlines()[-1]
    command = "`python -m bench.limits --only fold`"
    assert row == f"| a fold (5 rows) | 30 us, recall 0.99 | 10 us | bare 1.0: nothing | 3 | {command} |"


def test_both_sides_are_recorded_and_the_limit_alone_is_held_against_the_bar(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    one = Distance(
        "fold",
        "ingest",
        "a fold",
        "bare 1.0",
        "nothing",
        "events_per_cpu_second",
        "rate",
        [10.0, 20.0, 30.0],
        [100.0, 100.0, 100.0],
        bar="fold",
    )
    distance.record(one, "python -m bench.limits", 0, lambda **line: results.append(**line, path=path))
    ours, limit = results.read(path)
    assert (ours.kind, ours.bar, ours.figures["times_the_limit"].median) == ("ours", "", 5.0)
    assert (limit.kind, limit.by, limit.bar) == ("limit", "bare 1.0", "fold")
    assert limit.figures["events_per_cpu_second"].median == 100.0


@pytest.fixture
def folding(tmp_path: Path) -> limits_fold.Folding:
    logs = limits_fold.recorded(300, 9000, seed=0)
    return limits_fold.Folding(tmp_path, logs, warm=1)


def test_a_replay_does_the_folds_own_reads_and_writes(folding: limits_fold.Folding) -> None:
    window = folding.window(1)
    assert window.events > 2000
    assert folding.differences() == 0
    for name in ("whole", "reading", "writing", "decoding", "raw_reading", "raw_store", "raw_decoding"):
        assert getattr(window, name) > 0, name
    assert window.raw_framing > 0  # the outbox's frames were found
    folding.bare[1].writer([(Column.OUT, b"nobody\0", b"1")], [])()
    assert folding.differences() == 1
    folding.close()


def test_the_whole_is_held_against_everything_bare() -> None:
    one = limits_fold.Window(
        100, whole=0.01, raw_reading=0.001, raw_store=0.003, raw_decoding=0.0005, raw_framing=0.0005
    )
    whole = limits_fold.distances([one], {})[-1]
    assert (whole.ours, whole.limits, whole.ratio) == ([10_000], [pytest.approx(25_000)], pytest.approx(2.5))
    reads = next(each for each in limits_fold.distances([one], {}) if each.what == "reads of a fold")
    assert reads.limits == [pytest.approx(10.0)]  # microseconds an event


def test_the_index_and_hnswlib_answer_the_same_question() -> None:
    found = {one.what: one for one in limits_index.measure(SMALL)}
    query = next(one for what, one in found.items() if what.startswith("query by graph"))
    assert query.beside["recall_at_200"] > 0.98
    assert query.limit_beside["recall_at_200"] >= limits_index.ENOUGH
    assert query.note == "plans: graph"
    scanned = next(one for what, one in found.items() if what.startswith("query of the live index by scan"))
    assert scanned.note == "plans: exact"
    assert all(min(*one.ours, *one.limits) > 0 for one in found.values())


def test_the_tower_is_held_against_its_own_products() -> None:
    tower, whole = limits_tower.measure(SMALL)
    layers = Model.day_zero(0).tower
    flop = 2 * (layers.quality.numel() + layers.sketch_map.numel())
    assert tower.limit_beside["flop_per_account"] == flop
    assert whole.ours[0] > tower.ours[0] > 0


def test_the_bare_server_answers_with_nothing() -> None:
    with limits_http.bare() as (pid, port):
        assert limits_http.requests(port, pid, "/", 600) > 0
        assert limits_http.requests(port, pid, "/v1/candidates/u{}?k=20", 600) > 0
        with pytest.raises(RuntimeError, match=r"/other was answered with \[404\]"):
            limits_http.requests(port, pid, "/other", 100)
