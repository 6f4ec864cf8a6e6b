"""What one partition sends another: the states of edges, never deltas. Applying a frame twice changes nothing."""

from __future__ import annotations

import msgspec

GONE: bytes = b"\xff\xff"  # the state of an edge whose account was deleted: greater than any other


class Frame(msgspec.Struct, array_like=True, gc=False):
    """Changed edges of one batch for one destination. Lists alternate key and value."""

    watermark: int  # the sender's, microseconds
    states: list[bytes] = []  # in-ledger keys of state edges
    heard: list[bytes] = []  # in-ledger keys of occurrences
    void: list[bytes] = []  # out-ledger keys of state edges whose target was deleted; no values
    unsaid: list[bytes] = []  # out-ledger keys of occurrences whose target was deleted; no values
    deleted: list[bytes] = []  # fingerprints of deleted accounts
    source: int = 0  # the sending partition
    upto: int = 0  # frames so far say everything of the sender's log below this offset
    appended: int = 0  # when the newest record below it was appended, microseconds


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Frame).decode


def encode(frame: Frame) -> bytes:
    """Return the frame as bytes."""
    return _encode(frame)


def decode(raw: bytes) -> Frame:
    """Return the frame in bytes; raises msgspec.DecodeError for anything else."""
    return _decode(raw)
