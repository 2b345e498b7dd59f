"""Encoders side by side on one dataset: neighbours, clusters, and the coreset that they lead to.

All stages but the embeddings take the same parameters for every encoder, and all of them are
artifacts: an interrupted comparison resumes, and shares the work of other runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from elfs_lib.artifacts import Draft, Store, versions_in_words, write_text_atomic
from elfs_lib.clustering.metrics import clustering_accuracy, kmeans_labels
from elfs_lib.embedding.neighbors import Neighbors, knn_accuracy, neighbor_information
from elfs_lib.errors import ElfsError
from elfs_lib.params import Params, read_yaml
from elfs_lib.project import project_root
from elfs_lib.results.evaluation import display_name, paired_difference, percent, summarise
from elfs_lib.results.provenance import as_options, as_setting, differences
from elfs_lib.stages.graph import Given, stage
from elfs_lib.stages.run import Run
from elfs_lib.training.recipes import is_current

TABLE = "encoders.csv"
METHOD, BASELINE = "elfs", "random"
VOTERS = 20  # of the nearest-neighbour vote
NOT_A_SETTING = ("device", "eval_seeds")  # parameters that replace a row and add none
OWN_COLUMNS = ("encoder_size", "seed")  # parameters that add a row and have a column

#: The columns of a comparison, one row an encoder, input size, seed and setting.
ENCODER_COLUMNS: dict[str, str] = {
    "dataset": "name of the dataset",
    "encoder": "name, or names joined by +",
    "input_size": "side that images are resized to, in pixels; empty for the encoder's own rule",
    "seed": "of the whole pipeline; empty for that of the parameters file",
    "setting": "other parameters that differ from the parameters file; empty if none does",
    "saw_labels": "whether its pretraining read labels; empty where that is not known",
    "pretraining": "data and method that made its weights",
    "license": "of its weights",
    "dimensions": "numbers in an embedding",
    "images": "images embedded, the training split",
    "knn_accuracy": "leave-one-out vote of the 20 nearest neighbours, percent",
    "neighbor_purity": "share of the K neighbours that have the image's class, percent",
    "neighbors": "K",
    "temi_accuracy": "pseudo-labels right under the best matching to classes, percent",
    "kmeans_accuracy": "the same for k-means on the embeddings",
    "temi_information": "mutual information of the pseudo-labels of neighbours, nats",
    "class_information": "mutual information of the classes of neighbours, nats",
    "budget": "share of the images in the coreset",
    "seeds": "trainings of each coreset method",
    "eval_seeds": "their seeds with spaces between; empty in rows from before this column: 0, 1...",
    "recipe": "of the trainings, with its revision; empty in rows from before this column",
    "elfs_accuracy": "test accuracy after training on the ELFS coreset, percent, mean over seeds",
    "elfs_sd": "its standard deviation over seeds",
    "elfs_by_seed": "the accuracies behind it in the order of the seeds, with spaces between",
    "hard_prune_ratio": "the beta of the ELFS coreset, in [0, 1); empty if not recorded",
    "random_accuracy": "the same for a random coreset of this size",
    "difference": "ELFS minus random, paired by seed, in points",
    "low": "lower end of its 95% t-interval",
    "high": "upper end of it",
    "wall_s": "seconds to embed, training of the encoder included",
    "cpu_s": "processor seconds of it, all threads together; empty if not recorded",
    "device": "hardware that embedded",
    "is_default": "whether the dataset's parameters file names this encoder",
    "command": "what makes the row again",
    "versions": "of the packages",
}


def compare_encoders(
    params_file: Path,
    names: Sequence[str],
    table: Path,
    store: Store,
    *,
    overrides: Mapping[str, Any] | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> pd.DataFrame:
    """Run the pipeline with each encoder and write the table, row by row.

    Args:
        params_file: YAML of parameters; its encoder is called the default.
        names: Encoders; names joined by "+" are concatenated.
        table: CSV to write. Rows of other encoders, input sizes, seeds and settings that it holds
            are kept, so that a comparison can grow row by row.
        store: Where the artifacts are.
        overrides: Parameters that win over the file.
        say: Called with a line before each stage.

    Returns:
        The table, columns as in :data:`ENCODER_COLUMNS`.

    Raises:
        ElfsError: before any work, if an encoder or a parameter is wrong, or the dataset has no
            labels to compare by.
    """
    overrides = dict(overrides or {})
    if "encoder" in overrides:
        raise ElfsError("Name the encoders as arguments, and leave -p encoder=... out.")
    file = read_yaml(params_file)
    runs = [Run(params_with(file, overrides, name), store) for name in dict.fromkeys(names)]
    for run in runs:
        run.check()
        if not run.can_evaluate:
            raise ElfsError(
                f"Dataset {run.params.dataset!r} has no labels of both splits: encoders are "
                "compared by labels."
            )
    changed = "".join(f" {option}" for option in as_options(overrides))
    for run in runs:
        p, name = run.params, run.params.encoder
        found = differences(p, params_with(file, {}, name)).items()
        changes = {key: value for key, value in found if key not in NOT_A_SETTING}
        others = {key: value for key, value in changes.items() if key not in OWN_COLUMNS}
        row = compare(run, say=say) | {
            "seed": changes.get("seed"),
            "setting": as_setting(others) or None,
            "is_default": name == file.get("encoder") and not changes,
            "command": f"elfs compare-encoders params/{params_file.name} {name}{changed}",
        }
        write_row(table, row)
    return _read(table)


def compare(run: Run, *, say: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
    """What a run says of its encoder, by the table's columns; runs whatever stage is missing."""
    p, name = run.params, run.params.encoder
    say(f"{name}: embedding {run.n:,} images")
    embedded = run.embeddings
    say(f"{name}: neighbours and clusters")
    quality = run.artifact(encoder_quality).json("quality")
    rows = []
    for method in (BASELINE, METHOD):
        for seed in p.eval_seeds:
            say(f"{name}: {method} at budget {p.budget:g}, seed {seed}")
            rows.append(run.result_row(method, p.budget, seed))
    results = pd.DataFrame(rows)
    means = summarise(results).set_index("method")
    paired = paired_difference(results, METHOD, BASELINE).iloc[0]
    facts = run.encoder_facts
    versions = versions_in_words(embedded.manifest["packages"])
    costs = pd.DataFrame([part.embeddings.manifest for part in run.encoder_runs])
    if "cpu_s" not in costs:
        costs["cpu_s"] = np.nan
    return {
        "dataset": p.dataset,
        "encoder": name,
        "input_size": p.encoder_size,
        "saw_labels": facts["saw_labels"],
        "pretraining": facts["pretraining"],
        "license": facts["license"],
        "dimensions": embedded.array("embeddings").shape[1],
        "images": run.n,
        **quality,
        "neighbors": p.neighbors,
        "budget": paired["budget"],
        "seeds": len(p.eval_seeds),
        "eval_seeds": " ".join(map(str, p.eval_seeds)),
        "recipe": results["recipe"].iloc[0],
        "elfs_accuracy": means.loc[METHOD, "mean"],
        "elfs_sd": means.loc[METHOD, "sd"],
        "elfs_by_seed": " ".join(f"{a:.4f}" for a in results["accuracy"][-len(p.eval_seeds) :]),
        "hard_prune_ratio": results["hard_prune_ratio"].iloc[-1],
        "random_accuracy": means.loc[BASELINE, "mean"],
        **paired[["difference", "low", "high"]],
        "wall_s": costs["wall_s"].sum(),
        "cpu_s": costs["cpu_s"].sum(skipna=False),
        "device": embedded.manifest["device"],
        "versions": versions,
    }


