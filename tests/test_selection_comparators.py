"""Each comparator against a slow reference or a closed form, and what all methods promise."""

from __future__ import annotations

import dataclasses
import math
from itertools import pairwise

import numpy as np
import pytest
from scipy import stats

from elfs_lib.clustering.metrics import kmeans_labels
from elfs_lib.embedding.neighbors import nearest_neighbors
from elfs_lib.errors import ElfsError
from elfs_lib.selection import METHODS, SCORES, Selection, SelectionInputs, select_by
from elfs_lib.selection.by_class import proportional_slots
from elfs_lib.selection.zcore import triangular

OPTIONS = {"zcore": {"samples": 300, "neighbors": 20, "samples_per_subspace": 100}}


@pytest.fixture(autouse=True)
def _quiet(monkeypatch):
    monkeypatch.setenv("ELFS_PROGRESS", "0")


def make_inputs(n: int = 90, dim: int = 6, classes: int = 3, seed: int = 0) -> SelectionInputs:
    rng = np.random.default_rng(seed)
    labels = rng.choice(classes, n, p=np.arange(1, classes + 1) / sum(range(classes + 1)))
    labels[:classes] = np.arange(classes)
    embeddings = (rng.normal(size=(n, dim)) + 2 * np.eye(dim)[labels]).astype(np.float32)
    near = nearest_neighbors(embeddings, min(8, n - 1))
    return SelectionInputs(
        n=n,
        embeddings=embeddings,
        neighbors=near.indices,
        similarities=near.similarities,
        pseudo_labels=labels,
        probabilities=rng.dirichlet(np.full(classes, 0.4), n).astype(np.float32),
        scores={name: rng.random(n).astype(np.float32) for name in SCORES},
        classes=classes,
    )


def options_of(method: str, inputs: SelectionInputs) -> dict:
    options = dict(OPTIONS.get(method, {}))
    if "k" in METHODS[method].options and "neighbors" in METHODS[method].needs:
        options["k"] = min(5, inputs.neighbors.shape[1])
    return options | dict.fromkeys(METHODS[method].required, 0.0)


def run(method: str, inputs: SelectionInputs, count: int, seed: int = 0, **options):
    return select_by(method, inputs, count, seed=seed, **options_of(method, inputs) | options)


def unit(embeddings: np.ndarray) -> np.ndarray:
    rows = embeddings.astype(np.float64)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


# ---------------------------------------------------------------- what all methods promise


@pytest.mark.parametrize("method", METHODS)
def test_exact_count_no_duplicates_same_seed_same_list(method):
    inputs = make_inputs()
    for count in (1, 7, 45, 89, 90):
        got = run(method, inputs, count, seed=3)
        assert got.indices.dtype == np.int64 and got.scores.dtype == np.float64
        assert got.indices.shape == got.scores.shape == (count,)
        assert len(set(got.indices.tolist())) == count
        assert got.indices.min() >= 0 and got.indices.max() < 90
        assert np.isfinite(got.scores).all()
        again = run(method, inputs, count, seed=3)
        assert again.indices.tolist() == got.indices.tolist()
        assert again.scores.tolist() == got.scores.tolist()


@pytest.mark.parametrize(
    ("indices", "scores", "says"),
    [
        ([0, 1], [1.0, 2.0], r"gave \(2,\) indices and \(2,\) scores for a count of 3"),
        ([0, 1, 2], [1.0, 2.0], r"\(2,\) scores"),
        ([0, 1, 1], [1.0, 2.0, 3.0], "an image twice"),
        ([0, 1, 90], [1.0, 2.0, 3.0], "not among the 90"),
        ([0, 1, -1], [1.0, 2.0, 3.0], "not among the 90"),
        ([0.0, 1.0, 2.0], [1.0, 2.0, 3.0], "not whole numbers"),
        ([0, 1, 2], [1.0, np.nan, 3.0], "not finite"),
    ],
)
def test_a_method_that_breaks_its_promise_is_named(monkeypatch, indices, scores, says):
    made = Selection(np.array(indices), np.array(scores))
    entry = dataclasses.replace(METHODS["random"], function=lambda inputs, count, *, seed: made)
    monkeypatch.setitem(METHODS, "random", entry)
    with pytest.raises(ElfsError, match=f"Method 'random' .*{says}"):
        run("random", make_inputs(), 3)


