"""A dead letter: a record that could not be used, why, and where it came from."""

from __future__ import annotations

import base64
import binascii
from typing import Final

import msgspec

from kithstream.streams.events.wire import EVENT_BYTES
from kithstream.streams.kafka.wire import DeadLetter

KEPT: Final = 1 << 20  # bytes of a frame that a letter holds: as base64 below what a request may hold
DETAIL: Final = 400  # characters
KEY: Final = 1024  # bytes
_encode = msgspec.json.Encoder().encode


def letter(
    reason: str,
    detail: str,
    topic: str,
    partition: int,
    offset: int,
    appended: int,
    raw: bytes,
    *,
    key: bytes | None = None,
    kept: int = EVENT_BYTES,
) -> bytes:
    """Return a record of the topic `dead-letters`; `appended` is in microseconds.

    It holds the first `kept` bytes. An event that is longer than any may be is never replayed, so no more is kept.
    """
    return _encode(
        DeadLetter(
            reason,
            detail[:DETAIL],
            topic,
            partition,
            offset,
            appended,
            base64.b64encode(raw[:kept]).decode(),
            len(raw),
            base64.b64encode(key).decode() if key is not None and len(key) <= KEY else None,
        )
    )


def content(told: DeadLetter) -> bytes | None:
    """Return the record of a letter; None if the letter does not hold all of it, or holds no base64."""
    try:
        raw = base64.b64decode(told.record, validate=True)
    except (binascii.Error, ValueError):
        return None
    whole = len(raw) == told.size if told.size >= 0 else len(raw) < EVENT_BYTES
    return raw if whole else None
