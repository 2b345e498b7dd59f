"""CIFAR-10 with its true labels, for measurements that are analysis."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from elfs_lib.data.datasets import label_oracle, load_images


@dataclass(frozen=True)
class Labelled:
    """Images uint8 [N, 3, 32, 32] and labels int64 [N] of both splits."""

    train: np.ndarray
    train_labels: np.ndarray
    test: np.ndarray
    test_labels: np.ndarray


def labelled() -> Labelled:
    """Both splits, from where ``ELFS_DATA_DIR`` says."""
    images = load_images("cifar10")
    labels = label_oracle("cifar10", left_out=images.left_out)
    train, test = (labels.open(split, purpose="analysis") for split in ("train", "test"))
    return Labelled(images.train, train, images.test, test)
