"""The one list of selection methods, and ``select``, the one way to run them.

A new method is one function ``(inputs, count, *, seed, **options) -> Selection`` and one line in
``METHODS``; the table in the book, the checks of parameters and the sweep read them from here.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from elfs_lib.errors import ElfsError, choose
from elfs_lib.selection.base import SCORES, Selection, SelectionInputs
from elfs_lib.selection.ccs import ccs
from elfs_lib.selection.double_end import double_end, double_end_balanced
from elfs_lib.selection.score_based import hardest, random

NEEDS = {
    "embeddings": "float32 [N, D]",
    "neighbors": "int32 [N, K] with similarities float32 [N, K]",
    "scores": "columns of the dynamics table, each [N]",
    "pseudo_labels": "int64 [N]",
    "probabilities": "softmax outputs of the proxy, float32 [N, C]",
}


@dataclass(frozen=True)
class Method:
    """One selection method.

    Attributes:
        name: What users type.
        function: ``(inputs, count, *, seed, **options) -> Selection``.
        needs: Fields of ``SelectionInputs`` it reads, out of ``NEEDS``.
        score: The column of scores it reads, if it reads one (option ``score`` overrides it).
        supervised: True: the caller computes scores and labels with TRUE labels, and the result is
            a ceiling and no label-free selection. False: pseudo-labels only.
        polarity: Which end is picked, and what comes first in the list.
        citation: Key in the book's bibliography.
        equation: Where the paper states it.
        summary: One line for the table of methods.
        nested: A smaller budget with the same seed and options is a prefix of a larger one.
        seeded: The seed matters; without it the method is deterministic.
    """

    name: str
    function: Callable[..., Selection]
    needs: frozenset[str]
    score: str | None
    supervised: bool
    polarity: str
    citation: str
    equation: str
    summary: str
    nested: bool = True
    seeded: bool = False

    @property
    def label_free(self) -> bool:
        return not self.supervised

    @property
    def options(self) -> dict[str, Any]:
        """Options and their defaults; ``inspect.Parameter.empty`` marks one that must be given."""
        parameters = inspect.signature(self.function).parameters.values()
        options = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
        del options["seed"]
        if self.score is not None:
            options["score"] = self.score
        return options

    @property
    def required(self) -> tuple[str, ...]:
        """Options that have no default."""
        return tuple(k for k, v in self.options.items() if v is inspect.Parameter.empty)


def _methods() -> dict[str, Method]:
    scores, none = frozenset({"scores"}), frozenset()
    balanced = frozenset({"scores", "pseudo_labels"})
    kept = "drops the hardest beta N, keeps the next; hardest kept first"
    elfs_at = "section 4.2"
    lines = [
        Method("random", random, none, None, False, "lowest draw first", "zheng2025elfs",
               "section 5", "uniform sample", seeded=True),
        Method("elfs", double_end, scores, "aum", False, kept, "zheng2025elfs", elfs_at,
               "double-end pruning on the AUM of pseudo-labels"),
    ]
    lines += [
        Method(f"elfs_{score}", double_end, scores, score, False, kept, "zheng2025elfs", elfs_at,
               f"double-end pruning on {score} of pseudo-labels")
        for score in ("forgetting", "el2n", "dual", "correctness", "entropy")
    ]
    lines += [
        Method("elfs_balanced", double_end_balanced, balanced, "aum", False,
               "the same inside each pseudo-class; lowest quantile kept first", "zheng2025elfs",
               elfs_at, "double-end pruning inside each pseudo-class, exact total"),
        Method("ccs_pseudo", ccs, scores, "aum", False,
               "drops the hardest beta N, samples strata evenly; strata dealt round robin",
               "zheng2023ccs", "algorithm 1", "CCS on the AUM of pseudo-labels: the control",
               nested=False, seeded=True),
        Method("ccs", ccs, scores, "aum", True,
               "drops the hardest beta N, samples strata evenly; strata dealt round robin",
               "zheng2023ccs", "algorithm 1", "CCS on the AUM of true labels",
               nested=False, seeded=True),
        Method("aum_hardest", hardest, scores, "aum", True, "lowest AUM first", "pleiss2020",
               "section 3", "hardest images by AUM of true labels"),
        Method("forgetting", hardest, scores, "forgetting", True, "most forgotten first",
               "toneva2019", "definition 1", "most often forgotten, true labels"),
        Method("el2n", hardest, scores, "el2n", True, "largest error norm first", "paul2021",
               "definition 3", "largest early error norm, true labels"),
    ]  # fmt: skip
    return {method.name: method for method in lines}


METHODS: dict[str, Method] = _methods()


def validate_options(method: str, options: dict[str, Any]) -> dict[str, Any]:
    """Check a method's name and option names before any work starts, and fill in the defaults.

    Raises:
        ElfsError: if the method, an option or a score is unknown, or a required option is missing.
    """
    entry = METHODS[choose("method", method, METHODS)]
    known = entry.options
    for name in options:
        if name not in known:
            raise ElfsError(
                f"Method {method!r} has no option {name!r}: "
                f"it takes {', '.join(sorted(known)) or 'none'}."
            )
    for name in entry.required:
        if name not in options:
            raise ElfsError(f"Method {method!r} needs the option {name}: give it a value.")
    if "score" in options:
        choose("score", options["score"], SCORES)
    return {**known, **options}


def select(
    method: str, inputs: SelectionInputs, count: int, *, seed: int = 0, **options: Any
) -> Selection:
    """Pick ``count`` images by a method of the registry.

    Args:
        method: A name in ``METHODS``.
        inputs: What the method may look at. For a supervised method the caller has filled in
            scores and labels from true labels; ``METHODS[method].supervised`` says so.
        count: 1..N, see ``budget_count``.
        seed: Same seed, same list.
        options: The method's own options, see ``METHODS[method].options``.

    Returns:
        ``count`` distinct indices in the order in which to label them.

    Raises:
        ElfsError: if the method, an option or the count is wrong, or an input is missing.
    """
    filled = validate_options(method, options)
    entry = METHODS[method]
    if not 1 <= count <= inputs.n:
        raise ElfsError(f"count must be from 1 to {inputs.n}, not {count!r}.")
    _check_inputs(entry, inputs)
    result = entry.function(inputs, int(count), seed=seed, **filled)
    return Selection(result.indices.astype(np.int64), result.scores, result.info)


def _check_inputs(method: Method, inputs: SelectionInputs) -> None:
    """Every field that the method needs is there and has N rows."""
    for need in sorted(method.needs):
        value = getattr(inputs, need)
        if value is None or (need == "scores" and not len(value)):
            raise ElfsError(f"Method {method.name!r} needs {need} ({NEEDS[need]}): pass them in.")
        arrays = {need: value} if need != "scores" else {f"score {k}": value[k] for k in value}
        if need == "neighbors":
            if inputs.similarities is None or inputs.similarities.shape != value.shape:
                raise ElfsError(
                    f"Method {method.name!r} needs similarities of the shape of neighbors: "
                    "pass both from the same search."
                )
        for name, array in arrays.items():
            if len(array) != inputs.n:
                raise ElfsError(
                    f"There are {inputs.n} images but {name} has {len(array)} rows: "
                    "pass arrays of one training split."
                )
