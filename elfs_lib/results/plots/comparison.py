"""Figures that compare methods by what their coresets are worth."""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator

from elfs_lib.errors import ElfsError
from elfs_lib.results.evaluation import display_name, percent
from elfs_lib.results.plots.style import (
    DPI,
    EVERYWHERE,
    MIDDLE,
    NEUTRAL,
    RC,
    WIDTH,
    PageFigure,
    check_filled,
    label_axes,
    method_styles,
    ordered,
    page,
    styled,
)
from elfs_lib.results.published import SOURCE

_FAR = 10  # points of difference from which on an axis is logarithmic
_BELOW = 10  # points of accuracy that a panel reaches below ELFS and random


@styled
def accuracy_vs_pruning(
    summary: pd.DataFrame,
    *,
    published: pd.DataFrame | None = None,
    supervised: Collection[str] = (),
    title: str | None = None,
) -> Figure:
    """Test accuracy against pruning rate, one line per method, bands of one standard deviation; at
    one rate alone a mark per method, one below the other.

    A panel ends ten points below ELFS and random; of lines that leave it there the legend says how
    far down they go, so that one bad method does not squeeze all the others together. Panels have
    one axis of accuracy.

    Args:
        summary: As :func:`elfs_lib.results.evaluation.summarise` returns it, for one dataset. A
            method with one seed has no band.
        published: As :func:`elfs_lib.results.published.published_accuracy` returns it; drawn in a
            panel of its own, at pruning rates from the smallest measured one to the largest.
        supervised: Methods that see labels; they are drawn in a second panel.
        title: A line above the plot.

    Raises:
        ElfsError: if the summary is empty or holds several datasets.
    """
    check_filled("summary", summary)
    if summary["dataset"].nunique() > 1:
        raise ElfsError("summary holds several datasets: pass the rows of one.")
    methods = ordered(summary["method"].unique())
    free = [name for name in methods if name not in supervised]
    ceiling = [name for name in methods if name in supervised]
    panels = [(title or "", summary, free)]
    if ceiling:  # again with ELFS and random, for comparison
        fixed = [name for name in methods if name in EVERYWHERE]
        panels.append(("Selecting with labels", summary, fixed + ceiling))
    if published is not None and len(published):
        curves = published.assign(budget=1 - published["pruning_rate"], mean=published["accuracy"])
        low, high = summary["budget"].min() - 1e-6, summary["budget"].max() + 1e-6
        curves = curves[curves["budget"].between(low, high)].assign(sd=np.nan)
        panels.append((SOURCE[0].upper() + SOURCE[1:], curves, list(curves["method"].unique())))
    panels = [panel for panel in panels if panel[2]]
    if summary["budget"].nunique() == 1:
        return _accuracy_marks(panels)
    # A panel is as high as its legend.
    heights = [max(3.2 if not number else 2.2, 0.2 * len(names) + 0.5)
               for number, (_, _, names) in enumerate(panels)]  # fmt: skip
    figure = PageFigure(figsize=(WIDTH, sum(heights)), dpi=DPI, layout="constrained")
    every = figure.subplots(len(panels), sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for axes, (name, table, names) in zip(every, panels, strict=True):
        _accuracy_lines(axes, table, ordered(names))
        label_axes(axes, "", "Test accuracy (%)", name)
        # beside the axes: a legend there can hide no curve
        axes.legend(loc="upper left", bbox_to_anchor=(1.02, 1.0), borderaxespad=0)
    limits = [axes.get_ylim() for axes in every]
    for axes in every:
        axes.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))
    budgets = pd.concat(table["budget"] for _, table, _ in panels)
    rates = sorted({round(100 * (1 - budget), 4) for budget in budgets})
    if len(rates) <= 10:
        every[0].set_xticks(rates, [f"{rate:.3g}" for rate in rates])
    every[-1].set_xlabel("Pruned (% of the training set)")
    return figure


