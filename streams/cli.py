"""The command line. Only click is imported until a command runs, so that help comes at once."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from datetime import UTC
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from kithstream.streams.options import (
    Commands,
    F,
    Refused,
    as_json,
    at,
    directory,
    existing,
    read_settings,
    runtime,
    say,
    settings,
    show,
    told,
)

if TYPE_CHECKING:
    from kithstream.streams.communities.walk import Liking
    from kithstream.streams.config import KafkaConfig
    from kithstream.streams.events.record import Record
    from kithstream.streams.kafka.topics import Topic
    from kithstream.streams.training import Timed

FORMATS: Final = ("jsonl", "higgs", "bitcoin", "pairs")
METHODS: Final = ("modularity", "simclusters")
SCOPES: Final = ("publish", "query", "admin")
GRAPHS: Final = ("parquet", "csv", "jsonl")
UNITS: Final = {"s": 1_000_000, "ms": 1000, "us": 1}  # microseconds
_FILE: Final = click.Path(exists=True, dir_okay=False, allow_dash=True)
_ONE_FILE: Final = click.Path(exists=True, dir_okay=False, path_type=Path)
_FOLDER: Final = click.Path(file_okay=False, path_type=Path)
_OUT: Final = click.Path(dir_okay=False, allow_dash=True)
# Settings of an evaluation: every answer is an exact scan, depends on no thread, and is given once.
_EVALUATING: Final = (
    "index.exact_rows=1000000000",
    "index.background=false",
    "engine.row_cache=400000",
    "index.snapshot_seconds=0",
)
# Options of several commands.
_seed = click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Of everything that is drawn."
)
_graph_form = click.option(
    "--format", "form", type=click.Choice(GRAPHS), help="Of the file; its name tells otherwise."
)
_time_unit = click.option(
    "--time-unit",
    type=click.Choice(list(UNITS)),
    default="us",
    show_default=True,
    help="Of times that are whole numbers.",
)


def example(line: str) -> str:
    """Return the end of a command's help."""
    return f"\b\nExample:\n  {line}"


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=example("kithstream demo --accounts 2000 --events 8000 --keep kin"),
)
@click.version_option(package_name="kithstream")
def cli() -> None:
    """Fresh follow candidates from a stream of engagement events.

    Data goes to stdout, everything else to stderr. A mistake in the command is one line and exit status 2.
    """


@cli.command(epilog=example("kithstream demo --accounts 2000 --events 8000 --keep kin"))
@click.option(
    "--accounts", type=click.IntRange(2), default=20_000, show_default=True, help="Of the simulated world."
)
@click.option("--events", type=click.IntRange(100), default=60_000, show_default=True, help="In all.")
@_seed
@click.option(
    "--rate",
    type=click.FloatRange(1),
    default=1000.0,
    show_default=True,
    help="Events a second of the paced part.",
)
@click.option(
    "--seconds",
    type=click.FloatRange(0.01),
    default=10.0,
    show_default=True,
    help="Of the paced part, at most.",
)
@click.option("--keep", type=_FOLDER, help="Keep state, log and answers in this new directory.")
@settings
@as_json
def demo(
    accounts: int,
    events: int,
    seed: int,
    rate: float,
    seconds: float,
    keep: Path | None,
    config_file: Path | None,
    options: tuple[str, ...],
    machine: bool,
) -> None:
    """Run the whole chain on a simulated world, and check its answers.

    Publishes, folds, learns, encodes and answers in one process; measures freshness at a real pace; shows how
    single events change answers; recomputes from the log alone that no answer held a forbidden account. Exit
    status 1 if one did.
    """
    import tempfile

    from kithstream.streams.demo import Demo, DemoConfig

    config = read_settings(config_file, options)
    if keep is not None and keep.exists() and any(keep.iterdir()):
        raise Refused(f"--keep is {keep}, which is not empty")
    with ExitStack() as stack:
        path = keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kithstream-demo-")))
        size = DemoConfig(accounts, events, seed, rate, seconds)
        write: Callable[[str], None] = (lambda _: None) if machine else click.echo
        with told():
            report = Demo(path, size, config, write).run()
        if machine:
            import msgspec

            click.echo(msgspec.json.encode(report))
        elif keep is not None:
            click.echo(f"\n  Kept. Ask on:  kithstream query u7 --path {keep} --at newest")
    if report.forbidden or report.promises_broken:
        sys.exit(1)


@cli.command(epilog=example("kithstream check --path kin"))
@directory
@as_json
def check(path: Path, machine: bool) -> None:
    """Check the answers that a demo kept against its log alone.

    Reads DIR/answers.jsonl and DIR/log, and nothing of the engine. Exit status 1 if an answer held a
    forbidden account.
    """
    from kithstream.streams.check import Given
    from kithstream.streams.check import check as recompute

    answers = path / "answers.jsonl"
    with told():
        try:
            given = [Given(**json.loads(line)) for line in answers.read_text().splitlines()]
        except TypeError as error:
            raise Refused(f"{answers}: {error}") from error
        checked = recompute(path / "log", given)
    for violation in checked.violations:
        say(f"{violation.candidate} for {violation.account}: {violation.reason}, at {violation.token}")
    values = {
        "answers": checked.answers,
        "candidates": checked.candidates,
        "forbidden": len(checked.violations),
    }
    show(values, machine)
    if checked.violations:
        sys.exit(1)


@cli.command(epilog=example("kithstream serve --path kin --port 8484"))
@click.option(
    "--path", type=_FOLDER, default=Path("kithstream-data"), show_default=True, help="Made if missing."
)
@click.option("--host", help="Address to listen on.  [default: serve.host]")
@click.option("--port", type=click.IntRange(0, 65535), help="Port to listen on.  [default: serve.port]")
@settings
@as_json
def serve(
    path: Path,
    host: str | None,
    port: int | None,
    config_file: Path | None,
    options: tuple[str, ...],
    machine: bool,
) -> None:
    """Answer over HTTP from an embedded runtime, until SIGTERM or SIGINT.

    With --json the address is printed as one line once connections are taken.
    """
    from kithstream.streams import logs, metrics
    from kithstream.streams.events.stamp import wall_clock
    from kithstream.streams.serve import access, http
    from kithstream.streams.serve.service import InProcess

    given = {"serve.host": host, "serve.port": port}
    options += tuple(f"{key}={value}" for key, value in given.items() if value is not None)
    config = read_settings(config_file, options)
    with told():
        access.check(config.serve)

    def started(url: str) -> None:
        if machine:
            click.echo(json.dumps({"url": url}))
        else:
            say(f"listening on {url}")

    logs.configure(config.log, "serve")
    with runtime(path, config, wall_clock) as live:
        told_by = metrics.fresh()
        live.on_pumped = told_by.pumped
        told_by.watch(live)
        live.start()
        http.serve(InProcess(live, config.serve, told_by), config.serve, told_by, started=started)


