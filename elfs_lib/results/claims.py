"""The paper's claims one by one: what tables and executed pages show, as rows and sentences.

``every`` is what :func:`elfs_lib.results.tables.result_tables` returns. A difference counts as one
where its 95% interval excludes zero.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
from scipy import stats

from elfs_lib.project import project_root
from elfs_lib.results import executed, sentences
from elfs_lib.results.evaluation import (
    CONFIDENCE,
    display_name,
    listed,
    paired_difference,
    percent,
    points,
)
from elfs_lib.results.page import (
    CONTROLS,
    EASY_CUT,
    HARD_CUT,
    Tables,
    name_of,
    own_pipelines,
    signed,
)
from elfs_lib.results.provenance import WHOLE_PIPELINES
from elfs_lib.results.published import published_accuracy
from elfs_lib.results.verdict import (
    OWN_BETA,
    by_training,
    is_another_search,
    verdict_rows,
)
from elfs_lib.results.words import changed_parameters


def page_of_shift(dataset: str) -> Path:
    """The executed page 4 of a dataset, which may not be there."""
    return project_root() / "book" / "runs" / dataset / "04_distribution_shift.ipynb"


# ------------------------------------------------- do pseudo-labels give usable dynamics?


def shifts(every: Tables) -> pd.DataFrame:
    """``dataset`` and the numbers of :func:`elfs_lib.results.sentences.read_shift`, a row a
    dataset whose page on the shift is executed."""
    rows = []
    for dataset in dict.fromkeys(dataset for dataset, _ in every):
        page = page_of_shift(dataset)
        found = filter(
            None, map(sentences.read_shift, executed.texts(page) if page.exists() else ())
        )
        rows += [{"dataset": display_name(dataset)} | numbers for numbers in found]
    return pd.DataFrame(rows, columns=["dataset", *sentences.SHIFT_NUMBERS])


def dynamics_table(found: pd.DataFrame) -> pd.DataFrame:
    """:func:`shifts` as texts: where pseudo-labels are wrong, and whether scores keep their
    order."""
    return pd.DataFrame(
        {
            "dataset": row.dataset,
            "wrong in the hardest tenth": f"{row.hardest:.0f}%",
            "in the easiest tenth": f"{row.easiest:.0f}%",
            "rank correlation": f"{row.spearman:.2f}",
        }
        for row in found.itertuples()
    )


def dynamics_answer(found: pd.DataFrame) -> str:
    """:func:`shifts` in a sentence."""
    if found.empty:
        return "Not measured yet."
    gather = int((found["hardest"] > found["easiest"]).sum())
    ends = found.loc[[found["spearman"].idxmin(), found["spearman"].idxmax()]]
    low, high = (f"{row.spearman:.2f} ({row.dataset})" for row in ends.itertuples())
    return (
        f"On {gather} of {len(found)} datasets, pseudo-labels are wrong more often in the hardest "
        f"tenth than in the easiest; AUM under pseudo-labels and under true ones have a rank "
        f"correlation of {low} to {high}."
    )


# ---------------------------------------------------------- does their shift do what it says?


def shift_answer(found: pd.DataFrame) -> str:
    """:func:`shifts` in a sentence or two, in points, with 95% intervals over draws of CCS."""
    if found.empty:
        return "Not measured yet."
    ways = {"more": found[found["change"] > 0], "fewer": found[found["change"] <= 0]}
    said = [
        f"{way} easy images on {listed(map(_with_change, own.itertuples()))}"
        for way, own in ways.items()
        if len(own)
    ]
    less = found[found["pruned"] < 0]
    pruned = ", ".join(f"{row.pruned:+.1f}" for row in found.itertuples())
    return (
        f"With pseudo-labels in place of true ones, CCS takes in {', and '.join(said)}. ELFS then "
        f"takes in fewer than CCS on {len(less)} of {len(found)} ({pruned})."
    )


def _with_change(row: Any) -> str:
    within = "one draw" if pd.isna(row.low) else f"{points(row.low)} to {points(row.high)}"
    return f"{row.dataset} ({row.change:+.1f}, {within})"


# ------------------------------------------------------------------- what do the two cuts do?


def cut_steps(every: Tables) -> pd.DataFrame:
    """What the two cuts do to CCS on the same scores, together and each alone, over two or more
    whole pipelines by the datasets' own parameters, as rows of
    :func:`elfs_lib.results.plots.intervals`; a hard cut of nothing (beta 0) is left out."""
    pairs = {"both cuts": ("elfs", CONTROLS[0]), "hard cut": HARD_CUT, "easy cut": EASY_CUT}
    rows = []
    for kind, pair in pairs.items():
        for dataset, table in own_pipelines(every).items():
            if not {*table["method"]}.issuperset(pair):
                continue
            for row in paired_difference(table, *pair, strict=False).itertuples():
                if row.n < 2 or (kind == "hard cut" and not _drops_hard(table, row)):
                    continue
                label = f"{display_name(dataset)}, {percent(row.budget)}"
                rows.append(_step(label, kind, row.difference, row.low, row.high))
    return pd.DataFrame(rows, columns=["label", "kind", "value", "low", "high"])


def _drops_hard(table: pd.DataFrame, pair: Any) -> bool:
    """Whether any run of a pair's first method dropped images at the hard end."""
    own = table[(table["method"] == pair.method) & (table["budget"] == pair.budget)]
    return bool((own["hard_prune_ratio"].astype(float) > 0).any())


