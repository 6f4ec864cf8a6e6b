"""From stored rows to `models.features.Rows`: what the towers are told about accounts, as of one time."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kithstream.models.features import FOLLOWEES as FOLLOWEES_READ
from kithstream.models.features import FOLLOWERS as FOLLOWERS_READ
from kithstream.models.features import HALF_LIVES, UNRECIPROCATED, Rows, blank
from kithstream.streams.communities.known import NONE
from kithstream.streams.engine.partition import FOLLOWEES, FOLLOWERS, ROW_IN, ROW_OUT, ReadCache
from kithstream.streams.engine.shard import Readable, Reads
from kithstream.streams.state import communities, counters, ledger
from kithstream.streams.state.communities import Communities
from kithstream.streams.state.counters import Kind
from kithstream.streams.state.ledger import DAY, MINUTE
from kithstream.streams.state.profiles import Profile
from kithstream.streams.state.protocol import Column
from kithstream.streams.state.recent import READ, Recent

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
    language: int
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

        `unreciprocated` asks for the newest followers not followed back, one ledger look-up for each of the
        newest followers: producers do without.
        """
        views = self._load(accounts)
        n = len(views)
        times = np.broadcast_to(np.asarray(as_of, dtype=np.int64), n)
        packed = [view.row_in for view in views] + [view.row_out for view in views]
        read = counters.decayed(packed, np.tile(times // MINUTE, 2), HALF_LIVES)
        degrees = np.empty((n, 3), dtype=np.int64)
        degrees[:, 0] = read.totals[:n, _FOLLOW]
        degrees[:, 1] = read.totals[n:, _FOLLOW]
        degrees[:, 2] = [view.mutual for view in views]
        back = [self._unreciprocated(a) for a in accounts] if unreciprocated else [_NOBODY] * n
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
            **blank(n) | communities.fields([view.communities for view in views]),  # type: ignore[arg-type]  # named fields
        )

    def glance(self, accounts: Sequence[str], as_of: int) -> list[Glance]:
        """Return of each account what reasons are made of, as of a time in microseconds."""
        today = counters.cell(_FOLLOW, Kind.DAY, as_of // DAY)
        views = self._load(accounts)
        return [Glance(v.followers, counters.count_of(v.row_in, today), v.language) for v in views]

    def standings(self, accounts: Sequence[str]) -> list[bool | None]:
        """Return whether accounts are candidates by their profile: None where their in-signals decide."""
        return [view.standing for view in self._load(accounts)]

    def known_for(self, accounts: Sequence[str]) -> NDArray[np.int32]:  # (n,)
        """Return the community that each account is known for in the version its partition reads, -1 for none."""
        found = np.full(len(accounts), NONE, np.int32)
        places = np.array([self._held.route[account] for account in accounts], np.int64)
        for number in np.unique(places).tolist():
            at = np.flatnonzero(places == number)
            try:
                slot = self._held.at(number).communities
            except KeyError:
                continue  # another worker's
            if slot is not None:
                found[at] = slot.known.of([accounts[place] for place in at.tolist()])
        return found

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
                    profiles[accounts[at]].language_code(),
                    of_communities[accounts[at]],
                    _standing(profiles[accounts[at]]),
                )
                self._views.put(name, view)
                found[at] = view
        return [view for view in found if view is not None]

    def _unreciprocated(self, account: str) -> Recent:
        partition = self._held.at(self._held.route[account])
        key = FOLLOWERS + account.encode()
        newest = partition.load_recents([key])[key].entries[:READ]
        keys = [ledger.edge_key(account, _FOLLOW, other, "") for _, other in newest]
        back = partition.store.get(Column.OUT, keys)
        return Recent([entry for entry, mine in zip(newest, back, strict=True) if ledger.since(mine) < 0])


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


def _standing(profile: Profile) -> bool | None:
    return False if profile.hidden else True if profile.opted_in else None


def _ids(recent: Recent, most: int) -> list[str]:
    return [account for _, account in recent.entries[:most]]


def _times(recent: Recent, most: int) -> bytes:
    """The times of the newest entries as int64, padded to `most`."""
    times = array("q", [-at for at, _ in recent.entries[:most]])
    times.extend([-_NEVER] * (most - len(times)))
    return times.tobytes()


def _ages(packed: Sequence[bytes], most: int, times: NDArray[np.int64]) -> NDArray[np.float64]:
    """Seconds from each packed time to its row's, +inf where it pads; (n, most)."""
    since = np.frombuffer(b"".join(packed), dtype=np.int64).reshape(-1, most)
    return np.where(since == -_NEVER, np.inf, np.maximum((times[:, None] - since) / 1e6, 0.0))
