"""Fresh follow candidates from a stream of engagement events."""

__version__ = "0.1.0"
