"""Signed ratings: `from,to,rating,time`, with or without a header line; -10 to 10 without 0, unix seconds.

The format of the Bitcoin OTC and Alpha trust networks (Kumar et al. 2016, SNAP). A negative rating is a
block and is never the follow of its pair; positive ones after the follow are likes.
"""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import Final

from kithstream.streams.sources.interactions import Field, Format, Interaction, Interactions, account, seconds


def parse(fields: Sequence[str]) -> Interaction:
    """Reads one row."""
    actor, target, rating, time = fields
    try:
        stars = int(rating)
    except ValueError:
        stars = 0
    if not 1 <= abs(stars) <= 10:
        raise Field("rating", rating, "-10 to 10 without 0 is due")
    return Interaction(
        account("from", actor),
        account("to", target),
        seconds("time", time),
        signal="like" if stars > 0 else "block",
        follows=stars > 0,
    )


FORMAT: Final = Format("bitcoin", ("from", "to", "rating", "time"), ",", parse, header=True)


def read(path: str | PathLike[str], repeats: bool = True) -> Interactions:
    """Returns the events of the file."""
    return Interactions(path, FORMAT, repeats)
