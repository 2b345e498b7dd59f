"""The stages from the source of the images to their neighbours."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from elfs_lib.artifacts import Draft, canonical_json
from elfs_lib.data import datasets
from elfs_lib.data.base import Source
from elfs_lib.embedding import embedding_file, encoders
from elfs_lib.errors import ElfsError
from elfs_lib.params import Params
from elfs_lib.stages.graph import Call, Given, stage

if TYPE_CHECKING:
    from elfs_lib.embedding.embed import Views
    from elfs_lib.embedding.emp_ssl import EmpSslConfig
    from elfs_lib.embedding.self_supervised import SelfSupervisedConfig
    from elfs_lib.stages.run import Run

_VIEWS = ("encoder_views", "encoder_view_area", "flip")
_EMBEDDING = ("encoder", "encoder_checkpoint", "encoder_size", "precision", *_VIEWS)
_FILE = ("embeddings_path",)


def source(params: Params) -> Source:
    """The dataset of a run and where it is."""
    return Source(params.dataset, image_size=params.image_size, path=params.data_path)


def _images_key(given: Given) -> dict[str, Any]:
    fingerprint = datasets.source_fingerprint(source(given.params))
    return {"dataset": given.params.dataset, "source": fingerprint}


@stage(title="images", reads=["dataset", "image_size", "data_path"], key=_images_key)
def images(given: Given, draft: Draft) -> None:
    """Decoded images: arrays ``train`` (and ``test``) uint8 [N, C, H, W], json ``about``."""
    where = source(given.params)
    folders = [folder and str(folder.resolve()) for folder in (where.path, where.data_dir)]
    place = canonical_json([where.dataset, where.image_size, *folders])
    unfinished = hashlib.sha256(place.encode()).hexdigest()[:16]
    found = datasets.load_images(where, scratch=draft.unfinished(unfinished))
    draft.array("train", found.train)
    if found.test is not None:
        draft.array("test", found.test)
    about = {
        "class_names": found.class_names,
        "num_classes": found.num_classes,
        "paths": found.paths,
        "report": found.report,
        "left_out": found.left_out,
        "source": " ".join(filter(None, (found.source, found.splits))),
        "splits": found.splits,
    }
    draft.json("about", about)


# ---------------------------------------------------------------------- an encoder trained here


def trains_encoder(params: Params) -> bool:
    """Whether the encoder is trained here: not if it is pretrained, or given as the file of one
    that was trained on images."""
    path = params.encoder_checkpoint
    given = path is not None and encoders.is_encoder_file(encoders.find_checkpoint(path))
    return encoders.trains_here(params.encoder) and not given


def encoder_training(params: Params) -> SelfSupervisedConfig | EmpSslConfig:
    """How an encoder is trained on the images."""
    from elfs_lib.embedding.emp_ssl import EmpSslConfig
    from elfs_lib.embedding.self_supervised import SelfSupervisedConfig

    config = {"contrastive": SelfSupervisedConfig, "emp_ssl": EmpSslConfig}
    changed = {"epochs": params.encoder_epochs, "network": params.encoder_network}
    given = {name: value for name, value in changed.items() if value is not None}
    return config[params.encoder_method](flip=params.flip, **given)


def encoder_facts(params: Params) -> dict[str, object]:
    """What the encoder was trained on; see :func:`elfs_lib.embedding.encoders.describe`."""
    return encoders.describe(params.encoder, params.encoder_checkpoint, params.encoder_method)


def _encoder_key(given: Given) -> dict[str, Any]:
    return given.key("encoder", "encoder_size", "precision", "seed") | {
        "checkpoint": encoders.checkpoint_fingerprint(given.params.encoder_checkpoint),
        "training": dataclasses.asdict(encoder_training(given.params)),
    }


@stage(
    title="encoder trained on the images",
    inputs=["images"],
    reads=[
        *("encoder", "encoder_checkpoint", "encoder_size", "precision", "seed", "flip"),
        *("encoder_method", "encoder_epochs", "encoder_network"),
    ],
    key=_encoder_key,
    unkeyed=["dataset"],  # which is only named in what the file says of itself
)
def encoder(given: Given, draft: Draft) -> None:
    """The encoder that is trained on the images, as ``encoder.safetensors``, and array ``losses``
    [epochs]."""
    from elfs_lib.embedding.embed import train_named
    from elfs_lib.embedding.encoder_file import save_encoder

    p = given.params
    trained = train_named(
        given.train_images,
        p.encoder,
        encoder_training(p),
        checkpoint=p.encoder_checkpoint,
        input_size=p.encoder_size,
        seed=p.seed,
        device=p.device,
        precision=p.precision,
        loader=p.loader,
    )
    seen = encoder_facts(p)["saw_labels"]
    about = trained.about | {"images": p.dataset, "seed": p.seed, "saw_labels": seen}
    save_encoder(trained, draft.folder / "encoder.safetensors", about)
    draft.array("losses", trained.losses)
    draft.fact(device=given.device_name, encoder=about)


# ---------------------------------------------------------------------- embeddings


def _views(params: Params) -> Views | None:
    from elfs_lib.embedding.embed import Views

    if not _takes_views(params):
        return None
    return Views(params.encoder_views, params.encoder_view_area, params.flip)


def _takes_views(params: Params) -> bool:
    return bool(params.encoder_views) and params.encoder != "pixels"


def encoder_file(given: Given) -> Path | str | None:
    """The file of the encoder: of the one that is trained here, else the one that is named."""
    trained = given.inputs.get("encoder")
    return trained.folder / "encoder.safetensors" if trained else given.params.encoder_checkpoint


def embedding_options(given: Given) -> dict[str, Any]:
    """How images are embedded, as :func:`elfs_lib.embedding.embed.embed` takes it."""
    p = given.params
    return {
        "checkpoint": encoder_file(given),
        "input_size": p.encoder_size,
        "views": _views(p),
        "device": p.device,
        "precision": p.precision,
        "compile": p.compile,
    }


def _embed(given: Given, images: np.ndarray) -> np.ndarray:
    from elfs_lib.embedding.embed import embed

    if given.params.encoder == embedding_file.PRECOMPUTED:
        raise ElfsError(
            f"Encoder {embedding_file.PRECOMPUTED!r} has embeddings of the training images alone: "
            "choose one that embeds the test images too."
        )
    return embed(images, given.params.encoder, **embedding_options(given))


def _encoder_inputs(run: Run, of: str) -> dict[str, Call]:
    """What the embeddings come from besides the images: those of each encoder where "+" joins
    several, or an encoder that is trained here."""
    if len(run.encoder_runs) > 1:
        return {part.params.encoder: part.call(of) for part in run.encoder_runs}
    return {"encoder": run.call("encoder")} if run.trains_encoder else {}


def _parts(given: Given) -> list[np.ndarray]:
    """Where "+" joins encoders, the embeddings of each."""
    others = given.inputs.keys() - {"images", "encoder", "embeddings"}
    parts = [name for name in given.inputs if name in others]
    return [np.array(given.array(name, "embeddings")) for name in parts]


def _read_file(given: Given) -> np.ndarray:
    """The embeddings of a file, in the order of the images; a folder's images have none."""
    paths = given.inputs["images"].json("about")["paths"]
    ordered = given.params.dataset != "image_folder"
    return embedding_file.load_embeddings(
        given.params.embeddings_path, given.n, paths, ordered=ordered
    )


