"""Encoders by name: what each is, what it was trained on, and what may be asked of it.

The paper embeds with DINO ViT-B/16 and SwAV ResNet-50, which never saw a label. Every encoder
here says what it was trained on and whether that training read labels, because a label-free
selection is only as label-free as its embedding. :mod:`elfs_lib.embedding.embed` runs them.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
from dataclasses import KW_ONLY, dataclass, replace
from pathlib import Path
from types import ModuleType

from safetensors import SafetensorError, safe_open

from elfs_lib.data.base import default_data_dir
from elfs_lib.embedding.embedding_file import PRECOMPUTED
from elfs_lib.errors import ElfsError

OWN = "self_supervised"  # an encoder that is trained on the images themselves
ENCODER_FILE = "backbone."  # how names begin in the file of an encoder that was trained on images
ADAPTED = "adapted_"  # before an encoder's name: its weights, trained further on the images


@dataclass(frozen=True)
class Encoder:
    """What an encoder is and what it has seen.

    Attributes:
        architecture: timm model name with its weights' tag; empty where there are none to load.
        pretraining: The data and method that made the weights.
        saw_labels: Whether that training read class labels; None = not known to us.
        license: Licence of the weights.
        url: Where the weights are when timm does not have them.
        input_size: Side in pixels when it should differ from the model's own configuration.
        small_input_size: Side for images at most half as large as this. Small images need not be
            enlarged to a convnet's full input size.
    """

    architecture: str
    pretraining: str
    _: KW_ONLY
    saw_labels: bool | None
    license: str
    url: str | None = None
    input_size: int | None = None
    small_input_size: int | None = None


_CLIP = "400M web images with captions (WIT), CLIP contrastive; no class labels"
_LVD = "LVD-142M (curated web images), DINOv2 self-distillation"

# How an encoder is trained on the images themselves, by ``encoder_method``.
TRAINING = {
    "contrastive": "SimCLR views with the decoupled contrastive loss",
    "emp_ssl": "EMP-SSL, 20 crops an image",
}


def _trained_on_own(method: str) -> str:
    return f"the dataset's own images, {TRAINING[method]}"


ENCODERS: dict[str, Encoder] = {
    "pixels": Encoder(
        "", "none: the pixel values themselves", saw_labels=False, license="none needed"
    ),
    PRECOMPUTED: Encoder(
        "",
        "not known: embeddings as a file, embeddings_path",
        saw_labels=None,
        license="that of whatever made them",
    ),
    "self_supervised": Encoder(
        "",
        _trained_on_own("contrastive"),
        saw_labels=False,
        license="that of the images",
    ),
    "efficientnet_lite0": Encoder(
        "tf_efficientnet_lite0.in1k",
        "ImageNet-1k, supervised classification",
        saw_labels=True,
        license="Apache-2.0",
        small_input_size=128,
    ),
    "dino_vits16": Encoder(
        "vit_small_patch16_224.dino",
        "ImageNet-1k, DINO self-distillation",
        saw_labels=False,
        license="Apache-2.0",
    ),
    "dino_vitb16": Encoder(
        "vit_base_patch16_224.dino",
        "ImageNet-1k, DINO self-distillation",
        saw_labels=False,
        license="Apache-2.0",
    ),
    "swav_resnet50": Encoder(
        "resnet50.tv_in1k",
        "ImageNet-1k, SwAV online clustering, 800 epochs",
        saw_labels=False,
        license="CC-BY-NC-4.0",
        url="https://dl.fbaipublicfiles.com/deepcluster/swav_800ep_pretrain.pth.tar",
    ),
    # DINOv2 was trained at 224 px and only finished at its configured 518 px, which costs 5 times
    # as much and is meant for dense tasks.
    "dinov2_vits14": Encoder(
        "vit_small_patch14_dinov2.lvd142m",
        _LVD,
        saw_labels=False,
        license="Apache-2.0",
        input_size=224,
    ),
    "dinov2_vitb14": Encoder(
        "vit_base_patch14_dinov2.lvd142m",
        _LVD,
        saw_labels=False,
        license="Apache-2.0",
        input_size=224,
    ),
    "clip_vitb16": Encoder(
        "vit_base_patch16_clip_224.openai", _CLIP, saw_labels=False, license="MIT"
    ),
    "clip_vitb32": Encoder(
        "vit_base_patch32_clip_224.openai", _CLIP, saw_labels=False, license="MIT"
    ),
    "mae_vitb16": Encoder(
        "vit_base_patch16_224.mae",
        "ImageNet-1k, masked autoencoder",
        saw_labels=False,
        license="CC-BY-NC-4.0",
    ),
    "convnext_tiny": Encoder(
        "convnext_tiny.fb_in22k",
        "ImageNet-22k, supervised classification",
        saw_labels=True,
        license="Apache-2.0",
    ),
    "resnet50": Encoder(
        "resnet50.a1_in1k",
        "ImageNet-1k, supervised classification",
        saw_labels=True,
        license="Apache-2.0",
    ),
}


def encoder_dir() -> Path:
    """``$ELFS_ENCODER_DIR``, else the folder ``encoders`` beside that of the datasets."""
    given = os.environ.get("ELFS_ENCODER_DIR")
    return Path(given).expanduser() if given else default_data_dir().parent / "encoders"


def find_checkpoint(path: str | Path) -> Path:
    """A checkpoint's path: as it is given, or inside :func:`encoder_dir` if it lies there."""
    shared = encoder_dir() / path
    return shared if shared.is_file() and not Path(path).is_file() else Path(path)