def cut_lines(steps: pd.DataFrame) -> list[str]:
    """How often each step of :func:`cut_steps` raised or lowered accuracy, in a sentence each."""
    lines = []
    for kind, own in steps.groupby("kind", sort=False):
        up, down = int((own["low"] > 0).sum()), int((own["high"] < 0).sum())
        lines.append(
            f"{kind[0].upper()}{kind[1:]}: better in {up or 'none'} of {len(own)} comparisons, "
            f"worse in {down or 'none'}, undecided in {len(own) - up - down or 'none'}."
        )
    return lines


# ---------------------------------------------------------- does the search find the right beta?


def beta_lines(chosen: pd.DataFrame) -> list[str]:
    """What pipelines that chose the smallest beta gained over the others of their budget, with
    Welch's 95% interval where both have a spread, as Markdown lines."""
    lines = []
    for dataset, own in chosen.groupby("dataset", sort=False):
        agreed, compared = [], []
        for budget, at in own.groupby("budget"):
            smallest = at["beta"] == at["beta"].min()
            if smallest.all():
                agreed.append(f"{at['beta'].iloc[0]:g} at {percent(budget)}")
                continue
            few, rest = at.loc[smallest, "gain"], at.loc[~smallest, "gain"]
            within = f"{len(few)} against {len(rest)}: too few for an interval"
            if min(len(few), len(rest)) > 1:
                test = stats.ttest_ind(few, rest, equal_var=False)
                low, high = test.confidence_interval(CONFIDENCE)
                within = f"{points(low)} to {points(high)}"
            compared.append(
                f"{few.mean() - rest.mean():+.1f} points at {percent(budget)} ({within})"
            )
        said = [
            f"all pipelines chose {listed(agreed)}" if agreed else "",
            f"against the others, pipelines that chose the smallest β gained {listed(compared)}"
            if compared
            else "",
        ]
        lines.append(f"- {display_name(dataset)}: {'; '.join(filter(None, said))}.")
    return lines


def other_searches(every: Tables) -> pd.DataFrame:
    """ELFS against random and CCS over the whole pipelines whose search is another, and nothing
    else; empty where there are none."""
    rows = []
    for (dataset, setting), table in every.items():
        if not setting.startswith(WHOLE_PIPELINES) or not is_another_search(setting):
            continue
        against = {
            rival: paired_difference(table, "elfs", rival, strict=False).set_index("budget")
            for rival in ("random", CONTROLS[0])
            if {"elfs", rival} <= {*table["method"]}
        }
        for budget, own in table[table["method"] == "elfs"].groupby("budget"):
            rows.append(
                {
                    "pipelines": name_of(dataset, setting),
                    "labelled": percent(budget),
                    "β chosen": ", ".join(f"{beta:g}" for beta in own["hard_prune_ratio"]),
                }
                | {
                    f"ELFS minus {display_name(rival)}": signed(pairs.loc[budget])
                    for rival, pairs in against.items()
                    if budget in pairs.index
                }
            )
    return pd.DataFrame(rows).fillna("")