def embeddings_key(given: Given) -> dict[str, Any]:
    if given.params.encoder == embedding_file.PRECOMPUTED:
        content = embedding_file.file_fingerprint(given.params.embeddings_path)
        given.some("encoder_checkpoint")  # it can have none
        return given.key("encoder", "encoder_pca") | {"content": content}
    keyed = given.key("encoder", "encoder_size", "precision", "encoder_pca")
    if not trains_encoder(given.params):  # else it is in the encoder's own key
        path = given.params.encoder_checkpoint
        keyed["checkpoint"] = encoders.checkpoint_fingerprint(path)
    return keyed | (given.key(*_VIEWS) if _takes_views(given.params) else {})


def write_embeddings(given: Given, draft: Draft, work: Callable[[], np.ndarray]) -> None:
    """Write the embeddings of the training images, from what embeds them with one encoder."""
    from elfs_lib.embedding.embed import concatenate, fit_reduction

    if parts := _parts(given):
        found = concatenate(parts)
    else:
        found = work()
        if given.params.encoder_pca:
            reduction = fit_reduction(found, given.params.encoder_pca)
            draft.array("pca_mean", reduction.mean)
            draft.array("pca_axes", reduction.axes)
            found = reduction(found)
    draft.array("embeddings", found)
    draft.fact(device=given.device_name, encoder=encoder_facts(given.params))


@stage(
    title="embeddings",
    inputs=lambda run: {"images": run.call("images"), **_encoder_inputs(run, "embeddings")},
    reads=[*_EMBEDDING, *_FILE],
    later={"encoder_pca": None},
    key=embeddings_key,
    # the first is in the encoder's own key, and named here; the second in that of the images
    unkeyed=["encoder_method", "dataset"],
)
def embeddings(given: Given, draft: Draft) -> None:
    """Array ``embeddings`` float32 [N, D] of the training images, and with ``encoder_pca`` the
    arrays ``pca_mean`` and ``pca_axes`` of :class:`elfs_lib.embedding.embed.Reduction`."""
    from_file = given.params.encoder == embedding_file.PRECOMPUTED
    work = (lambda: _read_file(given)) if from_file else lambda: _embed(given, given.train_images)
    write_embeddings(given, draft, work)


@stage(
    title="embeddings of the test images",
    inputs=["images", "embeddings"],
    unkeyed_inputs=lambda run: _encoder_inputs(run, "test_embeddings"),
    unkeyed=[*_EMBEDDING, "encoder_pca"],  # by the embeddings of the training images
)
def test_embeddings(given: Given, draft: Draft) -> None:
    """Array ``embeddings`` float32 [M, D] of the test images, by the encoder and the principal
    components of the training images."""
    from elfs_lib.embedding.embed import Reduction, concatenate

    if parts := _parts(given):
        found = concatenate(parts)
    else:
        found = _embed(given, given.test_images)
        if given.params.encoder_pca:
            arrays = (given.array("embeddings", f"pca_{name}") for name in Reduction._fields)
            found = Reduction(*map(np.asarray, arrays))(found)
    draft.array("embeddings", found)
    draft.fact(device=given.device_name)


def _neighbors_key(given: Given) -> dict[str, Any]:
    method = given.params.neighbor_search
    return given.key("neighbors") | ({} if method == "exact" else {"search": method})


@stage(
    title="neighbours",
    inputs=["embeddings"],
    reads=["neighbors", "neighbor_search"],
    key=_neighbors_key,
)
def neighbors(given: Given, draft: Draft) -> None:
    """Arrays ``indices`` int32 [N, K] and ``similarities`` float32 [N, K], nearest first."""
    from elfs_lib.embedding.neighbors import nearest_neighbors

    p = given.params
    found = nearest_neighbors(
        np.asarray(given.array("embeddings", "embeddings")),
        p.neighbors,
        method=p.neighbor_search,
        device=p.device,
        folder=draft.folder,
    )
    draft.array("indices", found.indices)
    draft.array("similarities", found.similarities)
