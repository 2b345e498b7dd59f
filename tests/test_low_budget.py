"""The low-budget track: lists without labels, a probe that converges, tables and the figure."""

from __future__ import annotations

import dataclasses
import importlib
import json
import sys

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from scipy.optimize import minimize
from scipy.special import logsumexp

from elfs_lib.errors import ElfsError
from elfs_lib.label_lock import LabelLockError, LabelOracle
from elfs_lib.results.evaluation import paired_difference
from elfs_lib.results.low_budget import (
    LOW_BUDGET_COLUMNS,
    Choice,
    choose_lists,
    coverage_table,
    difference_table,
    differences_from_random,
    linear_probe,
    probe_lists,
    standing_table,
)
from elfs_lib.results.plots import accuracy_vs_labels
from elfs_lib.results.plots.comparison import spread_out
from elfs_lib.selection import METHODS, SelectionInputs, select_by

CLASSES = 3


@pytest.fixture(autouse=True)
def _quiet(monkeypatch):
    monkeypatch.setenv("ELFS_PROGRESS", "0")


def make_split(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, n)
    rows = rng.normal(size=(n, 8)) + 2.5 * np.eye(8)[labels]
    return rows.astype(np.float32), labels


def make_inputs() -> SelectionInputs:
    return SelectionInputs(150, embeddings=make_split(150, 0)[0], classes=CLASSES)


def chooser(**options):
    inputs = make_inputs()
    return lambda method, count, seed: (
        select_by(method, inputs, count, seed=seed, **options).indices
    )


def choose(methods, sizes, seeds=(0, 1, 2, 3, 4), choose_list=None):
    return choose_lists(
        choose_list or chooser(),
        methods,
        n=150,
        classes=CLASSES,
        labels_per_class=sizes,
        seeds=seeds,
    )


def make_table(seeds=(0, 1, 2), methods=("random", "typiclust", "max_herding")) -> pd.DataFrame:
    (train, train_labels), (test, test_labels) = make_split(150, 0), make_split(300, 1)
    lists = choose(methods, (1, 4, 10), seeds)
    oracle = LabelOracle({"train": train_labels, "test": test_labels}.get, ("train", "test"))
    table = probe_lists(lists, train, test, oracle, dataset="digits")
    assert oracle.opened == ["train:evaluation", "test:evaluation"]
    return table


# ---------------------------------------------------------------- lists


@pytest.mark.parametrize("method", ["random", "typiclust", "max_herding", "k_center"])
def test_each_list_is_what_select_gives(method):
    inputs = make_inputs()
    lists = choose([method], [5, 1, 20], (3, 4))
    assert list(lists) == [Choice(method, n, seed) for seed in (3, 4) for n in (1, 5, 20)]
    for (_, size, seed), indices in lists.items():
        drawn = seed if METHODS[method].seeded else 3
        expected = select_by(method, inputs, size * CLASSES, seed=drawn)
        assert indices.tolist() == expected.indices.tolist()


def test_methods_run_no_more_often_than_they_must(monkeypatch):
    runs = []
    for name in ("typiclust", "k_center", "max_herding"):

        def counted(inputs, count, *, seed, name=name, plain=METHODS[name].function):
            runs.append((name, count, seed))
            return plain(inputs, count, seed=seed)

        monkeypatch.setitem(METHODS, name, dataclasses.replace(METHODS[name], function=counted))
    names = ("typiclust", "k_center", "max_herding")
    choose(names, [2, 4], (0, 1))
    assert sorted(runs) == [
        ("k_center", 12, 0),
        ("k_center", 12, 1),
        ("max_herding", 12, 0),
        *[("typiclust", count, seed) for count in (6, 12) for seed in (0, 1)],
    ]


def test_a_method_that_reads_a_proxy_has_a_list_for_each_of_its_seeds():
    lists = choose(["elfs"], [2, 4], (3, 4), lambda method, count, seed: seed + np.arange(count))
    assert {choice: own.tolist() for choice, own in lists.items()} == {
        Choice("elfs", size, seed): [seed + i for i in range(3 * size)]
        for seed in (3, 4)
        for size in (2, 4)
    }


