import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from tests.models import fitting
from tests.models.fitting import ACCOUNTS, CONFIG, CONSUMERS, Towers, batches, in_taste, train

from kithstream.models.checkpoint import CheckpointError, DamageError
from kithstream.models.contrast import Contrast, Contrasts, Engagement, SamplingConfig, Servings, Triplets
from kithstream.models.fit import FitConfig, Progress, fit
from kithstream.models.negatives import Follows


def weights(towers: Towers) -> list[bytes]:
    return [tensor.numpy().tobytes() for tensor in towers.state_dict().values()]


def test_it_learns_and_keeps_the_best_epoch() -> None:
    before = in_taste(Towers().eval())
    towers, fitted = train(None)
    assert before < 0.5 < 0.75 < in_taste(towers)
    assert fitted.metric == max(fitted.metrics) == fitted.metrics[fitted.best_epoch] == in_taste(towers)
    assert len(fitted.metrics) == len(fitted.losses) == fitted.epochs
    assert fitted.steps == fitted.epochs * (len(fitting.follows()[0]) // 32)
    assert fitted.losses[-1] < fitted.losses[0]


def scripted(metrics: list[float]) -> Callable[[Towers], float]:
    left = iter(metrics)
    return lambda _: next(left)


def test_it_stops_after_epochs_of_no_gain() -> None:
    config = FitConfig(epochs=9, patience=2)
    fitted = fit(Towers(), Triplets(), batches(), config, validate=scripted([0.2, 0.5, 0.5, 0.4, 0.9]))
    assert fitted.metrics == (0.2, 0.5, 0.5, 0.4)
    assert (fitted.best_epoch, fitted.metric) == (1, 0.5)
    endless = FitConfig(epochs=5, patience=0)
    fitted = fit(Towers(), Triplets(), batches(), endless, validate=scripted([0.5, 0.4, 0.3, 0.2, 0.1]))
    assert (fitted.epochs, fitted.best_epoch) == (5, 0)


def test_without_validation_the_last_weights_stay() -> None:
    towers = Towers()
    fitted = fit(towers, Triplets(), batches(), FitConfig(epochs=2))
    again = Towers()
    fit(again, Triplets(), batches(), FitConfig(epochs=1))
    assert (fitted.best_epoch, fitted.metric, fitted.metrics) == (1, None, ())
    assert weights(towers) != weights(again)


def test_progress_is_told_at_steps_and_epochs() -> None:
    told: list[Progress] = []
    config = FitConfig(epochs=2, save_steps=4)
    fit(Towers(), Triplets(), batches(), config, validate=in_taste, on_progress=told.append)
    assert [(p.epoch, p.steps, p.metric is None) for p in told] == [
        (0, 4, True), (0, 8, True), (0, 11, False), (1, 12, True), (1, 16, True), (1, 20, True), (1, 22, False),
    ]  # fmt: skip


@pytest.mark.parametrize("die_at", [2, 4, 9])  # within the first epoch, at its end, within the second
def test_a_killed_training_goes_on_to_the_same_bytes(tmp_path: Path, die_at: int) -> None:
    whole, fitted = train(tmp_path / "whole")
    command = [sys.executable, fitting.__file__, str(tmp_path / "killed"), str(die_at)]
    assert subprocess.run(command, timeout=120).returncode == -signal.SIGKILL
    left = (tmp_path / "killed").read_bytes()
    towers, resumed = train(tmp_path / "killed")
    assert resumed == fitted
    assert weights(towers) == weights(whole)
    assert (tmp_path / "killed").read_bytes() == (tmp_path / "whole").read_bytes() != left


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_device_trains_resumes_and_hands_over(tmp_path: Path) -> None:
    """What was begun on the device goes on there from its file, and its weights are read on the CPU."""
    towers, fitted = train(tmp_path / "file", device="cuda")
    assert towers.c.is_cuda
    assert in_taste(towers) > 0.6  # dropout draws otherwise there
    short = msgspec.structs.replace(CONFIG, epochs=1)
    begun, whole = Towers(), Towers()
    for network, path in ((begun, tmp_path / "begun"), (whole, None)):
        fit(network, Triplets(), batches(), short, path=path, device="cuda")
    on_cpu = Towers(seed=5)
    fit(on_cpu, Triplets(), batches(), short, path=tmp_path / "begun")
    assert weights(on_cpu) == weights(begun.cpu())
    torch.testing.assert_close(begun.state_dict(), whole.cpu().state_dict())
    again, resumed = train(tmp_path / "file", device="cuda")
    assert resumed == fitted
    assert weights(again.cpu()) == weights(towers.cpu())


def test_a_complete_training_is_read(tmp_path: Path) -> None:
    whole, fitted = train(tmp_path / "file")
    written = (tmp_path / "file").read_bytes()

    class Nothing:
        def epoch(self, number: int, start: int) -> Iterator[Contrast]:
            raise AssertionError("nothing is left to do")

    towers = Towers(seed=5)
    again = fit(
        towers, Triplets(), Nothing(), CONFIG, validate=in_taste, path=tmp_path / "file", task="tastes"
    )
    assert again == fitted
    assert weights(towers) == weights(whole)
    assert (tmp_path / "file").read_bytes() == written


def test_another_training_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    train(path)
    other = msgspec.structs.replace(CONFIG, rate=0.5)
    with pytest.raises(CheckpointError, match=r"config .*rate=0.01.*asked is .*rate=0.5"):
        fit(Towers(), Triplets(), batches(), other, path=path, task="tastes")
    with pytest.raises(CheckpointError, match="task tastes, asked is else"):
        fit(Towers(), Triplets(), batches(), CONFIG, path=path, task="else")
    wider = Towers()
    wider.p = torch.nn.Parameter(torch.zeros((ACCOUNTS, 9)))
    with pytest.raises(CheckpointError, match=r"p is \(24, 8\), the network's is \(24, 9\)"):
        fit(wider, Triplets(), batches(), CONFIG, path=path, task="tastes")
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(DamageError, match="no checkpoint of a training"):
        fit(Towers(), Triplets(), batches(), CONFIG, path=path, task="tastes")


def test_what_cannot_be_trained_or_compared_is_refused() -> None:
    empty = Servings(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.bool_), 8, 0)
    with pytest.raises(ValueError, match="epoch 0 has no batch"):
        fit(Towers(), Engagement(), empty, FitConfig())
    with pytest.raises(ValueError, match="validation of epoch 0 is nan"):
        fit(Towers(), Triplets(), batches(), FitConfig(), validate=lambda _: float("nan"))


