"""One town under faults, and what came out of it: the seed and the faults are all that it depends on."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec
from kafka import KafkaAdminClient, KafkaConsumer, TopicPartition
from nemesis import HIGH, LOW, Fault
from oracle import Published, buried, encodings, judge, lost, states
from town import LINEAGE, PARTITIONS, SALT, Town

from kithstream.streams.kafka import wire
from kithstream.streams.kafka.local import LocalKafka
from kithstream.streams.kafka.names import group, vectors
from kithstream.streams.serve import tokens

TOGETHER: Final = 0.3  # of the faults are struck before the workers have recovered from the one before


class Outcome(msgspec.Struct):
    """What was done to a town, and every difference from what its log means: there must be none."""

    seed: int
    faults: dict[str, int]  # times, by name
    deeds: dict[str, int]
    ended: list[str]  # the last words of workers that gave up and were started again
    seconds: dict[
        str, list[float]
    ]  # by fault: from striking until every worker is ready, unless another came first
    phases: dict[str, float]  # seconds of what is no fault
    events: int  # records of the log
    answers: int
    refused: int
    kept_out: int
    shown: int
    divergences: list[str]

    @property
    def void(self) -> bool:
        """True if no answer could have been wrong: no pair was ever kept out, or none was ever shown."""
        return not (self.kept_out and self.shown)


class Phases:
    """Seconds, by what was done in them."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._since = time.monotonic()

    def end(self, name: str) -> None:
        """Take note that something is done, and something else begins."""
        now = time.monotonic()
        self.seconds[name] = round(now - self._since, 1)
        self._since = now


def siege(broker: LocalKafka, folder: Path, prefix: str, seed: int, faults: Sequence[Fault]) -> Outcome:
    """Strike a fresh town with faults in this order, at random moments, then compare everything with its log."""
    rng = random.Random(seed)
    struck: Counter[str] = Counter()
    took: dict[str, list[float]] = {}
    phases = Phases()
    with Town(folder, broker, prefix, seed) as town:
        phases.end("start")
        town.crowd.until(200)
        for fault in faults:
            began = time.monotonic()
            fault.strike(town, rng)
            struck[fault.name] += 1
            if rng.random() >= TOGETHER:
                town.ready()
                took.setdefault(fault.name, []).append(round(time.monotonic() - began, 1))
            town.crowd.until(rng.randrange(LOW, HIGH))
        phases.end("faults")
        town.clock.step(0)
        town.crowd.stop()
        published = Published(town.kafka, PARTITIONS)
        settle(town, published)
        town.asker.stop()
        phases.end("settle")
        for name in town.workers:
            town.asker.everybody(name, end_of(published))
        *others, last = sorted(town.workers)
        for name in others:
            town.leave(name)
            # Whoever takes over may begin at an older state, and would be stopped on its way.
            settle(town, published)
        town.leave(last)
        published = Published(town.kafka, PARTITIONS)  # nothing may have come after the last confirmation
    phases.end("ask everybody, stop")
    divergences = lost(published, town.crowd.ids) + buried(town.kafka, PARTITIONS)
    divergences += [f"refused by a worker: {said}" for said in town.crowd.refused]
    divergences += states(town.folders, published) + encodings(published, SALT, LINEAGE)
    judged = judge(town.asker.history, published, {LINEAGE})
    phases.end("compare")
    return Outcome(
        seed,
        dict(struck),
        dict(town.deeds),
        town.ended,
        took,
        phases.seconds,
        len(published.events),
        judged.answers,
        judged.refused,
        judged.kept_out,
        judged.shown,
        divergences + judged.wrong,
    )


def settle(town: Town, published: Published) -> None:
    """Wait until answers of every worker stand for the whole log and no background work is left."""
    after = end_of(published)
    standing: dict[
        str, tuple[int | str, float, float]
    ] = {}  # by worker: its answer, and what it has left to do

    def settled() -> bool:
        for name in list(town.workers):
            standing[name] = (
                town.asker.ask(name, "nobody", "", after, "vectors").status,
                town.told(name, "kithstream_resending_accounts"),
                town.told(name, "kithstream_outbox_frames"),
            )
        return all(told == (200, 0, 0) for told in standing.values())

    town.ready()
    try:
        town.until(settled, f"for {after}")
    except AssertionError as error:
        admin = KafkaAdminClient(bootstrap_servers=town.kafka.servers)
        committed = admin.list_group_offsets({group(town.kafka.prefix): None})
        admin.close()
        told = progress(town)
        raise AssertionError(
            f"{standing}, {town.owned()}, committed {committed}, progress {told}: {error}"
        ) from None


def progress(town: Town) -> dict[int, list[wire.Progress]]:
    """What was last published of how far vectors have come, by partition."""
    found: dict[int, list[wire.Progress]] = {}
    consumer = KafkaConsumer(bootstrap_servers=town.kafka.servers, auto_offset_reset="earliest")
    tps = [TopicPartition(vectors(town.kafka.prefix, LINEAGE), number) for number in range(PARTITIONS)]
    consumer.assign(tps)
    ends = consumer.end_offsets(tps)
    while any(consumer.position(tp) < ends[tp] for tp in tps):
        for tp, records in consumer.poll(500).items():
            for record in records:
                if record.key == wire.PROGRESS and record.value:
                    came = msgspec.msgpack.decode(record.value, type=wire.Progress)
                    found[tp.partition] = [*found.get(tp.partition, []), came][-4:]
    consumer.close()
    return found


def end_of(published: Published) -> str:
    """The token of everything in the log."""
    return tokens.write({number: len(part) for number, part in enumerate(published.records)})
