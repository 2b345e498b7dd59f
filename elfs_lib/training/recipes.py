"""Recipes by name: network, optimiser, schedule and augmentation of one way to train."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from elfs_lib.errors import choose


@dataclass(frozen=True)
class Recipe:
    """Everything about a training run except data, length and seeds.

    Attributes:
        network: Key of :data:`elfs_lib.training.models.NETWORKS`.
        batch: Images a step.
        lr: Peak learning rate, for the mean loss.
        bias_lr_factor: Multiplies ``lr`` for normalisation biases.
        momentum: Of SGD.
        weight_decay: L2 coefficient; its product with ``lr`` is the same for biases. What Muon
            trains has none.
        label_smoothing: Mass spread over all classes, in [0, 1).
        schedule: "cosine" from ``lr`` to ``lr_end``, or "one_cycle": linear up over the first
            quarter of the run, linear down to ``lr_end``.
        lr_end: Final learning rate, as a share of ``lr``.
        crop: How pixels outside a shifted image are filled: "zero" or "reflect"; or "none": images
            are not shifted; or "resized": of each a random part is resized to ``side``.
        alternate_flip: Each image is mirrored every other epoch instead of at random.
        cutout: Side of the square that each image loses, in pixels; 0 for none.
        mirror_test: Average the logits of the image and its mirror image at test time.
        shift_test: Give half the weight at test time to the image shifted by this many pixels, up
            and left, and down and right, edges reflected; 0 for the image alone.
        average_every: Steps between updates of the averaged weights; 0 keeps no average.
        matrix_lr: Peak learning rate of Muon, which then trains the convolutions: the share of
            their weights' length that a step covers. None: SGD trains them too.
        matrix_momentum: Of Muon.
        nesterov: Whether SGD's momentum is Nesterov's.
        standardise: Whether colours get zero mean and unit deviation, or only lie in [0, 1].
        side: Of the image that the network sees, in pixels, with ``crop: resized``; in tests it is
            the centre. 0 for the whole image.
        source: Where the recipe comes from.
        revision: Raised when a recipe comes to mean something else, so that nothing that was made
            by what it meant before is taken for its own.
    """

    network: str
    batch: int
    lr: float
    momentum: float
    weight_decay: float
    schedule: str
    lr_end: float
    source: str
    bias_lr_factor: float = 1.0
    label_smoothing: float = 0.0
    crop: str = "zero"
    alternate_flip: bool = False
    cutout: int = 0
    mirror_test: bool = False
    shift_test: int = 0
    average_every: int = 0
    matrix_lr: float | None = None
    matrix_momentum: float = 0.0
    nesterov: bool = True
    standardise: bool = True
    side: int = 0
    revision: int = 1

    def learning_rate(self, step: int, steps: int) -> float:
        """Learning rate of step ``step`` (from 0) of ``steps``, as a share of the peak."""
        done = (step + 0.5) / steps
        if self.schedule == "cosine":
            return self.lr_end + (1 - self.lr_end) * 0.5 * (1 + math.cos(math.pi * done))
        rise = 0.25
        if done < rise:
            return 0.2 + 0.8 * done / rise
        return 1 + (self.lr_end - 1) * (done - rise) / (1 - rise)


_SPEEDRUN = {
    "batch": 512,
    "lr": 1.5,
    "bias_lr_factor": 8.0,  # the speedruns take 64, which by SGD diverged on small coresets
    "momentum": 0.85,
    "weight_decay": 1.33e-3,
    "label_smoothing": 0.2,
    "schedule": "one_cycle",
    "lr_end": 0.07,
    "crop": "reflect",
    "alternate_flip": True,
    "mirror_test": True,
    "average_every": 5,
}

_MUON = {
    **_SPEEDRUN,
    "bias_lr_factor": 64.0,
    "average_every": 0,
    "lr_end": 0.0,
    "matrix_lr": 0.08,
    "matrix_momentum": 0.85,
    "shift_test": 1,
}

_RESNET = {
    "network": "resnet18",
    "batch": 256,
    "lr": 0.1,
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "schedule": "cosine",
    "lr_end": 1e-3,
}
_RESNET34 = {**_RESNET, "network": "resnet34", "weight_decay": 1e-4}

RECIPES: dict[str, Recipe] = {
    "resnet18": Recipe(source="ELFS, Zheng et al. (2025), CIFAR protocol", **_RESNET),
    "resnet18_stl10": Recipe(
        source="resnet18 with a 3 x 3 stem at 96 px, as the released code of ELFS trains STL-10",
        **{**_RESNET, "network": "resnet18_3x3"},
    ),
    "resnet18_svhn": Recipe(
        source="resnet18 without crops, on colours in [0, 1], as the released code of ELFS trains "
        "SVHN",
        **_RESNET,
        crop="none",
        standardise=False,
    ),
    "resnet34": Recipe(
        source="ELFS, Zheng et al. (2025), ImageNet protocol, but for its crops and momentum",
        **_RESNET34,
    ),
    "resnet34_imagenet": Recipe(
        source="ELFS, Zheng et al. (2025), ImageNet protocol, with the random resized crops and "
        "the plain momentum of the released code",
        **_RESNET34,
        crop="resized",
        side=224,
        nesterov=False,
    ),
    "speedrun": Recipe(
        network="convnet",
        source="after the CIFAR-10 speedruns, Jordan (2024), arXiv:2404.00498, with Muon, Jordan "
        "et al. (2024)",
        **_MUON,
        revision=4,
    ),
    "speedrun_large": Recipe(
        network="convnet_large",
        source="speedrun with residual blocks of four times the multiplications, and cutout "
        "(DeVries and Taylor, 2017), for long trainings on a GPU",
        **_MUON,
        cutout=12,
        revision=2,
    ),
    "speedrun_small": Recipe(
        network="convnet_small",
        source="speedrun narrowed to a sixth of its multiplications, all of it by SGD, for CPUs",
        **{**_SPEEDRUN, "batch": 256, "lr": 1.0},
        revision=2,
    ),
    "speedrun_tiny": Recipe(
        network="convnet_tiny",
        source="speedrun narrowed, by SGD in small batches, for a few thousand small images",
        **{**_SPEEDRUN, "batch": 128},
        revision=2,
    ),
}


def find_recipe(name: str, *, batch: int | None = None) -> Recipe:
    """Look a recipe up by name, with another batch and the same learning rates if one is given.

    Raises:
        ElfsError: if there is none of that name.
    """
    found = RECIPES[choose("recipe", name, RECIPES)]
    return found if batch is None else dataclasses.replace(found, batch=batch)


def is_current(key: object) -> bool:
    """Whether a :func:`recipe_key` that was written down is that of the recipe as it is now."""
    name = str(key).partition(",")[0]
    return name in RECIPES and recipe_key(name) == key


def recipe_key(name: str) -> str:
    """What artifacts are keyed by: the name, with the revision after the first.

    Raises:
        ElfsError: if there is no recipe of that name.
    """
    revision = find_recipe(name).revision
    return name if revision == 1 else f"{name}, revision {revision}"
