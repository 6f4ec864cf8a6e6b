"""From changed rows to vectors in the index, and from a question to an answer. One writer, many readers."""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Final, NamedTuple

from kithstream.index.live import LiveIndex
from kithstream.models.ages import TICK
from kithstream.models.encode import encode_consumers
from kithstream.models.features import ConsumerFeatures, Rows
from kithstream.models.model import Model, Producers
from kithstream.models.ranker import Ranked as RankedExample
from kithstream.models.train import Examples, OnlineTrainer
from kithstream.streams.config import ModelConfig, RankingConfig
from kithstream.streams.engine.engine import Acted, Change, Engine, Settled
from kithstream.streams.events.wire import Event
from kithstream.streams.learning import Captured, came_about, capture, join
from kithstream.streams.serve.answers import Question
from kithstream.streams.serve.exclusions import Exclusions
from kithstream.streams.serve.facts import Facts
from kithstream.streams.serve.lessons import Lessons
from kithstream.streams.serve.ranking import NO_CANDIDATE, Ask, Asking, Ranked, Ranker
from kithstream.streams.serve.ranking import Encoded as Asker
from kithstream.streams.serve.served import Served
from kithstream.streams.serve.together import Together
from kithstream.streams.serve.vectors import PART, Encoded, Vectors, every_account
from kithstream.streams.serve.whole import Whole, neighbours
from kithstream.streams.serve.why import Allowed, Standing
from kithstream.streams.state.ledger import DAY
from kithstream.streams.state.reader import Glance

GIVEN_WAY: Final = 0.0005  # seconds
LINKED: Final = 4096  # accounts whose neighbours are read at a time
CHANGES: Final = 4096  # that wait with captured follows, about, at most


class Why(NamedTuple):
    """Where a candidate stands, or why it stands nowhere."""

    standing: Standing | None
    hidden: str | None
    considered: int  # deeds
    step: int
    tick: int


