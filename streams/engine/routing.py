"""Which partition an account lives in: murmur2(id) mod P, as Kafka's Java clients place keys."""

from __future__ import annotations

from typing import Final

_M: Final = 0x5BD1E995
_MASK: Final = 0xFFFFFFFF


def murmur2(data: bytes) -> int:
    """Return Kafka's 32-bit murmur2 of the bytes, with seed 0x9747b28c.

    >>> murmur2(b"21") - (1 << 32)
    -973932308
    """
    length = len(data)
    h = 0x9747B28C ^ length
    whole = length & ~3
    for at in range(0, whole, 4):
        k = int.from_bytes(data[at : at + 4], "little") * _M & _MASK
        k = (k ^ k >> 24) * _M & _MASK
        h = h * _M & _MASK ^ k
    if tail := length & 3:
        h = (h ^ int.from_bytes(data[whole : whole + tail], "little")) * _M & _MASK
    h = (h ^ h >> 13) * _M & _MASK
    return h ^ h >> 15


class Route(dict[str, int]):
    """Account to partition, remembered for the accounts met lately."""

    def __init__(self, partitions: int, remembered: int = 1_000_000) -> None:
        super().__init__()
        self.partitions = partitions
        self._remembered = remembered

    def __missing__(self, account: str) -> int:
        if len(self) >= self._remembered:
            self.clear()
        place = self[account] = (murmur2(account.encode()) & 0x7FFFFFFF) % self.partitions
        return place
