"""Lists to label and the labels that come back: CSV, and Label Studio's JSON.

Label Studio (https://labelstud.io) imports a list of tasks, and exports either the tasks with
their annotations ("JSON") or one flat record a task ("JSON-MIN"). Both come back through
:func:`read_labels`, as does its CSV export, or any CSV with a column ``path`` and a column
``label``.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import unicodedata
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import pandas as pd

from elfs_lib.errors import ElfsError

PATH_COLUMNS = ("path", "image", "file", "filename")
LABEL_COLUMNS = ("label", "class", "choice", "labels")
LOCAL_FILES = "/data/local-files/?d="


@dataclass(frozen=True)
class Labels:
    """Labels as people gave them.

    Attributes:
        given: path -> label, in the order of the file.
        open: Paths that are on the list but have no label yet, or were skipped.
    """

    given: dict[str, str]
    open: tuple[str, ...]


def tasks(frame: pd.DataFrame, folder: str) -> list[dict[str, Any]]:
    """Label Studio's import: one task an image, in rank order.

    Label Studio serves the images itself: start it with
    ``LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true`` and
    ``LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT`` set to the folder that holds ``folder``, and add
    ``folder`` as local storage of the project.

    Args:
        frame: Columns ``path`` and whatever else is to travel with the task.
        folder: Name of the directory of images.
    """
    return [
        {"data": {"image": LOCAL_FILES + quote(f"{folder}/{row['path']}"), **row}}
        for row in frame.to_dict("records")
    ]


def read_labels(
    file: str | Path,
    known: Collection[str] | None,
    *,
    folder: str = "",
    root: Path | None = None,
    strict: bool = True,
) -> Labels:
    """Read labels and check their images.

    Args:
        file: CSV, or JSON as Label Studio exports it.
        known: The paths that may be labelled; None: any.
        folder: Name of the directory of images, which Label Studio's URLs begin with.
        root: Where that directory is: absolute paths into it are known, too.
        strict: Whether every path has to be a known one, and a label there at all.

    Raises:
        ElfsError: if the file cannot be understood, names an unknown image, gives one image two
            labels, or holds no label at all.
    """
    file = Path(file)
    try:
        text = file.read_bytes().decode("utf-8-sig")  # a name may hold any line end
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None)
        advice = f"{reason}; check the path" if reason else "save it as CSV UTF-8, or as JSON"
        raise ElfsError(f"Cannot read {file} as labels: {advice}.") from None
    is_json = text.lstrip()[:1] in ("[", "{")
    if known is not None:  # by either way of writing é: file systems and programs change it
        known = {unicodedata.normalize("NFC", path): path for path in known} | {p: p for p in known}
    given: dict[str, str] = {}
    unlabelled: dict[str, None] = {}
    for where, name, label in _from_json(text, file) if is_json else _from_csv(text, file):
        if "\n" in label or "\r" in label:
            raise ElfsError(
                f"{file}, {where}: a label goes over several lines, so a quotation mark before it "
                "is not closed: add the other one, or take it out."
            )
        path = name if known is None else _known_path(name, known, folder, root)
        if path is None and strict:
            raise ElfsError(
                f"{file}, {where}: {name!r} is not a usable image of the folder that the list was "
                "made from; correct its path, or leave it out."
            )
        path = name if path is None else path
        if not label:
            unlabelled[path] = None
        elif given.setdefault(path, label) != label:
            raise ElfsError(
                f"{file}, {where}: image {path!r} has the labels {given[path]!r} and {label!r}; "
                "keep one."
            )
    if strict and not given:
        how = "export it after labelling" if is_json else "fill in its column 'label'"
        raise ElfsError(f"{file} holds no label: {how}, one name an image.")
    return Labels(given, tuple(path for path in unlabelled if path not in given))


def delimiter(text: str) -> str:
    """What stands between the columns of a CSV file, by its first line."""
    return max(",;\t", key=text.partition("\n")[0].count)


def _from_csv(text: str, file: Path) -> Iterator[tuple[str, str, str]]:
    rows = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter(text))
    try:
        columns = {str(name).strip().lower(): name for name in rows.fieldnames or ()}
        path = next((columns[name] for name in PATH_COLUMNS if name in columns), None)
        label = next((columns[name] for name in LABEL_COLUMNS if name in columns), None)
        if path is None or label is None:
            raise ElfsError(
                f"{file} has the columns {', '.join(columns) or 'none'}: it needs a column 'path' "
                "and a column 'label'."
            )
        for row in rows:
            where, given = f"line {rows.line_num}", (row[label] or "").strip()
            if given and not row[path]:
                raise ElfsError(f"{file}, {where}: the label {given!r} has no path; fill it in.")
            if row[path]:
                yield where, row[path], given
    except csv.Error as error:
        raise ElfsError(f"{file} is not a readable CSV file: {error}.") from None


def _from_json(text: str, file: Path) -> Iterator[tuple[str, str, str]]:
    try:
        records = json.loads(text)
    except ValueError as error:
        raise ElfsError(f"{file} is not valid JSON: {error}.") from None
    records = [records] if isinstance(records, dict) else records
    for number, record in enumerate(records, 1):
        where = f"task {number}"
        try:
            data = record.get("data", record)
            name = next(data[key] for key in PATH_COLUMNS if isinstance(data.get(key), str))
            labels = _annotated(record) if "annotations" in record else _flat(record)
        except (AttributeError, TypeError, StopIteration):
            raise ElfsError(
                f"{file}, {where}: is not as Label Studio exports it or names no image; export as "
                "JSON or JSON-MIN."
            ) from None
        for label in labels or [""]:
            yield where, name, label


def _annotated(record: dict) -> list[str]:
    """Labels of a task of Label Studio's JSON; several people may have annotated it."""
    found = []
    for annotation in record["annotations"] or []:
        if annotation.get("was_cancelled"):
            continue
        for result in annotation.get("result") or []:
            found += _texts(result.get("value", {}).get("choices"))
    return found


def _flat(record: dict) -> list[str]:
    return next((_texts(record[key]) for key in LABEL_COLUMNS if key in record), [])


def _texts(value: Any) -> list[str]:
    if isinstance(value, dict):  # JSON-MIN writes {"choices": [...]} where several may be chosen
        value = value.get("choices")
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return []
    values = value if isinstance(value, list) else [value]
    return [text for item in values if (text := str(item).strip())]


def _known_path(name: str, known: Mapping[str, str], folder: str, root: Path | None) -> str | None:
    """The known path that a file calls ``name``: itself, or a Label Studio URL that ends in it."""
    bare = name.strip()
    candidates = [name, bare, bare.removeprefix("./"), bare.replace("\\", "/")]
    candidates += parse_qs(urlsplit(bare).query).get("d", []) if "?d=" in bare else []
    if root is not None and Path(bare).is_absolute():
        candidates.append(os.path.relpath(bare, os.path.abspath(root)).replace(os.sep, "/"))
    for candidate in candidates:
        for path in (candidate, candidate.removeprefix(f"{folder}/")):
            for form in (path, unicodedata.normalize("NFC", path)):
                if form in known:
                    return known[form]
    return None
