"""TEMI: against a plain loop in float64, closed forms, invariances, and small runs."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from elfs_lib.clustering import temi
from elfs_lib.clustering.metrics import clustering_accuracy
from elfs_lib.clustering.temi import (
    TemiConfig,
    TemiHeads,
    align_heads,
    consensus,
    fit_temi,
    temi_losses,
)
from elfs_lib.clustering.temi_config import Weighting
from elfs_lib.embedding.neighbors import nearest_neighbors
from elfs_lib.errors import ElfsError
from elfs_lib.params import Params

CPU = torch.device("cpu")
SMALL = TemiConfig(
    classes=3, heads=4, epochs=40, warmup_epochs=2, batch=30, hidden=16, bottleneck=8,
    learning_rate=1e-2, teacher_momentum=0.9,
)  # fmt: skip


def plain_logits(heads: temi.Heads, h: int, x: torch.Tensor, temperature: float) -> torch.Tensor:
    """Head ``h`` alone, layer by layer: [M, C]."""
    hidden = F.gelu(F.linear(x, heads.weight1[h].T, heads.bias1[h, 0]))
    feature = F.linear(hidden, heads.weight2[h].T, heads.bias2[h, 0])
    feature = feature / feature.norm(dim=1, keepdim=True)
    weight = heads.weight3[h] / heads.weight3[h].norm(dim=1, keepdim=True)
    return feature @ weight.T / temperature


def plain_losses(qs: list, qt: list, marginal, beta: float, weighting: str) -> list:
    """The formulas of the paper, one pair, one head, one cluster at a time.

    qs, qt: probabilities of each head, [2B, C]; marginal [H][C]. Returns H losses.
    """
    heads, (size, classes) = len(qs), qs[0].shape
    half = size // 2

    def pmi(h, i, j):
        terms = [(qs[h][i, c] * qt[h][j, c]) ** beta / marginal[h][c] for c in range(classes)]
        return sum(terms).log()

    def weight(i, j):
        judge = qt if weighting == "teacher" else [q.detach() for q in qs]
        return sum((judge[h][i] * qt[h][j]).sum() for h in range(heads)) / heads

    losses = []
    for h in range(heads):
        total = 0.0
        for i in range(half):
            j = i + half
            total = total + weight(i, j) * pmi(h, i, j) + weight(j, i) * pmi(h, j, i)
        losses.append(-total / (2 * half))
    return losses


def new_heads(config: TemiConfig, width: int, seed: int) -> temi.Heads:
    made = temi.new_heads(width, config, torch.Generator().manual_seed(seed))
    return temi.Heads(*(w.double().requires_grad_() for w in made))


@pytest.mark.parametrize("weighting", get_args(Weighting))
@pytest.mark.parametrize("beta", [0.6, 1.0])
def test_losses_and_gradients_match_the_plain_loop(weighting, beta):
    config = TemiConfig(classes=4, heads=3, batch=5, hidden=7, bottleneck=6)
    student, teacher = new_heads(config, 9, 0), new_heads(config, 9, 1)
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(10, 9, generator=generator, dtype=torch.float64)
    marginal = torch.rand(3, 4, generator=generator, dtype=torch.float64) + 0.1

    qs = [plain_logits(student, h, x, 0.1).softmax(1) for h in range(3)]
    qt = [plain_logits(teacher, h, x, 0.3).softmax(1).detach() for h in range(3)]
    expected = plain_losses(qs, qt, marginal, beta, weighting)
    gradients = torch.autograd.grad(sum(expected), list(student))

    with torch.no_grad():
        seen = temi.forward(x, student, 0.1)
        taught = temi.forward(x, teacher, 0.3)
        losses, by_logits = temi_losses(
            seen.logits, taught.logits, marginal, beta=beta, weighting=weighting
        )
        found = temi.backward(x, student, seen, by_logits, 0.1)
    torch.testing.assert_close(losses, torch.stack(expected), rtol=1e-10, atol=1e-12)
    logits = seen.logits.clone().requires_grad_()
    plain = temi.plain_losses(logits, taught.logits, marginal, beta=beta, weighting=weighting)
    torch.testing.assert_close(losses, plain, rtol=1e-10, atol=1e-12)
    (by_autograd,) = torch.autograd.grad(plain.sum(), logits)
    torch.testing.assert_close(by_logits, by_autograd, rtol=1e-8, atol=1e-12)
    for name, ours, theirs in zip(temi.Heads._fields, found, gradients, strict=True):
        torch.testing.assert_close(
            ours, theirs, rtol=1e-8, atol=1e-12, msg=lambda m, name=name: f"{name}: {m}"
        )


def test_teacher_and_student_are_not_exchangeable():
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 2, 4, 12, generator=generator, dtype=torch.float64)
    marginal = torch.full((2, 4), 0.25, dtype=torch.float64)
    one = temi_losses(student, teacher, marginal, beta=0.6, weighting="teacher")[0]
    other = temi_losses(teacher, student, marginal, beta=0.6, weighting="teacher")[0]
    assert (one - other).abs().min() > 1e-4


def test_loss_closed_forms():
    # Sure and agreeing over C even clusters: pmi = log(1 / (1/C)), weight = 1, loss = -log C.
    sure = torch.full((1, 4, 8), -50.0, dtype=torch.float64)
    sure[0, torch.arange(8) % 4, torch.arange(8)] = 50.0
    even = torch.full((1, 4), 0.25, dtype=torch.float64)
    loss, gradient = temi_losses(sure, sure, even, beta=0.6, weighting="teacher")
    assert loss.item() == pytest.approx(-math.log(4))
    assert gradient.abs().max() < 1e-12
    # Undecided: q = 1/C, pmi = log(C C^(-2 beta) C), weight = 1/C.
    flat = torch.zeros_like(sure)
    loss, _ = temi_losses(flat, flat, even, beta=0.6, weighting="teacher")
    assert loss.item() == pytest.approx(-(2 - 1.2) * math.log(4) / 4)


def test_gradient_draws_the_student_to_its_neighbours_teacher():
    student = torch.zeros(1, 2, 2, dtype=torch.float64)
    teacher = torch.tensor([[[4.0, -4.0], [-4.0, 4.0]]], dtype=torch.float64)
    even = torch.full((1, 2), 0.5, dtype=torch.float64)
    _, gradient = temi_losses(student, teacher, even, beta=0.6, weighting="teacher")
    # Teacher: x is in cluster 0 and its neighbour in 1, so x must learn 1 (and the neighbour 0).
    assert gradient[0, 1, 0] < 0 < gradient[0, 0, 0]
    assert gradient[0, 0, 1] < 0 < gradient[0, 1, 1]


def test_permuted_heads_and_relabelled_clusters_change_nothing():
    generator = torch.Generator().manual_seed(3)
    student, teacher = torch.randn(2, 5, 4, 20, generator=generator, dtype=torch.float64)
    marginal = torch.rand(5, 4, generator=generator, dtype=torch.float64)
    options = {"beta": 0.6, "weighting": "teacher"}
    losses, gradient = temi_losses(student, teacher, marginal, **options)
    heads, names = torch.tensor([3, 1, 4, 0, 2]), torch.tensor([2, 0, 3, 1])
    again, by_heads = temi_losses(student[heads], teacher[heads], marginal[heads], **options)
    torch.testing.assert_close(again, losses[heads])
    torch.testing.assert_close(by_heads, gradient[heads])
    again, by_names = temi_losses(
        student[:, names], teacher[:, names], marginal[:, names], **options
    )
    torch.testing.assert_close(again, losses)
    torch.testing.assert_close(by_names, gradient[:, names])


@pytest.mark.parametrize("group_floats", [1, 1 << 20], ids=["a head at a time", "all at once"])
def test_steps_match_a_plain_loop_with_torch_autograd(monkeypatch, group_floats):
    monkeypatch.setattr(temi, "GROUP_FLOATS", group_floats)
    config = TemiConfig(
        classes=3,
        heads=3,
        batch=6,
        hidden=8,
        bottleneck=5,
        learning_rate=0.05,
        teacher_momentum=0.8,
    )
    trainer = temi.Trainer(7, config, torch.Generator().manual_seed(0), CPU, torch.float32)
    assert len(trainer.groups) == (3 if group_floats == 1 else 1)
    student = temi.Heads(*(w.detach().double().requires_grad_() for w in trainer.student))
    teacher = temi.Heads(*(w.detach().clone() for w in student))
    marginal = torch.full((3, 3), 1 / 3, dtype=torch.float64)
    optimizer = torch.optim.AdamW(list(student), weight_decay=config.weight_decay, foreach=False)
    generator = torch.Generator().manual_seed(1)
    for step in range(4):
        x = torch.randn(12, 7, generator=generator)
        lr_share = (step + 1) / 4
        losses = trainer.step(x, lr_share)
        qs = [plain_logits(student, h, x.double(), 0.1).softmax(1) for h in range(3)]
        qt = [plain_logits(teacher, h, x.double(), 0.1).softmax(1).detach() for h in range(3)]
        marginal = 0.9 * marginal + 0.1 * torch.stack([q.mean(0) for q in qt])
        expected = torch.stack(plain_losses(qs, qt, marginal, 0.6, "teacher"))
        optimizer.zero_grad()
        expected.sum().backward()
        optimizer.param_groups[0]["lr"] = 0.05 * 6 / 256 * lr_share
        optimizer.step()
        with torch.no_grad():
            for slow, fast in zip(teacher, student, strict=True):
                slow.copy_(0.8 * slow + 0.2 * fast)
        torch.testing.assert_close(losses.double(), expected.detach(), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(trainer.marginal.double(), marginal, rtol=1e-5, atol=1e-6)
        for ours, theirs in zip(trainer.student, student, strict=True):
            torch.testing.assert_close(ours.double(), theirs, rtol=1e-3, atol=1e-5)
        for ours, theirs in zip(trainer.teacher, teacher, strict=True):
            torch.testing.assert_close(ours.double(), theirs, rtol=1e-3, atol=1e-5)
    assert all(w.grad is None and not w.requires_grad for w in trainer.teacher)


def test_bfloat16_steps_stay_near_float32():
    config = dataclasses.replace(SMALL, batch=64)
    x = torch.randn(128, 10, generator=torch.Generator().manual_seed(5))
    losses = {}
    for dtype in (torch.float32, torch.bfloat16):
        trainer = temi.Trainer(10, config, torch.Generator().manual_seed(0), CPU, dtype)
        losses[dtype] = torch.stack([trainer.step(x.to(dtype), 1.0) for _ in range(5)])
    torch.testing.assert_close(losses[torch.float32], losses[torch.bfloat16], rtol=0.03, atol=0.01)


def test_alignment_recovers_known_permutations():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 6, 400)
    names = np.array([rng.permutation(6) for _ in range(4)])  # names[h, c]: what h calls c
    assignments = names[:, truth]
    noisy = rng.random(assignments.shape) < 0.2
    assignments[noisy] = rng.integers(0, 6, noisy.sum())
    mapping = align_heads(assignments, 2, classes=6)
    assert (mapping[2] == np.arange(6)).all()
    for h in range(4):
        assert (mapping[h, names[h]] == names[2]).all()


@given(st.integers(2, 4), st.integers(1, 25), st.integers(0, 2**32 - 1), st.data())
@settings(max_examples=60, deadline=None)
def test_alignment_of_any_heads(classes: int, images: int, seed: int, data: st.DataObject):
    """Names are permutations, no other would agree more, and how heads number is no matter."""
    rng = np.random.default_rng(seed)
    assignments = rng.integers(0, classes, (3, images))
    reference = data.draw(st.integers(0, 2))
    every = np.array(list(itertools.permutations(range(classes))))

    def agreements(assignments: np.ndarray) -> list[int]:
        mapping = align_heads(assignments, reference, classes=classes)
        assert (np.sort(mapping) == np.arange(classes)).all()
        assert (mapping[reference] == np.arange(classes)).all()
        renamed = np.take_along_axis(mapping, assignments, axis=1)
        return (renamed == assignments[reference]).sum(1).tolist()

    found = agreements(assignments)
    best = [(every[:, own] == assignments[reference]).sum(1).max() for own in assignments]
    assert found == best
    other = [rng.permutation(classes)[own] for own in assignments]
    other[reference] = assignments[reference]
    assert agreements(np.array(other)) == found


def ring(count: int = 150, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Three clouds in 6 features, with a constant one, whose clusters are plain to see."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    points = np.eye(3, 6)[labels] * 3 + rng.normal(size=(count, 6)) * 0.4
    points[:, 5] = 2.0
    return points.astype(np.float32), labels


@pytest.fixture(scope="module")
def fitted():
    points, labels = ring()
    near = nearest_neighbors(points, 10).indices
    return points, labels, near, fit_temi(points, near, SMALL, precision="float32")


def test_fit_finds_clusters_and_fills_the_result(fitted):
    _points, labels, _, result = fitted
    for name in ("lowest_loss", "aligned_mean"):
        assert clustering_accuracy(result.pseudo[name], labels) > 0.95, name
    assert set(result.pseudo) == set(get_args(Params.model_fields["pseudo_labels"].annotation))
    assert result.assignments.shape == (4, 150) and result.assignments.dtype == np.int16
    assert result.loss_curves.shape == (40, 4) and np.isfinite(result.loss_curves).all()
    np.testing.assert_allclose(result.head_losses, result.loss_curves[-1], rtol=1e-6)
    assert result.loss_curves[-1].mean() < result.loss_curves[0].mean()
    np.testing.assert_allclose(result.probabilities.sum(1), 1, rtol=1e-5)
    assert (result.probabilities.argmax(1) == result.pseudo["aligned_mean"]).all()
    assert (result.confidence == result.probabilities.max(1)).all()
    assert (result.pseudo["lowest_loss"] == result.assignments[result.reference]).all()
    assert result.notes == []


def slow_consensus(assignments, reference, classes):
    """Names and weights of the heads by trying every permutation and counting votes one by one."""
    labels, rounds = [int(c) for c in assignments[reference]], itertools.count()
    while True:
        power = 3 if next(rounds) else 0  # the first vote is among equals
        mapping, weights = [], []
        for own in assignments:
            names = max(
                itertools.permutations(range(classes)),
                key=lambda names: sum(names[c] == y for c, y in zip(own, labels, strict=True)),
            )
            agreement = np.mean([names[c] == y for c, y in zip(own, labels, strict=True)])
            mapping.append(names)
            weights.append(agreement**power)
        votes = np.zeros((len(labels), classes))
        for names, weight, own in zip(mapping, weights, assignments, strict=True):
            for image, cluster in enumerate(own):
                votes[image, names[cluster]] += weight
        voted = [int(c) for c in votes.argmax(1)]
        if voted == labels and power:
            return mapping, np.array(weights) / sum(weights)
        labels = voted


def crowd(accuracies, seed=0, classes=4, count=400):
    """Heads that are right to the given shares, each with numbers of its own; and the truth."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, classes, count)
    heads = []
    for accuracy in accuracies:
        wrong = rng.random(count) > accuracy
        own = np.where(wrong, rng.integers(0, classes, count), truth)
        heads.append(rng.permutation(classes)[own])
    return np.array(heads, dtype=np.int16), truth


