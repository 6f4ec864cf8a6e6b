"""Snapshots of what a runtime derives: the index, the facts, and when each vector is due again.

    RUNTIME/index/0000.../          a snapshot of the index (`index/snapshot.py`), and beside its files
        derived.safetensors         facts, and of each vector the tick of its last change and the tick it is due at

The stores name the snapshot that they stand on and mark what changed since (`engine/changed.py`). So a runtime that
opens encodes what is marked, and what has aged meanwhile; every other vector is, bit for bit, what encoding the
account at the vector's own tick gives. A snapshot is refused, with the reason, where anything else does not fit:
bytes, features, the model, what is read of communities.

A model that learns is another one at each step. A snapshot writes it down as well and gives it a word; the model
carries the words of its own past snapshots (its trail) from save to save. So one that never was what made the vectors
is told from one that has only learned more since. Vectors of a model that learns are of several of its steps, as they
are while it runs; where nothing is learned all of them are of one model, named by its file.
"""

from __future__ import annotations

import json
import logging
import secrets
import shutil
import threading
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from kithstream.index import snapshot
from kithstream.index.config import IndexConfig
from kithstream.index.errors import SnapshotRefused
from kithstream.index.live import Capture, LiveIndex
from kithstream.models import checkpoint
from kithstream.models.ages import TICK
from kithstream.models.checkpoint import Array, Checkpoint
from kithstream.models.features import SCHEMA
from kithstream.models.model import Model
from kithstream.streams.engine.engine import Engine
from kithstream.streams.serve.candidates import Candidates
from kithstream.streams.serve.facts import Facts
from kithstream.streams.serve.vectors import Encoded

_log = logging.getLogger(__name__)

FOLDER: Final = "index"  # beside the stores
DERIVED: Final = "derived.safetensors"
TRAIL: Final = "index.trail"  # in a model's file
FORMAT: Final = 1
KEPT: Final = 2  # snapshots: the one that is named, and the one before while the naming is under way
REMEMBERED: Final = 8  # words of a trail
Trail = tuple[str, ...]


class Recovery(NamedTuple):
    """How a runtime came by its vectors when it opened."""

    snapshot: str  # the one that was gone on from; empty if every account was encoded
    refused: str  # why the one that the stores name was not; empty if there was none, or it was
    changed: int  # accounts encoded, since their rows changed after the snapshot
    encoded: int  # vectors encoded in all, those that had aged included
    seconds: float


class Taken(NamedTuple):
    """A snapshot that fits."""

    name: str
    live: LiveIndex
    facts: Facts | None
    scheduled: list[tuple[str, int, int]]  # what `Ageing.restore` takes
    tick: int


class Saving:
    """What is written beside folding: a model, or a model and a snapshot of what it made."""

    def __init__(self, work: Callable[[], str], begun: Sequence[int]) -> None:
        """`work` writes and returns the snapshot's name, or an empty one; `begun` are rounds of marks."""
        self.begun = begun
        self._work = work
        self._thread: threading.Thread | None = None
        self.name = ""
        self.failure: Exception | None = None

    def start(self) -> None:
        """Write in a thread."""
        self._thread = threading.Thread(target=self.run, name="kithstream-save")
        self._thread.start()

    def run(self) -> None:
        """Write here."""
        try:
            self.name = self._work()
        except Exception as error:  # told where it is joined
            self.failure = error

    @property
    def under_way(self) -> bool:
        """True while the thread writes."""
        return self._thread is not None and self._thread.is_alive()

    def join(self) -> None:
        """Wait for the thread."""
        if self._thread is not None:
            self._thread.join()