@pytest.mark.parametrize("method", METHODS)
def test_the_seed_matters_where_the_registry_says_so(method):
    inputs = make_inputs()
    lists = {tuple(run(method, inputs, 20, seed=seed).indices.tolist()) for seed in range(6)}
    # whose k-means finds the same three clusters from every seed
    always_alike = method in ("prototypicality", "prob_cover")
    assert (len(lists) > 1) == METHODS[method].seeded or always_alike


@pytest.mark.parametrize("method", [m for m in METHODS if METHODS[m].nested])
def test_a_smaller_budget_is_a_prefix_where_promised(method):
    inputs = make_inputs()
    large = run(method, inputs, 60, seed=1).indices
    for count in (1, 13, 30):
        assert run(method, inputs, count, seed=1).indices.tolist() == large[:count].tolist()


# Of two images that only cover each other either will do, and the index decides
TIED = ("max_herding", "facility_location")
WITHOUT_LOTS = [(m, {}) for m in METHODS if not METHODS[m].seeded and m not in TIED] + [
    # seeded methods, with options that leave nothing to a draw for each image
    ("d2", {"difficulty": "uniform"}),
    ("zcore", {"random_start": False}),
]


@pytest.mark.parametrize(("method", "options"), WITHOUT_LOTS)
def test_without_lots_the_order_of_the_images_does_not_matter(method, options):
    inputs = make_inputs()
    order = np.random.default_rng(9).permutation(90)
    position = np.argsort(order)  # old index -> new index
    shuffled = SelectionInputs(
        n=90,
        embeddings=inputs.embeddings[order],
        neighbors=position[inputs.neighbors[order]].astype(np.int32),
        similarities=inputs.similarities[order],
        pseudo_labels=inputs.pseudo_labels[order],
        probabilities=inputs.probabilities[order],
        scores={k: v[order] for k, v in inputs.scores.items()},
        classes=3,
    )
    expected = run(method, inputs, 40, **options).indices
    assert order[run(method, shuffled, 40, **options).indices].tolist() == expected.tolist()


@pytest.mark.parametrize("method", METHODS)
def test_copies_of_one_image_and_tiny_sets_are_no_trouble(method):
    inputs = make_inputs(12, classes=2)
    same = np.zeros(12, dtype=int)
    copies = SelectionInputs(
        n=12,
        embeddings=inputs.embeddings[same],
        neighbors=nearest_neighbors(inputs.embeddings[same], 5).indices,
        similarities=np.ones((12, 5), dtype=np.float32),
        pseudo_labels=inputs.pseudo_labels,
        probabilities=inputs.probabilities[same],
        scores={name: np.full(12, 0.5) for name in SCORES},
        classes=2,
    )
    two = make_inputs(2, classes=2)
    with np.errstate(all="raise", under="ignore"):
        for few in (copies, two):
            if method == "prototypicality" or method == "d2":  # k-means warns of the copies
                continue
            for count in (1, few.n):
                assert len(set(run(method, few, count).indices.tolist())) == count


@pytest.mark.parametrize("method", METHODS)
def test_inputs_are_left_alone(method):
    inputs = make_inputs(40)
    arrays = {k: v for k, v in vars(inputs).items() if isinstance(v, np.ndarray)} | dict(
        inputs.scores
    )
    before = {k: v.copy() for k, v in arrays.items()}
    for array in arrays.values():
        array.flags.writeable = False
    run(method, inputs, 20)
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, before[name])


@pytest.mark.parametrize("method", METHODS)
def test_each_method_reads_only_what_it_declares(method):
    entry, inputs = METHODS[method], make_inputs()
    fields = {need: getattr(inputs, need) for need in entry.needs}
    if "neighbors" in entry.needs:
        fields["similarities"] = inputs.similarities
    if "scores" in entry.needs:
        fields["scores"] = {c: inputs.scores[c] for c in entry.columns}
    declared = SelectionInputs(n=90, classes=3, **fields)
    options = options_of(method, inputs)
    got = select_by(method, declared, 30, seed=2, **options)
    assert got.indices.tolist() == run(method, inputs, 30, seed=2).indices.tolist()
    for need in entry.needs:
        nothing = {} if need == "scores" else None
        missing = SelectionInputs(n=90, classes=3, **{**fields, need: nothing})
        with pytest.raises(ElfsError, match=f"needs {need}"):
            select_by(method, missing, 30, **options)


