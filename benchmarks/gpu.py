"""What one GPU does: the table of the page on performance, in one command and under 4 minutes.

    python -m benchmarks.gpu                           what fits in 240 s, into book/data/gpu.json
    python -m benchmarks.gpu --only temi neighbours    some rows
    python -m benchmarks.gpu --only compiled           what has no room in 240 s
    python -m benchmarks.gpu --render                  only the table of the book
    python -m benchmarks.gpu --tiny --device cpu --out tiny.json      that it works, in a minute

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
import atexit
import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

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
from torch.utils.flop_counter import FlopCounterMode

from elfs_lib.compute import configure_runtime, matmul_peak, resolve_device, resolve_precision

ROOT = Path(__file__).resolve().parent.parent
FACTS = ROOT / "book" / "data" / "gpu.json"
LIMIT_S = 240
START_S = 10  # of them go into imports
WAYS = {"plain": "off", "graphs": "auto", "compiled": "on"}
MPS_CONTROL = "nvidia-cuda-mps-control"
CUDA_ONLY = ("graphs", "compiled", "graphs, MPS")
SEEDS = (0, 1, 2)
TINY_DIGITS = {
    "temi_heads": 2, "temi_epochs": 2, "proxy_epochs": 2, "hard_prune_ratios": [0.0, 0.4],
    "search_steps": 2, "search_seeds": 1, "eval_steps": 2, "eval_seeds": [0, 1], "budgets": [0.1],
    "methods": ["random", "elfs"], "floor_knn": 0.0, "floor_clustering": 0.0,
    "floor_over_kmeans": -1.0, "floor_spearman": -1.0, "floor_accuracy": 0.0,
}  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """Where, how much of everything, and until when by ``time.perf_counter``."""

    device: torch.device
    tiny: bool
    until: float = float("inf")

    def of(self, full: int, tiny: int) -> int:
        return tiny if self.tiny else full

    @property
    def dtype(self) -> torch.dtype:
        return resolve_precision("auto", self.device)

    @property
    def left(self) -> float:
        """Seconds."""
        return self.until - time.perf_counter()

    @property
    def patience(self) -> float | None:
        """Seconds that another process may take, None for any number."""
        return None if self.until == float("inf") else max(5.0, self.left)

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def share(self, flops_per_second: float, dtype: torch.dtype | None = None) -> float:
        """Of what a square product reaches, in [0, 1]."""
        return flops_per_second / matmul_peak(dtype or self.dtype, self.device)


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


def timed(
    setting: Setting, work: Callable[[], object], repeats: int = 5, warm_up: int = 2
) -> float:
    """Median seconds of a call, after some that do not count."""

    def once() -> float:
        setting.wait()
        start = time.perf_counter()
        work()
        setting.wait()
        return time.perf_counter() - start

    for _ in range(warm_up):
        once()
    return statistics.median(once() for _ in range(repeats))


def peak(setting: Setting, way: str, dtype: torch.dtype) -> tuple:
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
    """Mean seconds of 8 epochs on the 50,000 true labels of CIFAR-10 (this is analysis); without
    these images, on random ones, which take as long. What the plain way takes is known after one.
    """
    from elfs_lib.training.loop import Length, Seeds, train
    from elfs_lib.training.recipes import find_recipe

    data = None if setting.tiny else once(cifar10)
    if data is None:
        images = noise(setting.of(50_000, 64))
        labels = np.arange(len(images)) % 10
    else:
        images, labels = data.train, data.train_labels
    recipe = find_recipe("speedrun")

    def fit(seed: int, rows: slice, epochs: int):
        return train(
            images[rows], labels[rows], 10, recipe, Length(epochs=epochs), seeds=Seeds.all(seed),
            crop_pad=2, device=str(setting.device), compile=WAYS[way],
        )  # fmt: skip

    fit(0, slice(0, 5000), 1)  # a GPU's libraries load on first use
    spent, accuracies = [], []
    for seed in SEEDS[: setting.of(1 if way == "plain" else 3, 1)]:
        setting.wait()
        start = time.perf_counter()
        trained = fit(seed, slice(None), setting.of(8, 1))
        spent.append(time.perf_counter() - start)
        if data is not None:
            accuracies.append(100 * trained.accuracy(data.test, data.test_labels))
    seconds = statistics.mean(spent)
    more = {
        "seconds": spent, "accuracy": accuracies, "pflop": trained.flops / 1e15,
        "revision": recipe.revision,
    }  # fmt: skip
    return seconds, setting.share(trained.flops / seconds), more


def cifar10() -> Labelled | None:  # noqa: F821
    """The images and labels, None where they are not: the start says so."""
    try:
        from benchmarks.cifar10 import labelled

        return labelled()
    except (ImportError, ValueError):  # an ElfsError is a ValueError
        return None


def training(
    setting: Setting, way: str, recipe: str, batch: int, side: int = 32, epoch: int = 10
) -> tuple:
    """Images a second of a recipe, from the mean time of a step. "Resident" and "streamed" read
    from a file and replay graphs."""
    from elfs_lib.training.loop import Length, Seeds, train
    from elfs_lib.training.recipes import find_recipe

    batch, warm = setting.of(batch, 8 if side == 32 else 2), setting.of(10, 1)
    steps = warm + setting.of((20_000 if side == 32 else 5000) // batch + 10, 2)
    count, loaded = batch * setting.of(epoch, 2), way in ("resident", "streamed")
    images = once(stored, count, side) if loaded else noise(count, side)
    watch = Stopwatch(setting)
    trained = train(
        images, np.arange(count) % 10, 10, find_recipe(recipe, batch=batch), Length(steps=steps),
        seeds=Seeds.all(0), device=str(setting.device), compile=WAYS.get(way, "auto"),
        loader=way if loaded else "resident", recorder=watch,
    )  # fmt: skip
    a_step = watch.seconds_a_step(warm)
    more = {"seconds_in_all": trained.seconds, "batch": batch}
    return batch / a_step, setting.share(trained.flops / steps / a_step), more


def stored(count: int, side: int) -> np.ndarray:
    """Random images in a file that goes with the process, as a memory map."""
    from benchmarks.bench_streaming import write_images

    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    mib = count * 3 * side**2 / 2**20
    file = write_images(Path(folder.name) / "images.npy", mib, side)
    return np.load(file, mmap_mode="r", allow_pickle=False)


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

    spent = timed(setting, search, repeats=setting.of(3, 1), warm_up=1)
    # a GPU compares in float32, as the plain way does; the CPU makes its shortlist in less
    dtype = setting.dtype if (way, setting.device.type) == ("ours", "cpu") else torch.float32
    return spent, setting.share(2 * count**2 * width / spent, dtype), {}


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

    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        embed.network(torch.zeros(1, 3, 32, 32, device=setting.device))
    rate = len(images) / timed(setting, work, repeats=setting.of(3, 1))
    return rate, setting.share(rate * counter.get_total_flops()), {"batch": batch}


class Crew:
    """Processes on one card, each of which trains ``speedrun`` on images of its own when it is
    told to. They start together, and each has trained in both ways before any is timed.

    Raises:
        RuntimeError: if one of them stops, or is not ready when the time is up.
    """

    def __init__(self, setting: Setting, count: int, environment: Mapping | None = None):
        command = [sys.executable, "-m", "benchmarks.gpu", "--worker", str(setting.device)]
        command += [str(setting.of(5000, 64))]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        threads = str(max(1, (os.cpu_count() or 1) // count))  # as a sweep shares them out
        own = {**(environment or os.environ), "OMP_NUM_THREADS": threads}
        self.setting = setting
        self.processes = [
            subprocess.Popen(command, cwd=ROOT, env=own, **pipes) for _ in range(count)
        ]
        atexit.register(self.close)
        self._hear(self.processes, "ready")

    def train(self, count: int, way: str, steps: int) -> float:
        """Seconds in which ``count`` of them train so many steps each, side by side."""
        start = time.perf_counter()
        for process in self.processes[:count]:
            process.stdin.write(f"{WAYS[way]} {steps}\n")
            process.stdin.flush()
        self._hear(self.processes[:count], "done")
        return time.perf_counter() - start

    def _hear(self, processes: list[subprocess.Popen], word: str) -> None:
        alarm = threading.Timer(self.setting.patience or 600, self.close)
        alarm.start()
        try:
            if any(process.stdout.readline() != f"{word}\n" for process in processes):
                self.close()
                raise RuntimeError(f"A worker stopped before it was {word}.")
        finally:
            alarm.cancel()

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


def work(device: str, count: str) -> None:
    """What a process of :class:`Crew` does."""
    from elfs_lib.training.loop import Length, Seeds, train
    from elfs_lib.training.recipes import find_recipe

    configure_runtime()
    images = noise(int(count))

    def fit(choice: str, steps: int) -> None:
        train(
            images, np.arange(len(images)) % 10, 10, find_recipe("speedrun"), Length(steps=steps),
            seeds=Seeds.all(0), device=device, compile=choice,
        )  # fmt: skip

    fit("off", min(20, len(images)))
    fit("auto", min(20, len(images)))
    print("ready", flush=True)
    for line in sys.stdin:
        choice, steps = line.split()
        fit(choice, int(steps))
        print("done", flush=True)


def workers(setting: Setting, way: str, count: int) -> tuple:
    """Trainings a minute of as many processes on one card, as ``elfs sweep --workers`` has them."""
    count, most = (min(number, setting.of(number, 2)) for number in (count, MOST_WORKERS))
    crew = once(Crew, setting, most)
    return 60 * count / crew.train(count, way, setting.of(STEPS, 2)), None, {}


def workers_under_mps(setting: Setting, way: str, count: int) -> tuple:
    """The same with their kernels side by side instead of by turns, through a CUDA MPS daemon."""
    for crew in _held.values():
        if isinstance(crew, Crew):
            crew.close()
    with mps() as (environment, ask), closing(Crew(setting, count, environment)) as crew:
        spent = crew.train(count, way.partition(",")[0], setting.of(STEPS, 2))
        if not ask("get_server_list").strip():
            raise RuntimeError("The MPS daemon served no process.")
    return 60 * count / spent, None, {}


@contextmanager
def mps() -> Iterator[tuple[dict, Callable[[str], str]]]:
    """A CUDA MPS daemon: the environment of its clients, and what asks it something."""
    with tempfile.TemporaryDirectory() as folder:
        places = {f"CUDA_MPS_{name}_DIRECTORY": f"{folder}/{name}" for name in ("PIPE", "LOG")}
        for place in places.values():
            os.mkdir(place)
        own = {"env": os.environ | places, "timeout": 20}
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}

        def ask(text: str) -> str:
            told = {"input": f"{text}\n", "stdout": subprocess.PIPE, "text": True}
            return subprocess.run([MPS_CONTROL], check=True, **told, **own).stdout

        subprocess.run([MPS_CONTROL, "-d"], check=True, **own, **quiet)
        try:
            yield own["env"], ask
        finally:
            ask("quit")


def convolutions(setting: Setting, way: str, count: int) -> tuple:
    """Milliseconds of a convolution of several networks, each on its own images, forward and
    backward: what ``torch.func.vmap`` would make of it, and one network after the other."""
    channels, batch = setting.of(256, 4), setting.of(512, 4)
    groups = count if way == "grouped" else 1
    inputs = [
        torch.randn(batch, groups * channels, 8, 8, device=setting.device, dtype=setting.dtype)
        .contiguous(memory_format=torch.channels_last)
        .requires_grad_()
        for _ in range(count // groups)
    ]
    weights = [
        torch.randn(groups * channels, channels, 3, 3, device=setting.device, dtype=setting.dtype)
        .contiguous(memory_format=torch.channels_last)
        .requires_grad_()
        for _ in range(count // groups)
    ]

    def passes() -> None:
        for images, weight in zip(inputs, weights, strict=True):
            found = torch.nn.functional.conv2d(images, weight, padding=1, groups=groups)
            torch.autograd.grad(found, (images, weight), found)

    spent = timed(setting, passes)
    flops = 3 * 2 * count * batch * 64 * 9 * channels**2
    return 1000 * spent, setting.share(flops / spent), {}


def cuda_tests(setting: Setting, way: str) -> tuple:
    """How many of the tests that compare a GPU with the CPU pass there."""
    chosen = "not cpu" if setting.device.type == "cuda" else "cpu"
    if setting.tiny:
        chosen += " and exact_neighbours"
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "tests/test_cuda.py", "-k", chosen]
        command += ["-p", "no:cacheprovider", "--tb=short", f"--junitxml={report}"]
        done = started_here(setting, command)
        if not report.exists():
            raise RuntimeError((done.stdout + done.stderr).strip()[-500:])
        cases = list(ElementTree.parse(report).iter("testcase"))
    skipped = [case for case in cases if case.find("skipped") is not None]
    passed = [case for case in cases if not len(case.findall("*"))]
    bad = [case.get("name") for case in cases if case not in skipped + passed]
    if not passed:
        bad.append("none was run")
    if bad:
        print(done.stdout.strip()[-3000:], flush=True)
    return len(passed), None, {"failed": bad, "skipped": len(skipped)}


DIGITS = """
import json, sys
from pathlib import Path
from elfs_lib.artifacts import Store
from elfs_lib.params import Params
from elfs_lib.runs.pipeline import check_notebooks, notebooks_of, run_notebooks
from elfs_lib.stages.run import Run

