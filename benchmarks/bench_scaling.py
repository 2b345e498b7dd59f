"""How each stage grows, and what ImageNet would take.

    python -m benchmarks.bench_scaling           measure (about a minute of one core) and write
    python -m benchmarks.bench_scaling --render  only the tables, from what was measured

Writes ``book/data/scaling.json`` (what was measured) and three tables of the page on scale.
Seconds are CPU seconds of one thread. The neighbours are searched among the pixels of
Fashion-MNIST; the other inputs are random, which changes no time.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator

import faiss
import numpy as np
import pandas as pd
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.book_data import DATA, Tables, write_tables
from benchmarks.machine import cpu_model
from elfs_lib.artifacts import package_versions
from elfs_lib.clustering.temi import TemiConfig, fit_temi
from elfs_lib.compute import configure_runtime
from elfs_lib.embedding.neighbors import nearest_neighbors
from elfs_lib.training.dynamics import DynamicsRecorder
from elfs_lib.training.loop import Length, Seeds, train
from elfs_lib.training.models import build_network
from elfs_lib.training.recipes import find_recipe

COMMAND = "OMP_NUM_THREADS=1 python -m benchmarks.bench_scaling"
CPU = torch.device("cpu")
K = 50

# What is assumed and not measured here. ResNet-50, ImageNet, 90 epochs in 1.14 h on 8 A100:
# https://catalog.ngc.nvidia.com/orgs/nvidia/teams/dle/resources/resnet_mxnet/performance
PUBLISHED = {"epochs": 90, "hours": 1.14, "gpus": 8}
SHARE = 0.5  # of the published rate, for code without fused kernels and with small batches a GPU
GPUS = 8
IMAGENET, POOL = 1_281_167, 100_000_000
WIDTH, CLASSES, EPOCHS, STEPS = 768, 1000, 60, 300_000


# ---------------------------------------------------------------------- what is measured


def cpu_seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def row(stage: str, n: int, dim: int, seconds: float, size: float | None = None, **more) -> dict:
    found = {"stage": stage, "n": n, "dim": dim, "seconds": round(seconds, 3)}
    if size is not None:
        found["bytes"] = int(size)
    print(found | more, flush=True)
    return found | more


def exact_neighbors(rows: np.ndarray) -> Iterator[dict]:
    for n in (2_500, 5_000, 10_000):
        part = rows[:n]
        seconds = cpu_seconds(lambda part=part: nearest_neighbors(part, K))
        yield row("neighbours, exact", n, rows.shape[1], seconds, part.nbytes + n * K * 8)


def temi() -> Iterator[dict]:
    rng = np.random.default_rng(0)
    config = TemiConfig(classes=10, heads=5, epochs=1, warmup_epochs=1)
    for n in (1_024, 2_048, 4_096, 8_192):
        rows = rng.standard_normal((n, 256), dtype=np.float32)
        near = rng.integers(0, n, (n, K))

        def fit(rows: np.ndarray = rows, near: np.ndarray = near) -> None:
            fit_temi(rows, near, config, device="cpu", precision="float32")

        seconds = cpu_seconds(fit)
        if n > 1_024:  # the first is a warm-up
            yield row("TEMI, 5 heads, one epoch", n, 256, seconds, rows.nbytes + near.nbytes)


def dynamics() -> Iterator[dict]:
    logits = torch.randn(256, 10)
    for n in (25_000, 50_000, 100_000):
        recorder = DynamicsRecorder(torch.zeros(n, dtype=torch.int64), CPU)

        def epoch(n: int = n, recorder: DynamicsRecorder = recorder) -> None:
            for positions in torch.arange(n).split(256):
                recorder.update(positions, logits[: len(positions)])
            recorder.end_epoch()

        epoch()
        yield row("dynamics, one epoch", n, 10, cpu_seconds(epoch), recorder.bytes_per_image * n)


def training() -> Iterator[dict]:
    rng, recipe = np.random.default_rng(0), find_recipe("speedrun_small")
    for n in (128, 256, 512, 1_024):
        images = rng.integers(0, 256, (n, 3, 32, 32), dtype=np.uint8)
        targets = rng.integers(0, 10, n)
        run = []

        def epoch(
            images: np.ndarray = images, targets: np.ndarray = targets, run: list = run
        ) -> None:
            length, seeds = Length(epochs=1), Seeds.all(0)
            options = {"seeds": seeds, "device": "cpu", "precision": "float32"}
            run.append(train(images, targets, 10, recipe, length, **options))

        seconds = cpu_seconds(epoch)
        if n > 128:  # the first is a warm-up
            yield row("training, one epoch", n, 32, seconds, images.nbytes, flops=run[0].flops)


def count_flops() -> dict[str, float]:
    """FLOPs an image, by torch's FlopCounterMode: forward and backward, or forward for the ViT."""
    import timm

    counts = {}
    for side in (64, 112, 224):
        sample = torch.zeros(1, 3, side, side)
        model = build_network("resnet34", sample, CLASSES, seed=0)
        counts[f"resnet34_{side}"] = flops(model, side, backward=True)
    counts["resnet50_224"] = flops(timm.create_model("resnet50"), 224, backward=True)
    vit = timm.create_model("vit_base_patch16_224", num_classes=0)
    counts["vitb16_224"] = flops(vit, 224, backward=False)
    return counts


