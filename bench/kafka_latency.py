"""`python -m bench.kafka latency`: freshness and questions beside an open loop, on a real Kafka of this machine."""

from __future__ import annotations

import random
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any, Final

from bench.clients import wait_until
from bench.kafka import PATIENT, busy, cluster, mean, percentiles, settle, simulated, started
from kithstream.streams.clients import EventPublisher, RetrievalClient
from kithstream.streams.serve.answers import Answer, Question

ASKING: Final = 32  # questions of a kind at a time at most; the next is late


def latency(
    rate: float,
    seconds: float,
    workers: int,
    partitions: int,
    seed: int,
    only: Sequence[str] = (),
    *,
    asks: float = 20.0,
    k: int = 20,
) -> dict[str, Any]:
    """Publish open-loop; beside it ask: with the token of a follow just published, and without, `asks` a second.

    Each is asked when it is due, however late those before are, and times count from then.
    """
    with ExitStack() as stack:
        kafka = cluster(stack, partitions)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kithstream-bench-")))
        running = started(stack, kafka, folder, partitions, workers, PATIENT)
        # Without their times, which are long past: the publisher stamps them with the present.
        world = [
            {field: value for field, value in event.items() if field != "time"}
            for event in islice(simulated(seed), int(rate * seconds) + 60_000)
        ]
        with EventPublisher(kafka) as publisher:
            publisher.publish(world[:60_000])
            settle(publisher, running)
            events = iter(world[60_000:])
            spent: dict[str, list[float]] = {}
            late = [0.0]
            stop = threading.Event()

            def load() -> None:
                begin = time.perf_counter()
                for turn in range(int(seconds * 100)):
                    due = begin + turn / 100
                    wait_until(due)
                    late[0] = max(late[0], time.perf_counter() - due)
                    publisher.send(list(islice(events, int(rate / 100))))
                stop.set()

            failures: list[str] = []

            def paced(name: str, each: float, ask: Callable[[int, float], float | None]) -> None:
                begin, turn = time.perf_counter(), 0
                found = spent.setdefault(name, [])

                def one(turn: int, due: float) -> None:
                    try:
                        if (took := ask(turn, due)) is not None:
                            found.append(took)
                    except Exception as error:
                        failures.append(name)
                        print(f"{name}: {error!r}", file=sys.stderr)

                with ThreadPoolExecutor(ASKING) as pool:
                    while not stop.is_set():
                        due = begin + turn * each
                        wait_until(due)
                        pool.submit(one, turn, due)
                        turn += 1

            clients = [stack.enter_context(RetrievalClient(kafka)) for _ in range(2)]
            rng = random.Random(seed)

            def follow(turn: int, kind: str) -> dict[str, object]:
                return {"signal": "follow", "actor": f"{kind}{turn}", "target": f"u{rng.randrange(1000)}"}

            def over_http(level: str) -> Callable[[int, float], float]:
                def ask(turn: int, due: float) -> float:
                    event = follow(turn, f"h{level}")
                    token = publisher.publish([event])
                    status, body = running[0].get(
                        f"/v1/candidates/{event['actor']}?after={token}&level={level}"
                    )
                    assert status == 200, body
                    return time.perf_counter() - due

                return ask

            def shown(account: str, other: str, token: str) -> bool:
                status, body = running[0].get(f"/v1/candidates/{account}?k=1&after={token}&allow={other}")
                assert status == 200, body
                return bool(body["candidates"])

            def blocking(kind: str, asker: int) -> Callable[[int, float], float]:
                def ask(turn: int, _: float) -> float:
                    pair = f"{kind}a{turn}", f"{kind}b{turn}"
                    token = publisher.publish(
                        [
                            {"signal": "follow", "actor": f"u{rng.randrange(1000)}", "target": name}
                            for name in pair
                        ]
                    )
                    assert shown(pair[asker], pair[1 - asker], token), "they are no candidates of one another"
                    began = time.perf_counter()
                    token = publisher.publish([{"signal": "block", "actor": pair[0], "target": pair[1]}])
                    assert not shown(pair[asker], pair[1 - asker], token), "the block is not in force"
                    return time.perf_counter() - began

                return ask

            def over_stream(turn: int, due: float) -> float:
                event = follow(turn, "s")
                token = publisher.publish([event])
                clients[0].ask(str(event["actor"]), after=token, deadline=5.0)
                return time.perf_counter() - due

            futures: list[Future[Answer]] = []

            def asked(_: int, due: float) -> None:
                def answered(future: Future[Answer]) -> None:
                    if future.exception() is None:
                        spent["request_reply"].append(time.perf_counter() - due)
                    else:
                        failures.append("request_reply")

                futures.append(clients[1].submit(Question(f"u{rng.randrange(5000)}", k), deadline=5.0))
                futures[-1].add_done_callback(answered)

            def http_asked(_: int, due: float) -> float:
                assert running[0].get(f"/v1/candidates/u{rng.randrange(5000)}?k={k}")[0] == 200
                return time.perf_counter() - due

            askers: dict[str, tuple[float, Callable[[int, float], float | None]]] = {
                "publish_to_visible_http": (0.2, over_http("vectors")),
                "publish_to_state_http": (0.2, over_http("state")),
                "publish_to_visible_stream": (0.2, over_stream),
                "request_reply": (1 / asks, asked),
                "http_question": (1 / asks, http_asked),
            }
            if only:  # what is asked beside delays the rest
                askers["block_to_in_force_blocker"] = (0.2, blocking("p", 0))
                askers["block_to_in_force_blocked"] = (0.2, blocking("q", 1))
            threads = [threading.Thread(target=load)]
            threads += [threading.Thread(target=paced, args=(name, *askers[name])) for name in only or askers]
            before = busy(running)
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            wait(futures)
            cores = {
                name: round((spent - before[name]) / seconds, 2) for name, spent in busy(running).items()
            }
            stages = {name: mean(running, name) for name in ("fold", "encode", "query", "wait", "freshness")}
            for worker in running:
                worker.stop()
    return {
        "rate": rate,
        "seconds": seconds,
        **{name: {**percentiles(values), "failed": failures.count(name)} for name, values in spent.items()},
        "stages_mean_ms": stages,
        "cores_used": cores,
        "load_late_ms": round(late[0] * 1000, 1),
    }