@pytest.mark.parametrize("seed", range(5))
def test_consensus_equals_a_slow_reference(seed, monkeypatch):
    heads, _ = crowd([0.8, 0.5, 0.6, 0.3, 0.7], seed)
    monkeypatch.setattr(temi, "BLOCK_FLOATS", 60)
    mapping, weights = temi.agree(heads, 1, np.arange(5), 4)
    expected, shares = slow_consensus(heads, 1, 4)
    renamed, theirs = mapping[np.arange(5)[:, None], heads], np.array(expected)
    assert (renamed == theirs[np.arange(5)[:, None], heads]).all()
    np.testing.assert_allclose(weights, shares, rtol=1e-12)


def test_consensus_is_better_than_a_poor_reference_and_mistrusts_poor_heads():
    heads, truth = crowd([0.3, 0.7, 0.7, 0.7, 0.3, 0.3], count=3000)
    mapping, weights = temi.agree(heads, 0, np.arange(6), 4)
    voted = temi.vote(np.take_along_axis(mapping, heads, axis=1), weights, 4)
    assert clustering_accuracy(voted.astype(int), truth) > 0.85
    assert weights[[0, 4, 5]].max() < 0.5 * weights[[1, 2, 3]].min()
    _, fewer = temi.agree(heads, 0, np.array([1, 2]), 4)
    assert (fewer[[0, 3, 4, 5]] == 0).all() and fewer.sum() == pytest.approx(1)