@cli.command(epilog=example("kithstream worker -o kafka.servers=127.0.0.1:9092 -o worker.data=worker-1"))
@click.option("--host", help="Address to answer HTTP on.  [default: serve.host]")
@click.option("--port", type=click.IntRange(0, 65535), help="Port to answer on.  [default: serve.port]")
@settings
@as_json
def worker(
    host: str | None,
    port: int | None,
    config_file: Path | None,
    options: tuple[str, ...],
    machine: bool,
) -> None:
    """Fold, encode and answer for a share of the accounts, on Kafka, until SIGTERM or SIGINT.

    Workers of one tenant share the partitions; start another to add it. The topics must be there:
    kithstream topics create. State lives in worker.data, which is this worker's alone. With --json the address is
    printed as one line once connections are taken.
    """
    from kithstream.streams.kafka import worker as workers

    given = {"serve.host": host, "serve.port": port}
    options += tuple(f"{key}={value}" for key, value in given.items() if value is not None)
    config = read_settings(config_file, options)

    def started(url: str) -> None:
        if machine:
            click.echo(json.dumps({"url": url}))
        else:
            say(f"answering on {url}")

    with told():
        workers.work(config, started)


@cli.command(epilog=example("kithstream trainer -o kafka.servers=127.0.0.1:9092 -o trainer.data=trainer"))
@click.option(
    "--port", type=click.IntRange(0, 65535), default=0, help="Port of metrics on the loopback; 0: none."
)
@settings
@as_json
def trainer(port: int, config_file: Path | None, options: tuple[str, ...], machine: bool) -> None:
    """Learn from what workers fold and encode, on Kafka, until SIGTERM or SIGINT.

    Reads the training log in its one order and publishes small steps, which every worker takes up. One trainer a
    tenant; its checkpoint lives in trainer.data, and it goes on from there exactly. model.path and model.seed must be
    those of the workers. With --json the checkpoint's path is printed as one line once it learns.
    """
    from kithstream.streams.kafka import trainer as trainers

    config = read_settings(config_file, options)

    def started(path: str) -> None:
        if machine:
            click.echo(json.dumps({"checkpoint": path}))
        else:
            say(f"learning into {path}")

    with told():
        trainers.train(config, port, started)


@cli.command(epilog=example("kithstream load follows.csv --path kin-loaded --time-unit s"))
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--path", type=_FOLDER, required=True, help="Directory of the runtime; made if missing.")
@_graph_form
@_time_unit
@settings
@as_json
def load(
    file: Path,
    path: Path,
    form: str | None,
    time_unit: str,
    config_file: Path | None,
    options: tuple[str, ...],
    machine: bool,
) -> None:
    """Load a follow graph in bulk: columns source, target and, if there is one, time.

    A load that was broken off goes on where it stopped when it is started again.
    """
    import tempfile

    from kithstream.streams import load as bulk
    from kithstream.streams.events.stamp import wall_clock
    from kithstream.streams.progress import Progress
    from kithstream.streams.sources import graph

    config = read_settings(config_file, options)
    with ExitStack() as stack:
        named = file
        if form is not None and f".{form}" not in file.suffixes:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kithstream-load-")))
            named = folder / f"{file.name}.{form}{'.gz' if file.suffix == '.gz' else ''}"
            named.symlink_to(file.absolute())
        live = stack.enter_context(runtime(path, config, wall_clock))
        progress = stack.enter_context(Progress("load", unit="follows"))
        stack.enter_context(told())
        source = graph.fingerprint(named).hex()
        first = bulk.next_row(live.engine, source)
        with live.chain.lock:
            loaded = bulk.load(
                live.engine,
                graph.read_columns(named, first, microseconds=UNITS[time_unit]),
                now=live.as_of,
                source=source,
                on_progress=lambda at: progress.reach(at.done) if at.stage == "edges" else None,
            )
    for refusal in loaded.named:
        say(f"row {refusal.row} is refused, {refusal.reason}: {refusal.source!r} {refusal.target!r}")
    values = loaded._asdict()
    del values["named"]
    show({**values, "seconds": round(loaded.seconds, 3)}, machine)


