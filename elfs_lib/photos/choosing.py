"""Own images: from a folder without labels to the list of images to label.

Choosing sees no label: class folders are folders like any other, and of labels already given it
sees only which images have one. :mod:`elfs_lib.photos.labels` is the way back, from labels to a
model.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from elfs_lib.artifacts import Artifact, Draft, Store, package_versions
from elfs_lib.clustering.class_count import ClassEstimate, estimate_classes
from elfs_lib.data import datasets
from elfs_lib.data.decoding import (
    KEPT,
    LEFT_OUT,
    decode_images,
    read_ahead,
    read_file,
    readable_formats,
)
from elfs_lib.data.duplicates import (
    ALIKE,
    ALIKE_COSINE,
    ALIKE_SIDE,
    Copies,
    default_cosine,
    find_copies,
)
from elfs_lib.data.readers import merge_reports
from elfs_lib.embedding import embedding_file, encoders
from elfs_lib.embedding.embedding_file import PRECOMPUTED
from elfs_lib.embedding.rows import unit_rows
from elfs_lib.errors import ElfsError, choose, is_whole
from elfs_lib.params import Params
from elfs_lib.photos.image_sources import Source, read_source
from elfs_lib.photos.trust import BARELY, Overlap, Searched, coverage_table, overlap, searched
from elfs_lib.progress import track
from elfs_lib.results.evaluation import display_name
from elfs_lib.results.low_budget import ADVICE, AS_RANDOM
from elfs_lib.selection import METHODS, Method, SelectionInputs, budget_count, easiness
from elfs_lib.selection import select as select_by
from elfs_lib.selection.by_class import class_quantile
from elfs_lib.selection.double_end import hard_prune_count
from elfs_lib.stages.embedding import (
    embedding_options,
    embeddings,
    embeddings_key,
    write_embeddings,
)
from elfs_lib.stages.graph import Given, Stage, given_stage, stage
from elfs_lib.stages.run import Run

FEWEST = 10  # images below which there is nothing to choose
LEAST_ALIKE = 0.05  # share of images that are said to be least like their neighbours
BUDGETS = (200, 500, 1000)  # what the report compares the list with
#: What becomes of an image that is not on the list.
KINDS = {
    "too_hard": "too hard",
    "too_easy": "too easy",
    "not_chosen": "not chosen",
    "copy": "left out as a copy",
    "labelled": "labelled already",
}
COLUMNS = ["rank", "path", "pseudo_class", "score", "confidence", "reason"]
AUTO, ELFS = "auto", "elfs"  # the method by labels a class; double-end pruning
OTHER_SEEDS = 2  # lists made with other seeds, to see how much comes back
NEXT = 100  # labels more: what they would add is said
ENCODER_SIDE = 224  # what nearly every pretrained encoder was trained at
_CHUNK = 512  # files decoded at a time for the encoder: 77 MB at 224 pixels
_SAMPLE = 256  # files whose headers say how large the images are
_KINDS = ("csv", "rest.csv", "tasks.json", "html", "labels.csv", "predictions.csv", "run.json")
_KINDS += ("holdout.csv", "holdout.tasks.json")
_LIST_SUFFIXES = (*_KINDS, *(f"next.{kind}" for kind in _KINDS))  # of a list's files
_SET_HERE = {"dataset", "data_path", "classes", "budget"}


def profile(n: int, dimensions: int) -> dict[str, Any]:
    """Parameters that finish in minutes on a CPU, by the number of images.

    Args:
        n: Number of images.
        dimensions: Of the embeddings.
    """
    small, medium = n < 3_000, n < 20_000
    return {
        "neighbors": min(50, max(5, n // 40), n - 1),
        "temi_heads": 8 if small else 16,
        "temi_epochs": 100 if small else 60 if medium else 40,
        "temi_batch": 256 if small else 512 if medium else 1024,
        "temi_learning_rate": 1e-3,
        "temi_warmup_epochs": 5,
        "temi_teacher_momentum": 0.99,
        "temi_hidden": 256 if small else 512,
        "temi_bottleneck": 128 if small else 256,
        "temi_pca": 64 if dimensions > 128 and n > 128 else None,
        "temi_loss_epochs": 5,
        "proxy_recipe": "speedrun_tiny" if small else "speedrun_small",
        "proxy_epochs": 20 if small else 12 if medium else 8,
        "hard_prune_ratios": (0.0, 0.2, 0.4, 0.6, 0.8),
        "search_steps": 60 if small else 100,
        "eval_recipe": "speedrun_tiny" if small else "speedrun_small",
        "eval_steps": 200,
    }


@dataclass(frozen=True)
class OwnRun(Run):
    """A run over a folder of images, or over images in memory, without any label.

    Attributes:
        pixels: Images in memory; None for a folder.
        cosine: As in :class:`Request`.
        balanced: Likewise.
    """

    pixels: Source | None = field(default=None, repr=False, compare=False)
    cosine: float | None = None
    balanced: bool = True

    def stage(self, name: str) -> Stage:
        found = super().stage(name)
        if found in self.brought:
            return found
        if name == "images" and self.pixels is not None:
            return _images_in_memory(self.pixels)
        return PHOTO_EMBEDDINGS if name == "embeddings" else found

    def with_scores(self, scores: np.ndarray) -> OwnRun:
        """This run with a score of each image that somebody brings, float64 [N], low is hard, in
        place of the proxy's."""
        table = pd.DataFrame({"index": np.arange(len(scores)), self.params.score: scores})
        run = self._with("proxy", "given", lambda draft: draft.table("scores", table), scores)
        *others, own = run.brought
        alone = replace(own, inputs=lambda run, **_: {})  # a proxy has a seed, and this has none
        return replace(run, brought=(*others, alone))

    def check(self, *, labels: bool = False) -> None:
        if self.pixels is None:  # an array was checked when it came in
            super().check(labels=False)

    @property
    def paths(self) -> list[str]:
        """Path of each image relative to the folder; for an array its row."""
        return self.about["paths"]

    @property
    def shown_at(self) -> str:
        """The size in which each encoder is given the images, before its own resizing."""
        stored = self.train_images.shape[-1]
        sides = [_view(p.params, self.paths, stored) or stored for p in self.encoder_runs]
        return " and ".join(f"{side} pixels" for side in sides)

    @cached_property
    def copies(self) -> Copies:
        """Groups of copies among the images."""
        return find_copies(
            self.train_images,
            self.neighbors.array("indices"),
            self.neighbors.array("similarities"),
            cosine=default_cosine(self.params.encoder) if self.cosine is None else self.cosine,
            look=self.params.encoder != "pixels" and not (self.pixels and self.pixels.stand_in),
        )

    @property
    def least_hard(self) -> float:
        """The least beta that may be taken: the given one, or the lowest of the grid."""
        given = self.params.hard_prune_ratio
        return min(self.params.hard_prune_ratios) if given is None else given

    @property
    def room(self) -> int:
        """How many images can be listed and labelled together, the hardest being set aside."""
        return self.n - hard_prune_count(self.n, self.least_hard, 0)

    @cached_property
    def order(self) -> np.ndarray:
        """float64 [N], what the list is ordered by, low is hard: the score, or where it stands
        inside its pseudo-class (a quantile) if the list is balanced."""
        ascending = easiness(self.scores, self.params.score)
        return class_quantile(ascending, self.pseudo_labels) if self.balanced else ascending

    def hard_prune_ratio(self, budget: float | int) -> float:
        """As for any run, but the search prunes in the order of the list."""
        given = self.params.hard_prune_ratio
        if given is not None:
            return given
        return float(self.search(budget, balanced=self.balanced).json("search")["best"])

    @cached_property
    def class_estimate(self) -> ClassEstimate:
        """How many classes the embeddings suggest."""
        found = self.artifact(class_count)
        return ClassEstimate(
            **found.json("estimate"),
            grid=np.asarray(found.array("grid")),
            silhouettes=np.asarray(found.array("silhouettes")),
        )


