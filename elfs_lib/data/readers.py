"""Readers: each knows one kind of source, and keeps its images and its labels apart.

A reader is asked through :class:`Reader`; :mod:`elfs_lib.data.datasets` gives readers their names.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from itertools import chain, islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from elfs_lib.artifacts import is_large
from elfs_lib.data import decoding
from elfs_lib.data.label_files import class_name
from elfs_lib.errors import ElfsError

FASHION_PACKAGE_DIR = Path("/usr/share/datasets/fashion-mnist")  # Debian: dataset-fashion-mnist
SPLITS = ("train", "test")
#: Words that name a split in the name of a file or folder, in any case: ``Train_01``, ``myTest``.
SPLIT_WORDS = {
    **dict.fromkeys(("train", "training", "trainset"), "train"),
    **dict.fromkeys(("test", "testing", "testset"), "test"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "eval", "evaluation"), "validation"),
}
SIZE_RANGE = (4, 1024)


@dataclass(frozen=True)
class Images:
    """The images of a dataset.

    Attributes:
        train: uint8 [N, C, S, S], C-contiguous; C is 1 (grey) or 3 (RGB).
        test: uint8 [M, C, S, S], or None if the dataset has no test split.
        class_names: Names of the classes 0..C-1, where the source states them.
        num_classes: Their number, where it is known.
        paths: For people's own data: where each training image came from, relative to the
            dataset's path (``file.parquet#row`` for Parquet).
        report: kind -> names of what was left out or changed (the kinds are the keys of
            :data:`elfs_lib.data.decoding.LEFT_OUT` and ``KEPT``); empty for clean sets.
        source: One sentence that says where these pixels came from.
        splits: For people's own data: which files were taken for which split, in a sentence; empty
            where all are train.
        left_out: split -> rows of the source that are not in the arrays (damaged files...), so
            that labels can be lined up later; only splits that lack rows.
    """

    train: np.ndarray
    test: np.ndarray | None
    class_names: tuple[str, ...] | None = None
    num_classes: int | None = None
    paths: tuple[str, ...] | None = None
    report: dict[str, list] = field(default_factory=dict)
    source: str = ""
    splits: str = ""
    left_out: dict[str, list[int]] = field(default_factory=dict)


def merge_reports(*reports: Mapping[str, list]) -> dict[str, list]:
    """Reports on files, kind -> names, in one: kinds and names sorted."""
    kinds = sorted(set().union(*reports))
    return {kind: sorted(name for r in reports for name in r.get(kind, ())) for kind in kinds}


@dataclass(frozen=True)
class Request:
    """Where to look, how large to store, and a folder for what memory does not hold; already
    validated."""

    data_dir: Path
    path: Path | None = None
    image_size: int | None = None
    scratch: Path | None = None


class Reader(Protocol):
    """One kind of source."""

    def identity(self, request: Request) -> list:
        """What identifies the images without reading a label or an image: JSON values.

        Raises:
            MissingDataset: if the data is not there.
            ElfsError: if it is there but cannot be what it should be.
        """

    def images(self, request: Request) -> Images:
        """Read the images, never a label."""

    def labels(self, request: Request, split: str) -> np.ndarray:
        """Read the labels of a split, int, one for each row of the source."""

    def labelled(self, request: Request) -> tuple[str, ...]:
        """The splits that have labels, told without reading one."""

    def left_out(self, request: Request) -> dict[str, list[int]]:
        """As in :class:`Images`; found by decoding all images where they may be damaged."""


class MissingDataset(ElfsError):
    """The dataset is not where it was looked for."""


class Whole:
    """What all published array files share: two labelled splits, and nothing ever damaged."""

    def labelled(self, request: Request) -> tuple[str, ...]:
        return SPLITS

    def left_out(self, request: Request) -> dict[str, list[int]]:
        return {}


class Files:
    """What all readers of encoded image files share."""

    def left_out(self, request: Request) -> dict[str, list[int]]:
        return self.images(replace(request, image_size=SIZE_RANGE[0])).left_out


class Digits(Whole):
    """1,797 grey images of 8x8 pixels from scikit-learn, values 0..16 scaled to 0..255.

    scikit-learn defines no split: train is the first 1,437 (80%) of the permutation that
    ``numpy.random.default_rng(0)`` gives, test the last 360; both keep that order.
    """

    def identity(self, request: Request) -> list:
        return [version("scikit-learn"), *(self._rows(split).tolist() for split in SPLITS)]

    def images(self, request: Request) -> Images:
        from sklearn.datasets import load_digits

        grey = np.rint(load_digits().images[:, None] * (255 / 16)).astype(np.uint8)
        return Images(
            *(_at_size(grey[self._rows(split)], request) for split in SPLITS),
            class_names=tuple("0123456789"),
            num_classes=10,
            source="The digits of scikit-learn, split 80/20 by a fixed permutation.",
        )

    def labels(self, request: Request, split: str) -> np.ndarray:
        from sklearn.datasets import load_digits

        return load_digits().target[self._rows(split)]

    @staticmethod
    def _rows(split: str) -> np.ndarray:
        order = np.random.default_rng(0).permutation(1797)
        return order[:1437] if split == "train" else order[1437:]


class FashionMnist(Whole):
    """IDX files, from the Debian package or in torchvision's layout."""

    classes = (
        "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
        "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
    )  # fmt: skip

    def identity(self, request: Request) -> list:
        for split in SPLITS:
            self._file(request, split, "labels-idx1")
        files = [self._file(request, split, "images-idx3") for split in SPLITS]
        return [_stat(file.name, file) for file in files]

    def images(self, request: Request) -> Images:
        files = [self._file(request, split, "images-idx3") for split in SPLITS]
        return Images(
            *(_at_size(_read_idx(file)[:, None], request) for file in files),
            class_names=self.classes,
            num_classes=10,
            source="Fashion-MNIST as published.",
        )

    def labels(self, request: Request, split: str) -> np.ndarray:
        return _read_idx(self._file(request, split, "labels-idx1"))

    @staticmethod
    def _file(request: Request, split: str, kind: str) -> Path:
        name = f"{'t10k' if split == 'test' else 'train'}-{kind}-ubyte"
        raw = request.data_dir / "FashionMNIST" / "raw"
        for file in (raw / name, raw / f"{name}.gz", FASHION_PACKAGE_DIR / f"{name}.gz"):
            if file.is_file():
                return file
        raise MissingDataset(name)


