"""The label lock: who may see ground-truth labels, when, and where that is written down.

ELFS may not see a label before the coreset is chosen. A dataset therefore hands out images
only; its labels sit behind a :class:`LabelOracle`. While a stage runs inside
:func:`stage_lock`, the oracle opens only as far as that stage's policy allows, and every
opening is recorded for the stage's manifest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

import numpy as np

from elfs_lib.errors import ElfsError, choose

PURPOSES = ("analysis", "evaluation", "supervised")
POLICIES = ("never", *PURPOSES)


class LabelLockError(ElfsError):
    """Labels were requested where they must stay locked."""


@dataclass(frozen=True)
class _Stage:
    name: str
    policy: str
    opened: list[str] = field(default_factory=list)


_running: ContextVar[_Stage | None] = ContextVar("elfs_running_stage", default=None)


@contextmanager
def stage_lock(policy: str, *, stage: str = "this stage") -> Iterator[list[str]]:
    """Run a stage under a label policy.

    Args:
        policy: ``never`` (labels stay locked), ``analysis`` (figures and measurements about a
            choice already made), ``evaluation`` (training on the labelled coreset, testing),
            or ``supervised`` (methods that select with labels, shown as a reference; not an upper
            bound).
        stage: The stage's name, for messages.

    Yields:
        A list that grows by ``"<split>:<purpose>"`` each time labels are opened, in order and
        once for each pair; artifacts write it into the manifest.

    Raises:
        LabelLockError: if a stage that may open labels is started inside one that may not.
        ElfsError: if the policy is unknown.
    """
    choose("label policy", policy, POLICIES)
    outer = _running.get()
    if outer is not None and outer.policy == "never" and policy != "never":
        raise LabelLockError(
            f"{stage} (label policy {policy}) was started inside {outer.name}, which is "
            "label-free: compute it before, or after."
        )
    current = _Stage(stage, policy)
    token = _running.set(current)
    try:
        yield current.opened
    finally:
        _running.reset(token)


class LabelOracle:
    """Ground-truth labels behind a lock.

    Args:
        load: Reads the labels of a split: ``load("train")`` -> int [N]. Called at most once
            for each split, by :meth:`open` and :meth:`digest`.
        has: The splits that have labels, out of ``train`` and ``test``.

    Attributes:
        has: As given.
        opened: ``"<split>:<purpose>"`` for each different opening so far, in order.
    """

    def __init__(self, load: Callable[[str], np.ndarray], has: tuple[str, ...]) -> None:
        self.has = tuple(has)
        self.opened: list[str] = []
        self._load = load
        self._cache: dict[str, np.ndarray] = {}

    def __repr__(self) -> str:
        return f"LabelOracle(has={self.has}, opened={self.opened})"

    def open(self, split: str, *, purpose: str) -> np.ndarray:
        """The labels of a split.

        Args:
            split: ``train`` or ``test``.
            purpose: ``analysis``, ``evaluation`` or ``supervised``. Inside a stage it must be the
                stage's policy; outside of any stage (a plot in a notebook) only ``analysis`` is
                allowed.

        Returns:
            int64 [N], classes 0..C-1, a fresh copy.

        Raises:
            LabelLockError: if a label-free stage is running or the purpose is not allowed here.
            ElfsError: if the dataset has no labels for this split, or a name is unknown.
        """
        choose("split", split, ("train", "test"))
        choose("purpose", purpose, PURPOSES)
        stage = _running.get()
        self._check_lock(stage, split, purpose)
        if split not in self.has:
            raise ElfsError(
                f"{purpose} needs labels: this dataset has none for its {split} split, so give "
                "it labels or leave this step out."
            )
        entry = f"{split}:{purpose}"
        for record in (self.opened, stage.opened if stage else []):
            if entry not in record:
                record.append(entry)
        return self._read(split).copy()

    def digest(self) -> str:
        """Hash of all labels, as 16 hexadecimal digits: part of the keys of stages that open
        labels, so that results of wrong labels are not reused for corrected ones.

        Raises:
            LabelLockError: if a label-free stage is running.
        """
        stage = _running.get()
        if stage is not None and stage.policy == "never":
            raise LabelLockError(f"{stage.name} is label-free, so it may not depend on labels.")
        read = hashlib.sha256()
        for split in self.has:
            read.update(f"{split}:".encode() + self._read(split).astype("<i8").tobytes())
        return read.hexdigest()[:16]

    def _read(self, split: str) -> np.ndarray:
        if split not in self._cache:
            self._cache[split] = _checked(self._load(split), split)
        return self._cache[split]

    @staticmethod
    def _check_lock(stage: _Stage | None, split: str, purpose: str) -> None:
        if stage is None:
            if purpose != "analysis":
                raise LabelLockError(
                    f"Outside of a stage labels open only for purpose='analysis', not for "
                    f"{purpose!r}: run the {purpose} stage instead."
                )
        elif stage.policy == "never":
            raise LabelLockError(
                f"{stage.name} is label-free, so it may not open the {split} labels: only "
                "analysis and evaluation stages may."
            )
        elif stage.policy != purpose:
            raise LabelLockError(
                f"{stage.name} may open labels for {stage.policy} only, not for {purpose}: "
                f"open the {split} labels with purpose={stage.policy!r}."
            )


def _checked(labels: np.ndarray, split: str) -> np.ndarray:
    labels = np.asarray(labels)
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or (labels.size and labels.min() < 0):
        raise ElfsError(
            f"The {split} labels must be one class number 0..C-1 for each image, not "
            f"{labels.dtype} of shape {labels.shape}: correct the dataset's labels."
        )
    return labels.astype(np.int64)
