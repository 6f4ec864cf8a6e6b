"""The whole chain in one process: log, two stages, towers, index, answers. Durable, restartable, no broker.

>>> import kithstream, tempfile
>>> with kithstream.open(tempfile.mkdtemp()) as live:
...     token = live.publish([
...         {"signal": "follow", "actor": "ann", "target": "bob"},
...         {"signal": "follow", "actor": "cyd", "target": "bob"},
...     ])
...     [c.account for c in live.candidates("dan", 5, after=token).candidates]
['bob']
"""

from __future__ import annotations

import json
import logging
import math
import os
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple, Self

import msgspec

from kithstream.models.checkpoint import CheckpointError
from kithstream.streams import manifest
from kithstream.streams.backup import LAYOUT, MODEL, Backed
from kithstream.streams.communities import folder
from kithstream.streams.communities.known import KnownFor
from kithstream.streams.config import Config
from kithstream.streams.engine.actors import DeadLetter, Record
from kithstream.streams.engine.engine import Engine, Settled
from kithstream.streams.engine.log import Log
from kithstream.streams.errors import GapInLog, NotYet, StoreRefused, WrongLayout
from kithstream.streams.events import stamp
from kithstream.streams.events.stamp import EventLike, wall_clock
from kithstream.streams.load import CHUNK, Loaded, OnProgress, finish, load, next_row, unheard
from kithstream.streams.serve import tokens
from kithstream.streams.serve.answers import (
    BECAUSES,
    Answer,
    Explain,
    Explanation,
    Question,
    check,
    check_id,
)
from kithstream.streams.serve.candidates import Candidates
from kithstream.streams.serve.keeping import Keeping
from kithstream.streams.serve.lineages import Lineages, Wanted
from kithstream.streams.serve.opening import Opened, load_model, open_model, take_snapshot
from kithstream.streams.serve.served import Served
from kithstream.streams.serve.snapshots import Recovery, Snapshots, Taken, resume
from kithstream.streams.serve.vectors import beside, every_account, live_index
from kithstream.streams.serve.why import CONSIDERED
from kithstream.streams.sources import graph
from kithstream.streams.state.ledger import HOUR
from kithstream.streams.state.store import RocksStore

_log = logging.getLogger(__name__)

LOOKING: Final = 1.0  # seconds between two looks for another model to serve
FILLED: Final = 1024  # accounts that a round encodes for it
ALL: Final = 1 << 30  # no bound on what is encoded again: where nobody waits for an answer


class Pumped(NamedTuple):
    """What one round from log to index did."""

    records: int
    accepted: int
    dead: Sequence[DeadLetter]
    learned: int  # follows trained on
    upserted: int  # vectors
    appended: Sequence[int]  # append times of the records that became visible, microseconds
    times: Sequence[int]  # event times of the accepted records, microseconds
    folding: float  # seconds in the two stages
    encoding: float  # seconds in towers and index


class Turn(NamedTuple):
    """A change of lineage under way."""

    wanted: Wanted
    chain: Candidates
    waiting: list[str]  # accounts that have no vector of it yet


class _Layout(msgspec.Struct, frozen=True):
    partitions: int
    salt: str


