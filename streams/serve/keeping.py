"""What a runtime writes down beside folding: what was learned, snapshots of what it made, backups asked for."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from kithstream.streams import backup
from kithstream.streams.backup import MODEL, Backed, Moment
from kithstream.streams.config import Config
from kithstream.streams.engine.engine import Engine
from kithstream.streams.errors import StoreRefused
from kithstream.streams.serve.candidates import Candidates
from kithstream.streams.serve.snapshots import Saving, Snapshots, Trail, copied

_log = logging.getLogger(__name__)

LOOKING: Final = 1.0  # seconds between two looks for a request of a backup


class Keeping:
    """One thing is written at a time. All but `run`, `now` and `backup` want the lock of the stores held."""

    def __init__(self, path: Path, config: Config, engine: Engine, appending: threading.Lock) -> None:
        """`appending` is the lock of the logs."""
        backup.clean(path)
        self.snapshots = Snapshots(path, engine)
        self.trails: dict[str, Trail] = {}  # by lineage: which snapshots are of a model's own past
        self.unsaved = 0  # vectors encoded since the newest snapshot
        self._path = path
        self._config = config
        self._engine = engine
        self._appending = appending
        self._saving: Saving | None = None
        self._step = -1  # of the newest model on the disk
        self._model_at = self._snapshot_at = time.monotonic()
        self._looked = -math.inf  # monotonic: when somebody last looked for a request

    def opened(self, chain: Candidates) -> None:
        """Take note of the chain that was opened with what is on the disk."""
        self._step = chain.model.step

    def run(self, chain: Candidates, *, beside: bool, turning: bool, as_of: int) -> None:
        """Write what is due, in a thread if `beside`; nothing of a snapshot while another chain is being filled."""
        with chain.lock:
            if self._saving is not None:
                if self._saving.under_way:
                    return
                self.stop()
            saving = None if turning else self._begun(chain, as_of)
            if saving is None:
                return
            self._saving = saving
        if beside:
            saving.start()
            return
        saving.run()
        with chain.lock:
            self.stop()

    def now(self, chain: Candidates, as_of: int) -> None:
        """Write a snapshot, and what was learned; return when both are on the disk.

        Nothing is written of a model whose training was taken away: no file would be what made the vectors.
        """
        self.stop()
        if not self._named(chain):
            return
        self._saving = self._begin(chain, as_of)
        self._saving.run()
        self.stop()

    def close(self, chain: Candidates, *, turning: bool, as_of: int) -> None:
        """Write what is not written yet."""
        if self._config.index.snapshot_seconds > 0 and self.unsaved and not turning:
            self.now(chain, as_of)
        elif chain.trainer is not None:
            self.save_model(chain, self._path / MODEL)

    def stop(self) -> None:
        """Wait for what is being written, and take note of it."""
        saving, self._saving = self._saving, None
        if saving is not None:
            saving.join()
            self.snapshots.finish(saving)

    def discard(self) -> None:
        """Let go of the snapshot that the stores stand on: every account is encoded anew."""
        self.stop()
        self.snapshots.discard()

    def turned(self, vectors: int) -> None:
        """Take note that another chain takes over, with so many vectors: a snapshot of it is due at once."""
        self.discard()
        self._step, self._model_at, self._snapshot_at = -1, -math.inf, -math.inf
        self.unsaved += vectors

    def save_model(self, chain: Candidates, path: Path) -> None:
        """Write a model, with what its trainer needs to go on."""
        copied(chain, self._trail(chain))(path)

    def moment(self, chain: Candidates) -> tuple[Moment, Callable[[Path], None]]:
        """Hold what a backup is made of; return it, and what writes the model."""
        self.stop()
        with self._appending:
            moment = Moment(self._path, [partition.store for partition in self._engine.partitions])
        return moment, copied(chain, self._trail(chain))

    def backup(self, chain: Candidates, to: Path) -> Backed:
        """Copy the whole runtime as it stands, while publishing and folding go on. Raises StoreRefused, OSError."""
        with chain.lock:
            moment, model = self.moment(chain)
        return moment.write(to, model)

    def _named(self, chain: Candidates) -> bool:
        """True if there is a word for the model that makes the vectors."""
        return chain.trainer is not None or bool(self._trail(chain))

    def _trail(self, chain: Candidates) -> Trail:
        return self.trails.get(chain.model.lineage, ())

    def _begun(self, chain: Candidates, as_of: int) -> Saving | None:
        """Begin what is due first, if anything is."""
        now, config = time.monotonic(), self._config
        if now - self._looked >= LOOKING:
            self._looked = now
            if (asked := self._asked(chain)) is not None:
                return asked
        if (
            self.unsaved
            and self._named(chain)
            and _due(self._snapshot_at, config.index.snapshot_seconds, now)
        ):
            return self._begin(chain, as_of)
        learned = chain.trainer is not None and chain.model.step != self._step
        if not learned or not _due(self._model_at, config.model.save_seconds, now):
            return None
        write = copied(chain, self._trail(chain))
        self._step, self._model_at = chain.model.step, now
        return Saving(lambda: write(self._path / MODEL) or "", ())

    def _begin(self, chain: Candidates, as_of: int) -> Saving:
        if chain.vectors.dirty:  # a snapshot drops the marks of what it is taken to hold
            chain.flush(as_of, 0)
        model = chain.model
        saving, self.trails[model.lineage] = self.snapshots.begin(
            chain, self._trail(chain), self._path / MODEL
        )
        self.unsaved, self._step = 0, model.step
        self._model_at = self._snapshot_at = time.monotonic()
        return saving

    def _asked(self, chain: Candidates) -> Saving | None:
        """Begin the backup that somebody asked for, if it can be; tell them what becomes of it."""
        path = self._path
        try:
            wanted = backup.wanted(path)
        except StoreRefused as error:
            _log.error("%s", error)
            return None
        if wanted is None:
            return None
        moment, model = self.moment(chain)

        def write() -> str:
            try:
                done = moment.write(Path(wanted.to), model)
            except (StoreRefused, OSError) as error:
                _log.error("no backup to %s: %s", wanted.to, error)
                backup.reply(path, wanted.word, backup.Reply(error=str(error)))
            else:
                _log.info("backed up to %s: %d files, %d bytes", *done)
                backup.reply(path, wanted.word, backup.Reply(True, done.files, done.bytes))
            return ""

        backup.reply(path, wanted.word, backup.Reply())
        return Saving(write, ())


def _due(last: float, seconds: float, now: float) -> bool:
    return 0 < seconds <= now - last
