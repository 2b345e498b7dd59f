"""Sets of images packed into files, each of which belongs to one split by its name."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path

from elfs_lib.data import decoding
from elfs_lib.data.base import (
    Files,
    Images,
    MissingDataset,
    Scratch,
    Source,
    below_folder,
    file_stat,
    words_and_splits,
)
from elfs_lib.data.readers import decode_splits, gather_splits, some_of
from elfs_lib.errors import ElfsError


@dataclass(frozen=True)
class Shards(Files):
    """A file, or all of one kind below a folder.

    A file's split is the word for one in its name, or else in that of the nearest folder with such
    a word (see :data:`SPLIT_WORDS`). Where there is no test, validation takes its place. Without
    any such word all of it is train.

    Attributes:
        folder: The folder below data_dir; None to read ``path``.
        num_classes: As published; None to believe the files.
        image_size: As published; None to look at the images.
    """

    folder: str | None = None
    num_classes: int | None = None
    image_size: int | None = None

    suffix = ""
    kind = ""

    def identity(self, source: Source) -> list:
        root, shards, unused = self._shards(source)
        files = [file for files in shards.values() for file in files]
        for file in files:
            self._check(file)
        # how names map to splits may change: images stored under the old meaning must not be reused
        told_apart = self.folder is None and "test" in shards
        rows = [file_stat(below_folder(root, file), file) for file in (*files, *unused)]
        return [len(shards["train"]), *rows] if told_apart else rows

    def images(self, source: Source, scratch: Scratch | None = None) -> Images:
        root, shards, unused = self._shards(source)
        counts = {
            split: sum(self._count(file) for file in files) for split, files in shards.items()
        }
        size = source.image_size or self.image_size
        if size is None:
            first = islice(self._rows(root, shards["train"]), decoding.SAMPLE)
            size = decoding.default_size(
                [io.BytesIO(data) for _, data in first if isinstance(data, bytes)]
            )
        parts = decode_splits(
            {split: partial(self._rows, root, files) for split, files in shards.items()},
            counts,
            image_size=size,
            read=_cell,
            where=root,
            scratch=scratch,
        )
        names = self._class_names(shards["train"])
        unread = [below_folder(root, file) for file in unused]
        for files in shards.values():
            unread.extend(name for file in files for name in self._unused(root, file))
        origin = f"{self.folder or root.name} from {self.kind} files"
        if self.folder and "JPEG" in parts["train"].formats:
            origin += (
                "; they hold JPEG copies, so pixels differ from those of the published images and "
                "accuracies may be lower by some points"
            )
        return gather_splits(
            parts,
            counts,
            names,
            self.num_classes or (len(names) if names else None),
            {"unused": unread},
            f"{origin}.",
            splits="" if self.folder else _told_apart(root, shards),
            keep_paths=self.folder is None,
        )

    def _check(self, file: Path) -> None:
        """Check, before any work starts, what can be told of a file's images and labels.

        Raises:
            ElfsError: if they cannot be used.
        """
        raise NotImplementedError

    def _count(self, file: Path) -> int:
        """The images in a file."""
        raise NotImplementedError

    def _unused(self, root: Path, file: Path) -> list[str]:
        """The names of images in a file that are not of the set."""
        return []

    def _rows(
        self, root: Path, files: list[Path], start: int = 0
    ) -> Iterator[tuple[str, bytes | str | None]]:
        """The name and the bytes of each image; in place of bytes that are not there, or not to
        be read, None or a key of :data:`elfs_lib.data.decoding.LEFT_OUT`.

        Args:
            start: Images of the files to pass over, whose bytes are not read.
        """
        raise NotImplementedError

    def _class_names(self, files: list[Path]) -> tuple[str, ...] | None:
        """The classes that the files name, in order; None if they do not."""
        return None

    def _shards(self, source: Source) -> tuple[Path, dict[str, list[Path]], list[Path]]:
        """The root, the files of each split, and those of no split that is used."""
        root = source.path if self.folder is None else source.data_dir / self.folder
        if root.is_file():
            return root.parent, {"train": [root]}, []
        found = sorted(root.rglob(f"*{self.suffix}")) if root.is_dir() else []
        if not found:
            what = f"has no {self.suffix} file" if root.is_dir() else "does not exist"
            raise MissingDataset(
                f"path {str(root)!r} {what}: give a {self.suffix} file, or a folder of them."
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
                f"{below_folder(root, words[named][0])} is the {named} split by its name, and no "
                f"file in {root} is named train: name the others train, or give one file as "
                "data_path."
            )
        test = next((split for split in ("test", "validation") if split in words), None)
        shards = {"train": words.pop("train")} | ({"test": words.pop(test)} if test else {})
        _check_one_set(root, [file for files in shards.values() for file in files])
        return root, shards, list(chain.from_iterable(words.values()))


def _cell(data: bytes | str | None) -> bytes:
    if not isinstance(data, bytes):
        raise decoding.Unusable(data or "unreadable")
    return data


def _split_of_file(root: Path, file: Path) -> str:
    """The split that a file's name is of, or the nearest folder's; "" where none has a word."""
    for name in (file.stem, *reversed(file.relative_to(root).parent.parts)):
        _, splits = words_and_splits(name)
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
    return "=" in folder or bool(words_and_splits(folder)[1])


def _told_apart(root: Path, shards: dict[str, list[Path]]) -> str:
    if "test" not in shards:
        return ""
    named = {split: [below_folder(root, file) for file in files] for split, files in shards.items()}
    return (
        f"Files taken for {'; '.join(f'{split}: {some_of(own)}' for split, own in named.items())}."
    )
