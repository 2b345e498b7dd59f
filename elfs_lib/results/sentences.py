"""What the pages of a run say in words, computed from what they show.

Each function takes the values that a page holds and returns Markdown. Whether a difference counts
as one is decided in :mod:`elfs_lib.results.evaluation`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import stats

from elfs_lib.artifacts import Artifact, Store
from elfs_lib.results import evaluation
from elfs_lib.results.evaluation import CONFIDENCE, display_name, percent
from elfs_lib.results.words import duration, seen_in_words

if TYPE_CHECKING:
    from elfs_lib.embedding.neighbors import Neighbors
    from elfs_lib.params import Params
    from elfs_lib.stages.run import Run

VOTERS = 20  # neighbours that vote in the k-NN accuracy of a page
_ALIGNED = "TEMI, aligned mean of heads"  # the row of TEMI's own pseudo-labels


def run_time(store: Store, artifacts: Iterable[Artifact]) -> str:
    """How long the stages behind a page took when they were computed, those before them included.

    Args:
        store: Holds the artifacts and the inputs that they were made from.
        artifacts: What the page reads.
    """
    known = {artifact.key: artifact for artifact in store.artifacts()}
    needed: dict[str, Artifact] = {}
    waiting = list(artifacts)
    while waiting:
        artifact = waiting.pop()
        if artifact.key not in needed:
            needed[artifact.key] = artifact
            inputs = artifact.manifest["inputs"].values()
            waiting += [known[key] for key in inputs if key in known]
    made = pd.DataFrame(
        {"stage": a.stage.replace("_", " "), "seconds": a.manifest["wall_s"]}
        for a in sorted(needed.values(), key=lambda a: a.manifest["finished"])
    )
    devices = {a.manifest["device"] for a in needed.values() if "device" in a.manifest}
    by_stage = made.groupby("stage", sort=False)["seconds"].agg(["sum", "size"])
    longest = by_stage.sort_values("sum", ascending=False, kind="stable").head(3)
    parts = [
        f"{name} {row['sum']:.1f} s" + (f" ({row['size']:.0f} of them)" if row["size"] > 1 else "")
        for name, row in longest.iterrows()
    ]
    return (
        f"**Time from scratch:** {duration(made['seconds'].sum())} on "
        f"{', '.join(sorted(devices)) or 'cpu'}, most of it for {', '.join(parts)}. Stored "
        "stages are reused."
    )


def images(run: Run) -> str:
    """What the images of a run are."""
    channels, height, width = run.train_images.shape[1:]
    depth = {1: "grey", 3: "in colour"}.get(channels, f"of {channels} channels")
    return (
        f"`{run.params.dataset}`: {run.n:,} training images, {height} x {width} px, {depth}, "
        f"{run.classes} classes. {run.about['source']}"
    )


def encoder(facts: Mapping[str, object], dimensions: int) -> str:
    """What embedded the images; ``facts`` are :attr:`elfs_lib.stages.run.Run.encoder_facts`."""
    return (
        f"Encoder `{facts['encoder']}`, {dimensions:,} dimensions; pretraining: "
        f"{facts['pretraining']}; {seen_in_words(facts)}."
    )


def neighbors(found: Neighbors, labels: np.ndarray | None, classes: int) -> str:
    """Whether neighbours share a class: ``labels`` int [N], or None where there are none."""
    from elfs_lib.embedding.neighbors import (
        knn_accuracy,  # needs PyTorch, which other pages do not wait for
    )

    if labels is None:
        return "This dataset has no labels, so the quality of the neighbours cannot be measured."
    k = found.indices.shape[1]
    voters = min(VOTERS, k)
    purity = float((labels[found.indices] == labels[:, None]).mean())
    return (
        f"A vote of the {voters} nearest neighbours names "
        f"**{knn_accuracy(found, labels, k=voters):.1%}** of the images right, and "
        f"**{purity:.1%}** of all {k} neighbours share their image's class "
        f"(chance: {1 / classes:.1%})."
    )


def notes(found: Sequence[str]) -> str:
    """The notes of a consensus on its clusters, as a list."""
    return "\n".join(f"- {note}" for note in found) or "No cluster is empty or collapsed."


def pseudo_labels(
    quality: pd.DataFrame | None, *, heads: int, clusters: int, classes: int, own: str
) -> str:
    """How good pseudo-labels are, against k-means and other ways to average the heads.

    Args:
        quality: As :func:`elfs_lib.clustering.metrics.quality_table` returns it, with the rows
            "k-means" and "TEMI, ..." among others; None where there are no labels.
        heads: Number of heads.
        clusters: Clusters that were asked for.
        classes: Classes that the labels name.
        own: The row of the pseudo-labels that the run goes on from.
    """
    if quality is None:
        return "Without labels, only the loss and the sizes above can be judged."
    points = 100 * quality["accuracy"]
    aligned = points[_ALIGNED]
    text = (
        f"The aligned mean of {heads} heads names **{aligned:.1f}%** of the images right: "
        f"{aligned - points['k-means']:+.1f} points against k-means, "
        f"{aligned - points['TEMI, lowest-loss head']:+.1f} against the head of lowest loss, and "
        f"{aligned - points['TEMI, plain mean of heads']:+.1f} against averaging heads without "
        "aligning them."
    )
    if clusters > classes:
        text += (
            f" There are {clusters} clusters for {classes} classes, so several clusters may count "
            "as one class; such accuracies are higher than those of a one-to-one matching."
        )
    if own != _ALIGNED:
        text += (
            f" The run goes on from other pseudo-labels ({own}), of which **{points[own]:.1f}%** "
            f"are right ({points[own] - aligned:+.1f})."
        )
    return text


def dynamics(proxy: Artifact, aum: np.ndarray, groups: np.ndarray) -> str:
    """How the proxy learnt its images.

    Args:
        proxy: A stage of training dynamics.
        aum: float [N], the AUM of all images.
        groups: "hard", "middle" or "easy" for each of the watched images.
    """
    facts, margins = proxy.manifest, np.asarray(proxy.array("mean_margins"))
    last = np.asarray(proxy.array("curves"))[-1]
    ends = {name: last[groups == name].mean() for name in ("easy", "hard")}
    return (
        f"Over {len(margins)} epochs the mean margin went from {margins[0]:.2f} to "
        f"{margins[-1]:.2f}; at the end the watched easy third stands at {ends['easy']:.2f} and "
        f"the hard third at {ends['hard']:.2f}. {(aum < 0).mean():.1%} of the images have a "
        "negative AUM: on average the proxy preferred another class than their pseudo-label. "
        f"Training took {facts['train_flops'] / 1e12:.3g} TFLOP in {facts['train_s']:.0f} s, and "
        f"the dynamics {facts['bytes_per_image']:.0f} bytes an image."
    )


def shift(deciles: pd.DataFrame, spearman: float, gaps: np.ndarray, kept: float) -> str:
    """Whether pseudo-labels make a stratified sample take in more easy images.

    Args:
        deciles: As :func:`elfs_lib.results.shift.pseudo_label_error_by_decile` returns it.
        spearman: Rank correlation of the scores under pseudo-labels and under true labels.
        gaps: float [draws], share of easy images in CCS on pseudo-scores minus that in CCS on true
            scores, in [-1, 1], for each draw.
        kept: The same of double-end pruning minus CCS on pseudo-scores.
    """
    first, last = deciles["error"].iloc[0], deciles["error"].iloc[-1]
    gaps, draws = 100 * np.asarray(gaps), len(gaps)
    text = (
        f"In the hardest tenth {first:.0%} of the pseudo-labels are wrong, in the easiest "
        f"{last:.0%}. The two rankings agree with a Spearman correlation of {spearman:.2f}. "
        f"Averaged over the budgets, the share of easy images changes by {gaps.mean():+.1f} points "
        f"from CCS on true scores to CCS on pseudo-scores, and {100 * kept:+.1f} points from there "
        "to double-end pruning on pseudo-scores."
    )
    if draws > 1:
        half = stats.t.ppf((1 + CONFIDENCE) / 2, draws - 1) * gaps.std(ddof=1) / np.sqrt(draws)
        text += (
            f" The first is a mean over {draws} draws (95% interval {gaps.mean() - half:+.1f} to "
            f"{gaps.mean() + half:+.1f}). That pseudo-labels make a stratified sample take in more "
            "easy images, the paper's reason for dropping the easy end, was "
            + ("seen here as well." if gaps.mean() > half else "not seen here.")
        )
    return text


_SHIFT = re.compile(
    r"In the hardest tenth (?P<hardest>\d+)% of the pseudo-labels are wrong, in the easiest "
    r"(?P<easiest>\d+)%\..* Spearman correlation of (?P<spearman>[-.\dna]+)\. .* changes by "
    r"(?P<change>[-+.\d]+) points from .*pseudo-scores, and (?P<pruned>[-+.\d]+) points from there"
    r"(?:.*\(95% interval (?P<low>[-+.\d]+) to (?P<high>[-+.\d]+)\))?",
    re.DOTALL,
)
#: What :func:`read_shift` finds.
SHIFT_NUMBERS = tuple(_SHIFT.groupindex)


def read_shift(text: str) -> dict[str, float] | None:
    """The numbers in what :func:`shift` wrote, which is all that an executed page keeps of them.

    Returns:
        ``hardest`` and ``easiest``, wrong pseudo-labels in these tenths in percent; ``spearman``;
        ``change``, of the share of easy images, from CCS on true scores to CCS on pseudo-scores, in
        points, with ``low`` and ``high`` (NaN for one draw); ``pruned``, the same from there to
        double-end pruning. None if the text is another.
    """
    found = _SHIFT.search(text)
    if found is None:
        return None
    return {name: float(number or "nan") for name, number in found.groupdict().items()}


def searched_by(params: Params) -> str:
    """How the search trained what it compared, and for which final training its choice holds."""
    recipe, final = params.search_recipe or params.eval_recipe, params.eval_recipe
    network = "the network" if recipe == final else f"a stand-in for `{final}`, the network"
    return (
        f"The run did the same with `{recipe}`, {network} trained on the coreset, for "
        f"{params.search_steps:,} steps. A beta is for trainings like those that found it: a final "
        "model of another kind or length may need another."
    )


def double_end(
    coreset: Artifact, pseudo_labels: np.ndarray, classes: int, *, score: str, beta: float
) -> str:
    """What double-end pruning kept.

    Args:
        coreset: The list.
        pseudo_labels: int [N].
        classes: Number of pseudo-classes.
        score: The score that was sorted by.
        beta: The hard-prune ratio.
    """
    kept, n = coreset.table("coreset")["index"].to_numpy(), len(pseudo_labels)
    hard = coreset.json("info")["dropped_hard"]
    sizes = np.bincount(pseudo_labels[kept], minlength=classes)
    return (
        f"With the score `{score}` and a budget of {len(kept):,} of {n:,} images, the hard-prune "
        f"ratio is **{beta:g}**: {hard:,} images are dropped as too hard and "
        f"{n - hard - len(kept):,} as easy. The kept images span {(sizes > 0).sum()} of {classes} "
        f"pseudo-classes, between {sizes.min()} and {sizes.max()} images each. The list is the "
        f"table `coreset` of the artifact `coreset/{coreset.key}`; no label was opened to make it."
    )


def evaluation_lines(
    results: pd.DataFrame, paired: pd.DataFrame | None, supervised: Sequence[str]
) -> str:
    """ELFS against random at each budget, and the best of the methods that see labels.

    Args:
        results: A results table.
        paired: As :func:`elfs_lib.results.evaluation.paired_difference` returns it; None where the
            table does not hold both, and each method's mean is said instead.
        supervised: Methods that select with labels.
    """
    if paired is not None:
        lines = evaluation.verdicts(paired)
    else:
        lines = [
            f"{display_name(row.method)} reaches {row.mean:.1f}% at {percent(row.budget)}."
            for row in evaluation.summarise(results).itertuples()
        ]
    best = evaluation.best_supervised(results, supervised) if supervised else pd.DataFrame()
    lines += [
        f"The best at {percent(row.budget)} of {len(supervised)} that select with labels is "
        f"{display_name(row.method)} with {row.mean:.1f}%."
        for row in best.itertuples()
    ]
    return _listed(lines)


def trainings(results: pd.DataFrame, *, recipe: str, steps: int, epochs: int | None) -> str:
    """How many trainings stand behind a results table, and what they took."""
    length = f"{epochs} epochs" if epochs else f"{steps:,} steps"
    seeds = results["seed"].nunique()
    return (
        f"{len(results)} trainings of {length} with recipe `{recipe}`, "
        f"{results['train_flops'].sum() / 1e12:.3g} TFLOP and {results['seconds'].sum() / 60:.1f} "
        f"min in all, n = {seeds} seed{'s' if seeds > 1 else ''}."
    )


def comparison(results: pd.DataFrame, methods: Sequence[str], supervised: Sequence[str]) -> str:
    """Each method against random, and ELFS against each other label-free method."""
    pairs: Iterable[tuple[str, str]] = ()
    if "random" in methods:
        pairs = ((method, "random") for method in methods if method != "random")
    if "elfs" in methods:
        rivals = (m for m in methods if m not in (*supervised, "elfs", "random"))
        pairs = chain(pairs, (("elfs", rival) for rival in rivals))
    lines = [
        evaluation.count_verdicts(evaluation.paired_difference(results, *pair)) for pair in pairs
    ]
    return _listed(lines or ["Nothing to compare."])


def _listed(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)
