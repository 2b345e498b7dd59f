"""Budget, polarity, double-end pruning, its search, CCS and the registry."""

from __future__ import annotations

import math
import re
from fractions import Fraction
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elfs_lib.errors import ElfsError
from elfs_lib.selection import (
    METHODS,
    SCORES,
    SelectionInputs,
    budget_count,
    double_end_prune,
    easiness,
    search_hard_prune_ratio,
    select_by,
    validate_options,
)
from elfs_lib.selection.ccs import equal_width_strata, pass_on_quotas

FEW = settings(max_examples=25, deadline=None)


def table(n: int, seed: int = 0) -> dict[str, np.ndarray]:
    """A dynamics table whose columns rank the images differently."""
    rng = np.random.default_rng(seed)
    columns = {name: rng.random(n) for name in SCORES}
    columns["forgetting"] = rng.integers(0, 5, n).astype(np.int16)
    return columns


# ---------------------------------------------------------------- budget


@FEW
@given(n=st.integers(1, 3000), thousandths=st.integers(1, 1000))
def test_a_share_is_rounded_to_the_nearest_image(n, thousandths):
    exact = Fraction(thousandths, 1000) * n
    if exact < Fraction(1, 2) - Fraction(1, 10**6):
        with pytest.raises(ElfsError, match="rounds to no image"):
            budget_count(thousandths / 1000, n)
        return
    count = budget_count(thousandths / 1000, n)
    assert isinstance(count, int) and 1 <= count <= n
    assert abs(count - exact) <= Fraction(1, 2) + Fraction(1, 10**6)


@FEW
@given(n=st.integers(1, 3000), data=st.data())
def test_a_whole_number_is_a_count(n, data):
    count = data.draw(st.integers(1, n))
    assert budget_count(count, n) == count
    assert budget_count(np.int64(count), n) == count


def test_one_means_one_image_and_one_point_zero_means_all():
    assert budget_count(1, 50) == 1
    assert budget_count(1.0, 50) == 50
    assert budget_count(0.5, 5) == 3  # halves go up
    assert budget_count(20.0, 50) == 20  # a count that passed through a data frame


@pytest.mark.parametrize(
    "budget", [0, 0.0, -1, -0.1, 51, 51.0, 1.5, math.nan, math.inf, "0.1", None, True, 0.001]
)
def test_a_bad_budget_is_one_clear_sentence(budget):
    with pytest.raises(ElfsError, match=r"^[Bb]udget [^\n]*\.$"):
        budget_count(budget, 50)


# ---------------------------------------------------------------- polarity


@pytest.mark.parametrize(
    ("name", "hard"),
    [
        ("aum", "low"),
        ("margin_mean", "low"),
        ("correctness", "low"),
        ("dual_mean", "low"),
        ("forgetting", "high"),
        ("el2n", "high"),
        ("entropy", "high"),
        ("dual", "high"),
    ],
)
def test_ascending_easiness_is_hardest_first(name, hard):
    values = np.array([3, 1, 2], dtype=np.int16)
    order = np.argsort(easiness({name: values}, name)).tolist()
    assert order == ([1, 2, 0] if hard == "low" else [0, 2, 1])


def test_easiness_reads_data_frames_and_leaves_them_alone():
    frame = pd.DataFrame({"aum": [1.0, 2.0], "el2n": np.array([1, 2], dtype=np.uint8)})
    easiness(frame, "aum")[0] = 9
    assert frame["aum"].tolist() == [1, 2]
    assert easiness(frame, "el2n").tolist() == [-1, -2]  # unsigned columns must not wrap around


@pytest.mark.parametrize("values", [[1.0, math.nan], [[1.0], [2.0]]])
def test_easiness_refuses_broken_scores(values):
    with pytest.raises(ElfsError, match="finite number"):
        easiness({"aum": np.array(values)}, "aum")


