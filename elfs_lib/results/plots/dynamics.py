"""Figures of training dynamics, and of what pruning by them keeps."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from elfs_lib.errors import ElfsError
from elfs_lib.results.evaluation import display_name, percent
from elfs_lib.results.plots.style import (
    _COLOURS,
    EASY,
    HARD,
    MIDDLE,
    NEUTRAL,
    SHADE,
    as_matrix,
    as_vector,
    bin_edges,
    check_filled,
    heatmap,
    label_axes,
    legend_right,
    line_handles,
    method_styles,
    page,
    styled,
)

_GROUP_COLOURS = {"hard": HARD, "middle": MIDDLE, "easy": EASY}


@styled
def aum_histogram(
    scores: np.ndarray,
    *,
    cuts: tuple[float, float] | None = None,
    label: str = "AUM (low = hard)",
    title: str | None = None,
) -> Figure:
    """Histogram of a score, with the part that double-end pruning keeps shaded.

    Args:
        scores: float [N], ascending = hardest first.
        cuts: (low, high) scores of the hardest and easiest image kept.
        label: What the horizontal axis shows.
        title: A line above the plot.

    Raises:
        ElfsError: if ``scores`` is empty or not finite, or the cuts are out of order.
    """
    values = as_vector("scores", scores)
    if cuts is not None and cuts[0] > cuts[1]:
        raise ElfsError(f"cuts are {cuts}: pass the lower score first.")
    figure, axes = page(3.0)
    _, edges, bars = axes.hist(values, bins=bin_edges(values), color=MIDDLE, linewidth=0.3)
    if cuts is not None:
        low, high = cuts
        axes.axvspan(low, high, color=SHADE, zorder=0)
        for cut in cuts:
            axes.axvline(cut, color="#444444", lw=1)
        for bar, left, right in zip(bars, edges[:-1], edges[1:], strict=True):
            middle = (left + right) / 2
            bar.set_facecolor(HARD if middle < low else EASY if middle > high else MIDDLE)
        parts = (
            (values < low, "too hard", HARD),
            ((values >= low) & (values <= high), "kept", MIDDLE),
            (values > high, "too easy", EASY),
        )
        for inside, name, colour in parts:
            if inside.any():
                axes.plot([], [], "s", color=colour, label=f"{name}: {inside.sum():,}")
        figure.legend(loc="outside upper center", ncols=3, handletextpad=0.1)
    label_axes(axes, label, "Images", title)
    axes.grid(False, axis="x")
    return figure


@styled
def aum_overlay(
    pseudo: np.ndarray,
    true: np.ndarray,
    *,
    label: str = "AUM (low = hard)",
    title: str | None = None,
) -> Figure:
    """Distribution of one score under pseudo-labels and under true labels, on the same bins.

    Args:
        pseudo: float [N], scores from pseudo-labels.
        true: float [M], scores from true labels.
        label: What the horizontal axis shows.
        title: A line above the plot.

    Raises:
        ElfsError: if an array is empty or not finite.
    """
    parts = (
        (as_vector("pseudo", pseudo), "from pseudo-labels", HARD, "-"),
        (as_vector("true", true), "from true labels", MIDDLE, "--"),
    )
    figure, axes = page(3.0)
    bins = bin_edges(np.concatenate([values for values, *_ in parts]))
    for values, name, colour, line in parts:
        weights = np.full(len(values), 100 / len(values))
        axes.hist(values, bins=bins, weights=weights, color=colour, alpha=0.25, linewidth=0)
        axes.hist(
            values,
            bins=bins,
            weights=weights,
            histtype="step",
            edgecolor=colour,
            ls=line,
            lw=1.6,
            label=name,
        )
    label_axes(axes, label, "Percent of images", title)
    axes.grid(False, axis="x")
    axes.legend(*line_handles(axes), loc="best")
    return figure


@styled
def learning_curves(
    curves: np.ndarray,
    groups: Sequence[str],
    *,
    label: str = "Margin: p(label) minus\nthe best other class",
    title: str | None = None,
) -> Figure:
    """Per-epoch margins of watched images, with the mean of each group drawn thick.

    Args:
        curves: float [T, W], margin in [-1, 1] per epoch and watched image.
        groups: Name of the group of each watched image. Those named hard, middle and easy come
            first, in this order and in the colours of these.
        label: What the vertical axis shows.
        title: A line above the plot.

    Raises:
        ElfsError: if ``curves`` is empty or ``groups`` has another length than W.
    """
    values = as_matrix("curves", curves)
    names = np.asarray([str(name) for name in groups])
    if len(names) != values.shape[1]:
        raise ElfsError(f"groups has {len(names)} entries for {values.shape[1]} images.")
    figure, axes = page(3.3)
    epochs = np.arange(1, len(values) + 1)
    marker = "o" if len(values) == 1 else None
    colours = itertools.cycle(_COLOURS)
    for name in dict.fromkeys([*_GROUP_COLOURS, *names]):
        members = values[:, names == name]
        if not members.size:
            continue
        colour = _GROUP_COLOURS.get(name) or next(colours)
        axes.plot(epochs, members, color=colour, lw=0.6, alpha=0.3)
        axes.plot(
            epochs,
            members.mean(axis=1),
            color=colour,
            lw=2.4,
            marker=marker,
            label=f"{name} (mean of {members.shape[1]})",
        )
    axes.axhline(0, color="#444444", lw=0.8)
    label_axes(axes, "Epoch", label, title)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    legend_right(figure, axes)
    return figure


@styled
def error_by_decile(frame: pd.DataFrame, *, title: str | None = None) -> Figure:
    """Wrong pseudo-labels from the hardest to the easiest tenth.

    Args:
        frame: As :func:`elfs_lib.results.shift.pseudo_label_error_by_decile` returns it.
        title: A line above the plot.

    Raises:
        ElfsError: if the frame is empty.
    """
    check_filled("frame", frame)
    figure, axes = page(2.9)
    places = np.arange(len(frame))
    percent = 100 * frame["error"].to_numpy()
    axes.bar(places, percent, width=0.85, color=HARD, linewidth=0)
    axes.errorbar(
        places, percent, 100 * frame["standard_error"], fmt="none", ecolor="#222222", elinewidth=1
    )
    overall = 100 * np.average(frame["error"], weights=frame["count"])
    axes.axhline(overall, color="#444444", ls="--", lw=1.2, label=f"all images: {overall:.0f}%")
    axes.set_xticks(places, [str(number + 1) for number in frame["decile"]])
    axes.set_ylim(0, min(118, max(1.25 * percent.max() + 3, 10)))
    label_axes(
        axes,
        f"{'Tenth' if len(frame) == 10 else 'Group'} of the images, hardest first",
        "Wrong pseudo-labels (%)",
        title,
    )
    axes.grid(False, axis="x")
    axes.legend(loc="upper right")
    return figure


@styled
def easy_counts(
    frame: pd.DataFrame, *, expected: float | None = None, title: str | None = None
) -> Figure:
    """Share of easy images that each method keeps at each budget.

    Args:
        frame: Shares in [0, 1]; index = budgets as shares, columns = methods.
        expected: The share of a random coreset, drawn as a line.
        title: A line above the plot.

    Raises:
        ElfsError: if the frame is empty.
    """
    check_filled("frame", frame)
    figure, axes = page(3.2)
    width = 0.85 / frame.shape[1]
    places = np.arange(len(frame))
    styles = method_styles(frame.columns)
    for number, method in enumerate(frame.columns):
        offset = (number - (frame.shape[1] - 1) / 2) * width
        axes.bar(
            places + offset,
            100 * frame[method],
            width=width,
            color=styles[method]["color"],
            label=display_name(str(method)),
        )
    if expected is not None:
        name = f"random: {100 * expected:.0f}%"
        axes.axhline(100 * expected, color="#222222", ls="--", lw=1.2, label=name)
    axes.set_xticks(places, [percent(budget) for budget in frame.index])
    label_axes(axes, "Budget (share of the training set)", "Easy images in the coreset (%)", title)
    axes.grid(False, axis="x")
    legend_right(figure, axes)
    return figure


@styled
def beta_curve(
    ratios: Sequence[float],
    scores: np.ndarray,
    best: float,
    *,
    label: str = "Accuracy on held-out\npseudo-labels (%)",
    title: str | None = None,
) -> Figure:
    """The search for the share to drop at the hard end.

    Args:
        ratios: The R values of beta that were tried, in [0, 1).
        scores: float [R] or [R, S], percent, S splits. NaN where a run is missing.
        best: The value chosen, one of ``ratios``.
        label: What the vertical axis shows.
        title: A line above the plot.

    Raises:
        ElfsError: if the shapes differ or ``best`` was not tried.
    """
    tried = as_vector("ratios", ratios)
    values = np.asarray(scores, dtype=float).reshape(len(tried), -1)
    if not np.isclose(tried, best).any():
        raise ElfsError(f"best is {best}: choose one of the ratios that were tried.")
    figure, axes = page(3.0)
    mean = np.nanmean(values, axis=1)
    if values.shape[1] > 1:
        axes.plot(100 * tried, values, "o", color=NEUTRAL, ms=3.5, alpha=0.7)
        axes.plot([], [], "o", color=NEUTRAL, ms=3.5, label="single splits")
    count = values.shape[1]
    name = f"mean of {count} splits" if count > 1 else "one split"
    axes.plot(100 * tried, mean, "-o", color=MIDDLE, label=name)
    at = int(np.argmin(np.abs(tried - best)))
    axes.plot(
        100 * best,
        mean[at],
        "*",
        color=HARD,
        ms=15,
        mec="white",
        zorder=5,
        label=f"chosen: {percent(best)}",
    )
    label_axes(axes, "Dropped at the hard end (% of the training set)", label, title)
    legend_right(figure, axes)
    return figure


@styled
def jaccard_heatmap(frame: pd.DataFrame, *, title: str | None = None) -> Figure:
    """Overlap between coresets.

    Args:
        frame: As :func:`elfs_lib.results.shift.jaccard_overlap` returns it.
        title: A line above the plot.

    Raises:
        ElfsError: if the frame is empty.
    """
    check_filled("frame", frame)
    names = [display_name(str(name)) for name in frame.columns]
    figure, axes = page(min(6.5, max(2.6, 1.6 + 0.38 * len(names))))
    heatmap(
        axes,
        frame.to_numpy(),
        rows=names,
        columns=names,
        annotate=len(names) <= 12,
        digits=2,
        top=1,
        unit="Jaccard overlap",
    )
    label_axes(axes, "", "", title)
    return figure


@styled
def class_balance(
    counts: pd.DataFrame, names: Sequence[str] | None = None, *, title: str | None = None
) -> Figure:
    """Share of each class in each coreset; colours diverge from perfect balance.

    Args:
        counts: int, index = methods, columns = classes.
        names: Names of the classes; default is the column labels.
        title: A line above the plot.

    Raises:
        ElfsError: if the frame is empty or the names do not match.
    """
    check_filled("counts", counts)
    if names is not None and len(names) != counts.shape[1]:
        raise ElfsError(f"names has {len(names)} entries for {counts.shape[1]} classes.")
    values = counts.to_numpy(dtype=float)
    percent = 100 * values / np.maximum(values.sum(axis=1, keepdims=True), 1)
    classes = [str(name) for name in (names if names is not None else counts.columns)]
    figure, axes = page(max(2.2, 1.5 + 0.34 * len(counts)))
    heatmap(
        axes,
        percent,
        rows=[display_name(str(method)) for method in counts.index],
        columns=classes if len(classes) <= 40 else None,
        annotate=len(classes) <= 12,
        digits=1 if len(classes) <= 10 else 0,
        top=200 / len(classes),
        unit="Percent of the coreset",
        colours="PuOr_r",
    )
    balanced = f"Class (white: all equal, {100 / len(classes):.3g}%)"
    label_axes(axes, balanced, "", title)
    return figure