def measured(name: str) -> pd.DataFrame:
    """A table that a benchmark wrote into ``book/data``, as texts; empty where it has not run."""
    file = project_root() / "book" / "data" / name
    return pd.read_csv(file, dtype=str) if file.exists() else pd.DataFrame()


def measured_by(name: str) -> str:
    """The command that a benchmark's file in ``book/data`` says it was written by, as Markdown."""
    file = project_root() / "book" / "data" / name
    return f"`{json.loads(file.read_text())['command']}`" if file.exists() else "Not measured yet."


def in_hindsight() -> pd.DataFrame:
    """The choices of the search against the best of the betas that were trained, as
    ``benchmarks.search_quality`` wrote them; empty where it has not run."""
    left_out = ["Accuracy at the choice, %", "At the best, %"]
    return measured("search_quality.csv").drop(columns=left_out, errors="ignore")


def hindsight_answer(found: pd.DataFrame) -> str:
    """:func:`in_hindsight` in a sentence."""
    if found.empty:
        return "Not measured yet."
    lost = found["Lost, points"].str.split(" ").str[0].astype(float)
    largest = found["Most lost"].astype(float)
    return (
        f"Of {len(found)} budgets where several β were tried, the search lost nothing against the "
        f"one with the best mean at {int((lost <= 0).sum())}, and {lost.max():.2f} points at most. "
        f"Against the best of its own, a single pipeline lost up to {largest.max():.2f}."
    )


def proxy_answer(found: pd.DataFrame) -> str:
    """What ``benchmarks.compare_proxies`` measured, in a sentence."""
    if found.empty:
        return "Not measured yet."
    cost = found["PFLOP"].astype(float)
    reached = found["ELFS, %"].str.split(" ").str[0].astype(float)
    return (
        f"With {len(found)} proxies that take {cost.min():g} to {cost.max():g} PFLOP, ELFS reaches "
        f"{reached.min():.1f} to {reached.max():.1f}% over {found['Pipelines'].iloc[0]} pipelines; "
        f"the cheapest gives {reached[cost.idxmin()]:.1f}%."
    )