def test_aligned_mean_is_the_mean_of_renumbered_heads(fitted, monkeypatch):
    points, _, near, result = fitted
    monkeypatch.setattr(temi, "BLOCK_FLOATS", 1000)  # many small blocks give the same
    again = fit_temi(points, near, SMALL, precision="float32")
    np.testing.assert_allclose(again.probabilities, result.probabilities, atol=1e-6)
    heads = temi.Heads(*(result.state[f"head.{name}"] for name in temi.Heads._fields))
    inputs = temi.prepare(
        torch.from_numpy(points / np.linalg.norm(points, axis=1, keepdims=True)),
        {"mean": result.state["input.mean"], "features": result.state["input.features"]},
    )
    mapping, weights = slow_consensus(result.assignments, result.reference, 3)
    np.testing.assert_allclose(result.weights, weights, rtol=1e-12)
    total = np.zeros((150, 3))
    for h in range(4):
        probabilities = plain_logits(heads, h, inputs, 0.1).softmax(1).numpy()
        for cluster in range(3):
            total[:, mapping[h][cluster]] += probabilities[:, cluster] * weights[h]
    np.testing.assert_allclose(result.probabilities, total, atol=1e-5)


def test_same_seed_same_bits_other_seed_other_heads(fitted):
    points, _, near, result = fitted
    again = fit_temi(points, near, SMALL, precision="float32")
    assert (again.loss_curves == result.loss_curves).all()
    assert (again.probabilities == result.probabilities).all()
    for name, value in result.state.items():
        assert torch.equal(value, again.state[name]), name
    other = fit_temi(points, near, SMALL, seed=1, precision="float32")
    assert (other.loss_curves != result.loss_curves).any()