def _read_idx(file: Path) -> np.ndarray:
    """uint8 array of an IDX file: two zero bytes, type 8, rank, sizes (big-endian), data."""
    try:
        data = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        rank = data[3] if data[:3] == b"\x00\x00\x08" else 0
        shape = np.frombuffer(data, ">u4", rank, 4).astype(int)
        # A copy, because PyTorch wants memory that it could write to.
        return np.frombuffer(data, np.uint8, offset=4 + 4 * rank).reshape(shape).copy()
    except (OSError, EOFError, ValueError, IndexError) as error:
        raise ElfsError(f"{file} is not a whole IDX file: delete it and fetch it again.") from error


@dataclass(frozen=True)
class Torchvision(Whole):
    """Whatever a torchvision class keeps as one array.

    These classes read a split's images and labels together; ``images`` keeps the first and
    ``labels`` the second. CIFAR's files are pickles: torchvision compares them with their
    published checksums before it opens them.

    Attributes:
        build: ``(data_dir, split, download=False)`` -> the torchvision dataset.
        files: What must be below data_dir.
        labels_at: The attribute that holds the labels; the images are in ``data``.
        channels_last: Whether ``data`` is [N, H, W, C].
    """

    build: Callable[..., Any]
    files: tuple[str, ...]
    num_classes: int
    labels_at: str
    channels_last: bool = False

    def identity(self, request: Request) -> list:
        missing = [name for name in self.files if not (request.data_dir / name).is_file()]
        if missing:
            raise MissingDataset(missing[0])
        return [_stat(name, request.data_dir / name) for name in self.files]

    def images(self, request: Request) -> Images:
        names, arrays = None, []
        for split in SPLITS:
            dataset = self._open(request, split)
            data = np.asarray(dataset.data, np.uint8)
            data = data.transpose(0, 3, 1, 2) if self.channels_last else data
            arrays.append(_at_size(np.ascontiguousarray(data), request))
            names = tuple(getattr(dataset, "classes", ())) or None
        return Images(*arrays, names, self.num_classes, source="As published, by torchvision.")

    def labels(self, request: Request, split: str) -> np.ndarray:
        return np.asarray(getattr(self._open(request, split), self.labels_at))

    def _open(self, request: Request, split: str) -> Any:
        try:
            return self.build(request.data_dir, split)
        except (RuntimeError, OSError, ValueError) as error:
            raise ElfsError(
                f"torchvision cannot read {self.files[0]} and its neighbours in "
                f"{request.data_dir} ({_line(error)}): delete them and fetch them again."
            ) from error


