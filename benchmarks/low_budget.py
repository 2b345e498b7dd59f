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
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.book_data import DATA, write_figure
from benchmarks.machine import machine_name
from elfs_lib.artifacts import package_versions, write_text_atomic
from elfs_lib.compute import resolve_device
from elfs_lib.params import Params, parse_yaml
from elfs_lib.project import default_store
from elfs_lib.results.evaluation import display_name
from elfs_lib.results.low_budget import (
    ADVICE,
    LABELS_PER_CLASS,
    LOW_BUDGET_COLUMNS,
    Choice,
    Chooser,
    choose_lists,
    coverage_table,
    difference_table,
    probe_lists,
    standing_table,
)
from elfs_lib.results.plots import accuracy_vs_labels
from elfs_lib.results.provenance import as_setting
from elfs_lib.results.words import setting_in_words
from elfs_lib.selection import METHODS
from elfs_lib.stages import Run

# Of ELFS at every budget: a search at each costs more than everything else here
BETA = 0.3
# The others are in the tables: their lines would hide these, or be hidden
DRAWN = (
    "random",
    "elfs",
    "elfs_balanced",
    "ccs_pseudo",
    "typiclust",
    "prob_cover",
    "max_herding",
    "kmeans_nearest",
)
SETTINGS, ADVISED = "low_budget_settings.csv", "low_budget_advice.csv"
MADE_ON = "low_budget_machines.csv"
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
    parser.add_argument(
        "--from-scratch",
        action="store_true",
        help="train the network of eval_recipe for eval_steps on each list, no probe",
    )
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
    table = train_on(lists, run) if given.from_scratch else probe(lists, run)
    done = time.process_time()
    print(f"Lists took {chosen - begun:.1f} s of the processor, learning {done - chosen:.1f} s.")
    learner = f"{run.params.eval_recipe}, {run.params.eval_steps} steps"
    facts = setting(run) | {
        "learner": learner if given.from_scratch else "linear probe",
        "changes": as_setting(changes),
    }
    write(table, facts, given.out, "_from_scratch" if given.from_scratch else "")


@lru_cache(maxsize=1)
def with_seed(run: Run, seed: int) -> Run:
    return Run(run.params.model_copy(update={"seed": seed}), run.store)


def chooser(run: Run) -> Chooser:
    """Lists as artifacts of the run with the seed that is asked for."""

    def choose_list(method: str, count: int, seed: int) -> np.ndarray:
        return with_seed(run, seed).coreset(method, count).table("coreset")["index"].to_numpy()

    return choose_list


def probe(lists: Mapping[Choice, np.ndarray], run: Run) -> pd.DataFrame:
    """A linear probe on each list."""
    return probe_lists(
        lists,
        np.asarray(run.embeddings.array("embeddings")),
        np.asarray(run.test_embeddings.array("embeddings")),
        run.labels,
        dataset=run.params.dataset,
    )


def train_on(lists: Mapping[Choice, np.ndarray], run: Run) -> pd.DataFrame:
    """A network trained from scratch on each list, with the list's seed; columns as of a probe."""
    true = run.labels.open("train", purpose="analysis")
    rows = [
        {
            "dataset": run.params.dataset,
            **choice._asdict(),
            "budget": len(own) / run.n,
            "count": len(own),
            "accuracy": with_seed(run, choice.seed)
            .evaluate(choice.method, len(own), choice.seed)
            .json("result")["accuracy"],
            "classes_covered": len(np.unique(true[own])),
        }
        for choice, own in sorted(lists.items(), key=lambda item: item[0].seed)
    ]
    return pd.DataFrame(rows)[list(LOW_BUDGET_COLUMNS)]


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


def write(table: pd.DataFrame, facts: dict, folder: Path, suffix: str = "") -> None:
    """The table of the track with the older rows that still hold, and all that is made from it."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"low_budget_{facts['dataset']}{suffix}"
    measured, about = folder / f"{stem}.csv", folder / f"{stem}.json"
    same = about.exists() and json.loads(about.read_text())["embeddings"] == facts["embeddings"]
    if same and measured.exists():
        table = pd.concat([pd.read_csv(measured), table]).drop_duplicates(KEY, keep="last")
    order = [*METHODS]
    table = table.sort_values(KEY, key=lambda c: c.map(order.index) if c.name == "method" else c)
    write_text_atomic(about, json.dumps(facts, indent=1) + "\n")
    write_text_atomic(measured, _as_csv(table))
    write_text_atomic(folder / SETTINGS, _as_csv(settings_table(folder)))
    write_text_atomic(folder / MADE_ON, _as_csv(machines_table(folder)))
    write_text_atomic(folder / ADVISED, _as_csv(advice_table()))
    for name, made in tables(table).items():
        write_text_atomic(folder / f"{stem}_{name}.csv", _as_csv(made))
        print(f"\n{name}\n{made.to_string(index=False)}")
    if not suffix:
        drawn = table[table["method"].isin(DRAWN)]
        figure = accuracy_vs_labels(drawn, title=display_name(facts["dataset"]))
        write_figure(figure, f"{stem}.svg", folder)


def settings_table(folder: Path) -> pd.DataFrame:
    """What each dataset in a folder was measured on: one row a dataset and learner."""
    rows = []
    for path in sorted(folder.glob("low_budget_*.json")):
        facts = json.loads(path.read_text())
        rows.append(
            {
                "Dataset": display_name(facts["dataset"]),
                "Encoder": facts["encoder"],
                "Changed": setting_in_words(facts["changes"]),
                "Learner": facts["learner"],
                "Images": f"{facts['images']:,}",
                "Test images": f"{facts['test_images']:,}",
                "β of ELFS": f"{facts['beta']:g}",
            }
        )
    return pd.DataFrame(rows)


def machines_table(folder: Path) -> pd.DataFrame:
    """On which machines and by which versions the datasets in a folder were measured."""
    rows = {}
    for path in sorted(folder.glob("low_budget_*.json")):
        facts = json.loads(path.read_text())
        made = facts["machine"], ", ".join(f"{name} {v}" for name, v in facts["versions"].items())
        rows.setdefault(made, []).append(display_name(facts["dataset"]))
    return pd.DataFrame(
        {"Datasets": ", ".join(dict.fromkeys(names)), "Machine": machine, "Versions": versions}
        for (machine, versions), names in rows.items()
    )


def advice_table() -> pd.DataFrame:
    """The advice in words."""
    ends = [start for start, _ in ADVICE[1:]]
    spans = [f"{max(start, 1)} to {end - 1}" for (start, _), end in zip(ADVICE, ends, strict=False)]
    return pd.DataFrame(
        {
            "Labels a class": [*spans, f"{ADVICE[-1][0]} and more"],
            "Method": [display_name(method) for _, method in ADVICE],
            "Name": [f"`{method}`" for _, method in ADVICE],
        }
    )


def tables(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The tables of the page for one dataset and learner, by the ends of their names."""
    made = {
        "differences": difference_table(table),
        "coverage": coverage_table(table),
        "standing": standing_table(table, "random"),
    }
    if "elfs" in set(table["method"]):
        made["elfs"] = standing_table(table, "elfs")
    return made


def _as_csv(table: pd.DataFrame) -> str:
    return table.to_csv(index=False, float_format="%.10g", lineterminator="\n")


if __name__ == "__main__":
    main()
