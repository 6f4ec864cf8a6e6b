"""One learned score over pairs of an account that asks and a candidate: the towers' score, and what a dot cannot say.

A linear softmax ranker. Its score is the towers' plus weights times features of the pair; day-zero weights are zero, so
an untrained ranker changes nothing. It learns from what would have been answered just before a follow: cross entropy of
the one that was followed among all that were looked at, by Adagrad, one step for each micro-batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from kithstream.models.checkpoint import Array, Checkpoint, SchemaError
from kithstream.models.features import AGES, DEGREES, HALF_LIVES, age_buckets

SOURCES: Final[tuple[str, ...]] = ("towers", "popular", "two_hop", "reciprocal", "communities")
WINDOWS: Final = len(HALF_LIVES)
HOPS: Final[tuple[str, ...]] = ("co_follow", "followees_follow", "followers_follow", "common_followers")
MEASURED: Final = 500  # examples over which it is compared with the towers alone, about
_PLACES: Final = 12  # buckets of the place among the index's hits

_CIRCUMSTANCES: Final = ("followers", "followees", "age_out", "reciprocation")  # of the account that asks
_CROSSED: Final = ("tower", "follows_you", "co_follow", "followees_follow", "in_1d", "out_1d")
_WAYS: Final = tuple(
    f"{way}_{h}" for way in ("in", "out") for h in ("10m", "1h", "6h", "1d", "7d", "30d", "ever")
)
DENSE: Final[tuple[str, ...]] = (
    "tower",
    "place",
    *SOURCES,
    *_WAYS,
    "engaged_in_1d",
    "engaged_out_1d",
    "age_in",
    "age_out",
    "lifetime",
    "followers",
    "followees",
    "out_over_in",
    "reciprocation",
    *HOPS,
    "co_follow_share",
    "follows_you",
    "follows_you_lately",
    "engaged_before",
    "engaged_lately",
    "community",
    "known_for",
    "language",
    *(f"{main}*{circumstance}" for main in _CROSSED for circumstance in _CIRCUMSTANCES),
)
TABLES: Final[tuple[tuple[str, int], ...]] = (
    ("place", _PLACES),
    ("follows_you", AGES),
    ("age_in", AGES),
    ("age_out", AGES),
    ("followers", DEGREES),
    ("followees", DEGREES),
    ("age_out*follows_you", 2 * AGES),
    ("co_follow*followees", 8 * 8),
    ("engaged", AGES),
)
_STARTS: Final = np.cumsum([0, *(size for _, size in TABLES[:-1])])
_BUCKETS: Final = sum(size for _, size in TABLES)


class PairSchema(msgspec.Struct, frozen=True):
    """Names, order and constants of everything that the ranker reads; part of every checkpoint."""

    dense: tuple[str, ...] = DENSE
    tables: tuple[tuple[str, int], ...] = TABLES
    half_lives: tuple[float, ...] = HALF_LIVES[:-1]
    transforms: str = "v1"  # raised when a formula below changes without a change of name

    @property
    def hash(self) -> str:
        """16 hex digits; equal exactly when the weights of a checkpoint can be used."""
        return hashlib.blake2b(msgspec.json.encode(self), digest_size=8).hexdigest()


PAIRS: Final = PairSchema()


class Asker(NamedTuple):
    """The account that asks, which is the same in every pair."""

    followers: int
    followees: int
    mutual: int  # followees that follow back
    age_out: float  # seconds since it last did something, +inf if never


class Pairs(NamedTuple):
    """What is known of n candidates for one account, before any feature is made of it."""

    asker: Asker
    scores: NDArray[np.float32]  # (n,) of the towers
    places: NDArray[np.int64]  # (n,) among the hits of the index, from 0; their number for all others
    sources: NDArray[np.bool_]  # (n, len(SOURCES)) who named it
    counts: NDArray[np.float64]  # (n, 2, 7) follows in and out, decayed at `HALF_LIVES`
    engaged_counts: NDArray[np.float64]  # (n, 2) engagements in and out at 1 d
    ages: NDArray[np.float64]  # (n, 3) seconds since the last event in, the last out, the first; +inf if none
    degrees: NDArray[np.int64]  # (n, 3): followers, followees, followees that follow back
    hops: NDArray[np.float64]  # (n, len(HOPS))
    follows_you: NDArray[np.float64]  # (n,) seconds since it followed the account, +inf if it does not
    engaged: NDArray[np.float64]  # (n,) seconds since the account engaged with it, +inf if it did not lately
    engagements: NDArray[np.int64]  # (n,) how often, lately
    community: NDArray[np.float64]  # (n,) interest of the account times place of the candidate's audience
    known_for: NDArray[np.bool_]  # (n,) both are known for one community
    language: NDArray[np.bool_]  # (n,) both speak one language


class PairFeatures(NamedTuple):
    """What the ranker reads of n candidates of one account."""

    dense: NDArray[np.float32]  # (n, len(DENSE))
    buckets: NDArray[np.int32]  # (n, len(TABLES)) positions in the joined table


class Ranked(NamedTuple):
    """One example: everybody who was looked at, and who was followed."""

    scores: NDArray[np.float32]  # (n,) of the towers
    features: PairFeatures  # n
    chosen: int  # position of the followed account


def pair_features(pairs: Pairs) -> PairFeatures:
    """Features of the candidates of one account. Only `tower` and `place` depend on who else is a candidate."""
    n = len(pairs.scores)
    asker = pairs.asker
    minutes = np.minimum(pairs.ages / 60.0, _NEVER_MINUTES)
    degrees = pairs.degrees.astype(np.float64)
    follows = np.isfinite(pairs.follows_you)
    tower = (pairs.scores - pairs.scores.max(initial=-np.inf)) / 4.0
    counts = (np.log(pairs.counts.reshape(n, 2 * WINDOWS) + 0.01) + 2.0) / 3.0
    logs = np.log1p(degrees) / 3.0
    hops = np.log1p(pairs.hops)
    columns = [
        tower,
        np.log1p(pairs.places) / 5.0,
        *pairs.sources.T,
        *counts.T,
        *(np.log1p(pairs.engaged_counts) / 3.0).T,
        np.log1p(minutes[:, 0]) / 5.0,
        np.log1p(minutes[:, 1]) / 5.0,
        np.log1p(minutes[:, 2]) / 10.0,
        logs[:, 0],
        logs[:, 1],
        (logs[:, 1] - logs[:, 0]) / 2.0,
        degrees[:, 2] / (1.0 + degrees[:, 1]),
        *hops.T,
        pairs.hops[:, 0] / max(float(pairs.hops[:, 0].max(initial=0.0)), 1.0),
        follows,
        np.exp2(-pairs.follows_you / 86400.0),
        np.log1p(pairs.engagements),
        np.exp2(-pairs.engaged / 86400.0),
        pairs.community,
        pairs.known_for,
        pairs.language,
    ]
    circumstances = (
        np.log1p(asker.followers) / 5.0,
        np.log1p(asker.followees) / 5.0,
        np.log1p(min(asker.age_out / 60.0, _NEVER_MINUTES)) / 10.0,
        asker.mutual / (1.0 + asker.followees),
    )
    dense = np.empty((n, len(DENSE)), np.float32)
    for at, column in enumerate(columns):
        dense[:, at] = column
    crossed = dense[:, _CROSSED_AT]
    dense[:, len(columns) :] = (crossed[:, :, None] * np.array(circumstances, np.float32)).reshape(
        n, len(_CROSSED) * len(_CIRCUMSTANCES)
    )
    return PairFeatures(dense, _buckets(pairs, follows))


def _buckets(pairs: Pairs, follows: NDArray[np.bool_]) -> NDArray[np.int32]:
    ages = age_buckets(np.column_stack([pairs.follows_you, pairs.ages[:, :2], pairs.engaged]))
    followers, followees = _degree(pairs.degrees[:, 0], DEGREES), _degree(pairs.degrees[:, 1], DEGREES)
    buckets = np.empty((len(ages), len(TABLES)), np.int32)
    buckets[:, 0] = _degree(pairs.places, _PLACES)
    buckets[:, 1:4] = ages[:, :3]
    buckets[:, 4] = followers
    buckets[:, 5] = followees
    buckets[:, 6] = 2 * ages[:, 2] + follows
    buckets[:, 7] = 8 * _degree(4.0 * pairs.hops[:, 0], 8) + _degree(np.array([pairs.asker.followees]), 8)
    buckets[:, 8] = ages[:, 3]
    buckets += _STARTS.astype(np.int32)
    return buckets


def _degree(counts: NDArray[np.int64] | NDArray[np.float64], most: int) -> NDArray[np.int64]:
    """floor(log2(1 + count)), less than `most`."""
    _, exponent = np.frexp(1.0 + counts)
    places: NDArray[np.int64] = np.minimum(exponent - 1, most - 1).astype(np.int64)
    return places


class RankerConfig(msgspec.Struct, frozen=True):
    """How it learns."""

    rate: float = 0.05
    start: float = 0.1  # of the sums of squares
    decay: float = 1e-4  # of what is learned, for each example


class Weights(NamedTuple):
    """What ranking reads of a ranker, at one step; never changed."""

    dense: NDArray[np.float64]  # (len(DENSE),)
    tables: NDArray[np.float64]  # (buckets,)

    def extra(self, features: PairFeatures) -> NDArray[np.float64]:
        """(n,) What is added to the towers' scores. A candidate's bits do not depend on how many there are."""
        total: NDArray[np.float64] = (features.dense * self.dense).sum(axis=1)
        total += self.tables[features.buckets].sum(axis=1)
        return total


class Ranker:
    """Weights, their optimiser state, and how much better it has been than the towers alone."""

    def __init__(self, config: RankerConfig | None = None) -> None:
        self.config = config or RankerConfig()
        self.weights = Weights(np.zeros(len(DENSE)), np.zeros(_BUCKETS))
        self.squares = np.full(len(DENSE) + _BUCKETS, self.config.start)
        self.examples = 0
        self.gain = (
            0.0  # mean of the discounted gain by its order less that by the towers', of the newest examples
        )

    @property
    def ready(self) -> bool:
        """True once it has ranked better than the towers alone on examples that it had not learned yet."""
        return self.examples >= MEASURED and self.gain > 0.0

    def observe(self, examples: Sequence[Ranked]) -> float:
        """One step; returns the mean loss before it, NaN without examples."""
        if not examples:
            return float("nan")
        weights, total = self.weights, 0.0
        dense, tables = np.zeros_like(weights.dense), np.zeros_like(weights.tables)
        for scores, features, chosen in examples:
            logits = scores + weights.extra(features)
            self._measure(scores, logits, chosen)
            logits -= logits.max()
            shares = np.exp(logits)
            shares /= shares.sum()
            total -= float(np.log(max(shares[chosen], 1e-300)))
            shares[chosen] -= 1.0
            dense += (features.dense * shares[:, None]).sum(axis=0)
            repeated = np.repeat(shares, len(TABLES))
            tables += np.bincount(features.buckets.ravel(), weights=repeated, minlength=_BUCKETS)
        gradient = np.concatenate((dense, tables))
        gradient += self.config.decay * len(examples) * np.concatenate(weights)
        self.squares += gradient * gradient
        step = self.config.rate * gradient / np.sqrt(self.squares)
        self.weights = Weights(weights.dense - step[: len(DENSE)], weights.tables - step[len(DENSE) :])
        return total / len(examples)

    def _measure(self, towers: NDArray[np.float32], whole: NDArray[np.float64], chosen: int) -> None:
        """Compare the two orders on an example that was not learned yet; equal scores count against both."""
        gained = 1.0 / np.log2(1.0 + np.array([(s >= s[chosen]).sum() for s in (towers, whole)]))
        self.examples += 1
        self.gain += (float(gained[1] - gained[0]) - self.gain) / min(self.examples, MEASURED)

    def arrays(self) -> dict[str, Array]:
        """Content by name, for a checkpoint."""
        return {
            "ranker.dense": self.weights.dense,
            "ranker.tables": self.weights.tables,
            "ranker.squares": self.squares,
            "ranker.measured": np.array([self.examples, self.gain]),
        }

    @classmethod
    def restored(cls, saved: Checkpoint, config: RankerConfig | None = None) -> Ranker:
        """What a checkpoint holds; as it is born where the checkpoint has none. Refused if it reads other features."""
        ranker = cls(config)
        written_for = saved.header.ranker_hash
        if not written_for:
            return ranker
        if written_for != PAIRS.hash:
            raise SchemaError(f"its ranker was written for schema {written_for}, this build has {PAIRS.hash}")
        for name, array in ranker.arrays().items():
            array[...] = saved.array(name, array.shape, np.float64)  # in place, before anybody reads it
        examples, ranker.gain = saved.array("ranker.measured", (2,), np.float64).tolist()
        ranker.examples = int(examples)
        return ranker

    def packed(self) -> bytes:
        """What ranking reads, float64, little endian; `unpack` takes it."""
        return np.concatenate((*self.weights, [self.examples, self.gain])).astype("<f8").tobytes()

    def unpack(self, packed: bytes) -> None:
        """Take over what `packed` returned, `PACKED` bytes."""
        *weights, examples, gain = np.split(np.frombuffer(packed, "<f8"), _CUTS)
        self.weights = Weights(*weights)
        self.examples, self.gain = int(examples[0]), float(gain[0])


_CUTS: Final = [len(DENSE), len(DENSE) + _BUCKETS, len(DENSE) + _BUCKETS + 1]
PACKED: Final = 8 * (len(DENSE) + _BUCKETS + 2)  # bytes
_NEVER_MINUTES: Final = float(np.exp(15.0) - 1.0)
_CROSSED_AT: Final = [DENSE.index(name) for name in _CROSSED]
