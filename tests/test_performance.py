"""The performance suite: what is written and read, the page made of it, and what parts work out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from itertools import count, islice
from pathlib import Path

import msgspec
import numpy as np
import pytest
from bench import performance, performance_page, results, server
from bench.bars import BARS, Condition
from bench.fold import arguments, measure
from bench.load import world_follows
from bench.results import Figure, Measurement
from bench.suite import freshness, steps
from bench.suite.given import Given, percentiles, windows
from bench.suite.memory import growth

from kithstream.streams.engine.actors import Actors
from kithstream.streams.pace import run
from kithstream.streams.state.store import RocksStore
from kithstream.streams.world import SimulationConfig, World

DOCS = Path(__file__).parents[1] / "docs"


def wrote(path: Path, **fields: object) -> Measurement:
    usual: dict[str, object] = {
        "bench": "fold",
        "stage": "ingest",
        "what": "fold, everything",
        "figures": {"events_per_cpu_second": [30_000, 50_000, 46_000]},
        "command": "python -m bench.performance run --only fold",
        "path": path,
    }
    return results.append(**{**usual, **fields})  # type: ignore[arg-type]


def cells(measurements: list[Measurement], what: str) -> list[list[str]]:
    rows = [line.strip("| ").split(" | ") for line in performance_page.bars(measurements)]
    return [[cell.strip() for cell in row] for row in rows if row[0] == what]


# -- the page ------------------------------------------------------------------------------------------------


def test_docs_hold_what_the_file_makes() -> None:
    made = performance_page.files(results.read())
    there = {path.name: path.read_text() for path in DOCS.glob("performance*.svg")}
    there[performance_page.PAGE] = (DOCS / performance_page.PAGE).read_text()
    assert there == made, "run `python -m bench.performance page`"


def test_no_trial_is_told_of() -> None:
    assert not [one.command for one in results.read() if "--quick" in one.command]


def test_a_bar_shows_what_was_reached_the_limit_the_best_peer_and_the_ratio(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    wrote(path, bar="fold")
    wrote(path, bar="fold", kind="limit", by="store alone", figures={"events_per_cpu_second": 92_000})
    wrote(path, bar="fold", kind="peer", by="slow 1", figures={"events_per_cpu_second": 2000})
    wrote(path, bar="fold", kind="peer", by="fast 2", figures={"events_per_cpu_second": 23_000})
    wrote(path, bench="upsert", bar="upsert", figures={"p50_us": 25.0, "p99_us": 99.0})
    wrote(path, bench="upsert", bar="upsert", kind="peer", by="quick 3", figures={"p50_us": 50.0})
    wrote(path, bench="upsert", bar="upsert", kind="peer", by="late 4", figures={"p50_us": 80.0})
    found = results.read(path)
    ((_, bar, reached, met, limit, peer, ratio, command),) = cells(found, BARS["fold"].what)
    assert bar == "events per cpu second at least 45,000"
    assert (reached, met) == ("46,000 (30,000 to 50,000)", "met")
    assert (limit, peer, ratio) == ("92,000, store alone", "23,000, fast 2", "2.00")
    assert command == "`python -m bench.performance run --only fold`"
    half, most = cells(found, BARS["upsert"].what)
    assert (half[3], half[5], half[6]) == ("missed", "50, quick 3", "0.50")  # of times the least is the best
    assert (most[3], most[5], most[6]) == ("met", "", "")
    (untold,) = cells(found, BARS["http_300"].what)
    assert untold[2:] == ["not measured"]
    for way in ("HTTP", "Kafka"):
        wrote(path, bench=way, what=way, bar="visible_1k", figures={"p99_ms": 40 + len(way) * 2})
    said = BARS["visible_1k"].what
    found = results.read(path)
    assert [row[2:4] for way in ("HTTP", "Kafka") for row in cells(found, f"{said}: {way}")] == [
        ["48", "met"],
        ["50", "met"],
    ]


def test_every_measurement_is_in_its_stage_with_what_made_it(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    wrote(path, sizes={"accounts": 100_000, "skew": 0.8}, mix="follows", seed=3, note="Cold caches.")
    wrote(path, bench="encode", stage="tower", what="producers", figures={"per_second": 5})
    made = performance_page.files(results.read(path))
    page = made[performance_page.PAGE]
    assert list(made) == [performance_page.PAGE]
    ingest, tower = page.split("## Ingest")[1].split("## Tower")
    assert "| fold, everything | accounts 100,000, skew 0.8 | 46,000 (30,000 to 50,000) |" in ingest
    assert "; follows; seed 3; load " in ingest
    assert "fold, everything: Cold caches." in ingest
    assert "| producers |  | 5 |" in tower


def test_a_picture_is_drawn_from_two_sizes_on(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    usual = {"bench": "in_process", "stage": "freshness", "what": "due to visible, in process"}
    wrote(path, **{**usual, "what": "another"}, figures={"p50_ms": 7000}, sizes={"rate": 100})
    wrote(path, **usual, figures={"p50_ms": [3, 4, 5], "p99_ms": 9}, sizes={"rate": 1000})
    assert len(performance_page.files(results.read(path))) == 1
    wrote(path, **usual, figures={"p50_ms": [2, 3, 4], "p99_ms": 180}, sizes={"rate": 100})
    made = performance_page.files(results.read(path))
    picture = made["performance-freshness-in-process.svg"]
    assert ">p50 ms</text>" in picture
    assert picture.index(">100</text>", picture.index("rate") - 500) < picture.index(">1,000</text>")
    assert ">200</text>" in picture  # the axis ends above 180
    assert "performance-freshness-in-process.svg" in made[performance_page.PAGE]


@pytest.mark.parametrize(
    ("most", "axis"), [(0.0031, 0.005), (1, 1), (1.01, 2), (180, 200), (500, 500), (501, 1000)]
)
def test_an_axis_ends_at_a_round_number(most: float, axis: float) -> None:
    assert performance_page.nice(most) == axis


# -- lines ---------------------------------------------------------------------------------------------------


def test_the_newest_line_of_a_measurement_counts_and_other_sizes_are_others(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    wrote(path, sizes={"accounts": 10})
    wrote(path, sizes={"accounts": 20})
    wrote(path, sizes={"accounts": 10}, figures={"events_per_cpu_second": 7})
    wrote(path, sizes={"accounts": 10}, kind="peer", by="another 1")
    found = results.read(path)
    assert [(one.sizes["accounts"], one.kind) for one in found] == [(10, "ours"), (20, "ours"), (10, "peer")]
    assert found[0].figures["events_per_cpu_second"] == Figure(7)
    assert found[1].figures["events_per_cpu_second"] == Figure(46_000, 30_000, 50_000, 3)


def test_a_line_names_machine_date_and_commit(tmp_path: Path) -> None:
    made = wrote(tmp_path / "lines")
    assert "cores, Python" in made.machine
    assert len(made.date) == 10
    assert results.read(tmp_path / "lines") == [made]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"stage": "elsewhere"}, "stage is 'elsewhere'"),
        ({"bar": "folds"}, "bar is 'folds'"),
        ({"bar": "upsert"}, "figures are events_per_cpu_second, bar 'upsert' is of p50_us, p99_us"),
        ({"figures": {"p50_ms": []}}, "no runs"),
    ],
)
def test_what_cannot_be_told_is_refused_and_not_written(
    tmp_path: Path, fields: Mapping[str, object], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        wrote(tmp_path / "lines", **fields)
    assert not (tmp_path / "lines").exists()


def test_a_line_that_is_none_is_named_by_its_number(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    wrote(path)
    path.write_bytes(path.read_bytes() + b'{"bench":"fold"}\n')
    with pytest.raises(msgspec.ValidationError, match="line 2"):
        results.read(path)


# -- running -------------------------------------------------------------------------------------------------


def test_parts_are_chosen_by_name_and_by_stage_and_say_what_they_measure() -> None:
    assert performance.choose("upsert,tower") == ["upsert", "encode", "user"]
    assert performance.choose("") == list(performance.STAGE_OF)
    with pytest.raises(ValueError, match="only is folds"):
        performance.choose("upsert,folds")
    assert set(performance.PARTS) == set(results.STAGES)
    assert all(performance.told(part) for part in performance.STAGE_OF)


def test_trials_do_not_get_into_the_page(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        performance.main(["run", "--quick", "--only", "fold"])
    assert "--results" in capsys.readouterr().err


def test_a_part_writes_its_lines_with_its_command(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    given = Given("fold", "ingest", path, big=True, seed=2)
    given.record("some", {"us": [1.0, 2.0]}, sizes={"edges": 3})
    (one,) = results.read(path)
    assert one.command == "python -m bench.performance run --only fold --big --seed 2"
    assert (one.bench, one.stage, one.seed, one.figures["us"]) == ("fold", "ingest", 2, Figure(1.5, 1, 2, 2))


def test_percentiles_and_windows() -> None:
    told = percentiles([number / 1000 for number in range(101)])
    assert told == pytest.approx({"p50_ms": 50, "p95_ms": 95, "p99_ms": 99, "max_ms": 100})
    assert percentiles([2e-6], "us", (50,)) == pytest.approx({"p50_us": 2, "max_us": 2})
    with pytest.raises(ValueError, match="no times"):
        percentiles([])
    assert windows([{"a": 1, "b": 2}, {"a": 3}]) == {"a": [1.0, 3.0]}


def test_conditions_know_which_way_is_better() -> None:
    assert Condition("p99_ms", "at most", 5).met(5)
    assert not Condition("p99_ms", "at most", 5).met(5.1)
    assert Condition("per_second", "at least", 5).met(5)
    assert not Condition("per_second", "at least", 5).met(4.9)


# -- what parts work out -------------------------------------------------------------------------------------


def test_a_step_is_not_charged_for_what_it_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = count(step=10)
    monkeypatch.setattr(steps.time, "thread_time_ns", lambda: next(ticks))

    class Work:
        def outer(self) -> int:
            return self.inner() + self.inner()

        def inner(self) -> int:
            return 1

    plain = Work.outer
    clocks = steps.Clocks()
    with clocks.running([(Work, "outer", "out"), (Work, "inner", "in")]):
        assert Work().outer() == 2
    assert clocks.spent == {"out": 30, "in": 20}  # before, between and behind two calls; each call
    assert Work.outer is plain


def test_steps_add_up_to_what_the_thread_spent_and_leave_the_code_as_it_was() -> None:
    decode, write = Actors.decode, RocksStore.write
    found = steps.measure(300, 1000, 3000, 0, 40)
    assert (Actors.decode, RocksStore.write) == (decode, write)
    together = found.together
    assert all(len(costs) == 5 for costs in [*together.values(), *found.alone.values()])
    named = ("decode", "out-ledger", "in-ledger", "exchange", "rows", "store")
    assert all(min(together[name]) > 0 for name in named)
    assert set(together) == {*named, "rest", "store's threads", "uninstrumented"}
    assert all(min(costs) > 0 for costs in found.alone.values())


def test_follows_before_a_world_are_among_its_accounts_and_before_its_start() -> None:
    world = World.build(SimulationConfig(accounts=50))
    (columns,) = world_follows(world, 400, 1)
    (again,) = world_follows(world, 400, 1)
    sources, targets = columns.source.to_pylist(), columns.target.to_pylist()
    assert (sources, targets) == (again.source.to_pylist(), again.target.to_pylist())
    assert len(sources) == 400
    assert all(one != other for one, other in zip(sources, targets, strict=True))
    assert {*sources, *targets} <= {world.name(number) for number in range(50)}
    assert max(columns.time_us) < world.config.start


def test_events_are_folded_behind_edges_that_were_there() -> None:
    told = measure(
        arguments().parse_args(["--accounts", "60", "--events", "600", "--edges", "300", "--batch", "20"])
    )
    assert told["edges"] == 300
    parts = told["parts"]
    assert isinstance(parts, list)
    assert told["events_per_cpu_second"] in parts or len(parts) % 2 == 0


def test_memory_of_a_further_account_leaves_out_row_caches() -> None:
    few = {"rss_mb": 10, "accounts": 1000, "parts_bytes_per_account": {"row_caches": 100}}
    many = {"rss_mb": 12, "accounts": 2000, "parts_bytes_per_account": {"row_caches": 200}}
    assert growth(few, many) == pytest.approx((2 * 2**20 - 300_000) / 1000)


def test_an_open_loop_does_not_wait_for_the_answers() -> None:
    dues: list[float] = []
    held = asyncio.Event

    async def loop() -> None:
        all_sent = held()

        async def send(_: int, due: float) -> None:
            dues.append(due)
            if len(dues) == 10:
                all_sent.set()
            await all_sent.wait()  # a closed loop would stand still at the first

        async with asyncio.timeout(30):
            await server.every(1000.0, 0.01, send)

    before = time.perf_counter()
    asyncio.run(loop())
    assert before <= dues[0]
    assert np.diff(dues) == pytest.approx([0.001] * 9)


def test_rounds_of_an_open_loop_tell_folding_from_encoding() -> None:
    with freshness.filled(200, 300, 0) as (live, clock, coming):
        live.start()
        paced = run(
            live,
            clock,
            list(islice(coming, 60)),
            freshness.asked(live),
            rate=600.0,
            heard=lambda *_: None,
            published=live.end,
        )
    assert len(paced.freshness) == 60
    assert paced.rounds
    assert all(folding > 0 <= encoding for folding, encoding in paced.rounds)
    assert max(folding + encoding for folding, encoding in paced.rounds) <= paced.seconds


def test_blocks_over_http_are_of_pairs_that_saw_one_another() -> None:
    load = server.Load(rate=20.0, queries=4.0, probes=4.0, seconds=0.5, batch=5, accounts=50, blocks=4.0)
    told = server.serve(load, 2)["sent_in"]
    for side in told["block_to_in_force"].values():
        assert (side["count"], side["odd"]) == (2, 0)
        assert 0 < side["p50_ms"] <= side["p99_ms"] <= side["max_ms"]
    assert told["publish_due_to_answer"]["odd"] == 0
