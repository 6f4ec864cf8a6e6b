"""What a user meets first: the facade, the examples, the documents."""

from __future__ import annotations

import doctest
import os
import re
import subprocess
import sys
import urllib.request
from importlib import import_module, metadata
from pathlib import Path
from pkgutil import walk_packages

import pytest

import kithstream

ROOT = Path(__file__).parent.parent
MODULES = sorted(
    m.name for m in walk_packages(kithstream.__path__, "kithstream.") if not m.name.endswith("__main__")
)


def test_the_version_is_the_packages() -> None:
    assert kithstream.__version__ == metadata.version("kithstream")


def test_the_facade_offers_what_it_names() -> None:
    for name in kithstream.__all__:
        assert callable(getattr(kithstream, name))
    with pytest.raises(AttributeError, match="nothing_such"):
        _ = kithstream.nothing_such


def test_a_client_imports_the_package_without_the_engine() -> None:
    code = "import kithstream, kithstream.streams.events.wire, sys; print(*sys.modules)"
    loaded = run(code).split()
    assert not {"numpy", "torch", "rocksdict", "hnswlib"} & set(loaded)


def test_no_module_is_loaded_twice() -> None:
    for name in MODULES:
        import_module(name)
    own = [
        m for n, m in sys.modules.items() if n.split(".")[0] in ("kithstream", "streams", "models", "index")
    ]
    files = [os.path.realpath(m.__file__) for m in own if getattr(m, "__file__", None)]
    assert len(files) == len(set(files))
    assert not {"streams", "models", "index"} & set(sys.modules)


@pytest.mark.parametrize("name", MODULES)
def test_what_docstrings_show_is_what_happens(name: str) -> None:
    result = doctest.testmod(import_module(name))
    assert not result.failed


def test_the_embedded_example_runs() -> None:
    printed = run((ROOT / "examples" / "embedded.py").read_text()).splitlines()
    assert "ada" in printed[0]
    assert "ada" not in printed[1]


def test_the_http_example_runs(tmp_path: Path) -> None:
    server = subprocess.Popen(
        [sys.executable, "-m", "kithstream", "serve", "--path", str(tmp_path), "--port", "0", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert server.stdout is not None
        url = re.search(r"http://[\d.:]+", server.stdout.readline())
        assert url is not None
        example = subprocess.run(
            [sys.executable, str(ROOT / "examples" / "over_http.py"), url[0]], capture_output=True, text=True
        )
        assert example.returncode == 0, example.stderr
        assert "ada" in example.stdout
        with urllib.request.urlopen(f"{url[0]}/metrics", timeout=60) as told:
            metrics = told.read().decode()
        assert re.search(r'kithstream_records_total\{outcome="accepted"\} [1-9]', metrics)
        assert re.search(r'kithstream_index_rows\{tier="alive"\} [1-9]', metrics)
        assert re.search(r"kithstream_answers_total\{.*\} [1-9]", metrics)
    finally:
        server.terminate()
        server.wait(timeout=30)
        assert server.stdout is not None
        server.stdout.close()
    assert server.returncode == 0


def test_every_link_between_documents_leads_somewhere() -> None:
    for document in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name}: {target}"


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout
