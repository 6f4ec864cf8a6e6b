"""What the topics hold of an account: how long each keeps a record, and what the compacted ones still have."""

from __future__ import annotations

from collections import Counter
from typing import Final

from kafka import TopicPartition
from kafka.errors import KafkaError
from msgspec.structs import replace

from kithstream.models.lineage import lineage_of
from kithstream.streams.audit import Audit, Finding, mention
from kithstream.streams.clients import connection
from kithstream.streams.config import Config
from kithstream.streams.errors import Unreachable
from kithstream.streams.kafka import names
from kithstream.streams.kafka.topics import DAY, HOUR, Topic, wanted

_POLL: Final = 1000  # milliseconds


def search_topics(audit: Audit, config: Config) -> Audit:
    """Return the audit with what the compacted topics hold; both are read whole. Raises Unreachable."""
    lineage = lineage_of(config.model.path, config.model.seed)
    table = wanted(config, lineage)
    notes = [f"topic {topic.name}: {_kept(topic)}" for topic in table]
    searched = Counter(audit.searched)
    findings = list(audit.findings)
    for topic in (names.topics(config.kafka.prefix).candidates, names.vectors(config.kafka.prefix, lineage)):
        own, others, read = _read(audit.account, topic, config)
        searched["records of topics"] += read
        if own:
            why = (
                "its own record is not withdrawn"
                if topic.endswith("candidates")
                else "its vector is published"
            )
            findings.append(Finding(topic, own, why, "until the account is deleted, or hidden", False))
        if others:
            hours = config.worker.push_valid_seconds / 3600
            why = "lists and vectors of others name it"
            until = f"not to be shown after {hours:g} h; kept until the account gets a newer list or vector"
            findings.append(Finding(topic, others, why, until, False))
    return replace(audit, findings=findings, searched=dict(searched), notes=[*audit.notes, *notes])


def _read(account: str, topic: str, config: Config) -> tuple[int, int, int]:
    """Records of the account that are no tombstones, others' that name it, and how many were read."""
    name = account.encode()
    named = mention(account)
    newest: dict[bytes, bool] = {}  # key -> whether its newest value mentions the account
    own, read = False, 0
    client = connection.consumer(config.kafka, connection.CONNECTING, enable_auto_commit=False)
    try:
        count = connection.partitions(client, topic, config.kafka)
        places = [TopicPartition(topic, number) for number in range(count)]
        client.assign(places)
        client.seek_to_beginning(*places)
        ends = client.end_offsets(places)
        while any(client.position(place) < end for place, end in ends.items()):
            for batch in client.poll(_POLL).values():
                for record in batch:
                    read += 1
                    if record.key == name:
                        own = record.value is not None
                    elif record.key is not None:
                        newest[record.key] = record.value is not None and bool(named.search(record.value))
    except KafkaError as error:
        raise Unreachable(f"topic {topic} cannot be read: {error}") from error
    finally:
        client.close(autocommit=False)
    return int(own), sum(newest.values()), read


def _kept(topic: Topic) -> str:
    if topic.kept is None:
        return "the newest record of each key for ever, what came before it until the broker compacts"
    days, hours = divmod(topic.kept, DAY)
    whole = f"{days} days" if days else f"{hours // HOUR} hours"
    return f"records for {whole}, and up to a seventh longer"
