"""The book's sources: every citation has its entry, and nothing is fetched from a network."""

from __future__ import annotations

import ast
import json
import re
import tomllib
from importlib.metadata import distributions
from pathlib import Path

import nbformat
import pytest
import yaml
from packaging.specifiers import SpecifierSet

from elfs_lib.clustering import CLUSTERINGS
from elfs_lib.params import Params
from elfs_lib.results import headlines, verdict
from elfs_lib.results.tables import result_tables
from elfs_lib.runs.pipeline import NOTEBOOKS
from elfs_lib.selection import METHODS, SCORES

ROOT = Path(__file__).parents[1]
ENTRIES = set(
    re.findall(r"^@\w+\{([^,]+),", (ROOT / "book/references.bib").read_text(), re.MULTILINE)
)


@pytest.mark.parametrize(
    "entry",
    [*METHODS.values(), *SCORES.values(), *CLUSTERINGS.values()],
    ids=lambda entry: f"{type(entry).__name__} {entry.name}",
)
def test_every_method_score_and_clustering_cites_the_bibliography(entry):
    assert entry.citation in ENTRIES


def test_prose_cites_the_bibliography():
    for page in (ROOT / "book").glob("*.md"):
        for keys in re.findall(r"\{cite(?::\w+)?\}`([^`]+)`", page.read_text(encoding="utf-8")):
            assert set(re.split(r"[,\s]+", keys)) <= ENTRIES, page.name


def test_each_prose_page_is_in_the_contents():
    contents = (ROOT / "_toc.yml").read_text()
    for page in (ROOT / "book").glob("*.md"):
        assert f"book/{page.stem}" in contents


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_gives_its_parameters_the_type_meaning_and_value_of_the_digits(name: str):
    cells = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4).cells
    tags = [tag for cell in cells for tag in cell.metadata.get("tags", [])]
    assert tags.count("parameters") == 1 and "injected-parameters" not in tags
    source = next(c.source for c in cells if "parameters" in c.metadata.get("tags", []))
    digits = Params.load(ROOT / "params/digits.yaml").model_dump(mode="json")
    lines = source.splitlines()[1:]
    assert len(lines) > 10
    for line in lines:  # as papermill --help-notebook reads it
        pattern = r'(\w+): "?([\w ,\[\]]+?)"? = (.+?)  # (.+)'
        named, kind, value, meaning = re.fullmatch(pattern, line).groups()
        value, field = ast.literal_eval(value), Params.model_fields[named]
        assert value == digits[named], named
        # after a semicolon some list a registry, which grows
        assert f"{field.description};".startswith(f"{meaning};"), named
        known = {"None": type(None), "list": list, "int": int, "str": str, "bool": bool}
        kinds = [known.get(part.partition("[")[0], (int, float)) for part in kind.split(" or ")]
        assert any(isinstance(value, each) for each in kinds), line


def test_the_book_loads_nothing_from_a_network():
    config = yaml.safe_load((ROOT / "_config.yml").read_text())["sphinx"]["config"]
    assert config["mathjax_path"] == "mathjax/tex-svg.js"
    assert config["nb_ipywidgets_js"] == {}
    assert "sphinx_thebe" not in config["extensions"]
    for file in (ROOT / "book").rglob("*"):
        if file.suffix in {".css", ".svg"}:
            assert not re.search(r"(?:url\(|href=)[\"']?https?:", file.read_text()), file.name