def test_easiness_names_what_is_missing():
    with pytest.raises(ElfsError, match="did you mean 'el2n'"):
        easiness({"aum": np.zeros(2)}, "el2")
    with pytest.raises(ElfsError, match="no column 'el2n'"):
        easiness({"aum": np.zeros(2)}, "el2n")


# ---------------------------------------------------------------- double-end pruning


def slow_double_end(values, ratio: Fraction, count: int) -> list[int]:
    """The definition, image by image: repeatedly take away the hardest (lowest, then index)."""
    left = list(range(len(values)))

    def pop_hardest() -> int:
        best = left[0]
        for i in left:
            if values[i] < values[best]:
                best = i
        left.remove(best)
        return best

    drop = math.floor(ratio * len(values) + Fraction(1, 2))
    for _ in range(min(drop, len(values) - count)):
        pop_hardest()
    return [pop_hardest() for _ in range(count)]


@FEW
@given(
    values=st.lists(st.integers(-3, 3), min_size=1, max_size=30),
    tenths=st.integers(0, 9),
    data=st.data(),
)
def test_double_end_matches_its_definition(values, tenths, data):
    n = len(values)
    most = max(1, math.floor(n - Fraction(tenths, 10) * n + Fraction(1, 2)))
    count = data.draw(st.integers(1, most))
    if Fraction(tenths, 10) * n + count > n + Fraction(1, 2):
        with pytest.raises(ElfsError, match="add up"):
            double_end_prune(np.array(values, float), tenths / 10, count)
        return
    got = double_end_prune(np.array(values, float), tenths / 10, count)
    assert got.tolist() == slow_double_end(values, Fraction(tenths, 10), count)


def test_double_end_by_hand():
    # hardest to easiest: 4, 2, 0, 3, 1
    values = np.array([0.0, 9.0, -1.0, 5.0, -7.0])
    assert double_end_prune(values, 0.2, 2).tolist() == [2, 0]
    assert double_end_prune(values, 0.0, 2).tolist() == [4, 2]  # nothing dropped at the hard end
    assert double_end_prune(values, 0.6, 2).tolist() == [3, 1]  # nothing dropped at the easy end
    assert double_end_prune(values, 0.0, 5).tolist() == [4, 2, 0, 3, 1]


def test_ties_break_by_index():
    assert double_end_prune(np.zeros(7), 0.3, 3).tolist() == [2, 3, 4]


def test_budget_and_ratio_may_fill_the_set_but_not_more():
    assert len(double_end_prune(np.arange(5.0), 0.5, budget_count(0.5, 5))) == 3  # both round up
    with pytest.raises(ElfsError, match="hard_prune_ratio of at most 0.5"):
        double_end_prune(np.arange(10.0), 0.6, 5)
    for ratio in (-0.1, 1.0, math.nan):
        with pytest.raises(ElfsError, match="must be in"):
            double_end_prune(np.arange(10.0), ratio, 1)


def test_scores_and_counts_that_cannot_be_are_refused():
    for values in ([3.0, math.nan, 1.0], [3.0, math.inf, 1.0], [[3.0], [2.0], [1.0]]):
        with pytest.raises(ElfsError, match="one finite number for each image"):
            double_end_prune(np.array(values), 0.0, 2)
    for count in (0, 4, 0.1, True):
        with pytest.raises(ElfsError, match="whole number from 1 to 3"):
            double_end_prune(np.arange(3.0), 0.0, count)


