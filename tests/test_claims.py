"""What the results page says of each claim, on tables and pages whose answers are known."""

from __future__ import annotations

import base64
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest

from elfs_lib.errors import ElfsError
from elfs_lib.params import Params
from elfs_lib.results import (
    claims,
    evaluation,
    executed,
    headlines,
    page,
    plots,
    sentences,
    verdict,
)
from elfs_lib.results.provenance import WHOLE_PIPELINES, setting
from elfs_lib.results.words import setting_in_words
from elfs_lib.runs.spec import load_sweep

ROOT = Path(__file__).parents[1]
RANDOM = [70.0, 71.0, 72.0]


def table(budget: float = 0.1, betas: tuple[float, ...] = (0.2, 0.2, 0.2), **accuracies: list):
    rows = [
        {"dataset": "cifar10", "method": method, "budget": budget, "count": 9, "seed": seed,
         "accuracy": accuracy, "steps": 9, "recipe": "small",
         "hard_prune_ratio": betas[seed] if method in ("elfs", "ccs_pseudo_beta") else None}
        for method, values in accuracies.items()
        for seed, accuracy in enumerate(values)
    ]  # fmt: skip
    return evaluation.results_table(rows)


@pytest.mark.parametrize("gaps", [[0.021], [0.02, 0.03, 0.01], [-0.05, 0.0, -0.03]])
def test_numbers_of_a_page_are_read_back(gaps: list[float]):
    deciles = pd.DataFrame({"error": [0.48, 0.2, 0.02]})
    text = sentences.shift(deciles, 0.77, np.array(gaps), -0.161)
    found = sentences.read_shift(text)
    assert (found["hardest"], found["easiest"], found["spearman"]) == (48, 2, 0.77)
    assert found["change"] == pytest.approx(100 * np.mean(gaps), abs=0.05)
    assert found["pruned"] == -16.1
    if len(gaps) == 1:
        assert np.isnan([found["low"], found["high"]]).all()
    else:
        assert found["low"] < found["change"] < found["high"]
        assert (found["low"] > 0) == ("seen here as well" in text)
    assert sentences.read_shift("**Time from nothing:** 3.0 s") is None


def test_every_executed_page_on_the_shift_is_read(monkeypatch):
    monkeypatch.chdir(ROOT)
    datasets = ["cifar10", "cifar100", "fashion_mnist"]  # the digits' is made by each run
    found = claims.shifts({(name, ""): pd.DataFrame() for name in [*datasets, "nowhere"]})
    assert list(found["dataset"]) == ["CIFAR-10", "CIFAR-100", "Fashion-MNIST"]
    assert (found["hardest"] > found["easiest"]).all() and found["spearman"].between(0, 1).all()
    turned = found.assign(hardest=[0, 99, 99], spearman=[0.25, 0.5, 0.75])
    answer = claims.dynamics_answer(turned)
    assert answer.startswith("On 2 of 3 datasets") and "0.25 (CIFAR-10) to 0.75" in answer
    for name in datasets:
        assert executed.picture(claims.page_of_shift(name), "plots.error_by_decile")[1:4] == b"PNG"


def test_a_shift_is_said_with_its_direction_and_interval():
    numbers = {"hardest": 50, "easiest": 1, "spearman": 0.7}
    cases = {"A": (2, 1, 3), "B": (-2, -3, -1), "C": (1, -1, 3), "D": (1, np.nan, np.nan)}
    found = pd.DataFrame(
        {"dataset": name, "change": change, "low": low, "high": high, "pruned": -4.0 + low}
        | numbers
        for name, (change, low, high) in cases.items()
    ).fillna({"pruned": 0.5})
    answer = claims.shift_answer(found)
    assert "more easy images on A (+2.0, +1.0 to +3.0), C (+1.0, -1.0 to +3.0) and D (" in answer
    assert "D (+1.0, one draw), and fewer easy images on B (-2.0, -3.0 to -1.0)." in answer
    assert answer.endswith("fewer than CCS on 3 of 4 (-3.0, -7.0, -5.0, +0.5).")
    assert ", and fewer" not in claims.shift_answer(found[:1])
    assert claims.shift_answer(found[:0]) == "Not measured yet."


