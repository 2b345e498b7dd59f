"""Random views: by hand, and what they must not change."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from elfs_lib.embedding import augmentation
from elfs_lib.embedding.augmentation import Augmentation, augment


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(count: int, channels: int = 3, side: int = 12) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, channels, side, side), dtype=np.uint8)


@pytest.mark.parametrize(("channels", "side"), [(1, 8), (3, 16), (3, 72)])
def test_views_stay_in_range_and_follow_the_generator(channels, side):
    x = torch.from_numpy(noise(6, channels, side)).float() / 255
    view = augment(x, Augmentation(jitter=1.0), generator())
    assert view.shape == x.shape and view.min() >= 0 and view.max() <= 1
    assert torch.equal(view, augment(x, Augmentation(jitter=1.0), generator()))
    assert not torch.equal(view, augment(x, Augmentation(jitter=1.0), generator(1)))


@pytest.mark.parametrize("side", [8, 72])
def test_views_of_a_flat_image_are_flat(side):
    x = torch.rand(4, 3, 1, 1, generator=generator()).expand(-1, -1, side, side)
    view = augment(x.contiguous(), Augmentation(), generator())
    torch.testing.assert_close(view, view[:, :, :1, :1].expand_as(view), atol=1e-5, rtol=0)


def test_crop_shows_part_of_the_image_enlarged():
    ramp = torch.linspace(0, 1, 16).expand(64, 1, 16, 16)
    how = Augmentation((0.2, 1.0), flip=False, jitter=0)
    view = augment(ramp.contiguous(), how, generator())
    torch.testing.assert_close(view, view[:, :, :1].expand_as(view), atol=1e-5, rtol=0)
    steps = view[:, 0, 0].diff(dim=1)
    assert (steps >= -1e-6).all()  # never mirrored
    span = view[:, 0, 0, -1] - view[:, 0, 0, 0]
    assert span.min() < 0.6 and span.max() > 0.9
    mirrored = augment(ramp.contiguous(), replace(how, flip=True), generator())
    share = float((mirrored[:, 0, 0, -1] < mirrored[:, 0, 0, 0]).float().mean())
    assert 0.3 < share < 0.7


def test_colour_changes_leave_grey_grey_and_can_take_colour_away():
    grey = torch.rand(8, 1, 8, 8, generator=generator()).expand(-1, 3, -1, -1).contiguous()
    view = augment(grey, Augmentation(), generator())
    torch.testing.assert_close(view, view[:, :1].expand_as(view), atol=1e-4, rtol=0)
    colour = torch.from_numpy(noise(8)).float() / 255
    view = augment(colour, Augmentation(grey=1.0), generator())
    torch.testing.assert_close(view, view[:, :1].expand_as(view), atol=1e-4, rtol=0)
    view = augmentation.recolour(colour, Augmentation(jitter=0, grey=0), generator())
    torch.testing.assert_close(view, colour, atol=1e-5, rtol=0)


def test_light_by_hand():
    x = torch.tensor([0.2, 0.6]).view(1, 1, 1, 2)
    seeds = generator()
    changed, brightness, contrast = (torch.rand(1, generator=seeds) for _ in range(3))
    assert changed < 0.8
    bright = x * (1 + 0.8 * brightness - 0.4)
    want = bright.mean() + (bright - bright.mean()) * (1 + 0.8 * contrast - 0.4)
    found = augmentation.light(x, 0.4, generator())
    torch.testing.assert_close(found, want)


def test_blur_keeps_the_mean_and_lowers_the_detail():
    x = torch.from_numpy(noise(16, 1, 224)).float() / 255
    view = augmentation.blur(x, generator())
    blurred = view.std((1, 2, 3)) < 0.95 * x.std((1, 2, 3))
    assert 0 < int(blurred.sum()) < 16
    torch.testing.assert_close(view.mean((2, 3)), x.mean((2, 3)), atol=0.02, rtol=0)


@pytest.mark.parametrize("shape", [(4, 640), (640, 4)])
def test_a_narrow_image_is_blurred_no_farther_than_its_edges_mirror(shape: tuple[int, int]):
    images = torch.rand((8, 1, *shape), generator=generator())
    blurred = augmentation.blur(images, generator())
    assert blurred.shape == images.shape
    assert blurred.min() >= images.min() and blurred.max() <= images.max()
    changed = (blurred - images).abs().amax((1, 2, 3)) > 1e-3
    assert changed.any() and not changed.all()  # half of them


def test_a_fixed_crop_is_square_and_of_its_area():
    x = torch.linspace(0, 1, 32).expand(64, 3, 32, 32).contiguous()
    x[:, 1] = x[:, 0].mT
    how = Augmentation((0.25, 0.25), 1, jitter=0, grey=0, solarise=0)
    view = augment(x, how, generator())
    across = (view[:, 0, :, 1:] - view[:, 0, :, :-1]).abs()[:, :, 1:-1]
    down = (view[:, 1, 1:] - view[:, 1, :-1]).abs()[:, 1:-1]
    # half a side is shown in the same number of pixels
    torch.testing.assert_close(across, torch.full_like(across, 0.5 / 31), atol=1e-4, rtol=0)
    torch.testing.assert_close(down, torch.full_like(down, 0.5 / 31), atol=1e-4, rtol=0)


def test_solarisation_inverts_the_bright_half_of_its_share():
    x = torch.rand(400, 3, 4, 4, generator=generator())
    found = augmentation.solarise(x, 0.1, generator(1))
    changed = (found != x).flatten(1).any(1)
    assert 0.05 < changed.float().mean() < 0.15
    want = torch.where(x >= 0.5, 1 - x, x)
    torch.testing.assert_close(found[changed], want[changed])
    torch.testing.assert_close(augmentation.solarise(x, 1.0, generator()), want)


def test_changes_that_are_left_out_change_nothing():
    x = torch.from_numpy(noise(16, side=72)).float() / 255
    none = Augmentation((1, 1), 1, flip=False, jitter=0, grey=0, blur=False)
    torch.testing.assert_close(augment(x, none, generator()), x, atol=1e-4, rtol=0)
