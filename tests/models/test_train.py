from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.models.worlds import Town, nothing, some_rows, take

from kithstream.models.encode import encode_producers
from kithstream.models.evaluate import recall_at
from kithstream.models.features import ConsumerFeatures, concatenate
from kithstream.models.lineage import DIM
from kithstream.models.model import Model
from kithstream.models.producers import ProducerTable
from kithstream.models.sampling import SamplingConfig
from kithstream.models.train import Examples, Loss, OnlineTrainer, TrainerConfig

CONFIG = TrainerConfig()


def trainer(seed: int = 0, config: TrainerConfig = CONFIG, dim: int = DIM) -> OnlineTrainer:
    return OnlineTrainer(
        Model.day_zero(seed=seed, dim=dim), config, np.random.Generator(np.random.PCG64(seed))
    )


def batches(count: int, size: int = 8, seed: int = 0) -> list[tuple[list[int], list[str]]]:
    rng = np.random.default_rng(seed)
    return [
        (rng.integers(0, 60, size).tolist(), [f"a{x}" for x in rng.integers(0, 80, size)])
        for _ in range(count)
    ]


WORLD = some_rows(60, seed=4, languages=(0, 1, 2))


def run(learner: OnlineTrainer, steps: list[tuple[list[int], list[str]]]) -> list[float]:
    """Observes, then encodes the accounts of the batch, as an engine does."""
    losses = []
    for number, (sources, targets) in enumerate(steps):
        features = learner.model.consumer_features(take(WORLD, sources))
        losses.append(learner.observe(Examples(features, targets, number)).loss)
        learner.producers.write(learner.model.encode_producers(take(WORLD, sources)).features)
    return losses


def state(learner: OnlineTrainer) -> dict[str, np.ndarray]:
    """All that was learned, by account."""
    model = learner.model
    found = {name: p.detach().numpy().copy() for name, p in model.tower.named_parameters()}
    names = sorted(name for name in model.ids.names if name is not None)
    rows = model.ids.rows_of(names)
    return {
        **found,
        "target": model.ids.target[rows],
        "source": model.ids.source[rows],
        "squares": model.ids.squares[rows],
    }


