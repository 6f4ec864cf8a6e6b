"""One tree of settings: defaults here, then a TOML file, then the environment, then `-o section.key=value`.

An unknown key is an error with its path. A component receives its own section; nobody else reads the environment.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec


class StoreConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One partition's RocksDB."""

    cache_bytes: int = 64 << 20  # block cache
    write_buffer_bytes: int = 32 << 20  # per column, up to three of them
    sync: bool = False  # fsync each batch: needed against power loss, not against kill -9


class EngineConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The two stages."""

    partitions: int = 3
    batch_events: int = 2000  # most events of one poll batch
    row_cache: int = 100_000  # rows and neighbour lists held per partition
    job_edges: int = 5000  # edges re-sent per step after a slow attribute changed
    retention_hours: float = 168.0  # of the embedded log


class ModelConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which towers serve, and whether they learn."""

    path: str = ""  # a checkpoint; empty is the day-zero model
    learn: bool = True
    seed: int = 0
    example_batch: int = 64  # follows of one training step
    ageing_ratio: float = 2.0  # growth of the ticks at which an unchanged account is encoded again
    aged_rows: int = 512  # most of those between two batches of live events


class ServeConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The HTTP server."""

    host: str = "127.0.0.1"
    port: int = 8484
    token: str = ""  # bearer token; empty lets everybody in
    deadline_ms: float = 1000.0  # longest wait for a token's state
    request_bytes: int = 1 << 20
    threads: int = 8  # publishing and answering at a time
    waiting: int = 64  # requests that wait for a token's state at a time; more queue until their deadline
    requests: int = 1024  # in flight; more are refused as overloaded


class IndexSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The live index; `index.config.IndexConfig` has the rest."""

    hot_capacity: int = 32_768  # accounts held in the exact segment
    exact_rows: int = 20_000  # corpus up to which every answer is an exact scan
    ef: int = 400  # neighbours asked of the graph at least
    background: bool = True  # merge in a thread of its own


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole tree."""

    store: StoreConfig = StoreConfig()
    engine: EngineConfig = EngineConfig()
    model: ModelConfig = ModelConfig()
    index: IndexSection = IndexSection()
    serve: ServeConfig = ServeConfig()


def load(
    path: Path | None = None,
    *,
    environment: Mapping[str, str] | None = None,
    options: Sequence[str] = (),
) -> Config:
    """Return the settings; raises ValueError naming the key that is unknown or of the wrong type.

    `environment` holds names like KITHSTREAM_STORE__SYNC; options are `section.key=value`.
    """
    tree: dict[str, dict[str, object]] = {}
    if path is not None:
        try:
            tree = {section: dict(keys) for section, keys in tomllib.loads(path.read_text()).items()}
        except (OSError, tomllib.TOMLDecodeError, ValueError, TypeError) as error:
            raise ValueError(f"settings file {path}: {error}") from error
    for name, value in sorted((os.environ if environment is None else environment).items()):
        if name.startswith("KITHSTREAM_") and "__" in name:
            section, _, key = name.removeprefix("KITHSTREAM_").lower().partition("__")
            tree.setdefault(section, {})[key] = value
    for option in options:
        where, equals, value = option.partition("=")
        section, dot, key = where.partition(".")
        if not equals or not dot:
            raise ValueError(f"option is {option!r}, expected section.key=value")
        tree.setdefault(section, {})[key] = value
    try:
        return msgspec.convert(tree, Config, strict=False)
    except msgspec.ValidationError as error:
        raise ValueError(f"settings: {error}") from error
