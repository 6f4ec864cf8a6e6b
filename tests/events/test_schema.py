"""The schema says what the wire checks, wherever a schema can say it; docs/ holds what the code makes."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from kithstream.streams.errors import InvalidEvent
from kithstream.streams.events import schema, wire
from kithstream.streams.events.signals import CONTROLS, NAMES, SIGNALS
from kithstream.streams.events.wire import NEEDS_ITEM, Event

DOCS = Path(__file__).parents[2] / "docs"
NOW = 1_800_000_000_000_000
VALIDATOR = Draft202012Validator(schema.event_schema())

FOLLOW = {"id": "e1", "signal": "follow", "actor": "ann", "time": NOW, "target": "bob"}
LIKE = {**FOLLOW, "signal": "like", "item": "post"}
PROFILE = {"id": "e1", "signal": "profile", "actor": "ann", "time": NOW}
RETRACT = {**PROFILE, "signal": "retract", "retracts": "e0"}

ACCEPTED = [
    FOLLOW,
    LIKE,
    {**FOLLOW, "source": "client", "value": 3, "later": {"a": [1]}},
    {**FOLLOW, "actor": "x" * 128, "target": "a/b ü"},
    {**FOLLOW, "signal": "not_interested"},
    {**FOLLOW, "item": ""},
    {**PROFILE, "language": "pt-BR", "country": "BR", "private": True, "suspended": None, "listed": False},
    RETRACT,
    {**PROFILE, "signal": "account_delete"},
]
REFUSED = [
    3,
    [],
    {**FOLLOW, "signal": "poke"},
    {key: FOLLOW[key] for key in ("id", "signal", "actor", "target")},
    {**FOLLOW, "id": ""},
    {**FOLLOW, "actor": "x" * 129},
    {**FOLLOW, "target": "a\0b"},
    {**FOLLOW, "target": ""},
    {**FOLLOW, "time": -1},
    {**FOLLOW, "time": wire.LATEST},
    {**FOLLOW, "time": "5"},
    {**FOLLOW, "source": "phone"},
    {**FOLLOW, "target": None},
    {**FOLLOW, "value": "long"},
    {**LIKE, "item": ""},
    {**LIKE, "signal": "unlike", "item": "x" * 129},
    {**FOLLOW, "item": "x" * 129},
    {**PROFILE, "language": "english"},
    {**PROFILE, "country": "BRA"},
    {**PROFILE, "private": "yes"},
    {**RETRACT, "retracts": ""},
    PROFILE | {"signal": "retract"},
]


def taken(event: object) -> bool:
    try:
        wire.decode(json.dumps(event).encode(), now=NOW)
    except InvalidEvent:
        return False
    return True


@pytest.mark.parametrize("event", ACCEPTED)
def test_what_the_wire_takes_fits_the_schema(event: object) -> None:
    assert taken(event)
    VALIDATOR.validate(event)


@pytest.mark.parametrize("event", REFUSED)
def test_what_the_wire_refuses_does_not_fit(event: object) -> None:
    assert not taken(event)
    assert not VALIDATOR.is_valid(event)


# Characters of one byte, so that characters and bytes are the same number; times up to now; two accounts.
TEXT = st.text(st.characters(codec="ascii"), max_size=3) | st.sampled_from(["x" * 128, "x" * 129, "\n", "é"])
ODD = st.none() | st.booleans() | st.just(7) | st.just([])
VALUES: dict[str, st.SearchStrategy[object]] = {
    "id": TEXT,
    "actor": st.sampled_from(["ann", "x" * 128, "x" * 129, ""]),
    "time": st.integers(-2, NOW) | ODD,
    "target": st.sampled_from(["bob", "y" * 128, "y" * 129, "a\0b", ""]) | ODD,
    "item": TEXT | ODD,
    "source": st.sampled_from(["server", "client", "phone"]) | ODD,
    "value": st.floats(allow_nan=False, allow_infinity=False) | TEXT | ODD,
    "language": st.sampled_from(["en", "pt-BR", "en-", "e", "fil", "engl", "en\n", "x" * 36, ""]) | ODD,
    "country": st.sampled_from(["BR", "br", "B", "BRA", "B1", "US\n", ""]) | ODD,
    "private": ODD | TEXT,
    "suspended": ODD | TEXT,
    "listed": ODD,
    "retracts": TEXT | ODD,
    "later": ODD | TEXT,
}
# What every signal needs, with one or two fields made odd and perhaps one gone.
BASE = {"id": "e", "actor": "ann", "time": NOW, "target": "bob", "item": "post", "retracts": "e0"}
CHANGES = st.lists(st.sampled_from(sorted(VALUES)), max_size=2, unique=True).flatmap(
    lambda names: st.fixed_dictionaries({name: VALUES[name] for name in names})
)
EVENTS = st.builds(
    lambda signal, changes, gone: {
        name: value for name, value in {"signal": signal, **BASE, **changes}.items() if name != gone
    },
    st.sampled_from([*NAMES, "poke", ""]),
    CHANGES,
    st.sampled_from([None, None, "signal", *BASE]),
)


@settings(max_examples=1000)
@given(EVENTS)
@example({**PROFILE, "country": "US\n"})
@example({**PROFILE, "language": "en\n"})
@example({**FOLLOW, "item": 7})
def test_schema_and_wire_agree(event: dict[str, object]) -> None:
    assert VALIDATOR.is_valid(event) == taken(event)


@pytest.mark.parametrize("name", sorted(NEEDS_ITEM))
@pytest.mark.parametrize("item", ["", "\0", "x" * 129, None])
def test_an_item_that_is_needed_is_one(name: str, item: str | None) -> None:
    event = {**LIKE, "signal": name}
    VALIDATOR.validate(event)
    assert not VALIDATOR.is_valid({**event, "item": item})
    assert not taken({**event, "item": item})


def test_the_documents_are_what_the_code_makes() -> None:
    stale = [name for name, text in schema.files().items() if (DOCS / name).read_text() != text]
    assert not stale, "run `make docs`"


def test_writing_twice_writes_the_same(tmp_path: Path) -> None:
    assert schema.main([str(tmp_path)]) == 0
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == schema.files()
    assert schema.main([]) == 2


def test_every_signal_and_every_field_is_documented() -> None:
    text = schema.markdown()
    for name in (*NAMES, *CONTROLS, *Event.__struct_fields__):
        assert f"`{name}`" in text
    rows = 2 * len(SIGNALS) + len(CONTROLS) + len(Event.__struct_fields__)
    assert len([line for line in text.splitlines() if line.startswith("| `")]) == rows
    properties = schema.event_schema()["properties"]
    assert isinstance(properties, dict)
    assert tuple(properties) == Event.__struct_fields__


def test_types_and_defaults_are_those_of_the_struct() -> None:
    (made,) = msgspec.json.schema_components([Event])[1].values()
    properties = schema.event_schema()["properties"]
    assert isinstance(properties, dict)
    for name, rule in made["properties"].items():
        kinds = [one["type"] for one in rule.get("anyOf", [rule]) if "type" in one]
        said = properties[name].get("type", kinds)
        assert (said if isinstance(said, list) else [said]) == kinds, name


def test_the_schema_is_a_schema() -> None:
    Draft202012Validator.check_schema(schema.event_schema())
    Draft202012Validator.check_schema(schema.event_schema(stamped=False))