store, overrides, most, workers = sys.argv[1:]
params = Params.load("params/digits.yaml", json.loads(overrides))
names = notebooks_of(Run(params, Store(store)))[-int(most):]
check_notebooks(names)
run_notebooks(names, params, Path(store) / "notebooks", workers=int(workers))
print(Run(params, Store(store, look=True)).proxies[0].manifest["device"])
"""


def digits(setting: Setting, way: str) -> tuple:
    """Seconds of the seven notebooks on the digits through papermill, which compute what they show.

    They run side by side, and none computes what another has. The smallest size is the last alone.
    """
    overrides = {"device": str(setting.device), "compile": WAYS[way]}
    overrides |= TINY_DIGITS if setting.tiny else {}
    workers = min(7, max(1, (os.cpu_count() or 1) // 2))
    with tempfile.TemporaryDirectory() as store:
        arguments = (store, json.dumps(overrides), str(setting.of(7, 1)), str(workers))
        start = time.perf_counter()
        done = started_here(
            setting, [sys.executable, "-c", DIGITS, *arguments], ELFS_ARTIFACTS_DIR=store
        )
        spent = time.perf_counter() - start
    if done.returncode:
        raise RuntimeError(done.stderr.strip()[-500:])
    return spent, None, {"device": done.stdout.splitlines()[-1]}


def started_here(
    setting: Setting, command: list[str], **environment: str
) -> subprocess.CompletedProcess:
    """A process of this source tree that has ended, with what it wrote.

    Raises:
        RuntimeError: if it has not when the time is up.
    """
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    own = {"cwd": ROOT, "env": {**os.environ, "PYTHONPATH": path, **environment}}
    try:
        return subprocess.run(
            command, check=False, capture_output=True, text=True, timeout=setting.patience, **own
        )
    except subprocess.TimeoutExpired as error:
        raise RuntimeError("It had not ended when the time was up.") from error


MOST_WORKERS, STEPS = 6, 100
_held: dict[tuple, object] = {}


def once(make: Callable[..., object], *arguments: object) -> object:
    """What ``make`` gives, or the error that it raises, of its first call with the arguments."""
    key = (make, *arguments)
    if key not in _held:
        try:
            _held[key] = make(*arguments)
        except Exception as error:  # to try again costs time that other rows need
            _held[key] = error
    if isinstance(_held[key], Exception):
        raise _held[key]
    return _held[key]


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


def gpu_table(facts: list[dict]) -> pd.DataFrame:  # noqa: F821
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


TABLES = {"performance_gpu.csv": gpu_table}


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
            "command": " ".join(["python -m benchmarks.gpu", *sys.argv[1:]]),
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
