"""The owned partitions as the retrieval process reads them, and answers from them at a token."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

from kithstream.index.live import LiveIndex
from kithstream.models.ages import TICK
from kithstream.models.model import Model
from kithstream.streams.communities.known import KnownFor
from kithstream.streams.config import RankingConfig, StoreConfig
from kithstream.streams.engine.replica import Replica
from kithstream.streams.engine.routing import Route
from kithstream.streams.errors import NotYet, Unavailable
from kithstream.streams.kafka.steps import Follower
from kithstream.streams.kafka.tail import Tail
from kithstream.streams.serve import tokens
from kithstream.streams.serve.answers import Answer, Question
from kithstream.streams.serve.exclusions import Exclusions
from kithstream.streams.serve.ranking import Ask, Asking, Ranker
from kithstream.streams.serve.served import Served
from kithstream.streams.serve.together import Together
from kithstream.streams.serve.whole import Whole
from kithstream.streams.state.reader import Reader
from kithstream.streams.state.store import RocksReplica


@contextmanager
def own_folder(data: Path) -> Iterator[Path]:
    """Give a directory for what RocksDB logs of replicas; not beside the stores of `data`, whose disk may be full.

    A process that is killed leaves its own, and the next one of the same worker removes that.
    """
    prefix = f"kithstream-replica-{hashlib.sha256(bytes(data.absolute())).hexdigest()[:16]}-"
    for left in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=prefix) as own:
        yield Path(own)


class View:
    """One lineage as answers are made of it: its model, its vectors, its ranking."""

    def __init__(self, model: Model, index: LiveIndex, tail: Tail, ranker: Ranker) -> None:
        self.model = model
        self.index = index
        self.tail = tail
        self.ranker = ranker


class _Came(NamedTuple):
    """A question that waits for the lock."""

    question: Question
    view: View
    ends: Mapping[int, int]  # of its token
    arrived: float  # monotonic


class _Read(NamedTuple):
    """What the state said of the one that asks, and which state that was."""

    asking: Asking
    as_of: int
    token: dict[int, int]


class Reading:
    """Stores that another process writes, opened as replicas. Any thread may answer; one at a time reads.

    An answer is made of one view, whatever view is taken meanwhile: no two lineages meet in it.
    """

    def __init__(
        self,
        route: Route,
        store: StoreConfig,
        ranking: RankingConfig,
        own: Path,
        clock: Callable[[], int],
        versions: Mapping[str, KnownFor] | None = None,
        served: Served | None = None,
    ) -> None:
        """`versions` of communities are those at hand; stores that read another one tell nothing of it. `served` takes
        note of answers."""
        self.route = route
        self.lock = threading.Lock()
        self._ranking = ranking
        self._store = store
        self._own = own
        self._clock = clock
        self._versions = versions
        self._served = served
        self._replicas: dict[int, tuple[RocksReplica, Replica]] = {}
        self._caught_up: dict[
            int, tuple[float, int]
        ] = {}  # when the last look began: monotonic, and the time
        self._opened = 0
        self._reader = Reader(self, 1)
        self._exclusions = Exclusions(self, 1, used_to_follow=ranking.used_to_follow)
        self._view: View | None = None
        self._together = Together(lambda: self.lock, self._read_each)

    # -- lineages --------------------------------------------------------------------------------------------

    def view(self, model: Model, index: LiveIndex, tail: Tail) -> View:
        """Return a view of the stores by another lineage."""
        whole = None if tail.facts is None else Whole(tail.facts, self._ranking)
        ranker = Ranker(
            self, self._reader, self._exclusions, model, index, self._ranking, whole, self._served
        )
        return View(model, index, tail, ranker)

    def take(self, view: View) -> None:
        """Answer by this view from now on."""
        self._view = view

    @property
    def current(self) -> View:
        """The view that answers are made of; raises Unavailable while there is none."""
        if self._view is None:
            raise Unavailable("the index has not caught up with the published vectors yet")
        return self._view

    # -- partitions ------------------------------------------------------------------------------------------

    def at(self, number: int) -> Replica:
        """Return a partition; raises KeyError if it is not here."""
        return self._replicas[number][1]

    @property
    def numbers(self) -> list[int]:
        """The partitions that are here."""
        return sorted(self._replicas)

    def open(self, number: int, path: Path) -> None:
        """Begin to read a partition's store; raises StoreRefused if it cannot be read."""
        with self.lock:
            if number in self._replicas:
                return
            self._opened += 1
            store = RocksReplica(path, self._own / str(self._opened), self._store)
            self._replicas[number] = store, Replica(store, number, self._versions)

    def close(self, number: int) -> None:
        """Let go of a partition's store."""
        with self.lock:
            found = self._replicas.pop(number, None)
            self._caught_up.pop(number, None)
            if found is not None:
                found[0].close()

    def step(self, follower: Follower) -> None:
        """Move the model to the newest step; answers under way were encoded with one step or the other."""
        with self.lock:
            follower.apply()

    # -- answers ---------------------------------------------------------------------------------------------

    def answer(self, question: Question) -> Answer:
        """Answer from state that includes the question's token.

        Raises NotYet if it does not, Unavailable if the account's partition is not here, Unanswerable for a
        deleted or deactivated account, ValueError for a bad token.
        """
        account, view = question.account, self.current
        ends = tokens.read(question.after, self.route.partitions)
        restarts = view.tail.restarts
        asking, as_of, token = self._together.ask(_Came(question, view, ends, time.monotonic()))
        gone = partial(self._deleted, self.route[account])
        ranked = view.ranker.rank(question, asking, as_of, as_of // TICK, view.tail.glances, gone)
        if view.tail.restarts != restarts:
            raise NotYet("a partition has another owner, whose vectors are not known yet")
        return Answer(
            account=account,
            candidates=ranked.candidates,
            as_of=as_of,
            model=view.model.lineage,
            step=ranked.step,
            tick=ranked.tick,
            token=tokens.write(token),
            plan=ranked.plan,
            short=ranked.short,
        )

    def _read_each(self, came: Sequence[_Came]) -> list[_Read | Exception]:
        """What the state says of those that ask, for each that it has an answer for; else why not."""
        found: dict[int, _Read | Exception] = {}
        arrived = max(one.arrived for one in came)
        by_view: dict[View, dict[int, tuple[Ask, dict[int, int]]]] = {}
        for at, (question, view, ends, _) in enumerate(came):
            account = question.account
            try:
                replica, as_of = self._read(self.route[account], arrived)
                if not self._includes(view, replica, ends, question.level):
                    raise NotYet("the state does not include the token")
            except (NotYet, Unavailable) as refused:
                found[at] = refused
                continue
            self._reader.forget([account])
            self._exclusions.drop(account)
            ask = Ask(account, as_of, question.explain == "full")
            by_view.setdefault(view, {})[at] = ask, self._token(view, replica)
        for view, some in by_view.items():
            asking = view.ranker.read_each([ask for ask, _ in some.values()])
            for (at, (ask, token)), one in zip(some.items(), asking, strict=True):
                found[at] = one if isinstance(one, Exception) else _Read(one, ask.as_of, token)
        return [found[at] for at in range(len(came))]

    def includes(self, question: Question) -> bool:
        """True if a question need not wait, as far as is known without looking; there is no use in waiting either
        for a partition that is not here. Raises ValueError for a bad token.
        """
        ends = tokens.read(question.after, self.route.partitions)
        found = self._replicas.get(self.route[question.account])
        return found is None or self._includes(self.current, found[1], ends, question.level)

    def look(self, numbers: Collection[int]) -> dict[int, tuple[int, ...]]:
        """Catch up with partitions; return how far those that are here have come."""
        found = {}
        for number in numbers:
            arrived = time.monotonic()
            with self.lock:
                if number in self._replicas:
                    replica, _ = self._read(number, arrived)
                    found[number] = (replica.applied, *replica.heard.values())
        return found

    def _read(self, number: int, arrived: float) -> tuple[Replica, int]:
        """Return a partition's state that is not older than the question, and the time that it is of.

        Those that waited for the lock together share one look, which began after all of them had come.
        """
        found = self._replicas.get(number)
        if found is None:
            raise Unavailable(f"partition {number} is not answered for here at the moment")
        store, replica = found
        began, as_of = self._caught_up.get(number, (arrived, 0))
        if began <= arrived:
            began, as_of = time.monotonic(), self._clock()
            if store.catch_up():
                replica.refresh()
            self._caught_up[number] = began, as_of
        return replica, as_of

    def _deleted(self, number: int, accounts: Collection[str]) -> set[str]:
        """Return those of the accounts of whose deletion a partition has heard."""
        with self.lock:
            found = self._replicas.get(number)
            if found is None:
                raise Unavailable(f"partition {number} is not answered for here at the moment")
            return found[1].deleted_of(accounts)

    def _includes(self, view: View, replica: Replica, ends: Mapping[int, int], level: str) -> bool:
        return replica.includes(ends) and (level == "state" or view.tail.includes(ends))

    def _token(self, view: View, replica: Replica) -> dict[int, int]:
        """The greatest token that both levels hold for."""
        token = {}
        for number, end in view.tail.token.items():
            heard = min(end, replica.heard.get(number, 0))
            token[number] = min(heard, replica.applied) if number == replica.number else heard
        return token
