"""What an index can fail with: one root, one leaf per decision that the caller can take.

LiveIndexError
├── SnapshotRefused   restore another snapshot, or replay from the log
├── RebuildFailed     the old graphs still serve: try again, later or elsewhere
└── MergerStopped     the background thread died of its cause: stop the process, or merge by hand

Wrong arguments are `ValueError` or `TypeError` with name and value; an unknown id is a `KeyError`.
"""

from __future__ import annotations


class LiveIndexError(Exception):
    """Root of everything that the index itself raises."""


class SnapshotRefused(LiveIndexError):
    """A stored snapshot is damaged, incomplete or made for another index; the message names the file."""


class RebuildFailed(LiveIndexError):
    """The process that builds a graph did not finish."""


class MergerStopped(LiveIndexError):
    """The background merger stopped by an exception, which is the cause of this one."""
