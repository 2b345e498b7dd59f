"""Pieces of the report on a list: pictures, tables and one figure, with nothing outside them.

File names are people's data: whatever they contain stays text.
"""

from __future__ import annotations

import base64
import io
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pandas as pd
from PIL import Image

from elfs_lib.results.plots import DPI, EASY, HARD, MIDDLE, NEUTRAL, SHADE, WIDTH, PageFigure

THUMBNAIL = 96  # pixels, the longest side that is embedded
SHOWN = 100  # pixels on the page: three beside each other on a phone
MOST_PATHS = 20  # named for each kind of file
_GRID_STYLE = (
    f"display:grid;grid-template-columns:repeat(auto-fill,minmax({SHOWN + 12}px,1fr));"
    "gap:10px 8px;align-items:start;margin:8px 0 16px"
)
_FIGURE_STYLE = "margin:0;min-width:0;font-size:11px;line-height:1.3;overflow-wrap:break-word"
_PLACES = 1_000_000  # more images than a group has on a page
_NAME = '<span style="display:inline-block">{}</span>'
_IMAGE_STYLE = f"width:{SHOWN}px;height:{SHOWN}px;object-fit:cover;border-radius:3px;display:block"


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
    images: np.ndarray,
    captions: Sequence[Sequence[str]],
    *,
    links: Sequence[str] = (),
    groups: Sequence[int] = (),
    kinds: Sequence[str] = (),
) -> str:
    """A grid of images, each with its caption.

    Args:
        images: uint8 [n, C, H, W], C = 1 or 3.
        captions: For each image its lines; the last one is its path, and its alternative text.
        links: For each image the URL of its file; empty for none.
        groups: For each image its group, by which :func:`group_switch` sorts them under headings;
            empty for none.
        kinds: For each image what :func:`kind_filter` goes by; empty for none.
    """
    cells = []
    several = (links or [""] * len(images), kinds or [""] * len(images))
    for place, (image, lines, link, kind) in enumerate(
        zip(images, captions, *several, strict=True)
    ):
        style = _IMAGE_STYLE + (";image-rendering:pixelated" if image.shape[-1] < 48 else "")
        text = "<br>".join(breakable(line) for line in lines)
        alt = escape(str(lines[-1]), quote=True)
        shown = f'<img style="{style}" alt="{alt}" src="{thumbnail(image)}">'
        if link:
            shown = f'<a href="{escape(link, quote=True)}">{shown}</a>'
        order = f";--group:{groups[place] * _PLACES + place + 1}" if len(groups) else ""
        data = f' data-kind="{escape(kind, quote=True)}"' if kind else ""
        cells.append(
            f'<figure{data} style="{_FIGURE_STYLE}{order}">{shown}'
            f"<figcaption>{text}</figcaption></figure>"
        )
    for group in np.unique(groups):
        style = f"grid-column:1/-1;margin:8px 0 0;--group:{group * _PLACES}"
        cells.append(f'<h3 class="group" style="{style}">class {group}</h3>')
    return f'<div class="pictures" style="{_GRID_STYLE}">{"".join(cells)}</div>'


def group_switch() -> str:
    """A switch of the page: images in their own order, or under a heading for each group. It works
    without a script."""
    return (
        "<style>.pictures .group{display:none}"
        "body:has(#by-group:checked) .pictures .group{display:block}"
        "body:has(#by-group:checked) .pictures>*{order:var(--group)}</style>"
        + _choices("order", {"in-order": "in rank order", "by-group": "by pseudo-class"})
    )


def kind_filter(kinds: Mapping[str, str]) -> str:
    """A filter of the page: images of every kind, or of one. It works without a script.

    Args:
        kinds: kind -> what people read; kinds are letters and underscores.
    """
    rules = "".join(
        f"body:has(#only-{kind}:checked) figure[data-kind]:not([data-kind={kind}]){{display:none}}"
        for kind in kinds
    )
    named = {f"only-{kind}": title for kind, title in kinds.items()}
    return f"<style>{rules}</style>" + _choices("kind", {"every-kind": "everything"} | named)


def _choices(name: str, titles: Mapping[str, str]) -> str:
    """Radio buttons, the first one selected."""
    buttons = (
        f'<label style="margin-right:1rem;white-space:nowrap"><input type="radio" name="{name}" '
        f'id="{key}"{" checked" * (place == 0)}> {escape(title)}</label>'
        for place, (key, title) in enumerate(titles.items())
    )
    return f"<p>Show: {''.join(buttons)}</p>"


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
        files: As :attr:`elfs_lib.photos.choice.Choice.files`, at least one row.
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