# ---------------------------------------------------------------- prototypicality, Moderate


def test_prototypicality_keeps_the_far_ones():
    inputs = make_inputs()
    rows, labels = unit(inputs.embeddings), kmeans_labels(inputs.embeddings, 3, seed=4, restarts=1)
    distance = [math.dist(rows[i], rows[labels == labels[i]].mean(0)) for i in range(90)]
    got = select_by("prototypicality", inputs, 25, seed=4)
    assert got.indices.tolist() == sorted(range(90), key=lambda i: -distance[i])[:25]
    np.testing.assert_allclose(got.scores, sorted(distance)[::-1][:25], atol=1e-5)
    with pytest.raises(ElfsError, match="clusters"):
        select_by("prototypicality", SelectionInputs(90, embeddings=inputs.embeddings), 5)


def test_prototypicality_finds_the_outlier_of_each_cluster():
    angles = np.array([0.0, 0.01, 0.02, 0.3, 2.0, 2.01, 2.02, 2.4])
    circle = np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)
    inputs = SelectionInputs(8, embeddings=circle, classes=2)
    assert select_by("prototypicality", inputs, 2).indices.tolist() == [7, 3]


def test_moderate_takes_the_middle_of_the_distances():
    inputs = make_inputs()
    rows, labels = inputs.embeddings.astype(float), inputs.pseudo_labels
    distance = [math.dist(rows[i], rows[labels == labels[i]].mean(0)) for i in range(90)]
    ranked = sorted(range(90), key=distance.__getitem__)
    got = select_by("moderate", inputs, 30).indices
    assert set(got.tolist()) == set(ranked[30:60])
    assert set(got[:2].tolist()) == set(ranked[44:46])


# ---------------------------------------------------------------- k-center, herding


def slow_k_center(rows: np.ndarray, first: int, count: int) -> list[int]:
    picks = [first]
    while len(picks) < count:
        gap = [min(math.dist(row, rows[p]) for p in picks) for row in rows]
        picks.append(max(set(range(len(rows))) - set(picks), key=lambda i: (gap[i], -i)))
    return picks


@pytest.mark.parametrize("batch", [1, 2, 7, 1024])
def test_k_center_matches_the_greedy_loop_for_every_batch(batch):
    inputs = make_inputs(60)
    got = select_by("k_center", inputs, 40, seed=5, batch=batch)
    expected = slow_k_center(unit(inputs.embeddings), int(got.indices[0]), 40)
    assert got.indices.tolist() == expected
    rows = unit(inputs.embeddings)
    for t in (1, 5, 39):
        gap = min(math.dist(rows[expected[t]], rows[p]) for p in expected[:t])
        assert got.scores[t] == pytest.approx(gap, abs=1e-3)
    assert all(a >= b - 1e-6 for a, b in pairwise(got.scores))


def test_k_center_by_hand():
    angles = np.array([0.0, 0.1, 0.2, 1.5, 1.6])
    circle = np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)
    inputs = SelectionInputs(5, embeddings=circle)
    for seed in range(8):
        first, second = select_by("k_center", inputs, 2, seed=seed).indices.tolist()
        assert second == (4 if first < 3 else 0)


def test_herding_keeps_the_mean_of_the_picks_at_the_mean_of_the_class():
    inputs = make_inputs()
    rows, labels = unit(inputs.embeddings), inputs.pseudo_labels
    got = select_by("herding", inputs, 45).indices
    for label in range(3):
        members = np.flatnonzero(labels == label).tolist()
        herd = [i for i in got.tolist() if labels[i] == label]
        mean, picks = rows[members].mean(0), []
        for _ in herd:  # for unit rows Welling's rule is the closest mean, as iCaRL states it
            rest = [i for i in members if i not in picks]
            picks.append(min(rest, key=lambda i: math.dist(rows[[*picks, i]].mean(0), mean)))
        assert herd == picks


