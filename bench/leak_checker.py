"""Answers against the log alone: did one hold an account that was certainly kept out of it?

    python -m bench.leak_checker log.jsonl answers.jsonl

Reads two files of JSON lines and imports nothing of the project, so that no mistake of it is repeated here.

- The log, each partition's records in their order: `[partition, offset, event]`.
- The answers: `[account, about, after, level, status, token, until, candidates]`. `about` is another account whose
  pair with the first is the question's subject, `after` the token that was sent, `token` the answer's own, and
  `until` how far the log had come at most when the answer arrived. Tokens are `partition:offset,...`: everything
  below the offset.

An answer is made of one state. That state holds everything below `after` and below `token`, nothing from `until`
on, and of what lies between any part. Only an account that is kept out under every cut between the two is a leak.
A status other than 200 is a refusal and no answer.

Memory is bounded by the events that speak of pairs; answers are read one by one.
"""

from __future__ import annotations

import json
import sys
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

# Signal -> the relation that it decides, and whether it ends it.
RELATIONS = {
    "follow": ("followed", False),
    "unfollow": ("followed", True),
    "block": ("blocked", False),
    "unblock": ("blocked", True),
    "mute": ("muted", False),
    "unmute": ("muted", True),
    "report": ("reported", False),
    "withdraw_report": ("reported", True),
}
EITHER_WAY = ("blocked", "muted", "reported")
NAMED = 20  # leaks that are told one by one
NEVER = 1 << 62


class Leak(NamedTuple):
    """A candidate that must not be there, in which answer, and why."""

    answer: int  # its line, from 0
    account: str
    candidate: str
    reason: str
    after: str
    token: str


class Verdict(NamedTuple):
    """What the check counted. The last five are about the pair that each question was about."""

    answers: int
    candidates: int
    leaks: int
    reasons: Mapping[str, int]  # leaks by reason
    named: Sequence[Leak]
    refused: Mapping[str, int]  # by status or code
    events: int  # of the log that decide a relation
    kept_out: int  # certainly excluded, and not in the answer
    undecided: int  # excluded under some cuts and allowed under others
    shown_before: int  # in the answer, allowed, and never excluded before
    shown_after: int  # in the answer, allowed, and excluded at an earlier time
    allowed: int  # certainly allowed, in the answer or not

    @property
    def void(self) -> bool:
        """True if nothing could have leaked: no pair was kept out, or none was ever shown."""
        return not (self.kept_out and self.shown_before and self.shown_after)


class Weight(NamedTuple):
    """What an event weighs against others about the same relation: the greatest decides."""

    server: bool
    time: int  # microseconds
    ends: bool
    checksum: int  # of the event's id


class Said(NamedTuple):
    """What a record says about a relation."""

    offset: int
    weight: Weight
    holds: bool
    event_id: str


class Kept(NamedTuple):
    """What one partition's records say of a candidate for an account: why it is kept out after each, or nothing."""

    offsets: list[int]
    reasons: list[str]

    def under(self, begin: int, end: int) -> list[str]:
        """Return the reason under every cut from `begin` to `end`."""
        first = bisect_right(self.offsets, begin - 1)
        last = bisect_right(self.offsets, max(begin, end) - 1)
        return [self.reasons[first - 1] if first else "", *self.reasons[first:last]]

    def ever(self, end: int) -> bool:
        """True if it was kept out at some time below `end`."""
        return any(self.reasons[: bisect_right(self.offsets, end - 1)])


Facts = dict[tuple[str, str], dict[int, Kept]]  # (account, candidate) -> by partition


def read_log(records: Iterable[tuple[int, int, Mapping[str, Any]]]) -> tuple[Facts, int]:
    """Return what the log says of pairs, and how many of its events do; raises ValueError for a hole in it."""
    said: dict[tuple[int, str, str, str], list[Said]] = {}  # partition, relation, actor, target
    retracted: dict[tuple[int, str, str], int] = {}  # partition, actor, event id -> offset
    ends: dict[int, int] = {}
    events = 0
    for partition, offset, event in records:
        if offset != ends.get(partition, 0):
            raise ValueError(f"partition {partition} goes on at {offset}, expected {ends.get(partition, 0)}")
        ends[partition] = offset + 1
        signal, actor = event["signal"], event["actor"]
        if signal == "retract":
            retracted.setdefault((partition, actor, event["retracts"]), offset)
        if signal not in RELATIONS:
            continue
        events += 1
        name, ends_it = RELATIONS[signal]
        server = event.get("source", "server") == "server"
        weight = Weight(server, int(event["time"]), ends_it, crc32(event["id"].encode()))
        key = partition, name, actor, event["target"]
        said.setdefault(key, []).append(Said(offset, weight, not ends_it, event["id"]))
    by_pair: dict[tuple[str, str], dict[int, list[tuple[str, dict[int, bool]]]]] = {}
    for (partition, name, actor, target), records_of in said.items():
        gone = {one.event_id: retracted.get((partition, actor, one.event_id), NEVER) for one in records_of}
        held = timeline(records_of, gone)
        pairs = [(actor, target), (target, actor)] if name in EITHER_WAY else [(actor, target)]
        for pair in pairs:
            by_pair.setdefault(pair, {}).setdefault(partition, []).append((f"{name} by {actor}", held))
    return {
        pair: {partition: merged(known) for partition, known in places.items()}
        for pair, places in by_pair.items()
    }, events


