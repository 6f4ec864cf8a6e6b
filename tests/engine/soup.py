"""Random event soups for the property tests: few accounts, few times, every kind of collision."""

from __future__ import annotations

from hypothesis import strategies as st
from msgspec.structs import replace

from kithstream.streams.events.signals import BY_NAME, UNDO_OF
from kithstream.streams.events.wire import Event

START = 1_790_000_000_000_000
DAY = 86_400_000_000
ACCOUNTS = ("ann", "bob", "cyd", "dan", "eve", "fay", "gus")
FEW = ACCOUNTS[:3]  # few enough that most events meet an edge that is there already
# Two versions of what accounts are known for: with few others to follow, most must be, or nobody has an interest.
KNOWN = {"bob": 0, "cyd": 0, "dan": 0, "eve": 1, "fay": 1}
OTHERWISE = {"ann": 2, "dan": 1, "eve": 2, "fay": 1, "gus": 2}
_EDGES = tuple(BY_NAME) + tuple(UNDO_OF)
_BOOK = ("address_book", "address_book", "address_book_remove")
# Weighted to what decides most: follows and their undos, then everything else.
_SIGNALS = (
    ("follow",) * 24 + ("unfollow",) * 16 + ("block", "unblock", "like", "unlike") * 4 + _BOOK * 6 + _EDGES
)
_FOLLOWING = ("follow",) * 4 + ("unfollow",)
# Within six days, so that no order makes an event late beyond the horizon; some equal, some across midnight.
_TIMES = st.one_of(
    st.integers(0, 5).map(lambda day: START + day * DAY),
    st.integers(0, 6 * DAY - 1).map(lambda offset: START + offset),
    st.integers(0, 300).map(lambda minute: START + 6 * DAY - 1 - minute * 60_000_000),
)


@st.composite
def event(draw: st.DrawFn, following: bool = False) -> Event:
    """One event; ids are few, so duplicates and retractions of known and unknown events are common.

    With `following` most are follows of many accounts: interests come and go.
    """
    time = draw(_TIMES)
    number = draw(st.integers(0, 40))
    actor = draw(st.sampled_from(FEW))
    source = draw(st.sampled_from(("server", "server", "client")))
    kind = draw(st.integers(0, 19))
    if kind < 2:
        return Event(
            f"p{number}",
            "profile",
            actor,
            time,
            source=source,
            language=draw(st.sampled_from(("en", "de", "pt-BR", None))),
            country=draw(st.sampled_from(("US", "BR", None))),
            contacts=draw(st.sampled_from((True, True, False, None))),
        )
    if kind < 5:
        return Event(f"r{number}", "retract", actor, time, retracts=f"e{draw(st.integers(0, 40))}")
    target = draw(st.sampled_from([a for a in (ACCOUNTS if following else FEW) if a != actor]))
    signal = draw(st.sampled_from(_FOLLOWING if following else _SIGNALS))
    item = draw(st.sampled_from(("x", "y")))
    return Event(f"e{number}", signal, actor, time, target=target, item=item, source=source)


@st.composite
def soup(draw: st.DrawFn) -> list[Event]:
    """Events of which an id names one event only, some of them more than once."""
    by_id: dict[tuple[str, str], Event] = {}
    for e in draw(st.lists(event(draw(st.booleans())), min_size=draw(st.integers(0, 40)), max_size=60)):
        by_id.setdefault((e.actor, e.id), e)
    events = list(by_id.values())
    if events:
        events += draw(st.lists(st.sampled_from(events), max_size=10))
        for again in draw(st.lists(st.sampled_from(events), max_size=5)):  # stamped anew, on the same day
            time = again.time // DAY * DAY + draw(st.integers(0, DAY - 1))
            if time < START + 6 * DAY and again.signal != "retract":
                events.append(replace(again, time=time, source=draw(st.sampled_from(("server", "client")))))
    return draw(st.permutations(events))


@st.composite
def departing(draw: st.DrawFn) -> list[Event]:
    """A soup in which one or two of the accounts are deleted, anywhere in it."""
    events = draw(soup())
    for account in draw(st.lists(st.sampled_from(FEW), min_size=1, max_size=2, unique=True)):
        gone = Event("gone", "account_delete", account, START + draw(st.integers(0, 6 * DAY - 1)))
        events.insert(draw(st.integers(0, len(events))), gone)
    return events