@dataclass(frozen=True)
class Parquet(Files):
    """Parquet files in the Hugging Face image layout.

    A file, or all ``*.parquet`` below a folder. A file's split is the word for one in its name, or
    else in that of the nearest folder with such a word (see :data:`SPLIT_WORDS`). Where there is no
    test, validation takes its place. Without any such word all of it is train.

    The image column is ``img`` or ``image`` (a struct with ``bytes``, or bytes), the label
    column, if there is one, ``label``, ``labels`` or ``fine_label``: names of classes, or numbers
    with or without names in the file's metadata. Files that name their classes are matched by
    name. A split whose labels are all missing or -1, Hugging Face's "none", is unlabelled.

    Attributes:
        folder: The folder below data_dir; None to read ``path``.
        num_classes: As published; None to believe the files' metadata.
        image_size: As published; None to look at the images.
    """

    folder: str | None = None
    num_classes: int | None = None
    image_size: int | None = None

    image_columns = ("img", "image")
    label_columns = ("label", "labels", "fine_label")

    def identity(self, request: Request) -> list:
        root, shards, unused = self._shards(request)
        files = [file for files in shards.values() for file in files]
        for file in files:
            self._check_images(file)
            self._check_labels(file)
        # of people's own files the names may come to mean other splits; images must not outlive it
        told_apart = self.folder is None and "test" in shards
        rows = [_stat(_below(root, file), file) for file in (*files, *unused)]
        return [len(shards["train"]), *rows] if told_apart else rows

    def images(self, request: Request) -> Images:
        root, shards, unused = self._shards(request)
        counts = {
            split: sum(pq.read_metadata(file).num_rows for file in files)
            for split, files in shards.items()
        }
        size = request.image_size or self.image_size
        if size is None:
            first = islice(self._rows(root, shards["train"]), decoding.SAMPLE)
            size = decoding.default_size([io.BytesIO(data) for _, data in first if data])
        parts = _decode_splits(
            {split: self._rows(root, files) for split, files in shards.items()},
            counts,
            image_size=size,
            read=_cell,
            where=root,
            scratch=request.scratch,
        )
        names = self._class_names(shards["train"])
        source = f"{self.folder or root.name} from Parquet files"
        if self.folder and "JPEG" in parts["train"].formats:
            source += (
                "; they hold JPEG copies, so pixels differ from those of the published images and "
                "accuracies may be lower by some points"
            )
        return _gather(
            parts,
            counts,
            names,
            self.num_classes or (len(names) if names else None),
            {"unused": [_below(root, file) for file in unused]},
            f"{source}.",
            splits="" if self.folder else _told_apart(root, shards),
            keep_paths=self.folder is None,
        )

    def labels(self, request: Request, split: str) -> np.ndarray:
        _, shards, _ = self._shards(request)
        classes = self._class_names(shards["train"])
        if classes is None:
            train = [self._label_values(file) for file in shards["train"]]
            named = [values for values in train if values.dtype == object]
            classes = tuple(sorted(set(np.concatenate(named)))) if named else None
        return np.concatenate([self._numbers(file, classes, split) for file in shards[split]])

    def _numbers(self, file: Path, classes: tuple[str, ...] | None, split: str) -> np.ndarray:
        """int, a file's labels as places in the classes of train; those may have no names."""
        values, own = self._label_values(file), self._class_names([file])
        if values.dtype == object:
            own, values = np.unique(values, return_inverse=True)
        if (own is None) != (classes is None):
            raise ElfsError(
                f"{file} {'numbers' if own is None else 'names'} its classes and another file "
                f"{'names' if own is None else 'numbers'} them, so they cannot be matched: give "
                "the labels of all files as names, or of all as numbers."
            )
        if own is None:
            return values
        number = {name: i for i, name in enumerate(classes)}
        strangers = sorted({own[value] for value in np.unique(values)} - set(number))
        if strangers:
            raise ElfsError(
                f"The {split} labels have {strangers[0]!r}, which train lacks: give both splits "
                "the same classes."
            )
        return np.array([number.get(name, -1) for name in own])[values]

    def labelled(self, request: Request) -> tuple[str, ...]:
        _, shards, _ = self._shards(request)
        return tuple(
            split
            for split, files in shards.items()
            if all(self._label_column(file) is not None for file in files)
        )

    def _shards(self, request: Request) -> tuple[Path, dict[str, list[Path]], list[Path]]:
        """The root, the files of each split, and those of no split that is used."""
        root = request.path if self.folder is None else request.data_dir / self.folder
        if root.is_file():
            return root.parent, {"train": [root]}, []
        found = sorted(root.rglob("*.parquet")) if root.is_dir() else []
        if not found:
            what = "has no .parquet file" if root.is_dir() else "does not exist"
            raise MissingDataset(
                f"path {str(root)!r} {what}: give a .parquet file, or a folder of them."
            )
        words: dict[str, list[Path]] = {}
        for file in found:
            words.setdefault(_split_of_file(root, file), []).append(file)
        missing = "train" if "train" not in words else "test" if words.keys() == {"train"} else None
        if missing and self.folder is not None:
            raise MissingDataset(missing)
        if len(words) == 1:
            if "" not in words:
                _check_one_set(root, found)
            return root, {"train": found}, []
        if missing:
            named = next(split for split in ("test", "validation") if split in words)
            raise ElfsError(
                f"{_below(root, words[named][0])} is the {named} split by its name, and no file in "
                f"{root} is named train: name the others train, or give one file as data_path."
            )
        test = next((split for split in ("test", "validation") if split in words), None)
        shards = {"train": words.pop("train")} | ({"test": words.pop(test)} if test else {})
        _check_one_set(root, [file for files in shards.values() for file in files])
        return root, shards, list(chain.from_iterable(words.values()))

    def _check_images(self, file: Path) -> None:
        column = self._image_column(file)
        rows, gaps = pq.read_metadata(file).num_rows, _statistics(file, column)[0]
        if gaps is None:  # the first image with bytes is enough
            gaps = rows * all(data is None for _, data in self._rows(file.parent, [file]))
        if rows and gaps == rows:
            raise ElfsError(
                f"{file} holds the paths of its images and not their bytes: write the bytes into "
                "it, or give the folder of the images to dataset image_folder."
            )

    def _image_column(self, file: Path) -> str:
        """The name of the column with the bytes, as Parquet's readers take it."""
        schema = _schema(file)
        for name in self.image_columns:
            if name in schema.names:
                kind = schema.field(name).type
                if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
                    return f"{name}.bytes"
                if _is(kind, "binary", "large_binary", "binary_view"):
                    return name
        columns = ", ".join(f"{item.name} ({item.type})" for item in schema)
        raise ElfsError(
            f"{file} has no image column: it needs img or image as a struct with bytes, or as "
            f"bytes, and has {columns}."
        )

    def _label_column(self, file: Path) -> str | None:
        """The name of the column with the labels; None if there is none, or it is empty."""
        schema = _schema(file)
        name = next((name for name in self.label_columns if name in schema.names), None)
        if name is None or pa.types.is_null(schema.field(name).type):
            return None
        gaps, low, high = _label_statistics(file, name)
        empty = gaps == pq.read_metadata(file).num_rows or (low == high == -1)
        return None if empty else name

    def _check_labels(self, file: Path) -> None:
        """Check what the file says of its labels; see :func:`_label_statistics`."""
        name = self._label_column(file)
        if name is None:
            return
        gaps, low, high = _label_statistics(file, name)
        self._check_label_column(file, name, _schema(file).field(name).type, gaps)
        names = self._class_names([file])
        if isinstance(low, int) and (low < 0 or (names and high >= len(names))):
            wrong = low if low < 0 else high
            raise ElfsError(
                f"{file} has a label {wrong} in column {name}, which is no class: correct it, "
                "leave that image out, or rename the column to do without labels."
            )

    def _check_label_column(self, file: Path, name: str, kind: pa.DataType, gaps: int) -> None:
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        known = _is(kind, "integer", "boolean", "string", "large_string", "string_view")
        if gaps or not known:
            raise ElfsError(
                f"{file} has a column {name} of {kind} with {gaps} gaps: labels must be whole "
                "numbers or names, and no gaps; rename the column to do without labels."
            )

    def _label_values(self, file: Path) -> np.ndarray:
        """int, or object (str): the label column of a file."""
        name = self._label_column(file)
        column = pq.read_table(file, columns=[name])[name]
        self._check_label_column(file, name, column.type, column.null_count)
        values = column.to_pylist()
        if isinstance(values[0], str):
            return np.array([class_name(value) for value in values], object)
        return np.array(values, np.int64)

    def _rows(self, root: Path, files: list[Path]) -> Iterator[tuple[str, bytes | None]]:
        for file in files:
            name, row = _below(root, file), 0
            column = self._image_column(file)
            try:
                for batch in pq.ParquetFile(file).iter_batches(_PARQUET_ROWS, columns=[column]):
                    cells = batch.column(0)
                    cells = cells.field("bytes") if pa.types.is_struct(cells.type) else cells
                    for cell in cells.to_pylist():
                        yield f"{name}#{row}", cell
                        row += 1
            except (pa.ArrowException, OSError) as error:
                raise ElfsError(
                    f"{file} is damaged after row {row}: fetch it again ({_line(error)})."
                ) from error

    def _class_names(self, files: list[Path]) -> tuple[str, ...] | None:
        """The classes that the metadata of files name, in the order of the first; else None."""
        names: dict[str, None] = {}
        for file in files:
            metadata = _schema(file).metadata or {}
            try:
                features = json.loads(metadata[b"huggingface"])["info"]["features"]
                names |= dict.fromkeys(map(class_name, features[self._label_column(file)]["names"]))
            except ElfsError:
                raise
            except (KeyError, TypeError, ValueError):
                continue
        return tuple(names) or None


