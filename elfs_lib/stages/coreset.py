"""The stages that choose: the search for beta, the coreset, and training on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from elfs_lib.artifacts import Artifact, Draft
from elfs_lib.selection import (
    METHODS,
    Selection,
    SelectionInputs,
    budget_count,
    easiness,
    search_hard_prune_ratio,
    select_by,
)
from elfs_lib.selection.by_class import class_quantile
from elfs_lib.stages.dynamics import mean_of
from elfs_lib.stages.graph import Call, Given, stage
from elfs_lib.training.recipes import find_recipe, recipe_key

if TYPE_CHECKING:
    from elfs_lib.stages.run import Run

# ---------------------------------------------------------------------- the search for beta

_SEARCH = ("hard_prune_ratios", "search_steps", "search_seeds", "flip", "crop_pad", "precision")
_SEARCHED = (*_SEARCH, "shuffle", "seed", "classes")


def _search_recipe(given: Given) -> str:
    return given.params.search_recipe or given.params.eval_recipe


def _search_key(given: Given) -> dict[str, Any]:
    return {
        **given.key(*_SEARCHED, args=["score"]),
        **given.key_entry("recipe", lambda given: recipe_key(_search_recipe(given))),
        **given.key_entry("count", _count),
        **given.key_entry("balanced", _balanced, neutral=False),
    }


def _count(given: Given) -> int:
    """How many images are chosen."""
    return budget_count(given.args.budget, given.n)


def _balanced(given: Given) -> bool:
    return getattr(given.args, "balanced", False)


def _seed(given: Given) -> int:
    """Of a method that draws; 0 for the others."""
    return getattr(given.args, "seed", 0)


def _search(given: Given, draft: Draft, order: np.ndarray, targets: np.ndarray) -> None:
    from elfs_lib.training.loop import Length, Seeds, train

    p = given.params
    recipe, steps = find_recipe(_search_recipe(given)), Length(steps=p.search_steps)

    def fit_and_score(kept: np.ndarray, held_out: np.ndarray) -> float:
        trained = train(
            given.train_images,
            targets[kept],
            p.classes,
            recipe,
            steps,
            seeds=Seeds.all(p.seed),
            subset=kept,
            desc="search",
            **given.training,
        )
        return 100 * trained.accuracy(given.train_images, targets[held_out], held_out)

    found = search_hard_prune_ratio(
        order,
        _count(given),
        ratios=p.hard_prune_ratios,
        fit_and_score=fit_and_score,
        seed=range(p.seed, p.seed + p.search_seeds),
    )
    draft.array("scores", found.scores)
    draft.json("search", {"ratios": found.ratios.tolist(), "best": found.best})
    draft.fact(device=given.device_name)


def _proxies(given: Given) -> list[Artifact]:
    return [found for name, found in given.inputs.items() if name.startswith("proxy_")]


def mean_scores(proxies: Sequence[Artifact]) -> pd.DataFrame:
    """Their tables of scores, averaged row by row."""
    tables = [proxy.table("scores") for proxy in proxies]
    mean = sum(table.drop(columns="index").astype(np.float64) for table in tables) / len(tables)
    mean.insert(0, "index", tables[0]["index"])
    return mean


@stage(
    title="beta search, budget {budget:g}, by {score}",
    inputs=lambda run, **_: {
        "images": run.call("images"),
        "pseudo": run.call("pseudo"),
        **run.proxy_calls,
    },
    reads=[*_SEARCHED, "search_recipe", "eval_recipe"],
    later={"shuffle": "full"},
    key=_search_key,
)
def search(given: Given, draft: Draft) -> None:
    """Label-free search for beta. Array ``scores`` [ratios, seeds], json ``search``."""
    order = easiness(mean_scores(_proxies(given)), given.args.score)
    labels = given.inputs["pseudo"].table("pseudo")["label"].to_numpy(copy=True)
    if _balanced(given):
        order = class_quantile(order, labels)
    _search(given, draft, order, labels)


@stage(
    title="beta true search, budget {budget:g}, by {score}",
    inputs=lambda run, **_: {"images": run.call("images"), "proxy_0": run.call("true_proxy")},
    reads=[*_SEARCHED, "search_recipe", "eval_recipe"],
    later={"shuffle": "full"},
    key=_search_key,
    labels="supervised",
)
def true_search(given: Given, draft: Draft) -> None:
    """The same search on true labels and true scores, for the supervised methods."""
    targets = given.labels.open("train", purpose="supervised")
    order = easiness(given.inputs["proxy_0"].table("scores"), given.args.score)
    _search(given, draft, order, targets)


# ---------------------------------------------------------------------- the coreset


def search_of(
    run: Run, method: str, budget: float | int, options: Mapping[str, Any] | None = None
) -> Call | None:
    """The search that finds a method's beta at a budget; None if the method has no beta, or the
    parameter or the options give it."""
    entry, options = METHODS[method], options or {}
    given = run.params.hard_prune_ratio is not None or "hard_prune_ratio" in options
    if not entry.takes_beta or given:
        return None
    score = options.get("score") or (run.params.score if entry.follows_score else entry.score)
    stage = "true_search" if entry.supervised else "search"
    return run.call(stage, budget=budget, score=score)


def _coreset_inputs(run: Run, method: str, **_: Any) -> dict[str, Call]:
    entry = METHODS[method]
    names = [name for name in ("embeddings", "neighbors") if name in entry.needs]
    found = {name: run.call(name) for name in ("images", *names)}
    if entry.supervised:
        return found | {"proxy_0": run.call("true_proxy")}
    if entry.needs & {"scores", "probabilities"}:
        found |= run.proxy_calls
    return found | ({"pseudo": run.call("pseudo")} if "pseudo_labels" in entry.needs else {})


def _coreset_unkeyed(
    run: Run, method: str, budget: float | int, options: Mapping[str, Any] | None = None, **_: Any
) -> dict[str, Call]:
    found = search_of(run, method, budget, options)
    return {"search": found} if found else {}


def _options(given: Given) -> dict[str, Any]:
    """The given options, and those that the run decides: its score, searched betas."""
    entry = METHODS[given.args.method]
    options: dict[str, Any] = {"score": given.params.score} if entry.follows_score else {}
    options |= getattr(given.args, "options", {})
    if entry.takes_beta and "hard_prune_ratio" not in options:
        searched = given.inputs.get("search")
        beta = searched.json("search")["best"] if searched else given.params.hard_prune_ratio
        options["hard_prune_ratio"] = float(beta)
    return options


def _coreset_key(given: Given) -> dict[str, Any]:
    revision = METHODS[given.args.method].revision
    return {
        **given.key("classes", args=["method"]),
        **given.key_entry("count", _count),
        **given.key_entry("seed", _seed),
        **given.key_entry("options", _options),
        **({"revision": revision} if revision > 1 else {}),
    }


def _policy(method: str, **_: Any) -> str:
    return "supervised" if METHODS[method].supervised else "never"


@stage(
    title="coreset of {method}, budget {budget:g}",
    inputs=_coreset_inputs,
    unkeyed_inputs=_coreset_unkeyed,
    reads=["classes", "score", "hard_prune_ratio"],
    key=_coreset_key,
    labels=_policy,
    quick=True,
)
def coreset(given: Given, draft: Draft) -> None:
    """Table ``coreset``: rank, index, path, score, in the order to label; json ``info``."""
    inputs = _selection_inputs(given)
    options = _options(given)
    chosen = select_by(given.args.method, inputs, _count(given), seed=_seed(given), **options)
    paths = given.inputs["images"].json("about")["paths"]
    draft.table("coreset", _coreset_table(chosen, paths))
    draft.json("info", chosen.info)


def _selection_inputs(given: Given) -> SelectionInputs:
    entry, read, proxies = METHODS[given.args.method], given.inputs, _proxies(given)
    fields: dict[str, Any] = {}
    if "embeddings" in read:
        fields["embeddings"] = read["embeddings"].array("embeddings")
    if "neighbors" in read:
        fields["neighbors"] = read["neighbors"].array("indices")
        fields["similarities"] = read["neighbors"].array("similarities")
    if "pseudo_labels" in entry.needs:
        fields["pseudo_labels"] = (
            given.labels.open("train", purpose="supervised")
            if entry.supervised
            else read["pseudo"].table("pseudo")["label"].to_numpy(copy=True)
        )
    if "scores" in entry.needs:
        table = proxies[0].table("scores") if entry.supervised else mean_scores(proxies)
        fields["scores"] = {c: table[c].to_numpy() for c in table if c != "index"}
    if "probabilities" in entry.needs:
        fields["probabilities"] = mean_of([x.array("probabilities") for x in proxies])
    return SelectionInputs(n=given.n, classes=given.params.classes, **fields)


def _coreset_table(chosen: Selection, paths: list[str] | None) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "rank": np.arange(1, len(chosen.indices) + 1),
            "index": chosen.indices,
            "path": [paths[i] for i in chosen.indices] if paths else "",
            "score": chosen.scores,
        }
    )


# ---------------------------------------------------------------------- evaluation


def coreset_call(
    run: Run, method: str, budget: float | int, seed: int, options: Mapping[str, Any] | None = None
) -> Call:
    """The coreset of a method; its seed counts where the method draws."""
    seeded = {"seed": seed} if METHODS[method].seeded else {}
    given = {"options": dict(options)} if options else {}
    return run.call("coreset", method=method, budget=budget, **seeded, **given)


def by_clusters(chosen: Call) -> bool:
    """Whether a coreset depends on the pseudo-labels."""
    return any(call.stage.name == "pseudo" for call in chosen.upstream)


def _evaluation_unkeyed(run: Run, **arguments: Any) -> dict[str, Call]:
    """The quality of the pseudo-labels, which a row of the results holds."""
    chosen = coreset_call(run, **arguments)
    return {"pseudo_quality": run.call("pseudo_quality")} if by_clusters(chosen) else {}


def _evaluation_key(given: Given) -> dict[str, Any]:
    names = ("eval_recipe", "eval_epochs", "eval_batch", "shuffle", "classes")
    names += ("flip", "crop_pad", "precision")
    length = () if given.params.eval_epochs else ("eval_steps",)
    return given.key(*names, *length, args=["seed"])


@stage(
    title="{method}, budget {budget:g}, seed {seed}",
    inputs=lambda run, **arguments: {
        "images": run.call("images"),
        "coreset": coreset_call(run, **arguments),
    },
    unkeyed_inputs=_evaluation_unkeyed,
    reads=[
        *("eval_recipe", "eval_epochs", "eval_steps"),
        *("flip", "crop_pad", "precision", "classes"),
    ],
    later={"eval_batch": None, "shuffle": "full"},
    key=_evaluation_key,
    labels="evaluation",
)
def evaluation(given: Given, draft: Draft) -> None:
    """Training on the labelled coreset: json ``result`` (last step), array ``predictions`` [M]."""
    from elfs_lib.training.loop import Length, Seeds, train

    p, seed = given.params, given.args.seed
    length = Length(epochs=p.eval_epochs) if p.eval_epochs else Length(steps=p.eval_steps)
    subset = given.inputs["coreset"].table("coreset")["index"].to_numpy()
    trained = train(
        given.train_images,
        given.labels.open("train", purpose="evaluation")[subset],
        p.classes,
        find_recipe(p.eval_recipe, batch=p.eval_batch),
        length,
        seeds=Seeds.all(seed),
        subset=subset,
        desc=given.title,
        **given.training,
    )
    predictions = trained.logits(given.test_images).argmax(1).numpy()
    right = predictions == given.labels.open("test", purpose="evaluation")
    draft.array("predictions", predictions.astype(np.int16))
    draft.json(
        "result",
        {
            "accuracy": 100 * float(right.mean()),
            "steps": trained.steps,
            "train_flops": trained.flops,
            "seconds": round(trained.seconds, 3),
            "device": given.device_name,
        },
    )
    draft.fact(
        device=given.device_name,
        train_flops=trained.flops,
        train_s=round(trained.seconds, 3),
        share_of_peak=round(trained.share_of_peak, 3),
    )
