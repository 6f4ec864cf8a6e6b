"""Answers at a token from stores that another holds, without a broker: what holds each level back."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from msgspec.msgpack import encode

from kithstream.index.config import IndexConfig
from kithstream.index.live import LiveIndex
from kithstream.models.model import Model
from kithstream.streams.config import EngineConfig, RankingConfig, StoreConfig
from kithstream.streams.engine.actors import Record
from kithstream.streams.engine.partition import Partition
from kithstream.streams.engine.routing import Route
from kithstream.streams.engine.shard import Shard
from kithstream.streams.errors import NotYet, Unanswerable, Unavailable
from kithstream.streams.events import wire as events
from kithstream.streams.events.wire import Event
from kithstream.streams.kafka.reading import Reading, own_folder
from kithstream.streams.kafka.tail import Tail
from kithstream.streams.kafka.wire import PROGRESS, Progress, Vector
from kithstream.streams.serve.answers import Answer, Level, Question
from kithstream.streams.state.store import RocksStore

NOW = 1_790_000_000_000_000
SMALL = StoreConfig(cache_bytes=1 << 20, write_buffer_bytes=1 << 20)
ROUTE = Route(2)
MINE, YOURS = (next(f"u{n}" for n in range(99) if ROUTE[f"u{n}"] == number) for number in range(2))


class Town:
    """Two partitions, folded by hand, and the reading of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.shards = [
            Shard(
                Partition(RocksStore(folder / str(n), SMALL), n, 2, EngineConfig(), salt=b"salt" * 4), ROUTE
            )
            for n in range(2)
        ]
        model = Model.day_zero(0)
        index = LiveIndex(IndexConfig(dim=model.dim, bound=model.norm_bound))
        self.tail = Tail(index, 2)
        self.reading = Reading(ROUTE, SMALL, RankingConfig(), folder / "own", lambda: NOW)
        self.reading.take(self.reading.view(model, index, self.tail))
        self.progress = [Progress(1, 0, [0, 0]), Progress(1, 0, [0, 0])]

    def act(self, number: int, *given: Event) -> None:
        """Fold events of a partition; nobody is told."""
        shard = self.shards[number]
        first = shard.partition.applied
        records = [Record(NOW, events.encode(event)) for event in given]
        shard.act(shard.decode(records, range(first, first + len(records))), first + len(records))

    def tell(self, source: int, destination: int) -> None:
        """Bring what a partition has to say to another."""
        frames = [frame.raw for frame in self.shards[source].waiting() if frame.destination == destination]
        self.shards[destination].hear([*frames, self.shards[source].told()])

    def reach(self, number: int, applied: int, heard: list[int]) -> None:
        """Tell how far a partition's vectors have come."""
        self.tail.feed([(number, PROGRESS, encode(Progress(1, applied, heard)))])

    def ask(self, account: str, after: str = "", level: Level = "state") -> Answer:
        question = Question(account, after=after, level=level)
        answer = self.reading.answer(question)
        assert self.reading.includes(question)
        return answer


@pytest.fixture
def town(tmp_path: Path) -> Iterator[Town]:
    town = Town(tmp_path)
    for number in range(2):
        town.reading.open(number, tmp_path / str(number))
    yield town
    for number in range(2):
        town.reading.close(number)
        town.shards[number].partition.store.close()


def follow(actor: str, target: str) -> Event:
    return Event(f"{actor}>{target}", "follow", actor, NOW, target=target)


def test_a_state_token_waits_for_what_the_own_partition_has_folded(town: Town) -> None:
    town.shards[0].hear([town.shards[0].told()])
    with pytest.raises(NotYet):
        town.ask(MINE, "0:1")
    town.act(0, follow(MINE, YOURS))
    with pytest.raises(NotYet):  # its own frames to itself are not folded
        town.ask(MINE, "0:1")
    town.tell(0, 0)
    assert town.ask(MINE, "0:1")


def test_a_state_token_waits_for_what_is_said_of_the_account(town: Town) -> None:
    """A block covers the blocked side once its frame is folded there, not before."""
    town.act(0, Event("b", "block", MINE, NOW, target=YOURS))
    town.tell(0, 0)
    assert town.ask(MINE, "0:1")
    assert YOURS in town.reading._exclusions.of(MINE)
    with pytest.raises(NotYet):
        town.ask(YOURS, "0:1")
    town.tell(0, 1)
    assert town.ask(YOURS, "0:1")
    assert MINE in town.reading._exclusions.of(YOURS)


