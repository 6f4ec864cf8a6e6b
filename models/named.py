"""Features with names in place of rows: how they travel from where they were made to where they are learned from.

Rows of the id vectors are private to one table. On the way an account is its name, and each name is written once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from kithstream.models.directions import COMMUNITY_DIM
from kithstream.models.features import (
    AVOIDED,
    ENGAGED,
    FOLLOWEES,
    FOLLOWERS,
    PSI,
    SCHEMA,
    SKETCH,
    UNRECIPROCATED,
    ConsumerFeatures,
    ProducerFeatures,
    RowIndex,
)
from kithstream.models.ids import NOBODY, IdVectors
from kithstream.models.producers import SHAPES

Shape = tuple[tuple[int, ...], type[np.float32 | np.int32]]
Features = TypeVar("Features", ProducerFeatures, ConsumerFeatures)

# What the features hold of one account, in their order.
PRODUCER: Final[dict[str, Shape]] = {"rows": ((), np.int32), **SHAPES}
CONSUMER: Final[dict[str, Shape]] = {
    "rows": ((), np.int32),
    "psi": ((len(PSI),), np.float32),
    "unreciprocated": ((UNRECIPROCATED,), np.int32),
    "unreciprocated_ages": ((UNRECIPROCATED,), np.int32),
    "followers": ((FOLLOWERS,), np.int32),
    "followees": ((FOLLOWEES,), np.int32),
    "followee_ages": ((FOLLOWEES,), np.int32),
    "engaged": ((ENGAGED,), np.int32),
    "engaged_families": ((ENGAGED,), np.int32),
    "engaged_ages": ((ENGAGED,), np.int32),
    "avoided": ((AVOIDED,), np.int32),
    "avoided_families": ((AVOIDED,), np.int32),
    "avoided_ages": ((AVOIDED,), np.int32),
    "avoided_communities": ((AVOIDED,), np.int32),
    "known_for": ((), np.int32),
    "languages": ((), np.int32),
    "countries": ((), np.int32),
    "interests": ((COMMUNITY_DIM,), np.float32),
    "following": ((SKETCH,), np.float32),
}
_PRODUCER_ROWS: Final = frozenset({"rows", "followers", "followees"})
_CONSUMER_ROWS: Final = frozenset({"rows", "unreciprocated", "followers", "followees", "engaged", "avoided"})


class NamedError(ValueError):
    """Packed features that are of another schema, or whose bytes are not what their number says."""


class Named(msgspec.Struct, frozen=True, array_like=True):
    """Features of n accounts. Numbers are little endian; a row r > 0 stands for names[r - 1], 0 for nobody."""

    schema: str
    names: Sequence[str]
    fields: Sequence[bytes]  # of the features, in their order


def pack(features: ProducerFeatures | ConsumerFeatures, ids: IdVectors) -> Named:
    """Return features with names in place of the rows that `ids` gave."""
    by_name = _CONSUMER_ROWS if isinstance(features, ConsumerFeatures) else _PRODUCER_ROWS
    values = features._asdict()
    rows = np.unique(np.concatenate([values[name].ravel() for name in by_name]))
    rows = rows[rows != NOBODY]
    names = [ids.name(row) for row in rows.tolist()]
    assert None not in names
    for name in by_name:
        at = np.searchsorted(rows, values[name]) + 1
        values[name] = np.where(values[name] == NOBODY, NOBODY, at)
    shapes = CONSUMER if isinstance(features, ConsumerFeatures) else PRODUCER
    fields = [values[name].astype(_little(kind)).tobytes() for name, (_, kind) in shapes.items()]
    return Named(SCHEMA.hash, [name for name in names if name is not None], fields)


def producers(named: Named, ids: RowIndex) -> ProducerFeatures:
    """Return the features of candidates, with rows of `ids`; raises NamedError."""
    return ProducerFeatures(**_unpack(named, PRODUCER, _PRODUCER_ROWS, ids))  # type: ignore[arg-type]


def consumers(named: Named, ids: RowIndex) -> ConsumerFeatures:
    """Return the features of those who asked, with rows of `ids`; raises NamedError."""
    return ConsumerFeatures(**_unpack(named, CONSUMER, _CONSUMER_ROWS, ids))  # type: ignore[arg-type]


def _unpack(
    named: Named, shapes: dict[str, Shape], by_name: frozenset[str], ids: RowIndex
) -> dict[str, NDArray[np.float32 | np.int32]]:
    if named.schema != SCHEMA.hash:
        raise NamedError(f"the features are of schema {named.schema}, this build has {SCHEMA.hash}")
    if len(named.fields) != len(shapes):
        raise NamedError(f"the features have {len(named.fields)} fields, expected {len(shapes)}")
    n = len(named.fields[0]) // 4
    values: dict[str, NDArray[np.float32 | np.int32]] = {}
    for raw, (name, (shape, kind)) in zip(named.fields, shapes.items(), strict=True):
        if len(raw) != 4 * n * int(np.prod(shape, dtype=np.int64)):
            raise NamedError(f"field {name} has {len(raw)} bytes for {n} accounts")
        values[name] = np.frombuffer(raw, _little(kind)).reshape(n, *shape).astype(kind)
        if not np.isfinite(values[name]).all():  # one of them would make every weight NaN
            raise NamedError(f"field {name} holds numbers that are not finite")
    rows = np.concatenate((np.array([NOBODY], np.int32), ids.rows_of(named.names)))
    for name in by_name:
        places = values[name]
        if places.size and not 0 <= int(places.min()) <= int(places.max()) < len(rows):
            raise NamedError(f"field {name} names an account beyond the {len(named.names)} that are given")
        values[name] = rows[places]
    return values


def _little(kind: type[np.float32 | np.int32]) -> np.dtype[np.generic]:
    return np.dtype(kind).newbyteorder("<")
