"""Embeddings by frozen encoders: uint8 images in, one float32 vector for each image out."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from elfs_lib.bounds import bounded, check_bounds
from elfs_lib.compute import (
    COMPILE,
    autocast,
    compiled,
    compiles,
    resolve_device,
    resolve_precision,
)
from elfs_lib.embedding import encoder_bounds
from elfs_lib.embedding.emp_ssl import EmpSslConfig, train_emp_ssl
from elfs_lib.embedding.encoder_file import PreparedNetwork
from elfs_lib.embedding.encoders import (
    OWN,
    check_method,
    check_positive,
    is_encoder_file,
    split_encoders,
    trains_here,
)
from elfs_lib.embedding.networks import for_inference, pretrained_encoder, stored_encoder
from elfs_lib.embedding.pca import BLOCK, principal_axes
from elfs_lib.embedding.rows import forget
from elfs_lib.embedding.self_supervised import SelfSupervisedConfig, TrainedEncoder, train_encoder
from elfs_lib.errors import ElfsError, check_images, choose
from elfs_lib.progress import track

PIXELS_MAX_SIDE = 32  # larger images are averaged down: raw pixels say little more beyond it
CPU_BATCH_PER_THREAD = 16  # activations stay in the cache: 2.4 times faster than 256
GPU_BATCH = 256
# Steps of the crops' corners, as shares of the room there is: 1/g and 1/g^2 with g^3 = g + 1 fill a
# square evenly with any number of points (Roberts, 2018).
SPREAD = (0.7548776662466927, 0.5698402909980532)

#: Keeps N rows that come in parts [B, D], and returns them as an array [N, D].
Keep = Callable[[int, Iterable[np.ndarray]], np.ndarray]


def in_memory(count: int, parts: Iterable[np.ndarray]) -> np.ndarray:
    """The rows of parts float32 [B, D], ``count`` in all, as one array."""
    found, start = None, 0
    for part in parts:
        if found is None:
            found = np.empty((count, part.shape[1]), np.float32)
        found[start : start + len(part)] = part
        start += len(part)
    return found


def embed(
    images: np.ndarray,
    encoder: str,
    *,
    checkpoint: str | Path | None = None,
    input_size: int | None = None,
    views: Views | None = None,
    batch: int | None = None,
    device: str = "auto",
    precision: str = "auto",
    compile: str = "off",
    seed: int = 0,
    self_supervised: SelfSupervisedConfig | EmpSslConfig | None = None,
    keep: Keep = in_memory,
) -> np.ndarray:
    """Embed every image with one frozen encoder, or with several joined by "+".

    Images are resized and normalised batch by batch on the device, so that no float copy of the
    whole set is ever held.

    Args:
        images: uint8 [N, C, H, W], C = 1 (repeated to grey RGB) or 3.
        encoder: A name of :data:`elfs_lib.embedding.encoders.ENCODERS`, any timm model with
            pretrained weights (or any timm model, with a checkpoint), one of these as
            "adapted_NAME", whose weights are trained further on the images without labels, or
            several such as "dino_vitb16+swav_resnet50".
        checkpoint: Local weights, ``.safetensors`` or what ``torch.save`` made of a state dict;
            for several encoders "name=path,name=path", where those left out are downloaded. Of an
            encoder that is trained on its images, the file of one that was
            (:mod:`elfs_lib.embedding.encoder_file`): then nothing is trained.
        input_size: Side in pixels that images are resized to; None = the encoder's own rule.
        views: Crops of each image whose mean is its embedding; None = the whole image.
        batch: Images for each forward pass; None = what was fastest for the device.
        device: "auto", "cpu", "cuda", "mps".
        precision: "auto", "float32", "bfloat16".
        compile: "off", "auto" or "on": whether torch.compile works on the network, see
            :func:`elfs_lib.compute.compiles`; the result is the same up to rounding.
        seed: Of encoders that are trained here; the others have nothing random.
        self_supervised: How ``self_supervised`` and adapted encoders are trained; None = the
            defaults.
        keep: Where the rows go as they are made: into memory, or to a file.

    Returns:
        float32 [N, D] in the order of ``images``: the pooled features before any head. One
        encoder's are not normalised; several are each L2-normalised, then concatenated.

    Raises:
        ElfsError: for an unknown encoder, images of another shape or type, weights that do not
            fit or cannot be read safely, and weights that cannot be downloaded.
    """
    check_images(images)
    if not len(images):
        raise ElfsError("images are empty: there is nothing to embed.")
    check_positive("input_size", input_size)
    check_positive("batch", batch)
    where = resolve_device(device)
    dtype = resolve_precision(precision, where)

    def rows_of(name: str, path: str | Path | None) -> Iterator[np.ndarray]:
        if name == "pixels":
            return _pixels(images, input_size)
        if trains_here(name) and not is_encoder_file(path):
            network = train_named(
                images,
                name,
                self_supervised,
                checkpoint=path,
                input_size=input_size,
                seed=seed,
                device=device,
                precision=precision,
            )
        else:
            network = stored_encoder(name, images.shape[2:], path, input_size)
        return Embedder(name, network, where, dtype, batch, views, compile).parts(images)

    count, (first, *others) = len(images), split_encoders(encoder, checkpoint).items()
    if not others:
        return keep(count, rows_of(*first))
    blocks = [in_memory(count, rows_of(*part)) for part in (first, *others)]
    return keep(count, concatenate(blocks))


def train_named(
    images: np.ndarray,
    name: str,
    config: SelfSupervisedConfig | EmpSslConfig | None = None,
    *,
    checkpoint: str | Path | None = None,
    input_size: int | None = None,
    **options: Any,
) -> TrainedEncoder:
    """Train ``self_supervised`` or ``adapted_NAME`` on the images; no label is involved.

    Args:
        config: How, and with which method; None = contrastive with its defaults.
        checkpoint: Of the pretrained network to adapt; None = its published weights.
        **options: ``seed``, ``device``, ``precision`` and ``loader`` of
            :func:`elfs_lib.embedding.self_supervised.train_encoder`.

    Raises:
        ElfsError: for a network to adapt with EMP-SSL, and what training raises.
    """
    if isinstance(config, EmpSslConfig):
        check_method(name, "emp_ssl")
        return train_emp_ssl(images, config, **options)
    start = None
    if name != OWN:
        start = pretrained_encoder(name, images.shape[2:], checkpoint, input_size)
    return train_encoder(images, config, start=start, **options)


@dataclass(frozen=True)
class Views:
    """Crops that stand for an image: the same ones for every image, spread evenly over it.

    A network that was trained on crops knows an image best by several of them: the embedding is
    the mean of their features, each scaled to length 1, scaled to length 1 again.

    Attributes:
        count: Crops of each image, at least 1.
        area: Share of the image that a crop shows, in (0, 1]; its sides are in the image's ratio.
        mirror: Whether every other crop is mirrored.
    """

    count: int = bounded(**encoder_bounds.VIEWS)
    area: float = bounded(0.25, **encoder_bounds.VIEW_AREA)
    mirror: bool = True

    def __post_init__(self) -> None:
        check_bounds(self)

    def of(self, x: Tensor) -> Iterator[Tensor]:
        """Yield each crop of images [B, C, H, W], resized to [B, C, H, W]."""
        height, width = x.shape[2:]
        tall, wide = (max(1, round(side * self.area**0.5)) for side in (height, width))
        for number in range(self.count):
            top = round((height - tall) * ((0.5 + number * SPREAD[0]) % 1))
            left = round((width - wide) * ((0.5 + number * SPREAD[1]) % 1))
            crop = x[:, :, top : top + tall, left : left + wide]
            if (tall, wide) != (height, width):
                crop = F.interpolate(crop, (height, width), mode="bilinear")
            yield crop.flip(3) if self.mirror and number % 2 else crop


class Embedder:
    """A network that embeds images: call it with the images, as often as they come in parts.

    Args:
        name: Shown beside the progress bar.
        network: What embeds; it is changed for inference.
        device: Where.
        dtype: Of the products.
        batch: Images, or crops, for each forward pass; None = what was fastest for the device.
        views: Crops of each image whose mean is its embedding; None = the whole image. A GPU takes
            all crops of some images in one pass, a CPU one crop of each after the other.
        compile: As for :func:`embed`; it is decided on the first images.
        count: Images that will come in all; None = as many as come first.
    """

    def __init__(
        self,
        name: str,
        network: PreparedNetwork,
        device: torch.device,
        dtype: torch.dtype,
        batch: int | None = None,
        views: Views | None = None,
        compile: str = "off",
        count: int | None = None,
    ):
        self.count = count
        self.views, self.compile = views, choose("compile", compile, COMPILE)
        self.name, self.device, self.dtype = name, device, dtype
        self.batch = batch or _default_batch(device)
        self.together = views.count if views and device.type != "cpu" else 1  # crops in a pass
        self.step = max(1, self.batch // self.together)  # images
        self.network = for_inference(network.network, device)
        self.fast: nn.Module | None = None
        self.prepare = network.prepare
        if isinstance(self.prepare, nn.Module):
            self.prepare.to(device)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Embed uint8 [N, C, H, W] to float32 [N, D]."""
        return in_memory(len(images), self.parts(images))

    def parts(self, images: np.ndarray) -> Iterator[np.ndarray]:
        """The same a batch at a time; of images in a memory map no more is held."""
        if self.fast is None:
            self._choose(images)
        starts = track(range(0, len(images), self.step), f"embedding with {self.name}")
        launched = (self._launch(images[start : start + self.step]) for start in starts)
        # A GPU is given the next batch before the features of one are read, and so never waits.
        for features, _ in itertools.pairwise(itertools.chain(launched, [None])):
            yield features.cpu().numpy()
            forget(images)

    def _choose(self, images: np.ndarray) -> None:
        """Compile the network for full batches, where that is wanted."""
        self.fast = self.network
        if self.compile == "off" or not len(images):
            return
        with FlopCounterMode(display=False) as counter:
            self._launch(images[:1])
        count = self.count or len(images)
        if compiles(self.compile, self.device, count * counter.get_total_flops()):

            def run(network: nn.Module) -> None:
                self.fast = network
                self._launch(np.resize(images[: self.step], (self.step, *images.shape[1:])))

            self.fast = compiled(self.network, run)

    @torch.inference_mode()
    def _launch(self, images: np.ndarray) -> Tensor:
        """float32 [B, D] on the device, which may still be at work on it."""
        x = batch_for(self.device, images).to(self.device, non_blocking=True).float().div_(255)
        if self.views is None:
            return self._features(x)
        crops = self.views.of(x)
        passes = iter(lambda: list(itertools.islice(crops, self.together)), [])
        total = sum(
            F.normalize(self._features(torch.cat(some))).unflatten(0, (len(some), len(x))).sum(0)
            for some in passes
        )
        return F.normalize(total)

    def _features(self, x: Tensor) -> Tensor:
        x = self.prepare(x).contiguous(memory_format=torch.channels_last)
        # compiled for one shape: what is left over at the end is not worth another
        network = self.fast if len(x) == self.step * self.together else self.network
        with autocast(self.device, self.dtype):
            return network(x).float()


