"""Selection: which images are worth a label. One registry, and ``select_by`` to run it."""

from elfs_lib.selection.base import (
    SCORES,
    Score,
    Selection,
    SelectionInputs,
    budget_count,
    easiness,
)
from elfs_lib.selection.cost import Cost, expected_cost
from elfs_lib.selection.double_end import (
    RATIOS,
    SearchResult,
    double_end_prune,
    search_hard_prune_ratio,
)
from elfs_lib.selection.registry import METHODS, NEEDS, Method, select_by, validate_options

__all__ = [
    "METHODS",
    "NEEDS",
    "RATIOS",
    "SCORES",
    "Cost",
    "Method",
    "Score",
    "SearchResult",
    "Selection",
    "SelectionInputs",
    "budget_count",
    "double_end_prune",
    "easiness",
    "expected_cost",
    "search_hard_prune_ratio",
    "select_by",
    "validate_options",
]
