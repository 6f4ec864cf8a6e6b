"""How the tests are spread over the processes of xdist, and what hypothesis may take."""

from __future__ import annotations

import pytest
from hypothesis import settings
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

# No test asserts a time: a busy machine would fail an example that took longer than usual.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


class OneBroker(LoadScopeScheduling):
    """Each test by itself, those of `tests/kafka` together in one process: only that one starts a broker.

    xdist 3.8.0 has `--dist loadgroup` for this, which does nothing under pytest 9.2: the group's name is written
    where pytest no longer reads it.
    """

    def _split_scope(self, nodeid: str) -> str:
        return "kafka" if nodeid.startswith("tests/kafka/") else nodeid


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> OneBroker | None:
    """Spread a plain `-n`; any other `--dist` is the caller's wish."""
    return OneBroker(config, log) if config.getvalue("dist") == "load" else None
