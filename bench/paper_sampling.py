"""Experiments E2 to E6: how many negatives, which loss, drawn how, weighted how."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

import msgspec
import numpy as np
from torch import Tensor

from bench.paper_measure import Row, Towers, known_of, measure, scores
from bench.paper_world import Log, World
from kithstream.models.contrast import Contrast, Contrasts, CrossEntropy, SamplingConfig, Softmax, Triplets
from kithstream.models.evaluate import roc_auc_per_user
from kithstream.models.fit import FitConfig, fit
from kithstream.models.negatives import Correction

Objective = Triplets | CrossEntropy | Softmax

RATIOS: Final = (1, 2, 4, 8, 16, 64, 256)
RATES: Final = (0.001, 0.003, 0.01)
LOSSES: Final[dict[str, tuple[Objective, ...]]] = {
    "triplet": tuple(Triplets(margin) for margin in (0.1, 0.2, 0.4)),
    "cross entropy, T = 1": (CrossEntropy(1.0),),
    "cross entropy": tuple(CrossEntropy(temperature) for temperature in (0.1, 0.2)),
    "softmax": tuple(Softmax(temperature) for temperature in (0.1, 0.2)),
}
SCALES: Final = (0.01, 0.1, 0.3, 1.0, 3.0, 10.0, 100.0)  # of t, in 90 % quantiles of followers
TUNING: Final = 1000  # seeds of worlds in which settings are chosen begin here; none is reported


class Budget(msgspec.Struct, frozen=True):
    """Epochs and batch sizes, the same for all arms of an experiment. `most_epochs` is for E7, where validation
    ends training."""

    served_epochs: int = 20
    served_size: int = 256
    follow_epochs: int = 8
    follow_size: int = 256
    follow_rate: float = 0.005
    most_epochs: int = 60


class Setting(NamedTuple):
    """A loss with its rate."""

    objective: Objective
    rate: float


class Chosen(msgspec.Struct, frozen=True):
    """The setting of a loss that did best in the tuning world, by per-user AUC on implicit negatives."""

    loss: str
    place: int  # in `LOSSES`
    rate: float
    per_user_auc: float  # there

    @property
    def setting(self) -> Setting:
        """The loss with its rate."""
        return Setting(LOSSES[self.loss][self.place], self.rate)


Choice = dict[str, Chosen]  # by loss


def towers_of(world: World, seed: int) -> Towers:
    """Untrained towers."""
    return Towers(world.user_features, world.account_features, seed)


def contrasts(world: World, log: Log, config: SamplingConfig, size: int, seed: int) -> Contrasts:
    """Batches of what a log engaged with."""
    pairs = log.part(log.engaged)
    known = known_of(pairs, world.config.users)
    return Contrasts((pairs.users, pairs.accounts), known, world.followers, config, size, seed)


def trained(
    world: World,
    seed: int,
    objective: Callable[[Towers, Contrast], Tensor],
    batches: Contrasts,
    rate: float,
    epochs: int,
) -> Towers:
    """Towers after so many epochs."""
    towers = towers_of(world, seed)
    fit(towers, objective, batches, FitConfig(rate, epochs, patience=0, seed=seed))
    return towers


def on_served(world: World, seed: int, setting: Setting, sampling: SamplingConfig, budget: Budget) -> Towers:
    """Trained on engaged impressions against drawn accounts."""
    batches = contrasts(world, world.served, sampling, budget.served_size, seed)
    return trained(world, seed, setting.objective, batches, setting.rate, budget.served_epochs)


def blind(world: World) -> SamplingConfig:
    """As many uniform negatives as there are accounts: more would name each of them again."""
    return SamplingConfig(pool=world.config.accounts, uniform=1.0)


def tune(world: World, seed: int, loss: str, budget: Budget) -> Chosen:
    """The setting of a loss with the highest per-user AUC on this world."""
    log = world.test_served
    tried = []
    for place, objective in enumerate(LOSSES[loss]):
        for rate in RATES:
            found = scores(on_served(world, seed, Setting(objective, rate), blind(world), budget))
            auc = roc_auc_per_user(log.users, found[log.users, log.accounts], log.engaged).mean
            tried.append(Chosen(loss, place, rate, auc))
    return max(tried, key=lambda one: one.per_user_auc)


def ratios(world: World, seed: int, choice: Choice, budget: Budget) -> Iterator[Row]:
    """E2: more negatives for each positive; positives and steps stay as they are."""
    pool = max(RATIOS)
    for ratio in RATIOS:
        sampling = SamplingConfig(pool=pool, uniform=1.0, ratio=ratio)
        towers = on_served(world, seed, choice["cross entropy"].setting, sampling, budget)
        yield measure(world, f"E2 {ratio}", seed, scores(towers))


def losses(world: World, seed: int, choice: Choice, budget: Budget) -> Iterator[Row]:
    """E3: the losses, each with its own best setting."""
    for name, chosen in choice.items():
        towers = on_served(world, seed, chosen.setting, blind(world), budget)
        yield measure(world, f"E3 {name}", seed, scores(towers))


def poolings(size: int) -> dict[str, tuple[Objective, SamplingConfig]]:
    """E4 and E5: where negatives come from."""
    return {
        "uniform": (Triplets(), SamplingConfig(uniform=1.0, known=True)),
        "in batch": (Triplets(), SamplingConfig(known=True)),
        "in batch, follows left out": (Triplets(), SamplingConfig()),
        "half and half": (Triplets(), SamplingConfig(uniform=0.5, known=True)),
        "hard": (Triplets(keep=max(1, size // 16), skip=2), SamplingConfig(uniform=1.0)),
        "softmax in batch": (Softmax(corrected=False), SamplingConfig(known=True)),
        "softmax in batch, log Q": (Softmax(), SamplingConfig(known=True)),
    }


def corrections(followers: np.ndarray) -> dict[str, Correction | None]:
    """E6: weights by popularity, from none over the strongest to none. The last is t without end."""
    p90 = float(np.quantile(followers, 0.9))
    return {**{f"{scale:g}": Correction(t=scale * p90) for scale in SCALES}, "inf": None}


def samplings(world: World, seed: int, budget: Budget) -> Iterator[Row]:
    """E4 to E6, on follows."""

    def row(arm: str, objective: Objective, sampling: SamplingConfig) -> Row:
        batches = contrasts(world, world.follows, sampling, budget.follow_size, seed)
        towers = trained(world, seed, objective, batches, budget.follow_rate, budget.follow_epochs)
        return measure(world, arm, seed, scores(towers))

    for name, (objective, sampling) in poolings(budget.follow_size).items():
        yield row(f"E4 {name}", objective, sampling)
    for name, correction in corrections(world.followers).items():
        yield row(f"E6 {name}", Triplets(), SamplingConfig(correction=correction, known=True))
