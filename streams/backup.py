"""Copies of a whole embedded runtime, whoever holds it, and the way back.

    RUNTIME/backups/wanted.json     a request to whoever runs the runtime: where to, and by which word
    RUNTIME/backups/WORD.json       the reply, which whoever asked takes away
    RUNTIME/backups/moment-.../     stores and snapshot while they are copied, as links

A backup holds the stores of one moment, the log (so also what was published and is not folded), the model of that
moment, the snapshot of the index that the stores stand on, versions of communities and models that were published.
A manifest names every file with its checksum.
"""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Final, NamedTuple

import msgspec

from kithstream.streams import manifest
from kithstream.streams.communities import folder as communities
from kithstream.streams.config import StoreConfig
from kithstream.streams.engine.changed import NAMED
from kithstream.streams.engine.log import segments
from kithstream.streams.engine.partition import APPLIED
from kithstream.streams.errors import StoreRefused
from kithstream.streams.serve import lineages, snapshots
from kithstream.streams.state.protocol import Column, Store
from kithstream.streams.state.store import RocksStore

FOLDER: Final = "backups"
LAYOUT: Final = "layout.json"
MODEL: Final = "model.safetensors"
_WANTED: Final = "wanted.json"
_MOMENT: Final = "moment-"
ACCEPTED: Final = 30.0  # seconds in which whoever holds the stores must take a request up
LOOKING: Final = 0.05  # seconds between two looks for a reply


class Wanted(msgspec.Struct, frozen=True):
    """A request."""

    to: str
    word: str


class Reply(msgspec.Struct, frozen=True):
    """What became of it: begun, or done with what was written, or why not."""

    done: bool = False
    files: int = 0
    bytes: int = 0
    error: str = ""


class Backed(NamedTuple):
    """A backup that is whole on the disk."""

    path: Path
    files: int
    bytes: int


class Piece(NamedTuple):
    """A file of the log, held open so that it can be copied whatever becomes of its name."""

    name: str  # relative to the runtime
    file: IO[bytes]
    bytes: int  # of it that belong to the moment


class Moment:
    """What a backup is made of, held as it stood at one moment; nobody writes to the stores while it is taken."""

    def __init__(self, runtime: Path, stores: Sequence[Store]) -> None:
        self.runtime = runtime
        self._held = ExitStack()
        (runtime / FOLDER).mkdir(exist_ok=True)
        self._links = Path(tempfile.mkdtemp(prefix=_MOMENT, dir=runtime / FOLDER))
        self._held.callback(shutil.rmtree, self._links, ignore_errors=True)
        (self._links / "state").mkdir()
        self._about: dict[str, str] = {}
        self._pieces: list[Piece] = []
        try:
            for number, store in enumerate(stores):
                store.checkpoint(self._links / "state" / str(number))
                applied, named = store.get(Column.META, [APPLIED, NAMED])
                self._about[f"partition {number}"] = f"offset {int.from_bytes(applied or b'', 'big')}"
                snapshot = Path(snapshots.FOLDER) / (named or b"").decode()
                if named and (runtime / snapshot).is_dir() and not (self._links / snapshot).exists():
                    shutil.copytree(runtime / snapshot, self._links / snapshot, copy_function=os.link)
                for path in segments(runtime / "log" / str(number)):
                    file = self._held.enter_context(path.open("rb"))
                    size = os.fstat(file.fileno()).st_size
                    self._pieces.append(Piece(path.relative_to(runtime).as_posix(), file, size))
        except BaseException:
            self._held.close()
            raise

    def write(self, to: Path, model: Callable[[Path], None] | None = None) -> Backed:
        """Copy it to where nothing is, or an empty directory; `model` writes the model in place of the runtime's file.

        Raises StoreRefused, OSError.
        """
        with self._held:
            _refuse_used(to)
            with manifest.aside(to) as aside:
                shutil.copytree(self._links, aside)
                for name, file, size in self._pieces:
                    (aside / name).parent.mkdir(parents=True, exist_ok=True)
                    if manifest.copied(file, aside / name, size).bytes != size:
                        raise StoreRefused(f"{self.runtime}: {name} became shorter than {size} bytes")
                for name in (LAYOUT, *(() if model else (MODEL,))):
                    if (self.runtime / name).exists():
                        shutil.copyfile(self.runtime / name, aside / name)
                if model is not None:
                    model(aside / MODEL)
                for name in (communities.NAME, lineages.NAME):
                    if (self.runtime / name).is_dir():
                        shutil.copytree(self.runtime / name, aside / name)
                files = manifest.write(aside, self._about)
        return Backed(to, len(files), sum(file.bytes for file in files.values()))


