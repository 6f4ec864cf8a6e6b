"""Who may do what: scopes, several tokens at a time, rates, and no secret where it can be read."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from prometheus_client import CollectorRegistry
from starlette.testclient import TestClient

import kithstream
from kithstream.streams.cli import SCOPES as OFFERED
from kithstream.streams.cli import cli
from kithstream.streams.config import Config, KafkaConfig, ServeConfig, WorkerConfig, load
from kithstream.streams.metrics import Metrics
from kithstream.streams.serve import access
from kithstream.streams.serve.access import SCOPES, Access, Rates, address_of, new_token, read_tokens
from kithstream.streams.serve.embedded import Embedded
from kithstream.streams.serve.http import CANDIDATES, make_app
from kithstream.streams.serve.openapi import document
from kithstream.streams.serve.page import page
from kithstream.streams.serve.service import InProcess

# What each scope opens: method, path, and the name of the path in the document.
DOORS = {
    "publish": ("POST", "/v1/events", "/v1/events"),
    "query": ("GET", "/v1/candidates/dan", CANDIDATES + "{account}"),
    "admin": ("GET", "/metrics", "/metrics"),
}
ANY = ("/openapi.json", "/docs")


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


def line(token: str, *scopes: str) -> str:
    return f"{','.join(scopes)} {hashlib.sha256(token.encode()).hexdigest()}\n"


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedded]:
    with kithstream.open(tmp_path_factory.mktemp("live")) as live:
        yield live


Opened = Callable[..., TestClient]


@pytest.fixture
def opened(live: Embedded) -> Iterator[Opened]:
    """Makes clients of servers with their own settings, each seen from an address of its own."""
    clients: list[TestClient] = []

    def make(address: str = "203.0.113.1", **settings: object) -> TestClient:
        config = ServeConfig(**settings)
        metrics = Metrics(CollectorRegistry())
        app = make_app(InProcess(live, config, metrics), config, metrics)
        client = TestClient(app, raise_server_exceptions=False, client=(address, 1)).__enter__()
        clients.append(client)
        return client

    yield make
    for client in clients:
        client.__exit__(None, None, None)


@pytest.fixture
def filed(tmp_path: Path) -> Path:
    """A file with a token for each scope, named after it, and one for all."""
    file = tmp_path / "tokens"
    file.write_text("# who\n\n" + "".join(line(scope, scope) for scope in SCOPES) + line("all", *SCOPES))
    return file


def knock(client: TestClient, door: str, **headers: str) -> httpx.Response:
    """Ask for what a scope opens; the reply must be one that the document knows."""
    method, path, name = DOORS[door]
    reply = client.request(method, path, headers=headers, json=[] if method == "POST" else None)
    told = json.loads(json.dumps(document(ServeConfig(token="t"), "0"), default=list))
    response = told["paths"][name][method.lower()]["responses"][str(reply.status_code)]
    assert all(header in reply.headers for header in response.get("headers", ()))
    if reply.headers["content-type"] == "application/json":
        schema = {**response["content"]["application/json"]["schema"], "components": told["components"]}
        Draft202012Validator(schema).validate(reply.json())
    return reply


# -- scopes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("door", SCOPES)
@pytest.mark.parametrize("scope", SCOPES)
def test_a_scope_opens_its_own_door_alone(opened: Opened, filed: Path, scope: str, door: str) -> None:
    reply = knock(opened(tokens=str(filed)), door, **bearer(scope))
    if scope == door:
        assert reply.status_code == 200
        return
    assert (reply.status_code, reply.json()["error"]) == (403, "forbidden")
    assert reply.json()["message"] == f"The token lacks the scope {door}."
    assert f'error="insufficient_scope", scope="{door}"' in reply.headers["www-authenticate"]


@pytest.mark.parametrize("token", [*SCOPES, "all"])
def test_documents_need_a_token_of_any_scope(opened: Opened, filed: Path, token: str) -> None:
    client = opened(tokens=str(filed))
    for path in ANY:
        assert client.get(path).status_code == 401
        assert client.get(path, headers=bearer(token)).status_code == 200
    assert client.get("/nowhere").status_code == 401
    assert client.get("/nowhere", headers=bearer(token)).status_code == 404


def test_the_token_of_the_settings_may_do_everything_beside_the_file(opened: Opened, filed: Path) -> None:
    client = opened(tokens=str(filed), token="old")
    for door in SCOPES:
        for token in ("old", "all"):
            assert knock(client, door, **bearer(token)).status_code == 200
        assert knock(client, door, **bearer("wrong")).status_code == 401
        assert knock(client, door).status_code == 401


def test_a_digest_is_no_token(opened: Opened, filed: Path) -> None:
    digest = hashlib.sha256(b"all").hexdigest()
    assert knock(opened(tokens=str(filed)), "query", **bearer(digest)).status_code == 401


def test_a_token_on_two_lines_has_the_scopes_of_both(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text(line("t", "query") + line("t", "admin"))
    grant = Access(ServeConfig(tokens=str(file))).grant(b"Bearer t", 0.0)
    assert grant is not None
    assert grant.scopes == {"query", "admin"}


def test_every_token_is_compared(monkeypatch: pytest.MonkeyPatch, filed: Path) -> None:
    """So the time says nothing about which one is like the one given."""
    compared = []
    compare = access.hmac.compare_digest
    monkeypatch.setattr(access.hmac, "compare_digest", lambda a, b: compared.append(a) or compare(a, b))
    known = Access(ServeConfig(tokens=str(filed), token="old"))
    for token in (b"Bearer old", b"Bearer all", b"Bearer nobody", b"Basic old", b""):
        compared.clear()
        known.grant(token, 0.0)
        assert len(compared) == len(set(compared)) == 5


def test_the_document_says_the_scopes() -> None:
    told = document(ServeConfig(tokens="/some/file"), "0")
    for scope, (method, _, name) in DOORS.items():
        assert told["paths"][name][method.lower()]["security"] == [{"bearer": [scope]}]
        assert f"Needs a bearer token with the scope <code>{scope}</code>." in page(told)
    for path in ANY:
        assert "security" not in told["paths"][path]["get"]
    assert told["security"] == [{"bearer": []}]
    assert "Needs a bearer token" not in page(document(ServeConfig(), "0"))


# -- rotation ------------------------------------------------------------------------------------------------


def test_old_and_new_are_valid_until_the_old_line_goes(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text(line("old", "query"))
    known = Access(ServeConfig(tokens=str(file)))
    valid = lambda token, now: known.grant(b"Bearer " + token, now) is not None  # noqa: E731
    assert (valid(b"old", 0.0), valid(b"new", 0.0)) == (True, False)
    file.write_text(line("old", "query") + line("new", "query"))
    assert not valid(b"new", access.LOOKING / 2)  # not looked at each time
    assert (valid(b"old", access.LOOKING), valid(b"new", access.LOOKING)) == (True, True)
    other = tmp_path / "other"
    other.write_text(line("new", "query"))
    os.replace(other, file)
    assert (valid(b"old", 2 * access.LOOKING), valid(b"new", 2 * access.LOOKING)) == (False, True)


@pytest.mark.parametrize("broken", ["query notadigest\n", "", None, "\xff"])
def test_a_file_that_breaks_leaves_the_tokens_and_says_so_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, broken: str | None
) -> None:
    file = tmp_path / "tokens"
    file.write_text(line("old", "query"))
    known = Access(ServeConfig(tokens=str(file)))
    known.grant(b"", 0.0)
    file.unlink()
    if broken is not None:
        file.write_bytes(broken.encode("latin-1"))
    for now in (10.0, 20.0, 30.0):
        assert known.grant(b"Bearer old", now) is not None
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert "stay as they were" in caplog.text
    assert "notadigest" not in caplog.text
    file.write_text(line("new", "query"))
    assert known.grant(b"Bearer old", 40.0) is None
    assert known.grant(b"Bearer new", 40.0) is not None


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("query\n", "line 1 has 1 words"),
        ("\n# x\nquery s3cret more\n", "line 3 has 3 words"),
        ("everything " + "0" * 64, "line 1 has an unknown scope"),
        ("query, " + "0" * 64, "line 1 has an unknown scope"),
        ("query s3cret", "line 1 has no digest"),
        ("query " + "0" * 62, "line 1 has no digest"),
        ("# nobody\n", "it has no token"),
        ("#" * (1 << 20) + "#", "it has more than 1048576 bytes"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_before_anything_starts(
    tmp_path: Path, text: str, told: str
) -> None:
    file = tmp_path / "tokens"
    file.write_text(text)
    done = CliRunner().invoke(
        cli, ["serve", "--path", str(tmp_path / "none"), "-o", f"serve.tokens={file}"], catch_exceptions=False
    )
    assert done.exit_code == 2
    assert told in done.output
    assert "s3cret" not in done.output
    assert not (tmp_path / "none").exists()


def test_a_new_token_opens_what_its_scope_says_and_is_told_once(opened: Opened, tmp_path: Path) -> None:
    assert OFFERED == SCOPES
    done = CliRunner().invoke(cli, ["token", "new", "--scope", "query", "--json"], catch_exceptions=False)
    made = json.loads(done.output)
    assert made["token"] not in made["line"]
    (tmp_path / "tokens").write_text(made["line"] + "\n")
    client = opened(tokens=str(tmp_path / "tokens"))
    assert knock(client, "query", **bearer(made["token"])).status_code == 200
    assert knock(client, "publish", **bearer(made["token"])).status_code == 403
    assert len({new_token(["query"])[0] for _ in range(100)}) == 100
    assert read_tokens(new_token(SCOPES)[1])[0].scopes == set(SCOPES)


# -- rates ---------------------------------------------------------------------------------------------------


def test_a_bearer_who_asks_too_fast_is_told_when_to_ask_again(opened: Opened, filed: Path) -> None:
    client = opened(tokens=str(filed), rate=0.001, rate_burst=3)
    replies = [knock(client, "query", **bearer("query")) for _ in range(5)]
    assert [reply.status_code for reply in replies] == [200] * 3 + [429] * 2
    assert replies[3].json()["error"] == "too_many_requests"
    assert 990 <= int(replies[3].headers["retry-after"]) <= 1000
    assert knock(client, "query", **bearer("all")).status_code == 200  # another bearer is not held back
    assert client.get("/healthz").status_code == 200


def test_without_tokens_an_address_is_counted(opened: Opened) -> None:
    client = opened(rate=0.001, rate_burst=2)
    assert [knock(client, "query").status_code for _ in range(3)] == [200, 200, 429]


def test_wrong_tokens_are_counted_by_address_and_keep_no_bearer_out(opened: Opened, filed: Path) -> None:
    client = opened(tokens=str(filed), rate=0.001, rate_burst=2)
    guesses = [knock(client, "query", **bearer(f"guess-{number}")).status_code for number in range(4)]
    assert guesses == [401, 401, 429, 429]
    assert knock(client, "query", **bearer("query")).status_code == 200


@given(
    st.integers(1, 50),
    st.floats(0.5, 100),
    st.lists(st.floats(0, 5), min_size=1, max_size=80),
)
def test_no_stretch_of_time_has_more_than_its_rate_and_the_burst(
    burst: int, rate: float, pauses: list[float]
) -> None:
    rates, now = Rates(ServeConfig(rate=rate, rate_burst=burst)), 0.0
    let: list[float] = []
    for pause in pauses:
        now += pause
        wait = rates.take(b"a", now)
        if wait == 0:
            let.append(now)
        else:
            assert rates.take(b"a", now + wait * 0.999 - 1e-9) > 0 or wait < 1e-6
            now += wait + 1e-9
            assert rates.take(b"a", now) == 0  # who waits as told is let in
            let.append(now)
    for first, begin in enumerate(let):
        for last in range(first, len(let)):
            assert last - first + 1 <= burst + rate * (let[last] - begin) + 1e-6


def test_a_server_remembers_a_bounded_number(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = Rates(ServeConfig(rate=1.0, rate_burst=1), remembered=100)
    for number in range(10_000):
        assert rates.take(number.to_bytes(4), 0.0) == 0.0
    assert len(rates) == 100
    assert rates.take((9_999).to_bytes(4), 0.0) == 1.0


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"rate": -1.0}, "serve.rate is -1.0"),
        ({"rate": float("nan")}, "serve.rate is nan"),
        ({"rate_burst": 0}, "serve.rate_burst is 0"),
    ],
)
def test_a_rate_that_cannot_be_is_named(settings: dict[str, float], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        access.check(ServeConfig(**settings))


def test_addresses_of_one_household_count_as_one() -> None:
    assert address_of(("2001:db8::1", 1)) == address_of(("2001:db8::ffff:2", 2))
    assert address_of(("2001:db8::1", 1)) != address_of(("2001:db8:0:1::1", 1))
    assert address_of(("::ffff:192.0.2.7", 1)) == address_of(("192.0.2.7", 9))
    assert address_of(("192.0.2.7", 1)) != address_of(("192.0.2.8", 1))
    assert address_of(None) == address_of(("nobody", 1)) == b"other"


# -- secrets -------------------------------------------------------------------------------------------------


def test_no_secret_is_in_what_settings_show() -> None:
    config = Config(
        serve=ServeConfig(token="s3cret-a"),
        kafka=KafkaConfig(password="s3cret-b"),
        worker=WorkerConfig(salt="s3cret-c"),
    )
    shown = repr(config)
    assert "s3cret" not in shown
    assert "port=8484" in shown
    assert "advertise" in shown


@pytest.mark.parametrize(
    "option", ["password=s3cret", "kafka.pass=s3cret", "serve.port=s3cret", "nothing.token=s3cret"]
)
def test_no_secret_is_in_what_a_wrong_setting_is_told(option: str) -> None:
    with pytest.raises(ValueError, match=r"option|settings") as told:
        load(environment={}, options=[option])
    assert "s3cret" not in f"{told.value}{told.value.__cause__}"
