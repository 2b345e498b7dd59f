"""Figures of the images, their embeddings and their clusters."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from elfs_lib.errors import ElfsError
from elfs_lib.results.plots.style import (
    DPI,
    HARD,
    MIDDLE,
    NEUTRAL,
    WIDTH,
    PageFigure,
    as_matrix,
    as_vector,
    heatmap,
    label_axes,
    legend_right,
    page,
    styled,
)


@styled
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


@styled
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
    values = as_matrix("embeddings", embeddings)
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
    figure, axes = page(4.2)
    kinds = np.unique(groups)
    colours = sns.color_palette("husl" if len(kinds) > 10 else "colorblind", len(kinds))
    for colour, group in zip(colours, kinds, strict=True):
        axes.scatter(*points[groups == group].T, s=7, color=colour, label=str(group), linewidth=0)
    label_axes(
        axes,
        f"First component ({shares[0]:.0f}% of the variance)",
        f"Second component ({shares[1]:.0f}%)",
        title,
    )
    if len(kinds) <= 24:
        legend_right(figure, axes, markerscale=2, title=kind)
    return figure


@styled
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
    values = as_matrix("curves", curves)
    best = int(np.argmin(values[-1])) if chosen is None else chosen
    why = "lowest at the end" if chosen is None else "chosen"
    if not 0 <= best < values.shape[1]:
        raise ElfsError(f"chosen is {chosen}: choose a head from 0 to {values.shape[1] - 1}.")
    figure, axes = page(3.2)
    epochs = np.arange(1, len(values) + 1)
    others = np.delete(values, best, axis=1)
    marker = "o" if len(values) == 1 else None
    for number, curve in enumerate(others.T):
        name = f"the other {others.shape[1]} heads" if number == 0 else None
        axes.plot(epochs, curve, color=NEUTRAL, lw=0.8, alpha=0.6, marker=marker, label=name)
    axes.plot(epochs, values[:, best], color=MIDDLE, marker=marker, label=f"head {best}, {why}")
    label_axes(axes, "Epoch", label, title)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend()
    return figure


@styled
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
    counts = as_matrix("matrix", matrix)
    if counts.min() < 0:
        raise ElfsError("matrix holds negative numbers: pass counts.")
    if names is not None and len(names) != len(counts):
        raise ElfsError(f"names has {len(names)} entries for {len(counts)} rows.")
    percent = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    few = max(counts.shape) <= 20
    labels = [str(name) for name in (names if names is not None else range(len(counts)))]
    columns = labels if counts.shape[0] == counts.shape[1] else list(range(counts.shape[1]))
    figure, axes = page(min(6.4, max(2.6, 1.4 + 0.42 * len(counts))))
    heatmap(
        axes,
        percent,
        rows=labels if len(labels) <= 40 else None,
        columns=columns if len(columns) <= 40 else None,
        annotate=few,
        digits=0,
        top=100,
        unit="Percent of the row",
    )
    label_axes(axes, xlabel, ylabel, title)
    return figure


@styled
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
    counts = as_vector("sizes", sizes)
    level = counts.mean() if expected is None else expected
    order = np.argsort(-counts, kind="stable")
    figure, axes = page(2.9)
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
        label_axes(axes, "Cluster, largest first", "Images", title)
    else:
        label_axes(axes, "Clusters, largest first", "Images", title)
    axes.grid(False, axis="x")
    axes.legend(loc="upper right")
    axes.set_ylim(0, 1.18 * max(counts.max(), level))
    return figure
