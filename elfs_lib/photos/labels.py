"""From a list of images to labels and a model: the files around a list, and the way back.

``elfs select`` writes a list, people label, ``elfs labels import`` checks what they say, and
``elfs evaluate`` trains on it and names the next images to label.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
import os
import re
import shlex
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import binomtest
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LogisticRegression

from elfs_lib.artifacts import Artifact, Draft, Store, write_text_atomic
from elfs_lib.data import datasets
from elfs_lib.data.label_files import Labels, class_name, read_labels, split_csv, tasks
from elfs_lib.embedding.rows import unit_rows
from elfs_lib.errors import ElfsError, choose
from elfs_lib.label_lock import LabelOracle
from elfs_lib.photos.choosing import (
    COLUMNS,
    Choice,
    OwnRun,
    Request,
    choose_images,
    open_run,
    read_images,
)
from elfs_lib.progress import track
from elfs_lib.selection.by_class import rank_in_class
from elfs_lib.training.loop import Length, Seeds, train
from elfs_lib.training.recipes import find_recipe, recipe_key

FEWEST_LABELS = 10
# Inverse strength of the linear model's L2 penalty, on embeddings scaled to length about 1. On
# CIFAR-10 with EfficientNet-Lite0 the accuracy is flat from 3 to 100 for 100 to 500 labels.
INVERSE_PENALTY = 10.0
CURVE = (0.25, 0.5, 1.0)  # shares of the labels on the learning curve
SUBSETS = 10  # drawn of each share
NETWORK, LINEAR = "network", "linear"


@dataclass(frozen=True)
class ListFiles:
    """The files of one list; all lie next to it and share its name.

    Raises:
        ElfsError: if its folder is missing or cannot be written to.
    """

    csv: Path

    def __post_init__(self) -> None:
        folder = self.csv.resolve().parent
        if not folder.is_dir() or not os.access(folder, os.W_OK):
            raise ElfsError(f"Cannot write {self.csv}: {folder} is not a folder one can write to.")
        if self.csv.is_dir() or self.csv.suffix.lower() != ".csv":  # the report is .html, and more
            kind = "a folder" if self.csv.is_dir() else "no .csv file"
            raise ElfsError(f"{self.csv} is {kind}: name a .csv file, such as {DEFAULT_LIST}.")

    def beside(self, suffix: str) -> Path:
        """``to_label.csv`` -> ``to_label.<suffix>``."""
        return self.csv.with_name(f"{self.csv.stem}.{suffix}")

    @property
    def record(self) -> Path:
        """What was asked for, and of which images."""
        return self.beside("run.json")

    @property
    def rest(self) -> Path:
        """What became of every file that is not on the list."""
        return self.beside("rest.csv")

    @property
    def tasks(self) -> Path:
        """The list as Label Studio imports it."""
        return self.beside("tasks.json")

    @property
    def holdout(self) -> Path:
        """The images that are kept for testing."""
        return self.beside("holdout.csv")

    @property
    def holdout_tasks(self) -> Path:
        """The same as Label Studio imports it."""
        return self.beside("holdout.tasks.json")

    @property
    def html(self) -> Path:
        """The report."""
        return self.beside("html")

    @property
    def labels(self) -> Path:
        """All labels imported so far."""
        return self.beside("labels.csv")

    @property
    def predictions(self) -> Path:
        """What the model says of every image."""
        return self.beside("predictions.csv")

    @property
    def next(self) -> ListFiles:
        """The files of the next batch."""
        return ListFiles(self.beside("next.csv"))


DEFAULT_LIST = Path("to_label.csv")


def find_list(named: Path | None, source: Path | None = None) -> ListFiles:
    """The list that is meant: the one named, else that which ``source`` is or continues, else
    ``to_label.csv``. The next batch of a list is not one of its own: its labels go to the first.
    """
    if meant := named or source:
        stem = re.sub(r"(\.next|\.holdout)?(\.kept\d+)?$", "", meant.stem)
        if meant.with_name(f"{stem}.run.json").exists():
            return ListFiles(meant.with_name(f"{stem}.csv"))
    return ListFiles(named or DEFAULT_LIST)


def _import(file: Path | str, files: ListFiles) -> str:
    """The command that imports a file of labels for a list."""
    words = ["elfs", "labels", "import", str(file)]
    if files.csv != DEFAULT_LIST:
        words += ["--list", str(files.csv)]
    return shlex.join(words)


# --- writing a list ------------------------------------------------------------------------------


def write_choice(
    files: ListFiles,
    choice: Choice,
    folder: Path,
    *,
    say: Callable[[str], None] = lambda text: None,
) -> None:
    """Write the list, Label Studio's tasks, what became of every other file, and the record.

    An older list under this name is kept under another, unless it was all labelled.
    """
    listed = choice.listed[COLUMNS]
    _keep(files, choice.request.done, say, instead=_as_csv(listed))
    files.html.unlink(missing_ok=True)  # a report of an older list must not stand beside this one
    _write_record(files, choice, folder)
    _write_csv(files.csv, listed)
    _write_tasks(files.tasks, listed, folder, choice.request.names)
    unused = choice.files[~choice.files["used"].astype(bool)]
    unused = unused.rename(columns={"meaning": "reason"})[["path", "kind", "reason"]]
    rest = choice.rest.drop(columns="index")
    parts = [rest, unused] if len(unused) else [rest]
    _write_csv(files.rest, pd.concat(parts, ignore_index=True)[list(rest.columns)])


def _write_tasks(file: Path, frame: pd.DataFrame, folder: Path, names: Sequence[str] = ()) -> None:
    found = tasks(frame.astype(object).where(frame.notna(), None), _name(folder), names=names)
    write_text_atomic(file, json.dumps(found, indent=1))


def _write_record(files: ListFiles, choice: Choice, folder: Path) -> None:
    """Write what is needed to open the list again; paths in it are relative to it."""
    start = files.csv.resolve().parent
    record = {
        "folder": os.path.relpath(os.path.abspath(folder), start),
        "artifacts": os.path.relpath(choice.run.store.root.resolve(), start),
        "source": _fingerprint(folder, choice.request),
        "images": choice.run.images.content,
        "count": len(choice.listed),
        "paths": choice.run.paths,
        "request": {f.name: getattr(choice.request, f.name) for f in fields(Request)},
    }
    write_text_atomic(files.record, json.dumps(record, indent=1))


@dataclass(frozen=True)
class Record:
    """What a list was made from: its folder of images, how that looked (``source``), what was in it
    (``images``) under which ``paths``, what was asked for, where the work lies."""

    folder: Path
    source: str
    images: str
    request: Request
    store: Store
    count: int
    paths: tuple[str, ...]

    @property
    def named(self) -> str:
        """Name of the folder of images."""
        return _name(self.folder)


def _name(folder: Path) -> str:
    """What people call a folder: a link's own name, and not that of what it leads to."""
    return Path(os.path.abspath(folder)).name


