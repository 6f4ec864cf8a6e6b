"""Bad input to the parser and over HTTP: each record comes to what it must, and events in between count."""

from __future__ import annotations

import json
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import msgspec
import numpy as np
import pytest
from hostile import Sent, frames, junk, records
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from promises import agree

import kithstream
from kithstream.index.config import IndexConfig
from kithstream.index.live import LiveIndex
from kithstream.models import named
from kithstream.models.features import SCHEMA
from kithstream.models.model import Model
from kithstream.models.ranker import PAIRS
from kithstream.models.train import OnlineTrainer, TrainerConfig
from kithstream.streams.config import Config, EngineConfig, ServeConfig
from kithstream.streams.engine import frames as wire_frames
from kithstream.streams.engine.engine import Engine
from kithstream.streams.engine.frames import Frame
from kithstream.streams.engine.routing import Route
from kithstream.streams.engine.shard import Shard
from kithstream.streams.errors import InvalidEvent
from kithstream.streams.events import wire
from kithstream.streams.events.stamp import checked, wall_clock
from kithstream.streams.events.wire import Event
from kithstream.streams.kafka.owners import Owners
from kithstream.streams.kafka.registry import CURRENT, Registry
from kithstream.streams.kafka.steps import STEP, Follower, Step
from kithstream.streams.kafka.tail import Tail
from kithstream.streams.kafka.wire import PROGRESS, Progress, Vector
from kithstream.streams.learning import Learner
from kithstream.streams.metrics import Metrics
from kithstream.streams.serve import http
from kithstream.streams.serve.embedded import Embedded
from kithstream.streams.serve.service import InProcess
from kithstream.streams.state.memory import MemoryStore

NOW = 1_790_600_000_000_000
EVENT = Event("e", "follow", "ann", NOW, target="bob")
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=12,
)


def seal(payload: bytes) -> bytes:
    """Give a payload the head of a frame."""
    return wire_frames.SEAL + bytes((wire_frames.VERSION,)) + zlib.crc32(payload).to_bytes(4, "big") + payload


def judged(raw: bytes) -> tuple[Event | None, InvalidEvent | None]:
    """The event in a record, or why there is none."""
    try:
        return wire.decode(raw, now=NOW), None
    except InvalidEvent as refused:
        return None, refused


def usable(refused: InvalidEvent) -> bool:
    """True if a reason names a field and a value, briefly, and cannot disturb a terminal."""
    message = str(refused)
    return bool(refused.reason and refused.field) and len(message) <= 400 and message.isprintable()


# -- the parser ------------------------------------------------------------------------------------------------


def test_the_parser_comes_to_what_each_record_means() -> None:
    faults = set()
    for sent in records(0, 12_000, NOW, large=0.001):
        faults.add(sent.fault)
        event, refused = judged(sent.raw)
        assert event == sent.event, (sent.fault, sent.raw[:200], str(refused))
        assert refused is None or usable(refused), (sent.fault, str(refused))
    assert len(faults) >= 20


