"""Train an encoder on the unlabelled images themselves, for when no pretrained weights fit.

It starts from random weights, or from those of a pretrained network, which it adapts to the images.

Two augmented views of an image should lie near each other, and away from the views of all other
images: SimCLR (Chen et al., ICML 2020) with the decoupled loss (Yeh et al., ECCV 2022), which
does not need the very large batches of the original. No label is involved anywhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elfs_lib.bounds import bounded, check_bounds
from elfs_lib.compute import at_a_time, autocast, resolve_device, resolve_precision
from elfs_lib.embedding import encoder_bounds
from elfs_lib.embedding.augmentation import Augmentation, augment
from elfs_lib.embedding.encoder_file import Normalise, PreparedNetwork
from elfs_lib.embedding.encoders import TRAINING
from elfs_lib.errors import ElfsError, check_images, choose
from elfs_lib.progress import track
from elfs_lib.training.loader import reader_of_rows
from elfs_lib.training.models import NETWORKS, build_network
from elfs_lib.training.optimizer import decay_groups, set_learning_rate

if TYPE_CHECKING:
    from elfs_lib.embedding.emp_ssl import EmpSslConfig

SMALL_SIDE = 32  # up to here the small convnet, above it ResNet-18
SAMPLE = 4096  # images, or fewer large ones, that moments and the first layer are estimated from
LEAST = 16  # images; with fewer there are no wrong images to tell apart
BLANK = 1e-3  # deviation given to channels that have none
HIDDEN = 512  # units of the projection's hidden layer


@dataclass(frozen=True)
class SelfSupervisedConfig:
    """How the encoder is trained.

    The defaults were picked in a few short trainings on a part of Fashion-MNIST, by 20-NN accuracy.

    Attributes:
        epochs: Passes over the images.
        batch: Images a step; each gives two views.
        network: Key of :data:`elfs_lib.training.models.NETWORKS`; None = "convnet_small" up to
            32 px, "resnet18" above. Not for a network to start from.
        lr: Peak learning rate of AdamW, reached after ``warmup`` and then falling as a cosine.
        start_lr: The same for weights that were there before.
        weight_decay: Of AdamW.
        warmup: Share of the steps in which the learning rate rises.
        temperature: Of the loss; lower puts more weight on the nearest wrong images.
        projection: Width of the projection that the loss sees, and that is thrown away.
        min_crop: Least share of the image's area that a view shows, in (0, 1].
        jitter: Strength of brightness, contrast, saturation and hue changes; 0 leaves them out.
        grey: Share of the views of colour images that lose their colour.
        flip: Whether an image and its mirror image are the same thing (not so for digits).
    """

    epochs: int = bounded(20, **encoder_bounds.EPOCHS)
    batch: int = bounded(512, ge=2)
    network: str | None = None
    lr: float = bounded(2e-3, gt=0)
    start_lr: float = bounded(2e-4, gt=0)
    weight_decay: float = bounded(1e-4, ge=0)
    warmup: float = bounded(0.1, ge=0, lt=1)
    temperature: float = bounded(0.1, ge=1e-3)
    projection: int = bounded(128, ge=1)
    min_crop: float = bounded(0.4, ge=0.01, le=1)
    jitter: float = bounded(0.6, ge=0, le=1)
    grey: float = bounded(0.2, ge=0, le=1)
    flip: bool = True

    def __post_init__(self) -> None:
        check_bounds(self)

    @property
    def views(self) -> int:
        """Views of an image in a step."""
        return 2

    @property
    def augmentation(self) -> Augmentation:
        """How the views of an image differ."""
        area = (self.min_crop, 1.0)
        return Augmentation(area, flip=self.flip, jitter=self.jitter, grey=self.grey)


@dataclass(frozen=True)
class TrainedEncoder(PreparedNetwork):
    """An encoder that has seen its images and no labels, in eval mode, on its device.

    Attributes:
        losses: float32 [epochs], mean loss of each epoch.
        about: How it was made: method, network, size of the images, and the configuration.
    """

    losses: np.ndarray
    about: dict[str, object]


def train_encoder(
    images: np.ndarray,
    config: SelfSupervisedConfig | None = None,
    *,
    start: PreparedNetwork | None = None,
    seed: int = 0,
    device: str = "auto",
    precision: str = "auto",
    loader: str = "auto",
) -> TrainedEncoder:
    """Train an encoder on images alone.

    Args:
        images: uint8 [N, C, S, S], C = 1 or 3.
        config: How; None = the defaults.
        start: A pretrained network to adapt; None = ``config.network`` with random weights.
        seed: Of weights, order and views; same seed, same bits on a CPU.
        device: See :func:`elfs_lib.compute.resolve_device`.
        precision: See :func:`elfs_lib.compute.resolve_precision`.
        loader: See :func:`elfs_lib.training.loader.streams`; the result is the same.

    Raises:
        ElfsError: for a parameter out of range, too few images, or a loss that is not finite.
    """
    config = config or SelfSupervisedConfig()
    check_training(images, config)
    where = resolve_device(device)
    seeds = Streams.of(seed, where)
    name = None if start else config.network or default_network(images.shape)
    start_lr = config.start_lr if start else config.lr
    start = start or fresh_network(images, name, seeds, where)
    network, prepare = start.network, start.prepare
    network.to(where, memory_format=torch.channels_last)
    width = feature_width(start, images.shape[1:], where)
    projector = _projector(width, config, seeds.weights).to(where).train()

    peaks = ((network, start_lr), (projector, config.lr))
    losses = train_on_views(
        images,
        PreparedNetwork(nn.Sequential(network, projector), prepare),
        lambda z: decoupled_contrastive(z, config.temperature),
        torch.optim.AdamW(decay_groups(peaks, config.weight_decay)),
        config,
        seeds,
        resolve_precision(precision, where),
        loader,
    )
    about = about_training(TRAINING["contrastive"], name, images, config)
    return TrainedEncoder(network.eval(), prepare, losses, about)


def decoupled_contrastive(z: Tensor, temperature: float) -> Tensor:
    """Decoupled contrastive loss, equation 6 of Yeh et al. (2022), averaged over both views.

    The InfoNCE loss of SimCLR without the positive pair in the denominator, which removes the
    factor that makes small batches learn slowly.

    Args:
        z: float [2 B, D]; rows i and i + B are two views of one image.
        temperature: Above 0.

    Returns:
        Scalar: mean over the 2 B rows of -s_ip / t + log sum over other images' views exp(s_ij/t).
    """
    z = F.normalize(z, dim=1)
    count = len(z) // 2
    similarity = z @ z.T / temperature
    own = torch.arange(2 * count, device=z.device) % count
    positive = similarity.diagonal(count).repeat(2)
    others = similarity.masked_fill(own[:, None] == own[None, :], -torch.inf)
    return (others.logsumexp(1) - positive).mean()


class Streams(NamedTuple):
    """What is random in a training.

    Attributes:
        order: Of the images.
        views: Of the changes in a view, on the device.
        weights: Seed of the initial weights.
    """

    order: np.random.Generator
    views: torch.Generator
    weights: int

    @classmethod
    def of(cls, seed: int, device: torch.device) -> Streams:
        """Three independent streams from one seed."""
        order, views, weights = np.random.SeedSequence(seed).generate_state(3).tolist()
        generator = torch.Generator(device).manual_seed(views)
        return cls(np.random.default_rng(order), generator, weights)


def train_on_views(
    images: np.ndarray,
    network: PreparedNetwork,
    loss: Callable[[Tensor], Tensor],
    optimizer: torch.optim.Optimizer,
    config: SelfSupervisedConfig | EmpSslConfig,
    seeds: Streams,
    dtype: torch.dtype,
    loader: str = "auto",
) -> np.ndarray:
    """Train a network on random views of the images. Nothing waits for a GPU within an epoch.

    Args:
        images: uint8 [N, C, H, W].
        network: Whose outputs the loss sees, in training mode on the device of ``seeds.views``.
        loss: Of float32 [V B, D]: rows i, i + B, i + 2 B, ... are the V views of image i.
        optimizer: Its groups name their ``peak`` learning rate.
        config: ``epochs``, ``batch``, ``warmup``, ``views`` and ``augmentation``.
        seeds: Of order and views.
        dtype: Of the products.
        loader: See :func:`elfs_lib.training.loader.streams`.

    Returns:
        float32 [epochs], mean loss of each epoch.

    Raises:
        ElfsError: for an epoch whose loss is not finite.
    """
    where = seeds.views.device
    batch = min(config.batch, len(images))
    per_epoch = len(images) // batch
    steps = config.epochs * per_epoch
    losses = torch.zeros(config.epochs, device=where)
    pixels = reader_of_rows(loader, images, where)
    for step in track(range(steps), "training the encoder without labels"):
        epoch, at = divmod(step, per_epoch)
        if at == 0:
            shuffled = seeds.order.permutation(len(images))
        chosen = pixels(shuffled[at * batch : (at + 1) * batch])
        repeated = chosen.repeat(config.views, 1, 1, 1).float().div_(255)
        x = network.prepare(augment(repeated, config.augmentation, seeds.views))
        with autocast(where, dtype):
            z = network.network(x.contiguous(memory_format=torch.channels_last))
        value = loss(z.float())
        set_learning_rate(optimizer, warmup_cosine((step + 0.5) / steps, config.warmup))
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        optimizer.step()
        losses[epoch] += value.detach() / per_epoch
        if at == per_epoch - 1 and not torch.isfinite(losses[epoch]):
            raise ElfsError(
                f"The self-supervised encoder's loss is not finite in epoch {epoch + 1}: lower lr, "
                "or use precision: float32."
            )
    return losses.cpu().numpy()


def about_training(
    method: str,
    network: str | None,
    images: np.ndarray,
    config: SelfSupervisedConfig | EmpSslConfig,
) -> dict[str, object]:
    """What a trained encoder says of itself."""
    size = list(images.shape[2:])
    return {"method": method, "network": network, "size": size, "recipe": asdict(config)}


def fresh_network(
    images: np.ndarray, name: str, seeds: Streams, device: torch.device
) -> PreparedNetwork:
    """A network of a name with random weights, and the images' mean and deviation before it."""
    count = at_a_time(images[0].nbytes, SAMPLE)
    some = np.sort(seeds.order.permutation(len(images))[:count])
    sample = torch.from_numpy(images[some]).float().div_(255)
    mean = sample.mean((0, 2, 3), keepdim=True)
    std = sample.std((0, 2, 3), keepdim=True).clamp_min(BLANK)
    network = build_network(name, (sample - mean) / std, 1, seed=seeds.weights)
    network.head = nn.Identity()
    network.to(device)
    return PreparedNetwork(network, Normalise(mean, std, tuple(sample.shape[2:])).to(device))


