"""Why each image is on the list, or is not."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
import pandas as pd

from elfs_lib.data.decoding import (
    KEPT,
    LEFT_OUT,
)
from elfs_lib.photos.choice import LEAST_ALIKE, Chooser
from elfs_lib.photos.request import Request
from elfs_lib.photos.run import Photos

_KINDS = ("csv", "rest.csv", "tasks.json", "html", "labels.csv", "predictions.csv", "run.json")
_KINDS += ("holdout.csv", "holdout.tasks.json")
_LIST_SUFFIXES = (*_KINDS, *(f"next.{kind}" for kind in _KINDS))  # of a list's files


def rest_of(
    chooser: Chooser,
    every: pd.DataFrame,
    chosen: np.ndarray,
    hard: np.ndarray | None,
    ranks: list[str],
) -> pd.DataFrame:
    """What became of each image that is not on the list, and why.

    Args:
        hard: bool [N], set aside as too hard; None where nothing is.
        ranks: What to say of each image that no other reason explains.
    """
    run, done = chooser.run, chooser.done
    copies, paths = chooser.photos.copies, run.paths
    near = run.neighbors.array("similarities").mean(1)
    far = near <= np.quantile(near, LEAST_ALIKE)
    places = {"labelled already": done, "kept for testing": chooser.held, "on the list": chosen}
    twins = {
        int(copies.group[row]): (int(row), where) for where, rows in places.items() for row in rows
    }
    taken = set(chosen.tolist())
    given = set(done.tolist())
    rows, kinds, reasons = [], [], []
    for row in range(len(every)):
        if row in taken:
            continue
        twin, where = twins.get(int(copies.group[row]), (None, ""))
        if row in given:
            kind, reason = "labelled", "labelled already"
        elif twin is not None:
            same = copies.first[row] == copies.first[twin]
            how = "same pixels as" if same else "near copy of"
            kind, reason = "copy", f"{how} {paths[twin]}, which is {where}"
        elif hard is None:
            kind, reason = "not_chosen", ranks[row]
        elif hard[row] and far[row]:
            kind = "too_hard"
            reason = (
                f"least like its neighbours: mean cosine {near[row]:.2f}, "
                f"among the lowest {LEAST_ALIKE:.0%}"
            )
        elif hard[row]:
            kind, reason = "too_hard", f"among the hardest {hard.mean():.0%}: {ranks[row]}"
        else:
            kind, reason = "too_easy", f"easier than the list reaches: {ranks[row]}"
        rows.append(row)
        kinds.append(kind)
        reasons.append(reason)
    rest = every.iloc[rows].copy()
    rest.insert(2, "kind", kinds)
    rest.insert(3, "reason", reasons)
    return rest


def without_lists(unread: Mapping[str, list]) -> dict[str, list]:
    """The files that are not read, but for those of lists that were written among the images."""
    others = unread.get("not_an_image", [])
    lists = [name.removesuffix("run.json") for name in others if name.endswith(".run.json")]
    own = {f"{name}{suffix}" for name in lists for suffix in _LIST_SUFFIXES}
    others = [name for name in others if re.sub(r"kept\d+\.csv$", "csv", name) not in own]
    kept = {**unread, "not_an_image": others}
    return {kind: names for kind, names in kept.items() if names}


def file_table(report: Mapping[str, list]) -> pd.DataFrame:
    """The report on files: one row a file and kind."""
    rows = []
    for kind, entries in report.items():
        meaning, used = (LEFT_OUT | KEPT)[kind], kind in KEPT
        for entry in entries:
            path, *first = [entry] if isinstance(entry, str) else entry  # the first file like it
            row = {"kind": kind, "path": path, "meaning": meaning, "used": used}
            rows.append(row | {"same_as": first[0] if first else ""})
    return pd.DataFrame(rows, columns=["kind", "path", "meaning", "used", "same_as"])


def notes_on(photos: Photos, request: Request, chosen: np.ndarray) -> list[str]:
    run, notes = photos.run, []
    if request.classes == "auto":
        notes.append(f"Number of classes: {photos.class_estimate.sentence()}.")
    if request.cluster:
        notes = [*run.cluster_notes, *notes]
        missing = run.classes - len(np.unique(run.pseudo_labels[chosen]))
        if missing:
            verb = "has" if missing == 1 else "have"
            notes.append(f"{missing} of {run.classes} pseudo-classes {verb} no image on the list.")
    sizes = np.bincount(photos.copies.group)
    if sizes.max() > max(20, 0.1 * len(run.paths)):
        notes.append(
            f"{sizes.max():,} images are linked as near copies: if they are not, raise the "
            f"cosine of near copies (now {photos.copies.cosine:g})."
        )
    if (run.images.folder / "test.npy").exists():
        count = len(run.images.array("test"))
        notes.append(
            f"The folder has train and test folders: {count:,} test images are kept apart and "
            "none of them is listed."
        )
    if splits := run.about.get("splits"):  # images kept from before have none
        notes.append(splits)
    return notes
