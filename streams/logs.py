"""What a process that serves writes to stderr: lines for people, or one JSON object a line."""

from __future__ import annotations

import logging
import sys
from datetime import UTC, datetime
from typing import Final, TextIO

import msgspec

from kithstream.streams.config import LogConfig

TEXT: Final = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class JsonLines(logging.Formatter):
    """One object a record: `time` (RFC 3339, UTC), `level`, `logger`, `message`, `process`, `pid`, and `exception`."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        """Return the line; what cannot be a JSON string is replaced."""
        told: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": _clean(record.getMessage()),
            "process": self._process,
            "pid": record.process,
        }
        if record.exc_info:
            told["exception"] = _clean(self.formatException(record.exc_info))
        return msgspec.json.encode(told).decode()


def configure(config: LogConfig, process: str, stream: TextIO | None = None) -> None:
    """Log from now on as the settings say; `process` is worker, retrieval, trainer or serve."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonLines(process) if config.format == "json" else logging.Formatter(TEXT))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("kithstream").setLevel(config.level)


def _clean(text: str) -> str:
    return text.encode("utf-8", "replace").decode()
