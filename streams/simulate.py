"""A seeded stream of events from a social world whose truth is known (`world.py`).

Actions are drawn in batches, whole arrays at a time; events wait until they are published, which may be
late, twice, or out of order. A batch depends on those before it and on nothing after it, so the first n
events of a seed are the same however many are drawn. Memory is some 160 bytes an account and bounded buffers;
it does not grow with the number of events.

What a model can find in the stream: communities and languages (engagement follows `World.affinity`),
popularity, accounts that are hot for hours, friends of friends, and follow-backs some minutes to days after a
follow. An old ranker that knows only popularity and the largest language shows slates (`impression`, with
the slate as item and its score as value); a shown account is followed with the true probability.

What is not modelled: blocks do not undo follows, ties are forgotten after some time (so a follow may be
repeated), and an account that comes back or changes its profile keeps its tastes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from kithstream.streams.events.record import Record
from kithstream.streams.events.signals import BY_NAME, NAMES, SIGNALS, UNDO_OF, Kind
from kithstream.streams.recent import Neighbours, Recent, Ties
from kithstream.streams.world import (
    DAY,
    LANGUAGE_CODES,
    LANGUAGES,
    MIX,
    PLACES,
    SECOND,
    Floats,
    Ints,
    SimulationConfig,
    World,
)

__all__ = ["simulate", "as_json_lines", "SimulationConfig", "World", "MIX"]

_CODE: Final = {name: code for code, name in enumerate(NAMES)}
_FOLLOW, _UNFOLLOW, _IMPRESSION = _CODE["follow"], _CODE["unfollow"], _CODE["impression"]
_BLOCK, _UNBLOCK, _RETRACT, _PROFILE = _CODE["block"], _CODE["unblock"], _CODE["retract"], _CODE["profile"]
_AWAY, _BACK, _DELETE = _CODE["account_deactivate"], _CODE["account_reactivate"], _CODE["account_delete"]

_UNDOS: Final = {_CODE[name]: _CODE[signal.name] for name, signal in UNDO_OF.items()}  # undo -> do
_HAS_ITEM: Final = np.array(
    [any(signal.item and name in (signal.name, signal.undo) for signal in SIGNALS) for name in NAMES]
)
_DISLIKES: Final = np.array([_CODE[name] for name in ("not_interested", "mute", "block", "report")])
_SOCIAL: Final = np.array(
    [name in BY_NAME and name not in UNDO_OF and name != "impression" for name in NAMES]
)
_RETRACTABLE: Final = np.array(
    [social and BY_NAME[name].kind is Kind.OCCURRENCE for name, social in zip(NAMES, _SOCIAL, strict=True)]
)

# One event before it is written; -1 stands for nothing. Times are microseconds.
_EVENT: Final = np.dtype(
    [
        ("publish", "i8"),
        ("time", "i8"),
        ("number", "i8"),
        ("signal", "u1"),
        ("client", "?"),
        ("actor", "i4"),
        ("target", "i4"),
        ("item", "i8"),
        ("value", "f4"),
        ("extra", "i8"),  # profile: packed fields; retract: the number of the event
    ]
)
_HERE, _GONE_FOR_NOW, _GONE = 0, 1, 2  # what an account is
_HOT: Final = 5  # the column of hot accounts among the candidates
_POOL: Final = 24  # the old ranker's candidates for a slate
_MEMORY: Final = 4096  # recent dos of a signal that can be undone
_HOUR: Final = 3600 * SECOND


def simulate(config: SimulationConfig, count: int | None = None) -> Iterator[list[Record]]:
    """Yields events in the order in which they are published, a few thousand at a time, `count` in all.

    Without `count` the stream does not end. Every account's first profile comes before all its other events.
    """
    left = count
    for events in _Simulation(config).batches():
        if left is not None and left <= len(events):
            if left:
                yield _records(events[:left], config.seed)
            return
        if len(events):
            yield _records(events, config.seed)
        if left is not None:
            left -= len(events)


def as_json_lines(config: SimulationConfig, count: int | None = None) -> Iterator[bytes]:
    """Yields the same events as JSON lines: each chunk holds whole lines and ends with a line feed."""
    encode = msgspec.json.Encoder().encode_lines
    for records in simulate(config, count):
        yield encode(records)


class _Simulation:
    """The state that goes from batch to batch."""

    def __init__(self, config: SimulationConfig) -> None:
        n = config.accounts
        self.config = config
        self.world = World.build(config)
        self.clock = 0.0  # seconds since the start
        self.count = 0  # events numbered so far
        self.status = np.zeros(n, np.int8)
        self.introduced = np.zeros(n, bool)
        self.followees = Neighbours(n)
        self.follows = Ties(16 * n)
        self.blocks = Ties(2 * n)
        self.recent = {do: Recent(_MEMORY, _EVENT) for do in _UNDOS.values()}
        self.retractable = Recent(_MEMORY, _EVENT)
        self.due = np.zeros(0, _EVENT)  # follow-backs and returns, at `time`
        self.unpublished = np.zeros(0, _EVENT)
        unknown = sorted(set(config.mix) - set(NAMES))
        if (
            unknown
            or not all(share >= 0 for share in config.mix.values())
            or not sum(config.mix.values()) > 0
        ):
            raise ValueError(f"mix is {config.mix}, shares of signals are due; unknown: {unknown}")
        self.codes = np.array([_CODE[name] for name in config.mix])
        self.shares = np.cumsum(list(config.mix.values())) / sum(config.mix.values())

    def batches(self) -> Iterator[NDArray[np.void]]:
        """Yields what is published, batch after batch."""
        number = 0
        while True:
            draw = np.random.default_rng((self.config.seed, 1, number))
            yield self._publish(draw, self._happen(draw, number))
            number += 1

    def _happen(self, draw: np.random.Generator, number: int) -> NDArray[np.void]:
        """Draws one batch of actions and returns its events, numbered in the order of their times."""
        times = self._times(draw)
        end = int(times[-1])
        signals = self.codes[np.searchsorted(self.shares, draw.random(len(times)), side="right")]
        actors = self.world.actors(draw, times)
        here = self.status[actors] == _HERE
        times, signals, actors = times[here], signals[here], actors[here]
        parts = [self._social(draw, times, signals, actors)]
        slates = signals == _IMPRESSION
        first_slate = number * self.config.batch
        parts += self._slates(draw, times[slates], actors[slates], first_slate, end)
        for undo, do in _UNDOS.items():
            parts.append(self._undo(draw, undo, do, times[signals == undo]))
        parts.append(self._retract(draw, times[signals == _RETRACT]))
        parts.append(self._changes(draw, times[signals == _PROFILE], actors[signals == _PROFILE]))
        follows = np.concatenate([part[part["signal"] == _FOLLOW] for part in parts])
        self._schedule_follow_backs(draw, follows)
        parts.append(self._follow_backs(end))
        parts.append(self._departures(draw, signals, actors, end))
        events = np.concatenate(parts)
        events["client"] = draw.random(len(events)) < self.config.client_share
        events = np.concatenate([self._introductions(draw, events), events])
        events = events[np.argsort(events["time"], kind="stable")]
        events["number"] = self.count + np.arange(len(events))
        self.count += len(events)
        self._remember(draw, events)
        return events

    def _times(self, draw: np.random.Generator) -> Ints:
        """Draws the times of a batch: a Poisson process whose rate swings by .4 through the day."""
        rate = self.config.accounts * self.config.events_per_account_day / DAY
        swing, turn = 0.4, 2 * np.pi / DAY

        def passed(t: Floats) -> Floats:  # the rate's integral, in seconds of mean rate
            return np.asarray(t - swing / turn * np.sin(turn * t))

        goal = passed(np.array(self.clock)) + np.cumsum(draw.standard_exponential(self.config.batch)) / rate
        t = goal.copy()
        for _ in range(30):  # a contraction by .4 each time
            t = goal + swing / turn * np.sin(turn * t)
        self.clock = float(t[-1])
        return self.config.start + np.round(t * SECOND).astype(np.int64)

    def _social(
        self, draw: np.random.Generator, times: Ints, signals: Ints, actors: Ints
    ) -> NDArray[np.void]:
        """Draws whom the actors turn to; writes the follows and blocks down."""
        kept = _SOCIAL[signals]
        times, signals, actors = times[kept], signals[kept], actors[kept]
        candidates = self._look_around(draw, times, actors)
        follow = (signals == _FOLLOW)[:, None]
        affinity = self.world.affinities(actors[:, None], candidates, times[:, None])
        wish = np.where(np.isin(signals, _DISLIKES)[:, None], 1 - affinity, affinity)
        score = 2 * np.log(wish) + draw.gumbel(size=wish.shape)
        known = self.follows.has(np.broadcast_to(actors[:, None], candidates.shape), candidates)
        score = np.where(follow & known, -np.inf, score + np.where(~follow & known, 1.5, 0.0))
        score[:, _HOT] += 3.0  # everybody talks about them
        score[~self._allowed(actors[:, None], candidates)] = -np.inf
        best = score.argmax(1)
        rows = np.arange(len(best))
        chosen = np.isfinite(score[rows, best])
        times, signals, actors = times[chosen], signals[chosen], actors[chosen]
        targets = candidates[rows, best][chosen]
        events = _events(times, signals, actors, targets)
        items = (times - self.config.start) // _HOUR * 4 + draw.integers(0, 4, len(times))
        events["item"] = np.where(_HAS_ITEM[signals], items, -1)
        seconds = np.round(draw.exponential(8.0, len(times)), 1)
        events["value"] = np.where(np.isin(signals, [_CODE["video_watch"], _CODE["click"]]), seconds, -1)
        blocks = events[signals == _BLOCK]
        self.blocks.add(blocks["actor"], blocks["target"])
        return self._new_follows(events)

    def _look_around(self, draw: np.random.Generator, times: Ints, actors: Ints) -> Ints:
        """Returns (n, 6) accounts that come to the actors' eyes, -1 for nobody."""
        friend = self.followees.pick(draw, actors)
        friend_of_friend = self.followees.pick(draw, self.followees.pick(draw, actors))
        stranger = self.world.strangers(draw, actors.shape)
        slots = ((times - self.config.start) // int(self.config.burst_seconds * SECOND)).astype(np.int64)
        hot = np.full(len(actors), -1, np.int64)
        for slot in np.unique(slots).tolist():
            at = np.flatnonzero(slots == slot)
            accounts = self.world.hot(slot)
            hot[at] = accounts[(len(accounts) * draw.random(len(at)) ** 2).astype(np.int64)]
        hot = np.where(draw.random(len(actors)) < self.config.burst_share, hot, -1)
        peers = self.world.peers(draw, actors), self.world.peers(draw, actors)
        return np.stack([friend, friend_of_friend, *peers, stranger, hot], 1)

    def _allowed(self, actors: Ints, candidates: Ints) -> NDArray[np.bool_]:
        actors = np.broadcast_to(actors, candidates.shape)
        present = (candidates >= 0) & (candidates != actors) & (self.status[candidates] == _HERE)
        blocked = self.blocks.has(actors, candidates) | self.blocks.has(candidates, actors)
        return np.asarray(present & ~blocked)

    def _new_follows(self, events: NDArray[np.void]) -> NDArray[np.void]:
        """Writes the follows among the events down; drops those that are there already."""
        follow = events["signal"] == _FOLLOW
        pairs = events["actor"].astype(np.int64) << 32 | events["target"]
        first = np.zeros(len(events), bool)
        first[np.flatnonzero(follow)[np.unique(pairs[follow], return_index=True)[1]]] = True
        kept = ~follow | (first & ~self.follows.has(events["actor"], events["target"]))
        added = events[kept & follow]
        self.follows.add(added["actor"], added["target"])
        self.followees.add(added["actor"], added["target"])
        return np.asarray(events[kept])

    def _slates(
        self, draw: np.random.Generator, times: Ints, viewers: Ints, first_slate: int, end: int
    ) -> list[NDArray[np.void]]:
        """Lets the old ranker show slates; returns the impressions, and the follows they lead to."""
        pool = np.sort(self.world.strangers(draw, (len(viewers), _POOL)), 1)
        whom = np.broadcast_to(viewers[:, None], pool.shape)
        language = self.world.language_of[pool]
        score = -self.config.popularity_exponent * np.log1p(self.world.popularity_rank[pool])
        score = score + 2.5 * (language == 0) + 0.3 * draw.gumbel(size=pool.shape)
        shown = self._allowed(whom, pool) & ~self.follows.has(whom, pool)
        shown[:, 1:] &= pool[:, 1:] != pool[:, :-1]
        score = np.where(shown, score, -np.inf)
        order = np.argsort(-score, 1, kind="stable")[:, : self.config.slate]
        row, column = np.nonzero(np.isfinite(np.take_along_axis(score, order, 1)))
        place = order[row, column]
        seen = np.minimum(times[row] + 50_000 * column, end)
        impressions = _events(seen, np.full(len(row), _IMPRESSION), viewers[row], pool[row, place])
        impressions["item"] = first_slate + row
        impressions["value"] = score[row, place]
        truth = self.world.affinities(viewers[row], pool[row, place], seen)
        follows = impressions[draw.random(len(row)) < truth]
        delay = (draw.uniform(1, 30, len(follows)) * SECOND).astype(np.int64)
        follows = _events(
            np.minimum(follows["time"] + delay, end),
            np.full(len(follows), _FOLLOW),
            follows["actor"],
            follows["target"],
        )
        return [impressions, self._new_follows(follows)]

    def _undo(self, draw: np.random.Generator, undo: int, do: int, times: Ints) -> NDArray[np.void]:
        """Takes back some of what was done in earlier batches; a few undos have no do at all."""
        orphans = times[draw.random(len(times)) < self.config.orphan_share]
        undone = self.recent[do].take(draw, len(times) - len(orphans))
        undone = undone[self.status[undone["actor"]] == _HERE]
        events = undone.copy()
        events["time"] = np.setdiff1d(times, orphans)[: len(events)]
        events["signal"] = undo
        events["value"] = -1
        if undo == _UNFOLLOW:
            self.follows.remove(events["actor"], events["target"])
            self.followees.remove(events["actor"], events["target"])
        if undo == _UNBLOCK:
            self.blocks.remove(events["actor"], events["target"])
        actors = self.world.actors(draw, orphans)
        targets = draw.integers(0, self.config.accounts, len(orphans))
        lost = _events(orphans, np.full(len(orphans), undo), actors, targets)
        lost["item"] = 0 if _HAS_ITEM[undo] else -1
        never = (self.status[actors] == _HERE) & (actors != targets) & ~self.follows.has(actors, targets)
        return np.concatenate([events, lost[never]])

    def _retract(self, draw: np.random.Generator, times: Ints) -> NDArray[np.void]:
        taken = self.retractable.take(draw, len(times))
        taken = taken[self.status[taken["actor"]] == _HERE]
        events = _events(times[: len(taken)], np.full(len(taken), _RETRACT), taken["actor"], None)
        events["extra"] = taken["number"]
        return events

    def _changes(self, draw: np.random.Generator, times: Ints, actors: Ints) -> NDArray[np.void]:
        """Lets known accounts move, change language for a while, or become private."""
        known = self.introduced[actors]
        times, actors = times[known], actors[known]
        events = _events(times, np.full(len(times), _PROFILE), actors, None)
        language = np.where(
            draw.random(len(times)) < 0.3,
            draw.integers(0, len(LANGUAGES), len(times)),
            self.world.language_of[actors],
        )
        place = draw.integers(0, len(PLACES), len(times))
        events["extra"] = _packed(language, place, draw.random(len(times)) < 0.1, np.zeros(len(times), bool))
        return events

    def _introductions(self, draw: np.random.Generator, events: NDArray[np.void]) -> NDArray[np.void]:
        """Returns the first profile of every account that the events name first."""
        accounts = np.concatenate([events["actor"], events["target"]])
        times = np.concatenate([events["time"], events["time"]])
        order = np.argsort(times, kind="stable")
        order = order[(accounts[order] >= 0) & ~self.introduced[accounts[order]]]
        fresh, first = np.unique(accounts[order], return_index=True)
        self.introduced[fresh] = True
        profiles = _events(times[order][first] - 1, np.full(len(fresh), _PROFILE), fresh, None)
        private, suspended = draw.random(len(fresh)) < 0.02, draw.random(len(fresh)) < 0.002
        profiles["extra"] = _packed(
            self.world.language_of[fresh], self.world.place_of[fresh], private, suspended
        )
        profiles["extra"] |= _consents(fresh).astype(np.int64) << 18
        return profiles

    def _schedule_follow_backs(self, draw: np.random.Generator, follows: NDArray[np.void]) -> None:
        rank = self.world.popularity_rank[follows["target"]]
        unknown = ((rank + 1) / self.config.accounts) ** 0.3  # the better known, the less
        taste = self.world.affinities(follows["target"], follows["actor"], follows["time"]) ** 0.3
        back = follows[draw.random(len(follows)) < self.config.follow_back * unknown * taste]
        delay = self.config.follow_back_delay * np.exp(1.5 * draw.standard_normal(len(back)))
        times = back["time"] + 1 + (delay * SECOND).astype(np.int64)
        planned = _events(times, np.full(len(back), _FOLLOW), back["target"], back["actor"])
        self.due = np.concatenate([self.due, planned])[-self.config.pending :]

    def _follow_backs(self, end: int) -> NDArray[np.void]:
        """Returns the follow-backs that fall due until `end`."""
        ready = (self.due["time"] <= end) & (self.due["signal"] == _FOLLOW)
        events = self.due[ready]
        self.due = self.due[~ready]
        here = self.status[events["actor"]] == _HERE
        events = events[here & self._allowed(events["actor"], events["target"])]
        return self._new_follows(events)

    def _departures(
        self, draw: np.random.Generator, signals: Ints, actors: Ints, end: int
    ) -> NDArray[np.void]:
        """Lets accounts go and come back, all at the batch's end, so that none acts while it is away."""
        ready = (self.due["time"] <= end) & (self.due["signal"] == _BACK)
        back = self.due[ready]
        self.due = self.due[~ready]
        back["time"] = end
        back = back[self.status[back["actor"]] == _GONE_FOR_NOW]
        self.status[back["actor"]] = _HERE
        deleted = np.unique(actors[signals == _DELETE])
        if (self.status == _GONE).mean() > 0.1:  # the world must not die out
            deleted = deleted[:0]
        away = np.setdiff1d(actors[signals == _AWAY], np.concatenate([deleted, back["actor"]]))
        self.status[deleted], self.status[away] = _GONE, _GONE_FOR_NOW
        hours = draw.exponential(self.config.away_days * DAY, len(away))
        returns = _events(end + 1 + (hours * SECOND).astype(np.int64), np.full(len(away), _BACK), away, None)
        self.due = np.concatenate([self.due, returns])
        gone = np.concatenate([deleted, away])
        left = np.repeat([_DELETE, _AWAY], [len(deleted), len(away)])
        return np.concatenate([back, _events(np.full(len(gone), end), left, gone, None)])

    def _remember(self, draw: np.random.Generator, events: NDArray[np.void]) -> None:
        for do, recent in self.recent.items():
            recent.add(draw, events[events["signal"] == do])
        self.retractable.add(draw, events[_RETRACTABLE[events["signal"]]])

    def _publish(self, draw: np.random.Generator, events: NDArray[np.void]) -> NDArray[np.void]:
        """Returns what is published until the batch's end, in that order, and holds the rest back."""
        config = self.config
        n = len(events)
        social = events["target"] >= 0
        delay = np.where(social, draw.exponential(config.jitter_seconds, n), 0.0)
        late = social & (draw.random(n) < config.late_share)
        delay += np.where(late, np.minimum(draw.exponential(config.late_seconds, n), config.late_limit), 0.0)
        events["publish"] = events["time"] + (delay * SECOND).astype(np.int64)
        again = events[draw.random(n) < config.duplicate_share]
        again["publish"] += (draw.exponential(config.duplicate_seconds, len(again)) * SECOND).astype(np.int64)
        waiting = np.concatenate([self.unpublished, events, again])
        waiting = waiting[np.lexsort((waiting["number"], waiting["publish"]))]
        end = config.start + round(self.clock * SECOND)
        ready = int(np.searchsorted(waiting["publish"], end, side="right"))
        ready = max(ready, len(waiting) - config.pending)
        self.unpublished = waiting[ready:].copy()
        return waiting[:ready]


def _events(times: Ints, signals: Ints, actors: Ints, targets: Ints | None) -> NDArray[np.void]:
    events = np.zeros(len(times), _EVENT)
    events["time"], events["signal"], events["actor"] = times, signals, actors
    events["target"] = -1 if targets is None else targets
    events["item"] = events["value"] = events["extra"] = -1
    return events


def _packed(language: Ints, place: Ints, private: NDArray[np.bool_], suspended: NDArray[np.bool_]) -> Ints:
    packed = language.astype(np.int64) | place.astype(np.int64) << 8
    return np.asarray(packed | private.astype(np.int64) << 16 | suspended.astype(np.int64) << 17)


def _consents(accounts: Ints) -> NDArray[np.bool_]:
    """Who lets its address book be read: three in ten, by a hash of the number (Knuth's multiplier), nothing drawn."""
    return np.asarray(
        (accounts.astype(np.uint64) * np.uint64(2_654_435_761) >> np.uint64(8)) % np.uint64(10) < 3
    )


def _records(events: NDArray[np.void], seed: int) -> list[Record]:
    records: list[Record] = []
    add = records.append
    prefix = f"s{seed}."
    columns = ("number", "signal", "actor", "target", "time", "item", "value", "client", "extra")
    for number, signal, actor, target, time, item, value, client, extra in zip(
        *(events[column].tolist() for column in columns), strict=True
    ):
        record: Record = {
            "id": f"{prefix}{number}",
            "signal": NAMES[signal],
            "actor": f"u{actor}",
            "time": time,
        }
        if target >= 0:
            record["target"] = f"u{target}"
            if item >= 0:
                record["item"] = f"slate{item}" if signal == _IMPRESSION else f"u{target}.{item}"
            if value >= 0 or signal == _IMPRESSION:
                record["value"] = round(value, 3)
        elif signal == _PROFILE:
            record["language"] = LANGUAGE_CODES[extra & 0xFF]
            record["country"] = PLACES[extra >> 8 & 0xFF][1]
            record["private"] = bool(extra >> 16 & 1)
            record["suspended"] = bool(extra >> 17 & 1)
            if extra >> 18 & 1:
                record["contacts"] = True
        elif signal == _RETRACT:
            record["retracts"] = f"{prefix}{extra}"
        if client:
            record["source"] = "client"
        add(record)
    return records