@dataclass(frozen=True)
class Folder(Files):
    """A directory of image files, in a random order that depends on their names alone.

    Sorted paths list one class after another where classes are folders. Equal scores are taken in
    the order of the images, so classes would get into a selection though nobody opened a label.
    The name of a file decides before its folder's: files sorted into folders keep their order.

    Two folders side by side whose names have a word for train and for test are the splits, whatever
    else their names share (``Train`` and ``Test``, ``cifar_train`` and ``cifar_valid``; see
    :data:`SPLIT_WORDS`); anything beside them is reported as ``unused``. Where there is no test,
    validation takes its place. Otherwise everything is train. A split is labelled if each of its
    images lies in one of at least two folders side by side: their names are the classes. Any other
    layout, flat or nested, is read without labels.
    """

    def root(self, request: Request) -> Path:
        root = request.path
        if not root.is_dir():
            what = "is a file" if root.is_file() else "does not exist"
            raise MissingDataset(f"path {str(root)!r} {what}: give a directory with images.")
        return root

    def identity(self, request: Request) -> list:
        root = self.root(request)
        splits, report = self._listing(request)
        files = [name for names in splits.values() for name in names]
        if not files:
            raise ElfsError(
                f"path {str(root)!r} has no image files{_counts(report)}: give a directory with "
                "JPEG, PNG or WebP files."
            )
        # Images kept from before ``unread`` hold what is reported there in their own report.
        rows = ["unread apart", *(_stat(name, root / name) for name in files)]
        return [len(splits["train"]), *rows] if "test" in splits else rows

    def images(self, request: Request) -> Images:
        root = self.root(request)
        splits, _ = self._listing(request)
        counts = {split: len(names) for split, names in splits.items()}
        size = request.image_size or self._default_size(root, splits["train"])
        parts = _decode_splits(
            {split: ((name, root / name) for name in names) for split, names in splits.items()},
            counts,
            image_size=size,
            read=decoding.read_file,
            where=root,
            scratch=request.scratch,
        )
        names = self._class_names(request, splits)
        images = _gather(
            parts,
            counts,
            names,
            len(names) if names else None,
            {},
            "Image files of a folder, resized and cropped.",
            splits=_split_folders(root, [name for own in splits.values() for name in own])[1],
            keep_paths=True,
        )
        by_path = {kind: sorted(found) for kind, found in images.report.items()}
        return replace(images, report=by_path)

    def unread(self, request: Request) -> dict[str, list]:
        """kind -> names of files beside the images that nobody took for one (hidden, of another
        kind, unused...); they may come and go, and the images stay the same."""
        return self._listing(request)[1]

    def labels(self, request: Request, split: str) -> np.ndarray:
        splits, _ = self._listing(request)
        number = {name: i for i, name in enumerate(_class_folders(splits["train"]))}
        strangers = sorted(set(_class_folders(splits[split])) - set(number))
        if strangers:
            raise ElfsError(
                f"path {str(self.root(request))!r} has {split} images of class "
                f"{strangers[0]!r}, which train lacks: give both splits the same class folders."
            )
        folders = [name.rpartition("/")[0].rpartition("/")[2] for name in splits[split]]
        return np.array([number.get(folder, -1) for folder in folders])

    def labelled(self, request: Request) -> tuple[str, ...]:
        splits, _ = self._listing(request)
        return tuple(split for split, names in splits.items() if _class_folders(names))

    def _default_size(self, root: Path, names: list[str]) -> int:
        step = max(1, len(names) // decoding.SAMPLE)
        return decoding.default_size([root / name for name in names[::step]])

    def _class_names(
        self, request: Request, splits: dict[str, list[str]]
    ) -> tuple[str, ...] | None:
        return _class_folders(splits["train"]) or None

    def _listing(self, request: Request) -> tuple[dict[str, list[str]], dict[str, list]]:
        root = self.root(request)
        files, report = decoding.list_files(root)
        files.sort(key=lambda path: (_lot(path.rpartition("/")[2]), _lot(path)))
        of_folder, _ = _split_folders(root, files)
        if not of_folder:
            return {"train": files}, report
        splits: dict[str, list[str]] = {"train": [], "test": []}
        for name in files:
            split = of_folder.get(name.rpartition("/")[0])
            (splits[split] if split else report.setdefault("unused", [])).append(name)
        return splits, report


class ImageNet(Folder):
    """ImageNet-1K as torchvision lays it out: ``imagenet/{train,val}/<wnid>/*.JPEG``.

    At 64 pixels 1.33 million images take 16 GB of memory, at 224 pixels 200 GB.
    """

    def root(self, request: Request) -> Path:
        root = request.data_dir / "imagenet"
        if not all((root / name).is_dir() for name in ("train", "val")):
            raise MissingDataset(str(root))
        return root

    def identity(self, request: Request) -> list:
        # Adding or removing an image changes its folder's time: no need to visit a million.
        root = self.root(request)
        folders = [
            folder for name in ("train", "val") for folder in sorted((root / name).iterdir())
        ]
        # The files' order is not in it, so it is named: rows must not outlive another order.
        return [
            "order of hashed names",
            *(_stat(_below(root, folder), folder) for folder in folders),
        ]

    def labelled(self, request: Request) -> tuple[str, ...]:
        self.root(request)
        return SPLITS  # by its layout: no need to visit a million

    def images(self, request: Request) -> Images:
        return replace(
            super().images(request), source="ImageNet-1K from its files, resized and cropped."
        )

    def _default_size(self, root: Path, names: list[str]) -> int:
        return 64

    def _class_names(
        self, request: Request, splits: dict[str, list[str]]
    ) -> tuple[str, ...] | None:
        wnids = _class_folders(splits["train"])
        root = self.root(request)
        if not (root / "meta.bin").is_file():
            return wnids or None
        from torchvision.datasets.imagenet import load_meta_file

        words = load_meta_file(root)[0]
        return tuple(words[wnid][0] for wnid in wnids)


@dataclass(frozen=True)
class FirstOf:
    """The first of several readers whose data is there."""

    readers: tuple[Reader, ...]

    def _pick(self, request: Request) -> Reader:
        for reader in self.readers[:-1]:
            try:
                reader.identity(request)
            except MissingDataset:
                continue
            return reader
        return self.readers[-1]

    def identity(self, request: Request) -> list:
        return self._pick(request).identity(request)

    def images(self, request: Request) -> Images:
        return self._pick(request).images(request)

    def labels(self, request: Request, split: str) -> np.ndarray:
        return self._pick(request).labels(request, split)

    def labelled(self, request: Request) -> tuple[str, ...]:
        return self._pick(request).labelled(request)

    def left_out(self, request: Request) -> dict[str, list[int]]:
        return self._pick(request).left_out(request)


# --- shared by the readers -------------------------------------------------------------------

_PARQUET_ROWS = 256  # rows in memory at once: photographs of several megabytes among them


def _decode_splits(
    items: dict[str, Iterable[tuple[str, Any]]],
    counts: dict[str, int],
    *,
    image_size: int,
    read: Callable[[Any], bytes],
    where: Path,
    scratch: Path | None,
) -> dict[str, decoding.Decoded]:
    size = sum(counts.values()) * 3 * image_size**2
    if scratch is None or not is_large(size):
        scratch = None
        decoding.check_memory(sum(counts.values()), image_size)
    else:
        decoding.check_disk(size, scratch)
    first_seen: dict[bytes, str] = {}
    parts = {}
    for split, source in items.items():
        part = decoding.decode_images(
            source,
            counts[split],
            image_size=image_size,
            read=read,
            desc=f"reading {split} images",
            first_seen=first_seen,
            file=scratch and scratch / f"{split}.decoded",
        )
        if not part.names:
            raise ElfsError(
                f"{where} has no usable {split} image{_counts(part.report)}: give JPEG, PNG or "
                "WebP images."
            )
        parts[split] = part
    return parts


def _gather(
    parts: dict[str, decoding.Decoded],
    counts: dict[str, int],
    class_names: tuple[str, ...] | None,
    num_classes: int | None,
    report: dict[str, list],
    source: str,
    *,
    splits: str,
    keep_paths: bool,
) -> Images:
    channels = 1 if all(part.grey for part in parts.values()) else 3
    arrays = {split: part.images for split, part in parts.items()}
    if channels == 1:
        for split, images in arrays.items():
            arrays[split] = np.ascontiguousarray(images[:, :1])
            if isinstance(images, np.memmap):
                Path(images.filename).unlink()
    merged = {kind: list(names) for kind, names in report.items() if names}
    for part in parts.values():
        for kind, names in part.report.items():
            merged.setdefault(kind, []).extend(names)
    return Images(
        arrays["train"],
        arrays.get("test"),
        class_names,
        num_classes,
        parts["train"].names if keep_paths else None,
        dict(sorted(merged.items())),
        source,
        splits,
        {
            split: np.setdiff1d(np.arange(counts[split]), part.rows).tolist()
            for split, part in parts.items()
            if len(part.rows) < counts[split]
        },
    )


def _counts(report: dict[str, list]) -> str:
    """`` (3 damaged, 1 hidden)``, or nothing."""
    found = ", ".join(f"{len(names)} {kind.replace('_', ' ')}" for kind, names in report.items())
    return f" ({found})" if found else ""


def _words(name: str) -> tuple[list[str], set[str]]:
    """The words of a name in lower case, but for those of splits; and the splits."""
    words = [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name)]
    others = [word for word in words if word not in SPLIT_WORDS]
    return others, {SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS}


