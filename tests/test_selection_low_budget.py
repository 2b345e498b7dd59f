"""Methods for few labels a class: each against a plain, slow reference in double precision."""

from __future__ import annotations

import math

import numpy as np
import pytest

from elfs_lib.clustering.metrics import kmeans_labels
from elfs_lib.embedding.neighbors import nearest_neighbors
from elfs_lib.errors import ElfsError
from elfs_lib.selection import METHODS, SelectionInputs, coverage, select_by
from elfs_lib.selection.coverage import nearest_of_other_clusters

LOW_BUDGET = (
    "typiclust",
    "prob_cover",
    "max_herding",
    "facility_location",
    "kmeans_nearest",
    "usl",
)
COVERAGE = ("prob_cover", "max_herding", "facility_location")


@pytest.fixture(autouse=True)
def _quiet(monkeypatch):
    monkeypatch.setenv("ELFS_PROGRESS", "0")


def make_inputs(n: int = 120, dim: int = 6, classes: int = 4, seed: int = 0) -> SelectionInputs:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    embeddings = (rng.normal(size=(n, dim)) + 2.5 * np.eye(dim)[labels]).astype(np.float32)
    near = nearest_neighbors(embeddings, min(12, n - 1))
    return SelectionInputs(
        n=n,
        embeddings=embeddings,
        neighbors=near.indices,
        similarities=near.similarities,
        classes=classes,
    )


def run(method: str, inputs: SelectionInputs, count: int, seed: int = 0, **options):
    return select_by(method, inputs, count, seed=seed, **options)


def unit(embeddings: np.ndarray) -> np.ndarray:
    rows = embeddings.astype(np.float64)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def distances(rows: np.ndarray) -> np.ndarray:
    return np.linalg.norm(rows[:, None] - rows[None], axis=-1)


# ---------------------------------------------------------------- what all of them promise


@pytest.mark.parametrize("method", LOW_BUDGET)
@pytest.mark.parametrize("count", [1, 2, 501, 640, 699, 700])
def test_any_count_up_to_all_images_is_exact(method, count):
    inputs = make_inputs(700, dim=4)
    got = run(method, inputs, count, seed=2)
    assert len(set(got.indices.tolist())) == count
    assert got.indices.tolist() == run(method, inputs, count, seed=2).indices.tolist()


@pytest.mark.parametrize("method", LOW_BUDGET)
def test_a_list_of_500_begins_with_the_list_of_100_where_the_registry_says_so(method):
    inputs = make_inputs(600)
    short, long = (run(method, inputs, count, seed=1).indices.tolist() for count in (100, 500))
    assert (long[:100] == short) == METHODS[method].nested


@pytest.mark.parametrize("method", LOW_BUDGET)
def test_the_length_of_the_embeddings_does_not_matter(method):
    inputs = make_inputs(150)
    lengths = 2.0 ** np.random.default_rng(3).integers(-3, 9, (150, 1))  # exact in float32
    scaled = {**vars(inputs), "embeddings": inputs.embeddings * lengths.astype(np.float32)}
    for count in (5, 40):
        expected = run(method, inputs, count).indices.tolist()
        assert run(method, SelectionInputs(**scaled), count).indices.tolist() == expected


@pytest.mark.parametrize("method", LOW_BUDGET)
def test_the_order_of_the_images_does_not_matter_but_for_ties(method, monkeypatch):
    """With the clusters given, since k-means starts from images that it draws by place."""
    inputs = make_inputs(150)
    labels = kmeans_labels(inputs.embeddings, 12)
    order = np.random.default_rng(4).permutation(150)
    place = np.argsort(order)
    shuffled = SelectionInputs(
        n=150,
        embeddings=inputs.embeddings[order],
        neighbors=place[inputs.neighbors[order]].astype(np.int32),
        similarities=inputs.similarities[order],
        classes=4,
    )
    lists = []
    for images, clusters in ((inputs, labels), (shuffled, labels[order])):
        for module in ("coverage", "prototypes"):
            monkeypatch.setattr(
                f"elfs_lib.selection.{module}.kmeans_clusters", lambda *a, c=clusters, **k: c
            )
        lists.append(run(method, images, 8))
    (expected, got) = lists
    if method == "prob_cover":  # images that cover equally many are common: the first wins
        assert got.info["delta"] == pytest.approx(expected.info["delta"], abs=1e-6)
        assert got.scores[0] == expected.scores[0]
    elif method in COVERAGE:
        assert order[got.indices].tolist() == expected.indices.tolist()
    else:  # clusters of one size come in the order of their images
        assert (
            sorted(order[got.indices]) == sorted(expected.indices)
            or len(np.unique(np.bincount(labels))) < 12
        )


# ---------------------------------------------------------------- one of each cluster


def slow_deal(labels: np.ndarray, worth: list[float], count: int, fewest: int = 1) -> list[int]:
    """Round by round, the largest cluster first, by plain loops."""
    members = {c: [i for i in range(len(labels)) if labels[i] == c] for c in set(labels.tolist())}
    for own in members.values():
        own.sort(key=lambda i: (-worth[i], i))
    picks: list[int] = []
    for large_enough in (True, False):
        queues = [own for own in members.values() if (len(own) >= fewest) == large_enough]
        for turn in range(len(labels)):
            best = [(-len(own), own[turn]) for own in queues if turn < len(own)]
            picks += [i for _, i in sorted(best)]
    return picks[:count]


