"""What ``benchmarks.gpu`` measures: a function a row.

Each takes a setting, the way in which something is done, and what else the row says; it gives the
figure, its share of the peak or None, and what else there is to know. One file: the rows are a
list, and share what times them and counts their arithmetic.
"""

from __future__ import annotations

import atexit
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from elfs_lib.compute import configure_runtime, matmul_peak, resolve_precision

if TYPE_CHECKING:  # the rows that use these fail alone where they are missing
    from benchmarks.cifar10 import Labelled

ROOT = Path(__file__).resolve().parent.parent
WAYS = {"plain": "off", "graphs": "auto", "compiled": "on"}
MPS_CONTROL = "nvidia-cuda-mps-control"
MOST_WORKERS, STEPS = 6, 100
TINY_DIGITS = {
    "temi_heads": 2, "temi_epochs": 2, "proxy_epochs": 2, "hard_prune_ratios": [0.0, 0.4],
    "search_steps": 2, "search_seeds": 1, "eval_steps": 2, "eval_seeds": [0, 1], "budgets": [0.1],
    "methods": ["random", "elfs"],
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
    for seed in range(setting.of(1 if way == "plain" else 3, 1)):
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


def cifar10() -> Labelled | None:
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