def _split_of_file(root: Path, file: Path) -> str:
    """The split that a file's name is of, or the nearest folder's; "" where none has a word."""
    for name in (file.stem, *reversed(file.relative_to(root).parent.parts)):
        _, splits = _words(name)
        if len(splits) > 1:
            raise ElfsError(
                f"{name!r} in {root} names the splits {' and '.join(sorted(splits))}: rename it, "
                "so that it names one."
            )
        if splits:
            return splits.pop()
    return ""


def _check_one_set(root: Path, files: list[Path]) -> None:
    """Refuse several sets side by side: folders that are neither a split nor a key=value part."""
    sets = {
        "/".join(part for part in file.relative_to(root).parent.parts if not _is_part(part))
        for file in files
    }
    if len(sets) > 1:
        names = ", ".join(repr(name or ".") for name in sorted(sets))
        raise ElfsError(
            f"{root} holds several sets ({names}), each with its own splits: give the folder of "
            "one as data_path."
        )


def _is_part(folder: str) -> bool:
    return "=" in folder or bool(_words(folder)[1])


def _split_folders(root: Path, files: list[str]) -> tuple[dict[str, str], str]:
    """Which split the files in a folder are of, folder -> ``train`` or ``test``, empty if there
    are no two splits; and the sentence that says so."""
    outermost: dict[str, tuple[str, str]] = {}  # folder -> the folder of its split, and which
    for folder in {name.rpartition("/")[0] for name in files}:
        parts = folder.split("/")
        for depth, part in enumerate(parts, 1):
            _, splits = _words(part)
            if len(splits) == 1:
                outermost[folder] = "/".join(parts[:depth]), splits.pop()
                break
    there = {split for _, split in outermost.values()}
    test = next((split for split in ("test", "validation") if split in there), None)
    if not test:
        return {}, ""
    if "train" not in there:
        lone = min(name for name, _ in outermost.values())
        return {}, f"{lone}/ is read like any other folder, for no folder beside it is named train."
    use = {"train": "train", test: "test"}
    used = {folder: (top, use[split]) for folder, (top, split) in outermost.items() if split in use}
    tops = {split: sorted({top for top, own in used.values() if own == split}) for split in SPLITS}
    every = [top for own in tops.values() for top in own]
    # what a name says besides its split: "cifar" of data/cifar_train
    if len({(top.rpartition("/")[0], *_words(top.rpartition("/")[2])[0]) for top in every}) > 1:
        raise ElfsError(
            f"The folders {' and '.join(map(repr, every))} in {root} may be splits or not: name "
            "one train and the one beside it test, and no other folder so."
        )
    listed = "; ".join(f"{split}: {_some(own)}" for split, own in tops.items())
    return {folder: split for folder, (_, split) in used.items()}, f"Folders taken for {listed}."


