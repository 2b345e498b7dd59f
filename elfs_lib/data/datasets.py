"""Datasets by name: uint8 images, in memory or mapped from disk, with the labels kept apart.

``load_images`` reads images and never labels; ``load_labels`` reads labels and is called by
:class:`elfs_lib.label_lock.LabelOracle` alone. A new dataset is one entry in :data:`DATASETS`.
"""

from __future__ import annotations

import hashlib
import json
import os
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from elfs_lib.data.base import SIZE_RANGE, SPLITS, Images, MissingDataset, Reader, Request
from elfs_lib.data.folders import Folder, ImageNet
from elfs_lib.data.parquet import Parquet
from elfs_lib.data.readers import Digits, FashionMnist, FirstOf, Torchvision
from elfs_lib.data.webdataset import WebDataset
from elfs_lib.errors import ElfsError, choose, is_whole
from elfs_lib.label_lock import LabelOracle


@dataclass(frozen=True)
class DatasetSpec:
    """A dataset's entry in the registry.

    Attributes:
        description: One line for people.
        get: Where to get it: the second half of the error when it is missing.
        num_classes: None for people's own data.
        image_size: Side of the stored images unless another is asked for; None where it
            depends on the data.
        needs_path: True if ``path`` says where the data is.
        download: Fetches the dataset into a folder, where that is possible.
    """

    name: str
    reader: Reader
    description: str
    get: str
    num_classes: int | None = None
    image_size: int | None = None
    needs_path: bool = False
    download: Callable[[Path], None] | None = None


# --- what other modules call -----------------------------------------------------------------


def load_images(
    name: str,
    data_dir: str | Path | None = None,
    *,
    image_size: int | None = None,
    path: str | Path | None = None,
    scratch: Path | None = None,
) -> Images:
    """Read a dataset's images; labels are not read.

    A dataset that torchvision can download is downloaded if it is missing.

    Args:
        name: A key of :data:`DATASETS`.
        data_dir: Where datasets live; default ``$ELFS_DATA_DIR``, else ``~/.cache/elfs/data``.
        image_size: Side in pixels of the stored squares, 4 to 1024. Default: as published;
            64 for ``imagenet``; for people's own data see
            :func:`elfs_lib.data.decoding.default_size`. N images take 3 x N x image_size^2 bytes.
        path: For ``parquet``, ``webdataset`` and ``image_folder``: the file or folder.
        scratch: Folder that image files are decoded into, and made when they are: what is returned
            are memory maps of files there. A decoding that was killed goes on where it was if it is
            given the same folder, unless the source, its size or Pillow changed. None: decode in
            memory.

    Raises:
        ElfsError: if a parameter is wrong, or the dataset is not there (says where to get it),
            or holds no usable image, or would not fit in memory.
    """
    spec, request = _resolve(name, data_dir, image_size, path)
    identity = _digest([spec.name, _ensure(spec, request)])
    return spec.reader.images(replace(request, scratch=scratch, identity=identity))


def load_labels(
    name: str,
    split: str,
    data_dir: str | Path | None = None,
    *,
    image_size: int | None = None,
    path: str | Path | None = None,
    left_out: dict[str, list[int]] | None = None,
) -> np.ndarray:
    """Read a split's labels, int64 [N], in the order of the images. Only LabelOracle calls this.

    Args:
        split: ``train`` or ``test``; one of :func:`labelled_splits`.
        left_out: :attr:`Images.left_out`. Without it, a source whose images may be damaged is
            decoded once more to find out which of its labels have no image.

    Raises:
        ElfsError: as :func:`load_images`; or if labels are missing or not understood.
    """
    spec, request = _resolve(name, data_dir, image_size, path)
    _identity(spec, request)
    labels = np.asarray(spec.reader.labels(request, choose("split", split, SPLITS)), np.int64)
    if left_out is None:
        left_out = spec.reader.left_out(request)
    return np.delete(labels, np.asarray(left_out.get(split, []), np.int64))


def labelled_splits(
    name: str,
    data_dir: str | Path | None = None,
    *,
    image_size: int | None = None,
    path: str | Path | None = None,
) -> tuple[str, ...]:
    """The splits, out of ``train`` and ``test``, that have labels. No label is read."""
    spec, request = _resolve(name, data_dir, image_size, path)
    _identity(spec, request)
    return spec.reader.labelled(request)


def label_oracle(
    name: str,
    data_dir: str | Path | None = None,
    *,
    image_size: int | None = None,
    path: str | Path | None = None,
    left_out: dict[str, list[int]] | None = None,
) -> LabelOracle:
    """The oracle of a dataset; no label is read until it is opened.

    Args:
        left_out: :attr:`Images.left_out`, which saves a second decoding.

    The other arguments are those of :func:`load_images`.
    """
    source = {"data_dir": data_dir, "image_size": image_size, "path": path}
    return LabelOracle(
        lambda split: load_labels(name, split, **source, left_out=left_out),
        labelled_splits(name, **source),
    )


