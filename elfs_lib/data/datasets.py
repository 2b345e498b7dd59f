"""Datasets by name: uint8 images, in memory or mapped from disk, with the labels kept apart.

``load_images`` reads images and never labels; ``load_labels`` reads labels and is called by
:class:`elfs_lib.label_lock.LabelOracle` alone. A new dataset is one entry in :data:`DATASETS`.
"""

from __future__ import annotations

import hashlib
import json
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from elfs_lib.data.base import SPLITS, Images, MissingDataset, Reader, Scratch, Source
from elfs_lib.data.folders import Folder, ImageNet
from elfs_lib.data.parquet import Parquet
from elfs_lib.data.readers import Digits, FashionMnist, FirstOf, Torchvision
from elfs_lib.data.webdataset import WebDataset
from elfs_lib.errors import ElfsError, choose
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
    _: KW_ONLY
    description: str
    get: str
    num_classes: int | None = None
    image_size: int | None = None
    needs_path: bool = False
    download: Callable[[Path], None] | None = None


# --- public functions ------------------------------------------------------------------------


def load_images(source: Source | str, *, scratch: Path | None = None) -> Images:
    """Read a dataset's images; labels are not read.

    A dataset that torchvision can download is downloaded if it is missing.

    Args:
        source: The dataset and where it is; a name alone stands for ``Source(name)``.
        scratch: Folder that image files are decoded into, and made when they are: what is returned
            are memory maps of files there. An interrupted decoding resumes if it is given the same
            folder, unless the source, its size or Pillow changed. None: decode in memory.

    Raises:
        ElfsError: if the dataset is unknown or not there (says where to get it), holds no usable
            image, or would not fit in memory.
    """
    spec, source = _find(source)
    identity = _digest([spec.name, _ensure(spec, source)])
    return spec.reader.images(source, None if scratch is None else Scratch(scratch, identity))


def load_labels(
    source: Source | str, split: str, *, left_out: dict[str, list[int]] | None = None
) -> np.ndarray:
    """Read a split's labels, int64 [N], in the order of the images. Only LabelOracle calls this.

    Args:
        source: As in :func:`load_images`.
        split: ``train`` or ``test``; one of :func:`labelled_splits`.
        left_out: :attr:`Images.left_out`. Without it, a source whose images may be damaged is
            decoded once more to find out which of its labels have no image.

    Raises:
        ElfsError: as :func:`load_images`; or if labels are missing or not understood.
    """
    spec, source = _find(source)
    _identity(spec, source)
    labels = np.asarray(spec.reader.labels(source, choose("split", split, SPLITS)), np.int64)
    if left_out is None:
        left_out = spec.reader.left_out(source)
    return np.delete(labels, np.asarray(left_out.get(split, []), np.int64))


def labelled_splits(source: Source | str) -> tuple[str, ...]:
    """The splits, out of ``train`` and ``test``, that have labels. No label is read."""
    spec, source = _find(source)
    _identity(spec, source)
    return spec.reader.labelled(source)


def label_oracle(
    source: Source | str, *, left_out: dict[str, list[int]] | None = None
) -> LabelOracle:
    """The oracle of a dataset; no label is read until it is opened.

    Args:
        source: As in :func:`load_images`.
        left_out: :attr:`Images.left_out`, which saves a second decoding.
    """
    return LabelOracle(
        lambda split: load_labels(source, split, left_out=left_out), labelled_splits(source)
    )


def check_dataset(source: Source | str) -> DatasetSpec:
    """Check, before any work starts, that a dataset is there; download it if that is possible.

    Looks at names and headers only. Argument and errors as in :func:`load_images`.
    """
    spec, source = _find(source)
    _ensure(spec, source)
    return spec


def source_fingerprint(source: Source | str) -> str:
    """A cheap identity of the images that :func:`load_images` would return, as 16 hex digits.

    Made from ``image_size`` and the names, sizes and modification times of the files (of the
    class folders for ``imagenet``; for ``digits``, the version of scikit-learn and the split).
    No file's contents are read.
    """
    spec, source = _find(source)
    return _digest([spec.name, source.image_size, _identity(spec, source)])


def unread_files(folder: str | Path) -> dict[str, list]:
    """kind -> names of the files in a folder of images that are not read as images (hidden, of
    another kind, ...); looks at names only."""
    spec, source = _find(Source("image_folder", path=folder))
    return spec.reader.unread(source)


def folder_of_files(source: Source) -> Path | None:
    """The folder that a dataset's image files are in; None of a dataset that is not one of image
    files, or whose images are in memory."""
    reader = DATASETS[choose("dataset", source.dataset, DATASETS)].reader
    if not isinstance(reader, Folder) or (type(reader) is Folder and source.path is None):
        return None
    return reader.root(source)


def test_files(source: Source, left_out: dict[str, list[int]]) -> list[Path]:
    """The files of the test images of a dataset of image files, in their order.

    Args:
        left_out: As in :class:`Images`.

    Raises:
        ElfsError: if it has no test split.
    """
    spec, source = _find(source)
    files = spec.reader.files(source, "test")
    if not files:
        raise ElfsError(f"Dataset {source.dataset!r} has no test split to evaluate on.")
    gone = {*left_out.get("test", ())}
    return [file for row, file in enumerate(files) if row not in gone]


# --- helpers ---------------------------------------------------------------------------------


