"""What one GPU does: the table of the page on performance, in one command and under 100 seconds.

    python -m benchmarks.gpu                           what fits in 100 s, into book/data/gpu.json
    python -m benchmarks.gpu --only temi neighbours    some rows
    python -m benchmarks.gpu --limit-s 240             everything
    python -m benchmarks.gpu --tiny --device cpu --out tiny.json      that it works, in seconds

It runs from a source tree: nothing is installed and nothing is downloaded. At its start it says
what is missing. Each figure is written as it comes, in place of an older one of the same device and
torch, so that a run that is cut short loses nothing; rows that no time was left for stay as they
are. "graphs" is ``compile: auto`` on trainings too short for torch.compile, "compiled" is
``compile: on``.

One file: it is copied to a machine and run there as a whole.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from benchmarks.book_data import DATA, Tables, write_tables
from elfs_lib.compute import configure_runtime, matmul_peak, resolve_device, resolve_precision
from elfs_lib.errors import ElfsError

FACTS = DATA / "gpu.json"
NEEDED = "timm pandas scipy sklearn pyarrow pydantic yaml filelock tqdm safetensors typer papermill"
WAYS = {"plain": "off", "graphs": "auto", "compiled": "on"}
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Setting:
    """Where, and how much of everything."""

    device: torch.device
    tiny: bool

    def of(self, full: int, tiny: int) -> int:
        return tiny if self.tiny else full

    @property
    def dtype(self) -> torch.dtype:
        return resolve_precision("auto", self.device)

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def share(self, flops_per_second: float) -> float:
        """Of what a square product reaches, in [0, 1]."""
        return flops_per_second / matmul_peak(self.dtype, self.device)


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


class Stopwatch:
    """Stands in for a recorder of dynamics: notes when each step of a training ends."""

    def __init__(self, setting: Setting):
        self.setting, self.marks = setting, []

    def update(self, positions: torch.Tensor, logits: torch.Tensor) -> None:
        if self.setting.device.type == "cuda":
            mark = torch.cuda.Event(enable_timing=True)
            mark.record()
        else:
            mark = time.perf_counter()
        self.marks.append(mark)

    def end_epoch(self) -> None:
        pass

    def seconds_a_step(self, after: int) -> float:
        """Mean over all steps but the first ones."""
        self.setting.wait()
        first, last = self.marks[after], self.marks[-1]
        spent = first.elapsed_time(last) / 1000 if hasattr(first, "record") else last - first
        return spent / (len(self.marks) - 1 - after)


def noise(count: int, side: int = 32) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 3, side, side), dtype=np.uint8)


def timed(setting: Setting, work: Callable[[], object], repeats: int = 5) -> float:
    """Median seconds of a call, after two that do not count."""

    def once() -> float:
        setting.wait()
        start = time.perf_counter()
        work()
        setting.wait()
        return time.perf_counter() - start

    once(), once()
    return statistics.median(once() for _ in range(repeats))


def peak(setting: Setting, dtype: torch.dtype) -> tuple:
    return matmul_peak(dtype, setting.device) / 1e12, None, {}


def agreement(setting: Setting, way: str) -> tuple:
    """How far the losses of a training are from those of the plain one, in float32."""
    from elfs_lib.training.loop import Length, Seeds, train
    from elfs_lib.training.recipes import find_recipe

    count = setting.of(4000, 200)
    images, labels = noise(count), np.arange(count) % 10
    losses = {
        choice: train(
            images, labels, 10, find_recipe("speedrun"), Length(epochs=setting.of(4, 2)),
            seeds=Seeds.all(0), device=str(setting.device), precision="float32", compile=choice,
        ).losses
        for choice in ("off", WAYS[way])
    }  # fmt: skip
    apart = np.abs(losses[WAYS[way]] / losses["off"] - 1).max()
    return float(apart), None, {"losses": {k: v.tolist() for k, v in losses.items()}}


def speedrun(setting: Setting, way: str) -> tuple:
    """Mean seconds of 8 epochs on the 50,000 true labels of CIFAR-10 (this is analysis)."""
    from benchmarks.cifar10 import labelled
    from elfs_lib.training.loop import Length, Seeds, train
    from elfs_lib.training.recipes import find_recipe

    if setting.tiny:
        images, labels = noise(64), np.arange(64) % 10
        test, true = images, labels
    else:
        data = _once(labelled)
        images, labels, test, true = (
            data.train, data.train_labels, data.test, data.test_labels,
        )  # fmt: skip
    recipe = find_recipe("speedrun")

    def fit(seed: int, rows: slice, epochs: int):
        return train(
            images[rows], labels[rows], 10, recipe, Length(epochs=epochs), seeds=Seeds.all(seed),
            crop_pad=2, device=str(setting.device), compile=WAYS[way],
        )  # fmt: skip

    fit(0, slice(0, 5000), 1)  # a GPU's libraries load on first use
    spent, accuracies = [], []
    for seed in SEEDS[: setting.of(3, 1)]:
        setting.wait()
        start = time.perf_counter()
        trained = fit(seed, slice(None), setting.of(8, 1))
        spent.append(time.perf_counter() - start)
        accuracies.append(100 * trained.accuracy(test, true))
    seconds = statistics.mean(spent)
    more = {
        "seconds": spent, "accuracy": accuracies, "pflop": trained.flops / 1e15,
        "revision": recipe.revision,
    }  # fmt: skip
    return seconds, setting.share(trained.flops / seconds), more


def training(setting: Setting, way: str, batch: int) -> tuple:
    """Images a second of ResNet-18 at 32 px, from the mean time of a step."""
    from elfs_lib.training.loop import Length, Seeds, train
    from elfs_lib.training.recipes import find_recipe

    batch, warm = setting.of(batch, 8), setting.of(10, 1)
    steps = warm + setting.of(20_000 // batch + 10, 2)
    images = noise(batch * setting.of(10, 2))
    recipe = dataclasses.replace(find_recipe("resnet18"), batch=batch)
    watch = Stopwatch(setting)
    trained = train(
        images, np.arange(len(images)) % 10, 10, recipe, Length(steps=steps), seeds=Seeds.all(0),
        device=str(setting.device), compile=WAYS[way], recorder=watch,
    )  # fmt: skip
    a_step = watch.seconds_a_step(warm)
    more = {"seconds_in_all": trained.seconds, "batch": batch}
    return batch / a_step, setting.share(trained.flops / steps / a_step), more


def temi_step(setting: Setting, way: str, heads: int) -> tuple:
    """Milliseconds of one step on 512 features, batch 1,024, 10 clusters."""
    from benchmarks.bench_temi import PlainTemi, step_flops
    from elfs_lib.clustering.temi import TemiConfig, Trainer

    batch = setting.of(1024, 32)
    config = TemiConfig(classes=10, heads=setting.of(heads, 2), batch=batch)
    pairs = torch.randn(2 * batch, 512, device=setting.device)
    if way == "a loop over heads":
        plain = PlainTemi(512, config, setting.device)
        spent = timed(setting, lambda: plain.step(*pairs.chunk(2)))
        return 1000 * spent, None, {}
    generator = torch.Generator().manual_seed(0)
    graphs = way == "graphs" and setting.device.type == "cuda"
    trainer = Trainer(512, config, generator, setting.device, setting.dtype, graphs=graphs)
    pairs = pairs.to(setting.dtype)
    steps = setting.of(20, 2)

    def some() -> None:
        for _ in range(steps):
            trainer.step(pairs, 1.0)

    from elfs_lib.compute import own_stream

    with own_stream(setting.device, wanted=graphs):
        spent = timed(setting, some) / steps
    return 1000 * spent, setting.share(step_flops(512, config) / spent), {}


def neighbours(setting: Setting, way: str) -> tuple:
    """Seconds of the 50 nearest of 50,000 rows of 512 numbers."""
    from elfs_lib.embedding.neighbors import nearest_neighbors

    count, width = setting.of(50_000, 300), setting.of(512, 16)
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((1000, width), dtype=np.float32)[rng.integers(0, 1000, count)]
    rows += 0.7 * rng.standard_normal(rows.shape, dtype=np.float32)
    if way == "plain":

        def search() -> None:
            unit = torch.nn.functional.normalize(torch.from_numpy(rows).to(setting.device))
            for part in unit.split(4096):
                scores, found = (part @ unit.T).topk(51)
                scores.cpu(), found.cpu()

    else:

        def search() -> None:
            nearest_neighbors(rows, 50, device=str(setting.device))

    spent = timed(setting, search, repeats=1 if setting.tiny else 3)
    return spent, None, {}


def embedding(setting: Setting, way: str, batch: int) -> tuple:
    """Images a second of a ResNet-18 at 32 px, from uint8 in memory to float32 in memory."""
    from elfs_lib.embedding.embed import Embedder
    from elfs_lib.embedding.self_supervised import PreparedNetwork
    from elfs_lib.training.models import build_network

    batch = setting.of(batch, 16)
    images = noise(setting.of(50_000 // batch, 2) * batch)
    network = build_network("resnet18", torch.zeros(2, 3, 32, 32), 10, seed=0)
    network.head = torch.nn.Identity()
    prepared = PreparedNetwork(network.eval(), lambda x: x * 2 - 1)
    embed = Embedder(
        "bench", prepared, setting.device, setting.dtype, batch, compile=WAYS.get(way, "off")
    )
    if way == "the bare forward":
        ready = torch.randn(batch, 3, 32, 32, device=setting.device)
        ready = ready.contiguous(memory_format=torch.channels_last)

        @torch.inference_mode()
        def work() -> None:
            for _ in range(len(images) // batch):
                with torch.autocast(setting.device.type, setting.dtype):
                    embed.network(ready)

    else:

        def work() -> None:
            embed(images)

    spent = timed(setting, work, repeats=setting.of(3, 1))
    return len(images) / spent, None, {"batch": batch}


def workers(setting: Setting, way: str, count: int) -> tuple:
    """Trainings a minute of as many processes on one card, each with ``speedrun`` on 5,000 images.

    They begin together, once each has trained before.
    """
    command = [sys.executable, "-m", "benchmarks.gpu", "--worker", str(setting.device), WAYS[way]]
    command += [str(setting.of(500, 2)), str(setting.of(5000, 64))]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, **pipes) for _ in range(count)]
    try:
        for process in processes:
            if process.stdout.readline() != "ready\n":
                raise RuntimeError("A worker did not start.")
        start = time.perf_counter()
        for process in processes:
            process.stdin.write("go\n")
            process.stdin.flush()
        if any(process.stdout.readline() != "done\n" for process in processes):
            raise RuntimeError("A worker stopped half way.")
        spent = time.perf_counter() - start
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    return 60 * count / spent, None, {}


def work(device: str, choice: str, steps: str, count: str) -> None:
    """What a process of :func:`workers` does."""
    from elfs_lib.training.loop import Length, Seeds, train
    from elfs_lib.training.recipes import find_recipe

    images = noise(int(count))

    def fit(steps: int) -> None:
        train(
            images, np.arange(len(images)) % 10, 10, find_recipe("speedrun"), Length(steps=steps),
            seeds=Seeds.all(0), device=device, compile=choice,
        )  # fmt: skip

    fit(min(20, int(steps)))
    print("ready", flush=True)
    sys.stdin.readline()
    fit(int(steps))
    print("done", flush=True)


def notebooks(setting: Setting, way: str) -> tuple:
    """Seconds of ``elfs run`` on the digits, its seven notebooks by papermill included."""
    root = Path(__file__).resolve().parent.parent
    command = [sys.executable, "-m", "elfs_lib", "run", "params/digits.yaml"]
    command += ["-p", f"device={setting.device}", "-p", f"compile={WAYS[way]}"]
    if setting.tiny:
        command += ["--help"]
    with tempfile.TemporaryDirectory() as store:
        path = os.pathsep.join(filter(None, (str(root), os.environ.get("PYTHONPATH"))))
        variables = {**os.environ, "ELFS_ARTIFACTS_DIR": store, "PYTHONPATH": path}
        start = time.perf_counter()
        told = {"capture_output": True, "text": True}
        done = subprocess.run(command, check=False, cwd=root, env=variables, **told)
        spent = time.perf_counter() - start
    if done.returncode:
        raise RuntimeError(done.stderr.strip()[-500:])
    return spent, None, {}


_held: dict[Callable, object] = {}


def _once(make: Callable[[], object]) -> object:
    if make not in _held:
        _held[make] = make()
    return _held[make]


def entries() -> Iterator[Entry]:
    """Every figure, in the order in which they are measured: compilers are slow, and come last."""

    def entry(row, what, way, unit, seconds, work, *arguments) -> Entry:
        return Entry(row, what, way, unit, seconds, lambda setting: work(setting, *arguments))

    for name in ("bfloat16", "float32"):
        dtype = getattr(torch, name)
        what = f"square product of 8,192, {name}"
        yield entry("peak", what, "plain", "TFLOP/s", 2, peak, dtype)
    same = "speedrun: largest relative difference of a loss, float32"
    yield entry("agreement", same, "graphs", "", 4, agreement, "graphs")
    fast = "speedrun, 8 epochs of CIFAR-10"
    train_18 = "training ResNet-18 at 32 px, batch {:,}".format
    embed_18 = "embedding by ResNet-18 at 32 px, batch {:,}".format
    for way in ("plain", "graphs"):
        yield entry("speedrun", fast, way, "s", 25, speedrun, way)
    for batch in (2000, 512):
        for way in ("plain", "graphs"):
            yield entry("resnet18", train_18(batch), way, "images/s", 4, training, way, batch)
    for heads in (16, 50):
        what = f"TEMI step, {heads} heads, 512 features"
        for way in ("a loop over heads", "plain", "graphs"):
            yield entry("temi", what, way, "ms", 2, temi_step, way, heads)
    for way in ("plain", "ours"):
        what = "50 neighbours of 50,000 x 512, exact"
        yield entry("neighbours", what, way, "s", 10, neighbours, way)
    for batch in (256, 2000):
        for way in ("the bare forward", "plain"):
            what = embed_18(batch)
            yield entry("embedding", what, way, "images/s", 4, embedding, way, batch)
    what = train_18(2000)
    yield entry("resnet18", what, "compiled", "images/s", 30, training, "compiled", 2000)
    what = embed_18(2000)
    yield entry("embedding", what, "compiled", "images/s", 20, embedding, "compiled", 2000)
    yield entry("agreement", same, "compiled", "", 30, agreement, "compiled")
    yield entry("speedrun", fast, "compiled", "s", 40, speedrun, "compiled")
    what = train_18(512)
    yield entry("resnet18", what, "compiled", "images/s", 30, training, "compiled", 512)
    for count in (1, 2, 4, 6):
        what = f"speedrun on 5,000 images, 500 steps: {count} processes on one card"
        for way in ("plain", "graphs"):
            yield entry("workers", what, way, "a minute", 25, workers, way, count)
    what = "the digits, from images to notebooks"
    for way in ("plain", "graphs"):
        yield entry("digits", what, way, "s", 60, notebooks, way)


KEY = ("device", "torch", "tiny", "row", "what", "way")


def put(file: Path, fact: dict) -> list[dict]:
    """Write a figure in place of an older one of its kind, device and torch. Returns all."""
    old = json.loads(file.read_text()) if file.exists() else []
    rows = [r for r in old if any(r[name] != fact[name] for name in KEY)] + [fact]
    beside = file.with_suffix(".tmp")  # this file needs no package but numpy, pandas and torch
    beside.write_text(json.dumps(rows, indent=1) + "\n")
    beside.replace(file)
    return rows


def gpu_table(facts: list[dict]) -> pd.DataFrame:
    """A line for each figure and device; what no GPU was asked for yet says so."""
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
                    "Besides": _besides(fact["more"]),
                    "On": f"{fact['device']}, torch {fact['torch']}",
                }
            )
        if all(fact["device"].startswith("cpu") for fact in found):
            nothing = dict.fromkeys(("Share of peak", "Besides", "On"), "")
            row = {"What": entry.what, "Way": entry.way, "Figure": "not measured"}
            lines.append(row | nothing)
    return pd.DataFrame(lines)


def _besides(more: dict) -> str:
    if "accuracy" not in more:
        return ""
    accuracy = np.array(more["accuracy"])
    spread = f" ± {accuracy.std(ddof=1):.2f}" if len(accuracy) > 1 else ""
    return f"{accuracy.mean():.2f}{spread}% right, {len(accuracy)} seeds, {more['pflop']:.3f} PFLOP"


TABLES: Tables = {"performance_gpu.csv": gpu_table}


def missing(setting: Setting) -> list[str]:
    """What stands between this machine and the whole table, a sentence each."""
    found = [
        f"The Python package {name} is missing."
        for name in NEEDED.split()
        if importlib.util.find_spec(name) is None
    ]
    if setting.device.type != "cuda":
        found.append("There is no CUDA: figures are those of the CPU, and none of graphs.")
    if not setting.tiny:
        try:
            from elfs_lib.data.datasets import check_dataset

            check_dataset("cifar10")
        except (ElfsError, ImportError) as error:
            found.append(f"What speedrun trains on: {error}")
    return found


def main() -> None:
    if sys.argv[1:2] == ["--worker"]:
        return work(*sys.argv[2:])
    started = time.perf_counter()
    plan = list(entries())
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    rows = list(dict.fromkeys(entry.row for entry in plan))
    parser.add_argument("--only", nargs="+", choices=rows, default=rows, metavar="ROW")
    parser.add_argument("--ways", nargs="+", metavar="WAY", help="plain, graphs, compiled, ...")
    parser.add_argument(
        "--limit-s", type=float, default=100, help="begin nothing that would not fit"
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument("--tiny", action="store_true", help="small sizes, no compiler")
    parser.add_argument("--out", type=Path, default=FACTS)
    arguments = parser.parse_args()
    configure_runtime()
    setting = Setting(resolve_device(arguments.device), arguments.tiny)
    name = (
        torch.cuda.get_device_name(setting.device)
        if setting.device.type == "cuda"
        else f"{setting.device.type}, {torch.get_num_threads()} threads"
    )
    print(f"{name}, torch {torch.__version__}, {setting.dtype}; {arguments.limit_s:g} s")
    for sentence in missing(setting):
        print(f"Missing: {sentence}", flush=True)
    failed = False
    for entry in plan:
        if entry.row not in arguments.only or (arguments.ways and entry.way not in arguments.ways):
            continue
        if entry.way in ("graphs", "compiled") and setting.device.type != "cuda":
            continue
        left = arguments.limit_s - (time.perf_counter() - started)
        label = f"{entry.row:11} {entry.what:58} {entry.way:18}"
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
            "command": " ".join(["python -m benchmarks.gpu", *sys.argv[1:]]),
        }
        facts = put(arguments.out, fact)
        if arguments.out == FACTS:
            write_tables(TABLES, facts)
        of_peak = "" if share is None else f"{share:7.1%}"
        print(f"{label} {figure:12,.4g} {entry.unit:9}{of_peak:8} {spent:6.1f} s", flush=True)
        if more.get("accuracy"):
            print(f"{'':12}{more}", flush=True)
    raise SystemExit(failed)


if __name__ == "__main__":
    main()