def _accuracy_marks(panels: Sequence[tuple[str, pd.DataFrame, Sequence[str]]]) -> Figure:
    """The panels of :func:`accuracy_vs_pruning` at one rate: a row a method."""
    heights = [0.6 + 0.3 * len(names) for _, _, names in panels]
    figure = PageFigure(figsize=(WIDTH, sum(heights) + 0.4), dpi=DPI, layout="constrained")
    every = figure.subplots(len(panels), sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for axes, (name, table, names) in zip(every, panels, strict=True):
        own, looks = table.set_index("method"), method_styles(names)
        rows = {method: place for place, method in enumerate(reversed(ordered(names)))}
        for method, place in rows.items():
            mean, sd = own.loc[method, ["mean", "sd"]].astype(float)
            axes.errorbar(mean, place, xerr=None if np.isnan(sd) else sd, **looks[method])
        axes.set_yticks([*rows.values()], map(display_name, rows))
        axes.set_ylim(-0.6, len(rows) - 0.4)
        axes.grid(axis="y", visible=False)
        label_axes(axes, "", "", name)
    budget = panels[0][1]["budget"].iloc[0]
    every[-1].set_xlabel(f"Test accuracy (%) with {percent(budget)} labelled")
    return figure


@styled
def accuracy_vs_labels(table: pd.DataFrame, *, title: str | None = None) -> Figure:
    """Accuracy against labels a class, one line a method, bands of one standard deviation over
    seeds; the names stand at that end of the lines where these lie farther apart.

    Args:
        table: As :func:`elfs_lib.results.low_budget.probe_lists` returns it, for one dataset. A
            method whose seeds all agree, or that has one, has no band.
        title: A line above the plot.

    Raises:
        ElfsError: if the table is empty or holds several datasets.
    """
    check_filled("table", table)
    if table["dataset"].nunique() > 1:
        raise ElfsError("table holds several datasets: pass the rows of one.")
    methods = ordered(table["method"].unique())
    styles = method_styles(methods)
    figure, axes = page(max(4.2, 0.24 * len(methods) + 1.2))
    starts, ends = {}, {}
    for method in methods:
        groups = table[table["method"] == method].groupby("labels_per_class")["accuracy"]
        mean, sd = groups.mean(), groups.std()
        fixed = method in EVERYWHERE
        axes.plot(
            mean.index,
            mean,
            **styles[method],
            lw=2.6 if fixed else 1.5,
            zorder=4 if fixed else 3,
            label=display_name(method),
        )
        if (sd > 0).any():
            axes.fill_between(
                mean.index, mean - sd, mean + sd, color=styles[method]["color"], alpha=0.12, lw=0
            )
        starts[method] = mean.index[0], mean.iloc[0]
        ends[method] = mean.index[-1], mean.iloc[-1]
    sizes = sorted(table["labels_per_class"].unique())
    axes.set_xscale("log")
    axes.set_xticks(sizes, [f"{size}" for size in sizes])
    axes.xaxis.set_minor_locator(FixedLocator([]))
    label_axes(axes, "Labels a class", "Test accuracy of a linear probe (%)", title)
    left = np.std([y for _, y in starts.values()]) > np.std([y for _, y in ends.values()])
    if left:
        axes.yaxis.tick_right()
        axes.yaxis.set_label_position("right")
    colours = {name: look["color"] for name, look in styles.items()}
    _names_beside(axes, starts if left else ends, colours, left=left)
    return figure


def _names_beside(
    axes: Axes, ends: dict[str, tuple[float, float]], colours: dict[str, str], *, left: bool
) -> None:
    """Names left or right of the axes, as high as their lines but never on each other, each joined
    to its line."""
    points = axes.figure.get_figheight() * 72 * 0.8  # height of the axes, about
    low, high = axes.get_ylim()
    line = 1.25 * RC["legend.fontsize"] / points * (high - low)
    names = sorted(ends, key=lambda name: ends[name][1])
    places = spread_out([ends[name][1] for name in names], line, low, high)
    for name, place in zip(names, places, strict=True):
        axes.annotate(
            display_name(name),
            xy=ends[name],
            xytext=(-0.06 if left else 1.06, (place - low) / (high - low)),
            textcoords="axes fraction",
            ha="right" if left else "left",
            va="center",
            fontsize=RC["legend.fontsize"],
            color=colours[name],
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colours[name], "lw": 0.7, "shrinkB": 4},
        )
    axes.set_ylim(low, high)


