"""What a pass writes down, a round at a time: examples, and the candidates as they were encoded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from kithstream.models.features import ConsumerFeatures, ProducerFeatures

POSITIVE: Final = "positive"  # a follow or an engagement that really came about
ENGAGED: Final = "engaged"  # an impression behind which one came within the window
IGNORED: Final = "ignored"  # an impression whose window passed without
KINDS: Final = (POSITIVE, ENGAGED, IGNORED)

_F = TypeVar("_F", ConsumerFeatures, ProducerFeatures)


class ExampleBatch(NamedTuple):
    """Examples in the order in which they are learned. Rows are those of the id vectors of whoever reads."""

    kinds: Sequence[str]  # n of KINDS
    signals: Sequence[str]  # n: what came about; impression, where nothing did
    labels: NDArray[np.int8]  # (n,) 1, or 0 where it was ignored
    times: NDArray[np.int64]  # (n,) microseconds: of the event, or of the impression
    rounds: NDArray[np.int64]  # (n,) the poll that they were written in; rises
    as_of: NDArray[np.int64]  # (n,) microseconds: the newest time that the round learned of
    partitions: NDArray[np.int32]  # (n,)
    offsets: NDArray[np.int64]  # (n,) of the event, or of the impression, in its partition's log
    encoded: NDArray[np.bool_]  # (n,) whether the target had ever been encoded; zeros below, if not
    consumers: ConsumerFeatures  # n, as they were before the event
    producers: ProducerFeatures  # n targets, as they were last encoded before it


class CandidateBatch(NamedTuple):
    """Candidates as they were encoded, in that order, or forgotten."""

    rounds: NDArray[np.int64]  # (n,) the poll after whose examples it was
    as_of: NDArray[np.int64]  # (n,) microseconds: the tick that the features are of
    gone: NDArray[np.bool_]  # (n,) deleted: nothing is known of it from here on; zeros below
    producers: ProducerFeatures  # n


def some(features: _F, places: NDArray[np.generic] | slice) -> _F:
    """Return the features of some rows."""
    return type(features)._make(array[places] for array in features)


def joined(parts: Sequence[_F]) -> _F:
    """Return the rows of several feature blocks, one after the other."""
    return type(parts[0])._make(np.concatenate(arrays) for arrays in zip(*parts, strict=True))


_B = TypeVar("_B", ExampleBatch, CandidateBatch)


def cut(batch: _B, where: slice) -> _B:
    """Return consecutive rows of a batch."""
    return type(batch)._make(_cut(value, where) for value in batch)


def pick(batch: ExampleBatch, kind: str) -> ExampleBatch:
    """Return the examples of a kind."""
    where = np.flatnonzero([found == kind for found in batch.kinds])
    if len(where) == len(batch.kinds):
        return batch
    return ExampleBatch._make(
        [value[at] for at in where.tolist()] if isinstance(value, list) else _cut(value, where)
        for value in batch
    )


def join(batches: Sequence[_B]) -> _B:
    """Return batches one after the other as one."""
    if len(batches) == 1:
        return batches[0]
    return type(batches[0])._make(_join(values) for values in zip(*batches, strict=True))


def _cut(value: object, where: slice | NDArray[np.int64]) -> object:
    if isinstance(value, ConsumerFeatures):
        return some(value, where)
    if isinstance(value, ProducerFeatures):
        return some(value, where)
    return cast(NDArray[np.generic], value)[where]


def _join(values: Sequence[object]) -> object:
    first = values[0]
    if isinstance(first, ConsumerFeatures | ProducerFeatures):
        return joined(cast(Sequence[ConsumerFeatures], values))
    if isinstance(first, list):
        return [one for value in values for one in cast(Sequence[str], value)]
    return np.concatenate(cast(Sequence[NDArray[np.generic]], values))