@cli.command(epilog=example("kithstream replay events.jsonl --format jsonl --path kin-replayed"))
@click.argument("file", type=_FILE)
@click.option(
    "--format", "form", type=click.Choice(FORMATS), default="jsonl", show_default=True, help="Of the file."
)
@click.option("--path", type=_FOLDER, help="Directory of the runtime; thrown away without.")
@click.option(
    "--evaluate", is_flag=True, help="Ask for the last fifth of first follows, each just before it is told."
)
@click.option("--all", "everyone", is_flag=True, help="Ask for every one of them rather than a sample.")
@click.option("--limit", type=click.IntRange(1), default=3000, show_default=True, help="Size of the sample.")
@click.option("--with-repeats", is_flag=True, help="Keep later rows of a pair, as likes and replies.")
@click.option("--model", help="day-zero: hand-set weights that never learn; or a checkpoint to begin with.")
@click.option(
    "--freeze", is_flag=True, help="Stop learning where the questions begin; a checkpoint never learns."
)
@settings
@as_json
def replay(
    file: str,
    form: str,
    path: Path | None,
    evaluate: bool,
    everyone: bool,
    limit: int,
    with_repeats: bool,
    model: str | None,
    freeze: bool,
    config_file: Path | None,
    options: tuple[str, ...],
    machine: bool,
) -> None:
    """Run a file of events through the chain, as fast as it goes; time follows the events.

    With --evaluate also tell how many of the last follows were among the 20 answers just before, beside live
    yardsticks on the same questions. Without --model the towers learn from the whole stream, online. FILE `-` is
    stdin.

    An evaluation runs in one partition and scans the whole corpus for each answer, unless -o index.exact_rows
    or -o engine.partitions say otherwise.
    """
    import tempfile

    from kithstream.streams.clock import StreamClock
    from kithstream.streams.progress import Progress
    from kithstream.streams.replay import evaluate as evaluated
    from kithstream.streams.replay import feed, report

    if evaluate and file == "-":
        raise Refused("--evaluate reads the file more than once, stdin can be read once")
    defaults: tuple[str, ...] = ()
    if evaluate:
        defaults += _EVALUATING
    if evaluate and path is None:
        defaults += ("engine.partitions=1",)
    config = read_settings(config_file, defaults + _started(model, freeze) + options)
    events = _Events(file, form, repeats=with_repeats)
    clock = StreamClock()
    with ExitStack() as stack:
        folder = path or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kithstream-replay-")))
        live = stack.enter_context(runtime(folder, config, clock))
        progress = stack.enter_context(Progress("replay"))
        if not evaluate:
            done = feed(live, clock, events, lambda count, _: progress.reach(count))
            show(done._asdict(), machine)
            return
        result = evaluated(
            live,
            clock,
            events,
            limit=None if everyone else limit,
            freeze_at=0.8 if freeze else None,
            progress=progress.reach,
        )
    if machine:
        click.echo(json.dumps(report(result)))
        return
    click.echo(f"{'method':<24} {'recall@20':>10} {'95 % interval':>17} {'NDCG@20':>9}")
    for name, outcome in result.methods.items():
        recall, gain = outcome.recall, outcome.ndcg
        interval = f"{recall.low:.3f} to {recall.high:.3f}"
        click.echo(f"{name:<24} {recall.mean:>10.3f} {interval:>17} {gain.mean:>9.3f}")
    show({key: value for key, value in report(result).items() if key != "methods"}, machine)


@cli.command(epilog=example("kithstream evaluate events.jsonl --tests 200 --report evaluation.html"))
@click.argument("file", type=click.Path(exists=True, dir_okay=False))
@click.option(
    "--format", "form", type=click.Choice(FORMATS), default="jsonl", show_default=True, help="Of the file."
)
@click.option("--with-repeats", is_flag=True, help="Keep later rows of a pair, as likes and replies.")
@click.option("--model", help="day-zero: hand-set weights that never learn; or a checkpoint to begin with.")
@click.option(
    "-k",
    "ks",
    type=click.IntRange(1, 1000),
    multiple=True,
    default=(1, 5, 20, 100),
    show_default=True,
    help="A length of lists; several may be given.",
)
@click.option(
    "--tests", type=click.IntRange(1), default=1000, show_default=True, help="Follows asked for at most."
)
@click.option(
    "--window",
    type=click.FloatRange(0, min_open=True),
    default=600.0,
    show_default=True,
    help="Seconds in which an impression is engaged with, or ignored.",
)
@_seed
@click.option(
    "--json", "machine", type=_OUT, help="Write everything as JSON; - is stdout, without the table."
)
@click.option(
    "--report", "page", type=click.Path(dir_okay=False, path_type=Path), help="Write one HTML page."
)
@settings
def evaluate(
    file: str,
    form: str,
    with_repeats: bool,
    model: str | None,
    ks: tuple[int, ...],
    tests: int,
    window: float,
    seed: int,
    machine: str | None,
    page: Path | None,
    config_file: Path | None,
    options: tuple[str, ...],
) -> None:
    """Measure what the chain would have recommended, in one pass of a file of events, beside live yardsticks.

    Asks for a sample of the last fifth of first follows, each just before it is told: recall, NDCG, how popular and
    how varied the lists are, language of the first candidate, AUC against accounts drawn at random; and where the
    stream holds impressions, AUC of those engaged with against those ignored. The last is never told without the
    others: a model that ranks what was served well may recommend badly.

    Runs in one partition and scans the whole corpus, unless -o index.exact_rows or -o engine.partitions say otherwise.
    """
    import tempfile

    from kithstream.streams.clock import StreamClock
    from kithstream.streams.evaluating.plan import Sampling
    from kithstream.streams.evaluating.report import to_json
    from kithstream.streams.evaluating.told import page as as_page
    from kithstream.streams.evaluating.told import table
    from kithstream.streams.evaluation import evaluate as measure
    from kithstream.streams.progress import Progress

    for out in (machine, page):
        if out is not None and not Path(out).parent.is_dir():
            raise Refused(f"{Path(out).parent} is no folder, {Path(out).name} cannot be written there")
    config = read_settings(config_file, (*_EVALUATING, "engine.partitions=1", *_started(model), *options))
    lengths = tuple(sorted(set(ks)))
    sampling = Sampling(ks=lengths, tests=tests, window_seconds=window, seed=seed)
    clock = StreamClock()
    with (
        tempfile.TemporaryDirectory(prefix="kithstream-evaluate-") as folder,
        runtime(Path(folder), config, clock) as live,
        Progress("evaluate") as progress,
        told(),
    ):
        report = measure(
            live,
            clock,
            _Events(file, form, repeats=with_repeats),
            sampling,
            stream=Path(file).name,
            progress=progress.reach,
        )
    if machine is not None:
        with click.open_file(machine, "wb") as written:
            written.write(to_json(report) + b"\n")
    if page is not None:
        page.write_text(as_page(report), encoding="utf-8")
    if machine != "-":
        for line in table(report):
            click.echo(line)


def _started(model: str | None, freeze: bool = False) -> tuple[str, ...]:
    """Return the settings that --model stands for."""
    found: tuple[str, ...] = ()
    if model is not None and model != "day-zero":
        found += (f"model.path={model}",)
    if model == "day-zero" or (model is not None and freeze):
        found += ("model.learn=false",)
    return found