def is_encoder_file(path: str | Path | None) -> bool:
    """Whether a file holds an encoder as :func:`elfs_lib.embedding.encoder_file.save_encoder`
    writes it."""
    if path is None or Path(path).suffix != ".safetensors":
        return False
    try:
        with safe_open(path, "np") as file:
            return any(name.startswith(ENCODER_FILE) for name in file.keys())  # noqa: SIM118
    except (OSError, SafetensorError):
        return False


def about_encoder(path: str | Path) -> dict[str, object]:
    """What an encoder's file says of itself."""
    with safe_open(path, "np") as file:
        texts = file.metadata() or {}
    if set(texts) == {"about"}:  # as save_encoder writes it
        return json.loads(texts["about"])
    return {key: _value(text) for key, text in texts.items()}


def _value(text: str) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text  # files of other makers hold plain text


def trains_here(encoder: str) -> bool:
    """Whether an encoder, or one of several joined by "+", is trained on the images it embeds."""
    names = [name.strip() for name in encoder.split("+")]
    return any(name == OWN or name.startswith(ADAPTED) for name in names)


def check_method(encoder: str, method: str) -> None:
    """Check that a method of :data:`TRAINING` suits an encoder, or several joined by "+".

    Raises:
        ElfsError: if EMP-SSL is to adapt a pretrained network: only the contrastive method can.
    """
    adapted = [n for n in map(str.strip, encoder.split("+")) if n.startswith(ADAPTED)]
    if method == "emp_ssl" and adapted:
        raise ElfsError(
            f"Parameter 'encoder_method' is 'emp_ssl' but encoder {adapted[0]!r} adapts pretrained "
            "weights: take contrastive, or encoder self_supervised."
        )


def checkpoint_fingerprint(checkpoint: str | Path | None) -> str | None:
    """SHA-256 of a checkpoint's bytes (of several: in the order named); None for no checkpoint."""
    if checkpoint is None:
        return None
    pairs = str(checkpoint).split(",")
    several = not find_checkpoint(checkpoint).is_file()
    paths = [pair.partition("=")[2].strip() for pair in pairs] if several else [checkpoint]
    total = hashlib.sha256()
    for path in map(find_checkpoint, paths):
        try:
            with open(path, "rb") as file:
                total.update(hashlib.file_digest(file, "sha256").digest())
        except OSError as error:
            raise ElfsError(f"encoder_checkpoint {path} cannot be read: {error}.") from error
    return total.hexdigest()


def describe(
    encoder: str, checkpoint: str | Path | None = None, method: str = "contrastive"
) -> dict[str, object]:
    """What an encoder (or several joined by "+") was trained on, for manifests and pages.

    Args:
        encoder: As for :func:`elfs_lib.embedding.embed.embed`, like ``checkpoint``.
        method: Key of :data:`TRAINING`: how ``self_supervised`` is trained where no file is given.

    Returns:
        ``encoder``, ``architecture``, ``pretraining`` and ``license`` (joined by " + "), and
        ``saw_labels`` (True if any part saw labels, None if that is not known of a part).

    Raises:
        ElfsError: for an unknown name.
    """
    parts = split_encoders(encoder, checkpoint)
    specs = {name: find_encoder(name, path) for name, path in parts.items()}
    if OWN in parts and parts[OWN] is None:
        specs[OWN] = replace(specs[OWN], pretraining=_trained_on_own(method))
    seen = [spec.saw_labels for spec in specs.values()]
    return {
        "encoder": encoder,
        "architecture": " + ".join(spec.architecture or name for name, spec in specs.items()),
        "pretraining": " + ".join(spec.pretraining for spec in specs.values()),
        "saw_labels": True if True in seen else None if None in seen else False,
        "license": " + ".join(spec.license for spec in specs.values()),
    }


