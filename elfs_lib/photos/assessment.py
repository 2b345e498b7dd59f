"""What the labels are worth: models trained on them, and a prediction for every image."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import binomtest
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LogisticRegression

from elfs_lib.artifacts import Artifact, Draft
from elfs_lib.embedding.rows import unit_rows
from elfs_lib.errors import ElfsError
from elfs_lib.label_lock import LabelOracle
from elfs_lib.photos.run import Photos
from elfs_lib.progress import track
from elfs_lib.selection.by_class import rank_in_class
from elfs_lib.stages.graph import Given, stage
from elfs_lib.stages.run import Run
from elfs_lib.training.loop import Length, Seeds, train
from elfs_lib.training.recipes import find_recipe, recipe_key

FEWEST_LABELS = 10
# Inverse strength of the linear model's L2 penalty, on embeddings scaled to length about 1. On
# CIFAR-10 with EfficientNet-Lite0 the accuracy is flat from 3 to 100 for 100 to 500 labels.
INVERSE_PENALTY = 10.0
CURVE = (0.25, 0.5, 1.0)  # shares of the labels on the learning curve
SUBSETS = 10  # drawn of each share
NETWORK, LINEAR = "network", "linear"


# --- a model of the labels -----------------------------------------------------------------------


@dataclass(frozen=True)
class Assessment:
    """What the labels given so far are good for.

    Attributes:
        accuracies: One row a fold: fold, images, network, linear (accuracies in percent, of the
            last step).
        predictions: One row an image: path, label, probability (of the linear model on all
            labels that it may be trained on), given (the label that people gave, or empty).
        classes: label -> number of labels that it is trained on.
        folds: Number of folds.
        learning: One row a number of labels: labels, accuracy (percent, of the linear model), low
            and high (its band of 95%: other subsets of that size, and the number of test images).
        tested: Labels of images that were drawn at random; with them the last row of ``learning``
            is an accuracy on all images. 0: the curve is of cross-validation.
        notes: Sentences that a person should read.
        artifact: Where the numbers are kept.
    """

    accuracies: pd.DataFrame
    predictions: pd.DataFrame
    classes: dict[str, int]
    folds: int
    learning: pd.DataFrame
    tested: int
    notes: tuple[str, ...]
    artifact: Artifact

    def lines(self) -> list[str]:
        """The result in sentences."""
        n, least = sum(self.classes.values()), min(self.classes.values())
        most = max(self.classes.values())
        lines = [
            (
                f"{n:,} labels of {len(self.classes)} classes, {least} to {most} images each; "
                f"{self.folds}-fold cross-validation:"
            )
        ]
        what = {
            LINEAR: "linear model on the embeddings",
            NETWORK: "network trained from scratch",
        }
        for name, title in what.items():
            values = self.accuracies[name]
            spread = values.std(ddof=1)
            lines.append(
                f"  {title:32} {values.mean():5.1f}% (standard deviation {spread:.1f} over folds)"
            )
        lines.append(f"  {'always the most frequent label':32} {100 * most / n:5.1f}%")
        rare = sorted(label for label, count in self.classes.items() if count < self.folds)
        if rare:
            few = f"  Fewer than {self.folds} labels: {', '.join(rare)}"
            lines.append(f"{few}; some folds test without them.")
        lines.append(
            "The labelled images were chosen and not drawn at random: this is the accuracy on "
            "images like them, not on all."
        )
        last = self.learning.iloc[-1]
        if self.tested:
            lines.append(
                f"Accuracy of the linear model on {self.tested:,} images drawn at random, which it "
                f"was not trained on: {last['accuracy']:.1f}% (95% interval {last['low']:.1f} to "
                f"{last['high']:.1f}). It holds for all images."
            )
        return [*lines, *self._curve(), *self.notes]

    def _curve(self) -> list[str]:
        """The learning curve, and what more labels would likely add."""
        where = f"the {self.tested:,} random images" if self.tested else "held-out folds"
        points = ", ".join(
            f"{row.labels:,}: {row.accuracy:.1f} ({row.low:.1f} to {row.high:.1f})"
            for row in self.learning.itertuples()
        )
        half, full = self.learning.iloc[-2], self.learning.iloc[-1]
        rise = full["accuracy"] - half["accuracy"]
        lines = [f"Accuracy in percent by number of labels, linear model on {where}: {points}."]
        if full["accuracy"] > half["high"]:
            lines.append(
                f"The second half of the labels added {rise:.1f} points; as many labels again "
                "would likely add up to that."
            )
        else:
            lines.append(
                f"The second half of the labels added {rise:+.1f} points, which is within the "
                "band: this does not tell whether more labels would help."
            )
        return lines


def assess(
    photos: Photos,
    labels: Mapping[str, str],
    *,
    folds: int = 5,
    seed: int = 0,
    held: Collection[str] = (),
) -> Assessment:
    """Train on labels: cross-validated accuracy, and a prediction for every image.

    Two models are compared in each fold: ``eval_recipe`` trained from scratch for ``eval_steps``,
    as the benchmarks of this project do, and a logistic regression on the frozen embeddings. Both
    report their last step. The predictions come from the second, trained on all labels.

    Args:
        photos: The images the list came from.
        labels: path -> label.
        folds: Parts that are held out in turn; classes are spread evenly over them, copies of one
            image to the same, or a model would be tested on what it was trained on.
        seed: Splits the images, draws the subsets of the learning curve, and trains the network.
        held: Paths of images that were drawn at random: their labels only test.

    Raises:
        ElfsError: if there are fewer than 10 labels to train on or 2 classes, too many folds for
            the labels, or a label of an image that is not in the run.
    """
    run, kept = photos.run, set(held)
    known = {path: label for path, label in labels.items() if path not in kept}
    names, given = _targets(run.paths, known)
    tests = [row for row, p in enumerate(run.paths) if p in kept and p in labels]
    number = {name: k for k, name in enumerate(names)}
    unknown = len(names)  # a class that is never trained on, so that no answer is right
    if not 2 <= folds <= len(known):
        raise ElfsError(f"folds is {folds}: choose from 2 to {len(known)}, the number of labels.")
    rows = np.flatnonzero(given >= 0)
    _, first, group = np.unique(photos.copies.group[rows], return_index=True, return_inverse=True)
    if folds > len(first):
        raise ElfsError(
            f"folds is {folds}: the labels are of {len(first)} different images, the others are "
            f"copies of them; choose from 2 to {len(first)}."
        )
    artifact = run.artifact(
        assessment,
        labels={run.paths[row]: names[given[row]] for row in rows},
        tests={row: number.get(labels[run.paths[row]], unknown) for row in tests},
        copies=group.tolist(),
        folds=folds,
        seed=seed,
    )
    found, probabilities = artifact.array("predictions"), artifact.array("probabilities")
    counts = {name: int((given == k).sum()) for k, name in enumerate(names)}
    return Assessment(
        artifact.table("accuracies"),
        _as_frame(run, names, found, probabilities, labels),
        counts,
        folds,
        artifact.table("learning"),
        len(tests),
        tuple(_contradictions(photos, labels)),
        artifact,
    )


def _assessment_key(given: Given) -> dict[str, Any]:
    return {
        **given.key(args=["labels", "tests", "copies", "folds", "seed"]),
        **given.key("flip", "crop_pad", "precision", "shuffle", "eval_batch"),
        **given.key_entry("recipe", lambda given: recipe_key(given.params.eval_recipe)),
        **given.key_entry("steps", lambda given: given.params.eval_steps),
    }


@stage(
    title="assessment of the labels",
    inputs=lambda run, **_: {name: run.call(name) for name in ("images", "embeddings")},
    reads=["eval_recipe", "eval_steps", "flip", "crop_pad", "precision"],
    later={"shuffle": "full", "eval_batch": None},
    key=_assessment_key,
    labels="evaluation",
    version=3,
)
def assessment(given: Given, draft: Draft) -> None:
    """Models trained on labels that people gave (``labels``: path -> label): tables ``accuracies``
    and ``learning`` as :class:`Assessment` has them; arrays ``predictions`` int64 [N] and
    ``probabilities`` float32 [N].

    ``tests`` holds the class of each row that only tests; images of one number in ``copies``, in
    the order of the labelled rows, are copies.
    """
    args = given.args
    _, classes = _targets(given.inputs["images"].json("about")["paths"], args.labels)
    rows, tests = np.flatnonzero(classes >= 0), np.array([*args.tests], int)
    given_by = {"train": classes[rows], "test": np.array([*args.tests.values()], int)}
    oracle = LabelOracle(given_by.__getitem__, tuple(given_by)[: 1 + bool(len(tests))])
    targets = oracle.open("train", purpose="evaluation")
    points = _points(given.array("embeddings", "embeddings"))
    _, first, group = np.unique(args.copies, return_index=True, return_inverse=True)
    fold_of = _stratified_folds(targets[first], args.folds, args.seed)[group]
    draft.table("accuracies", _cross_validated(given, points, rows, targets, fold_of))
    held = (tests, oracle.open("test", purpose="evaluation")) if len(tests) else None
    draft.table("learning", learning_curve(points, rows, targets, fold_of, args.seed, held))
    found, probabilities = _predict(points, rows, targets)
    draft.array("predictions", found)
    draft.array("probabilities", probabilities)


def _cross_validated(
    given: Given, points: np.ndarray, rows: np.ndarray, targets: np.ndarray, fold_of: np.ndarray
) -> pd.DataFrame:
    """What a network and the linear model score on each fold, trained on the others, as
    :attr:`Assessment.accuracies`; arguments as for :func:`learning_curve`."""
    p, images, table = given.params, given.train_images, []
    for fold in track(range(given.args.folds), "Cross-validation"):
        seen, held = fold_of != fold, fold_of == fold
        network = train(
            images,
            targets[seen],
            len(np.unique(targets)),
            find_recipe(p.eval_recipe, batch=p.eval_batch),
            Length(steps=p.eval_steps),
            seeds=Seeds.all(given.args.seed + fold),
            subset=rows[seen],
            desc=f"fold {fold + 1}",
            **given.training,
        )
        linear = linear_model(points[rows[seen]], targets[seen])
        right = linear.predict(points[rows[held]]) == targets[held]
        table.append(
            {
                "fold": fold,
                "images": int(held.sum()),
                NETWORK: 100 * network.accuracy(images, targets[held], rows[held]),
                LINEAR: 100 * float(right.mean()),
            }
        )
    return pd.DataFrame(table)


def predict(run: Run, labels: Mapping[str, str]) -> pd.DataFrame:
    """What the linear model of :func:`assess`, trained on all labels, says of every image.

    Args:
        run: The run the list came from.
        labels: path -> label.

    Returns:
        One row an image: path, label, probability, given (the label that people gave, or empty).

    Raises:
        ElfsError: as :func:`assess`.
    """
    names, given = _targets(run.paths, labels)
    rows, points = np.flatnonzero(given >= 0), _points(run.embeddings.array("embeddings"))
    return _as_frame(run, names, *_predict(points, rows, given[rows]), labels)


def _targets(paths: Sequence[str], labels: Mapping[str, str]) -> tuple[list[str], np.ndarray]:
    """Names of the classes, and the class of each image, int64 [N]; -1 where none was given."""
    names = sorted(set(labels.values()))
    if len(labels) < FEWEST_LABELS or len(names) < 2:
        raise ElfsError(
            f"There are {len(labels)} labels of {len(names)} classes: label at least "
            f"{FEWEST_LABELS} images of 2 classes first."
        )
    row_of = {path: row for row, path in enumerate(paths)}
    unknown = next((path for path in labels if path not in row_of), None)
    if unknown is not None:
        raise ElfsError(f"Image {unknown!r} has a label but is not in the folder: import it again.")
    given = np.full(len(row_of), -1, np.int64)
    for path, label in labels.items():
        given[row_of[path]] = names.index(label)
    return names, given


def _contradictions(photos: Photos, labels: Mapping[str, str]) -> list[str]:
    """What to say of copies of one image that have different labels."""
    group_of = dict(zip(photos.run.paths, photos.copies.group.tolist(), strict=True))
    first: dict[int, str] = {}
    odd = []
    for path, label in labels.items():
        twin = first.setdefault(group_of[path], path)
        if labels[twin] != label:
            odd.append(f"{twin} is {labels[twin]!r} and {path} is {label!r}")
    if not odd:
        return []
    more = f", and {len(odd) - 1:,} more" if len(odd) > 1 else ""
    return [f"Copies of one image have different labels: {odd[0]}{more}."]


def _as_frame(
    run: Run,
    names: list[str],
    found: np.ndarray,
    probability: np.ndarray,
    labels: Mapping[str, str],
) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "path": run.paths,
            "label": [names[k] for k in found],
            "probability": probability,
            "given": [labels.get(path, "") for path in run.paths],
        }
    )


def learning_curve(
    points: np.ndarray,
    rows: np.ndarray,
    targets: np.ndarray,
    fold_of: np.ndarray,
    seed: int,
    tests: tuple[np.ndarray, np.ndarray] | None,
) -> pd.DataFrame:
    """Accuracy of the linear model by the number of its labels, as :attr:`Assessment.learning`.

    Args:
        points: float32 [N, D].
        rows: int [L], images with a label to train on.
        targets: int [L], their classes.
        fold_of: int [L], the fold of each, for where there are no tests: each is held out in turn.
        seed: Draws the subsets.
        tests: Rows and classes of the images to test on; None: cross-validation.
    """
    rng, accuracies, sizes = np.random.default_rng(seed), {}, {}
    for draw in range(SUBSETS):
        fold = draw % (int(fold_of.max()) + 1)
        seen = np.flatnonzero(fold_of != fold) if tests is None else np.arange(len(rows))
        held = (rows[fold_of == fold], targets[fold_of == fold]) if tests is None else tests
        order = rng.permutation(seen)
        for share in CURVE:
            if share == 1 and tests is not None and draw:
                continue  # there is one set of all labels
            own = order[: max(1, round(share * len(order)))]
            right = (
                linear_model(points[rows[own]], targets[own]).predict(points[held[0]]) == held[1]
            )
            accuracies.setdefault(share, []).append(right.mean())
            sizes.setdefault(share, []).append(len(own))
    n, table = len(rows) if tests is None else len(tests[0]), []
    for share, found in accuracies.items():
        mean, several = np.mean(found), len(found) > 1 and tests is not None
        # of folds the spread is that of their few images, which n has already
        variance = np.var(found, ddof=1) if several else 0.0
        low, high = binomtest(round(mean * n), n).proportion_ci(method="wilson")
        wide = 1.96 * math.sqrt(variance)
        low, high = mean - math.hypot(mean - low, wide), mean + math.hypot(high - mean, wide)
        table.append(
            (round(np.mean(sizes[share])), 100 * mean, 100 * max(low, 0), 100 * min(high, 1))
        )
    return pd.DataFrame(table, columns=["labels", "accuracy", "low", "high"])


def _stratified_folds(targets: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """Fold of each label, int64 [L]: each class is shuffled and assigned round robin, starting
    where the previous class ended, so that folds differ by one image at most."""
    order = np.random.default_rng(seed).random(len(targets))
    rank, _ = rank_in_class(order, targets)
    start = np.concatenate([[0], np.cumsum(np.bincount(targets))[:-1]])
    return (start[targets] + rank) % folds


def _points(embeddings: np.ndarray) -> np.ndarray:
    """Embeddings of length 1, centred, then scaled to a mean square length of 1."""
    rows = unit_rows(np.asarray(embeddings))
    rows -= rows.mean(0)
    return rows / max(float(np.sqrt((rows**2).sum(1).mean())), 1e-12)


def _predict(
    points: np.ndarray, rows: np.ndarray, targets: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Class of every point, int64 [N], and its probability, float32 [N], after training on rows."""
    model = linear_model(points[rows], targets)
    probabilities = model.predict_proba(points)
    return model.classes_[probabilities.argmax(1)], probabilities.max(1).astype(np.float32)


def linear_model(points: np.ndarray, targets: np.ndarray) -> LogisticRegression | DummyClassifier:
    if len(np.unique(targets)) == 1:  # what is left of two classes when the rarer is held out
        return DummyClassifier().fit(points, targets)
    return LogisticRegression(C=INVERSE_PENALTY, max_iter=1000).fit(points, targets)
