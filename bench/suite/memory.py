"""Memory and disk by account, edge and vector."""

from __future__ import annotations

from typing import Any

from bench import memory as measuring
from bench.suite.given import Given

QUESTIONS = 2000


def embedded(given: Given) -> None:
    """Resident memory and disk of an embedded runtime by account and edge; growth an account beside the row caches."""
    degree = given.size(20, 5)
    rows = []
    for accounts in (50_000, 100_000) if not given.quick else (500, 1000):
        row = measuring.size(accounts, degree, given.size(QUESTIONS, 50), given.seed)
        rows.append(row)
        given.record(
            "embedded runtime, loaded, compacted, opened, asked",
            {
                "rss_bytes_per_account": row["rss_bytes_per_account"],
                "store_bytes_per_account": row["store_bytes_per_account"],
                "out_bytes_per_edge": row["store_bytes_per_edge"]["out"],
                "in_bytes_per_edge": row["store_bytes_per_edge"]["in"],
                "rest_bytes_per_account": row["rest_bytes_per_account"],
                **{
                    f"{name}_bytes_per_account": value
                    for name, value in row["parts_bytes_per_account"].items()
                },
            },
            sizes={"accounts": accounts, "degree": degree},
        )
    few, many = rows
    given.record(
        "growth from the first size to the second",
        {"bytes_per_account": growth(few, many)},
        sizes={"accounts": many["accounts"], "degree": degree},
        bar="memory",
        note="The row caches of partitions, which have a bound, are left out; RocksDB's caches are not.",
    )


def growth(few: dict[str, Any], many: dict[str, Any]) -> float:
    """Resident bytes that a further account takes, without what the row caches hold."""

    def held(row: dict[str, Any]) -> float:
        return float(row["rss_mb"] * 2**20 - row["parts_bytes_per_account"]["row_caches"] * row["accounts"])

    return (held(many) - held(few)) / (many["accounts"] - few["accounts"])


def further_edge(given: Given) -> None:
    """Resident bytes of a further edge, at twice the degree."""
    accounts, degree = given.size(50_000, 500), given.size(20, 5)
    asked = given.size(QUESTIONS, 50)
    few, many = (measuring.size(accounts, times * degree, asked, given.seed) for times in (1, 2))
    grown = (many["rss_mb"] - few["rss_mb"]) * 2**20 / (many["edges"] - few["edges"])
    given.record("a further edge", {"rss_bytes": grown}, sizes={"accounts": accounts, "degree": degree})
