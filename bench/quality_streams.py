"""The streams of the comparison, cut to first pairs, and who follows whom before each of them."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from kithstream.streams.events.record import Record
from kithstream.streams.prequential import Pairs, first_pairs
from kithstream.streams.simulate import SimulationConfig, simulate
from kithstream.streams.sources import bitcoin, higgs, pairs

SIMULATOR: Final = "simulator"
ACCOUNTS, EVENTS = 10_000, 400_000  # of the simulated world, at most

READERS: Final[dict[str, tuple[str, Callable[[Path], Iterable[Record]]]]] = {
    "btc": ("soc-sign-bitcoinotc.csv.gz", bitcoin.read),
    "college": ("CollegeMsg.txt.gz", pairs.read),
    "higgs": ("higgs-activity_time.txt.gz", higgs.read),
}
NAMES: Final = (*READERS, SIMULATOR)
TITLES: Final = {"btc": "Bitcoin OTC", "college": "CollegeMsg", "higgs": "Higgs", SIMULATOR: "simulator"}


def read(name: str, data: Path, seed: int) -> Iterable[Record]:
    """Returns a stream's events in their order; the simulator's are a function of the seed, and need no data."""
    if name == SIMULATOR:
        config = SimulationConfig(accounts=ACCOUNTS, seed=seed)
        return itertools.chain.from_iterable(simulate(config, EVENTS))
    file, reader = READERS[name]
    return reader(data / file)


def cut(known: Pairs, limit: int | None) -> Pairs:
    """Returns the first `limit` pairs with the accounts that they name."""
    head = known.head(len(known.source) if limit is None else limit)
    count = int(max(head.source.max(initial=-1), head.target.max(initial=-1))) + 1
    return head._replace(accounts=head.accounts[:count])


def kept_pairs(name: str, data: Path, seed: int, limit: int | None, folder: Path) -> Pairs:
    """Returns a stream's first pairs, from a file in `folder`, which is written if it is not there."""
    file = folder / f"{name}.pairs.npz"
    if file.exists():
        with np.load(file, allow_pickle=False) as held:
            columns = (held["source"], held["target"], held["time"], held["event"])
            return cut(Pairs(*columns, held["accounts"].tolist()), limit)
    known = first_pairs(read(name, data, seed))
    temporary = folder / f"{name}.{os.getpid()}.writing.npz"
    np.savez(
        temporary,
        source=known.source,
        target=known.target,
        time=known.time,
        event=known.event,
        accounts=np.array(known.accounts),
    )
    os.replace(temporary, file)
    return cut(known, limit)


class History:
    """Whom each account follows before each row, by first pairs."""

    def __init__(self, known: Pairs) -> None:
        self._order = np.argsort(
            known.source, kind="stable"
        )  # rows of one source are neighbours, oldest first
        self._source = known.source[self._order]
        self._target = known.target[self._order]

    def before(self, source: int, row: int) -> NDArray[np.int64]:
        """Returns the targets that `source` followed in rows before `row`, oldest first."""
        first, end = np.searchsorted(self._source, [source, source + 1])
        return self._target[first : first + np.searchsorted(self._order[first:end], row)]
