"""Connections of kafka-python as every client makes them: from the settings, or refused in one sentence."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Final, TypeVar

from kafka import KafkaConsumer, KafkaProducer
from kafka.errors import KafkaConfigurationError, KafkaError, KafkaTimeoutError
from kafka.net.compat import KafkaNetClient

from kithstream.streams.config import KafkaConfig
from kithstream.streams.errors import Unreachable
from kithstream.streams.kafka.refusals import Refusals
from kithstream.streams.kafka.security import reach

CONNECTING: Final = 10.0  # seconds in which a broker must answer
_Client = TypeVar("_Client", KafkaProducer, KafkaConsumer)


def producer(config: KafkaConfig, seconds: float, **settings: object) -> KafkaProducer:
    """Return a connected producer; raises Unreachable, or ValueError naming a setting."""
    return _connected(KafkaProducer, config, seconds, {"max_block_ms": int(seconds * 1000), **settings})


def consumer(config: KafkaConfig, seconds: float, **settings: object) -> KafkaConsumer:
    """Return a connected consumer; raises Unreachable, or ValueError naming a setting."""
    return _connected(KafkaConsumer, config, seconds, settings)


def partitions(client: KafkaProducer | KafkaConsumer, topic: str, config: KafkaConfig) -> int:
    """Return how many partitions the cluster says a topic has; raises Unreachable where it shows none."""
    ask = client.partitions_for if isinstance(client, KafkaProducer) else client.partitions_for_topic
    try:
        found = len(ask(topic))
    except KafkaError as error:
        raise Unreachable(f"topic {topic} is not shown by {config.servers}: {error}") from error
    if not found:
        raise Unreachable(f"topic {topic} is not shown by {config.servers}")
    return found


def close(client: KafkaProducer) -> None:
    """Disconnect a producer within a second or so, whatever it still holds."""
    try:
        client.close(timeout=1.0)
    except KafkaTimeoutError:  # it gives up here with its thread running, if a record cannot be sent
        client._sender.force_close()
        client.close(timeout=1.0)


def _connected(
    make: Callable[..., _Client], config: KafkaConfig, seconds: float, settings: dict[str, object]
) -> _Client:
    with ExitStack() as undo, Refusals.of("kafka") as refusals:

        def network(**keywords: object) -> KafkaNetClient:
            client = KafkaNetClient(**keywords)
            undo.callback(client.close)  # a constructor that fails leaves its thread and sockets behind
            return client

        try:
            made = make(
                **reach(config),
                **settings,
                kafka_client=network,
                bootstrap_timeout_ms=int(seconds * 1000),
                allow_auto_create_topics=False,
                metrics_enabled=False,
            )
        except KafkaConfigurationError as error:
            raise ValueError(str(error)) from error
        except KafkaError as error:
            why = refusals.why(config.security, "the logger `kafka` has the reason")
            raise Unreachable(
                f"no broker of {config.servers} answered over {config.security} in {seconds:g} s: "
                f"address, certificate or password; {why}"
            ) from error
        undo.pop_all()
        return made
