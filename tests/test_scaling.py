"""The page on scale shows what its committed measurements say, and nothing typed by hand."""

from __future__ import annotations

import json

import pytest
from conftest import ROOT


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks import bench_scaling

    return bench_scaling


def test_the_tables_are_those_of_the_measurements(bench, tmp_path):
    facts = json.loads((bench.DATA / "scaling.json").read_text())
    for name, make in bench.TABLES.items():
        make(facts).to_csv(tmp_path / name, index=False)
        assert (tmp_path / name).read_text() == (bench.DATA / name).read_text(), name
        assert f":file: data/{name}" in (ROOT / "book" / "scaling.md").read_text()


def test_growth_finds_the_exponent(bench):
    rows = [{"stage": "x", "n": n, "seconds": 3 * n**1.5} for n in (10, 100, 1000)]
    exponent, factor = bench.growth({"rows": rows}, "x")
    assert exponent == pytest.approx(1.5) and factor == pytest.approx(3)


def test_hours_are_flops_by_rate(bench):
    flops = {"resnet50_224": 25e9, **{f"resnet34_{side}": 1e9 for side in (64, 112, 224)}}
    facts = {"flops": flops}
    published = 25e9 * 90 * 1_281_167 / (1.14 * 3600 * 8)
    assert bench.gpu_rate(facts) == pytest.approx(published / 2)
    table = bench.imagenet_table(facts).set_index("Image side")
    hours = 1e9 * 60 * 1_281_167 / bench.gpu_rate(facts) / 3600
    assert float(table.loc[112, "Proxy, hours on 1 GPU"]) == pytest.approx(hours, abs=0.05)
    assert table.loc[224, "Resident images, GB"] == "192.9"


def test_counted_flops_are_the_published_ones(bench):
    """ResNet-34 at 224 px: 3.6 G multiply-adds, twice that in FLOPs, and backward twice forward."""
    import torch

    from elfs_lib.training.models import build_network

    model = build_network("resnet34", torch.zeros(1, 3, 224, 224), 1000, seed=0)
    assert bench.flops(model, 224, backward=False) == pytest.approx(2 * 3.66e9, rel=0.02)
    # the first layer has no gradient to pass on
    assert bench.flops(model, 224, backward=True) == pytest.approx(3 * 2 * 3.66e9, rel=0.05)
