"""Loading executes nothing and allocates no more than a file holds, whoever wrote the file."""

from __future__ import annotations

import ast
import hashlib
import json
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save
from tests.models.worlds import some_rows

from kithstream.index.config import IndexConfig
from kithstream.index.errors import SnapshotRefused
from kithstream.index.live import LiveIndex
from kithstream.models import checkpoint
from kithstream.models.checkpoint import CheckpointError
from kithstream.models.features import SCHEMA
from kithstream.models.model import Model
from kithstream.models.train import OnlineTrainer, TrainerConfig
from kithstream.streams.communities.known import MARK, KnownFor
from kithstream.streams.errors import KithstreamError, StoreRefused
from kithstream.streams.examples.columns import naming
from kithstream.streams.sources import graph

ROOT = Path(__file__).parents[1]
MODULES = sorted(path for top in ("streams", "models", "index", "src") for path in (ROOT / top).rglob("*.py"))
REFUSED = (KithstreamError, ValueError, OSError)
MOST = 64 << 20  # bytes that refusing a file of some kilobytes may take

# -- the package ---------------------------------------------------------------------------------------------

# Names whose use executes what it is given, or would load what does.
EXECUTING = {"eval", "exec", "compile", "__import__"}
LOADERS = {
    "pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "yaml", "jsonpickle", "code",
}  # fmt: skip
CALLS = {
    "os.system",
    "os.popen",
    "torch.load",
    "torch.save",
    "torch.jit.load",
    "torch.hub.load",
    "np.fromregex",
}


def dotted(node: ast.expr) -> str:
    """The name of what is called, as it is written."""
    if isinstance(node, ast.Name):
        return node.id
    return f"{dotted(node.value)}.{node.attr}" if isinstance(node, ast.Attribute) else "?"


def is_false(word: ast.expr | None) -> bool:
    return isinstance(word, ast.Constant) and word.value is False


def executing(source: str) -> Iterator[str]:
    """What a module says that may execute data, each with its line."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
            yield from (f"{node.lineno}: {name}" for name in names if name.split(".")[0] in LOADERS)
        elif isinstance(node, ast.Call):
            called, words = dotted(node.func), {word.arg: word.value for word in node.keywords}
            pickles, shell = words.get("allow_pickle"), words.get("shell")
            if called in EXECUTING | CALLS or called.split(".")[-1] in (
                "create_subprocess_shell",
                "load_module",
            ):
                yield f"{node.lineno}: {called}"
            if called in ("np.load", "np.save") and not is_false(pickles):
                yield f"{node.lineno}: {called} without allow_pickle=False"
            if shell is not None and not is_false(shell):
                yield f"{node.lineno}: {called} with a shell"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_executes_no_data(path: Path) -> None:
    assert list(executing(path.read_text())) == []


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from pickle import loads",
        "import yaml.constructor",
        "eval(x)",
        "exec(x)",
        "import torch; torch.load(p, weights_only=True)",
        "np.load(p)",
        "np.load(p, allow_pickle=True)",
        "np.load(p, allow_pickle=flag)",
        "subprocess.run(x, shell=True)",
        "os.system(x)",
        "asyncio.create_subprocess_shell(x)",
    ],
)
def test_what_executes_would_be_found(line: str) -> None:
    assert len(list(executing(line))) == 1


@pytest.mark.parametrize(
    "line", ["network.eval()", "np.load(p, allow_pickle=False)", "re.compile(x)", "subprocess.run(x)"]
)
def test_what_does_not_is_left_alone(line: str) -> None:
    assert list(executing(line)) == []


# -- hostile files -------------------------------------------------------------------------------------------


def refused(kind: type[Exception], load: Callable[[], object]) -> None:
    """Assert that loading is refused as unusable, without taking more memory than `MOST`."""
    tracemalloc.start()
    try:
        with pytest.raises(kind):
            load()
        assert tracemalloc.get_traced_memory()[1] < MOST
    finally:
        tracemalloc.stop()


def tensors(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file with a header of one's own."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(raw) if length is None else length).to_bytes(8, "little") + raw + data


HUGE = 1 << 40
BAD_TENSORS = {
    "empty": b"",
    "short": b"\x01\x00",
    "a header longer than the file": tensors({}, length=HUGE),
    "a header longer than a number": tensors({}, length=(1 << 64) - 1),
    "a header that is no JSON": tensors(b"\x80\x04\x95pickle"),
    "a header that nests": tensors(b"[" * 100_000),
    "a tensor larger than the file": tensors(
        {"a": {"dtype": "F32", "shape": [HUGE], "data_offsets": [0, 4 * HUGE]}}
    ),
    "a shape of another size": tensors(
        {"a": {"dtype": "F32", "shape": [HUGE], "data_offsets": [0, 4]}}, b"0000"
    ),
    "a shape that overflows": tensors(
        {"a": {"dtype": "F32", "shape": [1 << 62, 4], "data_offsets": [0, 4]}}, b"0000"
    ),
    "tensors that overlap": tensors(
        {name: {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]} for name in "ab"}, b"0000"
    ),
    "a tensor of a type that numpy has not": tensors(
        {"a": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}, b"0000"
    ),
    "a pickle": b"\x80\x04\x95\x1a\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94\x93\x94.",
}


@pytest.mark.parametrize("name", BAD_TENSORS)
@pytest.mark.parametrize(("load", "kind"), [(Model.load, CheckpointError), (KnownFor.load, StoreRefused)])
def test_tensors_that_are_none_are_refused(
    load: Callable[[Path], object], kind: type[Exception], name: str, tmp_path: Path
) -> None:
    file = tmp_path / "file.safetensors"
    file.write_bytes(BAD_TENSORS[name])
    refused(kind, lambda: load(file))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trainer's checkpoint, which is a model's as well."""
    model = Model.day_zero(seed=5)
    trainer = OnlineTrainer.begin(model, TrainerConfig(), 0)
    trainer.producers.write(model.encode_producers(some_rows(80, seed=6)).features)
    model.ids.used[:] = 1
    model.ids.touch(model.ids.rows_of(["a9"]), 0)
    model.ids.expire(before=1)
    file = tmp_path_factory.mktemp("trained") / "trained.safetensors"
    trainer.save(file)
    return file