def batch_for(device: torch.device, images: np.ndarray) -> Tensor:
    """A copy of images uint8 on the host, so that read-only memory maps work; in pinned memory for
    a GPU, or the upload would wait for the batch before."""
    found = torch.empty(images.shape, dtype=torch.uint8, pin_memory=device.type == "cuda")
    np.copyto(found.numpy(), images)
    return found


def frozen_embedder(
    name: str,
    image_size: tuple[int, int],
    *,
    checkpoint: str | Path | None = None,
    input_size: int | None = None,
    views: Views | None = None,
    device: str = "auto",
    precision: str = "auto",
    compile: str = "off",
    count: int | None = None,
) -> Embedder:
    """Load one encoder, for images of one size that come in parts.

    Args:
        name: One name (no "+"), not ``pixels``, of an encoder that needs no training: pretrained,
            or with ``checkpoint`` the file of one that was trained on images.
        image_size: Height and width of the images, in pixels.
        checkpoint: Local weights; None = the package's, the cache's, or a download.
        input_size: As for :func:`embed`, like what follows.
        count: Images that will come in all.

    Raises:
        ElfsError: as :func:`embed`.
    """
    where = resolve_device(device)
    dtype = resolve_precision(precision, where)
    network = stored_encoder(name, image_size, checkpoint, input_size)
    return Embedder(name, network, where, dtype, views=views, compile=compile, count=count)


