"""What workers hold, have published and have answered, against what the log alone means."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
from asker import Asked
from bench import leak_checker
from kafka import KafkaConsumer, TopicPartition
from promises import State, expected, held
from workers import SMALL, newest_stores

from kithstream.models.features import Rows
from kithstream.models.model import Model, Producers
from kithstream.streams.config import EngineConfig, KafkaConfig, ModelConfig
from kithstream.streams.engine.actors import Record
from kithstream.streams.engine.engine import Engine
from kithstream.streams.events.wire import Event
from kithstream.streams.kafka import wire
from kithstream.streams.kafka.names import topics, vectors
from kithstream.streams.kafka.worker import shared_salt
from kithstream.streams.serve import tokens
from kithstream.streams.serve.exclusions import Exclusions
from kithstream.streams.serve.vectors import Vectors, every_account
from kithstream.streams.state.memory import MemoryStore
from kithstream.streams.state.store import RocksStore

POLL: Final = 2000  # records folded at a time
SLACK: Final = 50  # milliseconds between a broker's stamp and an answer's arrival, on one clock
NAMED: Final = 5  # differences of a kind that are told one by one
DELETED: Final = "deleted"  # the reason of a dead letter about an account that is gone
EITHER_WAY: Final = ("block", "mute", "report")


class Logged(NamedTuple):
    """One record of a topic."""

    partition: int
    offset: int
    appended: int  # milliseconds since 1970
    key: bytes | None
    value: bytes | None


def read(kafka: KafkaConfig, topic: str, partitions: int) -> list[list[Logged]]:
    """Return every record of a topic, by partition."""
    consumer = KafkaConsumer(bootstrap_servers=kafka.servers, auto_offset_reset="earliest")
    tps = [TopicPartition(topic, number) for number in range(partitions)]
    consumer.assign(tps)
    ends = consumer.end_offsets(tps)
    found: list[list[Logged]] = [[] for _ in tps]
    while any(consumer.position(tp) < end for tp, end in ends.items()):
        for tp, records in consumer.poll(1000, max_records=POLL).items():
            found[tp.partition] += [
                Logged(tp.partition, record.offset, record.timestamp, record.key, record.value)
                for record in records
            ]
    consumer.close()
    return found


class Published:
    """The log of a tenant, and what it means: computed once, by code that shares nothing with the folds."""

    def __init__(self, kafka: KafkaConfig, partitions: int) -> None:
        self.kafka = kafka
        self.partitions = partitions
        self.records = read(kafka, topics(kafka.prefix).engagements, partitions)
        decode = msgspec.json.Decoder(Event).decode
        self.events = [decode(record.value or b"") for part in self.records for record in part]

    def state(self, watermark: int, salt: bytes) -> State:
        """What ledgers, rows, lists and sketches must hold."""
        return expected(self.events, watermark, salt=salt)

    def replayed(self, secret: str) -> Engine:
        """An engine in memory that folded the log once, without a fault."""
        salt = shared_salt(secret, self.kafka)
        stores = [MemoryStore() for _ in range(self.partitions)]
        engine = Engine(stores, EngineConfig(partitions=self.partitions), salt=salt)
        for number, part in enumerate(self.records):
            for first in range(0, len(part), POLL):
                some = [Record(one.appended * 1000, one.value or b"") for one in part[first : first + POLL]]
                acted = engine.apply(number, some, first)
                assert {letter.reason for letter in acted.dead} <= {DELETED}, acted.dead[:NAMED]
        engine.exchange()
        while engine.working:
            engine.work()
            engine.exchange()
        return engine


def lost(published: Published, confirmed: Collection[str]) -> list[str]:
    """Tell of events that were confirmed and are not in the log."""
    missing = set(confirmed) - {event.id for event in published.events}
    return (
        [f"{len(missing)} confirmed events are not in the log: {sorted(missing)[:NAMED]}"] if missing else []
    )


def states(folders: Sequence[Path], published: Published) -> list[str]:
    """Tell in what the newest stores of ended workers differ from what the log means, exclusions included."""
    stores = [RocksStore(path, SMALL) for path in newest_stores(folders, published.partitions)]
    engine = Engine(stores, EngineConfig(partitions=published.partitions), salt=b"salt" * 4)
    try:
        want = published.state(engine.watermark, engine.partitions[0].salt)
        have = held(engine)
        found = []
        for name in State.__dataclass_fields__:
            one, other = getattr(have, name), getattr(want, name)
            if one != other:
                keys = [key for key in {*one, *other} if one.get(key) != other.get(key)]
                told = [(key, one.get(key), other.get(key)) for key in keys[:NAMED]]
                found.append(f"{name}: {len(keys)} differ (key, held, expected): {told}")
        return found + _exclusions(engine, want)
    finally:
        engine.close()


def _exclusions(engine: Engine, want: State) -> list[str]:
    meant: dict[str, set[str]] = defaultdict(set)
    for actor, family, target, _ in want.edges:
        if family == "follow" or family in EITHER_WAY:
            meant[actor].add(target)
        if family in EITHER_WAY:
            meant[target].add(actor)
    exclusions = Exclusions(engine, 1, used_to_follow=False)
    wrong = [
        (account, sorted(kept ^ (meant[account] | {account})))
        for account in sorted(every_account(engine) | set(meant))
        if (kept := exclusions.of(account)) != meant[account] | {account}
    ]
    return [f"exclusions of {len(wrong)} accounts differ: {wrong[:NAMED]}"] if wrong else []


class _Written:
    """The sink of a clean encoding."""

    def __init__(self) -> None:
        self.vectors: dict[str, bytes] = {}

    def write(self, rows: Rows, encoded: Producers, tick: int) -> None:
        raw = encoded.vectors.astype("<f4", copy=False)
        self.vectors.update((account, raw[at].tobytes()) for at, account in enumerate(rows.accounts))

    def delete(self, accounts: Sequence[str]) -> None:
        raise AssertionError("nothing is taken out of what is written once")

    def __contains__(self, account: object) -> bool:
        return False


def encodings(published: Published, secret: str, lineage: str) -> list[str]:
    """Tell in what the published vectors differ from those of an undisturbed run over the same log, at equal ticks."""
    engine = published.replayed(secret)
    latest: dict[str, wire.Vector] = {}
    decode = msgspec.msgpack.Decoder(wire.Vector).decode
    for part in read(published.kafka, vectors(published.kafka.prefix, lineage), published.partitions):
        newest = 0
        for record in part:
            if record.key is None or record.value is None or record.key == wire.PROGRESS:
                continue
            vector = decode(record.value)
            if vector.generation >= newest:  # a lower one is a zombie's
                newest = vector.generation
                latest[record.key.decode()] = vector
    by_tick: dict[int, list[str]] = defaultdict(list)
    for account, vector in latest.items():
        by_tick[vector.tick].append(account)
    wrong = []
    for tick, accounts in sorted(by_tick.items()):
        want = _encoded(engine, tick, sorted(accounts))
        wrong += [(account, tick) for account in accounts if latest[account].vector != want.get(account, b"")]
    candidates = _encoded(engine, max(by_tick, default=0), sorted(every_account(engine)))
    untold = sorted(set(candidates) - set(latest))
    found = [f"{len(wrong)} vectors differ (account, tick): {wrong[:NAMED]}"] if wrong else []
    return found + ([f"{len(untold)} candidates have no vector: {untold[:NAMED]}"] if untold else [])


def _encoded(engine: Engine, tick: int, accounts: Sequence[str]) -> dict[str, bytes]:
    written = _Written()
    chain = Vectors(engine, Model.day_zero(0), ModelConfig(), written)
    chain.tick = tick
    chain.encode(accounts)
    return written.vectors


class Judged(NamedTuple):
    """What a history of questions and answers holds."""

    answers: int
    refused: int
    kept_out: int  # answers to one side of a pair that did not name the other, which was excluded for certain
    shown: int  # those that named it, where it was allowed
    wrong: list[str]


def judge(history: Iterable[Asked], published: Published, lineages: Collection[str]) -> Judged:
    """Tell of answers that hold a forbidden account, are older than their token, or are of no one version."""
    history = list(history)
    stamps = [[record.appended for record in part] for part in published.records]
    assert all(times == sorted(times) for times in stamps), "the brokers' stamps go back"
    log = [
        (record.partition, record.offset, json.loads(record.value or b""))
        for part in published.records
        for record in part
    ]

    def until(arrived: int) -> str:
        return tokens.write({n: bisect_right(times, arrived + SLACK) for n, times in enumerate(stamps)})

    rows = [
        (a.account, a.about, a.after, a.level, a.status, a.token, until(a.arrived), a.candidates)
        for a in history
    ]
    verdict = leak_checker.check(log, rows)
    wrong = [f"leak: {leak} in {history[leak.answer]}" for leak in verdict.named]
    if verdict.leaks > len(verdict.named):
        wrong.append(f"{verdict.leaks} leaks in all")
    deleted = _deletions(log)
    for one in history:
        if one.status == 200:
            wrong += _old(one, published.partitions) + _gone(one, deleted, published.partitions)
            if one.model not in lineages or one.step != 0:
                wrong.append(f"model {one.model} step {one.step} in {one}")
    shown = verdict.shown_before + verdict.shown_after
    return Judged(verdict.answers, len(history) - verdict.answers, verdict.kept_out, shown, wrong)


def _old(one: Asked, partitions: int) -> list[str]:
    """At level `vectors` an answer's own token stands for all that was asked for."""
    if one.level != "vectors":
        return []
    came = tokens.read(one.token, partitions)
    late = {n: end for n, end in tokens.read(one.after, partitions).items() if came.get(n, 0) < end}
    return [f"older than its token in {sorted(late)}: {one}"] if late else []


