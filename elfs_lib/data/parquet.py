"""Parquet files, as Hugging Face and others write them."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from elfs_lib.data import decoding
from elfs_lib.data.base import (
    Files,
    Images,
    MissingDataset,
    Scratch,
    Source,
    below_folder,
    file_stat,
    first_line,
    words_and_splits,
)
from elfs_lib.data.label_files import class_name
from elfs_lib.data.readers import decode_splits, gather_splits, some_of
from elfs_lib.errors import ElfsError


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
        num_classes: As published; None to take it from the files' metadata.
        image_size: As published; None to decide from the images.
    """

    folder: str | None = None
    num_classes: int | None = None
    image_size: int | None = None

    image_columns = ("img", "image")
    label_columns = ("label", "labels", "fine_label")

    def identity(self, source: Source) -> list:
        root, shards, unused = self._shards(source)
        files = [file for files in shards.values() for file in files]
        for file in files:
            self._check_images(file)
            self._check_labels(file)
        # how names map to splits may change: images stored under the old meaning must not be reused
        told_apart = self.folder is None and "test" in shards
        rows = [file_stat(below_folder(root, file), file) for file in (*files, *unused)]
        return [len(shards["train"]), *rows] if told_apart else rows

    def images(self, source: Source, scratch: Scratch | None = None) -> Images:
        root, shards, unused = self._shards(source)
        counts = {
            split: sum(pq.read_metadata(file).num_rows for file in files)
            for split, files in shards.items()
        }
        size = source.image_size or self.image_size
        if size is None:
            first = islice(self._rows(root, shards["train"]), decoding.SAMPLE)
            size = decoding.default_size([io.BytesIO(data) for _, data in first if data])
        parts = decode_splits(
            {split: self._rows(root, files) for split, files in shards.items()},
            counts,
            image_size=size,
            read=_cell,
            where=root,
            scratch=scratch,
        )
        names = self._class_names(shards["train"])
        origin = f"{self.folder or root.name} from Parquet files"
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
            {"unused": [below_folder(root, file) for file in unused]},
            f"{origin}.",
            splits="" if self.folder else _told_apart(root, shards),
            keep_paths=self.folder is None,
        )

    def labels(self, source: Source, split: str) -> np.ndarray:
        _, shards, _ = self._shards(source)
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

    def labelled(self, source: Source) -> tuple[str, ...]:
        _, shards, _ = self._shards(source)
        return tuple(
            split
            for split, files in shards.items()
            if all(self._label_column(file) is not None for file in files)
        )

    def _shards(self, source: Source) -> tuple[Path, dict[str, list[Path]], list[Path]]:
        """The root, the files of each split, and those of no split that is used."""
        root = source.path if self.folder is None else source.data_dir / self.folder
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
                f"{below_folder(root, words[named][0])} is the {named} split by its name, and no "
                f"file in {root} is named train: name the others train, or give one file as "
                "data_path."
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
                f"{file} has a label {wrong} in column {name}, which is not a class: correct it, "
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
            name, row = below_folder(root, file), 0
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
                    f"{file} is damaged after row {row}: fetch it again ({first_line(error)})."
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


# --- shared by the readers -------------------------------------------------------------------

_PARQUET_ROWS = 256  # rows in memory at once: photographs of several megabytes among them


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


def _cell(data: bytes | None) -> bytes:
    if data is None:
        raise decoding.Unusable("unreadable")
    return data


def _schema(file: Path) -> pa.Schema:
    try:
        return pq.read_schema(file)
    except (pa.ArrowException, OSError) as error:
        raise ElfsError(f"{file} is not a readable Parquet file: {first_line(error)}.") from error
