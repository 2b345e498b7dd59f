"""Train an encoder on the unlabelled images themselves, for when no pretrained weights fit.

It starts from random weights, or from those of a pretrained network, which it adapts to the images.

Two augmented views of an image should lie near each other, and away from the views of all other
images: SimCLR (Chen et al., ICML 2020) with the decoupled loss (Yeh et al., ECCV 2022), which
does not need the very large batches of the original. No label is involved anywhere.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elfs_lib.compute import autocast, resident, resolve_device, resolve_precision
from elfs_lib.encoder_file import Normalise, PreparedNetwork
from elfs_lib.errors import ElfsError, check_images, choose
from elfs_lib.progress import track
from elfs_lib.training.models import NETWORKS, build_network

METHOD = "SimCLR views with the decoupled contrastive loss"
SMALL_SIDE = 32  # up to here the small convnet, above it ResNet-18
BLUR_SIDE = 64  # smaller images have no detail to lose
SAMPLE = 4096  # images that mean, deviation and the first layer are estimated from
LEAST = 16  # images; with fewer there are no wrong images to tell apart
BLANK = 1e-3  # deviation given to channels that have none
HIDDEN = 512  # units of the projection's hidden layer
JITTERED = 0.8  # share of the views whose light and colour change, as SimCLR
# RGB to luma (ITU-R BT.601) and the two chroma axes, in which hue is an angle
YIQ = ((0.299, 0.587, 0.114), (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112))


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

    epochs: int = 20
    batch: int = 512
    network: str | None = None
    lr: float = 2e-3
    start_lr: float = 2e-4
    weight_decay: float = 1e-4
    warmup: float = 0.1
    temperature: float = 0.1
    projection: int = 128
    min_crop: float = 0.4
    jitter: float = 0.6
    grey: float = 0.2
    flip: bool = True


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
) -> TrainedEncoder:
    """Train an encoder on images alone.

    Args:
        images: uint8 [N, C, S, S], C = 1 or 3.
        config: How; None = the defaults.
        start: A pretrained network to adapt; None = ``config.network`` with random weights.
        seed: Of weights, order and views; same seed, same bits on a CPU.
        device: See :func:`elfs_lib.compute.resolve_device`.
        precision: See :func:`elfs_lib.compute.resolve_precision`.

    Raises:
        ElfsError: for a parameter out of range, too few images, or a loss that is not finite.
    """
    config = config or SelfSupervisedConfig()
    _validate(images, config)
    where = resolve_device(device)
    dtype = resolve_precision(precision, where)
    batch = min(config.batch, len(images))
    order_seed, view_seed, weight_seed = np.random.SeedSequence(seed).generate_state(3).tolist()
    order = np.random.default_rng(order_seed)
    views = torch.Generator(where).manual_seed(view_seed)

    name = None if start else config.network or _default_network(images.shape)
    if start is None:
        some = np.sort(order.permutation(len(images))[:SAMPLE])
        sample = torch.from_numpy(images[some]).float().div_(255)
        start = _fresh(sample, name, weight_seed, where)
        start_lr = config.lr
    else:
        start_lr = config.start_lr
    network, prepare = start.network, start.prepare
    network.to(where, memory_format=torch.channels_last).train()
    width = _width(network, prepare(torch.zeros(2, *images.shape[1:], device=where)))
    projector = _projector(width, config, weight_seed).to(where).train()

    groups = []
    for module, peak in ((network, start_lr), (projector, config.lr)):
        weights = [w for w in module.parameters() if w.requires_grad]
        decayed = [w for w in weights if w.ndim > 1], [w for w in weights if w.ndim <= 1]
        for group, decay in zip(decayed, (config.weight_decay, 0.0)):
            groups.append({"params": group, "weight_decay": decay, "lr": peak, "peak": peak})
    optimizer = torch.optim.AdamW(groups)
    per_epoch = len(images) // batch
    steps = config.epochs * per_epoch
    losses = torch.zeros(config.epochs, device=where)
    every = resident(images, where)
    for step in track(range(steps), "training the encoder without labels"):
        epoch, at = divmod(step, per_epoch)
        if at == 0:
            shuffled = torch.from_numpy(order.permutation(len(images))).to(where)
        chosen = every[shuffled[at * batch : (at + 1) * batch]]
        both = augment(torch.cat([chosen, chosen]).float().div_(255), config, views)
        both = prepare(both).contiguous(memory_format=torch.channels_last)
        with autocast(where, dtype):
            projected = projector(network(both))
        loss = decoupled_contrastive(projected.float(), config.temperature)
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * _schedule((step + 0.5) / steps, config.warmup)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        losses[epoch] += loss.detach() / per_epoch
        if at == per_epoch - 1 and not torch.isfinite(losses[epoch]):
            raise ElfsError(
                f"The self-supervised encoder's loss is not finite in epoch {epoch + 1}: lower lr, "
                "or use precision: float32."
            )
    about = {
        "method": METHOD,
        "network": name,
        "size": list(images.shape[2:]),
        "recipe": asdict(config),
    }
    return TrainedEncoder(network.eval(), prepare, losses.cpu().numpy(), about)


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


def augment(x: Tensor, config: SelfSupervisedConfig, generator: torch.Generator) -> Tensor:
    """One random view of each image, all images at once on their device.

    SimCLR's views: random resized crop, mirroring, changed brightness, contrast, saturation and
    hue, loss of colour, and blur for images above 64 px.

    Args:
        x: float32 [B, C, H, W] in [0, 1], C = 1 or 3.
        config: Strengths.
        generator: On the device of ``x``.

    Returns:
        float32 [B, C, H, W] in [0, 1].
    """
    x = _crop(x, config, generator)
    if x.shape[1] == 3:
        x = _recolour(x, config, generator)
    x = _light(x, config, generator)
    return _blur(x, generator) if max(x.shape[2:]) > BLUR_SIDE else x


def _uniform(count: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(count, generator=generator, device=generator.device)


def _happens(count: int, probability: float, generator: torch.Generator) -> Tensor:
    """1.0 where it does, 0.0 where it does not."""
    return (_uniform(count, 0, 1, generator) < probability).float()


def _crop(x: Tensor, config: SelfSupervisedConfig, generator: torch.Generator) -> Tensor:
    """Random resized crop and mirroring as one resampling."""
    count = len(x)
    area = _uniform(count, config.min_crop, 1, generator)
    ratio = _uniform(count, math.log(3 / 4), math.log(4 / 3), generator).exp()
    width, height = (area * ratio).sqrt().clamp_max(1), (area / ratio).sqrt().clamp_max(1)
    # in affine_grid's coordinates the image reaches from -1 to 1
    left = (1 - width) * _uniform(count, -1, 1, generator)
    top = (1 - height) * _uniform(count, -1, 1, generator)
    if config.flip:
        width = width * (1 - 2 * _happens(count, 0.5, generator))
    none = torch.zeros_like(width)
    theta = torch.stack([width, none, left, none, height, top], 1).view(count, 2, 3)
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


def _recolour(x: Tensor, config: SelfSupervisedConfig, generator: torch.Generator) -> Tensor:
    """Saturation, hue and loss of colour: one 3 x 3 matrix an image, by way of YIQ."""
    count, strength = len(x), config.jitter
    changed = _happens(count, JITTERED, generator)
    saturation = 1 + changed * _uniform(count, -strength, strength, generator)
    saturation = saturation * (1 - _happens(count, config.grey, generator))
    # a quarter of the strength, as SimCLR: 0.1 turns of the colour circle at 0.4
    hue = changed * 2 * math.pi * _uniform(count, -strength / 4, strength / 4, generator)
    to_yiq, from_yiq = _yiq(x.device)
    turn = x.new_zeros(count, 3, 3)
    turn[:, 0, 0] = 1
    turn[:, 1, 1] = turn[:, 2, 2] = saturation * hue.cos()
    turn[:, 2, 1] = saturation * hue.sin()
    turn[:, 1, 2] = -turn[:, 2, 1]
    matrix = from_yiq @ turn @ to_yiq
    return torch.einsum("bij,bjhw->bihw", matrix, x)


@functools.cache
def _yiq(device: torch.device) -> tuple[Tensor, Tensor]:
    """The matrix from RGB to YIQ and the one back, float32; once, for each would be a copy to the
    device in every step."""
    matrix = torch.tensor(YIQ)
    return matrix.to(device), torch.linalg.inv(matrix).to(device)


def _light(x: Tensor, config: SelfSupervisedConfig, generator: torch.Generator) -> Tensor:
    """Brightness (about black), contrast (about the image's mean grey); clamps to [0, 1]."""
    count, strength = len(x), config.jitter
    changed = _happens(count, JITTERED, generator)
    brightness = 1 + changed * _uniform(count, -strength, strength, generator)
    contrast = 1 + changed * _uniform(count, -strength, strength, generator)
    x = x * brightness.view(-1, 1, 1, 1)
    luma = _yiq(x.device)[0][:1, :, None, None]
    grey = (x * luma).sum(1, keepdim=True) if x.shape[1] == 3 else x
    centre = grey.mean((2, 3), keepdim=True)
    return torch.lerp(centre, x, contrast.view(-1, 1, 1, 1)).clamp(0, 1)


def _blur(x: Tensor, generator: torch.Generator) -> Tensor:
    """Gaussian blur of half of the images, deviation 0.1 to 2 px at 224 px and in proportion."""
    count, channels, height, width = x.shape
    side = max(height, width)
    sigma = _uniform(count, 0.1, 2, generator) * side / 224
    sigma = sigma * _happens(count, 0.5, generator)
    reach = max(1, min(round(4 * side / 224), height - 1, width - 1))  # as far as padding mirrors
    offsets = torch.arange(-reach, reach + 1, device=x.device)
    kernel = torch.exp(-0.5 * (offsets / sigma.clamp_min(1e-3).unsqueeze(1)) ** 2)
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(channels, 0)
    # every channel of every image is a group with its own kernel
    x = F.pad(x, (reach,) * 4, mode="reflect").flatten(0, 1).unsqueeze(0)
    x = F.conv2d(x, kernel[:, None, :, None], groups=count * channels)
    x = F.conv2d(x, kernel[:, None, None, :], groups=count * channels)
    return x.view(count, channels, height, width)


def _fresh(sample: Tensor, name: str, seed: int, device: torch.device) -> PreparedNetwork:
    """A network of a name with random weights, for images like ``sample``, float [B, C, S, S] in
    [0, 1]."""
    mean = sample.mean((0, 2, 3), keepdim=True)
    std = sample.std((0, 2, 3), keepdim=True).clamp_min(BLANK)
    network = build_network(name, (sample - mean) / std, 1, seed=seed)
    network.head = nn.Identity()
    return PreparedNetwork(network, Normalise(mean, std, tuple(sample.shape[2:])).to(device))


def _default_network(shape: Sequence[int]) -> str:
    return "convnet_small" if max(shape[2:]) <= SMALL_SIDE else "resnet18"


@torch.no_grad()
def _width(network: nn.Module, blank: Tensor) -> int:
    """Numbers in a feature vector; two blank images must leave no trace in moving averages."""
    network.eval()
    width = network(blank).shape[1]
    network.train()
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


def _schedule(done: float, warmup: float) -> float:
    """Share of the peak learning rate: a line up, then half a cosine down."""
    if done < warmup:
        return done / warmup
    return 0.5 * (1 + math.cos(math.pi * (done - warmup) / (1 - warmup)))


def _validate(images: np.ndarray, config: SelfSupervisedConfig) -> None:
    check_images(images)
    if len(images) < LEAST:
        raise ElfsError(
            f"{len(images)} images are too few to train an encoder on: give at least {LEAST}, or "
            "choose an encoder with weights."
        )
    if config.network is not None:
        choose("network", config.network, NETWORKS)
    ranges = {
        "epochs": (1, math.inf),
        "batch": (2, math.inf),
        "lr": (1e-8, math.inf),
        "start_lr": (1e-8, math.inf),
        "weight_decay": (0, math.inf),
        "warmup": (0, 0.99),
        "temperature": (1e-3, math.inf),
        "projection": (1, math.inf),
        "min_crop": (0.01, 1),
        "jitter": (0, 1),
        "grey": (0, 1),
    }
    for name, (low, high) in ranges.items():
        value = getattr(config, name)
        if not low <= value <= high:
            limit = f"at least {low:g}" if math.isinf(high) else f"{low:g} to {high:g}"
            raise ElfsError(f"self-supervised {name} is {value}: it must be {limit}.")
