"""What a product uses on Kafka: publish events, take pushed lists, ask. Needs the bare package alone.

Each client connects when its `with` block begins or when it is first used, with the settings of `[kafka]`.
"""

from kithstream.streams.clients.consumer import CandidateConsumer, Dropped, Withdrawn
from kithstream.streams.clients.publisher import EventPublisher, Pending
from kithstream.streams.clients.retrieval import RetrievalClient

__all__ = ["EventPublisher", "Pending", "CandidateConsumer", "Withdrawn", "Dropped", "RetrievalClient"]
