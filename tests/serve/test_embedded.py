"""Promises 3 to 7 of the embedded runtime: from publish to answer, over three partitions."""

from __future__ import annotations

import random
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import structs
from promises import agree, expected, held
from soup import ACCOUNTS, DAY, START, soup

from kithstream.models.ages import TICK
from kithstream.models.features import HALF_LIVES, IN, Rows
from kithstream.models.model import Model
from kithstream.streams.communities.known import KnownFor
from kithstream.streams.config import Config, EngineConfig, IndexSection, ModelConfig, RankingConfig
from kithstream.streams.errors import GapInLog, InvalidEvent, NotYet, StoreRefused, Unanswerable, WrongLayout
from kithstream.streams.events.wire import Event
from kithstream.streams.serve.embedded import Embedded, restore

CONFIG = Config(model=ModelConfig(learn=False), index=IndexSection(background=False))
LEARNING = Config(index=IndexSection(background=False), ranking=RankingConfig(fatigue=0, contact=0))
Open = Callable[..., Embedded]


class Clock:
    def __init__(self) -> None:
        self.now = START + 7 * DAY

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Open]:
    """Opens runtimes on one directory, one after the other, and closes what is left."""
    live: list[Embedded] = []

    def open_again(
        config: Config = CONFIG, clock: Callable[[], int] | None = None, path: Path = tmp_path
    ) -> Embedded:
        for before in live:
            before.close()
        live[:] = [Embedded(path, config, clock=clock or Clock())]
        return live[0]

    yield open_again
    for left in live:
        left.close()


def follow(actor: str, target: str, name: str = "", time: int = START + 6 * DAY) -> Event:
    return Event(name or f"{actor}>{target}", "follow", actor, time, target=target)


def names(live: Embedded, account: str, **question: object) -> list[str]:
    if live._thread is None and "after" not in question:
        live.catch_up()
    return [c.account for c in live.candidates(account, 10, **question).candidates]  # type: ignore[arg-type]


def vectors(live: Embedded) -> dict[str, bytes]:
    return {name: live.chain.index.vector(name).tobytes() for name in sorted(live.chain.index.ids())}


CROWD = [follow(a, b) for a in ACCOUNTS for b in ACCOUNTS[:3] if a != b]


def test_a_follow_changes_the_next_answer(opened: Open) -> None:
    live = opened()
    live.publish([follow("ann", "bob")])
    assert names(live, "cyd") == ["bob"]
    token = live.publish([follow("cyd", "bob")])
    assert names(live, "cyd", after=token) == []
    token = live.publish([Event("r", "retract", "cyd", START + 7 * DAY, retracts="cyd>bob")])
    assert names(live, "cyd", after=token) == ["bob"]


@pytest.mark.parametrize("signal", ["block", "mute", "report"])
def test_an_exclusion_is_in_force_on_both_sides_at_its_token(opened: Open, signal: str) -> None:
    live = opened()
    live.publish(CROWD)
    live.catch_up()
    live.publish([Event("x", "retract", "dan", START + 6 * DAY + 1, retracts="dan>ann")])
    token = live.publish([follow("eve", "dan", "fresh")])
    assert "ann" in names(live, "dan", after=token)
    token = live.publish([Event("b", signal, "ann", START + 7 * DAY, target="dan")])
    assert "ann" not in names(live, "dan", after=token)
    assert "dan" not in names(live, "ann", after=token)
    undo = {"block": "unblock", "mute": "unmute", "report": "withdraw_report"}[signal]
    token = live.publish([Event("c", undo, "ann", START + 7 * DAY + 1, target="dan")])
    assert "ann" in names(live, "dan", after=token)


