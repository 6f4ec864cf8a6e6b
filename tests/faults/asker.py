"""Who asks while things break, with tokens, and the history of what was asked and answered."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from beside import Beside
from crowd import ACCOUNTS, Crowd

PAUSE: Final = 0.02  # seconds between two questions: the machine has other work
ABOUT_PAIRS: Final = (
    0.7  # of the questions are asked for one side of a pair of which something was said just now
)
VECTORS: Final = 0.25  # of the questions wait for every candidate's vector as well
K: Final = ACCOUNTS


class Asked(NamedTuple):
    """A question, and what came back."""

    account: str
    about: str  # the other side of the pair
    after: str
    level: str
    worker: str
    status: int | str  # 200, or the code of the refusal
    arrived: int  # milliseconds since 1970
    token: str
    as_of: int
    tick: int
    model: str
    step: int
    candidates: list[str]


Get = Callable[[str, str], tuple[int, Any]]  # worker and path -> status and body


class Asker(Beside):
    """Asks in a thread; `history` has every question in its order."""

    def __init__(self, crowd: Crowd, seed: int, workers: Callable[[], list[str]], get: Get) -> None:
        super().__init__()
        self.history: list[Asked] = []
        self._crowd = crowd
        self._rng = random.Random(seed)
        self._workers = workers
        self._get = get

    def ask(self, worker: str, account: str, about: str, after: str, level: str) -> Asked:
        """Ask one question and write it down."""
        status, body = self._get(
            worker, f"/v1/candidates/{account}?k={K}&reasons=0&level={level}&after={after}"
        )
        arrived = time.time_ns() // 1_000_000
        found = body if isinstance(body, dict) else {}
        told: int | str = status if status == 200 else str(found.get("error", status))
        one = Asked(
            account,
            about,
            after,
            level,
            worker,
            told,
            arrived,
            found.get("token", ""),
            found.get("as_of", 0),
            found.get("tick", 0),
            found.get("model", ""),
            found.get("step", 0),
            [candidate["account"] for candidate in found.get("candidates", ())],
        )
        self.history.append(one)
        return one

    def everybody(self, worker: str, after: str) -> None:
        """Ask for every account, at a token that stands for all that was published."""
        for number in range(ACCOUNTS):
            self.ask(worker, f"u{number}", "", after, "vectors")

    def save(self, path: str) -> None:
        """Write the history as lines of JSON."""
        with open(path, "w") as file:
            file.writelines(json.dumps(one._asdict()) + "\n" for one in self.history)

    def go_on(self) -> None:
        """Ask."""
        while not self._stopping.wait(PAUSE):
            if workers := self._workers():
                self._one(self._rng.choice(workers))

    def _one(self, worker: str) -> None:
        rng = self._rng
        pairs = list(self._crowd.pairs)
        level = "vectors" if rng.random() < VECTORS else "state"
        if pairs and rng.random() < ABOUT_PAIRS:
            pair = rng.choice(pairs[-16:])
            account, about = pair.sides if rng.random() < 0.5 else pair.sides[::-1]
            self.ask(worker, account, about, pair.token, level)
            return
        after = self._crowd.token if rng.random() < 0.5 else ""
        self.ask(worker, f"u{rng.randrange(ACCOUNTS)}", f"u{rng.randrange(ACCOUNTS)}", after, level)