def test_a_method_that_opens_labels_is_stopped(monkeypatch):
    oracle = LabelOracle(lambda split: np.zeros(150, dtype=int), ("train",))

    def peeks(inputs, count, *, seed):
        oracle.open("train", purpose="evaluation")

    monkeypatch.setitem(METHODS, "random", dataclasses.replace(METHODS["random"], function=peeks))
    with pytest.raises(LabelLockError, match="label-free"):
        choose(["random"], [1])
    assert oracle.opened == []


@pytest.mark.parametrize(
    ("methods", "sizes", "says"),
    [
        (["randm"], [1], "did you mean 'random'"),
        (["ccs"], [1], "'ccs' sees labels"),
        (["random"], [51], "at most 50 a class"),
        (["random"], [0], "at least 1"),
        (["random"], [], "at least 1"),
    ],
)
def test_what_does_not_fit_is_said_before_any_work(methods, sizes, says):
    with pytest.raises(ElfsError, match=says):
        choose(methods, sizes)


# ---------------------------------------------------------------- the probe


def slow_probe(rows, labels, tests, strength):
    """The same loss minimised from its definition in double precision."""
    rows, tests = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (rows, tests))
    names = np.unique(labels)
    onehot = (labels[:, None] == names).astype(float)

    def loss(flat):
        weights = flat.reshape(len(names), -1)
        logits = rows @ weights[:, :-1].T + weights[:, -1]
        error = np.exp(logits - logsumexp(logits, axis=1, keepdims=True)) - onehot
        gradient = np.c_[strength * error.T @ rows + weights[:, :-1], strength * error.sum(0)]
        fit = (logsumexp(logits, axis=1) - (logits * onehot).sum(1)).sum()
        return strength * fit + (weights[:, :-1] ** 2).sum() / 2, gradient.ravel()

    start = np.zeros(len(names) * (rows.shape[1] + 1))
    best = minimize(loss, start, jac=True, options={"gtol": 1e-8, "maxiter": 5000}).x
    weights = best.reshape(len(names), -1)
    return names[(tests @ weights[:, :-1].T + weights[:, -1]).argmax(1)]


@pytest.mark.parametrize(("n", "strength"), [(6, 10.0), (60, 10.0), (60, 0.5)])
def test_the_probe_is_the_minimum_of_its_loss(n, strength):
    (rows, labels), (tests, _) = make_split(n, 5), make_split(400, 6)
    labels = labels * 2 + 1  # classes that are missing from a list are no trouble
    got = linear_probe(rows, labels, tests, strength=strength)
    assert got.dtype == np.int64
    assert (got == slow_probe(rows.astype(float), labels, tests, strength)).mean() > 0.995
    order = np.random.default_rng(0).permutation(n)
    again = linear_probe(rows[order] * 4, labels[order], tests * 0.5, strength=strength)
    assert (got == again).mean() > 0.995


def test_a_list_of_one_class_predicts_that_class():
    rows, _ = make_split(5, 0)
    assert linear_probe(rows, np.full(5, 7), make_split(9, 1)[0]).tolist() == [7] * 9


def test_a_probe_that_does_not_converge_is_an_error(monkeypatch):
    monkeypatch.setattr("elfs_lib.results.low_budget.MOST_STEPS", 2)
    with pytest.raises(ElfsError, match="did not converge in 2 steps"):
        linear_probe(*make_split(60, 0), make_split(9, 1)[0])


def test_the_table_has_a_row_for_each_list():
    table = make_table()
    assert list(table) == list(LOW_BUDGET_COLUMNS) and len(table) == 3 * 3 * 3
    assert (table["count"] == CLASSES * table["labels_per_class"]).all()
    assert table["accuracy"].between(0, 100).all()
    assert table["classes_covered"].between(1, CLASSES).all()
    large = table[table["labels_per_class"] == 10]
    assert (large["accuracy"] > 70).all() and (large["classes_covered"] == CLASSES).all()
    alike = table[table["method"] == "max_herding"].groupby("labels_per_class")["accuracy"]
    assert (alike.nunique() == 1).all()


