"""Training off line: epochs over batches, stopped early, resumed after a kill to the same bytes.

Whatever the network is: an objective turns it and a batch into a loss. A step is a function of the weights, the
optimiser's state, its batch and the seed, so a run that was killed and resumed ends as one that was not, bit for
bit, wherever the device computes the same sums twice (CPU does; CUDA does where its operations are deterministic).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol, Self, TypeVar

import msgspec
import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from kithstream.models.checkpoint import CheckpointError, DamageError, replace

FORMAT: Final = 1
GENTLE: Final = 10.0  # a fine-tuning's rate is so many times lower: section 6.2 of the IRS 2020 paper


class FitConfig(msgspec.Struct, frozen=True):
    """How a network is trained.

    rate: of Adam, or of the optimiser that is given.
    epochs: at most.
    patience: epochs without a better validation before it ends; 0 for never.
    seed: of what the network draws in training, as dropout; batches have their own.
    save_steps: steps between checkpoints, 0 for one an epoch.
    """

    rate: float = 0.003
    epochs: int = 20
    patience: int = 3
    seed: int = 0
    save_steps: int = 0

    def gentle(self) -> FitConfig:
        """For fine-tuning what was trained so: a tenth of the rate, one epoch."""
        return msgspec.structs.replace(self, rate=self.rate / GENTLE, epochs=1, patience=0)


class Movable(Protocol):
    """A batch."""

    def to(self, device: torch.device) -> Self:
        """The same on a device."""
        ...


Network = TypeVar("Network", bound=nn.Module)
Batch_co = TypeVar("Batch_co", bound=Movable, covariant=True)
Batch = TypeVar("Batch", bound=Movable)


class Batches(Protocol[Batch_co]):
    """Where batches come from: arrays in memory, files mapped into it, a stream that can be read again."""

    def epoch(self, number: int, start: int) -> Iterator[Batch_co]:
        """The batches of an epoch from one on; the same whenever asked."""
        ...


class Progress(NamedTuple):
    """What has been done so far."""

    epoch: int
    steps: int  # of all epochs
    loss: float  # mean over the epoch so far
    metric: float | None  # of the validation, at an epoch's end


class Fitted(NamedTuple):
    """What a training came to."""

    steps: int
    epochs: int
    best_epoch: int  # whose weights the network has; the last one without validation
    metric: float | None  # of that epoch
    losses: tuple[float, ...]  # mean of each epoch
    metrics: tuple[float, ...]  # of each epoch, if validated


class _Place(msgspec.Struct):
    """How far a training is: everything of its state that is no tensor."""

    task: str
    config: FitConfig
    epoch: int = 0
    step: int = 0  # of the epoch
    steps: int = 0
    best_epoch: int = -1
    best: float | None = None
    losses: list[float] = []
    metrics: list[float] = []
    done: bool = False
    format: int = FORMAT


def adam(parameters: Iterable[nn.Parameter], rate: float) -> Optimizer:
    """Kingma and Ba 2014 (arXiv:1412.6980)."""
    return Adam(parameters, lr=rate)


def fit(
    network: Network,
    objective: Callable[[Network, Batch], Tensor],
    batches: Batches[Batch],
    config: FitConfig,
    *,
    validate: Callable[[Network], float] | None = None,
    device: torch.device | str = "cpu",
    optimiser: Callable[[Iterable[nn.Parameter], float], Optimizer] = adam,
    on_progress: Callable[[Progress], None] | None = None,
    path: Path | None = None,
    task: str = "",
) -> Fitted:
    """Trains a network in place and moves it to the device.

    validate: higher is better; the network ends with the weights of the best epoch, the earliest of equals.
    on_progress: told at every step if `config.save_steps`, after the step was saved, and at every epoch's end.
    path: where the state is kept. If it is there, training goes on from it; what it says of config and task must
        be what is asked. A training that is complete is read, not repeated.
    task: the caller's own words for data and objective.

    `CheckpointError` if the file is of another training, `DamageError` if it cannot be used.
    """
    device = torch.device(device)
    network.to(device)
    training = _Training(network, optimiser(network.parameters(), config.rate), _Place(task, config), device)
    if path is not None and path.exists():
        training.load(path)
    place = training.place
    while not place.done:
        for batch in batches.epoch(place.epoch, place.step):
            training.step(objective, batch.to(device))
            if config.save_steps and place.steps % config.save_steps == 0:
                if path is not None:
                    training.save(path)
                if on_progress is not None:
                    on_progress(training.progress(None))
        metric = training.end_epoch(validate)
        if path is not None:
            training.save(path)
        if on_progress is not None:
            on_progress(Progress(place.epoch - 1, place.steps, place.losses[-1], metric))
    return training.end()


class _Training:
    """A training on its way."""

    def __init__(self, network: nn.Module, optimiser: Optimizer, place: _Place, device: torch.device) -> None:
        self.network = network
        self.optimiser = optimiser
        self.place = place
        self.device = device
        self.total = torch.zeros((), dtype=torch.float64, device=device)  # of the epoch's losses
        self.kept: dict[str, Tensor] = {}  # the best epoch's weights

    def step(self, objective: Callable[[Any, Any], Tensor], batch: Movable) -> None:
        place = self.place
        self.network.train()
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(_seed(place.config.seed, place.steps))
            loss = objective(self.network, batch)
            self.optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]  # torch ships it so
            self.optimiser.step()
        self.total += loss.detach()
        place.step += 1
        place.steps += 1

    def end_epoch(self, validate: Callable[[Any], float] | None) -> float | None:
        """Validates, keeps the weights if they are better, says whether it is over."""
        place, config = self.place, self.place.config
        if place.step == 0:
            raise ValueError(f"epoch {place.epoch} has no batch")
        place.losses.append(self.progress(None).loss)
        metric = None
        if validate is not None:
            self.network.eval()
            with torch.inference_mode():
                metric = validate(self.network)
            if math.isnan(metric):
                raise ValueError(f"the validation of epoch {place.epoch} is nan")
            place.metrics.append(metric)
            if place.best is None or metric > place.best:
                place.best, place.best_epoch = metric, place.epoch
                self.kept = {name: t.detach().clone() for name, t in self.network.state_dict().items()}
        else:
            place.best_epoch = place.epoch
        waited = place.epoch - place.best_epoch
        place.epoch, place.step = place.epoch + 1, 0
        self.total.zero_()
        place.done = place.epoch >= config.epochs or (config.patience > 0 and waited >= config.patience)
        return metric

    def end(self) -> Fitted:
        place = self.place
        if self.kept:
            self.network.load_state_dict(self.kept)
        self.network.eval()
        return Fitted(
            place.steps, place.epoch, place.best_epoch, place.best, tuple(place.losses), tuple(place.metrics)
        )

    def progress(self, metric: float | None) -> Progress:
        place = self.place
        return Progress(place.epoch, place.steps, float(self.total) / max(1, place.step), metric)

    def save(self, path: Path) -> None:
        tensors = {
            "total": self.total,
            **{f"weights.{name}": tensor for name, tensor in self.network.state_dict().items()},
            **{f"kept.{name}": tensor for name, tensor in self.kept.items()},
            **self._moments(),
        }
        data = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
        replace(path, save(data, {"kithstream.fit": msgspec.json.encode(self.place).decode()}))

    def load(self, path: Path) -> None:
        try:
            with safe_open(path, framework="pt") as file:
                told = (file.metadata() or {}).get("kithstream.fit")
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
            place = msgspec.json.decode(told or "", type=_Place)
        except (SafetensorError, msgspec.MsgspecError) as error:
            raise DamageError(f"{path} is no checkpoint of a training: {error}") from error
        for field in ("format", "task", "config"):
            asked, found = getattr(self.place, field), getattr(place, field)
            if asked != found:
                raise CheckpointError(f"{path} was written with {field} {found}, asked is {asked}")
        weights = _under("weights.", tensors)
        self._check(path, weights)
        self.network.load_state_dict(weights)
        self.kept = {name: t.to(self.device) for name, t in _under("kept.", tensors).items()}
        if self.kept:
            self._check(path, self.kept)
        if "total" not in tensors:
            raise DamageError(f"{path} has no total")
        self.total.copy_(tensors["total"])
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in _under("optimiser.", tensors).items():
            number, _, key = name.partition(".")
            state.setdefault(int(number), {})[key] = tensor
        self.optimiser.load_state_dict({**self.optimiser.state_dict(), "state": state})
        self.place = place

    def _moments(self) -> dict[str, Tensor]:
        state = self.optimiser.state_dict()["state"]
        return {f"optimiser.{n}.{key}": tensor for n, kept in state.items() for key, tensor in kept.items()}

    def _check(self, path: Path, weights: Mapping[str, Tensor]) -> None:
        own = {name: tuple(tensor.shape) for name, tensor in self.network.state_dict().items()}
        found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
        for name in sorted(own.keys() | found.keys()):
            if own.get(name) != found.get(name):
                raise CheckpointError(
                    f"{path}: {name} is {found.get(name)}, the network's is {own.get(name)}"
                )


def _seed(seed: int, steps: int) -> int:
    return int(np.random.SeedSequence((seed, steps)).generate_state(1, np.uint64)[0] >> 1)


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
