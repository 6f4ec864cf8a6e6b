"""Bad, odd and hostile records, seeded, with what each must come to; and events in between that must count.

Nothing here calls the code that it judges: what a record means is known from how it was made.
"""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from kithstream.streams.events.wire import Event

YEAR_9999: Final = 253_370_764_800_000_000
ODD: Final = "\u202e\u2066\u200b\ufeff\u0001\u001f\u007f\u0085\u2028😀é中\U0010ffff"  # allowed in ids
_FIELDS: Final = ("id", "signal", "actor", "target", "time")
_OTHER: Final = ("null", "true", "7", "-1.5", '"x"', "[]", "{}", "[1]", '{"a":1}')
_SIGNALS: Final = ("Follow", "follow ", "f\u043ellow", "", "drop table", "\u202efollow", "FOLLOW", "follow\n")
_LARGE: Final = 1_000_000  # bytes of the largest ids


class Sent(NamedTuple):
    """One record, and what must come of it."""

    raw: bytes
    fault: str  # what was done to it; empty for an ordinary event
    event: Event | None  # what it means; None: it must be refused
    over_http: bool = (
        True  # the same is to come of it over HTTP, where ids and times are given and keys come once
    )


Fields = dict[str, str]  # the JSON text of each value
Spoil = Callable[[random.Random, Event, Fields], Sent]


def records(seed: int, count: int, now: int, *, accounts: int = 60, large: float = 0.0005) -> Iterator[Sent]:
    """Yield records; a third of them are events that count. `large` is the share of ids of a megabyte."""
    rng = random.Random(seed)
    last: Sent | None = None
    for number in range(count):
        event = _event(rng, f"{seed}-{number}", now, accounts)
        fields = _fields(event)
        kind = rng.random()
        if kind < 0.25:
            last = Sent(_written(fields), "", event)
            yield last
        elif kind < 0.25 + large:
            yield _large(rng, event, fields)
        elif kind < 0.28 and last is not None:
            yield last._replace(fault="repeated")
        else:
            yield _SPOILS[rng.randrange(len(_SPOILS))](rng, event, fields)


def frames(seed: int, count: int, genuine: bytes, seal: Callable[[bytes], bytes]) -> Iterator[bytes]:
    """Yield bytes none of which is a frame; `genuine` is one, and `seal` gives a payload the head of one."""
    rng = random.Random(seed)
    payload = b"\x99" + b"\x00" + b"\x90" * 5 + b"\x00\x00\x00"
    for _ in range(count):
        place = rng.randrange(len(genuine))
        flipped = bytearray(genuine)
        flipped[place] ^= 1 << rng.randrange(8)
        yield rng.choice(
            (
                genuine[:place],
                bytes(flipped),
                genuine + b"\x00",
                genuine[:2] + bytes((rng.randrange(2, 256),)) + genuine[3:],
                genuine[2:],
                b"",
                rng.randbytes(rng.randrange(1, 400)),
                gzip.compress(genuine, mtime=0),
                json.dumps({"signal": "follow", "actor": "a", "target": "b"}).encode(),
                seal(b""),
                seal(b"\xc0"),
                seal(b"\x91" * 3000),
                seal(payload[:1] + b"\xff" + payload[2:]),  # a watermark of -1
                seal(b"\x99\xcf" + b"\xff" * 8 + payload[2:]),  # one beyond every year
                seal(payload[:-3] + b"\xcd\xff\xff\x00\x00"),  # a source that is no partition
                seal(payload[:-3] + b"\x00\xff\x00"),  # upto -1
                seal(payload[:-3] + b"\x00\xcf" + b"\xff" * 8 + b"\x00"),
                seal(b"\x99\x00\xdd\xff\xff\xff\xff" + b"\x90" * 4 + b"\x00\x00\x00"),  # lengths that lie
                seal(b"\x99\x00\x91\xc6\x7f\xff\xff\xff" + b"ab"),
                seal(b"\x99\x00\x91\xc4\x01a" + b"\x90" * 4 + b"\x00\x00\x00"),  # a key without a value
                seal(_states(b"no separators", b"\x00" * 14)),
                seal(_states(b"t\0Aa\0", b"")),  # a state without a stamp
                seal(_states(b"t\0\xfea\0", b"\x00" * 14)),  # of a family that is none
                seal(_states(b"\xff\xfe\0Aa\0", b"\x00" * 14)),  # of an account that is no text
                seal(_states(b"t\0\0", b"\x00" * 14)),
            )
        )


