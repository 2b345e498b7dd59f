"""What can be checked of a run before any stage computes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from elfs_lib.data import datasets
from elfs_lib.embedding import embedding_file
from elfs_lib.embedding.encoder_checks import check_encoder
from elfs_lib.errors import ElfsError
from elfs_lib.params import Params
from elfs_lib.selection import budget_count
from elfs_lib.selection.double_end import feasible_ratios, hard_prune_count
from elfs_lib.stages.embedding import source

if TYPE_CHECKING:
    from elfs_lib.stages.run import Run


#: Parameters that the number of images bounds.
CAPPED = ("neighbors", "temi_pca")


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
    elif p.relabel_rounds and p.relabel_start == "encoder":
        raise ElfsError(
            f"Parameter 'relabel_start' is 'encoder' but the embeddings are given "
            f"({run.given_name('embeddings')}): use relabel_start: random."
        )
    check_device(p)
    check_enough_images(p, run.n)
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


def check_device(params: Params) -> None:
    """Check that the device is there.

    Raises:
        ElfsError: if it is not.
    """
    if params.device not in ("auto", "cpu"):  # which every machine has
        from elfs_lib.compute import resolve_device

        resolve_device(params.device)


def check_enough_images(params: Params, n: int, names: Iterable[str] = CAPPED) -> None:
    """Check that there are enough images for the neighbours and principal components asked for.

    Args:
        n: Number of images.
        names: The parameters to check.

    Raises:
        ElfsError: if there are fewer.
    """
    most = {"neighbors": n - 1, "temi_pca": n}
    for name in names:
        asked = getattr(params, name)
        if asked is not None and asked > most[name]:
            raise ElfsError(
                f"Parameter {name!r} is {asked} but there are only {n} images: choose at most "
                f"{most[name]}."
            )


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
