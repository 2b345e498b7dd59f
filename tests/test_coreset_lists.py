"""Coreset lists as files: what goes out comes back, what is damaged or mixed up does not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, TINY
from typer.testing import CliRunner

from elfs_lib.cli.shared import app
from elfs_lib.errors import ElfsError
from elfs_lib.params import Params
from elfs_lib.results import coreset_lists as lists
from elfs_lib.stages import Run


def plain(indices, **manifest) -> lists.CoresetList:
    table = pd.DataFrame({"rank": np.arange(1, len(indices) + 1), "index": indices})
    return lists.CoresetList(table, manifest)


@pytest.mark.parametrize("name", ["coreset.parquet", "coreset.csv"])
def test_a_list_comes_back_as_the_run_selected_it(tiny_run: Run, tmp_path: Path, name: str):
    made = lists.list_of(tiny_run, "elfs", 0.1)
    lists.write_list(made, tmp_path / name)
    found = lists.read_list(tmp_path / name)
    chosen = tiny_run.coreset("elfs", 0.1).table("coreset")
    assert (found.indices == chosen["index"]).all() and found.indices.dtype == np.int64
    np.testing.assert_allclose(found.table["score"], chosen["score"], rtol=1e-6)
    assert "path" not in found.table
    facts = found.manifest
    assert (facts["dataset"], facts["method"], facts["count"]) == ("digits", "elfs", 144)
    assert facts["images"] == tiny_run.n and facts["labels_seen"] is False
    assert facts["options"]["hard_prune_ratio"] == tiny_run.hard_prune_ratio(0.1)
    assert {file.name for file in tmp_path.iterdir()} == {name, f"{name}.json"}


def test_a_list_of_another_seed_says_so(tiny_run: Run):
    first, second = (lists.list_of(tiny_run, "random", 20, seed) for seed in (0, 1))
    assert set(first.indices) != set(second.indices)
    assert (first.manifest["seed"], second.manifest["seed"]) == (0, 1)
    assert second.manifest["command"].endswith("--method random --budget 20 --seed 1")
    assert lists.list_of(tiny_run, "ccs", 20).manifest["labels_seen"] is True


def test_a_list_without_a_manifest_is_read(tmp_path: Path):
    pd.DataFrame({"index": [5, 3], "rank": [2, 1]}).to_csv(tmp_path / "own.csv", index=False)
    found = lists.read_list(tmp_path / "own.csv")
    assert found.indices.tolist() == [3, 5] and not found.manifest


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("rank\n1\n", "column 'index'"),
        ("rank,index\n1,a\n", "column 'index'"),
        ("rank,index\n1,4\n3,5\n", "ranks .* 1 to 2"),
        ("rank,index\n1,4\n2,4\n", "twice"),
        ("rank,index\n1,-1\n", "below 0"),
        ("rank,index\n", "column 'rank'|ranks"),
        ("", "Cannot read"),
    ],
)
def test_what_is_no_list_is_refused(tmp_path: Path, table: str, words: str):
    (tmp_path / "x.csv").write_text(table)
    with pytest.raises(ElfsError, match=words):
        lists.read_list(tmp_path / "x.csv")


def test_a_table_that_is_not_that_of_its_manifest_is_refused(tmp_path: Path):
    file = tmp_path / "a.csv"
    lists.write_list(plain([3, 1], format=lists.FORMAT, images=4), file)
    file.write_text(file.read_text().replace("3", "2"))
    with pytest.raises(ElfsError, match="changed after it was exported"):
        lists.read_list(file)
    lists.write_list(plain([3, 4], format=lists.FORMAT, images=4), file)
    with pytest.raises(ElfsError, match="image 4 of 4"):
        lists.read_list(file)
    for text in ("{}", "no json", json.dumps({"format": "other", "sha256": ""})):
        lists.manifest_of(file).write_text(text)
        with pytest.raises(ElfsError, match="manifest|format"):
            lists.read_list(file)


def test_a_name_is_checked_before_the_work(tmp_path: Path):
    for name in ("list.txt", "gone/list.csv"):
        with pytest.raises(ElfsError):
            lists.check_name(tmp_path / name)


def test_comparison_of_two_small_lists():
    labels = np.array([0, 0, 0, 0, 0, 1, 1, 1, 1, 1])
    two = {"a": plain([0, 1, 5, 6]), "b": plain([1, 2, 3, 9])}
    found = lists.compare_lists(two, 10, labels=labels, easiness=np.arange(10.0))
    assert found["shared"].tolist() == [1, 1]
    assert found["shared_by_chance"].tolist() == [1.6, 1.6]
    assert found["overlap"].tolist() == [pytest.approx(1 / 7)] * 2
    assert found["easy_share"].tolist() == [0.0, 0.25]  # the easiest fifth: images 8 and 9
    assert found["rarest"].tolist() == [2, 1]
    entropy = -(0.75 * np.log2(0.75) + 0.25 * np.log2(0.25))
    assert found["balance"].tolist() == [1.0, pytest.approx(entropy)]
    assert [*lists.compare_lists(two).columns] == ["images", "shared", "overlap"]


def test_lists_of_different_images_are_not_compared(tiny_run: Run):
    for known in ({"pixels": "x"}, {"images": 11}):
        other = {"pixels": "y", "images": 10} | known
        two = {"a": plain([0], pixels="y", images=10), "b": plain([1], **other)}
        with pytest.raises(ElfsError, match="different"):
            lists.compare_lists(two)
    foreign = plain([0], pixels="x", dataset="cifar10")
    with pytest.raises(ElfsError, match="other images .cifar10."):
        lists.known_of(tiny_run, {"a": foreign})
    with pytest.raises(ElfsError, match="1,437"):
        lists.known_of(tiny_run, {"a": plain([tiny_run.n])})


def test_the_easy_share_needs_no_training(tiny_params: Params, tiny_run: Run, tmp_path: Path):
    from elfs_lib.artifacts import Store

    fresh = Run(tiny_params, Store(tmp_path))
    found = {"a": plain([0, 1])}
    assert {*lists.known_of(fresh, found)} == {"n", "labels"}
    assert not (tmp_path / "true_proxy").exists()
    tiny_run.ensure("true_proxy")  # which is stored then
    assert {*lists.known_of(tiny_run, found)} == {"n", "labels", "easiness"}


def test_export_and_compare_on_the_command_line(tiny_run: Run, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("ELFS_ARTIFACTS_DIR", str(tiny_run.store.root))
    tiny = tmp_path / "tiny.yaml"
    values = {k: [*v] if isinstance(v, tuple) else v for k, v in TINY.items()}
    tiny.write_text(json.dumps(values))
    names = [str(tmp_path / name) for name in ("elfs.parquet", "random.csv")]
    for name, method in zip(names, ("elfs", "random"), strict=True):
        words = [
            "coreset",
            "export",
            str(tiny),
            "--method",
            method,
            "--budget",
            "50",
            "--out",
            name,
        ]
        assert CliRunner().invoke(app, words, catch_exceptions=False).exit_code == 0
    words = ["coreset", "compare", *names, "--params", str(tiny)]
    said = CliRunner().invoke(app, words, catch_exceptions=False).output
    expected = len(set(tiny_run.coreset("elfs", 50).table("coreset")["index"])
                   & set(tiny_run.coreset("random", 50).table("coreset")["index"]))  # fmt: skip
    rows = {line.split()[0]: line.split()[1:] for line in said.splitlines()[1:]}
    assert rows["shared"] == [str(expected)] * 2 and rows["images"] == ["50", "50"]
    assert {"balance", "rarest"} <= rows.keys()


def test_a_run_publishes_its_lists(tiny_run: Run, tmp_path: Path):
    written = lists.publish(tiny_run, tmp_path / "coresets")
    assert [path.name for path in written] == ["elfs_144.parquet", "elfs_431.parquet"]
    for path, budget in zip(written, tiny_run.params.budgets, strict=True):
        found = lists.read_list(path)
        chosen = tiny_run.coreset("elfs", budget).table("coreset")["index"]
        assert (found.indices == chosen).all()
