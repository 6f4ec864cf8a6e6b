"""Questions with tokens among blocks on a real Kafka, by hand, and how many answers held who must not be there.

    python -m bench.leaks --queries 50000
    python -m bench.leaks --queries 1000000 --workers 2 --every 40 -o worker.poll_milliseconds=20 --keep DIRECTORY
    python -m bench.leaks --queries 3000 -o worker.poll_milliseconds=300    (a state that lags behind)
    python -m bench.leaks --queries 3000 --sabotage tokens      (the same, and no token is sent)
    python -m bench.leaks --queries 3000 --sabotage answers     (or forbidden accounts are written into answers)

One worker or more, three partitions. Some accounts are followed by nearly everybody, so that they are the first
candidates of each other; every two of them that live in different partitions are a pair. On the pairs blocks, mutes,
reports and follows come and go; each publish returns a token, and questions for both sides carry the newest of their
pair from then on, most of them right after it was given. What was asked and answered goes into a file, the topic's
records into another, and `bench.leak_checker`, which imports nothing of the project, counts leaks.

A run is void if nothing could have leaked: no pair was ever kept out, or none was shown before its first
exclusion, or none after its last undo. Broker, worker and clients share the machine's cores. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import BinaryIO, Final

import msgspec

from bench.kafka import FULL, Worker, busy, cluster, owned, percentiles, settle
from bench.machine import machine
from kithstream.streams.clients import EventPublisher
from kithstream.streams.config import KafkaConfig
from kithstream.streams.engine.routing import Route
from kithstream.streams.kafka.names import topics
from kithstream.streams.serve.http import FORWARDED

PARTITIONS: Final = 3
DOS: Final = {"block": "unblock", "mute": "unmute", "report": "withdraw_report", "follow": "unfollow"}
UNDONE: Final = 0.8  # of the events on a pair that is kept apart bring it nearer
VECTORS: Final = 0.1  # of the questions wait for every candidate's vector as well
HOT: Final = 6  # questions about a pair right after its token was given
ACTIVE: Final = 30  # follows of an account that is in pairs: more make each question dearer
IN_FLIGHT: Final = 16  # publishes at a time
SLOW: Final = "worker.poll_milliseconds=300"  # a state that lags, where the lack of tokens has to show
TUNED: Final = ("worker.push_rate=0",)  # nobody reads pushed lists here


class Named(msgspec.Struct):
    account: str


class Got(msgspec.Struct):
    """What is read of an answer."""

    candidates: list[Named] = []
    token: str = ""
    error: str = ""


_got = msgspec.json.Decoder(Got).decode
_line = msgspec.json.Encoder().encode


class Pair:
    """Two accounts of different partitions: what holds between them, and the token that stands for it."""

    def __init__(self, one: str, other: str) -> None:
        self.sides = one, other
        self.on: set[tuple[str, str, str]] = set()  # (do, actor, target)
        self.token: dict[int, int] = {}
        self.publishing = False
        self.turns = 0

    def next_event(self, rng: random.Random) -> tuple[str, str, str]:
        """Choose what happens next, and take note of it."""
        if self.on and rng.random() < UNDONE:
            do, actor, target = rng.choice(sorted(self.on))
            self.on.discard((do, actor, target))
            return DOS[do], actor, target
        one, other = self.sides
        off = [(do, a, b) for do in DOS for a, b in ((one, other), (other, one)) if (do, a, b) not in self.on]
        chosen = rng.choice(off)
        self.on.add(chosen)
        return chosen

    def kept_out(self, account: str) -> bool:
        """True if what was published last keeps the other side out of this one's answers."""
        return any(do != "follow" or actor == account for do, actor, _ in self.on)


