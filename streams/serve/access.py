"""Who may do what over HTTP: tokens with scopes, known by their digests alone, and how fast each may ask.

A file of tokens has one a line, `scope[,scope] digest`, where the digest is the token's SHA-256 in hex; what follows a
`#` is a remark. `kithstream token new` makes a token and its line.

>>> token, line = new_token(["query", "publish"])
>>> [grant] = read_tokens(line + "  # the product, since May")
>>> sorted(grant.scopes), token in line
(['publish', 'query'], False)
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import math
import secrets
from collections import OrderedDict
from collections.abc import Iterable
from ipaddress import ip_address
from pathlib import Path
from typing import Final, NamedTuple

from kithstream.streams.config import ServeConfig

SCOPES: Final = ("publish", "query", "admin")
LOOKING: Final = 1.0  # seconds between two looks at the file of tokens
REMEMBERED: Final = (
    16_384  # tokens and addresses whose rate is known; beyond it the one seen longest ago is forgotten
)
_FILE_BYTES: Final = 1 << 20
_log = logging.getLogger(__name__)


class Grant(NamedTuple):
    """What the bearer of a token may do."""

    digest: bytes  # SHA-256 of the token
    scopes: frozenset[str]


def new_token(scopes: Iterable[str]) -> tuple[str, str]:
    """Return a token of 256 random bits, and the line by which a server knows it."""
    asked = frozenset(scopes)
    token = secrets.token_urlsafe(32)
    return token, f"{','.join(scope for scope in SCOPES if scope in asked)} {_digest(token.encode()).hex()}"


def read_tokens(text: str) -> list[Grant]:
    """Return the grants of a file; raises ValueError naming the line that is none. It shows no word of the line."""
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        if len(words) != 2:
            raise ValueError(f"line {number} has {len(words)} words, expected scope[,scope] and a digest")
        scopes = frozenset(words[0].split(","))
        if not scopes <= set(SCOPES):
            raise ValueError(f"line {number} has an unknown scope, expected {', '.join(SCOPES)}")
        try:
            digest = bytes.fromhex(words[1])
        except ValueError:
            digest = b""
        if len(digest) != hashlib.sha256().digest_size:
            raise ValueError(
                f"line {number} has no digest, expected the 64 hex digits of the token's SHA-256"
            )
        found.append(Grant(digest, scopes))
    return found


class Access:
    """The tokens of a server. Where it has none, everybody may do everything.

    The file is looked at again while the server runs, so that tokens come and go without a restart. A file that
    cannot be used any more leaves the tokens as they were.
    """

    def __init__(self, config: ServeConfig) -> None:
        """Raises ValueError naming `serve.tokens` if the file cannot be used."""
        self.needed = bool(config.token or config.tokens)
        self._own = [Grant(_digest(config.token.encode()), frozenset(SCOPES))] if config.token else []
        self._path = Path(config.tokens) if config.tokens else None
        self._filed: list[Grant] = []
        self._seen: tuple[int, ...] = ()
        self._looked = -math.inf
        if self._path is not None:
            try:
                self._seen = self._version(self._path)
                self._filed = self._read(self._path)
            except (OSError, ValueError) as error:
                raise ValueError(f"serve.tokens is {config.tokens!r}: {error}") from error

    def grant(self, authorization: bytes, now: float) -> Grant | None:
        """Return what a header grants, None if no token is in it. `now` is in seconds of any steady clock.

        The time that it takes depends on how many tokens there are, and not on which of them is like the one given.
        """
        self._look(now)
        scheme, _, secret = authorization.partition(b" ")
        given, found = _digest(secret.strip()), None
        for grant in (*self._own, *self._filed):
            if hmac.compare_digest(grant.digest, given):
                found = grant if found is None else Grant(given, found.scopes | grant.scopes)
        return found if scheme.lower() == b"bearer" else None

    def _look(self, now: float) -> None:
        if self._path is None or now - self._looked < LOOKING:
            return
        self._looked = now
        try:
            version = self._version(self._path)
            if version == self._seen:
                return
            self._filed = self._read(self._path)
        except (OSError, ValueError) as error:
            if self._seen:
                _log.error("serve.tokens is %s: %s; the tokens stay as they were", self._path, error)
            self._seen = ()  # until it can be read, which is tried each time
            return
        self._seen = version
        _log.info("%s has %d tokens", self._path, len(self._filed))

    @staticmethod
    def _version(path: Path) -> tuple[int, ...]:
        found = path.stat()
        return found.st_mtime_ns, found.st_size, found.st_ino

    @staticmethod
    def _read(path: Path) -> list[Grant]:
        with open(path, "rb") as file:
            raw = file.read(_FILE_BYTES + 1)
        if len(raw) > _FILE_BYTES:
            raise ValueError(f"it has more than {_FILE_BYTES} bytes")
        grants = read_tokens(raw.decode())
        if not grants:
            raise ValueError("it has no token")
        return grants


class Rates:
    """A token bucket for each bearer: so many requests a second, and a burst beside. No threads of its own."""

    def __init__(self, config: ServeConfig, *, remembered: int = REMEMBERED) -> None:
        """Raises ValueError naming the setting that cannot be."""
        if not config.rate >= 0:
            raise ValueError(f"serve.rate is {config.rate!r}, expected 0 or more")
        if config.rate_burst < 1:
            raise ValueError(f"serve.rate_burst is {config.rate_burst!r}, expected 1 or more")
        self._step = 1 / config.rate if config.rate else 0.0  # seconds that one request stands for
        self._ahead = self._step * (config.rate_burst - 1)
        self._remembered = remembered
        self._empty: OrderedDict[bytes, float] = OrderedDict()  # when each will have paid for what it asked

    def take(self, who: bytes, now: float) -> float:
        """Count one request; return 0, or the seconds after which it would be let in, and then it is not counted."""
        if not self._step:
            return 0.0
        paid = max(self._empty.pop(who, now), now)
        wait = paid - now - self._ahead
        self._empty[who] = paid if wait > 0 else paid + self._step
        if len(self._empty) > self._remembered:
            self._empty.popitem(last=False)
        return max(wait, 0.0)

    def __len__(self) -> int:
        """How many are remembered."""
        return len(self._empty)


def check(config: ServeConfig) -> None:
    """Raise ValueError naming the setting of `serve` that cannot be."""
    Access(config)
    Rates(config)


def address_of(client: tuple[str, int] | None) -> bytes:
    """Return by what a client without a token is counted: its IPv4 address, or the first 64 bits of its IPv6 one."""
    try:
        address = ip_address(client[0] if client else "")
    except ValueError:
        return b"other"
    mapped = getattr(address, "ipv4_mapped", None)
    packed = (mapped or address).packed
    return packed if len(packed) == 4 else packed[:8]


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()
