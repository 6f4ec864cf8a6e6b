"""Events on the wire: what passes, and every refusal with its reason, field and value."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kithstream.streams.errors import InvalidEvent
from kithstream.streams.events import wire
from kithstream.streams.events.signals import CONTROLS, NAMES
from kithstream.streams.events.wire import EVENT_BYTES, FUTURE, LATEST, NEEDS_ITEM, Event

NOW = 1_800_000_000_000_000
FOLLOW = {"id": "e1", "signal": "follow", "actor": "ann", "time": NOW, "target": "bob"}
PROFILE = {"id": "e1", "signal": "profile", "actor": "ann", "time": NOW}


def decoded(event: object, now: int = NOW) -> Event:
    return wire.decode(json.dumps(event).encode(), now=now)


def without(field: str) -> dict[str, object]:
    return {key: value for key, value in FOLLOW.items() if key != field}


@pytest.mark.parametrize(
    ("event", "reason", "field", "value"),
    [
        ({**FOLLOW, "more": "x" * EVENT_BYTES}, "oversize", "record", "bytes"),
        (3, "wrong_type", "record", "3"),
        ([FOLLOW], "wrong_type", "record", "e1"),
        (None, "wrong_type", "record", "None"),
        ({**FOLLOW, "time": "soon"}, "wrong_type", "time", "'soon'"),
        ({**FOLLOW, "time": 1.5}, "wrong_type", "time", "1.5"),
        ({**FOLLOW, "time": True}, "wrong_type", "time", "True"),
        ({**FOLLOW, "target": None}, "wrong_type", "target", "None"),
        ({**FOLLOW, "source": "phone"}, "wrong_type", "source", "'phone'"),
        ({**FOLLOW, "source": 3}, "wrong_type", "source", "3"),
        ({**FOLLOW, "value": "long"}, "wrong_type", "value", "'long'"),
        ({**PROFILE, "private": 1}, "wrong_type", "private", "1"),
        ({**FOLLOW, "signal": "poke"}, "unknown_signal", "signal", "'poke'"),
        ({**FOLLOW, "signal": ""}, "unknown_signal", "signal", "''"),
        (without("id"), "missing", "id", "None"),
        (without("signal"), "missing", "signal", "None"),
        (without("actor"), "missing", "actor", "None"),
        (without("time"), "missing", "time", "None"),
        (without("target"), "missing", "target", "''"),
        ({**FOLLOW, "id": ""}, "missing", "id", "''"),
        ({**FOLLOW, "actor": ""}, "missing", "actor", "''"),
        ({**FOLLOW, "signal": "like"}, "missing", "item", "''"),
        ({**FOLLOW, "signal": "unrepost", "item": ""}, "missing", "item", "''"),
        ({**PROFILE, "signal": "retract"}, "missing", "retracts", "''"),
        ({**FOLLOW, "actor": "x" * 129}, "bad_id", "actor", "xxx"),
        ({**FOLLOW, "target": "é" * 65}, "bad_id", "target", "é"),
        ({**FOLLOW, "id": "a\0b"}, "bad_id", "id", r"'a\x00b'"),
        ({**FOLLOW, "item": "x" * 129}, "bad_id", "item", "xxx"),
        ({**PROFILE, "signal": "retract", "retracts": "a\0"}, "bad_id", "retracts", r"'a\x00'"),
        ({**PROFILE, "language": "english"}, "bad_id", "language", "'english'"),
        ({**PROFILE, "country": "BRA"}, "bad_id", "country", "'BRA'"),
        ({**FOLLOW, "target": "ann"}, "self_edge", "target", "'ann'"),
        ({**FOLLOW, "time": NOW + FUTURE + 1}, "future", "time", str(NOW + FUTURE + 1)),
        ({**FOLLOW, "time": -1}, "out_of_range", "time", "-1"),
        ({**FOLLOW, "time": LATEST}, "out_of_range", "time", str(LATEST)),
        ({**FOLLOW, "time": 10**30}, "out_of_range", "time", str(10**30)),
    ],
)
def test_a_refusal_names_reason_field_and_value(event: object, reason: str, field: str, value: str) -> None:
    with pytest.raises(InvalidEvent) as caught:
        decoded(event)
    refused = caught.value
    assert (refused.reason, refused.field) == (reason, field)
    assert value in refused.value
    assert len(refused.value) <= 80
    assert str(refused) == f"{field} is {refused.value}, expected {refused.expected}"


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"\xff",
        b'{"id":"\\ud800"}',
        json.dumps(FOLLOW).encode() + b"x",
        b"[" * 9000,
        b'{"id":"\xff"}',
    ],
)
def test_what_is_no_json_is_malformed(raw: bytes) -> None:
    with pytest.raises(InvalidEvent) as caught:
        wire.decode(raw, now=NOW)
    assert (caught.value.reason, caught.value.field) == ("malformed", "record")


def test_a_lone_surrogate_is_no_id() -> None:
    with pytest.raises(InvalidEvent) as caught:
        wire.check(Event("e", "follow", "\ud800", NOW, "bob"), now=NOW)
    assert (caught.value.reason, caught.value.field) == ("bad_id", "actor")


def test_unknown_fields_pass() -> None:
    assert decoded({**FOLLOW, "trace_id": "t", "nested": {"a": [1, None]}}) == decoded(FOLLOW)


def test_bounds_are_included() -> None:
    assert (
        decoded({**FOLLOW, "actor": "x" * 128, "target": "é" * 64, "time": NOW + FUTURE}).time == NOW + FUTURE
    )
    assert decoded({**FOLLOW, "time": 0}).time == 0
    room = EVENT_BYTES - len(json.dumps({**FOLLOW, "more": ""}))
    assert decoded({**FOLLOW, "more": "x" * room}).actor == "ann"


@pytest.mark.parametrize("name", NAMES)
def test_every_signal_passes_with_what_it_needs(name: str) -> None:
    event: dict[str, object] = {**PROFILE, "signal": name}
    if name not in CONTROLS:
        event["target"] = "bob"
    if name in NEEDS_ITEM:
        event["item"] = "post"
    if name == "retract":
        event["retracts"] = "e0"
    assert decoded(event).signal == name


ID = st.text(st.characters(exclude_characters="\0", codec="utf-8"), min_size=1, max_size=32)


@given(
    ID, ID, ID, ID, st.integers(0, NOW), st.sampled_from(["server", "client"]), st.none() | st.floats(0, 1e9)
)
def test_what_is_encoded_decodes_to_the_same(
    name: str, actor: str, target: str, item: str, time: int, source: wire.Source, value: float | None
) -> None:
    event = Event(name, "like", actor, time, "t" + target if target == actor else target, item, source, value)
    assert wire.decode(wire.encode(event), now=NOW) == event


def refused_or_taken(raw: bytes) -> None:
    try:
        event = wire.decode(raw, now=NOW)
    except InvalidEvent as refused:
        said = refused.reason, refused.field, refused.expected
    else:
        said = ("taken",)
        wire.check(event, now=NOW)
        assert wire.decode(wire.encode(event), now=NOW) == event
    assert all(said)


@settings(max_examples=500)
@given(st.binary(max_size=200))
def test_any_bytes_are_taken_or_refused(raw: bytes) -> None:
    refused_or_taken(raw)


@settings(max_examples=500)
@given(st.integers(0, 200), st.binary(max_size=6), st.integers(0, 6))
def test_any_damage_is_taken_or_refused(at: int, put: bytes, cut: int) -> None:
    raw = json.dumps({**FOLLOW, "signal": "like", "item": "p", "value": 1.5, "country": None}).encode()
    refused_or_taken(raw[:at] + put + raw[at + cut :])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=500)
@given(st.dictionaries(st.sampled_from(Event.__struct_fields__), JSON), st.sampled_from(NAMES))
def test_any_object_is_taken_or_refused(event: dict[str, object], signal: str) -> None:
    refused_or_taken(json.dumps({**FOLLOW, "signal": signal, **event}).encode())
