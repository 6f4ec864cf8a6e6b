"""What the paper claims, held against what was measured: one check for each claim, and why it came out so."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import combinations
from typing import Final, NamedTuple

import msgspec
import numpy as np

from bench.paper_measure import Row
from bench.paper_sampling import RATIOS, Choice
from bench.paper_tau import TAUS, Classified, Tau
from bench.paper_tuning import GENTLE, LENGTHS, SHARES, Online
from kithstream.models.exposure import spearman

# Student's t at 97.5 % by degrees of freedom, 1 to 9.
STUDENT: Final = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
MOST_SEEDS: Final = len(STUDENT) + 1


class Results(msgspec.Struct, frozen=True):
    """Everything that was measured."""

    command: str
    machine: str
    seeds: int
    cpu_seconds: float | None  # None where a part was made before it was counted
    choice: Choice
    rows: list[Row]
    taus: list[Tau]
    online: list[Online]


class Estimate(NamedTuple):
    """A mean over seeds and its 95 % interval."""

    mean: float
    low: float
    high: float

    def told(self, digits: int = 3) -> str:
        """Mean and interval."""
        return f"{self.mean:.{digits}f} [{self.low:.{digits}f}, {self.high:.{digits}f}]"


class Check(NamedTuple):
    """A claim as a bar that a quantity lies above (sign 1) or below (sign -1)."""

    experiment: str
    data: str
    claim: str
    estimate: Estimate
    sign: int
    bar: float = 0.0

    @property
    def outcome(self) -> str:
        """What the interval says."""
        if math.isnan(self.estimate.mean):
            return "not measured"
        low, high = (e - self.bar for e in (self.estimate.low, self.estimate.high))
        if self.sign < 0:
            low, high = -high, -low
        return "yes" if low > 0 else "no, the reverse" if high < 0 else "undecided"


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and Student's interval. One value has no interval: it is the whole line.

    >>> estimate([1.0, 2.0, 3.0]).told(2)
    '2.00 [-0.48, 4.48]'
    """
    n = len(values)
    if not 0 < n <= MOST_SEEDS:
        raise ValueError(f"{n} values, 1 to {MOST_SEEDS} are due")
    mean = float(np.mean(values))
    if n == 1:
        return Estimate(mean, -math.inf, math.inf)
    half = STUDENT[n - 2] * float(np.std(values, ddof=1)) / math.sqrt(n)
    return Estimate(mean, mean - half, mean + half)


class Arms:
    """Rows by arm, with their values in the order of seeds."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self.rows: dict[str, list[Row]] = {}
        for row in sorted(rows, key=lambda row: row.seed):
            self.rows.setdefault(row.arm, []).append(row)

    def values(self, arm: str, measure: str) -> list[float]:
        """A measure of an arm, by seed: `served.auc`, `nearest.prpc`."""
        half, _, name = measure.partition(".")
        return [_number(getattr(getattr(row, half), name)) for row in self.rows[arm]]

    def gap(self, measure: str, more: str, less: str) -> Estimate:
        """Of paired differences between two arms."""
        pairs = zip(self.values(more, measure), self.values(less, measure), strict=True)
        return estimate([a - b for a, b in pairs])

    def ratio(self, measure: str, more: str, less: str) -> Estimate:
        """Of paired ratios between two arms, less one."""
        pairs = zip(self.values(more, measure), self.values(less, measure), strict=True)
        return estimate([a / b - 1 for a, b in pairs])

    def trend(self, measure: str, arms: Sequence[str]) -> Estimate:
        """Of the rank correlation of a measure with the order of arms."""
        table = np.array([self.values(arm, measure) for arm in arms])
        return estimate([spearman(np.arange(len(arms)), column) for column in table.T])


def checks(results: Results) -> Iterator[Check]:
    """All of them, in the paper's order."""
    arms = Arms(results.rows)
    yield from _thresholds(results.taus)
    yield from _losses(arms)
    yield from _pools(arms, "simulated", "")
    for stream in sorted({arm.partition(" E4")[0] for arm in arms.rows if " E4 " in arm}):
        yield from _pools(arms, stream, f"{stream} ")
    yield from _tuning(arms)
    yield from _online(results.online)
    yield from _recalls(results.rows)


