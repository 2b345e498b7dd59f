"""Shared fixtures: the pipeline on digits, cut to seconds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from elfs_lib.artifacts import Store
from elfs_lib.params import Params
from elfs_lib.stages import Run

ROOT = Path(__file__).resolve().parents[1]

TINY = {
    "dataset": "digits",
    "flip": False,
    "crop_pad": 1,
    "device": "cpu",
    "encoder": "pixels",
    "neighbors": 10,
    "temi_heads": 3,
    "temi_epochs": 4,
    "temi_batch": 256,
    "temi_learning_rate": 1e-3,
    "temi_warmup_epochs": 1,
    "temi_hidden": 32,
    "temi_bottleneck": 16,
    "proxy_recipe": "speedrun_tiny",
    "proxy_epochs": 2,
    "hard_prune_ratios": (0.0, 0.4),
    "search_steps": 4,
    "methods": ("random", "elfs", "ccs_pseudo", "ccs"),
    "budgets": (0.1, 0.3),
    "eval_recipe": "speedrun_tiny",
    "eval_steps": 4,
    "eval_seeds": (0, 1),
}


def pytest_configure() -> None:
    torch.set_num_threads(min(2, torch.get_num_threads()))


@pytest.fixture(scope="session")
def tiny_params() -> Params:
    """Parameters of a whole run that takes a few seconds."""
    return Params.make(TINY)


@pytest.fixture(scope="session")
def tiny_run(tiny_params: Params, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One run shared by the tests that only read it."""
    return Run(tiny_params, Store(tmp_path_factory.mktemp("artifacts")))
