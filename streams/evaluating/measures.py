"""From answers to the rows of a report: every metric, over all questions and by part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kithstream.models.evaluate import (
    Interval,
    bootstrap,
    bootstrap_columns,
    ndcg_at,
    recall_at,
    roc_auc,
    roc_auc_each,
)
from kithstream.models.exposure import coverage, exposure, gini, mismatch, prpc, spearman
from kithstream.streams.evaluating.asking import NOBODY, Answers
from kithstream.streams.evaluating.plan import LIST, Plan
from kithstream.streams.evaluating.report import Nearest, Row, Served

ALL: Final = "all"
BY_FOLLOWERS: Final = ("head", "torso", "tail")  # of the followed or shown account
BY_AGE: Final = (
    "newest third",
    "middle third",
    "oldest third",
)  # of the asking accounts, by the asked follows

Bools = NDArray[np.bool_]


class Part(NamedTuple):
    """Some of the questions: masks over the follows and over the impressions."""

    name: str
    follows: Bools  # (follows,)
    impressions: Bools  # (impressions,)


class Impressions(NamedTuple):
    """The impressions of all slates in a row."""

    asker: NDArray[np.int64]
    engaged: Bools

    @classmethod
    def of(cls, plan: Plan) -> Impressions:
        """Return them in the order of the plan."""
        sizes = [len(slate.shown) for slate in plan.slates]
        return cls(
            np.repeat(np.array([slate.asker for slate in plan.slates], np.int64), sizes),
            np.array([engaged for slate in plan.slates for engaged in slate.engaged], np.bool_),
        )


def parts(plan: Plan) -> list[Part]:
    """Return all questions, and those of each class of followers and of age that has any follow."""
    sizes = [len(slate.shown) for slate in plan.slates]
    followers = np.array([one.followers for one in plan.follows])
    shown = np.array([count for slate in plan.slates for count in slate.followers], np.int64)
    age = np.array([one.age for one in plan.follows])
    shown_age = np.repeat(np.array([slate.age for slate in plan.slates], np.int64), sizes)
    found = [Part(ALL, np.ones(len(followers), np.bool_), np.ones(len(shown), np.bool_))]
    edges = [plan.torso + 1, plan.head + 1]  # classes from the tail up
    of_follows, of_shown = np.digitize(followers, edges), np.digitize(shown, edges)
    for place, name in enumerate(reversed(BY_FOLLOWERS)):
        found.insert(1, Part(name, of_follows == place, of_shown == place))
    ages = age_borders(plan)
    of_follows, of_shown = np.digitize(age, ages), np.digitize(shown_age, ages)
    for place, name in enumerate(BY_AGE):
        found.append(Part(name, of_follows == place, of_shown == place))
    return [part for part in found if part.follows.any()]


def age_borders(plan: Plan) -> tuple[int, int]:
    """Return the ages in microseconds that cut the asked follows into thirds."""
    young, old = np.quantile([one.age for one in plan.follows], [1 / 3, 2 / 3])
    return int(young), int(old)


def rows(plan: Plan, answers: Mapping[str, Answers], ks: Sequence[int], seed: int) -> list[Row]:
    """Return a row for each method and part, the methods in their order."""
    every = parts(plan)
    impressions = Impressions.of(plan)
    targets = np.array([one.target for one in plan.follows])
    found = []
    for method, answer in answers.items():
        ranks = _ranks(answer.lists, targets)
        shown = np.concatenate([np.zeros(0), *answer.shown])
        for part in every:
            rng = np.random.default_rng(seed)
            recall, ndcg = _ranking(ranks[part.follows], ks, rng)
            try:
                measured: Nearest | None = _nearest(plan, answer, part.follows, rng)
                withheld = ""
            except ValueError as error:
                measured, withheld = None, str(error)
            if measured is not None:
                added = _served(measured, impressions, shown, part.impressions, rng)
                measured, withheld = (added, "") if isinstance(added, Served) else (measured, added)
            found.append(
                Row(
                    method=method,
                    part=part.name,
                    questions=int(part.follows.sum()),
                    recall=recall,
                    ndcg=ndcg,
                    measured=measured,
                    withheld=withheld,
                )
            )
    return found


def _ranks(lists: NDArray[np.int64], targets: NDArray[np.int64]) -> NDArray[np.int64]:
    """The place of each target in its list, from 0, or -1."""
    hit = lists == targets[:, None]
    return np.where(hit.any(1), hit.argmax(1), -1)


def _ranking(
    ranks: NDArray[np.int64], ks: Sequence[int], rng: np.random.Generator
) -> tuple[dict[int, Interval], dict[int, Interval]]:
    columns = [measure(ranks, k) for measure in (recall_at, ndcg_at) for k in ks]
    found = bootstrap_columns(np.stack(columns, 1), rng)
    return dict(zip(ks, found[: len(ks)], strict=True)), dict(zip(ks, found[len(ks) :], strict=True))


def _nearest(plan: Plan, answers: Answers, follows: Bools, rng: np.random.Generator) -> Nearest:
    """Raises ValueError where one of the metrics is not defined."""
    lists = answers.lists[follows, :LIST]
    share = exposure(lists, len(plan.accounts))[plan.candidates]
    followers = plan.followers[plan.candidates]
    place = np.full(len(plan.accounts), NOBODY)
    place[plan.candidates] = np.arange(len(plan.candidates))
    asker = np.array([one.asker for one in plan.follows])[follows]
    first = lists[:, 0]
    own = plan.language[asker]
    top = np.where(first >= 0, plan.language[first], -1)
    labelled = int(((own >= 0) & (top >= 0)).sum())
    followed, others = answers.followed[follows], answers.others[follows]
    users = np.concatenate([asker, np.repeat(asker, others.shape[1])])
    scores = np.concatenate([followed, others.ravel()])
    labels = np.arange(len(scores)) < len(followed)
    known = ~np.isnan(scores)
    each = roc_auc_each(users[known], scores[known], labels[known])
    return Nearest(
        random_auc=roc_auc(scores[known], labels[known]),
        random_auc_per_user=_mean(each, rng),
        random_pairs=int((known & ~labels).sum()),
        mismatch_at_1=mismatch(top, own) if labelled else None,
        labelled=labelled,
        prpc=prpc(followers, share),
        spearman=spearman(followers, share),
        coverage=coverage(np.where(lists >= 0, place[lists], NOBODY), len(plan.candidates)),
        gini=gini(share),
    )


def _served(
    nearest: Nearest,
    impressions: Impressions,
    shown: NDArray[np.float64],
    kept: Bools,
    rng: np.random.Generator,
) -> Served | str:
    """The metrics with those on served negatives added, or why there are none."""
    if not kept.any():
        return "no impression with an end was asked for"
    known = kept & ~np.isnan(shown)
    scores, labels, users = shown[known], impressions.engaged[known], impressions.asker[known]
    if labels.all() or not labels.any():
        return f"of {len(labels)} scored impressions {int(labels.sum())} were engaged with, both kinds are needed"
    each = roc_auc_each(users, scores, labels)
    measured = int((~np.isnan(each)).sum())
    if not measured:
        return "no account has an impression that it engaged with and one that it ignored"
    values = {name: getattr(nearest, name) for name in nearest.__struct_fields__}
    return Served(
        **values,
        served_auc=roc_auc(scores, labels),
        served_auc_per_user=_mean(each, rng),
        users=measured,
        engaged=int(labels.sum()),
        ignored=int((~labels).sum()),
        unscored=int((kept & np.isnan(shown)).sum()),
    )


def _mean(each: NDArray[np.float64], rng: np.random.Generator) -> Interval:
    """The mean over users that have a measure, with its interval."""
    measured = each[~np.isnan(each)]
    if not len(measured):
        raise ValueError("no account has a followed account and one drawn at random that can be compared")
    return bootstrap(measured, rng)
