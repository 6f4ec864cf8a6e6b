"""From stored rows to `models.features.Rows`: what the towers are told about accounts, as of one time."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kithstream.models.features import (
    AGGREGATES,
    AUDIENCE_LANGUAGES,
    AVOIDED,
    ENGAGED,
    HALF_LIVES,
    SKETCH,
    UNRECIPROCATED,
    Rows,
)
from kithstream.models.features import FOLLOWEES as FOLLOWEES_READ
from kithstream.models.features import FOLLOWERS as FOLLOWERS_READ
from kithstream.streams.communities.known import NONE
from kithstream.streams.engine.partition import (
    FOLLOWEES,
    FOLLOWERS,
    FOLLOWING,
    ROW_IN,
    ROW_OUT,
    ReadCache,
)
from kithstream.streams.engine.partition import SKETCH as AUDIENCE
from kithstream.streams.engine.shard import Readable, Reads
from kithstream.streams.events.signals import Newest
from kithstream.streams.state import communities, counters, ledger
from kithstream.streams.state.communities import Communities
from kithstream.streams.state.counters import Kind
from kithstream.streams.state.ledger import DAY, HORIZON, MINUTE
from kithstream.streams.state.profiles import Profile
from kithstream.streams.state.protocol import Column
from kithstream.streams.state.recent import READ, Entry, Recent

_FOLLOW: Final = 0
_MUTUAL: Final = counters.cell(_FOLLOW, Kind.MUTUAL, 0)
_FOLLOWERS: Final = counters.cell(_FOLLOW, Kind.TOTAL, 0)
_NEVER: Final = 1 << 62  # a time that pads neighbour lists: its age reads as +inf


class _View(NamedTuple):
    """An account's state in the form that is joined into arrays; lists are cut to what is read."""

    row_in: bytes
    row_out: bytes
    mutual: int
    followers: list[str]
    follower_times: bytes  # (FOLLOWERS_READ,) int64, padded
    followees: list[str]
    followee_times: bytes
    audience: bytes  # sums of projections, (SKETCH,) int64, of followers
    following: bytes  # and of followees
    language: int
    country: int
    communities: Communities
    standing: bool | None  # hidden: False; opted in: True; else None, the in-signals decide


class Glance(NamedTuple):
    """What a reason is made of: public, and quick to read."""

    followers: Sequence[str]  # the newest
    gained: int  # followers since midnight UTC
    language: int