def test_heads_label_new_images(fitted):
    fresh, labels = ring(seed=9)
    result = fitted[3]
    heads = TemiHeads(result.head_losses, result.loss_curves, result.state)
    found = consensus(heads, fresh, precision="float32")
    assert clustering_accuracy(found.pseudo["aligned_mean"], labels) > 0.9
    with pytest.raises(ElfsError, match="fitted on 6"):
        consensus(heads, fresh[:, :5])


@pytest.mark.parametrize(
    "options", [{"standardize": True}, {"pca": 4}, {"pca": 3, "standardize": True}]
)
def test_inputs_are_centred_scaled_and_finite(options):
    points, _ = ring()
    rows = torch.from_numpy(points)
    config = dataclasses.replace(SMALL, **options)
    inputs = temi.prepare(rows, temi.fit_preparation(rows, config))
    assert torch.isfinite(inputs).all()  # feature 5 is constant
    torch.testing.assert_close(inputs.mean(0), torch.zeros(inputs.shape[1]), atol=1e-5, rtol=0)
    assert inputs.square().mean().item() == pytest.approx(1, rel=1e-5)
    if "pca" in options:
        centred = (points - points.mean(0)).astype("f8")
        if "standardize" in options:
            centred /= np.where(centred.std(0) > 1e-6, centred.std(0), np.inf)
        singular = np.linalg.svd(centred, compute_uv=False)[: options["pca"]]
        found = np.linalg.norm(inputs.numpy(), axis=0)
        np.testing.assert_allclose(found / found[0], singular / singular[0], rtol=1e-4)


