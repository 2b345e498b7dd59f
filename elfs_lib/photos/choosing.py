"""Own images: from a folder without labels to the list of images to label.

Choosing sees no label: class folders are folders like any other, and of labels already given it
sees only which images have one. :mod:`elfs_lib.photos.labels` is the way back, from labels to a
model.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from elfs_lib.artifacts import Store, package_versions
from elfs_lib.data import datasets
from elfs_lib.data.base import merge_reports
from elfs_lib.embedding import embedding_file
from elfs_lib.embedding.embedding_file import PRECOMPUTED
from elfs_lib.embedding.rows import unit_rows
from elfs_lib.errors import ElfsError, choose
from elfs_lib.params import Params
from elfs_lib.photos.choice import LISTED_COLUMNS, Choice, Chooser
from elfs_lib.photos.image_sources import ImagesInMemory
from elfs_lib.photos.reasons import file_table, notes_on, rest_of, without_lists
from elfs_lib.photos.request import (
    AUTO,
    ELFS,
    Request,
    check_counts,
    check_left,
    check_request,
    comparable_budgets,
    memory_or_path,
    of_these_images,
    rows_of,
)
from elfs_lib.photos.run import Photos, images_in_memory, profile
from elfs_lib.results.low_budget import ADVICE, AS_RANDOM
from elfs_lib.selection import METHODS
from elfs_lib.selection.double_end import hard_prune_count
from elfs_lib.stages.checks import CAPPED, check_device, check_enough_images
from elfs_lib.stages.run import Run


@dataclass(frozen=True, eq=False)
class Provided:
    """Results of steps that the caller has already, in the order of the images.

    Attributes:
        embeddings: float [N, D].
        pseudo_labels: int [N] in 0..C-1.
        scores: float [N], low is hard.
    """

    embeddings: np.ndarray | None = None
    pseudo_labels: np.ndarray | None = None
    scores: np.ndarray | None = None


NOTHING = Provided()
_AT_ONCE = 512  # rows that are compared with the list at a time


# --- choosing ------------------------------------------------------------------------------------


def select(
    images: Any = None,
    *,
    embeddings: np.ndarray | None = None,
    pseudo_labels: np.ndarray | None = None,
    scores: np.ndarray | None = None,
    hard: str = "low",
    classes: int | str = "auto",
    budget: float | int,
    seed: int = 0,
    cosine: float | None = None,
    balanced: bool = True,
    method: str = AUTO,
    artifacts: str | Path | None = None,
    **overrides: Any,
) -> pd.DataFrame:
    """Choose which images to label, without any label. Steps whose result is given are skipped.

    Args:
        images: A directory of image files; a list of files; an array or a torch tensor [N, C, H, W]
            or [N, H, W, C] with C = 1 or 3, or [N, H, W], uint8 or floats in [0, 1]; or a dataset
            of torchvision or Hugging Face, whose labels are not kept. None with ``embeddings`` and
            a method that trains on no images.
        embeddings: float [N, D], in place of an encoder's; rows in the order of the images. For a
            directory, which has no order, see the parameter ``embeddings_path``.
        pseudo_labels: int [N] in 0..C-1, in place of clusters. They must not depend on true labels;
            nothing here can check that.
        scores: float [N], in place of the proxy's training.
        hard: Which end of ``scores`` is hard: "low" or "high".
        classes: Number of classes, at least 2, or "auto": those of ``pseudo_labels``, or else an
            estimate.
        budget: Images to label: a count, or a share in (0, 1].
        seed: Same seed, same list.
        cosine: Similarity of embeddings from which two images are near copies, of which at most
            one is listed; None: 0.95, or 0.998 for the encoder ``pixels``.
        balanced: Whether each pseudo-class is pruned at its own two ends, and so has its share of
            the list at every length; False prunes all images in one order, as the paper does.
        method: A label-free method of ``elfs methods``, or "auto": by labels a class.
        artifacts: Folder that keeps the work of the stages, so that another call goes on from
            there; None: a temporary one.
        overrides: Parameters of :class:`elfs_lib.params.Params`, such as ``encoder``, ``flip``,
            ``device`` or ``image_size``. The defaults are EfficientNet-Lite0 and a
            :func:`profile` for CPUs.

    Returns:
        One row an image, the one to label first at the top: rank, index (row of the array; a
        directory is read in an order of its own), path (relative to the directory, or as it was
        given; else the row as text), pseudo_class, score (the method's; of ELFS AUM: low is hard),
        confidence (of the pseudo-class, in [0, 1]), reason. Without ``images``, and where the
        method needs none, there are no pseudo-classes. ``attrs`` holds hard_prune_ratio, the number
        of classes, method, why, the search for beta as a list of rows (beta, accuracy, error,
        alike), and versions.

    Raises:
        ElfsError: one sentence, if the images or parameters do not allow such a list.

    Example:
        Twenty of 400 small digits, at settings that take seconds:

        >>> import elfs_lib
        >>> from sklearn.datasets import load_digits
        >>> digits = (load_digits().images[:400, None] * 15.9375).astype("uint8")
        >>> to_label = elfs_lib.select(
        ...     digits, classes=10, budget=20, method="elfs", encoder="pixels", flip=False,
        ...     crop_pad=1, temi_heads=2, temi_epochs=10, proxy_epochs=3, search_steps=5,
        ... )
        >>> to_label.shape
        (20, 7)
        >>> list(to_label["rank"][:3])
        [1, 2, 3]
        >>> int(to_label["index"].nunique())
        20

        From embeddings alone, by a method that trains nothing:

        >>> embeddings = load_digits().data[:400]
        >>> few = elfs_lib.select(embeddings=embeddings, budget=5, method="typiclust")
        >>> list(few.columns)
        ['rank', 'index', 'path', 'score', 'reason']
        >>> few.attrs["method"]
        'typiclust'
    """
    if scores is not None:
        choose("hard end", hard, ("low", "high"))
        scores = np.asarray(scores, np.float64)
        if scores.ndim != 1 or not np.isfinite(scores).all():
            raise ElfsError("scores must be one finite number for each image.")
    ascending = scores if scores is None or hard == "low" else -scores
    if images is None:
        if embeddings is None:
            raise ElfsError("There are neither images nor embeddings: give one of them, or both.")
        images = _stand_in(embeddings)
    if method == AUTO and scores is not None:
        method = ELFS
    cluster = pseudo_labels is not None or not (
        isinstance(images, ImagesInMemory) and images.stand_in
    )
    request = Request(
        classes,
        budget,
        seed,
        cosine,
        balanced,
        overrides,
        compare=False,
        method=method,
        cluster=cluster,
    )
    provided = Provided(embeddings, pseudo_labels, ascending)
    with tempfile.TemporaryDirectory(prefix="elfs-") as temporary:
        choice = choose_images(images, request, Store(artifacts or temporary), provided=provided)
        frame = choice.listed.copy()
        searched = choice.search
    if scores is not None and choice.method == ELFS:
        frame["score"] = scores[frame["index"]]  # as it was given
    frame.attrs = {
        "hard_prune_ratio": choice.hard_prune_ratio,
        "classes": choice.run.params.classes,
        "method": choice.method,
        "why": choice.why,
        "search": searched.table.to_dict("records") if searched else [],
        "versions": dict(package_versions()),
    }
    return frame


def _stand_in(embeddings: np.ndarray) -> ImagesInMemory:
    """A stand-in for images that are not there: equal where the embeddings are equal."""
    rows = unit_rows(embeddings)
    digests = b"".join(hashlib.sha256(row).digest() for row in rows)
    return ImagesInMemory(
        np.frombuffer(digests, np.uint8).reshape(len(rows), 1, 4, 8), stand_in=True
    )


def choose_images(
    source: Any,
    request: Request,
    store: Store,
    *,
    provided: Provided = NOTHING,
    say: Callable[[str], None] = lambda text: None,
) -> Choice:
    """Run every stage and choose; arguments as in :func:`select`.

    Args:
        provided: Results that replace steps.
        say: Called with a line of progress before each stage.

    Raises:
        ElfsError: one sentence, before any long work where that can be known.
    """
    photos = open_run(source, request, store, provided=provided, say=say)
    run = photos.run
    n, request = run.n, of_these_images(request, run.paths)
    say("[3/7] neighbours and copies")
    different = photos.copies.different
    if different == 1:
        raise ElfsError(
            f"The {n:,} images are all alike (near copies of one): there is nothing to choose "
            "between, so label one of them."
        )
    estimate, classes = None, request.classes
    # a named method that reads no clusters does not need their number
    needless = request.method != AUTO and not request.cluster
    needless = needless and METHODS[request.method].needs <= {"embeddings", "neighbors"}
    if classes == "auto" and provided.pseudo_labels is not None:
        classes = max(2, int(np.max(provided.pseudo_labels)) + 1)
    elif classes == "auto" and not needless:
        say("[4/7] counting classes")
        estimate = photos.class_estimate
        classes = estimate.classes
    least = 2 if classes == "auto" else int(classes)
    count = check_counts(n, different, replace(request, classes=least), estimate)
    classes = None if classes == "auto" else least
    request = hold_out(run.paths, photos.copies.group, request)
    done, held = (rows_of(paths, run.paths) for paths in (request.done, request.held))
    closed = np.concatenate([done, held])
    left = different - len(np.unique(photos.copies.group[closed]))
    check_left(count, left, different, "different images")
    total = count + len(done)
    if request.names and len(request.names) != classes:
        raise ElfsError(
            f"There are {len(request.names)} names for {classes} pseudo-classes: give one for "
            "each, in the order of their numbers, or none."
        )
    method, why = method_for(request, total, classes)
    request = replace(request, settled=method)
    budgets = comparable_budgets(request, classes or 1, n, different, total)
    wanted = {"classes": classes, "budget": total, "budgets": budgets}
    photos = photos.with_params(Params.make({**run.params.model_dump(), **wanted}))
    photos.check()
    run = photos.run
    if provided.pseudo_labels is not None:
        run = run.with_pseudo_labels(np.asarray(provided.pseudo_labels), "given")
    if provided.scores is not None:
        run = run.with_scores(provided.scores, "given")
    chooser = Chooser(replace(photos, run=run), method, done, held, total)
    _check_trainable(chooser, provided)
    if request.cluster or chooser.trains:
        say(f"[4/7] clustering into {classes} pseudo-classes ({run.clustering})")
        run.ensure("pseudo")
    if chooser.entry.needs & {"scores", "probabilities"}:
        say("[5/7] proxy training on the pseudo-labels")
        run.ensure("proxy")
    if chooser.entry.takes_beta:
        say("[6/7] searching how many of the hardest to leave out")
        chooser.search()
    say("[7/7] comparing lists" if request.compare else "[7/7] choosing")
    choice = choice_of(chooser, request, why, count)
    if request.compare:
        choice.compare()
    return choice


def _check_trainable(chooser: Chooser, provided: Provided) -> None:
    """Refuse to train where there are embeddings and no images."""
    needs, memory = chooser.entry.needs, chooser.photos.memory
    proxy = "probabilities" in needs or ("scores" in needs and provided.scores is None)
    search = chooser.entry.takes_beta and chooser.run.params.hard_prune_ratio is None
    if memory and memory.stand_in and (proxy or search):
        what = "trains on the images" if proxy else "searches its beta by training on the images"
        instead = "scores=" if proxy else "hard_prune_ratio="
        raise ElfsError(
            f"Method {chooser.method} {what}: give images= beside the embeddings, or {instead}, or "
            "another method."
        )


def method_for(request: Request, total: int, classes: int) -> tuple[str, str]:
    """The method that is asked for, or advised, and why in a sentence."""
    if request.method != AUTO:
        return request.method, f"Method {request.method}, as asked for."
    if request.overrides.get("hard_prune_ratio") is not None:
        return ELFS, f"Method {ELFS}, since a hard-prune ratio was given."
    each = total / classes
    method = [method for start, method in ADVICE if start <= each][-1]
    if request.settled not in ("", method):  # the advice has changed since
        return request.settled, f"Method {request.settled}, as advised when the list was made."
    why = (
        f'Method {method}, which the book\'s page "Which method for which budget" advises at '
        f"{each:.3g} labels a class."
    )
    if AS_RANDOM <= each < ADVICE[-1][0]:
        why += (
            " With so many labels no method differed measurably from a random list there: a random "
            "list would serve as well, and be an unbiased sample to test on."
        )
    return method, why


def hold_out(paths: list[str], group: np.ndarray, request: Request) -> Request:
    """Draw what is missing of the images that are kept for testing: uniformly among the different
    images of which none has a label."""
    known = set(paths)
    held = tuple(path for path in request.held if path in known)
    done = tuple(path for path in request.done if path not in set(held))
    closed = np.isin(group, group[rows_of((*held, *done), paths)])
    missing = max(0, request.holdout - len(held))
    draw = np.random.default_rng([request.seed, 1]).permutation(len(group))
    free = [row for row in draw if not closed[row]]
    _, first = np.unique(group[free], return_index=True)
    fresh = [free[place] for place in np.sort(first)][:missing]
    if len(fresh) < missing:
        raise ElfsError(
            f"holdout is {request.holdout:,} and there are only {len(fresh) + len(held):,} "
            "different images without a label: ask for fewer."
        )
    held += tuple(paths[row] for row in fresh)
    return replace(request, done=done, held=held, holdout=len(held))


def open_run(
    source: Any,
    request: Request,
    store: Store,
    *,
    provided: Provided = NOTHING,
    say: Callable[[str], None] = lambda text: None,
) -> Photos:
    """Read and embed the images, and set every parameter but the classes and the budget."""
    photos = read_images(source, request, store, provided=provided, say=say)
    run, n = photos.run, photos.run.n
    say(f"[2/7] embedding {n:,} images with {run.params.encoder}")
    dimensions = run.embeddings.array("embeddings").shape[1]
    crop = {"crop_pad": min(4, min(run.train_images.shape[-2:]) // 8)}
    given = run.params.model_dump(include=run.params.model_fields_set)
    return photos.with_params(Params.make(profile(n, dimensions) | crop | given))


def read_images(
    source: Any,
    request: Request,
    store: Store,
    *,
    provided: Provided = NOTHING,
    say: Callable[[str], None] = lambda text: None,
) -> Photos:
    """Images that are read, and nothing else done."""
    from elfs_lib.compute import configure_runtime

    configure_runtime()
    check_request(request)
    memory, path = memory_or_path(source, request)
    if provided.embeddings is not None and memory is None:
        raise ElfsError(
            "embeddings= cannot be matched with a directory, which has no order: give a list of "
            "files, or encoder='precomputed' and embeddings_path, a file with their paths."
        )
    # Budgets are set when the images are known; their defaults must not stand in the way of a beta
    # that was given.
    encoder = "efficientnet_lite0" if provided.embeddings is None else PRECOMPUTED
    given = {"encoder": encoder, "budgets": (1,), **request.overrides}
    given |= {"dataset": "image_folder", "data_path": path, "seed": request.seed, "budget": 1}
    stages = () if memory is None else (images_in_memory(memory),)
    run = Run(Params.make(given), store, substitutes=stages)
    if provided.embeddings is not None:
        run = run.with_embeddings(provided.embeddings, "given")
    elif run.params.encoder == PRECOMPUTED:
        embedding_file.check_file(run.params.embeddings_path)
    check_device(run.params)
    say("[1/7] reading images")
    n, request = run.n, of_these_images(request, run.paths)
    done, count = len(request.done), check_counts(n, n, request)
    check_left(count, n - done, n, "images")
    if run.params.hard_prune_ratio is not None:
        hard_prune_count(n, run.params.hard_prune_ratio, count + done)
    check_enough_images(run.params, n, [name for name in CAPPED if name in request.overrides])
    return Photos(run, memory, request.cosine, request.balanced)


def choice_of(chooser: Chooser, request: Request, why: str, count: int) -> Choice:
    run, chosen = chooser.run, chooser.rows(count)
    every = pd.DataFrame({"index": np.arange(run.n), "path": run.paths})
    if request.cluster or chooser.trains:
        every["pseudo_class"] = run.pseudo_labels
    every["score"] = np.nan
    if "pseudo_class" in every:
        every["confidence"] = run.pseudo.table("pseudo")["confidence"].to_numpy()
    make = _pruned if chooser.method == ELFS else _represented
    listed, rest = make(chooser, every, chosen)
    held = every.iloc[chooser.held].assign(reason="drawn at random, to test on")
    held = held.set_index("path").loc[list(request.held)].reset_index()  # in the order of the draw
    rest = rest[~rest["index"].isin(chooser.held)]
    unread = datasets.unread_files(run.params.data_path) if chooser.photos.memory is None else {}
    files = file_table(merge_reports(run.about["report"], without_lists(unread)))
    columns = ["rank", "index", *(name for name in LISTED_COLUMNS[1:] if name in listed)]
    ranks = np.arange(1, len(listed) + 1), np.arange(1, len(held) + 1)
    return Choice(
        request,
        chooser,
        why,
        listed.assign(rank=ranks[0]).reset_index(drop=True)[columns],
        held.assign(rank=ranks[1])[columns],
        rest.reset_index(drop=True),
        files,
        tuple(notes_on(chooser.photos, request, chosen)),
    )


def _pruned(
    chooser: Chooser, every: pd.DataFrame, chosen: np.ndarray
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The list of double-end pruning, and what became of the others."""
    run, order_by, balanced = chooser.run, chooser.photos.order, chooser.photos.balanced
    every = every.assign(score=run.scores[run.params.score])
    order = np.argsort(order_by, kind="stable")
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    cut = hard_prune_count(len(order), chooser.beta, chooser.total)
    listed = every.iloc[chosen].copy()
    easier = 1 - order_by if balanced else 1 - (place + 1) / len(order)
    ranks = [
        f"harder than {easier[row]:.0%} of "
        + (f"pseudo-class {run.pseudo_labels[row]}" if balanced else "the images")
        for row in range(len(order))
    ]
    listed["reason"] = [
        f"{ranks[row]}, and not among the hardest {cut / len(order):.0%}"
        if place[row] >= cut
        else "among the hardest: taken because copies left the list short"
        for row in chosen
    ]
    rest = rest_of(chooser, every, chosen, place < cut, ranks)
    return listed, rest.iloc[np.argsort(place[rest["index"]])]


def _represented(
    chooser: Chooser, every: pd.DataFrame, chosen: np.ndarray
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The list of any other method, and which image on it each of the others is most like."""
    run = chooser.run
    rows = unit_rows(np.asarray(run.embeddings.array("embeddings")))
    nearest, cosine = np.empty(run.n, np.int64), np.empty(run.n, np.float32)
    for start in range(0, run.n, _AT_ONCE):
        near = rows[start : start + _AT_ONCE] @ rows[chosen].T
        nearest[start : start + _AT_ONCE] = chosen[near.argmax(1)]
        cosine[start : start + _AT_ONCE] = near.max(1)
    stands_for = np.bincount(nearest, minlength=run.n)
    listed = every.iloc[chosen].assign(score=chooser.scores(len(chosen)))
    listed["reason"] = [
        f"of those on the list the most like {stands_for[row]:,} images" for row in chosen
    ]
    likeness = [
        f"most like {run.paths[near]} on the list: cosine {value:.2f}"
        for near, value in zip(nearest, cosine, strict=True)
    ]
    rest = rest_of(chooser, every, chosen, None, likeness)
    return listed, rest.iloc[np.argsort(cosine[rest["index"]], kind="stable")]
