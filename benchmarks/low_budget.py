"""The low-budget track: accuracy of a linear probe against labels a class, a line a method.

    python -m benchmarks.low_budget params/digits.yaml
    python -m benchmarks.low_budget params/cifar10.yaml --methods elfs ccs_pseudo --seeds 0 1 2

Every method chooses from the images of one run without labels, then a probe is fitted on each list
and tested on the test images. A seed is one of the whole choice: of ELFS, its clustering and proxy
too. Lists are artifacts, so that an interrupted command goes on where it stopped. Writes
``low_budget_<dataset>.csv`` (a row a method, number of labels a class, and seed; rows of other
methods and seeds stay while the embeddings are the same), the tables made from it, and the figure.
"""

from __future__ import annotations

import argparse
import json
import time
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.book_data import DATA
from benchmarks.machine import machine_name
from elfs_lib.artifacts import package_versions, write_text_atomic
from elfs_lib.compute import resolve_device
from elfs_lib.evaluation import display_name
from elfs_lib.low_budget import (
    LABELS_PER_CLASS,
    Chooser,
    choose_lists,
    coverage_table,
    difference_table,
    probe_lists,
    standing_table,
)
from elfs_lib.params import Params, parse_yaml
from elfs_lib.plots import accuracy_vs_labels
from elfs_lib.project import default_store
from elfs_lib.provenance import as_setting
from elfs_lib.selection import METHODS
from elfs_lib.stages import Run

# Of ELFS at every budget: a search at each costs more than everything else here
BETA = 0.3
SETTINGS = "low_budget_settings.csv"
KEY = ["method", "labels_per_class", "seed"]


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
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--beta", type=float, default=BETA, help="hard-prune ratio of ELFS")
    parser.add_argument("-p", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--out", type=Path, default=DATA, help="folder to write to")
    given = parser.parse_args()
    changes = {name: parse_yaml(text) for name, _, text in (p.partition("=") for p in given.p)}
    fixed = {"hard_prune_ratio": given.beta}
    run = Run(Params.load(given.params, {**changes, **fixed}), default_store())
    run.check()
    sizes = given.labels or [n for n in LABELS_PER_CLASS if n * run.classes <= run.n]
    begun = time.process_time()
    lists = choose_lists(
        chooser(run),
        given.methods,
        n=run.n,
        classes=run.classes,
        labels_per_class=sizes,
        seeds=given.seeds,
    )
    chosen = time.process_time()
    table = probe_lists(
        lists,
        np.asarray(run.embeddings.array("embeddings")),
        np.asarray(run.test_embeddings.array("embeddings")),
        run.labels,
        dataset=run.params.dataset,
    )
    done = time.process_time()
    print(f"Lists took {chosen - begun:.1f} s of the processor, probes {done - chosen:.1f} s.")
    write(table, setting(run) | {"changes": as_setting(changes)}, given.out)


def chooser(run: Run) -> Chooser:
    """Lists as artifacts of the run with the seed that is asked for."""

    @lru_cache(maxsize=1)
    def seeded(seed: int) -> Run:
        return Run(run.params.model_copy(update={"seed": seed}), run.store)

    def choose_list(method: str, count: int, seed: int) -> np.ndarray:
        return seeded(seed).coreset(method, count).table("coreset")["index"].to_numpy()

    return choose_list


def setting(run: Run) -> dict:
    """What the numbers of a dataset were measured on."""
    return {
        "dataset": run.params.dataset,
        "encoder": str(run.encoder_facts["encoder"]),
        "images": run.n,
        "test_images": len(run.test_embeddings.array("embeddings")),
        "beta": run.params.hard_prune_ratio,
        "embeddings": run.embeddings.key,
        "machine": machine_name(resolve_device("cpu")),
        "versions": package_versions(),
    }


def write(table: pd.DataFrame, facts: dict, folder: Path) -> None:
    """The table of the track with the older rows that still hold, and all that is made from it."""
    folder.mkdir(parents=True, exist_ok=True)
    dataset = facts["dataset"]
    measured, about = folder / f"low_budget_{dataset}.csv", folder / f"low_budget_{dataset}.json"
    same = about.exists() and json.loads(about.read_text())["embeddings"] == facts["embeddings"]
    if same and measured.exists():
        table = pd.concat([pd.read_csv(measured), table]).drop_duplicates(KEY, keep="last")
    order = [*METHODS]
    table = table.sort_values(KEY, key=lambda c: c.map(order.index) if c.name == "method" else c)
    write_text_atomic(about, json.dumps(facts, indent=1) + "\n")
    write_text_atomic(measured, _as_csv(table))
    write_text_atomic(folder / SETTINGS, _as_csv(settings_table(folder)))
    for name, made in tables(table).items():
        write_text_atomic(folder / name, _as_csv(made))
        print(f"\n{name}\n{made.to_string(index=False)}")
    figure = accuracy_vs_labels(table, title=display_name(dataset))
    figure.savefig(folder / f"low_budget_{dataset}.svg", metadata={"Date": None})


def settings_table(folder: Path) -> pd.DataFrame:
    """What each dataset in a folder was measured on, one column a dataset."""
    columns = {"": ["Encoder", "Images", "Test images", "Beta of ELFS", "Machine", "Versions"]}
    for path in sorted(folder.glob("low_budget_*.json")):
        facts = json.loads(path.read_text())
        columns[display_name(facts["dataset"])] = [
            ", ".join(filter(None, (facts["encoder"], facts["changes"]))),
            f"{facts['images']:,}",
            f"{facts['test_images']:,}",
            f"{facts['beta']:g}",
            facts["machine"],
            ", ".join(f"{name} {version}" for name, version in facts["versions"].items()),
        ]
    return pd.DataFrame(columns)


def tables(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The tables of the page for one dataset, by the names of their files."""
    dataset = table["dataset"].iloc[0]
    made = {
        "differences": difference_table(table),
        "coverage": coverage_table(table),
        "standing": standing_table(table, "random"),
    }
    if "elfs" in set(table["method"]):
        made["elfs"] = standing_table(table, "elfs")
    return {f"low_budget_{dataset}_{name}.csv": own for name, own in made.items()}


def _as_csv(table: pd.DataFrame) -> str:
    return table.to_csv(index=False, float_format="%.10g", lineterminator="\n")


if __name__ == "__main__":
    main()
