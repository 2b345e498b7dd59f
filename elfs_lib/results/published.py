"""Published reference values, kept apart from anything this project measures.

``elfs_figure5.csv`` holds test accuracies in percent, read off Figure 5 of "ELFS: Label-Free
Coreset Selection with Proxy Training Dynamics" (Zheng et al., ICLR 2025, arXiv:2406.04273) by
pixel, so each is within about 0.3 points. A few cells that the figure hides are left out:
ImageNet supervised and prototypicality, CIFAR-100 prototypicality, ImageNet D2 at 90%. They were
reached with the paper's protocol (DINO or SwAV embeddings, ResNet-18 or ResNet-34, full training
lengths): they are reference lines to look at, not numbers to subtract from ours.
"""

from __future__ import annotations

from importlib import resources

import pandas as pd

SOURCE = "published, Zheng et al. 2025"


def published_accuracy(dataset: str) -> pd.DataFrame:
    """Return the paper's curves for a dataset.

    Args:
        dataset: A dataset name of this project, for example ``"cifar10"``.

    Returns:
        Frame with ``method``, ``pruning_rate`` in (0, 1), ``budget`` = 1 - pruning rate, and
        ``accuracy`` in percent; empty if the paper shows no curve for the dataset.
    """
    with resources.files("elfs_lib").joinpath("results/elfs_figure5.csv").open() as file:
        table = pd.read_csv(file)
    # The figure's ImageNet is the ILSVRC-2012 set that this project calls "imagenet".
    table["dataset"] = table["dataset"].replace("imagenet1k", "imagenet")
    rows = table[table["dataset"] == dataset].rename(columns={"test_accuracy": "accuracy"})
    rows = rows.assign(budget=(1 - rows["pruning_rate"]).round(6))
    return rows[["method", "pruning_rate", "budget", "accuracy"]].reset_index(drop=True)
