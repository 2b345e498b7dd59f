"""Figures: what they draw is what they were given, in every odd size, and nothing overlaps."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from elfs_lib import selection
from elfs_lib.errors import ElfsError
from elfs_lib.results import plots
from elfs_lib.results.evaluation import paired_difference, summarise
from elfs_lib.results.published import published_accuracy
from elfs_lib.results.shift import jaccard_overlap, pseudo_label_error_by_decile

GENERATOR = np.random.default_rng(0)
METHODS = ["elfs", "random", "ccs"]


def results(seeds=3, budgets=(0.1, 0.3, 0.7), methods=METHODS):
    return [
        {
            "dataset": "cifar10",
            "method": method,
            "budget": budget,
            "count": round(50_000 * budget),
            "seed": seed,
            "accuracy": 40 + 30 * budget + place + 0.3 * ((seed * 7 + place * 3) % 5),
        }
        for place, method in enumerate(methods)
        for budget in budgets
        for seed in range(seeds)
    ]


def deciles(size):
    labels = np.arange(size) % 3
    return pseudo_label_error_by_decile(
        GENERATOR.normal(size=size), GENERATOR.integers(0, 3, size), labels
    )


def figures():
    images = GENERATOR.integers(0, 256, (7, 3, 8, 8), dtype=np.uint8)
    scores = GENERATOR.normal(size=400)
    coresets = {name: GENERATOR.choice(400, 90, replace=False) for name in METHODS}
    counts = pd.DataFrame(GENERATOR.integers(0, 40, (3, 10)), index=METHODS)
    shares = pd.DataFrame(GENERATOR.random((3, 3)), index=[0.1, 0.3, 0.7], columns=METHODS)
    many = pd.DataFrame(GENERATOR.integers(0, 9, (3, 100)), index=METHODS)
    return {
        "grid": plots.image_grid(images, ["a"] * 7, columns=5, title="Title"),
        "grid_grey": plots.image_grid(images[:1, :1]),
        "losses": plots.loss_curves(GENERATOR.random((30, 6)), title="Title"),
        "losses_one": plots.loss_curves([[1.0]]),
        "confusion": plots.confusion(GENERATOR.integers(0, 99, (10, 10)), [*"abcdefghij"]),
        "confusion_many": plots.confusion(GENERATOR.integers(0, 9, (60, 60))),
        "confusion_wide": plots.confusion(np.ones((3, 5))),
        "confusion_one": plots.confusion([[4]]),
        "sizes": plots.cluster_sizes([5, 0, 9], expected=4),
        "sizes_many": plots.cluster_sizes(GENERATOR.integers(1, 99, 300)),
        "histogram": plots.aum_histogram(scores, cuts=(-0.5, 0.5)),
        "histogram_no_cuts": plots.aum_histogram([1.0]),
        "overlay": plots.aum_overlay(scores, scores[:50] + 1),
        "learning": plots.learning_curves(
            GENERATOR.random((9, 4)), ["hard", "easy", "easy", "other"]
        ),
        "learning_one": plots.learning_curves([[0.2]], ["hard"]),
        "deciles": plots.error_by_decile(deciles(100)),
        "easy": plots.easy_counts(shares, expected=0.2),
        "beta": plots.beta_curve([0, 0.1, 0.2], [[50, 52], [55, 54], [53, 51.0]], 0.1),
        "beta_one": plots.beta_curve([0.0], [50.0], 0.0),
        "accuracy": plots.accuracy_vs_pruning(
            summarise(results()), published=published_accuracy("cifar10"), supervised={"ccs"}
        ),
        "accuracy_every": plots.accuracy_vs_pruning(
            summarise(results(methods=list(selection.METHODS))),
            supervised={"ccs", "dual_supervised"},
        ),
        "accuracy_one": plots.accuracy_vs_pruning(summarise(results(1, [0.1])[:1])),
        "differences": plots.differences(paired_difference(results(), "elfs", "random")),
        "differences_one": plots.differences(paired_difference(results(1), "elfs", "random")),
        "jaccard": plots.jaccard_heatmap(jaccard_overlap(coresets)),
        "balance": plots.class_balance(counts, [*"abcdefghij"]),
        "balance_many": plots.class_balance(many),
        "map": plots.embedding_map(GENERATOR.normal(size=(80, 6)), np.arange(80) % 12, sample=50),
    }


FIGURES = figures()


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_draws_and_keeps_its_legend_off_the_data(name):
    figure = FIGURES[name]
    assert isinstance(figure, Figure)
    png = figure._repr_png_()
    assert png.startswith(b"\x89PNG") and len(png) < 70_000
    page = figure.bbox
    beside = [axes.get_legend() for axes in figure.axes if name.startswith("accuracy")]
    for legend in filter(None, [*figure.legends, *beside]):
        box = legend.get_window_extent()
        assert box.x0 >= page.x0 and box.x1 <= page.x1 and box.y0 >= page.y0
        assert not any(box.overlaps(axes.get_window_extent()) for axes in figure.axes)


def test_the_same_figure_is_the_same_bytes():
    scores = np.random.default_rng(1).normal(size=100)
    first, second = (plots.aum_histogram(scores, cuts=(0, 1)) for _ in range(2))
    assert first._repr_png_() == second._repr_png_()


def test_nothing_goes_through_pyplot():
    import matplotlib.pyplot as plt

    assert FIGURES and plt.get_fignums() == []


def test_a_method_looks_the_same_alone_and_in_company():
    together = plots.method_styles(["d2", "elfs", "badge"])
    for name, look in together.items():
        assert plots.method_styles([name])[name] == look
    published = plots.method_styles(published_accuracy("cifar10")["method"].unique())
    assert len({look["color"] for look in published.values()}) == len(published) == 6
    free = [name for name, method in selection.METHODS.items() if not method.supervised]
    rivals = [name for name in free if not name.startswith(("elfs", "random"))]
    for drawn in ([*rivals, "elfs", "random", "elfs_balanced"], ["ccs", "ccs_pseudo", "elfs"]):
        styles = plots.method_styles(drawn)  # together in a figure: those of few labels among them
        assert len({tuple(look.values()) for look in styles.values()}) == len(drawn)
    line = FIGURES["accuracy_one"].axes[0].lines[0]
    assert line.get_color() == together["elfs"]["color"]


def test_of_the_label_free_methods_only_elfs_and_random_stand_beside_the_supervised():
    methods = ["elfs", "random", "ccs_pseudo", "ccs_pseudo_beta", "ccs"]
    means = summarise(results(methods=methods))
    free, seen = plots.accuracy_vs_pruning(means, supervised=["ccs"]).axes
    assert [line.get_label() for line in seen.lines] == ["ELFS", "Random", "CCS"]
    assert len(free.lines) == 4


def test_one_budget_gives_a_mark_a_method():
    means = summarise(results(budgets=[0.1]))
    (axes,) = plots.accuracy_vs_pruning(means).axes
    named = [label.get_text() for label in axes.get_yticklabels()]
    assert named[-1] == "ELFS" and len(named) == len(means)
    drawn = axes.containers[named.index("ELFS")].lines[0]
    elfs = means.set_index("method").loc["elfs"]
    assert drawn.get_xdata() == pytest.approx([elfs["mean"]])
    (bar,) = axes.containers[named.index("ELFS")].lines[2]
    assert np.ptp(bar.get_segments()[0][:, 0]) == pytest.approx(2 * elfs["sd"])
    assert "10%" in axes.get_xlabel()


def test_accuracy_draws_means_bands_the_ceiling_and_published_lines():
    free, ceiling, published = FIGURES["accuracy"].axes
    assert [line.get_label() for line in ceiling.lines] == ["ELFS", "Random", "CCS"]
    summary = summarise(results())
    ours = summary[summary["method"] == "elfs"].sort_values("budget", ascending=False)
    drawn = next(line for line in free.lines if line.get_label() == "ELFS")
    assert drawn.get_ydata() == pytest.approx(ours["mean"].to_numpy())
    assert drawn.get_xdata() == pytest.approx([30, 70, 90])
    assert len(free.collections) == 2 and len(ceiling.collections) == 3
    assert published.get_title("left") == "Published, Zheng et al. 2025"
    anchors = published_accuracy("cifar10")
    theirs = anchors[anchors["method"] == "elfs"].sort_values("pruning_rate")
    drawn = next(line for line in published.lines if line.get_label() == "ELFS")
    assert drawn.get_ydata() == pytest.approx(theirs["accuracy"].to_numpy())
    few = summarise(pd.DataFrame(results(budgets=[0.1, 0.3])))
    *_, published = plots.accuracy_vs_pruning(few, published=anchors).axes
    assert {*published.lines[0].get_xdata().round()} == {70, 80, 90}  # as far as ours reach
    (alone,) = FIGURES["accuracy_one"].axes
    assert not alone.collections


def test_groups_of_images_have_the_same_colours_and_order_on_every_page():
    for names in (["easy", "hard", "middle"], ["middle", "easy", "hard"]):
        (axes,) = plots.learning_curves([[0.1, 0.2, 0.3]], names).axes
        means = [line for line in axes.lines if not line.get_label().startswith("_")]
        words = [line.get_label().split()[0] for line in means]
        assert words == ["hard", "middle", "easy"]
        assert [line.get_color() for line in means] == [plots.HARD, plots.MIDDLE, plots.EASY]


def test_a_bad_method_leaves_the_panel_and_the_legend_says_how_far_down_it_goes():
    table = pd.DataFrame(results(methods=["random", "elfs", "ccs", "aum_hardest"]))
    hardest = table["method"] == "aum_hardest"
    table.loc[hardest, "accuracy"] = 20 + 50 * table.loc[hardest, "budget"]
    summary = summarise(table)
    lowest = summary.loc[summary["method"].isin(["elfs", "random"]), "mean"].min()
    (axes,) = plots.accuracy_vs_pruning(summary).axes
    assert axes.get_ylim()[0] == pytest.approx(lowest - 10)
    labels = [line.get_label() for line in axes.lines]
    assert "AUM hardest (to 25%)" in labels and "CCS" in labels
    table.loc[hardest, "accuracy"] = 20 + table.loc[hardest, "budget"]
    (axes,) = plots.accuracy_vs_pruning(summarise(table)).axes
    assert "AUM hardest (below, 20 to 21%)" in [line.get_label() for line in axes.lines]
    (every,) = plots.accuracy_vs_pruning(summary[~summary["method"].isin(["elfs", "random"])]).axes
    assert "AUM hardest" in [line.get_label() for line in every.lines]


def test_panels_of_accuracy_have_one_axis():
    table = pd.DataFrame(results(methods=["random", "elfs", "ccs"]))
    table.loc[table["method"] == "ccs", "accuracy"] += 12
    published = pd.DataFrame(
        {"pruning_rate": [0.7, 0.9], "accuracy": [90.0, 95.0], "method": "elfs"}
    )
    figure = plots.accuracy_vs_pruning(summarise(table), supervised=["ccs"], published=published)
    assert len(figure.axes) == 3 and len({axes.get_ylim() for axes in figure.axes}) == 1


def test_differences_has_a_panel_for_each_budget_and_a_row_for_each_pair():
    pairs = pd.concat(paired_difference(results(), name, "random") for name in ("elfs", "ccs"))
    panels = plots.differences(pairs).axes
    assert [panel.get_title("left") for panel in panels] == ["10%", "30%", "70%"]
    names = [text.get_text() for text in panels[0].get_yticklabels()]
    assert names == ["ELFS − Random", "CCS − Random"]
    at = pairs[(pairs["method"] == "ccs") & (pairs["budget"] == 0.3)].iloc[0]
    drawn = [line.get_xydata()[0] for line in panels[1].lines if len(line.get_xdata()) == 1]
    assert any(np.allclose(point, (at["difference"], 1)) for point in drawn)


def test_differences_that_are_far_off_leave_the_others_room():
    near = paired_difference(results(), "elfs", "random")
    far = near.assign(method="ccs", difference=-48.0, low=-49.0, high=-47.0)
    (plain, *_), (wide, *_) = (plots.differences(f).axes for f in (near, pd.concat([near, far])))
    assert (plain.get_xscale(), wide.get_xscale()) == ("linear", "symlog")
    assert wide.get_xlim()[0] < -49 and "logarithmic beyond 2" in wide.figure.get_supxlabel()
    left, middle, right = wide.transData.transform([(-48, 0), (-1, 0), (0, 0)])[:, 0]
    assert right - middle > (right - left) / 10  # a point was a 48th of it


def test_histogram_counts_each_part():
    scores = np.arange(10.0)
    figure = plots.aum_histogram(scores, cuts=(2, 6))
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["too hard: 2", "kept: 5", "too easy: 3"]


def test_grey_images_are_shown_in_grey():
    image = FIGURES["grid_grey"].axes[0].images[0]
    assert image.get_cmap().name == "gray" and image.get_clim() == (0, 255)


def test_confusion_shows_percent_of_the_true_class():
    figure = plots.confusion([[3, 1], [0, 0]], ["cat", "dog"])
    assert [text.get_text() for text in figure.axes[0].texts] == ["75", "25", "0", "0"]


def test_an_empty_cluster_is_pointed_out():
    texts = [text.get_text() for text in FIGURES["sizes"].axes[0].texts]
    assert texts == ["empty"]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: plots.image_grid(np.zeros((0, 1, 8, 8), np.uint8)), "images"),
        (lambda: plots.image_grid(np.zeros((2, 1, 8, 8), np.uint8), ["a"]), "titles"),
        (lambda: plots.image_grid(np.zeros((2, 1, 8, 8), np.uint8), columns=0), "columns"),
        (lambda: plots.loss_curves([]), "curves"),
        (lambda: plots.loss_curves([[1.0]], chosen=3), "chosen"),
        (lambda: plots.confusion([[-1]]), "negative"),
        (lambda: plots.confusion([[1]], ["a", "b"]), "names"),
        (lambda: plots.cluster_sizes([]), "sizes"),
        (lambda: plots.aum_histogram([np.nan]), "scores"),
        (lambda: plots.aum_histogram([1.0], cuts=(2, 1)), "cuts"),
        (lambda: plots.aum_overlay([], [1.0]), "pseudo"),
        (lambda: plots.learning_curves([[0.1]], ["a", "b"]), "groups"),
        (lambda: plots.error_by_decile(pd.DataFrame()), "frame"),
        (lambda: plots.easy_counts(pd.DataFrame()), "frame"),
        (lambda: plots.beta_curve([0.1], [1.0], 0.2), "best"),
        (lambda: plots.accuracy_vs_pruning(pd.DataFrame()), "summary"),
        (lambda: plots.differences(pd.DataFrame()), "paired"),
        (lambda: plots.jaccard_heatmap(pd.DataFrame()), "frame"),
        (lambda: plots.class_balance(pd.DataFrame()), "counts"),
        (lambda: plots.embedding_map(np.zeros((3, 4)), np.zeros(2)), "embeddings"),
    ],
)
def test_empty_and_odd_input_is_one_sentence(call, words):
    with pytest.raises(ElfsError, match=words):
        call()
