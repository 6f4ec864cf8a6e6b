"""A prequential evaluation: one pass of a stream through the whole chain, asked on the way, beside live yardsticks."""

from __future__ import annotations

from collections.abc import Iterable

from kithstream.streams.clock import StreamClock
from kithstream.streams.evaluating.asking import ask_all
from kithstream.streams.evaluating.measures import age_borders, rows
from kithstream.streams.evaluating.plan import LIST, SECOND, Sampling, plan
from kithstream.streams.evaluating.report import VERSION, Report
from kithstream.streams.events.record import Record
from kithstream.streams.replay import Progress
from kithstream.streams.serve.embedded import Embedded


def evaluate(
    live: Embedded,
    clock: StreamClock,
    events: Iterable[Record],
    sampling: Sampling,
    *,
    stream: str,
    progress: Progress | None = None,
) -> Report:
    """Fold a stream into a fresh runtime whose clock follows it, and report what it answered; `stream` is its name.

    Reads `events` four times. Raises ValueError if the stream has no follow that can be asked for.
    """
    planned = plan(events, sampling)
    k = max(*sampling.ks, LIST)
    answers, chosen, replayed = ask_all(live, clock, events, planned, k, sampling.seed, progress)
    model = live.chain.model
    young, old = age_borders(planned)
    return Report(
        version=VERSION,
        stream=stream,
        seed=sampling.seed,
        ks=sampling.ks,
        tests=len(planned.follows),
        slates=len(planned.slates),
        unfinished=planned.unfinished,
        window_seconds=sampling.window_seconds,
        others=sampling.others,
        accounts=len(planned.accounts),
        candidates=len(planned.candidates),
        torso_followers=planned.torso,
        head_followers=planned.head,
        age_borders=(young / SECOND, old / SECOND),
        events=replayed.events,
        refused=replayed.refused,
        learned=replayed.learned,
        seconds=round(replayed.seconds, 2),
        lineage=model.lineage,
        step=model.step,
        chosen=chosen,
        rows=rows(planned, answers, sampling.ks, sampling.seed),
    )
