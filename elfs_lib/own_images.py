"""Own images: from a folder without labels to the list of images to label.

Choosing sees no label: class folders are folders like any other, and of labels already given it
sees only which images have one. :mod:`elfs_lib.own_labels` is the way back, from labels to a model.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from elfs_lib import datasets, encoders
from elfs_lib.artifacts import Draft, Store, package_versions
from elfs_lib.class_count import ClassEstimate, estimate_classes
from elfs_lib.decoding import (
    KEPT,
    LEFT_OUT,
    decode_images,
    read_ahead,
    read_file,
    readable_formats,
)
from elfs_lib.duplicates import (
    ALIKE,
    ALIKE_COSINE,
    ALIKE_SIDE,
    Copies,
    default_cosine,
    find_copies,
)
from elfs_lib.errors import ElfsError, check_images, is_whole
from elfs_lib.params import Params
from elfs_lib.progress import track
from elfs_lib.readers import merge_reports
from elfs_lib.selection import budget_count, easiness
from elfs_lib.selection.by_class import class_quantile
from elfs_lib.selection.double_end import hard_prune_count
from elfs_lib.stage_embedding import (
    embedding_options,
    embeddings,
    embeddings_key,
    write_embeddings,
)
from elfs_lib.stage_graph import Given, Stage, given_stage, stage
from elfs_lib.stages import Run

FEWEST = 10  # images below which there is nothing to choose
LEAST_ALIKE = 0.05  # share of images that are said to be least like their neighbours
BUDGETS = (200, 500, 1000)  # what the report compares the list with
COLUMNS = ["rank", "path", "pseudo_class", "score", "confidence", "reason"]
ENCODER_SIDE = 224  # what nearly every pretrained encoder was trained at
_CHUNK = 512  # files decoded at a time for the encoder: 77 MB at 224 pixels
_SAMPLE = 256  # files whose headers say how large the images are
_KINDS = ("csv", "rest.csv", "tasks.json", "html", "labels.csv", "predictions.csv", "run.json")
_LIST_SUFFIXES = (*_KINDS, *(f"next.{kind}" for kind in _KINDS))  # of a list's files
_SET_HERE = {"dataset", "data_path", "classes", "budget"}


def profile(n: int, dimensions: int) -> dict[str, Any]:
    """Parameters that finish in minutes on a CPU, by the number of images.

    Args:
        n: Number of images.
        dimensions: Of the embeddings.
    """
    small, medium = n < 3_000, n < 20_000
    return {
        "neighbors": min(50, max(5, n // 40), n - 1),
        "temi_heads": 8 if small else 16,
        "temi_epochs": 100 if small else 60 if medium else 40,
        "temi_batch": 256 if small else 512 if medium else 1024,
        "temi_learning_rate": 1e-3,
        "temi_warmup_epochs": 5,
        "temi_teacher_momentum": 0.99,
        "temi_hidden": 256 if small else 512,
        "temi_bottleneck": 128 if small else 256,
        "temi_pca": 64 if dimensions > 128 and n > 128 else None,
        "temi_loss_epochs": 5,
        "proxy_recipe": "speedrun_tiny" if small else "speedrun_small",
        "proxy_epochs": 20 if small else 12 if medium else 8,
        "hard_prune_ratios": (0.0, 0.2, 0.4, 0.6, 0.8),
        "search_steps": 60 if small else 100,
        "eval_recipe": "speedrun_tiny" if small else "speedrun_small",
        "eval_steps": 200,
    }


@dataclass(frozen=True)
class OwnRun(Run):
    """A run over a folder of images, or over an array of them, without any label."""

    pixels: np.ndarray | None = field(default=None, repr=False, compare=False)
    cosine: float | None = None
    balanced: bool = True

    def stage(self, name: str) -> Stage:
        if name == "images" and self.pixels is not None:
            return _array_images(self.pixels)
        return PHOTO_EMBEDDINGS if name == "embeddings" else super().stage(name)

    def check(self, *, labels: bool = False) -> None:
        if self.pixels is None:  # an array was checked when it came in
            super().check(labels=False)

    @property
    def paths(self) -> list[str]:
        """Path of each image relative to the folder; for an array its row."""
        return self.about["paths"]

    @property
    def shown_at(self) -> str:
        """The size in which each encoder is given the images, before its own resizing."""
        stored = self.train_images.shape[-1]
        sides = [_view(p.params, self.paths, stored) or stored for p in self.encoder_runs]
        return " and ".join(f"{side} pixels" for side in sides)

    @cached_property
    def copies(self) -> Copies:
        """Groups of copies among the images."""
        return find_copies(
            self.train_images,
            self.neighbors.array("indices"),
            self.neighbors.array("similarities"),
            cosine=default_cosine(self.params.encoder) if self.cosine is None else self.cosine,
            look=self.params.encoder != "pixels",
        )

    @property
    def least_hard(self) -> float:
        """The least beta that may be taken: the given one, or the lowest of the grid."""
        given = self.params.hard_prune_ratio
        return min(self.params.hard_prune_ratios) if given is None else given

    @property
    def room(self) -> int:
        """How many images can be listed and labelled together, the hardest being set aside."""
        return self.n - hard_prune_count(self.n, self.least_hard, 0)

    @cached_property
    def order(self) -> np.ndarray:
        """float64 [N], what the list is ordered by, low is hard: the score, or where it stands
        inside its pseudo-class (a quantile) if the list is balanced."""
        ascending = easiness(self.scores, self.params.score)
        return class_quantile(ascending, self.pseudo_labels) if self.balanced else ascending

    def hard_prune_ratio(self, budget: float | int) -> float:
        """As for any run, but the search prunes in the order of the list."""
        given = self.params.hard_prune_ratio
        if given is not None:
            return given
        return float(self.search(budget, balanced=self.balanced).json("search")["best"])

    @cached_property
    def class_estimate(self) -> ClassEstimate:
        """How many classes the embeddings suggest."""
        found = self.artifact(class_count)
        return ClassEstimate(
            **found.json("estimate"),
            grid=np.asarray(found.array("grid")),
            silhouettes=np.asarray(found.array("silhouettes")),
        )


@stage(
    title="number of classes",
    inputs=["embeddings"],
    reads=["seed"],
    version=2,
)
def class_count(given: Given, draft: Draft) -> None:
    """How many classes the embeddings suggest: arrays ``grid`` and ``silhouettes``, json
    ``estimate``, as :class:`elfs_lib.class_count.ClassEstimate` has them."""
    points = np.asarray(given.array("embeddings", "embeddings"))
    found = estimate_classes(points, seed=given.params.seed)
    draft.array("grid", found.grid)
    draft.array("silhouettes", found.silhouettes)
    names = ("classes", "low", "high", "subset")
    draft.json("estimate", {name: getattr(found, name) for name in names})


def _array_images(pixels: np.ndarray) -> Stage:
    """Images as an array of them, uint8 [N, C, H, W]."""

    def build(draft: Draft) -> None:
        draft.array("train", pixels)
        paths = [str(row) for row in range(len(pixels))]
        about = {"class_names": None, "num_classes": None, "paths": paths}
        draft.json("about", about | {"report": {}, "left_out": {}, "source": "an array"})

    digest = hashlib.sha256(pixels).hexdigest()
    keyed = {"dataset": "array", "shape": list(pixels.shape), "source": digest}
    return given_stage("images", build, "images", keyed)


def _photo_view(given: Given) -> int | None:
    paths = given.inputs["images"].json("about")["paths"]
    return _view(given.params, paths, given.array("images", "train").shape[-1])


def _photo_key(given: Given) -> dict[str, Any]:
    side = _photo_view(given)
    return embeddings_key(given) | ({} if side is None else {"view": side})


def _photo_embeddings(given: Given, draft: Draft) -> None:
    """As for any run, but photos are read again at the encoder's own size: the small squares that
    networks are trained on here have lost most of what a pretrained encoder can see."""
    side = _photo_view(given)
    if side is None:
        embeddings.build(given, draft)
        return

    def work() -> np.ndarray:
        from elfs_lib.embedding import frozen_embedder

        options = embedding_options(given)
        embed = frozen_embedder(given.params.encoder, (side, side), **options)
        paths = given.inputs["images"].json("about")["paths"]
        photos = _read_again(Path(given.params.data_path), paths, side)
        return np.concatenate([embed(images) for images in read_ahead(photos)])

    write_embeddings(given, draft, work)


PHOTO_EMBEDDINGS = replace(
    embeddings,
    build=_photo_embeddings,
    reads=embeddings.reads | {"data_path"},
    key=_photo_key,
)


def _read_again(root: Path, paths: list[str], side: int) -> Iterator[np.ndarray]:
    """The files as squares of a side, uint8 [at most _CHUNK, C, side, side] at a time."""
    for start in track(range(0, len(paths), _CHUNK), "Reading photos"):
        part = paths[start : start + _CHUNK]
        decoded = decode_images(
            ((path, root / path) for path in part),
            len(part),
            image_size=side,
            read=read_file,
            desc="reading",
        )
        if len(decoded.names) < len(part):
            gone = min(set(part) - set(decoded.names))
            raise ElfsError(f"{root / gone} changed while it was read: start again.")
        yield decoded.images


def _view(params: Params, paths: list[str], stored: int) -> int | None:
    """Side in pixels at which the files are read again for the encoder; None: not at all.

    Args:
        stored: Side of the images as they are stored.
    """
    small = params.encoder == "pixels" or encoders.trains_here(params.encoder)
    if params.data_path is None or small or "+" in params.encoder:  # of several each has its own
        return None
    step, root = max(1, len(paths) // _SAMPLE), Path(params.data_path)
    sides = list(_short_sides(root / path for path in paths[::step]))
    side = min(params.encoder_size or ENCODER_SIDE, int(np.median(sides)) if sides else 0)
    return side if side > stored else None


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
    """

    classes: int | str
    budget: float | int
    seed: int = 0
    cosine: float | None = None
    balanced: bool = True
    overrides: Mapping[str, Any] = field(default_factory=dict)
    done: tuple[str, ...] = ()
    compare: bool = True


