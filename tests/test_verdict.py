"""The rows that README and pages read, from tables whose answers are known."""

from __future__ import annotations

import base64
import json

import nbformat
import pandas as pd
import pytest

from elfs_lib.errors import ElfsError
from elfs_lib.results import claims, headlines, plots, verdict
from elfs_lib.results.provenance import WHOLE_PIPELINES


def table(**accuracies: list[float]) -> pd.DataFrame:
    """A results table of CIFAR-10 at 10%, a row a method and seed."""
    return pd.DataFrame(
        {
            "dataset": "cifar10",
            "method": method,
            "budget": 0.1,
            "count": 5000,
            "seed": seed,
            "accuracy": accuracy,
            "steps": 500,
            "recipe": "speedrun, revision 3",
            "hard_prune_ratio": 0.3 if method.startswith("elfs") else None,
            "pseudo_label_accuracy": 80.0 + seed if method == "elfs" else None,
            "command": "elfs sweep x.yaml",
        }
        for method, own in accuracies.items()
        for seed, accuracy in enumerate(own)
    )


EVERY = {
    ("cifar10", WHOLE_PIPELINES): table(random=[80, 81, 82], elfs=[82, 84, 84], elfs_true=[85]),
    ("cifar10", f"{WHOLE_PIPELINES}, temi_start=random"): table(random=[80, 81], elfs=[80, 83]),
    ("cifar10", ""): table(random=[80], elfs=[79]),
}


def test_rows_say_who_is_ahead_of_whom_and_by_what_pseudo_labels():
    rows = verdict.verdict_rows(EVERY)
    assert all(set(row) == set(verdict.VERDICT_COLUMNS) for row in rows)
    first = rows[0]
    assert (first["method"], first["against"], first["runs"]) == ("elfs", "random", 3)
    # differences 2, 3, 2: mean 7/3, t(0.975, 2) = 4.3027, sd 0.57735
    assert first["difference"] == pytest.approx(2.333, abs=1e-3)
    assert first["low"] == pytest.approx(7 / 3 - 4.3027 * 0.57735 / 3**0.5, abs=2e-3)
    assert first["pseudo_label_accuracy"] == 81 and first["hard_prune_ratios"] == [0.3] * 3
    assert first["seeds"] == [0, 1, 2]
    (true,) = (r for r in rows if r["method"] == "elfs_true")
    assert true["seeds"] == [0] and true["hard_prune_ratios"] == [0.3]
    assert first["whole_pipelines"] and first["setting"] == "" and first["steps"] == 500
    pairs = [(r["method"], r["against"], r["setting"]) for r in rows]
    assert ("elfs_true", "random", "") in pairs and ("elfs", "random", "temi_start=random") in pairs
    alone = rows[-1]
    assert not alone["whole_pipelines"] and alone["low"] is None and alone["difference"] == -1


def test_the_file_is_json(tmp_path, monkeypatch):
    monkeypatch.setattr(verdict, "verdict_file", lambda: tmp_path / "verdict.json")
    rows = verdict.write_verdict(EVERY)
    assert json.loads((tmp_path / "verdict.json").read_text()) == rows