def test_herding_without_classes_is_one_herd():
    inputs = make_inputs(50)
    one = SelectionInputs(
        50, embeddings=inputs.embeddings, pseudo_labels=np.zeros(50, dtype=np.int64)
    )
    expected = select_by("herding", one, 20).indices.tolist()
    assert select_by("herding", inputs, 20, per_class=False).indices.tolist() == expected


def test_places_are_dealt_in_proportion_and_in_turn():
    labels = np.repeat([0, 1, 2], [6, 3, 1])
    for count in range(1, 11):
        dealt, place = proportional_slots(labels, count)
        assert (abs(np.bincount(dealt, minlength=3) - count * np.array([0.6, 0.3, 0.1])) < 1).all()
        for label in range(3):
            assert place[dealt == label].tolist() == list(range((dealt == label).sum()))


# ---------------------------------------------------------------- D2


def slow_d2(inputs, difficulty, k, gamma_f, gamma_r, count):
    """The paper's rules on a dense graph, pick by pick."""
    n, rows = inputs.n, unit(inputs.embeddings)
    edge = np.zeros((n, n), dtype=bool)
    for i in range(n):
        for j in inputs.neighbors[i, :k]:
            edge[i, j] = edge[j, i] = True
    squared = ((rows[:, None] - rows[None]) ** 2).sum(-1)
    forward, reverse = (edge * np.exp(-g * squared) for g in (gamma_f, gamma_r))
    value = difficulty + forward @ difficulty
    picks = []
    while len(picks) < count:
        best = max(set(range(n)) - set(picks), key=lambda i: (value[i], -i))
        picks.append(best)
        value = value - reverse[best] * max(value[best], 0)
    return picks


@pytest.mark.parametrize(("k", "gamma_f", "gamma_r"), [(3, 1.0, 0.1), (8, 0.5, 2.0), (1, 2.0, 0.0)])
def test_d2_matches_the_dense_graph(k, gamma_f, gamma_r):
    inputs = make_inputs(60)
    options = {"k": k, "gamma_f": gamma_f, "gamma_r": gamma_r}
    rows, labels = unit(inputs.embeddings), kmeans_labels(inputs.embeddings, 3, seed=2, restarts=1)
    distance = np.array([math.dist(rows[i], rows[labels == labels[i]].mean(0)) for i in range(60)])
    el2n = inputs.scores["el2n"].astype(float)
    for method, difficulty, extra in (
        ("d2", (distance - distance.min()) / np.ptp(distance), {}),
        ("d2", np.ones(60), {"difficulty": "uniform"}),
        ("d2_supervised", (el2n - el2n.min()) / np.ptp(el2n), {"score": "el2n"}),
    ):
        got = select_by(method, inputs, 45, seed=2, **options, **extra).indices.tolist()
        assert got == slow_d2(inputs, difficulty, k, gamma_f, gamma_r, 45)


def test_d2_supervised_turns_low_aum_into_high_difficulty():
    n = 10  # a ring whose edges carry no weight: pure difficulty is left
    ring = np.arange(n)
    inputs = SelectionInputs(
        n,
        neighbors=np.stack([(ring + 1) % n, (ring - 1) % n], 1).astype(np.int32),
        similarities=np.full((n, 2), -1, dtype=np.float32),
        scores={"aum": np.arange(10.0), "el2n": np.arange(10.0)},
    )
    options = {"k": 2, "gamma_f": 300.0, "gamma_r": 300.0}
    assert select_by("d2_supervised", inputs, 3, **options).indices.tolist() == [0, 1, 2]
    by_el2n = select_by("d2_supervised", inputs, 3, score="el2n", **options).indices.tolist()
    assert by_el2n == [9, 8, 7]


def test_d2_picks_spread_as_the_reverse_message_grows():
    inputs = make_inputs(90)
    edge = {(i, j) for i in range(90) for j in inputs.neighbors[i, :5].tolist()}

    def inner_edges(gamma_r):
        picks = run("d2", inputs, 20, difficulty="uniform", gamma_r=gamma_r).indices.tolist()
        return sum((i, j) in edge for i in picks for j in picks)

    assert inner_edges(0.0) < inner_edges(300.0)


def test_d2_says_what_does_not_fit():
    inputs = make_inputs(20)
    for message, options in {
        "k must be from 1 to the 8": {"k": 9},
        "must be >= 0": {"k": 3, "gamma_r": -1.0},
        "Unknown difficulty": {"k": 3, "difficulty": "label"},
    }.items():
        with pytest.raises(ElfsError, match=message):
            select_by("d2", inputs, 5, **options)


