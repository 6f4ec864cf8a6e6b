"""How clients of aiokafka begin: connected, or refused in one sentence with nothing left open."""

from __future__ import annotations

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.errors import KafkaError

from kithstream.streams.config import KafkaConfig
from kithstream.streams.errors import Unreachable
from kithstream.streams.kafka.refusals import Refusals


async def start(client: AIOKafkaConsumer | AIOKafkaProducer, config: KafkaConfig) -> None:
    """Connect a client; raises Unreachable with the reason, which aiokafka tells its log alone."""
    with Refusals.of("aiokafka") as refusals:
        try:
            await client.start()
        except BaseException as error:
            await client.stop()
            if not isinstance(error, KafkaError):
                raise
            why = refusals.why(config.security, error)
            raise Unreachable(
                f"no broker of {config.servers} lets in over {config.security}: {why}"
            ) from error
