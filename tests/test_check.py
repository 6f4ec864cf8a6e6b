from __future__ import annotations

import ast
import json
import sys
from collections.abc import Mapping
from itertools import count
from pathlib import Path

import pytest

from kithstream.streams import check as checking
from kithstream.streams.check import Given, check
from kithstream.streams.engine.actors import Record
from kithstream.streams.engine.log import Log

NOW = 1_000_000_000_000
_ids = count()


def event(signal: str, actor: str, target: str = "", at: int = 0, **fields: object) -> dict[str, object]:
    named = {"target": target} if target else {}
    return {"id": f"e{next(_ids)}", "signal": signal, "actor": actor, "time": NOW + at, **named, **fields}


def logged(folder: Path, *events: Mapping[str, object], partition: int = 0) -> Path:
    with Log(folder / str(partition)) as log:
        log.append([Record(NOW, json.dumps(one).encode()) for one in events])
    return folder


def reasons(
    folder: Path, *events: Mapping[str, object], token: str = "", until: str = "", named: str = "cyd"
) -> list[str]:
    """Why an answer for ann that holds one account is wrong; by default the answer knows every event."""
    token = token or f"0:{len(events)}"
    checked = check(logged(folder, *events), [Given("ann", [named], token, until or token)])
    return [violation.reason for violation in checked.violations]


@pytest.mark.parametrize(
    ("events", "reason"),
    [
        ([event("follow", "ann", "cyd")], "followed"),
        ([event("block", "ann", "cyd")], "blocked by ann"),
        ([event("block", "cyd", "ann")], "blocked by cyd"),
        ([event("mute", "ann", "cyd")], "muted by ann"),
        ([event("mute", "cyd", "ann")], "muted by cyd"),
        ([event("report", "ann", "cyd")], "reported by ann"),
        ([event("report", "cyd", "ann")], "reported by cyd"),
        ([event("profile", "cyd", private=True)], "private"),
        ([event("profile", "cyd", suspended=True)], "suspended"),
        ([event("account_deactivate", "cyd")], "deactivated"),
        ([event("account_delete", "cyd")], "deleted"),
    ],
)
def test_every_kind_of_forbidden_account_is_caught(
    tmp_path: Path, events: list[Mapping[str, object]], reason: str
) -> None:
    assert reasons(tmp_path, *events) == [reason]


def test_an_account_itself_is_caught(tmp_path: Path) -> None:
    assert reasons(tmp_path, event("like", "ann", "bob", item="i"), named="ann") == ["self"]


@pytest.mark.parametrize(
    ("do", "undo"),
    [
        ("follow", "unfollow"),
        ("block", "unblock"),
        ("mute", "unmute"),
        ("report", "withdraw_report"),
    ],
)
def test_an_undo_allows_again_wherever_it_stands_in_the_log(tmp_path: Path, do: str, undo: str) -> None:
    done, undone = event(do, "ann", "cyd"), event(undo, "ann", "cyd", at=1)
    assert reasons(tmp_path / "in order", done, undone) == []
    assert reasons(tmp_path / "the other way", undone, done) == []


def test_the_later_event_decides(tmp_path: Path) -> None:
    unblock, block = event("unblock", "cyd", "ann"), event("block", "cyd", "ann", at=1)
    assert reasons(tmp_path, block, unblock) == ["blocked by cyd"]


def test_a_client_does_not_overrule_a_server(tmp_path: Path) -> None:
    block = event("block", "cyd", "ann")
    assert reasons(tmp_path, block, event("unblock", "cyd", "ann", at=9, source="client")) == [
        "blocked by cyd"
    ]


def test_a_retraction_allows_again_before_and_after_what_it_retracts(tmp_path: Path) -> None:
    follow = event("follow", "ann", "cyd")
    retract = event("retract", "ann", retracts=follow["id"])
    assert reasons(tmp_path / "after", follow, retract) == []
    assert reasons(tmp_path / "before", retract, follow) == []
    somebody_else = event("retract", "bob", retracts=follow["id"])
    assert reasons(tmp_path / "not his", follow, somebody_else) == ["followed"]


