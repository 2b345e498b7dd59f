"""The low-budget track: lists of one to a hundred labels a class, and the accuracy of a linear
probe trained on them.

First every list is chosen, inside a stage that may not open labels; then the labels are opened and
a probe is fitted on each list. All methods choose from the same embeddings, the probe reads the
same embeddings, and a seed is one of the whole choice.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from elfs_lib.embedding.rows import unit_rows
from elfs_lib.errors import ElfsError, choose, is_whole
from elfs_lib.label_lock import LabelOracle, stage_lock
from elfs_lib.progress import track
from elfs_lib.results.evaluation import display_name, paired_difference
from elfs_lib.selection import METHODS

LABELS_PER_CLASS = (1, 2, 5, 10, 20, 50, 100)
BASELINE = "random"

#: Which method for which budget: (labels a class, method), the method from that number on until the
#: next; what the page "Which method for which budget" measured.
ADVICE: tuple[tuple[int, str], ...] = (
    (0, "kmeans_nearest"),
    (20, "max_herding"),
    (500, "elfs"),
)

# C of the probe: the loss is C times the summed cross-entropy plus half the squared weights. Rows
# have length 1, so weights must be large before a softmax is confident.
STRENGTH = 10.0
MOST_STEPS, TOLERANCE = 5000, 1e-5

#: Labels a class up to which methods were measured; there none differs from random sampling.
AS_RANDOM = 100

#: The columns of the track's table, one row a method, number of labels a class, and seed.
LOW_BUDGET_COLUMNS: dict[str, str] = {
    "dataset": "name of the dataset",
    "method": "name of the selection method",
    "labels_per_class": "images to label, divided by the number of classes",
    "budget": "share of the training set that was labelled, in (0, 1]",
    "count": "images to label",
    "seed": "seed of the whole choice; all alike for a method that draws nothing",
    "accuracy": "of the linear probe on the test images, in percent, 0 to 100",
    "classes_covered": "classes of which the list has at least one image",
}


Chooser = Callable[[str, int, int], np.ndarray]


class Choice(NamedTuple):
    """What one list was chosen by."""

    method: str
    labels_per_class: int
    seed: int


def choose_lists(
    choose_list: Chooser,
    methods: Iterable[str],
    *,
    n: int,
    classes: int,
    labels_per_class: Sequence[int] = LABELS_PER_CLASS,
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
) -> dict[Choice, np.ndarray]:
    """Choose every list of the track without labels.

    A nested method runs once a seed for the longest list, and the shorter ones are its beginnings;
    a method that draws nothing runs for one seed.

    Args:
        choose_list: Called with (method, count, seed); gives the list int64 [count], best first.
        methods: Names in ``selection.METHODS``, label-free.
        n: Number of training images, N.
        classes: Number of classes, C; a list has C images for each label a class.
        labels_per_class: Numbers of labels a class, each at least 1.
        seeds: Of the whole choice.

    Returns:
        int64 [count] for each method, number of labels a class and seed, in the order to label.

    Raises:
        ElfsError: if a method is unknown or sees labels, a list would be longer than the training
            set, or a method lacks what it needs.
        LabelLockError: if a method opens labels.
    """
    methods, sizes = list(dict.fromkeys(methods)), sorted(set(labels_per_class))
    _check(methods, sizes, classes, n)
    lists = {}
    with stage_lock("never", stage="the choice of low-budget lists"):
        jobs = [(m, s) for m in methods for s in (seeds if _draws(m) else seeds[:1])]
        for method, seed in track(jobs, "lists"):
            own = {}
            for size in reversed(sizes):
                if METHODS[method].nested and own:
                    own[size] = own[sizes[-1]][: size * classes]
                else:
                    own[size] = choose_list(method, size * classes, seed)
            for twin in [seed] if _draws(method) else seeds:
                lists |= {Choice(method, size, twin): own[size] for size in sizes}
    return lists


def _draws(method: str) -> bool:
    """Whether a seed changes the list: the method's own, or that of the clustering and the proxy
    behind what it reads."""
    entry = METHODS[method]
    return entry.seeded or not entry.needs <= {"embeddings", "neighbors"}


def probe_lists(
    lists: Mapping[Choice, np.ndarray],
    embeddings: np.ndarray,
    test_embeddings: np.ndarray,
    labels: LabelOracle,
    *,
    dataset: str,
) -> pd.DataFrame:
    """Label every list, fit a linear probe on it, and test it.

    Args:
        lists: As :func:`choose_lists` returns them, or chosen elsewhere.
        embeddings: float32 [N, D] of the training images.
        test_embeddings: float32 [M, D] of the test images, by the same encoder.
        labels: The labels of both splits; opened for ``evaluation``.
        dataset: Name of the dataset.

    Returns:
        One row a list with the columns of :data:`LOW_BUDGET_COLUMNS`.

    Raises:
        ElfsError: if shapes and labels do not fit, or a probe does not converge.
    """
    if embeddings.ndim != 2 or test_embeddings.shape[1:] != embeddings.shape[1:]:
        raise ElfsError(
            f"embeddings {embeddings.shape} and test embeddings {test_embeddings.shape} must be "
            "[N, D] and [M, D] of one encoder."
        )
    rows, tests = unit_rows(embeddings), unit_rows(test_embeddings)
    found: dict[bytes, tuple[float, int]] = {}  # methods that draw nothing repeat their lists
    table = []
    with stage_lock("evaluation", stage="the low-budget probes"):
        train = labels.open("train", purpose="evaluation")
        test = labels.open("test", purpose="evaluation")
        if len(train) != len(rows) or len(test) != len(tests):
            raise ElfsError(
                f"There are {len(train)} and {len(test)} labels for {len(rows)} training and "
                f"{len(tests)} test embeddings: pass those of one dataset."
            )
        for choice, indices in track(lists.items(), "probes", total=len(lists)):
            key = np.asarray(indices, dtype=np.int64).tobytes()
            if key not in found:
                predicted = linear_probe(rows[indices], train[indices], tests)
                accuracy = 100 * float((predicted == test).mean())
                found[key] = accuracy, len(np.unique(train[indices]))
            accuracy, covered = found[key]
            table.append(
                {
                    "dataset": dataset,
                    **choice._asdict(),
                    "budget": len(indices) / len(rows),
                    "count": len(indices),
                    "accuracy": accuracy,
                    "classes_covered": covered,
                }
            )
    return pd.DataFrame(table)[list(LOW_BUDGET_COLUMNS)]


def linear_probe(
    embeddings: np.ndarray,
    labels: np.ndarray,
    test_embeddings: np.ndarray,
    *,
    strength: float = STRENGTH,
) -> np.ndarray:
    """Multinomial logistic regression on embeddings of length 1, run to convergence.

    Args:
        embeddings: float [n, D], scaled to length 1 here.
        labels: int [n].
        test_embeddings: float [M, D].
        strength: C, above 0: the loss is C times the summed cross-entropy plus half the squared
            weights; the intercepts are free. The same for every list.

    Returns:
        int64 [M], predicted labels; of a single class always that.

    Raises:
        ElfsError: if it does not converge, or a row is zero or not finite.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    rows, tests = unit_rows(embeddings), unit_rows(test_embeddings)
    if len(np.unique(labels)) == 1:
        return np.full(len(tests), labels[0], dtype=np.int64)
    model = LogisticRegression(C=strength, tol=TOLERANCE, max_iter=MOST_STEPS)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        try:
            model.fit(rows, labels)
        except ConvergenceWarning as warning:
            raise ElfsError(
                f"The linear probe on {len(rows)} images did not converge in {MOST_STEPS} steps: "
                "lower its strength."
            ) from warning
    return model.predict(tests).astype(np.int64)


