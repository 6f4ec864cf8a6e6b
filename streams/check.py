"""Answers against the log alone: did any of them hold an account that it must not hold?

Nothing of the engine is used: files, JSON and the rules, read a second time. An answer says by its token how
far into each partition's log it had come at least; `until` says how far at most. What forbids an account
throughout that stretch, and shows up in the answer all the same, is a violation.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from struct import Struct
from typing import Final, NamedTuple
from zlib import crc32

_head = Struct("<IIq")  # length, checksum, append time
_LATE: Final = 7 * 86_400_000_000  # microseconds: older events are not folded

# Signal -> the relation it decides, and whether it ends it.
_RELATIONS: Final = {
    "follow": ("followed", False),
    "unfollow": ("followed", True),
    "block": ("blocked", False),
    "unblock": ("blocked", True),
    "mute": ("muted", False),
    "unmute": ("muted", True),
    "report": ("reported", False),
    "withdraw_report": ("reported", True),
}
_EITHER_WAY: Final = ("blocked", "muted", "reported")


class Given(NamedTuple):
    """An answer as it was given; tokens are `partition:offset,...`."""

    account: str
    candidates: Sequence[str]
    token: str
    until: str


class Violation(NamedTuple):
    """A candidate that was forbidden, and why."""

    account: str
    candidate: str
    reason: str
    token: str


class Checked(NamedTuple):
    """What the check saw."""

    answers: int
    candidates: int
    violations: list[Violation]


class _Said(NamedTuple):
    """One event about a fact: where it stands in its partition, what it weighs, what it says."""

    offset: int
    weight: tuple[int, int, int, int]  # server, time, ends, checksum of the id: the greatest decides
    holds: bool
    retracted: int  # offset of its retraction in the same partition, or beyond everything


_Fact = tuple[int, list[_Said]]  # partition and events
_NEVER: Final = 1 << 62


def check(log: Path, answers: Iterable[Given]) -> Checked:
    """Recompute whom each answer must not hold; `log` is a folder with one folder a partition.

    Raises ValueError if the log does not begin at its first record.
    """
    facts = _Facts(log)
    count = candidates = 0
    violations: list[Violation] = []
    for account, names, token, until in answers:
        count += 1
        candidates += len(names)
        begin, end = _offsets(token), _offsets(until)
        for name in names:
            reason = facts.forbid(account, name, begin, end)
            if reason:
                violations.append(Violation(account, name, reason, token))
    return Checked(count, candidates, violations)


class _Facts:
    """Every relation and standing that the log speaks of, with all that was said about it."""

    def __init__(self, log: Path) -> None:
        self._relations: dict[tuple[str, str, str], _Fact] = {}  # relation, actor, target
        self._standings: dict[tuple[str, str], _Fact] = {}  # what, account
        self._deleted: dict[str, tuple[int, int]] = {}  # account -> partition, offset
        for folder in sorted(log.iterdir()):
            self._read(int(folder.name), folder)

    def _read(self, partition: int, folder: Path) -> None:
        events = list(_events(folder))
        retracted: dict[tuple[str, str], int] = {}
        for offset, event in events:
            if event["signal"] == "retract":
                retracted.setdefault((event["actor"], event["retracts"]), offset)
        for offset, event in events:
            signal, actor = event["signal"], event["actor"]
            if signal in _RELATIONS:
                relation, ends = _RELATIONS[signal]
                lost = retracted.get((actor, event["id"]), _NEVER)
                said = _Said(offset, _weight(event, ends), not ends, lost)
                self._relations.setdefault((relation, actor, event["target"]), (partition, []))[1].append(
                    said
                )
            elif signal == "profile":
                for what in ("private", "suspended"):
                    if event.get(what) is not None:
                        self._stand(what, actor, partition, offset, event, bool(event[what]), False)
            elif signal in ("account_deactivate", "account_reactivate"):
                left = signal == "account_deactivate"
                self._stand("deactivated", actor, partition, offset, event, left, left)
            elif signal == "account_delete":
                self._deleted.setdefault(actor, (partition, offset))

    def _stand(
        self,
        what: str,
        actor: str,
        partition: int,
        offset: int,
        event: dict[str, str],
        holds: bool,
        ends: bool,
    ) -> None:
        said = _Said(offset, _weight(event, ends), holds, _NEVER)
        self._standings.setdefault((what, actor), (partition, []))[1].append(said)

    def forbid(self, account: str, name: str, begin: Mapping[int, int], end: Mapping[int, int]) -> str:
        """Return why an answer for `account` must not hold `name`, or nothing."""
        if account == name:
            return "self"
        if _throughout(self._relations.get(("followed", account, name)), begin, end):
            return "followed"
        for relation in _EITHER_WAY:
            for pair in ((account, name), (name, account)):
                if _throughout(self._relations.get((relation, *pair)), begin, end):
                    return f"{relation} by {pair[0]}"
        for what in ("private", "suspended", "deactivated"):
            if _throughout(self._standings.get((what, name)), begin, end):
                return what
        partition, offset = self._deleted.get(name, (0, _NEVER))
        return "deleted" if offset < begin.get(partition, 0) else ""


def _throughout(fact: _Fact | None, begin: Mapping[int, int], end: Mapping[int, int]) -> bool:
    """True if a fact holds at the beginning of a stretch of its partition's log and ever after in it."""
    if fact is None:
        return False
    partition, said = fact
    first = begin.get(partition, 0)
    last = max(end.get(partition, 0), first)
    stops = {first}
    for one in said:
        stops.update(at + 1 for at in (one.offset, one.retracted) if first <= at < last)
    return all(_holds(said, stop) for stop in stops)


def _holds(said: Iterable[_Said], end: int) -> bool:
    known = [one for one in said if one.offset < end <= one.retracted]
    return bool(known) and max(known, key=lambda one: one.weight).holds


def _weight(event: Mapping[str, str], ends: bool) -> tuple[int, int, int, int]:
    server = event.get("source", "server") == "server"
    return int(server), int(event["time"]), int(ends), crc32(event["id"].encode())


def _events(folder: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Offset and content of every record that is an event and not too late."""
    files = sorted(folder.glob("*.log"))
    if files and int(files[0].stem):
        raise ValueError(f"log {folder} begins at offset {int(files[0].stem)}, the check needs all of it")
    offset, newest = 0, 0
    for file in files:
        data = file.read_bytes()
        at = 0
        while at + _head.size <= len(data):
            length, _, appended = _head.unpack_from(data, at)
            raw = data[at + _head.size : at + _head.size + length]
            at += _head.size + length
            try:
                event = json.loads(raw)
                time = int(event["time"])
            except (ValueError, KeyError, TypeError):
                time = -1
            if 0 <= time <= appended + 5_000_000 and time >= newest - _LATE:
                newest = max(newest, time)
                yield offset, event
            offset += 1


def _offsets(token: str) -> dict[int, int]:
    pairs = (part.split(":") for part in token.split(",") if part)
    return {int(number): int(end) for number, end in pairs}
