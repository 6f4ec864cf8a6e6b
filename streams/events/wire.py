"""Events on the wire: JSON objects, decoded and checked one by one.

Unknown fields pass. Everything else that could not be folded exactly is refused with field and value named.
"""

from __future__ import annotations

import re
from typing import Final, Literal

import msgspec

from kithstream.streams.errors import InvalidEvent
from kithstream.streams.events.signals import BY_NAME, CONTROLS, NAMES, UNDO_OF

ID_BYTES: Final = 128  # longest account, item or event id
EVENT_BYTES: Final = 16_384  # longest record
NESTED: Final = 32  # deepest nesting of a record: beyond it decoding depends on how deep the stack is already
FUTURE: Final = 5_000_000  # microseconds an event may lie ahead of its append time
LATEST: Final = 253_402_300_800_000_000  # the year 10000, in microseconds

Source = Literal["server", "client"]


class Event(msgspec.Struct, gc=False, omit_defaults=True):
    """One engagement event. `time` is microseconds since 1970; ids are 1 to 128 bytes of UTF-8 without NUL."""

    id: str
    signal: str
    actor: str
    time: int
    target: str = ""
    item: str = ""
    source: Source = "server"
    value: float | None = None  # seconds watched or dwelt
    language: str | None = None  # profile: BCP 47
    country: str | None = None  # profile: ISO 3166-1 alpha-2
    private: bool | None = None  # profile: no candidate for anybody
    suspended: bool | None = None  # profile: no candidate for anybody
    listed: bool | None = None  # profile: a candidate before its first in-signal
    contacts: bool | None = None  # profile: consent to its address book; false purges it
    retracts: str = ""  # retract: the id of the event that is taken back


_decode = msgspec.json.Decoder(Event).decode
_encode = msgspec.json.Encoder().encode

_CONTROLS: Final = frozenset(CONTROLS)
NEEDS_ITEM: Final = frozenset(
    name for s in (*BY_NAME.values(), *UNDO_OF.values()) if s.item for name in (s.name, s.undo) if name
) - {"not_interested", "undo_not_interested"}
_KNOWN: Final = frozenset(NAMES)
_STRING: Final = re.compile(rb'"(?:[^"\\]|\\.)*"?', re.DOTALL)


def decode(raw: bytes, *, now: int) -> Event:
    """Return the event in `raw`; `now` is its append time in microseconds.

    Raises InvalidEvent with reason `oversize`, `malformed`, `wrong_type`, `unknown_signal`, `missing`,
    `bad_id`, `self_edge`, `future` or `out_of_range`.
    """
    if len(raw) > EVENT_BYTES:
        raise InvalidEvent("oversize", "record", f"{len(raw)} bytes", f"at most {EVENT_BYTES} bytes")
    if raw.count(b"[") + raw.count(b"{") > NESTED and _is_deeper(raw, NESTED):
        start = raw[:60].decode("utf-8", "replace")
        raise InvalidEvent("malformed", "record", start, f"at most {NESTED} levels of nesting")
    try:
        event = _decode(raw)
    except msgspec.ValidationError as error:
        raise _explained(raw, error) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        start = raw[:60].decode("utf-8", "replace")
        raise InvalidEvent("malformed", "record", start, f"a JSON object in UTF-8 ({error})") from None
    check(event, now=now)
    return event


