"""The signals: one row each. Ledger, counters, exclusions, schema and documentation are read from this table.

The 18 signals of candidate retrieval are follow, unfollow, mute, block, like, unlike, repost, quote, reply,
share, bookmark, click, video_watch, not_interested, report, notification_open, notification_tab_click and
address_book; beside them stand the undos that are no signal of their own (unmute, unblock, ...), `impression`
(a candidate that was shown), and the controls that carry no edge (profile, deactivation, deletion, retract).
"""

from __future__ import annotations

from enum import Enum, IntEnum
from typing import Final, NamedTuple


class Kind(Enum):
    """How the ledger keys a signal."""

    STATE = "state"  # one edge per (actor, family, target[, item]); the winner of the conflict rule counts
    OCCURRENCE = "occurrence"  # one entry per event id
    CONTROL = "control"  # about the actor itself, or about another event; no edge


class Group(IntEnum):
    """What a family is to the features: the axis over which counters are summed when they are read."""

    FOLLOW = 0
    ENGAGE = 1
    NEGATIVE = 2
    SILENT = 3  # counted by family, read by no feature group


class Newest(Enum):
    """The lists of newest that an actor has beside that of its follows; the value is the letter of their rows."""

    ENGAGED = b"e"  # read for the horizon only: occurrences leave the ledger after it
    AVOIDED = b"a"  # state edges alone, so that it reaches back for ever
    SHOWN = b"v"  # read for the horizon only

    __hash__ = object.__hash__  # members are one of a kind; an Enum's own hashes the name, in Python


class Signal(NamedTuple):
    """One signal; `family` is its number in counter cells and never changes once used."""

    name: str
    family: int
    kind: Kind
    group: Group
    undo: str | None = None  # the event that takes it back (retract takes back any)
    trace: bool = False  # the undo is a signal of its own and is counted under its own family
    item: bool = False  # keyed by item as well
    excludes: bool = False  # while present, neither account is a candidate for the other
    follows: bool = False  # while present, the target is no candidate for the actor
    public: bool = False  # others can see it on the product: it may be told as a reason
    newest: Newest | None = None  # the list of the actor's newest in which it stands
    cap: int = 0  # most of one actor that count for one target in a day; 0 where a pair has one edge at most
    reach: int = 0  # about how many of one actor count in a day, whomever they are about; 0 for all
    hidden: int = 0  # days for which the target is no candidate for the actor
    fading: int = 0  # days after these over which the target comes back
    private: bool = (
        False  # counts with the actor's consent alone; its target is kept as a salted hash and never told
    )


_STATE, _ONCE, _CONTROL = Kind.STATE, Kind.OCCURRENCE, Kind.CONTROL
# Above what a busy hand does in a day, below what a machine does: follows are few, refusals fewer.
# An impression is the product's doing, and long sessions have thousands of them: those are not bounded.
_FOLLOWS, _DEEDS, _REFUSALS = 500, 1000, 200
_ENGAGED, _AVOIDED, _SHOWN = Newest

SIGNALS: Final[tuple[Signal, ...]] = (
    Signal(
        "follow",
        0,
        _STATE,
        Group.FOLLOW,
        undo="unfollow",
        trace=True,
        follows=True,
        public=True,
        reach=_FOLLOWS,
    ),
    Signal("unfollow", 1, _ONCE, Group.NEGATIVE, cap=2, reach=_FOLLOWS),
    Signal("mute", 2, _STATE, Group.NEGATIVE, undo="unmute", excludes=True, newest=_AVOIDED, reach=_REFUSALS),
    Signal(
        "block", 3, _STATE, Group.NEGATIVE, undo="unblock", excludes=True, newest=_AVOIDED, reach=_REFUSALS
    ),
    Signal(
        "like",
        4,
        _STATE,
        Group.ENGAGE,
        undo="unlike",
        trace=True,
        item=True,
        public=True,
        newest=_ENGAGED,
        cap=10,
        reach=_DEEDS,
    ),
    Signal("unlike", 5, _ONCE, Group.SILENT, cap=10, reach=_DEEDS),
    Signal(
        "repost",
        6,
        _STATE,
        Group.ENGAGE,
        undo="unrepost",
        item=True,
        public=True,
        newest=_ENGAGED,
        cap=10,
        reach=_DEEDS,
    ),
    Signal("quote", 7, _ONCE, Group.ENGAGE, public=True, newest=_ENGAGED, cap=10, reach=_DEEDS),
    Signal("reply", 8, _ONCE, Group.ENGAGE, public=True, newest=_ENGAGED, cap=10, reach=_DEEDS),
    Signal("share", 9, _ONCE, Group.ENGAGE, newest=_ENGAGED, cap=10, reach=_DEEDS),
    Signal(
        "bookmark",
        10,
        _STATE,
        Group.ENGAGE,
        undo="unbookmark",
        item=True,
        newest=_ENGAGED,
        cap=10,
        reach=_DEEDS,
    ),
    Signal("click", 11, _ONCE, Group.ENGAGE, newest=_ENGAGED, cap=10, reach=_DEEDS),
    Signal("video_watch", 12, _ONCE, Group.ENGAGE, newest=_ENGAGED, cap=10, reach=_DEEDS),
    Signal(
        "not_interested",
        13,
        _STATE,
        Group.NEGATIVE,
        undo="undo_not_interested",
        item=True,
        newest=_AVOIDED,
        cap=2,
        reach=_REFUSALS,
        hidden=14,
        fading=140,
    ),
    Signal(
        "report",
        14,
        _STATE,
        Group.NEGATIVE,
        undo="withdraw_report",
        excludes=True,
        newest=_AVOIDED,
        reach=_REFUSALS,
    ),
    Signal("notification_open", 15, _ONCE, Group.ENGAGE, newest=_ENGAGED, cap=10, reach=_DEEDS),
    Signal("notification_tab_click", 16, _ONCE, Group.ENGAGE, newest=_ENGAGED, cap=10, reach=_DEEDS),
    Signal("address_book", 17, _STATE, Group.SILENT, undo="address_book_remove", private=True),
    Signal("impression", 18, _ONCE, Group.SILENT, newest=_SHOWN, cap=10),
)

CONTROLS: Final[tuple[str, ...]] = (
    "profile",
    "account_deactivate",
    "account_reactivate",
    "account_delete",
    "retract",
)

FAMILIES: Final = len(SIGNALS)
BY_NAME: Final[dict[str, Signal]] = {s.name: s for s in SIGNALS}
UNDO_OF: Final[dict[str, Signal]] = {s.undo: s for s in SIGNALS if s.undo is not None}
NAMES: Final[tuple[str, ...]] = tuple(
    dict.fromkeys([s.name for s in SIGNALS] + [s.undo for s in SIGNALS if s.undo] + list(CONTROLS))
)


def by_family() -> tuple[Signal, ...]:
    """Return the signals so that each stands at its family's number."""
    return tuple(sorted(SIGNALS, key=lambda signal: signal.family))


GROUP_OF_FAMILY: Final[tuple[int, ...]] = tuple(signal.group for signal in by_family())
