"""The reproduction of the paper: its world, its measures, its verdicts and its page."""

from __future__ import annotations

import doctest
import math
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from bench import paper, paper_claims, paper_report
from bench.paper_claims import Arms, Check, Estimate, Results, checks, estimate
from bench.paper_measure import Nearest, Row, Served, first_of, measure
from bench.paper_sampling import TUNING, Budget, Chosen, corrections, losses, poolings, ratios, samplings
from bench.paper_tau import Rows, classified, in_movies, in_world
from bench.paper_tuning import engagement, heuristics, old_rankers, tuning
from bench.paper_world import LANGUAGES, World, WorldConfig, build

ROOT = Path(paper.__file__).parents[1]
CONFIG = WorldConfig(users=80, accounts=60, follows=8, served=12)
LARGER = WorldConfig(users=400, accounts=200, follows=20, served=20)
BUDGET = Budget(served_epochs=2, served_size=32, follow_epochs=2, follow_size=64, most_epochs=3)
CHOICE = {
    loss: Chosen(loss, 0, 0.01, 0.5)
    for loss in ("triplet", "cross entropy, T = 1", "cross entropy", "softmax")
}


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def world() -> World:
    return build(0, CONFIG)


@pytest.fixture(scope="module")
def results(world: World) -> Results:
    rows, taus, online = [], [], []
    for seed in (0, 1):
        here = build(seed, CONFIG)
        found = tuning(here, seed, CHOICE, BUDGET)
        rows += [*ratios(here, seed, CHOICE, BUDGET), *losses(here, seed, CHOICE, BUDGET)]
        rows += [*samplings(here, seed, BUDGET), *found.rows, *old_rankers(here, seed, CHOICE, BUDGET)]
        taus += in_world(build(seed, LARGER), seed)
        online += found.online
    return Results("a command", "a machine", 2, 60.0, CHOICE, rows, taus, online)


# -- the world -----------------------------------------------------------------------------------------------


def test_a_world_is_that_of_its_seed() -> None:
    same, other = build(3, CONFIG), build(4, CONFIG)
    np.testing.assert_array_equal(build(3, CONFIG).chance, same.chance)
    assert not np.array_equal(same.chance, other.chance)


def test_what_is_served_is_mostly_in_ones_language_and_engaged_as_told() -> None:
    big = build(0, LARGER)
    own = big.account_language[big.served.accounts] == big.user_language[big.served.users]
    assert own.mean() > 0.8 > (LANGUAGES**2).sum()
    logs = (big.served, big.next_served, big.test_served)
    assert np.concatenate([log.engaged for log in logs]).mean() == pytest.approx(0.15, abs=0.02)
    assert sum(len(log.users) for log in logs) == 400 * 20
    drawn = big.chance[big.served.users, big.served.accounts]
    assert drawn[big.served.engaged].mean() > 2 * drawn[~big.served.engaged].mean()


def test_training_and_test_share_no_pair(world: World) -> None:
    for parts in ((world.follows, world.next_follows), (world.served, world.next_served, world.test_served)):
        pairs = [set(zip(log.users.tolist(), log.accounts.tolist(), strict=True)) for log in parts]
        assert len(set.union(*pairs)) == sum(map(len, pairs))
    counts = np.bincount(world.follows.accounts, minlength=CONFIG.accounts)
    np.testing.assert_array_equal(world.followers, counts)


# -- what is measured ----------------------------------------------------------------------------------------


def test_a_row_cannot_be_made_of_what_was_served_alone() -> None:
    with pytest.raises(TypeError, match="nearest"):
        Row(arm="a", seed=0, served=Served(0.9, 0.7, 1.0))  # type: ignore[call-arg]


def test_tables_tell_both_halves(results: Results) -> None:
    for name, told in paper_report.tables(results).items():
        if "| AUC |" in told.splitlines()[0]:
            assert "| mismatch@1 | PRPC |" in told.splitlines()[0], name


def test_scores_that_are_known_measure_as_they_should(world: World) -> None:
    truth, blind = measure(world, "t", 0, world.chance), measure(world, "b", 0, -world.chance)
    assert truth.served is not None
    assert blind.served is not None
    assert truth.served.auc == pytest.approx(1 - blind.served.auc)
    assert truth.nearest.mismatch is not None
    assert truth.nearest.mismatch < 0.2
    best = np.sort(world.chance, axis=1)[:, -5:].mean()
    assert truth.nearest.truth == pytest.approx(best)
    popular = np.broadcast_to(world.followers.astype(float), world.chance.shape).copy()
    assert measure(world, "p", 0, popular).nearest.coverage == pytest.approx(5 / CONFIG.accounts)


def test_first_are_the_highest_in_order() -> None:
    found = np.random.default_rng(0).permutation(50).reshape(2, 25).astype(float)
    assert first_of(found, 4).tolist() == np.argsort(-found, axis=1)[:, :4].tolist()


def test_a_classifier_is_measured_by_hand() -> None:
    found = classified(np.array([0.9, 0.8, 0.3, 0.1]), np.array([True, False, True, False]))
    assert (found.auc, found.ap, found.accuracy, found.positives) == (0.75, (1 + 2 / 3) / 2, 0.5, 0.5)
    with pytest.raises(ValueError, match="both classes"):
        classified(np.array([0.5]), np.array([True]))


def test_batches_of_pairs_can_be_entered_anywhere() -> None:
    rows = Rows(np.arange(20, dtype=np.float32)[:, None], np.arange(20) < 5, seed=1, size=6)
    whole = list(rows.epoch(2, 0))
    assert [len(batch.labels) for batch in whole] == [6, 6, 6, 2]
    assert next(rows.epoch(2, 3)).features.equal(whole[3].features)
    assert sorted(float(x) for batch in whole for x in batch.features) == list(range(20))


