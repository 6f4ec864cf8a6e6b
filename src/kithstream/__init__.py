"""Fresh follow candidates from a stream of engagement events."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kithstream.streams.clients import CandidateConsumer, EventPublisher, RetrievalClient
    from kithstream.streams.serve.answers import Answer, Candidate, Question
    from kithstream.streams.serve.embedded import Embedded, open, restore

__version__ = "0.1.0"
__all__ = [
    "Answer",
    "Candidate",
    "CandidateConsumer",
    "Embedded",
    "EventPublisher",
    "Question",
    "RetrievalClient",
    "open",
    "restore",
]

_HOME = {
    "Answer": "serve.answers",
    "Candidate": "serve.answers",
    "CandidateConsumer": "clients",
    "Embedded": "serve.embedded",
    "EventPublisher": "clients",
    "Question": "serve.answers",
    "RetrievalClient": "clients",
    "open": "serve.embedded",
    "restore": "serve.embedded",
}


def __getattr__(name: str) -> object:
    """Load the engine when it is first asked for: a client imports the package without it."""
    if name in _HOME:
        from importlib import import_module

        return getattr(import_module(f"kithstream.streams.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
