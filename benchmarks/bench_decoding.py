"""From JPEG files to training images: how fast they are decoded, and what that makes of ImageNet.

    OMP_NUM_THREADS=1 python -m benchmarks.bench_decoding

Makes 20,000 synthetic photos of 500 x 375 px in a temporary folder (1.6 GB, and 4 GB for what is
decoded), decodes them as ``elfs`` does, and writes ``book/data/decoding.json`` and the table of the
page on scale. Takes about five minutes of one core.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import PIL
import torch
from PIL import Image

from benchmarks.book_data import DATA, Tables, write_tables
from benchmarks.machine import machine_name

FACTS = DATA / "decoding.json"
IMAGENET = 1_281_167 + 50_000
CORES = 16
SIDE, CROPPED = 256, 1000


def write_photos(folder: Path, count: int) -> None:
    """JPEG files of 500 x 375 px, smooth with some grain, about 80 KB each; all different."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    grain = rng.normal(0, 12, (375, 500, 3)).astype(np.float32)
    for number in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8))
        photo = np.asarray(coarse.resize((500, 375), Image.Resampling.BICUBIC), dtype=np.float32)
        image = Image.fromarray((photo + grain).clip(0, 255).astype(np.uint8))
        image.save(folder / f"{number}.jpg", quality=88)


def measure(folder: Path, count: int) -> dict:
    from elfs_lib.data.base import Source
    from elfs_lib.data.datasets import load_images
    from elfs_lib.training.loader import StreamedLoader

    write_photos(folder / "photos", count)
    read = sum(file.stat().st_size for file in (folder / "photos").iterdir())
    wall, cpu = time.perf_counter(), time.process_time()
    source = Source("image_folder", path=folder / "photos", image_size=SIDE)
    images = load_images(source, scratch=folder / "decoded").train
    decoding = {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}
    options = {"batch": 64, "crop": "resized", "side": 224, "flip": True}
    some = np.arange(min(CROPPED, count))
    loader = StreamedLoader(images, some, torch.device("cpu"), **options)
    cpu = time.process_time()
    for _ in loader.epoch(0):
        pass
    return {
        "device": machine_name(torch.device("cpu")),
        "pillow": PIL.__version__,
        "n": len(images),
        "read_bytes": read,
        "written_bytes": images.nbytes,
        "decoding": decoding,
        "cropped": len(some),
        "crop_cpu_s": time.process_time() - cpu,
    }


def decoding_table(facts: dict) -> pd.DataFrame:
    """What was measured on some photos, and the same for all of ImageNet's."""
    n, spent = facts["n"], facts["decoding"]
    kb = facts["read_bytes"] / 1000 / n
    rows = [
        (f"decoding to {SIDE} px, files of {kb:.0f} KB", n, spent["cpu_s"] / n),
        (
            "reading back, random resized crops of 224 px, on the CPU",
            facts["cropped"],
            facts["crop_cpu_s"] / facts["cropped"],
        ),
    ]
    return pd.DataFrame(
        {
            "What": [what for what, _, _ in rows],
            "N": [f"{count:,}" for _, count, _ in rows],
            "CPU ms an image": [f"{1000 * each:.2f}" for _, _, each in rows],
            "files/s, wall": [f"{n / spent['wall_s']:,.0f}", ""],
            "MB read": [f"{facts['read_bytes'] / 1e6:,.0f}", ""],
            "MB written": [f"{facts['written_bytes'] / 1e6:,.0f}", ""],
            f"{IMAGENET:,} images, GB written": [
                f"{facts['written_bytes'] / n * IMAGENET / 1e9:,.0f}",
                "",
            ],
            "hours of one core": [f"{each * IMAGENET / 3600:.1f}" for _, _, each in rows],
            f"of {CORES} cores": [f"{each * IMAGENET / 3600 / CORES:.2f}" for _, _, each in rows],
        }
    )


TABLES: Tables = {"scaling_decoding.csv": decoding_table}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=20_000, help="photos to make")
    with tempfile.TemporaryDirectory() as folder:
        facts = measure(Path(folder), parser.parse_args().count)
    FACTS.write_text(json.dumps(facts, indent=1) + "\n")
    for table in write_tables(TABLES, facts).values():
        print(table.to_string(index=False))


if __name__ == "__main__":
    main()
