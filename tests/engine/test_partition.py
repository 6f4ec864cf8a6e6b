from __future__ import annotations

import gc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kithstream.streams.engine.partition import Fingerprints, ReadCache
from kithstream.streams.engine.shard import uncollected

KEYS = st.lists(st.sampled_from([bytes([65 + n]) for n in range(8)]), max_size=8)


@given(st.lists(st.tuples(st.booleans(), KEYS), max_size=20), st.integers(1, 5))
def test_asking_a_cache_for_many_is_asking_for_each(steps: list[tuple[bool, list[bytes]]], size: int) -> None:
    one: ReadCache[bytes] = ReadCache(size)
    many: ReadCache[bytes] = ReadCache(size)
    for put, keys in steps:
        if put:
            for key in keys:
                one.put(key, key * 2)
                many.put(key, key * 2)
            continue
        values = [(key, one.get(key)) for key in keys]
        found, missing = many.find(keys)
        assert found == {key: value for key, value in values if value is not None}
        assert missing == [key for key, value in values if value is None]


def test_fingerprints_are_of_salt_and_account_and_bounded() -> None:
    known, other = Fingerprints(b"salt" * 4, remembered=10), Fingerprints(b"tlas" * 4)
    names = [f"u{number}" for number in range(25)]
    first = [known[name] for name in names]
    assert len(known) <= 10
    assert [known[name] for name in names] == first
    assert len({*first, *(other[name] for name in names)}) == 50


@pytest.mark.parametrize("enabled", [True, False])
def test_the_collector_is_left_as_it_was(enabled: bool) -> None:
    was = gc.isenabled()
    try:
        (gc.enable if enabled else gc.disable)()
        with uncollected():
            assert not gc.isenabled()
        assert gc.isenabled() == enabled
    finally:
        (gc.enable if was else gc.disable)()
