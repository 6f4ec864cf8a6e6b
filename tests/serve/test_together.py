"""Who waits for a lock together is answered by one call, each as if it had been alone."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from soup import ACCOUNTS, DAY, START, departing, soup

from kithstream.streams.config import Config, IndexSection
from kithstream.streams.errors import Unanswerable
from kithstream.streams.events.wire import Event
from kithstream.streams.serve.answers import Question
from kithstream.streams.serve.embedded import Embedded
from kithstream.streams.serve.ranking import Ask, Asking
from kithstream.streams.serve.together import Together

T = TypeVar("T")
MANY = 6
PATIENCE = 60.0  # seconds


def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.001)


def begun(work: Callable[[], T]) -> Future[T]:
    """Run something in a thread of its own, which keeps nothing waiting at the end."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as failure:
            future.set_exception(failure)

    threading.Thread(target=run, daemon=True).start()
    return future


class Room:
    """A lock, the calls that were made under it, and threads that ask."""

    def __init__(self, work: Callable[[Sequence[int]], Sequence[str | Exception]]) -> None:
        self.lock = threading.Lock()
        self.calls: list[list[int]] = []
        self._work = work
        self.together = Together[int, str](lambda: self.lock, self._called)

    def _called(self, asked: Sequence[int]) -> Sequence[str | Exception]:
        assert self.lock.locked()
        self.calls.append(list(asked))
        return self._work(asked)

    def ask(self, question: int) -> Future[str]:
        return begun(partial(self.together.ask, question))

    def crowd(self) -> list[Future[str]]:
        """Ask many questions while somebody else has the lock."""
        with self.lock:
            asked = [self.ask(number) for number in range(MANY)]
            until(lambda: self.together.waiting == MANY)
        return asked


def told(asked: Sequence[int]) -> list[str | Exception]:
    return [f"answer {number}" for number in asked]


def test_those_that_wait_are_answered_by_one_call() -> None:
    room = Room(told)
    for _ in range(2):
        assert [one.result(PATIENCE) for one in room.crowd()] == told(range(MANY))
    assert [sorted(call) for call in room.calls] == [[*range(MANY)]] * 2


def test_one_that_comes_while_others_are_answered_is_in_the_next_call() -> None:
    entered, go = threading.Event(), threading.Event()

    def work(asked: Sequence[int]) -> list[str | Exception]:
        entered.set()
        assert go.wait(PATIENCE)
        return told(asked)

    room = Room(work)
    first = room.ask(1)
    assert entered.wait(PATIENCE)
    second = room.ask(2)
    until(lambda: room.together.waiting == 1)
    go.set()
    assert [first.result(PATIENCE), second.result(PATIENCE)] == told([1, 2])
    assert room.calls == [[1], [2]]


def test_a_refusal_is_told_to_the_one_that_is_refused() -> None:
    def work(asked: Sequence[int]) -> list[str | Exception]:
        return [KeyError(number) if number % 2 else f"answer {number}" for number in asked]

    for number, one in enumerate(Room(work).crowd()):
        if number % 2:
            with pytest.raises(KeyError, match=str(number)):
                one.result(PATIENCE)
        else:
            assert one.result(PATIENCE) == f"answer {number}"


def test_where_a_call_fails_each_is_asked_alone() -> None:
    def work(asked: Sequence[int]) -> list[str | Exception]:
        if 3 in asked:
            raise OSError("3 cannot be read")
        return told(asked)

    room = Room(work)
    for number, one in enumerate(room.crowd()):
        if number == 3:
            with pytest.raises(OSError, match="3 cannot be read"):
                one.result(PATIENCE)
        else:
            assert one.result(PATIENCE) == f"answer {number}"
    assert sorted(map(len, room.calls)) == [1] * MANY + [MANY]


def test_a_lock_that_cannot_be_had_keeps_nobody_waiting() -> None:
    broken = threading.Event()

    @contextmanager
    def held() -> Iterator[None]:
        assert broken.wait(PATIENCE)
        raise OSError("closed")
        yield

    together = Together[int, str](held, told)
    asked = [begun(partial(together.ask, number)) for number in range(MANY)]
    until(lambda: together.waiting == MANY)
    broken.set()
    for one in asked:
        with pytest.raises(OSError, match="closed"):
            one.result(PATIENCE)
    assert together.waiting == 0


# -- what is read --------------------------------------------------------------------------------------------


def same(one: Asking, other: Asking) -> bool:
    """Whether two readings are equal bit for bit, what cannot be compared left out."""
    for a, b in zip(one.rows, other.rows, strict=True):
        if not (np.array_equal(a, b) if isinstance(a, np.ndarray) else list_of(a) == list_of(b)):
            return False
    named = ("step", "exclude", "followed", "losses", "weights")
    return np.array_equal(one.vector, other.vector) and all(
        getattr(one, n) == getattr(other, n) for n in named
    )


def list_of(value: object) -> object:
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value


@settings(max_examples=20, suppress_health_check=[HealthCheck.too_slow])
@given(st.one_of(soup(), departing()), st.data())
def test_who_is_read_together_is_read_as_if_alone(
    tmp_path_factory: pytest.TempPathFactory, events: list[Event], data: st.DataObject
) -> None:
    """Each as of its own time, in full or not; those that get no answer among them."""
    now = START + 7 * DAY
    config = Config(index=IndexSection(background=False))
    with Embedded(tmp_path_factory.mktemp("together"), config, clock=lambda: now) as live:
        live.publish(events)
        live.catch_up()
        ranker = live.chain._ranker
        asking = st.builds(
            Ask, st.sampled_from([*ACCOUNTS, "nobody"]), st.integers(now, now + DAY), st.booleans()
        )
        asked = data.draw(st.lists(asking, max_size=8))
        for (account, as_of, fully), found in zip(asked, ranker.read_each(asked), strict=True):
            if isinstance(found, Exception):
                with pytest.raises(Unanswerable) as alone:
                    ranker.read(account, as_of, fully=fully)
                assert str(alone.value) == str(found)
            else:
                assert same(found, ranker.read(account, as_of, fully=fully))


def test_answers_of_many_threads_are_those_of_one(tmp_path: Path) -> None:
    now = START + 7 * DAY
    config = Config(index=IndexSection(background=False))
    with Embedded(tmp_path, config, clock=lambda: now) as live:
        live.publish(
            [
                Event(f"{a}>{b}", "follow", a, START + 6 * DAY, target=b)
                for a in ACCOUNTS
                for b in ACCOUNTS[:5]
                if a != b
            ]
        )
        live.catch_up()
        questions = [Question(account, 5) for account in ACCOUNTS]
        alone = [live.answer(one) for one in questions]
        sizes: list[int] = []
        together = live.chain._together
        work = together._work

        def counted(asked: Sequence[Ask]) -> Sequence[tuple[Asking, int] | Exception]:
            sizes.append(len(asked))
            return work(asked)

        together._work = counted
        with live.chain.lock:
            answers = [begun(partial(live.answer, one)) for one in questions]
            until(lambda: together.waiting == len(questions))
        assert [one.result(PATIENCE) for one in answers] == alone
        assert sizes == [len(questions)]
