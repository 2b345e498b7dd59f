"""Spectral clustering against a dense decomposition, and as the start of TEMI's heads."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from elfs_lib.clustering import temi
from elfs_lib.clustering.metrics import clustering_accuracy
from elfs_lib.clustering.spectral import spectral_labels, spectral_vectors
from elfs_lib.clustering.temi import TemiConfig, fit_heads, fit_temi
from elfs_lib.embedding.neighbors import Neighbors, nearest_neighbors, neighbor_information

START = {"classes": 4, "heads": 3, "epochs": 4, "warmup_epochs": 1, "batch": 60, "hidden": 16}
START |= {"bottleneck": 8, "start": "spectral"}


def blobs(size: int = 60, noise: float = 0.25, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Four clouds of points around orthogonal directions, and which cloud each is of."""
    kinds = np.repeat(np.arange(4), size)
    points = np.eye(12)[kinds] + noise * np.random.default_rng(seed).normal(size=(4 * size, 12))
    return points.astype(np.float32), kinds


def test_vectors_match_a_dense_decomposition():
    points, _ = blobs(20)
    near = nearest_neighbors(points, 7).indices
    graph = np.zeros((80, 80))
    for row, others in enumerate(near):
        for other in others:
            graph[row, other] += 1
            graph[other, row] += 1
    degree = graph.sum(1)
    values, vectors = np.linalg.eigh(graph / np.sqrt(degree[:, None] * degree[None, :]))
    found = spectral_vectors(near, 4)
    for number in range(4):
        exact = vectors[:, -1 - number]
        assert abs(exact @ found[:, number]) > 0.999, number
    assert (np.diff(values[::-1][:4]) < -1e-6).all()  # so that the comparison means something


def test_labels_find_the_clouds_and_the_most_informative_comes_first():
    points, kinds = blobs(noise=0.3)
    near = nearest_neighbors(points, 30)
    labels = spectral_labels(near.indices, 4, count=5, seed=0)
    assert labels.shape == (5, 240) and labels.dtype == np.int64
    assert clustering_accuracy(labels[0], kinds) > 0.9
    same = Neighbors(near.indices, np.ones_like(near.similarities))
    information = [neighbor_information(same, own) for own in labels]
    assert information == sorted(information, reverse=True)
    again = spectral_labels(near.indices, 4, count=5, seed=0)
    np.testing.assert_array_equal(labels, again)


def test_graphs_that_fall_apart_are_no_trouble():
    points, kinds = blobs(noise=0.01)
    near = nearest_neighbors(points, 15).indices
    assert clustering_accuracy(spectral_labels(near, 4, count=1)[0], kinds) == 1


def test_few_images_and_few_neighbours():
    near = nearest_neighbors(np.random.default_rng(0).normal(size=(9, 3)).astype("f4"), 2).indices
    labels = spectral_labels(near, 3, count=40)
    assert labels.shape == (40, 9) and labels.max() <= 2


def test_a_step_of_imitation_follows_the_gradient_of_cross_entropy():
    config = TemiConfig(**START | {"batch": 6})
    generator = torch.Generator().manual_seed(0)
    trainer = temi.Trainer(5, config, generator, torch.device("cpu"), torch.float32)
    inputs = torch.randn(6, 5, generator=generator)
    targets = torch.randint(4, (3, 6), generator=generator)
    expected = []
    for head in range(3):
        weights = [w[head].detach().clone().requires_grad_() for w in trainer.student]
        hidden = F.gelu(inputs @ weights[0] + weights[1])
        feature = F.normalize(hidden @ weights[2] + weights[3], dim=1)
        logits = feature @ F.normalize(weights[4], dim=1).T / config.student_temperature
        expected.append(torch.autograd.grad(F.cross_entropy(logits, targets[head]), weights))
    trainer.imitate(inputs, targets, torch.optim.SGD(list(trainer.student), lr=0.0))
    for number, weight in enumerate(trainer.student):
        plain = torch.stack([grads[number] for grads in expected])
        torch.testing.assert_close(weight.grad, plain, rtol=1e-3, atol=1e-5)


def test_heads_start_from_their_clusterings_and_the_teacher_with_them():
    points, _ = blobs(150)
    near = nearest_neighbors(points, 20).indices
    starts = torch.from_numpy(spectral_labels(near, 4, count=3))
    config = TemiConfig(**START)
    generator = torch.Generator().manual_seed(0)
    trainer = temi.Trainer(12, config, generator, torch.device("cpu"), torch.float32)
    inputs = torch.from_numpy(points)
    for _ in range(8):
        trainer.start_from(inputs, starts, generator)
    with torch.no_grad():
        named = temi.forward(inputs, trainer.teacher, 0.1).logits.argmax(1)
    assert ((named == starts).float().mean(1) > 0.95).all()


def test_spectral_starts_reach_a_lower_loss():
    points, kinds = blobs(100, noise=0.3)
    near = nearest_neighbors(points, 20).indices
    started = fit_temi(points, near, TemiConfig(**START))
    plain = fit_heads(points, near, TemiConfig(**START | {"start": "random"}))
    assert started.head_losses.max() < plain.head_losses.min()
    assert clustering_accuracy(started.pseudo["aligned_mean"], kinds) > 0.85


def test_the_start_is_a_choice():
    with pytest.raises(temi.ElfsError, match="start is 'spectre'"):
        TemiConfig(classes=3, start="spectre")
