"""One reading for all who wait for it: whoever gets the lock reads for the others as well."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Generic, TypeVar

Q = TypeVar("Q")
A = TypeVar("A")


class _Turn(Generic[Q, A]):
    """One thread's question, until it is answered."""

    def __init__(self, question: Q) -> None:
        self.question = question
        self.answer: A | Exception | None = None  # None: to be asked alone
        self.over = threading.Event()


class Together(Generic[Q, A]):
    """Answers the questions of many threads by as few calls as the waiting for a lock allows.

    The first to come waits for the lock, the others for the first. Once it has the lock it asks for all that have come
    by then; who comes later is the first of the next.
    """

    def __init__(
        self,
        held: Callable[[], AbstractContextManager[object]],
        work: Callable[[Sequence[Q]], Sequence[A | Exception]],
    ) -> None:
        """`held` holds the lock; `work` answers questions under it, and tells of those that have no answer why."""
        self._held = held
        self._work = work
        self._guard = threading.Lock()
        self._turns: list[_Turn[Q, A]] = []

    @property
    def waiting(self) -> int:
        """Questions that wait for the lock."""
        return len(self._turns)

    def ask(self, question: Q) -> A:
        """Return the answer; raises what `work` has in its place.

        When `work` fails as a whole, each is asked alone, so that nobody has to bear with the question of another.
        """
        mine = _Turn[Q, A](question)
        with self._guard:
            self._turns.append(mine)
            first = len(self._turns) == 1
        if first:
            self._ask_for_all()
        else:
            mine.over.wait()
        if mine.answer is None:
            with self._held():
                (mine.answer,) = self._work([question])
        if isinstance(mine.answer, Exception):
            raise mine.answer
        return mine.answer

    def _ask_for_all(self) -> None:
        turns: list[_Turn[Q, A]] = []
        try:
            with self._held():
                turns = self._take()
                answers = self._work([turn.question for turn in turns])
                for turn, answer in zip(turns, answers, strict=True):
                    turn.answer = answer
        except Exception:
            if len(turns) < 2:  # nobody else's doing
                raise
        finally:
            for turn in turns or self._take():  # the others must not wait for a thread that got no lock
                turn.over.set()

    def _take(self) -> list[_Turn[Q, A]]:
        with self._guard:
            turns, self._turns = self._turns, []
        return turns
