"""The list of selection methods, and ``select_by``, the one way to run them.

A new method is one function ``(inputs, count, *, seed, **options) -> Selection`` and one line in
``METHODS``; the table in the book, the checks of parameters and the sweep read them from here.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

import numpy as np

from elfs_lib.errors import ElfsError, choose, is_whole
from elfs_lib.selection.badge import badge
from elfs_lib.selection.base import SCORES, Selection, SelectionInputs
from elfs_lib.selection.ccs import ccs
from elfs_lib.selection.coverage import facility_location, max_herding, prob_cover
from elfs_lib.selection.double_end import double_end, double_end_balanced
from elfs_lib.selection.dual import dual
from elfs_lib.selection.geometry import herding, k_center, moderate, prototypicality
from elfs_lib.selection.message_passing import d2, d2_supervised
from elfs_lib.selection.prototypes import kmeans_nearest, typiclust, usl
from elfs_lib.selection.score_based import hardest, random
from elfs_lib.selection.zcore import zcore

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
        score: The column of scores that ranks the images; option ``score``, where the function has
            one, overrides it.
        supervised: True: the caller passes scores and labels made from TRUE labels; the result is a
            supervised reference, not an upper bound. False: pseudo-labels only.
        polarity: Which end is picked, and what comes first in the list.
        citation: Key in the book's bibliography.
        equation: The rule in one line, in the paper's terms.
        summary: One line for the table of methods.
        nested: A smaller budget with the same seed and options is a prefix of a larger one.
        seeded: The seed matters; without it the method is deterministic.
        also_reads: Further columns of scores that it reads.
        defaults: Options that this method sets where its function asks for a value.
        follows_score: A run's parameter ``score`` takes the place of ``score``.
        revision: To be raised when the list that the function gives changes: stored coresets
            of other revisions are not used.
    """

    name: str
    function: Callable[..., Selection]
    _: KW_ONLY
    needs: frozenset[str] = frozenset()
    score: str | None = None
    supervised: bool = False
    polarity: str
    citation: str
    equation: str
    summary: str
    nested: bool = True
    seeded: bool = False
    also_reads: tuple[str, ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)
    follows_score: bool = False
    revision: int = 1

    @property
    def options(self) -> dict[str, Any]:
        """Options and their defaults; ``inspect.Parameter.empty`` marks one that must be given."""
        parameters = inspect.signature(self.function).parameters.values()
        options = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
        del options["seed"]
        if "score" in options:
            options["score"] = self.score
        return options | self.defaults

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of scores that must be there (option ``score`` replaces the first)."""
        return (*([self.score] if self.score else ()), *self.also_reads)

    @property
    def required(self) -> tuple[str, ...]:
        """Options that have no default."""
        return tuple(k for k, v in self.options.items() if v is inspect.Parameter.empty)

    @property
    def takes_beta(self) -> bool:
        """Whether it must be given a hard-prune ratio."""
        return "hard_prune_ratio" in self.required


def _methods() -> dict[str, Method]:
    double = "drops the hardest beta N, keeps the next; hardest kept first"
    double_formula = "ranks beta N + 1 ... beta N + n of the score, hardest first"
    strata = "drops the hardest beta N, samples strata evenly; strata dealt round robin"
    strata_formula = "algorithm 1: 50 strata of equal score width, n / 50 from each"
    uncut = {"hard_prune_ratio": 0.0}
    d2_polarity = "difficult and far from earlier picks; in greedy order"
    d2_formula = "s_i = x_i + sum_j e_ij(g_f) x_j; s_j -= e_ij(g_r) s_i; e_ij(g) = exp(-g d_ij^2)"
    dual_polarity = "weight DUAL x Beta density of mean p_y; in order of drawing"
    dual_formula = "Beta(C + 1 - b, b), b = C (1 - mu)(1 - r^c)"
    one_of_each = "one of each of as many clusters as images; largest clusters first"
    coverage = "covers most that earlier picks do not; in greedy order"
    lines = [
        Method("random", random, polarity="lowest draw first", citation="zheng2025elfs",
               equation="u_i ~ U(0, 1)", summary="uniform sample", seeded=True),
        Method("elfs", double_end, needs=frozenset({"scores"}), score="aum", polarity=double,
               citation="zheng2025elfs", equation=double_formula,
               summary="double-end pruning on the AUM of pseudo-labels", follows_score=True),
    ]  # fmt: skip
    lines += [
        Method(f"elfs_{score}", double_end, needs=frozenset({"scores"}), score=score,
               polarity=double, citation="zheng2025elfs", equation=double_formula,
               summary=f"double-end pruning on {score} of pseudo-labels")
        for score in ("forgetting", "el2n", "dual", "correctness", "entropy")
    ]  # fmt: skip
    lines += [
        Method("elfs_balanced", double_end_balanced, needs=frozenset({"scores", "pseudo_labels"}),
               score="aum",
               polarity="as elfs inside each pseudo-class; lowest quantile kept first",
               citation="zheng2025elfs",
               equation="ranks of (2 rank + 1) / (2 size) inside the class",
               summary="double-end pruning inside each pseudo-class, exact total"),
        Method("ccs_pseudo", ccs, needs=frozenset({"scores"}), score="aum", polarity=strata,
               citation="zheng2023ccs", equation=strata_formula,
               summary="CCS on the AUM of pseudo-labels: the control", nested=False, seeded=True,
               defaults=uncut),
        Method("ccs_pseudo_beta", ccs, needs=frozenset({"scores"}), score="aum", polarity=strata,
               citation="zheng2023ccs", equation=strata_formula,
               summary="CCS with the beta of ELFS: the control after the hard cut", nested=False,
               seeded=True),
        Method("prototypicality", prototypicality, needs=frozenset({"embeddings"}),
               polarity="far from the k-means centroid first", citation="sorscher2022",
               equation="||z_i - centroid(i)||",
               summary="atypical images by self-supervised prototypes", seeded=True),
        Method("d2", d2, needs=frozenset({"embeddings", "neighbors"}), polarity=d2_polarity,
               citation="maharana2024", equation=d2_formula,
               summary="message passing on the k-NN graph, label-free difficulty", seeded=True),
        Method("badge", badge, needs=frozenset({"embeddings", "probabilities"}),
               polarity="far from earlier picks in gradient space; in order of drawing",
               citation="ash2020",
               equation="algorithm 1: g_i = (p_i - onehot(argmax p_i)) (x) h_i, k-means++ on g",
               summary="k-means++ on the proxy's errors x the embeddings", seeded=True),
        Method("k_center", k_center, needs=frozenset({"embeddings"}),
               polarity="farthest from all earlier picks first", citation="sener2018",
               equation="algorithm 1: argmax_i min_{j in S} ||z_i - z_j||",
               summary="greedy k-center", seeded=True),
        Method("herding", herding, needs=frozenset({"embeddings", "pseudo_labels"}),
               polarity="best match of the running mean first; classes dealt in turn",
               citation="welling2009", equation="argmax_i <w, z_i>; w += m - z_i",
               summary="the picks' mean follows the class mean"),
        Method("moderate", moderate, needs=frozenset({"embeddings", "pseudo_labels"}),
               polarity="median distance to the class mean first", citation="xia2023",
               equation="ranks around the median of ||z_i - mean(class i)||",
               summary="neither typical nor atypical images"),
        Method("zcore", zcore, needs=frozenset({"embeddings"}), polarity="highest score first",
               citation="griffin2024",
               equation="+1 to the nearest image, -1 shared by its neighbours (1 / d^4)",
               summary="coverage minus redundancy in random subspaces", seeded=True, revision=2),
        Method("dual", dual, needs=frozenset({"scores"}), score="dual", polarity=dual_polarity,
               citation="cho2025", equation=dual_formula,
               summary="DUAL of pseudo-labels with beta-sampling", nested=False, seeded=True,
               also_reads=("dual_mean",)),
        Method("ccs", ccs, needs=frozenset({"scores"}), score="aum", supervised=True,
               polarity=strata, citation="zheng2023ccs", equation=strata_formula,
               summary="CCS on the AUM of true labels", nested=False, seeded=True, defaults=uncut),
        Method("ccs_beta", ccs, needs=frozenset({"scores"}), score="aum", supervised=True,
               polarity=strata, citation="zheng2023ccs", equation=strata_formula,
               summary="CCS on the AUM of true labels with the beta of elfs_true",
               nested=False, seeded=True),
        Method("elfs_true", double_end, needs=frozenset({"scores"}), score="aum", supervised=True,
               polarity=double, citation="zheng2025elfs", equation=double_formula,
               summary="double-end pruning on the AUM of true labels: what pseudo-labels cost"),
        Method("aum_hardest", hardest, needs=frozenset({"scores"}), score="aum", supervised=True,
               polarity="lowest AUM first", citation="pleiss2020",
               equation="sum_t (p_y - max_{c != y} p_c)",
               summary="hardest images by AUM of true labels"),
        Method("forgetting", hardest, needs=frozenset({"scores"}), score="forgetting",
               supervised=True, polarity="most forgotten first", citation="toneva2019",
               equation="times right at one epoch and wrong at the next",
               summary="most often forgotten, true labels"),
        Method("el2n", hardest, needs=frozenset({"scores"}), score="el2n", supervised=True,
               polarity="largest error norm first", citation="paul2021",
               equation="mean_t ||p - onehot(y)||",
               summary="largest early error norm, true labels"),
        Method("d2_supervised", d2_supervised, needs=frozenset({"neighbors", "scores"}),
               score="aum", supervised=True, polarity=d2_polarity, citation="maharana2024",
               equation=d2_formula,
               summary="message passing on the k-NN graph, difficulty from true labels"),
        Method("dual_supervised", dual, needs=frozenset({"scores"}), score="dual", supervised=True,
               polarity=dual_polarity, citation="cho2025", equation=dual_formula,
               summary="DUAL of true labels with beta-sampling", nested=False, seeded=True,
               also_reads=("dual_mean",)),
    ]  # fmt: skip
    # For few labels a class; at the end, since looks in the figures depend on the position
    lines += [
        Method("typiclust", typiclust, needs=frozenset({"embeddings"}), polarity=one_of_each,
               citation="hacohen2022",
               equation="argmax_{i in cluster} 1 / mean_{j in 20-NN of it} ||z_i - z_j||",
               summary="the most typical image of each k-means cluster", nested=False,
               seeded=True),
        Method("prob_cover", prob_cover, needs=frozenset({"embeddings"}), polarity=coverage,
               citation="yehuda2022", equation="argmax_i |{j uncovered: ||z_i - z_j|| < delta}|",
               summary="balls of one radius cover as many images as possible", seeded=True),
        Method("max_herding", max_herding, needs=frozenset({"embeddings"}), polarity=coverage,
               citation="bae2024",
               equation="argmax_i mean_n max(k(z_i, z_n) - max_{s in S} k(z_s, z_n), 0), "
               "Gaussian k",
               summary="greedy generalised coverage with a Gaussian kernel"),
        Method("facility_location", facility_location, needs=frozenset({"embeddings"}),
               polarity=coverage, citation="wei2015",
               equation="argmax_i sum_n max(cos(z_i, z_n) - max_{s in S} cos(z_s, z_n), 0)",
               summary="greedy coverage by cosine similarity"),
        Method("kmeans_nearest", kmeans_nearest, needs=frozenset({"embeddings"}),
               polarity=one_of_each, citation="pourahmadi2021",
               equation="argmin_{i in cluster} ||z_i - centroid||",
               summary="the image next to each k-means centroid", nested=False, seeded=True),
        Method("usl", usl, needs=frozenset({"embeddings", "neighbors"}), polarity=one_of_each,
               citation="wang2022usl",
               equation="argmax_{i in cluster} 1 / mean_{j in 20-NN} ||z_i - z_j||",
               summary="the densest image of each k-means cluster", nested=False, seeded=True),
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


def select_by(
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
        ElfsError: if the method, an option, the count or the seed is wrong, an input is missing, or
            the method's function gives anything but ``count`` distinct images with their scores.
    """
    filled = validate_options(method, options)
    entry = METHODS[method]
    if not is_whole(count, 1, inputs.n):
        raise ElfsError(f"count must be a whole number from 1 to {inputs.n}, not {count!r}.")
    if not is_whole(seed, 0):
        raise ElfsError(f"seed must be a whole number of at least 0, not {seed!r}.")
    _check_inputs(entry, inputs)
    result = entry.function(inputs, int(count), seed=int(seed), **filled)
    indices, scores = np.asarray(result.indices), np.asarray(result.scores)
    _check_list(method, indices, scores, int(count), inputs.n)
    return Selection(indices.astype(np.int64), scores, result.info)