def with_header(file: Path, out: Path, **changed: object) -> Path:
    saved = checkpoint.read(file, SCHEMA.hash)
    raw = {**msgspec.to_builtins(saved.header), **changed}
    out.write_bytes(save(saved.arrays, {"kithstream": json.dumps(raw)}))
    return out


@pytest.mark.parametrize(
    "changed",
    [
        {"tower": {"dim": HUGE}},
        {"tower": {"dim": 1 << 20}},
        {"tower": {"dim": -1}},
        {"tower": {"dim": 0}},
        {"tower": {"dim": "144"}},
        {"tower": {}, "seed": -1},
        {"seed": 1 << 70},
        {"step": -1},
        {"format": 2},
        {"lineage": None},
    ],
)
def test_a_header_that_cannot_be_is_refused(
    trained: Path, tmp_path: Path, changed: dict[str, object]
) -> None:
    assert Model.load(with_header(trained, tmp_path / "same")).step == 0
    file = with_header(trained, tmp_path / "other", **changed)
    refused(CheckpointError, lambda: Model.load(file))
    refused(CheckpointError, lambda: checkpoint.read_header(file, SCHEMA.hash))


def filled(name: str, value: int) -> Callable[[dict[str, checkpoint.Array]], None]:
    def change(arrays: dict[str, checkpoint.Array]) -> None:
        arrays[name] = np.full_like(arrays[name], value)

    return change


