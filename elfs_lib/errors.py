"""The one exception that users see, and the helper that names what they may have meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


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
