"""Readers: each knows one kind of source, and keeps its images and its labels apart.

All implement :class:`Reader`; :mod:`elfs_lib.data.datasets` registers them by name.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from elfs_lib.data import decoding
from elfs_lib.data.base import (
    SPLITS,
    Images,
    MissingDataset,
    PublishedArrays,
    Reader,
    Scratch,
    Source,
    at_stored_size,
    file_stat,
    first_line,
)
from elfs_lib.data.growing import first_channel
from elfs_lib.errors import ElfsError

FASHION_PACKAGE_DIR = Path("/usr/share/datasets/fashion-mnist")  # Debian: dataset-fashion-mnist


class Digits(PublishedArrays):
    """1,797 grey images of 8x8 pixels from scikit-learn, values 0..16 scaled to 0..255.

    scikit-learn defines no split: train is the first 1,437 (80%) of the permutation that
    ``numpy.random.default_rng(0)`` gives, test the last 360; both keep that order.
    """

    def identity(self, source: Source) -> list:
        return [version("scikit-learn"), *(self._rows(split).tolist() for split in SPLITS)]

    def images(self, source: Source, scratch: Scratch | None = None) -> Images:
        from sklearn.datasets import load_digits

        grey = np.rint(load_digits().images[:, None] * (255 / 16)).astype(np.uint8)
        return Images(
            *(at_stored_size(grey[self._rows(split)], source) for split in SPLITS),
            class_names=tuple("0123456789"),
            num_classes=10,
            source="The digits of scikit-learn, split 80/20 by a fixed permutation.",
        )

    def labels(self, source: Source, split: str) -> np.ndarray:
        from sklearn.datasets import load_digits

        return load_digits().target[self._rows(split)]

    @staticmethod
    def _rows(split: str) -> np.ndarray:
        order = np.random.default_rng(0).permutation(1797)
        return order[:1437] if split == "train" else order[1437:]


class FashionMnist(PublishedArrays):
    """IDX files, from the Debian package or in torchvision's layout."""

    classes = (
        "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
        "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
    )  # fmt: skip

    def identity(self, source: Source) -> list:
        for split in SPLITS:
            self._file(source, split, "labels-idx1")
        files = [self._file(source, split, "images-idx3") for split in SPLITS]
        return [file_stat(file.name, file) for file in files]

    def images(self, source: Source, scratch: Scratch | None = None) -> Images:
        files = [self._file(source, split, "images-idx3") for split in SPLITS]
        return Images(
            *(at_stored_size(_read_idx(file)[:, None], source) for file in files),
            class_names=self.classes,
            num_classes=10,
            source="Fashion-MNIST as published.",
        )

    def labels(self, source: Source, split: str) -> np.ndarray:
        return _read_idx(self._file(source, split, "labels-idx1"))

    @staticmethod
    def _file(source: Source, split: str, kind: str) -> Path:
        name = f"{'t10k' if split == 'test' else 'train'}-{kind}-ubyte"
        raw = source.data_dir / "FashionMNIST" / "raw"
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
class Torchvision(PublishedArrays):
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

    def identity(self, source: Source) -> list:
        missing = [name for name in self.files if not (source.data_dir / name).is_file()]
        if missing:
            raise MissingDataset(missing[0])
        return [file_stat(name, source.data_dir / name) for name in self.files]

    def images(self, source: Source, scratch: Scratch | None = None) -> Images:
        names, arrays = None, []
        for split in SPLITS:
            dataset = self._open(source, split)
            data = np.asarray(dataset.data, np.uint8)
            data = data.transpose(0, 3, 1, 2) if self.channels_last else data
            arrays.append(at_stored_size(np.ascontiguousarray(data), source))
            names = tuple(getattr(dataset, "classes", ())) or None
        return Images(*arrays, names, self.num_classes, source="As published, by torchvision.")

    def labels(self, source: Source, split: str) -> np.ndarray:
        return np.asarray(getattr(self._open(source, split), self.labels_at))

    def _open(self, source: Source, split: str) -> Any:
        try:
            return self.build(source.data_dir, split)
        except (RuntimeError, OSError, ValueError) as error:
            raise ElfsError(
                f"torchvision cannot read {self.files[0]} and its neighbours in "
                f"{source.data_dir} ({first_line(error)}): delete them and fetch them again."
            ) from error


@dataclass(frozen=True)
class FirstOf:
    """The first of several readers whose data is there."""

    readers: tuple[Reader, ...]

    def _pick(self, source: Source) -> Reader:
        for reader in self.readers[:-1]:
            try:
                reader.identity(source)
            except MissingDataset:
                continue
            return reader
        return self.readers[-1]

    def identity(self, source: Source) -> list:
        return self._pick(source).identity(source)

    def images(self, source: Source, scratch: Scratch | None = None) -> Images:
        return self._pick(source).images(source, scratch)

    def labels(self, source: Source, split: str) -> np.ndarray:
        return self._pick(source).labels(source, split)

    def labelled(self, source: Source) -> tuple[str, ...]:
        return self._pick(source).labelled(source)

    def left_out(self, source: Source) -> dict[str, list[int]]:
        return self._pick(source).left_out(source)


def decode_splits(
    items: dict[str, Callable[[int], Iterable[tuple[str, Any]]]],
    counts: dict[str, int],
    *,
    image_size: int,
    read: Callable[[Any], bytes],
    where: Path,
    scratch: Scratch | None,
) -> dict[str, decoding.Decoded]:
    if scratch is None:
        decoding.check_memory(sum(counts.values()), image_size)
    else:
        scratch.folder.mkdir(parents=True, exist_ok=True)
        decoding.check_disk(sum(counts.values()) * 3 * image_size**2, scratch.folder)
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
            file=scratch and scratch.folder / f"{split}.npy",
            identity=scratch.identity if scratch else "",
        )
        if not part.names:
            raise ElfsError(
                f"{where} has no usable {split} image{in_brackets(part.report)}: give JPEG, PNG or "
                "WebP images."
            )
        parts[split] = part
    return parts


def gather_splits(
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
            arrays[split] = first_channel(images)
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


def in_brackets(report: dict[str, list]) -> str:
    """`` (3 damaged, 1 hidden)``, or nothing."""
    found = ", ".join(f"{len(names)} {kind.replace('_', ' ')}" for kind, names in report.items())
    return f" ({found})" if found else ""


def some_of(names: list[str], most: int = 3) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