def test_applied_counts_where_the_partition_is_the_accounts_own(town: Town) -> None:
    """Frames of a partition that comes from an older checkpoint may have been told already."""
    town.act(0, follow(MINE, YOURS))
    partition = town.shards[0].partition
    ahead = Shard(partition, ROUTE)
    partition.applied += 5
    told = ahead.told()
    partition.applied -= 5
    town.shards[0].hear([told])
    town.shards[1].hear([told])
    with pytest.raises(NotYet):
        town.ask(MINE, "0:6")
    assert town.ask(YOURS, "0:6")
    town.reach(0, 6, [6, 0])
    town.reach(1, 0, [6, 0])
    assert (town.ask(MINE).token, town.ask(YOURS).token) == ("0:1,1:0", "0:6,1:0")


@pytest.mark.parametrize(
    ("partition", "applied", "heard"), [(0, 0, [1, 0]), (0, 1, [0, 0]), (1, 0, [0, 0]), (-1, 0, [])]
)
def test_a_vectors_token_waits_for_every_partitions_vectors(
    town: Town, partition: int, applied: int, heard: list[int]
) -> None:
    """Each case holds back one condition alone; without any of them it holds."""
    town.act(0, follow(MINE, YOURS))
    for destination in range(2):
        town.tell(0, destination)
    town.reach(0, 1, [1, 0])
    town.reach(1, 0, [1, 0])
    if partition >= 0:
        town.reach(partition, applied, heard)
    assert town.ask(YOURS, "0:1")
    if partition >= 0:
        with pytest.raises(NotYet):
            town.ask(YOURS, "0:1", "vectors")
    else:
        assert town.ask(YOURS, "0:1", "vectors").token == "0:1,1:0"


def test_the_token_of_an_answer_holds_for_the_next_one_at_both_levels(town: Town) -> None:
    town.act(0, follow(MINE, YOURS), follow(MINE, "x"))
    town.act(1, follow(YOURS, MINE))
    for source in range(2):
        for destination in range(2):
            town.tell(source, destination)
    town.reach(0, 1, [1, 1])
    town.reach(1, 1, [2, 1])
    token = town.ask(MINE).token
    assert token == "0:1,1:1"
    assert town.ask(MINE, token, "vectors").token == token
    town.reach(0, 2, [2, 1])
    assert town.ask(MINE, token, "vectors").token == "0:2,1:1"


def test_a_partition_that_is_not_here_is_unavailable_and_nobody_waits_for_it(town: Town) -> None:
    town.reading.close(0)
    assert town.reading.includes(Question(MINE, after="0:99"))
    with pytest.raises(Unavailable):
        town.ask(MINE)
    assert town.reading.look([0, 1]).keys() == {1}
    town.reading.open(0, town.folder / "0")
    assert town.ask(MINE)


def test_a_deactivated_and_a_deleted_account_are_told_apart(town: Town) -> None:
    town.act(0, follow(MINE, YOURS), Event("d", "account_deactivate", MINE, NOW))
    with pytest.raises(Unanswerable) as told:
        town.ask(MINE)
    assert not told.value.gone
    town.act(0, Event("x", "account_delete", MINE, NOW + 1))
    with pytest.raises(Unanswerable) as told:
        town.ask(MINE)
    assert told.value.gone


def test_nobody_is_named_of_whose_deletion_the_state_has_heard(town: Town) -> None:
    """Whose vector is still in the index: the log's vectors come later than its state."""
    dim = town.tail._dim
    facts = [(name, Vector(1, 7, 0, 0, 0, 0, [], np.ones(dim, "<f4").tobytes())) for name in (YOURS, "other")]
    town.tail.feed([(1, name.encode(), encode(vector)) for name, vector in facts])
    assert {one.account for one in town.ask(MINE).candidates} == {YOURS, "other"}
    town.act(1, Event("x", "account_delete", YOURS, NOW))
    town.tell(1, 0)
    answer = town.ask(MINE, "1:1")
    assert [one.account for one in answer.candidates] == ["other"]
    assert answer.short


def test_an_answer_across_a_change_of_owner_is_none(town: Town) -> None:
    """The owner changes while the index is asked: what was checked before does not hold after."""
    town.reach(0, 0, [0, 0])
    town.reach(1, 0, [0, 0])
    glances = town.tail.glances

    def moving(accounts: object, as_of: int) -> object:
        town.tail.feed([(1, PROGRESS, encode(Progress(2, 0, [0, 0])))])
        return glances([], as_of)

    town.tail.glances = moving  # type: ignore[method-assign, assignment]
    with pytest.raises(NotYet, match="another owner"):
        town.ask(MINE)
    assert town.ask(MINE)


def test_what_a_killed_process_left_is_removed_by_the_next_of_its_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    killed, other = own_folder(tmp_path / "a"), own_folder(tmp_path / "b")
    left, others = killed.__enter__(), other.__enter__()
    (left / "1").mkdir()
    with own_folder(tmp_path / "a") as own:
        assert own.is_dir()
        assert own != left
        assert not left.exists()
    assert not own.exists()
    assert others.is_dir()
    other.__exit__(None, None, None)
    killed.__exit__(None, None, None)
