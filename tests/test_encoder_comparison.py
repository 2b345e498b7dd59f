"""Encoders compared: what a row holds, that it grows and resumes, and what the page may say."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import TINY

from elfs_lib.artifacts import Store
from elfs_lib.cli import commands as cli
from elfs_lib.data.datasets import load_images, load_labels
from elfs_lib.embedding import embed as embedding
from elfs_lib.embedding.neighbors import nearest_neighbors
from elfs_lib.errors import ElfsError
from elfs_lib.params import Params
from elfs_lib.results import encoder_comparison
from elfs_lib.results.encoder_comparison import (
    ENCODER_COLUMNS,
    as_shown,
    compare_encoders,
    sentences,
)
from elfs_lib.stages import Run
from elfs_lib.stages.embedding import encoder_training


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("project")
    (root / "_toc.yml").write_text("")
    values = {k: list(v) if isinstance(v, tuple) else v for k, v in TINY.items()}
    values |= {"encoder_epochs": 1, "encoder_network": "convnet_tiny", "eval_steps": 5}
    (root / "digits.yaml").write_text(yaml.safe_dump(values))
    return root


@pytest.fixture(scope="module")
def compared(project: Path) -> pd.DataFrame:
    file, store = project / "digits.yaml", Store(project / "store")
    table = project / "encoders.csv"
    compare_encoders(file, ["pixels"], table, store)
    return compare_encoders(file, ["self_supervised"], table, store)


def plain_vote(points: np.ndarray, labels: np.ndarray, k: int) -> tuple[float, float]:
    """Accuracy of the weighted vote and purity, image by image."""
    unit = points / np.linalg.norm(points, axis=1, keepdims=True)
    similarity = unit @ unit.T
    np.fill_diagonal(similarity, -2)
    right = pure = 0.0
    for row, own in zip(similarity, labels):
        near = np.argsort(-row, kind="stable")[:k]
        votes = np.bincount(labels[near], row[near] + 1)
        right += votes.argmax() == own
        pure += (labels[near] == own).mean()
    return 100 * right / len(labels), 100 * pure / len(labels)


def plain_information(images: np.ndarray, labels: np.ndarray) -> float:
    """Mutual information of the labels of neighbours, pair by pair."""
    indices = nearest_neighbors(images.reshape(len(images), -1).astype("f4"), TINY["neighbors"])
    table = np.zeros((10, 10))
    for own, near in zip(labels, labels[indices.indices]):
        np.add.at(table[own], near, 1)
    table /= table.sum()
    apart = np.outer(table.sum(axis=1), table.sum(axis=0))
    there = table > 0
    return (table[there] * np.log(table[there] / apart[there])).sum()


def test_rows_grow_and_hold_what_they_say(compared: pd.DataFrame, project: Path):
    assert list(compared.columns) == list(ENCODER_COLUMNS) and len(compared) == 2
    assert compared["knn_accuracy"].is_monotonic_decreasing
    row = compared.set_index("encoder").loc["pixels"]
    assert row["is_default"] and not row["saw_labels"] and row["dimensions"] == 64
    images = load_images("digits").train
    assert row["images"] == len(images)
    labels = load_labels("digits", "train")
    right, pure = plain_vote(images.reshape(len(images), -1).astype(float), labels, 10)
    assert row["knn_accuracy"] == pytest.approx(right, abs=0.2)  # by ties
    assert row["neighbor_purity"] == pytest.approx(pure, abs=0.05)
    assert row["class_information"] == pytest.approx(plain_information(images, labels), abs=0.005)
    by_seed = [float(text) for text in row["elfs_by_seed"].split()]
    assert len(by_seed) == row["seeds"] == 2
    assert row["eval_seeds"] == "0 1"
    assert np.mean(by_seed) == pytest.approx(row["elfs_accuracy"], abs=1e-3)
    assert np.std(by_seed, ddof=1) == pytest.approx(row["elfs_sd"], abs=1e-3)
    assert row["difference"] == pytest.approx(
        row["elfs_accuracy"] - row["random_accuracy"], abs=1e-3
    )
    assert (compared["cpu_s"] > 0).all()
    params = Params.load(project / "digits.yaml")
    run = Run(params, Store(project / "store", look=True))
    assert row["hard_prune_ratio"] == run.hard_prune_ratio(row["budget"])
    assert row["command"] == "elfs compare-encoders params/digits.yaml pixels"


def test_a_second_time_finds_everything(compared: pd.DataFrame, project: Path, monkeypatch):
    store = Store(project / "store", look=True)  # raises where something would be computed
    names = ["self_supervised", "pixels"]
    file, table = project / "digits.yaml", project / "encoders.csv"
    again = compare_encoders(file, names, table, store)
    pd.testing.assert_frame_equal(again, compared)


def test_random_coresets_are_shared_between_encoders(compared: pd.DataFrame):
    assert compared["random_accuracy"].nunique() == 1
    assert compared["knn_accuracy"].nunique() == 2  # and the encoders are not


def test_the_trained_encoders_artifact_depends_on_seed_flip_and_epochs(tiny_params, tmp_path: Path):
    def key(encoder: str, **changes: object) -> str:
        params = tiny_params.model_copy(update={"encoder": encoder, **changes})
        stage = "embeddings" if encoder == "pixels" else "encoder"
        return json.dumps(Run(params, Store(tmp_path)).call(stage).key_params, sort_keys=True)

    for change in ({"seed": 1}, {"flip": True}, {"encoder_epochs": 3}):
        assert key("self_supervised") != key("self_supervised", **change)
        assert key("pixels") == key("pixels", **change)
    config = encoder_training(
        tiny_params.model_copy(update={"encoder": "self_supervised", "encoder_epochs": 3})
    )
    assert (config.flip, config.epochs) == (False, 3)


def test_joined_encoders_share_the_work_of_each(tiny_params, tmp_path: Path, monkeypatch):
    changes = {"encoder_epochs": 1, "encoder_network": "convnet_tiny", "eval_steps": 5}
    store, calls = Store(tmp_path), []

    def run(encoder: str) -> Run:
        return Run(tiny_params.model_copy(update={"encoder": encoder, **changes}), store)

    embed = embedding.embed
    monkeypatch.setattr(
        embedding,
        "embed",
        lambda images, name, **kw: calls.append(name) or embed(images, name, **kw),
    )
    alone = [np.array(run(n).embeddings.array("embeddings")) for n in ("pixels", "self_supervised")]
    joined = run("pixels+self_supervised")
    found = joined.embeddings.array("embeddings")
    assert calls == ["pixels", "self_supervised"]
    rows = [block / np.linalg.norm(block, axis=1, keepdims=True) for block in alone]
    np.testing.assert_allclose(found, np.concatenate(rows, axis=1), atol=1e-6)
    assert set(joined.embeddings.manifest["inputs"]) == {"images", "pixels", "self_supervised"}


def test_a_checkpoint_and_a_size_stay_with_the_encoder_of_the_file():
    file = {"encoder": "pixels", "encoder_size": 16}
    params = encoder_comparison.params_with
    assert params(file, {}, "pixels").encoder_size == 16
    assert params(file, {}, "self_supervised").encoder_size is None
    assert params(file, {"encoder_size": 64}, "self_supervised").encoder_size == 64


def test_each_input_size_of_an_encoder_has_a_row_of_its_own(tmp_path: Path):
    table, rows = tmp_path / "table.csv", made_up("70", "80").to_dict("records")
    for row in rows:
        encoder_comparison.write_row(table, row)
    for size, accuracy in ((16, 71.0), (16, 72.0), (None, 73.0)):
        changes = {"encoder": "b", "input_size": size, "temi_accuracy": accuracy}
        encoder_comparison.write_row(table, rows[1] | changes)
    found = pd.read_csv(table)
    assert sorted(map(encoder_comparison.named, found.itertuples())) == ["a", "b", "b at 16 px"]
    assert set(found["temi_accuracy"]) == {35.0, 72.0, 73.0}
    assert "b at 16 px against the default, a" in " ".join(sentences(found))
    encoder_comparison.write_row(table, rows[0] | {"seed": 1, "is_default": False})
    again = pd.read_csv(table)
    assert len(again) == 4 and again["is_default"].sum() == 1
    said = " ".join(sentences(again))
    assert "a, seed 1 against the default, a" in said and "of 3 that were measured" in said
    before = found[found["input_size"].isna()].drop(columns=["input_size", "seed"])
    before.to_csv(table, index=False)  # as tables were before there was the column
    encoder_comparison.write_row(table, rows[0] | {"input_size": 32})
    found = pd.read_csv(table)
    assert found["is_default"].sum() == 1 and "a at 32 px" in " ".join(sentences(found))


def test_a_row_of_another_seed_or_setting_stands_beside_the_default(
    project: Path, tmp_path: Path, monkeypatch
):
    def compare(run: Run, **_: object) -> dict:
        return made_up("70").iloc[0].to_dict() | {"encoder": run.params.encoder}

    monkeypatch.setattr(encoder_comparison, "compare", compare)
    file, table = project / "digits.yaml", tmp_path / "table.csv"
    longer = {"seed": 1, "encoder_epochs": 7, "encoder_network": "resnet18"}
    again = {"seed": 0, "device": "auto", "eval_seeds": [3]}
    for overrides in ({}, again, {"seed": 1}, longer, longer):
        found = compare_encoders(file, ["pixels"], table, Store(tmp_path), overrides=overrides)
    assert dict(zip(map(encoder_comparison.named, found.itertuples()), found["is_default"])) == {
        "pixels": True,
        "pixels, seed 1": False,
        "pixels, seed 1, encoder_epochs=7, encoder_network=resnet18": False,
    }
    options = "-p seed=1 -p encoder_epochs=7 -p encoder_network=resnet18"
    assert found["command"].str.endswith(options).sum() == 1


def test_mistakes_are_told_before_any_work(project: Path, tmp_path: Path, monkeypatch, capsys):
    store = Store(tmp_path / "store")
    with pytest.raises(ElfsError, match="did you mean 'pixels'"):
        compare_encoders(project / "digits.yaml", ["pixels", "pixel"], tmp_path / "t.csv", store)
    with pytest.raises(ElfsError, match="as arguments"):
        compare_encoders(
            project / "digits.yaml", ["pixels"], tmp_path / "t.csv", store,
            overrides={"encoder": "pixels"},
        )  # fmt: skip
    assert not (tmp_path / "store").exists() and not (tmp_path / "t.csv").exists()


def test_the_command_writes_where_the_book_looks(project: Path, monkeypatch, capsys, compared):
    monkeypatch.chdir(project)
    monkeypatch.setenv("ELFS_ARTIFACTS_DIR", str(project / "store"))
    words = ["compare-encoders", "digits.yaml", "pixels"]
    monkeypatch.setattr(sys, "argv", ["elfs", *words])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert not stop.value.code
    assert "book/runs/digits/encoders.csv" in capsys.readouterr().out
    tables = encoder_comparison.comparison_tables()
    assert list(tables) == ["digits"] and list(tables["digits"]["encoder"]) == ["pixels"]


def made_up(*by_seed: str) -> pd.DataFrame:
    """The default and others, with the accuracies given."""
    rows = []
    for number, text in enumerate(by_seed):
        values = [float(part) for part in text.split()]
        rows.append(
            dict.fromkeys(ENCODER_COLUMNS)
            | {
                "dataset": "cifar10", "encoder": "abc"[number], "input_size": np.nan,
                "seed": np.nan,
                "saw_labels": [True, None][number % 2],
                "images": 100, "knn_accuracy": 50.0 + number, "neighbor_purity": 40.0,
                "kmeans_accuracy": 30.0, "temi_accuracy": 35.0, "budget": 0.1, "seeds": len(values),
                "elfs_accuracy": np.mean(values), "elfs_sd": np.nan, "elfs_by_seed": text,
                "eval_seeds": np.nan, "hard_prune_ratio": np.nan, "recipe": "resnet18",
                "difference": 1.0, "low": np.nan, "high": np.nan, "wall_s": 2.0, "cpu_s": np.nan,
                "temi_information": np.nan, "class_information": np.nan,
                "is_default": number == 0,
            }
        )  # fmt: skip
    return pd.DataFrame(rows)


def test_the_page_says_no_more_than_the_numbers_do():
    better = sentences(made_up("70 71 72", "75 76.1 77", "70.5 70 73"))
    assert "neighbours of c are the best" in better[0]
    assert "+5.0 points" in better[1] and "no evidence" not in better[1]
    assert "no evidence of a difference" in better[2]
    assert (
        "not support the default of CIFAR-10 (2 wall s): b (2 wall s to embed) did better"
        in better[3]
    )
    worse = sentences(made_up("75 76.1 77", "70 71 72"))
    assert "-5.0 points" in worse[1] and "Nothing here did better" in worse[2]
    assert "no interval" in sentences(made_up("70", "80"))[1]
    without = sentences(made_up("70", "80", "75").iloc[1:])  # the default is not in the table
    assert len(without) == 1 and "of 2 that were measured" in without[0]
    (alone,) = sentences(made_up("70"))
    assert "nothing to compare" in alone and "best" not in alone
    swapped = made_up("70 71 72", "77 76.1 75")  # the same as b above, in another order
    swapped["eval_seeds"] = ["0 1 2", "2 1 0"]
    assert sentences(swapped)[1].split(": ", 1)[1] == better[1].split(": ", 1)[1]
    swapped["eval_seeds"] = ["0 1 2", "3 4 5"]
    assert len(sentences(swapped)) == 2  # nothing to pair by
    older = made_up("70 71 72", "75 76.1 77")
    older["recipe"] = ["resnet18", np.nan]  # from before revisions were written down
    told = sentences(older)
    assert "1 of the 2 rows of CIFAR-10 were trained by an earlier or unrecorded" in told[1]
    assert not any("+5.0 points" in line for line in told)
    assert len(sentences(made_up("70 71", "80 81").assign(budget=[0.1, 0.3]))) == 2
    informed = made_up("70", "80", "75")
    informed["temi_information"] = [1.0, 0.5, np.nan]
    informed["class_information"] = [0.9, 0.6, np.nan]
    said = sentences(informed)[1]
    assert "for 1 of 2 encoders: a (1.00 against 0.90 nats)." in said
    assert not any("nats" in line for line in sentences(informed.iloc[1:]))
    shown = as_shown(made_up("70", "80").assign(hard_prune_ratio=[0.0, np.nan]))
    assert shown["\u03b2"].tolist() == ["0", ""]
    assert shown["encoder"].tolist() == ["a (default)", "b"]
    assert shown["saw labels"].tolist() == ["yes", "not known"]
    assert shown["CPU s"].tolist() == ["2 wall", "2 wall"]
    assert as_shown(made_up("70").assign(cpu_s=1234.4))["CPU s"].tolist() == ["1,234"]