@dataclass(frozen=True)
class Choice:
    """A list of images to label, and what became of all the others.

    Attributes:
        run: The run it comes from.
        request: What was asked for.
        hard_prune_ratio: beta, the share of hardest images set aside.
        listed: One row an image to label: ``COLUMNS`` and ``index``, in rank order.
        rest: One row an image that is not on the list: index, path, kind (``too_hard``,
            ``too_easy``, ``copy``, ``labelled``), reason, pseudo_class, score, confidence;
            hardest first.
        files: One row a file with something to say: kind, path, meaning (of the kind), used, and
            same_as, the first file of the same bytes.
        notes: Sentences that a person should read.
    """

    run: OwnRun
    request: Request
    hard_prune_ratio: float
    listed: pd.DataFrame
    rest: pd.DataFrame
    files: pd.DataFrame
    notes: tuple[str, ...]

    def summary(self) -> list[str]:
        """What was chosen and what was not, in sentences."""
        tally = self.rest["kind"].value_counts()
        kinds = {
            "too_hard": "too hard",
            "too_easy": "too easy",
            "copy": "left out as a copy",
            "labelled": "labelled already",
        }
        others = [f"{tally[kind]:,} {title}" for kind, title in kinds.items() if kind in tally]
        lines = [
            (
                f"{len(self.listed):,} of {len(self.run.paths):,} images to label; the others: "
                f"{', '.join(others) or 'none'} (hard-prune ratio {self.hard_prune_ratio:g})."
            )
        ]
        copies = self.run.copies
        if copies.exact or copies.near:
            lines.append(
                f"Copies among all images: {copies.exact:,} with the pixels of another one, "
                f"{copies.near:,} more near {'copy' if copies.near == 1 else 'copies'}."
            )
        unused = self.files[~self.files["used"].astype(bool)]["kind"].value_counts()
        if len(unused):
            counts = (f"{count:,} {kind.replace('_', ' ')}" for kind, count in unused.items())
            lines.append(f"Files left out: {', '.join(counts)}.")
        return [*lines, *self.notes]

    @property
    def cuts(self) -> np.ndarray:
        """float64 [C, 2]: scores (low is hard) of the hardest and the easiest listed image of each
        pseudo-class; NaN where none is listed."""
        ascending = easiness(self.run.scores, self.run.params.score)[self.listed["index"]]
        found = np.full((self.run.classes, 2), np.nan)
        for label in self.listed["pseudo_class"].unique():
            own = ascending[self.listed["pseudo_class"] == label]
            found[label] = own.min(), own.max()
        return found

    @cached_property
    def budgets(self) -> pd.DataFrame:
        """How the list changes with the budget, one row a budget: budget, hard_prune_ratio,
        overlap (share of the shorter list that is on the longer one), classes (pseudo-classes
        on the list). Each budget has its own search of beta; the list's own is always there."""
        run, mine = self.run, set(self.listed["index"])
        done = _rows_of(self.request.done, run.paths)
        others = run.params.budgets if self.request.compare else ()
        rows = []
        for count in sorted({*others, len(mine)}):
            total = count + len(done)
            if total > run.room:
                continue
            beta = run.hard_prune_ratio(total)
            chosen = pick(run.order, run.copies.group, beta, count, done)
            rows.append(
                {
                    "budget": count,
                    "hard_prune_ratio": beta,
                    "overlap": len(mine & set(chosen)) / min(len(mine), count),
                    "classes": len(np.unique(run.pseudo_labels[chosen])),
                }
            )
        return pd.DataFrame(rows)