def _told_apart(root: Path, shards: dict[str, list[Path]]) -> str:
    if "test" not in shards:
        return ""
    named = {split: [_below(root, file) for file in files] for split, files in shards.items()}
    return f"Files taken for {'; '.join(f'{split}: {_some(own)}' for split, own in named.items())}."


def _some(names: list[str], most: int = 3) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _is(kind: pa.DataType, *names: str) -> bool:
    """Whether an Arrow type is one of some kinds; an older Arrow lacks the newer ones."""
    return any(getattr(pa.types, f"is_{name}", lambda _: False)(kind) for name in names)


def _statistics(file: Path, column: str) -> tuple[int | None, Any, Any]:
    """What a Parquet file says of a column: its gaps, the lowest and the highest value; None where
    it does not say."""
    metadata = pq.read_metadata(file)
    gaps, ends, whole = 0, [], True
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        chunks = map(group.column, range(group.num_columns))
        said = next((c.statistics for c in chunks if c.path_in_schema == column), None)
        if said is None or not said.has_null_count:
            return None, None, None
        gaps += said.null_count
        ends += [said.min, said.max] if said.has_min_max else []
        whole &= said.has_min_max or said.null_count == group.num_rows
    return (gaps, min(ends), max(ends)) if ends and whole else (gaps, None, None)