@pytest.mark.parametrize(
    "method", [m for m in METHODS if m.startswith("elfs") and m != "elfs_balanced"]
)
def test_each_elfs_line_uses_its_own_score_with_its_polarity(method):
    n, scores = 40, table(40)
    score = METHODS[method].score
    sign = 1 if SCORES[score].hard == "low" else -1
    expected = np.argsort(sign * scores[score].astype(float), kind="stable")[8:18]
    inputs = SelectionInputs(n, scores=scores)
    got = select_by(method, inputs, 10, hard_prune_ratio=0.2)
    assert got.indices.tolist() == expected.tolist()
    np.testing.assert_array_equal(got.scores, scores[score][expected])
    assert got.info == {
        "score": score,
        "hard_prune_ratio": 0.2,
        "dropped_hard": 8,
        "score_hardest_kept": scores[score][expected[0]],
        "score_easiest_kept": scores[score][expected[-1]],
    }
    # ... and reads no other column
    alone = SelectionInputs(n, scores={score: scores[score]})
    assert select_by(method, alone, 10, hard_prune_ratio=0.2).indices.tolist() == expected.tolist()


def test_the_score_option_overrides_the_line():
    inputs = SelectionInputs(40, scores=table(40))
    by_option = select_by("elfs", inputs, 10, hard_prune_ratio=0.2, score="el2n")
    by_name = select_by("elfs_el2n", inputs, 10, hard_prune_ratio=0.2)
    assert by_option.indices.tolist() == by_name.indices.tolist()
    assert (
        by_option.indices.tolist()
        != select_by("elfs", inputs, 10, hard_prune_ratio=0.2).indices.tolist()
    )


def test_balanced_double_end_prunes_each_class_at_its_own_hard_end():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], [60, 30, 10])
    aum = rng.random(100) + 10 * labels  # class 2 is easy throughout: globally it would vanish
    inputs = SelectionInputs(100, scores={"aum": aum}, pseudo_labels=labels, classes=3)
    got = select_by("elfs_balanced", inputs, 40, hard_prune_ratio=0.2).indices
    assert np.bincount(labels[got]).tolist() == [24, 12, 4]
    for c, n_c in enumerate([60, 30, 10]):
        members = np.flatnonzero(labels == c)
        ascending = members[np.argsort(aum[members], kind="stable")]
        kept = ascending[round(0.2 * n_c) : round(0.2 * n_c) + round(0.4 * n_c)]
        assert got[labels[got] == c].tolist() == kept.tolist()


def test_balanced_equal_quota_deals_evenly_and_passes_on_what_is_missing():
    labels = np.repeat([0, 1, 2], [60, 30, 10])
    inputs = SelectionInputs(100, scores=table(100), pseudo_labels=labels, classes=3)
    got = select_by("elfs_balanced", inputs, 40, hard_prune_ratio=0.2, quota="equal").indices
    assert np.bincount(labels[got]).tolist() == [16, 16, 8]
    first = select_by("elfs_balanced", inputs, 9, hard_prune_ratio=0.2, quota="equal").indices
    assert got[:9].tolist() == first.tolist() and np.bincount(labels[first]).tolist() == [3, 3, 3]


@FEW
@given(
    labels=st.lists(st.integers(0, 3), min_size=1, max_size=40),
    tenths=st.integers(0, 9),
    quota=st.sampled_from(["proportional", "equal"]),
    data=st.data(),
)
def test_balanced_is_exact_and_fair(labels, tenths, quota, data):
    n, labels = len(labels), np.array(labels)
    count = data.draw(st.integers(1, max(1, n - math.ceil(tenths * n / 10))))
    if tenths * n / 10 + count > n:
        return
    inputs = SelectionInputs(n, scores=table(n), pseudo_labels=labels)
    got = select_by(
        "elfs_balanced", inputs, count, hard_prune_ratio=tenths / 10, quota=quota
    ).indices
    assert len(set(got.tolist())) == count
    if quota == "proportional":
        share = np.bincount(labels) * count / n
        # one image for the hard end's rounding and one for the easy end's
        assert (abs(np.bincount(labels[got], minlength=len(share)) - share) <= 2).all()


# ---------------------------------------------------------------- search of the ratio


