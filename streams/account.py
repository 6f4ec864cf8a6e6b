"""Everything the runtime knows of one account, for a person to read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from struct import Struct
from typing import Final

import msgspec
import numpy as np

from kithstream.models.ages import TICK
from kithstream.models.features import DENSE, GROUPS, HALF_LIVES, IN, OUT, TABLES, Rows, producer_features
from kithstream.streams.engine.partition import ROW_IN, ROW_OUT, Partition
from kithstream.streams.events import wire
from kithstream.streams.events.signals import SIGNALS
from kithstream.streams.serve.embedded import Embedded
from kithstream.streams.state import ledger, profiles
from kithstream.streams.state.counters import CELL, Kind
from kithstream.streams.state.ledger import DAY, HOUR, MINUTE
from kithstream.streams.state.protocol import Column

WINDOWS: Final = ("hour", "day", "week", "ever")
_cell = Struct("<Ii")
_FIELDS: Final = ("language", "country", "private", "suspended", "listed", "contacts", "active")


class Neighbour(msgspec.Struct, frozen=True):
    """A follow; the age is in seconds."""

    account: str
    age: float


class Vector(msgspec.Struct, frozen=True):
    """The producer vector that answers read."""

    tick: int  # minutes since 1970
    step: int  # of training, of the model in use
    norm: float


class Account(msgspec.Struct, frozen=True):
    """State, features and standing of one account as of one time."""

    account: str
    as_of: int  # microseconds
    partition: int
    candidate: bool
    because: str
    vector: Vector | None
    profile: Mapping[str, str | bool]
    degrees: Mapping[str, int]
    received: Mapping[str, Mapping[str, int]]  # signal -> window -> events
    done: Mapping[str, Mapping[str, int]]
    decayed: Mapping[
        str, Mapping[str, float]
    ]  # direction and group -> half-life -> count, as the towers read it
    followers: Sequence[Neighbour]  # newest first
    followees: Sequence[Neighbour]
    unreciprocated: Sequence[Neighbour]  # newest followers that it does not follow
    languages: Mapping[str, int]  # of those who follow it
    excluded: Mapping[str, int]  # accounts that it is never shown, by reason
    features: Mapping[str, float]  # of the producer tower, by name; its buckets as table=bucket


def describe(live: Embedded, name: str) -> Account:
    """Return what is known of an account; one that was never named has empty parts."""
    as_of = live.as_of
    chain = live.chain
    rows = chain.inspect(name, as_of)
    with chain.lock:
        partition = live.engine.partitions[live.engine.route[name]]
        keys = [ROW_IN + name.encode(), ROW_OUT + name.encode()]
        row_in, row_out = (bytes(row) for row in partition.load_rows(keys).values())
        profile = partition.profile(name)
        deleted = partition.is_deleted(name)
        excluded = _excluded(partition, name)
        features = producer_features(rows, chain.model.ids)
    counts = np.concatenate([rows.counts[0, IN], rows.counts[0, OUT]])
    listed = name in chain.index
    starts = np.cumsum([0, *(size for _, size in TABLES[:-1])])
    return Account(
        account=name,
        as_of=as_of,
        partition=partition.number,
        candidate=listed,
        because=_because(listed, deleted, profile, rows),
        vector=Vector(
            chain.index.sequence(name), chain.model.step, float(np.linalg.norm(chain.index.vector(name)))
        )
        if listed
        else None,
        profile={field: value.value for field in _FIELDS if (value := getattr(profile, field)) is not None},
        degrees=dict(zip(("followers", "followees", "mutual"), rows.degrees[0].tolist(), strict=True)),
        received=_windows(row_in, as_of),
        done=_windows(row_out, as_of),
        decayed={
            f"{group} {way}": dict(zip(_HALF_LIVES, _rounded(values), strict=True))
            for (way, group), values in zip(
                ((way, group) for way in ("received", "done") for group in GROUPS), counts, strict=True
            )
        },
        followers=_neighbours(rows.followers[0], rows.follower_ages[0]),
        followees=_neighbours(rows.followees[0], rows.followee_ages[0]),
        unreciprocated=_neighbours(rows.unreciprocated[0], rows.unreciprocated_ages[0]),
        languages=_languages(row_in),
        excluded=excluded,
        features={
            **{
                column: value
                for column, value in zip(DENSE, _rounded(features.dense[0]), strict=True)
                if column != "bias"  # the tower fills it in from the buckets
            },
            **{
                f"{table}=bucket": float(bucket)
                for (table, _), bucket in zip(TABLES, (features.buckets[0] - starts).tolist(), strict=True)
            },
        },
    )


def written(account: Account) -> Iterator[str]:
    """Yield the lines that a person reads."""
    yield f"{account.account}  in partition {account.partition}, as of {_moment(account.as_of)}"
    yield f"  {'a candidate' if account.candidate else 'no candidate'}: {account.because}"
    if account.vector is not None:
        vector = account.vector
        when = _moment(vector.tick * TICK)
        yield f"  vector of tick {vector.tick} ({when}), model step {vector.step}, length {vector.norm:.3f}"
    yield from _pairs("profile", account.profile)
    yield from _pairs("degrees", account.degrees)
    yield from _pairs("never shown", account.excluded)
    yield from _pairs("followers speak", account.languages)
    for title, signals in (("received", account.received), ("done", account.done)):
        if signals:
            yield f"  {title:<24}{''.join(f'{window:>9}' for window in WINDOWS)}"
            for signal, windows in signals.items():
                yield f"    {signal:<22}{''.join(f'{windows[window]:>9,}' for window in WINDOWS)}"
    yield f"  {'decayed, half-life':<24}{''.join(f'{name:>9}' for name in _HALF_LIVES)}"
    for group, values in account.decayed.items():
        yield f"    {group:<22}{''.join(f'{value:>9.2f}' for value in values.values())}"
    for title, neighbours in (
        ("newest followers", account.followers),
        ("newest followees", account.followees),
        ("not followed back", account.unreciprocated),
    ):
        if neighbours:
            yield f"  {title}"
            yield from (f"    {n.account:<22}{_ago(n.age)} ago" for n in neighbours)
    yield "  features of the producer tower"
    for name, value in account.features.items():
        yield f"    {name:<30}{value:>9.3f}".rstrip()


def _because(listed: bool, deleted: bool, profile: profiles.Profile, rows: Rows) -> str:
    if deleted:
        return "it was deleted"
    for field, what in (("private", "it is private"), ("suspended", "it is suspended")):
        held = getattr(profile, field)
        if held is not None and held.value:
            return what
    if profile.inactive:
        return "it is deactivated"
    if listed and profile.opted_in:
        return "it opted in"
    live = int(rows.counts[0, IN, :2, -1].sum())
    if live:
        return f"{live:,} follows and engagements with it are live"
    return "nobody follows it or engages with it"


def _excluded(partition: Partition, name: str) -> dict[str, int]:
    """Counts of the present edges that keep accounts from being shown, by reason."""
    found = {}
    for signal in SIGNALS:
        sides = [(Column.OUT, signal.name)] if signal.follows or signal.excludes else []
        sides += [(Column.IN, f"{signal.name} of it")] if signal.excludes else []
        for column, what in sides:
            prefix = f"{name}\0{chr(65 + signal.family)}".encode()
            count = sum(ledger.since(value) >= 0 for _, value in partition.store.scan(column, prefix))
            if count:
                found[what] = count
    return found


def _cells(row: bytes) -> Iterator[tuple[int, int, int, int]]:
    """Yield family, kind, place and count of a row's cells."""
    for at in range(0, len(row), CELL):
        number, count = _cell.unpack_from(row, at)
        yield number >> 27, number >> 24 & 7, number & 0xFFFFFF, count


