"""The line under a results page: the command in it really makes the same run."""

from __future__ import annotations

import re
import shlex
import subprocess

import pytest
from conftest import ROOT, TINY

from elfs_lib.artifacts import package_versions
from elfs_lib.cli.shared import parse_overrides
from elfs_lib.params import Params
from elfs_lib.results.provenance import as_options, command, provenance
from elfs_lib.stages import Run


@pytest.fixture(autouse=True)
def in_the_project(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def params_of(line: str) -> Params:
    """What ``elfs run`` would make of a command line, split as a shell splits it."""
    program, verb, file, *rest = shlex.split(line)
    assert (program, verb) == ("elfs", "run")
    assert rest[::2] == ["-p"] * (len(rest) // 2)
    return Params.load(ROOT / file, parse_overrides(rest[1::2]))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        TINY,
        {"seed": 3, "budget": 144, "budgets": [0.1, 300]},
        {"temi_learning_rate": 1e-5, "temi_weight_decay": 1e-7, "hard_prune_ratio": 0.25},
        {"methods": ["random", "elfs_el2n"], "eval_seeds": [7], "flip": True, "crop_pad": 0},
        {"encoder": "pixels", "device": "cpu", "eval_epochs": 3, "temi_pca": 8},
    ],
)
def test_the_command_makes_the_same_parameters(changes: dict):
    base = Params.load(ROOT / "params" / "digits.yaml")
    params = Params.make({**base.model_dump(), **changes})
    assert params_of(command(params)) == params


def test_only_what_differs_from_the_params_file_is_named():
    base = Params.load(ROOT / "params" / "digits.yaml")
    assert command(base) == "elfs run params/digits.yaml"
    changed = base.model_copy(update={"seed": 4})
    assert command(changed) == "elfs run params/digits.yaml -p seed=4"


def test_peoples_own_data_has_a_command_that_runs_too(tmp_path):
    """There is no params/image_folder.yaml: the command writes its file first."""
    own = {"dataset": "image_folder", "data_path": "Ann's photos", "classes": 4, "seed": 2}
    params = Params.make({**own, "temi_learning_rate": 1e-5, "budgets": [0.1, 30]})
    write, run = command(params).split(" && ")
    subprocess.run(write, shell=True, cwd=tmp_path, check=True)
    assert run == "elfs run own.yaml"
    assert Params.load(tmp_path / "own.yaml") == params


def test_a_page_names_command_seed_versions_and_the_labels_that_were_opened(tiny_run: Run):
    text = provenance(tiny_run, [tiny_run.pseudo, tiny_run.true_proxy])
    assert f"`{command(tiny_run.params)}`" in text and "with seed 0" in text
    assert "1,437 training images" in text
    assert (
        "**Embeddings:** `pixels`: none: the pixel values themselves; labels seen in it: no."
        in text
    )
    for name, version in package_versions().items():
        assert f"{name} {version}" in text
    coresets = provenance(tiny_run, [tiny_run.coreset(m, 0.1) for m in ("random", "ccs")])
    assert [line.split(" | ")[-1] for line in coresets.splitlines()[-2:]] == [
        "none |",
        "none here (supervised) |",  # though it opened none, it was chosen by scores of true labels
    ]
    assert "| coreset, ccs |" in coresets
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| pseudo")]
    rows += [line.split(" | ") for line in text.splitlines() if line.startswith("| true_proxy")]
    assert [row[-1] for row in rows] == ["none |", "train:supervised |"]
    assert rows[0][1] == f"`{tiny_run.pseudo.key}`"
    assert all(re.fullmatch(r"\d+\.\d", row[3]) and "cpu" in row[2] for row in rows)


def test_a_page_names_the_file_of_the_encoder_and_what_makes_one(tiny_run: Run, monkeypatch):
    facts = {"encoder": "self_supervised", "pretraining": "some views", "saw_labels": False}
    monkeypatch.setattr(Run, "encoder_facts", facts)
    checkpoint = {"encoder": "self_supervised", "encoder_checkpoint": "/home/me/own.safetensors"}
    own = Run(tiny_run.params.model_copy(update=checkpoint), tiny_run.store)
    text = provenance(own, [])
    assert "`self_supervised` with the weights of `own.safetensors`, such as `elfs train-e" in text
    assert "some views; labels seen in it: no." in text and "/home" not in text.split("Emb")[1]
    facts |= {"encoder": "dino_vitb16", "saw_labels": None}
    text = provenance(own, [])
    assert "`dino_vitb16`: some views; labels seen in it: not known." in text


def test_a_page_says_that_pseudo_labels_were_brought(tiny_run: Run):
    own = tiny_run.with_pseudo_labels(tiny_run.pseudo_labels, "labels of mine")
    assert "'labels of mine'" in provenance(own, [own.pseudo])
    assert "of mine" not in provenance(tiny_run, [tiny_run.pseudo])


@pytest.mark.parametrize("text", ["my #photos", "a: b", "1e5", "null", "plain", "aligned_mean"])
def test_a_printed_option_reads_back_as_it_was(text: str):
    option = as_options({"data_path": text})[0].removeprefix("-p ")
    assert parse_overrides([shlex.split(option)[0]]) == {"data_path": text}
