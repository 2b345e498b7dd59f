"""The tables and sentences of the results page, on tables whose answers are known."""

from __future__ import annotations

import re

import pandas as pd
import pytest
from markdown_it import MarkdownIt

from elfs_lib.results import evaluation
from elfs_lib.results import page as results_page

RANDOM = [70.0, 71.0, 72.0]
ELFS = [72.0, 73.5, 74.0]
BALANCED = [80.0, 80.1, 79.9]
RIVAL = [76.0, 76.3, 75.7]
LABELLED = [90.0, 90.1, 89.9]


def table(budget: float = 0.1, **accuracies: list[float]) -> pd.DataFrame:
    """A row a seed and method."""
    facts = {"dataset": "digits", "budget": budget, "count": 144, "steps": 200, "recipe": "small"}
    facts |= {"seconds": 60.0, "device": "cpu", "train_flops": 1e12, "command": "elfs run a.yaml"}
    rows = [
        facts | {"method": method, "seed": seed, "accuracy": accuracy, "versions": "elfs 0.1.0"}
        for method, values in accuracies.items()
        for seed, accuracy in enumerate(values)
    ]
    return evaluation.results_table(rows).assign(
        hard_prune_ratio=lambda t: t["seed"].where(t["method"].str.startswith("elfs")) / 10
    )


@pytest.fixture
def every() -> dict[tuple[str, str], pd.DataFrame]:
    own = table(
        random=RANDOM, elfs=ELFS, elfs_balanced=BALANCED, d2=RIVAL, ccs=LABELLED, elfs_true=LABELLED
    )
    return {
        ("digits", ""): own,
        ("digits", "eval_steps=800"): table(random=RANDOM, elfs=LABELLED),
        ("digits", "relabel_rounds=1"): table(random=RANDOM, elfs=BALANCED),
        ("digits", "whole pipelines"): table(random=RANDOM, elfs=ELFS),
        ("digits", "whole pipelines, flip=false"): table(random=RANDOM),  # no ELFS: nothing to say
    }


def one(frame: pd.DataFrame) -> dict[str, object]:
    assert len(frame) == 1
    return frame.iloc[0].to_dict()


def test_the_first_table_is_of_the_params_files_own_setting(every):
    row = one(results_page.glance(every))
    assert (row["budget"], row["random (%)"], row["ELFS (%)"]) == ("10%", "71.0", "73.2")
    assert row["difference"] == "+2.2" and row["seeds"] == 3
    low, high = map(float, row["95% interval"].split(" to "))
    assert 0 < low < 2.2 < high


def test_whole_pipelines_count_the_betas_of_their_seeds(every):
    row = one(results_page.whole_pipelines(every))
    assert (row["dataset"], row["baseline"], row["runs"]) == ("Digits", "Random", 3)
    assert row["β chosen"] == "0 (1), 0.1 (1), 0.2 (1)"
    assert [*results_page.own_pipelines(every)] == ["digits"]
    own = every["digits", "whole pipelines"]
    single = own[(own["method"] == "random") | (own["seed"] == 0)]
    assert results_page.whole_pipelines({("digits", "whole pipelines"): single}).empty


def test_pipelines_are_grouped_by_the_beta_that_each_chose(every):
    own = every["digits", "whole pipelines"]
    own.loc[own["method"] == "elfs", "hard_prune_ratio"] = [0.2, 0.3, 0.2]
    rows = results_page.by_beta(every).set_index("β chosen")
    assert rows["pipelines"].to_dict() == {"0.2": 2, "0.3": 1}
    assert rows["minus random"].to_dict() == {"0.2": "+2.0", "0.3": "+2.5"}
    assert results_page.by_beta({("digits", ""): own}).empty


def test_one_seed_has_no_interval():
    once = {("digits", ""): table(random=RANDOM[:1], elfs=ELFS[:1])}
    assert one(results_page.glance(once))["95% interval"] == "one seed"


def test_baselines_are_neither_variants_nor_see_labels(every):
    row = one(results_page.against_best_baseline(every))
    assert (row["baseline"], row["difference"], row["of baselines"]) == ("D2", "-2.8", 2)


def says(lines: list[str], *words: str) -> bool:
    """Whether one line holds all of these names, numbers and directions, in this order."""
    pattern = re.compile(".*".join(map(re.escape, words)))
    return any(pattern.search(line) for line in lines)


def test_words_say_what_each_control_and_ceiling_shows(every):
    every["digits", ""] = pd.concat(
        [every["digits", ""], table(ccs_pseudo=BALANCED, ccs_pseudo_beta=RANDOM)]
    )
    lines = results_page.in_words(every)
    assert says(lines, "ELFS", "below", "CCS pseudo", "6.8")
    assert says(lines, "ELFS", "above", "CCS pseudo beta", "2.2")
    assert says(lines, "CCS pseudo", "highest", "6 label-free", "ELFS balanced")
    assert says(lines, "2 methods", "90.0%", "71.0%")


