"""Settings in words, for tables and headings that people read."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from elfs_lib.params import parse_yaml

_NAMES = {
    "resnet18": "ResNet-18",
    "speedrun_large": "large network",
    "speedrun": "middle-sized network",
    "speedrun_small": "small network",
    "speedrun_tiny": "tiny network",
    "convnet": "middle-sized network",
    "convnet_small": "small network",
    "convnet_tiny": "tiny network",
    "efficientnet_lite0": "EfficientNet-Lite0",
    "lowest_loss": "of the head of lowest loss",
    "plain_mean": "plain mean of the heads",
}
# What a parameter belongs to, and what is said of it.
_PHRASES = {
    "encoder": ("embeddings", "{}"),
    "temi_start": ("clusters", "{} start"),
    "pseudo_labels": ("pseudo-labels", "{}"),
    "relabel_rounds": ("self-labelling", "{} rounds"),
    "relabel_keep": ("self-labelling", "keeping a share of {}"),
    "relabel_start": ("self-labelling", "from the {}"),
    "proxy_recipe": ("proxy", "{}"),
    "proxy_epochs": ("proxy", "{} epochs"),
    "hard_prune_ratios": ("search models", "beta {}"),
    "search_recipe": ("search models", "{}"),
    "search_steps": ("search models", "{} steps"),
    "eval_recipe": ("final models", "{}"),
    "eval_steps": ("final models", "{} steps"),
    "eval_epochs": ("final models", "{} epochs"),
    "eval_batch": ("final models", "batches of {}"),
}


def changed_parameters(setting: str) -> dict[str, Any]:
    """The parameters that a setting names and their values, as
    :func:`elfs_lib.results.provenance.setting` gives it."""
    found = re.findall(r"(\w+)=(.*?)(?=, \w+=|$)", setting)
    return {name: parse_yaml(value) for name, value in found}


def network_in_words(recipe: str) -> str:
    """The network of a recipe, as tables name it: ``speedrun, revision 4`` or ``resnet18``."""
    name = recipe.partition(",")[0]
    return _NAMES.get(name, name)


def setting_in_words(setting: str) -> str:
    """Say a setting as people would: ``search_steps=1000`` becomes "search models: 1,000 steps".

    Args:
        setting: As :func:`elfs_lib.results.provenance.setting` gives it, ``name=value, ...``,
            without what it begins with for whole pipelines.

    Returns:
        The parts, joined by semicolons; a parameter without a phrase keeps its name, and what only
        goes with another encoder is left out. Empty for an empty setting.
    """
    found = changed_parameters(setting)
    if "encoder" in found:
        found = {name: found[name] for name in found if not name.startswith("encoder_")}
    said: dict[str, list[str]] = {}
    for name, value in found.items():
        what, phrase = _PHRASES.get(name, (name.replace("_", " "), "{}"))
        said.setdefault(what, []).append(phrase.format(_shown(value)))
    return "; ".join(f"{what}: {', '.join(parts)}" for what, parts in said.items())


def seen_in_words(facts: Mapping[str, object]) -> str:
    """Whether an encoder saw labels; ``facts`` are
    :attr:`elfs_lib.stages.run.Run.encoder_facts`."""
    saw = {True: "yes", False: "no", None: "not known"}[facts["saw_labels"]]
    return f"labels seen in it: {saw}"


def spanned(values: Iterable[float], shown: Callable[[float], str]) -> str:
    """The smallest to the largest of some numbers, or the one that they all are."""
    found = list(values)
    return " to ".join(dict.fromkeys(map(shown, (min(found), max(found)))))


def duration(seconds: float) -> str:
    """Seconds, or from two minutes on minutes: "18.0 min"."""
    return f"{seconds:.1f} s" if seconds < 120 else f"{seconds / 60:.1f} min"


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return " to ".join(f"{end:g}" for end in sorted({value[0], value[-1]}))
    if value is None:
        return "the default"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else _NAMES.get(value, str(value))
