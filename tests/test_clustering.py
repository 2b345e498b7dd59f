"""Clusterings: agreement, matching, collapse, the k-means baseline."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from sklearn.cluster import KMeans

from elfs_lib.clustering import metrics as clustering
from elfs_lib.errors import ElfsError


def blobs(count: int = 90, classes: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    return (np.eye(classes, 8)[labels] * 4 + rng.normal(size=(count, 8)) * 0.3).astype("f4"), labels


def test_accuracy_is_the_best_over_all_relabellings():
    rng = np.random.default_rng(1)
    for _ in range(5):
        predicted, true = rng.integers(0, 4, 60), rng.integers(0, 4, 60)
        best = max(
            np.mean(np.array(names)[predicted] == true)
            for names in itertools.permutations(range(4))
        )
        assert clustering.clustering_accuracy(predicted, true) == pytest.approx(best)


def test_accuracy_closed_form():
    true = np.repeat([0, 1], 50)
    assert clustering.clustering_accuracy(1 - true, true) == 1.0
    assert clustering.clustering_accuracy(np.zeros(100, int), true) == 0.5
    # Four clusters for two classes: two for each class.
    assert clustering.clustering_accuracy(np.arange(100) // 25, true) == 1.0
    # Asked for and empty, they make the measure the same as of those that are not.
    assert clustering.clustering_accuracy(np.zeros(100, int), true, clusters=4) == 0.5


def test_report_does_not_change_when_clusters_are_renumbered():
    rng = np.random.default_rng(2)
    predicted, true = rng.integers(0, 5, 200), rng.integers(0, 5, 200)
    report = clustering.clustering_report(predicted, true)
    again = clustering.clustering_report(rng.permutation(5)[predicted], true)
    assert report == pytest.approx(again)
    assert set(report) == {"accuracy", "nmi", "ari"}


@pytest.mark.parametrize("clusters", [4, 6])
def test_matched_confusion_has_the_accuracy_on_its_diagonal(clusters: int):
    rng = np.random.default_rng(3)
    predicted, true = rng.integers(0, clusters, 300), rng.integers(0, 4, 300)
    matrix = clustering.matched_confusion(predicted, true, 4)
    accuracy = clustering.clustering_accuracy(predicted, true)
    assert np.trace(matrix) / 300 == pytest.approx(accuracy)
    assert matrix.shape == (4, 4) and matrix.sum() == 300
    mapping = clustering.match_clusters(predicted, true)
    assert len(mapping) == clusters and set(mapping) == {0, 1, 2, 3}


def test_collapse_is_said():
    labels = np.r_[np.zeros(99, int), 2]
    notes = clustering.collapse_notes(labels, 3, name="head 4")
    assert any("head 4" in n and "1 of 3 clusters are empty (1)" in n for n in notes)
    assert any("less than 10%" in n and "(2)" in n for n in notes)
    assert clustering.collapse_notes(np.arange(99) % 3, 3, name="x") == []
    assert clustering.cluster_sizes(labels, 3).tolist() == [99, 0, 1]


def test_kmeans_finds_blobs_and_repeats_itself():
    embeddings, labels = blobs()
    found = clustering.kmeans_labels(embeddings, 3, seed=1)
    assert clustering.clustering_accuracy(found, labels) == 1.0
    # Cosine: the length of a row does not matter.
    scaled = embeddings * np.linspace(0.1, 9, 90, dtype="f4")[:, None]
    assert (clustering.kmeans_labels(scaled, 3, seed=1) == found).all()


def test_unit_rows_keeps_directions_of_any_size():
    rows = np.array([[3e30, 4e30], [3e-30, 4e-30], [0, -2]], dtype="f4")
    expected = [[0.6, 0.8], [0.6, 0.8], [0, -1]]
    np.testing.assert_allclose(clustering.unit_rows(rows), expected, rtol=1e-6)
    assert rows[2, 1] == -2  # the caller's array is left alone


@pytest.mark.parametrize("value, word", [(np.nan, "NaN"), (np.inf, "NaN or infinity")])
def test_rows_that_are_not_finite_are_named(value, word):
    embeddings, _ = blobs()
    embeddings[7, 3] = value
    with pytest.raises(ElfsError, match=f"{word}.*row 7"):
        clustering.unit_rows(embeddings)


def test_mistakes_are_one_sentence():
    embeddings, labels = blobs()
    with pytest.raises(ElfsError, match="classes is 1"):
        clustering.kmeans_labels(embeddings, 1)
    with pytest.raises(ElfsError, match="all zero"):
        clustering.unit_rows(np.zeros((2, 3)))
    with pytest.raises(ElfsError, match="one length"):
        clustering.clustering_accuracy(labels, labels[:-1])
    with pytest.raises(ElfsError, match="integers"):
        clustering.clustering_accuracy(labels / 2, labels)
    with pytest.raises(ElfsError, match="negative"):
        clustering.clustering_accuracy(labels - 1, labels)
    with pytest.raises(ElfsError, match="go up to"):
        clustering.matched_confusion(labels, labels, 2)


def test_kmeans_adds_up_with_two_threads_at_most(monkeypatch):
    """More of them add up what they found in any order, and the same seed gives other clusters."""
    import sklearn.cluster
    from threadpoolctl import ThreadpoolController, threadpool_limits

    openmp = ThreadpoolController().select(user_api="openmp")
    seen = []

    class Watched(sklearn.cluster.KMeans):
        def fit_predict(self, *args, **kwargs):
            seen.extend(pool["num_threads"] for pool in openmp.info())
            return super().fit_predict(*args, **kwargs)

    monkeypatch.setattr(sklearn.cluster, "KMeans", Watched)
    rows = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    for threads, most in ((8, 2), (1, 1)):
        seen.clear()
        with threadpool_limits(threads, "openmp"):
            clustering.kmeans_labels(rows, 3)
            assert all(pool["num_threads"] == threads for pool in openmp.info())  # given back
        assert seen and max(seen) == most


def test_kmeans_of_many_rows_is_fitted_to_some_and_all_join_a_centre(tmp_path, monkeypatch):
    rows, true = blobs(900)
    np.save(tmp_path / "rows.npy", rows)
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
    whole = clustering.kmeans_labels(mapped, 3)
    monkeypatch.setattr(clustering, "CLUSTERED", 100)
    monkeypatch.setattr(clustering, "BLOCK", 250)
    fitted, fit = [], KMeans.fit
    monkeypatch.setattr(KMeans, "fit", lambda model, x: fitted.append(len(x)) or fit(model, x))
    found = clustering.kmeans_labels(mapped, 3)
    assert fitted == [450]  # 256 a cluster: every second row
    assert found.dtype == np.int64 and found.shape == (900,)
    for labels in (whole, found):
        assert len({*zip(labels.tolist(), true.tolist(), strict=True)}) == 3
    for wrong in (600, 601):  # one that is fitted to, and one that is not
        bad = rows.copy()
        bad[wrong] = 0
        with pytest.raises(ElfsError, match=f"row {wrong}"):
            clustering.kmeans_labels(bad, 3)
