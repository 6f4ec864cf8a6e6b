"""Metrics of answers whose measures are known."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from kithstream.streams.evaluating.asking import WHOLE, Answers
from kithstream.streams.evaluating.measures import ALL, BY_AGE, BY_FOLLOWERS, parts, rows
from kithstream.streams.evaluating.plan import FollowAsked, Plan, SlateAsked
from kithstream.streams.evaluating.report import Nearest, Row, Served
from kithstream.streams.prequential import first_pairs

ACCOUNTS = 40
FOLLOWERS = np.arange(ACCOUNTS) // 2


def plan_of(follows: int = 30, slates: int = 6, languages: bool = True) -> Plan:
    """Account n has n // 2 followers and speaks language n % 2; the asking ones are 0 to 9."""
    draw = np.random.default_rng(0)
    asked = []
    for number in range(follows):
        target = int(draw.integers(10, ACCOUNTS))
        others = [one for one in draw.permutation(ACCOUNTS).tolist() if one not in (target, number % 10)][:5]
        asked.append(
            FollowAsked(
                number, number, number, number % 10, target, others, int(FOLLOWERS[target]), number * 1000
            )
        )
    seen = []
    for number in range(slates):
        shown = draw.choice(np.arange(10, ACCOUNTS), 4, replace=False).tolist()
        engaged = [place == number % 4 for place in range(4)]
        counts = FOLLOWERS[shown].tolist()
        seen.append(SlateAsked(number, number, number, number % 3, shown, engaged, counts, 0))
    language = np.arange(ACCOUNTS) % 2 if languages else np.full(ACCOUNTS, -1)
    names = [f"a{number}" for number in range(ACCOUNTS)]
    return Plan(
        follows, first_pairs([]), asked, seen, 0, names, language, np.arange(10, ACCOUNTS), FOLLOWERS, 12, 18
    )


def answered(plan: Plan, lists: NDArray[np.int64], good: float) -> Answers:
    """Scores of `good` for what was followed or engaged with and 0 for the rest."""
    answers = Answers.empty(plan, lists.shape[1])
    answers.lists[:] = lists
    answers.followed[:] = good
    answers.others[:] = 0
    for scores, slate in zip(answers.shown, plan.slates, strict=True):
        scores[:] = np.where(slate.engaged, good, 0.0)
    return answers


def told(plan: Plan, answers: Answers, part: str = ALL) -> Row:
    found = rows(plan, {WHOLE: answers}, (1, 5, 20), 0)
    return next(row for row in found if row.part == part)


def test_who_is_always_right_is_told_so() -> None:
    plan = plan_of()
    lists = np.full((30, 20), -1)
    lists[:, 0] = [one.target for one in plan.follows]
    row = told(plan, answered(plan, lists, 1.0))
    assert all(value.mean == 1.0 for by in (row.recall, row.ndcg) for value in by.values())
    measured = row.measured
    assert isinstance(measured, Served)
    assert measured.random_auc == measured.random_auc_per_user.mean == 1.0
    assert measured.served_auc == measured.served_auc_per_user.mean == 1.0
    assert (measured.engaged, measured.ignored, measured.users) == (6, 18, 3)
    targets = {one.target for one in plan.follows}
    assert measured.coverage == pytest.approx(len(targets) / 30)
    off = [(one.asker + one.target) % 2 for one in plan.follows]
    assert measured.mismatch_at_1 == pytest.approx(np.mean(off))


def test_serving_everybody_the_popular_shows_in_prpc_though_served_auc_is_perfect() -> None:
    """The paper's lesson, in small: what was served is ranked perfectly, and everybody is recommended the same."""
    plan = plan_of()
    popular = np.tile(np.arange(ACCOUNTS - 1, ACCOUNTS - 21, -1), (30, 1))
    row = told(plan, answered(plan, popular, 1.0))
    measured = row.measured
    assert isinstance(measured, Served)
    assert measured.served_auc == 1.0
    assert measured.prpc > 0.8
    assert measured.coverage == pytest.approx(20 / 30)
    spread = np.stack([np.random.default_rng(n).permutation(np.arange(10, ACCOUNTS))[:20] for n in range(30)])
    varied = told(plan, answered(plan, spread, 1.0)).measured
    assert isinstance(varied, Served)
    assert abs(varied.prpc) < 0.5 < measured.prpc
    assert varied.gini < measured.gini


def test_equal_scores_are_no_better_than_chance() -> None:
    plan = plan_of()
    measured = told(plan, answered(plan, np.full((30, 20), -1), 0.0)).measured
    assert isinstance(measured, Served)
    assert measured.random_auc == measured.served_auc == 0.5
    assert measured.coverage == measured.prpc == measured.gini == 0.0
    assert measured.labelled == 0  # no first candidate
    assert measured.mismatch_at_1 is None


def test_parts_divide_the_questions_twice() -> None:
    plan = plan_of()
    found = {part.name: part for part in parts(plan)}
    for names in (BY_FOLLOWERS, BY_AGE):
        kept = [found[name] for name in names if name in found]
        assert len(kept) == 3
        assert np.array_equal(np.sum([part.follows for part in kept], axis=0), np.ones(30))
        assert np.array_equal(np.sum([part.impressions for part in kept], axis=0), np.ones(24))
    tail = [one.followers <= 12 for one in plan.follows]
    assert found["tail"].follows.tolist() == tail
    assert found["head"].follows.tolist() == [one.followers > 18 for one in plan.follows]
    assert found["newest third"].follows.sum() == 10


def test_without_impressions_or_languages_the_rest_is_told() -> None:
    plan = plan_of(slates=0, languages=False)
    row = told(plan, answered(plan, np.full((30, 20), 12), 1.0))
    assert type(row.measured) is Nearest
    assert row.measured.mismatch_at_1 is None
    assert row.withheld == "no impression with an end was asked for"


def test_served_metrics_need_both_kinds_for_some_account() -> None:
    plan = plan_of()
    none = plan._replace(slates=[slate._replace(engaged=[False] * 4) for slate in plan.slates])
    assert "0 were engaged with" in told(none, answered(none, np.full((30, 20), 12), 1.0)).withheld
    apart = [
        slate._replace(asker=number, engaged=[number < 3] * 4) for number, slate in enumerate(plan.slates)
    ]
    split = plan._replace(slates=apart)
    assert told(split, answered(split, np.full((30, 20), 12), 1.0)).withheld.startswith("no account has")


def test_served_metrics_are_withheld_where_the_nearest_ones_are_not_defined() -> None:
    """Nobody who was followed can be scored, so nothing is known against accounts drawn at random."""
    plan = plan_of()
    answers = answered(plan, np.full((30, 20), 12), 1.0)
    answers.followed[:] = np.nan
    row = told(plan, answers)
    assert row.measured is None
    assert row.withheld


def test_what_has_no_score_is_left_out_and_counted() -> None:
    plan = plan_of()
    answers = answered(plan, np.full((30, 20), 12), 1.0)
    answers.shown[0][1] = np.nan
    answers.others[0] = np.nan
    measured = told(plan, answers).measured
    assert isinstance(measured, Served)
    assert measured.unscored == 1
    assert measured.engaged + measured.ignored == 23
    assert measured.random_pairs == 29 * 5
