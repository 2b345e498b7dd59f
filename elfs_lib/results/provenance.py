"""The line under a page of results: which command, seed, device and versions made it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path

import yaml

from elfs_lib.artifacts import Artifact, package_versions, versions_in_words
from elfs_lib.embedding.encoders import trains_here
from elfs_lib.params import Params, parse_yaml, values_of_dataset
from elfs_lib.project import project_root
from elfs_lib.results.words import seen_in_words
from elfs_lib.stages.run import Run

# What a grid varies: it makes other rows of one table, not another table.
_VARIED_BY_GRIDS = ("methods", "budget", "budgets", "eval_seeds", "hindsight_seeds", "device")

#: Start of the setting of results in which every seed is a whole pipeline.
WHOLE_PIPELINES = "whole pipelines"


def command(params: Params) -> str:
    """The command that repeats a run: its dataset's params file, and what differs from it. Where
    the dataset has none, as people's own, the command writes one first."""
    if not _file(params).exists():
        values = json.dumps({"dataset": params.dataset, **changes_of(params)})  # which is YAML
        return f"echo {shlex.quote(values)} > own.yaml && elfs run own.yaml"
    return " ".join([f"elfs run params/{params.dataset}.yaml", *as_options(changes_of(params))])


def setting(params: Params, *, whole_pipelines: bool = False) -> str:
    """How a run differs from its params file in more than its grid; empty if it does not.

    Args:
        whole_pipelines: Whether the run is one of several that differ in their seed.
    """
    grid = (*_VARIED_BY_GRIDS, "seed") if whole_pipelines else _VARIED_BY_GRIDS
    changes = changes_of(params).items()
    parts = as_setting({name: value for name, value in changes if name not in grid})
    return ", ".join(filter(None, [WHOLE_PIPELINES * whole_pipelines, parts]))


def as_setting(values: Mapping[str, object]) -> str:
    """Parameters as they stand in a table: ``name=value, name=value``."""
    return ", ".join(f"{name}={as_yaml(value)}" for name, value in values.items())


def as_options(values: Mapping[str, object]) -> list[str]:
    """Parameters as ``-p name=value`` of a command line, quoted for a shell."""
    return [f"-p {shlex.quote(f'{name}={as_yaml(value)}')}" for name, value in values.items()]


def changes_of(params: Params) -> dict[str, object]:
    """What differs from the dataset's params file, by name."""
    return differences(params, Params.make(values_of_dataset(params.dataset)))


def _file(params: Params) -> Path:
    """The params file of a dataset, which may not be there."""
    return project_root() / "params" / f"{params.dataset}.yaml"


def differences(params: Params, base: Params) -> dict[str, object]:
    """The values of ``params`` that are not those of ``base``, by name."""
    return {
        name: value for name, value in params.model_dump().items() if value != getattr(base, name)
    }


def as_yaml(value: object) -> str:
    """A value as it is written on one line of YAML; every JSON value is YAML."""
    try:
        plain = isinstance(value, str) and parse_yaml(value) == value
    except yaml.YAMLError:
        plain = False
    return value if plain else json.dumps(value)


def _embedded_by(run: Run) -> str:
    """The encoder, where its weights come from, and whether it saw labels."""
    facts, checkpoint = run.encoder_facts, run.params.encoder_checkpoint
    name, weights = str(facts["encoder"]), ""
    if checkpoint and trains_here(name):
        file = Path(checkpoint).name  # where it lies matters to one machine
        weights = f" with the weights of `{file}`, such as `elfs train-encoder` makes"
    return f"`{name}`{weights}: {facts['pretraining']}; {seen_in_words(facts)}"


def provenance(run: Run, artifacts: Iterable[Artifact]) -> str:
    """Markdown: the command, seed and versions, what embedded the images, and a row for each
    artifact that a page shows."""
    versions = versions_in_words(package_versions())
    brought = "".join(
        f", with user-supplied {what}, {name!r}, not reproducible by a command"
        for stage, what in (("embeddings", "embeddings"), ("pseudo", "pseudo-labels"))
        if (name := run.given_name(stage))
    )
    lines = [
        (
            f"**Reproduce this page:** `{command(run.params)}`{brought}, with seed "
            f"{run.params.seed}, on {run.n:,} training images; {versions}."
        ),
        "",
        f"**Embeddings:** {_embedded_by(run)}.",
        "",
        "| stage | key | device | seconds | labels opened |",
        "| --- | --- | --- | ---: | --- |",
    ]
    for artifact in artifacts:
        facts = artifact.manifest
        policy, opened = facts["labels"]["policy"], ", ".join(facts["labels"]["opened"])
        # A stage that opens none may still read what was made with labels: its policy says so.
        opened = opened or ("none" if policy == "never" else f"none here ({policy})")
        opened = opened.replace("ceiling", "supervised")  # as older manifests call it
        named = (facts["params"][key] for key in ("encoder", "method") if key in facts["params"])
        lines.append(
            f"| {', '.join([artifact.stage, *named])} | `{artifact.key}` "
            f"| {facts.get('device', 'cpu')} | {facts['wall_s']:.1f} | {opened} |"
        )
    return "\n".join(lines)
