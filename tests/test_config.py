from __future__ import annotations

from pathlib import Path

import pytest

from kithstream.index.config import IndexConfig
from kithstream.models.model import Model
from kithstream.streams.config import Config, IndexSection, load
from kithstream.streams.serve.vectors import index_config


def test_each_source_overrides_the_one_before(tmp_path: Path) -> None:
    file = tmp_path / "k.toml"
    file.write_text("[index]\nef = 1\nhot_capacity = 2\nexact_rows = 3\n")
    config = load(
        file,
        environment={"KITHSTREAM_INDEX__EF": "10", "KITHSTREAM_INDEX__HOT_CAPACITY": "20"},
        options=["index.ef=100"],
    )
    assert (config.index.ef, config.index.hot_capacity, config.index.exact_rows) == (100, 20, 3)
    assert load(None, environment={}) == Config()


@pytest.mark.parametrize("option", ["index.eff=1", "indexx.ef=1", "index.ef=abc", "index.ef", "ef=1"])
def test_a_wrong_option_is_named(option: str) -> None:
    with pytest.raises(ValueError, match=r"ef|indexx|option"):
        load(None, environment={}, options=[option])


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "k.toml"
    file.write_text("[index\n")
    with pytest.raises(ValueError, match=r"k\.toml"):
        load(file, environment={})


def test_an_unknown_nominator_is_refused_with_its_place(tmp_path: Path) -> None:
    file = tmp_path / "k.toml"
    file.write_text('[ranking]\nnominators = ["popular", "friends"]\n')
    with pytest.raises(ValueError, match=r"'friends' - at `\$\.ranking\.nominators\[1\]`"):
        load(file, environment={})


def test_an_index_of_its_own_is_as_a_server_has_it() -> None:
    model = Model.day_zero(0)
    assert index_config(model, IndexSection()) == IndexConfig(dim=model.dim, bound=model.norm_bound)
