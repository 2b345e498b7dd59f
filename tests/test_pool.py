"""A pool of rows goes through neighbours, clusters, a score and a list under a limit of memory."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from types import ModuleType

import numpy as np
import pytest
from conftest import ROOT

from elfs_lib.embedding.neighbors import nearest_neighbors
from elfs_lib.errors import ElfsError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits and peaks are Linux's")
ROWS, WIDTH, LIMIT = 100_000, 128, 2 * 2**30


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT))
    module = importlib.import_module("benchmarks.pool")
    monkeypatch.setattr(module, "SIZES", ())
    return module


@pytest.mark.slow
def test_a_pool_goes_through_under_a_limit_that_bites(pool: ModuleType):
    found = pool.measure(ROWS, LIMIT, WIDTH)
    assert found["n"] == ROWS and found["selected"] == ROWS * pool.BUDGET
    assert found["stages"].keys() == {*pool.POWERS}
    assert 0 < max(own["peak_bytes"] for own in found["stages"].values()) <= LIMIT
    assert found["recall"] > 0.9
    # How a process says that it has no more memory depends on whose allocation was refused.
    with pytest.raises(ElfsError, match=f"{ROWS:,} rows did not do with {LIMIT // 2:,} bytes"):
        pool.measure(ROWS, LIMIT // 2, WIDTH)


def test_words_of_a_library_are_no_measurement(pool: ModuleType, monkeypatch):
    said = 'resizing codes to 4000 bytes\n{"n": 300}\nresizing codes to 8000 bytes\n'
    done = subprocess.CompletedProcess([], 0, said, "")
    monkeypatch.setattr(pool.subprocess, "run", lambda *args, **kwargs: done)
    assert pool.measure(300, 2**30, 8) == {"n": 300}


@pytest.mark.slow
@pytest.mark.large
def test_a_million_rows_go_through_in_four_gibibytes(pool: ModuleType):
    found = pool.measure(1_000_000, pool.LIMIT)
    check_a_million(found, pool)
    assert found["recall"] > 0.85


def test_what_was_measured_of_a_million_rows_kept_the_limit(pool: ModuleType):
    facts = json.loads(pool.FACTS.read_text())
    assert facts["limit"] == pool.LIMIT
    (found,) = (row for row in facts["rows"] if row["n"] == 1_000_000)
    check_a_million(found, pool)


def check_a_million(found: dict, pool: ModuleType) -> None:
    assert pool.LIMIT == 4 * 2**30
    assert (found["n"], found["dim"], found["selected"]) == (1_000_000, 768, 10_000)
    assert found["rows_bytes"] == 4 * 768 * 1_000_000
    assert found["stages"].keys() == {*pool.POWERS}
    peaks = [own["peak_bytes"] for own in found["stages"].values()]
    assert min(peaks) > 2**29 and max(peaks) <= pool.LIMIT  # imports alone are half a gibibyte


def test_mapped_pages_count_too(pool: ModuleType, tmp_path, monkeypatch):
    pool.write_rows(tmp_path / "rows.npy", 300, 8)
    monkeypatch.setattr("resource.setrlimit", lambda *limits: None)
    found = pool.run(tmp_path / "rows.npy", 2**40)
    assert found["selected"] == 3 and found["recall"] == 1  # few rows are compared in full
    monkeypatch.setattr(pool, "peak", lambda: 5001)
    with pytest.raises(ElfsError, match="'neighbours' took 5,001 bytes of 5,000"):
        pool.run(tmp_path / "rows.npy", 5000)


def test_recall_of_the_pool_is_that_of_an_exact_search(pool: ModuleType, monkeypatch):
    monkeypatch.setattr(pool, "BLOCK", 70)
    monkeypatch.setattr(pool, "K", 5)
    monkeypatch.setattr(pool, "ASKED", 300)
    rows = np.random.default_rng(0).normal(size=(300, 8)).astype(np.float32)
    found = nearest_neighbors(rows, 5).indices.copy()
    assert pool.recall(rows, found) == 1
    found[:, :2] = (np.arange(300)[:, None] + [0, 0]) % 300  # itself, which is no neighbour
    assert pool.recall(rows, found) == pytest.approx(0.6)


def test_rows_of_the_pool_do_not_depend_on_how_many_follow(pool: ModuleType, tmp_path):
    for count in (500, 1000):
        pool.write_rows(tmp_path / f"{count}.npy", count)
    rows = np.load(tmp_path / "1000.npy")
    assert rows.shape == (1000, pool.WIDTH) and rows.dtype == np.float32
    assert len(np.unique(rows, axis=0)) == 1000


def test_what_is_carried_on_is_the_sum_that_was_measured(pool: ModuleType):
    def seconds(stage: str, n: float) -> float:
        return 2 + 3e-5 * n + (4e-8 * n**1.5 if stage == "neighbours" else 0)

    rows = []
    for n in (1000, 10_000, 100_000):
        own = {
            stage: {"cpu_s": seconds(stage, n), "wall_s": 1.0, "peak_bytes": 2**30}
            for stage in pool.POWERS
        }
        rows.append({"n": n, "rows_bytes": 4 * n, "recall": 0.9, "stages": own})
    facts = {"rows": rows}
    table = pool.pool_table(facts, 10**8).set_index("Stage")
    names = {"neighbours": "neighbours, ivf_pq", "ELFS": "ELFS, given beta"}
    for stage in pool.POWERS:
        expected = seconds(stage, 1e8)
        assert pool.carried_on(facts, stage, 1e8) == pytest.approx(expected, rel=1e-6)
        if stage in names:
            shown = table.loc[names[stage], "core hours"].replace(",", "")
            assert float(shown) == pytest.approx(expected / 3600, abs=0.05)
    measured = pool.measured_table(facts).set_index("Stage")
    assert measured.loc["ELFS", "N = 100,000"] == "5 s, 1,024 MiB"
    assert measured.loc["recall of 50 neighbours", "N = 1,000"] == "0.900"
