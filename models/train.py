"""Online training: one step per micro-batch of follows, on features as they were before the events.

The loss is a sampled softmax over what the account could have followed instead: those who follow it and
whom it does not follow, and drawn negatives. Candidates are read as they were last encoded, aged or not, so
training sees what serving sees. A model is a function of the order of examples, their batches and the seed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple, Self

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kithstream.models import checkpoint
from kithstream.models.checkpoint import DamageError
from kithstream.models.delta import Delta
from kithstream.models.encode import one_thread
from kithstream.models.features import (
    SCHEMA,
    ConsumerFeatures,
    ProducerFeatures,
)
from kithstream.models.ids import NOBODY, IdTables
from kithstream.models.losses import sampled_softmax
from kithstream.models.model import Model
from kithstream.models.producers import ProducerTable
from kithstream.models.ranker import PAIRS, Ranked
from kithstream.models.sampling import Negatives, Sample, SamplingConfig
from kithstream.models.tower import ConsumerBatch, ProducerBatch

Rows32 = NDArray[np.int32]

# Fields that hold rows of the id vectors.
PRODUCER_ROWS: Final = ("rows", "followers", "followees")
CONSUMER_ROWS: Final = ("rows", "unreciprocated", "followers", "followees", "engaged", "avoided")


class TrainerConfig(msgspec.Struct, frozen=True):
    """How the trainer steps: Adagrad with these rates, squares starting at `start`."""

    rate: float = 0.1
    id_rate: float = 0.1
    bias_rate: float = 0.03
    start: float = 0.1
    sampling: SamplingConfig = SamplingConfig()


class Examples(NamedTuple):
    """Follows, oldest first: who asked, as seen before the follow, and whom it chose."""

    consumers: ConsumerFeatures  # n
    targets: Sequence[str]  # n
    as_of: int  # microseconds


class StepResult(NamedTuple):
    """What a step did. Examples whose target was never encoded are skipped: no answer could hold it."""

    step: int
    loss: float  # mean over the trained examples, NaN if there were none
    trained: int
    skipped: int


class Loss(NamedTuple):
    """A loss, and the leaves beside the tower's parameters that it has gradients for."""

    total: Tensor
    rows: Rows32  # (m,) rows of the id vectors read, nobody first
    target: Tensor  # (m, id_dim)
    source: Tensor  # (m, id_dim)


class _Vectors(NamedTuple):
    producers: Tensor
    consumers: Tensor
    rows: Rows32
    target: Tensor
    source: Tensor


