"""Bad input over parameters, the command and the Python API: one clear sentence, no traceback.

Each case names what the message must say: the parameter (or file), and, mostly, the way out.
"""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

import numpy as np
import pytest

import elfs_lib
from elfs_lib.cli import commands as cli
from elfs_lib.clustering import CLUSTERINGS
from elfs_lib.clustering.temi import TemiConfig, fit_temi
from elfs_lib.data.datasets import DATASETS
from elfs_lib.embedding.embed import embed
from elfs_lib.embedding.neighbors import nearest_neighbors
from elfs_lib.errors import ElfsError
from elfs_lib.params import Params
from elfs_lib.selection import METHODS, SCORES, SelectionInputs, budget_count, select_by

PARAMETERS = [
    ({"dataset": "digitz"}, "dataset 'digitz'.*digits"),
    ({"datset": "digits"}, "parameter 'datset'.*dataset"),
    ({"dataset": 3}, "'dataset' is 3"),
    ({"encoder": "pixel"}, "encoder 'pixel'.*pixels"),
    ({"encoder": "dino_vitb61"}, "encoder 'dino_vitb61'.*dino_vitb16"),
    ({"encoder": "efficientnet_lite0", "encoder_size": 0}, "'encoder_size' is 0"),
    ({"image_size": 1}, "'image_size' is 1"),
    ({"image_size": "big"}, "'image_size' is 'big'"),
    ({"classes": 1}, "'classes' is 1"),
    ({"classes": -3}, "'classes' is -3"),
    ({"classes": 2.5}, "'classes' is 2.5"),
    ({"flip": "yes"}, "'flip' is 'yes'"),
    ({"crop_pad": -1}, "'crop_pad' is -1"),
    ({"seed": -1}, "'seed' is -1"),
    ({"seed": 2**31}, "'seed' is"),
    ({"seed": "one"}, "'seed' is 'one'"),
    ({"seed": True}, "'seed' is True"),
    ({"device": "gpu"}, "device 'gpu'.*cuda"),
    ({"device": "cuda:x"}, "'device' is 'cuda:x'.*cuda:0"),
    ({"precision": "fp8"}, "'precision' is 'fp8'"),
    ({"neighbors": 0}, "'neighbors' is 0"),
    ({"neighbors": 2.5}, "'neighbors' is 2.5"),
    ({"temi_heads": 0}, "'temi_heads' is 0"),
    ({"temi_epochs": -1}, "'temi_epochs' is -1"),
    ({"temi_batch": 1}, "'temi_batch' is 1"),
    ({"temi_learning_rate": 0}, "'temi_learning_rate' is 0"),
    ({"temi_learning_rate": float("nan")}, "'temi_learning_rate' is nan"),
    ({"temi_teacher_momentum": 1.0}, "'temi_teacher_momentum' is 1.0"),
    ({"temi_beta": 0.0}, "'temi_beta' is 0"),
    ({"temi_weighting": "both"}, "'temi_weighting' is 'both'"),
    ({"neighbor_search": "flat"}, "'neighbor_search' is 'flat'"),
    ({"temi_pca": 1}, "'temi_pca' is 1"),
    ({"temi_keep_heads": 0.0}, "'temi_keep_heads' is 0"),
    ({"pseudo_labels": "best"}, "'pseudo_labels' is 'best'"),
    ({"relabel_keep": 1.5}, "'relabel_keep' is 1.5"),
    ({"proxy_recipe": "resnet81"}, "recipe 'resnet81'.*resnet18"),
    ({"eval_recipe": "speed_run"}, "recipe 'speed_run'.*speedrun"),
    ({"proxy_epochs": 0}, "'proxy_epochs' is 0"),
    ({"proxy_weights": "confidence", "pseudo_labels": "lowest_loss"}, "of the aligned mean"),
    ({"relabel_rounds": 1, "pseudo_labels": "plain_mean"}, "of the aligned mean"),
    ({"proxy_weights": "confident"}, "'proxy_weights' is 'confident'"),
    ({"score": "amu"}, "score 'amu'.*aum"),
    ({"budget": 0}, "'budget' is 0"),
    ({"budget": -0.1}, "'budget' is -0.1"),
    ({"budget": 1.5}, "'budget' is 1.5"),
    ({"budget": "0.1"}, "'budget' is '0.1'"),
    ({"budget": float("inf")}, "'budget' is inf"),
    ({"budgets": []}, "'budgets'"),
    ({"budgets": [0.1, 0.1]}, "'budgets'.*twice"),
    ({"budgets": 0.1}, "'budgets' is 0.1"),
    ({"hard_prune_ratio": 1.0}, "'hard_prune_ratio' is 1.0"),
    ({"hard_prune_ratio": 0.8, "budget": 0.3}, "hard_prune_ratio.*add up"),
    ({"hard_prune_ratios": [0.0, 1.2]}, "'hard_prune_ratios' holds 1.2"),
    ({"methods": ["random", "elf"]}, "method 'elf'.*elfs"),
    ({"methods": "random"}, "'methods' is 'random'"),
    ({"eval_seeds": [0, 0]}, "'eval_seeds'.*twice"),
    ({"eval_steps": 0}, "'eval_steps' is 0"),
]