def training_steps(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """:func:`elfs_lib.results.verdict.by_training` as rows of
    :func:`elfs_lib.results.plots.intervals`: fewer than three pipelines have no interval."""
    return pd.DataFrame(
        _step(
            f"{row.network}, {row.steps:,} steps{row.aside}",
            f"{display_name(row.dataset)}, {percent(row.budget)} labelled",
            row.difference,
            *((row.low, row.high) if row.runs > 2 else ()),
        )
        | {"runs": row.runs}
        for row in by_training(rows).itertuples()
    )


def training_answer(drawn: pd.DataFrame) -> str:
    """:func:`training_steps` in a sentence."""
    if drawn.empty:
        return "Not measured yet."
    above, below = int((drawn["low"] > 0).sum()), int((drawn["high"] < 0).sum())
    few, behind = int((drawn["runs"] < 3).sum()), drawn[drawn["value"] <= 0]
    said = (
        f"Of {len(drawn)} ways of training, ELFS is better than random in {above or 'none'}, worse "
        f"in {below or 'none'} and undecided in {len(drawn) - above - below - few or 'none'}"
    )
    said += f"; {few} {'have' if few > 1 else 'has'} fewer than three pipelines" if few else ""
    if behind.empty:
        return f"{said}."
    worst = behind.loc[behind["value"].idxmin()]
    return (
        f"{said}. On average it is behind in {len(behind)}, by {-worst['value']:.1f} points with "
        f"{worst['label']} ({worst['runs']} pipelines)."
    )


def batch_lines(rows: list[dict[str, Any]]) -> list[str]:
    """What random and ELFS reach by the size of the batches, where one network was trained in
    several for as many epochs, beside the paper's two, as Markdown lines."""
    trained = by_training(rows)
    changed = trained["setting"].map(changed_parameters)
    for name in ("batch", "epochs"):  # as objects: with gaps, numbers would become floats
        found = [each.get(f"eval_{name}") for each in changed]
        trained[name] = pd.Series(found, trained.index, dtype=object)
    alike = ["dataset", "budget", "network", "epochs"]
    lines = []
    for (dataset, budget, network, epochs), own in trained.dropna(subset=["batch"]).groupby(alike):
        if own["batch"].nunique() < 2:
            continue
        own = own.sort_values("batch", ascending=False)
        paper = published_accuracy(dataset)
        paper = paper[paper["budget"] == budget].set_index("method")["accuracy"]
        beside = {"random": own["against_accuracy"], "elfs": own["accuracy"]}
        said = (
            f"{display_name(method)} {', '.join(f'{value:.1f}' for value in found)}%"
            + (f" (the paper's: {paper[method]:.1f}%)" if method in paper else "")
            for method, found in beside.items()
        )
        lines.append(
            f"- {display_name(dataset)} at {percent(budget)}, {network} for {epochs} epochs in "
            f"batches of {listed(map(str, own['batch']))}: {'; '.join(said)}."
        )
    return lines


def own_beta_lines(every: Tables) -> list[str]:
    """What ELFS gained over random by the beta of the training that followed, beside what it gained
    by that of the params file's search, where both were measured over the same pipelines and
    differ, as Markdown lines."""
    trained = by_training(verdict_rows(every))
    own = trained["aside"].str.endswith(OWN_BETA)
    trained["aside"] = trained["aside"].str.removesuffix(OWN_BETA)
    trained["pipelines"] = trained["seeds"].map(tuple)
    alike = ["dataset", "budget", "recipe", "steps", "aside", "pipelines"]
    pairs = trained[~own].merge(trained[own], on=alike, suffixes=("", "_own"))
    return [
        f"- {display_name(row.dataset)} at {percent(row.budget)}, {row.network}, {row.steps:,} "
        f"steps{row.aside}: {points(row.difference)} "
        f"({points(row.low)} to {points(row.high)}) with the β of the default search "
        f"({_betas(row.hard_prune_ratios)}), {points(row.difference_own)} "
        f"({points(row.low_own)} to {points(row.high_own)}) with its own "
        f"({_betas(row.hard_prune_ratios_own)}); ELFS itself {_gained(every, row)}."
        for row in pairs[pairs["runs_own"] > 1].itertuples()
    ]


def _gained(every: Tables, row: Any) -> str:
    """ELFS with the beta of its own training minus ELFS with that of the params file's search."""
    tables = (
        every[row.dataset, f"{WHOLE_PIPELINES}, {setting}" if setting else WHOLE_PIPELINES]
        for setting in (row.setting_own, row.setting)
    )
    own, usual = (t[(t["method"] == "elfs") & (t["budget"] == row.budget)] for t in tables)
    (found,) = paired_difference(
        pd.concat([own.assign(method="own"), usual]), "own", "elfs"
    ).itertuples()
    return signed(found)


# ------------------------------------------------------------- what a small run cannot show


def limits_of(table: pd.DataFrame, *, train: int, test: int) -> list[str]:
    """How small a difference between ELFS and random sampling a run could see, at each budget, as
    Markdown lines.

    Args:
        table: A results table of one dataset and setting, with both methods.
        train: Images to choose from.
        test: Images that accuracy is measured on.
    """
    lines = [f"- Accuracy is of {test:,} test images: one of them is {100 / test:.2f} points."]
    for row in paired_difference(table, "elfs", "random").itertuples():
        drawn = table[(table["budget"] == row.budget) & (table["method"] == "random")]
        accuracy, count = drawn["accuracy"], int(drawn["count"].iloc[0])
        line = f"- With {count:,} labels of {train:,} images, "
        if row.n < 2 or pd.isna(row.low):
            lines.append(f"{line}{row.n} seed gives no interval.")
            continue
        lines.append(
            f"{line}random lists differ among themselves by a standard deviation of "
            f"{accuracy.std():.1f} points, and over {row.n} seeds ELFS minus random is "
            f"{row.difference:+.1f} points, 95% interval {row.low:+.1f} to {row.high:+.1f}: a true "
            f"difference of {(row.high - row.low) / 2:.1f} points would be missed half the time."
        )
    return lines


# ----------------------------------------------------------------------------------------- helpers


def _betas(ratios: list[float]) -> str:
    return ", ".join(f"{ratio:g}" for ratio in ratios)


def _step(
    label: str, kind: str, value: float, low: float = float("nan"), high: float = float("nan")
) -> dict[str, Any]:
    return {"label": label, "kind": kind, "value": value, "low": low, "high": high}
