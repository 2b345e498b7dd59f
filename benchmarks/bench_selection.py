"""Time and peak memory of every selection method as N, D, C and the budget grow.

    python -m benchmarks.bench_selection            measure and print
    python -m benchmarks.bench_selection --write    ... and renew elfs_lib/selection/growth.json,
                                                    the table and the figures of the book
    python -m benchmarks.bench_selection --imagenet one point: N = 1.28 million, D = 768, C = 1000
                                                    (--classes 10 where k-means would take hours)
    python -m benchmarks.bench_selection --ratios   speed against a textbook loop, same picks

Every measurement runs in a child process of its own on one thread: CPU seconds of the selection,
and the peak of resident memory above what the imports took, inputs included. Neighbour graphs and
scores are random: they cost the same as real ones.
"""

from __future__ import annotations

import os

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_name] = "1"  # before numpy is loaded: one thread, so that seconds compare

import argparse
import json
import multiprocessing
import platform
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.machine import cpu_model
from benchmarks.selection_design import BASE, DESIGN, IMAGENET, around
from elfs_lib.compute import configure_runtime
from elfs_lib.selection import METHODS, SCORES, SelectionInputs, budget_count, select_by
from elfs_lib.selection.cost import GROWTH, measured_as
from elfs_lib.selection.zcore import zcore_samples

# ZCore's default of up to a million samples takes minutes, and its time is linear in them: it is
# measured at two small numbers and extrapolated along the line
ZCORE_SAMPLES = (2_000, 8_000)
NEIGHBORS = 50
# Made for some hundred images. At a fixed share of N their time grows with N^2: they are measured
# at sizes that take seconds, and never at that of ImageNet
FOR_FEW = (
    "typiclust",
    "prob_cover",
    "max_herding",
    "facility_location",
    "kmeans_nearest",
    "usl",
)
DESIGN_FOR_FEW = around({**BASE, "n": 5_000}, (1_250, 2_500, 10_000))


def design_of(method: str, design: list[dict]) -> list[dict]:
    """The points of a design at which a method is measured."""
    if method not in FOR_FEW:
        return design
    return DESIGN_FOR_FEW if design is DESIGN else []


def make_inputs(n: int, dim: int, classes: int, *, needs: frozenset[str]) -> SelectionInputs:
    """Random inputs; only what ``needs`` names, so that memory is the method's own."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, classes, n)
    fields: dict = {}
    if "embeddings" in needs:
        fields["embeddings"] = rng.standard_normal((n, dim), dtype=np.float32)
        centers = 3 * rng.standard_normal((classes, dim), dtype=np.float32)
        for label in range(classes):
            fields["embeddings"][labels == label] += centers[label]
    if "neighbors" in needs:
        fields["neighbors"] = rng.integers(0, n, (n, NEIGHBORS), dtype=np.int32)
        fields["similarities"] = rng.random((n, NEIGHBORS), dtype=np.float32)
    if "pseudo_labels" in needs:
        fields["pseudo_labels"] = labels
    if "probabilities" in needs:
        fields["probabilities"] = rng.random((n, classes), dtype=np.float32)
        fields["probabilities"] /= fields["probabilities"].sum(1, keepdims=True)
    if "scores" in needs:
        fields["scores"] = {name: rng.random(n, dtype=np.float32) for name in SCORES}
    return SelectionInputs(n=n, classes=classes, **fields)


def cpu_seconds(method: str, inputs: SelectionInputs, count: int, **options) -> float:
    options |= dict.fromkeys(METHODS[method].required, 0.3)
    start = time.process_time()
    select_by(method, inputs, count, seed=1, **options)
    return time.process_time() - start


def resident(field: str) -> int:
    """VmRSS or VmHWM of this process in bytes; without /proc the peak of the whole run."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    line = next(line for line in status.splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def measure(method: str, point: dict, send) -> None:
    """Runs in the child: warm up (lazy imports), then measure."""
    os.environ["ELFS_PROGRESS"] = "0"
    needs, count = METHODS[method].needs, budget_count(point["share"], point["n"])
    zcore = method == "zcore"
    small = make_inputs(500, 8, 2, needs=needs)
    cpu_seconds(method, small, 50, **({"samples": 100} if zcore else {}))
    before = resident("VmRSS")
    inputs = make_inputs(point["n"], point["dim"], point["classes"], needs=needs)
    if zcore:
        (few, many) = ZCORE_SAMPLES
        short, long = (cpu_seconds(method, inputs, count, samples=s) for s in ZCORE_SAMPLES)
        seconds = short + (long - short) / (many - few) * (point["samples"] - few)
    else:
        seconds = cpu_seconds(method, inputs, count)
    send.send({"seconds": round(max(seconds, 1e-3), 4), "bytes": resident("VmHWM") - before})


def in_child(method: str, point: dict) -> dict:
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    receive, send = context.Pipe(duplex=False)
    child = context.Process(target=measure, args=(method, point, send))
    child.start()
    send.close()
    try:
        return receive.recv()
    finally:
        child.join()


