"""Embeddings that people bring as a file: each format, in the images' order or refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import TINY
from PIL import Image
from safetensors.torch import save_file

from elfs_lib.artifacts import Store
from elfs_lib.embedding.embedding_file import load_embeddings
from elfs_lib.errors import ElfsError
from elfs_lib.params import Params
from elfs_lib.photos.choosing import choose_images
from elfs_lib.photos.request import Request
from elfs_lib.stages import Run

ROWS = np.random.default_rng(0).normal(size=(12, 5)).astype(np.float32)
PATHS = [f"sub/{number}.png" for number in range(12)]


def written(folder: Path, kind: str) -> Path:
    file = folder / f"rows{Path(kind).suffix or '.' + kind}"
    lists = pa.array(ROWS.tolist(), pa.list_(pa.float32()))
    if kind == "npy":
        np.save(file, ROWS.astype(np.float64))
    elif kind == "npz":
        np.savez(file, anything=ROWS)
    elif kind == "named.npz":
        np.savez(file, embeddings=ROWS, labels=np.zeros(12), path=np.array(PATHS))
    elif kind == "safetensors":
        save_file({"features": torch.tensor(ROWS), "other": torch.zeros(3)}, file)
    elif kind == "lists.parquet":
        pq.write_table(pa.table({"path": PATHS, "embeddings": lists}), file)
    elif kind == "fixed.parquet":
        fixed = pa.FixedSizeListArray.from_arrays(pa.array(ROWS.ravel()), 5)
        pq.write_table(pa.table({"embedding": fixed}), file)
    else:
        columns = {f"d{k}": ROWS[:, k] for k in range(5)}
        pd.DataFrame({"path": PATHS, **columns}).to_parquet(file)
    return file


KINDS = ["npy", "npz", "named.npz", "safetensors", "lists.parquet", "fixed.parquet", "wide.parquet"]


@pytest.mark.parametrize("kind", KINDS)
def test_each_format_gives_the_same_rows(tmp_path: Path, kind: str):
    found = load_embeddings(written(tmp_path, kind), 12, None)
    assert found.dtype == np.float32 and found.flags.c_contiguous
    np.testing.assert_array_equal(found, ROWS)


@pytest.mark.parametrize("kind", ["named.npz", "lists.parquet", "wide.parquet"])
def test_rows_are_put_in_the_order_of_the_images(tmp_path: Path, kind: str):
    order = [7, 3, 11, 0]
    found = load_embeddings(written(tmp_path, kind), 4, [PATHS[row] for row in order])
    np.testing.assert_array_equal(found, ROWS[order])
    with pytest.raises(ElfsError, match="1 of the 2 images.*'other.png'"):
        load_embeddings(written(tmp_path, kind), 2, ["other.png", PATHS[0]])


def test_half_precision_is_read(tmp_path: Path):
    file = tmp_path / "half.safetensors"
    save_file({"x": torch.tensor(ROWS, dtype=torch.bfloat16)}, file)
    np.testing.assert_allclose(load_embeddings(file, 12, None), ROWS, rtol=2**-8)


@pytest.mark.parametrize("kind", ["npy", "npz", "safetensors", "fixed.parquet"])
def test_a_folder_has_no_order_to_match_rows_by(tmp_path: Path, kind: str):
    with pytest.raises(ElfsError, match="does not say which image each row is of"):
        load_embeddings(written(tmp_path, kind), 12, PATHS, ordered=False)
    np.testing.assert_array_equal(load_embeddings(written(tmp_path, kind), 12, PATHS), ROWS)


def spoilt(rows: np.ndarray) -> np.ndarray:
    rows = rows.copy()
    rows[4, 1] = np.nan
    return rows


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda f: np.save(f, ROWS[:7]), "7 rows for 12 images"),
        (lambda f: np.save(f, spoilt(ROWS)), "NaN or infinity, first in row 4"),
        (lambda f: np.save(f, ROWS[0]), r"shape \(5,\)"),
        (lambda f: np.save(f, np.array([{}], object), allow_pickle=True), "holds no embeddings"),
        (lambda f: Path(f).write_bytes(b"nothing"), "holds no embeddings"),
        (lambda f: np.save(f, np.array([["a"]])), "holds no embeddings"),
    ],
)
def test_files_that_do_not_fit_are_one_sentence(tmp_path: Path, write, message: str):
    file = tmp_path / "rows.npy"
    write(file)
    with pytest.raises(ElfsError, match=message):
        load_embeddings(file, 12, None)


def test_rows_of_different_lengths_and_double_paths_are_refused(tmp_path: Path):
    file = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"embeddings": [[1.0, 2.0], [1.0]]}), file)
    with pytest.raises(ElfsError, match="holds no embeddings"):
        load_embeddings(file, 2, None)
    pq.write_table(pa.table({"embeddings": [[1.0, 2.0], [1.0, 3.0]], "path": ["a", "a"]}), file)
    with pytest.raises(ElfsError, match="two rows for one path"):
        load_embeddings(file, 1, ["a"])
    with pytest.raises(ElfsError, match="which cannot be read"):
        load_embeddings(tmp_path / "gone.npy", 1, None)
    with pytest.raises(ElfsError, match="give a file .npy"):
        load_embeddings(tmp_path / "rows.pt", 1, None)


def test_a_run_on_precomputed_embeddings_is_the_run_on_those(tiny_run: Run, tmp_path: Path):
    """Pixels as a file give what pixels give, and other content another artifact."""
    rows = np.asarray(tiny_run.embeddings.array("embeddings"))
    np.save(tmp_path / "rows.npy", rows)
    own = {"encoder": "precomputed", "embeddings_path": str(tmp_path / "rows.npy")}
    run = Run(Params.make(TINY | own), tiny_run.store)
    run.check()
    np.testing.assert_array_equal(run.embeddings.array("embeddings"), rows)
    assert run.neighbors.key == tiny_run.neighbors.key  # by content
    before = run.embeddings.key
    np.save(tmp_path / "rows.npy", rows[::-1])
    again = Run(Params.make(TINY | own), tiny_run.store)
    assert again.embeddings.key != before
    with pytest.raises(ElfsError, match="training images alone"):
        again.ensure("test_embeddings")
    (tmp_path / "rows.npy").unlink()
    with pytest.raises(ElfsError, match="cannot be read"):
        Run(Params.make(TINY | own), tiny_run.store).check()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"encoder": "pixels", "embeddings_path": "x.npy"}, "is for encoder 'precomputed'"),
        ({"encoder": "precomputed+pixels"}, "joins a file"),
    ],
)
def test_parameters_that_contradict_each_other_are_refused(values: dict, message: str):
    with pytest.raises(ElfsError, match=message):
        Params.make(values)


def test_a_folder_is_matched_by_path(tmp_path: Path):
    (tmp_path / "photos").mkdir()
    rng = np.random.default_rng(0)
    paths = [f"{number:02}.png" for number in range(40)]
    for path in paths:
        image = Image.fromarray(rng.integers(0, 256, (8, 8), np.uint8))
        image.save(tmp_path / "photos" / path)
    rows = rng.normal(size=(40, 6)).astype(np.float32)
    np.savez(tmp_path / "rows.npz", embeddings=rows[::-1], path=np.array(paths[::-1]))
    own = {"encoder": "precomputed", "embeddings_path": str(tmp_path / "rows.npz")}
    own |= {"temi_heads": 2, "temi_epochs": 2}
    request = Request(2, 5, overrides=own, method="max_herding", compare=False)
    choice = choose_images(tmp_path / "photos", request, Store(tmp_path / "store"))
    found = np.asarray(choice.run.embeddings.array("embeddings"))
    np.testing.assert_array_equal(found, rows[[int(path[:2]) for path in choice.run.paths]])
