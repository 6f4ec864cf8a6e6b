"""The model that a runtime opens with, and the snapshot of what it made."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import NamedTuple

from kithstream.index.errors import SnapshotRefused
from kithstream.models.checkpoint import read_header
from kithstream.models.features import SCHEMA
from kithstream.models.lineage import lineage_of_content
from kithstream.models.model import Model
from kithstream.models.train import OnlineTrainer, TrainerConfig
from kithstream.streams.backup import MODEL
from kithstream.streams.config import Config, ModelConfig
from kithstream.streams.serve.lineages import Lineages
from kithstream.streams.serve.snapshots import Snapshots, Taken, Trail, trail_of
from kithstream.streams.serve.vectors import index_config

_log = logging.getLogger(__name__)


class Opened(NamedTuple):
    """A model, what trains it, and which snapshots are of its own past."""

    model: Model
    trainer: OnlineTrainer | None
    trail: Trail


def open_model(path: Path, section: ModelConfig, lineages: Lineages) -> Opened:
    """Open the model of the settings, else what a runtime's directory serves. Raises CheckpointError."""
    if section.path:
        return load_model(Path(section.path), section)
    saved, serving = path / MODEL, lineages.state.serving
    if serving and not (saved.exists() and read_header(saved, SCHEMA.hash).lineage == serving):
        return load_model(lineages.file(serving), section, serving)  # killed before it was saved
    if saved.exists():
        return load_model(saved, section)
    model = Model.day_zero(section.seed)
    trail = () if section.learn else (f"day-zero {model.lineage}",)
    return Opened(model, _trainer(model, section), trail)


def load_model(path: Path, section: ModelConfig, lineage: str = "") -> Opened:
    """Open a checkpoint; where nothing can be learned on from, learning begins with its weights."""
    trainer: OnlineTrainer | None
    if section.learn and OnlineTrainer.saved(path):
        trainer = OnlineTrainer.load(path, TrainerConfig())
        model = trainer.model
    else:
        model = Model.load(path)
        trainer = _trainer(model, section)
    model.lineage = lineage or model.lineage
    trail = trail_of(path)
    if not section.learn:  # it stays what it is, and every vector is to be of it: none of a step before
        trail = (*(word for word in trail if " " in word), f"file {lineage_of_content(path)}")
    return Opened(model, trainer, trail)


def take_snapshot(snapshots: Snapshots, opened: Opened, config: Config) -> tuple[Taken | None, str]:
    """Return the snapshot that the stores stand on if it fits, and why not if it does not."""
    if config.index.snapshot_seconds <= 0:
        snapshots.discard()
        shutil.rmtree(snapshots.folder, ignore_errors=True)
        return None, ""
    model = opened.model
    facts = config.ranking.ranker
    try:
        return snapshots.load(model, opened.trail, index_config(model, config.index), facts=facts), ""
    except SnapshotRefused as error:
        _log.warning("snapshot %s is refused, every account is encoded: %s", snapshots.named, error)
        snapshots.refused += 1
        snapshots.discard()
        return None, str(error)


def _trainer(model: Model, section: ModelConfig) -> OnlineTrainer | None:
    return OnlineTrainer.begin(model, TrainerConfig(), section.seed) if section.learn else None