def comparison_tables() -> dict[str, pd.DataFrame]:
    """Every comparison of the book, by dataset; the small default comes last."""
    files = sorted((project_root() / "book" / "runs").glob(f"*/{TABLE}"))
    tables = {file.parent.name: _read(file) for file in files}
    return dict(sorted(tables.items(), key=lambda item: item[0] == "digits"))


def named(row: Any) -> str:
    """What a row compares: the encoder, with its input size, seed and setting if it has them."""
    size = "" if pd.isna(row.input_size) else f" at {row.input_size:.0f} px"
    seed = "" if pd.isna(row.seed) else f", seed {row.seed:.0f}"
    setting = "" if pd.isna(row.setting) else f", {row.setting}"
    return row.encoder + size + seed + setting


def as_shown(table: pd.DataFrame) -> pd.DataFrame:
    """A comparison as texts for the page, row by row."""
    labels = {True: "yes", False: "no"}

    rows = [
        {
            "encoder": named(row).replace("+", " + ") + (" (default)" if row.is_default else ""),
            "saw labels": labels.get(row.saw_labels, "not known"),
            "20-NN": f"{row.knn_accuracy:.1f}",
            "purity": f"{row.neighbor_purity:.1f}",
            "k-means": f"{row.kmeans_accuracy:.1f}",
            "TEMI": f"{row.temi_accuracy:.1f}",
            "\u03b2": f"{row.hard_prune_ratio:g}" if row.hard_prune_ratio >= 0 else "",
            "ELFS": f"{row.elfs_accuracy:.1f}"
            + (f"\u00a0±\u00a0{row.elfs_sd:.1f}" if row.seeds > 1 else ""),
            "minus random": f"{row.difference:+.1f}"
            + (f" ({row.low:+.1f} to {row.high:+.1f})" if row.low == row.low else ""),
            "CPU s": _seconds(row),
        }
        for row in table.itertuples()
    ]
    return pd.DataFrame(rows)


