"""The contract of every endpoint, on a real runtime; each reply is checked against the OpenAPI document."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from urllib.parse import quote

import anyio
import httpx
import pytest
from jsonschema import Draft202012Validator
from prometheus_client import CollectorRegistry
from starlette.routing import Route
from starlette.testclient import TestClient

import kithstream
from kithstream.streams.config import ServeConfig
from kithstream.streams.events.stamp import wall_clock
from kithstream.streams.metrics import Metrics
from kithstream.streams.serve import http
from kithstream.streams.serve.embedded import Embedded, Pumped
from kithstream.streams.serve.http import make_app
from kithstream.streams.serve.messages import Asked
from kithstream.streams.serve.openapi import document
from kithstream.streams.serve.service import InProcess

FOLLOW = {"signal": "follow", "actor": "ann", "target": "bob"}
FOLLOWS = [FOLLOW, {"signal": "follow", "actor": "cyd", "target": "bob"}]


class Client:
    """A client that refuses replies which the server's document does not know."""

    def __init__(self, client: TestClient, config: ServeConfig) -> None:
        self._client = client
        self.document = json.loads(json.dumps(document(config, "0"), default=list))

    def get(self, path: str, **rest: object) -> httpx.Response:
        return self.ask("GET", path, **rest)

    def post(self, body: object = None, **rest: object) -> httpx.Response:
        return self.ask("POST", "/v1/events", **({"json": body} if body is not None else {}), **rest)

    def ask(self, method: str, path: str, **rest: object) -> httpx.Response:
        reply = self._client.request(method, path, **rest)
        self._check(method, reply)
        return reply

    def _check(self, method: str, reply: httpx.Response) -> None:
        path = reply.request.url.raw_path.decode().partition("?")[0]
        asking = path.startswith(http.CANDIDATES)
        operations = self.document["paths"].get(http.CANDIDATES + "{account}" if asking else path)
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert "Traceback" not in reply.text
        if reply.status_code >= 400 and method != "HEAD":
            assert {"error", "message"} <= set(reply.json())
        if operations is None or {"HEAD": "get"}.get(method, method.lower()) not in operations:
            assert reply.status_code in (401, 404, 405, 503)
            return
        operation = operations[{"HEAD": "get"}.get(method, method.lower())]
        response = operation["responses"][str(reply.status_code)]
        for header in response.get("headers", ()):
            assert header in reply.headers
        media = reply.headers["content-type"].partition(";")[0]
        schema = {**response["content"][media]["schema"], "components": self.document["components"]}
        if media == "application/json" and method != "HEAD":
            Draft202012Validator(schema).validate(reply.json())
        if reply.status_code < 400 and asking:
            assert set(reply.request.url.params) <= {one["name"] for one in operation["parameters"]}


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedded]:
    with kithstream.open(tmp_path_factory.mktemp("live")) as live:
        yield live


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(CollectorRegistry())


Opened = Callable[..., Client]


@pytest.fixture
def opened(live: Embedded, metrics: Metrics) -> Iterator[Opened]:
    """Makes clients of servers with their own settings."""
    clients: list[TestClient] = []

    def make(on: Embedded | None = None, **settings: object) -> Client:
        config = ServeConfig(**{"deadline_ms": 20_000.0, **settings})
        app = make_app(InProcess(on or live, config, metrics), config, metrics)
        clients.append(TestClient(app, raise_server_exceptions=False).__enter__())
        return Client(clients[-1], config)

    yield make
    for client in clients:
        client.__exit__(None, None, None)


@pytest.fixture
def client(opened: Opened) -> Client:
    return opened()


class Held:
    """A runtime whose folding thread stands still, outside of every lock, until it is released."""

    def __init__(self, path: Path) -> None:
        self.gate = threading.Event()
        self.live = kithstream.open(path, start=False)
        self.live.on_pumped = self._hold
        self.live.start()

    def _hold(self, _: Pumped) -> None:
        assert self.gate.wait(60)


@pytest.fixture
def held(tmp_path: Path) -> Iterator[Held]:
    held = Held(tmp_path)
    yield held
    held.gate.set()
    held.live.close()


