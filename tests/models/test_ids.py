import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from kithstream.models.ids import NOBODY, IdVectors


def ids(seed: int = 0) -> IdVectors:
    return IdVectors(dim=8, signs=12, seed=seed, scale=0.1)


def vector(table: IdVectors, account: str) -> list[float]:
    row = table.rows_of([account])[0]
    return [*table.target[row], *table.source[row], *table.signs[row]]


@given(st.lists(st.text(min_size=1, max_size=5), unique=True, max_size=30), st.randoms())
def test_a_vector_does_not_depend_on_the_order_of_arrival(accounts: list[str], random: object) -> None:
    one, other = ids(), ids()
    one.rows_of(accounts)
    other.rows_of(sorted(accounts))
    for account in accounts:
        assert vector(one, account) == vector(other, account)


def test_accounts_and_seeds_differ() -> None:
    assert vector(ids(), "a") != vector(ids(), "b")
    assert vector(ids(0), "a") != vector(ids(1), "a")


def test_growth_keeps_what_was_learned() -> None:
    table = ids()
    table.target[table.rows_of(["a"])] = 5.0
    before = vector(table, "a")
    table.rows_of([str(i) for i in range(5000)])
    assert vector(table, "a") == before
    assert table.tables.target.shape == (table.capacity, 8)


def test_born_components_are_bounded_and_centred() -> None:
    table = ids()
    rows = table.rows_of([str(i) for i in range(4000)])
    assert np.abs(table.target[rows]).max() <= 0.1
    assert abs(table.target[rows].mean()) < 0.002  # 5 standard errors of 32,000 uniforms
    assert set(np.unique(table.signs[rows])) == {-1, 1}
    assert abs(table.signs[rows].mean()) < 0.025


def test_signs_of_different_accounts_are_nearly_orthogonal() -> None:
    table = IdVectors(dim=4, signs=64, seed=0, scale=0.1)
    signs = table.signs[table.rows_of([str(i) for i in range(500)])].astype(np.float64) / 8
    dots = (signs @ signs.T)[np.triu_indices(500, 1)]
    assert abs(dots.std() - 0.125) < 0.005  # 1 / sqrt(64)


def test_nobody_is_zero() -> None:
    table = ids()
    table.rows_of([str(i) for i in range(10)])
    assert not table.target[NOBODY].any()
    assert not table.signs[NOBODY].any()


def test_the_idle_expire_and_come_back_as_they_were_born() -> None:
    table = ids()
    born = vector(table, "idle")
    rows = table.rows_of(["idle", "busy"])
    table.target[rows] = 3.0
    table.touch(rows[:1], 10)
    table.touch(rows[1:], 20)
    freed = table.expire(before=20)
    assert freed == {"idle": rows[0]}
    assert "idle" not in table
    assert "busy" in table
    assert len(table) == 1
    assert table.name(int(rows[0])) is None
    assert vector(table, "idle") == born
    assert table.rows_of(["idle"]).tolist() == rows[:1].tolist()  # the row is used again
    assert vector(table, "busy")[0] == 3.0
