"""Impressions that wait to be closed: engaged, if the shown account is engaged with in time, or else ignored.

The order of events within a poll does not matter, nor does an engagement that came before its impression: those of
the last window are remembered. What is closed is closed by event time, the watermark of the actors' partition.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from heapq import heappop, heappush
from typing import NamedTuple

import numpy as np

from kithstream.models.features import ConsumerFeatures, ProducerFeatures
from kithstream.models.ids import NOBODY
from kithstream.models.train import CONSUMER_ROWS, PRODUCER_ROWS


class Block(NamedTuple):
    """The features of several impressions, as they were when they were shown."""

    consumers: ConsumerFeatures  # n
    producers: ProducerFeatures  # n
    encoded: Sequence[bool]  # n


class Shown(NamedTuple):
    """An impression that really came about, and where its features are."""

    time: int  # microseconds
    offset: int  # in its partition's log
    actor: str
    target: str
    id: str
    block: Block
    place: int


class Engagement(NamedTuple):
    """A positive event that really came about."""

    time: int  # microseconds
    offset: int
    actor: str
    target: str
    signal: str


class Closed(NamedTuple):
    """An impression with its outcome: the signal that answered it, empty if none did."""

    shown: Shown
    signal: str


class Impressions:
    """The open impressions of one partition. Memory is bounded: by the window, and by `most`."""

    def __init__(self, window: int, most: int) -> None:
        """`window` is in microseconds; of more than `most` that are open the oldest are dropped, and counted."""
        self.dropped = 0  # beyond `most`: how it ended is not told
        self.late = 0  # came when its window had passed: what answered it may be forgotten
        self.retracted = 0
        self.unremembered = (
            0  # engagements beyond `most`: an impression that comes after one is taken for ignored
        )
        self._window = window
        self._most = most
        self._open: dict[tuple[str, str], Shown] = {}  # by actor and event id
        self._about: dict[tuple[str, str], list[Shown]] = {}  # by actor and target
        self._oldest: list[tuple[int, int, str, str]] = []  # heap of time, offset, actor, event id
        self._engaged: dict[tuple[str, str], list[Engagement]] = {}  # of the last window
        self._forgetting: list[tuple[int, int, str, str]] = []  # heap of time, offset, actor, target

    def __len__(self) -> int:
        return len(self._open)

    def poll(
        self,
        shown: Sequence[Shown],
        engaged: Sequence[Engagement],
        retracted: Collection[tuple[str, str]],
        before: int,
        watermark: int,
    ) -> list[Closed]:
        """Take in what a poll held, and return what is closed by it, by the times of the impressions.

        `retracted` are actors and event ids; `before` and `watermark` are the newest event times, microseconds, when
        it began and when it ended.
        """
        for key in retracted:
            if (gone := self._open.get(key)) is not None:
                self._take(gone)
                self.retracted += 1
        for one in engaged:
            if one.time >= before - self._window:
                self._engaged.setdefault((one.actor, one.target), []).append(one)
                heappush(self._forgetting, (one.time, one.offset, one.actor, one.target))
        closed: list[Closed] = []
        for impression in shown:
            if impression.time < before - self._window:
                self.late += 1
            elif (impression.actor, impression.id) not in self._open:
                self._put(impression)
        pairs = [(one.actor, one.target) for one in engaged] + [(one.actor, one.target) for one in shown]
        for pair in dict.fromkeys(pairs):
            closed += self._answered(pair)
        while self._oldest and self._oldest[0][0] + self._window < watermark:
            time, offset, actor, event_id = heappop(self._oldest)
            over = self._open.get((actor, event_id))
            if over is not None and (over.time, over.offset) == (time, offset):
                self._take(over)
                closed.append(Closed(over, ""))
        while len(self._open) > self._most:
            _, _, actor, event_id = heappop(self._oldest)
            if (oldest := self._open.get((actor, event_id))) is not None:
                self._take(oldest)
                self.dropped += 1
        while self._forgetting and self._forgetting[0][0] < watermark - self._window:
            self._forget_engagement()
        while len(self._forgetting) > self._most:
            self._forget_engagement()
            self.unremembered += 1
        return sorted(closed, key=lambda one: (one.shown.time, one.shown.offset))

    def forget(self, accounts: Collection[str], rows: Collection[int]) -> None:
        """Forget deleted accounts: their impressions, those of them, and where features name them by row."""
        gone = set(accounts)
        for shown in [one for one in self._open.values() if one.actor in gone or one.target in gone]:
            self._take(shown)
        for pair in [pair for pair in self._engaged if not gone.isdisjoint(pair)]:
            del self._engaged[pair]
        blocks = {id(shown.block): shown.block for shown in self._open.values()}
        for block in blocks.values():
            for features, names in ((block.consumers, CONSUMER_ROWS), (block.producers, PRODUCER_ROWS)):
                for name in names:
                    array = getattr(features, name)
                    array[np.isin(array, list(rows))] = NOBODY

    def waiting(self) -> list[Shown]:
        """Return what is open, the oldest first."""
        return sorted(self._open.values(), key=lambda one: (one.time, one.offset))

    def engagements(self) -> list[Engagement]:
        """Return what is remembered of the last window, the oldest first."""
        return sorted(one for several in self._engaged.values() for one in several)

    @property
    def counts(self) -> tuple[int, int, int, int]:
        """How many impressions were dropped, late and retracted, and how many engagements are not remembered."""
        return self.dropped, self.late, self.retracted, self.unremembered

    def restore(
        self, waiting: Sequence[Shown], engagements: Sequence[Engagement], counts: Sequence[int]
    ) -> None:
        """Take over what `waiting`, `engagements` and `counts` told."""
        self.dropped, self.late, self.retracted, self.unremembered = counts
        for shown in waiting:
            self._put(shown)
        for one in engagements:
            self._engaged.setdefault((one.actor, one.target), []).append(one)
            heappush(self._forgetting, (one.time, one.offset, one.actor, one.target))

    def _put(self, shown: Shown) -> None:
        self._open[shown.actor, shown.id] = shown
        self._about.setdefault((shown.actor, shown.target), []).append(shown)
        heappush(self._oldest, (shown.time, shown.offset, shown.actor, shown.id))

    def _take(self, shown: Shown) -> None:
        """What the heap still says of it is passed over when its turn comes."""
        del self._open[shown.actor, shown.id]
        about = self._about[shown.actor, shown.target]
        about[:] = [one for one in about if one.id != shown.id]
        if not about:
            del self._about[shown.actor, shown.target]

    def _answered(self, pair: tuple[str, str]) -> list[Closed]:
        """Close the impressions of a pair that an engagement answers: the first one that came in the window."""
        closed = []
        for shown in list(self._about.get(pair, ())):
            inside = [
                one
                for one in self._engaged.get(pair, ())
                if shown.time <= one.time <= shown.time + self._window
            ]
            if inside:
                self._take(shown)
                closed.append(Closed(shown, min(inside, key=lambda one: (one.time, one.signal)).signal))
        return closed

    def _forget_engagement(self) -> None:
        """Forget the oldest."""
        time, offset, actor, target = heappop(self._forgetting)
        pair = actor, target
        kept = [one for one in self._engaged.get(pair, ()) if (one.time, one.offset) != (time, offset)]
        if kept:
            self._engaged[pair] = kept
        else:
            self._engaged.pop(pair, None)


def block_of(shown: Sequence[Shown]) -> Block:
    """Return the features of impressions from several blocks as one, in their order."""
    consumers = ConsumerFeatures._make(
        np.stack([getattr(one.block.consumers, name)[one.place] for one in shown])
        for name in ConsumerFeatures._fields
    )
    producers = ProducerFeatures._make(
        np.stack([getattr(one.block.producers, name)[one.place] for one in shown])
        for name in ProducerFeatures._fields
    )
    return Block(consumers, producers, [one.block.encoded[one.place] for one in shown])