@pytest.mark.parametrize("values, words", PARAMETERS, ids=lambda v: str(v)[:40])
def test_parameters(values: dict, words: str):
    base = {"encoder": "pixels"} if "encoder" not in values else {}
    with pytest.raises(ElfsError) as caught:
        Params.make(base | values)
    assert re.search(words, str(caught.value)), str(caught.value)
    assert "\n" not in str(caught.value)


def command(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    """Run ``elfs`` in this process: (exit code, stderr)."""
    stderr = io.StringIO()
    monkeypatch.setattr(sys, "argv", ["elfs", *arguments])
    monkeypatch.setattr(sys, "stderr", stderr)
    monkeypatch.setenv("ELFS_DEBUG", "")  # --debug sets it; this way the test's end undoes that
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return stop.value.code, stderr.getvalue()


def test_the_version_names_what_decides_the_numbers(capsys, monkeypatch):
    code, _ = command(["--version"], monkeypatch)
    assert code == 0 and re.match(r"elfs \S+, torch \S+, timm ", capsys.readouterr().out)


def test_every_parameter_is_listed_with_its_default_and_meaning(capsys, monkeypatch):
    command(["params"], monkeypatch)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(Params.model_fields)
    assert not [line for line in lines if "None (default" in line]
    assert any("(default: [0.1, 0.2, 0.3, 0.5, 0.7])" in line for line in lines)


def test_every_method_score_clustering_and_dataset_is_listed(capsys, monkeypatch):
    command(["methods"], monkeypatch)
    lines = capsys.readouterr().out.splitlines()
    expected = [*METHODS.values(), *SCORES.values(), *CLUSTERINGS.values()]
    for line, entry in zip(lines, expected, strict=True):
        assert line.split()[0] == entry.name and entry.summary in line
    for line, score in zip(lines[len(METHODS) :], SCORES.values(), strict=False):
        assert score.range in line and score.hard in line and score.citation in line
    command(["datasets"], monkeypatch)
    lines = capsys.readouterr().out.splitlines()
    for line, spec in zip(lines, DATASETS.values(), strict=True):
        assert line.split()[0] == spec.name and spec.description in line
        assert ("data_path" in line) == spec.needs_path


@pytest.mark.parametrize("size", ["4", "1"])
def test_a_number_of_processes_alone_is_no_torchrun(size: str, capsys, monkeypatch):
    """Some clusters set it for every job."""
    monkeypatch.setenv("WORLD_SIZE", size)
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    code, said = command(["methods"], monkeypatch)
    assert (code, said) == (0, "") and "random" in capsys.readouterr().out


FILES = {
    "tabs.yaml": "dataset: digits\n\tseed: 1\n",
    "list.yaml": "- digits\n",
    "empty.yaml": "",
    "twice.yaml": "seed: 1\nseed: 2\n",
    "code.yaml": "dataset: !!python/object/apply:os.system ['true']\n",
    "unknown.yaml": "dataset: digits\nbudgte: 0.1\n",
    "deep.yaml": "methods: " + "[" * 3000 + "]" * 3000,
    "day.yaml": "encoder: pixels\nseed: 2020-13-45\n",
    "octal.yaml": "encoder: pixels\nseed: 010\n",
    "clock.yaml": "encoder: pixels\nseed: 1:30\n",
    "nan.yaml": "encoder: pixels\nbudget: .nan\n",
    "huge.yaml": "dataset: digits\nencoder: pixels\nbudget: 1" + "0" * 25,
    "two.yaml": "encoder: pixels\n---\nseed: 1\n",
    "sweep.yaml": "params: [späte bilder.yaml]\nmethods: [random]\nbudgets: [0.1]\nseeds: [0]\n",
    "späte bilder.yaml": "dataset: digits\nencoder: pixels\nneighbors: 2000\n",
    "ok.yaml": "dataset: digits\nencoder: pixels\ncrop_pad: 1\n",
    "bilder/nichts.txt": "",
}


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["run", "missing.yaml"], "missing.yaml.*check the path"),
        (["run", "."], "Cannot read"),
        (["run", "tabs.yaml"], r"tabs.yaml is not valid YAML \(line 2\)"),
        (["run", "list.yaml"], "list.yaml must hold"),
        (["run", "empty.yaml"], "empty.yaml must hold"),
        (["run", "twice.yaml"], "given twice"),
        (["run", "code.yaml"], "code.yaml is not valid YAML"),
        (["run", "unknown.yaml"], "parameter 'budgte'.*budget"),
        (["run", "späte bilder.yaml"], "'neighbors' is 2000.*1436"),
        (["run", "späte bilder.yaml", "-p", "neighbors"], "name=value"),
        (["run", "späte bilder.yaml", "-p", "nieghbors=3"], "'nieghbors'.*neighbors"),
        (["run", "späte bilder.yaml", "-p", "seed=[1"], "'seed' has a value that is not YAML"),
        (["run", "deep.yaml"], "deep.yaml is not valid YAML.*nested"),
        (["run", "day.yaml"], "'seed' is '2020-13-45'"),
        (["run", "octal.yaml"], "'seed' is '010'"),
        (["run", "clock.yaml"], "'seed' is '1:30'"),
        (["run", "nan.yaml"], "'budget' is nan.*finite"),
        (["run", "huge.yaml"], "budget 1000.*1437"),
        (["run", "two.yaml"], "two.yaml is not valid YAML.*another document"),
        (["run", "ok.yaml", "-p", "=3"], "name=value, not '=3'"),
        (["run", "ok.yaml", "-p", "temi_pca=2000"], "'temi_pca' is 2000.*at most 1437"),
        (["run", "ok.yaml", "-p", "seed=1", "-p", "seed=2"], "'seed' is given twice"),
        (["run", "ok.yaml", "-p", "seed="], "'seed' is None"),
        (["run", "ok.yaml", "-p", "budget='0.1'"], "'budget' is '0.1'"),
        (["run", "ok.yaml", "-p", "classes=5"], "'classes' is 5.*10 classes"),
        (["run", "ok.yaml", "-p", "budgets=[0.1, 144]"], "same number of the 1437.*keep one"),
        (["run", "ok.yaml"], "no 01_embeddings.ipynb.*project"),
        (["run", "ok.yaml", "-p", "data_path=bilder"], "'data_path' is for.*'digits'"),
        (["run", "ok.yaml", "-p", "dataset=image_folder", "-p", "data_path=ok.yaml"], "is a file"),
        (["run", "ok.yaml", "-p", "dataset=parquet", "-p", "data_path=bilder"], "no .parquet file"),
        (["verify"], "no artifact in.*ELFS_ARTIFACTS_DIR"),
        (["methods", "--n", "10", "--budget", "inf"], "budget must be a number, not inf"),
        (["methods", "--n", "9" * 30], "'--n'.*less than"),
        (["sweep", "bilder"], "Cannot read bilder: Is a directory"),
        (["sweep", "ok.yaml"], "not a sweep: try elfs run ok.yaml"),
        (["run", "sweep.yaml"], "is a sweep.*try elfs sweep sweep.yaml"),
        (["sweep", "sweep.yaml"], "'neighbors' is 2000"),
        (["sweep", "sweep.yaml", "--scheduler", ""], "--scheduler is empty"),
        (["sweep", "sweep.yaml", "--scheduler", "tcp://x:1", "-w", "2"], "--workers.*leave it out"),
        (["select", "bilder", "--budget", "5"], "path 'bilder' has no image files"),
        (["select", "bilder", "--budget", "nan", "--no-report"], "budget is nan"),
        (["select", "bilder", "--budget", "inf", "--no-report"], "budget is inf"),
        (["select", "bilder", "--budget", "5", "--copies", "nan", "--no-report"], "copies is nan"),
        (["select", "bilder", "--budget", "5", "-k", "pythn3"], "kernel 'pythn3'.*'python3'"),
        (["book"], "no results.ipynb.*project"),
        (["status", "missing.yaml"], "check the path"),
        (["rnu", "missing.yaml"], "rnu"),
        (["run"], "params_file"),
        (["methods", "--n", "0"], "n, dim and classes"),
        (["methods", "--n", "many"], "'--n'"),
        (["methods", "--dim", "64"], "--dim is for the cost alone: give --n"),
        (["sweep", "missing.yaml"], "missing.yaml"),
        (["select", "missing", "--classes", "10", "--budget", "5"], "missing"),
    ],
    ids=lambda v: " ".join(v)[:60] if isinstance(v, list) else None,
)
def test_command(arguments: list[str], words: str, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ELFS_ARTIFACTS_DIR", str(tmp_path / "artifacts"))
    (tmp_path / "bilder").mkdir()
    for name, text in FILES.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    code, said = command(arguments, monkeypatch)
    assert code not in (0, None)
    assert said.startswith("elfs: ") and said.count("\n") == 1, said
    assert re.search(words, said, re.IGNORECASE), said
    assert not (tmp_path / "artifacts" / "embeddings").exists()  # refused before any work


def test_a_package_that_is_missing_is_named(monkeypatch):
    def needs(*args, **options):
        raise ModuleNotFoundError("No module named 'faiss'", name="faiss")

    monkeypatch.setattr(cli, "app", needs)
    code, error = command(["encoders"], monkeypatch)
    assert code == 2 and "Python package faiss-cpu, which is missing" in error


def test_options_have_a_long_form(tmp_path: Path, monkeypatch):
    (tmp_path / "p.yaml").write_text("encoder: pixels\n")
    words = ["run", str(tmp_path / "p.yaml"), "--param", "seed=-1", "--kernel", "python3"]
    code, error = command(words, monkeypatch)
    assert code == 2 and "'seed' is -1" in error


def test_the_package_lists_what_it_offers():
    assert dir(elfs_lib) == ["__version__", "select"]


def test_debug_shows_the_traceback(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, said = command(["--debug", "run", "missing.yaml"], monkeypatch)
    assert code == 2 and "Traceback" in said


def rows(n: int = 20) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((n, 4)).astype(np.float32)


def with_nan() -> np.ndarray:
    bad = rows()
    bad[3, 1] = np.nan
    return bad


NEAR = np.zeros((20, 3), dtype=np.int32)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: nearest_neighbors(with_nan(), 3), "embeddings"),
        (lambda: nearest_neighbors(np.zeros((20, 4), np.float32), 3), "zero"),
        (lambda: nearest_neighbors(rows(), 20), "20"),
        (lambda: nearest_neighbors(rows(), 0), "0"),
        (lambda: nearest_neighbors(rows(), 2.5), "k is 2.5.*whole number"),
        (lambda: nearest_neighbors(rows(), "3"), "k is '3'"),
        (lambda: fit_temi(with_nan(), NEAR, TemiConfig(classes=3)), "embeddings"),
        (lambda: fit_temi(rows(), NEAR[:5], TemiConfig(classes=3)), "neighbors"),
        (lambda: fit_temi(rows(), NEAR, TemiConfig(classes=30)), "classes"),
        (lambda: TemiConfig(classes=1), "classes"),
        (lambda: embed(rows(), "pixels"), "images"),
        (lambda: budget_count(0, 100), "budget"),
        (lambda: budget_count(101, 100), "budget"),
        (lambda: budget_count(1.5, 100), "budget"),
        (lambda: select_by("elfs", SelectionInputs(n=20), 5, hard_prune_ratio=0.1), "scores"),
        (lambda: select_by("k_centre", SelectionInputs(n=20), 5), "k_center"),
        (lambda: select_by("random", SelectionInputs(n=20), 21), "count"),
        (lambda: select_by("random", SelectionInputs(n=20), 5, gamma=1), "gamma"),
    ],
)
def test_python_api(call, words: str):
    with pytest.raises(ElfsError) as caught:
        call()
    assert re.search(words, str(caught.value)), str(caught.value)
    assert "\n" not in str(caught.value)
