"""From which network and time on do many crops of each image beat two views of it?

    OMP_NUM_THREADS=1 python -m benchmarks.compare_encoder_methods --images 10000 --seconds 100 200
    python -m benchmarks.compare_encoder_methods --networks resnet18 --seconds 60 120 330

Trains both methods of encoder ``self_supervised`` on one subset of CIFAR-10 for about the same
time, and scores them by the vote of the 20 nearest neighbours, with true labels (this is analysis).
Each is embedded both ways: whole images, and the mean over crops. Writes
``book/data/encoder_methods.json`` and its table.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from benchmarks.book_data import DATA, Tables, write_tables
from benchmarks.cifar10 import labelled
from benchmarks.machine import machine_name
from benchmarks.timing import clock_name, seconds
from elfs_lib.compute import configure_runtime, resolve_device
from elfs_lib.embedding.embed import Views, embed
from elfs_lib.embedding.emp_ssl import EmpSslConfig, train_emp_ssl
from elfs_lib.embedding.encoder_file import save_encoder
from elfs_lib.embedding.neighbors import knn_accuracy, nearest_neighbors
from elfs_lib.embedding.self_supervised import SelfSupervisedConfig, TrainedEncoder, train_encoder

TRAINERS = {"contrastive": SelfSupervisedConfig, "emp_ssl": EmpSslConfig}
WORDS = {"contrastive": "two views", "emp_ssl": "many crops"}
PROBE = 10  # an epoch's time is measured on one image in this many


def method_table(facts: dict) -> pd.DataFrame:
    """One row a network, time and method: the 20-NN accuracy of each way to embed, over seeds."""
    rows = pd.DataFrame(facts["rows"])
    alike = rows.groupby(["network", "target_s", "method"], sort=False)
    return pd.DataFrame(
        {
            "Network": network,
            "Method": WORDS[method],
            "Epochs": f"{own['epochs'].mean():.0f}",
            "Seconds": f"{own['seconds'].mean():.0f}",
            "20-NN, whole images, %": f"{100 * own['whole_knn'].mean():.1f}",
            f"20-NN, mean of {facts['views']} crops, %": f"{100 * own['crops_knn'].mean():.1f}",
        }
        for (network, _, method), own in alike
    )


TABLES: Tables = {"encoder_methods.csv": method_table}


def train_for(
    method: str, images: np.ndarray, network: str, target: float, options: dict
) -> tuple[TrainedEncoder, int, float]:
    """Train for about ``target`` seconds; return the encoder, its epochs and its seconds."""

    def train(images: np.ndarray, epochs: int) -> TrainedEncoder:
        config = TRAINERS[method](epochs=epochs, network=network)
        start = train_emp_ssl if method == "emp_ssl" else train_encoder
        return start(images, config, **options)

    some = images[:: PROBE if len(images) >= PROBE * TRAINERS[method]().batch else 1]
    train(some, 1)  # the first one warms up
    epoch = timed(lambda: train(some, 1))[1] * len(images) / len(some)
    epochs = max(1, round(target / epoch))
    encoder, spent = timed(lambda: train(images, epochs))
    return encoder, epochs, spent


def timed(work: Callable[[], TrainedEncoder]) -> tuple[TrainedEncoder, float]:
    """What was made, and in how many seconds."""
    made: list[TrainedEncoder] = []
    spent = seconds(lambda: made.append(work()))
    return made[0], spent


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--networks", nargs="+", default=["convnet_tiny", "convnet_small"])
    parser.add_argument("--seconds", type=float, nargs="+", default=[100, 200], help="of training")
    parser.add_argument("--views", type=int, default=10, help="crops in the mean")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    configure_runtime()
    data = labelled()
    chosen = np.random.default_rng(0).permutation(len(data.train))[: arguments.images]
    images, labels = data.train[chosen], data.train_labels[chosen]
    rows: list[dict] = []
    facts = {
        "images": len(images),
        "views": arguments.views,
        "machine": machine_name(resolve_device(arguments.device)),
        "clock": clock_name(),
        "torch": torch.__version__,
        "rows": rows,
    }
    grid = (arguments.networks, arguments.seconds, TRAINERS, range(arguments.seeds))
    for network, target, method, seed in itertools.product(*grid):
        options = {"seed": seed, "device": arguments.device}
        encoder, epochs, spent = train_for(method, images, network, target, options)
        row = {"network": network, "target_s": target, "method": method, "seed": seed}
        row |= {"epochs": epochs, "seconds": round(spent, 1)}
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "encoder.safetensors"
            save_encoder(encoder, path, encoder.about)
            for way, views in (("whole", None), ("crops", Views(arguments.views))):
                features = embed(
                    images, "self_supervised", checkpoint=path, views=views, device=arguments.device
                )
                near = nearest_neighbors(features, 20, device=arguments.device)
                row[f"{way}_knn"] = round(knn_accuracy(near, labels), 4)
        rows.append(row)
        print(row, flush=True)
        # after each training, so that an interrupted run keeps what it measured
        (DATA / "encoder_methods.json").write_text(json.dumps(facts, indent=1) + "\n")
        table = write_tables(TABLES, facts)["encoder_methods.csv"]
    print(table.to_string(index=False))


if __name__ == "__main__":
    main()
