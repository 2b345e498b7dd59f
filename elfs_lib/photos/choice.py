"""A list of images to label, and what became of all the others."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from elfs_lib.artifacts import Artifact, Draft, package_versions, versions_in_words
from elfs_lib.data.duplicates import (
    ALIKE,
    ALIKE_COSINE,
    ALIKE_SIDE,
)
from elfs_lib.photos.request import ELFS, NEXT, OTHER_SEEDS, Request
from elfs_lib.photos.run import Photos
from elfs_lib.photos.trust import BARELY, Overlap, Searched, coverage_table, overlap, searched
from elfs_lib.results.evaluation import display_name
from elfs_lib.selection import METHODS, Method, SelectionInputs, easiness, select_by
from elfs_lib.selection.double_end import hard_prune_count
from elfs_lib.stages.run import Run

LEAST_ALIKE = 0.05  # share of images that are said to be least like their neighbours
#: What becomes of an image that is not on the list.
KINDS = {
    "too_hard": "too hard",
    "too_easy": "too easy",
    "not_chosen": "not chosen",
    "copy": "left out as a copy",
    "labelled": "labelled already",
}
LISTED_COLUMNS = ["rank", "path", "pseudo_class", "score", "confidence", "reason"]


@dataclass(frozen=True)
class Chooser:
    """What makes lists of any length out of a run.

    Attributes:
        photos: The images and their run.
        method: A label-free method of the registry.
        done: int64, rows that have a label: they and their copies are not listed.
        held: int64, rows that are kept for testing, likewise.
        total: Labels that there are and that are asked for: what beta is searched for.
    """

    photos: Photos
    method: str
    done: np.ndarray
    held: np.ndarray
    total: int

    @property
    def run(self) -> Run:
        return self.photos.run

    @property
    def entry(self) -> Method:
        return METHODS[self.method]

    @property
    def trains(self) -> bool:
        """Whether the method needs more than embeddings: then another seed repeats the training."""
        return not self.entry.needs <= {"embeddings", "neighbors"}

    @cached_property
    def beta(self) -> float | None:
        """The hard-prune ratio; None if the method has none."""
        return self.photos.hard_prune_ratio(self.total) if self.entry.takes_beta else None

    def search(self) -> None:
        """Search for beta, if the method has one and none is given."""
        if self.entry.takes_beta and self.run.params.hard_prune_ratio is None:
            self.photos.search(self.total)

    @cached_property
    def pool(self) -> np.ndarray:
        """int64 [P], one of each group of copies of which none has a label or is kept."""
        return self._open(np.concatenate([self.done, self.held]))

    def _open(self, closed: np.ndarray) -> np.ndarray:
        group = self.photos.copies.group
        first = group == np.arange(len(group))
        return np.flatnonzero(first & ~np.isin(group, group[closed]))

    def rows(self, count: int, *, seed: int | None = None, beta: float | None = None) -> np.ndarray:
        """A list, int64 [count] in rank order; shorter if there are not enough images.

        Args:
            count: Its length.
            seed: Of the method; None: the run's.
            beta: Of ``elfs``; None: the one that was searched.
        """
        group = self.photos.copies.group
        if self.method == ELFS:
            n, beta = len(group), self.beta if beta is None else beta
            beta = max(0.0, min(beta, 1 - (count + len(self.done)) / n))  # a longer list needs room
            return pick(self.photos.order, group, beta, count, self.done, self.held)
        found = self._ranked(count, self.run.params.seed if seed is None else seed)
        rows = np.asarray(found.array("indices"))
        return rows[~np.isin(group[rows], group[self.done])][:count]

    def scores(self, count: int) -> np.ndarray:
        """The method's own figure for each image of :meth:`rows`, float64 [count]."""
        found = self._ranked(count, self.run.params.seed)
        score_of = dict(zip(found.array("indices"), found.array("scores"), strict=True))
        return np.array([score_of[row] for row in self.rows(count)])

    def _ranked(self, count: int, seed: int) -> Artifact:
        """A list of a method of the registry: images that have a label are in it too, so that the
        others go on from there."""
        run, entry = self.run, self.entry
        pool = self._open(self.held)
        total = min(count + len(pool) - len(self.pool), len(pool))
        seed = seed if entry.seeded else 0
        options: dict[str, Any] = {}
        if entry.takes_beta:
            options["hard_prune_ratio"] = min(self.beta, 1 - total / len(pool))
        inputs = {"images": run.images}
        if entry.needs & {"embeddings", "neighbors"}:
            inputs["embeddings"] = run.embeddings
        if "pseudo_labels" in entry.needs:
            inputs["pseudo"] = run.pseudo
        if entry.needs & {"scores", "probabilities"}:
            inputs |= {f"proxy_{number}": proxy for number, proxy in enumerate(run.proxies)}

        def build(draft: Draft) -> None:
            chosen = select_by(self.method, self.inputs(pool), total, seed=seed, **options)
            draft.array("indices", pool[chosen.indices])
            draft.array("scores", chosen.scores)

        params = {"method": self.method, "count": total, "seed": seed, "options": options}
        params |= {"revision": entry.revision, "classes": run.params.classes}
        params |= {"pool": hashlib.sha256(pool.tobytes()).hexdigest()}
        if "neighbors" in entry.needs:
            params |= {name: getattr(run.params, name) for name in ("neighbors", "neighbor_search")}
        return run.store.run("list", build, version=1, params=params, inputs=inputs, seed=seed)

    def inputs(self, pool: np.ndarray) -> SelectionInputs:
        """What the method reads, of the images in the pool."""
        run, needs = self.run, self.entry.needs
        fields: dict[str, Any] = {}
        if needs & {"embeddings", "neighbors"}:
            fields["embeddings"] = np.asarray(run.embeddings.array("embeddings"))[pool]
        if "neighbors" in needs:
            from elfs_lib.embedding.neighbors import nearest_neighbors

            p = run.params
            found = nearest_neighbors(
                fields["embeddings"],
                min(p.neighbors, len(pool) - 1),
                method=p.neighbor_search,
                device=p.device,
            )
            fields |= {"neighbors": found.indices, "similarities": found.similarities}
        if "pseudo_labels" in needs:
            fields["pseudo_labels"] = run.pseudo_labels[pool]
        if "scores" in needs:
            table = run.scores.drop(columns="index")
            fields["scores"] = {name: table[name].to_numpy()[pool] for name in table}
        if "probabilities" in needs:
            several = [np.asarray(x.array("probabilities"))[pool] for x in run.proxies]
            fields["probabilities"] = np.mean(several, axis=0)
        return SelectionInputs(n=len(pool), classes=run.params.classes, **fields)


