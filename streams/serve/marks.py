"""What is told of candidates so that pairs with them can be ranked elsewhere, and its bytes.

A decayed count is told as log2(count) + time / half-life and an age as a time: both stay as they are however much time
goes by, so nothing is refreshed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kithstream.models.features import HALF_LIVES, Rows

COMMUNITIES: Final = 8  # of an audience
SCALE: Final = 1.0 / np.array(HALF_LIVES)  # per second
DAY: Final = 3  # place of 1 d among the half-lives
_FOLLOW: Final = 0  # groups of counts
_ENGAGE: Final = 1
_CELL: Final = np.dtype(
    [
        ("follows", "<f8", (2, len(HALF_LIVES))),
        ("engaged", "<f8", (2,)),
        ("times", "<f8", (3,)),
        ("degrees", "<u4", (3,)),
        ("languages", "<i4"),
        ("known_for", "<i4"),
        ("weights", "<f4", (COMMUNITIES,)),
        ("communities", "<i4", (COMMUNITIES,)),
    ]
)  # communities one higher than they are, so that an account without any ends in zeros
SIZE: Final = _CELL.itemsize  # bytes of one account at most


class Marks(NamedTuple):
    """What n candidates are like."""

    follows: NDArray[np.float64]  # (n, 2, 7) in and out, -inf for none
    engaged: NDArray[np.float64]  # (n, 2) in and out at 1 d, -inf for none
    times: NDArray[np.float64]  # (n, 3) seconds since 1970: the last event in, the last out, the first
    degrees: NDArray[np.int64]  # (n, 3): followers, followees, followees that follow back
    languages: NDArray[np.int32]  # (n,) code, 0 if unknown
    known_for: NDArray[np.int32]  # (n,) community, -1 if none
    communities: NDArray[np.int32]  # (n, COMMUNITIES) of its audience, -1 pads
    weights: NDArray[np.float32]  # (n, COMMUNITIES) 0 pads


def marks(rows: Rows) -> Marks:
    """Return what is told of candidates that were read."""
    now = rows.as_of / 1e6
    with np.errstate(divide="ignore"):
        follows = np.log2(rows.counts[:, :, _FOLLOW].astype(np.float64)) + now * SCALE
        engaged = np.log2(rows.counts[:, :, _ENGAGE, DAY].astype(np.float64)) + now * SCALE[DAY]
    return Marks(
        follows,
        engaged,
        np.column_stack([now - rows.last, now - rows.first]),
        rows.degrees,
        rows.languages,
        rows.known_for,
        rows.communities[:, :COMMUNITIES],
        rows.community_weights[:, :COMMUNITIES],
    )


def pack(told: Marks) -> list[bytes]:
    """Return the bytes of each: 236, without the zeros that they end in."""
    cells = np.zeros(len(told.times), _CELL)
    for name, values in told._asdict().items():
        cells[name] = values
    cells["known_for"] += 1
    cells["communities"] += 1
    raw = cells.tobytes()
    return [raw[at : at + SIZE].rstrip(b"\0") for at in range(0, len(raw), SIZE)]


def unpack(packed: Sequence[bytes]) -> Marks:
    """Return what `pack` packed, none of it longer than `SIZE`."""
    cells = np.frombuffer(b"".join(raw.ljust(SIZE, b"\0") for raw in packed), _CELL)
    return Marks(
        cells["follows"],
        cells["engaged"],
        cells["times"],
        cells["degrees"].astype(np.int64),
        cells["languages"],
        cells["known_for"] - 1,
        cells["communities"] - 1,
        cells["weights"],
    )
