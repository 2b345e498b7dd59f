"""A warm interpreter that forks a child for every `elfs` command asked of it, and can kill it.

Importing torch takes seconds and a tiny run takes less, so the tests that run the command dozens
of times keep one process that has imported everything (and computed nothing: threads and autograd
do not survive a fork). It reads one JSON request a line and answers with one JSON line.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import struct
import subprocess
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from image_files import encoded, parquet_file
from PIL import Image
from sklearn.datasets import load_digits

from elfs_lib import stages

# Those of a run as PARAMS says, which trains no encoder and searches on no true label.
LEFT_OUT = {"encoder", "test_embeddings", "clusters", "true_search"}
STAGES = tuple(name for name in stages.STAGES if name not in LEFT_OUT)
CLOCKS = ("wall_s", "cpu_s", "train_s", "share_of_peak", "seconds", "finished")
MOMENTS = ("half a file", "half a manifest", "before the rename", "after the rename")
IMAGES = {"train": 240, "test": 60}
PARAMS = """
dataset: parquet
data_path: images
image_size: 8
classes: 10
flip: false
crop_pad: 1
device: cpu
precision: float32
encoder: pixels
neighbors: 5
temi_heads: 2
temi_epochs: 2
temi_batch: 256
temi_warmup_epochs: 0
temi_hidden: 16
temi_bottleneck: 8
proxy_recipe: speedrun_tiny
proxy_epochs: 1
hard_prune_ratios: [0.0, 0.4]
search_steps: 1
methods: [elfs, ccs]
budgets: [0.1]
eval_recipe: speedrun_tiny
eval_steps: 2
eval_seeds: [0]
"""


@dataclass(frozen=True)
class Ended:
    """How a command ended: exit code (negative: the signal), what it printed, seconds."""

    code: int
    out: str
    err: str
    seconds: float


class Warm:
    """The warm interpreter, seen from the test.

    Args:
        folder: Where its commands run; made ready for a run of ``few.yaml``.
        threads: How many threads each command computes with.
        environment: Variables of the environment to add.
    """

    def __init__(self, folder: Path, *, threads: int = 1, **environment: str) -> None:
        self.folder = folder
        (folder / "few.yaml").write_text(PARAMS)
        some_digits(folder / "images")
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            cwd=folder,
            env=os.environ
            | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
            | {"ELFS_DEBUG": "", "ELFS_PROGRESS": "0"}
            | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(self, store: Path, *words: str, **faults: object) -> Ended:
        """Run ``elfs`` with these words over a store; see :func:`_suffer` for the faults."""
        words = words or ("run", "few.yaml", "--no-notebooks")
        request = {"store": str(store), "words": words, "faults": faults}
        print(json.dumps(request), file=self._process.stdin, flush=True)
        return Ended(**json.loads(self._process.stdout.readline()))

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()


def some_digits(folder: Path) -> None:
    """Write a few of the digits as Parquet, so that a whole run takes a second."""
    digits, start = load_digits(), 0
    for split, count in IMAGES.items():
        chosen = slice(start, start + count)
        pictures = np.asarray(digits.images[chosen] * 15.9375, dtype=np.uint8)
        cells = [encoded(Image.fromarray(picture)) for picture in pictures]
        parquet_file(folder / f"{split}.parquet", cells, digits.target[chosen].tolist())
        os.utime(folder / f"{split}.parquet", (0, 0))  # sources are told apart by their times
        start += count


def contents(store: Path) -> dict[str, object]:
    """All that two equal runs must have in common: every file but the locks, which are empty.

    Left out are the clock's readings and what is computed from a text that holds one: the checksum
    of the manifest, and that of an evaluation's ``result.json``.
    """
    found: dict[str, object] = {}
    for path in sorted(store.rglob("*")):
        name = str(path.relative_to(store))
        if path.is_dir() or path.suffix == ".lock":
            continue
        if path.name not in ("manifest.json", "result.json"):
            found[name] = path.read_bytes()
            continue
        facts = json.loads(path.read_text())
        for clock in (*CLOCKS, "checksum"):
            facts.pop(clock, None)
        facts.get("sha256", {}).pop("result.json", None)
        found[name] = facts
    return found


# --- inside the warm interpreter -----------------------------------------------------------------


def _suffer(
    kill: tuple[str, str] | None = None,
    largest_file: int | None = None,
    obey_permissions: bool = False,
    kill_after: float | None = None,
    pages: list[str] | None = None,
) -> None:
    """Arrange in the child what shall befall it.

    Args:
        kill: (stage, one of :data:`MOMENTS`): die in that stage's write.
        largest_file: Bytes after which a file cannot grow, as on a full disk.
        obey_permissions: Root gives up the right to write where permissions forbid it.
        kill_after: Seconds; the parent kills (see :func:`_run`).
        pages: The only notebooks that a run executes.
    """
    if pages:
        from elfs_lib.runs import pipeline

        pipeline.NOTEBOOKS = pages
    if kill:
        _die_in(*kill)
    if largest_file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    if obey_permissions:
        version_3, none = 0x20080522, bytes(24)
        if ctypes.CDLL(None, use_errno=True).capset(struct.pack("Ii", version_3, 0), none):
            raise OSError(ctypes.get_errno(), "capset")


def _die_in(stage: str, moment: str) -> None:
    from elfs_lib import artifacts

    def here(path: Path) -> bool:
        """Whether the path is, or lies in, a draft of the stage."""
        draft = next((p for p in (path, *path.parents) if p.name.endswith(".draft")), None)
        return draft is not None and draft.parent.name == stage

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    checksum, write_text, replace = artifacts._sha256, Path.write_text, os.replace

    def half_a_file(path: Path) -> str:
        if here(path):
            os.truncate(path, path.stat().st_size // 2)
            die()
        return checksum(path)

    def half_a_manifest(path: Path, text: str, *args, **options) -> int:
        if path.name == artifacts.MANIFEST and here(path):
            write_text(path, text[: len(text) // 2])
            die()
        return write_text(path, text, *args, **options)

    def around_the_rename(source, target) -> None:
        if here(Path(source)) and moment == "before the rename":
            die()
        replace(source, target)
        if here(Path(source)):
            die()

    if moment == "half a file":
        artifacts._sha256 = half_a_file
    elif moment == "half a manifest":
        Path.write_text = half_a_manifest
    else:
        os.replace = around_the_rename


def _run(store: str, words: list[str], faults: dict) -> dict[str, object]:
    out, err = os.pipe(), os.pipe()  # a file would be held to the limits of the child's files
    start = time.perf_counter()
    child = os.fork()
    if child == 0:
        _be_elfs(store, words, faults, out[1], err[1])
    os.close(out[1])
    os.close(err[1])
    if "kill_after" in faults:
        time.sleep(faults["kill_after"])
        os.kill(child, signal.SIGKILL)  # one that has ended keeps its number until the next line
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    seconds = time.perf_counter() - start
    with open(out[0]) as printed, open(err[0]) as said:
        return {"code": code, "out": printed.read(), "err": said.read(), "seconds": seconds}


def _be_elfs(store: str, words: list[str], faults: dict, out: int, err: int) -> None:
    code = 70  # of whatever is not a clean end
    try:
        os.dup2(out, 1)
        os.dup2(err, 2)
        os.environ["ELFS_ARTIFACTS_DIR"] = store
        sys.argv = ["elfs", *words]
        _suffer(**faults)
        from elfs_lib.cli import commands as cli

        cli.main()
    except SystemExit as stop:
        code = stop.code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _serve() -> None:
    import torch._dynamo  # noqa: F401  (all of these are imported for the children)

    for line in sys.stdin:
        print(json.dumps(_run(**json.loads(line))), flush=True)


if __name__ == "__main__":
    _serve()
