"""Pairs ranked from what the records of vectors tell, without a broker: as in one process, and nobody forbidden."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from promises import expected
from soup import ACCOUNTS, DAY, START, departing, soup

from kithstream.index.config import IndexConfig
from kithstream.index.live import LiveIndex
from kithstream.models.ages import TICK
from kithstream.models.model import Model
from kithstream.models.ranker import Weights
from kithstream.models.train import OnlineTrainer, TrainerConfig
from kithstream.streams.config import (
    Config,
    EngineConfig,
    IndexSection,
    ModelConfig,
    RankingConfig,
    StoreConfig,
)
from kithstream.streams.engine.actors import Record
from kithstream.streams.engine.partition import Partition
from kithstream.streams.engine.shard import Shard, Shards
from kithstream.streams.errors import Unanswerable
from kithstream.streams.events import wire as events
from kithstream.streams.events.wire import Event
from kithstream.streams.kafka.outlet import Outlet
from kithstream.streams.kafka.reading import Reading
from kithstream.streams.kafka.steps import Follower
from kithstream.streams.kafka.tail import Tail
from kithstream.streams.kafka.wire import Vector
from kithstream.streams.learning import Learner
from kithstream.streams.looking import Asking
from kithstream.streams.serve.answers import Candidate, Question
from kithstream.streams.serve.embedded import Embedded
from kithstream.streams.serve.facts import Facts
from kithstream.streams.serve.nominators import Around
from kithstream.streams.serve.ranking import Encoded
from kithstream.streams.serve.vectors import BESIDE
from kithstream.streams.state.store import RocksStore

PARTITIONS = 2
SLOW = settings(max_examples=8, suppress_health_check=[HealthCheck.too_slow])
decode = msgspec.msgpack.Decoder(Vector).decode
SMALL = StoreConfig(cache_bytes=1 << 20, write_buffer_bytes=1 << 20)


@pytest.fixture(scope="module")
def given_model(tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    """A model whose ranker ranks, by any weights."""
    made, rng = Model.day_zero(seed=0), np.random.default_rng(3)
    made.ranker.weights = Weights(*(rng.normal(size=w.shape) for w in made.ranker.weights))
    made.ranker.examples, made.ranker.gain = 10_000, 0.01
    path = tmp_path_factory.mktemp("model") / "given.safetensors"
    made.save(path)
    return ModelConfig(path=str(path), learn=False)


class Town:
    """Partitions folded by hand; their vectors go as records into a reading of the stores."""

    def __init__(self, folder: Path, config: Config) -> None:
        self.now = START + 7 * DAY
        self.shards = Shards(PARTITIONS, config.engine)
        for n in range(PARTITIONS):
            store = RocksStore(folder / str(n), SMALL)
            partition = Partition(store, n, PARTITIONS, config.engine, salt=b"salt" * 4)
            self.shards[n] = Shard(partition, self.shards.route)
        model = Model.load(config.model.path)
        generations = dict.fromkeys(range(PARTITIONS), 1)
        self.outlet = Outlet(
            model,
            Follower(model),
            self.shards,
            msgspec.structs.replace(config.model, learn=True),  # it tells the log
            "",
            generations,
            lambda: self.now,
            pairs=config.ranking.ranker,
        )
        self.facts = Facts()
        self.index = LiveIndex(IndexConfig(dim=model.dim, bound=model.norm_bound))
        self.tail = Tail(self.index, PARTITIONS, self.facts)
        self.reading = Reading(self.shards.route, SMALL, config.ranking, folder / "own", lambda: self.now)
        self.reading.take(self.reading.view(model, self.index, self.tail))
        for n in range(PARTITIONS):
            self.reading.open(n, folder / str(n))
        trainer = OnlineTrainer(
            Model.load(config.model.path), TrainerConfig(), np.random.Generator(np.random.PCG64(0))
        )
        self.learner = Learner(trainer, PARTITIONS, example_batch=64, idle_days=365, ranking=config.ranking)

    def fold(self, given: Sequence[Event]) -> None:
        """Fold events until nothing moves."""
        touch = self.outlet.vectors.touch
        for number, shard in self.shards.items():
            mine = [event for event in given if self.shards.route[event.actor] == number]
            first = shard.partition.applied
            records = [Record(self.now, events.encode(event)) for event in mine]
            ends = first + len(records)
            touch(shard.act(shard.decode(records, range(first, ends)), ends).touched)
        moved = True
        while moved:
            moved = False
            for shard in self.shards.values():
                moved |= bool(shard.work())
                touch(shard.partition.reworked)
                shard.partition.reworked.clear()
                for frame in shard.waiting():
                    touch(self.shards[frame.destination].hear([frame.raw]).touched)
                    shard.acknowledge(frame)
                    moved = True

    def flush(self) -> None:
        """Encode what is due; bring the records to the reader."""
        self.outlet.vectors.advance(self.now)
        self.outlet.encode(1000)
        out, lessons = self.outlet.take()
        self.tail.feed([(n, *pair) for n, pairs in out.items() for pair in pairs])
        for lesson in lessons:
            assert not self.learner.take(self.learner.offset, lesson).unusable

    def encode_candidates(self) -> None:
        """Encode every candidate again; what others were told of those that are none stays as it is."""
        self.outlet.vectors.touch(list(self.outlet.vectors.ageing))
        self.flush()

    def ask(self, account: str, **question: object) -> list[Candidate]:
        asked = Question(account, level="state", **question)  # type: ignore[arg-type]  # named fields
        return list(self.reading.answer(asked).candidates)

    def close(self) -> None:
        for n in range(PARTITIONS):
            self.reading.close(n)
            self.shards[n].partition.store.close()


@contextmanager
def opened(folder: Path, config: Config) -> Iterator[Town]:
    town = Town(folder, config)
    try:
        yield town
    finally:
        town.close()


def configured(model: ModelConfig, **ranking: int) -> Config:
    return Config(
        model=model,
        engine=EngineConfig(partitions=PARTITIONS),
        index=IndexSection(background=False),
        ranking=RankingConfig(**ranking),  # type: ignore[arg-type]  # named fields
    )


@SLOW
@given(st.one_of(soup(), departing()), st.randoms(use_true_random=False))
def test_answers_are_those_of_the_embedded_runtime(
    tmp_path_factory: pytest.TempPathFactory,
    given_model: ModelConfig,
    given: list[Event],
    rng: random.Random,
) -> None:
    """However events were batched and records read, and though those that are nobody's candidates have no vector."""
    config = configured(given_model, considered=2, nominated=2)
    folder = tmp_path_factory.mktemp("pairs")
    with opened(folder / "town", config) as town:
        for first in range(0, len(given), 7):
            town.fold(given[first : first + 7])
            town.flush()
            town.now += rng.choice((0, TICK, 3 * TICK))
        town.encode_candidates()
        with Embedded(folder / "embedded", config, clock=lambda: town.now) as live:
            live.publish(given)
            live.catch_up()
            live.chain.rebuild(town.now)
            for account in (*ACCOUNTS, "new"):
                try:
                    same = live.candidates(account, explain="full").candidates
                except Unanswerable:
                    with pytest.raises(Unanswerable):
                        town.ask(account)
                    continue
                assert town.ask(account, explain="full") == list(same)
        gone = {e.actor for e in given if e.signal == "account_delete"}
        assert not gone & set(town.facts.names)


