import doctest

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kithstream.models import ages
from kithstream.models.ages import next_tick


@given(st.integers(0, 10**9), st.integers(0, 10**7), st.sampled_from([1.5, 2.0, 4.0, 8.0]))
def test_the_next_tick_is_later_but_not_much(changed: int, age: int, ratio: float) -> None:
    due = next_tick(changed, changed + age, ratio)
    assert due > changed + age
    assert due - changed <= max(1, age * ratio + 1)


def test_a_row_costs_the_logarithm_of_its_age() -> None:
    now, encodes = 0, 0
    while now < 1 << 20:
        now = next_tick(0, now)
        encodes += 1
    assert encodes == 21


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="ratio is 1"):
        next_tick(0, 0, ratio=1.0)
    with pytest.raises(ValueError, match="before the change"):
        next_tick(5, 4)


def test_the_printed_example_holds() -> None:
    assert doctest.testmod(ages).failed == 0