@pytest.fixture
def failed(tmp_path: Path) -> Iterator[Embedded]:
    """A runtime whose folding has died."""
    died = threading.Event()

    def die(_: Pumped) -> None:
        died.set()
        raise OSError("a secret of the disk")

    live = kithstream.open(tmp_path, start=False)
    live.on_pumped = die
    live.start()
    assert died.wait(60)
    with pytest.raises(RuntimeError, match="folding has stopped"):  # noqa: PT012 (whichever comes first)
        live.publish([FOLLOW])
        live.wait(live.end, deadline=60)
    yield live
    live.close()


def names(reply: httpx.Response) -> list[str]:
    assert reply.status_code == 200, reply.text
    return [candidate["account"] for candidate in reply.json()["candidates"]]


# -- publishing ----------------------------------------------------------------------------------------------


def test_what_is_published_is_in_an_answer_that_carries_its_token(client: Client) -> None:
    reply = client.post(FOLLOWS)
    assert reply.status_code == 200
    assert reply.json()["accepted"] == 2
    asked = {"after": reply.json()["token"], "allow": "bob"}
    assert names(client.get("/v1/candidates/dan", params=asked)) == ["bob"]


def test_one_object_is_one_event(client: Client) -> None:
    assert client.post(FOLLOW).json()["accepted"] == 1


def test_lines_of_json_are_events(client: Client) -> None:
    lines = "\n".join(json.dumps(event) for event in FOLLOWS) + "\r\n\n"
    reply = client.post(content=lines, headers={"content-type": "application/x-ndjson"})
    assert reply.json()["accepted"] == 2


def test_an_empty_array_is_accepted(client: Client) -> None:
    assert client.post([]).json() == {"token": "", "accepted": 0}
    assert client.get("/v1/candidates/dan?after=").status_code == 200


def test_absent_time_and_id_are_stamped_and_given_ones_kept(tmp_path: Path, opened: Opened) -> None:
    now = 1_800_000_000_000_000
    with kithstream.open(tmp_path, clock=lambda: now, start=False) as live:
        seen: list[tuple[str, bytes]] = []
        append = live.append

        def noting(records: Iterable[tuple[str, bytes]], at: int) -> str:
            seen.extend(records)
            return append(seen, at)

        live.append = noting
        given = {**FOLLOW, "id": "e7", "time": now - 5, "source": "client", "trace": "kept"}
        assert opened(live).post([FOLLOW, given]).status_code == 200
    stamped, kept = (json.loads(raw) for _, raw in seen)
    assert stamped["time"] == now
    assert re.fullmatch("[0-9a-f]{32}", stamped["id"])
    assert kept == given


def test_a_client_does_not_overrule_the_server(client: Client) -> None:
    now = wall_clock()
    pair = {"actor": "rank-a", "target": "rank-b"}
    token = client.post([
        {**pair, "signal": "block", "time": now - 1000},
        {**pair, "signal": "unblock", "time": now, "source": "client"},
        {"signal": "follow", "actor": "x1", "target": "rank-b"},
    ]).json()["token"]  # fmt: skip
    assert "rank-b" not in names(client.get("/v1/candidates/rank-a", params={"after": token, "k": 1000}))
    assert "rank-b" in names(client.get("/v1/candidates/rank-c", params={"after": token, "k": 1000}))


def test_all_events_or_none_are_taken(client: Client, live: Embedded) -> None:
    before = live.end
    bad = [FOLLOW, {**FOLLOW, "target": "ann"}, {"signal": "poke", "actor": "a"}, 7, {**FOLLOW, "time": "x"}]
    reply = client.post(bad)
    assert reply.status_code == 422
    body = reply.json()
    assert (body["error"], body["total"]) == ("invalid_events", 4)
    assert [(r["index"], r["reason"], r["field"], r["value"]) for r in body["refused"]] == [
        (1, "self_edge", "target", "'ann'"),
        (2, "unknown_signal", "signal", "'poke'"),
        (3, "wrong_type", "record", "7"),
        (4, "wrong_type", "time", "'x'"),
    ]
    assert all(refusal["expected"] for refusal in body["refused"])
    assert live.end == before


