"""The table and the figures of growth on the book's page on performance, from growth.json.

    python -m benchmarks.selection_page

``python -m benchmarks.bench_selection --write`` measures and then calls this.
"""

from __future__ import annotations

import json
from typing import NamedTuple

import matplotlib

matplotlib.use("svg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator

from benchmarks.book_data import Tables, coloured, write_figure, write_tables
from benchmarks.selection_design import BASE, DESIGN, IMAGENET
from elfs_lib.results.evaluation import display_name
from elfs_lib.selection import METHODS, expected_cost
from elfs_lib.selection.cost import GROWTH, is_measured, measured_as

GIB = 2**30
LARGE = {"n": 1_300_000, "dim": 768, "budget": 0.1, "classes": 1000}
MEMORY_LIMIT = 24  # GiB
MOST = max(DESIGN, key=lambda point: point["n"])


def rows_of(facts: dict, method: str) -> pd.DataFrame:
    table = pd.DataFrame(facts["rows"])
    return table[table["method"] == method].sort_values("n")


def on_the_n_axis(rows: pd.DataFrame) -> pd.DataFrame:
    fixed = [rows[name] == BASE[name] for name in ("dim", "classes", "share")]
    return rows[np.logical_and.reduce(fixed)]


def at_imagenet(rows: pd.DataFrame) -> pd.Series | None:
    """The measurement at the size of ImageNet; methods that would take days have none."""
    large = rows[rows["n"] == IMAGENET["n"]]
    return None if large.empty else large.iloc[0]


def exponent(rows: pd.DataFrame) -> float:
    """Of N in the time, over the larger sizes: below them fixed costs still show."""
    own = rows[rows["n"] >= rows["n"].max() / (MOST["n"] / BASE["n"])]
    return float(np.polyfit(np.log(own["n"]), np.log(own["seconds"]), 1)[0])


def images_within(method: str, limit: int) -> float:
    """N whose estimated memory is ``limit`` bytes; the estimate is linear in N."""
    size = {k: v for k, v in LARGE.items() if k != "n"}
    few, many = (expected_cost(method, n, **size).bytes for n in (1_000_000, 2_000_000))
    return 1e6 + 1e6 * (limit - few) / (many - few)


def growth_table(facts: dict) -> pd.DataFrame:
    lines = []
    for method in measured_methods():
        rows = rows_of(facts, method)
        axis, large = on_the_n_axis(rows), at_imagenet(rows)
        last, cost = axis.iloc[-1], expected_cost(method, **LARGE)
        reached = f"{last['bytes'] / 1e6:,.0f} MB, {last['seconds']:.3g} s"
        if last["n"] < MOST["n"]:
            reached += f" (N = {last['n']:,})"
        spent = f"{cost.seconds:,.3g} s" if cost.seconds < 1000 else f"{cost.seconds / 3600:.2g} h"
        lines.append(
            {
                "Method": display_name(method),
                "Time grows as": f"N^{exponent(axis):.2f}",
                f"At N = {MOST['n']:,}, D = {MOST['dim']}": reached,
                f"At N = {IMAGENET['n']:,}, D = {IMAGENET['dim']}, budget 0.1%": (
                    "not measured" if large is None else _at_imagenet_as_text(large)
                ),
                "Estimate at N = 1.3 million, D = 768, C = 1,000, budget 10%": (
                    f"{cost.bytes / GIB:.2f} GiB, {spent}"
                ),
                f"{MEMORY_LIMIT} GiB hold": (
                    f"{images_within(method, MEMORY_LIMIT * GIB) / 1e6:,.1f} million"
                ),
            }
        )
    return pd.DataFrame(lines)


def _at_imagenet_as_text(large: pd.Series) -> str:
    samples = f", {large['samples']:,} samples" if large["samples"] > 1 else ""
    size = f"{large['bytes'] / GIB:.2f} GiB, {large['seconds']:.3g} s"
    return f"{size} (C = {large['classes']:,}{samples})"


TABLES: Tables = {"selection_growth.csv": growth_table}


def measured_methods() -> list[str]:
    return [name for name in METHODS if measured_as(name) == name and is_measured(name)]


class Quantity(NamedTuple):
    """A figure of growth."""

    column: str  # of the rows, and the field of expected_cost
    unit: float
    label: str
    limit: float | None  # in its unit, drawn as a line
    uses_samples: bool  # whether it depends on the number of samples, and so on how many were drawn
    figure: str


QUANTITIES = (
    Quantity("seconds", 1, "seconds, one thread", None, True, "selection_time.svg"),
    Quantity("bytes", GIB, "peak memory, GiB", MEMORY_LIMIT, False, "selection_memory.svg"),
)


@coloured
def draw(facts: dict, what: Quantity) -> None:
    """A panel a method: what was measured, and the line by which ``elfs methods`` carries it on."""
    methods = measured_methods()
    rows = len(methods) // 4 + 1  # with at least one panel for the legend
    figure, panels = plt.subplots(
        rows, 4, figsize=(7.2, 1.9 * rows), sharex=True, sharey=True, layout="constrained"
    )
    axes_of: dict[str, Axes] = dict(zip(methods, panels.flat, strict=False))
    curves = {method: on_the_n_axis(rows_of(facts, method)) for method in methods}
    sizes = np.geomspace(1e4, LARGE["n"], 25).astype(int)
    for method, axes in axes_of.items():
        for other in curves.values():
            axes.plot(other["n"], other[what.column] / what.unit, color="0.87", lw=1, zorder=1)
        own, large = curves[method], at_imagenet(rows_of(facts, method))
        axes.plot(own["n"], own[what.column] / what.unit, "o-", color="C0", ms=3.5, lw=1.4)
        costs = [expected_cost(method, n, 768, 0.1, classes=10) for n in sizes]
        estimate = np.array([getattr(cost, what.column) for cost in costs]) / what.unit
        axes.plot(sizes, estimate, "--", color="C1", lw=1.2)
        # ZCore's time is left out: few samples were drawn at that size
        if large is not None and not (what.uses_samples and large["samples"] > 1):
            axes.plot(large["n"], large[what.column] / what.unit, "s", color="C3", ms=5)
        if what.limit:
            axes.axhline(what.limit, color="0.4", lw=0.8, ls=":")
        axes.set_title(display_name(method), fontsize=9, loc="left")
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.xaxis.set_major_locator(LogLocator(10, numticks=4))
        axes.tick_params(labelsize=9)
    for axes in list(panels.flat)[len(methods) :]:
        axes.set_axis_off()
    handles = [
        plt.Line2D([], [], color="C0", marker="o", ms=3.5, lw=1.4),
        plt.Line2D([], [], color="C3", marker="s", ms=5, lw=0),
        plt.Line2D([], [], color="C1", ls="--", lw=1.2),
        plt.Line2D([], [], color="0.8", lw=1),
    ]
    names = [
        "measured, D = 64,\nC = 10, budget 10%",
        "measured, D = 768,\nbudget 0.1%",
        "estimated, D = 768,\nC = 10, budget 10%",
        "the other methods",
    ]
    if what.limit:
        handles.append(plt.Line2D([], [], color="0.4", lw=0.8, ls=":"))
        names.append(f"{what.limit:g} GiB")
    panels.flat[-1].legend(handles, names, loc="center left", fontsize=9, frameon=False)
    figure.supxlabel(f"images N ({facts['machine']})", fontsize=9)
    figure.supylabel(what.label, fontsize=9)
    write_figure(figure, what.figure)


def main() -> None:
    facts = json.loads(GROWTH.read_text())
    write_tables(TABLES, facts)
    for what in QUANTITIES:
        draw(facts, what)


if __name__ == "__main__":
    main()