# ---------------------------------------------------------------- BADGE


def gradient_embeddings(inputs: SelectionInputs) -> np.ndarray:
    p = inputs.probabilities.astype(float)
    q = p - np.eye(p.shape[1])[p.argmax(1)]
    return np.einsum("nc,nd->ncd", q, inputs.embeddings.astype(float)).reshape(inputs.n, -1)


@pytest.mark.parametrize("batch", [1, 2, 512])
def test_badge_draws_as_k_means_plus_plus_does(batch):
    """Second and third picks against the exact law, whatever part of them came by rejection."""
    inputs = make_inputs(6, dim=3)
    g = gradient_embeddings(inputs)
    squared = ((g[:, None] - g[None]) ** 2).sum(-1)
    first = int(np.argmax((g**2).sum(1)))
    expected = np.zeros((6, 6))
    for second in range(6):
        p_second = squared[first, second] / squared[first].sum()
        nearest = np.minimum(squared[first], squared[second])
        if p_second > 0:
            expected[second] = p_second * nearest / nearest.sum()
    seen, runs = np.zeros((6, 6)), 700
    for seed in range(runs):
        got = select_by("badge", inputs, 3, seed=seed, batch=batch).indices
        assert got[0] == first
        seen[got[1], got[2]] += 1
    assert seen[expected == 0].sum() == 0
    possible = expected > 0
    chi2 = ((seen - runs * expected)[possible] ** 2 / (runs * expected[possible])).sum()
    assert chi2 < stats.chi2.ppf(1 - 1e-5, possible.sum() - 1)


def test_badge_scores_are_distances_in_gradient_space():
    inputs = make_inputs(80)
    g = gradient_embeddings(inputs)
    got = select_by("badge", inputs, 40, seed=1, batch=8)
    assert got.scores[0] == pytest.approx(np.linalg.norm(g, axis=1).max(), rel=1e-5)
    for t in (1, 9, 20, 39):
        gap = min(math.dist(g[got.indices[t]], g[p]) for p in got.indices[:t])
        assert got.scores[t] == pytest.approx(gap, rel=1e-4)


# ---------------------------------------------------------------- ZCore


def slow_zcore(embeddings, seed, samples, per, dims, neighbors, exponent):
    """Brute-force L1 distances in each subspace; copies share the loss."""
    n, dim = embeddings.shape
    rng = np.random.default_rng(seed)
    scores = rng.random(n)
    low, mode, high = embeddings.min(0), np.median(embeddings, 0), embeddings.max(0)
    for start in range(0, samples, per):
        d = rng.choice(dim, dims, replace=False)
        for draw in triangular(rng, low[d], mode[d], high[d], min(per, samples - start)):
            covered = int(np.abs(embeddings[:, d] - draw).sum(1).argmin())
            scores[covered] += 1
            gap = np.abs(embeddings[:, d] - embeddings[covered, d]).sum(1)
            near = sorted((i for i in range(n) if i != covered), key=lambda i: gap[i])[:neighbors]
            if gap[near[0]] == 0:
                loss = np.array([gap[i] == 0 for i in near], dtype=float)
            else:
                loss = gap[near] ** -exponent
            scores[near] -= loss / loss.sum()
    return scores


@pytest.mark.parametrize(("per", "dims", "neighbors"), [(40, 2, 5), (1, 1, 3), (15, 3, 49)])
def test_zcore_matches_brute_force(per, dims, neighbors):
    embeddings = make_inputs(50).embeddings.copy()
    embeddings[7] = embeddings[3]  # a copy shares the loss
    embeddings[:, 4] = 1.5  # a constant dimension
    inputs = SelectionInputs(50, embeddings=embeddings)
    expected = slow_zcore(embeddings.astype(float), 3, 60, per, dims, neighbors, 4.0)
    got = select_by(
        "zcore",
        inputs,
        50,
        seed=3,
        samples=60,
        samples_per_subspace=per,
        subspace_dim=dims,
        neighbors=neighbors,
    )
    assert (np.diff(got.scores) <= 0).all()  # highest first
    scores = np.empty(50)
    scores[got.indices] = got.scores
    for array in (scores, expected):  # which of two copies covers a sample is left open
        array[3] = array[7] = (array[3] + array[7]) / 2
    np.testing.assert_allclose(scores, expected, atol=1e-9)