def put_all_in_one_cluster(heads: temi.Heads, h: int) -> None:
    """Head ``h`` sees the same feature everywhere, and cluster 0 lies in its direction."""
    heads.weight2[h] = 0.0
    heads.bias2[h] = 1.0
    heads.weight3[h] = -1.0
    heads.weight3[h, 0] = 1.0


def test_heads_that_lost_clusters_do_not_lead_and_are_named(monkeypatch):
    points, labels = ring()
    near = nearest_neighbors(points, 10).indices

    def one_cluster_head(inputs, *args, **kwargs):
        heads, curves = train(inputs, *args, **kwargs)
        put_all_in_one_cluster(heads, 1)
        curves[-1, 1] = -99.0  # and its loss looks the best of all
        return heads, curves

    train = temi.train_heads
    monkeypatch.setattr(temi, "train_heads", one_cluster_head)
    result = fit_temi(points, near, SMALL, precision="float32")
    assert result.reference != 1
    assert clustering_accuracy(result.pseudo["aligned_mean"], labels) > 0.95
    assert any("1 of 4 heads" in note for note in result.notes)


def test_collapse_of_all_heads_is_said(monkeypatch):
    points, _ = ring()
    near = nearest_neighbors(points, 10).indices

    def collapsed(inputs, *args, **kwargs):
        heads, curves = train(inputs, *args, **kwargs)
        for h in range(4):
            put_all_in_one_cluster(heads, h)
        return heads, curves

    train = temi.train_heads
    monkeypatch.setattr(temi, "train_heads", collapsed)
    result = fit_temi(points, near, dataclasses.replace(SMALL, epochs=1), precision="float32")
    assert any("aligned mean: 2 of 3 clusters are empty" in note for note in result.notes)


