"""Experiments E7 to E9: implicit negatives, random ones, and one after the other."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from typing import Final

import msgspec
import numpy as np

from bench.paper_measure import Row, Towers, first_of, measure, scores
from bench.paper_sampling import Budget, Choice, Setting, blind, contrasts, towers_of
from bench.paper_world import Floats, World
from kithstream.models.contrast import Engagement, Servings
from kithstream.models.evaluate import roc_auc, roc_auc_per_user
from kithstream.models.fit import FitConfig, Progress, fit

PATIENCE: Final = 4
SHARES: Final = (1.0, 1 / 3, 1 / 10, 1 / 30)  # of the rate, for fine-tuning
GENTLE: Final = SHARES.index(1 / 10)
LENGTHS: Final = (1, 3, 10)  # epochs of fine-tuning
RETRIEVED: Final = 50
SHOWN: Final = 3
RANKER_NOISE: Final = 0.7  # in log odds, of the ranker behind retrieval


class Online(msgspec.Struct, frozen=True):
    """What users would do: mean probability of engaging with what the ranker shows of what was retrieved."""

    arm: str
    seed: int
    engagement: float


class Tuned(msgspec.Struct, frozen=True):
    """All of it on one seed."""

    rows: list[Row]
    online: list[Online]


def tuning(world: World, seed: int, choice: Choice, budget: Budget) -> Tuned:
    """E7 to E9."""
    setting = choice["cross entropy"].setting
    implicit = on_implicit(world, seed, setting, budget)
    random = on_random(world, seed, setting, budget)
    kept: dict[str, Towers] = {}
    rows = [
        measure(world, "E7 implicit", seed, scores(implicit)),
        measure(world, "E7 random", seed, scores(random)),
        *grid(world, seed, random, setting, budget, kept),
        *sanity(world, seed),
    ]
    found = {
        "implicit": scores(implicit),
        "random": scores(random),
        "fine-tuned": scores(kept["fine-tuned"]),
        "heuristics": heuristics(world),
        "truth": world.chance,
    }
    return Tuned(rows, [Online(f"E9 {name}", seed, engagement(world, seed, s)) for name, s in found.items()])


def old_rankers(world: World, seed: int, choice: Choice, budget: Budget) -> list[Row]:
    """E7 again, in the world of another old ranker."""
    setting = choice["cross entropy"].setting
    implicit = on_implicit(world, seed, setting, budget)
    random = on_random(world, seed, setting, budget)
    tuned = deepcopy(random)
    fit(
        tuned,
        Engagement(_temperature(setting)),
        servings(world, seed, budget),
        _config(setting, seed, budget).gentle(),
    )
    return [
        measure(world, f"E7 strong {name}", seed, scores(towers))
        for name, towers in (("implicit", implicit), ("random", random), ("fine-tuned", tuned))
    ]


def servings(world: World, seed: int, budget: Budget) -> Servings:
    """Batches of what the old ranker showed."""
    return Servings(*world.served, budget.follow_size, seed)


def on_implicit(world: World, seed: int, setting: Setting, budget: Budget) -> Towers:
    """Trained on impressions alone, until per-user AUC on held-out ones falls."""

    def validate(towers: Towers) -> float:
        log, found = world.next_served, scores(towers)
        return roc_auc_per_user(log.users, found[log.users, log.accounts], log.engaged).mean

    towers = towers_of(world, seed)
    objective = Engagement(_temperature(setting))
    fit(towers, objective, servings(world, seed, budget), _config(setting, seed, budget), validate=validate)
    return towers


def on_random(world: World, seed: int, setting: Setting, budget: Budget) -> Towers:
    """Trained on engaged impressions against all accounts, until AUC of held-out ones falls."""
    log = world.next_served.part(world.next_served.engaged)
    others = np.random.default_rng(seed).integers(0, world.config.accounts, len(log.users))
    labels = np.arange(2 * len(log.users)) < len(log.users)

    def validate(towers: Towers) -> float:
        found = scores(towers)
        both = np.concatenate((found[log.users, log.accounts], found[log.users, others]))
        return roc_auc(both, labels)

    towers = towers_of(world, seed)
    batches = contrasts(world, world.served, blind(world), budget.served_size, seed)
    fit(towers, setting.objective, batches, _config(setting, seed, budget), validate=validate)
    return towers


def grid(
    world: World, seed: int, random: Towers, setting: Setting, budget: Budget, kept: dict[str, Towers]
) -> Iterator[Row]:
    """E8: fine-tuning at several rates, measured after 1, 3 and 10 epochs; that of the paper is E7's, and kept."""
    for place, share in enumerate(SHARES):
        towers = deepcopy(random)
        rows: list[Row] = []
        base = _config(setting, seed, budget)
        config = msgspec.structs.replace(base, rate=base.rate * share, epochs=max(LENGTHS), patience=0)

        def on_progress(
            progress: Progress, towers: Towers = towers, rows: list[Row] = rows, place: int = place
        ) -> None:
            length = progress.epoch + 1
            if length in LENGTHS:
                rows.append(measure(world, f"E8 {place} {length}", seed, scores(towers)))
            if place == GENTLE and length == 1:
                kept["fine-tuned"] = deepcopy(towers)

        objective = Engagement(_temperature(setting))
        fit(towers, objective, servings(world, seed, budget), config, on_progress=on_progress)
        yield from rows
    yield measure(world, "E7 fine-tuned", seed, scores(kept["fine-tuned"]))


def sanity(world: World, seed: int) -> Iterator[Row]:
    """Scores of which one knows what they should be worth."""
    shape = world.chance.shape
    yield measure(world, "blind", seed, np.random.default_rng(seed).random(shape))
    yield measure(world, "popularity", seed, np.broadcast_to(world.followers.astype(float), shape).copy())
    yield measure(world, "truth", seed, world.chance)


def heuristics(world: World) -> Floats:
    """What stood before models: accounts engaged with by those who engaged with the same, then popularity in
    the user's language."""
    log = world.served.part(world.served.engaged)
    engaged = np.zeros(world.chance.shape)
    engaged[log.users, log.accounts] = 1.0
    lengths = np.linalg.norm(engaged, axis=0)
    similar = engaged.T @ engaged / np.maximum(np.outer(lengths, lengths), 1e-9)
    np.fill_diagonal(similar, 0.0)
    scored = engaged @ similar
    spoken = world.account_language == world.user_language[:, None]
    popular: Floats = 1e-3 * spoken * world.followers / world.followers.max()
    return scored + popular


def engagement(world: World, seed: int, found: Floats) -> float:
    """Retrieve, rank by a ranker that knows the truth but for noise, show the first few. Engaged impressions of
    the training part are not shown again."""
    done = world.served.part(world.served.engaged)
    open_to = found.copy()
    open_to[done.users, done.accounts] = -np.inf
    retrieved = first_of(open_to, RETRIEVED)
    users = np.arange(len(found))[:, None]
    chance = world.chance[users, retrieved]
    noise = np.random.default_rng(seed).normal(size=found.shape) * RANKER_NOISE
    ranked = np.log(chance / (1 - chance)) + noise[users, retrieved]
    shown = first_of(ranked, SHOWN)
    return float(np.take_along_axis(chance, shown, axis=1).mean())


def _temperature(setting: Setting) -> float:
    return float(msgspec.structs.astuple(setting.objective)[0])


def _config(setting: Setting, seed: int, budget: Budget) -> FitConfig:
    return FitConfig(setting.rate, budget.most_epochs, PATIENCE, seed)