class Connection(asyncio.Protocol):
    """One kept-alive connection, one question at a time; smaller than a client library's, since it shares the cores."""

    def __init__(self) -> None:
        self._buffer = b""
        self._answered: asyncio.Future[tuple[int, bytes]] | None = None
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, found, body = self._buffer.partition(b"\r\n\r\n")
        if not found:
            return
        lines = head.lower().split(b"\r\n")
        length = next(int(line[15:]) for line in lines if line.startswith(b"content-length:"))
        if len(body) >= length and self._answered is not None:
            self._buffer = b""
            self._answered.set_result((int(head[9:12]), body))

    def connection_lost(self, error: Exception | None) -> None:
        if self._answered is not None and not self._answered.done():
            self._answered.set_exception(error or ConnectionResetError("the worker closed a connection"))

    def close(self) -> None:
        """Hang up."""
        if self._transport is not None:
            self._transport.close()

    async def get(self, target: str) -> tuple[int, bytes]:
        """Return status and body; raises ConnectionError where the worker has hung up."""
        assert self._transport is not None
        if self._transport.is_closing():
            raise ConnectionResetError("the worker closed a connection")
        self._answered = asyncio.get_running_loop().create_future()
        self._transport.write(f"GET {target} HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n".encode())
        return await self._answered


class Asking:
    """The questions and the publishes among them, and the file they are written to."""

    def __init__(
        self,
        ports: dict[int, int],
        publisher: EventPublisher,
        pairs: list[Pair],
        ends: dict[int, int],
        file: BinaryIO,
        given: argparse.Namespace,
    ) -> None:
        self.given = given
        self.pairs = pairs
        self.published: list[tuple[int, int, str]] = []  # partition, offset, id of what was confirmed
        self.times: dict[str, list[float]] = {"state": [], "vectors": []}
        self.statuses: Counter[str] = Counter()
        self.planted = 0
        self._ports = ports  # of the worker that answers for a partition
        self._publisher = publisher
        self._file = file
        self._rng = random.Random(given.seed)
        self._route = Route(PARTITIONS)
        self._ends = ends  # how far each partition's log is known to have come
        self._flying = dict.fromkeys(ends, 0)
        self._hot: deque[Pair] = deque()
        self._asked = 0
        self._number = count()

    async def run(self) -> float:
        """Ask and publish until enough was asked; return the seconds it took."""
        began = time.perf_counter()
        until = began + (self.given.seconds or float("inf"))
        async with asyncio.TaskGroup() as group:
            self._group = group
            for _ in range(self.given.clients):
                group.create_task(self._ask(until))
        return time.perf_counter() - began

    async def _connect(self, port: int) -> Connection:
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(Connection, "127.0.0.1", port)
        return connection

    async def _ask(self, until: float) -> None:
        rng, given = self._rng, self.given
        connections = {port: await self._connect(port) for port in set(self._ports.values())}
        while self._asked < given.queries and time.perf_counter() < until:
            self._asked += 1
            if self._asked % given.every == 0 and sum(self._flying.values()) < IN_FLIGHT:
                self._group.create_task(self._publish())
            pair = self._hot.popleft() if self._hot else rng.choice(self.pairs)
            account, about = pair.sides if rng.random() < 0.5 else pair.sides[::-1]
            level = "vectors" if rng.random() < VECTORS else "state"
            after = written(pair.token)
            turn, kept_out = pair.turns, pair.kept_out(account) and not pair.publishing
            sent = "" if given.sabotage == "tokens" else after
            port = self._ports[self._route[account]]
            began = time.perf_counter()
            try:
                status, body = await connections[port].get(
                    f"/v1/candidates/{account}?k={given.k}&reasons=0&level={level}&after={sent}"
                )
            except ConnectionError:
                status, body = 0, b'{"error":"lost"}'
                connections[port] = await self._connect(port)
            got = _got(body)
            self.times[level].append(time.perf_counter() - began)
            told: int | str = status if status == 200 else got.error
            self.statuses[str(told)] += 1
            # Whatever is on its way may be in the log already, each record at the next offset.
            ends = {number: end + self._flying[number] for number, end in self._ends.items()}
            names = [candidate.account for candidate in got.candidates]
            if given.sabotage == "answers" and kept_out and turn == pair.turns and self._asked % 97 == 0:
                names.append(about)
                self.planted += 1
            row = (account, about, after, level, told, got.token, written(ends), names)
            self._file.write(_line(row) + b"\n")
            if self._asked % 50_000 == 0:
                print(f"{self._asked} asked, {len(self.published)} published", file=sys.stderr)
        for connection in connections.values():
            connection.close()

    async def _publish(self) -> None:
        pair = self._rng.choice(self.pairs)
        if pair.publishing:
            return
        pair.publishing = True
        pair.turns += 1
        signal, actor, target = pair.next_event(self._rng)
        number = self._route[actor]
        self._flying[number] += 1
        name = f"x{next(self._number)}"
        pending = self._publisher.send([{"id": name, "signal": signal, "actor": actor, "target": target}])
        while not pending.done:
            await asyncio.sleep(0.001)
        at = int(pending.token().partition(":")[2])
        pair.token[number] = max(at, pair.token.get(number, 0))
        self._ends[number] = max(at, self._ends[number])
        self._flying[number] -= 1
        self.published.append((number, at - 1, name))
        pair.publishing = False
        self._hot.extend([pair] * HOT)