def split_encoders(encoder: str, checkpoint: str | Path | None = None) -> dict[str, Path | None]:
    """The encoders that "+" joins, and the local checkpoint of each.

    Raises:
        ElfsError: for an unknown or repeated name, and a checkpoint that is for none of them.
    """
    names = [name.strip() for name in encoder.split("+")]
    paths: dict[str, Path | None] = dict.fromkeys(names)
    if len(paths) < len(names):
        raise ElfsError(f"encoder {encoder!r} names one encoder twice: name each once.")
    if PRECOMPUTED in paths and len(paths) > 1:
        raise ElfsError(
            f"encoder {encoder!r} joins a file: join the embeddings in the file itself."
        )
    if checkpoint is not None and len(names) == 1:
        paths[names[0]] = find_checkpoint(checkpoint)
    elif checkpoint is not None:
        for pair in str(checkpoint).split(","):
            name, equals, path = pair.partition("=")
            if not equals or name.strip() not in paths:
                raise ElfsError(
                    f"encoder_checkpoint {str(checkpoint)!r} does not say which of {encoder!r} it "
                    "is for: write name=path, several joined by commas."
                )
            paths[name.strip()] = find_checkpoint(path.strip())
    for name, path in paths.items():
        spec = find_encoder(name, path)
        if path is not None and not spec.architecture and name != OWN:
            raise ElfsError(f"encoder {name!r} has no weights: leave encoder_checkpoint out.")
    return paths


def find_encoder(name: str, checkpoint: str | Path | None) -> Encoder:
    """The registry's entry, or one made from timm's own configuration for its other models."""
    spec = ENCODERS.get(name)
    if trains_here(name) and is_encoder_file(checkpoint):
        about = about_encoder(checkpoint)
        said = f"{about.get('method', 'not known')} on {about.get('images', 'not known')}"
        if name == OWN:  # unless the file says it, or was trained in one of our ways, nobody knows
            ours = about.get("method") in TRAINING.values()
            seen = about.get("saw_labels", False if ours else None)
            return replace(spec, pretraining=said, saw_labels=seen)
        start = find_encoder(name.removeprefix(ADAPTED), None)
        seen = about.get("saw_labels", start.saw_labels)
        return replace(start, pretraining=f"{start.pretraining}; then {said}", saw_labels=seen)
    if spec is not None and checkpoint is not None:
        claimed = f"{spec.pretraining} (if the local checkpoint is that)"
        return replace(spec, pretraining=claimed, saw_labels=spec.saw_labels or None)
    if spec is not None:
        return spec
    if name.startswith(ADAPTED):
        spec = find_encoder(name.removeprefix(ADAPTED), checkpoint)
        if not spec.architecture:
            raise ElfsError(f"encoder {name!r} has no weights to adapt: name one that has.")
        return replace(spec, pretraining=f"{spec.pretraining}; then {ENCODERS[OWN].pretraining}")
    known = import_timm().is_model(name) and (
        "." not in name or name in import_timm().list_pretrained()
    )
    if known and checkpoint is not None:
        return Encoder(
            name,
            "a local checkpoint",
            saw_labels=None,
            license="see where the checkpoint came from",
        )
    if known and import_timm().models.is_model_pretrained(name):
        config = import_timm().models.get_pretrained_cfg(name)
        tag = config.tag or "default"
        labelled = re.search(r"in1k|in12k|in21k|in22k|inat|\bft\b", tag)
        return Encoder(
            name,
            f"timm weights {tag!r}: see timm's model card",
            saw_labels=True if labelled else None,
            license=config.license or "see timm's model card",
        )
    if known:
        raise ElfsError(
            f"timm has no pretrained weights for encoder {name!r}: give encoder_checkpoint, or "
            f"choose one of {', '.join(ENCODERS)}."
        )
    # the short names first: of two that are equally near, the first is offered
    near = difflib.get_close_matches(name, [*ENCODERS, *import_timm().list_pretrained()], n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ElfsError(
        f"Unknown encoder {name!r}: {hint}choose one of {', '.join(ENCODERS)}, or any timm model "
        "with pretrained weights."
    )


def import_timm() -> ModuleType:
    """timm, imported when first needed: it takes seconds, and pages that only read need none."""
    import timm

    return timm


def check_positive(name: str, value: int | None) -> None:
    """Refuse an optional count below 1."""
    if value is not None and value < 1:
        raise ElfsError(f"{name} is {value}: give at least 1, or leave it out.")
