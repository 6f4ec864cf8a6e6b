"""`python -m bench`: what can be measured by hand, each with its command; `make bench` runs the suite of them."""

from __future__ import annotations

from importlib import import_module

NAMES = (
    "performance",
    "fold",
    "serving",
    "server",
    "clients",
    "kafka",
    "overload",
    "extremes",
    "hostile",
    "swap",
    "recovery",
    "trainer",
    "index",
    "load",
    "recall",
    "why",
    "yardsticks",
    "paper",
    "communities",
    "quality",
    "quality_lab",
    "ranking",
    "ranker_lab",
    "ablation",
    "freshness_value",
    "useful",
    "paths",
    "signals",
    "fit",
    "refresh",
    "memory",
    "cold",
    "resistance",
    "leaks",
    "leak_checker",
    "limits",
    "scale",
    "scale_units",
    "peers",
)


def main() -> None:
    """Print every benchmark with the first line of what it measures."""
    for name in NAMES:
        told = (import_module(f"bench.{name}").__doc__ or "").splitlines()[0]
        print(f"python -m bench.{name:<12} {told}")


if __name__ == "__main__":
    main()
