"""What the producer tower reads of an account, kept as plainly as glue code would: decayed sums and newest neighbours.

Of `Rows` this fills the counts by group and half-life, newest and oldest times, followers and followees. The rest
(counts by family, sketches, communities, languages) stays blank: the encoder's work is the same, its input poorer. An
undo takes one away, and a neighbour from its list; a list that loses one is not made full again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from kithstream.models.features import (
    FOLLOWEES,
    FOLLOWERS,
    GROUPS,
    HALF_LIVES,
    IN,
    OUT,
    UNRECIPROCATED,
    Rows,
    blank,
)

NEGATIVE = {"not_interested", "mute", "block", "report"}
PASSED_OVER = {"impression", "notification_open", "notification_tab_click"}
UNDO = {
    "withdraw_report": "report",
    "undo_not_interested": "not_interested",
    "address_book_remove": "address_book",
}
_RATES = np.array([0.0 if np.isinf(h) else 1e-6 / h for h in HALF_LIVES])  # halvings a microsecond
_SHAPE = (2, len(GROUPS), len(HALF_LIVES))


class Account:
    """The state of one account."""

    __slots__ = ("counts", "degrees", "first", "followees", "followers", "last", "time")

    def __init__(self, time: int) -> None:
        self.counts: NDArray[np.float64] = np.zeros(_SHAPE)
        self.time = self.first = time
        self.last = [0, 0]
        self.followers: deque[tuple[str, int]] = deque(maxlen=FOLLOWERS)
        self.followees: deque[tuple[str, int]] = deque(maxlen=FOLLOWEES)
        self.degrees = [0, 0]

    def fold(self, direction: int, signal: str, other: str, time: int) -> None:
        """One event that the account did (OUT) or met (IN)."""
        if signal in PASSED_OVER:
            return
        done = UNDO.get(signal, signal[2:] if signal.startswith("un") else signal)
        sign = 1.0 if done == signal else -1.0
        if time > self.time:
            self.counts *= 2.0 ** (_RATES * (self.time - time))
            self.time = time
        group = 0 if done == "follow" else 2 if done in NEGATIVE else 1
        self.counts[direction, group] += sign * 2.0 ** (_RATES * (time - self.time))
        self.last[direction] = max(self.last[direction], time)
        if done == "follow":
            known, place = (self.followers, 0) if direction == IN else (self.followees, 1)
            self.degrees[place] = max(0, self.degrees[place] + int(sign))
            for entry in known:
                if entry[0] == other:
                    known.remove(entry)
                    break
            if sign > 0:
                known.appendleft((other, time))


def rows_of(names: Sequence[str], accounts: Sequence[Account], now: int) -> Rows:
    """What the tower reads of n accounts as of a time in microseconds."""
    n = len(names)
    counts = np.zeros((n, *_SHAPE))
    last = np.full((n, 2), np.inf)
    ages = {width: np.full((n, width), np.inf) for width in (FOLLOWERS, FOLLOWEES)}
    for row, account in enumerate(accounts):
        counts[row] = account.counts * 2.0 ** (_RATES * min(0, account.time - now))
        for direction in (IN, OUT):
            if account.last[direction]:
                last[row, direction] = max(0, now - account.last[direction]) / 1e6
        for width, known in ((FOLLOWERS, account.followers), (FOLLOWEES, account.followees)):
            ages[width][row, : len(known)] = [max(0, now - time) / 1e6 for _, time in known]
    return Rows(
        accounts=names,
        as_of=now,
        counts=np.maximum(counts, 0.0).astype(np.float32),
        last=last,
        first=np.array([max(0, now - account.first) / 1e6 for account in accounts]),
        degrees=np.array([[*account.degrees, 0] for account in accounts], np.int64).reshape(n, 3),
        followers=[[name for name, _ in account.followers] for account in accounts],
        follower_ages=ages[FOLLOWERS],
        followees=[[name for name, _ in account.followees] for account in accounts],
        followee_ages=ages[FOLLOWEES],
        unreciprocated=[[] for _ in accounts],
        unreciprocated_ages=np.full((n, UNRECIPROCATED), np.inf),
        languages=np.zeros(n, np.int32),
        **blank(n),  # type: ignore[arg-type]  # arrays and lists by their names
    )