def _check_list(method: str, indices: np.ndarray, scores: np.ndarray, count: int, n: int) -> None:
    """Check the result: a wrong list would mean a training on fewer images than stated."""
    faults = {
        f"gave {indices.shape} indices and {scores.shape} scores": indices.shape != (count,)
        or scores.shape != (count,),
        "gave indices that are not whole numbers": indices.dtype.kind not in "iu",
        "gave a score that is not finite": not np.isfinite(scores).all(),
    }
    for fault, found in faults.items():
        if found:
            raise ElfsError(f"Method {method!r} {fault} for a count of {count}: correct it.")
    if len(np.unique(indices)) < count or indices.min() < 0 or indices.max() >= n:
        raise ElfsError(
            f"Method {method!r} gave an image twice, or one that is not among the {n}: correct it."
        )


def _check_inputs(method: Method, inputs: SelectionInputs) -> None:
    """Every field that the method needs is there and has N rows."""
    for need in sorted(method.needs):
        value = getattr(inputs, need)
        if value is None or (need == "scores" and not len(value)):
            raise ElfsError(f"Method {method.name!r} needs {need} ({NEEDS[need]}): pass them in.")
        arrays = {need: value} if need != "scores" else {f"score {k}": value[k] for k in value}
        if need == "neighbors" and np.shape(inputs.similarities) != value.shape:
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
