from __future__ import annotations

import pytest

from kithstream.streams.engine.routing import Route, murmur2


@pytest.mark.parametrize(
    ("key", "hashed"),
    [  # values of Kafka's own UtilsTest
        (b"21", -973932308),
        (b"foobar", -790332482),
        (b"a-little-bit-long-string", -985981536),
        (b"a-little-bit-longer-string", -1486304829),
        (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
        (b"abc", 479470107),
    ],
)
def test_murmur2_is_kafkas(key: bytes, hashed: int) -> None:
    assert murmur2(key) == hashed & 0xFFFFFFFF


def test_a_route_is_the_same_after_forgetting() -> None:
    route, small = Route(7), Route(7, remembered=2)
    assert all(route[f"u{n}"] == small[f"u{n}"] == small[f"u{n}"] for n in range(100))
    assert len(small) <= 2