class Candidates:
    """The derived half: reader, towers, index, exclusions. Everything here can be made again from the stores."""

    def __init__(
        self,
        engine: Engine,
        model: Model,
        trainer: OnlineTrainer | None,
        index: LiveIndex,
        config: ModelConfig,
        ranking: RankingConfig,
        *,
        lock: threading.Lock | None = None,
        served: Served | None = None,
        facts: Facts | None = None,
    ) -> None:
        """`lock` is that of another chain over the same engine, `facts` what belongs to an index that is not empty.

        `served` takes note of answers.
        """
        self.engine = engine
        self.model = model
        self.trainer = trainer
        self.index = index
        # Over stores, caches, model: held for a batch, or for the rows of those that ask.
        self.lock = lock or threading.Lock()
        self._waiting: set[int] = set()  # threads with a question
        self.exclusions = Exclusions(engine, engine.config.row_cache, used_to_follow=ranking.used_to_follow)
        self.whole: Whole | None = None  # facts, nominators and the learned score
        if ranking.ranker:
            self.whole = Whole(facts or Facts(), ranking)
        self._lessons = Lessons(ranking, config.seed)
        told = None if self.whole is None else self.whole.facts
        self.vectors = Vectors(engine, model, config, _IndexSink(index, trainer, told))
        self._config = config
        self._reader = self.vectors.reader
        self._ranker = Ranker(
            engine, self._reader, self.exclusions, model, index, ranking, self.whole, served
        )
        self._together = Together(self.reading, self._read_each)
        self._changes: list[Change] = []  # since the first of the captured
        self._captured: list[Captured] = []
        self._learned = 0  # follows trained on, not told yet
        self._swept = 0  # day of the last sweep

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Hold the lock for a question; `give_way` lets those in that wait here."""
        me = threading.get_ident()
        self._waiting.add(me)
        try:
            with self.lock:
                self._waiting.discard(me)
                yield
        finally:
            self._waiting.discard(me)

    def give_way(self) -> None:
        """Between two rounds, let waiting questions go first: a lock alone favours the thread that just held it."""
        if self._waiting:
            time.sleep(GIVEN_WAY)

    # -- what happened ---------------------------------------------------------------------------------------

    def before(self, events: Sequence[Event]) -> None:
        """Capture what the accounts that follow somebody look like before they do."""
        if self.trainer is None:
            return
        captured = capture(self._reader, self.model.ids, events, range(len(events)))
        if captured is not None:
            follows = [event for event in events if event.signal == "follow"]
            self._captured.append(captured._replace(looked=self._looked(follows, captured)))

    def _looked(self, follows: Sequence[Event], captured: Captured) -> list[RankedExample | None]:
        """For some of the follows, everybody who would have been ranked before it; None for the others."""
        looked: list[RankedExample | None] = [None] * len(follows)
        if self.whole is not None:
            chosen = self._lessons.among((event.id, event.time) for event in follows)
            if not chosen:
                return looked
            model, features = self.model, captured.consumers
            vectors = encode_consumers(
                model.tower, model.ids.tables, type(features)._make(part[chosen] for part in features)
            )
            for place, at in enumerate(chosen):
                one = Asker(captured.rows.one(at), vectors[place : place + 1], model.step)
                looked[at] = self._ranker.example(one, follows[at].target, follows[at].time)
        return looked

    def acted(self, acted: Acted) -> None:
        """Take note of what the actors' stage did."""
        self._touch(acted.touched)
        self.exclusions.note(acted.changes)
        if self._captured:
            self._changes += acted.changes

    @property
    def captured(self) -> int:
        """Follows that wait to be trained on."""
        return sum(len(batch.actors) for batch in self._captured)

    @property
    def full(self) -> bool:
        """Whether enough follows wait for a step of training, which costs about the same for one."""
        return self.captured >= self._config.example_batch or len(self._changes) > CHANGES

    def learn(self) -> None:
        """Train on the follows captured since the last time that really came about."""
        captured, self._captured = self._captured, []
        changes, self._changes = self._changes, []
        if captured:
            self._learned += self._learn(captured, changes)

    def take_learned(self) -> int:
        """Return how many follows were trained on since the last call."""
        learned, self._learned = self._learned, 0
        return learned

    def settled(self, settled: Settled) -> None:
        """Take note of what the targets' stage did."""
        self._touch(settled.touched)
        self.exclusions.note_heard(settled.changes)

    def forget(self, accounts: Sequence[str]) -> None:
        """Forget accounts in the model and in training; the rows of others do not name them any more."""
        if not accounts:
            return
        self.learn()  # what is captured holds rows of the model, which others may be given
        if self.trainer is not None:
            self.trainer.forget(accounts)
        else:
            self.model.ids.forget(accounts)
        if self.whole is not None:
            self.whole.facts.forget(accounts)

    def forget_deleted(self) -> None:
        """Forget what the model still knows of deleted accounts, if it was saved before they were removed."""
        engine = self.engine
        if any(partition.deleted for partition in engine.partitions):
            known = [name for name in self.model.ids.names if name is not None]
            self.forget([name for name in known if engine.at(engine.route[name]).is_deleted(name)])

    def _touch(self, accounts: Iterable[str]) -> None:
        self.vectors.touch(accounts)
        if any(partition.deleted for partition in self.engine.partitions):
            for account in accounts:
                self.exclusions.drop(account)

    def _learn(self, captured: Sequence[Captured], changes: Iterable[Change]) -> int:
        """One step on the follows that really came about, oldest first."""
        assert self.trainer is not None
        kept = came_about(captured, changes)
        if not kept:
            return 0
        consumers, targets = join(kept), [target for batch in kept for target in batch.targets]
        looked = [one for batch in kept for one in batch.looked]
        as_of = max(batch.as_of for batch in kept)
        size = self._config.example_batch
        for first in range(0, len(targets), size):
            part = ConsumerFeatures._make(values[first : first + size] for values in consumers)
            ranked = [one for one in looked[first : first + size] if one is not None]
            self.trainer.observe(Examples(part, targets[first : first + size], as_of), ranked=ranked)
        for batch in kept:  # what they are encoded by has changed
            self.vectors.dirty.update(batch.actors, batch.targets)
        if as_of // DAY > self._swept:
            self._swept = as_of // DAY
            self.trainer.expire(as_of - self._config.idle_days * DAY)
        return len(targets)

    # -- vectors ---------------------------------------------------------------------------------------------

    @property
    def tick(self) -> int:
        """The tick of the newest vectors."""
        return self.vectors.tick

    def flush(self, as_of: int, most_aged: int) -> Encoded:
        """Encode what changed, and at most so many of what has aged, into the index."""
        self._link(self.vectors.dirty)
        return self.vectors.flush(as_of, most_aged)

    def rebuild(self, as_of: int) -> Encoded:
        """Encode every account of the stores: what a restart or another model needs."""
        if self.whole is not None:
            self._link(every_account(self.engine))
        return self.vectors.rebuild(as_of)

    def fill(self, accounts: Collection[str], as_of: int) -> Encoded:
        """Encode accounts, changed or not: a part of `rebuild`."""
        self._link(accounts)
        self.vectors.advance(as_of)
        return self.vectors.encode(sorted(accounts))

    def overtake(self, changed: Iterable[str], as_of: int) -> Encoded:
        """Encode accounts that changed, and everything that has aged by a time."""
        everyone = sorted(changed)
        parts = [everyone[first : first + PART] for first in range(0, len(everyone), PART)]
        done = [*(self.fill(part, as_of) for part in parts), self.vectors.overdue(as_of)]
        return Encoded(sum(one.upserted for one in done), sum(one.deleted for one in done))

    def _link(self, accounts: Collection[str]) -> None:
        """Let the facts hold the newest neighbours of accounts."""
        if self.whole is None or not accounts:
            return
        route = self.engine.route
        by_partition: dict[int, list[str]] = {}
        for account in sorted(accounts):
            by_partition.setdefault(route[account], []).append(account)
        for number, those in by_partition.items():
            partition = self.engine.at(number)
            gone = partition.deleted_of(those)  # not to be named again
            living = [account for account in those if account not in gone]
            for first in range(0, len(living), LINKED):
                part = living[first : first + LINKED]
                self.whole.facts.link(part, neighbours(partition, part))

    def reread(self, as_of: int) -> Encoded:
        """Forget every row and exclusion, and encode every account: what a bulk load needs."""
        everyone = every_account(self.engine)
        self._reader.forget(everyone)
        for account in everyone:
            self.exclusions.drop(account)
        return self.rebuild(as_of)

    # -- answers ---------------------------------------------------------------------------------------------

    def rank(self, question: Question, as_of: int) -> Ranked:
        """Rank candidates for a question; the caller has checked its fields and its token."""
        asking, tick = self._together.ask(Ask(question.account, as_of, question.explain == "full"))
        gone = partial(self._deleted, question.account)
        return self._ranker.rank(question, asking, as_of, tick, self._glances, gone)

    def _read_each(self, asked: Sequence[Ask]) -> list[tuple[Asking, int] | Exception]:
        """What is known of those that ask, with the tick of the newest vectors."""
        found = self._ranker.read_each(asked)
        return [one if isinstance(one, Exception) else (one, self.tick) for one in found]

    def why(self, account: str, candidate: str, as_of: int, most: int) -> Why:
        """Return where a candidate stands for an account, and at most so many of its deeds that carry it."""
        ranker = self._ranker
        with self.reading():
            asking = ranker.read(account, as_of, fully=True)
            hidden, tick = ranker.hidden(asking, candidate), self.tick
        standing = None
        if hidden is None:
            (standing,) = ranker.standings(asking, [candidate], Allowed(asking.exclude), most)
            hidden = NO_CANDIDATE if standing is None else None
        considered = sum(len(group.deeds) for group in asking.groups)
        return Why(standing, hidden, considered, asking.step, tick)

    def _deleted(self, account: str, others: Collection[str]) -> set[str]:
        # Without the lock: who was deleted stays so, and of what is being folded nobody has been told.
        return self.engine.at(self.engine.route[account]).deleted_of(others)

    def _glances(self, accounts: Sequence[str], as_of: int) -> Sequence[Glance]:
        with self.reading():
            return self._reader.glance(accounts, as_of)

    def inspect(self, account: str, as_of: int) -> Rows:
        """Return an account's rows as the towers read them."""
        with self.reading():
            return self._reader.read([account], as_of, unreciprocated=True)


class _IndexSink:
    """Vectors into the index, features to where the trainer reads them, facts to where pairs are ranked."""

    def __init__(self, index: LiveIndex, trainer: OnlineTrainer | None, facts: Facts | None) -> None:
        self._index = index
        self._trainer = trainer
        self._facts = facts

    def write(self, rows: Rows, encoded: Producers, tick: int) -> None:
        if self._trainer is not None:
            self._trainer.encoded(encoded.features, tick * TICK)
        if self._facts is not None:
            self._facts.write(rows)
        self._index.upsert(rows.accounts, encoded.vectors, labels=rows.languages, sequence=tick)

    def delete(self, accounts: Sequence[str]) -> None:
        self._index.delete(accounts)
        if self._facts is not None:
            self._facts.drop(accounts)

    def __contains__(self, account: object) -> bool:
        return account in self._index
