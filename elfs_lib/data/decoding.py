"""From image files as people have them to one uint8 array: decoded once, in order, none lost.

Every file ends either in the array or in the report, and the report says why. The kinds it
uses are the keys of :data:`LEFT_OUT` (not in the array) and :data:`KEPT` (in the array, but
worth knowing).

One file: threads, a resumed run and the report share one pass over the files.
"""

from __future__ import annotations

import contextvars
import hashlib
import io
import os
import shutil
import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import PIL
from PIL import Image, UnidentifiedImageError

from elfs_lib.artifacts import CACHE_SIGNATURE, CACHE_TAG
from elfs_lib.data.growing import Found, Growing
from elfs_lib.errors import ElfsError
from elfs_lib.progress import track

# A named list, because Pillow also knows formats that start other programs (EPS) or that
# nobody trains on, and each parser is one more thing to attack.
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "MPO", "PNG", "TIFF", "WEBP")
IMAGE_SUFFIXES = frozenset(
    ".avif .bmp .gif .jfif .jpe .jpeg .jpg .mpo .png .tif .tiff .webp".split()
)
UNSUPPORTED_SUFFIXES = frozenset(
    ".arw .cr2 .cr3 .dcm .dng .eps .heic .heif .ico .j2k .jp2 .jxl .nef .psd .raw .svg .tga".split()
)
MAX_PIXELS = 89_478_485  # Pillow's own limit: a quarter of a gigabyte of RGB
MAX_BYTES = 256 * 2**20
SMALLEST_SIDE = 8  # pixels
SAMPLE = 256  # files whose size decides the default image_size

LEFT_OUT = {
    "damaged": "image files that cannot be decoded",
    "unsupported": "image formats that are not read here: convert them to JPEG or PNG",
    "not_an_image": "files that are not images",
    "too_large": f"images above {MAX_PIXELS:,} pixels or {MAX_BYTES:,} bytes",
    "unreadable": "files or folders that may not be read",
    "broken_link": "links to nothing, or to themselves",
    "repeated_link": "links to a folder that is read already (loops among them)",
    "bad_name": "file names that are not valid UTF-8: rename them",
    "hidden": "files and folders whose name begins with a dot",
    "unused": "files outside of the folders that hold the splits; further images of a sample",
    "cache": f"folders of a program's own files, by the {CACHE_TAG} in them",
}
KEPT = {
    "rotated": "turned upright, as their EXIF orientation says",
    "animated": "of several frames the first one is used",
    "cmyk": "converted from CMYK to RGB",
    "sixteen_bit": "scaled from 16 bits to 8",
    "transparent": "laid on white",
    "tiny": f"short side below {SMALLEST_SIDE} pixels",
    "duplicates": "the same bytes as another file",
}

_CHUNK = 64  # files that a thread decodes in a row
_ANNOUNCED = 10**9  # bytes on disk worth a line
_PNG = b"\x89PNG\r\n\x1a\n"
Item = TypeVar("Item")
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class Unusable(Exception):
    """A file that cannot join the array; ``kind`` is a key of :data:`LEFT_OUT`."""

    def __init__(self, kind: str) -> None:
        super().__init__(LEFT_OUT[kind])
        self.kind = kind


@dataclass(frozen=True)
class Decoded:
    """What became of a sequence of image files.

    Attributes:
        images: uint8 [K, 3, S, S], the images that could be decoded, in the order given.
        names: Their K names.
        rows: int64 [K], their places in the sequence given.
        grey: True if no image had colour, so that one channel holds everything.
        formats: The file formats met ("JPEG", "PNG"...).
        report: kind -> names, for the kinds that occurred; "duplicates" are pairs of a name and
            the first one of the same bytes.
    """

    images: np.ndarray
    names: tuple[str, ...]
    rows: np.ndarray
    grey: bool
    formats: frozenset[str]
    report: dict[str, list]


@dataclass(frozen=True)
class _Square:
    """One decoded image: uint8 [3, S, S], and what there is to say about it."""

    pixels: np.ndarray
    grey: bool
    format: str
    digest: bytes


