"""What the trainer knows of candidates, from its log: who would have been ranked for an account before it followed one.

About 1.1 KB and a name for every candidate, half of it for an account that is none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from kithstream.index.config import IndexConfig
from kithstream.index.live import LiveIndex
from kithstream.models.checkpoint import Array, Checkpoint
from kithstream.models.features import Rows
from kithstream.models.ranker import Ranked
from kithstream.streams.config import RankingConfig
from kithstream.streams.engine.shard import Reads
from kithstream.streams.serve import whole
from kithstream.streams.serve.exclusions import Exclusions
from kithstream.streams.serve.facts import Facts, Neighbours
from kithstream.streams.serve.finding import looked
from kithstream.streams.serve.lessons import Lessons
from kithstream.streams.serve.marks import SIZE, unpack
from kithstream.streams.serve.nominators import About
from kithstream.streams.serve.ranking import lowered
from kithstream.streams.serve.whole import Whole
from kithstream.streams.state.reader import Reader

EXCLUDED: Final = 2000  # accounts kept from one that asks; with more of them it is no example of the ranker's
NAMED: Final = 20_000  # accounts kept from all those of one record
_VECTORS: Final = "facts.vectors"


class Told(msgspec.Struct, frozen=True, array_like=True):
    """What pairs with n candidates are ranked by."""

    lineage: str  # of the vectors
    vectors: bytes  # (n, dim) float32, little endian, as they were published
    marks: Sequence[bytes]  # n, `marks.pack`
    near: Neighbours  # n


class Asked(msgspec.Struct, frozen=True, array_like=True):
    """An account that is about to follow another: what an answer for it would be made of."""

    about: About
    excluded: Sequence[str]  # whom no answer may hold
    lowered: Sequence[str]  # whose scores are lowered
    as_of: int  # microseconds


class Asking:
    """Reads, where follows are folded, what an answer for those that follow would be made of."""

    def __init__(self, held: Reads, config: RankingConfig, seed: int) -> None:
        self._held = held
        self._config = config
        self._lessons = Lessons(config, seed)
        self._exclusions = Exclusions(held, 1, used_to_follow=config.used_to_follow)

    def read(self, reader: Reader, rows: Rows, follows: Sequence[tuple[str, int]]) -> list[Asked | None]:
        """Return it of those the ranker learns from: the accounts that were read follow by these events, (id, time)."""
        config = self._config
        found: list[Asked | None] = [None] * len(follows)
        left = NAMED
        for at in self._lessons.among(follows):
            account, as_of = rows.accounts[at], follows[at][1]
            partition = self._held.at(self._held.route[account])
            if partition.is_deleted(account) or partition.profile(account).inactive:
                continue
            self._exclusions.drop(account)
            excluded = self._exclusions.of(account)
            losses = lowered(self._exclusions, reader, config, account, excluded, as_of)
            if len(excluded) <= min(EXCLUDED, left):
                left -= len(excluded)
                told = whole.about(partition, rows, at)
                found[at] = Asked(told, sorted(excluded), sorted(losses), as_of)
        return found


class Looker:
    """Candidates and facts as the log tells them; looks for whom an account would have been shown."""

    def __init__(self, config: RankingConfig, dim: int, bound: float) -> None:
        self.facts = Facts()
        self.index = LiveIndex(IndexConfig(dim=dim, bound=bound))  # never merged, so without a graph
        self._dim = dim
        self._whole = Whole(self.facts, config)

    def take(self, accounts: Sequence[str], told: Told) -> None:
        """Take over what is told of candidates; raises ValueError if it is not of as many."""
        n, near = len(accounts), told.near
        if not n == len(told.marks) == len(near.followers) == len(near.followees) == len(near.degrees):
            raise ValueError(
                f"marks of {len(told.marks)} candidates and neighbours of {len(near.degrees)}, expected {n}"
            )
        if len(told.vectors) != 4 * self._dim * n or max(map(len, told.marks), default=0) > SIZE:
            raise ValueError(
                f"vectors of {n} candidates have {len(told.vectors)} bytes, or marks more than {SIZE}"
            )
        marks = unpack(told.marks)
        vectors = np.frombuffer(told.vectors, "<f4").reshape(n, self._dim)
        self.facts.take(accounts, marks)
        self.facts.link(accounts, near)
        self.index.upsert(accounts, vectors, labels=marks.languages)

    def others(self, accounts: Sequence[str], near: Neighbours) -> None:
        """Take over the neighbours of accounts that are nobody's candidates; raises ValueError as `take`."""
        if not len(accounts) == len(near.followers) == len(near.followees) == len(near.degrees):
            raise ValueError(f"neighbours of {len(near.degrees)} accounts, expected {len(accounts)}")
        self.index.delete(accounts)
        self.facts.drop(accounts)
        linked = [at for at in range(len(accounts)) if near.followers[at] or near.followees[at]]
        self.facts.unlink(set(accounts).difference(accounts[at] for at in linked))
        if linked:
            some = Neighbours._make([values[at] for at in linked] for values in near)
            self.facts.link([accounts[at] for at in linked], some)

    def forget(self, accounts: Sequence[str]) -> None:
        """Forget accounts that were deleted."""
        self.index.delete(accounts)
        self.facts.forget(accounts)

    def look(self, asked: Asked, vector: NDArray[np.float32], target: str) -> Ranked | None:
        """Return who would have been ranked for an account with this vector; None if the target would not have been."""
        return looked(
            self.index, self._whole, vector, asked.about, asked.excluded, asked.lowered, target, asked.as_of
        )

    def arrays(self) -> dict[str, Array]:
        """Content by name, for a checkpoint."""
        vectors = [self.index.vector(name) for name in self.facts.candidates()]
        return {
            **self.facts.arrays(),
            _VECTORS: np.stack(vectors) if vectors else np.zeros((0, self._dim), np.float32),
        }

    def restore(self, saved: Checkpoint) -> None:
        """Take over the content of a checkpoint; for one that is empty. Raises CheckpointError."""
        self.facts.restore(saved)
        names = self.facts.candidates()
        vectors = saved.array(_VECTORS, (len(names), self._dim), np.float32)
        if names:
            labels = self.facts.languages(names)
            self.index.upsert(names, vectors.astype(np.float32), labels=labels)
