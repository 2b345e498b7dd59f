"""Resident, index-aware loader: uint8 images on the device, cropped and flipped there."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from elfs_lib.compute import upload
from elfs_lib.training.distributed import Ranks


class ResidentLoader:
    """Yields batches of images that stay on the device as uint8.

    Crop, flip and padding are one gather: each output pixel looks up its source row and column,
    so no padded copy exists and the batch comes out channels-last.

    Args:
        images: uint8 [n, C, H, W], on the device where they stay.
        batch: Most images a batch. An epoch is cut into equal batches, none dropped.
        crop_pad: Shift by up to this many pixels; 0 for none.
        crop: "zero" or "reflect", what lies outside the image.
        flip: Mirror images left to right.
        alternate_flip: Mirror each image every other epoch (first time by a coin) rather than
            by a coin each epoch.
        cutout: Side of a square at a random place that each image loses to the mean colour, at
            most half the image's; 0 for none.
        order_seed: Seed of the order of images.
        augment_seed: Seed of crops, flips and cutouts.
        ranks: The processes that share each batch.
    """

    def __init__(
        self,
        images: torch.Tensor,
        *,
        batch: int,
        crop_pad: int = 0,
        crop: str = "zero",
        flip: bool = False,
        alternate_flip: bool = False,
        cutout: int = 0,
        order_seed: int = 0,
        augment_seed: int = 0,
        ranks: Ranks = Ranks(),
    ):
        self.images = images.permute(0, 2, 3, 1)  # the gather below then writes channels-last
        self.device = images.device
        self.ranks = ranks
        self.batches_per_epoch = -(-len(images) // batch)
        self.crop_pad, self.crop = crop_pad, crop
        self.flip, self.alternate_flip = flip, alternate_flip
        self.cutout = min(cutout, *(side // 2 for side in images.shape[2:]))
        self._order = torch.Generator().manual_seed(order_seed)
        self._augment = torch.Generator().manual_seed(augment_seed)
        self._first_flip = self._coin(len(images))
        sample = self.images[:: max(1, len(images) // 5000)].float()
        self.mean = sample.mean((0, 1, 2))
        self.std = sample.std((0, 1, 2)).clamp_min(1.0)

    def __len__(self) -> int:
        return len(self.images)

    def _coin(self, count: int) -> torch.Tensor:
        return torch.rand(count, generator=self._augment) < 0.5

    def normalise(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 [B, H, W, C] to float32 [B, C, H, W], channels-last, zero mean, unit deviation."""
        return ((images - self.mean) / self.std).permute(0, 3, 1, 2)

    def sample(self, count: int) -> torch.Tensor:
        """Normalised, unaugmented images, evenly spread: float32 [min(count, N), C, H, W].

        Over all of them, for images may come in an order that means something: a
        coreset lists the hardest first.
        """
        count = min(count, len(self))
        spread = torch.arange(count, device=self.device) * len(self) // count
        return self.normalise(self.images[spread])

    def epoch(self, number: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield (positions int64 [B], images float32 [b, C, H, W] of this rank's share of them).

        Positions count in ``images``; each comes once. A process that is alone gets b = B.
        """
        order = torch.randperm(len(self), generator=self._order)
        if self.alternate_flip:
            mirrored = self._first_flip ^ bool(number % 2)
        else:
            mirrored = self._coin(len(self))
        pad = self.crop_pad
        shifts = torch.randint(-pad, pad + 1, (len(self), 2), generator=self._augment)
        mirrored, shifts = (upload(drawn, self.device) for drawn in (mirrored, shifts))
        corners = upload(self._corners(), self.device) if self.cutout else None
        for positions in upload(order, self.device).tensor_split(self.batches_per_epoch):
            mine = self.ranks.share(positions)
            batch = self.normalise(self._views(mine, mirrored[mine], shifts[mine]))
            if corners is not None:
                batch.masked_fill_(self._squares(corners[mine]), 0)  # 0 is the mean colour
            yield positions, batch

    def _corners(self) -> torch.Tensor:
        """Where the squares of an epoch begin, anywhere inside the images: int64 [n, 2]."""
        room = torch.tensor(self.images.shape[1:3]) - self.cutout + 1
        return (torch.rand(len(self), 2, generator=self._augment) * room).long()

    def _squares(self, corners: torch.Tensor) -> torch.Tensor:
        """The squares' pixels, bool [B, 1, H, W]."""
        inside = []
        for axis, size in enumerate(self.images.shape[1:3]):
            place = torch.arange(size, device=self.device) - corners[:, axis, None]
            inside.append((place >= 0) & (place < self.cutout))
        return (inside[0][:, :, None] & inside[1][:, None, :])[:, None]

    def _views(
        self, positions: torch.Tensor, mirrored: torch.Tensor, shifts: torch.Tensor
    ) -> torch.Tensor:
        height, width = self.images.shape[1:3]
        rows = torch.arange(height, device=self.device) + shifts[:, :1]
        columns = torch.arange(width, device=self.device) + shifts[:, 1:]
        if self.flip:
            columns = torch.where(mirrored[:, None], columns.flip(1), columns)
        inside = None
        if self.crop_pad and self.crop == "zero":
            inside = ((rows >= 0) & (rows < height))[:, :, None] & (
                (columns >= 0) & (columns < width)
            )[:, None, :]
            rows, columns = rows.clamp(0, height - 1), columns.clamp(0, width - 1)
        else:
            rows, columns = _reflect(rows, height), _reflect(columns, width)
        views = self.images[positions[:, None, None], rows[:, :, None], columns[:, None, :]]
        return views if inside is None else views * inside[..., None]


def _reflect(index: torch.Tensor, size: int) -> torch.Tensor:
    index = index.abs()
    return (size - 1) - ((size - 1) - index).abs()
