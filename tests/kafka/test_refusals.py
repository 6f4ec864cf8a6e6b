"""Of all that a library told its logger, the reason that says most."""

from __future__ import annotations

import logging

import pytest

from kithstream.streams.kafka.refusals import Refusals

HUNG_UP = "KafkaConnectionError: socket disconnected"
LATE = "KafkaConnectionError: Connection timed out"
PASSWORD = "SaslAuthenticationFailedError: Authentication failed"
HINT = "; a broker that refuses the password may hang up without saying so"


@pytest.mark.parametrize(
    ("told", "security", "why"),
    [
        ((HUNG_UP, PASSWORD, HUNG_UP), "SASL_SSL", PASSWORD),
        ((HUNG_UP, HUNG_UP), "SASL_SSL", HUNG_UP + HINT),
        ((HUNG_UP, LATE), "SASL_SSL", HUNG_UP + HINT),  # the last attempt had no time left
        ((HUNG_UP,), "SSL", HUNG_UP),
        ((LATE,), "SASL_SSL", LATE),
        ((), "SASL_SSL", "nothing was told"),
    ],
)
def test_the_reason_that_says_most_is_told(told: tuple[str, ...], security: str, why: str) -> None:
    with Refusals.of("a library") as refusals:
        for text in told:
            logging.getLogger("a library").error("it failed: %s", ConnectionError(text))
        assert refusals.why(security, "nothing was told") == why