class Embedded:
    """Publishes into its own log, folds it, answers from what it has folded.

    With `start()` a thread keeps folding; without, `pump()` does, and a question with a token calls it.
    """

    def __init__(self, path: Path, config: Config, *, clock: Callable[[], int] = wall_clock) -> None:
        """Open a directory; raises StoreRefused (GapInLog, WrongLayout) rather than lose anything."""
        path.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.config = config
        self.clock = clock
        layout = _layout(path, config.engine.partitions)
        self.partitions = layout.partitions
        self.lineages = Lineages(path)
        self.served = Served(config.serve.shadow_seconds)
        numbers = range(layout.partitions)
        with ExitStack() as undo:
            stores: list[RocksStore] = []
            for number in numbers:  # first, since they lock the directory against a second process
                stores.append(RocksStore(path / "state" / str(number), config.store))
                undo.callback(stores[-1].close)
            self._logs = [undo.enter_context(Log(path / "log" / str(number))) for number in numbers]
            versions, served = folder.served(path / folder.NAME, config.engine.communities)
            self.engine = Engine(stores, config.engine, salt=bytes.fromhex(layout.salt), versions=versions)
            self._check_offsets()
            if any(partition.unread is not None for partition in self.engine.partitions):
                self.engine.exchange()  # what is being filled goes on beside events
            else:
                self.engine.settle()
            if served is not None:
                self.engine.adopt(served)
            opened = open_model(path, config.model, self.lineages)
            undo.pop_all()
        began = time.perf_counter()
        finish(self.engine)
        self._appending = threading.Lock()
        self._keeping = Keeping(path, config, self.engine, self._appending)
        taken, refused = take_snapshot(self.snapshots, opened, config)
        self.chain = self._chain(opened, taken)
        self._turn: Turn | None = None  # of lineages
        self._looked = -math.inf  # monotonic: when somebody last looked for a request
        self._visible = [partition.applied for partition in self.engine.partitions]
        self._arrived = threading.Condition()
        self._thread: threading.Thread | None = None
        self._busy = False  # whether the round before found events
        self._rewriter = ThreadPoolExecutor(1, "kithstream-rewrite")
        self._rewriting: Future[int] | None = None
        self._failure: BaseException | None = None
        self._stopping = self._closed = False
        self._trimmed = 0  # hour since 1970
        self.on_pumped: Callable[[Pumped], None] | None = None
        self.chain.forget_deleted()
        self._keeping.opened(self.chain)
        self.recovery = self._recover(taken, refused, began)
        if config.index.background:
            self.chain.index.start()

    # -- publishing ------------------------------------------------------------------------------------------

    def publish(self, events: Iterable[EventLike]) -> str:
        """Append events to the log, all or none; return the token that stands for them.

        An event without `time` or `id` gets the present and a random one. Raises InvalidEvent.
        """
        now = self.clock()
        return self.append([self.checked(event, now) for event in events], now)

    def append(self, checked: Iterable[tuple[str, bytes]], now: int) -> str:
        """Append what `checked` returned at the same `now`; return the token that stands for it."""
        records: dict[int, list[Record]] = {}
        for actor, raw in checked:
            records.setdefault(self.engine.route[actor], []).append(Record(now, raw))
        with self._appending:
            self._raise_failure()
            ends = {number: self._logs[number].append(part) + len(part) for number, part in records.items()}
        with self._arrived:
            self._arrived.notify_all()
        return tokens.write(ends)

    def checked(self, event: EventLike, now: int) -> tuple[str, bytes]:
        """Return an event's actor and its record, stamped where `time` or `id` is absent; raises InvalidEvent."""
        return stamp.checked(event, now)

    # -- folding ---------------------------------------------------------------------------------------------

    def pump(self, limit: int | None = None, *, aged: int | None = None, gather: bool = False) -> Pumped:
        """Fold what the logs hold beyond the state, up to `limit` records each, and make it visible.

        Beside what changed, up to `aged` vectors that only grew old are encoded again; by default few, so that
        new events do not wait for them (`model.aged_rows`). To `gather` is to encode, while events come, no more of
        those than of what changed, and to let follows wait for one another, while round after round finds events,
        before the model learns from them: a step costs about as much for one as for many.
        """
        limit = limit or self.config.engine.batch_events
        chain, engine = self.chain, self.engine
        records = accepted = 0
        dead: list[DeadLetter] = []
        appended: list[int] = []
        times: list[int] = []
        asked, busy = self._asked(), self._busy
        started = time.perf_counter()
        with chain.lock:
            if asked is not None:
                self._begin_turn(*asked)
            for number, log in enumerate(self._logs):
                first = engine.partitions[number].applied
                batch = log.read(first, limit)
                if not batch:
                    continue
                acted = engine.apply(number, batch, first, chain.before)
                for one in self._chains:
                    one.acted(acted)
                records += len(batch)
                accepted += acted.accepted
                dead += acted.dead
                appended += [record.appended for record in batch]
                times += acted.times
            if chain.full or not (gather and busy and records):
                chain.learn()
            self._busy = records > 0
            self._settled(engine.exchange())
            self._work()
            chain.forget(left := engine.take_left())
        folded = time.perf_counter()
        chain.give_way()  # the state is whole; its vectors are yet to come, and no token stands for them
        with chain.lock:
            most_aged = self.config.model.aged_rows if aged is None else aged
            if gather and records:  # ageing goes on, at no more than what the events take
                most_aged = beside(len(chain.vectors.dirty), most_aged)
            encoded = chain.flush(self.as_of, most_aged)
            self._keeping.unsaved += encoded.upserted + encoded.deleted
            self._go_on_turning(left)
            done = time.perf_counter()
            with self._arrived:
                self._visible = [partition.applied for partition in engine.partitions]
                self._arrived.notify_all()
        pumped = Pumped(
            records,
            accepted,
            dead,
            chain.take_learned(),
            encoded.upserted,
            appended,
            times,
            folded - started,
            done - folded,
        )
        if self.on_pumped is not None:
            self.on_pumped(pumped)
        self._trim()
        self._rewrite()
        self._keeping.run(
            self.chain, beside=self._thread is not None, turning=self._turn is not None, as_of=self.as_of
        )
        return pumped

    def _rewrite(self) -> None:
        """Rewrite the files that may still hold deleted accounts: beside folding, where that has a thread."""
        if self._thread is None:
            self.engine.compact()
            return
        if self._rewriting is not None:
            if not self._rewriting.done():
                return
            done, self._rewriting = self._rewriting, None
            done.result()  # raises what went wrong
        if any(partition.uncompacted for partition in self.engine.partitions):
            self._rewriting = self._rewriter.submit(self.engine.compact)

    def _work(self) -> None:
        """A bounded piece of background work; when another version of communities is read, everyone is read anew."""
        engine = self.engine
        read = engine.communities
        if engine.work():
            self._settled(engine.exchange())
        if engine.communities != read:
            self._reread()
            held = {slot.known.version for partition in engine.partitions for slot in partition.slots}
            folder.forget_others(self.path / folder.NAME, held)

    def _settle(self) -> None:
        """Bring the state to rest, with all that waits in the background."""
        read = self.engine.communities
        self._settled(self.engine.settle())
        if self.engine.communities != read:
            self._reread()

    def _reread(self) -> None:
        """Encode everybody anew, since everybody's rows may have changed."""
        self._keeping.discard()
        for chain in self._chains:
            self._keeping.unsaved += chain.reread(self.as_of).upserted

    @property
    def _chains(self) -> list[Candidates]:
        """The chain that answers, and the one that is being filled."""
        return [self.chain] if self._turn is None else [self.chain, self._turn.chain]

    def _settled(self, settled: Settled) -> None:
        for chain in self._chains:
            chain.settled(settled)

    # -- lineages --------------------------------------------------------------------------------------------

    def publish_model(self, file: str | Path) -> str:
        """Serve a checkpoint's model from now on, without a stop; return its lineage, named by the file's content.

        Every account is encoded with it in the background, by `pump`, beside the model that answers; then it answers,
        and no answer mixes the two. Raises CheckpointError, and StoreRefused where it cannot be.
        """
        self._refuse_pinned()
        wanted = self.lineages.publish(Path(file))
        self._wake()
        return wanted.lineage

    def roll_back(self, lineage: str = "") -> str:
        """Serve in the same way the lineage that was served before, or any that was; return it.

        It goes on with what it had learned when the other took its place. Raises StoreRefused.
        """
        self._refuse_pinned()
        wanted = self.lineages.point(lineage)
        self._wake()
        return wanted.lineage

    def turn(self) -> None:
        """Pump until what was published last is served."""
        self._wake()
        while self._turn is not None or self.lineages.wanted is not None:
            self.pump()

    def _wake(self) -> None:
        self._raise_failure()
        self._looked = -math.inf
        with self._arrived:
            self._arrived.notify_all()

    def _refuse_pinned(self) -> None:
        if self.config.model.path:
            raise StoreRefused(f"model.path is {self.config.model.path!r}: the settings say what is served")

    def _asked(self) -> tuple[Wanted, Opened] | None:
        """Look for a request, and load what it asks for; while a turn is under way requests wait."""
        if self._turn is not None or self.config.model.path or time.monotonic() - self._looked < LOOKING:
            return None
        self._looked = time.monotonic()
        wanted = self.lineages.wanted
        if wanted is None:
            return None
        try:
            opened = load_model(self.lineages.file(wanted.lineage), self.config.model, wanted.lineage)
        except (CheckpointError, OSError) as error:
            _log.error("lineage %s cannot be served: %s", wanted.lineage, error)
            self.lineages.refuse(wanted)
            return None
        return wanted, opened

    def _begin_turn(self, wanted: Wanted, opened: Opened) -> None:
        chain = self._chain(opened, lock=self.chain.lock)
        chain.forget_deleted()
        self._turn = Turn(wanted, chain, sorted(every_account(self.engine)))

    def _go_on_turning(self, left: Sequence[str]) -> None:
        """Encode some accounts with the other model; when it has all of them it answers."""
        turn = self._turn
        if turn is None:
            return
        turn.chain.forget(left)
        turn.chain.flush(self.as_of, self.config.model.aged_rows)
        turn.chain.fill([turn.waiting.pop() for _ in range(min(FILLED, len(turn.waiting)))], self.as_of)
        if turn.waiting:
            return
        former = self.chain
        if self.config.index.background:
            turn.chain.index.start()
        self._keeping.turned(len(turn.chain.index))
        self._keeping.save_model(former, self.lineages.file(former.model.lineage))
        self.lineages.take(turn.wanted, former.model.lineage)
        self.chain, self._turn = (
            turn.chain,
            None,
        )  # questions under way end with the chain that they began with
        former.index.close()

    def communities(self, path: str | Path) -> str:
        """Adopt a version of communities from a file, which is copied into the directory; return the version.

        It is filled in the background, by `pump`, and read from then on in place of the one before. Raises
        StoreRefused for a file that holds none.
        """
        self._raise_failure()
        known = KnownFor.load(Path(path))
        folder.keep(self.path / folder.NAME, known)
        with self.chain.lock:
            self.engine.adopt(known)
        with self._arrived:
            self._arrived.notify_all()
        return known.version

    def fill(self) -> None:
        """Pump until the version of communities that was adopted last is read."""
        while any(partition.unread is not None for partition in self.engine.partitions):
            self.pump()

    def _trim(self) -> None:
        """Once an hour, let go of what the log holds beyond its retention and the state has folded."""
        hour = self.as_of // HOUR
        if hour == self._trimmed:
            return
        self._trimmed = hour
        oldest = self.as_of - int(self.config.engine.retention_hours * HOUR)
        with self._appending:
            for log, partition in zip(self._logs, self.engine.partitions, strict=True):
                log.roll(self.as_of)
                log.drop_before(partition.applied, oldest)

    @property
    def as_of(self) -> int:
        """The time answers are computed at: the clock's, in microseconds."""
        return self.clock()

    @property
    def behind(self) -> int:
        """Records that are published and not visible yet."""
        return sum(log.end - seen for log, seen in zip(self._logs, self._visible, strict=True))

    @property
    def end(self) -> str:
        """The token of everything published so far."""
        return tokens.write({number: log.end for number, log in enumerate(self._logs)})

    def includes(self, after: str) -> bool:
        """True if an answer for this token need not wait; raises ValueError for a bad one."""
        return self._includes(tokens.read(after, self.partitions))

    def wait(self, after: str, *, deadline: float | None = None) -> None:
        """Return when the state includes a token; raises NotYet when the deadline (seconds) passes first."""
        self._wait(tokens.read(after, self.partitions), deadline)

    def catch_up(self) -> int:
        """Pump until everything published is visible; return the number of records."""
        total = 0
        while self.behind or self.engine.waiting() or self.engine.working:
            total += self.pump(aged=ALL).records
        return total

    def load(
        self,
        file: str | Path,
        *,
        form: str | None = None,
        microseconds: int = 1,
        default_time: int = 0,
        chunk: int = CHUNK,
        on_progress: OnProgress = unheard,
    ) -> Loaded:
        """Load a follow graph in bulk, as `streams.load` says; nobody is answered meanwhile.

        `form` is parquet, csv or jsonl where the file's ending does not say; `microseconds` is the unit of
        its times, `chunk` the edges held at once. A broken load of the same file is gone on with, a finished
        one is not done again. Nothing is learned. The log does not hold these follows: a state restored from
        an older checkpoint wants them loaded again. Raises ValueError (BadRow) for a file that breaks off.
        """
        self._raise_failure()
        source = f"{graph.fingerprint(file).hex()} {microseconds} {default_time}"
        with self.chain.lock:
            self._settle()
            self._keeping.stop()
            first = next_row(self.engine, source)
            batches = graph.read_columns(
                file, first, microseconds=microseconds, default_time=default_time, form=form
            )
            try:
                return load(
                    self.engine,
                    batches,
                    now=self.clock(),
                    source=source,
                    chunk=chunk,
                    on_progress=on_progress,
                )
            finally:
                finish(self.engine)  # the rows of what a file gave before it broke
                self._reread()

    # -- answering -------------------------------------------------------------------------------------------

    def candidates(
        self,
        account: str,
        k: int = 20,
        *,
        after: str = "",
        exclude: Sequence[str] = (),
        allow: Sequence[str] | None = None,
        languages: Sequence[str] = (),
        reasons: int = 20,
        explain: Explain = "short",
        deadline: float | None = None,
    ) -> Answer:
        """Answer whom an account should follow, from state that includes the token `after`.

        With `explain="full"` the first candidates also tell what the account did that carries them.

        Raises NotYet when the deadline (seconds) passes first, Unanswerable for a deleted or deactivated
        account, ValueError for a bad k, id or token.
        """
        question = Question(account, k, after, exclude, allow, languages, reasons, explain=explain)
        return self.answer(question, deadline=deadline)

    def answer(self, question: Question, *, deadline: float | None = None) -> Answer:
        """`candidates`, for a question that is already made."""
        check(question)
        self._wait(tokens.read(question.after, self.partitions), deadline)
        visible = self._visible
        as_of = self.as_of
        chain = self.chain
        ranked = chain.rank(question, as_of)
        return Answer(
            account=question.account,
            candidates=ranked.candidates,
            as_of=as_of,
            model=chain.model.lineage,
            step=ranked.step,
            tick=ranked.tick,
            token=tokens.write(dict(enumerate(visible))),
            plan=ranked.plan,
            short=ranked.short,
        )

    def why(
        self,
        account: str,
        candidate: str,
        *,
        after: str = "",
        most: int = BECAUSES,
        deadline: float | None = None,
    ) -> Explanation:
        """Explain why an account is shown a candidate, or that it is not; with at most `most` reasons.

        Raises NotYet when the deadline (seconds) passes first, Unanswerable for a deleted or deactivated asking
        account, ValueError for a bad id, token or `most`.
        """
        check_id("account", account)
        check_id("candidate", candidate)
        if not 0 <= most <= CONSIDERED:
            raise ValueError(f"most is {most}, expected 0 to {CONSIDERED}")
        self._wait(tokens.read(after, self.partitions), deadline)
        visible = self._visible
        as_of = self.as_of
        chain = self.chain
        found = chain.why(account, candidate, as_of, most)
        standing = found.standing
        return Explanation(
            account=account,
            candidate=candidate,
            shown=standing is not None,
            hidden=found.hidden,
            rank=None if standing is None else standing.rank,
            score=None if standing is None else standing.score,
            because=() if standing is None else standing.because,
            considered=0 if standing is None else found.considered,
            as_of=as_of,
            model=chain.model.lineage,
            step=found.step,
            tick=found.tick,
            token=tokens.write(dict(enumerate(visible))),
        )

    def _wait(self, ends: Mapping[int, int], deadline: float | None) -> None:
        """Return when everything below `ends` is visible."""
        self._raise_failure()
        if self._includes(ends):
            return
        for number, end in ends.items():
            if end > self._logs[number].end:
                raise NotYet(f"partition {number} ends at {self._logs[number].end}, the token is of {end}")
        if self._thread is None:
            while not self._includes(ends):
                self.pump()
            return
        seconds = self.config.serve.deadline_ms / 1000 if deadline is None else deadline
        with self._arrived:
            if not self._arrived.wait_for(lambda: self._includes(ends) or self._failure is not None, seconds):
                raise NotYet(f"the state did not include the token within {seconds:g} s")
        self._raise_failure()

    def _includes(self, ends: Mapping[int, int]) -> bool:
        visible = self._visible
        return all(visible[number] >= end for number, end in ends.items())

    # -- living ----------------------------------------------------------------------------------------------

    def start(self) -> Self:
        """Fold in a thread from now on."""
        if self._thread is None:
            self._stopping = False
            self._thread = threading.Thread(target=self._run, name="kithstream-fold", daemon=True)
            self._thread.start()
        return self

    def _run(self) -> None:
        try:
            while not self._stopping:
                pumped = self.pump(gather=True)
                self.chain.give_way()
                if pumped.records or self.engine.working or self._turn is not None:
                    continue
                waits = self.engine.working
                pause = 0.01 if pumped.upserted or waits else 1.0
                with self._arrived:
                    # Without events the vectors still age: some at a time while some are due.
                    self._arrived.wait_for(lambda: self._stopping or self.behind > 0, pause)
        except BaseException as failure:
            self._failure = failure
            with self._arrived:
                self._arrived.notify_all()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise RuntimeError("folding has stopped; see the cause") from self._failure

    @property
    def failed(self) -> bool:
        """True if the folding thread died: nothing new becomes visible, and every call raises its cause."""
        return self._failure is not None

    def save_model(self, path: Path | None = None) -> Path:
        """Write towers, id vectors and training state as one checkpoint; return its path."""
        path = path or self.path / MODEL
        with self.chain.lock:
            self._keeping.save_model(self.chain, path)
        return path

    def save(self) -> None:
        """Write a snapshot of what was derived, and what was learned; return when both are on the disk.

        A runtime that folds does this by itself (`index.snapshot_seconds`, `model.save_seconds`), and when it is
        closed. What a disk refuses is logged and tried again.
        """
        self._raise_failure()
        with self.chain.lock:
            if self._turn is None:
                self._keeping.now(self.chain, self.as_of)

    def backup(self, to: Path) -> Backed:
        """Copy the whole runtime as it stands, log included, to where nothing is; `backup.restore` is the way back.

        Publishing and folding go on while it is written. Raises StoreRefused, OSError.
        """
        self._raise_failure()
        return self._keeping.backup(self.chain, to)

    @property
    def snapshots(self) -> Snapshots:
        """The snapshots of what was derived."""
        return self._keeping.snapshots

    def checkpoint(self, path: Path) -> None:
        """Write a consistent copy of all state into a new directory: stores, layout, model; not the log."""
        with manifest.aside(path) as aside:
            (aside / "state").mkdir(parents=True)
            with self.chain.lock:
                self._settled(self.engine.settle())
                left = self.engine.take_left()
                for chain in self._chains:
                    chain.forget(left)  # the model's file is not to name them
            self.save_model(aside / MODEL)
            with self.chain.lock:
                self._settle()
                for number, partition in enumerate(self.engine.partitions):
                    partition.store.checkpoint(aside / "state" / str(number))
                if (self.path / folder.NAME).exists():
                    shutil.copytree(self.path / folder.NAME, aside / folder.NAME)
            shutil.copy(self.path / LAYOUT, aside / LAYOUT)
            manifest.write(aside, {})

    def close(self) -> None:
        """Stop the thread, save the model, close the files. What is published and not folded waits in the log."""
        if self._closed:
            return
        self._closed = self._stopping = True
        if self._thread is not None:
            with self._arrived:
                self._arrived.notify_all()
            self._thread.join()
            self._thread = None
        self._keeping.stop()
        for chain in self._chains:
            chain.index.close()
        try:
            self._rewriter.shutdown()
            if not self.failed:
                self._keeping.close(self.chain, turning=self._turn is not None, as_of=self.as_of)
                if self._rewriting is not None:
                    self._rewriting.result()
                self.engine.compact()
        finally:
            self.engine.close()
            for log in self._logs:
                log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- opening ---------------------------------------------------------------------------------------------

    def _check_offsets(self) -> None:
        for partition, log in zip(self.engine.partitions, self._logs, strict=True):
            if partition.applied < log.first:
                raise GapInLog(
                    f"partition {partition.number}: the state ends at offset {partition.applied}, the log begins at "
                    f"{log.first}; restore a newer checkpoint"
                )
            if partition.applied > log.end:
                raise StoreRefused(
                    f"partition {partition.number}: the state ends at offset {partition.applied}, the log at "
                    f"{log.end}; the log has lost records"
                )

    def _recover(self, taken: Taken | None, refused: str, began: float) -> Recovery:
        """Fill the index: over a snapshot with what it lacks, else with every account."""
        changed: set[str] = set()
        if taken is not None:
            changed = self.snapshots.changed()
            encoded = resume(self.chain, taken, changed, self.as_of)
        else:
            encoded = self.chain.rebuild(self.as_of)
        self._keeping.unsaved = encoded.upserted + encoded.deleted
        name = "" if taken is None else taken.name
        return Recovery(name, refused, len(changed), encoded.upserted, time.perf_counter() - began)

    def _chain(
        self, opened: Opened, taken: Taken | None = None, *, lock: threading.Lock | None = None
    ) -> Candidates:
        model, trainer, trail = opened
        self._keeping.trails[model.lineage] = trail
        index = live_index(model, self.config.index) if taken is None else taken.live
        facts = None if taken is None else taken.facts
        return Candidates(
            self.engine,
            model,
            trainer,
            index,
            self.config.model,
            self.config.ranking,
            lock=lock,
            served=self.served,
            facts=facts,
        )