def test_arrays_in_files_train_as_arrays_in_memory(tmp_path: Path) -> None:
    consumers, accounts = fitting.follows()
    np.save(tmp_path / "c.npy", consumers)
    np.save(tmp_path / "a.npy", accounts)
    mapped = tuple(np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in ("c", "a"))
    found = []
    for pair in ((consumers, accounts), mapped):
        known = Follows.of(consumers, accounts, CONSUMERS)
        followers = np.bincount(accounts, minlength=ACCOUNTS)
        towers = Towers()
        fit(
            towers,
            Triplets(),
            Contrasts(pair, known, followers, SamplingConfig(), 32, 0),
            FitConfig(epochs=1),
        )
        found.append(weights(towers))
    assert found[0] == found[1]


def test_fine_tuning_is_one_gentle_epoch_on_what_was_served() -> None:
    gentle = CONFIG.gentle()
    assert (gentle.rate, gentle.epochs, gentle.patience) == (pytest.approx(CONFIG.rate / 10), 1, 0)
    towers, _ = train(None)
    before, quality = [p.detach().clone() for p in towers.parameters()], in_taste(towers)
    consumers, accounts = fitting.follows(7)
    engaged = accounts % 8 < 4  # within a taste
    fitted = fit(towers, Engagement(), Servings(consumers, accounts, engaged, 32, 0), gentle)
    assert (fitted.epochs, fitted.steps) == (1, 11)
    moved = max(float((a - b).abs().max().detach()) for a, b in zip(towers.parameters(), before, strict=True))
    assert 0 < moved <= 11.1 * gentle.rate  # Adam moves no weight by more than its rate, nearly, a step
    assert in_taste(towers) > quality - 0.1
