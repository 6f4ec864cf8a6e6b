"""A backup of a runtime, in use or not, and the way back: everything that was published before is in it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner
from promises import agree
from soup import ACCOUNTS, DAY, START

from kithstream.streams import backup, manifest
from kithstream.streams.cli import cli
from kithstream.streams.config import Config, IndexSection
from kithstream.streams.engine.log import records, segments
from kithstream.streams.errors import StoreRefused
from kithstream.streams.events import wire
from kithstream.streams.events.wire import Event
from kithstream.streams.serve.embedded import Embedded
from kithstream.streams.serve.embedded import restore as restore_checkpoint

CONFIG = Config(index=IndexSection(background=False))
NOW = START + 7 * DAY
PATIENCE = 60.0  # seconds
CHILD = """
import sys
from pathlib import Path
from kithstream.streams.config import Config, IndexSection
from kithstream.streams.serve.embedded import Embedded

with Embedded(Path(sys.argv[1]), Config(index=IndexSection(background=False)), clock=lambda: int(sys.argv[2])).start():
    print("ready", flush=True)
    sys.stdin.read()
"""


def clock() -> int:
    return NOW


def follow(actor: str, target: str) -> Event:
    return Event(f"{actor}>{target}", "follow", actor, START + 6 * DAY, target=target)


CROWD = [follow(a, b) for a in ACCOUNTS for b in ACCOUNTS[:4] if a != b]


@pytest.fixture
def town(tmp_path: Path) -> Path:
    with Embedded(tmp_path / "town", CONFIG, clock=clock) as live:
        live.publish(CROWD[:-3])
        live.catch_up()
        live.publish(CROWD[-3:])  # waits in the log
    return tmp_path / "town"


def is_whole(path: Path, published: list[Event]) -> None:
    """A runtime opens from its snapshot, and holds what was published."""
    with Embedded(path, CONFIG, clock=clock) as live:
        assert live.recovery.snapshot
        assert live.chain.model.step > 0
        live.catch_up()
        agree(live.engine, published)


@contextmanager
def running(town: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that runs the runtime, until its standard input ends."""
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, str(town), str(NOW)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        yield child