def test_undo_gives_the_same_vectors_bit_for_bit(opened: Open, tmp_path: Path) -> None:
    live = opened()
    live.publish(CROWD)
    live.catch_up()
    before, answer = vectors(live), live.candidates("dan", 5, exclude=["eve"]).candidates
    live.publish([follow("eve", "ann", "extra", START + 6 * DAY + 5), follow("dan", "eve", "extra2")])
    live.catch_up()
    assert vectors(live) != before
    live.publish([Event("r1", "retract", "eve", START + 7 * DAY, retracts="extra")])
    live.publish([Event("r2", "retract", "dan", START + 7 * DAY, retracts="extra2")])
    live.catch_up()
    assert vectors(live) == before
    assert live.candidates("dan", 5, exclude=["eve"]).candidates == answer


@settings(max_examples=15, suppress_health_check=[HealthCheck.too_slow])
@given(soup(), st.randoms(use_true_random=False))
def test_live_equals_replay_equals_batch(
    tmp_path_factory: pytest.TempPathFactory, events: list[Event], rng: random.Random
) -> None:
    """Rows, vectors and answers after any batching, restarts and ageing are those of one batch at the end."""
    path = tmp_path_factory.mktemp("live")
    clock = Clock()
    live = Embedded(path, CONFIG, clock=clock)
    with ExitStack() as stack:  # an example that hypothesis breaks off must not leave files open
        stack.callback(lambda: live.close())
        for first in range(0, len(events), 5):
            live.publish(events[first : first + 5])
            live.pump(rng.randrange(1, 4))
            clock.now += rng.choice((0, 0, TICK, 3 * TICK))
            if rng.random() < 0.2:
                live.close()
                live = Embedded(path, CONFIG, clock=clock)
        live.catch_up()
        agree(live.engine, events)
        live.chain.rebuild(clock.now)  # every vector at one tick
        batch = stack.enter_context(Embedded(tmp_path_factory.mktemp("batch"), CONFIG, clock=clock))
        batch.publish(events)
        batch.catch_up()
        batch.chain.rebuild(clock.now)
        assert vectors(live) == vectors(batch)
        for account in (*ACCOUNTS, "new"):
            assert live.candidates(account).candidates == batch.candidates(account).candidates


@settings(max_examples=15, suppress_health_check=[HealthCheck.too_slow])
@given(soup())
def test_no_answer_holds_a_forbidden_account_and_every_score_is_the_freshest(
    tmp_path_factory: pytest.TempPathFactory, events: list[Event]
) -> None:
    with Embedded(tmp_path_factory.mktemp("live"), LEARNING, clock=Clock()) as live:
        for count in range(0, len(events), 4):
            token = live.publish(events[count : count + 4])
            known = events[: count + 4]
            edges = expected(known, START + 7 * DAY).edges
            for account in ACCOUNTS[:3]:
                answer = live.candidates(account, after=token)
                forbidden = {account}
                for actor, family, target, _ in edges:
                    if actor == account and family in ("follow", "block", "mute", "report"):
                        forbidden.add(target)
                    if target == account and family in ("block", "mute", "report"):
                        forbidden.add(actor)
                assert not forbidden & {c.account for c in answer.candidates}
                asking = live.chain.inspect(account, live.as_of)
                asked = live.chain.model.encode_consumers(asking).vectors[0]
                for candidate in answer.candidates:
                    if nothing_known(asking):
                        seen = live.chain.inspect(candidate.account, live.as_of)
                        fresh = np.log1p(seen.counts[0, IN, 0, HALF_LIVES.index(7 * 86400.0)])
                        if asking.languages[0] not in (0, seen.languages[0]):
                            fresh -= 32
                        assert candidate.score == pytest.approx(fresh, abs=1e-3)  # times are of buckets
                    else:
                        fresh = live.chain.index.scores(asked, [candidate.account])[0]
                        assert np.float32(candidate.score) == fresh


def nothing_known(rows: Rows) -> bool:
    """Whether the one account that was read neither followed nor engaged, nor is followed."""
    return not (rows.degrees[0].any() or rows.followers[0] or rows.followees[0] or rows.engaged[0])