def test_cuts_are_counted_by_the_side_of_zero():
    one = table(ccs_pseudo=[80, 81, 82], ccs_pseudo_beta=[70, 71.2, 72], elfs=[75, 76, 77.3])
    every = {
        ("cifar10", WHOLE_PIPELINES): one,
        ("fashion_mnist", WHOLE_PIPELINES): table(ccs_pseudo=RANDOM, elfs=[70.5, 70.4, 72]),
        ("cifar10", ""): one,  # one coreset
        ("cifar10", f"{WHOLE_PIPELINES}, eval_steps=9"): one,  # another training
    }
    steps = claims.cut_steps(every)
    assert steps["kind"].tolist() == ["both cuts", "both cuts", "hard cut", "easy cut"]
    assert steps["value"].round(1).tolist() == [-4.9, -0.0, -9.9, 5.0]
    both, hard, easy = claims.cut_lines(steps)
    assert "better in none of 1" in hard and "worse in 1," in hard
    assert "better in 1 of 1" in easy and "worse in 1, undecided in 1" in both
    uncut = one.assign(hard_prune_ratio=0.0)
    found = claims.cut_steps({("cifar10", WHOLE_PIPELINES): uncut})
    assert found["kind"].tolist() == ["both cuts", "easy cut"]
    single = one[one["seed"] == 0]  # one pipeline is no evidence
    assert claims.cut_steps({("cifar10", WHOLE_PIPELINES): single}).empty
    assert claims.cut_lines(steps[:0]) == []


def test_betas_are_compared_within_a_budget():
    every = {
        ("cifar10", WHOLE_PIPELINES): pd.concat(
            [
                table(0.1, random=RANDOM, elfs=[72, 73, 74]),
                table(0.2, (0.1, 0.2, 0.2), random=RANDOM, elfs=[75, 72, 73]),
                table(0.3, (0.1, 0.1, 0.2), random=RANDOM, elfs=[70, 72, 73]),
            ]
        ),
        ("cifar10", ""): table(random=RANDOM, elfs=RANDOM),
    }
    chosen = page.chosen_betas(every)
    assert len(chosen) == 9 and chosen["gain"].tolist() == [2, 2, 2, 5, 1, 1, 0, 1, 1]
    (line,) = claims.beta_lines(chosen)
    assert "all pipelines chose 0.2 at 10%;" in line
    assert "+4.0 points at 20% (1 against 2: too few for an interval)" in line
    assert "-0.5 points at 30% (2 against 1: too few for an interval)" in line
    # gains 0, 2 against 5, 6: Welch with sd 1.414 and 0.707, so 1.471 degrees of freedom
    gains = pd.DataFrame({"beta": [0.1, 0.1, 0.2, 0.2], "gain": [0.0, 2, 5, 6]})
    (line,) = claims.beta_lines(gains.assign(dataset="cifar10", budget=0.1))
    assert "-4.5 points at 10% (-11.4 to +2.4)" in line
    assert claims.beta_lines(page.chosen_betas({})) == []


def test_pipelines_with_another_search_stand_apart():
    own = table(random=RANDOM, elfs=[72, 73.5, 74], ccs_pseudo=[76, 76.3, 75.7])
    assert claims.other_searches({("cifar10", WHOLE_PIPELINES): own}).empty
    found = claims.other_searches({("cifar10", f"{WHOLE_PIPELINES}, search_steps=1000"): own})
    (row,) = found.to_dict("records")
    assert row["pipelines"] == "CIFAR-10, search models: 1,000 steps"
    assert row["β chosen"] == "0.2, 0.2, 0.2" and row["labelled"] == "10%"
    assert row["ELFS minus Random"].startswith("+2.2 (")
    assert row["ELFS minus CCS pseudo"].startswith("-2.8 (")


def test_the_answer_on_training_names_the_worst_way():
    labels = ["long", "short", "shorter", "close"]
    drawn = pd.DataFrame({"label": labels, "value": [1.0, -2.0, -7.26, 0.5]})
    drawn = drawn.assign(low=[0.5, -3.0, np.nan, -0.1], high=[1.5, 1.0, np.nan, 1.1])
    drawn["runs"] = [3, 3, 2, 3]
    said = claims.training_answer(drawn)
    assert said.startswith("Of 4 ways of training, ELFS is better than random in 1, worse in none")
    assert "undecided in 2; 1 has fewer" in said
    assert said.endswith("behind in 2, by 7.3 points with shorter (2 pipelines).")
    assert "behind" not in claims.training_answer(drawn[:1])
    assert claims.training_answer(drawn[:0]) == "Not measured yet."


def test_limits_say_what_difference_would_not_be_seen():
    own = table(random=[90, 92, 94], elfs=[92, 92.5, 97])
    whole, at_ten = claims.limits_of(own, train=1437, test=400)
    assert "400 test images" in whole and "0.25 points" in whole
    # differences 2, 0.5, 3: t(0.975, 2) = 4.3027, sd 1.2583
    assert "9 labels of 1,437" in at_ten and "deviation of 2.0 points" in at_ten
    assert "+1.8 points" in at_ten and "of 3.1 points would be missed" in at_ten
    assert "no interval" in claims.limits_of(own[own["seed"] == 0], train=9, test=9)[1]


