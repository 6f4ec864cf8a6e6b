"""The live index: a table that decides, a hot tier that is scanned, and a left-right pair of graphs for the
cold rest.

Readers take no lock: they hold one `_Served` while they search its graph, and nobody writes to a graph that
a reader can hold. A merge writes the rows that cooled into the idle graph, serves that one, waits until
nobody holds the other, lets the rows leave the hot tier, and writes them into the other as well. The graph
only nominates; every score is read from the table.
"""

from __future__ import annotations

import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import numpy as np

from kithstream.index import snapshot
from kithstream.index.breadth import COMPARED, DEPTH
from kithstream.index.config import IndexConfig
from kithstream.index.errors import MergerStopped, SnapshotRefused
from kithstream.index.exact import (
    MARGIN,
    Batch,
    Found,
    Reading,
    Stamps,
    among,
    answer,
    scan,
    wanted,
)
from kithstream.index.exclude import Counts, Request, choose, widen
from kithstream.index.graph import Graph, Shape, limits_of, read_files
from kithstream.index.hot import HotTier
from kithstream.index.protocol import Hits, IndexStats
from kithstream.index.rebuild import build, cheaper
from kithstream.index.score import (
    Bools,
    Floats,
    Labels,
    Slots,
    kth_largest,
    nominate,
    norms,
    score,
    tolerance,
)
from kithstream.index.table import BUILDING, PAIR, RING, VectorTable, View


class Merged(NamedTuple):
    """What a merge did."""

    cooled: int  # rows that left the hot tier
    written: int  # of them, rows written into the graphs
    skipped: int  # of them, rows that the graph already held closely enough
    rebuilt: bool  # the graphs were built instead: none yet, no room, or cheaper than merging


class Rebuilt(NamedTuple):
    """What a rebuild did."""

    rows: int  # vectors in the built graph
    cooled: int  # of them, rows that left the hot tier
    freed: int  # dead vectors that the graph got rid of
    bound: float  # largest norm that it can hold
    degree: float  # mean degree of the lowest level


class Checked(NamedTuple):
    """What a check found; `reasons` says why a rebuild is due, if it is."""

    recall: float  # of the planner's answers against the scan's, 1 where there is no graph
    degree: float  # mean degree of the lowest level
    sound: bool  # both graphs hold exactly the slots that they should
    reasons: tuple[str, ...]


class Capture:
    """The rows of one revision of an index, on their way to the disk."""

    def __init__(
        self, image: snapshot.Image, graph: Callable[[Path], None] | None, release: Callable[[], None]
    ) -> None:
        self._image = image
        self._graph = graph
        self._release: Callable[[], None] | None = release

    def write(
        self,
        directory: Path,
        metadata: snapshot.Metadata,
        *,
        keep: int = 2,
        beside: Callable[[Path], None] | None = None,
    ) -> snapshot.Saved:
        """Write a snapshot, with the files that `beside` puts into its directory, and let go."""
        try:
            return snapshot.save(directory, self._image, self._graph, metadata, keep, beside)
        finally:
            self.release()

    def release(self) -> None:
        """Let merges go on."""
        release, self._release = self._release, None
        if release is not None:
            release()


class _Served:
    """What readers hold while they search; when the last of them lets go, the graph may be written."""

    __slots__ = ("__weakref__", "graph")

    def __init__(self, graph: Graph | None) -> None:
        self.graph = graph


class _Job(NamedTuple):
    """The rows of a rebuild."""

    slots: Slots
    vectors: Floats
    cooling: Slots  # hot rows that the graph takes over
    stamps: Slots  # when those last changed
    shape: Shape