def flops(model: torch.nn.Module, side: int, *, backward: bool) -> float:
    """Counted without computing anything, on two images of torch's meta device."""
    model, images = model.to("meta").train(), torch.zeros(2, 3, side, side, device="meta")
    with FlopCounterMode(display=False) as counter:
        out = model(images)
        if backward:
            out.sum().backward()
    return counter.get_total_flops() / 2


def measure() -> dict:
    from elfs_lib.data.datasets import load_images

    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    pixels = load_images("fashion_mnist").train[:32_000].reshape(32_000, -1).astype(np.float32)
    pixels /= np.linalg.norm(pixels, axis=1, keepdims=True)
    stages = (exact_neighbors(pixels), temi(), dynamics(), training())
    return {
        "machine": f"{cpu_model()}, 1 thread",
        "versions": package_versions(),
        "command": COMMAND,
        "seed": 0,
        "rows": [found for stage in stages for found in stage],
        "flops": count_flops(),
    }


# ---------------------------------------------------------------------- what is worked out


def growth(facts: dict, stage: str) -> tuple[float, float]:
    """Exponent and factor of seconds = factor x N^exponent, least squares on the logarithms."""
    own = [r for r in facts["rows"] if r["stage"] == stage]
    exponent, constant = np.polyfit(
        np.log([r["n"] for r in own]), np.log([r["seconds"] for r in own]), 1
    )
    return float(exponent), math.exp(constant)


def gpu_rate(facts: dict) -> float:
    """Assumed FLOP/s of one GPU in training."""
    images = PUBLISHED["epochs"] * IMAGENET
    seconds = PUBLISHED["hours"] * 3600 * PUBLISHED["gpus"]
    return SHARE * facts["flops"]["resnet50_224"] * images / seconds


def measured_table(facts: dict) -> pd.DataFrame:
    lines = []
    for found in facts["rows"]:
        lines.append(
            {
                "Stage": found["stage"],
                "N": f"{found['n']:,}",
                "D": found["dim"],
                "CPU seconds": f"{found['seconds']:.3g}",
                "Bytes an image": f"{found['bytes'] / found['n']:,.0f}",
                "Grows as": f"N^{growth(facts, found['stage'])[0]:.2f}",
            }
        )
    return pd.DataFrame(lines)


def imagenet_table(facts: dict) -> pd.DataFrame:
    """The paper's ImageNet protocol at three sizes of images."""
    rate, lines = gpu_rate(facts), []
    for side in (64, 112, 224):
        an_image = facts["flops"][f"resnet34_{side}"]
        proxy, coreset = an_image * EPOCHS * IMAGENET, an_image * STEPS * 256
        lines.append(
            {
                "Image side": side,
                "Resident images, GB": f"{IMAGENET * 3 * side**2 / 1e9:.1f}",
                "GFLOP an image": f"{an_image / 1e9:.1f}",
                "Proxy, EFLOP": f"{proxy / 1e18:.2f}",
                "Proxy, hours on 1 GPU": f"{proxy / rate / 3600:.1f}",
                f"on {GPUS}": f"{proxy / rate / 3600 / GPUS:.1f}",
                "One coreset model, hours on 1 GPU": f"{coreset / rate / 3600:.1f}",
            }
        )
    return pd.DataFrame(lines)


def assumptions_table(facts: dict) -> pd.DataFrame:
    published = gpu_rate(facts) / SHARE
    lines = [
        ("Measured on", facts["machine"]),
        ("Versions", ", ".join(f"{k} {v}" for k, v in facts["versions"].items())),
        ("Command", f"`{facts['command']}`"),
        ("Published rate of one A100", (f"{published / 1e12:.0f} TFLOP/s, from "
         f"{PUBLISHED['epochs']} epochs of ResNet-50 in {PUBLISHED['hours']} h on 8 of them at "
         f"{facts['flops']['resnet50_224'] / 1e9:.1f} GFLOP an image")),
        ("Assumed rate of one GPU", f"{gpu_rate(facts) / 1e12:.0f} TFLOP/s, {SHARE:.0%} of that"),
    ]  # fmt: skip
    return pd.DataFrame(lines, columns=["What", "Value"])


TABLES: Tables = {
    "scaling_measured.csv": measured_table,
    "scaling_imagenet.csv": imagenet_table,
    "scaling_assumed.csv": assumptions_table,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--render", action="store_true", help="only write the tables again")
    arguments = parser.parse_args()
    configure_runtime()
    file = DATA / "scaling.json"
    if not arguments.render:
        DATA.mkdir(exist_ok=True)
        file.write_text(json.dumps(measure(), indent=1) + "\n")
    facts = json.loads(file.read_text())
    for name, table in write_tables(TABLES, facts).items():
        print(f"{name}\n{table.to_string(index=False)}\n")


if __name__ == "__main__":
    main()
