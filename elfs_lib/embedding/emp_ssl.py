"""Train an encoder on many crops of each unlabelled image: EMP-SSL.

Tong, Chen, Ma and LeCun (2023, arXiv:2304.03977): all crops of an image should point the same way,
while the crops of different images spread over as many directions as they can, which their coding
rate measures (Ma et al., 2007). It needs few epochs, but many crops in each. No label is involved.

The embedding of an image should be the mean over crops, as in the training. So embedded, small
networks trained for minutes on a CPU learn more here than from the contrastive loss of
:mod:`elfs_lib.embedding.self_supervised`, and less where whole images are embedded
(``benchmarks/compare_encoder_methods.py``).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elfs_lib.bounds import bounded, check_bounds
from elfs_lib.compute import resolve_device, resolve_precision
from elfs_lib.embedding import encoder_bounds
from elfs_lib.embedding.augmentation import Augmentation
from elfs_lib.embedding.encoder_file import Expanded, PreparedNetwork, expander
from elfs_lib.embedding.self_supervised import (
    Streams,
    TrainedEncoder,
    about_training,
    check_training,
    feature_width,
    fresh_network,
    train_on_views,
)
from elfs_lib.training.optimizer import Lars


@dataclass(frozen=True)
class EmpSslConfig:
    """How the encoder is trained; the defaults are those of the published code, with a fifth of its
    100 crops.

    Attributes:
        epochs: Passes over the images.
        batch: Images a step.
        crops: Views of each of them.
        network: Key of :data:`elfs_lib.training.models.NETWORKS`.
        expander: Features of the expander behind the network, which are the embedding.
        projection: Width of the projection that the loss sees, and that is thrown away.
        invariance: Weight of the cosine between a crop and the mean of its image's crops.
        eps: Distortion of the coding rate; lower asks for more directions.
        lr: Peak learning rate of LARS, reached after ``warmup`` and then falling as a cosine.
        warmup: Share of the steps in which the learning rate rises.
        momentum: Of Nesterov.
        trust: Largest step of a weight matrix, relative to its own length.
        weight_decay: Of weight matrices.
        crop_area: Share of the image's area that a crop shows, in (0, 1].
        jitter: Strength of brightness, contrast, saturation and hue changes; 0 leaves them out.
        grey: Share of the crops of colour images that lose their colour.
        solarise: Share of the crops whose bright half is inverted.
        flip: Whether an image and its mirror image are the same thing (not so for digits).
    """

    epochs: int = bounded(21, **encoder_bounds.EPOCHS)
    batch: int = bounded(100, ge=2)
    crops: int = bounded(20, ge=2)
    network: str = "resnet18"
    expander: int = bounded(4096, ge=1)
    projection: int = bounded(1024, ge=1)
    invariance: float = bounded(200.0, ge=0)
    eps: float = bounded(0.2, ge=1e-6)
    lr: float = bounded(0.3, gt=0)
    warmup: float = bounded(0.05, ge=0, lt=1)
    momentum: float = bounded(0.9, gt=0, lt=1)  # Nesterov's has to be above 0
    trust: float = bounded(0.005, gt=0)
    weight_decay: float = bounded(1e-4, ge=0)
    crop_area: float = bounded(0.25, ge=0.01, le=1)
    jitter: float = bounded(0.4, ge=0, le=1)
    grey: float = bounded(0.2, ge=0, le=1)
    solarise: float = bounded(0.1, ge=0, le=1)
    flip: bool = True

    def __post_init__(self) -> None:
        check_bounds(self)

    @property
    def method(self) -> str:
        """What manifests call it."""
        return f"EMP-SSL, {self.crops} crops an image"

    @property
    def views(self) -> int:
        """Views of an image in a step."""
        return self.crops

    @property
    def augmentation(self) -> Augmentation:
        """How the crops of an image differ."""
        area = (self.crop_area, self.crop_area)
        return Augmentation(area, 1, self.flip, self.jitter, self.grey, self.solarise, blur=False)


def train_emp_ssl(
    images: np.ndarray,
    config: EmpSslConfig | None = None,
    *,
    seed: int = 0,
    device: str = "auto",
    precision: str = "auto",
    loader: str = "auto",
) -> TrainedEncoder:
    """Train an encoder on many crops of each image; its features are those of the expander.

    Args:
        images: uint8 [N, C, S, S], C = 1 or 3.
        config: How; None = the defaults.
        seed: Of weights, order and crops; same seed, same bits on a CPU.
        device: See :func:`elfs_lib.compute.resolve_device`.
        precision: See :func:`elfs_lib.compute.resolve_precision`.
        loader: See :func:`elfs_lib.training.loader.streams`; the result is the same.

    Raises:
        ElfsError: for a parameter out of range, too few images, or a loss that is not finite.
    """
    config = config or EmpSslConfig()
    check_training(images, config)
    where = resolve_device(device)
    seeds = Streams.of(seed, where)
    backbone = fresh_network(images, config.network, seeds, where)
    width = feature_width(backbone, images.shape[1:], where)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeds.weights)
        encoder = Expanded(backbone.network, expander(width, config.expander))
        projector = nn.Sequential(
            *expander(config.expander, config.expander),
            nn.Linear(config.expander, config.projection),
        )
    network = nn.Sequential(encoder, projector).to(where, memory_format=torch.channels_last).train()
    optimizer = Lars(
        [weight for weight in network.parameters() if weight.requires_grad],
        lr=config.lr,
        momentum=config.momentum,
        trust=config.trust,
        weight_decay=config.weight_decay,
    )
    losses = train_on_views(
        images,
        PreparedNetwork(network, backbone.prepare),
        lambda z: emp_ssl_loss(z.unflatten(0, (config.crops, -1)), config.invariance, config.eps),
        optimizer,
        config,
        seeds,
        resolve_precision(precision, where),
        loader,
    )
    about = about_training(config.method, config.network, images, config)
    return TrainedEncoder(encoder.eval(), backbone.prepare, losses, about)


def emp_ssl_loss(z: Tensor, invariance: float = 200.0, eps: float = 0.2) -> Tensor:
    """Loss of EMP-SSL, equation 5 of Tong et al. (2023).

    Args:
        z: float [V, B, D], V crops of B images.
        invariance: Weight of the cosine between each crop and the mean of its image's crops.
        eps: Of :func:`coding_rate`.

    Returns:
        Scalar: -invariance x mean cosine - mean coding rate of the V tables of B rows.
    """
    z = F.normalize(z, dim=2)
    cosine = F.cosine_similarity(z, z.mean(0, keepdim=True), dim=2)
    return -invariance * cosine.mean() - coding_rate(z, eps).mean()


def coding_rate(z: Tensor, eps: float = 0.2) -> Tensor:
    """Total coding rate: how many directions the rows of a table fill.

    1/2 logdet(I + D / (N eps) Z^T Z), equation 2 of Tong et al. (2023), after Ma et al. (2007) and
    with their squared distortion as ``eps``. Z Z^T has the same determinant; the smaller is taken.

    Args:
        z: float [..., N, D].
        eps: Above 0.

    Returns:
        float [...], at least 0; rows of length 1 that are all orthogonal have the most.
    """
    rows, columns = z.shape[-2:]
    gram = z @ z.mT if rows <= columns else z.mT @ z
    identity = torch.eye(min(rows, columns), dtype=z.dtype, device=z.device)
    # unchecked, to avoid waiting for the device: I plus a Gram matrix always has a factor
    factor, _ = torch.linalg.cholesky_ex(identity + columns / (rows * eps) * gram)
    return factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