@SLOW
@given(soup())
def test_the_trainer_learns_from_whom_the_embedded_runtime_would(
    tmp_path_factory: pytest.TempPathFactory, given_model: ModelConfig, given: list[Event]
) -> None:
    """Of every account and target: what the log tells leads to the same example, in every bit."""
    config = configured(given_model, considered=3, nominated=2)
    every = msgspec.structs.replace(config.ranking, train_share=1.0, train_most=1000)
    config = msgspec.structs.replace(config, ranking=every)
    folder = tmp_path_factory.mktemp("pairs")
    with (
        opened(folder / "town", config) as town,
        Embedded(folder / "embedded", config, clock=lambda: town.now) as live,
    ):
        for first in range(0, len(given), 7):
            town.fold(given[first : first + 7])
            town.flush()
        town.encode_candidates()
        live.publish(given)
        live.catch_up()
        live.chain.rebuild(town.now)
        looker, chain = town.learner.looker, live.chain
        assert looker is not None
        asking = Asking(town.shards, config.ranking, 0)
        for account in ACCOUNTS:
            reader = town.outlet.vectors.reader
            rows = reader.read([account], [town.now], unreciprocated=True)
            (asked,) = asking.read(reader, rows, [("any", town.now)])
            assert asked is not None
            here = chain._reader.read([account], [town.now], unreciprocated=True)
            vectors, step, _ = chain.model.encode_consumers(here)
            for target in ACCOUNTS:
                found = looker.look(asked, vectors[0], target)
                same = chain._ranker.example(Encoded(here, vectors, step), target, town.now)
                assert (found is None) == (same is None)
                if found is not None and same is not None:
                    np.testing.assert_array_equal(found.scores, same.scores)
                    np.testing.assert_array_equal(found.features.dense, same.features.dense)
                    np.testing.assert_array_equal(found.features.buckets, same.features.buckets)
                    assert found.chosen == same.chosen


