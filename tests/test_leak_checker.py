"""The checker of leaks over histories made by hand: it finds each kind, and nothing where nothing is."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from itertools import count, product
from pathlib import Path
from typing import Any

import pytest
from bench import leak_checker
from bench.leak_checker import Verdict, check
from hypothesis import given, settings
from hypothesis import strategies as st

NOW = 1_000_000_000_000
Logged = tuple[int, int, Mapping[str, Any]]
_ids = count()


def event(signal: str, actor: str, target: str, **fields: object) -> dict[str, Any]:
    number = next(_ids)
    return {
        "id": f"e{number}",
        "signal": signal,
        "actor": actor,
        "target": target,
        "time": NOW + number,
        **fields,
    }


def logged(*events: Mapping[str, Any], partition: int = 0) -> list[Logged]:
    return [(partition, offset, one) for offset, one in enumerate(events)]


def checked(
    log: Sequence[Logged],
    candidates: Sequence[str],
    after: str,
    *,
    token: str = "",
    until: str = "",
    account: str = "ann",
    about: str = "bob",
) -> Verdict:
    answer = (account, about, after, "state", 200, token, until or after, candidates)
    return check(log, [answer])


@pytest.mark.parametrize(
    ("done", "reason"),
    [
        (event("follow", "ann", "bob"), "followed"),
        (event("block", "ann", "bob"), "blocked"),
        (event("block", "bob", "ann"), "blocked"),
        (event("mute", "ann", "bob"), "muted"),
        (event("mute", "bob", "ann"), "muted"),
        (event("report", "ann", "bob"), "reported"),
        (event("report", "bob", "ann"), "reported"),
    ],
)
def test_each_kind_of_leak_is_counted(done: Mapping[str, Any], reason: str) -> None:
    verdict = checked(logged(done), ["cyd", "bob"], "0:1")
    assert (verdict.leaks, dict(verdict.reasons), verdict.candidates) == (1, {reason: 1}, 2)
    assert verdict.named[0].candidate == "bob"
    assert verdict.named[0].reason == f"{reason} by {done['actor']}"


def test_an_account_in_its_own_answer_is_a_leak() -> None:
    assert dict(checked([], ["ann"], "").reasons) == {"self": 1}


def test_who_follows_is_no_leak_for_whom_it_follows() -> None:
    assert checked(logged(event("follow", "bob", "ann")), ["bob"], "0:1").leaks == 0


@pytest.mark.parametrize(
    ("do", "undo"),
    [("follow", "unfollow"), ("block", "unblock"), ("mute", "unmute"), ("report", "withdraw_report")],
)
def test_an_undo_allows_again_wherever_it_stands(do: str, undo: str) -> None:
    done, undone = event(do, "ann", "bob"), event(undo, "ann", "bob")
    for log in (logged(done, undone), logged(undone, done)):
        verdict = checked(log, ["bob"], "0:2")
        assert verdict.leaks == 0
    assert checked(logged(done, undone), ["bob"], "0:2").shown_after == 1
    assert checked(logged(done, undone), ["bob"], "0:1", until="0:1").leaks == 1


def test_what_lies_between_the_token_and_the_end_may_be_in_or_not() -> None:
    log = logged(event("block", "ann", "bob"), event("unblock", "ann", "bob"))
    assert checked(log, ["bob"], "", until="0:1").undecided == 1  # the block may be in
    assert checked(log, ["bob"], "0:1", until="0:2").undecided == 1  # the undo may be in
    assert checked(log, ["bob"], "0:1", until="0:2").leaks == 0
    assert checked(log, ["bob"], "0:1", until="0:1").leaks == 1


def test_the_answers_own_token_counts_as_much_as_the_one_that_was_sent() -> None:
    log = logged(event("block", "ann", "bob"))
    assert checked(log, ["bob"], "", token="0:1").leaks == 1
    assert checked(log, ["bob"], "0:1", token="0:0").leaks == 1  # an answer must not name less than was asked


def test_two_relations_that_take_turns_keep_out_under_every_cut() -> None:
    log = logged(event("block", "ann", "bob"), event("mute", "ann", "bob"), event("unblock", "ann", "bob"))
    assert checked(log, ["bob"], "0:1", until="0:3").leaks == 1
    # In two partitions each may be read as of its own end: the mute unheard, the block undone.
    apart = [*logged(log[0][2], log[2][2]), *logged(event("mute", "bob", "ann"), partition=1)]
    assert checked(apart, ["bob"], "0:1,1:0", until="0:2,1:1").undecided == 1


def test_a_token_of_the_other_side_s_partition_counts() -> None:
    log = [*logged(event("like", "ann", "cyd")), *logged(event("block", "bob", "ann"), partition=2)]
    assert checked(log, ["bob"], "2:1").leaks == 1
    assert checked(log, ["bob"], "0:1", until="0:1,2:1").leaks == 0


def test_the_server_s_word_outweighs_a_later_one_of_a_client() -> None:
    log = logged(event("block", "ann", "bob"), event("unblock", "ann", "bob", source="client"))
    assert checked(log, ["bob"], "0:2").leaks == 1


def test_a_retracted_event_never_was_whether_it_came_first_or_not() -> None:
    block = event("block", "ann", "bob")
    retract = event("retract", "ann", "", retracts=block["id"])
    assert checked(logged(block, retract), ["bob"], "0:2").leaks == 0
    assert checked(logged(retract, block), ["bob"], "0:2").leaks == 0
    assert checked(logged(block, retract), ["bob"], "0:1").leaks == 1
    undo = event("unblock", "ann", "bob")
    retract = event("retract", "ann", "", retracts=undo["id"])
    assert checked(logged(block, undo, retract), ["bob"], "0:3").leaks == 1


def test_refusals_are_counted_and_are_no_answers() -> None:
    log = logged(event("block", "ann", "bob"))
    verdict = check(log, [("ann", "bob", "0:1", "state", "not_yet", "", "0:1", [])])
    assert (verdict.answers, verdict.leaks, verdict.refused, verdict.kept_out) == (0, 0, {"not_yet": 1}, 0)


def test_a_history_in_which_nothing_could_leak_is_void() -> None:
    log = logged(event("block", "ann", "bob"), event("unblock", "ann", "bob"))
    sent: list[tuple[str, Sequence[str]]] = [("", ["bob"]), ("0:1", ["cyd"]), ("0:2", ["bob"])]
    answers = [("ann", "bob", after, "state", 200, after, after, held) for after, held in sent]
    whole = check(log, answers)
    assert (whole.leaks, whole.kept_out, whole.shown_before, whole.shown_after) == (0, 1, 1, 1)
    assert not whole.void
    assert all(check(log, [a for a in answers if a is not left]).void for left in answers)
    absent = check(log, [("ann", "bob", "", "state", 200, "", "", ["cyd"])])
    assert (absent.allowed, absent.shown_before) == (1, 0)


def test_a_hole_in_the_log_is_refused() -> None:
    with pytest.raises(ValueError, match="partition 1 goes on at 1, expected 0"):
        check([(1, 1, event("block", "ann", "bob"))], [])


def oracle(log: Sequence[Logged], begin: int, end: int) -> bool:
    """True if bob is kept out of ann's answers under every cut, computed event by event from the beginning."""
    for cut in range(begin, end + 1):
        seen = log[:cut]
        gone = {one["retracts"] for _, _, one in seen if one["signal"] == "retract"}
        kept = False
        for name, (do, undo) in product(
            ("ann", "bob"), (("block", "unblock"), ("mute", "unmute"), ("follow", "unfollow"))
        ):
            if do == "follow" and name == "bob":
                continue
            said = [one for _, _, one in seen if one["signal"] in (do, undo) and one["actor"] == name]
            said = [one for one in said if one["id"] not in gone]
            newest = max(said, key=lambda one: (one["time"], one["signal"] == undo), default=None)
            kept |= newest is not None and newest["signal"] == do
        if not kept:
            return False
    return True