def read_record(file: str | Path, *, repair: bool = False) -> Record:
    """Read a list's ``run.json``; ``repair`` recomputes damaged artifacts.

    Raises:
        ElfsError: if it is missing or damaged.
    """
    file = Path(file)
    try:
        record = json.loads(file.read_text())
        asked = record["request"]
        several = {name: tuple(asked[name]) for name in ("done", "held", "names") if name in asked}
        request = Request(**{**asked, **several})
        folder, artifacts = file.parent / record["folder"], file.parent / record["artifacts"]
        return Record(
            folder,
            str(record["source"]),
            str(record["images"]),
            request,
            Store(artifacts, repair=repair),
            int(record["count"]),
            tuple(record["paths"]),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise ElfsError(
            f"{file} is missing or damaged: make the list with elfs select first, or name it with "
            "--list."
        ) from None


def open_choice(file: str | Path) -> Choice:
    """The choice behind a list, from its ``run.json``; nothing is computed again.

    Raises:
        ElfsError: if the record is missing, or the folder is gone or has changed since.
    """
    record = read_record(file)
    _opened(record)
    return choose_images(record.folder, record.request, record.store)


def _opened(record: Record) -> OwnRun:
    """The run over the folder of a record, if the images in it are those of the record."""
    if not record.folder.is_dir():
        raise ElfsError(
            f"The folder of this list, {record.folder}, is gone: run elfs select on it where it is "
            "now, with the same --out; labels already imported are kept."
        )
    asked = record.folder, record.request, record.store
    # Files that were copied or touched look different but may hold the same.
    looks_alike = _fingerprint(record.folder, record.request) == record.source
    if not looks_alike and read_images(*asked).images.content != record.images:
        raise ElfsError(
            f"The images in {record.folder} have changed since the list was made: run elfs select "
            "again; labels already imported are kept."
        )
    return open_run(*asked)


def _fingerprint(folder: Path, request: Request) -> str:
    size = request.overrides.get("image_size")
    return datasets.source_fingerprint("image_folder", image_size=size, path=folder)


def _write_csv(file: Path, frame: pd.DataFrame) -> None:
    write_text_atomic(file, _as_csv(frame))


def _as_csv(frame: pd.DataFrame) -> str:
    # A carriage return in a name would end the line for whoever reads it.
    split = frame["path"].str.contains("\r").any()
    quoting = csv.QUOTE_NONNUMERIC if split else csv.QUOTE_MINIMAL
    return frame.to_csv(index=False, float_format="%.6g", quoting=quoting)


def _keep(
    files: ListFiles, labelled: Collection[str], say: Callable[[str], None], *, instead: str = ""
) -> None:
    """Give a list that is about to go another name: somebody may be labelling it elsewhere.

    Nothing is kept where all its images are labelled, or where ``instead``, the list that is to be
    written, is the same.
    """
    if not files.csv.exists():
        return
    text = files.csv.read_bytes().decode("utf-8-sig", errors="replace")
    table, delimiter, _ = split_csv(text)
    rows = csv.DictReader(io.StringIO(table, newline=""), delimiter=delimiter)
    if text == instead or {row.get("path") for row in rows} <= set(labelled):
        return
    kept = next(
        file for n in itertools.count(1) if not (file := files.beside(f"kept{n}.csv")).exists()
    )
    os.replace(files.csv, kept)
    say(f"The list that was in {files.csv} is not all labelled: it is kept as {kept}.")


def make_list(
    folder: Path,
    files: ListFiles,
    request: Request,
    store: Store,
    *,
    say: Callable[[str], None] = lambda text: None,
) -> Choice:
    """Choose from a folder, and write the list, its tasks, the rest and the record.

    Labels imported for an earlier list of this name stay, and their images are not listed again. An
    earlier list, or its next batch, that is not all labelled is kept under another name.

    Raises:
        ElfsError: as :func:`elfs_lib.photos.choosing.choose_images`; or if labels of another
            folder's images, or labels that were not imported, would be lost or mixed with these.
    """
    folder = folder.expanduser()
    if files.csv.stem.endswith(".next"):
        raise ElfsError(
            f"{files.csv.name} is the name of the next batch of another list: name this one "
            "otherwise with --out."
        )
    labels = stored_labels(files)
    for file in (files.csv, files.next.csv, files.holdout):
        _check_typed(file, files, labels)
    _check_own(files)
    try:
        before = read_record(files.record) if labels or files.holdout.exists() else None
    except ElfsError:  # this list makes the record anew
        before = None
    if before and labels and before.folder.resolve() != folder.resolve():
        # The folder may have been renamed: then the images are the same.
        gone = not before.folder.exists()
        if not gone or read_images(folder, request, store).images.content != before.images:
            which = ", which is gone," if gone else ""
            raise ElfsError(
                f"{files.labels} holds labels of images in {before.folder.resolve()}{which} and "
                f"{folder} holds others: give its list another name with --out, or move that file "
                "away."
            )
    same = before is not None and before.folder.resolve() == folder.resolve()
    held = before.request.held if before and (same or labels) else ()
    request = replace(request, done=tuple(labels), held=held)
    choice = choose_images(folder, request, store, say=say)
    write_choice(files, choice, folder, say=say)
    if len(choice.held):
        _write_csv(files.holdout, choice.held[COLUMNS])
        # without suggestions, which would lean on whoever labels what the model is tested on
        _write_tasks(files.holdout_tasks, choice.held[COLUMNS], folder)
    _drop_batch(files, labels, say)
    return choice


def _drop_batch(files: ListFiles, labelled: Collection[str], say: Callable[[str], None]) -> None:
    """Remove the files of an older next batch; the list itself is kept if it is not labelled."""
    old = files.next
    _keep(old, labelled, say)
    for file in (old.csv, old.tasks, old.rest, old.html, old.record):
        file.unlink(missing_ok=True)


# --- labels that come back -----------------------------------------------------------------------


def stored_labels(files: ListFiles) -> dict[str, str]:
    """path -> label of the labels imported so far; empty if there are none.

    Raises:
        ElfsError: if the file is there but damaged.
    """
    if not files.labels.exists():
        return {}
    return read_labels(files.labels, None).given


def _check_typed(file: Path, files: ListFiles, stored: Mapping[str, str]) -> None:
    """Refuse to write over a list, or a next batch, into which somebody typed labels that were not
    imported."""
    if not file.exists() or _as_written(file):
        return
    try:
        # Under the names that the stored labels have, however the list spells them.
        typed = read_labels(file, stored, strict=False).given
    except ElfsError as error:
        raise ElfsError(
            f"{file} is not as it was written and may hold labels, which would be lost "
            f"({str(error).rstrip('.')}): fix it, move it away, or name another list."
        ) from None
    if any(stored.get(path) != label for path, label in typed.items()):
        raise ElfsError(
            f"{file} holds labels that were not imported and would be lost: run "
            f"{_import(file, files)} first (with --replace if they correct earlier ones), or name "
            "another list."
        )


def _check_own(files: ListFiles) -> None:
    """Refuse to write over files that no list left there."""
    for file in (files.html, files.rest, files.tasks) if not files.record.exists() else ():
        if file.exists():
            raise ElfsError(
                f"{file} is there already and belongs to no list: move it away, or name another "
                "list with --out."
            )


def _as_written(file: Path) -> bool:
    """Whether a list has the columns that it was written with, and nothing beside them."""
    text = file.read_bytes().decode("utf-8-sig", errors="replace")
    table, delimiter, _ = split_csv(text)
    rows = csv.reader(io.StringIO(table, newline=""), delimiter=delimiter)
    try:
        first = [name.strip() for name in next(rows, [])]
        beside = any(cell.strip() for row in rows for cell in row[len(COLUMNS) :])
    except csv.Error:
        return False
    return first[: len(COLUMNS)] == COLUMNS and not any(first[len(COLUMNS) :]) and not beside


def import_labels(
    files: ListFiles, source: Path, *, names: Collection[str] = (), replace_old: bool = False
) -> tuple[Labels, dict[str, str]]:
    """Check labels and store them next to the list, together with those given before.

    Args:
        source: CSV with the columns path and label, or an export of Label Studio.
        names: The classes there are; empty for any.
        replace_old: Let new labels win over stored ones.

    Returns:
        The labels of this file, and all labels stored now.

    Raises:
        ElfsError: if the file cannot be understood, names an unknown image, gives an image two
            labels (here, or against those stored), has no label, or names a class that is not one
            of ``names``; or, without ``names``, more classes than the list was made for, or two
            that differ in capitals alone.
    """
    record = read_record(files.record)
    if Path(source).resolve() == files.predictions.resolve():
        raise ElfsError(
            f"{source} holds what the model says, and not what people said: import a file that "
            "people labelled."
        )
    labels = read_labels(source, record.paths, folder=record.named, root=record.folder)
    names = [class_name(name) for name in names]
    for path, label in labels.given.items():
        if names and label not in names:
            try:
                choose("class", label, names)
            except ElfsError as error:
                raise ElfsError(f"{source}, image {path!r}: {error}") from None
    stored = stored_labels(files)
    for path, label in labels.given.items():
        if not replace_old and stored.get(path, label) != label:
            raise ElfsError(
                f"{source}: image {path!r} has the label {label!r} but was imported as "
                f"{stored[path]!r} before: correct it, or let new labels win with --replace."
            )
    every = stored | labels.given
    found, classes = sorted(set(every.values())), record.request.classes
    alike = Counter(label.casefold() for label in found)
    same = [label for label in found if alike[label.casefold()] > 1]
    if same and not names:
        raise ElfsError(
            f"{source}: the classes {' and '.join(map(repr, same[:2]))} differ in capitals alone: "
            "correct the misspelt one, or name all classes with --names."
        )
    if not names and classes != "auto" and len(found) > classes:
        tally = Counter(every.values())
        odd = min(labels.given, key=lambda path: tally[labels.given[path]])
        raise ElfsError(
            f"{source}: there are {len(found)} classes ({', '.join(found)}) but the list was made "
            f"for {classes}: correct a misspelt one (the rarest in this file is "
            f"{labels.given[odd]!r}, of image {odd!r}), or name all classes with --names."
        )
    _write_csv(files.labels, pd.DataFrame(every.items(), columns=["path", "label"]))
    return labels, every


def count(labels: Mapping[str, str]) -> dict[str, int]:
    """label -> number of images, by name."""
    return dict(sorted(Counter(labels.values()).items()))


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
    run: OwnRun,
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
        run: The run the list came from.
        labels: path -> label.
        folds: Parts that are held out in turn; classes are dealt evenly to them, copies of one
            image to the same, or a model would be tested on what it was trained on.
        seed: Deals the images, draws the subsets of the learning curve, and trains the network.
        held: Paths of images that were drawn at random: their labels only test.

    Raises:
        ElfsError: if there are fewer than 10 labels to train on or 2 classes, too many folds for
            the labels, or a label of an image that is not in the run.
    """
    kept = set(held)
    known = {path: label for path, label in labels.items() if path not in kept}
    names, given = _targets(run, known)
    tests = np.array([row for row, p in enumerate(run.paths) if p in kept and p in labels], int)
    number = {name: k for k, name in enumerate(names)}  # a class never trained on is never right
    right = np.array([number.get(labels[run.paths[row]], -1) for row in tests], int)
    if not 2 <= folds <= len(known):
        raise ElfsError(f"folds is {folds}: choose from 2 to {len(known)}, the number of labels.")
    rows = np.flatnonzero(given >= 0)
    _, first, group = np.unique(run.copies.group[rows], return_index=True, return_inverse=True)
    if folds > len(first):
        raise ElfsError(
            f"folds is {folds}: the labels are of {len(first)} different images, the others are "
            f"copies of them; choose from 2 to {len(first)}."
        )
    given_by = {"train": given[rows], "test": right}
    oracle = LabelOracle(given_by.__getitem__, tuple(given_by)[: 1 + bool(len(tests))])
    p = run.params

    def build(draft: Draft) -> None:
        targets = oracle.open("train", purpose="evaluation")
        points = _points(run)
        fold_of = _deal(targets[first], folds, seed)[group]
        table = []
        for fold in track(range(folds), "Cross-validation"):
            seen, held = fold_of != fold, fold_of == fold
            trained = train(
                run.train_images,
                targets[seen],
                len(names),
                find_recipe(p.eval_recipe),
                Length(steps=p.eval_steps),
                seeds=Seeds.all(seed + fold),
                subset=rows[seen],
                desc=f"fold {fold + 1}",
                **run.training,
            )
            network = trained.accuracy(run.train_images[rows[held]], targets[held])
            linear = _linear(points[rows[seen]], targets[seen]).predict(points[rows[held]])
            table.append(
                {
                    "fold": fold,
                    "images": int(held.sum()),
                    NETWORK: 100 * network,
                    LINEAR: 100 * float((linear == targets[held]).mean()),
                }
            )
        draft.table("accuracies", pd.DataFrame(table))
        test = oracle.open("test", purpose="evaluation") if len(tests) else None
        draft.table(
            "learning",
            _learning_curve(
                points, rows, targets, fold_of, seed, None if test is None else (tests, test)
            ),
        )
        found, probabilities = _predict(points, rows, targets)
        draft.array("predictions", found)
        draft.array("probabilities", probabilities)

    artifact = run.store.run(
        "assessment",
        build,
        version=3,
        params={
            "tests": dict(zip(tests.tolist(), right.tolist(), strict=True)),
            "copies": group.tolist(),
            "labels": {run.paths[row]: names[given[row]] for row in rows},
            "folds": folds,
            "recipe": recipe_key(p.eval_recipe),
            "steps": p.eval_steps,
            "seed": seed,
            "flip": p.flip,
            "crop_pad": p.crop_pad,
            "precision": p.precision,
        },
        inputs={"images": run.images, "embeddings": run.embeddings},
        seed=seed,
        labels="evaluation",
    )
    found, probabilities = artifact.array("predictions"), artifact.array("probabilities")
    predictions = _as_frame(run, names, found, probabilities, labels)
    counts = {name: int((given == k).sum()) for k, name in enumerate(names)}
    return Assessment(
        artifact.table("accuracies"),
        predictions,
        counts,
        folds,
        artifact.table("learning"),
        len(tests),
        tuple(_contradictions(run, labels)),
        artifact,
    )


def evaluate(
    files: ListFiles,
    *,
    folds: int = 5,
    batch: int | None = None,
    repair: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> tuple[Assessment, Choice | None]:
    """Assess the labels imported so far, and choose the next images to label.

    The next batch continues the same selection with the labels' number added to the budget: images
    that have a label, and their copies, are not asked for again. Which label they have plays no
    part in it.

    Args:
        batch: Images in the next batch, or as many as are left; None: as many as in the first
            list; 0: no batch.
        repair: Recompute damaged artifacts.
        say: Called with each line of the result as it is known.

    Raises:
        ElfsError: if there is no list or no label, or the next batch would lose labels.
    """
    record = read_record(files.record, repair=repair)
    stored = stored_labels(files)
    if not stored:
        raise ElfsError(
            f"There are no labels for {files.csv} yet: run {_import('LABELS', files)} first."
        )
    batch = record.count if batch is None else batch
    if batch:
        _check_typed(files.next.csv, files, stored)
    run = _opened(record)
    there = set(run.paths)
    labels = {path: label for path, label in stored.items() if path in there}
    held = record.request.held
    assessment = assess(run, labels, folds=folds, seed=record.request.seed, held=held)
    for line in assessment.lines():
        say(line)
    if len(labels) < len(stored):
        gone = next(path for path in stored if path not in there)
        say(
            f"{len(stored) - len(labels):,} of the labels are of images that are not in the folder "
            f"any more, and play no part: {gone!r} for one."
        )
    _write_csv(files.predictions, assessment.predictions)
    say(f"What the linear model says of every image: {files.predictions}")
    if not batch:
        return assessment, None
    closed = (assessment.predictions["given"] != "") | assessment.predictions["path"].isin(held)
    left = run.copies.different - len(np.unique(run.copies.group[closed.to_numpy()]))
    if not left:
        say("Every image, or a copy of it, has a label: there is no next batch.")
    elif batch > left:
        say(f"Different images that have no label yet: {left:,}.")
    batch, fit = min(batch, left), max(0, run.room - len(labels))
    if batch > fit:
        say(f"With the hardest {run.least_hard:.0%} set aside, as was asked for, {fit:,} are left.")
    batch = min(batch, fit)
    if not batch:
        _drop_batch(files, labels, say)
        return assessment, None
    done = tuple(labels)
    request = replace(record.request, budget=batch, done=done, compare=False, settled="")
    choice = choose_images(record.folder, request, record.store, say=say)
    write_choice(files.next, choice, record.folder, say=say)
    return assessment, choice


def predict(run: OwnRun, labels: Mapping[str, str]) -> pd.DataFrame:
    """What the linear model of :func:`assess`, trained on all labels, says of every image.

    Args:
        run: The run the list came from.
        labels: path -> label.

    Returns:
        One row an image: path, label, probability, given (the label that people gave, or empty).

    Raises:
        ElfsError: as :func:`assess`.
    """
    names, given = _targets(run, labels)
    rows = np.flatnonzero(given >= 0)
    return _as_frame(run, names, *_predict(_points(run), rows, given[rows]), labels)


def _targets(run: OwnRun, labels: Mapping[str, str]) -> tuple[list[str], np.ndarray]:
    """Names of the classes, and the class of each image, int64 [N]; -1 where none was given."""
    names = sorted(set(labels.values()))
    if len(labels) < FEWEST_LABELS or len(names) < 2:
        raise ElfsError(
            f"There are {len(labels)} labels of {len(names)} classes: label at least "
            f"{FEWEST_LABELS} images of 2 classes first."
        )
    row_of = {path: row for row, path in enumerate(run.paths)}
    unknown = next((path for path in labels if path not in row_of), None)
    if unknown is not None:
        raise ElfsError(f"Image {unknown!r} has a label but is not in the folder: import it again.")
    given = np.full(len(row_of), -1, np.int64)
    for path, label in labels.items():
        given[row_of[path]] = names.index(label)
    return names, given


def _contradictions(run: OwnRun, labels: Mapping[str, str]) -> list[str]:
    """What to say of copies of one image that have different labels."""
    group_of = dict(zip(run.paths, run.copies.group.tolist(), strict=True))
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
    run: OwnRun,
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


def _learning_curve(
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
            right = _linear(points[rows[own]], targets[own]).predict(points[held[0]]) == held[1]
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


def _deal(targets: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """Fold of each label, int64 [L]: each class is shuffled and dealt round robin, one class
    going on where the last one stopped, so that folds differ by one image at most."""
    order = np.random.default_rng(seed).random(len(targets))
    rank, _ = rank_in_class(order, targets)
    start = np.concatenate([[0], np.cumsum(np.bincount(targets))[:-1]])
    return (start[targets] + rank) % folds


def _points(run: OwnRun) -> np.ndarray:
    """Embeddings of length 1, centred, then scaled to a mean square length of 1."""
    rows = unit_rows(np.asarray(run.embeddings.array("embeddings")))
    rows -= rows.mean(0)
    return rows / max(float(np.sqrt((rows**2).sum(1).mean())), 1e-12)


def _predict(
    points: np.ndarray, rows: np.ndarray, targets: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Class of every point, int64 [N], and its probability, float32 [N], after training on rows."""
    model = _linear(points[rows], targets)
    probabilities = model.predict_proba(points)
    return model.classes_[probabilities.argmax(1)], probabilities.max(1).astype(np.float32)


def _linear(points: np.ndarray, targets: np.ndarray) -> LogisticRegression | DummyClassifier:
    if len(np.unique(targets)) == 1:  # what is left of two classes when the rarer is held out
        return DummyClassifier().fit(points, targets)
    return LogisticRegression(C=INVERSE_PENALTY, max_iter=1000).fit(points, targets)