def written(ends: dict[int, int]) -> str:
    """Return a token."""
    return ",".join(f"{number}:{end}" for number, end in sorted(ends.items()))


def world(given: argparse.Namespace) -> tuple[list[dict[str, str]], list[Pair]]:
    """Return events after which the accounts of the pairs are each other's first candidates, and the pairs.

    They are followed by most, speak a language of their own, and act themselves.
    """
    rng = random.Random(given.seed)
    known = [f"c{number}" for number in range(given.known)]
    many = [f"a{number}" for number in range(given.accounts)]
    events = [{"signal": "profile", "actor": name, "language": "pt"} for name in many]
    events += [{"signal": "profile", "actor": name, "language": "en"} for name in known]
    for actor in many:
        others = set(rng.sample(many, 6)) - {actor}
        for target in (*rng.sample(known, int(given.known * 0.8)), *sorted(others)):
            events.append({"signal": "follow", "actor": actor, "target": target})
    for actor in known:
        for target in rng.sample(many, min(ACTIVE, len(many))):
            events.append({"signal": "follow", "actor": actor, "target": target})
    route = Route(PARTITIONS)
    pairs = [Pair(a, b) for a in known for b in known if a < b and route[a] != route[b]]
    return events, pairs


def write_log(kafka: KafkaConfig, file: BinaryIO) -> dict[tuple[int, int], str]:
    """Write every record of the topic; return the id of each by partition and offset."""
    from kafka import KafkaConsumer, TopicPartition

    consumer = KafkaConsumer(bootstrap_servers=kafka.servers, auto_offset_reset="earliest")
    tps = [TopicPartition(topics(kafka.prefix).engagements, number) for number in range(PARTITIONS)]
    consumer.assign(tps)
    ends = consumer.end_offsets(tps)
    ids: dict[tuple[int, int], str] = {}
    while any(consumer.position(tp) < end for tp, end in ends.items()):
        for tp, records in consumer.poll(1000, max_records=5000).items():
            for record in records:
                file.write(b"[%d,%d,%b]\n" % (tp.partition, record.offset, record.value))
                ids[tp.partition, record.offset] = msgspec.json.decode(record.value)["id"]
    consumer.close()
    return ids


def judged(folder: Path) -> dict[str, object]:
    """Run the checker as a process of its own; return what it says, and its seconds."""
    command = [
        sys.executable,
        "-m",
        "bench.leak_checker",
        str(folder / "log.jsonl"),
        str(folder / "answers.jsonl"),
    ]
    began = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[1], check=False)
    if done.returncode not in (0, 1) or not done.stdout:
        raise RuntimeError(f"the checker ended with {done.returncode}")
    return {**json.loads(done.stdout), "checker_seconds": round(time.perf_counter() - began, 1)}