def _thresholds(taus: Sequence[Tau]) -> Iterator[Check]:
    for data in dict.fromkeys(tau.data for tau in taus):
        by_seed: dict[int, list[Tau]] = {}
        for one in sorted(taus, key=lambda one: one.tau):
            if one.data == data and one.tau >= 0:
                by_seed.setdefault(one.seed, []).append(one)

        def over(
            part: Callable[[list[float]], float],
            side: str,
            name: str,
            by_seed: dict[int, list[Tau]] = by_seed,
        ) -> Estimate:
            return estimate(
                [part([getattr(_side(one, side), name) for one in curve]) for curve in by_seed.values()]
            )

        def trend(curve: list[float]) -> float:
            return spearman(np.array(TAUS), np.array(curve))

        def rise(curve: list[float]) -> float:
            return curve[-1] - curve[0]

        for name in ("auc", "ap", "accuracy"):
            yield Check(
                "E1",
                data,
                f"full set: {name} falls with tau (rank correlation)",
                over(trend, "full", name),
                -1,
                -0.9,
            )
        for name in ("auc", "ap", "accuracy"):
            yield Check(
                "E1", data, f"biased set: {name} is higher at tau .8 than at 0", over(rise, "biased", name), 1
            )


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _side(one: Tau, side: str) -> Classified:
    return one.full if side == "full" else one.biased


def _losses(arms: Arms) -> Iterator[Check]:
    by_ratio = [f"E2 {ratio}" for ratio in RATIOS]
    for measure, sign in (
        ("served.auc", 1),
        ("served.per_user_auc", 1),
        ("nearest.truth_deep", 1),
        ("nearest.mismatch", -1),
    ):
        yield Check(
            "E2",
            "simulated",
            f"{measure} {'rises' if sign > 0 else 'falls'} with negatives per positive (rank correlation)",
            arms.trend(measure, by_ratio),
            sign,
        )
    triplet = "E3 triplet"
    for other in ("cross entropy, T = 1", "cross entropy", "softmax"):
        yield Check(
            "E3",
            "simulated",
            f"triplet over {other}: per-user AUC, relative",
            arms.ratio("served.per_user_auc", triplet, f"E3 {other}"),
            1,
        )


def _pools(arms: Arms, data: str, prefix: str) -> Iterator[Check]:
    uniform, batch, left = (f"{prefix}E4 {n}" for n in ("uniform", "in batch", "in batch, follows left out"))
    peak, low, high = (f"{prefix}E6 {n}" for n in ("1", "0.01", "100"))
    simulated = not prefix

    def check(experiment: str, claim: str, measure: str, more: str, less: str, sign: int) -> Check:
        return Check(experiment, data, f"{measure}: {claim}", arms.gap(measure, more, less), sign)

    yield check("E4", "uniform over in batch", "nearest.prpc", uniform, batch, 1)
    yield check("E4", "uniform over in batch, follows left out", "nearest.prpc", uniform, left, 1)
    yield check("E4", "in batch over uniform", "nearest.coverage", batch, uniform, 1)
    yield check("E5", "in batch below uniform", "nearest.recall", batch, uniform, -1)
    if simulated:
        yield check("E5", "in batch below uniform", "nearest.truth_deep", batch, uniform, -1)
    rising = [
        "nearest.prpc",
        "nearest.follow_auc",
        *(["served.auc", "served.per_user_auc"] if simulated else []),
    ]
    for measure in rising:
        yield check("E6", "t = p90 over t = p90 / 100", measure, peak, low, 1)
    if simulated:
        yield check("E6", "t = p90 below t = p90 / 100", "nearest.mismatch", peak, low, -1)
    yield check("E6", "goes on rising: t = 100 p90 over t = p90", "nearest.prpc", high, peak, 1)