def alternating(arrays: dict[str, checkpoint.Array]) -> None:
    """Ends of names that go back: each would be as long as all together."""
    arrays["ids.names"] = np.full(1 << 20, ord("x"), np.uint8)
    arrays["ids.ends"] = np.resize(np.array([1 << 20, 0], np.int64), len(arrays["ids.ends"]) // 2 * 2)
    arrays["ids.ends"][-1] = 1 << 20


def text(name: str, value: bytes) -> Callable[[dict[str, checkpoint.Array]], None]:
    def change(arrays: dict[str, checkpoint.Array]) -> None:
        arrays[name] = np.frombuffer(value, np.uint8)

    return change


def state(**changed: object) -> Callable[[dict[str, checkpoint.Array]], None]:
    def change(arrays: dict[str, checkpoint.Array]) -> None:
        found = {**json.loads(arrays["rng"].tobytes()), **changed}
        arrays["rng"] = np.frombuffer(json.dumps(found).encode(), np.uint8)

    return change


CHANGES = {
    "a row that would grow a table": filled("producers.rows", 2**31 - 1),
    "a row before the first": filled("producers.rows", -5),
    "names that go back": alternating,
    "names that are no text": filled("ids.names", 0xFF),
    "random numbers that are no JSON": text("rng", b"\x80\x04"),
    "random numbers that are a list": text("rng", b"[]"),
    "random numbers of another kind": state(bit_generator="MT19937"),
    "random numbers too large": state(state={"state": 1 << 200, "inc": 1}),
    "random numbers without a state": state(state={}),
}


@pytest.mark.parametrize("name", CHANGES)
def test_content_that_cannot_be_is_refused(trained: Path, tmp_path: Path, name: str) -> None:
    saved = checkpoint.read(trained, SCHEMA.hash)
    arrays = {key: np.array(array) for key, array in saved.arrays.items()}
    CHANGES[name](arrays)
    file = tmp_path / "changed"
    checkpoint.write(file, saved.header, arrays)
    refused(CheckpointError, lambda: OnlineTrainer.load(file, TrainerConfig()))


def test_recent_accounts_and_free_rows_are_those_of_the_checkpoint(trained: Path, tmp_path: Path) -> None:
    saved = checkpoint.read(trained, SCHEMA.hash)
    file = tmp_path / "changed"
    for name, kind in (("recent.targets", np.int32), ("recent.sources", np.int32), ("ids.free", np.int64)):
        for value in (2**31 - 1, -1, len(saved.arrays["ids.ends"])):
            checkpoint.write(file, saved.header, {**saved.arrays, name: np.array([value], kind)})
            refused(CheckpointError, lambda: OnlineTrainer.load(file, TrainerConfig()))


def test_random_damage_is_refused_or_bounded(trained: Path, tmp_path: Path) -> None:
    """Weights carry no checksum, so damage there may load; nothing else happens."""
    raw, rng, file = trained.read_bytes(), np.random.default_rng(11), tmp_path / "damaged"
    head = 8 + int.from_bytes(raw[:8], "little")
    for number in range(120):
        damaged = bytearray(raw)
        for at in rng.integers(0, head if number % 2 else len(raw), 3).tolist():
            damaged[at] ^= int(rng.integers(1, 256))
        if number % 5 == 0:
            del damaged[int(rng.integers(0, len(raw))) :]
        file.write_bytes(damaged)
        tracemalloc.start()
        try:
            OnlineTrainer.load(file, TrainerConfig())
        except CheckpointError:
            pass
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert peak < MOST


@pytest.mark.parametrize(
    "changed",
    [
        {"hashes": np.zeros((2, 2), np.uint64)},
        {"hashes": np.array(3, np.uint64)},
        {"hashes": np.array([5, 4, 3], np.uint64)},
        {"communities": np.array([0, 1, 7], np.int32)},
        {"communities": np.array([0, 1, -7], np.int32)},
        {"norms": np.zeros(0, np.float32)},
        {"more": np.zeros(1, np.float32)},
    ],
)
def test_communities_that_cannot_be_are_refused(tmp_path: Path, changed: dict[str, checkpoint.Array]) -> None:
    known = KnownFor(np.array([1, 2, 3], np.uint64), np.array([0, 1, 1], np.int32), np.ones(2, np.float32))
    arrays = {"hashes": known.hashes, "communities": known.communities, "norms": known.norms}
    file = tmp_path / "known"
    for written, sound in ((arrays, True), ({**arrays, **changed}, False)):
        made = KnownFor(*(written[name] for name in arrays)).version  # whoever writes it can name it
        file.write_bytes(save(written, {MARK: f"1 {made}"}))
        if sound:
            assert KnownFor.load(file).version == known.version
        else:
            refused(StoreRefused, lambda: KnownFor.load(file))


# -- snapshots -----------------------------------------------------------------------------------------------


@pytest.fixture
def snapshot(tmp_path: Path) -> tuple[Path, IndexConfig]:
    config = IndexConfig(dim=8)
    index = LiveIndex(config)
    vectors = np.random.default_rng(3).normal(size=(50, 8)).astype(np.float32)
    index.upsert([f"a{n}" for n in range(50)], vectors, sequence=1)
    index.save(tmp_path, {})
    return tmp_path, config


def resigned(directory: Path, change: Callable[[Path, dict[str, object]], None]) -> None:
    """Change a snapshot and name it by its new checksums, as whoever may write there can."""
    path = directory / (directory / "CURRENT").read_text()
    meta = json.loads((path / "meta.json").read_text())
    change(path, meta)
    for file in meta["files"]:
        if (path / file).is_file():
            raw = (path / file).read_bytes()
            meta["files"][file] = f"{len(raw)}:{hashlib.sha256(raw).hexdigest()}"
    text = json.dumps(meta).encode()
    (path / "meta.json").write_bytes(text)
    final = path.with_name(f"{path.name.partition('-')[0]}-{hashlib.sha256(text).hexdigest()[:32]}")
    path.rename(final)
    (directory / "CURRENT").write_text(final.name)


def npy(shape: str, kind: str = "<f4", data: bytes = b"") -> bytes:
    head = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    head += b" " * (-(len(head) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head + data


def writing(file: str, raw: bytes) -> Callable[[Path, dict[str, object]], None]:
    return lambda path, _: (path / file).write_bytes(raw) and None


SNAPSHOTS = {
    "a shape larger than its file": writing("vectors.npy", npy(f"({HUGE}, 8)")),
    "a shape that is negative": writing("vectors.npy", npy("(-1, 8)")),
    "objects": writing("vectors.npy", npy("(50, 8)", "|O", b"\x80\x04.")),
    "a header that is a program": writing("vectors.npy", npy("(__import__('os').getpid(), 8)")),
    "a header longer than its file": writing("labels.npy", b"\x93NUMPY\x02\x00\xff\xff\xff\x7f{"),
    "another type": writing("alive.npy", npy("(50,)", "<f8", b"\0" * 400)),
    "no array": writing("hot.npy", b""),
    "names that nest": writing("ids.json", b"[" * 100_000),
    "no format": lambda _, meta: meta.pop("format"),
    "a shape with other fields": lambda _, meta: meta.update(shape={"nonsense": 1}),
    "files that are a list": lambda _, meta: meta.update(files={}, degree="x", shape=7),
}


@pytest.mark.parametrize("name", SNAPSHOTS)
def test_a_snapshot_that_cannot_be_is_refused(snapshot: tuple[Path, IndexConfig], name: str) -> None:
    directory, config = snapshot
    resigned(directory, lambda *_: None)
    restored, _ = LiveIndex.restore(directory, config)
    assert len(restored) == 50
    resigned(directory, SNAPSHOTS[name])
    refused(SnapshotRefused, lambda: LiveIndex.restore(directory, config))


# -- files of follows and examples ---------------------------------------------------------------------------


def damaged(tmp_path: Path) -> Iterator[Path]:
    """Parquet with a footer that lies, that is cut short, and with random damage."""
    whole = tmp_path / "follows.parquet"
    names = [f"u{n}" for n in range(3000)]
    pq.write_table(pa.table({"source": names, "target": names[::-1], "time": list(range(3000))}), whole)
    raw, rng = whole.read_bytes(), np.random.default_rng(7)
    for number in range(150):
        changed = bytearray(raw)
        first = len(raw) - 600 if number % 2 else 0  # in the footer, or anywhere
        for at in rng.integers(first, len(raw), 4).tolist():
            changed[at] ^= int(rng.integers(1, 256))
        if number % 10 == 0:
            del changed[int(rng.integers(0, len(raw))) :]
        whole.write_bytes(changed)
        yield whole
    for length in (b"\xff\xff\xff\x7f", b"\xff\xff\xff\xff", b"\0\0\0\0"):
        whole.write_bytes(raw[:-8] + length + raw[-4:])
        yield whole


def test_damaged_parquet_is_refused_or_read_and_takes_no_more_than_it_holds(tmp_path: Path) -> None:
    before = pa.default_memory_pool().max_memory()
    refusals = 0
    for file in damaged(tmp_path):
        for read in (
            lambda file=file: list(graph._parquet(str(file), 0, 1000)),
            lambda file=file: naming(file, "u1"),
        ):
            try:
                read()
            except REFUSED:
                refusals += 1
    assert refusals > 100
    assert pa.default_memory_pool().max_memory() < before + MOST
