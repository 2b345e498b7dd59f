"""The exception that users see, and what many checks share."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from numbers import Integral
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    import pydantic


MANY = 30  # names that are not all listed where one of them is near


class ElfsError(ValueError):
    """A mistake the user can fix. The message is one sentence: what is wrong, and what to do."""


def first_line(error: BaseException) -> str:
    """What an error says in its first line, or its type if it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def choose(kind: str, name: str, options: Iterable[str]) -> str:
    """Return ``name`` if it is one of ``options``.

    Args:
        kind: What the name stands for, used in the message ("dataset", "encoder", ...).
        name: The name that the user gave.
        options: The names that exist.

    Raises:
        ElfsError: if the name is unknown; says the nearest known name, or lists all of them.
    """
    names = sorted(options)
    if name in names:
        return name
    near = difflib.get_close_matches(str(name), names, n=1)
    if near and len(names) > MANY:
        raise ElfsError(f"Unknown {kind} {name!r}: did you mean {near[0]!r}?")
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ElfsError(f"Unknown {kind} {name!r}: {hint}choose one of {', '.join(names)}.")


def is_whole(value: object, low: float = -math.inf, high: float = math.inf) -> bool:
    """Whether a value is a whole number in ``low`` .. ``high``: Python's or NumPy's, and not a
    bool, which Python counts as an integer.
    """
    return isinstance(value, Integral) and not isinstance(value, bool) and low <= value <= high


def check_images(images: np.ndarray, *, instead: str = "") -> None:
    """Check that an array holds images: uint8 [N, C, H, W] with C = 1 or 3.

    Args:
        images: The array that the user gave.
        instead: What else could be given, used in the message (", or a directory").

    Raises:
        ElfsError: if it has another type or shape.
    """
    if images.ndim != 4 or images.dtype != "uint8" or images.shape[1] not in (1, 3):
        raise ElfsError(
            f"images are {images.dtype} {images.shape}: give uint8 [N, C, H, W] with C = 1 or 3"
            f"{instead}."
        )


class Fault(NamedTuple):
    """What a validation found first.

    Attributes:
        key: The top-level key.
        kind: pydantic's name of the fault.
        value: The value at fault; of a list, the entry.
        words: The fault in words that fit into a sentence ("should be a valid list").
    """

    key: str
    kind: str
    value: object
    words: str


def fault_sentence(name: str, value: object, fault: Fault) -> str:
    """What is wrong with a value, in a sentence.

    Args:
        name: What the value is called.
    """
    but = " but" if fault.words.startswith("should") else ":"
    return f"{name} is {value!r}{but} {fault.words}."


def own_error(error: pydantic.ValidationError) -> ElfsError | None:
    """The error that a check of our own raised inside a validation, which wraps it; None if it was
    pydantic's check that failed."""
    raised = error.errors()[0].get("ctx", {}).get("error")
    return raised if isinstance(raised, ElfsError) else None


def first_fault(error: pydantic.ValidationError) -> Fault:
    """The first of the faults that a validation found."""
    first = error.errors()[0]
    words = first["msg"].lower().removeprefix("input ").replace("tuple", "list")
    return Fault(str((*first["loc"], "?")[0]), first["type"], first["input"], words)
