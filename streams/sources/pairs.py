"""Timed pairs: `source target unix_seconds`, the format of most temporal networks (CollegeMsg and its kin).

After the first row of a pair every row is a like.
"""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import Final

from kithstream.streams.sources.interactions import Format, Interaction, Interactions, account, seconds


def parse(fields: Sequence[str]) -> Interaction:
    """Reads one row."""
    source, target, time = fields
    return Interaction(account("source", source), account("target", target), seconds("time", time))


FORMAT: Final = Format("pairs", ("source", "target", "time"), None, parse)


def read(path: str | PathLike[str], repeats: bool = True) -> Interactions:
    """Returns the events of the file."""
    return Interactions(path, FORMAT, repeats)
