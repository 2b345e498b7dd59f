"""People's own images as a run: no labels, images in memory or photos at the encoder's size.

A :class:`elfs_lib.stages.run.Run` with two stages of its own does the work; :class:`Photos` holds
it, with what lists need besides.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from elfs_lib.artifacts import Artifact, Draft
from elfs_lib.clustering.class_count import ClassEstimate, estimate_classes
from elfs_lib.data.decoding import (
    decode_images,
    read_ahead,
    read_file,
    readable_formats,
)
from elfs_lib.data.duplicates import (
    Copies,
    default_cosine,
    find_copies,
)
from elfs_lib.embedding import encoders
from elfs_lib.embedding.embedding_file import PRECOMPUTED
from elfs_lib.errors import ElfsError
from elfs_lib.params import Params
from elfs_lib.photos.image_sources import ImagesInMemory
from elfs_lib.progress import track
from elfs_lib.selection import easiness
from elfs_lib.selection.by_class import class_quantile
from elfs_lib.selection.double_end import hard_prune_count
from elfs_lib.stages.embedding import (
    embedding_options,
    embeddings,
    embeddings_key,
    write_embeddings,
)
from elfs_lib.stages.graph import Given, Stage, given_stage, stage
from elfs_lib.stages.run import Run

ENCODER_SIDE = 224  # what nearly every pretrained encoder was trained at
PHOTOS_AT_ONCE = 512  # files decoded at a time for the encoder: 77 MB at 224 pixels
_SAMPLE = 256  # files whose headers say how large the images are


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
class Photos:
    """Images without any label: their run, and what a list needs to know of them besides.

    Attributes:
        run: A run with the stages of :func:`photo_stages`.
        memory: The images, if they are in memory; None for a folder.
        cosine: As in :class:`elfs_lib.photos.request.Request`.
        balanced: Likewise.
    """

    run: Run
    memory: ImagesInMemory | None = field(default=None, repr=False, compare=False)
    cosine: float | None = None
    balanced: bool = True

    def with_params(self, params: Params) -> Photos:
        """The same images under other parameters."""
        return replace(self, run=replace(self.run, params=params))

    def check(self) -> None:
        """Check everything that can be checked without computing."""
        if self.memory is None:  # an array was checked when it came in
            self.run.check(labels=False)

    @property
    def shown_at(self) -> str:
        """The size in which each encoder is given the images, before its own resizing."""
        run, stored = self.run, self.run.train_images.shape[-1]
        sides = [_view(part.params, run.paths, stored) or stored for part in run.encoder_runs]
        return " and ".join(f"{side} pixels" for side in sides)

    @cached_property
    def copies(self) -> Copies:
        """Groups of copies among the images."""
        run, encoder = self.run, self.run.params.encoder
        return find_copies(
            run.train_images,
            run.neighbors.array("indices"),
            run.neighbors.array("similarities"),
            cosine=default_cosine(encoder) if self.cosine is None else self.cosine,
            look=encoder != "pixels" and not (self.memory and self.memory.stand_in),
        )

    @property
    def least_hard(self) -> float:
        """The least beta that may be taken: the given one, or the lowest of the grid."""
        params = self.run.params
        given = params.hard_prune_ratio
        return min(params.hard_prune_ratios) if given is None else given

    @property
    def room(self) -> int:
        """How many images can be listed and labelled together, the hardest being set aside."""
        return self.run.n - hard_prune_count(self.run.n, self.least_hard, 0)

    @cached_property
    def order(self) -> np.ndarray:
        """float64 [N], what the list is ordered by, low is hard: the score, or where it stands
        inside its pseudo-class (a quantile) if the list is balanced."""
        ascending = easiness(self.run.scores, self.run.params.score)
        return class_quantile(ascending, self.run.pseudo_labels) if self.balanced else ascending

    def search(self, budget: float | int) -> Artifact:
        """The run's search for beta, in the order of the list."""
        return self.run.search(budget, balanced=self.balanced)

    def hard_prune_ratio(self, budget: float | int) -> float:
        """Beta for a budget: the given one, or the choice of the search."""
        given = self.run.params.hard_prune_ratio
        return float(self.search(budget).json("search")["best"]) if given is None else given

    @cached_property
    def class_estimate(self) -> ClassEstimate:
        """How many classes the embeddings suggest."""
        found = self.run.artifact(class_count)
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
    ``estimate``, as :class:`elfs_lib.clustering.class_count.ClassEstimate` has them."""
    points = np.asarray(given.array("embeddings", "embeddings"))
    found = estimate_classes(points, seed=given.params.seed)
    draft.array("grid", found.grid)
    draft.array("silhouettes", found.silhouettes)
    names = ("classes", "low", "high", "subset")
    draft.json("estimate", {name: getattr(found, name) for name in names})


def photo_stages(memory: ImagesInMemory | None = None) -> tuple[Stage, ...]:
    """The stages of a run over people's own images that are not those of any run.

    Args:
        memory: The images; None for those of the run's folder.
    """
    return (photo_embeddings,) if memory is None else (_images_in_memory(memory), photo_embeddings)


def _images_in_memory(memory: ImagesInMemory) -> Stage:
    pixels = memory.pixels
    paths = memory.paths or [str(row) for row in range(len(pixels))]

    def build(draft: Draft) -> None:
        draft.array("train", pixels)
        about = {"class_names": None, "num_classes": None, "paths": paths}
        draft.json("about", about | {"report": {}, "left_out": {}, "source": "an array"})

    digest = hashlib.sha256(pixels).hexdigest()
    keyed = {"dataset": "array", "shape": list(pixels.shape), "source": digest}
    if memory.paths:
        keyed["paths"] = paths
    return given_stage("images", build, "images", keyed)


def _photo_view(given: Given) -> int | None:
    paths = given.inputs["images"].json("about")["paths"]
    return _view(given.params, paths, given.array("images", "train").shape[-1])


def _photo_key(given: Given) -> dict[str, Any]:
    return embeddings_key(given) | given.key_entry("view", _photo_view, neutral=None)


def _photo_embeddings(given: Given, draft: Draft) -> None:
    """As for any run, but photos are read again at the encoder's own size: the small squares that
    networks are trained on here have lost most of what a pretrained encoder can see."""
    side = _photo_view(given)
    if side is None:
        embeddings.build(given, draft)
        return

    def work() -> np.ndarray:
        from elfs_lib.embedding.embed import frozen_embedder

        options = embedding_options(given)
        embed = frozen_embedder(given.params.encoder, (side, side), **options)
        paths = given.inputs["images"].json("about")["paths"]
        photos = _read_again(Path(given.params.data_path), paths, side)
        return np.concatenate([embed(images) for images in read_ahead(photos)])

    write_embeddings(given, draft, work)


photo_embeddings = replace(
    embeddings,
    build=_photo_embeddings,
    reads=embeddings.reads | {"data_path"},
    key=_photo_key,
)


def _read_again(root: Path, paths: list[str], side: int) -> Iterator[np.ndarray]:
    """The files as squares of a side, uint8 [at most PHOTOS_AT_ONCE, C, side, side] at a time."""
    for start in track(range(0, len(paths), PHOTOS_AT_ONCE), "Reading photos"):
        part = paths[start : start + PHOTOS_AT_ONCE]
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
    small = params.encoder in ("pixels", PRECOMPUTED) or encoders.trains_here(params.encoder)
    if params.data_path is None or small or "+" in params.encoder:  # of several each has its own
        return None
    step, root = max(1, len(paths) // _SAMPLE), Path(params.data_path)
    sides = list(_short_sides(root / path for path in paths[::step]))
    side = min(params.encoder_size or ENCODER_SIDE, int(np.median(sides)) if sides else 0)
    return side if side > stored else None


def _short_sides(files: Iterable[Path]) -> Iterator[int]:
    for file in files:
        try:
            with Image.open(file, formats=readable_formats()) as image:
                yield min(image.size)
        except Exception:  # a parser may raise anything; the other files suffice
            continue