@cli.command(epilog=example("kithstream query u7 --path kin --at newest -k 10"))
@click.argument("account")
@directory
@click.option("-k", type=click.IntRange(1, 1000), default=20, show_default=True, help="Candidates asked for.")
@click.option("--after", default="", metavar="TOKEN", help="Answer from state that includes this token.")
@click.option("--exclude", multiple=True, metavar="ACCOUNT", help="Leave an account out.")
@click.option(
    "--language", "languages", multiple=True, metavar="TAG", help="Only candidates of this language."
)
@at
@settings
@as_json
def query(
    account: str,
    path: Path,
    k: int,
    after: str,
    exclude: tuple[str, ...],
    languages: tuple[str, ...],
    at: str,
    config_file: Path | None,
    options: tuple[str, ...],
    machine: bool,
) -> None:
    """Ask whom ACCOUNT should follow: candidates, scores and reasons, the best first."""
    import msgspec

    config = read_settings(config_file, options)
    with existing(path, config, at) as live, told():
        answer = live.candidates(account, k, after=after, exclude=exclude, languages=languages)
    if machine:
        click.echo(msgspec.json.encode(answer))
        return
    for place, candidate in enumerate(answer.candidates, 1):
        reasons = ", ".join(candidate.reasons)
        click.echo(f"{place:>4}  {candidate.account:<20} {candidate.score:7.3f}  {reasons}".rstrip())
    if answer.short:
        say(f"{len(answer.candidates)} of {k}: {answer.short}")


@cli.command(epilog=example("kithstream why u7 u1 --path kin --at newest"))
@click.argument("account")
@click.argument("candidate")
@directory
@click.option("--after", default="", metavar="TOKEN", help="Explain from state that includes this token.")
@click.option("--most", type=click.IntRange(0, 64), default=5, show_default=True, help="Reasons told.")
@at
@settings
@as_json
def why(
    account: str,
    candidate: str,
    path: Path,
    after: str,
    most: int,
    at: str,
    config_file: Path | None,
    options: tuple[str, ...],
    machine: bool,
) -> None:
    """Explain why ACCOUNT is shown CANDIDATE: which of its own public signals carry it.

    Each of its newest public deeds is taken out of a copy of its state in turn, and the candidate ranked again. Nothing
    private is told: no private signal, nobody who is blocked, muted or reported in either direction.
    """
    import msgspec

    config = read_settings(config_file, options)
    with existing(path, config, at) as live, told():
        explanation = live.why(account, candidate, after=after, most=most)
    if machine:
        click.echo(msgspec.json.encode(explanation))
        return
    from kithstream.streams.reasons import written

    for line in written(explanation):
        click.echo(line)


@cli.command(epilog=example("kithstream inspect u7 --path kin --at newest"))
@click.argument("account")
@directory
@at
@settings
@as_json
def inspect(
    account: str, path: Path, at: str, config_file: Path | None, options: tuple[str, ...], machine: bool
) -> None:
    """Show what is known of ACCOUNT: standing, counters, neighbours, exclusions, features."""
    import msgspec

    config = read_settings(config_file, options)
    with existing(path, config, at) as live:
        from kithstream.streams.account import describe, written

        found = describe(live, account)
    if machine:
        click.echo(msgspec.json.encode(found))
        return
    for line in written(found):
        click.echo(line)


@cli.command("backup", epilog=example("kithstream backup --path kin --to kin-monday"))
@directory
@click.option("--to", required=True, type=_FOLDER, help="Where nothing is yet, or an empty directory.")
@as_json
def back_up(path: Path, to: Path, machine: bool) -> None:
    """Copy a runtime as it stands, in use or not, with a checksum of every file.

    Whoever runs it makes the copy, beside publishing and answering, and must see --to under the same path; one that
    nobody runs is copied here. The copy holds stores, log, model and the snapshot of the index: all that was
    published before.
    """
    from kithstream.streams.backup import backup

    done = backup(path, to)
    show({"to": str(done.path), "files": done.files, "bytes": done.bytes}, machine)


@cli.command("restore", epilog=example("kithstream restore --from kin-monday --path kin"))
@click.option(
    "--from",
    "source",
    required=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="A directory that backup made.",
)
@click.option("--path", required=True, type=_FOLDER, help="Where no runtime is: nothing is written over.")
@as_json
def bring_back(source: Path, path: Path, machine: bool) -> None:
    """Bring a backup to a new place, and check every byte of it.

    A file that is missing or not as it was written is named, and nothing is left at --path.
    """
    from kithstream.streams.backup import restore

    found = restore(source, path)
    total = sum(file.bytes for file in found.files.values())
    show({"path": str(path), "files": len(found.files), "bytes": total, **found.about}, machine)


@cli.command(epilog=example("kithstream audit u7 --path kin"))
@click.argument("account")
@directory
@click.option(
    "--also",
    multiple=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Search this directory as well: checkpoints, copies, training files.",
)
@click.option("--topics", is_flag=True, help="Search the compacted topics on kafka.servers as well.")
@settings
@as_json
def audit(
    account: str,
    path: Path,
    also: tuple[Path, ...],
    topics: bool,
    config_file: Path | None,
    options: tuple[str, ...],
    machine: bool,
) -> None:
    """Search everything under DIR for ACCOUNT: stores, logs, models, snapshots, copies.

    Tells what holds it, why and until when, beside a running process or without one. Exit status 1 if an account
    that was deleted has left more than its salted hash and what the log keeps until its retention is over.
    """
    import msgspec

    from kithstream.streams.audit import audit as search
    from kithstream.streams.audit import written

    config = read_settings(config_file, options)
    found = search(account, path, also, config)
    if topics:
        from kithstream.streams.kafka.search import search_topics

        with told():
            found = search_topics(found, config)
    if machine:
        values = msgspec.structs.asdict(found)
        click.echo(msgspec.json.encode({**values, "leftovers": len(found.leftovers)}))
    else:
        for line in written(found):
            click.echo(line)
    if found.leftovers:
        sys.exit(1)


@cli.command(epilog=example("kithstream train --path kin --out model.safetensors"))
@click.option(
    "--path",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="A runtime whose log is read.",
)
@click.option("--events", "file", type=_FILE, help="A file of events, - is stdin.")
@click.option(
    "--format", "form", type=click.Choice(FORMATS), default="jsonl", show_default=True, help="Of the file."
)
@click.option(
    "--out", required=True, type=click.Path(dir_okay=False, path_type=Path), help="The checkpoint to write."
)
@settings
@as_json
def train(
    path: Path | None,
    file: str | None,
    form: str,
    out: Path,
    config_file: Path | None,
    options: tuple[str, ...],
    machine: bool,
) -> None:
    """Learn from every follow of a stream, in one pass, and write a checkpoint.

    Begins with the day-zero model, or with -o model.path=FILE. Serve it with -o model.path=CHECKPOINT.
    """
    import msgspec

    if (path is None) == (file is None):
        raise Refused("one of --path and --events is needed")
    config = read_settings(config_file, options)
    from kithstream.streams.training import published
    from kithstream.streams.training import train as learn

    if file is not None:
        events = _timed(_Events(file, form, repeats=True))
    else:
        assert path is not None
        if not (path / "log").is_dir():
            raise Refused(f"{path} holds no runtime: it has no log")
        events = published(path)
    with told():
        trained = learn(events, out, config)
    values = msgspec.structs.asdict(trained)
    values["examples_per_second"] = round(trained.examples / max(trained.seconds, 1e-9), 1)
    show(values, machine)


