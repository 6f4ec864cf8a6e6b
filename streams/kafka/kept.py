"""What a retrieval process keeps of a lineage on its disk: the index, the facts, and how far into the topic they go.

    WORKER/index/LINEAGE/0000.../      a snapshot of the index (`index/snapshot.py`), and beside its files
        facts.safetensors              what pairs are ranked by
        tail.msgpack                   generations, progress and reasons

A process that starts goes on from there and reads the rest of the topic. A snapshot is refused where the rest would
not be what came behind it: of another topic, also one of the same name that was made again, or behind its end; and
one that is older than tombstones are certain to be kept, since a deletion might be missing in what is read on.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, NamedTuple

from aiokafka import AIOKafkaConsumer, TopicPartition

from kithstream.index.config import IndexConfig
from kithstream.index.errors import SnapshotRefused
from kithstream.index.live import LiveIndex
from kithstream.models import checkpoint
from kithstream.models.features import SCHEMA
from kithstream.models.model import Model
from kithstream.streams.config import KafkaConfig
from kithstream.streams.kafka.security import reach
from kithstream.streams.kafka.starting import start
from kithstream.streams.kafka.tail import Tail
from kithstream.streams.kafka.topics import Ends, Identity
from kithstream.streams.serve.facts import Facts

_log = logging.getLogger(__name__)

FOLDER: Final = "index"  # beside the stores of a worker
TAIL: Final = "tail.msgpack"
_FACTS: Final = "facts.safetensors"
FORMAT: Final = 1
CERTAIN: Final = 0.5  # of the time for which tombstones stay: what is younger misses no deletion


class Found(NamedTuple):
    """A snapshot that fits, behind a tail that goes on with it, and by partition the offset to read on from."""

    live: LiveIndex
    tail: Tail
    positions: Mapping[int, int]


class Kept:
    """The snapshots of one lineage. One thread at a time."""

    def __init__(self, data: Path, model: Model, topic: str, identity: Identity) -> None:
        """`data` is the worker's directory; the topic is as it was when it was asked."""
        self.folder = data / FOLDER / model.lineage
        self._model = model
        self._topic = topic
        self._identity = identity

    def load(self, config: IndexConfig, bounds: Ends, now: int, *, facts: bool) -> Found | None:
        """Return the newest snapshot, None if there never was one; raises SnapshotRefused. `now` in microseconds."""
        if not self.folder.exists():
            return None
        try:
            name = (self.folder / "CURRENT").read_text()
            live, told = LiveIndex.restore(self.folder, config, name)
            for key, expected in (
                ("form", FORMAT),
                ("schema", SCHEMA.hash),
                ("lineage", self._model.lineage),
                ("topic", self._topic),
                ("topic_id", self._identity.id),
            ):
                if told.get(key) != expected:
                    raise SnapshotRefused(f"{key} is {told.get(key)!r}, expected {expected!r}")
            age = (now - int(told["saved"])) / 1e6
            certain = CERTAIN * self._identity.tombstones / 1000
            if not 0 <= age <= certain:
                raise SnapshotRefused(
                    f"it is {age:.0f} s old, and deletions are certain to be in the topic for {certain:.0f} s"
                )
            positions = {int(number): int(at) for number, at in json.loads(str(told["positions"])).items()}
            for number, end in bounds.end.items():
                at = positions[number]
                if not bounds.first[number] <= at <= end:
                    raise SnapshotRefused(
                        f"it reaches to offset {at} of partition {number}, "
                        f"the topic from {bounds.first[number]} to {end}"
                    )
            restored = Facts() if facts else None
            if restored is not None:
                restored.restore(checkpoint.read(self.folder / name / _FACTS, SCHEMA.hash))
            tail = Tail(live, len(bounds.end), restored)
            tail.restore((self.folder / name / TAIL).read_bytes())
            return Found(live, tail, positions)
        except (ValueError, KeyError, OSError) as error:
            raise SnapshotRefused(str(error)) from error

    def begin(
        self, live: LiveIndex, tail: Tail, positions: Mapping[int, int], now: int
    ) -> Callable[[], None]:
        """Copy what the topic below these offsets says, while nothing is fed; return what writes it down."""
        told: dict[str, str | int] = {
            "form": FORMAT,
            "schema": SCHEMA.hash,
            "lineage": self._model.lineage,
            "topic": self._topic,
            "topic_id": self._identity.id,
            "positions": json.dumps(positions),
            "saved": now,
        }
        header, dump = self._model.header(), tail.copied()
        facts = None if tail.facts is None else tail.facts.capture()
        capture = live.capture()

        def beside(folder: Path) -> None:
            (folder / TAIL).write_bytes(dump())
            if facts is not None:
                checkpoint.write(folder / _FACTS, header, facts())

        def write() -> None:
            capture.write(self.folder, told, keep=1, beside=beside)

        return write

    def remove(self) -> None:
        """Remove every snapshot of the lineage."""
        shutil.rmtree(self.folder, ignore_errors=True)


async def bounds_of(config: KafkaConfig, topic: str, partitions: int) -> Ends:
    """Return where the partitions of a topic begin and end. Raises Unreachable."""
    consumer = AIOKafkaConsumer(**reach(config), enable_auto_commit=False)
    tps = [TopicPartition(topic, number) for number in range(partitions)]
    consumer.assign(tps)
    await start(consumer, config)
    try:
        first, end = await consumer.beginning_offsets(tps), await consumer.end_offsets(tps)
    finally:
        await consumer.stop()
    return Ends({tp.partition: at for tp, at in first.items()}, {tp.partition: at for tp, at in end.items()})
