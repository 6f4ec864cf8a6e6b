"""Who answers for which partition: every retrieval process tells, and hears what the others tell."""

from __future__ import annotations

from typing import Final

import msgspec
from aiokafka import AIOKafkaConsumer, TopicPartition

from kithstream.streams.config import KafkaConfig
from kithstream.streams.kafka.producer import Producer
from kithstream.streams.kafka.security import reach
from kithstream.streams.kafka.starting import start
from kithstream.streams.kafka.wire import Owner

_decode = msgspec.json.Decoder(Owner).decode
_encode = msgspec.json.Encoder().encode
_GENERATIONS: Final = 1 << 62


class Owners:
    """The owners as far as they are known here. Of a partition's records the highest generation holds."""

    def __init__(self, topic: str, partitions: int, worker: str) -> None:
        self._topic = topic
        self._partitions = partitions
        self._worker = worker
        self._known: dict[int, Owner] = {}
        self._own: dict[int, Owner] = {}  # what this worker has told

    def of(self, number: int) -> Owner | None:
        """Return who answers for a partition, None if nobody is known to."""
        owner = self._known.get(number)
        return owner if owner is not None and owner.url else None

    def learn(self, key: bytes | None, value: bytes | None) -> int | None:
        """Take note of a record; what is none of ours is passed over.

        Returns the partition if a late word of an earlier owner lies over this worker's own: whoever reads the
        topic later would know of nobody.
        """
        try:
            number, owner = int(key or b""), _decode(value or b"")
        except (ValueError, RecursionError):  # msgspec.DecodeError is a ValueError
            return None
        if not 0 <= number < self._partitions or not 0 <= owner.generation < _GENERATIONS:
            return None
        known = self._known.get(number)
        if known is None or owner.generation >= known.generation:
            self._known[number] = owner
            return None
        return number if self._own.get(number) == known else None

    async def own(self, producer: Producer, number: int, url: str, generation: int) -> None:
        """Tell everybody that this worker answers for a partition."""
        self._own[number] = Owner(url, generation, self._worker)
        await self._tell(producer, number, self._own[number])

    async def leave(self, producer: Producer, number: int) -> None:
        """Tell everybody that this worker does not answer any more, unless another has said that it does."""
        self._own.pop(number, None)
        known = self._known.get(number)
        if known is not None and known.worker == self._worker:
            await self._tell(producer, number, Owner("", known.generation, self._worker))

    async def _tell(self, producer: Producer, number: int, owner: Owner) -> None:
        key = str(number).encode()
        self.learn(key, _encode(owner))
        await producer.send(self._topic, number, _encode(owner), key=key)

    async def follow(self, config: KafkaConfig, producer: Producer) -> None:
        """Learn for ever, from the first record on."""
        consumer = AIOKafkaConsumer(**reach(config), auto_offset_reset="earliest", enable_auto_commit=False)
        consumer.assign([TopicPartition(self._topic, number) for number in range(self._partitions)])
        await start(consumer, config)
        try:
            async for record in consumer:
                number = self.learn(record.key, record.value)
                if number is not None and (own := self._own.get(number)) is not None:
                    await self._tell(producer, number, own)
        finally:
            await consumer.stop()