def _layout(path: Path, partitions: int) -> _Layout:
    """Read what the directory was made with, or make it."""
    file = path / LAYOUT
    if file.exists():
        try:
            layout = msgspec.json.decode(file.read_bytes(), type=_Layout)
        except msgspec.DecodeError as error:
            raise WrongLayout(f"{file}: {error}") from error
        if layout.partitions != partitions:
            raise WrongLayout(f"{path} holds {layout.partitions} partitions, the settings say {partitions}")
        return layout
    layout = _Layout(partitions, secrets.token_hex(16))
    temporary = file.with_suffix(".writing")
    temporary.write_text(json.dumps(msgspec.to_builtins(layout)))
    os.replace(temporary, file)
    return layout


def open(
    path: str | Path,
    *,
    config: Config | None = None,
    clock: Callable[[], int] = wall_clock,
    start: bool = True,
) -> Embedded:
    """Open the embedded runtime in a directory, which is made if it is not there."""
    live = Embedded(Path(path), config or Config(), clock=clock)
    return live.start() if start else live


def restore(checkpoint: Path, path: Path) -> None:
    """Replace the state under `path` by a checkpoint; its log stays and is replayed when it is opened.

    Raises StoreRefused, naming the file, for a checkpoint that is not as it was written; then nothing was replaced.
    """
    if not (checkpoint / LAYOUT).exists():
        raise StoreRefused(f"{checkpoint} is no checkpoint: {LAYOUT} is missing")
    path.mkdir(parents=True, exist_ok=True)
    aside = path / "state.writing"
    shutil.rmtree(aside, ignore_errors=True)
    try:
        manifest.bring(checkpoint, aside)
        shutil.rmtree(path / "state", ignore_errors=True)
        os.rename(aside / "state", path / "state")
        if (aside / folder.NAME).exists():
            shutil.copytree(aside / folder.NAME, path / folder.NAME, dirs_exist_ok=True)
        for name in (LAYOUT, MODEL):
            if (aside / name).exists():
                os.replace(aside / name, path / name)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
