"""The peers' own virtual environment, and processes that run in it."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "var" / "peers-venv"
REQUIREMENTS = Path(__file__).with_name("requirements.txt")
PYTHON = FOLDER / "bin" / "python"

# One thread for whatever brings a pool of its own, as kithstream's retrieval has one.
POOLS = ["OMP", "OPENBLAS", "MKL", "RAYON"]
ONE_THREAD = dict.fromkeys(
    [*(f"{pool}_NUM_THREADS" for pool in POOLS), "TOKIO_WORKER_THREADS", "LANCE_CPU_THREADS"], "1"
)


def setup() -> None:
    """Make the environment, or bring it to the pinned versions; needs a package index, once."""
    subprocess.run([sys.executable, "-m", "venv", FOLDER], check=True)
    subprocess.run([PYTHON, "-m", "pip", "install", "--quiet", "-r", REQUIREMENTS], check=True)
    # Behind the peers' own packages, so that the tower (torch) and Kafka's clients need not be installed twice.
    site = subprocess.run(
        [PYTHON, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    (Path(site) / "kithstream-dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")


def missing() -> bool:
    """True where `setup` has not been run."""
    return not PYTHON.exists()


def environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """Variables for a process that imports kithstream and bench from this checkout."""
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path, "ANONYMIZED_TELEMETRY": "False", **ONE_THREAD, **(more or {})}


def python(of_peers: bool) -> str:
    """The interpreter: of the peers' environment, or the one that runs this."""
    return str(PYTHON) if of_peers else sys.executable