def _tuning(arms: Arms) -> Iterator[Check]:
    implicit, random, tuned = (f"E7 {n}" for n in ("implicit", "random", "fine-tuned"))

    def check(experiment: str, claim: str, measure: str, more: str, less: str, sign: int = 1) -> Check:
        return Check(experiment, "simulated", f"{measure}: {claim}", arms.gap(measure, more, less), sign)

    yield check("E7", "implicit over fine-tuned", "nearest.mismatch", implicit, tuned)
    yield check("E7", "fine-tuned over random", "nearest.mismatch", tuned, random)
    for measure in ("served.auc", "served.per_user_auc"):
        yield check("E7", "implicit over random", measure, implicit, random)
        yield check("E7", "fine-tuned over random", measure, tuned, random)
        yield check("E7", "fine-tuned within .02 of implicit, or over it", measure, tuned, implicit)._replace(
            bar=-0.02
        )
    yield Check(
        "E7",
        "simulated",
        "random is near guessing on what was served: AUC below .6",
        estimate(arms.values(random, "served.auc")),
        -1,
        0.6,
    )
    for arm, name in ((implicit, "implicit"), (tuned, "fine-tuned")):
        values = zip(arms.values(arm, "served.auc"), arms.values(arm, "served.per_user_auc"), strict=True)
        yield Check(
            "E7",
            "simulated",
            f"{name}: global AUC over per-user AUC",
            estimate([a - b for a, b in values]),
            1,
        )
    strong = [f"E7 strong {n}" for n in ("implicit", "random", "fine-tuned")]
    for measure in ("served.auc", "served.per_user_auc", "nearest.mismatch"):
        yield check("E7", "implicit over random", measure, strong[0], strong[1])._replace(
            data="stronger old ranker"
        )
    yield check("E7", "fine-tuned over random", "served.per_user_auc", strong[2], strong[1])._replace(
        data="stronger old ranker"
    )
    gentle = [f"E8 {GENTLE} {length}" for length in LENGTHS]
    rates = [f"E8 {place} 1" for place in reversed(range(len(SHARES)))]
    yield Check(
        "E8",
        "simulated",
        "mismatch rises with the rate, 1 epoch (rank correlation)",
        arms.trend("nearest.mismatch", rates),
        1,
    )
    yield Check(
        "E8",
        "simulated",
        "mismatch rises with epochs, a tenth of the rate (rank correlation)",
        arms.trend("nearest.mismatch", gentle),
        1,
    )
    yield check(
        "E8", "10 epochs within .02 of 1: it saturates in one", "served.auc", gentle[0], gentle[-1]
    )._replace(bar=-0.02)
    yield check("E10", "the best on served pairs by global AUC ...", "served.auc", implicit, random)
    yield check("E10", "... shows the most in other languages", "nearest.mismatch", implicit, random)
    yield check("E10", "... and the least that is engaged with", "nearest.truth", implicit, random, -1)


def _online(online: Sequence[Online]) -> Iterator[Check]:
    by_arm: dict[str, list[float]] = {}
    for one in sorted(online, key=lambda one: one.seed):
        by_arm.setdefault(one.arm, []).append(one.engagement)
    for name, base, sign in (
        ("fine-tuned", "heuristics", 1),
        ("random", "heuristics", -1),
        ("implicit", "heuristics", -1),
        ("fine-tuned", "random", 1),
    ):
        pairs = zip(by_arm[f"E9 {name}"], by_arm[f"E9 {base}"], strict=True)
        claim = f"{name} against {base}: engagement, relative"
        yield Check("E9", "simulated", claim, estimate([a / b - 1 for a, b in pairs]), sign)


def _recalls(rows: Sequence[Row]) -> Iterator[Check]:
    """E11: over all trained arms of a seed, does recall order them as the truth does?"""
    apart: list[float] = []
    lost: list[float] = []
    agreed: list[float] = []
    for told, truth in by_recall(rows):
        agreed.append(spearman(told, truth))
        pairs = list(combinations(range(len(told)), 2))
        apart.append(float(np.mean([(told[a] - told[b]) * (truth[a] - truth[b]) < 0 for a, b in pairs])))
        lost.append(float(1 - truth[np.argmax(told)] / truth.max()))
    yield Check(
        "E11",
        "simulated",
        "recall@20 and truth order arms alike (rank correlation below .9)",
        estimate(agreed),
        -1,
        0.9,
    )
    yield Check(
        "E11",
        "simulated",
        "pairs of arms that recall@20 and truth order otherwise, share above .05",
        estimate(apart),
        1,
        0.05,
    )
    yield Check(
        "E11", "simulated", "true engagement lost by choosing on recall@20, relative", estimate(lost), 1
    )


def by_recall(rows: Sequence[Row]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Of each seed: recall@20 of held-out engaged impressions, and true mean engagement of the twenty, by arm."""
    trained = [
        row for row in rows if row.arm[0] == "E" and "strong" not in row.arm and row.served is not None
    ]
    for seed in sorted({row.seed for row in trained}):
        here = [row.nearest for row in trained if row.seed == seed]
        yield np.array([n.recall_served for n in here], float), np.array([n.truth_deep for n in here], float)
