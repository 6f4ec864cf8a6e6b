"""Quix Streams with its state: the same two folds, Quix's own settings but for the session.

Not a command of its own: `python -m bench.peers ingest` starts it. Its group_by sends events on by target.
"""

from __future__ import annotations

from typing import Any

from quixstreams import Application, State, message_context

from bench.peers.fold import fold
from bench.peers.progress import begun


def main() -> None:
    """Work until told to end."""
    given, progress = begun(__doc__)
    app = Application(
        broker_address=given.servers,
        consumer_group=given.name,
        auto_offset_reset="earliest",
        state_dir=given.folder / "quix",
        processing_guarantee="exactly-once" if given.exactly_once else "at-least-once",
        consumer_extra_config={
            "session.timeout.ms": int(given.session * 1000),
            "heartbeat.interval.ms": 2000,
        },
        loglevel="WARNING",
    )

    def note(side: str) -> None:
        at = message_context()
        progress.note(side, at.topic, at.partition, at.offset)

    def counted(value: dict[str, Any], state: State) -> None:
        state.set("state", fold(state.get("state"), value["signal"], value["time"]))

    def did(value: dict[str, Any], state: State) -> None:
        if "target" in value:
            counted(value, state)
        note("did")

    def met(value: dict[str, Any], state: State) -> None:
        counted(value, state)
        note("met")

    frame = app.dataframe(app.topic(given.topic, key_deserializer="str", value_deserializer="json"))
    frame = frame.update(did, stateful=True)
    frame = frame[frame.contains("target")]
    frame = frame.apply(lambda value: {name: value[name] for name in ("target", "signal", "time")})
    frame = frame.group_by("target")
    frame.update(met, stateful=True)
    app.run()


if __name__ == "__main__":
    main()
