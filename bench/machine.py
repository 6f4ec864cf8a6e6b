"""What every result is printed with, what is told beside it, and what memory processes hold."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path


def machine() -> str:
    """Return processor, number of usable cores, and load when asked."""
    name = platform.processor() or "unknown"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            name = line.partition(":")[2].strip()
            break
    cores = len(os.sched_getaffinity(0))
    return f"{name}, {cores} cores, Python {platform.python_version()}, load {os.getloadavg()[0]:.1f}"


def say(words: object) -> None:
    """What goes on, beside the result."""
    print(words, file=sys.stderr, flush=True)


def resident(*pids: int | str) -> int:
    """Return the resident bytes of processes, of this one if none is named."""
    pages = sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids or ("self",))
    return pages * os.sysconf("SC_PAGE_SIZE")
