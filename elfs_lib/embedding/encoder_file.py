"""Files of encoders that were trained on the images themselves.

Tensors are named ``backbone.*`` (a network of :data:`elfs_lib.training.models.NETWORKS` without its
head, or a timm model), ``expander.*`` (layers behind it whose output is the embedding, if any) and
``input.mean`` and ``input.std`` [1, C, 1, 1] for images in [0, 1]. Safetensors: nothing in them can
run. Their metadata holds texts: the method, the images, the network and the size of the images;
what it leaves out is read off the tensors.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from elfs_lib.embedding.encoders import about_encoder
from elfs_lib.errors import ElfsError
from elfs_lib.training.models import NETWORKS, ConvNet, build_network


@dataclass(frozen=True)
class PreparedNetwork:
    """A network, and what images go through before it.

    Attributes:
        network: Without a head; features [B, D].
        prepare: float32 [B, C, H, W] in [0, 1] to the network's input.
    """

    network: nn.Module
    prepare: Callable[[Tensor], Tensor]


class Normalise(nn.Module):
    """(x - mean) / std by channel, after resizing to the size that the network was trained on.

    Args:
        mean, std: float32 [1, C, 1, 1], of images in [0, 1].
        size: Height and width in pixels; None = images stay as they come.
    """

    def __init__(self, mean: Tensor, std: Tensor, size: tuple[int, int] | None = None):
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        if self.size and x.shape[2:] != self.size:
            x = F.interpolate(x, self.size, mode="bilinear", antialias=True)
        return (x - self.mean) / self.std


class Expanded(nn.Module):
    """A backbone with an expander behind it, whose output is the embedding."""

    def __init__(self, backbone: nn.Module, expander: nn.Module):
        super().__init__()
        self.backbone, self.expander = backbone, expander

    def forward(self, x: Tensor) -> Tensor:
        return self.expander(self.backbone(x))


def expander(width: int, features: int) -> nn.Sequential:
    """Linear, BatchNorm, ReLU: [B, width] to [B, features]."""
    return nn.Sequential(
        nn.Linear(width, features), nn.BatchNorm1d(features), nn.ReLU(inplace=True)
    )


def save_encoder(encoder: PreparedNetwork, path: str | Path, about: Mapping[str, object]) -> None:
    """Write an encoder and what is known of it; :func:`load_encoder_file` reads it back.

    Args:
        encoder: Its ``prepare`` is a :class:`Normalise`; any other is not stored, and whoever
            loads the network must know it.
        path: File to write.
        about: ``method``, ``images``, ``network`` and ``size``, and whatever else is worth keeping.
    """
    network = encoder.network
    parts = {"backbone": network}
    if isinstance(network, Expanded):
        parts = {"backbone": network.backbone, "expander": network.expander}
    if isinstance(encoder.prepare, Normalise):
        parts["input"] = encoder.prepare
    tensors = {
        f"{part}.{name}": value.detach().cpu().contiguous()
        for part, module in parts.items()
        for name, value in module.state_dict().items()
    }
    # one entry, for safetensors writes several in an order that changes from call to call, and the
    # embeddings' key holds the file's contents
    save_file(tensors, path, {"about": json.dumps(dict(about), sort_keys=True)})


def read_encoder_tensors(path: str | Path) -> dict[str, dict[str, Tensor]]:
    """The tensors of a file by part (backbone, expander, input), in float32 where they are floats.

    Raises:
        ElfsError: if the file cannot be read.
    """
    parts: dict[str, dict[str, Tensor]] = {"backbone": {}, "expander": {}, "input": {}}
    try:
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118
                part, _, rest = name.partition(".")
                value = file.get_tensor(name)
                parts.setdefault(part, {})[rest] = (
                    value.float() if value.is_floating_point() else value
                )
    except (OSError, SafetensorError) as error:
        raise ElfsError(f"encoder_checkpoint {path} cannot be read: {error}.") from error
    return parts


def load_encoder_file(path: str | Path, image_size: tuple[int, int]) -> PreparedNetwork:
    """Build the encoder of a file, in eval mode on the CPU.

    Args:
        path: Written by :func:`save_encoder`, with a network of this library.
        image_size: Height and width of the images, for a file that does not say what it was
            trained on; where it does, images of another size are resized to that.

    Raises:
        ElfsError: if the file cannot be read, or holds no network of this library.
    """
    about, parts = about_encoder(path), read_encoder_tensors(path)
    size = tuple(about["size"]) if "size" in about else None
    channels = parts["input"]["mean"].shape[1] if "mean" in parts["input"] else 0
    backbone = None
    for name in [about["network"]] if "network" in about else NETWORKS:
        if channels and name in NETWORKS:
            backbone = _fitting(name, parts["backbone"], (channels, *(size or image_size)))
        if backbone is not None:
            break
    if backbone is None:
        raise ElfsError(
            f"encoder_checkpoint {path} holds none of the networks {', '.join(NETWORKS)}: give a "
            "file that was written with an encoder trained here."
        )
    network = backbone
    if parts["expander"]:
        layers = expander(*reversed(parts["expander"]["0.weight"].shape))
        layers.load_state_dict(parts["expander"])
        network = Expanded(backbone, layers)
    prepare = Normalise(parts["input"]["mean"], parts["input"]["std"], size)
    return PreparedNetwork(network.eval(), prepare)


def _fitting(name: str, state: dict[str, Tensor], shape: tuple[int, ...]) -> nn.Module | None:
    """The network of a name with these weights, or None if they are not its."""
    noise = torch.rand((64, *shape), generator=torch.Generator().manual_seed(0))
    network = build_network(name, noise, 1, seed=0)
    network.head = nn.Identity()
    whitened = len(state.get("whiten.weight", ()))
    if whitened and isinstance(network, ConvNet) and whitened != network.whiten.out_channels:
        # its images had fewer directions than noise has
        network.whiten = nn.Conv2d(shape[0], whitened, 2)
        first = network.blocks[0].out_channels
        network.blocks[0] = nn.Conv2d(whitened, first, 3, padding=1, bias=False)
    wanted = network.state_dict()
    if wanted.keys() != state.keys() or any(wanted[k].shape != state[k].shape for k in wanted):
        return None
    network.load_state_dict(state)
    return network