@settings(max_examples=300, derandomize=True)
@given(st.binary(max_size=300) | _JSON.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_an_event_or_refused(raw: bytes) -> None:
    event, refused = judged(raw)
    assert (event is None) != (refused is None)
    assert refused is None or usable(refused)


@settings(max_examples=300, derandomize=True)
@given(
    st.dictionaries(
        st.sampled_from(Event.__struct_fields__),
        _JSON | st.sampled_from(["follow", "profile", NOW]),
        max_size=6,
    )
)
def test_any_fields_are_an_event_or_refused_from_python_too(fields: dict[str, object]) -> None:
    given = {**msgspec.to_builtins(EVENT), **fields}
    try:
        actor, raw = checked(given, NOW)
    except InvalidEvent as error:
        refused = error
    else:
        assert wire.decode(raw, now=NOW).actor == actor
        return
    assert usable(refused)


@pytest.mark.parametrize("value", [10**5000, {1: {2: "\ud800"}}, object(), [[[]]] * 3], ids=type)
def test_what_python_cannot_write_as_json_is_refused(value: object) -> None:
    with pytest.raises(InvalidEvent) as refused:
        checked({**msgspec.to_builtins(EVENT), "value": value}, NOW)
    assert usable(refused.value)


def test_a_value_without_end_is_refused() -> None:
    value: list[object] = []
    for _ in range(5000):
        value = [value]
    with pytest.raises(InvalidEvent) as refused:
        checked({**msgspec.to_builtins(EVENT), "value": value}, NOW)
    assert usable(refused.value)


@pytest.mark.parametrize("place", ["value", "more"])
@pytest.mark.parametrize("pair", ["[]", "{}"])
def test_nesting_is_judged_alike_however_deep_the_stack_is(place: str, pair: str) -> None:
    def verdict(raw: bytes, frames: int) -> str:
        if frames:
            return verdict(raw, frames - 1)
        try:
            wire.decode(raw, now=NOW)
        except InvalidEvent as refused:
            return str(refused)
        return ""

    one = '{"a":' if pair == "{}" else "["
    for depth in (*range(20, 40), *range(850, 1010, 3)):
        inside = one * depth + "1" + pair[1] * depth
        raw = msgspec.json.encode(EVENT)[:-1] + f',"{place}":{inside}}}'.encode()
        verdicts = {verdict(raw, frames) for frames in (0, 100, 300)}
        assert len(verdicts) == 1, (depth, verdicts)
        if place == "more":
            assert verdicts == {""} or depth + 1 > wire.NESTED


def test_brackets_in_strings_are_no_nesting() -> None:
    event = msgspec.structs.replace(EVENT, id="[{" * 60 + '"\\')
    assert wire.decode(wire.encode(event), now=NOW) == event


# -- frames ----------------------------------------------------------------------------------------------------


def test_no_bytes_but_a_frame_are_folded_or_leave_anything() -> None:
    hearer = Engine([MemoryStore()], EngineConfig(partitions=1), salt=b"s" * 16)
    shard = Shard(hearer.partitions[0], Route(1))
    key, stamp = b"bob\0Aann\0", b"\0\0" + (1 << 63 | NOW << 1).to_bytes(8, "big") + b"\0" * 4
    genuine = wire_frames.encode(Frame(NOW, states=[key, stamp], upto=1, appended=NOW))
    partition = hearer.partitions[0]
    before = (partition.watermark, dict(partition.heard), partition.told, set(partition.deleted))
    for raw in frames(0, 3000, genuine, seal):
        with pytest.raises(ValueError, match=r"."):
            shard.hear([genuine, raw], 9)
        assert (partition.watermark, dict(partition.heard), partition.told, partition.deleted) == before
        assert partition.edges == 0
    assert shard.hear([genuine], 9).changes == [("bob", "ann", 0, True)]


def test_every_flipped_bit_of_a_frame_is_found() -> None:
    genuine = wire_frames.encode(Frame(NOW, states=[b"bob\0Aann\0", b"\1" * 14], upto=1))
    for bit in range(8 * len(genuine)):
        flipped = bytearray(genuine)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ValueError, match=r"."):
            wire_frames.decode(bytes(flipped))


def test_a_frame_without_a_seal_is_read_as_before() -> None:
    frame = Frame(NOW, states=[b"bob\0Aann\0", b"\1" * 14], upto=7, source=1)
    assert wire_frames.decode(msgspec.msgpack.encode(frame)) == frame
    assert wire_frames.decode(wire_frames.encode(frame)) == frame


# -- HTTP ------------------------------------------------------------------------------------------------------


@contextmanager
def served(path: Path) -> Iterator[tuple[Embedded, httpx.Client]]:
    """A runtime behind a real server on the loopback."""
    config = ServeConfig(deadline_ms=30_000.0)
    metrics = Metrics(CollectorRegistry())
    with kithstream.open(path, config=Config(engine=EngineConfig(partitions=2))) as live:
        server = http.make_server(InProcess(live, config, metrics), config, metrics)
        with http.listen("127.0.0.1", 0) as listening:
            thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
            thread.start()
            try:
                port = listening.getsockname()[1]
                with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60.0) as client:
                    yield live, client
            finally:
                server.should_exit = True
                thread.join(30)