def growth(methods: list[str], design: list[dict]) -> list[dict]:
    """Measure, print as it goes, and return the rows."""
    rows = []
    print("method                   N    D    C  share   seconds      MB  B/image")
    for method in methods:
        for point in design_of(method, design):
            samples = zcore_samples(point["n"]) if method == "zcore" else 1
            point = {**point, "samples": samples}
            row = {"method": method, **point, **in_child(method, point)}
            rows.append(row)
            print(
                f"{method:<18}{row['n']:>8}{row['dim']:>5}{row['classes']:>5}{row['share']:>7}"
                f"{row['seconds']:>10.3f}{row['bytes'] / 1e6:>8.1f}{row['bytes'] / row['n']:>9.0f}",
                flush=True,
            )
        if design is not DESIGN:
            continue
        axis = [r for r in rows if r["method"] == method and on_the_n_axis(r)]
        low, high = (pick(axis, key=lambda r: r["n"]) for pick in (min, max))
        for what in ("seconds", "bytes"):
            exponent = np.log(high[what] / low[what]) / np.log(high["n"] / low["n"])
            print(f"{'':<18}{what} grow as N^{exponent:.2f}")
    return rows


def on_the_n_axis(row: dict) -> bool:
    return all(row[name] == BASE[name] for name in ("dim", "classes", "share"))


def machine() -> str:
    """Hardware and versions, one thread."""
    python = platform.python_version()
    return f"{cpu_model()}, 1 thread, Python {python}, numpy {np.__version__}"


# ---------------------------------------------------------------- against textbook loops


def textbook_k_center(inputs: SelectionInputs, first: int, count: int) -> np.ndarray:
    """One pass over all images a pick."""
    rows = inputs.embeddings / np.linalg.norm(inputs.embeddings, axis=1, keepdims=True)
    nearest, picks = np.full(inputs.n, np.inf), [first]
    while len(picks) < count:
        nearest = np.minimum(nearest, ((rows - rows[picks[-1]]) ** 2).sum(1))
        picks.append(int(nearest.argmax()))
    return np.array(picks)


def textbook_badge(inputs: SelectionInputs, first: int, count: int) -> np.ndarray:
    """Written-out gradient embeddings, one pass a pick."""
    q = inputs.probabilities.copy()
    q[np.arange(inputs.n), q.argmax(1)] -= 1
    g = (q[:, :, None] * inputs.embeddings[:, None, :]).reshape(inputs.n, -1)
    rng, nearest, picks = np.random.default_rng(0), np.full(inputs.n, np.inf), [first]
    while len(picks) < count:
        nearest = np.minimum(nearest, ((g - g[picks[-1]]) ** 2).sum(1))
        picks.append(int(rng.choice(inputs.n, p=nearest / nearest.sum())))
    return np.array(picks)


def ratios() -> None:
    """Ours against the textbook on 10,000 images, D 64, C 10, 500 picks."""
    loops: dict[str, Callable] = {"k_center": textbook_k_center, "badge": textbook_badge}
    for method, loop in loops.items():
        inputs = make_inputs(10_000, 64, 10, needs=METHODS[method].needs)
        start = time.process_time()
        ours = select_by(method, inputs, 500)
        middle = time.process_time()
        theirs = loop(inputs, int(ours.indices[0]), 500)
        end = time.process_time()
        same = "same picks" if (ours.indices == theirs).all() else "another draw of the same law"
        ratio = (end - middle) / (middle - start)
        print(f"{method}: {middle - start:.2f} s, textbook {end - middle:.2f} s, "
              f"ratio {ratio:.1f}, {same}")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="renew growth.json")
    parser.add_argument("--imagenet", action="store_true", help="only N = 1.28 million")
    parser.add_argument("--classes", type=int, default=IMAGENET["classes"], help="of --imagenet")
    parser.add_argument("--ratios", action="store_true", help="only compare with textbook loops")
    parser.add_argument("--methods", nargs="+", help="measure only these")
    arguments = parser.parse_args()
    configure_runtime()
    os.environ["ELFS_PROGRESS"] = "0"
    print(machine())
    if arguments.ratios:
        ratios()
        return
    every = [name for name in METHODS if measured_as(name) == name]
    design = [{**IMAGENET, "classes": arguments.classes}] if arguments.imagenet else DESIGN
    rows = growth(arguments.methods or every, design)
    if arguments.write:
        if arguments.methods or arguments.imagenet:  # the other rows stay
            new = {(row["method"], row["n"] == IMAGENET["n"]) for row in rows}
            kept = json.loads(GROWTH.read_text())["rows"]
            rows = [r for r in kept if (r["method"], r["n"] == IMAGENET["n"]) not in new] + rows
        lines = ",\n".join(f"  {json.dumps(row)}" for row in rows)
        GROWTH.write_text(
            f'{{\n "machine": {json.dumps(machine())},\n "rows": [\n{lines}\n ]\n}}\n'
        )
        print(f"Wrote {len(rows)} rows to {GROWTH.name}.")
        from benchmarks import selection_page  # matplotlib, which measuring does not need

        selection_page.main()


if __name__ == "__main__":
    main()
