"""The jobs of the comparison: what each needs, and how each is done in a process of its own."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from bench import quality_peers as peers
from bench.machine import machine
from bench.quality_part import Part, best_setting, trials
from bench.quality_peers import SEGMENTS, TRIALS, Asked
from bench.quality_streams import SIMULATOR, History, kept_pairs, read
from kithstream.streams import prequential
from kithstream.streams.prequential import MISSED, K, Pairs, border
from kithstream.streams.yardsticks import GRID, DecayedPopularity, HandRule, TwoHop, Yardstick

METHODS: Final = (
    "two_hop",
    "popularity",
    "hand_rule",
    "als",
    "bpr",
    "warp",
    "day_zero",
    "frozen",
    "live",
    "live_events",
)
PAIRS: Final = "pairs"  # the job that reads a stream
# Core seconds of one job on 100,000 pairs, about; of the last, on 100,000 events. They order the jobs of a pool.
WEIGHTS: Final = {
    "two_hop": 5.0,
    "popularity": 3.0,
    "hand_rule": 10.0,
    "als": 8.0,
    "als_fold_in": 20.0,
    "als_refit": 6.0,
    "bpr": 8.0,
    "bpr_refit": 5.0,
    "warp": 8.0,
    "warp_partial": 8.0,
    "day_zero": 60.0,
    "frozen": 110.0,
    "live": 130.0,
    "live_events": 120.0,
}
SIZES: Final = {"btc": (0.3, 0.4), "college": (0.2, 0.6), "higgs": (4.6, 5.6), SIMULATOR: (0.5, 4.0)}
_FINALS: Final = {  # of methods that have settings to choose from: what is measured with the best of them
    "popularity": ("popularity",),
    "hand_rule": ("hand_rule",),
    "als": ("als", "als_fold_in", "als_refit"),
    "bpr": ("bpr", "bpr_refit"),
    "warp": ("warp", "warp_partial"),
}
_REFITTED: Final = ("als_refit", "bpr_refit")  # in segments, each with a fit of its own
_VERSIONS: Final = ("implicit", "lightfm-next", "numpy", "scipy", "torch")
_CHOSEN_AS: Final = {"als_refit": "als_fold_in", "bpr_refit": "bpr"}  # too dear to have trials of their own


class Job(NamedTuple):
    """A part of the comparison that one process does."""

    key: str  # stream/job
    needs: Sequence[str]  # keys that are to be settled before
    weight: float  # core seconds, about, with those of the dearest that waits for it


class Given(NamedTuple):
    """What all jobs of a comparison share."""

    data: Path
    out: Path
    tests: int  # at most
    limit: int | None  # pairs at most
    seed: int


class Found(NamedTuple):
    """What a job hands back."""

    rows: NDArray[np.int64]
    asked: dict[str, Asked]
    setting: str = ""
    fit_seconds: float = 0.0
    recalls: Mapping[str, float] = MappingProxyType({})
    refused: int = 0


def jobs(stream: str, methods: Sequence[str]) -> list[Job]:
    """Returns all jobs of some methods on a stream."""
    read_first = f"{stream}/{PAIRS}"
    of_pairs, of_events = SIZES[stream]
    cost = {name: weight * of_pairs for name, weight in WEIGHTS.items()}
    cost["live_events"] = WEIGHTS["live_events"] * of_events
    made = []
    for method in methods:
        if method not in _FINALS:
            made.append(Job(f"{stream}/{method}", (read_first,), cost[method]))
            continue
        finals = _FINALS[method]
        tried = [f"{stream}/{method}/trial-{number}" for number in range(TRIALS)]
        dearest = max(cost[final] for final in finals)
        made += [Job(key, (read_first,), dearest + cost[method]) for key in tried]
        for final in finals:
            parts = [f"/segment-{number}" for number in range(SEGMENTS)] if final in _REFITTED else [""]
            made += [Job(f"{stream}/{final}{part}", (read_first, *tried), cost[final]) for part in parts]
    return [Job(read_first, (), max(job.weight for job in made) + of_events), *made]


def do(key: str, given: Given) -> Part:
    """Does a job, whose needs are in the folder of parts."""
    began, used = time.perf_counter(), time.process_time()
    stream, _, job = key.partition("/")
    method, _, part = job.partition("/")
    known = kept_pairs(stream, given.data, given.seed, given.limit, given.out)
    if method == PAIRS:
        found = Found(np.zeros(0, np.int64), {})
    elif part.startswith("trial-"):
        found = _TRIED[method](known, int(part.removeprefix("trial-")), given)
    else:
        found = _measure(stream, method, part, known, given)
    return Part(
        stream=stream,
        job=job,
        seed=given.seed,
        pairs=len(known.source),
        tests=given.tests,
        machine=machine(),
        versions=_versions(),
        rows=found.rows.tolist(),
        positions={name: asked.positions for name, asked in found.asked.items()},
        query_ms={name: [round(ms, 3) for ms in asked.milliseconds] for name, asked in found.asked.items()},
        recalls=dict(found.recalls),
        setting=found.setting,
        fit_seconds=round(found.fit_seconds, 3),
        refused=found.refused,
        cpu_seconds=round(time.process_time() - used, 2),
        wall_seconds=round(time.perf_counter() - began, 2),
        peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    )


def _versions() -> dict[str, str]:
    found = {}
    for name in _VERSIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "none"
    return found


# -- choosing ------------------------------------------------------------------------------------------------


class _Slice(NamedTuple):
    """The part of a stream on which settings are chosen: rows 64 to 80 % are asked for."""

    known: Pairs
    tests: NDArray[np.int64]
    history: History


def _slice(known: Pairs, given: Given) -> _Slice:
    head = known.head(border(known))
    return _Slice(head, prequential.choose_tests(head, given.seed, given.tests), History(head))


def _tried(setting: object, recalls: dict[str, float], fit_seconds: float = 0.0) -> Found:
    text = msgspec.json.encode(setting).decode()
    return Found(np.zeros(0, np.int64), {}, text, fit_seconds, recalls)


def _recall(positions: Sequence[int] | NDArray[np.int64]) -> float:
    return float(prequential.recalled(np.array(positions, np.int64)).mean()) if len(positions) else 0.0


def _draw(number: int, seed: int, drawn: Callable[[np.random.Generator], Any], customary: object) -> Any:
    """The setting of a trial; the first is the customary one."""
    return drawn(np.random.default_rng((seed, number))) if number else customary


def _try_popularity(known: Pairs, number: int, given: Given) -> Found:
    part, half_life = _slice(known, given), GRID[number]
    positions = prequential.replay(DecayedPopularity(half_life), part.known, part.tests)
    return _tried([f"{half_life:g}"], {"popularity": _recall(positions)})


def _try_hand_rule(known: Pairs, number: int, given: Given) -> Found:
    """Eight settings a trial: the whole grid in all."""
    part, first = _slice(known, given), GRID[number]
    recalls = {
        second: _recall(prequential.replay(HandRule(first, second), part.known, part.tests))
        for second in GRID
    }
    second = max(recalls, key=recalls.__getitem__)
    return _tried([f"{first:g}", f"{second:g}"], {"hand_rule": recalls[second]})


def _try_als(known: Pairs, number: int, given: Given) -> Found:
    part = _slice(known, given)
    setting = _draw(number, given.seed, peers.draw_als, peers.AlsSetting())
    model, seconds = _timed(peers.fit_als, part.known, border(part.known), setting, given.seed)
    recalls = {
        name: _recall(
            peers.ask(
                peers.recommended(model, len(known.accounts), fold_in=fold_in),
                part.known,
                part.history,
                part.tests,
            ).positions
        )
        for name, fold_in in (("als", False), ("als_fold_in", True))
    }
    return _tried(setting, recalls, seconds)


def _try_bpr(known: Pairs, number: int, given: Given) -> Found:
    part = _slice(known, given)
    setting = _draw(number, given.seed, peers.draw_bpr, peers.BprSetting())
    model, seconds = _timed(peers.fit_bpr, part.known, border(part.known), setting, given.seed)
    asked = peers.ask(peers.recommended(model, len(known.accounts)), part.known, part.history, part.tests)
    return _tried(setting, {"bpr": _recall(asked.positions)}, seconds)


def _try_warp(known: Pairs, number: int, given: Given) -> Found:
    part = _slice(known, given)
    setting = _draw(number, given.seed, peers.draw_warp, peers.WarpSetting())
    model, seconds = _timed(peers.fit_warp, part.known, border(part.known), setting, given.seed)
    frozen = peers.ask(peers.scanned(model), part.known, part.history, part.tests)
    kept_up, _ = peers.kept_up(model, setting, part.known, part.history, part.tests)
    recalls = {"warp": _recall(frozen.positions), "warp_partial": _recall(kept_up.positions)}
    return _tried(setting, recalls, seconds)


_TRIED: Final[dict[str, Callable[[Pairs, int, Given], Found]]] = {
    "popularity": _try_popularity,
    "hand_rule": _try_hand_rule,
    "als": _try_als,
    "bpr": _try_bpr,
    "warp": _try_warp,
}


# -- measuring -----------------------------------------------------------------------------------------------


def _measure(stream: str, method: str, part: str, known: Pairs, given: Given) -> Found:
    tests = prequential.choose_tests(known, given.seed, given.tests)
    if method in ("day_zero", "frozen", "live", "live_events"):
        return _own(stream, method, known, tests, given)
    if method == "two_hop":
        return _ruled(method, TwoHop(), known, tests)
    family = next(name for name, finals in _FINALS.items() if method in finals)
    setting = best_setting(trials(given.out, stream, family), _CHOSEN_AS.get(method, method))
    if method in ("popularity", "hand_rule"):
        half_lives = [float(text) for text in msgspec.json.decode(setting, type=list[str])]
        rule = DecayedPopularity(*half_lives) if method == "popularity" else HandRule(*half_lives)
        return _ruled(method, rule, known, tests, setting)
    return _fitted(method, part, setting, known, tests, given)


def _fitted(
    method: str, part: str, setting: str, known: Pairs, tests: NDArray[np.int64], given: Given
) -> Found:
    """Fits a library model up to the border, or that of a segment, and asks it."""
    history, accounts, rows = History(known), len(known.accounts), border(known)
    if part:
        rows, end = peers.segments(known)[int(part.removeprefix("segment-")) :][:2]
        tests = tests[(tests >= rows) & (tests < end)]
    if method.startswith("warp"):
        warp = msgspec.json.decode(setting, type=peers.WarpSetting)
        model, seconds = _timed(peers.fit_warp, known, rows, warp, given.seed)
        if method == "warp_partial":
            asked, more = peers.kept_up(model, warp, known, history, tests)
            return Found(tests, {method: asked}, setting, seconds + more)
        return Found(
            tests, {method: peers.ask(peers.scanned(model), known, history, tests)}, setting, seconds
        )
    if method.startswith("bpr"):
        bpr = msgspec.json.decode(setting, type=peers.BprSetting)
        model, seconds = _timed(peers.fit_bpr, known, rows, bpr, given.seed)
    else:
        als = msgspec.json.decode(setting, type=peers.AlsSetting)
        model, seconds = _timed(peers.fit_als, known, rows, als, given.seed)
    answer = peers.recommended(model, accounts, fold_in=method in ("als_fold_in", "als_refit"))
    return Found(tests, {method: peers.ask(answer, known, history, tests)}, setting, seconds)


def _ruled(method: str, rule: Yardstick, known: Pairs, tests: NDArray[np.int64], setting: str = "") -> Found:
    """Tells a rule the pairs in their order and asks it on the way."""
    asked, rows = Asked([], []), tests.tolist()

    def ask(number: int) -> None:
        row = rows[number]
        began = time.perf_counter()
        answer = rule.candidates(int(known.source[row]), K, int(known.time[row]))
        asked.milliseconds.append((time.perf_counter() - began) * 1e3)
        target = int(known.target[row])
        asked.positions.append(answer.index(target) if target in answer else MISSED)

    began = time.perf_counter()
    prequential.interleave(rule, known, rows, ask)
    seconds = time.perf_counter() - began - sum(asked.milliseconds) / 1e3
    return Found(tests, {method: asked}, setting, seconds)


def _own(stream: str, method: str, known: Pairs, tests: NDArray[np.int64], given: Given) -> Found:
    """Runs the chain over the first pairs, as all others are told; over every event for `live_events`."""
    from bench import quality_own as own  # brings torch, which takes longer than some of the other jobs

    last = int(known.event[-1])
    events = list(islice(read(stream, given.data, given.seed), last + 1))
    numbers = known.event
    if method != "live_events":
        events = [events[at] for at in known.event.tolist()]
        numbers = np.arange(len(events))
    names = {
        "day_zero": {own.TOWERS: "day_zero"},
        "frozen": {own.TOWERS: "frozen_towers", own.WHOLE: "frozen_whole"},
        "live": {own.TOWERS: "towers", own.WHOLE: "whole"},
        "live_events": {own.TOWERS: "towers_events", own.WHOLE: "whole_events"},
    }[method]
    passed = own.run(
        known,
        events,
        numbers,
        tests,
        given.seed,
        kinds=list(names),
        learn=method != "day_zero",
        freeze=method == "frozen",
    )
    asked = {name: Asked(passed.positions[kind], passed.milliseconds[kind]) for kind, name in names.items()}
    return Found(tests, asked, "", passed.seconds, refused=passed.refused)


def _timed(fit: Callable[..., Any], *arguments: object) -> tuple[Any, float]:
    began = time.perf_counter()
    model = fit(*arguments)
    return model, time.perf_counter() - began
