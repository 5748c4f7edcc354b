"""The layers hold: no import runs upwards, and nothing grows beyond what can be read."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from tests.conftest import ROOT

# From the lowest; a room may import itself and what stands before it.
LAYERS = (
    "udfs", "config", "runtime", "output", "input", "store", "scoring", "fuse", "ranking",
    "evaluation", "tune", "distill", "export", "preflight", "commands",
)  # fmt: skip
COMMANDS = ("rerank", "evaluate", "try_model", "demo")
# Imported from everywhere in jobs.
SHARED = ("jobs.runtime.errors",)
# The name `embedded` stands for a folder of the demo; nothing else imports it.
KNOWN = {"jobs.scoring.models -> jobs.demo", "jobs.scoring.onnx_export -> jobs.demo"}

FILES = sorted(file for room in ("jobs", "udfs") for file in (ROOT / room).rglob("*.py"))


def module_of(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def layer(module: str) -> int:
    parts = module.split(".")
    if parts[0] == "udfs":
        return LAYERS.index("udfs")
    if parts[-1] == "__main__" or parts[1] in COMMANDS:
        return LAYERS.index("commands")
    return LAYERS.index(parts[1])


def imports(file: Path) -> Iterator[str]:
    """Modules of the project that a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module == "jobs":
            names = [f"jobs.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [str(node.module)]
        yield from (name for name in names if name.split(".")[0] in ("jobs", "udfs"))


def test_no_import_runs_upwards() -> None:
    upwards = {
        f"{module_of(file)} -> {name}"
        for file in FILES
        if module_of(file) != "jobs"
        for name in imports(file)
        if name not in SHARED or module_of(file).startswith("udfs")
        if layer(name) > layer(module_of(file))
    }
    assert upwards == KNOWN


def test_files_are_small_and_rooms_are_few() -> None:
    lengths = {file: len(file.read_text(encoding="utf-8").splitlines()) for file in FILES}
    assert [file for file, length in lengths.items() if length > 300] == []
    # A folder without modules is what a former checkout has left.
    inside = (ROOT / "jobs").iterdir()
    entries = {path.name for path in inside if path.is_file() or any(path.glob("*.py"))}
    assert len(entries - {"__init__.py", "README.md"}) <= 17
