"""Consent to an address book: from which event time on its entries count, whatever order all was told in.

Every withdrawal, whoever told it, takes away what was sent up to its time. A consent stands if its stamp is
greater than every withdrawal's and its time is later than theirs. Entries count that were sent on the UTC day
before the first consent that stands, or later: a ledger by days still has those when the consent comes late.
"""

from __future__ import annotations

from typing import Final

import msgspec

from kithstream.streams.state import ledger
from kithstream.streams.state.ledger import DAY, HORIZON

NEVER: Final = -1  # no withdrawal was told


class Consent(msgspec.Struct, array_like=True, gc=False):
    """What was told. At most some twenty consents stay: one a day and source of the horizon, and an older one."""

    refused: bytes = b""  # the greatest stamp of a withdrawal
    withdrawn: int = NEVER  # the latest time of one, microseconds
    grants: list[bytes] = []  # stamps of consents that stand, ascending by time

    @property
    def begin(self) -> int | None:
        """The event time in microseconds from which on entries count, None while none does."""
        if not self.grants:
            return None
        day = ledger.time_of(self.grants[0]) // DAY - 1
        return max(self.withdrawn + 1, day * DAY)

    def tell(self, stamp: bytes, given: bool) -> None:
        """Take in a consent or a withdrawal; again, late or in another order makes no difference."""
        time = ledger.time_of(stamp)
        if given:
            self.grants = [*self.grants, stamp]
        else:
            self.refused = max(self.refused, stamp)
            self.withdrawn = max(self.withdrawn, time)
        standing = [g for g in self.grants if g > self.refused and ledger.time_of(g) > self.withdrawn]
        best: dict[tuple[int, bool], bytes] = {}  # of a day and a source the greatest outlasts the others
        for grant in standing:
            key = ledger.time_of(grant) // DAY, grant[0] >= 0x80
            best[key] = max(best.get(key, b""), grant)
        kept = sorted(best.values(), key=_order)
        if kept:
            # A withdrawal still to come is not older than the horizon, so it ends all of these or none.
            floor = ledger.time_of(kept[-1]) - HORIZON
            old = sum(ledger.time_of(grant) < floor for grant in kept)
            del kept[1:old]
        self.grants = kept


def _order(stamp: bytes) -> tuple[int, bytes]:
    return ledger.time_of(stamp), stamp
