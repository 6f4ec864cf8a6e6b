"""Made-up rows and a small world with habits that can be learned."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kithstream.models.features import (
    AGGREGATES,
    AUDIENCE_LANGUAGES,
    AVOIDED,
    COMMUNITIES,
    ENGAGED,
    ENGAGING,
    FAMILIES,
    FAMILY,
    FOLLOWEES,
    FOLLOWERS,
    HALF_LIVES,
    NEGATIVE,
    SKETCH,
    UNRECIPROCATED,
    Rows,
    blank,
)

DAY = 86400.0


def some_rows(n: int, seed: int = 0, languages: Sequence[int] = (0,)) -> Rows:
    """Rows with every quantity filled with something; every fifth account has nothing at all."""
    rng = np.random.default_rng(seed)
    empty = np.arange(n) % 5 == 4

    def lists(width: int) -> list[list[str]]:
        return [
            [] if empty[i] else [f"a{x}" for x in rng.integers(0, 500, rng.integers(0, width + 1))]
            for i in range(n)
        ]

    followers, followees, waiting = lists(FOLLOWERS), lists(FOLLOWEES), lists(UNRECIPROCATED)
    counts = rng.exponential(3.0, (n, 2, 3, len(HALF_LIVES))).astype(np.float32)
    counts[empty] = 0.0
    last = rng.exponential(DAY, (n, 2))
    last[empty] = np.inf
    return Rows(
        accounts=[f"a{i}" for i in range(n)],
        as_of=1_700_000_000_000_000,
        counts=counts,
        last=last,
        first=np.where(empty, 0.0, rng.exponential(30 * DAY, n)),
        degrees=np.where(empty[:, None], 0, rng.integers(0, 2000, (n, 3))).astype(np.int64),
        followers=followers,
        follower_ages=_ages(followers, FOLLOWERS, rng),
        followees=followees,
        followee_ages=_ages(followees, FOLLOWEES, rng),
        unreciprocated=waiting,
        unreciprocated_ages=_ages(waiting, UNRECIPROCATED, rng),
        languages=np.array([languages[i % len(languages)] for i in range(n)], np.int32),
        **_more(n, empty, rng),  # type: ignore[arg-type]  # named fields
    )


def _more(n: int, empty: np.ndarray, rng: np.random.Generator) -> dict[str, object]:
    """The optional fields filled with something, but for the accounts that are empty."""
    more = dict(blank(n))
    full = ~empty
    some = int(full.sum())

    def put(name: str, values: np.ndarray) -> None:
        field = more[name]
        assert isinstance(field, np.ndarray)
        field[full] = values

    put("countries", rng.integers(0, 600, some))
    put("families", rng.exponential(2.0, (some, 2, FAMILIES, len(AGGREGATES))))
    put("known_for", rng.integers(-1, 60, some))
    put("audience", rng.integers(-9000, 9000, (some, SKETCH)))
    put("following", rng.integers(-9000, 9000, (some, SKETCH)))
    put("audience_languages", rng.integers(0, 4, (some, AUDIENCE_LANGUAGES)))
    put("audience_shares", rng.dirichlet(np.ones(AUDIENCE_LANGUAGES), some))
    for codes, weights in (("interests", "interest_weights"), ("communities", "community_weights")):
        there = np.arange(COMMUNITIES) < rng.integers(0, COMMUNITIES + 1, some)[:, None]
        put(codes, np.where(there, rng.integers(0, 60, there.shape), -1))
        put(weights, np.where(there, rng.random(there.shape), 0.0))
    for name, width, families in (("engaged", ENGAGED, ENGAGING), ("avoided", AVOIDED, NEGATIVE)):
        lists = [
            [] if empty[i] else [f"a{x}" for x in rng.integers(0, 500, rng.integers(0, width + 1))]
            for i in range(n)
        ]
        there = np.arange(width) < np.array([len(names) for names in lists])[:, None]
        numbers = rng.choice([FAMILY[family] for family in families], (n, width))
        more[name] = lists
        more[f"{name}_families"] = np.where(there, numbers, -1).astype(np.int32)
        more[f"{name}_ages"] = _ages(lists, width, rng)
        if name == "avoided":
            communities = np.where(there, rng.integers(-1, 60, there.shape), -1)
            more["avoided_communities"] = communities.astype(np.int32)
    return more


def nothing(accounts: Sequence[str], languages: Sequence[int] | None = None) -> Rows:
    """Rows of accounts that did nothing and to whom nothing happened."""
    n = len(accounts)
    return Rows(
        accounts=accounts,
        as_of=1_700_000_000_000_000,
        counts=np.zeros((n, 2, 3, len(HALF_LIVES)), np.float32),
        last=np.full((n, 2), np.inf),
        first=np.zeros(n),
        degrees=np.zeros((n, 3), np.int64),
        followers=[[] for _ in range(n)],
        follower_ages=np.full((n, FOLLOWERS), np.inf),
        followees=[[] for _ in range(n)],
        followee_ages=np.full((n, FOLLOWEES), np.inf),
        unreciprocated=[[] for _ in range(n)],
        unreciprocated_ages=np.full((n, UNRECIPROCATED), np.inf),
        languages=np.array(languages if languages is not None else [0] * n, np.int32),
        **blank(n),  # type: ignore[arg-type]  # named fields
    )


def take(rows: Rows, order: Sequence[int]) -> Rows:
    """The rows at some places, in their order."""
    places = list(order)
    return Rows(
        *(
            value
            if isinstance(value, int)
            else value[places]
            if isinstance(value, np.ndarray)
            else [value[i] for i in places]
            for value in rows
        )
    )


def _ages(lists: list[list[str]], width: int, rng: np.random.Generator) -> np.ndarray:
    ages = np.full((len(lists), width), np.inf)
    for row, names in zip(ages, lists, strict=True):
        row[: len(names)] = np.sort(rng.exponential(DAY, len(names)))
    return ages


class Town:
    """A world of two guilds in which follows stay inside a guild and every follow of some is returned.

    Only ids tell the guilds apart, so day-zero weights do not know them.
    """

    def __init__(self, accounts: int = 60, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.names = [f"t{i}" for i in range(accounts)]
        self.follows: dict[str, list[str]] = {name: [] for name in self.names}
        self.followed: dict[str, list[str]] = {name: [] for name in self.names}

    def draw(self) -> tuple[str, str]:
        """The next follow, not applied: someone, and a member of the same guild."""
        while True:
            a = int(self.rng.integers(len(self.names)))
            b = int(self.rng.integers(len(self.names) // 2)) * 2 + a % 2
            if a != b and self.names[b] not in self.follows[self.names[a]][:FOLLOWEES]:
                return self.names[a], self.names[b]

    def apply(self, source: str, target: str) -> None:
        self.follows[source].insert(0, target)
        self.followed[target].insert(0, source)

    def rows(self, accounts: Sequence[str]) -> Rows:
        degrees = [(len(self.followed[a]), len(self.follows[a]), 0) for a in accounts]
        return nothing(accounts)._replace(
            degrees=np.array(degrees, np.int64).reshape(-1, 3),
            followers=[self.followed[a][:FOLLOWERS] for a in accounts],
            followees=[self.follows[a][:FOLLOWEES] for a in accounts],
        )
