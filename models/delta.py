"""What a trainer publishes: the weights and the id vectors that changed since it last did."""

from __future__ import annotations

import msgspec

from kithstream.models.features import SCHEMA
from kithstream.models.ranker import PAIRS


class DeltaError(ValueError):
    """A delta that does not fit the model: of another lineage, schema or step, or of another shape."""


class Delta(msgspec.Struct, frozen=True):
    """The way from one step of a lineage to a later one. Numbers are float32, the ranker's float64, little endian.

    `expired` accounts are forgotten before the others are set.
    """

    lineage: str
    schema_hash: str
    since: int  # step of the model that it applies to
    step: int  # step of the model that comes out
    weights: dict[str, bytes]
    accounts: tuple[str, ...]
    target: bytes  # (accounts, id_dim)
    source: bytes  # (accounts, id_dim)
    ranker: bytes  # `Ranker.packed`
    ranker_hash: str
    expired: tuple[str, ...] = ()

    def check(self, lineage: str, step: int) -> None:
        """Refuses a delta that does not start where the model stands."""
        if self.lineage != lineage:
            raise DeltaError(f"the delta is of lineage {self.lineage}, the model of {lineage}")
        if self.schema_hash != SCHEMA.hash:
            raise DeltaError(f"the delta is for schema {self.schema_hash}, this build has {SCHEMA.hash}")
        if self.ranker_hash != PAIRS.hash:
            raise DeltaError(
                f"the delta's ranker is for schema {self.ranker_hash}, this build has {PAIRS.hash}"
            )
        if self.since != step:
            raise DeltaError(f"the delta starts at step {self.since}, the model is at step {step}")
