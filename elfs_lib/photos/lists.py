"""The files around a list: where each is, and the record that opens the list again."""

from __future__ import annotations

import csv
import io
import itertools
import json
import os
import re
import shlex
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import pandas as pd

from elfs_lib.artifacts import Store, write_text_atomic
from elfs_lib.data import datasets
from elfs_lib.data.base import Source
from elfs_lib.data.label_files import read_labels, split_csv, tasks
from elfs_lib.errors import ElfsError
from elfs_lib.photos.choice import LISTED_COLUMNS, Choice
from elfs_lib.photos.choosing import choose_images, open_run, read_images
from elfs_lib.photos.request import Request
from elfs_lib.photos.run import Photos


@dataclass(frozen=True)
class ListFiles:
    """The files of one list; all lie next to it and share its name.

    Raises:
        ElfsError: if its folder is missing or cannot be written to.
    """

    csv: Path

    def __post_init__(self) -> None:
        folder = self.csv.resolve().parent
        if not folder.is_dir() or not os.access(folder, os.W_OK):
            raise ElfsError(f"Cannot write {self.csv}: {folder} is not a folder one can write to.")
        if self.csv.is_dir() or self.csv.suffix.lower() != ".csv":  # the report is .html, and more
            kind = "a folder" if self.csv.is_dir() else "no .csv file"
            raise ElfsError(f"{self.csv} is {kind}: name a .csv file, such as {DEFAULT_LIST}.")

    def beside(self, suffix: str) -> Path:
        """``to_label.csv`` -> ``to_label.<suffix>``."""
        return self.csv.with_name(f"{self.csv.stem}.{suffix}")

    @property
    def record(self) -> Path:
        """What was asked for, and of which images."""
        return self.beside("run.json")

    @property
    def rest(self) -> Path:
        """What became of every file that is not on the list."""
        return self.beside("rest.csv")

    @property
    def tasks(self) -> Path:
        """The list as Label Studio imports it."""
        return self.beside("tasks.json")

    @property
    def holdout(self) -> Path:
        """The images that are kept for testing."""
        return self.beside("holdout.csv")

    @property
    def holdout_tasks(self) -> Path:
        """The same as Label Studio imports it."""
        return self.beside("holdout.tasks.json")

    @property
    def html(self) -> Path:
        """The report."""
        return self.beside("html")

    @property
    def labels(self) -> Path:
        """All labels imported so far."""
        return self.beside("labels.csv")

    @property
    def predictions(self) -> Path:
        """What the model says of every image."""
        return self.beside("predictions.csv")

    @property
    def next(self) -> ListFiles:
        """The files of the next batch."""
        return ListFiles(self.beside("next.csv"))


DEFAULT_LIST = Path("to_label.csv")


def find_list(named: Path | None, source: Path | None = None) -> ListFiles:
    """The list that is meant: the one named, else that which ``source`` is or continues, else
    ``to_label.csv``. The next batch of a list is not one of its own: its labels go to the first.
    """
    if meant := named or source:
        stem = re.sub(r"(\.next|\.holdout)?(\.kept\d+)?$", "", meant.stem)
        if meant.with_name(f"{stem}.run.json").exists():
            return ListFiles(meant.with_name(f"{stem}.csv"))
    return ListFiles(named or DEFAULT_LIST)


def import_command(file: Path | str, files: ListFiles) -> str:
    """The command that imports a file of labels for a list."""
    words = ["elfs", "labels", "import", str(file)]
    if files.csv != DEFAULT_LIST:
        words += ["--list", str(files.csv)]
    return shlex.join(words)


# --- writing a list ------------------------------------------------------------------------------


def write_choice(
    files: ListFiles,
    choice: Choice,
    folder: Path,
    *,
    say: Callable[[str], None] = lambda text: None,
) -> None:
    """Write the list, Label Studio's tasks, what became of every other file, and the record.

    An older list under this name is kept under another, unless it was all labelled.
    """
    listed = choice.listed[LISTED_COLUMNS]
    _keep(files, choice.request.done, say, instead=_as_csv(listed))
    files.html.unlink(missing_ok=True)  # a report of an older list must not stand beside this one
    _write_record(files, choice, folder)
    write_list_csv(files.csv, listed)
    _write_tasks(files.tasks, listed, folder, choice.request.names)
    unused = choice.files[~choice.files["used"].astype(bool)]
    unused = unused.rename(columns={"meaning": "reason"})[["path", "kind", "reason"]]
    rest = choice.rest.drop(columns="index")
    parts = [rest, unused] if len(unused) else [rest]
    write_list_csv(files.rest, pd.concat(parts, ignore_index=True)[list(rest.columns)])


