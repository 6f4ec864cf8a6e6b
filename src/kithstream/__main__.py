"""`python -m kithstream` and the console script."""

from __future__ import annotations

import gc
import os
import sys


def ready() -> None:
    """Make the process ready to answer beside a folding thread; before numpy is loaded, to have its full effect."""
    # A thread that is busy in Python gives way ten times as often as by default.
    sys.setswitchinterval(0.0005)
    # The hundreds of thousands of rows and lists in the caches are no cycles: the collector walks them seldom, since
    # a walk stops everything for a tenth of a second.
    gc.set_threshold(10_000, 20, 1000)
    # One thread for each scan of the index: folding and other questions need the other cores. One of torch's, too, so
    # that no thread has to set and restore what is the whole process's.
    for library in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
        os.environ.setdefault(library, "1")


def main() -> None:
    """Run the command line; exit status 2 on a wrong command."""
    ready()
    from kithstream.streams.cli import cli

    cli()


if __name__ == "__main__":
    main()
