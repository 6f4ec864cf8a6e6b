from __future__ import annotations

import gzip
import json
import shlex
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner, Result

from kithstream.streams import progress
from kithstream.streams.cli import cli
from kithstream.streams.clock import StreamClock, newest
from kithstream.streams.communities.known import KnownFor
from kithstream.streams.engine.actors import Record
from kithstream.streams.engine.log import Log
from kithstream.streams.events.stamp import wall_clock
from kithstream.streams.manual import commands, manual
from kithstream.streams.world import SimulationConfig

ROOT = Path(__file__).parents[1]
COMMANDS = dict(commands(cli))
ACTING = sorted(name for name, command in COMMANDS.items() if not isinstance(command, click.Group))
# Those that take settings.
SET = (
    "trainer",
    "models list",
    "models publish",
    "models rollback",
    "audit",
    "demo",
    "serve",
    "load",
    "replay",
    "evaluate",
    "query",
    "why",
    "inspect",
    "audit",
    "train",
    "examples",
    "fit",
    "doctor",
    "worker",
    "topics create",
    "dead-letters list",
    "dead-letters replay",
    "topics check",
    "communities adopt",
)
HEAVY = {
    "numpy",
    "torch",
    "rocksdict",
    "hnswlib",
    "pyarrow",
    "msgspec",
    "rich",
    "faust",
    "kafka",
    "starlette",
    "safetensors",
}


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def example_of(name: str) -> list[str]:
    """The arguments of the line with which a command's help ends."""
    last = run(*name.split(), "--help").output.rstrip().splitlines()[-1]
    words = shlex.split(last)
    assert words[: 1 + len(name.split())] == ["kithstream", *name.split()], last
    return words[1:]


def refused(result: Result) -> str:
    """The one line that tells what was wrong."""
    assert result.exit_code == 2, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert "Traceback" not in result.output
    (line,) = [
        line for line in result.stderr.splitlines() if not line.startswith(("Usage:", "Try ")) and line
    ]
    assert line.startswith("Error: ")
    return line


