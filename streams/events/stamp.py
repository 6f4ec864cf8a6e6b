"""What every publisher does with an event: give it a time and an id where it has none, and check it."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping

import msgspec

from kithstream.streams.errors import InvalidEvent
from kithstream.streams.events import wire
from kithstream.streams.events.wire import Event

EventLike = Event | Mapping[str, object] | bytes


def wall_clock() -> int:
    """Return the time of day in microseconds since 1970."""
    return time.time_ns() // 1000


def checked(event: EventLike, now: int) -> tuple[str, bytes]:
    """Return an event's actor and its record, stamped where `time` or `id` is absent; raises InvalidEvent."""
    if isinstance(event, bytes):
        decoded = wire.decode(event, now=now)
        return decoded.actor, event
    if isinstance(event, Event):
        wire.check(event, now=now)
        return event.actor, wire.encode(event)
    stamped = {"id": uuid.uuid4().hex, "time": now, **event}
    try:
        raw = msgspec.json.encode(stamped)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise InvalidEvent("malformed", "event", event, f"values of JSON ({error})") from None
    return wire.decode(raw, now=now).actor, raw
