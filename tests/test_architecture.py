"""The tree says what lives where: rooms that import one way, no circles, no file without an end."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT

LIBRARY = ROOT / "elfs_lib"
#: Each room imports those to the left of it. The first has the modules that stand for themselves.
ORDER = (
    "",
    "data",
    "training",
    "embedding",
    "clustering",
    "selection",
    "params",
    "stages",
    "results",
    "runs",
    "photos",
    "cli",
)
BASE = {"errors", "bounds", "progress", "compute", "artifacts", "label_lock", "project"}
LONGEST = 550  # lines, but for a reason that the module's docstring gives: "One file: ..."


def modules() -> dict[str, Path]:
    found = {}
    for path in sorted(LIBRARY.rglob("*.py")):
        parts = path.relative_to(LIBRARY).with_suffix("").parts
        name = ".".join(parts).removesuffix("__init__").rstrip(".")
        if name not in ("", "__main__"):  # which offer what the rooms hold
            found[name] = path
    return found


MODULES = modules()


def imported(path: Path, *, for_types: bool) -> Iterator[str]:
    """The modules of the library that one imports anywhere, also for annotations if asked."""

    def walk(node: ast.AST) -> Iterator[str]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                if for_types:
                    yield from walk(child)
            elif isinstance(child, ast.ImportFrom) and (child.module or "").startswith("elfs_lib"):
                base = child.module.removeprefix("elfs_lib").lstrip(".")
                for alias in child.names:
                    inside = f"{base}.{alias.name}".lstrip(".")
                    yield inside if inside in MODULES else base
            else:
                yield from walk(child)

    return walk(ast.parse(path.read_text()))


def room(module: str) -> str:
    first = module.partition(".")[0]
    return "" if first in BASE else first


@pytest.mark.parametrize("module", MODULES)
def test_rooms_import_one_way(module: str):
    place = ORDER.index(room(module))
    names = {name for name in imported(MODULES[module], for_types=True) if name}
    later = sorted(name for name in names if ORDER.index(room(name)) > place)
    assert not later, f"{module} may not import {later}: {' < '.join(ORDER[1:])}"


def test_no_modules_import_each_other_in_a_circle():
    graph = {
        module: {name for name in imported(path, for_types=False) if name in MODULES} - {module}
        for module, path in MODULES.items()
        if path.name != "__init__.py"  # a room's own offers what its modules hold
    }
    while free := [module for module, names in graph.items() if not names & graph.keys()]:
        for module in free:
            del graph[module]
    # what is left lies on a circle, or leads to one
    while ends := graph.keys() - set().union(*graph.values(), set()):
        for module in ends:
            del graph[module]
    assert not graph, f"in a circle: {sorted(graph)}"


@pytest.mark.parametrize("folder", ["elfs_lib", "benchmarks"])
def test_a_long_file_says_why(folder: str):
    for path in sorted((ROOT / folder).rglob("*.py")):
        text = path.read_text()
        if len(text.splitlines()) > LONGEST:
            words = ast.get_docstring(ast.parse(text)) or ""
            assert "One file: " in words, f"{path.name} has {len(text.splitlines())} lines"
