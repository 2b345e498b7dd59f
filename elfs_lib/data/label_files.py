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
import re
import unicodedata
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, unquote_plus, urlsplit

import pandas as pd

from elfs_lib.errors import ElfsError

PATH_COLUMNS = ("path", "image", "file", "filename")
LABEL_COLUMNS = ("label", "class", "choice", "labels")
MODEL = "ELFS pseudo-classes"  # who suggested a label, for Label Studio
LOCAL_FILES = "/data/local-files/?d="
# Of a file that was uploaded to Label Studio: its project, and a part of a UUID before its name.
UPLOAD = re.compile(r"/data/upload/(?:\d+/)?(?:[0-9a-f]{8}-)?([^/?#]+)$")
# Characters without width that text copied from a page may hold; joiners, which words need, stay.
INVISIBLE = dict.fromkeys(map(ord, "\u00ad\u200b\u2060\ufeff"))


@dataclass(frozen=True)
class Labels:
    """Labels as people gave them.

    Attributes:
        given: path -> label, in the order of the file.
        open: Paths that are on the list but have no label yet, or were skipped.
    """

    given: dict[str, str]
    open: tuple[str, ...]


def tasks(frame: pd.DataFrame, folder: str, *, names: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Label Studio's import: one task an image, in rank order, with its ``rank`` to sort by.

    Label Studio serves the images itself: start it with
    ``LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true`` and
    ``LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT`` set to the folder that holds ``folder``, and add
    ``folder`` as local storage of the project.

    Args:
        frame: Columns ``path`` and whatever else is to travel with the task.
        folder: Name of the directory of images.
        names: A name for each pseudo-class, suggested as the label of its images with their
            confidence as its score; empty, or "" for one of them: none is suggested.
    """
    found = []
    for row in frame.to_dict("records"):
        task = {"data": {"image": LOCAL_FILES + quote(f"{folder}/{row['path']}"), **row}}
        if names and names[row["pseudo_class"]]:
            answer = {"from_name": LABEL_COLUMNS[0], "to_name": "image", "type": "choices"}
            answer["value"] = {"choices": [names[row["pseudo_class"]]]}
            score = round(float(row["confidence"]), 4)
            task["predictions"] = [{"model_version": MODEL, "score": score, "result": [answer]}]
        found.append(task)
    return found


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
    images = None if known is None else _Images(known, folder, root)
    given: dict[str, str] = {}
    unlabelled: dict[str, None] = {}
    for where, name, label in _from_json(text, file) if is_json else _from_csv(text, file):
        if "\n" in label or "\r" in label:
            raise ElfsError(
                f"{file}, {where}: a label goes over several lines, so a quotation mark before it "
                "is not closed: add the other one, or take it out."
            )
        label = class_name(label)
        path = name if images is None else images.find(name)
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


def class_name(text: str) -> str:
    """A class as it is compared: names that look the same are the same, however they were typed.

    Accents are composed (NFC), runs of spaces, no-break ones among them, are one space, and what
    has no width is left out.
    """
    return " ".join(unicodedata.normalize("NFC", text.translate(INVISIBLE)).split())


def split_csv(text: str) -> tuple[str, str, int]:
    """The table in a CSV file, what stands between its columns, and how many lines come before.

    Excel takes a first line ``sep=;`` for the delimiter; without one the header decides.
    """
    first, _, table = text.partition("\n")
    stated = re.fullmatch(r'"?sep=(.)"?\r?', first, re.IGNORECASE)
    if stated:
        return table, stated[1], 1
    return text, max(",;\t", key=first.count), 0


def _from_csv(text: str, file: Path) -> Iterator[tuple[str, str, str]]:
    table, delimiter, before = split_csv(text)
    rows = csv.DictReader(io.StringIO(table, newline=""), delimiter=delimiter)
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
            where, given = f"line {rows.line_num + before}", (row[label] or "").strip()
            if given and not row[path]:
                raise ElfsError(f"{file}, {where}: the label {given!r} has no path; fill it in.")
            if row[path]:
                for answer in _texts(_cell(given)) or [""]:
                    yield where, row[path], answer
    except csv.Error as error:
        raise ElfsError(f"{file} is not a readable CSV file: {error}.") from None


def _cell(text: str) -> Any:
    """A cell's text, or the answers in it where Label Studio wrote them as JSON."""
    if text[:1] not in ("[", "{"):
        return text
    try:
        answers = json.loads(text)
    except ValueError:
        return text
    if isinstance(answers, list):
        return answers if all(isinstance(answer, str) for answer in answers) else text
    return answers if "choices" in answers else text


def _from_json(text: str, file: Path) -> Iterator[tuple[str, str, str]]:
    try:
        records = json.loads(text)
    except ValueError as error:
        raise ElfsError(f"{file} is not valid JSON: {error}.") from None
    records = [records] if isinstance(records, dict) else records
    read = []
    for number, record in enumerate(records, 1):
        where = f"task {number}"
        try:
            data = record.get("data", record)
            name = next(data[key] for key in PATH_COLUMNS if isinstance(data.get(key), str))
            read.append((where, name, _annotated(record) if "annotations" in record else record))
        except (AttributeError, TypeError, StopIteration):
            raise ElfsError(
                f"{file}, {where}: is not as Label Studio exports it or names no image; export as "
                "JSON or JSON-MIN."
            ) from None
    # One control for all tasks: what another one asks, such as the quality, is not a class.
    asked = dict.fromkeys(control for _, _, answers in read for control in answers)
    control = next((name for name in LABEL_COLUMNS if name in asked), None)
    if asked and control is None and any("annotations" in record for record in records):
        raise ElfsError(
            f"{file} has answers to {' and '.join(map(repr, asked))} and none to 'label': name the "
            "control with the classes label, in the labelling interface or in this file."
        )
    for where, name, answers in read:
        for label in _texts(answers.get(control)) or [""]:
            yield where, name, label


def _annotated(record: dict) -> dict[str, list[str]]:
    """Answers to each control of a task of Label Studio's JSON; several people may have
    annotated it."""
    found: dict[str, list[str]] = {}
    for annotation in record["annotations"] or []:
        if annotation.get("was_cancelled"):
            continue
        for result in annotation.get("result") or []:
            if answers := _texts(result.get("value", {}).get("choices")):
                found.setdefault(result.get("from_name", LABEL_COLUMNS[0]), []).extend(answers)
    return found


def _texts(value: Any) -> list[str]:
    if isinstance(value, dict):  # JSON-MIN writes {"choices": [...]} where several may be chosen
        value = value.get("choices")
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return []
    values = value if isinstance(value, list) else [value]
    return [text for item in values if (text := str(item).strip())]


class _Images:
    """The images that may be labelled, found by what a file of labels calls them.

    Args:
        known: Their paths.
        folder: Name of the directory of images, which Label Studio's URLs begin with.
        root: Where that directory is: absolute paths into it are known, too.
    """

    def __init__(self, known: Collection[str], folder: str, root: Path | None) -> None:
        self.folder, self.root = folder, root
        # by either way of writing é: file systems and programs change it
        self.paths = {unicodedata.normalize("NFC", path): path for path in known}
        self.paths |= {path: path for path in known}
        self.uploads: dict[str, set[str]] = {}
        for path in known:
            self.uploads.setdefault(_as_uploaded(path.rpartition("/")[2]), set()).add(path)

    def find(self, name: str) -> str | None:
        """The path that is meant: the name itself, or that in a Label Studio URL; else None."""
        bare = name.strip()
        candidates = [name, bare, bare.removeprefix("./")]
        query = urlsplit(bare).query
        if query.startswith("d="):
            # a plus sign is one, or a space, by who wrote the URL
            candidates += [unquote(query[2:]), unquote_plus(query[2:])]
        if self.root is not None and Path(bare).is_absolute():
            inside = os.path.relpath(bare, os.path.abspath(self.root))
            candidates.append(inside.replace(os.sep, "/"))
        candidates += [candidate.replace("\\", "/") for candidate in candidates]
        for candidate in candidates:
            for path in (candidate, candidate.removeprefix(f"{self.folder}/")):
                for form in (path, unicodedata.normalize("NFC", path)):
                    if form in self.paths:
                        return self.paths[form]
        upload = UPLOAD.search(bare)
        meant = self.uploads.get(_as_uploaded(unquote(upload[1])), ()) if upload else ()
        return next(iter(meant)) if len(meant) == 1 else None


def _as_uploaded(name: str) -> str:
    """A file's name as Label Studio keeps it: spaces become underscores, and signs go."""
    name = unicodedata.normalize("NFC", name).strip().replace(" ", "_")
    return re.sub(r"[^-\w.]", "", name)