@pytest.mark.parametrize(("n", "subspaces"), [(20, 400), (150, 1000), (1000, 1000)])
def test_zcore_draws_many_subspaces_where_images_are_few(n: int, subspaces: int):
    assert select_by("zcore", make_inputs(n), 5, neighbors=2).info["subspaces"] == subspaces


def test_zcore_prefers_the_lonely_to_the_crowded():
    rng = np.random.default_rng(0)
    crowd = rng.normal(scale=0.01, size=(40, 2))
    lonely = np.array([[1.0, 1.0], [-1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]])
    inputs = SelectionInputs(44, embeddings=np.vstack([crowd, lonely]).astype(np.float32))
    got = select_by("zcore", inputs, 12, samples=2000, neighbors=10).indices
    assert {40, 41, 42, 43} <= set(got.tolist())


def test_triangular_draws_follow_the_triangular_distribution():
    low, mode, high = np.array([-1.0, 0.0]), np.array([0.5, 0.0]), np.array([1.0, 0.0])
    draws = triangular(np.random.default_rng(0), low, mode, high, 4000)
    assert (draws[:, 1] == 0).all()
    law = stats.triang(c=0.75, loc=-1, scale=2)
    assert stats.kstest(draws[:, 0], law.cdf).pvalue > 1e-3


def test_zcore_says_what_does_not_fit():
    with pytest.raises(ElfsError, match="subspace_dim from 1 to 6"):
        select_by("zcore", make_inputs(20), 5, subspace_dim=7)


# ---------------------------------------------------------------- DUAL


def test_dual_draws_in_proportion_to_score_times_beta_density():
    n, count, c_d = 12, 6, 4.0
    rng = np.random.default_rng(1)
    score, mean = rng.random(n), rng.uniform(0.2, 0.9, n)
    score[5] = 0
    anchor = mean[np.argsort(-score)[:10]].mean()
    b = 15 * (1 - anchor) * (1 - (1 - count / n) ** c_d)
    weight = score * stats.beta(16 - b, b).pdf(mean)
    weight /= weight.sum()
    inputs = SelectionInputs(n, scores={"dual": score, "dual_mean": mean})
    runs = 1500
    first = np.zeros(n)
    for seed in range(runs):
        got = select_by("dual", inputs, count, seed=seed)
        first[got.indices[0]] += 1
        assert 5 not in got.indices
    assert (abs(first - runs * weight) < 5 * np.sqrt(runs * weight * (1 - weight)) + 1e-9).all()
    assert got.info["beta_b"] == pytest.approx(b)
    assert got.scores.tolist() == score[got.indices].tolist()


def test_dual_moves_to_the_easy_images_as_more_is_pruned():
    rng = np.random.default_rng(2)
    mean = rng.uniform(0.01, 0.99, 4000)
    inputs = SelectionInputs(4000, scores={"dual": mean * (1 - mean) ** 2, "dual_mean": mean})
    kept = [mean[select_by("dual", inputs, n).indices].mean() for n in (80, 400, 1200)]
    assert kept[0] > kept[1] > kept[2]


def test_dual_needs_sane_columns():
    good = np.full(5, 0.5)
    with pytest.raises(ElfsError, match="no column 'dual_mean'"):
        select_by("dual", SelectionInputs(5, scores={"dual": good}), 2)
    with pytest.raises(ElfsError, match=r"in \[0, 1\]"):
        select_by("dual", SelectionInputs(5, scores={"dual": good, "dual_mean": good + 1}), 2)


# ---------------------------------------------------------------- broken embeddings


@pytest.mark.parametrize("method", [m for m in METHODS if "embeddings" in METHODS[m].needs])
def test_a_row_that_is_not_finite_is_named(method):
    inputs = make_inputs(30)
    broken = inputs.embeddings.copy()
    broken[17, 2] = np.nan
    with pytest.raises(ElfsError, match="row 17"):
        run(method, SelectionInputs(**{**vars(inputs), "embeddings": broken}), 5)
