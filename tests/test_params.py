"""Parameters: what is accepted, in the three ways they come in, and what they read as."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pydantic
import pytest
import yaml
from conftest import ROOT, TINY

from elfs_lib.clustering.temi_config import TemiConfig
from elfs_lib.embedding.embed import Views
from elfs_lib.embedding.emp_ssl import EmpSslConfig
from elfs_lib.embedding.self_supervised import SelfSupervisedConfig
from elfs_lib.errors import ElfsError
from elfs_lib.params import Params, parse_yaml, read_yaml
from elfs_lib.stages import Run

FILES = sorted(ROOT.glob("params/*.yaml"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_params_files_are_valid(file: Path):
    name = file.stem.removesuffix("_paper").removesuffix("_encoder")
    assert name == Params.load(file).dataset


def test_the_default_file_shows_every_parameter():
    assert set(read_yaml(ROOT / "params" / "digits.yaml")) == set(Params.model_fields)


def test_the_papers_params_hold_the_papers_numbers():
    paper = Params.load(ROOT / "params" / "cifar10_paper.yaml")
    assert (paper.temi_heads, paper.temi_epochs, paper.temi_batch) == (50, 200, 1024)
    assert (paper.temi_learning_rate, paper.temi_beta, paper.neighbors) == (1e-4, 0.6, 50)
    assert (paper.temi_teacher_momentum, paper.temi_warmup_epochs) == (0.996, 20)
    assert (paper.proxy_recipe, paper.proxy_epochs, paper.eval_steps) == ("resnet18", 200, 40_000)
    assert paper.hard_prune_ratios == tuple(round(0.1 * i, 1) for i in range(10))


def test_the_three_ways_in_agree(tmp_path: Path):
    as_lists = {k: list(v) if isinstance(v, tuple) else v for k, v in TINY.items()}
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(as_lists))
    assert Params.load(file) == Params.make(TINY) == Params.make(as_lists)
    every = Params.make(TINY).model_dump(mode="json")
    assert Params.from_notebook({**every, "In": [""], "run": 1, "np": 2}) == Params.make(TINY)


def test_overrides_win_over_the_file(tmp_path: Path):
    file = tmp_path / "p.yaml"
    file.write_text("dataset: digits\nseed: 1\nencoder: pixels\n")
    assert Params.load(file, {"seed": 5}).seed == 5
    assert Params.load(file).seed == 1 and Params.load(file).encoder == "pixels"


def test_a_share_is_a_float_and_a_count_is_an_integer():
    for value, kind in ((0.1, float), (1.0, float), (1, int), (144, int)):
        params = Params.make(TINY | {"budget": value, "budgets": [value]})
        assert type(params.budget) is kind and type(params.budgets[0]) is kind


def test_whole_numbers_do_for_real_ones_but_not_the_other_way():
    assert Params.make(TINY | {"temi_weight_decay": 0}).temi_weight_decay == 0.0
    with pytest.raises(ElfsError, match="'temi_epochs' is 4.0.*integer"):
        Params.make(TINY | {"temi_epochs": 4.0})


def test_parameters_cannot_be_changed_afterwards():
    with pytest.raises(pydantic.ValidationError):
        Params.make(TINY).seed = 3


def test_the_callers_mapping_is_left_alone():
    values = {"budgets": [0.1], "encoder": "pixels"}
    Params.make(values)
    assert values == {"budgets": [0.1], "encoder": "pixels"}


def test_names_injected_by_papermill_are_checked_and_others_are_not():
    cells = ["", "budget = 0.1\nmine = 3", "# Parameters\nbudget = 0.2\nseed = 1\n"]
    params = Params.from_notebook({"In": cells, "budget": 0.2, "seed": 1, "mine": 3})
    assert (params.budget, params.seed) == (0.2, 1)
    cells[2] += "bugdet = 0.3\n"
    with pytest.raises(ElfsError, match="Unknown parameter 'bugdet': did you mean 'budget'"):
        Params.from_notebook({"In": cells, "budget": 0.2})


def test_a_file_that_leaves_keys_out_means_the_same_to_papermill(tmp_path: Path, capsys):
    """A notebook's own values are for the digits, not defaults of other data."""
    page = read_yaml(ROOT / "params" / "digits.yaml")
    file = {"dataset": "image_folder", "data_path": "photos", "classes": 4}
    cell = "# Parameters\n" + "\n".join(f"{name} = {value!r}" for name, value in file.items())
    found = Params.from_notebook(page | file | {"In": ["", cell]})
    assert found == Params.make(file)
    said = capsys.readouterr().out
    assert "dataset, data_path, classes. All others are the library's defaults" in said
    found = Params.from_notebook(page | {"budget": 0.2, "In": ["", "# Parameters\nbudget = 0.2"]})
    assert found == Params.make(page | {"budget": 0.2})
    assert "All others are those of this notebook" in capsys.readouterr().out


