"""Embedding end to end against the bare forward pass: the ratio is the share of its throughput.

EfficientNet-Lite0 with random weights (they cost the same) on 32 px images enlarged to 128 px.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import timm
import torch

from benchmarks.timing import Row, compare
from elfs_lib import encoders
from elfs_lib.compute import autocast, resolve_device, resolve_precision

SIDE = 128


def run(quick: bool) -> Iterator[Row]:
    device = resolve_device("auto")
    dtype = resolve_precision("auto", device)
    count = 64 if quick else 256
    images = np.random.default_rng(0).integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)
    model = timm.create_model("tf_efficientnet_lite0", num_classes=0)
    config = timm.data.resolve_model_data_config(model)
    model = encoders._for_inference(model.eval(), device)
    batch = encoders._default_batch(device)
    ready = torch.randn(batch, 3, SIDE, SIDE, device=device)
    ready = ready.contiguous(memory_format=torch.channels_last)

    @torch.inference_mode()
    def bare() -> None:
        for start in range(0, count, batch):
            with autocast(device, dtype):
                model(ready[: min(batch, count - start)])

    def ours() -> None:
        transform = encoders._transform(SIDE, config)
        encoders._forward_all(images, model, transform, batch, device, dtype, "bench")

    yield compare(
        f"embedding {count} images, 32 to {SIDE} px",
        "the bare forward pass",
        bare,
        ours,
        repeats=3 if quick else 5,
        note=f"EfficientNet-Lite0, batches of {batch}, {str(dtype).removeprefix('torch.')}",
    )
