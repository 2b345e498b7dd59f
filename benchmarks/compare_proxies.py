"""Does a short proxy rank images as a long one does, and what do their coresets give?

    python -m benchmarks.compare_proxies params/sweeps/cifar10_pipelines.yaml \\
        params/sweeps/cifar10_proxy_speedrun.yaml params/sweeps/cifar10_proxy_resnet18.yaml

Each sweep is one proxy: a recipe and a number of epochs, on the same pseudo-labels. For each
pipeline that all have: Spearman's rank correlation of their AUM with each other, and with that of
each proxy on true labels (this is analysis), and the accuracy of ELFS at the first budget. What is
in the store is not run again; ``--stored`` runs nothing, and leaves out the proxies on true labels
that are not there. Writes ``book/data/proxies.json`` and a table beside it.
"""

from __future__ import annotations

import argparse
import contextlib
import json

import numpy as np
import pandas as pd
import torch
from scipy.stats import spearmanr

from benchmarks.book_data import DATA, Tables, write_tables
from benchmarks.machine import command
from elfs_lib.artifacts import NotBuilt, Store, write_text_atomic
from elfs_lib.project import default_store
from elfs_lib.results.words import network_in_words
from elfs_lib.runs.spec import load_sweep
from elfs_lib.stages import Run


def proxy_name(run: Run) -> str:
    """Network and length of a run's proxy, for people."""
    return f"{network_in_words(run.params.proxy_recipe)}, {run.params.proxy_epochs} epochs"


def measure(runs: list[Run], seed: int) -> list[dict]:
    """A row a proxy of one pipeline.

    Raises:
        NotBuilt: if a stage other than a proxy on true labels is not there and the store only
            looks.
    """
    aum = {proxy_name(run): run.scores["aum"].to_numpy() for run in runs}
    true = {}
    for run in runs:
        with contextlib.suppress(NotBuilt):
            true[proxy_name(run)] = run.true_scores["aum"].to_numpy()
    rows = []
    for run in runs:
        own = aum[proxy_name(run)]
        facts = [proxy.manifest for proxy in run.proxies]
        budget = run.params.budgets[0]
        rows.append(
            {
                "pipeline": run.params.seed,
                "proxy": proxy_name(run),
                "pflop": sum(fact["train_flops"] for fact in facts) / 1e15,
                "seconds": sum(fact["train_s"] for fact in facts),
                "device": facts[0]["device"],
                "spearman": {name: agreement(own, other) for name, other in aum.items()},
                "spearman_true": {name: agreement(own, other) for name, other in true.items()},
                "hard_prune_ratio": run.hard_prune_ratio(budget),
                "accuracy": run.evaluate("elfs", budget, seed).json("result")["accuracy"],
            }
        )
    return rows


def agreement(one: np.ndarray, other: np.ndarray) -> float:
    """Spearman's rank correlation of two scores, float [N]."""
    return float(spearmanr(one, other).statistic)


def proxy_table(facts: dict) -> pd.DataFrame:
    """One row a proxy: cost, agreement, and what its coresets give, over the pipelines."""
    lines = []
    names = list(dict.fromkeys(row["proxy"] for row in facts["rows"]))
    for name in names:
        own = [row for row in facts["rows"] if row["proxy"] == name]
        accuracy = pd.Series([row["accuracy"] for row in own])
        spread = f" ± {accuracy.std():.1f}" if len(own) > 1 else ""
        lines.append(
            {
                "Proxy": name,
                "PFLOP": f"{pd.Series([row['pflop'] for row in own]).mean():.2f}",
                "β": ", ".join(f"{row['hard_prune_ratio']:g}" for row in own),
                "ELFS, %": f"{accuracy.mean():.1f}{spread}",
                **{
                    f"With true labels, {other}": _mean(own, "spearman_true", other)
                    for other in names
                    if any(other in row["spearman_true"] for row in facts["rows"])
                },
                **{f"With {other}": _mean(own, "spearman", other) for other in names},
                "Pipelines": len(own),
            }
        )
    return pd.DataFrame(lines)


def _mean(rows: list[dict], of: str, name: str) -> str:
    found = [row[of][name] for row in rows if name in row[of]]
    return f"{sum(found) / len(found):.2f}" if found else ""


TABLES: Tables = {"proxies.csv": proxy_table}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sweeps", nargs="+", help="YAML files of sweeps of whole pipelines")
    parser.add_argument("--stored", action="store_true", help="train nothing")
    arguments = parser.parse_args()
    store = Store(default_store().root, look=True) if arguments.stored else default_store()
    by_seed = [{p.seed: Run(p, store) for p in load_sweep(s).pipelines} for s in arguments.sweeps]
    rows = []
    for seed in sorted(set.intersection(*map(set, by_seed))):
        try:
            rows += measure([runs[seed] for runs in by_seed], seed)
        except NotBuilt as missing:
            print(f"pipeline {seed}: {missing}")
    if not rows:
        raise SystemExit("No pipeline has all proxies yet: leave --stored out.")
    facts = {
        "command": command("benchmarks.compare_proxies", arguments.sweeps),
        "torch": torch.__version__,
        "rows": rows,
    }
    write_text_atomic(DATA / "proxies.json", json.dumps(facts, indent=1) + "\n")
    print(write_tables(TABLES, facts)["proxies.csv"].to_string(index=False))


if __name__ == "__main__":
    main()
