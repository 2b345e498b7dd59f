"""The pages as a reader runs them: their cells in order, on tiny runs, and what they promise."""

from __future__ import annotations

import ast
import dataclasses
import re
import symtable
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
from conftest import ROOT, TINY

from elfs_lib.artifacts import Store
from elfs_lib.params import Params
from elfs_lib.runs.pipeline import NOTEBOOKS, WIDGET, tidy
from elfs_lib.stages import Run
from elfs_lib.stages.graph import UNKEYED

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

    def from_notebook(cls: type[Run], namespace: dict) -> Run:
        Params.from_notebook(namespace)  # which an import of the page may have shadowed
        return run

    monkeypatch.setattr(Run, "from_notebook", classmethod(from_notebook))
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for number, cell in enumerate(page(name)):
        if cell.cell_type == "code" and without not in cell.metadata.tags:
            source = cell.source
            for variable, value in changes.items():
                source = re.sub(
                    rf"(?m)^{variable} = .*$", lambda _, v=variable, x=value: f"{v} = {x}", source
                )
            exec(compile(source, f"{name}, cell {number}", "exec"), namespace)
    return namespace


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_page_names_the_parameters_that_it_reads_and_no_others(
    name: str, tiny_run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.chdir(ROOT)
    np.save(tmp_path / "own.npy", tiny_run.embeddings.array("embeddings"))
    own = {"encoder": "precomputed", "embeddings_path": str(tmp_path / "own.npy")}
    usual, unusual, given = (
        Run(Watched.make(values), tiny_run.store) for values in (TINY, UNUSUAL, TINY | own)
    )
    READ.clear()
    given.ensure("embeddings")  # on which every page builds
    run_page(name, usual, monkeypatch)
    run_page(name, unusual, monkeypatch, without="remove-cell")  # whose numbers are of no use
    named: dict = {}
    exec(next(c.source for c in page(name) if "parameters" in c.metadata.tags), named)
    assert {*named} & {*Params.model_fields} == READ | UNKEYED  # which only builds read


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_page_gives_no_parameter_another_value_on_its_way(name: str):
    """Its first cells can be run again after the last."""
    for cell in page(name):
        if cell.cell_type == "code" and "parameters" not in cell.metadata.tags:
            assert not {*Params.model_fields} & assigned(cell.source), cell.source


def assigned(source: str) -> set[str]:
    """Names that a cell binds, imports and functions among them."""
    symbols = symtable.symtable(source, "cell", "exec").get_symbols()
    return {s.get_name() for s in symbols if s.is_assigned() or s.is_imported()}


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("01_embeddings", {"query": "7", "K": "1"}),
        ("02_temi_clustering", {"mine": "np.arange(run.n) % 10"}),
        ("03_aum_dynamics", {"one": "5", "other": '"forgetting"'}),
        ("04_distribution_shift", {"parts": "1"}),
        ("05_double_end_pruning", {"by_hand": "0.9"}),
        ("06_coreset_evaluation", {"one, other": '"ccs", "elfs"'}),
        ("07_comparison", {"top": "0.05"}),
    ],
)
def test_what_a_reader_is_told_to_change_can_be_changed(
    name: str, changes: dict, tiny_run: Run, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(ROOT)
    for variable in changes:
        assert sum(f"\n{variable} = " in f"\n{cell.source}" for cell in page(name)), variable
    run_page(name, tiny_run, monkeypatch, **changes)


def test_page_2_names_the_clusterings_that_were_run(
    tiny_params: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(ROOT)
    params = tiny_params.model_copy(update={"clustering": "spectral"})
    run = Run(params, Store(tmp_path))
    namespace = run_page("02_temi_clustering", run, monkeypatch)
    quality = namespace["quality"]["accuracy"]
    assert [*quality.index[-2:]] == ["TEMI, aligned mean of heads", "spectral"]
    assert namespace["own"] == ["spectral"]
    assert quality["spectral"] == run.pseudo_quality.json("quality")["accuracy"]
    own = dataclasses.replace(run, params=params.model_copy(update={"relabel_rounds": 1}))
    namespace = run_page("02_temi_clustering", own, monkeypatch)
    assert [*namespace["quality"].index[-2:]] == ["spectral", "spectral, self-labelled"]


def test_the_way_from_k_means_to_a_coreset_that_page_2_shows(
    tiny_run: Run, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(ROOT)
    namespace = run_page("02_temi_clustering", tiny_run, monkeypatch)
    prose = "\n".join(cell.source for cell in page("02_temi_clustering"))
    lines = re.search(r"```python\n(.*?)```", prose, re.DOTALL).group(1)
    exec(lines, namespace)
    own, theirs = (
        run.coreset("elfs", 0.1).table("coreset")["index"] for run in (namespace["own"], tiny_run)
    )
    assert (namespace["own"].pseudo_labels == namespace["kmeans"]).all()
    assert len(own) == len(theirs) == 144 and set(own) != set(theirs)


def test_the_way_from_own_embeddings_that_page_1_shows(
    tiny_run: Run, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(ROOT)
    namespace = run_page("01_embeddings", tiny_run, monkeypatch)
    prose = "\n".join(cell.source for cell in page("01_embeddings"))
    exec(re.search(r"```python\n(.*?)```", prose, re.DOTALL).group(1), namespace)
    own = namespace["own"]
    assert own.embeddings.array("embeddings").shape == (tiny_run.n, 32)
    assert (own.pseudo_labels != tiny_run.pseudo_labels).any()


@pytest.mark.parametrize("name", ["02_temi_clustering", "05_double_end_pruning"])
def test_formulas_and_what_computes_them_are_not_folded(name: str):
    """A folded cell draws, or says what is computed elsewhere: no later cell needs it."""
    cells = [cell for cell in page(name) if cell.cell_type == "code"]
    folded = [c for c in cells if "hide-input" in c.metadata.tags]
    shown = "\n".join(
        c.source for c in cells if not {*c.metadata.tags} & {"hide-input", "remove-cell"}
    )
    needed = {node.id for node in ast.walk(ast.parse(shown)) if isinstance(node, ast.Name)}
    for cell in folded:
        if "parameters" not in cell.metadata.tags:
            assert not needed & assigned(cell.source) - assigned(shown), cell.source
    assert len(folded) < len(cells) / 2


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_page_says_first_what_goes_in_and_what_comes_out(name: str):
    first, *rest = page(name)
    assert "| goes in | comes out |" in first.source and first.source.startswith("# ")
    asserts = [c for c in rest if c.cell_type == "code" and "assert" in c.source]
    assert any("remove-cell" not in cell.metadata.tags for cell in asserts)
    assert sum("<details><summary>What happens on the digits" in cell.source for cell in rest) == 1


def test_pages_keep_the_slider_as_a_picture_and_no_widget():
    outputs = [o for name in NOTEBOOKS for c in page(name) for o in c.get("outputs", [])]
    assert len(outputs) > 50 and not any(WIDGET in o.get("data", {}) for o in outputs)
    (slider,) = (c for c in page("05_double_end_pruning") if "BetaSlider(" in c.source)
    assert "image/png" in slider.outputs[0].data
    for name in NOTEBOOKS:
        notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
        assert "widgets" not in notebook.metadata


def test_an_executed_page_is_kept_without_its_widgets(tmp_path: Path):
    cell = nbformat.v4.new_code_cell("x")
    data = {WIDGET: {"model_id": "1"}, "text/plain": "x"}
    cell.outputs = [nbformat.v4.new_output("display_data", data=data)]
    notebook = nbformat.v4.new_notebook(cells=[cell], metadata={"widgets": {"1": {}}})
    nbformat.write(notebook, tmp_path / "x.ipynb")
    tidy(tmp_path / "x.ipynb")
    kept = nbformat.read(tmp_path / "x.ipynb", as_version=4)
    assert kept.cells[0].outputs[0].data == {"text/plain": "x"} and "widgets" not in kept.metadata
