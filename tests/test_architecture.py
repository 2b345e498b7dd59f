"""The tree says what lives where: rooms that import one way, no circles, no file without an end."""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Iterator
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
#: Lines, but for a reason that the module's docstring gives: "One file: ...". Tests are excused: a
#: file of theirs covers a subject, and pytest selects inside it.
LONGEST = 500


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


def circles(graph: dict[str, set[str]]) -> list[str]:
    """The modules that import each other in a circle."""
    while free := [module for module, names in graph.items() if not names & graph.keys()]:
        for module in free:
            del graph[module]
    # what is left lies on a circle, or leads to one
    while ends := graph.keys() - set().union(*graph.values(), set()):
        for module in ends:
            del graph[module]
    return sorted(graph)


def test_no_modules_import_each_other_in_a_circle():
    library = {
        module: {name for name in imported(path, for_types=False) if name in MODULES} - {module}
        for module, path in MODULES.items()
        if path.name != "__init__.py"  # a room's own offers what its modules hold
    }
    assert not circles(library)
    benchmarks = {}
    for path in (ROOT / "benchmarks").glob("*.py"):
        found = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.ImportFrom)]
        whole = {alias.name for n in found if n.module == "benchmarks" for alias in n.names}
        parts = {n.module.removeprefix("benchmarks.") for n in found if n.module}
        benchmarks[path.stem] = whole | parts
    assert not circles({name: found & benchmarks.keys() for name, found in benchmarks.items()})


#: Private names that tests or benchmarks use, and why. All others they must not know.
PRIVATE = {
    "_CHUNK": "smaller blocks, so that a small set is decoded in several",
    "_decode_one": "decoding of one file, which the tests of a killed process count",
    "_Job": "what one rank hands to the others, which has no caller",
    "_help": "the other ranks' side of a training, which a test takes with threads",
    "_Capture": "stands for a GPU, which tests do not have",
    "_exact_on": "the path of a GPU, run on the CPU",
    "_floor_keys": "the bound that lets a block be skipped: compared with all blocks",
    "_kernels": "which Jupyter kernels this machine has",
    "_execute": "a notebook, whose run the tests of a sweep replace by a moment",
    "_execute_all": "the notebooks of a book, whose run a test replaces by nothing",
    "_gpus": "which GPUs this machine has",
    "_slurm_cluster": "SLURM, which tests do not have",
    "_ASIDE": "the name that a killed sweep leaves behind",
    "_outcome": "what a failed future says, without a scheduler",
    "_urgency": "the order of tasks, without a scheduler",
    "_AddInput": "a layer inside a network, checked by itself",
    "_sha256": "hashing, which the tests of whole commands count",
    "_boxes": "boxes drawn at random, which the views are compared with",
    "_batches": "what an epoch reads, without its augmentation, which a benchmark times",
    "_some": "images of given positions, before an epoch changes them",
    "_read": "what a loader reads, which a subclass counts",
    "_schema": "of an operation of PyTorch, which has no public name for it",
    "_curves": "all that the recorder holds, whose bytes a benchmark adds up",
}


@pytest.mark.parametrize("folder", ["tests", "benchmarks"])
def test_private_names_are_used_for_a_reason(folder: str):
    used = set()
    for path in sorted((ROOT / folder).glob("*.py")):
        used |= private_names(ast.parse(path.read_text()), PRIVATE_HERE)
    assert used <= PRIVATE.keys()


@pytest.mark.parametrize(
    "text",
    [
        "from elfs_lib.runs.display import _clock",
        "from elfs_lib import compute\ncompute._clock",
        "from elfs_lib import compute\nmonkeypatch.setattr(compute, '_clock', 0)",
        "SweepProgress()._clock()",
        "progress.loader._clock",
        "monkeypatch.setattr(progress, '_clock', 0)",
        "getattr(progress, '_clock')",
        "monkeypatch.setattr('elfs_lib.runs.display._clock', 0)",
        "mock.patch('elfs_lib.runs.display._clock.start')",
    ],
)
def test_a_private_name_is_noticed_however_it_is_used(text: str):
    assert private_names(ast.parse(text), {"_clock"}) == {"_clock"}


@pytest.mark.parametrize(
    "text", ["self._clock = 1", "figure._repr_png_()", "os._exit(1)", "'_clock'"]
)
def test_what_is_ones_own_or_another_librarys_is_not_private(text: str):
    assert not private_names(ast.parse(text), {"_clock"})


def defined(tree: ast.Module) -> set[str]:
    """Names with an underscore that a module or a class of it defines, or gives to ``self``."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            found.add(node.id if isinstance(node, ast.Name) else node.attr)
    return {name for name in found if re.fullmatch("_[^_].*[^_]", name)}


PRIVATE_HERE = set().union(
    *(
        defined(ast.parse(path.read_text()))
        for folder in ("elfs_lib", "benchmarks")
        for path in (ROOT / folder).rglob("*.py")
    )
)


def private_names(tree: ast.Module, here: Collection[str]) -> set[str]:
    """Those of the names ``here`` that a module takes from others: imported, as attributes of
    anything but itself, or in a text that a call is given, as ``monkeypatch`` and ``getattr``."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            if re.match("elfs_lib|benchmarks", node.module or ""):
                found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.Attribute):
            if ast.unparse(node.value) not in ("self", "cls"):
                found.add(node.attr)
        elif isinstance(node, ast.Call):
            named = [a.value for a in node.args[:2] if isinstance(a, ast.Constant)]
            texts = (text for text in named if isinstance(text, str))
            found |= {name for text in texts for name in text.split(".")}
    return {name for name in found if name in here}


@pytest.mark.parametrize("folder", ["elfs_lib", "benchmarks"])
def test_a_long_file_says_why(folder: str):
    for path in sorted((ROOT / folder).rglob("*.py")):
        text = path.read_text()
        if len(text.splitlines()) > LONGEST:
            words = ast.get_docstring(ast.parse(text)) or ""
            assert "One file: " in words, f"{path.name} has {len(text.splitlines())} lines"