@cli.command(epilog=example("kithstream examples --path kin --out kin-examples"))
@click.option(
    "--path",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="A runtime whose log is read, in use or not.",
)
@click.option("--events", "file", type=_FILE, help="A file of events, - is stdin.")
@click.option(
    "--format", "form", type=click.Choice(FORMATS), default="jsonl", show_default=True, help="Of the file."
)
@click.option("--servers", help="Brokers whose topic engagements is read, up to where it ends at the start.")
@click.option(
    "--checkpoint",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Begin with this state: of the runtime, or worker.checkpoints of the workers.",
)
@click.option("--out", required=True, type=_FOLDER, help="The folder to write, or to go on with.")
@settings
@as_json
def examples(
    path: Path | None,
    file: str | None,
    form: str,
    servers: str | None,
    checkpoint: Path | None,
    out: Path,
    config_file: Path | None,
    options: tuple[str, ...],
    machine: bool,
) -> None:
    """Fold a stream again and write what can be learned of it: Parquet files and a manifest.

    A positive example is a follow that really came about, or what examples.signals names. An impression becomes one of
    engaged or ignored, once examples.window has passed. Each has the features of the asking account as they were
    before, and of the other as it was last encoded. The same command goes on where a pass was killed, or where the
    source had ended; killed or not, the files are the same.
    """
    import msgspec

    from kithstream.streams.examples.passes import Source, make
    from kithstream.streams.examples.sources import FileSource, LogSource
    from kithstream.streams.progress import Progress

    if sum(source is not None for source in (path, file, servers)) != 1:
        raise Refused("one of --path, --events and --servers is needed")
    if servers is not None:
        options += (f"kafka.servers={servers}",)
    config = read_settings(config_file, options)
    source: Source
    with told(), Progress("examples") as progress:
        if file is not None:
            if checkpoint is not None:
                raise Refused("--checkpoint needs --path or --servers: a file does not say where it goes on")
            if file == "-" and (out / "manifest.json").exists():
                raise Refused(f"{out} holds examples, stdin cannot be read from where they end")
            events = _Events(file, form, repeats=True)
            source = FileSource(f"{form} {file}", config.engine.partitions, lambda: events)
        elif path is not None:
            source = LogSource(path, checkpoint)
        else:
            from kithstream.streams.kafka.records import TopicSource

            source = TopicSource(config, checkpoint)
        made = make(source, out, config, progress.reach)
    show(msgspec.structs.asdict(made), machine)


@cli.command(epilog=example("kithstream fit kin-examples --out fitted.safetensors"))
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--out", required=True, type=click.Path(dir_okay=False, path_type=Path), help="The checkpoint to write."
)
@click.option("--epochs", type=click.IntRange(1), default=3, show_default=True, help="At most.")
@click.option(
    "--held",
    type=click.FloatRange(0, 0.5),
    default=0.1,
    show_default=True,
    help="Last share of the positives, by time, that says when to stop; 0 trains on all.",
)
@click.option(
    "--patience",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Epochs without a lower loss on it.",
)
@click.option("--no-tuning", is_flag=True, help="Learn nothing from ignored impressions.")
@_seed
@settings
@as_json
def fit(
    folder: Path,
    out: Path,
    epochs: int,
    held: float,
    patience: int,
    no_tuning: bool,
    seed: int,
    config_file: Path | None,
    options: tuple[str, ...],
    machine: bool,
) -> None:
    """Fit the towers to the examples in FOLDER, in their order, for some epochs.

    Then ignored impressions are learned at a tenth of the rates, which is kept unless the loss on the last share is
    worse for it. A fit that was killed goes on. Begins with the day-zero model, or with -o model.path=FILE; the
    result is another lineage. Serve it with -o model.path=CHECKPOINT.
    """
    import msgspec

    from kithstream.streams.examples.fit import FitConfig
    from kithstream.streams.examples.fit import fit as fitted
    from kithstream.streams.progress import Progress

    config = read_settings(config_file, options)
    model = msgspec.structs.replace(config.model, seed=seed or config.model.seed)
    how = FitConfig(epochs=epochs, held=held, patience=patience, tune=not no_tuning)
    with told(), Progress("fit", unit="rows") as progress:
        done = fitted(folder, out, model, how, progress.reach)
    values = msgspec.structs.asdict(done)
    values["examples_per_second"] = round(done.examples / max(done.seconds, 1e-9), 1)
    show(values, machine)


@cli.command(epilog=example("kithstream simulate --accounts 500 --events 5000 --out events.jsonl"))
@click.option("--accounts", type=click.IntRange(2), default=10_000, show_default=True, help="Of the world.")
@click.option("--events", type=click.IntRange(0), default=100_000, show_default=True, help="In all.")
@_seed
@click.option(
    "--out",
    type=click.Path(dir_okay=False, allow_dash=True),
    default="-",
    show_default=True,
    help="- is stdout.",
)
@as_json
def simulate(accounts: int, events: int, seed: int, out: str, machine: bool) -> None:
    """Write the events of a simulated world as JSON lines; the same seed gives the same bytes."""
    from kithstream.streams.progress import Progress
    from kithstream.streams.simulate import as_json_lines
    from kithstream.streams.world import SimulationConfig

    world = SimulationConfig(accounts=accounts, seed=seed)
    with click.open_file(out, "wb") as file, Progress("simulate", events) as progress:
        for chunk in as_json_lines(world, events):
            file.write(chunk)
            progress.advance(chunk.count(b"\n"))
    if out != "-":
        show({"events": progress.done, "out": out}, machine)


