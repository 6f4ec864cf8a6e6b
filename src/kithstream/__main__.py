"""`python -m kithstream` and the console script."""

from __future__ import annotations

import gc
import os
import sys


def main() -> None:
    """Run the command line; exit status 2 on a wrong command."""
    # Questions are answered beside a folding thread: one that is busy in Python gives way ten times as often as by
    # default, and the hundreds of thousands of rows and lists in the caches, which are no cycles, are walked by the
    # collector seldom (a walk stops everything for a tenth of a second).
    sys.setswitchinterval(0.0005)
    gc.set_threshold(10_000, 20, 1000)
    # One thread for each scan of the index: folding and questions need the other cores. Read when numpy loads.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from kithstream.streams.cli import cli

    cli()


if __name__ == "__main__":
    main()
