from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from kithstream.models import checkpoint
from kithstream.models.checkpoint import DamageError, SchemaError
from kithstream.models.lineage import lineage_of
from kithstream.models.model import Model


def test_the_day_zero_model_has_the_lineage_of_its_seed() -> None:
    assert lineage_of("", 5) == Model.day_zero(5).lineage
    assert lineage_of("", 5) != lineage_of("", 6)


def test_a_checkpoint_has_its_own_lineage_whatever_the_seed(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    Model.day_zero(5, lineage="abc").save(path)
    assert lineage_of(str(path), 6) == "abc"


def test_what_cannot_be_loaded_has_no_lineage(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"no model")
    with pytest.raises(DamageError):
        lineage_of(str(path), 0)
    model = Model.day_zero(0)
    checkpoint.write(path, msgspec.structs.replace(model.header(), schema_hash="other"), model.arrays())
    with pytest.raises(SchemaError, match="other"):
        lineage_of(str(path), 0)
    with pytest.raises(FileNotFoundError):
        lineage_of(str(tmp_path / "missing"), 0)


def test_the_day_zero_lineage_needs_no_torch() -> None:
    code = "import sys; from kithstream.models.lineage import lineage_of; lineage_of('', 0)\n"
    code += "print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
