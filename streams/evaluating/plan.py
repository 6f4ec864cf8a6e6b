"""What an evaluation asks, and when: a function of the stream and a seed, made before anybody is asked.

Two kinds of questions, all in the last fifth of the first pairs (`streams.prequential`):

- **Follows**: a sample of them, asked just before they are told. Beside the followed account stand some others, drawn
  uniformly from the accounts that were followed or engaged with by then and that the asking account does not follow.
- **Slates**: a sample of what the product itself showed: the impressions of one account and item, asked just before
  the first of them is told. An impression is engaged if the account followed or engaged with the shown one within
  a window from it, by event time, and ignored if the window passed without. Slates whose window is not over when
  the stream ends are left out: of them only the engaged would be known.

Accounts are numbers; what is said of them (followers, age) is what the stream itself had told by then.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from kithstream.streams import prequential
from kithstream.streams.events.record import Record
from kithstream.streams.events.signals import BY_NAME, Group
from kithstream.streams.prequential import Pairs

SECOND: Final = 1_000_000  # microseconds
TORSO, HEAD = (
    0.9,
    0.99,
)  # quantiles of followers, over accounts with any, above which an account is of torso or head
MOST_K: Final = 1000
LIST: Final = 20  # answers of this length are what exposure is measured on


class Sampling(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked, and how many."""

    ks: Sequence[int] = (1, 5, LIST, 100)  # list lengths of recall and NDCG
    tests: int = 1000  # follows asked for at most, and slates at most
    others: int = 20  # accounts drawn beside each follow
    window_seconds: float = 600.0  # in which an impression is engaged with, or ignored
    seed: int = 0

    def __post_init__(self) -> None:
        wrong = [k for k in self.ks if not 1 <= k <= MOST_K]
        if wrong or not self.ks:
            raise ValueError(f"ks is {list(self.ks)}, numbers of 1 to {MOST_K} are due")
        if self.tests < 1 or self.others < 1 or not self.window_seconds > 0:
            raise ValueError(
                f"tests is {self.tests}, others {self.others}, window_seconds {self.window_seconds}: more than 0 is due"
            )


class FollowAsked(NamedTuple):
    """A follow that is asked for."""

    event: int  # number of the event in the stream before which it is asked
    row: int  # first pairs before it
    time: int  # microseconds
    asker: int
    target: int
    others: Sequence[int]  # none followed by the asker
    followers: int  # of the target
    age: int  # of the asker, microseconds since the stream named it first


class SlateAsked(NamedTuple):
    """A slate that the product showed."""

    event: int
    row: int
    time: int
    asker: int
    shown: Sequence[int]  # none followed by the asker
    engaged: Sequence[bool]
    followers: Sequence[int]
    age: int


class Plan(NamedTuple):
    """All questions in the order of the stream, and what measures need to know of accounts."""

    events: int  # of the stream
    pairs: Pairs
    follows: Sequence[FollowAsked]
    slates: Sequence[SlateAsked]
    unfinished: int  # slates left out since their window was not over
    accounts: Sequence[str]  # name of each number; those of the pairs come first
    language: NDArray[np.int64]  # (accounts,) number of the language told last, -1 if none was
    candidates: NDArray[
        np.int64
    ]  # numbers of the accounts that were followed or engaged with before the last question
    followers: NDArray[np.int64]  # (accounts,) when the first question is asked
    torso: int  # an account with more followers is in the torso
    head: int  # and with more than that in the head


def plan(events: Iterable[Record], sampling: Sampling) -> Plan:
    """Read a stream three times and return what to ask; raises ValueError if there is nothing to ask."""
    pairs = prequential.first_pairs(events)
    tests = prequential.choose_tests(pairs, sampling.seed, sampling.tests)
    if not len(tests):
        raise ValueError(
            f"the stream has {len(pairs.source)} first follows and none to ask for: of their last fifth, one between "
            "accounts that followed and were followed before is needed"
        )
    slates, unfinished = _slates(events, pairs, sampling)
    return _Planning(pairs, tests, slates, sampling).over(events, unfinished)


class _Slate(NamedTuple):
    event: int
    time: int
    shown: dict[str, int]  # account to the time of its impression


def _slates(
    events: Iterable[Record], pairs: Pairs, sampling: Sampling
) -> tuple[Mapping[int, tuple[str, _Slate]], int]:
    """The slates to ask by their first event, each with who saw it; and how many had no end."""
    border = int(pairs.event[prequential.border(pairs)])
    found: dict[tuple[str, str], _Slate] = {}
    end = 0
    for number, event in enumerate(events):
        end = max(end, event["time"])
        if event["signal"] != "impression" or number < border:
            continue
        key = event["actor"], event.get("item") or event["id"]
        slate = found.setdefault(key, _Slate(number, event["time"], {}))
        slate.shown.setdefault(event["target"], event["time"])
    window = int(sampling.window_seconds * SECOND)
    over = [
        (slate.event, (actor, slate))
        for (actor, _), slate in found.items()
        if max(slate.shown.values()) + window <= end
    ]
    draw = np.random.default_rng((sampling.seed, 1))
    kept = np.sort(draw.choice(len(over), min(sampling.tests, len(over)), replace=False))
    return dict(over[place] for place in kept.tolist()), len(found) - len(over)