def test_a_runtime_that_nobody_runs_is_copied_and_brought_back(town: Path, tmp_path: Path) -> None:
    run = CliRunner().invoke
    done = run(cli, ["backup", "--path", str(town), "--to", str(tmp_path / "copy"), "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    names = manifest.read(tmp_path / "copy").files
    assert told["files"] == len(names)
    assert told["bytes"] == sum((tmp_path / "copy" / name).stat().st_size for name in names)
    back = run(cli, ["restore", "--from", str(tmp_path / "copy"), "--path", str(tmp_path / "back"), "--json"])
    assert back.exit_code == 0, back.output
    assert json.loads(back.stdout)["files"] == told["files"]
    for path in (tmp_path / "back", town):
        is_whole(path, CROWD)
    assert not list(town.glob("backups/*"))


def test_a_runtime_in_another_process_makes_the_copy_itself(town: Path, tmp_path: Path) -> None:
    with running(town) as child:
        done = backup.backup(town, tmp_path / "copy", seconds=PATIENCE)
        assert child.poll() is None
        with pytest.raises(StoreRefused, match="is not empty"):
            backup.backup(town, tmp_path / "copy", seconds=PATIENCE)
        child.kill()
    assert done.files == len(manifest.read(tmp_path / "copy").files)
    backup.restore(tmp_path / "copy", tmp_path / "back")
    is_whole(tmp_path / "back", CROWD)
    assert not list(town.glob("backups/*"))


def test_a_copy_made_while_events_come_in_is_of_one_moment(tmp_path: Path) -> None:
    """It holds all that was published before it was asked for, and of what came meanwhile whole events alone."""
    with Embedded(tmp_path / "town", CONFIG, clock=clock).start() as live:
        live.publish(CROWD[:10])
        going = threading.Event()

        def publish() -> None:
            for number in range(400):
                live.publish([follow(f"u{number}", ACCOUNTS[number % 4])])
                if number == 20:
                    going.set()

        thread = threading.Thread(target=publish)
        thread.start()
        assert going.wait(PATIENCE)
        live.backup(tmp_path / "copy")
        thread.join()
    backup.restore(tmp_path / "copy", tmp_path / "back")
    with Embedded(tmp_path / "back", CONFIG, clock=clock) as back:
        back.catch_up()
        logged = [event for number in range(back.partitions) for event in _logged(tmp_path / "back", number)]
        assert len(logged) >= 31
        agree(back.engine, logged)


def _logged(path: Path, number: int) -> list[Event]:
    return [
        wire.decode(record.raw, now=record.appended)
        for segment in segments(path / "log" / str(number))
        for record in records(segment)
    ]


def test_a_snapshot_that_another_takes_the_place_of_is_still_in_the_backup(tmp_path: Path) -> None:
    """Folding goes on while a backup is written, and so do snapshots, which remove those before them."""
    with Embedded(tmp_path / "town", CONFIG, clock=clock) as live:
        live.publish(CROWD[:10])
        live.catch_up()
        live.save()
        with live.chain.lock:
            moment, model = live._keeping.moment(live.chain)
        live.publish(CROWD[10:])
        live.catch_up()
        live.save()
        moment.write(tmp_path / "copy", model)
    (tmp_path / "town" / "backups" / "moment-killed").mkdir()
    with Embedded(tmp_path / "town", CONFIG, clock=clock):
        assert not list(tmp_path.glob("town/backups/moment-*"))
    backup.restore(tmp_path / "copy", tmp_path / "back")
    is_whole(tmp_path / "back", CROWD[:10])


def test_nobody_answers_for_a_runtime_that_hangs(town: Path, tmp_path: Path) -> None:
    with running(town) as child:
        os.kill(child.pid, signal.SIGSTOP)
        with pytest.raises(StoreRefused, match=r"did not answer in 0\.3 s"):
            backup.backup(town, tmp_path / "copy", seconds=0.3)
        child.kill()
    assert not (tmp_path / "copy").exists()
    assert not list(town.glob("backups/*.json"))  # nobody makes it later


def damages(folder: Path) -> list[str]:
    names = [*manifest.read(folder).files, manifest.NAME, manifest.SUM]
    assert {name.split("/")[0] for name in names} == {
        "state",
        "log",
        "index",
        "layout.json",
        "model.safetensors",
        manifest.NAME,
        manifest.SUM,
    }
    return names


@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_damaged_backup_is_refused_by_the_name_of_the_file(town: Path, tmp_path: Path, damage: str) -> None:
    copy = tmp_path / "copy"
    backup.backup(town, copy)
    for name in damages(copy):
        whole = (copy / name).read_bytes()
        if damage == "remove":
            (copy / name).unlink()
        elif not whole:
            continue  # nothing to flip
        else:
            wrong = bytearray(whole)
            wrong[len(wrong) // 2] ^= 4
            (copy / name).write_bytes(wrong if damage == "flip" else wrong[:-1])
        with pytest.raises(StoreRefused, match=name.replace(".", r"\.")):
            backup.restore(copy, tmp_path / "back")
        assert not list(tmp_path.glob("back*"))
        (copy / name).write_bytes(whole)
    backup.restore(copy, tmp_path / "back")


def test_nothing_is_written_over(town: Path, tmp_path: Path) -> None:
    backup.backup(town, tmp_path / "copy")
    with pytest.raises(StoreRefused, match="is not empty"):
        backup.restore(tmp_path / "copy", town)
    (tmp_path / "empty").mkdir()
    backup.restore(tmp_path / "copy", tmp_path / "empty")
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreRefused, match="is not empty"):
        backup.backup(town, tmp_path / "file")
    refused = CliRunner().invoke(cli, ["restore", "--from", str(tmp_path / "copy"), "--path", str(town)])
    assert refused.exit_code == 2
    assert "is not empty" in refused.output


def test_what_is_no_runtime_and_what_is_no_backup_is_refused(town: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreRefused, match="holds no runtime"):
        backup.backup(tmp_path, tmp_path / "copy")
    with pytest.raises(StoreRefused, match=r"manifest\.json is missing"):
        backup.restore(town, tmp_path / "back")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a").write_text("a")
    manifest.write(tmp_path / "other", {})
    with pytest.raises(StoreRefused, match=r"names no layout\.json"):
        backup.restore(tmp_path / "other", tmp_path / "back")


def test_a_manifest_does_not_lead_out_of_its_folder(town: Path, tmp_path: Path) -> None:
    backup.backup(town, tmp_path / "copy")
    (tmp_path / "secret").write_text("x")
    (tmp_path / "copy" / "link").symlink_to(tmp_path / "secret")
    manifest.write(tmp_path / "copy", {})
    with pytest.raises(StoreRefused, match="link is missing"):
        backup.restore(tmp_path / "copy", tmp_path / "back")


def test_a_damaged_checkpoint_replaces_nothing(town: Path, tmp_path: Path) -> None:
    with Embedded(town, CONFIG, clock=clock) as live:
        live.catch_up()
        live.checkpoint(tmp_path / "checkpoint")
    file = next((tmp_path / "checkpoint" / "state").rglob("MANIFEST-*"))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(StoreRefused, match=file.name):
        restore_checkpoint(tmp_path / "checkpoint", town)
    is_whole(town, CROWD)
