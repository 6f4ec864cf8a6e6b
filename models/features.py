"""What the towers read: raw quantities of accounts, and the features made of them.

`Rows` is the seam to the state: the state fills it, this module alone turns it into features.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import chain
from typing import Final, NamedTuple, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from kithstream.models import directions

# Half-lives of the decayed counts in seconds: 10 min, 1 h, 6 h, 1 d, 7 d, 30 d, none.
HALF_LIVES: Final[tuple[float, ...]] = (600.0, 3600.0, 21600.0, 86400.0, 604800.0, 2592000.0, float("inf"))
GROUPS: Final[tuple[str, ...]] = ("follow", "engage", "negative")
FOLLOWERS: Final = 10  # newest followers read
FOLLOWEES: Final = 15  # newest followees read
UNRECIPROCATED: Final = 8  # newest followers read whom the account does not follow
# Half-lives of the counts by family, seconds: 30 min, 24 h, 7 d, 50 d, none (aggregation framework, recsys.md 1.13).
AGGREGATES: Final[tuple[float, ...]] = (1800.0, 86400.0, 604800.0, 4320000.0, float("inf"))
FAMILIES: Final = 32  # numbers of signal families that counts may have; those without a signal are zero
ENGAGED: Final = 12  # newest engagements read, each with whom, which family and when
AVOIDED: Final = 8  # newest accounts read that the account muted, blocked, reported or was not interested in
AUDIENCE_LANGUAGES: Final = 4  # most frequent languages read of those who follow the account
COMMUNITIES: Final = 16  # largest entries read of a community vector
SKETCH: Final = 16  # length of the sums of random projections of ids

IN: Final = 0  # direction axis: what others did to the account
OUT: Final = 1  # direction axis: what the account did

BLOCK: Final = 64  # rows are padded to a multiple of this: vectorised loops then have no tail


class Rows(NamedTuple):
    """State of n accounts as of one time, before any feature is made of it.

    Neighbour lists are newest first and at most as long as the constants above; ages are seconds, padded
    with +inf to a fixed width. Everything is an exact function of the present edges and of `as_of`.
    """

    accounts: Sequence[str]  # n
    as_of: int  # microseconds
    counts: NDArray[np.float32]  # (n, 2, 3, 7): direction, group, half-life; decayed
    last: NDArray[np.float64]  # (n, 2) seconds since the newest event of a direction, +inf if none
    first: NDArray[np.float64]  # (n,) seconds since the oldest event known, 0 if none
    degrees: NDArray[np.int64]  # (n, 3): followers, followees, followees that follow back
    followers: Sequence[Sequence[str]]  # n x <= FOLLOWERS
    follower_ages: NDArray[np.float64]  # (n, FOLLOWERS)
    followees: Sequence[Sequence[str]]  # n x <= FOLLOWEES
    followee_ages: NDArray[np.float64]  # (n, FOLLOWEES)
    unreciprocated: Sequence[Sequence[str]]  # n x <= UNRECIPROCATED
    unreciprocated_ages: NDArray[np.float64]  # (n, UNRECIPROCATED)
    languages: NDArray[np.int32]  # (n,) code, 0 if unknown
    countries: NDArray[np.int32]  # (n,) code, 0 if unknown
    families: NDArray[
        np.float32
    ]  # (n, 2, FAMILIES, 5): direction, family, AGGREGATES; decayed, capped by pair
    engaged: Sequence[Sequence[str]]  # n x <= ENGAGED: whom it engaged with lately, repeats and all
    engaged_families: NDArray[np.int32]  # (n, ENGAGED), -1 pads
    engaged_ages: NDArray[np.float64]  # (n, ENGAGED)
    avoided: Sequence[Sequence[str]]  # n x <= AVOIDED; private: for the towers alone, never a reason
    avoided_families: NDArray[np.int32]  # (n, AVOIDED), -1 pads
    avoided_ages: NDArray[np.float64]  # (n, AVOIDED)
    avoided_communities: NDArray[np.int32]  # (n, AVOIDED) what each is known for, -1 if nothing
    audience_languages: NDArray[np.int32]  # (n, AUDIENCE_LANGUAGES) most frequent first, 0 pads
    audience_shares: NDArray[np.float32]  # (n, AUDIENCE_LANGUAGES) of the followers whose language is known
    audience: NDArray[np.int64]  # (n, SKETCH) sum of the projections of its followers
    following: NDArray[np.int64]  # (n, SKETCH) the same of its followees
    known_for: NDArray[np.int32]  # (n,) community, -1 if none
    interests: NDArray[np.int32]  # (n, COMMUNITIES) communities of its followees, largest first, -1 pads
    interest_weights: NDArray[np.float32]  # (n, COMMUNITIES) of unit length in all, 0 pads
    communities: NDArray[np.int32]  # (n, COMMUNITIES) communities of its audience, largest first, -1 pads
    community_weights: NDArray[np.float32]  # (n, COMMUNITIES) cosine with each community, 0 pads

    def one(self, at: int) -> Rows:
        """The row of one account; `as_of` stays that of all."""
        return Rows._make(field if isinstance(field, int) else field[at : at + 1] for field in self)


def blank(n: int) -> dict[str, NDArray[np.generic] | list[list[str]]]:
    """Return the optional fields of `Rows` for n accounts of which nothing of the kind is known."""
    return {
        "countries": np.zeros(n, np.int32),
        "families": np.zeros((n, 2, FAMILIES, len(AGGREGATES)), np.float32),
        "engaged": [[] for _ in range(n)],
        "engaged_families": np.full((n, ENGAGED), -1, np.int32),
        "engaged_ages": np.full((n, ENGAGED), np.inf),
        "avoided": [[] for _ in range(n)],
        "avoided_families": np.full((n, AVOIDED), -1, np.int32),
        "avoided_ages": np.full((n, AVOIDED), np.inf),
        "avoided_communities": np.full((n, AVOIDED), -1, np.int32),
        "audience_languages": np.zeros((n, AUDIENCE_LANGUAGES), np.int32),
        "audience_shares": np.zeros((n, AUDIENCE_LANGUAGES), np.float32),
        "audience": np.zeros((n, SKETCH), np.int64),
        "following": np.zeros((n, SKETCH), np.int64),
        "known_for": np.full(n, -1, np.int32),
        "interests": np.full((n, COMMUNITIES), -1, np.int32),
        "interest_weights": np.zeros((n, COMMUNITIES), np.float32),
        "communities": np.full((n, COMMUNITIES), -1, np.int32),
        "community_weights": np.zeros((n, COMMUNITIES), np.float32),
    }


POOLED_FOLLOWEES: Final = 10  # newest followees pooled into a producer vector
POOLED_COMMUNITIES: Final = 8  # largest communities of an audience blended into a producer vector
NEVER: Final = 23  # the bucket of an age that is infinite; others are floor(log2(1 + minutes)), at most 22
AGES: Final = NEVER + 1
DEGREES: Final = 16  # buckets floor(log2(1 + degree)), at most 15

# The numbers of the families that are read by name, as the table of signals gives them.
FAMILY: Final[dict[str, int]] = {
    "follow": 0,
    "unfollow": 1,
    "mute": 2,
    "block": 3,
    "like": 4,
    "unlike": 5,
    "repost": 6,
    "quote": 7,
    "reply": 8,
    "share": 9,
    "bookmark": 10,
    "click": 11,
    "video_watch": 12,
    "not_interested": 13,
    "report": 14,
    "notification_open": 15,
    "notification_tab_click": 16,
    "address_book": 17,
    "impression": 18,
}
ENGAGING: Final = (
    "like",
    "repost",
    "quote",
    "reply",
    "share",
    "bookmark",
    "click",
    "video_watch",
    "notification_open",
    "notification_tab_click",
)
NEGATIVE: Final = ("unfollow", "mute", "block", "not_interested", "report")
# Rates of a candidate: what is counted, of how many, and a, b of the Beta prior that smooths it: (x + a) / (n + a + b).
RATES: Final[tuple[tuple[str, str, float, float], ...]] = (
    ("unfollow", "follower", 1.0, 19.0),
    ("mute", "event", 1.0, 199.0),
    ("block", "event", 1.0, 199.0),
    ("report", "event", 1.0, 499.0),
    ("not_interested", "event", 1.0, 99.0),
)
COUNTED: Final = (*ENGAGING, "unlike", "impression")  # families whose counts are features of a candidate
LIGHT: Final = 3.0  # events of an account, at a half-life of 30 d, from which it is light and not near-zero
HEAVY: Final = 30.0  # from which it is heavy
AUDIENCE: Final = 0.5  # of a candidate's place is its audience's language, beside 1 of its own
HOME: Final = 0.3  # and its country
FAME: Final = 0.5  # of a candidate's communities is what it is known for itself, beside 1 of its audience's
FEW: Final = 8.0  # accounts in a sketch from which on it fades: its noise grows with their number
NEWCOMER: Final = (
    3.0  # followers of a candidate from which on its sketches fade: other blocks place it better then
)
_SPREAD: Final = 295.6  # length of one projection: sqrt(16 (256^2 - 1) / 12)

_ENGAGE: Final = (1, 4, 6)  # half-lives read of the engage group: 1 h, 7 d, none
_NEGATIVE: Final = (4, 6)  # of the negative group: 7 d, none
_SHORT, _DAY, _WEEK, _LONG, _EVER = range(len(AGGREGATES))
_ACTIVE: Final = 5  # the half-life by which an account is light or heavy: 30 d
_ENGAGING: Final = [FAMILY[name] for name in ENGAGING]
_REFUSING: Final = [FAMILY[name] for name in NEGATIVE]
_COUNTED: Final = [FAMILY[name] for name in COUNTED]
_RATED: Final = [FAMILY[name] for name, _, _, _ in RATES]


def _hours(half_lives: Sequence[float]) -> list[str]:
    return ["ever" if h == float("inf") else f"{int(h)}s" for h in half_lives]


# Column names of the time and activity block, in order. `bias` is filled in by the tower.
DENSE: Final[tuple[str, ...]] = (
    *(f"follow_{way}_{h}" for way in ("in", "out") for h in _hours(HALF_LIVES)),
    *(f"engage_{way}_{h}" for way in ("in", "out") for h in _hours([HALF_LIVES[i] for i in _ENGAGE])),
    *(f"negative_{way}_{h}" for way in ("in", "out") for h in _hours([HALF_LIVES[i] for i in _NEGATIVE])),
    "age_in",
    "age_out",
    "lifetime",
    "out_over_in",
    "in_empty",
    "out_empty",
    "reciprocation",
    "bias",
)
PSI: Final[tuple[str, ...]] = (
    "one",
    "followers",
    "followees",
    "age_out",
    "age_in",
    "lifetime",
    "out_empty",
    "reciprocation",
    "engage_out",
    "negative_out",
    *(f"follow_out_{h}" for h in _hours(AGGREGATES[1:4:2])),
    *(f"engage_out_{h}" for h in _hours((AGGREGATES[0], AGGREGATES[1], AGGREGATES[3]))),
    *(f"negative_out_{h}" for h in _hours(AGGREGATES[1:4:2])),
    "unfollow_out_4320000s",
    "notification_out_4320000s",
    "impression_out_86400s",
    "address_book_out_ever",
    "positive_share",
    "near_zero",
    "light",
    "heavy",
)
# What a candidate is to those who met it; columns of the quality block, in order.
QUALITY: Final[tuple[str, ...]] = (
    *(f"{name}_rate_{h}" for h in _hours((AGGREGATES[2], AGGREGATES[4])) for name, _, _, _ in RATES),
    *(f"{name}_in_{h}" for h in _hours((AGGREGATES[1], AGGREGATES[3])) for name in COUNTED),
    "address_book_in_ever",
    "engagement_per_follower",
    "language_entropy",
    "own_language_share",
    "community_peak",
    "known_for",
)
# Tables whose sum is the bias of a producer, with their sizes.
TABLES: Final[tuple[tuple[str, int], ...]] = (
    ("age_in", AGES),
    ("age_out", AGES),
    ("lifetime", AGES),
    ("followers", DEGREES),
    ("followees", DEGREES),
    ("age_in*followers", AGES * DEGREES),
    ("age_out*followees", AGES * DEGREES),
    ("age_in*age_out", AGES * AGES),
    ("followers*followees", DEGREES * DEGREES),
)
BUCKETS: Final = sum(size for _, size in TABLES)
_TABLE_STARTS: Final = np.cumsum([0, *(size for _, size in TABLES[:-1])]).astype(np.int32)


class Schema(msgspec.Struct, frozen=True):
    """Names, order and constants of everything the towers read; part of every checkpoint."""

    dense: tuple[str, ...] = DENSE
    psi: tuple[str, ...] = PSI
    tables: tuple[tuple[str, int], ...] = TABLES
    half_lives: tuple[float, ...] = HALF_LIVES[:-1]  # the last has no half-life
    followers: int = FOLLOWERS
    followees: int = FOLLOWEES
    pooled_followees: int = POOLED_FOLLOWEES
    unreciprocated: int = UNRECIPROCATED
    quality: tuple[str, ...] = QUALITY
    aggregates: tuple[float, ...] = AGGREGATES[:-1]
    families: tuple[tuple[str, int], ...] = tuple(FAMILY.items())
    engaging: tuple[str, ...] = ENGAGING
    negative: tuple[str, ...] = NEGATIVE
    rates: tuple[tuple[str, str, float, float], ...] = RATES
    activity: tuple[float, float] = (LIGHT, HEAVY)
    engaged: int = ENGAGED
    avoided: int = AVOIDED
    audience_languages: int = AUDIENCE_LANGUAGES
    community_entries: int = COMMUNITIES
    pooled_communities: int = POOLED_COMMUNITIES
    sketch: int = SKETCH
    few: float = FEW
    newcomer: float = NEWCOMER
    mixture: tuple[tuple[str, float], ...] = (("audience", AUDIENCE), ("home", HOME), ("fame", FAME))
    directions: tuple[int, ...] = (
        directions.LANGUAGES,
        directions.COUNTRIES,
        directions.LANGUAGE_DIM,
        directions.COMMUNITIES,
        directions.COMMUNITY_DIM,
    )
    transforms: str = "v2"  # raised when a formula below changes without a change of name

    @property
    def hash(self) -> str:
        """16 hex digits; equal exactly when a checkpoint can be read."""
        return hashlib.blake2b(msgspec.json.encode(self), digest_size=8).hexdigest()


SCHEMA: Final = Schema()


class RowIndex(Protocol):
    """Turns account ids into rows of the id vectors; row 0 is nobody."""

    def rows_of(self, accounts: Sequence[str]) -> NDArray[np.int32]: ...


class ProducerFeatures(NamedTuple):
    """What the producer tower reads of n accounts. Neighbour rows are padded with 0, which is nobody."""

    rows: NDArray[np.int32]  # (n,) rows of the accounts themselves
    dense: NDArray[np.float32]  # (n, len(DENSE)); the bias column is 0
    quality: NDArray[np.float32]  # (n, len(QUALITY))
    buckets: NDArray[np.int32]  # (n, len(TABLES)) positions in the joined bias table
    followers: NDArray[np.int32]  # (n, FOLLOWERS)
    followees: NDArray[np.int32]  # (n, POOLED_FOLLOWEES)
    places: NDArray[np.float32]  # (n, 8) directions of its language, its audience's and its country
    communities: NDArray[np.float32]  # (n, 12) directions of its audience's communities and its own
    sketches: NDArray[np.float32]  # (n, 2 SKETCH) of who follows it, and of whom it follows


class ConsumerFeatures(NamedTuple):
    """What the consumer tower reads of n accounts. Neighbour rows are padded with 0, which is nobody."""

    rows: NDArray[np.int32]  # (n,)
    psi: NDArray[np.float32]  # (n, len(PSI))
    unreciprocated: NDArray[np.int32]  # (n, UNRECIPROCATED)
    unreciprocated_ages: NDArray[np.int32]  # (n, UNRECIPROCATED) buckets
    followers: NDArray[np.int32]  # (n, FOLLOWERS)
    followees: NDArray[np.int32]  # (n, FOLLOWEES)
    followee_ages: NDArray[np.int32]  # (n, FOLLOWEES) buckets
    engaged: NDArray[np.int32]  # (n, ENGAGED)
    engaged_families: NDArray[np.int32]  # (n, ENGAGED), 0 where nobody is
    engaged_ages: NDArray[np.int32]  # (n, ENGAGED) buckets
    avoided: NDArray[np.int32]  # (n, AVOIDED)
    avoided_families: NDArray[np.int32]  # (n, AVOIDED), 0 where nobody is
    avoided_ages: NDArray[np.int32]  # (n, AVOIDED) buckets
    avoided_communities: NDArray[np.int32]  # (n, AVOIDED) rows of `directions.COMMUNITY`
    known_for: NDArray[np.int32]  # (n,) rows of the same
    languages: NDArray[np.int32]  # (n,) rows of `directions.PLACE`
    countries: NDArray[np.int32]  # (n,) rows of the same
    interests: NDArray[np.float32]  # (n, 12) directions of its interests
    following: NDArray[np.float32]  # (n, SKETCH) of whom it follows


def concatenate(parts: Sequence[ConsumerFeatures]) -> ConsumerFeatures:
    """The rows of several feature blocks, one after the other."""
    return ConsumerFeatures(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def producer_features(rows: Rows, index: RowIndex) -> ProducerFeatures:
    """Features of n candidates. A row's bits do not depend on the other rows."""
    n = len(rows.accounts)
    counts, degrees = rows.counts, rows.degrees
    x = np.ones((_padded(n), len(DENSE)), np.float32)  # the argument of the logarithm, per column
    top = x[:n]
    top[:, 0:7] = counts[:, IN, 0]
    top[:, 7:14] = counts[:, OUT, 0]
    top[:, 14:17] = counts[:, IN, 1, _ENGAGE]
    top[:, 17:20] = counts[:, OUT, 1, _ENGAGE]
    top[:, 20:22] = counts[:, IN, 2, _NEGATIVE]
    top[:, 22:24] = counts[:, OUT, 2, _NEGATIVE]
    top[:, 24:26] = _minutes(rows.last)
    top[:, 26] = rows.first
    top[:, 27] = degrees[:, 0]
    top[:, 28] = degrees[:, 1]
    x += _OFFSET
    np.log(x, out=x)
    dense = x * _SCALE
    dense += _SHIFT
    dense[:, 27] = (x[:, 28] - x[:, 27]) * np.float32(0.5)
    dense = dense[:n]
    dense[:, 28] = degrees[:, 0] == 0
    dense[:, 29] = degrees[:, 1] == 0
    dense[:, 30] = degrees[:, 2] / (1.0 + degrees[:, 1])
    return ProducerFeatures(
        rows=index.rows_of(rows.accounts),
        dense=dense,
        quality=_quality(rows),
        buckets=_bias_buckets(rows),
        followers=_neighbours(rows.followers, FOLLOWERS, index),
        followees=_neighbours([r[:POOLED_FOLLOWEES] for r in rows.followees], POOLED_FOLLOWEES, index),
        places=_places(rows),
        communities=_communities(rows),
        sketches=_sketches(rows),
    )


