"""The comparison's own reckoning: who follows whom when, parts put together, the order of jobs."""

from __future__ import annotations

import gzip
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
from bench import quality_part, quality_peers
from bench.quality_jobs import METHODS, SEGMENTS, TRIALS, Given, do, jobs
from bench.quality_part import Part
from bench.quality_streams import SIMULATOR, History, cut, kept_pairs
from bench.quality_table import LABELS, OWN, Ratio, Row, markdown, paired_ratio, summed_up
from hypothesis import given
from hypothesis import strategies as st

from kithstream.streams import prequential
from kithstream.streams.prequential import MISSED, Pairs, border
from kithstream.streams.yardsticks import TwoHop

ROOT = Path(quality_part.__file__).parents[1]
FOLLOWS = st.lists(
    st.tuples(st.integers(0, 5), st.integers(0, 5)).filter(lambda pair: pair[0] != pair[1]),
    max_size=30,
    unique=True,
)


def made(follows: list[tuple[int, int]]) -> Pairs:
    """Pairs a second apart, the i-th told by event 2i."""
    source, target = np.array(follows, np.int64).reshape(-1, 2).T
    at = np.arange(len(follows))
    return Pairs(source, target, at * 1_000_000, at * 2, [f"u{number}" for number in range(6)])


def part(stream: str, job: str, **more: object) -> Part:
    plain = {"seed": 0, "pairs": 10, "tests": 4, "machine": "one, load 1", "versions": {"numpy": "2"}}
    return msgspec.convert({"stream": stream, "job": job, **plain, **more}, Part)


def answered(method: str, positions: dict[int, int], job: str = "", **more: object) -> Part:
    places = list(positions.values())
    told = {"rows": list(positions), "positions": {method: places}, "query_ms": {method: [1.0] * len(places)}}
    return part("btc", job or method, **told, **more)


# -- streams -------------------------------------------------------------------------------------------------


@given(FOLLOWS)
def test_history_is_what_was_told_before_a_row(follows: list[tuple[int, int]]) -> None:
    history = History(made(follows))
    for row in range(len(follows) + 1):
        for account in range(6):
            before = [target for source, target in follows[:row] if source == account]
            assert history.before(account, row).tolist() == before


def test_a_cut_stream_names_the_accounts_it_has() -> None:
    known = made([(0, 1), (1, 2), (2, 5)])
    assert cut(known, 2).accounts == ["u0", "u1", "u2"]
    assert cut(known, None).accounts == known.accounts
    assert cut(known, 0).accounts == []


def test_kept_pairs_are_those_that_were_read(tmp_path: Path) -> None:
    file = tmp_path / "CollegeMsg.txt.gz"
    with gzip.open(file, "wt") as rows:
        rows.write("a b 1\nb a 2\na b 3\nc a 4\n")
    once = kept_pairs("college", tmp_path, 0, None, tmp_path)
    file.unlink()
    again = kept_pairs("college", tmp_path, 0, None, tmp_path)
    for name in Pairs._fields:
        assert np.array_equal(getattr(once, name), getattr(again, name)), name
    assert again.accounts == ["a", "b", "c"]
    assert again.event.tolist() == [0, 1, 3]


# -- peers ---------------------------------------------------------------------------------------------------


def test_answers_are_judged_without_the_asker_and_whom_it_follows() -> None:
    known = made([(0, 1), (0, 2), (0, 3)])
    asked = quality_peers.ask(
        lambda source, followed: [0, 1, 2, 3], known, History(known), np.array([0, 1, 2]), 1
    )
    assert asked.positions == [0, 0, 0]
    late = quality_peers.ask(lambda source, followed: [4, 3], known, History(known), np.array([2]), 1)
    assert late.positions == [MISSED]


def test_follows_become_a_matrix_of_all_accounts() -> None:
    filled = quality_peers.matrix(made([(0, 1), (4, 2), (2, 0)]), slice(2)).toarray()
    assert np.argwhere(filled).tolist() == [[0, 1], [4, 2]]


def test_segments_cover_the_last_fifth() -> None:
    known = made([(row % 6, (row + 1) % 6) for row in range(100)])
    borders = quality_peers.segments(known)
    assert (borders[0], borders[-1], len(borders)) == (border(known), 100, SEGMENTS + 1)
    assert borders == sorted(borders)


