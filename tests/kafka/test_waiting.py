"""Waiting for a token, without a broker."""

from __future__ import annotations

import asyncio
from collections.abc import Collection

import pytest

from kithstream.streams.errors import NotYet, StoreRefused
from kithstream.streams.kafka.waiting import Reached, Waiting
from kithstream.streams.serve.answers import Question

PATIENCE = 20.0


class State:
    """Two partitions whose state moves when the test says so; a question's token is the offset that it waits for."""

    def __init__(self) -> None:
        self.behind = {0: 0, 1: 0}  # what a look will find
        self.known = {0: 0, 1: 0}
        self.vectors = 0
        self.looks: list[list[int]] = []
        self.failure: Exception | None = None
        self.waiting = Waiting(self.look, self.included)

    def look(self, numbers: Collection[int]) -> dict[int, Reached]:
        self.looks.append(sorted(numbers))
        if self.failure is not None:
            raise self.failure
        self.known |= {number: self.behind[number] for number in numbers}
        return {number: (self.known[number],) for number in numbers}

    def included(self, question: Question) -> bool:
        end = int(question.after)
        return self.known[int(question.account)] >= end and (question.level == "state" or self.vectors >= end)

    async def until(self, number: int, end: int, level: str = "state", seconds: float = PATIENCE) -> None:
        question = Question(str(number), after=str(end), level=level)  # type: ignore[arg-type]
        await self.waiting.until_included(question, number, seconds)


async def looked(state: State, more: int) -> None:
    enough = len(state.looks) + more
    async with asyncio.timeout(PATIENCE):
        while len(state.looks) < enough:
            await asyncio.sleep(0)


def test_what_is_included_does_not_wait_and_nobody_looks() -> None:
    async def ask() -> None:
        state = State()
        await state.until(0, 0, seconds=0.0)
        assert state.looks == []

    asyncio.run(ask())


def test_each_waits_for_its_own_partition_and_looking_ends_with_the_last() -> None:
    async def ask() -> None:
        state = State()
        waiting = [asyncio.create_task(state.until(number, 3)) for number in (0, 1, 1)]
        await looked(state, 3)
        assert not any(task.done() for task in waiting)
        state.behind[1] = 3
        await asyncio.gather(*waiting[1:])
        assert not waiting[0].done()
        state.behind[0] = 3
        await waiting[0]
        assert len(state.waiting) == 0
        looks = len(state.looks)
        assert state.waiting._looking is not None
        await state.waiting._looking
        assert len(state.looks) <= looks + 1
        assert {number for look in state.looks for number in look} == {0, 1}

    asyncio.run(ask())


def test_vectors_wake_those_that_wait_for_them() -> None:
    async def ask() -> None:
        state = State()
        state.behind[0] = 3
        waiting = asyncio.create_task(state.until(0, 3, "vectors"))
        await looked(state, 3)
        assert not waiting.done()
        state.vectors = 3
        state.waiting.check()
        await waiting

    asyncio.run(ask())


def test_one_that_comes_when_another_has_moved_the_state_is_let_go() -> None:
    """Looks tell of what moved since the last one: nobody may be overlooked in between."""

    async def ask() -> None:
        state = State()
        first = asyncio.create_task(state.until(0, 9))
        await looked(state, 2)
        state.behind[0] = 3
        await looked(state, 3)
        await state.until(0, 3, seconds=0.0)
        second = asyncio.create_task(state.until(0, 4))
        await looked(state, 2)
        state.known[0] = state.behind[0] = 4  # by a question that looked itself
        await second
        first.cancel()

    asyncio.run(ask())


def test_a_deadline_that_passes_is_not_yet() -> None:
    async def ask() -> None:
        state = State()
        with pytest.raises(NotYet, match=r"within 0\.01 s"):
            await state.until(0, 3, seconds=0.01)
        with pytest.raises(NotYet):
            await state.until(0, 3, seconds=-1.0)
        assert len(state.waiting) == 0

    asyncio.run(ask())


def test_who_waits_is_told_that_nobody_can_look_and_the_next_looks_again() -> None:
    async def ask() -> None:
        state = State()
        state.failure = StoreRefused("gone")
        waiting = [asyncio.create_task(state.until(number, 3)) for number in (0, 1)]
        told = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(error) for error in told] == [StoreRefused, StoreRefused]
        state.failure = None
        state.behind[0] = 3
        await state.until(0, 3)

    asyncio.run(ask())
