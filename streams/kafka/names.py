"""The topics by name. Everybody who names a topic takes the name from here."""

from __future__ import annotations

from typing import NamedTuple


class Topics(NamedTuple):
    """The names of one tenant's topics, as the brokers know them."""

    engagements: str  # key = actor; the product writes, the actors agent reads
    edges: str  # partition = the target's; frames between partitions
    requests: str  # key = requesting account; clients write, the query agent of the owner reads
    replies: str  # topic partition named in the request; read by that client alone
    candidates: str  # key = account, compacted; pushed lists
    control: str  # key = account; profiles, deactivations, deletions of those who may not write engagements
    owners: str  # partition of accounts -> URL of the worker that owns it, compacted
    dead_letters: str  # what could not be used, and why
    models: str  # one partition: lineages that were published, and which one is to be served, compacted
    training: str  # one partition: what was encoded and who was followed, in the order that is learned in


def topics(prefix: str = "") -> Topics:
    """Return the names behind a tenant's prefix.

    >>> topics("acme.").engagements
    'acme.engagements'
    """
    return Topics(
        engagements=f"{prefix}engagements",
        edges=f"{prefix}edges",
        requests=f"{prefix}retrieval-requests",
        replies=f"{prefix}replies",
        candidates=f"{prefix}candidates",
        control=f"{prefix}account-control",
        owners=f"{prefix}owners",
        dead_letters=f"{prefix}dead-letters",
        models=f"{prefix}models",
        training=f"{prefix}training",
    )


def vectors(prefix: str, lineage: str) -> str:
    """Return the topic of one lineage's producer vectors.

    >>> vectors("acme.", "1f2e")
    'acme.producer-vectors.1f2e'
    """
    return f"{prefix}producer-vectors.{lineage}"


def steps(prefix: str, lineage: str) -> str:
    """Return the topic of one lineage's steps: its weights and id vectors as they are learned.

    >>> steps("acme.", "1f2e")
    'acme.model-steps.1f2e'
    """
    return f"{prefix}model-steps.{lineage}"


def group(prefix: str = "") -> str:
    """Return the consumer group of the workers."""
    return f"{prefix}kithstream"