class _Planning:
    """One pass that keeps what the stream has told so far."""

    def __init__(
        self,
        pairs: Pairs,
        tests: NDArray[np.int64],
        slates: Mapping[int, tuple[str, _Slate]],
        sampling: Sampling,
    ) -> None:
        self.pairs = pairs
        self.slates = slates
        self.sampling = sampling
        self.numbers = {name: number for number, name in enumerate(pairs.accounts)}
        self.tests = {int(pairs.event[row]): int(row) for row in tests}
        self.since: dict[int, int] = {}
        self.follows: set[tuple[int, int]] = set()
        self.followers: Counter[int] = Counter()
        self.met: list[int] = []  # followed or engaged with, in the order in which they were
        self.once_met: set[int] = set()
        self.language: dict[int, str] = {}

    def over(self, events: Iterable[Record], unfinished: int) -> Plan:
        wanted = {(actor, name) for actor, slate in self.slates.values() for name in slate.shown}
        answered: dict[tuple[int, int], list[int]] = defaultdict(list)  # times of engagement
        asked: list[FollowAsked] = []
        shown: list[SlateAsked] = []
        first, last = min([*self.tests, *self.slates]), max([*self.tests, *self.slates])
        popularity: Counter[int] = Counter()
        candidates: list[int] = []
        total = 0
        for number, event in enumerate(events):
            total = number + 1
            if number == first:
                popularity = self.followers.copy()
            if (row := self.tests.get(number)) is not None:
                asked.append(self._follow(number, row))
            if number in self.slates:
                shown.append(self._slate(number))
            if number == last:
                candidates = list(self.met)
            self._tell(event)
            if _engages(event) and (event["actor"], event["target"]) in wanted:
                pair = self.numbers[event["actor"]], self.numbers[event["target"]]
                answered[pair].append(event["time"])
        tags = {tag: number for number, tag in enumerate(sorted(set(self.language.values())))}
        count = len(self.numbers)
        held = np.array([followers for followers in popularity.values() if followers > 0] or [0])
        torso, head = np.quantile(held, [TORSO, HEAD])
        return Plan(
            total,
            self.pairs,
            asked,
            [self._closed(slate, answered) for slate in shown if slate.shown],
            unfinished,
            list(self.numbers),
            np.array([tags.get(self.language.get(number, ""), -1) for number in range(count)], np.int64),
            np.array(candidates, np.int64),
            np.array([popularity[number] for number in range(count)], np.int64),
            int(torso),
            int(head),
        )

    def _tell(self, event: Record) -> None:
        actor = self._known(event["actor"], event["time"])
        if event["signal"] == "profile":
            if "language" in event:
                self.language[actor] = event["language"].split("-", 1)[0].lower()
            return
        if "target" not in event:
            return
        target = self._known(event["target"], event["time"])
        if _engages(event) and target not in self.once_met:
            self.once_met.add(target)
            self.met.append(target)
        pair = actor, target
        if event["signal"] == "follow" and pair not in self.follows:
            self.follows.add(pair)
            self.followers[target] += 1
        elif event["signal"] == "unfollow" and pair in self.follows:
            self.follows.discard(pair)
            self.followers[target] -= 1

    def _known(self, name: str, time: int) -> int:
        number = self.numbers.setdefault(name, len(self.numbers))
        self.since.setdefault(number, time)
        return number

    def _follow(self, event: int, row: int) -> FollowAsked:
        asker, target = int(self.pairs.source[row]), int(self.pairs.target[row])
        time = int(self.pairs.time[row])
        return FollowAsked(
            event,
            row,
            time,
            asker,
            target,
            self._others(event, asker, target),
            self.followers[target],
            max(0, time - self.since[asker]),
        )

    def _others(self, event: int, asker: int, target: int) -> list[int]:
        draw = np.random.default_rng((self.sampling.seed, 2, event))
        pool, count = self.met, self.sampling.others
        drawn = draw.choice(len(pool), min(len(pool), 3 * count), replace=False).tolist()
        fit = (pool[place] for place in drawn)
        kept = [one for one in fit if one not in (asker, target) and (asker, one) not in self.follows]
        return kept[:count]

    def _slate(self, event: int) -> SlateAsked:
        """A slate whose impressions are still open."""
        actor, slate = self.slates[event]
        asker = self._known(actor, slate.time)
        shown = [self._known(name, slate.time) for name in slate.shown]
        shown = [number for number in shown if (asker, number) not in self.follows]
        row = int(np.searchsorted(self.pairs.event, event))
        followers = [self.followers[number] for number in shown]
        age = max(0, slate.time - self.since[asker])
        return SlateAsked(event, row, slate.time, asker, shown, (), followers, age)

    def _closed(self, asked: SlateAsked, answered: Mapping[tuple[int, int], Sequence[int]]) -> SlateAsked:
        """The slate with what became of each impression."""
        window = int(self.sampling.window_seconds * SECOND)
        _, slate = self.slates[asked.event]
        since = {self.numbers[name]: time for name, time in slate.shown.items()}
        engaged = [
            any(0 <= at - since[account] <= window for at in answered.get((asked.asker, account), ()))
            for account in asked.shown
        ]
        return asked._replace(engaged=engaged)


def _engages(event: Record) -> bool:
    """Whether an event is a follow or an engagement, and no undo of one."""
    signal = BY_NAME.get(event["signal"])
    return signal is not None and signal.group in (Group.FOLLOW, Group.ENGAGE)
