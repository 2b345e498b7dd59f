"""From which network and time on do many crops of each image beat two views of it?

    OMP_NUM_THREADS=1 python -m benchmarks.compare_encoder_methods --images 10000 --seconds 120 480
    python -m benchmarks.compare_encoder_methods --networks resnet18 --seconds 60 120 330
    python -m benchmarks.compare_encoder_methods --networks --encoders efficientnet_lite0

Trains both methods of encoder ``self_supervised`` on one subset of CIFAR-10 for about the same
time, and scores them by the vote of the 20 nearest neighbours, with true labels (this is analysis).
Each is embedded both ways: whole images, and the mean over crops; so are pretrained encoders.
Writes ``book/data/encoder_methods.json``, beside older rows of as many images and crops, and its
table.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from benchmarks.book_data import DATA, Tables, write_tables
from benchmarks.cifar10 import labelled
from benchmarks.machine import machine_name
from benchmarks.timing import clock_name, seconds
from elfs_lib.artifacts import write_text_atomic
from elfs_lib.compute import configure_runtime, resolve_device
from elfs_lib.embedding.embed import Views, embed
from elfs_lib.embedding.emp_ssl import EmpSslConfig, train_emp_ssl
from elfs_lib.embedding.encoder_file import save_encoder
from elfs_lib.embedding.neighbors import knn_accuracy, nearest_neighbors
from elfs_lib.embedding.self_supervised import SelfSupervisedConfig, TrainedEncoder, train_encoder
from elfs_lib.results.words import network_in_words

TRAINERS = {"contrastive": SelfSupervisedConfig, "emp_ssl": EmpSslConfig}
WORDS = {"contrastive": "two views", "emp_ssl": "many crops", "pretrained": "pretrained"}
KEY = ("network", "target_s", "method", "seed")
FACTS = DATA / "encoder_methods.json"
PROBE = 10  # an epoch's time is measured on one image in this many


def method_table(facts: dict) -> pd.DataFrame:
    """One row a network, time and method: the 20-NN accuracy of each way to embed, over seeds."""
    rows = pd.DataFrame(facts["rows"])
    rows = rows.sort_values("method", key=lambda names: names == "pretrained", kind="stable")
    return pd.DataFrame(
        {
            "Network": network_in_words(network),
            "Trained on": WORDS[method],
            "Epochs": f"{own['epochs'].mean():.0f}" if target else "",
            "Seconds": f"{own['seconds'].mean():.0f}" if target else "",
            "20-NN, whole images, %": f"{100 * own['whole_knn'].mean():.1f}",
            f"20-NN, mean of {facts['views']} crops, %": f"{100 * own['crops_knn'].mean():.1f}",
        }
        for (network, target, method), own in rows.groupby([*KEY[:3]], sort=False)
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
    batch = min(TRAINERS[method]().batch, len(some))  # a last, partial batch is left out
    epoch = timed(lambda: train(some, 1))[1] * (len(images) // batch) / (len(some) // batch)
    epochs = max(1, round(target / epoch))
    encoder, spent = timed(lambda: train(images, epochs))
    return encoder, epochs, spent


def timed(work: Callable[[], TrainedEncoder]) -> tuple[TrainedEncoder, float]:
    """What was made, and in how many seconds."""
    made: list[TrainedEncoder] = []
    spent = seconds(lambda: made.append(work()))
    return made[0], spent


def stored(facts: dict) -> list[dict]:
    """The rows in the file.

    Raises:
        SystemExit: if they are of other images or crops.
    """
    old = json.loads(FACTS.read_text()) if FACTS.exists() else facts | {"rows": []}
    if any(old[name] != value for name, value in facts.items()):
        raise SystemExit(f"{FACTS} is of {old['images']} images and {old['views']} crops: move it.")
    return old["rows"]


def write(facts: dict, row: dict) -> None:
    """Put a row beside the others, in place of an older one of its kind."""
    kept = [old for old in stored(facts) if any(old[name] != row[name] for name in KEY)]
    write_text_atomic(FACTS, json.dumps(facts | {"rows": [*kept, row]}, indent=1) + "\n")


def both_ways(
    images: np.ndarray, labels: np.ndarray, name: str, path: Path | None, views: int, device: str
) -> dict[str, float]:
    """20-NN accuracy in [0, 1] of an encoder, on whole images and on the mean over crops."""
    found = {}
    for way, crops in (("whole", None), ("crops", Views(views))):
        features = embed(images, name, checkpoint=path, views=crops, device=device)
        near = nearest_neighbors(features, 20, device=device)
        found[f"{way}_knn"] = round(knn_accuracy(near, labels), 4)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--networks", nargs="*", default=["convnet_tiny", "convnet_small"])
    parser.add_argument("--seconds", type=float, nargs="+", default=[120, 480], help="of training")
    parser.add_argument("--encoders", nargs="*", default=[], help="pretrained ones, by name")
    parser.add_argument("--views", type=int, default=10, help="crops in the mean")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    configure_runtime()
    data = labelled()
    chosen = np.random.default_rng(0).permutation(len(data.train))[: arguments.images]
    images, labels = data.train[chosen], data.train_labels[chosen]
    facts = {"images": len(images), "views": arguments.views}
    stored(facts)  # rows of other images are refused before hours of work
    made_by = {
        "machine": machine_name(resolve_device(arguments.device)),
        "clock": clock_name(),
        "torch": torch.__version__,
    }
    grid = (arguments.networks, arguments.seconds, TRAINERS, range(arguments.seeds))
    work = [*itertools.product(*grid)]
    work += [(name, 0, "pretrained", 0) for name in arguments.encoders]
    for network, target, method, seed in work:
        row = dict(zip(KEY, (network, target, method, seed), strict=True)) | made_by
        both = partial(both_ways, images, labels, views=arguments.views, device=arguments.device)
        if method == "pretrained":
            row |= {"epochs": 0, "seconds": 0.0} | both(network, None)
        else:
            options = {"seed": seed, "device": arguments.device}
            encoder, epochs, spent = train_for(method, images, network, target, options)
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "encoder.safetensors"
                save_encoder(encoder, path, encoder.about)
                row |= {"epochs": epochs, "seconds": round(spent, 1)}
                row |= both("self_supervised", path)
        print(row, flush=True)
        write(facts, row)
    table = write_tables(TABLES, json.loads(FACTS.read_text()))["encoder_methods.csv"]
    print(table.to_string(index=False))


if __name__ == "__main__":
    main()