def consumer_features(rows: Rows, index: RowIndex) -> ConsumerFeatures:
    """Features of n asking accounts. A row's bits do not depend on the other rows."""
    ages = (rows.unreciprocated_ages, rows.followee_ages, rows.engaged_ages, rows.avoided_ages)
    buckets = age_buckets(np.concatenate(ages, axis=1))
    returning, following, engaging, avoiding = np.split(buckets, _AGE_CUTS, axis=1)
    return ConsumerFeatures(
        rows=index.rows_of(rows.accounts),
        psi=_psi(rows),
        unreciprocated=_neighbours(rows.unreciprocated, UNRECIPROCATED, index),
        unreciprocated_ages=returning,
        followers=_neighbours(rows.followers, FOLLOWERS, index),
        followees=_neighbours(rows.followees, FOLLOWEES, index),
        followee_ages=following,
        engaged=_neighbours(rows.engaged, ENGAGED, index),
        engaged_families=np.maximum(rows.engaged_families, 0),
        engaged_ages=engaging,
        avoided=_neighbours(rows.avoided, AVOIDED, index),
        avoided_families=np.maximum(rows.avoided_families, 0),
        avoided_ages=avoiding,
        avoided_communities=directions.of_communities(rows.avoided_communities),
        known_for=directions.of_communities(rows.known_for),
        languages=directions.of_languages(rows.languages),
        countries=directions.of_countries(rows.countries),
        interests=directions.blend(
            directions.COMMUNITY, directions.of_communities(rows.interests), rows.interest_weights
        ),
        following=_sketch(rows.following, rows.degrees[:, 1]),
    )


