"""Decoded images that grow in a file, so that a decoding that was killed goes on where it was."""

from __future__ import annotations

import json
import math
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from elfs_lib.artifacts import npy_header, write_rows

BLOCK = 4096  # items after which they are safe on disk: seconds of work


@dataclass
class Found:
    """What is known of the items so far, in their order; ``seen`` of them."""

    first_seen: dict[bytes, str]
    names: list[str] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    report: dict[str, list] = field(default_factory=dict)
    grey: bool = True
    formats: set[str] = field(default_factory=set)
    seen: int = 0

    def add(self, name: str, kinds: list[str], kept: tuple[str, bool, str] | None) -> None:
        """Take in the next item: its kinds for the report and, if it is an image, the digest of its
        file as hexadecimal digits, whether it has no colour, and its format."""
        for kind in kinds:
            self.report.setdefault(kind, []).append(name)
        if kept is not None:
            digest, grey, file_format = kept
            self.names.append(name)
            self.rows.append(self.seen)
            self.grey &= grey
            self.formats.add(file_format)
            first = self.first_seen.setdefault(bytes.fromhex(digest), name)
            if first != name:
                self.report.setdefault("duplicates", []).append((name, first))
        self.seen += 1


class Growing:
    """An array uint8 [at most N, 3, S, S] that grows in a ``.npy`` file, row by row.

    The log beside it holds a line of JSON that says what is decoded, then one for each block of
    items: the arguments of :meth:`Found.add`. A line is written when its pixels are on disk, so
    whenever a process is killed, what the log says is there.

    Attributes:
        fates: What the log says of the items that were decoded by a process that was killed.
    """

    def __init__(self, file: Path, shape: tuple[int, ...], identity: str) -> None:
        self.file, self._shape = file, shape
        self._log_file = file.with_suffix(".log")
        self._size = math.prod(shape[1:])
        self._waiting: list = []
        about = json.dumps([identity, *shape])
        self.fates, lines = self._read_log(about)
        kept = sum(fate[2] is not None for fate in self.fates)
        header = npy_header(shape, np.dtype(np.uint8))
        end = len(header) + kept * self._size
        if not file.exists() or file.stat().st_size < end:
            self.fates, lines, end = [], [about], len(header)
        if self.fates:
            print(
                f"Decoding goes on after {len(self.fates):,} of {shape[0]:,} images.",
                file=sys.stderr,
            )
        self._pixels = file.open("r+b" if self.fates else "wb")
        self._pixels.write(header)
        self._pixels.truncate(end)
        self._pixels.seek(end)
        whole = "".join(f"{line}\n" for line in lines)
        if self.fates:
            os.truncate(self._log_file, len(whole.encode()))
        else:
            self._log_file.write_text(whole, encoding="utf-8", newline="")
        self._log = self._log_file.open("a", encoding="utf-8", newline="")

    def _read_log(self, about: str) -> tuple[list, list[str]]:
        """What a log of the same source says, and its lines; the last may be half written."""
        try:
            lines = self._log_file.read_text(encoding="utf-8").split("\n")[:-1]
            if lines[:1] == [about]:
                return [fate for line in lines[1:] for fate in json.loads(line)], lines
        except (OSError, ValueError):  # there is none, or a disk failed
            pass
        return [], [about]

    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: object) -> None:
        self._save()
        self._log.close()
        self._pixels.close()

    def add(self, fate: tuple, pixels: np.ndarray | None) -> None:
        """Take in the next item, and its pixels [3, S, S] unless it is none."""
        if pixels is not None:
            self._pixels.write(pixels.tobytes())
        self._waiting.append(fate)
        if len(self._waiting) == BLOCK:
            self._save()

    def _save(self) -> None:
        for file in (self._pixels, self._log):
            file.flush()
            os.fsync(file.fileno())
            if file is self._pixels and self._waiting:
                self._log.write(json.dumps(self._waiting) + "\n")
        self._waiting = []

    def finish(self, kept: int) -> np.memmap:
        """The rows as a memory map; the file then is what ``np.save`` would have written."""
        with self.file.open("r+b") as file:
            file.write(npy_header((kept, *self._shape[1:]), np.dtype(np.uint8)))
        return np.load(self.file, mmap_mode="r", allow_pickle=False)


def first_channel(images: np.ndarray) -> np.ndarray:
    """The first channel of uint8 [N, C, S, S] as an array [N, 1, S, S]; of a memory map, as one of
    a file beside its own."""
    if not isinstance(images, np.memmap):
        return np.ascontiguousarray(images[:, :1])
    file = Path(images.filename).with_suffix(".grey.npy")
    starts = range(0, len(images), BLOCK)
    return write_rows(file, len(images), (images[i : i + BLOCK, :1] for i in starts))
