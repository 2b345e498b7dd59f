"""The page on performance shows what its committed measurements say."""

from __future__ import annotations

import json

import pytest
from conftest import ROOT


@pytest.fixture
def page(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks import page

    return page


def test_the_tables_are_those_of_the_measurements(page, tmp_path):
    facts = json.loads((page.DATA / "bench.json").read_text())
    for name, make in page.TABLES.items():
        make(facts).to_csv(tmp_path / name, index=False, lineterminator="\n")
        assert (tmp_path / name).read_text() == (page.DATA / name).read_text(), name
        assert f":file: data/{name}" in (ROOT / "book" / "performance.md").read_text()


def test_a_ratio_below_its_target_is_not_reached(page):
    row = {"stage": "exact top-50", "baseline": "faiss", "baseline_s": 29.0, "ours_s": 10.0,
           "ratio_median": 2.9, "ratio_min": 2.8, "ratio_max": 3.1, "repeats": 3,
           "share_of_peak": 0.5}  # fmt: skip
    table = page.ratio_table({"rows": [row, {**row, "ratio_median": 3.0}]})
    assert table["Reached"].tolist() == ["no", "yes"]
    assert page.target("TEMI step, PCA 128") == 5 and page.target("TEMI step, D 768") == 2.5
