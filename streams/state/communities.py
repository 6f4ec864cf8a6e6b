"""What rows of communities say of an account: the largest entries of its interest and of its audience."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kithstream.models.features import COMMUNITIES
from kithstream.streams.communities.cells import read
from kithstream.streams.communities.interest import thresholded
from kithstream.streams.communities.known import NONE

_NUMBER_BITS: Final = 40
_NUMBER: Final = (1 << _NUMBER_BITS) - 1
_NOTHING: Final = np.full(COMMUNITIES, NONE, np.int32).tobytes(), np.zeros(COMMUNITIES, np.float32).tobytes()


class Entries(NamedTuple):
    """The largest entries of a vector, padded, in the form that is joined into arrays."""

    communities: bytes = _NOTHING[0]  # (COMMUNITIES,) int32, -1 pads
    weights: bytes = _NOTHING[1]  # (COMMUNITIES,) float32


class Communities(NamedTuple):
    """What one account's rows say."""

    known_for: int = NONE
    interest: Entries = Entries()
    audience: Entries = Entries()


def interest(row: bytes | bytearray, norms: NDArray[np.float32]) -> Entries:
    """Return an interest of unit length: T over the length of each community's column."""
    entries = thresholded(read(row))
    if not entries:
        return Entries()
    communities, weights = np.array(entries, np.int64).T
    scaled = weights / _lengths(norms, communities)
    return _largest(communities, scaled / np.sqrt(np.sum(scaled * scaled)))


def audience(row: bytes | bytearray, norms: NDArray[np.float32], followers: int) -> Entries:
    """Return X[c] / (norms[c] sqrt(followers)): the cosine of who follows with each column of interests."""
    if not row or followers <= 0:
        return Entries()
    cells = np.frombuffer(row, ">u8").astype(np.uint64)
    communities = (cells >> np.uint64(_NUMBER_BITS)).astype(np.int64)
    sums = (cells & np.uint64(_NUMBER)).astype(np.float64)
    return _largest(communities, sums / (_lengths(norms, communities) * np.sqrt(float(followers))))


def fields(accounts: Sequence[Communities]) -> dict[str, NDArray[np.generic]]:
    """Return the fields of `Rows` that are about communities, for n accounts."""
    n = len(accounts)

    def joined(parts: list[bytes], kind: type[np.generic]) -> NDArray[np.generic]:
        return np.frombuffer(b"".join(parts), kind).reshape(n, COMMUNITIES)

    return {
        "known_for": np.array([account.known_for for account in accounts], np.int32),
        "interests": joined([account.interest.communities for account in accounts], np.int32),
        "interest_weights": joined([account.interest.weights for account in accounts], np.float32),
        "communities": joined([account.audience.communities for account in accounts], np.int32),
        "community_weights": joined([account.audience.weights for account in accounts], np.float32),
    }


def _lengths(norms: NDArray[np.float32], communities: NDArray[np.int64]) -> NDArray[np.float64]:
    """Lengths of columns; one that was empty when they were frozen counts as one."""
    return np.maximum(norms.astype(np.float64)[communities], 1.0)


def _largest(communities: NDArray[np.int64], weights: NDArray[np.float64]) -> Entries:
    order = np.lexsort((communities, -weights))[:COMMUNITIES]
    found = np.full(COMMUNITIES, NONE, np.int32)
    found[: len(order)] = communities[order]
    values = np.zeros(COMMUNITIES, np.float32)
    values[: len(order)] = weights[order]
    return Entries(found.tobytes(), values.tobytes())