class Everyone:
    """Nominates all it ever heard of, forbidden or not."""

    def nominate(self, around: Around, k: int) -> Sequence[str]:
        return (*ACCOUNTS, "nobody")


@SLOW
@given(soup())
def test_whoever_nominates_no_answer_holds_a_forbidden_account(
    tmp_path_factory: pytest.TempPathFactory, given_model: ModelConfig, given: list[Event]
) -> None:
    with opened(tmp_path_factory.mktemp("pairs"), configured(given_model, considered=1)) as town:
        whole = town.reading.current.ranker._whole
        assert whole is not None
        whole.nominators["popular"] = Everyone()
        for first in range(0, len(given), 6):
            town.fold(given[first : first + 6])
            town.flush()
            edges = expected(given[: first + 6], START + 7 * DAY).edges
            for account in ACCOUNTS[:3]:
                forbidden = {account, "eve"}
                for actor, family, target, _ in edges:
                    if actor == account and family in ("follow", "block", "mute", "report"):
                        forbidden.add(target)
                    if target == account and family in ("block", "mute", "report"):
                        forbidden.add(actor)
                shown = {c.account for c in town.ask(account, exclude=["eve"])}
                assert not forbidden & shown
                assert all(name in town.index for name in shown)
                allowed = {c.account for c in town.ask(account, allow=["bob", "cyd"])}
                assert allowed <= {"bob", "cyd"} - (forbidden - {"eve"})


def follow(actor: str, target: str) -> Event:
    return Event(f"{actor}>{target}", "follow", actor, START + 6 * DAY, target=target)


def test_two_steps_lead_through_accounts_that_are_nobodys_candidates(
    tmp_path: Path, given_model: ModelConfig
) -> None:
    """ann -> bob <- lurker -> far: nobody follows the lurker. Its way goes with its last follow."""
    with opened(tmp_path, configured(given_model)) as town:
        town.fold([follow("ann", "bob"), follow("lurker", "bob"), follow("lurker", "far")])
        town.flush()

        def reached() -> list[str]:
            with town.facts.lock:
                hops = town.facts.co_followed(town.facts.numbers_of(["bob"]))
                return [town.facts.names[number] for number in hops.numbers.tolist()]

        assert "lurker" not in town.index
        assert set(reached()) == {"bob", "far"}
        (far,) = (c for c in town.ask("ann", explain="full") if c.account == "far")
        assert "two_hop" in far.sources  # type: ignore[operator]  # it is set
        town.fold([Event("r1", "retract", "lurker", START + 6 * DAY, retracts="lurker>far")])
        town.flush()
        assert reached() == ["bob"]
        town.fold([Event("r2", "retract", "lurker", START + 6 * DAY, retracts="lurker>bob")])
        town.flush()
        with town.facts.lock:
            assert not len(town.facts.followed_by(town.facts.numbers_of(["lurker"])).numbers)


