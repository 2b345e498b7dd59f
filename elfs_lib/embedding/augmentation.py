"""Random views of images, all images of a batch at once on their device."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

BLUR_SIDE = 64  # smaller images have no detail to lose
JITTERED = 0.8  # share of the views whose light and colour change, as SimCLR
# RGB to luma (ITU-R BT.601) and the two chroma axes, in which hue is an angle
YIQ = ((0.299, 0.587, 0.114), (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112))


@dataclass(frozen=True)
class Augmentation:
    """What may differ between two views of an image.

    Attributes:
        area: Smallest and largest share of the image's area that a crop shows, in (0, 1].
        ratio: Largest ratio of a crop's sides, either way; 1 = that of the image.
        flip: Whether half of the views are mirrored.
        jitter: Strength of brightness, contrast and saturation changes, in [0, 1]; hue changes by
            up to a quarter of it, in turns of the colour circle. 0 leaves them out.
        grey: Share of the views of colour images that lose their colour.
        solarise: Share of the views whose bright half is inverted.
        blur: Whether half of the views of images above 64 px are blurred.
    """

    area: tuple[float, float] = (0.4, 1.0)
    ratio: float = 4 / 3
    flip: bool = True
    jitter: float = 0.6
    grey: float = 0.2
    solarise: float = 0.0
    blur: bool = True


def augment(x: Tensor, how: Augmentation, generator: torch.Generator) -> Tensor:
    """One random view of each image.

    The changes are those of SimCLR (Chen et al., ICML 2020): random resized crop, mirroring,
    changed brightness, contrast, saturation and hue, loss of colour, blur; and solarisation, which
    BYOL (Grill et al., NeurIPS 2020) added.

    Args:
        x: float32 [B, C, H, W] in [0, 1], C = 1 or 3.
        how: Which changes, and how strong.
        generator: On the device of ``x``.

    Returns:
        float32 [B, C, H, W] in [0, 1].
    """
    x = _crop(x, how, generator)
    if x.shape[1] == 3:
        x = recolour(x, how, generator)
    x = light(x, how.jitter, generator)
    if how.solarise:
        x = solarise(x, how.solarise, generator)
    return blur(x, generator) if how.blur and max(x.shape[2:]) > BLUR_SIDE else x


def _uniform(count: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(count, generator=generator, device=generator.device)


def _happens(count: int, probability: float, generator: torch.Generator) -> Tensor:
    """1.0 where it does, 0.0 where it does not."""
    return (_uniform(count, 0, 1, generator) < probability).float()


def _crop(x: Tensor, how: Augmentation, generator: torch.Generator) -> Tensor:
    """Random resized crop and mirroring as one resampling."""
    count = len(x)
    area = _uniform(count, *how.area, generator)
    ratio = _uniform(count, -math.log(how.ratio), math.log(how.ratio), generator).exp()
    width, height = (area * ratio).sqrt().clamp_max(1), (area / ratio).sqrt().clamp_max(1)
    # in affine_grid's coordinates the image reaches from -1 to 1
    left = (1 - width) * _uniform(count, -1, 1, generator)
    top = (1 - height) * _uniform(count, -1, 1, generator)
    if how.flip:
        width = width * (1 - 2 * _happens(count, 0.5, generator))
    none = torch.zeros_like(width)
    theta = torch.stack([width, none, left, none, height, top], 1).view(count, 2, 3)
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


def recolour(x: Tensor, how: Augmentation, generator: torch.Generator) -> Tensor:
    """Saturation, hue and loss of colour: one 3 x 3 matrix an image, by way of YIQ."""
    count, strength = len(x), how.jitter
    changed = _happens(count, JITTERED, generator)
    saturation = 1 + changed * _uniform(count, -strength, strength, generator)
    saturation = saturation * (1 - _happens(count, how.grey, generator))
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
    """The matrix from RGB to YIQ and the one back, float32; cached, to avoid a copy to the device
    in every step."""
    matrix = torch.tensor(YIQ)
    return matrix.to(device), torch.linalg.inv(matrix).to(device)


def light(x: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Brightness (about black), contrast (about the image's mean grey); clamps to [0, 1]."""
    count = len(x)
    changed = _happens(count, JITTERED, generator)
    brightness = 1 + changed * _uniform(count, -strength, strength, generator)
    contrast = 1 + changed * _uniform(count, -strength, strength, generator)
    x = x * brightness.view(-1, 1, 1, 1)
    luma = _yiq(x.device)[0][:1, :, None, None]
    grey = (x * luma).sum(1, keepdim=True) if x.shape[1] == 3 else x
    centre = grey.mean((2, 3), keepdim=True)
    return torch.lerp(centre, x, contrast.view(-1, 1, 1, 1)).clamp(0, 1)


def solarise(x: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Invert the values from one half up, in a share of the images."""
    inverted = _happens(len(x), share, generator).view(-1, 1, 1, 1) * (x >= 0.5)
    return torch.lerp(x, 1 - x, inverted)


def blur(x: Tensor, generator: torch.Generator) -> Tensor:
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
