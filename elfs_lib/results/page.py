"""The tables and sentences of the results page, from the tables of :mod:`elfs_lib.results.tables`.

``every`` is what :func:`elfs_lib.results.tables.result_tables` returns: tables by dataset and
setting, of which the empty setting is the params file's own. Frames hold texts, as the page shows
them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from elfs_lib.results import evaluation
from elfs_lib.results.evaluation import (
    display_name,
    paired_difference,
    percent,
    points,
    verdicts,
)
from elfs_lib.results.provenance import WHOLE_PIPELINES
from elfs_lib.results.verdict import by_pseudo_labels, verdict_rows
from elfs_lib.results.words import duration, setting_in_words, spanned
from elfs_lib.selection import METHODS
from elfs_lib.training.recipes import is_current

Tables = Mapping[tuple[str, str], pd.DataFrame]

SUPERVISED = [name for name, method in METHODS.items() if method.supervised]
# Stratified on the same scores: without a hard cut, and with that of ELFS.
CONTROLS = ("ccs_pseudo", "ccs_pseudo_beta")
#: What tells the two cuts of double-end pruning apart: who is compared with whom.
HARD_CUT = CONTROLS[::-1]
EASY_CUT = ("elfs", CONTROLS[1])


def words_of(setting: str) -> list[str]:
    """What a setting does otherwise than its params file, in words; empty if nothing."""
    changed = setting_in_words(setting.removeprefix(WHOLE_PIPELINES).removeprefix(", "))
    return [changed] if changed else []


def name_of(dataset: str, setting: str) -> str:
    """A dataset for people, with what its pipelines or runs do otherwise than its params file."""
    return ", ".join([display_name(dataset), *words_of(setting)])


def own_settings(every: Tables) -> dict[str, pd.DataFrame]:
    """The tables of the params files' own settings, by dataset."""
    return {dataset: table for (dataset, setting), table in every.items() if not setting}


def glance(every: Tables) -> pd.DataFrame:
    """ELFS against random, a row a dataset and budget."""
    return pd.DataFrame(
        {"dataset": display_name(dataset), "budget": percent(row.budget)}
        | {"random (%)": f"{row.rival_mean:.1f}", "ELFS (%)": f"{row.method_mean:.1f}"}
        | _difference(row)
        | {"seeds": row.n}
        for dataset, table in own_settings(every).items()
        for row in paired_difference(table, "elfs", "random").itertuples()
    )


def own_pipelines(every: Tables) -> dict[str, pd.DataFrame]:
    """The tables of whole pipelines by the datasets' own parameters, by dataset."""
    return {name: table for (name, setting), table in every.items() if setting == WHOLE_PIPELINES}


def whole_pipelines(every: Tables) -> pd.DataFrame:
    """ELFS against each other method over two or more whole pipelines."""
    rows = []
    for (dataset, setting), table in every.items():
        rivals = [method for method in METHODS if method in {*table["method"]} - {"elfs"}]
        if not setting.startswith(WHOLE_PIPELINES) or "elfs" not in {*table["method"]}:
            continue
        name = name_of(dataset, setting)
        pairs = (paired_difference(table, "elfs", rival, strict=False) for rival in rivals)
        for row in (row for pair in pairs for row in pair[pair["n"] > 1].itertuples()):
            own = table[(table["method"] == "elfs") & (table["budget"] == row.budget)]
            betas = own.loc[own["seed"].isin(row.seeds), "hard_prune_ratio"].value_counts()
            rows.append(
                {"dataset": name, "budget": percent(row.budget)}
                | _baseline(row)
                | _difference(row)
                | {"runs": row.n}
                | {"β chosen": ", ".join(f"{beta:g} ({n})" for beta, n in betas.items())}
            )
    return pd.DataFrame(rows)