def test_search_prunes_within_the_ninety_percent():
    values = np.random.default_rng(3).permutation(200).astype(float)
    calls = []

    def fit_and_score(train, validation):
        calls.append((train, validation))
        return 0.0

    result = search_hard_prune_ratio(
        values, 0.3, ratios=[0.8, 0.2, 0.7, 0.0], fit_and_score=fit_and_score, seed=5
    )
    assert result.ratios.tolist() == [0.0, 0.2, 0.7]  # 0.8 + 0.3 does not fit
    assert result.scores.shape == (3, 1)
    validation = set(calls[0][1].tolist())
    pool = np.array(sorted(set(range(200)) - validation))
    assert len(validation) == 20
    for ratio, (train, held_out) in zip(result.ratios, calls, strict=True):
        assert set(held_out.tolist()) == validation
        ascending = pool[np.argsort(values[pool])]
        dropped = round(ratio * 180)
        assert train.tolist() == ascending[dropped : dropped + 54].tolist()


def test_search_takes_the_best_mean_and_the_smaller_of_equals():
    def run(figures, **options):
        stream = iter(figures)
        return search_hard_prune_ratio(
            np.arange(100.0),
            0.1,
            ratios=[0.0, 0.1, 0.2],
            fit_and_score=lambda train, validation: next(stream),
            **options,
        )

    assert run([0.1, 0.9, 0.9], seed=0).best == 0.1
    two = run([0.9, 0.5, 0.1, 0.0, 0.5, 0.6], seed=[0, 1])
    assert two.best == 0.1  # neither seed's own winner
    assert two.scores.tolist() == [[0.9, 0.0], [0.5, 0.5], [0.1, 0.6]]
    with pytest.raises(ElfsError, match="0.1 gave the score nan"):
        run([0.5, math.nan, 0.5], seed=0)


def test_search_is_seeded_and_splits_anew_for_each_seed():
    seen = {}

    def run(seed):
        seen[str(seed)] = []
        search_hard_prune_ratio(
            np.arange(50.0),
            10,
            ratios=[0.0],
            fit_and_score=lambda t, v: seen[str(seed)].append(v.tolist()) or 0.0,
            seed=seed,
        )
        return seen[str(seed)]

    first = run(0)
    assert run(0) == first
    both = run([0, 1])
    assert both[0] == first[0] and both[1] != both[0]


def test_search_with_every_budget_and_odd_sizes():
    for n in (7, 33, 101):
        for budget in (0.1, 0.5, 0.95, 1.0, 3):
            result = search_hard_prune_ratio(
                np.arange(float(n)), budget, fit_and_score=lambda t, v: len(t)
            )
            assert result.best == 0.0
            share = budget_count(budget, n) / n
            held_out = budget_count(0.1, n)
            assert (result.scores == max(1, math.floor(share * (n - held_out) + 0.5))).all()


def test_search_says_what_does_not_fit():
    with pytest.raises(ElfsError, match="No hard-prune ratio"):
        search_hard_prune_ratio(np.arange(10.0), 0.9, ratios=[0.5], fit_and_score=lambda t, v: 0)
    for share in (0.0, 1.0, 0.001):
        with pytest.raises(ElfsError, match="validation_share"):
            search_hard_prune_ratio(
                np.arange(10.0), 0.5, fit_and_score=lambda t, v: 0, validation_share=share
            )


# ---------------------------------------------------------------- CCS


