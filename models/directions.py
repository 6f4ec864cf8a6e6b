"""Fixed directions for codes that are too many or too short-lived for learned vectors of their own.

A direction is a random unit vector, the same in every model: a code's meaning is learned through the scale of its
kind alone, so that another version of the communities needs no training. Two codes overlap by 1 / sqrt(dim) or so.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

LANGUAGE_DIM: Final = 8  # languages and countries share a block
COMMUNITY_DIM: Final = 12
LANGUAGES: Final = 512  # directions held, by the code modulo this; so are the next two
COUNTRIES: Final = 1024
COMMUNITIES: Final = 4096


def _directions(count: int, dim: int, seed: int) -> NDArray[np.float32]:
    table = np.random.Generator(np.random.PCG64(seed)).standard_normal((count, dim))
    table /= np.linalg.norm(table, axis=1, keepdims=True)
    table[0] = 0.0  # nothing known has no direction
    return table.astype(np.float32)


_LANGUAGE: Final = _directions(LANGUAGES, LANGUAGE_DIM, 1729)
_COUNTRY: Final = _directions(COUNTRIES, LANGUAGE_DIM, 1730)
PLACE: Final = np.concatenate((_LANGUAGE, _COUNTRY))  # (LANGUAGES + COUNTRIES, LANGUAGE_DIM)
COMMUNITY: Final = _directions(COMMUNITIES, COMMUNITY_DIM, 1731)  # (COMMUNITIES, COMMUNITY_DIM)


def of_languages(codes: NDArray[np.int32]) -> NDArray[np.int32]:
    """Return the rows of languages in `PLACE`, 0 for none."""
    return codes % np.int32(LANGUAGES)


def of_countries(codes: NDArray[np.int32]) -> NDArray[np.int32]:
    """Return the rows of countries in `PLACE`; that of none has no direction."""
    return codes % np.int32(COUNTRIES) + np.int32(LANGUAGES)


def of_communities(communities: NDArray[np.int32]) -> NDArray[np.int32]:
    """Return the rows of communities in `COMMUNITY`; -1, which is none, has row 0.

    >>> of_communities(np.array([-1, 0, 4094, 4095], np.int32)).tolist()
    [0, 1, 4095, 1]
    """
    return np.where(communities < 0, np.int32(0), 1 + communities % np.int32(COMMUNITIES - 1))


def blend(
    table: NDArray[np.float32],  # (rows, dim)
    places: NDArray[np.int32],  # (n, k)
    weights: NDArray[np.float32],  # (n, k)
) -> NDArray[np.float32]:
    """Return (n, dim) weighted sums of directions; the bits of a row do not depend on the others."""
    # One small product per row, always of the same shape: it does not matter which rows are together.
    total: NDArray[np.float32] = np.matmul(weights[:, None, :], table.take(places, axis=0))[:, 0]
    return total
