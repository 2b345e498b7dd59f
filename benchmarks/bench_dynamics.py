"""What streaming the dynamics costs a training run, and what storing every logit would take."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from benchmarks.timing import Row, compare
from elfs_lib.training.dynamics import DynamicsRecorder
from elfs_lib.training.loop import Length, Seeds, Trained, train
from elfs_lib.training.recipes import RECIPES


def run(quick: bool) -> Iterator[Row]:
    rng = np.random.default_rng(0)
    n = 2048 if quick else 4096
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
        repeats=3 if quick else 5,
        flops=trained.flops,
        dtype=trained.dtype,
        note=f"speedrun_small, {recorder().bytes_per_image:.0f} bytes an image",
    )


def more(quick: bool) -> list[dict[str, object]]:
    """Bytes that the recorder holds, targets and curves included, beside float16 logits."""
    found = []
    for n, epochs, classes in (
        (1000, 10, 10), (10_000, 10, 10), (50_000, 10, 10), (1000, 50, 10), (1000, 10, 1000),
    ):  # fmt: skip
        rng = torch.Generator().manual_seed(0)
        recorder = DynamicsRecorder(torch.zeros(n, dtype=torch.int64), torch.device("cpu"))
        for _ in range(1 if quick else epochs):
            recorder.update(torch.arange(n), torch.randn(n, classes, generator=rng))
            recorder.end_epoch()
        held = [*vars(recorder).values(), *recorder._curves]
        size = sum(t.element_size() * t.numel() for t in held if torch.is_tensor(t))
        found.append({"n": n, "epochs": recorder.epochs, "classes": classes, "bytes": size,
                      "every_logit_bytes": 2 * n * recorder.epochs * classes})  # fmt: skip
    return found