def test_keep_heads_leaves_out_the_worst(fitted):
    points, _, near, _result = fitted
    kept = fit_temi(points, near, dataclasses.replace(SMALL, keep_heads=0.25), precision="float32")
    assert (kept.pseudo["aligned_mean"] == kept.pseudo["lowest_loss"]).all()


@pytest.mark.parametrize(
    "field, value",
    [
        ("classes", 1), ("heads", 0), ("epochs", 0), ("batch", 1), ("beta", 0), ("beta", 1.5),
        ("teacher_momentum", 1.0), ("marginal_momentum", -0.1), ("learning_rate", 0),
        ("student_temperature", -1), ("keep_heads", 0), ("pca", 0), ("weight_decay", -1),
        ("weighting", "teachr"), ("loss_epochs", 0), ("classes", 2.5), ("learning_rate", math.nan),
    ],
)  # fmt: skip
def test_configuration_names_the_mistake(field, value):
    with pytest.raises(ElfsError, match=field):
        TemiConfig(**({"classes": 3} | {field: value}))


def test_inputs_that_do_not_fit_are_named(fitted):
    points, _, near, _ = fitted
    with pytest.raises(ElfsError, match=r"\[150, K\]"):
        fit_temi(points, near[:-1], SMALL)
    with pytest.raises(ElfsError, match="must lie in 0..149"):
        fit_temi(points, near + 1, SMALL)
    with pytest.raises(ElfsError, match="pca is 7: at most 6"):
        fit_temi(points, near, dataclasses.replace(SMALL, pca=7))
    with pytest.raises(ElfsError, match="classes is 200"):
        fit_temi(points, near, dataclasses.replace(SMALL, classes=200))
    with pytest.raises(ElfsError, match="all alike"):
        fit_temi(np.ones((150, 4)), near, SMALL)
    with pytest.raises(ElfsError, match="lower the learning_rate"):
        fit_temi(points, near, dataclasses.replace(SMALL, learning_rate=1e38), precision="float32")
