"""Retweets, mentions and replies: `actor target unix_seconds KIND`, KIND being RT, MT or RE.

The format of the Higgs Twitter data set (De Domenico et al. 2013, SNAP). After the first row of a pair RT
and MT are likes and RE is a reply.
"""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import Final

from kithstream.streams.sources.interactions import Field, Format, Interaction, Interactions, account, seconds

SIGNALS: Final = {"RT": "like", "MT": "like", "RE": "reply"}


def parse(fields: Sequence[str]) -> Interaction:
    """Reads one row."""
    actor, target, time, kind = fields
    if kind not in SIGNALS:
        raise Field("kind", kind, f"one of {' '.join(SIGNALS)} is due")
    return Interaction(
        account("actor", actor), account("target", target), seconds("time", time), SIGNALS[kind]
    )


FORMAT: Final = Format("higgs", ("actor", "target", "time", "kind"), None, parse)


def read(path: str | PathLike[str], repeats: bool = True) -> Interactions:
    """Returns the events of the file."""
    return Interactions(path, FORMAT, repeats)
