"""Index-aware loaders: uint8 images on the device or on disk, cropped and flipped on the device."""

from __future__ import annotations

import math
import mmap
import os
import sys
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import numpy as np
import torch
import torch.nn.functional as F

from elfs_lib.compute import at_a_time, available, resident, upload
from elfs_lib.errors import ElfsError, choose
from elfs_lib.training.distributed import Ranks

LOADERS = ("auto", "resident", "streamed")
AHEAD = 4  # batches that are read before they are asked for
# Random resized crops as torchvision, and so the released code of ELFS, draws them.
AREA = (0.08, 1.0)
RATIO = (3 / 4, 4 / 3)
READERS = 4  # threads that read them
SHUFFLES = ("full", "blocks")
BLOCK = 4 * 2**20  # bytes of images that are read in a row
WINDOW = (
    128  # blocks that are drawn from at a time: half a gigabyte of the page cache, and the next
)


def streams(choice: str, images: np.ndarray, count: int, device: torch.device) -> bool:
    """Whether images are read batch by batch, rather than kept on the device.

    Args:
        choice: "resident", "streamed" or "auto": streamed, and said so, where they would take more
            than half of the memory that is free. What is in the CPU's memory takes no more of it.
        images: uint8 [N, C, H, W].
        count: How many of them would be kept.
        device: Where they would be kept.
    """
    if choose("loader", choice, LOADERS) != "auto":
        return choice == "streamed"
    size = count * images[0].nbytes
    there = device.type == "cpu" and not isinstance(images, np.memmap)
    if there or 2 * size <= available(device):
        return False
    print(
        f"The images take {size / 2**30:.1f} GiB, more than half of the free memory: they are read "
        "as they are needed.",
        file=sys.stderr,
    )
    return True


def reader_of_rows(
    choice: str, images: np.ndarray, device: torch.device
) -> Callable[[np.ndarray], torch.Tensor]:
    """What gives the images of rows int64 [b], as uint8 [b, C, H, W] on the device; they are kept
    there or read each time, as :func:`streams` decides."""
    if streams(choice, images, len(images), device):
        return lambda rows: upload(torch.from_numpy(images[rows]), device)
    held = resident(images, device)
    return lambda rows: held[upload(torch.from_numpy(rows), device)]


def block_order(
    layout: torch.Tensor, block: int, window: int, generator: torch.Generator
) -> torch.Tensor:
    """A random order for images that are read from disk: blocks of neighbours are shuffled, and the
    images of each ``window`` blocks that follow each other are shuffled among themselves.

    What fits in one window is shuffled in full.

    Args:
        layout: int64 [n], all positions, as the images lie on disk.
        block: Images in a block.
        window: Blocks in a window.

    Returns:
        int64 [n], each position once.
    """
    blocks = layout.split(block)
    lined = [blocks[i] for i in torch.randperm(len(blocks), generator=generator).tolist()]
    windows = torch.cat(lined).split(block * window)
    return torch.cat([w[torch.randperm(len(w), generator=generator)] for w in windows])


