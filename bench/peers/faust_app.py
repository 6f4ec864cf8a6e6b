"""Plain Faust with Tables: two agents, a table each, Faust's own settings but for session and partitions.

Not a command of its own: `python -m bench.peers ingest` starts it. The first agent folds what an account does and
sends the event on, keyed by its target; the second folds what is done to an account.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import faust

from bench.peers.fold import fold
from bench.peers.progress import Progress, begun


def build(given: argparse.Namespace, progress: Progress) -> faust.App:
    """The application."""
    app = faust.App(
        given.name,
        broker=f"kafka://{given.servers}",
        store="rocksdb://",
        datadir=str(given.folder / "faust"),
        topic_partitions=given.partitions,
        topic_replication_factor=1,
        processing_guarantee="exactly_once" if given.exactly_once else "at_least_once",
        broker_session_timeout=given.session,
        broker_heartbeat_interval=2.0,
        web_enabled=False,
    )
    engagements = app.topic(given.topic, key_type=bytes, key_serializer="raw", value_serializer="json")
    by_target = app.topic(
        f"{given.name}-by-target",
        key_type=str,
        value_serializer="json",
        partitions=given.partitions,
        internal=True,
    )
    did = app.Table("did", key_type=str, partitions=given.partitions)
    met = app.Table("met", key_type=str, partitions=given.partitions)

    @app.agent(engagements, name="did")
    async def actors(stream: Any) -> None:
        async for event in stream.events():
            value, message = event.value, event.message
            if "target" in value:
                did[value["actor"]] = fold(did.get(value["actor"]), value["signal"], value["time"])
                await by_target.send(
                    key=value["target"], value={"signal": value["signal"], "time": value["time"]}
                )
            progress.note("did", message.topic, message.partition, message.offset)

    @app.agent(by_target, name="met")
    async def targets(stream: Any) -> None:
        async for event in stream.events():
            key, value, message = event.key, event.value, event.message
            met[key] = fold(met.get(key), value["signal"], value["time"])
            progress.note("met", message.topic, message.partition, message.offset)

    return app


def main() -> None:
    """Work until told to end."""
    given, progress = begun(__doc__)
    app = build(given, progress)
    sys.argv[1:] = ["worker", "--loglevel", "warn", "--without-web"]
    app.main()


if __name__ == "__main__":
    main()