@stage(
    title="number of classes",
    inputs=["embeddings"],
    reads=["seed"],
    version=2,
)
def class_count(given: Given, draft: Draft) -> None:
    """How many classes the embeddings suggest: arrays ``grid`` and ``silhouettes``, json
    ``estimate``, as :class:`elfs_lib.clustering.class_count.ClassEstimate` has them."""
    points = np.asarray(given.array("embeddings", "embeddings"))
    found = estimate_classes(points, seed=given.params.seed)
    draft.array("grid", found.grid)
    draft.array("silhouettes", found.silhouettes)
    names = ("classes", "low", "high", "subset")
    draft.json("estimate", {name: getattr(found, name) for name in names})


def _images_in_memory(source: Source) -> Stage:
    pixels = source.pixels
    paths = source.paths or [str(row) for row in range(len(pixels))]

    def build(draft: Draft) -> None:
        draft.array("train", pixels)
        about = {"class_names": None, "num_classes": None, "paths": paths}
        draft.json("about", about | {"report": {}, "left_out": {}, "source": "an array"})

    digest = hashlib.sha256(pixels).hexdigest()
    keyed = {"dataset": "array", "shape": list(pixels.shape), "source": digest}
    if source.paths:
        keyed["paths"] = paths
    return given_stage("images", build, "images", keyed)


def _photo_view(given: Given) -> int | None:
    paths = given.inputs["images"].json("about")["paths"]
    return _view(given.params, paths, given.array("images", "train").shape[-1])


def _photo_key(given: Given) -> dict[str, Any]:
    side = _photo_view(given)
    return embeddings_key(given) | ({} if side is None else {"view": side})


def _photo_embeddings(given: Given, draft: Draft) -> None:
    """As for any run, but photos are read again at the encoder's own size: the small squares that
    networks are trained on here have lost most of what a pretrained encoder can see."""
    side = _photo_view(given)
    if side is None:
        embeddings.build(given, draft)
        return

    def work() -> np.ndarray:
        from elfs_lib.embedding.embed import frozen_embedder

        options = embedding_options(given)
        embed = frozen_embedder(given.params.encoder, (side, side), **options)
        paths = given.inputs["images"].json("about")["paths"]
        photos = _read_again(Path(given.params.data_path), paths, side)
        return np.concatenate([embed(images) for images in read_ahead(photos)])

    write_embeddings(given, draft, work)


PHOTO_EMBEDDINGS = replace(
    embeddings,
    build=_photo_embeddings,
    reads=embeddings.reads | {"data_path"},
    key=_photo_key,
)


def _read_again(root: Path, paths: list[str], side: int) -> Iterator[np.ndarray]:
    """The files as squares of a side, uint8 [at most _CHUNK, C, side, side] at a time."""
    for start in track(range(0, len(paths), _CHUNK), "Reading photos"):
        part = paths[start : start + _CHUNK]
        decoded = decode_images(
            ((path, root / path) for path in part),
            len(part),
            image_size=side,
            read=read_file,
            desc="reading",
        )
        if len(decoded.names) < len(part):
            gone = min(set(part) - set(decoded.names))
            raise ElfsError(f"{root / gone} changed while it was read: start again.")
        yield decoded.images


