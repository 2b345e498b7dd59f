"""Copies among images: the same pixels, or nearly the same by their embeddings."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from elfs_lib.data.decoding import resize_images
from elfs_lib.errors import ElfsError

# Measured on CIFAR-10: 2,000 different images, and 60 copies of each kind. By EfficientNet-Lite0
# the nearest pair of different images has cosine 0.934 and correlation 0.972. Copies resized, made
# brighter, or saved again as JPEG 75 or 90 are all found, three quarters of those saved as JPEG 50,
# and a third of those cropped by a pixel. By pixels different images reach cosine 0.994, and copies
# saved again as JPEG 90 start at 0.999.
COSINE, PIXELS_COSINE = 0.95, 0.998
# An encoder sees the marks of JPEG where a person sees the same picture.
ALIKE, ALIKE_COSINE = 0.97, 0.2
ALIKE_SIDE = 16  # pixels


@dataclass(frozen=True)
class Copies:
    """Groups of copies.

    Attributes:
        group: int64 [N], the lowest index of the image's group; its own where it has no copy.
        first: int64 [N], the lowest index of those with exactly the same pixels.
        cosine: The similarity from which two images count as near copies.
    """

    group: np.ndarray
    first: np.ndarray
    cosine: float

    @property
    def different(self) -> int:
        """Number of groups: how many different images there are."""
        return int((self.group == np.arange(len(self.group))).sum())

    @property
    def exact(self) -> int:
        """Images that have the pixels of an earlier one."""
        return int((self.first != np.arange(len(self.first))).sum())

    @property
    def near(self) -> int:
        """Images that are near copies, but no exact copies, of others of their group."""
        return len(self.group) - self.different - self.exact


def default_cosine(encoder: str) -> float:
    """The similarity from which two images count as near copies, for an encoder: 0.95, or 0.998
    for ``pixels``."""
    return PIXELS_COSINE if encoder == "pixels" else COSINE


def find_copies(
    images: np.ndarray,
    indices: np.ndarray,
    similarities: np.ndarray,
    *,
    cosine: float,
    look: bool = True,
) -> Copies:
    """Group the images that are copies of each other, directly or through others.

    Args:
        images: uint8 [N, C, H, W]; equal pixels are exact copies.
        indices: int [N, K], nearest neighbours of each image.
        similarities: float32 [N, K], cosine of each neighbour.
        cosine: Neighbours at least this similar are near copies, in (0, 1].
        look: Whether neighbours up to 0.2 less similar are near copies too if their brightness, at
            16 pixels, correlates by 0.97 or more. Not for embeddings that are pixels themselves.

    Raises:
        ElfsError: if ``cosine`` is out of range.
    """
    if not 0 < cosine <= 1:
        raise ElfsError(f"The cosine of near copies is {cosine!r}: give a number above 0, up to 1.")
    n = len(images)
    seen: dict[bytes, int] = {}
    first = np.empty(n, np.int64)
    for row in range(n):
        digest = hashlib.blake2b(np.ascontiguousarray(images[row]), digest_size=16).digest()
        first[row] = seen.setdefault(digest, row)
    left, place = np.nonzero(similarities >= (cosine - ALIKE_COSINE if look else cosine))
    right = np.asarray(indices)[left, place]
    close = similarities[left, place] >= cosine
    if look:
        close |= _alike(images, left, right) >= ALIKE
    pairs = np.concatenate(
        [np.stack([left[close], right[close]]), np.stack([np.arange(n), first])], axis=1
    )
    links = coo_array((np.ones(pairs.shape[1], bool), tuple(pairs)), shape=(n, n))
    _, number = connected_components(links, directed=False)
    _, lowest = np.unique(number, return_index=True)
    return Copies(lowest[number].astype(np.int64), first, cosine)


def _alike(images: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Correlation of the brightness of pairs of images at 16 pixels, float32 [pairs]."""
    shown = np.unique(np.concatenate([left, right]))
    if not len(shown):
        return np.empty(0, np.float32)
    small = resize_images(np.ascontiguousarray(images[shown]), ALIKE_SIDE)
    grey = small.astype(np.float32).mean(1).reshape(len(small), -1)
    grey -= grey.mean(1, keepdims=True)
    grey /= np.maximum(np.linalg.norm(grey, axis=1, keepdims=True), 1e-6)
    places = np.searchsorted(shown, left), np.searchsorted(shown, right)
    step = 100_000  # pairs at a time: 100 MB
    parts = [
        np.einsum("pd,pd->p", grey[places[0][i : i + step]], grey[places[1][i : i + step]])
        for i in range(0, len(left), step)
    ]
    return np.concatenate(parts)
