"""From a list of images to labels and a model: the files around a list, and the way back.

``elfs select`` writes a list, people label, ``elfs labels import`` checks what they say, and
``elfs evaluate`` trains on it and names the next images to label.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from elfs_lib.data.label_files import Labels, class_name, read_labels
from elfs_lib.errors import ElfsError, choose
from elfs_lib.photos.assessment import Assessment, assess
from elfs_lib.photos.choice import Choice
from elfs_lib.photos.choosing import choose_images
from elfs_lib.photos.lists import (
    ListFiles,
    check_typed,
    drop_batch,
    import_command,
    opened_run,
    read_record,
    stored_labels,
    write_choice,
    write_list_csv,
)


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
    write_list_csv(files.labels, pd.DataFrame(every.items(), columns=["path", "label"]))
    return labels, every


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
    that have a label, and their copies, are not asked for again. Their labels have no influence on
    it.

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
            f"There are no labels for {files.csv} yet: run {import_command('LABELS', files)} first."
        )
    batch = record.count if batch is None else batch
    if batch:
        check_typed(files.next.csv, files, stored)
    photos = opened_run(record)
    there = set(photos.run.paths)
    labels = {path: label for path, label in stored.items() if path in there}
    held = record.request.held
    assessment = assess(photos, labels, folds=folds, seed=record.request.seed, held=held)
    for line in assessment.lines():
        say(line)
    if len(labels) < len(stored):
        gone = next(path for path in stored if path not in there)
        say(
            f"{len(stored) - len(labels):,} of the labels are of images that are not in the folder "
            f"any more and are ignored: {gone!r} for one."
        )
    write_list_csv(files.predictions, assessment.predictions)
    say(f"What the linear model says of every image: {files.predictions}")
    if not batch:
        return assessment, None
    closed = (assessment.predictions["given"] != "") | assessment.predictions["path"].isin(held)
    left = photos.copies.different - len(np.unique(photos.copies.group[closed.to_numpy()]))
    if not left:
        say("Every image, or a copy of it, has a label: there is no next batch.")
    elif batch > left:
        say(f"Different images that have no label yet: {left:,}.")
    batch, fit = min(batch, left), max(0, photos.room - len(labels))
    if batch > fit:
        say(
            f"With the hardest {photos.least_hard:.0%} set aside, as was asked for, {fit:,} are "
            "left."
        )
    batch = min(batch, fit)
    if not batch:
        drop_batch(files, labels, say)
        return assessment, None
    done = tuple(labels)
    request = replace(record.request, budget=batch, done=done, compare=False, settled="")
    choice = choose_images(record.folder, request, record.store, say=say)
    write_choice(files.next, choice, record.folder, say=say)
    return assessment, choice
