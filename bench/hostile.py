"""Hostile records by hand: `python -m bench.hostile --records 1000000 --through parser|http|kafka --seed 0`.

Bad and odd records (`tests/hostile.py`), a third of them events that count, go through the parser, a real server, or a
real worker. Prints one JSON object: counts by what was done and by reason, records a second, and the resident memory of
the process under test at the beginning, in the middle and at the end. Exit status 1 if one record is not accounted for,
is not what it means, or ends a process; or if memory grows by more than --grown MiB between the middle and the end.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "kafka")]

from hostile import Sent, frames, records  # noqa: E402
from kafka import KafkaConsumer, KafkaProducer, TopicPartition  # noqa: E402
from workers import Worker, ends_of  # noqa: E402

from bench.kafka import answered, cluster, everything, told  # noqa: E402
from bench.machine import machine, resident  # noqa: E402
from bench.served import Served  # noqa: E402
from kithstream.streams.engine import frames as wire_frames  # noqa: E402
from kithstream.streams.engine.frames import Frame  # noqa: E402
from kithstream.streams.engine.routing import Route  # noqa: E402
from kithstream.streams.errors import InvalidEvent  # noqa: E402
from kithstream.streams.events import wire  # noqa: E402
from kithstream.streams.events.stamp import wall_clock  # noqa: E402
from kithstream.streams.kafka import names  # noqa: E402
from kithstream.streams.kafka.wire import DeadLetter  # noqa: E402

PARTITIONS = 3
LINES = 250  # records of one request
BEHIND = 20_000  # records published ahead of what a worker has dealt with


class Outcome:
    """What came of the records."""

    def __init__(self) -> None:
        self.sent: Counter[str] = Counter()  # by what was done to it
        self.reasons: Counter[str] = Counter()
        self.accepted = self.refused = self.wrong = 0
        self.memory: list[int] = []  # MiB: begin, middle, end

    def told(self, seconds: float) -> dict[str, object]:
        """The figures."""
        sent = self.sent.total()
        return {
            "sent": sent,
            "accepted": self.accepted,
            "refused": self.refused,
            "unaccounted": sent - self.accepted - self.refused,
            "wrong": self.wrong,
            "by_fault": dict(self.sent.most_common()),
            "by_reason": dict(self.reasons.most_common()),
            "seconds": round(seconds, 1),
            "records_per_s": round(sent / seconds),
            "rss_mib": dict(zip(("begin", "middle", "end"), self.memory, strict=False)),
        }


def parser(some: Iterator[Sent], count: int, now: int, outcome: Outcome) -> None:
    """Each record through the parser."""
    for number, sent in enumerate(some):
        if number in (min(1000, count // 10), count // 2):
            outcome.memory.append(resident() >> 20)
        outcome.sent[sent.fault or "event"] += 1
        try:
            event = wire.decode(sent.raw, now=now)
            outcome.accepted += 1
        except InvalidEvent as refused:
            event = None
            outcome.refused += 1
            outcome.reasons[refused.reason] += 1
        outcome.wrong += event != sent.event
    outcome.memory.append(resident() >> 20)


def http(some: Iterator[Sent], count: int, outcome: Outcome) -> None:
    """Lines to a server, whose refusals must be those that are known; then the good ones of them once more."""
    with Served() as server:
        taken = 0
        marks = [0, count // 2]

        def post(part: list[Sent]) -> tuple[int, Any]:
            return server.post_lines(b"\n".join(sent.raw for sent in part))

        while part := list(islice(some, LINES)):
            if marks and outcome.sent.total() >= marks[0]:
                outcome.memory.append(resident(server.pid) >> 20)
                marks.pop(0)
            outcome.sent.update(sent.fault or "event" for sent in part)
            alone = [s for s in part if b"\n" in s.raw or not s.raw.strip() or len(s.raw) > 100_000]
            lines = [s for s in part if s not in alone]
            good = [s for s in lines if s.event is not None]
            status, body = post(lines)
            refused = body["total"] if status == 422 else 0
            outcome.wrong += abs(len(lines) - len(good) - refused)
            outcome.refused += refused
            outcome.reasons.update(one["reason"] for one in body.get("refused", ()))
            if good:
                status, body = post(good)
                taken = body.get("accepted", 0)
                outcome.accepted += taken
                outcome.wrong += len(good) - taken
            for sent in alone:
                status, body = server.post_json(sent.raw)
                fine = status == 200
                outcome.accepted += fine
                outcome.refused += not fine
                outcome.reasons[body.get("error", "accepted")] += 1
                outcome.wrong += fine != (sent.event is not None) or status >= 500
        folded = server.until_folded(outcome.accepted)
        outcome.wrong += outcome.accepted != folded
        outcome.memory.append(resident(server.pid) >> 20)


def kafka(some: Iterator[Sent], count: int, now: int, seed: int, outcome: Outcome) -> None:
    """Records and corrupt frames into the topics of a worker, which stays alive and buries what it must."""
    with ExitStack() as stack:
        config = cluster(stack, PARTITIONS)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kithstream-bench-")))
        name, route = names.topics(config.prefix), Route(PARTITIONS)
        worker = stack.enter_context(Worker(config, folder / "worker", PARTITIONS))
        worker.ready()
        first = worker.retrieval
        genuine = wire_frames.encode(Frame(now, states=[b"u1\0Au2\0", b"\0" * 14], upto=1))
        spoiled = frames(seed, count // 10, genuine, sealed)
        producer = KafkaProducer(bootstrap_servers=config.servers, max_request_size=4 << 20, linger_ms=5)
        bad = corrupt = good = 0
        sending: list[Any] = []
        outcome.memory.append(resident(worker.pid, worker.retrieval) >> 20)

        def buried() -> int:
            return sum(ends_of(config, name.dead_letters, PARTITIONS).values())

        def accepted() -> float:
            return told(worker, 'kithstream_records_total{outcome="accepted"}')

        for number, sent in enumerate(some):
            outcome.sent[sent.fault or "event"] += 1
            actor = sent.event.actor if sent.event is not None else ""
            place = route[actor] if actor else number % PARTITIONS
            sending.append(producer.send(name.engagements, sent.raw, partition=place))
            bad += sent.event is None
            good += sent.event is not None
            if number % 10 == 0 and (frame := next(spoiled, None)) is not None:
                sending.append(producer.send(name.edges, frame, partition=number % PARTITIONS))
                corrupt += 1
            if number % BEHIND == BEHIND - 1:
                for one in sending:
                    one.get(60)
                sending.clear()
                worker.until(lambda: buried() >= bad + corrupt - BEHIND, "to keep up", patience=600.0)  # noqa: B023
            if number == count // 2:
                outcome.memory.append(resident(worker.pid, worker.retrieval) >> 20)
        for one in sending:
            one.get(60)
        worker.until(lambda: buried() >= bad + corrupt, "to bury everything", patience=600.0)
        answered(worker, everything(config, PARTITIONS), 600.0)
        worker.until(lambda: accepted() >= good, "to tell what it accepted")
        outcome.memory.append(resident(worker.pid, worker.retrieval) >> 20)
        outcome.accepted = int(accepted())
        reasons = Counter(
            (letter.topic, letter.reason) for letter in letters(config.servers, name.dead_letters)
        )
        outcome.refused = sum(n for (topic, _), n in reasons.items() if topic == name.engagements)
        outcome.reasons.update({f"{topic} {reason}": n for (topic, reason), n in reasons.items()})
        outcome.wrong += reasons.total() != bad + corrupt
        outcome.wrong += worker.retrieval != first
        worker.stop()


def sealed(payload: bytes) -> bytes:
    """A payload with the head of a frame."""
    return wire_frames.SEAL + bytes((wire_frames.VERSION,)) + zlib.crc32(payload).to_bytes(4, "big") + payload


def letters(servers: str, topic: str) -> Iterator[DeadLetter]:
    """All dead letters."""
    decode = msgspec.json.Decoder(DeadLetter).decode
    consumer = KafkaConsumer(bootstrap_servers=servers)
    parts = [TopicPartition(topic, number) for number in range(PARTITIONS)]
    consumer.assign(parts)
    consumer.seek_to_beginning(*parts)
    ends = consumer.end_offsets(parts)
    while any(consumer.position(part) < ends[part] for part in parts):
        for batch in consumer.poll(1000).values():
            yield from (decode(record.value) for record in batch)
    consumer.close()


def main() -> None:
    """Send, count, compare."""
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--records", type=int, default=1_000_000)
    arguments.add_argument("--through", choices=("parser", "http", "kafka"), default="parser")
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--large", type=float, default=0.0001, help="Share of ids of a megabyte.")
    arguments.add_argument("--grown", type=int, default=200, help="MiB of growth that are no leak.")
    given = arguments.parse_args()
    outcome, now = Outcome(), wall_clock()
    some = records(given.seed, given.records, now, large=given.large)
    began = time.perf_counter()
    match given.through:
        case "parser":
            parser(some, given.records, now, outcome)
        case "http":
            http((sent for sent in some if sent.over_http), given.records, outcome)
        case _:
            kafka(some, given.records, now, given.seed, outcome)
    figures = outcome.told(time.perf_counter() - began)
    print(
        json.dumps({"through": given.through, "seed": given.seed, **figures, "machine": machine()}, indent=1)
    )
    grown = outcome.memory[-1] - outcome.memory[1]
    if figures["unaccounted"] or outcome.wrong or grown > given.grown:
        sys.exit(1)


if __name__ == "__main__":
    main()
