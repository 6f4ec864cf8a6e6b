"""The sums of docs/scale.md on values worked out in another way, and the page on the committed unit costs."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import msgspec
import numpy as np
import pytest
from bench import scale, scale_simulate
from bench.scale_model import Costs, Setting, bill, encoded, exchanged, index_money, largest, replica, sharded
from bench.scale_units import UNITS, read

from kithstream.streams.serve.ageing import Ageing

PAGE = Path(__file__).parents[1] / "docs" / "scale.md"


@pytest.fixture(scope="module")
def costs() -> Costs:
    return Costs(read(UNITS))


def test_tables_of_the_page_are_those_of_the_unit_costs(costs: Costs) -> None:
    page = PAGE.read_text()
    assert scale.written(page, costs, Setting()) == page, "python -m bench.scale page"


def test_every_unit_cost_has_its_command_and_none_is_of_a_quick_run(costs: Costs) -> None:
    for name, unit in costs.units.items():
        assert unit.command == f"python -m bench.scale_units --only {name}"
        assert all(math.isfinite(value) for value in unit.figures.values())


def test_a_table_that_the_page_lacks_is_told(costs: Costs) -> None:
    with pytest.raises(ValueError, match="tables are units, expected inputs"):
        scale.written("<!-- table: units -->\n<!-- end -->", costs, Setting())


@pytest.mark.parametrize(("partitions", "batch"), [(4, 20), (9, 30)])
def test_each_batch_sends_every_partition_a_frame(partitions: int, batch: int) -> None:
    one = scale_simulate.exchange(partitions, batch, 0, accounts=300, batches=12)
    assert one.frames >= partitions / batch
    # Further frames are replies to deletions, and of batches that are folded in parts.
    assert one.frames == pytest.approx(partitions / batch, rel=0.25)
    assert 0 <= one.telling < one.frames


def test_the_models_bytes_are_near_those_of_the_engine(costs: Costs) -> None:
    figures = costs.units["exchange"].figures
    frame = costs.units["frame"].figures["frame_bytes"]
    for name, size in figures.items():
        if name.startswith("bytes_"):
            partitions, batch = (int(word) for word in name.split("_") if word.isdigit())
            told = costs.edges_bytes + partitions / batch * frame
            assert told == pytest.approx(size, rel=0.35), name  # a frame with edges has a few bytes more


def test_a_crowd_is_all_accounts_and_all_touches() -> None:
    for exponent in (0.0, 0.78, 1.0):
        crowd = scale_simulate.crowd(100_000, 500.0, exponent)
        assert crowd.counts.sum() == 100_000
        assert float(crowd.counts @ crowd.rates) == pytest.approx(500.0)
        assert crowd.encoded(0.0) == pytest.approx(500.0)


def test_distinct_accounts_are_those_of_drawn_touches() -> None:
    rng = np.random.default_rng(0)
    weights = np.arange(1, 5001) ** -0.8
    drawn = rng.choice(5000, 20_000, p=weights / weights.sum())
    for size in (100, 1000, 10_000):
        crowd = scale_simulate.crowd(5000, float(size), 0.8)
        seen = np.mean([len(set(drawn[at : at + size].tolist())) for at in range(0, 20_000, size)])
        # Classes of ranks are integrals of the law instead of sums, which differ at the first ranks.
        assert crowd.distinct(1.0) == pytest.approx(seen, rel=0.04)


def test_the_fit_finds_the_law_that_touches_were_drawn_by() -> None:
    rng = np.random.default_rng(1)
    weights = np.arange(1, 2001) ** -0.9
    drawn = rng.choice(2000, (10_000, 2), p=weights / weights.sum()).tolist()
    found = scale_simulate.fit(drawn, 2000, (10, 100, 1000))
    assert found.exponent == pytest.approx(0.9, abs=0.06)
    assert found.worst < 0.05


def test_ageing_is_that_of_the_runtime() -> None:
    rng, accounts, ticks = np.random.default_rng(2), 2000, 400
    for mean in (0.02, 0.1):  # touches of an account in a tick
        ageing, aged = Ageing(2.0), 0
        ageing.changed(map(str, range(accounts)), 0)
        for tick in range(1, ticks):
            ageing.changed(map(str, np.flatnonzero(rng.random(accounts) < mean).tolist()), tick)
            due = ageing.due(tick, accounts)
            ageing.encoded(due, [0] * len(due), tick)
            if tick > ticks // 2:  # when it has come to rest
                aged += len(due)
        rates = np.full(1, mean / scale_simulate.TICK)
        crowd = scale_simulate.Crowd(np.full(1, float(accounts)), rates)
        told = crowd.aged() * scale_simulate.TICK * (ticks - 1 - ticks // 2)
        assert aged == pytest.approx(told, rel=0.1)  # at most one touch a tick here, some more there


@pytest.mark.parametrize(("k", "shards"), [(200, 8), (20, 4), (200, 64)])
def test_shards_name_as_many_as_needed_and_no_more(k: int, shards: int) -> None:
    rng, missed = np.random.default_rng(3), 0.01
    named = scale_simulate.kept(k, shards, missed)

    def lost(named: int) -> float:
        held = rng.multinomial(k, np.full(shards, 1 / shards), 20_000)
        return float(np.maximum(held - named, 0).sum(axis=1).mean() / k)

    assert lost(named) < missed * 1.1
    assert lost(named - 1) > missed * 0.9


def test_frames_grow_with_the_square_until_batches_are_full(costs: Costs) -> None:
    few, many = (exchanged(costs, 1e6, partitions, 0.005) for partitions in (64, 128))
    assert many.frames == pytest.approx(4 * few.frames)
    full = exchanged(costs, 1e6, 16, 1.0)
    assert (full.batch, full.frames) == (500, 1e6 * 16 / 500)
    assert exchanged(costs, 100.0, 64, 0.005).batch == 1


def test_the_full_replica_holds_up_to_its_border_and_not_beyond(costs: Costs) -> None:
    setting = Setting(flush=0.015, partitions=16)
    border = largest(costs, 1e6, setting)
    assert border > 0
    assert not replica(costs, 1e6, border, setting).ends(setting)
    assert replica(costs, 1e6, border * 1.03, setting).ends(setting) == "CPU"
    small = msgspec.structs.replace(setting, process_gb=0.001)
    assert (largest(costs, 1e6, small), replica(costs, 1e6, 1.0, small).ends(small)) == (0.0, "memory")
    assert largest(costs, 1000, msgspec.structs.replace(setting, flush=10.0)) == math.inf


@pytest.mark.parametrize("visited", [0, 4])
@pytest.mark.parametrize("cores", [1, 8])
def test_no_process_of_a_cut_is_busier_or_larger_than_planned(costs: Costs, visited: int, cores: int) -> None:
    setting = Setting(visited=visited, process_cores=cores)
    vectors = encoded(costs, setting.accounts, setting.events, setting.flush).all
    cut = sharded(costs, vectors, setting)
    asked = setting.questions * costs.searched(cut.named) * cut.visited / cut.shards / cut.replicas
    applied = vectors * costs.candidates * costs.apply / cut.shards
    assert asked + applied <= setting.busy * cores + 1e-9
    assert cut.gigabytes <= setting.process_gb
    assert cut.replicas >= setting.replicas
    assert cut.visited == (visited or cut.shards)
    more = cut._replace(replicas=cut.replicas + 1)
    assert index_money(costs, more, vectors, setting) > index_money(costs, cut, vectors, setting)


def test_what_fits_in_no_cut_is_told(costs: Costs) -> None:
    with pytest.raises(ValueError, match="fit in no cut"):
        sharded(costs, 1e6, Setting(process_gb=1e-9))


def test_the_bill_is_worked_out_by_hand(costs: Costs) -> None:
    setting = Setting()
    stages = {stage.name.split(":")[0]: stage for stage in bill(costs, setting)}
    frames = setting.events * setting.partitions / (setting.events * setting.gather / setting.partitions)
    fold = (setting.events * costs.fold + frames * costs.frame) / 0.6
    assert stages["fold and exchange"].cores == pytest.approx(fold)
    assert stages["fold and exchange"].money(setting) == pytest.approx(fold * 0.04 * 730)
    week = 7 * 24 * 3600
    disk = 1e8 * (costs.row_bytes + 100 * costs.edge_bytes) + 1e6 * week * costs.horizon_bytes
    assert stages["state"].disk_gb == pytest.approx(disk / 1e9)
    brokers = stages["brokers"]
    assert brokers.money(setting) == pytest.approx(
        brokers.cores * 0.04 * 730
        + brokers.disk_gb * 0.08
        + brokers.traffic_mb / 1e3 * 3600 * 730 * 2 / 3 * 0.01
    )
    assert Counter(stage.split(":")[0] for stage in stages) == Counter(
        ["fold and exchange", "state", "towers", "index", "brokers"]
    )
