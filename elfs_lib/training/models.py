"""Networks for proxy and coreset training, built for the image size they are given."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from elfs_lib.errors import choose


class WhiteningConv(nn.Conv2d):
    """Frozen 2 x 2 first layer that decorrelates patches (+ and - of each eigenvector).

    Its weights come from the images themselves, no labels involved: rows are the eigenvectors
    of the patch covariance, scaled by 1 / sqrt(eigenvalue + eps). Directions that the images hardly
    have (grey photos saved as RGB have 4 of 12) get no row: it would pass on rounding noise alone.
    """

    def __init__(self, channels: int, images: torch.Tensor, eps: float = 5e-4):
        patch = channels * 4
        patches = nn.functional.unfold(images.float(), 2).transpose(1, 2).reshape(-1, patch)
        patches = patches - patches.mean(0)
        # double: the smallest eigenvalues decide the largest weights
        values, vectors = torch.linalg.eigh((patches.T @ patches / len(patches)).double())
        there = values >= min(eps / 100, float(values[-1]))
        rows = (vectors / (values.clamp_min(0) + eps).sqrt()).T.float()[there]
        super().__init__(channels, 2 * len(rows), kernel_size=2, bias=True)
        with torch.no_grad():
            self.weight.copy_(torch.cat([rows, -rows]).reshape(self.weight.shape))
            self.bias.zero_()
        self.weight.requires_grad_(False)


def _conv3(inputs: int, outputs: int) -> nn.Conv2d:
    conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    # identity on the channels that exist on both sides: signal passes from step one
    with torch.no_grad():
        nn.init.dirac_(conv.weight[: min(inputs, outputs)])
    return conv


def _frozen_scale_norm(channels: int) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels, momentum=0.4, eps=1e-12)
    norm.weight.requires_grad_(False)
    return norm


class _AddInput(nn.Sequential):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + super().forward(x)


class ConvNet(nn.Module):
    """Small GELU convnet behind a frozen whitening layer, the shape of the CIFAR-10 speedruns.

    Three blocks of (conv, max-pool, norm, GELU, conv, norm, GELU), a global max-pool and a linear
    layer whose output is scaled down. In a residual block two convolutions follow the first, and
    what went into them is added to what comes out. A block pools only while its input is at least
    4 px wide, so that 8 x 8 images work too; images above 40 px are first average-pooled to
    20-40 px. The short side counts where they are not square.

    Args:
        images: float [B, C, H, W], normalised sample that the whitening layer is fitted on.
        classes: Number of outputs.
        widths: Channels of the three blocks.
        residual: Whether the blocks are residual.
    """

    def __init__(
        self,
        images: torch.Tensor,
        classes: int,
        widths: tuple[int, int, int],
        residual: bool = False,
    ):
        super().__init__()
        self.shrink = max(1, -(-min(images.shape[-2:]) // 40))
        images = self._shrunk(images)
        channels, size = images.shape[1], min(images.shape[-2:]) - 1
        self.whiten = WhiteningConv(channels, images)
        layers: list[nn.Module] = []
        inputs = self.whiten.out_channels
        for width in widths:
            pool = size >= 4
            layers += [_conv3(inputs, width), *([nn.MaxPool2d(2)] if pool else [])]
            layers += [_frozen_scale_norm(width), nn.GELU()]
            rest = [_conv3(width, width), _frozen_scale_norm(width)]
            if residual:
                more = [nn.GELU(), _conv3(width, width), _frozen_scale_norm(width)]
                rest = [_AddInput(*rest, *more)]
            layers += [*rest, nn.GELU()]
            size, inputs = size // 2 if pool else size, width
        self.blocks = nn.Sequential(*layers)
        self.head = nn.Linear(inputs, classes, bias=False)

    def _shrunk(self, images: torch.Tensor) -> torch.Tensor:
        return nn.functional.avg_pool2d(images, self.shrink) if self.shrink > 1 else images

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        hidden = nn.functional.gelu(self.whiten(self._shrunk(images)))
        return self.head(_largest(self.blocks(hidden))) / 9


# A compiler computes the hidden values again for the backward pass, with another rounding, finds
# none equal to the maximum, and gives 0 / 0 as their share of the gradient.
@torch.compiler.disable
def _largest(x: torch.Tensor) -> torch.Tensor:
    """The largest value of each channel: [B, C, H, W] to [B, C]."""
    return x.amax((2, 3))


class _Residual(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.skip = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.skip = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.relu(self.body(x) + self.skip(x))


class ResNet(nn.Module):
    """ResNet with basic blocks (He et al. 2016): 3 x 3 stem for small images, 7 x 7 above 64 px,
    unless ``fine``.

    Args:
        images: float [B, C, S, S]; only its shape is read.
        classes: Number of outputs.
        depths: Blocks in each of the four stages: (2, 2, 2, 2) is ResNet-18, (3, 4, 6, 3) is 34.
        fine: Whether images of every size get the 3 x 3 stem.
    """

    def __init__(
        self,
        images: torch.Tensor,
        classes: int,
        depths: tuple[int, int, int, int],
        fine: bool = False,
    ):
        super().__init__()
        channels, size = images.shape[1], images.shape[-1]
        if fine or size <= 64:
            stem = [nn.Conv2d(channels, 64, 3, 1, 1, bias=False)]
            pool: list[nn.Module] = []
        else:
            stem = [nn.Conv2d(channels, 64, 7, 2, 3, bias=False)]
            pool = [nn.MaxPool2d(3, 2, 1)]
        layers = [*stem, nn.BatchNorm2d(64), nn.ReLU(inplace=True), *pool]
        inputs = 64
        for stage, depth in enumerate(depths):
            outputs = 64 * 2**stage
            for block in range(depth):
                layers.append(_Residual(inputs, outputs, 2 if stage and not block else 1))
                inputs = outputs
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(inputs, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(images).mean((2, 3)))


NETWORKS: dict[str, Callable[[torch.Tensor, int], nn.Module]] = {
    "convnet_large": lambda images, classes: ConvNet(images, classes, (128, 384, 512), True),
    "convnet": lambda images, classes: ConvNet(images, classes, (64, 256, 256)),
    "convnet_small": lambda images, classes: ConvNet(images, classes, (32, 64, 128)),
    "convnet_tiny": lambda images, classes: ConvNet(images, classes, (16, 32, 32)),
    "resnet18": lambda images, classes: ResNet(images, classes, (2, 2, 2, 2)),
    "resnet18_3x3": lambda images, classes: ResNet(images, classes, (2, 2, 2, 2), fine=True),
    "resnet34": lambda images, classes: ResNet(images, classes, (3, 4, 6, 3)),
}


def build_network(name: str, images: torch.Tensor, classes: int, *, seed: int) -> nn.Module:
    """Build a network with weights drawn from ``seed`` (the caller's random state is untouched).

    Args:
        name: Key of :data:`NETWORKS`.
        images: float [B, C, S, S] sample of normalised training images.
        classes: Number of outputs.
        seed: Seed of the initial weights.

    Raises:
        ElfsError: if the name is unknown.
    """
    builder = NETWORKS[choose("network", name, NETWORKS)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return builder(images.cpu(), classes)
