"""`python -m kithstream` and the console script."""

from __future__ import annotations

import os


def main() -> None:
    """Run the command line; exit status 2 on a wrong command."""
    # One thread for each scan of the index: folding and questions need the other cores. Read when numpy loads.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from kithstream.streams.cli import cli

    cli()


if __name__ == "__main__":
    main()