def _places(rows: Rows) -> NDArray[np.float32]:
    n = len(rows.accounts)
    places = np.empty((n, AUDIENCE_LANGUAGES + 2), np.int32)
    weights = np.empty(places.shape, np.float32)
    places[:, 0] = directions.of_languages(rows.languages)
    places[:, 1] = directions.of_countries(rows.countries)
    places[:, 2:] = directions.of_languages(rows.audience_languages)
    weights[:, 0] = 1.0
    weights[:, 1] = HOME
    np.multiply(rows.audience_shares, np.float32(AUDIENCE), out=weights[:, 2:])
    return directions.blend(directions.PLACE, places, weights)


def _communities(rows: Rows) -> NDArray[np.float32]:
    n = len(rows.accounts)
    communities = np.empty((n, POOLED_COMMUNITIES + 1), np.int32)
    weights = np.empty(communities.shape, np.float32)
    communities[:, 0] = rows.known_for
    communities[:, 1:] = rows.communities[:, :POOLED_COMMUNITIES]
    weights[:, 0] = FAME
    weights[:, 1:] = rows.community_weights[:, :POOLED_COMMUNITIES]
    return directions.blend(directions.COMMUNITY, directions.of_communities(communities), weights)


def _psi(rows: Rows) -> NDArray[np.float32]:
    n = len(rows.accounts)
    x = np.ones((_padded(n), len(PSI)), np.float32)  # the argument of the logarithm, less 1
    top = x[:n]
    done = rows.families[:, OUT]  # (n, FAMILIES, 5)
    flat = rows.families.reshape(n, 2 * FAMILIES * len(AGGREGATES))
    liked, disliked = flat.take(_LIKED, axis=1).sum(axis=1), flat.take(_DISLIKED, axis=1).sum(axis=1)
    top[:, 0] = 0.0
    top[:, 1:3] = rows.degrees[:, 0:2]
    top[:, 3] = _minutes(rows.last[:, OUT])
    top[:, 4] = _minutes(rows.last[:, IN])
    top[:, 5] = rows.first
    top[:, 8] = rows.counts[:, OUT, 1, 4]
    top[:, 9] = rows.counts[:, OUT, 2, 4]
    top[:, 10:12] = done[:, FAMILY["follow"], [_DAY, _LONG]]
    top[:, 12] = flat.take(_LIKED_LATELY, axis=1).sum(axis=1)
    top[:, 13] = flat.take(_LIKED_TODAY, axis=1).sum(axis=1)
    top[:, 14] = liked
    top[:, 15] = flat.take(_DISLIKED_TODAY, axis=1).sum(axis=1)
    top[:, 16] = disliked
    top[:, 17] = done[:, FAMILY["unfollow"], _LONG]
    top[:, 18] = done[:, FAMILY["notification_open"], _LONG]
    top[:, 18] += done[:, FAMILY["notification_tab_click"], _LONG]
    top[:, 19] = done[:, FAMILY["impression"], _DAY]
    top[:, 20] = done[:, FAMILY["address_book"], _EVER]
    x += np.float32(1.0)
    np.log(x, out=x)
    psi = x * _PSI_SCALE
    psi += _PSI_SHIFT
    psi = psi[:n]
    psi[:, 6] = rows.degrees[:, 1] == 0
    psi[:, 7] = rows.degrees[:, 2] / (1.0 + rows.degrees[:, 1])
    psi[:, 21] = (liked - disliked) / (liked + disliked + np.float32(2.0))
    active = rows.counts[:, OUT, :, _ACTIVE].sum(axis=1)  # whoever never did anything is of none of these
    psi[:, 22] = (active < LIGHT) & (rows.counts[:, OUT, :, -1].sum(axis=1) > 0)
    psi[:, 23] = (active >= LIGHT) & (active < HEAVY)
    psi[:, 24] = active >= HEAVY
    return psi


