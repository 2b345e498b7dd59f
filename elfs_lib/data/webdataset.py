"""WebDataset shards: tar files in which the files of one name are a sample."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count, groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np

from elfs_lib.data import decoding
from elfs_lib.data.base import Source, below_folder, first_line
from elfs_lib.data.shards import Shards
from elfs_lib.errors import ElfsError

LABEL = ".cls"  # a whole number, as text


@dataclass(frozen=True)
class WebDataset(Shards):
    """Tar files in the WebDataset layout: ``0001.jpg``, ``0001.cls``, ``0002.jpg``...

    Members that follow each other and have one name up to the first dot are a sample. Its image is
    the first member with the suffix of one, ``.cls`` is its label, and whatever else there is
    (``.txt``, ``.json``, names that begin with a dot) is not read; further images are reported.
    Samples without an image are no part of the set; a label without one is refused. A split is
    labelled if the first sample of each of its files is. Nothing is unpacked.
    """

    suffix = ".tar"
    kind = "WebDataset"

    def labels(self, source: Source, split: str) -> np.ndarray:
        _, shards, _ = self._shards(source)
        return np.array([label for file in shards[split] for label in _labels(file)], np.int64)

    def labelled(self, source: Source) -> tuple[str, ...]:
        _, shards, _ = self._shards(source)
        return tuple(split for split, files in shards.items() if all(map(_has_labels, files)))

    def _check(self, file: Path) -> None:
        with _opened(file) as archive:
            if next(_samples(archive), None) is None:
                raise ElfsError(f"{file} has no image: give tar files of JPEG, PNG or WebP files.")

    def _count(self, file: Path) -> int:
        with _opened(file) as archive:
            return sum(1 for _ in _samples(archive))

    def _unused(self, root: Path, file: Path) -> list[str]:
        with _opened(file) as archive:
            return [
                _name(root, file, image) for sample in _samples(archive) for image in sample.further
            ]

    def _rows(
        self, root: Path, files: list[Path], start: int = 0
    ) -> Iterator[tuple[str, bytes | str]]:
        place = count()
        for file in files:
            with _opened(file) as archive:
                for image, *_ in _samples(archive):
                    if next(place) < start:
                        continue
                    large = image.size > decoding.MAX_BYTES
                    data = "too_large" if large else _read(archive, image)
                    yield _name(root, file, image), data


class _Sample(NamedTuple):
    """The members with the image and the label, if there is one, and those with further images."""

    image: tarfile.TarInfo
    label: tarfile.TarInfo | None
    further: list[tarfile.TarInfo]


@contextmanager
def _opened(file: Path) -> Iterator[tarfile.TarFile]:
    try:
        with tarfile.open(file, "r:") as archive:
            yield archive
    except (tarfile.TarError, OSError) as error:
        raise ElfsError(
            f"{file} is not a whole tar file: fetch it again, or unpack it if it is compressed "
            f"({first_line(error)})."
        ) from error


def _samples(archive: tarfile.TarFile) -> Iterator[_Sample]:
    """The samples that have an image.

    Raises:
        ElfsError: if there is a label without an image: the files of a sample are apart.
    """

    def is_read(member: tarfile.TarInfo) -> bool:  # "._a.png" is what macOS adds to "a.png"
        return member.isreg() and not member.name.rpartition("/")[2].startswith(".")

    def key(member: tarfile.TarInfo) -> str:
        folder, _, name = member.name.rpartition("/")
        return f"{folder}/{name.partition('.')[0]}"

    for _, members in groupby(filter(is_read, archive), key):
        images, label = [], None
        for member in members:
            suffix = Path(member.name).suffix.lower()
            if suffix in decoding.IMAGE_SUFFIXES:
                images.append(member)
            elif suffix == LABEL:
                label = label or member
        if images:
            yield _Sample(images[0], label, images[1:])
        elif label:
            raise ElfsError(
                f"{archive.name} has {decoding.printable(label.name)} and no image beside it: sort "
                "its files by name, so that those of a sample follow each other."
            )


def _name(root: Path, file: Path, member: tarfile.TarInfo) -> str:
    return f"{below_folder(root, file)}#{decoding.printable(member.name)}"


def _read(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    with archive.extractfile(member) as file:
        return file.read()


def _has_labels(file: Path) -> bool:
    with _opened(file) as archive:
        return next(_samples(archive)).label is not None


def _labels(file: Path) -> Iterator[int]:
    with _opened(file) as archive:
        for image, label, _ in _samples(archive):
            if label is None or label.size > 100:
                what = "no label" if label is None else "a label of more than 100 bytes"
                raise ElfsError(
                    f"{file} has {what} for {image.name}: give each image one, or none."
                )
            text = _read(archive, label).decode("utf-8", "replace").strip()
            if not (text.isascii() and text.isdecimal()):
                raise ElfsError(
                    f"{file} has the label {text!r} for {image.name}: labels must be whole "
                    "numbers from 0."
                )
            yield int(text)
