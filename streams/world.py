"""The truth of a simulated social world: who exists, what they like, who is loud and who is hot.

Accounts are numbers here and `u<number>` in events. Everything is a function of the configuration (and of
time, where tastes drift); nothing changes as events are drawn. Sizes are about 60 bytes an account.
"""

from __future__ import annotations

from typing import Final, NamedTuple, Self

import msgspec
import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.integer]
Floats = NDArray[np.floating]

SECOND: Final = 1_000_000  # microseconds
DAY: Final = 86_400.0  # seconds
DIM: Final = 8  # of the space in which communities drift
MEMBERSHIPS: Final = 3  # communities of an account at most

# Language, share of communities, countries with their share and offset from UTC in hours.
LANGUAGES: Final[tuple[tuple[str, float, tuple[tuple[str, float, float], ...]], ...]] = (
    ("en", 0.45, (("US", 0.6, -6.0), ("GB", 0.25, 0.0), ("IN", 0.15, 5.5))),
    ("pt", 0.18, (("BR", 0.85, -3.0), ("PT", 0.15, 0.0))),
    ("ja", 0.14, (("JP", 1.0, 9.0),)),
    ("es", 0.11, (("ES", 0.35, 1.0), ("MX", 0.4, -6.0), ("AR", 0.25, -3.0))),
    ("de", 0.07, (("DE", 0.8, 1.0), ("AT", 0.2, 1.0))),
    ("hi", 0.05, (("IN", 1.0, 5.5),)),
)
LANGUAGE_CODES: Final = tuple(code for code, _, _ in LANGUAGES)
PLACES: Final = tuple((code, place, hours) for code, _, places in LANGUAGES for place, _, hours in places)
_LANGUAGE_SHARES: Final = np.array([share for _, share, _ in LANGUAGES])

# What goes on in a world: relative shares of what accounts set out to do. `impression` counts slates of
# several candidates; follow-backs and follows of shown candidates come on top of `follow`.
MIX: Final[dict[str, float]] = {
    "follow": 0.115,
    "like": 0.42,
    "click": 0.12,
    "reply": 0.06,
    "repost": 0.05,
    "quote": 0.012,
    "share": 0.025,
    "bookmark": 0.02,
    "video_watch": 0.06,
    "notification_open": 0.015,
    "notification_tab_click": 0.01,
    "address_book": 0.008,
    "not_interested": 0.012,
    "mute": 0.006,
    "block": 0.005,
    "report": 0.003,
    "unfollow": 0.014,
    "unlike": 0.02,
    "unrepost": 0.003,
    "unbookmark": 0.002,
    "unmute": 0.002,
    "unblock": 0.0015,
    "undo_not_interested": 0.001,
    "withdraw_report": 0.0005,
    "address_book_remove": 0.0005,
    "impression": 0.02,
    "retract": 0.002,
    "profile": 0.002,
    "account_deactivate": 0.0003,
    "account_delete": 0.00003,
}


class SimulationConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A simulated world and its stream.

    seed: of everything drawn.
    accounts: number of accounts, 2 or more.
    start: time of the first event, microseconds since the epoch.
    events_per_account_day: what accounts set out to do, mean per account and day.
    mix: relative shares of it by signal; `impression` counts slates.
    communities: number of communities.
    drift_days: days in which a community's taste goes once around its circle, at the median.
    popularity_exponent, activity_exponent: of the power laws of being found and of acting.
    burst_seconds: how long an account stays hot.
    burst_share: share of candidates looked at because they are hot.
    follow_back: probability that an unknown account follows back; falls with popularity.
    follow_back_delay: median seconds until then.
    slate: candidates shown together.
    client_share: share of events reported by clients.
    orphan_share: share of undos whose do never was.
    jitter_seconds: mean delay of publishing.
    late_share, late_seconds, late_limit: share of events published late, their mean delay, the longest.
    duplicate_share, duplicate_seconds: share of events published twice, mean delay of the second.
    away_days: mean days until a deactivated account comes back.
    batch: actions drawn at once; bounds memory, and is part of what the seed means.
    pending: events held back at most, late ones and follow-backs each.
    """

    seed: int = 0
    accounts: int = 10_000
    start: int = 1_767_225_600 * SECOND
    events_per_account_day: float = 20.0
    mix: dict[str, float] = msgspec.field(default_factory=lambda: dict(MIX))
    communities: int = 64
    drift_days: float = 60.0
    popularity_exponent: float = 0.9
    activity_exponent: float = 0.7
    burst_seconds: float = 7200.0
    burst_share: float = 0.3
    follow_back: float = 0.5
    follow_back_delay: float = 1800.0
    slate: int = 5
    client_share: float = 0.2
    orphan_share: float = 0.02
    jitter_seconds: float = 0.5
    late_share: float = 0.02
    late_seconds: float = 1800.0
    late_limit: float = 6 * DAY
    duplicate_share: float = 0.01
    duplicate_seconds: float = 60.0
    away_days: float = 2.0
    batch: int = 2048
    pending: int = 65_536


class World(NamedTuple):
    """The truth, as arrays over n accounts and c communities; made by `World.build`."""

    config: SimulationConfig
    language_of: NDArray[np.int8]  # (n,) index into LANGUAGE_CODES
    place_of: NDArray[np.int8]  # (n,) index into PLACES
    member: NDArray[np.int16]  # (n, 3) communities, the first is the main one
    weight: NDArray[np.float32]  # (n, 3) shares, 0 where there is no further community
    by_popularity: NDArray[np.int32]  # (n,) accounts, the most popular first
    popularity_rank: NDArray[np.int32]  # (n,) the inverse of it
    by_activity: NDArray[np.int32]  # (n,) accounts, the most active first
    members: NDArray[np.int32]  # (m,) accounts by community, the most popular first
    starts: NDArray[np.int64]  # (c + 1,) where each community begins in `members`
    cosine_axis: NDArray[np.float32]  # (c, DIM) unit length
    sine_axis: NDArray[np.float32]  # (c, DIM) unit length, at right angles to it
    speed: NDArray[np.float64]  # (c,) radians per second
    phase: NDArray[np.float64]  # (c,) radians

    @classmethod
    def build(cls, config: SimulationConfig) -> Self:
        """Draws the world of a configuration."""
        n, c = config.accounts, config.communities
        if n < 2 or c < 1:
            raise ValueError(f"accounts is {n} and communities is {c}, at least 2 and 1 are needed")
        draw = np.random.default_rng((config.seed, 0))
        community_language = draw.choice(len(LANGUAGES), c, p=_LANGUAGE_SHARES).astype(np.int8)
        member, weight = _memberships(draw, n, c)
        language = community_language[member[:, 0]]
        stray = draw.random(n) < 0.15
        language[stray] = draw.choice(len(LANGUAGES), int(stray.sum()), p=_LANGUAGE_SHARES)
        by_popularity = draw.permutation(n).astype(np.int32)
        rank = np.empty(n, np.int32)
        rank[by_popularity] = np.arange(n, dtype=np.int32)
        members, starts = _by_community(member, weight, rank, c)
        first = draw.standard_normal((c, DIM))
        first /= np.linalg.norm(first, axis=1, keepdims=True)
        second = draw.standard_normal((c, DIM))
        second -= (second * first).sum(1, keepdims=True) * first
        second /= np.linalg.norm(second, axis=1, keepdims=True)
        turn = config.drift_days * DAY * np.exp(0.5 * draw.standard_normal(c))
        return cls(
            config=config,
            language_of=language,
            place_of=_places(draw, language),
            member=member,
            weight=weight,
            by_popularity=by_popularity,
            popularity_rank=rank,
            by_activity=draw.permutation(n).astype(np.int32),
            members=members,
            starts=starts,
            cosine_axis=first.astype(np.float32),
            sine_axis=second.astype(np.float32),
            speed=2 * np.pi / turn * draw.choice([-1.0, 1.0], c),
            phase=draw.uniform(0, 2 * np.pi, c),
        )

    @staticmethod
    def name(number: int) -> str:
        """Returns the account's name in events."""
        return f"u{number}"

    @staticmethod
    def number(account: str) -> int:
        """Returns the account's number."""
        return int(account[1:])

    def language(self, account: str) -> str:
        """Returns the language at home; a profile may say another for a while."""
        return LANGUAGE_CODES[int(self.language_of[self.number(account)])]

    def affinity(self, u: str, v: str, at: int) -> float:
        """Returns the probability that `u` takes to `v` if it is shown to it at `at` (microseconds)."""
        numbers = np.array([self.number(u)]), np.array([self.number(v)])
        return float(self.affinities(*numbers, np.array([at]))[0])

    def affinities(self, u: Ints, v: Ints, at: Ints) -> NDArray[np.float64]:
        """Returns the same for arrays of accounts and times, which are broadcast."""
        closeness = (self.tastes(u, at) * self.tastes(v, at)).sum(-1)
        same = self.language_of[u] == self.language_of[v]
        return np.asarray(1 / (1 + np.exp(3.5 - 4.0 * closeness.astype(np.float64) - 1.5 * same)))

    def tastes(self, accounts: Ints, at: Ints) -> NDArray[np.float32]:
        """Returns (..., DIM) unit vectors: where the accounts' communities stand at that time."""
        member, weight = self.member[accounts], self.weight[accounts]
        elapsed = (np.asarray(at) - self.config.start) / SECOND
        angle = self.phase[member] + self.speed[member] * elapsed[..., None]
        along = (weight * np.cos(angle)).astype(np.float32)[..., None]
        across = (weight * np.sin(angle)).astype(np.float32)[..., None]
        vectors = (along * self.cosine_axis[member] + across * self.sine_axis[member]).sum(-2)
        length = np.linalg.norm(vectors, axis=-1, keepdims=True)
        return np.asarray(vectors / np.maximum(length, 1e-6), np.float32)

    def hot(self, slot: int) -> NDArray[np.int64]:
        """Returns the accounts that are hot in the slot-th stretch of `burst_seconds`, the hottest first."""
        draw = np.random.default_rng((self.config.seed, 2, slot))
        return draw.integers(0, self.config.accounts, max(2, self.config.accounts // 1000))

    def peers(self, draw: np.random.Generator, accounts: Ints) -> Ints:
        """Draws for each account one account of one of its communities, the popular ones more often."""
        choice = (draw.random(accounts.shape)[..., None] > np.cumsum(self.weight[accounts], -1)).sum(-1)
        community = np.take_along_axis(
            self.member[accounts], np.minimum(choice, MEMBERSHIPS - 1)[..., None], -1
        )[..., 0]
        begin, end = self.starts[community], self.starts[community + 1]
        ranks = zipf_ranks(draw.random(accounts.shape), end - begin, self.config.popularity_exponent)
        return np.asarray(self.members[begin + ranks])

    def strangers(self, draw: np.random.Generator, shape: tuple[int, ...]) -> Ints:
        """Draws accounts of the whole world, the popular ones more often."""
        ranks = zipf_ranks(
            draw.random(shape), np.int64(self.config.accounts), self.config.popularity_exponent
        )
        return self.by_popularity[ranks]

    def actors(self, draw: np.random.Generator, times: Ints) -> Ints:
        """Draws who acts: the active ones more often, and by day rather than by night."""
        n, exponent = np.int64(self.config.accounts), self.config.activity_exponent
        first = self.by_activity[zipf_ranks(draw.random(times.shape), n, exponent)]
        second = self.by_activity[zipf_ranks(draw.random(times.shape), n, exponent)]
        hours = np.array([place[2] for place in PLACES])[self.place_of[first]]
        local = times / SECOND / DAY + hours / 24
        awake = 0.55 - 0.4 * np.cos(2 * np.pi * (local - 4 / 24))  # least at 4 in the morning
        return np.where(draw.random(times.shape) < awake, first, second)


def zipf_ranks(uniform: Floats, n: Ints | np.int64, exponent: float) -> NDArray[np.int64]:
    """Maps uniform numbers to ranks 0 to n - 1 whose probability falls as (rank + 1) ** -exponent, nearly.

    >>> zipf_ranks(np.array([0.0, 0.5, 0.999]), np.int64(100), 1.0).tolist()
    [0, 9, 99]
    """
    if exponent == 1:
        x = np.exp(uniform * np.log(n + 1.0))
    else:
        rest = 1 - exponent
        x = (1 + uniform * ((n + 1.0) ** rest - 1)) ** (1 / rest)
    return np.clip(x.astype(np.int64) - 1, 0, n - 1)


def _memberships(draw: np.random.Generator, n: int, c: int) -> tuple[NDArray[np.int16], NDArray[np.float32]]:
    member = zipf_ranks(draw.random((n, MEMBERSHIPS)), np.int64(c), 0.6).astype(np.int16)
    count = 1 + (draw.random(n)[:, None] > np.array([0.5, 0.8])).sum(1)
    weight = np.array([0.6, 0.25, 0.15]) * draw.uniform(0.7, 1.3, (n, MEMBERSHIPS))
    weight[np.arange(MEMBERSHIPS) >= count[:, None]] = 0
    return member, (weight / weight.sum(1, keepdims=True)).astype(np.float32)


def _by_community(
    member: NDArray[np.int16], weight: NDArray[np.float32], rank: NDArray[np.int32], c: int
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    account, column = np.nonzero(weight > 0)
    community = member[account, column]
    order = np.lexsort((rank[account], community))
    counts = np.bincount(community, minlength=c)
    return account[order].astype(np.int32), np.concatenate([[0], np.cumsum(counts)])


def _places(draw: np.random.Generator, language: NDArray[np.int8]) -> NDArray[np.int8]:
    places = np.zeros(len(language), np.int8)
    first = 0
    for number, (_, _, options) in enumerate(LANGUAGES):
        speakers = np.flatnonzero(language == number)
        shares = np.array([share for _, share, _ in options])
        places[speakers] = first + draw.choice(len(options), len(speakers), p=shares)
        first += len(options)
    return places