def decode_images(
    items: Callable[[int], Iterable[tuple[str, Any]]],
    count: int,
    *,
    image_size: int,
    read: Callable[[Any], bytes],
    desc: str,
    first_seen: dict[bytes, str] | None = None,
    file: Path | None = None,
    identity: str = "",
) -> Decoded:
    """Decode image files to squares, in a pool of threads.

    Each image is cropped to its central square and resized (bicubic, antialiased) to
    ``image_size``: the same as resizing the short side and cropping the middle. Memory is a few
    chunks of files in flight, and the array of ``count`` images unless that is a file.

    A decoding to a file that was killed goes on where it was: beside the file is a log of what
    became of each item, which is written after the pixels that it speaks of.

    Args:
        items: ``(name, payload)`` in order, from a place on; at most ``count`` of them in all. What
            an earlier attempt has decoded is not asked for.
        count: The number of items: the array is allocated once.
        image_size: Side of the stored squares, in pixels.
        read: Turns a payload into the file's bytes; may raise :class:`Unusable` or OSError.
            Runs in the worker threads.
        desc: Label of the progress bar.
        first_seen: Digest -> name of files seen before, so that duplicates are found across
            several calls; extended in place.
        file: Where the array is kept, as a ``.npy`` file that is mapped; None = in memory.
        identity: Of the items: what a decoding of others left beside ``file`` is not gone on with.
    """
    found = Found(first_seen={} if first_seen is None else first_seen)
    side = (3, image_size, image_size)
    target = (
        None
        if file is None
        else Growing(file, (count, *side), f"{identity}, Pillow {PIL.__version__}")
    )
    images = np.empty((count, *side), np.uint8) if target is None else None
    for fate in target.fates if target else ():
        found.add(*fate)
    done = found.seen

    def work(chunk: list[tuple[str, Any]]) -> list[tuple[str, _Square | None, list[str]]]:
        return [(name, *_decode_one(name, payload, read, image_size)) for name, payload in chunk]

    with warnings.catch_warnings(), target or nullcontext():
        # Pillow warns of broken EXIF, palettes and large images: the report says all of that.
        warnings.filterwarnings("ignore", module="PIL")
        chunks = _in_order(work, _chunked(items(done), _CHUNK))
        for results in track(chunks, desc, total=-(-(count - done) // _CHUNK)):
            for name, square, kinds in results:
                fate = (name, kinds, square and (square.digest.hex(), square.grey, square.format))
                if target is not None:
                    target.add(fate, square and square.pixels)
                elif square is not None:
                    images[len(found.names)] = square.pixels
                found.add(*fate)
    kept = len(found.names)
    return Decoded(
        images[:kept] if target is None else target.finish(kept),
        tuple(found.names),
        np.array(found.rows, np.int64),
        found.grey,
        frozenset(found.formats),
        found.report,
    )


def read_file(path: Path) -> bytes:
    """The bytes of a file of bounded size."""
    if path.stat().st_size > MAX_BYTES:
        raise Unusable("too_large")
    return path.read_bytes()


def default_size(sample: Iterable[Path | io.BytesIO]) -> int:
    """The stored size for images like these, when the user names none.

    Their own size when all are squares of one size up to 64; otherwise 32 when no side is
    longer than 40 pixels, and 64 when one is (or when none can be read). Reads headers only;
    callers give up to :data:`SAMPLE` files.
    """
    sizes = set()
    for file in sample:
        try:
            with Image.open(file, formats=readable_formats()) as image:
                sizes.add(image.size)
        except Exception:  # what is wrong is reported when the image is decoded
            continue
    if len(sizes) == 1:
        width, height = next(iter(sizes))
        if width == height <= 64:
            return max(4, width)
    return 32 if sizes and max(map(max, sizes)) <= 40 else 64


def read_ahead(items: Iterable[Item]) -> Iterator[Item]:
    """The same items; a thread makes the next one while this one is used, so that for example a
    GPU does not wait for the decoder. Two of them are held at a time."""
    iterator, end = iter(items), object()
    context = contextvars.copy_context()  # the lock on labels holds in the thread too
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(context.run, next, iterator, end)
        while (item := coming.result()) is not end:
            coming = pool.submit(context.run, next, iterator, end)
            yield item


def resize_images(images: np.ndarray, image_size: int) -> np.ndarray:
    """Resize uint8 [N, C, H, W] to [N, C, S, S] (bicubic, antialiased)."""
    if images.shape[-2:] == (image_size, image_size):
        return images
    import torch  # here, for it takes seconds, and most of what reads this module resizes nothing

    out = np.empty((*images.shape[:2], image_size, image_size), np.uint8)
    for start in range(0, len(images), 1024):
        block = torch.from_numpy(images[start : start + 1024])
        block = torch.nn.functional.interpolate(
            block, size=(image_size, image_size), mode="bicubic", antialias=True
        )
        out[start : start + 1024] = block.numpy()
    return out


def check_memory(count: int, image_size: int) -> None:
    """Refuse before the first image is decoded what could never fit in memory."""
    if not hasattr(os, "sysconf"):
        return  # Windows does not say
    need = count * 3 * image_size**2
    have = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if need > 0.9 * have:
        raise ElfsError(
            f"{count:,} images at image_size {image_size} take {need / 1e9:.0f} GB of memory and "
            f"this machine has {have / 1e9:.0f} GB: choose a smaller image_size."
        )


def check_disk(size: int, folder: Path) -> None:
    """Say how much a decoding writes; refuse before the first image what the disk could not hold,
    besides what is in the folder already."""
    there = sum(file.stat().st_size for file in folder.iterdir())
    free = shutil.disk_usage(folder).free
    if size - there > 0.9 * free:
        raise ElfsError(
            f"The decoded images take {size / 1e9:.0f} GB and {folder.parent} has "
            f"{free / 1e9:.0f} GB free: choose a smaller image_size, or another folder with "
            "ELFS_ARTIFACTS_DIR."
        )
    if size >= _ANNOUNCED:
        print(
            f"The decoded images take {size / 1e9:.1f} GB in {folder.parent}; if this is stopped, "
            "the same command goes on.",
            file=sys.stderr,
        )


def list_files(root: Path) -> tuple[list[str], dict[str, list]]:
    """All files below a folder that may be images: by their suffix, or because they have none.

    Links to files and folders are followed. A linked folder that is already read under its own
    name, or by an earlier link, is reported and not read again, so loops end. Names that begin
    with a dot are the system's clutter (``.DS_Store``, ``._x.jpg``, ``.git``): they are listed
    as ``hidden`` and not read. A folder below ``root`` that holds a ``CACHEDIR.TAG``, as that of
    the artifacts does, is listed as ``cache`` and not read.

    Returns:
        Paths relative to ``root``, ``/`` between the parts, sorted; and a report of the rest.
    """
    files: list[str] = []
    report: dict[str, list] = {}
    links: list[str] = []
    seen = {_identity(root)}

    def kind_of(entry: os.DirEntry, name: str) -> str | None:
        """What to report the entry as, None where it is a file or folder to read."""
        if not _valid_utf8(name):
            return "bad_name"
        if entry.name.startswith("."):
            return "hidden"
        if entry.is_symlink() and not os.path.exists(entry.path):
            return "broken_link"
        if entry.is_dir():
            return None
        suffix = os.path.splitext(name)[1].lower()
        if not entry.is_file() or (suffix and suffix not in IMAGE_SUFFIXES):
            return "unsupported" if suffix in UNSUPPORTED_SUFFIXES else "not_an_image"
        return None

    def walk(folder: str) -> None:
        todo = [folder]
        while todo:
            folder = todo.pop()
            try:
                entries = list(os.scandir(root / folder))
            except OSError:
                report.setdefault("unreadable", []).append(folder or ".")
                continue
            if folder and _is_cache(root / folder):
                report.setdefault("cache", []).append(printable(folder))
                continue
            for entry in entries:
                name = f"{folder}/{entry.name}" if folder else entry.name
                try:
                    kind = kind_of(entry, name)
                    is_folder = kind is None and entry.is_dir()
                    identity = _identity(entry.path) if is_folder else None
                except OSError:
                    kind = "unreadable"
                if kind is None and is_folder and entry.is_symlink():
                    links.append(name)
                elif kind is None and not is_folder:
                    files.append(name)
                elif kind is None and identity not in seen:
                    seen.add(identity)
                    todo.append(name)
                else:
                    report.setdefault(kind or "repeated_link", []).append(printable(name))

    walk("")
    # Real folders first, then links in sorted order: which of two names a folder is read
    # under must not depend on the order in which the disk lists them.
    while links:
        links.sort(reverse=True)
        link = links.pop()
        identity = _identity(root / link)
        if identity in seen:
            report.setdefault("repeated_link", []).append(link)
        else:
            seen.add(identity)
            walk(link)
    return sorted(files), {kind: sorted(names) for kind, names in sorted(report.items())}


def _is_cache(folder: Path) -> bool:
    try:
        with open(folder / CACHE_TAG, "rb") as tag:
            return tag.read(len(CACHE_SIGNATURE)) == CACHE_SIGNATURE.encode()
    except OSError:
        return False


def _identity(path: str | Path) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _valid_utf8(name: str) -> bool:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def printable(name: str) -> str:
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _chunked(items: Iterable, size: int) -> Iterator[list]:
    items = iter(items)
    while chunk := list(islice(items, size)):
        yield chunk


def _in_order(work: Callable, chunks: Iterable) -> Iterator:
    """Results in the order of the chunks, with a bounded number of them in flight."""
    import torch  # the number of threads that this process may use

    readable_formats()
    workers = max(1, min(16, torch.get_num_threads()))
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque = deque()
        for chunk in chunks:
            waiting.append(pool.submit(work, chunk))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def readable_formats() -> tuple[str, ...]:
    """Those of :data:`FORMATS` that this Pillow can open."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _decode_one(
    name: str, payload: Any, read: Callable[[Any], bytes], size: int
) -> tuple[_Square | None, list[str]]:
    """The square, or None; and the kinds (of LEFT_OUT or KEPT) that this file belongs to."""
    try:
        data = read(payload)
    except Unusable as error:
        return None, [error.kind]
    except OSError:
        return None, ["unreadable"]
    try:
        try:
            found = _read(data, size)
        except ValueError:
            # Pillow refuses a PNG file for much text, or a large colour profile, beside the image
            found = _read(_without_text(data), size)
    except (Image.DecompressionBombError, Unusable):
        return None, ["too_large"]
    except UnidentifiedImageError:
        return None, ["damaged" if os.path.splitext(name)[1] else "not_an_image"]
    except Exception:  # parsers fail on damaged bytes in any way they like
        return None, ["damaged"]
    pixels, grey, kinds, file_format = found
    digest = hashlib.blake2b(data, digest_size=16).digest()
    return _Square(pixels, grey, file_format, digest), kinds


def _read(data: bytes, size: int) -> tuple[np.ndarray, bool, list[str], str]:
    """What :func:`_square` gives of a file, and its format."""
    with Image.open(io.BytesIO(data), formats=readable_formats()) as image:
        if image.width * image.height > MAX_PIXELS:
            raise Unusable("too_large")
        return *_square(image, size), image.format


def _without_text(data: bytes) -> bytes:
    """A PNG file without its texts and its colour profile; any other file as it is."""
    if not data.startswith(_PNG):
        return data
    parts, place = [_PNG], len(_PNG)
    while place < len(data):
        end = place + 12 + int.from_bytes(data[place : place + 4], "big")  # length, name, checksum
        if data[place + 4 : place + 8] not in (b"tEXt", b"zTXt", b"iTXt", b"iCCP"):
            parts.append(data[place:end])
        place = end
    return b"".join(parts)


def _square(image: Image.Image, size: int) -> tuple[np.ndarray, bool, list[str]]:
    """uint8 [3, size, size], whether it has no colour, and what had to be done to it."""
    kinds: list[str] = []
    if min(image.size) < SMALLEST_SIDE:
        kinds.append("tiny")
    if _is_deep(image):
        kinds.append("sixteen_bit")
    image.draft(None, (2 * size, 2 * size))  # lets the JPEG decoder skip what is thrown away
    image.load()  # before anything that might swallow the error of a broken file
    upright = _UPRIGHT.get(_orientation(image))
    if upright is not None:
        kinds.append("rotated")
    if getattr(image, "is_animated", False) and image.format != "MPO":
        kinds.append("animated")  # an MPO is one photo with its previews
    if image.mode == "CMYK":
        kinds.append("cmyk")
    grey = image.mode in ("1", "L", "LA", "La", "I", "F") or image.mode.startswith("I;")
    image = _resized(_eight_bit(image), size)
    if image.mode == "RGBA":
        if image.getchannel("A").getextrema()[0] < 255:
            kinds.append("transparent")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    if upright is not None:
        image = image.transpose(upright)
    return np.asarray(image.convert("RGB")).transpose(2, 0, 1), grey, kinds


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(0x0112, 1)
    except Exception:  # broken EXIF must not cost the image
        return 1


def _is_deep(image: Image.Image) -> bool:
    # Pillow cuts 16-bit colour to 8 while it reads: only the raw mode still shows it.
    raw = str(image.tile[0][3]) if image.tile else ""
    return image.mode in ("I", "F") or image.mode.startswith("I;16") or ";16" in raw


def _eight_bit(image: Image.Image) -> Image.Image:
    """The same image as L, RGB or RGBA."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        values = np.nan_to_num(np.asarray(image, dtype=np.float64)).clip(0)
        # Cameras and scanners put 12 bits into 16: dividing those by 257 would leave black.
        top = values.max()
        scales = (1, 255, 4095, 65535) if image.mode == "F" else (255, 4095, 65535)
        scale = next((full for full in scales if top <= full), top)
        return Image.fromarray(np.rint(values * (255 / scale)).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        return image.convert("RGBA")
    return image.convert("L" if image.mode in ("1", "L") else "RGB")


def _resized(image: Image.Image, size: int) -> Image.Image:
    if image.size == (size, size):
        return image
    side = min(image.size)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    # One call with a box: resizing first would blow a 1 x 10,000 strip up to gigabytes.
    return image.resize(
        (size, size),
        Image.Resampling.BICUBIC,
        box=(left, top, left + side, top + side),
        reducing_gap=2.0,
    )