class Loader:
    """Yields batches of augmented images; where the images are is up to the subclasses.

    Crop, flip and padding are one gather: each output pixel looks up its source row and column,
    so no padded copy exists and the batch comes out channels-last.

    Args:
        count: Number of images, n.
        device: Where batches go.
        batch: Most images a batch. An epoch is cut into equal batches, none dropped.
        crop_pad: Shift by up to this many pixels; 0 for none.
        crop: "zero" or "reflect", what lies outside the image; "resized": a random part of the
            image instead, as large as ``AREA`` and as wide as ``RATIO`` allow, resized to ``side``.
        flip: Mirror images left to right.
        alternate_flip: Mirror each image every other epoch (first time by a coin) rather than
            by a coin each epoch.
        cutout: Side of a square at a random place that each image loses to the mean colour, at
            most half the image's; 0 for none.
        side: Of what is yielded, in pixels; 0 for the whole image. Where nothing is random it is
            the centre.
        standardise: Whether to give colours zero mean and unit deviation, or only to divide by 255.
        order_seed: Seed of the order of images.
        augment_seed: Seed of crops, flips and cutouts.
        layout: int64 [n], the positions as their images lie on disk: the order is that of
            :func:`block_order`. None: all orders are as likely.
        ranks: The processes that share each batch.
    """

    def __init__(
        self,
        count: int,
        device: torch.device,
        *,
        batch: int,
        crop_pad: int = 0,
        crop: str = "zero",
        flip: bool = False,
        alternate_flip: bool = False,
        cutout: int = 0,
        side: int = 0,
        standardise: bool = True,
        order_seed: int = 0,
        augment_seed: int = 0,
        layout: torch.Tensor | None = None,
        ranks: Ranks = Ranks(),
    ):
        self.count, self.device, self.ranks = count, device, ranks
        self.layout = layout
        self.batches_per_epoch = -(-count // batch)
        self.crop_pad, self.crop = crop_pad, crop
        self.flip, self.alternate_flip = flip, alternate_flip
        self._order = torch.Generator().manual_seed(order_seed)
        self._augment = torch.Generator().manual_seed(augment_seed)
        self._first_flip = self._coin(count)
        image = self._some(torch.zeros(1, dtype=torch.int64))[0]
        self.size = image.shape[:2]
        self.bytes_each = image.nbytes
        self.block = max(1, BLOCK // image.nbytes)
        self.shown = (side, side) if side else self.size
        self.cutout = min(cutout, *(side // 2 for side in self.shown))
        if standardise:
            sample = self._every(max(1, count // at_a_time(self.bytes_each, 5000))).float()
            self.mean = sample.mean((0, 1, 2))
            self.std = sample.std((0, 1, 2)).clamp_min(1.0)
        else:
            self.mean = torch.zeros(image.shape[2], device=device)
            self.std = torch.full_like(self.mean, 255)

    def __len__(self) -> int:
        return self.count

    def _some(self, positions: torch.Tensor) -> torch.Tensor:
        """Images as they are, uint8 [b, H, W, C] on the device, of positions on the CPU."""
        raise NotImplementedError

    def _every(self, step: int) -> torch.Tensor:
        """Each ``step``-th image, as :meth:`_some`."""
        return self._some(torch.arange(0, len(self), step))

    def _batches(
        self, order: torch.Tensor
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Yield for each batch its positions, images uint8 [?, H, W, C], and which of these are
        this rank's share of the batch, int64 [b]; all on the device.

        Args:
            order: int64 [n], on the CPU.
        """
        raise NotImplementedError

    def _coin(self, count: int) -> torch.Tensor:
        return torch.rand(count, generator=self._augment) < 0.5

    def normalise(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 [B, H, W, C] to float32 [B, C, H, W], channels-last, zero mean, unit deviation;
        the centre of it where the network sees no more."""
        tall, wide = self.shown
        top, left = (images.shape[1] - tall) // 2, (images.shape[2] - wide) // 2
        images = images[:, top : top + tall, left : left + wide]
        return ((images - self.mean) / self.std).permute(0, 3, 1, 2)

    def sample(self, count: int) -> torch.Tensor:
        """Normalised, unaugmented images, evenly spread: float32 [n, C, H, W], with n at most
        ``count``, N, and what :func:`elfs_lib.compute.at_a_time` has room for.

        Over all of them, for images may come in an order that means something: a
        coreset lists the hardest first.
        """
        count = at_a_time(self.bytes_each, min(count, len(self)))
        return self.normalise(self._some(torch.arange(count) * len(self) // count))

    def order(self) -> torch.Tensor:
        """The next epoch's order of positions, int64 [n]."""
        if self.layout is None:
            return torch.randperm(len(self), generator=self._order)
        return block_order(self.layout, self.block, WINDOW, self._order)

    def epoch(self, number: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield (positions int64 [B], images float32 [b, C, H, W] of this rank's share of them).

        Positions count in ``images``; each comes once. A process that is alone gets b = B.
        """
        order = self.order()
        if self.alternate_flip:
            mirrored = self._first_flip ^ bool(number % 2)
        else:
            mirrored = self._coin(len(self))
        pad = self.crop_pad
        shifts = torch.randint(-pad, pad + 1, (len(self), 2), generator=self._augment)
        if self.crop == "resized":
            shifts = self._boxes()
        mirrored, shifts = (upload(drawn, self.device) for drawn in (mirrored, shifts))
        corners = upload(self._corners(), self.device) if self.cutout else None
        for positions, images, rows in self._batches(order):
            mine = self.ranks.share(positions)
            batch = self.normalise(self._views(images, rows, mirrored[mine], shifts[mine]))
            if corners is not None:
                batch.masked_fill_(self._squares(corners[mine]), 0)  # 0 is the mean colour
            yield positions, batch

    def _corners(self) -> torch.Tensor:
        """Where the squares of an epoch begin, anywhere inside the images: int64 [n, 2]."""
        room = torch.tensor(self.shown) - self.cutout + 1
        return (torch.rand(len(self), 2, generator=self._augment) * room).long()

    def _squares(self, corners: torch.Tensor) -> torch.Tensor:
        """The squares' pixels, bool [B, 1, H, W]."""
        inside = []
        for axis, size in enumerate(self.shown):
            place = torch.arange(size, device=self.device) - corners[:, axis, None]
            inside.append((place >= 0) & (place < self.cutout))
        return (inside[0][:, :, None] & inside[1][:, None, :])[:, None]

    def _views(
        self,
        images: torch.Tensor,
        which: torch.Tensor,
        mirrored: torch.Tensor,
        shifts: torch.Tensor,
    ) -> torch.Tensor:
        if self.crop == "resized":
            return self._resized(images[which], mirrored, shifts)
        height, width = self.size
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
        views = images[which[:, None, None], rows[:, :, None], columns[:, None, :]]
        return views if inside is None else views * inside[..., None]

    def _boxes(self) -> torch.Tensor:
        """The part of each image that an epoch shows: width, height and centre as float32 [n, 4],
        in units in which the image reaches from -1 to 1. What is wider than the image is cut."""

        def uniform(low: float, high: float) -> torch.Tensor:
            return low + (high - low) * torch.rand(len(self), generator=self._augment)

        area = uniform(*AREA) * self.size[0] * self.size[1]
        ratio = uniform(*(math.log(bound) for bound in RATIO)).exp()
        wide = ((area * ratio).sqrt() / self.size[1]).clamp_max(1)
        tall = ((area / ratio).sqrt() / self.size[0]).clamp_max(1)
        return torch.stack(
            [wide, tall, (1 - wide) * uniform(-1, 1), (1 - tall) * uniform(-1, 1)], 1
        )

    def _resized(
        self, images: torch.Tensor, mirrored: torch.Tensor, boxes: torch.Tensor
    ) -> torch.Tensor:
        """uint8 [b, H, W, C] to float32 [b, *shown, C], bilinear."""
        wide, tall, x, y = boxes.unbind(1)
        if self.flip:
            wide = torch.where(mirrored, -wide, wide)
        none = torch.zeros_like(wide)
        theta = torch.stack([wide, none, x, none, tall, y], 1).view(-1, 2, 3)
        images = images.permute(0, 3, 1, 2).float()
        grid = F.affine_grid(theta, [*images.shape[:2], *self.shown], align_corners=False)
        views = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
        return views.permute(0, 2, 3, 1).contiguous()


class ResidentLoader(Loader):
    """Images that stay on the device.

    Args:
        images: uint8 [n, C, H, W], on the device where they stay.
        **options: Of :class:`Loader`.
    """

    def __init__(self, images: torch.Tensor, **options):
        self.images = images.permute(0, 2, 3, 1)  # a gather then writes channels-last
        super().__init__(len(images), images.device, **options)

    def _some(self, positions: torch.Tensor) -> torch.Tensor:
        return self.images[positions.to(self.images.device)]

    def _every(self, step: int) -> torch.Tensor:
        return self.images[::step]

    def _batches(self, order: torch.Tensor) -> Iterator[tuple]:
        for positions in upload(order, self.device).tensor_split(self.batches_per_epoch):
            yield positions, self.images, self.ranks.share(positions)


class StreamedLoader(Loader):
    """Images that are read as they are needed, a few batches ahead, by threads.

    Memory holds a few batches, however many images there are. What comes out is what
    :class:`ResidentLoader` yields for the same seeds, bit for bit.

    Args:
        images: uint8 [N, C, H, W]: a whole memory map, of which bytes are read and not mapped, or
            any other array.
        subset: int64 [n], the rows to yield; None for all.
        device: Where batches go.
        **options: Of :class:`Loader`, but for ``ranks``.
    """

    def __init__(
        self, images: np.ndarray, subset: np.ndarray | None, device: torch.device, **options
    ):
        self.images = images
        self.subset = np.arange(len(images)) if subset is None else np.asarray(subset)
        self._file: int | None = None
        # read, for what is mapped counts as memory of the process until somebody else needs it
        if _is_whole_map(images) and hasattr(os, "preadv"):
            try:
                self._file = os.open(images.filename, os.O_RDONLY)
            except OSError as error:
                raise ElfsError(
                    f"{images.filename}, which the images were opened from, cannot be read "
                    f"({error.strerror}): put it back, or open them again from where it is now."
                ) from error
            weakref.finalize(self, os.close, self._file)
        super().__init__(len(self.subset), device, **options)

    def _read(self, positions: torch.Tensor) -> torch.Tensor:
        """uint8 [b, C, H, W], in memory that a GPU can copy from without waiting."""
        rows = self.subset[positions.numpy()]
        shape = (len(rows), *self.images.shape[1:])
        found = torch.empty(shape, dtype=torch.uint8, pin_memory=self.device.type == "cuda")
        into = found.numpy()
        if self._file is None:
            np.take(self.images, rows, axis=0, out=into)
            return found
        size = into[0].nbytes
        start = self.images.offset
        for place in np.argsort(rows).tolist():  # ascending, as disks like it
            if os.preadv(self._file, [into[place].data], start + int(rows[place]) * size) != size:
                raise ElfsError(f"{self.images.filename} is cut off: elfs verify says where from.")
        return found

    def _to_device(self, images: torch.Tensor) -> torch.Tensor:
        return images.to(self.device, non_blocking=True).permute(0, 2, 3, 1)

    def _some(self, positions: torch.Tensor) -> torch.Tensor:
        return self._to_device(self._read(positions))

    def _fetch(self, rows: np.ndarray) -> None:
        """Read all from the first to the last of the rows [b] at once, for the page cache."""
        size = self.images[0].nbytes
        place, end = (self.images.offset + int(row) * size for row in (rows[0], rows[-1] + 1))
        while place < end and (read := len(os.pread(self._file, min(BLOCK, end - place), place))):
            place += read

    def _parts(self, order: torch.Tensor, reader: ThreadPoolExecutor) -> Iterator[torch.Tensor]:
        """The batches of an order. Of one that goes by blocks, each window is read in a row before
        its images are asked for one by one."""
        in_blocks = self.layout is not None and self._file is not None
        windows = order.split(self.block * WINDOW) if in_blocks else ()
        asked = told = 0
        for part in order.tensor_split(self.batches_per_epoch):
            asked += len(part)
            # that of this batch, and the next
            while told < min(len(windows), asked // (self.block * WINDOW) + 2):
                rows = np.sort(self.subset[windows[told].numpy()])
                # a gap of a quarter of a block is read faster than it is skipped
                for run in np.split(rows, np.flatnonzero(np.diff(rows) > self.block // 4 + 1) + 1):
                    for start in range(0, len(run), self.block):
                        reader.submit(self._fetch, run[start : start + self.block])
                told += 1
            yield part

    def _batches(self, order: torch.Tensor) -> Iterator[tuple]:
        pool, reader = ThreadPoolExecutor(READERS), ThreadPoolExecutor(1)
        parts = self._parts(order, reader)
        try:
            reads = deque((part, pool.submit(self._read, part)) for part in islice(parts, AHEAD))
            while reads:
                positions, read = reads.popleft()
                for part in islice(parts, 1):
                    reads.append((part, pool.submit(self._read, part)))
                images = self._to_device(read.result())
                rows = torch.arange(len(images), device=self.device)
                yield upload(positions, self.device), images, rows
        finally:
            for each in (pool, reader):
                each.shutdown(cancel_futures=True)


def _is_whole_map(images: np.ndarray) -> bool:
    """Whether an array is a file's from its offset on, row by row. A part of one is not, nor one
    that may hold changes of which the file knows nothing."""
    mapped = isinstance(images, np.memmap) and isinstance(images.base, mmap.mmap)
    return mapped and images.flags.c_contiguous and images.mode != "c"


def _reflect(index: torch.Tensor, size: int) -> torch.Tensor:
    index = index.abs()
    return (size - 1) - ((size - 1) - index).abs()
