"""The low-budget track: accuracy of a linear probe against labels a class, a line a method.

    python -m benchmarks.low_budget params/digits.yaml
    python -m benchmarks.low_budget params/cifar10.yaml

Every method chooses from the same embeddings of the training images without labels, then a probe is
fitted on each list and tested on the test images. Writes ``low_budget_<dataset>.csv`` (a row a
method, number of labels a class, and seed), its differences from random, and the figure.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

from benchmarks.book_data import DATA
from elfs_lib.artifacts import write_text_atomic
from elfs_lib.evaluation import display_name
from elfs_lib.low_budget import (
    LABELS_PER_CLASS,
    choose_lists,
    coverage_table,
    difference_table,
    probe_lists,
)
from elfs_lib.neighbors import nearest_neighbors
from elfs_lib.params import Params
from elfs_lib.plots import accuracy_vs_labels
from elfs_lib.project import default_store
from elfs_lib.selection import METHODS, SelectionInputs
from elfs_lib.stages import Run

NEIGHBORS = 20


def label_free() -> list[str]:
    """Methods that need no more than embeddings."""
    enough = {"embeddings", "neighbors"}
    return [name for name, m in METHODS.items() if m.needs <= enough and not m.supervised]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("params", type=Path, help="YAML file of parameters")
    parser.add_argument("--methods", nargs="+", default=label_free())
    parser.add_argument("--labels", nargs="+", type=int, help="numbers of labels a class")
    parser.add_argument("--seeds", type=int, default=5, help="of the whole choice")
    parser.add_argument("--out", type=Path, default=DATA, help="folder to write to")
    given = parser.parse_args()
    run = Run(Params.load(given.params), default_store())
    run.check()
    train = np.asarray(run.embeddings.array("embeddings"))
    test = np.asarray(run.test_embeddings.array("embeddings"))
    inputs = with_neighbors(train, run.classes)
    sizes = given.labels or [n for n in LABELS_PER_CLASS if n * run.classes <= inputs.n]
    begun = time.process_time()
    lists = choose_lists(
        inputs,
        given.methods,
        classes=run.classes,
        labels_per_class=sizes,
        seeds=range(given.seeds),
    )
    chosen = time.process_time()
    table = probe_lists(lists, train, test, run.labels, dataset=run.params.dataset)
    done = time.process_time()
    print(f"Lists took {chosen - begun:.1f} s of the processor, probes {done - chosen:.1f} s.")
    write(table, given.out)


def with_neighbors(embeddings: np.ndarray, classes: int) -> SelectionInputs:
    """The embeddings and their nearest neighbours."""
    near = nearest_neighbors(embeddings, min(NEIGHBORS, len(embeddings) - 1))
    return SelectionInputs(
        n=len(embeddings),
        embeddings=embeddings,
        neighbors=near.indices,
        similarities=near.similarities,
        classes=classes,
    )


def write(table, folder: Path) -> None:
    """The table of the track, its differences from random, and the figure."""
    dataset = table["dataset"].iloc[0]
    folder.mkdir(parents=True, exist_ok=True)
    shown = difference_table(table)
    for name, frame in ((dataset, table), (f"{dataset}_differences", shown)):
        text = frame.to_csv(index=False, float_format="%.6g", lineterminator="\n")
        write_text_atomic(folder / f"low_budget_{name}.csv", text)
    figure = accuracy_vs_labels(table, title=display_name(dataset))
    figure.savefig(folder / f"low_budget_{dataset}.svg", metadata={"Date": None})
    print(shown.to_string(index=False))
    print("\nClasses covered:")
    print(coverage_table(table).to_string(index=False))


if __name__ == "__main__":
    main()
