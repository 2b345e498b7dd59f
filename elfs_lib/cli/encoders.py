"""Commands that train encoders and compare them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from elfs_lib.cli.shared import Overrides, ParamsFile, app, parse_overrides
from elfs_lib.errors import ElfsError


@app.command("train-encoder")
def train_encoder(
    params_file: ParamsFile,
    out: Annotated[Path, typer.Option(help="The file to write, .safetensors")],
    p: Overrides = None,
    repair: Annotated[bool, typer.Option("--repair", help="Recompute damaged artifacts")] = False,
) -> None:
    """Train a run's encoder on its images, without labels, and keep it as a file.

    An encoder that the run has trained already is only copied. Given as `encoder_checkpoint`, the
    file embeds other images, or those of another run, and nothing is trained again.

    Examples:

        elfs train-encoder params/cifar10_encoder.yaml --out cifar10_resnet18_empssl.safetensors

        elfs train-encoder params/digits.yaml -p encoder=self_supervised --out own.safetensors

        elfs run params/digits.yaml -p encoder=self_supervised -p encoder_checkpoint=own.safetensors
    """
    from elfs_lib.artifacts import copy_atomic
    from elfs_lib.embedding.encoders import checkpoint_fingerprint
    from elfs_lib.params import Params
    from elfs_lib.project import default_store
    from elfs_lib.stages.run import Run

    if out.suffix != ".safetensors" or not out.absolute().parent.is_dir():
        raise ElfsError(f"--out is {out}: name a .safetensors file in a folder that exists.")
    current = Run(Params.load(params_file, parse_overrides(p)), default_store(repair=repair))
    current.check(labels=False)
    trained = current.encoder_trained.encoder
    copy_atomic(trained.folder / "encoder.safetensors", out)
    about, losses = trained.manifest["encoder"], trained.array("losses")
    print(
        f"{about['method']} on {about['images']}: loss {losses[0]:.4g} in the first epoch, "
        f"{losses[-1]:.4g} in the last."
    )
    print(f"Written: {out} (SHA-256 {checkpoint_fingerprint(out)})")


@app.command("compare-encoders")
def compare_encoders(
    params_file: ParamsFile,
    names: Annotated[
        list[str], typer.Argument(metavar="ENCODERS...", help="Encoders, e.g. pixels dino_vits16")
    ],
    p: Overrides = None,
    repair: Annotated[bool, typer.Option("--repair", help="Recompute damaged artifacts")] = False,
) -> None:
    """Compare encoders on a labelled dataset: neighbours, clusters, the coreset's accuracy, cost.

    Writes a row for each into `book/runs/<dataset>/encoders.csv` as it is done, beside those of
    other encoders, input sizes, seeds and settings (what else `-p` changes); `elfs book` shows
    them. An interrupted comparison resumes.

    Examples:

        elfs compare-encoders params/digits.yaml pixels self_supervised

        elfs compare-encoders params/cifar10.yaml dino_vitb16 dino_vitb16+swav_resnet50

        elfs compare-encoders params/cifar10.yaml efficientnet_lite0 -p encoder_size=192
    """
    from elfs_lib.project import default_store
    from elfs_lib.results import encoder_comparison
    from elfs_lib.results import tables as results

    table = results.runs_folder(params_file) / encoder_comparison.TABLE
    found = encoder_comparison.compare_encoders(
        params_file,
        names,
        table,
        default_store(repair=repair),
        overrides=parse_overrides(p),
        say=lambda text: print(text, flush=True),
    )
    print(encoder_comparison.as_shown(found).to_string(index=False))
    print(f"Written: {table}")
