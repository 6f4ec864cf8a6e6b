"""The two towers: one class that trains and serves. Score = consumer vector . producer vector.

A vector is six blocks side by side:

- time and activity: the producer's features; the consumer's W psi, what it makes of each feature;
- quality: a small learned map of rates, engagement and audience; the consumer's view of each of its dims;
- places: fixed directions of languages and countries; the producer's own language mixed with its audience's;
- communities: fixed directions of what the producer and its audience are known for; the consumer's interests,
  less what those are known for whom it avoided;
- signs: r(v), fixed random signs of the id; the consumer's weighted sum of r over those who follow it and whom it
  does not follow (so that reciprocity is a dot product), those it engaged with, and, apart, those it avoided;
- ids: the account's learned vector pooled with those of its newest neighbours, and the sketches of who follows it
  and whom it follows at learned scales: they place an account before its own vector has learned anything.
"""

from __future__ import annotations

from typing import Final

import msgspec
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kithstream.models import directions
from kithstream.models.directions import COMMUNITY_DIM, LANGUAGE_DIM
from kithstream.models.features import AGES, BUCKETS, DENSE, FAMILIES, PSI, QUALITY, SKETCH, UNRECIPROCATED
from kithstream.models.ids import IdTables
from kithstream.models.lineage import DIM

# What each dim of the quality block is about on day zero; training may turn it.
VIEWS: Final[tuple[str, ...]] = ("rejection", "regret", "warmth", "esteem", "audience", "exposure")
FIXED: Final = len(DENSE) + len(VIEWS) + LANGUAGE_DIM + COMMUNITY_DIM


class TowerConfig(msgspec.Struct, frozen=True):
    """Shape of the towers.

    `dim` is the length of a vector. `born` is the largest component of an untrained id vector.
    `norm_bound` is the largest norm of a producer vector: longer ones are shortened to it.
    """

    dim: int = DIM
    born: float = 0.1
    norm_bound: float = 16.0

    @property
    def sign_dim(self) -> int:
        return (self.dim - FIXED + 1) // 2

    @property
    def id_dim(self) -> int:
        return (self.dim - FIXED) // 2


class ProducerBatch(msgspec.Struct, frozen=True):
    """`ProducerFeatures` as tensors; rows refer to the tables passed beside it."""

    rows: Tensor  # (n,) int32
    dense: Tensor  # (n, len(DENSE)) float32
    quality: Tensor  # (n, len(QUALITY)) float32
    buckets: Tensor  # (n, len(TABLES)) int32
    followers: Tensor  # (n, FOLLOWERS) int32
    followees: Tensor  # (n, POOLED_FOLLOWEES) int32
    places: Tensor  # (n, LANGUAGE_DIM) float32
    communities: Tensor  # (n, COMMUNITY_DIM) float32
    sketches: Tensor  # (n, 2 SKETCH) float32


class ConsumerBatch(msgspec.Struct, frozen=True):
    """`ConsumerFeatures` as tensors; rows refer to the tables passed beside it."""

    rows: Tensor  # (n,) int32
    psi: Tensor  # (n, len(PSI)) float32
    unreciprocated: Tensor  # (n, UNRECIPROCATED) int32
    unreciprocated_ages: Tensor  # (n, UNRECIPROCATED) int32
    followers: Tensor  # (n, FOLLOWERS) int32
    followees: Tensor  # (n, FOLLOWEES) int32
    followee_ages: Tensor  # (n, FOLLOWEES) int32
    engaged: Tensor  # (n, ENGAGED) int32
    engaged_families: Tensor  # (n, ENGAGED) int32
    engaged_ages: Tensor  # (n, ENGAGED) int32
    avoided: Tensor  # (n, AVOIDED) int32
    avoided_families: Tensor  # (n, AVOIDED) int32
    avoided_ages: Tensor  # (n, AVOIDED) int32
    avoided_communities: Tensor  # (n, AVOIDED) int32
    known_for: Tensor  # (n,) int32
    languages: Tensor  # (n,) int32
    countries: Tensor  # (n,) int32
    interests: Tensor  # (n, COMMUNITY_DIM) float32
    following: Tensor  # (n, SKETCH) float32