@dataclass(frozen=True)
class Choice:
    """A list of images to label, and what became of all the others.

    Attributes:
        request: What was asked for.
        chooser: What made the list.
        why: Why this method, in a sentence.
        listed: One row an image to label: ``LISTED_COLUMNS`` and ``index``, in rank order.
        held: The same for the images that are kept for testing, in random order.
        rest: One row an image that is on neither: index, path, kind (a key of ``KINDS``), reason,
            pseudo_class, score, confidence; of ELFS the hardest first, else the least like those
            on the list.
        files: One row a file with something to say: kind, path, meaning (of the kind), used, and
            same_as, the first file of the same bytes.
        notes: Sentences that a person should read.
    """

    request: Request
    chooser: Chooser
    why: str
    listed: pd.DataFrame
    held: pd.DataFrame
    rest: pd.DataFrame
    files: pd.DataFrame
    notes: tuple[str, ...]

    @property
    def photos(self) -> Photos:
        """All images, and their run."""
        return self.chooser.photos

    @property
    def run(self) -> Run:
        """The run that the list comes from."""
        return self.chooser.run

    @property
    def method(self) -> str:
        """The method that made the list, a name of the registry."""
        return self.chooser.method

    @property
    def hard_prune_ratio(self) -> float | None:
        """beta, the share of hardest images set aside; None for methods without."""
        return self.chooser.beta

    def summary(self) -> list[str]:
        """What was chosen and what was not, in sentences."""
        tally = self.rest["kind"].value_counts()
        others = [f"{tally[kind]:,} {title}" for kind, title in KINDS.items() if kind in tally]
        if len(self.held):
            others.append(f"{len(self.held):,} kept for testing")
        beta = self.hard_prune_ratio
        lines = [
            (
                f"{len(self.listed):,} of {len(self.run.paths):,} images to label; the others: "
                f"{', '.join(others) or 'none'}"
                + ("." if beta is None else f" (hard-prune ratio {beta:g}).")
            ),
            self.why,
        ]
        copies = self.photos.copies
        if copies.exact or copies.near:
            lines.append(
                f"Copies among all images: {copies.exact:,} with the pixels of another one, "
                f"{copies.near:,} more near {'copy' if copies.near == 1 else 'copies'}."
            )
        unused = self.files[~self.files["used"].astype(bool)]["kind"].value_counts()
        if len(unused):
            counts = (f"{count:,} {kind.replace('_', ' ')}" for kind, count in unused.items())
            lines.append(f"Files left out: {', '.join(counts)}.")
        return [*lines, *self.trust, *self.doubts, *self.notes]

    # --- how far to trust it

    @cached_property
    def seeds(self) -> Overlap | None:
        """What the list has in common with those of other seeds; None where these would repeat the
        training, or the method draws nothing."""
        if self.chooser.trains or not self.chooser.entry.seeded:
            return None
        count, seed = len(self.listed), self.request.seed
        others = [self.chooser.rows(count, seed=seed + 1 + k) for k in range(OTHER_SEEDS)]
        return overlap(self.listed["index"].to_numpy(), others, len(self.chooser.pool))

    @cached_property
    def search(self) -> Searched | None:
        """The search for beta; None if there was none."""
        if self.method != ELFS or self.run.params.hard_prune_ratio is not None:
            return None
        artifact = self.photos.search(self.chooser.total)
        found = artifact.json("search")
        held_out = max(1, round(0.1 * self.run.n))
        scores = np.asarray(artifact.array("scores"))
        return searched(found["ratios"], scores, found["best"], held_out)

    @cached_property
    def covered(self) -> pd.DataFrame:
        """What the list covers, at some of its lengths and with up to 100 images more, beside
        random lists: as :func:`elfs_lib.photos.trust.coverage_table`."""
        count, pool = len(self.listed), self.chooser.pool
        more = min(count + NEXT, len(pool))
        lengths = sorted({max(1, count // 4), max(1, count // 2), count, more})
        own = self.listed["index"].to_numpy()
        return coverage_table(
            np.asarray(self.run.embeddings.array("embeddings")),
            pool,
            lambda length: own[:length] if length <= count else self.chooser.rows(length),
            lengths,
            seed=self.request.seed,
        )

    def compare(self) -> None:
        """Make the lists that this one is compared with: of other budgets and other seeds."""
        _ = self.budgets, self.covered, self.seeds

    @property
    def trust(self) -> list[str]:
        """How much of the list another seed gives, and what it covers, in sentences."""
        lines, table = [], self.covered.set_index("images")
        if self.seeds:
            shares = " and ".join(f"{share:.0%}" for share in self.seeds.shares)
            lines.append(
                f"With {OTHER_SEEDS} other seeds {shares} of the list come back; of a random list "
                f"{self.seeds.chance:.0%} would."
            )
        elif self.chooser.trains:
            lines.append(
                "Not made again with other seeds, which would repeat the training: to see how much "
                "of the list comes back, use -p seed=1 with another --out."
            )
        else:
            lines.append("The method draws nothing: every seed gives this list.")
        row = table.loc[len(self.listed)]
        line = (
            f"The mean cosine of an image to the nearest on the list is {row['coverage']:.3f}; to "
            f"random lists of this length it is {row['random_low']:.3f} to "
            f"{row['random_high']:.3f}."
        )
        more = int(table.index[-1]) - len(self.listed)
        if more:
            line += f" With the next {more:,} images it would be {table['coverage'].iloc[-1]:.3f}."
        return [*lines, line]

    @property
    def doubts(self) -> list[str]:
        """Reasons not to rely on the list, in sentences; empty if none was found."""
        found, seeds, search = [], self.seeds, self.search
        if seeds and seeds.by_chance:
            found.append(
                "Lists of other seeds have no more in common with this one than random lists have: "
                "a random list would serve as well."
            )
        row = self.covered.set_index("images").loc[len(self.listed)]
        if not self.chooser.trains and row["coverage"] <= row["random_high"]:
            found.append("It covers no more than random lists: by that, one would serve as well.")
        if search and search.at_edge:
            end = "largest" if search.best == search.table["beta"].max() else "smallest"
            found.append(
                f"The best hard-prune ratio, {search.best:g}, is the {end} that was tried: the "
                "search did not close it in."
            )
        if search and search.alike:
            own = set(self.listed["index"])
            shares = [
                len(own & set(self.chooser.rows(len(own), beta=beta))) / len(own)
                for beta in search.alike
            ]
            found.append(
                f"The search cannot tell {', '.join(f'{beta:g}' for beta in search.alike)} from "
                f"the best hard-prune ratio, {search.best:g}: their accuracies differ by less than "
                f"two standard errors, and those lists have {min(shares):.0%} to {max(shares):.0%} "
                "in common with this one."
            )
        if self.request.cluster or self.chooser.trains:
            sure = float(self.run.pseudo.table("pseudo")["confidence"].median())
            if sure < BARELY:
                found.append(
                    f"The pseudo-labels are barely confident (median {sure:.2f}): what is built on "
                    "them is uncertain."
                )
        return found

    @property
    def cuts(self) -> np.ndarray:
        """float64 [C, 2]: scores (low is hard) of the hardest and the easiest listed image of each
        pseudo-class; NaN where none is listed."""
        ascending = easiness(self.run.scores, self.run.params.score)[self.listed["index"]]
        found = np.full((self.run.classes, 2), np.nan)
        for label in self.listed["pseudo_class"].unique():
            own = ascending[self.listed["pseudo_class"] == label]
            found[label] = own.min(), own.max()
        return found

    @cached_property
    def budgets(self) -> pd.DataFrame:
        """How the list changes with the budget, one row a budget: budget, hard_prune_ratio (of
        methods that have one), overlap (share of the shorter list that is on the longer one),
        classes (pseudo-classes on the list). Each budget has its own search of beta; the list's own
        is always there."""
        run, mine = self.run, set(self.listed["index"])
        others = run.params.budgets if self.request.compare else ()
        rows = []
        for count in sorted({*others, len(mine)}):
            total = count + len(self.chooser.done)
            if count > len(self.chooser.pool) or (self.method == ELFS and total > self.photos.room):
                continue
            chooser = replace(self.chooser, total=total)
            chosen = chooser.rows(count)
            rows.append(
                {
                    "budget": count,
                    "hard_prune_ratio": chooser.beta,
                    "overlap": len(mine & set(chosen)) / min(len(mine), count),
                    "classes": len(np.unique(run.pseudo_labels[chosen])),
                }
            )
        table = pd.DataFrame(rows)
        return table if self.chooser.entry.takes_beta else table.drop(columns="hard_prune_ratio")


def pick(
    ascending: np.ndarray,
    group: np.ndarray,
    hard_prune_ratio: float,
    count: int,
    done: np.ndarray | None = None,
    held: np.ndarray | None = None,
) -> np.ndarray:
    """Double-end pruning with at most one of each group of copies, and none that is done.

    The hardest beta N images are set aside, and the list takes the next ones in order; a copy of
    one already taken is passed over, so the list reaches further towards the easy end. Only
    where that end is too short the hard images nearest to the cut fill it up, at its end.

    Args:
        ascending: float [N], low is hard.
        group: int64 [N], equal for copies.
        hard_prune_ratio: beta in [0, 1).
        count: Length of the list.
        done: int64, images whose groups are already labelled.
        held: int64, images whose groups are kept for testing.

    Returns:
        int64 [count], in rank order; shorter if there are not enough groups.
    """
    done = np.empty(0, np.int64) if done is None else done
    closed = done if held is None else np.concatenate([done, held])
    order = np.argsort(ascending, kind="stable")
    cut = hard_prune_count(len(order), hard_prune_ratio, count + len(done))
    walk = np.concatenate([order[cut:], order[:cut][::-1]])
    walk = walk[~np.isin(group[walk], group[closed])]
    _, first = np.unique(group[walk], return_index=True)
    return walk[np.sort(first)][:count]


def facts(choice: Choice) -> list[str]:
    """How a list was made, in sentences: what was asked for, and each threshold in force."""
    run, request = choice.run, choice.request
    p, copies = run.params, choice.photos.copies
    encoder = run.encoder_facts
    seen = {True: "with labels", False: "without labels", None: "labels unknown"}
    near = f"cosine similarity of embeddings of {copies.cosine:g} or more"
    if p.encoder != "pixels":
        near += (
            f", or up to {ALIKE_COSINE:g} less and brightness at {ALIKE_SIDE} pixels correlated by "
            f"{ALIKE:g} or more,"
        )
    given = "estimated" if request.classes == "auto" else "given"
    changed = ", ".join(f"{name}={value}" for name, value in request.overrides.items())
    versions = versions_in_words(package_versions())
    return [
        f"{len(run.paths):,} images, each cut to the square in its middle and stored at "
        f"{run.train_images.shape[-1]} pixels, {run.classes} classes ({given}), "
        f"{len(choice.listed):,} images asked for, seed {request.seed}"
        + (f", {changed}." if changed else "."),
        (
            f"Encoder {p.encoder}: {encoder['pretraining']} ({seen[encoder['saw_labels']]}); "
            f"licence of the weights: {encoder['license']}. It is shown squares of "
            f"{choice.photos.shown_at}."
        ),
        (
            f"Near copies: {near} among the {p.neighbors} nearest neighbours; {copies.exact:,} "
            f"with the pixels of another one, {copies.near:,} more near copies."
        ),
        (
            f"Least like their neighbours: the {LEAST_ALIKE:.0%} of the images with the lowest "
            "mean similarity to them; there are as many of them in any folder."
        ),
        *_made_by(choice),
        f"Versions: {versions}.",
    ]


def _made_by(choice: Choice) -> list[str]:
    """What was trained for a list, in sentences."""
    p, entry = choice.run.params, choice.chooser.entry
    lines = [f"{display_name(entry.name)}: {entry.summary}; {entry.polarity}."]
    if choice.run.clustering == "temi" and (choice.request.cluster or choice.chooser.trains):
        lines.append(f"TEMI: {p.temi_heads} heads, {p.temi_epochs} epochs.")
    if entry.needs & {"scores", "probabilities"}:
        lines.append(f"Proxy {p.proxy_recipe}: {p.proxy_epochs} epochs.")
    if entry.takes_beta:
        lines.append(f"Search: {p.search_steps} steps a model.")
    return lines
