"""The towers from a folder of examples: what the online trainer does along a stream, for several epochs.

An epoch goes over the folder in its order. The last share of the positives, by time, is not trained on: its loss says
when to stop. Then impressions that were ignored are learned, at a tenth of the rates for one epoch: each as a negative
of the next positive example of the account that it was shown to. That is kept if the loss on the last share is not
worse for it, since it is the loss against accounts at random that serving lives by.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from kithstream.models.encode import one_thread
from kithstream.models.features import SCHEMA
from kithstream.models.ids import NOBODY
from kithstream.models.model import Model
from kithstream.models.train import Examples, OnlineTrainer, TrainerConfig
from kithstream.streams.config import ModelConfig
from kithstream.streams.errors import UnusableSource
from kithstream.streams.examples import folder
from kithstream.streams.examples.batches import IGNORED, POSITIVE, ExampleBatch, cut, pick, some
from kithstream.streams.examples.columns import positive_times
from kithstream.streams.examples.folder import Manifest, Round
from kithstream.streams.manifest import flush

REFUSED: Final = 8  # ignored accounts of one example
_STEP: Final = "fit.json"
_BEST: Final = "best.safetensors"
_NEVER: Final = 1 << 62


class FitConfig(msgspec.Struct, frozen=True):
    """How long to fit, and when to stop."""

    epochs: int = 3
    held: float = 0.1  # last share of the positives, by time, that is not trained on
    patience: int = 1  # epochs without a lower loss on it after which fitting stops
    tune: bool = True  # on ignored impressions
    tune_rate: float = 0.1  # of the rates before


class Fitted(msgspec.Struct, frozen=True):
    """What fitting did."""

    out: str
    lineage: str
    step: int
    examples: int  # positives trained on, in all epochs
    losses: Sequence[float]  # on the last share, after each epoch
    best: int  # the epoch whose model is kept, from 1
    refused: int  # ignored impressions learned from
    tuned_loss: float | None  # after them; None without
    tuned: bool  # whether that model is the one
    seconds: float


class _Step(msgspec.Struct):
    """Where fitting stands: behind a part, in an epoch."""

    of: str  # what is fitted, and how
    cut: int = 0  # microseconds: positives after it are the last share
    epoch: int = 0  # that is under way; the tuning is the one behind the last
    part: int = 0
    trainer: str = ""  # file
    losses: list[float] = []
    best: int = 0
    stopped: bool = False  # no epoch is to come
    tuned_loss: float | None = None
    done: bool = False
    examples: int = 0
    refused: int = 0
    loss: float = 0.0  # sum over the last share, in this epoch
    held: int = 0  # positives that it is of
    pending: dict[str, list[str]] = {}  # ignored accounts of consumers, newest last


def fit(
    path: Path,
    out: Path,
    model: ModelConfig,
    config: FitConfig,
    heard: Callable[[int], object] = lambda rows: None,
) -> Fitted:
    """Fit a model to a folder of examples and write it, or go on where a fit that was killed stopped.

    Begins with `model.path`, or the day-zero model; `model.seed` and `model.example_batch` are as online. The result
    does not depend on where it was killed. `heard` is told the rows read. Raises UnusableSource for a folder
    without positives, or a broken fit of something else.
    """
    return _Fit(path, out, model, config, heard).run()


class _Fit:
    """One fit, and its directory of what is needed to go on."""

    def __init__(
        self, path: Path, out: Path, model: ModelConfig, config: FitConfig, heard: Callable[[int], object]
    ) -> None:
        self._path = path
        self._out = out
        self._model = model
        self._config = config
        self._heard = heard
        self._place = out.with_name(f"{out.name}.fitting")
        self._rates = TrainerConfig()
        self._rows = 0

    def run(self) -> Fitted:
        began = time.perf_counter()
        manifest = folder.load(self._path)
        step, trainer = self._begin(manifest)
        while not step.done:
            self._epoch(manifest, step, trainer)
            trainer = self._turn(step, trainer)
        tuned = step.tuned_loss is not None and step.tuned_loss <= step.losses[step.best]
        best = OnlineTrainer.load(self._place / _BEST, self._rates)
        best.model.lineage = _lineage(step.of)
        best.save(self._out)
        shutil.rmtree(self._place)
        return Fitted(
            out=str(self._out),
            lineage=best.model.lineage,
            step=best.model.step,
            examples=step.examples,
            losses=[round(loss, 6) for loss in step.losses],
            best=step.best + 1,
            refused=step.refused,
            tuned_loss=None if step.tuned_loss is None else round(step.tuned_loss, 6),
            tuned=tuned,
            seconds=round(time.perf_counter() - began, 2),
        )

    # -- epochs ------------------------------------------------------------------------------------------------

    def _epoch(self, manifest: Manifest, step: _Step, trainer: OnlineTrainer) -> None:
        """Go over what is left of an epoch."""
        tuning = step.stopped
        for part in manifest.parts[step.part :]:
            # Draws on the last share are its own, so that every epoch is measured on the same ones.
            drawn = np.random.Generator(np.random.PCG64((self._model.seed, 1, part.number)))
            for found in folder.rounds(self._path, part, trainer.model.ids):
                self._learn(found, step, trainer, drawn, manifest, tuning=tuning)
            step.part = part.number + 1
            if step.part < len(manifest.parts):
                self._save(step, trainer)

    def _learn(
        self,
        found: Round,
        step: _Step,
        trainer: OnlineTrainer,
        drawn: np.random.Generator,
        manifest: Manifest,
        *,
        tuning: bool,
    ) -> None:
        """Learn a round as the online trainer does: examples, then who is gone, then candidates as encoded."""
        if found.examples is not None:
            self._rows += len(found.examples.kinds)
            positives = pick(found.examples, POSITIVE)
            if manifest.made_of["candidates"] != "True" and len(positives.kinds):
                # Only targets are known, each as it is in its own example.
                trainer.producers.write(some(positives.producers, np.flatnonzero(positives.encoded)))
            self._positives(positives, step, trainer, drawn, tuning=tuning)
            if tuning:
                self._ignored(pick(found.examples, IGNORED), step, trainer, manifest)
        if found.candidates is not None:
            self._rows += len(found.candidates.gone)
            gone = found.candidates.gone
            if gone.any():
                names = [
                    trainer.model.ids.name(row) for row in found.candidates.producers.rows[gone].tolist()
                ]
                leaving = [name for name in names if name is not None]
                trainer.forget(leaving)
                for account in leaving:
                    step.pending.pop(account, None)
            trainer.producers.write(some(found.candidates.producers, np.flatnonzero(~gone)))
        self._heard(self._rows)

    def _positives(
        self,
        batch: ExampleBatch,
        step: _Step,
        trainer: OnlineTrainer,
        drawn: np.random.Generator,
        *,
        tuning: bool,
    ) -> None:
        size, ids = self._model.example_batch, trainer.model.ids
        for first in range(0, len(batch.kinds), size):
            part = cut(batch, slice(first, first + size))
            if (held := part.times > step.cut).any():
                where = np.flatnonzero(held)
                self._measure(part, where, step, trainer, drawn)
                left = np.flatnonzero(~held)
                if not len(left):
                    continue
            else:
                left = np.arange(len(part.kinds))
            targets = [ids.name(row) or "" for row in part.producers.rows[left].tolist()]
            examples = Examples(some(part.consumers, left), targets, int(part.as_of.max()))
            if not tuning:
                trainer.observe(examples)
                step.examples += len(left)
                continue
            refused = self._refused(part.consumers.rows[left], targets, step, trainer)
            wanted = np.flatnonzero((refused != NOBODY).any(axis=1))
            if len(wanted):
                chosen = examples._replace(
                    consumers=some(examples.consumers, wanted), targets=[targets[at] for at in wanted]
                )
                trainer.observe(chosen, refused[wanted])
                step.refused += int((refused != NOBODY).sum())

    def _measure(
        self,
        batch: ExampleBatch,
        where: NDArray[np.int64],
        step: _Step,
        trainer: OnlineTrainer,
        drawn: np.random.Generator,
    ) -> None:
        """Add the loss on examples of the last share, which are met and not trained on."""
        consumers, targets = some(batch.consumers, where), batch.producers.rows[where]
        seen = trainer.producers.written(targets)
        if seen.any():
            trainer.rng, kept = drawn, trainer.rng
            with one_thread():
                total = trainer.loss(some(consumers, np.flatnonzero(seen)), targets[seen]).total
            trainer.rng = kept
            step.loss += float(total.detach())
            step.held += int(seen.sum())
        trainer.negatives.push(consumers.rows, targets)

    def _ignored(self, batch: ExampleBatch, step: _Step, trainer: OnlineTrainer, manifest: Manifest) -> None:
        """Remember whom accounts were shown and ignored; only the newest of each."""
        if not len(batch.kinds):
            return
        if manifest.made_of["candidates"] != "True":
            trainer.producers.write(some(batch.producers, np.flatnonzero(batch.encoded)))
        ids = trainer.model.ids
        for consumer, target, at in zip(
            batch.consumers.rows.tolist(), batch.producers.rows.tolist(), batch.times.tolist(), strict=True
        ):
            who, whom = ids.name(consumer), ids.name(target)
            if at <= step.cut and who is not None and whom is not None:
                waiting = step.pending.setdefault(who, [])
                waiting.append(whom)
                del waiting[:-REFUSED]

    def _refused(
        self,
        consumers: NDArray[np.int32],
        targets: Sequence[str],
        step: _Step,
        trainer: OnlineTrainer,
    ) -> NDArray[np.int32]:
        """(n, REFUSED) rows of those whom each consumer ignored since its last example."""
        ids = trainer.model.ids
        rows = np.full((len(consumers), REFUSED), NOBODY, np.int32)
        for place, (consumer, target) in enumerate(zip(consumers.tolist(), targets, strict=True)):
            names = step.pending.pop(ids.name(consumer) or "", ())
            whom = [name for name in dict.fromkeys(names) if name != target and name in ids]
            rows[place, : len(whom)] = ids.rows_of(whom) if whom else []
        return rows

    # -- between epochs ----------------------------------------------------------------------------------------

    def _turn(self, step: _Step, trainer: OnlineTrainer) -> OnlineTrainer:
        """Judge the epoch that has ended, and begin what comes next."""
        loss = (
            step.loss / step.held if step.held else float(-1 - step.epoch)
        )  # without a share the last is best
        config = self._config
        if step.stopped:
            step.tuned_loss = loss if step.held else step.losses[step.best]
            if step.tuned_loss <= step.losses[step.best]:
                trainer.save(self._place / _BEST)
            step.done = True
        else:
            step.losses.append(loss)
            if loss <= min(step.losses):
                step.best = step.epoch
                trainer.save(self._place / _BEST)
            step.epoch += 1
            if step.epoch >= config.epochs or step.epoch - 1 - step.best >= config.patience:
                step.stopped = True
                step.done = not config.tune
        if step.stopped:  # the model of the best epoch is the one to be tuned
            trainer = OnlineTrainer.load(self._place / _BEST, _slower(self._rates, config.tune_rate))
        if not step.done:
            trainer = _again(trainer)
        step.part, step.loss, step.held, step.pending = 0, 0.0, 0, {}
        self._save(step, trainer)
        return trainer

    # -- going on ----------------------------------------------------------------------------------------------

    def _begin(self, manifest: Manifest) -> tuple[_Step, OnlineTrainer]:
        of = msgspec.json.encode(
            [manifest.made_of, manifest.round, manifest.counts, self._config, self._model], order="sorted"
        ).decode()
        file = self._place / _STEP
        if file.exists():
            step = msgspec.json.decode(file.read_bytes(), type=_Step)
            if step.of != of:
                raise UnusableSource(
                    f"{self._place} is of a fit of something else that was broken off; remove it, or go on with that"
                )
            rates = _slower(self._rates, self._config.tune_rate) if step.stopped else self._rates
            self._rows = sum(p.examples + p.candidates for p in manifest.parts[: step.part])
            return step, OnlineTrainer.load(self._place / step.trainer, rates)
        times = np.sort(
            np.concatenate([positive_times(self._path / p.examples_file) for p in manifest.parts])
        )
        if not len(times):
            raise UnusableSource(f"{self._path} holds no positive example")
        first = round(len(times) * (1 - self._config.held))
        border = _NEVER if first == len(times) else int(times[max(first - 1, 0)])
        shutil.rmtree(self._place, ignore_errors=True)
        self._place.mkdir(parents=True)
        section = self._model
        if section.path:
            trainer = OnlineTrainer.load(section.path, self._rates)
        else:
            trainer = OnlineTrainer.begin(Model.day_zero(section.seed), self._rates, section.seed)
        step = _Step(of, cut=border)
        self._save(step, trainer)
        return step, trainer

    def _save(self, step: _Step, trainer: OnlineTrainer) -> None:
        """Write down where fitting stands: the trainer first, then the file that names it."""
        before = step.trainer
        step.trainer = f"{step.epoch}-{int(step.stopped)}-{step.part}.safetensors"
        trainer.save(self._place / step.trainer)
        aside = self._place / f"{_STEP}.writing"
        aside.write_bytes(msgspec.json.encode(step))
        flush(aside)
        os.replace(aside, self._place / _STEP)
        flush(self._place)
        if before and before != step.trainer:
            (self._place / before).unlink(missing_ok=True)


def _slower(rates: TrainerConfig, share: float) -> TrainerConfig:
    return msgspec.structs.replace(
        rates, rate=rates.rate * share, id_rate=rates.id_rate * share, bias_rate=rates.bias_rate * share
    )


def _again(trainer: OnlineTrainer) -> OnlineTrainer:
    """A trainer of the same model at the beginning of a stream: no candidate is encoded, nobody was met."""
    fresh = OnlineTrainer(trainer.model, trainer.config, trainer.rng)
    fresh.squares = trainer.squares
    return fresh


def _lineage(of: str) -> str:
    """The lineage of what was fitted: another one than that of the model it began with."""
    return blake2b(f"{SCHEMA.hash}/{of}".encode(), digest_size=6).hexdigest()
