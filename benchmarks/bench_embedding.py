"""Embedding end to end against the bare forward pass: the ratio is the share of its throughput.

Two networks with random weights, which cost the same. EfficientNet-Lite0, the light one that ships
with a package: on 32 px images enlarged to 128 px, and on JPEG photos of 640 x 427, which the
decoder crops and shrinks to the network's own 224 px. ViT-B/16, the size of the paper's DINO
encoder: on the same photos.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import sklearn.datasets
import timm
import torch

from benchmarks.timing import Row, compare
from elfs_lib.compute import autocast, resolve_device, resolve_precision
from elfs_lib.data.decoding import decode_images
from elfs_lib.embedding import embed as embedding
from elfs_lib.embedding.networks import input_transform
from elfs_lib.embedding.self_supervised import PreparedNetwork

LIGHT = ("EfficientNet-Lite0", "tf_efficientnet_lite0")
PAPERS = ("ViT-B/16", "vit_base_patch16_224")


def run(quick: bool) -> Iterator[Row]:
    device = resolve_device("cpu")
    dtype = resolve_precision("auto", device)

    def compared(
        kind: tuple[str, str], side: int, count: int, what: str, source: Callable[[], np.ndarray]
    ) -> Row:
        """Embed the ``count`` images that ``source`` gives, at ``side`` px."""
        title, architecture = kind
        model = timm.create_model(architecture, num_classes=0).eval()
        config = timm.data.resolve_model_data_config(model)
        network = PreparedNetwork(model, input_transform(side, config))
        embedder = embedding.Embedder("bench", network, device, dtype)
        model, batch = embedder.network, embedder.batch
        ready = torch.randn(min(batch, count), 3, side, side, device=device)
        ready = ready.contiguous(memory_format=torch.channels_last)

        @torch.inference_mode()
        def bare() -> None:
            for start in range(0, count, batch):
                with autocast(device, dtype):
                    model(ready[: min(batch, count - start)])

        return compare(
            f"embedding {count} {what} to {side} px, {title}",
            "the bare forward pass",
            bare,
            lambda: embedder(source()),
            repeats=3 if quick else 5,
            note=f"batches of {batch}, {str(dtype).removeprefix('torch.')}",
        )

    count = 64 if quick else 256
    small = np.random.default_rng(0).integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)
    yield compared(LIGHT, 128, count, "images, 32", lambda: small)

    photos = sorted((Path(sklearn.datasets.__file__).parent / "images").glob("*.jpg"))
    files = [photo.read_bytes() for photo in photos] * (4 if quick else 32)

    def decoded() -> np.ndarray:
        items = ((f"{i}.jpg", file) for i, file in enumerate(files))
        return decode_images(
            lambda start: items, len(files), image_size=224, read=lambda file: file, desc="bench"
        ).images

    for kind in (LIGHT, PAPERS):
        yield compared(kind, 224, len(files), "JPEG photos, 640 x 427", decoded)