def junk(seed: int, count: int) -> Iterator[bytes]:
    """Yield bytes for topics of JSON and msgpack: nothing that anybody would write there."""
    rng = random.Random(seed)
    huge = b"\xcf" + b"\xff" * 8
    for _ in range(count):
        depth = rng.randrange(900, 1010)
        yield rng.choice(
            (
                b"",
                b"null",
                b"[]",
                b"{}",
                b"\x80",
                b"\xc0",
                rng.randbytes(rng.randrange(1, 300)),
                b"[" * depth + b"]" * depth,
                b'{"a":' * depth + b"1" + b"}" * depth,
                b'{"id":"r","account":"a","reply_topic":"x","reply_partition":1e999}',
                b'{"id":"\\ud800","account":5}',
                b'{"id":"r","z":' + b"[" * depth + b"]" * depth + b"}",
                b"\x91" * depth,
                b"\x9f" + huge * 15,
                b"\x98" + huge * 8,
                b"\xdd\xff\xff\xff\xff",
                b"\xc6\xff\xff\xff\xffab",
                b'{"url":"http://[","generation":' + b"9" * 40 + b',"worker":"w"}',
                gzip.compress(rng.randbytes(20), mtime=0),
                "\ufeff{}".encode(),
                b"\xff\xfe{\x00}\x00",
                b"x" * 100_000,
            )
        )


def _states(key: bytes, value: bytes) -> bytes:
    """The payload of a frame of one state."""
    pair = b"".join(b"\xc4" + bytes((len(part),)) + part for part in (key, value))
    return b"\x99\x00\x92" + pair + b"\x90" * 4 + b"\x00\x00\x00"


def _event(rng: random.Random, name: str, now: int, accounts: int) -> Event:
    actor, target = rng.sample(range(accounts), 2)
    signal = rng.choice(("follow",) * 5 + ("unfollow", "block", "like", "unlike", "click"))
    time = now - rng.randrange(3 * 86_400_000_000)
    item = f"i{rng.randrange(9)}" if signal in ("like", "unlike", "click") else ""
    return Event(name, signal, f"u{actor}", time, target=f"u{target}", item=item)


def _fields(event: Event) -> Fields:
    found = {name: json.dumps(getattr(event, name)) for name in _FIELDS}
    return found | {"item": json.dumps(event.item)} if event.item else found


def _written(fields: Fields) -> bytes:
    return ("{" + ",".join(f'"{name}":{value}' for name, value in fields.items()) + "}").encode()


def _with(event: Event, fields: Fields, fault: str, **values: str) -> Sent:
    """The record with other values, which must be refused."""
    return Sent(_written(fields | values), fault, None)


# -- what must be refused --------------------------------------------------------------------------------------


def _large(rng: random.Random, event: Event, fields: Fields) -> Sent:
    field = rng.choice(("id", "actor", "target"))
    return _with(event, fields, "an id of a megabyte", **{field: '"' + "x" * (_LARGE - 2000) + '"'})


def _truncated(rng: random.Random, event: Event, fields: Fields) -> Sent:
    raw = _written(fields)
    return Sent(raw[: rng.randrange(1, len(raw))], "truncated", None)


def _number(rng: random.Random, event: Event, fields: Fields) -> Sent:
    field = rng.choice(("time", "value"))
    digits = "9" * rng.choice((20, 40, 400, 5000))
    floats = ("1e999", "-1e999", "1" * 400 + "e400", "1.5e308999")
    if field == "value":
        return _with(event, fields, "a huge number", value=rng.choice(floats))
    return _with(
        event, fields, "a huge number", time=rng.choice((digits, "-" + digits, "1.5", "1e3", *floats))
    )


def _constant(rng: random.Random, event: Event, fields: Fields) -> Sent:
    field = rng.choice(("value", "time", "id"))
    return _with(event, fields, "no number", **{field: rng.choice(("NaN", "Infinity", "-Infinity", "nan"))})


def _nested(rng: random.Random, event: Event, fields: Fields) -> Sent:
    depth = rng.choice((40, 200, 2000, rng.randrange(900, 1010)))  # about 1000 is where Python ends
    one, other = rng.choice((("[", "]"), ('{"a":', "}")))
    inside = one * depth + ("1" if one != "[" else "") + other * rng.choice((depth, depth, 0))
    if rng.random() < 0.3:
        return Sent(inside.encode(), "deep nesting", None)
    return _with(event, fields, "deep nesting", **{rng.choice(("value", "more", "signal")): inside})


def _id(rng: random.Random, event: Event, fields: Fields) -> Sent:
    field = rng.choice(("id", "actor", "target"))
    bad = rng.choice(
        (
            '""',
            '"a\\u0000b"',
            '"\\u0000"',
            '"\\ud800"',
            '"x\\udfff"',
            '"' + "x" * 129 + '"',
            '"' + "é" * 65 + '"',
        )
    )
    return _with(event, fields, "an id that is none", **{field: bad})


def _time(rng: random.Random, event: Event, fields: Fields) -> Sent:
    bad = rng.choice((-1, -(10**15), YEAR_9999, 253_402_300_800_000_000, 1 << 62, -(1 << 63)))
    return _with(event, fields, "a time that cannot be", time=str(bad))