def _quality(rows: Rows) -> NDArray[np.float32]:
    """(n, len(QUALITY)) logarithms over 3: of rates against their prior, of counts, of engagement per follower."""
    n, rates = len(rows.accounts), len(RATES)
    x = np.ones((_padded(n), _FOLLOWED + 1 + AUDIENCE_LANGUAGES), np.float32)
    top = x[:n]
    followers = rows.degrees[:, 0].astype(np.float32)
    met = rows.families.reshape(n, 2 * FAMILIES * len(AGGREGATES))  # (n, 2 FAMILIES 5), IN first
    top[:, :_EVENTS] = met.take(_READ, axis=1)
    for place, meetings in enumerate(_MEETINGS):
        first = _EVENTS + rates * place
        top[:, first] = followers + top[:, rates * place]
        top[:, first + 1 : first + rates] = met.take(meetings, axis=1).sum(axis=1)[:, None]
    top[:, _ENGAGED] = met.take(_ENGAGING_LONG, axis=1).sum(axis=1)
    top[:, _FOLLOWED] = followers
    x += _QUALITY_OFFSET
    shares = np.minimum(np.maximum(rows.audience_shares, np.float32(1e-6)), np.float32(1.0))
    top[:, _FOLLOWED + 1 :] = shares
    np.log(x, out=x)
    quality = np.empty((n, len(QUALITY)), np.float32)
    quality[:, :_EVENTS] = top[:, :_EVENTS]
    quality[:, : 2 * rates] -= top[:, _EVENTS : _EVENTS + 2 * rates]
    quality[:, : 2 * rates] -= _PRIOR
    quality[:, _EVENTS] = top[:, _ENGAGED] - top[:, _FOLLOWED]
    quality[:, :-4] *= np.float32(1 / 3)
    own = (rows.audience_languages == rows.languages[:, None]) & (rows.languages[:, None] > 0)
    seen = followers / (followers + np.float32(2.0))
    quality[:, -4] = -(shares * top[:, _FOLLOWED + 1 :]).sum(axis=1)
    quality[:, -3] = (rows.audience_shares * own).sum(axis=1) * seen
    quality[:, -2] = rows.community_weights.max(axis=1)
    quality[:, -1] = rows.known_for >= 0
    return quality


