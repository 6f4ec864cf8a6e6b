"""What so many accounts and events a second take in cores, memory, disk, network and money, from measured unit costs.

    python -m bench.scale
    python -m bench.scale --accounts 1e7 --events 1e5 --flush 1 --vcpu-hour 0.03
    python -m bench.scale page docs/scale.md

Unit costs are read from `docs/scale.json`, which `python -m bench.scale_units` measures. With `page` the tables of the
page are written anew from them, with the defaults of every flag; what stands between the tables is left alone.
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final

import msgspec

from bench.scale_model import (
    RECORD,
    Costs,
    Setting,
    bill,
    encoded,
    exchanged,
    index_money,
    largest,
    progress_bytes,
    replica,
    sharded,
)
from bench.scale_simulate import crowd, kept
from bench.scale_units import BATCHES, PARTITIONS, UNITS, read

FLUSHES: Final = (0.015, 0.1, 1.0, 10.0, 60.0)  # seconds
ACCOUNTS: Final = (1e5, 1e6, 1e7, 1e8)
RATES: Final = (1e3, 1e4, 1e5, 1e6)  # events a second
SHARDS: Final = (1, 4, 16, 64, 256)
GATHERS: Final = (0.005, 0.1, 1.0)
_TABLE: Final = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def units(costs: Costs, _: Setting) -> str:
    """Every unit cost with its command."""
    rows = [
        (
            name,
            ", ".join(f"{figure} {value:g}" for figure, value in unit.figures.items()),
            f"`{unit.command}`",
        )
        for name, unit in costs.units.items()
        if name != "exchange"
    ]
    return _rows(("part", "figures", "on", "command"), rows)


def exchange(costs: Costs, _: Setting) -> str:
    """Frames and bytes an event as the engine sends them, and what the model makes of them."""
    figures = costs.units["exchange"].figures
    rows = []
    for partitions in PARTITIONS:
        for batch in BATCHES:
            at = f"{partitions}_partitions_{batch}_events"
            if f"frames_{at}" not in figures:
                continue
            frames, size = figures[f"frames_{at}"], figures[f"bytes_{at}"]
            told = costs.edges_bytes + partitions / batch * costs.units["frame"].figures["frame_bytes"]
            rows.append((partitions, batch, _n(frames), _n(partitions / batch), _n(size), _n(told)))
    return _rows(("partitions", "events a batch", "frames", "of P / batch", "bytes", "of the model"), rows)


def told(costs: Costs, setting: Setting) -> str:
    """What telling everybody takes, by how long partitions gather."""
    rows = []
    for partitions in (*PARTITIONS[1:], setting.partitions):
        for gather in GATHERS:
            over = exchanged(costs, setting.events, partitions, gather)
            rows.append(
                (
                    partitions,
                    f"{gather:g} s",
                    _n(over.batch),
                    _n(over.frames),
                    _n(over.frames * costs.frame),
                    _n(over.bytes / 1e6),
                    _n(partitions * (progress_bytes(partitions) + RECORD) / setting.flush / 1e6),
                )
            )
    heads = (
        "partitions",
        "gathered for",
        "events a batch",
        "frames/s",
        "cores for frames",
        "MB/s",
        "MB/s of progress to each reader",
    )
    return _rows(heads, rows)


def hot(costs: Costs, setting: Setting) -> str:
    """The busiest account, whose events all go to one partition, and so to one thread."""
    rows = []
    for exponent in (0.7, costs.exponent, 0.9, 1.0):
        busiest = crowd(int(setting.accounts), setting.events * costs.touched, exponent).rates[0]
        each = setting.events * costs.touched / setting.partitions
        cores = (busiest + each) * costs.fold / costs.touched
        rows.append((f"{exponent:g}", _n(busiest), _n(each), _n(cores)))
    heads = ("exponent", "touches/s of it", "of a whole partition, mean", "cores that its partition takes")
    return _rows(heads, rows)


def coalescing(costs: Costs, _: Setting) -> str:
    """Encodings an event, by how long changes are gathered, and by ageing alone."""
    rows = []
    for accounts in ACCOUNTS:
        for rate in RATES:
            made = [encoded(costs, accounts, rate, flush) for flush in FLUSHES]
            rows.append(
                (
                    f"{accounts:.0e}",
                    f"{rate:.0e}",
                    *(_n(one.changed / rate) for one in made),
                    _n(made[0].aged / rate),
                )
            )
    return _rows(("accounts", "events/s", *(f"{flush:g} s" for flush in FLUSHES), "by age alone"), rows)


def full(costs: Costs, setting: Setting) -> str:
    """Where an index that every process holds whole ends."""
    rows = []
    for accounts in ACCOUNTS:
        for flush in (0.015, 1.0, 10.0):
            here = msgspec.structs.replace(setting, flush=flush, partitions=16)
            ends = largest(costs, accounts, here)
            at = replica(costs, accounts, min(max(ends, 1.0), 1e8), here)
            why = "" if ends == math.inf else replica(costs, accounts, ends * 1.03 + 1e-3, here).ends(here)
            rows.append(
                (
                    f"{accounts:.0e}",
                    f"{flush:g} s",
                    _n(at.gigabytes),
                    "any" if ends == math.inf else _n(ends),
                    _n(at.vectors),
                    _n(at.megabytes),
                    why,
                )
            )
    heads = (
        "accounts",
        "flush",
        "GB a process",
        "most events/s",
        "vectors/s then",
        "MB/s read then",
        "ends at",
    )
    return _rows(heads, rows)


def target(costs: Costs, setting: Setting) -> str:
    """The bill of the whole."""
    stages = bill(costs, setting)
    rows = [
        (s.name, _n(s.cores), _n(s.memory_gb), _n(s.disk_gb), _n(s.traffic_mb), _n(s.money(setting)))
        for s in stages
    ]
    totals = (sum(one[at] for one in stages) for at in range(1, 5))  # type: ignore[misc]
    rows.append(("all", *map(_n, totals), _n(sum(one.money(setting) for one in stages))))
    return _rows(("stage", "cores", "memory, GB", "disk, GB", "traffic, MB/s", "money a month"), rows)


def cuts(costs: Costs, setting: Setting) -> str:
    """The cuts of the index: by hash, where a question goes everywhere, or by what is near, where it goes to a few."""
    rows = []
    for visited in (0, 16, 4):
        for cores in (1, 8):
            for flush in (1.0, setting.flush, 60.0):
                here = msgspec.structs.replace(setting, visited=visited, process_cores=cores, flush=flush)
                made = encoded(costs, here.accounts, here.events, flush)
                cut = sharded(costs, made.all, here)
                rows.append(
                    (
                        visited or "all, by hash",
                        cores,
                        f"{flush:g} s",
                        cut.shards,
                        cut.replicas,
                        cut.processes * cores,
                        _n(cut.processes * cut.gigabytes),
                        _n(index_money(costs, cut, made.all, here)),
                        _n(sum(stage.money(here) for stage in bill(costs, here))),
                    )
                )
    heads = (
        "shards visited",
        "cores of a process",
        "flush",
        "shards",
        "replicas",
        "cores",
        "GB",
        "money of the index",
        "money of all",
    )
    return _rows(heads, rows)


def freshness(costs: Costs, setting: Setting) -> str:
    """What it costs to flush more often."""
    rows = []
    for flush in FLUSHES:
        here = msgspec.structs.replace(setting, flush=flush)
        made = encoded(costs, here.accounts, here.events, flush)
        cut = sharded(costs, made.all, here)
        rows.append(
            (
                f"{flush:g} s",
                _n(made.all),
                _n(made.all * costs.encode / here.busy),
                cut.shards,
                cut.replicas,
                cut.processes,
                cut.named,
                _n(index_money(costs, cut, made.all, here)),
                _n(sum(stage.money(here) for stage in bill(costs, here))),
            )
        )
    heads = (
        "flush",
        "encodings/s",
        "cores of towers",
        "shards",
        "replicas",
        "processes",
        "k' of each",
        "money of the index",
        "money of all",
    )
    return _rows(heads, rows)


def scattered(costs: Costs, setting: Setting) -> str:
    """What a question to all shards takes: how many each names, CPU, and which percentile of a shard it waits for."""
    rows = []
    for shards in SHARDS:
        named = kept(setting.k, shards, setting.missed)
        rows.append(
            (
                shards,
                named,
                shards * named,
                _n(shards * costs.searched(named) * 1e3),
                f"p{100 * 0.5 ** (1 / shards):.4g}",
                f"p{100 * 0.99 ** (1 / shards):.6g}",
            )
        )
    heads = (
        "shards",
        "k' of each",
        "in all",
        "ms of CPU a question",
        "its median waits for",
        "its p99 waits for",
    )
    return _rows(heads, rows)


def inputs(_: Costs, setting: Setting) -> str:
    """What is assumed."""
    rows = [
        (f"`--{name.replace('_', '-')}`", _n(value))
        for name, value in msgspec.structs.asdict(setting).items()
    ]
    return _rows(("flag", "value"), rows)


TABLES: Final[dict[str, Callable[[Costs, Setting], str]]] = {
    "inputs": inputs,
    "units": units,
    "exchange": exchange,
    "told": told,
    "hot": hot,
    "coalescing": coalescing,
    "full": full,
    "target": target,
    "freshness": freshness,
    "cuts": cuts,
    "scattered": scattered,
}


def written(page: str, costs: Costs, setting: Setting) -> str:
    """Return the page with every table made anew; raises ValueError for one that it lacks or that there is not."""
    found = _TABLE.findall(page)
    names = [name for _, name, _ in found]
    if sorted(names) != sorted(TABLES):
        raise ValueError(f"tables are {', '.join(names)}, expected {', '.join(TABLES)}, each once")
    return _TABLE.sub(lambda m: f"{m[1]}{TABLES[m[2]](costs, setting)}\n{m[3]}", page)


def _rows(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def _n(value: float) -> str:
    """Three significant digits, with commas.

    >>> _n(1234567.0), _n(0.01234), _n(7), _n(0.0)
    ('1,230,000', '0.0123', '7', '0')
    """
    short = float(f"{value:.3g}")
    return f"{short:,.0f}" if abs(short) >= 100 or short == int(short) else f"{short:g}"


def main() -> None:
    """Print tables, or write them into the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="?", choices=("page",), help="Write the tables of a page.")
    parser.add_argument("page", nargs="?", type=Path, default=UNITS.with_suffix(".md"))
    parser.add_argument("--units", type=Path, default=UNITS)
    parser.add_argument("--only", choices=tuple(TABLES), action="append", help="Repeatable; by default all.")
    fields = msgspec.structs.fields(Setting)
    for field in fields:
        kind = int if isinstance(field.default, int) else float
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=kind, default=field.default)
    given = parser.parse_args()
    costs = Costs(read(given.units))
    setting = Setting(**{field.name: getattr(given, field.name) for field in fields})
    if given.what:
        given.page.write_text(written(given.page.read_text(), costs, Setting()))
        return
    for name in given.only or TABLES:
        print(f"{TABLES[name].__doc__}\n\n{TABLES[name](costs, setting)}\n")


if __name__ == "__main__":
    main()
