"""From a question to ranked candidates with reasons, wherever the rows are read from."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial
from operator import itemgetter
from typing import Final, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from kithstream.index.protocol import Hits, Queryable
from kithstream.models.features import Rows
from kithstream.models.model import Model
from kithstream.models.ranker import SOURCES, Weights
from kithstream.models.ranker import Ranked as Example
from kithstream.streams.config import RankingConfig
from kithstream.streams.engine.shard import Readable, Reads
from kithstream.streams.errors import Unanswerable
from kithstream.streams.events.signals import Newest
from kithstream.streams.serve.answers import BECAUSES, FULLY, Because, Candidate, Question
from kithstream.streams.serve.exclusions import Exclusions
from kithstream.streams.serve.fading import tiredness
from kithstream.streams.serve.finding import Found, find, looked
from kithstream.streams.serve.nominators import About
from kithstream.streams.serve.served import RankedBy, Served
from kithstream.streams.serve.whole import Nominated, Whole, about, pooled, unknown
from kithstream.streams.serve.why import Allowed, Group, Standing, Thinking, standings
from kithstream.streams.state import profiles
from kithstream.streams.state.reader import Glance, Reader

NO_CANDIDATE: Final = "not a candidate"
_POPULAR: Final = 10  # new followers of the day from which an answer tells them
Nominate = Callable[[Collection[int], Collection[str]], Nominated]
Glances = Callable[[Sequence[str], int], Sequence[Glance]]
Gone = Callable[[Sequence[str]], set[str]]  # of these accounts, those that were deleted


class Asking(NamedTuple):
    """What one state says of the account that asks."""

    rows: Rows  # the first is the account
    vector: NDArray[np.float32]  # (dim,)
    step: int  # of the model that encoded it
    exclude: set[str]  # to be added to by the question
    followed: set[str]  # those that may be named
    losses: dict[str, float]  # what the scores of some accounts are lowered by, none of them excluded
    contact: Callable[[str], bool] | None = None  # whether somebody is in the address book, if there is one
    groups: Sequence[Group] = ()  # n, of what it did, newest first; if it was asked for
    without: NDArray[np.float32] | None = None  # (n, dim) its vector without each group
    about: About | None = None  # what pairs with it are ranked by, where they are
    weights: Weights | None = None  # what ranks pairs; None: the towers alone rank


class Ask(NamedTuple):
    """Whom to read, as of when in microseconds; `fully` as in `Ranker.read`."""

    account: str
    as_of: int
    fully: bool = False


class _Known(NamedTuple):
    """Some of `Asking`, and where it was read."""

    partition: Readable
    exclude: set[str]
    unnamed: set[str]  # those that reasons do not name
    followed: set[str]
    losses: dict[str, float]
    contact: Callable[[str], bool] | None


class Encoded(NamedTuple):
    """An account that was read and encoded already."""

    rows: Rows  # of the account alone
    vectors: NDArray[np.float32]  # (1, dim)
    step: int


class Ranked(NamedTuple):
    """Candidates with what they were ranked by."""

    candidates: list[Candidate]
    plan: str
    short: str | None
    step: int
    tick: int


class Ranker:
    """Reads the account that asks, and ranks for it."""

    def __init__(
        self,
        reads: Reads,
        reader: Reader,
        exclusions: Exclusions,
        model: Model,
        index: Queryable,
        config: RankingConfig,
        whole: Whole | None = None,
        served: Served | None = None,
    ) -> None:
        """Without the `whole`, candidates are the index's and the towers alone rank them.

        `served` takes note of every answer.
        """
        self._reads = reads
        self._whole = whole
        self._served = served
        self._config = config
        self._reader = reader
        self._exclusions = exclusions
        self._model = model
        self._index = index
        self._thinking = Thinking(reads, reader)

    def read(
        self, account: str, as_of: int, *, fully: bool = False, encoded: Encoded | None = None
    ) -> Asking:
        """Return what is known of an account. The caller sees to it that all of it belongs to one state.

        `fully` adds what it would be without what it did.

        Raises Unanswerable for a deleted or deactivated one, KeyError if its partition is not here.
        """
        known = self._known(account, as_of)
        groups: Sequence[Group] = ()
        if encoded is None:
            if fully:
                groups, rows = self._thinking.read(account, as_of, known.unnamed)
            else:
                rows = self._reader.read([account], as_of, unreciprocated=True)
            vectors, step, _ = self._model.encode_consumers(rows)
            encoded = Encoded(rows, vectors, step)
        without = encoded.vectors[1:] if fully else None
        return self._asking(known, encoded, groups, without)

    def read_each(self, asked: Sequence[Ask]) -> list[Asking | Exception]:
        """`read` for several at once, at little more than the price of one; in the place of each that it refuses, why.

        Bits do not depend on who is read together.
        """
        found: dict[int, Asking | Exception] = {}
        known: dict[int, _Known] = {}
        for at, (account, as_of, fully) in enumerate(asked):
            try:
                if fully:
                    found[at] = self.read(account, as_of, fully=True)
                else:
                    known[at] = self._known(account, as_of)
            except (Unanswerable, KeyError) as refused:
                found[at] = refused
        if known:
            names, times = [asked[at].account for at in known], [asked[at].as_of for at in known]
            rows = self._reader.read(names, times, unreciprocated=True)
            vectors, step, _ = self._model.encode_consumers(rows)
            for place, (at, one) in enumerate(known.items()):
                own = rows.one(place)._replace(as_of=times[place])
                found[at] = self._asking(one, Encoded(own, vectors[place : place + 1], step))
        return [found[at] for at in range(len(asked))]

    def _known(self, account: str, as_of: int) -> _Known:
        """What is known of an account beside its rows."""
        partition = self._reads.at(self._reads.route[account])
        if partition.is_deleted(account):
            raise Unanswerable(f"account {account!r} was deleted", gone=True)
        if partition.profile(account).inactive:
            raise Unanswerable(f"account {account!r} is deactivated")
        exclude, unnamed = self._exclusions.of(account), self._exclusions.unnamed(account)
        followed = self._exclusions.followed(account)
        if gone := unnamed | partition.deleted_of(
            followed
        ):  # reasons name nobody whose follows are being removed
            followed = followed - gone
        losses = lowered(self._exclusions, self._reader, self._config, account, exclude, as_of)
        book, fingerprint = partition.contacts(account), partition.fingerprint
        contact = (lambda other: fingerprint(other) in book) if book else None
        return _Known(partition, exclude, unnamed, followed, losses, contact)

    def _asking(
        self,
        known: _Known,
        encoded: Encoded,
        groups: Sequence[Group] = (),
        without: NDArray[np.float32] | None = None,
    ) -> Asking:
        partition, exclude, _, followed, losses, contact = known
        rows, vectors, step = encoded
        told = None if self._whole is None else about(partition, rows)
        ranker = self._model.ranker
        weights = ranker.weights if told is not None and ranker.ready else None
        return Asking(
            rows, vectors[0], step, exclude, followed, losses, contact, groups, without, told, weights
        )

    def rank(
        self, question: Question, asking: Asking, as_of: int, tick: int, glances: Glances, gone: Gone
    ) -> Ranked:
        """Rank candidates for a question. Takes no lock of the state; `glances` tells what reasons are made of.

        `gone` tells which accounts were deleted: the state may know what the index has not heard yet.
        """
        exclude = asking.exclude
        exclude.update(question.exclude)
        labels = {profiles.code(tag.split("-", 1)[0]) for tag in question.languages} or None
        limits = Allowed(exclude, question.allow, labels)
        losses = {other: loss for other, loss in asking.losses.items() if other not in exclude}
        # An address book holds hashes, so those in it are looked for among more than are asked for.
        wanted = question.k if asking.contact is None else 4 * question.k + 100
        if asking.weights is not None:
            wanted = max(wanted, self._config.considered)
        by, nominate, score = self._beside_towers(asking, labels or (), wanted, as_of)
        index = self._index
        found = find(index, index.query, asking.vector, limits, losses, wanted, nominate)
        hits, scored, nominated = found
        if score is not None:
            scored = score(found)
        if losses:
            scored = [(name, score + losses[name] if name in losses else score) for name, score in scored]
        if asking.contact is not None:
            gain = self._config.contact
            scored = [(name, score + gain * asking.contact(name)) for name, score in scored]
        if losses or asking.contact is not None or score is not None:
            scored.sort(key=itemgetter(0))
            scored.sort(key=itemgetter(1), reverse=True)  # equal ones stay in the order of their names
            del scored[question.k :]
        if deleted := gone([name for name, _ in scored]):
            exclude.update(deleted)
            return self.rank(question, asking, as_of, tick, glances, gone)
        reasoned = [name for name, _ in scored[: question.reasons]]
        candidates = _explained(scored, asking, glances(reasoned, as_of))
        if asking.without is not None:
            most = min(FULLY, question.reasons)
            told = self.standings(asking, reasoned[:most], limits, BECAUSES)
            for at, standing in enumerate(told):
                because: Sequence[Because] = standing.because if standing is not None else ()
                candidates[at] = msgspec.structs.replace(candidates[at], because=because)
                if nominated is not None:
                    sources = _sources(candidates[at].account, hits, nominated)
                    candidates[at] = msgspec.structs.replace(candidates[at], sources=sources)
        short = hits.short if len(scored) < question.k else None
        if short is not None and nominate is not None:
            short = f"{len(scored)} of {question.k}: no more are allowed"
        if self._served is not None:
            facts = None if self._whole is None else self._whole.facts
            names, language = [name for name, _ in scored], int(asking.rows.languages[0])
            self._served.took(names, hits, by, short=short is not None, facts=facts, language=language)
            self._served.compare(index, asking.vector, limits, hits.plan)
        return Ranked(candidates, hits.plan, short, asking.step, tick)

    def example(self, encoded: Encoded, target: str, as_of: int) -> Example | None:
        """Return what would be ranked for an account if it asked, one of whom is the target it is about to follow.

        None if the target is not among them, or the account would get no answer. The caller holds the state.
        """
        if self._whole is None:
            return None
        try:
            asking = self.read(encoded.rows.accounts[0], as_of, encoded=encoded)
        except Unanswerable:
            return None
        assert asking.about is not None
        exclude, losses = asking.exclude, asking.losses
        return looked(self._index, self._whole, asking.vector, asking.about, exclude, losses, target, as_of)

    def _beside_towers(
        self, asking: Asking, languages: Collection[int], wanted: int, as_of: int
    ) -> tuple[RankedBy, Nominate | None, Callable[[Found], list[tuple[str, float]]] | None]:
        """What ranks, who names accounts beside the index, and the scores of all if they are not the towers'."""
        whole, told, weights = self._whole, asking.about, asking.weights
        if whole is None or told is None:
            return "towers", None, None
        if unknown(told):  # towers that have learned know nothing of those of whom nothing is known
            nominate: Nominate = partial(whole.most_followed, told, wanted)

            def popularity(found: Found) -> list[tuple[str, float]]:
                names = [name for name, _ in found.scored]
                return list(zip(names, whole.followed(names, told, languages, as_of), strict=True))

            return "popularity", nominate, popularity
        if weights is None:
            return "towers", None, None

        def learned(found: Found) -> list[tuple[str, float]]:
            assert found.nominated is not None
            pool = pooled(found.scored, len(found.hits.ids), found.nominated.sources)
            scores = whole.scored(weights, pool, told, found.nominated.hops, as_of)
            return list(zip(pool.names, scores, strict=True))

        return "whole", partial(whole.nominate, told), learned

    def standings(
        self, asking: Asking, candidates: Sequence[str], allowed: Allowed, most: int
    ) -> list[Standing | None]:
        """Return where candidates stand, and what carries them; takes no lock."""
        assert asking.without is not None
        if not candidates:
            return []
        vectors = np.concatenate([asking.vector[None, :], asking.without])
        return standings(self._index, asking.groups, vectors, candidates, allowed, most)

    def hidden(self, asking: Asking, candidate: str) -> str | None:
        """Return why an account is never shown to the one that asks, in words that tell nothing private.

        That somebody else blocked, muted or reported it reads as for any account that is nobody's candidate.
        """
        account = asking.rows.accounts[0]
        if candidate == account:
            return "it is the account itself"
        if candidate in self._exclusions.followed(account):
            return "you follow it"
        if candidate in self._exclusions.former(account):
            return "you followed it once"
        if candidate in self._exclusions.refused(account):
            return "not shown"
        if candidate in asking.exclude or candidate not in self._index:
            return NO_CANDIDATE
        return None


