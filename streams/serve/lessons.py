"""Which follows the ranker learns from. Each costs about as much as a question."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b
from typing import Final

from kithstream.streams.config import RankingConfig

SECONDS: Final = 64  # of event time that are counted, the newest


class Lessons:
    """A share of follows, by their events' ids and the seed, and of any second of event time at most so many.

    So a busy stream is learned from at a steady price, and one that is read again at any speed as it was.
    """

    def __init__(self, config: RankingConfig, seed: int) -> None:
        self._config = config
        self._seed = seed
        self._chosen: dict[int, int] = {}  # by second

    def among(self, follows: Iterable[tuple[str, int]]) -> list[int]:
        """The places of those to learn from among follows: (event id, time in microseconds)."""
        share, most, counts = self._config.train_share, self._config.train_most, self._chosen
        found = []
        for at, (event, time) in enumerate(follows):
            second = time // 1_000_000
            chosen = counts.get(second, 0)
            if chosen < most and picked(event, share, self._seed):
                found.append(at)
                counts[second] = chosen + 1
                if len(counts) > SECONDS:
                    del counts[min(counts)]
        return found


def picked(event: str, share: float, seed: int) -> bool:
    """Whether an event is of a share of all: a function of its id and the seed."""
    person = seed.to_bytes(8, "little", signed=True)
    digest = blake2b(event.encode(), digest_size=8, person=person).digest()
    return int.from_bytes(digest, "little") < share * 2.0**64