def differences_from_random(table: pd.DataFrame) -> pd.DataFrame:
    """Accuracy of each method minus random, paired by seed, with the 95% t-interval over seeds.

    For a method that draws nothing the interval is over the seeds of random alone.

    Args:
        table: As :func:`probe_lists` returns it, with ``random`` among the methods.

    Returns:
        Columns of :func:`elfs_lib.results.evaluation.paired_difference`, with ``labels_per_class``;
        one row a dataset, number of labels a class, and method.

    Raises:
        ElfsError: if random is missing, or shares no seed with a method.
    """
    methods = [m for m in _in_order(table["method"].unique()) if m != BASELINE]
    if not methods:
        raise ElfsError("The table has no method besides random: there is nothing to compare.")
    return _with_sizes(
        table, pd.concat(paired_difference(table, method, BASELINE) for method in methods)
    )


def difference_table(table: pd.DataFrame) -> pd.DataFrame:
    """The differences from random as texts for a page.

    Args:
        table: As :func:`probe_lists` returns it, of one dataset.

    Returns:
        One row a method, one column a number of labels a class: "+3.1 (+1.0 to +5.2)" in points,
        the difference from random and its 95% interval over seeds; no interval with one seed. The
        first row is the accuracy of random in percent; "Seeds" counts those of each method.

    Raises:
        ElfsError: as :func:`differences_from_random`, or if there are several datasets.
    """
    _one_dataset(table)
    found = differences_from_random(table)
    sizes = sorted(table["labels_per_class"].unique())
    own = table[table["method"] == BASELINE].groupby("labels_per_class")["accuracy"].mean()
    seeds = table.groupby("method")["seed"].nunique()
    rows = [
        {"method": f"{display_name(BASELINE)} (%)", "Seeds": seeds[BASELINE]}
        | {n: f"{own[n]:.1f}" for n in sizes}
    ]
    for method in dict.fromkeys(found["method"]):
        here = found[found["method"] == method].set_index("labels_per_class")
        rows.append(
            {"method": display_name(method), "Seeds": seeds[method]}
            | {n: _with_interval(here.loc[n]) for n in sizes if n in here.index}
        )
    shown = pd.DataFrame(rows).fillna("")
    return shown.rename(columns={n: _labels_a_class(n) for n in sizes} | {"method": "Method"})


