"""The OpenAPI document as one readable page: no scripts, nothing loaded from elsewhere."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from html import escape
from typing import Final

_STYLE: Final = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; margin: .5rem 0 1rem; }
th, td { text-align: left; vertical-align: top; padding: .25rem .75rem .25rem 0; }
tr { border-bottom: 1px solid #8886; }
code, pre { font: .9em ui-monospace, monospace; }
pre { padding: .75rem; border: 1px solid #8886; overflow-x: auto; }
h2 { margin-top: 2.5rem; border-top: 1px solid #8886; padding-top: 1rem; }
"""
_Node = Mapping[str, object]


def page(document: _Node) -> str:
    """Return the document as HTML."""
    return "\n".join(_lines(document)) + "\n"


def _lines(document: _Node) -> Iterator[str]:
    info = _node(document["info"])
    title = f"{info['title']} {info['version']}"
    yield '<!doctype html><html lang="en"><head><meta charset="utf-8">'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>"
    yield f"<h1>{escape(title)}</h1><p>{_text(info['description'])}</p>"
    yield '<p>The same for machines: <a href="openapi.json">openapi.json</a>.</p>'
    secured = _list(document["security"])
    for path, operations in _node(document["paths"]).items():
        for method, operation in _node(operations).items():
            yield from _operation(method, path, _node(operation), secured)
    yield "<h2>Shapes</h2>"
    for name, schema in _node(_node(document["components"])["schemas"]).items():
        yield from _shape(name, _node(schema))
    yield "</body></html>"


def _operation(method: str, path: str, operation: _Node, secured: list[object]) -> Iterator[str]:
    name = escape(str(operation["operationId"]))
    yield f'<h2 id="{name}"><code>{method.upper()} {escape(path)}</code></h2>'
    yield f"<p>{_text(operation['summary'])} {_text(operation.get('description', ''))}</p>"
    for need in _list(operation.get("security", secured)):
        scopes = ", ".join(f"<code>{escape(str(scope))}</code>" for scope in _list(_node(need)["bearer"]))
        yield f"<p>Needs a bearer token{' with the scope ' + scopes if scopes else ''}.</p>"
    parameters = [_node(parameter) for parameter in _list(operation.get("parameters", []))]
    if parameters:
        yield "<h3>Parameters</h3><table><tr><th>name<th>in<th>type<th>meaning</tr>"
        for parameter in parameters:
            kind = _kind(_node(parameter["schema"]))
            yield _row(
                f"<code>{escape(str(parameter['name']))}</code>",
                escape(str(parameter["in"])),
                kind,
                _text(parameter["description"]),
            )
        yield "</table>"
    if "requestBody" in operation:
        body = _node(operation["requestBody"])
        yield f"<h3>Body</h3><p>{_text(body['description'])}</p><table><tr><th>content type<th>schema</tr>"
        for media, content in _node(body["content"]).items():
            yield _row(f"<code>{escape(media)}</code>", _kind(_node(_node(content)["schema"])))
        yield "</table>"
        for content in _node(body["content"]).values():
            if "example" in _node(content):
                yield f"<pre>{escape(json.dumps(_node(content)['example'], indent=2))}</pre>"
    yield "<h3>Responses</h3><table><tr><th>status<th>meaning<th>body<th>headers</tr>"
    for status, response in _node(operation["responses"]).items():
        answer = _node(response)
        kinds = [_kind(_node(_node(content)["schema"])) for content in _node(answer["content"]).values()]
        headers = ", ".join(escape(name) for name in _node(answer.get("headers", {})))
        yield _row(escape(status), _text(answer["description"]), ", ".join(kinds), headers)
    yield "</table>"


def _shape(name: str, schema: _Node) -> Iterator[str]:
    yield f'<h3 id="shape-{escape(name)}">{escape(name)}</h3><p>{_text(schema.get("description", ""))}</p>'
    required = _list(schema.get("required", []))
    yield "<table><tr><th>field<th>type<th>required<th>meaning</tr>"
    for field, rule in _node(schema["properties"]).items():
        need = "yes" if field in required else ""
        meaning = _text(_node(rule).get("description", ""))
        yield _row(f"<code>{escape(field)}</code>", _kind(_node(rule)), need, meaning)
    yield "</table>"
    branches = [_node(branch) for branch in _list(schema.get("oneOf", []))]
    if branches:
        yield "<table><tr><th>signal<th>needs</tr>"
        for branch in branches:
            needs = ", ".join(
                f"<code>{escape(str(field))}</code>" for field in _list(branch.get("required", []))
            )
            yield _row(f"<code>{escape(str(branch['title']))}</code>", needs or "-")
        yield "</table>"


def _kind(schema: _Node) -> str:
    """A schema in a few words."""
    if "$ref" in schema:
        name = escape(str(schema["$ref"]).rsplit("/", 1)[1])
        return f'<a href="#shape-{name}">{name}</a>'
    if "anyOf" in schema:
        return " or ".join(_kind(_node(one)) for one in _list(schema["anyOf"]))
    if "enum" in schema:
        return " ".join(f"<code>{escape(str(choice))}</code>" for choice in _list(schema["enum"]))
    kind = schema.get("type", "any")
    words = " or ".join(map(str, kind)) if isinstance(kind, list) else str(kind)
    if kind == "array":
        words = f"array of {_kind(_node(schema['items']))}"
    bounds = [
        f"{sign} {schema[key]}"
        for key, sign in (
            ("minimum", "at least"),
            ("maximum", "at most"),
            ("minLength", "length at least"),
            ("maxLength", "length at most"),
        )
        if key in schema
    ]
    if schema.get("default") not in (None, "", [], ()):
        bounds.append(f"default {escape(str(schema['default']))}")
    return ", ".join([words, *bounds])


def _row(*cells: str) -> str:
    return "<tr>" + "".join(f"<td>{cell}" for cell in cells) + "</tr>"


def _text(text: object) -> str:
    """Escaped, with `code` in backticks."""
    parts = escape(str(text)).split("`")
    return "".join(f"<code>{part}</code>" if place % 2 else part for place, part in enumerate(parts))


def _node(value: object) -> _Node:
    assert isinstance(value, Mapping)
    return value


def _list(value: object) -> list[object]:
    assert isinstance(value, list)
    return value