def sentences(table: pd.DataFrame) -> list[str]:
    """What a comparison shows: the best neighbours, and each encoder against the default."""
    table = table.assign(recipe=table["recipe"].fillna(""))
    first = table.iloc[0]
    dataset = display_name(first["dataset"])
    if len(table) == 1:
        return [f"On {dataset} only {named(first)} was measured: there is nothing to compare yet."]
    once = table[table["seed"].isna()]  # the others repeat one of these from another seed
    lines = []
    if len(once) > 1:
        best = once.loc[once["knn_accuracy"].idxmax()]
        lines.append(
            f"On {dataset} the neighbours of {named(best)} are the best by 20-NN "
            f"({best['knn_accuracy']:.1f}%), of {len(once)} that were measured."
        )
    measured = once.dropna(subset=["temi_information", "class_information"])
    past = measured[measured["temi_information"] > measured["class_information"]]
    if len(past):
        which = ", ".join(
            f"{named(row)} ({row.temi_information:.2f} against {row.class_information:.2f} nats)"
            for row in past.itertuples()
        )
        lines.append(
            "Neighbouring images share more mutual information through TEMI's clusters than "
            f"through the classes for {len(past)} of {len(measured)} encoders: {which}. So a "
            "better optimum of its objective need not be closer to the classes."
        )
    older = sum(not is_current(recipe) for recipe in table["recipe"])
    if older:
        lines.append(
            f"{older} of the {len(table)} rows of {dataset} were trained by an earlier or "
            "unrecorded revision of the recipe: their commands may give somewhat other accuracies."
        )
    if not table["is_default"].any():
        return lines
    usual = next(row for row in table.itertuples() if row.is_default)
    default = named(usual)
    trainings = pd.concat(
        pd.DataFrame(
            {
                "dataset": row.dataset,
                "method": named(row),
                "budget": row.budget,
                "count": round(row.budget * row.images),
                "seed": _eval_seeds(row),
                "accuracy": [float(text) for text in str(row.elfs_by_seed).split()],
            }
        )
        for row in table.itertuples()
    )
    better = []
    rivals = [
        row
        for row in table.itertuples()
        if not row.is_default
        and (row.budget, row.recipe) == (usual.budget, usual.recipe)
        and {*_eval_seeds(row)} & {*_eval_seeds(usual)}
    ]
    for row in rivals:
        name = named(row)
        found = paired_difference(trainings, name, default).iloc[0]
        size = f"{found['difference']:+.1f} points"
        interval = f"95% interval {found['low']:+.1f} to {found['high']:+.1f}, n={found['n']}"
        where = f"with the ELFS coreset of {percent(found['budget'])} of the images"
        against = f"{name} against the default, {default}: {size} {where}"
        if np.isnan(found["low"]):
            lines.append(f"{against} (n={found['n']}, no interval).")
        elif found["low"] <= 0 <= found["high"]:
            lines.append(f"{against}: no evidence of a difference ({interval}).")
        else:
            lines.append(f"{against} ({interval}).")
            better += [f"{name} ({_seconds(row)} s to embed)"] if found["low"] > 0 else []
    lines.append(
        f"By accuracy alone this table does not support the default of {dataset} "
        f"({_seconds(usual)} s): {', '.join(better)} did better, by intervals over trainings of "
        f"one coreset each, not corrected for {len(rivals)} comparisons."
        if better
        else f"Nothing here did better than the default of {dataset} beyond its interval."
    )
    return lines


