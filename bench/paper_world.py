"""A world whose truth is known, seen through what an old ranker served in it.

Users and accounts have languages and tastes; p[i, j] is the probability that user i engages with account j when it
is shown. Two logs come of it: follows of what users came across by themselves, which is mostly what is famous, and
impressions of an old ranker that goes by popularity, language and a rough idea of taste, so that hardly anything in
another language was ever shown. A seed makes everything.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]

LANGUAGES: Final = np.array([0.3, 0.25, 0.2, 0.15, 0.1])  # shares of users and accounts
TASTES: Final = 8  # dims of the truth
SEEN: Final = 4  # of which the features show these, with noise


class WorldConfig(msgspec.Struct, frozen=True):
    """Sizes, and weights in log odds."""

    users: int = 1000
    accounts: int = 800
    follows: int = 20  # a user's, what it comes across by itself
    served: int = 50  # impressions of a user
    engaged: float = 0.15  # mean probability over what was served
    taste: float = 1.6
    quality: float = 0.7
    activity: float = 1.0  # of users
    foreign: float = -6.0
    second: float = -1.5  # of the second language that three in ten users read
    spoken: float = 6.0  # of the old ranker on a shared language; two thirds of it on the second one
    ranker: float = 1.0  # of the old ranker on its idea of taste
    roughness: float = 0.5  # standard deviation of that idea from the truth, which has 1
    fame: float = 1.0  # exponent of how often accounts are come across


class Log(NamedTuple):
    """Pairs of users and accounts, and what became of them."""

    users: Ints  # (n,)
    accounts: Ints  # (n,)
    engaged: Mask  # (n,)

    def part(self, mask: Mask) -> Log:
        """Some of the rows."""
        return Log(self.users[mask], self.accounts[mask], self.engaged[mask])


class World(NamedTuple):
    """What is true, what the towers may read, and what was logged."""

    config: WorldConfig
    chance: Floats  # (users, accounts) p[i, j]
    user_language: Ints  # (users,)
    account_language: Ints  # (accounts,)
    user_features: NDArray[np.float32]  # (users, features)
    account_features: NDArray[np.float32]  # (accounts, features), followers last
    followers: Ints  # (accounts,) in the training part of the follows
    follows: Log  # training
    next_follows: Log  # held out
    served: Log  # training
    next_served: Log  # held out, for choosing when to stop
    test_served: Log  # held out, for measuring


def build(seed: int, config: WorldConfig | None = None) -> World:
    """The world of a seed."""
    config = config or WorldConfig()
    rng = np.random.default_rng(seed)
    users, accounts = config.users, config.accounts
    user_language = rng.choice(len(LANGUAGES), users, p=LANGUAGES)
    account_language = rng.choice(len(LANGUAGES), accounts, p=LANGUAGES)
    second = np.where(rng.random(users) < 0.3, rng.choice(len(LANGUAGES), users, p=LANGUAGES), user_language)
    user_taste, account_taste = (rng.normal(size=(n, TASTES)) for n in (users, accounts))
    taste = user_taste @ account_taste.T / np.sqrt(TASTES)
    quality = rng.normal(size=accounts)
    own, other = (account_language == spoken[:, None] for spoken in (user_language, second))
    language = np.where(own, 0.0, np.where(other, config.second, config.foreign))
    activity = rng.normal(size=users) * config.activity
    odds = config.taste * taste + config.quality * quality + language + activity[:, None]

    fame = -config.fame * np.log1p(rng.permutation(accounts)) + 0.5 * quality
    met = fame + odds - activity[:, None]  # an active user does not follow other accounts for it
    followed = _drawn(met, config.follows, rng)
    follows = _log(followed, np.ones(followed.shape, np.bool_))
    kept = rng.random(len(follows.users)) < 0.8
    followers = np.bincount(follows.accounts[kept], minlength=accounts)

    rough = taste + config.roughness * rng.normal(size=taste.shape)
    spoken = config.spoken * np.where(own, 1.0, np.where(other, 2 / 3, 0.0))
    shown = _drawn(0.5 * np.log1p(followers) + spoken + config.ranker * rough, config.served, rng)
    bias = _bias(np.take_along_axis(odds, shown, axis=1), config.engaged)
    chance = 1.0 / (1.0 + np.exp(-(odds + bias)))
    served = _log(shown, rng.random(shown.shape) < np.take_along_axis(chance, shown, axis=1))
    place = rng.random(len(served.users))
    return World(
        config,
        chance,
        user_language,
        account_language,
        _features(user_language, user_taste, [], rng),
        _features(account_language, account_taste, [np.log1p(followers)], rng),
        followers,
        follows.part(kept),
        follows.part(~kept),
        served.part(place < 0.7),
        served.part((place >= 0.7) & (place < 0.8)),
        served.part(place >= 0.8),
    )


def _drawn(log_weights: Floats, count: int, rng: np.random.Generator) -> Ints:
    """(users, count) accounts without replacement, by weight: the Gumbel trick."""
    return np.argpartition(-(log_weights + rng.gumbel(size=log_weights.shape)), count, axis=1)[:, :count]


def _log(accounts: Ints, engaged: Mask) -> Log:
    users = np.repeat(np.arange(len(accounts)), accounts.shape[1])
    return Log(users, accounts.ravel(), engaged.ravel())


def _bias(odds: Floats, mean: float) -> float:
    """What is added to log odds so that probabilities have a mean: bisection."""
    low, high = -30.0, 30.0
    for _ in range(60):
        middle = (low + high) / 2
        if (1.0 / (1.0 + np.exp(-(odds + middle)))).mean() < mean:
            low = middle
        else:
            high = middle
    return low


def _features(
    language: Ints, taste: Floats, more: list[Floats], rng: np.random.Generator
) -> NDArray[np.float32]:
    spoken = np.eye(len(LANGUAGES))[language]
    seen = taste[:, :SEEN] + 0.5 * rng.normal(size=(len(taste), SEEN))
    scaled = [(column - column.mean()) / column.std() for column in more]
    return np.column_stack((spoken, seen, *scaled)).astype(np.float32)