class Tower(nn.Module):
    """Both towers' dense weights. Id vectors are passed in, so that training can pass a part of them."""

    place_directions: Tensor
    community_directions: Tensor
    sketch_map: Tensor

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        if config.id_dim < 4:
            raise ValueError(f"dim is {config.dim}, the fixed blocks alone take {FIXED}")
        self.config = config
        self.attention = nn.Parameter(torch.zeros(len(DENSE), len(PSI)))  # W: a consumer's view of a feature
        self.quality = nn.Parameter(torch.zeros(len(VIEWS), len(QUALITY)))  # the views of a producer
        self.demand = nn.Parameter(torch.zeros(len(VIEWS), len(PSI)))  # what a consumer makes of each
        self.bias = nn.Parameter(torch.zeros(BUCKETS, 1))
        self.position = nn.Parameter(torch.zeros(UNRECIPROCATED))  # weight of the i-th newest to follow back
        self.age = nn.Parameter(torch.zeros(AGES))  # and of its age
        self.inclination = nn.Parameter(torch.zeros(len(PSI)))  # and of who the consumer is
        self.engaged_family = nn.Parameter(torch.zeros(FAMILIES))  # weight of who was engaged with, and how,
        self.engaged_age = nn.Parameter(torch.zeros(AGES))  # times what is left of it at this age
        self.avoided_family = nn.Parameter(torch.zeros(FAMILIES))  # the same of who was avoided
        self.avoided_age = nn.Parameter(torch.zeros(AGES))
        self.followee_age = nn.Parameter(torch.zeros(AGES))  # added to c2 for a followee of this age
        self.pooling = nn.Parameter(torch.zeros(6))  # c0..c3 of the id blocks, then of engaged and avoided
        self.sketch = nn.Parameter(torch.zeros(3))  # of a producer's followers and followees; of a consumer's
        self.language = nn.Parameter(torch.zeros(len(PSI)))  # how much a consumer wants its own language,
        self.country = nn.Parameter(torch.zeros(1))  # its own country,
        self.community = nn.Parameter(torch.zeros(3))  # its interests, what it is known for, what it avoided
        for name, table in (("place", directions.PLACE), ("community", directions.COMMUNITY)):
            self.register_buffer(f"{name}_directions", torch.from_numpy(table.copy()), persistent=False)
        # Fixed: learned maps of sketches cost recall, since every account's id vector meets them.
        self.register_buffer("sketch_map", torch.eye(config.id_dim, SKETCH), persistent=False)

    def producers(self, batch: ProducerBatch, ids: IdTables) -> Tensor:
        """(n, dim) vectors of candidates."""
        sketch = self.sketch[0] * batch.sketches[:, :SKETCH] + self.sketch[1] * batch.sketches[:, SKETCH:]
        learned = (
            ids.target.index_select(0, batch.rows)
            + self.pooling[0] * _mean(batch.followers, ids.source)
            + self.pooling[1] * _mean(batch.followees, ids.target)
            + F.linear(sketch, self.sketch_map)
        )
        vectors = torch.cat(
            (
                batch.dense[:, :-1],
                F.embedding_bag(batch.buckets, self.bias, mode="sum"),
                F.linear(batch.quality, self.quality),
                batch.places,
                batch.communities,
                self._signs(batch.rows, ids),
                learned,
            ),
            dim=1,
        )
        norms = vectors.norm(dim=1, keepdim=True)
        bound: Tensor = vectors * (self.config.norm_bound / norms.clamp(min=self.config.norm_bound))
        return bound

    def consumers(self, batch: ConsumerBatch, ids: IdTables) -> Tensor:
        """(n, dim) vectors of those who ask."""
        returning = (
            self.position
            + _each(self.age, batch.unreciprocated_ages)
            + (batch.psi * self.inclination).sum(dim=1, keepdim=True)
        )  # (n, UNRECIPROCATED); nobody has no signs
        engaging = _each(self.engaged_family, batch.engaged_families) * _each(
            self.engaged_age, batch.engaged_ages
        )
        avoiding = _each(self.avoided_family, batch.avoided_families) * _each(
            self.avoided_age, batch.avoided_ages
        )
        others = torch.cat((batch.unreciprocated, batch.engaged, batch.avoided), dim=1)
        weights = torch.cat((returning, engaging, avoiding), dim=1)
        signs = self._signs(others.flatten(), ids).view(*others.shape, -1)
        learned = (
            ids.source.index_select(0, batch.rows)
            + _weighted(
                batch.followees, self.pooling[2] + _each(self.followee_age, batch.followee_ages), ids.target
            )
            + self.pooling[3] * _mean(batch.followers, ids.source)
            + self.pooling[4] * _weighted(batch.engaged, engaging, ids.target)
            + self.pooling[5] * _weighted(batch.avoided, avoiding, ids.target)
            + self.sketch[2] * F.linear(batch.following, self.sketch_map)
        )
        wanted = (batch.psi * self.language).sum(dim=1, keepdim=True)
        places = wanted * self.place_directions.index_select(0, batch.languages)
        places = places + self.country * self.place_directions.index_select(0, batch.countries)
        known = torch.cat((batch.known_for.unsqueeze(1), batch.avoided_communities), dim=1)
        likes = torch.cat(
            (self.community[1].expand(len(known), 1), self.community[2] * avoiding), dim=1
        )  # (n, 1 + AVOIDED)
        communities = self.community[0] * batch.interests + _sum(known, likes, self.community_directions)
        return torch.cat(
            (
                F.linear(batch.psi, self.attention),
                F.linear(batch.psi, self.demand),
                places,
                communities,
                (weights.unsqueeze(2) * signs).sum(dim=1),
                learned,
            ),
            dim=1,
        )

    def _signs(self, rows: Tensor, ids: IdTables) -> Tensor:
        scale = float(np.float32(self.config.sign_dim**-0.5))
        return ids.signs.index_select(0, rows).to(torch.float32) * scale


def _each(weights: Tensor, places: Tensor) -> Tensor:
    """The weight at each place, in the shape of the places."""
    return weights.index_select(0, places.flatten()).view(places.shape)


def _mean(rows: Tensor, table: Tensor) -> Tensor:
    """Mean of the rows that are somebody; row 0 is nobody and is zero in every table."""
    total = F.embedding_bag(rows, table, mode="sum")
    return total / (rows != 0).sum(dim=1, keepdim=True).clamp(min=1)


def _weighted(rows: Tensor, weights: Tensor, table: Tensor) -> Tensor:
    """The same with a weight for each row."""
    return _sum(rows, weights, table) / (rows != 0).sum(dim=1, keepdim=True).clamp(min=1)


def _sum(rows: Tensor, weights: Tensor, table: Tensor) -> Tensor:
    return F.embedding_bag(rows, table, mode="sum", per_sample_weights=weights)
