from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tests.models.worlds import nothing, some_rows, take

from kithstream.models.features import Rows
from kithstream.models.model import Model

MODEL = Model.day_zero(seed=3)
N = 150


def producers(rows: Rows) -> NDArray[np.float32]:
    return MODEL.encode_producers(rows).vectors


def consumers(rows: Rows) -> NDArray[np.float32]:
    return MODEL.encode_consumers(rows).vectors


WORLD = some_rows(N, seed=1, languages=(0, 1, 2))
BOTH = pytest.mark.parametrize("encode", [producers, consumers])
WHOLE = {producers: producers(WORLD), consumers: consumers(WORLD)}

Encode = Callable[[Rows], NDArray[np.float32]]


@BOTH
@settings(max_examples=40)
@given(data=st.data())
def test_any_split_and_any_order_give_equal_bits(encode: Encode, data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(N)))
    cuts = sorted(data.draw(st.lists(st.integers(0, N), max_size=4)))
    for start, stop in zip([0, *cuts], [*cuts, N], strict=True):
        part = order[start:stop]
        np.testing.assert_array_equal(encode(take(WORLD, part)), WHOLE[encode][part])


@BOTH
def test_one_row_and_a_thousand_give_equal_bits(encode: Encode) -> None:
    world = some_rows(1000, seed=2)
    whole = encode(world)
    for i in (0, 1, 17, 63, 64, 511, 999):
        np.testing.assert_array_equal(encode(take(world, [i])), whole[[i]])


@BOTH
def test_the_number_of_threads_changes_no_bit(encode: Encode) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        np.testing.assert_array_equal(encode(WORLD), WHOLE[encode])
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


@BOTH
def test_the_order_of_arrival_changes_no_bit(encode: Encode) -> None:
    other = Model.day_zero(seed=3)
    other.encode_producers(nothing([f"b{i}" for i in range(2000)]))
    other.encode_consumers(take(WORLD, range(N - 1, -1, -1)))
    again = other.encode_producers(WORLD) if encode is producers else other.encode_consumers(WORLD)
    np.testing.assert_array_equal(again.vectors, WHOLE[encode])


@BOTH
def test_vectors_are_float32_of_the_asked_size(encode: Encode) -> None:
    vectors = encode(WORLD)
    assert vectors.shape == (N, MODEL.dim)
    assert vectors.dtype == np.float32
    assert encode(take(WORLD, [])).shape == (0, MODEL.dim)


@BOTH
def test_an_account_with_nothing_gets_a_finite_vector_that_is_not_zero(encode: Encode) -> None:
    vectors = encode(nothing(["x", "y"]))
    assert np.isfinite(vectors).all()
    assert (np.abs(vectors).max(axis=1) > 0).all()


def test_no_producer_is_longer_than_the_bound() -> None:
    rows = some_rows(64, seed=5)
    rows = rows._replace(counts=rows.counts * np.float32(1e30))
    norms = np.linalg.norm(producers(rows), axis=1)
    assert norms.max() <= MODEL.norm_bound * 1.00001  # rounding of 128 squares in float32
    assert norms.max() > MODEL.norm_bound * 0.999


def test_a_matching_language_raises_the_score() -> None:
    asked = consumers(nothing(["u"], [7]))[0]
    same, other, unknown = producers(nothing(["v", "v", "v"], [7, 9, 0])) @ asked
    assert same > other
    assert same > unknown
    anyone = consumers(nothing(["u"], [0]))[0]
    scores = producers(nothing(["v", "v"], [7, 9])) @ anyone
    assert scores[0] == scores[1]


def test_who_follows_and_is_not_followed_back_is_first() -> None:
    world = nothing([f"a{i}" for i in range(300)])
    asks = nothing(["u"])._replace(unreciprocated=[["a17"]], followers=[["a17"]])
    asks.unreciprocated_ages[0, 0] = 60.0
    scores = producers(world) @ consumers(asks)[0]
    assert scores.argmax() == 17


def test_an_active_account_is_above_an_idle_one() -> None:
    world = nothing(["idle", "active"])
    world.counts[1] = 1.0
    world.counts[1, :, 2] = 0.0
    world.last[1] = 60.0
    scores = producers(world) @ consumers(nothing(["u"]))[0]
    assert scores[1] > scores[0] + 1.0


@pytest.mark.parametrize("group", [0, 1, 2])
@pytest.mark.parametrize("direction", [0, 1])
def test_every_group_of_counts_is_in_the_vector(group: int, direction: int) -> None:
    world = nothing(["v", "v"])
    world.counts[1, direction, group] = 3.0
    plain, counted = producers(world)
    assert (plain != counted).any()


def test_every_encode_returns_the_step() -> None:
    assert MODEL.encode_producers(WORLD).step == MODEL.encode_consumers(WORLD).step == MODEL.step == 0


def test_dim_too_small_is_refused() -> None:
    with pytest.raises(ValueError, match="dim is 60, the fixed blocks alone take 58"):
        Model.day_zero(seed=0, dim=60)


def test_another_dim_works() -> None:
    assert Model.day_zero(seed=0, dim=96).encode_producers(WORLD).vectors.shape == (N, 96)