def test_a_refusal_is_short_however_much_is_refused(client: Client) -> None:
    body = client.post([{**FOLLOW, "target": "x" * 5000}] * 150).json()
    assert body["total"] == 150
    assert len(body["refused"]) == 100
    assert all(len(refusal["value"]) <= 80 for refusal in body["refused"])


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        ({**FOLLOW, "time": 4_000_000_000_000_000}, "future"),
        ({**FOLLOW, "more": "x" * 20_000}, "oversize"),
        ({**FOLLOW, "actor": "é" * 65}, "bad_id"),
        ({**FOLLOW, "id": None}, "wrong_type"),
        ({"signal": "follow", "target": "bob"}, "missing"),
        ({**FOLLOW, "source": "phone"}, "wrong_type"),
        ([FOLLOW], "wrong_type"),
        ("follow", "wrong_type"),
    ],
)
def test_each_reason_is_told(client: Client, event: object, reason: str) -> None:
    reply = client.post([event])
    assert reply.status_code == 422
    assert reply.json()["refused"][0]["reason"] == reason


def test_a_bad_line_is_told_by_its_number(client: Client) -> None:
    lines = f"{json.dumps(FOLLOW)}\n{{oops\n3\n"
    reply = client.post(content=lines, headers={"content-type": "application/x-ndjson"})
    assert [(r["index"], r["reason"]) for r in reply.json()["refused"]] == [
        (1, "malformed"),
        (2, "wrong_type"),
    ]


@pytest.mark.parametrize("body", [b"", b"{", b"3", b'"x"', b"null", b"\xff\xfe", b"[{}", b"[" * 100_000])
def test_what_is_no_array_or_object_is_malformed(client: Client, body: bytes) -> None:
    reply = client.post(content=body, headers={"content-type": "application/json"})
    assert (reply.status_code, reply.json()["error"]) == (400, "malformed")


@pytest.mark.parametrize(
    "headers",
    [
        {"content-type": "text/plain"},
        {"content-type": "application/json; charset=latin-1"},
        {"content-type": "application/json", "content-encoding": "gzip"},
        {},
    ],
)
def test_other_content_types_are_refused(client: Client, headers: dict[str, str]) -> None:
    reply = client.post(content=b"[]", headers=headers)
    assert (reply.status_code, reply.json()["error"]) == (415, "unsupported_media_type")


def test_a_charset_of_utf_8_is_fine(client: Client) -> None:
    headers = {"content-type": 'Application/JSON; charset="UTF-8"'}
    assert client.post(content=b"[]", headers=headers).status_code == 200


def test_a_body_that_says_it_is_too_large_is_not_read(opened: Opened) -> None:
    reply = opened(request_bytes=100).post([FOLLOW] * 3)
    assert (reply.status_code, reply.json()["error"]) == (413, "too_large")
    assert reply.headers["connection"] == "close"


def test_a_body_is_refused_while_it_is_read(live: Embedded, metrics: Metrics) -> None:
    """Straight to the application, since the test client gathers a body before it sends it."""
    sent: list[dict[str, object]] = []
    taken = 0

    async def receive() -> dict[str, object]:
        nonlocal taken
        taken += 1
        return {"type": "http.request", "body": b"x" * 60, "more_body": taken < 10}

    async def send(message: dict[str, object]) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/events",
        "raw_path": b"/v1/events",
        "query_string": b"",
        "headers": [(b"content-type", b"application/json")],
    }
    anyio.run(
        make_app(InProcess(live, ServeConfig(), metrics), ServeConfig(request_bytes=100), metrics),
        scope,
        receive,
        send,
    )
    assert sent[0]["status"] == 413
    assert taken == 2


def test_a_body_at_the_bound_is_taken(opened: Opened) -> None:
    body = json.dumps([FOLLOW]).encode()
    headers = {"content-type": "application/json"}
    assert opened(request_bytes=len(body)).post(content=body, headers=headers).status_code == 200
    assert opened(request_bytes=len(body) - 1).post(content=body, headers=headers).status_code == 413