def test_stored_vectors_are_functions_of_row_step_and_tick(opened: Open) -> None:
    """Ageing leaves each vector at the tick it carries, equal to encoding its row at that tick."""
    clock = Clock()
    live = opened(clock=clock)
    live.publish(CROWD)
    for _ in range(9):
        live.pump()
        clock.now += TICK
    ticks = set()
    for name in live.chain.index.ids():
        tick = live.chain.index.sequence(name)
        ticks.add(tick)
        rows = live.chain._reader.read([name], tick * TICK)
        assert (
            live.chain.model.encode_producers(rows).vectors.tobytes()
            == live.chain.index.vector(name).tobytes()
        )
    assert max(ticks) - (START + 7 * DAY) // TICK == 8


def test_a_restart_goes_on_where_it_was_and_learns_on(opened: Open) -> None:
    clock = Clock()
    live = opened(LEARNING, clock)
    live.publish(CROWD)
    live.catch_up()
    state, answer = held(live.engine), live.candidates("dan")
    live = opened(LEARNING, clock)
    assert held(live.engine) == state
    again = live.candidates("dan")
    assert again.candidates == answer.candidates
    assert (again.model, again.step) == (answer.model, answer.step)
    assert answer.step > 0


def test_what_was_published_and_not_folded_waits_in_the_log(opened: Open) -> None:
    live = opened()
    token = live.publish(CROWD)
    live = opened()
    assert live.behind == len(CROWD)
    names(live, "dan", after=token)
    agree(live.engine, CROWD)


def test_an_older_checkpoint_and_the_log_give_the_same_state(opened: Open, tmp_path: Path) -> None:
    live = opened()
    live.publish(CROWD[:5])
    live.catch_up()
    live.checkpoint(tmp_path / "checkpoint")
    live.publish(CROWD[5:])
    live.catch_up()
    state = held(live.engine)
    live.close()
    restore(tmp_path / "checkpoint", tmp_path)
    live = opened()
    live.catch_up()
    assert held(live.engine) == state


def test_a_gap_in_the_log_is_refused(opened: Open, tmp_path: Path) -> None:
    live = opened()
    live.publish([follow("ann", "bob")])
    number = live.engine.route["ann"]
    live.close()
    log = tmp_path / "log" / str(number)
    (log / f"{0:020d}.log").rename(log / f"{7:020d}.log")
    with pytest.raises(GapInLog, match="begins at 7"):
        opened()


