"""Pieces of HTML for reports: pictures and tables that hold everything inside themselves.

File names are people's data: whatever they contain stays text.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape

import numpy as np
import pandas as pd
from PIL import Image

THUMBNAIL = 96  # pixels, the longest side that is embedded
SHOWN = 84  # pixels on the page
_GRID = (
    f"display:grid;grid-template-columns:repeat(auto-fill,minmax({SHOWN + 12}px,1fr));"
    "gap:10px 8px;align-items:start;margin:8px 0 16px"
)
_FIGURE = "margin:0;font-size:11px;line-height:1.3;overflow-wrap:anywhere"
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


def pictures(images: np.ndarray, captions: Sequence[Sequence[str]]) -> str:
    """A grid of images, each with its caption.

    Args:
        images: uint8 [n, C, H, W], C = 1 or 3.
        captions: For each image its lines; the last one is its path, and its alternative text.
    """
    cells = []
    for image, lines in zip(images, captions, strict=True):
        style = _IMAGE + (";image-rendering:pixelated" if image.shape[-1] < 48 else "")
        text = "<br>".join(escape(str(line)) for line in lines)
        alt = escape(str(lines[-1]), quote=True)
        cells.append(
            f'<figure style="{_FIGURE}"><img style="{style}" alt="{alt}" '
            f'src="{thumbnail(image)}"><figcaption>{text}</figcaption></figure>'
        )
    return f'<div style="{_GRID}">{"".join(cells)}</div>'


def table(frame: pd.DataFrame) -> str:
    """A table; whatever its cells contain stays text."""
    html = frame.to_html(index=False, escape=True, border=0, float_format="%.3g")
    return f'<div style="overflow-x:auto">{html}</div>'


def bullets(sentences: Sequence[str]) -> str:
    """A list of sentences; whatever they contain stays text."""
    return f"<ul>{''.join(f'<li>{escape(text)}</li>' for text in sentences)}</ul>"
