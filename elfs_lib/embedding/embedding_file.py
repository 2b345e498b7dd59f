"""Embeddings that people already have, as a file: what encoder ``precomputed`` reads."""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from safetensors import SafetensorError

from elfs_lib.errors import ElfsError

PRECOMPUTED = "precomputed"  # the encoder's name
NAMES = ("embeddings", "embedding", "features")  # of what holds the rows, where there are several
PATHS = ("path", "paths")  # of what holds the images' paths
SUFFIXES = (".npy", ".npz", ".parquet", ".safetensors")
_HOW = "np.savez('embeddings.npz', embeddings=E, path=paths)"


def check_file(path: str | Path | None) -> Path:
    """The file of embeddings, if it is there and of a kind that is read.

    Raises:
        ElfsError: if not.
    """
    if path is None:
        raise ElfsError(f"Encoder {PRECOMPUTED!r} needs 'embeddings_path': the file to read.")
    file = Path(path).expanduser()
    if file.suffix not in SUFFIXES:
        raise ElfsError(f"embeddings_path is {file}: give a file {', '.join(SUFFIXES)}.")
    if not file.is_file() or not os.access(file, os.R_OK):
        raise ElfsError(f"embeddings_path is {file}, which cannot be read: correct it.")
    return file


def file_fingerprint(path: str | Path | None) -> str:
    """SHA-256 of the file's bytes, as 64 hexadecimal digits."""
    with check_file(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_embeddings(
    path: str | Path | None, n: int, paths: Sequence[str] | None, *, ordered: bool = True
) -> np.ndarray:
    """Read embeddings and put them in the order of the images.

    Args:
        path: ``.npy``; ``.npz``, ``.parquet`` and ``.safetensors`` with one array or one named
            ``embeddings``. In ``.npz`` and ``.parquet`` a column ``path`` gives each row's image,
            and rows of other images are left out; else the rows are in the images' order.
        n: Number of images.
        paths: What the images are called; None where they have no paths.
        ordered: Whether the images have an order of their own; a folder has none, so that the file
            must have paths.

    Returns:
        float32 [n, D].

    Raises:
        ElfsError: one sentence: the file is damaged, has other images than these, or holds a row
            that is not finite.
    """
    file = check_file(path)
    try:
        rows, names = _READ[file.suffix](file)
        rows = np.asarray(rows, np.float32)
    except (OSError, ValueError, KeyError, pa.ArrowException, SafetensorError, zipfile.BadZipFile):
        raise ElfsError(
            f"{file} holds no embeddings that can be read: give one array of numbers [N, D], or "
            f"name it {NAMES[0]}."
        ) from None
    if rows.ndim != 2 or not rows.shape[1]:
        raise ElfsError(f"{file} holds an array of shape {rows.shape}: give embeddings [N, D].")
    if names is not None and len(names) != len(rows):
        raise ElfsError(f"{file} has {len(names):,} paths for {len(rows):,} rows: give one each.")
    if names is not None and paths is not None:
        rows = rows[_places(file, names, paths)]
    elif not ordered:
        raise ElfsError(
            f"{file} does not say which image each row is of, and a folder has no order of its "
            f"own: write them with their paths, relative to the folder, as {_HOW}."
        )
    if len(rows) != n:
        raise ElfsError(
            f"{file} has {len(rows):,} rows for {n:,} images: give one for each, in their order."
        )
    bad = ~np.isfinite(rows).all(axis=1)
    if bad.any():
        raise ElfsError(
            f"{file} holds NaN or infinity, first in row {int(bad.argmax())}: correct it."
        )
    return np.ascontiguousarray(rows)


def _places(file: Path, names: Sequence[str], paths: Sequence[str]) -> np.ndarray:
    place = {name.removeprefix("./"): row for row, name in enumerate(names)}
    if len(place) < len(names):
        raise ElfsError(f"{file} has two rows for one path: keep one of each.")
    missing = [path for path in paths if path not in place]
    if missing:
        raise ElfsError(
            f"{file} has no row for {len(missing):,} of the {len(paths):,} images, such as "
            f"{missing[0]!r}: its paths must be relative to the folder."
        )
    return np.array([place[path] for path in paths], int)


Read = tuple[np.ndarray, list[str] | None]


def _only(names: Sequence[str]) -> str:
    """The one that holds the rows."""
    named = [name for name in NAMES if name in names]
    if not named and len(names) != 1:
        raise KeyError
    return named[0] if named else names[0]


def _npy(file: Path) -> Read:
    return np.load(file, allow_pickle=False), None


def _npz(file: Path) -> Read:
    with np.load(file, allow_pickle=False) as arrays:
        key = next((name for name in PATHS if name in arrays), None)
        rows = arrays[_only([name for name in arrays if name != key])]
        return rows, None if key is None else [str(name) for name in arrays[key].tolist()]


def _safetensors(file: Path) -> Read:
    from safetensors.torch import load_file  # which reads bfloat16

    tensors = load_file(file)
    return tensors[_only(list(tensors))].float().numpy(), None


def _parquet(file: Path) -> Read:
    table = pq.read_table(file)
    key = next((name for name in PATHS if name in table.column_names), None)
    names = None if key is None else [str(name) for name in table[key].to_pylist()]
    others = [name for name in table.column_names if name != key]
    kinds = [table.schema.field(name).type for name in others]
    if kinds and all(pa.types.is_floating(kind) for kind in kinds):  # a column a dimension
        return np.stack([table[name].to_numpy() for name in others], axis=1), names
    column = table[_only(others)].combine_chunks()
    if len(pc.unique(pc.list_value_length(column))) > 1:  # a gap has none, too
        raise ValueError
    return column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1), names


_READ = {".npy": _npy, ".npz": _npz, ".parquet": _parquet, ".safetensors": _safetensors}
