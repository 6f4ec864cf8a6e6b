"""The smallest fold worth comparing: decayed counters of an account, by four kinds of signal. Standard library alone.

An account has one state for what it does and one for what is done to it:

    [newest time, follow, like, block, other, records]

The four counters halve in seven days; an undo takes one away. `records` is how many records were folded and decays
never: after a crash it says what was counted twice and what was lost. Duplicates in the topic count twice here, and
late events are decayed and added: nothing is exact under undo, nothing is excluded, no lists, no vectors. kithstream's
fold does all of that, so every peer is asked for less.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

HALF_LIFE = 7 * 86_400_000_000.0  # microseconds
PLACES = {"follow": 1, "unfollow": 1, "like": 2, "unlike": 2, "block": 3, "unblock": 3}
OTHER, RECORDS = 4, 5
State = list[float]


def fold(state: State | None, signal: str, time: int) -> State:
    """The state after one event; the one given is not changed."""
    if state is None:
        after: State = [time, 0.0, 0.0, 0.0, 0.0, 0]
    elif time > state[0]:
        kept = 2.0 ** ((state[0] - time) / HALF_LIFE)
        after = [time, *(kept * value for value in state[1:RECORDS]), state[RECORDS]]
    else:
        after = list(state)
    weight = 2.0 ** ((time - after[0]) / HALF_LIFE)
    after[PLACES.get(signal, OTHER)] += -weight if signal.startswith("un") else weight
    after[RECORDS] += 1
    return after


def expected(events: Iterable[Mapping[str, Any]]) -> tuple[Counter[str], Counter[str]]:
    """How many records each account's states must have: of what it does, of what is done to it."""
    did: Counter[str] = Counter()
    met: Counter[str] = Counter()
    for event in events:
        if "target" in event:
            did[event["actor"]] += 1
            met[event["target"]] += 1
    return did, met


def errors(wanted: Mapping[str, int], found: Mapping[str, int]) -> tuple[int, int]:
    """How many records were counted too often and how many are missing, summed over accounts."""
    apart = [found.get(name, 0) - wanted.get(name, 0) for name in wanted.keys() | found.keys()]
    return sum(more for more in apart if more > 0), -sum(less for less in apart if less < 0)
