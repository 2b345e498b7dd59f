"""Datasets by name: uint8 images, resident in memory, with the labels kept apart.

``load_images`` reads images and never labels; ``load_labels`` reads labels and is called by
:class:`elfs_lib.labels.LabelOracle` alone. A new dataset is one line in :data:`DATASETS`.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from elfs_lib import decoding
from elfs_lib.errors import ElfsError, choose

FASHION_PACKAGE_DIR = Path("/usr/share/datasets/fashion-mnist")  # Debian: dataset-fashion-mnist
FASHION_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip


@dataclass(frozen=True)
class Images:
    """The images of a dataset.

    Attributes:
        train: uint8 [N, C, H, W], C-contiguous; C is 1 (grey) or 3 (RGB), H = W.
        test: uint8 [M, C, H, W], or None if the dataset has no test split.
        class_names: Names of the classes 0..C-1, where the source states them.
        num_classes: Their number, where it is known.
        paths: For files of the user: where each training image came from, relative to the
            dataset's path.
        report: kind -> names of files that were left out or changed (the kinds are the keys of
            :data:`elfs_lib.decoding.LEFT_OUT` and ``KEPT``); empty for clean sets.
        source: One sentence that says where these pixels came from.
    """

    train: np.ndarray
    test: np.ndarray | None
    class_names: tuple[str, ...] | None = None
    num_classes: int | None = None
    paths: tuple[str, ...] | None = None
    report: dict[str, list] = field(default_factory=dict)
    source: str = ""


@dataclass(frozen=True)
class Request:
    """Where to look, and how large to store; already validated."""

    data_dir: Path
    path: Path | None = None
    image_size: int | None = None


@dataclass(frozen=True)
class DatasetSpec:
    """How one dataset is read.

    Attributes:
        images: Reads the images, never a label.
        labels: Reads the labels of one split, int [N], never an image.
        files: The files that hold the dataset, label-free; raises ElfsError if it is missing.
        labelled: The splits that have labels, told without reading one.
        description: One line for people.
        num_classes: None for people's own data.
        image_size: Side of the images as published; None for people's own data.
    """

    name: str
    images: Callable[[Request], Images]
    labels: Callable[[Request, str], np.ndarray]
    files: Callable[[Request], list[Path]]
    labelled: Callable[[Request], tuple[str, ...]]
    description: str
    num_classes: int | None = None
    image_size: int | None = None


def load_images(
    name: str,
    *,
    data_dir: str | Path | None = None,
    image_size: int | None = None,
    path: str | Path | None = None,
) -> Images:
    """Read a dataset's images; labels are not read.

    Args:
        name: A key of :data:`DATASETS`.
        data_dir: Where datasets live; default ``$ELFS_DATA_DIR``, else ``~/.cache/elfs/data``.
        image_size: Side in pixels at which images are stored; default: as published.
        path: For people's own data: a file or folder.

    Raises:
        ElfsError: if the name is unknown or the dataset is not there (says where to get it).
    """
    spec, request = _resolve(name, data_dir, image_size, path)
    return spec.images(request)


def load_labels(
    name: str,
    split: str,
    *,
    data_dir: str | Path | None = None,
    image_size: int | None = None,
    path: str | Path | None = None,
) -> np.ndarray:
    """Read a split's labels, int64 [N], in the order of the images. Only LabelOracle calls this.

    Raises:
        ElfsError: as :func:`load_images`.
    """
    spec, request = _resolve(name, data_dir, image_size, path)
    return np.asarray(spec.labels(request, split), dtype=np.int64)


def labelled_splits(
    name: str,
    *,
    data_dir: str | Path | None = None,
    image_size: int | None = None,
    path: str | Path | None = None,
) -> tuple[str, ...]:
    """The splits, out of ``train`` and ``test``, that have labels. No label is read."""
    spec, request = _resolve(name, data_dir, image_size, path)
    return spec.labelled(request)


def source_fingerprint(
    name: str,
    *,
    data_dir: str | Path | None = None,
    image_size: int | None = None,
    path: str | Path | None = None,
) -> str:
    """A cheap identity of the images that :func:`load_images` would return, as 16 hex digits.

    Made from the names, sizes and modification times of the files (for ``digits``, the version
    of scikit-learn) and ``image_size``; the files' contents are not read.
    """
    spec, request = _resolve(name, data_dir, image_size, path)
    identity = [name, request.image_size]
    root = request.path if request.path and request.path.is_dir() else None
    for file in spec.files(request):
        status = file.stat()
        shown = file.relative_to(root).as_posix() if root else file.name
        identity.append([shown, status.st_size, status.st_mtime_ns])
    if name == "digits":
        import sklearn

        identity += [sklearn.__version__, *(part.tolist() for part in _digits_split())]
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]


def default_data_dir() -> Path:
    """``$ELFS_DATA_DIR``, else ``~/.cache/elfs/data``."""
    return Path(os.environ.get("ELFS_DATA_DIR") or "~/.cache/elfs/data").expanduser()


def _resolve(
    name: str, data_dir: str | Path | None, image_size: int | None, path: str | Path | None
) -> tuple[DatasetSpec, Request]:
    spec = DATASETS[choose("dataset", name, DATASETS)]
    folder = Path(data_dir).expanduser() if data_dir else default_data_dir()
    return spec, Request(folder, Path(path).expanduser() if path else None, image_size)


def _both_splits(_: Request) -> tuple[str, ...]:
    return ("train", "test")


# --- digits: 1,797 images of 8x8 pixels, inside scikit-learn ---------------------------------


def _digits_split() -> tuple[np.ndarray, np.ndarray]:
    """The first 1,437 (80%) and the last 360 places of the permutation of seed 0.

    scikit-learn defines no split. Both parts keep the permutation's order.
    """
    order = np.random.default_rng(0).permutation(1797)
    return order[:1437], order[1437:]


def _digits_images(_: Request) -> Images:
    from sklearn.datasets import load_digits

    grey = load_digits().images[:, None] * (255 / 16)  # stored as 0..16
    train, test = (np.rint(grey[part]).astype(np.uint8) for part in _digits_split())
    return Images(
        train,
        test,
        class_names=tuple("0123456789"),
        num_classes=10,
        source="digits from scikit-learn; train and test are a fixed permutation's first 80% and "
        "last 20%.",
    )


def _digits_labels(_: Request, split: str) -> np.ndarray:
    from sklearn.datasets import load_digits

    return load_digits().target[_digits_split()[split == "test"]]


# --- fashion_mnist: IDX files ----------------------------------------------------------------


def _fashion_file(request: Request, split: str, kind: str) -> Path:
    name = f"{'t10k' if split == 'test' else 'train'}-{kind}-ubyte"
    raw = request.data_dir / "FashionMNIST" / "raw"
    for file in (FASHION_PACKAGE_DIR / f"{name}.gz", raw / name, raw / f"{name}.gz"):
        if file.is_file():
            return file
    raise ElfsError(
        f"fashion_mnist is not in {raw}: install the Debian package dataset-fashion-mnist, or "
        "put the torchvision layout there."
    )


def _fashion_files(request: Request) -> list[Path]:
    return [_fashion_file(request, split, "images-idx3") for split in ("train", "test")]


def _fashion_images(request: Request) -> Images:
    train, test = (_read_idx(file)[:, None] for file in _fashion_files(request))
    return Images(train, test, FASHION_CLASSES, 10, source="Fashion-MNIST, the published files.")


def _fashion_labels(request: Request, split: str) -> np.ndarray:
    return _read_idx(_fashion_file(request, split, "labels-idx1"))


def _read_idx(file: Path) -> np.ndarray:
    """uint8 array of an IDX file: two zero bytes, type 8, rank, sizes (big-endian), data."""
    data = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    rank = data[3] if data[:3] == b"\x00\x00\x08" else 0
    shape = np.frombuffer(data, ">u4", rank, 4).astype(int)
    if not rank or len(data) != 4 + 4 * rank + shape.prod():
        raise ElfsError(f"{file} is not a whole IDX file: delete it and fetch it again.")
    return np.frombuffer(data, np.uint8, offset=4 + 4 * rank).reshape(shape).copy()


# --- cifar10: Parquet in the Hugging Face layout ---------------------------------------------


def _cifar10_files(request: Request) -> list[Path]:
    folder = request.data_dir / "cifar10"
    files = [sorted(folder.glob(f"{split}-*.parquet")) for split in ("train", "test")]
    if not all(files):
        raise ElfsError(f"cifar10 is not in {folder}: put train-*.parquet and test-*.parquet there.")
    return sum(files, [])


def _cifar10_split(request: Request, split: str) -> list[Path]:
    return [file for file in _cifar10_files(request) if file.name.startswith(split)]


def _cifar10_images(request: Request) -> Images:
    parts = [
        _decode_parquet(_cifar10_split(request, split), 32, f"cifar10 {split}")
        for split in ("train", "test")
    ]
    names = _class_names(_cifar10_split(request, "train")[0], "label")
    return Images(*(part.images for part in parts), names, 10)


def _cifar10_labels(request: Request, split: str) -> np.ndarray:
    files = _cifar10_split(request, split)
    return np.concatenate([pq.read_table(f, columns=["label"])["label"].to_numpy() for f in files])


def _decode_parquet(files: list[Path], size: int, desc: str) -> decoding.Decoded:
    count = sum(pq.read_metadata(file).num_rows for file in files)
    return decoding.decode_images(
        _parquet_rows(files, "img"), count, image_size=size, read=bytes, desc=desc
    )


def _parquet_rows(files: list[Path], column: str) -> Iterator[tuple[str, bytes]]:
    for file in files:
        row = 0
        for batch in pq.ParquetFile(file).iter_batches(1024, columns=[f"{column}.bytes"]):
            values = batch.column(0)
            values = values.field("bytes") if pa.types.is_struct(values.type) else values
            for value in values.to_pylist():
                yield f"{file.name}#{row}", value
                row += 1


def _class_names(file: Path, column: str) -> tuple[str, ...] | None:
    """Class names from the Hugging Face metadata in a Parquet file's schema."""
    metadata = pq.read_schema(file).metadata or {}
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        return tuple(features[column]["names"])
    except (KeyError, TypeError, ValueError):
        return None


DATASETS: dict[str, DatasetSpec] = {
    spec.name: spec
    for spec in (
        DatasetSpec(
            "digits",
            _digits_images,
            _digits_labels,
            lambda _: [],
            _both_splits,
            "1,437 + 360 handwritten digits, 8x8 grey; ships inside scikit-learn",
            10,
            8,
        ),
        DatasetSpec(
            "fashion_mnist",
            _fashion_images,
            _fashion_labels,
            _fashion_files,
            _both_splits,
            "60,000 + 10,000 articles of clothing, 28x28 grey",
            10,
            28,
        ),
        DatasetSpec(
            "cifar10",
            _cifar10_images,
            _cifar10_labels,
            _cifar10_files,
            _both_splits,
            "50,000 + 10,000 natural images in 10 classes, 32x32 RGB",
            10,
            32,
        ),
    )
}