def check(event: Event, *, now: int) -> None:
    """Raise InvalidEvent unless the event can be folded; `now` is its append time in microseconds."""
    signal, actor, target = event.signal, event.actor, event.target
    if signal not in _KNOWN:
        raise InvalidEvent("unknown_signal", "signal", signal, "a signal of docs/signals.md")
    if not 0 <= event.time <= now + FUTURE:
        if 0 <= event.time < LATEST:
            raise InvalidEvent("future", "time", event.time, f"at most 5 s after {now}")
        raise InvalidEvent(
            "out_of_range", "time", event.time, "microseconds since 1970, before the year 10000"
        )
    event_id, item = event.id, event.item
    plain = f"{event_id}{actor}{target}{item}"
    if not (
        plain.isascii()
        and "\0" not in plain
        and 0 < len(event_id) <= ID_BYTES
        and 0 < len(actor) <= ID_BYTES
        and len(target) <= ID_BYTES
        and len(item) <= ID_BYTES
    ):  # one test for all ids of nearly every event; this names the one that is wrong, if any is
        _check_id("id", event_id)
        _check_id("actor", actor)
        for field, value in (("target", target), ("item", item)):
            if value and signal not in _CONTROLS:
                _check_id(field, value)
    if signal in _CONTROLS:
        _check_control(event)
        return
    if not target:
        raise InvalidEvent("missing", "target", target, f"the account that {signal} is about")
    if target == actor:
        raise InvalidEvent("self_edge", "target", target, "another account than the actor")
    if not item and signal in NEEDS_ITEM:
        raise InvalidEvent("missing", "item", item, f"the item that {signal} is about")


def encode(event: Event) -> bytes:
    """Return the event as one JSON record without a newline."""
    return _encode(event)


def _check_id(field: str, value: str) -> None:
    if 0 < len(value) <= ID_BYTES and value.isascii() and "\0" not in value:
        return
    if not value:
        raise InvalidEvent("missing", field, value, "1 to 128 bytes")
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        raise InvalidEvent("bad_id", field, value, "valid UTF-8") from None
    if size > ID_BYTES:
        raise InvalidEvent("bad_id", field, value, f"at most {ID_BYTES} bytes, it has {size}")
    if "\0" in value:
        raise InvalidEvent("bad_id", field, value, "no NUL")


def _check_control(event: Event) -> None:
    match event.signal:
        case "retract":
            if not event.retracts:
                raise InvalidEvent("missing", "retracts", event.retracts, "the id of the event to take back")
            _check_id("retracts", event.retracts)
        case "profile":
            if event.language is not None and not is_language(event.language):
                raise InvalidEvent("bad_id", "language", event.language, "a BCP 47 tag such as en or pt-BR")
            if event.country is not None and not (
                len(event.country) == 2 and event.country.isascii() and event.country.isalpha()
            ):
                raise InvalidEvent("bad_id", "country", event.country, "two letters of ISO 3166-1")


def is_language(tag: str) -> bool:
    """True for a tag whose primary subtag is two or three ASCII letters."""
    primary = tag.split("-", 1)[0]
    return len(tag) <= 35 and len(primary) in (2, 3) and primary.isascii() and primary.isalpha()


def _explained(raw: bytes, error: msgspec.ValidationError) -> InvalidEvent:
    """The same refusal with the value beside the field; the slow path of bad input only."""
    text = str(error)
    expected, _, path = text.partition(" - at `$")
    field = path.strip("`.[]") or "record"
    if "missing required field" in text:
        return InvalidEvent("missing", text.split("field `")[1].split("`")[0], None, "a value")
    try:
        decoded = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as cause:
        if "out of range" in text:  # so far out that it cannot even be read without a type
            return InvalidEvent("out_of_range", field, "a number too large to read", "a number in range")
        start = raw[:60].decode("utf-8", "replace")
        return InvalidEvent("malformed", "record", start, f"a JSON object in UTF-8 ({cause})")
    value = decoded.get(field) if isinstance(decoded, dict) else decoded
    if field == "source" and isinstance(value, str):
        return InvalidEvent("wrong_type", field, value, "server or client")
    if "out of range" in text:
        return InvalidEvent("out_of_range", field, value, "a number in range")
    return InvalidEvent("wrong_type", field, value, expected.removeprefix("Expected "))


def _is_deeper(raw: bytes, levels: int) -> bool:
    """True if arrays and objects lie deeper in each other; what stands in strings does not count."""
    depth = 0
    for byte in _STRING.sub(b"", raw):
        if byte in b"[{":
            depth += 1
            if depth > levels:
                return True
        elif byte in b"]}":
            depth -= 1
    return False
