"""Several processes, one training: what each rank takes of a batch, and how they agree.

``torchrun`` starts the ranks. Rank 0 runs the command; the others only train: for each training,
rank 0 sends them the job with its images and labels, so they open no file, no artifact and no label
of their own. Every rank holds all images, draws the same order and the same augmentation, and takes
its part of every batch. Gradients, batch-norm moments and logits are put together over the ranks,
which gives the training of one process up to the order of summation.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from elfs_lib.compute import configure_runtime, resolve_device
from elfs_lib.errors import ElfsError

# The other ranks wait while rank 0 embeds and clusters; torchrun notices a rank that died.
PATIENCE = timedelta(days=30)


@dataclass(frozen=True)
class Ranks:
    """The processes of this training. Alone, every method gives back what it was given."""

    rank: int = 0
    size: int = 1

    @classmethod
    def here(cls) -> Ranks:
        """The ranks that :func:`joined` joined, or one alone."""
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size())
        return cls()

    def share(self, rows: torch.Tensor) -> torch.Tensor:
        """This rank's rows of a batch, a view. Parts differ by one row at most."""
        return rows.tensor_split(self.size)[self.rank]

    def weight(self, rows: torch.Tensor) -> float:
        """What to multiply the mean loss of the share with, so that its average over the ranks is
        the mean loss of the batch."""
        return self.size * len(self.share(rows)) / len(rows)

    def parallel(self, model: nn.Module) -> nn.Module:
        """A model whose backward pass averages the gradients, and whose batch norms see the whole
        batch. The parameters stay those of ``model``; all ranks start from rank 0's."""
        if self.size == 1:
            return model
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.__class__ = SyncedBatchNorm
        return DistributedDataParallel(model)

    def mean(self, value: torch.Tensor) -> torch.Tensor:
        """The average over the ranks."""
        if self.size > 1:
            value = value / self.size
            dist.all_reduce(value)
        return value

    def join(self, rows: torch.Tensor, part: torch.Tensor) -> torch.Tensor:
        """The outputs of a whole batch, on every rank.

        Args:
            rows: [B], the batch.
            part: float [b, C], what this rank computed for its share.

        Returns:
            float [B, C].
        """
        if self.size == 1:
            return part
        whole = part.new_zeros((len(rows), *part.shape[1:]), dtype=torch.float32)
        self.share(whole).copy_(part)  # adding the zeros of the others is exact
        dist.all_reduce(whole)
        return whole

    def check(self, name: str, device: torch.device, smallest_batch: int) -> None:
        """Refuse what several ranks cannot do.

        Raises:
            ElfsError: if one GPU is named for all ranks, the device cannot exchange tensors, or a
                batch is too small to be shared.
        """
        if self.size == 1:
            return
        if device.type == "mps":
            raise ElfsError("torchrun cannot share a training on mps: use device: cpu.")
        if ":" in name:
            raise ElfsError(
                f"Parameter 'device' is {name!r} for {self.size} processes: torchrun gives each "
                "a GPU of its own, so use device: cuda."
            )
        if smallest_batch < self.size:
            raise ElfsError(
                f"A batch has {smallest_batch} images for {self.size} processes: start at most "
                f"{smallest_batch} with --nproc-per-node."
            )

    def check_alone(self, what: str) -> None:
        """Refuse what is for one process.

        Raises:
            ElfsError: if there are several.
        """
        if self.size > 1:
            raise ElfsError(
                f"{what} is for one process: the ranks of torchrun are sent their images."
            )

    def send(self, device: str, job: dict[str, Any], *tensors: torch.Tensor) -> None:
        """Rank 0: hand a job and its tensors to the other ranks; they keep them on ``device``."""
        if self.size == 1:
            return
        shapes = [(list(t.shape), str(t.dtype).removeprefix("torch.")) for t in tensors]
        header = bytearray(json.dumps([device, job, shapes]), "utf-8")
        text = torch.frombuffer(header, dtype=torch.uint8)
        for tensor in (torch.tensor([len(text)]), text, *tensors):
            dist.broadcast(tensor, 0)

    def receive(self) -> tuple[dict[str, Any], list[torch.Tensor]] | None:
        """The other ranks: wait for a job and its tensors; None when there are no more."""

        def broadcast(shape: list[int], dtype: torch.dtype, place: torch.device) -> torch.Tensor:
            tensor = torch.empty(shape, dtype=dtype, device=place)
            dist.broadcast(tensor, 0)
            return tensor

        here = torch.device("cpu")
        length = int(broadcast([1], torch.int64, here))
        if not length:
            return None
        text = broadcast([length], torch.uint8, here)
        device, job, shapes = json.loads(text.numpy().tobytes())
        place = resolve_device(device)
        return job, [broadcast(shape, getattr(torch, dtype), place) for shape, dtype in shapes]

    def stop(self) -> None:
        """Rank 0: there are no more jobs."""
        if self.size > 1:
            dist.broadcast(torch.zeros(1, dtype=torch.int64), 0)


@contextmanager
def joined() -> Iterator[Ranks]:
    """Join the processes that ``torchrun`` started, each with a GPU of its own if there are GPUs.

    Raises:
        ElfsError: if there are more processes on this machine than GPUs.
    """
    configure_runtime()
    cuda = torch.cuda.is_available()
    if cuda:
        local, cards = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local >= cards:
            raise ElfsError(
                f"This machine has {cards} GPUs: start at most {cards} processes with "
                "--nproc-per-node."
            )
        torch.cuda.set_device(local)  # "cuda" is this one from here on
    # jobs go through gloo: a wait in nccl would keep the GPU busy
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=PATIENCE)
    try:
        yield Ranks.here()
    finally:
        dist.destroy_process_group()


class _Sum(torch.autograd.Function):
    """Sum over the ranks; its gradient is the sum of what reaches the ranks."""

    @staticmethod
    def forward(ctx: Any, part: torch.Tensor) -> torch.Tensor:
        total = part.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return _Sum.apply(gradient.contiguous())


class SyncedBatchNorm(nn.BatchNorm2d):
    """Batch norm over the whole batch, of which every rank holds a part.

    torch's SyncBatchNorm does the same but only on GPUs; this one runs where the tests run.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """float [b, C, H, W] to the same shape and dtype; moments are float32."""
        if not self.training:
            return super().forward(x)
        ranks = Ranks.here()
        wide = x.float()
        variance, mean = torch.var_mean(wide, (0, 2, 3), correction=0)
        count = mean.new_full(mean.shape, x.numel() / x.shape[1])
        own = torch.zeros(ranks.size, 3, len(mean), device=x.device)
        own[ranks.rank] = torch.stack([mean, variance, count])
        means, variances, counts = _Sum.apply(own).unbind(1)  # float32 [ranks, C] each
        total = counts.sum(0)
        mean = (means * counts).sum(0) / total
        # not E[x^2] - E[x]^2, which cancels where the mean is large
        variance = ((variances + (means - mean) ** 2) * counts).sum(0) / total
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * total / (total - 1), self.momentum)
        scale = self.weight / (variance + self.eps).sqrt()
        spread = (slice(None), None, None)
        return ((wide - mean[spread]) * scale[spread] + self.bias[spread]).to(x.dtype)
