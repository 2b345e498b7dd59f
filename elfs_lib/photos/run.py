"""People's own images as a run: no labels, images in a folder or in memory.

A :class:`elfs_lib.stages.run.Run` does the work; :class:`Photos` holds it, with what lists need
besides.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from elfs_lib.artifacts import Artifact, Draft
from elfs_lib.clustering.class_count import ClassEstimate, estimate_classes
from elfs_lib.data.duplicates import Copies, default_cosine, find_copies
from elfs_lib.params import Params
from elfs_lib.photos.image_sources import ImagesInMemory
from elfs_lib.selection import easiness
from elfs_lib.selection.by_class import class_quantile
from elfs_lib.selection.double_end import hard_prune_count
from elfs_lib.stages.embedding import side_of_files
from elfs_lib.stages.graph import Given, Stage, given_stage, stage
from elfs_lib.stages.run import Run


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
        run: Their run; with :func:`images_in_memory` if they are in memory.
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
        parts = (part.params for part in run.encoder_runs)
        sides = [side_of_files(params, run.paths, stored) or stored for params in parts]
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


def images_in_memory(memory: ImagesInMemory) -> Stage:
    """The stage that takes images in memory in the place of a folder's."""
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
