"""From the accuracies of single trainings to statements that the numbers support.

A results table has one row per training: see :data:`RESULT_COLUMNS`. Comparisons are paired
over seeds, since a seed fixes the initial weights (but for a whitening layer that is fitted on the
coreset) and the order of training for every method. It also draws the coresets of methods that
draw, as random does; that of ELFS is the same for all seeds, so an interval is over trainings of
that coreset; only in tables of whole pipelines is it over these.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from elfs_lib.errors import ElfsError

#: The columns of a results table and what they hold. The first six are required.
RESULT_COLUMNS: dict[str, str] = {
    "dataset": "name of the dataset",
    "method": "name of the selection method",
    "budget": "share of the training set that was labelled, in (0, 1]",
    "count": "images in the coreset",
    "seed": "seed of selection and training",
    "accuracy": "test accuracy after the last step, in percent, 0 to 100",
    "steps": "optimiser steps of the training",
    "recipe": "name of the training recipe, with its revision after the first",
    "hard_prune_ratio": "share dropped at the hard end (beta); empty where a method has none",
    "pseudo_label_accuracy": "pseudo-labels right under the best matching, in percent; empty where "
    "the method reads none",
    "seconds": "wall time of the training",
    "device": "hardware that trained",
    "train_flops": "floating-point operations of the training",
    "versions": "of the packages that trained",
}
REQUIRED = tuple(RESULT_COLUMNS)[:6]
CONFIDENCE = 0.95

_SPELLED = {
    "elfs": "ELFS",
    "ccs": "CCS",
    "aum": "AUM",
    "el2n": "EL2N",
    "dual": "DUAL",
    "d2": "D2",
    "badge": "BADGE",
    "zcore": "ZCore",
    "typiclust": "TypiClust",
    "prob_cover": "ProbCover",
    "max_herding": "MaxHerding",
    "kmeans_nearest": "K-means nearest",
    "usl": "USL",
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "imagenet": "ImageNet",
    "stl10": "STL-10",
    "svhn": "SVHN",
    "fashion_mnist": "Fashion-MNIST",
}


def display_name(name: str) -> str:
    """Spell a method or dataset name for people: ``ccs_pseudo`` becomes ``CCS pseudo``."""
    if name in _SPELLED:
        return _SPELLED[name]
    words = " ".join(_SPELLED.get(word, word) for word in name.split("_"))
    words = words.replace("k center", "k-center")
    return words if any(c.isupper() for c in words.split(" ")[0]) else words[:1].upper() + words[1:]


def percent(share: float) -> str:
    """A share in [0, 1] as people write it: 0.1 becomes "10%"."""
    return f"{100 * share:.3g}%"


def points(value: float) -> str:
    """A signed end of an interval in points: 1.2 becomes "+1.2", with a digit more where one would
    not show on which side of zero it lies."""
    return f"{value:+.1f}" if abs(value) >= 0.05 else f"{value:+.2f}"


def listed(parts: Iterable[str]) -> str:
    """Words in a row, the last after "and"; at least one."""
    *first, last = parts
    return f"{', '.join(first)} and {last}" if first else last


def results_table(rows: pd.DataFrame | Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Check rows of single trainings and put them in one table.

    Args:
        rows: A frame or mappings with at least the first six of :data:`RESULT_COLUMNS`. Further
            columns are kept.

    Returns:
        Frame sorted by dataset, budget, method and seed; missing optional columns are added empty.

    Raises:
        ElfsError: if there are no rows, a required column is missing or empty, a value is outside
            its range, or one training appears twice.
    """
    table = pd.DataFrame(rows) if isinstance(rows, pd.DataFrame) else pd.DataFrame(list(rows))
    if table.empty:
        raise ElfsError("The results table is empty: run the evaluation first.")
    missing = [name for name in REQUIRED if name not in table or table[name].isna().any()]
    if missing:
        raise ElfsError(f"The results table lacks values for {', '.join(missing)}: fill them in.")
    # 1 - 0.9 and 0.1 are the same budget, whichever way the caller computed it.
    table = table.assign(budget=table["budget"].astype(float).round(9))
    if not ((table["budget"] > 0) & (table["budget"] <= 1)).all():
        raise ElfsError("A budget in the results is outside (0, 1]: give it as a share.")
    if not table["accuracy"].between(0, 100).all():
        raise ElfsError("An accuracy in the results is outside 0 to 100: give it in percent.")
    key = ["dataset", "budget", "method", "seed"]
    twice = table[table.duplicated(key)]
    if len(twice):
        row = twice.iloc[0]
        raise ElfsError(
            f"The results hold {row['method']!r} at budget {row['budget']:g} with seed "
            f"{row['seed']} twice: keep one recipe and one number of steps."
        )
    for name in RESULT_COLUMNS:
        if name not in table:
            table[name] = None
    rest = [name for name in table if name not in RESULT_COLUMNS]
    return table.sort_values(key)[[*RESULT_COLUMNS, *rest]].reset_index(drop=True)


