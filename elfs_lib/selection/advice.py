"""Which method for which budget: the advice that ``--method auto`` follows."""

from __future__ import annotations

from typing import NamedTuple

from elfs_lib.errors import ElfsError


class Advice(NamedTuple):
    """What to choose by, from a number of labels a class on.

    Attributes:
        labels_per_class: The least number of labels a class that it is for.
        method: A name in ``selection.METHODS``.
        why: The end of a sentence that begins with the labels a class.
        measured: Whether runs in the book show it; if not, pages say so.
    """

    labels_per_class: float
    method: str
    why: str
    measured: bool


#: By labels a class, ascending, the first from 0 on. The only place that says so.
ADVICE: tuple[Advice, ...] = (
    Advice(0, "typiclust", "so few that typical images teach most", False),
    Advice(10, "elfs", "enough for images that are neither too hard nor too easy", False),
)


def advise(labels_per_class: float) -> Advice:
    """The advice for a number of labels a class.

    Raises:
        ElfsError: if the number is below 0.
    """
    if not labels_per_class >= 0:
        raise ElfsError(f"labels_per_class is {labels_per_class}: give a number of at least 0.")
    return [each for each in ADVICE if each.labels_per_class <= labels_per_class][-1]
