"""Is the beta that the search finds on pseudo-labels the best in hindsight?

    python -m benchmarks.search_quality params/sweeps/cifar10_pipelines.yaml
    python -m benchmarks.search_quality params/sweeps/fashion_mnist.yaml --stored

For each pipeline and budget of a sweep: the search's curve over the betas, and the test accuracy of
a model that is trained on the true labels of the ELFS coreset at every one of them, by the recipe
and length of the sweep. Trainings that are in the store are not run again; ``--stored`` runs none,
and leaves out the betas that were not tried.
Writes ``book/data/search_quality.json``, in place of older rows of the dataset, and a table beside
it. This is analysis: the search never
sees it.
"""

from __future__ import annotations

import argparse
import contextlib
import json

import pandas as pd
import torch

from benchmarks.book_data import DATA, Tables, write_tables
from elfs_lib.artifacts import NotBuilt, Store, write_text_atomic
from elfs_lib.project import default_store
from elfs_lib.results.evaluation import display_name
from elfs_lib.runs.spec import load_sweep
from elfs_lib.stages import Run

FACTS = DATA / "search_quality.json"


def measure(run: Run, budget: float | int) -> list[dict]:
    """A row a beta that fits: what the search scored, and the test accuracy; in percent. Where the
    store only looks, a row for those that were tried.

    Raises:
        NotBuilt: if the search is not there and the store only looks.
    """
    search, seed, rows = run.search(budget), run.params.seed, []
    best = search.json("search")["best"]
    for ratio, score in zip(search.json("search")["ratios"], search.array("scores").mean(1)):
        with contextlib.suppress(NotBuilt):
            trained = run.evaluate("elfs", budget, seed, hard_prune_ratio=ratio)
            rows.append(
                {
                    "dataset": run.params.dataset,
                    "budget": budget,
                    "pipeline": seed,
                    "ratio": ratio,
                    "search": float(score),
                    "accuracy": trained.json("result")["accuracy"],
                    "device": trained.json("result")["device"],
                    "chosen": ratio == best,
                }
            )
    return rows


def choice_table(facts: dict) -> pd.DataFrame:
    """One row a budget: what was chosen, what was best over all pipelines, and what that costs; the
    most is of a single pipeline, against the best beta of its own."""
    rows = pd.DataFrame(facts["rows"])
    lines = []
    for (dataset, budget), own in rows.groupby(["dataset", "budget"]):
        grid = own.pivot(index="pipeline", columns="ratio", values="accuracy")
        chosen = own[own["chosen"]].set_index("pipeline")
        best = float(grid.mean().idxmax())
        lost = (grid[best] - chosen["accuracy"]).dropna()
        spread = f" ± {lost.std():.2f}" if len(lost) > 1 else ""
        lines.append(
            {
                "Dataset": display_name(dataset),
                "Labelled": f"{budget:.0%}",
                "Accuracy by β, %": ", ".join(f"{b:g}: {x:.2f}" for b, x in grid.mean().items()),
                "Chosen by the search": ", ".join(f"{r:g}" for r in chosen["ratio"]),
                "Best of those tried": f"{best:g}",
                "Accuracy at the choice, %": f"{chosen['accuracy'].mean():.2f}",
                "At the best, %": f"{grid[best].mean():.2f}",
                "Lost, points": f"{lost.mean():.2f}{spread}",
                "Most lost": f"{(grid.max(axis=1) - chosen['accuracy']).max():.2f}",
                "Pipelines": len(grid),
                "On": ", ".join(sorted(own["device"].unique())),
            }
        )
    return pd.DataFrame(lines)


TABLES: Tables = {"search_quality.csv": choice_table}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sweep", help="YAML of a sweep of whole pipelines")
    parser.add_argument("--stored", action="store_true", help="train nothing")
    arguments = parser.parse_args()
    sweep, rows = load_sweep(arguments.sweep), []
    store = Store(default_store().root, look=True) if arguments.stored else default_store()
    for params in sweep.pipelines:
        run = Run(params, store)
        for budget in params.budgets:
            try:
                found = measure(run, budget)
                rows += found if len(found) > 1 else []  # one beta has nothing to be compared with
            except NotBuilt as missing:
                print(f"pipeline {params.seed} at {budget:g}: {missing}")
    if not rows:
        raise SystemExit("Nothing is there yet: leave --stored out.")
    made_by = {
        "command": f"python -m benchmarks.search_quality {arguments.sweep}",
        "recipe": sweep.pipelines[0].eval_recipe,
        "steps": sweep.pipelines[0].eval_steps,
        "torch": torch.__version__,
    }
    old = json.loads(FACTS.read_text())["rows"] if FACTS.exists() else []
    kept = [row for row in old if row["dataset"] != sweep.pipelines[0].dataset]
    facts = {"rows": kept + [row | made_by for row in rows]}
    write_text_atomic(FACTS, json.dumps(facts, indent=1) + "\n")
    print(write_tables(TABLES, facts)["search_quality.csv"].to_string(index=False))


if __name__ == "__main__":
    main()
