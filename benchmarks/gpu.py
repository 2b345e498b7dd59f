"""What one GPU does: the table of the page on performance, in one command and under 4 minutes.

    python -m benchmarks.gpu                           what fits in 240 s, into book/data/gpu.json
    python -m benchmarks.gpu --only temi neighbours    some rows
    python -m benchmarks.gpu --only compiled           what has no room in 240 s
    python -m benchmarks.gpu --render                  only the table of the book
    python -m benchmarks.gpu --tiny --device cpu --out tiny.json      that it works, in minutes

It runs from a source tree: nothing is installed and nothing is downloaded. At its start it says
what is missing; numpy and torch it cannot do without, and a row that needs more fails alone. What
matters most comes first, and each figure is written as it comes, in place of an older one of the
same device and torch, so that a run that is cut short loses nothing; rows that no time was left for
stay as they are. "graphs" is ``compile: auto`` on trainings too short for torch.compile,
"compiled" is ``compile: on``.
"""

from __future__ import annotations

import time

STARTED = time.perf_counter()  # imports are part of the time for which a machine is there

import argparse
import importlib.util
import json
import shutil
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the table alone needs it
    import pandas as pd

# all that some row imports: those of ``elfs doctor`` but for the book, sweeps and JupyterLab
NEEDED = """
numpy torch torchvision timm pandas scipy sklearn pyarrow pydantic yaml filelock tqdm safetensors
typer papermill ipykernel ipywidgets matplotlib seaborn PIL faiss psutil threadpoolctl
huggingface_hub pytest
""".split()


def absent() -> list[str]:
    """Needed packages that are not there."""
    return [name for name in NEEDED if importlib.util.find_spec(name) is None]


if __name__ == "__main__" and {"numpy", "torch"} & {*absent()}:
    sys.exit(f"Missing: the Python packages {', '.join(absent())}. Nothing can be measured.")

import numpy as np
import torch

from benchmarks.gpu_rows import (
    MOST_WORKERS,
    MPS_CONTROL,
    ROOT,
    STEPS,
    Setting,
    agreement,
    convolutions,
    cuda_tests,
    digits,
    embedding,
    neighbours,
    peak,
    speedrun,
    temi_step,
    training,
    work,
    workers,
    workers_under_mps,
)
from benchmarks.machine import command
from elfs_lib.compute import configure_runtime, resolve_device

FACTS = ROOT / "book" / "data" / "gpu.json"
LIMIT_S = 240
START_S = 10  # of them go into imports
CUDA_ONLY = ("graphs", "compiled", "graphs, MPS")


@dataclass(frozen=True)
class Entry:
    """A figure of the table.

    Attributes:
        row: What ``--only`` names.
        what: What is measured.
        way: How it is done: "plain" or what it is compared with.
        unit: Of the figure.
        seconds: About how long it takes on one H100: it is not begun with less time left.
        measure: Gives the figure, the share of the peak or None, and what else there is to know.
    """

    row: str
    what: str
    way: str
    unit: str
    seconds: float
    measure: Callable[[Setting], tuple[float, float | None, dict]]


def entries() -> Iterator[Entry]:
    """Every figure, in the order in which they are measured: what the others rest on, what is
    quick, what starts processes, and compilers, which are slow. Rows named "compiled" are beyond
    ``LIMIT_S``."""

    def entry(row, what, way, unit, seconds, work, *arguments) -> Entry:
        return Entry(row, what, way, unit, seconds, lambda setting: work(setting, way, *arguments))

    for name, seconds in {"bfloat16": 3, "float32": 1}.items():
        what = f"square product of 8,192, {name}"
        yield entry("peak", what, "plain", "TFLOP/s", seconds, peak, getattr(torch, name))
    yield entry("tests", "tests/test_cuda.py", "plain", "passed", 25, cuda_tests)
    same = "speedrun: largest relative difference of a loss, float32"
    yield entry("agreement", same, "graphs", "", 3, agreement)
    for way, seconds in {"graphs": 16, "plain": 8}.items():
        yield entry("speedrun", "speedrun, 8 epochs of CIFAR-10", way, "s", seconds, speedrun)
    train_18 = "training ResNet-18 at 32 px, batch {:,}".format
    for way in ("plain", "graphs"):
        yield entry("resnet18", train_18(2000), way, "images/s", 2, training, "resnet18", 2000)
    for heads in (16, 50):
        what = f"TEMI step, {heads} heads, 512 features"
        for way in ("a loop over heads", "plain", "graphs"):
            yield entry("temi", what, way, "ms", 1, temi_step, heads)
    for way, seconds in {"plain": 2, "ours": 6}.items():
        yield entry(
            "neighbours", "50 neighbours of 50,000 x 512, exact", way, "s", seconds, neighbours
        )
    embed_18 = "embedding by ResNet-18 at 32 px, batch {:,}".format
    for batch in (256, 2000):
        for way in ("the bare forward", "plain"):
            yield entry("embedding", embed_18(batch), way, "images/s", 2, embedding, batch)
    for way in ("resident", "streamed"):
        yield entry(
            "streaming", train_18(512), way, "images/s", 2, training, "resnet18", 512, 32, 20
        )
    what = "training ResNet-34 at 224 px, batch 256, crops of 256 px"
    for way, seconds in {"streamed": 8, "resident": 5}.items():
        yield entry(
            "imagenet", what, way, "images/s", seconds, training, "resnet34_imagenet", 256, 256, 16
        )
    count = f"speedrun on 5,000 images, {STEPS} steps: {{0}} at once, as elfs sweep --workers {{0}}"
    count = count.format
    for number, way, seconds in (
        (1, "graphs", 17), (1, "plain", 2), (2, "graphs", 1), (4, "graphs", 2),
        (MOST_WORKERS, "graphs", 2), (MOST_WORKERS, "plain", 5),
    ):  # fmt: skip
        yield entry("workers", count(number), way, "a minute", seconds, workers, number)
    what = f"a convolution of 256 channels at 8 px, {MOST_WORKERS} networks, batch 512 each"
    for way in ("one after another", "grouped"):
        yield entry("convolutions", what, way, "ms", 1, convolutions, MOST_WORKERS)
    yield entry("digits", "the digits, from images to notebooks", "plain", "s", 50, digits)
    what = count(MOST_WORKERS)
    yield entry("workers", what, "graphs, MPS", "a minute", 18, workers_under_mps, MOST_WORKERS)
    yield entry("resnet18", train_18(2000), "compiled", "images/s", 30, training, "resnet18", 2000)
    yield entry("compiled", embed_18(2000), "compiled", "images/s", 20, embedding, 2000)
    yield entry("compiled", same, "compiled", "", 30, agreement)