def backup(runtime: Path, to: Path, *, seconds: float = ACCEPTED) -> Backed:
    """Copy a runtime: by whoever runs it, or here if nobody does.

    Raises StoreRefused if it cannot be read, or nobody takes the request up in `seconds`; OSError.
    """
    _refuse_used(to)
    numbers = sorted(
        int(path.name) for path in (runtime / "state").glob("*") if path.is_dir() and path.name.isdecimal()
    )
    if not numbers or not (runtime / LAYOUT).is_file():
        raise StoreRefused(f"{runtime} holds no runtime: {LAYOUT} or state/0 is missing")
    with ExitStack() as stack:
        stores: list[RocksStore] = []
        try:
            for number in numbers:
                stores.append(RocksStore(runtime / "state" / str(number), StoreConfig()))
                stack.callback(stores[-1].close)
        except StoreRefused as error:
            held = error
        else:
            clean(runtime)
            return Moment(runtime, stores).write(to)
    return _asked(runtime, to, seconds, held)


def restore(source: Path, runtime: Path) -> manifest.Manifest:
    """Bring a backup to where no runtime is; every byte is checked. Raises StoreRefused naming the file, OSError."""
    _refuse_used(runtime)
    found = manifest.read(source)
    if LAYOUT not in found.files:
        raise StoreRefused(f"{source} is no backup of a runtime: it names no {LAYOUT}")
    with manifest.aside(runtime) as aside:
        manifest.copy(source, aside)
    return found


def wanted(runtime: Path) -> Wanted | None:
    """Take up the request that waits, if any."""
    file = runtime / FOLDER / _WANTED
    try:
        found = msgspec.json.decode(file.read_bytes(), type=Wanted)
    except FileNotFoundError:
        return None
    except msgspec.DecodeError as error:
        file.unlink(missing_ok=True)
        raise StoreRefused(f"{file}: {error}") from error
    file.unlink(missing_ok=True)
    return found


def reply(runtime: Path, word: str, said: Reply) -> None:
    """Tell whoever asked."""
    if word.isalnum():  # the word is part of a file's name
        _put(runtime / FOLDER / f"{word}.json", said)


def _asked(runtime: Path, to: Path, seconds: float, held: StoreRefused) -> Backed:
    """Have the backup made by whoever holds the stores."""
    word = secrets.token_hex(8)
    folder = runtime / FOLDER
    folder.mkdir(exist_ok=True)
    answer, request = folder / f"{word}.json", folder / _WANTED
    _put(request, Wanted(str(to.absolute()), word))
    end = time.monotonic() + seconds
    try:
        while True:
            try:
                said = msgspec.json.decode(answer.read_bytes(), type=Reply)
            except FileNotFoundError:
                said = None
            if said is not None and said.error:
                raise StoreRefused(said.error)
            if said is not None and said.done:
                return Backed(to, said.files, said.bytes)
            if said is None and time.monotonic() > end:
                raise StoreRefused(f"{held}; and whoever holds it did not answer in {seconds:g} s") from held
            time.sleep(LOOKING)
    finally:
        answer.unlink(missing_ok=True)
        if said is None:
            request.unlink(missing_ok=True)


def _put(file: Path, content: msgspec.Struct) -> None:
    aside = file.with_name(f"{file.name}.{os.getpid()}")
    aside.write_bytes(msgspec.json.encode(content))
    os.replace(aside, file)


def clean(runtime: Path) -> None:
    """Remove what a backup left that was killed; for whoever holds the stores."""
    for left in (runtime / FOLDER).glob(f"{_MOMENT}*"):
        shutil.rmtree(left, ignore_errors=True)


def _refuse_used(path: Path) -> None:
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise StoreRefused(f"{path} is not empty: nothing is written over")