def _sketches(rows: Rows) -> NDArray[np.float32]:
    both = (_sketch(rows.audience, rows.degrees[:, 0]), _sketch(rows.following, rows.degrees[:, 1]))
    sketches: NDArray[np.float32] = np.concatenate(both, axis=1)
    left = 1.0 / (1.0 + rows.degrees[:, :1] / NEWCOMER)
    sketches *= (left * left).astype(np.float32)
    return sketches


def _sketch(sums: NDArray[np.int64], accounts: NDArray[np.int64]) -> NDArray[np.float32]:
    """(n, SKETCH) sums of projections, of length sqrt(accounts) while those are few, then fading."""
    scaled = sums / (_SPREAD * (1.0 + accounts[:, None] / FEW))
    return np.minimum(np.maximum(scaled, -_LONGEST), _LONGEST).astype(np.float32)


def age_buckets(seconds: NDArray[np.float64]) -> NDArray[np.int32]:
    """floor(log2(1 + minutes)), at most 22; 23 for an infinite age.

    >>> age_buckets(np.array([0.0, 59.0, 60.0, 86400.0, np.inf])).tolist()
    [0, 0, 1, 10, 23]
    """
    _, exponent = np.frexp(1.0 + np.minimum(seconds, 4e8) / 60.0)
    return np.where(np.isfinite(seconds), np.clip(exponent - 1, 0, NEVER - 1), NEVER).astype(np.int32)