KEY = ("device", "torch", "tiny", "row", "what", "way")


def put(file: Path, fact: dict) -> list[dict]:
    """Write a figure in place of an older one of its kind, device and torch. Returns all."""
    old = json.loads(file.read_text()) if file.exists() else []
    rows = [r for r in old if any(r[name] != fact[name] for name in KEY)] + [fact]
    beside = file.with_suffix(".tmp")
    beside.write_text(json.dumps(rows, indent=1) + "\n")
    beside.replace(file)
    return rows


def gpu_table(facts: list[dict]) -> pd.DataFrame:
    """A line for each figure and device; what no GPU was asked for yet says so."""
    import pandas as pd

    lines = []
    for entry in entries():
        found = [
            fact
            for fact in facts
            if not fact["tiny"] and (fact["what"], fact["way"]) == (entry.what, entry.way)
        ]
        for fact in found:
            share = fact["share_of_peak"]
            lines.append(
                {
                    "What": entry.what,
                    "Way": entry.way,
                    "Figure": f"{fact['figure']:,.4g} {entry.unit}".strip(),
                    "Share of peak": "" if share is None else f"{share:.0%}",
                    "Besides": besides(fact["more"]),
                    "On": f"{fact['device']}, torch {fact['torch']}",
                }
            )
        if all(fact["device"].startswith("cpu") for fact in found):
            nothing = dict.fromkeys(("Share of peak", "Besides", "On"), "")
            row = {"What": entry.what, "Way": entry.way, "Figure": "not measured"}
            lines.append(row | nothing)
    return pd.DataFrame(lines)


def besides(more: dict) -> str:
    if failed := more.get("failed"):
        return f"failed: {', '.join(failed)}"
    if "accuracy" not in more:
        return ""
    if not more["accuracy"]:
        return f"random images, {more['pflop']:.3f} PFLOP"
    accuracy = np.array(more["accuracy"])
    spread = f" ± {accuracy.std(ddof=1):.2f}" if len(accuracy) > 1 else ""
    seeds = f"{len(accuracy)} seed" + "s" * (len(accuracy) > 1)
    return f"{accuracy.mean():.2f}{spread}% right, {seeds}, {more['pflop']:.3f} PFLOP"


#: Units of which more, and of which less, is faster.
FASTER = {"images/s": True, "a minute": True, "s": False, "ms": False}


def ratio_table(facts: list[dict]) -> pd.DataFrame:
    """How many times as fast each way was as the first of its row: the plain or slow one."""
    import pandas as pd

    plan = [(entry.what, entry.way) for entry in entries()]
    known = [f for f in facts if not f["tiny"] and not f["device"].startswith("cpu")]
    known = [f for f in known if (f["what"], f["way"]) in plan and f["unit"] in FASTER]
    known.sort(key=lambda fact: plan.index((fact["what"], fact["way"])))
    lines, first = [], {}
    for fact in known:
        base = first.setdefault((fact["device"], fact["torch"], fact["what"]), fact)
        if base is fact:
            continue
        times = fact["figure"] / base["figure"]
        times = times if FASTER[fact["unit"]] else 1 / times
        lines.append(
            {
                "What": fact["what"],
                "Way": fact["way"],
                "Times as fast": f"{times:.2f}" if times < 10 else f"{times:.0f}",
                "As": base["way"],
                "On": fact["device"],
            }
        )
    return pd.DataFrame(lines, columns=["What", "Way", "Times as fast", "As", "On"])


