"""What is told of candidates goes through its bytes unchanged."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from kithstream.streams.serve.marks import COMMUNITIES, SIZE, Marks, pack, unpack

_NUMBERS = st.floats(allow_nan=False)
_PLACES = st.integers(-1, 2**31 - 2)


@st.composite
def marked(draw: st.DrawFn) -> Marks:
    n = draw(st.integers(0, 4))
    return Marks(
        draw(arrays.arrays(np.float64, (n, 2, 7), elements=_NUMBERS)),
        draw(arrays.arrays(np.float64, (n, 2), elements=_NUMBERS)),
        draw(arrays.arrays(np.float64, (n, 3), elements=_NUMBERS)),
        draw(arrays.arrays(np.int64, (n, 3), elements=st.integers(0, 2**32 - 1))),
        draw(arrays.arrays(np.int32, n, elements=st.integers(0, 2**31 - 1))),
        draw(arrays.arrays(np.int32, n, elements=_PLACES)),
        draw(arrays.arrays(np.int32, (n, COMMUNITIES), elements=_PLACES, fill=st.just(-1))),
        draw(arrays.arrays(np.float32, (n, COMMUNITIES), elements=st.floats(0, 1, width=32))),
    )


@given(marked())
def test_marks_go_through_their_bytes_unchanged(told: Marks) -> None:
    packed = pack(told)
    assert all(len(raw) <= SIZE for raw in packed)
    for name, values in unpack(packed)._asdict().items():
        given = getattr(told, name)
        assert values.dtype == given.dtype
        np.testing.assert_array_equal(values, given, err_msg=name)
