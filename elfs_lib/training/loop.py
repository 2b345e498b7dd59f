"""The one training loop: proxies, beta search and coreset models all go through it.

One file: every way of training, alone or on several ranks, goes through the same steps.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from elfs_lib.compute import (
    COMPILE,
    Replayed,
    at_a_time,
    autocast,
    compiled,
    compiles,
    matmul_peak,
    own_stream,
    replays,
    resident,
    resolve_device,
    resolve_precision,
)
from elfs_lib.errors import ElfsError, check_images, choose
from elfs_lib.progress import track
from elfs_lib.training.distributed import Ranks, joined
from elfs_lib.training.dynamics import DynamicsRecorder
from elfs_lib.training.loader import (
    LOADERS,
    SHUFFLES,
    Loader,
    ResidentLoader,
    StreamedLoader,
    streams,
)
from elfs_lib.training.models import build_network
from elfs_lib.training.optimizer import build_optimizer, set_learning_rate
from elfs_lib.training.recipes import Recipe

READ_EVERY = 100  # steps between two looks at the losses


@dataclass(frozen=True)
class Length:
    """How long to train: a number of epochs, or a number of steps whatever the subset's size."""

    epochs: int | None = None
    steps: int | None = None

    def total_steps(self, batches_per_epoch: int) -> int:
        if (self.epochs is None) == (self.steps is None):
            raise ElfsError("Give the length of training as epochs or as steps, one of the two.")
        length = self.steps if self.epochs is None else self.epochs
        if length < 1:
            unit = "steps" if self.epochs is None else "epochs"
            raise ElfsError(f"The length of training is {length} {unit}: give at least 1.")
        return length if self.epochs is None else length * batches_per_epoch


@dataclass(frozen=True)
class Seeds:
    """Separate seeds for initial weights, order of images, and augmentation."""

    weights: int
    order: int
    augment: int

    @classmethod
    def all(cls, seed: int) -> Seeds:
        """Three different streams from one seed."""
        weights, order, augment = np.random.SeedSequence(seed).generate_state(3)
        return cls(int(weights), int(order), int(augment))


@dataclass(frozen=True)
class Trained:
    """A trained model with what it took.

    Attributes:
        model: In eval mode, on its device.
        losses: float32 [epochs], mean training loss of each (possibly partial) epoch.
        steps: Optimiser steps taken.
        flops: Multiplications and additions of training (forward, backward and the optimiser's
            matrix products), counted by torch's FlopCounterMode in the first step.
        seconds: Wall time of the loop.
    """

    model: nn.Module
    losses: np.ndarray
    steps: int
    flops: float
    seconds: float
    loader: Loader
    mirror_test: bool
    shift_test: int
    dtype: torch.dtype

    @property
    def share_of_peak(self) -> float:
        """FLOP/s of the training over those of a square product in its precision, in [0, 1].

        The product is timed now, on one process, and counted once for each that trained.
        """
        peak = matmul_peak(self.dtype, self.loader.device) * self.loader.ranks.size
        return self.flops / self.seconds / peak

    @torch.inference_mode()
    def logits(
        self, images: np.ndarray, rows: np.ndarray | None = None, *, batch: int = 1000
    ) -> torch.Tensor:
        """Logits of images, normalised as the training images were.

        Args:
            images: uint8 [N, C, H, W], a memory map too: no more than a batch is copied.
            rows: int64 [M], the images that are asked for; None for all N.
            batch: Most images at a time; fewer where they are large.

        Returns:
            float32 [M, classes], on the CPU.
        """
        device, found = self.loader.device, None
        count = len(images) if rows is None else len(rows)
        batch = at_a_time(images[:1].nbytes, batch)
        for part in (slice(start, start + batch) for start in range(0, count, batch)):
            block = images[part if rows is None else rows[part]]
            block = torch.from_numpy(np.array(block.transpose(0, 2, 3, 1)))
            block = self.loader.normalise(block.to(device))
            logits = sum(weight * self._mirrored(view) for weight, view in self._views(block))
            if found is None:
                found = torch.empty(count, logits.shape[1])
            found[part] = logits
        return found

    def _views(self, block: torch.Tensor) -> Iterator[tuple[float, torch.Tensor]]:
        """What is averaged for a prediction, with weights that sum to 1."""
        if not self.shift_test:
            yield 1.0, block
            return
        yield 0.5, block
        pad, (height, width) = self.shift_test, block.shape[2:]
        padded = F.pad(block, (pad,) * 4, "reflect")
        for start in (0, 2 * pad):
            yield 0.25, padded[:, :, start : start + height, start : start + width]

    def _mirrored(self, block: torch.Tensor) -> torch.Tensor:
        with autocast(self.loader.device, self.dtype):
            logits = self.model(block).float()
            return (logits + self.model(block.flip(3)).float()) / 2 if self.mirror_test else logits

    def accuracy(
        self, images: np.ndarray, labels: np.ndarray, rows: np.ndarray | None = None
    ) -> float:
        """Share of images classified right, in [0, 1].

        Args:
            images: As for :meth:`logits`, like ``rows``.
            labels: int64 [M], of the images that are asked for.
        """
        return float((self.logits(images, rows).argmax(1).numpy() == labels).mean())


