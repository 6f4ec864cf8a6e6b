"""The model that a lineage begins with: what is learned of it comes from the topic of its steps."""

from __future__ import annotations

from pathlib import Path

from kithstream.models.model import Model
from kithstream.streams.config import ModelConfig


def base_model(section: ModelConfig) -> Model:
    """Return a checkpoint's model, or the day-zero one where no checkpoint is named."""
    return Model.load(Path(section.path)) if section.path else Model.day_zero(section.seed)
