"""Shift measures against closed forms, slow references and invariances."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elfs_lib.errors import ElfsError
from elfs_lib.results.shift import (
    chance_overlap,
    class_balance,
    compare_scores,
    easy_share,
    jaccard_overlap,
    pseudo_label_error_by_decile,
)


def test_same_scores_do_not_differ():
    scores = np.random.default_rng(0).normal(size=200)
    shift = compare_scores(scores, scores)
    assert shift.n == 200
    assert shift.ks_statistic == 0 and shift.wasserstein == 0
    assert shift.spearman == pytest.approx(1)


def test_constant_offset_is_the_wasserstein_distance():
    scores = np.random.default_rng(1).normal(size=300)
    shift = compare_scores(scores + 0.7, scores)
    assert shift.wasserstein == pytest.approx(0.7)
    assert shift.spearman == pytest.approx(1)


def test_disjoint_and_reversed_scores():
    true = np.linspace(0, 1, 100)
    shift = compare_scores(5 - true, true)
    assert shift.ks_statistic == 1
    assert shift.spearman == pytest.approx(-1)


def test_ks_statistic_is_the_largest_gap_of_the_distribution_functions():
    generator = np.random.default_rng(2)
    left, right = generator.normal(size=60), generator.normal(0.4, 1.3, size=60)
    points = np.concatenate([left, right])
    gap = max(abs((left <= x).mean() - (right <= x).mean()) for x in points)
    assert compare_scores(left, right).ks_statistic == pytest.approx(gap)


def test_constant_score_has_no_rank_correlation():
    assert np.isnan(compare_scores(np.ones(5), np.arange(5.0)).spearman)


def test_error_by_decile_finds_the_wrong_end_whatever_the_numbering():
    true = np.tile(np.arange(5), 200)
    scores = np.random.default_rng(4).permutation(1000).astype(float)
    renumbered = np.array([3, 0, 4, 1, 2])[true]
    renumbered[scores < 100] = (renumbered[scores < 100] + 1) % 5
    frame = pseudo_label_error_by_decile(scores, renumbered, true)
    assert frame["error"].tolist() == [1.0] + [0.0] * 9
    assert frame["count"].tolist() == [100] * 10
    assert frame["score_low"].iloc[0] == 0 and frame["score_high"].iloc[-1] == 999
    assert frame["standard_error"].tolist() == [0.0] * 10


def test_deciles_of_an_uneven_number_cover_every_image_once():
    frame = pseudo_label_error_by_decile(np.zeros(23), np.zeros(23, int), np.zeros(23, int))
    assert frame["count"].sum() == 23 and set(frame["count"]) == {2, 3}


def test_easy_share_of_known_coresets():
    easiness = np.arange(100.0)
    assert easy_share(np.arange(80, 100), easiness) == 1
    assert easy_share(np.arange(80), easiness) == 0
    assert easy_share(np.arange(100), easiness) == pytest.approx(0.2)
    assert easy_share(np.arange(90, 100), easiness, top=0.05) == pytest.approx(0.5)
    # Ties break by index: of equal scores the later images are the easy ones.
    assert easy_share(np.array([8, 9]), np.zeros(10)) == 1


@settings(max_examples=25, deadline=None)
@given(st.integers(5, 60), st.integers(0, 1000))
def test_easy_share_ignores_order_and_monotone_rescaling(size, seed):
    generator = np.random.default_rng(seed)
    easiness = generator.normal(size=size)
    chosen = generator.choice(size, size // 2, replace=False)
    share = easy_share(chosen, easiness)
    assert share == easy_share(chosen[::-1], np.exp(easiness))


def test_class_balance_closed_forms():
    even = class_balance(np.tile(np.arange(4), 5), 4)
    assert even.counts.tolist() == [5, 5, 5, 5] and even.entropy == pytest.approx(1)
    lone = class_balance(np.zeros(6, int), 3)
    assert lone.counts.tolist() == [6, 0, 0] and lone.entropy == 0
    assert class_balance(np.zeros(3, int), 1).entropy == 1


def test_jaccard_overlap_of_known_sets():
    frame = jaccard_overlap({"a": np.array([3, 1, 2, 0]), "b": np.array([2, 3, 4, 5]), "c": [9]})
    assert frame.loc["a", "b"] == frame.loc["b", "a"] == pytest.approx(2 / 6)
    assert frame.loc["a", "c"] == 0
    assert np.diag(frame).tolist() == [1, 1, 1]


def test_chance_overlap_is_what_random_coresets_share():
    generator = np.random.default_rng(5)
    pairs = {k: generator.choice(20_000, 6_000, replace=False) for k in "ab"}
    assert jaccard_overlap(pairs).loc["a", "b"] == pytest.approx(chance_overlap(0.3), abs=0.01)
    assert chance_overlap(1.0) == 1


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: compare_scores([], []), "pseudo_scores"),
        (lambda: compare_scores([1.0, np.nan], [1.0, 2.0]), "NaN"),
        (lambda: compare_scores([1.0], [1.0, 2.0]), "same images"),
        (lambda: pseudo_label_error_by_decile([1.0], [0.5], [1]), "whole numbers"),
        (lambda: pseudo_label_error_by_decile([1.0], [0], [-1]), "from 0"),
        (lambda: pseudo_label_error_by_decile([1.0], [0], [0]), "bins"),
        (lambda: easy_share([0, 0], [1.0, 2.0]), "twice"),
        (lambda: easy_share([5], [1.0, 2.0]), "only 2 images"),
        (lambda: easy_share([0], [1.0, 2.0], top=0), "top"),
        (lambda: class_balance([4], 3), "num_classes"),
        (lambda: jaccard_overlap({}), "coresets"),
        (lambda: chance_overlap(1.5), "budget"),
    ],
)
def test_bad_input_is_one_sentence(call, words):
    with pytest.raises(ElfsError, match=words):
        call()