def train(
    images: np.ndarray,
    targets: np.ndarray,
    classes: int,
    recipe: Recipe,
    length: Length,
    *,
    seeds: Seeds,
    subset: np.ndarray | None = None,
    weights: np.ndarray | None = None,
    flip: bool = True,
    crop_pad: int = 4,
    device: str = "auto",
    precision: str = "auto",
    compile: str = "off",
    loader: str = "auto",
    shuffle: str = "full",
    recorder: DynamicsRecorder | None = None,
    desc: str = "training",
) -> Trained:
    """Train a recipe on (a subset of) images and keep the last step's model.

    Args:
        images: uint8 [N, C, H, W].
        targets: int64 [n], labels of the images trained on, in the order of ``subset``.
        classes: Number of classes.
        recipe: What to train, and how.
        length: Epochs or steps.
        seeds: Seeds of weights, order and augmentation.
        subset: int64 [n], rows of ``images`` to train on; None for all N.
        weights: float [n], at least 0: how much the loss of each image counts, whatever their
            scale; None for all alike.
        flip: Whether mirrored images keep their class (not so for digits).
        crop_pad: Largest shift in pixels.
        device: See :func:`elfs_lib.compute.resolve_device`.
        precision: See :func:`elfs_lib.compute.resolve_precision`.
        compile: "off", "auto" or "on": whether torch.compile works on the network (see
            :func:`elfs_lib.compute.compiles`). With "auto" and "on" a GPU also gets a fused
            optimiser, and its steps as CUDA graphs. The result is the same up to rounding. Several
            processes train without.
        loader: "resident": the images stay on the device; "streamed": they are read as they are
            needed, so ``images`` may be a memory map of any size; "auto" decides by the free
            memory (see :func:`elfs_lib.training.loader.streams`). The result is the same, bit for
            bit.
        shuffle: "full", or "blocks" for images that are read from a disk that is slow at random
            (see :func:`elfs_lib.training.loader.block_order`): another order, another result.
        recorder: Gets the logits of each training step; needs a length in epochs.
        desc: Text of the progress bar.

    Raises:
        ElfsError: if the images have another type or shape, if targets, subset, weights or
            crop_pad do not fit them, a target is no class, or the loss stops being finite.
    """
    _check(images, targets, classes, subset, crop_pad)
    if min(images.shape[2:]) < recipe.side:
        raise ElfsError(
            f"The recipe crops images to {recipe.side} px but these have {min(images.shape[2:])}: "
            f"set image_size to {recipe.side} or more."
        )
    _check_weights(weights, len(targets))
    choose("compile", compile, COMPILE)
    choose("loader", loader, LOADERS)
    choose("shuffle", shuffle, SHUFFLES)
    place = resolve_device(device)
    labels = torch.as_tensor(targets, dtype=torch.int64, device=place)
    data = (labels,)
    if weights is not None:
        data += (torch.as_tensor(weights / np.mean(weights), dtype=torch.float32, device=place),)
    job = _Job(
        classes=classes,
        recipe=recipe,
        length=length,
        seeds=seeds,
        flip=flip,
        crop_pad=crop_pad,
        precision=precision,
        compile=compile,
        recorded=recorder is not None,
    )
    ranks = Ranks.here()
    ranks.check(device, place, len(labels) // -(-len(labels) // recipe.batch))
    layout = None
    if shuffle == "blocks":
        ranks.check_alone("shuffle: blocks")
        order = np.arange(len(labels)) if subset is None else np.argsort(subset, kind="stable")
        layout = torch.from_numpy(order)
    if loader == "streamed":
        ranks.check_alone("loader: streamed")
    if ranks.size == 1 and streams(loader, images, len(labels), place):
        make = partial(StreamedLoader, images, subset, place, layout=layout)
    else:
        pixels = resident(images, place, subset)
        ranks.send(device, asdict(job), pixels, *data)
        make = partial(ResidentLoader, pixels, layout=layout)
    return _fit(job, make, *data, recorder=recorder, ranks=ranks, desc=desc)


def together(lead: Callable[[], None]) -> None:
    """Run ``lead`` on rank 0 of the processes that ``torchrun`` started; the others help it train.

    Raises:
        SystemExit: as ``lead`` does, after the others were told that it is over. Any other error
            is left to torchrun, which then ends them.
    """
    with joined() as ranks:
        if ranks.rank:
            os.environ["ELFS_PROGRESS"] = "0"
            while _help(ranks):
                pass
            return
        try:
            lead()
        except SystemExit:
            ranks.stop()
            raise
        ranks.stop()


def _help(ranks: Ranks) -> bool:
    """Take part in one training; False when there are no more.

    A function of its own, so that its images are gone before those of the next training come.
    """
    received = ranks.receive()
    if received is None:
        return False
    job, data = _Job.read(received[0]), received[1]
    recorder = DynamicsRecorder(data[1], data[1].device) if job.recorded else None
    try:
        make = partial(ResidentLoader, data[0])
        _fit(job, make, *data[1:], recorder=recorder, ranks=ranks, desc="")
    except ElfsError:
        pass  # rank 0 raises the same and says it
    return True


@dataclass(frozen=True)
class _Job:
    """A training but for its images, labels and weights: what rank 0 tells the others."""

    classes: int
    recipe: Recipe
    length: Length
    seeds: Seeds
    flip: bool
    crop_pad: int
    precision: str
    compile: str
    recorded: bool

    @classmethod
    def read(cls, about: dict[str, Any]) -> _Job:
        parts = {"recipe": Recipe, "length": Length, "seeds": Seeds}
        return cls(**about | {name: part(**about[name]) for name, part in parts.items()})


def _fit(
    job: _Job,
    make: Callable[..., Loader],
    labels: torch.Tensor,
    weights: torch.Tensor | None = None,
    *,
    recorder: DynamicsRecorder | None,
    ranks: Ranks,
    desc: str,
) -> Trained:
    """Train on a loader of n images, int64 [n] and float32 [n] of mean 1; every rank calls this
    with the same."""
    recipe, place = job.recipe, labels.device
    count = len(labels)
    dtype = resolve_precision(job.precision, place)
    choice = job.compile if ranks.size == 1 else "off"
    graphs = replays(choice, place)
    loader = make(
        batch=min(recipe.batch, count),
        crop_pad=job.crop_pad if recipe.crop in ("zero", "reflect") else 0,
        crop=recipe.crop,
        side=recipe.side,
        standardise=recipe.standardise,
        flip=job.flip,
        alternate_flip=recipe.alternate_flip,
        cutout=recipe.cutout,
        order_seed=job.seeds.order,
        augment_seed=job.seeds.augment,
        ranks=ranks,
    )
    model = build_network(recipe.network, loader.sample(2000), job.classes, seed=job.seeds.weights)
    model = model.to(place, memory_format=torch.channels_last).train()
    optimizer = build_optimizer(model, recipe, dtype, fused=graphs)
    criterion = nn.CrossEntropyLoss(
        label_smoothing=recipe.label_smoothing, reduction="mean" if weights is None else "none"
    )
    network = ranks.parallel(model)
    steps = job.length.total_steps(loader.batches_per_epoch)
    # a run too short for one update has no average: its weights are the last step's
    averaged = 0 < recipe.average_every <= steps
    average = _WeightAverage(model, steps) if averaged else None

    def passes(network: nn.Module, batch: torch.Tensor, positions: torch.Tensor) -> tuple:
        """Forward and backward: the loss of the share of this rank, and its logits."""
        with autocast(place, dtype):
            logits = network(batch)
        rows = ranks.share(positions)
        loss = criterion(logits.float(), labels[rows])
        if weights is not None:
            loss = (loss * weights[rows]).mean()
        loss = loss * ranks.weight(positions)
        loss.backward()
        return loss.detach(), logits.detach()

    def advance(batch: torch.Tensor, positions: torch.Tensor) -> tuple:
        optimizer.zero_grad(set_to_none=True)
        found = passes(network, batch, positions)
        optimizer.step()
        return found

    start = time.perf_counter()
    step, epoch, epoch_losses, means = 0, 0, [], []
    bar = track(None, desc, total=steps)
    with own_stream(place, wanted=graphs):
        replayed = Replayed(advance) if graphs else advance
        while step < steps:
            losses = []
            for positions, batch in loader.epoch(epoch):
                if step == steps:
                    break
                set_learning_rate(optimizer, recipe.learning_rate(step, steps))
                if step == 0:
                    with FlopCounterMode(display=False) as images:
                        loss, logits = passes(network, batch, positions)
                    with FlopCounterMode(display=False) as update:
                        optimizer.step()
                    an_epoch = images.get_total_flops() / len(batch) * count
                    flops = an_epoch / loader.batches_per_epoch + update.get_total_flops()
                    flops *= steps  # which all do the same
                    if compiles(choice, place, flops):
                        # an epoch is cut into batches of these sizes
                        sizes = {len(batch), count // loader.batches_per_epoch}
                        network = compiled(
                            network,
                            *(
                                partial(passes, batch=batch[:size], positions=positions[:size])
                                for size in sizes
                            ),
                        )
                else:
                    loss, logits = replayed(batch, positions)
                if recorder is not None:
                    recorder.update(positions, ranks.join(positions, logits))
                losses.append(loss.clone())  # the next replay writes to the same place
                step += 1
                bar.update()
                if average and step % recipe.average_every == 0:
                    average.update(step)
            epoch += 1
            means.append(ranks.mean(torch.stack(losses).mean()))
            # to read is to wait for a GPU: not after each of the short epochs of a small coreset
            if recorder is not None or step == steps or len(means) * len(losses) >= READ_EVERY:
                for mean in torch.stack(means).tolist():
                    epoch_losses.append(mean)
                    if not np.isfinite(mean):
                        raise ElfsError(
                            f"Training diverged in epoch {len(epoch_losses)} (the loss is not "
                            "finite): use another recipe or precision: float32."
                        )
                means = []
            if recorder is not None:
                recorder.end_epoch()
    bar.close()
    optimizer.zero_grad(set_to_none=True)
    if average:
        average.load()
    return Trained(
        model=model.eval(),
        losses=np.asarray(epoch_losses, dtype=np.float32),
        steps=steps,
        flops=flops,
        seconds=time.perf_counter() - start,
        loader=loader,
        mirror_test=recipe.mirror_test and job.flip,
        shift_test=recipe.shift_test,
        dtype=dtype,
    )


def _check(
    images: np.ndarray,
    targets: np.ndarray,
    classes: int,
    subset: np.ndarray | None,
    crop_pad: int,
) -> None:
    check_images(images)
    for name, given in {"targets": targets, "subset": subset}.items():
        array = np.asarray([0] if given is None else given)
        if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
            raise ElfsError(f"{name}: give one integer an image, not {array.dtype} {array.shape}.")
    count = len(images) if subset is None else len(subset)
    if count != len(targets):
        raise ElfsError(f"{count} images but {len(targets)} targets: give one target an image.")
    if not count:
        raise ElfsError("There are no images to train on: choose a larger budget.")
    if subset is not None and not 0 <= np.min(subset) <= np.max(subset) < len(images):
        raise ElfsError(f"The subset names images outside 0..{len(images) - 1}: select it again.")
    low, high = np.min(targets), np.max(targets)
    if low < 0 or high >= classes:
        raise ElfsError(
            f"classes is {classes} but the labels run from {low} to {high}: labels must be "
            f"0..{classes - 1}, so correct them or set classes to {high + 1}."
        )
    side = min(images.shape[2:])
    if not 0 <= crop_pad < side:
        raise ElfsError(f"crop_pad is {crop_pad} on images of {side} px: use 0..{side - 1}.")


def _check_weights(weights: np.ndarray | None, count: int) -> None:
    if weights is None:
        return
    if np.shape(weights) != (count,) or not np.isfinite(weights).all() or np.min(weights) < 0:
        raise ElfsError(f"weights must be {count} finite numbers of at least 0, one an image.")
    if not np.any(weights):
        raise ElfsError("All weights are 0: give at least one image a weight.")


class _WeightAverage:
    """Lookahead-style averaging: slow weights drift towards the fast ones, which restart there.

    The share of the slow weights grows with the cube of the time done, so that early weights are
    forgotten and the end of the run is averaged.
    """

    def __init__(self, model: nn.Module, steps: int):
        self._fast = [v for v in model.state_dict().values() if v.is_floating_point()]
        self._slow = [v.clone() for v in self._fast]
        self._steps = steps

    @torch.no_grad()
    def update(self, step: int) -> None:
        keep = 0.95**5 * (step / self._steps) ** 3
        torch._foreach_lerp_(self._slow, self._fast, 1 - keep)
        torch._foreach_copy_(self._fast, self._slow)

    @torch.no_grad()
    def load(self) -> None:
        torch._foreach_copy_(self._fast, self._slow)
