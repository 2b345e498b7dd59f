"""Parquet files, as Hugging Face and others write them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from elfs_lib.data.base import (
    Source,
    below_folder,
    first_line,
)
from elfs_lib.data.label_files import class_name
from elfs_lib.data.shards import Shards
from elfs_lib.errors import ElfsError


@dataclass(frozen=True)
class Parquet(Shards):
    """Parquet files in the Hugging Face image layout.

    The image column is ``img`` or ``image`` (a struct with ``bytes``, or bytes), the label
    column, if there is one, ``label``, ``labels`` or ``fine_label``: names of classes, or numbers
    with or without names in the file's metadata. Files that name their classes are matched by
    name. A split whose labels are all missing or -1, Hugging Face's "none", is unlabelled.
    """

    suffix = ".parquet"
    kind = "Parquet"
    image_columns = ("img", "image")
    label_columns = ("label", "labels", "fine_label")

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

    def _check(self, file: Path) -> None:
        self._check_images(file)
        self._check_labels(file)

    def _count(self, file: Path) -> int:
        return pq.read_metadata(file).num_rows

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

    def _rows(
        self, root: Path, files: list[Path], start: int = 0
    ) -> Iterator[tuple[str, bytes | None]]:
        for file in files:
            name, row = below_folder(root, file), 0
            column = self._image_column(file)
            try:
                opened = pq.ParquetFile(file)
                groups = map(opened.metadata.row_group, range(opened.num_row_groups))
                ends = np.cumsum([group.num_rows for group in groups], dtype=int)
                first = int(np.searchsorted(ends, start, side="right"))  # that is not passed over
                row = int(ends[first - 1]) if first else 0
                for batch in opened.iter_batches(
                    _PARQUET_ROWS, [*range(first, len(ends))], columns=[column]
                ):
                    cells = batch.column(0)
                    cells = cells.field("bytes") if pa.types.is_struct(cells.type) else cells
                    for cell in cells.to_pylist():
                        if row >= start:
                            yield f"{name}#{row}", cell
                        row += 1
                start = max(0, start - row)
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


def _schema(file: Path) -> pa.Schema:
    try:
        return pq.read_schema(file)
    except (pa.ArrowException, OSError) as error:
        raise ElfsError(f"{file} is not a readable Parquet file: {first_line(error)}.") from error
