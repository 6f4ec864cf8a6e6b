"""The two towers: one class that trains and serves. Score = consumer vector . producer vector.

A vector is four blocks side by side:

- time and activity: the producer's features; the consumer's W psi, what it makes of each feature;
- signs: r(v), fixed random signs of the id; the consumer's weighted sum of r over those who follow it and
  whom it does not follow, so that reciprocity is a dot product;
- ids: the account's learned vector pooled with those of its newest neighbours;
- language: a fixed direction per language.
"""

from __future__ import annotations

from typing import Final

import msgspec
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kithstream.models.features import AGES, BUCKETS, DENSE, PSI, UNRECIPROCATED
from kithstream.models.ids import IdTables

LANGUAGE_DIM: Final = 8
LANGUAGES: Final = 512  # directions held; codes are taken modulo this


class TowerConfig(msgspec.Struct, frozen=True):
    """Shape of the towers.

    `dim` is the length of a vector. `born` is the largest component of an untrained id vector.
    `norm_bound` is the largest norm of a producer vector: longer ones are shortened to it.
    """

    dim: int = 128
    born: float = 0.1
    norm_bound: float = 16.0

    @property
    def sign_dim(self) -> int:
        return (self.dim - len(DENSE) - LANGUAGE_DIM + 1) // 2

    @property
    def id_dim(self) -> int:
        return (self.dim - len(DENSE) - LANGUAGE_DIM) // 2


class ProducerBatch(msgspec.Struct, frozen=True):
    """`ProducerFeatures` as tensors; rows refer to the tables passed beside it."""

    rows: Tensor  # (n,) int32
    dense: Tensor  # (n, len(DENSE)) float32
    buckets: Tensor  # (n, len(TABLES)) int32
    followers: Tensor  # (n, FOLLOWERS) int32
    followees: Tensor  # (n, POOLED_FOLLOWEES) int32
    languages: Tensor  # (n,) int32


class ConsumerBatch(msgspec.Struct, frozen=True):
    """`ConsumerFeatures` as tensors; rows refer to the tables passed beside it."""

    rows: Tensor  # (n,) int32
    psi: Tensor  # (n, len(PSI)) float32
    unreciprocated: Tensor  # (n, UNRECIPROCATED) int32
    unreciprocated_ages: Tensor  # (n, UNRECIPROCATED) int32
    followers: Tensor  # (n, FOLLOWERS) int32
    followees: Tensor  # (n, FOLLOWEES) int32
    languages: Tensor  # (n,) int32


class Tower(nn.Module):
    """Both towers' dense weights. Id vectors are passed in, so that training can pass a part of them."""

    directions: Tensor

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        if config.id_dim < 4:
            raise ValueError(f"dim is {config.dim}, the fixed blocks alone take {len(DENSE) + LANGUAGE_DIM}")
        self.config = config
        self.attention = nn.Parameter(torch.zeros(len(DENSE), len(PSI)))  # W: a consumer's view of a feature
        self.bias = nn.Parameter(torch.zeros(BUCKETS, 1))
        self.position = nn.Parameter(torch.zeros(UNRECIPROCATED))  # weight of the i-th newest to follow back
        self.age = nn.Parameter(torch.zeros(AGES))  # and of its age
        self.inclination = nn.Parameter(torch.zeros(len(PSI)))  # and of who the consumer is
        self.pooling = nn.Parameter(torch.zeros(4))  # c0..c3 of the id blocks
        self.language = nn.Parameter(torch.zeros(1))
        self.register_buffer("directions", _directions(), persistent=False)

    def producers(self, batch: ProducerBatch, ids: IdTables) -> Tensor:
        """(n, dim) vectors of candidates."""
        bias = F.embedding_bag(batch.buckets, self.bias, mode="sum")
        learned = (
            ids.target.index_select(0, batch.rows)
            + self.pooling[0] * _mean(batch.followers, ids.source)
            + self.pooling[1] * _mean(batch.followees, ids.target)
        )
        vectors = torch.cat(
            (
                batch.dense[:, :-1],
                bias,
                self._signs(batch.rows, ids),
                learned,
                self.directions.index_select(0, batch.languages % LANGUAGES),
            ),
            dim=1,
        )
        norms = vectors.norm(dim=1, keepdim=True)
        bound: Tensor = vectors * (self.config.norm_bound / norms.clamp(min=self.config.norm_bound))
        return bound

    def consumers(self, batch: ConsumerBatch, ids: IdTables) -> Tensor:
        """(n, dim) vectors of those who ask."""
        weights = (
            self.position
            + self.age[batch.unreciprocated_ages]
            + (batch.psi * self.inclination).sum(dim=1, keepdim=True)
        )  # (n, UNRECIPROCATED); nobody has no signs
        signs = self._signs(batch.unreciprocated.flatten(), ids).view(*weights.shape, -1)
        learned = (
            ids.source.index_select(0, batch.rows)
            + self.pooling[2] * _mean(batch.followees, ids.target)
            + self.pooling[3] * _mean(batch.followers, ids.source)
        )
        directions = self.directions.index_select(0, batch.languages % LANGUAGES)
        return torch.cat(
            (
                F.linear(batch.psi, self.attention),
                (weights.unsqueeze(2) * signs).sum(dim=1),
                learned,
                self.language * directions,
            ),
            dim=1,
        )

    def _signs(self, rows: Tensor, ids: IdTables) -> Tensor:
        scale = float(np.float32(self.config.sign_dim**-0.5))
        return ids.signs.index_select(0, rows).to(torch.float32) * scale


def _mean(rows: Tensor, table: Tensor) -> Tensor:
    """Mean of the rows that are somebody; row 0 is nobody and is zero in every table."""
    total = F.embedding_bag(rows, table, mode="sum")
    return total / (rows != 0).sum(dim=1, keepdim=True).clamp(min=1)


def _directions() -> Tensor:
    """(LANGUAGES, LANGUAGE_DIM) unit vectors, the same in every model; the unknown language has none."""
    table = np.random.Generator(np.random.PCG64(1729)).standard_normal((LANGUAGES, LANGUAGE_DIM))
    table /= np.linalg.norm(table, axis=1, keepdims=True)
    table[0] = 0.0
    return torch.from_numpy(table.astype(np.float32))
