"""Embedding end to end against the bare forward pass: the ratio is the share of its throughput.

EfficientNet-Lite0 with random weights (they cost the same): on 32 px images enlarged to 128 px, and
on JPEG photos of 640 x 427, which the decoder crops and shrinks to the network's own 224 px.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import sklearn.datasets
import timm
import torch

from benchmarks.timing import Row, compare
from elfs_lib import embedding
from elfs_lib.compute import autocast, resolve_device, resolve_precision
from elfs_lib.decoding import decode_images
from elfs_lib.self_supervised import PreparedNetwork


def run(quick: bool) -> Iterator[Row]:
    device = resolve_device("cpu")
    dtype = resolve_precision("auto", device)
    repeats = 3 if quick else 5
    model = timm.create_model("tf_efficientnet_lite0", num_classes=0)
    config = timm.data.resolve_model_data_config(model)
    prepared = {
        side: PreparedNetwork(model.eval(), embedding._transform(side, config))
        for side in (128, 224)
    }
    embedders = {
        side: embedding.Embedder("bench", network, device, dtype)
        for side, network in prepared.items()
    }
    model, batch = embedders[128].network, embedders[128].batch
    note = f"EfficientNet-Lite0, batches of {batch}, {str(dtype).removeprefix('torch.')}"

    @torch.inference_mode()
    def bare(ready: torch.Tensor, count: int) -> None:
        for start in range(0, count, batch):
            with autocast(device, dtype):
                model(ready[: min(batch, count - start)])

    def ready(side: int) -> torch.Tensor:
        ready = torch.randn(batch, 3, side, side, device=device)
        return ready.contiguous(memory_format=torch.channels_last)

    count = 64 if quick else 256
    images = np.random.default_rng(0).integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)
    inputs = ready(128)
    yield compare(
        f"embedding {count} images, 32 to 128 px",
        "the bare forward pass",
        lambda: bare(inputs, count),
        lambda: embedders[128](images),
        repeats=repeats,
        note=note,
    )
    photos = sorted((Path(sklearn.datasets.__file__).parent / "images").glob("*.jpg"))
    files = [photo.read_bytes() for photo in photos] * (8 if quick else 32)

    def decode_and_embed() -> None:
        items = ((f"{i}.jpg", file) for i, file in enumerate(files))
        decoded = decode_images(
            items, len(files), image_size=224, read=lambda file: file, desc="bench"
        )
        embedders[224](decoded.images)

    inputs_224 = ready(224)
    yield compare(
        f"embedding {len(files)} JPEG photos, 640 x 427 to 224 px",
        "the bare forward pass",
        lambda: bare(inputs_224, len(files)),
        decode_and_embed,
        repeats=repeats,
        note=f"{note}, {torch.get_num_threads()} decoding threads",
    )