def test_labels_of_another_dataset_are_refused():
    rows, labels = make_split(150, 0)
    oracle = LabelOracle(lambda split: labels, ("train", "test"))
    lists = {Choice("random", 1, 0): np.arange(3)}
    with pytest.raises(ElfsError, match="150 and 150.* 150 .*30"):
        probe_lists(lists, rows, rows[:30], oracle, dataset="digits")
    with pytest.raises(ElfsError, match="of one encoder"):
        probe_lists(lists, rows, rows[:, :4], oracle, dataset="digits")


# ---------------------------------------------------------------- tables


def test_differences_are_paired_with_random_over_seeds():
    table = make_table()
    found = differences_from_random(table)
    assert found["labels_per_class"].tolist() == [1, 1, 4, 4, 10, 10]
    for method in ("typiclust", "max_herding"):
        expected = paired_difference(table, method, "random")
        own = found[found["method"] == method]
        assert own["difference"].tolist() == expected["difference"].tolist()
        assert own["low"].tolist() == expected["low"].tolist()
    with pytest.raises(ElfsError, match="nothing to compare"):
        differences_from_random(table[table["method"] == "random"])


def test_the_tables_say_differences_and_coverage_in_words():
    rows = [
        ("digits", method, n, n / 50, 3 * n, seed, accuracy + n + seed * step, 2 + (n > 1))
        for n in (1, 2)
        for method, accuracy, step in (("random", 50.0, 1.0), ("typiclust", 60.0, 3.0))
        for seed in (0, 1, 2)
    ]
    table = pd.DataFrame(rows, columns=list(LOW_BUDGET_COLUMNS))
    shown = difference_table(table)
    assert shown["Method"].tolist() == ["Random (%)", "TypiClust"]
    assert shown["Seeds"].tolist() == [3, 3]
    assert shown["1 a class"].tolist() == ["52.0", "+12.0 (+7.0 to +17.0)"]
    once = difference_table(table[table["seed"] == 0])
    assert once["2 a class"].tolist() == ["52.0", "+10.0"]
    assert coverage_table(table)["2 a class"].tolist() == ["3.0", "3.0"]
    with pytest.raises(ElfsError, match="one dataset"):
        difference_table(pd.concat([table, table.assign(dataset="cifar10")]))


def test_a_method_is_ahead_or_behind_only_where_the_interval_leaves_out_zero():
    steps = {  # over random, by seed, at 1, 2 and 5 labels a class
        "typiclust": [(4, 5, 6), (-4, 5, 1), (-4, -5, -6)],
        "elfs": [(-1, -2, -3), (1, 2, 3), (8, 9, 7)],
        "random": [(0, 0, 0)] * 3,
    }
    rows = [
        ("digits", method, n, n / 50, 3 * n, seed, 50.0 + 3 * seed + step, 3)
        for method, by_size in steps.items()
        for n, by_seed in zip((1, 2, 5), by_size, strict=True)
        for seed, step in enumerate(by_seed)
    ]
    table = pd.DataFrame(rows, columns=list(LOW_BUDGET_COLUMNS))
    assert standing_table(table, "random").to_dict("records") == [
        {"Method": "ELFS", "Ahead of Random": "5", "Behind Random": "", "Neither": "1, 2"},
        {"Method": "TypiClust", "Ahead of Random": "1", "Behind Random": "5", "Neither": "2"},
    ]
    assert standing_table(table, "elfs")["Ahead of ELFS"].tolist() == ["", "1"]
    with pytest.raises(ElfsError, match="one dataset"):
        standing_table(pd.concat([table, table.assign(dataset="cifar10")]), "random")


# ---------------------------------------------------------------- the figure, the command