@given(st.data())
@settings(max_examples=200)
def test_it_agrees_with_a_recount_of_every_cut(data: st.DataObject) -> None:
    names = ("block", "unblock", "mute", "unmute", "follow", "unfollow", "retract")
    drawn = data.draw(
        st.lists(
            st.tuples(st.sampled_from(names), st.booleans(), st.integers(0, 9), st.integers(0, 9)),
            max_size=10,
        )
    )
    log: list[Logged] = []
    for offset, (signal, mine, time, of) in enumerate(drawn):
        actor, target = ("ann", "bob") if mine else ("bob", "ann")
        one = {
            "id": str(offset),
            "signal": signal,
            "actor": actor,
            "target": target,
            "time": time * 100 + offset,
        }
        if signal == "retract":
            one["retracts"] = str(of)
            own = [each for _, _, each in log if each["id"] == str(of)]
            if not own or own[0]["actor"] != actor:
                one["signal"] = "like"  # nobody takes back what another said
        log.append((0, offset, one))
    begin = data.draw(st.integers(0, len(log)))
    end = data.draw(st.integers(begin, len(log)))
    verdict = checked(log, ["bob"], f"0:{begin}", until=f"0:{end}")
    assert bool(verdict.leaks) == oracle(log, begin, end)


def test_it_imports_nothing_of_what_it_checks() -> None:
    code = (
        "import bench.leak_checker, sys; print([n for n in sys.modules if n.split('.')[0] == 'kithstream'])"
    )
    root = Path(leak_checker.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(("held", "status"), [("bob", 1), ("cyd", 0)])
def test_the_command_reads_files_and_fails_where_something_leaked(
    tmp_path: Path, held: str, status: int
) -> None:
    log = logged(event("block", "ann", "bob"), event("unblock", "ann", "bob"))
    (tmp_path / "log").write_text("".join(json.dumps(one) + "\n" for one in log))
    answers = [
        ["ann", "bob", after, "state", 200, after, after, [name]]
        for after, name in (("", "bob"), ("0:1", held), ("0:2", "bob"))
    ]
    (tmp_path / "answers").write_text("".join(json.dumps(one) + "\n" for one in answers))
    command = [sys.executable, "-m", "bench.leak_checker", str(tmp_path / "log"), str(tmp_path / "answers")]
    done = subprocess.run(
        command, cwd=Path(leak_checker.__file__).parents[1], capture_output=True, text=True, check=False
    )
    assert done.returncode == status, done.stderr
    assert json.loads(done.stdout)["leaks"] == status
