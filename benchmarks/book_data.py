"""Tables and figures of the book's pages on speed and scale, written in one way."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

DATA = Path(__file__).resolve().parent.parent / "book" / "data"
Tables = Mapping[str, Callable[[dict], pd.DataFrame]]

#: Decorates what draws a figure: its colours are told apart by the colour-blind too.
coloured = plt.style.context("tableau-colorblind10")


def write_tables(tables: Tables, facts: dict, folder: Path = DATA) -> dict[str, pd.DataFrame]:
    """Make each table from what was measured, and write it as CSV under its name."""
    made = {name: make(facts) for name, make in tables.items()}
    for name, table in made.items():
        table.to_csv(folder / name, index=False, lineterminator="\n")
    return made


def write_figure(figure: Figure, name: str, folder: Path = DATA) -> None:
    """Write an SVG that is the same byte for byte each time, and close the figure."""
    with plt.rc_context({"svg.hashsalt": name, "svg.fonttype": "none"}):
        figure.savefig(folder / name, format="svg", metadata={"Date": None})
    plt.close(figure)