@pytest.fixture(scope="module")
def kin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the example of `demo` has run, a smaller one than it shows."""
    folder = tmp_path_factory.mktemp("kin")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        words = example_of("demo")
        words[words.index("--accounts") + 1] = "400"
        words[words.index("--events") + 1] = "2000"
        result = run(*words, "--seconds", "0.1")
    assert result.exit_code == 0, result.output
    return folder


@pytest.fixture
def here(kin: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(kin)
    return kin


def told(result: Result) -> dict[str, object]:
    """What a command printed for a machine: its last line."""
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout.splitlines()[-1])
    assert isinstance(found, dict)
    return found


# -- help ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COMMANDS)
def test_help_ends_with_an_example(name: str) -> None:
    command = COMMANDS[name]
    assert command.help
    assert all(option.help for option in command.params if isinstance(option, click.Option))
    example_of(name)


@pytest.mark.parametrize("name", ACTING)
def test_every_command_speaks_to_machines_and_takes_settings(name: str) -> None:
    options = {option for parameter in COMMANDS[name].params for option in parameter.opts}
    assert "--json" in options
    assert ({"--config", "-o"} <= options) == (name in SET)


@pytest.mark.parametrize(
    "arguments", [["--help"], ["demo", "--help"], ["query", "--help"], ["topics", "create", "--help"]]
)
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    script = f"import sys\nsys.argv[1:] = {arguments}\nfrom kithstream.__main__ import main\n"
    script += "try:\n main()\nfinally:\n print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "Example:" in done.stdout
    assert not {module.split(".")[0] for module in done.stderr.split()} & HEAVY


def test_the_manual_is_up_to_date() -> None:
    assert (ROOT / "docs" / "cli.md").read_text() == manual()


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_documented(name: str) -> None:
    assert f"kithstream {name}" in (ROOT / "docs" / "cli.md").read_text()


def test_the_version_is_told() -> None:
    assert "0.1.0" in run("--version").output


# -- mistakes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COMMANDS)
def test_an_unknown_option_is_refused(name: str) -> None:
    assert "--nonsense" in refused(run(*name.split(), "--nonsense"))


def test_an_unknown_command_is_refused() -> None:
    assert "nonsense" in refused(run("nonsense"))


def test_a_folder_without_a_runtime_is_refused(tmp_path: Path) -> None:
    for words in (["query", "u1"], ["why", "u1", "u2"], ["inspect", "u1"]):
        assert "holds no runtime" in refused(run(*words, "--path", tmp_path))
    assert "holds no runtime" in refused(run("train", "--path", tmp_path, "--out", tmp_path / "m"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("option", ["nonsense", "model.nonsense=1", "model.seed=x", "nonsense.seed=1"])
def test_a_wrong_setting_is_refused(here: Path, option: str) -> None:
    line = refused(run("query", "u1", "--path", "kin", "-o", option))
    assert "nonsense" in line or "seed" in line


def test_a_broken_settings_file_is_refused(here: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.toml"
    broken.write_text("[model\n")
    assert "broken.toml" in refused(run("query", "u1", "--path", "kin", "--config", broken))


def test_other_partitions_than_the_directory_has_are_refused(here: Path) -> None:
    line = refused(run("query", "u1", "--path", "kin", "-o", "engine.partitions=5"))
    assert "holds 3 partitions" in line


def test_a_model_that_is_none_is_refused(here: Path, tmp_path: Path) -> None:
    broken = tmp_path / "model.safetensors"
    broken.write_bytes(b"no model")
    line = refused(run("query", "u1", "--path", "kin", "-o", f"model.path={broken}"))
    assert "is no checkpoint" in line
    refused(run("query", "u1", "--path", "kin", "-o", f"model.path={tmp_path / 'missing'}"))


def test_a_wrong_token_is_refused(here: Path) -> None:
    assert "token is 'x'" in refused(run("query", "u1", "--path", "kin", "--after", "x"))
    assert "the token is of 99999" in refused(run("query", "u1", "--path", "kin", "--after", "0:99999"))


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    events = tmp_path / "events.jsonl"
    events.write_text('{"id": "1", "signal": "follow", "actor": "a", "target": "b", "time": 1}\n{"id": 2}\n')
    line = refused(run("train", "--events", events, "--out", tmp_path / "model"))
    assert "events.jsonl, line 2" in line
    events.write_text('{"id": "1", "signal": "adore", "actor": "a", "target": "b", "time": 1}\n')
    assert "signal is 'adore'" in refused(run("train", "--events", events, "--out", tmp_path / "model"))


def test_train_needs_exactly_one_source(here: Path) -> None:
    assert "one of --path and --events" in refused(run("train", "--out", "x"))
    refused(run("train", "--path", "kin", "--events", "-", "--out", "x"))


def test_a_directory_in_use_is_not_overwritten(here: Path) -> None:
    assert "not empty" in refused(run("demo", "--keep", "kin"))


def test_answers_that_are_none_are_refused(tmp_path: Path) -> None:
    assert "answers.jsonl" in refused(run("check", "--path", tmp_path))
    (tmp_path / "answers.jsonl").write_text('{"who": 1}\n')
    assert "answers.jsonl" in refused(run("check", "--path", tmp_path))


def test_no_broker_is_told_in_one_line() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        servers = f"127.0.0.1:{probe.getsockname()[1]}"
        given = {"servers": servers, "security": "SASL_PLAINTEXT", "username": "u", "password": "hunter2"}
        options = [word for key, value in given.items() for word in ("-o", f"kafka.{key}={value}")]
        done = subprocess.run(
            [sys.executable, "-m", "kithstream", "topics", "check", *options], capture_output=True, text=True
        )
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"Error: no broker of {servers} could be used in ")
    assert line.endswith("ECONNREFUSED")
    assert "hunter2" not in line


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ("kafka.servers=", "kafka.servers is ''"),
        ("kafka.security=SASL_SSL", "kafka.username is empty"),
        ("kafka.security=TLS", "kafka.security"),
        ("model.path=missing.safetensors", "missing.safetensors"),
    ],
)
def test_what_names_no_broker_or_no_model_is_refused(option: str, told: str) -> None:
    assert told in refused(run("topics", "check", "-o", option))


@pytest.mark.parametrize(("missing", "status"), [("numpy", 2), ("kithstream.streams.world", 1)])
def test_what_is_not_installed_is_named_but_a_bug_keeps_its_traceback(missing: str, status: int) -> None:
    script = f"import sys\nsys.modules['{missing}'] = None\nsys.argv[1:] = ['simulate']\n"
    script += "from kithstream.__main__ import main\nmain()"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == status
    if status == 2:
        assert done.stderr == "Error: numpy is not installed: pip install 'kithstream[server]'\n"
    else:
        assert "Traceback" in done.stderr


# -- what they do --------------------------------------------------------------------------------------------


def test_simulate_is_deterministic(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        out = tmp_path / name
        values = told(
            run("simulate", "--accounts", 50, "--events", 300, "--seed", seed, "--out", out, "--json")
        )
        assert values["events"] == 300
    a, b, c = ((tmp_path / name).read_bytes() for name in "abc")
    assert a == b != c
    assert a == run("simulate", "--accounts", 50, "--events", 300, "--seed", 1).stdout_bytes


def test_the_example_of_check_works_and_check_can_fail(here: Path, tmp_path: Path) -> None:
    result = run(*example_of("check"), "--json")
    assert told(result)["forbidden"] == 0
    lines = (here / "kin" / "answers.jsonl").read_text().splitlines()
    last = json.loads(lines[-1])
    last["candidates"].append(last["account"])
    (tmp_path / "answers.jsonl").write_text("\n".join([*lines[:-1], json.dumps(last)]))
    (tmp_path / "log").symlink_to(here / "kin" / "log")
    result = run("check", "--path", tmp_path, "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["forbidden"] == 1
    assert f"{last['account']} for {last['account']}: self" in result.stderr


def test_the_example_of_query_works(here: Path) -> None:
    words = example_of("query")
    answer = told(run(*words, "--json"))
    candidates = answer["candidates"]
    assert isinstance(candidates, list)
    assert len(candidates) == 10
    text = run(*words)
    assert candidates[0]["account"] in text.stdout.splitlines()[0]
    first = candidates[0]["account"]
    left = told(run(*words, "--exclude", first, "--json"))["candidates"]
    assert isinstance(left, list)
    assert first not in [candidate["account"] for candidate in left]


def test_an_answer_is_of_the_present_or_of_the_newest_event(here: Path) -> None:
    latest, present = (
        told(run("query", "u7", "--path", "kin", "--at", moment, "-k", 1, "--json"))["as_of"]
        for moment in ("newest", "now")
    )
    assert isinstance(latest, int)
    assert isinstance(present, int)
    start = SimulationConfig().start
    assert start < latest < start + 86_400_000_000
    assert abs(present - wall_clock()) < 60_000_000


def test_the_newest_event_is_found_without_touching_a_log_in_use(tmp_path: Path) -> None:
    with Log(tmp_path / "log" / "0") as log:
        log.append([Record(5, b"{}"), Record(9, b"{}")])
        file = next((tmp_path / "log" / "0").iterdir())
        with open(file, "ab") as torn:
            torn.write(b"half a rec")
        size = file.stat().st_size
        assert newest(tmp_path) == 9
        assert file.stat().st_size == size


def test_a_stream_clock_never_goes_back() -> None:
    clock = StreamClock(5)
    for to, expected in ((3, 5), (8, 8)):
        clock.advance(to)
        assert clock() == expected


def test_a_query_says_why_it_is_short(here: Path) -> None:
    result = run("query", "u7", "--path", "kin", "--at", "newest", "-k", 1000, "--language", "de")
    assert result.exit_code == 0
    assert " of 1000: " in result.stderr


def test_the_example_of_why_works(here: Path) -> None:
    words = example_of("why")
    assert told(run(*words, "--json"))["account"] == "u7"
    answer = told(run("query", "u7", "--path", "kin", "--at", "newest", "-k", 1, "--json"))["candidates"]
    assert isinstance(answer, list)
    words[words.index("u1")] = answer[0]["account"]
    found = told(run(*words, "--json"))
    assert (found["shown"], found["rank"], found["score"]) == (True, 1, answer[0]["score"])
    because = found["because"]
    assert isinstance(because, list)
    first, *lines = run(*words).stdout.splitlines()
    assert first == f"{answer[0]['account']} for u7: rank 1, score {answer[0]['score']:.3f}"
    assert len(lines) == max(len(because), 1)
    for line, one in zip(lines, because, strict=False):
        assert line.startswith("  because you " if one["score_change"] > 0 else "  although you ")
        assert one["account"] in line
        assert f"rank {one['rank']}, score {one['score']:.3f}" in line


def test_an_account_that_is_not_shown_is_told_to_be(here: Path) -> None:
    line = run("why", "u7", "nobody", "--path", "kin", "--at", "newest")
    assert line.stdout == "nobody is not shown to u7: not a candidate\n"
    assert "token is 'x'" in refused(run("why", "u7", "u1", "--path", "kin", "--after", "x"))
    assert "--most" in refused(run("why", "u7", "u1", "--path", "kin", "--most", "65"))
    assert "candidate is 'vvv" in refused(run("why", "u7", "v" * 129, "--path", "kin"))


def test_the_example_of_inspect_works(here: Path) -> None:
    words = example_of("inspect")
    answer = told(run("query", "u7", "--path", "kin", "--at", "newest", "-k", 1, "--json"))["candidates"]
    assert isinstance(answer, list)
    words[words.index("u7")] = answer[0]["account"]
    found = told(run(*words, "--json"))
    assert found["candidate"] is True
    assert found["vector"]
    assert found["received"]
    features = found["features"]
    assert isinstance(features, dict)
    assert "follow_in_3600s" in features
    text = run(*words).stdout
    assert "a candidate: " in text
    assert "features of the producer tower" in text


def test_an_unknown_account_can_be_inspected(here: Path) -> None:
    found = told(run("inspect", "nobody", "--path", "kin", "--json"))
    assert found["candidate"] is False
    assert found["because"] == "nobody follows it or engages with it"
    assert "no candidate: " in run("inspect", "nobody", "--path", "kin").stdout


def test_the_example_of_train_works_and_its_model_serves(here: Path) -> None:
    values = told(run(*example_of("train"), "--json"))
    assert isinstance(values["examples"], int)
    assert values["examples"] > 50
    frozen = ("-o", "model.path=model.safetensors", "-o", "model.learn=false")
    answer = told(run("query", "u7", "--path", "kin", "--at", "newest", "--json", *frozen))
    assert answer["step"] == values["step"]


def test_training_on_a_file_is_deterministic(tmp_path: Path) -> None:
    events = tmp_path / "events.jsonl"
    run("simulate", "--accounts", 80, "--events", 600, "--out", events)
    zipped = tmp_path / "events.jsonl.gz"
    zipped.write_bytes(gzip.compress(events.read_bytes()))
    for source, out in ((events, "a"), (zipped, "b")):
        assert told(run("train", "--events", source, "--out", tmp_path / out, "--json"))["events"] == 600
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_the_examples_of_examples_and_fit_work_and_the_model_serves(here: Path) -> None:
    made = told(run(*example_of("examples"), "--json"))
    assert made["positive"] == told(run(*example_of("train"), "--json"))["examples"]
    again = told(run(*example_of("examples"), "--json"))
    assert again == made | {"seconds": again["seconds"]}  # nothing has come since
    values = told(run(*example_of("fit"), "--json"))
    assert isinstance(values["examples"], int)
    assert values["examples"] > 50
    frozen = ("-o", "model.path=fitted.safetensors", "-o", "model.learn=false")
    answer = told(run("query", "u7", "--path", "kin", "--at", "newest", "--json", *frozen))
    assert (answer["step"], answer["model"]) == (values["step"], values["lineage"])


def test_examples_need_exactly_one_source(here: Path, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "out")
    assert "one of --path, --events and --servers" in refused(run("examples", *out))
    refused(run("examples", "--path", "kin", "--events", "-", *out))
    assert "holds no runtime" in refused(run("examples", "--path", tmp_path, *out))
    line = refused(run("examples", "--events", "-", "--checkpoint", "kin", *out))
    assert "--checkpoint needs" in line
    line = refused(run("examples", "--path", "kin", "-o", "examples.signals=block", *out))
    assert "'block'" in line
    assert "holds no examples" in refused(run("fit", tmp_path, "--out", tmp_path / "m"))


def test_train_reads_interactions(tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.txt"
    pairs.write_text("".join(f"{n % 7} {n % 5 + 10} {1_300_000_000 + n}\n" for n in range(40)))
    values = told(run("train", "--events", pairs, "--format", "pairs", "--out", tmp_path / "m", "--json"))
    assert values["events"] == 40


def test_the_example_of_doctor_works(here: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free = probe.getsockname()[1]
    result = run(*example_of("doctor"), "-o", f"serve.port={free}")
    assert result.exit_code == 0, result.output
    assert len(result.stdout.splitlines()) == 9
    assert all(line.startswith("ok ") for line in result.stdout.splitlines())


def test_doctor_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from kithstream.streams import doctor

    monkeypatch.setattr(doctor, "requires", lambda _: ["numpy>=99", "nosuch>=1; extra == 'server'"])
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = run("doctor", "--path", tmp_path / "to be made", "-o", f"serve.port={port}", "--json")
    assert result.exit_code == 1
    findings = {finding["check"]: finding for finding in map(json.loads, result.stdout.splitlines())}
    failing = {name for name, finding in findings.items() if finding["cure"]}
    assert failing == {"packages", "port"}
    assert "nosuch is missing" in findings["packages"]["found"]
    assert "pip install" in findings["packages"]["cure"]


def test_a_closed_pipe_ends_a_command_quietly() -> None:
    command = [sys.executable, "-m", "kithstream", "simulate", "--accounts", "50"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        assert running.stdout.readline().startswith(b"{")
        running.stdout.close()
        assert b"Error" not in running.stderr.read()
        assert running.wait() == 1


def test_progress_is_a_plain_line_where_no_terminal_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "PERIOD", 0.0)
    with progress.Progress("count", 10, "sheep") as counting:
        counting.advance(4)
        counting.reach(7)
    out, err = capsys.readouterr()
    assert out == ""
    assert [line.split(",")[0] for line in err.splitlines()] == [
        "count: 4 of 10 sheep",
        "count: 7 of 10 sheep",
    ]


def test_the_example_of_replay_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run(*example_of("simulate"))
    words = example_of("replay")
    values = told(run(*words, "--json"))
    assert values["events"] == 5000
    folder = words[words.index("--path") + 1]
    answer = told(run("query", "u7", "--path", folder, "--at", "newest", "--json"))
    assert answer["candidates"]


def test_replay_evaluates_on_pairs(tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.txt"
    rows = [(n % 17, 20 + (n * 7 + n // 17) % 23, 1_300_000_000 + 60 * n) for n in range(300)]
    pairs.write_text("".join(f"{source} {target} {time}\n" for source, target, time in rows))
    values = told(
        run("replay", pairs, "--format", "pairs", "--evaluate", "--freeze", "--limit", 20, "--json")
    )
    assert values["queries"] == 20
    methods = values["methods"]
    assert isinstance(methods, dict)
    low, high = methods["kithstream"]["recall_at_20_interval"]
    assert 0 <= low <= methods["kithstream"]["recall_at_20"] <= high <= 1
    assert "stdin can be read once" in refused(run("replay", "-", "--evaluate"))


def test_the_example_of_evaluate_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run("simulate", "--accounts", 150, "--events", 2500, "--out", "events.jsonl")
    words = example_of("evaluate")
    words[words.index("--tests") + 1] = "25"
    result = run(*words, "--json", "evaluation.json", "-k", 20, "-k", 3)
    assert result.exit_code == 0, result.output
    header = next(line for line in result.stdout.splitlines() if line.startswith("method"))
    assert all(name in header for name in ("recall@20", "random AUC", "mismatch@1", "PRPC", "served AUC"))
    values = json.loads((tmp_path / "evaluation.json").read_text())
    assert values["version"] == 1
    assert values["ks"] == [3, 20]
    assert values["tests"] == 25
    assert {row["method"] for row in values["rows"]} >= {"kithstream", "towers alone", "hand rule"}
    assert (tmp_path / "evaluation.html").read_text().startswith("<!doctype html>")
    own = values["rows"][0]
    assert own["method"] == "kithstream"
    assert f"{own['recall']['20'][0]:.3f}" in result.stdout


def test_what_cannot_be_evaluated_is_refused(tmp_path: Path) -> None:
    few = tmp_path / "few.txt"
    few.write_text("1 2 1300000000\n")
    assert "none to ask for" in refused(run("evaluate", few, "--format", "pairs"))
    assert "does not exist" in refused(run("evaluate", tmp_path / "nothing.jsonl"))
    assert "is no folder" in refused(run("evaluate", few, "--report", tmp_path / "missing" / "page.html"))
    few.write_text("1 2\n")
    assert "few.txt, line 1" in refused(run("evaluate", few, "--format", "pairs"))
    broken = tmp_path / "model.safetensors"
    broken.write_bytes(b"no model")
    assert "is no checkpoint" in refused(run("evaluate", few, "--model", broken))


def test_the_example_of_load_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [(f"a{n}", f"b{n % 5}", 1_300_000_000 + n) for n in range(60)] + [("a1", "a1", 0)]
    text = "source,target,time\n" + "".join(f"{source},{target},{time}\n" for source, target, time in rows)
    (tmp_path / "follows.csv").write_text(text)
    words = example_of("load")
    result = run(*words, "--json")
    assert told(result) | {"seconds": 0} == {
        "edges": 61,
        "accepted": 60,
        "refused": {"self_edge": 1},
        "changed": 60,
        "seconds": 0,
    }
    assert "row 60 is refused, self_edge" in result.stderr
    folder = words[words.index("--path") + 1]
    candidates = told(run("query", "a1", "--path", folder, "--json"))["candidates"]
    assert isinstance(candidates, list)
    assert {candidate["account"] for candidate in candidates} == {"b0", "b2", "b3", "b4"}
    assert told(run(*words, "--json"))["edges"] == 0  # it goes on behind its last row
    (tmp_path / "graph.data").write_text(text)
    again = told(
        run("load", "graph.data", "--format", "csv", "--path", "other", "--time-unit", "s", "--json")
    )
    assert again["accepted"] == 60
    assert "a name ending in" in refused(run("load", "graph.data", "--path", "other"))


def test_the_examples_of_communities_work(here: Path) -> None:
    words = example_of("communities build")
    built = told(run(*words, "--json"))
    assert built["communities"]
    assert {"accounts", "edges", "producers", "modularity", "seconds"} <= set(built)
    shown = told(run(*example_of("communities show"), "--json"))
    assert (shown["version"], shown["members"]) == (built["version"], built["members"])
    text = run(*example_of("communities show"), "--largest", 1).stdout.splitlines()
    assert text[0].split() == ["version", built["version"]]
    assert len(text[text.index("community  members  norm") :]) == 2
    assert told(run(*words, "--json"))["version"] == built["version"]
    warm = told(run(*words[:-1], "next", "--warm", words[-1], "--method", "simclusters", "--json"))
    assert warm["edges"] == built["edges"]
    assert "one of --path and --graph" in refused(run(*words, "--graph", words[-1]))
    assert "one of --path and --graph" in refused(run("communities", "build", "--out", "x"))
    assert "holds no communities" in refused(run("communities", "show", Path("kin") / "layout.json"))
    assert "holds no communities" in refused(run(*words, "--warm", Path("kin") / "layout.json"))
    assert "holds no runtime" in refused(run("communities", "build", "--path", ".", "--out", "x"))
    assert not Path("x").exists()


def test_communities_are_built_from_a_file(tmp_path: Path) -> None:
    rows = [(f"a{n}", f"b{(n * k) % 12}") for n in range(60) for k in range(1, 5)]
    file = tmp_path / "follows.csv"
    file.write_text("source,target\n" + "".join(f"{source},{target}\n" for source, target in rows))
    command = ("communities", "build", "--graph", file, "--out", tmp_path / "known", "--json")
    assert told(run(*command))["edges"] == len(set(rows))
    (tmp_path / "graph.data").write_text(file.read_text())
    other = ("communities", "build", "--graph", tmp_path / "graph.data", "--out", tmp_path / "b", "--json")
    assert "a name ending in" in refused(run(*other))
    assert told(run(*other, "--format", "csv"))["edges"] == len(set(rows))


def test_serve_answers_until_it_is_told_to_stop(here: Path) -> None:
    words = [*example_of("serve"), "--json"]
    words[words.index("--port") + 1] = "0"
    with subprocess.Popen([sys.executable, "-m", "kithstream", *words], stdout=subprocess.PIPE) as running:
        assert running.stdout is not None
        url = json.loads(running.stdout.readline())["url"]
        with urllib.request.urlopen(f"{url}/openapi.json", timeout=30) as reply:
            assert reply.status == 200
        running.send_signal(signal.SIGTERM)
        assert running.wait(30) == 0


@pytest.mark.parametrize("name", ["replay", "load", "serve"])
def test_the_example_parses(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for file in ("events.jsonl", "follows.csv"):
        (tmp_path / file).touch()
    cli.commands[name].make_context(name, example_of(name)[1:])


def test_communities_are_adopted_as_the_help_says(here: Path, tmp_path: Path) -> None:
    known = KnownFor.of_accounts({"u1": 0, "u2": 0, "u3": 1}, np.ones(2, np.float32))
    known.save(here / "communities.safetensors")
    found = told(run(*example_of("communities adopt"), "--json"))
    assert found == {"version": known.version, "communities": 2, "accounts": 3}
    (here / "communities.safetensors").write_bytes(b"other")
    assert "holds no communities" in refused(run(*example_of("communities adopt")))
