"""Loader, recipes, networks and the training loop, each against what it promises."""

from __future__ import annotations

import ctypes
import dataclasses
import itertools
import math
import os
import platform
from collections import namedtuple

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from elfs_lib import compute
from elfs_lib.compute import (
    configure_runtime,
    matmul_peak,
    release_memory,
    resident,
    resolve_device,
)
from elfs_lib.errors import ElfsError
from elfs_lib.training import loop
from elfs_lib.training.dynamics import DynamicsRecorder
from elfs_lib.training.loader import ResidentLoader
from elfs_lib.training.loop import Length, Seeds, Trained, train
from elfs_lib.training.models import ConvNet, WhiteningConv, _AddInput, build_network
from elfs_lib.training.optimizer import build_optimizer, orthogonalised, set_learning_rate
from elfs_lib.training.recipes import RECIPES, find_recipe, recipe_key

CPU = torch.device("cpu")
TINY = find_recipe("speedrun_tiny")


def noise(n: int = 20, channels: int = 1, side: int = 8, seed: int = 0) -> np.ndarray:
    shape = (n, channels, side, side)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def bright_or_dark(n: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """Two classes that a few steps tell apart: uint8 [n, 1, 8, 8], int64 [n]."""
    labels = np.arange(n) % 2
    images = noise(n, seed=1) // 4 + (labels * 150).astype(np.uint8)[:, None, None, None]
    return images, labels


def fit(images: np.ndarray, targets: np.ndarray, *, seed: int = 0, **options) -> Trained:
    options = {"recipe": TINY, "length": Length(epochs=2), "crop_pad": 1, **options}
    options.setdefault("seeds", Seeds.all(seed))
    recipe, length = options.pop("recipe"), options.pop("length")
    classes = options.pop("classes", 2)
    options = {"device": "cpu", "precision": "float32", **options}
    return train(images, targets, classes, recipe, length, **options)


# --- loader ----------------------------------------------------------------------------------


def raw_epoch(loader: ResidentLoader, number: int = 0) -> dict[int, np.ndarray]:
    """The augmented images of an epoch as uint8 [C, H, W], by position."""
    views = {}
    for positions, batch in loader.epoch(number):
        pixels = batch.permute(0, 2, 3, 1) * loader.std + loader.mean
        for position, view in zip(positions.tolist(), pixels.permute(0, 3, 1, 2), strict=True):
            assert position not in views
            views[position] = view.round().to(torch.uint8).numpy()
    return views


def slow_views(image: np.ndarray, pad: int, crop: str, flip: bool) -> dict[tuple, np.ndarray]:
    """Every view of an image, pixel by pixel: (row shift, column shift, mirrored) -> [C, H, W]."""
    channels, height, width = image.shape
    views = {}
    for down in range(-pad, pad + 1):
        for right in range(-pad, pad + 1):
            view = np.zeros_like(image)
            for c in range(channels):
                for y in range(height):
                    for x in range(width):
                        view[c, y, x] = _pixel(image[c], y + down, x + right, crop)
            views[down, right, False] = view
            if flip:
                views[down, right, True] = view[:, :, ::-1]
    return views


def _pixel(plane: np.ndarray, y: int, x: int, crop: str) -> int:
    if crop == "zero":
        inside = 0 <= y < plane.shape[0] and 0 <= x < plane.shape[1]
        return plane[y, x] if inside else 0
    for _ in range(4):  # an index beyond the edge comes back from it; the edge is not repeated
        y = -y if y < 0 else 2 * (plane.shape[0] - 1) - y if y >= plane.shape[0] else y
        x = -x if x < 0 else 2 * (plane.shape[1] - 1) - x if x >= plane.shape[1] else x
    return plane[y, x]


def which_view(view: np.ndarray, image: np.ndarray, pad: int, crop: str, flip: bool) -> tuple:
    matches = [k for k, v in slow_views(image, pad, crop, flip).items() if (v == view).all()]
    assert len(matches) == 1, "the view is none, or several, of the views it may be"
    return matches[0]


@pytest.mark.parametrize("batch, batches", [(20, 1), (7, 3), (6, 4), (1, 20)])
def test_every_image_comes_once_an_epoch_in_near_equal_batches(batch: int, batches: int):
    loader = ResidentLoader(torch.from_numpy(noise()), batch=batch)
    for number in range(3):
        sizes, seen = [], []
        for positions, images in loader.epoch(number):
            assert len(positions) == len(images)
            sizes.append(len(positions))
            seen += positions.tolist()
        assert sorted(seen) == list(range(20))
        assert len(sizes) == batches == loader.batches_per_epoch
        assert max(sizes) <= batch and max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("n", [3, 100, 101, 150, 199, 200, 399, 1000])
def test_a_sample_is_spread_evenly_over_all_images(n: int):
    """A coreset lists the hardest first, and what is fitted on a sample must not be on these."""
    images = np.arange(n * 4).reshape(n, 1, 2, 2) // 4 % 251
    loader = ResidentLoader(torch.from_numpy(images.astype(np.uint8)), batch=8)
    found = loader.sample(100)
    wanted = [i * n // min(n, 100) for i in range(min(n, 100))]
    every = loader.normalise(loader.images)
    torch.testing.assert_close(found, every[wanted])
    steps = np.diff([*wanted, n])
    assert steps.max() - steps.min() <= 1


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "crop, flip, pad",
    [("zero", True, 2), ("reflect", True, 2), ("reflect", False, 1), ("zero", False, 0)],
)
def test_views_are_crops_and_flips_pixel_by_pixel(channels: int, crop: str, flip: bool, pad: int):
    images = noise(20, channels, 6)  # 5 px shifted by 2 would read the same mirrored
    loader = ResidentLoader(
        torch.from_numpy(images), batch=5, crop_pad=pad, crop=crop, flip=flip, augment_seed=1
    )
    kinds = [
        which_view(view, images[position], pad, crop, flip)
        for number in range(2)
        for position, view in raw_epoch(loader, number).items()
    ]
    downs, rights, mirrored = (set(kind) for kind in zip(*kinds, strict=True))
    assert downs == rights == set(range(-pad, pad + 1))  # 40 draws reach every shift
    assert mirrored == ({False, True} if flip else {False})


def test_rectangular_images_keep_their_shape():
    images = np.random.default_rng(0).integers(0, 256, (6, 1, 4, 7), dtype=np.uint8)
    loader = ResidentLoader(torch.from_numpy(images), batch=6, crop_pad=1, crop="reflect")
    for position, view in raw_epoch(loader).items():
        which_view(view, images[position], 1, "reflect", False)


def test_alternate_flip_alternates_and_a_coin_does_not():
    images = noise(30, side=4)

    def mirrored(alternate: bool) -> np.ndarray:
        loader = ResidentLoader(
            torch.from_numpy(images), batch=8, flip=True, alternate_flip=alternate
        )
        epochs = [raw_epoch(loader, number) for number in range(4)]
        return np.array(
            [[which_view(e[i], images[i], 0, "zero", True)[2] for i in range(30)] for e in epochs]
        )

    turns = mirrored(True)
    assert (turns[0] != turns[1]).all() and (turns[0] == turns[2]).all()
    assert (turns[1] == turns[3]).all()
    assert 5 < turns[0].sum() < 25  # which images start mirrored is a coin
    coins = mirrored(False)
    assert (coins[0] == coins[1]).any() and (coins[0] != coins[1]).any()


def test_no_flip_where_a_mirrored_image_is_another_class():
    images = noise(30, side=4)
    loader = ResidentLoader(torch.from_numpy(images), batch=8, flip=False, alternate_flip=True)
    for number in range(2):
        assert all((view == images[i]).all() for i, view in raw_epoch(loader, number).items())


@pytest.mark.parametrize("asked, side", [(3, 3), (12, 4)])
def test_cutout_takes_one_square_at_any_place(asked: int, side: int):
    """The images are 8 x 9 px, and lose half of that at most."""
    images = np.random.default_rng(0).integers(0, 256, (200, 3, 8, 9), dtype=np.uint8)

    def batch(cutout: int) -> torch.Tensor:
        options = {"crop_pad": 1, "crop": "reflect", "flip": True, "cutout": cutout}
        loader = ResidentLoader(torch.from_numpy(images), batch=200, **options)
        return next(loader.epoch(0))[1]

    whole, cut = batch(0), batch(asked)
    gone = (cut == 0).all(1)
    rows, columns = gone.any(2), gone.any(1)
    assert (rows.sum(1) == side).all() and (columns.sum(1) == side).all()
    assert (gone == rows[:, :, None] & columns[:, None, :]).all()
    kept = ~gone[:, None].expand_as(cut)
    assert (cut[kept] == whole[kept]).all()
    corners = torch.stack([rows.int().argmax(1), columns.int().argmax(1)], 1)
    last = torch.tensor([8 - side, 9 - side])
    assert (corners.amin(0) == 0).all() and (corners.amax(0) == last).all()


def test_seeds_of_order_and_augmentation_are_separate():
    def epochs(order: int, augment: int) -> list:
        loader = ResidentLoader(
            torch.from_numpy(noise()), batch=6, crop_pad=2, flip=True,
            order_seed=order, augment_seed=augment,
        )  # fmt: skip
        return [raw_epoch(loader, number) for number in range(2)]

    def same(first: list, second: list) -> bool:
        pairs = zip(first, second, strict=True)
        return all((a[i] == b[i]).all() for a, b in pairs for i in range(20))

    base, reordered, reaugmented = epochs(0, 0), epochs(1, 0), epochs(0, 1)
    assert [list(e) for e in base] != [list(e) for e in reordered]
    assert same(base, reordered)
    assert [list(e) for e in base] == [list(e) for e in reaugmented]
    assert not same(base, reaugmented)


def test_normalisation_gives_zero_mean_unit_deviation_and_a_constant_channel_no_infinity():
    images = noise(200, 3, 6)
    images[:, 1] = 77
    loader = ResidentLoader(torch.from_numpy(images), batch=200)
    batch = next(loader.epoch(0))[1]
    torch.testing.assert_close(batch.mean((0, 2, 3)), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(
        batch.std((0, 2, 3)), torch.tensor([1.0, 0.0, 1.0]), atol=1e-3, rtol=0
    )
    assert batch.is_contiguous(memory_format=torch.channels_last)


def test_the_callers_images_are_left_alone():
    images = noise()
    before = images.copy()
    fit(images, np.arange(20) % 2, flip=True)
    assert (images == before).all()


# --- recipes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_schedules_start_peak_and_end_where_they_should(recipe):
    steps = 4000
    rates = np.array([recipe.learning_rate(step, steps) for step in range(steps)])
    assert rates[-1] == pytest.approx(recipe.lr_end, abs=1e-3)
    assert rates.max() == pytest.approx(1, abs=1e-3) and rates.min() > 0
    peak = rates.argmax()
    assert peak == 0 if recipe.schedule == "cosine" else peak == pytest.approx(steps / 4, abs=2)
    assert (np.diff(rates[: peak + 1]) > 0).all() and (np.diff(rates[peak:]) < 0).all()
    if recipe.schedule == "one_cycle":
        assert rates[0] == pytest.approx(0.2, abs=1e-3)
    else:
        assert rates[steps // 2] == pytest.approx((1 + recipe.lr_end) / 2, abs=1e-3)


def test_the_papers_recipe_has_the_papers_numbers():
    recipe = find_recipe("resnet18")
    assert (recipe.batch, recipe.lr, recipe.momentum) == (256, 0.1, 0.9)
    assert recipe.weight_decay == 5e-4 and recipe.schedule == "cosine"
    assert recipe.lr * recipe.lr_end == pytest.approx(1e-4)
    assert recipe.crop == "zero" and not recipe.alternate_flip and not recipe.mirror_test


def test_optimizer_groups_cover_every_trained_parameter_once_with_equal_decay():
    model = build_network(TINY.network, torch.randn(50, 1, 8, 8), 3, seed=0)
    optimizer = build_optimizer(model, TINY)
    grouped = [p for group in optimizer.param_groups for p in group["params"]]
    trained = [p for p in model.parameters() if p.requires_grad]
    assert {id(p) for p in grouped} == {id(p) for p in trained}
    assert len(grouped) == len(trained)
    set_learning_rate(optimizer, 0.5)
    main, biases = optimizer.param_groups
    assert main["lr"] == 0.5 * TINY.lr and biases["lr"] == 0.5 * TINY.lr * TINY.bias_lr_factor
    assert main["lr"] * main["weight_decay"] == pytest.approx(biases["lr"] * biases["weight_decay"])
    assert all(group["nesterov"] for group in optimizer.param_groups)


@pytest.mark.parametrize("shape", [(16, 60), (60, 16), (16, 16)])
def test_orthogonalised_keeps_directions_and_evens_out_their_size(shape: tuple[int, int]):
    rng = np.random.default_rng(0)
    left, _, right = np.linalg.svd(rng.normal(size=shape), full_matrices=False)
    sizes = np.geomspace(1, 0.1, 16)
    assert sizes.min() < np.linalg.norm(sizes) / 19  # about a twentieth, as the docstring says
    for scale in (1e-4, 1.0, 1e4):
        matrix = torch.from_numpy(scale * (left * sizes) @ right)
        found = left.T @ orthogonalised(matrix).numpy() @ right.T
        assert np.abs(found - np.diag(np.diag(found))).max() < 1e-4
        assert (np.diag(found) > 0.68).all() and (np.diag(found) < 1.21).all()


def test_muon_steps_a_share_of_the_weights_length_whatever_the_gradients_size():
    recipe = dataclasses.replace(TINY, matrix_lr=0.1, matrix_momentum=0.5)
    moves = []
    for scale in (1.0, 1000.0):
        model = build_network(TINY.network, torch.randn(50, 1, 8, 8), 3, seed=0)
        optimizer = build_optimizer(model, recipe)
        *_, group = optimizer.param_groups
        assert group["params"] == [p for p in model.parameters() if p.ndim == 4 and p.requires_grad]
        weight = group["params"][1]
        before = weight.detach().clone()
        generator = torch.Generator().manual_seed(1)
        for parameter in model.parameters():
            parameter.grad = scale * torch.randn(parameter.shape, generator=generator)
        gradient = weight.grad.clone().flatten(1)
        set_learning_rate(optimizer, 1.0)
        optimizer.step()
        moves.append(weight.detach() - before * len(before) ** 0.5 / before.norm())
        torch.testing.assert_close(moves[-1].flatten(1), -0.1 * orthogonalised(gradient))
        assert moves[-1].norm() == pytest.approx(0.1 * len(before) ** 0.5, rel=0.2)
    torch.testing.assert_close(*moves)


def test_muon_goes_on_in_the_direction_of_its_momentum():
    model = build_network(TINY.network, torch.randn(50, 1, 8, 8), 3, seed=0)
    recipe = dataclasses.replace(TINY, matrix_lr=0.1, matrix_momentum=0.5)
    optimizer = build_optimizer(model, recipe)
    weight = optimizer.param_groups[-1]["params"][1]
    set_learning_rate(optimizer, 1.0)
    first, second = torch.randn(2, *weight.shape)
    for gradient in (first, second):
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        weight.grad = gradient.clone()
        before = weight.detach().clone()
        optimizer.step()
    # Nesterov: 0.5 x (0.5 first + second) on top of the gradient
    ahead = orthogonalised((0.25 * first + 1.5 * second).flatten(1))
    moved = weight.detach() - before * len(before) ** 0.5 / before.norm()
    torch.testing.assert_close(moved.flatten(1), -0.1 * ahead)


def test_speedrun_does_not_diverge_on_few_images_in_bfloat16():
    images, labels = bright_or_dark(40)
    found = fit(images, labels, recipe=find_recipe("speedrun"), length=Length(steps=6),
                precision="bfloat16")  # fmt: skip
    assert found.accuracy(images, labels) > 0.9


def test_a_recipe_that_came_to_mean_something_else_has_another_key():
    assert recipe_key("resnet18") == "resnet18"
    assert recipe_key("speedrun") == "speedrun, revision 4"


def test_unknown_names_are_named():
    with pytest.raises(ElfsError, match="did you mean 'resnet18'"):
        find_recipe("resnet_18")
    with pytest.raises(ElfsError, match="network"):
        build_network("convnett", torch.zeros(2, 1, 8, 8), 2, seed=0)


# --- networks --------------------------------------------------------------------------------


@pytest.mark.parametrize("side, channels", [(8, 1), (8, 3), (28, 1), (32, 3), (96, 1), (96, 3)])
@pytest.mark.parametrize(
    "name", ["convnet_tiny", "convnet_small", "convnet", "convnet_large", "resnet18"]
)
def test_networks_take_every_size_and_channel_count(name: str, side: int, channels: int):
    images = torch.randn(2, channels, side, side, generator=torch.Generator().manual_seed(0))
    model = build_network(name, images, 7, seed=0)
    logits = model(images)
    assert logits.shape == (2, 7) and torch.isfinite(logits).all()
    if side == 8:
        logits.sum().backward()
        trained = [p for p in model.parameters() if p.requires_grad]
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in trained)


def test_what_enters_a_residual_block_comes_out_of_it():
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    model = build_network("convnet_large", images, 10, seed=0)
    blocks = [m for m in model.modules() if isinstance(m, _AddInput)]
    assert len(blocks) == 3
    for block, width in zip(blocks, (128, 384, 512), strict=True):
        hidden = torch.randn(2, width, 4, 4)
        assert not torch.equal(block(hidden), hidden)
        nn.init.zeros_(block[-2].weight)
        assert torch.equal(block(hidden), hidden)


def test_resnets_have_the_published_number_of_parameters():
    def count(name: str, images: torch.Tensor, classes: int) -> int:
        return sum(p.numel() for p in build_network(name, images, classes, seed=0).parameters())

    assert count("resnet18", torch.zeros(1, 3, 32, 32), 10) == 11_173_962
    assert count("resnet34", torch.zeros(1, 3, 224, 224), 1000) == 21_797_672


def test_whitening_decorrelates_patches_and_stays_frozen():
    generator = torch.Generator().manual_seed(0)
    smooth = torch.randn(400, 3, 10, 10, generator=generator)
    mix = torch.tensor([[1.0, 0.5, 0.2], [0.0, 1.0, 0.5], [0.0, 0.0, 1.0]])
    images = nn.functional.avg_pool2d(torch.einsum("oc,nchw->nohw", mix, smooth), 2, 1)
    layer = WhiteningConv(3, images)
    out = layer(images).detach().permute(0, 2, 3, 1).reshape(-1, 24)
    half = out[:, :12]
    covariance = torch.cov(half.T)
    torch.testing.assert_close(covariance, torch.eye(12), atol=0.08, rtol=0)
    torch.testing.assert_close(out[:, 12:], -half)
    patches = nn.functional.unfold(images, 2).transpose(1, 2).reshape(-1, 12)
    off = torch.cov(patches.T) - torch.diag(torch.cov(patches.T).diag())
    assert off.abs().max() > 0.1  # and the patches themselves were correlated
    assert not layer.weight.requires_grad


def test_grey_photos_saved_as_rgb_train_in_bfloat16():
    """R = G = B leaves 8 of the 12 directions of a patch empty: whitened, they are rounding noise,
    which the next layer's normalisation blew up until training diverged."""
    digits = load_digits()
    grey = torch.from_numpy(digits.images[:40, None] * 15.9).float()
    grey = nn.functional.interpolate(grey, 64, mode="bicubic").clamp(0, 255).byte()
    images = grey.repeat(1, 3, 1, 1)
    assert WhiteningConv(3, ResidentLoader(images, batch=8).sample(40)).out_channels == 8
    assert WhiteningConv(1, ResidentLoader(grey, batch=8).sample(40)).out_channels == 8
    trained = train(
        images.numpy(),
        digits.target[:40],
        10,
        RECIPES["speedrun_tiny"],
        Length(epochs=20),
        seeds=Seeds.all(0),
        device="cpu",
        precision="bfloat16",
    )
    assert np.isfinite(trained.losses).all()


def test_whitening_of_constant_images_is_finite():
    model = ConvNet(torch.zeros(5, 1, 8, 8), 2, (4, 4, 4))
    assert torch.isfinite(model(torch.zeros(5, 1, 8, 8))).all()


def test_building_a_network_leaves_the_callers_random_state_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    build_network("convnet_tiny", torch.randn(9, 1, 8, 8), 2, seed=1)
    torch.manual_seed(5)
    build_network("convnet_tiny", torch.zeros(9, 1, 8, 8), 2, seed=1)
    assert (torch.rand(3) == expected).all()


# --- loop ------------------------------------------------------------------------------------


def test_training_learns_and_keeps_the_last_step():
    images, labels = bright_or_dark()
    trained = fit(images, labels, length=Length(epochs=20), flip=False)
    assert trained.accuracy(images, labels) > 0.95
    assert trained.losses[-1] < trained.losses[0]
    assert not trained.model.training


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not():
    images, labels = bright_or_dark()
    first, again = (fit(images, labels, seed=3).model.state_dict() for _ in range(2))
    other = fit(images, labels, seed=4).model.state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_the_order_seed_leaves_the_initial_weights_alone():
    images, labels = bright_or_dark()
    still = dataclasses.replace(TINY, lr=0.0, average_every=0)

    def weights(weight_seed: int, order_seed: int) -> list[torch.Tensor]:
        seeds = Seeds(weight_seed, order_seed, 0)
        model = fit(images, labels, recipe=still, seeds=seeds).model
        return [p.detach() for p in model.parameters()]

    base, reordered, reweighted = weights(0, 0), weights(0, 1), weights(1, 0)
    assert all(torch.equal(a, b) for a, b in zip(base, reordered, strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(base, reweighted, strict=True))


def test_three_streams_of_one_seed_differ():
    seeds = Seeds.all(0)
    assert len({seeds.weights, seeds.order, seeds.augment}) == 3
    assert Seeds.all(0) == seeds != Seeds.all(1)


@pytest.mark.parametrize("steps", [1, 3, 4, 7])
def test_a_length_in_steps_is_kept_exactly(steps: int, monkeypatch):
    taken = []
    original = torch.optim.SGD.step
    monkeypatch.setattr(torch.optim.SGD, "step", lambda s, *a: (taken.append(1), original(s, *a)))
    recipe = dataclasses.replace(TINY, batch=16)
    trained = fit(*bright_or_dark(64), recipe=recipe, length=Length(steps=steps))
    assert len(taken) == trained.steps == steps
    assert len(trained.losses) == math.ceil(steps / 4)


def test_fewer_steps_than_one_update_of_the_average_still_train():
    images, labels = bright_or_dark()
    few = fit(images, labels, length=Length(steps=TINY.average_every - 1))
    plain = dataclasses.replace(TINY, average_every=0)
    expected = fit(images, labels, length=Length(steps=TINY.average_every - 1), recipe=plain)
    for a, b in zip(few.model.parameters(), expected.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_targets_belong_to_the_subset_in_its_order():
    images, labels = bright_or_dark()
    subset = np.random.default_rng(0).permutation(64)[:40]
    recorder = DynamicsRecorder(torch.as_tensor(labels[subset]), CPU)
    trained = fit(
        images, labels[subset], subset=subset, length=Length(epochs=20), recorder=recorder
    )
    assert trained.accuracy(images, labels) > 0.95
    assert recorder.table()["aum"].mean() > 0
    assert len(recorder.table()) == 40 and recorder.epochs == 20


def test_wrong_targets_are_hard_and_right_ones_easy():
    images, labels = bright_or_dark()
    targets = labels.copy()
    targets[:4] = 1 - targets[:4]
    recorder = DynamicsRecorder(torch.as_tensor(targets), CPU)
    fit(images, targets, length=Length(epochs=15), recorder=recorder, flip=False)
    assert set(recorder.table()["aum"].to_numpy().argsort()[:4]) == {0, 1, 2, 3}


def test_weights_are_of_the_images_loss_whatever_their_scale():
    images, labels = bright_or_dark()
    subset = np.random.default_rng(0).permutation(64)[:40]
    weights = np.r_[np.zeros(10), np.full(30, 7.0)]  # in the order of the subset
    wrong = labels[subset].copy()
    wrong[:10] = 1 - wrong[:10]
    same = [
        fit(images, targets, subset=subset, weights=w, length=Length(epochs=3))
        for targets, w in ((labels[subset], weights), (wrong, weights / 1000))
    ]
    for a, b in zip(*(trained.model.parameters() for trained in same), strict=True):
        torch.testing.assert_close(a, b)
    plain = fit(images, wrong, subset=subset)
    equal = fit(images, wrong, subset=subset, weights=np.full(40, 0.2))
    torch.testing.assert_close(plain.logits(images), equal.logits(images), rtol=1e-3, atol=1e-3)
    other = fit(images, wrong, subset=subset, weights=weights)
    assert (plain.logits(images) - other.logits(images)).abs().max() > 0.02


def test_the_recorder_watches_without_changing_the_training():
    images, labels = bright_or_dark()
    recorder = DynamicsRecorder(torch.as_tensor(labels), CPU)
    seen, blind = fit(images, labels, recorder=recorder), fit(images, labels)
    for a, b in zip(seen.model.parameters(), blind.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_mirrored_test_images_get_the_same_logits():
    images, labels = bright_or_dark()
    trained = fit(images, labels, flip=True)
    torch.testing.assert_close(trained.logits(images), trained.logits(images[..., ::-1]))
    assert trained.mirror_test and not fit(images, labels, flip=False).mirror_test


def test_shifted_test_images_have_half_the_weight():
    images, labels = bright_or_dark()
    recipe = dataclasses.replace(TINY, mirror_test=False, shift_test=2)
    trained = fit(images, labels, recipe=recipe)
    one = dataclasses.replace(trained, shift_test=0)
    wide = np.pad(images, ((0, 0), (0, 0), (2, 2), (2, 2)), mode="reflect")
    side = images.shape[2]
    shifted = [wide[:, :, start : start + side, start : start + side] for start in (0, 4)]
    expected = one.logits(images) / 2 + sum(one.logits(s) for s in shifted) / 4
    torch.testing.assert_close(trained.logits(images), expected)
    assert (expected - one.logits(images)).abs().max() > 1e-3


def test_a_recipe_by_name_takes_another_batch_and_keeps_the_rest():
    assert find_recipe("resnet18", batch=32) == dataclasses.replace(RECIPES["resnet18"], batch=32)
    assert find_recipe("resnet18") is RECIPES["resnet18"]


def test_logits_do_not_depend_on_the_batch_they_came_in(monkeypatch):
    images, labels = bright_or_dark()
    trained = fit(images, labels)
    expected = trained.logits(images)
    torch.testing.assert_close(trained.logits(images, batch=5), expected)
    rows = np.random.default_rng(0).permutation(64)[:21]
    seen = []
    trained.model.register_forward_pre_hook(lambda model, given: seen.append(len(given[0])))
    monkeypatch.setattr(compute, "HELD", 4 * images[0].nbytes)  # as if images were large
    torch.testing.assert_close(trained.logits(images, rows), expected[rows])
    assert set(seen) == {4, 1}
    assert trained.accuracy(images, labels[rows], rows) == trained.accuracy(
        images[rows], labels[rows]
    )


def test_flops_grow_with_the_steps():
    images, labels = bright_or_dark()
    one, three = (fit(images, labels, length=Length(epochs=n)).flops for n in (1, 3))
    assert three == pytest.approx(3 * one) and one > 0


def test_flops_hold_muons_products_once_a_step():
    images, labels = bright_or_dark(24)
    muon = dataclasses.replace(TINY, batch=8, matrix_lr=0.05, matrix_momentum=0.5)
    without = dataclasses.replace(muon, matrix_lr=None)
    long, short = ({r.matrix_lr: fit(images, labels, recipe=r, length=Length(epochs=n)).flops
                    for r in (muon, without)} for n in (2, 1))  # fmt: skip
    extra = long[0.05] - long[None]
    assert extra == 2 * (short[0.05] - short[None])
    model = build_network(TINY.network, torch.randn(50, 1, 8, 8), 2, seed=0)
    sides = [sorted((len(p), p[0].numel())) for p in model.parameters()
             if p.ndim == 4 and p.requires_grad]  # fmt: skip
    # a round multiplies the matrix by itself, that by itself, and the matrix by the sum
    assert extra == 6 * 3 * sum(2 * (2 * n * n * m + n**3) for n, m in sides)


def test_a_diverging_loss_is_an_error():
    wild = dataclasses.replace(find_recipe("resnet18"), network="convnet_tiny", lr=1e12)
    with pytest.raises(ElfsError, match="diverged in epoch.*precision: float32"):
        fit(*bright_or_dark(), recipe=wild, length=Length(epochs=10))


@pytest.mark.parametrize(
    "change, words",
    [
        ({"targets": np.zeros(3, np.int64)}, "64 images but 3 targets"),
        ({"subset": np.array([1, 2])}, "2 images but 64 targets"),
        ({"subset": np.arange(64) + 1}, "outside 0..63"),
        ({"subset": np.arange(64) - 1}, "outside 0..63"),
        ({"subset": np.arange(0), "targets": np.zeros(0, np.int64)}, "no images to train on"),
        ({"subset": np.arange(64) % 3 > 0, "targets": np.zeros(64, np.int64)}, "subset.* not bool"),
        ({"subset": np.arange(64.0)}, "subset.* not float64"),
        ({"targets": np.arange(64) % 2 + 0.5}, "targets.* not float64"),
        ({"targets": (np.arange(64) % 2)[:, None]}, r"targets.* not int64 \(64, 1\)"),
        ({"images": np.zeros((64, 3, 8, 8), np.float32)}, "images are float32"),
        ({"images": np.zeros((64, 8, 8, 3), np.uint8)}, r"images are uint8 \(64, 8, 8, 3\)"),
        ({"classes": 1}, "classes is 1 but the labels run from 0 to 1"),
        ({"targets": np.full(64, -1)}, "labels run from -1"),
        ({"weights": np.ones(63)}, "weights must be 64 finite numbers of at least 0"),
        ({"weights": -np.ones(64)}, "weights must be 64 finite numbers of at least 0"),
        ({"weights": np.full(64, np.nan)}, "weights must be 64 finite numbers of at least 0"),
        ({"weights": np.zeros(64)}, "All weights are 0"),
        ({"crop_pad": 8}, "crop_pad is 8 on images of 8 px"),
        ({"crop_pad": -1}, "crop_pad is -1"),
        ({"length": Length()}, "one of the two"),
        ({"length": Length(epochs=1, steps=1)}, "one of the two"),
        ({"length": Length(epochs=0)}, "0 epochs: give at least 1"),
        ({"length": Length(steps=-2)}, "-2 steps: give at least 1"),
        ({"device": "gpu"}, "Unknown device"),
        ({"precision": "float16"}, "Unknown precision"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict, words: str):
    images, labels = bright_or_dark()
    with pytest.raises(ElfsError, match=words):
        fit(change.pop("images", images), change.pop("targets", labels), **change)


def test_a_recorder_needs_whole_epochs():
    images, labels = bright_or_dark()
    recipe = dataclasses.replace(TINY, batch=16)
    with pytest.raises(ElfsError, match="Dynamics need every image once an epoch"):
        recorder = DynamicsRecorder(torch.as_tensor(labels), CPU)
        fit(images, labels, recipe=recipe, length=Length(steps=3), recorder=recorder)


def test_float32_is_float32_whatever_was_set_before():
    """Exact neighbours on a GPU count on it."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    resolve_device("cpu")
    assert torch.backends.cudnn.allow_tf32 and torch.backends.cuda.matmul.allow_tf32
    configure_runtime()
    assert not torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32


def test_the_environment_asks_for_deterministic_algorithms(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    configure_runtime()
    assert not torch.are_deterministic_algorithms_enabled()
    monkeypatch.setenv("ELFS_DETERMINISTIC", "1")
    try:
        configure_runtime()
        assert torch.are_deterministic_algorithms_enabled()
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    finally:
        torch.use_deterministic_algorithms(False)
        os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="memory is kept by glibc alone")
def test_freed_memory_is_used_again_until_it_is_released(request: pytest.FixtureRequest):
    resource = pytest.importorskip("resource")
    configure_runtime()
    libc = ctypes.CDLL(None)
    # Small pages, which can be counted, where the system would give huge ones (PR_SET_THP_DISABLE)
    libc.prctl(41, 1, 0, 0, 0)
    request.addfinalizer(lambda: libc.prctl(41, 0, 0, 0, 0))
    block = 2**26  # glibc by itself never keeps so much

    def faults() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(block, dtype=torch.uint8)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    release_memory()
    pages = block // resource.getpagesize()
    times = [faults() for _ in range(32)]  # the first few may not yet find one that fits
    assert times[0] > pages / 2 and times[-1] < pages / 20
    release_memory()
    assert faults() > pages / 2


def test_the_peak_is_that_of_the_fastest_product():
    state = torch.get_rng_state()
    ends = iter([7.0, 2.0, 4.0, 0.5, 3.0, 1.0])  # the first is the warm-up's
    times = itertools.chain.from_iterable((0.0, end) for end in ends)
    assert matmul_peak(torch.float32, CPU, times.__next__) == 2 * 2048**3 / 0.5
    assert torch.equal(state, torch.get_rng_state())


def test_the_share_of_the_peak_counts_every_process(monkeypatch):
    images, targets = np.zeros((8, 1, 8, 8), np.uint8), np.arange(8) % 2
    images += np.arange(8, dtype=np.uint8)[:, None, None, None]
    trained = train(images, targets, 2, TINY, Length(steps=1), seeds=Seeds.all(0), device="cpu")
    monkeypatch.setattr(loop, "matmul_peak", lambda dtype, device: {torch.float32: 1e9}[dtype])
    trained = dataclasses.replace(trained, flops=6e9, seconds=4.0, dtype=torch.float32)
    assert trained.share_of_peak == 1.5
    trained.loader.ranks = dataclasses.replace(trained.loader.ranks, size=3)
    assert trained.share_of_peak == 0.5


def test_resident_arrays_share_memory_unless_they_may_not_be_written():
    own = np.zeros((2, 3), np.uint8)
    assert resident(own, torch.device("cpu")).data_ptr() == own.ctypes.data
    own.flags.writeable = False
    assert resident(own, torch.device("cpu")).data_ptr() != own.ctypes.data


@pytest.mark.parametrize("rows", [None, [7, 0, 0, 3, 9, 5, 2]])
def test_rows_of_a_map_are_copied_a_few_at_a_time(tmp_path, monkeypatch, rows: list[int] | None):
    images = noise(10, 3)
    np.save(tmp_path / "images.npy", images)
    mapped, taken = np.load(tmp_path / "images.npy", mmap_mode="r"), []
    monkeypatch.setattr(compute, "HELD", 3 * images[0].nbytes)
    tensor = torch.tensor
    monkeypatch.setattr(torch, "tensor", lambda part: (taken.append(len(part)), tensor(part))[1])
    found = resident(mapped, CPU, None if rows is None else np.array(rows))
    np.testing.assert_array_equal(found.numpy(), images if rows is None else images[rows])
    assert found.dtype == torch.uint8 and max(taken) == 3


def test_free_memory_is_what_a_limit_leaves_and_what_torch_keeps(monkeypatch):
    Memory, Info = namedtuple("Memory", "available total"), namedtuple("Info", "rss")
    monkeypatch.setattr("distributed.system.MEMORY_LIMIT", 1000)
    monkeypatch.setattr("psutil.Process.memory_info", lambda self: Info(300))
    for free, expected in ((5000, 700), (600, 600)):
        monkeypatch.setattr("psutil.virtual_memory", lambda free=free: Memory(free, 9000))
        assert compute.available(CPU) == expected
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (400, 10**9))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 250)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 50)
    assert compute.available(torch.device("cuda")) == 600


# --- recipes of the released code -------------------------------------------------------------


def test_stl10_has_a_fine_stem_at_96_px_and_svhn_neither_crops_nor_normalisation():
    sample = torch.zeros(1, 3, 96, 96)
    fine, coarse = (
        build_network(find_recipe(name).network, sample, 10, seed=0).features[0]
        for name in ("resnet18_stl10", "resnet18")
    )
    assert (fine.kernel_size, fine.stride) == ((3, 3), (1, 1))
    assert (coarse.kernel_size, coarse.stride) == ((7, 7), (2, 2))
    images, labels = noise(8, 3, 12), np.arange(8) % 2
    options = {"length": Length(steps=1), "crop_pad": 4, "flip": False}
    trained = fit(images, labels, recipe=find_recipe("resnet18_svhn"), **options)
    for positions, batch in trained.loader.epoch(0):
        expected = torch.from_numpy(images)[positions] / 255
        torch.testing.assert_close(batch, expected)


@pytest.mark.parametrize("name, nesterov", [("resnet34_imagenet", False), ("resnet34", True)])
def test_imagenets_momentum_is_plain(name: str, nesterov: bool):
    recipe = dataclasses.replace(find_recipe(name), network="convnet_tiny")
    model = build_network(recipe.network, torch.rand(4, 3, 8, 8), 2, seed=0)
    assert {g["nesterov"] for g in build_optimizer(model, recipe).param_groups} == {nesterov}


def test_random_resized_crops_show_the_box_that_was_drawn_and_tests_the_centre(monkeypatch):
    # colour says where a pixel is from: the row in one channel, the column in the next
    rows, columns = np.meshgrid(np.arange(64), np.arange(64), indexing="ij")
    image = np.stack([rows, columns, 0 * rows]).astype(np.uint8)
    images = np.broadcast_to(image, (200, *image.shape)).copy()
    loader = ResidentLoader(
        torch.from_numpy(images), batch=200, crop="resized", side=16, flip=True, standardise=False
    )
    assert torch.equal(loader.sample(3)[0], torch.from_numpy(image[:, 24:40, 24:40]) / 255)
    boxes = []
    draw = loader._boxes
    monkeypatch.setattr(loader, "_boxes", lambda: boxes.append(draw()) or boxes[-1])
    [(positions, batch)] = loader.epoch(0)
    assert batch.shape == (200, 3, 16, 16)
    wide, tall, x, y = boxes[0][positions].unbind(1)
    seen = 255 * batch
    torch.testing.assert_close(seen[:, 0].mean((1, 2)), 32 * y + 31.5, rtol=0, atol=0.6)
    torch.testing.assert_close(seen[:, 1].mean((1, 2)), 32 * x + 31.5, rtol=0, atol=0.6)
    reach = seen.amax((2, 3)) - seen.amin((2, 3))
    torch.testing.assert_close(reach[:, 0], 60 * tall, rtol=0, atol=1.6)
    torch.testing.assert_close(reach[:, 1], 60 * wide, rtol=0, atol=1.6)
    mirrored = seen[:, 1, 0, 0] > seen[:, 1, 0, -1]
    assert 60 < mirrored.sum() < 140
    area = (wide * tall).double()
    assert 0.08 <= area.min() < 0.15 and area.max() > 0.8 and 0.45 < area.mean() < 0.6
    assert (wide / tall).min() > 0.74 and (wide / tall).max() < 1.34


def test_images_smaller_than_the_crop_are_refused():
    with pytest.raises(ElfsError, match="crops images to 224 px but these have 12"):
        fit(noise(8, 3, 12), np.arange(8) % 2, recipe=find_recipe("resnet34_imagenet"))
