"""kithstream and its peers on the same follows of four streams, asked before they are told: `--data FOLDER --out DIR`.

    python -m bench.quality --data FOLDER --out DIR [--streams btc] [--methods als live] [--jobs 2] [--tests 300]
    python -m bench.quality --merge DIR

Protocol: `streams/prequential.py`. First pairs; at most `--tests` of the last fifth with both ends seen before, each
asked for before it is told; k = 20 among all accounts; whom the asker follows at that time is taken out of every
answer. Everything is told the first pairs and nothing else, except for the two rows that say "every event". What has
settings has them chosen on rows 64 to 80 %: eight random ones for each library model, the half-lives of rules by
grid; kithstream has one configuration for all streams. Each part of a method is a process of its own on one thread; a
part whose file is in `--out` is not done again. `--merge` writes `quality.jsonl` and `quality.md` beside the parts.
Library models: `pip install implicit lightfm-next` (the extra `peers`).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before numpy; the processes inherit them
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")

import msgspec

from bench import quality_part
from bench.quality_jobs import METHODS, Given, Job, do, jobs
from bench.quality_streams import NAMES
from bench.quality_table import markdown, summed_up
from kithstream.__main__ import ready


class Pool:
    """Runs jobs in processes, the dearest first, each when what it needs is settled: done, or given up."""

    def __init__(self, given: argparse.Namespace) -> None:
        self._given = given
        self._end = time.monotonic() + given.seconds
        self.failed: list[str] = []

    def run(self, waiting: Sequence[Job]) -> None:
        folder = self._given.out
        settled = {job.key for job in waiting if quality_part.file_of(folder, job.key).exists()}
        left = sorted((job for job in waiting if job.key not in settled), key=lambda job: -job.weight)
        running: dict[Future[str | None], Job] = {}
        with ThreadPoolExecutor(self._given.jobs) as threads:
            while left or running:
                fit = [job for job in left if settled.issuperset(job.needs)]
                for job in fit[: self._given.jobs - len(running)]:
                    left.remove(job)
                    running[threads.submit(self._start, job)] = job
                finished, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in finished:
                    job = running.pop(future)
                    settled.add(job.key)
                    if (reason := future.result()) is not None:
                        self.failed.append(f"{job.key}: {reason}")
                    told = reason or "done"
                    print(f"{self._end - time.monotonic():6.0f} s left  {job.key}  {told}", file=sys.stderr)

    def _start(self, job: Job) -> str | None:
        """The reason for which a job was not done, if it was not."""
        left = self._end - time.monotonic()
        if "/trial-" in job.key:
            left = min(left, self._given.trial_seconds)
        if left <= 0:
            return "out of time"
        given = self._given
        command = [sys.executable, "-m", "bench.quality", "--job", job.key]
        for name in ("data", "out", "tests", "limit", "seed"):
            if (value := getattr(given, name)) is not None:
                command += [f"--{name}", str(value)]
        try:
            done = subprocess.run(command, timeout=left, capture_output=True, text=True)
        except subprocess.TimeoutExpired:
            return f"not done within {left:.0f} s"
        return None if done.returncode == 0 else (done.stderr.strip().splitlines() or ["no word"])[-1]


def merge(folder: Path) -> None:
    """Writes and prints the table of all parts of a folder."""
    made = summed_up(quality_part.read(folder))
    (folder / "quality.jsonl").write_bytes(b"".join(msgspec.json.encode(one) + b"\n" for one in made))
    (folder / "quality.md").write_text(markdown(made), encoding="utf-8")
    print(markdown(made), end="")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("."), help="folder of the three real streams")
    parser.add_argument("--out", type=Path, help="folder of parts and tables")
    parser.add_argument("--streams", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--tests", type=int, default=3000, help="at most, of each stream")
    parser.add_argument("--limit", type=int, help="first pairs of each stream, at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument("--seconds", type=float, default=1e6, help="after which what is not done is given up")
    parser.add_argument("--trial-seconds", type=float, default=1e6, help="after which a setting is given up")
    parser.add_argument("--job", help="do this one part, as STREAM/JOB; for the pool")
    parser.add_argument("--merge", type=Path, metavar="DIR", help="put the parts of a folder together")
    given = parser.parse_args()
    if given.merge is not None:
        merge(given.merge)
        return
    if given.out is None:
        parser.error("--out is due")
    given.out.mkdir(parents=True, exist_ok=True)
    if given.job is not None:
        ready()
        one = Given(given.data, given.out, given.tests, given.limit, given.seed)
        quality_part.write(given.out, do(given.job, one))
        return
    pool = Pool(given)
    pool.run([job for stream in given.streams for job in jobs(stream, given.methods)])
    merge(given.out)
    for reason in pool.failed:
        print(f"not done: {reason}", file=sys.stderr)
    sys.exit(1 if pool.failed else 0)


if __name__ == "__main__":
    main()
