"""Tables of the reproduction, written into the marked places of a page.

Of a row both halves are told, or the nearest neighbours alone: no table can show what was measured on served pairs
by itself.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from bench.paper_claims import Arms, Check, Results, checks, estimate
from bench.paper_measure import Nearest, Served
from bench.paper_sampling import LOSSES, RATIOS, SCALES, TUNING
from bench.paper_tau import Tau
from bench.paper_tuning import LENGTHS, SHARES

TITLES: Final = {
    "served.auc": "AUC",
    "served.per_user_auc": "per-user AUC",
    "nearest.mismatch": "mismatch@1",
    "nearest.prpc": "PRPC",
    "nearest.prpc_log": "PRPC, log",
    "nearest.spearman": "Spearman",
    "nearest.coverage": "coverage@5",
    "nearest.gini": "Gini",
    "nearest.truth": "true p@5",
    "nearest.truth_deep": "true p@20",
    "nearest.recall": "recall@20, follows",
    "nearest.recall_served": "recall@20, served",
    "nearest.follow_auc": "AUC, blind",
}
SERVED: Final = tuple(f"served.{name}" for name in Served.__struct_fields__ if name != "users")
NEAREST: Final = tuple(f"nearest.{name}" for name in Nearest.__struct_fields__)
OLD: Final = ("", "strong ")  # old rankers
TUNED: Final = ("implicit", "random", "fine-tuned")
KEYS: Final = ("mismatch", "prpc", "coverage", "truth", "recall")  # of the neighbours, where not all are told


def tables(results: Results) -> dict[str, str]:
    """By the name of their place."""
    arms = Arms(results.rows)
    found = {
        "run": run(results),
        "checks": checked(checks(results)),
        "E1": thresholds(results.taus),
        "E2": table(arms, {f"E2 {ratio}": str(ratio) for ratio in RATIOS}),
        "E3": table(arms, {f"E3 {loss}": loss for loss in LOSSES}),
        "E4": table(arms, {arm: arm[3:] for arm in arms.rows if arm.startswith("E4 ")}, nearest=NEAREST),
        "E6": table(arms, {**{f"E6 {t:g}": f"t = {t:g} p90" for t in SCALES}, "E6 inf": "no weights"}),
        "E7": table(arms, {f"E7 {old}{arm}": f"{old}{arm}" for old in OLD for arm in TUNED}, nearest=NEAREST),
        "E8": table(
            arms,
            {
                f"E8 {place} {length}": f"{share:.3g} of the rate, epochs {length}"
                for place, share in enumerate(SHARES)
                for length in LENGTHS
            },
        ),
        "sanity": table(arms, {arm: arm for arm in ("blind", "popularity", "truth")}),
        "E9": online(results),
    }
    streams = {arm: arm for arm in arms.rows if " E4 " in arm or " E6 " in arm}
    return {**found, "streams": table(arms, streams)} if streams else found


def table(arms: Arms, names: dict[str, str], nearest: Iterable[str] = ()) -> str:
    """Rows of arms: what was measured on served pairs, if anything, and always on nearest neighbours."""
    served = all(row.served is not None for arm in names for row in arms.rows[arm])
    columns = [*(SERVED if served else ()), *(tuple(nearest) or tuple(f"nearest.{name}" for name in KEYS))]
    values = {arm: [arms.values(arm, column) for column in columns] for arm in names}
    told = [n for n in range(len(columns)) if not all(np.isnan(values[arm][n]).all() for arm in names)]
    head = ["", *(TITLES[columns[n]] for n in told)]
    return _markdown(head, [[name, *(_cell(values[arm][n]) for n in told)] for arm, name in names.items()])


def checked(found: Iterable[Check]) -> str:
    """Claims with what was measured."""
    rows = [
        [
            c.experiment,
            c.data,
            _title(c.claim),
            ("over " if c.sign > 0 else "below ") + f"{c.bar:g}",
            c.estimate.told(),
            c.outcome,
        ]
        for c in found
    ]
    return _markdown(["", "data", "claim", "bar", "measured, 95 % interval", "reproduced"], rows)


def thresholds(taus: Sequence[Tau]) -> str:
    """E1 by data and threshold."""
    groups: dict[tuple[str, float], list[Tau]] = {}
    for one in taus:
        groups.setdefault((one.data, one.tau), []).append(one)
    rows = []
    for (data, tau), group in groups.items():
        cells = [
            _cell([float(getattr(getattr(one, side), name)) for one in group])
            for side in ("biased", "full")
            for name in ("auc", "ap", "accuracy", *(("positives",) if side == "biased" else ()))
        ]
        rows.append([data, "unbiased" if tau < 0 else f"{tau:g}", *cells])
    head = ["data", "tau", "biased: AUC", "AP", "accuracy", "positives", "full: AUC", "AP", "accuracy"]
    return _markdown(head, rows)


def online(results: Results) -> str:
    """E9 by arm."""
    groups: dict[str, list[float]] = {}
    for one in results.online:
        groups.setdefault(one.arm[3:], []).append(one.engagement)
    return _markdown(
        ["candidates from", "engagement of three"], [[arm, _cell(v)] for arm, v in groups.items()]
    )


def run(results: Results) -> str:
    """How all of it was made."""
    chosen = "; ".join(
        f"{loss}: {_fields(LOSSES[loss][one.place])}, rate {one.rate:g}"
        for loss, one in results.choice.items()
    )
    cost = "" if results.cpu_seconds is None else f", {results.cpu_seconds / 60:.0f} minutes of one core"
    return (
        f"`{results.command}`, {results.seeds} seeds from 0{cost}, on {results.machine}.\n"
        f"Settings chosen in the world of seed {TUNING}: {chosen}."
    )


def write(page: Path, found: dict[str, str]) -> None:
    """Puts tables into their places in a page, `<!-- NAME -->` to `<!-- /NAME -->`; makes the page if it is not there.

    Raises `ValueError` if the page has a place for which there is no table, or lacks one.
    """
    if not page.exists():
        places = "\n\n".join(f"## {name}\n\n<!-- {name} -->\n<!-- /{name} -->" for name in found)
        page.write_text(f"# The paper, reproduced\n\n{places}\n")
    text = page.read_text()
    page.write_text(filled(text, found))


def filled(text: str, found: dict[str, str]) -> str:
    """A page with tables in their places."""
    places = re.findall(r"<!-- (\w+) -->", text)
    if sorted(places) != sorted(found):
        raise ValueError(f"the page has places {sorted(places)}, there are tables {sorted(found)}")
    for name, told in found.items():
        text = re.sub(
            rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)",
            lambda match, told=told: f"{match[1]}{told}\n{match[2]}",  # type: ignore[misc]  # bound at once
            text,
            flags=re.S,
        )
    return text


def _fields(setting: msgspec.Struct) -> str:
    shown = msgspec.structs.asdict(setting)
    return ", ".join(f"{name} {value:g}" for name, value in shown.items() if value and value is not True)


def _title(claim: str) -> str:
    for name, title in sorted(TITLES.items(), key=lambda item: -len(item[0])):  # a name may begin another
        claim = claim.replace(name, title)
    return claim


def _cell(values: Sequence[float]) -> str:
    found = estimate(values)
    if math.isnan(found.mean):
        return ""
    if math.isinf(found.high):
        return f"{found.mean:.3f}"
    return f"{found.mean:.3f} ± {found.high - found.mean:.3f}"


def _markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])