def slow_quotas(sizes, count):
    """Algorithm 1 of CCS as a loop over the set of strata that are left."""
    left, quotas = dict(enumerate(sizes)), [0] * len(sizes)
    while left:
        smallest = min(left, key=lambda s: (left[s], s))
        quotas[smallest] = min(left[smallest], count // len(left))
        count -= quotas[smallest]
        del left[smallest]
    return quotas


@FEW
@given(sizes=st.lists(st.integers(0, 20), min_size=1, max_size=12), data=st.data())
def test_quotas_pass_leftovers_on_and_add_up(sizes, data):
    count = data.draw(st.integers(0, sum(sizes)))
    quotas = pass_on_quotas(np.array(sizes), count)
    assert quotas.sum() == count and (quotas <= sizes).all()
    assert quotas.tolist() == slow_quotas(sizes, count)


def test_quotas_by_hand():
    assert pass_on_quotas(np.array([2, 0, 50, 8]), 20).tolist() == [2, 0, 10, 8]
    assert pass_on_quotas(np.array([10, 10, 10]), 7).tolist() == [2, 2, 3]


def test_strata_have_equal_width_and_not_equal_size():
    values = np.array([0.0, 0.1, 0.2, 0.49, 0.51, 1.0])
    assert equal_width_strata(values, 2).tolist() == [0, 0, 0, 0, 1, 1]
    assert equal_width_strata(np.ones(3), 50).tolist() == [0, 0, 0]


@FEW
@given(
    values=st.lists(st.floats(-5, 5, width=16), min_size=1, max_size=60),
    tenths=st.integers(0, 9),
    strata=st.integers(1, 12),
    seed=st.integers(0, 5),
    data=st.data(),
)
def test_ccs_covers_the_strata_after_dropping_the_hardest(values, tenths, strata, seed, data):
    n = len(values)
    room = n - math.floor(Fraction(tenths, 10) * n + Fraction(1, 2))
    if room == 0:
        return
    count = data.draw(st.integers(1, room))
    inputs = SelectionInputs(n, scores={"aum": np.array(values)})
    options = {"hard_prune_ratio": tenths / 10, "strata": strata}
    got = select_by("ccs", inputs, count, seed=seed, **options)
    assert len(set(got.indices.tolist())) == count
    again = select_by("ccs", inputs, count, seed=seed, **options)
    assert got.indices.tolist() == again.indices.tolist()
    pool = slow_double_end(values, Fraction(tenths, 10), room)
    assert set(got.indices.tolist()) <= set(pool)
    low, high = min(values[i] for i in pool), max(values[i] for i in pool)
    stratum = {
        i: 0 if low == high else min(int((values[i] - low) / (high - low) * strata), strata - 1)
        for i in pool
    }
    sizes = [sum(s == b for s in stratum.values()) for b in range(strata)]
    taken = [sum(stratum[i] == b for i in got.indices.tolist()) for b in range(strata)]
    assert taken == slow_quotas(sizes, count)


def test_ccs_drops_the_hard_end_for_both_polarities():
    values = np.arange(100.0)
    low_is_hard = SelectionInputs(100, scores={"aum": values, "el2n": values})
    assert select_by("ccs", low_is_hard, 50, hard_prune_ratio=0.3).indices.min() >= 30
    got = select_by("ccs", low_is_hard, 50, hard_prune_ratio=0.3, score="el2n").indices
    assert got.max() < 70


def test_a_prefix_of_ccs_still_covers_the_range():
    inputs = SelectionInputs(1000, scores={"aum": np.arange(1000.0)})
    got = select_by("ccs", inputs, 500, seed=1).indices
    assert sorted((got[:50] // 20).tolist()) == list(range(50))


def test_ccs_sample_changes_with_the_seed_and_is_uniform_within_a_stratum():
    inputs = SelectionInputs(20, scores={"aum": np.repeat([0.0, 1.0], 10)})
    times = np.zeros(20)
    for seed in range(400):
        times[select_by("ccs", inputs, 4, seed=seed, strata=2).indices] += 1
    # 2 of 10 in each stratum: 80 of 400 times, standard deviation 8
    assert (abs(times - 80) < 5 * 8).all()


def test_the_control_is_ccs_itself():
    inputs = SelectionInputs(60, scores=table(60))
    a, b = (select_by(m, inputs, 20, seed=3, hard_prune_ratio=0.1) for m in ("ccs", "ccs_pseudo"))
    assert a.indices.tolist() == b.indices.tolist()
    assert METHODS["ccs"].supervised and not METHODS["ccs_pseudo"].supervised


def test_the_control_of_the_easy_cut_must_be_told_its_hard_cut():
    inputs = SelectionInputs(60, scores=table(60))
    assert METHODS["ccs_pseudo_beta"].required == ("hard_prune_ratio",)
    with pytest.raises(ElfsError, match="hard_prune_ratio"):
        select_by("ccs_pseudo_beta", inputs, 20)
    cut = select_by("ccs_pseudo_beta", inputs, 20, seed=3, hard_prune_ratio=0.3)
    assert cut.info["dropped_hard"] == 18
    assert select_by("ccs_pseudo", inputs, 20, seed=3).info["dropped_hard"] == 0


# ---------------------------------------------------------------- one column, or none


@pytest.mark.parametrize(
    ("method", "score", "sign"),
    [("aum_hardest", "aum", 1), ("forgetting", "forgetting", -1), ("el2n", "el2n", -1)],
)
def test_hardest_takes_the_hard_end_first(method, score, sign):
    scores = table(50)
    expected = sorted(range(50), key=lambda i: (sign * float(scores[score][i]), i))[:12]
    assert select_by(method, SelectionInputs(50, scores=scores), 12).indices.tolist() == expected
    assert METHODS[method].supervised


def test_random_is_uniform():
    times = np.zeros(10)
    for seed in range(1000):
        times[select_by("random", SelectionInputs(10), 3, seed=seed).indices] += 1
    assert (abs(times - 300) < 5 * math.sqrt(1000 * 0.3 * 0.7)).all()


# ---------------------------------------------------------------- registry


def test_every_line_of_the_registry_is_complete():
    for name, method in METHODS.items():
        assert name == method.name and method.citation and method.equation and method.summary
        assert method.polarity
        assert ("scores" in method.needs) == (method.score is not None)
        assert method.function.__doc__


def test_every_citation_is_in_the_bibliography():
    bibliography = Path(__file__).parents[1] / "book" / "references.bib"
    keys = set(re.findall(r"^@\w+\{(\w+),", bibliography.read_text(), re.MULTILINE))
    cited = {entry.citation for entry in (*METHODS.values(), *SCORES.values())}
    assert cited <= keys


def test_errors_come_before_any_work():
    inputs = SelectionInputs(10, scores={"aum": np.arange(10.0)})
    for message, call in {
        "did you mean 'random'": lambda: select_by("randm", inputs, 2),
        "no option 'beta'": lambda: select_by("elfs", inputs, 2, beta=0.1),
        "needs the option hard_prune_ratio": lambda: select_by("elfs", inputs, 2),
        "Unknown score 'nope'": lambda: validate_options("ccs", {"score": "nope"}),
        "count must be a whole number from 1 to 10, not 0": lambda: select_by("random", inputs, 0),
        "from 1 to 10, not 11": lambda: select_by("random", inputs, 11),
        "from 1 to 10, not 5.5": lambda: select_by("random", inputs, 5.5),
        "from 1 to 10, not True": lambda: select_by("random", inputs, True),
        "seed must be a whole number of at least 0, not -1": lambda: select_by(
            "random", inputs, 2, seed=-1
        ),
        "at least 0, not 'a'": lambda: select_by("random", inputs, 2, seed="a"),
        "needs scores": lambda: select_by("el2n", SelectionInputs(10), 2),
        "needs pseudo_labels": lambda: select_by("elfs_balanced", inputs, 2, hard_prune_ratio=0.1),
        "has 9 rows": lambda: select_by(
            "el2n", SelectionInputs(10, scores={"el2n": np.ones(9)}), 2
        ),
        "strata must be": lambda: select_by("ccs", inputs, 2, strata=0),
        "Unknown quota": lambda: select_by(
            "elfs_balanced",
            SelectionInputs(10, scores=inputs.scores, pseudo_labels=np.zeros(10, int)),
            2,
            hard_prune_ratio=0.1,
            quota="even",
        ),
    }.items():
        with pytest.raises(ElfsError, match=message):
            call()
