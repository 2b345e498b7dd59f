"""Coreset lists as files: a table in the order to label, and a manifest that says what it is.

``coreset.parquet`` (or ``.csv``) holds the columns of :data:`LIST_COLUMNS`, and
``coreset.parquet.json`` beside it the manifest: which images (their number and a hash of their
pixels), method, budget, seed and options, whether labels were seen, the command that makes the list
again, versions, and the SHA-256 of the table. An index counts the training images from 0 in the
order of the dataset's files.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from elfs_lib.artifacts import NotBuilt, Store, package_versions, write_text_atomic
from elfs_lib.errors import ElfsError
from elfs_lib.results import provenance, shift
from elfs_lib.selection import METHODS

if TYPE_CHECKING:
    from elfs_lib.stages.run import Run

FORMAT = "elfs-coreset-1"

#: The columns of a list; ``path`` and ``score`` are there where they are known.
LIST_COLUMNS: dict[str, str] = {
    "rank": "1 to n, the order in which to label",
    "index": "position among the training images, from 0",
    "path": "file of the image",
    "score": "the method's own figure",
}


@dataclass(frozen=True)
class CoresetList:
    """A coreset in the order in which to label it.

    Attributes:
        table: Columns of :data:`LIST_COLUMNS`, a row an image, by rank.
        manifest: What is known of it; empty for a table that came without one.
    """

    table: pd.DataFrame
    manifest: Mapping[str, Any]

    @property
    def indices(self) -> np.ndarray:
        """int64 [n], distinct, the first to be labelled first."""
        return self.table["index"].to_numpy(np.int64)


def list_of(
    run: Run, method: str, budget: float | int, seed: int | None = None, **options: Any
) -> CoresetList:
    """The list that a run selects; arguments are those of
    :meth:`elfs_lib.stages.run.Run.coreset`."""
    coreset = run.coreset(method, budget, seed, **options)
    table = coreset.table("coreset")
    if not table["path"].any():
        table = table.drop(columns="path")
    table = table.astype({"rank": np.int32, "index": np.int32, "score": np.float32})
    facts, run_command = coreset.manifest, provenance.command(run.params)
    manifest = {
        "format": FORMAT,
        "dataset": run.params.dataset,
        "source": run.about["source"],
        "images": run.n,
        "pixels": _pixels(run),
        "method": method,
        "count": len(table),
        "seed": facts["seed"],
        "options": facts["params"]["options"],
        "labels_seen": METHODS[method].supervised,
        "command": f"{run_command.replace('elfs run', 'elfs coreset export', 1)} --method {method} "
        f"--budget {len(table)} --seed {facts['seed']}",
        "packages": package_versions(),
    }
    return CoresetList(table, manifest)


def write_list(found: CoresetList, path: str | Path) -> None:
    """Write a list and, beside it, its manifest.

    Raises:
        ElfsError: see :func:`check_name`.
    """
    path = check_name(path)
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        if path.suffix == ".parquet":
            found.table.to_parquet(draft, index=False, compression="zstd")
        else:
            found.table.to_csv(draft, index=False)
        manifest = {**found.manifest, "sha256": hashlib.sha256(draft.read_bytes()).hexdigest()}
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
    write_text_atomic(manifest_of(path), json.dumps(manifest, indent=1) + "\n")


def read_list(path: str | Path) -> CoresetList:
    """Read a list, and its manifest where there is one.

    Raises:
        ElfsError: if a file cannot be read, the table is not that of its manifest, or it is no
            list: a column is missing, ranks are not 1 to n, or an image is in it twice.
    """
    path = _typed(path)
    try:
        table = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
    except (OSError, ValueError, pd.errors.ParserError) as error:
        reason = getattr(error, "strerror", None) or "it is damaged, or another kind of file"
        raise ElfsError(f"Cannot read the list {path}: {reason}.") from None
    manifest = _read_manifest(path)
    for name in ("rank", "index"):
        if name not in table or table[name].dtype.kind not in "iu":
            raise ElfsError(f"{path} needs a column {name!r} of whole numbers: see LIST_COLUMNS.")
    table = table.sort_values("rank", ignore_index=True)
    if not len(table) or (table["rank"] != np.arange(1, len(table) + 1)).any():
        raise ElfsError(f"The ranks in {path} are not 1 to {len(table)}: number the rows.")
    if table["index"].duplicated().any() or table["index"].min() < 0:
        raise ElfsError(f"{path} names an image twice, or by a number below 0.")
    if table["index"].max() >= manifest.get("images", np.inf):
        raise ElfsError(f"{path} names image {table['index'].max()} of {manifest['images']:,}.")
    return CoresetList(table, manifest)


def compare_lists(
    lists: Mapping[str, CoresetList],
    n: int | None = None,
    *,
    labels: np.ndarray | None = None,
    easiness: np.ndarray | None = None,
) -> pd.DataFrame:
    """What two lists have in common, and what each holds.

    Args:
        lists: Two lists by name.
        n: Number of training images; None: as their manifests say.
        labels: int [n], true labels, where there are some (analysis).
        easiness: float [n], low is hard; that of true-label AUM is what the book's pages use.

    Returns:
        A row a list: ``images``; ``shared`` with the other, ``shared_by_chance`` (what two random
        lists of these sizes would share) and ``overlap`` (shared over images in either);
        with ``labels`` ``balance`` (entropy of the class shares over its maximum, 1 is even)
        and ``rarest`` (images of the rarest class); with ``easiness`` ``easy_share`` (of the
        easiest fifth; a random list has 0.2).

    Raises:
        ElfsError: if there are not two, or they are lists of different images.
    """
    if len(lists) != 2:
        raise ElfsError(f"{len(lists)} lists are given: compare two, each by a name of its own.")
    first, second = lists.values()
    for name, words in (("pixels", "different images"), ("images", "different numbers of images")):
        if len({found.manifest[name] for found in lists.values() if name in found.manifest}) > 1:
            raise ElfsError(
                f"{' and '.join(lists)} are lists of {words}: compare lists of one dataset, read "
                "from the same files."
            )
    n = n or next((f.manifest["images"] for f in lists.values() if "images" in f.manifest), None)
    shared = len(np.intersect1d(first.indices, second.indices))
    rows = {}
    for name, found in lists.items():
        row: dict[str, float] = {"images": len(found.indices), "shared": shared}
        if n is not None:
            row["shared_by_chance"] = len(first.indices) * len(second.indices) / n
        row["overlap"] = shared / (len(first.indices) + len(second.indices) - shared)
        if labels is not None:
            balance = shift.class_balance(labels[found.indices], int(labels.max()) + 1)
            row |= {"balance": balance.entropy, "rarest": balance.counts.min()}
        if easiness is not None:
            row["easy_share"] = shift.easy_share(found.indices, easiness)
        rows[name] = row
    return pd.DataFrame.from_dict(rows, orient="index")


def as_shown(comparison: pd.DataFrame) -> pd.DataFrame:
    """:func:`compare_lists` as texts, a column a list."""
    return comparison.T.map(lambda x: f"{x:,.0f}" if float(x).is_integer() else f"{x:,.3f}")


def known_of(run: Run, lists: Mapping[str, CoresetList]) -> dict[str, Any]:
    """What :func:`compare_lists` takes besides lists of a run's images, where available: the
    labels, and the AUM under true labels where the run has computed it.

    Raises:
        ElfsError: if a list is of other images.
    """
    for name, found in lists.items():
        if found.manifest.get("pixels", _pixels(run)) != _pixels(run):
            raise ElfsError(
                f"{name} is a list of other images ({found.manifest['dataset']}) than those of "
                f"{run.params.dataset!r} here: name the parameters file that it was made with."
            )
        if found.indices.max() >= run.n:
            raise ElfsError(f"{name} names image {found.indices.max():,} of {run.n:,}.")
    known: dict[str, Any] = {"n": run.n}
    if "train" in run.labels.has:
        known["labels"] = run.labels.open("train", purpose="analysis")
        stored = dataclasses.replace(run, store=Store(run.store.root, look=True))
        with contextlib.suppress(NotBuilt):
            known["easiness"] = stored.true_scores["aum"].to_numpy()
    return known


def publish(run: Run, folder: Path) -> list[Path]:
    """Write ELFS's list at each budget of a run into a folder, for others to train on."""
    budgets = run.params.budgets if run.can_evaluate else (run.params.budget,)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for budget in budgets:
        found = list_of(run, "elfs", budget)
        written.append(folder / f"elfs_{len(found.table)}.parquet")
        write_list(found, written[-1])
    return written