def test_over_http_each_is_refused_or_counts(tmp_path: Path) -> None:
    now = wall_clock()
    some = [sent for sent in records(1, 2000, now, large=0.002) if sent.over_http]
    meant: list[Event] = []
    with served(tmp_path) as (live, client):
        for number, sent in enumerate(some):
            reply = client.post("/v1/events", content=sent.raw, headers={"content-type": "application/json"})
            if sent.event is not None:
                assert reply.status_code == 200, (sent.fault, sent.raw[:200], reply.text)
                meant.append(sent.event)
            else:
                assert reply.status_code in (400, 413, 422), (sent.fault, sent.raw[:200], reply.text)
                told = reply.json()
                assert told["error"] in ("malformed", "invalid_events", "too_large")
                assert len(reply.content) < 1000
                if reply.status_code == 422:
                    assert told["total"] == 1
                    assert told["refused"][0]["reason"]
                    assert told["refused"][0]["field"]
            if number % 500 == 0:
                assert client.get("/healthz").status_code == 200
        token = client.post(
            "/v1/events", json={"signal": "follow", "actor": "x", "target": "y", "id": "last", "time": now}
        ).json()["token"]
        assert client.get("/v1/candidates/x", params={"after": token}).status_code == 200
        meant.append(Event("last", "follow", "x", now, target="y"))
        live.catch_up()
        agree(live.engine, meant)


def test_of_lines_over_http_the_bad_ones_are_named_and_none_is_taken(tmp_path: Path) -> None:
    def fits(sent: Sent) -> bool:
        return sent.over_http and b"\n" not in sent.raw and bool(sent.raw.strip()) and len(sent.raw) < 20_000

    lines = {"content-type": "application/x-ndjson"}
    some = [sent for sent in records(2, 1500, wall_clock(), large=0.0) if fits(sent)]
    with served(tmp_path) as (live, client):
        taken: list[Event] = []
        for first in range(0, len(some), 90):
            part = some[first : first + 90]
            bad = [place for place, sent in enumerate(part) if sent.event is None]
            reply = client.post("/v1/events", content=b"\n".join(s.raw for s in part), headers=lines)
            assert reply.status_code == 422
            told = reply.json()
            assert [one["index"] for one in told["refused"]] == bad
            good = [sent for sent in part if sent.event is not None]
            reply = client.post("/v1/events", content=b"\n".join(s.raw for s in good), headers=lines)
            assert reply.json()["accepted"] == len(good)
            taken += [sent.event for sent in good if sent.event is not None]
        live.catch_up()
        agree(live.engine, taken)


def test_nesting_at_the_end_of_the_stack_is_no_failure_of_the_server(tmp_path: Path) -> None:
    with served(tmp_path) as (_, client):
        for depth in range(880, 1010):
            for body in ("[" * depth + "]" * depth, '{"a":' * depth + "1" + "}" * depth):
                for whole in (body, f"[{body}]", f'[{{"value":{body}}}]'):
                    reply = client.post(
                        "/v1/events", content=whole, headers={"content-type": "application/json"}
                    )
                    assert reply.status_code in (400, 422), (depth, reply.text)


# -- what only workers write -----------------------------------------------------------------------------------


def _reading(
    feed: Callable[[list[tuple[bytes | None, bytes | None]]], object], keys: list[bytes | None]
) -> int:
    some = [(keys[at % len(keys)], raw) for at, raw in enumerate(junk(3, 4000))]
    for pair in some:
        feed([pair])
    return len(some)