def test_movies_are_read_and_their_thresholds_measured(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    taste = rng.random((300, 1)) < 0.5
    likes = rng.random((300, 60)) < np.where(taste == (np.arange(60) < 30), 0.8, 0.05)
    lines = [f"{u + 1}\t{m + 1}\t5\t0" for u, m in zip(*np.nonzero(likes), strict=True)]
    (tmp_path / "ml-100k.inter").write_text("\n".join(["user\tmovie\trating\ttime", *lines]))
    found = list(in_movies(tmp_path, 0))
    assert [one.tau for one in found] == [-1.0, 0.0, 0.2, 0.4, 0.6, 0.8]
    assert found[0].full.auc > 0.7  # unseen users, by the other half of what they like
    assert found[-1].biased.positives > found[1].biased.positives == pytest.approx(0.5, abs=0.05)


def test_engagement_is_that_of_the_best_of_what_is_retrieved() -> None:
    world = build(0, LARGER)
    truth, blind = (engagement(world, 0, s) for s in (world.chance, -world.chance))
    assert truth > engagement(world, 0, heuristics(world)) > blind


# -- what is made of it --------------------------------------------------------------------------------------


def row(arm: str, seed: int, auc: float, mismatch: float) -> Row:
    nearest = Nearest(
        mismatch=mismatch,
        prpc=0.0,
        prpc_log=0.0,
        spearman=0.0,
        coverage=0.0,
        gini=0.0,
        recall=0.0,
        follow_auc=0.0,
    )
    return Row(arm, seed, nearest, Served(auc, auc, 1.0))


def test_gaps_are_paired_by_seed() -> None:
    arms = Arms([row("a", 1, 0.8, 0.5), row("a", 0, 0.6, 0.5), row("b", 0, 0.5, 0.1), row("b", 1, 0.7, 0.1)])
    assert arms.gap("served.auc", "a", "b") == pytest.approx((0.1, 0.1, 0.1))
    assert arms.ratio("nearest.mismatch", "a", "b").mean == pytest.approx(4.0)
    assert arms.trend("served.auc", ["b", "a"]).mean == 1.0
    assert math.isnan(arms.values("a", "nearest.truth")[0])


def test_intervals_are_students() -> None:
    found = estimate([1.0, 2.0, 3.0, 4.0, 5.0])
    half = 2.776 * math.sqrt(2.5) / math.sqrt(5)
    assert found == pytest.approx((3.0, 3.0 - half, 3.0 + half))
    assert estimate([1.0]) == (1.0, -math.inf, math.inf)
    with pytest.raises(ValueError, match="0 values"):
        estimate([])


@pytest.mark.parametrize(
    ("low", "high", "sign", "bar", "outcome"),
    [
        (0.1, 0.3, 1, 0.0, "yes"),
        (0.1, 0.3, -1, 0.0, "no, the reverse"),
        (-0.1, 0.3, 1, 0.0, "undecided"),
        (-1.0, -0.95, -1, -0.9, "yes"),
        (-0.8, -0.7, -1, -0.9, "no, the reverse"),
        (math.nan, math.nan, 1, 0.0, "not measured"),
    ],
)
def test_an_outcome_is_what_the_interval_says(
    low: float, high: float, sign: int, bar: float, outcome: str
) -> None:
    assert Check("E", "d", "c", Estimate((low + high) / 2, low, high), sign, bar).outcome == outcome


def test_every_experiment_is_checked_and_the_page_filled(results: Results, tmp_path: Path) -> None:
    found = list(checks(results))
    assert {check.experiment for check in found} == {f"E{n}" for n in range(1, 12)}
    assert not any(math.isnan(check.estimate.mean) for check in found)
    page = tmp_path / "page.md"
    tables = paper_report.tables(results)
    paper_report.write(page, tables)
    written = page.read_text()
    assert all(told in written for told in tables.values())
    paper_report.write(page, tables)
    assert page.read_text() == written
    page.write_text(written.replace("<!-- E9 -->", ""))
    with pytest.raises(ValueError, match="the page has places"):
        paper_report.write(page, tables)


def test_results_come_back_from_their_file(results: Results) -> None:
    data = msgspec.json.encode(paper._rounded(results))
    back = msgspec.json.decode(data, type=Results)
    assert back.rows[0].nearest.prpc == pytest.approx(results.rows[0].nearest.prpc, abs=5e-5)
    assert len(back.rows) == len(results.rows)


def test_an_arm_is_a_function_of_its_seed(world: World) -> None:
    assert list(losses(world, 5, CHOICE, BUDGET)) == list(losses(world, 5, CHOICE, BUDGET))
    assert TUNING > paper_claims.MOST_SEEDS


def test_arms_are_those_that_the_checks_read() -> None:
    assert {"uniform", "in batch", "in batch, follows left out"} <= set(poolings(32))
    scales = corrections(np.arange(101))
    assert scales["1"] is not None
    assert scales["1"].t == pytest.approx(90.0)
    assert scales["inf"] is None


def test_the_page_tells_what_its_results_tell() -> None:
    page, file = ROOT / "docs/paper.md", ROOT / "docs/paper/results.json"
    found = paper_report.tables(msgspec.json.decode(file.read_bytes(), type=Results))
    assert paper_report.filled(page.read_text(), found) == page.read_text()
    for picture in (ROOT / "docs/paper").glob("*.svg"):
        assert f"paper/{picture.name}" in page.read_text()


def test_the_printed_example_holds() -> None:
    assert doctest.testmod(paper_claims).failed == 0
