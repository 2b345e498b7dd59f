"""The pages as a reader runs them: their cells in order, on tiny runs, and what they promise."""

from __future__ import annotations

import re
from typing import Any

import nbformat
import pytest
from conftest import ROOT, TINY

from elfs_lib.params import Params
from elfs_lib.pipeline import NOTEBOOKS
from elfs_lib.stage_graph import UNKEYED
from elfs_lib.stages import Run

# A run that also reads what others leave alone; a page names that as well.
UNUSUAL = TINY | {
    "encoder": "self_supervised+pixels",
    "encoder_epochs": 1,
    "encoder_network": "convnet_tiny",
    "encoder_views": 2,
    "encoder_pca": 16,
    "relabel_rounds": 1,
    "temi_pca": 8,
    "proxy_seeds": 2,
    "hindsight_seeds": (0,),
    "budgets": (0.1,),
    "methods": ("random", "elfs"),
}


class Watched(Params):
    """Parameters that note which of them are read."""

    def __getattribute__(self, name: str) -> Any:
        if name in Params.model_fields:
            READ.add(name)
        return super().__getattribute__(name)


READ: set[str] = set()


def page(name: str) -> list[nbformat.NotebookNode]:
    return nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4).cells


def run_page(
    name: str, run: Run, monkeypatch: pytest.MonkeyPatch, *, without: str = "", **changes: str
) -> dict:
    """Run a page's cells on a run, with lines of them changed as a reader would; ``without`` is a
    tag of cells to leave out."""
    monkeypatch.setattr(Run, "from_notebook", classmethod(lambda cls, namespace: run))
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for number, cell in enumerate(page(name)):
        if cell.cell_type == "code" and without not in cell.metadata.tags:
            source = cell.source
            for variable, value in changes.items():
                source = re.sub(rf"(?m)^{variable} = .*$", f"{variable} = {value}", source)
            exec(compile(source, f"{name}, cell {number}", "exec"), namespace)
    return namespace


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_page_names_the_parameters_that_it_reads_and_no_others(
    name: str, tiny_run: Run, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(ROOT)
    usual, unusual = (Run(Watched.make(values), tiny_run.store) for values in (TINY, UNUSUAL))
    READ.clear()
    run_page(name, usual, monkeypatch)
    run_page(name, unusual, monkeypatch, without="remove-cell")  # whose numbers are of no use
    named: dict = {}
    exec(next(c.source for c in page(name) if "parameters" in c.metadata.tags), named)
    assert {*named} & {*Params.model_fields} == READ | UNKEYED  # which only builds read
