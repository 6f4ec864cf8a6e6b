from pathlib import Path

import msgspec
import numpy as np
import pytest
from tests.models.worlds import some_rows

from kithstream.models import checkpoint
from kithstream.models.checkpoint import CheckpointError, DamageError, SchemaError
from kithstream.models.features import SCHEMA
from kithstream.models.lineage import DIM
from kithstream.models.model import Model

WORLD = some_rows(80, seed=6)


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Model, Path]:
    model = Model.day_zero(seed=5)
    model.encode_producers(WORLD)
    model.ids.target[5] = 1.5
    model.ids.used[:] = 1
    model.ids.touch(model.ids.rows_of(["a9"]), 0)
    model.ids.expire(before=1)
    model.step = 42
    path = tmp_path / "model.safetensors"
    model.save(path)
    return model, path


def test_a_round_trip_is_equal_in_every_bit(saved: tuple[Model, Path], tmp_path: Path) -> None:
    model, path = saved
    loaded = Model.load(path)
    assert (loaded.lineage, loaded.step, loaded.schema_hash) == (model.lineage, 42, SCHEMA.hash)
    again = tmp_path / "again.safetensors"
    loaded.save(again)
    assert again.read_bytes() == path.read_bytes()
    np.testing.assert_array_equal(
        loaded.encode_producers(WORLD).vectors, model.encode_producers(WORLD).vectors
    )
    np.testing.assert_array_equal(
        loaded.encode_consumers(WORLD).vectors, model.encode_consumers(WORLD).vectors
    )


def test_another_schema_is_refused_with_both_hashes(saved: tuple[Model, Path]) -> None:
    model, path = saved
    header = msgspec.structs.replace(model.header(), schema_hash="00112233aabbccdd")
    checkpoint.write(path, header, model.arrays())
    with pytest.raises(SchemaError, match=f"00112233aabbccdd.*{SCHEMA.hash}"):
        Model.load(path)


def test_every_missing_array_is_refused_by_name(saved: tuple[Model, Path]) -> None:
    model, path = saved
    for name in model.arrays():
        arrays = {other: a for other, a in model.arrays().items() if other != name}
        checkpoint.write(path, model.header(), arrays)
        with pytest.raises(DamageError, match=name):
            Model.load(path)


def test_a_wrong_shape_is_refused(saved: tuple[Model, Path]) -> None:
    model, path = saved
    checkpoint.write(path, model.header(), {**model.arrays(), "tower.age": np.zeros(3, np.float32)})
    with pytest.raises(DamageError, match=r"tower\.age is float32\[3\], expected float32\[24\]"):
        Model.load(path)


def test_a_cut_or_foreign_file_is_refused(saved: tuple[Model, Path]) -> None:
    _, path = saved
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"hello", whole[:100]):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError):
            Model.load(path)


def test_another_format_is_refused(saved: tuple[Model, Path]) -> None:
    model, path = saved
    checkpoint.write(path, msgspec.structs.replace(model.header(), format=2), model.arrays())
    with pytest.raises(SchemaError, match="format 2"):
        Model.load(path)


def test_a_failed_write_leaves_the_old_file(saved: tuple[Model, Path]) -> None:
    model, path = saved
    before = path.read_bytes()
    path.with_name(path.name + ".tmp").mkdir()
    with pytest.raises(IsADirectoryError):
        model.save(path)
    assert path.read_bytes() == before


def test_the_header_names_lineage_step_and_writer(saved: tuple[Model, Path]) -> None:
    header = checkpoint.read(saved[1], SCHEMA.hash).header
    assert header.created_by.startswith("kithstream ")
    assert header.lineage == Model.day_zero(seed=5).lineage
    assert header.lineage != Model.day_zero(seed=6).lineage
    assert header.tower.dim == DIM