class Snapshots:
    """The snapshots of one runtime. Everything but `Saving.run` wants the lock of the stores held."""

    def __init__(self, runtime: Path, engine: Engine) -> None:
        self.folder = runtime / FOLDER
        self.saved = self.refused = self.failed = 0  # since it was opened
        self._engine = engine

    @property
    def named(self) -> str:
        """The snapshot that the stores stand on, empty if there is none.

        A process that died while it named one leaves some on the one before, with all that changed since that.
        """
        named = [partition.changed.snapshot for partition in self._engine.partitions]
        return max(named) if all(named) else ""

    def changed(self) -> set[str]:
        """The accounts whose rows changed since."""
        return set().union(*(partition.changed.accounts for partition in self._engine.partitions))

    def discard(self) -> None:
        """Stand on none: what is encoded is not what a snapshot holds and the marks tell."""
        for partition in self._engine.partitions:
            partition.changed.discard()

    def load(self, model: Model, trail: Trail, config: IndexConfig, *, facts: bool) -> Taken | None:
        """Return the snapshot that the stores stand on, None if they stand on none; raises SnapshotRefused."""
        name = self.named
        if not name:
            return None
        try:
            index, metadata = LiveIndex.restore(self.folder, config, name)
            for key, expected in (
                ("form", FORMAT),
                ("schema", SCHEMA.hash),
                ("lineage", model.lineage),
                ("communities", self._communities()),
            ):
                if metadata.get(key) != expected:
                    raise SnapshotRefused(f"{key} is {metadata.get(key)!r}, expected {expected!r}")
            word, step = str(metadata["model"]), int(metadata["step"])
            if word not in trail or step > model.step:
                raise SnapshotRefused(
                    f"its vectors are of a model at step {step} that is no past one of the model at step {model.step}"
                )
            for partition, applied in zip(
                self._engine.partitions, json.loads(str(metadata["applied"])), strict=True
            ):
                if applied > partition.applied:
                    raise SnapshotRefused(
                        f"it is of offset {applied} of partition {partition.number}, the store of {partition.applied}"
                    )
            derived = checkpoint.read(self.folder / name / DERIVED, SCHEMA.hash)
            restored = Facts() if facts else None
            if restored is not None:
                restored.restore(derived)
            return Taken(name, index, restored, _scheduled(derived), int(metadata["tick"]))
        except (ValueError, KeyError, OSError) as error:
            raise SnapshotRefused(str(error)) from error

    def begin(self, chain: Candidates, trail: Trail, model: Path) -> tuple[Saving, Trail]:
        """Copy what a snapshot is made of; return what writes it, and the trail of the model from here on."""
        if chain.trainer is not None:
            trail = (*trail, secrets.token_hex(8))[-REMEMBERED:]
        save_model = None if chain.trainer is None else copied(chain, trail)
        metadata: dict[str, str | int] = {
            "form": FORMAT,
            "schema": SCHEMA.hash,
            "lineage": chain.model.lineage,
            "communities": self._communities(),
            "model": trail[-1],
            "step": chain.model.step,
            "tick": chain.tick,
            "applied": json.dumps([partition.applied for partition in self._engine.partitions]),
        }
        header, arrays, ageing = chain.model.header(), facts_of(chain), chain.vectors.ageing.capture()
        begun = [partition.changed.begin() for partition in self._engine.partitions]
        capture: Capture = chain.index.capture()

        def write() -> str:
            def beside(folder: Path) -> None:
                checkpoint.write(folder / DERIVED, header, {**arrays(), **_ageing(*ageing())})

            try:
                if save_model is not None:  # first: no snapshot is named whose model is not on the disk
                    save_model(model)
                return capture.write(self.folder, metadata, keep=KEPT, beside=beside).path.name
            finally:
                capture.release()

        return Saving(write, begun), trail

    def finish(self, saving: Saving) -> None:
        """Name what was written; what the disk refused is logged, any other failure raised."""
        if saving.failure is not None:
            if not isinstance(saving.failure, OSError):
                raise saving.failure
            self.failed += 1
            _log.error("nothing was saved: %s", saving.failure)
        elif saving.name:
            self.saved += 1
            for partition, begun in zip(self._engine.partitions, saving.begun, strict=True):
                partition.changed.name(begun, saving.name)
            for old in snapshot.snapshots(self.folder):
                if old.name != saving.name:  # it may name accounts that were deleted since
                    shutil.rmtree(old)

    def _communities(self) -> str:
        """The versions of communities that are read."""
        read = (slot.known.version if (slot := p.communities) else "" for p in self._engine.partitions)
        return ",".join(read)


def resume(chain: Candidates, taken: Taken, changed: Iterable[str], as_of: int) -> Encoded:
    """Bring a chain over a snapshot's index and facts to a time: encode what changed, and what has aged."""
    vectors, engine = chain.vectors, chain.engine
    vectors.ageing.restore(taken.scheduled)
    vectors.advance(taken.tick * TICK)
    if any(partition.deleted for partition in engine.partitions):

        def deleted(names: Iterable[str]) -> list[str]:
            return [name for name in names if name and engine.at(engine.route[name]).is_deleted(name)]

        gone = deleted(chain.index.ids())
        chain.index.delete(gone)
        vectors.ageing.forget(gone)
        if chain.whole is not None:
            chain.whole.facts.forget(deleted(chain.whole.facts.names))
    return chain.overtake(changed, as_of)


def copied(chain: Candidates, trail: Trail) -> Callable[[Path], None]:
    """Learn from what waits, and copy a chain's model, with what its trainer needs to go on; return what writes it."""
    chain.learn()
    model = chain.model
    header, arrays = model.header(), (chain.trainer or model).capture()
    words = np.frombuffer(json.dumps(trail).encode(), np.uint8)
    return lambda path: checkpoint.write(path, header, {**arrays(), TRAIL: words})


def trail_of(path: Path) -> Trail:
    """Return the trail of a model that was saved; raises CheckpointError."""
    found = checkpoint.one(path, TRAIL, SCHEMA.hash)
    return () if found is None else tuple(json.loads(found.tobytes()))


def facts_of(chain: Candidates) -> Callable[[], dict[str, Array]]:
    """Copy the facts of a chain; return what makes arrays of them."""
    return dict if chain.whole is None else chain.whole.facts.capture()


def _ageing(changed: dict[str, int], due: dict[str, int]) -> dict[str, Array]:
    names, ends = checkpoint.packed(due)
    return {
        "ageing.names": names,
        "ageing.ends": ends,
        "ageing.changed": np.fromiter((changed[name] for name in due), np.int64, len(due)),
        "ageing.due": np.fromiter(due.values(), np.int64, len(due)),
    }


def _scheduled(saved: Checkpoint) -> list[tuple[str, int, int]]:
    raw = saved.array("ageing.names", (-1,), np.uint8).tobytes()
    ends = saved.array("ageing.ends", (-1,), np.int64).tolist()
    names = [raw[a:b].decode() for a, b in pairwise([0, *ends])]
    changed = saved.array("ageing.changed", (len(names),), np.int64).tolist()
    due = saved.array("ageing.due", (len(names),), np.int64).tolist()
    return sorted(zip(names, changed, due, strict=True), key=lambda one: one[2])
