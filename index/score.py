"""The score of a vector for a query, and what scores are made of: one routine for every plan.

A scan in float32 only *nominates*: BLAS may sum a row differently when the matrix has another shape.
Whatever leaves the index was scored here, row by row in float64 in a fixed order, then rounded; so an id has
the same bits under every plan.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Slots = NDArray[np.int64]
Labels = NDArray[np.int32]
Bools = NDArray[np.bool_]

LARGEST_NORM: Final = 1e18  # the product of two such norms is still a float32
_SAMPLED: Final = 16  # values looked at first for each one wanted
_UNIT: Final = 2.0**-24  # float32 rounds to within this share of a value
_TINY: Final = 2.0**-126  # below it float32 loses digits, and may be flushed to zero


def score(rows: Floats, query: Doubles) -> Floats:
    """Dot products of rows (n, dim) with a query (dim,); a row's bits depend on no other row."""
    wide = np.vecdot(rows.astype(np.float64), query)  # one ddot of fixed length per row
    return np.asarray(wide.astype(np.float32) + np.float32(0.0))  # adding zero leaves no negative zero


def tolerance(dim: int, query_norm: float, largest_norm: float) -> float:
    """How far a float32 product, summed in any order, can be from `score`."""
    return 2.0 * (dim + 2) * (_UNIT * query_norm * largest_norm + _TINY)


def nominate(products: Floats, k: int, error: float, most: Floats | None = None) -> Slots:
    """Positions of everything that can be among the k best once scored; -inf is never among them.

    `products` are off by `error` at most; where `most` is given, scores are at least the one and at most the other.

    >>> nominate(np.array([.1, .9, .5, -np.inf], np.float32), 2, 1e-6).tolist()
    [1, 2]
    """
    if len(products) > k:
        cut = kth_largest(products, k)
        if cut > -np.inf:
            return np.flatnonzero((products if most is None else most) >= np.float32(cut - 2.0 * error))
    return np.flatnonzero(products > -np.inf)


def kth_largest(values: Floats, k: int) -> float:
    """The k-th largest of at least k values, none of them NaN.

    Of many, a sample tells above what twice as many lie as are wanted, about, and only those are partitioned.

    >>> kth_largest(np.array([3, 1, 2], np.float32), 2)
    2.0
    """
    stride = len(values) // (_SAMPLED * k)
    if stride > 1:
        sample = values[::stride]
        place = len(sample) - 2 * (k // stride) - 8
        above = values[values >= np.partition(sample, place)[place]]
        if len(above) >= k:
            values = above
    return float(np.partition(values, len(values) - k)[len(values) - k])


def norms(rows: Floats) -> Doubles:
    """Euclidean lengths (n,) of rows (n, dim); NaN or infinite where a row is not finite."""
    wide = rows.astype(np.float64)
    return np.asarray(np.sqrt(np.einsum("ij,ij->i", wide, wide)))


def checked_rows(vectors: ArrayLike, dim: int, count: int) -> tuple[Floats, Doubles]:
    """Rows (count, dim) fit to be stored, and their norms."""
    with np.errstate(over="ignore"):
        rows = np.ascontiguousarray(vectors, dtype=np.float32)
    if rows.ndim != 2 or rows.shape[0] != count:
        raise ValueError(f"vectors has the shape {rows.shape}, the call has {count} ids")
    if rows.shape[1] != dim:
        raise ValueError(f"dim is {dim}, the vectors have {rows.shape[1]}")
    lengths = norms(rows)
    if count and not (lengths.min() > 0.0 and lengths.max() <= LARGEST_NORM):  # NaN fails both
        bad = int(np.flatnonzero(~((lengths > 0.0) & (lengths <= LARGEST_NORM)))[0])
        raise ValueError(f"vector {bad} {_fault(float(lengths[bad]))}")
    return rows, lengths


def checked_query(vector: ArrayLike, dim: int) -> tuple[Floats, float]:
    """A query vector (dim,) and its norm."""
    with np.errstate(over="ignore"):
        query = np.ascontiguousarray(vector, dtype=np.float32)
    if query.shape != (dim,):
        size = query.shape[0] if query.ndim == 1 else query.shape
        raise ValueError(f"dim is {dim}, the vector has {size}")
    length = float(norms(query[None, :])[0])
    if not 0.0 < length <= LARGEST_NORM:
        raise ValueError(f"the vector {_fault(length)}")
    return query, length


def _fault(length: float) -> str:
    if length == 0.0:
        return "is zero"
    if np.isfinite(length):
        return f"has the norm {length:g}, more than {LARGEST_NORM:g}"
    return "is not finite"