def spread_out(values: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move ascending values as little as needed to lie at least ``gap`` apart, inside low..high if
    they fit there."""
    steps = gap * np.arange(len(values))
    # Values minus their steps must ascend: the nearest such sequence is the isotonic regression
    from sklearn.isotonic import isotonic_regression  # only here: it takes a while to load

    flat = isotonic_regression(np.asarray(values, dtype=float) - steps)
    top = max(low, high - (steps[-1] if len(steps) else 0.0))
    return list(np.clip(flat, low, top) + steps)


def _accuracy_lines(axes: Axes, summary: pd.DataFrame, methods: Sequence[str]) -> None:
    styles = method_styles(methods)
    fixed_means = summary.loc[summary["method"].isin(EVERYWHERE), "mean"]
    floor = fixed_means.min() - _BELOW  # NaN, which nothing is below, where neither is there
    for method in methods:
        rows = summary[summary["method"] == method].sort_values("budget", ascending=False)
        pruned = 100 * (1 - rows["budget"].to_numpy())
        mean, sd = rows["mean"].to_numpy(), rows["sd"].to_numpy(dtype=float)
        colour, fixed = styles[method]["color"], method in EVERYWHERE
        axes.plot(
            pruned,
            mean,
            marker=styles[method]["marker"],
            color=colour,
            lw=2.6 if fixed else 1.4,
            zorder=4 if fixed else 3,
            label=display_name(method) + _outside(mean, floor),
        )
        if np.isfinite(sd).any():
            alpha = 0.15 if fixed or len(methods) <= 6 else 0.06  # many bands hide each other
            axes.fill_between(pruned, mean - sd, mean + sd, color=colour, alpha=alpha, lw=0)
    if axes.get_ylim()[0] < floor:
        top = axes.dataLim.y1
        axes.set_ylim(floor, top + 0.05 * (top - floor))


def _outside(mean: np.ndarray, floor: float) -> str:
    """What the legend says of a line that leaves its panel, or is nowhere in it."""
    low, high = f"{mean.min():.0f}", f"{mean.max():.0f}"
    if mean.max() < floor:
        return f" (below, {low} to {high}%)" if low != high else f" (below, {low}%)"
    return f" (to {low}%)" if mean.min() < floor else ""


@styled
def differences(paired: pd.DataFrame, *, title: str | None = None) -> Figure:
    """Differences between methods with their 95% intervals: a panel a budget, a row a pair.

    Args:
        paired: Rows of :func:`elfs_lib.results.evaluation.paired_difference`, possibly of several
            pairs. Rows without an interval are drawn as an open mark.
        title: A line above the plot.

    Raises:
        ElfsError: if the frame is empty.
    """
    check_filled("paired", paired)
    pairs = list(dict.fromkeys(zip(paired["method"], paired["rival"], strict=True)))
    budgets = sorted(paired["budget"].unique())
    # Of several methods the method tells pairs apart, else the rival.
    apart = "method" if paired["method"].nunique() > 1 else "rival"
    styles = method_styles(paired[apart].unique())
    height = 1.2 + 0.24 * len(pairs)
    figure = PageFigure(figsize=(WIDTH, height), dpi=DPI, layout="constrained")
    panels = figure.subplots(1, len(budgets), sharex=True, sharey=True, squeeze=False)[0]
    for axes, budget in zip(panels, budgets, strict=True):
        axes.axvline(0, color="#222222", lw=1)
        rows = paired[paired["budget"] == budget]
        for row in rows.itertuples():
            style = styles[getattr(row, apart)]
            place, sure = pairs.index((row.method, row.rival)), np.isfinite(row.low)
            axes.hlines(place, row.low, row.high, color=style["color"], lw=1.8)
            face = style["color"] if sure else "white"
            axes.plot(row.difference, place, style["marker"], color=style["color"], mfc=face)
        axes.set_title(percent(budget))
        axes.grid(False, axis="y")
        axes.xaxis.set_major_locator(MaxNLocator(3))
    unit = "points"
    if paired[["difference", "low", "high"]].abs().max(axis=None) > _FAR:
        # One method far off would press all others onto one line.
        panels[0].set_xscale("symlog", linthresh=_FAR / 5, linscale=1.5)
        for axes in panels:
            axes.xaxis.set_major_locator(
                FixedLocator(_FAR * np.array([-5, -1, -0.2, 0, 0.2, 1, 5]))
            )
            axes.xaxis.set_major_formatter("{x:g}")
        unit += f", logarithmic beyond {_FAR / 5:g}"
    names = [f"{display_name(method)} − {display_name(rival)}" for method, rival in pairs]
    panels[0].set_yticks(range(len(pairs)), names)
    panels[0].set_ylim(len(pairs) - 0.4, -0.6)
    figure.supxlabel(f"Difference in test accuracy ({unit}), 95% interval", fontsize=10)
    if title:
        figure.suptitle(title, fontsize=10.5, weight="bold", x=0.01, ha="left")
    return figure


@styled
def gain_curve(rows: pd.DataFrame, *, title: str | None = None) -> Figure:
    """Gain over random against the accuracy of the pseudo-labels: a panel a budget, all on one
    axis, and a line a method with 95% intervals, its name beside it; that of ELFS ends with true
    labels, where they were measured.

    Args:
        rows: Of :func:`elfs_lib.results.page.gains`, of one dataset: ``method``, ``budget``,
            ``recipe``, ``steps``, ``pseudo_label_accuracy`` in percent (100 where selection saw
            the true labels), ``difference``, ``low``, ``high`` in points, ``low`` and ``high``
            empty for one run.
        title: Printed above, if given.

    Raises:
        ElfsError: if there are no rows.
    """
    check_filled("rows", rows)
    rows = rows.assign(method=rows["method"].replace("elfs_true", "elfs"))
    methods = ordered(rows["method"].unique())
    alike = list(rows.groupby(["budget", "recipe", "steps"]))  # one training a panel
    figure = PageFigure(figsize=(WIDTH, 2.9), dpi=DPI, layout="constrained")
    panels = figure.subplots(1, len(alike), sharex=True, sharey=True, squeeze=False)[0]
    styles, ends = method_styles(methods), {}
    for axes, ((budget, *_), at) in zip(panels, alike, strict=True):
        axes.axhline(0, color=NEUTRAL, lw=1)
        for number, method in enumerate(methods):
            own = at[at["method"] == method].sort_values("pseudo_label_accuracy")
            if own.empty:
                continue
            aside = number - (len(methods) - 1) / 2  # intervals beside each other
            x = own["pseudo_label_accuracy"].to_numpy(float) + aside
            y = own["difference"].to_numpy(float)
            bars = np.stack([y - own["low"].to_numpy(float), own["high"].to_numpy(float) - y])
            axes.errorbar(x, y, np.nan_to_num(bars), capsize=3, lw=1.5, **styles[method])
            ends.setdefault(axes, {})[method] = x[-1], y[-1]
        axes.set_title(f"{percent(budget)} labelled")
    panels[0].set_ylabel("accuracy minus random's (points)")
    figure.supxlabel("pseudo-labels right (%)", fontsize=RC["axes.labelsize"])
    for axes in panels:
        _names_beside(axes, ends[axes], {m: styles[m]["color"] for m in methods}, left=False)
    if title:
        figure.suptitle(title, fontsize=10.5, weight="bold", x=0.01, ha="left")
    return figure


@styled
def gain_by_budget(rows: pd.DataFrame, *, title: str | None = None) -> Figure:
    """Gain over random against the share that is labelled: a panel a dataset, all on one axis, and
    a line a method with 95% intervals, its name beside it.

    Args:
        rows: Of :func:`elfs_lib.results.verdict.verdict_rows`, all against random and each dataset
            in one setting: ``dataset``, ``method``, ``budget``, ``difference``, ``low``, ``high``
            in points.
        title: Printed above, if given.

    Raises:
        ElfsError: if there are no rows.
    """
    check_filled("rows", rows)
    datasets, methods = list(dict.fromkeys(rows["dataset"])), ordered(rows["method"].unique())
    figure = PageFigure(figsize=(WIDTH, 3.2), dpi=DPI, layout="constrained")
    # room for the names of methods beside each panel, whatever the number of budgets in it
    widths = [1 + rows.loc[rows["dataset"] == name, "budget"].nunique() for name in datasets]
    panels = figure.subplots(1, len(datasets), sharey=True, squeeze=False, width_ratios=widths)[0]
    styles, ends = method_styles(methods), {}
    for axes, dataset in zip(panels, datasets, strict=True):
        shown = rows[rows["dataset"] == dataset]
        budgets = np.sort(shown["budget"].unique())
        axes.axhline(0, color=NEUTRAL, lw=1)
        ends[dataset] = {}
        for number, method in enumerate(methods):
            own = shown[shown["method"] == method].sort_values("budget")
            if own.empty:
                continue
            x, y = 100 * own["budget"].to_numpy(float), own["difference"].to_numpy(float)
            bars = np.stack([y - own["low"].to_numpy(float), own["high"].to_numpy(float) - y])
            aside = number - (len(methods) - 1) / 2  # intervals of one budget beside each other
            look = {"capsize": 3, **styles[method], "label": display_name(method)}
            axes.errorbar(x + aside, y, np.nan_to_num(bars), **look)
            ends[dataset][method] = x[-1] + aside, y[-1]
        axes.set_xticks(100 * budgets, [f"{100 * budget:g}" for budget in budgets])
        axes.margins(x=0.12)
        axes.set_title(display_name(dataset))
    panels[0].set_ylabel("accuracy minus random's (points)")
    figure.supxlabel("images labelled (%)", fontsize=RC["axes.labelsize"])
    colours = {name: look["color"] for name, look in styles.items()}
    for axes, dataset in zip(panels, datasets, strict=True):
        _names_beside(axes, ends[dataset], colours, left=False)
    if title:
        figure.suptitle(title, fontsize=10.5, weight="bold", x=0.01, ha="left")
    return figure


@styled
def intervals(rows: pd.DataFrame, *, unit: str, title: str | None = None) -> Figure:
    """Differences with their 95% intervals: a panel a kind, all on one axis, and a row a label.

    Args:
        rows: ``label``, ``kind``, ``value``, ``low``, ``high``; where ``low`` and ``high`` are
            empty the mark is open.
        unit: What the values are, below the panels.
        title: A line above the plot.

    Raises:
        ElfsError: if there are no rows.
    """
    check_filled("rows", rows)
    labels, kinds = (list(dict.fromkeys(rows[name])) for name in ("label", "kind"))
    names = [textwrap.fill(label, 40) for label in labels]
    lines = max(name.count("\n") + 1 for name in names)  # rows are as high as the highest name
    height = 1.0 + (0.05 + 0.14 * lines) * len(labels)
    figure = PageFigure(figsize=(WIDTH, height), dpi=DPI, layout="constrained")
    panels = figure.subplots(1, len(kinds), sharex=True, sharey=True, squeeze=False)[0]
    for axes, kind in zip(panels, kinds, strict=True):
        axes.axvline(0, color="#222222", lw=1)
        for row in rows[rows["kind"] == kind].itertuples():
            place, sure = labels.index(row.label), np.isfinite(row.low)
            colour = NEUTRAL if not sure or row.low <= 0 <= row.high else MIDDLE
            axes.hlines(place, row.low, row.high, color=colour, lw=1.8)
            axes.plot(row.value, place, "o", color=colour, mfc=colour if sure else "white")
        axes.set_title(kind)
        axes.grid(False, axis="y")
        axes.xaxis.set_major_locator(MaxNLocator(4))
    panels[0].set_yticks(range(len(labels)), names)
    panels[0].set_ylim(len(labels) - 0.4, -0.6)
    figure.supxlabel(unit, fontsize=RC["axes.labelsize"])
    if title:
        figure.suptitle(title, fontsize=10.5, weight="bold", x=0.01, ha="left")
    return figure


@styled
def gain_by_beta(rows: pd.DataFrame, *, title: str | None = None) -> Figure:
    """What each whole pipeline gained over random with the beta that its search chose: a panel a
    budget, all on one axis, and a mark a pipeline.

    Args:
        rows: Of :func:`elfs_lib.results.page.chosen_betas`, of one dataset: ``budget``, ``beta``,
            ``gain`` in points.
        title: A line above the plot.

    Raises:
        ElfsError: if there are no rows.
    """
    check_filled("rows", rows)
    budgets = sorted(rows["budget"].unique())
    figure = PageFigure(figsize=(WIDTH, 2.6), dpi=DPI, layout="constrained")
    panels = figure.subplots(1, len(budgets), sharex=True, sharey=True, squeeze=False)[0]
    for axes, budget in zip(panels, budgets, strict=True):
        own = rows[rows["budget"] == budget]
        axes.axhline(0, color=NEUTRAL, lw=1)
        for beta, alike in own.groupby("beta"):  # side by side, or one mark would hide another
            places = beta + 0.012 * (np.arange(len(alike)) - (len(alike) - 1) / 2)
            axes.plot(places, alike["gain"], "o", color=MIDDLE, ms=5, clip_on=False)
        axes.set_title(f"{percent(budget)} labelled", fontsize=RC["axes.labelsize"])
        axes.set_xticks(np.sort(rows["beta"].unique()))
        axes.xaxis.set_major_formatter("{x:g}")
    panels[0].margins(x=0.15)
    panels[0].set_ylabel("accuracy minus\nrandom's (points)")
    figure.supxlabel("β that the search chose", fontsize=RC["axes.labelsize"])
    if title:
        figure.suptitle(title, fontsize=10.5, weight="bold", x=0.01, ha="left")
    return figure