def test_figures_draw_what_they_are_given():
    steps = claims.cut_steps(
        {("cifar10", WHOLE_PIPELINES): table(ccs_pseudo=RANDOM, elfs=[72, 73.5, 74])}
    )
    (axes,) = plots.intervals(steps, unit="points").axes
    assert axes.lines[1].get_xdata()[0] == pytest.approx(13 / 6)
    chosen = page.chosen_betas(
        {
            ("cifar10", WHOLE_PIPELINES): pd.concat(
                [table(b, random=RANDOM, elfs=[72, 73, 75]) for b in (0.1, 0.3)]
            )
        }
    )
    left, right = plots.gain_by_beta(chosen).axes
    assert left.get_ylim() == right.get_ylim()
    assert left.lines[1].get_ydata().tolist() == [2, 2, 3]
    for empty in (steps[:0], chosen[:0]):
        with pytest.raises(ElfsError):
            plots.intervals(empty, unit="x")


def test_every_setting_of_a_sweep_is_said_in_words(monkeypatch):
    """No name of a parameter in a table that people read."""
    monkeypatch.chdir(ROOT)
    for path in sorted((ROOT / "params" / "sweeps").glob("*.yaml")):
        said = setting_in_words(setting(load_sweep(path).pipelines[0]))
        assert "=" not in said and "[" not in said, path.name
        for name in Params.model_fields:
            assert "_" not in name or name not in said, path.name
    assert setting_in_words("") == ""
    said = setting_in_words("hard_prune_ratios=[0.1, 0.2, 0.4], search_steps=1000, flip=false")
    assert said == "search models: beta 0.1 to 0.4, 1,000 steps; flip: no"
    other = "encoder=efficientnet_lite0, encoder_pca=null, eval_batch=64"
    assert setting_in_words(other) == "embeddings: EfficientNet-Lite0; final models: batches of 64"


def test_pictures_and_texts_of_an_executed_page(tmp_path):
    cell, output = nbformat.v4.new_code_cell, nbformat.v4.new_output
    png = [base64.b64encode(text).decode() for text in (b"first", b"last")]
    shows = [output("display_data", {"image/png": data}) for data in png]
    said = [output("execute_result", {"text/markdown": "one"}), output("stream", text="printed")]
    page = tmp_path / "a.ipynb"
    cells = [cell("plots.a(x)", outputs=shows), cell("b", outputs=said), cell("plots.c(x)")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), page)
    assert executed.picture(page, "plots.a") == b"last" and executed.texts(page) == ["one"]
    with pytest.raises(ElfsError, match="plots.c"):
        executed.picture(page, "plots.c")
    with pytest.raises(ElfsError, match=r"b\.ipynb"):
        executed.texts(tmp_path / "b.ipynb")


def test_the_choice_in_hindsight_is_read_from_the_benchmark(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "project_root", lambda: tmp_path)
    assert claims.in_hindsight().empty
    (tmp_path / "book" / "data").mkdir(parents=True)
    columns = 'Dataset,Labelled,"Accuracy by β, %",Chosen by the search,Best of those tried,'
    columns += '"Accuracy at the choice, %","At the best, %","Lost, points",Most lost,Pipelines,On'
    rows = f'{columns}\nA,30%,"0: 91.66, 0.1: 91.88",0.1,0.1,91.88,91.88,0.00,0.00,1,a card\n'
    rows += 'A,10%,"0: 80, 0.1: 79.5",0.1,0,79.5,80,0.50 ± 0.10,0.60,2,a card\n'
    (tmp_path / "book" / "data" / "search_quality.csv").write_text(rows)
    found, other = claims.in_hindsight().to_dict("records")
    assert found["Pipelines"] == "1" and other["Lost, points"] == "0.50 ± 0.10"
    assert found["Accuracy by β, %"] == "0: 91.66, 0.1: 91.88" and found["On"] == "a card"
    answer = claims.hindsight_answer(claims.in_hindsight())
    assert answer.startswith("Of 2 budgets") and "best mean at 1, and 0.50 points" in answer
    assert answer.endswith("a single pipeline lost up to 0.60.")


