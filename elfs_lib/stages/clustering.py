"""The stages from neighbours to pseudo-labels."""

from __future__ import annotations

import dataclasses
import inspect
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from elfs_lib.artifacts import Draft
from elfs_lib.clustering.registry import CLUSTERINGS, ClusteringInputs, cluster
from elfs_lib.embedding import encoders
from elfs_lib.params import Params
from elfs_lib.stages.embedding import checkpoint_entry, encoder_file
from elfs_lib.stages.graph import Call, Given, stage
from elfs_lib.training.recipes import find_recipe

if TYPE_CHECKING:
    from elfs_lib.clustering.self_training import Relabelled
    from elfs_lib.clustering.temi import TemiConfig
    from elfs_lib.stages.run import Run

#: What a network that learns pseudo-labels is trained by, besides its seed.
PROXY = ("proxy_recipe", "proxy_epochs", "flip", "crop_pad", "precision", "shuffle", "classes")
PROXY_LATER = {"shuffle": "full"}
_HEADS = {n for n in Params.model_fields if n.startswith("temi_") and n != "temi_keep_heads"}
_TEMI = _HEADS | {"classes", "seed", "precision"}


def temi_config(params: Params) -> TemiConfig:
    """The ``temi_*`` parameters, which are named as the fields of
    :class:`elfs_lib.clustering.temi.TemiConfig`; ``classes`` must be given."""
    from elfs_lib.clustering.temi import TemiConfig

    fields = {field.name for field in dataclasses.fields(TemiConfig)} - {"classes"}
    named = {f: getattr(params, f"temi_{f}") for f in fields if f"temi_{f}" in _HEADS}
    return TemiConfig(classes=params.classes, **named)


def _temi_key(given: Given) -> dict[str, Any]:
    n = len(given.array("embeddings", "embeddings"))
    batch = given.key_entry("temi_batch", lambda given: min(given.params.temi_batch, n))
    return given.key(*_TEMI - {"temi_batch"}) | batch  # as many as there are


@stage(
    title="TEMI clustering",
    inputs=["embeddings", "neighbors"],
    reads=_TEMI,
    key=_temi_key,
    version=3,
)
def temi(given: Given, draft: Draft) -> None:
    """Trained heads: arrays ``head_losses`` [H], ``loss_curves`` [T, H], and their weights."""
    from safetensors.torch import save_file

    from elfs_lib.clustering.temi import fit_heads

    p = given.params
    heads = fit_heads(
        np.asarray(given.array("embeddings", "embeddings")),
        np.asarray(given.array("neighbors", "indices")),
        temi_config(p),
        seed=p.seed,
        device=p.device,
        precision=p.precision,
        compile=p.compile,
    )
    draft.array("head_losses", heads.head_losses)
    draft.array("loss_curves", heads.loss_curves)
    save_file(heads.state, draft.folder / "heads.safetensors")
    draft.fact(device=given.device_name)


@stage(
    title="consensus of the heads",
    inputs=["embeddings", "temi"],
    reads=["temi_keep_heads", "precision"],
)
def consensus(given: Given, draft: Draft) -> None:
    """What the heads agree on: table ``labels`` (index, a column for each way to agree,
    confidence), arrays ``assignments`` [H, N], ``probabilities`` [N, C] and ``weights`` [H]."""
    from safetensors.torch import load_file

    from elfs_lib.clustering.temi import TemiHeads, consensus

    trained = given.inputs["temi"]
    heads = TemiHeads(
        np.array(trained.array("head_losses")),
        np.array(trained.array("loss_curves")),
        load_file(trained.folder / "heads.safetensors"),
    )
    result = consensus(
        heads,
        np.asarray(given.array("embeddings", "embeddings")),
        keep_heads=given.params.temi_keep_heads,
        device=given.params.device,
        precision=given.params.precision,
    )
    table = pd.DataFrame({"index": np.arange(len(result.confidence)), **result.pseudo})
    table["confidence"] = result.confidence
    draft.table("labels", table)
    draft.array("assignments", result.assignments)
    draft.array("probabilities", result.probabilities)
    draft.array("weights", result.weights)
    draft.json("notes", list(result.notes))
    draft.fact(device=given.device_name, notes=list(result.notes))


def _clusters_key(given: Given) -> dict[str, Any]:
    keyed = given.key("clustering", "classes", "seed")
    entry = CLUSTERINGS[keyed["clustering"]]
    of_function = inspect.signature(entry.function).parameters
    for option, name in entry.options.items():
        # at the function's default the key is that of results from before there was a parameter
        neutral = of_function[option].default
        keyed |= given.key_entry(
            name, lambda g, name=name: getattr(g.params, name), neutral=neutral
        )
    return keyed | {"revision": entry.revision}


