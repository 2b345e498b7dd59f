"""How far a list is to be trusted: overlap with other seeds, coverage, the search for beta."""

from __future__ import annotations

import numpy as np
import pytest

from elfs_lib.photos.trust import coverage, coverage_table, overlap, searched


def test_overlap_of_random_lists_is_what_chance_gives():
    rng = np.random.default_rng(0)
    draws = [rng.permutation(200)[:50] for _ in range(400)]
    found = overlap(draws[0], draws[1:], 200)
    assert found.chance == 0.25
    assert np.mean(found.shares) == pytest.approx(0.25, abs=0.01)
    assert 2 * np.std(found.shares) == pytest.approx(found.noise, rel=0.1)
    assert found.by_chance
    same = overlap(draws[0], [draws[0][::-1]], 200)
    assert same.shares == (1.0,) and not same.by_chance
    half = overlap(np.arange(50), [np.arange(25, 75)], 200)
    assert half.mean == 0.5 and not half.by_chance


def test_coverage_is_the_mean_cosine_to_the_nearest_listed(monkeypatch):
    rows = np.random.default_rng(0).normal(size=(90, 5)).astype(np.float32)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    lists = [np.array([3]), np.array([3, 50, 7])]
    slow = [np.mean([max(float(u @ unit[k]) for k in own) for u in unit]) for own in lists]
    monkeypatch.setattr("elfs_lib.photos.trust.ROWS_AT_ONCE", 32)
    np.testing.assert_allclose(coverage(rows, lists), slow, atol=1e-6)
    monkeypatch.setattr("elfs_lib.photos.trust.SAMPLED", 60)
    np.testing.assert_allclose(coverage(rows, lists), slow, atol=0.1)


def test_a_list_of_one_image_of_each_group_covers_more_than_random_ones():
    rng = np.random.default_rng(0)
    rows = (np.eye(8)[np.arange(160) % 8] + 0.05 * rng.normal(size=(160, 8))).astype(np.float32)
    table = coverage_table(rows, np.arange(160), np.arange, [4, 8])
    assert table["images"].tolist() == [4, 8]
    assert table["coverage"][1] > 0.98 > table["random_high"][1] >= table["random_low"][1]
    assert table["coverage"][0] == pytest.approx(table["coverage"][1] / 2, abs=0.1)


def test_a_search_tells_apart_what_differs_by_two_standard_errors():
    # of 400 held-out images 50% have a standard error of 2.5, two of them differ by 3.5
    found = searched([0.0, 0.2, 0.4], np.array([[43.1], [50.0], [42.8]]), 0.2, 400)
    assert found.table["error"].tolist() == pytest.approx([2.476, 2.5, 2.474], abs=1e-3)
    assert found.alike == [0.0] and not found.at_edge
    # two splits halve the variance, unless they differ by more
    found = searched([0.0, 0.2], np.array([[44.5, 46.5], [50.0, 50.0]]), 0.2, 400)
    assert found.table["error"][1] == pytest.approx(2.5 / np.sqrt(2)) and found.alike == [0.0]
    found = searched([0.0, 0.2], np.array([[30.0, 60.0], [50.0, 50.0]]), 0.2, 400)
    assert found.table["error"][0] == pytest.approx(15.0)


@pytest.mark.parametrize(("best", "edge"), [(0.0, True), (0.2, False), (0.4, True)])
def test_the_best_beta_may_lie_at_the_edge_of_the_grid(best: float, edge: bool):
    assert searched([0.0, 0.2, 0.4], np.full((3, 1), 50.0), best, 100).at_edge is edge


def test_a_grid_of_one_beta_has_no_edge_and_a_perfect_score_an_error():
    found = searched([0.2], np.array([[100.0]]), 0.2, 100)
    assert not found.at_edge and found.alike == [] and found.table["error"][0] > 0
