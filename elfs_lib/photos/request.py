"""What is asked for, and whether the images allow it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from elfs_lib.clustering.class_count import ClassEstimate
from elfs_lib.data import datasets
from elfs_lib.data.base import Source
from elfs_lib.errors import ElfsError, choose, is_whole
from elfs_lib.photos.image_sources import ImagesInMemory, read_source
from elfs_lib.selection import METHODS, budget_count

FEWEST = 10  # images below which there is nothing to choose
BUDGETS = (200, 500, 1000)  # what the report compares the list with
AUTO, ELFS = "auto", "elfs"  # the method by labels a class; double-end pruning
OTHER_SEEDS = 2  # lists made with other seeds, to see how much comes back
NEXT = 100  # labels more: what they would add is said
_SET_HERE = {"dataset", "data_path", "classes", "budget"}


@dataclass(frozen=True)
class Request:
    """What is asked for; the record next to a list holds one.

    Attributes:
        classes: Number of classes, or "auto" to estimate it.
        budget: Images to label: a count, or a share in (0, 1] of all.
        seed: Same seed, same list.
        cosine: Similarity from which images are near copies; None: by the encoder.
        balanced: Whether each pseudo-class is pruned at its own two ends, and so has its share.
        overrides: Parameters that win over the profile.
        done: Paths of images that are labelled already.
        compare: Whether lists of other budgets are made too, to see what they would change.
        method: A label-free method of the registry, ``elfs`` for double-end pruning as
            ``balanced`` says; or "auto": by labels a class
            (:data:`elfs_lib.results.low_budget.ADVICE`).
        holdout: Images drawn at random to be labelled for testing; they are never listed.
        held: Paths of those that were drawn already.
        names: A name of each pseudo-class, to suggest as its images' label; empty for none.
        cluster: Whether pseudo-classes are made though the method needs none.
        settled: What "auto" chose when the list was made; the same list keeps it.
    """

    classes: int | str
    budget: float | int
    seed: int = 0
    cosine: float | None = None
    balanced: bool = True
    overrides: Mapping[str, Any] = field(default_factory=dict)
    done: tuple[str, ...] = ()
    compare: bool = True
    method: str = ELFS
    holdout: int = 0
    held: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    cluster: bool = True
    settled: str = ""


def check_request(request: Request) -> None:
    named = sorted(_SET_HERE & set(request.overrides))
    if named:
        raise ElfsError(f"Parameter {named[0]!r} has an argument of its own here: use that.")
    classes = request.classes
    if classes != "auto" and not is_whole(classes, 2):
        raise ElfsError(f"classes is {classes!r}: give a whole number of at least 2, or auto.")
    if not isinstance(request.balanced, bool):
        raise ElfsError(f"balanced is {request.balanced!r}: give True or False.")
    if request.method != AUTO:
        known = [name for name, entry in METHODS.items() if not entry.supervised]
        choose("method", request.method, [AUTO, *known])
    if not is_whole(request.holdout, 0):
        raise ElfsError(f"holdout is {request.holdout!r}: give a whole number of at least 0.")
    budget, cosine = request.budget, request.cosine
    for name, value in {"budget": budget, "cosine": 1 if cosine is None else cosine}.items():
        if isinstance(value, bool) or not isinstance(value, (int, float, np.number)):
            raise ElfsError(f"{name} is {value!r}: give a number.")
    if not budget > 0:
        raise ElfsError(f"budget is {budget}: ask for at least one image.")
    if budget > 1 and not float(budget).is_integer():
        raise ElfsError(f"budget is {budget}: give a whole number of images, or a share up to 1.")
    if cosine is not None and not 0 < cosine <= 1:
        raise ElfsError(f"The cosine of near copies is {cosine}: give a number above 0, up to 1.")


def memory_or_path(source: Any, request: Request) -> tuple[ImagesInMemory | None, str | None]:
    """Images in memory, or the directory that they are in."""
    if isinstance(source, ImagesInMemory):
        return source, None
    if isinstance(source, (str, Path)):
        folder = Path(source).expanduser()
        datasets.check_dataset(Source("image_folder", path=folder))
        return None, str(folder)
    found = read_source(source, request.overrides.get("image_size"))
    return found, str(Path.cwd()) if found.files else None  # where files are read again from


def check_counts(
    n: int, different: int, request: Request, estimate: ClassEstimate | None = None
) -> int:
    """The budget as a count, if there are enough images for it and the classes."""
    if n < FEWEST:
        raise ElfsError(
            f"There are only {n} usable images: label them all, for choosing needs at least "
            f"{FEWEST}."
        )
    classes = 2 if request.classes == "auto" else int(request.classes)
    if classes > different:
        kind = "images" if different == n else "different images"
        raise ElfsError(
            f"There are only {different:,} {kind} for {classes:,} classes: give more images or "
            "fewer classes."
        )
    count = budget_count(request.budget, n)
    if count + len(request.done) < classes:
        which, end = "", "so that each class can have one"
        if estimate:
            which = (
                f" that the images suggest ({estimate.low} to {estimate.high} fit about as well)"
            )
            end = "or give the number of classes"
        raise ElfsError(
            f"budget {count} is below the {classes} classes{which}: ask for at least {classes} "
            f"images, {end}."
        )
    if count > different:
        raise ElfsError(
            f"budget {count:,} is above the {different:,} different images (the other "
            f"{n - different:,} of {n:,} are copies): ask for at most {different:,}."
        )
    return count


def of_these_images(request: Request, paths: Collection[str]) -> Request:
    """The request without the labels of images that are gone."""
    known = set(paths)
    return replace(request, done=tuple(path for path in request.done if path in known))


def check_left(count: int, left: int, total: int, kind: str) -> None:
    """Refuse a budget that is larger than what has no label yet."""
    if not left:
        raise ElfsError(
            f"Each of the {total:,} {kind}, or a copy of it, has a label: there is none left to "
            "list."
        )
    if count > left:
        raise ElfsError(
            f"budget {count:,} is above the {left:,} {kind} that have no label yet: ask for at "
            f"most {left:,}."
        )


def comparable_budgets(
    request: Request, classes: int, n: int, different: int, total: int
) -> tuple[int, ...]:
    """Budgets to compare with, as counts: those that the images allow, else the list's own."""
    wanted = request.overrides.get("budgets", BUDGETS)
    counts = [budget_count(b, n) for b in wanted if b <= n]
    return tuple(dict.fromkeys(b for b in counts if classes <= b <= different)) or (total,)


def rows_of(paths: Collection[str], known: list[str]) -> np.ndarray:
    wanted = set(paths)
    return np.array([row for row, path in enumerate(known) if path in wanted], np.int64)