# -- asking --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "account", ["a/b", "/a//b/", "ünï 日本", "a?b#c%d+e&f", "a\nb", "...", "healthz", "a\\b", "é" * 64]
)
def test_an_account_may_hold_any_character(client: Client, account: str) -> None:
    token = client.post([{**FOLLOW, "actor": account, "target": "t/ü\n"}, FOLLOW]).json()["token"]
    reply = client.get(f"/v1/candidates/{quote(account, safe='')}", params={"after": token, "k": 1000})
    assert reply.json()["account"] == account
    assert "t/ü\n" not in names(reply)
    assert "t/ü\n" in names(client.get("/v1/candidates/else", params={"after": token, "allow": "t/ü\n"}))


def test_slashes_need_no_encoding(client: Client) -> None:
    assert client.get("/v1/candidates/a/b/").json()["account"] == "a/b/"


def test_exclude_and_allow_repeat(client: Client) -> None:
    token = client.post([{**FOLLOW, "target": f"many {n}"} for n in range(4)]).json()["token"]
    query = f"after={token}&k=1000&allow=many+0&allow=many%201&allow=many%202&exclude=many+1"
    assert sorted(names(client.get(f"/v1/candidates/dan?{query}"))) == ["many 0", "many 2"]


def test_k_and_reasons_bound_the_answer(client: Client) -> None:
    common = {**FOLLOW, "actor": "eve", "target": FOLLOW["actor"]}
    token = client.post([common, *({**FOLLOW, "target": f"few {n}"} for n in range(4))]).json()["token"]
    allow = [f"few {n}" for n in range(4)]
    asked = {"after": token, "k": 3, "reasons": 1, "allow": allow}
    reply = client.get("/v1/candidates/eve", params=asked)
    told = [bool(candidate["reasons"]) for candidate in reply.json()["candidates"]]
    assert told == [True, False, False]


def test_a_full_explanation_tells_which_signals_carry_the_first_candidates(client: Client) -> None:
    common = [{**FOLLOW, "actor": "why", "target": target} for target in ("hub", "spoke")]
    common += [{"signal": "like", "actor": "why", "target": "hub", "item": item} for item in "ab"]
    others = [{**FOLLOW, "actor": "hub", "target": f"told {n}"} for n in range(7)]
    token = client.post([*common, *others]).json()["token"]
    asked = {"after": token, "k": 7, "allow": [f"told {n}" for n in range(7)]}
    plain = client.get("/v1/candidates/why", params=asked).json()["candidates"]
    full = client.get("/v1/candidates/why", params={**asked, "explain": "full"}).json()["candidates"]
    assert not any("because" in candidate for candidate in plain)
    assert ["because" in candidate for candidate in full] == [True] * 5 + [False] * 2
    assert [candidate["account"] for candidate in full] == [candidate["account"] for candidate in plain]
    first = {because["account"]: because for because in full[0]["because"]}
    assert first["hub"]["signals"] == {"follow": 1, "like": 2}
    assert first["hub"]["score_change"] == full[0]["score"] - first["hub"]["score"]
    assert first["hub"]["rank"] - first["hub"]["rank_change"] == 1
    few = client.get("/v1/candidates/why", params={**asked, "explain": "full", "reasons": 2}).json()
    assert ["because" in candidate for candidate in few["candidates"]] == [True] * 2 + [False] * 5


def test_languages_filter(client: Client) -> None:
    token = client.post([
        {"signal": "profile", "actor": "lang-pt", "language": "pt-BR"},
        {**FOLLOW, "target": "lang-pt"},
        {**FOLLOW, "target": "lang-none"},
    ]).json()["token"]  # fmt: skip
    found = names(client.get(f"/v1/candidates/dan?after={token}&k=1000&language=pt&language=ja"))
    assert "lang-pt" in found
    assert "lang-none" not in found