@cli.group(cls=Commands, epilog=example("kithstream models list -o kafka.servers=127.0.0.1:9092"))
def models() -> None:
    """Lineages of models: which were published, which one is served."""


def _runtime(command: F) -> F:
    """Add --path."""
    return click.option(
        "--path",
        type=click.Path(exists=True, file_okay=False, path_type=Path),
        help="A runtime's directory, in use or not, in place of Kafka.",
    )(command)


def _list_of_runtime(path: Path, machine: bool) -> None:
    import msgspec

    from kithstream.streams.serve.lineages import Lineages

    with told():
        folder = Lineages(path)
        state, wanted = folder.state, folder.wanted
    if machine:
        click.echo(msgspec.json.encode({**msgspec.structs.asdict(state), "wanted": wanted}))
        return
    for one in state.known:
        served = "  (served)" if one.lineage == state.serving else ""
        click.echo(f"{one.lineage}  {one.dim} dims, published at step {one.step}{served}")
    if not state.serving or all(one.lineage != state.serving for one in state.known):
        click.echo(f"{state.serving or 'the first'}  (served)")
    if wanted is not None:
        click.echo(f"{wanted.lineage}  is asked for")


@models.command("list", epilog=example("kithstream models list -o kafka.servers=127.0.0.1:9092"))
@_runtime
@settings
@as_json
def list_models(path: Path | None, config_file: Path | None, options: tuple[str, ...], machine: bool) -> None:
    """Show the lineages that were published, oldest first, and which one is to be served.

    On the brokers of kafka.servers, or with --path of a runtime in one process.
    """
    import msgspec

    if path is not None:
        _list_of_runtime(path, machine)
        return
    from kithstream.streams.kafka import registry

    with told():
        known = registry.look(read_settings(config_file, options))
    found = sorted(known.published.values(), key=lambda one: one.at)
    if machine:
        told_of = {"serving": known.serving, "base": known.base, "current": known.current, "published": found}
        click.echo(msgspec.json.encode(told_of))
        return
    for lineage, words in [
        (known.base, "of the settings"),
        *((one.lineage, f"{one.tower.dim} dims, published at step {one.step}") for one in found),
    ]:
        click.echo(f"{lineage}  {words}{'  (served)' if lineage == known.serving else ''}")


@models.command(
    "publish", epilog=example("kithstream models publish model.safetensors -o kafka.servers=127.0.0.1:9092")
)
@click.argument("file", type=_ONE_FILE)
@_runtime
@settings
@as_json
def publish_model(
    file: Path, path: Path | None, config_file: Path | None, options: tuple[str, ...], machine: bool
) -> None:
    """Serve a checkpoint's model from now on, without stopping.

    Workers encode every account with it beside the model that they serve, switch when all is there, and let the other
    go after worker.former_seconds. No answer mixes the two. Needs the rights to make topics. With --path a runtime in
    one process does the same: within a second if it runs, or when it is opened next.
    """
    if path is not None:
        from kithstream.streams.serve.lineages import Lineages

        with told():
            wanted = Lineages(path).publish(file)
        show({"lineage": wanted.lineage, "former": Lineages(path).state.serving}, machine)
        return
    from kithstream.streams.events.stamp import wall_clock
    from kithstream.streams.kafka import registry

    with told():
        current = registry.publish(read_settings(config_file, options), file, wall_clock)
    show({"lineage": current.lineage, "former": current.former}, machine)


@models.command("rollback", epilog=example("kithstream models rollback -o kafka.servers=127.0.0.1:9092"))
@click.option(
    "--to", "lineage", default="", help="Any lineage that was published.  [default: the former one]"
)
@_runtime
@settings
@as_json
def roll_back(
    lineage: str, path: Path | None, config_file: Path | None, options: tuple[str, ...], machine: bool
) -> None:
    """Serve the lineage again that was served before, in the same way."""
    if path is not None:
        from kithstream.streams.serve.lineages import Lineages

        with told():
            wanted = Lineages(path).point(lineage)
        show({"lineage": wanted.lineage, "former": Lineages(path).state.serving}, machine)
        return
    from kithstream.streams.events.stamp import wall_clock
    from kithstream.streams.kafka import registry

    with told():
        current = registry.point(read_settings(config_file, options), lineage, wall_clock)
    show({"lineage": current.lineage, "former": current.former}, machine)


@cli.group(cls=Commands, epilog=example("kithstream communities build --path kin --out known.safetensors"))
def communities() -> None:
    """Versions of communities: what accounts are known for, and who is interested in it."""


@communities.command(
    "build", epilog=example("kithstream communities build --path kin --out known.safetensors")
)
@click.option(
    "--path",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="A runtime's directory, in use or not, or a checkpoint.",
)
@click.option("--graph", type=_ONE_FILE, help="A file of follows, as load takes it.")
@_graph_form
@_time_unit
@click.option(
    "--out", required=True, type=click.Path(dir_okay=False, path_type=Path), help="The version to write."
)
@click.option("--warm", type=_ONE_FILE, help="An earlier version, whose communities keep their numbers.")
@click.option(
    "--min-followers",
    type=click.IntRange(1),
    default=3,
    show_default=True,
    help="That an account needs to be a producer.",
)
@click.option(
    "--neighbours",
    type=click.IntRange(1),
    default=100,
    show_default=True,
    help="Strongest ones that a producer keeps.",
)
@click.option(
    "--method",
    type=click.Choice(METHODS),
    default=METHODS[0],
    show_default=True,
    help="What producers like: to be nearer than by chance, or SimClusters' own rule.",
)
@click.option(
    "--resolution",
    type=click.FloatRange(0.01),
    default=2.0,
    show_default=True,
    help="Of modularity: the greater, the more communities.",
)
@_seed
@as_json
def build_communities(
    path: Path | None,
    graph: Path | None,
    form: str | None,
    time_unit: str,
    out: Path,
    warm: Path | None,
    min_followers: int,
    neighbours: int,
    method: Liking,
    resolution: float,
    seed: int,
    machine: bool,
) -> None:
    """Make a version of communities from the follows of a runtime or of a file.

    A runtime is read beside the process that uses it, and nothing is written there; what it has not folded yet is
    not in the version. Producers are near one another if they have followers in common; communities are found
    among them, and the lengths of their columns of interest are frozen. Equal follows, options and seed give an
    equal version.
    """
    if (path is None) == (graph is None):
        raise Refused("one of --path and --graph is needed")
    from kithstream.streams.communities import follows
    from kithstream.streams.communities.build import BuildConfig, build
    from kithstream.streams.communities.graph import GraphConfig
    from kithstream.streams.communities.known import KnownFor
    from kithstream.streams.communities.walk import WalkConfig
    from kithstream.streams.progress import Progress

    before = KnownFor.load(warm) if warm is not None else None
    config = BuildConfig(
        graph=GraphConfig(min_followers, neighbours=neighbours),
        walk=WalkConfig(liking=method, resolution=resolution),
        seed=seed,
    )
    with told(), Progress("read", unit="follows") as progress:
        if path is not None:
            known = follows.stored(path, on_read=progress.reach)
        else:
            assert graph is not None
            unit = UNITS[time_unit]
            known = follows.in_file(graph, form=form, microseconds=unit, on_read=progress.reach)
    with Progress("walk", config.walk.epochs, "epochs") as progress:
        built = build(known, config, before, lambda epoch, moved: progress.reach(epoch))
    built.known.save(out)
    values = built._asdict()
    del values["known"]
    values |= {"version": built.known.version, "out": str(out)}
    show(values | {"seconds": round(built.seconds, 3), "modularity": round(built.modularity, 4)}, machine)