def slow_typicality(rows: np.ndarray, labels: np.ndarray, k: int) -> list[float]:
    gap, worth = distances(rows), []
    for i in range(len(rows)):
        near = sorted(gap[i, j] for j in range(len(rows)) if j != i and labels[j] == labels[i])
        worth.append(1 / np.mean(near[:k]) if near else 0.0)
    return worth


@pytest.mark.parametrize(("count", "most"), [(3, 500), (25, 500), (40, 10), (119, 30)])
def test_typiclust_matches_the_plain_loop(count, most):
    inputs = make_inputs()
    labels = kmeans_labels(inputs.embeddings, min(count, most), seed=5, restarts=1)
    worth = slow_typicality(unit(inputs.embeddings), labels, 7)
    got = run("typiclust", inputs, count, seed=5, most_clusters=most, k=7)
    assert got.indices.tolist() == slow_deal(labels, worth, count, fewest=5)
    np.testing.assert_allclose(got.scores, np.array(worth)[got.indices], rtol=1e-4)


def test_typiclust_takes_the_middle_of_a_cluster_and_not_the_stray_pair():
    rng = np.random.default_rng(0)
    crowds = np.repeat(np.eye(3), [40, 30, 2], axis=0)
    spread = np.r_[0.0, rng.uniform(0.1, 0.4, 39), 0.0, rng.uniform(0.1, 0.4, 29), 0.0, 0.01]
    noise = rng.normal(size=(72, 3))
    points = crowds + spread[:, None] * noise / np.linalg.norm(noise, axis=1, keepdims=True)
    inputs = SelectionInputs(72, embeddings=points.astype(np.float32))
    got = run("typiclust", inputs, 3)
    assert set(got.indices[:2].tolist()) <= set(range(70)) and got.info["clusters"] == 3
    assert got.indices[2] < 70 or len(got.indices) == 3


@pytest.mark.parametrize("count", [2, 17, 100])
def test_kmeans_nearest_matches_the_plain_loop(count):
    inputs = make_inputs()
    rows, labels = unit(inputs.embeddings), kmeans_labels(inputs.embeddings, count, restarts=1)
    away = [math.dist(rows[i], rows[labels == labels[i]].mean(0)) for i in range(120)]
    got = run("kmeans_nearest", inputs, count)
    assert got.indices.tolist() == slow_deal(labels, [-round(a, 6) for a in away], count)
    np.testing.assert_allclose(got.scores, np.array(away)[got.indices], atol=1e-6)
    assert len(set(labels[got.indices].tolist())) == count


@pytest.mark.parametrize(("count", "k"), [(2, 12), (17, 3), (100, 7), (17, None)])
def test_usl_matches_the_plain_loop(count, k):
    inputs = make_inputs()
    gap = np.sort(distances(unit(inputs.embeddings)), axis=1)
    dense = (1 / gap[:, 1 : (k or 12) + 1].mean(1)).tolist()
    labels = kmeans_labels(inputs.embeddings, count, seed=3, restarts=1)
    got = run("usl", inputs, count, seed=3, k=k)
    assert got.indices.tolist() == slow_deal(labels, dense, count)
    np.testing.assert_allclose(got.scores, np.array(dense)[got.indices], rtol=1e-4)


# ---------------------------------------------------------------- coverage


def slow_coverage(kernel: np.ndarray, count: int) -> tuple[list[int], list[float]]:
    """Greedy on the dense kernel: every gain anew for every pick, equal gains by index."""
    n = len(kernel)
    covered, picks, gains = np.zeros(n), [], []
    while len(picks) < count:
        gain = np.maximum(kernel - covered, 0).sum(axis=1)
        gain[picks] = -1
        if gain.max() <= 1e-5:
            covered[:] = 0
            continue
        best = int(np.flatnonzero(gain >= gain.max() - 1e-5 * (1 + gain.max()))[0])
        picks.append(best)
        gains.append(gain[best] / n)
        covered = np.maximum(covered, kernel[best])
    return picks, gains


def slow_delta(rows: np.ndarray, labels: np.ndarray, purity: float) -> float:
    """The largest radius, out of all distances there are, at which enough open balls are pure."""
    gap, fitting = distances(rows), [0.0]
    strangers = labels[:, None] != labels[None]
    for radius in np.unique(gap[strangers]):
        pure = ~((gap < radius) & strangers).any(axis=1)
        if pure.mean() >= purity - 1e-9:
            fitting.append(radius)
    return max(fitting)


