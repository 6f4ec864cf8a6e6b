"""The ranker of pairs: what it adds, how it learns, how it travels with the model."""

from pathlib import Path

import msgspec
import numpy as np
import pytest

from kithstream.models import checkpoint
from kithstream.models.checkpoint import SchemaError
from kithstream.models.delta import Delta, DeltaError
from kithstream.models.model import Model
from kithstream.models.ranker import (
    DENSE,
    HOPS,
    MEASURED,
    SOURCES,
    WINDOWS,
    Asker,
    PairFeatures,
    Pairs,
    Ranked,
    Ranker,
    Weights,
    pair_features,
)
from kithstream.models.train import OnlineTrainer, TrainerConfig


def some_pairs(n: int, seed: int) -> Pairs:
    """Pairs with every quantity filled with something, hits of the index first; every fifth has nothing at all."""
    rng = np.random.default_rng(seed)
    empty = np.arange(n) % 5 == 4
    never = rng.random((n, 5)) < 0.5
    degrees = np.where(empty[:, None], 0, rng.integers(0, 5000, (n, 3)))
    degrees[:, 2] = np.minimum(degrees[:, 2], degrees[:, 1])
    ages = np.where(never | empty[:, None], np.inf, rng.exponential(1e6, (n, 5)))
    return Pairs(
        asker=Asker(7, 30, 3, 3600.0),
        scores=-np.sort(-rng.normal(size=n)).astype(np.float32),
        places=np.arange(n),
        sources=rng.random((n, len(SOURCES))) < 0.3,
        counts=np.where(empty[:, None, None], 0.0, rng.exponential(3.0, (n, 2, WINDOWS))),
        engaged_counts=rng.exponential(1.0, (n, 2)),
        ages=ages[:, :3],
        degrees=degrees.astype(np.int64),
        hops=np.where(empty[:, None], 0.0, rng.exponential(1.0, (n, len(HOPS)))),
        follows_you=ages[:, 3],
        engaged=ages[:, 4],
        engagements=np.where(np.isfinite(ages[:, 4]), 2, 0),
        community=rng.random(n),
        known_for=rng.random(n) < 0.5,
        language=rng.random(n) < 0.5,
    )


def some_examples(count: int, seed: int) -> list[Ranked]:
    """Whoever follows the account is followed back, whatever the towers say."""
    rng = np.random.default_rng(seed)
    examples = []
    for number in range(count):
        pairs = some_pairs(40, seed + number)
        pairs.follows_you[:] = np.inf
        chosen = int(rng.integers(40))
        pairs.follows_you[chosen] = 60.0
        examples.append(Ranked(pairs.scores, pair_features(pairs), chosen))
    return examples


def trained(count: int = MEASURED + 50, seed: int = 0) -> Ranker:
    ranker, examples = Ranker(), some_examples(count, seed)
    for first in range(0, count, 8):
        ranker.observe(examples[first : first + 8])
    return ranker


def test_features_are_finite_and_bounded() -> None:
    dense, buckets = pair_features(some_pairs(200, 1))
    assert dense.shape == (200, len(DENSE))
    assert np.isfinite(dense).all()
    assert np.abs(dense).max() < 8
    assert buckets.min() >= 0
    assert buckets.max() < len(Ranker().weights.tables)
    assert (np.diff(buckets[0]) > 0).all()  # each in its own table


def test_nobody_to_rank_is_no_error() -> None:
    dense, buckets = pair_features(some_pairs(0, 1))
    assert len(dense) == len(buckets) == 0


def test_an_untrained_ranker_adds_nothing_and_does_not_rank() -> None:
    ranker = Ranker()
    assert not ranker.weights.extra(pair_features(some_pairs(50, 2))).any()
    assert not ranker.ready


def test_what_is_added_to_a_candidate_does_not_depend_on_how_many_there_are() -> None:
    weights = Weights(*(np.random.default_rng(3).normal(size=w.shape) for w in Ranker().weights))
    features = pair_features(some_pairs(211, 3))
    together = weights.extra(features)
    for part in (slice(0, 1), slice(5, 12), slice(100, 211)):
        alone = weights.extra(PairFeatures(features.dense[part], features.buckets[part]))
        np.testing.assert_array_equal(alone, together[part])


def test_it_learns_what_the_towers_do_not_know_and_then_ranks() -> None:
    ranker = trained()
    assert ranker.ready
    assert ranker.gain > 0.3
    for scores, features, chosen in some_examples(20, seed=9000):
        assert int(np.argmax(scores + ranker.weights.extra(features))) == chosen


