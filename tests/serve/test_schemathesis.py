"""Schemathesis on the OpenAPI document, against a real server: whatever it makes of it is answered as it says."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from schemathesis import Case, GenerationMode
from schemathesis.config import SchemathesisConfig
from schemathesis.specs.openapi.checks import positive_data_acceptance

import kithstream
from kithstream import __version__
from kithstream.streams.config import Config, EngineConfig, ServeConfig
from kithstream.streams.metrics import Metrics
from kithstream.streams.serve import http
from kithstream.streams.serve.openapi import document
from kithstream.streams.serve.service import InProcess

SERVE = ServeConfig(deadline_ms=200.0)
EXAMPLES = 40  # of each operation and kind
DOCUMENT = json.loads(json.dumps(document(SERVE, __version__), default=list))
SCHEMA = schemathesis.openapi.from_dict(DOCUMENT, config=SchemathesisConfig.from_dict({}))
OPERATIONS = {found.ok().label: found.ok() for found in SCHEMA.get_all_operations()}
LONGEST = 30_000  # characters of a request line: far beyond it the HTTP library hangs up
ALLOWED = "what the document allows"
KINDS = {ALLOWED: GenerationMode.POSITIVE, "what it does not": GenerationMode.NEGATIVE}
WITH_INPUT = {"POST /v1/events", "GET /v1/candidates/{account}"}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A runtime behind a real server on the loopback."""
    metrics = Metrics(CollectorRegistry())
    config = Config(engine=EngineConfig(partitions=2))
    with kithstream.open(tmp_path_factory.mktemp("live"), config=config) as live:
        server = http.make_server(InProcess(live, SERVE, metrics), SERVE, metrics)
        with http.listen("127.0.0.1", 0) as listening:
            thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
            thread.start()
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
            server.should_exit = True
            thread.join(30)


def test_every_operation_of_the_document_is_asked() -> None:
    assert len(OPERATIONS) == 7
    assert set(OPERATIONS) > WITH_INPUT


def unsaid(body: dict[str, Any]) -> bool:
    """True if what was refused is what no JSON Schema can say: two fields that differ, bytes, the present, a token."""
    if body["error"] == "invalid_events":
        return all(
            one["reason"] in {"self_edge", "bad_id", "future"}
            or one["value"].endswith(".0")  # 3.0 is an integer
            for one in body["refused"]
        )
    return body["parameter"] == "after" or body["expected"].startswith("1 to 128 bytes")


@pytest.mark.parametrize(
    ("label", "kind"),
    [(label, kind) for label in OPERATIONS for kind in KINDS if kind == ALLOWED or label in WITH_INPUT],
)
def test_the_server_does_what_its_document_says(label: str, kind: str, url: str) -> None:
    operation = OPERATIONS[label]
    asked = taken = 0

    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        database=None,
        phases=[Phase.generate],  # a failure is small enough as it comes
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def ask(data: st.DataObject) -> None:
        nonlocal asked, taken
        case: Case = data.draw(operation.as_strategy(generation_mode=KINDS[kind]))
        assume(len(case.as_curl_command()) < LONGEST)
        reply = case.call_and_validate(base_url=url, timeout=30, excluded_checks=[positive_data_acceptance])
        asked += 1
        taken += reply.status_code == 200
        gone = reply.status_code in (404, 410) and label.startswith("GET /v1/candidates")
        if kind == ALLOWED and reply.status_code != 200 and not gone:
            assert reply.status_code == 422, reply.text
            assert unsaid(reply.json()), reply.text

    ask()
    assert taken > asked / 4 if kind == ALLOWED else asked > taken