def _write_tasks(file: Path, frame: pd.DataFrame, folder: Path, names: Sequence[str] = ()) -> None:
    found = tasks(frame.astype(object).where(frame.notna(), None), _name(folder), names=names)
    write_text_atomic(file, json.dumps(found, indent=1))


def _write_record(files: ListFiles, choice: Choice, folder: Path) -> None:
    """Write what is needed to open the list again; paths in it are relative to it."""
    start = files.csv.resolve().parent
    record = {
        "folder": os.path.relpath(os.path.abspath(folder), start),
        "artifacts": os.path.relpath(choice.run.store.root.resolve(), start),
        "source": _fingerprint(folder, choice.request),
        "images": choice.run.images.content,
        "count": len(choice.listed),
        "paths": choice.run.paths,
        "request": {f.name: getattr(choice.request, f.name) for f in fields(Request)},
    }
    write_text_atomic(files.record, json.dumps(record, indent=1))


@dataclass(frozen=True)
class Record:
    """What a list was made from: its folder of images, how that looked (``source``), what was in it
    (``images``) under which ``paths``, what was asked for, where the work lies."""

    folder: Path
    source: str
    images: str
    request: Request
    store: Store
    count: int
    paths: tuple[str, ...]

    @property
    def named(self) -> str:
        """Name of the folder of images."""
        return _name(self.folder)


def _name(folder: Path) -> str:
    """What people call a folder: a link's own name, and not that of what it leads to."""
    return Path(os.path.abspath(folder)).name