def assert_equal(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert one.keys() == other.keys()
    for name, values in one.items():
        np.testing.assert_array_equal(values, other[name], err_msg=name)


def test_training_is_a_function_of_examples_and_seed() -> None:
    one, other = trainer(), trainer()
    run(one, batches(12))
    run(other, batches(12))
    assert_equal(state(one), state(other))
    third = trainer()
    third.rng = np.random.Generator(np.random.PCG64(9))
    run(third, batches(12))
    assert (state(third)["attention"] != state(one)["attention"]).any()


def test_every_parameter_learns_from_day_zero_on() -> None:
    """A product of two that are zero would stay zero for ever."""
    learner = trainer()
    before = {name: p.detach().clone() for name, p in learner.model.tower.named_parameters()}
    run(learner, batches(12))
    for name, parameter in learner.model.tower.named_parameters():
        moved = parameter.detach() != before[name]
        assert moved.any(), name
        if name in ("quality", "demand", "sketch", "language", "community"):
            assert moved.float().mean() > 0.5, name


def test_questions_asked_meanwhile_change_nothing_that_is_learned() -> None:
    one, other = trainer(), trainer()
    run(one, batches(12))
    other.model.encode_consumers(take(WORLD, range(59, -1, -1)))  # rows are numbered in another order
    for number, step in enumerate(batches(12)):
        asked = nothing([f"z{number}-{i}" for i in range(3)] + [f"a{79 - number}"])
        other.model.encode_consumers(asked)
        run(other, [step])
    there, here = state(other), state(one)
    for name in dict(one.model.tower.named_parameters()):
        np.testing.assert_array_equal(there[name], here[name], err_msg=name)


@settings(max_examples=8)
@given(st.integers(0, 12))
def test_save_and_load_in_the_middle_change_nothing(
    tmp_path_factory: pytest.TempPathFactory, cut: int
) -> None:
    path = tmp_path_factory.mktemp("checkpoint") / "model.safetensors"
    config = TrainerConfig(sampling=SamplingConfig(count=16, recent=20))
    whole, first = trainer(config=config), trainer(config=config)
    losses = run(whole, batches(12))
    before = run(first, batches(12)[:cut])
    first.save(path)
    second = OnlineTrainer.load(path, config)
    assert_equal(state(second), state(first))
    after = run(second, batches(12)[cut:])
    np.testing.assert_array_equal(before + after, losses)
    assert_equal(state(second), state(whole))
    assert second.model.step == whole.model.step == 12


def test_what_was_captured_is_of_its_moment() -> None:
    """It is written beside folding, which learns, forgets and gives rows to others meanwhile."""
    one, twin = trainer(), trainer()
    run(one, batches(6))
    run(twin, batches(6))
    captured = one.capture()
    run(one, batches(12)[6:])
    some = [name for name in one.model.ids.names if name is not None][:20]
    one.forget(some)
    one.model.ids.rows_of(["somebody", "else"])
    assert_equal(captured(), twin.capture()())
    changed = one.capture()()
    same = {name for name, values in captured().items() if np.array_equal(values, changed[name])}
    assert not same & {"ids.names", "ids.free", "ids.target", "producers.rows", "squares.attention", "rng"}


def test_the_loss_equals_its_formula() -> None:
    """Example by example from served vectors: a target that waits to be followed back is sure to be there."""
    learner = trainer()
    run(learner, batches(6))
    model, known = learner.model, learner.producers
    sources = [0, 1, 2, 3, 5, 6]
    k = [str(model.ids.name(row)) for row in known.rows[:12].tolist()]
    asks = take(WORLD, sources)._replace(
        unreciprocated=[[k[0], "stranger", k[1]], [k[2], k[3]], [k[4]], [k[5], k[6]], [], ["stranger"]]
    )
    names = [k[1], k[2], k[4], k[7], k[8], k[9]]  # the first three return a follow
    features = model.consumer_features(asks)
    targets = model.ids.rows_of(names)
    state = learner.rng.bit_generator.state
    total = learner.loss(features, targets).total.item()

    learner.rng.bit_generator.state = state
    sample = learner.negatives.sample(known.rows, learner.rng)
    vectors = {
        int(row): vector
        for row, vector in zip(
            known.rows, encode_producers(model.tower, model.ids.tables, known.read(known.rows)), strict=True
        )
    }
    q = model.encode_consumers(asks).vectors.astype(np.float64)
    expected = 0.0
    for i, target in enumerate(targets.tolist()):
        own = set(model.ids.rows_of(asks.unreciprocated[i]).tolist())
        followed = set(model.ids.rows_of(asks.followees[i]).tolist())
        count = 1.0 if target in own else learner.negatives.expected(targets[i : i + 1], len(known))[0]
        top = np.exp(q[i] @ vectors[target]) / count
        others = sum(np.exp(q[i] @ vectors[row]) for row in own - {target} if row in vectors)
        for row, drawn in zip(sample.rows.tolist(), sample.expected, strict=True):
            if row in vectors and row not in own | followed | {target, int(features.rows[i])}:
                others += np.exp(q[i] @ vectors[row]) / drawn
        expected -= np.log(top / (top + others))
    assert total == pytest.approx(expected, rel=1e-4)  # float32 scores


def test_who_was_refused_is_a_negative_of_that_example_alone() -> None:
    learner = trainer()
    run(learner, batches(6))
    model, known = learner.model, learner.producers
    features = model.consumer_features(nothing(["n0", "n1"]))
    targets = known.rows[:2].copy()
    stranger = int(model.ids.rows_of(["stranger"])[0])  # never encoded: no answer could hold it
    state = learner.rng.bit_generator.state
    drawn = learner.negatives.sample(known.rows, learner.rng).rows
    rows = known.rows[~np.isin(known.rows, drawn) & ~np.isin(known.rows, targets)]
    vectors = encode_producers(model.tower, model.ids.tables, known.read(np.append(rows, targets[0])))
    scores = np.exp(vectors.astype(np.float64) @ model.encode_consumers(nothing(["n0"])).vectors[0])
    ignored, other = int(rows[scores[:-1].argmax()]), scores[:-1].max()

    def loss(refused: list[list[int]] | None, count: int = 2) -> float:
        learner.rng.bit_generator.state = state
        some = ConsumerFeatures._make(a[:count] for a in features)
        rows = None if refused is None else np.array(refused, np.int32)
        return learner.loss(some, targets[:count], rows).total.item()

    plain, own = loss(None), int(targets[1])
    assert loss([[0, 0], [0, 0]]) == loss([[0, stranger], [own, 0]]) == plain
    everybody = np.exp(loss(None, 1)) * scores[-1] / learner.negatives.expected(targets[:1], len(known))[0]
    expected = np.log(1 + other / everybody)
    assert expected > 0.01
    assert loss([[ignored, 0], [0, 0]]) - plain == pytest.approx(expected, abs=1e-5)  # float32 scores
    before = model.ids.target[ignored].copy()
    learner.observe(
        Examples(features, [model.ids.name(row) or "" for row in targets.tolist()], 1),
        np.array([[ignored, 0], [0, 0]], np.int32),
    )
    assert (model.ids.target[ignored] != before).any()


def test_gradients_equal_differences() -> None:
    """Central differences in float64 on a few weights of every kind."""
    learner = trainer(dim=80)
    run(learner, batches(3))
    features = learner.model.encode_consumers(take(WORLD, range(8))).features
    targets = learner.producers.rows[:8].copy()
    tower = learner.model.tower.double()
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=noise, dtype=torch.float64))
    ids = learner.model.ids
    ids.target, ids.source = ids.target.astype(np.float64), ids.source.astype(np.float64)  # type: ignore[assignment]
    seed = learner.rng.bit_generator.state

    doubled = ConsumerFeatures(*(a.astype(np.float64) if a.dtype == np.float32 else a for a in features))
    for name, table in learner.producers.tables.items():
        if table.dtype == np.float32:
            learner.producers.tables[name] = table.astype(np.float64)  # type: ignore[assignment]

    def loss() -> Loss:
        learner.rng.bit_generator.state = seed
        return learner.loss(doubled, targets)

    tower.zero_grad()
    total, rows, target, source = loss()
    total.backward()
    step = 1e-5

    def difference(values: np.ndarray, place: tuple[int, ...]) -> float:
        kept = values[place]
        values[place] = kept + step
        high = float(loss().total.detach())
        values[place] = kept - step
        low = float(loss().total.detach())
        values[place] = kept
        return (high - low) / (2 * step)

    rng = np.random.default_rng(0)
    checked = 0
    for name, parameter in tower.named_parameters():
        assert parameter.grad is not None, name
        gradient, values = parameter.grad.numpy(), parameter.detach().numpy()
        places = np.argwhere(gradient != 0)
        assert len(places), name
        for place in rng.permutation(places)[:3]:
            assert difference(values, tuple(place)) == pytest.approx(
                gradient[tuple(place)], rel=2e-3, abs=1e-4
            )
            checked += 1
    for leaf, table in ((target, ids.target), (source, ids.source)):
        assert leaf.grad is not None
        gradient = leaf.grad.numpy()
        gradient[0] = 0.0  # nobody
        places = np.argwhere(np.abs(gradient) > 1e-3)
        assert len(places)
        for row, column in rng.permutation(places)[:4]:
            found = difference(table, (int(rows[row]), int(column)))
            assert found == pytest.approx(gradient[row, column], rel=2e-3, abs=1e-4)
            checked += 1
    assert checked > 20


