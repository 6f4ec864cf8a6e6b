import msgspec
import numpy as np
import pytest
from tests.models.worlds import some_rows, take

from kithstream.models.delta import Delta, DeltaError
from kithstream.models.model import Model
from kithstream.models.train import Examples, OnlineTrainer, TrainerConfig

WORLD = some_rows(60, seed=4)


def train(learner: OnlineTrainer, steps: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    learner.producers.write(learner.model.encode_producers(WORLD).features)
    for number in range(steps):
        features = learner.model.encode_consumers(take(WORLD, rng.integers(0, 60, 8).tolist())).features
        learner.observe(Examples(features, [f"a{x}" for x in rng.integers(0, 60, 8)], seed * 10 + number))


def trainer() -> OnlineTrainer:
    return OnlineTrainer(Model.day_zero(seed=2), TrainerConfig(), np.random.Generator(np.random.PCG64(2)))


def test_a_follower_of_deltas_equals_the_trainer_in_every_bit() -> None:
    learner, follower = trainer(), Model.day_zero(seed=2)
    follower.encode_producers(some_rows(30, seed=8))
    for part in range(1, 4):
        train(learner, 4, part)
        if part == 2:
            assert learner.expire(before=15) > 0
        wire = msgspec.msgpack.encode(learner.delta())
        follower.apply(msgspec.msgpack.decode(wire, type=Delta))
        assert follower.step == learner.model.step
        for encode in ("encode_producers", "encode_consumers"):
            here, there = getattr(learner.model, encode)(WORLD), getattr(follower, encode)(WORLD)
            np.testing.assert_array_equal(here.vectors, there.vectors)
            assert here.step == there.step


def test_a_delta_that_does_not_fit_is_refused_and_changes_nothing() -> None:
    learner = trainer()
    train(learner, 3, 1)
    delta = learner.delta()
    model = Model.day_zero(seed=2)
    before = model.encode_producers(WORLD).vectors
    for change, reason in (
        ({"lineage": "other"}, "lineage other"),
        ({"schema_hash": "0"}, "schema 0"),
        ({"since": 2}, "starts at step 2, the model is at step 0"),
        ({"weights": {}}, "other names or sizes"),
        ({"target": b""}, "do not have the shape"),
    ):
        with pytest.raises(DeltaError, match=reason):
            model.apply(msgspec.structs.replace(delta, **change))
    np.testing.assert_array_equal(model.encode_producers(WORLD).vectors, before)
    model.apply(delta)
    with pytest.raises(DeltaError, match="starts at step 0, the model is at step 3"):
        model.apply(delta)
