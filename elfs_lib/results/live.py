"""What answers to the hand in JupyterLab: a slider for beta over the images of the coreset."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import ipywidgets
import numpy as np
from PIL import Image

from elfs_lib.results import plots
from elfs_lib.selection.double_end import double_end_prune

SHOWN = 12  # images in a row
SIDE = 48  # least side of an image in a row, in pixels
STEP = 0.05


class BetaSlider(ipywidgets.VBox):
    """Rows of images that the coreset keeps, that leave it and that enter it as beta moves away
    from the one that was chosen.

    Where no JupyterLab shows widgets (an executed notebook, the book) it is a picture of the same
    for ``still``.

    Args:
        images: uint8 [N, C, H, W], C = 1 or 3.
        easiness: float [N], low is hard.
        count: Size of the coreset.
        beta: The hard-prune ratio that was chosen.
        still: The ratio that the picture compares it with.

    Attributes:
        slider: Its ``value`` is the beta that is shown.
        heading: Its ``value`` says how many images leave and enter.

    Raises:
        ElfsError: if beta and the count do not fit the images.
    """

    def __init__(
        self, images: np.ndarray, easiness: np.ndarray, count: int, beta: float, *, still: float
    ) -> None:
        self._images, self._easiness, self._count = images, easiness, count
        self._beta, self._still = beta, still
        self._chosen = double_end_prune(easiness, beta, count)
        top = int((len(easiness) - count) / len(easiness) / STEP) * STEP
        self.slider = ipywidgets.FloatSlider(
            value=beta, min=0.0, max=max(top, beta), step=STEP, description="beta"
        )
        self.heading = ipywidgets.HTML()
        self._rows = {name: ipywidgets.HBox() for name in ("kept", "leaves", "enters")}
        super().__init__([self.slider, self.heading, *self._rows.values()])
        self.slider.observe(lambda change: self._show(change["new"]), names="value")
        self._show(beta)

    def change(self, beta: float) -> dict[str, np.ndarray]:
        """What moving from the chosen ratio to ``beta`` does to the list: int64 indices that are
        ``kept``, that leave (``leaves``) and that enter (``enters``), hardest first."""
        moved = double_end_prune(self._easiness, beta, self._count)
        return {
            "kept": moved[np.isin(moved, self._chosen)],
            "leaves": self._chosen[~np.isin(self._chosen, moved)],
            "enters": moved[~np.isin(moved, self._chosen)],
        }

    def picture(self) -> plots.PageFigure:
        """The change to the ratio ``still`` as a figure."""
        change = {
            name: _spread(found) for name, found in self.change(self._still).items() if len(found)
        }
        columns = max(map(len, change.values()))
        blank = np.full_like(self._images[0], 255)
        shown, titles = [], []
        for name, found in change.items():
            missing = columns - len(found)
            shown += [*self._images[found], *[blank] * missing]
            titles += [name] * len(found) + [""] * missing
        left = len(self.change(self._still)["leaves"])
        title = f"From beta = {self._beta:g} to {self._still:g}: {left:,} of {self._count:,} leave"
        return plots.image_grid(np.stack(shown), titles, columns=columns, title=title)

    def _show(self, beta: float) -> None:
        change = self.change(beta)
        left = len(change["leaves"])
        self.heading.value = (
            f"<b>beta = {beta:.2f}</b> (chosen: {self._beta:g}): {left:,} of {self._count:,} "
            "images leave the coreset, as many enter."
        )
        for name, row in self._rows.items():
            found = _spread(change[name])
            label = ipywidgets.HTML(f"{name} ({len(change[name]):,})")
            label.layout.width = "8em"
            pictures = [ipywidgets.Image(value=_strip(self._images[found]))] if len(found) else []
            row.children = [label, *pictures]

    def _repr_mimebundle_(self, **options: Any) -> dict[str, Any]:
        bundle = super()._repr_mimebundle_(**options)
        return bundle | {"image/png": self.picture()._repr_png_()}


def _spread(found: Sequence[int]) -> np.ndarray:
    """At most a row of them, evenly from the first to the last."""
    found = np.asarray(found)
    return found[np.linspace(0, len(found) - 1, min(SHOWN, len(found))).astype(int)]


def _strip(images: np.ndarray) -> bytes:
    """Images side by side, enlarged by a whole number: PNG."""
    channels, height, width = images.shape[1:]
    pixels = np.pad(images, ((0, 0), (0, 0), (0, 0), (0, 1)), constant_values=255)
    pixels = pixels.transpose(2, 0, 3, 1).reshape(height, -1, channels)
    scale = -(-SIDE // max(height, width))
    picture = Image.fromarray(pixels[:, :, 0] if channels == 1 else pixels)
    enlarged = picture.resize((picture.width * scale, picture.height * scale), Image.NEAREST)
    packed = io.BytesIO()
    enlarged.save(packed, format="png")
    return packed.getvalue()