def check_dataset(
    name: str,
    data_dir: str | Path | None = None,
    *,
    image_size: int | None = None,
    path: str | Path | None = None,
) -> DatasetSpec:
    """Check, before any work starts, that a dataset is there; download it if that is possible.

    Looks at names and headers only. Arguments and errors as in :func:`load_images`.
    """
    spec, request = _resolve(name, data_dir, image_size, path)
    _ensure(spec, request)
    return spec


def source_fingerprint(
    name: str,
    data_dir: str | Path | None = None,
    *,
    image_size: int | None = None,
    path: str | Path | None = None,
) -> str:
    """A cheap identity of the images that :func:`load_images` would return, as 16 hex digits.

    Made from ``image_size`` and the names, sizes and modification times of the files (of the
    class folders for ``imagenet``; for ``digits``, the version of scikit-learn and the split).
    No file's contents are read.
    """
    spec, request = _resolve(name, data_dir, image_size, path)
    return _digest([spec.name, request.image_size, _identity(spec, request)])


def unread_files(folder: str | Path) -> dict[str, list]:
    """kind -> names of the files in a folder of images that are not read as images (hidden, of
    another kind, ...); looks at names only."""
    spec, request = _resolve("image_folder", None, None, folder)
    return spec.reader.unread(request)


def default_data_dir() -> Path:
    """``$ELFS_DATA_DIR``, else ``~/.cache/elfs/data``."""
    return Path(os.environ.get("ELFS_DATA_DIR") or "~/.cache/elfs/data").expanduser()


# --- behind them -----------------------------------------------------------------------------


def _resolve(
    name: str, data_dir: str | Path | None, image_size: int | None, path: str | Path | None
) -> tuple[DatasetSpec, Request]:
    spec = DATASETS[choose("dataset", name, DATASETS)]
    low, high = SIZE_RANGE
    if image_size is not None and not is_whole(image_size, low, high):
        raise ElfsError(
            f"image_size is {image_size!r}: give a whole number from {low} to {high}, or leave it "
            "out."
        )
    if spec.needs_path and not path:
        raise ElfsError(f"Dataset {name!r} needs 'data_path': the {spec.get} to read.")
    if path and not spec.needs_path:
        own = ", ".join(name for name, other in DATASETS.items() if other.needs_path)
        raise ElfsError(
            f"'data_path' is for datasets {own}, not for {name!r}: leave it out, or name the data "
            "root with ELFS_DATA_DIR."
        )
    return spec, Request(
        Path(data_dir).expanduser() if data_dir else default_data_dir(),
        Path(path).expanduser() if path else None,
        None if image_size is None else int(image_size),
    )


def _identity(spec: DatasetSpec, request: Request) -> list:
    try:
        return spec.reader.identity(request)
    except MissingDataset as error:
        if spec.needs_path:
            raise
        raise MissingDataset(
            f"dataset {spec.name!r} is not in data_dir {request.data_dir}: {spec.get}."
        ) from error


def _ensure(spec: DatasetSpec, request: Request) -> list:
    """The identity of a dataset, downloaded if it was missing."""
    try:
        return _identity(spec, request)
    except MissingDataset as missing:
        if spec.download is None:
            raise
        try:
            request.data_dir.mkdir(parents=True, exist_ok=True)
            with FileLock(request.data_dir / f".{spec.name}.lock"):
                spec.download(request.data_dir)  # does nothing if another process just did it
        except (OSError, RuntimeError) as error:
            raise MissingDataset(f"{str(missing)[:-1]} (downloading failed: {error}).") from error
        return _identity(spec, request)


def _digest(identity: list) -> str:
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]


# --- the registry ----------------------------------------------------------------------------


def _torchvision(kind: str) -> Callable[..., Any]:
    """Opens a torchvision class, whichever way it takes its split."""

    def build(data_dir: Path, split: str, download: bool = False) -> Any:
        from torchvision import datasets as torchvision_datasets

        how = {"split": split} if kind in ("STL10", "SVHN") else {"train": split == "train"}
        return getattr(torchvision_datasets, kind)(data_dir, download=download, **how)

    return build


def _download(build: Callable[..., Any], url: str) -> Callable[[Path], None]:
    def fetch(data_dir: Path) -> None:
        # torchvision waits without limit: find out first whether anyone answers.
        try:
            urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=10).close()
        except urllib.error.HTTPError:
            pass  # an answer all the same: some servers refuse HEAD
        for split in SPLITS:
            build(data_dir, split, download=True)

    return fetch