def concatenate(blocks: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
    """Embeddings of several encoders side by side, each row L2-normalised first.

    Args:
        blocks: float32 [N, D], one an encoder. A row of zeros stays as it is.

    Yields:
        float32 [some rows, sum of D], N rows in all.
    """
    tiny = np.finfo(np.float32).tiny
    for start in range(0, len(blocks[0]), BLOCK):
        rows = [np.asarray(block[start : start + BLOCK]) for block in blocks]
        lengths = (np.linalg.norm(part, axis=1, keepdims=True) for part in rows)
        yield np.concatenate(
            [part / np.maximum(length, tiny) for part, length in zip(rows, lengths, strict=True)],
            axis=1,
        )
        for block in blocks:
            forget(block)


class Reduction(NamedTuple):
    """Principal components in place of features: rows x become (x - mean) @ axes.

    Attributes:
        mean: float32 [D].
        axes: float32 [D, P].
    """

    mean: np.ndarray
    axes: np.ndarray

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """float32 [N, D] to float32 [N, P]."""
        return in_memory(len(features), self.parts(features))

    def parts(self, features: np.ndarray) -> Iterator[np.ndarray]:
        """The same some rows at a time."""
        for start in range(0, len(features), BLOCK):
            yield (features[start : start + BLOCK] - self.mean) @ self.axes
            forget(features)


def fit_reduction(features: np.ndarray, components: int) -> Reduction:
    """The largest principal components of features float32 [N, D].

    Raises:
        ElfsError: if there are fewer.
    """
    if components > min(features.shape):
        raise ElfsError(
            f"encoder_pca is {components} but {len(features)} images of {features.shape[1]} "
            f"features have no more than {min(features.shape)} components: choose fewer, or null."
        )
    rows = torch.from_numpy(features)
    mean = rows.mean(0)
    return Reduction(mean.numpy(), principal_axes(rows, mean, components).numpy())


def _pixels(images: np.ndarray, input_size: int | None) -> Iterator[np.ndarray]:
    """Pixel values in [0, 1]. Nothing is standardised, so constant pixels divide by nothing."""
    height, width = images.shape[2:]
    side = input_size or min(PIXELS_MAX_SIDE, max(height, width))
    scale = side / max(height, width)
    size = [max(1, round(height * scale)), max(1, round(width * scale))]
    for start in range(0, len(images), 512):
        part = images[start : start + 512]
        if max(height, width) == side:
            found = part.reshape(len(part), -1).astype(np.float32) / 255
        else:
            small = F.interpolate(torch.tensor(part).float(), size, mode="area")
            found = small.flatten(1).div_(255).numpy()
        # a black image has no direction: it gets that of uniformly grey images
        found[~found.any(1)] = 1 / 255
        yield found
        forget(images)


def _default_batch(device: torch.device) -> int:
    return CPU_BATCH_PER_THREAD * torch.get_num_threads() if device.type == "cpu" else GPU_BATCH