def coverage_table(table: pd.DataFrame) -> pd.DataFrame:
    """Mean number of classes that the lists cover: one row a method, one column a number of labels
    a class, as texts.

    Raises:
        ElfsError: if there are several datasets.
    """
    _one_dataset(table)
    means = table.pivot_table("classes_covered", "method", "labels_per_class")
    means = means.loc[_in_order(means.index)]
    shown = (
        means.map("{:.1f}".format, na_action="ignore")
        .fillna("")
        .rename(index=display_name, columns=_labels_a_class)
    )
    return shown.rename_axis(index="Method", columns=None).reset_index()


def standing_table(table: pd.DataFrame, rival: str) -> pd.DataFrame:
    """Where each method is ahead of a rival, and where behind it: the 95% interval of the paired
    difference over seeds does not include zero.

    Args:
        table: As :func:`probe_lists` returns it, of one dataset.
        rival: A method of the table.

    Returns:
        One row a method, with texts: the numbers of labels a class at which it is ahead, behind,
        and neither.

    Raises:
        ElfsError: if the rival is missing or shares no seed with a method, or there are several
            datasets.
    """
    _one_dataset(table)
    rows = []
    for method in _in_order(table["method"].unique()):
        if method == rival:
            continue
        found = _with_sizes(table, paired_difference(table, method, rival))
        sides = {
            f"Ahead of {display_name(rival)}": found["low"] > 0,
            f"Behind {display_name(rival)}": found["high"] < 0,
        }
        sides["Neither"] = ~np.logical_or.reduce([*sides.values()])
        sizes = {name: found.loc[own, "labels_per_class"] for name, own in sides.items()}
        rows.append(
            {"Method": display_name(method)}
            | {name: ", ".join(map(str, own)) for name, own in sizes.items()}
        )
    return pd.DataFrame(rows)


def _with_sizes(table: pd.DataFrame, paired: pd.DataFrame) -> pd.DataFrame:
    """Paired differences with their numbers of labels a class, ascending."""
    sizes = table.assign(budget=table["budget"].round(9))  # as paired_difference rounds it
    sizes = sizes[["dataset", "budget", "labels_per_class"]].drop_duplicates()
    return paired.merge(sizes, on=["dataset", "budget"]).sort_values(
        ["dataset", "labels_per_class"], kind="stable", ignore_index=True
    )


def _check(methods: Collection[str], sizes: Sequence[int], classes: int, n: int) -> None:
    for method in methods:
        if METHODS[choose("method", method, METHODS)].supervised:
            raise ElfsError(
                f"Method {method!r} sees labels: the low-budget track is for label-free methods."
            )
    if not (is_whole(classes, 1) and sizes and all(is_whole(size, 1) for size in sizes)):
        raise ElfsError(
            f"classes {classes!r} and labels a class {list(sizes)} must be whole numbers of at "
            "least 1."
        )
    if sizes[-1] * classes > n:
        raise ElfsError(
            f"{sizes[-1]} labels for each of {classes} classes are more than the {n} images there "
            f"are: ask for at most {n // classes} a class."
        )


def _in_order(methods: Iterable[str]) -> list[str]:
    """Methods in the order of the registry, any other after them."""
    known = list(METHODS)
    return sorted(methods, key=lambda m: (known.index(m) if m in known else len(known), m))


def _one_dataset(table: pd.DataFrame) -> None:
    if table["dataset"].nunique() != 1:
        raise ElfsError("The table must have the rows of one dataset.")


def _labels_a_class(number: int) -> str:
    return f"{number} a class"


def _with_interval(row: pd.Series) -> str:
    interval = f" ({row['low']:+.1f} to {row['high']:+.1f})" if row["low"] == row["low"] else ""
    return f"{row['difference']:+.1f}{interval}"
