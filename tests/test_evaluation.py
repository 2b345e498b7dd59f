"""Summaries and verdicts against values computed by hand and by scipy."""

from __future__ import annotations

import pandas as pd
import pytest
from scipy import stats

from elfs_lib.errors import ElfsError
from elfs_lib.results.evaluation import (
    RESULT_COLUMNS,
    best_label_free,
    best_supervised,
    count_verdicts,
    display_name,
    paired_difference,
    results_table,
    summarise,
    verdict,
    verdicts,
)
from elfs_lib.results.published import published_accuracy

ACCURACIES = {
    ("elfs", 0.1): [72.0, 73.0, 74.5],
    ("random", 0.1): [70.0, 70.5, 72.0],
    ("elfs", 0.3): [80.0, 82.0, 81.0],
    ("random", 0.3): [81.0, 80.5, 81.5],
    ("ccs_true", 0.1): [75.0, 76.0, 77.0],
    ("ccs_true", 0.3): [83.0, 84.0, 85.0],
    ("aum_hard_true", 0.1): [60.0, 61.0, 62.0],
    ("aum_hard_true", 0.3): [84.0, 85.0, 86.0],
}
SUPERVISED = {"ccs_true", "aum_hard_true", "never_run"}


def rows(dataset="toy"):
    return [
        {
            "dataset": dataset,
            "method": method,
            "budget": budget,
            "count": round(1000 * budget),
            "seed": seed,
            "accuracy": accuracy,
        }
        for (method, budget), values in ACCURACIES.items()
        for seed, accuracy in enumerate(values)
    ]


def test_results_table_sorts_and_adds_what_is_missing():
    table = results_table(rows()[::-1])
    assert list(table.columns) == list(RESULT_COLUMNS)
    assert table["budget"].is_monotonic_increasing
    assert table["steps"].isna().all()
    pd.testing.assert_frame_equal(table, results_table(table))


def test_budgets_that_differ_by_rounding_are_one_budget():
    table = rows()
    table[0]["budget"] = 1 - 0.9
    assert summarise(table)["budget"].nunique() == 2


def test_summary_by_hand():
    summary = summarise(rows()).set_index(["method", "budget"])
    row = summary.loc[("elfs", 0.3)]
    assert (row["n"], row["count"], row["mean"]) == (3, 300, 81.0)
    assert row["sd"] == pytest.approx(1.0)


def test_one_seed_has_no_spread():
    summary = summarise([r for r in rows() if r["seed"] == 0])
    assert summary["sd"].isna().all()


def test_paired_difference_agrees_with_scipy():
    paired = paired_difference(rows(), "elfs", "random").set_index("budget")
    test = stats.ttest_rel(ACCURACIES["elfs", 0.1], ACCURACIES["random", 0.1])
    interval = test.confidence_interval(0.95)
    row = paired.loc[0.1]
    assert row["difference"] == pytest.approx(7 / 3)
    assert (row["low"], row["high"]) == pytest.approx((interval.low, interval.high))
    assert (row["method_mean"], row["rival_mean"]) == pytest.approx((219.5 / 3, 212.5 / 3))


def test_only_shared_seeds_are_compared():
    table = [r for r in rows() if not (r["method"] == "random" and r["seed"] == 2)]
    row = paired_difference(table, "elfs", "random").iloc[0]
    assert row["n"] == 2 and row["difference"] == pytest.approx(2.25)
    assert row["method_mean"] == pytest.approx(72.5)


def test_swapping_the_methods_changes_the_sign():
    there = paired_difference(rows(), "elfs", "random")
    back = paired_difference(rows(), "random", "elfs")
    assert there["difference"].to_numpy() == pytest.approx(-back["difference"].to_numpy())
    assert there["low"].to_numpy() == pytest.approx(-back["high"].to_numpy())


def test_equal_differences_give_no_interval():
    paired = paired_difference(rows(), "ccs_true", "aum_hard_true")
    assert paired[["low", "high"]].isna().all(axis=None)
    assert "cannot be estimated" in verdict(paired.iloc[0])


def test_best_supervised_per_budget():
    best = best_supervised(rows(), SUPERVISED)
    assert best["method"].tolist() == ["ccs_true", "aum_hard_true"]
    assert best["mean"].tolist() == [76.0, 85.0]
    assert best_supervised(rows(), {"never_run"}).empty


def test_best_label_free_is_called_best_only_with_support():
    best = best_label_free(rows(), SUPERVISED).set_index("budget")
    assert best.loc[0.1, "method"] == "elfs" and best.loc[0.1, "rival"] == "random"
    assert best.loc[0.1, "supported"]
    assert not best.loc[0.3, "supported"]
    one = best_label_free([r for r in rows() if r["seed"] == 0], SUPERVISED)
    assert not one["supported"].any()
    alone = best_label_free([r for r in rows() if r["method"] == "elfs"], SUPERVISED)
    assert alone["rival"].isna().all() and not alone["supported"].any()


