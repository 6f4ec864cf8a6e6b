"""JSON Schema and documentation of events, made from the table of signals and the checks of the wire.

`python -m kithstream.streams.events.schema docs` writes `events.schema.json` and `signals.md` into a folder.
What JSON Schema cannot say and the wire checks all the same: sizes in bytes (here they are characters), that
target and actor differ, that a time is not in the future, the size of the whole record. And a schema takes
1.0 for an integer, the wire does not.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

import msgspec

from kithstream.streams.events.signals import CONTROLS, NAMES, SIGNALS, UNDO_OF, Signal
from kithstream.streams.events.wire import EVENT_BYTES, FUTURE, ID_BYTES, LATEST, NEEDS_ITEM, Event
from kithstream.streams.state.ledger import DAY, HORIZON

Schema = dict[str, object]

_NO_NUL: Final = "^[^\\u0000]*$"
IDENTIFIER: Final[Schema] = {"type": "string", "minLength": 1, "maxLength": ID_BYTES, "pattern": _NO_NUL}
LANGUAGE: Final[Schema] = {
    "type": ["string", "null"],
    "maxLength": 35,
    "pattern": "^[A-Za-z]{2,3}(?![^-])",
}
COUNTRY: Final[Schema] = {"type": ["string", "null"], "maxLength": 2, "pattern": "^[A-Za-z]{2}$"}

_FIELDS: Final[dict[str, tuple[str, Schema]]] = {
    "id": ("names the event: a repeat with the same id counts once", IDENTIFIER),
    "signal": ("what happened", {"enum": list(NAMES)}),
    "actor": ("the account that did it", IDENTIFIER),
    "time": (
        f"when, in microseconds since 1970; at most {FUTURE // 1_000_000} s ahead of the server's clock",
        {"type": "integer", "minimum": 0, "exclusiveMaximum": LATEST},
    ),
    "target": ("the account it is about, another one than the actor", {"type": "string"}),
    "item": ("the post, video or list it is about", {"type": "string"}),
    "source": ("who saw it; what a server saw wins over what a client says", {"enum": ["server", "client"]}),
    "value": ("seconds watched or dwelt", {"type": ["number", "null"]}),
    "language": (
        "of a profile: a BCP 47 tag of at most 35 characters, such as en or pt-BR",
        {"type": ["string", "null"]},
    ),
    "country": ("of a profile: two letters of ISO 3166-1", {"type": ["string", "null"]}),
    "private": ("of a profile: true keeps the account out of every answer", {"type": ["boolean", "null"]}),
    "suspended": ("of a profile: true keeps the account out of every answer", {"type": ["boolean", "null"]}),
    "listed": (
        "of a profile: true makes a candidate before anybody has engaged",
        {"type": ["boolean", "null"]},
    ),
    "contacts": (
        "of a profile: true consents to its address book, false purges every entry up to its time",
        {"type": ["boolean", "null"]},
    ),
    "retracts": ("of a retract: the id of the event that is taken back", {"type": "string"}),
}

_CONTROLS: Final[dict[str, tuple[str, tuple[str, ...]]]] = {
    "profile": (
        "says what the account is",
        ("language", "country", "private", "suspended", "listed", "contacts"),
    ),
    "account_deactivate": ("hides the account, and answers nothing for it, until it is reactivated", ()),
    "account_reactivate": ("takes account_deactivate back", ()),
    "account_delete": ("removes the account and everything about it, for good", ()),
    "retract": ("takes back one event of the same actor, whatever it was", ("retracts",)),
}


def event_schema(*, stamped: bool = True) -> Schema:
    """Return the JSON Schema (2020-12) of one event; with `stamped=False`, `id` and `time` may be absent."""
    return {
        "title": "Event",
        "description": (
            f"One engagement event, at most {EVENT_BYTES} bytes of JSON in UTF-8. "
            f"Ids are 1 to {ID_BYTES} bytes without NUL. Unknown fields pass."
        ),
        "type": "object",
        "properties": {
            name: {"description": text, **rule, **_default(name)} for name, (text, rule) in _FIELDS.items()
        },
        "required": ["id", "signal", "actor", "time"] if stamped else ["signal", "actor"],
        "oneOf": [signal_schema(name) for name in NAMES],
    }


def signal_schema(name: str) -> Schema:
    """Return what one signal asks of its event beyond the fields that all have."""
    rules: Schema = {"signal": {"const": name}}
    required = []
    if name not in CONTROLS:
        required.append("target")
        rules["target"] = IDENTIFIER
        rules["item"] = IDENTIFIER if name in NEEDS_ITEM else {"maxLength": ID_BYTES, "pattern": _NO_NUL}
        if name in NEEDS_ITEM:
            required.append("item")
    elif name == "profile":
        rules.update(language=LANGUAGE, country=COUNTRY)
    elif name == "retract":
        required.append("retracts")
        rules["retracts"] = IDENTIFIER
    schema: Schema = {"title": name, "properties": rules}
    return {**schema, "required": required} if required else schema


def _default(name: str) -> Schema:
    field = next(field for field in msgspec.structs.fields(Event) if field.name == name)
    return {} if field.default in (msgspec.NODEFAULT, None, "") else {"default": field.default}


def markdown() -> str:
    """Return the table of signals as a page."""
    lines = [
        "# Signals",
        "",
        "Made by `make docs` from `streams/events/signals.py` and `streams/events/wire.py`.",
        "The JSON Schema of an event is in `events.schema.json`.",
        "",
        "- **state**: one edge per actor, signal and target (and item); repeats change nothing,",
        "  an undo takes it away.",
        "- **occurrence**: each event counts, until it is retracted.",
        "- **undo**: the event that takes it back. With a trace, the undo counts as a signal of its own",
        "  as well.",
        "- **item**: whether the event must name an item; *keyed* means that each item has its own edge.",
        "- **excludes**: while it stands, neither account is a candidate for the other. A follow keeps its",
        "  target out of the actor's answers only.",
        "- **group**: what it is to the features that sum over several signals; silent ones are in no sum.",
        "- **private**: its target is kept as a salted hash, in the actor's ledger alone: the target's side is",
        "  told nothing, not even a number. It counts while the actor's profile says `contacts`, if it was sent",
        "  on the UTC day before that consent or later; without consent the hash goes after the horizon. A",
        "  withdrawal takes away what was sent up to its time. Deleting the target leaves the hash.",
        "",
        "| signal | kind | undo | trace | item | excludes | group | private |",
        "|---|---|---|---|---|---|---|---|",
        *(_row(signal) for signal in SIGNALS),
        "",
        "Undos that are no signal of their own: "
        + ", ".join(f"`{undo}`" for undo, of in UNDO_OF.items() if not of.trace)
        + ".",
        "",
        "## What each adds",
        "",
        "Every signal is counted by family in the row of its actor and in that of its target, by minutes, tens of",
        "minutes, hours and days of its event time, and decayed when it is read. An undo takes away exactly what its",
        "do added, and leaves its own trace where the table above says so.",
        "",
        "- **newest**: the list of the actor's newest in which it stands: `engaged` and `shown` are read",
        f"  for {HORIZON // DAY} days, `avoided` for ever. The towers pool them; what was shown and not engaged with",
        "  sinks.",
        "- **cap**: how many of one actor count for one target in one UTC day, the earliest of that day; a dash where",
        "  a pair has one edge at most. The actor's own row counts all.",
        "- **reach**: about how many of one actor count in one UTC day, whomever they are about; a dash for no bound.",
        "  Beyond it one target in two, four, eight and so on counts, by a hash of actor and target, so that between",
        "  half as many and as many count. The rest stands, excludes and is in its actor's own row.",
        "- **hidden, fading**: days for which the target is no candidate for the actor, and days after these in which",
        "  its odds grow from a fifth to all. Exclusions of the first table never expire.",
        "- **public**: others see it on the product, so it may be told as a reason; all else is for the towers alone.",
        "",
        "| signal | newest | cap | reach | hidden | fading | public |",
        "|---|---|---|---|---|---|---|",
        *(_adds(signal) for signal in SIGNALS),
        "",
        "## Controls",
        "",
        "About the actor itself; no edge.",
        "",
        "| control | what it does | fields |",
        "|---|---|---|",
        *(
            f"| `{name}` | {_CONTROLS[name][0]} | {', '.join(f'`{f}`' for f in _CONTROLS[name][1]) or '-'} |"
            for name in CONTROLS
        ),
        "",
        "## Fields",
        "",
        "| field | type | required | meaning |",
        "|---|---|---|---|",
        *(f"| `{name}` | {_kind(rule)} | {_need(name)} | {text} |" for name, (text, rule) in _FIELDS.items()),
        "",
        f"Ids are 1 to {ID_BYTES} bytes of UTF-8 without NUL; an event is at most {EVENT_BYTES} bytes.",
        "Unknown fields pass.",
        "The HTTP server and `publish` fill in `id` and `time` where they are absent.",
        "",
    ]
    return "\n".join(lines)


def _row(signal: Signal) -> str:
    item = "keyed" if signal.item else "-"
    if signal.item and signal.name not in NEEDS_ITEM:
        item = "keyed, optional"
    elif not signal.item and signal.name in NEEDS_ITEM:
        item = "required"
    excludes = "both" if signal.excludes else "the target" if signal.follows else "-"
    undo = f"`{signal.undo}`" if signal.undo else "-"
    cells = (
        f"`{signal.name}`",
        signal.kind.value,
        undo,
        "yes" if signal.trace else "-",
        item,
        excludes,
        signal.group.name.lower(),
        "yes" if signal.private else "-",
    )
    return f"| {' | '.join(cells)} |"


def _adds(signal: Signal) -> str:
    cells = (
        f"`{signal.name}`",
        signal.newest.name.lower() if signal.newest else "-",
        str(signal.cap or "-"),
        str(signal.reach or "-"),
        str(signal.hidden or "-"),
        str(signal.fading or "-"),
        "yes" if signal.public else "-",
    )
    return f"| {' | '.join(cells)} |"


def _kind(rule: Schema) -> str:
    if "enum" in rule:
        choices = rule["enum"]
        assert isinstance(choices, list)
        return "a signal" if len(choices) > 9 else " or ".join(choices)
    kind = rule["type"]
    return str(kind[0] if isinstance(kind, list) else kind)


def _need(name: str) -> str:
    if name in ("id", "signal", "actor", "time"):
        return "always"
    return {"target": "but for controls", "item": "as in the table", "retracts": "for retract"}.get(name, "-")


def files() -> dict[str, str]:
    """Return the documents by file name."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **event_schema()}
    text = msgspec.json.format(msgspec.json.encode(schema), indent=2).decode()
    return {"events.schema.json": text + "\n", "signals.md": markdown()}


def main(arguments: list[str]) -> int:
    """Write the documents into the folder named by the only argument."""
    if len(arguments) != 1:
        print("usage: python -m kithstream.streams.events.schema FOLDER", file=sys.stderr)
        return 2
    folder = Path(arguments[0])
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files().items():
        (folder / name).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