def test_each_cut_is_held_against_what_was_before_it(every):
    assert results_page.cuts(every).empty
    steps = table(elfs=[75.0, 75.1, 75.4], ccs_pseudo=BALANCED, ccs_pseudo_beta=RANDOM)
    both = results_page.cuts({("digits", ""): steps, ("digits", "whole pipelines"): steps})
    assert both["dataset"].tolist() == ["Digits", "Digits, whole pipelines"]
    assert both["hard cut"].nunique() == 1 and both["seeds"].tolist() == [3, 3]
    single = steps[steps["seed"] == 0]  # one pipeline is no evidence
    assert results_page.cuts({("digits", "whole pipelines"): single}).empty
    row = one(both[:1])
    assert (row["CCS (%)"], row["after the hard cut (%)"], row["ELFS (%)"]) == (
        "80.0",
        "71.0",
        "75.2",
    )
    assert (
        one(results_page.cuts({("digits", "flip=false"): steps}))["dataset"] == "Digits, flip: no"
    )
    assert row["hard cut"].startswith("-9.0 (") and row["then the easy cut"].startswith("+4.2 (")
    without = table(elfs=RANDOM, ccs_pseudo=BALANCED, ccs_pseudo_beta=BALANCED)
    row = one(results_page.cuts({("digits", ""): without.assign(hard_prune_ratio=0.0)}))
    assert (row["hard cut"], row["β"]) == ("+0.0 (in each of 3)", "0")


def test_means_are_in_bold_only_where_the_interval_is_above_zero(every):
    text = results_page.all_means("digits", every["digits", ""])
    assert "| ELFS balanced | **80.0 ± 0.1** |" in text
    assert "| CCS (all labels) | 90.0 ± 0.1 |" in text
    assert text.splitlines()[0] == "| Digits | 10% |"
    close = table(random=RANDOM, elfs=[70.1, 70.9, 72.2])
    assert "**" not in results_page.all_means("digits", close)


def test_means_say_of_how_many_runs_they_are_where_that_is_not_usual():
    own = table(random=[70.0, 70.2], elfs=[80.0, 80.2, 80.4], d2=[75.0], ccs=[80.0, 80.2, 80.4])
    text = results_page.all_means("digits", own)
    assert "| Random | 70.1 ± 0.1 (2) |" in text and "| D2 | 75.0 |" in text
    assert "| CCS (all labels) | 80.2 ± 0.2 |" in text
    single = table(random=[70.0], elfs=[80.0])
    assert "(" not in results_page.all_means("digits", single)


def test_the_cost_of_pseudo_labels_is_that_of_the_true_ones_minus_elfs(every):
    row = one(results_page.cost_of_pseudo_labels(every))
    assert (row["cost"], row["true labels (%)"], row["ELFS (%)"]) == ("+16.8", "90.0", "73.2")
    without = {("digits", ""): table(random=RANDOM, elfs=ELFS)}
    assert results_page.cost_of_pseudo_labels(without).empty


def test_another_training_is_not_compared_with_the_default_elfs(every):
    rows = results_page.ablations(every).set_index("what differs")
    others = ["final models: 800 steps", "self-labelling: 1 rounds"]
    assert list(rows.index) == others
    assert rows.loc[others[0], "minus unchanged ELFS"] == ""
    assert rows.loc[others[0], "minus random"].startswith("+19.0 (")
    assert rows.loc[others[1], "minus unchanged ELFS"].startswith("+6.8 (")


def test_the_last_section_says_what_made_each_table(every):
    lines = results_page.reproduce(every)
    assert len(lines) == len(every)
    first = (
        "`elfs run a.yaml`",
        "0, 1, 2",
        "`small`",
        "200",
        "18 TFLOP",
        "18.0 min",
        "cpu",
        "0.1.0",
    )
    assert says(lines[:1], "Digits", *first)
    assert says(lines[1:2], "Digits", "800 steps") and says(lines[3:4], "Digits", "pipelines")


def test_norms_do_not_split_the_cells_of_the_methods():
    html = MarkdownIt().enable("table").render(results_page.methods())
    rows = [re.findall("<td>(.*?)</td>", row) for row in html.split("<tr>")[2:]]
    assert [row[0] for row in rows] == list(results_page.METHODS)
    for name, what, _, seen, _ in rows:
        assert seen in ("all", "none"), name
        assert what.count("|") == results_page.METHODS[name].equation.count("|")


def test_every_method_of_the_registry_is_listed_with_its_source():
    lines = results_page.methods().splitlines()
    assert len(lines) == 2 + len(results_page.METHODS)
    assert "{cite:t}`zheng2025elfs`" in next(line for line in lines if "| elfs |" in line)


def test_the_curve_compares_settings_of_one_training_alone():
    def pipelines(right: float, gain: float, steps: int = 500) -> pd.DataFrame:
        rows = [
            {"dataset": "a", "method": method, "budget": 0.1, "count": 10, "seed": seed,
             "accuracy": 80 + seed + (gain + seed) * (method == "elfs"), "steps": steps,
             "recipe": "r", "hard_prune_ratio": 0.2,
             "pseudo_label_accuracy": right if method == "elfs" else None}
            for method in ("random", "elfs") for seed in range(3)
        ]  # fmt: skip
        return evaluation.results_table(rows)

    whole = results_page.WHOLE_PIPELINES
    every = {
        ("a", whole): pipelines(80, 2),
        ("a", f"{whole}, temi_start=random"): pipelines(70, 1),
        ("a", f"{whole}, eval_steps=800"): pipelines(80, 5, steps=800),  # another training
        ("a", f"{whole}, search_steps=9"): pipelines(80, 4),  # the same pseudo-labels
        ("b", whole): pipelines(90, 1).assign(dataset="b"),  # nothing to compare with
        ("a", ""): pipelines(60, 3),
    }
    found = results_page.gains(every)
    assert found["pseudo_label_accuracy"].tolist() == [70, 80]
    assert found["difference"].tolist() == [2, 3] and found["runs"].tolist() == [3, 3]
    shown = results_page.as_gains(found)
    assert shown["pipelines"].tolist() == ["clusters: random start", "the params file's own"]
    assert results_page.gains({("a", ""): pipelines(60, 3)}).empty
    assert results_page.as_gains(found[:0]).empty
