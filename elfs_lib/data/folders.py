"""Folders of image files, a person's own and ImageNet's."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np

from elfs_lib.data import decoding
from elfs_lib.data.base import (
    SPLITS,
    Files,
    Images,
    MissingDataset,
    Scratch,
    Source,
    below_folder,
    file_stat,
    words_and_splits,
)
from elfs_lib.data.readers import decode_splits, gather_splits, in_brackets, some_of
from elfs_lib.errors import ElfsError


@dataclass(frozen=True)
class Folder(Files):
    """A directory of image files, in a random order that depends on their names alone.

    Sorted paths list one class after another where classes are folders. Equal scores are taken in
    the order of the images, so class membership would leak into a selection although no label was
    opened. The name of a file decides before its folder's: files sorted into folders keep their
    order.

    Two folders side by side whose names have a word for train and for test are the splits, whatever
    else their names share (``Train`` and ``Test``, ``cifar_train`` and ``cifar_valid``; see
    :data:`SPLIT_WORDS`); anything beside them is reported as ``unused``. Where there is no test,
    validation takes its place. Otherwise everything is train. A split is labelled if each of its
    images lies in one of at least two folders side by side: their names are the classes. Any other
    layout, flat or nested, is read without labels.
    """

    def root(self, source: Source) -> Path:
        root = source.path
        if not root.is_dir():
            what = "is a file" if root.is_file() else "does not exist"
            raise MissingDataset(f"path {str(root)!r} {what}: give a directory with images.")
        return root

    def identity(self, source: Source) -> list:
        root = self.root(source)
        splits, report = self._listing(source)
        files = [name for names in splits.values() for name in names]
        if not files:
            raise ElfsError(
                f"path {str(root)!r} has no image files{in_brackets(report)}: give a directory "
                "with JPEG, PNG or WebP files."
            )
        # Images stored before ``unread`` existed list those files in their own report.
        rows = ["unread apart", *(file_stat(name, root / name) for name in files)]
        return [len(splits["train"]), *rows] if "test" in splits else rows

    def images(self, source: Source, scratch: Scratch | None = None) -> Images:
        root = self.root(source)
        splits, _ = self._listing(source)
        counts = {split: len(names) for split, names in splits.items()}
        size = source.image_size or self._default_size(root, splits["train"])

        def files(names: list[str], start: int) -> Iterator[tuple[str, Path]]:
            return ((name, root / name) for name in islice(names, start, None))

        parts = decode_splits(
            {split: partial(files, names) for split, names in splits.items()},
            counts,
            image_size=size,
            read=decoding.read_file,
            where=root,
            scratch=scratch,
        )
        names = self._class_names(source, splits)
        images = gather_splits(
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

    def files(self, source: Source, split: str) -> list[Path]:
        """The files of a split, in the order of its rows, damaged ones among them."""
        root = self.root(source)
        return [root / name for name in self._listing(source)[0].get(split, ())]

    def unread(self, source: Source) -> dict[str, list]:
        """kind -> names of files that were not taken for images (hidden, of another kind,
        unused...); changes to them leave the images as they are."""
        return self._listing(source)[1]

    def labels(self, source: Source, split: str) -> np.ndarray:
        splits, _ = self._listing(source)
        number = {name: i for i, name in enumerate(_class_folders(splits["train"]))}
        strangers = sorted(set(_class_folders(splits[split])) - set(number))
        if strangers:
            raise ElfsError(
                f"path {str(self.root(source))!r} has {split} images of class "
                f"{strangers[0]!r}, which train lacks: give both splits the same class folders."
            )
        folders = [name.rpartition("/")[0].rpartition("/")[2] for name in splits[split]]
        return np.array([number.get(folder, -1) for folder in folders])

    def labelled(self, source: Source) -> tuple[str, ...]:
        splits, _ = self._listing(source)
        return tuple(split for split, names in splits.items() if _class_folders(names))

    def _default_size(self, root: Path, names: list[str]) -> int:
        step = max(1, len(names) // decoding.SAMPLE)
        return decoding.default_size([root / name for name in names[::step]])

    def _class_names(self, source: Source, splits: dict[str, list[str]]) -> tuple[str, ...] | None:
        return _class_folders(splits["train"]) or None

    def _listing(self, source: Source) -> tuple[dict[str, list[str]], dict[str, list]]:
        root = self.root(source)
        files, report = decoding.list_files(root)
        files.sort(key=lambda path: (_hash_of(path.rpartition("/")[2]), _hash_of(path)))
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

    def root(self, source: Source) -> Path:
        root = source.data_dir / "imagenet"
        if not all((root / name).is_dir() for name in ("train", "val")):
            raise MissingDataset(str(root))
        return root

    def identity(self, source: Source) -> list:
        # Adding or removing an image changes its folder's time: no need to visit a million. Writing
        # into one does not.
        root = self.root(source)
        folders = [
            folder for name in ("train", "val") for folder in sorted((root / name).iterdir())
        ]
        # The order of the files is not part of it, so it is named: another order needs other rows.
        return [
            "order of hashed names",
            *(file_stat(below_folder(root, folder), folder) for folder in folders),
        ]

    def labelled(self, source: Source) -> tuple[str, ...]:
        self.root(source)
        return SPLITS  # by its layout: no need to visit a million

    def images(self, source: Source, scratch: Scratch | None = None) -> Images:
        return replace(
            super().images(source, scratch),
            source="ImageNet-1K from its files, resized and cropped.",
        )

    def _default_size(self, root: Path, names: list[str]) -> int:
        return 64

    def _class_names(self, source: Source, splits: dict[str, list[str]]) -> tuple[str, ...] | None:
        wnids = _class_folders(splits["train"])
        root = self.root(source)
        if not (root / "meta.bin").is_file():
            return wnids or None
        from torchvision.datasets.imagenet import load_meta_file

        words = load_meta_file(root)[0]
        return tuple(words[wnid][0] for wnid in wnids)


def _split_folders(root: Path, files: list[str]) -> tuple[dict[str, str], str]:
    """Which split the files in a folder are of, folder -> ``train`` or ``test``, empty if there
    are no two splits; and the sentence that says so."""
    outermost: dict[str, tuple[str, str]] = {}  # folder -> the folder of its split, and which
    for folder in {name.rpartition("/")[0] for name in files}:
        parts = folder.split("/")
        for depth, part in enumerate(parts, 1):
            _, splits = words_and_splits(part)
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
    if (
        len(
            {
                (top.rpartition("/")[0], *words_and_splits(top.rpartition("/")[2])[0])
                for top in every
            }
        )
        > 1
    ):
        raise ElfsError(
            f"The folders {' and '.join(map(repr, every))} in {root} may be splits or not: name "
            "one train and the one beside it test, and use these names for no other folder."
        )
    listed = "; ".join(f"{split}: {some_of(own)}" for split, own in tops.items())
    return {folder: split for folder, (_, split) in used.items()}, f"Folders taken for {listed}."


def _hash_of(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


def _class_folders(names: list[str]) -> tuple[str, ...]:
    """The classes, if every image lies in one of several folders side by side; else nothing."""
    images = [name for name in names if Path(name).suffix] or names
    folders = {name.rpartition("/")[0] for name in images}
    beside = {folder.rpartition("/")[0] for folder in folders}
    if "" in folders or len(folders) < 2 or len(beside) > 1:
        return ()
    return tuple(sorted(folder.rpartition("/")[2] for folder in folders))
