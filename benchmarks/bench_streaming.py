"""Training from disk against training from memory: speed, and memory as the images grow.

    OMP_NUM_THREADS=1 python -m benchmarks.bench_streaming

Writes ``book/data/streaming.json`` and the table of the page on performance.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

from benchmarks.book_data import DATA, Tables, write_tables
from benchmarks.machine import machine_name
from benchmarks.timing import clock_name, compare, seconds
from elfs_lib.compute import configure_runtime

FACTS = DATA / "streaming.json"
SIZES = (20, 100, 400)  # MiB of images
PHOTOS = 320
IMAGENET = 1_281_167 + 50_000
PEAK = """
import resource, sys
import numpy as np
from elfs_lib.compute import configure_runtime
from elfs_lib.training.loop import Length, Seeds, train
from elfs_lib.training.recipes import find_recipe

configure_runtime()
images = np.load(sys.argv[1], mmap_mode="r", allow_pickle=False)
train(
    images, np.arange(len(images)) % 10, 10, find_recipe("speedrun_tiny"), Length(steps=30),
    seeds=Seeds.all(0), device="cpu", precision="float32", loader=sys.argv[2],
)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
if sys.platform == "linux":  # where that counts the process that started this one, too
    peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(peak)
"""


def write_images(file: Path, mib: int, side: int = 32) -> Path:
    """Random images of so many MiB, uint8 [N, 3, side, side], as a file that can be mapped."""
    shape = (mib * 2**20 // (3 * side**2), 3, side, side)
    images = np.lib.format.open_memmap(file, "w+", np.uint8, shape)
    images[:] = np.random.default_rng(0).integers(0, 256, shape[1:], dtype=np.uint8)
    images.flush()
    return file


def peak(file: Path, loader: str) -> float:
    """Largest memory of a process that trains 30 steps, MiB."""
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(file), loader],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
    )
    return int(done.stdout) / (2**20 if sys.platform == "darwin" else 1024)


def write_photos(folder: Path, count: int) -> None:
    """JPEG files of 500 x 375 px, smooth with some grain: about 100 KB each, as ImageNet's."""
    rng = np.random.default_rng(0)
    (folder / "photos").mkdir(parents=True)
    grain = rng.normal(0, 12, (375, 500, 3)).astype(np.float32)
    for number in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8))
        photo = np.asarray(coarse.resize((500, 375), Image.Resampling.BICUBIC), dtype=np.float32)
        image = Image.fromarray((photo + grain).clip(0, 255).astype(np.uint8))
        image.save(folder / "photos" / f"{number}.jpg", quality=88)


def imagenet(folder: Path) -> dict:
    """Seconds an image: of decoding to 256 px, and of random resized crops to 224 px."""
    from elfs_lib.data.decoding import decode_images, read_file
    from elfs_lib.training.loader import StreamedLoader

    write_photos(folder, PHOTOS)
    files = sorted((folder / "photos").iterdir())
    found = {}

    def decode() -> None:
        found["images"] = decode_images(
            [(file.name, file) for file in files], len(files), image_size=256, read=read_file,
            desc="decoding", file=folder / "decoded.npy",
        ).images  # fmt: skip

    decoding = seconds(decode)
    found["images"].flush()
    stored = np.load(folder / "decoded.npy", mmap_mode="r", allow_pickle=False)
    options = {"batch": 64, "crop": "resized", "side": 224, "flip": True}
    loader = StreamedLoader(stored, None, torch.device("cpu"), **options)
    crops = seconds(lambda: [None for _ in loader.epoch(0)])
    return {
        "n": PHOTOS,
        "kb": sum(file.stat().st_size for file in files) / 1000 / PHOTOS,
        "decode_s": decoding / PHOTOS,
        "crop_s": crops / PHOTOS,
    }


def measure(folder: Path) -> dict:
    from elfs_lib.training.loop import Length, Seeds, train
    from elfs_lib.training.recipes import find_recipe

    configure_runtime()
    memory = []
    for mib in SIZES:
        file = write_images(folder / "images.npy", mib)
        count = len(np.load(file, mmap_mode="r", allow_pickle=False))
        peaks = {loader: peak(file, loader) for loader in ("resident", "streamed")}
        memory.append({"n": count, "mib": mib, **peaks})
    images = np.load(file, mmap_mode="r", allow_pickle=False)
    targets = np.arange(len(images)) % 10
    speed = []
    for recipe in ("speedrun_tiny", "speedrun_small"):

        def training(loader: str, recipe: str = recipe) -> None:
            train(
                images, targets, 10, find_recipe(recipe), Length(steps=40), seeds=Seeds.all(0),
                device="cpu", loader=loader,
            )  # fmt: skip

        row = compare(
            f"40 steps of {recipe}, images streamed",
            "resident",
            lambda: training("resident"),
            lambda: training("streamed"),
            repeats=5,
        )
        speed.append(vars(row))
    return {
        "device": machine_name(torch.device("cpu")),
        "clock": clock_name(),
        "torch": torch.__version__,
        "memory": memory,
        "speed": speed,
        "imagenet": imagenet(folder),
    }


def streaming_table(facts: dict) -> pd.DataFrame:
    """Memory as the images grow, and the ratio of the speeds."""
    lines = [
        {
            "What": f"peak memory, N = {row['n']:,} images of 32 px ({row['mib']} MiB)",
            "Resident": f"{row['resident']:,.0f} MiB",
            "Streamed": f"{row['streamed']:,.0f} MiB",
            "Ratio": f"{row['resident'] / row['streamed']:.2f}",
        }
        for row in facts["memory"]
    ]
    for row in facts["speed"]:
        spread = f"{row['ratio_min']:.2f} to {row['ratio_max']:.2f}"
        lines.append(
            {
                "What": row["stage"].replace(", images streamed", f", {facts['clock']}"),
                "Resident": f"{row['baseline_s']:.2f} s",
                "Streamed": f"{row['ours_s']:.2f} s",
                "Ratio": f"{row['ratio_median']:.2f} ({spread})",
            }
        )
    return pd.DataFrame(lines)


def imagenet_table(facts: dict) -> pd.DataFrame:
    """What was measured on some photos, and the same for all of ImageNet's."""
    row = facts["imagenet"]
    lines = {
        f"decoding to 256 px, files of {row['kb']:.0f} KB": row["decode_s"],
        "reading back, random resized crops of 224 px, on the CPU": row["crop_s"],
    }
    return pd.DataFrame(
        {
            "What": list(lines),
            f"ms an image (N = {row['n']:,})": [f"{1000 * s:.2f}" for s in lines.values()],
            f"{IMAGENET:,} images, hours of one core": [
                f"{s * IMAGENET / 3600:.1f}" for s in lines.values()
            ],
            "of 16 cores, if they do 16 times as much": [
                f"{s * IMAGENET / 3600 / 16:.2f}" for s in lines.values()
            ],
        }
    )


TABLES: Tables = {
    "performance_streaming.csv": streaming_table,
    "performance_imagenet.csv": imagenet_table,
}


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        facts = measure(Path(folder))
    FACTS.write_text(json.dumps(facts, indent=1) + "\n")
    for table in write_tables(TABLES, facts).values():
        print(table.to_string(index=False))


if __name__ == "__main__":
    main()
