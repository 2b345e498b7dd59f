"""The stages of a run: each reads artifacts, calls a concept module, and writes an artifact.

Which stage may see labels is decided here, by the ``labels=`` of each stage, and enforced by
:mod:`elfs_lib.label_lock`: everything up to the coreset runs under "never".

What computes is imported where a stage is built: it needs PyTorch, which takes seconds to import,
and the pages of a finished run only read.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from elfs_lib import datasets, encoders
from elfs_lib.artifacts import Artifact, Draft, Store, is_large
from elfs_lib.errors import ElfsError, choose
from elfs_lib.label_lock import LabelOracle
from elfs_lib.params import Params
from elfs_lib.progress import track
from elfs_lib.project import default_store
from elfs_lib.selection import (
    METHODS,
    Method,
    Selection,
    SelectionInputs,
    budget_count,
    easiness,
    search_hard_prune_ratio,
    select,
)
from elfs_lib.selection.by_class import class_quantile
from elfs_lib.selection.double_end import feasible_ratios, hard_prune_count
from elfs_lib.training.recipes import find_recipe, recipe_key

if TYPE_CHECKING:
    from elfs_lib.emp_ssl import EmpSslConfig
    from elfs_lib.self_supervised import SelfSupervisedConfig
    from elfs_lib.temi import TemiConfig


@dataclass(frozen=True)
class Run:
    """One set of parameters over one store. Attributes and methods run their stage on first use.

    Example:
        >>> run = Run(Params.load("params/digits.yaml"), default_store())   # doctest: +SKIP
        >>> run.coreset("elfs", 0.1).table("coreset")                       # doctest: +SKIP
    """

    params: Params
    store: Store

    @classmethod
    def from_notebook(cls, namespace: Mapping[str, Any]) -> Run:
        """Open a run from a notebook's variables and check it before any work starts."""
        run = cls(Params.from_notebook(namespace), default_store())
        run.check()
        return run

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
        p = self.params
        datasets.check_dataset(**self._source)
        size = p.encoder_size
        encoders.check_encoder(p.encoder, p.encoder_checkpoint, input_size=size)
        self.check_device()
        self.check_neighbors()
        self.check_pca()
        n = self.n
        classes = self.classes
        if classes > n:
            raise ElfsError(f"Parameter 'classes' is {classes} but there are only {n} images.")
        known = self.about["num_classes"] or 0
        if labels and self.labels.has and classes < known:
            raise ElfsError(
                f"Parameter 'classes' is {classes} but the labels name {known} classes: "
                "leave it out."
            )
        budget_count(p.budget, n)
        counts = [budget_count(budget, n) for budget in p.budgets]
        if labels and self.can_evaluate and len(set(counts)) < len(counts):
            raise ElfsError(
                f"Two of the budgets {list(p.budgets)} are the same number of the {n} images of "
                f"{p.dataset!r}: keep one."
            )
        at_each = labels and p.searches_beta
        for count in {budget_count(p.budget, n), *(counts if at_each else ())}:
            self._ratios(count)

    def check_device(self) -> None:
        """Check that the device is there.

        Raises:
            ElfsError: if it is not.
        """
        if self.params.device not in ("auto", "cpu"):  # which every machine has
            from elfs_lib.compute import resolve_device

            resolve_device(self.params.device)

    def check_neighbors(self) -> None:
        """Check that there are as many other images as neighbours are asked for.

        Raises:
            ElfsError: if there are fewer.
        """
        asked, n = self.params.neighbors, self.n
        if asked >= n:
            raise ElfsError(
                f"Parameter 'neighbors' is {asked} but there are only {n} images: choose at most "
                f"{n - 1}."
            )

    def check_pca(self) -> None:
        """Check that there are as many images as principal components are asked for.

        Raises:
            ElfsError: if there are fewer.
        """
        asked, n = self.params.temi_pca, self.n
        if asked is not None and asked > n:
            raise ElfsError(
                f"Parameter 'temi_pca' is {asked} but there are only {n} images: choose at most "
                f"{n}, or null."
            )

    # ------------------------------------------------------------------ images and labels

    @property
    def _source(self) -> dict[str, Any]:
        p = self.params
        return {
            "name": p.dataset,
            "image_size": p.image_size,
            "path": p.data_path,
        }

    @cached_property
    def images(self) -> Artifact:
        """Decoded images: arrays ``train`` (and ``test``) uint8 [N, C, H, W], json ``about``."""
        fingerprint = datasets.source_fingerprint(**self._source)

        def build(draft: Draft) -> None:
            images = datasets.load_images(**self._source)
            draft.array("train", images.train)
            if images.test is not None:
                draft.array("test", images.test)
            about = {
                "class_names": images.class_names,
                "num_classes": images.num_classes,
                "paths": images.paths,
                "report": images.report,
                "left_out": images.left_out,
                "source": " ".join(filter(None, (images.source, images.splits))),
                "splits": images.splits,
            }
            draft.json("about", about)

        params = {"dataset": self.params.dataset, "source": fingerprint}
        return self.store.run("images", build, version=1, params=params)

    @cached_property
    def n(self) -> int:
        """N, the number of training images."""
        return len(self.images.array("train"))

    @cached_property
    def train_images(self) -> np.ndarray:
        """uint8 [N, C, H, W], in memory or, where they are to be streamed, mapped from disk."""
        stored, loader = self.images.array("train"), self.params.loader
        mapped = loader == "streamed" or (loader == "auto" and is_large(stored.nbytes))
        return stored if mapped else np.array(stored)

    @cached_property
    def test_images(self) -> np.ndarray:
        """uint8 [M, C, H, W], resident.

        Raises:
            ElfsError: if the dataset has no test split.
        """
        if not (self.images.folder / "test.npy").exists():
            raise ElfsError(f"Dataset {self.params.dataset!r} has no test split to evaluate on.")
        return np.array(self.images.array("test"))

    @cached_property
    def about(self) -> dict[str, Any]:
        """Class names, number of classes, paths and the report on damaged files."""
        return self.images.json("about")

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
        return datasets.label_oracle(**self._source, left_out=self.about["left_out"])

    @cached_property
    def label_params(self) -> dict[str, str]:
        """What stages that open labels are keyed by besides their inputs: images hold no label."""
        return {"labels": self.labels.digest()}

    # ------------------------------------------------------------------ embeddings, clusters

    @cached_property
    def encoder(self) -> Artifact | None:
        """The encoder that is trained on the images, as ``encoder.safetensors``, and array
        ``losses`` [epochs]; None where the encoder is given (pretrained, or as a file)."""
        p = self.params
        if not self.trains_encoder:
            return None

        def build(draft: Draft) -> None:
            from elfs_lib.embedding import train_named
            from elfs_lib.encoder_file import save_encoder

            trained = train_named(
                self.train_images,
                p.encoder,
                self._encoder_training,
                checkpoint=p.encoder_checkpoint,
                input_size=p.encoder_size,
                seed=p.seed,
                device=p.device,
                precision=p.precision,
            )
            seen = self.encoder_facts["saw_labels"]
            about = trained.about | {"images": p.dataset, "seed": p.seed, "saw_labels": seen}
            save_encoder(trained, draft.folder / "encoder.safetensors", about)
            draft.array("losses", trained.losses)
            draft.fact(device=self._device, encoder=about)

        return self.store.run(
            "encoder",
            build,
            version=1,
            params=self._encoder_params,
            inputs={"images": self.images},
            seed=p.seed,
        )

    @property
    def encoder_facts(self) -> dict[str, object]:
        """What the encoder was trained on; see :func:`elfs_lib.encoders.describe`."""
        p = self.params
        return encoders.describe(p.encoder, p.encoder_checkpoint, p.encoder_method)

    @property
    def _encoder_params(self) -> dict[str, Any]:
        return self._some("encoder", "encoder_size", "precision", "seed") | {
            "checkpoint": encoders.checkpoint_fingerprint(self.params.encoder_checkpoint),
            "training": dataclasses.asdict(self._encoder_training),
        }

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
    def trains_encoder(self) -> bool:
        """Whether the encoder is trained here: not if it is pretrained, or given as the file of one
        that was trained on images."""
        p = self.params
        path = p.encoder_checkpoint
        given = path is not None and encoders.is_encoder_file(encoders.find_checkpoint(path))
        return encoders.trains_here(p.encoder) and not given

    @cached_property
    def embeddings(self) -> Artifact:
        """Array ``embeddings`` float32 [N, D] of the training images, and with ``encoder_pca`` the
        arrays ``pca_mean`` and ``pca_axes`` of :class:`elfs_lib.embedding.Reduction`."""
        return self._embeddings(lambda: self._embed(self.train_images), {})

    def _embeddings(self, work: Callable[[], np.ndarray], extra: Mapping[str, Any]) -> Artifact:
        """The artifact, from what embeds the images with this run's one encoder."""
        p = self.params
        parts = self.encoder_runs if len(self.encoder_runs) > 1 else []
        inputs = {part.params.encoder: part.embeddings for part in parts}
        if not parts and self.encoder is not None:
            inputs["encoder"] = self.encoder

        def build(draft: Draft) -> None:
            from elfs_lib.embedding import concatenate, fit_reduction

            if parts:
                found = concatenate(
                    [np.array(part.embeddings.array("embeddings")) for part in parts]
                )
            else:
                found = work()
                if p.encoder_pca:
                    reduction = fit_reduction(found, p.encoder_pca)
                    draft.array("pca_mean", reduction.mean)
                    draft.array("pca_axes", reduction.axes)
                    found = reduction(found)
            draft.array("embeddings", found)
            about = self.encoder_facts
            draft.fact(device=self._device, encoder=about)

        return self.store.run(
            "embeddings",
            build,
            version=1,
            params=self._embedding_params | extra,
            inputs={"images": self.images} | inputs,
        )

    @cached_property
    def test_embeddings(self) -> Artifact:
        """Array ``embeddings`` float32 [M, D] of the test images, by the encoder and the principal
        components of the training images."""
        parts = self.encoder_runs if len(self.encoder_runs) > 1 else []

        def build(draft: Draft) -> None:
            from elfs_lib.embedding import Reduction, concatenate

            if parts:
                tables = [np.array(part.test_embeddings.array("embeddings")) for part in parts]
                found = concatenate(tables)
            else:
                found = self._embed(self.test_images)
                if self.params.encoder_pca:
                    arrays = (self.embeddings.array(f"pca_{name}") for name in Reduction._fields)
                    found = Reduction(*map(np.asarray, arrays))(found)
            draft.array("embeddings", found)
            draft.fact(device=self._device)

        return self.store.run(
            "test_embeddings",
            build,
            version=1,
            params={},
            inputs={"images": self.images, "embeddings": self.embeddings},
        )

    @property
    def encoder_runs(self) -> list[Run]:
        """This run, or where several encoders are joined by "+" a run of each: its embeddings are
        shared with runs of that encoder alone."""
        p = self.params
        parts = encoders.split_encoders(p.encoder, p.encoder_checkpoint)
        if len(parts) == 1:
            return [self]
        changes = (
            {"encoder": name, "encoder_checkpoint": None if path is None else str(path)}
            for name, path in parts.items()
        )
        return [dataclasses.replace(self, params=p.model_copy(update=c)) for c in changes]

    def _embed(self, images: np.ndarray) -> np.ndarray:
        from elfs_lib.embedding import embed

        return embed(images, self.params.encoder, **self._embedding_options)

    @property
    def _embedding_options(self) -> dict[str, Any]:
        """How images are embedded, as :func:`elfs_lib.embedding.embed` takes it."""
        from elfs_lib.embedding import Views

        p = self.params
        trained = self.encoder and self.encoder.folder / "encoder.safetensors"
        views = p.encoder_views and Views(p.encoder_views, p.encoder_view_area, p.flip)
        return {
            "checkpoint": trained or p.encoder_checkpoint,
            "input_size": p.encoder_size,
            "views": views,
            "device": p.device,
            "precision": p.precision,
            "compile": p.compile,
        }

    @property
    def _encoder_training(self) -> SelfSupervisedConfig | EmpSslConfig:
        """How an encoder is trained on the images."""
        from elfs_lib.emp_ssl import EmpSslConfig
        from elfs_lib.self_supervised import SelfSupervisedConfig

        config = {"contrastive": SelfSupervisedConfig, "emp_ssl": EmpSslConfig}
        p = self.params
        changed = {"epochs": p.encoder_epochs, "network": p.encoder_network}
        given = {name: value for name, value in changed.items() if value is not None}
        return config[p.encoder_method](flip=p.flip, **given)

    @property
    def _embedding_params(self) -> dict[str, Any]:
        p = self.params
        params = self._some("encoder", "encoder_size", "precision")
        if not self.trains_encoder:
            params["checkpoint"] = encoders.checkpoint_fingerprint(p.encoder_checkpoint)
        if p.encoder_views and p.encoder != "pixels":
            params |= self._some("encoder_views", "encoder_view_area", "flip")
        if p.encoder_pca:
            params |= self._some("encoder_pca")
        return params

    @cached_property
    def neighbors(self) -> Artifact:
        """Arrays ``indices`` int32 [N, K] and ``similarities`` float32 [N, K], nearest first."""
        method = self.params.neighbor_search

        def build(draft: Draft) -> None:
            from elfs_lib.neighbors import nearest_neighbors

            found = nearest_neighbors(
                np.asarray(self.embeddings.array("embeddings")),
                self.params.neighbors,
                method=method,
                device=self.params.device,
            )
            draft.array("indices", found.indices)
            draft.array("similarities", found.similarities)

        return self.store.run(
            "neighbors",
            build,
            version=1,
            params=self._some("neighbors") | ({} if method == "exact" else {"search": method}),
            inputs={"embeddings": self.embeddings},
        )

    @property
    def temi_config(self) -> TemiConfig:
        """The ``temi_*`` parameters, which are named as the fields of
        :class:`elfs_lib.temi.TemiConfig`."""
        from elfs_lib.temi import TemiConfig

        values = self.params.model_dump()
        fields = (field.name for field in dataclasses.fields(TemiConfig))
        named = {f: values[f"temi_{f}"] for f in fields if f"temi_{f}" in values}
        return TemiConfig(classes=self.classes, **named)

    @cached_property
    def temi(self) -> Artifact:
        """Trained heads: arrays ``head_losses`` [H], ``loss_curves`` [T, H], and their weights."""

        def build(draft: Draft) -> None:
            from safetensors.torch import save_file

            from elfs_lib.temi import fit_heads

            heads = fit_heads(
                np.asarray(self.embeddings.array("embeddings")),
                np.asarray(self.neighbors.array("indices")),
                self.temi_config,
                seed=self.params.seed,
                device=self.params.device,
                precision=self.params.precision,
                compile=self.params.compile,
            )
            draft.array("head_losses", heads.head_losses)
            draft.array("loss_curves", heads.loss_curves)
            save_file(heads.state, draft.folder / "heads.safetensors")
            draft.fact(device=self._device)

        names = [n for n in Params.model_fields if n.startswith("temi_") and n != "temi_keep_heads"]
        params = self._some(*names, "seed", "precision") | {"classes": self.classes}
        params["temi_batch"] = min(self.params.temi_batch, self.n)  # as many as there are
        return self.store.run(
            "temi",
            build,
            version=3,
            params=params,
            inputs={"embeddings": self.embeddings, "neighbors": self.neighbors},
            seed=self.params.seed,
        )

    @cached_property
    def consensus(self) -> Artifact:
        """What the heads agree on: table ``labels`` (index, a column for each way to agree,
        confidence), arrays ``assignments`` [H, N], ``probabilities`` [N, C] and ``weights`` [H]."""

        def build(draft: Draft) -> None:
            from safetensors.torch import load_file

            from elfs_lib.temi import TemiHeads, consensus

            heads = TemiHeads(
                np.array(self.temi.array("head_losses")),
                np.array(self.temi.array("loss_curves")),
                load_file(self.temi.folder / "heads.safetensors"),
            )
            result = consensus(
                heads,
                np.asarray(self.embeddings.array("embeddings")),
                keep_heads=self.params.temi_keep_heads,
                device=self.params.device,
                precision=self.params.precision,
            )
            table = pd.DataFrame({"index": np.arange(len(result.confidence)), **result.pseudo})
            table["confidence"] = result.confidence
            draft.table("labels", table)
            draft.array("assignments", result.assignments)
            draft.array("probabilities", result.probabilities)
            draft.array("weights", result.weights)
            draft.json("notes", list(result.notes))
            draft.fact(device=self._device, notes=list(result.notes))

        return self.store.run(
            "consensus",
            build,
            version=1,
            params=self._some("temi_keep_heads", "precision"),
            inputs={"embeddings": self.embeddings, "temi": self.temi},
        )

    @cached_property
    def pseudo(self) -> Artifact:
        """Table ``pseudo`` (index, label, confidence): TEMI's, after any self-labelling rounds."""
        p = self.params

        def build(draft: Draft) -> None:
            from elfs_lib.self_training import relabel
            from elfs_lib.training.loop import Length

            table = self.consensus.table("labels")
            labels = table[p.pseudo_labels].to_numpy()
            confidence = table["confidence"].to_numpy()
            changed = []
            for number in range(p.relabel_rounds):
                found = relabel(
                    self.train_images,
                    labels,
                    confidence,
                    self.classes,
                    find_recipe(p.proxy_recipe),
                    Length(epochs=p.proxy_epochs),
                    keep=p.relabel_keep,
                    seed=p.seed + number,
                    **self.training,
                )
                labels, confidence = found.labels, found.confidence
                changed.append(found.changed)
            frame = pd.DataFrame({"index": table["index"], "label": labels})
            frame["confidence"] = confidence
            draft.table("pseudo", frame)
            draft.fact(device=self._device, changed_by_round=changed)

        params = self._some("pseudo_labels", "relabel_rounds")
        if p.relabel_rounds:
            params |= self._proxy_params | self._some("relabel_keep")
        return self.store.run(
            "pseudo",
            build,
            version=1,
            params=params,
            inputs={"images": self.images, "consensus": self.consensus},
            seed=p.seed,
        )

    @cached_property
    def pseudo_quality(self) -> Artifact:
        """Json ``quality``: agreement of the pseudo-labels with the true ones, as
        :func:`elfs_lib.clustering.clustering_report` has it. Analysis only."""

        def build(draft: Draft) -> None:
            from elfs_lib.clustering import clustering_report

            true = self.labels.open("train", purpose="analysis")
            draft.json("quality", clustering_report(self.pseudo_labels, true))

        return self.store.run(
            "pseudo_quality",
            build,
            version=1,
            params=self.label_params,
            inputs={"pseudo": self.pseudo},
            labels="analysis",
        )

    @cached_property
    def pseudo_labels(self) -> np.ndarray:
        """int64 [N]."""
        return self.pseudo.table("pseudo")["label"].to_numpy(copy=True)

    # ------------------------------------------------------------------ proxy and dynamics

    @property
    def training(self) -> dict[str, Any]:
        """How networks are trained on the images: flips, crops, and what computes."""
        return self._some("flip", "crop_pad", "device", "precision", "compile", "loader")

    @property
    def _proxy_params(self) -> dict[str, Any]:
        names = ("proxy_recipe", "proxy_epochs", "flip", "crop_pad", "seed", "precision")
        return self._some(*names) | {"classes": self.classes}

    def _dynamics(
        self, draft: Draft, targets: np.ndarray, seed: int, weights: np.ndarray | None = None
    ) -> None:
        import torch

        from elfs_lib.compute import resolve_device
        from elfs_lib.dynamics import DynamicsRecorder
        from elfs_lib.training.loop import Length, Seeds, train

        p = self.params
        recorder = DynamicsRecorder(torch.as_tensor(targets), resolve_device(p.device), seed=seed)
        trained = train(
            self.train_images,
            targets,
            self.classes,
            find_recipe(p.proxy_recipe),
            Length(epochs=p.proxy_epochs),
            seeds=Seeds.all(seed),
            weights=weights,
            recorder=recorder,
            desc="proxy",
            **self.training,
        )
        draft.table("scores", recorder.table())
        draft.array("curves", recorder.curves())
        draft.array("watched", recorder.watched.cpu().numpy())
        draft.array("mean_margins", recorder.mean_margins())
        draft.array("losses", trained.losses)
        draft.array("probabilities", trained.logits(self.train_images).softmax(1).numpy())
        draft.fact(
            device=self._device,
            train_flops=trained.flops,
            train_s=round(trained.seconds, 3),
            share_of_peak=round(trained.share_of_peak, 3),
            bytes_per_image=recorder.bytes_per_image,
        )

    @cached_property
    def proxies(self) -> list[Artifact]:
        """Dynamics of each proxy trained on pseudo-labels (``proxy_seeds`` of them)."""
        weights, params = None, self._proxy_params
        if self.params.proxy_weights == "confidence":
            weights = self.pseudo.table("pseudo")["confidence"].to_numpy()
            params |= {"weights": "confidence"}
        return [
            self.store.run(
                "proxy",
                lambda draft, seed=seed: self._dynamics(draft, self.pseudo_labels, seed, weights),
                version=1,
                params=params | {"seed": seed},
                inputs={"images": self.images, "pseudo": self.pseudo},
                seed=seed,
            )
            for seed in range(self.params.seed, self.params.seed + self.params.proxy_seeds)
        ]

    @cached_property
    def scores(self) -> pd.DataFrame:
        """Scores under pseudo-labels, averaged over proxies: one row an image."""
        return _mean_tables([proxy.table("scores") for proxy in self.proxies])

    @cached_property
    def true_proxy(self) -> Artifact:
        """The same proxy trained on ground truth: for analysis and for the supervised ceiling."""
        return self.store.run(
            "true_proxy",
            lambda draft: self._dynamics(
                draft, self.labels.open("train", purpose="ceiling"), self.params.seed
            ),
            version=1,
            params=self._proxy_params | self.label_params,
            inputs={"images": self.images},
            seed=self.params.seed,
            labels="ceiling",
        )

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
        inputs = {f"proxy_{i}": proxy for i, proxy in enumerate(self.proxies)}

        def build(draft: Draft) -> None:
            order = easiness(self.scores, score or self.params.score)
            if balanced:
                order = class_quantile(order, self.pseudo_labels)
            self._search(draft, budget, order, self.pseudo_labels)

        return self.store.run(
            "search",
            build,
            version=1,
            params=self._search_params(budget, score) | extra,
            inputs={"images": self.images, "pseudo": self.pseudo} | inputs,
            seed=self.params.seed,
        )

    def true_search(self, budget: float | int, score: str | None = None) -> Artifact:
        """The same search on true labels and true scores, for the supervised ceiling."""

        def build(draft: Draft) -> None:
            targets = self.labels.open("train", purpose="ceiling")
            order = easiness(self.true_scores, score or self.params.score)
            self._search(draft, budget, order, targets)

        return self.store.run(
            "true_search",
            build,
            version=1,
            params=self._search_params(budget, score) | self.label_params,
            inputs={"images": self.images, "proxy_0": self.true_proxy},
            seed=self.params.seed,
            labels="ceiling",
        )

    def _search(
        self, draft: Draft, budget: float | int, order: np.ndarray, targets: np.ndarray
    ) -> None:
        from elfs_lib.training.loop import Length, Seeds, train

        p = self.params
        recipe = find_recipe(p.search_recipe or p.eval_recipe)
        steps = Length(steps=p.search_steps)

        def fit_and_score(kept: np.ndarray, held_out: np.ndarray) -> float:
            trained = train(
                self.train_images,
                targets[kept],
                self.classes,
                recipe,
                steps,
                seeds=Seeds.all(p.seed),
                subset=kept,
                desc="search",
                **self.training,
            )
            return 100 * trained.accuracy(self.train_images[held_out], targets[held_out])

        found = search_hard_prune_ratio(
            order,
            budget_count(budget, self.n),
            ratios=p.hard_prune_ratios,
            fit_and_score=fit_and_score,
            seed=range(p.seed, p.seed + p.search_seeds),
        )
        draft.array("scores", found.scores)
        draft.json("search", {"ratios": found.ratios.tolist(), "best": found.best})
        draft.fact(device=self._device)

    def _ratios(self, count: int) -> list[float]:
        """The betas for a coreset of a size: the given one, which must fit, and those of the grid
        that do."""
        given, grid = self.params.hard_prune_ratio, self.params.hard_prune_ratios
        if given is not None:
            hard_prune_count(self.n, given, count)
            grid = (given, *grid)
        return feasible_ratios(grid, self.n, count)

    def _search_params(self, budget: float | int, score: str | None) -> dict[str, Any]:
        names = ("hard_prune_ratios", "search_steps", "search_seeds", "flip", "crop_pad", "seed")
        count = budget_count(budget, self.n)
        return self._some(*names, "precision") | {
            "recipe": recipe_key(self.params.search_recipe or self.params.eval_recipe),
            "score": score or self.params.score,
            "count": count,
            "classes": self.classes,
        }

    def beta_search(
        self, method: str, budget: float | int, score: str | None = None
    ) -> tuple[Any, ...] | None:
        """The stage that finds a method's beta at a budget, as :meth:`perform` takes it; None if
        the method has no beta, or the parameter gives it."""
        entry = METHODS[method]
        if not entry.takes_beta or self.params.hard_prune_ratio is not None:
            return None
        score = score or (self.params.score if entry.follows_score else entry.score)
        return "true_search" if entry.supervised else "search", budget, score

    def hard_prune_ratio(self, budget: float | int) -> float:
        """Beta of ELFS for a budget: the parameter if given, else the choice of the search."""
        return self._beta("elfs", budget)

    def _beta(self, method: str, budget: float | int, score: str | None = None) -> float:
        call = self.beta_search(method, budget, score)
        if call is None:
            return self.params.hard_prune_ratio
        return float(self.perform(call).json("search")["best"])

    def perform(self, call: Sequence[Any]) -> Any:
        """Run the stage of a name: an attribute, or a method with what follows for arguments."""
        stage = getattr(self, call[0])
        return stage(*call[1:]) if callable(stage) else stage

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
        entry = METHODS[choose("method", method, METHODS)]
        seed = (self.params.seed if seed is None else seed) if entry.seeded else 0
        count = budget_count(budget, self.n)
        options = self._options(method, budget, options)

        def build(draft: Draft) -> None:
            inputs = self._selection_inputs(entry)
            chosen = select(method, inputs, count, seed=seed, **options)
            draft.table("coreset", self._coreset_table(chosen))
            draft.json("info", chosen.info)

        return self.store.run(
            "coreset",
            build,
            version=1,
            params={
                "method": method,
                "count": count,
                "classes": self.classes,
                "seed": seed,
                "options": options,
                **({"revision": entry.revision} if entry.revision > 1 else {}),
                **(self.label_params if entry.supervised else {}),
            },
            inputs=self._selection_artifacts(entry),
            seed=seed,
            labels="ceiling" if entry.supervised else "never",
        )

    def _options(
        self, method: str, budget: float | int, given: Mapping[str, Any]
    ) -> dict[str, Any]:
        """The given options, and those that the run decides: its score, searched betas."""
        entry = METHODS[method]
        options: dict[str, Any] = {"score": self.params.score} if entry.follows_score else {}
        options |= given
        if entry.takes_beta and "hard_prune_ratio" not in options:
            options["hard_prune_ratio"] = self._beta(method, budget, options.get("score"))
        return options

    @staticmethod
    def reads(entry: Method) -> tuple[str, ...]:
        """The stages, by their names as attributes, that a method reads besides the images."""
        own = [name for name in ("embeddings", "neighbors") if name in entry.needs]
        if entry.supervised:
            return (*own, "true_proxy")
        own += ["proxies"] if entry.needs & {"scores", "probabilities"} else []
        return (*own, "pseudo") if "pseudo_labels" in entry.needs else tuple(own)

    @classmethod
    def by_clusters(cls, entry: Method) -> bool:
        """Whether a method's coreset depends on the pseudo-labels."""
        return bool({"pseudo", "proxies"} & {*cls.reads(entry)})

    def _selection_artifacts(self, entry: Method) -> dict[str, Artifact]:
        inputs = {"images": self.images}
        for stage in self.reads(entry):
            found = getattr(self, stage)
            if stage in ("proxies", "true_proxy"):
                each = found if stage == "proxies" else [found]
                inputs |= {f"proxy_{i}": proxy for i, proxy in enumerate(each)}
            else:
                inputs[stage] = found
        return inputs

    def _selection_inputs(self, entry: Method) -> SelectionInputs:
        read = self._selection_artifacts(entry)
        proxies = [read[name] for name in sorted(read) if name.startswith("proxy_")]
        fields: dict[str, Any] = {}
        if "embeddings" in read:
            fields["embeddings"] = read["embeddings"].array("embeddings")
        if "neighbors" in read:
            fields["neighbors"] = read["neighbors"].array("indices")
            fields["similarities"] = read["neighbors"].array("similarities")
        if "pseudo_labels" in entry.needs:
            fields["pseudo_labels"] = (
                self.labels.open("train", purpose="ceiling")
                if entry.supervised
                else self.pseudo_labels
            )
        if "scores" in entry.needs:
            table = self.true_scores if entry.supervised else self.scores
            fields["scores"] = {c: table[c].to_numpy() for c in table if c != "index"}
        if "probabilities" in entry.needs:
            fields["probabilities"] = _mean([x.array("probabilities") for x in proxies])
        return SelectionInputs(n=self.n, classes=self.classes, **fields)

    def _coreset_table(self, chosen: Selection) -> pd.DataFrame:
        paths = self.about["paths"]
        return pd.DataFrame(
            {
                "rank": np.arange(1, len(chosen.indices) + 1),
                "index": chosen.indices,
                "path": [paths[i] for i in chosen.indices] if paths else "",
                "score": chosen.scores,
            }
        )

    # ------------------------------------------------------------------ evaluation

    def evaluate(self, method: str, budget: float | int, seed: int, **options: Any) -> Artifact:
        """Train on the labelled coreset; json ``result`` (last step), array ``predictions`` [M]."""
        p, coreset = self.params, self.coreset(method, budget, seed, **options)
        if self.by_clusters(METHODS[method]):
            self.pseudo_quality  # noqa: B018 - which a row of the results table reads

        def build(draft: Draft) -> None:
            from elfs_lib.training.loop import Length, Seeds, train

            steps = None if p.eval_epochs else p.eval_steps
            subset = coreset.table("coreset")["index"].to_numpy()
            trained = train(
                self.train_images,
                self.labels.open("train", purpose="evaluation")[subset],
                self.classes,
                find_recipe(p.eval_recipe),
                Length(epochs=p.eval_epochs, steps=steps),
                seeds=Seeds.all(seed),
                subset=subset,
                desc=f"{method}, {len(subset)} images, seed {seed}",
                **self.training,
            )
            predictions = trained.logits(self.test_images).argmax(1).numpy()
            right = predictions == self.labels.open("test", purpose="evaluation")
            draft.array("predictions", predictions.astype(np.int16))
            draft.json(
                "result",
                {
                    "accuracy": 100 * float(right.mean()),
                    "steps": trained.steps,
                    "train_flops": trained.flops,
                    "seconds": round(trained.seconds, 3),
                    "device": self._device,
                },
            )
            draft.fact(
                device=self._device,
                train_flops=trained.flops,
                train_s=round(trained.seconds, 3),
                share_of_peak=round(trained.share_of_peak, 3),
            )

        names = ("eval_recipe", "eval_epochs", "flip", "crop_pad", "precision")
        params = self._some(*names) | {"seed": seed, "classes": self.classes} | self.label_params
        if not p.eval_epochs:
            params["eval_steps"] = p.eval_steps
        return self.store.run(
            "evaluation",
            build,
            version=1,
            params=params,
            inputs={"images": self.images, "coreset": coreset},
            seed=seed,
            labels="evaluation",
        )

    def cells(self) -> Iterator[tuple[str, float | int, int]]:
        """Every (method, budget, seed) of the evaluation, budgets first, seeds last."""
        p = self.params
        yield from itertools.product(p.methods, p.budgets, p.eval_seeds)

    def hindsight(self, budget: float | int) -> pd.DataFrame:
        """What each beta would have given: trains on true labels at every ratio that fits.

        Returns:
            Columns ``ratio``, ``seed`` and ``accuracy`` (percent); empty without
            ``hindsight_seeds``. Analysis only: the search never sees it.
        """
        p = self.params
        ratios = self._ratios(budget_count(budget, self.n)) if p.hindsight_seeds else []
        rows = [
            {
                "ratio": ratio,
                "seed": seed,
                "accuracy": self.evaluate("elfs", budget, seed, hard_prune_ratio=ratio).json(
                    "result"
                )["accuracy"],
            }
            for ratio, seed in itertools.product(ratios, p.hindsight_seeds)
        ]
        return pd.DataFrame(rows, columns=["ratio", "seed", "accuracy"])

    def result_row(self, method: str, budget: float | int, seed: int) -> dict[str, Any]:
        """One row of the results table; see :mod:`elfs_lib.evaluation` for its columns."""
        p, entry = self.params, METHODS[method]
        count = budget_count(budget, self.n)
        result = self.evaluate(method, budget, seed).json("result")
        info = self.coreset(method, budget, seed).json("info")
        quality = self.pseudo_quality.json("quality") if self.by_clusters(entry) else {}
        return {
            "dataset": p.dataset,
            "method": method,
            "supervised": entry.supervised,
            "budget": count / self.n,
            "count": count,
            "seed": seed,
            "recipe": recipe_key(p.eval_recipe),
            "hard_prune_ratio": info.get("hard_prune_ratio"),
            "pseudo_label_accuracy": 100 * quality["accuracy"] if quality else None,
            **result,
        }

    def results(self) -> pd.DataFrame:
        """The results table: trains whatever is missing, one row a (method, budget, seed)."""
        cells = list(self.cells())
        return pd.DataFrame([self.result_row(*cell) for cell in track(cells, "evaluation")])

    # ------------------------------------------------------------------ helpers

    def _some(self, *names: str) -> dict[str, Any]:
        some = {name: getattr(self.params, name) for name in names}
        recipes = {name: recipe_key(some[name]) for name in names if name.endswith("_recipe")}
        return some | recipes

    @property
    def _device(self) -> str:
        from elfs_lib.compute import describe_device, resolve_device

        return describe_device(resolve_device(self.params.device))


def _mean(arrays: list[np.ndarray]) -> np.ndarray:
    """Their mean, without a copy of each."""
    total = np.array(arrays[0])
    for array in arrays[1:]:
        total += array
    total /= total.dtype.type(len(arrays))
    return total


def _mean_tables(tables: list[pd.DataFrame]) -> pd.DataFrame:
    """Average tables of scores row by row."""
    mean = sum(table.drop(columns="index").astype(np.float64) for table in tables) / len(tables)
    mean.insert(0, "index", tables[0]["index"])
    return mean
