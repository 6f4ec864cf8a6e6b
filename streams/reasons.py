"""An explanation in words, for a person to read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from kithstream.streams.serve.answers import Because, Explanation

_ONCE: Final = {
    "follow": "you followed {}",
    "like": "you liked a post of {}",
    "repost": "you reposted a post of {}",
    "quote": "you quoted {}",
    "reply": "you replied to {}",
}
_OFTEN: Final = {
    "like": "you liked {n} posts of {}",
    "repost": "you reposted {n} posts of {}",
    "quote": "you quoted {} {n} times",
    "reply": "you replied to {} {n} times",
}


def sentence(because: Because) -> str:
    """Return what the account did, as it is told to it.

    >>> sentence(Because("eve", {"follow": 1, "like": 3}, 0, 1.0, 4, 0.5, 3))
    'you followed eve and you liked 3 posts of eve'
    """
    words = [
        (_ONCE[signal] if count == 1 else _OFTEN[signal]).format(because.account, n=count)
        for signal, count in because.signals.items()
    ]
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def written(explanation: Explanation) -> Iterator[str]:
    """Yield the lines that a person reads."""
    if explanation.rank is None or explanation.score is None:
        yield f"{explanation.candidate} is not shown to {explanation.account}: {explanation.hidden}"
        return
    yield f"{explanation.candidate} for {explanation.account}: rank {explanation.rank}, score {explanation.score:.3f}"
    for because in explanation.because:
        link = "because" if because.score_change > 0 else "although"
        without = f"rank {because.rank}, score {because.score:.3f} ({-because.score_change:+.3f}) without it"
        yield f"  {link} {sentence(because)}: {without}"
    if not explanation.because:
        yield "  nothing that it did in public of late carries it"
