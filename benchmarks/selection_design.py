"""The sizes at which selection methods are measured."""

from __future__ import annotations

BASE = {"n": 40_000, "dim": 64, "classes": 10, "share": 0.1}
#: What the largest known users bring: 4 GB of embeddings, and a budget that fits an evening.
IMAGENET = {"n": 1_281_167, "dim": 768, "classes": 1000, "share": 0.001}


def around(base: dict, sizes: tuple[int, ...]) -> list[dict]:
    """A point, and what differs from it in one way: other N, D, C and budgets."""
    return [
        base,
        *({**base, "n": n} for n in sizes),
        *({**base, "dim": dim} for dim in (256, 768)),
        *({**base, "classes": classes} for classes in (100, 1000)),
        *({**base, "share": share} for share in (0.02, 0.3)),
    ]


DESIGN = around(BASE, (10_000, 20_000, 80_000, 160_000, 320_000))