def test_nothing_is_told_where_nobody_ranks_pairs(tmp_path: Path, given_model: ModelConfig) -> None:
    with opened(tmp_path, configured(given_model, ranker=False)) as town:
        town.fold([follow("ann", "bob"), follow("lurker", "bob")])
        town.outlet.vectors.advance(town.now)
        town.outlet.encode(1000)
        ((key, value),) = (pair for part in town.outlet.take()[0].values() for pair in part)
        assert value is not None
        told = decode(value)
        assert (key, set(told.followers)) == (b"bob", {"ann", "lurker"})  # of these reasons are made
        assert (told.followees, told.following, told.marks) == ([], 0, b"")


def test_a_partition_is_told_anew_where_pairs_come_to_be_ranked(
    tmp_path: Path, given_model: ModelConfig
) -> None:
    """Its vectors were published without what pairs are ranked by: all of it is, once, those without a vector too."""
    with opened(tmp_path, configured(given_model)) as town:
        town.fold([follow("ann", "bob"), follow("lurker", "bob")])
        model, config = town.outlet.model, configured(given_model)

        def told(*, pairs: bool) -> set[bytes]:
            """Keys of the records that another process publishes, from when it opens the partitions on."""
            outlet = Outlet(
                model,
                Follower(model),
                town.shards,
                config.model,
                "",
                {0: 1, 1: 1},
                lambda: town.now,
                pairs=pairs,
            )
            for partition in town.shards.here():
                outlet.open(partition)
            whole = all(outlet.whole(n) for n in range(PARTITIONS))
            outlet.published(outlet.encode(1000)[0])
            assert all(outlet.whole(n) for n in range(PARTITIONS))
            out, _ = outlet.take()
            return {b"whole"} if whole else {key for part in out.values() for key, _ in part}

        assert told(pairs=False) == {b"bob"}
        assert told(pairs=False) == {b"whole"}
        assert told(pairs=True) == {b"ann", b"bob", b"lurker"}
        assert told(pairs=True) == {b"whole"}
        assert told(pairs=False) == {b"whole"}


def test_what_changed_and_has_aged_goes_out_once(tmp_path: Path, given_model: ModelConfig) -> None:
    """Beside others that only aged, which more of wait where as many were taken as may be."""
    with opened(tmp_path, configured(given_model)) as town:
        town.fold([follow("ann", name) for name in ("bob", "cid", "dan")])
        town.flush()
        town.now += 2 * TICK
        town.outlet.vectors.advance(town.now)
        town.fold([follow("eve", "bob")])
        accounts, more = town.outlet.encode(3)
        assert sorted(accounts) == ["bob", "cid", "dan", "eve"]
        assert more
        out, _ = town.outlet.take()
        vectors = [key for part in out.values() for key, value in part if value and decode(value).vector]
        assert sorted(vectors) == [b"bob", b"cid", b"dan"]
        assert town.outlet.encode(3) == ([], False)


def test_no_more_of_what_aged_goes_out_than_of_what_changed(tmp_path: Path, given_model: ModelConfig) -> None:
    """But for a few; what is left goes when nothing changes."""
    many = [f"u{number}" for number in range(2 * BESIDE)]
    with opened(tmp_path, configured(given_model)) as town:
        town.fold([follow("ann", name) for name in many])
        town.flush()
        town.now += 2 * TICK
        town.outlet.vectors.advance(town.now)
        town.fold([follow("eve", "bob")])
        accounts, more = town.outlet.encode(1000)
        assert {"bob", "eve"} < set(accounts)
        assert (len(accounts), more) == (2 + BESIDE, True)
        left, more = town.outlet.encode(1000)
        assert (set(left), more) == ({*many} - {*accounts}, False)