def test_the_figure_names_every_line_at_its_end_and_no_name_covers_another():
    methods = [name for name in METHODS if not METHODS[name].supervised]
    rng = np.random.default_rng(0)
    rows = [
        ("digits", method, n, n / 1000, n, seed, 90 + rng.normal(), 10)
        for method in methods
        for n in (1, 10, 100)
        for seed in (0, 1)
    ]
    figure = accuracy_vs_labels(
        pd.DataFrame(rows, columns=list(LOW_BUDGET_COLUMNS)), title="Digits"
    )
    figure.canvas.draw()
    (axes,) = figure.axes
    assert len(axes.lines) == len(axes.texts) == len(methods)
    boxes = sorted((text.get_bbox_patch() or text).get_window_extent().y0 for text in axes.texts)
    assert (np.diff(boxes) > 0).all()
    assert min(text.get_fontsize() for text in axes.texts) >= 9
    assert min(tick.get_fontsize() for tick in axes.get_xticklabels()) >= 9
    looks = {(line.get_color(), line.get_marker()) for line in axes.lines}
    assert len(looks) == len(methods)
    two = [*rows, ("cifar10", *rows[0][1:])]
    for bad in ([], two):
        with pytest.raises(ElfsError, match="empty|several datasets"):
            accuracy_vs_labels(pd.DataFrame(bad, columns=list(LOW_BUDGET_COLUMNS)))


@pytest.mark.parametrize(("at_1", "at_10", "left"), [((20, 50), (80, 81), True),
                                                     ((20, 21), (50, 80), False)])  # fmt: skip
def test_names_stand_where_the_lines_lie_apart(at_1, at_10, left):
    rows = [
        ("digits", method, n, n / 50, n, 0, values[place], 10)
        for place, method in enumerate(("random", "typiclust"))
        for n, values in ((1, at_1), (10, at_10))
    ]
    figure = accuracy_vs_labels(pd.DataFrame(rows, columns=list(LOW_BUDGET_COLUMNS)))
    figure.canvas.draw()
    (axes,) = figure.axes
    sides = {(text.xyann[0] < 0, text.xyann[0] > 1, text.get_ha()) for text in axes.texts}
    assert sides == {(left, not left, "right" if left else "left")}
    assert axes.yaxis.get_ticks_position() == ("right" if left else "left")


def test_names_move_no_farther_than_they_must():
    assert spread_out([0.0, 5.0, 9.0], 1.0, 0, 10) == [0.0, 5.0, 9.0]
    assert spread_out([5.0, 5.0], 1.0, 0, 10) == pytest.approx([4.5, 5.5])
    assert spread_out([9.9, 10.0], 1.0, 0, 10) == pytest.approx([9.0, 10.0])


def test_the_command_runs_on_digits(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.setenv("ELFS_ARTIFACTS_DIR", str(tmp_path / "store"))
    track = importlib.import_module("benchmarks.low_budget")

    def run(*arguments):
        params = str(ROOT / "params" / "digits.yaml")
        command = ["low_budget", params, *arguments, "--labels", "1", "10", "--out", str(tmp_path)]
        monkeypatch.setattr(sys, "argv", command)
        track.main()
        learner = "_from_scratch" if "--from-scratch" in arguments else ""
        return pd.read_csv(tmp_path / f"low_budget_digits{learner}.csv")

    small = ("-p", "eval_steps=3", "--from-scratch")
    trained = run("--methods", "random", "typiclust", "--seeds", "0", *small)
    run("--methods", "random", "typiclust", "--seeds", "0")
    assert list(trained) == list(LOW_BUDGET_COLUMNS) and len(trained) == 2 * 2
    assert trained["accuracy"].between(5, 60).all()  # of three steps
    before = run("--methods", "random", "typiclust", "facility_location", "--seeds", "0", "1")
    assert list(before) == list(LOW_BUDGET_COLUMNS) and len(before) == 3 * 2 * 2
    assert (before[before["labels_per_class"] == 10]["accuracy"] > 75).all()
    assert (tmp_path / "low_budget_digits.svg").stat().st_size > 5000
    for table in ("differences", "coverage", "standing"):
        text = (tmp_path / f"low_budget_digits_{table}.csv").read_text()
        assert "Facility location" in text

    table = run("--methods", "k_center", "--seeds", "1")
    own = table["method"] == "k_center"
    assert own.sum() == 2
    pd.testing.assert_frame_equal(table[~own].reset_index(drop=True), before)
    facts = json.loads((tmp_path / "low_budget_digits.json").read_text())
    assert "1,437" in (tmp_path / "low_budget_settings.csv").read_text()
    track.write(before, facts | {"embeddings": "others"}, tmp_path)
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "low_budget_digits.csv"), before)
