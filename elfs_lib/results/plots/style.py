"""The look of every figure, and what several of them draw with."""

from __future__ import annotations

import functools
import io
import zlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ParamSpec

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from elfs_lib.errors import ElfsError
from elfs_lib.selection.registry import METHODS

WIDTH = 7.0  # inches: the text column of the book
DPI = 110  # sharp enough in a column, small enough to keep in a notebook
HARD, MIDDLE, EASY = "#D55E00", "#0072B2", "#009E73"  # Okabe and Ito's colour-blind safe set
NEUTRAL = "#767676"  # 4.5:1 on white
SHADE = "#E8EFF5"

P = ParamSpec("P")

# ELFS and random are in every comparison and get a look of their own; CCS after a hard cut is a
# lighter one of CCS without.
EVERYWHERE = ("elfs", "random")
_FIXED = {
    "elfs": (MIDDLE, "o"),
    "random": ("#444444", "s"),
    "ccs_pseudo_beta": ("#A3B86C", "d"),
    "ccs_beta": ("#9A9CE0", "d"),
    "best_supervised": ("#8C4B2E", "D"),  # of the published tables
    # of few labels, all in one figure
    "typiclust": ("#56B4E9", "v"),
    "prob_cover": ("#7F4FBF", "P"),
    "max_herding": ("#009E73", "D"),
    "facility_location": ("#CC79A7", "X"),
    "kmeans_nearest": ("#D55E00", ">"),
    "usl": ("#B8860B", "<"),
}
_COLOURS = ("#CC79A7", "#B8860B", "#56B4E9", "#7F4FBF", "#8C4B2E", "#C2185B", "#6B8E23", "#2B2D7C",
            "#D55E00", "#009E73")  # fmt: skip
_MARKERS = ("v", "P", "X", "<", ">", "p", "h", "*", "d", "^", "D")


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


def styled(function: Callable[P, Figure]) -> Callable[P, Figure]:
    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with sns.axes_style("whitegrid"), sns.plotting_context("notebook"), mpl.rc_context(RC):
            return function(*args, **kwargs)

    return wrapper


RC = {
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


def method_styles(methods: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Colour and marker of each method: the same on every page, by its place in the registry.

    Args:
        methods: Names of methods; the look of one that is not in the registry depends on its
            checksum.

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


def ordered(methods: Iterable[str]) -> list[str]:
    """ELFS and random first, then the order of the registry, then other names by alphabet."""
    known = list(dict.fromkeys([*EVERYWHERE, *METHODS]))
    rank = {name: place for place, name in enumerate(known)}
    return sorted(methods, key=lambda name: (rank.get(name, len(known)), name))


def page(height: float) -> tuple[Figure, Axes]:
    figure = PageFigure(figsize=(WIDTH, height), dpi=DPI, layout="constrained")
    return figure, figure.subplots()


def label_axes(axes: Axes, x: str, y: str, title: str | None) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    if title:
        axes.set_title(title)


def legend_right(figure: Figure, axes: Axes, **options: Any) -> None:
    # Outside the axes: a legend there can hide no curve.
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", **options)


def line_handles(axes: Axes) -> tuple[list[Any], list[str]]:
    patches, names = axes.get_legend_handles_labels()
    lines = [
        mpl.lines.Line2D([], [], color=patch.get_edgecolor(), ls=patch.get_linestyle())
        for patch in patches
    ]
    return lines, names


def heatmap(
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


def bin_edges(values: np.ndarray) -> np.ndarray:
    low, high = float(values.min()), float(values.max())
    if low == high:
        low, high = low - 0.5, high + 0.5
    return np.linspace(low, high, 51)


def as_vector(name: str, values: Any) -> np.ndarray:
    array = np.asarray(values, dtype=float)
    if array.ndim != 1 or array.size == 0 or not np.isfinite(array).all():
        raise ElfsError(f"{name} must be a list of finite numbers with at least one entry.")
    return array


def as_matrix(name: str, values: Any) -> np.ndarray:
    array = np.asarray(values, dtype=float)
    if array.ndim != 2 or array.size == 0:
        raise ElfsError(f"{name} has shape {array.shape}: pass a filled two-dimensional array.")
    return array


def check_filled(name: str, frame: pd.DataFrame) -> None:
    if frame.empty:
        raise ElfsError(f"{name} is empty: there is nothing to draw.")