def test_training_lowers_the_loss_and_beats_day_zero() -> None:
    town = Town()
    learner = trainer(seed=1, config=TrainerConfig(sampling=SamplingConfig(count=32)))
    fresh = Model.day_zero(seed=1)
    learner.producers.write(learner.model.encode_producers(town.rows(town.names)).features)
    losses = []
    for number in range(150):
        pairs = [town.draw() for _ in range(8)]
        sources = [a for a, _ in pairs]
        features = learner.model.encode_consumers(town.rows(sources)).features
        losses.append(learner.observe(Examples(features, [b for _, b in pairs], number)).loss)
        for pair in pairs:
            town.apply(*pair)
        touched = list(dict.fromkeys(x for pair in pairs for x in pair))
        learner.producers.write(learner.model.encode_producers(town.rows(touched)).features)
    assert np.mean(losses[-30:]) < np.mean(losses[:30]) - 0.3

    pairs = [town.draw() for _ in range(1000)]  # a standard error of .014

    def ranks(model: Model) -> np.ndarray:
        p = model.encode_producers(town.rows(town.names)).vectors
        q = model.encode_consumers(town.rows([a for a, _ in pairs])).vectors
        scores = q @ p.T
        wanted = scores[np.arange(len(pairs)), [town.names.index(b) for _, b in pairs]]
        return (scores > wanted[:, None]).sum(axis=1)

    learned, untaught = recall_at(ranks(learner.model), 10).mean(), recall_at(ranks(fresh), 10).mean()
    assert learned > untaught + 0.07


