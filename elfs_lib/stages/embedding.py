"""The stages from the source of the images to their neighbours."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from elfs_lib.artifacts import Draft, canonical_json
from elfs_lib.data import datasets
from elfs_lib.data.base import Source
from elfs_lib.data.decoding import decode_images, read_ahead, read_file, readable_formats
from elfs_lib.embedding import embedding_file, encoders
from elfs_lib.errors import ElfsError
from elfs_lib.params import Params
from elfs_lib.progress import track
from elfs_lib.stages.graph import Call, Given, stage

if TYPE_CHECKING:
    from elfs_lib.embedding.embed import Keep, Reduction, Views
    from elfs_lib.embedding.emp_ssl import EmpSslConfig
    from elfs_lib.embedding.self_supervised import SelfSupervisedConfig
    from elfs_lib.stages.run import Run

_VIEW = ("encoder_view_area", "flip")
_VIEWS = ("encoder_views", *_VIEW)
_EMBEDDING = ("encoder", "encoder_checkpoint", "encoder_size", "precision", *_VIEWS)
_FILE = ("embeddings_path",)
_PLACE = ("dataset", "data_path")  # where the images are, which their own key holds

ENCODER_SIDE = 224  # what nearly every pretrained encoder was trained at
FILES_AT_ONCE = 512  # decoded at a time for the encoder: 77 MB at 224 pixels
_SAMPLE = 256  # files whose headers say how large the images are


def source(params: Params) -> Source:
    """The dataset of a run and where it is."""
    return Source(params.dataset, image_size=params.image_size, path=params.data_path)


def _images_key(given: Given) -> dict[str, Any]:
    return given.key("dataset") | given.key_entry(
        "source", lambda given: datasets.source_fingerprint(source(given.params))
    )


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


def checkpoint_entry(given: Given) -> dict[str, Any]:
    """The entry of a key that stands for ``encoder_checkpoint``: the file's content."""
    return given.key_entry(
        "checkpoint", lambda given: encoders.checkpoint_fingerprint(given.params.encoder_checkpoint)
    )


def encoder_runs(run: Run) -> list[Run]:
    """A run of each encoder that "+" joins; see :attr:`elfs_lib.stages.run.Run.encoder_runs`."""
    p = run.params
    parts = encoders.split_encoders(p.encoder, p.encoder_checkpoint)
    if len(parts) == 1 or run.given_name("embeddings"):
        return [run]
    changes = (
        {"encoder": name, "encoder_checkpoint": None if path is None else str(path)}
        for name, path in parts.items()
    )
    return [dataclasses.replace(run, params=p.model_copy(update=c)) for c in changes]


