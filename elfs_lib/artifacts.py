"""Content-keyed stage folders: written once, atomically, checked when read, shared by everyone.

A stage's folder is ``<root>/<stage>/<key>``, where ``key`` is a hash of the stage's name, its
version, its parameters and the contents of its inputs. Asking for the same stage again, in this
process or another, returns the existing folder.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import json
import mmap
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import pandas as pd
from safetensors import SafetensorError

import elfs_lib
from elfs_lib.errors import ElfsError
from elfs_lib.label_lock import stage_lock

MANIFEST = "manifest.json"
# By bford.info/cachedir: backups leave such a folder out, and so does a search for images.
CACHE_TAG = "CACHEDIR.TAG"
CACHE_SIGNATURE = "Signature: 8a477f597d28d172789f06886806bc55"
_PACKAGES = ("torch", "timm", "faiss-cpu", "scikit-learn", "numpy", "pandas")


class NotBuilt(ElfsError):
    """The store was opened only to look, and this stage has not been run."""


def canonical_json(value: Any) -> str:
    """Serialise ``value`` to the one JSON text that its hash is taken from."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def stage_key(stage: str, version: int, params: Mapping, contents: Mapping[str, str]) -> str:
    """Hash what determines a stage's output to 16 hexadecimal digits.

    ``contents`` are those of the inputs, by name (:attr:`Artifact.content`).
    """
    text = canonical_json([stage, version, dict(params), dict(contents)])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@functools.cache  # ten milliseconds, asked for at each stage
def package_versions() -> dict[str, str]:
    """Versions of ELFS and of the packages that decide the numbers, where they state one."""
    versions = {"elfs": elfs_lib.__version__}  # which need not be installed: its source will do
    for name in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):  # another build of it, or none
            versions[name] = metadata.version(name)
    return versions


def versions_in_words(versions: Mapping[str, str]) -> str:
    """Versions as people read them: "elfs 0.1.0, torch 2.14.1, ..."."""
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _checksum(manifest: Mapping[str, Any]) -> str:
    """Hash of a manifest as it reads from its file, its own checksum left out."""
    facts = {name: value for name, value in manifest.items() if name != "checksum"}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _lock(stage: Path, key: str, *, timeout: float = -1) -> filelock.BaseFileLock:
    """The lock that whoever builds a key of a stage holds."""
    return filelock.FileLock(stage / f".{key}.lock", timeout=timeout)


