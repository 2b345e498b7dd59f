"""The one exception that users see, and what many checks share before they raise it."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from numbers import Integral


class ElfsError(Exception):
    """A mistake the user can mend. The message is one sentence: what is wrong, and what to do."""


def choose(kind: str, name: str, options: Iterable[str]) -> str:
    """Return ``name`` if it is one of ``options``.

    Args:
        kind: What the name stands for, used in the message ("dataset", "encoder", ...).
        name: The name that the user gave.
        options: The names that exist.

    Raises:
        ElfsError: if the name is unknown; says the nearest known name and lists all of them.
    """
    names = sorted(options)
    if name in names:
        return name
    near = difflib.get_close_matches(str(name), names, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ElfsError(f"Unknown {kind} {name!r}: {hint}choose one of {', '.join(names)}.")


def is_whole(value: object, low: float = -math.inf, high: float = math.inf) -> bool:
    """Whether a value is a whole number in ``low`` .. ``high``: Python's or numpy's, and not a
    truth value, which Python takes for a number.
    """
    return isinstance(value, Integral) and not isinstance(value, bool) and low <= value <= high