@stage(
    title="clustering",
    inputs=["embeddings", "neighbors"],
    reads=[
        *("clustering", "classes", "seed"),
        *(name for entry in CLUSTERINGS.values() for name in entry.options.values()),
    ],
    key=_clusters_key,
)
def clusters(given: Given, draft: Draft) -> None:
    """A clustering of the registry: table ``labels`` (index, label, confidence), json ``notes``."""
    p = given.params
    inputs = ClusteringInputs(
        embeddings=np.asarray(given.array("embeddings", "embeddings")),
        neighbors=np.asarray(given.array("neighbors", "indices")),
    )
    names = CLUSTERINGS[p.clustering].options
    options = {option: getattr(p, name) for option, name in names.items()}
    found = cluster(p.clustering, inputs, p.classes, seed=p.seed, **options)
    draft.table("labels", _table(found.labels, found.confidence))


def _table(labels: np.ndarray, confidence: np.ndarray) -> pd.DataFrame:
    index = np.arange(len(labels))
    return pd.DataFrame({"index": index, "label": labels, "confidence": confidence})


def _fine_tunes(params: Params) -> bool:
    """Whether self-labelling starts from the encoder."""
    return params.relabel_rounds > 0 and params.relabel_start == "encoder"


def _pseudo_inputs(run: Run) -> dict[str, Call]:
    clustered = CLUSTERINGS[run.params.clustering].stage
    tuned = _fine_tunes(run.params) and run.trains_encoder
    encoder = {"encoder": run.call("encoder")} if tuned else {}
    return {"images": run.call("images"), clustered: run.call(clustered), **encoder}


def _pseudo_key(given: Given) -> dict[str, Any]:
    keyed = given.key("relabel_rounds")
    if "consensus" in given.inputs:
        keyed |= given.key("pseudo_labels")
    if not keyed["relabel_rounds"]:
        return keyed
    keyed |= given.key("seed", "relabel_keep", "relabel_start", "flip", "precision", "classes")
    if not _fine_tunes(given.params):
        return keyed | given.key(*PROXY)
    keyed |= given.key("encoder", "encoder_size") | checkpoint_entry(given)
    from elfs_lib.clustering.self_training import FineTuning  # needs PyTorch

    return keyed | {"training": dataclasses.asdict(FineTuning())}


def _relabel(given: Given, labels: np.ndarray, confidence: np.ndarray, seed: int) -> Relabelled:
    """One round of self-labelling."""
    from elfs_lib.clustering.self_training import fine_tune, relabel
    from elfs_lib.embedding.networks import stored_encoder
    from elfs_lib.training.loop import Length

    p = given.params
    start = given.train_images, labels, confidence, p.classes
    if not _fine_tunes(p):
        recipe, length = find_recipe(p.proxy_recipe), Length(epochs=p.proxy_epochs)
        return relabel(*start, recipe, length, keep=p.relabel_keep, seed=seed, **given.training)
    file, size = encoder_file(given), given.train_images.shape[2:]
    file = file and encoders.find_checkpoint(file)
    encoder = stored_encoder(p.encoder, size, file, p.encoder_size)
    where = given.some("flip", "device", "precision", "loader")
    return fine_tune(encoder, *start, keep=p.relabel_keep, seed=seed, **where)


@stage(
    title="pseudo-labels",
    inputs=_pseudo_inputs,
    reads=[
        *("pseudo_labels", "relabel_rounds", "relabel_keep", "seed", *PROXY),
        *("encoder", "encoder_size", "encoder_checkpoint"),
    ],
    later={"relabel_start": "random", **PROXY_LATER},
    key=_pseudo_key,
)
def pseudo(given: Given, draft: Draft) -> None:
    """Table ``pseudo`` (index, label, confidence): the clustering's, after any self-labelling
    rounds."""
    p = given.params
    if "consensus" in given.inputs:
        table = given.inputs["consensus"].table("labels")
        labels = table[p.pseudo_labels].to_numpy()
    else:
        table = given.inputs["clusters"].table("labels")
        labels = table["label"].to_numpy()
    confidence = table["confidence"].to_numpy()
    changed = []
    for number in range(p.relabel_rounds):
        found = _relabel(given, labels, confidence, p.seed + number)
        labels, confidence = found.labels, found.confidence
        changed.append(found.changed)
    draft.table("pseudo", _table(labels, confidence))
    draft.fact(device=given.device_name, changed_by_round=changed)


def write_pseudo(draft: Draft, labels: np.ndarray, confidence: np.ndarray) -> None:
    """Write pseudo-labels int64 [N] that somebody brings, and their confidence float32 [N]."""
    draft.table("pseudo", _table(labels, confidence))


@stage(
    title="agreement of the pseudo-labels with the true ones (analysis)",
    inputs=["pseudo"],
    labels="analysis",
    quick=True,
)
def pseudo_quality(given: Given, draft: Draft) -> None:
    """Json ``quality``: agreement of the pseudo-labels with the true ones, as
    :func:`elfs_lib.clustering.metrics.clustering_report` has it. Analysis only."""
    from elfs_lib.clustering.metrics import clustering_report

    found = given.inputs["pseudo"].table("pseudo")["label"].to_numpy(copy=True)
    true = given.labels.open("train", purpose="analysis")
    draft.json("quality", clustering_report(found, true))