def _label_statistics(file: Path, column: str) -> tuple[int, Any, Any]:
    """The gaps of a label column, and of whole numbers the lowest and the highest. Where the file
    does not say, the labels are read for these three alone, so that faults show before the work."""
    gaps, low, high = _statistics(file, column)
    numbers = pa.types.is_integer(_schema(file).field(column).type)
    if gaps is None or (numbers and low is None and gaps < pq.read_metadata(file).num_rows):
        values = pq.read_table(file, columns=[column])[column]
        gaps = values.null_count
        low, high = pc.min_max(values).as_py().values() if numbers else (None, None)
    return gaps, low, high


def _lot(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


def _class_folders(names: list[str]) -> tuple[str, ...]:
    """The classes, if every image lies in one of several folders side by side; else nothing."""
    images = [name for name in names if Path(name).suffix] or names
    folders = {name.rpartition("/")[0] for name in images}
    beside = {folder.rpartition("/")[0] for folder in folders}
    if "" in folders or len(folders) < 2 or len(beside) > 1:
        return ()
    return tuple(sorted(folder.rpartition("/")[2] for folder in folders))


def _at_size(images: np.ndarray, request: Request) -> np.ndarray:
    return decoding.resize_images(images, request.image_size or images.shape[-1])


def _cell(data: bytes | None) -> bytes:
    if data is None:
        raise decoding.Unusable("unreadable")
    return data


def _stat(name: str, file: Path) -> list:
    unreadable = [name, None, None]  # to be reported when it is read
    try:
        status = file.stat()
    except OSError:
        return unreadable
    if not os.access(file, os.R_OK):  # a change of rights alone leaves size and time as they are
        return unreadable
    return [name, status.st_size, status.st_mtime_ns]


def _below(root: Path, file: Path) -> str:
    return file.relative_to(root).as_posix()


def _schema(file: Path) -> pa.Schema:
    try:
        return pq.read_schema(file)
    except (pa.ArrowException, OSError) as error:
        raise ElfsError(f"{file} is not a readable Parquet file: {_line(error)}.") from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")