def _padded(n: int) -> int:
    return -(-n // BLOCK) * BLOCK


def _minutes(seconds: NDArray[np.float64]) -> NDArray[np.float64]:
    """Minutes, capped so that ln(1 + minutes) / 5 is 3 for an age that is infinite."""
    return np.minimum(seconds / 60.0, _NEVER_MINUTES)


def _bias_buckets(rows: Rows) -> NDArray[np.int32]:
    ages = age_buckets(np.column_stack([rows.last, rows.first]))
    last_in, last_out, lifetime = ages[:, 0], ages[:, 1], ages[:, 2]
    _, exponent = np.frexp(1.0 + rows.degrees[:, :2])
    degrees = np.clip(exponent - 1, 0, DEGREES - 1).astype(np.int32)
    followers, followees = degrees[:, 0], degrees[:, 1]
    buckets = np.empty((len(ages), len(TABLES)), np.int32)
    buckets[:, 0] = last_in
    buckets[:, 1] = last_out
    buckets[:, 2] = lifetime
    buckets[:, 3] = followers
    buckets[:, 4] = followees
    buckets[:, 5] = last_in * DEGREES + followers
    buckets[:, 6] = last_out * DEGREES + followees
    buckets[:, 7] = last_in * AGES + last_out
    buckets[:, 8] = followers * DEGREES + followees
    buckets += _TABLE_STARTS
    return buckets


def _neighbours(lists: Sequence[Sequence[str]], width: int, index: RowIndex) -> NDArray[np.int32]:
    lengths = np.fromiter(map(len, lists), np.int64, len(lists))
    out = np.zeros((len(lists), width), np.int32)
    if lengths.any():
        out[np.arange(width) < lengths[:, None]] = index.rows_of(list(chain.from_iterable(lists)))
    return out


def _columns(values: Sequence[tuple[int, float]]) -> NDArray[np.float32]:
    return np.array([v for count, v in values for _ in range(count)], np.float32)


def _column(way: int, family: int, window: int) -> int:
    """Where a count stands in `Rows.families` as (n, 2 FAMILIES 5)."""
    return (way * FAMILIES + family) * len(AGGREGATES) + window


def _joint(way: int, families: Sequence[int], window: int) -> NDArray[np.int64]:
    return np.array([_column(way, family, window) for family in families], np.int64)


_NEVER_MINUTES: Final = float(np.exp(15.0) - 1.0)
# Columns: 14 follow, 6 engage, 4 negative, 2 ages, lifetime, out_over_in, (followees), 3 others.
_OFFSET: Final = _columns([(14, 0.01), (10, 1.0), (2, 1.0), (1, 1.0), (2, 1.0), (3, 0.0)])
_SCALE: Final = _columns([(14, 1 / 3), (10, 1 / 3), (2, 1 / 5), (1, 1 / 10), (5, 0.0)])
_SHIFT: Final = _columns([(14, 2 / 3), (10, 0.0), (2, 0.0), (1, -1.0), (5, 0.0)])
_PSI_SCALE: Final = _columns([(1, 0.0), (2, 1 / 3), (2, 1 / 5), (1, 1 / 10), (2, 0.0), (13, 1 / 3), (4, 0.0)])
_PSI_SHIFT: Final = _columns([(1, 1.0), (2, 0.0), (2, 0.0), (1, -1.0), (19, 0.0)])
_LONGEST: Final = 4.0  # of a component of a sketch

# The argument of the quality block's logarithm: single counts (as `QUALITY` begins), what rates are of, two sums and
# the audience's shares.
_READ: Final = np.array(
    [
        *(_column(IN, family, window) for window in (_WEEK, _EVER) for family in _RATED),
        *(_column(IN, family, window) for window in (_DAY, _LONG) for family in _COUNTED),
        _column(IN, FAMILY["address_book"], _EVER),
    ]
)
_MEETINGS: Final = [_joint(IN, [FAMILY["follow"], *_ENGAGING, *_REFUSING], w) for w in (_WEEK, _EVER)]
_ENGAGING_LONG: Final = _joint(IN, _ENGAGING, _LONG)
_LIKED: Final = _joint(OUT, _ENGAGING, _LONG)
_LIKED_TODAY: Final = _joint(OUT, _ENGAGING, _DAY)
_LIKED_LATELY: Final = _joint(OUT, _ENGAGING, _SHORT)
_DISLIKED: Final = _joint(OUT, _REFUSING, _LONG)
_DISLIKED_TODAY: Final = _joint(OUT, _REFUSING, _DAY)
_AGE_CUTS: Final = np.cumsum([UNRECIPROCATED, FOLLOWEES, ENGAGED])
_EVENTS: Final = len(_READ)
_ENGAGED: Final = _EVENTS + 2 * len(RATES)
_FOLLOWED: Final = _ENGAGED + 1
_QUALITY_OFFSET: Final = np.array(
    [
        *(a for _, _, a, _ in RATES * 2),
        *([1.0] * (2 * len(COUNTED) + 1)),
        *(a + b for _, _, a, b in RATES * 2),
        *([1.0] * 2),
        *([0.0] * AUDIENCE_LANGUAGES),
    ],
    np.float32,
)
_PRIOR: Final = np.log(np.array([a / (a + b) for _, _, a, b in RATES * 2])).astype(np.float32)