def write_text_atomic(path: Path, text: str) -> None:
    """Write a small text file so that a reader sees the old text or the new, never half."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8", newline="")
        _fsync(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_rows(file: Path, count: int, parts: Iterable[np.ndarray]) -> np.memmap:
    """Write an array [count, ...] whose rows come in parts of some as a ``.npy`` file, as
    ``np.save`` would write it whole; memory holds one part.

    Returns:
        The array, mapped. (Writing through a map would kill the process where the disk is full.)

    Raises:
        OSError: if the disk is full.
        ValueError: if there are not as many rows.
    """
    written = 0
    with file.open("wb") as opened:
        for part in parts:
            if not written:
                opened.write(npy_header((count, *part.shape[1:]), part.dtype))
            opened.write(np.ascontiguousarray(part).data)
            written += len(part)
    if written != count:
        raise ValueError(f"{file} was to have {count} rows and got {written}.")
    return np.load(file, mmap_mode="r+", allow_pickle=False)


def npy_header(shape: tuple[int, ...], dtype: np.dtype) -> bytes:
    """The start of a ``.npy`` file, which NumPy pads so that fewer or more rows leave its length as
    it is."""
    file = io.BytesIO()
    about = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, about)
    return file.getvalue()


def copy_atomic(source: Path, path: Path) -> None:
    """Copy a file so that ``path`` is never half written."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        shutil.copyfile(source, temporary)
        _fsync(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@dataclass(frozen=True)
class Artifact:
    """A finished stage folder. Arrays are memory-mapped read-only; tables are data frames."""

    stage: str
    key: str
    folder: Path
    manifest: dict[str, Any]

    @property
    def content(self) -> str:
        """Hash of what the files hold, as 16 hexadecimal digits.

        Stages that read the artifact are keyed by it and not by ``key``: images decoded again
        because a file was touched or copied, but equal to the bit, leave all later stages valid.
        """
        files = canonical_json(self.manifest["sha256"])
        return hashlib.sha256(files.encode()).hexdigest()[:16]

    def array(self, name: str) -> np.ndarray:
        """An array of the stage, memory-mapped read-only."""
        return np.load(self.folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)

    def table(self, name: str) -> pd.DataFrame:
        """A table of the stage."""
        return pd.read_parquet(self.folder / f"{name}.parquet")

    def json(self, name: str) -> Any:
        """Plain values of the stage: numbers, texts, lists and mappings."""
        return json.loads((self.folder / f"{name}.json").read_text())


@dataclass
class Draft:
    """A stage folder that is being written; it becomes an :class:`Artifact` when complete."""

    folder: Path
    key: str
    facts: dict[str, Any] = field(default_factory=dict)

    def unfinished(self, name: str) -> Path:
        """A folder for work that takes long: it outlives a killed build, whose next attempt gets
        it again, and goes when the stage is finished.

        Args:
            name: What the work is on, a hash. What is left of other keys with this name is removed,
                unless somebody is at work on it.
        """
        stage = self.folder.parent
        for other in stage.glob(f".{name}.*.unfinished"):
            key = other.name.split(".")[-2]
            if key != self.key:
                with contextlib.suppress(filelock.Timeout), _lock(stage, key, timeout=0):
                    shutil.rmtree(other, ignore_errors=True)
        return stage / f".{name}.{self.key}.unfinished"

    def array(self, name: str, value: np.ndarray) -> None:
        """Write an array as ``<name>.npy``; a memory map of a whole file beside it, or of
        unfinished work, becomes that file."""
        file = self.folder / f"{name}.npy"
        if isinstance(value, np.memmap) and isinstance(value.base, mmap.mmap):  # all of its file
            given = Path(value.filename)
            if given.parent.suffix == ".unfinished":
                try:
                    os.link(given, file)  # the work stays until the stage is finished
                except OSError:  # the file system has no links
                    given.replace(file)
                return
            if given.parent == self.folder.resolve():  # NumPy resolves the names of its maps
                given.replace(file)
                return
        np.save(file, np.ascontiguousarray(value), allow_pickle=False)

    def rows(self, name: str, count: int, parts: Iterable[np.ndarray]) -> np.memmap:
        """Write an array that comes in parts as ``<name>.npy``; see :func:`write_rows`."""
        return write_rows(self.folder / f"{name}.npy", count, parts)

    def table(self, name: str, value: pd.DataFrame) -> None:
        """Write a table as ``<name>.parquet``."""
        value.to_parquet(self.folder / f"{name}.parquet", index=False)

    def json(self, name: str, value: Any) -> None:
        """Write plain values as ``<name>.json``; NaN and infinity are refused."""
        (self.folder / f"{name}.json").write_text(json.dumps(value, indent=1, allow_nan=False))

    def fact(self, **facts: Any) -> None:
        """Record facts (device, FLOPs, warnings...) for the manifest."""
        self.facts.update(facts)


class Store:
    """The folder of all artifacts.

    Args:
        root: Where the stage folders live; made when the first stage is written.
        repair: Recompute a damaged artifact instead of raising.
        look: Never build: a stage that is not there raises :class:`NotBuilt`.
    """

    def __init__(self, root: str | Path, *, repair: bool = False, look: bool = False):
        self.root = Path(root)
        self.repair = repair
        self.look = look
        self._verified: dict[str, Artifact] = {}

    def find(self, stage: str, key: str) -> Artifact | None:
        """Return the finished artifact, or None if this stage has not been run.

        Raises:
            ElfsError: if the folder is there but damaged (missing or changed files).
        """
        if key in self._verified and (self._verified[key].folder / MANIFEST).exists():
            return self._verified[key]
        folder = self.root / stage / key
        if not folder.exists():
            return None
        artifact = Artifact(stage, key, folder, self._verify(folder))
        self._verified[key] = artifact
        return artifact

    def run(
        self,
        stage: str,
        build: Callable[[Draft], None],
        *,
        version: int,
        params: Mapping[str, Any],
        inputs: Mapping[str, Artifact] | None = None,
        seed: int | None = None,
        labels: str = "never",
    ) -> Artifact:
        """Return the stage's artifact, building it first if nobody has.

        Args:
            stage: Name of the stage; also the name of its folder.
            build: Writes the output through the :class:`Draft` it is given.
            version: To be raised when the output of ``build`` changes.
            params: Everything outside the inputs that the output depends on, the seed included.
            inputs: Artifacts that ``build`` reads.
            seed: Repeated in the manifest for readers.
            labels: Label policy while ``build`` runs: "never", "analysis", "evaluation" or
                "supervised" (see :mod:`elfs_lib.label_lock`).

        Raises:
            ElfsError: if the folder is damaged, or cannot be written.
        """
        inputs = inputs or {}
        contents = {name: artifact.content for name, artifact in inputs.items()}
        key = stage_key(stage, version, params, contents)
        try:
            found = self.find(stage, key)
        except ElfsError:
            if not self.repair:
                raise
            found = None
        if found:
            return found
        if self.look:
            raise NotBuilt(f"Stage {stage!r} has not been run for these parameters: run it first.")
        about = {"stage": stage, "key": key, "version": version, "params": dict(params)}
        about |= {"inputs": {name: artifact.key for name, artifact in inputs.items()}}
        about |= {"contents": contents, "seed": seed}
        try:
            (self.root / stage).mkdir(parents=True, exist_ok=True)
            if not (self.root / CACHE_TAG).exists():
                write_text_atomic(self.root / CACHE_TAG, f"{CACHE_SIGNATURE}\n# Made by ELFS.\n")
            with _lock(self.root / stage, key):
                return self._find_or_build(stage, key, build, about, labels)
        except (OSError, SafetensorError) as error:
            raise ElfsError(self._sentence(stage, error)) from error

    def _find_or_build(
        self,
        stage: str,
        key: str,
        build: Callable[[Draft], None],
        about: Mapping[str, Any],
        labels: str,
    ) -> Artifact:
        """Holding the stage's lock: return what another process built meanwhile, or build."""
        folder, draft_folder = self.root / stage / key, self.root / stage / f".{key}.draft"
        shutil.rmtree(draft_folder, ignore_errors=True)  # left by a killed run
        try:
            found = self.find(stage, key)
        except ElfsError:
            if not self.repair:
                raise
            os.replace(folder, draft_folder)  # atomic: after a kill it is complete or absent
            shutil.rmtree(draft_folder)
            found = None
        if found:
            return found
        try:
            draft_folder.mkdir()
            draft = Draft(draft_folder, key)
            start, spent = time.perf_counter(), time.process_time()
            with stage_lock(labels, stage=stage) as opened:
                build(draft)
            manifest = {
                **about,
                "labels": {"policy": labels, "opened": list(opened)},
                **draft.facts,
                "packages": package_versions(),
                "wall_s": round(time.perf_counter() - start, 3),
                "cpu_s": round(time.process_time() - spent, 3),  # of all threads together
                "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "sha256": {f.name: _sha256(f) for f in sorted(draft_folder.iterdir())},
            }
            manifest = json.loads(json.dumps(manifest))
            manifest["checksum"] = _checksum(manifest)
            (draft_folder / MANIFEST).write_text(json.dumps(manifest, indent=1))
            for path in (*draft_folder.iterdir(), draft_folder):
                _fsync(path)
            for work in folder.parent.glob(f".*.{key}.unfinished"):
                shutil.rmtree(work, ignore_errors=True)
            os.replace(draft_folder, folder)
            _fsync(folder.parent)
        except BaseException:
            shutil.rmtree(draft_folder, ignore_errors=True)
            raise
        self._verified[key] = Artifact(stage, key, folder, manifest)
        return self._verified[key]

    def _sentence(self, stage: str, error: Exception) -> str:
        reason = getattr(error, "strerror", None) or str(error)
        file = getattr(error, "filename", None)
        if file and not Path(os.fsdecode(file)).is_relative_to(self.root):
            return f"Stage {stage!r} cannot use {os.fsdecode(file)}: {reason}; repair it."
        return (
            f"Cannot write stage {stage!r} under {self.root}: {reason}; free some space or name "
            "another folder with ELFS_ARTIFACTS_DIR."
        )

    def artifacts(self) -> list[Artifact]:
        """Every finished artifact, oldest first, without verifying checksums."""
        manifests = sorted(self.root.glob(f"*/*/{MANIFEST}"), key=lambda path: path.stat().st_mtime)
        return [
            Artifact(folder.parent.name, folder.name, folder, json.loads(path.read_text()))
            for path in manifests
            if not (folder := path.parent).name.startswith(".")
        ]

    def damaged(self) -> list[str]:
        """One sentence for each damaged artifact of the store."""
        problems = []
        for folder in sorted(self.root.glob("*/*/")):
            if folder.name.startswith("."):
                continue
            try:
                self._verify(folder)
            except ElfsError as error:
                problems.append(str(error))
        return problems

    def _verify(self, folder: Path) -> dict[str, Any]:
        remedy = "run the command again with --repair to recompute it."
        try:
            manifest = json.loads((folder / MANIFEST).read_text())
            checksums = dict(manifest["sha256"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ElfsError(f"Artifact {folder} has no readable {MANIFEST}: {remedy}") from error
        checksum = _checksum(manifest)
        if manifest.get("checksum", checksum) != checksum:  # the first manifests have none
            raise ElfsError(
                f"Artifact file {folder / MANIFEST} is damaged (its checksum changed): {remedy}"
            )
        for name, expected in checksums.items():
            path = folder / name
            if not path.exists():
                raise ElfsError(f"Artifact file {path} is missing: {remedy}")
            if _sha256(path) != expected:
                raise ElfsError(f"Artifact file {path} is damaged (its checksum changed): {remedy}")
        return manifest