def _eval_seeds(row: Any) -> list[str]:
    """Seeds of the trainings of a row; older tables do not state them: they were the first ones."""
    if pd.isna(row.eval_seeds):
        return [str(seed) for seed in range(row.seeds)]
    return row.eval_seeds.split()


def _seconds(row: Any) -> str:
    """Time to embed: of the processor, or wall time where only that was recorded."""
    return f"{row.wall_s:,.0f} wall" if np.isnan(row.cpu_s) else f"{row.cpu_s:,.0f}"


def params_with(file: Mapping[str, Any], overrides: Mapping[str, Any], name: str) -> Params:
    """The parameters for one encoder; its checkpoint, size, views and components are only for the
    file's own."""
    special = ("encoder_checkpoint", "encoder_size", "encoder_views", "encoder_pca")
    own = {} if name == file.get("encoder") else dict.fromkeys(special)
    fixed = {"encoder": name, "methods": [BASELINE, METHOD]}
    return Params.make({**file, **own, **overrides, **fixed})


@stage(
    title="quality of the embeddings and the clusters (analysis)",
    inputs=["images", "embeddings", "neighbors", "pseudo"],
    reads=["seed", "classes"],
    key=lambda given: given.key("seed", "classes") | {"voters": VOTERS},
    labels="analysis",
    version=2,
)
def encoder_quality(given: Given, draft: Draft) -> None:
    """Json ``quality``: what the neighbours and the clusters are worth, by the true labels."""
    classes = given.params.classes
    labels = given.labels.open("train", purpose="analysis")
    pseudo_labels = given.inputs["pseudo"].table("pseudo")["label"].to_numpy(copy=True)
    near = Neighbors(given.array("neighbors", "indices"), given.array("neighbors", "similarities"))
    points = np.asarray(given.array("embeddings", "embeddings"))
    kmeans = kmeans_labels(points, classes, seed=given.params.seed)
    shares = {
        "knn_accuracy": knn_accuracy(near, labels, k=min(VOTERS, near.indices.shape[1])),
        "neighbor_purity": float((labels[near.indices] == labels[:, None]).mean()),
        "temi_accuracy": clustering_accuracy(pseudo_labels, labels, clusters=classes),
        "kmeans_accuracy": clustering_accuracy(kmeans, labels, clusters=classes),
    }
    information = {
        "temi_information": neighbor_information(near, pseudo_labels),
        "class_information": neighbor_information(near, labels),
    }
    points = {name: 100 * share for name, share in shares.items()}
    draft.json("quality", points | information)


def _read(table: Path) -> pd.DataFrame:
    """A table; columns that it was written without are empty."""
    texts = dict.fromkeys(("setting", "eval_seeds", "elfs_by_seed"), str)
    return pd.read_csv(table, dtype=texts).reindex(columns=list(ENCODER_COLUMNS))


def write_row(table: Path, row: Mapping[str, Any]) -> None:
    """Put a row into the table in place of an older one of its name, and sort it."""
    frame = pd.DataFrame([row])
    if table.exists():
        old = _read(table)
        others = [named(one) != named(frame.iloc[0]) for one in old.itertuples()]
        old = old[others]
        if row["is_default"]:
            old = old.assign(is_default=False)  # by what the parameters file said before
        frame = pd.concat([old, frame], ignore_index=True)
    frame = frame.sort_values("knn_accuracy", ascending=False)[list(ENCODER_COLUMNS)]
    table.parent.mkdir(parents=True, exist_ok=True)
    write_text_atomic(table, frame.to_csv(index=False, float_format="%.6g"))
