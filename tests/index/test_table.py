from __future__ import annotations

import numpy as np
import pytest

from kithstream.index.score import norms
from kithstream.index.table import PAIR, RING, VectorTable


def write(table, names, value=1.0):
    rows = np.full((len(names), table.dim), value, np.float32)
    with table.lock:
        slots = table.place(names)
        table.write(slots, rows, norms(rows), None, 0)
        table.settle()
    return slots


def delete(table, names):
    with table.lock:
        slots = table.alive_slots(names)
        table.announce(slots)
        table.bury(slots)
        table.settle()


def test_growth_leaves_the_views_that_readers_hold():
    table = VectorTable(2, capacity=2)
    write(table, ["a", "b"], 1.0)
    before, mark = table.view, table.revision
    write(table, ["c"], 2.0)
    write(table, ["a"], 3.0)
    assert len(table.view.alive) == 4
    assert before.vectors[0].tolist() == [1, 1]
    assert table.view.vectors[0].tolist() == [3, 3]
    assert table.since(mark).tolist() == [2, 0]


def test_a_slot_that_no_graph_holds_is_given_again():
    table = VectorTable(2)
    (slot,) = write(table, ["a"])
    delete(table, ["a"])
    assert write(table, ["b"]) == [slot]
    assert table.names[slot] == "b"
    assert "a" not in table.slots


def test_a_slot_that_a_graph_holds_is_kept_for_its_id():
    table = VectorTable(2)
    (slot,) = write(table, ["a"])
    table.hold(np.array([slot]), PAIR)
    delete(table, ["a"])
    assert write(table, ["b"]) != [slot]
    assert table.slot("a") == -1
    assert write(table, ["a"]) == [slot]


def test_reclaimed_slots_are_announced():
    table = VectorTable(2)
    write(table, ["a", "b", "c"])
    table.hold(np.array([0, 1]), PAIR)
    delete(table, ["a"])
    mark = table.revision
    with table.lock:
        table.reclaim(0)
    assert table.since(mark).tolist() == [0]
    assert write(table, ["d"]) == [0]
    assert table.view.held[:3].tolist() == [0, 0, 0]


def test_a_write_in_progress_is_announced_and_not_yet_visible():
    table = VectorTable(2)
    mark = write(table, ["a"]) and table.revision
    with table.lock:
        table.place(["a"])
        assert table.revision == mark
        assert table.since(mark).tolist() == [0]
        table.settle()
    assert table.revision == mark + 1


def test_a_reader_that_fell_behind_the_ring_is_told():
    table = VectorTable(1)
    write(table, [f"{number}" for number in range(10)])
    mark = table.revision
    for start in range(0, RING, RING // 4):
        table.announce(list(range(start, start + RING // 4)))
    table.settle()
    assert sorted(table.since(mark).tolist()) == list(range(RING))
    table.announce([5])
    table.settle()
    assert table.since(mark) is None
    assert table.since(table.revision - 1).tolist() == [5]


def test_labels_are_counted():
    table = VectorTable(1)
    rows = np.ones((3, 1), np.float32)
    table.write(table.place(["a", "b", "c"]), rows, norms(rows), np.array([1, 1, 2], np.int32), 0)
    table.write(table.place(["a"]), rows[:1], norms(rows[:1]), np.array([2], np.int32), 0)
    table.settle()
    delete(table, ["c"])
    assert table.label_counts == {1: 1, 2: 1}
    assert table.alive == 2


def test_a_copy_is_of_one_revision():
    table = VectorTable(1, capacity=4)
    write(table, ["a", "b"], 1.0)
    copied = table.copy()
    table.lock.release()
    write(table, ["a"], 2.0)
    assert copied.vectors[:, 0].tolist() == [1, 1]
    assert copied.alive.tolist() == [True, True]


@pytest.mark.parametrize("names", [["a"], ["a", "b", "c"]])
def test_one_row_and_many_are_written_alike(names):
    table = VectorTable(3)
    write(table, names, 2.0)
    for name in names:
        slot = table.slot(name)
        assert table.view.vectors[slot].tolist() == [2, 2, 2]
        assert table.view.alive[slot]
    assert table.largest == pytest.approx(12**0.5)
