"""Eight bits a dimension of every row: what a scan reads first, a quarter of what the floats are.

A row v is held as centre + grain * code, whole numbers from -127 to 127, with two lengths that are rounded up: its
slip, ||v - centre - grain * code||, and ||grain * code||. The centre, about the mean of all rows, moves every score of
a query by as much, so it is left out. With a query q held as q' the inequality of Cauchy and Schwarz bounds what the
products of the codes are off by:

    |(v - centre).q - (grain * code).q'|  <=  slip ||q||  +  ||grain * code|| ||q - q'||

So a scan of codes bounds the score of every row, nominates those that can be among the best, and the floats of the
nominees decide: the answer is that of a scan of all floats, bit for bit. A row that was written lately is not coded
yet: its slip is larger than any row, and it is nominated always. The writer codes such rows some hundreds at a time.

The product is torch's of int8 matrices, which is exact in int32; it is used where it is quicker than float32.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from kithstream.index.score import LARGEST_NORM, Bools, Doubles, Floats, Slots

QUICKER: Final = 4  # times, about: a scan of codes than one of floats
PENDING: Final = 256  # rows that are not coded yet at most, but for those of one write
RECODED: Final = 512  # rows that get the codes of a new centre at one write
_LARGEST: Final = 127
_CHUNK: Final = 16_384  # rows coded at a time
_CENTRED: Final = 1 << 17  # rows; more are not coded again for a new centre
_UP: Final = np.float32(1.0 + 2.0**-20)  # more than what rounding a length to float32 takes off
_TINY: Final = np.float32(2.0**-120)  # more than what float32 flushes to zero
_UNCODED: Final = np.float32(4.0 * LARGEST_NORM)  # the slip of a row that is not coded

Codes8 = NDArray[np.int8]


class Codes:
    """Codes of a table's rows, by slot. The writer holds the table's lock; readers take none."""

    def __init__(self, capacity: int, dim: int) -> None:
        self.codes: Codes8 = np.zeros((capacity, dim), np.int8)
        self.grains: Floats = np.zeros(capacity, np.float32)
        self.slips: Floats = np.full(capacity, _UNCODED, np.float32)
        self.lengths: Floats = np.zeros(capacity, np.float32)
        self._centre = np.zeros(dim)
        self._fitted = 0  # rows that it is the centre of
        self._pending: list[int] = []
        # Of a new centre, until they have coded all rows; begun anew when this grows.
        self._next: Self | None = None

    @property
    def nbytes(self) -> int:
        """Of its arrays."""
        return sum(array.nbytes for array in (self.codes, self.grains, self.slips, self.lengths))

    def grown(self, capacity: int) -> Self:
        """A larger copy; a reader's own stays."""
        larger = type(self)(capacity, self.codes.shape[1])
        used = len(self.grains)
        larger.codes[:used] = self.codes
        larger.grains[:used] = self.grains
        larger.slips[:used] = self.slips
        larger.lengths[:used] = self.lengths
        larger._centre, larger._fitted = self._centre, self._fitted
        larger._pending = self._pending
        return larger

    def written(self, slots: Sequence[int], vectors: Floats) -> Self:
        """Rows of `vectors` (capacity, dim) have changed; called between announcing them and their visibility.

        Returns what is to be read from now on: others with a new centre, after there were twice as many rows. Those are
        coded anew some at each write, so that none waits for all.
        """
        self._expect(slots)
        if len(self._pending) >= PENDING:
            self._code_pending(len(self._pending), vectors)
            if self._next is None:
                self._next = self._begun(vectors)
        coming = self._next
        if coming is None:
            return self
        coming._expect(slots)
        coming._code_pending(len(slots) + RECODED, vectors)
        return self if len(coming._pending) >= PENDING else coming

    def _expect(self, slots: Sequence[int]) -> None:
        if len(slots) == 1:
            self.slips[slots[0]] = _UNCODED
        else:
            self.slips[slots] = _UNCODED
        self._pending += slots

    def _code_pending(self, most: int, vectors: Floats) -> None:
        self.code(np.unique(self._pending[-most:]), vectors)
        del self._pending[-most:]

    def _begun(self, vectors: Floats) -> Self | None:
        """Others that have coded nothing yet, if there are twice as many rows as when these were begun."""
        if 2 * self._fitted > _CENTRED:
            return None
        held = np.flatnonzero(self.slips < _UNCODED)
        if not 2 * self._fitted <= len(held) <= _CENTRED:
            return None
        other = type(self)(*self.codes.shape)
        other._centre_on(held, vectors)
        other._pending = held.tolist()
        return other

    def fit(self, slots: Slots, vectors: Floats) -> None:
        """Take the mean of rows for the centre, and code them; before anybody reads."""
        if len(slots):
            self._centre_on(slots, vectors)
            self.code(slots, vectors)

    def _centre_on(self, slots: Slots, vectors: Floats) -> None:
        sample = slots[:: 1 + len(slots) // _CHUNK]
        self._centre = vectors[sample].mean(axis=0, dtype=np.float64)
        self._fitted = len(slots)

    def code(self, slots: Slots, vectors: Floats) -> None:
        """Code rows. Their slips are written last: who reads the slip first reads the code that it is of."""
        for at in range(0, len(slots), _CHUNK):
            part = slots[at : at + _CHUNK]
            codes, grains, slips, lengths = coded(vectors[part] - self._centre)
            self.codes[part] = codes
            self.grains[part] = grains
            self.lengths[part] = lengths
            self.slips[part] = slips

    def bounds(
        self, wide: Doubles, norm: float, allowed: Bools, error: float
    ) -> tuple[Floats, Floats, float]:
        """What each row scores at least and at most, and what both are off by; -inf where it is not allowed.

        All in one unit, some multiple of the scores', and so that scores themselves may be off by `error`. `wide`
        (dim,) is the query, of that norm; `allowed` (n,) are the first rows of the table. The arrays (n,) are this
        thread's until it asks again.
        """
        n = len(allowed)
        least, slack, most, whole = _SCRATCH.of(n)
        codes, grain, slip, _ = coded(wide[None, :])
        unit = float(grain[0]) or 1.0
        # Slips first: a row that is coded meanwhile is taken by the slip that it had.
        np.multiply(self.slips[:n], np.float32(norm / unit) * _UP, out=slack)
        products(self.codes[:n], codes[0], whole)
        np.multiply(self.lengths[:n], np.float32(float(slip[0]) / unit) * _UP, out=most)
        slack += most
        least[:] = whole
        least *= self.grains[:n]
        if not allowed.all():
            np.copyto(least, -np.inf, where=~allowed)
        np.add(least, slack, out=most)
        least -= slack
        # A float32 product, and the cut among those, are off by `error` each, and so may be what is rounded here.
        return least, most, (4.0 * error + float(_TINY)) / unit


class _Scratch(threading.local):
    """Arrays of each thread: fresh ones of this size are pages that the kernel clears for every query."""

    def __init__(self) -> None:
        self._floats = np.zeros((3, 0), np.float32)
        self._whole = np.zeros(0, np.int32)

    def of(self, n: int) -> tuple[Floats, Floats, Floats, NDArray[np.int32]]:
        """Four arrays (n,), with anything in them."""
        if n > len(self._whole):
            self._floats = np.zeros((3, n + n // 8), np.float32)
            self._whole = np.zeros(n + n // 8, np.int32)
        least, slack, most = self._floats[:, :n]
        return least, slack, most, self._whole[:n]


_SCRATCH: Final = _Scratch()


def coded(wide: Doubles) -> tuple[Codes8, Floats, Floats, Floats]:
    """Codes (n, dim), grains (n,), slips (n,) and lengths (n,) of rows (n, dim) that are finite."""
    grains = (np.abs(wide).max(axis=1, initial=0.0) / _LARGEST).astype(np.float32)
    steps = grains.astype(np.float64)[:, None]
    quotients = np.divide(wide, steps, out=np.zeros_like(wide), where=steps > 0.0)
    # A tiny grain is coarse as a float32: what is cut off by a grain that was rounded down is told by the slip.
    whole = np.clip(np.rint(quotients), -_LARGEST, _LARGEST)
    held = whole * steps
    apart = wide - held
    slips = np.sqrt(np.vecdot(apart, apart)).astype(np.float32) * _UP + _TINY
    lengths = np.sqrt(np.vecdot(held, held)).astype(np.float32) * _UP
    return whole.astype(np.int8), grains, slips, lengths


def products(codes: Codes8, query: Codes8, out: NDArray[np.int32]) -> None:
    """Exact products (n,) of rows (n, dim) with a query (dim,), all of whole numbers from -127 to 127."""
    import torch  # here: a process that builds a graph needs none of it

    column = torch.from_numpy(query).view(-1, 1)  # numpy's query[:, None] has a stride of 0, which is misread
    threads = torch.get_num_threads()
    if threads > 1:  # others ask meanwhile
        torch.set_num_threads(1)
    try:
        torch._int_mm(torch.from_numpy(codes), column, out=torch.from_numpy(out).view(-1, 1))
    finally:
        if threads > 1:
            torch.set_num_threads(threads)


@functools.cache
def quicker(dim: int) -> bool:
    """Whether the codes' products are exact on this machine, and quicker than those of floats."""
    rows = 8_191
    draw = np.random.default_rng(dim)
    codes = draw.integers(-_LARGEST, _LARGEST, (rows, dim), np.int8, endpoint=True)
    codes[0], codes[1] = _LARGEST, -_LARGEST  # what overflows a sum of 16 bits
    query = codes[0].copy()
    query[dim // 2 :] = codes[-1, dim // 2 :]
    found = np.zeros(rows, np.int32)
    try:
        products(codes, query, found)
    except (AttributeError, RuntimeError):  # torch has no such product of matrices like these
        return False
    floats, wanted = codes.astype(np.float32), query.astype(np.float32)
    exact = np.array_equal(found, codes.astype(np.int64) @ query.astype(np.int64))
    return exact and _least(lambda: products(codes, query, found)) < _least(lambda: floats @ wanted)


def _least(work: Callable[[], object]) -> float:
    """Seconds that it takes at least, of several."""
    took = []
    for _ in range(7):
        began = time.perf_counter()
        work()
        took.append(time.perf_counter() - began)
    return min(took)
