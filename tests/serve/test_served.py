"""What answers are like is told as it is: counts, languages, spread, and recall against a scan."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from kithstream.index.breadth import DEPTH
from kithstream.index.config import IndexConfig
from kithstream.index.live import LiveIndex
from kithstream.index.protocol import Hits
from kithstream.models.exposure import prpc
from kithstream.streams.config import Config, IndexSection, ModelConfig
from kithstream.streams.events.wire import Event
from kithstream.streams.metrics import Metrics
from kithstream.streams.serve.embedded import Embedded
from kithstream.streams.serve.served import Served
from kithstream.streams.serve.why import Allowed

NOW = 1_790_000_000_000_000
CONFIG = Config(model=ModelConfig(learn=False), index=IndexSection(background=False))


@pytest.fixture
def live(tmp_path: Path) -> Iterator[Embedded]:
    """Five candidates, the higher the number the more followers; p0 and p2 speak English, p1 and p3 German."""
    with Embedded(tmp_path, CONFIG, clock=lambda: NOW) as opened:
        tags = ("en", "de", "en", "de")
        told = [Event(f"l{n}", "profile", f"p{n}", NOW, language=tag) for n, tag in enumerate(tags)]
        told += [Event(f"n{tag}", "profile", f"new-{tag}", NOW, language=tag) for tag in ("en", "de", "fr")]
        told += [
            Event(f"f{m}>{n}", "follow", f"f{m}", NOW, target=f"p{n}") for n in range(5) for m in range(n + 1)
        ]
        opened.publish(told)
        opened.catch_up()
        yield opened


def value(live: Embedded, name: str, **labels: str) -> float | None:
    registry = CollectorRegistry()
    Metrics(registry).watch(live)
    return registry.get_sample_value(name, labels)


def test_answers_are_counted_by_plan_what_ranked_and_the_language_of_their_first(live: Embedded) -> None:
    assert value(live, "kithstream_answers_total", plan="exact", ranked_by="popularity") is None
    for account, k in (("new-en", 2), ("new-de", 2), ("new-fr", 2), ("nobody", 2), ("f0", 2), ("f4", 9)):
        live.candidates(account, k)
    assert value(live, "kithstream_answers_total", plan="exact", ranked_by="popularity") == 4
    assert value(live, "kithstream_answers_total", plan="exact", ranked_by="towers") == 2
    assert live.served.short == 2  # f0 follows everybody, f4 is to be shown four
    first = {way: value(live, "kithstream_first_candidates_total", language=way) for way in ("same", "other")}
    assert first == {"same": 2, "other": None}  # nobody speaks French: p4, the most followed, says nothing
    assert live.served.first["unknown"] == 3


def test_popularity_correlation_is_that_of_the_lists_that_were_shown(live: Embedded) -> None:
    shown = [[c.account for c in live.candidates(a, 2).candidates] for a in ("new-en", "new-de", "nobody")]
    times = np.array([sum(f"p{n}" in names for names in shown) for n in range(5)], np.float64)
    assert times.sum() == 6
    assert value(live, "kithstream_popularity_correlation_ratio") == pytest.approx(
        prpc(np.arange(1, 6), times)
    )
    assert value(live, "kithstream_shown_accounts") == (times > 0).sum()


def bad_graph() -> tuple[LiveIndex, np.ndarray[tuple[int, int], np.dtype[np.float32]]]:
    """An index whose graph is asked for so few neighbours that it misses some."""
    index = LiveIndex(
        IndexConfig(dim=64, exact_rows=0, rows_per_fetch=0, recall_wanted=0.0, ef=10, overfetch=1.0)
    )
    vectors = np.random.default_rng(0).normal(size=(4000, 64)).astype(np.float32)
    index.upsert([str(n) for n in range(len(vectors))], vectors)
    index.merge(len(vectors))
    return index, vectors


def test_shadow_recall_is_what_the_graph_found_of_what_a_scan_finds() -> None:
    index, vectors = bad_graph()
    now = [0.0]
    served = Served(10.0, monotonic=lambda: now[0])
    told: list[float] = []
    served.compared = told.append
    true = {
        n: [str(at) for at in np.argsort(-(vectors @ vectors[n]), kind="stable") if str(at) != "7"][:DEPTH]
        for n in range(3)
    }
    wanted = []
    for n in range(3):
        thread = served.compare(index, vectors[n], Allowed({"7"}), "graph")
        assert thread is not None
        thread.join()
        found = index.query(vectors[n], DEPTH, exclude={"7"}).ids
        wanted.append(len(set(found) & set(true[n])) / DEPTH)
        assert served.compare(index, vectors[n], Allowed({"7"}), "graph") is None  # not so soon
        now[0] += 10.0
    assert min(wanted) < 1.0
    assert told == wanted


@pytest.mark.parametrize(("seconds", "plan"), [(0.0, "graph"), (10.0, "exact"), (10.0, "allowed")])
def test_nothing_is_compared_where_it_is_turned_off_or_a_scan_answered(seconds: float, plan: str) -> None:
    index, vectors = bad_graph()
    assert Served(seconds).compare(index, vectors[0], Allowed(()), plan) is None


def test_the_newest_answers_alone_are_spread() -> None:
    served = Served()
    hits = Hits([], np.zeros(0, np.float32), "graph", 0, None)
    for number in range(5000):
        served.took([f"p{number}"], hits, "towers", short=False, facts=None, language=0)
    assert served.answers["graph", "towers"] == 5000
    assert len(served._lists) == 2000
