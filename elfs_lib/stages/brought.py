"""Stages in the place of those of their name, of what a researcher brings: keyed by content."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from elfs_lib.artifacts import Draft
from elfs_lib.clustering.registry import check_labels
from elfs_lib.errors import ElfsError
from elfs_lib.stages.clustering import pseudo, write_pseudo
from elfs_lib.stages.dynamics import proxy
from elfs_lib.stages.embedding import embeddings, test_embeddings
from elfs_lib.stages.graph import Stage, given_stage

if TYPE_CHECKING:
    from elfs_lib.stages.run import Run


def brought_pseudo_labels(
    run: Run, labels: np.ndarray, name: str, confidence: np.ndarray | None
) -> Stage:
    """Of :meth:`elfs_lib.stages.run.Run.with_pseudo_labels`."""
    sure = np.ones(run.n) if confidence is None else confidence
    kept, sure = check_labels(labels, sure, run.n, run.classes)
    return _brought(pseudo, name, lambda draft: write_pseudo(draft, kept, sure), kept, sure)


def brought_embeddings(
    run: Run, array: np.ndarray, name: str, test: np.ndarray | None
) -> list[Stage]:
    """Of :meth:`elfs_lib.stages.run.Run.with_embeddings`."""
    stages = [_rows_for(embeddings, array, name, run.n)]
    if test is None:
        return [*stages, _brought(test_embeddings, name, _no_test_embeddings)]
    return [*stages, _rows_for(test_embeddings, test, name, len(run.test_images))]


def _rows_for(stage: Stage, array: np.ndarray, name: str, count: int) -> Stage:
    rows = np.array(array, dtype=np.float32, order="C")
    if rows.ndim != 2 or len(rows) != count or not rows.shape[1]:
        raise ElfsError(
            f"The embeddings {name!r} must be one row for each of the {count} images, not "
            f"an array of shape {rows.shape}."
        )
    if not np.isfinite(rows).all():
        raise ElfsError(f"The embeddings {name!r} hold NaN or infinity: check them.")
    return _brought(stage, name, lambda draft: draft.array("embeddings", rows), rows)


def _no_test_embeddings(draft: Draft) -> None:
    raise ElfsError("Give the embeddings of the test images too: with_embeddings(..., test=array).")


def brought_scores(run: Run, scores: np.ndarray, name: str) -> Stage:
    """Of :meth:`elfs_lib.stages.run.Run.with_scores`."""
    column = np.asarray(scores, np.float64)
    if column.shape != (run.n,) or not np.isfinite(column).all():
        raise ElfsError(
            f"The scores {name!r} must be one finite number for each of the {run.n} images, "
            f"not an array of shape {column.shape}."
        )
    table = pd.DataFrame({"index": np.arange(run.n), run.params.score: column})
    of = np.array(run.params.score)  # another score's column has another name
    return _brought(proxy, name, lambda draft: draft.table("scores", table), column, of)


def _brought(
    stage: Stage, name: str, build: Callable[[Draft], None], *content: np.ndarray
) -> Stage:
    digest = hashlib.sha256()
    for array in content:
        digest.update(f"{array.dtype} {array.shape} ".encode() + array.tobytes())
    keyed = {"given": name, "content": digest.hexdigest()}
    return given_stage(stage.name, build, f"{stage.title}: {name}", keyed, given=name)