def test_a_target_never_encoded_is_skipped() -> None:
    learner = trainer()
    before = state(learner)["attention"]
    features = learner.model.encode_consumers(take(WORLD, [0, 1])).features
    result = learner.observe(Examples(features, ["a1", "a2"], 0))
    assert (result.trained, result.skipped, result.step) == (0, 2, 1)
    assert np.isnan(result.loss)
    np.testing.assert_array_equal(state(learner)["attention"], before)


def test_recent_accounts_that_were_never_encoded_are_not_drawn() -> None:
    learner = trainer()
    learner.producers.write(learner.model.encode_producers(take(WORLD, [0, 1, 2])).features)
    features = learner.model.consumer_features(take(WORLD, [0]))
    learner.model.ids.rows_of([f"x{i}" for i in range(3000)])  # beyond the table's first size
    learner.observe(Examples(features, ["stranger"], 0))
    result = learner.observe(Examples(features, ["a1"], 1))
    assert (result.trained, result.skipped) == (1, 0)
    assert np.isfinite(result.loss)


def test_nobody_learns_nothing() -> None:
    learner = trainer()
    run(learner, batches(5))
    assert not learner.model.ids.target[0].any()
    assert not learner.model.ids.source[0].any()


def test_the_expired_leave_no_trace() -> None:
    learner = trainer()
    run(learner, batches(6))
    ids = learner.model.ids
    gone = {str(ids.name(r)) for r in range(1, ids.capacity) if ids.name(r) and ids.used[r] < 4}
    assert gone
    rows = ids.rows_of(sorted(gone))
    step = learner.model.step
    assert learner.expire(before=4) == len(gone)
    assert learner.model.step == step + 1
    assert not np.isin(learner.producers.rows, rows).any()
    assert not np.isin(learner.producers.tables["followers"], rows).any()
    assert not np.isin(learner.producers.tables["followees"], rows).any()
    assert not np.isin(learner.negatives.targets.ordered(), rows).any()
    assert not np.isin(learner.negatives.sources.ordered(), rows).any()
    run(learner, batches(3, seed=5))


def test_the_table_keeps_the_last_that_was_written() -> None:
    model = Model.day_zero(seed=0)
    table = ProducerTable()
    first = model.encode_producers(take(WORLD, [3, 1, 3])).features
    second = model.encode_producers(take(some_rows(60, seed=9), [1])).features
    table.write(first)
    table.write(second)
    assert table.rows.tolist() == first.rows[:2].tolist()
    kept = table.read(first.rows[:2])
    np.testing.assert_array_equal(kept.dense, np.stack([first.dense[0], second.dense[0]]))
    assert table.written(np.array([0, first.rows[0], 10**6], np.int32)).tolist() == [False, True, False]


def test_features_of_several_captures_join() -> None:
    model = Model.day_zero(seed=0)
    parts = [model.consumer_features(take(WORLD, places)) for places in ([1, 2], [], [5])]
    for joined, whole in zip(
        concatenate(parts), model.consumer_features(take(WORLD, [1, 2, 5])), strict=True
    ):
        np.testing.assert_array_equal(joined, whole)


def test_configs_are_frozen() -> None:
    with pytest.raises(AttributeError):
        CONFIG.rate = 1.0  # type: ignore[misc]
    assert msgspec.json.decode(msgspec.json.encode(CONFIG), type=TrainerConfig) == CONFIG


def test_a_checkpoint_of_a_model_alone_does_not_train(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    Model.day_zero(seed=0).save(path)
    with pytest.raises(ValueError, match=r"no array producers\.rows"):
        OnlineTrainer.load(path, CONFIG)