class LiveIndex(Reading):
    """Queryable by many threads beside one writer; merged by `merge` or, once started, by its own thread.

    An upsert that finds the hot tier full merges it in the caller: back-pressure, no loss. Until the corpus
    outgrows `exact_rows` there is no graph; beyond, the first merge builds it, and until then every query is
    a scan.
    """

    def __init__(self, config: IndexConfig) -> None:
        super().__init__(
            VectorTable(config.dim, config.capacity, coded_from=config.coded_from), config.recall_wanted
        )
        self.config = config
        self._hot = HotTier(config.dim, config.hot_capacity)
        self._tracking = False  # whether writes go to the hot tier: there is a graph, or one is being built
        self._served = _Served(None)
        self._idle: Graph | None = None
        self._positions: Floats = np.zeros((0, config.dim), np.float32)  # by slot: where the graphs hold it
        self._late: list[Slots] = []  # slots that merges wrote while a rebuild was running
        self._building = False
        self._merging = threading.Lock()  # over graphs and positions; taken before the table's lock
        self._rebuilding = threading.Lock()  # taken before _merging
        self._stamps = Stamps()
        self._merging_seconds = self._rebuilding_seconds = 0.0
        self._merges = self._rebuilds = self._raised = self._written = self._skipped = self._waited = 0
        self._moved = 0  # vectors written again since the build
        self._built_degree = 0.0
        self._found_by_check: tuple[str, ...] = ()
        self._broken = False  # a graph was left half written
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None

    def upsert(
        self, ids: Sequence[str], vectors: Floats, *, labels: Labels | None = None, sequence: int = 0
    ) -> int:
        """Store vectors (n, dim); see `Writable`. Waits for a merge when the hot tier is full."""
        self._alive_merger()
        config = self.config
        rows = min(RING // 4, config.hot_capacity - config.hot_stays)
        for part in Batch.of(ids, vectors, labels, config.dim).parts(rows):
            if not self._write(part, sequence):
                self._wait_and_write(part, sequence)
        return self._table.revision

    def delete(self, ids: Sequence[str]) -> int:
        """Forget ids; see `Writable`."""
        table = self._table
        with table.lock:
            slots = table.alive_slots(ids)
            table.announce(slots)
            table.bury(slots)
            self._hot.remove(slots)
            return table.settle()

    def query(
        self,
        vector: Floats,
        k: int,
        *,
        exclude: Collection[str] = (),
        allow: Collection[str] | None = None,
        labels: Collection[int] | None = None,
    ) -> Hits:
        """The k best by dot product; see `Queryable`."""
        request = Request.of(vector, k, self.config.dim, exclude, allow, labels)
        return answer(self._table, request, self._find)

    def stats(self) -> IndexStats:
        """Counts, for metrics and tests."""
        table, hot = self._table, self._hot
        with table.lock:
            served = self._served.graph
            known = 0 if served is None else len(served)
            held = table.view.held[: table.used] != 0
            size = sum(array.nbytes for array in table.view) + hot.rows.nbytes + self._positions.nbytes
            size += 0 if table.codes is None else table.codes.nbytes
            size += 2 * served.nbytes if served is not None else 0
            return IndexStats(
                alive=table.alive,
                hot=len(hot),
                cold=table.alive - len(hot) if known else 0,
                dead=int((held & ~table.view.alive[: table.used]).sum()),
                revision=table.revision,
                bytes=size,
                bound=0.0 if served is None else served.shape.bound,
                above=0 if served is None else hot.above(served.shape.bound),
                merges=self._merges,
                merging=self._merging_seconds,
                rebuilds=self._rebuilds,
                rebuilding=self._rebuilding_seconds,
                raised=self._raised,
                written=self._written,
                skipped=self._skipped,
                waited=self._waited,
                breadth=self._breadth.times,
            )

    def merge(self, rows: int | None = None) -> Merged:
        """Cool the rows that changed least recently: `rows` of them, or as many as are above `cool_to`."""
        while True:
            with self._merging:
                began = time.perf_counter()
                merged, building = self._merge(rows), self._building
                self._merging_seconds += time.perf_counter() - began
            if merged is not None:
                return merged
            if not building:
                return Merged(self.rebuild(rows).cooled, 0, 0, True)
            with self._rebuilding:  # another thread builds already: try again with its graphs
                pass

    def rebuild(self, rows: int | None = None, *, process: bool | None = None) -> Rebuilt:
        """Build a new pair of graphs of the cold rows and those that a merge would cool, and serve it.

        Reads, writes and merges go on meanwhile; another process builds it unless told otherwise. The bound
        rises to the longest vector if it has to. Loading the result holds the interpreter's lock.
        """
        with self._rebuilding:
            began = time.perf_counter()
            try:
                with self._merging:
                    job = self._capture(rows)
                with tempfile.TemporaryDirectory(prefix="kithstream-graph-") as directory:
                    build(
                        Path(directory),
                        job.shape,
                        job.vectors,
                        job.slots,
                        process=self.config.rebuild_process if process is None else process,
                    )
                    with self._merging:
                        rebuilt = self._install(job, Path(directory))
            except BaseException:
                with self._merging:
                    self._abandon()
                raise
            self._broaden()
            self._rebuilding_seconds += time.perf_counter() - began
            return rebuilt

    def reasons(self) -> tuple[str, ...]:
        """Why a rebuild is due; empty when it is not."""
        config, stats = self.config, self.stats()
        served = self._served.graph
        if served is None:
            return ("first",) if self._outgrown() else ()
        known = max(1, len(served))
        due = list(self._found_by_check)
        if self._broken:
            due.append("broken")
        if stats.dead > config.dead_share * known:
            due.append("dead")
        if self._moved > config.moved_share * known:
            due.append("moved")
        if stats.above > config.above_share * config.hot_capacity:
            due.append("above")
        return tuple(due)

    def check(
        self, sample: int, rng: np.random.Generator, *, queries: Floats | None = None, k: int = 200
    ) -> Checked:
        """Shadow recall on `sample` queries (stored vectors, unless given), label audit and mean degree.

        What it finds wrong stays in `reasons` until a rebuild. It holds off merges while it reads the graphs.
        """
        table = self._table
        with self._merging:
            served, idle = self._served.graph, self._idle
            if served is None or idle is None:
                return Checked(1.0, 0.0, True, self.reasons())
            with table.lock:
                held = np.flatnonzero(table.view.held[: table.used] & PAIR)
            sound = all(graph.sound() and np.array_equal(graph.labels(), held) for graph in (served, idle))
            with tempfile.TemporaryDirectory(prefix="kithstream-graph-") as directory:
                idle.save(Path(directory))
                degree = read_files(Path(directory), idle.shape).degree
        if queries is None:
            queries = self._stored(sample, rng)
        recalls = [self.compare(query, k) for query in queries[:sample] if query.any()]
        known = [recall for recall in recalls if recall is not None]
        recall = float(np.mean(known)) if known else 1.0
        found = {
            "labels": not sound,
            "recall": recall < self.config.recall_floor,
            "degree": degree < self.config.degree_floor * self._built_degree,
        }
        self._found_by_check = tuple(name for name, due in found.items() if due)
        if self._found_by_check:
            self._wake.set()
        return Checked(recall, degree, sound, self.reasons())

    def save(self, directory: Path, metadata: snapshot.Metadata, *, keep: int = 2) -> snapshot.Saved:
        """Write a snapshot of one revision; holds off merges, the writer only for the rows that change."""
        return self.capture().write(directory, metadata, keep=keep)

    def capture(self) -> Capture:
        """Copy the rows of one revision; until it is written or let go of, by any thread, merges are held off."""
        table = self._table
        self._merging.acquire()
        try:
            view = table.copy()
            try:
                names = list(table.names)
                hot = self._hot.by_age()
            finally:
                table.lock.release()
            # A graph holds the slots of dead rows until it is rebuilt; whose they were is nobody's business.
            dead = np.flatnonzero(~view.alive)
            view.vectors[dead] = 0.0
            for slot in dead.tolist():
                names[slot] = ""
            graph = self._idle
            image = snapshot.Image(
                names,
                view.vectors,
                view.sequences,
                view.labels,
                view.alive,
                hot,
                None if graph is None else graph.shape,
                self._built_degree,
            )
        except BaseException:
            self._merging.release()
            raise
        return Capture(image, None if graph is None else graph.save, self._merging.release)

    @classmethod
    def restore(
        cls, directory: Path, config: IndexConfig, name: str | None = None
    ) -> tuple[Self, dict[str, str | int]]:
        """An index as it was saved, and the metadata; refused when a file is not as it was written."""
        image, path, metadata = snapshot.load(directory, name)
        if image.vectors.shape[1:] != (config.dim,):
            raise SnapshotRefused(f"dim is {config.dim}, vectors.npy has {image.vectors.shape[1]}")
        if len(image.hot) > config.hot_capacity:
            raise ValueError(f"hot_capacity is {config.hot_capacity}, hot.npy has {len(image.hot)} rows")
        index = cls(config)
        index._load(image, path)
        index._broaden()
        return index, metadata

    def start(self) -> Self:
        """Run the merger in a thread: it merges above `cool_above`, and rebuilds when that is due."""
        if self._thread is None:
            self._stop.clear()
            with self._table.lock:
                if self._due():
                    self._wake.set()
            self._thread = threading.Thread(target=self._run, name="kithstream-merger", daemon=True)
            self._thread.start()
        return self

    def close(self) -> None:
        """Stop the thread after the merge that it is in; the index stays usable."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._stop.set()
            self._wake.set()
            thread.join()
        self._alive_merger()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # Reading

    def _find(self, request: Request) -> Found:
        if request.allow is not None:
            return among(self._table, request, request.allow)
        served: _Served | None = self._served
        assert served is not None
        try:
            found = None if served.graph is None else self._search(served.graph, request)
        finally:
            served = None  # a traceback that someone keeps must not hold up the merger
        return scan(self._table, request) if found is None else found

    def _search(self, graph: Graph, request: Request) -> Found | None:
        table, hot, rules = self._table, self._hot, self.config.rules.broader(self._breadth.times)
        excluded = table.slots_of(request.exclude)
        excluded_rows = hot.rows_of(excluded)
        counts = self._counts(graph, request, len(excluded) - len(excluded_rows))
        plan = choose(request.k, counts, rules)
        if plan.name == "exact":
            return None
        used = hot.used
        products = hot.rows[:used] @ request.query
        hot_slots = hot.slots[:used].copy()
        view = table.view  # after the slots: it has them all
        taken = hot_slots >= 0
        products[~taken] = -np.inf
        products[excluded_rows[excluded_rows < used]] = -np.inf
        if request.labels is not None:
            products[~wanted(view.labels[hot_slots], request.labels)] = -np.inf
        warm = nominate(products, request.k + MARGIN, tolerance(table.dim, request.norm, table.largest))
        stamps = self._stamps
        stamps.clear(len(view.alive))
        stamps.add(excluded[excluded < len(view.alive)])
        stamps.add(hot_slots[taken])
        slots = hot_slots[warm]
        scores = score(view.vectors[slots], request.wide)
        everything = len(warm) < request.k + MARGIN
        for band in reversed(range(len(graph.sizes))):  # the longest vectors first
            size, limit = graph.sizes[band], graph.shape.limits[band]
            if _decided(scores, request.k, limit * request.norm * (1 + 1e-6)):
                everything = False
                break
            asked = plan
            while True:
                near = graph.search(band, request.query, asked.fetch) if asked.name == "graph" else None
                if near is None:
                    return scan(table, request, "fallback")
                cold = self._allowed(near.slots, view, request)
                more = np.concatenate([scores, score(view.vectors[cold], request.wide)])
                if asked.fetch >= size or len(cold) >= request.k or _decided(more, request.k, near.floor):
                    break
                asked = widen(asked, counts, rules)
            stamps.add(cold)
            slots, scores = np.concatenate([slots, cold]), more
            everything = everything and asked.fetch >= size
        best = nominate(scores, request.k + MARGIN, 0.0)  # so that what `settle` keeps is the best there is
        complete = everything and len(best) < request.k + MARGIN
        return Found(slots[best], scores[best], complete, "graph")

    def _counts(self, graph: Graph, request: Request, excluded: int) -> Counts:
        table = self._table
        alive = table.alive
        labelled = alive
        if request.labels is not None:
            labelled = sum(table.label_counts.get(label, 0) for label in request.labels)
        return Counts(
            max(1, alive),
            max(0, alive - len(self._hot)),
            len(graph),
            excluded,
            len(graph.sizes),
            labelled,
            table.cost,
        )

    def _allowed(self, slots: Slots, view: View, request: Request) -> Slots:
        slots = slots[self._stamps.missing(slots)]
        allowed: Bools = view.alive[slots]
        if request.labels is not None:
            allowed &= wanted(view.labels[slots], request.labels)
        return slots[allowed]

    def _broaden(self) -> None:
        """Search a graph that was made or loaded as broadly as some of the stored vectors want it; others will tell."""
        self._breadth.reset()
        if self._served.graph is None or not self.config.recall_wanted:
            return
        queries, times = self._stored(COMPARED, np.random.default_rng(self.config.seed)), 0.0
        while times != self._breadth.times:
            times = self._breadth.times
            for query in queries:
                if query.any():
                    self.compare(query, DEPTH)

    def _stored(self, sample: int, rng: np.random.Generator) -> Floats:
        """Vectors of at most so many rows, as queries."""
        view = self._table.view
        alive = np.flatnonzero(view.alive[: self._table.used])
        queries: Floats = view.vectors[rng.choice(alive, min(sample, len(alive)), replace=False)]
        return queries

    # Writing

    def _write(self, part: Batch, sequence: int) -> bool:
        table, hot = self._table, self._hot
        with table.lock:
            if self._tracking and hot.capacity - len(hot) < len(part.ids):
                known = table.slots
                if not hot.fits([known.get(name, -1) for name in part.ids]):
                    return False
            slots = table.place(part.ids)
            table.write(slots, part.rows, part.norms, part.labels, sequence)
            if self._tracking:
                hot.write(slots, part.rows, part.norms)
            table.settle()
            if self._thread is not None and self._due() and not self._wake.is_set():
                self._wake.set()
        return True

    def _wait_and_write(self, part: Batch, sequence: int) -> None:
        self._waited += 1
        while True:
            merged = self.merge()
            if self._write(part, sequence):
                return
            if merged.cooled == 0:  # what fills the tier is above the bound
                self.rebuild()

    def _due(self) -> bool:
        if self._tracking:
            return len(self._hot) > self.config.cool_above * self.config.hot_capacity
        return self._outgrown()

    def _outgrown(self) -> bool:
        """Whether a scan costs so much that there is to be a graph."""
        return self._table.cost > self.config.exact_rows

    # Merging

    def _merge(self, rows: int | None) -> Merged | None:
        """None when the graphs are to be built instead."""
        table, hot, config = self._table, self._hot, self.config
        served, idle = self._served.graph, self._idle
        if served is None or idle is None:
            return None if self._outgrown() else Merged(0, 0, 0, False)
        if self._broken:
            return None
        bound = idle.shape.bound
        with table.lock:
            count = max(0, len(hot) - config.hot_stays) if rows is None else rows
            cooling = hot.oldest(count, bound)
            if (
                len(cooling) < min(count, len(hot))
                and hot.above(bound) > config.above_share * config.hot_capacity
            ):
                return None
            slots, stamps, vectors = hot.slots[cooling], hot.stamps[cooling], hot.rows[cooling]
            held = (table.view.held[slots] & PAIR) != 0
            self._fit_positions()
            writing = ~held
            writing[held] = idle.moved(vectors[held], self._positions[slots[held]], config.epsilon)
            fresh, moved = int((~held).sum()), int((writing & held).sum())
            if not idle.fits(vectors[writing]) or (moved and cheaper(len(idle), fresh, moved)):
                return None
            table.hold(slots[writing], PAIR | BUILDING if self._building else PAIR)
        writes, targets = vectors[writing], slots[writing]
        if self._building:
            self._late.append(targets)
        self._broken = True
        idle.add(writes, targets)
        self._positions[targets] = writes
        self._publish(idle)
        self._leave(cooling, stamps)
        served.add(writes, targets)
        self._idle = served
        self._broken = False
        self._merges += 1
        self._moved += moved
        self._written += len(targets)
        self._skipped += len(slots) - len(targets)
        return Merged(len(slots), len(targets), len(slots) - len(targets), False)

    def _publish(self, graph: Graph) -> None:
        """Serve a graph and wait until no reader holds the one before."""
        gone = threading.Event()
        served: _Served = self._served
        old = weakref.ref(served, lambda _: gone.set())
        self._served = _Served(graph)
        del served
        gone.wait()
        del old

    def _leave(self, rows: Slots, stamps: Slots) -> None:
        """Let hot rows go that no reader needs any more, unless they changed meanwhile."""
        with self._table.lock:
            self._hot.remove(self._hot.unchanged(rows, stamps))

    def _fit_positions(self) -> None:
        capacity = len(self._table.view.alive)
        if len(self._positions) < capacity:
            larger = np.zeros((capacity, self.config.dim), np.float32)
            larger[: len(self._positions)] = self._positions
            self._positions = larger

    def _capture(self, rows: int | None) -> _Job:
        table, hot, config = self._table, self._hot, self.config
        with table.lock:
            self._tracking = self._building = True
            count = max(0, len(hot) - config.hot_stays) if rows is None else rows
            cooling = hot.oldest(count, np.inf)
            stamps = hot.stamps[cooling]
            staying = np.ones(hot.used, np.bool_)
            staying[cooling] = False
            taken = table.view.alive[: table.used].copy()
            kept = hot.slots[: hot.used][staying]
            taken[kept[kept >= 0]] = False
            slots = np.flatnonzero(taken)
            table.hold(slots, BUILDING)
            view = table.view
        vectors = view.vectors[slots]  # a row that changes from here on is hot
        old = 0.0 if self._served.graph is None else self._served.graph.shape.bound
        bound = max(config.bound, old)
        lengths = norms(vectors)
        largest = float(lengths.max(initial=0.0))
        if largest > bound:
            bound = largest * config.headroom
        limits = limits_of(lengths, bound, config.bands, config.band_ratio)
        shape = Shape(config.dim, limits, (), config.links, config.ef_construction, config.seed)
        counts = np.bincount(shape.bands(lengths), minlength=len(limits)).tolist()
        capacities = tuple(int(count * config.growth) + config.hot_capacity for count in counts)
        shape = shape._replace(capacities=capacities)
        return _Job(slots, vectors, cooling, stamps, shape)

    def _abandon(self) -> None:
        table, hot = self._table, self._hot
        self._building, self._late = False, []
        with table.lock:
            table.reclaim(PAIR)
            if self._served.graph is None:
                self._tracking = False
                hot.remove(hot.by_age().tolist())

    def _install(self, job: _Job, directory: Path) -> Rebuilt:
        table = self._table
        pair = Graph(job.shape, directory), Graph(job.shape, directory)
        late = np.unique(np.concatenate([*self._late, np.empty(0, np.int64)]))
        self._fit_positions()
        if len(late):
            for graph in pair:
                graph.add(self._positions[late], late)
        early = ~np.isin(job.slots, late)
        self._positions[job.slots[early]] = job.vectors[early]
        old = self._served.graph
        known = 0 if old is None else len(old)
        self._publish(pair[0])
        self._idle = pair[1]
        self._leave(job.cooling, job.stamps)
        with table.lock:
            table.reclaim(BUILDING)
        self._building, self._late = False, []
        self._rebuilds += 1
        self._raised += old is not None and job.shape.bound > old.shape.bound
        self._moved = 0
        self._found_by_check = ()
        self._broken = False
        self._built_degree = read_files(directory, job.shape).degree
        freed = max(0, known - len(pair[0]))
        return Rebuilt(len(pair[0]), len(job.cooling), freed, job.shape.bound, self._built_degree)

    def _load(self, image: snapshot.Image, path: Path | None) -> None:
        slots, shape = np.empty(0, np.int64), image.shape
        names = list(image.names)
        held = np.zeros(len(names), np.uint8)
        if path is not None and shape is not None:
            slots, positions, _ = read_files(path, shape)
            if len(slots) and not (slots.min() >= 0 and slots.max() < len(names)):
                raise SnapshotRefused("graph-0.bin holds slots that ids.json has not")
            held[slots] = PAIR
            hot = np.zeros(len(names), np.bool_)
            hot[image.hot] = True
            if (image.alive & ~hot & (held == 0)).any():
                raise SnapshotRefused("graph-0.bin and hot.npy miss an account that alive.npy has")
        for slot in np.flatnonzero(~image.alive).tolist():
            names[slot] = ""
        view = View(image.vectors, image.sequences, image.labels, image.alive, held)
        table = self._table = VectorTable.load(names, view, coded_from=self.config.coded_from)
        if path is not None and shape is not None:
            self._idle, self._served = Graph(shape, path), _Served(Graph(shape, path))
            self._fit_positions()
            self._positions[slots] = positions
            self._tracking = True
            self._built_degree = image.degree
        if len(image.hot):
            rows = table.view.vectors[image.hot]
            self._hot.fill(image.hot.tolist(), rows, norms(rows))

    # The merger's thread

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                self._wake.wait()
                self._wake.clear()
                if self._stop.is_set():
                    return
                self.merge()
                if self.reasons():
                    self.rebuild()
        except BaseException as error:
            self._failure = error

    def _alive_merger(self) -> None:
        failure, self._failure = self._failure, None
        if failure is not None:
            raise MergerStopped("the background merger stopped") from failure


def _decided(scores: Floats, k: int, floor: float) -> bool:
    """Whether the k best are at least as good as anything that the graph did not name."""
    return len(scores) >= k and kth_largest(scores, k) >= floor
