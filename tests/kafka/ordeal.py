"""Two workers of sums on a real broker, rebalances by force, kill -9: are the sums exact?

python tests/kafka/ordeal.py SERVERS --rebalances 30 --events 250000
"""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import NewTopic

from kithstream.streams.config import StoreConfig
from kithstream.streams.state.protocol import Column
from kithstream.streams.state.store import RocksStore

PARTITIONS = 4
ALL = str(list(range(PARTITIONS)))
PATIENCE = 90.0  # seconds


class Outcome(NamedTuple):
    """What the log says, what the stores say, and what happened between."""

    expected: Counter[bytes]
    found: Counter[bytes]
    rebalances: int
    kills: int
    soft: list[float]  # seconds from the leaving of a worker by SIGTERM to the others' assignment
    hard: list[float]  # the same after kill -9


class Summing:
    """One worker process, and what it has printed."""

    def __init__(self, servers: str, topic: str, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        script = str(Path(__file__).with_name("summing.py"))
        with open(folder / "stderr", "ab") as errors:
            self._process = subprocess.Popen(
                [sys.executable, script, servers, topic, str(PARTITIONS), str(folder), "0.002"],
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        self._errors = folder / "stderr"
        self.lines: list[str] = []
        self._more = threading.Condition()
        self._reading = threading.Thread(target=self._read, daemon=True)
        self._reading.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with self._more:
                self.lines.append(line.strip())
                self._more.notify_all()
        with self._more:
            self._more.notify_all()

    def wait(self, holds: Callable[[str], bool], since: int = 0) -> str:
        """Return the first line from `since` on for which it holds."""

        def found() -> str | None:
            return next((line for line in self.lines[since:] if holds(line)), None)

        with self._more:
            ok = self._more.wait_for(lambda: found() or self._process.poll() is not None, PATIENCE)
        line = found()
        if line is None:
            what = "in time" if not ok else f"before it ended with {self._process.returncode}"
            raise AssertionError(f"no such line {what}: {self.lines[-3:]} {self._errors.read_text()[-800:]}")
        return line

    def end(self, number: signal.Signals) -> None:
        self._process.send_signal(number)
        self._process.wait(PATIENCE)
        self._reading.join()
        assert self._process.stdout is not None
        self._process.stdout.close()


def ordeal(servers: str, folder: Path, rebalances: int, events: int, seed: int = 0) -> Outcome:
    """Publish while workers come and go; return what was published and what the last owner holds."""
    rng = random.Random(seed)
    topic = f"sums-{rng.getrandbits(32)}-{time.time_ns()}"
    admin = KafkaAdminClient(bootstrap_servers=servers)
    admin.create_topics([NewTopic(topic, PARTITIONS, 1)])
    admin.close()
    expected: Counter[bytes] = Counter()
    enough = threading.Event()

    def publish() -> None:
        draw = random.Random(seed + 1)
        producer = KafkaProducer(bootstrap_servers=servers, acks="all", linger_ms=5)
        for number in range(events):
            key, value = b"k%d" % draw.randrange(5000), draw.randrange(1, 10)
            expected[key] += value
            producer.send(topic, key=key, value=b"%d" % value)
            if number % 500 == 499 and not enough.is_set():
                enough.wait(0.1)  # spread over the ordeal
        producer.close()

    publishing = threading.Thread(target=publish)
    publishing.start()
    stays = Summing(servers, topic, folder / "stays")
    stays.wait(lambda line: line.startswith("assigned"))
    soft: list[float] = []
    hard: list[float] = []
    for turn in range(rebalances // 2):
        comes = Summing(servers, topic, folder / "comes")
        comes.wait(lambda line: line.startswith("assigned") and "[]" not in line)
        if rng.random() < 0.5:
            comes.wait(lambda line: line.startswith("at") and "{}" not in line)
        since, began = len(stays.lines), time.monotonic()
        kill = turn % 3 == 2
        comes.end(signal.SIGKILL if kill else signal.SIGTERM)
        stays.wait(lambda line: line.startswith("assigned") and ALL in line, since)
        (hard if kill else soft).append(time.monotonic() - began)
        if turn % 5 == 4:
            stays.end(signal.SIGKILL)
            stays = Summing(servers, topic, folder / "stays")
            stays.wait(lambda line: line.startswith("assigned") and ALL in line)
    enough.set()
    publishing.join()
    consumer = KafkaConsumer(bootstrap_servers=servers)
    ends = consumer.end_offsets([TopicPartition(topic, number) for number in range(PARTITIONS)])
    consumer.close()
    reached = {tp.partition: end for tp, end in sorted(ends.items(), key=lambda pair: pair[0].partition)}
    stays.wait(lambda line: line.startswith(f"at {reached}"))
    stays.end(signal.SIGTERM)
    found: Counter[bytes] = Counter()
    for number in range(PARTITIONS):
        store = RocksStore(folder / "stays" / str(number), StoreConfig())
        found.update({key: int(value) for key, value in store.scan(Column.ROWS, b"")})
        store.close()
    turns = rebalances // 2
    return Outcome(expected, found, 2 * turns, turns // 3 + turns // 5, soft, hard)


def main() -> None:
    """Run it and print what came out."""
    parser = argparse.ArgumentParser()
    parser.add_argument("servers")
    parser.add_argument("--rebalances", type=int, default=30)
    parser.add_argument("--events", type=int, default=250_000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        outcome = ordeal(given.servers, Path(folder), given.rebalances, given.events)
    print(
        f"{outcome.rebalances} rebalances, {outcome.kills} kills: sums of {len(outcome.expected)} keys "
        f"{'are exact' if outcome.found == outcome.expected else 'DIFFER'}; a worker leaving took at most "
        f"{max(outcome.soft):.1f} s, a killed one {max(outcome.hard, default=0):.1f} s until the others had its part"
    )
    sys.exit(outcome.found != outcome.expected)


if __name__ == "__main__":
    main()
