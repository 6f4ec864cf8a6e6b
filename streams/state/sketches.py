"""Sums of random projections of ids, in integers: exact under undo and in any order.

The sum over an account's followers of their vectors tells audiences apart: the dot product of two sums is in
expectation the size of the common audience times the squared length of one vector (Achlioptas 2003, random
projections with small integers).
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import Final

import numpy as np
from numpy.typing import NDArray

DIM: Final = 16
_BYTES: Final = DIM * 8  # of a stored sum
_ZERO: Final = bytes(_BYTES)


def vector(account: str) -> NDArray[np.int64]:  # (16,)
    """Return the fixed vector of an account: sixteen integers between -128 and 127 from a hash of its id."""
    return np.frombuffer(blake2b(account.encode(), digest_size=DIM).digest(), dtype=np.int8).astype(np.int64)


def vectors(accounts: Sequence[bytes]) -> NDArray[np.int8]:  # (n, 16)
    """Return the vectors of accounts whose ids are given in UTF-8."""
    raw = b"".join([blake2b(account, digest_size=DIM).digest() for account in accounts])
    return np.frombuffer(raw, dtype=np.int8).reshape(-1, DIM)


def fold(stored: Sequence[bytes | None], changes: Sequence[tuple[int, str, int]]) -> list[bytes]:
    """Return the stored sums with vectors added: changes are (place of the sum, account, how many times).

    A sum is 128 bytes, empty when all is zero.
    """
    totals = np.frombuffer(b"".join([one or _ZERO for one in stored]), np.int64).reshape(-1, DIM).copy()
    added = vectors([account.encode() for _, account, _ in changes]).astype(np.int64)
    added *= np.array([by for _, _, by in changes], np.int64)[:, None]
    np.add.at(totals, [place for place, _, _ in changes], added)
    packed = totals.tobytes()
    sums = [packed[at : at + _BYTES] for at in range(0, len(packed), _BYTES)]
    return [b"" if one == _ZERO else one for one in sums]
