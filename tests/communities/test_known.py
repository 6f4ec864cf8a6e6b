from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from kithstream.streams.communities.known import MARK, KnownFor, hash_of
from kithstream.streams.errors import StoreRefused

KNOWN = st.dictionaries(st.text(min_size=1, max_size=8), st.integers(0, 6), max_size=30)
NORMS = np.arange(7, dtype=np.float32)


@given(KNOWN, st.lists(st.text(min_size=1, max_size=8), max_size=10))
def test_a_version_says_what_it_was_made_of(known: dict[str, int], others: list[str]) -> None:
    version = KnownFor.of_accounts(known, NORMS)
    assert version.of(list(known)).tolist() == list(known.values())
    assert version.of(others).tolist() == [known.get(account, -1) for account in others]
    assert version.hashes.tolist() == sorted(map(hash_of, known))
    assert (len(version), version.count) == (len(known), 7)


@given(KNOWN)
def test_a_version_has_one_name_for_one_content(known: dict[str, int]) -> None:
    version = KnownFor.of_accounts(known, NORMS)
    backwards = KnownFor.of_accounts(dict(reversed(known.items())), NORMS)
    assert backwards.version == version.version
    assert KnownFor.of_accounts(known | {"new one": 1}, NORMS).version != version.version
    assert KnownFor.of_accounts(known, NORMS + 1).version != version.version


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    version = KnownFor.of_accounts({"ann": 2, "bob": 0, "cyd": 6}, NORMS)
    version.save(tmp_path / "known")
    found = KnownFor.load(tmp_path / "known")
    assert found.version == version.version
    assert found.of(["cyd", "ann", "nobody", "bob"]).tolist() == [6, 2, -1, 0]
    assert found.norms.tolist() == NORMS.tolist()
    assert [file.name for file in tmp_path.iterdir()] == ["known"]


def test_a_version_of_nobody_is_one(tmp_path: Path) -> None:
    KnownFor.of_accounts({}, np.zeros(0, np.float32)).save(tmp_path / "known")
    found = KnownFor.load(tmp_path / "known")
    assert (len(found), found.count, found.of(["ann"]).tolist()) == (0, 0, [-1])


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_a_flipped_byte_is_refused(tmp_path_factory: pytest.TempPathFactory, at: int, flip: int) -> None:
    file = tmp_path_factory.mktemp("known") / "known"
    version = KnownFor.of_accounts({f"u{n}": n % 7 for n in range(20)}, NORMS)
    version.save(file)
    raw = bytearray(file.read_bytes())
    raw[at % len(raw)] ^= flip
    file.write_bytes(raw)
    try:
        found = KnownFor.load(file)
    except StoreRefused:
        return
    assert found.version == version.version  # a space in the header, which says nothing
    assert found.of(["u3", "u13", "x"]).tolist() == [3, 6, -1]


@pytest.mark.parametrize("length", [0, 5, 100, -1])
def test_a_cut_file_is_refused(tmp_path: Path, length: int) -> None:
    file = tmp_path / "known"
    KnownFor.of_accounts({"ann": 1}, NORMS).save(file)
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(StoreRefused, match="holds no communities"):
        KnownFor.load(file)


def test_other_content_under_the_name_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "known"
    version = KnownFor.of_accounts({"ann": 1, "bob": 2}, NORMS)
    version.save(file)
    arrays = load_file(file)
    meta = {MARK: f"1 {version.version}"}
    for damage in (
        {"hashes": arrays["hashes"][::-1].copy()},
        {"communities": arrays["communities"] + 7},
        {"communities": np.array([1, 1], np.int32)},
        {"communities": arrays["communities"].astype(np.int64)},
        {"norms": NORMS * 2},
    ):
        save_file(arrays | damage, file, meta)
        with pytest.raises(StoreRefused, match="is damaged"):
            KnownFor.load(file)
    save_file(arrays, file, {MARK: f"2 {version.version}"})
    with pytest.raises(StoreRefused, match="of format 1"):
        KnownFor.load(file)
    with pytest.raises(StoreRefused, match="holds no communities"):
        KnownFor.load(tmp_path / "missing")
