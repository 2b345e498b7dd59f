"""The figures of the book: arrays and frames in, matplotlib figures out.

One style for all: the width of a book column, a colour-blind safe palette, one fixed look per
method. Nothing here goes through pyplot, so no figure leaks, and a figure that ends a notebook
cell is shown once. Captions and alternative texts belong to the notebooks.
"""

from elfs_lib.results.plots.clustering import (
    cluster_sizes,
    confusion,
    embedding_map,
    image_grid,
    loss_curves,
)
from elfs_lib.results.plots.comparison import (
    accuracy_vs_labels,
    accuracy_vs_pruning,
    differences,
    gain_by_beta,
    gain_by_budget,
    gain_curve,
    intervals,
)
from elfs_lib.results.plots.dynamics import (
    aum_histogram,
    aum_overlay,
    beta_curve,
    class_balance,
    easy_counts,
    error_by_decile,
    jaccard_heatmap,
    learning_curves,
)
from elfs_lib.results.plots.style import (
    DPI,
    EASY,
    HARD,
    MIDDLE,
    NEUTRAL,
    SHADE,
    WIDTH,
    PageFigure,
    method_styles,
)

__all__ = [
    "DPI",
    "EASY",
    "HARD",
    "MIDDLE",
    "NEUTRAL",
    "SHADE",
    "WIDTH",
    "PageFigure",
    "accuracy_vs_labels",
    "accuracy_vs_pruning",
    "aum_histogram",
    "aum_overlay",
    "beta_curve",
    "class_balance",
    "cluster_sizes",
    "confusion",
    "differences",
    "easy_counts",
    "embedding_map",
    "error_by_decile",
    "gain_by_beta",
    "gain_by_budget",
    "gain_curve",
    "image_grid",
    "intervals",
    "jaccard_heatmap",
    "learning_curves",
    "loss_curves",
    "method_styles",
]