def test_a_beta_of_ones_own_stands_beside_that_of_the_files_search():
    def trained(betas: tuple[float, ...], elfs: list[float], recipe: str = "resnet18"):
        return table(0.1, betas, random=RANDOM[: len(elfs)], elfs=elfs).assign(recipe=recipe)

    final = f"{WHOLE_PIPELINES}, eval_recipe=resnet18, eval_steps=9"
    own = f"{final}, search_recipe=resnet18, search_steps=9"
    every = {
        ("cifar10", WHOLE_PIPELINES): trained((0.1, 0.1), [71.0, 72.5], "speedrun, revision 4"),
        ("cifar10", final): trained((0.2, 0.3), [61.0, 63.0]),
        ("cifar10", own): trained((0.5, 0.4), [72.0, 73.5]),
    }
    (line,) = claims.own_beta_lines(every)
    assert line.startswith(
        "- CIFAR-10 at 10%, ResNet-18, 9 steps: -8.5 (-14.9 to -2.1) with the β of the default"
    )
    assert " search (0.2, 0.3), +2.2 (-0.9 to +5.4) with its own (0.5, 0.4); ELFS" in line
    # of 11 and 10.5
    assert line.endswith("ELFS itself +10.8 (+7.6 to +13.9).")
    rows = verdict.verdict_rows(every)
    assert len(verdict.by_training(rows)) == 3
    chose_alike = every | {("cifar10", own): trained((0.2, 0.3), [72.0, 73.5])}
    assert not claims.own_beta_lines(chose_alike)
    assert len(verdict.by_training(verdict.verdict_rows(chose_alike))) == 2
    more = trained((0.4, 0.2, 0.3), [60.0, 61.0, 63.0])
    assert not claims.own_beta_lines(every | {("cifar10", final): more})  # other pipelines
    assert not claims.own_beta_lines({key: every[key] for key in every if key[1] != own})
    assert not claims.own_beta_lines({key: every[key] for key in every if key[1] != final})
    # the seeds, and not their places, say which betas are the same
    shifted = more.assign(seed=more["seed"].map({0: 4, 1: 0, 2: 1}))
    alike = chose_alike | {("cifar10", final): shifted}
    assert len(verdict.by_training(verdict.verdict_rows(alike))) == 2
    one = {key: every[key][every[key]["seed"] == 0] for key in every}
    assert not claims.own_beta_lines(one)


def test_batches_of_one_network_stand_beside_the_papers_accuracies():
    def trained(batch: int, random: float, elfs: float) -> tuple:
        setting = f"{WHOLE_PIPELINES}, eval_recipe=resnet18, eval_epochs=40, eval_batch={batch}"
        own = table(random=[random] * 2, elfs=[elfs, elfs + 1]).assign(recipe="resnet18")
        return ("cifar10", setting), own.assign(steps=99 * 256 // batch)

    every = dict(trained(*each) for each in ((32, 70.0, 68.0), (256, 60.0, 50.0)))
    own = table(random=RANDOM, elfs=RANDOM).assign(recipe="speedrun, revision 4")
    every["cifar10", WHOLE_PIPELINES] = own
    (line,) = claims.batch_lines(verdict.verdict_rows(every))
    assert line.startswith("- CIFAR-10 at 10%, ResNet-18 for 40 epochs in batches of 256 and 32: R")
    assert line.endswith(
        "Random 60.0, 70.0% (the paper's: 79.0%); ELFS 50.5, 68.5% (the paper's: 86.9%)."
    )
    assert not claims.batch_lines(verdict.verdict_rows(dict([trained(32, 70.0, 68.0)])))
    assert not claims.batch_lines([])


def test_another_search_is_counted_by_budgets():
    own = pd.concat(
        [
            table(0.1, random=RANDOM, elfs=[72, 73.5, 74], ccs_pseudo=[76, 76.3, 75.7]),
            table(0.3, random=RANDOM, elfs=[68, 69.5, 69], ccs_pseudo=[68, 69, 69.5]),
        ]
    ).assign(recipe="speedrun, revision 4")
    every = {
        ("cifar10", WHOLE_PIPELINES): own.replace({"hard_prune_ratio": {0.2: 0.1}}),
        ("cifar10", f"{WHOLE_PIPELINES}, search_steps=1000"): own,
        ("cifar10", f"{WHOLE_PIPELINES}, search_steps=8"): own.replace(
            {"hard_prune_ratio": 0.2}, 0.1
        ),
        ("cifar10", f"{WHOLE_PIPELINES}, eval_steps=9"): own,
        ("cifar10", "search_steps=7"): own,  # one pipeline
    }
    rows = verdict.verdict_rows(every)
    (line,) = headlines.search_lines(verdict.by_search(rows))
    assert line.endswith(
        "CIFAR-10, 1,000 steps, of 2 budgets better than random at 1 (10%) and worse at 1, than "
        "CCS at none."
    )
    assert line in headlines.in_words(rows)
    assert verdict.by_search(rows[:2]).empty and verdict.by_search([]).empty
    assert not headlines.search_lines(verdict.by_search([]))


def test_proxies_are_compared_by_what_they_cost_and_give():
    assert claims.proxy_answer(pd.DataFrame()) == "Not measured yet."
    found = pd.DataFrame({"PFLOP": ["0.72", "0.05"], "ELFS, %": ["86.3 ± 0.7", "85.9 ± 0.4"]})
    assert claims.proxy_answer(found.assign(Pipelines="3")) == (
        "With 2 proxies that take 0.05 to 0.72 PFLOP, ELFS reaches 85.9 to 86.3% over 3 pipelines; "
        "the cheapest gives 85.9%."
    )