# --- choosing ------------------------------------------------------------------------------------


def select(
    images: np.ndarray | str | Path,
    *,
    classes: int | str = "auto",
    budget: float | int,
    seed: int = 0,
    cosine: float | None = None,
    balanced: bool = True,
    artifacts: str | Path | None = None,
    **overrides: Any,
) -> pd.DataFrame:
    """Choose which images to label, without any label.

    Args:
        images: A directory of image files, or uint8 [N, C, H, W] with C = 1 or 3.
        classes: Number of classes, at least 2, or "auto" to estimate it.
        budget: Images to label: a count, or a share in (0, 1].
        seed: Same seed, same list.
        cosine: Similarity of embeddings from which two images are near copies, of which at most
            one is listed; None: 0.95, or 0.998 for the encoder ``pixels``.
        balanced: Whether each pseudo-class is pruned at its own two ends, and so has its share of
            the list at every length; False prunes all images in one order, as the paper does.
        artifacts: Folder that keeps the work of the stages, so that another call goes on from
            there; None: a temporary one.
        overrides: Parameters of :class:`elfs_lib.params.Params`, such as ``encoder``, ``flip``,
            ``device`` or ``image_size``. The defaults are EfficientNet-Lite0 and a
            :func:`profile` for CPUs.

    Returns:
        One row an image, the one to label first at the top: rank, index (row of the array; a
        directory is read in an order of its own), path (relative to the directory; the row as
        text for an array), pseudo_class, score (AUM: low is hard), confidence (of the
        pseudo-class, in [0, 1]), reason. ``attrs`` holds hard_prune_ratio and the number of
        classes.

    Raises:
        ElfsError: one sentence, if the images or parameters do not allow such a list.

    Example:
        Twenty of 400 small digits, at settings that take seconds:

        >>> import elfs_lib
        >>> from sklearn.datasets import load_digits
        >>> digits = (load_digits().images[:400, None] * 15.9375).astype("uint8")
        >>> to_label = elfs_lib.select(
        ...     digits, classes=10, budget=20, encoder="pixels", flip=False, crop_pad=1,
        ...     temi_heads=2, temi_epochs=10, proxy_epochs=3, search_steps=5,
        ... )
        >>> to_label.shape
        (20, 7)
        >>> list(to_label["rank"][:3])
        [1, 2, 3]
        >>> int(to_label["index"].nunique())
        20
    """
    request = Request(classes, budget, seed, cosine, balanced, overrides, compare=False)
    with tempfile.TemporaryDirectory(prefix="elfs-") as temporary:
        choice = choose_images(images, request, Store(artifacts or temporary))
        frame = choice.listed.copy()
    frame.attrs = {
        "hard_prune_ratio": choice.hard_prune_ratio,
        "classes": choice.run.classes,
    }
    return frame