def _gone(one: Asked, deleted: Mapping[str, tuple[int, int]], partitions: int) -> list[str]:
    """No answer names an account whose deletion its token stands for."""
    said = (tokens.read(one.after, partitions), tokens.read(one.token, partitions))
    found = [
        name
        for name in one.candidates
        if name in deleted and any(token.get(deleted[name][0], 0) > deleted[name][1] for token in said)
    ]
    return [f"names {found}, deleted before: {one}"] if found else []


def _deletions(log: Iterable[tuple[int, int, Mapping[str, Any]]]) -> dict[str, tuple[int, int]]:
    found: dict[str, tuple[int, int]] = {}
    for partition, offset, event in log:
        if event["signal"] == "account_delete":
            found.setdefault(event["actor"], (partition, offset))
    return found


def buried(kafka: KafkaConfig, partitions: int) -> list[str]:
    """Tell of dead letters: all that is published here can be used, but for what comes from deleted accounts."""
    decode = msgspec.json.Decoder(wire.DeadLetter).decode
    letters = [
        decode(record.value or b"")
        for part in read(kafka, topics(kafka.prefix).dead_letters, partitions)
        for record in part
    ]
    found = [letter for letter in letters if letter.reason != DELETED]
    return [f"{len(found)} dead letters: {found[:NAMED]!r}"] if found else []