def read_record(file: str | Path, *, repair: bool = False) -> Record:
    """Read a list's ``run.json``; ``repair`` recomputes damaged artifacts.

    Raises:
        ElfsError: if it is missing or damaged.
    """
    file = Path(file)
    try:
        record = json.loads(file.read_text())
        asked = record["request"]
        several = {name: tuple(asked[name]) for name in ("done", "held", "names") if name in asked}
        request = Request(**{**asked, **several})
        folder, artifacts = file.parent / record["folder"], file.parent / record["artifacts"]
        return Record(
            folder,
            str(record["source"]),
            str(record["images"]),
            request,
            Store(artifacts, repair=repair),
            int(record["count"]),
            tuple(record["paths"]),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise ElfsError(
            f"{file} is missing or damaged: make the list with elfs select first, or name it with "
            "--list."
        ) from None


def open_choice(file: str | Path) -> Choice:
    """The choice behind a list, from its ``run.json``; nothing is computed again.

    Raises:
        ElfsError: if the record is missing, or the folder is gone or has changed since.
    """
    record = read_record(file)
    opened_run(record)
    return choose_images(record.folder, record.request, record.store)


def opened_run(record: Record) -> Photos:
    """The run over the folder of a record, if the images in it are those of the record."""
    if not record.folder.is_dir():
        raise ElfsError(
            f"The folder of this list, {record.folder}, is gone: run elfs select on it where it is "
            "now, with the same --out; labels already imported are kept."
        )
    asked = record.folder, record.request, record.store
    # Files that were copied or touched look different but may hold the same.
    looks_alike = _fingerprint(record.folder, record.request) == record.source
    if not looks_alike and read_images(*asked).run.images.content != record.images:
        raise ElfsError(
            f"The images in {record.folder} have changed since the list was made: run elfs select "
            "again; labels already imported are kept."
        )
    return open_run(*asked)


def _fingerprint(folder: Path, request: Request) -> str:
    size = request.overrides.get("image_size")
    return datasets.source_fingerprint(Source("image_folder", image_size=size, path=folder))


def write_list_csv(file: Path, frame: pd.DataFrame) -> None:
    write_text_atomic(file, _as_csv(frame))


def _as_csv(frame: pd.DataFrame) -> str:
    # A carriage return in a name would end the line for whoever reads it.
    split = frame["path"].str.contains("\r").any()
    quoting = csv.QUOTE_NONNUMERIC if split else csv.QUOTE_MINIMAL
    return frame.to_csv(index=False, float_format="%.6g", quoting=quoting)


def _keep(
    files: ListFiles, labelled: Collection[str], say: Callable[[str], None], *, instead: str = ""
) -> None:
    """Give a list that is about to go another name: somebody may be labelling it elsewhere.

    Nothing is kept where all its images are labelled, or where ``instead``, the list that is to be
    written, is the same.
    """
    if not files.csv.exists():
        return
    text = files.csv.read_bytes().decode("utf-8-sig", errors="replace")
    table, delimiter, _ = split_csv(text)
    rows = csv.DictReader(io.StringIO(table, newline=""), delimiter=delimiter)
    if text == instead or {row.get("path") for row in rows} <= set(labelled):
        return
    kept = next(
        file for n in itertools.count(1) if not (file := files.beside(f"kept{n}.csv")).exists()
    )
    os.replace(files.csv, kept)
    say(f"The list that was in {files.csv} is not all labelled: it is kept as {kept}.")


def make_list(
    folder: Path,
    files: ListFiles,
    request: Request,
    store: Store,
    *,
    say: Callable[[str], None] = lambda text: None,
) -> Choice:
    """Choose from a folder, and write the list, its tasks, the rest and the record.

    Labels imported for an earlier list of this name stay, and their images are not listed again. An
    earlier list, or its next batch, that is not all labelled is kept under another name.

    Raises:
        ElfsError: as :func:`elfs_lib.photos.choosing.choose_images`; or if labels of another
            folder's images, or labels that were not imported, would be lost or mixed with these.
    """
    folder = folder.expanduser()
    if files.csv.stem.endswith(".next"):
        raise ElfsError(
            f"{files.csv.name} is the name of the next batch of another list: choose another name "
            "with --out."
        )
    labels = stored_labels(files)
    for file in (files.csv, files.next.csv, files.holdout):
        check_typed(file, files, labels)
    _check_own(files)
    try:
        before = read_record(files.record) if labels or files.holdout.exists() else None
    except ElfsError:  # this list rewrites the record
        before = None
    if before and labels and before.folder.resolve() != folder.resolve():
        # The folder may have been renamed: then the images are the same.
        gone = not before.folder.exists()
        if not gone or read_images(folder, request, store).run.images.content != before.images:
            which = ", which is gone," if gone else ""
            raise ElfsError(
                f"{files.labels} holds labels of images in {before.folder.resolve()}{which} and "
                f"{folder} holds others: give its list another name with --out, or move that file "
                "away."
            )
    same = before is not None and before.folder.resolve() == folder.resolve()
    held = before.request.held if before and (same or labels) else ()
    request = replace(request, done=tuple(labels), held=held)
    choice = choose_images(folder, request, store, say=say)
    write_choice(files, choice, folder, say=say)
    if len(choice.held):
        write_list_csv(files.holdout, choice.held[LISTED_COLUMNS])
        # without suggestions, which would bias the labels that the model is tested on
        _write_tasks(files.holdout_tasks, choice.held[LISTED_COLUMNS], folder)
    drop_batch(files, labels, say)
    return choice


def drop_batch(files: ListFiles, labelled: Collection[str], say: Callable[[str], None]) -> None:
    """Remove the files of an older next batch; the list itself is kept if it is not labelled."""
    old = files.next
    _keep(old, labelled, say)
    for file in (old.csv, old.tasks, old.rest, old.html, old.record):
        file.unlink(missing_ok=True)


# --- labels that come back -----------------------------------------------------------------------


def stored_labels(files: ListFiles) -> dict[str, str]:
    """path -> label of the labels imported so far; empty if there are none.

    Raises:
        ElfsError: if the file is there but damaged.
    """
    if not files.labels.exists():
        return {}
    return read_labels(files.labels, None).given


def check_typed(file: Path, files: ListFiles, stored: Mapping[str, str]) -> None:
    """Refuse to write over a list, or a next batch, into which somebody typed labels that were not
    imported."""
    if not file.exists() or _as_written(file):
        return
    try:
        # Under the names that the stored labels have, however the list spells them.
        typed = read_labels(file, stored, strict=False).given
    except ElfsError as error:
        raise ElfsError(
            f"{file} is not as it was written and may hold labels, which would be lost "
            f"({str(error).rstrip('.')}): fix it, move it away, or name another list."
        ) from None
    if any(stored.get(path) != label for path, label in typed.items()):
        raise ElfsError(
            f"{file} holds labels that were not imported and would be lost: run "
            f"{import_command(file, files)} first (with --replace if they correct earlier ones), "
            "or name another list."
        )


def _check_own(files: ListFiles) -> None:
    """Refuse to write over files that no list left there."""
    for file in (files.html, files.rest, files.tasks) if not files.record.exists() else ():
        if file.exists():
            raise ElfsError(
                f"{file} is there already and belongs to no list: move it away, or name another "
                "list with --out."
            )


def _as_written(file: Path) -> bool:
    """Whether a list has the columns that it was written with, and nothing beside them."""
    text = file.read_bytes().decode("utf-8-sig", errors="replace")
    table, delimiter, _ = split_csv(text)
    rows = csv.reader(io.StringIO(table, newline=""), delimiter=delimiter)
    try:
        first = [name.strip() for name in next(rows, [])]
        beside = any(cell.strip() for row in rows for cell in row[len(LISTED_COLUMNS) :])
    except csv.Error:
        return False
    width = len(LISTED_COLUMNS)
    return first[:width] == LISTED_COLUMNS and not any(first[width:]) and not beside


def count(labels: Mapping[str, str]) -> dict[str, int]:
    """label -> number of images, by name."""
    return dict(sorted(Counter(labels.values()).items()))