@communities.command("show", epilog=example("kithstream communities show known.safetensors"))
@click.argument("file", type=_ONE_FILE)
@click.option(
    "--largest", type=click.IntRange(0), default=10, show_default=True, help="Communities to be listed."
)
@as_json
def show_communities(file: Path, largest: int, machine: bool) -> None:
    """Show a version of communities: its counts, and the largest of them by members.

    The norm of a community is the length of its column of interests over all accounts, as the version froze it.
    """
    from kithstream.streams.communities.build import described
    from kithstream.streams.communities.known import KnownFor

    found = described(KnownFor.load(file), largest)
    if machine:
        click.echo(json.dumps(found))
        return
    show({name: value for name, value in found.items() if name != "largest"}, machine)
    click.echo("community  members  norm")
    for one in found["largest"]:
        click.echo(f"{one['community']:>9}  {one['members']:>7}  {one['norm']:.6g}")


@communities.command(
    "adopt", epilog=example("kithstream communities adopt communities.safetensors --path kin")
)
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@directory
@at
@settings
@as_json
def adopt(
    file: Path, path: Path, at: str, config_file: Path | None, options: tuple[str, ...], machine: bool
) -> None:
    """Fill a version of communities, and read it in place of the one before.

    A run that was broken off goes on when the runtime is opened again.
    """
    config = read_settings(config_file, options)
    with existing(path, config, at) as live, told():
        version = live.communities(file)
        live.fill()
        slot = live.engine.partitions[0].communities
        count, accounts = (0, 0) if slot is None else (slot.known.count, len(slot.known))
    show({"version": version, "communities": count, "accounts": accounts}, machine)


@cli.group(cls=Commands, epilog=example("kithstream token new --scope query"))
def token() -> None:
    """Bearer tokens of the HTTP server, each with its scopes."""


@token.command("new", epilog=example("kithstream token new --scope query --scope publish"))
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    required=True,
    type=click.Choice(SCOPES),
    help="What it may do; may be given several times. admin reads metrics.",
)
@as_json
def new_token(scopes: tuple[str, ...], machine: bool) -> None:
    """Make a token, and the line by which a server knows it.

    Append the line to the file that serve.tokens names, on every worker, and then hand the token out: it is printed
    this once, and cannot be had from the line. A token whose line is removed is refused within two seconds.
    """
    from kithstream.streams.serve import access

    made, line = access.new_token(scopes)
    show({"token": made, "line": line}, machine)


@cli.group(cls=Commands, epilog=example("kithstream topics create"))
def topics() -> None:
    """Make the topics on the brokers of kafka.servers, or check them."""


def _lineage(command: F) -> F:
    """Add --model."""
    return click.option(
        "--model",
        type=click.Path(exists=True, dir_okay=False),
        help="A checkpoint: its lineage names the topic of vectors.  [default: model.path, or day-zero]",
    )(command)


@topics.command("create", epilog=example("kithstream topics create -o kafka.servers=127.0.0.1:9092"))
@_lineage
@settings
@as_json
def create_topics(
    model: str | None, config_file: Path | None, options: tuple[str, ...], machine: bool
) -> None:
    """Make the topics that are missing, and check those that are there, which are never altered.

    Each has engine.partitions partitions, replies kafka.reply_partitions, and kafka.replication replicas. Another
    lineage needs it again, for the topic of its vectors. Exit status 1 if a topic that was there does not fit.
    """
    from kithstream.streams.kafka.topics import check, create

    kafka, table = _table(model, config_file, options)
    with told():
        made = create(kafka, table)
        found = check(kafka, table)
    if machine:
        click.echo(json.dumps({"created": made, "there": [t.name for t in table if t.name not in made]}))
    else:
        for topic in table:
            state = "created" if topic.name in made else "there"
            click.echo(f"{state:<7}  {topic.name}")
    for mismatch in found:
        say(str(mismatch))
    if found:
        sys.exit(1)


@topics.command("check", epilog=example("kithstream topics check -o kafka.servers=127.0.0.1:9092"))
@_lineage
@settings
@as_json
def check_topics(
    model: str | None, config_file: Path | None, options: tuple[str, ...], machine: bool
) -> None:
    """Compare the topics with what they must be; a line a mismatch, exit status 1 if there is one."""
    import msgspec

    from kithstream.streams.kafka.topics import check

    kafka, table = _table(model, config_file, options)
    with told():
        found = check(kafka, table)
    for mismatch in found:
        click.echo(msgspec.json.encode(mismatch) if machine else str(mismatch))
    if found:
        sys.exit(1)
    say(f"{len(table)} topics are as they must be")


def _table(
    model: str | None, config_file: Path | None, options: tuple[str, ...]
) -> tuple[KafkaConfig, tuple[Topic, ...]]:
    """Return how to reach the brokers, and what their topics must be."""
    from kithstream.models.lineage import lineage_of
    from kithstream.streams.kafka.topics import wanted

    config = read_settings(config_file, options)
    with told():
        return config.kafka, wanted(config, lineage_of(model or config.model.path, config.model.seed))