def summarise(results: pd.DataFrame) -> pd.DataFrame:
    """Mean and spread over seeds.

    Args:
        results: A results table.

    Returns:
        One row per dataset, method and budget: ``count``, ``n`` (seeds), ``mean`` in percent and
        ``sd``, the sample standard deviation in points, NaN with one seed.

    Raises:
        ElfsError: as :func:`results_table`.
    """
    groups = results_table(results).groupby(["dataset", "method", "budget"], sort=False)
    return groups.agg(
        count=("count", "first"),
        n=("accuracy", "size"),
        mean=("accuracy", "mean"),
        sd=("accuracy", "std"),
    ).reset_index()


def paired_difference(
    results: pd.DataFrame, method: str, rival: str, *, strict: bool = True
) -> pd.DataFrame:
    """Accuracy of one method minus another, seed by seed, with the 95% t-interval.

    It assumes normal differences; with as few seeds as here the bootstrap would be too narrow.
    Where all differences are equal the spread cannot be estimated from them, so the interval is NaN
    rather than of width zero.

    Args:
        results: A results table.
        method: Name of the method.
        rival: Name of the method it is compared with.
        strict: Whether to raise where they share no seed; else there are no rows.

    Returns:
        One row per dataset and budget where both methods share a seed and recipe: ``dataset``,
        ``budget``, ``method``, ``rival``, ``seeds`` (those shared, ascending), ``n`` (how many),
        ``method_mean``, ``rival_mean``, ``difference``, ``sd``, ``low`` and ``high`` (95%
        t-interval).

    Raises:
        ElfsError: if a method is not in the results or they share no seed at any budget.
    """
    table = results_table(results)
    for name in (method, rival):
        if name not in set(table["method"]):
            have = ", ".join(sorted(table["method"].unique()))
            raise ElfsError(f"The results hold no method {name!r}: choose among {have}.")
    return _paired(table, method, rival, strict=strict)


def best_supervised(results: pd.DataFrame, supervised: Collection[str]) -> pd.DataFrame:
    """The best mean among methods that see labels, per dataset and budget.

    A maximum over several noisy means is optimistic, and it is no upper bound: it can lie below
    the mean of a label-free method.

    Args:
        results: A results table.
        supervised: Names of the methods that see labels (from the registry); those that are not
            in the results are ignored.

    Returns:
        Rows of :func:`summarise`, one per dataset and budget; empty if no method sees labels.

    Raises:
        ElfsError: as :func:`results_table`.
    """
    summary = summarise(results)
    ceiling = summary[summary["method"].isin(set(supervised))]
    best = ceiling.loc[ceiling.groupby(["dataset", "budget"], sort=False)["mean"].idxmax()]
    return best.sort_values(["dataset", "budget"]).reset_index(drop=True)


def best_label_free(results: pd.DataFrame, supervised: Collection[str]) -> pd.DataFrame:
    """The best mean among label-free methods, and whether the numbers support calling it best.

    Args:
        results: A results table.
        supervised: Names of the methods that see labels, to be left out.

    Returns:
        One row per dataset and budget: the columns of :func:`paired_difference` for the best
        method against the runner-up, and ``supported``: True only if the 95% interval of that
        difference lies above zero. With a single label-free method, or no shared seed, the rival
        is empty and ``supported`` is False.

    Raises:
        ElfsError: as :func:`results_table`, or if every method sees labels.
    """
    table = results_table(results)
    free = table[~table["method"].isin(set(supervised))]
    if free.empty:
        raise ElfsError("The results hold no label-free method: nothing can be called best.")
    rows = []
    for (dataset, budget), group in summarise(free).groupby(["dataset", "budget"]):
        ranked = group.sort_values("mean", ascending=False, kind="stable")
        row: dict[str, Any] = {
            "dataset": dataset,
            "budget": budget,
            "method": ranked["method"].iloc[0],
            "rival": None,
            "n": int(ranked["n"].iloc[0]),
            "method_mean": float(ranked["mean"].iloc[0]),
        }
        if len(ranked) > 1:
            here = free[(free["dataset"] == dataset) & (free["budget"] == budget)]
            pair = _paired(here, row["method"], ranked["method"].iloc[1], strict=False)
            if len(pair):
                row |= pair.iloc[0].to_dict()
        # NaN compares False, so one seed never supports a claim.
        row["supported"] = bool(row.get("low", np.nan) > 0)
        rows.append(row)
    return pd.DataFrame(rows)


