"""Everything that can break breaks under load, and what is left is what the log means."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nemesis import Fault, KillRetrieval, KillStream
from siege import Outcome, siege

from kithstream.streams.kafka.local import LocalKafka


def holds(broker: LocalKafka, folder: Path, seed: int, faults: Sequence[Fault]) -> Outcome:
    """Assert that faults changed nothing, and that something could have gone wrong."""
    outcome = siege(broker, folder, f"s{seed}.", seed, faults)
    assert outcome.divergences == []
    assert not outcome.void
    assert sum(outcome.faults.values()) == len(faults)
    return outcome


def test_kill_9_of_either_process_changes_nothing(mortal: LocalKafka, tmp_path: Path) -> None:
    outcome = holds(mortal, tmp_path, 1, [KillStream(), KillRetrieval(), KillStream()])
    print(outcome)
