"""What can be checked of a run before any stage computes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from elfs_lib.data import datasets
from elfs_lib.embedding import embedding_file
from elfs_lib.embedding.encoder_checks import check_encoder
from elfs_lib.errors import ElfsError
from elfs_lib.selection import budget_count
from elfs_lib.selection.double_end import feasible_ratios, hard_prune_count
from elfs_lib.stages.embedding import source

if TYPE_CHECKING:
    from elfs_lib.stages.run import Run


def check_run(run: Run, *, labels: bool) -> None:
    """Check everything that can be checked without computing; the images are decoded.

    Args:
        labels: Whether the run will use the labels there are.

    Raises:
        ElfsError: one sentence on the first thing that would fail later.
    """
    p = run.params
    datasets.check_dataset(source(p))
    if not run.given_name("embeddings"):
        check_encoder(p.encoder, p.encoder_checkpoint, input_size=p.encoder_size)
        if p.encoder == embedding_file.PRECOMPUTED:
            embedding_file.check_file(p.embeddings_path)
    run.check_device()
    run.check_neighbors()
    run.check_pca()
    n, classes = run.n, run.classes
    if classes > n:
        raise ElfsError(f"Parameter 'classes' is {classes} but there are only {n} images.")
    known = run.about["num_classes"] or 0
    if labels and run.labels.has and classes < known:
        raise ElfsError(
            f"Parameter 'classes' is {classes} but the labels name {known} classes: leave it out."
        )
    counts = [budget_count(budget, n) for budget in p.budgets]
    if labels and run.can_evaluate and len(set(counts)) < len(counts):
        raise ElfsError(
            f"Two of the budgets {list(p.budgets)} are the same number of the {n} images of "
            f"{p.dataset!r}: keep one."
        )
    at_each = labels and p.searches_beta
    for count in {budget_count(p.budget, n), *(counts if at_each else ())}:
        ratios_for(run, count)


def ratios_for(run: Run, count: int) -> list[float]:
    """The betas for a coreset of a size: the given one, which must fit, and those of the grid that
    do.

    Raises:
        ElfsError: if none does.
    """
    given, grid = run.params.hard_prune_ratio, run.params.hard_prune_ratios
    if given is not None:
        hard_prune_count(run.n, given, count)
        grid = (given, *grid)
    return feasible_ratios(grid, run.n, count)
