"""The training log: a model is a function of it, whatever dies, repeats itself or cannot be read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds import some_rows, take

from kithstream.models import named
from kithstream.models.features import Rows, consumer_features, producer_features
from kithstream.models.ids import IdVectors
from kithstream.models.model import Model
from kithstream.models.named import NamedError
from kithstream.models.train import OnlineTrainer, TrainerConfig
from kithstream.streams import learning
from kithstream.streams.config import RankingConfig
from kithstream.streams.engine.actors import Change
from kithstream.streams.kafka.steps import Follower, records
from kithstream.streams.learning import Captured, Learner
from kithstream.streams.looking import Asked, Told
from kithstream.streams.serve.facts import Neighbours
from kithstream.streams.serve.marks import marks, pack
from kithstream.streams.serve.nominators import About

WORLD = some_rows(60, seed=4, languages=(0, 1, 2))
RANKING = RankingConfig(considered=10, nominated=3)
DAY = 86_400_000_000
NOW = 20_000 * DAY
PARTITIONS = 3


def learner(idle_days: int = 365) -> Learner:
    trainer = OnlineTrainer(Model.day_zero(seed=0), TrainerConfig(), np.random.Generator(np.random.PCG64(0)))
    return Learner(trainer, PARTITIONS, example_batch=8, idle_days=idle_days, ranking=RANKING)


def told(model: Model, rows: Rows) -> Told:
    """What pairs with candidates are ranked by, as workers would tell it."""
    near = Neighbours(rows.followers, rows.followees, rows.degrees[:, 1].tolist())
    return Told(model.lineage, model.encode_producers(rows).vectors.tobytes(), pack(marks(rows)), near)


def asked(rows: Rows, at: int, excluded: Sequence[str]) -> Asked:
    """What an answer for an account would be made of."""
    since = [(rows.as_of, name) for name in rows.followers[at]]
    about = About(since, rows.followees[at], (9, 5, 2), 60.0, [("a1", 5.0)], 1, -1, [(3, 1.0)])
    return Asked(about, [rows.accounts[at], *excluded], ["a2"], rows.as_of)


def the_log(count: int, seed: int = 0, *, days: int = 0) -> list[bytes]:
    """Records as workers would write them: encoded candidates, follows of three partitions, a deletion."""
    rng = np.random.default_rng(seed)
    model = Model.day_zero(seed=0)
    ids = model.ids
    ids.rows_of([f"z{n}" for n in range(seed + 1)])  # another worker numbers rows otherwise
    found: list[bytes] = []
    offsets = [0] * PARTITIONS
    for number in range(count):
        as_of = NOW + number * (DAY * days // max(count, 1))
        some = rng.choice(60, 12, replace=False).tolist()
        rows = take(WORLD, some)
        features = producer_features(rows, ids)
        found.append(learning.encoded(as_of, features, ids, rows.accounts, told(model, rows)))
        asking = take(WORLD, rng.integers(0, 60, 10).tolist())
        partition = number % PARTITIONS
        places = range(offsets[partition], offsets[partition] + 10)
        offsets[partition] += 10
        targets = [f"a{x}" for x in rng.integers(0, 60, 10)]
        some = [asked(asking, at, [f"a{number}"]) if at % 3 == 0 else None for at in range(10)]
        features_of = consumer_features(asking, ids)
        batch = Captured(features_of, asking.accounts, targets, places, as_of, asking, asked=some)
        found.append(learning.followed(partition, batch, ids))
        if number % 4 == 1:
            found.append(learning.others([f"a{number}", "new"], Neighbours([[], ["a5"]], [[], []], [0, 0])))
    found.append(learning.forgotten(["a3", "nobody"]))
    return found


def learned(log: list[bytes], given: Learner | None = None) -> Learner:
    found = given or learner()
    for offset in range(found.offset, len(log)):
        assert not found.take(offset, log[offset]).unusable
    return found


def bytes_of(found: Learner, folder: Path) -> bytes:
    found.save(folder / "model")
    return (folder / "model").read_bytes()


def test_features_travel_by_name() -> None:
    here, there = IdVectors(4, 4, 0, 0.1), IdVectors(4, 4, 0, 0.1)
    there.rows_of([f"a{n}" for n in range(499, -1, -1)])
    for make, unpack in ((producer_features, named.producers), (consumer_features, named.consumers)):
        features = make(WORLD, here)
        raw = msgspec.msgpack.encode(named.pack(features, here))
        came = unpack(msgspec.msgpack.decode(raw, type=named.Named), there)
        for field, values in make(WORLD, there)._asdict().items():
            np.testing.assert_array_equal(getattr(came, field), values, err_msg=field)
            assert getattr(came, field).dtype == values.dtype


def test_packed_features_are_refused_unless_whole() -> None:
    ids = IdVectors(4, 4, 0, 0.1)
    packed = named.pack(producer_features(WORLD, ids), ids)
    for broken, why in (
        (msgspec.structs.replace(packed, schema="0" * 16), "schema"),
        (msgspec.structs.replace(packed, fields=packed.fields[:-1]), "fields"),
        (msgspec.structs.replace(packed, fields=[*packed.fields[:-1], b"123"]), "sketches has 3 bytes"),
        (msgspec.structs.replace(packed, names=packed.names[:3]), "beyond the 3"),
    ):
        with pytest.raises(NamedError, match=why):
            named.producers(broken, ids)


@settings(max_examples=8)
@given(st.integers(0, 16), st.integers(0, 16))
def test_a_trainer_that_stops_and_goes_on_ends_in_the_same_bytes(
    tmp_path_factory: pytest.TempPathFactory, one: int, other: int
) -> None:
    folder = tmp_path_factory.mktemp("learned")
    log = the_log(8)
    expected = learned(log)
    assert expected.model.ranker.examples > 4
    whole = bytes_of(expected, folder)
    now = learner()
    for cut in sorted((one, other)):
        now = learned(log[:cut], now)
        now.save(folder / "checkpoint")
        learned(log[: cut + 2], now)  # learned and lost: it dies before the next checkpoint
        now = Learner.load(
            folder / "checkpoint",
            PARTITIONS,
            TrainerConfig(),
            example_batch=8,
            idle_days=365,
            ranking=RANKING,
        )
        assert now.offset == cut
    assert bytes_of(learned(log, now), folder) == whole


def test_a_follow_that_is_told_again_counts_once() -> None:
    log = the_log(4)
    once, again = learned(log[:-1]), learner()
    for offset, raw in enumerate(log[:-1]):
        again.take(offset, raw)
    steps = again.model.step
    result = again.take(len(log), log[1])  # by whoever folded the partition from an older copy
    assert (result.trained, result.unusable, again.model.step) == (0, "", steps)
    for name, values in once.model.arrays().items():
        np.testing.assert_array_equal(values, again.model.arrays()[name], err_msg=name)


def test_what_cannot_be_read_is_passed_over_and_says_why() -> None:
    found = learner()
    (encoded, followed), truncated = the_log(1)[:2], the_log(1)[1][:-40]
    record, candidates = msgspec.msgpack.decode(followed), msgspec.msgpack.decode(encoded)
    alien = msgspec.msgpack.encode([*record[:2], 7, *record[3:]])
    short = msgspec.msgpack.encode([*record[:5], record[5][:3], record[6]])
    fewer = msgspec.msgpack.encode([*record[:6], record[6][:3]])
    lineage, vectors, told_marks, near = candidates[4]
    broken = [
        [lineage, vectors[:-4], told_marks, near],
        [lineage, vectors, told_marks[:-1], near],
        [lineage, vectors, [b"x" * 300, *told_marks[1:]], near],
        [lineage, vectors, told_marks, [near[0][:-1], *near[1:]]],
    ]
    wrong = [msgspec.msgpack.encode([*candidates[:4], told]) for told in broken]
    wrong.append(learning.others(["a1"], Neighbours([], [], [])))
    bad = (b"", b"\xff", truncated, alien, short, fewer, *wrong)
    for offset, raw in enumerate(bad):
        assert found.take(offset, raw).unusable
    assert found.model.step == 0
    assert found.offset == len(bad)
    assert found.looker is not None
    assert not found.looker.index.ids()
    found.take(found.offset, encoded)
    assert found.take(found.offset, followed).trained > 0


def test_the_ranker_learns_from_whom_an_answer_would_hold_and_the_towers_take_no_part_in_it() -> None:
    log = [*the_log(8), learning.others(["a7"], Neighbours([[]], [["a5"]], [1]))]
    found, towers = learned(log), learner()
    towers.looker = None
    learned(log, towers)
    for name, values in found.model.arrays().items():
        if not name.startswith("ranker."):
            np.testing.assert_array_equal(values, towers.model.arrays()[name], err_msg=name)
    assert (towers.model.ranker.examples, found.model.ranker.examples > 4) == (0, True)
    looker = found.looker
    assert looker is not None
    assert "a3" not in [*looker.index.ids(), *looker.facts.names]  # it was deleted
    assert sorted(looker.facts.candidates()) == sorted(looker.index.ids())
    assert "a7" not in looker.index  # nobody's candidate in the end
    assert looker.facts.followed_by(looker.facts.numbers_of(["a7"])).gained.tolist() == [1.0]


def test_vectors_of_another_lineage_are_not_taken() -> None:
    found, model = learner(), Model.day_zero(seed=1)
    rows = take(WORLD, [1, 2])
    features = producer_features(rows, model.ids)
    found.take(0, learning.encoded(NOW, features, model.ids, rows.accounts, told(model, rows)))
    assert found.looker is not None
    assert not found.looker.index.ids()
    assert len(found.trainer.producers) == 2


def test_who_is_idle_is_forgotten_and_memory_is_bounded() -> None:
    log = the_log(40, days=400)
    kept, swept = learned(log, learner(idle_days=10_000)), learned(log, learner(idle_days=1))
    assert len(swept.model.ids) < len(kept.model.ids)
    assert "a3" not in kept.model.ids  # it was deleted


def test_a_follow_counts_where_it_came_about_and_each_pair_once() -> None:
    ids = IdVectors(4, 4, 0, 0.1)
    rows = take(WORLD, [0, 1, 2, 0])
    batch = Captured(
        consumer_features(rows, ids), rows.accounts, ["x", "y", "z", "x"], [4, 5, 6, 7], NOW, rows
    )
    changes = [
        Change("a0", "x", 0, -1, NOW),
        Change("a1", "y", 0, NOW, -1),  # unfollowed
        Change("a2", "z", 3, -1, NOW),  # blocked
    ]
    (kept,) = learning.came_about([batch], changes)
    assert (kept.actors, kept.targets, kept.offsets) == (["a0"], ["x"], [4])
    assert learning.came_about([batch], []) == []


def model_of(found: Learner) -> dict[str, np.ndarray]:
    """Weights, and the vectors of all whom a log names, by name."""
    model = found.model
    return at_names(model)


def at_names(model: Model) -> dict[str, np.ndarray]:
    rows = model.ids.rows_of([f"a{n}" for n in range(500)])
    weights = {name: p.detach().numpy().copy() for name, p in model.tower.named_parameters()}
    return {**weights, "target": model.ids.target[rows], "source": model.ids.source[rows]}


class Topic:
    """A compacted topic: it may keep the newest record of each key alone, and its order."""

    def __init__(self) -> None:
        self.records: list[tuple[bytes, bytes | None]] = []

    def compacted(self) -> list[tuple[bytes, bytes | None]]:
        newest = {key: at for at, (key, _) in enumerate(self.records)}
        return [r for at, r in enumerate(self.records) if newest[r[0]] == at]


@settings(max_examples=10)
@given(st.sets(st.integers(1, 16), max_size=5), st.booleans())
def test_a_follower_ends_at_the_trainers_model_in_every_bit(told: set[int], compacted: bool) -> None:
    log, topic, found = the_log(8), Topic(), learner()
    ahead = Follower(Model.day_zero(seed=0))
    for offset, raw in enumerate(log):
        found.take(offset, raw)
        if offset in told or offset == len(log) - 1:
            new = list(records(found.trainer.delta(), 1, found.offset, NOW))
            topic.records += new
            assert not ahead.feed(new[:-1])  # a step is whole with its weights
            assert ahead.feed(new[-1:])
            assert ahead.apply() == found.model.step
    late = Follower(Model.day_zero(seed=0))
    late.feed(topic.compacted() if compacted else topic.records)
    late.apply()
    expected = model_of(found)
    for follower in (ahead, late):
        assert (follower.step, follower.offset, follower.unusable) == (found.model.step, len(log), 0)
        for name, values in at_names(follower._model).items():
            np.testing.assert_array_equal(values, expected[name], err_msg=name)


def test_a_trainer_that_was_replaced_is_not_heard() -> None:
    log = the_log(4)
    old, new = learned(log[:2]), learned(log)
    fresh, stale = (
        list(records(found.trainer.delta(), run, found.offset, NOW)) for found, run in ((new, 2), (old, 1))
    )
    follower = Follower(Model.day_zero(seed=0))
    assert follower.feed(fresh)
    follower.apply()
    assert not follower.feed(stale)
    follower.feed([(b"\0step", b"junk"), (b"a1", b"short"), (None, b"x")])
    follower.apply()
    assert follower.unusable == 3
    for name, values in at_names(follower._model).items():
        np.testing.assert_array_equal(values, model_of(new)[name], err_msg=name)