@pytest.mark.parametrize("draw", [quality_peers.draw_als, quality_peers.draw_bpr, quality_peers.draw_warp])
def test_settings_are_a_function_of_the_seed(draw: object) -> None:
    assert callable(draw)
    drawn = [draw(np.random.default_rng((0, number))) for number in range(1, TRIALS)]
    assert drawn == [draw(np.random.default_rng((0, number))) for number in range(1, TRIALS)]
    assert len({str(setting) for setting in drawn}) == TRIALS - 1
    for setting in drawn:
        assert msgspec.json.decode(msgspec.json.encode(setting), type=type(setting)) == setting


# -- jobs ----------------------------------------------------------------------------------------------------


def test_jobs_need_only_jobs_that_are_there_and_have_no_circle() -> None:
    made_jobs = jobs("btc", METHODS)
    settled: set[str] = set()
    left = list(made_jobs)
    while fit := [job for job in left if settled.issuperset(job.needs)]:
        settled |= {job.key for job in fit}
        left = [job for job in left if job.key not in settled]
    assert not left
    assert len(settled) == len(made_jobs)
    assert sum("/trial-" in job.key for job in made_jobs) == 5 * TRIALS


def test_what_is_waited_for_comes_first() -> None:
    made_jobs = {job.key: job for job in jobs("btc", ["als"])}
    for job in made_jobs.values():
        for need in job.needs:
            assert made_jobs[need].weight > job.weight


def test_a_rule_is_chosen_and_measured_by_its_jobs(tmp_path: Path) -> None:
    """The real jobs on a small file; 2-hop's positions are those of the protocol's own replay."""
    draw = np.random.default_rng(0)
    follows = [(a, b) for a, b in draw.integers(0, 12, (400, 2)).tolist() if a != b]
    with gzip.open(tmp_path / "CollegeMsg.txt.gz", "wt") as rows:
        for time, (a, b) in enumerate(follows):
            rows.write(f"{a} {b} {1000 * time}\n")
    given_all = Given(tmp_path, tmp_path, 20, None, 0)
    made_jobs = jobs("college", ["two_hop", "popularity"])
    for job in made_jobs:
        quality_part.write(tmp_path, do(job.key, given_all))
    parts = quality_part.read(tmp_path)
    assert parts.keys() == {job.key for job in made_jobs}
    known = kept_pairs("college", tmp_path, 0, None, tmp_path)
    tests = prequential.choose_tests(known, 0, 20)
    assert parts["college/two_hop"].rows == tests.tolist()
    assert (
        parts["college/two_hop"].positions["two_hop"] == prequential.replay(TwoHop(), known, tests).tolist()
    )
    tried = [parts[f"college/popularity/trial-{number}"] for number in range(TRIALS)]
    best = max(one.recalls["popularity"] for one in tried)
    chosen = next(one for one in tried if one.recalls["popularity"] == best)
    assert parts["college/popularity"].setting == chosen.setting
    rows = {one.method: one for one in summed_up(parts) if isinstance(one, Row)}
    assert rows["popularity"].tried == TRIALS


# -- parts ---------------------------------------------------------------------------------------------------


def test_parts_are_read_one_by_one_and_together(tmp_path: Path) -> None:
    parts = [answered("two_hop", {1: 0}), part("btc", "als/trial-3", recalls={"als": 0.5})]
    for one in parts:
        quality_part.write(tmp_path, one)
    alone = quality_part.read(tmp_path)
    assert [msgspec.json.encode(one) for one in alone.values()] == [
        msgspec.json.encode(one) for one in parts[::-1]
    ]
    together = tmp_path / "together"
    together.mkdir()
    lines = b"".join(file.read_bytes() for file in tmp_path.glob("*.part.json"))
    (together / quality_part.TOGETHER).write_bytes(lines)
    assert quality_part.read(together) == alone


def test_parts_of_two_comparisons_are_refused(tmp_path: Path) -> None:
    quality_part.write(tmp_path, part("btc", "two_hop"))
    quality_part.write(tmp_path, part("btc", "live", seed=1))
    quality_part.write(tmp_path, part("higgs", "live", pairs=7))
    with pytest.raises(ValueError, match="btc/two_hop has seed 0, btc/live 1"):
        quality_part.read(tmp_path)


def test_the_best_setting_is_the_first_of_highest_recall(tmp_path: Path) -> None:
    for number, recall in enumerate((0.1, 0.3, 0.3)):
        one = part("btc", f"als/trial-{number}", recalls={"als": recall}, setting=str(number))
        quality_part.write(tmp_path, one)
    assert quality_part.best_setting(quality_part.trials(tmp_path, "btc", "als"), "als") == "1"
    with pytest.raises(ValueError, match="no setting of bpr"):
        quality_part.best_setting(quality_part.trials(tmp_path, "btc", "bpr"), "bpr")


