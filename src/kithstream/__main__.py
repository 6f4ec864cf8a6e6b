"""`python -m kithstream` and the console script."""

from __future__ import annotations


def main() -> None:
    """Run the command line; exit status 2 on a wrong command."""
    from kithstream.streams.cli import cli

    cli()


if __name__ == "__main__":
    main()
