"""The same bits from two processes; what is equal, and what only close, with other threads.

Runs are whole commands in processes of their own, in float32 (see :mod:`warm`). The book's page
"How to run it" states what is asserted here.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from warm import Warm, contents

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The store of a run with one thread."""
    elfs = Warm(tmp_path_factory.mktemp("one"))
    store = elfs.folder / "store"
    ended = elfs(store)
    assert ended.code == 0, ended.err
    yield store
    elfs.close()


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warm]:
    """Another interpreter, which computes with two threads."""
    elfs = Warm(tmp_path_factory.mktemp("two"), threads=2)
    yield elfs
    elfs.close()


def again(one: Path, two: Warm, stage: str) -> list[tuple[Path, Path]]:
    """Compute a stage anew, with two threads, from the inputs that one thread made.

    Returns:
        Each file of the stage, as one thread and as two threads made it.
    """
    store = two.folder / "stores" / stage
    shutil.copytree(one, store)
    shutil.rmtree(store / stage)
    ended = two(store)
    assert ended.code == 0, ended.err
    files = [path for path in (one / stage).glob("*/*") if path.name != "manifest.json"]
    return [(file, store / file.relative_to(one)) for file in files]


@pytest.mark.parametrize("environment", [{}, {"ELFS_DETERMINISTIC": "1"}], ids=["plain", "held"])
def test_two_processes_give_the_same_bits(one: Path, tmp_path: Path, environment: dict):
    elfs = Warm(tmp_path, PYTHONHASHSEED="1", **environment)
    ended = elfs(tmp_path / "store")
    elfs.close()
    assert ended.code == 0, ended.err
    assert contents(tmp_path / "store") == contents(one)


@pytest.mark.parametrize("stage", ["images", "embeddings", "neighbors", "pseudo", "coreset"])
def test_the_same_bits_with_two_threads(one: Path, two: Warm, stage: str):
    for first, second in again(one, two, stage):
        assert first.read_bytes() == second.read_bytes(), first.name


CLOSE = {  # array -> absolute tolerance
    "temi": {"loss_curves": 1e-4, "head_losses": 1e-4},
    "consensus": {"probabilities": 1e-4},
    "proxy": {"losses": 1e-4, "mean_margins": 1e-4},
    "true_proxy": {"losses": 1e-4, "mean_margins": 1e-4},
    "search": {"scores": 10.0},  # percent of 24 held-out images: two of them
}


@pytest.mark.parametrize("stage", CLOSE)
def test_close_with_two_threads(one: Path, two: Warm, stage: str):
    files = {first.name: (first, second) for first, second in again(one, two, stage)}
    for name, tolerance in CLOSE[stage].items():
        first, second = map(np.load, files[f"{name}.npy"])
        np.testing.assert_allclose(first, second, rtol=0, atol=tolerance)
    if "scores.parquet" in files:
        first, second = (pd.read_parquet(file)["aum"] for file in files["scores.parquet"])
        np.testing.assert_allclose(first, second, rtol=0, atol=1e-3)


def test_evaluations_agree_with_two_threads(one: Path, two: Warm):
    for first, second in again(one, two, "evaluation"):
        if first.suffix == ".npy":
            assert (np.load(first) == np.load(second)).mean() > 0.9