def test_it_does_not_rank_while_the_towers_are_as_good() -> None:
    ranker = Ranker()
    for number in range(MEASURED + 20):  # the towers name everybody first
        pairs = some_pairs(20, number)
        ranker.observe([Ranked(pairs.scores, pair_features(pairs), 0)])
    assert ranker.examples == MEASURED + 20
    assert not ranker.ready


def test_it_does_not_rank_before_it_was_measured() -> None:
    assert not trained(MEASURED - 1).ready


def test_a_step_follows_the_gradient_of_the_loss() -> None:
    examples = some_examples(3, seed=4)
    ranker = Ranker()
    ranker.observe(some_examples(5, seed=50))
    dense, tables = ranker.weights

    def loss(weights: Weights) -> float:
        total = 0.0
        for scores, features, chosen in examples:
            logits = scores + weights.extra(features)
            total += float(np.log(np.exp(logits).sum()) - logits[chosen])
        return total + 0.5 * ranker.config.decay * len(examples) * float((dense**2).sum() + (tables**2).sum())

    before = ranker.squares.copy()
    ranker.observe(examples)
    gradient = np.sqrt(ranker.squares - before)  # its size; Adagrad keeps the square
    moved = np.concatenate(ranker.weights) - np.concatenate((dense, tables))
    some = np.argsort(-gradient)[:12]
    for at in some.tolist():
        nudge = np.zeros(len(gradient))
        nudge[at] = 1e-6
        up, down = (
            Weights(dense + sign * nudge[: len(dense)], tables + sign * nudge[len(dense) :])
            for sign in (1, -1)
        )
        numeric = (loss(up) - loss(down)) / 2e-6
        if at < len(dense):  # of the tables the decay's part is checked with them
            assert abs(numeric) == pytest.approx(gradient[at], rel=2e-3, abs=1e-3)
            assert np.sign(moved[at]) == -np.sign(numeric)


def test_training_is_a_function_of_the_order_of_examples() -> None:
    one, two = trained(64, seed=6), trained(64, seed=6)
    for here, there in zip(one.arrays().values(), two.arrays().values(), strict=True):
        np.testing.assert_array_equal(here, there)


def test_it_is_saved_and_loaded_with_the_model(tmp_path: Path) -> None:
    model = Model.day_zero(seed=1)
    model.ranker = trained()
    model.save(tmp_path / "model.safetensors")
    loaded = Model.load(tmp_path / "model.safetensors")
    for here, there in zip(loaded.ranker.arrays().values(), model.ranker.arrays().values(), strict=True):
        np.testing.assert_array_equal(here, there)
    assert loaded.ranker.ready
    more = some_examples(8, seed=70)
    assert loaded.ranker.observe(more) == model.ranker.observe(more)
    np.testing.assert_array_equal(loaded.ranker.weights.dense, model.ranker.weights.dense)


def test_a_checkpoint_of_before_has_a_ranker_as_it_is_born_and_of_another_schema_is_refused(
    tmp_path: Path,
) -> None:
    model, path = Model.day_zero(seed=1), tmp_path / "model.safetensors"
    arrays = {name: array for name, array in model.arrays().items() if not name.startswith("ranker.")}
    checkpoint.write(path, msgspec.structs.replace(model.header(), ranker_hash=""), arrays)
    assert not Model.load(path).ranker.weights.dense.any()
    checkpoint.write(
        path, msgspec.structs.replace(model.header(), ranker_hash="0123456789abcdef"), model.arrays()
    )
    with pytest.raises(SchemaError, match="ranker was written for schema 0123456789abcdef"):
        Model.load(path)


def test_a_delta_carries_it() -> None:
    learner = OnlineTrainer(Model.day_zero(seed=2), TrainerConfig(), np.random.Generator(np.random.PCG64(2)))
    learner.model.ranker = trained()
    learner.model.step += 1
    delta = msgspec.msgpack.decode(msgspec.msgpack.encode(learner.delta()), type=Delta)
    model = Model.day_zero(seed=2)
    for change, reason in (({"ranker": b""}, "0 bytes"), ({"ranker_hash": "0"}, "schema 0")):
        with pytest.raises(DeltaError, match=reason):
            model.apply(msgspec.structs.replace(delta, **change))
        assert not model.ranker.weights.dense.any()
    model.apply(delta)
    for here, there in zip(model.ranker.weights, learner.model.ranker.weights, strict=True):
        np.testing.assert_array_equal(here, there)
    assert model.ranker.ready
