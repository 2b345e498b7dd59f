"""The figures of the book: arrays and frames in, matplotlib figures out.

One style for all: the width of a book column, a colour-blind safe palette, one fixed look per
method. Nothing here goes through pyplot, so no figure leaks, and a figure that ends a notebook
cell is shown once. Captions and alternative texts belong to the notebooks.

One file: each figure stands alone, and all share one style.
"""

from __future__ import annotations

import functools
import io
import itertools
import textwrap
import zlib
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, ParamSpec

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, MultipleLocator
from PIL import Image

from elfs_lib.errors import ElfsError
from elfs_lib.results.evaluation import display_name, percent
from elfs_lib.results.published import SOURCE
from elfs_lib.selection.registry import METHODS

WIDTH = 7.0  # inches: the text column of the book
DPI = 110  # sharp enough in a column, small enough to keep in a notebook
HARD, MIDDLE, EASY = "#D55E00", "#0072B2", "#009E73"  # Okabe and Ito's colour-blind safe set
NEUTRAL = "#767676"  # 4.5:1 on white
SHADE = "#E8EFF5"

P = ParamSpec("P")

# ELFS and random are in every comparison and get a look of their own; the second control is a
# lighter first one.
_EVERYWHERE = ("elfs", "random")
_FIXED = {
    "elfs": (MIDDLE, "o"),
    "random": ("#444444", "s"),
    "ccs_pseudo_beta": ("#A3B86C", "d"),
    "best_supervised": ("#8C4B2E", "D"),  # of the published tables
    # of few labels, all in one figure
    "typiclust": ("#56B4E9", "v"),
    "prob_cover": ("#7F4FBF", "P"),
    "max_herding": ("#009E73", "D"),
    "facility_location": ("#CC79A7", "X"),
    "kmeans_nearest": ("#D55E00", ">"),
    "usl": ("#B8860B", "<"),
}
_FAR = 10  # points of difference from which on an axis is logarithmic
_BELOW = 10  # points of accuracy that a panel reaches below ELFS and random
_COLOURS = ("#CC79A7", "#B8860B", "#56B4E9", "#7F4FBF", "#8C4B2E", "#C2185B", "#6B8E23", "#2B2D7C",
            "#D55E00", "#009E73")  # fmt: skip
_MARKERS = ("v", "P", "X", "<", ">", "p", "h", "*", "d", "^", "D")
_GROUP_COLOURS = {"hard": HARD, "middle": MIDDLE, "easy": EASY}


class PageFigure(Figure):
    """A figure that shows itself as PNG in a notebook without pyplot's global state."""

    full_colour = False

    def _repr_png_(self) -> bytes:
        drawn, packed = io.BytesIO(), io.BytesIO()
        self.savefig(drawn, format="png")
        picture = Image.open(drawn).convert("RGB")
        if not self.full_colour:
            # 256 colours are enough for a plot, and a third of the bytes in the notebook.
            picture = picture.quantize(256, dither=Image.Dither.NONE)
        picture.save(packed, format="png", optimize=True)
        return packed.getvalue()


def _styled(function: Callable[P, Figure]) -> Callable[P, Figure]:
    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with sns.axes_style("whitegrid"), sns.plotting_context("notebook"), mpl.rc_context(_RC):
            return function(*args, **kwargs)

    return wrapper


_RC = {
    "pdf.fonttype": 42,  # TrueType: publishers refuse Type 3
    "font.size": 10,
    "axes.labelsize": 10,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "legend.title_fontsize": 9,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#444444",
    "axes.linewidth": 0.8,
    "grid.color": "#E3E3E3",
    "grid.linewidth": 0.7,
    "lines.linewidth": 1.8,
    "lines.markersize": 5.5,
    "patch.edgecolor": "white",
    "patch.linewidth": 0.5,
    "xtick.bottom": True,
    "ytick.left": True,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
}