def test_a_file_names_its_dataset(tmp_path: Path):
    """Else papermill could not tell it from changes to a page, and a run would have two sets."""
    (tmp_path / "mine.yaml").write_text("budget: 0.2\n")
    for overrides in ({}, {"dataset": "digits"}):
        with pytest.raises(ElfsError, match="mine.yaml names no dataset"):
            Params.load(tmp_path / "mine.yaml", overrides)


def test_what_a_page_does_not_name_is_that_of_its_datasets_file(monkeypatch):
    """A page names what it reads; an experiment on it may read more."""
    monkeypatch.chdir(ROOT / "notebooks")
    digits = Params.load(ROOT / "params" / "digits.yaml")
    assert digits.search_steps != Params().search_steps
    found = Params.from_notebook({"In": [""], "dataset": "digits", "seed": 3})
    assert found == digits.model_copy(update={"seed": 3})
    found = Params.from_notebook({"In": [""], "dataset": "image_folder", "data_path": "x"})
    assert found == Params(dataset="image_folder", data_path="x")


def test_a_run_from_a_notebook_is_checked_before_any_work(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("ELFS_ARTIFACTS_DIR", str(tmp_path / "artifacts"))
    with pytest.raises(ElfsError, match="neighbors.*5000.*1436"):
        Run.from_notebook(TINY | {"neighbors": 5000})
    done = {path.parent.name for path in (tmp_path / "artifacts").glob("*/*/")}
    assert done <= {"images"}


# --- YAML --------------------------------------------------------------------------------------


def test_yaml_reads_exponents_as_numbers():
    text = "a: 1e-4\nb: 2.5E3\nc: -1e+2\nd: 1.0e-4\ne: '1e-4'\nf: e5\ng: .5e1"
    assert parse_yaml(text) == {
        "a": 1e-4, "b": 2500.0, "c": -100.0, "d": 1e-4, "e": "1e-4", "f": "e5", "g": 5.0
    }  # fmt: skip
    assert yaml.safe_load("1e-4") == "1e-4"  # why: YAML 1.1 wants a point; this must not leak out


def test_yaml_knows_anchors_and_merges_but_no_key_twice():
    assert parse_yaml("a: &x {b: 1}\nc: {<<: *x, d: 2}") == {"a": {"b": 1}, "c": {"b": 1, "d": 2}}
    with pytest.raises(yaml.YAMLError, match="given twice"):
        parse_yaml("a: 1\nb: 2\na: 3")


@pytest.mark.parametrize(
    "content, words",
    [
        (b"seed: 0\n\tbudget: 0.1", r"not valid YAML \(line 2\)"),
        (b"seed: [0, 1", "not valid YAML"),
        (b"seed: 0\nseed: 1", r"\(line 2\): 'seed' is given twice"),
        (b"- seed", "'name: value' lines"),
        (b"", "'name: value' lines"),
        (b"\xff\xfe\x00s", "is not valid YAML: not text"),
        (b"seed: !!python/object/apply:os.system ['true']", "could not determine a constructor"),
        (b"? [a, b]\n: 1", "not valid YAML"),
    ],
)
def test_files_that_hold_no_parameters_are_one_sentence(tmp_path: Path, content: bytes, words: str):
    file = tmp_path / "p.yaml"
    file.write_bytes(content)
    with pytest.raises(ElfsError, match=words) as caught:
        Params.load(file)
    assert "\n" not in str(caught.value) and "p.yaml" in str(caught.value)


def test_paths_with_spaces_and_unicode_are_read(tmp_path: Path):
    file = tmp_path / "mes paramètres 図.yaml"
    file.write_text("dataset: digits\nseed: 3  # числа\nencoder: pixels\n", encoding="utf-8")
    assert Params.load(file).seed == 3


def test_a_beta_is_needed_only_where_something_prunes():
    loose = {"methods": ["random"], "budgets": [0.95], "hard_prune_ratio": 0.1}
    assert not Params.make(loose).searches_beta
    with pytest.raises(ElfsError, match="'budgets' .0.95. add up to more than 1"):
        Params.make(loose | {"hindsight_seeds": [0]})
    with pytest.raises(ElfsError, match="'budgets' .0.95. add up to more than 1"):
        Params.make(loose | {"methods": ["random", "elfs_true"]})


def test_numbers_of_numpy_are_numbers():
    assert Params.make({"seed": np.int64(3), "budget": np.float64(0.2)}).seed == 3


def test_of_many_names_the_nearest_is_said_alone():
    with pytest.raises(ElfsError, match=r"^Unknown parameter 'budgte': did you mean 'budget'\?$"):
        Params.make({"budgte": 0.1})


def test_a_list_as_papermill_passes_it_is_told_the_option_for_lists():
    with pytest.raises(ElfsError, match=r"'budgets' is the text .* -y 'budgets: \[0.1, 0.2\]'"):
        Params.make({"budgets": "[0.1, 0.2]"})


def test_a_wrong_parameter_is_a_value_error_of_one_sentence():
    """Of pydantic's checks and of ours alike, so that scripts can catch either."""
    for wrong in ({"crop_pad": -1}, {"score": "aumm"}, {"dataset": "digit"}, {"nothing": 1}):
        with pytest.raises(ValueError) as caught:
            Params.make(TINY | wrong)
        assert type(caught.value) is ElfsError
        assert "\n" not in str(caught.value) and "validation" not in str(caught.value)


SETS = [
    ("classes", TemiConfig, "classes"),
    ("encoder_epochs", SelfSupervisedConfig, "epochs"),
    ("encoder_epochs", EmpSslConfig, "epochs"),
    ("encoder_views", Views, "count"),
    ("encoder_view_area", Views, "area"),
    *((n, TemiConfig, n[5:]) for n in Params.model_fields if n.startswith("temi_")),
]


@pytest.mark.parametrize("name, config, field", SETS)
def test_a_parameter_has_the_bounds_of_what_it_sets(name: str, config: type, field: str):
    stated = next(f.metadata for f in dataclasses.fields(config) if f.name == field)
    bounds = [vars_of(bound) for bound in Params.model_fields[name].metadata]
    assert {k: v for bound in bounds for k, v in bound.items()} == stated


def vars_of(bound: object) -> dict[str, float]:
    return {k: getattr(bound, k) for k in ("ge", "gt", "le", "lt") if hasattr(bound, k)}


def test_a_configuration_takes_numpys_numbers_and_no_other_type():
    assert TemiConfig(classes=np.int64(3), beta=np.float32(0.5)).classes == 3
    for field, wrong in (("heads", True), ("heads", 2.5), ("beta", "0.5"), ("standardize", 1)):
        with pytest.raises(ElfsError, match=f"^{field} is {wrong!r}"):
            TemiConfig(classes=3, **{field: wrong})