def _type(rng: random.Random, event: Event, fields: Fields) -> Sent:
    field = rng.choice(_FIELDS)
    wrong = [text for text in _OTHER if text != '"x"' and not (field == "time" and text == "7")]
    return _with(event, fields, "a wrong type", **{field: rng.choice(wrong)})


def _signal(rng: random.Random, event: Event, fields: Fields) -> Sent:
    return _with(event, fields, "an unknown signal", signal=json.dumps(rng.choice(_SIGNALS)))


def _missing(rng: random.Random, event: Event, fields: Fields) -> Sent:
    field = rng.choice(("id", "signal", "actor", "target", "time"))
    left = {name: value for name, value in fields.items() if name != field}
    return Sent(_written(left), "a missing field", None, over_http=field not in ("id", "time"))


def _own(rng: random.Random, event: Event, fields: Fields) -> Sent:
    return _with(event, fields, "itself", target=fields["actor"])


def _twice(rng: random.Random, event: Event, fields: Fields) -> Sent:
    field = rng.choice(("id", "signal", "actor", "target"))
    raw, again = _written(fields)[1:-1], f'"{field}":{rng.choice(("5", "null", "[]"))}'.encode()
    if rng.random() < 0.5:
        return Sent(b"{" + raw + b"," + again + b"}", "a key twice", None)
    return Sent(b"{" + again + b"," + raw + b"}", "a key twice", None, over_http=False)


def _no_object(rng: random.Random, event: Event, fields: Fields) -> Sent:
    raw = _written(fields)
    return Sent(rng.choice([b"[" + raw + b"]", *(text.encode() for text in _OTHER)]), "no event", None, False)


def _binary(rng: random.Random, event: Event, fields: Fields) -> Sent:
    raw = _written(fields)
    bad = rng.choice(
        (
            b"\xff" + rng.randbytes(rng.randrange(200)),
            gzip.compress(raw, mtime=0),
            b"\xef\xbb\xbf" + raw,
            raw.decode().encode("utf-16"),
            raw.replace(b"u", b"\xff", 1),
            raw.replace(b'"u', b'"\xed\xa0\x80u', 1),
            raw.replace(b'"u', b'"\xc0\x80', 1),
            b"\0" * rng.randrange(1, 100),
        )
    )
    return Sent(bad, "no text", None, over_http=b"\n" not in bad)


def _almost(rng: random.Random, event: Event, fields: Fields) -> Sent:
    raw = _written(fields)
    bad = rng.choice(
        (
            raw + b"x",
            raw + raw,
            raw.replace(b'"', b"'"),
            raw[:-1] + b",}",
            b"/* */" + raw,
            raw.replace(b'"id"', b"id"),
            raw.replace(b":", b"=", 1),
            b'"' + raw.replace(b'"', b'\\"') + b'"',
            raw.replace(b'"u', b'"\\x41u', 1),
        )
    )
    return Sent(bad, "nearly JSON", None)


# -- what counts all the same ----------------------------------------------------------------------------------


def _odd_id(rng: random.Random, event: Event, fields: Fields) -> Sent:
    odd = "".join(rng.choices(ODD, k=rng.randrange(1, 6)))
    name = event.id + odd
    text = json.dumps(name, ensure_ascii=rng.random() < 0.5)
    fields = fields | {"id": text}
    meant = Event(name, event.signal, event.actor, event.time, target=event.target, item=event.item)
    return Sent(_written(fields), "odd characters", meant)


def _more(rng: random.Random, event: Event, fields: Fields) -> Sent:
    more = {f"x{ODD[rng.randrange(6)]}": rng.choice(_OTHER), "__proto__": '{"a":[[[[{}]]]]}', "": "0"}
    return Sent(json_object(fields | more), "unknown fields", event)


def _again(rng: random.Random, event: Event, fields: Fields) -> Sent:
    raw = _written(fields)
    return Sent(b'{"target":"nobody-else",' + raw[1:], "the last of two keys", event)


def _padded(rng: random.Random, event: Event, fields: Fields) -> Sent:
    shuffled = list(fields.items())
    rng.shuffle(shuffled)
    space = " " * rng.randrange(1, 300)
    return Sent(space.encode() + _written(dict(shuffled)) + b"\t ", "white space and order", event)


def _escaped(rng: random.Random, event: Event, fields: Fields) -> Sent:
    actor = '"' + "".join(f"\\u{ord(letter):04x}" for letter in event.actor) + '"'
    return Sent(_written(fields | {"actor": actor}), "escapes", event)


def json_object(fields: Fields) -> bytes:
    """The fields as an object, whose keys are escaped."""
    return ("{" + ",".join(f"{json.dumps(name)}:{value}" for name, value in fields.items()) + "}").encode()


_SPOILS: Final[tuple[Spoil, ...]] = (
    _truncated,
    _number,
    _constant,
    _nested,
    _id,
    _time,
    _type,
    _signal,
    _missing,
    _own,
    _twice,
    _no_object,
    _binary,
    _almost,
    _odd_id,
    _more,
    _again,
    _padded,
    _escaped,
)
