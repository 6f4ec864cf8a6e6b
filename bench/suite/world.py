"""A runtime on disk that has folded a simulated world, with accounts that follow many: `python -m bench.suite.world`.

    python -m bench.suite.world FOLDER ACCOUNTS EVENTS SEED [DEGREE ...]

The events happen at present. An account `hub<degree>` follows that many others.
"""

from __future__ import annotations

import sys
from itertools import chain, islice
from pathlib import Path

from kithstream.streams.config import Config
from kithstream.streams.serve.embedded import Embedded
from kithstream.streams.simulate import simulate
from kithstream.streams.world import SimulationConfig

BATCH = 5000  # events published at a time


def make(folder: Path, accounts: int, events: int, seed: int, degrees: list[int]) -> None:
    """Fold it and save a snapshot."""
    world = chain.from_iterable(simulate(SimulationConfig(seed=seed, accounts=accounts)))
    plain = (
        {name: value for name, value in event.items() if name != "time"} for event in islice(world, events)
    )
    follows = (
        {"signal": "follow", "actor": f"hub{degree}", "target": f"u{number}"}
        for degree in degrees
        for number in range(degree)
    )
    with Embedded(folder / "town", Config()) as live:
        coming = chain(plain, follows)
        while call := list(islice(coming, BATCH)):
            live.publish(call)
            live.catch_up()
        live.chain.index.merge()
        live.save()


if __name__ == "__main__":
    where, *numbers = sys.argv[1:]
    how_many, of_events, drawn, *many = map(int, numbers)
    make(Path(where), how_many, of_events, drawn, many)
