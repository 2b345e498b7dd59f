"""The slider of page 5: what it shows is what double-end pruning does."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from elfs_lib.errors import ElfsError
from elfs_lib.results.live import BetaSlider
from elfs_lib.selection import double_end_prune

IMAGES = np.random.default_rng(0).integers(0, 256, (100, 1, 8, 8)).astype(np.uint8)
EASINESS = np.random.default_rng(1).permutation(100).astype(float)


def slider(beta: float = 0.3, count: int = 20, **options: float) -> BetaSlider:
    return BetaSlider(IMAGES, EASINESS, count, beta, **{"still": 0.0} | options)


def test_what_stays_leaves_and_enters():
    change = slider().change(0.4)
    old, new = double_end_prune(EASINESS, 0.3, 20), double_end_prune(EASINESS, 0.4, 20)
    assert set(change["kept"]) == set(old) & set(new) and len(change["kept"]) == 10
    assert set(change["leaves"]) == set(old) - set(new)
    assert set(change["enters"]) == set(new) - set(old)
    assert (np.diff(EASINESS[change["enters"]]) > 0).all()  # hardest first


def test_moving_it_changes_words_and_pictures():
    moved = slider()
    _, heading, *rows = moved.children
    assert "0 of 20 images" in heading.value and [len(row.children) for row in rows] == [2, 1, 1]
    moved.slider.value = 0.4
    assert "10 of 20 images" in heading.value and [len(row.children) for row in rows] == [2, 2, 2]
    moved.slider.value = 0.6
    assert "20 of 20 images" in heading.value and [len(row.children) for row in rows] == [1, 2, 2]
    picture = Image.open(io.BytesIO(rows[2].children[1].value))
    assert picture.size == (12 * 9 * 6, 8 * 6)  # twelve of 8 pixels and a gap, six times as large
    first = double_end_prune(EASINESS, 0.6, 20)[0]
    assert (np.asarray(picture)[::6, ::6][:, :8] == IMAGES[first, 0]).all()


@pytest.mark.parametrize("beta", [0.0, 0.3, 0.55, 0.8])
def test_every_stop_of_the_slider_fits(beta: float):
    stops = slider(beta)
    for value in np.append(np.arange(0, stops.slider.max, stops.slider.step), stops.slider.max):
        stops.slider.value = value
    assert stops.slider.max == pytest.approx(0.8)


def test_without_a_lab_it_is_a_picture():
    bundle = slider()._repr_mimebundle_()
    assert bundle["image/png"].startswith(b"\x89PNG")
    assert "application/vnd.jupyter.widget-view+json" in bundle
    figure = slider().picture()
    titles = [title for axes in figure.axes if (title := axes.get_title(loc="left"))]
    assert titles == ["leaves"] * 12 + ["enters"] * 12  # at 0.0 nothing stays of 0.3
    assert slider(still=0.4).picture().axes[0].get_title(loc="left") == "kept"


def test_a_beta_that_does_not_fit_is_refused():
    with pytest.raises(ElfsError, match="add up"):
        slider(0.9)
