"""Who publishes while things break: a simulated world's events, some twice, out of order, through Kafka and HTTP."""

from __future__ import annotations

import json
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Final, NamedTuple

import msgspec
from beside import PATIENCE, Beside

from kithstream.streams.clients import EventPublisher
from kithstream.streams.config import KafkaConfig
from kithstream.streams.errors import Undelivered
from kithstream.streams.events.stamp import wall_clock
from kithstream.streams.serve import tokens
from kithstream.streams.simulate import SimulationConfig, simulate

ACCOUNTS: Final = 120
DAY: Final = 86_400_000_000
BATCH: Final = 40  # events published at once, at most
TWICE: Final = 0.05  # of the events are published again, later
KEPT: Final = 400  # events that may be published again
BY_HTTP: Final = 0.2  # of the batches go through a worker
PAIRS: Final = ("block", "mute", "report", "follow")  # what keeps one account out of another's answers

# More of what excludes, undoes and deletes than people do.
MIX: Final = {
    "follow": 0.30,
    "unfollow": 0.08,
    "like": 0.12,
    "unlike": 0.05,
    "click": 0.05,
    "reply": 0.05,
    "repost": 0.03,
    "unrepost": 0.01,
    "impression": 0.01,
    "not_interested": 0.01,
    "undo_not_interested": 0.005,
    "block": 0.06,
    "unblock": 0.03,
    "mute": 0.04,
    "unmute": 0.02,
    "report": 0.02,
    "withdraw_report": 0.01,
    "address_book": 0.01,
    "address_book_remove": 0.003,
    "retract": 0.02,
    "profile": 0.02,
    "account_deactivate": 0.002,
    "account_delete": 0.001,
}


class Pair(NamedTuple):
    """Two accounts about which something was said, and the token that stands for it."""

    sides: tuple[str, str]
    token: str


class Crowd(Beside):
    """Publishes in a thread. `ids` are those of events that the brokers, or a worker, have confirmed."""

    def __init__(
        self,
        kafka: KafkaConfig,
        seed: int,
        rate: float,
        post: Callable[[random.Random, object], tuple[int, object]],
    ) -> None:
        """`rate` is events a second, at most; `post` hands JSON to the `/v1/events` of one of the workers."""
        super().__init__()
        self.ids: set[str] = set()
        self.ends: dict[int, int] = {}  # confirmed, by partition
        self.pairs: deque[Pair] = deque(maxlen=64)
        self.published = 0  # records, repeats included
        self.refused: list[str] = []
        self._kafka = kafka
        self._rate = rate
        self._post = post
        self._rng = random.Random(seed)
        self._events = self.simulated(seed)
        self._again: deque[bytes] = deque(maxlen=KEPT)
        self._moved = threading.Condition()
        self._repeats: list[bytes] = []

    @staticmethod
    def simulated(seed: int) -> Iterator[bytes]:
        config = SimulationConfig(
            seed=seed,
            accounts=ACCOUNTS,
            start=wall_clock() - 2 * DAY,
            events_per_account_day=400.0,
            mix=MIX,
            batch=256,
            away_days=0.02,
            late_seconds=600.0,
            late_limit=DAY / 1e6,
        )
        encode = msgspec.json.encode
        for records in simulate(config):
            yield from map(encode, records)

    def until(self, more: int) -> None:
        """Return once so many more records were published."""
        with self._moved:
            goal = self.published + more
            came = self._moved.wait_for(lambda: self.published >= goal or self.failure is not None, PATIENCE)
        assert came, f"{more} events were not published in {PATIENCE:g} s"
        if self.failure is not None:
            raise self.failure

    def repeat(self, most: int) -> int:
        """Publish some of the newest events once more, in any order; return how many."""
        with self._moved:
            known = list(self._again)
            self._repeats = self._rng.sample(known, min(most, len(known)))
            return len(self._repeats)

    @property
    def token(self) -> str:
        """Stands for everything confirmed."""
        with self._moved:
            return tokens.write(self.ends)

    def go_on(self) -> None:
        """Publish; what was published is confirmed when it ends."""
        with EventPublisher(self._kafka, connecting=60.0, delivery=20.0) as publisher:
            began, sent = time.monotonic(), 0
            while not self._stopping.is_set():
                batch = self._batch()
                self._publish(publisher, batch)
                sent += len(batch)
                self._stopping.wait(max(0.0, sent / self._rate - (time.monotonic() - began)))
                # An outage is not made up for.
                began = max(began, time.monotonic() - sent / self._rate - 1.0)

    def _run(self) -> None:
        super()._run()
        with self._moved:
            self._moved.notify_all()

    def _batch(self) -> list[bytes]:
        rng = self._rng
        batch = [next(self._events) for _ in range(rng.randrange(1, BATCH))]
        fresh = len(batch)
        batch += rng.sample(list(self._again), min(len(self._again), round(TWICE * fresh + rng.random())))
        with self._moved:
            batch += self._repeats
            self._repeats = []
        self._again.extend(batch[:fresh])
        rng.shuffle(batch)
        return batch

    def _publish(self, publisher: EventPublisher, batch: Sequence[bytes]) -> None:
        """Publish until it is confirmed: what may have arrived all the same arrives twice."""
        token = self._through_a_worker(batch) if self._rng.random() < BY_HTTP else ""
        while not token:
            with suppress(Undelivered):
                token = publisher.publish(batch)
        self._confirmed(batch, token)

    def _through_a_worker(self, batch: Sequence[bytes]) -> str:
        status, body = self._post(self._rng, [json.loads(raw) for raw in batch])
        if status in (200, 202) and isinstance(body, dict):
            return str(body["token"])
        if status not in (0, 503):  # nobody listens, or the brokers do not
            self.refused.append(f"{status}: {body}")
        return ""

    def _confirmed(self, batch: Sequence[bytes], token: str) -> None:
        events = [json.loads(raw) for raw in batch]
        with self._moved:
            self.ids.update(event["id"] for event in events)
            for number, end in tokens.read(token, 1 << 10).items():
                self.ends[number] = max(end, self.ends.get(number, 0))
            for event in events:
                if event["signal"] in PAIRS:
                    self.pairs.append(Pair((event["actor"], event["target"]), token))
            self.published += len(batch)
            self._moved.notify_all()
