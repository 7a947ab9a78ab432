"""The house: a room imports only rooms above it, and nothing heavy happens at import."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import llm4msr

SOURCE = Path(llm4msr.__file__).parent
ROOMS = [
    "errors",
    "times",
    "allocation",
    "cores",
    "validation",
    "schema",
    "folders",
    "seals",
    "data",
    "knowledge",
    "models",
    "training",
    "report",
    "serving",
    "experiments",
    "cli",
    "__main__",
]


def _imports(path: Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        modules = []
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import"
            modules = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        rooms |= {m.split(".")[1] for m in modules if m.startswith("llm4msr.")}
    return rooms


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda p: p.relative_to(SOURCE).as_posix())
def test_imports_run_one_way(path: Path) -> None:
    room = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    if room == "__init__":
        assert not _imports(path)
        return
    assert _imports(path) - {"__version__"} <= set(ROOMS[: ROOMS.index(room) + 1])


def test_models_know_neither_files_nor_knowledge() -> None:
    for path in (SOURCE / "models").rglob("*.py"):
        assert not _imports(path) & {"data", "knowledge", "folders", "training"}, path


@pytest.mark.parametrize(
    "line", ["from llm4msr import serving", "import llm4msr.serving.app", "from llm4msr.serving import app"]
)
def test_every_way_to_import_a_room_is_seen(tmp_path: Path, line: str) -> None:
    (tmp_path / "a.py").write_text(line)
    assert _imports(tmp_path / "a.py") == {"serving"}


def test_the_command_line_starts_without_loading_torch() -> None:
    script = "import sys, llm4msr.cli; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], timeout=60, check=False).returncode == 0