@pytest.mark.parametrize(
    ("query", "parameter", "value"),
    [
        ("k=0", "k", "0"),
        ("k=1001", "k", "1001"),
        ("k=many", "k", "many"),
        ("k=", "k", ""),
        ("k=5&k=6", "k", "6"),
        ("reasons=-1", "reasons", "-1"),
        ("deadline_ms=20001", "deadline_ms", "20001"),
        ("deadline_ms=-1", "deadline_ms", "-1"),
        ("deadline_ms=nan", "deadline_ms", "nan"),
        ("after=soon", "after", "soon"),
        ("after=99:1", "after", "99:1"),
        ("exclude=a&exclude=" + "x" * 129, "exclude", "x" * 80),
        ("exclude=" + "%C3%A9" * 65, "exclude", "é" * 65),
        ("allow=", "allow", ""),
        ("allow=a%00b", "allow", "a\0b"),
        ("explain=long", "explain", "long"),
        ("language=english", "language", "english"),
        ("language=en%0A", "language", "en\n"),
        ("exclude=%ff", "exclude", "%ff"),
        ("limit=5", "limit", "5"),
        ("token=secret", "token", "secret"),
        ("&".join(["exclude=a"] * 1001), "exclude", "1001 times"),
    ],
)
def test_a_wrong_parameter_is_named_with_its_value(
    client: Client, query: str, parameter: str, value: str
) -> None:
    reply = client.get(f"/v1/candidates/dan?{query}")
    assert reply.status_code == 422
    body = reply.json()
    assert (body["error"], body["parameter"], body["value"]) == ("invalid_parameter", parameter, value)
    assert body["expected"] in body["message"]


@pytest.mark.parametrize("path", ["", "x" * 129, "%C3%A9" * 65, "a%00b", "%ff"])
def test_a_wrong_account_is_named(client: Client, path: str) -> None:
    reply = client.get(f"/v1/candidates/{path}")
    assert (reply.status_code, reply.json()["parameter"]) == (422, "account")


def test_a_deleted_account_is_gone_and_a_deactivated_one_is_not_found(client: Client) -> None:
    token = client.post([
        {"signal": "account_delete", "actor": "was/here"},
        {"signal": "account_deactivate", "actor": "away"},
    ]).json()["token"]  # fmt: skip
    gone = client.get("/v1/candidates/was/here", params={"after": token})
    assert (gone.status_code, gone.json()["error"]) == (410, "deleted")
    away = client.get("/v1/candidates/away", params={"after": token})
    assert (away.status_code, away.json()["error"]) == (404, "deactivated")
    back = client.post({"signal": "account_reactivate", "actor": "away"}).json()["token"]
    assert client.get("/v1/candidates/away", params={"after": back}).status_code == 200


def test_a_token_from_beyond_the_log_is_not_yet(client: Client) -> None:
    reply = client.get("/v1/candidates/dan?after=0:999999")
    assert (reply.status_code, reply.json()["error"]) == (409, "not_yet")
    assert int(reply.headers["retry-after"]) >= 1


# -- waiting -------------------------------------------------------------------------------------------------


def test_a_deadline_that_passes_is_not_yet(held: Held, opened: Opened) -> None:
    client = opened(held.live)
    token = client.post(FOLLOWS).json()["token"]
    reply = client.get("/v1/candidates/dan", params={"after": token, "deadline_ms": 30})
    assert (reply.status_code, reply.json()["error"]) == (409, "not_yet")
    assert client.get("/v1/candidates/dan", params={"after": token, "deadline_ms": 0}).status_code == 409


def test_those_who_wait_keep_nobody_else(held: Held, opened: Opened) -> None:
    client = opened(held.live, waiting=2, threads=1)
    token = client.post(FOLLOWS).json()["token"]
    with ThreadPoolExecutor(6) as pool:
        waiting = [pool.submit(client.get, "/v1/candidates/dan", params={"after": token}) for _ in range(6)]
        for _ in range(10):
            assert names(client.get("/v1/candidates/dan")) == []
        assert client.post([]).status_code == 200
        assert not any(future.done() for future in waiting)
        late = client.get("/v1/candidates/dan", params={"after": token, "deadline_ms": 30})
        assert late.status_code == 409
        held.gate.set()
        assert [names(future.result()) for future in waiting] == [["bob"]] * 6


def test_without_a_folding_thread_the_question_folds(tmp_path: Path, opened: Opened) -> None:
    with kithstream.open(tmp_path, start=False) as live:
        client = opened(live)
        token = client.post(FOLLOWS).json()["token"]
        assert names(client.get("/v1/candidates/dan")) == []
        assert names(client.get("/v1/candidates/dan", params={"after": token})) == ["bob"]


def test_fifty_at_once_each_read_their_own_write(client: Client) -> None:
    def follow_and_ask(number: int) -> list[str]:
        target = f"crowd-{number}"
        token = client.post({**FOLLOW, "actor": f"fan-{number}", "target": target}).json()["token"]
        return names(client.get("/v1/candidates/dan", params={"after": token, "allow": target}))

    with ThreadPoolExecutor(50) as pool:
        assert list(pool.map(follow_and_ask, range(50))) == [[f"crowd-{number}"] for number in range(50)]


def test_more_requests_than_fit_are_refused(held: Held, opened: Opened) -> None:
    client = opened(held.live, requests=1)
    token = client.post(FOLLOWS).json()["token"]
    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(client.get, "/v1/candidates/dan", params={"after": token}) for _ in range(2)]
        refused = next(as_completed(both)).result()
        assert (refused.status_code, refused.json()["error"]) == (503, "overloaded")
        assert client.get("/healthz").status_code == 200
        held.gate.set()
        assert sorted(future.result().status_code for future in both) == [200, 503]


def test_with_too_much_accepted_and_not_visible_publishing_is_put_off(held: Held, opened: Opened) -> None:
    client = opened(held.live, behind=2)
    assert client.post({**FOLLOW, "actor": "dan", "id": "1"}).status_code == 200
    assert client.post({**FOLLOW, "actor": "eve", "id": "2"}).status_code == 200
    refused = client.post({**FOLLOW, "actor": "fay", "id": "3"})
    assert (refused.status_code, refused.json()["error"]) == (503, "overloaded")
    assert refused.json()["message"].startswith("2 events are accepted and not visible yet")
    assert refused.headers["retry-after"] == "1"
    held.gate.set()
    held.live.wait(held.live.end, deadline=20.0)
    assert client.post({**FOLLOW, "actor": "fay", "id": "3"}).status_code == 200


# -- the state of the server ---------------------------------------------------------------------------------


def test_a_server_is_ready_once_what_was_there_before_is_visible(held: Held, opened: Opened) -> None:
    held.live.publish(FOLLOWS)
    client = opened(held.live)
    reply = client.get("/readyz")
    assert (reply.status_code, reply.json()["error"], reply.json()["behind"]) == (503, "catching_up", 2)
    held.gate.set()
    held.live.wait(held.live.end, deadline=60)
    assert client.get("/readyz").json() == {"status": "ready", "behind": 0}


def test_what_is_published_later_leaves_it_ready(held: Held, opened: Opened) -> None:
    client = opened(held.live)
    client.post(FOLLOWS)
    assert client.get("/readyz").json() == {"status": "ready", "behind": 2}


def test_a_server_whose_folding_died_says_so_and_no_more(failed: Embedded, opened: Opened) -> None:
    client = opened(failed)
    replies = {
        500: [client.get("/healthz")],
        503: [client.get("/readyz"), client.post(FOLLOWS), client.get("/v1/candidates/dan")],
    }
    for status, group in replies.items():
        for reply in group:
            assert (reply.status_code, reply.json()["error"]) == (status, "stopped")
            assert "secret" not in reply.text
    assert client.get("/metrics").status_code == 200


