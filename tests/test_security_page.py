"""The threat model names tests and settings that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from kithstream.streams.config import Config
from kithstream.streams.serve import connections, http

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "security.md").read_text()
CLAIMS = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE)


@pytest.mark.parametrize(("file", "name"), CLAIMS)
def test_what_is_said_to_be_shown_is_a_test(file: str, name: str) -> None:
    assert f"\ndef {name}(" in (ROOT / file).read_text()


def test_every_defence_names_a_test() -> None:
    defended = PAGE.partition("## Defended")[2].partition("## Not defended")[0]
    rows = [line for line in defended.splitlines() if line.startswith("| ") and "| test |" not in line]
    assert len(rows) > 10
    assert all("`tests/" in row for row in rows)


def test_settings_and_limits_are_those_of_the_code() -> None:
    config = Config()
    for section, key in re.findall(r"`(serve|worker|kafka)\.(\w+)`", PAGE):
        assert hasattr(getattr(config, section), key), f"{section}.{key}"
    serve = config.serve
    for row in (
        f"`serve.request_bytes`, {serve.request_bytes >> 20} MiB; {http.BODY_SECONDS:g} s",
        f"`serve.head_bytes`, {serve.head_bytes >> 10} KiB; {connections.HEAD_SECONDS:g} s",
        f"`serve.requests`, {serve.requests} ",
        f"`serve.connections`, {serve.connections} ",
        f"nothing of its reply | {connections.WRITE_SECONDS:g} s",
    ):
        assert row in PAGE
    assert serve.rate == 0
