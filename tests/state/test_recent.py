from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kithstream.streams.state import recent
from kithstream.streams.state.recent import CAPACITY, READ

OPS = st.lists(st.tuples(st.booleans(), st.integers(0, 90)), max_size=300)


@given(OPS)
def test_the_newest_are_those_of_the_whole_ledger(ops: list[tuple[bool, int]]) -> None:
    present: set[int] = set()
    known = recent.Recent()
    for add, number in ops:
        if add and number not in present:
            present.add(number)
            known.add(number * 7 % 31, f"a{number}")
        elif not add and number in present:
            present.remove(number)
            if known.remove(number * 7 % 31, f"a{number}"):
                known = recent.newest((-(n * 7 % 31), f"a{n}") for n in present)
        want = sorted((-(n * 7 % 31), f"a{n}") for n in present)
        assert known.entries[:READ] == want[:READ]
        assert len(known.entries) <= CAPACITY
        assert recent.load(recent.dump(known)) == known