def test_a_defect_tells_the_log_and_not_the_caller(
    live: Embedded, opened: Opened, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a secret of the code")

    monkeypatch.setattr(live.chain, "rank", broken)
    reply = opened(token="s3cr3t-token").get(
        "/v1/candidates/dan", headers={"authorization": "Bearer s3cr3t-token"}
    )
    assert (reply.status_code, reply.json()["error"]) == (500, "internal")
    assert "secret of the code" not in reply.text
    assert "secret of the code" in caplog.text
    assert "s3cr3t-token" not in caplog.text


def test_health_is_alive(client: Client) -> None:
    assert client.get("/healthz").json() == {"status": "alive"}


def test_metrics_are_those_of_prometheus(client: Client) -> None:
    client.post(FOLLOWS)
    client.get("/v1/candidates/dan/with/slashes")
    client.get("/nowhere/at/all")
    reply = client.get("/metrics")
    assert reply.headers["content-type"].startswith("text/plain; version=")
    count = 'kithstream_http_request_seconds_count{route="%s",status="%s"} 1.0'
    assert count % ("/v1/candidates/{account}", 200) in reply.text
    assert count % ("/v1/events", 200) in reply.text
    assert count % ("other", 404) in reply.text
    assert "slashes" not in reply.text
    assert "kithstream_query_seconds_count 1.0" in reply.text


# -- who may -------------------------------------------------------------------------------------------------

SECURED = ["/v1/candidates/dan", "/metrics", "/openapi.json", "/docs", "/nowhere"]


@pytest.mark.parametrize("path", SECURED)
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer wrong"},
        {"authorization": "Bearer"},
        {"authorization": "Basic right"},
        {"authorization": "right"},
        {"authorization": "Bearer rightright"},
        {"authorization": "Bearer \u00e9".encode("latin-1")},
    ],
)
def test_without_the_token_nothing_is_told(opened: Opened, path: str, headers: dict[str, str]) -> None:
    reply = opened(token="right").get(path, headers=headers)
    assert (reply.status_code, reply.json()["error"]) == (401, "unauthorized")
    assert reply.headers["www-authenticate"].startswith("Bearer")
    assert "right" not in reply.text


def test_the_token_lets_in(opened: Opened) -> None:
    client = opened(token="right")
    for scheme in ("Bearer", "bearer"):
        assert (
            client.get("/v1/candidates/dan", headers={"authorization": f"{scheme} right"}).status_code == 200
        )
    assert client.post(FOLLOWS).status_code == 401
    assert client.post(FOLLOWS, headers={"authorization": "Bearer right"}).status_code == 200


def test_the_token_is_of_no_use_in_the_query(opened: Opened) -> None:
    assert opened(token="right").get("/v1/candidates/dan?token=right").status_code == 401


def test_health_and_readiness_need_no_token(opened: Opened) -> None:
    client = opened(token="right")
    assert client.get("/healthz").status_code == 200
    assert client.get("/readyz").status_code == 200


# -- methods, paths, documents -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", ["/v1/candidates/dan", "/healthz", "/readyz", "/metrics", "/openapi.json", "/docs"]
)
def test_head_is_get_without_the_body(client: Client, path: str) -> None:
    reply = client.ask("HEAD", path)
    assert reply.status_code == 200
    assert reply.content == b""
    assert int(reply.headers["content-length"]) > 0


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v1/events", {"POST"}),
        ("DELETE", "/v1/events", {"POST"}),
        ("POST", "/v1/candidates/dan", {"GET", "HEAD"}),
        ("PUT", "/healthz", {"GET", "HEAD"}),
        ("OPTIONS", "/metrics", {"GET", "HEAD"}),
    ],
)
def test_other_methods_are_not_allowed(client: Client, method: str, path: str, allowed: set[str]) -> None:
    reply = client.ask(method, path)
    assert (reply.status_code, reply.json()["error"]) == (405, "method_not_allowed")
    assert set(reply.headers["allow"].split(", ")) == allowed


@pytest.mark.parametrize("path", ["/", "/v1", "/v1/candidates", "/v1/events/", "/v2/events"])
def test_other_paths_are_not_found(client: Client, path: str) -> None:
    reply = client.get(path)
    assert (reply.status_code, reply.json()["error"]) == (404, "not_found")


def test_every_route_and_parameter_is_documented(live: Embedded, client: Client, metrics: Metrics) -> None:
    routes = {
        (route.path_format, method.lower())
        for route in make_app(InProcess(live, ServeConfig(), metrics), ServeConfig(), metrics).routes
        if isinstance(route, Route)
        for method in route.methods or ()
        if method != "HEAD"
    }
    paths = client.document["paths"]
    assert routes == {(path, method) for path, operations in paths.items() for method in operations}
    parameters = paths["/v1/candidates/{account}"]["get"]["parameters"]
    assert [one["name"] for one in parameters] == ["account", *Asked.__struct_fields__]
    assert all(one["description"] and one["schema"] for one in parameters)
    operations = [operation for path in paths.values() for operation in path.values()]
    assert all(operation["summary"] and operation["responses"] for operation in operations)
    assert len({operation["operationId"] for operation in operations}) == len(operations)