def _view(params: Params, paths: list[str], stored: int) -> int | None:
    """Side in pixels at which the files are read again for the encoder; None: not at all.

    Args:
        stored: Side of the images as they are stored.
    """
    small = params.encoder in ("pixels", PRECOMPUTED) or encoders.trains_here(params.encoder)
    if params.data_path is None or small or "+" in params.encoder:  # of several each has its own
        return None
    step, root = max(1, len(paths) // _SAMPLE), Path(params.data_path)
    sides = list(_short_sides(root / path for path in paths[::step]))
    side = min(params.encoder_size or ENCODER_SIDE, int(np.median(sides)) if sides else 0)
    return side if side > stored else None


@dataclass(frozen=True, eq=False)
class Brought:
    """What takes the place of steps, in the order of the images.

    Attributes:
        embeddings: float [N, D].
        pseudo_labels: int [N] in 0..C-1.
        scores: float [N], low is hard.
    """

    embeddings: np.ndarray | None = None
    pseudo_labels: np.ndarray | None = None
    scores: np.ndarray | None = None


NOTHING = Brought()


@dataclass(frozen=True)
class Request:
    """What is asked for; the record next to a list holds one.

    Attributes:
        classes: Number of classes, or "auto" to estimate it.
        budget: Images to label: a count, or a share in (0, 1] of all.
        seed: Same seed, same list.
        cosine: Similarity from which images are near copies; None: by the encoder.
        balanced: Whether each pseudo-class is pruned at its own two ends, and so has its share.
        overrides: Parameters that win over the profile.
        done: Paths of images that are labelled already.
        compare: Whether lists of other budgets are made too, to see what they would change.
        method: A label-free method of the registry, ``elfs`` for double-end pruning as
            ``balanced`` says; or "auto": by labels a class
            (:data:`elfs_lib.results.low_budget.ADVICE`).
        holdout: Images drawn at random to be labelled for testing; they are never listed.
        held: Paths of those that were drawn already.
        names: A name of each pseudo-class, to suggest as its images' label; empty for none.
        cluster: Whether pseudo-classes are made though the method needs none.
        settled: What "auto" came to when the list was made; the same list keeps it.
    """

    classes: int | str
    budget: float | int
    seed: int = 0
    cosine: float | None = None
    balanced: bool = True
    overrides: Mapping[str, Any] = field(default_factory=dict)
    done: tuple[str, ...] = ()
    compare: bool = True
    method: str = ELFS
    holdout: int = 0
    held: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    cluster: bool = True
    settled: str = ""


@dataclass(frozen=True)
class Chooser:
    """What makes lists of any length out of a run.

    Attributes:
        run: The run.
        method: A label-free method of the registry.
        done: int64, rows that have a label: they and their copies are not listed.
        held: int64, rows that are kept for testing, likewise.
        total: Labels that there are and that are asked for: what beta is searched for.
    """

    run: OwnRun
    method: str
    done: np.ndarray
    held: np.ndarray
    total: int

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
        return self.run.hard_prune_ratio(self.total) if self.entry.takes_beta else None

    @cached_property
    def pool(self) -> np.ndarray:
        """int64 [P], one of each group of copies of which none has a label or is kept."""
        return self._open(np.concatenate([self.done, self.held]))

    def _open(self, closed: np.ndarray) -> np.ndarray:
        group = self.run.copies.group
        first = group == np.arange(len(group))
        return np.flatnonzero(first & ~np.isin(group, group[closed]))

    def rows(self, count: int, *, seed: int | None = None, beta: float | None = None) -> np.ndarray:
        """A list, int64 [count] in rank order; shorter if there are not enough images.

        Args:
            count: Its length.
            seed: Of the method; None: the run's.
            beta: Of ``elfs``; None: the one that was searched.
        """
        group = self.run.copies.group
        if self.method == ELFS:
            n, beta = len(group), self.beta if beta is None else beta
            beta = max(0.0, min(beta, 1 - (count + len(self.done)) / n))  # a longer list needs room
            return pick(self.run.order, group, beta, count, self.done, self.held)
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
            chosen = select_by(self.method, self._inputs(pool), total, seed=seed, **options)
            draft.array("indices", pool[chosen.indices])
            draft.array("scores", chosen.scores)

        params = {"method": self.method, "count": total, "seed": seed, "options": options}
        params |= {"revision": entry.revision, "classes": run.params.classes}
        params |= {"pool": hashlib.sha256(pool.tobytes()).hexdigest()}
        if "neighbors" in entry.needs:
            params |= {name: getattr(run.params, name) for name in ("neighbors", "neighbor_search")}
        return run.store.run("list", build, version=1, params=params, inputs=inputs, seed=seed)

    def _inputs(self, pool: np.ndarray) -> SelectionInputs:
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
        run: The run it comes from.
        request: What was asked for.
        chooser: What made the list.
        why: Why by this method, in a sentence.
        listed: One row an image to label: ``COLUMNS`` and ``index``, in rank order.
        held: The same for the images that are kept for testing, in random order.
        rest: One row an image that is on neither: index, path, kind (a key of ``KINDS``), reason,
            pseudo_class, score, confidence; of ELFS the hardest first, else the least like those
            on the list.
        files: One row a file with something to say: kind, path, meaning (of the kind), used, and
            same_as, the first file of the same bytes.
        notes: Sentences that a person should read.
    """

    run: OwnRun
    request: Request
    chooser: Chooser
    why: str
    listed: pd.DataFrame
    held: pd.DataFrame
    rest: pd.DataFrame
    files: pd.DataFrame
    notes: tuple[str, ...]

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
        copies = self.run.copies
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
        artifact = self.run.search(self.chooser.total, None, self.run.balanced)
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
                f"The search does not tell {', '.join(f'{beta:g}' for beta in search.alike)} from "
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
            if count > len(self.chooser.pool) or (self.method == ELFS and total > run.room):
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


# --- choosing ------------------------------------------------------------------------------------


def select(
    images: Any = None,
    *,
    embeddings: np.ndarray | None = None,
    pseudo_labels: np.ndarray | None = None,
    scores: np.ndarray | None = None,
    hard: str = "low",
    classes: int | str = "auto",
    budget: float | int,
    seed: int = 0,
    cosine: float | None = None,
    balanced: bool = True,
    method: str = AUTO,
    artifacts: str | Path | None = None,
    **overrides: Any,
) -> pd.DataFrame:
    """Choose which images to label, without any label. Steps whose result is given are skipped.

    Args:
        images: A directory of image files; a list of files; an array or a torch tensor [N, C, H, W]
            or [N, H, W, C] with C = 1 or 3, or [N, H, W], uint8 or floats in [0, 1]; or a dataset
            of torchvision or Hugging Face, whose labels are not kept. None with ``embeddings`` and
            a method that trains on no images.
        embeddings: float [N, D], in place of an encoder's; rows in the order of the images. For a
            directory, which has no order, see the parameter ``embeddings_path``.
        pseudo_labels: int [N] in 0..C-1, in place of clusters. No true label may have a part in
            them; nothing here can check that.
        scores: float [N], in place of the proxy's training.
        hard: Which end of ``scores`` is hard: "low" or "high".
        classes: Number of classes, at least 2, or "auto": those of ``pseudo_labels``, or else an
            estimate.
        budget: Images to label: a count, or a share in (0, 1].
        seed: Same seed, same list.
        cosine: Similarity of embeddings from which two images are near copies, of which at most
            one is listed; None: 0.95, or 0.998 for the encoder ``pixels``.
        balanced: Whether each pseudo-class is pruned at its own two ends, and so has its share of
            the list at every length; False prunes all images in one order, as the paper does.
        method: A label-free method of ``elfs methods``, or "auto": by labels a class.
        artifacts: Folder that keeps the work of the stages, so that another call goes on from
            there; None: a temporary one.
        overrides: Parameters of :class:`elfs_lib.params.Params`, such as ``encoder``, ``flip``,
            ``device`` or ``image_size``. The defaults are EfficientNet-Lite0 and a
            :func:`profile` for CPUs.

    Returns:
        One row an image, the one to label first at the top: rank, index (row of the array; a
        directory is read in an order of its own), path (relative to the directory, or as it was
        given; else the row as text), pseudo_class, score (the method's; of ELFS AUM: low is hard),
        confidence (of the pseudo-class, in [0, 1]), reason. Without ``images``, and where the
        method needs none, there are no pseudo-classes. ``attrs`` holds hard_prune_ratio, the number
        of classes, method, why, the search for beta as a list of rows (beta, accuracy, error,
        alike), and versions.

    Raises:
        ElfsError: one sentence, if the images or parameters do not allow such a list.

    Example:
        Twenty of 400 small digits, at settings that take seconds:

        >>> import elfs_lib
        >>> from sklearn.datasets import load_digits
        >>> digits = (load_digits().images[:400, None] * 15.9375).astype("uint8")
        >>> to_label = elfs_lib.select(
        ...     digits, classes=10, budget=20, method="elfs", encoder="pixels", flip=False,
        ...     crop_pad=1, temi_heads=2, temi_epochs=10, proxy_epochs=3, search_steps=5,
        ... )
        >>> to_label.shape
        (20, 7)
        >>> list(to_label["rank"][:3])
        [1, 2, 3]
        >>> int(to_label["index"].nunique())
        20

        From embeddings alone, by a method that trains nothing:

        >>> embeddings = load_digits().data[:400]
        >>> few = elfs_lib.select(embeddings=embeddings, budget=5, method="typiclust")
        >>> list(few.columns)
        ['rank', 'index', 'path', 'score', 'reason']
        >>> few.attrs["method"]
        'typiclust'
    """
    if scores is not None:
        choose("hard end", hard, ("low", "high"))
        scores = np.asarray(scores, np.float64)
        if scores.ndim != 1 or not np.isfinite(scores).all():
            raise ElfsError("scores must be one finite number for each image.")
    ascending = scores if scores is None or hard == "low" else -scores
    if images is None:
        if embeddings is None:
            raise ElfsError("There are neither images nor embeddings: give one of them, or both.")
        images = _stand_in(embeddings)
    if method == AUTO and scores is not None:
        method = ELFS
    cluster = pseudo_labels is not None or not (isinstance(images, Source) and images.stand_in)
    request = Request(
        classes,
        budget,
        seed,
        cosine,
        balanced,
        overrides,
        compare=False,
        method=method,
        cluster=cluster,
    )
    brought = Brought(embeddings, pseudo_labels, ascending)
    with tempfile.TemporaryDirectory(prefix="elfs-") as temporary:
        choice = choose_images(images, request, Store(artifacts or temporary), brought=brought)
        frame = choice.listed.copy()
        searched = choice.search
    if scores is not None and choice.method == ELFS:
        frame["score"] = scores[frame["index"]]  # as it was given
    frame.attrs = {
        "hard_prune_ratio": choice.hard_prune_ratio,
        "classes": choice.run.params.classes,
        "method": choice.method,
        "why": choice.why,
        "search": searched.table.to_dict("records") if searched else [],
        "versions": dict(package_versions()),
    }
    return frame


def _stand_in(embeddings: np.ndarray) -> Source:
    """Something in the place of images that nobody has: equal where the embeddings are equal."""
    rows = unit_rows(embeddings)
    digests = b"".join(hashlib.sha256(row).digest() for row in rows)
    return Source(np.frombuffer(digests, np.uint8).reshape(len(rows), 1, 4, 8), stand_in=True)


def choose_images(
    source: Any,
    request: Request,
    store: Store,
    *,
    brought: Brought = NOTHING,
    say: Callable[[str], None] = lambda text: None,
) -> Choice:
    """Run every stage and choose; arguments as in :func:`select`.

    Args:
        brought: What takes the place of steps.
        say: Called with a line of progress before each stage.

    Raises:
        ElfsError: one sentence, before any long work where that can be known.
    """
    run = open_run(source, request, store, brought=brought, say=say)
    n, request = run.n, _of_these(request, run.paths)
    say("[3/7] neighbours and copies")
    different = run.copies.different
    if different == 1:
        raise ElfsError(
            f"The {n:,} images are all alike (near copies of one): there is nothing to choose "
            "between, so label one of them."
        )
    estimate, classes = None, request.classes
    # a method by name that reads no clusters needs no number of them
    needless = request.method != AUTO and not request.cluster
    needless = needless and METHODS[request.method].needs <= {"embeddings", "neighbors"}
    if classes == "auto" and brought.pseudo_labels is not None:
        classes = max(2, int(np.max(brought.pseudo_labels)) + 1)
    elif classes == "auto" and not needless:
        say("[4/7] counting classes")
        estimate = run.class_estimate
        classes = estimate.classes
    least = 2 if classes == "auto" else int(classes)
    count = _check_counts(n, different, replace(request, classes=least), estimate)
    classes = None if classes == "auto" else least
    request = _hold_out(run, request)
    done, held = (_rows_of(paths, run.paths) for paths in (request.done, request.held))
    closed = np.concatenate([done, held])
    left = different - len(np.unique(run.copies.group[closed]))
    _check_left(count, left, different, "different images")
    total = count + len(done)
    if request.names and len(request.names) != classes:
        raise ElfsError(
            f"There are {len(request.names)} names for {classes} pseudo-classes: give one for "
            "each, in the order of their numbers, or none."
        )
    method, why = _method(request, total, classes)
    request = replace(request, settled=method)
    budgets = _comparable(request, classes or 1, n, different, total)
    wanted = {"classes": classes, "budget": total, "budgets": budgets}
    run = replace(run, params=Params.make({**run.params.model_dump(), **wanted}))
    run.check()
    if brought.pseudo_labels is not None:
        run = run.with_pseudo_labels(np.asarray(brought.pseudo_labels), "given")
    if brought.scores is not None:
        if len(brought.scores) != n:
            raise ElfsError(f"There are {len(brought.scores):,} scores for {n:,} images.")
        run = run.with_scores(brought.scores)
    chooser = Chooser(run, method, done, held, total)
    _check_trainable(chooser, brought)
    if request.cluster or chooser.trains:
        say(f"[4/7] clustering into {classes} pseudo-classes ({run.clustering})")
        run.ensure("pseudo")
    if chooser.entry.needs & {"scores", "probabilities"}:
        say("[5/7] proxy training on the pseudo-labels")
        run.ensure("proxy")
    if chooser.entry.takes_beta:
        say("[6/7] searching how many of the hardest to leave out")
        chooser.beta  # noqa: B018
    say("[7/7] comparing lists" if request.compare else "[7/7] choosing")
    choice = _choice(chooser, request, why, count)
    if request.compare:
        choice.budgets, choice.trust  # noqa: B018
    return choice


def _check_trainable(chooser: Chooser, brought: Brought) -> None:
    """Refuse to train where there are embeddings and no images."""
    run, needs = chooser.run, chooser.entry.needs
    proxy = "probabilities" in needs or ("scores" in needs and brought.scores is None)
    search = chooser.entry.takes_beta and run.params.hard_prune_ratio is None
    if run.pixels and run.pixels.stand_in and (proxy or search):
        what = "trains on the images" if proxy else "searches its beta by training on the images"
        instead = "scores=" if proxy else "hard_prune_ratio="
        raise ElfsError(
            f"Method {chooser.method} {what}: give images= beside the embeddings, or {instead}, or "
            "another method."
        )


def _method(request: Request, total: int, classes: int) -> tuple[str, str]:
    """The method that is asked for, or advised, and why in a sentence."""
    if request.method != AUTO:
        return request.method, f"Method {request.method}, as asked for."
    if request.overrides.get("hard_prune_ratio") is not None:
        return ELFS, f"Method {ELFS}, since a hard-prune ratio was given."
    each = total / classes
    method = [method for start, method in ADVICE if start <= each][-1]
    if request.settled not in ("", method):  # the advice has changed since
        return request.settled, f"Method {request.settled}, as advised when the list was made."
    why = (
        f'Method {method}, which the book\'s page "Which method for which budget" advises at '
        f"{each:.3g} labels a class."
    )
    if AS_RANDOM <= each < ADVICE[-1][0]:
        why += (
            " At so many none was told from a random list there: one would serve as well, and be "
            "an unbiased sample to test on too."
        )
    return method, why


def _hold_out(run: OwnRun, request: Request) -> Request:
    """Draw what is missing of the images that are kept for testing: uniformly among the different
    images of which none has a label."""
    known = set(run.paths)
    held = tuple(path for path in request.held if path in known)
    done = tuple(path for path in request.done if path not in set(held))
    group = run.copies.group
    closed = np.isin(group, group[_rows_of((*held, *done), run.paths)])
    missing = max(0, request.holdout - len(held))
    draw = np.random.default_rng([request.seed, 1]).permutation(len(group))
    free = [row for row in draw if not closed[row]]
    _, first = np.unique(group[free], return_index=True)
    fresh = [free[place] for place in np.sort(first)][:missing]
    if len(fresh) < missing:
        raise ElfsError(
            f"holdout is {request.holdout:,} and there are only {len(fresh) + len(held):,} "
            "different images without a label: ask for fewer."
        )
    held += tuple(run.paths[row] for row in fresh)
    return replace(request, done=done, held=held, holdout=len(held))


def open_run(
    source: Any,
    request: Request,
    store: Store,
    *,
    brought: Brought = NOTHING,
    say: Callable[[str], None] = lambda text: None,
) -> OwnRun:
    """Read and embed the images, and set every parameter but the classes and the budget."""
    run = read_images(source, request, store, brought=brought, say=say)
    n = run.n
    say(f"[2/7] embedding {n:,} images with {run.params.encoder}")
    dimensions = run.embeddings.array("embeddings").shape[1]
    crop = {"crop_pad": min(4, min(run.train_images.shape[-2:]) // 8)}
    given = run.params.model_dump(include=run.params.model_fields_set)
    return replace(run, params=Params.make(profile(n, dimensions) | crop | given))


def read_images(
    source: Any,
    request: Request,
    store: Store,
    *,
    brought: Brought = NOTHING,
    say: Callable[[str], None] = lambda text: None,
) -> OwnRun:
    """The run whose images are read, and nothing else done."""
    _check_request(request)
    pixels, path = _source(source, request)
    if brought.embeddings is not None and pixels is None:
        raise ElfsError(
            "embeddings= cannot be matched with a directory, which has no order: give a list of "
            "files, or encoder='precomputed' and embeddings_path, a file with their paths."
        )
    # Budgets are set when the images are known; their defaults must not stand in the way of a beta
    # that was given.
    encoder = "efficientnet_lite0" if brought.embeddings is None else PRECOMPUTED
    given = {"encoder": encoder, "budgets": (1,), **request.overrides}
    given |= {"dataset": "image_folder", "data_path": path, "seed": request.seed, "budget": 1}
    run = OwnRun(Params.make(given), store, pixels, request.cosine, request.balanced)
    if brought.embeddings is not None:
        run = run.with_embeddings(brought.embeddings, "given")
    elif run.params.encoder == PRECOMPUTED:
        embedding_file.check_file(run.params.embeddings_path)
    run.check_device()
    say("[1/7] reading images")
    n, request = run.n, _of_these(request, run.paths)
    done, count = len(request.done), _check_counts(n, n, request)
    _check_left(count, n - done, n, "images")
    if "neighbors" in request.overrides:
        run.check_neighbors()
    if run.params.hard_prune_ratio is not None:
        hard_prune_count(n, run.params.hard_prune_ratio, count + done)
    run.check_pca()
    return run


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
    p, copies = run.params, run.copies
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
    versions = ", ".join(f"{name} {version}" for name, version in package_versions().items())
    return [
        f"{len(run.paths):,} images, each cut to the square in its middle and stored at "
        f"{run.train_images.shape[-1]} pixels, {run.classes} classes ({given}), "
        f"{len(choice.listed):,} images asked for, seed {request.seed}"
        + (f", {changed}." if changed else "."),
        (
            f"Encoder {p.encoder}: {encoder['pretraining']} ({seen[encoder['saw_labels']]}); "
            f"licence of the weights: {encoder['license']}. It is shown squares of {run.shown_at}."
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


def _short_sides(files: Iterable[Path]) -> Iterator[int]:
    for file in files:
        try:
            with Image.open(file, formats=readable_formats()) as image:
                yield min(image.size)
        except Exception:  # parsers fail in any way they like; others will do
            continue


def _check_request(request: Request) -> None:
    named = sorted(_SET_HERE & set(request.overrides))
    if named:
        raise ElfsError(f"Parameter {named[0]!r} has an argument of its own here: use that.")
    classes = request.classes
    if classes != "auto" and not is_whole(classes, 2):
        raise ElfsError(f"classes is {classes!r}: give a whole number of at least 2, or auto.")
    if not isinstance(request.balanced, bool):
        raise ElfsError(f"balanced is {request.balanced!r}: give True or False.")
    if request.method != AUTO:
        known = [name for name, entry in METHODS.items() if not entry.supervised]
        choose("method", request.method, [AUTO, *known])
    if not is_whole(request.holdout, 0):
        raise ElfsError(f"holdout is {request.holdout!r}: give a whole number of at least 0.")
    budget, cosine = request.budget, request.cosine
    for name, value in {"budget": budget, "cosine": 1 if cosine is None else cosine}.items():
        if isinstance(value, bool) or not isinstance(value, (int, float, np.number)):
            raise ElfsError(f"{name} is {value!r}: give a number.")
    if not budget > 0:
        raise ElfsError(f"budget is {budget}: ask for at least one image.")
    if budget > 1 and not float(budget).is_integer():
        raise ElfsError(f"budget is {budget}: give a whole number of images, or a share up to 1.")
    if cosine is not None and not 0 < cosine <= 1:
        raise ElfsError(f"The cosine of near copies is {cosine}: give a number above 0, up to 1.")


def _source(source: Any, request: Request) -> tuple[Source | None, str | None]:
    """Images in memory, or the directory that they are in."""
    if isinstance(source, Source):
        return source, None
    if isinstance(source, (str, Path)):
        folder = Path(source).expanduser()
        datasets.check_dataset("image_folder", path=folder)
        return None, str(folder)
    found = read_source(source, request.overrides.get("image_size"))
    return found, str(Path.cwd()) if found.files else None  # where files are read again from


def _check_counts(
    n: int, different: int, request: Request, estimate: ClassEstimate | None = None
) -> int:
    """The budget as a count, if there are enough images for it and the classes."""
    if n < FEWEST:
        raise ElfsError(
            f"There are only {n} usable images: label them all, for choosing needs at least "
            f"{FEWEST}."
        )
    classes = 2 if request.classes == "auto" else int(request.classes)
    if classes > different:
        kind = "images" if different == n else "different images"
        raise ElfsError(
            f"There are only {different:,} {kind} for {classes:,} classes: give more images or "
            "fewer classes."
        )
    count = budget_count(request.budget, n)
    if count + len(request.done) < classes:
        which, end = "", "so that each class can have one"
        if estimate:
            which = (
                f" that the images suggest ({estimate.low} to {estimate.high} fit about as well)"
            )
            end = "or give the number of classes"
        raise ElfsError(
            f"budget {count} is below the {classes} classes{which}: ask for at least {classes} "
            f"images, {end}."
        )
    if count > different:
        raise ElfsError(
            f"budget {count:,} is above the {different:,} different images (the other "
            f"{n - different:,} of {n:,} are copies): ask for at most {different:,}."
        )
    return count


def _of_these(request: Request, paths: Collection[str]) -> Request:
    """Labels of images that are gone play no part."""
    known = set(paths)
    return replace(request, done=tuple(path for path in request.done if path in known))


def _check_left(count: int, left: int, total: int, kind: str) -> None:
    """Refuse a budget that is larger than what has no label yet."""
    if not left:
        raise ElfsError(
            f"Each of the {total:,} {kind}, or a copy of it, has a label: there is none left to "
            "list."
        )
    if count > left:
        raise ElfsError(
            f"budget {count:,} is above the {left:,} {kind} that have no label yet: ask for at "
            f"most {left:,}."
        )


def _comparable(
    request: Request, classes: int, n: int, different: int, total: int
) -> tuple[int, ...]:
    """Budgets to compare with, as counts: those that the images allow, else the list's own."""
    wanted = request.overrides.get("budgets", BUDGETS)
    counts = [budget_count(b, n) for b in wanted if b <= n]
    return tuple(dict.fromkeys(b for b in counts if classes <= b <= different)) or (total,)


def _rows_of(paths: Collection[str], known: list[str]) -> np.ndarray:
    wanted = set(paths)
    return np.array([row for row, path in enumerate(known) if path in wanted], np.int64)


def _choice(chooser: Chooser, request: Request, why: str, count: int) -> Choice:
    run, chosen = chooser.run, chooser.rows(count)
    every = pd.DataFrame({"index": np.arange(run.n), "path": run.paths})
    if request.cluster or chooser.trains:
        every["pseudo_class"] = run.pseudo_labels
    every["score"] = np.nan
    if "pseudo_class" in every:
        every["confidence"] = run.pseudo.table("pseudo")["confidence"].to_numpy()
    make = _pruned if chooser.method == ELFS else _represented
    listed, rest = make(chooser, every, chosen)
    held = every.iloc[chooser.held].assign(reason="drawn at random, to test on")
    held = held.set_index("path").loc[list(request.held)].reset_index()  # in the order of the draw
    rest = rest[~rest["index"].isin(chooser.held)]
    unread = datasets.unread_files(run.params.data_path) if run.pixels is None else {}
    files = _files(merge_reports(run.about["report"], _without_lists(unread)))
    columns = ["rank", "index", *(name for name in COLUMNS[1:] if name in listed)]
    ranks = np.arange(1, len(listed) + 1), np.arange(1, len(held) + 1)
    return Choice(
        run,
        request,
        chooser,
        why,
        listed.assign(rank=ranks[0]).reset_index(drop=True)[columns],
        held.assign(rank=ranks[1])[columns],
        rest.reset_index(drop=True),
        files,
        tuple(_notes(run, request, chosen)),
    )


def _pruned(
    chooser: Chooser, every: pd.DataFrame, chosen: np.ndarray
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The list of double-end pruning, and what became of the others."""
    run = chooser.run
    every = every.assign(score=run.scores[run.params.score])
    order = np.argsort(run.order, kind="stable")
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    cut = hard_prune_count(len(order), chooser.beta, chooser.total)
    listed = every.iloc[chosen].copy()
    easier = 1 - run.order if run.balanced else 1 - (place + 1) / len(order)
    ranks = [
        f"harder than {easier[row]:.0%} of "
        + (f"pseudo-class {run.pseudo_labels[row]}" if run.balanced else "the images")
        for row in range(len(order))
    ]
    listed["reason"] = [
        f"{ranks[row]}, and not among the hardest {cut / len(order):.0%}"
        if place[row] >= cut
        else "among the hardest: taken because copies left the list short"
        for row in chosen
    ]
    rest = _rest(chooser, every, chosen, place < cut, ranks)
    return listed, rest.iloc[np.argsort(place[rest["index"]])]


def _represented(
    chooser: Chooser, every: pd.DataFrame, chosen: np.ndarray
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The list of any other method, and which image on it each of the others is most like."""
    run = chooser.run
    rows = unit_rows(np.asarray(run.embeddings.array("embeddings")))
    nearest, cosine = np.empty(run.n, np.int64), np.empty(run.n, np.float32)
    for start in range(0, run.n, _CHUNK):
        near = rows[start : start + _CHUNK] @ rows[chosen].T
        nearest[start : start + _CHUNK] = chosen[near.argmax(1)]
        cosine[start : start + _CHUNK] = near.max(1)
    stands_for = np.bincount(nearest, minlength=run.n)
    listed = every.iloc[chosen].assign(score=chooser.scores(len(chosen)))
    listed["reason"] = [
        f"of those on the list the most like {stands_for[row]:,} images" for row in chosen
    ]
    likeness = [
        f"most like {run.paths[near]} on the list: cosine {value:.2f}"
        for near, value in zip(nearest, cosine, strict=True)
    ]
    rest = _rest(chooser, every, chosen, None, likeness)
    return listed, rest.iloc[np.argsort(cosine[rest["index"]], kind="stable")]


def _rest(
    chooser: Chooser,
    every: pd.DataFrame,
    chosen: np.ndarray,
    hard: np.ndarray | None,
    ranks: list[str],
) -> pd.DataFrame:
    """What became of each image that is not on the list, and why.

    Args:
        hard: bool [N], set aside as too hard; None where nothing is.
        ranks: What to say of each image that no other reason explains.
    """
    run, done = chooser.run, chooser.done
    copies, paths = run.copies, run.paths
    near = run.neighbors.array("similarities").mean(1)
    far = near <= np.quantile(near, LEAST_ALIKE)
    places = {"labelled already": done, "kept for testing": chooser.held, "on the list": chosen}
    twins = {
        int(copies.group[row]): (int(row), where) for where, rows in places.items() for row in rows
    }
    taken = set(chosen.tolist())
    given = set(done.tolist())
    rows, kinds, reasons = [], [], []
    for row in range(len(every)):
        if row in taken:
            continue
        twin, where = twins.get(int(copies.group[row]), (None, ""))
        if row in given:
            kind, reason = "labelled", "labelled already"
        elif twin is not None:
            same = copies.first[row] == copies.first[twin]
            how = "same pixels as" if same else "near copy of"
            kind, reason = "copy", f"{how} {paths[twin]}, which is {where}"
        elif hard is None:
            kind, reason = "not_chosen", ranks[row]
        elif hard[row] and far[row]:
            kind = "too_hard"
            reason = (
                f"least like its neighbours: mean cosine {near[row]:.2f}, "
                f"among the lowest {LEAST_ALIKE:.0%}"
            )
        elif hard[row]:
            kind, reason = "too_hard", f"among the hardest {hard.mean():.0%}: {ranks[row]}"
        else:
            kind, reason = "too_easy", f"easier than the list reaches: {ranks[row]}"
        rows.append(row)
        kinds.append(kind)
        reasons.append(reason)
    rest = every.iloc[rows].copy()
    rest.insert(2, "kind", kinds)
    rest.insert(3, "reason", reasons)
    return rest


def _without_lists(unread: Mapping[str, list]) -> dict[str, list]:
    """The files that are not read, but for those of lists that were written among the images."""
    others = unread.get("not_an_image", [])
    lists = [name.removesuffix("run.json") for name in others if name.endswith(".run.json")]
    own = {f"{name}{suffix}" for name in lists for suffix in _LIST_SUFFIXES}
    others = [name for name in others if re.sub(r"kept\d+\.csv$", "csv", name) not in own]
    kept = {**unread, "not_an_image": others}
    return {kind: names for kind, names in kept.items() if names}


def _files(report: Mapping[str, list]) -> pd.DataFrame:
    """The report on files: one row a file and kind."""
    rows = []
    for kind, entries in report.items():
        meaning, used = (LEFT_OUT | KEPT)[kind], kind in KEPT
        for entry in entries:
            path, *first = [entry] if isinstance(entry, str) else entry  # the first file like it
            row = {"kind": kind, "path": path, "meaning": meaning, "used": used}
            rows.append(row | {"same_as": first[0] if first else ""})
    return pd.DataFrame(rows, columns=["kind", "path", "meaning", "used", "same_as"])


def _notes(run: OwnRun, request: Request, chosen: np.ndarray) -> list[str]:
    notes = []
    if request.classes == "auto":
        notes.append(f"Number of classes: {run.class_estimate.sentence()}.")
    if request.cluster:
        notes = [*run.cluster_notes, *notes]
        missing = run.classes - len(np.unique(run.pseudo_labels[chosen]))
        if missing:
            verb = "has" if missing == 1 else "have"
            notes.append(f"{missing} of {run.classes} pseudo-classes {verb} no image on the list.")
    sizes = np.bincount(run.copies.group)
    if sizes.max() > max(20, 0.1 * len(run.paths)):
        notes.append(
            f"{sizes.max():,} images hang together as near copies: if they are not, raise the "
            f"cosine of near copies (now {run.copies.cosine:g})."
        )
    if (run.images.folder / "test.npy").exists():
        count = len(run.images.array("test"))
        notes.append(
            f"The folder has train and test folders: {count:,} test images are kept apart and "
            "none of them is listed."
        )
    if splits := run.about.get("splits"):  # images kept from before have none
        notes.append(splits)
    return notes
