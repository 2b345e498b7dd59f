"""A run: one set of parameters over one store, and the results of its stages.

The stages are declared in the modules that :data:`STAGES` lists; :mod:`elfs_lib.stages.graph` says
what a declaration holds and what follows from it. Everything up to the coreset runs under the label
policy "never", which :mod:`elfs_lib.label_lock` enforces.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from elfs_lib.artifacts import Artifact, Store, versions_in_words
from elfs_lib.clustering.metrics import collapse_notes
from elfs_lib.data import datasets
from elfs_lib.errors import ElfsError, choose
from elfs_lib.label_lock import LabelOracle
from elfs_lib.params import Params
from elfs_lib.progress import track
from elfs_lib.project import default_store
from elfs_lib.selection import METHODS, budget_count
from elfs_lib.stages.brought import brought_embeddings, brought_pseudo_labels, brought_scores
from elfs_lib.stages.checks import check_run, ratios_for
from elfs_lib.stages.clustering import (
    clusters,
    consensus,
    pseudo,
    pseudo_quality,
    temi,
)
from elfs_lib.stages.coreset import (
    by_clusters,
    coreset,
    coreset_call,
    evaluation,
    mean_scores,
    search,
    search_of,
    true_search,
)
from elfs_lib.stages.dynamics import proxy, true_proxy
from elfs_lib.stages.embedding import (
    embeddings,
    encoder,
    encoder_facts,
    encoder_runs,
    images,
    neighbors,
    source,
    test_embeddings,
    trains_encoder,
)
from elfs_lib.stages.graph import TRAINING_PARAMETERS, Call, Stage
from elfs_lib.training.recipes import recipe_key

#: Every stage, in the order of a run.
STAGES: dict[str, Stage] = {
    each.name: each
    for each in (
        *(images, encoder, embeddings, test_embeddings, neighbors),
        *(temi, consensus, clusters, pseudo, proxy, true_proxy),
        *(search, true_search, coreset, pseudo_quality, evaluation),
    )
}


def _output(name: str) -> property:
    """The artifact of a stage without arguments, which runs on first use."""
    return property(lambda run: run.artifact(name), doc=STAGES[name].doc)


@dataclass(frozen=True)
class Run:
    """One set of parameters over one store. Attributes and methods run their stage on first use.

    Attributes:
        params: Its parameters.
        store: Where its artifacts are.
        substitutes: Stages that take the place of those of their name; see :meth:`with_stages`.

    Example:
        >>> run = Run(Params.load("params/digits.yaml"), default_store())   # doctest: +SKIP
        >>> run.coreset("elfs", 0.1).table("coreset")                       # doctest: +SKIP
    """

    params: Params
    store: Store
    substitutes: tuple[Stage, ...] = field(default=(), kw_only=True)
    found: dict[object, Artifact] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @classmethod
    def from_notebook(cls, namespace: Mapping[str, Any]) -> Run:
        """Open a run from a notebook's variables and check it before any work starts."""
        run = cls(Params.from_notebook(namespace), default_store())
        run.check()
        return run

    # ------------------------------------------------------------------ stages

    def stage(self, name: str) -> Stage:
        """The stage of a name, as this run has it."""
        substitutes = {stage.name: stage for stage in self.substitutes}
        return substitutes.get(name) or STAGES[choose("stage", name, STAGES)]

    def call(self, stage: str | Stage, **arguments: Any) -> Call:
        """A stage with its arguments, as a node of the run's graph; nothing is computed."""
        plain = {k: v.item() if isinstance(v, np.generic) else v for k, v in arguments.items()}
        return Call(self, self.stage(stage) if isinstance(stage, str) else stage, plain)

    def artifact(self, stage: str | Stage, **arguments: Any) -> Artifact:
        """What a stage gives, computed if it is not there."""
        return self.call(stage, **arguments).artifact

    def ensure(self, *stages: str) -> None:
        """Run stages that take no arguments, by name, and all that they build on."""
        for stage in stages:
            for call in self.calls(stage):
                call.make()

    def calls(self, stage: str) -> list[Call]:
        """A stage without arguments; of ``proxy``, each of the run's."""
        return [*self.proxy_calls.values()] if stage == "proxy" else [self.call(stage)]

    # ------------------------------------------------------------------ what a researcher brings

    def with_pseudo_labels(
        self, labels: np.ndarray, name: str, *, confidence: np.ndarray | None = None
    ) -> Run:
        """This run going on from pseudo-labels that somebody brings, in place of a clustering.

        They are keyed by content: nothing that was made from other labels is used for them.

        Args:
            labels: int [N] in 0..classes-1, in the order of the images. They must not depend on
                true labels; nothing here can check that.
            name: What pages call them.
            confidence: float [N] in [0, 1], high is sure; None: 1 for each image.

        Raises:
            ElfsError: if they are not one class number for each image.
        """
        return self.with_stages(brought_pseudo_labels(self, labels, name, confidence))

    def with_embeddings(
        self, embeddings: np.ndarray, name: str, *, test: np.ndarray | None = None
    ) -> Run:
        """This run going on from embeddings that somebody brings, in place of an encoder's.

        Args:
            embeddings: float [N, D] of the training images, in their order, finite.
            name: What pages call them.
            test: float [M, D] of the test images, where those are asked for.

        Raises:
            ElfsError: if they are not one finite row for each image.
        """
        return self.with_stages(*brought_embeddings(self, embeddings, name, test))

    def with_scores(self, scores: np.ndarray, name: str) -> Run:
        """This run going on from a score of each image that somebody brings, in place of those of
        the proxies.

        Args:
            scores: float [N], finite, in the order of the images, with the polarity of the
                parameter ``score``: low is hard for ``aum``.
            name: What pages call them.

        Raises:
            ElfsError: if they are not one finite number for each image.
        """
        return self.with_stages(brought_scores(self, scores, name))

    def with_stages(self, *stages: Stage) -> Run:
        """This run with other stages in the place of those of their names."""
        names = {stage.name for stage in stages}
        kept = (stage for stage in self.substitutes if stage.name not in names)
        return dataclasses.replace(self, substitutes=(*kept, *stages))

    def given_name(self, stage: str) -> str | None:
        """Name of the user-supplied input, if any."""
        return self.stage(stage).given

    @property
    def clustering(self) -> str:
        """What gives the pseudo-labels: a key of
        :data:`elfs_lib.clustering.registry.CLUSTERINGS`, or the name of those that somebody
        brought."""
        return self.given_name("pseudo") or self.params.clustering

    @property
    def can_evaluate(self) -> bool:
        """Whether both splits have labels, to train on a coreset and to test."""
        return {"train", "test"} <= set(self.labels.has)

    # ------------------------------------------------------------------ checks before work

    def check(self, *, labels: bool = True) -> None:
        """Check everything that can be checked without computing.

        Args:
            labels: Whether the run will use the labels there are.

        Raises:
            ElfsError: one sentence on the first thing that would fail later.
        """
        check_run(self, labels=labels)

    # ------------------------------------------------------------------ images and labels

    images = _output("images")

    @cached_property
    def n(self) -> int:
        """N, the number of training images."""
        return len(self.images.array("train"))

    @cached_property
    def train_images(self) -> np.ndarray:
        """uint8 [N, C, H, W], mapped from disk: training decides what it keeps in memory."""
        return self.images.array("train")

    @cached_property
    def test_images(self) -> np.ndarray:
        """uint8 [M, C, H, W], mapped from disk.

        Raises:
            ElfsError: if the dataset has no test split.
        """
        if not (self.images.folder / "test.npy").exists():
            raise ElfsError(f"Dataset {self.params.dataset!r} has no test split to evaluate on.")
        return self.images.array("test")

    @cached_property
    def about(self) -> dict[str, Any]:
        """Class names, number of classes, paths and the report on damaged files."""
        return self.images.json("about")

    @property
    def paths(self) -> list[str] | None:
        """Where each training image came from, as :class:`elfs_lib.data.base.Images` has it; None
        for published datasets."""
        return self.about["paths"]

    @property
    def class_names(self) -> list[str]:
        """Names of the classes, or their numbers where the dataset has no names."""
        return list(self.about["class_names"] or [str(c) for c in range(self.classes)])

    @property
    def classes(self) -> int:
        """Number of classes: the parameter, else the dataset's.

        Raises:
            ElfsError: if neither says.
        """
        classes = self.params.classes or self.about["num_classes"]
        if not classes:
            raise ElfsError("Give the parameter 'classes': this dataset does not say how many.")
        return int(classes)

    @cached_property
    def labels(self) -> LabelOracle:
        """The locked ground-truth labels; see :mod:`elfs_lib.label_lock`."""
        return datasets.label_oracle(source(self.params), left_out=self.about["left_out"])

    # ------------------------------------------------------------------ embeddings, clusters

    embeddings = _output("embeddings")
    test_embeddings = _output("test_embeddings")
    neighbors = _output("neighbors")
    temi = _output("temi")
    consensus = _output("consensus")
    pseudo = _output("pseudo")
    pseudo_quality = _output("pseudo_quality")

    @property
    def encoder(self) -> Artifact | None:
        """The encoder that is trained on the images, as ``encoder.safetensors``, and array
        ``losses`` [epochs]; None where the encoder is given (pretrained, or as a file)."""
        return self.artifact("encoder") if self.trains_encoder else None

    @cached_property
    def trains_encoder(self) -> bool:
        """Whether the encoder is trained here: not if it is pretrained, or given as the file of one
        that was trained on images."""
        return trains_encoder(self.params)

    @property
    def encoder_facts(self) -> dict[str, object]:
        """What the encoder was trained on; see :func:`elfs_lib.embedding.encoders.describe`."""
        if name := self.given_name("embeddings"):
            unknown = {"architecture": "not known", "pretraining": "embeddings that were given"}
            return {"encoder": name, **unknown, "saw_labels": None, "license": "not known"}
        return encoder_facts(self.params)

    @cached_property
    def encoder_runs(self) -> list[Run]:
        """This run, or where several encoders are joined by "+" a run of each: its embeddings are
        shared with runs of that encoder alone."""
        return encoder_runs(self)

    @property
    def encoder_trained(self) -> Run:
        """Of several encoders joined by "+" the run of the one that is trained here.

        Raises:
            ElfsError: if none is, or more than one.
        """
        trained = [part for part in self.encoder_runs if part.trains_encoder]
        if len(trained) != 1:
            raise ElfsError(
                f"Encoder {self.params.encoder!r} trains {len(trained)} networks on the images, "
                "not one: choose self_supervised or adapted_NAME, and no file of a trained one."
            )
        return trained[0]

    @cached_property
    def pseudo_labels(self) -> np.ndarray:
        """int64 [N]."""
        return self.pseudo.table("pseudo")["label"].to_numpy(copy=True)

    @property
    def cluster_notes(self) -> list[str]:
        """A sentence for each cluster, or head of TEMI, that is empty or nearly so."""
        if self.clustering == "temi":
            return self.consensus.json("notes")
        return collapse_notes(self.pseudo_labels, self.classes, name=self.clustering)

    # ------------------------------------------------------------------ proxy and dynamics

    @property
    def training(self) -> dict[str, Any]:
        """How networks are trained on the images: flips, crops, device and precision."""
        return {name: getattr(self.params, name) for name in TRAINING_PARAMETERS}

    @property
    def proxy_calls(self) -> dict[str, Call]:
        """The proxies that are trained on pseudo-labels (``proxy_seeds`` of them)."""
        first, count = self.params.seed, self.params.proxy_seeds
        return {f"proxy_{i}": self.call("proxy", seed=first + i) for i in range(count)}

    @property
    def proxies(self) -> list[Artifact]:
        """Dynamics of each proxy that is trained on pseudo-labels."""
        return [call.artifact for call in self.proxy_calls.values()]

    @cached_property
    def scores(self) -> pd.DataFrame:
        """Scores under pseudo-labels, averaged over proxies: one row an image."""
        return mean_scores(self.proxies)

    true_proxy = _output("true_proxy")

    @cached_property
    def true_scores(self) -> pd.DataFrame:
        """Scores under ground-truth labels: one row an image."""
        return self.true_proxy.table("scores")

    # ------------------------------------------------------------------ search and selection

    def search(
        self, budget: float | int, score: str | None = None, balanced: bool = False
    ) -> Artifact:
        """Label-free search for beta. Array ``scores`` [ratios, seeds], json ``search``.

        ``balanced`` prunes inside each pseudo-class, as lists of own images do. Method
        ``elfs_balanced`` takes beta from the search without it.
        """
        extra = {"balanced": True} if balanced else {}
        return self.artifact("search", budget=budget, score=score or self.params.score, **extra)

    def true_search(self, budget: float | int, score: str | None = None) -> Artifact:
        """The same search on true labels and true scores, for the supervised methods."""
        return self.artifact("true_search", budget=budget, score=score or self.params.score)

    def hard_prune_ratio(self, budget: float | int) -> float:
        """Beta of ELFS for a budget: the parameter if given, else the choice of the search."""
        searched = search_of(self, "elfs", budget)
        if searched is None:
            return self.params.hard_prune_ratio
        return float(searched.artifact.json("search")["best"])

    def coreset(
        self, method: str, budget: float | int, seed: int | None = None, **options: Any
    ) -> Artifact:
        """Select. Table ``coreset``: rank, index, path, score, in the order to label.

        Args:
            method: Key of :data:`elfs_lib.selection.METHODS`.
            budget: Share in (0, 1] or count.
            seed: Of methods that draw; defaults to the run's seed.
            **options: Options of the method, for example ``hard_prune_ratio=0.2``; those left out
                are decided by the run (see :meth:`hard_prune_ratio`).
        """
        choose("method", method, METHODS)
        seed = self.params.seed if seed is None else seed
        return coreset_call(self, method, budget, seed, options).artifact

    # ------------------------------------------------------------------ evaluation

    def evaluate(self, method: str, budget: float | int, seed: int, **options: Any) -> Artifact:
        """Train on the labelled coreset; json ``result`` (last step), array ``predictions`` [M]."""
        return self._evaluation(method, budget, seed, options).artifact

    def _evaluation(
        self, method: str, budget: float | int, seed: int, options: Mapping[str, Any] | None = None
    ) -> Call:
        choose("method", method, METHODS)
        given = {"options": dict(options)} if options else {}
        return self.call("evaluation", method=method, budget=budget, seed=seed, **given)

    def cells(self) -> Iterator[tuple[str, float | int, int]]:
        """Every (method, budget, seed) of the evaluation, budgets first, seeds last."""
        p = self.params
        yield from itertools.product(p.methods, p.budgets, p.eval_seeds)

    def _hindsight(self, budget: float | int) -> dict[tuple[float, int], Call]:
        """The trainings at every beta that fits, by beta and seed; none without
        ``hindsight_seeds``."""
        p = self.params
        ratios = ratios_for(self, budget_count(budget, self.n)) if p.hindsight_seeds else []
        return {
            (ratio, seed): self._evaluation("elfs", budget, seed, {"hard_prune_ratio": ratio})
            for ratio, seed in itertools.product(ratios, p.hindsight_seeds)
        }

    def hindsight(self, budget: float | int) -> pd.DataFrame:
        """What each beta would have given: trains on true labels at every ratio that fits.

        Returns:
            Columns ``ratio``, ``seed`` and ``accuracy`` (percent); empty without
            ``hindsight_seeds``. Analysis only: the search never sees it.
        """
        rows = [
            (*at, call.artifact.json("result")["accuracy"])
            for at, call in self._hindsight(budget).items()
        ]
        return pd.DataFrame(rows, columns=["ratio", "seed", "accuracy"])

    def result_row(self, method: str, budget: float | int, seed: int) -> dict[str, Any]:
        """One row of the results table; see :mod:`elfs_lib.results.evaluation` for its columns."""
        p, trained = self.params, self._evaluation(method, budget, seed)
        count, chosen = budget_count(budget, self.n), trained.inputs["coreset"]
        clustered = by_clusters(chosen)
        quality = self.pseudo_quality.json("quality") if clustered else {}
        return {
            "dataset": p.dataset,
            "method": method,
            "supervised": METHODS[method].supervised,
            "budget": count / self.n,
            "count": count,
            "seed": seed,
            "recipe": recipe_key(p.eval_recipe),
            "hard_prune_ratio": chosen.artifact.json("info").get("hard_prune_ratio"),
            "pseudo_label_accuracy": 100 * quality["accuracy"] if quality else None,
            **trained.artifact.json("result"),
            "versions": versions_in_words(trained.artifact.manifest["packages"]),
        }

    def results(self) -> pd.DataFrame:
        """The results table: trains whatever is missing, one row a (method, budget, seed)."""
        cells = list(self.cells())
        return pd.DataFrame([self.result_row(*cell) for cell in track(cells, "evaluation")])

    # ------------------------------------------------------------------ the plan

    def plan(self) -> list[Call]:
        """Every stage that the notebooks read, in an order where inputs come first."""
        p = self.params
        wanted = [*self.proxy_calls.values()]
        if "train" in self.labels.has:
            wanted.append(self.call("true_proxy"))
        wanted.append(coreset_call(self, "elfs", p.budget, p.seed))
        if self.can_evaluate:
            wanted += [self._evaluation(*cell) for cell in self.cells()]
            for budget in p.budgets if p.hindsight_seeds else ():
                wanted += [search_of(self, "elfs", budget), *self._hindsight(budget).values()]
        asked = {call.id for call in wanted if call}
        every = itertools.chain.from_iterable(call.upstream for call in wanted if call)
        plan = {call.id: call for call in every if call.id in asked or not call.stage.quick}
        return [*plan.values()]
