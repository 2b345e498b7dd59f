"""No code from data: parameters, checkpoints and file names that try to run something do nothing.

Malicious checkpoints are in test_encoders.py, arrays in test_artifacts.py, the report of
`elfs select` in test_own_images.py.
"""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
from PIL import Image

from elfs_lib.artifacts import Store
from elfs_lib.cli import commands as cli
from elfs_lib.errors import ElfsError
from elfs_lib.params import Params, parse_yaml
from elfs_lib.runs import pipeline
from elfs_lib.runs.spec import load_sweep

ROOT = Path(__file__).parents[1]
SOURCES = sorted([*(ROOT / "elfs_lib").rglob("*.py"), *(ROOT / "benchmarks").glob("*.py")])
TRAPS = [
    "!!python/object/apply:os.mkdir [trap]",
    "!!python/object/new:os.mkdir [trap]",
    '!!python/object/apply:builtins.exec [\'open("trap", "w")\']',
    "!!python/name:os.mkdir",
    "!!python/module:antigravity",
    "!!python/object/apply:subprocess.check_call [[mkdir, trap]]",
]


@pytest.fixture
def trap(tmp_path: Path, monkeypatch) -> Path:
    """What the traps would make in the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ELFS_ARTIFACTS_DIR", str(tmp_path / "artifacts"))
    return tmp_path / "trap"


@pytest.mark.parametrize("text", TRAPS)
def test_yaml_makes_no_objects(text: str, trap: Path, capsys, monkeypatch):
    Path("p.yaml").write_text(f"encoder: pixels\nseed: {text}\n")
    with pytest.raises(ElfsError, match=r"p.yaml is not valid YAML \(line 2\)"):
        Params.load("p.yaml")
    with pytest.raises(ElfsError, match="p.yaml is not valid YAML"):
        load_sweep(Path("p.yaml"))
    Path("p.yaml").write_text("dataset: digits\nencoder: pixels\n")
    monkeypatch.setattr(sys, "argv", ["elfs", "run", "p.yaml", "-p", f"seed={text}"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2 and "'seed' has a value that is not YAML" in capsys.readouterr().err
    assert not trap.exists()


def test_the_traps_would_work_on_a_careless_reader(trap: Path):
    import yaml

    yaml.unsafe_load(TRAPS[0])
    assert trap.exists()
    with pytest.raises(yaml.YAMLError):
        parse_yaml(TRAPS[0])


def calls(tree: ast.AST) -> list[tuple[str, ast.Call]]:
    """Each call of a module with the dotted name of what is called."""
    return [(ast.unparse(n.func), n) for n in ast.walk(tree) if isinstance(n, ast.Call)]


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: str(file.relative_to(ROOT)))
def test_sources_read_nothing_that_can_run(file: Path):
    tree = ast.parse(file.read_text())
    imported = {
        alias.name for n in ast.walk(tree) if isinstance(n, ast.Import) for alias in n.names
    }
    imported |= {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) if n.module}
    tops = {name.partition(".")[0] for name in imported}
    assert not tops & {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
    for name, call in calls(tree):
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        assert name not in ("eval", "exec", "compile", "os.system", "pd.read_pickle"), name
        assert given.get("shell", "False") == "False", name
        if name == "torch.load":
            assert given.get("weights_only") == "True"
        if name in ("np.load", "np.save"):
            assert given.get("allow_pickle") == "False"
        if name.startswith("yaml.") and "load" in name:
            assert name == "yaml.safe_load" or ast.unparse(call.args[1]) == "_Loader"


@pytest.mark.slow
def test_file_names_stay_text_on_the_pages_of_a_run(tmp_path: Path, monkeypatch):
    """Each page that lists files, of a folder whose names are markup."""
    photos = tmp_path / "photos"
    photos.mkdir()
    rng = np.random.default_rng(0)
    for number in range(40):
        pixels = rng.integers(0, 256, (8, 8), np.uint8)
        Image.fromarray(pixels).save(photos / f"<img src=x onerror=alert({number})><script>.png")
    values = {
        "dataset": "image_folder",
        "data_path": str(photos),
        "image_size": 8,
        "classes": 2,
        "encoder": "pixels",
        "flip": False,
        "crop_pad": 1,
        "device": "cpu",
        "neighbors": 3,
        "temi_heads": 2,
        "temi_epochs": 1,
        "temi_batch": 16,
        "temi_warmup_epochs": 0,
        "temi_hidden": 8,
        "temi_bottleneck": 8,
        "proxy_recipe": "speedrun_tiny",
        "proxy_epochs": 1,
        "budget": 0.5,
        "budgets": [0.5],
        "hard_prune_ratio": 0.1,
        "methods": ["elfs"],
        "eval_recipe": "speedrun_tiny",
        "eval_steps": 1,
        "eval_seeds": [0],
    }
    monkeypatch.setenv("ELFS_ARTIFACTS_DIR", str(tmp_path / "artifacts"))
    monkeypatch.setenv("ELFS_PROGRESS", "0")
    monkeypatch.chdir(ROOT)
    page = pipeline.execute("05_double_end_pruning", tmp_path / "pages", values)
    assert Store(tmp_path / "artifacts").artifacts()
    shown = [
        data
        for cell in nbformat.read(page, as_version=4).cells
        for output in cell.get("outputs", [])
        for kind, data in output.get("data", {}).items()
        if kind in ("text/html", "text/markdown")
    ]
    assert any("&lt;img src=x onerror=alert(" in text for text in shown)
    assert not [text for text in shown if re.search(r"<(script|img src=x)", text)]
