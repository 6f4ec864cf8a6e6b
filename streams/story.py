"""What a person sees of the runtime: a few accounts, what happens to them, how candidates move at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final

from kithstream.streams.serve.answers import Answer
from kithstream.streams.serve.embedded import Embedded

SHOWN: Final = 5  # candidates on the screen, of the 20 that are asked for
_WIDTH: Final = 52

Write = Callable[[str], None]
Told = Callable[[Answer, str], None]  # an answer, and the token of everything that may be in it


class Story:
    """Plays scenes on a started runtime whose clock stands still and whose model does not learn.

    So what changes between two answers is what the events did, and nothing else.
    """

    def __init__(self, live: Embedded, write: Write, told: Told) -> None:
        self.answered: list[float] = []  # milliseconds from publishing to the answer
        self.faults: list[str] = []  # what did not come out as promised
        self._live, self._write, self._told = live, write, told
        self._events = 0

    @property
    def events(self) -> int:
        """Events published so far."""
        return self._events

    def ask(self, account: str) -> Answer:
        """Ask from everything published."""
        answer = self._live.candidates(account)
        self._told(answer, answer.token)
        return answer

    def tell(self, account: str, *events: dict[str, object]) -> tuple[Answer, float]:
        """Publish events and ask with their token; return the answer and the milliseconds both took."""
        began = time.perf_counter()
        token = self._live.publish(events)
        answer = self._live.candidates(account, after=token, deadline=30.0)
        took = (time.perf_counter() - began) * 1e3
        self._events += len(events)
        self.answered.append(took)
        self._told(answer, answer.token)
        return answer, took

    def play(self, accounts: Sequence[str]) -> None:
        """Play every scene; needs three accounts with candidates."""
        first, second, third = accounts[:3]
        for account in (first, second, third):
            self._introduce(account)
        self._follow(first)
        self._block(first)
        self._newcomer("newcomer", second)
        self._undo(third)

    def _introduce(self, account: str) -> None:
        answer = self.ask(account)
        self._write("")
        self._write(f"Whom should {account} follow?")
        for place, candidate in enumerate(answer.candidates[:SHOWN], 1):
            reasons = ", ".join(candidate.reasons) or "its vector is close"
            self._write(f"  {place}  {candidate.account:<12} {candidate.score:6.2f}  {reasons}")

    def _follow(self, account: str) -> None:
        before = self.ask(account)
        chosen = before.candidates[0].account
        after, took = self.tell(account, {"signal": "follow", "actor": account, "target": chosen})
        self._compare(f"{account} follows {chosen}, its first candidate.", took, before, after)
        self._promise(chosen not in _names(after), f"{chosen} is gone, others move up")

    def _block(self, account: str) -> None:
        before = self.ask(account)
        chosen = before.candidates[0].account
        after, took = self.tell(account, {"signal": "block", "actor": chosen, "target": account})
        self._compare(f"{chosen} blocks {account}.", took, before, after)
        self._promise(chosen not in _names(after), f"{chosen} is gone though {account} did nothing")

    def _newcomer(self, account: str, like: str) -> None:
        """A new account asks, then follows the first candidate of somebody else."""
        before = self.ask(account)
        chosen = self.ask(like).candidates[0].account
        after, took = self.tell(account, {"signal": "follow", "actor": account, "target": chosen})
        self._compare(f"{account} is unknown, and follows {chosen}: its first event.", took, before, after)
        moved = sum(a != b for a, b in zip(_names(before), _names(after), strict=False))
        self._promise(chosen not in _names(after), f"{moved} of {len(_names(after))} places changed")

    def _undo(self, account: str) -> None:
        before = self.ask(account)
        chosen = before.candidates[0].account
        names = {"follow": f"story.follow.{account}", "unfollow": f"story.unfollow.{account}"}
        common = {"actor": account, "target": chosen}
        followed, _ = self.tell(account, {"id": names["follow"], "signal": "follow", **common})
        unfollowed, took = self.tell(account, {"id": names["unfollow"], "signal": "unfollow", **common})
        self._compare(f"{account} follows {chosen}, and unfollows it.", took, followed, unfollowed)
        back = _names(unfollowed).index(chosen) + 1 if chosen in _names(unfollowed) else 0
        place = f"comes back at place {back}" if back else "is not shown again"
        self._promise(
            chosen not in _names(followed),
            f"{chosen} {place}: an unfollow is a signal of its own and leaves its trace",
        )
        retract: list[dict[str, object]] = [
            {"signal": "retract", "actor": account, "retracts": name} for name in names.values()
        ]
        restored, took = self.tell(account, *retract)
        self._compare(f"{account} takes both events back (retract).", took, unfollowed, restored)
        same = [(c.account, c.score) for c in restored.candidates] == [
            (c.account, c.score) for c in before.candidates
        ]
        self._promise(
            same and restored.tick == before.tick,
            f"all {len(before.candidates)} candidates and scores are as before, bit for bit, at one tick",
        )

    def _compare(self, what: str, took: float, before: Answer, after: Answer) -> None:
        was = {c.account: place for place, c in enumerate(before.candidates, 1)}
        self._write("")
        self._write(f"{what}  The next answer: {took:.1f} ms after publishing.")
        self._write(f"     {'before':<{_WIDTH // 2}}after")
        pairs = zip(before.candidates[:SHOWN], after.candidates[:SHOWN], strict=False)
        for place, (old, new) in enumerate(pairs, 1):
            left = f"{old.account:<12} {old.score:6.2f}"
            came = was.get(new.account, 0)
            move = "" if came == place else f"from place {came}" if came else "new in the first 20"
            self._write(
                f"  {place}  {left:<{_WIDTH // 2}}{new.account:<12} {new.score:6.2f}  {move}".rstrip()
            )

    def _promise(self, kept: bool, what: str) -> None:
        if kept:
            self._write(f"  -> {what}")
        else:
            self.faults.append(what)
            self._write(f"  -> NOT KEPT: {what}")


def _names(answer: Answer) -> list[str]:
    return [candidate.account for candidate in answer.candidates]