TABLES = {"performance_gpu.csv": gpu_table, "performance_gpu_ratios.csv": ratio_table}


def render(facts: list[dict]) -> None:
    """Write the table of the book, where there is what draws it."""
    try:
        from benchmarks.book_data import write_tables
    except ImportError:  # said at the start
        return
    write_tables(TABLES, facts)


def missing(setting: Setting) -> list[str]:
    """What stands between this machine and the whole table, a sentence each."""
    found = []
    if names := absent():
        found.append(f"The Python packages {', '.join(names)}: rows that need them will fail.")
    if setting.device.type != "cuda":
        found.append("There is no CUDA: figures are those of the CPU, and none of graphs.")
    elif shutil.which(MPS_CONTROL) is None:
        found.append(f"There is no {MPS_CONTROL}: the row under MPS will fail.")
    if not setting.tiny:
        try:
            from elfs_lib.data.datasets import check_dataset

            check_dataset("cifar10")
        except (ImportError, ValueError) as error:  # an ElfsError is a ValueError
            found.append(f"The images of speedrun, which takes random ones instead: {error}")
    return found


def main(started: float | None = None) -> None:
    """Measure what is asked for.

    Args:
        started: By ``time.perf_counter``: since when the limit counts; None: now.
    """
    if sys.argv[1:2] == ["--worker"]:
        return work(*sys.argv[2:])
    started = time.perf_counter() if started is None else started
    plan = list(entries())
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    rows = list(dict.fromkeys(entry.row for entry in plan))
    parser.add_argument("--only", nargs="+", choices=rows, default=rows, metavar="ROW")
    parser.add_argument("--ways", nargs="+", metavar="WAY", help="plain, graphs, compiled, ...")
    parser.add_argument(
        "--limit-s", type=float, default=LIMIT_S, help="begin nothing that would not fit"
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument("--if-cuda", action="store_true", help="do nothing where there is no GPU")
    parser.add_argument("--tiny", action="store_true", help="small sizes, no compiler")
    parser.add_argument("--render", action="store_true", help="only the table of the book")
    parser.add_argument("--out", type=Path, default=FACTS)
    arguments = parser.parse_args()
    if arguments.render:
        return render(json.loads(FACTS.read_text()))
    if arguments.if_cuda and not torch.cuda.is_available():
        return print("There is no CUDA here: the table of one GPU stays as it is.")
    configure_runtime()
    setting = Setting(resolve_device(arguments.device), arguments.tiny, started + arguments.limit_s)
    name = (
        torch.cuda.get_device_name(setting.device)
        if setting.device.type == "cuda"
        else f"{setting.device.type}, {torch.get_num_threads()} threads"
    )
    print(f"{name}, torch {torch.__version__}, {setting.dtype}; {setting.left:.0f} s left")
    for sentence in missing(setting):
        print(f"Missing: {sentence}", flush=True)
    failed = False
    for entry in plan:
        if entry.row not in arguments.only or (arguments.ways and entry.way not in arguments.ways):
            continue
        if entry.way in CUDA_ONLY and setting.device.type != "cuda":
            continue
        left = setting.left
        label = f"{entry.row:13} {entry.what:76} {entry.way:18}"
        if left < (0 if setting.tiny else entry.seconds):
            print(f"{label} left out: {left:.0f} s left, about {entry.seconds:g} s needed")
            continue
        begun = time.perf_counter()
        try:
            figure, share, more = entry.measure(setting)
        except Exception as error:  # a table with a hole is better than none
            traceback.print_exc(limit=-3)
            print(f"{label} failed: {error}", flush=True)
            failed = True
            continue
        spent = time.perf_counter() - begun
        fact = {
            "device": name,
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "tiny": setting.tiny,
            "row": entry.row,
            "what": entry.what,
            "way": entry.way,
            "figure": figure,
            "unit": entry.unit,
            "share_of_peak": share,
            "more": more,
            "seconds_to_measure": round(spent, 1),
            "date": time.strftime("%Y-%m-%d", time.gmtime()),
            "command": command("benchmarks.gpu", sys.argv[1:]),
        }
        facts = put(arguments.out, fact)
        if arguments.out == FACTS:
            render(facts)
        of_peak = "" if share is None else f"{share:7.1%}"
        print(f"{label} {figure:12,.4g} {entry.unit:9}{of_peak:8} {spent:6.1f} s", flush=True)
        if more.get("accuracy"):
            print(f"{'':14}{more}", flush=True)
        failed |= bool(more.get("failed"))
    print(f"{max(0.0, setting.left):.0f} s left")
    raise SystemExit(failed)


if __name__ == "__main__":
    main(STARTED)