def run(given: argparse.Namespace) -> dict[str, object]:
    """Start everything, ask, check."""
    with ExitStack() as stack:
        folder = Path(
            given.keep or stack.enter_context(tempfile.TemporaryDirectory(prefix="kithstream-bench-"))
        )
        folder.mkdir(parents=True, exist_ok=True)
        kafka = cluster(stack, PARTITIONS)
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kithstream-bench-")))
        options = [*FULL, *given.option, *([SLOW] if given.sabotage == "tokens" else [])]
        workers = [
            stack.enter_context(Worker(kafka, scratch / str(number), PARTITIONS, options))
            for number in range(given.workers)
        ]
        workers[0].until(lambda: shared(workers), "for the partitions to be shared")
        for worker in workers:
            worker.ready()
        publisher = stack.enter_context(EventPublisher(kafka, linger=0.001))
        events, pairs = world(given)
        publisher.publish(events)
        settle(publisher, workers)
        file = stack.enter_context(open(folder / "answers.jsonl", "wb"))
        ends = ends_by_partition(publisher, workers[0].get)
        asking = Asking(owners(workers), publisher, pairs, ends, file, given)
        before = busy(workers)
        seconds = asyncio.run(asking.run())
        cores = {name: round((spent - before[name]) / seconds, 2) for name, spent in busy(workers).items()}
        file.flush()
        with open(folder / "log.jsonl", "wb") as log:
            ids = write_log(kafka, log)
        for worker in workers:
            worker.stop()
        misplaced = sum(ids.get((number, offset)) != name for number, offset, name in asking.published)
        verdict = judged(folder)
    asked = sum(asking.statuses.values())
    shown = verdict["shown_before"] + verdict["shown_after"]  # type: ignore[operator]
    return {
        "asked": asked,
        "seconds": round(seconds, 1),
        "asked_per_second": round(asked / seconds),
        "a_million_takes_minutes": round(1e6 / (asked / seconds) / 60, 1),
        "statuses": dict(asking.statuses),
        "published": len(asking.published),
        "published_not_where_the_token_says": misplaced,
        "planted": asking.planted,
        "pairs": len(pairs),
        "shown_of_allowed": round(shown / max(verdict["allowed"], 1), 3),  # type: ignore[call-overload]
        "state": percentiles(asking.times["state"]),
        "vectors": percentiles(asking.times["vectors"]),
        "cores_used": cores,
        "retrieval_cpu_us_per_question": round(cores["retrieval"] * seconds / asked * 1e6),
        **verdict,
    }


def shared(workers: list[Worker]) -> bool:
    """True if each worker answers for some partitions, and all of them for all."""
    counts = [owned(worker) for worker in workers]
    return min(counts) > 0 and sum(counts) == PARTITIONS


def owners(workers: list[Worker]) -> dict[int, int]:
    """Return the port of each partition's owner: who answers for its accounts and does not pass the question on."""
    found: dict[int, int] = {}
    for number, account in one_of_each().items():
        for worker in workers:
            if worker.get(f"/v1/candidates/{account}", {FORWARDED: "1"})[0] == 200:
                found[number] = worker.port
    if len(found) < PARTITIONS:
        raise RuntimeError(f"of {PARTITIONS} partitions {sorted(found)} are answered for")
    return found


def one_of_each() -> dict[int, str]:
    """Return an account of each partition."""
    route, found = Route(PARTITIONS), dict[int, str]()
    for number in count():
        found.setdefault(route[f"e{number}"], f"e{number}")
        if len(found) == PARTITIONS:
            return found
    raise AssertionError("there are accounts for ever")


def ends_by_partition(publisher: EventPublisher, get: Callable[[str], tuple[int, object]]) -> dict[int, int]:
    """Publish one event to each partition and return the ends it leaves; nobody else publishes."""
    token = publisher.publish(
        [{"signal": "follow", "actor": actor, "target": "c0"} for actor in one_of_each().values()]
    )
    status, body = get(f"/v1/candidates/c0?k=1&after={token}")
    assert status == 200, body
    return {int(number): int(end) for number, end in (part.split(":") for part in token.split(","))}


def main() -> None:
    """Run it and print the figures; exits with 1 where something leaked or nothing could."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--queries", type=int, default=50_000)
    parser.add_argument("--seconds", type=float, default=0.0, help="Stop then at the latest; 0 is never.")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument(
        "--clients", type=int, default=32, help="Connections, each with one question at a time."
    )
    parser.add_argument("--every", type=int, default=20, help="Questions to one publish.")
    parser.add_argument("--accounts", type=int, default=3000)
    parser.add_argument("--known", type=int, default=20, help="Accounts that are in pairs.")
    parser.add_argument("--k", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "-o", dest="option", action="append", default=list(TUNED), help="Settings of the worker."
    )
    parser.add_argument("--sabotage", choices=("tokens", "answers"))
    parser.add_argument("--keep", help="Directory for the two files; without it they are deleted.")
    given = parser.parse_args()
    result = run(given)
    settings = {name: value for name, value in vars(given).items() if name != "keep"}
    print(json.dumps({"bench": "leaks", "machine": machine(), **settings, **result}, indent=1))
    raise SystemExit(1 if result["leaks"] or result["void"] else 0)


if __name__ == "__main__":
    main()
