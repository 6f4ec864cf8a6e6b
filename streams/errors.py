"""What can go wrong, one leaf per decision the caller can take.

KithstreamError
├── InvalidEvent       fix the event: names the field and the value
├── NotYet             ask again: the state does not include the token yet
├── Unavailable        ask again: nobody answered in time, or the partition is being moved
├── Unanswerable       do not ask again: this account cannot be answered for
├── Unreachable        mend the way: no broker answers there, or the topic is not there
├── TopicRefused       mend settings or rights: the brokers do not make or show a topic, and say why
├── Undelivered        publish `events` again: the brokers have not confirmed all of them
├── StoreRefused       restore or rebuild: the store must not be opened like this
│   ├── GapInLog       the log no longer reaches back to the store's offset
│   └── WrongLayout    other partition count, other format
└── UnusableSource     fix the file: names the file, the line, the field and the value
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

SHOWN: Final = 80  # characters of a value that a message shows at most


class KithstreamError(Exception):
    """Root of everything this package raises on purpose."""


class InvalidEvent(KithstreamError):
    """An event that cannot be used; `field` and `value` say why, `reason` is one of a small set."""

    def __init__(self, reason: str, field: str, value: object, expected: str) -> None:
        shown = _shown(value)
        super().__init__(f"{field} is {shown}, expected {expected}")
        self.reason = reason
        self.field = field
        self.value = shown
        self.expected = expected


def _shown(value: object) -> str:
    """At most 80 characters of a value, whatever it is."""
    if isinstance(value, (str, bytes)):
        value = value[:SHOWN]
    try:
        shown = repr(value)
    except (RecursionError, ValueError):  # nested too deeply, or a number of thousands of digits
        return f"a value of type {type(value).__name__}"
    return shown if len(shown) <= SHOWN else shown[: SHOWN - 3] + "..."


class NotYet(KithstreamError):
    """The state of the answering partition does not include the token's events; ask again."""


class Unavailable(KithstreamError):
    """No answer came in time, or none can be given at the moment; ask again."""


class Unanswerable(KithstreamError):
    """The account is deleted (`gone`) or deactivated: there is no answer, and asking again does not help."""

    def __init__(self, message: str, *, gone: bool = False) -> None:
        super().__init__(message)
        self.gone = gone


class Unreachable(KithstreamError):
    """The brokers cannot be reached as the settings say, or do not show a topic."""


class TopicRefused(KithstreamError):
    """The brokers answered, and did not make a topic or did not show it; the message has their reason."""


class Undelivered(KithstreamError):
    """The brokers have not confirmed every event; `events` are the records to be published again.

    Some of them may have arrived all the same: they carry their ids, so that publishing them again counts once.
    """

    def __init__(self, message: str, events: Sequence[bytes]) -> None:
        super().__init__(message)
        self.events = events


class StoreRefused(KithstreamError):
    """The store must not be opened like this; nothing was changed."""


class GapInLog(StoreRefused):
    """The log begins after the store's offset: events in between would be lost silently."""


class WrongLayout(StoreRefused):
    """The store was made with another partition count or format."""


class UnusableSource(KithstreamError):
    """A file that cannot be read as declared; names file, line, field and value."""