def test_readme_gets_the_table_between_its_marks_and_keeps_the_rest(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{headlines.BEGIN}\nold\n{headlines.END}\nafter\n")
    rows = verdict.verdict_rows(EVERY)
    for _ in range(2):
        headlines.update_readme(rows, readme)
    text = readme.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text
    assert "against random: better at 10% (+2.3)" in text
    assert "-1.0" not in text  # one coreset is no pipeline
    (cells,) = headlines.answer_table(rows).to_numpy().tolist()
    assert cells == ["CIFAR-10", "10%", "81.0", "", "83.3", "+2.3 (+0.9 to +3.8)", "3"]
    assert "temi_start" not in text  # ablations stay on the pages
    readme.write_text("no marks")
    with pytest.raises(ElfsError, match="put them in"):
        headlines.update_readme(rows, readme)


def test_claims_follow_the_side_of_zero_that_an_interval_lies_on():
    def at(budget: float, **own: list[float]) -> pd.DataFrame:
        return table(**own).assign(budget=budget)

    random = [80.0, 81, 82]
    parts = (
        at(0.1, random=random, elfs=[82, 84, 84], ccs_pseudo=[79, 81, 80]),
        at(0.3, random=random, elfs=[78, 79.1, 80], ccs_pseudo=[80, 82, 81]),
        at(0.5, random=random, elfs=[80.5, 80, 83], ccs_pseudo=[84, 85.1, 86]),
    )
    every = {("cifar10", WHOLE_PIPELINES): pd.concat(parts)}
    rows = verdict.verdict_rows(every)
    claim = "better at 10% (+2.3), worse at 30% (-2.0), undecided at 50% (+0.2)"
    short, of_cifar10, *_ = headlines.in_words(rows)
    assert f"against random: {claim}" in of_cifar10
    assert "over 3 whole pipelines on each of 1 datasets, ELFS is better than random at 1" in short
    assert "3 budgets, worse at 1" in short
    assert headlines.headlines([]) == []
    rows[0]["runs"] = 5
    assert "over 3 to 5 whole pipelines" in headlines.headlines(rows)[0]
    assert "(pseudo-labels 81% right)" in of_cifar10
    _, worse, undecided = headlines.answer_table(rows).to_numpy().tolist()
    assert worse[:5] == ["CIFAR-10", "30%", "81.0", "81.0", "79.0"] and worse[5].startswith(
        "-2.0 ("
    )
    assert undecided[1:5] == ["50%", "81.0", "85.0", "81.2"] and undecided[5].startswith("+0.2 (")


def test_other_methods_that_beat_elfs_are_named():
    own = table(random=[80, 81, 82], elfs=[82, 83.5, 84], badge=[85, 86.7, 87], dual=[82, 83, 84])
    pipelines = table(random=[80, 81, 82], elfs=[82, 83.5, 84])
    every = {
        ("cifar10", ""): pd.concat([own, own[own["method"] != "dual"].assign(budget=0.3)]),
        ("cifar10", "eval_steps=9"): own,
        ("cifar10", WHOLE_PIPELINES): pipelines,
    }
    (line,) = (line for line in headlines.in_words(verdict.verdict_rows(every)) if "BADGE" in line)
    said = (
        "; of other label-free methods (2 at 10%, 1 at 30%; on one pipeline's pseudo-labels), BADGE"
    )
    assert line.endswith(f"{said} at 10% (by 3.1) and 30% (by 3.1) is better.")
    assert "**CIFAR-10**" in line
    assert headlines.beaten_by(verdict.verdict_rows(every), "digits") == []
    # whole pipelines come first, though one alone has no interval
    every["cifar10", WHOLE_PIPELINES] = own[own["method"] != "badge"]
    (said,) = headlines.beaten_by(verdict.verdict_rows(every), "cifar10")
    assert said == "of other label-free methods (1 at 10%), none is better"
    every["cifar10", WHOLE_PIPELINES] = own[own["seed"] == 0]
    (said,) = headlines.beaten_by(verdict.verdict_rows(every), "cifar10")
    assert "on one pipeline's pseudo-labels" in said


def test_pictures_come_from_the_rows_and_the_executed_notebook(tmp_path):
    shown, cell = base64.b64encode(b"a picture").decode(), nbformat.v4.new_code_cell
    output = nbformat.v4.new_output("display_data", {"image/png": shown})
    grid = cell("plots.image_grid(images)", outputs=[output])
    other = cell("plots.beta_curve(x)", outputs=[output])
    notebook = tmp_path / "05.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[other, grid]), notebook)
    rows = verdict.verdict_rows(EVERY)
    gain, picture = headlines.write_pictures(rows, tmp_path, notebook)
    assert picture.read_bytes() == b"a picture" and "<svg" in gain.read_text()
    (axes,) = headlines.gain_figure(rows).axes
    assert axes.containers[0].lines[0].get_ydata() == pytest.approx([2.333], abs=1e-3)
    nbformat.write(nbformat.v4.new_notebook(cells=[other]), notebook)
    with pytest.raises(ElfsError, match="no picture"):
        headlines.write_pictures(rows, tmp_path, notebook)


def test_the_curve_has_a_panel_a_budget_and_a_line_a_method_in_the_order_of_the_labels():
    every = {key: own.assign(budget=0.3) for key, own in EVERY.items()}
    rows = pd.DataFrame(verdict.verdict_rows(EVERY) + verdict.verdict_rows(every))
    rows = rows[(rows["against"] == "random") & rows["whole_pipelines"]]
    rows = rows.assign(pseudo_label_accuracy=rows["pseudo_label_accuracy"].fillna(100.0))
    control = rows[rows["method"] == "elfs"].assign(method="ccs_pseudo")
    panels = plots.gain_curve(pd.concat([rows, control])).axes
    assert [axes.get_title(loc="left") for axes in panels] == ["10% labelled", "30% labelled"]
    for axes in panels:
        own, other = (bars.lines[0].get_xdata() for bars in axes.containers)
        assert list(own) == sorted(own) and own[-1] == 99.5  # true labels are on ELFS's line
        assert len(other) == len(own) - 1 and other[0] == own[0] + 1
        assert {text.get_text() for text in axes.texts} == {"ELFS", "CCS pseudo"}
    with pytest.raises(ElfsError):
        plots.gain_curve(rows[:0])


def test_words_follow_the_accuracy_of_the_pseudo_labels():
    poor = table(random=[80, 81, 82], elfs=[80.5, 81.4, 82.9])
    poor.loc[poor["method"] == "elfs", "pseudo_label_accuracy"] = 60.0
    good = table(random=[80, 81, 82], elfs=[82, 83.5, 84.5], elfs_true=[83, 84, 86])
    good.loc[good["method"] == "elfs", "pseudo_label_accuracy"] = 81.0
    every = {
        ("cifar10", WHOLE_PIPELINES): good,
        ("cifar10", f"{WHOLE_PIPELINES}, temi_start=random"): poor,
        ("cifar10", f"{WHOLE_PIPELINES}, search_steps=9"): poor,  # the same pseudo-labels
    }
    single = table(random=[80], elfs=[85])
    single.loc[single["method"] == "elfs", "pseudo_label_accuracy"] = 70.0
    every["cifar10", f"{WHOLE_PIPELINES}, encoder=pixels"] = single  # one run is no point
    rows = verdict.verdict_rows(every)
    curve = verdict.by_pseudo_labels(rows)
    assert curve["pseudo_label_accuracy"].tolist() == [60, 81, 100]
    control = [{**row, "method": "ccs_pseudo"} for row in rows if row["method"] == "elfs"]
    both = verdict.by_pseudo_labels(rows + control)
    assert len(both) == 5 and headlines.curve_lines(both) == headlines.curve_lines(curve)
    (line,) = (line for line in headlines.in_words(rows) if "pseudo-labels right" in line)
    gained = "CIFAR-10 at 10% +0.6 with 60%, **+2.3** with 81% and **+3.3** with true labels"
    assert line.endswith(f": {gained}.")
    both = {name: pd.concat([own, own.assign(budget=0.3)]) for name, own in every.items()}
    both["fashion_mnist", WHOLE_PIPELINES] = good.assign(dataset="fashion_mnist", budget=0.2)
    both["cifar100", WHOLE_PIPELINES] = poor.assign(dataset="cifar100")  # nothing to compare with
    (line,) = (
        line
        for line in headlines.in_words(verdict.verdict_rows(both))
        if "pseudo-labels right" in line
    )
    assert f"{gained}, at 30% +0.6, **+2.3** and **+3.3**; " in line and "CIFAR-100" not in line
    assert line.endswith("; Fashion-MNIST at 20% **+2.3** with 81% and **+3.3** with true labels.")
    own = {key: EVERY[key] for key in EVERY if "=" not in key[1]}
    assert not any(
        "By share of pseudo" in line for line in headlines.in_words(verdict.verdict_rows(own))
    )


def test_words_follow_the_training_of_the_final_models():
    def trained(recipe: str, steps: int, **accuracies: list[float]) -> pd.DataFrame:
        return table(**accuracies).assign(recipe=recipe, steps=steps)

    own = trained("speedrun, revision 4", 500, random=[80, 81, 82], elfs=[82, 84, 84])
    short, long = (
        trained("resnet18", steps, random=[70, 71], elfs=[60, 63]) for steps in (800, 2000)
    )
    tried = "hard_prune_ratios=[0.2, 0.3]"
    searched = f"eval_steps=50, {tried}, search_recipe=speedrun, search_steps=50"
    also = "eval_recipe=resnet18, eval_epochs=40, eval_batch"
    alike = "eval_recipe=resnet18, eval_steps=2000, search_recipe=resnet18, search_steps=2000"
    every = {
        ("cifar10", f"{WHOLE_PIPELINES}, eval_recipe=resnet18, eval_steps=2000"): long,
        ("cifar10", f"{WHOLE_PIPELINES}, {also}=256"): short,
        ("cifar10", f"{WHOLE_PIPELINES}, {also}=64"): short.assign(steps=900),
        ("cifar10", WHOLE_PIPELINES): own,
        ("cifar10", f"{WHOLE_PIPELINES}, {searched}"): own.assign(steps=50),
        ("cifar10", f"{WHOLE_PIPELINES}, {searched}0"): own.assign(steps=51),  # not alike
        ("cifar10", f"{WHOLE_PIPELINES}, eval_steps=52, search_steps=52"): own.assign(steps=52),
        ("cifar10", f"{WHOLE_PIPELINES}, search_steps=7"): own,
        ("cifar10", f"{WHOLE_PIPELINES}, {tried}, eval_steps=53"): own.assign(steps=53),
        # a search that chose the same; not another training alone; not whole pipelines; the digits
        ("cifar10", f"{WHOLE_PIPELINES}, {alike}"): long,
        ("cifar10", f"{WHOLE_PIPELINES}, temi_start=random, eval_steps=9"): own.assign(steps=9),
        ("cifar10", "eval_steps=11"): own.assign(steps=11),
        ("digits", f"{WHOLE_PIPELINES}, eval_steps=12"): own.assign(dataset="digits"),
        ("digits", WHOLE_PIPELINES): own.assign(dataset="digits"),
    }
    rows = verdict.verdict_rows(every)
    found = verdict.by_training(rows)
    assert [*zip(found["network"], found["steps"], found["aside"], strict=True)] == [
        ("middle-sized network", 50, " (own β)"),
        ("middle-sized network", 500, ""),
        ("ResNet-18", 800, ""),
        ("ResNet-18", 900, " in batches of 64"),
        ("ResNet-18", 2000, ""),
    ]
    (line,) = headlines.training_lines(found)
    assert "CIFAR-10 at 10%" in line and line in headlines.in_words(rows)
    assert line not in headlines.headlines(rows)
    assert "(own β) and **+2.3** after 500; on fewer than three pipelines ResNet-18 " in line
    assert line.endswith("-9.0 after 800 to 2,000.") and line.count("**+") == 2
    drawn = claims.training_steps(rows)
    assert drawn["low"].notna().tolist() == [True, True, False, False, False]
    assert drawn["label"].iloc[3] == "ResNet-18, 900 steps in batches of 64"
    assert {*drawn["kind"]} == {"CIFAR-10, 10% labelled"}
    assert verdict.by_training([]).empty and claims.own_beta_lines({}) == []
    one = {key: table for key, table in every.items() if key == ("cifar10", WHOLE_PIPELINES)}
    assert verdict.by_training(verdict.verdict_rows(one)).empty  # nothing to compare
    assert claims.training_steps(verdict.verdict_rows(one)).empty


def test_an_end_of_an_interval_near_zero_keeps_its_side():
    # differences 1.0, 1.7, 1.7: mean 1.4667, half 4.3027 x 0.4041 / 1.7321 = 1.0040; less 0.43
    near = table(random=[80, 81, 82], elfs=[80.57, 82.27, 83.27])
    rows = verdict.verdict_rows({("cifar10", WHOLE_PIPELINES): near})
    (line,) = headlines.answer_table(rows)["ELFS minus random (95% interval)"]
    assert line == "+1.0 (+0.03 to +2.0)"
