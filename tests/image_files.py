"""Image files as people have them: a folder with one of each awkward kind, for the tests."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def gradient(width: int = 24, height: int = 24, *, shade: int = 0) -> Image.Image:
    """RGB, red growing to the right and green growing downwards, blue as given."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0] = np.linspace(0, 255, width)
    pixels[..., 1] = np.linspace(0, 255, height)[:, None]
    pixels[..., 2] = shade
    return Image.fromarray(pixels)


def encoded(image: Image.Image, file_format: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def awkward_folder(root: Path) -> dict[str, list]:
    """Fill ``root`` and return the report that reading it must give."""
    root.mkdir(parents=True, exist_ok=True)

    def put(name: str, image: Image.Image, **options) -> None:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        image.save(root / name, **options)

    # Good ones, of all modes and sizes.
    put("a.png", gradient())
    put("b.jpg", gradient(64, 48, shade=10), quality=95)
    put("nested/deep er/ü.webp", gradient(40, 30, shade=20), lossless=True)
    put("grey.png", gradient(shade=30).convert("L"))
    put("bits.png", gradient(shade=40).convert("1"))
    put("palette.png", gradient(shade=50).quantize(16))
    put("plain.bmp", gradient(shade=60))
    put("strip.png", Image.new("RGB", (3000, 9), "navy"))
    (root / "no_suffix").write_bytes(encoded(gradient(shade=70)))
    # Usable, with something to say.
    exif = Image.Exif()
    exif[0x0112] = 6
    put("turned.jpg", gradient(32, 48, shade=80), exif=exif.tobytes(), quality=95)
    put("press.jpg", gradient(shade=90).convert("CMYK"))
    put("deep.png", Image.fromarray(np.full((16, 16), 32896, np.uint16)))
    put("scan12.tif", Image.fromarray(np.full((16, 16), 2048, np.uint16)))
    put("clear.png", Image.new("RGBA", (16, 16), (0, 0, 0, 0)))
    put("clear_palette.gif", Image.new("P", (16, 16), 0), transparency=0)
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    put("moving.gif", frames[0], save_all=True, append_images=frames[1:])
    put("one.png", Image.new("RGB", (1, 1), "red"))
    put("nested/copy of a.png", gradient())
    # Not usable.
    whole = encoded(gradient(shade=100), "JPEG")
    (root / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    png = encoded(gradient(200, 200, shade=105))
    (root / "cut.png").write_bytes(png[: len(png) // 2])
    (root / "empty.png").write_bytes(b"")
    (root / "text.jpeg").write_text("<script>alert(1)</script>")
    (root / "notes.txt").write_text("not an image")
    (root / "LICENSE").write_text("no suffix, and not an image")
    (root / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic")
    (root / ".DS_Store").write_bytes(b"clutter")
    (root / ".cache").mkdir()
    (root / ".cache" / "thumb.png").write_bytes(encoded(gradient()))
    bomb = encoded(Image.new("1", (20000, 20000)))
    (root / "bomb.png").write_bytes(bomb)
    os.symlink("nowhere.png", root / "dangling.png")
    os.symlink("self.png", root / "self.png")
    os.symlink("..", root / "nested" / "loop")
    return {
        "animated": ["moving.gif"],
        "broken_link": ["dangling.png", "self.png"],
        "cmyk": ["press.jpg"],
        "damaged": ["cut.jpg", "cut.png", "empty.png", "text.jpeg"],
        "duplicates": [("nested/copy of a.png", "a.png")],
        "hidden": [".DS_Store", ".cache"],
        "not_an_image": ["LICENSE", "notes.txt"],
        "repeated_link": ["nested/loop"],
        "rotated": ["turned.jpg"],
        "sixteen_bit": ["deep.png", "scan12.tif"],
        "tiny": ["one.png"],
        "too_large": ["bomb.png"],
        "transparent": ["clear.png", "clear_palette.gif"],
        "unsupported": ["phone.heic"],
    }


def class_folders(root: Path, counts: dict[str, int], *, size: int = 12) -> None:
    """One folder for each class, with different images."""
    shade = 0
    for name, count in counts.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            gradient(size, size, shade=shade % 256).save(root / name / f"{i:03}.png")
            shade += 1


def parquet_file(
    file: Path,
    cells: list[bytes | None] | pa.Array,
    labels: list | pa.Array | None = None,
    *,
    image: str = "img",
    label: str = "label",
    others: dict[str, list] | None = None,
    struct: bool = True,
    metadata: dict[str, str] | None = None,
    statistics: bool = True,
) -> None:
    """A Parquet file in the Hugging Face layout, with or without statistics of its columns; the
    ``others`` come before the labels."""
    file.parent.mkdir(parents=True, exist_ok=True)
    column = pa.array(cells)
    if struct:
        column = pa.StructArray.from_arrays(
            [column, pa.array(["x"] * len(cells))], ["bytes", "path"]
        )
    columns = {image: column} | {name: pa.array(values) for name, values in (others or {}).items()}
    if labels is not None:
        columns[label] = pa.array(labels)
    table = pa.table(columns)
    table = table.replace_schema_metadata(metadata)
    pq.write_table(table, file, row_group_size=4, write_statistics=statistics)
