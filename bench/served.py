"""`kithstream serve` as a process of its own, for benches that measure it from outside."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

STARTING = 120.0  # seconds


class Served:
    """A server on the loopback, over an empty runtime unless a path is given."""

    def __init__(self, options: Sequence[str] = (), path: Path | None = None) -> None:
        self._options = options
        self._path = path

    def __enter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory(prefix="kithstream-bench-")
        given = [part for option in self._options for part in ("-o", option)]
        path = Path(self._folder.name)
        with open(path / "log", "wb") as log:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "kithstream",
                    "serve",
                    "--json",
                    "--path",
                    str(self._path or path / "kin"),
                    "--port",
                    "0",
                    *given,
                ],
                stdout=subprocess.PIPE,
                stderr=log,
            )
        assert self._process.stdout is not None
        line = self._process.stdout.readline().decode()
        assert "http://" in line, (path / "log").read_text()
        self.url = line[line.index("http://") :].split()[0].strip('",}')
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.wait(60)
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._folder.cleanup()

    @property
    def pid(self) -> int:
        """Of the server."""
        return self._process.pid

    @property
    def port(self) -> int:
        """Where it listens."""
        port = urlsplit(self.url).port
        assert port is not None
        return port

    def ask(
        self, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, Any]:
        """Return status and decoded body."""
        status, raw, _ = self.reply(path, body, headers)
        try:
            return status, json.loads(raw)
        except ValueError:
            return status, raw

    def reply(
        self, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, bytes, Mapping[str, str]]:
        """Return status, body and headers."""
        request = urllib.request.Request(self.url + path, body, dict(headers or {}))
        try:
            with urllib.request.urlopen(request, timeout=120) as reply:
                return reply.status, reply.read(), dict(reply.headers)
        except urllib.error.HTTPError as problem:
            with problem:
                return problem.code, problem.read(), dict(problem.headers)

    def post_lines(self, body: bytes) -> tuple[int, Any]:
        """Publish lines."""
        return self.ask("/v1/events", body, {"content-type": "application/x-ndjson"})

    def post_json(self, body: bytes) -> tuple[int, Any]:
        """Publish JSON."""
        return self.ask("/v1/events", body, {"content-type": "application/json"})

    def figure(self, name: str) -> float:
        """A figure of /metrics; 0 where it is not told."""
        text = self.reply("/metrics")[1].decode()
        return next(
            (float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(name + " ")), 0
        )

    def until_folded(self, events: int, patience: float = 600.0) -> int:
        """Wait until so many events were accepted and everything is visible; return how many were."""
        end = time.monotonic() + patience
        while True:
            behind = self.figure("kithstream_behind_records")
            accepted = int(self.figure('kithstream_records_total{outcome="accepted"}'))
            if (accepted >= events and not behind) or time.monotonic() > end:
                return accepted
            time.sleep(0.05)
