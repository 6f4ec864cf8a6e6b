"""What sinks without being forbidden: accounts somebody was not interested in, and those shown and ignored.

Everything here is an amount that is added to a score. A score is a logit, so ln(m) added multiplies the odds by m.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import log
from typing import Final

from kithstream.streams.events.signals import Signal
from kithstream.streams.state.ledger import DAY

LEAST: Final = 0.2  # what an account's odds are multiplied by when it comes back
TIRED_HALF_LIFE: Final = DAY  # of an ignored impression


def returning(signal: Signal, age: int) -> float | None:
    """Return what a candidate's score loses by a signal of that age (microseconds); None while it is hidden.

    Hidden for `signal.hidden` days, then its odds grow from a fifth to all over `signal.fading` days (Twitter's
    home mixer, feedback fatigue: 14 and 140 days).
    """
    days = age / DAY - signal.hidden
    if days < 0:
        return None
    return log(min(LEAST + (1 - LEAST) * days / signal.fading, 1.0)) if signal.fading else 0.0


def tiredness(
    shown: Iterable[tuple[int, str]], answered: Iterable[tuple[int, str]], as_of: int
) -> dict[str, float]:
    """Return how often each account was shown and ignored, each time worth 2^(-age / 24 h).

    `shown` and `answered` are (time in microseconds, account); an impression counts unless the account was
    engaged with at its time or later.

    >>> tiredness([(0, "bob"), (5 * DAY, "bob"), (5 * DAY, "cyd")], [(3 * DAY, "bob")], 6 * DAY)
    {'bob': 0.5, 'cyd': 0.5}
    """
    latest: dict[str, int] = {}
    for time, account in answered:
        latest[account] = max(time, latest.get(account, 0))
    tired: dict[str, float] = {}
    for time, account in shown:
        if time > latest.get(account, -1):
            weight: float = 2.0 ** (-max(as_of - time, 0) / TIRED_HALF_LIFE)
            tired[account] = tired.get(account, 0.0) + weight
    return tired
