"""The registry of clusterings: what each gives, what a new one takes, what a run makes of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import TINY

from elfs_lib.artifacts import Store
from elfs_lib.clustering.metrics import clustering_accuracy, kmeans_labels
from elfs_lib.clustering.registry import (
    CLUSTERINGS,
    Clustering,
    ClusteringInputs,
    Clusters,
    cluster,
)
from elfs_lib.embedding.neighbors import nearest_neighbors
from elfs_lib.errors import ElfsError
from elfs_lib.params import Params
from elfs_lib.results.clusterings import stored_clusterings
from elfs_lib.stages import Run

WORDS = {"citation": "none", "summary": "none"}
QUICK = {
    "temi": {"heads": 4, "epochs": 40, "warmup_epochs": 2, "batch": 30, "hidden": 16}
    | {"bottleneck": 8, "learning_rate": 2e-2, "teacher_momentum": 0.9},
    "turtle": {"steps": 100, "learning_rate": 0.02},
}


@pytest.fixture(scope="module")
def groups() -> tuple[ClusteringInputs, np.ndarray]:
    """Three directions, each with 40 points around it, and which is which."""
    rng = np.random.default_rng(0)
    true = np.repeat(np.arange(3), 40)
    points = (np.eye(3, 8)[true] + 0.1 * rng.normal(size=(120, 8))).astype(np.float32)
    return ClusteringInputs(points, nearest_neighbors(points, 10).indices), true


@pytest.mark.parametrize("name", CLUSTERINGS)
def test_each_clustering_finds_groups_that_are_far_apart(groups, name: str):
    inputs, true = groups
    found = cluster(name, inputs, 3, seed=1, **QUICK.get(name, {}))
    assert found.labels.dtype == np.int64 and found.confidence.dtype == np.float32
    assert clustering_accuracy(found.labels, true) == 1
    again = cluster(name, inputs, 3, seed=1, **QUICK.get(name, {}))
    np.testing.assert_array_equal(found.labels, again.labels)


def test_confidence_is_the_share_of_neighbours_that_agree(groups, monkeypatch):
    inputs, true = groups
    odd = true.copy()
    odd[0] = 1
    entry = Clustering("given", lambda inputs, classes, *, seed: Clusters(odd), **WORDS)
    monkeypatch.setitem(CLUSTERINGS, "given", entry)
    found = cluster("given", inputs, 3)
    np.testing.assert_array_equal(found.labels, odd)
    expected = [(odd[near] == odd[i]).mean() for i, near in enumerate(inputs.neighbors)]
    np.testing.assert_allclose(found.confidence, expected, atol=1e-6)
    assert found.confidence[0] == 0


@pytest.mark.parametrize(
    "labels, confidence",
    [
        (np.zeros(3, int), None),
        (np.full(120, 3), None),
        (np.full(120, -1), None),
        (np.zeros(120), None),
        (np.zeros(120, int), np.full(120, 1.5)),
        (np.zeros(120, int), np.full(120, np.nan)),
        (np.zeros(120, int), np.zeros(119)),
    ],
)
def test_a_function_that_breaks_its_promise_is_named(groups, monkeypatch, labels, confidence):
    def function(inputs, classes, *, seed):
        return Clusters(labels, confidence)

    monkeypatch.setitem(CLUSTERINGS, "broken", Clustering("broken", function, **WORDS))
    with pytest.raises(ElfsError, match="clustering 'broken' is wrong"):
        cluster("broken", groups[0], 3)


@pytest.mark.parametrize("classes", [1, 121, 2.5, True])
def test_classes_out_of_range_are_one_sentence(groups, classes):
    with pytest.raises(ElfsError, match=r"classes is .*from 2 to .* 120"):
        cluster("kmeans", groups[0], classes)


def test_an_unknown_clustering_is_refused_before_work():
    with pytest.raises(ElfsError, match="Unknown clustering 'kmean': did you mean 'kmeans'"):
        Params.make(TINY | {"clustering": "kmean"})


def test_a_run_goes_on_from_its_clustering(tiny_run: Run):
    runs = {
        name: Run(tiny_run.params.model_copy(update={"clustering": name}), tiny_run.store)
        for name in CLUSTERINGS
    }
    expected = kmeans_labels(
        np.array(tiny_run.embeddings.array("embeddings")), 10, seed=tiny_run.params.seed
    )
    np.testing.assert_array_equal(runs["kmeans"].pseudo_labels, expected)
    assert runs["temi"].pseudo.key == tiny_run.pseudo.key
    lists = [run.coreset("elfs", 0.1).table("coreset")["index"].tolist() for run in runs.values()]
    assert len({tuple(each) for each in lists}) == len(CLUSTERINGS)
    for name, run in runs.items():
        assert run.clustering == name
        assert all(name in note for note in run.cluster_notes) or name == "temi"


def test_the_store_says_which_clusterings_were_made_of_these_embeddings(
    tiny_params: Params, tmp_path: Path
):
    def run(**changes: object) -> Run:
        return Run(tiny_params.model_copy(update=changes), Store(tmp_path))

    assert stored_clusterings(run()) == {}
    for changes in ({}, {"seed": 1}, {"neighbors": 12}, {"classes": 11}):
        _ = run(clustering="spectral", **changes).pseudo
    _ = run(clustering="kmeans").pseudo
    before = sorted(tmp_path.glob("*/*"))
    found = stored_clusterings(run())
    assert [*found] == ["kmeans", "spectral"] and sorted(tmp_path.glob("*/*")) == before
    for name, labels in found.items():
        np.testing.assert_array_equal(labels, run(clustering=name).pseudo_labels)


def test_the_heads_of_temi_have_no_part_in_another_clustering(tiny_run: Run):
    keys = set()
    for changes in ({}, {"temi_heads": 9}, {"pseudo_labels": "lowest_loss"}):
        params = tiny_run.params.model_copy(update={"clustering": "kmeans"} | changes)
        keys.add(Run(params, tiny_run.store).pseudo.key)
    assert len(keys) == 1


def test_confidence_of_other_clusterings_may_weigh_the_proxy(tmp_path: Path):
    """With TEMI it is that of the aligned mean."""
    changes = {"proxy_weights": "confidence", "pseudo_labels": "lowest_loss"}
    with pytest.raises(ElfsError, match="aligned"):
        Params.make(TINY | changes)
    Params.make(TINY | changes | {"clustering": "kmeans"})


def test_a_new_clustering_is_a_function_and_a_line(tiny_params: Params, tmp_path, monkeypatch):
    def by_first_number(inputs: ClusteringInputs, classes: int, *, seed: int = 0) -> Clusters:
        order = np.argsort(inputs.embeddings.sum(1), kind="stable")
        labels = np.empty(len(order), np.int64)
        labels[order] = np.arange(len(order)) * classes // len(order)
        return Clusters(labels)

    entry = Clustering("by_sum", by_first_number, **WORDS)
    monkeypatch.setitem(CLUSTERINGS, "by_sum", entry)
    run = Run(tiny_params.model_copy(update={"clustering": "by_sum"}), Store(tmp_path))
    assert len(run.coreset("elfs", 0.1).table("coreset")) == 144
    assert set(np.bincount(run.pseudo_labels)) <= {143, 144}
    first = run.artifact("clusters")
    revised = Clustering("by_sum", by_first_number, **WORDS, revision=2)
    monkeypatch.setitem(CLUSTERINGS, "by_sum", revised)
    assert Run(run.params, run.store).artifact("clusters").key != first.key