# -- table ---------------------------------------------------------------------------------------------------


def test_segments_are_put_together_and_compared_on_the_same_tests() -> None:
    parts = [
        answered("bpr_refit", {5: 0, 6: MISSED}, "bpr_refit/segment-0", fit_seconds=2.0),
        answered("bpr_refit", {8: 1, 9: MISSED}, "bpr_refit/segment-1", fit_seconds=3.0),
        answered("two_hop", {5: MISSED, 6: MISSED, 8: 1, 9: MISSED}),
        answered("whole", {5: 0, 6: 0, 8: 0, 9: 0}),
        answered("als", {5: 0, 6: 0}),
    ]
    made_all = summed_up({one.key: one for one in parts})
    rows = {one.method: one for one in made_all if isinstance(one, Row)}
    assert rows["bpr_refit"].recall_at_20.mean == 0.5
    assert rows["bpr_refit"].ndcg_at_20.mean == pytest.approx((1 + 1 / np.log2(3)) / 4, abs=1e-4)
    assert rows["bpr_refit"].fit_seconds == 5.0
    assert {name for name, row in rows.items() if not row.complete} == {"als"}
    ratios = {one.measure: one for one in made_all if isinstance(one, Ratio)}
    assert (ratios["recall"].method, ratios["recall"].other) == ("whole", "bpr_refit")
    assert ratios["recall"].ratio.mean == 2.0
    told = markdown(made_all)
    assert "of 2 tests only" in told
    assert "2.00 (" in told


def test_a_ratio_is_of_the_same_tests() -> None:
    theirs = np.tile([1.0, 0.0], 200)
    assert paired_ratio(theirs, theirs, 0) == (1.0, 1.0, 1.0)
    other = np.tile([0.0, 1.0], 200)
    mean, low, high = paired_ratio(other, theirs, 0)
    assert low < mean == 1.0 < high
    with pytest.raises(ValueError, match="sum of 0"):
        paired_ratio(theirs, np.zeros(400), 0)


def test_every_method_has_a_line() -> None:
    assert {"towers", "whole"} <= set(OWN) <= set(LABELS)
    plain = {name: answered(name, {1: 0}, name) for name in LABELS}
    told = markdown(summed_up(plain))
    for label in LABELS.values():
        assert f"| {label} |" in told


def test_the_simulator_needs_no_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.quality_streams.EVENTS", 20_000)
    monkeypatch.setattr("bench.quality_streams.ACCOUNTS", 300)
    known = kept_pairs(SIMULATOR, Path("nowhere"), 3, None, tmp_path)
    assert len(known.source) > 500
    assert known.accounts == kept_pairs(SIMULATOR, Path("nowhere"), 3, None, tmp_path).accounts


# -- the pool ------------------------------------------------------------------------------------------------


def compared(folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """The comparison of one rule on a small file, as it is started by hand."""
    with gzip.open(folder / "CollegeMsg.txt.gz", "wt") as rows:
        draw = np.random.default_rng(0)
        for time, (a, b) in enumerate(draw.integers(0, 12, (300, 2)).tolist()):
            rows.write(f"{a} {b} {1000 * time}\n")
    command = [sys.executable, "-m", "bench.quality", "--data", str(folder), "--out", str(folder / "out")]
    command += ["--streams", "college", "--methods", "two_hop", "--tests", "20", *more]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT)


def test_a_pool_does_what_is_not_done_yet(tmp_path: Path) -> None:
    late = compared(tmp_path, "--seconds", "0")
    assert late.returncode == 1
    assert "not done: college/two_hop: out of time" in late.stderr
    done = compared(tmp_path)
    assert done.returncode == 0, done.stderr
    assert "| 2-hop co-follow, live |" in done.stdout
    files = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").glob("*.part.json")}
    assert {file.name for file in files} == {"college.pairs.part.json", "college.two_hop.part.json"}
    again = compared(tmp_path)
    assert again.stdout == done.stdout
    assert {file: file.stat().st_mtime_ns for file in files} == files


def test_a_job_that_fails_says_why(tmp_path: Path) -> None:
    compared(tmp_path, "--seconds", "0")
    (tmp_path / "CollegeMsg.txt.gz").unlink()
    command = [sys.executable, "-m", "bench.quality", "--data", str(tmp_path), "--out", str(tmp_path / "out")]
    told = subprocess.run(
        [*command, "--streams", "college", "--methods", "two_hop"],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
    )
    assert told.returncode == 1
    assert "college/pairs: FileNotFoundError" in told.stderr
