"""The verdict in sentences and pictures, as README and the results page have it.

``rows`` are those of :func:`elfs_lib.results.verdict.verdict_rows`.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import pandas as pd

from elfs_lib.artifacts import write_text_atomic
from elfs_lib.errors import ElfsError
from elfs_lib.results import executed, plots
from elfs_lib.results.evaluation import display_name, listed, percent, points
from elfs_lib.results.low_budget import ADVICE, AS_RANDOM
from elfs_lib.results.verdict import (
    VERDICT_COLUMNS,
    by_pseudo_labels,
    by_search,
    by_training,
    is_another_method,
    of_own_pipelines,
)
from elfs_lib.results.words import setting_in_words, spanned

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BEGIN, END = "<!-- written by elfs verdict -->", "<!-- end of what elfs verdict writes -->"


def answer_table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Whole pipelines by the datasets' own parameters as texts, ``n`` of them in a row. The digits,
    which every run makes anew, are left out."""
    found = of_own_pipelines(rows)
    lines = []
    for (dataset, budget), pair in found.groupby(["dataset", "budget"], sort=False):
        by = pair.set_index(["method", "against"])
        if ("elfs", "random") not in by.index:
            continue
        row = by.loc[("elfs", "random")]
        control = by["accuracy"].get(("ccs_pseudo", "random"))
        lines.append(
            {
                "dataset": display_name(dataset),
                "labelled": percent(budget),
                "random (%)": f"{row['against_accuracy']:.1f}",
                "CCS pseudo (%)": "" if control is None else f"{control:.1f}",
                "ELFS (%)": f"{row['accuracy']:.1f}",
                "ELFS minus random (95% interval)": f"{points(row['difference'])} "
                f"({points(row['low'])} to {points(row['high'])})",
                "n": str(row["runs"]),
            }
        )
    return pd.DataFrame(lines)


def headlines(rows: list[dict[str, Any]]) -> list[str]:
    """The verdict as Markdown lines: over whole pipelines by the datasets' own parameters, how
    often and where ELFS is ahead of a rival, behind it, or neither, and which other methods beat
    it."""
    own = of_own_pipelines(rows)
    if _against_others(own).empty:
        return []
    return [
        f"- **In short**: {_in_short(own)}.",
        *(
            f"- **{display_name(dataset)}**{_known_right(of_one)}: "
            f"{'; '.join([*_claims(of_one), *beaten_by(rows, dataset)])}."
            for dataset, of_one in own.groupby("dataset", sort=False)
        ),
    ]


def in_words(rows: list[dict[str, Any]]) -> list[str]:
    """What is measured, as Markdown lines: :func:`headlines`; the gain by accuracy of the
    pseudo-labels, by the training of the final models and by the search; and what to take below
    the labels a class that ELFS needs."""
    lines = headlines(rows)
    lines += curve_lines(by_pseudo_labels(rows))
    lines += training_lines(by_training(rows)) + search_lines(by_search(rows))
    taken = (
        f"{display_name(method)} below {end}" if not start else f"then {display_name(method)}"
        for (start, method), (end, _) in pairwise(ADVICE)
    )
    start, last = ADVICE[-1]
    lines.append(
        f"- **Few labels per class**: `elfs select` takes {', '.join(taken)}, {display_name(last)} "
        f"from {start}; {AS_RANDOM} to {start} was not measured."
    )
    return lines


def _known_right(rows: pd.DataFrame) -> str:
    """How many pseudo-labels ELFS's pipelines had right, in brackets, where that is known."""
    right = rows.loc[rows["method"] == "elfs", "pseudo_label_accuracy"].astype(float).mean()
    return "" if pd.isna(right) else f" (pseudo-labels {right:.0f}% right)"