def chosen_betas(every: Tables) -> pd.DataFrame:
    """``dataset``, ``budget``, ``beta``, ``accuracy`` in percent and ``gain`` over random in
    points, a row for each whole pipeline of a dataset's own parameters; empty where there are
    none."""
    rows = []
    for dataset, table in own_pipelines(every).items():
        if not {"elfs", "random"} <= {*table["method"]}:
            continue
        for budget, at in table.groupby("budget"):
            drawn = at[at["method"] == "random"].set_index("seed")["accuracy"]
            own = at[at["method"] == "elfs"].set_index("seed")
            own = own[own.index.isin(drawn.index)]
            rows += [
                {"dataset": dataset, "budget": budget, "beta": float(beta)}
                | {"accuracy": accuracy, "gain": accuracy - base}
                for beta, accuracy, base in zip(
                    own["hard_prune_ratio"], own["accuracy"], drawn[own.index], strict=True
                )
            ]
    return pd.DataFrame(rows, columns=["dataset", "budget", "beta", "accuracy", "gain"])


def by_beta(every: Tables) -> pd.DataFrame:
    """:func:`chosen_betas` as texts, a row for each beta that was chosen at a budget."""
    return pd.DataFrame(
        {
            "dataset": display_name(dataset),
            "budget": percent(budget),
            "β chosen": f"{beta:g}",
            "pipelines": len(own),
            "ELFS (%)": f"{own['accuracy'].mean():.1f}",
            "minus random": f"{own['gain'].mean():+.1f}",
        }
        for (dataset, budget), at in chosen_betas(every).groupby(["dataset", "budget"], sort=False)
        for beta, own in at.groupby("beta")
    )


def gains(every: Tables) -> pd.DataFrame:
    """:func:`elfs_lib.results.verdict.by_pseudo_labels` of these tables."""
    return by_pseudo_labels(verdict_rows(every))


def as_gains(curve: pd.DataFrame) -> pd.DataFrame:
    """:func:`gains` as texts."""
    return pd.DataFrame(
        {"dataset": display_name(row.dataset), "budget": percent(row.budget)}
        | {"method": display_name(row.method), "pipelines": _ways(row)}
        | {"pseudo-labels right (%)": f"{row.pseudo_label_accuracy:.1f}"}
        | {"minus random": signed(row), "runs": row.n}
        for row in curve.rename(columns={"runs": "n"}).itertuples()
    )


def _ways(row: Any) -> str:
    if row.method == "elfs_true":
        return "true labels in their place"
    return setting_in_words(row.setting) or "the params file's own"


def in_words(every: Tables) -> list[str]:
    """What the tables show, as Markdown lines, dataset by dataset."""
    lines = []
    for dataset, table in own_settings(every).items():
        lines.append(f"**{display_name(dataset)}.**")
        measured = {*table["method"]}
        for rival in ("random", *(control for control in CONTROLS if control in measured)):
            lines += [f"- {line}" for line in verdicts(paired_difference(table, "elfs", rival))]
        for row in evaluation.best_label_free(table, SUPERVISED).itertuples():
            backed = "supports it" if row.supported else "does not support it"
            backed = f"the interval of their difference {backed}" if row.n > 1 else "one seed each"
            lines.append(
                f"- At {percent(row.budget)}, {display_name(row.method)} has the highest mean of "
                f"{_methods_at(table, row.budget, supervised=False)} label-free methods, followed "
                f"by {display_name(row.rival)}; {backed}."
            )
        for row in evaluation.best_supervised(table, SUPERVISED).itertuples():
            at = table[table["budget"] == row.budget]
            drawn = at.loc[at["method"] == "random", "accuracy"].mean()
            lines.append(
                f"- The best mean at {percent(row.budget)} of "
                f"{_methods_at(table, row.budget, supervised=True)} methods that select with "
                f"labels is that of {display_name(row.method)}, {row.mean:.1f}% (random: "
                f"{drawn:.1f}%)."
            )
        lines.append("")
    return lines


def against_best_baseline(every: Tables) -> pd.DataFrame:
    """ELFS against the label-free method with the best mean at each budget, its variants left
    out."""
    rows = []
    for dataset, table in own_settings(every).items():
        left_out = table["method"].isin(SUPERVISED) | table["method"].str.startswith("elfs")
        others = table[~left_out]
        for best in evaluation.best_label_free(others, SUPERVISED).itertuples():
            at = table[table["budget"] == best.budget]
            if "elfs" not in {*at["method"]}:
                continue
            row = paired_difference(at, "elfs", best.method).iloc[0]
            rows.append(
                {"dataset": display_name(dataset), "budget": percent(row.budget)}
                | _baseline(row)
                | _difference(row)
                | {
                    "of baselines": _methods_at(others, row.budget, supervised=False),
                    "seeds": row.n,
                }
            )
    return pd.DataFrame(rows)