@_styled
def image_grid(
    images: np.ndarray,
    titles: Sequence[str] | None = None,
    *,
    columns: int = 10,
    title: str | None = None,
) -> Figure:
    """Show images row by row; one channel is shown in grey.

    Args:
        images: uint8 [n, C, H, W], C = 1 or 3.
        titles: A short line above each image.
        columns: Images in a row.
        title: A line above the grid.

    Raises:
        ElfsError: if there are no images, the shape is wrong, or the titles do not match.
    """
    pixels = np.asarray(images)
    if pixels.ndim != 4 or len(pixels) == 0 or pixels.shape[1] not in (1, 3):
        raise ElfsError(f"images has shape {pixels.shape}: pass at least one as [n, 1 or 3, H, W].")
    if titles is not None and len(titles) != len(pixels):
        raise ElfsError(f"titles has {len(titles)} entries for {len(pixels)} images.")
    if columns < 1:
        raise ElfsError(f"columns is {columns}: choose at least 1.")
    rows = -(-len(pixels) // columns)
    cell = WIDTH / columns
    lines = max((text.count("\n") + 1 for text in titles), default=0) if titles else 0
    size = min(9.0, 72 * cell / 5.6)
    height = rows * (cell * pixels.shape[2] / pixels.shape[3] + lines * size / 60 + 0.04)
    figure = PageFigure(
        figsize=(WIDTH, height + (0.3 if title else 0)), dpi=DPI, layout="constrained"
    )
    figure.full_colour = pixels.shape[1] == 3
    figure.get_layout_engine().set(w_pad=0.015, h_pad=0.015, wspace=0, hspace=0)
    for number, axes in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
        axes.set_axis_off()
        if number >= len(pixels):
            continue
        image = pixels[number]
        if len(image) == 1:
            axes.imshow(image[0], cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        else:
            axes.imshow(image.transpose(1, 2, 0), interpolation="nearest")
        if titles is not None:
            axes.set_title(titles[number], fontsize=size, fontweight="normal", pad=2)
    if title:
        figure.suptitle(title, fontsize=10.5, fontweight="bold", x=0.01, ha="left")
    return figure


@_styled
def loss_curves(
    curves: np.ndarray,
    *,
    chosen: int | None = None,
    label: str = "TEMI loss",
    title: str | None = None,
) -> Figure:
    """One thin line per head over the epochs, with one head drawn thick.

    Args:
        curves: float [T, H], loss per epoch and head.
        chosen: The head to mark; default is the one of lowest final loss.
        label: What the vertical axis shows.
        title: A line above the plot.

    Raises:
        ElfsError: if ``curves`` is empty or not two-dimensional, or ``chosen`` is not a head.
    """
    values = _matrix("curves", curves)
    best = int(np.argmin(values[-1])) if chosen is None else chosen
    why = "lowest at the end" if chosen is None else "chosen"
    if not 0 <= best < values.shape[1]:
        raise ElfsError(f"chosen is {chosen}: choose a head from 0 to {values.shape[1] - 1}.")
    figure, axes = _page(3.2)
    epochs = np.arange(1, len(values) + 1)
    others = np.delete(values, best, axis=1)
    marker = "o" if len(values) == 1 else None
    for number, curve in enumerate(others.T):
        name = f"the other {others.shape[1]} heads" if number == 0 else None
        axes.plot(epochs, curve, color=NEUTRAL, lw=0.8, alpha=0.6, marker=marker, label=name)
    axes.plot(epochs, values[:, best], color=MIDDLE, marker=marker, label=f"head {best}, {why}")
    _label(axes, "Epoch", label, title)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend()
    return figure


@_styled
def confusion(
    matrix: np.ndarray,
    names: Sequence[str] | None = None,
    *,
    xlabel: str = "Pseudo-label, matched to a class",
    ylabel: str = "True class",
    title: str | None = None,
) -> Figure:
    """Confusion matrix as percent of each row, with numbers for up to 20 classes.

    Args:
        matrix: Counts [rows, columns], >= 0, rows are true classes. Empty rows are left at 0.
        names: Names of the rows, which also name the columns if as many.
        xlabel: What a column is.
        ylabel: What a row is.
        title: A line above the plot.

    Raises:
        ElfsError: if the matrix is empty, negative, or the names do not match.
    """
    counts = _matrix("matrix", matrix)
    if counts.min() < 0:
        raise ElfsError("matrix holds negative numbers: pass counts.")
    if names is not None and len(names) != len(counts):
        raise ElfsError(f"names has {len(names)} entries for {len(counts)} rows.")
    percent = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    few = max(counts.shape) <= 20
    labels = [str(name) for name in (names if names is not None else range(len(counts)))]
    columns = labels if counts.shape[0] == counts.shape[1] else list(range(counts.shape[1]))
    figure, axes = _page(min(6.4, max(2.6, 1.4 + 0.42 * len(counts))))
    _heatmap(
        axes,
        percent,
        rows=labels if len(labels) <= 40 else None,
        columns=columns if len(columns) <= 40 else None,
        annotate=few,
        digits=0,
        top=100,
        unit="Percent of the row",
    )
    _label(axes, xlabel, ylabel, title)
    return figure


@_styled
def cluster_sizes(
    sizes: np.ndarray, *, expected: float | None = None, title: str | None = None
) -> Figure:
    """Images per cluster, largest first, with the size that balance would give as a line.

    Args:
        sizes: int [C], images per cluster.
        expected: Size under perfect balance; default is the mean of ``sizes``.
        title: A line above the plot.

    Raises:
        ElfsError: if ``sizes`` is empty.
    """
    counts = _vector("sizes", sizes)
    level = counts.mean() if expected is None else expected
    order = np.argsort(-counts, kind="stable")
    figure, axes = _page(2.9)
    places = np.arange(len(counts))
    if len(counts) <= 100:
        axes.bar(places, counts[order], width=0.85, color=MIDDLE, linewidth=0)
    else:
        axes.fill_between(places, counts[order], step="mid", color=MIDDLE, linewidth=0)
    for place in np.flatnonzero(counts[order] == 0):
        axes.text(place, 0, "empty", rotation=90, ha="center", va="bottom", color=HARD, fontsize=9)
    axes.axhline(level, color=HARD, ls="--", lw=1.2, label=f"all equal: {level:,.0f}")
    if len(counts) <= 30:
        axes.set_xticks(places, [str(number) for number in order])
        _label(axes, "Cluster, largest first", "Images", title)
    else:
        _label(axes, "Clusters, largest first", "Images", title)
    axes.grid(False, axis="x")
    axes.legend(loc="upper right")
    axes.set_ylim(0, 1.18 * max(counts.max(), level))
    return figure


@_styled
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
    values = _vector("scores", scores)
    if cuts is not None and cuts[0] > cuts[1]:
        raise ElfsError(f"cuts are {cuts}: pass the lower score first.")
    figure, axes = _page(3.0)
    _, edges, bars = axes.hist(values, bins=_bins(values), color=MIDDLE, linewidth=0.3)
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
    _label(axes, label, "Images", title)
    axes.grid(False, axis="x")
    return figure


@_styled
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
        (_vector("pseudo", pseudo), "from pseudo-labels", HARD, "-"),
        (_vector("true", true), "from true labels", MIDDLE, "--"),
    )
    figure, axes = _page(3.0)
    bins = _bins(np.concatenate([values for values, *_ in parts]))
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
    _label(axes, label, "Percent of images", title)
    axes.grid(False, axis="x")
    axes.legend(*_line_handles(axes), loc="best")
    return figure


@_styled
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
    values = _matrix("curves", curves)
    names = np.asarray([str(name) for name in groups])
    if len(names) != values.shape[1]:
        raise ElfsError(f"groups has {len(names)} entries for {values.shape[1]} images.")
    figure, axes = _page(3.3)
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
    _label(axes, "Epoch", label, title)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _legend_right(figure, axes)
    return figure


@_styled
def error_by_decile(frame: pd.DataFrame, *, title: str | None = None) -> Figure:
    """Wrong pseudo-labels from the hardest to the easiest tenth.

    Args:
        frame: As :func:`elfs_lib.results.shift.pseudo_label_error_by_decile` returns it.
        title: A line above the plot.

    Raises:
        ElfsError: if the frame is empty.
    """
    _filled("frame", frame)
    figure, axes = _page(2.9)
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
    _label(
        axes,
        f"{'Tenth' if len(frame) == 10 else 'Group'} of the images, hardest first",
        "Wrong pseudo-labels (%)",
        title,
    )
    axes.grid(False, axis="x")
    axes.legend(loc="upper right")
    return figure


@_styled
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
    _filled("frame", frame)
    figure, axes = _page(3.2)
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
    _label(axes, "Budget (share of the training set)", "Easy images in the coreset (%)", title)
    axes.grid(False, axis="x")
    _legend_right(figure, axes)
    return figure


@_styled
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
    tried = _vector("ratios", ratios)
    values = np.asarray(scores, dtype=float).reshape(len(tried), -1)
    if not np.isclose(tried, best).any():
        raise ElfsError(f"best is {best}: choose one of the ratios that were tried.")
    figure, axes = _page(3.0)
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
    _label(axes, "Dropped at the hard end (% of the training set)", label, title)
    _legend_right(figure, axes)
    return figure


@_styled
def accuracy_vs_pruning(
    summary: pd.DataFrame,
    *,
    published: pd.DataFrame | None = None,
    supervised: Collection[str] = (),
    title: str | None = None,
) -> Figure:
    """Test accuracy against pruning rate, one line per method, bands of one standard deviation.

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
    _filled("summary", summary)
    if summary["dataset"].nunique() > 1:
        raise ElfsError("summary holds several datasets: pass the rows of one.")
    methods = _ordered(summary["method"].unique())
    free = [name for name in methods if name not in supervised]
    ceiling = [name for name in methods if name in supervised]
    panels = [(title or "", summary, free)]
    if ceiling:  # with ELFS and random again, to hold it against
        fixed = [name for name in methods if name in _EVERYWHERE]
        panels.append(("Selecting with labels", summary, fixed + ceiling))
    if published is not None and len(published):
        curves = published.assign(budget=1 - published["pruning_rate"], mean=published["accuracy"])
        low, high = summary["budget"].min() - 1e-6, summary["budget"].max() + 1e-6
        curves = curves[curves["budget"].between(low, high)].assign(sd=np.nan)
        panels.append((SOURCE[0].upper() + SOURCE[1:], curves, list(curves["method"].unique())))
    panels = [panel for panel in panels if panel[2]]
    # A panel is as high as its legend.
    heights = [max(3.2 if not number else 2.2, 0.2 * len(names) + 0.5)
               for number, (_, _, names) in enumerate(panels)]  # fmt: skip
    figure = PageFigure(figsize=(WIDTH, sum(heights)), dpi=DPI, layout="constrained")
    every = figure.subplots(len(panels), sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for axes, (name, table, names) in zip(every, panels, strict=True):
        _accuracy_lines(axes, table, _ordered(names))
        _label(axes, "", "Test accuracy (%)", name)
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


@_styled
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
    _filled("table", table)
    if table["dataset"].nunique() > 1:
        raise ElfsError("table holds several datasets: pass the rows of one.")
    methods = _ordered(table["method"].unique())
    styles = method_styles(methods)
    figure, axes = _page(max(4.2, 0.24 * len(methods) + 1.2))
    starts, ends = {}, {}
    for method in methods:
        groups = table[table["method"] == method].groupby("labels_per_class")["accuracy"]
        mean, sd = groups.mean(), groups.std()
        fixed = method in _EVERYWHERE
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
    _label(axes, "Labels a class", "Test accuracy of a linear probe (%)", title)
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
    line = 1.25 * _RC["legend.fontsize"] / points * (high - low)
    names = sorted(ends, key=lambda name: ends[name][1])
    places = _spread([ends[name][1] for name in names], line, low, high)
    for name, place in zip(names, places, strict=True):
        axes.annotate(
            display_name(name),
            xy=ends[name],
            xytext=(-0.06 if left else 1.06, (place - low) / (high - low)),
            textcoords="axes fraction",
            ha="right" if left else "left",
            va="center",
            fontsize=_RC["legend.fontsize"],
            color=colours[name],
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colours[name], "lw": 0.7, "shrinkB": 4},
        )
    axes.set_ylim(low, high)


def _spread(values: Sequence[float], gap: float, low: float, high: float) -> list[float]:
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
    fixed_means = summary.loc[summary["method"].isin(_EVERYWHERE), "mean"]
    floor = fixed_means.min() - _BELOW  # NaN, which nothing is below, where neither is there
    for method in methods:
        rows = summary[summary["method"] == method].sort_values("budget", ascending=False)
        pruned = 100 * (1 - rows["budget"].to_numpy())
        mean, sd = rows["mean"].to_numpy(), rows["sd"].to_numpy(dtype=float)
        colour, fixed = styles[method]["color"], method in _EVERYWHERE
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


@_styled
def differences(paired: pd.DataFrame, *, title: str | None = None) -> Figure:
    """Differences between methods with their 95% intervals: a panel a budget, a row a pair.

    Args:
        paired: Rows of :func:`elfs_lib.results.evaluation.paired_difference`, possibly of several
            pairs. Rows without an interval are drawn as an open mark.
        title: A line above the plot.

    Raises:
        ElfsError: if the frame is empty.
    """
    _filled("paired", paired)
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


@_styled
def gain_curve(rows: pd.DataFrame, *, title: str | None = None) -> Figure:
    """Gain over random against the accuracy of the pseudo-labels, a line a budget.

    Args:
        rows: Of :func:`elfs_lib.results.page.gains`: ``budget``, ``recipe``, ``steps``,
            ``pseudo_label_accuracy`` in percent (100 where selection saw the true labels),
            ``difference``, ``low``, ``high`` in points, ``low`` and ``high`` empty for one run.
        title: Printed above, if given.

    Raises:
        ElfsError: if there are no rows.
    """
    _filled("rows", rows)
    figure, axes = _page(2.6)
    axes.axhline(0, color=NEUTRAL, lw=1)
    looks = zip(itertools.cycle((MIDDLE, HARD, EASY)), itertools.cycle("os^"))
    alike = rows.groupby(["budget", "recipe", "steps"])  # one training a line
    for ((budget, *_), own), (colour, marker) in zip(alike, looks):
        own = own.sort_values("pseudo_label_accuracy")
        x, y = (own[name].to_numpy(float) for name in ("pseudo_label_accuracy", "difference"))
        bars = np.stack([y - own["low"].to_numpy(float), own["high"].to_numpy(float) - y])
        axes.errorbar(x, y, np.nan_to_num(bars), color=colour, marker=marker, capsize=3, lw=1.5)
        axes.annotate(
            f"{percent(budget)} labelled",
            (x[-1], y[-1]),
            xytext=(8, 0),
            textcoords="offset points",
            color=colour,
            va="center",
        )
    axes.margins(x=0.16)
    _label(axes, "pseudo-labels right (%)", "accuracy minus random's (points)", title)
    return figure


@_styled
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
    _filled("rows", rows)
    datasets, methods = list(dict.fromkeys(rows["dataset"])), _ordered(rows["method"].unique())
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
        axes.set_xticks(100 * budgets, map(percent, budgets))
        axes.margins(x=0.12)
        axes.set_title(display_name(dataset))
    panels[0].set_ylabel("accuracy minus random's (points)")
    figure.supxlabel("images labelled", fontsize=_RC["axes.labelsize"])
    colours = {name: look["color"] for name, look in styles.items()}
    for axes, dataset in zip(panels, datasets, strict=True):
        _names_beside(axes, ends[dataset], colours, left=False)
    if title:
        figure.suptitle(title, fontsize=10.5, weight="bold", x=0.01, ha="left")
    return figure


@_styled
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
    _filled("rows", rows)
    labels, kinds = (list(dict.fromkeys(rows[name])) for name in ("label", "kind"))
    names = [textwrap.fill(label, 40) for label in labels]
    lines = max(name.count("\n") + 1 for name in names)  # rows are as high as the highest name
    height = 1.0 + (0.08 + 0.14 * lines) * len(labels)
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
    figure.supxlabel(unit, fontsize=_RC["axes.labelsize"])
    if title:
        figure.suptitle(title, fontsize=10.5, weight="bold", x=0.01, ha="left")
    return figure


@_styled
def gain_by_beta(rows: pd.DataFrame, *, title: str | None = None) -> Figure:
    """What each whole pipeline gained over random with the beta that its search chose: a panel a
    budget, all on one axis, and a mark a pipeline.

    Args:
        rows: Of :func:`elfs_lib.results.claims.chosen_betas`, of one dataset: ``budget``, ``beta``,
            ``gain`` in points.
        title: A line above the plot.

    Raises:
        ElfsError: if there are no rows.
    """
    _filled("rows", rows)
    budgets = sorted(rows["budget"].unique())
    figure = PageFigure(figsize=(WIDTH, 2.6), dpi=DPI, layout="constrained")
    panels = figure.subplots(1, len(budgets), sharex=True, sharey=True, squeeze=False)[0]
    for axes, budget in zip(panels, budgets, strict=True):
        own = rows[rows["budget"] == budget]
        axes.axhline(0, color=NEUTRAL, lw=1)
        axes.plot(own["beta"], own["gain"], "o", color=MIDDLE, alpha=0.75, clip_on=False)
        axes.set_title(f"{percent(budget)} labelled", fontsize=_RC["axes.labelsize"])
        axes.xaxis.set_major_locator(MultipleLocator(0.2))
        axes.xaxis.set_major_formatter("{x:g}")
    panels[0].margins(x=0.15)
    panels[0].set_ylabel("accuracy minus\nrandom's (points)")
    figure.supxlabel("beta that the search chose", fontsize=_RC["axes.labelsize"])
    if title:
        figure.suptitle(title, fontsize=10.5, weight="bold", x=0.01, ha="left")
    return figure


@_styled
def jaccard_heatmap(frame: pd.DataFrame, *, title: str | None = None) -> Figure:
    """Overlap between coresets.

    Args:
        frame: As :func:`elfs_lib.results.shift.jaccard_overlap` returns it.
        title: A line above the plot.

    Raises:
        ElfsError: if the frame is empty.
    """
    _filled("frame", frame)
    names = [display_name(str(name)) for name in frame.columns]
    figure, axes = _page(min(6.5, max(2.6, 1.6 + 0.38 * len(names))))
    _heatmap(
        axes,
        frame.to_numpy(),
        rows=names,
        columns=names,
        annotate=len(names) <= 12,
        digits=2,
        top=1,
        unit="Jaccard overlap",
    )
    _label(axes, "", "", title)
    return figure


@_styled
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
    _filled("counts", counts)
    if names is not None and len(names) != counts.shape[1]:
        raise ElfsError(f"names has {len(names)} entries for {counts.shape[1]} classes.")
    values = counts.to_numpy(dtype=float)
    percent = 100 * values / np.maximum(values.sum(axis=1, keepdims=True), 1)
    classes = [str(name) for name in (names if names is not None else counts.columns)]
    figure, axes = _page(max(2.2, 1.5 + 0.34 * len(counts)))
    _heatmap(
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
    _label(axes, balanced, "", title)
    return figure


@_styled
def embedding_map(
    embeddings: np.ndarray,
    labels: np.ndarray,
    *,
    sample: int = 3000,
    seed: int = 0,
    kind: str = "cluster",
    title: str | None = None,
) -> Figure:
    """First two principal components of the embeddings, coloured by cluster or class.

    Args:
        embeddings: float [N, D], D >= 2.
        labels: int [N], clusters or classes.
        sample: At most this many images are drawn.
        seed: Seed of the sample.
        kind: What a label is, the heading of the legend.
        title: A line above the plot.

    Raises:
        ElfsError: if the shapes do not fit.
    """
    values = _matrix("embeddings", embeddings)
    groups = np.asarray(labels)
    if len(groups) != len(values) or values.shape[1] < 2 or len(values) < 2:
        raise ElfsError("embeddings must be [N, D] with N, D >= 2 and one label per image.")
    if len(values) > sample:
        chosen = np.random.default_rng(seed).choice(len(values), sample, replace=False)
        values, groups = values[np.sort(chosen)], groups[np.sort(chosen)]
    centred = values - values.mean(axis=0)
    left, strength, _ = np.linalg.svd(centred, full_matrices=False)
    points = left[:, :2] * strength[:2]
    shares = 100 * strength[:2] ** 2 / max((strength**2).sum(), 1e-30)
    figure, axes = _page(4.2)
    kinds = np.unique(groups)
    colours = sns.color_palette("husl" if len(kinds) > 10 else "colorblind", len(kinds))
    for colour, group in zip(colours, kinds, strict=True):
        axes.scatter(*points[groups == group].T, s=7, color=colour, label=str(group), linewidth=0)
    _label(
        axes,
        f"First component ({shares[0]:.0f}% of the variance)",
        f"Second component ({shares[1]:.0f}%)",
        title,
    )
    if len(kinds) <= 24:
        _legend_right(figure, axes, markerscale=2, title=kind)
    return figure


def method_styles(methods: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Colour and marker of each method: the same on every page, by its place in the registry.

    Args:
        methods: Names of methods; the look of one that is not in the registry goes by its checksum.

    Returns:
        name -> {"color": ..., "marker": ...}.
    """
    listed = (name for name in METHODS if name not in _FIXED)
    places = {name: place for place, name in enumerate(listed)}
    styles = {}
    for name in methods:
        place = places.get(name, zlib.crc32(name.encode()))
        look = _COLOURS[place % len(_COLOURS)], _MARKERS[place % len(_MARKERS)]
        styles[name] = dict(zip(("color", "marker"), _FIXED.get(name, look), strict=True))
    return styles


def _ordered(methods: Iterable[str]) -> list[str]:
    """ELFS and random first, then the order of the registry, then other names by alphabet."""
    known = list(dict.fromkeys([*_EVERYWHERE, *METHODS]))
    rank = {name: place for place, name in enumerate(known)}
    return sorted(methods, key=lambda name: (rank.get(name, len(known)), name))


def _page(height: float) -> tuple[Figure, Axes]:
    figure = PageFigure(figsize=(WIDTH, height), dpi=DPI, layout="constrained")
    return figure, figure.subplots()


def _label(axes: Axes, x: str, y: str, title: str | None) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    if title:
        axes.set_title(title)


def _legend_right(figure: Figure, axes: Axes, **options: Any) -> None:
    # Outside the axes: a legend there can hide no curve.
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", **options)


def _line_handles(axes: Axes) -> tuple[list[Any], list[str]]:
    patches, names = axes.get_legend_handles_labels()
    lines = [
        mpl.lines.Line2D([], [], color=patch.get_edgecolor(), ls=patch.get_linestyle())
        for patch in patches
    ]
    return lines, names


def _heatmap(
    axes: Axes,
    values: np.ndarray,
    *,
    rows: Sequence[str] | None,
    columns: Sequence[str] | None,
    annotate: bool,
    digits: int,
    top: float,
    unit: str,
    colours: str = "Blues",
) -> None:
    sns.heatmap(
        values,
        ax=axes,
        vmin=0,
        vmax=top,
        cmap=colours,
        annot=annotate,
        fmt=f".{digits}f",
        annot_kws={"fontsize": 9},
        linewidths=0.4 if annotate else 0,
        xticklabels=list(columns) if columns is not None else False,
        yticklabels=list(rows) if rows is not None else False,
        cbar_kws={"label": unit},
    )
    if columns is not None and max(len(str(name)) for name in columns) * len(columns) > 60:
        axes.set_xticks(axes.get_xticks(), columns, rotation=40, ha="right", rotation_mode="anchor")
    axes.tick_params(axis="y", rotation=0)
    axes.tick_params(length=0)


def _bins(values: np.ndarray) -> np.ndarray:
    low, high = float(values.min()), float(values.max())
    if low == high:
        low, high = low - 0.5, high + 0.5
    return np.linspace(low, high, 51)


def _vector(name: str, values: Any) -> np.ndarray:
    array = np.asarray(values, dtype=float)
    if array.ndim != 1 or array.size == 0 or not np.isfinite(array).all():
        raise ElfsError(f"{name} must be a list of finite numbers with at least one entry.")
    return array


def _matrix(name: str, values: Any) -> np.ndarray:
    array = np.asarray(values, dtype=float)
    if array.ndim != 2 or array.size == 0:
        raise ElfsError(f"{name} has shape {array.shape}: pass a filled two-dimensional array.")
    return array


def _filled(name: str, frame: pd.DataFrame) -> None:
    if frame.empty:
        raise ElfsError(f"{name} is empty: there is nothing to draw.")
