"""What every reader gives and takes, and the words that name splits."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from elfs_lib.data import decoding
from elfs_lib.errors import ElfsError, is_whole

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
class Scratch:
    """Where image files are decoded to disk.

    Attributes:
        folder: Files are decoded into it.
        identity: Of the images, so that decoding resumes only with the images it began with.
    """

    folder: Path
    identity: str


@dataclass(frozen=True)
class Source:
    """A dataset and where it is: the one value that tells readers what to read.

    Attributes:
        dataset: A key of :data:`elfs_lib.data.datasets.DATASETS`.
        data_dir: Where datasets live; None: :func:`default_data_dir`.
        image_size: Side in pixels of the stored squares, 4 to 1024. None: as published; 64 for
            ``imagenet``; for people's own data see :func:`elfs_lib.data.decoding.default_size`.
            N images take 3 x N x image_size^2 bytes.
        path: For ``parquet``, ``webdataset`` and ``image_folder``: the file or folder.

    Raises:
        ElfsError: if ``image_size`` is out of range.
    """

    dataset: str
    data_dir: str | Path | None = None
    image_size: int | None = None
    path: str | Path | None = None

    def __post_init__(self) -> None:
        size, (low, high) = self.image_size, SIZE_RANGE
        if size is not None and not is_whole(size, low, high):
            raise ElfsError(
                f"image_size is {size!r}: give a whole number from {low} to {high}, or leave it "
                "out."
            )
        settled = {
            "data_dir": Path(self.data_dir or default_data_dir()).expanduser(),
            "image_size": None if size is None else int(size),
            "path": Path(self.path).expanduser() if self.path else None,
        }
        for name, value in settled.items():
            object.__setattr__(self, name, value)


def default_data_dir() -> Path:
    """``$ELFS_DATA_DIR``, else ``~/.cache/elfs/data``."""
    return Path(os.environ.get("ELFS_DATA_DIR") or "~/.cache/elfs/data").expanduser()


class Reader(Protocol):
    """One kind of source."""

    def identity(self, source: Source) -> list:
        """What identifies the images without reading a label or an image: JSON values.

        Raises:
            MissingDataset: if the data is not there.
            ElfsError: if it is there but cannot be what it should be.
        """

    def images(self, source: Source, scratch: Scratch | None = None) -> Images:
        """Read the images, never a label.

        Args:
            scratch: Where image files are decoded to disk; None: they are decoded in memory.
        """

    def labels(self, source: Source, split: str) -> np.ndarray:
        """Read the labels of a split, int, one for each row of the source."""

    def labelled(self, source: Source) -> tuple[str, ...]:
        """The splits that have labels, told without reading one."""

    def left_out(self, source: Source) -> dict[str, list[int]]:
        """As in :class:`Images`; found by decoding all images where they may be damaged."""


class MissingDataset(ElfsError):
    """The dataset is not where it was looked for."""


class PublishedArrays:
    """What readers of published array files share: two labelled splits, no damaged image."""

    def labelled(self, source: Source) -> tuple[str, ...]:
        return SPLITS

    def left_out(self, source: Source) -> dict[str, list[int]]:
        return {}


class Files:
    """What all readers of encoded image files share."""

    def left_out(self, source: Source) -> dict[str, list[int]]:
        return self.images(replace(source, image_size=SIZE_RANGE[0])).left_out


def words_and_splits(name: str) -> tuple[list[str], set[str]]:
    """The words of a name in lower case, without those that name splits, and the splits."""
    words = [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name)]
    others = [word for word in words if word not in SPLIT_WORDS]
    return others, {SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS}


def at_stored_size(images: np.ndarray, source: Source) -> np.ndarray:
    return decoding.resize_images(images, source.image_size or images.shape[-1])


def file_stat(name: str, file: Path) -> list:
    unreadable = [name, None, None]  # to be reported when it is read
    try:
        status = file.stat()
    except OSError:
        return unreadable
    if not os.access(file, os.R_OK):  # permissions do not show in size and time
        return unreadable
    return [name, status.st_size, status.st_mtime_ns]


def below_folder(root: Path, file: Path) -> str:
    return file.relative_to(root).as_posix()


def first_line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")