def test_nbval_overlooks_what_differs_between_machines_and_nothing_else():
    config = (ROOT / "tests/nbval.cfg").read_text()
    rules = re.findall(r"^regex: (.*)$\n^replace: (.*)$", config, re.MULTILINE)  # as nbval reads it
    assert len(rules) == config.count("regex:")

    def seen(text: str) -> str:
        for rule, instead in rules:
            text = re.sub(rule, instead, text)
        return text

    stage = "torch 2.4.0.\n| proxy | `{}` | {} | {} | {} |"
    here = seen(stage.format("0123456789abcdef", "cpu (2 threads)", "0.1", "none"))
    assert seen(stage.format("f" * 16, "NVIDIA X, cuda 12", "120.0", "none")) == here
    assert seen(stage.format("f" * 16, "cpu", "0.1", "train:supervised")) != here
    cell = '<td id="T_{}_row0_col1" class="data row0 col1" >{}</td>'
    assert seen(cell.format("00000", "98.6%")) == seen(cell.format("fffff", "-3"))
    assert seen(cell.format("00000", "98.6%")) != seen(cell.format("00000", "nan"))
    for kept in ("names **97.3%** of", "30 trainings of 60 steps, 0.358 TFLOP", "seed 0, on 1,437"):
        assert seen(kept) == kept


def test_an_option_of_a_directive_is_one_line():
    """A second line would end the options: the rest would be shown as a caption."""
    pages = [path for path in (ROOT / "book").rglob("*.md") if "```{" in path.read_text()]
    assert pages
    for page in pages:
        for options in re.findall(
            r"^```\{[\w-]+\}.*\n((?::[\w-]+:.*\n.*\n?)*)", page.read_text(), re.MULTILINE
        ):
            for line in options.splitlines():
                assert not line.startswith((" ", "\t")), f"{page.name}: {line}"


def test_the_readme_shows_what_the_tables_hold(monkeypatch):
    monkeypatch.chdir(ROOT)
    every = {key: table for key, table in result_tables().items() if key[0] != "digits"}
    rows = verdict.verdict_rows(every)  # the digits are made anew by every run
    committed = json.loads(verdict.verdict_file().read_text())
    assert [row for row in committed if row["dataset"] != "digits"] == rows
    shown = (
        (ROOT / "README.md").read_text().partition(headlines.BEGIN)[2].partition(headlines.END)[0]
    )
    assert shown.strip() == "\n".join(headlines.in_words(rows))
    assert len((ROOT / "README.md").read_text().split()) <= 900
    whole = [row for row in rows if row["whole_pipelines"] and row["against"] == "random"]
    assert {row["dataset"] for row in whole} == {"cifar10", "cifar100", "fashion_mnist"}


@pytest.mark.slow
def test_the_readme_prints_what_it_says(capsys):
    """Scores may differ between processors, so the shape of the table is compared."""
    readme = (ROOT / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    (said,) = re.findall(r"```\n( rank .*?)```", readme, re.DOTALL)
    exec(compile(code, "README.md", "exec"), {})
    header, *rows = (line.split() for line in capsys.readouterr().out.splitlines()[-4:])
    assert header == said.splitlines()[0].split()
    assert [row[0] for row in rows] == [line.split()[0] for line in said.splitlines()[1:]]
    assert all(len(row) == len(header) for row in rows)


@pytest.mark.parametrize(
    "script",
    [*ROOT.glob("book/**/*.py"), *ROOT.glob("benchmarks/*.py")],
    ids=lambda path: path.name,
)
def test_what_scripts_of_the_book_import_is_there(script: Path):
    """Few of them are run by the tests: what made a page must still make it."""
    for node in ast.walk(ast.parse(script.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("elfs_lib"):
            exec(ast.unparse(node), {})


def test_the_lock_installs_on_the_oldest_python_that_the_project_names():
    names = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    oldest = names.removeprefix(">=") + ".0"
    pins = [line.split("==") for line in (ROOT / "requirements.lock").read_text().split()]
    installed = {d.name.lower().replace("_", "-"): d for d in distributions()}
    here = [installed[name] for name, *version in pins if version and name in installed]
    assert len(here) > 150
    needs = {d.name: d.metadata.get("Requires-Python") or "" for d in here}
    assert not {k: v for k, v in needs.items() if not SpecifierSet(v).contains(oldest)}
