"""Another model takes the place of the one that answers, beside events and questions, and back again."""

from __future__ import annotations

import threading
from itertools import groupby
from pathlib import Path

import msgspec
import pytest

from kithstream.models.model import Model
from kithstream.streams.config import Config, EngineConfig, IndexSection, ModelConfig
from kithstream.streams.errors import StoreRefused
from kithstream.streams.serve import embedded
from kithstream.streams.serve.embedded import Embedded
from kithstream.streams.serve.lineages import Lineages

NOW = 1_790_000_000_000_000
NAMES = [f"u{number}" for number in range(40)]
SMALL = Config(engine=EngineConfig(partitions=2), index=IndexSection(background=False))
FROZEN = msgspec.structs.replace(SMALL, model=ModelConfig(learn=False))
DIM = 120  # another architecture: a vector of one lineage cannot be multiplied with one of the other


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests are looked for in every round, and filling takes several."""
    monkeypatch.setattr(embedded, "LOOKING", 0.0)
    monkeypatch.setattr(embedded, "FILLED", 7)


def follows(step: int) -> list[dict[str, object]]:
    pairs = [(a, NAMES[(at * step + 3) % 40]) for at, a in enumerate(NAMES)]
    return [
        {"signal": "follow", "actor": a, "target": b, "id": f"{step}{a}", "time": NOW}
        for a, b in pairs
        if a != b
    ]


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """A checkpoint of another architecture."""
    Model.day_zero(5, dim=DIM).save(tmp_path / "other.safetensors")
    return tmp_path / "other.safetensors"


def answers(live: Embedded) -> list[tuple[str, list[tuple[str, float]]]]:
    found = [live.candidates(name, 40) for name in NAMES]
    return [(one.model, [(c.account, c.score) for c in one.candidates]) for one in found]


@pytest.mark.parametrize("config", [SMALL, FROZEN], ids=["learning", "frozen"])
def test_what_was_filled_beside_events_is_what_opening_with_it_would_give(
    tmp_path: Path, other: Path, config: Config
) -> None:
    with Embedded(tmp_path / "kin", config, clock=lambda: NOW) as live:
        live.publish(follows(5))
        live.catch_up()
        before = live.candidates("u1").model
        lineage = live.publish_model(other)
        assert live.candidates("u1").model == before  # it has no vector yet
        live.pump()
        token = live.publish([{"signal": "block", "actor": "u1", "target": "u2"}, *follows(7)])
        live.publish([{"signal": "account_delete", "actor": "u9"}])
        live.turn()
        live.catch_up()
        assert live.includes(token)
        shown = answers_but(live, "u9")
        assert {model for model, _ in shown} == {lineage}
        mine = {account for account, _ in shown[1][1]}
        assert not {"u2", "u9"} & mine
    with Embedded(tmp_path / "kin", FROZEN, clock=lambda: NOW) as again:
        assert again.chain.model.lineage == lineage
        if not config.model.learn:
            assert answers_but(again, "u9") == shown


def answers_but(live: Embedded, gone: str) -> list[tuple[str, list[tuple[str, float]]]]:
    found = [live.candidates(name, 40) for name in NAMES if name != gone]
    return [(one.model, [(c.account, c.score) for c in one.candidates]) for one in found]


def test_a_rollback_goes_on_with_what_was_learned(tmp_path: Path, other: Path) -> None:
    with Embedded(tmp_path / "kin", SMALL, clock=lambda: NOW) as live:
        for step in (5, 7, 11):
            live.publish(follows(step))
            live.catch_up()
        first, learned = live.chain.model.lineage, live.chain.model.step
        assert learned > 0
        before = answers(live)
        second = live.publish_model(other)
        live.turn()
        assert live.roll_back() == first
        live.turn()
        assert (live.chain.model.lineage, live.chain.model.step) == (first, learned)
        assert answers(live) == before
        assert live.roll_back() == second
        live.turn()
        live.publish(follows(13))
        live.catch_up()
        assert live.chain.model.step > 0  # it learns in its turn
        assert live.lineages.state.former == first


def test_questions_meanwhile_are_of_one_lineage_each_and_none_fails(tmp_path: Path, other: Path) -> None:
    with Embedded(tmp_path / "kin", SMALL, clock=lambda: NOW) as live:
        live.publish(follows(5))
        live.catch_up()
        first, models, failures = live.chain.model.lineage, [], []
        stopping, asked = threading.Event(), threading.Event()

        def ask() -> None:
            while not stopping.is_set():
                try:
                    models.append(live.candidates("u3", 20).model)
                except Exception as failure:
                    failures.append(failure)
                    return
                finally:
                    asked.set()

        asking = threading.Thread(target=ask)
        asking.start()
        asked.wait(60)
        second = live.publish_model(other)
        live.turn()
        count = len(models)
        while len(models) < count + 3 and not failures:
            live.pump()
        stopping.set()
        asking.join()
        assert not failures
        assert [lineage for lineage, _ in groupby(models)] == [first, second]


def test_a_process_that_was_killed_serves_what_it_had_switched_to(tmp_path: Path, other: Path) -> None:
    with Embedded(tmp_path / "kin", SMALL, clock=lambda: NOW) as live:
        live.publish(follows(5))
        live.catch_up()
        live.close()
    saved = (tmp_path / "kin" / embedded.MODEL).read_bytes()
    with Embedded(tmp_path / "kin", SMALL, clock=lambda: NOW) as live:
        second = live.publish_model(other)
        live.turn()
    (tmp_path / "kin" / embedded.MODEL).write_bytes(saved)  # kill -9 before it was written
    with Embedded(tmp_path / "kin", SMALL, clock=lambda: NOW) as live:
        assert live.candidates("u1").model == second


@pytest.fixture
def closed(tmp_path: Path) -> Path:
    with Embedded(tmp_path / "kin", SMALL, clock=lambda: NOW) as live:
        live.publish(follows(5))
        live.catch_up()
    return tmp_path / "kin"


def test_a_request_is_taken_up_by_whoever_opens_the_directory(closed: Path, other: Path) -> None:
    wanted = Lineages(closed).publish(other)
    with Embedded(closed, SMALL, clock=lambda: NOW) as live:
        live.turn()
        assert live.candidates("u1").model == wanted.lineage
        with pytest.raises(StoreRefused, match="is the one that is served"):
            live.publish_model(other)


def test_what_cannot_be_served_is_refused_and_named(closed: Path, other: Path) -> None:
    folder = Lineages(closed)
    with pytest.raises(StoreRefused, match="nothing to go back to"):
        folder.point()
    with pytest.raises(StoreRefused, match="expected one of none"):
        folder.point("ffff")
    broken = closed / "broken"
    broken.write_bytes(b"no checkpoint")
    with pytest.raises(ValueError, match="is no checkpoint"):
        folder.publish(broken)
    wanted = folder.publish(other)
    folder.file(wanted.lineage).write_bytes(b"damaged since")
    with Embedded(closed, SMALL, clock=lambda: NOW) as live:
        before = live.candidates("u1").model
        live.turn()
        assert live.candidates("u1").model == before
        assert folder.wanted is None
    pinned = msgspec.structs.replace(SMALL, model=ModelConfig(path=str(closed / embedded.MODEL)))
    with (
        Embedded(closed, pinned, clock=lambda: NOW) as live,
        pytest.raises(StoreRefused, match=r"model\.path"),
    ):
        live.publish_model(other)
