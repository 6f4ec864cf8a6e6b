"""Features to vectors, in zero-padded blocks of 64 rows: batch composition never changes a bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray

from kithstream.models.features import BLOCK, ConsumerFeatures, ProducerFeatures
from kithstream.models.ids import IdTables
from kithstream.models.tower import ConsumerBatch, ProducerBatch, Tower


def encode_producers(tower: Tower, ids: IdTables, features: ProducerFeatures) -> NDArray[np.float32]:
    """(n, dim) producer vectors; a row's bits are a function of its own features, weights and ids."""
    return _encoded(tower, features, lambda block: tower.producers(ProducerBatch(*block), ids))


def encode_consumers(tower: Tower, ids: IdTables, features: ConsumerFeatures) -> NDArray[np.float32]:
    """(n, dim) consumer vectors; a row's bits are a function of its own features, weights and ids."""
    return _encoded(tower, features, lambda block: tower.consumers(ConsumerBatch(*block), ids))


def _encoded(
    tower: Tower,
    features: ProducerFeatures | ConsumerFeatures,
    encode: Callable[[Sequence[torch.Tensor]], torch.Tensor],
) -> NDArray[np.float32]:
    n = len(features.rows)
    padded = [_pad(a) for a in features]
    vectors = np.empty((len(padded[0]), tower.config.dim), np.float32)
    out = torch.from_numpy(vectors)
    with one_thread(), torch.inference_mode():
        for start in range(0, n, BLOCK):
            stop = start + BLOCK
            # Slices cost nearly what the padding does.
            block = padded if len(vectors) == BLOCK else [a[start:stop] for a in padded]
            out[start:stop] = encode(block)
    return vectors[:n]


def _pad(array: NDArray[np.float32] | NDArray[np.int32]) -> torch.Tensor:
    n = len(array)
    padded = np.zeros((-(-n // BLOCK) * BLOCK, *array.shape[1:]), array.dtype)
    padded[:n] = array
    return torch.from_numpy(padded)


@contextmanager
def one_thread() -> Iterator[None]:
    """Runs torch on one thread: a sum split over threads would depend on their number."""
    threads = torch.get_num_threads()
    if threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
