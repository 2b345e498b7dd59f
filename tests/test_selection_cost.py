"""Estimates of cost, and memory that grows linearly."""

from __future__ import annotations

import dataclasses
import json
import tracemalloc

import numpy as np
import pytest

from elfs_lib.cli.about import methods
from elfs_lib.errors import ElfsError
from elfs_lib.selection import METHODS, SCORES, SelectionInputs, expected_cost, select_by
from elfs_lib.selection.cost import GROWTH, growth_note, is_measured, measured_as, stages_before

ROWS = json.loads(GROWTH.read_text())["rows"]


@pytest.fixture(autouse=True)
def _quiet(monkeypatch):
    monkeypatch.setenv("ELFS_PROGRESS", "0")


def test_what_was_measured_is_there_and_the_machine_is_named():
    measured = {row["method"] for row in ROWS}
    assert measured <= {measured_as(name) for name in METHODS}
    assert {"random", "elfs", "ccs_pseudo", "badge", "k_center", "zcore"} <= measured
    assert "thread" in growth_note()


@pytest.mark.parametrize("method", [*filter(is_measured, METHODS)])
def test_estimates_meet_the_measurements(method):
    own = [row for row in ROWS if row["method"] == measured_as(method)]
    off = []
    for row in own:
        size, _ = expected_cost(method, row["n"], row["dim"], row["share"], classes=row["classes"])
        off.append(abs(np.log(size / row["bytes"])))
    assert np.median(off) < np.log(1.5)


@pytest.mark.parametrize("method", [*filter(is_measured, METHODS)])
def test_estimates_grow_with_the_task_and_memory_is_linear(method):
    small = expected_cost(method, 650_000, 768, 0.1, classes=1000)
    large = expected_cost(method, 1_300_000, 768, 0.1, classes=1000)
    assert small.seconds <= large.seconds and small.bytes < large.bytes < 2.001 * small.bytes
    assert expected_cost(method, 650_000, 768, 0.3, classes=1000).seconds >= small.seconds
    if "embeddings" in METHODS[method].needs:
        assert large.bytes > 4 * 1_300_000 * 768  # the input itself is counted
    assert large.bytes < 40e9


def test_estimates_refuse_nonsense():
    with pytest.raises(ElfsError, match="Unknown method"):
        expected_cost("nope", 10, 10, 0.1)
    with pytest.raises(ElfsError, match="budget"):
        expected_cost("random", 10, 10, 11)
    with pytest.raises(ElfsError, match="at least 1"):
        expected_cost("random", 10, 0, 0.1)


def test_a_cost_names_what_comes_before_it(capsys):
    """ELFS's selection takes no time; nearly all of its time comes before."""
    clusters = ("embeddings", "neighbours", "clustering")
    assert stages_before("random") == ()
    assert stages_before("typiclust") == ("embeddings",)
    assert stages_before("d2") == ("embeddings", "neighbours")
    assert stages_before("moderate") == clusters
    assert stages_before("ccs_pseudo") == stages_before("badge") == (*clusters, "proxy training")
    assert stages_before("elfs") == (*clusters, "proxy training", "search for beta")
    assert stages_before("aum_hardest") == ("every label", "proxy training")
    methods(n=1000)
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert all(stage in rows["elfs"] for stage in stages_before("elfs"))
    assert "clustering" not in rows["typiclust"]


def test_a_method_of_ones_own_has_no_estimate_yet(monkeypatch, capsys):
    function = lambda inputs, count, *, seed: None  # noqa: E731
    own = dataclasses.replace(METHODS["random"], name="own", function=function)
    monkeypatch.setitem(METHODS, "own", own)
    with pytest.raises(ElfsError, match="cost of 'own' was not measured"):
        expected_cost("own", 1000, 8, 0.1)
    methods(n=1000)
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("own "))
    assert "not measured" in line and "uniform sample" in line


def peak_memory(method: str, n: int) -> int:
    """Peak of what numpy allocates inside one selection of 50 images."""
    rng, classes = np.random.default_rng(0), 4
    inputs = SelectionInputs(
        n=n,
        embeddings=rng.random((n, 16), dtype=np.float32),
        neighbors=rng.integers(0, n, (n, 10), dtype=np.int32),
        similarities=rng.random((n, 10), dtype=np.float32),
        pseudo_labels=rng.integers(0, classes, n),
        probabilities=rng.dirichlet(np.ones(classes), n).astype(np.float32),
        scores={name: rng.random(n) for name in SCORES},
        classes=classes,
    )
    options = dict.fromkeys(METHODS[method].required, 0.1)
    if method == "zcore":
        options |= {"samples": 100, "neighbors": 10}
    select_by(method, inputs, 50, **options)  # what is imported late must not count
    tracemalloc.start()
    try:
        select_by(method, inputs, 50, **options)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("method", [m for m in METHODS if measured_as(m) == m])
def test_memory_never_grows_with_n_squared(method):
    # Linear growth is a factor of 4, quadratic one of 16
    assert peak_memory(method, 8000) < 6 * peak_memory(method, 2000)