def test_the_document_is_served_and_whole(client: Client) -> None:
    served = client.get("/openapi.json").json()
    assert served["openapi"] == "3.1.0"
    assert served["info"]["version"] == kithstream.__version__
    text = json.dumps(served)
    names = set(re.findall(r'"#/components/schemas/(\w+)"', text))
    assert names <= set(served["components"]["schemas"])
    for schema in served["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)
    assert served["paths"]["/v1/events"]["post"]["requestBody"]["content"].keys() == {
        "application/json",
        "application/x-ndjson",
    }


def test_the_document_says_what_is_secured() -> None:
    assert document(ServeConfig(), "0")["security"] == []
    secured = document(ServeConfig(token="right"), "0")
    assert secured["security"] == [{"bearer": []}]
    assert "right" not in json.dumps(secured, default=list).split()
    assert json.dumps(secured, default=list).count('"security": []') == 2


def test_the_documented_example_is_accepted(client: Client) -> None:
    content = client.document["paths"]["/v1/events"]["post"]["requestBody"]["content"]["application/json"]
    schema = {**content["schema"], "components": client.document["components"]}
    Draft202012Validator(schema).validate(content["example"])
    assert client.post(content["example"]).status_code == 200


def test_the_page_shows_everything_and_loads_nothing(client: Client) -> None:
    reply = client.get("/docs")
    assert "default-src 'none'" in reply.headers["content-security-policy"]
    assert "<script" not in reply.text
    assert not re.search(r'(src|href)="(https?:)?//', reply.text)
    for path, operations in client.document["paths"].items():
        assert f">GET {path}<" in reply.text or f">POST {path}<" in reply.text
        for operation in operations.values():
            assert all(f"<td>{status}<td>" in reply.text for status in operation["responses"])
    assert all(f"<code>{name}</code>" in reply.text for name in Asked.__struct_fields__)
    assert all(f'id="shape-{name}"' in reply.text for name in client.document["components"]["schemas"])


# -- a real server -------------------------------------------------------------------------------------------


def test_connections_do_not_wait_for_each_other_s_packets() -> None:
    with http.listen("127.0.0.1", 0) as listening, socket.create_connection(listening.getsockname()):
        accepted, _ = listening.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1


SERVER = """
import sys, kithstream
from pathlib import Path
from prometheus_client import CollectorRegistry
from kithstream.streams.config import ServeConfig
from kithstream.streams.metrics import Metrics
from kithstream.streams.serve.http import serve
from kithstream.streams.serve.service import InProcess
with kithstream.open(sys.argv[1]) as live:
    config, metrics = ServeConfig(port=0, request_bytes=1000), Metrics(CollectorRegistry())
    serve(InProcess(live, config, metrics), config, metrics, started=lambda url: print(url, flush=True))
print("closed", flush=True)
"""


def test_a_server_on_loopback_ends_in_order_on_sigterm(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", SERVER, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert url.startswith("http://127.0.0.1:")
        with httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
            token = client.post("/v1/events", json=FOLLOWS).json()["token"]
            reply = client.get("/v1/candidates/a%2Fb/c%0A", params={"after": token})
            assert reply.json()["account"] == "a/b/c\n"
            assert names(reply) == ["bob"]
            assert "server" not in reply.headers
            head = client.head("/v1/candidates/dan")
            assert (head.status_code, head.content) == (200, b"")
            assert client.get("/v1/candidates/%ff").status_code == 422
            chunks = (b"[" + b" " * 400 for _ in range(10))
            large = client.post("/v1/events", content=chunks, headers={"content-type": "application/json"})
            assert large.status_code == 413
            assert client.get("/healthz").status_code == 200
            process.send_signal(signal.SIGTERM)
        assert process.stdout.read() == "closed\n"
        assert process.wait(60) == 0
