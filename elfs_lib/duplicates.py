"""Copies among images: the same pixels, or nearly the same by their embeddings."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from elfs_lib.errors import ElfsError

# Measured on CIFAR-10 (2,000 images; 60 copies of each kind): of different images the nearest
# pair has cosine 0.934 by EfficientNet-Lite0 and 0.994 by pixels; of copies saved again as JPEG
# 90, half are above 0.981 (Lite0) and all above 0.999 (pixels).
COSINE, PIXELS_COSINE = 0.95, 0.998


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
    """The similarity from which two images count as near copies, for an encoder."""
    return PIXELS_COSINE if encoder == "pixels" else COSINE


def find_copies(
    images: np.ndarray, indices: np.ndarray, similarities: np.ndarray, *, cosine: float
) -> Copies:
    """Group the images that are copies of each other, directly or through others.

    Args:
        images: uint8 [N, C, H, W]; equal pixels are exact copies.
        indices: int [N, K], nearest neighbours of each image.
        similarities: float32 [N, K], cosine of each neighbour.
        cosine: Neighbours at least this similar are near copies, in (0, 1].

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
    left, place = np.nonzero(similarities >= cosine)
    pairs = np.concatenate(
        [np.stack([left, indices[left, place]]), np.stack([np.arange(n), first])], axis=1
    )
    links = coo_array((np.ones(pairs.shape[1], bool), tuple(pairs)), shape=(n, n))
    _, number = connected_components(links, directed=False)
    _, lowest = np.unique(number, return_index=True)
    return Copies(lowest[number].astype(np.int64), first, cosine)