def timeline(said: Sequence[Said], gone: Mapping[str, int]) -> dict[int, bool]:
    """Return whether a relation holds after each record about it; `gone` has the offset of an event's retraction."""
    stops = sorted({one.offset for one in said} | {offset for offset in gone.values() if offset < NEVER})
    held: dict[int, bool] = {}
    if len(stops) == len(said):  # nothing is retracted: the greatest so far decides
        best = said[0]
        for one in said:
            best = max(best, one, key=lambda each: each.weight)
            held[one.offset] = best.holds
        return held
    for stop in stops:
        known = [one for one in said if one.offset <= stop < gone[one.event_id]]
        held[stop] = bool(known) and max(known, key=lambda each: each.weight).holds
    return held


def merged(known: Sequence[tuple[str, Mapping[int, bool]]]) -> Kept:
    """Return the reasons of several relations of one partition as one: any of them keeps out."""
    present: dict[str, bool] = {}
    kept = Kept([], [])
    changes = sorted((offset, reason, holds) for reason, held in known for offset, holds in held.items())
    for offset, reason, holds in changes:
        present[reason] = holds
        kept.offsets.append(offset)
        kept.reasons.append(next((each for each, there in present.items() if there), ""))
    return kept


def check(
    log: Iterable[tuple[int, int, Mapping[str, Any]]],
    answers: Iterable[tuple[str, str, str, str, int | str, str, str, Sequence[str]]],
) -> Verdict:
    """Count what the answers hold and must not; raises ValueError for a log with a hole or a bad token."""
    facts, events = read_log(log)
    count = held = 0
    reasons: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    about_pair: Counter[str] = Counter()
    named: list[Leak] = []
    for line, (account, about, after, _, status, token, until, candidates) in enumerate(answers):
        if status != 200:
            refused[str(status)] += 1
            continue
        count += 1
        held += len(candidates)
        begin = joined(offsets(after), offsets(token))
        end = joined(begin, offsets(until))
        for candidate in candidates:
            reason = forbidden(facts, account, candidate, begin, end)
            if reason:
                reasons[reason.split(" ")[0]] += 1
                if len(named) < NAMED:
                    named.append(Leak(line, account, candidate, reason, after, token))
        about_pair[fate(facts.get((account, about), {}), begin, end, about in candidates)] += 1
    allowed = about_pair["shown_before"] + about_pair["shown_after"] + about_pair["absent"]
    return Verdict(
        count,
        held,
        sum(reasons.values()),
        dict(reasons),
        named,
        dict(refused),
        events,
        about_pair["kept_out"],
        about_pair["undecided"],
        about_pair["shown_before"],
        about_pair["shown_after"],
        allowed,
    )


def forbidden(
    facts: Facts, account: str, candidate: str, begin: Mapping[int, int], end: Mapping[int, int]
) -> str:
    """Return why an account was certainly kept out of an answer, or nothing.

    Partitions move on independently, so the records of one of them have to keep it out by themselves.
    """
    if candidate == account:
        return "self"
    for partition, kept in facts.get((account, candidate), {}).items():
        reasons = kept.under(begin.get(partition, 0), end.get(partition, 0))
        if all(reasons):
            return reasons[0]
    return ""


def fate(known: Mapping[int, Kept], begin: Mapping[int, int], end: Mapping[int, int], there: bool) -> str:
    """Name what became of the pair that a question was about."""
    cuts = [kept.under(begin.get(at, 0), end.get(at, 0)) for at, kept in known.items()]
    if any(all(reasons) for reasons in cuts):
        return "leaked" if there else "kept_out"
    if any(any(reasons) for reasons in cuts):
        return "undecided"
    if not there:
        return "absent"
    before = any(kept.ever(begin.get(at, 0)) for at, kept in known.items())
    return "shown_after" if before else "shown_before"


def offsets(token: str) -> dict[int, int]:
    """Return a token's offsets by partition; raises ValueError for what is no token."""
    pairs = (part.split(":") for part in token.split(",") if part)
    return {int(number): int(end) for number, end in pairs}


def joined(one: Mapping[int, int], other: Mapping[int, int]) -> dict[int, int]:
    """Return the greater offset of each partition."""
    return {number: max(one.get(number, 0), other.get(number, 0)) for number in {*one, *other}}


def lines(path: Path) -> Iterator[Any]:
    """Yield the values of a file of JSON lines, one at a time."""
    with open(path, "rb") as file:
        for line in file:
            yield json.loads(line)


def told(verdict: Verdict) -> dict[str, Any]:
    """Return a verdict as what is printed."""
    named = [leak._asdict() for leak in verdict.named]
    return {**verdict._asdict(), "named": named, "void": verdict.void}


def peak() -> int:
    """Return the most memory that this process has held, in MiB."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) >> 10


def main() -> None:
    """Check two files and print what was found; exits with 1 where something leaked or nothing could."""
    if len(sys.argv) != 3:
        raise SystemExit("usage: python -m bench.leak_checker LOG ANSWERS")
    verdict = check(lines(Path(sys.argv[1])), lines(Path(sys.argv[2])))
    print(json.dumps({**told(verdict), "checker_mb": peak()}, indent=1))
    raise SystemExit(1 if verdict.leaks or verdict.void else 0)


if __name__ == "__main__":
    main()