def _windows(row: bytes, as_of: int) -> dict[str, dict[str, int]]:
    """Events by signal and window; an hour is read in minutes, a day in hours, a week in days."""
    spans = (
        ("hour", Kind.MINUTE, as_of // MINUTE & 0xFFFFFF, 60),
        ("day", Kind.HOUR, as_of // HOUR, 24),
        ("week", Kind.DAY, as_of // DAY, 7),
    )
    found: dict[str, dict[str, int]] = {}
    for family, kind, place, count in sorted(_cells(row)):
        if kind > Kind.TOTAL:
            continue
        windows = found.setdefault(SIGNALS[family].name, dict.fromkeys(WINDOWS, 0))
        if kind == Kind.TOTAL:
            windows["ever"] += count
        for window, read, here, width in spans:
            if kind == read and place > here - width:
                windows[window] += count
    return found


def _languages(row: bytes) -> dict[str, int]:
    cells = [(count, place) for _, kind, place, count in _cells(row) if kind == Kind.LANGUAGE]
    return {profiles.letters(place) or "unknown": count for count, place in sorted(cells, reverse=True)}


def _neighbours(names: Sequence[str], ages: Sequence[float]) -> list[Neighbour]:
    return [Neighbour(name, round(float(age), 3)) for name, age in zip(names, ages, strict=False)]


def _pairs(title: str, values: Mapping[str, object]) -> Iterator[str]:
    if values:
        yield f"  {title:<24}{', '.join(f'{name} {_plain(value)}' for name, value in values.items())}"


def _plain(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _rounded(values: Sequence[float]) -> list[float]:
    return [round(float(value), 4) for value in values]


def _moment(at: int) -> str:
    if at >= wire.LATEST:
        return f"microsecond {at}"
    return datetime.fromtimestamp(at / 1e6, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _ago(seconds: float) -> str:
    for size, unit in ((86400.0, "d"), (3600.0, "h"), (60.0, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


_HALF_LIVES: Final = tuple("ever" if h == float("inf") else _ago(h).replace(".0 ", " ") for h in HALF_LIVES)
