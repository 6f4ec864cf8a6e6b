"""The OpenAPI document, made from the structs that go over the wire."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from kithstream.streams.config import ServeConfig
from kithstream.streams.events.schema import IDENTIFIER, event_schema
from kithstream.streams.serve.answers import Answer
from kithstream.streams.serve.messages import (
    REPEATABLE,
    Accepted,
    Asked,
    BadParameter,
    Health,
    NotReady,
    Problem,
    Ready,
    Refused,
)

Json = dict[str, object]

_REF: Final = "#/components/schemas/{name}"
_RETRY: Final[Json] = {
    "Retry-After": {"description": "Seconds to wait.", "schema": {"type": "integer", "minimum": 1}}
}
_EXAMPLE: Final[list[Json]] = [
    {"signal": "follow", "actor": "ann", "target": "bob"},
    {"signal": "like", "actor": "cyd", "target": "bob", "item": "post-7", "source": "client"},
]


def document(config: ServeConfig, version: str) -> Json:
    """Return the OpenAPI 3.1 document of a server with this configuration."""
    secured: list[Json] = [{"bearer": []}] if config.token or config.tokens else []
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "kithstream",
            "version": version,
            "description": (
                "Publish engagement events; ask whom an account should follow, from state that has them. "
                "Every error is a JSON object with a code (`error`) and a sentence (`message`). HEAD is "
                "answered wherever GET is. Tokens have scopes: `publish`, `query` and `admin`; pages of this "
                "document need a token of any."
            ),
        },
        "security": secured,
        "paths": {
            "/v1/events": {"post": {**_publish(config), **_scope("publish", secured)}},
            "/v1/candidates/{account}": {"get": {**_candidates(config), **_scope("query", secured)}},
            "/healthz": {"get": _healthz()},
            "/readyz": {"get": _readyz()},
            "/metrics": {
                "get": {
                    **_text_page("metrics", "Metrics for Prometheus.", "text/plain"),
                    **_scope("admin", secured),
                }
            },
            "/openapi.json": {"get": _text_page("openapi", "This document.", "application/json")},
            "/docs": {"get": _text_page("docs", "This document as a page.", "text/html")},
        },
        "components": {
            "schemas": _schemas(config),
            "securitySchemes": {
                "bearer": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "Where the server has tokens. In the header only, never in the query. The roles "
                    "named beside an operation are the scopes that its token needs.",
                }
            },
        },
    }


def _scope(name: str, secured: list[Json]) -> Json:
    """What an operation needs of its token, where tokens are needed."""
    return {"security": [{"bearer": [name]}]} if secured else {}


def _schemas(config: ServeConfig) -> Json:
    types = (Accepted, Answer, BadParameter, Health, NotReady, Problem, Ready, Refused)
    _, schemas = msgspec.json.schema_components(types, ref_template=_REF)
    event = event_schema(stamped=False)
    event["description"] = f"{event['description']} An `id` and a `time` are given to an event without."
    return {"Event": event, **dict(sorted(schemas.items()))}


def _publish(config: ServeConfig) -> Json:
    event: Json = {"$ref": _REF.format(name="Event")}
    return {
        "operationId": "publish",
        "summary": "Publish events, all or none.",
        "description": (
            "When it returns, the events are in the log. The token stands for them: a question that "
            "carries it is answered from state that includes them."
        ),
        "requestBody": {
            "required": True,
            "description": f"At most {config.request_bytes} bytes of UTF-8; no content encoding.",
            "content": {
                "application/json": {
                    "schema": {"anyOf": [{"type": "array", "items": event}, event]},
                    "example": _EXAMPLE,
                },
                "application/x-ndjson": {
                    "schema": {"type": "string", "description": "One event a line; empty lines are skipped."}
                },
            },
        },
        "responses": {
            "200": _response("All events are in the log.", "Accepted"),
            "400": _response("The body is not JSON, or neither an object nor an array.", "Problem"),
            "408": _response("The body did not arrive in time.", "Problem"),
            "413": _response("The body is too large.", "Problem"),
            "415": _response("Another content type, charset or content encoding.", "Problem"),
            "422": _response("Some events cannot be used; none was taken.", "Refused"),
            **_always(),
        },
    }


def _candidates(config: ServeConfig) -> Json:
    _, schemas = msgspec.json.schema_components((Asked,), ref_template=_REF)
    properties = schemas["Asked"]["properties"]
    properties["deadline_ms"]["maximum"] = config.deadline_ms
    properties["deadline_ms"]["default"] = config.deadline_ms
    return {
        "operationId": "candidates",
        "summary": "Whom should this account follow?",
        "parameters": [
            {
                "name": "account",
                "in": "path",
                "required": True,
                "description": "The asking account, percent-encoded; slashes may stay as they are.",
                "schema": IDENTIFIER,
            },
            *(_parameter(name, dict(rule)) for name, rule in properties.items()),
        ],
        "responses": {
            "200": _response("Candidates, best first.", "Answer"),
            "404": _response("The account is deactivated (`deactivated`).", "Problem"),
            "409": _response("The state does not include the token yet (`not_yet`).", "Problem", _RETRY),
            "410": _response("The account was deleted, for good (`deleted`).", "Problem"),
            "422": _response("A parameter cannot be used, or is unknown.", "BadParameter"),
            **_always(),
        },
    }


def _parameter(name: str, rule: Json) -> Json:
    described: Json = {"name": name, "in": "query", "required": False, "description": rule.pop("description")}
    if name in REPEATABLE:
        rule.pop("default", None)
        described.update(style="form", explode=True)
    return {**described, "schema": rule}


def _healthz() -> Json:
    return {
        "operationId": "healthz",
        "summary": "Is the process alive, and does it fold?",
        "security": [],
        "responses": {
            "200": _response("It is.", "Health"),
            "500": _response("Folding has stopped (`stopped`).", "Problem"),
        },
    }


def _readyz() -> Json:
    return {
        "operationId": "readyz",
        "summary": "Is everything visible that was published before the start?",
        "security": [],
        "responses": {
            "200": _response("It is.", "Ready"),
            "500": _response("A defect of the server.", "Problem"),
            "503": {
                "description": "Not yet (`catching_up`), or folding has stopped (`stopped`).",
                "headers": _RETRY,
                "content": _content("NotReady", "Problem"),
            },
        },
    }


def _text_page(name: str, summary: str, media: str) -> Json:
    schema: Json = {"type": "object"} if media == "application/json" else {"type": "string"}
    return {
        "operationId": name,
        "summary": summary,
        "responses": {"200": {"description": summary, "content": {media: {"schema": schema}}}, **_always()},
    }


def _always() -> Json:
    return {
        "401": _response(
            "No bearer token, or a wrong one.",
            "Problem",
            {"WWW-Authenticate": {"description": "The scheme.", "schema": {"type": "string"}}},
        ),
        "403": _response(
            "The token lacks the scope that is named (`forbidden`).",
            "Problem",
            {"WWW-Authenticate": {"description": "The scope.", "schema": {"type": "string"}}},
        ),
        "429": _response(
            "More requests of this token or address than may be in this time (`too_many_requests`).",
            "Problem",
            _RETRY,
        ),
        "431": _response("The head of the request is too large (`head_too_large`).", "Problem"),
        "500": _response("A defect of the server.", "Problem"),
        "503": _response(
            "Folding has stopped (`stopped`), too many requests are in flight or connections open, or too many "
            "events accepted that are not visible yet (`overloaded`), or, on a cluster, the partition is being moved "
            "or the brokers do not answer (`unavailable`).",
            "Problem",
            _RETRY,
        ),
    }


def _response(text: str, schema: str, headers: Json | None = None) -> Json:
    response: Json = {"description": text, "content": _content(schema)}
    return response if headers is None else {**response, "headers": headers}


def _content(*schemas: str) -> Json:
    references: Sequence[Json] = [{"$ref": _REF.format(name=name)} for name in schemas]
    return {"application/json": {"schema": references[0] if len(schemas) == 1 else {"anyOf": references}}}