class OnlineTrainer:
    """Steps a model along a stream of follows. Not safe for threads."""

    def __init__(self, model: Model, config: TrainerConfig, rng: np.random.Generator) -> None:
        self.model = model
        self.config = config
        self.rng = rng
        self.producers = ProducerTable()
        self.negatives = Negatives(config.sampling)
        self._parameters = dict(model.tower.named_parameters())
        self.squares = {name: torch.full_like(p, config.start) for name, p in self._parameters.items()}
        self._scratch = np.zeros(1024, np.int32)
        self._published = model.step
        self._changed = np.zeros(1024, np.bool_)  # rows trained since then
        self._expired: list[str] = []

    def observe(
        self, examples: Examples, refused: Rows32 | None = None, ranked: Sequence[Ranked] = ()
    ) -> StepResult:
        """One step on a micro-batch, 32 to 64 examples are cheapest. Raises `model.step` by one.

        `refused` (n, any) are rows that are negatives of their own example, padded with nobody: who was shown and
        ignored. `ranked` is what would have been answered before some of these follows: what the ranker learns from.
        """
        self.model.ranker.observe(ranked)
        ids = self.model.ids
        sources = examples.consumers.rows
        targets = ids.rows_of(examples.targets)
        ids.touch(targets, examples.as_of)
        for name in CONSUMER_ROWS:
            ids.touch(getattr(examples.consumers, name).ravel(), examples.as_of)
        seen = self.producers.written(targets)
        trained = int(seen.sum())
        loss = float("nan")
        if trained:
            consumers = ConsumerFeatures._make(a[seen] for a in examples.consumers)
            with one_thread():
                shown = None if refused is None else refused[seen]
                loss = self._train(consumers, targets[seen], shown) / trained
        self.negatives.push(sources, targets)
        self.model.step += 1
        return StepResult(self.model.step, loss, trained, len(targets) - trained)

    def encoded(self, features: ProducerFeatures, as_of: int) -> None:
        """Takes note of candidates as they were encoded at a time in microseconds."""
        for name in PRODUCER_ROWS:
            self.model.ids.touch(getattr(features, name).ravel(), as_of)
        self.producers.write(features)

    def expire(self, before: int) -> int:
        """Forgets accounts that nothing was read of since a time; returns how many.

        Raises `model.step` by one if any was.

        Features made before hold rows that may be given to others: drop them.
        """
        expired = self.model.ids.expire(before)
        return self._drop(expired) if expired else 0

    def forget(self, accounts: Sequence[str]) -> int:
        """Forgets accounts at once; returns how many were known. Raises `model.step` by one if any was.

        Features made before hold rows that may be given to others: drop them.
        """
        known = self.model.ids.forget(accounts)
        return self._drop(known) if known else 0

    def _drop(self, expired: dict[str, int]) -> int:
        rows = np.array(list(expired.values()), np.int32)
        self._expired.extend(expired)
        self._changed[rows[rows < len(self._changed)]] = False
        self.producers.drop(rows)
        self.negatives.drop(rows)
        self.model.step += 1
        return len(rows)

    def delta(self) -> Delta:
        """What changed since the last call, or since the trainer began; `Model.apply` takes it.

        About 350 bytes an account at 144 dims, and a step changes thousands: publish every few seconds.
        """
        model, ids = self.model, self.model.ids
        rows = np.flatnonzero(self._changed)
        named = sorted((name, int(row)) for row in rows.tolist() if (name := ids.name(row)) is not None)
        order = np.array([row for _, row in named], np.int64)
        delta = Delta(
            lineage=model.lineage,
            schema_hash=model.schema_hash,
            since=self._published,
            step=model.step,
            weights={name: p.detach().numpy().tobytes() for name, p in model.tower.named_parameters()},
            accounts=tuple(name for name, _ in named),
            target=ids.target[order].tobytes(),
            source=ids.source[order].tobytes(),
            ranker=model.ranker.packed(),
            ranker_hash=PAIRS.hash,
            expired=tuple(self._expired),
        )
        self._published = model.step
        self._changed[:] = False
        self._expired = []
        return delta

    def save(self, path: Path | str, beside: Mapping[str, checkpoint.Array] | None = None) -> None:
        """Writes the model and everything that training needs to go on exactly as if it had not stopped.

        `beside` goes into the same file: what has to be as old as the model.
        """
        checkpoint.write(Path(path), self.model.header(), {**(beside or {}), **self.capture()()})

    def capture(self) -> Callable[[], dict[str, checkpoint.Array]]:
        """Copies what `save` writes as it is; what it returns makes arrays of the copy, later and in any thread."""
        model, producers = self.model.capture(), self.producers.capture()
        copied = {
            **{f"squares.{name}": s.numpy().copy() for name, s in self.squares.items()},
            "recent.targets": self.negatives.targets.ordered(),
            "recent.sources": self.negatives.sources.ordered(),
            "rng": np.frombuffer(json.dumps(self.rng.bit_generator.state).encode(), np.uint8),
        }
        return lambda: {**model(), **producers(), **copied}

    @staticmethod
    def saved(path: Path | str) -> bool:
        """True if a checkpoint holds what training goes on from, and not a model alone. Raises CheckpointError."""
        return "rng" in checkpoint.names(Path(path), SCHEMA.hash)

    @classmethod
    def begin(cls, model: Model, config: TrainerConfig, seed: int) -> Self:
        """A trainer at the beginning of a stream."""
        return cls(model, config, np.random.Generator(np.random.PCG64(seed)))

    @classmethod
    def load(cls, path: Path | str, config: TrainerConfig) -> Self:
        """Goes on from what `save` wrote, random numbers included."""
        return cls.restored(checkpoint.read(Path(path), SCHEMA.hash), path, config)

    @classmethod
    def restored(cls, saved: checkpoint.Checkpoint, path: Path | str, config: TrainerConfig) -> Self:
        """`load`, from a checkpoint that was read from `path`."""
        trainer = cls.begin(Model.from_checkpoint(saved), config, 0)
        known = len(trainer.model.ids.names)
        trainer.producers.restore(saved, known)
        for name, squares in trainer.squares.items():
            values = saved.array(f"squares.{name}", tuple(squares.shape), np.float32)
            squares.copy_(torch.from_numpy(values))
        for kind, recent in (
            ("targets", trainer.negatives.targets),
            ("sources", trainer.negatives.sources),
        ):
            recent.restore(saved.rows(f"recent.{kind}", known))  # type: ignore[arg-type]  # checked
        try:
            trainer.rng.bit_generator.state = json.loads(saved.array("rng", (-1,), np.uint8).tobytes())
        except (ValueError, TypeError, KeyError, OverflowError) as error:
            raise DamageError(f"{path} has no state of a PCG64 generator: {error}") from error
        return trainer

    def loss(self, consumers: ConsumerFeatures, targets: Rows32, refused: Rows32 | None = None) -> Loss:
        """Sum of the losses of examples whose targets were encoded. Draws negatives."""
        n = len(targets)
        sample = self.negatives.sample(self.producers.rows, self.rng)
        known = self.producers.written(sample.rows)  # a recent account may not have been encoded yet
        sample = Sample(sample.rows[known], sample.expected[known])
        drawn = len(sample.rows)
        waiting = consumers.unreciprocated  # whom one could follow back; nobody where there is none
        if refused is not None:
            waiting = np.concatenate(
                (waiting, np.where(refused == targets[:, None], NOBODY, refused)), axis=1
            )
        waiting = np.where(self.producers.written(waiting), waiting, NOBODY)
        waiting_rows, waiting_place = _distinct(waiting[waiting != NOBODY])
        candidates = self.producers.read(
            np.concatenate((sample.rows, targets, waiting_rows)).astype(np.int32)
        )
        vectors = self._encode(candidates, consumers)
        scores = vectors.consumers @ vectors.producers.T  # (n, drawn + n + waiting)

        width = waiting.shape[1]
        own = np.zeros((n, width + 1), np.int64)  # columns of one's waiting, then of one's target
        own[:, :-1][waiting != NOBODY] = drawn + n + waiting_place
        own[:, -1] = drawn + np.arange(n)
        own_scores = scores.gather(1, torch.from_numpy(own))
        returned = waiting == targets[:, None]
        no_negative = np.concatenate(
            ((waiting == NOBODY) | returned, self._hits(sample.rows, consumers, targets, waiting)), axis=1
        )
        negatives = torch.cat((own_scores[:, :-1], scores[:, :drawn]), dim=1)
        expected = self.negatives.expected(targets, len(self.producers))
        # Who waits is always among the candidates: the expected count is 1, also where it is the target.
        target_log_q = np.where(returned.any(axis=1), 0.0, np.log(np.maximum(expected, 1e-9)))
        negatives_log_q = np.concatenate((np.zeros(width), np.log(sample.expected)))
        losses = sampled_softmax(
            own_scores[:, -1],
            torch.from_numpy(target_log_q.astype(np.float32)),
            negatives.masked_fill(torch.from_numpy(no_negative), -torch.inf),
            torch.from_numpy(negatives_log_q.astype(np.float32)),
        )
        return Loss(losses.sum(), vectors.rows, vectors.target, vectors.source)

    def _encode(self, candidates: ProducerFeatures, consumers: ConsumerFeatures) -> _Vectors:
        """Vectors that carry gradients, over a copy of just those id vectors that are read."""
        rows, local = self._localise(
            *(getattr(candidates, name) for name in PRODUCER_ROWS),
            *(getattr(consumers, name) for name in CONSUMER_ROWS),
        )
        ids = self.model.ids
        target = torch.from_numpy(ids.target[rows]).requires_grad_()
        source = torch.from_numpy(ids.source[rows]).requires_grad_()
        tables = IdTables(target, source, torch.from_numpy(ids.signs[rows]))
        here, there = local[: len(PRODUCER_ROWS)], local[len(PRODUCER_ROWS) :]
        p = self.model.tower.producers(
            ProducerBatch(**_tensors(candidates, dict(zip(PRODUCER_ROWS, here, strict=True)))), tables
        )
        q = self.model.tower.consumers(
            ConsumerBatch(**_tensors(consumers, dict(zip(CONSUMER_ROWS, there, strict=True)))), tables
        )
        return _Vectors(p, q, rows, target, source)

    def _train(self, consumers: ConsumerFeatures, targets: Rows32, refused: Rows32 | None) -> float:
        loss = self.loss(consumers, targets, refused)
        *gradients, target_gradient, source_gradient = torch.autograd.grad(
            loss.total, [*self._parameters.values(), loss.target, loss.source]
        )
        with torch.no_grad():
            for (name, parameter), gradient in zip(self._parameters.items(), gradients, strict=True):
                rate = self.config.bias_rate if name == "bias" else self.config.rate
                squares = self.squares[name].addcmul_(gradient, gradient)
                parameter.addcdiv_(gradient, squares.sqrt(), value=-rate)
        ids, rows = self.model.ids, loss.rows
        if len(self._changed) < ids.capacity:
            self._changed = np.pad(self._changed, (0, ids.capacity - len(self._changed)))
        for place, (table, change) in enumerate(
            ((ids.target, target_gradient.numpy()), (ids.source, source_gradient.numpy()))
        ):
            change[0] = 0.0  # nobody learns nothing
            squares_of_rows = ids.squares[rows, place] + (change * change).mean(axis=1)
            ids.squares[rows, place] = squares_of_rows
            table[rows] -= (
                change * (self.config.id_rate / np.sqrt(self.config.start + squares_of_rows))[:, None]
            )
            self._changed[rows[change.any(axis=1)]] = True
        return float(loss.total.detach())

    def _localise(self, *arrays: Rows32) -> tuple[Rows32, list[Tensor]]:
        """The distinct rows of arrays, nobody first, and the arrays renumbered to positions in them."""
        flat = np.concatenate([np.zeros(1, np.int32), *(a.ravel() for a in arrays)])
        if len(self._scratch) < self.model.ids.capacity:
            self._scratch = np.zeros(self.model.ids.capacity, np.int32)
        places = np.arange(len(flat), dtype=np.int32)
        self._scratch[flat[::-1]] = places[::-1]  # of a repeated row the first place stays
        firsts = self._scratch[flat]
        distinct = firsts == places
        local = (np.cumsum(distinct, dtype=np.int32) - 1)[firsts]
        parts = np.split(local[1:], np.cumsum([a.size for a in arrays])[:-1])
        renumbered = [torch.from_numpy(part.reshape(a.shape)) for part, a in zip(parts, arrays, strict=True)]
        return flat[distinct], renumbered

    @staticmethod
    def _hits(
        drawn: Rows32, consumers: ConsumerFeatures, targets: Rows32, forced: Rows32
    ) -> NDArray[np.bool_]:
        """(n, drawn) where a drawn row is no negative: the target, the account itself, one it follows,
        or one that is among the forced."""
        others = np.concatenate(
            (
                targets[:, None],
                consumers.rows[:, None],
                consumers.followees,
                consumers.unreciprocated,
                forced,
            ),
            axis=1,
        )
        hits: NDArray[np.bool_] = (others[:, :, None] == drawn).any(axis=1)
        return hits


def _tensors(features: ProducerFeatures | ConsumerFeatures, rows: dict[str, Tensor]) -> dict[str, Tensor]:
    """Features as tensors by field, with some fields replaced."""
    values = features._asdict()
    return {name: rows[name] if name in rows else torch.from_numpy(values[name]) for name in values}


def _distinct(rows: Rows32) -> tuple[Rows32, NDArray[np.int64]]:
    """Distinct rows by first appearance, and where each of `rows` is among them.

    Row numbers depend on what else was asked of the id vectors; an order by number would, too.
    """
    _, first, inverse = np.unique(rows, return_index=True, return_inverse=True)
    order = np.argsort(first)
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    return rows[first[order]], place[inverse]
