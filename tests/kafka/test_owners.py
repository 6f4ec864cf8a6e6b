"""Who answers for which partition, without a broker."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec
import pytest

from kithstream.streams.kafka.owners import Owners
from kithstream.streams.kafka.wire import Owner

_encode = msgspec.json.encode


class Sent:
    """Takes what is told."""

    def __init__(self) -> None:
        self.records: list[tuple[int, Owner]] = []

    async def send(
        self, topic: str, partition: int, value: bytes | None, *, key: bytes | None = None
    ) -> None:
        assert (topic, key) == ("owners", str(partition).encode())
        self.records.append((partition, msgspec.json.decode(value or b"", type=Owner)))


@pytest.fixture
def owners() -> Owners:
    return Owners("owners", 2, "w1")


def learn(owners: Owners, url: str, generation: int, worker: str) -> int | None:
    return owners.learn(b"0", _encode(Owner(url, generation, worker)))


def test_the_highest_generation_holds_and_the_later_of_equals(owners: Owners) -> None:
    assert owners.of(0) is None
    for url, generation, holds in (("a", 4, "a"), ("b", 3, "a"), ("c", 4, "c"), ("d", 5, "d")):
        learn(owners, url, generation, "w2")
        assert owners.of(0) == Owner(holds, 5 if holds == "d" else 4, "w2")
    learn(owners, "", 5, "w2")
    assert owners.of(0) is None


@pytest.mark.parametrize("record", [(None, None), (b"x", b"{}"), (b"0", b"{"), (b"0", None)])
def test_what_is_no_owner_is_passed_over(owners: Owners, record: Sequence[bytes | None]) -> None:
    assert owners.learn(*record) is None
    assert owners.of(0) is None


def test_a_worker_leaves_what_is_still_its_own_alone(owners: Owners) -> None:
    async def come_and_go() -> None:
        sent = Sent()
        await owners.own(sent, 0, "a", 3)  # type: ignore[arg-type]
        learn(owners, "b", 4, "w2")
        await owners.leave(sent, 0)  # type: ignore[arg-type]
        await owners.own(sent, 0, "a", 5)  # type: ignore[arg-type]
        await owners.leave(sent, 0)  # type: ignore[arg-type]
        told = [(owner.url, owner.generation) for _, owner in sent.records]
        assert told == [("a", 3), ("a", 5), ("", 5)]

    asyncio.run(come_and_go())


def test_a_late_word_over_ones_own_is_noticed(owners: Owners) -> None:
    """A worker that was paused says at last that it leaves: compaction would keep that alone."""

    async def own() -> None:
        sent = Sent()
        await owners.own(sent, 0, "a", 5)  # type: ignore[arg-type]
        assert learn(owners, "", 4, "w2") == 0
        assert owners.of(0) == Owner("a", 5, "w1")
        assert learn(owners, "b", 6, "w2") is None
        assert learn(owners, "", 4, "w2") is None  # another's to mend
        await owners.leave(sent, 0)  # type: ignore[arg-type]
        assert learn(owners, "", 4, "w2") is None

    asyncio.run(own())