def beaten_by(rows: list[dict[str, Any]], dataset: str) -> list[str]:
    """Which other methods that see no label beat ELFS by a dataset's own parameters, in a clause,
    or none where none was measured: over whole pipelines where two or more were, else on the
    coresets of one pipeline."""
    frame = pd.DataFrame(rows, columns=[*VERDICT_COLUMNS])
    others = (frame["method"] == "elfs") & frame["against"].map(is_another_method).astype(bool)
    own = (frame["setting"] == "") & (frame["runs"] > 1) & (frame["dataset"] == dataset)
    measured = frame[others & own]
    if measured.empty:
        return []
    whole = measured["whole_pipelines"].astype(bool)
    shown = measured[whole] if whole.any() else measured
    on = "" if whole.any() else "; on one pipeline's pseudo-labels"
    counts, who = shown.groupby("budget")["against"].nunique(), []
    for rival, at in shown[shown["high"].astype(float) < 0].groupby("against"):
        by = (f"{percent(row.budget)} (by {-row.difference:.1f})" for row in at.itertuples())
        who.append(f"{display_name(rival)} at {listed(by)}")
    better = f"{listed(who)} {'are' if len(who) > 1 else 'is'}" if who else "none is"
    tried = (
        f"{count} at {listed(map(percent, alike.index))}"
        for count, alike in counts.groupby(counts, sort=False)
    )
    return [f"of other label-free methods ({', '.join(tried)}{on}), {better} better"]


def curve_lines(curve: pd.DataFrame) -> list[str]:
    """ELFS's gain by accuracy of the pseudo-labels as a Markdown line: at each dataset's smallest
    budget, and in the same order at the others; in bold where the interval excludes zero."""
    said, trained = [], ["dataset", "recipe", "steps"]
    for (dataset, *_), alike in curve[curve["method"] != "ccs_pseudo"].groupby(trained):
        (budget, first), *others = alike.groupby("budget")
        gained = (
            f"{_bold_if_clear(row)} with {_right(row.pseudo_label_accuracy)}"
            for row in first.itertuples()
        )
        rest = (
            f", at {percent(at)} {listed(map(_bold_if_clear, own.itertuples()))}"
            for at, own in others
        )
        said.append(f"{display_name(dataset)} at {percent(budget)} {listed(gained)}{''.join(rest)}")
    line = f"- **By share of pseudo-labels right**, ELFS minus random: {'; '.join(said)}."
    return [line] if said else []


def _right(accuracy: float) -> str:
    return "true labels" if accuracy == 100 else f"{accuracy:.0f}%"


def training_lines(trained: pd.DataFrame) -> list[str]:
    """:func:`by_training` as Markdown lines, in bold where the interval excludes zero; of trainings
    that fewer than three pipelines had, the range."""
    lines = []
    for (dataset, budget), own in trained.groupby(["dataset", "budget"]):
        several = own["runs"] > 2
        said = [
            f"{network} "
            + listed(
                f"{_bold_if_clear(row)} after {row.steps:,}{row.aside}"
                for row in alike.itertuples()
            )
            for network, alike in own[several].groupby("network", sort=False)
        ]
        said += [
            f"on fewer than three pipelines {network} {spanned(alike['difference'], points)} after "
            f"{spanned(alike['steps'], '{:,}'.format)}"
            for network, alike in own[~several].groupby("network", sort=False)
        ]
        lines.append(
            f"- **By training of the final models**, {display_name(dataset)} at "
            f"{percent(budget)}, ELFS minus random by steps: {'; '.join(said)}."
        )
    return lines


def search_lines(searched: pd.DataFrame) -> list[str]:
    """:func:`elfs_lib.results.verdict.by_search` as a Markdown line: at how many budgets ELFS was
    better than random and CCS, and where worse."""
    said = []
    for (dataset, setting), own in searched.groupby(["dataset", "setting"], sort=False):
        models = setting_in_words(setting).removeprefix("search models: ")
        counted = (_counted(*each) for each in own.groupby("against", sort=False))
        said.append(
            f"{display_name(dataset)}, {models}, of {own['budget'].nunique()} budgets better "
            f"than {', than '.join(counted)}"
        )
    line = f"- **By another search for β**: {'; '.join(said)}."
    return [line] if said else []


