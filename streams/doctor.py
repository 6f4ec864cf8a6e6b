"""Whether this machine can run the runtime: one check a line, each with what to do where it fails."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Final

import msgspec

from kithstream.streams.config import Config, ServeConfig

_NEEDED: Final = 2 << 30  # bytes of free disk
_PYTHON: Final = (3, 11)
_WIDTH: Final = 1 + max(map(len, ("python", "packages", "end to end")))
# The packages whose compiled parts the runtime loads, by the name they are imported under.
_COMPILED: Final = ("msgspec", "numpy", "torch", "rocksdict", "hnswlib", "safetensors", "pyarrow")
_CRASH: Final = """
import os, signal, sys
from pathlib import Path
from kithstream.streams.config import StoreConfig
from kithstream.streams.state.protocol import Column
from kithstream.streams.state.store import RocksStore
store = RocksStore(Path(sys.argv[1]), StoreConfig())
store.write({Column.META: {b"doctor": b"was here"}})
os.kill(os.getpid(), signal.SIGKILL)
"""


class Failing(Exception):
    """A check failed; `cure` says what to do."""

    def __init__(self, what: str, cure: str) -> None:
        super().__init__(what)
        self.cure = cure


class Finding(msgspec.Struct, frozen=True):
    """What a check found; `cure` is empty where all is well."""

    check: str
    found: str
    cure: str = ""


def examine(path: Path, config: Config) -> Iterator[Finding]:
    """Yield a finding per check; state would live under `path`."""
    checks: tuple[tuple[str, Callable[[], str]], ...] = (
        ("python", _python),
        ("packages", _packages),
        ("imports", _imports),
        ("torch", _torch),
        ("rocksdb", _rocksdb),
        ("hnswlib", _graph),
        ("end to end", lambda: _round(config)),
        ("disk", lambda: _disk(path)),
        ("port", lambda: _port(config.serve)),
    )
    for name, run in checks:
        try:
            yield Finding(name, run())
        except Failing as failing:
            yield Finding(name, str(failing), failing.cure)
        except Exception as error:  # whatever a broken installation raises is what the user must see
            text = " ".join(str(error).split())[:200]
            yield Finding(
                name, f"{type(error).__name__}: {text}", "install again: pip install 'kithstream[server]'"
            )


def line(finding: Finding) -> str:
    """Return a finding as one line."""
    if not finding.cure:
        return f"ok    {finding.check:<{_WIDTH}} {finding.found}"
    return f"FAIL  {finding.check:<{_WIDTH}} {finding.found}; {finding.cure}"


def _python() -> str:
    found = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < _PYTHON:
        raise Failing(f"{found}, 3.11 or newer is needed", "install a newer Python")
    return found


def _packages() -> str:
    """Compare what is installed with what the package asks for."""
    wrong, count = [], 0
    for requirement in requires("kithstream") or ():
        name, _, marker = (part.strip() for part in requirement.partition(";"))
        if "extra" in marker and "server" not in marker:
            continue
        match = re.fullmatch(r"([A-Za-z0-9._-]+)(?:\[.*\])?\s*(==|>=)?\s*([0-9.]*)", name)
        if match is None:
            continue
        count += 1
        package, relation, wanted = match.groups()
        try:
            have = version(package)
        except PackageNotFoundError:
            wrong.append(f"{package} is missing")
            continue
        fits = have.split("+")[0] == wanted if relation == "==" else _numbers(have) >= _numbers(wanted)
        if relation and not fits:
            wrong.append(f"{package} is {have}, {relation}{wanted} is needed")
    if wrong:
        raise Failing("; ".join(wrong), "run: pip install 'kithstream[server]'")
    return f"{count} installed as required"


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", text.split("+")[0])[:3])


def _imports() -> str:
    for name in _COMPILED:
        import_module(name)
    return ", ".join(f"{name} {version(name)}" for name in _COMPILED)


def _torch() -> str:
    """A vector must not depend on what is encoded beside it."""
    import torch

    from kithstream.models.encode import one_thread

    draw = torch.Generator().manual_seed(0)
    left, right = torch.rand(64, 96, generator=draw), torch.rand(96, 96, generator=draw)
    with one_thread():
        if not torch.equal(left @ right, left @ right):
            raise Failing("the same product twice differs", "use the wheel of torch for this processor")
    return f"{torch.get_num_threads()} threads beside the one that encodes, products repeat bit for bit"


def _rocksdb() -> str:
    """Write, die, open again, read."""
    from kithstream.streams.config import StoreConfig
    from kithstream.streams.state.protocol import Column
    from kithstream.streams.state.store import RocksStore

    with tempfile.TemporaryDirectory(prefix="kithstream-doctor-") as folder:
        done = subprocess.run(
            [sys.executable, "-c", _CRASH, folder], capture_output=True, text=True, timeout=60, check=False
        )
        if done.returncode != -9:
            last = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
            raise Failing(
                f"a store cannot be written: {last[0]}", "look at the disk and at rocksdict's wheel"
            )
        store = RocksStore(Path(folder), StoreConfig())
        found = store.get(Column.META, [b"doctor"])
        store.close()
    if found != [b"was here"]:
        raise Failing(f"after kill -9 the store held {found}", "use a disk whose files survive their process")
    return "a write survives kill -9"


def _graph() -> str:
    """Build a graph and find every vector with itself."""
    import numpy as np

    from kithstream.index.config import IndexConfig
    from kithstream.index.live import LiveIndex

    vectors = np.random.default_rng(0).standard_normal((2000, 16)).astype(np.float32)
    index = LiveIndex(
        IndexConfig(dim=16, exact_rows=100, rows_per_fetch=0, hot_capacity=256, rebuild_process=False)
    )
    try:
        index.upsert([str(number) for number in range(len(vectors))], vectors)
        index.merge()
        plan = index.query(vectors[0], 10).plan
        if plan != "graph":
            raise Failing(f"an answer came from the plan {plan}", "install hnswlib again from its source")
        recall = index.check(50, np.random.default_rng(1)).recall
    finally:
        index.close()
    return f"a graph of {len(vectors)} vectors answers with a recall of {recall:.2f}"


def _round(config: Config) -> str:
    """Publish and ask, twice."""
    from kithstream.streams.serve.embedded import open as open_runtime

    began = time.perf_counter()
    with (
        tempfile.TemporaryDirectory(prefix="kithstream-doctor-") as folder,
        open_runtime(folder, config=config) as live,
    ):
        token = live.publish(
            [{"signal": "follow", "actor": actor, "target": "bob"} for actor in ("ann", "cyd", "eve")]
        )
        asked = [
            candidate.account for candidate in live.candidates("dan", after=token, deadline=30.0).candidates
        ]
        token = live.publish([{"signal": "block", "actor": "bob", "target": "dan"}])
        again = [
            candidate.account for candidate in live.candidates("dan", after=token, deadline=30.0).candidates
        ]
    if (asked, again) != (["bob"], []):
        raise Failing(
            f"answers were {asked} and {again}, not ['bob'] and []", "report this with the output above"
        )
    return f"published, answered, blocked, answered in {time.perf_counter() - began:.1f} s"


def _disk(path: Path) -> str:
    there = next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())
    free = shutil.disk_usage(there).free
    if free < _NEEDED:
        raise Failing(
            f"{free / 1e9:.1f} GB free under {there}", f"free some: {_NEEDED >> 30} GiB are little enough"
        )
    return f"{free / 1e9:.0f} GB free"


def _port(config: ServeConfig) -> str:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((config.host, config.port))
        except OSError as error:
            raise Failing(
                f"{config.host}:{config.port}: {error.strerror}", "choose another one: -o serve.port=8485"
            ) from None
    return f"{config.host}:{config.port} is free"