def _find(source: Source | str) -> tuple[DatasetSpec, Source]:
    source = Source(source) if isinstance(source, str) else source
    spec = DATASETS[choose("dataset", source.dataset, DATASETS)]
    if spec.needs_path and not source.path:
        raise ElfsError(f"Dataset {spec.name!r} needs 'data_path': the {spec.get} to read.")
    if source.path and not spec.needs_path:
        own = ", ".join(name for name, other in DATASETS.items() if other.needs_path)
        raise ElfsError(
            f"'data_path' is for datasets {own}, not for {spec.name!r}: leave it out, or name the "
            "data root with ELFS_DATA_DIR."
        )
    return spec, source


def _identity(spec: DatasetSpec, source: Source) -> list:
    try:
        return spec.reader.identity(source)
    except MissingDataset as error:
        if spec.needs_path:
            raise
        raise MissingDataset(
            f"dataset {spec.name!r} is not in data_dir {source.data_dir}: {spec.get}."
        ) from error


def _ensure(spec: DatasetSpec, source: Source) -> list:
    """The identity of a dataset, downloaded if it was missing."""
    try:
        return _identity(spec, source)
    except MissingDataset as missing:
        if spec.download is None:
            raise
        try:
            source.data_dir.mkdir(parents=True, exist_ok=True)
            with FileLock(source.data_dir / f".{spec.name}.lock"):
                spec.download(source.data_dir)  # does nothing if another process just did it
        except (OSError, RuntimeError) as error:
            raise MissingDataset(f"{str(missing)[:-1]} (downloading failed: {error}).") from error
        return _identity(spec, source)


def _digest(identity: list) -> str:
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]


# --- the registry ----------------------------------------------------------------------------


def _torchvision(kind: str) -> Callable[..., Any]:
    """Opens a dataset of torchvision, however its class takes the split."""

    def build(data_dir: Path, split: str, download: bool = False) -> Any:
        from torchvision import datasets as torchvision_datasets

        how = {"split": split} if kind in ("STL10", "SVHN") else {"train": split == "train"}
        return getattr(torchvision_datasets, kind)(data_dir, download=download, **how)

    return build


def downloader(build: Callable[..., Any], url: str) -> Callable[[Path], None]:
    def fetch(data_dir: Path) -> None:
        # torchvision waits forever: check first that the server answers.
        try:
            urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=10).close()
        except urllib.error.HTTPError:
            pass  # still an answer: some servers refuse HEAD
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
            description="1,437 + 360 handwritten digits, 8x8 grey; ships inside scikit-learn",
            get="install scikit-learn",
            num_classes=10,
            image_size=8,
        ),
        DatasetSpec(
            "fashion_mnist",
            FashionMnist(),
            description="60,000 + 10,000 articles of clothing, 28x28 grey",
            get="install the Debian package dataset-fashion-mnist, or put torchvision's "
            f"FashionMNIST/raw files there ({_FASHION_URL})",
            num_classes=10,
            image_size=28,
            download=downloader(_torchvision("FashionMNIST"), _FASHION_URL),
        ),
        DatasetSpec(
            "cifar10",
            FirstOf((_cifar10, Parquet("cifar10", num_classes=10, image_size=32))),
            description="50,000 + 10,000 natural images of 10 classes, 32x32 RGB",
            get="put torchvision's cifar-10-batches-py there, or Hugging Face Parquet files as "
            f"cifar10/train-*.parquet and cifar10/test-*.parquet ({_CIFAR_URL})",
            num_classes=10,
            image_size=32,
            download=downloader(_torchvision("CIFAR10"), _CIFAR_URL),
        ),
        DatasetSpec(
            "cifar100",
            FirstOf((_cifar100, Parquet("cifar100", num_classes=100, image_size=32))),
            description="50,000 + 10,000 natural images of 100 classes, 32x32 RGB",
            get="put torchvision's cifar-100-python there, or Hugging Face Parquet files as "
            f"cifar100/train-*.parquet and cifar100/test-*.parquet ({_CIFAR_URL})",
            num_classes=100,
            image_size=32,
            download=downloader(_torchvision("CIFAR100"), _CIFAR_URL),
        ),
        DatasetSpec(
            "stl10",
            _stl10,
            description="5,000 + 8,000 natural images of 10 classes, 96x96 RGB",
            get=f"put torchvision's stl10_binary there ({_STL10_URL})",
            num_classes=10,
            image_size=96,
            download=downloader(_torchvision("STL10"), _STL10_URL),
        ),
        DatasetSpec(
            "svhn",
            _svhn,
            description="73,257 + 26,032 house-number digits, 32x32 RGB",
            get=f"put train_32x32.mat and test_32x32.mat there ({_SVHN_URL})",
            num_classes=10,
            image_size=32,
            download=downloader(_torchvision("SVHN"), _SVHN_URL),
        ),
        DatasetSpec(
            "imagenet",
            ImageNet(),
            description="1,281,167 + 50,000 photographs of 1,000 classes; the test split is the "
            "validation set",
            get="get the ILSVRC2012 archives from https://image-net.org and unpack them with "
            "torchvision.datasets.ImageNet into imagenet/train and imagenet/val",
            num_classes=1000,
            image_size=64,
        ),
        DatasetSpec(
            "parquet",
            Parquet(),
            description="your images in Parquet files of the Hugging Face layout, labelled or not",
            get=".parquet file or folder of .parquet files",
            needs_path=True,
        ),
        DatasetSpec(
            "webdataset",
            WebDataset(),
            description="your images in tar files of the WebDataset layout, labelled or not",
            get=".tar file or folder of .tar files",
            needs_path=True,
        ),
        DatasetSpec(
            "image_folder",
            Folder(),
            description="your folder of JPEG, PNG, WebP... files, labelled (class folders) or not",
            get="directory of images",
            needs_path=True,
        ),
    )
}
