"""Fitting to a folder: the online trainer's own steps, more than once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
from tests.examples.passing import CONFIG, events, source

from kithstream.models.train import OnlineTrainer, TrainerConfig
from kithstream.streams.errors import UnusableSource
from kithstream.streams.examples import folder
from kithstream.streams.examples.fit import FitConfig, fit
from kithstream.streams.examples.passes import make
from kithstream.streams.examples.sources import FileSource
from kithstream.streams.training import Timed, train

ONCE = FitConfig(epochs=1, held=0.0, tune=False)
FULL = FitConfig(epochs=3, held=0.2, patience=1)
replace = msgspec.structs.replace


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("made")
    make(source(), path, CONFIG)
    return path


def learned(file: Path) -> dict[str, np.ndarray]:
    """All that was learned, by the names of accounts; when they were last read is another thing of each way."""
    trainer = OnlineTrainer.load(file, TrainerConfig())
    model, producers = trainer.model, trainer.producers
    named = [model.ids.name(row) for row in producers.rows.tolist()]
    names = sorted(
        {
            name
            for name in model.ids.names
            if name is not None and model.ids.squares[model.ids.rows_of([name])[0]].any()
        }
    )
    rows = model.ids.rows_of(names)
    found = {name: p.detach().numpy() for name, p in model.tower.named_parameters()}
    found |= {f"squares {name}": squares.numpy() for name, squares in trainer.squares.items()}
    for kind, recent in (("targets", trainer.negatives.targets), ("sources", trainer.negatives.sources)):
        found[f"recent {kind}"] = np.array([model.ids.name(row) for row in recent.ordered().tolist()])
    for name, table in producers.read(producers.rows)._asdict().items():
        if name in ("rows", "followers", "followees"):
            table = np.array([model.ids.name(row) or "" for row in table.ravel().tolist()])
        found[f"producers {name}"] = table
    return {
        **found,
        "encoded": np.array(named),
        "names": np.array(names),
        "target": model.ids.target[rows],
        "source": model.ids.source[rows],
        "squares of ids": model.ids.squares[rows],
        "rng": np.array(repr(trainer.rng.bit_generator.state)),
        "step": np.array(model.step),
    }


def assert_equal(a: Path, b: Path) -> None:
    one, other = learned(a), learned(b)
    assert one.keys() == other.keys()
    for name, value in one.items():
        np.testing.assert_array_equal(value, other[name], err_msg=name)


def test_one_epoch_ends_where_the_live_run_did_that_learned_on_the_way(made: Path, tmp_path: Path) -> None:
    encode = msgspec.json.Encoder().encode
    live = train((Timed(one["time"], encode(one)) for one in events()), tmp_path / "live.st", CONFIG)
    fitted = fit(made, tmp_path / "fitted.st", CONFIG.model, ONCE)
    assert fitted.examples == live.examples > 100
    assert folder.load(made).counts.forgotten > 0  # deletions are learned as well
    assert_equal(tmp_path / "fitted.st", tmp_path / "live.st")
    assert fitted.lineage != live.lineage  # its vectors are not to be compared with those before it


def test_a_fit_that_was_killed_goes_on_to_the_same_bytes(made: Path, tmp_path: Path) -> None:
    fit(made, tmp_path / "whole.st", CONFIG.model, FULL)
    script = (
        "import sys\nfrom pathlib import Path\nfrom tests.examples.test_fit import die\n"
        "die(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))"
    )
    for number, rows in enumerate((900, 2000)):
        child = subprocess.run(
            [sys.executable, "-c", script, str(made), str(tmp_path / "killed.st"), str(rows)],
            cwd=Path(__file__).parents[2],
            timeout=120,
            check=False,
        )
        assert child.returncode == -9, number
        assert not (tmp_path / "killed.st").exists()
    step = json.loads((tmp_path / "killed.st.fitting" / "fit.json").read_bytes())
    assert (step["epoch"], step["part"]) > (0, 0)  # it does not begin again
    fit(made, tmp_path / "killed.st", CONFIG.model, FULL)
    assert (tmp_path / "killed.st").read_bytes() == (tmp_path / "whole.st").read_bytes()
    assert not (tmp_path / "killed.st.fitting").exists()


def die(made: Path, out: Path, rows: int) -> None:
    """Fit, and die by SIGKILL when so many rows are read since this began."""
    first: list[int] = []

    def heard(count: int) -> None:
        first.append(count)
        if count - first[0] >= rows:
            os.kill(os.getpid(), signal.SIGKILL)

    fit(made, out, CONFIG.model, FULL, heard)


def test_the_last_share_is_not_trained_on_and_says_when_to_stop(made: Path, tmp_path: Path) -> None:
    positives = folder.load(made).counts.positive
    done = fit(made, tmp_path / "a.st", CONFIG.model, replace(FULL, tune=False, epochs=6))
    epochs = len(done.losses)
    assert done.examples <= epochs * round(0.8 * positives)
    assert done.examples >= epochs * round(0.75 * positives)
    assert done.losses[done.best - 1] == min(done.losses)
    assert epochs == 6 or epochs == done.best + 1  # the one after the best was worse
    assert done.losses[0] > min(done.losses) or done.best == 1
    again = fit(made, tmp_path / "b.st", CONFIG.model, replace(FULL, tune=False, epochs=done.best))
    assert again.losses == list(done.losses)[: done.best]
    a, b = learned(tmp_path / "a.st"), learned(tmp_path / "b.st")
    np.testing.assert_array_equal(a["target"], b["target"])  # the best epoch's model is the one


def test_tuning_learns_from_what_was_ignored_at_a_tenth(made: Path, tmp_path: Path) -> None:
    plain = fit(made, tmp_path / "plain.st", CONFIG.model, replace(FULL, tune=False))
    tuned = fit(made, tmp_path / "tuned.st", CONFIG.model, FULL)
    assert tuned.losses == plain.losses
    assert tuned.refused > 20
    assert tuned.tuned_loss is not None
    assert tuned.tuned == (tuned.tuned_loss <= min(tuned.losses))
    plain_ids, tuned_ids = (learned(tmp_path / f"{name}.st")["target"] for name in ("plain", "tuned"))
    assert np.array_equal(plain_ids, tuned_ids) != tuned.tuned


def test_targets_alone_are_enough_to_fit(tmp_path: Path) -> None:
    config = replace(CONFIG, examples=replace(CONFIG.examples, candidates=False))
    made = make(source(), tmp_path / "made", config)
    (part, *_) = folder.load(tmp_path / "made").parts
    assert part.candidates == 0
    done = fit(tmp_path / "made", tmp_path / "a.st", config.model, FULL)
    assert done.examples > made.positive // 2
    assert all(0 < loss < 6 for loss in done.losses)


def test_what_cannot_be_fitted_is_named(made: Path, tmp_path: Path) -> None:
    with pytest.raises(UnusableSource, match="holds no examples"):
        fit(tmp_path, tmp_path / "a.st", CONFIG.model, ONCE)
    likes = [one for one in events() if one["signal"] == "like"]
    make(FileSource("likes", 1, lambda: likes), tmp_path / "likes", CONFIG)
    with pytest.raises(UnusableSource, match="holds no positive example"):
        fit(tmp_path / "likes", tmp_path / "a.st", CONFIG.model, ONCE)

    def stop(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(made, tmp_path / "b.st", CONFIG.model, ONCE, stop)
    with pytest.raises(UnusableSource, match="something else that was broken off"):
        fit(made, tmp_path / "b.st", replace(CONFIG.model, seed=1), ONCE)
