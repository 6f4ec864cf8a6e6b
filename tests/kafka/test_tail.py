"""Vectors into the index, and how far they have come, without a broker."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from kithstream.index.config import IndexConfig
from kithstream.index.live import LiveIndex
from kithstream.streams.kafka.tail import Tail
from kithstream.streams.kafka.wire import PROGRESS, Progress, Vector
from kithstream.streams.state.ledger import DAY
from kithstream.streams.state.reader import Glance

DIM = 4
_pack = msgspec.msgpack.encode
Record = tuple[int, bytes | None, bytes | None]


@pytest.fixture
def tail() -> Tail:
    return Tail(LiveIndex(IndexConfig(dim=DIM)), 2)


def vector(account: str, value: float, generation: int = 1, partition: int = 0) -> Record:
    raw = np.full(DIM, value, "<f4").tobytes()
    facts = Vector(generation, 7, 0, 149, 3, 12, ["fan"], raw)
    return partition, account.encode(), _pack(facts)


def dead(account: str, generation: int = 1) -> Record:
    return 0, account.encode(), _pack(Vector(generation, 7, 0, 0, 0, 0, [], b""))


def progress(partition: int, applied: int, heard: list[int], generation: int = 1) -> Record:
    return partition, PROGRESS, _pack(Progress(generation, applied, heard))


def held(tail: Tail) -> dict[str, float]:
    index = tail._index
    return {name: float(index.vector(name)[0]) for name in index.ids()}


def test_the_last_record_of_an_account_holds(tail: Tail) -> None:
    fed = tail.feed([vector("a", 1), vector("b", 2), vector("a", 3), vector("c", 4), dead("c")])
    assert (fed.upserted, fed.deleted, held(tail)) == (2, 1, {"a": 3, "b": 2})
    tail.feed([dead("a"), (0, b"a", None), vector("c", 5)])
    assert held(tail) == {"b": 2, "c": 5}


def test_an_owner_is_told_though_only_its_progress_is_of_a_lower_generation(tail: Tail) -> None:
    """It may have nothing to encode for long, and nobody would know how far it has come."""
    assert tail.feed([progress(0, 5, [5, 0], 7), progress(1, 0, [5, 0])]).stale == {}
    fed = tail.feed([progress(0, 9, [9, 0], 6)])
    assert (fed.stale, tail.generation(0), tail.token) == ({0: []}, 7, {0: 5, 1: 0})
    tail.feed([progress(0, 9, [9, 0], 8)])
    assert tail.token[0] == 5  # as far as partition 1 has heard


def test_a_tombstone_alone_deletes_nothing(tail: Tail) -> None:
    tail.feed([vector("a", 1)])
    tail.feed([(0, b"a", None)])
    assert held(tail) == {"a": 1}


def test_what_is_no_vector_is_counted_and_stops_nothing(tail: Tail) -> None:
    short = _pack(Vector(1, 7, 0, 0, 0, 0, [], b"\0" * 5))
    bad: list[Record] = [(0, b"x", b"\xc1"), (0, b"y", short), (0, b"\xff", vector("z", 1)[2])]
    fed = tail.feed([*bad, progress(0, 5, [5]), vector("a", 1)])
    assert (fed.unusable, held(tail)) == (4, {"a": 1})
    assert tail.token == {}


def test_reasons_are_made_of_the_facts_of_their_day(tail: Tail) -> None:
    tail.feed([vector("a", 1)])
    assert tail.glances(["a", "b"], 3 * DAY) == [Glance(["fan"], 12, 149), Glance((), 0, 0)]
    assert tail.glances(["a"], 4 * DAY) == [Glance(["fan"], 0, 149)]


def test_a_zombies_vectors_and_progress_are_passed_over_and_told_until_mended(tail: Tail) -> None:
    tail.feed([vector("a", 2, generation=5), progress(0, 9, [9, 9], 5)])
    fed = tail.feed([vector("a", 1, generation=4), dead("b", 4), progress(0, 99, [99, 99], 4)])
    assert held(tail) == {"a": 2}
    assert fed.stale == {0: ["a", "b"]}
    assert tail.stale(0) == ["a", "b"]
    assert tail.feed([progress(1, 9, [9, 9], 1)]).stale == {}
    assert tail.token == {0: 9, 1: 9}
    tail.feed([vector("a", 3, generation=5)])
    assert tail.stale(0) == ["b"]


def test_a_generation_holds_for_its_own_partition(tail: Tail) -> None:
    tail.feed([vector("a", 1, generation=5), vector("b", 2, generation=1, partition=1)])
    assert held(tail) == {"a": 1, "b": 2}


@pytest.mark.parametrize("missing", [0, 1])
def test_a_token_holds_when_every_partition_has_heard_it_and_its_own_applied_it(
    tail: Tail, missing: int
) -> None:
    tail.feed([progress(0, 4, [4, 7]), progress(1, 7, [4, 7])])
    assert tail.includes({0: 4, 1: 7})
    assert tail.token == {0: 4, 1: 7}
    short = [3 if number == missing else 4 for number in range(2)]
    tail.feed([progress(1, 7, [short[1], 7]), progress(0, short[0], [4, 7])])
    assert not tail.includes({0: 4, 1: 7})
    assert tail.token == {0: 3, 1: 7}


def test_nothing_is_included_before_every_partition_has_told(tail: Tail) -> None:
    assert tail.includes({})
    tail.feed([progress(0, 4, [4, 7])])
    assert not tail.includes({0: 1})
    assert tail.token == {}


def test_a_new_owner_says_how_far_it_is_before_anything_is_taken_for_included(tail: Tail) -> None:
    """It may have begun at an older checkpoint: its first vectors are older than those that lie there."""
    tail.feed([progress(0, 4, [4, 7]), progress(1, 7, [4, 7])])
    assert tail.restarts == 0
    tail.feed([vector("a", 1, generation=2)])
    assert (tail.includes({0: 4}), tail.token, tail.restarts) == (False, {}, 1)
    tail.feed([progress(0, 2, [2, 1], 2)])
    assert (tail.includes({0: 4}), tail.includes({0: 2, 1: 1}), tail.token) == (False, True, {0: 2, 1: 1})


def test_progress_of_an_earlier_owner_in_the_same_batch_does_not_hold(tail: Tail) -> None:
    tail.feed([progress(1, 7, [4, 7]), progress(0, 4, [4, 7]), vector("a", 1, generation=2)])
    assert tail.token == {}
