"""What an account says of itself: a few fields, each decided by its own greatest stamp."""

from __future__ import annotations

import functools
from typing import Final

import msgspec

from kithstream.streams.events.wire import Event
from kithstream.streams.state import ledger
from kithstream.streams.state.consent import Consent

Value = str | bool


class Field(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A value and the stamp of the event that set it."""

    stamp: bytes
    value: Value


class Profile(msgspec.Struct, omit_defaults=True, gc=False):
    """Fields by arrival-independent merge."""

    language: Field | None = None
    country: Field | None = None
    private: Field | None = None
    suspended: Field | None = None
    listed: Field | None = None
    active: Field | None = None
    contacts: Field | None = None
    consent: Consent | None = None  # how far the address book counts; `contacts` alone does not tell

    @property
    def hidden(self) -> bool:
        """True if the account is nobody's candidate."""
        return self.inactive or _is_on(self.private) or _is_on(self.suspended)

    @property
    def inactive(self) -> bool:
        """True if the account is deactivated: no candidate, and no answer for it."""
        return self.active is not None and not self.active.value

    @property
    def opted_in(self) -> bool:
        """True if the account is a candidate before its first in-signal."""
        return _is_on(self.listed)

    @property
    def contacts_begin(self) -> int | None:
        """The event time in microseconds from which on the address book counts, None while it does not."""
        return self.consent.begin if self.consent is not None else None

    def codes(self) -> bytes:
        """Return the codes of language and country, 4 bytes; empty if the account told neither."""
        if self.language is None and self.country is None:
            return b""
        return self.language_code().to_bytes(2, "big") + self.country_code().to_bytes(2, "big")

    def language_code(self) -> int:
        """Return the code of the primary language subtag, 0 if unknown."""
        return code(str(self.language.value).split("-", 1)[0]) if self.language else 0

    def country_code(self) -> int:
        """Return the code of the country, 0 if unknown."""
        return code(str(self.country.value)) if self.country else 0


def _is_on(field: Field | None) -> bool:
    return field is not None and bool(field.value)


_FIELDS: Final = ("language", "country", "private", "suspended", "listed", "contacts")
_decode = msgspec.msgpack.Decoder(Profile).decode
_encode = msgspec.msgpack.Encoder().encode


@functools.lru_cache(4096)
def code(letters: str) -> int:
    """Return a number for up to three ASCII letters, case folded: a pure function, no registry.

    >>> code("en"), code("EN"), code("")
    (149, 149, 0)
    """
    number = 0
    for letter in letters[:3].lower():
        number = number * 27 + (ord(letter) - 96 if "a" <= letter <= "z" else 0)
    return number


def letters(number: int) -> str:
    """Return the letters of a code: the inverse of `code`."""
    text = ""
    while number:
        number, last = divmod(number, 27)
        text = (chr(last + 96) if last else "?") + text
    return text


def apply(profile: Profile, event: Event) -> bool:
    """Merge a profile, deactivation or reactivation event; True if what follows carry has changed."""
    undo = event.signal == "account_deactivate"
    stamp = ledger.stamp(event.time, server=event.source == "server", undo=undo, event_id=event.id)
    if event.signal != "profile":
        _merge(profile, "active", stamp, not undo)
        return False
    before = profile.language, profile.country
    for name in _FIELDS:
        value: Value | None = getattr(event, name)
        if value is not None:
            _merge(profile, name, stamp, value)
    if event.contacts is not None:
        profile.consent = profile.consent or Consent()
        profile.consent.tell(stamp, event.contacts)
    was, now = [tuple(f and f.value for f in pair) for pair in (before, (profile.language, profile.country))]
    return was != now


def _merge(profile: Profile, name: str, stamp: bytes, value: Value) -> None:
    held: Field | None = getattr(profile, name)
    if held is None or stamp > held.stamp:
        setattr(profile, name, Field(stamp, value))


def load(stored: bytes | None) -> Profile:
    """Return the profile in stored bytes; an empty one for None."""
    return _decode(stored) if stored else Profile()


def dump(profile: Profile) -> bytes:
    """Return the bytes to store."""
    return _encode(profile)
