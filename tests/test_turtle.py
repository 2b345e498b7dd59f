"""TURTLE: its objective by hand, and what it finds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_spectral import blobs

from elfs_lib.clustering.metrics import clustering_accuracy
from elfs_lib.clustering.turtle import Labelling, TurtleConfig, fit_turtle, objective

QUICK = TurtleConfig(steps=100, learning_rate=0.02)


def test_the_objective_and_its_gradient_are_those_of_plain_numbers():
    rng = np.random.default_rng(0)
    shares, logits = rng.dirichlet(np.ones(4), 9), rng.normal(size=(9, 4))

    def plain(shares: np.ndarray) -> float:
        log = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        mean = shares.mean(0)
        return -(shares * log).sum(1).mean() - 3.0 * -(mean * np.log(mean)).sum()

    target = torch.tensor(shares, requires_grad=True)
    found = objective(target, torch.tensor(logits), 3.0)
    assert found.item() == pytest.approx(plain(shares), abs=1e-12)
    found.backward()
    for place in ((0, 0), (3, 2), (8, 3)):
        step = np.zeros_like(shares)
        step[place] = 1e-6
        slope = (plain(shares + step) - plain(shares - step)) / 2e-6
        assert target.grad[place].item() == pytest.approx(slope, abs=1e-7)


def test_labels_confidence_and_loss():
    points, kinds = blobs()
    found = fit_turtle(points, 4, QUICK, seed=1)
    assert found.labels.dtype == np.int64 and found.confidence.dtype == np.float32
    assert clustering_accuracy(found.labels, kinds) == 1
    assert (found.confidence <= 1).all()
    again = fit_turtle(7 * points, 4, QUICK, seed=1)  # directions alone count
    np.testing.assert_array_equal(again.labels, found.labels)
    other = fit_turtle(points, 4, QUICK, seed=2)
    assert other.loss != found.loss
    unclear = fit_turtle(blobs(noise=2.0)[0], 4, QUICK, seed=1)
    assert unclear.loss > found.loss  # what has no clusters is learnt less well
    assert 0.25 < unclear.confidence.mean() < found.confidence.mean() < 1
    softer = fit_turtle(points, 4, replace(QUICK, length=1.0), seed=1)
    assert softer.confidence.mean() < found.confidence.mean()
    slower = fit_turtle(points, 4, replace(QUICK, learning_rate=1e-4), seed=1)
    assert slower.confidence.mean() < found.confidence.mean()


def test_a_labelling_has_directions_and_lengths_of_their_own():
    draw = torch.Generator().manual_seed(0)
    labelling = Labelling((3, 5), 0.1, draw)
    rows = torch.randn(7, 5, generator=draw)
    before = labelling(rows)
    torch.testing.assert_close(before, rows @ torch.nn.functional.normalize(labelling.weight).T)
    with torch.no_grad():
        labelling.weight.mul_(9.0)
    torch.testing.assert_close(labelling(rows), before)  # what its weights' lengths are is nothing
    with torch.no_grad():
        labelling.length.mul_(2.0)
        labelling.bias.add_(1.0)
    torch.testing.assert_close(labelling(rows), 2 * before + 1)
    labelling.step(labelling(rows).square().mean())
    assert (labelling.length != 2).all() and (labelling.bias != 1).all()


def test_without_the_entropy_classes_are_lost():
    points, _ = blobs()
    kept = fit_turtle(points, 4, QUICK, seed=0).labels
    lost = fit_turtle(points, 4, replace(QUICK, entropy=0.0), seed=0)
    assert len(np.unique(kept)) == 4 > len(np.unique(lost.labels))


def test_batches_are_drawn_from_all_images():
    points, kinds = blobs()
    part = replace(QUICK, batch=120)
    assert clustering_accuracy(fit_turtle(points, 4, part, seed=0).labels, kinds) > 0.9
