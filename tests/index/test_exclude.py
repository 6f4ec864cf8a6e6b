from __future__ import annotations

from kithstream.index.exclude import Counts, Plan, Rules, choose, widen

RULES = Rules(exact_rows=1000, rows_per_fetch=10, ef=64, overfetch=2.0)


def counts(alive=100_000, cold=90_000, known=90_000, excluded=0, wanted=None, scan=None):
    return Counts(
        alive, cold, known, excluded, 1, alive if wanted is None else wanted, alive if scan is None else scan
    )


def test_a_small_corpus_is_scanned():
    assert choose(10, counts(alive=1000), RULES) == Plan("exact")
    assert choose(10, counts(alive=1001, cold=1001, known=1001), RULES).name == "graph"


def test_a_corpus_that_is_quicker_to_scan_is_scanned():
    assert choose(10, counts(alive=4000, cold=4000, known=4000, scan=1000), RULES) == Plan("exact")
    assert choose(200, counts(scan=3999), RULES) == Plan("exact")
    assert widen(Plan("graph", 300), counts(scan=4000), RULES) == Plan("fallback")


def test_without_a_graph_everything_is_scanned():
    assert choose(10, counts(known=0), RULES) == Plan("exact")


def test_the_graph_is_asked_for_room():
    assert choose(10, counts(), RULES) == Plan("graph", 64)
    assert choose(200, counts(), RULES) == Plan("graph", 400)
    assert choose(200, counts(excluded=50), RULES) == Plan("graph", 450)


def test_dead_and_unwanted_rows_widen_the_first_search():
    assert choose(200, counts(cold=45_000), RULES) == Plan("graph", 800)
    assert choose(200, counts(wanted=50_000), RULES) == Plan("graph", 800)


def test_many_exclusions_or_few_wanted_are_scanned():
    assert choose(200, counts(excluded=20_000), RULES) == Plan("exact")
    assert choose(200, counts(wanted=100), RULES) == Plan("exact")
    assert choose(200, counts(wanted=0), RULES) == Plan("exact")


def test_a_starved_graph_is_asked_for_twice_as_many_then_scanned():
    plan = choose(200, counts(), RULES)
    fetched = []
    while plan.name == "graph":
        fetched.append(plan.fetch)
        plan = widen(plan, counts(), RULES)
    assert fetched == [400, 800, 1600, 3200, 6400]
    assert plan == Plan("fallback")


def test_no_more_is_asked_than_the_graph_knows():
    free = Rules(exact_rows=0, rows_per_fetch=0, ef=64, overfetch=2.0)
    small = counts(alive=100, cold=81, known=90)
    assert choose(40, small, free) == Plan("graph", 88)
    assert widen(Plan("graph", 88), small, free) == Plan("graph", 90)
    assert widen(Plan("graph", 90), small, free) == Plan("fallback")
