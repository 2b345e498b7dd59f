"""Pieces of the report on a list: pictures, tables and one figure, with nothing outside them.

File names are people's data: whatever they contain stays text.
"""

from __future__ import annotations

import base64
import io
import os
import re
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pandas as pd
from PIL import Image

from elfs_lib.plots import DPI, EASY, HARD, MIDDLE, NEUTRAL, SHADE, WIDTH, PageFigure

THUMBNAIL = 96  # pixels, the longest side that is embedded
SHOWN = 100  # pixels on the page: three beside each other on a phone
MOST_PATHS = 20  # named for each kind of file
_GRID = (
    f"display:grid;grid-template-columns:repeat(auto-fill,minmax({SHOWN + 12}px,1fr));"
    "gap:10px 8px;align-items:start;margin:8px 0 16px"
)
_FIGURE = "margin:0;min-width:0;font-size:11px;line-height:1.3;overflow-wrap:break-word"
_NAME = '<span style="display:inline-block">{}</span>'
_IMAGE = f"width:{SHOWN}px;height:{SHOWN}px;object-fit:cover;border-radius:3px;display:block"


def thumbnail(image: np.ndarray) -> str:
    """A data URI of one image.

    Args:
        image: uint8 [C, H, W], C = 1 or 3.
    """
    pixels = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    # JPEG saves nothing on tiny pictures, and its blocks would show
    small = max(picture.size) <= 16
    file = io.BytesIO()
    picture.save(file, "PNG" if small else "JPEG", **({} if small else {"quality": 80}))
    kind = "png" if small else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def links(record: str | Path, folder: str | Path, paths: Iterable[str]) -> list[str]:
    """Where a page beside a list's record finds the files of a folder: relative URLs."""
    start = os.path.relpath(os.path.abspath(folder), Path(record).resolve().parent)
    return [quote(f"{start}/{path}".replace(os.sep, "/")) for path in paths]


def pictures(
    images: np.ndarray, captions: Sequence[Sequence[str]], *, links: Sequence[str] = ()
) -> str:
    """A grid of images, each with its caption.

    Args:
        images: uint8 [n, C, H, W], C = 1 or 3.
        captions: For each image its lines; the last one is its path, and its alternative text.
        links: For each image the URL of its file; empty for none.
    """
    cells = []
    for image, lines, link in zip(images, captions, links or [""] * len(images), strict=True):
        style = _IMAGE + (";image-rendering:pixelated" if image.shape[-1] < 48 else "")
        text = "<br>".join(breakable(line) for line in lines)
        alt = escape(str(lines[-1]), quote=True)
        shown = f'<img style="{style}" alt="{alt}" src="{thumbnail(image)}">'
        if link:
            shown = f'<a href="{escape(link, quote=True)}">{shown}</a>'
        cells.append(f'<figure style="{_FIGURE}">{shown}<figcaption>{text}</figcaption></figure>')
    return f'<div style="{_GRID}">{"".join(cells)}</div>'


def breakable(text: object) -> str:
    """HTML of a text whose paths break between their parts, and inside a name only where it is too
    long for a line of its own."""
    html = escape(str(text)).replace("/", "/<wbr>")
    return re.sub(r"[^\s/<>]*[_-][^\s/<>]*", lambda found: _NAME.format(_soft(found[0])), html)


def _soft(name: str) -> str:
    return re.sub("([_-])", r"\1<wbr>", name)


def table(frame: pd.DataFrame) -> str:
    """A table; whatever its cells contain stays text, and a path breaks between its parts."""
    cells = dict.fromkeys(frame.select_dtypes(exclude="number"), breakable)
    html = frame.to_html(index=False, escape=False, border=0, float_format="%.3g", formatters=cells)
    return f'<div style="overflow-x:auto">{html}</div>'


def file_kinds(files: pd.DataFrame) -> pd.DataFrame:
    """What became of a folder's files, one row a kind: kind, files, used, what, paths.

    Args:
        files: As :attr:`elfs_lib.own_images.Choice.files`, at least one row.
    """
    rows = []
    for kind, part in files.groupby("kind", sort=True):
        more = len(part) - MOST_PATHS
        paths = ", ".join(
            f"{row.path} (as {row.same_as})" if row.same_as else row.path
            for row in part.head(MOST_PATHS).itertuples()
        )
        rows.append(
            {
                "kind": kind.replace("_", " "),
                "files": len(part),
                "used": "yes" if part["used"].iloc[0] else "no",
                "what": part["meaning"].iloc[0],
                "paths": f"{paths} and {more:,} more" if more > 0 else paths,
            }
        )
    return pd.DataFrame(rows)


def bullets(sentences: Sequence[str]) -> str:
    """A list of sentences; whatever they contain stays text."""
    return f"<ul>{''.join(f'<li>{escape(text)}</li>' for text in sentences)}</ul>"


def cuts_by_class(
    scores: np.ndarray, labels: np.ndarray, listed: np.ndarray, cuts: np.ndarray, *, most: int = 20
) -> PageFigure:
    """A histogram of the score for each pseudo-class, with its two cuts.

    Args:
        scores: float [N], low is hard.
        labels: int [N], pseudo-classes.
        listed: bool [N], images on the list: drawn in full over the others.
        cuts: float [C, 2], scores of the hardest and easiest image between the cuts of each class;
            NaN where nothing lies between them.
        most: Classes drawn, the largest ones.
    """
    sizes = np.bincount(labels, minlength=len(cuts))
    shown = np.sort(np.argsort(-sizes, kind="stable")[: min(most, (sizes > 0).sum())])
    columns = min(5, len(shown))
    rows = -(-len(shown) // columns)
    figure = PageFigure(figsize=(WIDTH, 0.6 + 1.25 * rows), dpi=DPI, layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, squeeze=False).ravel()
    bins = np.histogram_bin_edges(scores, 24)
    for axes in panels[len(shown) :]:
        axes.set_axis_off()
    for axes, label in zip(panels, shown, strict=False):
        own = labels == label
        low, high = cuts[label]
        parts = [
            own & (scores < low),
            own & (scores >= low) & (scores <= high),
            own & (scores > high),
        ]
        if np.isnan(low):
            parts = [own]
        axes.hist(
            [scores[part] for part in parts],
            bins=bins,
            stacked=True,
            color=[HARD, SHADE, EASY][: len(parts)] if len(parts) > 1 else [NEUTRAL],
        )
        axes.hist(scores[own & listed], bins=bins, color=MIDDLE)
        if len(parts) > 1:
            for cut in (low, high):
                axes.axvline(cut, color="#222222", lw=0.8)
        axes.set_title(f"class {label}: {(own & listed).sum():,} of {own.sum():,}", fontsize=8)
        axes.tick_params(labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("score: low is hard", fontsize=8)
    figure.supylabel("images", fontsize=8)
    return figure
