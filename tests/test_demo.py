from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from kithstream.streams.check import Given, check
from kithstream.streams.cli import cli
from kithstream.streams.config import Config
from kithstream.streams.demo import ANSWERS, Demo, DemoConfig, Percentiles, Report, summary
from kithstream.streams.serve.exclusions import Exclusions

TINY = DemoConfig(accounts=300, events=1600, seed=3, seconds=0.3, sample=40)


class Played:
    """A tiny demo with the lines it wrote."""

    def __init__(self, path: Path, demo: DemoConfig = TINY) -> None:
        self.path = path
        self.lines: list[str] = []
        self.demo = Demo(path, demo, Config(), self.lines.append)
        self.report = self.demo.run()

    @property
    def text(self) -> str:
        return "\n".join(self.lines)


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Played:
    return Played(tmp_path_factory.mktemp("demo"))


def test_no_answer_held_a_forbidden_account(played: Played) -> None:
    assert played.report.forbidden == 0
    assert played.report.answers == len(played.demo.given) > 50


def test_everything_published_is_counted(played: Played) -> None:
    assert played.report.events > TINY.events  # the story publishes some more
    assert 100 < played.report.indexed < played.report.accounts <= TINY.accounts
    assert played.report.learned > 0


def test_each_event_of_the_paced_part_has_a_delay(played: Played) -> None:
    assert 0 < played.report.freshness_ms.p50 <= played.report.freshness_ms.p99
    assert 0 < played.report.query_ms.p50 <= played.report.query_ms.p99


def test_the_story_keeps_its_promises(played: Played) -> None:
    assert played.report.promises_broken == 0
    assert "NOT KEPT" not in played.text
    assert "bit for bit" in played.text
    assert played.text.count("ms after publishing") == 5


def test_the_answers_are_kept_beside_the_log(played: Played) -> None:
    kept = [Given(**json.loads(line)) for line in (played.path / ANSWERS).read_text().splitlines()]
    assert [list(given) for given in kept] == [list(given) for given in played.demo.given]


def test_planted_answers_are_found_in_a_real_log(played: Played) -> None:
    """A candidate that the account follows in the end is planted into its newest answer."""
    log = played.path / "log"
    newest = {given.account: given for given in played.demo.given}
    follows = [
        (event["actor"], event["target"])
        for file in log.glob("*/*.log")
        for event in _records(file.read_bytes())
        if event["signal"] == "follow" and event["actor"] in newest
    ]
    planted = [newest[actor]._replace(candidates=[target]) for actor, target in follows[-20:]]
    assert len(check(log, planted).violations) > 0.7 * len(planted)


def test_a_runtime_that_forgets_exclusions_is_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Exclusions, "of", lambda self, account: {account})  # the fault itself is the subject
    report = Played(tmp_path).report
    assert report.forbidden > 0
    assert report.promises_broken > 0


def test_the_table_names_every_measure() -> None:
    some = Percentiles(1.0, 2.0)
    numbers = {
        "events": 1,
        "accounts": 2,
        "indexed": 3,
        "learned": 4,
        "encoded": 5,
        "answers": 6,
        "forbidden": 7,
    }
    report = Report(
        **numbers,
        events_per_second=1234.5,
        rate=1000.0,
        freshness_ms=some,
        query_ms=some,
        queries=50,
        story_ms=some,
        reopened_seconds=0.1,
        promises_broken=0,
        seconds=9.0,
    )
    text = "\n".join(summary(report))
    assert "1,234 events/s" in text
    assert "p50 1.0 ms, p99 2.0 ms" in text
    assert "6 against the log: 7 forbidden accounts" in text


def test_json_is_one_line_with_the_numbers(tmp_path: Path) -> None:
    command = ["demo", "--accounts", "200", "--events", "1200", "--seconds", "0.1", "--json"]
    result = CliRunner().invoke(cli, command)
    assert result.exit_code == 0, result.output
    (line,) = result.stdout.splitlines()
    report = json.loads(line)
    assert report["forbidden"] == 0
    assert set(report["freshness_ms"]) == set(report["query_ms"]) == {"p50", "p99"}
    assert msgspec.convert(report, Report).events_per_second > 0


def test_a_world_too_small_for_a_story_is_told_in_one_line(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["demo", "--accounts", "3", "--events", "100", "--seconds", "0.1"])
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1].startswith("Error: events is 100, too few")


def _records(data: bytes) -> list[dict[str, str]]:
    found, at = [], 0
    while at < len(data):
        length = int.from_bytes(data[at : at + 4], "little")
        found.append(json.loads(data[at + 16 : at + 16 + length]))
        at += 16 + length
    return found