def test_junk_among_steps_leaves_the_model() -> None:
    model = Model.day_zero(0)
    before = {name: p.detach().clone() for name, p in model.tower.named_parameters()}
    follower = Follower(model)
    _reading(follower.feed, [STEP, b"ann", None, b"\xff"])
    weights = {name: p.detach().numpy().tobytes() for name, p in model.tower.named_parameters()}
    ranker = model.ranker.packed()
    good = Step(1, SCHEMA.hash, 5, 9, NOW, weights, ranker, PAIRS.hash)
    spoiled = [
        msgspec.structs.replace(good, schema="another"),
        msgspec.structs.replace(good, weights={}),
        msgspec.structs.replace(good, weights={k: v[:-4] for k, v in weights.items()}),
        msgspec.structs.replace(
            good, weights={k: b"\0\0\xc0\x7f" * (len(v) // 4) for k, v in weights.items()}
        ),
        msgspec.structs.replace(good, ranker=b""),
    ]
    unusable = follower.unusable
    assert unusable > 3000
    for step in spoiled:
        assert not follower.feed([(STEP, msgspec.msgpack.encode(step))])
    assert follower.unusable == unusable + len(spoiled)
    follower.apply()
    assert all((before[name] == p).all() for name, p in model.tower.named_parameters())
    assert follower.feed([(STEP, msgspec.msgpack.encode(good))])
    assert follower.apply() == 5


def test_junk_among_vectors_owners_and_lineages_is_passed_over() -> None:
    tail = Tail(LiveIndex(IndexConfig(dim=4)), 2)
    some = list(junk(4, 4000))
    fed = tail.feed(
        (at % 2, (PROGRESS, b"ann", b"\xff", b"", b"a\0b")[at % 5], raw) for at, raw in enumerate(some)
    )
    assert fed.unusable > 3500
    assert (fed.upserted, fed.deleted, tail.token) == (0, 0, {})
    ones = b"\0\0\x80\x3f" * 4
    good = Vector(1, 1, 0, 0, 0, 0, [], ones)
    for spoiled in (
        {"vector": b"\0\0\xc0\x7f" * 4},
        {"vector": b"\0\0\x80\x7f" * 4},
        {"vector": ones[:-4]},
        {"label": 1 << 40},
        {"label": -1},
        {"tick": 1 << 63},
        {"day": 1 << 60},
        {"generation": 1 << 63},
        {"generation": -1},
        {"followers": ["f"] * 10_000},
        {"marks": b"x" * 4000},
    ):
        fed = tail.feed([(0, b"ann", msgspec.msgpack.encode(msgspec.structs.replace(good, **spoiled)))])
        assert (fed.unusable, fed.upserted) == (1, 0), spoiled
    for spoiled in ({"generation": 1 << 63}, {"heard": [0, -1]}, {"applied": 1 << 63}):
        raw = msgspec.msgpack.encode(msgspec.structs.replace(Progress(1, 0, [0, 0]), **spoiled))
        assert tail.feed([(0, PROGRESS, raw)]).unusable == 1, spoiled
    assert tail.generation(0) == 0
    assert tail.feed([(0, b"ann", msgspec.msgpack.encode(good))]).upserted == 1

    owners = Owners("owners", 2, "me")
    for at, raw in enumerate(some):
        assert owners.learn((b"0", b"1", b"99", b"-1", b"9" * 5000, b"x")[at % 6], raw) is None
    assert owners.of(0) is None
    registry = Registry("base")
    assert _reading(registry.feed, [CURRENT, b"x", None])
    assert (registry.serving, registry.published) == ("base", {})


@pytest.mark.parametrize("bad", [b"\0\0\xc0\x7f", b"\0\0\x80\x7f"], ids=["nan", "inf"])
def test_features_that_are_not_finite_teach_nothing(bad: bytes) -> None:
    fields = [
        (bad if kind is np.float32 else b"\0" * 4) * int(np.prod(shape))
        for shape, kind in named.PRODUCER.values()
    ]
    with pytest.raises(named.NamedError, match="not finite"):
        named.producers(named.Named(SCHEMA.hash, [], fields), Model.day_zero(0).ids)


def test_junk_in_the_training_log_teaches_nothing() -> None:
    model = Model.day_zero(0)
    learner = Learner(OnlineTrainer.begin(model, TrainerConfig(), 0), 2, example_batch=8, idle_days=30)
    deep = b"\x93\xa9Forgotten\x90" + b"\x91" * 1200 + b"\x90"  # skipped, as every field of a later build is
    some = [*junk(5, 3000), deep]
    unusable = sum(bool(learner.take(offset, raw).unusable) for offset, raw in enumerate(some))
    assert unusable == len(some)
    assert (learner.offset, model.step) == (len(some), 0)