def test_the_log_is_let_go_of_after_its_retention(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kithstream.streams.engine.log.SEGMENT", 300)
    clock = Clock()
    live = opened(clock=clock)
    number = live.engine.route["ann"]
    for count in range(14):
        live.publish([follow("ann", f"star{count}")])
        live.pump()
        clock.now += DAY
    live.pump()
    kept = live._logs[number]
    assert 0 < kept.first < kept.end
    assert all(record.appended >= clock.now - 11 * DAY for record in kept.read(kept.first, 99))
    live = opened(clock=clock)
    assert "star0" not in names(live, "ann")


def test_a_log_that_lost_records_is_refused(opened: Open, tmp_path: Path) -> None:
    live = opened()
    live.publish([follow("ann", "bob")])
    live.catch_up()
    number = live.engine.route["ann"]
    live.close()
    (tmp_path / "log" / str(number) / f"{0:020d}.log").unlink()
    with pytest.raises(StoreRefused, match="lost records"):
        opened()


def test_another_partition_count_is_refused(opened: Open) -> None:
    opened().close()
    with pytest.raises(WrongLayout, match="3 partitions"):
        opened(Config(engine=EngineConfig(partitions=4)))


def test_a_second_process_is_kept_out(opened: Open, tmp_path: Path) -> None:
    opened()
    with pytest.raises(StoreRefused, match="cannot be opened"):
        Embedded(tmp_path, CONFIG)


def test_a_token_that_was_never_given_is_not_yet(opened: Open) -> None:
    live = opened()
    with pytest.raises(NotYet):
        live.candidates("ann", after="0:99")


@pytest.mark.parametrize("token", ["x", "9:1", "0:", "0:-1", "0:1;1:1", "0:" + "9" * 30])
def test_a_malformed_token_is_named(opened: Open, token: str) -> None:
    with pytest.raises(ValueError, match="token is"):
        opened().candidates("ann", after=token)


def test_publishing_is_all_or_nothing(opened: Open) -> None:
    live = opened()
    with pytest.raises(InvalidEvent, match="target is"):
        live.publish([follow("ann", "bob"), follow("bob", "bob")])
    assert live.behind == 0


def test_a_thread_folds_and_a_token_waits_for_it(opened: Open) -> None:
    live = opened().start()
    for count in range(20):
        token = live.publish([follow(f"fan{count}", f"star{count}", f"e{count}")])
        assert f"star{count}" in names(live, "ann", after=token, deadline=30.0, allow=[f"star{count}"])


def test_questions_beside_a_busy_writer_stay_allowed(opened: Open) -> None:
    """Readers in threads, a writer toggling follows: no error, and nobody is shown whom he follows for good."""
    live = opened(LEARNING).start()
    token = live.publish(
        [follow("ann", "bob"), follow("eve", "bob"), follow("eve", "cyd"), follow("eve", "dan")]
    )
    live.candidates("ann", after=token, deadline=30.0)
    wrong: list[object] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            try:
                found = names(live, "ann")
            except Exception as error:
                wrong.append(error)
                return
            if "bob" in found or "ann" in found:
                wrong.append(found)

    readers = [threading.Thread(target=ask) for _ in range(2)]
    for reader in readers:
        reader.start()
    for count in range(60):
        signal = "unfollow" if count % 2 else "follow"
        token = live.publish([Event(f"t{count}", signal, "dan", START + 6 * DAY + count, target="cyd")])
    live.candidates("ann", after=token, deadline=30.0)
    stop.set()
    for reader in readers:
        reader.join()
    assert not wrong


def test_hidden_accounts_are_no_candidates_and_come_back(opened: Open) -> None:
    live = opened()
    live.publish(CROWD)
    assert "bob" in names(live, "new")
    for number, (hide, show) in enumerate(
        [
            ({"signal": "profile", "private": True}, {"signal": "profile", "private": False}),
            ({"signal": "profile", "suspended": True}, {"signal": "profile", "suspended": False}),
            ({"signal": "account_deactivate"}, {"signal": "account_reactivate"}),
        ]
    ):
        at = START + 6 * DAY + 1000 * number
        token = live.publish([{**hide, "id": f"h{number}", "actor": "bob", "time": at}])
        assert "bob" not in names(live, "new", after=token)
        token = live.publish([{**show, "id": f"s{number}", "actor": "bob", "time": at + 1}])
        assert "bob" in names(live, "new", after=token)


def test_a_deactivated_or_deleted_account_gets_no_answer(opened: Open) -> None:
    live = opened()
    live.publish([*CROWD, Event("d", "account_deactivate", "ann", START + 6 * DAY)])
    live.publish([Event("x", "account_delete", "bob", START + 6 * DAY)])
    live.catch_up()
    for account in ("ann", "bob"):
        with pytest.raises(Unanswerable):
            live.candidates(account)
    assert not {"ann", "bob"} & set(names(live, "new"))


def test_an_account_may_opt_in_before_its_first_follower(opened: Open) -> None:
    live = opened()
    live.publish([{"signal": "profile", "id": "p", "actor": "zoe", "listed": True, "time": START + 6 * DAY}])
    assert names(live, "ann") == ["zoe"]


def test_languages_filter_and_rank(opened: Open) -> None:
    live = opened()
    live.publish(
        [
            {"signal": "profile", "id": f"p{a}", "actor": a, "language": lang, "time": START + 6 * DAY}
            for a, lang in (("ann", "de"), ("bob", "en"), ("cyd", "de-AT"), ("new", "de"))
        ]
    )
    live.publish([follow("dan", a) for a in ("ann", "bob", "cyd")])
    assert set(names(live, "new", languages=["de"])) == {"ann", "cyd"}
    assert set(names(live, "new")) == {"ann", "bob", "cyd"}
    assert names(live, "new")[-1] == "bob"


def test_an_answer_says_what_it_was_made_from(opened: Open) -> None:
    live = opened()
    token = live.publish([follow("ann", "bob"), follow("bob", "ann"), follow("cyd", "ann", "k")])
    answer = live.candidates("cyd", 5, after=token)
    assert answer.model == live.chain.model.lineage
    assert answer.tick == (START + 7 * DAY) // TICK
    assert answer.short == "1 of 5: no more are allowed"
    assert answer.candidates[0].reasons == ("followed by ann whom you follow",)


@pytest.mark.parametrize(("k", "account"), [(0, "ann"), (1001, "ann"), (5, ""), (5, "a\0b"), (5, "x" * 129)])
def test_a_bad_question_is_named(opened: Open, k: int, account: str) -> None:
    with pytest.raises(ValueError, match=r"(k|account) is"):
        opened().candidates(account, k)


def crowd(size: int = 30) -> list[Event]:
    """Everybody follows the star and each other in a ring; the star follows them."""
    names_ = [f"f{i:02d}" for i in range(size)]
    events = [follow(name, "star") for name in names_] + [follow("star", name) for name in names_]
    return events + [follow(a, b) for a, b in zip(names_, names_[1:] + names_[:1], strict=True)]


def test_a_deleted_account_leaves_answers_reasons_index_and_model(opened: Open) -> None:
    config = Config(engine=EngineConfig(job_edges=4), index=IndexSection(background=False))
    live = opened(config)
    live.publish([*crowd(), follow("fan", "f00"), follow("fan", "star")])
    live.catch_up()
    assert "star" in names(live, "zed")
    assert "star" in live.chain.model.ids
    token = live.publish([Event("x", "account_delete", "star", START + 6 * DAY)])
    while not live.includes(token):
        live.pump()
    assert live.engine.at(live.engine.route["star"]).leaving  # the job has only begun
    answer = live.candidates("fan", 50, after=token, reasons=50)
    assert "star" not in [c.account for c in answer.candidates]
    assert not any("star" in reason for c in answer.candidates for reason in c.reasons)
    with pytest.raises(Unanswerable):
        live.candidates("star", 5, after=token)
    live.catch_up()
    assert "star" not in live.chain.index
    assert "star" not in live.chain.model.ids
    assert live.chain.trainer is not None
    known = {live.chain.model.ids.name(row) for row in live.chain.trainer.producers.rows.tolist()}
    recent = live.chain.trainer.negatives.targets.ordered().tolist()
    assert "star" not in known
    assert "star" not in {live.chain.model.ids.name(row) for row in recent}
    assert None not in {live.chain.model.ids.name(row) for row in recent}
    saved = Model.load(live.save_model())
    assert "star" not in saved.ids
    live.checkpoint(live.path / "copy")
    assert "star" not in Model.load(live.path / "copy" / "model.safetensors").ids


def test_a_model_that_was_saved_before_the_deletion_forgets_when_it_is_opened(
    opened: Open, tmp_path: Path
) -> None:
    live = opened(LEARNING)
    live.publish(crowd(4))
    live.catch_up()
    older = live.save_model(tmp_path / "older.safetensors")
    live.publish([Event("x", "account_delete", "star", START + 6 * DAY)])
    live.catch_up()
    live.close()
    older.replace(live.path / "model.safetensors")
    assert "star" not in opened(LEARNING).chain.model.ids


def test_rows_that_background_work_changes_are_encoded_again(opened: Open) -> None:
    live = opened(Config(engine=EngineConfig(job_edges=2), index=IndexSection(background=False)))
    many = [Event(f"b{i}", "address_book", "ann", START + 6 * DAY, target=f"c{i}") for i in range(9)]
    live.publish([Event("p", "profile", "ann", START + 6 * DAY, contacts=True), *many, follow("bob", "ann")])
    live.catch_up()
    live.publish([Event("q", "profile", "ann", START + 6 * DAY + 1, contacts=False)])
    live.catch_up()
    assert not live.engine.working
    assert not held(live.engine).rows_out.get("ann")
    (view,) = live.chain.vectors.reader._load(["ann"])  # no feature reads these counters
    assert not view.row_out


KNOWN = {"bob": 0, "cyd": 0, "dan": 1}
NORMS = np.array([4.0, 3.0], np.float32)


def version(path: Path, known: dict[str, int] | None = None) -> Path:
    KnownFor.of_accounts(KNOWN if known is None else known, NORMS).save(path)
    return path


def test_rows_say_communities_of_interest_and_audience(opened: Open, tmp_path: Path) -> None:
    live = opened()
    live.publish([follow("ann", "bob"), follow("ann", "cyd"), follow("ann", "dan"), follow("eve", "bob")])
    live.catch_up()
    live.communities(version(tmp_path / "v"))
    live.fill()
    rows = live.chain.inspect("ann", live.as_of)
    assert rows.interests[0, :2].tolist() == [0, -1]
    assert rows.interest_weights[0, :2].tolist() == [1.0, 0.0]
    rows = live.chain.inspect("bob", live.as_of)
    assert rows.known_for.tolist() == [0]
    assert rows.communities[0, :2].tolist() == [0, -1]
    # Two followers, of whom one has two followees of community 0, whose column has length 4.
    assert rows.community_weights[0, 0] == np.float32(2 / (4 * np.sqrt(2)))
    assert [live.chain.inspect(a, live.as_of).known_for[0] for a in ("dan", "bob", "eve")] == [1, 0, -1]


def test_the_version_survives_a_restart_and_a_checkpoint(opened: Open, tmp_path: Path) -> None:
    live = opened(path=tmp_path / "live")
    live.publish([follow("ann", "bob"), follow("ann", "cyd"), follow("ann", "dan")])
    live.catch_up()
    name = live.communities(version(tmp_path / "v"))
    (tmp_path / "v").unlink()
    live = opened(path=tmp_path / "live")  # before anything was filled
    live.fill()
    assert live.engine.communities == name
    live.checkpoint(tmp_path / "copy")
    live.close()
    shutil.rmtree(tmp_path / "live" / "communities")
    restore(tmp_path / "copy", tmp_path / "live")
    live = opened(path=tmp_path / "live")
    assert live.engine.communities == name
    assert live.chain.inspect("ann", live.as_of).interests[0, 0] == 0


def test_a_version_of_the_settings_takes_the_place_of_another(opened: Open, tmp_path: Path) -> None:
    live = opened(path=tmp_path / "live")
    live.publish([follow("ann", "bob"), follow("ann", "cyd")])
    live.catch_up()
    live.communities(version(tmp_path / "v"))
    live.fill()
    other = version(tmp_path / "w", {"bob": 1, "cyd": 1})
    engine = structs.replace(CONFIG.engine, communities=str(other))
    live = opened(structs.replace(CONFIG, engine=engine), path=tmp_path / "live")
    assert live.chain.inspect("ann", live.as_of).interests[0, 0] == 0
    live.fill()
    assert live.chain.inspect("ann", live.as_of).interests[0, 0] == 1
    assert [file.stem for file in (tmp_path / "live" / "communities").iterdir()] == [live.engine.communities]


def test_a_file_that_holds_no_communities_is_refused(opened: Open, tmp_path: Path) -> None:
    (tmp_path / "v").write_bytes(b"nothing")
    with pytest.raises(StoreRefused, match="holds no communities"):
        opened(path=tmp_path / "live").communities(tmp_path / "v")
