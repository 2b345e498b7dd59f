"""Self-labelling after clustering: train on confident pseudo-labels, relabel, repeat.

Van Gansbeke et al. (SCAN, ECCV 2020) end with such a step. No ground-truth label is involved.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from elfs_lib.compute import at_a_time, autocast, resolve_device, resolve_precision
from elfs_lib.embedding.augmentation import Augmentation, augment
from elfs_lib.embedding.encoder_file import PreparedNetwork
from elfs_lib.embedding.self_supervised import Streams, feature_width, warmup_cosine
from elfs_lib.errors import ElfsError
from elfs_lib.progress import track
from elfs_lib.training.loader import reader_of_rows
from elfs_lib.training.loop import Length, Seeds, train
from elfs_lib.training.optimizer import decay_groups, set_learning_rate
from elfs_lib.training.recipes import Recipe


@dataclass(frozen=True)
class Relabelled:
    """New pseudo-labels int64 [N] and their confidence float32 [N] (the model's top softmax)."""

    labels: np.ndarray
    confidence: np.ndarray
    changed: float  # share of the images whose label the last round changed


def most_confident(labels: np.ndarray, confidence: np.ndarray, keep: float) -> np.ndarray:
    """Rows of the most confident share ``keep`` of each pseudo-class, sorted: int64 [n].

    Taken class by class, so that no cluster starves because its confidence is lower overall.
    """
    chosen = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        order = np.lexsort((members, -confidence[members]))
        chosen.append(members[order[: max(1, round(keep * len(members)))]])
    return np.sort(np.concatenate(chosen))


def relabel(
    images: np.ndarray,
    labels: np.ndarray,
    confidence: np.ndarray,
    classes: int,
    recipe: Recipe,
    length: Length,
    *,
    keep: float = 0.5,
    seed: int = 0,
    **training,
) -> Relabelled:
    """One round: a fresh model learns the confident share and relabels every image.

    Args:
        images: uint8 [N, C, H, W].
        labels: int64 [N], pseudo-labels.
        confidence: float [N], higher is more confident.
        classes: Number of classes.
        recipe: How to train.
        length: How long.
        keep: Share of each pseudo-class to train on, in (0, 1].
        seed: Seed of weights, order and augmentation.
        **training: Passed to :func:`elfs_lib.training.loop.train`.
    """
    subset = most_confident(labels, confidence, keep)
    trained = train(
        images,
        labels[subset],
        classes,
        recipe,
        length,
        seeds=Seeds.all(seed),
        subset=subset,
        desc="self-labelling",
        **training,
    )
    probabilities = trained.logits(images).softmax(1)
    top, named = probabilities.max(1)
    named = named.numpy()
    return Relabelled(named, top.numpy(), float((named != labels).mean()))


@dataclass(frozen=True)
class FineTuning:
    """How :func:`fine_tune` trains.

    Attributes:
        epochs: Passes over the confident images.
        batch: Images a step.
        lr: Peak learning rate of AdamW for the new head; it rises in ``warmup`` and falls as a
            cosine.
        encoder_lr: The same for the encoder's weights.
        weight_decay: Of weight matrices.
        warmup: Share of the steps in which the learning rates rise.
        area: Smallest and largest share of the image's area that a view shows, in (0, 1].
        jitter: Strength of brightness, contrast, saturation and hue changes.
        grey: Share of the views that lose their colour.
        label_smoothing: In [0, 1).
        views: Views of each image whose mean prediction names it.
        revision: Raised when the same settings give another result.
    """

    epochs: int = 10
    batch: int = 500
    lr: float = 3e-3
    encoder_lr: float = 3e-4
    weight_decay: float = 1e-2
    warmup: float = 0.1
    area: tuple[float, float] = (0.25, 1.0)
    jitter: float = 0.4
    grey: float = 0.2
    label_smoothing: float = 0.1
    views: int = 10
    revision: int = 2  # in the first, label smoothing favoured rare pseudo-classes


def fine_tune(
    encoder: PreparedNetwork,
    images: np.ndarray,
    labels: np.ndarray,
    confidence: np.ndarray,
    classes: int,
    config: FineTuning | None = None,
    *,
    keep: float = 0.5,
    flip: bool = True,
    seed: int = 0,
    device: str = "auto",
    precision: str = "auto",
    loader: str = "auto",
) -> Relabelled:
    """One round that starts from the encoder: it learns the confident share and names every image.

    Strong augmentation and a loss that weighs every pseudo-class alike, as SCAN's last step has
    them (Van Gansbeke et al. 2020, section 2.3); the confident share is fixed before the round.

    Args:
        encoder: What embedded the images; its weights are changed.
        images: uint8 [N, C, H, W].
        labels: int64 [N], pseudo-labels.
        confidence: float [N], higher is more confident.
        classes: Number of classes.
        config: How; None = the defaults.
        keep: Share of each pseudo-class to train on, in (0, 1].
        flip: Whether mirrored images keep their class.
        seed: Of the head, order and views.
        device: See :func:`elfs_lib.compute.resolve_device`.
        precision: See :func:`elfs_lib.compute.resolve_precision`.
        loader: "resident", "streamed" or "auto", as for :func:`elfs_lib.training.loop.train`; the
            result is the same.

    Raises:
        ElfsError: if the loss stops being finite.
    """
    config = config or FineTuning()
    where = resolve_device(device)
    seeds = Streams.of(seed, where)
    network = _HeadedEncoder(encoder, images, classes, seeds, where, precision, loader)
    subset = most_confident(labels, confidence, keep)
    _learn(network, subset, labels[subset], config, flip)
    named, top = _name(network, config, flip)
    return Relabelled(named, top, float((named != labels).mean()))


class _HeadedEncoder:
    """An encoder with a new linear head on its features, and the images that it sees.

    Args:
        encoder: What embedded the images; its weights are trained further.
        images: uint8 [N, C, H, W].
        classes: Number of the head's outputs.
        seeds: Of the head, order and views.
        device: Where it runs.
        precision: See :func:`elfs_lib.compute.resolve_precision`.
        loader: As for :func:`fine_tune`.
    """

    def __init__(
        self,
        encoder: PreparedNetwork,
        images: np.ndarray,
        classes: int,
        seeds: Streams,
        device: torch.device,
        precision: str,
        loader: str,
    ) -> None:
        self.images, self.classes, self.seeds, self.device = images, classes, seeds, device
        self._dtype = resolve_precision(precision, device)
        self._prepare = encoder.prepare
        self.backbone = encoder.network.to(device, memory_format=torch.channels_last)
        if isinstance(encoder.prepare, nn.Module):
            encoder.prepare.to(device)
        width = feature_width(encoder, images.shape[1:], device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seeds.weights)
            self.head = nn.Linear(width, classes).to(device)
        self.network = nn.Sequential(self.backbone, self.head)
        self._pixels = reader_of_rows(loader, images, device)

    def logits(self, rows: np.ndarray, views: Augmentation) -> torch.Tensor:
        """float32 [len(rows), classes], of a new view of each image."""
        x = augment(self._pixels(rows).float().div_(255), views, self.seeds.views)
        x = self._prepare(x).contiguous(memory_format=torch.channels_last)
        with autocast(self.device, self._dtype):
            return self.network(x).float()


def _learn(
    model: _HeadedEncoder, subset: np.ndarray, labels: np.ndarray, config: FineTuning, flip: bool
) -> None:
    """Train on the images ``subset`` int64 [n] with their ``labels`` int64 [n]."""
    views = Augmentation(config.area, 4 / 3, flip, config.jitter, config.grey, blur=False)
    peaks = ((model.backbone, config.encoder_lr), (model.head, config.lr))
    optimizer = torch.optim.AdamW(decay_groups(peaks, config.weight_decay))
    targets = torch.from_numpy(labels).to(model.device)
    # by image, for weights of classes would weigh the smoothing too, and an empty class would win
    balance = (1 / torch.bincount(targets, minlength=model.classes).float())[targets]

    model.network.train()
    batches = math.ceil(len(subset) / config.batch)
    steps, step = config.epochs * batches, 0
    for _ in track(range(config.epochs), "self-labelling from the encoder"):
        total = torch.zeros((), device=model.device)
        for some in np.array_split(model.seeds.order.permutation(len(subset)), batches):
            set_learning_rate(optimizer, warmup_cosine((step + 0.5) / steps, config.warmup))
            found, here = model.logits(subset[some], views), torch.from_numpy(some).to(model.device)
            losses = F.cross_entropy(
                found, targets[here], reduction="none", label_smoothing=config.label_smoothing
            )
            loss = (losses * balance[here]).sum() / balance[here].sum()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            total += loss.detach()
            step += 1
        if not torch.isfinite(total):
            raise ElfsError(
                "Self-labelling from the encoder diverged (the loss is not finite): use precision: "
                "float32, or relabel_start: random."
            )


@torch.inference_mode()
def _name(model: _HeadedEncoder, config: FineTuning, flip: bool) -> tuple[np.ndarray, np.ndarray]:
    """The class of each image by the mean of its views, int64 [N], and its probability, float32
    [N]."""
    views = Augmentation(config.area, 1, flip, 0, 0, blur=False)
    model.network.eval()
    n, size = len(model.images), at_a_time(model.images[0].nbytes, 1000)
    parts = [
        sum(F.softmax(model.logits(some, views), 1) for _ in range(config.views)) / config.views
        for some in np.split(np.arange(n), range(size, n, size))
    ]
    top, named = torch.cat(parts).max(1)
    return named.cpu().numpy(), top.cpu().numpy()