@pytest.mark.parametrize("first", [1, 16])
@pytest.mark.parametrize("tile", [(512, 4096), (7, 11)])
@pytest.mark.parametrize("sigma", [0.3, 1.0])
def test_max_herding_matches_the_plain_greedy_loop(monkeypatch, sigma, tile, first):
    monkeypatch.setattr(coverage, "TILE", tile)
    monkeypatch.setattr(coverage, "FIRST", first)
    inputs = make_inputs()
    kernel = np.exp(-(distances(unit(inputs.embeddings)) ** 2) / sigma**2)
    got = run("max_herding", inputs, 100, sigma=sigma)
    picks, gains = slow_coverage(kernel, 100)
    assert got.indices.tolist() == picks
    np.testing.assert_allclose(got.scores, gains, atol=1e-6)
    assert (np.diff(got.scores) < 1e-6).all()


def test_facility_location_matches_the_plain_greedy_loop():
    inputs = make_inputs()
    cosine = unit(inputs.embeddings) @ unit(inputs.embeddings).T
    got = run("facility_location", inputs, 100)
    picks, gains = slow_coverage((1 + cosine) / 2, 100)
    assert got.indices.tolist() == picks
    np.testing.assert_allclose(got.scores, gains, atol=1e-6)
    assert picks[0] == cosine.sum(1).argmax()


@pytest.mark.parametrize("purity", [0.5, 0.9, 0.95, 1.0])
def test_prob_cover_matches_the_plain_greedy_loop(purity):
    inputs = make_inputs()
    rows = unit(inputs.embeddings)
    delta = slow_delta(rows, kmeans_labels(inputs.embeddings, 4, seed=6, restarts=1), purity)
    got = run("prob_cover", inputs, 110, seed=6, purity=purity)
    assert got.info["delta"] == pytest.approx(delta, abs=1e-5)
    picks, gains = slow_coverage((distances(rows) < delta - 1e-9).astype(float), 110)
    assert got.indices.tolist() == picks
    np.testing.assert_allclose(got.scores, gains, atol=1e-7)


def test_prob_cover_starts_anew_once_everything_is_covered():
    crowds = np.repeat(np.eye(3, dtype=np.float32), [5, 4, 3], axis=0)
    inputs = SelectionInputs(12, embeddings=crowds)
    got = run("prob_cover", inputs, 12, delta=0.5)
    assert got.indices.tolist() == [0, 5, 9, 1, 6, 10, 2, 7, 11, 3, 8, 4]
    assert got.info["rounds"] == 5


def test_strangers_are_those_of_other_clusters(monkeypatch):
    monkeypatch.setattr(coverage, "TILE", (5, 7))
    rng = np.random.default_rng(1)
    rows = unit(rng.normal(size=(60, 4))).astype(np.float32)
    labels = rng.choice([0, 2, 5], 60, p=[0.7, 0.2, 0.1])
    cosine = rows @ rows.T
    cosine[labels[:, None] == labels] = -1
    np.testing.assert_allclose(nearest_of_other_clusters(rows, labels), cosine.max(1), atol=1e-6)
    assert (nearest_of_other_clusters(rows, np.zeros(60, dtype=int)) == -1).all()


def test_later_gains_are_not_computed_for_all_images(monkeypatch):
    """Lazy greedy: far fewer gains than a pass over all images for each pick."""
    inputs, computed = make_inputs(800, dim=16), []
    plain = coverage.coverage_gains
    monkeypatch.setattr(
        coverage,
        "coverage_gains",
        lambda rows, which, *rest: computed.append(len(which)) or plain(rows, which, *rest),
    )
    for method in COVERAGE:
        computed.clear()
        run(method, inputs, 100)
        assert sum(computed) < 0.3 * 800 * 100


@pytest.mark.parametrize("method", COVERAGE)
def test_images_that_cover_themselves_alone_are_taken_by_index_at_once(monkeypatch, method):
    inputs, computed = SelectionInputs(300, embeddings=np.eye(300, dtype=np.float32)), []
    plain = coverage.coverage_gains

    def counted(rows, which, *rest):
        computed.append(len(which))
        return plain(rows, which, *rest)

    monkeypatch.setattr(coverage, "coverage_gains", counted)
    options = {"prob_cover": {"delta": 0.5}}.get(method, {})
    assert run(method, inputs, 200, **options).indices.tolist() == list(range(200))
    assert sum(computed) <= 700 + 200 * coverage.FIRST


@pytest.mark.parametrize(
    ("method", "options", "says"),
    [
        ("typiclust", {"most_clusters": 0}, "at least 1"),
        ("typiclust", {"k": 2.5}, "at least 1"),
        ("usl", {"k": 13}, "k must be from 1 to the 12"),
        ("max_herding", {"sigma": 0}, "sigma must be above 0"),
        ("prob_cover", {"delta": -1.0}, "delta must be above 0"),
        ("prob_cover", {"purity": 0}, r"purity must be in \(0, 1\]"),
        ("prob_cover", {"clusters": 121}, "classes is 121"),
    ],
)
def test_what_does_not_fit_is_said(method, options, says):
    with pytest.raises(ElfsError, match=says):
        run(method, make_inputs(), 5, **options)


def test_prob_cover_asks_for_the_number_of_clusters():
    inputs = SelectionInputs(120, embeddings=make_inputs().embeddings)
    with pytest.raises(ElfsError, match="give clusters or delta"):
        run("prob_cover", inputs, 5)
    assert len(run("prob_cover", inputs, 5, delta=0.4).indices) == 5