def verdict(row: Mapping[str, Any] | pd.Series) -> str:
    """Say in words what a row of :func:`paired_difference` shows, and no more.

    Args:
        row: ``method``, ``rival``, ``budget``, ``n``, ``difference``, ``low``, ``high``.

    Returns:
        One sentence, for example "ELFS is above Random by 2.1 points at 10% (95% interval 1.0 to
        3.2, n=3)." An interval that includes zero is called no evidence of a difference.
    """
    method, rival = display_name(row["method"]), display_name(row["rival"])
    where = f"at {percent(row['budget'])}"
    difference, low, high, n = row["difference"], row["low"], row["high"], int(row["n"])
    size = f"{abs(difference):.1f} points"
    if n < 2:
        return (
            f"One seed cannot tell {method} from {rival} {where} "
            f"(difference {difference:+.1f} points, n=1)."
        )
    if np.isnan(low):
        return (
            f"{method} minus {rival} {where} is {difference:+.1f} points in each of {n} seeds, "
            "so its spread cannot be estimated."
        )
    interval = f"(95% interval {low:.1f} to {high:.1f}, n={n})"
    if low > 0:
        return f"{method} is above {rival} by {size} {where} {interval}."
    if high < 0:
        return f"{method} is below {rival} by {size} {where} {interval}."
    return (
        f"There is no evidence of a difference between {method} and {rival} {where}: "
        f"{difference:+.1f} points {interval}."
    )


def verdicts(paired: pd.DataFrame) -> list[str]:
    """One :func:`verdict` per row of a :func:`paired_difference` frame, in its order."""
    return [verdict(row) for row in paired.to_dict("records")]


def count_verdicts(paired: pd.DataFrame) -> str:
    """Sum a :func:`paired_difference` frame of one pair up in a sentence.

    Args:
        paired: Rows of one method and one rival, at least one.

    Raises:
        ElfsError: if the frame is empty or holds several pairs.
    """
    pairs = paired[["method", "rival"]].drop_duplicates() if len(paired) else paired
    if len(pairs) != 1:
        raise ElfsError("paired must hold the rows of exactly one method and one rival.")
    method, rival = display_name(pairs["method"].iloc[0]), display_name(pairs["rival"].iloc[0])
    above, below = int((paired["low"] > 0).sum()), int((paired["high"] < 0).sum())
    single, total = int((paired["n"] < 2).sum()), len(paired)
    alike = int((paired["low"].isna() & (paired["n"] > 1)).sum())
    said = [f"above at {above} of {total} budgets", f"below at {below}"]
    if single + alike < total:
        rest = total - above - below - single - alike
        said.append(f"no evidence of a difference at {rest}")
    said += [f"one seed, which cannot tell, at {single}"] if single else []
    said += [f"the same difference in each seed at {alike}"] if alike else []
    return f"{method} against {rival}: {', '.join(said)} (95% paired intervals)."


_PAIRED = (
    "dataset budget method rival seeds n method_mean rival_mean difference sd low high".split()
)


def _paired(table: pd.DataFrame, method: str, rival: str, *, strict: bool = True) -> pd.DataFrame:
    key = ["dataset", "budget", "seed", "recipe"]  # one revision is not compared with another
    table = table.assign(recipe=table["recipe"].fillna(""))
    left = table.loc[table["method"] == method, [*key, "accuracy"]]
    right = table.loc[table["method"] == rival, [*key, "accuracy"]]
    both = left.merge(right, on=key, suffixes=("_method", "_rival"))
    if strict and both.empty:
        raise ElfsError(
            f"{method!r} and {rival!r} share no seed of one recipe: run both with the same seeds."
        )
    rows = []
    for (dataset, budget), group in both.groupby(["dataset", "budget"]):
        differences = (group["accuracy_method"] - group["accuracy_rival"]).to_numpy()
        n = len(differences)
        mean = float(differences.mean())
        sd = float(differences.std(ddof=1)) if n > 1 else np.nan
        low = high = np.nan
        # Equal differences leave rounding noise, not an exact zero, in the deviation.
        if n > 1 and sd > 1e-9:
            margin = stats.t.ppf((1 + CONFIDENCE) / 2, n - 1) * sd / np.sqrt(n)
            low, high = mean - margin, mean + margin
        rows.append(
            {
                "dataset": dataset,
                "budget": budget,
                "method": method,
                "rival": rival,
                "seeds": sorted(group["seed"]),
                "n": n,
                "method_mean": float(group["accuracy_method"].mean()),
                "rival_mean": float(group["accuracy_rival"].mean()),
                "difference": mean,
                "sd": sd,
                "low": low,
                "high": high,
            }
        )
    return pd.DataFrame(rows, columns=_PAIRED)
