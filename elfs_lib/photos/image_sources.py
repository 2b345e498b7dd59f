"""Images as people have them in Python: arrays of any usual layout, tensors, lists of files, and
datasets of torchvision or Hugging Face.

What is clear is converted; what could mean two things is refused, with the conversion to make.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from elfs_lib.data import decoding
from elfs_lib.errors import ElfsError, check_images

IMAGE_COLUMNS = ("image", "img")  # of Hugging Face's datasets
_KINDS = (
    "uint8 [N, C, H, W] with C = 1 or 3, a directory, a list of files, or a dataset of torchvision "
    "or Hugging Face"
)


class ImagesInMemory(NamedTuple):
    """Images in memory.

    Attributes:
        pixels: uint8 [N, C, H, W], C = 1 or 3.
        paths: What each is called; None: by its row.
        files: Whether ``paths`` are those of files, which may be read again.
        stand_in: Whether nobody has the images: the pixels only tell equal embeddings.
    """

    pixels: np.ndarray
    paths: list[str] | None = None
    files: bool = False
    stand_in: bool = False


def read_source(source: Any, image_size: int | None = None) -> ImagesInMemory:
    """Images in memory, from whatever holds them but a directory.

    Args:
        source: Arrays or torch tensors as :func:`as_pixels` takes them; a list of paths; or
            anything with a length whose items are images, pairs of an image and a label, or
            mappings with a column ``image`` or ``img``. No label is kept.
        image_size: Side in pixels at which files and PIL images are stored; None: by their own.

    Raises:
        ElfsError: one sentence, if it holds no images or they are not usable.
    """
    array = _as_array(source)
    if array is not None:
        if image_size is not None:
            raise ElfsError("Parameter 'image_size' is for files: resize the array yourself.")
        return ImagesInMemory(as_pixels(array))
    if isinstance(source, (list, tuple)) and source and _all(source, (str, Path)):
        paths = [str(path) for path in source]
        if len(set(paths)) < len(paths):
            twice = next(path for path in paths if paths.count(path) > 1)
            raise ElfsError(f"images name {twice} twice: name each file once.")
        files = [Path(path).expanduser() for path in paths]
        gone = next((file for file in files if not file.is_file()), None)
        if gone is not None:
            raise ElfsError(f"images name {gone}, which is not a file: correct its path.")
        side = image_size or decoding.default_size(files[: decoding.SAMPLE])
        return ImagesInMemory(_decoded(paths, files, side, decoding.read_file), paths, files=True)
    if not (hasattr(source, "__len__") and hasattr(source, "__getitem__")) or isinstance(
        source, (str, bytes, dict)
    ):
        raise ElfsError(f"images are a {type(source).__name__}: give {_KINDS}.")
    if not len(source):
        raise ElfsError(f"images are empty: give {_KINDS}.")
    first = _image_of(source[0])
    if not isinstance(first, Image.Image):
        return read_source(np.stack([_small_array(item) for item in _images_of(source)]))
    names = [str(row) for row in range(len(source))]
    sample = (io.BytesIO(_png(image)) for image in islice(_images_of(source), decoding.SAMPLE))
    side = image_size or decoding.default_size(sample)
    return ImagesInMemory(_decoded(names, _images_of(source), side, _png))


def as_pixels(array: np.ndarray) -> np.ndarray:
    """uint8 [N, C, H, W] of an array of images.

    Args:
        array: [N, C, H, W], [N, H, W, C] or grey [N, H, W], with C = 1 or 3: whole numbers from 0
            to 255, or floats from 0 to 1, which are scaled to 255 and rounded.

    Raises:
        ElfsError: for other shapes and values, with what would convert them.
    """
    if array.ndim == 3:
        array = array[:, None]
    if array.ndim == 4 and array.shape[1] not in (1, 3) and array.shape[3] in (1, 3):
        array = array.transpose(0, 3, 1, 2)
    if array.ndim != 4 or array.shape[1] not in (1, 3):
        check_images(array, instead=", or a directory")
    if array.dtype != np.uint8 and array.size:
        low, high = float(array.min()), float(array.max())
        if array.dtype.kind == "f" and low >= 0 and high <= 1:
            array = np.rint(array * 255).astype(np.uint8)
        elif array.dtype.kind in "iu" and low >= 0 and 1 < high <= 255:
            array = array.astype(np.uint8)
        else:
            raise ElfsError(
                f"images are {array.dtype} from {low:.3g} to {high:.3g}: give uint8 from 0 to 255 "
                "or floats from 0 to 1; if they are normalised, undo it first: x * std + mean."
            )
    check_images(array, instead=", or a directory")
    return np.ascontiguousarray(array)


def _as_array(source: Any) -> np.ndarray | None:
    """A NumPy array of an array or of a tensor; None for anything else."""
    if isinstance(source, np.ndarray):
        return source
    if type(source).__module__.partition(".")[0] == "torch" and hasattr(source, "detach"):
        return source.detach().cpu().numpy()
    return None


def _small_array(image: Any) -> np.ndarray:
    array = _as_array(image)
    if array is None or array.ndim not in (2, 3):
        raise ElfsError(f"images hold a {type(image).__name__}: give {_KINDS}.")
    return array


def _images_of(source: Sequence[Any]) -> Iterator[Any]:
    return (_image_of(source[row]) for row in range(len(source)))


def _image_of(item: Any) -> Any:
    """The image of a dataset's item; its label is dropped here."""
    if isinstance(item, dict):
        name = next((name for name in IMAGE_COLUMNS if name in item), None)
        if name is None:
            raise ElfsError(f"images have the columns {', '.join(item)}: name theirs image.")
        return item[name]
    return item[0] if isinstance(item, (tuple, list)) else item


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    return file.getvalue()


def _decoded(names: list[str], payloads: Any, side: int, read: Any) -> np.ndarray:
    found = decoding.decode_images(
        lambda start: zip(names, payloads, strict=True),
        len(names),
        image_size=side,
        read=read,
        desc="reading",
    )
    if len(found.names) < len(names):
        bad = next(name for name in names if name not in set(found.names))
        raise ElfsError(f"Image {bad} cannot be read: leave it out.")
    return found.images


def _all(items: Sequence[Any], kinds: tuple[type, ...]) -> bool:
    return all(isinstance(item, kinds) for item in items)