class Reader:
    """Reads rows of accounts, and remembers those it read lately until it is told that they changed."""

    def __init__(self, held: Reads, remembered: int) -> None:
        self._held = held
        self._views: ReadCache[_View] = ReadCache(remembered)

    def over(self, held: Reads) -> Reader:
        """Return a reader of the same kind over other partitions, which remembers nothing."""
        return Reader(held, 1)

    def forget(self, accounts: Iterable[str]) -> None:
        """Take note that the rows of these accounts changed."""
        drop = self._views.drop
        for account in accounts:
            drop(account.encode())

    def read(
        self, accounts: Sequence[str], as_of: int | Sequence[int], *, unreciprocated: bool = False
    ) -> Rows:
        """Return the rows of accounts as of a time in microseconds, or each as of its own.

        Counters are decayed to the tick of that time, ages of neighbours are exact.

        `unreciprocated` asks for what producers do without: the newest followers not followed back (one ledger
        look-up for each of the newest followers), and the newest engagements and whom the account avoids.
        """
        views = self._load(accounts)
        n = len(views)
        times = np.broadcast_to(np.asarray(as_of, dtype=np.int64), n)
        packed = [view.row_in for view in views] + [view.row_out for view in views]
        read = counters.decayed(packed, np.tile(times // MINUTE, 2), HALF_LIVES, AGGREGATES)
        degrees = np.empty((n, 3), dtype=np.int64)
        degrees[:, 0] = read.totals[:n, _FOLLOW]
        degrees[:, 1] = read.totals[n:, _FOLLOW]
        degrees[:, 2] = [view.mutual for view in views]
        back = [self._unreciprocated(a) for a in accounts] if unreciprocated else [_NOBODY] * n
        engaged = avoided = [_NOBODY] * n
        if unreciprocated:
            engaged = [
                self._newest(a, Newest.ENGAGED, at - HORIZON)
                for a, at in zip(accounts, times.tolist(), strict=True)
            ]
            avoided = [self._newest(a, Newest.AVOIDED, 0) for a in accounts]
        languages, shares = counters.audience([view.row_in for view in views], AUDIENCE_LANGUAGES)
        return Rows(
            accounts=accounts,
            as_of=int(times.max(initial=0)),
            counts=np.stack([read.counts[:n], read.counts[n:]], axis=1),
            last=np.stack([read.newest[:n], read.newest[n:]], axis=1),
            first=np.maximum(read.oldest[:n], read.oldest[n:]),
            degrees=degrees,
            followers=[view.followers for view in views],
            follower_ages=_ages([view.follower_times for view in views], FOLLOWERS_READ, times),
            followees=[view.followees for view in views],
            followee_ages=_ages([view.followee_times for view in views], FOLLOWEES_READ, times),
            unreciprocated=[_ids(recent, UNRECIPROCATED) for recent in back],
            unreciprocated_ages=_ages([_times(r, UNRECIPROCATED) for r in back], UNRECIPROCATED, times),
            languages=np.array([view.language for view in views], dtype=np.int32),
            countries=np.array([view.country for view in views], dtype=np.int32),
            families=np.stack([read.families[:n], read.families[n:]], axis=1),
            engaged=[_others(recent, ENGAGED) for recent in engaged],
            engaged_families=_families(engaged, ENGAGED),
            engaged_ages=_ages([_times(recent, ENGAGED) for recent in engaged], ENGAGED, times),
            avoided=[_others(recent, AVOIDED) for recent in avoided],
            avoided_families=_families(avoided, AVOIDED),
            avoided_ages=_ages([_times(recent, AVOIDED) for recent in avoided], AVOIDED, times),
            audience_languages=languages,
            audience_shares=shares,
            audience=_sketches([view.audience for view in views]),
            following=_sketches([view.following for view in views]),
            avoided_communities=self._known_for(accounts, avoided),
            **communities.fields([view.communities for view in views]),  # type: ignore[arg-type]  # named fields
        )

    def newest(self, account: str, kind: Newest, as_of: int) -> list[tuple[int, str]]:
        """Return whom an account lately engaged with, avoided or was shown: (time in microseconds, account)."""
        return [(-at, entry[1:]) for at, entry in self._newest(account, kind, as_of - HORIZON).entries]

    def glance(self, accounts: Sequence[str], as_of: int) -> list[Glance]:
        """Return of each account what reasons are made of, as of a time in microseconds."""
        today = counters.cell(_FOLLOW, Kind.DAY, as_of // DAY)
        views = self._load(accounts)
        return [Glance(v.followers, counters.count_of(v.row_in, today), v.language) for v in views]

    def standings(self, accounts: Sequence[str]) -> list[bool | None]:
        """Return whether accounts are candidates by their profile: None where their in-signals decide."""
        return [view.standing for view in self._load(accounts)]

    def _load(self, accounts: Sequence[str]) -> list[_View]:
        cached = self._views.get
        names = [account.encode() for account in accounts]
        found = [cached(name) for name in names]
        missing: dict[int, list[int]] = {}
        route = self._held.route
        for at, view in enumerate(found):
            if view is None:
                missing.setdefault(route[accounts[at]], []).append(at)
        for number, places in missing.items():
            partition = self._held.at(number)
            keys = [names[at] for at in places]
            rows = partition.load_rows([prefix + name for name in keys for prefix in (ROW_IN, ROW_OUT)])
            lists = partition.load_recents([p + name for name in keys for p in (FOLLOWERS, FOLLOWEES)])
            profiles = partition.load_profiles([accounts[at] for at in places])
            sketched = partition.store.get(
                Column.ROWS, [prefix + name for name in keys for prefix in (AUDIENCE, FOLLOWING)]
            )
            sketches = {name: sketched[2 * place : 2 * place + 2] for place, name in enumerate(keys)}
            of_communities = _communities(partition, [accounts[at] for at in places], rows)
            for at, name in zip(places, keys, strict=True):
                row_in = bytes(rows[ROW_IN + name])
                followers, followees = lists[FOLLOWERS + name], lists[FOLLOWEES + name]
                view = _View(
                    row_in,
                    bytes(rows[ROW_OUT + name]),
                    counters.count_of(row_in, _MUTUAL) if row_in else 0,
                    _ids(followers, FOLLOWERS_READ),
                    _times(followers, FOLLOWERS_READ),
                    _ids(followees, FOLLOWEES_READ),
                    _times(followees, FOLLOWEES_READ),
                    sketches[name][0] or _NO_SKETCH,
                    sketches[name][1] or _NO_SKETCH,
                    profiles[accounts[at]].language_code(),
                    profiles[accounts[at]].country_code(),
                    of_communities[accounts[at]],
                    _standing(profiles[accounts[at]]),
                )
                self._views.put(name, view)
                found[at] = view
        return [view for view in found if view is not None]

    def _newest(self, account: str, kind: Newest, after: int) -> Recent:
        """What an account did lately of a kind, since a time in microseconds."""
        key = kind.value + account.encode()
        partition = self._held.at(self._held.route[account])
        entries = partition.load_recents([key])[key].entries
        return Recent([entry for entry in entries if -entry[0] > after])

    def _known_for(
        self, accounts: Sequence[str], lists: Sequence[Recent]
    ) -> NDArray[np.int32]:  # (n, AVOIDED), -1 pads
        """What those whom accounts avoid are known for, in the version that each account's partition reads."""
        found = np.full((len(lists), AVOIDED), NONE, np.int32)
        for at, recent in enumerate(lists):
            if others := _others(recent, AVOIDED):
                slot = self._held.at(self._held.route[accounts[at]]).communities
                found[at, : len(others)] = NONE if slot is None else slot.known.of(others)
        return found

    def _unreciprocated(self, account: str) -> Recent:
        partition = self._held.at(self._held.route[account])
        key = FOLLOWERS + account.encode()
        newest = partition.load_recents([key])[key].entries[:READ]
        return Recent(not_followed(partition, account, newest))


def not_followed(partition: Readable, account: str, entries: Sequence[Entry]) -> list[Entry]:
    """Return those of the entries whom an account of the partition does not follow."""
    keys = [ledger.edge_key(account, _FOLLOW, other, "") for _, other in entries]
    mine = partition.store.get(Column.OUT, keys)
    return [entry for entry, edge in zip(entries, mine, strict=True) if ledger.since(edge) < 0]


def _communities(
    partition: Readable, accounts: Sequence[str], rows: Mapping[bytes, bytes | bytearray]
) -> dict[str, Communities]:
    """What the version that the partition reads says of its accounts."""
    slot = partition.communities
    if slot is None:
        return dict.fromkeys(accounts, Communities())
    norms, names = slot.known.norms, [account.encode() for account in accounts]
    cells = partition.load_rows(
        [letter + name for name in names for letter in (slot.interest, slot.audience)]
    )
    return {
        account: Communities(
            known,
            communities.interest(cells[slot.interest + name], norms),
            communities.audience(
                cells[slot.audience + name], norms, counters.count_of(rows[ROW_IN + name], _FOLLOWERS)
            ),
        )
        for account, name, known in zip(accounts, names, slot.known.of(accounts).tolist(), strict=True)
    }


_NOBODY: Final = Recent()
_NO_SKETCH: Final = bytes(8 * SKETCH)
_PADDING: Final = array(
    "q", [-_NEVER] * max(FOLLOWERS_READ, FOLLOWEES_READ, UNRECIPROCATED, ENGAGED, AVOIDED)
).tobytes()


def _standing(profile: Profile) -> bool | None:
    return False if profile.hidden else True if profile.opted_in else None


def _ids(recent: Recent, most: int) -> list[str]:
    return [account for _, account in recent.entries[:most]]


def _others(recent: Recent, most: int) -> list[str]:
    """Whom the newest entries of a list are about; each begins with the letter of its family."""
    return [entry[1:] for _, entry in recent.entries[:most]]


def _families(recents: Sequence[Recent], most: int) -> NDArray[np.int32]:  # (n, most), -1 pads
    families = np.full((len(recents), most), -1, np.int32)
    for at, recent in enumerate(recents):
        if entries := recent.entries[:most]:
            families[at, : len(entries)] = [ord(entry[0]) - 65 for _, entry in entries]
    return families


def _sketches(packed: Sequence[bytes]) -> NDArray[np.int64]:  # (n, SKETCH)
    return np.frombuffer(b"".join(packed), dtype=np.int64).reshape(-1, SKETCH)


def _times(recent: Recent, most: int) -> bytes:
    """The times of the newest entries as int64, padded to `most`."""
    if not recent.entries:
        return _PADDING[: 8 * most]
    times = array("q", [-at for at, _ in recent.entries[:most]])
    return times.tobytes() + _PADDING[: 8 * (most - len(times))]


def _ages(packed: Sequence[bytes], most: int, times: NDArray[np.int64]) -> NDArray[np.float64]:
    """Seconds from each packed time to its row's, +inf where it pads; (n, most)."""
    since = np.frombuffer(b"".join(packed), dtype=np.int64).reshape(-1, most)
    return np.where(since == -_NEVER, np.inf, np.maximum((times[:, None] - since) / 1e6, 0.0))