def manifest_of(path: Path) -> Path:
    """The manifest's file: ``coreset.parquet.json`` for ``coreset.parquet``."""
    return path.with_name(f"{path.name}.json")


def _read_manifest(path: Path) -> dict[str, Any]:
    file = manifest_of(path)
    if not file.exists():
        return {}
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        form, checksum = manifest["format"], manifest["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        raise ElfsError(f"{file} is not the manifest of a coreset list: export it again.") from None
    if form != FORMAT:
        raise ElfsError(f"{file} has the format {form!r}; this version reads {FORMAT!r}.")
    if hashlib.sha256(path.read_bytes()).hexdigest() != checksum:
        raise ElfsError(f"{path} was changed after it was exported: export it again, or give it a "
                        f"name without the manifest {file.name}.")  # fmt: skip
    return manifest


def _pixels(run: Run) -> str:
    """Hash of the training images, as 16 hexadecimal digits."""
    return run.images.manifest["sha256"]["train.npy"][:16]


def check_name(path: str | Path) -> Path:
    """Check that a list can be written under a name.

    Raises:
        ElfsError: if it ends neither in .parquet nor in .csv, or its folder is not there.
    """
    path = _typed(path)
    if not path.absolute().parent.is_dir():
        raise ElfsError(f"There is no folder {path.parent} to write {path.name} into: make it.")
    return path


def _typed(path: str | Path) -> Path:
    path = Path(path)
    if path.suffix not in (".parquet", ".csv"):
        raise ElfsError(f"A coreset list is a .parquet or a .csv, not {path.name!r}.")
    return path