def all_means(dataset: str, table: pd.DataFrame) -> str:
    """Markdown: mean and deviation of every method at every budget, in the registry's order, with
    the number of runs in brackets where there are several, but not as many as in most cells."""
    summary = evaluation.summarise(table)
    usual = summary.loc[summary["n"] > 1, "n"].mode().max()
    best = evaluation.best_label_free(table, SUPERVISED)
    bold = {(row.method, row.budget) for row in best.itertuples() if row.supported}
    cells: dict[str, dict[float, str]] = {}
    for row in summary.itertuples():
        text = f"{row.mean:.1f} ± {row.sd:.1f}" if row.n > 1 else f"{row.mean:.1f}"
        text = f"**{text}**" if (row.method, row.budget) in bold else text
        text += f" ({row.n})" if row.n not in (1, usual) else ""
        cells.setdefault(row.method, {})[row.budget] = text
    budgets = sorted(summary["budget"].unique())
    lines = [[display_name(dataset), *map(percent, budgets)], ["---"] + ["---:"] * len(budgets)]
    for method in (method for method in METHODS if method in cells):
        seen = " (all labels)" if method in SUPERVISED else ""
        lines.append([display_name(method) + seen, *(cells[method].get(b, "") for b in budgets)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def cuts(every: Tables) -> pd.DataFrame:
    """What each cut of double-end pruning does to CCS on the same scores, on one coreset and over
    two or more whole pipelines; empty where no table holds both controls."""
    rows = []
    for (dataset, setting), table in every.items():
        whole = setting.startswith(WHOLE_PIPELINES)
        if not {"elfs", *CONTROLS} <= {*table["method"]}:
            continue
        found = (paired_difference(table, *p, strict=not whole) for p in (HARD_CUT, EASY_CUT))
        fewest = 2 if whole else 1
        hard, easy = (pairs[pairs["n"] >= fewest].set_index("budget") for pairs in found)
        for budget in hard.index.intersection(easy.index):
            one, two = hard.loc[budget], easy.loc[budget]
            own = table[(table["method"] == HARD_CUT[0]) & (table["budget"] == budget)]
            betas = own.sort_values("seed")["hard_prune_ratio"]
            rows.append(
                {
                    "dataset": name_of(dataset, setting) + ", whole pipelines" * whole,
                    "budget": percent(budget),
                    "CCS (%)": f"{one.rival_mean:.1f}",
                    "after the hard cut (%)": f"{one.method_mean:.1f}",
                    "ELFS (%)": f"{two.method_mean:.1f}",
                    "hard cut": signed(one),
                    "then the easy cut": signed(two),
                    "seeds": min(one.n, two.n),
                    "β": ", ".join(f"{beta:g}" for beta in (betas if whole else betas[:1])),
                }
            )
    return pd.DataFrame(rows)


def cost_of_pseudo_labels(every: Tables) -> pd.DataFrame:
    """Double-end pruning by true labels minus ELFS; empty where no table holds it."""
    rows = []
    for dataset, table in own_settings(every).items():
        if "elfs_true" not in {*table["method"]}:
            continue
        for row in paired_difference(table, "elfs_true", "elfs").itertuples():
            at = table[table["budget"] == row.budget].groupby("method")["hard_prune_ratio"].first()
            rows.append(
                {"dataset": display_name(dataset), "budget": percent(row.budget)}
                | {"true labels (%)": f"{row.method_mean:.1f}", "ELFS (%)": f"{row.rival_mean:.1f}"}
                | _difference(row, "cost")
                | {"β, true": f"{at['elfs_true']:g}", "β, ELFS": f"{at['elfs']:g}"}
                | {"seeds": row.n}
            )
    return pd.DataFrame(rows)


def ablations(every: Tables) -> pd.DataFrame:
    """ELFS under other settings, against its own and against random under the same one.

    Where the training of the coreset is another, or of another revision of the recipe, it is not
    compared with the unchanged ELFS: that would measure the training.
    """
    rows = []
    usual = own_settings(every)
    for (dataset, setting), table in every.items():
        other = setting and not setting.startswith(WHOLE_PIPELINES) and dataset in usual
        if not other or not {"elfs", "random"} <= {*table["method"]}:
            continue
        changed = table[table["method"] == "elfs"].assign(method="changed")
        unchanged = usual[dataset][usual[dataset]["method"] == "elfs"]
        effects = paired_difference(
            pd.concat([changed, unchanged]), "changed", "elfs", strict=False
        ).set_index("budget")
        for row in paired_difference(table, "elfs", "random").itertuples():
            alike = row.budget in effects.index and "eval_" not in setting
            steps = table.loc[table["budget"] == row.budget, "steps"].iloc[0]
            rows.append(
                {
                    "dataset": display_name(dataset),
                    "what differs": setting_in_words(setting),
                    "budget": percent(row.budget),
                    "steps": f"{steps:,}",
                    "ELFS (%)": f"{row.method_mean:.1f}",
                    "minus unchanged ELFS": signed(effects.loc[row.budget]) if alike else "",
                    "minus random": signed(row),
                    "seeds": row.n,
                }
            )
    return pd.DataFrame(rows)


def methods() -> str:
    """Markdown: every method of the registry."""
    lines = ["| name | what it does | picks | labels seen | source |", "| --- " * 5 + "|"]
    for name, method in METHODS.items():
        source = "" if name == "random" else f"{{cite:t}}`{method.citation}`"
        seen = "all" if method.supervised else "none"
        what = f"{method.summary}: {method.equation}"
        cells = (name, what, method.polarity, seen, source)
        # the bars of a norm would end a cell
        whole = [cell.replace("|", r"\|") for cell in cells]
        lines.append(f"| {' | '.join(whole)} |")
    return "\n".join(lines)


def reproduce(every: Tables) -> list[str]:
    """What made each table, as Markdown lines: command, seeds, recipe, cost, device, versions."""
    return [
        f"- {name_of(dataset, setting)}"
        f"{f', {WHOLE_PIPELINES}' * setting.startswith(WHOLE_PIPELINES)}: "
        f"{_listed(f'`{command}`' for command in table['command'].unique())}, seeds "
        f"{', '.join(map(str, sorted(table['seed'].unique())))}; recipe "
        f"{_listed(map(_recipe, table['recipe'].unique()))}, "
        f"{spanned(table['steps'], '{:,}'.format)} steps each; "
        f"{table['train_flops'].sum() / 1e12:.3g} TFLOP in "
        f"{duration(table['seconds'].sum())} of training on "
        f"{', '.join(sorted(table['device'].unique()))}; "
        f"{_listed(table['versions'].dropna().unique())}."
        for (dataset, setting), table in every.items()
    ]


def _baseline(row: Any) -> dict[str, str]:
    return {
        "baseline": display_name(row.rival),
        "baseline (%)": f"{row.rival_mean:.1f}",
        "ELFS (%)": f"{row.method_mean:.1f}",
    }


def _difference(row: Any, name: str = "difference") -> dict[str, str]:
    return {name: f"{row.difference:+.1f}", "95% interval": _interval(row)}


def _interval(row: Any) -> str:
    if row.n == 1:
        return "one seed"
    # equal differences, for example of two methods that chose the same images
    if pd.isna(row.low):
        return f"in each of {row.n}"
    return f"{points(row.low)} to {points(row.high)}"


def signed(row: Any) -> str:
    """A difference in points with its interval."""
    return f"{row.difference:+.1f} ({_interval(row)})"


def _methods_at(table: pd.DataFrame, budget: float, *, supervised: bool) -> int:
    """How many methods that see labels, or do not, were measured at a budget."""
    at = table[(table["budget"] == budget) & (table["method"].isin(SUPERVISED) == supervised)]
    return at["method"].nunique()


def _recipe(key: str) -> str:
    note = "" if is_current(key) else " (an earlier revision: the command may give other numbers)"
    return f"`{key}`{note}"


def _listed(texts: Iterator[str]) -> str:
    return " and ".join(texts)