def _counted(rival: str, own: pd.DataFrame) -> str:
    better, worse = own["low"].astype(float) > 0, own["high"].astype(float) < 0
    where = f" ({listed(map(percent, own.loc[better, 'budget']))})" if better.any() else ""
    behind = f" and worse at {worse.sum()}" if worse.any() else ""
    return f"{_RIVALS[rival]} at {better.sum() or 'none'}{where}{behind}"


def _bold_if_clear(row: Any) -> str:
    clear = row.low > 0 or row.high < 0
    return f"**{points(row.difference)}**" if clear else points(row.difference)


_RIVALS = {
    "random": "random",
    "ccs_pseudo": "CCS",
}


def _against_others(rows: pd.DataFrame) -> pd.DataFrame:
    """ELFS against what whole pipelines are compared with on every page."""
    return rows[(rows["method"] == "elfs") & rows["against"].isin(_RIVALS)]


def _in_short(rows: pd.DataFrame) -> str:
    """ELFS against each rival: at how many budgets of all datasets it is ahead, and behind."""
    clauses, rows = [], _against_others(rows)
    for rival, own in rows.groupby("against", sort=False):
        better, worse = (own["low"].astype(float) > 0).sum(), (own["high"].astype(float) < 0).sum()
        clauses.append(
            f"better than {_RIVALS[rival]} at {better} of {len(own)} budgets, worse at "
            f"{worse or 'none'}"
        )
    fewest, most = rows["runs"].min(), rows["runs"].max()
    runs = fewest if fewest == most else f"{fewest} to {most}"
    return (
        f"over {runs} whole pipelines on each of {rows['dataset'].nunique()} datasets, ELFS is "
        f"{'; '.join(clauses)}"
    )


def _claims(rows: pd.DataFrame) -> list[str]:
    """ELFS against each rival in one clause: where its interval lies above zero, where below."""
    clauses = []
    for rival, own in _against_others(rows).groupby("against", sort=False):
        low, high = own["low"].astype(float), own["high"].astype(float)
        parts = {
            "better at": own[low > 0],
            "worse at": own[high < 0],
            "undecided at": own[~((low > 0) | (high < 0))],
        }
        said = [
            f"{words} {listed(map(_with_size, part.sort_values('budget').itertuples()))}"
            for words, part in parts.items()
            if len(part)
        ]
        clauses.append(f"against {_RIVALS[rival]}: {', '.join(said)}")
    return clauses


def _with_size(row: Any) -> str:
    """A budget and the difference there, in points."""
    return f"{percent(row.budget)} ({points(row.difference)})"


def gain_figure(rows: list[dict[str, Any]]) -> Figure:
    """What ELFS, and CCS on the same pseudo-labels, gain over random at each budget of whole
    pipelines, a panel a dataset.

    Raises:
        ElfsError: if there are none.
    """
    found = of_own_pipelines(rows)
    gains = (found["against"] == "random") & found["method"].isin(["elfs", "ccs_pseudo"])
    return plots.gain_by_budget(found[gains])


def write_pictures(rows: list[dict[str, Any]], folder: Path, notebook: Path) -> list[Path]:
    """Write the README's pictures: ``gain.svg``, of :func:`gain_figure`, and ``coreset.png``, the
    images that ELFS keeps and leaves out, as an executed notebook 05 shows them.

    Raises:
        ElfsError: if the notebook has no such grid of images.
    """
    gain, grid = folder / "gain.svg", folder / "coreset.png"
    grid.write_bytes(executed.picture(notebook, "plots.image_grid"))
    with plt.rc_context({"svg.hashsalt": gain.name, "svg.fonttype": "none"}):
        figure = gain_figure(rows)
        figure.savefig(gain, format="svg", metadata={"Date": None})
    plt.close(figure)
    return [gain, grid]


def update_readme(rows: list[dict[str, Any]], readme: Path) -> None:
    """Put :func:`in_words` between the two marks of a README.

    Raises:
        ElfsError: if it has no marks.
    """
    text = readme.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ElfsError(f"{readme} has no {BEGIN} and {END} to write between: put them in.")
    said = "\n".join(in_words(rows))
    write_text_atomic(readme, f"{before}{BEGIN}\n{said}\n{END}{after}")