def choose_images(
    source: np.ndarray | str | Path,
    request: Request,
    store: Store,
    *,
    say: Callable[[str], None] = lambda text: None,
) -> Choice:
    """Run every stage and choose; arguments as in :func:`select`.

    Args:
        say: Called with a line of progress before each stage.

    Raises:
        ElfsError: one sentence, before any long work where that can be known.
    """
    run = open_run(source, request, store, say=say)
    n, request = run.n, _of_these(request, run.paths)
    say("[3/7] neighbours and copies")
    different = run.copies.different
    if different == 1:
        raise ElfsError(
            f"The {n:,} images are all alike (near copies of one): there is nothing to choose "
            "between, so label one of them."
        )
    estimate = None
    if request.classes == "auto":
        say("[4/7] counting classes")
        estimate = run.class_estimate
    classes = estimate.classes if estimate else int(request.classes)
    count = _check_counts(n, different, replace(request, classes=classes), estimate)
    done = _rows_of(request.done, run.paths)
    left = different - len(np.unique(run.copies.group[done]))
    _check_left(count, left, different, "different images")
    total = count + len(done)
    budgets = _comparable(request, classes, n, different, total)
    wanted = {"classes": classes, "budget": total, "budgets": budgets}
    run = replace(run, params=Params.make({**run.params.model_dump(), **wanted}))
    run.check()
    say(f"[4/7] clustering into {classes} pseudo-classes (TEMI)")
    run.ensure("pseudo")
    say("[5/7] proxy training on the pseudo-labels")
    run.ensure("proxy")
    say("[6/7] searching how many of the hardest to leave out")
    beta = run.hard_prune_ratio(total)
    say("[7/7] comparing budgets" if request.compare else "[7/7] choosing")
    choice = _choice(run, request, beta, count, done)
    if request.compare:
        choice.budgets  # noqa: B018
    return choice