def default_network(shape: Sequence[int]) -> str:
    return "convnet_small" if max(shape[2:]) <= SMALL_SIDE else "resnet18"


@torch.no_grad()
def feature_width(encoder: PreparedNetwork, shape: Sequence[int], device: torch.device) -> int:
    """Numbers in a feature vector of images of a shape [C, H, W]; the network, on the device, is
    left in training mode."""
    encoder.network.eval()  # blank images must leave no trace in moving averages
    width = encoder.network(encoder.prepare(torch.zeros(2, *shape, device=device))).shape[1]
    encoder.network.train()
    return width


def _projector(width: int, config: SelfSupervisedConfig, seed: int) -> nn.Module:
    """What the loss sees in place of the features (Chen et al., section 4.2); thrown away."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(width, HIDDEN, bias=False),
            nn.BatchNorm1d(HIDDEN),
            nn.ReLU(inplace=True),
            nn.Linear(HIDDEN, config.projection),
        )


def warmup_cosine(done: float, warmup: float) -> float:
    """Share of the peak learning rate: a line up, then half a cosine down."""
    if done < warmup:
        return done / warmup
    return 0.5 * (1 + math.cos(math.pi * (done - warmup) / (1 - warmup)))


def check_training(images: np.ndarray, config: SelfSupervisedConfig | EmpSslConfig) -> None:
    """Check the images and the network.

    Raises:
        ElfsError: for too few images, or an unknown network.
    """
    check_images(images)
    if len(images) < LEAST:
        raise ElfsError(
            f"{len(images)} images are too few to train an encoder on: give at least {LEAST}, or "
            "choose an encoder with weights."
        )
    if config.network is not None:
        choose("network", config.network, NETWORKS)
