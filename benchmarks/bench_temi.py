"""One TEMI step: all heads at once with an analytic gradient, against a loop over heads.

The baseline is what the paper describes, written plainly: one module a head, autograd, float32.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.timing import Row, compare
from elfs_lib.clustering import temi
from elfs_lib.compute import resolve_device, resolve_precision


class PlainHead(nn.Module):
    """Linear, GELU, Linear, unit length, Linear with unit-length weights."""

    def __init__(self, width: int, hidden: int, bottleneck: int, classes: int):
        super().__init__()
        self.first, self.second = nn.Linear(width, hidden), nn.Linear(hidden, bottleneck)
        self.last = nn.Linear(bottleneck, classes, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        feature = F.normalize(self.second(F.gelu(self.first(x))), dim=1)
        return F.linear(feature, F.normalize(self.last.weight, dim=1)) / 0.1


class PlainTemi:
    """Students and teachers as lists of modules, the loss head by head."""

    def __init__(
        self, width: int, config: temi.TemiConfig, device: torch.device = torch.device("cpu")
    ):
        sizes = (width, config.hidden, config.bottleneck, config.classes)
        self.students = [PlainHead(*sizes).to(device) for _ in range(config.heads)]
        self.teachers = [PlainHead(*sizes).to(device) for _ in range(config.heads)]
        self.marginals = [
            torch.full((config.classes,), 1 / config.classes, device=device)
        ] * config.heads
        self.optimizer = torch.optim.AdamW(p for s in self.students for p in s.parameters())
        self.beta = config.beta

    def step(self, x: torch.Tensor, y: torch.Tensor) -> None:
        with torch.no_grad():
            taught = [(t(x).softmax(1), t(y).softmax(1)) for t in self.teachers]
        weight = sum((qx * qy).sum(1) for qx, qy in taught) / len(taught)
        total = 0.0
        for h, student in enumerate(self.students):
            (tx, ty), sx, sy = taught[h], student(x).softmax(1), student(y).softmax(1)
            self.marginals[h] = 0.9 * self.marginals[h] + 0.05 * (tx.mean(0) + ty.mean(0))
            one = ((sx * ty) ** self.beta / self.marginals[h]).sum(1).log()
            other = ((sy * tx) ** self.beta / self.marginals[h]).sum(1).log()
            total = total - 0.5 * (weight * (one + other)).mean()
        self.optimizer.zero_grad()
        (total / len(self.students)).backward()
        self.optimizer.step()
        with torch.no_grad():
            for student, teacher in zip(self.students, self.teachers, strict=True):
                for p, q in zip(student.parameters(), teacher.parameters(), strict=True):
                    q.lerp_(p, 0.004)


def step_flops(width: int, config: temi.TemiConfig) -> float:
    """Multiplications and additions of a step: forward twice, backward without the inputs'."""
    first, second = width * config.hidden, config.hidden * config.bottleneck
    last = config.bottleneck * config.classes
    return 2 * config.batch * 2 * config.heads * (3 * first + 4 * second + 4 * last)


def run(quick: bool) -> Iterator[Row]:
    device = resolve_device("cpu")
    dtype = resolve_precision("auto", device)
    heads = 10 if quick else 50
    for width, taken in ((768, 768), (1280, 1280), (1280, 128)):
        config = temi.TemiConfig(classes=10, heads=heads, batch=1024)
        plain = PlainTemi(width, config)
        fast = temi.Trainer(taken, config, torch.Generator().manual_seed(0), device, dtype)
        x, y = torch.randn(2, config.batch, width)
        pairs = torch.cat([x, y])[:, :taken].to(dtype)
        yield compare(
            f"TEMI step, H {heads}, D {width}" + (f", PCA {taken}" if taken < width else ""),
            "a loop over heads, float32",
            lambda plain=plain, x=x, y=y: plain.step(x, y),
            lambda fast=fast, pairs=pairs: fast.step(pairs, 1.0),
            repeats=3,
            flops=step_flops(taken, config),
            dtype=dtype,
            note="batch 1024, hidden 512, bottleneck 256, 10 clusters",
        )