def _encoder_key(given: Given) -> dict[str, Any]:
    return {
        **given.key("encoder", "encoder_size", "precision", "seed"),
        **checkpoint_entry(given),
        **given.key_entry("training", lambda g: dataclasses.asdict(encoder_training(g.params))),
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

    count = _view_count(params)
    return count and Views(count, params.encoder_view_area, params.flip)


def _view_count(params: Params) -> int | None:
    """Of how many crops each image's embedding is the mean; None: of the whole image."""
    return None if params.encoder == "pixels" else params.encoder_views


def encoder_file(given: Given) -> Path | str | None:
    """The file of the encoder: of the one that is trained here, else the one that is named."""
    trained = given.inputs.get("encoder")
    return trained.folder / "encoder.safetensors" if trained else given.params.encoder_checkpoint


def _embedding_options(given: Given) -> dict[str, Any]:
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


def _embed(given: Given, split: str, keep: Keep) -> np.ndarray:
    """The embeddings of a split by one encoder: of the files that the images came from, at the
    encoder's own size, where the squares that networks are trained on here are shrunk copies, which
    have lost most of what a pretrained encoder can see; else of these squares."""
    from elfs_lib.embedding.embed import embed, frozen_embedder

    name, options = given.params.encoder, _embedding_options(given)
    if (side := _side(given)) is None:
        images = given.train_images if split == "train" else given.test_images
        return embed(images, name, keep=keep, **options)
    files = _files(given, split)
    embedder = frozen_embedder(name, (side, side), count=len(files), **options)
    return keep(len(files), map(embedder, read_ahead(_squares(files, side))))


def _side(given: Given) -> int | None:
    """See :func:`side_of_files`."""
    if not _reads_files(given.params):
        return None
    paths = given.inputs["images"].json("about")["paths"]
    return side_of_files(given.params, paths, given.array("images", "train").shape[-1])


def side_of_files(params: Params, paths: list[str], stored: int) -> int | None:
    """Side in pixels of the squares that one encoder is given from the image files themselves;
    None: it is given the stored ones.

    Args:
        paths: Of the training images.
        stored: Side of the images as they are stored.
    """
    if not _reads_files(params):
        return None
    root = datasets.folder_of_files(_place(params))
    step = max(1, len(paths) // _SAMPLE)
    sides = list(_short_sides(root / path for path in paths[::step]))
    own = int(np.median(sides)) if sides else 0
    side = min(params.encoder_size or ENCODER_SIDE, own)
    return side if own > stored and side != stored else None


def _reads_files(params: Params) -> bool:
    encoder = params.encoder
    by_squares = encoder in ("pixels", embedding_file.PRECOMPUTED) or encoders.trains_here(encoder)
    if by_squares or "+" in encoder:  # of several each has its own
        return False
    return datasets.folder_of_files(_place(params)) is not None


def _place(params: Params) -> Source:
    return Source(params.dataset, path=params.data_path)


def _short_sides(files: Iterable[Path]) -> Iterator[int]:
    for file in files:
        try:
            with Image.open(file, formats=readable_formats()) as image:
                yield min(image.size)
        except Exception:  # a parser may raise anything; the other files suffice
            continue


def _files(given: Given, split: str) -> list[Path]:
    """The files of the images of a split, in their order."""
    about, place = given.inputs["images"].json("about"), _place(given.params)
    if split == "train":
        root = datasets.folder_of_files(place)
        return [root / path for path in about["paths"]]
    return datasets.test_files(place, about["left_out"])


def _squares(files: list[Path], side: int) -> Iterator[np.ndarray]:
    """The files as squares of a side, uint8 [at most FILES_AT_ONCE, 3, side, side] at a time."""
    for start in track(range(0, len(files), FILES_AT_ONCE), "Reading files"):
        part = files[start : start + FILES_AT_ONCE]
        decoded = decode_images(
            lambda start, part=part: zip(map(str, part), part, strict=True),
            len(part),
            image_size=side,
            read=read_file,
            desc="reading",
        )
        if len(decoded.names) < len(part):
            gone = min({*map(str, part)} - {*decoded.names})
            raise ElfsError(f"{gone} changed while it was read: start again.")
        yield decoded.images


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
    return [given.array(name, "embeddings") for name in parts]


def _read_file(given: Given) -> np.ndarray:
    """The embeddings of a file, in the order of the images; a folder's images have none."""
    paths = given.inputs["images"].json("about")["paths"]
    ordered = given.params.dataset != "image_folder"
    return embedding_file.load_embeddings(
        given.params.embeddings_path, given.n, paths, ordered=ordered
    )


def _embeddings_key(given: Given) -> dict[str, Any]:
    if given.params.encoder == embedding_file.PRECOMPUTED:
        return given.key("encoder", "encoder_pca") | given.key_entry(
            "content", lambda given: embedding_file.file_fingerprint(given.params.embeddings_path)
        )
    keyed = given.key("encoder", "encoder_size", "precision", "encoder_pca")
    if not trains_encoder(given.params):  # else it is in the encoder's own key
        keyed |= checkpoint_entry(given)
    views = given.key_entry("encoder_views", lambda g: _view_count(g.params), neutral=None)
    return keyed | views | (given.key(*_VIEW) if views else {}) | _view_key(given)


def _view_key(given: Given) -> dict[str, Any]:
    return given.key_entry("view", _side, neutral=None)


def _write_embeddings(
    given: Given,
    draft: Draft,
    work: Callable[[Keep], np.ndarray],
    reduction: Callable[[np.ndarray], Reduction],
) -> None:
    """Write array ``embeddings`` as its rows are made.

    Args:
        work: Embeds with one encoder.
        reduction: The principal components that are to take the place of features.
    """
    from elfs_lib.embedding.embed import concatenate

    keep = partial(draft.rows, "embeddings")
    if parts := _parts(given):
        keep(len(parts[0]), concatenate(parts))
    elif given.params.encoder_pca:
        features = work(partial(draft.rows, "features"))
        keep(len(features), reduction(features).parts(features))
        (draft.folder / "features.npy").unlink(missing_ok=True)
    else:
        draft.array("embeddings", work(keep))


@stage(
    title="embeddings",
    inputs=lambda run: {"images": run.call("images"), **_encoder_inputs(run, "embeddings")},
    reads=[*_EMBEDDING, *_FILE],
    later={"encoder_pca": None},
    key=_embeddings_key,
    unkeyed=_PLACE,  # which are in the key of the images
)
def embeddings(given: Given, draft: Draft) -> None:
    """Array ``embeddings`` float32 [N, D] of the training images, and with ``encoder_pca`` the
    arrays ``pca_mean`` and ``pca_axes`` of :class:`elfs_lib.embedding.embed.Reduction`."""

    def work(keep: Keep) -> np.ndarray:
        from_file = given.params.encoder == embedding_file.PRECOMPUTED
        return _read_file(given) if from_file else _embed(given, "train", keep)

    def reduction(features: np.ndarray) -> Reduction:
        from elfs_lib.embedding.embed import fit_reduction

        found = fit_reduction(features, given.params.encoder_pca)
        for name, array in found._asdict().items():
            draft.array(f"pca_{name}", array)
        return found

    _write_embeddings(given, draft, work, reduction)
    draft.fact(device=given.device_name, encoder=given.encoder_facts)


@stage(
    title="embeddings of the test images",
    inputs=["images", "embeddings"],
    unkeyed_inputs=lambda run: _encoder_inputs(run, "test_embeddings"),
    key=_view_key,
    unkeyed=[*_EMBEDDING, *_PLACE, "encoder_pca"],  # by the embeddings of the training images
)
def test_embeddings(given: Given, draft: Draft) -> None:
    """Array ``embeddings`` float32 [M, D] of the test images, by the encoder and the principal
    components of the training images."""

    def work(keep: Keep) -> np.ndarray:
        if given.params.encoder == embedding_file.PRECOMPUTED:
            raise ElfsError(
                f"Encoder {embedding_file.PRECOMPUTED!r} has embeddings of the training images "
                "alone: choose one that embeds the test images too."
            )
        return _embed(given, "test", keep)

    def reduction(features: np.ndarray) -> Reduction:
        from elfs_lib.embedding.embed import Reduction

        arrays = (given.array("embeddings", f"pca_{name}") for name in Reduction._fields)
        return Reduction(*map(np.asarray, arrays))

    _write_embeddings(given, draft, work, reduction)
    draft.fact(device=given.device_name)


def _neighbors_key(given: Given) -> dict[str, Any]:
    return given.key("neighbors") | given.key_entry(
        "search", lambda given: given.params.neighbor_search, neutral="exact"
    )


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
        given.array("embeddings", "embeddings"),
        p.neighbors,
        method=p.neighbor_search,
        device=p.device,
        folder=draft.folder,
    )
    draft.array("indices", found.indices)
    draft.array("similarities", found.similarities)