def lowered(
    exclusions: Exclusions,
    reader: Reader,
    config: RankingConfig,
    account: str,
    exclude: set[str],
    as_of: int,
) -> dict[str, float]:
    """Return what scores are lowered by; adds to `exclude` whom the account is not to be shown for a while."""
    losses: dict[str, float] = {}
    for other, loss in exclusions.fading(account, as_of).items():
        if loss is None:
            exclude.add(other)
        elif loss:
            losses[other] = loss
    if config.fatigue:
        shown = reader.newest(account, Newest.SHOWN, as_of)
        answered = reader.newest(account, Newest.ENGAGED, as_of) if shown else ()
        for other, times in tiredness(shown, answered, as_of).items():
            losses[other] = losses.get(other, 0.0) - config.fatigue * times
    return {other: loss for other, loss in losses.items() if other not in exclude}


def _sources(account: str, hits: Hits, nominated: Nominated) -> list[str]:
    """Who named an account, in the order of `SOURCES`."""
    named = [SOURCES[at] for at in sorted(nominated.sources.get(account, ()))]
    return ["towers", *named] if account in hits.ids else named


def _explained(
    scored: Sequence[tuple[str, float]], asking: Asking, seen: Sequence[Glance]
) -> list[Candidate]:
    mine = {*asking.rows.followers[0], *asking.rows.unreciprocated[0]}
    known = asking.contact or (lambda _: False)
    reasons = [
        _reasons(one, name in mine, known(name), asking) for (name, _), one in zip(scored, seen, strict=False)
    ]
    reasons += [()] * (len(scored) - len(reasons))
    return [Candidate(name, score, why) for (name, score), why in zip(scored, reasons, strict=True)]


def _reasons(seen: Glance, follows: bool, contact: bool, asking: Asking) -> tuple[str, ...]:
    """Short reasons from public signals, and the account's own address book: nobody else sees them."""
    reasons = []
    if follows:
        reasons.append("follows you")
    common = [name for name in seen.followers if name in asking.followed]
    if common:
        more = f" and {len(common) - 1} more" if len(common) > 1 else ""
        reasons.append(f"followed by {common[0]}{more} whom you follow")
    if contact:
        reasons.append("in your contacts")
    if seen.gained >= _POPULAR:
        reasons.append(f"{seen.gained} new followers today")
    if seen.language and seen.language == asking.rows.languages[0]:
        reasons.append("in your language")
    return tuple(reasons)
