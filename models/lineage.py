"""The name of a model's vector space. Vectors of two lineages are never compared.

Imports torch for a checkpoint alone: whoever only needs the name of the day-zero model has it at once.
"""

from __future__ import annotations

from hashlib import blake2b
from pathlib import Path
from typing import Final

from kithstream.models.features import SCHEMA

DIM: Final = 144  # of the day-zero model


def day_zero_lineage(seed: int, dim: int = DIM) -> str:
    """Return the lineage of the model before any training."""
    return blake2b(f"{SCHEMA.hash}/{dim}/{seed}".encode(), digest_size=6).hexdigest()


def lineage_of_content(path: Path) -> str:
    """Return the lineage that a file is published as: the same content is the same lineage."""
    return blake2b(path.read_bytes(), digest_size=6).hexdigest()


def lineage_of(path: str, seed: int) -> str:
    """Return the lineage of a checkpoint, or the day-zero model's if `path` is empty.

    Refused with `CheckpointError` or OSError as loading the checkpoint would be.
    """
    if not path:
        return day_zero_lineage(seed)
    from kithstream.models.checkpoint import read_header

    return read_header(Path(path), SCHEMA.hash).lineage