def test_retracting_an_unfollow_brings_the_follow_back(tmp_path: Path) -> None:
    follow, unfollow = event("follow", "ann", "cyd"), event("unfollow", "ann", "cyd", at=1)
    assert reasons(tmp_path, follow, unfollow, event("retract", "ann", retracts=unfollow["id"])) == [
        "followed"
    ]


def test_a_standing_ends_when_it_is_taken_back(tmp_path: Path) -> None:
    assert (
        reasons(
            tmp_path / "a",
            event("profile", "cyd", private=True),
            event("profile", "cyd", at=1, private=False),
        )
        == []
    )
    left, back = event("account_deactivate", "cyd"), event("account_reactivate", "cyd", at=1)
    assert reasons(tmp_path / "b", left, back) == []
    assert reasons(tmp_path / "c", back, event("account_deactivate", "cyd", at=2)) == ["deactivated"]


def test_only_what_the_token_covers_counts(tmp_path: Path) -> None:
    events = [event("like", "ann", "bob", item="i"), event("follow", "ann", "cyd")]
    assert reasons(tmp_path / "before", *events, token="0:1") == []
    assert reasons(tmp_path / "after", *events, token="0:2") == ["followed"]
    assert reasons(tmp_path / "elsewhere", *events, token="1:2") == []


def test_what_may_have_been_lifted_before_the_answer_was_complete_is_no_violation(tmp_path: Path) -> None:
    events = [event("follow", "ann", "cyd"), event("unfollow", "ann", "cyd", at=1)]
    assert reasons(tmp_path / "lifted", *events, token="0:1", until="0:2") == []
    assert reasons(tmp_path / "not yet", *events, token="0:1", until="0:1") == ["followed"]
    again = [*events, event("follow", "ann", "cyd", at=2)]
    assert reasons(tmp_path / "for a moment", *again, token="0:1", until="0:3") == []


def test_partitions_are_read_side_by_side(tmp_path: Path) -> None:
    logged(tmp_path, event("like", "ann", "bob", item="i"))
    logged(tmp_path, event("block", "cyd", "ann"), partition=1)
    given = Given("ann", ["bob", "cyd"], "0:1,1:1", "0:1,1:1")
    checked = check(tmp_path, [given, given._replace(token="0:1,1:0", until="0:1,1:0")])
    assert (checked.answers, checked.candidates) == (2, 4)
    assert [(v.candidate, v.reason, v.token) for v in checked.violations] == [
        ("cyd", "blocked by cyd", "0:1,1:1")
    ]


def test_broken_and_late_records_count_as_nothing_but_keep_their_offset(tmp_path: Path) -> None:
    with Log(tmp_path / "0") as log:
        late = event("block", "ann", "cyd", at=-8 * 86_400_000_000)
        for raw in (json.dumps(event("like", "ann", "bob", item="i")), "no json", json.dumps(late)):
            log.append([Record(NOW, raw.encode())])
        log.append([Record(NOW, json.dumps(event("follow", "ann", "cyd")).encode())])
    checked = check(tmp_path, [Given("ann", ["cyd"], end, end) for end in ("0:3", "0:4")])
    assert [violation.reason for violation in checked.violations] == ["followed"]


def test_a_log_without_its_beginning_is_refused(tmp_path: Path) -> None:
    logged(tmp_path, event("follow", "ann", "cyd"))
    first = tmp_path / "0" / f"{0:020d}.log"
    first.rename(first.with_name(f"{5:020d}.log"))
    with pytest.raises(ValueError, match="begins at offset 5"):
        check(tmp_path, [])


def test_the_check_shares_no_code_with_what_it_checks() -> None:
    tree = ast.parse(Path(checking.__file__ or "").read_text())
    names = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    names |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert {name.split(".")[0] for name in names} <= set(sys.stdlib_module_names)