def open_run(
    source: np.ndarray | str | Path,
    request: Request,
    store: Store,
    *,
    say: Callable[[str], None] = lambda text: None,
) -> OwnRun:
    """Read and embed the images, and set every parameter but the classes and the budget."""
    run = read_images(source, request, store, say=say)
    n = run.n
    say(f"[2/7] embedding {n:,} images with {run.params.encoder}")
    dimensions = run.embeddings.array("embeddings").shape[1]
    crop = {"crop_pad": min(4, min(run.train_images.shape[-2:]) // 8)}
    given = run.params.model_dump(include=run.params.model_fields_set)
    return replace(run, params=Params.make(profile(n, dimensions) | crop | given))


def read_images(
    source: np.ndarray | str | Path,
    request: Request,
    store: Store,
    *,
    say: Callable[[str], None] = lambda text: None,
) -> OwnRun:
    """The run whose images are read, and nothing else done."""
    _check_request(request)
    pixels, path = _source(source, request)
    # Budgets are set when the images are known; their defaults must not stand in the way of a beta
    # that was given.
    given = {"encoder": "efficientnet_lite0", "budgets": (1,), **request.overrides}
    given |= {"dataset": "image_folder", "data_path": path, "seed": request.seed, "budget": 1}
    run = OwnRun(Params.make(given), store, pixels, request.cosine, request.balanced)
    run.check_device()
    say("[1/7] reading images")
    n, request = run.n, _of_these(request, run.paths)
    done, count = len(request.done), _check_counts(n, n, request)
    _check_left(count, n - done, n, "images")
    if "neighbors" in request.overrides:
        run.check_neighbors()
    if run.params.hard_prune_ratio is not None:
        hard_prune_count(n, run.params.hard_prune_ratio, count + done)
    run.check_pca()
    return run


def pick(
    ascending: np.ndarray,
    group: np.ndarray,
    hard_prune_ratio: float,
    count: int,
    done: np.ndarray | None = None,
) -> np.ndarray:
    """Double-end pruning with at most one of each group of copies, and none that is done.

    The hardest beta N images are set aside, and the list takes the next ones in order; a copy of
    one already taken is passed over, so the list reaches further towards the easy end. Only
    where that end is too short the hard images nearest to the cut fill it up, at its end.

    Args:
        ascending: float [N], low is hard.
        group: int64 [N], equal for copies.
        hard_prune_ratio: beta in [0, 1).
        count: Length of the list.
        done: int64, images whose groups are already labelled.

    Returns:
        int64 [count], in rank order; shorter if there are not enough groups.
    """
    done = np.empty(0, np.int64) if done is None else done
    order = np.argsort(ascending, kind="stable")
    cut = hard_prune_count(len(order), hard_prune_ratio, count + len(done))
    walk = np.concatenate([order[cut:], order[:cut][::-1]])
    walk = walk[~np.isin(group[walk], group[done])]
    _, first = np.unique(group[walk], return_index=True)
    return walk[np.sort(first)][:count]


def facts(choice: Choice) -> list[str]:
    """How a list was made, in sentences: what was asked for, and each threshold in force."""
    run, request = choice.run, choice.request
    p, copies = run.params, run.copies
    encoder = run.encoder_facts
    seen = {True: "with labels", False: "without labels", None: "labels unknown"}
    near = f"cosine similarity of embeddings of {copies.cosine:g} or more"
    if p.encoder != "pixels":
        near += (
            f", or up to {ALIKE_COSINE:g} less and brightness at {ALIKE_SIDE} pixels correlated by "
            f"{ALIKE:g} or more,"
        )
    given = "estimated" if request.classes == "auto" else "given"
    changed = ", ".join(f"{name}={value}" for name, value in request.overrides.items())
    versions = ", ".join(f"{name} {version}" for name, version in package_versions().items())
    return [
        f"{len(run.paths):,} images, each cut to the square in its middle and stored at "
        f"{run.train_images.shape[-1]} pixels, {run.classes} classes ({given}), "
        f"{len(choice.listed):,} images asked for, seed {request.seed}"
        + (f", {changed}." if changed else "."),
        (
            f"Encoder {p.encoder}: {encoder['pretraining']} ({seen[encoder['saw_labels']]}); "
            f"licence of the weights: {encoder['license']}. It is shown squares of {run.shown_at}."
        ),
        (
            f"Near copies: {near} among the {p.neighbors} nearest neighbours; {copies.exact:,} "
            f"with the pixels of another one, {copies.near:,} more near copies."
        ),
        (
            f"Least like their neighbours: the {LEAST_ALIKE:.0%} of the images with the lowest "
            "mean similarity to them; there are as many of them in any folder."
        ),
        (
            f"TEMI: {p.temi_heads} heads, {p.temi_epochs} epochs; proxy {p.proxy_recipe}: "
            f"{p.proxy_epochs} epochs; search: {p.search_steps} steps a model."
        ),
        f"Versions: {versions}.",
    ]


def _short_sides(files: Iterable[Path]) -> Iterator[int]:
    for file in files:
        try:
            with Image.open(file, formats=readable_formats()) as image:
                yield min(image.size)
        except Exception:  # parsers fail in any way they like; others will do
            continue


def _check_request(request: Request) -> None:
    named = sorted(_SET_HERE & set(request.overrides))
    if named:
        raise ElfsError(f"Parameter {named[0]!r} has an argument of its own here: use that.")
    classes = request.classes
    if classes != "auto" and not is_whole(classes, 2):
        raise ElfsError(f"classes is {classes!r}: give a whole number of at least 2, or auto.")
    if not isinstance(request.balanced, bool):
        raise ElfsError(f"balanced is {request.balanced!r}: give True or False.")
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


def _source(
    source: np.ndarray | str | Path, request: Request
) -> tuple[np.ndarray | None, str | None]:
    if not isinstance(source, (np.ndarray, str, Path)):
        raise ElfsError(
            f"images are a {type(source).__name__}: give uint8 [N, C, H, W] as a NumPy array, or a "
            "directory."
        )
    if not isinstance(source, np.ndarray):
        source = Path(source).expanduser()
        datasets.check_dataset("image_folder", path=source)
        return None, str(source)
    check_images(source, instead=", or a directory")
    if "image_size" in request.overrides:
        raise ElfsError("Parameter 'image_size' is for files: resize the array yourself.")
    return np.ascontiguousarray(source), None


def _check_counts(
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


def _of_these(request: Request, paths: Collection[str]) -> Request:
    """Labels of images that are gone play no part."""
    known = set(paths)
    return replace(request, done=tuple(path for path in request.done if path in known))


def _check_left(count: int, left: int, total: int, kind: str) -> None:
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


def _comparable(
    request: Request, classes: int, n: int, different: int, total: int
) -> tuple[int, ...]:
    """Budgets to compare with, as counts: those that the images allow, else the list's own."""
    wanted = request.overrides.get("budgets", BUDGETS)
    counts = [budget_count(b, n) for b in wanted if b <= n]
    return tuple(dict.fromkeys(b for b in counts if classes <= b <= different)) or (total,)


def _rows_of(paths: Collection[str], known: list[str]) -> np.ndarray:
    wanted = set(paths)
    return np.array([row for row, path in enumerate(known) if path in wanted], np.int64)


def _choice(run: OwnRun, request: Request, beta: float, count: int, done: np.ndarray) -> Choice:
    chosen = pick(run.order, run.copies.group, beta, count, done)
    order = np.argsort(run.order, kind="stable")
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    cut = hard_prune_count(len(order), beta, count + len(done))
    confidence = run.pseudo.table("pseudo")["confidence"].to_numpy()
    every = pd.DataFrame(
        {
            "index": np.arange(len(order)),
            "path": run.paths,
            "pseudo_class": run.pseudo_labels,
            "score": run.scores[run.params.score],
            "confidence": confidence,
        }
    )
    listed = every.iloc[chosen].copy()
    listed.insert(0, "rank", np.arange(1, count + 1))
    easier = 1 - run.order if run.balanced else 1 - (place + 1) / len(order)
    ranks = [
        f"harder than {easier[row]:.0%} of "
        + (f"pseudo-class {run.pseudo_labels[row]}" if run.balanced else "the images")
        for row in range(len(order))
    ]
    listed["reason"] = [
        f"{ranks[row]}, and not among the hardest {cut / len(order):.0%}"
        if place[row] >= cut
        else "among the hardest: taken because copies left the list short"
        for row in chosen
    ]
    rest = _rest(run, every, chosen, done, place < cut, ranks)
    unread = datasets.unread_files(run.params.data_path) if run.pixels is None else {}
    files = _files(merge_reports(run.about["report"], _without_lists(unread)))
    return Choice(
        run,
        request,
        beta,
        listed.reset_index(drop=True)[["rank", "index", *COLUMNS[1:]]],
        rest.iloc[np.argsort(place[rest["index"]])].reset_index(drop=True),
        files,
        tuple(_notes(run, request, chosen)),
    )


def _rest(
    run: OwnRun,
    every: pd.DataFrame,
    chosen: np.ndarray,
    done: np.ndarray,
    hard: np.ndarray,
    ranks: list[str],
) -> pd.DataFrame:
    """What became of each image that is not on the list, and why."""
    cut = hard.mean()
    copies, paths = run.copies, run.paths
    near = run.neighbors.array("similarities").mean(1)
    far = near <= np.quantile(near, LEAST_ALIKE)
    listed = {int(copies.group[row]): int(row) for row in chosen}
    labelled = {int(copies.group[row]): int(row) for row in done}
    taken = set(chosen.tolist())
    given = set(done.tolist())
    rows, kinds, reasons = [], [], []
    for row in range(len(every)):
        if row in taken:
            continue
        group = int(copies.group[row])
        twin = listed.get(group, labelled.get(group))
        if row in given:
            kind, reason = "labelled", "labelled already"
        elif twin is not None:
            same = copies.first[row] == copies.first[twin]
            how = "same pixels as" if same else "near copy of"
            where = "on the list" if group in listed else "labelled already"
            kind, reason = "copy", f"{how} {paths[twin]}, which is {where}"
        elif hard[row] and far[row]:
            kind = "too_hard"
            reason = (
                f"least like its neighbours: mean cosine {near[row]:.2f}, "
                f"among the lowest {LEAST_ALIKE:.0%}"
            )
        elif hard[row]:
            kind, reason = "too_hard", f"among the hardest {cut:.0%}: {ranks[row]}"
        else:
            kind, reason = "too_easy", f"easier than the list reaches: {ranks[row]}"
        rows.append(row)
        kinds.append(kind)
        reasons.append(reason)
    rest = every.iloc[rows].copy()
    rest.insert(2, "kind", kinds)
    rest.insert(3, "reason", reasons)
    return rest


def _without_lists(unread: Mapping[str, list]) -> dict[str, list]:
    """The files that are not read, but for those of lists that were written among the images."""
    others = unread.get("not_an_image", [])
    lists = [name.removesuffix("run.json") for name in others if name.endswith(".run.json")]
    own = {f"{name}{suffix}" for name in lists for suffix in _LIST_SUFFIXES}
    others = [name for name in others if re.sub(r"kept\d+\.csv$", "csv", name) not in own]
    kept = {**unread, "not_an_image": others}
    return {kind: names for kind, names in kept.items() if names}


def _files(report: Mapping[str, list]) -> pd.DataFrame:
    """The report on files: one row a file and kind."""
    rows = []
    for kind, entries in report.items():
        meaning, used = (LEFT_OUT | KEPT)[kind], kind in KEPT
        for entry in entries:
            path, *first = [entry] if isinstance(entry, str) else entry  # the first file like it
            row = {"kind": kind, "path": path, "meaning": meaning, "used": used}
            rows.append(row | {"same_as": first[0] if first else ""})
    return pd.DataFrame(rows, columns=["kind", "path", "meaning", "used", "same_as"])


def _notes(run: OwnRun, request: Request, chosen: np.ndarray) -> list[str]:
    notes = list(run.cluster_notes)
    if request.classes == "auto":
        notes.append(f"Number of classes: {run.class_estimate.sentence()}.")
    missing = run.classes - len(np.unique(run.pseudo_labels[chosen]))
    if missing:
        verb = "has" if missing == 1 else "have"
        notes.append(f"{missing} of {run.classes} pseudo-classes {verb} no image on the list.")
    sizes = np.bincount(run.copies.group)
    if sizes.max() > max(20, 0.1 * len(run.paths)):
        notes.append(
            f"{sizes.max():,} images hang together as near copies: if they are not, raise the "
            f"cosine of near copies (now {run.copies.cosine:g})."
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