_CIFAR_URL = "https://www.cs.toronto.edu/~kriz/cifar.html"
_STL10_URL = "http://ai.stanford.edu/~acoates/stl10/"
_SVHN_URL = "http://ufldl.stanford.edu/housenumbers/"
_FASHION_URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"

_cifar10 = Torchvision(
    _torchvision("CIFAR10"),
    tuple(
        f"cifar-10-batches-py/{name}"
        for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta")
    ),
    num_classes=10,
    labels_at="targets",
    channels_last=True,
)
_cifar100 = Torchvision(
    _torchvision("CIFAR100"),
    tuple(f"cifar-100-python/{name}" for name in ("train", "test", "meta")),
    num_classes=100,
    labels_at="targets",
    channels_last=True,
)
_stl10 = Torchvision(
    _torchvision("STL10"),
    tuple(f"stl10_binary/{name}.bin" for name in ("train_X", "train_y", "test_X", "test_y")),
    num_classes=10,
    labels_at="labels",
)
_svhn = Torchvision(
    _torchvision("SVHN"),
    ("train_32x32.mat", "test_32x32.mat"),
    num_classes=10,
    labels_at="labels",
)

DATASETS: dict[str, DatasetSpec] = {
    spec.name: spec
    for spec in (
        DatasetSpec(
            "digits",
            Digits(),
            "1,437 + 360 handwritten digits, 8x8 grey; ships inside scikit-learn",
            "install scikit-learn",
            num_classes=10,
            image_size=8,
        ),
        DatasetSpec(
            "fashion_mnist",
            FashionMnist(),
            "60,000 + 10,000 articles of clothing, 28x28 grey",
            "install the Debian package dataset-fashion-mnist, or put torchvision's "
            f"FashionMNIST/raw files there ({_FASHION_URL})",
            num_classes=10,
            image_size=28,
            download=_download(_torchvision("FashionMNIST"), _FASHION_URL),
        ),
        DatasetSpec(
            "cifar10",
            FirstOf((_cifar10, Parquet("cifar10", num_classes=10, image_size=32))),
            "50,000 + 10,000 natural images of 10 classes, 32x32 RGB",
            "put torchvision's cifar-10-batches-py there, or Hugging Face Parquet files as "
            f"cifar10/train-*.parquet and cifar10/test-*.parquet ({_CIFAR_URL})",
            num_classes=10,
            image_size=32,
            download=_download(_torchvision("CIFAR10"), _CIFAR_URL),
        ),
        DatasetSpec(
            "cifar100",
            FirstOf((_cifar100, Parquet("cifar100", num_classes=100, image_size=32))),
            "50,000 + 10,000 natural images of 100 classes, 32x32 RGB",
            "put torchvision's cifar-100-python there, or Hugging Face Parquet files as "
            f"cifar100/train-*.parquet and cifar100/test-*.parquet ({_CIFAR_URL})",
            num_classes=100,
            image_size=32,
            download=_download(_torchvision("CIFAR100"), _CIFAR_URL),
        ),
        DatasetSpec(
            "stl10",
            _stl10,
            "5,000 + 8,000 natural images of 10 classes, 96x96 RGB",
            f"put torchvision's stl10_binary there ({_STL10_URL})",
            num_classes=10,
            image_size=96,
            download=_download(_torchvision("STL10"), _STL10_URL),
        ),
        DatasetSpec(
            "svhn",
            _svhn,
            "73,257 + 26,032 house-number digits, 32x32 RGB",
            f"put train_32x32.mat and test_32x32.mat there ({_SVHN_URL})",
            num_classes=10,
            image_size=32,
            download=_download(_torchvision("SVHN"), _SVHN_URL),
        ),
        DatasetSpec(
            "imagenet",
            ImageNet(),
            "1,281,167 + 50,000 photographs of 1,000 classes; the test split is the validation set",
            "get the ILSVRC2012 archives from https://image-net.org and unpack them with "
            "torchvision.datasets.ImageNet into imagenet/train and imagenet/val",
            num_classes=1000,
            image_size=64,
        ),
        DatasetSpec(
            "parquet",
            Parquet(),
            "anyone's images in Parquet files of the Hugging Face layout, labelled or not",
            ".parquet file or folder of .parquet files",
            needs_path=True,
        ),
        DatasetSpec(
            "webdataset",
            WebDataset(),
            "anyone's images in tar files of the WebDataset layout, labelled or not",
            ".tar file or folder of .tar files",
            needs_path=True,
        ),
        DatasetSpec(
            "image_folder",
            Folder(),
            "anyone's directory of JPEG, PNG, WebP... files, labelled (class folders) or not",
            "directory of images",
            needs_path=True,
        ),
    )
}
