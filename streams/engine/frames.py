"""What one partition sends another: the states of edges, never deltas. Applying a frame twice changes nothing."""

from __future__ import annotations

import zlib
from typing import Final

import msgspec

from kithstream.streams.events.wire import LATEST

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


SEAL: Final = b"KF"
VERSION: Final = 1
_HEAD: Final = len(SEAL) + 1 + 4  # seal, version, CRC-32 of what follows
_UNSEALED: Final = range(0x90, 0xA0)  # first bytes of a frame that was written before there was a seal
_PLACES: Final = 1 << 32  # partitions
_OFFSETS: Final = 1 << 62
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Frame).decode


def encode(frame: Frame) -> bytes:
    """Return the frame as bytes: seal, version, checksum, msgpack."""
    packed = _encode(frame)
    return b"%b%c%b%b" % (SEAL, VERSION, zlib.crc32(packed).to_bytes(4, "big"), packed)


def decode(raw: bytes) -> Frame:
    """Return the frame in bytes; raises ValueError (msgspec.DecodeError is one) for anything else.

    One that was written before there was a seal has no checksum, and is taken.
    """
    if raw[: len(SEAL)] == SEAL:
        version, packed = raw[len(SEAL) : len(SEAL) + 1], raw[_HEAD:]
        if version != bytes((VERSION,)):
            raise ValueError(f"version is {version.hex() or 'missing'}, expected {VERSION:02x}")
        if zlib.crc32(packed).to_bytes(4, "big") != raw[len(SEAL) + 1 : _HEAD]:
            raise ValueError(f"checksum of {len(raw)} bytes is wrong")
    elif raw and raw[0] in _UNSEALED:
        packed = raw
    else:
        raise ValueError(f"the first bytes are {raw[:4].hex() or 'missing'}, expected {SEAL.hex()}")
    try:
        frame = _decode(packed)
    except RecursionError as error:
        raise ValueError(str(error)) from None
    for field, value, end in (
        ("watermark", frame.watermark, LATEST),
        ("appended", frame.appended, LATEST),
        ("source", frame.source, _PLACES),
        ("upto", frame.upto, _OFFSETS),
    ):
        if not 0 <= value < end:
            raise ValueError(f"{field} is {value}, expected 0 to {end - 1}")
    return frame
