"""What `kithstream audit` finds, and that after a deletion it finds nothing that must not be there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from soup import DAY, START

from kithstream.streams.audit import Audit, audit
from kithstream.streams.cli import cli
from kithstream.streams.config import Config, EngineConfig, IndexSection
from kithstream.streams.errors import StoreRefused
from kithstream.streams.events.wire import Event
from kithstream.streams.examples.passes import make
from kithstream.streams.examples.sources import LogSource
from kithstream.streams.serve.embedded import Embedded
from kithstream.streams.state.protocol import Column

CONFIG = Config(engine=EngineConfig(job_edges=5), index=IndexSection(background=False))
NAMES = ("ann", "bob", "cyd", "dan", "eve")


class Clock:
    def __init__(self) -> None:
        self.now = START + 7 * DAY

    def __call__(self) -> int:
        return self.now


def busy() -> list[Event]:
    """Everybody does everything to everybody."""
    events = [Event("p", "profile", a, START, language="en", contacts=True) for a in NAMES]
    for signal in ("follow", "like", "click", "block", "address_book", "unfollow", "follow"):
        for a in NAMES:
            events += [
                Event(f"{signal}{len(events)}", signal, a, START + len(events), target=b, item="x")
                for b in NAMES
                if a != b
            ]
    return events


@pytest.fixture
def town(tmp_path: Path) -> Path:
    path = tmp_path / "town"
    with Embedded(path, CONFIG, clock=Clock()) as live:
        live.publish(busy())
        live.catch_up()
        live.checkpoint(path / "copy")
    return path


def places(found: Audit) -> set[str]:
    return {finding.why.split(":")[0].split(",")[0] for finding in found.findings}


def delete(path: Path, account: str = "cyd") -> None:
    with Embedded(path, CONFIG, clock=Clock()) as live:
        live.publish([Event("gone", "account_delete", account, START + DAY)])
        live.catch_up()


def test_a_living_account_is_found_wherever_it_is(town: Path) -> None:
    found = audit("cyd", town, [], CONFIG)
    assert not found.deleted
    whys = places(found)
    for column in ("out", "in", "said", "heard"):
        assert f"column {column}" in whys
    assert {"a list of neighbours names it", "a row of its own", "events in the log name it"} <= whys
    assert "a model holds its learned vectors" in whys
    assert "address books of others hold its salted hash; how many is not told" in whys
    assert any(f.place.startswith("copy/state") for f in found.findings)


def test_an_account_that_nobody_named_is_found_nowhere(town: Path) -> None:
    found = audit("cy", town, [], CONFIG)  # the beginning of a name that is
    assert not found.findings
    assert found.searched["keys of stores"] > 100


def test_after_a_deletion_only_the_hash_the_log_and_older_copies_are_left(town: Path) -> None:
    delete(town)
    found = audit("cyd", town, [], CONFIG)
    assert found.deleted
    assert {f.place.split("/")[0] for f in found.leftovers} == {"copy"}
    allowed = {f.why for f in found.findings if f.allowed and not f.place.startswith("copy")}
    assert allowed == {
        "the salted hash of a deleted account",
        "events in the log name it",
        "address books of others hold its salted hash; how many is not told",
    }
    for other in ("ann", "bob"):  # and nobody else's
        assert not audit(other, town, [], CONFIG).deleted


@pytest.mark.parametrize("column", Column)
def test_a_leftover_in_any_column_is_found(town: Path, column: Column) -> None:
    delete(town)
    day = b"\0\0\x51\x01"
    planted = {
        Column.OUT: (b"zed\0Acyd\0", b"\0\0"),
        Column.IN: (b"cyd\0Azed\0", b"\0\0"),
        Column.SAID: (day + b"zed\0id\0Acyd\0", b"\0\0"),
        Column.HEARD: (day + b"zed\0Acyd\0x\0id", b"\0\0"),
        Column.ROWS: (b"?zed", b"\x91\xa3cyd"),
        Column.META: (b"Y12345678", b"\x91\xa3cyd"),
    }
    with Embedded(town, CONFIG, clock=Clock()) as live:
        key, value = planted[column]
        live.engine.partitions[0].store.write({column: {key: value}})
    assert [f.place for f in audit("cyd", town, [], CONFIG).leftovers if "copy" not in f.place] == ["state/0"]


def test_a_runtime_that_is_open_is_searched_as_well(town: Path) -> None:
    with Embedded(town, CONFIG, clock=Clock()) as live:
        live.publish([Event("new", "follow", "zed", START + DAY, target="ann")])
        live.catch_up()
        assert any(f.place.startswith("state/") for f in audit("zed", town, [], CONFIG).findings)


def test_other_directories_and_files_are_searched(town: Path, tmp_path: Path) -> None:
    other = tmp_path / "training"
    other.mkdir()
    (other / "events.jsonl").write_text('{"actor":"cyd"}\n{"actor":"cydonia"}\n')
    (other / "ids.json").write_text(json.dumps(["cyd", "x"]))
    found = {f.place: f.found for f in audit("cyd", town, [other], CONFIG).findings}
    assert found["events.jsonl"] == 1
    assert found["ids.json"] == 1


def test_training_examples_are_searched(town: Path, tmp_path: Path) -> None:
    out = tmp_path / "examples"
    make(LogSource(town), out, CONFIG)
    (out / "000009.examples.parquet.writing").write_bytes(b"PAR1")
    found = audit("cyd", town, [out], CONFIG)
    assert any(f.place.endswith(".examples.parquet") for f in found.findings)
    assert any(f.place.startswith("state/") and "copy" in f.why for f in found.findings)
    assert any("000009.examples.parquet.writing is being written" in note for note in found.notes)
    assert not [f for f in audit("nobody", town, [out], CONFIG).findings if f.place.endswith(".parquet")]


def test_a_directory_without_a_runtime_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreRefused, match="state/0 is missing"):
        audit("cyd", tmp_path, [], CONFIG)


def test_the_command_fails_while_something_is_left(town: Path) -> None:
    def run(*more: str) -> tuple[int, str]:
        result = CliRunner().invoke(cli, ["audit", "cyd", "--path", str(town), *more])
        return result.exit_code, result.output

    assert run()[0] == 0  # it lives, so what is known is no leftover
    delete(town)
    code, output = run()
    assert code == 1
    assert "!!" in output
    (town / "copy").rename(town.parent / "elsewhere")
    code, output = run("--json")
    assert code == 0
    assert json.loads(output)["leftovers"] == 0
    assert run("--also", str(town.parent / "elsewhere"))[0] == 1
