"""The model as others see it: rows in, vectors out, one lineage, a step that grows."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray

from kithstream.models import checkpoint
from kithstream.models.bootstrap import set_day_zero
from kithstream.models.checkpoint import Array, Checkpoint, DamageError, Header
from kithstream.models.delta import Delta, DeltaError
from kithstream.models.encode import encode_consumers, encode_producers
from kithstream.models.features import (
    SCHEMA,
    ConsumerFeatures,
    ProducerFeatures,
    Rows,
    consumer_features,
    producer_features,
)
from kithstream.models.ids import IdVectors
from kithstream.models.lineage import DIM, day_zero_lineage
from kithstream.models.ranker import PACKED, PAIRS, Ranker
from kithstream.models.tower import Tower, TowerConfig


class Producers(NamedTuple):
    """Encoded candidates. `features` are what a trainer stores beside the vectors."""

    vectors: NDArray[np.float32]  # (n, dim)
    step: int
    features: ProducerFeatures


class Consumers(NamedTuple):
    """Encoded askers. `features` are what an example is made of, if a follow comes."""

    vectors: NDArray[np.float32]  # (n, dim)
    step: int
    features: ConsumerFeatures


class Model:
    """Towers, id vectors and ranker of one lineage. Not safe for threads.

    A vector is a function of (rows, step) alone: it does not depend on what was encoded before.
    """

    def __init__(
        self, tower: Tower, ids: IdVectors, lineage: str, step: int, ranker: Ranker | None = None
    ) -> None:
        self.tower = tower
        self.ranker = ranker or Ranker()
        self.ids = ids
        self.lineage = lineage
        self.step = step

    @classmethod
    def day_zero(cls, seed: int, dim: int = DIM, lineage: str | None = None) -> Self:
        """The model before any training: weights set by hand, id vectors as they are born."""
        config = TowerConfig(dim=dim)
        tower = Tower(config)
        set_day_zero(tower)
        return cls(
            tower=tower,
            ids=IdVectors(config.id_dim, config.sign_dim, seed, config.born),
            lineage=lineage if lineage is not None else day_zero_lineage(seed, dim),
            step=0,
        )

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Reads what `save` or a trainer's `save` wrote; see `CheckpointError` for refusals."""
        return cls.from_checkpoint(checkpoint.read(Path(path), SCHEMA.hash))

    @classmethod
    def from_checkpoint(cls, saved: Checkpoint) -> Self:
        config = saved.header.tower
        tower = Tower(config)
        with torch.no_grad():
            for name, parameter in tower.named_parameters():
                parameter.copy_(
                    torch.from_numpy(saved.array(f"tower.{name}", tuple(parameter.shape), np.float32))
                )
        ids = IdVectors(config.id_dim, config.sign_dim, saved.header.seed, config.born)
        names = _unpack(saved.array("ids.names", (-1,), np.uint8), saved.array("ids.ends", (-1,), np.int64))
        rows, free = len(names), saved.array("ids.free", (-1,), np.int64).tolist()
        if set(free) - {row for row, name in enumerate(names) if name is None}:
            raise DamageError("ids.free names a row that is an account's, or none")
        ids.restore(
            names=names,
            free=free,
            target=saved.array("ids.target", (rows, config.id_dim), np.float32),  # type: ignore[arg-type]  # checked
            source=saved.array("ids.source", (rows, config.id_dim), np.float32),  # type: ignore[arg-type]  # checked
            squares=saved.array("ids.squares", (rows, 2), np.float32),  # type: ignore[arg-type]  # checked
            used=saved.array("ids.used", (rows,), np.int64),  # type: ignore[arg-type]  # checked
        )
        return cls(tower, ids, saved.header.lineage, saved.header.step, Ranker.restored(saved))

    def save(self, path: Path | str) -> None:
        """Writes weights and id vectors; a round trip is bit-equal."""
        checkpoint.write(Path(path), self.header(), self.arrays())

    def header(self) -> Header:
        return Header(
            lineage=self.lineage,
            step=self.step,
            schema_hash=self.schema_hash,
            tower=self.tower.config,
            seed=self.ids.seed,
            created_by=f"kithstream {version('kithstream')}",
            ranker_hash=PAIRS.hash,
        )

    def arrays(self) -> dict[str, Array]:
        """The arrays that `save` writes."""
        return self.capture()()

    def capture(self) -> Callable[[], dict[str, Array]]:
        """Copies the model as it is; what it returns makes `arrays` of the copy, later and in any thread."""
        names = list(self.ids.names)
        rows = len(names)
        copied = {
            **{f"tower.{name}": p.detach().numpy() for name, p in self.tower.named_parameters()},
            "ids.target": self.ids.target[:rows],
            "ids.source": self.ids.source[:rows],
            "ids.squares": self.ids.squares[:rows],
            "ids.used": self.ids.used[:rows],
            **self.ranker.arrays(),
        }
        copied = {name: values.copy() for name, values in copied.items()}
        free = list(self.ids.free)

        def arrays() -> dict[str, Array]:
            packed, ends = checkpoint.packed(names)
            return {"ids.names": packed, "ids.ends": ends, "ids.free": np.array(free, np.int64), **copied}

        return arrays

    def fits(self, delta: Delta) -> None:
        """Refuses a delta whose numbers are not those of this model; where it starts does not matter."""
        delta.check(self.lineage, delta.since)
        sizes = {name: 4 * parameter.numel() for name, parameter in self.tower.named_parameters()}
        if {name: len(data) for name, data in delta.weights.items()} != sizes:
            raise DeltaError("the weights of the delta have other names or sizes than the model's")
        if len(delta.ranker) != PACKED:
            raise DeltaError(f"the delta's ranker has {len(delta.ranker)} bytes, expected {PACKED}")
        shape = (len(delta.accounts), self.ids.dim)
        if not len(delta.target) == len(delta.source) == 4 * shape[0] * shape[1]:
            raise DeltaError(f"the delta's id vectors do not have the shape {shape}")
        for raw in (*delta.weights.values(), delta.target, delta.source):
            if not np.isfinite(np.frombuffer(raw, "<f4")).all():
                raise DeltaError("the delta holds numbers that are not finite")

    def apply(self, delta: Delta) -> None:
        """Moves to the step of a delta; afterwards the model equals the one that made it, in every bit.

        Refused with `DeltaError`, and then unchanged, unless it starts at this lineage and step.
        """
        delta.check(self.lineage, self.step)
        self.fits(delta)
        parameters = dict(self.tower.named_parameters())
        shape = (len(delta.accounts), self.ids.dim)
        with torch.no_grad():
            for name, parameter in parameters.items():
                values = np.frombuffer(delta.weights[name], "<f4").reshape(parameter.shape)
                parameter.copy_(torch.from_numpy(values.copy()))
        self.ranker.unpack(delta.ranker)
        self.ids.forget(delta.expired)
        rows = self.ids.rows_of(delta.accounts)
        self.ids.target[rows] = np.frombuffer(delta.target, "<f4").reshape(shape)
        self.ids.source[rows] = np.frombuffer(delta.source, "<f4").reshape(shape)
        self.step = delta.step

    @property
    def dim(self) -> int:
        return self.tower.config.dim

    @property
    def schema_hash(self) -> str:
        return SCHEMA.hash

    @property
    def norm_bound(self) -> float:
        """No producer vector of the lineage is longer, up to rounding in the last bits."""
        return self.tower.config.norm_bound

    def encode_producers(self, rows: Rows) -> Producers:
        """Vectors of candidates. Bits do not depend on which rows are encoded together."""
        features = producer_features(rows, self.ids)
        return Producers(encode_producers(self.tower, self.ids.tables, features), self.step, features)

    def encode_consumers(self, rows: Rows) -> Consumers:
        """Vectors of those who ask. Bits do not depend on which rows are encoded together."""
        features = consumer_features(rows, self.ids)
        return Consumers(encode_consumers(self.tower, self.ids.tables, features), self.step, features)

    def consumer_features(self, rows: Rows) -> ConsumerFeatures:
        """What an example is made of, without the vectors. Valid until id vectors expire."""
        return consumer_features(rows, self.ids)


def _unpack(data: Array, ends: Array) -> list[str | None]:
    raw, stops = data.tobytes(), ends.tolist()
    starts = [0, *stops[:-1]]
    if not stops or stops[-1] != len(raw) or any(a > b for a, b in zip(starts, stops, strict=True)):
        raise DamageError(
            f"the ids end at {stops[-1:]}, their bytes at {len(raw)}, or not one after the other"
        )
    try:
        return [raw[a:b].decode() or None for a, b in zip(starts, stops, strict=True)]
    except UnicodeDecodeError as error:
        raise DamageError(f"the ids are not UTF-8: {error}") from error
