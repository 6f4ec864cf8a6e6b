"""Served metrics do not exist alone: not built, not read back, not printed."""

from __future__ import annotations

import json
import math
from typing import Any

import msgspec
import pytest

from kithstream.models.evaluate import Interval
from kithstream.streams.evaluating.report import Nearest, Report, Row, Served, from_json, to_json
from kithstream.streams.evaluating.told import page, table

HALF = Interval(0.5, 0.4, 0.6)
NEAREST: dict[str, Any] = {
    "random_auc": 0.8,
    "random_auc_per_user": HALF,
    "random_pairs": 40,
    "mismatch_at_1": 0.25,
    "labelled": 4,
    "prpc": 0.3,
    "spearman": 0.2,
    "coverage": 0.9,
    "gini": 0.6,
}
SERVED: dict[str, Any] = {
    "served_auc": 0.89,
    "served_auc_per_user": HALF,
    "users": 3,
    "engaged": 5,
    "ignored": 20,
    "unscored": 0,
}


def row(measured: Nearest | None, withheld: str = "", part: str = "all") -> Row:
    by_k = {5: HALF, 20: HALF}
    return Row(
        method="kithstream",
        part=part,
        questions=4,
        recall=by_k,
        ndcg=by_k,
        measured=measured,
        withheld=withheld,
    )


def report(*rows: Row, stream: str = "events.jsonl") -> Report:
    return Report(
        version=1,
        stream=stream,
        seed=0,
        ks=(5, 20),
        tests=4,
        slates=2,
        unfinished=0,
        window_seconds=600.0,
        others=10,
        accounts=30,
        candidates=20,
        torso_followers=3,
        head_followers=9,
        age_borders=(60.0, 3600.0),
        events=100,
        refused=0,
        learned=40,
        seconds=1.0,
        lineage="towers",
        step=3,
        chosen={"hand rule": "600 s, 600 s"},
        rows=rows,
    )


WHOLE = report(row(Served(**NEAREST, **SERVED)), row(Nearest(**NEAREST), "no impression", "head"))


@pytest.mark.parametrize("missing", NEAREST)
def test_served_metrics_cannot_be_built_without_one_of_the_others(missing: str) -> None:
    rest = {name: value for name, value in NEAREST.items() if name != missing}
    with pytest.raises(TypeError, match=missing):
        Served(**rest, **SERVED)


@pytest.mark.parametrize("name", ["random_auc", "prpc", "spearman", "coverage", "gini", "mismatch_at_1"])
@pytest.mark.parametrize("kind", [Nearest, Served])
def test_what_is_no_number_is_no_metric(name: str, kind: type[Nearest]) -> None:
    values = NEAREST | {name: math.nan} | (SERVED if kind is Served else {})
    with pytest.raises(ValueError, match=f"{name} is nan"):
        kind(**values)


def test_mismatch_may_be_absent_only_where_no_answer_tells_a_language() -> None:
    assert Served(**NEAREST | {"mismatch_at_1": None, "labelled": 0}, **SERVED).mismatch_at_1 is None
    with pytest.raises(ValueError, match="mismatch_at_1 is None, of 4 labelled answers"):
        Served(**NEAREST | {"mismatch_at_1": None}, **SERVED)


@pytest.mark.parametrize("missing", NEAREST)
def test_served_metrics_cannot_be_read_without_one_of_the_others(missing: str) -> None:
    values = json.loads(to_json(WHOLE))
    assert from_json(json.dumps(values).encode()) == msgspec.convert(values, Report, strict=False)
    del values["rows"][0]["measured"][missing]
    with pytest.raises(ValueError, match=missing):
        from_json(json.dumps(values).encode())


def test_there_is_no_place_for_served_metrics_but_beside_the_others() -> None:
    values = json.loads(to_json(WHOLE))
    values["rows"][1]["served_auc"] = 0.9
    with pytest.raises(ValueError, match="served_auc"):
        from_json(json.dumps(values).encode())
    values = json.loads(to_json(WHOLE))
    values["rows"][1]["measured"] |= {"served_auc": 0.9}  # of the kind `nearest`
    with pytest.raises(ValueError, match="served_auc"):
        from_json(json.dumps(values).encode())


def test_what_was_forged_is_not_printed_and_not_written() -> None:
    measured = Served(**NEAREST, **SERVED)
    forged = report(row(measured))
    msgspec.structs.force_setattr(measured, "prpc", math.nan)
    for tell in (to_json, page, lambda told: list(table(told))):
        with pytest.raises(ValueError, match="prpc"):
            tell(forged)


def test_a_row_without_served_metrics_says_why() -> None:
    with pytest.raises(ValueError, match="says why"):
        row(Nearest(**NEAREST))
    with pytest.raises(ValueError, match="says why"):
        row(Served(**NEAREST, **SERVED), "no impression")


def test_another_version_is_refused() -> None:
    values = json.loads(to_json(WHOLE))
    values["version"] = 2
    with pytest.raises(ValueError, match="version is 2, this program writes 1"):
        from_json(json.dumps(values).encode())


def test_json_comes_back() -> None:
    assert to_json(from_json(to_json(WHOLE))) == to_json(WHOLE)
