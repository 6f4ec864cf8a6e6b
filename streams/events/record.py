"""An event as the JSON object it is on the wire, for those who write events in bulk."""

from __future__ import annotations

from typing import NotRequired, TypedDict


class Record(TypedDict):
    """One event; the fields beside the first four depend on the signal (`signals.py`)."""

    id: str  # 1 to 128 bytes, unique per event
    signal: str  # a name of `signals.NAMES`
    actor: str  # 1 to 128 bytes, no NUL
    time: int  # microseconds since the epoch
    target: NotRequired[str]  # absent for controls
    item: NotRequired[str]
    source: NotRequired[str]  # server (the default) or client
    value: NotRequired[float]  # seconds watched or dwelt; the score of an impression
    language: NotRequired[str]  # profile: BCP 47
    country: NotRequired[str]  # profile: ISO 3166, two letters
    private: NotRequired[bool]  # profile
    suspended: NotRequired[bool]  # profile
    listed: NotRequired[bool]  # profile: a candidate before its first in-signal
    contacts: NotRequired[bool]  # profile: consent to its address book
    retracts: NotRequired[str]  # retract: the event's id
