"""What streaming the dynamics costs a training run, and what storing every logit would take."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from benchmarks.timing import Row, compare
from elfs_lib.dynamics import DynamicsRecorder
from elfs_lib.training.loop import Length, Seeds, Trained, train
from elfs_lib.training.recipes import RECIPES


def run(quick: bool) -> Iterator[Row]:
    rng = np.random.default_rng(0)
    n = 2048 if quick else 8192
    images = rng.integers(0, 256, (n, 3, 32, 32), dtype=np.uint8)
    targets = rng.integers(0, 10, n)

    def training(recorder: DynamicsRecorder | None) -> Trained:
        return train(
            images, targets, 10, RECIPES["speedrun_small"], Length(epochs=1),
            seeds=Seeds.all(0), device="cpu", recorder=recorder,
        )  # fmt: skip

    def recorder() -> DynamicsRecorder:
        return DynamicsRecorder(torch.as_tensor(targets), torch.device("cpu"))

    trained = training(None)
    yield compare(
        "training with streamed dynamics",
        "the same training without",
        lambda: training(None),
        lambda: training(recorder()),
        repeats=3 if quick else 7,
        flops=trained.flops,
        dtype=trained.dtype,
        note=f"speedrun_small, {recorder().bytes_per_image:.0f} bytes an image",
    )
