"""The whole pipeline on real images: what comes out, what is shared, what the lock allows."""

from __future__ import annotations

import numpy as np
import pytest

from elfs_lib import datasets
from elfs_lib.artifacts import Store
from elfs_lib.errors import ElfsError
from elfs_lib.labels import LabelLockError
from elfs_lib.params import Params
from elfs_lib.pipeline import steps
from elfs_lib.selection import METHODS, easiness
from elfs_lib.stages import Run

LABEL_FREE = [name for name, entry in METHODS.items() if entry.label_free]


def coreset(run: Run, method: str, budget: float = 0.1) -> np.ndarray:
    return run.coreset(method, budget).table("coreset")["index"].to_numpy()


def test_every_stage_runs_and_a_second_run_does_no_work(tiny_run: Run, monkeypatch):
    plan = list(steps(tiny_run))
    for step in plan:
        step.work()
    assert len(tiny_run.results()) == 2 * 4 * 2  # budgets x methods x seeds

    again = Run(tiny_run.params, Store(tiny_run.store.root, look=True))  # look: may not build
    for step in steps(again):
        step.work()


def test_elfs_is_double_end_pruning_of_the_pseudo_scores(tiny_run: Run):
    beta = tiny_run.hard_prune_ratio(0.1)
    order = np.argsort(easiness(tiny_run.scores, "aum"), kind="stable")
    start = round(beta * len(order))
    assert (coreset(tiny_run, "elfs") == order[start : start + 144]).all()


@pytest.mark.parametrize("method", LABEL_FREE)
@pytest.mark.parametrize("labels", ["noise", "raise"])
def test_label_free_coresets_do_not_depend_on_labels(
    tiny_run: Run, tmp_path_factory, monkeypatch, method: str, labels: str
):
    def replaced(name, split, *args, **kwargs):
        if labels == "raise":
            raise AssertionError("the selection opened the labels")
        count = len(tiny_run.train_images if split == "train" else tiny_run.test_images)
        return np.random.default_rng(0).integers(0, 10, count)

    expected = coreset(tiny_run, method)
    monkeypatch.setattr(datasets, "load_labels", replaced)
    root = tmp_path_factory.getbasetemp() / f"unlabelled_{labels}"  # shared by the methods
    found = coreset(Run(tiny_run.params, Store(root)), method)
    np.testing.assert_array_equal(found, expected)


def test_manifests_say_which_labels_were_opened(tiny_run: Run):
    free = tiny_run.coreset("elfs", 0.1).manifest["labels"]
    assert free == {"policy": "never", "opened": []}
    ceiling = tiny_run.true_proxy.manifest["labels"]
    assert ceiling == {"policy": "ceiling", "opened": ["train:ceiling"]}
    evaluated = tiny_run.evaluate("random", 0.1, 0).manifest["labels"]
    assert evaluated["opened"] == ["train:evaluation", "test:evaluation"]


def test_a_label_free_stage_that_opens_labels_is_stopped(tiny_run: Run, tmp_path):
    with pytest.raises(LabelLockError, match="label-free"):
        Store(tmp_path).run(
            "cheat",
            lambda draft: tiny_run.labels.open("train", purpose="analysis"),
            version=1,
            params={},
        )
    assert not list(tmp_path.glob("cheat/[!.]*"))


def test_two_runs_are_bit_identical(tiny_run: Run, tmp_path):
    other = Run(tiny_run.params, Store(tmp_path))
    for stage in ("embeddings", "neighbors", "temi", "pseudo"):
        here, there = getattr(tiny_run, stage), getattr(other, stage)
        assert here.manifest["sha256"] == there.manifest["sha256"], stage
    for here, there in zip(tiny_run.proxies, other.proxies, strict=True):
        assert here.manifest["sha256"] == there.manifest["sha256"]
    here, there = tiny_run.coreset("elfs", 0.3), other.coreset("elfs", 0.3)
    assert here.manifest["sha256"] == there.manifest["sha256"]


@pytest.mark.parametrize("score", ["forgetting", "el2n"])
def test_another_score_changes_the_coreset_and_is_used(tiny_run: Run, score: str):
    run = Run(
        tiny_run.params.model_copy(update={"score": score, "hard_prune_ratio": 0.2}), tiny_run.store
    )
    order = np.argsort(easiness(run.scores, score), kind="stable")
    start = round(0.2 * len(order))
    assert (coreset(run, "elfs") == order[start : start + 144]).all()
    assert set(coreset(run, "elfs")) != set(
        np.argsort(easiness(run.scores, "aum"), kind="stable")[start : start + 144]
    )


@pytest.mark.parametrize(
    "change, words",
    [
        ({"neighbors": 1437}, "neighbors.*1436"),
        ({"budgets": (2000,)}, "2000"),
        ({"budget": 0.5, "hard_prune_ratio": 0.6}, "add up"),
        ({"classes": 1438}, "1437 images"),
        ({"device": "cuda:9"} , "device"),
    ],
)
def test_check_refuses_before_any_work(tiny_params: Params, tmp_path, change: dict, words: str):
    if change.get("device") == "cuda:9":
        import torch

        if torch.cuda.is_available():
            pytest.skip("this machine has CUDA, so the device may exist")
    run = Run(tiny_params.model_copy(update=change), Store(tmp_path))
    with pytest.raises(ElfsError, match=words):
        run.check()
    assert not (tmp_path / "embeddings").exists()
