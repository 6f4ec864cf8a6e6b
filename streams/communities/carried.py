"""What an actor's follow carries to its target: a revision, language and country, and its interest in communities.

    revision 8 | language 2 | country 2 | shares: (tag 4, entries 1, entries x 4), one for each version in use

A share's tag names the version of the communities; its entries are big-endian words, the community in the upper
27 bits and log2 of T in the lower 5. Without anything to carry it is empty.

**Why the newest wins.** A target keeps the greatest bytes, so of two contributions to one edge the one with the
greater revision. A revision is (voided, place): how many deleted accounts this actor is known to have followed, 2
bytes, then where in the partition's own log the contents changed last, 6 bytes: an offset and a minor number.

Contents are a function of the partition's log up to an offset and of the voided followees alone, and each *event*
that changes them moves the place behind its own offset, whatever batch it came in. So two runs over the same log,
with other batch boundaries, give the same contents the same revision while they know of the same voided followees;
a run that was killed, and whose partition came back from an older copy, left nothing at the targets that the
present run does not reach again, or outbid. A count of batches would not do: after another cut of batches a change
and its reverse may fall into one batch, nothing would be sent, and what the lost run had sent in between would stay.

Voided followees come with the frames of other partitions, at no place of the log. Their number comes first in the
revision, since it ends the same in every run: a followee is voided when its out-edge is dropped or, in a run that
knew of the deletion before, when a follow of it is refused. With it the place moves to what is applied, and the
contents are sent again even if they are the same. Of runs that know of all of them the greater place is the newer,
and equal contents of a greater place do no harm. What is counted anew at a time of its own (too many follows, a
version that is adopted, a load) moves the place to what is applied, at least by one minor number, and is always sent.

**What is withheld** (`state.reach`). A follow that does not count carries WITHHELD in the place of its codes, and no
shares. Other edges and occurrences carry nothing, unless their actor did so much of the family on that day that a
level came to be: then a revision and WITHHELD or no codes. The level belongs to what is told, and moves the same
place. Of deleted accounts that were no followees the revision has another count (`lost`), so that those who like a
deleted account need not send their follows again.

Not covered: an occurrence that left the ledger before its target was deleted is lost in no run but one that reads
the log anew and knows of the deletion. A follow that was retracted before it came, of an account deleted meanwhile,
counts as voided only in a run that heard of the deletion first. And a partition that comes back from before an
adoption must adopt the same version again; another one is told apart by its tag, but may be outbid until the actor's
interest changes next.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from struct import Struct
from typing import Final, NamedTuple, Self

import msgspec

from kithstream.streams.communities.interest import MOST, thresholded
from kithstream.streams.state.ledger import EPOCH, STAMP

REVISION: Final = 8
CODES: Final = slice(REVISION, REVISION + 4)  # language and country
SHARES: Final = CODES.stop  # where they begin
_CODES_AT: Final = slice(
    EPOCH + STAMP + CODES.start, EPOCH + STAMP + CODES.stop
)  # behind what says the state
TAG: Final = 4
MINOR_BITS: Final = 8
_LEVEL_BITS: Final = 5
_LEVEL: Final = (1 << _LEVEL_BITS) - 1
NO_CODES: Final = bytes(4)
WITHHELD: Final = b"\xff" * 4  # in the place of codes: it does not count
_entries = Struct(">I").iter_unpack


class Carrier(msgspec.Struct, array_like=True, omit_defaults=True, gc=False):
    """What an actor's revision is made of, and which of its follows carry its interest."""

    place: int = 0  # offset << MINOR_BITS, and a minor number
    voided: list[bytes] = []  # the beginnings of fingerprints of deleted followees
    floor: tuple[int, str] | None = None  # (-time, target) of the oldest follow that counts; None for all
    lost: list[bytes] = []  # as `voided`, of those that it acted on in another way

    def changed_at(self, offset: int) -> None:
        """Move the place behind an event's offset."""
        self.place = max(self.place + 1, offset + 1 << MINOR_BITS)

    def counted_at(self, applied: int) -> None:
        """Move the place to a prefix of the log, and by one at least."""
        self.place = max(self.place + 1, applied << MINOR_BITS)

    def void(self, fingerprint: bytes) -> bool:
        """Take note that a followee was deleted; False if that was known."""
        if (name := fingerprint[:6]) in self.voided:
            return False
        self.voided = [*self.voided, name]
        return True

    def lose(self, fingerprint: bytes) -> bool:
        """Take note that somebody it acted on was deleted; False if that was known."""
        if (name := fingerprint[:6]) in self.lost:
            return False
        self.lost = [*self.lost, name]
        return True

    def revision(self) -> bytes:
        """Return the eight bytes by which contributions of follows are ordered."""
        return _revision(self.voided, self.place)

    def revision_of_others(self) -> bytes:
        """Return the eight bytes by which what other edges and occurrences carry is ordered."""
        return _revision(self.lost, self.place)


def _revision(gone: Sequence[bytes], place: int) -> bytes:
    return min(len(gone), 0xFFFF).to_bytes(2, "big") + place.to_bytes(6, "big")


_decode = msgspec.msgpack.Decoder(Carrier).decode
_encode = msgspec.msgpack.Encoder().encode


def load(stored: bytes | None) -> Carrier:
    """Return the carrier in stored bytes; an empty one for None."""
    return _decode(stored) if stored else Carrier()


def dump(carrier: Carrier) -> bytes:
    """Return the bytes to store."""
    return _encode(carrier)


class Contribution(NamedTuple):
    """What an actor's follows carry at the moment."""

    head: bytes  # revision, language, country; or nothing
    shares: bytes
    floor: tuple[int, str] | None

    @classmethod
    def of(cls, carrier: Carrier, codes: bytes, shares: bytes) -> Self:
        """Join what an account carries; an account of which nothing was ever told carries nothing."""
        if not carrier.place and not codes and not shares:
            return cls(b"", b"", None)
        return cls(carrier.revision() + (codes or NO_CODES), shares, carrier.floor)

    def on(self, time: int, target: str) -> bytes:
        """Return what a follow since `time` carries; -1 stands for one that is undone, which carries nothing."""
        if time < 0:
            return b""
        if self.floor is not None and (-time, target) > self.floor:
            return self.head
        return self.head + self.shares


def is_withheld(value: bytes) -> bool:
    """True if what the value of an in-edge or heard occurrence stands for does not count."""
    return value[_CODES_AT] == WITHHELD


def share(tag: bytes, counts: Mapping[int, int], most: int = MOST) -> bytes:
    """Return an interest as a share; empty if there is none. `most` may only be smaller than `MOST`."""
    entries = thresholded(counts)
    if len(entries) > most:
        entries = sorted(sorted(entries, key=lambda entry: (-entry[1], entry[0]))[:most])
    if not entries:
        return b""
    words = [community << _LEVEL_BITS | weight.bit_length() - 1 for community, weight in entries]
    return tag + Struct(f">B{len(words)}I").pack(len(words), *words)


def share_of(shares: bytes, tag: bytes) -> bytes:
    """Return the entries of a version's share among several; empty if it is not there."""
    at = 0
    while at < len(shares):
        end = at + TAG + 1 + 4 * shares[at + TAG]
        if shares[at : at + TAG] == tag:
            return shares[at + TAG + 1 : end]
        at = end
    return b""


def weights(entries: bytes) -> Iterable[tuple[int, int]]:
    """Yield (community, T) of a share's entries."""
    for (word,) in _entries(entries):
        yield word >> _LEVEL_BITS, 1 << (word & _LEVEL)