@pytest.mark.parametrize(
    ("low", "high", "n", "sentence"),
    [
        (1.0, 3.2, 3, "ELFS is above Random by 2.1 points at 10% (95% interval 1.0 to 3.2, n=3)."),
        (-4, -1, 3, "ELFS is below Random by 2.5 points at 10% (95% interval -4.0 to -1.0, n=3)."),
        (
            -1,
            3,
            5,
            (
                "There is no evidence of a difference between ELFS and Random at 10%: +1.0 points "
                "(95% interval -1.0 to 3.0, n=5)."
            ),
        ),
    ],
)
def test_verdicts_say_what_the_interval_says(low, high, n, sentence):
    row = {"method": "elfs", "rival": "random", "budget": 0.1, "n": n, "low": low, "high": high}
    assert verdict(row | {"difference": (low + high) / 2}) == sentence


def test_one_seed_is_no_evidence():
    paired = paired_difference([r for r in rows() if r["seed"] == 0], "elfs", "random")
    assert all("One seed cannot tell" in text for text in verdicts(paired))
    said = count_verdicts(paired)
    assert "above at 0 of 2" in said and "one seed, which cannot tell, at 2 (" in said
    assert "no evidence" not in said
    alike = [r | {"accuracy": 80.0} for r in rows()]
    said = count_verdicts(paired_difference(alike, "elfs", "random"))
    assert "the same difference in each seed at 2 (" in said and "no evidence" not in said


def test_verdicts_are_counted():
    paired = paired_difference(rows(), "elfs", "random")
    assert count_verdicts(paired).startswith("ELFS against Random: above at 1 of 2 budgets, below")


@pytest.mark.parametrize(
    ("name", "spelled"),
    [
        ("elfs", "ELFS"),
        ("random", "Random"),
        ("ccs_pseudo", "CCS pseudo"),
        ("elfs_el2n", "ELFS EL2N"),
        ("k_center_greedy", "K-center greedy"),
        ("best_supervised", "Best supervised"),
        ("cifar10", "CIFAR-10"),
    ],
)
def test_names_are_spelled_for_people(name, spelled):
    assert display_name(name) == spelled


def test_published_values_are_the_figures():
    table = published_accuracy("cifar10")
    row = table[(table["method"] == "elfs") & (table["budget"] == 0.1)]
    assert row["accuracy"].item() == 86.9 and row["pruning_rate"].item() == 0.9
    assert table["accuracy"].between(0, 100).all()
    assert set(published_accuracy("imagenet")["method"]) == {"elfs", "random", "badge", "d2"}
    assert published_accuracy("digits").empty


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda r: [], "empty"),
        (lambda r: [{k: v for k, v in x.items() if k != "seed"} for x in r], "lacks values"),
        (lambda r: [x | {"accuracy": None} for x in r], "accuracy"),
        (lambda r: [x | {"accuracy": 120.0} for x in r], "0 to 100"),
        (lambda r: [x | {"budget": 10} for x in r], "share"),
        (lambda r: r + r[:1], "twice"),
    ],
)
def test_bad_tables_are_one_sentence(change, words):
    with pytest.raises(ElfsError, match=words):
        summarise(change(rows()))


def test_bad_comparisons_are_one_sentence():
    with pytest.raises(ElfsError, match="no method 'elf'"):
        paired_difference(rows(), "elf", "random")
    with pytest.raises(ElfsError, match="share no seed"):
        keep = {"elfs": 0, "random": 1}
        table = [r for r in rows() if keep.get(r["method"]) == r["seed"]]
        paired_difference(table, "elfs", "random")
    with pytest.raises(ElfsError, match="no label-free"):
        best_label_free([r for r in rows() if r["method"] == "ccs_true"], SUPERVISED)
    with pytest.raises(ElfsError, match="exactly one"):
        count_verdicts(pd.DataFrame())


def test_rows_of_two_revisions_of_a_recipe_are_not_paired():
    table = pd.DataFrame(
        {
            "dataset": "digits",
            "method": ["elfs", "elfs", "random", "random"],
            "budget": 0.1,
            "count": 10,
            "seed": [0, 1, 0, 1],
            "accuracy": [50.0, 60.0, 40.0, 45.0],
            "recipe": ["r, revision 2", "r, revision 2", "r", "r, revision 2"],
        }
    )
    (row,) = paired_difference(table, "elfs", "random").itertuples()
    assert (row.n, row.difference) == (1, 15.0)
    apart = table.iloc[:3]
    with pytest.raises(ElfsError, match="share no seed of one recipe"):
        paired_difference(apart, "elfs", "random")
    nothing = paired_difference(apart, "elfs", "random", strict=False)
    assert nothing.empty and list(nothing) == list(paired_difference(table, "elfs", "random"))
