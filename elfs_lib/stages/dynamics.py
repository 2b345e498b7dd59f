"""The stages that train a proxy and record how: on pseudo-labels, and on true ones."""

from __future__ import annotations

from typing import Any

import numpy as np

from elfs_lib.artifacts import Draft
from elfs_lib.stages.clustering import PROXY, PROXY_LATER
from elfs_lib.stages.graph import Given, stage
from elfs_lib.training.recipes import find_recipe

_AT_ONCE = 1000  # images whose probabilities are held: as many as the model sees at a time


def _dynamics(
    given: Given, draft: Draft, targets: np.ndarray, seed: int, weights: np.ndarray | None = None
) -> None:
    import torch

    from elfs_lib.compute import resolve_device
    from elfs_lib.training.dynamics import DynamicsRecorder
    from elfs_lib.training.loop import Length, Seeds, train

    p = given.params
    recorder = DynamicsRecorder(torch.as_tensor(targets), resolve_device(p.device), seed=seed)
    trained = train(
        given.train_images,
        targets,
        p.classes,
        find_recipe(p.proxy_recipe),
        Length(epochs=p.proxy_epochs),
        seeds=Seeds.all(seed),
        weights=weights,
        recorder=recorder,
        desc="proxy",
        **given.training,
    )
    draft.table("scores", recorder.table())
    draft.array("curves", recorder.curves())
    draft.array("watched", recorder.watched.cpu().numpy())
    draft.array("mean_margins", recorder.mean_margins())
    draft.array("losses", trained.losses)
    images = given.train_images
    parts = np.split(np.arange(len(images)), range(_AT_ONCE, len(images), _AT_ONCE))
    probabilities = (trained.logits(images, part).softmax(1).numpy() for part in parts)
    draft.rows("probabilities", len(images), probabilities)
    draft.fact(
        device=given.device_name,
        train_flops=trained.flops,
        train_s=round(trained.seconds, 3),
        share_of_peak=round(trained.share_of_peak, 3),
        bytes_per_image=recorder.bytes_per_image,
    )


def _proxy_key(given: Given) -> dict[str, Any]:
    return given.key(*PROXY, args=["seed"]) | given.key_entry(
        "weights", lambda given: given.params.proxy_weights, neutral="equal"
    )


@stage(
    title="proxy dynamics, seed {seed}",
    inputs=lambda run, seed: {"images": run.call("images"), "pseudo": run.call("pseudo")},
    reads=[*PROXY, "proxy_weights"],
    later=PROXY_LATER,
    key=_proxy_key,
)
def proxy(given: Given, draft: Draft) -> None:
    """Dynamics of a proxy trained on pseudo-labels with a seed: table ``scores``, a row an image;
    arrays ``curves``, ``watched``, ``mean_margins``, ``losses`` and ``probabilities`` [N, C]."""
    table = given.inputs["pseudo"].table("pseudo")
    trusted = given.params.proxy_weights == "confidence"
    weights = table["confidence"].to_numpy() if trusted else None
    _dynamics(given, draft, table["label"].to_numpy(copy=True), given.args.seed, weights)


@stage(
    title="proxy on true labels (analysis)",
    inputs=["images"],
    reads=[*PROXY, "seed"],
    later=PROXY_LATER,
    labels="supervised",
)
def true_proxy(given: Given, draft: Draft) -> None:
    """The same proxy trained on true labels: for analysis and for the supervised methods."""
    targets = given.labels.open("train", purpose="supervised")
    _dynamics(given, draft, targets, given.params.seed)


def mean_of(arrays: list[np.ndarray]) -> np.ndarray:
    """Their mean, without a copy of each."""
    total = np.array(arrays[0])
    for array in arrays[1:]:
        total += array
    total /= total.dtype.type(len(arrays))
    return total
