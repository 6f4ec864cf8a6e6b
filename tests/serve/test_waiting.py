"""Follows wait for one another before the model learns from them: while events come, and never for long."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from msgspec import structs
from soup import ACCOUNTS, DAY, START

from kithstream.streams.config import Config, IndexSection, ModelConfig
from kithstream.streams.events.wire import Event
from kithstream.streams.serve import candidates
from kithstream.streams.serve.embedded import Embedded

PLAIN = Config(index=IndexSection(background=False))
CROWD = [
    Event(f"{a}>{b}", "follow", a, START + 6 * DAY, target=b)
    for a in ACCOUNTS
    for b in ACCOUNTS[:3]
    if a != b
]


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Callable[..., Embedded]]:
    live: list[Embedded] = []

    def one_more(config: Config = PLAIN) -> Embedded:
        live.append(Embedded(tmp_path, config, clock=lambda: START + 7 * DAY))
        return live[-1]

    yield one_more
    for left in live:
        left.close()


def crowded(live: Embedded) -> Embedded:
    live.publish(CROWD)
    live.catch_up()
    return live


def more(number: int, signal: str = "follow") -> Event:
    """Somebody new follows an account that is known."""
    return Event(f"more {number}", signal, f"new{number}", START + 6 * DAY, target=ACCOUNTS[0])


def test_follows_wait_while_events_come(opened: Callable[..., Embedded]) -> None:
    live = crowded(opened())
    chain, step = live.chain, live.chain.model.step
    assert step > 0
    for number in range(5):
        live.publish([more(number)])
        assert live.pump(gather=True).learned == 0
    assert (chain.captured, chain.model.step) == (5, step)
    before = chain.index.vector(ACCOUNTS[0])
    assert live.pump(gather=True).learned == 5
    assert (chain.captured, chain.model.step) == (0, step + 1)
    assert not np.array_equal(chain.index.vector(ACCOUNTS[0]), before)  # whom it is about is encoded again


def test_they_do_not_wait_where_nobody_does(opened: Callable[..., Embedded]) -> None:
    """Nor does one that comes after a pause: what is visible then stays as it is."""
    live = opened()
    for number in range(3):
        live.publish([more(number)])
        assert live.pump().learned == 1
    assert live.pump(gather=True).records == 0
    live.publish([more(3)])
    assert live.pump(gather=True).learned == 1
    live.publish([more(4)])
    assert live.pump(gather=True).learned == 0


def test_enough_of_them_wait_no_longer(opened: Callable[..., Embedded]) -> None:
    live = crowded(opened(structs.replace(PLAIN, model=ModelConfig(example_batch=4))))
    learned = []
    for number in range(8):
        live.publish([more(number)])
        learned.append(live.pump(gather=True).learned)
    assert learned == [0, 0, 0, 4] * 2


def test_much_else_ends_their_wait(opened: Callable[..., Embedded], monkeypatch: pytest.MonkeyPatch) -> None:
    live = crowded(opened())
    monkeypatch.setattr(candidates, "CHANGES", 3)
    live.publish([more(0)])
    assert live.pump(gather=True).learned == 0
    others = [more(number, "like") for number in range(1, 6)]
    live.publish([structs.replace(like, item="song") for like in others])
    assert live.pump(gather=True).learned == 1


def test_what_waits_is_learned_before_an_account_is_forgotten(opened: Callable[..., Embedded]) -> None:
    live = crowded(opened())
    step = live.chain.model.step
    live.publish([more(1), more(2)])
    assert live.pump(gather=True).learned == 0
    live.publish([Event("gone", "account_delete", "new1", START + 6 * DAY)])
    assert live.pump(gather=True).learned == 2
    assert live.chain.captured == 0
    assert live.chain.model.step > step
    names = live.chain.model.ids.names
    assert "new1" not in names
    assert "new2" in names


def test_what_waits_is_saved_when_it_is_closed(opened: Callable[..., Embedded]) -> None:
    live = crowded(opened())
    step = live.chain.model.step
    live.publish([more(1)])
    assert live.pump(gather=True).learned == 0
    live.close()
    again = opened()
    assert again.chain.model.step == step + 1
    assert again.chain.captured == 0


def test_events_do_not_wait_until_files_are_rewritten(
    opened: Callable[..., Embedded], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a deletion leaves in files goes beside folding, and is gone when the runtime is closed."""
    live = crowded(opened())
    real, may, begun = live.engine.compact, threading.Event(), threading.Event()

    def slowly() -> int:
        begun.set()
        assert may.wait(60)
        return real()

    monkeypatch.setattr(live.engine, "compact", slowly)
    live.start()
    live.publish([Event("gone", "account_delete", ACCOUNTS[-1], START + 6 * DAY)])
    assert begun.wait(60)
    token = live.publish([more(1)])
    live.candidates(ACCOUNTS[0], after=token, deadline=60.0)  # raises NotYet
    assert any(partition.uncompacted for partition in live.engine.partitions)
    may.set()
    live.close()
    assert not any(partition.uncompacted for partition in live.engine.partitions)


def test_what_is_wrong_with_rewriting_ends_the_folding(
    opened: Callable[..., Embedded], monkeypatch: pytest.MonkeyPatch
) -> None:
    live = crowded(opened())

    def full() -> int:
        raise OSError("no space left")

    monkeypatch.setattr(live.engine, "compact", full)
    live.start()
    live.publish([Event("gone", "account_delete", ACCOUNTS[-1], START + 6 * DAY)])

    def go_on() -> None:
        for number in range(10_000):
            live.candidates(ACCOUNTS[0], after=live.publish([more(number)]), deadline=60.0)

    with pytest.raises(RuntimeError, match="folding has stopped"):
        go_on()
    assert live.failed
