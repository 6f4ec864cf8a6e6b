"""Why no broker lets a client in: kafka-python and aiokafka tell their loggers alone."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Self

# Of several reasons the one that says most: a broker may hang up on a wrong password before it has said so.
_TELLING: Final = ("SaslAuthentication", "CERTIFICATE_VERIFY_FAILED", "SSL", "disconnected")
_WAITED: Final = ("KafkaTimeoutError", "RequestTimedOutError")  # the end of waiting, not its reason


class Refusals(logging.Handler):
    """What the loggers of a library were told; texts alone, since errors hold sockets."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        for value in record.args if isinstance(record.args, tuple) else ():
            if isinstance(value, Exception) and type(value).__name__ not in _WAITED:
                self._found = [*self._found[-15:], str(value)]

    def why(self, security: str, otherwise: object) -> str:
        """The reason that was told over a protocol, or another that is known where none was."""
        newest = self._found[::-1]
        telling = (text for word in _TELLING for text in newest if word in text)
        why = next(telling, newest[0] if newest else str(otherwise))
        if security.startswith("SASL") and "disconnected" in why:
            why += "; a broker that refuses the password may hang up without saying so"
        return why

    @classmethod
    @contextmanager
    def of(cls, library: str, *, alone: bool = False) -> Iterator[Self]:
        """Listen to a library; `alone` keeps what it says from everybody else, for whoever is going to tell it."""
        handler, logger = cls(), logging.getLogger(library)
        before = logger.propagate
        logger.addHandler(handler)
        logger.propagate = before and not alone
        try:
            yield handler
        finally:
            logger.propagate = before
            logger.removeHandler(handler)