@cli.group("dead-letters", cls=Commands, epilog=example("kithstream dead-letters list --since 2h"))
def letters() -> None:
    """Records that the workers and the trainer could not use.

    An embedded runtime has no such topic: over HTTP a bad event is refused at once with 422, and what is too late
    when it is folded is counted in the metrics and stays in its log.
    """


def _filters(command: F) -> F:
    """Add the options that say which letters."""
    for option in (
        click.option("--since", metavar="WHEN", help="Written since: 90s, 30m, 2h, 7d, or ISO 8601."),
        click.option("--partition", "partitions", multiple=True, type=click.IntRange(0), help="Repeatable."),
        click.option("--topic", "sources", multiple=True, help="That the records came from. Repeatable."),
        click.option("--reason", "reasons", multiple=True, help="Such as too_late. Repeatable."),
    ):
        command = option(command)
    return command


@letters.command("list", epilog=example("kithstream dead-letters list --reason too_late --since 2h"))
@_filters
@click.option("--limit", type=click.IntRange(1), help="At most so many, the oldest first.")
@settings
@as_json
def list_letters(
    reasons: tuple[str, ...],
    sources: tuple[str, ...],
    partitions: tuple[int, ...],
    since: str | None,
    limit: int | None,
    config_file: Path | None,
    options: tuple[str, ...],
    machine: bool,
) -> None:
    """Show why records could not be used, where they came from, and how they begin.

    What they hold is shown in ASCII, the rest escaped. --json prints each letter in full, one a line.
    """
    from collections import Counter
    from itertools import islice

    import msgspec

    from kithstream.streams.kafka import replaying

    config = read_settings(config_file, options)
    unreadable: Counter[str] = Counter()
    wanted = replaying.wanted(config.kafka, reasons, sources, partitions, _moment(since))
    for letter in islice(replaying.read(config.kafka, wanted, unreadable), limit):
        click.echo(msgspec.json.encode(letter) if machine else replaying.line(letter))
    if unreadable:
        say(f"{unreadable.total()} records of the topic are no letters")


@letters.command("replay", epilog=example("kithstream dead-letters replay --reason too_late --dry-run"))
@_filters
@click.option("--all", "everything", is_flag=True, help="Every letter, where no filter says which.")
@click.option("--dry-run", "dry", is_flag=True, help="Publish nothing, and say what would be.")
@settings
@as_json
def replay_letters(
    reasons: tuple[str, ...],
    sources: tuple[str, ...],
    partitions: tuple[int, ...],
    since: str | None,
    everything: bool,
    dry: bool,
    config_file: Path | None,
    options: tuple[str, ...],
    machine: bool,
) -> None:
    """Publish the records of dead letters again, where they came from.

    For after a mend: of a schema, a setting, a publisher's clock. An event counts once however often it is
    published, so that a replay may be repeated. What still cannot be used becomes a dead letter anew. Not replayed
    are records that the letter does not hold in full, of deleted accounts, and examples.
    """
    from collections import Counter

    from kithstream.streams.kafka import replaying

    if not (everything or reasons or sources or partitions or since):
        raise Refused("which letters? Give --reason, --topic, --partition or --since, or --all")
    config = read_settings(config_file, options)
    unreadable: Counter[str] = Counter()
    wanted = replaying.wanted(config.kafka, reasons, sources, partitions, _moment(since))
    found = replaying.read(config.kafka, wanted, unreadable)
    done = replaying.replay(config.kafka, found, unreadable, dry=dry)
    counts: dict[str, object] = {"would_publish" if dry else "published": done.published}
    counts |= {"repeats": done.repeats, "unreadable": done.unreadable}
    if machine:
        click.echo(json.dumps(counts | {"refused": dict(done.refused)}))
        return
    show(counts | {f"refused: {why}": n for why, n in sorted(done.refused.items())}, machine)


def _moment(since: str | None) -> int | None:
    """The time, in microseconds, that --since says."""
    from datetime import datetime

    from kithstream.streams.events.stamp import wall_clock

    if since is None:
        return None
    unit = {"s": 1, "m": 60, "h": 3600, "d": 86_400}.get(since[-1:])
    if unit and since[:-1].isdecimal() and len(since) < 12:
        return wall_clock() - int(since[:-1]) * unit * 1_000_000
    try:
        found = datetime.fromisoformat(since)
    except ValueError:
        raise Refused(f"--since is {since!r}, expected such as 30m, 2h, 7d or 2026-01-31T12:00:00") from None
    if found.tzinfo is None:
        found = found.replace(tzinfo=UTC)
    return int(found.timestamp() * 1_000_000)


@cli.command(epilog=example("kithstream doctor --path kin"))
@click.option("--path", type=_FOLDER, default=Path(), help="Where state is to live.  [default: here]")
@settings
@as_json
def doctor(path: Path, config_file: Path | None, options: tuple[str, ...], machine: bool) -> None:
    """Check whether this machine can run kithstream; a line a check, exit status 1 if one fails."""
    import msgspec

    from kithstream.streams.doctor import examine, line

    config = read_settings(config_file, options)
    failed = False
    for finding in examine(path, config):
        failed |= bool(finding.cure)
        click.echo(msgspec.json.encode(finding) if machine else line(finding))
    if failed:
        sys.exit(1)


class _Events:
    """The events of a file in one of the known formats; read again whenever it is iterated."""

    def __init__(self, file: str, form: str, *, repeats: bool) -> None:
        self._file, self._form, self._repeats = file, form, repeats

    def __iter__(self) -> Iterator[Record]:
        with told():
            yield from self._read()

    def _read(self) -> Iterable[Record]:
        from kithstream.streams.sources import bitcoin, higgs, jsonl, pairs

        if self._form == "jsonl":
            return jsonl.read(self._file)
        readers: Mapping[str, Callable[[str, bool], Iterable[Record]]] = {
            "higgs": higgs.read,
            "bitcoin": bitcoin.read,
            "pairs": pairs.read,
        }
        return readers[self._form](self._file, self._repeats)


def _timed(events: Iterable[Record]) -> Iterator[Timed]:
    import msgspec

    from kithstream.streams.training import Timed

    encode = msgspec.json.Encoder().encode
    for event in events:
        yield Timed(event["time"], encode(event))
